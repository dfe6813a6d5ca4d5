"""Roll-ups on a real PostgreSQL: the same totals as the events, however late, wherever folded; made anew, they are the live ones."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.wire.batch import read_frames
from agent.wire.event import Event
from collector.app import migrate_at
from collector.store import partitions, rollups
from collector.store.batches import Transaction
from collector.store.events import ALL, Filter
from collector.store.rollups import PERIODS, Question, bucket_of
from tests.collector_process import Chain, now_us
from tests.postgres import Postgres, connected

if TYPE_CHECKING:
    import asyncpg

HOUR_US = 3_600_000_000


async def _store(
    connection: "asyncpg.Connection[asyncpg.Record]",
    events: list[Event],
    *,
    place_id: int = 1,
    chain: Chain | None = None,
) -> None:
    """What ingest does with a request, without HTTP."""
    chain = chain or Chain()
    frame = next(read_frames(chain.seal(events).frame))
    async with connection.transaction():
        transaction = Transaction(connection, UUID(chain.agent))  # type: ignore[arg-type]
        await transaction.store([frame], place_id, careful=False)


async def _folded(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    while await rollups.fold(connection):
        pass


async def _stored(connection: "asyncpg.Connection[asyncpg.Record]") -> list[tuple[Any, ...]]:
    rows = await connection.fetch(
        "SELECT * FROM event_metrics ORDER BY period, place_id, bucket, type, category, severity, source, outcome"
    )
    return [tuple(row) for row in rows]


@pytest.fixture
async def connection(postgres: Postgres) -> Any:
    name = f"r{uuid4().hex}"
    dsn = postgres.create_database(name)
    await migrate_at(dsn)
    async with connected(dsn) as opened:
        await partitions.ensure(opened, ahead_days=0)
        yield opened
    postgres.drop_database(name)


_one = st.tuples(
    st.integers(0, 60 * 24 * 45),  # minutes ago
    st.sampled_from(["log.line", "authentication.failure", "equipment.reading"]),
    st.sampled_from(["auth", "plc", "s" * 300 + "a", "s" * 300 + "b"]),
    st.sampled_from([None, "", "success", "failure"]),
    st.integers(-5_000_000, 5_000_000),  # seen so many µs after it happened
)
_requests = st.lists(
    st.tuples(st.integers(1, 3), st.lists(_one, min_size=1, max_size=12), st.booleans()), min_size=1, max_size=5
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(requests=_requests)
async def test_made_anew_from_events_they_equal_the_live_ones_and_count_each_event_once_a_period(
    connection: "asyncpg.Connection[asyncpg.Record]", requests: list[Any]
) -> None:
    await connection.execute("TRUNCATE security_events, evidence, metric_deltas, event_metrics")
    now = now_us()
    expected: Counter[tuple[str, datetime, str]] = Counter()
    for place_id, described, fold_now in requests:
        events = [
            Event(now - minutes * 60_000_000, now - minutes * 60_000_000 + seen, kind, source, outcome=outcome)
            for minutes, kind, source, outcome, seen in described
        ]
        for event in events:
            for period in PERIODS:
                moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=event.time)
                expected[period, bucket_of(moment, period), event.type] += 1
        await _store(connection, events, place_id=place_id)
        if fold_now:
            await _folded(connection)
    await _folded(connection)
    live = await _stored(connection)
    for everywhere in (True, False):
        rows = await connection.fetch(
            "SELECT period, bucket, type, sum(events) AS n FROM event_metrics WHERE (place_id = 0) = $1 GROUP BY 1, 2, 3",
            everywhere,
        )
        assert {(r["period"], r["bucket"], r["type"]): r["n"] for r in rows} == expected
    begin = datetime.now(UTC) - timedelta(days=50)
    counted = await rollups.rebuild(connection, begin, datetime.now(UTC) + timedelta(hours=1))
    assert counted == sum(len(described) for _, described, _ in requests)
    assert await _stored(connection) == live
    # From nothing as well: no part of the live ones was taken over.
    await connection.execute("TRUNCATE event_metrics")
    await rollups.rebuild(connection, begin, datetime.now(UTC) + timedelta(hours=1))
    assert await _stored(connection) == live


async def test_a_reader_sees_each_event_once_while_others_store_fold_and_rebuild(
    connection: "asyncpg.Connection[asyncpg.Record]", postgres: Postgres
) -> None:
    database = await connection.fetchval("SELECT current_database()")
    dsn = postgres.dsn_of(database)
    done = asyncio.Event()
    stored = 0

    async def write(number: int) -> None:
        nonlocal stored
        async with connected(dsn) as mine:
            for n in range(15):
                at = now_us() - n * HOUR_US
                await _store(mine, [Event(at, at, "log.line", f"s{number}")] * 3, place_id=number)
                stored += 3

    async def keep(work: Any) -> None:
        async with connected(dsn) as mine:
            while not done.is_set():
                await work(mine)
                await asyncio.sleep(0)

    async def rebuild(mine: "asyncpg.Connection[asyncpg.Record]") -> None:
        await rollups.rebuild(mine, datetime.now(UTC) - timedelta(hours=5), datetime.now(UTC))

    async def look(mine: "asyncpg.Connection[asyncpg.Record]") -> None:
        # In one statement: the events there are, and what the roll-ups say of them.
        row = await mine.fetchrow(
            "SELECT (SELECT count(*) FROM security_events) AS there, "
            "(SELECT coalesce(sum(events), 0) FROM event_metrics WHERE period = 'month' AND place_id = 0) "
            "+ (SELECT coalesce(sum(events), 0) FROM metric_deltas) AS counted"
        )
        assert row is not None
        assert row["there"] == row["counted"]

    beside = [asyncio.create_task(keep(work)) for work in (rollups.fold, rollups.fold, rebuild, look)]
    await asyncio.gather(*(write(number) for number in range(1, 5)))
    done.set()
    await asyncio.gather(*beside)
    await _folded(connection)
    assert (
        await connection.fetchval("SELECT sum(events) FROM event_metrics WHERE period = 'day' AND place_id > 0")
        == stored
        == 180
    )


async def test_a_late_event_corrects_the_hour_in_which_it_happened(
    connection: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    at = now_us() - 400 * HOUR_US
    await _store(connection, [Event(at, at, "log.line", "a")])
    await _folded(connection)
    await _store(connection, [Event(at + 1, at, "log.line", "a")])
    await _folded(connection)
    rows = await connection.fetch(
        "SELECT bucket, events, latency_count FROM event_metrics WHERE period = 'hour' AND place_id = 1"
    )
    assert [(r["bucket"], r["events"], r["latency_count"]) for r in rows] == [
        (datetime.fromtimestamp(at // HOUR_US * 3600, UTC), 2, 2)
    ]


async def test_a_time_that_is_not_believed_is_counted_now_and_has_no_latency(
    connection: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    await _store(connection, [Event(0, 0, "log.line", "a"), Event(now_us(), now_us(), "log.line", "a")])
    await _folded(connection)
    row = await connection.fetchrow(
        "SELECT sum(events) AS n, sum(latency_count) AS m FROM event_metrics WHERE period = 'hour' AND place_id = 1"
    )
    assert row is not None
    assert (row["n"], row["m"]) == (2, 1)


async def test_pieces_make_up_the_period_exactly(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    await connection.execute("SELECT 1")
    begin, end = datetime(2025, 11, 28, 5, tzinfo=UTC), datetime(2026, 3, 2, 7, tzinfo=UTC)
    found = list(rollups.pieces(begin, end))
    assert [first for _, first, _ in found] == [begin, *(last for _, _, last in found[:-1])]
    assert found[-1][2] == end
    assert [period for period, _, _ in found] == ["hour", "day", "month", "day", "hour"]
    assert Question(wanted=Filter(scope=ALL), begin=begin, end=end).group == ()


async def test_days_that_are_over_get_an_index_for_text_and_today_has_none(
    connection: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    over = datetime.now(UTC).date() - timedelta(days=2)
    await partitions._make(connection, "security_events", over)
    assert await partitions.index_closed(connection) == [f"security_events_{over:%Y%m%d}"]
    assert await partitions.index_closed(connection) == []
