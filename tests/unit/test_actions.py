"""Local actions: what they refuse, what reaches a program, and what the buffer keeps of them."""

import ast
import asyncio
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.buffer import Buffer, BufferConfig
from agent.component import now_us
from agent.handlers import actions
from agent.handlers.actions import STATE, Actions, ConfigAction, Refused, Task, append_line, arguments
from agent.pipeline import ACTIONS
from agent.wire.batch import read_frames
from agent.wire.event import Event


def alert(src_ip: str = "10.0.0.1", severity: int = 4, handler: str = "burst") -> Event:
    return Event(1, 1, "alert.burst", "auth", severity, src_ip=src_ip, data={"handler": handler})


def run_config(*argv: str, **more: Any) -> ConfigAction:
    return ConfigAction(type="run", argv=argv, handlers=("*",), **more)


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Buffer]:
    buffer = await Buffer.open(folder / "buffer.db", BufferConfig(free_bytes_min=0), str(UUID(int=1)))
    try:
        yield buffer
    finally:
        await buffer.close()


async def events_of(buffer: Buffer) -> list[Event]:
    return [
        event for stored in await buffer.peek(1 << 30) for frame in read_frames(stored.wire) for event in frame.events()
    ]


async def until_nothing_is_left(buffer: Buffer, acting: Actions) -> None:
    """Let it do what is due."""
    task = asyncio.create_task(acting.run())
    try:
        async with asyncio.timeout(60):
            while (await buffer.states()).get(STATE):  # noqa: ASYNC110 - the buffer tells nobody
                await asyncio.sleep(0.02)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def done(buffer: Buffer, config: ConfigAction, one: Event) -> Event:
    """The event that says how the action ended with this alert."""
    acting = Actions(buffer, {"act": config}, (await buffer.states()).get(STATE, {}))
    kept = acting.take([one])
    await buffer.append([one], states={STATE: kept})
    acting.committed(kept)
    await until_nothing_is_left(buffer, acting)
    return next(event for event in await events_of(buffer) if event.type.startswith("agent.action"))


@pytest.mark.parametrize(
    ("given_", "named"),
    [
        ({"type": "run"}, "argv"),
        ({"type": "run", "argv": ("horn",)}, "full path"),
        ({"type": "run", "argv": ("{target}",)}, "full path"),
        ({"type": "run", "argv": ("/bin/sh", "-c", "{message}")}, "shell"),
        ({"type": "run", "argv": ("/usr/bin/horn", "--ip={src_ip}")}, "whole argument"),
        ({"type": "run", "argv": ("/usr/bin/horn", "{raw}")}, "no field"),
        ({"type": "run", "argv": ("/usr/bin/horn",), "path": "/x"}, "path"),
        ({"type": "write", "path": "relative"}, "absolute"),
        ({"type": "post", "url": "http://localhost/"}, "127.0.0.1"),
        ({"type": "post", "url": "http://192.0.2.1/"}, "remote"),
        ({"type": "post", "url": "file:///etc/passwd"}, "http://"),
        ({"type": "post", "url": "http://127.0.0.1/", "handlers": ()}, "handlers"),
    ],
)
def test_what_could_be_turned_against_the_station_is_refused_with_its_key_and_a_remedy(
    given_: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        ConfigAction(**({"handlers": ("*",)} | given_))


def test_check_names_a_program_that_is_not_there_or_may_be_changed_by_everybody(tmp_path: Path) -> None:
    program = tmp_path / "horn"
    assert [key for key, _, _ in run_config(str(program)).problems()] == ["argv"]
    program.write_text("#!/bin/true\n")
    program.chmod(0o755)
    assert not list(run_config(str(program)).problems())
    program.chmod(0o757)
    ((_, text, remedy),) = run_config(str(program)).problems()
    assert "everybody" in text
    assert "chmod o-w" in remedy


@given(st.text())
def test_field_of_an_alert_is_one_argument_without_control_characters_and_never_an_option(text: str) -> None:
    try:
        argv = arguments(("/bin/horn", "{src_ip}", "end"), alert(text))
    except Refused:
        assert text.startswith("-")
        return
    assert len(argv) == 3
    assert len(argv[1]) <= actions.ARGUMENT_CHARS_MAX
    assert not any(ord(c) < 32 or ord(c) == 127 for c in argv[1])
    assert not argv[1].startswith("-")
    os.fsencode(argv[1])


async def test_program_is_run_with_the_fields_and_next_to_no_environment(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = "import os, sys; open(sys.argv[1], 'w').write(repr((sys.argv[2:], sorted(os.environ))))"
    config = run_config(sys.executable, "-c", code, str(out), "{src_ip}", "{severity}", timeout_s=60)
    async with opened(tmp_path) as buffer:
        told = await done(buffer, config, alert("$(reboot); `x`"))
    assert (told.type, told.data["action"], told.data["cause"]) == ("agent.action.done", "act", "alert.burst")
    argv, environment = ast.literal_eval(out.read_text())
    assert argv == ["$(reboot); `x`", "4"]
    assert set(environment) <= {"PATH", "LANG", "LC_CTYPE"}


async def test_program_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); open(sys.argv[1], 'w').write(str(p.pid)); p.wait()"
    async with opened(tmp_path) as buffer:
        told = await done(buffer, run_config(sys.executable, "-c", code, str(pid), timeout_s=5), alert())
    assert told.type == "agent.action.timeout"
    state = Path(f"/proc/{pid.read_text()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


async def test_program_that_fails_says_so_with_its_last_words(tmp_path: Path) -> None:
    async with opened(tmp_path) as buffer:
        told = await done(buffer, run_config("/bin/ls", "/nowhere", timeout_s=60), alert())
    assert told.type == "agent.action.failed"
    assert "nowhere" in str(told.message)


async def test_what_had_begun_when_the_agent_was_killed_is_unknown_and_never_done_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    begun, waits = (
        Task("act", now_us(), alert("begun"), begun_us=1),
        Task("act", now_us(), alert("waits")),
    )
    late = Task("act", 1, alert("late"))
    async with opened(tmp_path) as buffer:
        tasks = {f"{n:020}": msgspec.json.encode(task) for n, task in enumerate((begun, waits, late))}
        await buffer.append((), states={STATE: tasks})
        acting = Actions(
            buffer, {"act": ConfigAction(type="write", path=str(out), handlers=("*",))}, (await buffer.states())[STATE]
        )
        await until_nothing_is_left(buffer, acting)
        told = sorted(event.type for event in await events_of(buffer))
    assert told == ["agent.action.done", "agent.action.dropped", "agent.action.unknown"]
    assert [msgspec.json.decode(line)["src_ip"] for line in out.read_bytes().splitlines()] == ["waits"]


async def test_flood_of_alerts_is_bounded_and_what_was_left_out_is_said(tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = ConfigAction(type="write", path=str(out), handlers=("burst",), severity="high", per_minute=3)
    async with opened(tmp_path) as buffer:
        acting = Actions(buffer, {"act": config}, {})
        assert not acting.take([alert(severity=3), alert(handler="other")])
        kept = acting.take([alert() for _ in range(1_000)])
        assert len(kept) == 3
        await buffer.append((), states={STATE: kept})
        acting.committed(kept)
        await until_nothing_is_left(buffer, acting)
        told = [event for event in await events_of(buffer) if event.type == "agent.action.dropped"]
    assert [event.data["count"] for event in told] == [997]
    assert len(out.read_bytes().splitlines()) == 3


def test_file_is_turned_over_at_its_bound_and_a_pipe_or_link_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "alerts"
    config = ConfigAction(type="write", path=str(path), handlers=("*",), size_bytes_max=262_144, keep=2)
    for _ in range(10):
        append_line(config, b"x" * 99_999 + b"\n")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["alerts", "alerts.1", "alerts.2"]
    assert all(each.stat().st_size <= 262_144 for each in tmp_path.iterdir())
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="No such device"):
        append_line(config, b"x\n")
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        append_line(config, b"x\n")


@contextmanager
def answering(status: int) -> Iterator[tuple[str, list[bytes]]]:
    heard: list[bytes] = []

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Location", "/again")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/alerts", heard
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "ending"), [(204, "done"), (302, "failed"), (500, "failed")])
async def test_alert_is_posted_once_and_no_redirect_is_followed(tmp_path: Path, status: int, ending: str) -> None:
    with answering(status) as (url, heard):
        async with opened(tmp_path) as buffer:
            told = await done(
                buffer, ConfigAction(type="post", url=url, handlers=("*",), timeout_s=60), alert("192.0.2.7")
            )
    assert told.type == f"agent.action.{ending}"
    assert [msgspec.json.decode(body)["src_ip"] for body in heard] == ["192.0.2.7"]


async def test_endpoint_that_never_answers_is_left_after_the_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        async with opened(tmp_path) as buffer:
            told = await done(buffer, ConfigAction(type="post", url=url, handlers=("*",), timeout_s=0.5), alert())
    assert told.type in ("agent.action.timeout", "agent.action.failed")
    assert "time" in str(told.message) or "ended after" in str(told.message)


async def test_alert_reaches_a_program_that_listens_on_a_unix_socket(tmp_path: Path) -> None:
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        heard.append(await reader.readexactly(int(length)))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    path = tmp_path / "horn.sock"
    async with await asyncio.start_unix_server(answer, path), opened(tmp_path) as buffer:
        told = await done(buffer, ConfigAction(type="post", url=f"unix://{path}", handlers=("*",)), alert("192.0.2.7"))
    assert told.type == "agent.action.done"
    assert [msgspec.json.decode(body)["src_ip"] for body in heard] == ["192.0.2.7"]


async def test_what_no_one_thought_of_is_a_failure_of_one_action_and_the_next_is_done(tmp_path: Path) -> None:
    """HTTP's library refuses such a path with an error that no network error is."""
    strange = ConfigAction(type="post", url="http://127.0.0.1:9/\u017c", handlers=("strange",))
    out = tmp_path / "out"
    async with opened(tmp_path) as buffer:
        acting = Actions(
            buffer, {"strange": strange, "log": ConfigAction(type="write", path=str(out), handlers=("well",))}, {}
        )
        kept = acting.take([alert(handler="strange"), alert(handler="well")])
        await buffer.append((), states={STATE: kept})
        acting.committed(kept)
        assert [each.waiting for each in acting.stats().values()] == [1, 1]
        await until_nothing_is_left(buffer, acting)
        told = {event.type: str(event.message) for event in await events_of(buffer)}
        counted = acting.stats()
    assert told.keys() == {"agent.action.failed", "agent.action.done"}
    assert "UnicodeEncodeError" in told["agent.action.failed"]
    assert out.exists()
    strange_, log = counted["strange"], counted["log"]
    assert (strange_.failed, strange_.done, strange_.waiting) == (1, 0, 0)
    assert "UnicodeEncodeError" in str(strange_.last_error)
    assert (log.failed, log.done, log.last_error) == (0, 1, None)


@pytest.mark.parametrize("room", [0, 100])
def test_file_on_a_full_disk_holds_whole_lines_and_the_failure_is_said(tmp_path: Path, room: int) -> None:
    config = ConfigAction(type="write", path=str(tmp_path / "alerts"), handlers=("*",))
    append_line(config, b"first\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6 + room, before[1]))
    try:
        with pytest.raises((OSError, Refused)) as failed:
            append_line(config, b"x" * 500 + b"\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "full" in str(failed.value) or "too large" in str(failed.value)
    append_line(config, b"second\n")
    assert (tmp_path / "alerts").read_bytes() == b"first\nsecond\n"


async def test_action_that_is_taken_out_while_an_alert_waits_for_it_is_not_done_and_that_is_said(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    async with opened(tmp_path) as buffer:
        acting = Actions(buffer, {"act": ConfigAction(type="write", path=str(out), handlers=("*",))}, {})
        kept = acting.take([alert()])
        await buffer.append((), states={STATE: kept})
        acting.committed(kept)
        acting.configure({})
        await until_nothing_is_left(buffer, acting)
        (told,) = await events_of(buffer)
    assert told.type == "agent.action.dropped"
    assert "no longer configured" in str(told.message)
    assert not out.exists()


async def test_program_that_runs_when_the_agent_stops_is_ended_at_once_and_that_is_said(tmp_path: Path) -> None:
    async with opened(tmp_path) as buffer:
        acting = Actions(buffer, {"act": run_config("/usr/bin/sleep", "60", timeout_s=60)}, {})
        kept = acting.take([alert()])
        await buffer.append((), states={STATE: kept})
        acting.committed(kept)
        running = asyncio.create_task(acting.run())
        async with asyncio.timeout(20):
            while b"begun_us" not in next(iter((await buffer.states())[STATE].values())):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        began_s = time.monotonic()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert time.monotonic() - began_s < 10
        (told,) = await events_of(buffer)
        assert not (await buffer.states()).get(STATE)
    assert (told.type, "the agent stops" in str(told.message)) == ("agent.action.failed", True)


def test_pipeline_and_actions_keep_their_state_under_one_name() -> None:
    assert ACTIONS == STATE
