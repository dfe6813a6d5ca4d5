"""Reading what `verify` compares: frames, rows, heads, tombstones. Only reading, and never for long in one transaction.

The work is cut into units: batches of one day, by their numbers. A unit is read in a transaction of its own, in which frames and rows
are those of
one moment; ingest, retention and erasure go on beside it.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from collector.store.partitions import PARTITIONED
from collector.store.rows import COLUMNS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from collector.store.database import Anyone, Plain

UNIT_EVENTS = 30_000
UNIT_FRAME_BYTES = 4 * 1024 * 1024
UNIT_BATCHES = 2_000
ROWS_SPARE = 10_000
"""So many rows more than a unit has to have are read; should there be still more, its last batches are found to lack rows as well."""
CURSOR_ROWS = 2_000
STATEMENT_S_MAX = 3_600.0

Indexes = dict[int, frozenset[int]]
"""Places in batches, by batch_id."""


class Kept(NamedTuple):
    """A row of `evidence`."""

    batch_id: int
    received: datetime
    batch_no: int
    through: int
    first_time: datetime
    last_time: datetime
    xid: int
    agent_id: UUID
    buffer_id: UUID
    events: int
    lane: int
    hash: str
    prev: str
    place_id: int | None
    signature_id: int | None
    frame: bytes


_KEPT = (
    "batch_id, received, batch_no, through, first_time, last_time, xid::text::bigint AS xid, agent_id, buffer_id, events, lane, hash, "
    "prev, place_id, signature_id"
)


@dataclass(frozen=True, slots=True)
class Unit:
    """Batches of one day: those after `low` up to `high`."""

    begin: datetime
    end: datetime
    low: int
    high: int
    events: int


async def days(connection: "Anyone") -> "dict[str, set[date]]":
    """The days that each of the two tables has rows or partitions for."""
    found: dict[str, set[date]] = {}
    for table in PARTITIONED:
        names = await connection.fetch(
            "SELECT right(c.relname, 8) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "WHERE i.inhparent = $1::regclass AND c.relname ~ '_[0-9]{8}$'",
            table,
        )
        strays = await connection.fetch(
            f"SELECT DISTINCT (received AT TIME ZONE 'UTC')::date FROM ONLY {table}_default"
        )
        found[table] = {datetime.strptime(row[0], "%Y%m%d").replace(tzinfo=UTC).date() for row in names}
        found[table] |= {row[0] for row in strays}
    return found


def bounds(day: date) -> tuple[datetime, datetime]:
    """Begin and end of a day, UTC."""
    begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return begin, begin + timedelta(days=1)


async def units(connection: "Anyone", day: date, agent: UUID | None) -> "AsyncIterator[Unit]":
    """The batches of a day that are there now, in pieces."""
    begin, end = bounds(day)
    low, after = -1, -1
    events = size = count = 0
    while rows := await connection.fetch(_SIZES, begin, end, after, agent, CURSOR_ROWS):
        for row in rows:
            if count and (
                events + row["events"] > UNIT_EVENTS or size + row["size"] > UNIT_FRAME_BYTES or count == UNIT_BATCHES
            ):
                yield Unit(begin, end, low, after, events)
                low, events, size, count = after, 0, 0, 0
            after = row["batch_id"]
            events, size, count = events + row["events"], size + row["size"], count + 1
    if count:
        yield Unit(begin, end, low, after, events)


async def kept(connection: "Anyone", unit: Unit, agent: UUID | None) -> list[Kept]:
    """The batches of a unit with their frames, by number."""
    rows = await connection.fetch(_FRAMES, unit.begin, unit.end, unit.low, unit.high, agent)
    return [Kept(*row) for row in rows]


async def stream_batches(
    connection: "Anyone", agent: UUID, buffer: UUID, lane: int, first: int, last: int, *, limit: int = 1
) -> list[Kept]:
    """Batches of a stream by their numbers."""
    rows = await connection.fetch(
        f"SELECT {_KEPT}, frame FROM evidence WHERE agent_id = $1 AND buffer_id = $2 AND lane = $3 AND batch_no BETWEEN $4 AND $5 "
        "ORDER BY batch_no, batch_id LIMIT $6",
        agent, buffer, lane, first, last, limit,
    )  # fmt: skip
    return [Kept(*row) for row in rows]


async def copied(
    connection: "Anyone", unit: Unit, *, low: int, high: int, only: "Sequence[int] | None", events: int
) -> bytes:
    """The rows of batches after `low` up to `high`, or of these `only`, as a binary COPY, by batch and place."""
    body = bytearray()

    async def take(chunk: bytes) -> None:
        body.extend(chunk)

    which, values = (
        ("batch_id > $3 AND batch_id <= $4", (low, high))
        if only is None
        else ("batch_id = ANY ($3::bigint[])", (only,))
    )
    await connection.copy_from_query(
        f"SELECT {', '.join(COLUMNS)} FROM security_events WHERE received >= $1 AND received < $2 AND {which} "
        f"ORDER BY batch_id, idx LIMIT {events + ROWS_SPARE}",
        unit.begin, unit.end, *values, output=take, format="binary", timeout=STATEMENT_S_MAX,
    )  # fmt: skip
    return bytes(body)


async def gaps(connection: "Anyone", numbers: "Sequence[int]") -> list[dict[str, Any]]:
    """Declared losses of batches."""
    rows = await connection.fetch("SELECT * FROM gaps WHERE batch_id = ANY ($1::bigint[])", list(numbers))
    return [dict(row) for row in rows]


class AgentKey(NamedTuple):
    """A row of `agent_keys`. `ended`: the earlier of followed and revoked; `why`: which."""

    key_id: str
    agent_id: UUID
    public_key: bytes
    valid_from: datetime
    ended: datetime | None
    why: str
    proof: str
    signature: bytes
    parent: str | None
    parent_signature: bytes | None


async def agent_keys(connection: "Anyone", agents: "Sequence[UUID] | None") -> dict[str, AgentKey]:
    """Keys of these agents, or of all, by their ids."""
    rows = await connection.fetch(
        "SELECT key_id, agent_id, public_key, valid_from, least(valid_until, revoked) AS ended, "
        "CASE WHEN revoked <= coalesce(valid_until, revoked) THEN 'revoked' ELSE 'followed by another' END AS why, proof, signature, "
        "parent, parent_signature FROM agent_keys WHERE $1::uuid[] IS NULL OR agent_id = ANY ($1)",
        list(agents) if agents is not None else None,
    )
    return {row["key_id"]: AgentKey(*row) for row in rows}


class StoredSignature(NamedTuple):
    """A row of `signatures`."""

    signature_id: int
    received: datetime
    agent_id: UUID
    key_id: str
    signed: str
    signature: bytes


async def signatures(
    connection: "Anyone", begin: datetime, end: datetime, numbers: "Sequence[int]"
) -> list[StoredSignature]:
    """Signatures of a time by their numbers."""
    rows = await connection.fetch(
        "SELECT signature_id, received, agent_id, key_id, signed, signature FROM signatures "
        "WHERE received >= $1 AND received < $2 AND signature_id = ANY ($3::bigint[])",
        begin, end, list(numbers),
    )  # fmt: skip
    return [StoredSignature(*row) for row in rows]


async def signature_of(connection: "Anyone", begin: datetime, end: datetime, batch_id: int) -> StoredSignature | None:
    """The signature that covers a batch of a time, if there is one."""
    number = await connection.fetchval(
        "SELECT signature_id FROM evidence WHERE received >= $1 AND received < $2 AND batch_id = $3",
        begin,
        end,
        batch_id,
    )
    found = await signatures(connection, begin, end, [number]) if number is not None else []
    return found[0] if found else None


async def declared(connection: "Anyone", table: str, numbers: "Sequence[int]") -> Indexes:
    """Rows of batches that tombstones name, or personal lines that erasures name."""
    rows = await connection.fetch(
        f"SELECT batch_id, unnest(idx) AS idx FROM {table} WHERE batch_id = ANY ($1::bigint[])", list(numbers)
    )
    found: dict[int, set[int]] = {}
    for row in rows:
        found.setdefault(row["batch_id"], set()).update(range(row["idx"].lower, row["idx"].upper))
    return {batch_id: frozenset(indexes) for batch_id, indexes in found.items()}


async def strays(connection: "Anyone", day: date, above: int, agent: UUID | None) -> list[Any]:
    """Rows of a day, above a number, whose batch is not kept in it: at most a thousand."""
    begin, end = bounds(day)
    return await connection.fetch(_STRAYS, begin, end, above, agent, timeout=STATEMENT_S_MAX)


async def holders(connection: "Anyone", batch_id: int) -> bool:
    """Whether a batch is kept at all."""
    found: bool = await connection.fetchval("SELECT EXISTS (SELECT FROM evidence WHERE batch_id = $1)", batch_id)
    return found


class Link(NamedTuple):
    """What a chain is followed by: a row of `evidence` without its frame. `link`: what the next batch has to name."""

    agent_id: UUID
    buffer_id: UUID
    lane: int
    batch_no: int
    through: int
    prev: str
    hash: str
    link: str
    events: int
    gap: bool
    received: datetime


class StoredHead(NamedTuple):
    """A row of `batch_heads`."""

    agent_id: UUID
    buffer_id: UUID
    lane: int
    batch_no: int
    hash: str
    batches: int
    events: int
    gaps: int


async def heads(connection: "Anyone", agent: UUID | None) -> list[StoredHead]:
    """How far each stream is stored."""
    rows = await connection.fetch(
        "SELECT agent_id, buffer_id, lane, batch_no, hash, batches, events, gaps FROM batch_heads "
        "WHERE $1::uuid IS NULL OR agent_id = $1 ORDER BY 1, 2, 3",
        agent,
    )
    return [StoredHead(*row) for row in rows]


async def links(connection: "Plain", agent: UUID | None, since: datetime | None) -> "AsyncIterator[Link]":
    """All batches by stream and number. In a transaction of the caller's."""
    async for row in connection.cursor(_LINKS, agent, since, prefetch=CURSOR_ROWS, timeout=STATEMENT_S_MAX):
        yield Link(*row)


async def tombstones(connection: "Anyone") -> list[dict[str, Any]]:
    """All of them, oldest first."""
    rows = await connection.fetch(
        "SELECT tombstone_id, made, day, kind, rule, events, streams, prev, hash, rows_hash, signature, key_id FROM tombstones "
        "ORDER BY tombstone_id"
    )
    return [dict(row) for row in rows]


async def audit_end(connection: "Anyone") -> tuple[int, bytes, int]:
    """Number and hash that the head of the audit log has, and the greatest number in it: of one moment."""
    row = await connection.fetchrow(
        "SELECT coalesce(h.no, 0), coalesce(h.hash, ''), coalesce((SELECT max(no) FROM audit_log), 0) "
        "FROM (SELECT true) AS one LEFT JOIN audit_head h ON true"
    )
    return (row[0], row[1], row[2]) if row is not None else (0, b"", 0)


async def forks(connection: "Anyone", agent: UUID | None, since: datetime | None, most: int) -> tuple[int, list[Any]]:
    """Contradictions that were refused: how many, and the newest."""
    rows = await connection.fetch(
        "SELECT *, count(*) OVER () AS count FROM forks WHERE ($1::uuid IS NULL OR agent_id = $1) "
        "AND ($2::timestamptz IS NULL OR seen >= $2) ORDER BY seen DESC LIMIT $3",
        agent, since, most,
    )  # fmt: skip
    return (rows[0]["count"] if rows else 0), rows


_SIZES = """
SELECT batch_id, events, octet_length(frame) AS size FROM evidence
WHERE received >= $1 AND received < $2 AND batch_id > $3 AND ($4::uuid IS NULL OR agent_id = $4) ORDER BY batch_id LIMIT $5
"""
_FRAMES = f"""
SELECT {_KEPT}, frame FROM evidence
WHERE received >= $1 AND received < $2 AND batch_id > $3 AND batch_id <= $4 AND ($5::uuid IS NULL OR agent_id = $5) ORDER BY batch_id
"""
_STRAYS = """
SELECT agent_id, buffer_id, lane, batch_no, idx, batch_id, received FROM security_events e
WHERE received >= $1 AND received < $2 AND batch_id > $3 AND ($4::uuid IS NULL OR agent_id = $4)
    AND NOT EXISTS (SELECT FROM evidence v WHERE v.batch_id = e.batch_id AND v.received = e.received)
ORDER BY batch_id, idx LIMIT 1000
"""
_LINKS = """
SELECT v.agent_id, v.buffer_id, v.lane, v.batch_no, v.through, v.prev, v.hash, coalesce(g.last_hash, v.hash) AS link, v.events,
    g.batch_id IS NOT NULL AS gap, v.received
FROM evidence v LEFT JOIN gaps g ON g.batch_id = v.batch_id AND g.through IS NOT NULL
WHERE ($1::uuid IS NULL OR v.agent_id = $1) AND ($2::timestamptz IS NULL OR v.received >= $2)
ORDER BY v.agent_id, v.buffer_id, v.lane, v.batch_no, v.batch_id
"""
