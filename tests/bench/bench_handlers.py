"""What the handlers cost: events a second on one core by rules and keys, against the pipeline without handlers in the same run.

The pipeline measured is the real one: sshd lines parsed, handed to the handlers, stored by SQLite with fsync. In the table of rules and
keys every event is looked at by every rule and matches one of them, which is the worst case: rules for other types of events cost nothing.

The mixture is what a line says on a working day: half of it readings and counters, a quarter what an OPC UA server reports, a quarter
lines of logs, half of these sign-ins and uses of sudo with an attack now and then. Beside it stand the same with readings that all say what
they are (`quantity`, `range`), and a flood of refused sign-ins alone.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.buffer import Buffer, BufferConfig
from agent.handlers.base import ConfigRaises
from agent.handlers.count import ConfigCount
from agent.handlers.engine import Engine
from agent.parsers.base import Context
from agent.pipeline import NoHandlers, Pipeline
from agent.simulator.logs import Script
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
FLOOD_COST_MAX = 0.6
"""Of a flood of sign-ins alone, three handlers judge every event: what is left has to be more than any station writes."""
SIGNALS_COST_MAX = 0.6
"""Where every reading says what it is, four handlers judge each of them: what is left has to be more than any line says."""
P99_MS_MAX = 10.0


def rules_of(rules: int, keys: int, at_least: int = 1_000) -> dict[str, object]:
    raises = ConfigRaises(type="alert.bench")
    return {
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


def engine_of(rules: int, keys: int) -> Engine:
    return Engine.build({"builtin": _no_builtins(), **rules_of(rules, keys)})


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


class Part(NamedTuple):
    """What a source hands over at once: made as the source makes it, so that its work is counted."""

    source: str
    make: Callable[[], Sequence[Event]]
    size: int


def sign_ins() -> Iterator[Part]:
    """A flood: LINES refused sign-ins and nothing else."""
    yield from log_parts([sshd_line(n) for n in range(LINES)], LINES_A_BATCH)


def log_parts(lines: Sequence[str], at_once: int) -> Iterator[Part]:
    parser = parser_of("auth", {}, Context("auth"))
    now_us = time.time_ns() // 1000

    def parsed(part: Sequence[str]) -> Sequence[Event]:
        events, consumed = parser.parse(part, observed_us=now_us, reference_us=now_us, memory={})
        assert consumed == len(part)
        return events

    for at in range(0, len(lines), at_once):
        part = lines[at : at + at_once]
        yield Part("auth", lambda part=part: parsed(part), len(part))  # type: ignore[misc]


STATION_LINES = (
    "hmi[311]: recipe 4711 loaded in 12 ms",
    "systemd[1]: Started Line supervisor.",
    "kernel: e1000e 0000:00:19.0 eno1: NIC Link is Up 1000 Mbps Full Duplex",
    "hmi[311]: order 90812 position 3 done, 12 parts, 0 rejected",
)


def station_lines(count: int) -> list[str]:
    """Every other one is of somebody who signs in, uses sudo, or attacks."""
    people = (f"{line.program}[{line.no}]: {line.text}" for line in Script(7, "mixed").lines())
    texts = (next(people) if n % 2 else STATION_LINES[n // 2 % len(STATION_LINES)] for n in range(count))
    return [
        f"2026-03-02T{n // 36_000 % 24:02d}:{n // 600 % 60:02d}:{n // 10 % 60:02d}+00:00 station-1 {text}"
        for n, text in enumerate(texts)
    ]


def readings(start: int, count: int, now_us: int, **meaning: object) -> list[Event]:
    """200 signals of a controller, one in eight a counter."""
    return [
        Event(
            now_us + n,
            now_us + n,
            "equipment.counter" if n % 8 == 0 else "equipment.reading",
            "plc",
            target=f"press.signal_{n % 200}",
            data={"value": 20.0 + n % 17 * 0.1, "previous": 20.0 + (n - 200) % 17 * 0.1, "unit": "°C", **meaning},
        )
        for n in range(start, start + count)
    ]


OPCUA_TYPES = (
    *["equipment.reading"] * 8,
    *["quality.measured"] * 4,
    "equipment.state.changed",
    "equipment.alarm.raised",
    "equipment.alarm.cleared",
    "configuration.setpoint.changed",
    "authentication.session.opened",
    "data.written",
    "data.read",
    "equipment.operator.action",
)


def opcua_events(start: int, count: int, now_us: int) -> list[Event]:
    """Values, parts, states, alarms, and who did what. A setpoint is turned every 100 ms."""
    return [
        Event(
            now_us + n * 5_000,
            now_us + n * 5_000,
            OPCUA_TYPES[n % len(OPCUA_TYPES)],
            "cell",
            target=f"Line.Press.{n % 150}",
            outcome="success",
            message="equipment changed",
            actor="operator" if n % 10 == 0 else None,
            data={"value": n % 40, "node": f"nsu=http://acme/press;s=Line.Press.{n % 150}", "order": n // 5_000},
        )
        for n in range(start, start + count)
    ]


def working_day() -> Iterator[Part]:
    """The mixture: LINES events, from three sources in turn."""
    now_us = time.time_ns() // 1000
    each = LINES_A_BATCH // 4
    logs = log_parts(station_lines(LINES // 4), each)
    for at, part in zip(range(0, LINES, LINES_A_BATCH), logs, strict=True):
        yield part
        yield Part("plc", lambda at=at: readings(at // 2, 2 * each, now_us), 2 * each)  # type: ignore[misc]
        yield Part("cell", lambda at=at: opcua_events(at // 4, each, now_us), each)  # type: ignore[misc]


def signals() -> Iterator[Part]:
    """The mixture, with a controller each of whose 200 signals says that it is a temperature, and what range it has."""
    for number, part in enumerate(working_day()):
        at, size = number // 3 * LINES_A_BATCH // 2, part.size
        if part.source != "plc":
            yield part
            continue
        now_us = time.time_ns() // 1000

        def made(at: int = at, size: int = size, now_us: int = now_us) -> Sequence[Event]:
            return readings(at, size, now_us, quantity="temperature", range=[-20, 150])

        yield Part("plc", made, size)


async def stored(folder: Path, engine: Engine | NoHandlers, parts: Sequence[Part]) -> float:
    """CPU seconds to make, judge and store all parts."""
    buffer = await Buffer.open(folder / "buffer.db", BufferConfig(free_bytes_min=0), "bench")
    pipeline = Pipeline(buffer, engine)
    began = time.process_time()
    for number, part in enumerate(parts):
        await pipeline.store(part.make(), part.source, {"at": number})
    spent_s = time.process_time() - began
    await buffer.close()
    return spent_s


@pytest.mark.parametrize(
    ("load", "cost_max"), [(working_day, COST_MAX), (signals, SIGNALS_COST_MAX), (sign_ins, FLOOD_COST_MAX)]
)
async def test_default_handlers_cost_a_quarter_of_the_pipeline_at_the_most(
    tmp_path: Path, load: Callable[[], Iterator[Part]], cost_max: float
) -> None:
    parts = list(load())
    events = sum(part.size for part in parts)
    without: list[float] = []
    with_default: list[float] = []
    engine = Engine.build({})
    for n in range(ROUNDS):
        engine = Engine.build({})
        for name, times, handlers in (("bare", without, NoHandlers()), ("default", with_default, engine)):
            folder = tmp_path / f"{name}{n}"
            folder.mkdir()
            times.append(await stored(folder, handlers, parts))
    bare_s, default_s = min(without), min(with_default)
    cost = 1 - bare_s / default_s
    busy = sorted(engine.stats().items(), key=lambda pair: -pair[1].busy_s)[:6]
    print(
        f"\n{load.__name__}: pipeline without handlers {events / bare_s:,.0f} events/s, with the {len(engine.handlers)} default"
        f" handlers {events / default_s:,.0f}: they cost {cost:.1%}. Dearest, in µs an event of the mixture:"
        f" {', '.join(f'{name} {each.busy_s / events * 1e6:.2f}' for name, each in busy)}"
    )
    assert sum(each.alerts for each in engine.stats().values()) > 0
    assert cost <= cost_max


async def latencies_ms(folder: Path, engine: Engine | NoHandlers) -> list[float]:
    """From a sign-in to its durability (and that of its alert), while the line says 2,000 readings and 200 OPC UA events a second."""
    folder.mkdir()
    buffer = await Buffer.open(folder / "buffer.db", BufferConfig(free_bytes_min=0), "bench")
    pipeline = Pipeline(buffer, engine)

    async def line() -> None:
        n = 0
        while True:
            await pipeline.store(readings(n * 20, 20, time.time_ns() // 1000), "plc")
            await pipeline.store(opcua_events(n * 2, 2, time.time_ns() // 1000), "cell")
            n += 1
            await asyncio.sleep(0.01)

    beside = asyncio.create_task(line())
    took_ms: list[float] = []
    for one in events_of(ALERTS, 10, 10_000):
        began = time.perf_counter()
        await pipeline.store([one], "auth")
        took_ms.append((time.perf_counter() - began) * 1e3)
        await asyncio.sleep(0.002)
    beside.cancel()
    await asyncio.gather(beside, return_exceptions=True)
    await buffer.close()
    assert isinstance(engine, NoHandlers) or pipeline.alerts >= ALERTS
    return sorted(took_ms)


async def test_event_is_an_alert_in_the_buffer_within_10_ms(tmp_path: Path) -> None:
    """With the default handlers and ten more: the best of ROUNDS, since what else the computer does is not theirs.

    Where the disk alone takes longer than that in the same run, its time is the limit.
    """
    rounds: dict[str, list[tuple[float, float]]] = {"bare": [], "default": []}
    for n in range(ROUNDS):
        for name, engine in (("bare", NoHandlers()), ("default", Engine.build(rules_of(10, 10_000, at_least=1)))):
            took_ms = await latencies_ms(tmp_path / f"{name}{n}", engine)
            rounds[name].append((took_ms[ALERTS * 99 // 100], took_ms[ALERTS // 2]))
    (bare_p99, bare_p50), (p99, p50) = min(rounds["bare"]), min(rounds["default"])
    print(
        f"\nevent to alert in the buffer, fsync included: p50 {p50:.2f} ms, p99 {p99:.2f} ms; without handlers p50"
        f" {bare_p50:.2f} ms, p99 {bare_p99:.2f} ms; p99 of all rounds {', '.join(f'{each:.1f}' for each, _ in rounds['default'])}"
    )
    assert p99 <= max(P99_MS_MAX, bare_p99)
