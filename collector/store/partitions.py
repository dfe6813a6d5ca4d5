"""Daily partitions of `security_events` and `evidence`, made before they are needed.

Partition `security_events_20260131` holds what was received that day, UTC. A new one is made as a table of its own and then
attached: that never blocks ingest or a reader for longer than the attaching takes, and gives up after LOCK_S_MAX to try again later.
Rows that found no partition lie in the default one; making their day's partition moves them there, in one transaction.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import asyncpg

from collector.store.database import translated

if TYPE_CHECKING:
    from collector.store.database import Anyone

PARTITIONED = ("security_events", "evidence")
"""Each day has both."""
BESIDE = ("signatures",)
"""Days from before this table was made do not have it."""
ADVISORY_LOCK = 0x4C57_0002
LOCK_S_MAX = 5
INDEX_S_MAX = 3_600


@dataclass(frozen=True, slots=True)
class Partitions:
    """What there is. `through`: the last day that both tables have a partition for; `stray`: rows in the default partitions."""

    days: int
    through: date | None
    stray: int


def _name(table: str, day: date) -> str:
    return f"{table}_{day:%Y%m%d}"


async def ensure(connection: "Anyone", *, ahead_days: int) -> list[str]:
    """Make the partitions of today (the database's today) and `ahead_days` more, and of every day that lies in the default one."""
    made: list[str] = []
    with translated():
        # Several collectors may do this at once; one does, the others find it done.
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", ADVISORY_LOCK):
            return made
        try:
            today: date = await connection.fetchval("SELECT (now() AT TIME ZONE 'UTC')::date")
            for table in (*PARTITIONED, *BESIDE):
                days = {today + timedelta(days=n) for n in range(ahead_days + 1)} | await _stray_days(connection, table)
                existing = await _existing(connection, table)
                for day in sorted(days):
                    if _name(table, day) not in existing:
                        await _make(connection, table, day)
                        made.append(_name(table, day))
        finally:
            if not connection.is_closed():
                await connection.execute("SELECT pg_advisory_unlock($1)", ADVISORY_LOCK)
    return made


async def _existing(connection: "Anyone", table: str) -> set[str]:
    rows = await connection.fetch(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = $1::regclass",
        table,
    )
    return {row[0] for row in rows}


async def _stray_days(connection: "Anyone", table: str) -> set[date]:
    rows = await connection.fetch(
        f"SELECT DISTINCT (received AT TIME ZONE 'UTC')::date FROM ONLY {table}_default LIMIT 1000"
    )
    return {row[0] for row in rows}


async def _make(connection: "Anyone", table: str, day: date) -> None:
    name, default = _name(table, day), f"{table}_default"
    begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
    first, last = f"'{begin.isoformat()}'", f"'{(begin + timedelta(days=1)).isoformat()}'"
    within = f"received >= {first} AND received < {last}"
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_S_MAX}s'")
        await connection.execute(f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL)")
        # The constraint proves the bounds, so that attaching does not scan; it is not needed after.
        await connection.execute(f"ALTER TABLE {name} ADD CONSTRAINT bounds CHECK (received IS NOT NULL AND {within})")
        if await connection.fetchval(f"SELECT EXISTS (SELECT FROM {default} WHERE {within})"):
            # Nobody may add to the default partition between the move and the attaching.
            await connection.execute(f"LOCK TABLE {default} IN ACCESS EXCLUSIVE MODE")
            moved = f"WITH moved AS (DELETE FROM {default} WHERE {within} RETURNING *) INSERT INTO {name} SELECT * FROM moved"
            await connection.execute(moved, timeout=None)
        await connection.execute(f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ({first}) TO ({last})")
        await connection.execute(f"ALTER TABLE {name} DROP CONSTRAINT bounds")
        await _comment(connection, name, table, day)


async def _comment(connection: "Anyone", name: str, table: str, day: date) -> None:
    await connection.execute(f"COMMENT ON TABLE {name} IS 'Part of {table}: received on {day.isoformat()}, UTC'")


async def index_closed(connection: "Anyone") -> list[str]:
    """Give the days that are over their index for text: trigrams of the message. Names of the partitions that got it.

    While a day is written to, that index would cost a fifth of the speed of ingest; afterwards it costs nothing. Where the server has no
    pg_trgm, or does not let us have it, text is searched without.
    """
    made: list[str] = []
    with translated():
        if not await _trigrams(connection) or not await connection.fetchval(
            "SELECT pg_try_advisory_lock($1)", ADVISORY_LOCK
        ):
            return made
        try:
            for name in [row[0] for row in await connection.fetch(_WITHOUT_TEXT)]:
                async with connection.transaction():
                    await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_S_MAX}s'")
                    await connection.execute(
                        f"CREATE INDEX {name}_text ON {name} USING gin (message gin_trgm_ops)", timeout=INDEX_S_MAX
                    )
                made.append(name)
        finally:
            if not connection.is_closed():
                await connection.execute("SELECT pg_advisory_unlock($1)", ADVISORY_LOCK)
    return made


async def _trigrams(connection: "Anyone") -> bool:
    try:
        await connection.execute("SET client_min_messages = warning; CREATE EXTENSION IF NOT EXISTS pg_trgm")
    except (
        asyncpg.InsufficientPrivilegeError,
        asyncpg.UndefinedFileError,
        asyncpg.FeatureNotSupportedError,
        asyncpg.UniqueViolationError,  # another collector does it now
    ):
        return False
    finally:
        await connection.execute("RESET client_min_messages")
    return True


# Days that ended an hour ago or more: whatever was being stored at midnight is done.
_WITHOUT_TEXT = """
SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'security_events'::regclass AND c.relname ~ '_[0-9]{8}$'
    AND to_date(right(c.relname, 8), 'YYYYMMDD') < ((now() - interval '1 hour') AT TIME ZONE 'UTC')::date
    AND to_regclass(quote_ident(c.relname || '_text')) IS NULL
ORDER BY c.relname DESC
"""


async def look(connection: "Anyone") -> Partitions:
    """What partitions there are."""
    with translated():
        names = [await _existing(connection, table) for table in PARTITIONED]
        stray = 0
        for table in PARTITIONED:
            # Bounded: the exact number does not matter once it is large.
            stray += await connection.fetchval(f"SELECT count(*) FROM (SELECT FROM {table}_default LIMIT 100000) AS s")
    days = set.intersection(*({name.rpartition("_")[2] for name in found} for found in names)) - {"default"}
    through = max(days, default=None)
    return Partitions(
        len(days), datetime.strptime(through, "%Y%m%d").replace(tzinfo=UTC).date() if through else None, stray
    )
