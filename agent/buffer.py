"""Store-and-forward: the one durable thing on the station.

What holds, whatever happens:

* `append` returns after the commit (WAL, `synchronous=FULL`: after the fsync). Events, the source's cursor and the handlers' state
  are in one transaction: after `kill -9` either all of them are there or none.
* A batch is written once, as a frame (wire/batch.py), and its bytes never change. Lanes are numbered and chained here, in the
  transaction that stores the batch.
* What has to go leaves a gap batch in its place, chained like any other (streams.py). Nothing is deleted unsent without one.
* Appends that arrive while a commit is running are committed together (group commit): one fsync serves all sources.
* A full disk is waited out: `append` does not return, so the sources stand still, and it goes on when there is room again.
* A damaged file is set aside, never deleted; what can be read of it moves to a new file (salvage.py), the rest is declared lost.

On disk (SQLite, `user_version` is SCHEMA_VERSION):

    streams        id, buffer (32 hex), lane, next_no, last_hash, acked_no, pending_events, pending_bytes
                   the newest pair is written to; older ones are leftovers of a set-aside file that are still to be sent
    batches        seq, stream → streams.id, no, through, events, bytes, observed (µs, first event), prev, link, counts, frame
                   unsent where no > streams.acked_no; a few acknowledged ones are kept (RETAINED_BYTES) for `linewarden-agent events`
                   and for a collector that was restored from a backup
    cursors        source, cursor (JSON)
    handler_state  handler, key, value
    meta           key, value
"""

import asyncio
import os
import sqlite3
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from itertools import accumulate
from operator import add
from pathlib import Path
from typing import Annotated, Concatenate, Literal, NamedTuple, ParamSpec, TypeVar

import aiosqlite
import msgspec
from annotated_types import Ge

from agent import owned_files, salvage
from agent.component import ConfigError, Cursor, State, now_us
from agent.streams import (
    GAP_BYTES,
    SCHEMA,
    Batch,
    Row,
    Stream,
    advance,
    create_pair,
    cut,
    fetch,
    in_thread,
    insert_rows,
    is_damage,
    is_waiting_matter,
    replace,
    restream,
    rewind,
    rows,
    transaction,
    transaction_now,
)
from agent.wire.batch import EVENTS_MAX, SEAL_BYTES_MAX, MalformedBatch, encode_safely, read_frame, seal
from agent.wire.event import LANE_BULK, LANE_URGENT, Event

RETAINED_BYTES = 8 * 1024 * 1024
RETAINED_BATCHES_MAX = 20_000
"""Acknowledged batches kept back at the most."""
GROUP_EVENTS_MAX = 32_768
"""Events committed together at the most; further appends wait for the next commit."""
EVICT_PART = 20
"""An eviction frees 1/20 of the bound at once, so that it is rare."""
EVICT_BATCHES_MAX = 16_384
PEEK_BATCHES_MAX = 2_048
"""Batches that one `peek` looks at in a lane."""
STALL_RETRY_S = 1.0
"""A full disk is tried again this often."""
BYTES_KEPT_MIN = 16 * 1024 * 1024
"""With the disk below `free_bytes_min` the buffer may still have this much."""

_MIGRATIONS = (
    SCHEMA
    + """
    CREATE TABLE cursors (source TEXT PRIMARY KEY, cursor BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE handler_state (
        handler TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (handler, key)) WITHOUT ROWID;
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    """,
)
SCHEMA_VERSION = len(_MIGRATIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferConfig:
    """[buffer]

    bytes_max       the buffer takes no more than this; at the bound the oldest of lane 1 goes first, leaving a gap
    free_bytes_min  with less than this free on the disk the buffer does not grow; new events replace the oldest
    synchronous     full: an event is acknowledged to its source after fsync. normal: faster; the last second may go with the power
    """

    bytes_max: Annotated[int, Ge(1_048_576)] = 2_147_483_648
    free_bytes_min: Annotated[int, Ge(0)] = 536_870_912
    synchronous: Literal["full", "normal"] = "full"


P = ParamSpec("P")
R = TypeVar("R")


class Stored(NamedTuple):
    """An unsent batch as `peek` gives it."""

    stream: int
    buffer: str
    lane: int
    no: int
    through: int
    events: int
    wire: bytes


class _LanePart(NamedTuple):
    core: list[bytes]
    personal: list[bytes]
    observed: list[int]


@dataclass(slots=True)
class _Append:
    lines: Mapping[int, _LanePart]
    events: int
    source: str | None
    cursor: bytes | None
    states: Mapping[str, State]
    done: asyncio.Future[None]


@dataclass(slots=True)
class Counters:
    """What happened since the start; shown in /status and /metrics."""

    appended_events: int = 0
    commits: int = 0
    commit_s: float = 0.0
    evicted_batches: int = 0
    evicted_events: int = 0
    set_aside: int = 0
    stalls: int = 0
    last_commit_us: int = 0


def _answering(
    operation: Callable[Concatenate["Buffer", P], Awaitable[R]],
) -> Callable[Concatenate["Buffer", P], Awaitable[R]]:
    # Any operation may be the one that finds the file damaged or the disk full: the trouble is answered, then it is done again.
    @wraps(operation)
    async def answering(buffer: "Buffer", /, *args: P.args, **kwargs: P.kwargs) -> R:
        while True:
            file = buffer._file  # noqa: SLF001 (the class's own decorator)
            try:
                return await operation(buffer, *args, **kwargs)
            except sqlite3.DatabaseError as error:
                await buffer._answer(error, file)  # noqa: SLF001

    return answering


class Buffer:
    """The buffer of one agent. Made by `Buffer.open`, closed by `close`."""

    def __init__(self, path: Path, config: BufferConfig, agent: str) -> None:
        self.path = path
        self.config = config
        self.agent = agent
        self.counters = Counters()
        self.stalled: str | None = None
        """Why nothing can be stored just now; None while all is well."""
        self.growth = asyncio.Event()
        """Set whenever there is something new to send."""
        self._db: aiosqlite.Connection | None = None
        self._reader: aiosqlite.Connection | None = None
        self._streams: dict[int, Stream] = {}
        self._current: dict[int, Stream] = {}
        self._retained: deque[tuple[int, int, int]] = deque()
        self._used = 0
        self.tried_s = time.monotonic()
        """When a transaction last ended, well or not, by the monotonic clock: it stands still only where the disk does."""
        self._file = 0
        """Counts the files in use one after the other: trouble of the last one is no trouble of this one."""
        self._queue: deque[_Append] = deque()
        self._broken: set[str] = set()
        self._wake = asyncio.Event()
        self._lock = asyncio.Lock()
        self._writer: asyncio.Task[None] | None = None
        self._closing = False

    # ── opening and closing ──────────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    async def open(cls, path: Path, config: BufferConfig, agent: str) -> "Buffer":
        """Open or make the buffer file. A damaged one is set aside. Raises ConfigError where the place cannot be written."""
        buffer = cls(path, config, agent)
        try:
            await buffer._open_or_set_aside()
            salvage.note_made(path)
        except sqlite3.DatabaseError as error:
            await buffer._disconnect()
            remedy = "Check that the folder exists, belongs to the agent's user, and that the disk has room."
            raise ConfigError(
                f"the buffer {path} cannot be opened: {error}", key="agent.state_dir", remedy=remedy
            ) from None
        except BaseException:
            # A connection that is left open keeps its thread, and the thread the process: it would never end.
            await buffer._disconnect()
            raise
        buffer._writer = asyncio.create_task(buffer._write(), name="buffer")
        return buffer

    async def _open_or_set_aside(self) -> None:
        try:
            await self._open()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            await self._set_aside(str(error))

    async def _open(self) -> None:
        """Connect; and go on with a recovery that was interrupted, or begin one where the file is gone."""
        if not self.path.exists() and salvage.began(self.path) and not salvage.unfinished(self.path):
            salvage.begin(self.path, f"{self.path} was not there when the agent opened it", gone=True)
        if task := salvage.unfinished(self.path):
            await self._recover(task)
        else:
            await self._connect()

    async def _connect(self) -> None:
        # Tried without it first: where a file cannot be opened, aiosqlite leaves a thread behind that nobody waits for.
        await asyncio.to_thread(_try_open, self.path)
        db = self._db = await aiosqlite.connect(self.path, isolation_level=None)
        await db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        await db.execute("PRAGMA journal_mode = WAL")
        await db.execute(f"PRAGMA synchronous = {self.config.synchronous.upper()}")
        await db.execute("PRAGMA journal_size_limit = 16777216")
        await db.execute("PRAGMA cache_size = -1024")
        await self._migrate(db)
        self._reader = await aiosqlite.connect(
            f"{self.path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None
        )
        await self._reader.execute("PRAGMA cache_size = -512")
        await self._load(db)

    async def _migrate(self, db: aiosqlite.Connection) -> None:
        version = (await fetch(db, "PRAGMA user_version"))[0][0]
        if version > SCHEMA_VERSION:
            raise ConfigError(
                f"the buffer {self.path} was written by a newer Linewarden (schema {version}, known here: {SCHEMA_VERSION})",
                key="agent.state_dir",
                remedy="Install that version again, or give this one another state_dir.",
            )
        for number, script in enumerate(_MIGRATIONS[version:], version + 1):
            await db.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")

    async def _load(self, db: aiosqlite.Connection) -> None:
        self._streams = {row[0]: Stream(*row) for row in await fetch(db, "SELECT * FROM streams ORDER BY id")}
        newest = list(self._streams.values())[-2:]
        self._current = {stream.lane: stream for stream in newest}
        if set(self._current) != {LANE_URGENT, LANE_BULK}:
            await self._new_pair(db)
        self._retained.clear()
        for stream in self._streams.values():
            kept = await fetch(
                db,
                "SELECT stream, no, bytes FROM batches WHERE stream = ? AND no <= ? ORDER BY no",
                stream.id,
                stream.acked_no,
            )
            self._retained.extend(kept)
        await self._measure(db)

    async def _new_pair(self, db: aiosqlite.Connection) -> None:
        async with transaction(db):
            made = await create_pair(db, os.urandom(16).hex(), (LANE_URGENT, LANE_BULK))
        for stream in made:
            self._streams[stream.id] = self._current[stream.lane] = stream

    async def reconfigure(self, config: BufferConfig) -> None:
        """Go on with other bounds."""
        async with self._lock:
            self.config = config
            if self._db is not None:
                await self._db.execute(f"PRAGMA synchronous = {config.synchronous.upper()}")

    async def failed(self) -> BaseException:
        """Wait until nothing can be stored any more, which is a defect, and say why. Does not return while all is well."""
        if self._writer is None:
            raise RuntimeError("the buffer is not open")
        await asyncio.wait([self._writer])
        error = None if self._writer.cancelled() else self._writer.exception()
        return error or RuntimeError("the buffer was closed")

    async def close(self) -> None:
        """Finish the running commit and close the file. What still waits in `append` is cancelled: its source reads it again."""
        self._closing = True
        if self._writer is not None:
            self._writer.cancel()
            with suppress(asyncio.CancelledError):
                await self._writer
        for item in self._queue:
            item.done.cancel()
        await self._disconnect()

    async def _disconnect(self) -> None:
        for connection in (self._reader, self._db):
            if connection is not None:
                with suppress(sqlite3.Error, ValueError):
                    await connection.close()
        self._reader = self._db = None

    def _open_db(self) -> aiosqlite.Connection:
        if self._db is None:
            raise _not_open(self.path, closing=self._closing)
        return self._db

    def _open_reader(self) -> aiosqlite.Connection:
        if self._reader is None:
            raise _not_open(self.path, closing=self._closing)
        return self._reader

    async def _set_aside(self, why: str) -> None:
        """Give a damaged file another name, begin a new one, and bring over what can be read. Under the lock, or before it exists."""
        await self._disconnect()
        salvage.begin(self.path, why)
        self.counters.set_aside += 1
        if task := salvage.unfinished(self.path):
            await self._recover(task)

    async def _recover(self, task: salvage.Task) -> None:
        """A new file with what the old one still gives, and the declaration. Killed or failing in the middle, it begins again."""
        self._file += 1
        self._streams, self._current = {}, {}
        await self._connect()
        found = salvage.Found()
        if task.aside is not None:
            found = await salvage.bring_over(self.path.with_name(task.aside), self._open_db(), self.agent)
            await self._load(self._open_db())
        await self._append_now(salvage.declare(task, found))
        salvage.finish(self.path)
        self.growth.set()

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def append(
        self,
        events: Sequence[Event],
        source: str | None = None,
        cursor: Cursor | msgspec.Raw | None = None,
        states: Mapping[str, State] | None = None,
    ) -> None:
        """Store events, the cursor of their source, and changed handler state, in one transaction; return when it is durable.

        After an append of a source failed, its next ones fail too until its cursor is read again: a later cursor would pass over
        the events that were not stored.
        """
        if self._writer is None or self._writer.done():
            raise RuntimeError("the buffer is closed")
        if source in self._broken:
            raise RuntimeError(f"an earlier append of {source} failed")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Written here and not by the writer: so it is done while the last commit still waits for the disk, and the cursor is the one
        # of these events even if its source goes on changing what it is made of.
        position = None if cursor is None else msgspec.json.encode(cursor)
        self._queue.append(_Append(_lines_by_lane(events), len(events), source, position, states or {}, done))
        self._wake.set()
        await done

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                group = self._next_group()
                try:
                    await self._commit_until_done(group)
                except BaseException as error:
                    self._fail(group, error)
                    if not isinstance(error, Exception):
                        raise
                for item in group:
                    if not item.done.done():
                        item.done.set_result(None)

    def _fail(self, group: list[_Append], error: BaseException) -> None:
        # What a source has sent behind an append that failed must not be stored: its cursor would pass over what is missing.
        sources = {item.source for item in group if item.source is not None}
        self._broken |= sources
        behind = [item for item in self._queue if item.source in sources]
        self._queue = deque(item for item in self._queue if item.source not in sources)
        for item in [*group, *behind]:
            if not item.done.done():
                item.done.set_exception(error) if isinstance(error, Exception) else item.done.cancel()

    def _next_group(self) -> list[_Append]:
        group = [self._queue.popleft()]
        size = group[0].events
        while self._queue and size + self._queue[0].events <= GROUP_EVENTS_MAX:
            size += self._queue[0].events
            group.append(self._queue.popleft())
        return group

    async def _commit_until_done(self, group: list[_Append]) -> None:
        lines = group[0].lines if len(group) == 1 else _merged([item.lines for item in group])
        while True:
            file = self._file
            try:
                async with self._lock:
                    await self._commit(group, lines)
            except sqlite3.DatabaseError as error:
                self.tried_s = time.monotonic()
                await self._answer(error, file)
                continue
            self.stalled = None
            self.tried_s = time.monotonic()
            if lines:
                self.growth.set()
            return

    async def _answer(self, error: sqlite3.DatabaseError, file: int) -> None:
        """Something failed: wait where waiting helps, set the file aside where it is damaged, let the rest through."""
        damaged = is_damage(error)
        if not damaged and getattr(error, "sqlite_errorname", "") == "SQLITE_ERROR":
            # Statements that used to work: what SQLite read of the file may make no sense, whatever it calls it.
            damaged = not await asyncio.to_thread(salvage.is_sound, self.path)
        if damaged:
            try:
                async with self._lock:
                    if file == self._file:
                        await self._set_aside(str(error))
            except sqlite3.DatabaseError as second:
                # As when the disk is full: recovery begins again when it can.
                await self._disconnect()
                error = second
            else:
                return
        if not is_waiting_matter(error):
            raise error
        if self.stalled is None:
            self.counters.stalls += 1
        self.stalled = f"nothing can be stored in {self.path}: {error}; collecting waits and goes on by itself"
        await asyncio.sleep(STALL_RETRY_S)
        async with self._lock:
            if self._db is None and not self._closing:
                await self._open()

    async def _commit(self, group: Sequence[_Append], lines: Mapping[int, _LanePart]) -> None:
        db = self._open_db()
        begun = time.perf_counter()
        await self._make_room(db, sum(sum(map(len, part.core)) for part in lines.values()) // 4)
        cursors = [(item.source, item.cursor) for item in group if item.cursor is not None]
        # In the order of the appends: the last one to speak of a key is right.
        state = {
            (name, key): value
            for item in group
            for name, changed in item.states.items()
            for key, value in changed.items()
        }

        def work(inner: sqlite3.Connection) -> list[tuple[Stream, list[Batch]]]:
            # Compressed and hashed here too: the parsers run meanwhile.
            made = [(self._current[lane], self._seal(self._current[lane], part)) for lane, part in lines.items()]
            with transaction_now(inner):
                for stream, sealed in made:
                    insert_rows(inner, stream, sealed)
                if cursors:
                    inner.executemany("INSERT OR REPLACE INTO cursors VALUES (?, ?)", cursors)
                if state:
                    _keep_state(inner, state)
            return made

        batches = await in_thread(db, work)
        for stream, sealed in batches:
            advance(stream, sealed)
            self._used += sum(len(batch.sealed.frame) for batch in sealed)
            self.counters.appended_events += sum(batch.sealed.header.events for batch in sealed)
        self.counters.commits += 1
        self.counters.commit_s += time.perf_counter() - begun
        self.counters.last_commit_us = now_us()

    async def _append_now(self, events: Sequence[Event]) -> None:
        # For the buffer's own events, where the writer cannot be asked because it is waiting for this.
        await self._commit((), _lines_by_lane(events))

    def _seal(self, stream: Stream, part: _LanePart) -> list[Batch]:
        no, prev = stream.next_no, stream.last_hash
        batches: list[Batch] = []
        for begin, end in _cuts(part):
            core, personal, at = part.core[begin:end], part.personal[begin:end], now_us()
            sealed = seal(
                core, personal, agent=self.agent, buffer=stream.buffer, lane=stream.lane, no=no, prev=prev, sealed=at
            )
            batches.append(Batch(sealed, part.observed[begin]))
            no, prev = no + 1, sealed.hash
        return batches

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @_answering
    async def cursor(self, source: str) -> Cursor | None:
        """Where a source stands by the last commit. It begins anew from there: see `append`."""
        self._broken.discard(source)
        found = await fetch(self._open_reader(), "SELECT cursor FROM cursors WHERE source = ?", source)
        return msgspec.json.decode(found[0][0], type=Cursor) if found else None

    @_answering
    async def states(self) -> dict[str, dict[str, bytes]]:
        """The stored state of all handlers: handler → key → value."""
        states: dict[str, dict[str, bytes]] = {}
        for handler, key, value in await fetch(self._open_reader(), "SELECT handler, key, value FROM handler_state"):
            states.setdefault(handler, {})[key] = value
        return states

    @_answering
    async def peek(self, bytes_max: int, after: Mapping[int, int] | None = None) -> list[Stored]:
        """The next unsent batches, lane 0 first, then by age, together at most `bytes_max` (one at least, if there is any).

        `after` (stream → number) leaves out what is under way already.
        """
        reader, room = self._open_reader(), bytes_max
        found: list[Stored] = []
        for stream in sorted(self._streams.values(), key=lambda s: (s.lane, s.id)):
            begin = max(stream.acked_no, (after or {}).get(stream.id, 0))
            if begin + 1 >= stream.next_no:
                continue
            sql = "SELECT no, bytes FROM batches WHERE stream = ? AND no > ? ORDER BY no LIMIT ?"
            last = 0
            for no, size in await fetch(reader, sql, stream.id, begin, PEEK_BATCHES_MAX):
                if size > room and (found or last):
                    room = 0
                    break
                room, last = room - size, no
            sql = "SELECT no, through, events, frame FROM batches WHERE stream = ? AND no > ? AND no <= ? ORDER BY no"
            found += [
                Stored(stream.id, stream.buffer, stream.lane, *row)
                for row in await fetch(reader, sql, stream.id, begin, last)
            ]
            if room <= 0:
                break
        return found

    @_answering
    async def oldest_us(self) -> int | None:
        """When the oldest unsent event was observed, µs since the epoch."""
        oldest: list[int] = []
        for stream in self._streams.values():
            sql = "SELECT observed FROM batches WHERE stream = ? AND no > ? ORDER BY no LIMIT 1"
            oldest += [row[0] for row in await fetch(self._open_reader(), sql, stream.id, stream.acked_no)]
        return min(oldest, default=None)

    @property
    def pending_events(self) -> int:
        """Events that the centre does not have yet."""
        return sum(stream.pending_events for stream in self._streams.values())

    @property
    def pending_bytes(self) -> int:
        """Bytes of the batches that hold them."""
        return sum(stream.pending_bytes for stream in self._streams.values())

    @property
    def used_bytes(self) -> int:
        """Bytes of the file in use, as `bytes_max` counts them."""
        return self._used

    # ── what the centre answers ──────────────────────────────────────────────────────────────────────────────────────

    @_answering
    async def ack(self, buffer: str, lane: int, no: int) -> None:
        """Batches of a lane up to `no` are durable at the centre. A few are kept back (RETAINED_BYTES), the rest deleted."""
        async with self._lock:
            db, stream = self._open_db(), self._find(buffer, lane)
            if stream is None or not stream.acked_no < no < stream.next_no:
                return
            sql = "SELECT no, through, events, bytes FROM batches WHERE stream = ? AND no > ? AND no <= ? ORDER BY no"
            done = [row for row in await fetch(db, sql, stream.id, stream.acked_no, no) if row[1] <= no]
            events, size = sum(row[2] for row in done), sum(row[3] for row in done)
            retained = self._retained + deque((stream.id, row[0], row[3]) for row in done)
            dropped, kept = [], sum(item[2] for item in retained)
            while kept > RETAINED_BYTES or len(retained) > RETAINED_BATCHES_MAX:
                dropped.append(retained.popleft())
                kept -= dropped[-1][2]
            async with transaction(db):
                sql = "UPDATE streams SET acked_no = ?, pending_events = pending_events - ?, pending_bytes = pending_bytes - ? WHERE id = ?"
                await db.execute(sql, (no, events, size, stream.id))
                await db.executemany("DELETE FROM batches WHERE stream = ? AND no = ?", [item[:2] for item in dropped])
            stream.acked_no = no
            stream.pending_events -= events
            stream.pending_bytes -= size
            self._retained = retained
            self._used -= sum(item[2] for item in dropped)
            await self._forget_finished(db, stream)

    @_answering
    async def expect(self, buffer: str, lane: int, expected: int, head: str) -> None:
        """The centre wants `expected` next, behind the hash `head`: send from there, declaring what is no longer here."""
        async with self._lock:
            db, stream = self._open_db(), self._find(buffer, lane)
            if stream is None:
                return
            first = next(iter(await rows(db, stream, stream.acked_no, 1)), None)
            if expected <= stream.acked_no:
                await rewind(db, self.agent, stream, expected, head)
                self._retained = deque(
                    item for item in self._retained if item[0] != stream.id or item[1] <= stream.acked_no
                )
            elif first is not None and first.no < expected <= first.through:
                if not await cut(db, self.agent, stream, first, expected, head):
                    await self._move_all(db, stream)
            elif first is not None and first.no < expected:
                await self._move_on(db, stream, expected, head)
            self.growth.set()

    async def _move_on(self, db: aiosqlite.Connection, stream: Stream, expected: int, head: str) -> None:
        # The centre has a gap where we have batches: this file is an old copy of the one that declared it. They are not lost after
        # all, but their numbers are taken: they travel under a new buffer id, and this one goes on with the number that is expected.
        if stream is self._current[stream.lane]:
            await self._new_pair(db)
        below = min(expected, stream.next_no)
        await restream(db, self.agent, stream, self._current[stream.lane], below)
        first = next(iter(await rows(db, stream, stream.acked_no, 1)), None)
        straddles = first is not None and first.no < expected <= first.through
        if first is not None and straddles and not await cut(db, self.agent, stream, first, expected, head):
            await restream(db, self.agent, stream, self._current[stream.lane])
        await self._forget_finished(db, stream)

    async def _move_all(self, db: aiosqlite.Connection, stream: Stream) -> None:
        if stream is self._current[stream.lane]:
            await self._new_pair(db)
        await restream(db, self.agent, stream, self._current[stream.lane])
        await self._forget_finished(db, stream)

    @_answering
    async def fork(self, buffer: str, lane: int) -> None:
        """The centre has other batches under these numbers: this file is an old copy, or a twin. Go on under a new buffer id."""
        async with self._lock:
            db, stream = self._open_db(), self._find(buffer, lane)
            if stream is None:
                return
            await self._move_all(db, stream)
            self.growth.set()

    @_answering
    async def check(self, buffer: str, lane: int, no: int) -> bool:
        """Whether a stored batch can still be read; one that cannot is replaced by a gap."""
        async with self._lock:
            db, stream = self._open_db(), self._find(buffer, lane)
            if stream is None:
                return True
            found = await fetch(db, "SELECT frame FROM batches WHERE stream = ? AND no = ?", stream.id, no)
            try:
                read_frame(found[0][0] if found else b"").rows()
            except MalformedBatch:
                gone = [row for row in await rows(db, stream, no - 1, 1) if row.no == no]
                if gone:
                    await replace(db, self.agent, stream, gone, "damaged on the disk")
                    self.growth.set()
                return False
            return True

    def _find(self, buffer: str, lane: int) -> Stream | None:
        return next((s for s in self._streams.values() if s.buffer == buffer and s.lane == lane), None)

    async def _forget_finished(self, db: aiosqlite.Connection, stream: Stream) -> None:
        # A leftover of an older buffer id, all sent: its row has done its duty.
        if stream is self._current[stream.lane] or stream.pending_events:
            return
        async with transaction(db):
            await db.execute("DELETE FROM batches WHERE stream = ?", (stream.id,))
            await db.execute("DELETE FROM streams WHERE id = ?", (stream.id,))
        self._retained = deque(item for item in self._retained if item[0] != stream.id)
        del self._streams[stream.id]

    # ── bounds ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _measure(self, db: aiosqlite.Connection) -> None:
        # Pages in use, as SQLite counts them. Between two measurements `_used` is kept by adding frames.
        pages = (await fetch(db, "PRAGMA page_count"))[0][0] - (await fetch(db, "PRAGMA freelist_count"))[0][0]
        self._used = pages * (await fetch(db, "PRAGMA page_size"))[0][0]

    def _bound(self) -> int:
        status = os.statvfs(self.path.parent)
        if status.f_bavail * status.f_frsize > self.config.free_bytes_min:
            return self.config.bytes_max
        return min(self.config.bytes_max, max(self._used, BYTES_KEPT_MIN))

    async def _make_room(self, db: aiosqlite.Connection, incoming: int) -> None:
        bound = self._bound()
        if self._used + incoming <= bound:
            return
        await self._measure(db)
        if self._used + incoming <= bound:
            return
        need = self._used + incoming - bound + bound // EVICT_PART
        need -= await self._drop_retained(db)
        for stream in sorted(self._streams.values(), key=lambda s: (-s.lane, s.id)):
            while need > 0 and (freed := await self._evict(db, stream, need)):
                need -= freed
        await db.execute("PRAGMA incremental_vacuum(1024)")
        await self._measure(db)

    async def _drop_retained(self, db: aiosqlite.Connection) -> int:
        freed = sum(item[2] for item in self._retained)
        async with transaction(db):
            await db.executemany(
                "DELETE FROM batches WHERE stream = ? AND no = ?", [item[:2] for item in self._retained]
            )
        self._retained.clear()
        return freed

    async def _evict(self, db: aiosqlite.Connection, stream: Stream, need: int) -> int:
        """Put one gap in the place of the oldest unsent batches. Returns the bytes that came free, 0 where it is not worth it."""
        gone: list[Row] = []
        freed = -GAP_BYTES
        for row in await rows(db, stream, stream.acked_no, EVICT_BATCHES_MAX):
            if freed >= need:
                break
            gone.append(row)
            freed += row.size
        if freed <= 0 or all(row.counts is not None for row in gone):
            return 0
        freed = await replace(db, self.agent, stream, gone, "evicted from a full buffer")
        self.counters.evicted_batches += sum(row.counts is None for row in gone)
        self.counters.evicted_events += sum(row.events for row in gone if row.counts is None)
        return max(freed, 0)


def _try_open(path: Path) -> None:
    if not os.path.lexists(path):
        # For the owner of the folder alone, whoever starts the agent; SQLite gives its -wal and -shm the same owner. What cannot be made
        # SQLite says in its own words.
        with suppress(OSError):
            os.close(owned_files.open_kept(path))
    sqlite3.connect(path).close()


def _not_open(path: Path, *, closing: bool) -> Exception:
    if closing:
        return RuntimeError("the buffer is closed")
    error = sqlite3.OperationalError(f"{path} is not open")
    error.sqlite_errorname = "SQLITE_CANTOPEN"
    return error


def _lines_by_lane(events: Sequence[Event]) -> dict[int, _LanePart]:
    if not events:
        return {}
    core, personal = encode_safely(events)
    lanes = [event.lane for event in events]
    first = lanes[0]
    if lanes.count(first) == len(lanes):
        return {first: _LanePart(core, personal, [event.observed for event in events])}
    parts = {lane: _LanePart([], [], []) for lane in sorted(set(lanes))}
    for event, lane, core_line, personal_line in zip(events, lanes, core, personal, strict=True):
        part = parts[lane]
        part.core.append(core_line)
        part.personal.append(personal_line)
        part.observed.append(event.observed)
    return parts


def _merged(parts: Sequence[Mapping[int, _LanePart]]) -> dict[int, _LanePart]:
    merged: dict[int, _LanePart] = {}
    for lanes in parts:
        for lane, part in lanes.items():
            whole = merged.setdefault(lane, _LanePart([], [], []))
            whole.core.extend(part.core)
            whole.personal.extend(part.personal)
            whole.observed.extend(part.observed)
    return dict(sorted(merged.items()))


def _cuts(part: _LanePart) -> list[tuple[int, int]]:
    # Where batches begin and end: at EVENTS_MAX events, or SEAL_BYTES_MAX bytes of lines, whichever comes first.
    sizes = list(accumulate(map(add, map(len, part.core), map(len, part.personal))))
    cuts: list[tuple[int, int]] = []
    begin = before = 0
    while begin < len(sizes):
        # Two line ends an event beside its lines.
        end = bisect_right(sizes, before + SEAL_BYTES_MAX - 2 * EVENTS_MAX, begin, min(begin + EVENTS_MAX, len(sizes)))
        end = max(end, begin + 1)
        cuts.append((begin, end))
        begin, before = end, sizes[end - 1]
    return cuts


def _keep_state(db: sqlite3.Connection, state: Mapping[tuple[str, str], bytes | None]) -> None:
    gone = [key for key, value in state.items() if value is None]
    kept = [(*key, value) for key, value in state.items() if value is not None]
    if gone:
        db.executemany("DELETE FROM handler_state WHERE handler = ? AND key = ?", gone)
    if kept:
        db.executemany("INSERT OR REPLACE INTO handler_state VALUES (?, ?, ?)", kept)
