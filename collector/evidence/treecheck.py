"""The tree held against what it is about: every leaf that can still be made, every tile, every checkpoint; and the audit log.

The rows of a leaf may be gone: then a tombstone has to stand for it. How many of each are gone is known, so one that is missing for no
reason
is found, though a tombstone for its time may hide which.
"""

import base64
import binascii
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from collector.evidence.chain import Stretch, stretches
from collector.evidence.finding import Finding
from collector.evidence.note import BadNote, Checkpoint, NoNote, VerifierKey, notes_in, opened, verifier_key
from collector.store import audit, evidence, tree
from collector.store.merkle import HASH_BYTES, TILE_HASHES, MissingTile, Tree, fold, hashes_in, leaf_hash
from collector.store.retention import signed_bytes
from collector.store.tree import AUDIT, BATCH, TOMBSTONE, Leaves

if TYPE_CHECKING:
    from collector.store.database import Anyone

TILES_AT_ONCE = 64
AUDIT_AT_ONCE = 2_000
CHECKPOINTS_AT_ONCE = 500
MISSING_MAX = 100


@dataclass(slots=True)
class TreeReport:
    """What was looked at."""

    leaves: int = 0
    audit_records: int = 0
    checkpoints: int = 0
    proven: int = 0
    """Checkpoints from outside that this database is consistent with."""
    notes: list[str] = field(default_factory=list)


def _found(kind: str, text: str, table: str, record: int | None = None) -> Finding:
    return Finding(kind=kind, text=text, table=table, record=record)


# ── the audit log ────────────────────────────────────────────────────────────────────────────────────────────────────


async def audit_findings(connection: "Anyone", report: TreeReport) -> list[Finding]:
    """The chain of the audit log, from the first record, across what left against tombstones, to its head. All of one moment."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        return await _audit_findings(connection, report)


async def _audit_findings(connection: "Anyone", report: TreeReport) -> list[Finding]:
    found: list[Finding] = []
    end, end_hash, greatest = await evidence.audit_end(connection)
    prev, last = audit.GENESIS, 0
    for stretch in stretches(await evidence.tombstones(connection)):
        if stretch.first != last + 1 or stretch.prev != prev or stretch.last < stretch.first:
            text = f"does not go on where the audit log was left at {last}"
            found.append(_found("tombstone.broken", text, "tombstones", stretch.tombstone))
        prev, last = stretch.hash, stretch.last
    if (least := await audit.least(connection)) is not None and least <= last:
        text = f"a tombstone says that the records up to {last} left, and this one is there"
        found.append(_found("audit.inserted", text, "audit_log", least))
    while last < end and (records := await audit.following(connection, last, AUDIT_AT_ONCE)):
        for record in records:
            found += _record(record, prev, last)
            prev, last = record.hash, record.no
            if last >= end:
                break
    report.audit_records = last
    if last < end:
        found.append(_found("audit.cut", f"the log ends at {last} and its head knows of {end}", "audit_log", last + 1))
    elif last > end or prev != end_hash:
        found.append(_found("audit.head", "the head is not the last record", "audit_head", end))
    if greatest > end:
        found.append(_found("audit.inserted", f"records lie behind the head, which is at {end}", "audit_log", greatest))
    return found


def _record(record: audit.Record, prev: bytes, last: int) -> Iterator[Finding]:
    if record.no > last + 1:
        yield _found("audit.deleted", f"records {last + 1} to {record.no - 1} are gone", "audit_log", last + 1)
    elif record.prev != prev:
        text = "does not name the record before it: one was put in, or changed and made anew"
        yield _found("audit.broken", text, "audit_log", record.no)
    if audit.record_hash(record) != record.hash:
        yield _found("audit.changed", "is not what its hash was made of", "audit_log", record.no)


# ── leaves and tiles ─────────────────────────────────────────────────────────────────────────────────────────────────


async def tree_findings(
    connection: "Anyone", tombstones: Sequence[dict[str, Any]], report: TreeReport
) -> list[Finding]:
    """Leaves against rows, tiles against leaves."""
    found: list[Finding] = []
    stood = await tree.state(connection)
    stones = {t["tombstone_id"]: t["hash"] for t in tombstones}
    roots: list[bytes] = []
    missing: list[int] = []
    left: dict[int, bytes] = {}
    after, kept = -1, 0
    while tiles := await tree.leaf_tiles(connection, after, TILES_AT_ONCE):
        numbers = [ref for tile in tiles for kind, ref in zip(tile.kinds, tile.refs, strict=False) if kind == BATCH]
        rows = await tree.batch_rows(connection, numbers)
        records = await _records(connection, tiles)
        for tile in tiles:
            if tile.tile != after + 1:
                found.append(
                    _found("tree.cut", f"tiles {after + 1} to {tile.tile - 1} are gone", "merkle_tiles", after + 1)
                )
            found += _tile(tile, rows, stones, records, missing, left)
            report.leaves += len(tile.refs)
            if len(tile.hashes) == TILE_HASHES * HASH_BYTES:
                roots.append(fold(hashes_in(tile.hashes)))
            after = tile.tile
        kept += len(rows)
    found += _uppers(await tree.upper_tiles(connection), roots)
    if report.leaves < stood.leaves:
        text = f"the tree had {stood.leaves} leaves and has {report.leaves}"
        found.append(_found("tree.cut", text, "merkle_leaves", report.leaves))
    # Again: retention may have gone on while the tree was walked.
    tombstones = await evidence.tombstones(connection)
    found += _missing(missing, tombstones)
    found += _left(left, stretches(tombstones))
    if await tree.kept_below(connection, stood.xid) > kept:
        found += [_unknown(row) for row in await tree.not_in_tree(connection, stood.xid)]
    return found


def _unknown(row: Any) -> Finding:
    return Finding(
        kind="tree.unknown", text="is kept and not in the tree, though it claims to be as old", agent=str(row["agent_id"]),
        buffer=row["buffer_id"].hex, lane=row["lane"], batch=row["batch_no"], table="evidence",
    )  # fmt: skip


async def _records(connection: "Anyone", tiles: Sequence[Leaves]) -> dict[int, bytes]:
    numbers = [ref for tile in tiles for kind, ref in zip(tile.kinds, tile.refs, strict=False) if kind == AUDIT]
    if not numbers:
        return {}
    records = await audit.following(connection, min(numbers) - 1, max(numbers) - min(numbers) + 1)
    return {record.no: record.hash for record in records}


def _tile(
    tile: Leaves,
    rows: dict[int, Any],
    stones: dict[int, str],
    records: dict[int, bytes],
    missing: list[int],
    left: dict[int, bytes],
) -> Iterator[Finding]:
    hashes = hashes_in(tile.hashes)
    if not len(hashes) == len(tile.refs) == len(tile.kinds):
        text = f"has {len(hashes)} hashes for {len(tile.refs)} leaves"
        yield _found("tree.changed", text, "merkle_tiles", tile.tile)
        return
    for at, (kind, ref, said) in enumerate(zip(tile.kinds, tile.refs, hashes, strict=True)):
        leaf = tile.tile * TILE_HASHES + at
        if kind == BATCH:
            if ref not in rows:
                missing.append(ref)
            elif leaf_hash(tree.batch_leaf(row := rows[ref])) != said:
                yield Finding(
                    kind="tree.changed", text="is not what went into the tree: its row in evidence, its place, or the tree was changed",
                    agent=str(row["agent_id"]), buffer=row["buffer_id"].hex, lane=row["lane"], batch=row["batch_no"], table="evidence",
                    record=leaf,
                )  # fmt: skip
        elif kind == AUDIT and ref not in records:
            left[ref] = said
        else:
            yield from _record_leaf(kind, ref, said, stones, records)


def _record_leaf(
    kind: str, ref: int, said: bytes, stones: dict[int, str], records: dict[int, bytes]
) -> Iterator[Finding]:
    name, table = ("tombstone", "tombstones") if kind == TOMBSTONE else ("audit", "audit_log")
    if ref not in (stones if kind == TOMBSTONE else records):
        yield _found(f"{name}.deleted", "is in the tree and not in the table", table, ref)
        return
    leaf = tree.tombstone_leaf(ref, stones[ref]) if kind == TOMBSTONE else tree.audit_leaf(ref, records[ref])
    if leaf_hash(leaf) != said:
        yield _found(f"{name}.changed", "is not what went into the tree", table, ref)


def _left(left: dict[int, bytes], known: Sequence[Stretch]) -> Iterator[Finding]:
    """Audit records of the tree that are no longer kept, by the hashes of their leaves, against the tombstones that stand for them."""
    last = {stretch.last: stretch.hash for stretch in known}
    for number, said in left.items():
        if not any(stretch.first <= number <= stretch.last for stretch in known):
            text = "is in the tree and not in the table, and no tombstone stands for it"
            yield _found("audit.deleted", text, "audit_log", number)
        elif number in last and leaf_hash(tree.audit_leaf(number, last[number])) != said:
            text = "the tombstone that stands for it has another hash than the tree"
            yield _found("audit.changed", text, "audit_log", number)


def _missing(missing: Sequence[int], tombstones: Iterable[dict[str, Any]]) -> Iterator[Finding]:
    """Batches that are in the tree and no longer kept, against those that tombstones stand for."""
    streams = [s for t in tombstones for s in msgspec.json.decode(t["streams"])]
    declared = sum(s.get("batches", 0) for s in streams)
    if len(missing) <= declared:
        return
    spans = [(s["first_id"], s["last_id"]) for s in streams if "first_id" in s]
    named = [n for n in missing if not any(first <= n <= last for first, last in spans)]
    for number in named[:MISSING_MAX]:
        yield _found(
            "tree.missing", "the batch is in the tree, is not kept, and no tombstone stands for it", "evidence", number
        )
    if not named:
        text = f"{len(missing)} batches of the tree are not kept, and tombstones stand for {declared}"
        yield _found("tree.missing", text, "evidence")


def _uppers(tiles: Iterable[Any], roots: list[bytes]) -> Iterator[Finding]:
    """Each level made of the full tiles of the one below."""
    stored = {(row["level"], row["tile"]): row["hashes"] for row in tiles}
    level = 1
    while roots or any(key[0] == level for key in stored):
        above: list[bytes] = []
        for number in range(-(-len(roots) // TILE_HASHES)):
            part = roots[number * TILE_HASHES : (number + 1) * TILE_HASHES]
            if stored.get((level, number)) != b"".join(part):
                yield _found(
                    "tree.changed", f"is not made of the tiles below it (level {level})", "merkle_tiles", number
                )
            if len(part) == TILE_HASHES:
                above.append(fold(part))
        known = -(-len(roots) // TILE_HASHES)
        for lvl, number in stored:
            if lvl == level and number >= known:
                yield _found("tree.changed", f"there is nothing below it (level {level})", "merkle_tiles", number)
        roots = above
        level += 1


# ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────────────


def tombstone_signatures(tombstones: Iterable[dict[str, Any]], keys: Sequence[VerifierKey]) -> Iterator[Finding]:
    """Those that are signed, by keys of the installation."""
    by_id = {key.key_id.hex(): key for key in keys}
    signed = False
    for t in tombstones:
        number = t["tombstone_id"]
        if t["signature"] is None:
            if signed:
                yield _found("tombstone.unsigned", "has no signature, and one before it has", "tombstones", number)
            continue
        signed = True
        key = by_id.get(t["key_id"])
        try:
            raw = base64.b64decode(t["signature"], validate=True)
        except (ValueError, binascii.Error):
            raw = b""
        if key is None or not key.holds(raw, signed_bytes(t["hash"])):
            yield _found("tombstone.forged", "its signature does not hold", "tombstones", number)


async def checkpoint_findings(connection: "Anyone", keys: Sequence[VerifierKey], report: TreeReport) -> list[Finding]:
    """The stored checkpoints: signature, and that the tree still has their roots."""
    found: list[Finding] = []
    after, leaves = 0, 0
    while stored := await tree.checkpoints(connection, after=after, limit=CHECKPOINTS_AT_ONCE):
        whole = await tree.tree_for(connection, [(0, one.leaves) for one in stored])
        for one in stored:
            number = one.checkpoint_id
            report.checkpoints += 1
            if number != after + 1:
                found.append(
                    _found("checkpoint.deleted", f"{after + 1} to {number - 1} are gone", "checkpoints", after + 1)
                )
            try:
                said, _ = opened(one.note, list(keys))
            except BadNote as error:
                found.append(_found("checkpoint.forged", str(error), "checkpoints", number))
            else:
                if (said.leaves, said.root.hex()) != (one.leaves, one.root):
                    found.append(
                        _found("checkpoint.changed", "its columns are not what its note says", "checkpoints", number)
                    )
                if said.leaves < leaves:
                    found.append(
                        _found("checkpoint.rolled_back", "has fewer leaves than one before it", "checkpoints", number)
                    )
                if trouble := _inconsistent(whole, said):
                    found.append(_found("checkpoint.broken", trouble, "checkpoints", number))
                leaves = max(leaves, said.leaves)
            after = number
    return found


def _inconsistent(whole: Tree, said: Checkpoint) -> str | None:
    """Why the tree is not a continuation of what was signed; None where it is."""
    try:
        root = whole.root(said.leaves)
    except MissingTile as error:
        return f"the tree has not the {said.leaves} leaves that were signed: {error}"
    if root != said.root:
        return f"the first {said.leaves} leaves have another root than was signed: what lies under it was rewritten"
    return None


async def outside_findings(
    connection: "Anyone", text: str, keys: Sequence[VerifierKey], report: TreeReport
) -> list[Finding]:
    """Checkpoints from off the machine against the tree as it is here."""
    found: list[Finding] = []
    notes = list(notes_in(text))
    for number, note in enumerate(notes, 1):
        try:
            said, _ = opened(note, list(keys))
        except NoNote as error:
            report.notes.append(f"text {number} of the file given: {error}")
            continue
        except BadNote as error:
            found.append(_found("checkpoint.forged", f"checkpoint {number} of the file: {error}", "(file)", number))
            continue
        if trouble := _inconsistent(await tree.tree_for(connection, [(0, said.leaves)]), said):
            at = f", made {said.made:%Y-%m-%d %H:%M}Z" if said.made else ""
            found.append(
                _found("checkpoint.contradicted", f"checkpoint {number} of the file{at}: {trouble}", "(file)", number)
            )
        else:
            report.proven += 1
    if not notes:
        report.notes.append("the file given has no checkpoint in it")
    return found


async def known_keys(
    connection: "Anyone", given: Iterable[str], own: VerifierKey | None, report: TreeReport
) -> list[VerifierKey]:
    """Keys that are believed: those given, or else the installation's own and those in the database. Raises BadNote."""
    believed = [verifier_key(text) for text in given]
    if believed:
        return believed
    found = [own] if own is not None else []
    for key_id, text in (await tree.keys(connection)).items():
        try:
            key = verifier_key(text)
        except BadNote as error:
            report.notes.append(f"key {key_id} in the database: {error}")
            continue
        if own is None or key.key_id != own.key_id:
            found.append(key)
            report.notes.append(
                f"key {key.name} {key_id} is believed because the database has it; give --key to be sure"
            )
    return found
