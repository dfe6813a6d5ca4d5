"""Following the chains: from the first batch of each stream to its head, across what was declared lost and what retention took away.

A stream is walked in the order of its numbers. Each batch names the hash of what stands before it; a gap hands on the hash of the last
batch
lost; a tombstone hands on that of the last frame it stands for. Where numbers are missing and no tombstone stands for them, the chain
is cut.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from agent.wire.batch import GENESIS
from collector.evidence.finding import Finding
from collector.store.evidence import Link, StoredHead
from collector.store.retention import ZEROS, Tombstone

Stream = tuple[UUID, UUID, int]


class Span(NamedTuple):
    """Batches of a stream that a tombstone stands for. `prev` is None in one from before it was kept."""

    first: int
    last: int
    prev: str | None
    link: str
    batches: int
    events: int
    gaps: int


def spans(tombstones: Iterable[dict[str, Any]]) -> dict[Stream, dict[int, Span]]:
    """By stream and first number."""
    found: dict[Stream, dict[int, Span]] = defaultdict(dict)
    for tombstone in tombstones:
        if tombstone["kind"] not in ("dropped", "deleted"):
            continue
        for s in msgspec.json.decode(tombstone["streams"]):
            stream = UUID(s["agent"]), UUID(s["buffer"]), int(s["lane"])
            span = Span(
                s["first"], s["last"], s.get("prev"), s.get("link", s["last_hash"]), s.get("batches", 0), s["events"], s.get("gaps", 0)
            )  # fmt: skip
            found[stream][span.first] = span
    return found


class Stretch(NamedTuple):
    """Records of the audit log that a tombstone stands for."""

    tombstone: int
    first: int
    last: int
    prev: bytes
    hash: bytes


def stretches(tombstones: Iterable[dict[str, Any]]) -> list[Stretch]:
    """In the order in which they left."""
    return [
        Stretch(t["tombstone_id"], s["first"], s["last"], bytes.fromhex(s["prev"]), bytes.fromhex(s["hash"]))
        for t in tombstones
        if t["kind"] == "audit"
        for s in msgspec.json.decode(t["streams"])
    ]


@dataclass(slots=True)
class Walk:
    """One pass over all streams. `partial`: it does not begin at the beginning, so the first batch of a stream is believed."""

    heads: dict[Stream, StoredHead]
    spans: dict[Stream, dict[int, Span]]
    partial: bool = False
    stream: Stream | None = None
    no: int = 0
    link: str = GENESIS
    batches: int = 0
    events: int = 0
    gaps: int = 0
    at: datetime | None = None
    streams: int = 0
    all_batches: int = 0
    cut_days: set[tuple[date, date]] = field(default_factory=set)
    """Where a chain is cut: the day before, and the day after."""

    def feed(self, link: Link) -> Iterator[Finding]:
        """The next batch."""
        stream = (link.agent_id, link.buffer_id, link.lane)
        if stream != self.stream:
            yield from self._close()
            self._open(stream)
            if self.partial:
                self.no, self.link = link.batch_no - 1, link.prev
        self.all_batches += 1
        self.batches += 1
        self.events += link.events
        self.gaps += link.gap
        self._cross(link.batch_no)
        if link.batch_no <= self.no:
            text = (
                "another batch is kept under this number"
                if link.batch_no == self.no
                else "its number is covered already"
            )
            yield self._said("chain.forked", text, link.batch_no)
            return
        if link.batch_no > self.no + 1:
            missing = self.no + 1, link.batch_no - 1
            text = "the chain is cut: these are not kept, and no tombstone stands for them"
            yield self._said("chain.cut", text, *missing)
            if self.at is not None:
                self.cut_days.add((self.at.date(), link.received.date()))
        elif link.prev != self.link:
            text = f"names {link.prev[:16]}… before it, and {self.link[:16]}… stands there"
            yield self._said("chain.broken", text, link.batch_no)
        self.no, self.link, self.at = link.through, link.link, link.received

    def finish(self) -> Iterator[Finding]:
        """There are no more batches."""
        yield from self._close()
        for stream in sorted(self.heads):
            self._open(stream)
            if not self.partial:
                yield from self._close()
            self.stream = None

    def _open(self, stream: Stream) -> None:
        self.stream, self.no, self.link, self.at = stream, 0, GENESIS, None
        self.batches = self.events = self.gaps = 0
        self.streams += 1

    def _cross(self, before: int) -> None:
        """Go on over what tombstones stand for, up to the next batch that is kept."""
        known = self.spans.get(self.stream, {}) if self.stream is not None else {}
        while self.no + 1 < before and (span := known.get(self.no + 1)) is not None:
            if span.prev is not None and span.prev != self.link:
                return
            self.no, self.link = span.last, span.link
            self.batches += span.batches
            self.events += span.events
            self.gaps += span.gaps

    def _close(self) -> Iterator[Finding]:
        if self.stream is None:
            return
        head = self.heads.pop(self.stream, None)
        self._cross(2**63)
        if head is None:
            yield self._said("head.deleted", "the stream has batches and no head", self.no)
            return
        if head.batch_no > self.no:
            text = "the chain is cut at its end: the head knows of these, and they are not kept"
            yield self._said("chain.cut", text, self.no + 1, head.batch_no)
        elif head.batch_no < self.no:
            text = f"the head was rolled back to {head.batch_no}; batches up to {self.no} are kept"
            yield self._said("chain.rolled_back", text, head.batch_no)
        elif head.hash != self.link:
            text = f"the head says {head.hash[:16]}…, the last batch {self.link[:16]}…"
            yield self._said("head.changed", text, head.batch_no, columns=("hash",))
        elif not self.partial:
            told = {
                "batches": (head.batches, self.batches),
                "events": (head.events, self.events),
                "gaps": (head.gaps, self.gaps),
            }
            if names := tuple(name for name, (said, counted) in told.items() if said != counted):
                text = "; ".join(f"{n} is {told[n][0]}, {told[n][1]} came" for n in names)
                yield self._said("head.changed", text, head.batch_no, columns=names)

    def _said(
        self, kind: str, text: str, batch: int, through: int | None = None, *, columns: tuple[str, ...] = ()
    ) -> Finding:
        assert self.stream is not None  # noqa: S101 - only asked within a stream
        agent, buffer, lane = self.stream
        return Finding(
            kind=kind, text=text, agent=str(agent), buffer=buffer.hex, lane=lane, batch=batch, through=through, columns=columns,
            table="batch_heads" if kind.startswith(("head", "chain.rolled")) else "evidence",
        )  # fmt: skip


def tombstone_findings(tombstones: Iterable[dict[str, Any]], rows_hashes: dict[int, str]) -> Iterator[Finding]:
    """The chain of tombstones itself. `rows_hashes`: what each that names rows has to have by now."""
    prev, last = ZEROS, 0
    for t in tombstones:
        number = t["tombstone_id"]
        digest = Tombstone(
            t["made"], t["day"], t["kind"], t["rule"], t["events"], msgspec.json.decode(t["streams"]), t["rows_hash"]
        ).hash(t["prev"])  # fmt: skip
        if t["prev"] != prev:
            text = f"does not name tombstone {last} before it: one was taken away, put in or changed"
            yield _tombstone("tombstone.broken", text, number)
        elif digest != t["hash"]:
            yield _tombstone("tombstone.changed", "is not what its hash was made of", number)
        if number in rows_hashes and rows_hashes[number] != t["rows_hash"]:
            text = "the rows that it names are not those that it was made with"
            yield _tombstone("tombstone.changed", text, number, "tombstone_rows")
        prev, last = t["hash"], number


def _tombstone(kind: str, text: str, number: int, table: str = "tombstones") -> Finding:
    return Finding(kind=kind, text=text, table=table, record=number)


def missing_partitions(
    days: dict[str, set[date]], cuts: set[tuple[date, date]], tombstones: Iterable[dict[str, Any]], today: date
) -> Iterator[Finding]:
    """Days of which one table is there without the other, or both are not, where a chain is cut."""
    dropped = {t["day"] for t in tombstones if t["kind"] == "dropped"}
    rows, frames = days["security_events"], days["evidence"]
    for day in sorted(day for day in rows ^ frames if day <= today):
        table = "evidence" if day in rows else "security_events"
        text = f"{table} has no partition for {day}, and the other table has"
        yield Finding(kind="partition.missing", text=text, table=f"{table}_{day:%Y%m%d}")
    for day in sorted({day for begin, end in cuts for day in _between(begin, end)} - dropped - rows - frames):
        text = f"there are no partitions for {day}, no tombstone stands for that day, and a chain is cut there"
        yield Finding(kind="partition.missing", text=text, table=f"evidence_{day:%Y%m%d}")


def _between(begin: date, end: date) -> Iterator[date]:
    for ordinal in range(begin.toordinal() + 1, end.toordinal()):
        yield date.fromordinal(ordinal)
