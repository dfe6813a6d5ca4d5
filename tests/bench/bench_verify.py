"""`verify` over a large database, against the limit: reading the same rows and frames out of PostgreSQL and doing nothing with them.

The bare read is one connection: every row by binary COPY, every frame by a cursor. verify opens each frame, makes the rows anew,
compares every
byte and follows every chain, in as many processes as there are processors. Rounds change their order; the median of their ratios counts.

    LINEWARDEN_BENCH_EVENTS=300000 pytest -s -m bench tests/bench/bench_verify.py
"""

import os
import resource
import statistics
import time

import asyncpg
import pytest

from agent.simulator.postgres import Postgres
from collector.app import migrate_at
from collector.evidence.verify import Wanted, processors, verify
from collector.store import partitions
from collector.store.rows import COLUMNS
from tests.bench.bench_ingest import BATCH_EVENTS, _events
from tests.collector_process import Chain
from tests.evidence import store
from tests.postgres import connected

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

EVENTS = int(os.environ.get("LINEWARDEN_BENCH_EVENTS", "1000000"))
ROUNDS = int(os.environ.get("LINEWARDEN_BENCH_ROUNDS", "3"))
AGENTS = 10
PER_MINUTE_MIN = 1_000_000


async def _fill(dsn: str) -> None:
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        await partitions.ensure(connection, ahead_days=1)
        chains = [Chain() for _ in range(AGENTS)]
        events = _events(min(EVENTS, 200_000))
        for at in range(0, EVENTS, BATCH_EVENTS):
            begin = at % len(events)
            await store(connection, chains[at // BATCH_EVENTS % AGENTS].seal(events[begin : begin + BATCH_EVENTS]))
        await connection.execute("VACUUM ANALYZE")


async def _bare(dsn: str) -> float:
    connection = await asyncpg.connect(dsn)
    size = 0

    async def take(chunk: bytes) -> None:
        nonlocal size
        size += len(chunk)

    started = time.perf_counter()
    sql = f"SELECT {', '.join(COLUMNS)} FROM security_events ORDER BY batch_id, idx"
    await connection.copy_from_query(sql, output=take, format="binary", timeout=3_600)
    async with connection.transaction():
        async for row in connection.cursor("SELECT frame FROM evidence", prefetch=100):
            size += len(row["frame"])
    elapsed = time.perf_counter() - started
    await connection.close()
    assert size > EVENTS * 50
    return elapsed


async def test_verify_against_a_bare_read(postgres: Postgres) -> None:
    dsn = postgres.create_database("bench_verify")
    await _fill(dsn)
    ratios, rates = [], []
    for number in range(ROUNDS):
        bare = await _bare(dsn) if number % 2 else 0.0
        started = time.perf_counter()
        report = await verify(dsn, Wanted())
        mine = time.perf_counter() - started
        assert report.ok, report.findings
        assert report.rows == report.events == EVENTS
        bare = bare or await _bare(dsn)
        ratios.append(bare / mine)
        rates.append(EVENTS / mine * 60)
    ratio, rate = statistics.median(ratios), statistics.median(rates)
    peak_mb = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    print(
        f"\nverify, {EVENTS} events, {processors()} processes: {rate / 1e6:.2f} million events a minute; {ratio:.2f} "
        f"of the speed of a bare "
        f"read (rounds: {', '.join(f'{r:.2f}' for r in ratios)}); largest process {peak_mb:.0f} MB"
    )
    assert rate > PER_MINUTE_MIN
