"""The buffer's file, read beside the running agent: read-only, in short transactions, batch by batch.

A stream's batches are asked for by number, so that a reader that goes on later (`--follow`) misses none and repeats none, whatever was
acknowledged and deleted meanwhile.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from agent.buffer import SCHEMA_VERSION
from agent.cli import Failed

BATCHES_READ = 64
"""Batches fetched at once: at most a megabyte each."""
BUSY_S_MAX = 5.0


class StoredStream(NamedTuple):
    """A row of `streams`."""

    id: int
    buffer: str
    lane: int
    next_no: int
    last_hash: str
    acked_no: int
    pending_events: int
    pending_bytes: int


class StoredBatch(NamedTuple):
    """A row of `batches`."""

    seq: int
    stream: int
    no: int
    through: int
    events: int
    size: int
    observed: int
    prev: str
    link: str
    frame: bytes


COLUMNS = "seq, stream, no, through, events, bytes, observed, prev, link, frame"
"""Of `batches`, as StoredBatch has them."""


class Store:
    """An open file. Every error of SQLite is a Failed that says what to do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = _open(path)
        version = self.rows("PRAGMA user_version")[0][0]
        if version != SCHEMA_VERSION:
            self.close()
            raise Failed(
                f"{path} has version {version}, this program reads {SCHEMA_VERSION}. Use the agent that wrote it."
            )

    def close(self) -> None:
        """Let go of it."""
        self._db.close()

    def rows(self, sql: str, *values: object) -> list[Any]:
        """All rows of a query."""
        try:
            with closing(self._db.execute(sql, values)) as cursor:
                return cursor.fetchall()
        except sqlite3.Error as error:
            raise _failed(self.path, error) from None

    def streams(self) -> list[StoredStream]:
        """All lanes, lane 0 first."""
        names = ", ".join(StoredStream._fields)
        return [StoredStream(*row) for row in self.rows(f"SELECT {names} FROM streams ORDER BY lane, id")]

    def batches(self, after: dict[int, int]) -> Iterator[StoredBatch]:
        """Batches in the order in which they were stored, of each stream those behind `after`, which is moved on with them."""
        seq = -1
        while True:
            conditions = " OR ".join(
                f"(stream = {stream.id} AND no > {after.get(stream.id, -1)})" for stream in self.streams()
            )
            sql = (
                f"SELECT {COLUMNS} FROM batches WHERE seq > ? AND ({conditions or 0}) ORDER BY seq LIMIT {BATCHES_READ}"
            )
            found = [StoredBatch(*row) for row in self.rows(sql, seq)]
            for batch in found:
                yield batch
                seq, after[batch.stream] = batch.seq, max(batch.through, after.get(batch.stream, -1))
            if not found:
                return

    def newest(self) -> Iterator[StoredBatch]:
        """Batches, the one that was stored last first."""
        seq = 2**62
        while True:
            sql = f"SELECT {COLUMNS} FROM batches WHERE seq < ? ORDER BY seq DESC LIMIT {BATCHES_READ}"
            found = [StoredBatch(*row) for row in self.rows(sql, seq)]
            yield from found
            if not found:
                return
            seq = found[-1].seq

    def ends(self) -> dict[int, int]:
        """The last number of each stream."""
        return {stream.id: stream.next_no - 1 for stream in self.streams()}


def _open(path: Path) -> sqlite3.Connection:
    if not path.exists():
        raise Failed(
            f"there is no buffer at {path}. The agent makes it when it first runs; is this the right --config?"
        )
    try:
        return _connected(path, "mode=ro")
    except sqlite3.OperationalError as error:
        # Without a running agent SQLite would have to make two files beside it. Where we may not, nobody else writes either.
        if Path(f"{path}-wal").exists():
            raise _failed(path, error) from None
    try:
        return _connected(path, "mode=ro&immutable=1")
    except sqlite3.Error as error:
        raise _failed(path, error) from None


def _connected(path: Path, options: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?{options}"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_S_MAX, isolation_level=None)
    try:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _failed(path: Path, error: sqlite3.Error) -> Failed:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return Failed(
            f"{path} is damaged: {error}. The agent sets it aside and saves what it can when it next opens it."
        )
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_READONLY", "SQLITE_AUTH")):
        return Failed(f"{path} cannot be opened: {error}. Run this as the agent's user: sudo -u linewarden …")
    if name.startswith("SQLITE_BUSY"):
        return Failed(f"{path} is busy. Try again in a moment.")
    return Failed(f"{path} cannot be read: {error}")
