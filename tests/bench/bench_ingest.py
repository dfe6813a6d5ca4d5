"""Backlog of an agent into PostgreSQL, against the limit: a bare asyncpg COPY of the same rows into the same table.

Both write the same rows to `security_events` of a migrated database with its real partitions and indexes, durably. The bare COPY has
the rows ready as tuples of Python values and sends them in chunks as large as a buffer's largest batch; the collector gets frames as
an agent has them in its buffer, over HTTP, checks and opens them, and stores the frames as evidence too. Rounds change their order, and
the median of their ratios counts.

    LINEWARDEN_BENCH_EVENTS=200000 pytest -s tests/bench/bench_ingest.py
"""

import asyncio
import os
import random
import statistics
import time
from typing import Any

import asyncpg
import pytest

from agent.simulator.postgres import Postgres
from agent.wire.batch import Sealed
from agent.wire.event import Event
from collector.app import migrate_at
from collector.store import partitions
from collector.store.rows import COLUMNS
from tests.collector_process import Chain, Collector, now_us, post

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

EVENTS = int(os.environ.get("LINEWARDEN_BENCH_EVENTS", "1000000"))
ROUNDS = int(os.environ.get("LINEWARDEN_BENCH_ROUNDS", "3"))
BATCH_EVENTS = 2_000
REQUEST_BYTES = 1_048_576
"""As an agent sends with its default `batch_bytes_max`."""
CHUNK_EVENTS = 8_192
RATIO_MIN = 0.6


def _events(count: int) -> list[Event]:
    """A plant's mixture: sign-ins, readings, states."""
    rng = random.Random(20_260_131)
    begin = now_us() - count * 10_000
    events = []
    for n in range(count):
        at = begin + n * 10_000
        kind = rng.random()
        if kind < 0.4:
            user, ip = f"user{rng.randrange(500)}", f"10.{rng.randrange(4)}.{rng.randrange(256)}.{rng.randrange(256)}"
            events.append(
                Event(
                    at, at + 900, "authentication.failure", "auth", src_ip=ip, target="sshd", outcome="failure",
                    message="password refused", correlation_id=f"sshd-{rng.randrange(count)}", actor=user,
                    data={"port": rng.randrange(1024, 65_536), "method": "password", "pid": rng.randrange(65_536)},
                )
            )  # fmt: skip
        elif kind < 0.9:
            value = round(rng.gauss(60, 8), 2)
            events.append(
                Event(
                    at, at + 400, "equipment.reading", "press_plc", target=f"point{rng.randrange(40)}",
                    data={"value": value, "unit": "degC", "quality": "good"},
                )
            )  # fmt: skip
        else:
            state = rng.choice(["run", "idle", "setup"])
            events.append(
                Event(
                    at, at + 300, "equipment.state.changed", "cell_opcua", target="Line1.Status", data={"state": state}
                )
            )
    return events


def _batches(chain: Chain, events: list[Event]) -> list[Sealed]:
    return [chain.seal(events[at : at + BATCH_EVENTS]) for at in range(0, len(events), BATCH_EVENTS)]


async def _rows(dsn: str) -> list[tuple[Any, ...]]:
    """The rows that the collector stored, as the driver takes them."""
    connection = await asyncpg.connect(dsn)
    rows = [
        tuple(row)
        for row in await connection.fetch(f"SELECT {', '.join(COLUMNS)} FROM security_events ORDER BY batch_id, idx")
    ]
    await connection.close()
    return rows


async def _prepare(dsn: str) -> None:
    await migrate_at(dsn)
    connection = await asyncpg.connect(dsn)
    await partitions.ensure(connection, ahead_days=2)
    await connection.close()


async def _bare(dsn: str, rows: list[tuple[Any, ...]]) -> float:
    connection = await asyncpg.connect(dsn)
    await connection.copy_records_to_table("security_events", columns=COLUMNS, records=rows[:1])
    started = time.perf_counter()
    for at in range(0, len(rows), CHUNK_EVENTS):
        await connection.copy_records_to_table("security_events", columns=COLUMNS, records=rows[at : at + CHUNK_EVENTS])
    elapsed = time.perf_counter() - started
    await connection.close()
    return elapsed


def _through_the_collector(dsn: str, batches: list[Sealed]) -> float:
    requests: list[list[Sealed]] = [[]]
    size = 0
    for batch in batches:
        if size + len(batch.frame) > REQUEST_BYTES:
            requests.append([])
            size = 0
        requests[-1].append(batch)
        size += len(batch.frame)
    with Collector(dsn) as collector, collector.client(collector.key("agent")) as client:
        started = time.perf_counter()
        stored = 0
        for request in requests:
            answer = post(client, *request)
            assert answer.status_code == 200, answer.text
            stored += answer.json()["events"]
        elapsed = time.perf_counter() - started
        assert stored == sum(batch.header.events for batch in batches)
    return elapsed


def _ours(postgres: Postgres, name: str, events: list[Event]) -> tuple[float, list[tuple[Any, ...]]]:
    """Events a second through the collector, and the rows that it made of them."""
    dsn = postgres.create_database(name)
    asyncio.run(_prepare(dsn))
    elapsed = _through_the_collector(dsn, _batches(Chain(), events))
    rows = asyncio.run(_rows(dsn))
    postgres.drop_database(name)
    return len(events) / elapsed, rows


def _bare_copy(postgres: Postgres, name: str, rows: list[tuple[Any, ...]]) -> float:
    """Rows a second through a bare COPY."""
    dsn = postgres.create_database(name)
    asyncio.run(_prepare(dsn))
    elapsed = asyncio.run(_bare(dsn, rows))
    postgres.drop_database(name)
    return len(rows) / elapsed


def test_backlog_through_the_collector_reaches_most_of_a_bare_copy() -> None:
    with Postgres(settings={"shared_buffers": "1GB", "max_wal_size": "8GB", "checkpoint_timeout": "30min"}) as postgres:
        events = _events(EVENTS)
        # Not counted: the server's memory is touched for the first time, programs are read from the disk.
        rows = _ours(postgres, "warm", events[:20_000])[1]
        _bare_copy(postgres, "warm_bare", rows)
        ours: list[float] = []
        bare: list[float] = []
        for number in range(ROUNDS):
            if number % 2:
                bare.append(_bare_copy(postgres, f"bare{number}", rows))
            speed, rows = _ours(postgres, f"ours{number}", events)
            ours.append(speed)
            if not number % 2:
                bare.append(_bare_copy(postgres, f"bare{number}", rows))
    # Of neighbours in time: what else the machine does then weighs on both.
    ratio = statistics.median(one / other for one, other in zip(ours, bare, strict=True))
    print(
        f"\ningest of {EVENTS:,} events: collector {statistics.median(ours):,.0f}/s, bare COPY {statistics.median(bare):,.0f}/s, "
        f"ratio {ratio:.2f} (limit {RATIO_MIN}); rounds: collector {[round(x) for x in ours]}, bare {[round(x) for x in bare]}"
    )
    assert ratio >= RATIO_MIN
