"""The buffer: durable, numbered, chained, bounded; on real files, under real kills, full disks and damage."""

import asyncio
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, ClassVar

import aiosqlite
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import salvage
from agent.buffer import SCHEMA_VERSION, Buffer, BufferConfig, Stored
from agent.component import ConfigError, Cursor, Report
from agent.pipeline import NoHandlers, Pipeline
from agent.streams import in_thread
from agent.wire.batch import GENESIS, Frame, read_frame
from agent.wire.event import Event
from tests.buffer_writer import AGENT

ROOT = Path(__file__).parents[2]
SMALL = BufferConfig(bytes_max=1_048_576, free_bytes_min=0)


def event(n: int, *, urgent: bool = False, size: int = 0) -> Event:
    return Event(
        n,
        n,
        "alert.test" if urgent else "log.line",
        "test",
        data={"n": n, "pad": random.Random(n).randbytes(size).hex()},
    )


@asynccontextmanager
async def opened(folder: Path, config: BufferConfig | None = None) -> AsyncIterator[Buffer]:
    buffer = await Buffer.open(folder / "buffer.db", config or BufferConfig(free_bytes_min=0), AGENT)
    try:
        yield buffer
    finally:
        await buffer.close()


async def drain(buffer: Buffer, bytes_max: int = 100_000) -> list[Stored]:
    """Take everything out as sync does."""
    taken: list[Stored] = []
    while batches := await buffer.peek(bytes_max):
        taken += batches
        for batch in batches:
            await buffer.ack(batch.buffer, batch.lane, batch.through)
    return taken


class Judge:
    """What a collector would find: chains checked from the first batch on, events by number, losses by gap."""

    def __init__(self) -> None:
        self.heads: dict[tuple[str, int], tuple[int, str]] = {}
        self.numbers: list[int] = []
        self.lost = 0
        self.unknown = 0
        self.events: list[Event] = []

    def take(self, batches: Iterable[Stored]) -> "Judge":
        for batch in batches:
            self._take(read_frame(batch.wire))
        return self

    def _take(self, frame: Frame) -> None:
        h = frame.header
        no, link = self.heads.get((h.buffer, h.lane), (0, GENESIS))
        assert (h.no, h.prev) == (no + 1, link), f"lane {h.lane}: {h.no} after {no}"
        self.heads[h.buffer, h.lane] = (h.through, h.gap.last if h.gap else frame.hash)
        for item in frame.events():
            self.events.append(item)
            if item.type == "collection.gap":
                known = item.data["events"]
                self.lost += known or 0
                self.unknown += known is None
            elif "n" in item.data:
                self.numbers.append(item.data["n"])


async def test_events_come_out_in_order_with_an_unbroken_chain(tmp_path: Path) -> None:
    async with opened(tmp_path) as buffer:
        for n in range(50):
            await buffer.append([event(n)], "test", {"n": n})
        judge = Judge().take(await drain(buffer))
    assert judge.numbers == list(range(50))


async def test_cursor_and_handler_state_are_those_of_the_last_append(tmp_path: Path) -> None:
    async with opened(tmp_path) as buffer:
        await buffer.append([event(1)], "a", {"at": 1}, {"h": {"x": b"1", "y": b"2"}})
        await buffer.append([], "a", {"at": 2}, {"h": {"x": None, "z": b"3"}})
        await buffer.append([event(2)], "b", None)
    async with opened(tmp_path) as buffer:
        assert await buffer.cursor("a") == {"at": 2}
        assert await buffer.cursor("b") is None
        assert await buffer.states() == {"h": {"y": b"2", "z": b"3"}}


async def test_a_cursor_is_the_one_of_its_events_though_its_source_changes_it_later(tmp_path: Path) -> None:
    async with opened(tmp_path) as buffer:
        cursor = {"files": [{"offset": 1}]}
        first = asyncio.create_task(buffer.append([event(1)], "a", cursor))
        await asyncio.sleep(0)
        cursor["files"][0]["offset"] = 2
        await first
        assert await buffer.cursor("a") == {"files": [{"offset": 1}]}


async def test_a_source_that_reads_ahead_does_not_move_the_cursor_past_what_is_stored(tmp_path: Path) -> None:
    """A kill between two commits: what the first one's cursor passes over has to be stored by it."""

    class ReadsAhead:
        Config: ClassVar[type] = object
        rereadable: ClassVar[bool] = True

        async def batches(self, _: Cursor | None) -> AsyncIterator[tuple[list[Event], Cursor | None]]:
            at = {"n": 0}
            for n in range(1, 40):
                at["n"] = n
                yield [event(n)], {"at": at}
                # Reads on at once, and moves what the cursor is made of.
                at["n"] = n + 1
            await asyncio.Event().wait()

    async with opened(tmp_path) as buffer:
        pipeline = Pipeline(buffer, NoHandlers())
        seen: list[tuple[int, int]] = []
        commit = buffer._commit

        async def watched(group: Any, lines: Any) -> None:
            await commit(group, lines)
            at = (await buffer.cursor("a") or {"at": {"at": {"n": 0}}})["at"]["at"]["n"]
            seen.append((at, buffer.counters.appended_events))

        buffer._commit = watched  # type: ignore[method-assign]
        pipeline.start("a", "test", ReadsAhead(), Report())
        async with asyncio.timeout(20):
            while buffer.counters.appended_events < 39:  # noqa: ASYNC110 - counted, not signalled
                await asyncio.sleep(0.01)
        await pipeline.stop("a")
    assert seen
    assert all(at == stored for at, stored in seen)


async def test_source_that_is_of_another_type_now_begins_as_if_new_and_not_at_the_others_position(
    tmp_path: Path,
) -> None:
    class Keeps:
        Config: ClassVar[type] = type(None)
        rereadable: ClassVar[bool] = False

        def __init__(self) -> None:
            self.given: list[Cursor | None] = []

        async def batches(self, cursor: Cursor | None) -> AsyncIterator[tuple[list[Event], Cursor | None]]:
            self.given.append(cursor)
            yield [event(1)], {"offset": 7}
            await asyncio.Event().wait()

    async with opened(tmp_path) as buffer:
        source = Keeps()
        for runs, kind in enumerate(("log", "log", "journal", "journal"), 1):
            pipeline = Pipeline(buffer, NoHandlers())
            pipeline.start("a", kind, source, Report())
            async with asyncio.timeout(20):
                while buffer.counters.appended_events < runs:  # noqa: ASYNC110 - counted, not signalled
                    await asyncio.sleep(0.01)
            await pipeline.stop("a")
    assert source.given == [None, {"offset": 7}, None, {"offset": 7}]


async def test_after_a_failed_append_the_next_ones_of_its_source_fail_until_it_begins_anew(tmp_path: Path) -> None:
    async with opened(tmp_path) as buffer:
        commit, fail = buffer._commit, True

        async def failing(group: Any, lines: Any) -> None:
            if fail and group:
                raise RuntimeError("a defect")
            await commit(group, lines)

        buffer._commit = failing  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="a defect"):
            await buffer.append([event(1)], "a", {"n": 1})
        fail = False
        with pytest.raises(RuntimeError, match="earlier append of a"):
            await buffer.append([event(2)], "a", {"n": 2})
        await buffer.append([event(3)], "b", {"n": 3})
        assert await buffer.cursor("a") is None
        await buffer.append([event(1)], "a", {"n": 1})
        assert Judge().take(await drain(buffer)).numbers == [3, 1]


async def test_appends_that_wait_together_are_committed_together(tmp_path: Path) -> None:
    async with opened(tmp_path) as buffer:
        before = buffer.counters.commits
        await asyncio.gather(*(buffer.append([event(n)], f"s{n}", {"n": n}) for n in range(200)))
        assert buffer.counters.commits - before <= 3
        assert Judge().take(await drain(buffer)).numbers == list(range(200))


async def test_lane_0_is_given_out_first(tmp_path: Path) -> None:
    async with opened(tmp_path) as buffer:
        await buffer.append([event(1), event(2, urgent=True), event(3)])
        await buffer.append([event(4, urgent=True)])
        assert Judge().take(await drain(buffer)).numbers == [2, 4, 1, 3]


async def test_an_unacked_batch_is_given_out_again_after_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as buffer:
        await buffer.append([event(1)])
        first = await buffer.peek(1_000)
    async with opened(tmp_path) as buffer:
        assert await buffer.peek(1_000) == first
        assert buffer.pending_events == 1


async def test_what_is_under_way_is_left_out_on_request(tmp_path: Path) -> None:
    async with opened(tmp_path) as buffer:
        for n in range(4):
            await buffer.append([event(n)])
        first = await buffer.peek(1)
        rest = await buffer.peek(1_000_000, {first[0].stream: first[0].no})
        assert [len(first), len(rest)] == [1, 3]


async def test_a_large_append_is_cut_into_batches_that_fit_a_request(tmp_path: Path) -> None:
    async with opened(tmp_path) as buffer:
        await buffer.append([event(n, size=20_000) for n in range(200)])
        batches = await drain(buffer)
        assert len(batches) > 4
        assert max(len(batch.wire) for batch in batches) < 1_048_576
        assert Judge().take(batches).numbers == list(range(200))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(["append", "urgent", "ack", "reopen", "expect"]), st.integers(1, 12)), max_size=40
    )
)
async def test_whatever_the_order_of_appends_acks_and_restarts_each_event_comes_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    """A model of the buffer: a list a lane."""
    folder = tmp_path_factory.mktemp("buffer")
    judge, n = Judge(), 0
    written: dict[int, list[int]] = {0: [], 1: []}
    buffer = await Buffer.open(folder / "buffer.db", SMALL, AGENT)
    for step, size in steps:
        if step in ("append", "urgent"):
            urgent = step == "urgent"
            await buffer.append([event(n + i, urgent=urgent) for i in range(size)], "s", {"n": n + size})
            written[0 if urgent else 1] += range(n, n + size)
            n += size
        elif step == "ack":
            batches = (await buffer.peek(1_000_000))[:size]
            judge.take(batches)
            for batch in batches:
                await buffer.ack(batch.buffer, batch.lane, batch.no)
        elif step == "expect":  # a collector asking for what it already has next changes nothing
            for (name, lane), (no, link) in judge.heads.items():
                await buffer.expect(name, lane, no + 1, link)
        else:
            await buffer.close()
            buffer = await Buffer.open(folder / "buffer.db", SMALL, AGENT)
            assert await buffer.cursor("s") == ({"n": n} if n else None)
    judge.take(await drain(buffer))
    await buffer.close()
    assert sorted(judge.numbers) == list(range(n))
    assert [x for x in judge.numbers if x in set(written[1])] == written[1]
    assert [x for x in judge.numbers if x in set(written[0])] == written[0]
    assert judge.lost == 0


async def test_a_full_buffer_evicts_the_oldest_of_lane_1_and_says_how_many(tmp_path: Path) -> None:
    """fluent-bit#9997, #9115: events were lost below the bound, and silently."""
    async with opened(tmp_path, SMALL) as buffer:
        for n in range(600):
            await buffer.append([event(n, size=3_000, urgent=n % 100 == 0)])
            assert buffer.used_bytes < SMALL.bytes_max * 1.2
        judge = Judge().take(await drain(buffer))
    assert judge.unknown == 0
    assert len(judge.numbers) + judge.lost == 600
    assert judge.lost > 100
    assert set(range(0, 600, 100)) <= set(judge.numbers), "lane 0 is evicted last"
    bulk = [n for n in judge.numbers if n % 100]
    assert bulk == sorted(bulk)
    assert max(bulk) == 599, "the newest stays"


async def test_when_lane_1_is_empty_lane_0_makes_room(tmp_path: Path) -> None:
    async with opened(tmp_path, SMALL) as buffer:
        for n in range(600):
            await buffer.append([event(n, size=3_000, urgent=True)])
        judge = Judge().take(await drain(buffer))
        assert len(judge.numbers) + judge.lost == 600
        assert judge.lost > 0


async def test_a_small_buffer_takes_years_of_outage_with_one_gap(tmp_path: Path) -> None:
    """thingsboard-gateway#2124, #2094, fluent-bit#5166: a long outage filled disk or memory."""
    async with opened(tmp_path, SMALL) as buffer:
        for n in range(3_000):
            await buffer.append([event(n, size=2_000)])
        batches = await drain(buffer)
        gaps = [b for b in batches if read_frame(b.wire).header.gap]
        assert len(gaps) == 1
        judge = Judge().take(batches)
        assert len(judge.numbers) + judge.lost == 3_000


async def test_with_little_free_space_the_buffer_does_not_grow(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    config = BufferConfig(free_bytes_min=free * 2)
    async with opened(tmp_path, config) as buffer:
        for n in range(900):
            await buffer.append([event(n, size=20_000)])
        assert buffer.used_bytes < 24 * 1024 * 1024
        judge = Judge().take(await drain(buffer))
        assert len(judge.numbers) + judge.lost == 900
        assert judge.lost > 0


async def test_a_gap_is_cut_where_the_centre_already_has_its_first_batches(tmp_path: Path) -> None:
    """Sent, stored, the answer lost, then evicted: only what is really lost may be declared lost."""
    async with opened(tmp_path, SMALL) as buffer:
        for n in range(10):
            await buffer.append([event(n, size=3_000)])
        sent = (await buffer.peek(1_000_000))[:4]
        judge = Judge().take(sent)
        for n in range(10, 600):
            await buffer.append([event(n, size=3_000)])
        (name, lane), (no, link) = next(iter(judge.heads.items()))
        await buffer.expect(name, lane, no + 1, link)
        judge.take(await drain(buffer))
        assert len(judge.numbers) + judge.lost == 600
        assert judge.numbers[:4] == [0, 1, 2, 3]


@pytest.mark.parametrize("more", [0, 600])
async def test_a_gap_is_not_cut_where_the_centre_has_other_batches_under_its_numbers(tmp_path: Path, more: int) -> None:
    """An old copy of the buffer is put back and overflows before it hears of the centre: all that it lost is declared.

    With `more` it overflows once again afterwards, and the declaration itself has to go: it is counted for what it declares.
    """
    file = tmp_path / "buffer.db"
    async with opened(tmp_path, SMALL) as buffer:
        await buffer.append([event(0)])
    copy = file.read_bytes()
    async with opened(tmp_path, SMALL) as buffer:
        for n in range(1, 6):
            await buffer.append([event(n)])
        (name, lane), (no, link) = next(iter(Judge().take(await drain(buffer)).heads.items()))
    for suffix in ("-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)
    file.write_bytes(copy)
    async with opened(tmp_path, SMALL) as buffer:
        for n in range(100, 700):
            await buffer.append([event(n, size=3_000)])
        await buffer.expect(name, lane, no + 1, link)
        for n in range(700, 700 + more):
            await buffer.append([event(n, size=3_000)])
        judge = Judge().take(await drain(buffer))
    assert len(judge.numbers) + judge.lost == 1 + 600 + more
    assert name not in {buffer_id for buffer_id, _ in judge.heads}


async def test_a_centre_restored_from_a_backup_gets_again_what_is_still_here(tmp_path: Path) -> None:
    async with opened(tmp_path) as buffer:
        for n in range(20):
            await buffer.append([event(n)])
        batches = await drain(buffer)
        judge = Judge().take(batches[:5])
        (name, lane), (no, link) = next(iter(judge.heads.items()))
        await buffer.expect(name, lane, no + 1, link)
        assert buffer.pending_events == 15
        judge.take(await drain(buffer))
        assert judge.numbers == list(range(20))


async def test_what_a_restored_centre_lacks_and_is_gone_here_is_declared(tmp_path: Path) -> None:
    async with opened(tmp_path) as buffer:
        for n in range(120):
            await buffer.append([event(n, size=100_000)])
        batches = await drain(buffer, 600_000)
        judge = Judge().take(batches[:1])
        (name, lane), (no, link) = next(iter(judge.heads.items()))
        await buffer.expect(name, lane, no + 1, link)
        judge.take(await drain(buffer, 600_000))
        assert judge.unknown == 1
        assert judge.numbers[-1] == 119


async def test_an_old_copy_of_the_buffer_goes_on_under_a_new_name_without_losing_events(tmp_path: Path) -> None:
    async with opened(tmp_path) as buffer:
        for n in range(6):
            await buffer.append([event(n, urgent=n % 2 == 0)])
        old = {batch.buffer for batch in await buffer.peek(1_000_000)}
        for batch in await buffer.peek(1_000_000):
            await buffer.fork(batch.buffer, batch.lane)
        await buffer.append([event(6)])
        batches = await drain(buffer)
        assert not old & {batch.buffer for batch in batches}
        assert sorted(Judge().take(batches).numbers) == list(range(7))


async def test_batches_that_the_centre_has_declared_lost_travel_under_a_new_name(tmp_path: Path) -> None:
    """An old copy of the buffer was put back, which still holds what was evicted (and declared) after it was made."""
    async with opened(tmp_path) as buffer:
        for n in range(8):
            await buffer.append([event(n)])
        batches = await drain(buffer)
        stored = Judge().take(batches[:5])
    (tmp_path / "copy").mkdir()
    async with opened(tmp_path / "copy") as buffer:
        for n in range(8):
            await buffer.append([event(n)])
        first = (await buffer.peek(1_000_000))[0]
        (_, (_, link)) = next(iter(stored.heads.items()))
        await buffer.expect(first.buffer, first.lane, 6, link)
        assert [(b.no, b.buffer == first.buffer) for b in await drain(buffer)] == [
            (6, True), (7, True), (8, True), (1, False), (2, False), (3, False), (4, False), (5, False),
        ]  # fmt: skip


@pytest.mark.parametrize(
    "killed", ["before the renaming", "after the -wal was renamed", "while it copied", "after it copied"]
)
async def test_a_recovery_that_is_killed_begins_again_and_is_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    file = tmp_path / "buffer.db"
    async with opened(tmp_path) as buffer:
        await buffer.append([event(n) for n in range(20)], "a", {"n": 20})
    salvage.begin(file, "a test")
    name = salvage._marker(file)
    task = salvage.unfinished(file)
    assert task is not None
    assert task.aside is not None
    copied = killed.endswith("it copied")
    if not copied:
        (tmp_path / task.aside).rename(file)
    elif killed == "while it copied":
        file.write_bytes(b"half a file")
    else:
        with monkeypatch.context() as never_done:
            never_done.setattr(salvage, "finish", lambda _path: None)
            async with opened(tmp_path) as buffer:
                assert Judge().take(await drain(buffer)).numbers == list(range(20))
        assert name.exists()
    async with opened(tmp_path) as buffer:
        judge = Judge().take(await drain(buffer))
    assert not name.exists()
    declared = [item for item in judge.events if item.type == "agent.buffer.recovered"]
    assert len(declared) == copied
    assert judge.numbers == list(range(20))


async def test_a_batch_damaged_inside_is_replaced_by_a_gap(tmp_path: Path) -> None:
    """fluent-bit#11847: after a damaged chunk it looked healthy and sent nothing."""
    async with opened(tmp_path) as buffer:
        for n in range(5):
            await buffer.append([event(n)])
        target = (await buffer.peek(1_000_000))[2]
    with closing(sqlite3.connect(tmp_path / "buffer.db")) as db, db:
        db.execute("UPDATE batches SET frame = ? WHERE no = 3", (target.wire[:-20] + b"x" * 20,))
    async with opened(tmp_path) as buffer:
        assert await buffer.check(target.buffer, target.lane, 2)
        assert not await buffer.check(target.buffer, target.lane, 3)
        judge = Judge().take(await drain(buffer))
        assert judge.numbers == [0, 1, 3, 4]
        assert judge.lost == 1


def overwrite(path: Path, part: float, size: int = 8_192) -> None:
    with path.open("r+b") as file:
        file.seek(int(path.stat().st_size * part) // 4_096 * 4_096)
        file.write(os.urandom(size))


@pytest.mark.parametrize("part", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
async def test_a_damaged_file_is_set_aside_and_what_can_be_read_is_saved(tmp_path: Path, part: float) -> None:
    """telegraf#18528, opentelemetry#35899, #49735: a damaged file ended every start."""
    async with opened(tmp_path) as buffer:
        for n in range(400):
            await buffer.append([event(n, size=2_000)], "test", {"n": n})
    overwrite(tmp_path / "buffer.db", part)
    async with opened(tmp_path) as buffer:
        await buffer.append([event(1_000)])
        judge = Judge()
        while buffer.pending_events:
            batches = await buffer.peek(1_000_000)
            for batch in batches:
                try:
                    read_frame(batch.wire).rows()
                except ValueError:
                    await buffer.check(batch.buffer, batch.lane, batch.no)
                    break
                judge.take([batch])
                await buffer.ack(batch.buffer, batch.lane, batch.through)
    assert judge.numbers[-1] == 1_000
    assert judge.numbers == sorted(set(judge.numbers))
    declared = judge.lost + judge.unknown
    assert len(judge.numbers) == 401 or declared, "nothing is missing without a gap"
    if part:
        assert len(judge.numbers) > 300, "most of it was readable"
    if buffer.counters.set_aside:
        assert list(tmp_path.glob("buffer.db.damaged-*")), "the damaged file is kept"


async def test_damage_found_while_running_is_answered_the_same(tmp_path: Path) -> None:
    """vector#17644, PR#25570: damage was an endless loop that only SIGKILL ended."""
    async with opened(tmp_path) as buffer:
        for n in range(300):
            await buffer.append([event(n, size=2_000)])
        await buffer._open_db().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for part in (0.0, 0.2, 0.4, 0.6, 0.8):
            overwrite(tmp_path / "buffer.db", part, 16_384)
        for n in range(1_000, 1_010):
            await asyncio.wait_for(buffer.append([event(n, size=2_000)]), 30)
        assert buffer.stalled is None


async def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "buffer.db").write_bytes(b"this is not a database, it is a text\n" * 300)
    async with opened(tmp_path) as buffer:
        await buffer.append([event(1)])
        judge = Judge().take(await drain(buffer))
    assert judge.numbers == [1]
    assert judge.unknown == 1
    assert {e.type for e in judge.events} >= {"agent.buffer.recovered", "collection.gap"}


async def test_a_buffer_of_a_newer_version_is_refused_by_name(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / "buffer.db")) as db, db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(ConfigError, match="written by a newer Linewarden"):
        await Buffer.open(tmp_path / "buffer.db", SMALL, AGENT)
    left = [thread for thread in threading.enumerate() if "connection_worker" in thread.name]
    for thread in left:
        thread.join(10)
    assert not any(thread.is_alive() for thread in left), "a thread that is left keeps the agent from ending"


async def test_a_folder_that_does_not_exist_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        await Buffer.open(tmp_path / "no" / "buffer.db", SMALL, AGENT)


def writer(folder: Path, *args: int, **kwargs: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.buffer_writer", str(folder), *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **kwargs)  # type: ignore[call-overload, no-any-return]


async def test_after_kill_9_every_number_that_was_reported_durable_is_there_once(tmp_path: Path) -> None:
    """opentelemetry#12711, wazuh#11217, #6467: what stood before the queue was lost with the process."""
    rng = random.Random(7)
    reported, first = 0, 1
    for _ in range(5):
        with writer(tmp_path, first, 1_000_000) as process:
            assert process.stdout is not None
            for _ in range(rng.randrange(2, 60)):
                line = process.stdout.readline().strip()
                reported = int(line) if line.isdigit() else reported
            process.send_signal(signal.SIGKILL)
            reported = max([reported, *(int(line) for line in process.stdout if line.strip().isdigit())])
        async with opened(tmp_path) as buffer:
            cursor = await buffer.cursor("test")
            assert cursor is not None
            assert cursor["n"] >= reported
            first = cursor["n"] + 1
            assert await buffer.states() == {"h": {"last": str(first - 3).encode()}}
    async with opened(tmp_path) as buffer:
        assert Judge().take(await drain(buffer)).numbers == list(range(1, first))


async def test_a_full_disk_is_waited_out_and_nothing_is_lost(tmp_path: Path) -> None:
    """thingsboard-gateway#1446: a database that could not be written was an endless loop of errors.

    The disk here is a limit on the size of files that the process may write: lifted from outside after a while.
    """

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))

    with writer(tmp_path, 1, 600, 3, 8_000, preexec_fn=small_disk) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while "stalled" not in lines:
            lines.append((await asyncio.to_thread(process.stdout.readline)).strip())
            assert lines[-1], "the writer ended before the disk was full"
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        rest, _ = await asyncio.to_thread(process.communicate, None, 60)
    assert process.returncode == 0
    assert rest.split()[-1] == "600"
    async with opened(tmp_path) as buffer:
        assert Judge().take(await drain(buffer)).numbers == list(range(1, 601))


async def test_aiosqlite_runs_our_work_in_its_thread(tmp_path: Path) -> None:
    """What `in_thread` leans on: a result comes back, an error too, and neither is in the loop's thread."""
    async with aiosqlite.connect(tmp_path / "x.db") as db:
        thread = await in_thread(db, lambda _: threading.current_thread())
        assert thread is not threading.current_thread()
        assert await in_thread(db, lambda inner: inner.execute("SELECT 7").fetchone()) == (7,)
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            await in_thread(db, lambda inner: inner.execute("SELECT * FROM missing"))
