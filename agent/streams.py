"""The batches of one lane of one buffer, in order: what may be put in, taken out, and put in the place of what is lost.

Invariant: the rows of a stream between `acked_no` and `next_no` cover every number exactly once, and each row's `prev` is the
`link` of the row before it. A row is a batch, or a gap that stands for several numbers. Every function here keeps that, in one
transaction of its own or in the caller's.

A gap's `counts` (JSON) keeps the events in each batch that it stands for, so that it can be cut exactly when it turns out that the centre
had some of those batches (they were sent, the answer was lost, then they were evicted); and the beginning of each one's hash, so that it
is not cut when the centre's batches under these numbers are others (this file is an old copy of the one that sent them).
"""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import aiosqlite
import msgspec
from msgspec import Struct

from agent.component import now_us
from agent.wire.batch import (
    GENESIS,
    Frame,
    GapRange,
    Header,
    Sealed,
    assemble,
    encode_safely,
    hash_of,
    read_frame,
    seal,
)
from agent.wire.event import Event

R = TypeVar("R")

COUNTS_MAX = 65_536
"""Batches that a gap keeps single counts for. A longer gap keeps its sum alone."""
LINKS_MAX = 2_048
"""Batches of a gap whose hashes it remembers, the oldest: far more than can be on their way at once."""
LINK_CHARS = 8
GAP_BYTES = 900
"""A gap takes about this much; an eviction that frees less is not worth it."""

SCHEMA = """
    CREATE TABLE streams (
        id INTEGER PRIMARY KEY, buffer TEXT NOT NULL, lane INTEGER NOT NULL, next_no INTEGER NOT NULL, last_hash TEXT NOT NULL,
        acked_no INTEGER NOT NULL, pending_events INTEGER NOT NULL, pending_bytes INTEGER NOT NULL, UNIQUE (buffer, lane));
    CREATE TABLE batches (
        seq INTEGER PRIMARY KEY, stream INTEGER NOT NULL, no INTEGER NOT NULL, through INTEGER NOT NULL, events INTEGER NOT NULL,
        bytes INTEGER NOT NULL, observed INTEGER NOT NULL, prev TEXT NOT NULL, link TEXT NOT NULL, counts BLOB, frame BLOB NOT NULL);
    CREATE UNIQUE INDEX batches_order ON batches (stream, no);
"""


@dataclass(slots=True)
class Stream:
    """One lane of one buffer: the row of `streams`, kept in step in memory after each commit."""

    id: int
    buffer: str
    lane: int
    next_no: int
    last_hash: str
    acked_no: int
    pending_events: int
    pending_bytes: int


class Counts(Struct, frozen=True, omit_defaults=True):
    """What a gap knows of the batches that it stands for. `events`: of each, or their sum alone; None: unknown."""

    events: list[int] | None = None
    links: str = ""


class Row(NamedTuple):
    """A row of `batches` without its frame. `link` is what the next row's `prev` has to be."""

    no: int
    through: int
    events: int
    size: int
    observed: int
    prev: str
    link: str
    counts: bytes | None

    def lost(self) -> list[int | None]:
        """Events lost when this row goes, one a number; [None] where a gap does not know."""
        if self.counts is None:
            return [self.events]
        events = msgspec.json.decode(self.counts, type=Counts).events
        return [None] if events is None else list(events)

    def links(self) -> str:
        """The beginnings of the hashes of the batches that this row stands for, LINK_CHARS of each, as far as they are known."""
        if self.counts is None:
            return self.link[:LINK_CHARS]
        return msgspec.json.decode(self.counts, type=Counts).links

    def follows(self, expected: int, head: str) -> bool | None:
        """Whether the batch before number `expected` of this gap had the hash `head`; None: it is not known any more."""
        end = (expected - self.no) * LINK_CHARS
        links = self.links()
        return links[end - LINK_CHARS : end] == head[:LINK_CHARS] if end <= len(links) else None


@dataclass(slots=True)
class Batch:
    """A row on its way in."""

    sealed: Sealed
    observed: int
    counts: bytes | None = None

    def row(self, stream: Stream) -> tuple[Any, ...]:
        """The values of `INSERT`."""
        h = self.sealed.header
        link = h.gap.last if h.gap else self.sealed.hash
        frame = self.sealed.frame
        return stream.id, h.no, h.through, h.events, len(frame), self.observed, h.prev, link, self.counts, frame


META = "no, through, events, bytes, observed, prev, link, counts"
_INSERT = f"INSERT INTO batches (stream, {META}, frame) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


async def fetch(db: aiosqlite.Connection, sql: str, *args: object) -> list[Any]:
    """All rows of a query."""
    return list(await db.execute_fetchall(sql, args))


@asynccontextmanager
async def transaction(db: aiosqlite.Connection) -> AsyncIterator[None]:
    """BEGIN IMMEDIATE … COMMIT; whatever is raised inside, cancellation too, rolls back."""
    await db.execute("BEGIN IMMEDIATE")
    try:
        yield
        await db.execute("COMMIT")
    except BaseException:
        # After SQLITE_FULL and the like SQLite may have rolled back by itself; then there is nothing left to do.
        if db.in_transaction:
            await db.execute("ROLLBACK")
        raise


async def create_pair(db: aiosqlite.Connection, buffer: str, lanes: Iterable[int]) -> list[Stream]:
    """The empty lanes of a new buffer id. In the caller's transaction."""
    made = []
    for lane in lanes:
        columns = "buffer, lane, next_no, last_hash, acked_no, pending_events, pending_bytes"
        cursor = await db.execute(
            f"INSERT INTO streams ({columns}) VALUES (?, ?, 1, ?, 0, 0, 0)", (buffer, lane, GENESIS)
        )
        made.append(Stream(int(cursor.lastrowid or 0), buffer, lane, 1, GENESIS, 0, 0, 0))
    return made


def insert_rows(db: sqlite3.Connection, stream: Stream, batches: Sequence[Batch]) -> None:
    """Put batches at the end of a stream. In the caller's transaction; `advance` follows its commit."""
    db.executemany(_INSERT, [batch.row(stream) for batch in batches])
    last = batches[-1].row(stream)
    db.execute(
        "UPDATE streams SET next_no = ?, last_hash = ?, pending_events = pending_events + ?, pending_bytes = pending_bytes + ?"
        " WHERE id = ?",
        (
            last[2] + 1,
            last[7],
            sum(b.sealed.header.events for b in batches),
            sum(len(b.sealed.frame) for b in batches),
            stream.id,
        ),
    )


async def insert(db: aiosqlite.Connection, stream: Stream, batches: Sequence[Batch]) -> None:
    """`insert_rows`, from the event loop."""
    await in_thread(db, lambda inner: insert_rows(inner, stream, batches))


async def in_thread(db: aiosqlite.Connection, work: Callable[[sqlite3.Connection], R]) -> R:
    """Do several things with a connection in one visit to its thread: each visit costs a change of threads and back.

    Leans on what aiosqlite does inside; held by a test (test_aiosqlite_runs_our_work_in_its_thread) and by the bound on its version.
    """
    execute: Callable[..., Awaitable[R]] = db._execute  # noqa: SLF001
    return await execute(work, db._conn)  # noqa: SLF001


@contextmanager
def transaction_now(db: sqlite3.Connection) -> Iterator[None]:
    """`transaction` for `in_thread`."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def advance(stream: Stream, batches: Sequence[Batch]) -> None:
    """The counterpart in memory of `insert`, after its commit."""
    last = batches[-1].row(stream)
    stream.next_no, stream.last_hash = last[2] + 1, last[7]
    stream.pending_events += sum(batch.sealed.header.events for batch in batches)
    stream.pending_bytes += sum(len(batch.sealed.frame) for batch in batches)


async def rows(db: aiosqlite.Connection, stream: Stream, after: int, limit: int) -> list[Row]:
    """Rows of a stream behind number `after`, oldest first."""
    sql = f"SELECT {META} FROM batches WHERE stream = ? AND no > ? ORDER BY no LIMIT ?"
    return [Row(*row) for row in await fetch(db, sql, stream.id, after, limit)]


def make_gap(
    agent: str,
    stream: Stream,
    no: int,
    through: int,
    prev: str,
    link: str,
    *,
    lost: Sequence[int | None],
    observed: tuple[int, int],
    reason: str,
    links: str = "",
) -> Batch:
    """The gap batch that stands for `no … through`, whose neighbours are `prev` and `link`.

    `lost`: events of each number, in order; a None anywhere makes the number of events unknown. `observed`: from, to (µs).
    """
    known = [n for n in lost if n is not None]
    unknown = len(known) != len(lost)
    event = Event(
        time=observed[0],
        observed=now_us(),
        type="collection.gap",
        source="buffer",
        message=f"{'an unknown number of' if unknown else sum(known)} events were lost in the buffer: {reason}",
        data={
            "reason": reason,
            "events": None if unknown else sum(known),
            "batches": through - no + 1,
            "lane": stream.lane,
            "from_us": observed[0],
            "to_us": observed[1],
        },
    )
    core, personal = encode_safely([event])
    sealed = seal(
        core,
        personal,
        agent=agent,
        buffer=stream.buffer,
        lane=stream.lane,
        no=no,
        prev=prev,
        sealed=now_us(),
        gap=GapRange(through, link),
    )
    exact = not unknown and len(known) == through - no + 1 and len(known) <= COUNTS_MAX
    # Too long for single counts: the sum stays in the event, and here as one figure.
    events = None if unknown else known if exact else [sum(known)]
    return Batch(sealed, observed[0], msgspec.json.encode(Counts(events, links)))


async def replace(db: aiosqlite.Connection, agent: str, stream: Stream, gone: Sequence[Row], reason: str) -> int:
    """Put one gap in the place of neighbouring rows. Returns the bytes that came free. A transaction of its own."""
    lost = [n for row in gone for n in row.lost()]
    observed = (min(row.observed for row in gone), max(row.observed for row in gone))
    gap = make_gap(
        agent,
        stream,
        gone[0].no,
        gone[-1].through,
        gone[0].prev,
        gone[-1].link,
        lost=lost,
        observed=observed,
        reason=reason,
        links=_links(gone),
    )
    return await _swap(db, stream, gone, gap)


def _links(gone: Sequence[Row]) -> str:
    """The hashes of neighbouring rows, up to the first that does not know its own."""
    links, known = "", 0
    for row in gone:
        if len(links) != known * LINK_CHARS or known >= LINKS_MAX:
            break
        links += row.links()
        known += row.through - row.no + 1
    return links[: LINKS_MAX * LINK_CHARS]


async def _swap(db: aiosqlite.Connection, stream: Stream, gone: Sequence[Row], gap: Batch) -> int:
    events = 1 - sum(row.events for row in gone)
    size = len(gap.sealed.frame) - sum(row.size for row in gone)
    async with transaction(db):
        if gone:
            await db.execute(
                "DELETE FROM batches WHERE stream = ? AND no BETWEEN ? AND ?", (stream.id, gone[0].no, gone[-1].no)
            )
        await db.execute(_INSERT, gap.row(stream))
        await db.execute(
            "UPDATE streams SET pending_events = pending_events + ?, pending_bytes = pending_bytes + ? WHERE id = ?",
            (events, size, stream.id),
        )
    stream.pending_events += events
    stream.pending_bytes += size
    return -size


async def cut(db: aiosqlite.Connection, agent: str, stream: Stream, gap: Row, expected: int, head: str) -> bool:
    """The centre has the first part of this gap's batches: declare only `expected … through`, behind the hash `head`.

    False, and nothing is changed: what the centre has under these numbers is something else.
    """
    if gap.follows(expected, head) is False:
        return False
    counts = gap.lost()
    single = len(counts) == gap.through - gap.no + 1
    rest = counts[expected - gap.no :] if single else [None]
    smaller = make_gap(
        agent,
        stream,
        expected,
        gap.through,
        head,
        gap.link,
        lost=rest,
        observed=(gap.observed, now_us()),
        reason="evicted from a full buffer",
        links=gap.links()[(expected - gap.no) * LINK_CHARS :],
    )
    await _swap(db, stream, [gap], smaller)
    return True


async def rewind(db: aiosqlite.Connection, agent: str, stream: Stream, expected: int, head: str) -> None:
    """The centre has lost what it had acknowledged (restored from a backup): send again what is still here, declare the rest."""
    kept = await rows(db, stream, expected - 1, -1)
    first = kept[0] if kept else None
    begin = first.no if first else stream.next_no
    async with transaction(db):
        await db.execute(
            "UPDATE streams SET acked_no = ?, pending_events = ?, pending_bytes = ? WHERE id = ?",
            (expected - 1, sum(r.events for r in kept), sum(r.size for r in kept), stream.id),
        )
    stream.acked_no = expected - 1
    stream.pending_events, stream.pending_bytes = sum(r.events for r in kept), sum(r.size for r in kept)
    if begin > expected:
        gap = make_gap(
            agent, stream, expected, begin - 1, head, first.prev if first else stream.last_hash,
            lost=[None], observed=(now_us(), now_us()), reason="the centre lost what it had acknowledged, and it is no longer here",
        )  # fmt: skip
        await _swap(db, stream, [], gap)


async def restream(db: aiosqlite.Connection, agent: str, old: Stream, new: Stream, below: int | None = None) -> None:
    """Move what is unsent of one stream behind another: the centre has other batches under the old numbers.

    `below`: only the batches under this number; the old stream then goes on with it.
    """
    end = old.next_no if below is None else below
    while True:
        sql = f"SELECT {META}, frame FROM batches WHERE stream = ? AND no > ? AND through < ? ORDER BY no LIMIT 256"
        found = await fetch(db, sql, old.id, old.acked_no, end)
        if not found:
            break
        no, prev, moved = new.next_no, new.last_hash, []
        for *meta, wire in found:
            moved.append(_renumber(read_frame(wire), agent, new, no, prev, Row(*meta)))
            no, prev = no + 1, moved[-1].sealed.hash
        events, size = sum(b.sealed.header.events for b in moved), sum(len(row[-1]) for row in found)
        async with transaction(db):
            await insert(db, new, moved)
            await db.execute(
                "DELETE FROM batches WHERE stream = ? AND no BETWEEN ? AND ?", (old.id, found[0][0], found[-1][0])
            )
            await db.execute(
                "UPDATE streams SET pending_events = pending_events - ?, pending_bytes = pending_bytes - ? WHERE id = ?",
                (events, size, old.id),
            )
        advance(new, moved)
        old.pending_events -= events
        old.pending_bytes -= size
    if below is not None:
        await db.execute("UPDATE streams SET acked_no = ? WHERE id = ?", (below - 1, old.id))
        old.acked_no = below - 1


def _renumber(frame: Frame, agent: str, stream: Stream, no: int, prev: str, row: Row) -> Batch:
    # The same events under another number: header anew, sections as they are. A gap becomes the event that declares it, and still
    # counts what it declares: should it have to go, that is what is lost.
    old = frame.header
    header = Header(
        agent, stream.buffer, stream.lane, no, prev, old.sealed, old.events, old.core_bytes, old.core_sha256
    )
    header_bytes = msgspec.json.encode(header)
    sealed = Sealed(header, assemble(header_bytes, frame.core_z, frame.personal_z), hash_of(header_bytes))
    counts = None
    if row.counts is not None:
        lost = row.lost()
        known = [n for n in lost if n is not None]
        counts = msgspec.json.encode(
            Counts([sum(known)] if len(known) == len(lost) else None, sealed.hash[:LINK_CHARS])
        )
    return Batch(sealed, row.observed, counts)


def is_waiting_matter(error: sqlite3.Error) -> bool:
    """The disk, or another process, is the trouble, not the file: worth waiting for."""
    name = getattr(error, "sqlite_errorname", "")
    return name.startswith(
        (
            "SQLITE_FULL",
            "SQLITE_IOERR",
            "SQLITE_BUSY",
            "SQLITE_LOCKED",
            "SQLITE_CANTOPEN",
            "SQLITE_READONLY",
            "SQLITE_NOMEM",
        )
    ) and not name.startswith(("SQLITE_IOERR_SHORT_READ", "SQLITE_IOERR_CORRUPTFS"))


def is_damage(error: sqlite3.Error) -> bool:
    """The file is not, or no longer, what was written."""
    name = getattr(error, "sqlite_errorname", "")
    return name.startswith(
        ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT", "SQLITE_IOERR_SHORT_READ", "SQLITE_IOERR_CORRUPTFS")
    )
