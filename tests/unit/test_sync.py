"""Sync against a centre that keeps the rules of the wire and has moods: what it does next, and how long it waits."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.buffer import Buffer, BufferConfig
from agent.component import Ack, Refusal, TooLarge, Unavailable
from agent.sync import FAILURES_OPEN, Sync, SyncConfig
from agent.wire.batch import GENESIS, Frame, read_frame
from agent.wire.event import Event

AGENT = "6f1c1a52-9d6b-4a9e-8f55-2f6f2f3f4c11"
CONFIG = SyncConfig(url="http://127.0.0.1:1", backoff_s_max=0.02)


class Centre:
    """Takes batches in order, each once, all of a request or none, as the collector does. `mood` is asked before each request."""

    def __init__(self, mood: Callable[[int, int], None] = lambda _number, _size: None) -> None:
        self.mood = mood
        self.heads: dict[tuple[str, int], tuple[int, str]] = {}
        self.hashes: dict[tuple[str, int, int], str] = {}
        self.numbers: list[int] = []
        self.requests: list[list[Frame]] = []
        self.lose_answers = 0

    async def send(self, batches: Sequence[bytes], status: Mapping[str, Any]) -> Ack:
        assert status == {"well": True}
        await asyncio.sleep(0)
        frames = [read_frame(batch) for batch in batches]
        self.requests.append(frames)
        self.mood(len(self.requests), sum(map(len, batches)))
        before = dict(self.heads), dict(self.hashes), list(self.numbers)
        for frame in frames:
            refused = self._take(frame)
            if refused:
                self.heads, self.hashes, self.numbers = before
                return Ack({}, refused)
        if self.lose_answers:
            self.lose_answers -= 1
            raise Unavailable("the answer was lost")
        return Ack({(f.header.buffer, f.header.lane): f.header.through for f in frames})

    def _take(self, frame: Frame) -> Refusal | None:
        h = frame.header
        no, link = self.heads.get((h.buffer, h.lane), (0, GENESIS))
        if self.hashes.get((h.buffer, h.lane, h.no)) == frame.hash:
            return None
        if h.no <= no or (h.no == no + 1 and h.prev != link):
            return Refusal("forked", h.buffer, h.lane, h.no, no + 1, link, "another batch has this number")
        if h.no > no + 1:
            return Refusal("missing", h.buffer, h.lane, h.no, no + 1, link, "not the next one")
        self.heads[h.buffer, h.lane] = (h.through, h.gap.last if h.gap else frame.hash)
        self.hashes[h.buffer, h.lane, h.no] = frame.hash
        self.numbers += [event.data["n"] for event in frame.events() if "n" in event.data]
        return None


def event(n: int, *, urgent: bool = False) -> Event:
    return Event(n, n, "alert.test" if urgent else "log.line", data={"n": n})


@asynccontextmanager
async def syncing(folder: Path, centre: Centre, config: SyncConfig = CONFIG) -> AsyncIterator[tuple[Buffer, Sync]]:
    buffer = await Buffer.open(folder / "buffer.db", BufferConfig(free_bytes_min=0), AGENT)
    try:
        yield buffer, Sync(config, buffer, centre, lambda: {"well": True})
    finally:
        await buffer.close()


async def run_until(sync: Sync, holds: Callable[[], bool], within_s: float = 20.0) -> None:
    task = asyncio.create_task(sync.run())
    try:
        async with asyncio.timeout(within_s):
            while not holds():
                await asyncio.sleep(0.002)
                assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_lane_0_goes_before_a_backlog_of_lane_1(tmp_path: Path) -> None:
    centre = Centre()
    async with syncing(tmp_path, centre) as (buffer, sync):
        for n in range(50):
            await buffer.append([event(n)])
        await buffer.append([event(50, urgent=True)])
        await run_until(sync, lambda: not buffer.pending_events)
        assert centre.numbers[0] == 50
        assert centre.numbers[1:] == list(range(50))


async def test_a_lost_answer_is_asked_for_again_and_stores_nothing_twice(tmp_path: Path) -> None:
    centre = Centre()
    centre.lose_answers = 3
    async with syncing(tmp_path, centre) as (buffer, sync):
        await buffer.append([event(n) for n in range(10)])
        await run_until(sync, lambda: not buffer.pending_events)
        assert centre.numbers == list(range(10))
        assert sync.state.failures_total == 3
        assert sync.state.failures == 0


async def test_a_request_that_is_too_large_is_made_smaller_until_it_fits_and_grows_again(tmp_path: Path) -> None:
    def mood(_: int, size: int) -> None:
        if size > 4_000:
            raise TooLarge("413")

    centre = Centre(mood)
    async with syncing(tmp_path, centre) as (buffer, sync):
        for n in range(60):
            await buffer.append([event(n)])
        await run_until(sync, lambda: not buffer.pending_events)
        assert centre.numbers == list(range(60))
        centre.mood = lambda _number, _size: None
        taken = len(centre.requests)
        for n in range(60, 200):
            await buffer.append([event(n)])
        await run_until(sync, lambda: not buffer.pending_events)
        assert max(len(request) for request in centre.requests[taken:]) > 20


async def test_after_failures_in_a_row_one_small_batch_at_a_time_is_tried(tmp_path: Path) -> None:
    def mood(number: int, _: int) -> None:
        if number <= FAILURES_OPEN + 2:
            raise Unavailable("503")

    centre = Centre(mood)
    async with syncing(tmp_path, centre) as (buffer, sync):
        for n in range(20):
            await buffer.append([event(n)])
        await run_until(sync, lambda: not buffer.pending_events)
        sizes = [len(request) for request in centre.requests]
        assert sizes[:FAILURES_OPEN] == [20] * FAILURES_OPEN
        assert sizes[FAILURES_OPEN : FAILURES_OPEN + 3] == [1, 1, 1]
        assert sum(sizes[FAILURES_OPEN + 3 :]) == 19
        assert centre.numbers == list(range(20))


async def test_what_retry_after_asks_for_is_waited(tmp_path: Path) -> None:
    def mood(number: int, _: int) -> None:
        if number == 1:
            raise Unavailable("busy", 0.5)

    centre = Centre(mood)
    async with syncing(tmp_path, centre) as (buffer, sync):
        await buffer.append([event(1)])
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await run_until(sync, lambda: not buffer.pending_events)
        assert loop.time() - begin >= 0.5


async def test_a_fork_moves_on_under_a_new_name_and_repeats_nothing(tmp_path: Path) -> None:
    """The first three batches are known there; under the fourth number lies another one: a twin of this buffer went on before us."""
    centre = Centre()
    async with syncing(tmp_path, centre) as (buffer, sync):
        for n in range(6):
            await buffer.append([event(n)])
        batches = await buffer.peek(1_000_000)
        await centre.send([batch.wire for batch in batches[:3]], {"well": True})
        stream = batches[0].buffer, batches[0].lane
        centre.heads[stream] = 9, "f" * 64
        centre.hashes[*stream, 4] = "e" * 64
        await run_until(sync, lambda: not buffer.pending_events)
        assert centre.numbers == list(range(6))
        assert len(centre.heads) == 2


async def test_a_centre_without_anything_to_send_hears_from_the_agent_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.sync.HEARTBEAT_S", 0.05)
    centre = Centre()
    async with syncing(tmp_path, centre) as (_, sync):
        await run_until(sync, lambda: len(centre.requests) >= 3)
        assert centre.requests[-1] == []
        assert sync.state.last_success_us is not None


async def test_the_rate_is_bounded(tmp_path: Path) -> None:
    centre = Centre()
    config = SyncConfig(url="http://127.0.0.1:1", batch_bytes_max=16_384, rate_bytes_per_s_max=40_000)
    async with syncing(tmp_path, centre, config) as (buffer, sync):
        for n in range(60):
            await buffer.append([event(n)])
        size, loop = buffer.pending_bytes, asyncio.get_running_loop()
        begin = loop.time()
        await run_until(sync, lambda: not buffer.pending_events)
        assert loop.time() - begin >= (size - 2 * 16_384) / 40_000


MOODS = st.lists(st.sampled_from(["well", "well", "lost", "down", "large"]), max_size=25)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MOODS, st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(0, 2**32))
async def test_whatever_happens_on_the_way_each_event_arrives_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, moods: list[str], appends: list[int], seed: int
) -> None:
    del seed
    left = list(moods)

    def mood(_: int, size: int) -> None:
        now = left.pop(0) if left else "well"
        if now == "down":
            raise Unavailable("down")
        if now == "large" and size > 2_000:
            raise TooLarge("413")
        centre.lose_answers = int(now == "lost")

    centre = Centre(mood)
    async with syncing(tmp_path_factory.mktemp("sync"), centre) as (buffer, sync):
        n = 0
        for size in appends:
            await buffer.append([event(n + i) for i in range(size)])
            n += size
        await run_until(sync, lambda: not buffer.pending_events)
        assert centre.numbers == list(range(n))
