"""Reading events: filters become one SQL condition, pages follow a key and never an offset.

The key is (time, batch_id, idx): unique, in an index, and it never changes, so a page is the same page however many events arrive.
A time filter bounds `received` too (an event is never stored with a time further ahead than FUTURE_S_MAX), which spares
PostgreSQL the partitions of the days before.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from uuid import UUID

import asyncpg

from collector.store.database import Database
from collector.store.rows import FUTURE_S_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collector.store.database import Connection

LIMIT_MAX = 1_000
QUERY_S_MAX = 30.0
Order = Literal["asc", "desc"]
Position = tuple[datetime, int, int]
"""time, batch_id, idx of the last event of a page."""
Record = asyncpg.Record
Scope = tuple[tuple[str, str, str], ...]
"""Site, line, station, each empty for all: any of these is what the caller may see, and what lies outside does not exist for it.

Without any, nothing may be seen.
"""
ALL: Scope = (("", "", ""),)


class BadFilter(Exception):
    """A filter that PostgreSQL cannot take: a text with a NUL character, a number out of range."""


class TooSlow(Exception):
    """The query ran into its time limit."""


class Pseudonyms(NamedTuple):
    """Pseudonyms and how they are made: the beginning of the hex of sha256(outer || sha256(inner || actor)), behind a prefix."""

    values: tuple[str, ...]
    prefix: str
    chars: int
    inner: bytes
    outer: bytes

    def of(self, actor: str) -> str:
        """The pseudonym of an actor."""
        inner = hashlib.sha256(self.inner + actor.encode(errors="replace")).digest()
        return self.prefix + hashlib.sha256(self.outer + inner).hexdigest()[: self.chars]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which events. A None or an empty tuple is no condition; within a tuple any one has to hold, between fields all."""

    begin: datetime | None = None
    end: datetime | None = None
    agents: tuple[UUID, ...] = ()
    sites: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    stations: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    """Exact names, or `authentication.*` for a type and all below it."""
    categories: tuple[str, ...] = ()
    severity_min: int | None = None
    severities: tuple[int, ...] = ()
    sources: tuple[str, ...] = ()
    actors: tuple[str, ...] = ()
    pseudonyms: "Pseudonyms | None" = None
    """Actors by what stands for them."""
    src_ips: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
    text: str | None = None
    """Part of the message, whatever its case."""
    data: str | None = None
    """A JSON object that `data` contains."""
    correlation_id: str | None = None
    personal: bool = False
    """Whether the reader is shown personal data as it is, and not what stands for it."""
    scope: Scope
    """What the caller may read. Without a default, so that no reading can forget it."""


class Where:
    """Conditions that all have to hold, and the values bound in them."""

    def __init__(self) -> None:
        self.conditions: list[str] = []
        self.arguments: list[Any] = []

    def bind(self, value: Any) -> str:
        self.arguments.append(value)
        return f"${len(self.arguments)}"

    def add(self, template: str, value: Any) -> None:
        self.conditions.append(template.format(self.bind(value)))

    def any_of(self, column: str, kind: str, values: "Sequence[Any]") -> None:
        if len(values) == 1:
            # An equality lets the planner use an index and its order.
            self.add(f"{column} = {{}}::{kind}", values[0])
        elif values:
            self.add(f"{column} = ANY ({{}}::{kind}[])", list(values))

    def __str__(self) -> str:
        return " AND ".join(self.conditions) or "true"


# `late` is told and not stored: whether a day was dropped is not known for ever.
COLUMNS_READ = """
e.received, e.time, e.observed,
coalesce(e.time_flag, CASE WHEN e.received - e.time > interval '1 day' AND EXISTS (
    SELECT FROM tombstones t WHERE t.kind = 'dropped' AND t.day = (e.time AT TIME ZONE 'UTC')::date AND t.made < e.received
) THEN 'late' END) AS time_flag, e.time_claimed, e.agent_id, e.buffer_id, e.lane, e.batch_no, e.idx, e.batch_id, e.place_id, p.site, p.line,
p.station, e.type, e.category, e.severity, e.source, e.src_ip, e.target, e.outcome, e.message, e.correlation_id, e.actor, e.raw, e.data,
e.data_text, e.personal, e.personal_text
"""


def where_of(wanted: Filter, arguments: "list[Any] | None" = None) -> Where:
    """The condition of a filter on `security_events e`; its values are bound behind `arguments`."""
    w = Where()
    if arguments is not None:
        w.arguments = arguments
    if wanted.begin is not None:
        w.add("e.time >= {}::timestamptz", wanted.begin)
        w.add("e.received >= {}::timestamptz", _earlier(wanted.begin))
    if wanted.end is not None:
        w.add("e.time < {}::timestamptz", wanted.end)
    w.any_of("e.agent_id", "uuid", wanted.agents)
    w.conditions += places_conditions(w, wanted, "e.place_id")
    types_condition(w, wanted.types)
    w.any_of("e.category", "text", wanted.categories)
    if wanted.severity_min is not None:
        # Written out: a literal lets the planner use the partial index.
        w.conditions.append(f"e.severity >= {int(wanted.severity_min)}")
    w.any_of("e.severity", "smallint", wanted.severities)
    for column, values in (
        ("source", wanted.sources),
        ("actor", wanted.actors),
        ("src_ip", wanted.src_ips),
        ("target", wanted.targets),
        ("outcome", wanted.outcomes),
    ):
        w.any_of(f"e.{column}", "text", values)
    if (by := wanted.pseudonyms) is not None:
        digest = (
            f"sha256({w.bind(by.outer)}::bytea || sha256({w.bind(by.inner)}::bytea || convert_to(e.actor, 'UTF8')))"
        )
        value = f"{w.bind(by.prefix)}::text || left(encode({digest}, 'hex'), {int(by.chars)})"
        w.conditions.append(f"e.actor IS NOT NULL AND {value} = ANY ({w.bind(list(by.values))}::text[])")
    if wanted.text is not None:
        w.add("e.message ILIKE {}::text", "%" + _literal(wanted.text) + "%")
    if wanted.data is not None:
        w.add("e.data @> {}::jsonb", wanted.data)
    if wanted.correlation_id is not None:
        w.add("e.correlation_id = {}::text", wanted.correlation_id)
    return w


def _earlier(moment: datetime) -> datetime:
    try:
        return moment - timedelta(seconds=FUTURE_S_MAX)
    except OverflowError:
        return moment


def _literal(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def places_conditions(w: Where, wanted: Filter, column: str = "place_id") -> list[str]:
    """The one place where the scope of the caller becomes a condition; nothing where every place is meant."""
    columns = [("site", wanted.sites), ("line", wanted.lines), ("station", wanted.stations)]
    inner = Where()
    inner.arguments = w.arguments
    for name, values in columns:
        inner.any_of(name, "text", values)
    inner.conditions += scope_conditions(inner, wanted.scope)
    return [f"{column} = ANY (ARRAY(SELECT place_id FROM places WHERE {inner}))"] if inner.conditions else []


def scope_conditions(w: Where, scope: Scope, table: str = "") -> list[str]:
    """That a row of places lies within a scope; `table` is what places is called there, with its dot."""
    either = []
    for place in scope:
        both = Where()
        both.arguments = w.arguments
        for name, value in zip(("site", "line", "station"), place, strict=True):
            both.any_of(table + name, "text", (value,) if value else ())
        if not both.conditions:
            return []
        either.append(f"({both})")
    return ["(" + " OR ".join(either) + ")"] if either else ["false"]


def within(scope: Scope, site: str, line: str, station: str) -> bool:
    """Whether a place lies within a scope: the same as `scope_conditions` says."""
    return any(
        all(not wanted or wanted == value for wanted, value in zip(place, (site, line, station), strict=True))
        for place in scope
    )


def contains(outer: Scope, inner: Scope) -> bool:
    """Whether every place of `inner` lies within `outer`, as far as single places of `outer` say so."""
    return all(
        any(all(not wanted or wanted == value for wanted, value in zip(place, part, strict=True)) for place in outer)
        for part in inner
    )


def types_condition(w: Where, types: tuple[str, ...], column: str = "e.type") -> None:
    """Exact names, or a stem and all below it."""
    exact = [name for name in types if not name.endswith(".*")]
    either = []
    if exact:
        either.append(f"{column} = ANY ({w.bind(exact)}::text[])")
    for name in types:
        if name.endswith(".*"):
            stem = name.removesuffix(".*")
            # A range, and not LIKE: it means the same in every collation.
            below = f'{column} COLLATE "C" BETWEEN {w.bind(stem + ".")} AND {w.bind(stem + "/")}'
            either.append(f"({column} = {w.bind(stem)} OR {below})")
    if either:
        w.conditions.append("(" + " OR ".join(either) + ")")


async def page(
    database: Database, wanted: Filter, *, after: Position | None, order: Order, limit: int
) -> "Sequence[Record]":
    """The next events behind `after`, at most `limit`. Raises BadFilter, TooSlow."""
    w = where_of(wanted)
    if after is not None:
        sign = ">" if order == "asc" else "<"
        key = f"({w.bind(after[0])}::timestamptz, {w.bind(after[1])}::bigint, {w.bind(after[2])}::integer)"
        w.conditions.append(f"(e.time, e.batch_id, e.idx) {sign} {key}")
    # The events of one correlation are few and found by its index; the planner, hoping for the limit, would walk along time instead.
    time = "e.time" if wanted.correlation_id is None else "e.time + interval '0'"
    sql = (
        f"SELECT {COLUMNS_READ} FROM security_events e JOIN places p ON p.place_id = e.place_id WHERE {w} "
        f"ORDER BY {time} {order}, e.batch_id {order}, e.idx {order} LIMIT {int(limit)}"
    )
    return await _fetch(database, sql, w.arguments)


async def one(
    database: Database, *, agent_id: UUID, buffer_id: UUID, lane: int, no: int, idx: int, scope: Scope
) -> "tuple[Record, Record | None] | None":
    """An event by its identity, and its evidence if that is still there."""
    found = await _fetch(database, _EVIDENCE, [agent_id, buffer_id, lane, no])
    for evidence in found:
        w = Where()
        w.add("e.received = {}::timestamptz", evidence["received"])
        w.add("e.batch_id = {}::bigint", evidence["batch_id"])
        w.add("e.idx = {}::integer", idx)
        w.conditions += places_conditions(w, Filter(scope=scope), "e.place_id")
        sql = f"SELECT {COLUMNS_READ} FROM security_events e JOIN places p ON p.place_id = e.place_id WHERE {w}"
        if rows := await _fetch(database, sql, w.arguments):
            return rows[0], evidence
    return None


async def _fetch(database: Database, sql: str, arguments: "Sequence[Any]") -> "Sequence[Record]":
    async with database.connection() as connection:
        return await fetch_bounded(connection, sql, arguments)


async def fetch_bounded(connection: "Connection", sql: str, arguments: "Sequence[Any]") -> "Sequence[Record]":
    """Run a reading statement within QUERY_S_MAX."""
    try:
        return await connection.fetch(sql, *arguments, timeout=QUERY_S_MAX)
    except TimeoutError:
        raise TooSlow(f"the query took longer than {QUERY_S_MAX:g} s") from None
    except (asyncpg.DataError, ValueError, OverflowError) as error:
        raise BadFilter(str(error).partition("\n")[0]) from None


_EVIDENCE = """
SELECT received, batch_id, batch_no, through, events, xid::text AS xid, hash, prev, frame FROM evidence
WHERE agent_id = $1 AND buffer_id = $2 AND lane = $3 AND batch_no = $4 ORDER BY received
"""
