"""A year of events in a simulated calendar, on a real PostgreSQL: partitions, roll-ups and retention, with equal totals at each step.

The year is one with all that calendars do to programs: a leap day, both changes of the clock at a plant in Germany, a week 53, the turn of
the year; a legal hold over the leap day, events that come late, and events of days that were dropped before they came.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple
from unittest import mock
from zoneinfo import ZoneInfo

from agent.wire.event import Event
from collector.app import migrate_at
from collector.evidence.verify import Wanted, verify
from collector.legal import held
from collector.store import events, partitions, retention, rollups
from collector.store.database import Database
from collector.store.events import ALL, Filter
from collector.store.retention import Rule
from collector.store.rollups import Question
from tests import evidence
from tests.collector_process import Chain, event
from tests.evidence import store
from tests.postgres import connected

FIRST, LAST = date(2020, 2, 1), date(2021, 1, 31)
LEAP_DAY, SUMMER, WINTER = date(2020, 2, 29), date(2020, 3, 29), date(2020, 10, 25)
WEEK_53 = datetime(2020, 12, 28, tzinfo=UTC)
HELD_FROM, RELEASED = date(2020, 3, 20), date(2020, 12, 1)
READINGS_DAYS, REST_DAYS = 30, 75
POLICY = [Rule(types=("equipment.*",), days=READINGS_DAYS), Rule(days=REST_DAYS)]
PLANT = ZoneInfo("Europe/Berlin")
DROPPED_LATE = (date(2020, 11, 30), date(2021, 1, 10))
"""When an event comes of a day that was dropped long ago."""
DAY = timedelta(days=1)


class Row(NamedTuple):
    """What is known of a stored event without asking the database."""

    received: date
    time: datetime
    reading: bool
    held: bool


@dataclass
class Year:
    """What came, what has to be left, and how often each bucket has to be counted."""

    connection: Any
    chain: Chain = field(default_factory=Chain)
    came: list[Row] = field(default_factory=list)
    left: list[Row] = field(default_factory=list)

    async def live(self, day: date) -> None:
        """A day: 24 hours up to its noon, and what comes late."""
        noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
        times = [noon - timedelta(hours=n) for n in range(24, 0, -1)]
        if day.day == 15:
            times.append(noon - 10 * DAY)
        if day in DROPPED_LATE:
            times += [datetime(2020, 3, 29, hour, 30, tzinfo=UTC) for hour in (0, 1, 2)]
        rows = [Row(day, at, at.hour % 2 == 0, at.date() == LEAP_DAY) for at in times]
        async with self.connection.transaction():
            for table in partitions.PARTITIONED:
                await partitions._make(self.connection, table, day)
        await store(self.connection, self.chain.seal([_event(row) for row in rows]), day=day)
        self.came += rows
        self.left += rows

    async def month_ends(self, today: date) -> None:
        """Fold, let go what is due, and compare."""
        while await rollups.fold(self.connection):
            pass
        holds = await held(self.connection)
        with calendar(today):
            await retention.run(self.connection, POLICY, holds, dry=False)
        self.left = [row for row in self.left if not _over(row, today) or (row.held and holds)]
        await self.compare()

    async def compare(self) -> None:
        """Each stored day, everything that left, and each bucket of each period."""
        rows = await self.connection.fetch(
            "SELECT received::date AS day, count(*) AS events FROM security_events GROUP BY 1"
        )
        assert {row["day"]: row["events"] for row in rows} == Counter(row.received for row in self.left)
        gone = await self.connection.fetchval("SELECT coalesce(sum(events), 0) FROM tombstones")
        assert gone + len(self.left) == len(self.came)
        for period in rollups.PERIODS:
            rows = await self.connection.fetch(_BUCKETS, period)
            counted = Counter(rollups.bucket_of(row.time, period) for row in self.came)
            assert {row["bucket"]: row["events"] for row in rows} == counted, period


_BUCKETS = (
    "SELECT bucket, sum(events)::bigint AS events FROM event_metrics WHERE period = $1 AND place_id = 0 GROUP BY 1"
)


def _event(row: Row) -> Event:
    us = int(row.time.timestamp()) * 1_000_000
    kind = "equipment.reading" if row.reading else "log.line"
    return event(time=us, observed=us, type=kind, actor="eve" if row.held else None)


def _over(row: Row, today: date) -> bool:
    return (today - row.received).days - 1 >= (READINGS_DAYS if row.reading else REST_DAYS)


@contextmanager
def calendar(today: date) -> Iterator[None]:
    """What the database says that it is, as retention asks for it."""
    made = f"SELECT '{today} 13:00Z'::timestamptz"
    with mock.patch.multiple(retention, _TODAY=f"SELECT '{today}'::date", _MADE=made):
        yield


async def test_totals_agree_through_a_year_with_a_leap_day_changes_of_the_clock_a_week_53_holds_and_late_events(
    dsn: str,
) -> None:
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        # What is tried here is the calendar, and not whether it is on the disk.
        await connection.execute("SET synchronous_commit = off")
        await partitions.ensure(connection, ahead_days=0)
        year = Year(connection)
        hold = 0
        for number in range((LAST - FIRST).days + 1):
            today = FIRST + number * DAY
            await year.live(today)
            if today == HELD_FROM:
                hold = await evidence.hold(connection, "case 29", "actor=eve")
            if today == RELEASED:
                await _held(year)
                assert await evidence.release(connection, hold)
            if today.day == 1 or today == LAST:
                await year.month_ends(today)
        assert number + 1 == 366
        assert not any(row.held for row in year.left)
        assert len(year.came) == 366 * 24 + 12 + 6
        await _rebuilt(connection)
        await _asked(dsn, year)
    report = await verify(dsn, Wanted(processes=1))
    assert report.ok, report.findings[:5]


async def _held(year: Year) -> None:
    """Of the leap day all is there that was held, when all around it is gone."""
    rows = await year.connection.fetch(
        "SELECT time, actor FROM security_events WHERE received < '2020-06-01' ORDER BY time"
    )
    assert [row["time"] for row in rows] == [datetime(2020, 2, 29, hour, tzinfo=UTC) for hour in range(24)]
    assert {row["actor"] for row in rows} == {"eve"}


async def _rebuilt(connection: Any) -> None:
    """Where all events are still there, the roll-ups made anew are the ones that were kept."""
    begin = await retention.dropped_until(connection)
    assert begin is not None
    sql = "SELECT * FROM event_metrics ORDER BY period, place_id, bucket, type, category, severity, source, outcome"
    before = await connection.fetch(sql)
    await connection.execute("DELETE FROM event_metrics WHERE period = 'hour' AND bucket >= $1", begin)
    await rollups.rebuild(connection, begin, datetime(2021, 2, 1, tzinfo=UTC))
    assert await connection.fetch(sql) == before


async def _asked(dsn: str, year: Year) -> None:
    """As users ask: by days of the plant's own calendar, by week, and for what came late."""
    database = Database(dsn, pool_size=1, synchronous_commit="on")
    await database.open()
    try:

        async def count(begin: datetime, end: datetime) -> int:
            question = Question(wanted=Filter(scope=ALL), begin=begin.astimezone(UTC), end=end.astimezone(UTC))
            return sum(answer.tally.events for answer in await rollups.read(database, question))

        for day, hours, late in ((LEAP_DAY, 24, 0), (SUMMER, 23, 6), (WINTER, 25, 0), (WINTER + DAY, 24, 0)):
            begin = datetime(day.year, day.month, day.day, tzinfo=PLANT)
            assert await count(begin, begin + DAY) == hours + late, day
        assert (WEEK_53.isocalendar()[:2], (WEEK_53 + 7 * DAY).isocalendar()[:2]) == ((2020, 53), (2021, 1))
        assert await count(WEEK_53, WEEK_53 + 7 * DAY) == 7 * 24
        assert await count(datetime(2020, 1, 1, tzinfo=UTC), datetime(2021, 3, 1, tzinfo=UTC)) == len(year.came)
        begin = datetime(2020, 3, 29, tzinfo=UTC)
        wanted = Filter(scope=ALL, begin=begin, end=begin + DAY)
        found = await events.page(database, wanted, after=None, order="asc", limit=100)
        came = sorted(row.time for row in year.left if row.time.date() == SUMMER)
        assert [(row["time"], row["time_flag"]) for row in found] == [(time, "late") for time in came]
        assert len(came) == 4, "two readings of November have had their time"
        # Late, and of a day that is there: as any other.
        begin = datetime(2021, 1, 5, 12, tzinfo=UTC)
        found = await events.page(
            database, Filter(scope=ALL, begin=begin, end=begin + DAY / 24), after=None, order="asc", limit=100
        )
        assert [(row["received"].day, row["time_flag"]) for row in found] == [(6, None), (15, None)]
    finally:
        await database.close()
