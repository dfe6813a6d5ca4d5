"""Faults in random combination on a small plant, by a seed; and the record by which a judge can tell what was lost.

Two stations write numbered lines into their logs, which are rotated under them. Each has an agent; two collectors stand behind a link
that harms requests; PostgreSQL stands behind them. Faults come one upon the other: what a fault breaks it also mends, so that the
plant is whole again at the end, and then every promise has to hold. The same seed gives the same faults in the same order; when each
strikes depends on the machine.

    python -m tests.faults.campaign --minutes 20 --seed 7
"""

import argparse
import asyncio
import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import asyncpg

from agent.simulator.logs import LogWriter, Script
from agent.simulator.postgres import Postgres
from tests.agent_process import Agent, log_source
from tests.collector_process import Collector, poll_until
from tests.faults.clock import FakeClock
from tests.faults.link import Link, Record, StreamId

LINES_A_TICK = 25
TICK_S = 0.05
DISK_BYTES = 48 * 1024 * 1024
FRESH_S_MAX = 60.0
"""A fresh event has to arrive within this after the last fault is mended."""
DRAIN_S_MAX = 180.0

Fault = tuple[Callable[[random.Random], Coroutine[Any, Any, None]], frozenset[str]]
"""What it does, and what of the plant it takes for itself meanwhile."""


@dataclass(slots=True)
class Result:
    """What the judge reads."""

    seed: int
    seconds: float
    dsn: str
    record: Record
    written: dict[str, int] = field(default_factory=dict)
    """Agent → the last number written to its log."""
    faults: Counter[str] = field(default_factory=Counter)
    fresh_s: dict[str, float] = field(default_factory=dict)
    """Agent → how long a fresh line took after everything was mended."""
    backlog: dict[str, int | None] = field(default_factory=dict)
    """Agent → events in its buffer when everything was mended; None where it did not answer."""
    early_acks: list[StreamId] = field(default_factory=list)
    """Acknowledged before it was durable."""
    acks_checked: int = 0
    pending: dict[str, int] = field(default_factory=dict)
    """Agent → events left in its buffer at the end."""
    stops: dict[str, int] = field(default_factory=dict)
    """Agent → exit code of its clean stop."""
    tracebacks: list[str] = field(default_factory=list)


class Station:
    """A station computer: a log that somebody writes, a disk that can be full, a clock that can step, and the agent."""

    def __init__(self, folder: Path, url: str, key: str, seed: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.clock = FakeClock(folder / "clock")
        self.disk = Disk(folder / "state")
        self.agent = Agent(
            folder,
            url,
            key,
            log_source(folder / "auth.log*"),
            sync={"timeout_s": 3, "batch_bytes_max": 131_072},
        )
        self.agent.environment = self.clock.environment
        self.written = 0
        self.is_down = False
        """A fault has it in hand: nobody else starts it."""
        self._script = Script(seed, "quiet").lines()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._fresh = threading.Lock()
        self._writer = LogWriter(folder / "auth.log", rotate_lines=20_000, keep=200).__enter__()

    def start(self) -> None:
        self.agent.start()
        self._thread.start()

    def _write(self) -> None:
        while not self._ended.wait(TICK_S):
            self.write(LINES_A_TICK)

    def write(self, count: int) -> int:
        """Write lines; the number of the last."""
        with self._fresh:
            self._writer.write(*islice(self._script, count))
            self.written = self._writer.written
        return self.written

    def end_writing(self) -> None:
        self._ended.set()
        self._thread.join(30)

    def discard(self) -> None:
        self._ended.set()
        self.agent.kill9()
        self._writer.__exit__()
        self.disk.discard()


class Disk:
    """The disk under the agent's state: small and its own where we may mount one; else the process is kept from writing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
        self.own = (
            os.geteuid() == 0
            and shutil.which("mount") is not None
            and subprocess.run(mount, check=False, capture_output=True).returncode == 0
        )

    def fill(self, agent: Agent) -> None:
        """Leave not a byte free."""
        if not self.own:
            _limit_files(agent, 4_096)
            return
        with (self._folder / "ballast").open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
            for size in (1_048_576, 4_096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        ballast.write(bytes(size))

    def free(self, agent: Agent) -> None:
        if not self.own:
            _limit_files(agent, resource.RLIM_INFINITY)
        (self._folder / "ballast").unlink(missing_ok=True)

    def discard(self) -> None:
        if self.own:
            subprocess.run(["umount", "-l", str(self._folder)], check=False)


def _limit_files(agent: Agent, size: int) -> None:
    """Writes behind `size` fail with an I/O error."""
    process = agent.process
    if process is not None and process.poll() is None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


class Plant:
    """Everything that runs, and what can happen to it."""

    def __init__(self, folder: Path, *, seed: int, stations: int = 2) -> None:
        self._folder = folder
        self._seed = seed
        self._count = stations
        self.random = random.Random(seed)
        self.postgres = Postgres()
        self.collectors: list[Collector] = []
        self.stations: list[Station] = []
        self.faults: Counter[str] = Counter()
        self.history: list[tuple[float, str]] = []
        """When each fault began."""
        self.early: list[StreamId] = []
        self.checked = 0
        self._looker: asyncpg.Connection[asyncpg.Record] | None = None
        self._looking = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._exits = AsyncExitStack()
        self.postgres.start()
        self._exits.callback(self.postgres.discard)
        self.dsn = self.postgres.create_database("linewarden")
        for _ in range(2):
            collector = Collector(self.dsn)
            self.collectors.append(collector)
            self._exits.callback(_end, collector)
            await asyncio.to_thread(collector.start)
        ports = [collector.port for collector in self.collectors]
        self.link = await self._exits.enter_async_context(
            Link(ports, seed=self._seed, before_ack=self._look_whether_durable)
        )
        for n in range(self._count):
            station = Station(
                self._folder / f"station{n}", self.link.url, self.collectors[0].key("agent"), self._seed + n
            )
            self.stations.append(station)
            self._exits.callback(station.discard)
            await asyncio.to_thread(station.start)
        self._supervisor = asyncio.create_task(self._supervise())
        return self

    async def _supervise(self) -> None:
        """What systemd does: an agent that ended is started again."""
        while True:
            await asyncio.sleep(0.5)
            for station in self.stations:
                process = station.agent.process
                if process is not None and not station.is_down and process.poll() is not None:
                    station.agent.start(ready=False)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._supervisor.cancel()
        if self._looker is not None:
            self._looker.terminate()
        # With what happened: closing by itself, it would put a failure of its own in the place of the one that is looked for.
        await self._exits.__aexit__(kind, error, trace)

    async def _look_whether_durable(self, streams: Sequence[StreamId], acked: dict[StreamId, int]) -> None:
        """Whether what is acknowledged is to be seen by somebody else, before the agent hears of it."""
        sql = "SELECT batch_no FROM batch_heads WHERE agent_id = $1 AND buffer_id = $2 AND lane = $3"
        async with self._looking:
            try:
                if self._looker is None or self._looker.is_closed():
                    self._looker = await asyncpg.connect(self.dsn, timeout=2)
                heads = [
                    await self._looker.fetchval(sql, UUID(agent), UUID(buffer), lane, timeout=5)
                    for agent, buffer, lane in streams
                ]
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                # PostgreSQL was killed since: what is missing then shows at the end.
                self._looker = None
                return
        self.checked += len(heads)
        self.early += [stream for stream, head in zip(streams, heads, strict=True) if (head or 0) < acked[stream]]

    # ── faults: each breaks something, waits, and mends it ──────────────────────────────────────────────────────────

    async def kill_agent(self, rng: random.Random) -> None:
        station = rng.choice(self.stations)
        station.is_down = True
        await asyncio.to_thread(station.agent.kill9)
        await asyncio.sleep(rng.uniform(0, 1))
        station.agent.start(ready=False)
        station.is_down = False

    async def stop_agent_with_sigstop(self, rng: random.Random) -> None:
        agent = rng.choice(self.stations).agent
        process = agent.process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(rng.uniform(0.5, 5))
        process.send_signal(signal.SIGCONT)

    async def kill_collector(self, rng: random.Random) -> None:
        collector = rng.choice(self.collectors)
        await asyncio.to_thread(collector.kill9)
        await asyncio.sleep(rng.uniform(0, 1))
        await asyncio.to_thread(collector.start, ready=False)

    async def stop_collector_with_sigstop(self, rng: random.Random) -> None:
        pid = rng.choice(self.collectors).pid
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(rng.uniform(0.5, 5))
        os.kill(pid, signal.SIGCONT)

    async def replace_collector(self, rng: random.Random) -> None:
        """An upgrade: one goes, in order, its successor comes, while the other goes on."""
        collector = rng.choice(self.collectors)
        await asyncio.to_thread(collector.stop)
        await asyncio.to_thread(collector.start)

    async def kill_postgresql(self, rng: random.Random) -> None:
        await asyncio.to_thread(self.postgres.kill9)
        await asyncio.sleep(rng.uniform(0, 2))
        await asyncio.to_thread(self.postgres.start)

    async def stop_postgresql_with_sigstop(self, rng: random.Random) -> None:
        pid = self.postgres.pid
        assert pid is not None
        # The parent alone stops taking connections; the children go on. Both happen in the field.
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(rng.uniform(0.5, 3))
        os.kill(pid, signal.SIGCONT)

    async def cut_link(self, rng: random.Random) -> None:
        await self.link.become("away")
        await asyncio.sleep(rng.uniform(0.5, 4))
        await self.link.become("harmful")

    async def stall_link(self, rng: random.Random) -> None:
        await self.link.become("deaf")
        await asyncio.sleep(rng.uniform(0.5, 4))
        await self.link.become("harmful")

    async def slow_link(self, rng: random.Random) -> None:
        await self.link.become("slow")
        await asyncio.sleep(rng.uniform(0.5, 4))
        await self.link.become("harmful")

    async def fill_disk(self, rng: random.Random) -> None:
        station = rng.choice(self.stations)
        await asyncio.to_thread(station.disk.fill, station.agent)
        await asyncio.sleep(rng.uniform(1, 4))
        await asyncio.to_thread(station.disk.free, station.agent)

    async def refuse_writes(self, rng: random.Random) -> None:
        """I/O errors on the buffer."""
        agent = rng.choice(self.stations).agent
        _limit_files(agent, 4_096)
        await asyncio.sleep(rng.uniform(0.5, 3))
        _limit_files(agent, resource.RLIM_INFINITY)

    async def step_clock(self, rng: random.Random) -> None:
        station = rng.choice(self.stations)
        station.clock.step(rng.choice([3_600, -3_600, 10 * 365 * 86_400, -10 * 365 * 86_400]))
        await asyncio.sleep(rng.uniform(0.5, 3))
        station.clock.step(0)

    async def change_time_zone(self, rng: random.Random) -> None:
        station = rng.choice(self.stations)
        zone = rng.choice(["Asia/Kolkata", "America/St_Johns", "UTC"])
        station.is_down = True
        await asyncio.to_thread(station.agent.kill9)
        station.agent.environment = {**station.clock.environment, "TZ": zone}
        station.agent.start(ready=False)
        station.is_down = False

    # ── the whole ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _table(self) -> "list[Fault]":
        agent, collector, postgres, link = (frozenset({name}) for name in ("agent", "collector", "postgres", "link"))
        table: list[Fault] = [
            (self.kill_agent, agent),
            (self.stop_agent_with_sigstop, agent),
            (self.fill_disk, agent),
            (self.refuse_writes, agent),
            (self.change_time_zone, agent),
            (self.kill_collector, collector),
            (self.stop_collector_with_sigstop, collector),
            (self.replace_collector, collector | postgres),
            (self.kill_postgresql, postgres),
            (self.stop_postgresql_with_sigstop, postgres),
            (self.cut_link, link),
            (self.stall_link, link),
            (self.slow_link, link),
        ]
        return [*table, (self.step_clock, agent)] if self.stations[0].clock.works else table

    def _note(self, name: str) -> None:
        self.faults[name] += 1
        self.history.append((time.time(), name))

    async def suffer(self, seconds: float) -> None:
        """Faults for so long, up to three at once. Each kind comes once before any comes again."""
        await self.link.become("harmful")
        deadline = time.monotonic() + seconds
        table = self._table()
        waiting: list[Fault] = []
        under_way: dict[asyncio.Task[None], frozenset[str]] = {}
        while time.monotonic() < deadline:
            await asyncio.sleep(self.random.uniform(0.05, 0.6))
            for task in [task for task in under_way if task.done()]:
                del under_way[task]
                task.result()
            if not waiting:
                waiting = self.random.sample(table, len(table))
            fault, takes = waiting[-1]
            if len(under_way) < 3 and not any(takes & taken for taken in under_way.values()):
                waiting.pop()
                self._note(fault.__name__.replace("_", " "))
                under_way[asyncio.ensure_future(fault(random.Random(self.random.random())))] = takes
        await asyncio.gather(*under_way)
        await self.link.become("well")

    async def settle(self, result: Result) -> None:
        """Everything is mended: a fresh line of each station has to arrive soon, and then all the rest."""
        for station in self.stations:
            station.end_writing()
        began = time.monotonic()
        fresh = [station.write(1) for station in self.stations]
        for station in self.stations:
            result.backlog[station.agent.id] = await asyncio.to_thread(station.agent.backlog)
        for station, no in zip(self.stations, fresh, strict=True):
            name = station.agent.id
            arrived = partial(self._has_now, name, no)
            why = f"line {no} of {name} did not arrive; {station.agent.log[-3_000:]}"
            await asyncio.to_thread(poll_until, arrived, within_s=DRAIN_S_MAX, why=why)
            result.fresh_s[name] = time.monotonic() - began
        for station in self.stations:
            await asyncio.to_thread(
                poll_until, station.agent.drained, within_s=DRAIN_S_MAX, why="the buffer is not empty"
            )
            name = station.agent.id
            # From here on it ends because it was asked to: the supervisor must not start it again under our hands.
            station.is_down = True
            result.written[name] = station.written
            result.pending[name] = (await asyncio.to_thread(station.agent.status))["buffer"]["events"]
            result.stops[name] = await asyncio.to_thread(station.agent.stop)
            result.tracebacks += _tracebacks(station.agent.log)
        for collector in self.collectors:
            result.tracebacks += _tracebacks(collector.log)

    def _has_now(self, agent: str, no: int) -> bool:
        return asyncio.run(self._has(agent, no))

    async def _has(self, agent: str, no: int) -> bool:
        sql = "SELECT 1 FROM security_events WHERE agent_id = $1 AND data->>'pid' = $2 AND type NOT LIKE 'alert.%'"
        connection = await asyncpg.connect(self.dsn)
        try:
            return bool(await connection.fetchval(sql, UUID(agent), str(no)))
        finally:
            await connection.close()


def _tracebacks(log: str) -> list[str]:
    return [f"Traceback{part[:2_000]}" for part in log.split("Traceback")[1:]]


def _end(collector: Collector) -> None:
    with contextlib.suppress(Exception):
        os.kill(collector.pid, signal.SIGCONT)
        collector.kill9()


@contextlib.asynccontextmanager
async def campaign(folder: Path, *, seed: int, seconds: float) -> AsyncIterator[tuple[Plant, Result]]:
    """Run it; the plant stays up behind the result, for the judge."""
    async with Plant(folder, seed=seed) as plant:
        result = Result(seed, seconds, plant.dsn, plant.link.record)
        await plant.suffer(seconds)
        await plant.settle(result)
        result.faults = plant.faults + plant.link.record.harms
        result.early_acks, result.acks_checked = plant.early, plant.checked
        yield plant, result


def main() -> int:
    """Run a campaign at length and print what it found."""
    from tests.faults.judge import judge, table

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()

    async def play() -> int:
        with tempfile.TemporaryDirectory() as folder:
            async with campaign(Path(folder), seed=options.seed, seconds=60 * options.minutes) as (plant, result):
                verdict = await judge(result)
                print(table(result, verdict))
                if not verdict.holds:
                    print(*(f"{at:.2f} {name}" for at, name in plant.history), sep="\n")
                    print(*(station.agent.log for station in plant.stations), sep="\n\n")
                return 0 if verdict.holds else 1

    return asyncio.run(play())


if __name__ == "__main__":
    sys.exit(main())
