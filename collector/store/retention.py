"""What leaves the store: whole days where nothing of them has to stay, single rows where a rule says so, and never what is under a hold.

A policy is a list of rules, each with the days that its events stay, and days for all the rest. The first rule that fits an event
decides. The age of an event is that of the day on which it was received, so its clock cannot shorten or lengthen its stay.

    the day is older than every rule, no row held   its partitions are detached and dropped, in one transaction with the tombstone
    otherwise                                       rows whose own time is over and that are not held are deleted; frames without rows
                                                    go too once the day is older than every rule

The tombstone of a dropped day says for each stream from which batch to which, with their hashes, so that a chain can be followed across
it. Tombstones are a chain themselves. Deleting is done once for each day, rule and set of holds.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from collector.store.database import translated
from collector.store.events import Filter, Where, types_condition, where_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collector.store.database import Anyone

ADVISORY_LOCK = 0x4C57_0004
LOCK_S_MAX = 5
STATEMENT_S_MAX = 3_600
ZEROS = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Events of these types (empty: all) and severities stay so many days; None: for ever."""

    days: int | None
    types: tuple[str, ...] = ()
    severity_min: int = 1
    severity_max: int = 6

    def __str__(self) -> str:
        what = " or ".join(self.types) or "all types"
        stay = "for ever" if self.days is None else f"{self.days} days"
        return f"{what}, severity {self.severity_min} to {self.severity_max}: {stay}"


@dataclass(frozen=True, slots=True)
class Hold:
    """A legal hold and the filter that its query means."""

    hold_id: int
    filter: Filter


@dataclass(frozen=True, slots=True)
class Action:
    """What retention does, or would do, to a day."""

    day: date
    kind: Literal["drop", "delete"]
    rule: str
    events: int


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of a day whose time is over."""

    condition: str
    arguments: list[Any]
    rule: str
    key: str


async def run(connection: "Anyone", rules: "Sequence[Rule]", holds: "Sequence[Hold]", *, dry: bool) -> list[Action]:
    """Do what is due, or with `dry` only say it. `rules` ends with the one for all the rest.

    Nothing where another collector is at it.
    """
    actions: list[Action] = []
    with translated():
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", ADVISORY_LOCK):
            return actions
        try:
            today: date = await connection.fetchval("SELECT (now() AT TIME ZONE 'UTC')::date")
            for day in await _days(connection):
                # The last hour of the day has to be over for so long, too.
                age = (today - day).days - 1
                actions += await _day(connection, day, age, rules, holds, dry=dry)
        finally:
            if not connection.is_closed():
                await connection.execute("SELECT pg_advisory_unlock($1)", ADVISORY_LOCK)
    return actions


async def _days(connection: "Anyone") -> list[date]:
    rows = await connection.fetch(
        "SELECT right(c.relname, 8) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
        "WHERE i.inhparent = 'security_events'::regclass AND c.relname ~ '_[0-9]{8}$' ORDER BY 1"
    )
    return [datetime.strptime(row[0], "%Y%m%d").replace(tzinfo=UTC).date() for row in rows]


async def _day(
    connection: "Anyone", day: date, age: int, rules: "Sequence[Rule]", holds: "Sequence[Hold]", *, dry: bool
) -> list[Action]:
    over = [rule.days is not None and age >= rule.days for rule in rules]
    if not any(over):
        return []
    table = f"security_events_{day:%Y%m%d}"
    if all(over) and not await _held(connection, table, holds):
        events = await connection.fetchval(f"SELECT count(*) FROM {table}", timeout=STATEMENT_S_MAX)
        action = Action(day, "drop", "; ".join(map(str, rules)), events)
        if not dry:
            await _drop(connection, action)
        return [action]
    actions = []
    for number, rule in enumerate(rules):
        if over[number]:
            part = _part(rules, number, rule, holds)
            action = await _delete(connection, day, part, dry=dry)
            actions += [action] if action.events else []
    if all(over) and not dry:
        await connection.execute(
            f"DELETE FROM evidence_{day:%Y%m%d} v WHERE NOT EXISTS (SELECT FROM {table} e WHERE e.batch_id = v.batch_id)",
            timeout=STATEMENT_S_MAX,
        )
    return actions


def _held_condition(w: Where, holds: "Sequence[Hold]") -> str:
    conditions = []
    for hold in holds:
        inner = where_of(hold.filter, w.arguments)
        # A condition on a column that is null is null, which would neither hold nor release.
        conditions.append(f"coalesce(({inner}), false)")
    return " OR ".join(conditions) or "false"


async def _held(connection: "Anyone", table: str, holds: "Sequence[Hold]") -> bool:
    w = Where()
    condition = _held_condition(w, holds)
    sql = f"SELECT EXISTS (SELECT FROM {table} e WHERE {condition})"
    held: bool = await connection.fetchval(sql, *w.arguments, timeout=STATEMENT_S_MAX)
    return held


def _fits(w: Where, rule: Rule) -> str:
    inner = Where()
    inner.arguments = w.arguments
    types_condition(inner, rule.types)
    inner.conditions.append(f"e.severity BETWEEN {int(rule.severity_min)} AND {int(rule.severity_max)}")
    return f"({inner})"


def _part(rules: "Sequence[Rule]", number: int, rule: Rule, holds: "Sequence[Hold]") -> _Part:
    w = Where()
    earlier = [f"NOT {_fits(w, before)}" for before in rules[:number]]
    conditions = [_fits(w, rule), *earlier, f"NOT ({_held_condition(w, holds)})"]
    meant = [str(r) for r in rules[: number + 1]] + sorted(str(hold.hold_id) for hold in holds)
    key = hashlib.sha256("\n".join(meant).encode()).hexdigest()
    return _Part(" AND ".join(conditions), w.arguments, str(rule), key)


async def _delete(connection: "Anyone", day: date, part: _Part, *, dry: bool) -> Action:
    table = f"security_events_{day:%Y%m%d}"
    done = await connection.fetchval("SELECT count(*) FROM tombstones WHERE day = $1 AND rule_key = $2", day, part.key)
    if done:
        return Action(day, "delete", part.rule, 0)
    if dry:
        sql = f"SELECT count(*) FROM {table} e WHERE {part.condition}"
        return Action(
            day, "delete", part.rule, await connection.fetchval(sql, *part.arguments, timeout=STATEMENT_S_MAX)
        )
    async with connection.transaction():
        sql = f"DELETE FROM {table} e WHERE {part.condition}"
        status = await connection.execute(sql, *part.arguments, timeout=STATEMENT_S_MAX)
        action = Action(day, "delete", part.rule, int(status.rpartition(" ")[2]))
        await _bury(connection, action, part.key, [])
    return action


async def _drop(connection: "Anyone", action: Action) -> None:
    name = f"{action.day:%Y%m%d}"
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_S_MAX}s'")
        streams = await connection.fetch(_STREAMS.format(name), timeout=STATEMENT_S_MAX)
        for table in ("security_events", "evidence"):
            # Not CONCURRENTLY: PostgreSQL has no such thing beside a default partition. It gives up where it cannot be quick.
            await connection.execute(f"ALTER TABLE {table} DETACH PARTITION {table}_{name}")
            await connection.execute(f"DROP TABLE {table}_{name}")
        await _bury(connection, action, "", [dict(row) for row in streams])


async def _bury(connection: "Anyone", action: Action, key: str, streams: list[dict[str, Any]]) -> None:
    # The caller holds the lock: one at a time.
    prev = await connection.fetchval("SELECT hash FROM tombstones ORDER BY tombstone_id DESC LIMIT 1") or ZEROS
    made = await connection.fetchval("SELECT clock_timestamp()")
    kind = "dropped" if action.kind == "drop" else "deleted"
    digest = tombstone_hash(prev, made, action.day, kind, action.rule, action.events, streams)
    await connection.execute(
        "INSERT INTO tombstones (made, day, kind, rule, rule_key, events, streams, prev, hash) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        made, action.day, kind, action.rule, key, action.events, msgspec.json.encode(streams).decode(), prev, digest,
    )  # fmt: skip


def tombstone_hash(
    prev: str, made: datetime, day: date, kind: str, rule: str, events: int, streams: list[dict[str, Any]]
) -> str:
    """What the next tombstone names."""
    said = {
        "made": made.astimezone(UTC), "day": day, "kind": kind, "rule": rule, "events": events, "streams": streams,
    }  # fmt: skip
    return hashlib.sha256(prev.encode() + msgspec.json.encode(said, order="sorted")).hexdigest()


async def dropped_until(connection: "Anyone") -> datetime | None:
    """Until when events can be missing because of retention: the roll-ups of no earlier hour can be made anew."""
    last: date | None = await connection.fetchval("SELECT max(day) FROM tombstones WHERE events > 0")
    return None if last is None else datetime(last.year, last.month, last.day, tzinfo=UTC) + timedelta(days=2)


async def hold(connection: "Anyone", name: str, query: str) -> int:
    """Make a hold; its number."""
    made: int = await connection.fetchval(
        "INSERT INTO legal_holds (name, query) VALUES ($1, $2) RETURNING hold_id", name, query
    )
    return made


async def release(connection: "Anyone", hold_id: int) -> bool:
    """End a hold; whether there was one."""
    sql = "UPDATE legal_holds SET released = now() WHERE hold_id = $1 AND released IS NULL RETURNING hold_id"
    return await connection.fetchval(sql, hold_id) is not None


async def holds(connection: "Anyone") -> list[dict[str, Any]]:
    """All that hold now."""
    rows = await connection.fetch(
        "SELECT hold_id, name, query, created FROM legal_holds WHERE released IS NULL ORDER BY 1"
    )
    return [dict(row) for row in rows]


_STREAMS = """
SELECT agent_id::text AS agent, replace(buffer_id::text, '-', '') AS buffer, lane, min(batch_no) AS first, max(through) AS last,
       (array_agg(hash ORDER BY batch_no))[1] AS first_hash, (array_agg(hash ORDER BY batch_no DESC))[1] AS last_hash,
       sum(events)::bigint AS events
FROM evidence_{} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""
