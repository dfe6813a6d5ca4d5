"""What systemd is told."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import notify as module
from agent.notify import feed_watchdog, notify, ready, reloading, stopping, watchdog_s


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket that systemd listens on."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    address = str(tmp_path / "notify") if request.param == "path" else f"@linewarden-test-{os.getpid()}"
    sock.bind(address.replace("@", "\0"))
    sock.settimeout(5)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    yield sock
    sock.close()


def heard(sock: socket.socket) -> list[str]:
    return sock.recv(4_096).decode().split("\n")


def test_ready_stopping_and_reloading_are_heard(systemd: socket.socket) -> None:
    ready("3 sources")
    assert heard(systemd) == ["READY=1", "STATUS=3 sources"]
    stopping("sending what is left")
    assert heard(systemd) == ["STOPPING=1", "STATUS=sending what is left"]
    reloading()
    first, second = heard(systemd)
    assert first == "RELOADING=1"
    assert second.partition("=")[0] == "MONOTONIC_USEC"
    assert int(second.partition("=")[2]) > 0


def test_a_line_break_in_a_status_is_no_new_variable(systemd: socket.socket) -> None:
    notify(STATUS="no answer\nREADY=1")
    assert heard(systemd) == ["STATUS=no answer READY=1"]


@pytest.mark.parametrize("address", [None, "", "relative", "/nobody/listens/here", "@nobody-listens-here"])
def test_where_nobody_listens_nothing_happens(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert notify(READY="1") is False


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [
        ("60000000", None, 30.0), ("60000000", "own", 30.0), ("60000000", "1", None),
        ("0", None, None), ("x", None, None), (None, None, None),
    ],
)  # fmt: skip
def test_the_watchdog_is_fed_twice_within_its_time_if_it_watches_this_process(
    monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None, expected: float | None
) -> None:
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert watchdog_s() == expected


async def test_the_watchdog_goes_hungry_while_there_is_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    fed: list[dict[str, str]] = []
    asked = asyncio.Event()
    answers = iter([True, False, False, True])

    def makes_progress() -> bool:
        try:
            return next(answers)
        except StopIteration:
            asked.set()
            return False

    def record(**state: str) -> bool:
        fed.append(state)
        return True

    monkeypatch.setattr(module, "notify", record)
    feeding = asyncio.create_task(feed_watchdog(makes_progress))
    await asyncio.wait_for(asked.wait(), 5)
    feeding.cancel()
    assert fed == [{"WATCHDOG": "1"}] * 2


async def test_without_a_watchdog_feeding_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    await asyncio.wait_for(feed_watchdog(lambda: True), 5)
