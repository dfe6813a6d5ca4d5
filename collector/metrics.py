"""Statistics and roll-ups: counts, rates and percentiles of any period, from `event_metrics` and never from a scan of events.

A period is made of whole hours: `from` is rounded down and `to` up, and the answer names what it covers. Times of percentiles are
milliseconds, within 2 % of the true value; least, greatest and mean are exact.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from litestar import get
from litestar.datastructures import State
from litestar.di import Provide
from litestar.params import QueryParameter
from msgspec import Struct

from collector.problems import Problem
from collector.query import provide_filter
from collector.store import condition, rollups
from collector.store.database import Database
from collector.store.events import BadFilter, Filter, TooSlow
from collector.store.rollups import Answer, Period, Question, bucket_of
from collector.store.sketch import Measure

YEARS_MAX = 20
BUCKETS_MAX = 10_000
QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
FILTERS = frozenset(
    {
        "from", "to", "site", "line", "station", "type", "category", "severity", "severity_in", "source", "outcome",
    }
)  # fmt: skip
Dimension = Literal["type", "category", "severity", "source", "outcome", "site", "line", "station"]
_Group = Annotated[
    list[Dimension] | None, QueryParameter(name="group", description="Count apart by these; none: all together")
]


class Times(Struct):
    """How long something took, milliseconds; null where nothing was measured."""

    count: int
    min: float | None
    max: float | None
    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None


class GroupOut(Struct):
    """One group. `latency`: happened → stored. `processing`: seen by the agent → stored."""

    group: dict[str, str | int]
    events: int
    per_hour: float
    latency: Times
    processing: Times


class Statistics(Struct):
    """The groups of a period, from the largest on."""

    begin: datetime
    end: datetime
    events: int
    groups: list[GroupOut]


class BucketOut(Struct):
    """One group in one hour, day, week or month, which begins at `bucket`."""

    bucket: datetime
    group: dict[str, str | int]
    events: int
    latency: Times
    processing: Times


class Metrics(Struct):
    """Roll-ups in the order of time. A bucket without events is left out."""

    period: Period
    begin: datetime
    end: datetime
    buckets: list[BucketOut]


def _ms(us: float | None) -> float | None:
    return None if us is None else round(us / 1000, 3)


def _times(measure: Measure) -> Times:
    quantiles = dict(zip(QUANTILES, map(_ms, measure.quantiles(QUANTILES.values())), strict=True))
    return Times(measure.count, _ms(measure.low), _ms(measure.high), _ms(measure.mean), **quantiles)


def _named(answer: Answer, group: tuple[str, ...]) -> dict[str, str | int]:
    return dict(zip(group, answer.group, strict=True))


def period_of(wanted: Filter, now: datetime, default: timedelta) -> tuple[datetime, datetime]:
    """Whole hours that cover what is asked for. Raises Problem."""
    try:
        end = bucket_of((wanted.end or now) + timedelta(hours=1) - timedelta(microseconds=1), "hour")
        begin = bucket_of(wanted.begin or end - default, "hour")
    except OverflowError:
        raise Problem(400, "from, to: beyond the calendar", code="filter") from None
    if begin >= end:
        raise Problem(400, "from has to be before to", code="filter")
    if end - begin > timedelta(days=366 * YEARS_MAX):
        raise Problem(400, f"from … to: more than {YEARS_MAX} years", code="filter")
    return begin, end


async def _read(database: Database, question: Question) -> list[Answer]:
    try:
        return await rollups.read(database, question)
    except (BadFilter, rollups.TooMany) as error:
        raise Problem(400, f"{error}. Narrow it: a shorter period, fewer groups", code="filter") from None
    except TooSlow as error:
        raise Problem(504, f"{error}. Narrow it: a shorter period, fewer groups", code="slow") from None


@get(
    "/v1/statistics",
    opt={"access": "read", "filters": FILTERS, "parameters": frozenset({"group"})},
    dependencies={"wanted": Provide(provide_filter)},
    tags=["metrics"],
    summary="Counts, rates and percentiles over a period",
)
async def get_statistics(state: State, wanted: Filter, group: _Group = None) -> Statistics:
    """The last 24 hours unless asked otherwise."""
    begin, end = period_of(wanted, datetime.now(UTC), timedelta(days=1))
    names = tuple(dict.fromkeys(group or ()))
    database: Database = state.database
    question = Question(wanted=replace(wanted, begin=None, end=None), begin=begin, end=end, group=names)
    answers = [answer for answer in await _read(database, question) if answer.tally.events]
    hours = (end - begin) / timedelta(hours=1)
    groups = [
        GroupOut(_named(a, names), a.tally.events, round(a.tally.events / hours, 6), _times(a.tally.latency), _times(a.tally.processing))
        for a in sorted(answers, key=lambda a: -a.tally.events)
    ]  # fmt: skip
    return Statistics(begin, end, sum(a.tally.events for a in answers), groups)


_LAST: dict[Period, timedelta] = {
    "hour": timedelta(days=2), "day": timedelta(days=31), "week": timedelta(weeks=26), "month": timedelta(days=366),
}  # fmt: skip


@get(
    "/v1/metrics",
    opt={"access": "read", "filters": FILTERS, "parameters": frozenset({"group", "period"})},
    dependencies={"wanted": Provide(provide_filter)},
    tags=["metrics"],
    summary="Roll-ups by hour, day, week or month",
)
async def get_metrics(
    state: State,
    wanted: Filter,
    period: Annotated[Period, QueryParameter(name="period", description="Weeks begin on Monday; all in UTC")] = "hour",
    group: _Group = None,
) -> Metrics:
    """Every bucket that begins within the period asked for, the one that `from` lies in included."""
    begin, end = period_of(wanted, datetime.now(UTC), _LAST[period])
    begin = bucket_of(begin, period)
    if (end - begin) / timedelta(hours=1) > BUCKETS_MAX and period == "hour":
        raise Problem(400, f"more than {BUCKETS_MAX} hours. Ask for days, or for a shorter period", code="filter")
    names = tuple(dict.fromkeys(group or ()))
    question = Question(wanted=replace(wanted, begin=None, end=None), begin=begin, end=end, group=names, series=period)
    buckets = [
        BucketOut(answer.bucket, _named(answer, names), answer.tally.events, _times(answer.tally.latency), _times(answer.tally.processing))
        for answer in await _read(state.database, question)
        if answer.bucket is not None
    ]  # fmt: skip
    return Metrics(period, begin, end, buckets)


@get(
    "/v1/storage",
    opt={"access": "audit"},
    tags=["health"],
    summary="The state of the database: tables, partitions, sizes",
)
async def get_storage(state: State) -> condition.Storage:
    """Estimates and sizes, without a scan."""
    database: Database = state.database
    async with database.connection() as connection:
        return await condition.look(connection)


ROUTES: list[Any] = [get_statistics, get_metrics, get_storage]
