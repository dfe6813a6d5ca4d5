"""What leaves the store: whole days where nothing of them has to stay, single rows where a rule says so, and never what is under a hold.

A policy is a list of rules, each with the days that its events stay, and days for all the rest. The first rule that fits an event
decides. The age of an event is that of the day on which it was received, so its clock cannot shorten or lengthen its stay.

    the day is older than every rule, no row held   its partitions are detached and dropped, in one transaction with the tombstone
    otherwise                                       rows whose own time is over and that are not held are deleted; frames without rows
                                                    go too once the day is older than every rule

A tombstone says for each stream whose frames go from which batch to which, with the hashes at both ends, so that a chain can be followed
across it; where single rows go, `tombstone_rows` names each, so that one that is missing for another reason is told from them. Tombstones
are a chain themselves, and signed where the installation has a key. Deleting is done once for each day, rule and set of holds.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import asyncpg
import msgspec

from collector.store.database import translated
from collector.store.events import Filter, Where, types_condition, where_of
from collector.store.partitions import BESIDE, PARTITIONED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from collector.store.database import Anyone

    Sign = Callable[[bytes], tuple[str, str]]
    """Signature, base64, and the id of the key."""

ADVISORY_LOCK = 0x4C57_0004
LOCK_S_MAX = 5
STATEMENT_S_MAX = 3_600
ZEROS = "0" * 64
_KINDS = {"drop": "dropped", "delete": "deleted", "audit": "audit", "alerts": "alerts"}


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
    """What retention does, or would do, to a day; for the audit log and alerts see logs.py."""

    day: date
    kind: Literal["drop", "delete", "audit", "alerts"]
    rule: str
    events: int
    """Of kind audit: records; of kind alerts: incidents."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of a day whose time is over."""

    condition: str
    arguments: list[Any]
    rule: str
    key: str


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What the hash of a tombstone covers, besides the hash of the one before it. `rows_hash`: where single rows went."""

    made: datetime
    day: date
    kind: str
    rule: str
    events: int
    streams: list[dict[str, Any]]
    rows_hash: str | None

    def hash(self, prev: str) -> str:
        """What the next tombstone names, hex."""
        said = {
            "made": self.made.astimezone(UTC), "day": self.day, "kind": self.kind, "rule": self.rule, "events": self.events,
            "streams": self.streams,
        }  # fmt: skip
        if self.rows_hash is not None:
            said["rows"] = self.rows_hash
        return hashlib.sha256(prev.encode() + msgspec.json.encode(said, order="sorted")).hexdigest()


def signed_bytes(digest: str) -> bytes:
    """What the signature of a tombstone is made over: its hash, and what it is, so that it fits nothing else."""
    return b"linewarden tombstone\n" + digest.encode()


async def run(
    connection: "Anyone",
    rules: "Sequence[Rule]",
    holds: "Sequence[Hold]",
    *,
    dry: bool,
    sign: "Sign | None" = None,
) -> list[Action]:
    """Do what is due, or with `dry` only say it. `rules` ends with the one for all the rest.

    Nothing where another collector is at it.
    """
    actions: list[Action] = []
    with translated():
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", ADVISORY_LOCK):
            return actions
        try:
            today: date = await connection.fetchval(_TODAY)
            for day in await _days(connection):
                # The last hour of the day has to be over for so long, too.
                age = (today - day).days - 1
                actions += await _day(connection, day, age, rules, holds, dry=dry, sign=sign)
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
    connection: "Anyone",
    day: date,
    age: int,
    rules: "Sequence[Rule]",
    holds: "Sequence[Hold]",
    *,
    dry: bool,
    sign: "Sign | None",
) -> list[Action]:
    over = [rule.days is not None and age >= rule.days for rule in rules]
    if not any(over):
        return []
    table = f"security_events_{day:%Y%m%d}"
    if all(over) and not await _held(connection, table, holds):
        events = await connection.fetchval(f"SELECT count(*) FROM {table}", timeout=STATEMENT_S_MAX)
        action = Action(day, "drop", "; ".join(map(str, rules)), events)
        if not dry:
            await _drop(connection, action, sign)
        return [action]
    actions = []
    for number, rule in enumerate(rules):
        if over[number]:
            part = _part(rules, number, rule, holds)
            action = await _delete(connection, day, part, dry=dry, sign=sign)
            actions += [action] if action.events else []
    if all(over) and not dry:
        await _delete_frames(connection, day, sign)
    return actions


def held_condition(w: Where, holds: "Sequence[Hold]") -> str:
    conditions = []
    for hold in holds:
        inner = where_of(hold.filter, w.arguments)
        # A condition on a column that is null is null, which would neither hold nor release.
        conditions.append(f"coalesce(({inner}), false)")
    return " OR ".join(conditions) or "false"


async def _held(connection: "Anyone", table: str, holds: "Sequence[Hold]") -> bool:
    w = Where()
    condition = held_condition(w, holds)
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
    conditions = [_fits(w, rule), *earlier, f"NOT ({held_condition(w, holds)})"]
    meant = [str(r) for r in rules[: number + 1]] + sorted(str(hold.hold_id) for hold in holds)
    key = hashlib.sha256("\n".join(meant).encode()).hexdigest()
    return _Part(" AND ".join(conditions), w.arguments, str(rule), key)


async def _delete(connection: "Anyone", day: date, part: _Part, *, dry: bool, sign: "Sign | None") -> Action:
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
        number: int = await connection.fetchval(NEXT)
        gone = await connection.fetchrow(
            _GONE.format(table, part.condition, int(number)), *part.arguments, timeout=STATEMENT_S_MAX
        )
        if gone is None:
            raise asyncpg.InterfaceError("no answer")
        action = Action(day, "delete", part.rule, gone["events"])
        await bury(connection, number, action, part.key, [], gone["rows_hash"], sign)
    return action


async def _delete_frames(connection: "Anyone", day: date, sign: "Sign | None") -> None:
    """Frames without rows; each run of them is declared, so that the chain can be followed across it."""
    name = f"{day:%Y%m%d}"
    async with connection.transaction():
        rowless = f"NOT EXISTS (SELECT FROM security_events_{name} e WHERE e.batch_id = v.batch_id)"
        streams = await connection.fetch(_STREAMS.format(name, rowless), timeout=STATEMENT_S_MAX)
        if not streams:
            return
        await _forget(connection, name, rowless)
        await connection.execute(f"DELETE FROM evidence_{name} v WHERE {rowless}", timeout=STATEMENT_S_MAX)
        action = Action(day, "delete", "frames of which no row is left", 0)
        number = await connection.fetchval(NEXT)
        await bury(connection, number, action, "", [dict(row) for row in streams], None, sign)


async def _drop(connection: "Anyone", action: Action, sign: "Sign | None") -> None:
    name = f"{action.day:%Y%m%d}"
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_S_MAX}s'")
        streams = await connection.fetch(_STREAMS.format(name, "true"), timeout=STATEMENT_S_MAX)
        await _forget(connection, name, "true")
        # A day from before the table of signatures has no part of it.
        beside = [t for t in BESIDE if await connection.fetchval("SELECT to_regclass($1)", f"{t}_{name}")]
        for table in (*PARTITIONED, *beside):
            # Not CONCURRENTLY: PostgreSQL has no such thing beside a default partition. It gives up where it cannot be quick.
            await connection.execute(f"ALTER TABLE {table} DETACH PARTITION {table}_{name}")
            await connection.execute(f"DROP TABLE {table}_{name}")
        number = await connection.fetchval(NEXT)
        await bury(connection, number, action, "", [dict(row) for row in streams], None, sign)


async def _forget(connection: "Anyone", name: str, condition: str) -> None:
    """What is known of single rows of frames that go."""
    for table in ("tombstone_rows", "erased_lines"):
        await connection.execute(
            f"DELETE FROM {table} WHERE batch_id IN (SELECT batch_id FROM evidence_{name} v WHERE {condition})",
            timeout=STATEMENT_S_MAX,
        )


async def bury(
    connection: "Anyone",
    number: int,
    action: Action,
    key: str,
    streams: list[dict[str, Any]],
    rows_hash: str | None,
    sign: "Sign | None",
) -> None:
    """Write a tombstone. The caller holds the lock: one at a time."""
    prev = await connection.fetchval("SELECT hash FROM tombstones ORDER BY tombstone_id DESC LIMIT 1") or ZEROS
    made = await connection.fetchval(_MADE)
    kind = _KINDS[action.kind]
    events = action.events if action.kind in ("drop", "delete") else 0
    digest = Tombstone(made, action.day, kind, action.rule, events, streams, rows_hash).hash(prev)
    signature, key_id = sign(signed_bytes(digest)) if sign is not None else (None, None)
    await connection.execute(
        "INSERT INTO tombstones (tombstone_id, made, day, kind, rule, rule_key, events, streams, prev, hash, rows_hash, signature, key_id) "
        "OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        number, made, action.day, kind, action.rule, key, events, msgspec.json.encode(streams).decode(), prev, digest, rows_hash,
        signature, key_id,
    )  # fmt: skip


async def rows_hashes(connection: "Anyone", tombstones: "Sequence[dict[str, Any]]") -> dict[int, str]:
    """What `rows_hash` has to be of each tombstone whose rows are still named: those of a day that is not dropped yet."""
    dropped = {t["day"] for t in tombstones if t["kind"] == "dropped"}
    # Frames without rows leave, and with them what is known of their rows.
    thinned = {t["day"] for t in tombstones if t["kind"] == "deleted" and t["rows_hash"] is None}
    return {
        t["tombstone_id"]: await connection.fetchval(ROWS_HASH, t["tombstone_id"], timeout=STATEMENT_S_MAX)
        for t in tombstones
        if t["rows_hash"] is not None and t["day"] not in dropped | thinned
    }


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


_TODAY = "SELECT (now() AT TIME ZONE 'UTC')::date"
_MADE = "SELECT clock_timestamp()"
NEXT = "SELECT nextval(pg_get_serial_sequence('tombstones', 'tombstone_id'))"
# One statement deletes, names what it deleted, and hashes the names as they will be read again.
_GONE = """
WITH gone AS (DELETE FROM {0} e WHERE {1} RETURNING e.batch_id, e.idx),
named AS (SELECT batch_id, range_agg(int4range(idx, idx + 1)) AS idx, count(*) AS events FROM gone GROUP BY batch_id),
kept AS (INSERT INTO tombstone_rows (tombstone_id, batch_id, idx) SELECT {2}, batch_id, idx FROM named)
SELECT coalesce(sum(events), 0)::bigint AS events,
    encode(sha256(coalesce(string_agg(batch_id || ' ' || idx, E'\\n' ORDER BY batch_id), '')::bytea), 'hex') AS rows_hash
FROM named
"""
ROWS_HASH = """
SELECT encode(sha256(coalesce(string_agg(batch_id || ' ' || idx, E'\\n' ORDER BY batch_id), '')::bytea), 'hex')
FROM tombstone_rows WHERE tombstone_id = $1
"""
"""What `rows_hash` of a tombstone has to be."""
# Of each unbroken run of batches of a stream: its ends, the hash before it, and the hash that the batch behind it names, which for a
# gap is that
# of the last batch lost.
_STREAMS = """
WITH leaving AS (
    SELECT v.*, coalesce(g.last_hash, v.hash) AS link, (g.batch_id IS NOT NULL)::integer AS gap,
        sum(CASE WHEN v.batch_no = v.before + 1 THEN 0 ELSE 1 END) OVER (PARTITION BY agent_id, buffer_id, lane ORDER BY v.batch_no) AS run
    FROM (SELECT batch_id, agent_id, buffer_id, lane, batch_no, through, hash, prev, events,
              lag(through) OVER (PARTITION BY agent_id, buffer_id, lane ORDER BY batch_no) AS before
          FROM evidence_{0} v WHERE {1}) AS v
    LEFT JOIN LATERAL (SELECT batch_id, last_hash FROM gaps WHERE batch_id = v.batch_id AND through IS NOT NULL LIMIT 1) AS g ON true
)
SELECT agent_id::text AS agent, replace(buffer_id::text, '-', '') AS buffer, lane, min(batch_no) AS first, max(through) AS last,
    (array_agg(prev ORDER BY batch_no))[1] AS prev, (array_agg(hash ORDER BY batch_no))[1] AS first_hash,
    (array_agg(hash ORDER BY batch_no DESC))[1] AS last_hash, (array_agg(link ORDER BY batch_no DESC))[1] AS link,
    count(*) AS batches, sum(events)::bigint AS events, sum(gap)::bigint AS gaps,
    min(batch_id) AS first_id, max(batch_id) AS last_id
FROM leaving GROUP BY agent_id, buffer_id, lane, run ORDER BY 1, 2, 3, 4
"""
