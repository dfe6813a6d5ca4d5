"""Storing batches: the heads of streams, the frames, the rows, in one transaction that the caller opens with `transaction`.

Locks are taken in one order (heads by buffer and lane, then the agent), so two requests never wait for each other in a circle.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg

from agent.wire.batch import GENESIS, Frame, MalformedBatch
from collector.store import keys, rollups
from collector.store.database import Database, StoreUnavailable
from collector.store.rows import CENTRE as CENTRE  # noqa: PLC0414 - known by this name here too
from collector.store.rows import COLUMNS, COPY_HEAD, COPY_TAIL, Rows, rows_of
from collector.store.tally import Tallies, merge_into

if TYPE_CHECKING:
    from collector.store.database import Connection

STREAMS_MAX = 512
"""Streams of one agent. It begins two with each new buffer, which is rare; a number of any size would be somebody who invents them."""
FORKS_A_DAY_MAX = 100
"""Contradicting batches of one agent that are kept and reported in a day. The others are refused as well."""
CHUNK_EVENTS_MAX = 4_096
"""So many events are decoded at once: bounds memory, and lets the next ones be decoded while these are copied."""

Stream = tuple[UUID, int]
"""Buffer and lane, of a known agent."""

_EVIDENCE = (
    "received", "batch_id", "batch_no", "through", "first_time", "last_time", "agent_id", "buffer_id", "events", "lane", "hash", "prev",
    "frame", "place_id", "signature_id",
)  # fmt: skip
_GAPS = (
    "batch_id", "idx", "received", "time", "agent_id", "buffer_id", "lane", "batch_no", "through", "prev", "last_hash", "source", "lost",
    "reason", "data",
)  # fmt: skip


class Unstorable(Exception):
    """PostgreSQL refused a value of the rows. The transaction is gone; the same may be tried with `careful`."""


class TooManyStreams(Exception):
    """The agent has STREAMS_MAX streams and begins another one."""


class BadFrame(Exception):
    """A frame that cannot be opened. The text says why."""

    def __init__(self, frame: Frame, text: str) -> None:
        super().__init__(text)
        self.frame = frame


@dataclass(slots=True)
class Head:
    """How far a stream is stored, and what this transaction adds to it."""

    no: int = 0
    hash: str = GENESIS
    batches: int = 0
    events: int = 0
    gaps: int = 0
    before: int = 0
    """`no` as it was read: from there alone the head is moved."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is stored under a number: the batch itself, or a gap that covers it."""

    no: int
    through: int
    hash: str
    prev: str
    last: str | None
    """Hash of the last lost batch, where it is a gap."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a transaction stored."""

    events: int
    received: datetime


@dataclass(frozen=True, slots=True)
class Signature:
    """What covers a request: see agent.wire.signature."""

    key_id: str
    text: bytes
    signature: bytes
    sent_us: int


class Transaction:
    """One request's transaction. Made by `transaction`; committed when that context ends without error."""

    def __init__(self, connection: "Connection", agent_id: UUID) -> None:
        self._connection = connection
        self._agent_id = agent_id

    async def lock_heads(self, streams: Iterable[Stream]) -> dict[Stream, Head]:
        """The heads of streams, locked; an unknown stream begins at 0. Raises TooManyStreams."""
        wanted = sorted(streams)
        buffers, lanes = [buffer for buffer, _ in wanted], [lane for _, lane in wanted]
        arguments = (self._agent_id, buffers, lanes)
        rows = await self._connection.fetch(_LOCK_HEADS, *arguments)
        if len(rows) < len(wanted):
            known = await self._connection.fetchval(
                "SELECT count(*) FROM batch_heads WHERE agent_id = $1", self._agent_id
            )
            if known + len(wanted) - len(rows) > STREAMS_MAX:
                raise TooManyStreams
            await self._connection.execute(_MAKE_HEADS, *arguments, GENESIS)
            rows = await self._connection.fetch(_LOCK_HEADS, *arguments)
        return {
            (row["buffer_id"], row["lane"]): Head(row["batch_no"], row["hash"], before=row["batch_no"]) for row in rows
        }

    async def known(self, stream: Stream, numbers: Sequence[int]) -> dict[int, Known]:
        """What is stored under numbers up to the head. A number that is missing here was dropped by retention."""
        arguments = (self._agent_id, *stream, list(numbers))
        rows = await self._connection.fetch(_KNOWN, *arguments)
        found = {
            row["batch_no"]: Known(row["batch_no"], row["through"], row["hash"], row["prev"], None) for row in rows
        }
        for row in await self._connection.fetch(_KNOWN_GAPS, *arguments):
            # The frame of the gap itself, if it is still there, knows its own hash.
            own = found.get(row["batch_no"])
            found[row["number"]] = Known(
                row["batch_no"], row["through"], own.hash if own else "", row["prev"], row["last_hash"]
            )
        return found

    async def place(self, key: keys.Key) -> int:
        """Return the number of the place of a key's agent: the one that the key names, else where the agent stands already."""
        if not (key.site or key.line or key.station):
            return await self.place_of(self._agent_id)
        return await keys.place_of(self._connection, key)

    async def place_of(self, agent_id: UUID) -> int:
        """Number of the place where an agent stands; that of nowhere for one that is not known."""
        found: int = await self._connection.fetchval(_PLACE, agent_id)
        return found

    async def store(
        self, frames: Sequence[Frame], place_id: int, *, careful: bool, signature: Signature | None = None
    ) -> Stored:
        """Store new frames, and the signature that covers them. Raises BadFrame, Unstorable."""
        # After the heads are locked: the times of a stream then never go back, however long the wait for the lock was.
        row = await self._connection.fetchrow(_NUMBERS, len(frames))
        if row is None:
            raise asyncpg.InterfaceError("no answer")
        received, signature_id = row["received"], row["numbers"][0] if signature else None
        chunks = _Chunks(self._agent_id, frames, row["numbers"], place_id, received, careful=careful)
        try:
            await self._connection.copy_to_table(
                "security_events", columns=COLUMNS, format="binary", source=chunks.binary()
            )
            records = [self._evidence(*item, received, place_id, signature_id) for item in chunks.opened]
            await self._into("evidence", _EVIDENCE, records)
            if signature:
                values = (self._agent_id, signature.key_id, signature.text.decode(), signature.signature)
                await self._connection.execute(_SIGNATURE, received, signature_id, *values)
            if gaps := [gap for item in chunks.opened for gap in self._gaps(*item, received)]:
                await self._into("gaps", _GAPS, gaps)
            await rollups.append(self._connection, place_id, chunks.tallies)
        except (
            asyncpg.DataError,
            asyncpg.StatementTooComplexError,
            asyncpg.ProgramLimitExceededError,
            UnicodeError,
        ) as error:
            raise Unstorable(str(error)) from error
        except asyncpg.UniqueViolationError as error:
            raise StoreUnavailable(
                f"a batch of this request was stored at the same moment by another: {error}"
            ) from error
        return Stored(sum(summary.events for _, _, summary in chunks.opened), received)

    async def _into(self, table: str, columns: Sequence[str], records: Sequence[tuple[Any, ...]]) -> None:
        await self._connection.copy_records_to_table(table, columns=columns, records=records)

    def _evidence(
        self, batch_id: int, frame: Frame, rows: Rows, received: datetime, place_id: int, signature_id: int | None
    ) -> tuple[Any, ...]:
        h = frame.header
        return (
            received, batch_id, h.no, h.through, rows.first_time, rows.last_time, self._agent_id, UUID(h.buffer), h.events, h.lane,
            frame.hash, h.prev, frame.wire, place_id, signature_id,
        )  # fmt: skip

    def _gaps(self, batch_id: int, frame: Frame, rows: Rows, received: datetime) -> Iterable[tuple[Any, ...]]:
        h = frame.header
        whole = (h.gap.through, h.prev, h.gap.last) if h.gap else (None, None, None)
        for gap in rows.gaps:
            yield (
                batch_id, gap.idx, received, gap.time, self._agent_id, UUID(h.buffer), h.lane, h.no, *whole, gap.source, gap.lost,
                gap.reason, gap.data,
            )  # fmt: skip

    async def move_heads(self, heads: dict[Stream, Head]) -> None:
        """Write what changed. Raises StoreUnavailable where a head is not where it was read, and with it undoes the transaction."""
        items = [(stream, head) for stream, head in heads.items() if head.batches]
        if not items:
            return
        moved = await self._connection.execute(
            _MOVE_HEADS,
            self._agent_id,
            [stream[0] for stream, _ in items],
            [stream[1] for stream, _ in items],
            [head.no for _, head in items],
            [head.hash for _, head in items],
            [head.batches for _, head in items],
            [head.events for _, head in items],
            [head.gaps for _, head in items],
            [head.before for _, head in items],
        )
        if int(moved.rpartition(" ")[2]) != len(items):
            raise StoreUnavailable(
                "the head of a stream was moved by another request meanwhile; send the batches again"
            )

    async def note_agent(
        self,
        heads: Iterable[Head],
        *,
        place_id: int,
        version: str | None,
        clock_offset_us: int | None,
        status: str | None,
        sent_us: int | None = None,
    ) -> None:
        """Keep what an accepted request says of its agent. One that brings nothing new and was sent no later than another says nothing."""
        heads = list(heads)
        events, batches, gaps = sum(h.events for h in heads), sum(h.batches for h in heads), sum(h.gaps for h in heads)
        await self._connection.execute(
            _NOTE_AGENT, self._agent_id, place_id, version, events, batches, gaps, clock_offset_us, status, sent_us
        )

    async def note_fork(self, agent_id: UUID, frame: Frame, stored_hash: str) -> bool:
        """Whether this contradiction is seen for the first time."""
        h = frame.header
        added = await self._connection.fetchval(
            _NOTE_FORK, agent_id, UUID(h.buffer), h.lane, h.no, frame.hash, h.prev, stored_hash, FORKS_A_DAY_MAX
        )
        return added is not None


class _Chunks:
    """Frames opened a few at a time, in a thread, one chunk ahead of what PostgreSQL is being sent: bounds memory, keeps both busy."""

    def __init__(
        self,
        agent_id: UUID,
        frames: Sequence[Frame],
        numbers: Sequence[int],
        place_id: int,
        received: datetime,
        *,
        careful: bool,
    ) -> None:
        self._agent_id = agent_id
        self._frames = frames
        self._numbers = numbers
        self._place_id = place_id
        self._received = received
        self._careful = careful
        self.opened: list[tuple[int, Frame, Rows]] = []
        """What was sent so far: the rows' own bytes are let go."""
        self.tallies: Tallies = {}
        """What all of it adds to the roll-ups."""

    async def binary(self) -> AsyncIterator[bytes]:
        """The body of a COPY. Raises BadFrame."""
        yield COPY_HEAD
        bounds = list(_bounds(self._frames))
        task = asyncio.create_task(asyncio.to_thread(self._open, *bounds[0]))
        try:
            for following in [*bounds[1:], None]:
                body, opened = await task
                if following is not None:
                    task = asyncio.create_task(asyncio.to_thread(self._open, *following))
                self.opened += opened
                yield body
        finally:
            # A thread cannot be stopped: its answer is awaited and dropped.
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()
        yield COPY_TAIL

    def _open(self, first: int, end: int) -> tuple[bytes, list[tuple[int, Frame, Rows]]]:
        bodies: list[bytes] = []
        opened: list[tuple[int, Frame, Rows]] = []
        for index in range(first, end):
            frame, number = self._frames[index], self._numbers[index]
            try:
                rows = rows_of(
                    frame,
                    batch_id=number,
                    place_id=self._place_id,
                    received=self._received,
                    agent_id=self._agent_id,
                    buffer_id=UUID(frame.header.buffer),
                    careful=self._careful,
                )
            except MalformedBatch as error:
                raise BadFrame(frame, str(error)) from None
            bodies += rows.parts
            merge_into(self.tallies, rows.tallies.items())
            opened.append((number, frame, rows._replace(parts=[], tallies={})))
        return b"".join(bodies), opened


@contextlib.asynccontextmanager
async def transaction(database: Database, agent_id: UUID) -> AsyncIterator[Transaction]:
    """A transaction for one agent's request; committed at the end, rolled back where anything is raised."""
    async with database.connection() as connection, connection.transaction():
        yield Transaction(connection, agent_id)


async def centre_buffer(database: Database) -> UUID:
    """The buffer id of the centre's own stream."""
    async with database.connection() as connection:
        found: UUID = await connection.fetchval("SELECT buffer_id FROM installation")
        return found


def _bounds(frames: Sequence[Frame]) -> Iterable[tuple[int, int]]:
    first, events = 0, 0
    for index, frame in enumerate(frames):
        if events and events + frame.header.events > CHUNK_EVENTS_MAX:
            yield first, index
            first, events = index, 0
        events += frame.header.events
    yield first, len(frames)


_LOCK_HEADS = """
SELECT buffer_id, lane, batch_no, hash FROM batch_heads
WHERE agent_id = $1 AND (buffer_id, lane) IN (SELECT * FROM unnest($2::uuid[], $3::smallint[]))
ORDER BY buffer_id, lane FOR UPDATE
"""
_MAKE_HEADS = """
INSERT INTO batch_heads (agent_id, buffer_id, lane, hash)
SELECT $1, s.buffer_id, s.lane, $4 FROM unnest($2::uuid[], $3::smallint[]) AS s (buffer_id, lane) ORDER BY 2, 3
ON CONFLICT DO NOTHING
"""
_MOVE_HEADS = """
UPDATE batch_heads h
SET batch_no = m.no, hash = m.hash, batches = h.batches + m.batches, events = h.events + m.events, gaps = h.gaps + m.gaps, changed = now()
FROM unnest($2::uuid[], $3::smallint[], $4::bigint[], $5::text[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[])
    AS m (buffer_id, lane, no, hash, batches, events, gaps, before)
WHERE h.agent_id = $1 AND h.buffer_id = m.buffer_id AND h.lane = m.lane AND h.batch_no = m.before
"""
_KNOWN = """
SELECT batch_no, through, hash, prev FROM evidence
WHERE agent_id = $1 AND buffer_id = $2 AND lane = $3 AND batch_no = ANY ($4::bigint[])
"""
_KNOWN_GAPS = """
SELECT n.number, g.batch_no, g.through, g.prev, g.last_hash FROM unnest($4::bigint[]) AS n (number)
JOIN gaps g ON g.agent_id = $1 AND g.buffer_id = $2 AND g.lane = $3 AND g.through IS NOT NULL
    AND n.number BETWEEN g.batch_no AND g.through
"""
_PLACE = """
SELECT coalesce((SELECT place_id FROM agents WHERE agent_id = $1),
    (SELECT place_id FROM places WHERE site = '' AND line = '' AND station = ''))
"""
_NUMBERS = """
SELECT clock_timestamp() AS received, array_agg(nextval('batch_ids')) AS numbers FROM generate_series(1, $1::integer)
"""
_NOTE_AGENT = """
INSERT INTO agents AS a
    (agent_id, place_id, version, first_seen, last_seen, last_event, events, batches, gaps, clock_offset_us, status, sent_us)
VALUES ($1, $2, $3, now(), now(), CASE WHEN $4::bigint > 0 THEN now() END, $4, $5, $6, $7, $8, $9)
ON CONFLICT (agent_id) DO UPDATE SET
    place_id = excluded.place_id,
    last_seen = greatest(a.last_seen, excluded.last_seen), last_event = coalesce(excluded.last_event, a.last_event),
    version = coalesce(excluded.version, a.version), events = a.events + excluded.events, batches = a.batches + excluded.batches,
    gaps = a.gaps + excluded.gaps, clock_offset_us = coalesce(excluded.clock_offset_us, a.clock_offset_us),
    status = coalesce(excluded.status, a.status), sent_us = coalesce(excluded.sent_us, a.sent_us)
WHERE excluded.batches > 0 OR excluded.sent_us IS NULL OR a.sent_us IS NULL OR excluded.sent_us > a.sent_us
"""
_SIGNATURE = """
INSERT INTO signatures (received, signature_id, agent_id, key_id, signed, signature) VALUES ($1, $2, $3, $4, $5, $6)
"""
_NOTE_FORK = """
INSERT INTO forks (agent_id, buffer_id, lane, batch_no, hash, prev, stored_hash)
SELECT $1, $2::uuid, $3::smallint, $4::bigint, $5::text, $6::text, $7::text
WHERE (SELECT count(*) FROM forks WHERE agent_id = $1 AND seen > now() - interval '1 day') < $8
ON CONFLICT DO NOTHING RETURNING batch_no
"""
