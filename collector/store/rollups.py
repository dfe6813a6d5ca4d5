"""Roll-ups: written with the events, folded behind, read together.

`append` writes a request's tallies to `metric_deltas` in the request's own transaction. `fold` moves deltas into `event_metrics`: hour,
day, week and month, each by place and for everywhere together (place 0). Folding is one transaction of one collector at a time (an advisory
lock): a reader sees a delta either there or folded, never both and never neither. `rebuild` makes hours anew from the events, by the same
rule.

Only whole hours are asked for. `pieces` covers a period with as few rows as there are: whole months, whole days, single hours.
"""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from collector.store.events import Filter, Where, fetch_bounded, places_conditions, types_condition
from collector.store.rows import FUTURE_S_MAX
from collector.store.tally import HOUR_US, Groups, Tallies, Tally, merge_into

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from collector.store.database import Anyone, Database, Plain

Period = Literal["hour", "day", "week", "month"]
PERIODS: tuple[Period, ...] = ("hour", "day", "week", "month")
ADVISORY_LOCK = 0x4C57_0003
EVERYWHERE = 0
FOLD_ROWS_MAX = 20_000
"""Deltas folded in one transaction; more wait for the next one, which follows at once."""
REBUILD_ROWS = 5_000
CHECK_S_MAX = 3_600.0
GROUPS_MAX = 10_000
"""Groups of one answer. More are refused by `TooMany`: the question is to be made narrower."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
DIMENSIONS = ("type", "category", "severity", "source", "outcome", "site", "line", "station")

_MEASURED = tuple(
    f"{name}_{part}" for name in ("latency", "processing") for part in ("count", "sum", "min", "max", "bins")
)
_KEY = ("type", "category", "severity", "source", "outcome")
_VALUES = ("events", *_MEASURED)


class TooMany(Exception):
    """An answer of more groups than GROUPS_MAX."""


class Cell(NamedTuple):
    """One row of event_metrics, but for its values."""

    period: Period
    bucket: datetime
    place_id: int
    type: str
    category: str
    severity: int
    source: str
    outcome: str


Cells = dict[Cell, Tally]


def bucket_of(moment: datetime, period: Period) -> datetime:
    """When the period of a moment begins, UTC."""
    moment = moment.astimezone(UTC)
    hour = moment.replace(minute=0, second=0, microsecond=0)
    if period == "hour":
        return hour
    day = hour.replace(hour=0)
    if period == "day":
        return day
    return day - timedelta(days=day.weekday()) if period == "week" else day.replace(day=1)


def after(bucket: datetime, period: Period) -> datetime:
    """When the next period begins."""
    if period == "month":
        return (bucket.replace(day=28) + timedelta(days=4)).replace(day=1)
    return bucket + {"hour": HOUR, "day": DAY, "week": 7 * DAY}[period]


def _values(tally: Tally) -> tuple[Any, ...]:
    out: list[Any] = [tally.events]
    for measure in (tally.latency, tally.processing):
        out += (measure.count, measure.total, measure.low, measure.high, measure.encode())
    return tuple(out)


def _tally(row: Any) -> Tally:
    tally = Tally(row["events"])
    for name, measure in (("latency", tally.latency), ("processing", tally.processing)):
        measure.merge_stored(
            row[f"{name}_count"],
            int(row[f"{name}_sum"]),
            row[f"{name}_min"],
            row[f"{name}_max"],
            (row[f"{name}_bins"],),
        )
    return tally


async def append(connection: "Anyone", place_id: int, tallies: Tallies) -> None:
    """Write what a request adds, within its transaction."""
    records = [(EPOCH + HOUR * key.hour, place_id, *key[1:], *_values(tally)) for key, tally in tallies.items()]
    await connection.copy_records_to_table(
        "metric_deltas", columns=("hour", "place_id", *_KEY, *_VALUES), records=records
    )


async def fold(connection: "Anyone") -> int:
    """Fold some deltas; how many. 0 also where another collector is folding."""
    async with connection.transaction():
        if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", ADVISORY_LOCK):
            return 0
        rows = await connection.fetch(_TAKE, FOLD_ROWS_MAX)
        if rows:
            cells = await asyncio.to_thread(_spread, rows)
            await _add(connection, cells)
        return len(rows)


def _spread(rows: "Iterable[Any]") -> Cells:
    """Every cell that deltas add to: first added up by place and hour, so that what follows is done once an hour and not once a request."""
    hours: Cells = {}
    for row in rows:
        cell = Cell("hour", row["hour"], row["place_id"], *(row[name] for name in _KEY))
        _merge(hours, cell, _tally(row))
    return spread(hours)


def spread(hours: Cells) -> Cells:
    """The cells of hours, and of every other period and place that they are part of."""
    cells: Cells = dict(hours)
    everywhere: Cells = {}
    for cell, tally in hours.items():
        _merge(everywhere, cell._replace(place_id=EVERYWHERE), _copy(tally))
    cells.update(everywhere)
    days: Cells = {}
    for part in (hours, everywhere):
        for cell, tally in part.items():
            _merge(days, cell._replace(period="day", bucket=bucket_of(cell.bucket, "day")), _copy(tally))
    cells.update(days)
    longer: tuple[Period, ...] = ("week", "month")
    for cell, tally in days.items():
        for period in longer:
            _merge(cells, cell._replace(period=period, bucket=bucket_of(cell.bucket, period)), _copy(tally))
    return cells


def _copy(tally: Tally) -> Tally:
    copied = Tally()
    copied.merge(tally)
    return copied


def _merge(cells: Cells, cell: Cell, tally: Tally) -> None:
    if (known := cells.get(cell)) is None:
        cells[cell] = tally
    else:
        known.merge(tally)


async def _add(connection: "Anyone", cells: Cells) -> None:
    """Add cells to what is stored. The caller holds the lock."""
    keys = list(zip(*cells, strict=True))
    for row in await connection.fetch(_STORED, *keys):
        cells[Cell(*(row[name] for name in Cell._fields))].merge(_tally(row))
    await _write(connection, cells)


async def _write(connection: "Anyone", cells: Cells) -> None:
    if not cells:
        return
    keys = list(zip(*cells, strict=True))
    values = list(zip(*map(_values, cells.values()), strict=True))
    await connection.execute(_UPSERT, *keys, *values)


async def rebuild(connection: "Plain", begin: datetime, end: datetime) -> int:
    """Make the roll-ups of whole hours anew from the events, and the longer periods that they lie in; how many events.

    One transaction with one view of the database: what is stored meanwhile is not in the view, neither as events nor as deltas; its deltas
    stay and are folded after. The lock keeps folding out, and is had before the view is.
    """
    begin, end = bucket_of(begin, "hour"), bucket_of(end + HOUR - timedelta(microseconds=1), "hour")
    await connection.execute("SELECT pg_advisory_lock($1)", ADVISORY_LOCK)
    try:
        async with connection.transaction(isolation="repeatable_read"):
            for table, column in (("metric_deltas", "hour"), ("event_metrics", "bucket")):
                only = "AND period = 'hour'" if table == "event_metrics" else ""
                await connection.execute(
                    f"DELETE FROM {table} WHERE {column} >= $1 AND {column} < $2 {only}", begin, end
                )
            events, day = 0, begin
            while day < end:
                following = min(bucket_of(day, "day") + DAY, end)
                events += await _rebuild_hours(connection, day, following)
                await _sum_up(connection, "hour", "day", bucket_of(day, "day"))
                day = following
            for period in ("week", "month"):
                bucket = bucket_of(begin, period)
                while bucket < end:
                    await _sum_up(connection, "day", period, bucket)
                    bucket = after(bucket, period)
    finally:
        if not connection.is_closed():
            await connection.execute("SELECT pg_advisory_unlock($1)", ADVISORY_LOCK)
    return events


async def _rebuild_hours(connection: "Plain", begin: datetime, end: datetime) -> int:
    by_place: dict[int, Tallies] = {}
    count = 0
    earliest = begin - timedelta(seconds=FUTURE_S_MAX)
    cursor = connection.cursor(_EVENTS, begin, end, earliest, prefetch=REBUILD_ROWS)
    chunk: list[Any] = []
    async for row in cursor:
        chunk.append(row)
        if len(chunk) == REBUILD_ROWS:
            count += _count(by_place, chunk)
            chunk.clear()
    count += _count(by_place, chunk)
    cells: Cells = {}
    for place_id, tallies in by_place.items():
        for key, tally in tallies.items():
            bucket = EPOCH + HOUR * key.hour
            _merge(cells, Cell("hour", bucket, place_id, *key[1:]), tally)
            _merge(cells, Cell("hour", bucket, EVERYWHERE, *key[1:]), _copy(tally))
    await _write(connection, cells)
    return count


def _count(by_place: dict[int, Tallies], rows: "Sequence[Any]") -> int:
    groups: dict[int, Groups] = {}
    for row in rows:
        received, us = row["received_us"], row["time_us"]
        of_place = groups.setdefault(row["place_id"], Groups())
        group = of_place[us // HOUR_US, row["type"], row["severity"], row["source"], row["outcome"]]
        if row["time_flag"] is None:
            group.latencies.append(received - us)
        else:
            group.flagged.append(None)
        if row["observed_us"] is not None:
            group.processings.append(received - row["observed_us"])
    for place_id, found in groups.items():
        merge_into(by_place.setdefault(place_id, {}), found.tallies())
    return len(rows)


async def _sum_up(connection: "Plain", part: Period, whole: Period, bucket: datetime) -> None:
    """Make one longer period anew from its parts."""
    cells: Cells = {}
    async for row in connection.cursor(_PARTS, part, bucket, after(bucket, whole), prefetch=REBUILD_ROWS):
        _merge(cells, Cell(whole, bucket, row["place_id"], *(row[name] for name in _KEY)), _tally(row))
    await connection.execute("DELETE FROM event_metrics WHERE period = $1 AND bucket = $2", whole, bucket)
    await _write(connection, cells)


async def differing(connection: "Anyone", begin: datetime, end: datetime, limit: int) -> "Sequence[Any]":
    """Cells of whole hours that are not what the events of that time add up to, what is not folded yet included: at most `limit`."""
    earliest = begin - timedelta(seconds=FUTURE_S_MAX)
    return await connection.fetch(_DIFFERING, begin, end, earliest, limit, timeout=CHECK_S_MAX)


async def unsummed(connection: "Anyone", limit: int) -> "Sequence[Any]":
    """Cells of longer periods, or of all places together, that are not the sum of their parts: at most `limit`."""
    found: list[Any] = []
    parts: tuple[tuple[Period, Period], ...] = (("hour", "day"), ("day", "week"), ("day", "month"))
    for part, whole in parts:
        found += await connection.fetch(_UNSUMMED, part, whole, limit, timeout=CHECK_S_MAX)
    found += await connection.fetch(_UNPLACED, limit, timeout=CHECK_S_MAX)
    return found[:limit]


async def hours(connection: "Anyone", since: datetime | None) -> list[datetime]:
    """The hours that have cells, or would have, from `since` on."""
    rows = await connection.fetch(_HOURS, since or EPOCH, timeout=CHECK_S_MAX)
    return [row[0] for row in rows]


def pieces(begin: datetime, end: datetime) -> "Iterator[tuple[Period, datetime, datetime]]":
    """Whole months, days and hours that make up a period of whole hours."""
    if begin >= end:
        return
    for period in ("month", "day"):
        first, last = bucket_of(begin, period), bucket_of(end, period)
        if first < begin:
            first = after(first, period)
        if first < last:
            yield from pieces(begin, first)
            yield period, first, last
            yield from pieces(last, end)
            return
    yield "hour", begin, end


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of the roll-ups. `series`: also by this period. `group`: names of DIMENSIONS."""

    wanted: Filter
    begin: datetime
    end: datetime
    group: tuple[str, ...] = ()
    series: Period | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One group: its bucket where a series was asked for, its values of the dimensions, and what was counted."""

    bucket: datetime | None
    group: tuple[str | int, ...]
    tally: Tally


async def read(database: "Database", question: Question) -> list[Answer]:
    """Counts and measures of events by group. Raises TooMany, BadFilter, TooSlow."""
    sql, arguments = _sql(question)
    async with database.connection() as connection:
        rows = await fetch_bounded(connection, sql, arguments)
    if len(rows) > GROUPS_MAX:
        raise TooMany(f"the answer has more than {GROUPS_MAX} groups")
    return await asyncio.to_thread(lambda: [_answer(row, question.group) for row in rows])


def _answer(row: Any, group: tuple[str, ...]) -> Answer:
    tally = Tally(int(row["events"]))
    for name, measure in (("latency", tally.latency), ("processing", tally.processing)):
        measure.merge_stored(
            int(row[f"{name}_count"]),
            int(row[f"{name}_sum"]),
            row[f"{name}_min"],
            row[f"{name}_max"],
            (row[f"{name}_bins"] or b"",),
        )
    return Answer(row["bucket"], tuple(row[name] for name in group), tally)


def _sql(question: Question) -> tuple[str, list[Any]]:
    w = Where()
    begin, end = w.bind(question.begin), w.bind(question.end)
    places = places_conditions(w, question.wanted)
    by_place = any(name in ("site", "line", "station") for name in question.group)
    of_places = bool(places) or by_place
    conditions = [*places, *_conditions(w, question.wanted)]
    columns = f"place_id, {', '.join((*_KEY, *_VALUES))}"
    where = " AND ".join(["true", *conditions])
    somewhere = "place_id <> 0" if of_places else "place_id = 0"
    if question.series is None:
        parts = [
            f"SELECT NULL::timestamptz AS bucket, {columns} FROM event_metrics "
            f"WHERE period = '{period}' AND bucket >= {w.bind(first)} AND bucket < {w.bind(last)} AND {somewhere} AND {where}"
            for period, first, last in pieces(question.begin, question.end)
        ]
        truncated = "NULL::timestamptz"
    else:
        parts = [
            (
                f"SELECT bucket, {columns} FROM event_metrics "
                f"WHERE period = '{question.series}' AND bucket >= {begin} AND bucket < {end} AND {somewhere} AND {where}"
            )
        ]
        truncated = f"date_trunc('{question.series}', hour, 'UTC')"
    parts.append(f"SELECT {truncated}, {columns} FROM metric_deltas WHERE hour >= {begin} AND hour < {end} AND {where}")
    named = ", ".join(["bucket", *question.group])
    sums = ", ".join(_SUMS)
    joined = "JOIN places p USING (place_id)" if by_place else ""
    sql = (
        f"WITH picked AS ({' UNION ALL '.join(parts)}) SELECT {named}, {sums} FROM picked {joined} "
        f"GROUP BY {named} ORDER BY {named} LIMIT {GROUPS_MAX + 1}"
    )
    return sql, w.arguments


def _conditions(w: Where, wanted: Filter) -> list[str]:
    inner = Where()
    inner.arguments = w.arguments
    types_condition(inner, wanted.types, "type")
    inner.any_of("category", "text", wanted.categories)
    if wanted.severity_min is not None:
        inner.add("severity >= {}::smallint", wanted.severity_min)
    inner.any_of("severity", "smallint", wanted.severities)
    inner.any_of("source", "text", wanted.sources)
    inner.any_of("outcome", "text", wanted.outcomes)
    return inner.conditions


_SUMS = (
    "sum(events) AS events",
    *(
        f"sum({name}_count) AS {name}_count, sum({name}_sum) AS {name}_sum, min({name}_min) AS {name}_min, max({name}_max) AS {name}_max, "
        f"string_agg({name}_bins, ''::bytea) FILTER (WHERE {name}_count > 0) AS {name}_bins"
        for name in ("latency", "processing")
    ),
)
_TAKE = f"""
DELETE FROM metric_deltas WHERE delta_id IN (SELECT delta_id FROM metric_deltas ORDER BY delta_id LIMIT $1)
RETURNING hour, place_id, {", ".join((*_KEY, *_VALUES))}
"""
_KEY_ARRAYS = (
    "$1::text[], $2::timestamptz[], $3::integer[], $4::text[], $5::text[], $6::smallint[], $7::text[], $8::text[]"
)
_STORED = f"""
SELECT m.* FROM unnest({_KEY_ARRAYS}) AS k (period, bucket, place_id, type, category, severity, source, outcome)
JOIN event_metrics m USING (period, bucket, place_id, type, category, severity, source, outcome)
"""
_UPSERT = f"""
INSERT INTO event_metrics ({", ".join(Cell._fields)}, {", ".join(_VALUES)})
SELECT * FROM unnest({_KEY_ARRAYS}, $9::bigint[], $10::bigint[], $11::numeric[], $12::bigint[], $13::bigint[], $14::bytea[],
    $15::bigint[], $16::numeric[], $17::bigint[], $18::bigint[], $19::bytea[])
ON CONFLICT (period, place_id, bucket, type, category, severity, source, outcome) DO UPDATE SET
    {", ".join(f"{name} = excluded.{name}" for name in _VALUES)}
"""
_EVENTS = """
SELECT place_id, type, severity, source, outcome, time_flag,
       (extract(epoch FROM received) * 1000000)::bigint AS received_us, (extract(epoch FROM time) * 1000000)::bigint AS time_us,
       (extract(epoch FROM observed) * 1000000)::bigint AS observed_us
FROM security_events WHERE time >= $1 AND time < $2 AND received >= $3
"""
_NUMBERS = (
    "events",
    *(f"{name}_{part}" for name in ("latency", "processing") for part in ("count", "sum", "min", "max")),
)
_ADDED = ", ".join(
    f"{'min' if name.endswith('_min') else 'max' if name.endswith('_max') else 'sum'}({name})::numeric AS {name}"
    for name in _NUMBERS
)
_CELL = "bucket, place_id, type, category, severity, source, outcome"
_DIFFER = " OR ".join(f"s.{name} IS DISTINCT FROM c.{name}" for name in _NUMBERS)
_LATENCY, _PROCESSING = (
    f"(extract(epoch FROM received - {column}) * 1000000)::bigint" for column in ("time", "observed")
)
_DIFFERING = f"""
WITH s AS (
    SELECT {_CELL}, {_ADDED} FROM (
        SELECT {_CELL}, {", ".join(_NUMBERS)} FROM event_metrics
        WHERE period = 'hour' AND place_id <> 0 AND bucket >= $1 AND bucket < $2
        UNION ALL SELECT hour, place_id, type, category, severity, source, outcome, {", ".join(_NUMBERS)} FROM metric_deltas
        WHERE hour >= $1 AND hour < $2
    ) AS parts GROUP BY {_CELL}
), c AS (
    SELECT date_trunc('hour', time, 'UTC') AS bucket, place_id, type, category, severity, left(source, 200) AS source,
        left(coalesce(outcome, ''), 200) AS outcome, count(*)::numeric AS events,
        count(*) FILTER (WHERE time_flag IS NULL)::numeric AS latency_count,
        coalesce(sum({_LATENCY}) FILTER (WHERE time_flag IS NULL), 0)::numeric AS latency_sum,
        min({_LATENCY}) FILTER (WHERE time_flag IS NULL)::numeric AS latency_min,
        max({_LATENCY}) FILTER (WHERE time_flag IS NULL)::numeric AS latency_max,
        count(observed)::numeric AS processing_count, coalesce(sum({_PROCESSING}), 0)::numeric AS processing_sum,
        min({_PROCESSING})::numeric AS processing_min, max({_PROCESSING})::numeric AS processing_max
    FROM security_events WHERE time >= $1 AND time < $2 AND received >= $3 GROUP BY 1, 2, 3, 4, 5, 6, 7
)
SELECT {_CELL}, coalesce(s.events, 0) AS said, coalesce(c.events, 0) AS counted FROM s FULL JOIN c USING ({_CELL})
WHERE {_DIFFER} ORDER BY bucket, place_id LIMIT $4
"""
_UNSUMMED = f"""
WITH c AS (
    SELECT date_trunc($2, bucket, 'UTC') AS bucket, place_id, type, category, severity, source, outcome, {_ADDED}
    FROM event_metrics WHERE period = $1 GROUP BY 1, 2, 3, 4, 5, 6, 7
), s AS (SELECT {_CELL}, {", ".join(_NUMBERS)} FROM event_metrics WHERE period = $2)
SELECT $2 AS period, {_CELL}, coalesce(s.events, 0) AS said, coalesce(c.events, 0) AS counted FROM s FULL JOIN c USING ({_CELL})
WHERE {_DIFFER} ORDER BY bucket, place_id LIMIT $3
"""
_UNPLACED = f"""
WITH c AS (
    SELECT bucket, 0 AS place_id, type, category, severity, source, outcome, {_ADDED}
    FROM event_metrics WHERE period = 'hour' AND place_id <> 0 GROUP BY 1, 3, 4, 5, 6, 7
), s AS (SELECT {_CELL}, {", ".join(_NUMBERS)} FROM event_metrics WHERE period = 'hour' AND place_id = 0)
SELECT 'hour' AS period, {_CELL}, coalesce(s.events, 0) AS said, coalesce(c.events, 0) AS counted FROM s FULL JOIN c USING ({_CELL})
WHERE {_DIFFER} ORDER BY bucket LIMIT $1
"""
_HOURS = """
SELECT DISTINCT bucket FROM (
    SELECT bucket FROM event_metrics WHERE period = 'hour' AND place_id = 0 AND bucket >= $1
    UNION ALL SELECT hour FROM metric_deltas WHERE hour >= $1
    UNION ALL SELECT bucket FROM event_metrics WHERE period = 'hour' AND bucket >= $1
) AS h ORDER BY 1
"""
_PARTS = f"""
SELECT place_id, {", ".join((*_KEY, *_VALUES))} FROM event_metrics WHERE period = $1 AND bucket >= $2 AND bucket < $3
"""
