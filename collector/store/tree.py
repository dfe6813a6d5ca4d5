"""The Merkle tree in the database: which leaves come next, the tiles, the checkpoints, and how far each target has them.

Leaves are taken in the order of commits. A transaction's number is given before it commits, so one that is lower may become visible later;
only transactions below the oldest that still runs are taken, of which none can come any more. That order never changes, so neither
does a leaf.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from collector.store import audit
from collector.store.merkle import HASH_BYTES, TILE_HASHES, Tile, Tree, edge, grown, leaf_hash, tiles_for

if TYPE_CHECKING:
    from collector.store.database import Anyone
    from collector.store.merkle import Range

ADVISORY_LOCK = 0x4C57_0008
LEAVES_AT_ONCE = 70_000
"""More than the batches of one request, so that a transaction is always taken whole."""
STATEMENT_S_MAX = 3_600.0
BATCH, TOMBSTONE, AUDIT = "b", "t", "a"


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf to be: kind, number in its table, hash."""

    kind: str
    ref: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class State:
    """How far the tree has come."""

    leaves: int
    xid: int
    tombstone: int
    audit: int


def batch_leaf(row: Any) -> bytes:
    """The bytes of the leaf of a batch: a JSON object, keys sorted. What no frame knows of is in it, too."""
    said = {
        "agent": str(row["agent_id"]), "batch_id": row["batch_id"], "buffer": row["buffer_id"].hex, "events": row["events"],
        "hash": row["hash"], "lane": row["lane"], "no": row["batch_no"], "place": [row["site"], row["line"], row["station"]],
        "prev": row["prev"], "received_us": row["received_us"], "through": row["through"], "transaction": row["xid"],
    }  # fmt: skip
    return b"linewarden batch\n" + msgspec.json.encode(said, order="sorted")


def tombstone_leaf(number: int, digest: str) -> bytes:
    """The bytes of the leaf of a tombstone."""
    return f"linewarden tombstone\n{number}\n{digest}".encode()


def audit_leaf(number: int, digest: bytes) -> bytes:
    """The bytes of the leaf of an audit record."""
    return f"linewarden audit\n{number}\n{digest.hex()}".encode()


async def installation(connection: "Anyone") -> str:
    """What tells this database from others."""
    found = await connection.fetchval("SELECT buffer_id FROM installation")
    return str(found.hex)


async def state(connection: "Anyone", *, lock: bool = False) -> State:
    """Where the tree stands."""
    row = await connection.fetchrow(
        f"SELECT leaves, xid::text::bigint AS xid, tombstone, audit FROM merkle_state {'FOR UPDATE' if lock else ''}"
    )
    return State(**row) if row is not None else State(0, 0, 0, 0)


async def grow(connection: "Anyone") -> int:
    """Add what was committed since; how many leaves the tree has then. In a transaction for each part."""
    more = True
    while more:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", ADVISORY_LOCK)
            before = await state(connection, lock=True)
            after, leaves = await _next(connection, before)
            await _add(connection, before.leaves, leaves)
            await connection.execute(
                "UPDATE merkle_state SET leaves = $1, xid = $2::text::xid8, tombstone = $3, audit = $4",
                after.leaves, str(after.xid), after.tombstone, after.audit,
            )  # fmt: skip
            more = bool(leaves)
    return after.leaves


async def _next(connection: "Anyone", before: State) -> tuple[State, list[Leaf]]:
    horizon, newest = await connection.fetchrow(_HORIZON) or (0, 0)
    # The number of transactions starts anew when a dump is restored elsewhere. What is not in the tree then is added, whatever its number.
    restored = horizon < before.xid
    query = _NEXT.format("v.xid < $2::text::xid8 OR v.xid >= $1::text::xid8" if restored else _BETWEEN)
    low = newest if restored else before.xid
    rows = await connection.fetch(query, str(low), str(horizon), LEAVES_AT_ONCE, timeout=STATEMENT_S_MAX)
    reached = horizon
    if len(rows) == LEAVES_AT_ONCE:
        # The last transaction may not be there as a whole.
        last = rows[-1]["xid"]
        rows = [row for row in rows if row["xid"] < last]
        reached = before.xid if restored else last
    leaves = [Leaf(BATCH, row["batch_id"], leaf_hash(batch_leaf(row))) for row in rows]
    stones = await connection.fetch(
        "SELECT tombstone_id, hash FROM tombstones WHERE tombstone_id > $1 ORDER BY tombstone_id LIMIT $2",
        before.tombstone, LEAVES_AT_ONCE,
    )  # fmt: skip
    leaves += [Leaf(TOMBSTONE, row[0], leaf_hash(tombstone_leaf(*row))) for row in stones]
    records = await audit.following(connection, before.audit, LEAVES_AT_ONCE)
    leaves += [Leaf(AUDIT, record.no, leaf_hash(audit_leaf(record.no, record.hash))) for record in records]
    after = State(
        before.leaves + len(leaves),
        reached,
        stones[-1][0] if stones else before.tombstone,
        records[-1].no if records else before.audit,
    )
    return after, leaves


async def _add(connection: "Anyone", size: int, leaves: Sequence[Leaf]) -> None:
    if not leaves:
        return
    changed = grown(size, await tiles(connection, edge(size)), [leaf.hash for leaf in leaves])
    await connection.executemany(
        "INSERT INTO merkle_tiles (level, tile, hashes) VALUES ($1, $2, $3) "
        "ON CONFLICT (level, tile) DO UPDATE SET hashes = excluded.hashes",
        [(*tile, body) for tile, body in changed.items()],
    )
    first = size // TILE_HASHES
    row = await connection.fetchrow("SELECT kinds, refs FROM merkle_leaves WHERE tile = $1", first)
    kinds = (row["kinds"] if row else "") + "".join(leaf.kind for leaf in leaves)
    refs = (list(row["refs"]) if row else []) + [leaf.ref for leaf in leaves]
    made = []
    for at in range(0, len(refs), TILE_HASHES):
        part, kind = refs[at : at + TILE_HASHES], kinds[at : at + TILE_HASHES]
        batches = [ref for ref, k in zip(part, kind, strict=True) if k == BATCH]
        span = f"[{min(batches)},{max(batches)}]" if batches else "empty"
        made.append((first + at // TILE_HASHES, kind, part, span))
    await connection.executemany(
        "INSERT INTO merkle_leaves (tile, kinds, refs, span) VALUES ($1, $2, $3, $4::text::int8range) "
        "ON CONFLICT (tile) DO UPDATE SET kinds = excluded.kinds, refs = excluded.refs, span = excluded.span",
        made,
    )


async def tiles(connection: "Anyone", wanted: Iterable[Tile]) -> dict[Tile, bytes]:
    """Tiles by level and number; those that are not there are left out."""
    wanted = list(wanted)
    rows = await connection.fetch(
        "SELECT level, tile, hashes FROM merkle_tiles "
        "WHERE (level, tile) IN (SELECT * FROM unnest($1::smallint[], $2::bigint[]))",
        [tile[0] for tile in wanted], [tile[1] for tile in wanted],
    )  # fmt: skip
    return {(row["level"], row["tile"]): row["hashes"] for row in rows}


async def tree_for(connection: "Anyone", ranges: "Iterable[Range]") -> Tree:
    """The tree with the tiles that these need."""
    return Tree(await tiles(connection, tiles_for(ranges)))


async def root(connection: "Anyone", leaves: int) -> bytes:
    """The root over the first leaves. Raises MissingTile."""
    return (await tree_for(connection, [(0, leaves)])).root(leaves)


async def leaf_of_batch(connection: "Anyone", batch_id: int) -> int | None:
    """Number of the leaf of a batch; None where it is not in the tree yet."""
    rows = await connection.fetch("SELECT tile, kinds, refs FROM merkle_leaves WHERE span @> $1::bigint", batch_id)
    for row in rows:
        for at, (kind, ref) in enumerate(zip(row["kinds"], row["refs"], strict=True)):
            if kind == BATCH and ref == batch_id:
                return int(row["tile"]) * TILE_HASHES + at
    return None


async def leaf_at(connection: "Anyone", leaf: int) -> bytes | None:
    """The hash of a leaf as it stands in the tree."""
    number, at = divmod(leaf, TILE_HASHES)
    body = (await tiles(connection, [(0, number)])).get((0, number), b"")
    return body[at * HASH_BYTES : (at + 1) * HASH_BYTES] or None


async def batch_row(connection: "Anyone", batch_id: int) -> Any:
    """What `batch_leaf` is made of."""
    return await connection.fetchrow(f"{_LEAF} WHERE v.batch_id = $1", batch_id)


@dataclass(frozen=True, slots=True)
class Leaves:
    """A tile of leaves as it is stored."""

    tile: int
    kinds: str
    refs: list[int]
    hashes: bytes


async def leaf_tiles(connection: "Anyone", after: int, limit: int) -> list[Leaves]:
    """Tiles of level 0 behind number `after`."""
    rows = await connection.fetch(
        "SELECT coalesce(l.tile, t.tile) AS tile, coalesce(l.kinds, '') AS kinds, coalesce(l.refs, '{}') AS refs, "
        "coalesce(t.hashes, '') AS hashes FROM merkle_leaves l "
        "FULL JOIN (SELECT tile, hashes FROM merkle_tiles WHERE level = 0) t ON t.tile = l.tile "
        "WHERE coalesce(l.tile, t.tile) > $1 ORDER BY 1 LIMIT $2",
        after, limit,
    )  # fmt: skip
    return [Leaves(row["tile"], row["kinds"], list(row["refs"]), row["hashes"]) for row in rows]


async def batch_rows(connection: "Anyone", numbers: Sequence[int]) -> dict[int, Any]:
    """What the leaves of these batches are made of, of those that are kept; found by their range."""
    if not numbers:
        return {}
    wanted = set(numbers)
    rows = await connection.fetch(
        f"{_LEAF} WHERE v.batch_id BETWEEN $1 AND $2", min(numbers), max(numbers), timeout=STATEMENT_S_MAX
    )
    return {row["batch_id"]: row for row in rows if row["batch_id"] in wanted}


async def kept_below(connection: "Anyone", xid: int) -> int:
    """How many batches are kept that have to be in the tree."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM evidence WHERE xid < $1::text::xid8", str(xid), timeout=STATEMENT_S_MAX
    )
    return found


async def not_in_tree(connection: "Anyone", xid: int) -> list[Any]:
    """Batches that have to be in the tree and are not: at most a thousand."""
    return await connection.fetch(
        "SELECT agent_id, buffer_id, lane, batch_no, batch_id FROM evidence v WHERE xid < $1::text::xid8 AND NOT EXISTS ("
        "SELECT FROM merkle_leaves l WHERE l.span @> v.batch_id AND v.batch_id = ANY (l.refs)) LIMIT 1000",
        str(xid), timeout=STATEMENT_S_MAX,
    )  # fmt: skip


async def upper_tiles(connection: "Anyone") -> list[Any]:
    """All tiles above level 0."""
    return await connection.fetch("SELECT level, tile, hashes FROM merkle_tiles WHERE level > 0 ORDER BY level, tile")


async def last_hash_count(connection: "Anyone") -> int:
    """Leaves that the tiles of level 0 hold."""
    row = await connection.fetchrow(
        "SELECT tile, octet_length(hashes) AS size FROM merkle_tiles WHERE level = 0 ORDER BY tile DESC LIMIT 1"
    )
    return int(row["tile"]) * TILE_HASHES + int(row["size"]) // HASH_BYTES if row is not None else 0


# ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A row of `checkpoints`."""

    checkpoint_id: int
    made: datetime
    leaves: int
    root: str
    key_id: str
    note: str


_CHECKPOINT = "SELECT checkpoint_id, made, leaves, root, key_id, note FROM checkpoints"


async def keep_checkpoint(
    connection: "Anyone", *, made: datetime, leaves: int, root: bytes, key_id: str, verifier: str, note: str
) -> int:
    """Store one; its number."""
    await connection.execute(
        "INSERT INTO checkpoint_keys (key_id, verifier) VALUES ($1, $2) ON CONFLICT DO NOTHING", key_id, verifier
    )
    number: int = await connection.fetchval(
        "INSERT INTO checkpoints (made, leaves, root, key_id, note) VALUES ($1, $2, $3, $4, $5) RETURNING checkpoint_id",
        made, leaves, root.hex(), key_id, note,
    )  # fmt: skip
    return number


async def keep_key(connection: "Anyone", key_id: str, verifier: str) -> None:
    """Make a public key known."""
    await connection.execute(
        "INSERT INTO checkpoint_keys (key_id, verifier) VALUES ($1, $2) ON CONFLICT DO NOTHING", key_id, verifier
    )


async def checkpoints(connection: "Anyone", *, after: int = 0, limit: int = 1_000) -> list[StoredCheckpoint]:
    """Those behind a number, oldest first."""
    rows = await connection.fetch(
        f"{_CHECKPOINT} WHERE checkpoint_id > $1 ORDER BY checkpoint_id LIMIT $2", after, limit
    )
    return [StoredCheckpoint(**row) for row in rows]


async def checkpoint(connection: "Anyone", number: int | None, *, leaves: int = 0) -> StoredCheckpoint | None:
    """One by its number; without one the first that has at least so many leaves, or with 0 the last."""
    if number is not None:
        row = await connection.fetchrow(f"{_CHECKPOINT} WHERE checkpoint_id = $1", number)
    elif leaves:
        row = await connection.fetchrow(
            f"{_CHECKPOINT} WHERE leaves >= $1 ORDER BY leaves, checkpoint_id LIMIT 1", leaves
        )
    else:
        row = await connection.fetchrow(f"{_CHECKPOINT} ORDER BY checkpoint_id DESC LIMIT 1")
    return StoredCheckpoint(**row) if row is not None else None


async def keys(connection: "Anyone") -> dict[str, str]:
    """Verifier keys by their ids."""
    rows = await connection.fetch("SELECT key_id, verifier FROM checkpoint_keys ORDER BY since, key_id")
    return {row["key_id"]: row["verifier"] for row in rows}


@dataclass(frozen=True, slots=True)
class Target:
    """A row of `checkpoint_targets`."""

    target: str
    written: int
    changed: datetime
    trouble: str | None
    since: datetime | None


async def targets(connection: "Anyone", wanted: Sequence[str]) -> list[Target]:
    """The rows of these targets; made where they are new."""
    await connection.executemany(
        "INSERT INTO checkpoint_targets (target) VALUES ($1) ON CONFLICT DO NOTHING", [(target,) for target in wanted]
    )
    rows = await connection.fetch(
        "SELECT target, written, changed, trouble, since FROM checkpoint_targets WHERE target = ANY ($1::text[]) ORDER BY target",
        list(wanted),
    )
    return [Target(**row) for row in rows]


async def written(connection: "Anyone", target: str, number: int) -> None:
    """A checkpoint was written to a target."""
    await connection.execute(
        "UPDATE checkpoint_targets SET written = $2, changed = now(), trouble = NULL, since = NULL WHERE target = $1",
        target, number,
    )  # fmt: skip


async def failed(connection: "Anyone", target: str, trouble: str) -> None:
    """A checkpoint could not be written to a target."""
    await connection.execute(
        "UPDATE checkpoint_targets SET changed = now(), trouble = $2, since = coalesce(since, now()) WHERE target = $1",
        target, trouble,
    )  # fmt: skip


_LEAF = """
SELECT v.batch_id, v.xid::text::bigint AS xid, v.agent_id, v.buffer_id, v.lane, v.batch_no, v.through, v.events, v.hash, v.prev,
    (extract(epoch FROM v.received) * 1000000)::bigint AS received_us, coalesce(p.site, '') AS site, coalesce(p.line, '') AS line,
    coalesce(p.station, '') AS station
FROM evidence v LEFT JOIN places p ON p.place_id = v.place_id
"""
_HORIZON = """
SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint FROM pg_current_snapshot() AS s
"""
_BETWEEN = "v.xid >= $1::text::xid8 AND v.xid < $2::text::xid8"
_NEXT = (
    _LEAF
    + "WHERE ({}) AND NOT EXISTS (SELECT FROM merkle_leaves l WHERE l.span @> v.batch_id AND v.batch_id = ANY (l.refs)) "
    + "ORDER BY v.xid, v.batch_id LIMIT $3"
)
