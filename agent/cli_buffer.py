"""`buffer stats`, `buffer verify`, `buffer export`: the buffer's file, seen from outside."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

import msgspec
from msgspec import Struct

from agent import owned_files
from agent.cli import DONE, FAILED, Failed
from agent.cli_events import opened, time_text
from agent.cli_status import number, size, table
from agent.cli_store import BATCHES_READ, COLUMNS, Store, StoredBatch, StoredStream
from agent.wire.batch import MalformedBatch, read_frame
from agent.wire.event import Event

FAULTS_MAX = 100
"""More are counted and not told."""


def _store(options: argparse.Namespace) -> Store:
    from agent.config_read import section

    return Store(section("agent", options.config, os.environ).buffer_path)


# stats ----------------------------------------------------------------------------------------------------------------------------


class _Lane(Struct):
    buffer: str
    lane: int
    next_no: int
    acked_no: int
    pending_events: int
    pending_bytes: int
    oldest_us: int | None


class _Stats(Struct):
    file: str
    file_bytes: int
    lanes: list[_Lane]
    cursors: dict[str, Any]


def stats(options: argparse.Namespace) -> int:
    """What is in it."""
    with closing(_store(options)) as store:
        told = _Stats(
            str(store.path),
            sum(each.stat().st_size for each in _files(store.path)),
            [_lane(store, stream) for stream in store.streams()],
            {
                name: msgspec.json.decode(text)
                for name, text in store.rows("SELECT source, cursor FROM cursors ORDER BY 1")
            },
        )
    if options.json:
        print(msgspec.json.encode(told).decode())
        return DONE
    print(f"{told.file}, {size(told.file_bytes)}")
    rows = [("BUFFER", "LANE", "NEXT NO", "ACKED NO", "UNSENT EVENTS", "BYTES", "OLDEST")]
    rows += [
        (
            each.buffer[:8], str(each.lane), number(each.next_no), number(each.acked_no), number(each.pending_events),
            number(each.pending_bytes), "-" if each.oldest_us is None else time_text(each.oldest_us),
        )
        for each in told.lanes
    ]  # fmt: skip
    print("\n".join([*table(rows, right=(1, 2, 3, 4, 5)), "", "sources:"]))
    for name, cursor in told.cursors.items():
        print(f"  {name}: {msgspec.json.encode(cursor).decode()[:200]}")
    return DONE


def _files(path: Path) -> Iterator[Path]:
    for each in (path, Path(f"{path}-wal")):
        if each.exists():
            yield each


def _lane(store: Store, stream: StoredStream) -> _Lane:
    sql = "SELECT observed FROM batches WHERE stream = ? AND no > ? ORDER BY no LIMIT 1"
    oldest = store.rows(sql, stream.id, stream.acked_no)
    return _Lane(
        stream.buffer, stream.lane, stream.next_no, stream.acked_no, stream.pending_events, stream.pending_bytes,
        oldest[0][0] if oldest else None,
    )  # fmt: skip


# verify ---------------------------------------------------------------------------------------------------------------------------


class _Verified(Struct):
    file: str
    ok: bool = True
    batches: int = 0
    events: int = 0
    gaps: int = 0
    faults: list[str] = []
    faults_untold: int = 0

    def fault(self, text: str) -> None:
        """Note one."""
        self.ok = False
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(text)
        else:
            self.faults_untold += 1


def verify(options: argparse.Namespace) -> int:
    """Read all of it, and check every sum, number and link. What was acknowledged and deleted is not missed."""
    with closing(_store(options)) as store:
        told = _Verified(str(store.path))
        for (text,) in store.rows("PRAGMA quick_check(20)"):
            if text != "ok":
                told.fault(f"the file itself: {text}")
        # What the running agent adds or takes away meanwhile is left for the next time.
        store.rows("BEGIN")
        for stream in store.streams():
            _verify_stream(store, stream, told)
        store.rows("COMMIT")
    if options.json:
        print(msgspec.json.encode(told).decode())
    else:
        said = "whole" if told.ok else "NOT WHOLE"
        print(
            f"{told.file}: {said}. {number(told.batches)} batches, {number(told.events)} events, {number(told.gaps)} gaps"
        )
        print("".join(f"  {fault}\n" for fault in told.faults), end="")
        if told.faults_untold:
            print(f"  and {told.faults_untold} more")
    return DONE if told.ok else FAILED


def _verify_stream(store: Store, stream: StoredStream, told: _Verified) -> None:
    after, link, pending_events = -1, "", 0
    sql = f"SELECT {COLUMNS} FROM batches WHERE stream = ? AND no > ? ORDER BY no LIMIT {BATCHES_READ}"
    while found := [StoredBatch(*row) for row in store.rows(sql, stream.id, after)]:
        for batch in found:
            where, due = f"lane {stream.lane}, batch {batch.no}", max(after, stream.acked_no) + 1
            if batch.no > due:
                told.fault(f"{where}: {due} to {batch.no - 1} were not acknowledged and are gone")
            elif link and batch.no == after + 1 and batch.prev != link:
                told.fault(f"{where}: does not name the hash of the batch before it")
            _verify_batch(batch, stream, where, told)
            pending_events += batch.events if batch.no > stream.acked_no else 0
            after, link = batch.through, batch.link
    if after >= 0 and after != stream.next_no - 1:
        told.fault(f"lane {stream.lane}: ends with batch {after}, and the next one is to be {stream.next_no}")
    if after >= 0 and link != stream.last_hash:
        told.fault(f"lane {stream.lane}: the last batch is not the one that the next is to follow")
    if pending_events != stream.pending_events:
        told.fault(f"lane {stream.lane}: {pending_events} events wait, counted were {stream.pending_events}")


def _verify_batch(batch: StoredBatch, stream: StoredStream, where: str, told: _Verified) -> None:
    told.batches += 1
    told.events += batch.events
    try:
        frame = read_frame(batch.frame)
        frame.rows()
    except MalformedBatch as error:
        told.fault(f"{where}: {error}")
        return
    header = frame.header
    told.gaps += header.gap is not None
    known = (header.buffer, header.lane, header.no, header.through, header.events, header.prev, len(batch.frame))
    noted = (stream.buffer, stream.lane, batch.no, batch.through, batch.events, batch.prev, batch.size)
    if known != noted:
        told.fault(f"{where}: its header says otherwise than its row")
    elif (header.gap.last if header.gap else frame.hash) != batch.link:
        told.fault(f"{where}: its hash is not the one that was noted")


# export ---------------------------------------------------------------------------------------------------------------------------


class _Exported(Struct, omit_defaults=True):
    """An event with its identity."""

    buffer: str
    lane: int
    batch_no: int
    index: int
    event: Event


def export(options: argparse.Namespace) -> int:
    """Every event with its identity, one JSON object a line."""
    with closing(_store(options)) as store:
        if options.output is None:
            _export(store, options, sys.stdout)
            return DONE
        if options.output.exists():
            raise Failed(f"{options.output} is there already. Name another file, or move it away.")
        with owned_files.replacing(options.output) as out:
            file = TextIOWrapper(out, encoding="utf-8")
            count = _export(store, options, file)
            file.detach()
    print(f"{number(count)} events in {options.output}", file=sys.stderr)
    return DONE


def _export(store: Store, options: argparse.Namespace, file: TextIO) -> int:
    streams = {stream.id: stream for stream in store.streams()}
    after = {stream.id: stream.acked_no for stream in streams.values()} if options.unsent else {}
    count = 0
    for batch in store.batches(after):
        stream = streams.get(batch.stream)
        if stream is None:  # begun after we looked
            continue
        for index, event in enumerate(opened(batch)):
            line = msgspec.json.encode(_Exported(stream.buffer, stream.lane, batch.no, index, event))
            file.write(line.decode() + "\n")
            count += 1
    return count
