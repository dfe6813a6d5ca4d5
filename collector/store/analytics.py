"""Tables of analytics: stored events folded in the order of their commits, each exactly once, into tables of bounded size.

`fold` takes the next batches behind its cursor and moves the cursor in the same transaction; a lock lets one collector at a time do so.
The cursor is that of streams (two snapshots and a batch), so a batch that was committed late is folded as well. The first fold begins with
the oldest event there is.

Made anew (`analytics_state.rebuild`): the tables are emptied from the first day on of which all events are kept, and everything is folded
from the beginning; what is older stays as it was.

Bounds. A place has at most so many keys a period in each table (`Table.keys_max`); what comes beyond is counted in one row `(other)`, so
totals hold and the table does not grow with what an attacker can invent. Old periods leave (`expire`). Users are stored as pseudonyms.
"""

import asyncio
import functools
import logging
import math
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg

from collector.store import readers, stream
from collector.store.stream import Cursor, Snapshot

if TYPE_CHECKING:
    from collector.store.database import Anyone
    from collector.store.events import Record

_log = logging.getLogger("linewarden.collector")

ADVISORY_LOCK = 0x4C57_0007
OTHER = "(other)"
TEXT_CHARS_MAX = 200
EVENTS_MAX = 2_000
"""Folded in one transaction, and so many more as its last batch has."""
GAP_S_MAX = 1_800
"""What comes later than this after the event before follows nothing."""
HEADS_MAX = 50_000
"""Users and sources whose last event is remembered; the longest silent are forgotten."""
ACTIVITY_DAYS, HISTORY_DAYS = 35, 400
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOTHING = Snapshot(0, 1, 1, ())
"""Sees nothing: folding begins behind it."""
CANNOT_FOLD = (
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    asyncpg.DataError,
    asyncpg.ProgramLimitExceededError,
)
"""What a batch raises that cannot be folded."""

Pseudonym = Callable[[str], str]


@dataclass(frozen=True)
class Table:
    """One table: the columns of its group (a period and a place), of its keys, of its values, and how values are added up."""

    name: str
    group: tuple[tuple[str, str], ...]
    keys: tuple[tuple[str, str], ...]
    other: tuple[Any, ...]
    values: tuple[tuple[str, str, str], ...]
    keys_max: int
    days: int

    @functools.cached_property
    def adds(self) -> "tuple[Callable[[Any, Any], Any], ...]":
        """How the values of a cell are added up."""
        return tuple(_ADD[how] for _, _, how in self.values)


_HOUR, _PLACE = ("hour", "timestamptz"), ("place_id", "integer")
_EVENTS = ("events", "bigint", "sum")
ACTIVITY = Table(
    "activity", (("bucket", "timestamptz"), _PLACE), (("type", "text"), ("severity", "smallint"), ("source", "text")),
    (OTHER, 0, OTHER), (_EVENTS,), 500, ACTIVITY_DAYS,
)  # fmt: skip
ENTITIES = Table(
    "entity_activity", (_HOUR, _PLACE, ("kind", "text")), (("entity", "text"), ("type", "text"), ("severity", "smallint")),
    (OTHER, OTHER, 0), (_EVENTS, ("failures", "bigint", "sum")), 1_000, HISTORY_DAYS,
)  # fmt: skip
TRANSITIONS = Table(
    "transitions", (("day", "timestamptz"), _PLACE, ("kind", "text")), (("entity", "text"), ("before", "text"), ("after", "text")),
    (OTHER, OTHER, OTHER), (_EVENTS,), 2_000, HISTORY_DAYS,
)  # fmt: skip
SIGNALS = Table(
    "signals", (_HOUR, _PLACE), (("source", "text"), ("signal", "text"), ("kind", "text")), (OTHER, OTHER, "reading"),
    (("readings", "bigint", "sum"), ("total", "double precision", "sum"), ("low", "double precision", "least"),
     ("high", "double precision", "greatest")), 2_000, HISTORY_DAYS,
)  # fmt: skip
TABLES = (ACTIVITY, ENTITIES, TRANSITIONS, SIGNALS)
_ADD: dict[str, Callable[[Any, Any], Any]] = {"sum": operator.add, "least": min, "greatest": max}

Cells = dict[tuple[Any, ...], list[Any]]
Head = tuple[str, datetime]


@dataclass(slots=True)
class Sums:
    """What some events add to each table."""

    cells: dict[str, Cells] = field(default_factory=lambda: {table.name: {} for table in TABLES})
    heads: dict[tuple[int, str, str], Head] = field(default_factory=dict)

    def count(self, table: Table, key: tuple[Any, ...]) -> None:
        """Count one event in a cell of a table that holds nothing else."""
        cells = self.cells[table.name]
        if (known := cells.get(key)) is None:
            cells[key] = [1]
        else:
            known[0] += 1

    def add(self, table: Table, key: tuple[Any, ...], *values: Any) -> None:
        """Add values to a cell."""
        cells = self.cells[table.name]
        if (known := cells.get(key)) is None:
            cells[key] = list(values)
        else:
            known[:] = [add(a, b) for add, a, b in zip(table.adds, known, values, strict=True)]


@dataclass(frozen=True, slots=True)
class State:
    """How far folding is."""

    events: int
    beyond: int
    changed: datetime


def tenth(moment: datetime) -> datetime:
    """When the ten minutes of a moment begin."""
    return moment.replace(minute=moment.minute // 10 * 10, second=0, microsecond=0)


def sums_of(rows: "Sequence[Any]", heads: dict[tuple[int, str, str], Head], pseudonym: Pseudonym) -> Sums:
    """What rows add. `heads`: the last event of each user and source before them."""
    sums = Sums(heads=heads)
    for row in sorted(rows, key=lambda row: (row["time"], row["batch_id"], row["idx"])):
        moment: datetime = row["time"].astimezone(UTC)
        hour, place = moment.replace(minute=0, second=0, microsecond=0), row["place_id"]
        kind, severity, source = row["type"], row["severity"], _short(row["source"])
        sums.count(ACTIVITY, (tenth(moment), place, kind, severity, source))
        failed = int(row["outcome"] == "failure")
        _follow(sums, place, "source", source, kind, moment)
        if row["actor"]:
            who = pseudonym(row["actor"])
            sums.add(ENTITIES, (hour, place, "user", who, kind, severity), 1, failed)
            _follow(sums, place, "user", who, kind, moment)
        if row["src_ip"]:
            sums.add(ENTITIES, (hour, place, "address", _short(row["src_ip"]), kind, severity), 1, failed)
        value = row["value"]
        if value is not None and math.isfinite(value):
            what = "counter" if kind.startswith("equipment.counter") else "reading"
            sums.add(SIGNALS, (hour, place, source, _short(row["target"] or ""), what), 1, value, value, value)
    return sums


def _short(text: str) -> str:
    return text[:TEXT_CHARS_MAX]


def _follow(sums: Sums, place: int, kind: str, entity: str, type_: str, moment: datetime) -> None:
    """Count what an event follows. One that is older than the last of its user or source came late, and follows nothing."""
    known = sums.heads.get((place, kind, entity))
    if known is not None:
        before, since = known
        if moment < since:
            return
        if moment - since <= timedelta(seconds=GAP_S_MAX):
            day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
            sums.count(TRANSITIONS, (day, place, kind, entity, before, type_))
    sums.heads[place, kind, entity] = (type_, moment)


async def fold(
    connection: "Anyone", pseudonym: Pseudonym, unread: "Callable[[Record, Exception], None] | None" = None
) -> int | None:
    """Fold the next batches; how many events, None at the end or where another collector is folding.

    `unread`: told each batch that cannot be folded, with the reason; it is passed over. Without it, the error is raised.
    """
    async with connection.transaction():
        if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", ADVISORY_LOCK):
            return None
        cursor, since = await _cursor(connection)
        step = cursor.step or await stream.now(connection)
        if not step.covers(cursor.base):
            # The database was put back, and counts its transactions from lower on. What lies in it was folded, and what comes is ahead.
            _log.warning("analytics: the database was put back; folding goes on with what is stored from now on")
            await connection.execute(_MOVE, Cursor(cursor.home, step).encode(), 0, 0)
            await readers.begin_anew(connection, readers.ANALYTICS, step)
            return None
        batches, reached = await stream.batches_between(
            connection, cursor.base, step, cursor.position, events_max=EVENTS_MAX
        )
        behind = Cursor(cursor.home, step) if reached is None else Cursor(cursor.home, cursor.base, step, reached)
        if not batches:
            await connection.execute(_MOVE, behind.encode(), 0, 0)
            return None
        await readers.count(connection, readers.ANALYTICS, batches)
        if unread is None:
            events, beyond = await _fold(connection, batches, pseudonym, since)
        else:
            events, beyond = await _fold_carefully(connection, batches, pseudonym, since, unread)
        await connection.execute(_MOVE, behind.encode(), events, beyond)
        return events


async def _fold(
    connection: "Anyone", batches: "Sequence[Record]", pseudonym: Pseudonym, since: datetime | None
) -> tuple[int, int]:
    """How many events were folded, and how many cells went to (other). `since`: leave out what happened before."""
    received = [batch["received"] for batch in batches]
    rows = await connection.fetch(_ROWS, [b["batch_id"] for b in batches], min(received), max(received))
    if since is not None:
        rows = [row for row in rows if row["time"] >= since]
    heads = await _heads(connection, rows, pseudonym)
    sums = await asyncio.to_thread(sums_of, rows, heads, pseudonym)
    beyond = 0
    for table in TABLES:
        beyond += await _write(connection, table, sums.cells[table.name])
    await _write_heads(connection, sums.heads)
    return len(rows), beyond


async def _fold_carefully(
    connection: "Anyone",
    batches: "Sequence[Record]",
    pseudonym: Pseudonym,
    since: datetime | None,
    unread: "Callable[[Record, Exception], None]",
) -> tuple[int, int]:
    """Each batch alone; those that cannot be folded are recorded and passed over."""
    events = beyond = 0
    for batch in batches:
        try:
            async with connection.transaction():
                folded = await _fold(connection, [batch], pseudonym, since)
        except CANNOT_FOLD as error:
            await readers.pass_over(
                connection,
                readers.ANALYTICS,
                [(batch["batch_id"], -1, batch["received"], f"{type(error).__name__}: {error}")],
            )
            unread(batch, error)
        else:
            events, beyond = events + folded[0], beyond + folded[1]
    return events, beyond


async def check(connection: "Anyone") -> readers.Difference | None:
    """Hold what was folded against what was stored, at the end of a step; None where all is well or somebody else folds."""
    async with connection.transaction():
        if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", ADVISORY_LOCK):
            return None
        cursor, _ = await _cursor(connection)
        return None if cursor.step is not None else await readers.compare(connection, readers.ANALYTICS, cursor.base)


async def rebuild(connection: "Anyone") -> datetime | None:
    """Where it was asked for, empty the tables to be made anew; from when on, None where nothing is to be done.

    Folding then begins with the first event that is kept.
    """
    async with connection.transaction():
        if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", ADVISORY_LOCK):
            return None
        if not await connection.fetchval("SELECT rebuild FROM analytics_state"):
            return None
        if await connection.fetchval(_FROM_AHEAD):
            _log.error(
                "analytics cannot be made anew: this database was put back from a dump, and the order of its commits is not kept"
            )
            await connection.execute("UPDATE analytics_state SET rebuild = false")
            return None
        since: datetime | None = await connection.fetchval(_WHOLE_SINCE)
        for table in TABLES:
            await connection.execute(f"DELETE FROM {table.name} WHERE {table.group[0][0]} >= $1", since or _EPOCH)
        await connection.execute("DELETE FROM sequence_heads")
        await connection.execute(_REBUILD, since)
        await readers.begin_anew(connection, readers.ANALYTICS, NOTHING)
    return since or _EPOCH


async def _cursor(connection: "Anyone") -> tuple[Cursor, datetime | None]:
    """Where folding stands; and, while it goes through what was there when the tables were made anew, from when on events count."""
    home = await stream.home_of(connection)
    row = await connection.fetchrow("SELECT cursor, whole_since FROM analytics_state")
    if row is None or not row["cursor"]:
        return Cursor(home, NOTHING), row["whole_since"] if row is not None else None
    cursor = stream.decode_cursor(row["cursor"], home)
    return cursor, row["whole_since"] if cursor.base == NOTHING else None


async def _heads(connection: "Anyone", rows: "Sequence[Any]", pseudonym: Pseudonym) -> dict[tuple[int, str, str], Head]:
    wanted = {(row["place_id"], "source", _short(row["source"])) for row in rows}
    wanted |= {(row["place_id"], "user", pseudonym(row["actor"])) for row in rows if row["actor"]}
    if not wanted:
        return {}
    found = await connection.fetch(_HEADS, *map(list, zip(*wanted, strict=True)))
    return {(row["place_id"], row["kind"], row["entity"]): (row["type"], row["time"]) for row in found}


async def _write_heads(connection: "Anyone", heads: dict[tuple[int, str, str], Head]) -> None:
    if heads:
        columns = [list(column) for column in zip(*((*key, *head) for key, head in heads.items()), strict=True)]
        await connection.execute(_SET_HEADS, *columns)


async def _write(connection: "Anyone", table: Table, cells: Cells) -> int:
    """Add cells to a table; how many went to (other)."""
    if not cells:
        return 0
    cells, beyond = await _bounded(connection, table, cells)
    keys = (*table.group, *table.keys)
    columns = [*zip(*cells, strict=True), *zip(*cells.values(), strict=True)]
    names = [name for name, *_ in (*keys, *table.values)]
    kinds = [column[1] for column in (*keys, *table.values)]
    arrays = ", ".join(f"${index}::{kind}[]" for index, kind in enumerate(kinds, 1))
    update = ", ".join(
        f"{name} = {table.name}.{name} + excluded.{name}" if how == "sum" else f"{name} = {how}({table.name}.{name}, excluded.{name})"
        for name, _, how in table.values
    )  # fmt: skip
    await connection.execute(
        f"INSERT INTO {table.name} ({', '.join(names)}) SELECT * FROM unnest({arrays}) "
        f"ON CONFLICT ({', '.join(name for name, _ in keys)}) DO UPDATE SET {update}",
        *map(list, columns),
    )
    return beyond


async def _bounded(connection: "Anyone", table: Table, cells: Cells) -> tuple[Cells, int]:
    """Cells with those under (other) that would be one key too many."""
    width = len(table.group)
    groups = Counter(key[:width] for key in cells)
    arrays = ", ".join(f"${index}::{kind}[]" for index, (_, kind) in enumerate(table.group, 1))
    names = ", ".join(name for name, _ in table.group)
    counted = await connection.fetch(
        f"SELECT {names}, count(*) AS n FROM unnest({arrays}) AS g ({names}) JOIN {table.name} USING ({names}) GROUP BY {names}",
        *map(list, zip(*groups, strict=True)),
    )
    room = dict.fromkeys(groups, table.keys_max)
    for row in counted:
        room[tuple(row[name] for name, _ in table.group)] -= row["n"]
    if all(room[group] >= keys for group, keys in groups.items()):
        return cells, 0
    known = await _known(connection, table, cells)
    kept: Cells = {}
    beyond = 0
    for key, values in cells.items():
        group, target = key[:width], key
        if key not in known:
            if room[group] > 0:
                room[group] -= 1
            else:
                target = (*group, *table.other)
                beyond += 1
        if (there := kept.get(target)) is None:
            kept[target] = values
        else:
            kept[target] = [add(a, b) for add, a, b in zip(table.adds, there, values, strict=True)]
    return kept, beyond


async def _known(connection: "Anyone", table: Table, cells: Cells) -> set[tuple[Any, ...]]:
    keys = (*table.group, *table.keys)
    arrays = ", ".join(f"${index}::{kind}[]" for index, (_, kind) in enumerate(keys, 1))
    names = ", ".join(name for name, _ in keys)
    found = await connection.fetch(
        f"SELECT {names} FROM unnest({arrays}) AS k ({names}) JOIN {table.name} USING ({names})",
        *map(list, zip(*cells, strict=True)),
    )
    return {tuple(row) for row in found}


async def expire(connection: "Anyone", now: datetime) -> None:
    """Let go what is too old, and the heads beyond their number."""
    for table in TABLES:
        await connection.execute(
            f"DELETE FROM {table.name} WHERE {table.group[0][0]} < $1", now - timedelta(days=table.days)
        )
    await connection.execute(
        "DELETE FROM sequence_heads WHERE time < $1 OR time <= (SELECT time FROM sequence_heads ORDER BY time DESC OFFSET $2 LIMIT 1)",
        now - timedelta(days=2), HEADS_MAX,
    )  # fmt: skip


async def state(connection: "Anyone") -> State:
    """How far folding is."""
    row = await connection.fetchrow("SELECT events, beyond, changed FROM analytics_state")
    if row is None:
        raise ConnectionError("no answer")
    return State(row["events"], row["beyond"], row["changed"])


async def hold_still(connection: "Anyone") -> None:
    """Let nothing be folded until the transaction ends, waiting for a fold that runs (`EVENTS_MAX` bounds it).

    Without it, a fold that has read a person's rows would write them behind an erasure that has already been through the tables.
    """
    await connection.execute("SELECT pg_advisory_xact_lock($1)", ADVISORY_LOCK)


async def forget(connection: "Anyone", pseudonym: str) -> int:
    """Take a user out of every table: what belongs to an erasure. How many rows."""
    gone = 0
    for table in ("entity_activity", "transitions", "sequence_heads"):
        status = await connection.execute(f"DELETE FROM {table} WHERE kind = 'user' AND entity = $1", pseudonym)
        gone += int(status.rpartition(" ")[2])
    return gone


# A number too large for a double would be an error: those are left to be no reading.
_ROWS = """
SELECT time, batch_id, idx, place_id, type, severity, source, src_ip, target, outcome, actor,
    CASE WHEN (type LIKE 'equipment.reading%' OR type LIKE 'equipment.counter%')
        AND jsonb_typeof(data -> 'value') = 'number' AND length(data ->> 'value') < 100
        AND NOT data ? 'role'
        THEN (data ->> 'value')::double precision END AS value
FROM security_events WHERE batch_id = ANY ($1::bigint[]) AND received BETWEEN $2 AND $3
"""
_HEADS = """
SELECT h.* FROM unnest($1::integer[], $2::text[], $3::text[]) AS k (place_id, kind, entity)
JOIN sequence_heads h USING (place_id, kind, entity)
"""
_SET_HEADS = """
INSERT INTO sequence_heads (place_id, kind, entity, type, time)
SELECT * FROM unnest($1::integer[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
ON CONFLICT (place_id, kind, entity) DO UPDATE SET type = excluded.type, time = excluded.time
"""
# Of a day that a tombstone names not all events are kept. An event may be dated a day ahead of when it was stored.
_WHOLE_SINCE = """
SELECT (max(day) + 2)::timestamp AT TIME ZONE 'UTC' FROM tombstones WHERE kind IN ('dropped', 'deleted')
"""
_FROM_AHEAD = "SELECT EXISTS (SELECT FROM evidence WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()))"
_REBUILD = """
UPDATE analytics_state SET rebuild = false, cursor = '', events = 0, beyond = 0, whole_since = $1, changed = now()
"""
_MOVE = "UPDATE analytics_state SET cursor = $1, events = events + $2, beyond = beyond + $3, changed = now()"
