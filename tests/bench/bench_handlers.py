"""What the handlers cost: events a second on one core by rules and keys, against the pipeline without handlers in the same run.

The pipeline measured is the real one: sshd lines parsed, handed to the handlers, stored by SQLite with fsync. In the table of rules and
keys every event is looked at by every rule and matches one of them, which is the worst case: rules for other types of events cost nothing.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from agent.buffer import Buffer, BufferConfig
from agent.handlers.base import ConfigRaises
from agent.handlers.count import ConfigCount
from agent.handlers.engine import Engine
from agent.parsers.base import Context
from agent.pipeline import NoHandlers, Pipeline
from agent.sources.logfile import parser_of
from agent.wire.event import Event
from tests.bench.bench_log import sshd_line

pytestmark = pytest.mark.bench

RULES = (1, 10, 50, 200)
KEYS = (10, 10_000, 1_000_000)
EVENTS = 100_000
BATCH = 1_000
LINES = 100_000
LINES_A_BATCH = 4_000
ROUNDS = 3
ALERTS = 1_000
COST_MAX = 0.25
P99_MS_MAX = 10.0


def engine_of(rules: int, keys: int, at_least: int = 1_000) -> Engine:
    raises = ConfigRaises(type="alert.bench")
    configs = {
        f"rule_{n}": ConfigCount(
            where=f"type == 'authentication.failure' and data.rule == {n}",
            by=("src_ip",),
            at_least=at_least,
            within_s=3_600,
            cool_down_s=0,
            max_keys=keys + 1,
            raises=raises,
        )
        for n in range(rules)
    }
    return Engine.build({"builtin": _no_builtins(), **configs})


def _no_builtins() -> object:
    from agent.handlers.builtin import ConfigBuiltin

    return ConfigBuiltin(enabled=False)


def events_of(count: int, rules: int, keys: int, start: int = 0) -> list[Event]:
    """The key goes round slower than the rule, so that a key has one rule and there are `keys` groups in all."""
    return [
        Event(
            n,
            n,
            "authentication.failure",
            "auth",
            src_ip=f"key {n % keys}",
            data={"rule": n % keys % rules, "port": 22},
        )
        for n in range(start, start + count)
    ]


def through(engine: Engine, events: Sequence[Event]) -> float:
    """Seconds of CPU, with the state taken after each batch as the pipeline takes it."""
    began = time.process_time()
    for at in range(0, len(events), BATCH):
        engine.handle(events[at : at + BATCH], at)
        engine.changes()
    return time.process_time() - began


@pytest.mark.parametrize("rules", RULES)
def test_events_per_second_by_rules_and_keys(rules: int) -> None:
    shown = []
    for keys in KEYS:
        engine = engine_of(rules, keys)
        for start in range(0, keys, EVENTS):
            through(engine, events_of(min(EVENTS, keys - start), rules, keys, start))
        held = sum(stats.keys for stats in engine.stats().values())
        assert held == keys
        spent_s = through(engine, events_of(EVENTS, rules, keys, keys))
        shown.append(f"{keys:>9,} keys {EVENTS / spent_s:>9,.0f}/s")
        # A station's line has tens of events a second; the slowest cell must not be what holds it up.
        assert EVENTS / spent_s > 5_000
    print(f"\n{rules:>4} rules: {'   '.join(shown)}")


async def stored(folder: Path, engine: Engine | NoHandlers) -> float:
    """CPU seconds to parse, judge and store LINES lines."""
    buffer = await Buffer.open(folder / "buffer.db", BufferConfig(free_bytes_min=0), "bench")
    pipeline = Pipeline(buffer, engine)
    parser = parser_of("auth", {}, Context("auth"))
    now_us = time.time_ns() // 1000
    lines = [sshd_line(n) for n in range(LINES)]
    began = time.process_time()
    for at in range(0, LINES, LINES_A_BATCH):
        part = lines[at : at + LINES_A_BATCH]
        events, consumed = parser.parse(part, observed_us=now_us, reference_us=now_us, memory={})
        assert consumed == len(part)
        await pipeline.store(events, "auth", {"at": at})
    spent_s = time.process_time() - began
    await buffer.close()
    return spent_s


async def test_default_handlers_cost_a_quarter_of_the_pipeline_at_the_most(tmp_path: Path) -> None:
    without: list[float] = []
    with_default: list[float] = []
    for n in range(ROUNDS):
        for name, times, engine in (("bare", without, NoHandlers()), ("default", with_default, Engine.build({}))):
            folder = tmp_path / f"{name}{n}"
            folder.mkdir()
            times.append(await stored(folder, engine))
    bare_s, default_s = min(without), min(with_default)
    cost = 1 - bare_s / default_s
    print(
        f"\npipeline without handlers {LINES / bare_s:,.0f} lines/s, with the {len(Engine.build({}).handlers)} default"
        f" handlers {LINES / default_s:,.0f} lines/s: they cost {cost:.1%}"
    )
    assert cost <= COST_MAX


async def test_event_is_an_alert_in_the_buffer_within_10_ms(tmp_path: Path) -> None:
    buffer = await Buffer.open(tmp_path / "buffer.db", BufferConfig(free_bytes_min=0), "bench")
    pipeline = Pipeline(buffer, engine_of(10, 10_000, at_least=1))

    async def readings() -> None:
        """What the line says meanwhile: 2,000 readings a second."""
        n = 0
        while True:
            batch = [Event(n, n, "equipment.reading", "plc", target=f"t{i}", data={"value": n + i}) for i in range(20)]
            await pipeline.store(batch, "plc")
            n += 1
            await asyncio.sleep(0.01)

    beside = asyncio.create_task(readings())
    took_ms: list[float] = []
    for one in events_of(ALERTS, 10, 10_000):
        began = time.perf_counter()
        await pipeline.store([one], "auth")
        took_ms.append((time.perf_counter() - began) * 1e3)
        await asyncio.sleep(0.002)
    beside.cancel()
    await asyncio.gather(beside, return_exceptions=True)
    await buffer.close()
    assert pipeline.alerts >= ALERTS
    took_ms.sort()
    p50, p99 = took_ms[len(took_ms) // 2], took_ms[len(took_ms) * 99 // 100]
    print(f"\nevent to alert in the buffer, fsync included: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    assert p99 <= P99_MS_MAX
