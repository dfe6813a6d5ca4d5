"""A person in the database: where they are named, and how that is taken out. The person is a regular expression, see collector/subject.py.

Columns that hold personal data say so themselves: their comment begins with "Personal:". Events and erasures are looked after here by name;
any other table that has such a column is found by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from collector.store.events import COLUMNS_READ, Where, where_of
from collector.store.evidence import bounds

if TYPE_CHECKING:
    from collector.store.database import Anyone
    from collector.store.retention import Hold

ADVISORY_LOCK = 0x4C57_000A
STATEMENT_S_MAX = 3_600.0
PAGE_EVENTS = 1_000
AUDIT_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Erasure:
    """A row of `erasures`."""

    erasure_id: int
    state: str
    names: list[str] | None
    reason: str
    requested: datetime
    requested_by: str
    confirmed: datetime | None
    confirmed_by: str | None
    finished: datetime | None
    standing_until: datetime | None
    events: int
    batches: int


_ERASURE = ", ".join(Erasure.__slots__)


def _named(pattern: str) -> str:
    """Whether the personal half of an event names the person; `pattern` is a placeholder."""
    columns = ("actor", "raw", "personal::text", "personal_text")
    return "(" + " OR ".join(f"e.{column} ~ {pattern}" for column in columns) + ")"


def _erasure(row: Any) -> Erasure:
    values = dict(row)
    values["names"] = msgspec.json.decode(row["names"]) if row["names"] is not None else None
    return Erasure(**values)


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def request(
    connection: "Anyone", *, names: Sequence[str], reason: str, by: str, standing_until: datetime | None
) -> int:
    """Note a request; its number."""
    number: int = await connection.fetchval(
        "INSERT INTO erasures (state, names, reason, requested_by, standing_until) VALUES ('requested', $1, $2, $3, $4) "
        "RETURNING erasure_id",
        msgspec.json.encode(list(names)).decode(), reason, by, standing_until,
    )  # fmt: skip
    return number


async def confirm(connection: "Anyone", number: int, by: str) -> None:
    """Let it run."""
    await connection.execute(
        "UPDATE erasures SET state = 'running', confirmed = now(), confirmed_by = $2 WHERE erasure_id = $1 AND state = 'requested'",
        number, by,
    )  # fmt: skip


async def withdraw(connection: "Anyone", number: int) -> bool:
    """Forget a request that was not confirmed, and whom it was about; whether there was one."""
    sql = "UPDATE erasures SET state = 'withdrawn', names = NULL WHERE erasure_id = $1 AND state = 'requested' RETURNING erasure_id"
    return await connection.fetchval(sql, number) is not None


async def finish(connection: "Anyone", number: int) -> bool:
    """It is done, unless it stands; whether the names are forgotten now."""
    sql = (
        "UPDATE erasures SET finished = now(), state = CASE WHEN standing_until > now() THEN 'running' ELSE 'done' END, "
        "names = CASE WHEN standing_until > now() THEN names END WHERE erasure_id = $1 RETURNING state = 'done'"
    )
    return bool(await connection.fetchval(sql, number))


async def one(connection: "Anyone", number: int) -> Erasure | None:
    """A request by its number."""
    row = await connection.fetchrow(f"SELECT {_ERASURE} FROM erasures WHERE erasure_id = $1", number)
    return _erasure(row) if row is not None else None


async def everything(connection: "Anyone") -> list[Erasure]:
    """All requests, oldest first."""
    return [_erasure(row) for row in await connection.fetch(f"SELECT {_ERASURE} FROM erasures ORDER BY erasure_id")]


async def running(connection: "Anyone") -> list[Erasure]:
    """Those that were begun and not finished, or stand."""
    rows = await connection.fetch(f"SELECT {_ERASURE} FROM erasures WHERE state = 'running' ORDER BY erasure_id")
    return [_erasure(row) for row in rows]


# ── where a person is named ──────────────────────────────────────────────────────────────────────────────────────────


async def batches_of_rows(connection: "Anyone", day: date, pattern: str) -> dict[int, list[int]]:
    """Places of events of a day whose row names the person, by batch."""
    rows = await connection.fetch(
        f"SELECT batch_id, array_agg(idx) AS idx FROM security_events e WHERE received >= $1 AND received < $2 AND "
        f"{_named('$3')} GROUP BY 1",
        *bounds(day), pattern, timeout=STATEMENT_S_MAX,
    )  # fmt: skip
    return {row["batch_id"]: list(row["idx"]) for row in rows}


async def batches_without_rows(connection: "Anyone", day: date) -> list[int]:
    """Batches of a day of which rows left by retention while the frame stays: only the frame knows whom they name."""
    rows = await connection.fetch(
        "SELECT DISTINCT v.batch_id FROM evidence v JOIN tombstone_rows t USING (batch_id) WHERE v.received >= $1 AND v.received < $2",
        *bounds(day), timeout=STATEMENT_S_MAX,
    )  # fmt: skip
    return [row[0] for row in rows]


async def held(connection: "Anyone", pattern: str, holds: "Sequence[Hold]") -> int | None:
    """A legal hold that covers an event of the person, if there is one."""
    for hold in holds:
        w = Where()
        condition = where_of(hold.filter, w.arguments)
        sql = f"SELECT EXISTS (SELECT FROM security_events e WHERE coalesce(({condition}), false) AND {_named(w.bind(pattern))})"
        if await connection.fetchval(sql, *w.arguments, timeout=STATEMENT_S_MAX):
            return hold.hold_id
    return None


async def page(connection: "Anyone", day: date, pattern: str, after: tuple[int, int]) -> list[Any]:
    """Events of a day that name the person, by batch and place."""
    sql = (
        f"SELECT {COLUMNS_READ} FROM security_events e JOIN places p ON p.place_id = e.place_id WHERE e.received >= $1 AND e.received < $2 "
        f"AND {_named('$3')} AND (e.batch_id, e.idx) > ($4, $5) ORDER BY e.batch_id, e.idx LIMIT {PAGE_EVENTS}"
    )
    return await connection.fetch(sql, *bounds(day), pattern, *after, timeout=STATEMENT_S_MAX)


async def mentions(connection: "Anyone", pattern: str) -> int:
    """Events whose core half names the person, though it should not: it is what the chain proves, and stays."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM security_events e WHERE e.message ~ $1 OR e.target ~ $1 OR e.data::text ~ $1 OR e.data_text ~ $1",
        pattern, timeout=STATEMENT_S_MAX,
    )  # fmt: skip
    return found


async def audit_records(connection: "Anyone", pattern: str) -> list[dict[str, Any]]:
    """Records of the audit log that name the person."""
    rows = await connection.fetch(
        "SELECT no, time, who, action, target, result FROM audit_log WHERE who ~ $1 OR target ~ $1 OR data::text ~ $1 "
        "ORDER BY no LIMIT $2",
        pattern, AUDIT_MAX, timeout=STATEMENT_S_MAX,
    )  # fmt: skip
    return [dict(row) for row in rows]


# ── taking it out ────────────────────────────────────────────────────────────────────────────────────────────────────


async def frame(connection: "Anyone", day: date, batch_id: int) -> bytes | None:
    """The frame of a batch, locked until the transaction ends."""
    found: bytes | None = await connection.fetchval(
        "SELECT frame FROM evidence WHERE received >= $1 AND received < $2 AND batch_id = $3 FOR UPDATE",
        *bounds(day), batch_id,
    )  # fmt: skip
    return found


async def actors(connection: "Anyone", day: date, batch_id: int, places: Sequence[int]) -> set[str]:
    """Actors of these events, as their rows have them."""
    rows = await connection.fetch(
        "SELECT DISTINCT actor FROM security_events WHERE received >= $1 AND received < $2 AND batch_id = $3 AND idx = ANY ($4::integer[]) "
        "AND actor IS NOT NULL",
        *bounds(day), batch_id, list(places),
    )  # fmt: skip
    return {row[0] for row in rows}


async def blank(
    connection: "Anyone", day: date, batch_id: int, places: Sequence[int], wire: bytes, erasure: int
) -> None:
    """Put the frame without these personal lines in its place, empty the rows, and declare it. In the caller's transaction."""
    begin, end = bounds(day)
    await connection.execute(
        "UPDATE evidence SET frame = $4 WHERE received >= $1 AND received < $2 AND batch_id = $3",
        begin,
        end,
        batch_id,
        wire,
    )
    await connection.execute(
        "UPDATE security_events SET actor = NULL, raw = NULL, personal = NULL, personal_text = NULL "
        "WHERE received >= $1 AND received < $2 AND batch_id = $3 AND idx = ANY ($4::integer[])",
        begin, end, batch_id, list(places),
    )  # fmt: skip
    await connection.execute(
        "INSERT INTO erased_lines AS l (batch_id, erasure_id, idx) "
        "SELECT $1, $2, range_agg(int4range(n, n + 1)) FROM unnest($3::integer[]) AS n "
        "ON CONFLICT (batch_id, erasure_id) DO UPDATE SET idx = l.idx + excluded.idx",
        batch_id, erasure, list(places),
    )  # fmt: skip
    await connection.execute(
        "UPDATE erasures SET events = events + $2, batches = batches + 1 WHERE erasure_id = $1", erasure, len(places)
    )


async def personal_columns(connection: "Anyone") -> list[tuple[str, str, str]]:
    """Table, column and type of what is personal in other tables."""
    rows = await connection.fetch(_PERSONAL)
    return [(row[0], row[1], row[2]) for row in rows]


async def blank_elsewhere(connection: "Anyone", pattern: str) -> dict[str, int]:
    """Empty what is personal in other tables and names the person; rows, by table and column."""
    done: dict[str, int] = {}
    for table, column, kind in await personal_columns(connection):
        empty = {"jsonb": "'{}'::jsonb", "text": "''", "text[]": "'{}'"}[kind]
        value = (
            f"CASE WHEN {'true' if await _nullable(connection, table, column) else 'false'} THEN NULL ELSE {empty} END"
        )
        status = await connection.execute(
            f'UPDATE {table} SET "{column}" = {value} WHERE "{column}"::text ~ $1', pattern, timeout=STATEMENT_S_MAX
        )
        if count := int(status.rpartition(" ")[2]):
            done[f"{table}.{column}"] = count
    return done


async def rows_elsewhere(connection: "Anyone", pattern: str) -> dict[str, list[Any]]:
    """Rows of other tables that name the person, as JSON, by table."""
    found: dict[str, list[Any]] = {}
    for table, column, _ in await personal_columns(connection):
        rows = await connection.fetch(
            f'SELECT to_jsonb(t)::text FROM {table} t WHERE "{column}"::text ~ $1 LIMIT 10000',
            pattern,
            timeout=STATEMENT_S_MAX,
        )
        if rows:
            found.setdefault(table, []).extend(msgspec.json.decode(row[0]) for row in rows)
    return found


async def _nullable(connection: "Anyone", table: str, column: str) -> bool:
    required: bool = await connection.fetchval(
        "SELECT attnotnull FROM pg_attribute WHERE attrelid = $1::regclass AND attname = $2", table, column
    )
    return not required


async def vacuum(connection: "Anyone", day: date) -> None:
    """Let go of the versions of rows and frames from before, which lie in the files until then."""
    for table in ("security_events", "evidence"):
        for name in (f"{table}_{day:%Y%m%d}", f"{table}_default"):
            if await connection.fetchval("SELECT to_regclass($1)", name):
                await connection.execute(f"VACUUM {name}", timeout=STATEMENT_S_MAX)


_PERSONAL = """
SELECT c.oid::regclass::text, a.attname::text, format_type(a.atttypid, NULL)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    AND c.relname NOT IN ('security_events', 'erasures') AND col_description(c.oid, a.attnum) LIKE 'Personal:%'
    AND format_type(a.atttypid, NULL) IN ('text', 'jsonb', 'text[]')
ORDER BY 1, 2
"""
