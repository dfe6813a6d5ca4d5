"""What analytics ask of the tables: counts in order of time, by one thing or by two. Never a scan of events.

Every question has a Filter with the scope of its caller, and an answer of at most CELLS_MAX rows; more is refused by `TooMany`.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from collector.store.events import Filter, Where, fetch_bounded, places_conditions, types_condition
from collector.store.rollups import TooMany, pieces

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collector.store.database import Database

CELLS_MAX = 200_000
Step = Literal["10min", "hour", "day"]
STEPS: dict[Step, timedelta] = {"10min": timedelta(minutes=10), "hour": timedelta(hours=1), "day": timedelta(days=1)}
Entity = Literal["user", "address"]
PLACES = ("site", "line", "station")
STATION = "concat_ws('/', p.site, p.line, p.station)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Which events, and when."""

    wanted: Filter
    begin: datetime
    end: datetime


def _dimension(name: str) -> str:
    """The expression of a dimension. Lines and stations are named with what they belong to: a name is not unique in a fleet."""
    if name == "site":
        return "p.site"
    if name == "line":
        return "concat_ws('/', p.site, p.line)"
    return STATION if name == "station" else name


def _conditions(w: Where, wanted: Filter, *, source: bool, outcome: bool, severity: bool = True) -> str:
    """The conditions of a filter that a table can answer; the routes refuse the others."""
    w.conditions += places_conditions(w, wanted)
    types_condition(w, wanted.types, "type")
    if severity:
        if wanted.severity_min is not None:
            w.add("severity >= {}::smallint", wanted.severity_min)
        w.any_of("severity", "smallint", wanted.severities)
    if source:
        w.any_of("source", "text", wanted.sources)
    if outcome:
        w.any_of("category", "text", wanted.categories)
        w.any_of("outcome", "text", wanted.outcomes)
    return str(w)


async def _fetch(database: "Database", sql: str, arguments: "Sequence[Any]") -> "Sequence[Any]":
    async with database.connection() as connection:
        rows = await fetch_bounded(connection, f"{sql} LIMIT {CELLS_MAX + 1}", arguments)
    if len(rows) > CELLS_MAX:
        raise TooMany(f"this takes more than {CELLS_MAX} counts")
    return rows


def _rolled(w: Where, span: Span, step: Step | None, *, places: bool) -> str:
    """A sub-select of the roll-ups, folded or not, as (bucket, …)."""
    begin, end = w.bind(span.begin), w.bind(span.end)
    where = _conditions(w, span.wanted, source=True, outcome=True)
    somewhere = "place_id <> 0" if places or "place_id" in where else "place_id = 0"
    columns = "place_id, type, category, severity, source, outcome, events"
    if step is None:
        parts = [
            f"SELECT NULL::timestamptz AS bucket, {columns} FROM event_metrics WHERE period = '{period}' "
            f"AND bucket >= {w.bind(first)} AND bucket < {w.bind(last)} AND {somewhere} AND {where}"
            for period, first, last in pieces(span.begin, span.end)
        ]
        of_delta = "NULL::timestamptz"
    else:
        parts = [
            (
                f"SELECT bucket, {columns} FROM event_metrics WHERE period = '{step}' AND bucket >= {begin} AND bucket < {end} "
                f"AND {somewhere} AND {where}"
            )
        ]
        of_delta = f"date_trunc('{step}', hour, 'UTC')"
    parts.append(f"SELECT {of_delta}, {columns} FROM metric_deltas WHERE hour >= {begin} AND hour < {end} AND {where}")
    return " UNION ALL ".join(parts)


async def series(database: "Database", span: Span, step: Step, dimension: str | None) -> "Sequence[Any]":
    """Rows of (bucket, key, events); without a dimension the key is empty."""
    if dimension in ("user", "address"):
        return await entity_series(database, span, step, "user" if dimension == "user" else "address")
    w = Where()
    key = _dimension(dimension) if dimension else "''"
    places = dimension in PLACES
    joined = "JOIN places p USING (place_id)" if places else ""
    if step == "10min":
        w.add("bucket >= {}::timestamptz", span.begin)
        w.add("bucket < {}::timestamptz", span.end)
        where = _conditions(w, span.wanted, source=True, outcome=False)
        inner = f"SELECT * FROM activity WHERE {where}"
    else:
        inner = _rolled(w, span, step, places=places)
    sql = (
        f"SELECT bucket, ({key})::text AS key, sum(events)::bigint AS events FROM ({inner}) AS e {joined} "
        f"GROUP BY 1, 2 ORDER BY 1, 2"
    )
    return await _fetch(database, sql, w.arguments)


async def entity_series(database: "Database", span: Span, step: Step, kind: Entity) -> "Sequence[Any]":
    """Rows of (bucket, key, events) of users or addresses, by the hour or the day."""
    w = Where()
    where = _of_entities(w, span, kind)
    unit = "day" if step == "day" else "hour"
    sql = (
        f"SELECT date_trunc('{unit}', hour, 'UTC') AS bucket, entity AS key, sum(events)::bigint AS events FROM entity_activity "
        f"WHERE {where} GROUP BY 1, 2 ORDER BY 1, 2"
    )
    return await _fetch(database, sql, w.arguments)


def _of_entities(w: Where, span: Span, kind: Entity) -> str:
    w.add("hour >= {}::timestamptz", span.begin)
    w.add("hour < {}::timestamptz", span.end)
    w.add("kind = {}::text", kind)
    return _conditions(w, span.wanted, source=False, outcome=False)


async def crossed(database: "Database", span: Span, one: str, other: str) -> "Sequence[Any]":
    """Rows of (a, b, events, failures): how often two dimensions had two values together over the whole span."""
    w = Where()
    if one in ("user", "address"):
        where = _of_entities(w, span, "user" if one == "user" else "address")
        sql = (
            f"SELECT entity AS a, ({_dimension(other)})::text AS b, sum(events)::bigint AS events, sum(failures)::bigint AS failures "
            f"FROM entity_activity JOIN places p USING (place_id) WHERE {where} GROUP BY 1, 2 ORDER BY 1, 2"
        )
        return await _fetch(database, sql, w.arguments)
    places = one in PLACES or other in PLACES
    joined = "JOIN places p USING (place_id)" if places else ""
    inner = _rolled(w, span, None, places=places)
    sql = (
        f"SELECT ({_dimension(one)})::text AS a, ({_dimension(other)})::text AS b, sum(events)::bigint AS events, "
        "coalesce(sum(events) FILTER (WHERE outcome = 'failure'), 0)::bigint AS failures "
        f"FROM ({inner}) AS e {joined} GROUP BY 1, 2 ORDER BY 1, 2"
    )
    return await _fetch(database, sql, w.arguments)


async def of_whom(database: "Database", span: Span, per: str) -> "Sequence[Any]":
    """Rows of (key, type, severity, events, failures) per place, user or address: what risk is made of."""
    w = Where()
    if per in ("user", "address"):
        where = _of_entities(w, span, "user" if per == "user" else "address")
        inner, key, failed, joined = f"SELECT * FROM entity_activity WHERE {where}", "entity", "sum(failures)", ""
    else:
        inner, key = _rolled(w, span, None, places=True), _dimension(per)
        failed = "coalesce(sum(events) FILTER (WHERE outcome = 'failure'), 0)"
        joined = "JOIN places p USING (place_id)"
    sql = (
        f"SELECT ({key})::text AS key, type, severity, sum(events)::bigint AS events, ({failed})::bigint AS failures "
        f"FROM ({inner}) AS e {joined} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    )
    return await _fetch(database, sql, w.arguments)


async def windows(database: "Database", span: Span, dimension: str) -> "Sequence[Any]":
    """Rows of (bucket, station, key): what was there in each ten minutes at each station."""
    w = Where()
    w.add("bucket >= {}::timestamptz", span.begin)
    w.add("bucket < {}::timestamptz", span.end)
    where = _conditions(w, span.wanted, source=True, outcome=False)
    sql = (
        f"SELECT bucket, place_id, ({_dimension(dimension)})::text AS key FROM activity JOIN places p USING (place_id) WHERE {where} "
        "GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    )
    return await _fetch(database, sql, w.arguments)


async def transitions(database: "Database", span: Span, kind: str) -> "Sequence[Any]":
    """Rows of (entity, before, after, events)."""
    w = Where()
    w.add("day >= {}::timestamptz", span.begin)
    w.add("day < {}::timestamptz", span.end)
    w.add("kind = {}::text", kind)
    w.conditions += places_conditions(w, span.wanted)
    if kind == "source":
        w.any_of("entity", "text", span.wanted.sources)
    types_condition(w, span.wanted.types, "after")
    sql = f"SELECT entity, before, after, sum(events)::bigint AS events FROM transitions WHERE {w} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    return await _fetch(database, sql, w.arguments)


async def readings(database: "Database", span: Span, signals: tuple[str, ...]) -> "Sequence[Any]":
    """Rows of (hour, station, source, signal, kind, readings, mean, high)."""
    w = Where()
    w.add("hour >= {}::timestamptz", span.begin)
    w.add("hour < {}::timestamptz", span.end)
    w.conditions += places_conditions(w, span.wanted)
    w.any_of("source", "text", span.wanted.sources)
    w.any_of("signal", "text", signals)
    sql = (
        f"SELECT hour, {STATION} AS station, source, signal, kind, readings, total / readings AS mean, low, high FROM signals "
        f"JOIN places p USING (place_id) WHERE {w} ORDER BY 2, 3, 4, 5, 1"
    )
    return await _fetch(database, sql, w.arguments)


async def first_hour(database: "Database", span: Span) -> datetime | None:
    """When the roll-ups of a caller's places begin: before it there is nothing to compare with."""
    w = Where()
    w.conditions += places_conditions(w, span.wanted)
    where = str(w)
    somewhere = "place_id <> 0" if w.conditions else "place_id = 0"
    sql = (
        f"SELECT min(first) AS first FROM (SELECT min(bucket) AS first FROM event_metrics WHERE period = 'day' AND {somewhere} "
        f"AND {where} UNION ALL SELECT min(hour) FROM metric_deltas WHERE {where}) AS f"
    )
    rows = await _fetch(database, sql, w.arguments)
    found: datetime | None = rows[0]["first"]
    return found


async def processing(database: "Database", span: Span) -> "Sequence[Any]":
    """Rows of (bucket, events, mean_ms): how long a request's events took on the way from the agent's eye into the store, by the hour."""
    w = Where()
    w.add("bucket >= {}::timestamptz", span.begin)
    w.add("bucket < {}::timestamptz", span.end)
    where = _conditions(w, span.wanted, source=True, outcome=True)
    somewhere = "place_id <> 0" if "place_id" in where else "place_id = 0"
    sql = (
        "SELECT bucket, sum(events)::bigint AS events, (sum(processing_sum) / nullif(sum(processing_count), 0) / 1000)::float8 AS mean_ms "
        f"FROM event_metrics WHERE period = 'hour' AND {somewhere} AND {where} GROUP BY 1 ORDER BY 1"
    )
    return await _fetch(database, sql, w.arguments)


async def bytes_an_event(database: "Database") -> float | None:
    """What an event takes in the store, indexes and evidence included; None where there is none."""
    async with database.connection() as connection:
        row = await connection.fetchrow(_SIZE)
    return None if row is None or not row["events"] else float(row["bytes"]) / float(row["events"])


_SIZE = """
SELECT (SELECT sum(pg_total_relation_size(c.oid)) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent IN ('security_events'::regclass, 'evidence'::regclass)) AS bytes,
    (SELECT sum(events) FROM agents) AS events
"""
