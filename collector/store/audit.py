"""The audit log: records that only grow, each holding the hash of the one before it.

The bytes that are hashed, so that anybody can compute them again:

    PREFIX ‖ prev (32 bytes) ‖ JSON array [no, time, who, who_kind, role, address, action, target, result, data]

as UTF-8 without white space, keys of objects in the order of their code points, non-ASCII characters as they are; `time` in whole
microseconds since 1970, UTC. Numbers in `data` are integers (`plain` writes others as text), since jsonb does not keep how a fraction was
written. The hash is SHA-256; `prev` of the first record is 32 zero bytes.

The row `audit_head` is locked from the record to the end of the transaction that makes it, and so puts records in the order of their
commits: make the record the last thing in a transaction, and keep waiting out of it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from collector.store.database import translated
from collector.store.events import fetch_bounded
from collector.store.rows import to_us

if TYPE_CHECKING:
    from collector.store.database import Anyone, Connection

PREFIX = b"linewarden audit 1\n"
GENESIS = bytes(32)
TEXT_CHARS_MAX = 500
"""Longer texts are cut."""
VALUE_CHARS_MAX = 2_000
ITEMS_MAX = 100
"""Longer lists and objects are cut."""
DEPTH_MAX = 4
"""What lies deeper is written as text."""
INTEGER_MAX = 2**63
DATA_CHARS_MAX = 16_384
"""More data than that is left out, and its size is recorded in its place."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it is stored."""

    no: int
    time: datetime
    who: str
    who_kind: str
    role: str
    address: str
    action: str
    target: str
    result: str
    data: Any
    prev: bytes
    hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which records. None is no condition."""

    begin: datetime | None = None
    end: datetime | None = None
    who: str | None = None
    action: str | None = None
    """A name, or `session.*` for all below it."""
    target: str | None = None
    result: str | None = None


def record_hash(record: Record) -> bytes:
    """What the hash of a record has to be; its own is not looked at."""
    fields = [record.no, to_us(record.time), record.who, record.who_kind, record.role, record.address, record.action, record.target,
              record.result, record.data]  # fmt: skip
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(PREFIX + record.prev + text.encode()).digest()


def clean(text: str, chars_max: int = TEXT_CHARS_MAX) -> str:
    """A text that PostgreSQL takes: without NUL and lone surrogates, not longer than allowed."""
    return text[:chars_max].replace("\0", "\ufffd").encode(errors="replace").decode()


def plain(value: Any, depth: int = 0) -> Any:
    """A value as it goes into `data`: bounded, and the same when it is read again."""
    if value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) < INTEGER_MAX):
        return value
    if isinstance(value, float):
        return int(value) if abs(value) < INTEGER_MAX and value == int(value) else repr(value)
    if isinstance(value, Mapping) and depth < DEPTH_MAX:
        items = list(value.items())[:ITEMS_MAX]
        return {clean(str(key), 200): plain(item, depth + 1) for key, item in items}
    if isinstance(value, list | tuple | set | frozenset) and depth < DEPTH_MAX:
        return [plain(item, depth + 1) for item in list(value)[:ITEMS_MAX]]
    # An integer too long for str() is no number of ours.
    return clean("(number)" if isinstance(value, int) else str(value), VALUE_CHARS_MAX)


def bounded(data: Mapping[str, Any] | None) -> dict[str, Any]:
    """`data` of a record."""
    made: dict[str, Any] = plain(data or {})
    size = len(json.dumps(made, ensure_ascii=False))
    if size <= DATA_CHARS_MAX:
        return made
    # What verify holds rows against is bounded by itself, and is never left out.
    return {"left_out_chars": size, **{name: made[name] for name in ("state",) if name in made}}


async def append(
    connection: "Anyone", *, who: str, who_kind: str, role: str, address: str, action: str, target: str, result: str,
    data: Mapping[str, Any] | None,
) -> Record:  # fmt: skip
    """Add a record, in the caller's transaction if there is one. Make it the last thing there: others wait until it ends."""
    kept = bounded(data)
    with translated():
        async with connection.transaction():
            head = await connection.fetchrow(_HEAD)
            if head is None:
                raise LookupError("audit_head has no row: the audit log of this database was tampered with")
            record = Record(
                head["no"] + 1, head["time"], clean(who), clean(who_kind), clean(role), clean(address), clean(action), clean(target),
                result, kept, head["hash"], b"",
            )  # fmt: skip
            digest = record_hash(record)
            await connection.execute(
                _APPEND, record.no, record.time, record.who, record.who_kind, record.role, record.address, record.action,
                record.target, result, json.dumps(kept, ensure_ascii=False), record.prev, digest,
            )  # fmt: skip
    return Record(**{**{name: getattr(record, name) for name in Record.__slots__}, "hash": digest})


async def head(connection: "Anyone") -> tuple[int, bytes]:
    """Number and hash of the last record."""
    with translated():
        row = await connection.fetchrow("SELECT no, hash FROM audit_head")
    return (row["no"], row["hash"]) if row is not None else (0, GENESIS)


async def following(connection: "Anyone", after: int, limit: int) -> list[Record]:
    """The next records behind number `after`, in order: for walking along the chain."""
    with translated():
        rows = await connection.fetch(f"{_SELECT} WHERE no > $1 ORDER BY no LIMIT {int(limit)}", after)
    return [_record(row) for row in rows]


async def least(connection: "Anyone") -> int | None:
    """The lowest number that is kept."""
    found: int | None = await connection.fetchval("SELECT min(no) FROM audit_log")
    return found


async def page(connection: "Connection", wanted: Wanted, *, before: int | None, limit: int) -> list[Record]:
    """Records that fit, newest first. Raises BadFilter, TooSlow."""
    conditions, arguments = ["true"], list[Any]()

    def add(template: str, value: Any) -> None:
        if value is not None:
            arguments.append(value)
            conditions.append(template.format(f"${len(arguments)}"))

    add("time >= {}::timestamptz", wanted.begin)
    add("time < {}::timestamptz", wanted.end)
    add("who = {}::text", wanted.who)
    if wanted.action is not None and wanted.action.endswith(".*"):
        # A range, and not LIKE: it means the same in every collation.
        stem = wanted.action.removesuffix("*")
        add('action COLLATE "C" >= {}::text', stem)
        add('action COLLATE "C" < {}::text', stem[:-1] + "/")
    else:
        add("action = {}::text", wanted.action)
    add("target = {}::text", wanted.target)
    add("result = {}::text", wanted.result)
    add("no < {}::bigint", before)
    rows: Sequence[Any] = await fetch_bounded(
        connection, f"{_SELECT} WHERE {' AND '.join(conditions)} ORDER BY no DESC LIMIT {int(limit)}", arguments
    )
    return [_record(row) for row in rows]


def _record(row: Any) -> Record:
    return Record(**{**row, "data": json.loads(row["data"])})


_HEAD = "SELECT no, hash, clock_timestamp() AS time FROM audit_head FOR UPDATE"
_SELECT = "SELECT no, time, who, who_kind, role, address, action, target, result, data, prev, hash FROM audit_log"
_APPEND = """
WITH moved AS (UPDATE audit_head SET no = $1, hash = $12)
INSERT INTO audit_log (no, time, who, who_kind, role, address, action, target, result, data, prev, hash)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::jsonb, $11, $12)
"""
