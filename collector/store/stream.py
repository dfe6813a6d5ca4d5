"""Events in the order in which they were committed, so that a reader who goes on from a cursor misses none and sees none twice.

Numbers of batches are given before the commit, so a lower one may become visible after a higher one. A position is therefore not a number
but what PostgreSQL itself means by "committed until now": a snapshot. Between two snapshots, `old` and `new`, lie the batches whose
transaction `new` sees and `old` does not; together the steps from snapshot to snapshot hold every batch exactly once, and a
transaction that runs long holds up nothing but itself. Within a step events are ordered by transaction, batch and place in the batch,
which never changes; so a cursor in the middle of a step is its two snapshots and the last event. Every collector of the same
database reads the same.

A cursor names the database it is of. It also says when its snapshot was taken: a batch that was not visible then was received at most
LATE_S_MAX before (a transaction of ingest cannot last that long), which spares PostgreSQL the partitions of the days before.
"""

import base64
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta, Struct

from collector.store.events import COLUMNS_READ, Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collector.store.database import Anyone

LATE_S_MAX = 3_600
CHUNK_EVENTS = 1_000
"""Events read at once, and so many more as its last batch has."""
_CHUNK_BATCHES = 500
_XIDS_MAX = 10_000
CURSOR_CHARS_MAX = 60_000

_Xid = Annotated[int, Meta(ge=0, lt=2**62)]


class BadCursor(Exception):
    """A text that is no cursor of this database. The text says why."""


class Snapshot(Struct, frozen=True, array_like=True):
    """What is committed at a moment: all transactions before `xmax`, but for those still `running`. `taken_us`: when, by the database."""

    taken_us: _Xid
    xmin: _Xid
    xmax: _Xid
    running: Annotated[tuple[_Xid, ...], Meta(max_length=_XIDS_MAX)]

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, self.running))}"

    @property
    def taken(self) -> datetime:
        """When it was taken."""
        return _EPOCH + timedelta(microseconds=self.taken_us)

    def covers(self, other: "Snapshot") -> bool:
        """Whether all that the other sees is seen here."""
        return self.xmax >= other.xmax and all(xid in other.running for xid in self.running if xid < other.xmax)


class Position(Struct, frozen=True, array_like=True):
    """An event within a step."""

    xid: _Xid
    batch_id: _Xid
    idx: Annotated[int, Meta(ge=0, lt=2**31)]


class Cursor(Struct, frozen=True, array_like=True):
    """All that `base` sees was read; and, where `step` is there, of what `step` sees besides everything up to `position`."""

    home: int
    base: Snapshot
    step: Snapshot | None = None
    position: Position | None = None
    order: int = 0
    """Of a text alone: 1 where its position means the order of numbers. Before, it meant another."""

    @property
    def newest(self) -> Snapshot:
        """A snapshot that sees all that was read."""
        return self.step or self.base

    def encode(self) -> str:
        """Opaque to the client."""
        packed = msgspec.msgpack.encode(msgspec.structs.replace(self, order=1))
        return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def decode_cursor(text: str, home: int) -> Cursor:
    """Raises BadCursor."""
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), "-_", validate=True)
        cursor = msgspec.msgpack.decode(packed, type=Cursor)
    except (ValueError, msgspec.MsgspecError):
        raise BadCursor("after is not a cursor of a stream. Give the `cursor` of the last message") from None
    if (cursor.step is None) != (cursor.position is None) or not all(map(_sound, (cursor.base, cursor.newest))):
        raise BadCursor("after is not a cursor of a stream. Give the `cursor` of the last message")
    if cursor.home != home:
        raise BadCursor("after is a cursor of another database. Begin anew without it")
    if cursor.position is not None and cursor.order == 0:
        # What that position had skipped can only be found by reading its step again.
        return Cursor(home, cursor.base, cursor.step, Position(0, 0, 0))
    return msgspec.structs.replace(cursor, order=0)


def _sound(snapshot: Snapshot) -> bool:
    return (
        0 < snapshot.xmin <= snapshot.xmax
        and all(snapshot.xmin <= xid < snapshot.xmax for xid in snapshot.running)
        and list(snapshot.running) == sorted(set(snapshot.running))
    )


@dataclass(frozen=True, slots=True)
class Item:
    """An event in its place of the order."""

    position: Position
    row: Record


async def home_of(connection: "Anyone") -> int:
    """What tells this database from others."""
    found: int = await connection.fetchval(
        "SELECT ('x' || left(buffer_id::text, 8))::bit(32)::bigint FROM installation"
    )
    return found


async def now(connection: "Anyone") -> Snapshot:
    """What is committed now."""
    row = await connection.fetchrow(_NOW)
    if row is None:
        raise ConnectionError("no answer")
    xmin, xmax, running = row["snapshot"].split(":")
    return Snapshot(row["taken_us"], int(xmin), int(xmax), tuple(map(int, running.split(","))) if running else ())


async def between(
    connection: "Anyone", old: Snapshot, new: Snapshot, after: Position | None
) -> "tuple[list[Item], Position | None]":
    """The next events that `new` sees and `old` does not, behind `after`; and where to go on, None at the end."""
    batches, reached = await batches_between(connection, old, new, after)
    items = await items_of(connection, batches)
    if after is not None:
        items = [item for item in items if _key(item.position) > _key(after)]
    return items, reached


async def batches_between(
    connection: "Anyone", old: Snapshot, new: Snapshot, after: Position | None, *, events_max: int = CHUNK_EVENTS
) -> "tuple[Sequence[Record], Position | None]":
    """Return the next batches that hold such events, about `events_max` of them; and where to go on, None at the end.

    Every reader in the order of commits reads by this function, and by no query of its own.

    The first is that of `after` where `after` lies within it.
    """
    low = after or Position(0, 0, 0)
    place = (str(low.xid), low.batch_id, low.idx)
    batches = await connection.fetch(_BATCHES, *between_arguments(old, new), *place, _CHUNK_BATCHES)
    if not batches:
        return [], None
    taken, events = [], 0
    for batch in batches:
        if events >= events_max:
            break
        taken.append(batch)
        events += batch["events"]
    last = taken[-1]
    # Not that of the last event: its row may be gone, and this has to go on.
    reached = Position(int(last["xid"]), last["batch_id"], max(last["events"] - 1, 0))
    ended = len(taken) == len(batches) < _CHUNK_BATCHES
    return taken, None if ended else reached


def between_arguments(old: Snapshot, new: Snapshot) -> tuple[str, str, str, str, datetime]:
    """Return what is bound where batches that `new` sees and `old` does not are picked."""
    return str(old.xmin), str(new.xmax), str(old), str(new), old.taken - timedelta(seconds=LATE_S_MAX)


def _key(position: Position) -> tuple[int, int, int]:
    return position.xid, position.batch_id, position.idx


async def items_of(connection: "Anyone", batches: "Sequence[Record]", picked: str = "true") -> list[Item]:
    """Events of batches. `picked`: a condition on `e`, a constant of ours, of those that are wanted at all."""
    if not batches:
        return []
    xids = {batch["batch_id"]: int(batch["xid"]) for batch in batches}
    received = [batch["received"] for batch in batches]
    rows = await connection.fetch(f"{_EVENTS} AND ({picked})", list(xids), min(received), max(received))
    items = [Item(Position(xids[row["batch_id"]], row["batch_id"], row["idx"]), row) for row in rows]
    return sorted(items, key=lambda item: _key(item.position))


_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00Z")
_NOW = """
SELECT pg_current_snapshot()::text AS snapshot, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS taken_us
"""
# ORDER BY names the column of the table: a bare `xid` would be the text of the select list, in which 10 comes before 9.
_BATCHES = """
SELECT xid::text AS xid, batch_id, received, events FROM evidence
WHERE xid >= $1::text::xid8 AND xid < $2::text::xid8 AND pg_visible_in_snapshot(xid, $4::text::pg_snapshot)
    AND NOT pg_visible_in_snapshot(xid, $3::text::pg_snapshot) AND received >= $5
    AND (xid, batch_id) >= ($6::text::xid8, $7::bigint) AND NOT (batch_id = $7::bigint AND events <= $8::integer + 1)
ORDER BY evidence.xid, evidence.batch_id LIMIT $9
"""
_EVENTS = f"""
SELECT {COLUMNS_READ} FROM security_events e JOIN places p ON p.place_id = e.place_id
WHERE e.batch_id = ANY ($1::bigint[]) AND e.received BETWEEN $2 AND $3
"""
