"""Buffer, sync and collector against a model that is a list: whatever happens between them, in whatever order, each number is stored
once, or declared lost.

The parts are the real ones: a buffer on a disk, the sync that empties it, a collector that stores. What happens to them is played by
rules: a request is lost, an answer is lost, an old request comes again, the process dies (its file is taken as it lies on the disk), the
file is put back from an old copy, the buffer is full. The source is one that can be read again: it goes on where its cursor stands.
"""

import asyncio
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from uuid import UUID, uuid4

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from agent.buffer import Buffer, BufferConfig
from agent.component import Ack, TooLarge, Unavailable
from agent.sync import Sync, SyncConfig
from agent.uplink import HttpSink
from agent.wire.event import Event
from tests.collector_process import Collector, now_us
from tests.postgres import connected

pytestmark = pytest.mark.timeout(280)

Harm = Literal["none", "request lost", "answer lost", "an old request first", "sent twice"]
BYTES_MAX = 1_048_576
TURNS_MAX = 400

ROWS = "SELECT buffer_id, lane, type, (data->>'n')::int AS n, (data->>'events')::int AS events FROM security_events WHERE agent_id = $1"
FORKS = "SELECT count(*) FROM forks WHERE agent_id = $1"


class Centre:
    """The collector as sync's sink, with harm done on the way."""

    def __init__(self, sink: HttpSink) -> None:
        self._sink = sink
        self._old: list[list[bytes]] = []
        self.harm: Harm = "none"

    async def send(self, batches: Sequence[bytes], status: Mapping[str, Any]) -> Ack:
        harm, self.harm = self.harm, "none"
        if harm == "request lost":
            raise Unavailable("the request was lost")
        if harm == "an old request first" and self._old:
            await self._sink.send(self._old[len(self._old) // 2], status)
        answer = await self._sink.send(batches, status)
        self._old = [*self._old[-20:], list(batches)]
        if harm == "sent twice":
            answer = await self._sink.send(batches, status)
        if harm == "answer lost":
            raise Unavailable("the answer was lost")
        return answer


def harm() -> st.SearchStrategy[Harm]:
    return st.sampled_from(["none", "none", "request lost", "answer lost", "an old request first", "sent twice"])


class Machine(RuleBasedStateMachine):
    """One agent's life. `collector` is set by the test."""

    collector: Collector

    def __init__(self) -> None:
        super().__init__()
        self.agent = str(uuid4())
        self.folder = Path(tempfile.mkdtemp(prefix="linewarden-model-"))
        self.file = self.folder / "buffer.db"
        self.runner = asyncio.Runner()
        (self.folder / "key").write_text(self.collector.key("agent"))
        sink = HttpSink(url=self.collector.url, key_file=str(self.folder / "key"), timeout_s=30, version="1")
        self.sink = sink
        self.centre = Centre(sink)
        self.collected = 0
        self.copies = 0
        self.put_backs = 0
        self.runner.run(self._open())

    async def _open(self) -> None:
        self.buffer = await Buffer.open(self.file, BufferConfig(bytes_max=BYTES_MAX, free_bytes_min=0), self.agent)
        self.sync = Sync(SyncConfig(url=self.collector.url, backoff_s_max=0.01), self.buffer, self.centre, dict)

    @rule(count=st.integers(1, 40), urgent=st.booleans(), size=st.sampled_from([10, 200]))
    def collect(self, count: int, urgent: bool, size: int) -> None:
        self.runner.run(self._collect(count, size, urgent=urgent))

    @precondition(lambda self: self.collected)
    @rule()
    def collect_more_than_the_buffer_takes(self) -> None:
        for _ in range(3):
            # What does not compress, in all three times the bound: the oldest has to go.
            self.runner.run(self._collect(8, 130_000, urgent=False))

    async def _collect(self, count: int, size: int, *, urgent: bool) -> None:
        at = int((await self.buffer.cursor("s") or {"n": 0})["n"])
        events = []
        for n in range(at + 1, at + count + 1):
            text = os.urandom(size // 2).hex()
            events.append(
                Event(now_us(), now_us(), "alert.test" if urgent else "log.line", "s", data={"n": n, "text": text})
            )
        await self.buffer.append(events, "s", {"n": at + count})
        self.collected = max(self.collected, at + count)

    @rule(harm=harm())
    def synchronise(self, harm: Harm) -> None:
        self.centre.harm = harm
        with suppress(Unavailable, TooLarge):
            self.runner.run(self.sync._turn())

    @rule()
    def die(self) -> None:
        """What a kill leaves: the files as they lie there, commits in the write-ahead log included."""
        self._copy_to(self.folder / "killed")
        self.runner.run(self.buffer.close())
        self._copy_back(self.folder / "killed")
        self.runner.run(self._open())

    @rule()
    def keep_a_copy(self) -> None:
        self._copy_to(self.folder / "copy")
        self.copies += 1

    @precondition(lambda self: self.copies)
    @rule()
    def put_the_copy_back(self) -> None:
        self.runner.run(self.buffer.close())
        self._copy_back(self.folder / "copy")
        self.put_backs += 1
        self.runner.run(self._open())

    def _copy_to(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for suffix in ("", "-wal"):
            part = self.file.with_name(self.file.name + suffix)
            if part.exists():
                shutil.copy(part, folder)

    def _copy_back(self, folder: Path) -> None:
        for suffix in ("", "-wal", "-shm"):
            self.file.with_name(self.file.name + suffix).unlink(missing_ok=True)
        for part in folder.iterdir():
            shutil.copy(part, self.file.parent)

    def teardown(self) -> None:
        try:
            self.runner.run(self._drain())
            self.runner.run(self._judge())
        finally:
            self.runner.run(self._end())
            self.runner.close()
            shutil.rmtree(self.folder)

    async def _end(self) -> None:
        await self.buffer.close()
        await self.sink.close()

    async def _drain(self) -> None:
        """The rest goes, and where the source stands again before what it had read, it reads it again."""
        missing = self.collected - int((await self.buffer.cursor("s") or {"n": 0})["n"])
        if missing > 0:
            await self._collect(missing, 10, urgent=False)
        for _ in range(TURNS_MAX):
            with suppress(Unavailable, TooLarge):
                await self.sync._turn()
            if not self.buffer.pending_events:
                return
        raise AssertionError(f"{self.buffer.pending_events} events stay behind: {self.sync.state}")

    async def _judge(self) -> None:
        async with connected(self.collector.dsn) as database:
            rows = await database.fetch(ROWS, UUID(self.agent))
            forks = await database.fetchval(FORKS, UUID(self.agent))
        times = Counter(row["n"] for row in rows if row["n"])
        declared = sum(row["events"] or 0 for row in rows if row["type"] == "collection.gap")
        missing = [n for n in range(1, self.collected + 1) if not times[n]]
        assert len(missing) <= declared, f"{len(missing)} missing, {declared} declared: {missing[:20]}"
        assert max(times, default=0) <= self.collected
        # What a source reads again after an old copy was put back may travel in the other lane, of which the centre knows nothing yet.
        within = Counter((row["buffer_id"], row["lane"], row["n"]) for row in rows if row["n"])
        assert max(within.values(), default=0) <= 1
        if not self.put_backs:
            assert max(times.values(), default=0) <= 1
            assert len(missing) == declared
            assert not forks


def play(collector: Collector, examples: int, steps: int) -> None:
    class Bound(Machine):
        pass

    Bound.collector = collector
    run_state_machine_as_test(
        Bound,
        settings=hypothesis.settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )


def test_each_number_is_stored_once_or_declared_whatever_happens_on_the_way(collector: Collector) -> None:
    play(collector, 12, 25)


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_the_same_at_length(collector: Collector) -> None:
    play(collector, int(os.environ.get("LINEWARDEN_MODEL_EXAMPLES", "400")), 60)
