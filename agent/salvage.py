"""A damaged buffer file: set it aside under another name, and bring over what can still be read.

The file is never deleted: it is evidence. Every batch that can be read and whose check sum fits moves to the new file under its old buffer
id and number, so that the centre's chain goes on; a hole between two of them becomes a gap that names its numbers; what followed the
last readable batch is unknown and is declared by an event. Cursors and handler state come over where they can be read; where a
cursor is lost its source starts as if new, and the declaration says so.
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiosqlite
import msgspec
from msgspec import Struct

from agent import owned_files
from agent.component import now_us
from agent.streams import META, Batch, Row, Stream, advance, insert, make_gap, transaction
from agent.wire.batch import MalformedBatch, Sealed, read_frame
from agent.wire.event import Event

PROBE_ROWS = 64
"""Rows read at once; where that fails, they are read one by one."""
UNREADABLE_ROWS_MAX = 100_000
"""Row numbers probed behind the last readable one before the rest of the file is given up."""


@dataclass(slots=True)
class Found:
    """What came over."""

    batches: int = 0
    events: int = 0
    holes: int = 0
    cursors: int = 0
    states: int = 0
    unreadable: list[str] = field(default_factory=list)


def is_sound(path: Path) -> bool:
    """Whether SQLite finds nothing wrong with a file."""
    try:
        with closing(sqlite3.connect(path)) as db:
            return bool(db.execute("PRAGMA integrity_check(1)").fetchone()[0] == "ok")
    except sqlite3.DatabaseError:
        return False


def began(path: Path) -> bool:
    """Whether a buffer was made at this path before. `note_made` says so."""
    return _made(path).exists()


def note_made(path: Path) -> None:
    """Note that there is a buffer now, so that its disappearance is noticed."""
    os.close(owned_files.open_kept(_made(path), mode=0o640))


def _made(path: Path) -> Path:
    return path.with_name(f"{path.name}.made")


def _marker(path: Path) -> Path:
    return path.with_name(f"{path.name}.recovering")


class Task(Struct, frozen=True):
    """A recovery that began and did not end: kept in a file, so that a kill in its middle makes it begin again, and be declared."""

    why: str
    aside: str | None
    """Name of the damaged file; None: there is none, the buffer is gone."""


def begin(path: Path, why: str, *, gone: bool = False) -> None:
    """Note the task, and rename the damaged file with its -wal and -shm."""
    name = f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.urandom(3).hex()}"
    owned_files.write(_marker(path), msgspec.json.encode(Task(why, None if gone else name)))
    if not gone:
        for suffix in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(path.with_name(name + suffix))


def unfinished(path: Path) -> Task | None:
    """The task that is under way at this path. What a killed one left of the new file is removed: it held nothing but copies."""
    try:
        task = msgspec.json.decode(_marker(path).read_bytes(), type=Task)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError):
        # Cut short by the power: nothing was renamed before it was durable.
        finish(path)
        return None
    if task.aside is not None and not path.with_name(task.aside).exists():
        # Killed before the renaming: the file stands where it stood, and whatever is wrong with it will be found again. Its -wal may
        # have been renamed already: back with it.
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                path.with_name(task.aside + suffix).rename(path.with_name(path.name + suffix))
        finish(path)
        return None
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return task


def finish(path: Path) -> None:
    """The task is done, and declared."""
    _marker(path).unlink(missing_ok=True)


async def bring_over(aside: Path, db: aiosqlite.Connection, agent: str) -> Found:
    """Move what can be read into the open, empty buffer `db`. Never raises for what is wrong with the damaged file."""
    found = Found()
    try:
        source = await asyncio.to_thread(_open_aside, aside)
    except (sqlite3.Error, OSError) as error:
        found.unreadable.append(f"the file: {error}")
        return found
    with closing(source):
        streams = await asyncio.to_thread(_read_streams, source, found)
        for stream_row in streams:
            batches = await asyncio.to_thread(_read_batches, source, stream_row, found)
            await _store_stream(db, agent, stream_row, batches, found)
        tables = {}
        for table in ("cursors", "handler_state"):
            tables[table] = await asyncio.to_thread(_read_table, source, table, found)
    async with transaction(db):
        await db.executemany("INSERT OR REPLACE INTO cursors VALUES (?, ?)", tables["cursors"])
        await db.executemany("INSERT OR REPLACE INTO handler_state VALUES (?, ?, ?)", tables["handler_state"])
    found.cursors, found.states = len(tables["cursors"]), len(tables["handler_state"])
    return found


def declare(task: Task, found: Found) -> list[Event]:
    """The events that tell of it: one that says what happened, one gap for what is unknown."""
    now = now_us()
    detail = {
        "file": task.aside,
        "why": task.why,
        "batches_saved": found.batches,
        "events_saved": found.events,
        "holes": found.holes,
        "cursors_saved": found.cursors,
        "unreadable": found.unreadable[:20],
    }
    told = Event(now, now, "agent.buffer.recovered", "buffer", outcome="failure", data=detail)
    reason = "the buffer file was damaged" if task.aside else "the buffer file was gone"
    gap = Event(now, now, "collection.gap", "buffer", data={"reason": reason, "events": None, "file": task.aside})
    if task.aside:
        told.message = f"{reason} and set aside as {task.aside}; {found.events} events of it were saved"
        gap.message = "an unknown number of events were lost with a damaged buffer file"
    else:
        told.message = f"{reason}: {task.why}. A new one was made"
        gap.message = "an unknown number of events were lost with the buffer file"
    return [told, gap]


def _open_aside(aside: Path) -> sqlite3.Connection:
    # Read-only: it is evidence, and its WAL stays where it is.
    connection = sqlite3.connect(f"{aside.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _read_streams(source: sqlite3.Connection, found: Found) -> list[tuple[Any, ...]]:
    try:
        return source.execute(
            "SELECT id, buffer, lane, next_no, last_hash, acked_no FROM streams ORDER BY id"
        ).fetchall()
    except sqlite3.Error as error:
        found.unreadable.append(f"streams: {error}")
    return _streams_from_frames(source)


def _streams_from_frames(source: sqlite3.Connection) -> list[tuple[Any, ...]]:
    """The table of streams from what the frames themselves say. What was acknowledged is unknown: the centre knows, and says so."""
    streams: dict[int, tuple[Any, ...]] = {}
    with suppress(sqlite3.Error):
        for stream, wire in source.execute("SELECT stream, frame FROM batches ORDER BY seq"):
            with suppress(MalformedBatch, TypeError):
                frame = read_frame(wire)
                h = frame.header
                first = streams.get(stream, (0, 0, 0, 0, "", h.no - 1))[5]
                link = h.gap.last if h.gap else frame.hash
                streams[stream] = (stream, h.buffer, h.lane, h.through + 1, link, min(first, h.no - 1))
    return list(streams.values())


def _read_table(source: sqlite3.Connection, table: str, found: Found) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    try:
        rows.extend(source.execute(f"SELECT * FROM {table}"))  # what was read before an error stays
    except sqlite3.Error as error:
        found.unreadable.append(f"{table}: {error}")
    return rows


def _read_batches(source: sqlite3.Connection, stream: tuple[Any, ...], found: Found) -> list[tuple[Row, bytes]]:
    """The unsent rows of a stream whose frame is whole, by number."""
    stream_id, buffer, lane, next_no, _, acked = stream
    good: list[tuple[Row, bytes]] = []
    for row in _rows_by_number(source, stream_id, acked + 1, next_no, found):
        meta, wire = Row(*row[:-1]), row[-1]
        with suppress(MalformedBatch, TypeError):
            frame = read_frame(wire)
            if frame.header.buffer == buffer and frame.header.lane == lane and frame.header.no == meta.no:
                frame.core()
                link = frame.header.gap.last if frame.header.gap else frame.hash
                good.append((meta._replace(through=frame.header.through, prev=frame.header.prev, link=link), wire))
    return good


def _rows_by_number(
    source: sqlite3.Connection, stream: int, begin: int, end: int, found: Found
) -> Iterator[tuple[Any, ...]]:
    sql = f"SELECT {META}, frame FROM batches WHERE stream = ? AND no >= ? AND no < ? ORDER BY no"
    failures = 0
    for low in range(begin, end, PROBE_ROWS):
        try:
            yield from source.execute(sql, (stream, low, min(low + PROBE_ROWS, end))).fetchall()
            continue
        except sqlite3.Error as error:
            found.unreadable.append(f"batches {low} … {min(low + PROBE_ROWS, end) - 1} of stream {stream}: {error}")
        for no in range(low, min(low + PROBE_ROWS, end)):
            try:
                yield from source.execute(sql, (stream, no, no + 1)).fetchall()
            except sqlite3.Error:
                failures += 1
        if failures > UNREADABLE_ROWS_MAX:
            return


async def _store_stream(
    db: aiosqlite.Connection, agent: str, row: tuple[Any, ...], good: list[tuple[Row, bytes]], found: Found
) -> None:
    _, buffer, lane, next_no, last_hash, acked = row
    if not good and acked + 1 >= next_no:
        return
    async with transaction(db):
        sql = "INSERT INTO streams (buffer, lane, next_no, last_hash, acked_no, pending_events, pending_bytes) VALUES (?, ?, ?, ?, ?, 0, 0)"
        cursor = await db.execute(sql, (buffer, lane, acked + 1, "", acked))
    stream = Stream(int(cursor.lastrowid or 0), buffer, lane, acked + 1, "", acked, 0, 0)
    whole = [*good, (Row(next_no, next_no, 0, 0, 0, last_hash, "", None), b"")]
    previous: Row | None = None
    for meta, wire in whole:
        batches: list[Batch] = []
        begin = previous.through + 1 if previous else acked + 1
        if meta.no > begin:
            # A hole. At the beginning its `prev` is unknown: the centre refuses it and says what it has, and `Buffer.expect`
            # puts it right.
            found.holes += 1
            observed = previous.observed if previous else meta.observed or now_us()
            prev = previous.link if previous else "0" * 64
            gap = make_gap(
                agent,
                stream,
                begin,
                meta.no - 1,
                prev,
                meta.prev,
                lost=[None],
                observed=(observed, now_us()),
                reason="damaged on the disk",
            )
            batches.append(gap)
        if wire:
            frame = read_frame(wire)
            batches.append(Batch(Sealed(frame.header, wire, frame.hash), meta.observed, meta.counts))
            found.batches += 1
            found.events += frame.header.events
        if batches:
            async with transaction(db):
                await insert(db, stream, batches)
            advance(stream, batches)
        previous = meta
