"""The whole way of an event, piece by piece, each against what cannot be beaten in the same run.

file → durable buffer            against a loop that reads, matches and builds the same events and keeps nothing
backlog → PostgreSQL             through sync and the collector, against a bare COPY of the same rows
idle agent                       memory and processor time by configuration
line written → row visible       in GET /v1/events, at 28 and at 1,000 lines a second

LINEWARDEN_BENCH_EVENTS=200000 pytest -m bench -s tests/bench/bench_spine.py
"""

import asyncio
import threading
import time
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from agent.buffer import Buffer, BufferConfig
from agent.component import Report
from agent.handlers.builtin import ConfigBuiltin
from agent.handlers.engine import Engine
from agent.pipeline import NoHandlers, Pipeline
from agent.simulator.logs import LogWriter, Script
from agent.simulator.postgres import Postgres
from agent.sources.logfile import LogConfig, LogSource
from agent.sync import Sync, SyncConfig
from agent.uplink import HttpSink
from agent.wire.event import Event
from tests.agent_process import Agent, log_source, modbus_source, opcua_source, simulator
from tests.bench.bench_ingest import EVENTS, RATIO_MIN, _bare_copy, _events, _prepare, _rows
from tests.bench.bench_log import LINES, bare_loop, sshd_line
from tests.collector_process import Collector, poll_until
from tests.ports import free_port

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

AGENT = "6f1c1a52-9d6b-4a9e-8f55-2f6f2f3f4c11"
FILE_RATIO_MIN = 0.5
LATENCY_S = 20.0
IDLE_S = 20.0
LATENCY_P99_MS_MAX = 100


async def _to_buffer(path: Path, folder: Path, engine: Engine | NoHandlers) -> float:
    folder.mkdir()
    buffer = await Buffer.open(folder / "buffer.db", BufferConfig(free_bytes_min=0), AGENT)
    pipeline, report = Pipeline(buffer, engine), Report()
    begin = time.perf_counter()
    pipeline.start("auth", "log", LogSource("auth", LogConfig(paths=(str(path),), parser="auth"), report), report)
    while pipeline.sources["auth"].events < LINES:  # noqa: ASYNC110 - counted by the pipeline, which tells nobody
        await asyncio.sleep(0.01)
    elapsed = time.perf_counter() - begin
    await pipeline.stop_all()
    await buffer.close()
    return elapsed


async def test_a_million_lines_from_file_to_durable_buffer(tmp_path: Path) -> None:
    path = tmp_path / "auth.log"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(sshd_line(n) + "\n" for n in range(LINES))
    begin = time.perf_counter()
    assert bare_loop(path) == LINES
    bare_s = time.perf_counter() - begin
    alone_s = await _to_buffer(path, tmp_path / "alone", NoHandlers())
    with_s = await _to_buffer(path, tmp_path / "with", Engine.build({"builtin": ConfigBuiltin()}))
    print(
        f"\nfile → durable buffer, {LINES:,} lines: bare loop {LINES / bare_s:,.0f}/s; ours {LINES / alone_s:,.0f}/s, "
        f"ratio {bare_s / alone_s:.2f} (limit {FILE_RATIO_MIN}); with the built-in handlers {LINES / with_s:,.0f}/s, "
        f"ratio {bare_s / with_s:.2f}, handlers cost {1 - alone_s / with_s:.0%}"
    )
    assert bare_s / alone_s >= FILE_RATIO_MIN


async def _send_all(dsn: str, folder: Path, events: list[Event], key_file: Path) -> float:
    buffer = await Buffer.open(folder / "buffer.db", BufferConfig(free_bytes_min=0), AGENT)
    for at in range(0, len(events), 4_096):
        await buffer.append(events[at : at + 4_096])
    with Collector(dsn) as collector:
        key_file.write_text(await asyncio.to_thread(collector.key, "agent"))
        sink = HttpSink(url=collector.url, key_file=str(key_file), timeout_s=60, version="bench")
        sync = Sync(SyncConfig(url=collector.url), buffer, sink, dict)
        begin = time.perf_counter()
        sending = asyncio.create_task(sync.run())
        while buffer.pending_events:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        elapsed = time.perf_counter() - begin
        sending.cancel()
        await sink.close()
    await buffer.close()
    return elapsed


def test_a_backlog_from_the_buffer_into_postgresql(tmp_path: Path) -> None:
    with Postgres(settings={"shared_buffers": "1GB", "max_wal_size": "8GB", "checkpoint_timeout": "30min"}) as postgres:
        events = _events(EVENTS)
        dsn = postgres.create_database("ours")
        asyncio.run(_prepare(dsn))
        ours = EVENTS / asyncio.run(_send_all(dsn, tmp_path, events, tmp_path / "key"))
        rows = asyncio.run(_rows(dsn))
        assert len(rows) == EVENTS
        postgres.drop_database("ours")
        bare = _bare_copy(postgres, "bare", rows)
    print(
        f"\nbacklog of {EVENTS:,} events → PostgreSQL: {ours:,.0f}/s, bare COPY {bare:,.0f}/s, ratio {ours / bare:.2f} (limit {RATIO_MIN})"
    )
    assert ours / bare >= RATIO_MIN


@pytest.mark.parametrize(("name", "mb_max"), [("log", 45), ("log + Modbus", 50), ("log + Modbus + OPC UA", 120)])
def test_memory_and_processor_time_of_an_idle_agent(
    name: str, mb_max: int, tmp_path: Path, collector: Collector
) -> None:
    with ExitStack() as stack:
        sources = log_source(tmp_path / "auth.log")
        if "Modbus" in name:
            plc = stack.enter_context(simulator("plc", "--port", str(free_port()), "--rate", "0.1"))
            sources += modbus_source(plc, interval_s=0.5)
        if "OPC" in name:
            sources += opcua_source(
                stack.enter_context(simulator("opcua_server", "--port", str(free_port()), "--rate", "0.1"))
            )
        agent = stack.enter_context(Agent(tmp_path, collector.url, collector.key("agent"), sources))
        with LogWriter(tmp_path / "auth.log") as writer:
            writer.write(*islice(Script(1, "quiet").lines(), 100))
        poll_until(agent.drained)
        time.sleep(5)
        before = agent.status()["agent"]
        time.sleep(IDLE_S)
        after = agent.status()["agent"]
        agent.stop()
    mb, cpu = after["rss_bytes"] / 1e6, (after["cpu_s"] - before["cpu_s"]) / IDLE_S
    print(f"\nidle agent, {name}: {mb / 1.048576:.1f} MiB ({mb:.1f} MB; limit {mb_max} MiB), processor {cpu:.2%}")
    assert mb / 1.048576 <= mb_max


def _watch(client: Any, visible: dict[int, float], agent: str, done: threading.Event) -> None:
    seen = 0
    while not done.is_set() or seen < len(visible):
        seen = len(visible)
        answer = client.get("/v1/events", params={"agent": agent, "source": "auth", "order": "desc", "limit": 200})
        now = time.time()
        for event in answer.json()["events"]:
            pid = event["data"].get("pid")
            if pid is not None:
                visible.setdefault(pid, now)
        time.sleep(0.002)


@pytest.mark.parametrize("rate", [28, 1_000])
def test_from_a_line_written_to_its_row_visible(rate: int, tmp_path: Path, collector: Collector) -> None:
    lines, done = Script(1, "quiet").lines(), threading.Event()
    written: dict[int, float] = {}
    visible: dict[int, float] = {}
    with (
        LogWriter(tmp_path / "auth.log") as writer,
        Agent(tmp_path, collector.url, collector.key("agent"), log_source(tmp_path / "auth.log")) as agent,
        collector.client(collector.key("viewer")) as client,
    ):
        watching = threading.Thread(target=_watch, args=(client, visible, agent.id, done))
        watching.start()
        begin = time.monotonic()
        for n in range(int(rate * LATENCY_S)):
            time.sleep(max(0.0, begin + n / rate - time.monotonic()))
            line = next(lines)
            written[line.no] = time.time()
            writer.write(line)
        poll_until(agent.drained)
        time.sleep(0.5)
        done.set()
        watching.join()
    ages = sorted((visible[no] - at) * 1_000 for no, at in written.items() if no in visible)
    p50, p99 = ages[len(ages) // 2], ages[len(ages) * 99 // 100]
    print(
        f"\nline → visible at {rate:,}/s: p50 {p50:.0f} ms, p99 {p99:.0f} ms ({len(ages):,} of {len(written):,} lines seen in time)"
    )
    assert len(ages) > 0.9 * len(written)
    if rate == 28:
        assert p99 <= LATENCY_P99_MS_MAX
