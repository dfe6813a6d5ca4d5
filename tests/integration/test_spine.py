"""The whole way of an event, with everything on it killed, cut and refused: each line once, each loss declared."""

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from itertools import islice, pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from agent.simulator.logs import LogWriter, Script
from agent.simulator.postgres import Postgres
from agent.simulator.verdict import compare_heads
from tests.agent_process import Agent, log_source, modbus_source, opcua_source, simulator
from tests.collector_process import ROOT, Collector, poll_until
from tests.faulty_link import FaultyLink, Mood
from tests.ports import free_port
from tests.postgres import connected

pytestmark = pytest.mark.timeout(280)

LOG_EVENTS = """
    SELECT buffer_id, lane, (data->>'pid')::int AS no FROM security_events
    WHERE agent_id = $1 AND source = 'auth' AND data ? 'pid' AND type NOT LIKE 'alert.%' ORDER BY buffer_id, lane, batch_no, idx
"""


class Writing:
    """A station's log that is written all the while, and rotated."""

    def __init__(self, path: Path, count: int, *, rotate_lines: int = 0, pause_s: float = 0.0, seed: int = 7) -> None:
        self._path, self._count, self._rotate, self._pause_s = path, count, rotate_lines, pause_s
        self._lines = Script(seed, "quiet").lines()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self.error: Exception | None = None

    def start(self) -> "Writing":
        self._thread.start()
        return self

    def _write(self) -> None:
        try:
            with LogWriter(self._path, rotate_lines=self._rotate, keep=30) as writer:
                while writer.written < self._count:
                    writer.write(*islice(self._lines, min(500, self._count - writer.written)))
                    time.sleep(self._pause_s)
        except Exception as error:  # noqa: BLE001 - told by `finish`
            self.error = error

    def finish(self) -> None:
        self._thread.join(120)
        assert not self._thread.is_alive()
        assert self.error is None


async def stored_lines(dsn: str, agent: str) -> dict[tuple[UUID, int], list[int]]:
    """The numbers of the stored log lines by stream, in the order of the stream."""
    async with connected(dsn) as database:
        lines: dict[tuple[UUID, int], list[int]] = defaultdict(list)
        for buffer, lane, no in await database.fetch(LOG_EVENTS, UUID(agent)):
            lines[buffer, lane].append(no)
        return lines


async def assert_each_line_once_in_order(dsn: str, agent: str, count: int) -> None:
    lines = await stored_lines(dsn, agent)
    times = Counter(no for stream in lines.values() for no in stream)
    assert [no for no in range(1, count + 1) if times[no] != 1][:10] == []
    assert len(times) == count
    for stream in lines.values():
        assert stream == sorted(stream)


def asked_now(dsn: str, sql: str, *given: Any) -> int:
    """One number of the database; 0 where it does not answer."""

    async def ask() -> Any:
        async with connected(dsn) as database:
            return await database.fetchval(sql, *given)

    # In a thread: the caller may have a loop that runs.
    try:
        with ThreadPoolExecutor(1) as pool:
            return int(pool.submit(asyncio.run, ask()).result() or 0)
    except (OSError, asyncpg.PostgresError):
        return 0


def stored_count(dsn: str, agent: str) -> int:
    sql = "SELECT count(*) FROM security_events WHERE agent_id = $1 AND source = 'auth' AND data ? 'pid'"
    return asked_now(dsn, sql, UUID(agent))


def until_newer(dsn: str, agent: str, source: str, than_us: int) -> None:
    """Wait for a value of this source that is newer: what was before it has come, or was lost."""
    sql = """
        SELECT count(*) FROM security_events
        WHERE agent_id = $1 AND source = $2 AND data ? 'value' AND time > to_timestamp($3 / 1e6)
    """
    stored = lambda: asked_now(dsn, sql, UUID(agent), source, than_us) > 0  # noqa: E731
    poll_until(stored, within_s=60, why=f"no value of {source} is newer")


def until_stored(dsn: str, agent: str, count: int) -> None:
    poll_until(lambda: stored_count(dsn, agent) >= count, within_s=90, why=f"not {count} lines are stored")


# ── kill -9 ──────────────────────────────────────────────────────────────────────────────────────────────────────────

DEVICE_EVENTS = (
    "SELECT type, target, time, observed, data FROM security_events WHERE agent_id = $1 AND source = $2 ORDER BY time"
)


def micros(moment: datetime) -> int:
    return round(moment.timestamp() * 1_000_000)


def truth(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


async def undeclared(dsn: str, agent: str, source: str, changes: list[tuple[str, Any, int, int]]) -> list[Any]:
    """Changes (target, value, from µs, until µs) that are neither stored nor within a declared gap."""
    async with connected(dsn) as database:
        rows = await database.fetch(DEVICE_EVENTS, UUID(agent), source)
    gaps, seen = [], defaultdict(list)
    for row in rows:
        data = json.loads(row["data"]) if isinstance(row["data"], str) else row["data"] or {}
        if row["type"] == "collection.gap":
            gaps.append((data.get("from_us") or 0, data.get("to_us") or micros(row["observed"])))
        elif "value" in data:
            seen[row["target"]].append((micros(row["time"]), data["value"]))
    missing = []
    for target, value, begin, end in changes:
        if any(begin <= at <= end and value in (got, None) for at, got in seen[target]):
            continue
        if not any(start <= end and begin <= stop for start, stop in gaps):
            missing.append((target, value, begin, end))
    assert rows, f"nothing at all is stored of {source}"
    if missing:
        print(f"{source}: declared gaps {gaps}; undeclared {missing}")
    return missing


@pytest.mark.parametrize("rounds", [4, pytest.param(10, marks=pytest.mark.long)])
async def test_rounds_of_kill_9_of_agent_collector_and_postgresql_lose_no_line_and_declare_every_lost_change(
    rounds: int, tmp_path: Path, own_postgres: Postgres
) -> None:
    count, rng = 20_000 * rounds, random.Random(20)
    dsn = own_postgres.create_database("linewarden")
    collector = Collector(dsn)
    with ExitStack() as stack:
        stack.enter_context(collector)
        cell_truth, plc_truth = tmp_path / "cell.truth", tmp_path / "plc.truth"
        cell, plc = (
            stack.enter_context(
                simulator(name, "--port", str(free_port()), "--seed", "7", "--rate", rate, "--truth", str(file))
            )
            for name, rate, file in (("opcua_server", "10", cell_truth), ("plc", "1", plc_truth))
        )
        sources = log_source(tmp_path / "log" / "auth.log*") + opcua_source(cell) + modbus_source(plc)
        (tmp_path / "log").mkdir()
        agent = stack.enter_context(Agent(tmp_path, collector.url, collector.key("agent"), sources))
        writing = Writing(tmp_path / "log" / "auth.log", count, rotate_lines=35_000, pause_s=0.06).start()
        for _ in range(rounds):
            await asyncio.sleep(rng.uniform(0.3, 2.0))
            victims = rng.sample(["agent", "collector", "postgres"], rng.randint(1, 3))
            for victim in victims:
                {"agent": agent.kill9, "collector": collector.kill9, "postgres": own_postgres.kill9}[victim]()
            await asyncio.sleep(rng.uniform(0.0, 0.5))
            if "postgres" in victims:
                await asyncio.to_thread(own_postgres.start)
            if "agent" in victims:
                agent.start(ready=False)
            if "collector" in victims:
                await asyncio.to_thread(collector.start, ready=False)
        writing.finish()
        await asyncio.to_thread(agent.until_ready)
        name = agent.id
        await asyncio.to_thread(until_stored, dsn, name, count)
        await asyncio.to_thread(poll_until, agent.drained, within_s=60, why="the buffer is not empty")
        cut_us = time.time_ns() // 1000
        for source in ("cell", "plc"):
            await asyncio.to_thread(until_newer, dsn, name, source, cut_us)
        assert await asyncio.to_thread(agent.stop) == 0
        await assert_each_line_once_in_order(dsn, name, count)
        watched = {
            "Spindle.Temp",
            "Spindle.Speed",
            "Press.Cycles",
            "Setpoint.Speed",
            "Quality.Width",
            "Line.Press.Status",
        }
        cell_changes = [
            (c["node"], None, c["time_us"], c["time_us"])
            for c in truth(cell_truth)
            if c["node"] in watched and c["time_us"] < cut_us
        ]
        since = await first_seen_us(dsn, name, "cell")
        assert await undeclared(dsn, name, "cell", [c for c in cell_changes if c[2] > since]) == []
        since = await first_seen_us(dsn, name, "plc")
        plc_changes = [
            c
            for c in lasting(truth(plc_truth), {"speed_setpoint", "temperature_setpoint", "mode"})
            if since < c[2] < cut_us
        ]
        assert await undeclared(dsn, name, "plc", plc_changes) == []
        async with connected(dsn) as database:
            assert await compare_heads(database, UUID(name), tmp_path / "state" / "buffer.db") == []
            twice = "SELECT count(*) - count(DISTINCT (buffer_id, lane, batch_no, idx)) FROM security_events"
            assert await database.fetchval(twice) == 0


async def first_seen_us(dsn: str, agent: str, source: str) -> int:
    """When the first value was taken. What comes before it (that the device cannot be reached yet) promises nothing."""
    async with connected(dsn) as database:
        sql = "SELECT min(observed) FROM security_events WHERE agent_id = $1 AND source = $2 AND data ? 'value'"
        return micros(await database.fetchval(sql, UUID(agent), source))


def lasting(changes: list[dict[str, Any]], points: set[str]) -> list[tuple[str, Any, int, int]]:
    """Changes with the time for which each lasted: a poller sees a value at some moment of it."""
    found = []
    for point in points:
        own = [c for c in changes if c["point"] == point]
        found += [(point, None, a["time_us"], b["time_us"]) for a, b in pairwise(own)]
    return found


MOODS: list[Mood] = ["busy", "slow", "reset", "slow", "reset", "deaf"]

# ── the collector away, busy, slow, cut ──────────────────────────────────────────────────────────────────────────────


async def test_a_collector_away_then_busy_then_slow_then_resetting_loses_nothing_and_gets_nothing_twice(
    tmp_path: Path, collector: Collector
) -> None:
    """telegraf#4325, fluent-bit#8044: what peers drop or repeat when the other side answers badly."""
    count = 40_000
    async with FaultyLink(collector.port) as link:
        await link.become("away")
        sync = {"timeout_s": 2, "batch_bytes_max": 65_536}
        agent = Agent(tmp_path, link.url, collector.key("agent"), log_source(tmp_path / "auth.log"), sync=sync)
        with agent:
            writing = Writing(tmp_path / "auth.log", count, pause_s=0.1).start()
            await asyncio.sleep(5)
            status = await asyncio.to_thread(agent.status)
            assert status["sync"]["failures"] > 0
            assert status["buffer"]["events"] > 0
            healthz = await asyncio.to_thread(agent.get, "/healthz")
            assert (healthz.status_code, healthz.json()["state"]) == (200, "degraded")
            assert agent.log.count("the collector takes nothing") == 1
            for mood in MOODS:
                await link.become(mood)
                await asyncio.sleep(2.5)
            await link.become("well")
            await asyncio.to_thread(writing.finish)
            name = agent.id
            await asyncio.to_thread(
                poll_until,
                lambda: stored_count(collector.dsn, name) >= count and agent.drained(),
                within_s=60,
                why="not all is stored",
            )
            assert (await asyncio.to_thread(agent.get, "/healthz")).json()["state"] == "ok"
            assert await asyncio.to_thread(agent.stop) == 0
        assert "takes events again" in agent.log
        await assert_each_line_once_in_order(collector.dsn, name, count)


# ── sources in trouble ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_source_unreachable_and_one_that_answers_garbage_delay_nobody_and_recover_by_themselves(
    tmp_path: Path, collector: Collector
) -> None:
    """telegraf#13172, telegraf#19186: one bad device stops the rest."""

    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(1_024):
                writer.write(random.Random(7).randbytes(300))
        writer.transport.abort()

    plc_port, cell_port = free_port(), free_port()
    server = await asyncio.start_server(garbage, "127.0.0.1", plc_port)
    log = tmp_path / "auth.log"
    sources = (
        log_source(log)
        + modbus_source(f"tcp://127.0.0.1:{plc_port}")
        + opcua_source(f"opc.tcp://127.0.0.1:{cell_port}/press")
    )
    with LogWriter(log) as writer, Agent(tmp_path, collector.url, collector.key("agent"), sources) as agent:
        lines = Script(3, "quiet").lines()

        def troubles() -> dict[str, dict[str, str]]:
            return {name: source["trouble"] for name, source in agent.status()["sources"].items()}

        await asyncio.to_thread(poll_until, lambda: troubles()["plc"] and troubles()["cell"], why="no trouble is told")
        found = await asyncio.to_thread(troubles)
        assert found["auth"] == {}
        assert str(cell_port) in " ".join(found["cell"].values())
        delays = []
        for n in range(1, 21):
            began = time.monotonic()
            writer.write(next(lines))
            await asyncio.to_thread(until_stored, collector.dsn, agent.id, n)
            delays.append(time.monotonic() - began)
        assert sorted(delays)[10] < 2
        server.close()
        with (
            simulator("plc", "--port", str(plc_port), "--seed", "7"),
            simulator("opcua_server", "--port", str(cell_port), "--seed", "7"),
        ):
            await asyncio.to_thread(poll_until, lambda: not any(troubles().values()), within_s=60, why="no recovery")
            sources_now = (await asyncio.to_thread(agent.status))["sources"]
            assert sources_now["plc"]["events"] > 0
            assert sources_now["cell"]["events"] > 0
            await asyncio.to_thread(
                poll_until, lambda: agent.get("/healthz").json()["state"] == "ok", why="not ok again"
            )
            assert await asyncio.to_thread(agent.stop) == 0
        for source, end in (("cell", "source cell works again, after"), ("plc", "works again, after")):
            assert f"WARNING linewarden: source {source}: " in agent.log
            assert end in agent.log
        assert agent.log.count("WARNING linewarden: source cell: ") <= 2, "not one line for each try"
        async with connected(collector.dsn) as database:
            sql = "SELECT source, type FROM security_events WHERE agent_id = $1 AND type LIKE 'agent.source.%'"
            told = {(row["source"], row["type"]) for row in await database.fetch(sql, UUID(agent.id))}
        assert {("cell", "agent.source.trouble"), ("cell", "agent.source.recovered")} <= told


# ── starting, reloading, stopping ────────────────────────────────────────────────────────────────────────────────────


def run_again(agent: Agent) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "agent.cli", "run", "--config", str(agent.config)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_a_second_agent_on_the_same_state_folder_is_refused(tmp_path: Path) -> None:
    with Agent(tmp_path, "http://127.0.0.1:9") as agent:
        assert agent.process is not None
        second = run_again(agent)
        assert second.returncode == 2
        assert (
            f"another agent runs with the state folder {tmp_path / 'state'} (process {agent.process.pid})"
            in second.stderr
        )
        assert "Traceback" not in second.stderr


def test_a_state_folder_that_cannot_be_used_ends_the_agent_at_once_with_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    ended = run_again(Agent(tmp_path, "http://127.0.0.1:9"))
    assert ended.returncode == 2
    assert str(tmp_path / "state") in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_taken_port_costs_the_endpoint_and_not_the_collecting(tmp_path: Path, collector: Collector) -> None:
    log = tmp_path / "auth.log"
    health = {"listen": f"127.0.0.1:{collector.port}"}
    agent = Agent(tmp_path, collector.url, collector.key("agent"), log_source(log), health=health)
    with LogWriter(log) as writer:
        writer.write(next(Script(3, "quiet").lines()))
        agent.start(ready=False)
        try:
            poll_until(
                lambda: (tmp_path / "state" / "agent_id").exists() and stored_count(collector.dsn, agent.id) == 1
            )
            assert "no local endpoint" in agent.log
        finally:
            agent.__exit__(None, None, None)


HANDLER = """
[handlers.one]
type = "count"
where = "type == 'log.line'"
by = ["source"]
at_least = 1
within_s = 60
raises = { type = "alert.test" }
"""


def test_a_reload_exchanges_what_changed_and_an_invalid_file_changes_nothing(
    tmp_path: Path, collector: Collector
) -> None:
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    lines = Script(3, "quiet").lines()
    with (
        LogWriter(first) as one,
        LogWriter(second) as two,
        Agent(tmp_path, collector.url, collector.key("agent"), log_source(first)) as agent,
    ):
        one.write(next(lines))
        two.write(next(lines))
        poll_until(lambda: stored_count(collector.dsn, agent.id) == 1)
        agent.configure(log_source(first) + '[sources.broken]\ntype = "nonsense"\n')
        agent.signal(1)
        poll_until(lambda: agent.status()["agent"]["reload_error"])
        assert "nonsense" in agent.status()["agent"]["reload_error"]
        one.write(next(lines))
        poll_until(lambda: stored_count(collector.dsn, agent.id) == 2)
        agent.configure(log_source(first) + log_source(second, "more") + HANDLER)
        agent.signal(1)
        poll_until(lambda: agent.status()["sources"].get("more", {}).get("events") == 1)
        status = agent.status()
        assert status["agent"]["reload_error"] is None
        assert "one" in status["handlers"]
        assert status["sources"]["auth"]["events"] == 2
        agent.configure(log_source(second, "more"))
        agent.signal(1)
        poll_until(lambda: set(agent.status()["sources"]) == {"more"})
        assert agent.stop() == 0


def test_the_agent_stops_within_five_seconds_while_the_collector_is_deaf(tmp_path: Path) -> None:
    async def play() -> None:
        async with FaultyLink(1) as link:
            await link.become("deaf")
            with Agent(tmp_path, link.url, "x", log_source(tmp_path / "auth.log"), sync={"timeout_s": 30}) as agent:
                with LogWriter(tmp_path / "auth.log") as writer:
                    writer.write(*islice(Script(3, "quiet").lines(), 100))
                await asyncio.to_thread(poll_until, lambda: agent.status()["buffer"]["events"] >= 100)
                began = time.monotonic()
                assert await asyncio.to_thread(agent.stop) == 0
                assert time.monotonic() - began < 8

    asyncio.run(play())


def test_how_the_last_run_ended_is_told(tmp_path: Path) -> None:
    agent = Agent(tmp_path, "http://127.0.0.1:9")
    agent.start()
    agent.kill9()
    agent.start()
    assert agent.stop() == 0
    with agent:
        command = [sys.executable, "-m", "agent.cli", "events", "--config", str(agent.config), "--json"]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    started = [event["message"] for event in map(json.loads, said.splitlines()) if event["type"] == "agent.started"]
    assert [text.partition(" started ")[2] for text in started] == [
        "for the first time", "after it was killed or failed", "after it was stopped",
    ]  # fmt: skip
