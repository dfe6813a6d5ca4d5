"""The journal source on real journal files, written by systemd-journal-remote and read by the real journalctl."""

import asyncio
import contextlib
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.component import ConfigError, Cursor, NotConnected, Report
from agent.sources import journal
from agent.sources.journal import JournalConfig, JournalSource
from agent.sources.journal_position import Place, Position
from agent.wire.event import Event

REMOTE = "/usr/lib/systemd/systemd-journal-remote"
needs_journal = pytest.mark.skipif(
    not Path(REMOTE).exists() or shutil.which("journalctl") is None,
    reason="needs journalctl and systemd-journal-remote",
)


class Journal:
    """A journal file of a machine."""

    def __init__(self, directory: Path, boot: str = "0123456789abcdef0123456789abcdef") -> None:
        self.directory = directory
        self.boot = boot
        self.no = 0
        self.file = "t.journal"
        self.at_us = time.time_ns() // 1000 - 60_000_000

    def write(self, *messages: str | bytes, **fields: str) -> None:
        export = b""
        for message in messages:
            self.no += 1
            values = {
                "__REALTIME_TIMESTAMP": str(self.at_us + self.no * 1000), "__MONOTONIC_TIMESTAMP": str(self.no), "_BOOT_ID": self.boot,
                "_HOSTNAME": "station-1", "SYSLOG_IDENTIFIER": "sshd", "_PID": str(self.no), "PRIORITY": "6", **fields,
            }  # fmt: skip
            export += "".join(f"{name}={value}\n" for name, value in values.items()).encode()
            if isinstance(message, bytes):
                export += b"MESSAGE\n" + len(message).to_bytes(8, "little") + message + b"\n\n"
            else:
                export += f"MESSAGE={message}\n\n".encode()
        self.directory.mkdir(exist_ok=True)
        subprocess.run(
            [REMOTE, "-o", str(self.directory / self.file), "-"], input=export, check=True, capture_output=True
        )


def refused(n: int) -> str:
    return f"Failed password for root from 203.0.113.7 port {n} ssh2"


@asynccontextmanager
async def reading(directory: Path, cursor: Cursor | None = None, **options: Any) -> AsyncIterator[Any]:
    source = JournalSource("journal", JournalConfig(directory=str(directory), **options), Report())
    batches = source.batches(cursor)
    state: dict[str, Any] = {"cursor": cursor, "events": []}

    async def read(n: int) -> list[Event]:
        async with asyncio.timeout(20):
            while len(state["events"]) < n:
                events, after = await anext(batches)
                state["events"] += events
                state["cursor"] = after or state["cursor"]
        return list(state["events"])

    read.state, read.source = state, source  # type: ignore[attr-defined]
    try:
        yield read
    finally:
        await batches.aclose()  # type: ignore[attr-defined]
        assert not following(directory), "the source is stopped and its journalctl is not"


def following(directory: Path) -> list[str]:
    """The journalctl processes that read this directory."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = each.read_bytes().decode(errors="replace").split("\0")
            if f"--directory={directory}" in command:
                found.append(" ".join(command))
    return found


@needs_journal
async def test_entries_are_read_followed_and_resumed_each_once(tmp_path: Path) -> None:
    """fluent-bit#7019, contrib#39061, wazuh#26778: the journal stalls or loses."""
    machine = Journal(tmp_path / "j")
    machine.write(*(refused(n) for n in range(1, 201)))
    async with reading(machine.directory) as read:
        await read(200)
        machine.write(refused(201))
        events = await read(201)
        assert [event.data["pid"] for event in events] == list(range(1, 202))
        assert (events[0].type, events[0].src_ip, events[0].actor, events[0].data["host"]) == (
            "authentication.failure",
            "203.0.113.7",
            "root",
            "station-1",
        )
        assert events[0].time == machine.at_us + 1000
        cursor = read.state["cursor"]
    machine.write(refused(202), refused(203))
    async with reading(machine.directory, cursor) as read:
        assert [event.data["pid"] for event in await read(2)] == [202, 203]


@needs_journal
async def test_a_journal_that_was_replaced_is_read_whole_with_a_gap_also_where_its_clock_is_a_year_behind(
    tmp_path: Path,
) -> None:
    """Without a clock battery a new journal begins in the past: by times nothing of it is new."""
    ours = Journal(tmp_path / "j")
    ours.write(*(refused(n) for n in range(5)))
    async with reading(ours.directory) as read:
        await read(5)
        cursor = read.state["cursor"]
    (ours.directory / "t.journal").unlink()
    other = Journal(tmp_path / "j", boot="f" * 32)
    other.at_us = ours.at_us - 365 * 86_400_000_000
    other.write(*(refused(n) for n in range(9)))
    async with reading(other.directory, cursor) as read:
        events = await read(10)
        assert events[0].type == "collection.gap"
        assert events[0].data["events"] is None
        assert [event.data["pid"] for event in events[1:]] == list(range(1, 10))
        other.write(refused(10))
        assert (await read(11))[-1].data["pid"] == 10


@needs_journal
async def test_entries_copied_to_another_journal_are_recognised_and_only_the_later_ones_are_read(
    tmp_path: Path,
) -> None:
    """Journald copies the early entries of a boot from memory to disk, under another sequence."""
    ours, other = Journal(tmp_path / "a"), Journal(tmp_path / "b")
    ours.write(*(refused(n) for n in range(5)))
    async with reading(ours.directory) as read:
        await read(5)
        cursor = read.state["cursor"]
    other.at_us = ours.at_us
    other.write(*(refused(n) for n in range(9)))
    async with reading(other.directory, cursor) as read:
        assert [event.data.get("pid") for event in await read(4)] == [6, 7, 8, 9]


@needs_journal
async def test_a_boot_whose_clock_is_behind_is_read_and_followed_although_journalctl_shows_later_ones_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut journald begins a new file with a new sequence; the old one, of a later time, stays beside it."""
    monkeypatch.setattr(journal, "START_CHECK_S", 0.2)
    monkeypatch.setattr(journal, "STALL_CHECK_S", 0.3)
    machine = Journal(tmp_path / "j")
    machine.write(refused(1), refused(2))
    behind = Journal(tmp_path / "j", boot="e" * 32)
    behind.at_us, behind.file = machine.at_us - 86_400_000_000, "behind.journal"
    async with reading(machine.directory) as read:
        await read(2)
        behind.write(refused(3), refused(4))
        assert [event.data["port"] for event in await read(4)] == [1, 2, 3, 4]
        behind.write(refused(5))
        assert (await read(5))[-1].data["port"] == 5
    behind.write(refused(6))
    async with reading(machine.directory, read.state["cursor"]) as read:
        assert [event.data["port"] for event in await read(1)] == [6]
        behind.write(refused(7))
        assert [event.data["port"] for event in await read(2)] == [6, 7]


@needs_journal
async def test_a_unit_that_no_entry_has_is_reported_with_the_nearest_name(tmp_path: Path) -> None:
    machine = Journal(tmp_path / "j")
    machine.write(refused(1), _SYSTEMD_UNIT="ssh.service")
    async with reading(machine.directory, units=("ssh.service", "sshd.service"), identifiers=("sshd",)) as read:
        await read(1)
        text = read.source._report.trouble["units"]
        assert "'sshd.service'" in text
        assert "did you mean 'ssh.service'?" in text
        assert "identifiers" not in read.source._report.trouble


def test_a_position_knows_entries_by_sequence_and_boot_and_never_by_time() -> None:
    def cursor(sequence: str, no: int, boot: str, monotonic: int) -> str:
        return f"s={sequence * 32};i={no:x};b={boot * 32};m={monotonic:x};t={5_000 - no:x};x={no:x}"

    position = Position(None)
    for no in (1, 2, 3):
        position.move(cursor("a", no, "b", no * 100), 5_000 - no)
    position = Position(position.state())
    assert position.was_read(Place.of(cursor("a", 3, "b", 300)))
    assert not position.was_read(Place.of(cursor("a", 4, "b", 400)))
    assert position.was_read(Place.of(cursor("c", 9, "b", 300)))  # copied under another sequence
    assert not position.was_read(Place.of(cursor("c", 1, "b", 301)))
    assert not position.was_read(Place.of(cursor("c", 1, "d", 1)))
    assert position.is_unread("d" * 32)
    assert not position.is_unread("b" * 32)


@needs_journal
async def test_bytes_filters_levels_and_units(tmp_path: Path) -> None:
    machine = Journal(tmp_path / "j")
    machine.write(b"bin\xff\nary", SYSLOG_IDENTIFIER="hmi", PRIORITY="3", _SYSTEMD_UNIT="hmi.service", _UID="1000")
    machine.write("noise", SYSLOG_IDENTIFIER="other")
    machine.write("e1000e 0000:00:1f.6 eth0: NIC Link is Down", SYSLOG_IDENTIFIER="kernel", _TRANSPORT="kernel")
    async with reading(machine.directory, identifiers=("hmi", "kernel")) as read:
        binary, link = await read(2)
        assert (binary.type, binary.raw, binary.severity) == ("log.line", "bin\\xff\nary", 3)
        assert binary.data == {
            "unit": "hmi.service",
            "actor_uid": "1000",
            "host": "station-1",
            "program": "hmi",
            "pid": 1,
        }
        assert link.type == "network.link.down"


@needs_journal
async def test_a_filter_never_costs_an_entry_after_a_restart(tmp_path: Path) -> None:
    """Systemd#30288: with journalctl's own filter, going on after an entry that does not match skips the next one that does."""
    machine = Journal(tmp_path / "j")
    machine.write(refused(1))
    async with reading(machine.directory, identifiers=("sshd",)) as read:
        await read(1)
    machine.write("noise", SYSLOG_IDENTIFIER="other")
    cursor = read.state["cursor"]
    for n in range(2, 5):
        machine.write(refused(n))
        machine.write("noise", SYSLOG_IDENTIFIER="other")
        async with reading(machine.directory, cursor, identifiers=("sshd",)) as read:
            (event,) = await read(1)
            assert event.data["port"] == n
            # The entry behind it moves the cursor, and is no event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    await read(2)
            cursor = read.state["cursor"]


@needs_journal
async def test_the_first_entry_after_a_reboot_is_not_missed(tmp_path: Path) -> None:
    """Systemd#38912, and worse: `journalctl --follow` shows one boot alone, so what the old one wrote last is never seen."""
    machine = Journal(tmp_path / "j")
    machine.write(refused(1), refused(2))
    async with reading(machine.directory) as read:
        await read(2)
        machine.boot = "fedcba9876543210fedcba9876543210"
        machine.write(refused(3))
        machine.write(refused(4))
        assert [event.data["port"] for event in await read(4)] == [1, 2, 3, 4]
    # While the agent was away: the last of this boot, and the first of the next.
    machine.write(refused(5))
    machine.boot = "00000000000000000000000000000001"
    machine.write(refused(6))
    async with reading(machine.directory, read.state["cursor"]) as read:
        assert [event.data.get("port") for event in await read(2)] == [5, 6]
    async with reading(machine.directory) as read:
        assert [event.data["port"] for event in await read(6)] == [1, 2, 3, 4, 5, 6]


@needs_journal
async def test_what_another_machine_sent_into_this_computers_journal_is_left_out(tmp_path: Path) -> None:
    machine = Journal(tmp_path / "j")
    machine.write(refused(1), _MACHINE_ID="0" * 32)
    machine.write(refused(2), _MACHINE_ID="f" * 32)
    machine.write(refused(3))
    async with reading(machine.directory) as read:
        read.source._machine = "0" * 32
        assert [event.data["port"] for event in await read(2)] == [1, 3]


@needs_journal
async def test_with_from_start_off_only_what_comes_is_read(tmp_path: Path) -> None:
    machine = Journal(tmp_path / "j")
    machine.write(*(refused(n) for n in range(50)))
    async with reading(machine.directory, from_start=False) as read:
        pending = asyncio.ensure_future(read(1))
        await asyncio.sleep(0.5)
        machine.write(refused(51))
        (event,) = await pending
        assert event.data["pid"] == 51


@needs_journal
async def test_an_entry_that_is_too_long_is_passed_over_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "ENTRY_BYTES_MAX", 20_000)
    monkeypatch.setattr(journal, "READ_BYTES", 8_192)
    machine = Journal(tmp_path / "j")
    machine.write("before", "x" * 100_000, "after")
    async with reading(machine.directory) as read:
        events = await read(3)
        assert [event.raw or event.type for event in events if event.type != "collection.gap"] == ["before", "after"]
        assert sum(event.type == "collection.gap" for event in events) == 1


@needs_journal
async def test_a_journalctl_that_hangs_is_noticed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rsyslog PR#5477: the journal is rotated, and nothing comes any more."""
    monkeypatch.setattr(journal, "STALL_CHECK_S", 0.3)
    machine = Journal(tmp_path / "j")
    machine.write(refused(1))
    deaf = tmp_path / "journalctl"
    # The first time it follows, it gives what there is and then nothing any more.
    deaf.write_text(
        f'#!/bin/sh\ncase "$*" in *--follow*) if [ ! -e {tmp_path}/once ]; then touch {tmp_path}/once; '
        'journalctl $(echo "$*" | sed s/--follow//); exec sleep 100; fi;; esac\nexec journalctl "$@"\n'
    )
    deaf.chmod(0o755)
    async with reading(machine.directory, program=str(deaf)) as read:
        await read(1)
        machine.write(refused(2))
        assert [event.data["pid"] for event in await read(2)] == [1, 2]


async def test_a_computer_without_journalctl_is_told_what_to_do(tmp_path: Path) -> None:
    config = JournalConfig(program="no-such-journalctl", directory=str(tmp_path / "none"))
    assert [key for key, _, _ in config.problems()] == ["program", "directory"]
    async with reading(tmp_path, program="no-such-journalctl") as read:
        with pytest.raises(ConfigError, match="Install systemd"):
            await read(1)


async def test_a_journalctl_that_ends_is_not_connected_with_its_last_words(tmp_path: Path) -> None:
    program = tmp_path / "journalctl"
    program.write_text("#!/bin/sh\necho 'Failed to open directory' >&2\nexit 1\n")
    program.chmod(0o755)
    async with reading(tmp_path, program=str(program)) as read:
        with pytest.raises(NotConnected, match="Failed to open directory"):
            await read(1)
