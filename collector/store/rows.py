"""From the events of a frame to the rows of `security_events`: one deterministic rule, used when a batch is stored and when rows
are compared with their frame later.

PostgreSQL cannot hold everything that an event can say. No event is refused for it; what it says is kept in another form:

* A time that is no date, lies beyond FUTURE_S_MAX ahead of `received`, or before ANCIENT_DAYS_MAX: `time` is `received`, `time_claimed`
  has the microseconds as sent, `time_flag` says why. An impossible `observed` is null.
* A NUL character in text becomes U+2400 (its picture); the frame has the original.
* A correlation id that is too long for an index is cut to INDEXED_CHARS_MAX; the frame has the original.
* JSON beyond the bounds of agent.wire.bounds (nesting, size of numbers), or that jsonb refuses (NUL escapes, bytes that are no UTF-8), goes
  to `data_text` as it came. So `data` is always something that every reader can decode.

* A type that only the collector may state (`COLLECTOR_TYPES`), in a frame of anybody else, is stored under `claimed.`: no rule, count or
  reader can take it for the real one. To refuse the batch would stop the agent's whole stream for it, and lose what stands beside it.

To look at every event for NUL costs more than it is worth, so the fast way lets PostgreSQL find out: the whole transaction
is then done again with `careful`, which looks.
"""

import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from agent.wire import bounds
from agent.wire.batch import CoreLine, Frame, decode_personal
from agent.wire.taxonomy import claimed, is_collectors, lookup
from collector.store.tally import HOUR_US, Groups, Tallies, merge_into

COLUMNS = (
    # The same in every row of a batch, then of a fixed length, then the rest.
    "received", "batch_id", "batch_no", "agent_id", "buffer_id", "place_id", "lane",
    "time", "idx", "severity", "observed",
    "type", "category", "source", "src_ip", "target", "outcome", "message", "correlation_id",
    "data", "data_text", "time_claimed", "time_flag", "actor", "raw", "personal", "personal_text",
)  # fmt: skip

FUTURE_S_MAX = 86_400
"""A time further ahead than this is not believed. A day, since a wrong time zone is common and explains itself."""
ANCIENT_DAYS_MAX = 3_650
"""A time further back than this is not believed. Ten years: old logs may be read, a clock without a battery says 1970."""
TEXT_CHARS_MAX = 1_000_000_000
INDEXED_CHARS_MAX = 500
"""Of a correlation id, where PostgreSQL refuses a longer one: an index row has a bound. The frame has all of it."""

CENTRE = UUID(int=0)
"""The agent under which the collector stores events of its own."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US_MIN = (datetime(1, 1, 2, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
_US_MAX = (datetime(9999, 12, 30, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)


class Gap(NamedTuple):
    """A row of `gaps`."""

    idx: int
    time: datetime
    source: str
    lost: int | None
    reason: str | None
    data: str | None


class Rows(NamedTuple):
    """What a frame becomes."""

    parts: list[bytes]
    """Rows in the form of COPY … WITH (FORMAT binary), in the order of COLUMNS, without head and tail: PARTS pieces each."""
    events: int
    gaps: list[Gap]
    first_time: datetime
    last_time: datetime
    tallies: Tallies
    """What its events add to the roll-ups."""
    bare: list[int]
    """Events that had a personal line which is not there: it was erased."""


def to_us(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def from_us(us: int) -> datetime | None:
    """The date, or None where there is none."""
    return EPOCH + timedelta(microseconds=us) if _US_MIN < us < _US_MAX else None


COPY_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_TAIL = b"\xff\xff"
_NULL = b"\xff\xff\xff\xff"
PARTS = 14
"""Pieces of a row: ten up to `correlation_id`; `data` and its text; the claimed time and its flag; `actor` and `raw`; `personal` and
its text."""
_NOBODY = (_NULL + _NULL, _NULL + _NULL)
_PG_EPOCH_US = 946_684_800_000_000
"""PostgreSQL counts microseconds from 2000."""
_JSONB_VERSION = b"\x01"
_SAME = struct.Struct(">hiqiqiqi16si16siiih")
_FIXED = struct.Struct(">iqiiih")
_EIGHT = struct.Struct(">iq")


class _Texts(dict[str | None, bytes]):
    """Texts as fields, each encoded once a batch: most of them are few and come again and again."""

    def __missing__(self, text: str | None) -> bytes:
        field = self[text] = _NULL if text is None else _field(text.encode())
        return field


class _Names(dict[str, str]):
    """The type that is stored, by the type that was sent."""

    def __init__(self, *, own: bool) -> None:
        super().__init__()
        self._own = own

    def __missing__(self, name: str) -> str:
        stored = self[name] = claimed(name) if is_collectors(name) and not self._own else name
        return stored


class _Types(dict[str, bytes]):
    """The fields of a type and its category."""

    def __missing__(self, name: str) -> bytes:
        fields = self[name] = _field(name.encode()) + _field(lookup(name).category.encode())
        return fields


def _field(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


def _text(value: str | None) -> bytes:
    return _NULL if value is None else _field(value.encode())


def _jsonb(value: bytes) -> bytes:
    return (len(value) + 1).to_bytes(4, "big") + _JSONB_VERSION + value


def rows_of(
    frame: Frame, *, batch_id: int, place_id: int, received: datetime, agent_id: UUID, buffer_id: UUID, careful: bool
) -> Rows:
    """The rows of a frame. Raises MalformedBatch: everything in it is opened and checked here.

    This loop bounds how fast a backlog drains, hence its plain writing and the binary form, which takes a third of the time that
    records take through the driver.
    """
    h, received_us = frame.header, to_us(received)
    latest, earliest = received_us + FUTURE_S_MAX * 1_000_000, received_us - ANCIENT_DAYS_MAX * 86_400_000_000
    same = _SAME.pack(
        len(COLUMNS), 8, received_us - _PG_EPOCH_US, 8, batch_id, 8, h.no, 16, agent_id.bytes, 16, buffer_id.bytes, 4, place_id, 2, h.lane
    )  # fmt: skip
    out: list[bytes] = []
    gaps: list[Gap] = []
    bare: list[int] = []
    first_us, last_us = 2**63, -(2**63)
    texts, types, fixed, eight = _Texts(), _Types(), _FIXED.pack, _EIGHT.pack
    names = _Names(own=agent_id == CENTRE)
    groups = Groups()
    for idx, (line, personal) in enumerate(frame.rows()):
        c = _cleaned(line) if careful else line
        name = names[c.type]
        if earliest <= c.time <= latest:
            us, flags = c.time, _NULL + _NULL
            group = groups[us // HOUR_US, name, c.severity, c.source, c.outcome]
            group.latencies.append(received_us - us)
        else:
            us, flags = received_us, eight(8, _bigint(c.time)) + _field(_why(c.time, latest))
            group = groups[us // HOUR_US, name, c.severity, c.source, c.outcome]
            group.flagged.append(None)
        if _US_MIN < c.observed < _US_MAX:
            observed = eight(8, c.observed - _PG_EPOCH_US)
            group.processings.append(received_us - c.observed)
        else:
            observed = _NULL
        first_us, last_us = min(us, first_us), max(us, last_us)
        correlation = c.correlation_id
        out += (
            same,
            fixed(8, us - _PG_EPOCH_US, 4, idx, 2, c.severity),
            observed,
            types[name],
            texts[c.source],
            texts[c.src_ip],
            texts[c.target],
            texts[c.outcome],
            texts[c.message],
            _NULL if correlation is None else _field(correlation.encode()),
            _data(bytes(c.data), careful) if c.data else _NULL + _NULL,
            flags,
            *(_personal(personal, idx, careful) if personal else _NOBODY),
        )
        if not personal and c.commit is not None:
            bare.append(idx)
        if c.type == "collection.gap":
            gaps.append(_gap(idx, EPOCH + timedelta(microseconds=us), c, careful))
    first_time, last_time = (EPOCH + timedelta(microseconds=us) for us in (first_us, last_us))
    tallies: Tallies = {}
    merge_into(tallies, groups.tallies())
    return Rows(out, h.events, gaps, first_time, last_time, tallies, bare)


def _clean(text: str | None) -> str | None:
    return text.replace("\0", "\u2400") if text is not None else None


def _cleaned(line: CoreLine) -> CoreLine:
    return msgspec.structs.replace(
        line,
        source=_clean(line.source) or "",
        src_ip=_clean(line.src_ip),
        target=_clean(line.target),
        outcome=_clean(line.outcome),
        message=_clean(line.message),
        correlation_id=_clean(line.correlation_id[:INDEXED_CHARS_MAX] if line.correlation_id else line.correlation_id),
    )


def _why(us: int, latest: int) -> bytes:
    if not _US_MIN < us < _US_MAX:
        return b"range"
    return b"future" if us > latest else b"ancient"


def _bigint(us: int) -> int:
    return max(min(us, 2**63 - 1), -(2**63))


def _data(value: bytes, careful: bool) -> bytes:  # noqa: FBT001 - an inner loop, called by position
    """The fields of an object as jsonb and, where jsonb cannot hold it, as text."""
    if bounds.excess(value) is not None or (careful and not storable(value)):
        return _NULL + _field(value.decode("utf-8", "backslashreplace").replace("\0", "\u2400").encode())
    return _jsonb(value) + _NULL


def _personal(line: bytes, idx: int, careful: bool) -> tuple[bytes, bytes]:  # noqa: FBT001
    named = decode_personal(line, idx)
    # Written anew from the object: the line has its salt in front.
    data = _data(msgspec.json.encode(named.data), careful) if named.data else _NULL + _NULL
    if careful:
        return _text(_clean(named.actor)) + _text(_clean(named.raw)), data
    return _text(named.actor) + _text(named.raw), data


def _gap(idx: int, time: datetime, line: CoreLine, careful: bool) -> Gap:  # noqa: FBT001
    text = bytes(line.data)
    try:
        said = bounds.loads(text) if text else {}
    except ValueError:
        said, text = {}, b""
    lost, reason = said.get("events"), said.get("reason")
    lost = lost if isinstance(lost, int) and not isinstance(lost, bool) and 0 <= lost < 2**63 else None
    kept = text.decode() if text and (not careful or storable(text)) else None
    return Gap(idx, time, line.source, lost, _clean(reason) if isinstance(reason, str) else None, kept)


def storable(value: bytes) -> bool:
    """Return whether jsonb can hold this JSON. Stricter than PostgreSQL where that is simpler: a false no costs only searchability."""
    try:
        decoded = bounds.loads(value)
    except ValueError:
        return False
    return all(map(_plain, _strings(decoded)))


def _plain(text: str) -> bool:
    # A surrogate that stands alone has no UTF-8, and jsonb refuses the escape of NUL.
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def _strings(value: Any) -> Iterator[str]:
    """Yield every string in a decoded value."""
    level = [value]
    while level:
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                yield from item.keys()
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, str):
                yield item
        level = below
