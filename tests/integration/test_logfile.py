"""The log source on real files, with a real writer's rotations."""

import asyncio
import errno
import gzip
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import zstandard
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agent.component import Cursor, Report
from agent.simulator.logs import LogWriter, Script, write_log
from agent.sources.logfile import LogConfig, LogSource
from agent.wire.event import Event


class Reader:
    """Drives a LogSource as the pipeline does: each batch is taken over together with its cursor."""

    def __init__(self, *paths: Path | str, cursor: Cursor | None = None, **options: Any) -> None:
        options = {"parser": "auth", "poll_interval_s": 0.05, "rotation_grace_s": 0.1, **options}
        self.report = Report()
        self.source = LogSource("auth", LogConfig(paths=tuple(map(str, paths)), **options), self.report)
        self.cursor = cursor
        self.events: list[Event] = []
        self._batches: AsyncIterator[tuple[list[Event], Cursor | None]] = self.source.batches(cursor)

    async def until(self, done: object, timeout_s: float = 15) -> list[Event]:
        """Read on until `done(events)` holds."""
        async with asyncio.timeout(timeout_s):
            while not done(self.events):  # type: ignore[operator]
                events, cursor = await anext(self._batches)
                self.events += events
                self.cursor = cursor or self.cursor
        return self.events

    async def lines(self, n: int) -> list[Event]:
        """Read on until there are `n` events of lines."""
        return await self.until(lambda _: len(self.of_lines) >= n)

    async def for_s(self, seconds: float) -> None:
        try:
            await self.until(lambda _: False, seconds)
        except TimeoutError:
            self._batches = self.source.batches(self.cursor)

    @property
    def of_lines(self) -> list[Event]:
        return [event for event in self.events if event.type != "collection.gap"]

    @property
    def gaps(self) -> list[Event]:
        return [event for event in self.events if event.type == "collection.gap"]

    @property
    def numbers(self) -> list[int]:
        return [event.data["pid"] for event in self.of_lines]

    @property
    def raws(self) -> list[str]:
        return [event.raw or "" for event in self.of_lines]

    async def close(self) -> None:
        await self._batches.aclose()  # type: ignore[attr-defined]


@asynccontextmanager
async def reading(*paths: Path | str, cursor: Cursor | None = None, **options: Any) -> AsyncIterator[Reader]:
    reader = Reader(*paths, cursor=cursor, **options)
    async with aclosing(reader):  # type: ignore[type-var]
        reader.aclose = reader.close  # type: ignore[attr-defined]
        yield reader


async def test_what_stood_in_the_file_and_what_is_added_is_read_once_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "auth.log"
    write_log(path, count=5_000)
    async with reading(path) as reader:
        await reader.lines(5_000)
        write_log(path, count=500, first=5_001)
        await reader.lines(5_500)
        assert reader.numbers == list(range(1, 5_501))


async def test_a_written_line_is_noticed_within_a_tenth_of_the_poll_interval(tmp_path: Path) -> None:
    path = tmp_path / "auth.log"
    write_log(path, count=1)
    async with reading(path, poll_interval_s=5.0) as reader:
        await reader.lines(1)
        waiting = asyncio.ensure_future(reader.lines(2))
        await asyncio.sleep(0.05)
        begin = asyncio.get_running_loop().time()
        write_log(path, count=1, first=2)
        await waiting
        assert asyncio.get_running_loop().time() - begin < 0.5


async def test_a_source_resumes_after_the_last_committed_batch(tmp_path: Path) -> None:
    """Telegraf keeps tail offsets only on a clean stop; here the cursor alone decides."""
    path = tmp_path / "auth.log"
    write_log(path, count=20_000)
    async with reading(path) as first:
        await first.lines(1_000)
        taken = len(first.numbers)
    assert taken < 20_000
    async with reading(path, cursor=first.cursor) as second:
        await second.lines(20_000 - taken)
        assert first.numbers + second.numbers == list(range(1, 20_001))


async def test_rotation_by_rename_loses_no_line_that_is_written_to_the_old_file_afterwards(tmp_path: Path) -> None:
    """telegraf#3522: lines lost during rotation."""
    path = tmp_path / "auth.log"
    async with reading(path) as reader:
        with path.open("a") as old:
            old.write("Mar  1 10:00:00 h sshd[1]: first\n")
            old.flush()
            await reader.lines(1)
            path.rename(tmp_path / "auth.log.1")
            path.write_text("Mar  1 10:00:00 h sshd[3]: third\n")
            old.write("Mar  1 10:00:00 h sshd[2]: second\n")
        await reader.lines(3)
        assert sorted(reader.numbers) == [1, 2, 3]
        assert reader.gaps == []


@pytest.mark.parametrize("glob", ["auth.log", "auth.log*"])
async def test_a_file_rotated_again_and_again_while_it_is_written_is_read_once_and_in_order(
    tmp_path: Path, glob: str
) -> None:
    path = tmp_path / "auth.log"
    script = Script(seed=3).lines()
    async with reading(tmp_path / glob) as reader:
        with LogWriter(path, rotate_lines=700, keep=20) as writer:
            for n in range(50):
                writer.write(*(next(script) for _ in range(100)))
                if n % 3 == 0:
                    await reader.lines(100 * n)
        await reader.lines(5_000)
        assert reader.numbers == list(range(1, 5_001))
        assert reader.gaps == []


async def test_a_file_rotated_while_the_agent_was_away_is_read_to_its_end_first(tmp_path: Path) -> None:
    path = tmp_path / "auth.log"
    write_log(path, count=100)
    async with reading(path) as first:
        await first.lines(100)
    write_log(path, count=100, first=101)
    path.rename(tmp_path / "auth.log.1")
    write_log(path, count=100, first=201)
    async with reading(path, cursor=first.cursor) as second:
        await second.lines(200)
        assert second.numbers == list(range(101, 301))
        assert second.gaps == []


@pytest.mark.parametrize("glob", ["auth.log", "auth.log*"])
async def test_after_copytruncate_the_rest_is_read_from_the_copy_and_a_gap_says_what_may_be_missing(
    tmp_path: Path, glob: str
) -> None:
    """contrib#43693, #19765: copytruncate stops reading, or repeats the copy."""
    path = tmp_path / "auth.log"
    write_log(path, count=300)
    async with reading(tmp_path / glob) as first:
        await first.lines(300)
    write_log(path, count=50, first=301)
    shutil.copy(path, tmp_path / "auth.log.1")
    os.truncate(path, 0)
    write_log(path, count=800, first=351)  # longer than it was: the size alone does not tell
    async with reading(tmp_path / glob, cursor=first.cursor) as second:
        await second.lines(850)
        await second.for_s(0.4)
        assert second.numbers == list(range(301, 1_151))
        (gap,) = second.gaps
        assert gap.data["events"] is None
        assert gap.data["rest_recovered"]


async def test_a_copy_that_is_shorter_than_what_was_read_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "auth.log"
    write_log(path, count=300)
    async with reading(tmp_path / "auth.log*", rotation_grace_s=0.3) as reader:
        await reader.lines(300)
        shutil.copy(path, tmp_path / "auth.log.1")
        write_log(path, count=30, first=301)  # between the copy and the cut, but read in time
        await reader.lines(330)
        os.truncate(path, 0)
        write_log(path, count=10, first=331)
        await reader.lines(340)
        await reader.for_s(0.8)
        assert reader.numbers == list(range(1, 341))
        assert len(reader.gaps) == 1


async def test_an_inode_given_to_a_new_file_does_not_hide_its_lines(tmp_path: Path) -> None:
    """fluent-bit#8025, #4895, beats#1341."""
    path = tmp_path / "auth.log"
    write_log(path, count=100)
    async with reading(path) as first:
        await first.lines(100)
    inode = path.stat().st_ino
    for _ in range(50):
        path.unlink()
        write_log(path, count=400, first=101, seed=9)
        if path.stat().st_ino == inode:
            break
    async with reading(path, cursor=first.cursor) as second:
        await second.lines(400)
        assert second.numbers == list(range(101, 501))
        assert len(second.gaps) == 1


async def test_a_file_deleted_while_it_is_followed_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "auth.log"
    async with reading(path) as reader:
        with LogWriter(path) as writer:
            script = Script().lines()
            writer.write(next(script))
            await reader.lines(1)
            path.unlink()
            writer.write(next(script), next(script))
        await reader.lines(3)
        write_log(path, count=1, first=4)
        await reader.lines(4)
        assert reader.numbers == [1, 2, 3, 4]
        assert reader.gaps == []


async def test_an_unfinished_line_waits_for_its_end_and_is_taken_as_it_is_when_the_file_is_rotated(
    tmp_path: Path,
) -> None:
    path = tmp_path / "auth.log"
    path.write_text("Mar  1 10:00:00 h sshd[1]: whole\nMar  1 10:00:00 h sshd[2]: ha")
    async with reading(path) as reader:
        await reader.lines(1)
        with path.open("a") as file:
            file.write("lf\nMar  1 10:00:00 h sshd[3]: never fin")
        await reader.lines(2)
        path.rename(tmp_path / "auth.log.1")
        path.write_text("Mar  1 10:00:01 h sshd[4]: new\n")
        await reader.lines(4)
        assert reader.raws == [
            "Mar  1 10:00:00 h sshd[1]: whole",
            "Mar  1 10:00:00 h sshd[2]: half",
            "Mar  1 10:00:00 h sshd[3]: never fin",
            "Mar  1 10:00:01 h sshd[4]: new",
        ]


async def test_crlf_broken_bytes_zeros_and_blank_lines_harm_no_other_line(tmp_path: Path) -> None:
    path = tmp_path / "auth.log"
    path.write_bytes(b"one\r\n\r\n\xff\xfe bad\n\n\0\0\0two\n\xe2\x80\xa8sep\x0b\x1c\x85still\nthree\n")
    async with reading(path) as reader:
        await reader.lines(5)
        assert reader.raws == ["one", "\\xff\\xfe bad", "two", "\u2028sep\x0b\x1c\\x85still", "three"]


@pytest.mark.parametrize("length", [2_000, 700_000])
async def test_an_overlong_line_is_cut_and_said_and_the_next_one_is_whole(tmp_path: Path, length: int) -> None:
    path = tmp_path / "auth.log"
    path.write_text("before\n" + "x" * length + "\nafter\n")
    async with reading(path, line_bytes_max=1_000) as reader:
        await reader.until(lambda _: "after" in reader.raws and reader.gaps)
        assert reader.raws == ["before", "x" * 1_000, "after"]
        (gap,) = reader.gaps
        assert gap.data["bytes"] == length - 1_000 + (length > 262_144)
        assert gap.data["events"] == 0


async def test_a_directory_that_does_not_exist_yet_is_said_and_then_read(tmp_path: Path) -> None:
    path = tmp_path / "later" / "auth.log"
    async with reading(path) as reader:
        await reader.for_s(0.2)
        assert "no such directory yet" in reader.report.trouble[str(path)]
        write_log(path, count=10)
        await reader.lines(10)
        assert reader.report.trouble == {}


async def test_a_glob_takes_up_files_that_appear_and_names_them_in_the_events(tmp_path: Path) -> None:
    async with reading(tmp_path / "*" / "*.log") as reader:
        write_log(tmp_path / "a" / "x.log", count=3)
        write_log(tmp_path / "b" / "y.log", count=3)
        await reader.lines(6)
        assert {event.data["file"] for event in reader.events} == {
            str(tmp_path / "a" / "x.log"),
            str(tmp_path / "b" / "y.log"),
        }


async def test_a_file_that_may_not_be_read_is_named_with_the_remedy_and_read_once_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "auth.log"
    write_log(path, count=3)
    path.chmod(0)
    real = os.open

    def refusing(name: str, *args: int) -> int:
        # Root may read everything; the kernel's answer to everybody else.
        if name == str(path) and path.stat().st_mode & 0o777 == 0:
            raise PermissionError(13, "Permission denied", name)
        return real(name, *args)

    monkeypatch.setattr("agent.sources.logfile_tail.os.open", refusing)
    async with reading(path) as reader:
        await reader.for_s(0.2)
        assert "add the agent's user to the group" in reader.report.trouble[str(path)]
        path.chmod(0o600)
        await reader.lines(3)
        assert reader.report.trouble == {}


@pytest.mark.parametrize("kind", [FileNotFoundError, PermissionError, OSError])
async def test_a_younger_file_waits_while_the_older_one_of_its_family_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[OSError]
) -> None:
    """A new file's lines were once delivered before the last lines of the rotated one."""
    path, old = tmp_path / "auth.log", tmp_path / "auth.log.1"
    write_log(path, count=3)
    real = os.open
    refused: list[str] = []

    async with reading(tmp_path / "auth.log*") as reader:
        await reader.lines(3)
        cursor = reader.cursor

    def refusing(name: str, *args: int) -> int:
        if str(name) == str(old) and len(refused) < 3:
            refused.append(name)
            raise kind(5, "refused", name)
        return real(name, *args)

    write_log(path, count=3, first=4)
    path.rename(old)
    os.utime(old, (1_700_000_000,) * 2)
    write_log(path, count=3, first=7)
    monkeypatch.setattr("agent.sources.logfile_tail.os.open", refusing)
    async with reading(tmp_path / "auth.log*", cursor=cursor) as reader:
        await reader.lines(6)
        assert len(refused) == 3
        assert reader.numbers == [4, 5, 6, 7, 8, 9]
        assert reader.gaps == []


async def test_a_file_that_stays_unreadable_does_not_keep_the_younger_ones_of_its_family_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, old = tmp_path / "auth.log", tmp_path / "auth.log.1"
    write_log(old, count=3)
    os.utime(old, (1_700_000_000,) * 2)
    write_log(path, count=3, first=4)
    real = os.open

    def refusing(name: str, *args: int) -> int:
        if str(name) == str(old):
            raise PermissionError(13, "Permission denied", name)
        return real(name, *args)

    monkeypatch.setattr("agent.sources.logfile_tail.os.open", refusing)
    monkeypatch.setattr("agent.sources.logfile_tail.STUCK_WAIT_S", 0.3)
    async with reading(tmp_path / "auth.log*") as reader:
        await reader.lines(3)
        assert reader.numbers == [4, 5, 6]
        assert "Permission denied" in reader.report.trouble[str(old)]


async def test_with_from_start_off_only_what_comes_is_read_but_a_new_file_from_its_first_byte(tmp_path: Path) -> None:
    old = tmp_path / "old.log"
    write_log(old, count=50)
    async with reading(tmp_path / "*.log", from_start=False) as reader:
        await anext(reader._batches)
        write_log(old, count=1, first=51)
        write_log(tmp_path / "new.log", count=2, first=100)
        await reader.lines(3)
        assert sorted(reader.numbers) == [51, 100, 101]


async def test_a_backlog_of_rotated_files_is_read_oldest_first(tmp_path: Path) -> None:
    for n, name in enumerate(["auth.log.2", "auth.log.1", "auth.log"]):
        write_log(tmp_path / name, count=3_000, first=1 + 3_000 * n)
        os.utime(tmp_path / name, (1_700_000_000 + n * 1000,) * 2)
    async with reading(tmp_path / "auth.log*") as reader:
        await reader.lines(9_000)
        assert reader.numbers == list(range(1, 9_001))


@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.long)])
async def test_thousands_of_files_are_followed_with_a_bounded_number_of_descriptors(tmp_path: Path, count: int) -> None:
    for n in range(count):
        (tmp_path / f"f{n}.log").write_text(f"Mar  1 10:00:00 h sshd[{n}]: x\n")
    async with reading(tmp_path / "*.log") as reader:
        await reader.until(lambda _: len(reader.of_lines) >= count, 120)
        assert sorted(reader.numbers) == list(range(count))
        assert len(list(Path("/proc/self/fd").iterdir())) < 400
        with (tmp_path / "f1234.log").open("a") as file:
            file.write("Mar  1 10:00:00 h sshd[99999]: x\n")
        await reader.until(lambda _: len(reader.of_lines) > count, 120)
        assert reader.numbers[-1] == 99_999


async def test_files_that_begin_alike_are_not_taken_for_one_another(tmp_path: Path) -> None:
    """contrib#43693: the same long header in every file of a machine, and the fingerprint of its beginning was that of all."""
    header = ",".join(f"column_{number}" for number in range(200)) + "\n"
    assert len(header) > 1_024
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(header + f"{name},1\n")
    async with reading(tmp_path / "*.csv", parser="csv") as reader:
        await reader.lines(2)
        # A new file in the place of the old one, beginning alike, and longer than what was read of the old.
        (tmp_path / "a.csv").rename(tmp_path / "a.csv.1")
        (tmp_path / "a.csv").write_text(header + "c,1\nc,2\nc,3\n")
        await reader.lines(5)
        (tmp_path / "b.csv").unlink()
        (tmp_path / "b.csv").write_text(header + "d,1\nd,2\n")
        await reader.lines(7)
    assert sorted(reader.raws) == ["a,1", "b,1", "c,1", "c,2", "c,3", "d,1", "d,2"]


async def test_a_file_system_that_goes_away_and_comes_back_is_not_read_twice(tmp_path: Path) -> None:
    mount = tmp_path / "usb"
    write_log(mount / "auth.log", count=100)
    async with reading(mount / "auth.log") as first:
        await first.lines(100)
    mount.rename(tmp_path / "away")
    async with reading(mount / "auth.log", cursor=first.cursor) as second:
        await second.for_s(0.4)
        (tmp_path / "away").rename(mount)
        write_log(mount / "auth.log", count=5, first=101)
        await second.lines(5)
        assert second.numbers == list(range(101, 106))
        assert second.gaps == []


def compress(path: Path, suffix: str) -> Path:
    """As logrotate has it: a new file with the content and the time of the old one, then the old one is deleted."""
    packed = path.with_name(path.name + suffix)
    status = path.stat()
    packed.write_bytes(gzip.compress(path.read_bytes()) if suffix == ".gz" else zstandard.compress(path.read_bytes()))
    os.utime(packed, ns=(status.st_atime_ns, status.st_mtime_ns))
    path.unlink()
    return packed


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
async def test_a_backlog_with_compressed_files_is_read_oldest_first_and_not_again_after_a_restart(
    tmp_path: Path, suffix: str
) -> None:
    for n, name in enumerate(["auth.log.3", "auth.log.2", "auth.log.1", "auth.log"]):
        write_log(tmp_path / name, count=4_000, first=1 + 4_000 * n)
        os.utime(tmp_path / name, (1_700_000_000 + n * 1000,) * 2)
    compress(tmp_path / "auth.log.3", suffix)
    compress(tmp_path / "auth.log.2", suffix)
    async with reading(tmp_path / "auth.log*") as first:
        await first.lines(3_000)
    async with reading(tmp_path / "auth.log*", cursor=first.cursor) as second:
        await second.lines(16_000 - len(first.numbers))
        assert first.numbers + second.numbers == list(range(1, 16_001))
    async with reading(tmp_path / "auth.log*", cursor=second.cursor) as third:
        await third.for_s(0.3)
        assert third.events == []


@pytest.mark.parametrize("glob", ["auth.log", "auth.log*"])
async def test_a_file_rotated_and_compressed_while_the_agent_was_away_is_read_on_in_its_archive(
    tmp_path: Path, glob: str
) -> None:
    """contrib#40523: rotate and compress duplicates."""
    path = tmp_path / "auth.log"
    write_log(path, count=300)
    async with reading(tmp_path / glob) as first:
        await first.lines(300)
    write_log(path, count=200, first=301)
    rotated = path.rename(tmp_path / "auth.log.1")
    os.utime(rotated, (1_700_000_000,) * 2)
    compress(rotated, ".gz")
    write_log(path, count=10, first=501)
    async with reading(tmp_path / glob, cursor=first.cursor) as second:
        await second.lines(210)
        await second.for_s(0.4)
        assert second.numbers == list(range(301, 511))
        # The new file may have got the inode of the old one: then it looks like a cut, and what a cut may lose is said.
        assert all(gap.data["rest_recovered"] for gap in second.gaps)


async def test_a_file_compressed_under_our_eyes_is_not_read_twice(tmp_path: Path) -> None:
    path = tmp_path / "auth.log"
    write_log(path, count=300)
    async with reading(tmp_path / "auth.log*") as reader:
        await reader.lines(300)
        rotated = path.rename(tmp_path / "auth.log.1")
        write_log(path, count=10, first=301)
        await reader.lines(310)
        compress(rotated, ".gz")
        await reader.for_s(0.8)
        assert reader.numbers == list(range(1, 311))
        assert reader.gaps == []


async def test_a_damaged_archive_is_named_and_does_not_stop_the_others(tmp_path: Path) -> None:
    write_log(tmp_path / "auth.log", count=5)
    (tmp_path / "auth.log.2.gz").write_bytes(gzip.compress(b"line\n" * 1000)[:30])
    os.utime(tmp_path / "auth.log.2.gz", (1_700_000_000,) * 2)
    async with reading(tmp_path / "auth.log*") as reader:
        await reader.lines(5)
        assert "damaged or not finished" in reader.report.trouble[str(tmp_path / "auth.log.2.gz")]


async def test_a_record_of_several_lines_is_given_out_when_nothing_follows(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_text("ERROR: a\n  at b\nINFO: c\n  d\n")
    options = {"pattern": r"^(?P<level>\w+): (?P<message>[\s\S]*)"}
    async with reading(path, parser="regex", options=options, multiline_start=r"^\w+:", hold_s=0.2) as reader:
        await reader.lines(2)
        assert reader.raws == ["a\n  at b", "c\n  d"]


class Refusals:
    """Errors of the kernel at opening or reading a file of a place, at the calls that are chosen."""

    def __init__(self, place: Path) -> None:
        self._place = str(place)
        self._calls: Iterator[OSError | None] = iter(())
        self._real = os.open, os.pread
        self.struck = 0

    def plan(self, calls: "list[OSError | None]") -> None:
        self._calls = iter(calls)

    def _strike(self) -> None:
        error = next(self._calls, None)
        if error is not None:
            self.struck += 1
            raise error

    def open(self, name: Any, *args: Any, **others: Any) -> int:
        if str(name).startswith(self._place):
            self._strike()
        return self._real[0](name, *args, **others)

    def pread(self, *args: int) -> bytes:
        self._strike()
        return self._real[1](*args)


class Writing(RuleBasedStateMachine):
    """However bytes are cut into writes, files into rotations, and whatever cannot be opened or read for a while, every complete line
    is read once and in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.place = Path(tempfile.mkdtemp(prefix="linewarden-"))
        self.path = self.place / "a.log"
        self.file = self.path.open("ab")
        self.no = self.rotations = 0
        self.partial = b""
        self.cursor: Cursor | None = None
        self.got: list[str] = []
        self.wanted: list[str] = []

    @rule(n=st.integers(1, 30), cut=st.integers(0, 40))
    def write(self, n: int, cut: int) -> None:
        data = self.partial
        for _ in range(n):
            self.no += 1
            self.wanted.append(f"line {self.no} ü")
            data += f"line {self.no} ü\n".encode()
        keep = len(data) - min(cut, len(data) - 1)
        self.file.write(data[:keep])
        self.file.flush()
        self.partial = data[keep:]

    def _finish(self) -> None:
        self.file.write(self.partial)
        self.file.flush()
        self.partial = b""

    @rule()
    def rename(self) -> None:
        self._finish()
        self.file.close()
        self.rotations += 1
        self.path.rename(self.place / f"a.log.{self.rotations}")
        self.file = self.path.open("ab")

    @rule()
    def copy_and_cut(self) -> None:
        self._finish()
        self._read(whole=True)
        self.rotations += 1
        shutil.copy(self.path, self.place / f"a.log.{self.rotations}")
        os.truncate(self.path, 0)
        self._read(whole=True)  # two cuts between two looks cannot be told from one

    @rule()
    def read(self) -> None:
        self._read(whole=False)

    @rule(strikes=st.lists(st.sampled_from([0, 0, errno.ENOENT, errno.EACCES, errno.EIO]), min_size=1, max_size=12))
    def read_under_errors(self, strikes: list[int]) -> None:
        refusals = Refusals(self.place)
        refusals.plan([OSError(number, os.strerror(number)) if number else None for number in strikes])
        with (
            patch("agent.sources.logfile_tail.os.open", refusals.open),
            patch("agent.sources.logfile_tail.os.pread", refusals.pread),
        ):
            self._read(whole=False)

    def _read(self, *, whole: bool) -> None:
        async def some() -> None:
            async with reading(self.place / "a.log*", cursor=self.cursor, rotation_grace_s=60) as reader:
                with suppress(TimeoutError):
                    await reader.until(
                        lambda _: whole and len(self.got) + len(reader.raws) >= len(self.wanted),
                        0.05 if not whole else 5,
                    )
                self.cursor = reader.cursor
                self.got += reader.raws

        self.loop.run_until_complete(some())

    @invariant()
    def in_order(self) -> None:
        assert self.got == self.wanted[: len(self.got)]

    def teardown(self) -> None:
        self._finish()
        self._read(whole=True)
        self.file.close()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.place)
        assert self.got == self.wanted


TestWriting = Writing.TestCase
TestWriting.settings = settings(max_examples=15, stateful_step_count=10, deadline=None)
