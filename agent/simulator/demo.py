"""`make demo`: the whole way of an event on this computer, with nothing left out and nothing faked.

    virtual line ──OPC UA, Modbus, log──► linewarden-agent ──HTTP──► linewarden-collector ──► PostgreSQL
     (this project's simulator)            (the real command)         (the real command)       (a real server, from a wheel)

The demo starts these as processes, watches them through the doors that every user has (the agent's /status, GET /v1/events), and at
the end asks both sides whether everything that was collected was stored exactly once. It exits 0 only if it was. Whatever happens to
it, Ctrl-C and `kill -9` included, its processes and its folder go with it (janitor.py).
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import asyncpg
import httpx

from agent.simulator import verdict as judging
from agent.simulator.janitor import Janitor
from agent.simulator.postgres import Postgres, PostgresFailed
from agent.simulator.processes import Child, Failed, Processes, program
from agent.simulator.scenario import free_port
from agent.simulator.screen import Screen
from agent.simulator.settings import CHECKPOINTS_FILE, ENROLMENT_FILE, LOG_SOURCE, write_agent, write_collector

if TYPE_CHECKING:
    from agent.simulator.verdict import Verdict

T = TypeVar("T")

SITE, LINE, STATION = "Demo plant", "press line 1", "cell 4"
START_S_MAX = 60.0
DRAIN_S_MAX = 60.0
POLL_S = 0.05
"""How often GET /v1/events is asked for what is new: the resolution of the latency that is measured."""
POLL_EVENTS = 200
SAMPLES_MAX = 200_000
SEEN_MAX = 20_000
DURATION_S_MAX = 604_800
FOLDER_MODE = 0o711
"""PostgreSQL runs as another user where we are root, and has to pass through to its own folder."""


@dataclass(slots=True)
class Seen:
    """What the watcher saw through GET /v1/events."""

    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))
    ids: dict[str, None] = field(default_factory=dict)
    """The newest, in order; the oldest go beyond SEEN_MAX."""

    def add(self, event_id: str) -> bool:
        """Whether it is new."""
        if event_id in self.ids:
            return False
        self.ids[event_id] = None
        if len(self.ids) > SEEN_MAX:
            del self.ids[next(iter(self.ids))]
        return True

    def percentiles(self) -> tuple[float, float]:
        """p50 and p99 of observed → visible, in ms."""
        ordered = sorted(self.latencies_ms) or [0.0]
        return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]


class Demo:
    """One run. `run` starts everything, waits, judges, and stops everything; its answer is the exit code."""

    def __init__(self, screen: Screen, *, duration_s: float | None, seed: int, keep: bool) -> None:
        self._screen = screen
        self._duration_s = duration_s
        self._seed = seed
        self._keep = keep
        self._folder = Path(tempfile.mkdtemp(prefix="linewarden-demo-"))
        self._folder.chmod(FOLDER_MODE)
        self._janitor = Janitor(self._folder)
        self._postgres = Postgres(self._folder / "pg")
        self._processes = Processes(self._folder, self._janitor)
        self._ports = free_port(), free_port()
        self._stop = asyncio.Event()
        self._impatient = asyncio.Event()
        self._seen = Seen()
        self._collector_url = f"http://127.0.0.1:{self._ports[0]}"
        self._health_url = f"http://127.0.0.1:{self._ports[1]}"
        self._viewer_key = ""
        self._client = httpx.AsyncClient(timeout=10.0, trust_env=False)

    # ── the course of a run ──────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> int:
        """See the class."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._asked_to_stop)
        failed = True
        try:
            verdict = await self._course()
            failed = bool(verdict.failures) if verdict else False
        except (Failed, PostgresFailed, OSError, httpx.HTTPError, asyncpg.PostgresError) as error:
            self._screen.settle()
            self._screen.say(f"\nThe demo failed: {error or type(error).__name__}")
        finally:
            await self._stop_all()
            keep = self._keep or (failed and not self._impatient.is_set())
            if keep:
                self._screen.say(f"Logs and data are kept for a look: {self._folder}")
            await asyncio.to_thread(self._janitor.close, keep=keep)
        return int(failed)

    async def _course(self) -> "Verdict | None":
        addresses = await self._start_all()
        if self._stop.is_set():
            return None
        self._introduce(addresses)
        watcher = asyncio.create_task(self._watch(), name="watcher")
        try:
            await self._live()
            return await self._finish(Path(addresses["log"]))
        finally:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher

    def _asked_to_stop(self) -> None:
        if self._stop.is_set():
            self._impatient.set()
        self._stop.set()

    async def _start_all(self) -> dict[str, Any]:
        """PostgreSQL, the tables, the keys, the collector, the line, the agent; the line's addresses."""
        began, run = time.monotonic(), self._processes
        self._screen.say("Starting everything on this computer:")
        await self._step("PostgreSQL", asyncio.to_thread(self._postgres.start))
        dsn = await asyncio.to_thread(self._postgres.create_database, "linewarden")
        config = write_collector(self._folder / "collector.toml", port=self._ports[0], dsn=dsn)
        await self._step("tables", run.command("linewarden-collector", "migrate", "--config", str(config)))
        place = ["--site", SITE, "--line", LINE, "--station", STATION]
        making = ["linewarden-collector", "token", "create", "--expires", "1h", *place, "--config", str(config)]
        token = (await run.command(*making)).strip()
        self._viewer_key = await self._key(config, "viewer")
        collector = await run.start("collector", [program("linewarden-collector"), "serve", "--config", str(config)])
        await self._step("collector", self._until_ok(collector, f"{self._collector_url}/readyz"))
        line_folder = str(self._folder / "line")
        simulator = [
            sys.executable,
            "-m",
            "agent.simulator",
            "--json",
            "--seed",
            str(self._seed),
            "--folder",
            line_folder,
        ]
        self._line = await run.start("line", simulator, piped=True)
        addresses: dict[str, Any] = await self._step("virtual line", self._line_addresses())
        agent_config = write_agent(
            self._folder / "agent",
            addresses=addresses,
            collector=self._collector_url,
            token=token,
            health_port=self._ports[1],
        )
        await self._step(
            "agent's configuration", run.command("linewarden-agent", "check", "--config", str(agent_config))
        )
        token_file = str(agent_config.with_name(ENROLMENT_FILE))
        enrolling = ["linewarden-agent", "enroll", "--collector", self._collector_url, "--token-file", token_file]
        await self._step("agent's enrolment", run.command(*enrolling, "--config", str(agent_config)))
        agent = await run.start("agent", [program("linewarden-agent"), "run", "--config", str(agent_config)])
        await self._step("agent", self._until_ok(agent, f"{self._health_url}/readyz"))
        await self._step("first event in PostgreSQL", self._until_first_event(agent))
        self._screen.settle()
        self._screen.say(f"  all of it in {time.monotonic() - began:.1f} s\n")
        return addresses

    def _introduce(self, addresses: dict[str, Any]) -> None:
        key, url, say = self._viewer_key, self._collector_url, self._screen.say
        say(f"  console      {url}/")
        say(f"  viewer key   {key}")
        say("  try          " + f"curl -s -H 'Authorization: Bearer {key}' '{url}/v1/events?type=alert.*&limit=3'")
        say(f"  agent        {self._health_url}/status")
        say(f"  machines     {addresses['opcua']}   {addresses['modbus']}")
        say(f"  proof        {self._verifying()}")
        say()
        if self._duration_s is None:
            say("It runs until Ctrl-C. What happens:")
        else:
            say(f"It runs for {self._duration_s:g} s. What happens:")

    async def _live(self) -> None:
        """Until the time is over, or somebody stops it."""
        began = time.monotonic()
        reader = asyncio.create_task(self._tell_acts(), name="acts")
        database = await asyncpg.connect(self._postgres.dsn_of("linewarden"))
        try:
            while not self._stop.is_set() and (self._duration_s is None or time.monotonic() - began < self._duration_s):
                self._check()
                await self._show(database, time.monotonic() - began)
                left_s = 0.5 if self._duration_s is None else min(0.5, began + self._duration_s - time.monotonic())
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), max(0.0, left_s))
        finally:
            reader.cancel()
            await database.close()
            self._screen.settle()

    async def _show(self, database: "asyncpg.Connection[asyncpg.Record]", elapsed_s: float) -> None:
        collected, waiting = await self._agent_counts()
        _, stored, alerts = await judging.count(database, await self._agent_id())
        p50, p99 = self._seen.percentiles()
        self._screen.status(
            f"  {int(elapsed_s) // 60:02}:{int(elapsed_s) % 60:02}  collected {collected:,}   stored {stored:,}   in the buffer {waiting:,}"
            f"   alerts {alerts}   visible after {p50:.0f} ms (p99 {p99:.0f} ms)"
        )

    async def _finish(self, log: Path) -> "Verdict":
        """Stop the line, let everything arrive, judge, stop the agent, compare what is left with the centre."""
        self._screen.say("\nThe line stands still. Waiting until everything has arrived …")
        await self._quiet()
        database = await asyncpg.connect(self._postgres.dsn_of("linewarden"))
        try:
            collected = await self._drained(database)
            agent = await self._agent_id()
            verdict = await judging.judge(database, agent, collected=collected, log_source=LOG_SOURCE, log_files=[log])
            await self._processes.stop("agent")
            buffer = self._folder / "agent" / "buffer.db"
            verdict.failures += await judging.compare_heads(database, agent, buffer)
        finally:
            await database.close()
        proven = await self._prove(verdict)
        self._summary(verdict, proven)
        return verdict

    def _verifying(self) -> str:
        config, kept = self._folder / "collector.toml", self._folder / CHECKPOINTS_FILE
        return f"{program('linewarden-collector')} verify --config {config} --checkpoint {kept}"

    async def _prove(self, verdict: "Verdict") -> str:
        """A checkpoint over all of it, and the proof that what is stored goes on from what was kept outside; in words."""
        config = ["--config", str(self._folder / "collector.toml")]
        try:
            await self._processes.command("linewarden-collector", "checkpoint", "create", *config)
            command = ["linewarden-collector", *self._verifying().split()[1:], "--json"]
            told = json.loads(await self._processes.command(*command))
        except Failed as failure:
            verdict.failures.append(f"what is stored does not prove itself: {failure}")
            return "FAILED"
        return f"{told['batches']:,} batches and {told['rows']:,} rows hold; {told['checkpoints_proven']} checkpoints kept outside agree"

    def _summary(self, verdict: "Verdict", proven: str) -> None:
        p50, p99 = self._seen.percentiles()
        say = self._screen.say
        say()
        say(
            f"  events collected    {verdict.collected:,}   ({', '.join(f'{n:,} {name}' for name, n in verdict.by_source.items())})"
        )
        say(f"  stored              {verdict.stored:,}")
        say(f"  lost                {verdict.lost:,}   (declared by gaps: {verdict.declared_lost:,})")
        say(f"  duplicated          {verdict.duplicated:,}")
        say(
            f"  log lines           {verdict.log_lines_once:,} of {verdict.log_lines:,} in the file are stored exactly once"
        )
        say(f"  alerts raised       {verdict.alerts}")
        say(f"  proof               {proven}")
        say(
            f"  latency             observed → stored   p50 {verdict.stored_ms[0]:.0f} ms   p99 {verdict.stored_ms[1]:.0f} ms"
        )
        say(
            f"                      observed → visible  p50 {p50:.0f} ms   p99 {p99:.0f} ms   (asked every {POLL_S * 1000:.0f} ms)"
        )
        say()
        if verdict.failures:
            say("FAILED:")
            for failure in verdict.failures:
                say(f"  {failure}")
        else:
            say("Everything that was collected was stored exactly once.")

    # ── watching ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _watch(self) -> None:
        """See events appear as a user would, and measure how old they are then."""
        headers = {"Authorization": f"Bearer {self._viewer_key}"}
        url = f"{self._collector_url}/v1/events"
        first = True
        while True:
            with suppress(httpx.HTTPError, ValueError):
                answer = await self._client.get(url, params={"order": "desc", "limit": POLL_EVENTS}, headers=headers)
                now = datetime.now(UTC)
                for event in reversed(answer.json().get("events", [])):
                    if self._seen.add(event["event_id"]):
                        self._noticed(event, None if first else now)
                first = False
            await asyncio.sleep(POLL_S)

    def _noticed(self, event: dict[str, Any], now: datetime | None) -> None:
        """Show an alert; measure how old the event is, except for what was there before the first look (`now` is None)."""
        if event["observed"] and now is not None:
            observed = datetime.fromisoformat(event["observed"])
            self._seen.latencies_ms.append((now - observed).total_seconds() * 1000)
        if event["type"].startswith("alert"):
            self._screen.say(f"    ! alert: {event['message'] or event['type']}")

    async def _tell_acts(self) -> None:
        """What is done to the line, as it says."""
        while said := await self._line_says():
            if "text" in said:
                self._screen.say(f"  {said['text']}")

    async def _agent_status(self) -> dict[str, Any]:
        answer = await self._client.get(f"{self._health_url}/status")
        status: dict[str, Any] = answer.json()
        return status

    async def _agent_counts(self) -> tuple[int, int]:
        """Events that the agent made durable since it started, and those of them that still wait."""
        buffer = (await self._agent_status())["buffer"]
        return int(buffer["appended_events"]), int(buffer["events"])

    async def _agent_id(self) -> UUID:
        return UUID((await self._agent_status())["agent"]["id"])

    async def _drained(self, database: "asyncpg.Connection[asyncpg.Record]") -> int:
        """Until the buffer is empty and the centre has what the agent counts; that count. Bounded: the judge tells what is missing."""
        deadline = time.monotonic() + DRAIN_S_MAX
        agent = await self._agent_id()
        while True:
            collected, waiting = await self._agent_counts()
            _, stored, _ = await judging.count(database, agent)
            still = (await self._agent_counts())[0] == collected
            if (
                (not waiting and stored >= collected and still)
                or time.monotonic() > deadline
                or self._impatient.is_set()
            ):
                return collected
            self._check()
            await asyncio.sleep(0.2)

    # ── starting and stopping ────────────────────────────────────────────────────────────────────────────────────────

    async def _step(self, name: str, work: Awaitable[T]) -> T:
        """One line of the start: what, and how long it took."""
        began = time.monotonic()
        self._screen.hint(f"  {name} …")
        done = await work
        self._screen.settle()
        self._screen.say(f"  {name:<26}{time.monotonic() - began:5.1f} s")
        return done

    async def _key(self, config: Path, role: str, *place: str) -> str:
        command = [
            "linewarden-collector",
            "key",
            "create",
            "--role",
            role,
            "--name",
            "demo",
            *place,
            "--config",
            str(config),
        ]
        return (await self._processes.command(*command)).strip()

    async def _until_ok(self, child: Child, url: str) -> None:
        """Until it answers 200 there. Raises Failed where it ends, or takes too long."""
        deadline, said = time.monotonic() + START_S_MAX, "no answer"
        while time.monotonic() < deadline:
            child.check()
            with suppress(httpx.HTTPError):
                answer = await self._client.get(url)
                if answer.status_code == httpx.codes.OK:
                    return
                said = answer.text
            await asyncio.sleep(0.05)
        raise Failed(f"the {child.name} is not ready after {START_S_MAX:g} s: {said}")

    async def _until_first_event(self, agent: Child) -> None:
        """Until every source has events in PostgreSQL."""
        deadline = time.monotonic() + START_S_MAX
        while time.monotonic() < deadline:
            agent.check()
            sources = (await self._agent_status())["sources"]
            collected, waiting = await self._agent_counts()
            silent = [name for name, source in sources.items() if not source["events"]]
            if collected and not waiting and not silent:
                return
            await asyncio.sleep(0.05)
        troubles = [
            f"{name}: {source['state']}, {source['last_error'] or 'no events'}" for name, source in sources.items()
        ]
        raise Failed("\n  ".join([f"not every source has events after {START_S_MAX:g} s:", *troubles]))

    async def _line_says(self) -> dict[str, Any] | None:
        """The next thing that the virtual line says; None where it has ended."""
        output = self._line.process.stdout
        text = await output.readline() if output else b""
        return dict(json.loads(text)) if text else None

    async def _line_addresses(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(START_S_MAX):
                while said := await self._line_says():
                    if "addresses" in said:
                        return dict(said["addresses"])
        except TimeoutError:
            raise Failed(f"the virtual line is not ready after {START_S_MAX:g} s") from None
        await self._line.process.wait()
        self._line.check()
        raise Failed("the virtual line said nothing")

    async def _quiet(self) -> None:
        """The line stops producing; its servers go on answering."""
        if self._line.process.stdin:
            self._line.process.stdin.write(b"quiet\n")
        while (said := await self._line_says()) and "quiet" not in said:
            pass

    def _check(self) -> None:
        self._processes.check()
        if self._postgres.pid is None:
            raise Failed("PostgreSQL ended by itself")

    async def _stop_all(self) -> None:
        self._screen.settle()
        await self._processes.stop_all()
        await self._client.aclose()
        await asyncio.to_thread(self._postgres.stop)


def main() -> int:
    """Run the demo; its exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description="The whole system on this computer.")
    parser.add_argument(
        "--duration", type=_seconds, metavar="SECONDS", help="end by itself after so long, with a summary"
    )
    parser.add_argument("--seed", type=int, default=7, help="the same seed plays the same attacks (default: 7)")
    parser.add_argument("--keep", action="store_true", help="keep logs and data at the end")
    arguments = parser.parse_args()

    async def run() -> int:
        return await Demo(Screen(), duration_s=arguments.duration, seed=arguments.seed, keep=arguments.keep).run()

    return asyncio.run(run())


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 1 <= value <= DURATION_S_MAX:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds from 1 to {DURATION_S_MAX}; write DURATION=20"
        )
    return value


if __name__ == "__main__":
    sys.exit(main())
