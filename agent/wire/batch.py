"""The batch: events sealed together, numbered, chained. The same bytes lie in the buffer, go over the wire and stay as evidence.

A batch as bytes is a *frame*:

    offset  size  what
    0       3     "LWB"
    3       1     version, 1
    4       4     H, length of the header, big-endian          ≤ HEADER_BYTES_MAX
    8       4     C, length of the compressed core section     ≤ SECTION_BYTES_MAX
    12      4     P, length of the compressed personal section ≤ SECTION_BYTES_MAX
    16      H     header: one JSON object, see `Header`
    16+H    C     core section: zstd of NDJSON, one line an event
    …       P     personal section: zstd of lines, one an event, in the same order; empty where the event has no personal data
    …       16    BLAKE2b-128 of all the bytes before: catches damage, proves nothing

What is proven, and by what:

* `hash = SHA-256(0x01 ‖ header)`. The header holds the SHA-256 of the *uncompressed* core section (how it is compressed never
  matters) and the hash of the batch before it in its lane, so a chain of headers fixes every core line and their order.
* A personal line is 32 hex digits of random salt followed by a JSON object. The core line holds `commit = SHA-256(personal line)`.
  Deleting the personal line erases the person and leaves the chain whole; the salt keeps the commitment from being guessed.
* Lane, number and buffer are in the header. A batch's identity is (agent, buffer, lane, no); an event's adds its index, from 0.

A *gap* is a batch like any other whose header has `gap`: it stands for the numbers `no … gap.through`, and its one event is a
`collection.gap` that says how many events were lost and why. `gap.last` is the hash of the last lost batch, so that the
next batch's `prev` still fits.
"""

import hashlib
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any, NamedTuple

import msgspec
import zstandard
from msgspec import Struct

from agent.wire import bounds
from agent.wire.event import EVENT_BYTES_MAX, Event
from agent.wire.taxonomy import PERSONAL_KEYS, TYPE_LENGTH_MAX, TYPE_PATTERN

VERSION = 1
MAGIC = b"LWB"
EVENTS_MAX = 8_192
"""Events in a batch at the most. The buffer seals a new batch beyond it."""
SECTION_BYTES_MAX = 4 * 1024 * 1024
"""A section, compressed or not, is never longer. Larger is refused before it is decompressed."""
SEAL_BYTES_MAX = 1_000_000
"""The buffer seals a new batch when the lines reach this, so that a batch fits the smallest usual request bound (1 MiB)."""
HEADER_BYTES_MAX = 4_096
GENESIS = "0" * 64
"""`prev` of the first batch of a lane."""

_PREAMBLE = struct.Struct(">3sBIII")
_CHECK_BYTES = 16
_SALT_CHARS = 32
FRAME_BYTES_MIN = _PREAMBLE.size + _CHECK_BYTES


class MalformedBatch(ValueError):
    """Bytes that are not a batch. The text names what is wrong; `offset` is where the frame begins in what was read."""

    def __init__(self, text: str, offset: int = 0) -> None:
        super().__init__(text)
        self.offset = offset


class GapRange(Struct, frozen=True, forbid_unknown_fields=True):
    """The part of a lane that a gap stands for: batches `no … through`; `last` is the hash of batch `through`."""

    through: int
    last: str


class Header(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What the hash covers. `sealed` is µs since the epoch, by the agent's clock. `prev`, `core_sha256`: 64 hex digits."""

    agent: str
    buffer: str
    lane: int
    no: int
    prev: str
    sealed: int
    events: int
    core_bytes: int
    core_sha256: str
    gap: GapRange | None = None

    @property
    def through(self) -> int:
        """The last number of the lane that this batch covers: its own, or the end of the gap."""
        return self.gap.through if self.gap else self.no


class CoreLine(Struct, omit_defaults=True, gc=False, forbid_unknown_fields=True):
    """One line of the core section."""

    time: int
    observed: int
    type: str
    severity: int
    source: str = ""
    src_ip: str | None = None
    target: str | None = None
    outcome: str | None = None
    message: str | None = None
    correlation_id: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"")
    commit: str | None = None


class PersonalLine(Struct, omit_defaults=True, gc=False, forbid_unknown_fields=True):
    """The JSON object of a personal line, after its salt."""

    actor: str | None = None
    raw: str | None = None
    data: dict[str, Any] = {}


class Sealed(NamedTuple):
    """A batch made by `seal`. `hash` is what the next batch of the lane gives as `prev`."""

    header: Header
    frame: bytes
    hash: str


_encoder = msgspec.json.Encoder(decimal_format="string", uuid_format="canonical")
_core_decoder = msgspec.json.Decoder(CoreLine)
_personal_decoder = msgspec.json.Decoder(PersonalLine)
_header_decoder = msgspec.json.Decoder(Header)


class _Own(threading.local):
    """zstd's contexts belong to one thread. Shared, two threads at once spoil each other's sections, or bring the process down."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=1, write_content_size=True)
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=2**23)


_own = _Own()


def hash_of(header_bytes: bytes) -> str:
    """The batch hash: hex SHA-256 over the version byte and the header as it was sent."""
    return hashlib.sha256(bytes([VERSION]) + header_bytes).hexdigest()


def fit(event: Event) -> Event:
    """The event itself, or the event cut: `data.out_of_bounds` names a bound of values that `data` exceeded (see bounds.py), and
    `data.oversized_bytes` says how long a line of it would have been where it passed EVENT_BYTES_MAX.
    """
    data, reason = bounds.within(event.data)
    if reason is not None:
        event = copy(event)
        event.data = {**(data if isinstance(data, dict) else {}), "out_of_bounds": reason}
    try:
        size = len(_encoder.encode(event))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        size, detail = -1, f"{type(error).__name__}: {error}"
    else:
        detail = "event longer than EVENT_BYTES_MAX"
        if size <= EVENT_BYTES_MAX:
            return event

    def cut(text: str | None, chars: int) -> str | None:
        # A lone surrogate (a JSON "\ud800" from outside) cannot be UTF-8: shown as an escape instead.
        return None if text is None else str(text)[:chars].encode("utf-8", "backslashreplace").decode()

    return Event(
        time=max(min(event.time, 2**63 - 1), -(2**63)),
        observed=event.observed,
        type=event.type,
        source=event.source,
        severity=event.severity,
        src_ip=cut(event.src_ip, 64),
        target=cut(event.target, 1_000),
        outcome=event.outcome,
        message=cut(event.message, 8_000),
        correlation_id=cut(event.correlation_id, 256),
        actor=cut(event.actor, 1_000),
        raw=cut(event.raw, 16_000),
        data={"oversized_bytes": size, "cut": detail[:500]},
    )


def encode_lines(events: Sequence[Event]) -> tuple[list[bytes], list[bytes]]:
    """The core and personal lines of events, without line ends, one each an event.

    An event whose personal half is put aside, and which has its commitment instead, is its core line: so all are written at once, without
    a copy of any, which is twice as fast as building a core struct for each. Whatever happens, the events are whole again afterwards.
    """
    personal = [b""] * len(events)
    named: list[tuple[Event, str | None, str | None, dict[str, Any]]] = []
    disjoint, encode, sha256 = PERSONAL_KEYS.isdisjoint, _encoder.encode, hashlib.sha256
    salts = os.urandom(_SALT_CHARS // 2 * len(events)).hex().encode()
    at = 0
    try:
        for index, event in enumerate(events):
            actor, raw, data = event.actor, event.raw, event.data
            if event.commit is not None:
                break  # the same object is there twice
            if disjoint(data):
                if actor is None and raw is None:
                    continue
                named.append((event, actor, raw, data))
                line = salts[at : at + _SALT_CHARS] + encode(PersonalLine(actor, raw))
            else:
                named.append((event, actor, raw, data))
                mine = {key: value for key, value in data.items() if key in PERSONAL_KEYS}
                line = salts[at : at + _SALT_CHARS] + encode(PersonalLine(actor, raw, mine))
                event.data = {key: value for key, value in data.items() if key not in PERSONAL_KEYS}
            at += _SALT_CHARS
            event.actor = event.raw = None
            event.commit = sha256(line).hexdigest()
            personal[index] = line
        else:
            core = _encoder.encode_lines(events).split(b"\n")
            core.pop()
            return core, personal
    finally:
        for event, actor, raw, data in named:
            event.actor, event.raw, event.data, event.commit = actor, raw, data, None
    return encode_lines([copy(event) for event in events])


def encode_safely(events: Sequence[Event]) -> tuple[list[bytes], list[bytes]]:
    """`encode_lines` for events from anywhere: what cannot be encoded, or is too long, is cut by `fit`, never refused."""
    try:
        core, personal = encode_lines(events)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return encode_lines([fit(event) for event in events])
    if bounds.any_deep(core) or bounds.any_deep(personal) or _has_long_digits(core, personal):
        return encode_lines([fit(event) for event in events])
    if max(map(len, core), default=0) > EVENT_BYTES_MAX or max(map(len, personal), default=0) > EVENT_BYTES_MAX:
        return encode_lines([fit(event) for event in events])
    return core, personal


def _has_long_digits(core: Sequence[bytes], personal: Sequence[bytes]) -> bool:
    # An exponent too large cannot be: what is encoded here are numbers of Python.
    return bounds.has_long_digits(b"\n".join(core)) or bounds.has_long_digits(b"\n".join(personal))


def seal(
    core: Sequence[bytes],
    personal: Sequence[bytes],
    *,
    agent: str,
    buffer: str,
    lane: int,
    no: int,
    prev: str,
    sealed: int,
    gap: GapRange | None = None,
) -> Sealed:
    """Make the frame of a batch from its lines. 1 … EVENTS_MAX lines; the caller has cut them to SEAL_BYTES_MAX."""
    body = b"\n".join(core)
    header = Header(agent, buffer, lane, no, prev, sealed, len(core), len(body), hashlib.sha256(body).hexdigest(), gap)
    header_bytes = _encoder.encode(header)
    compress = _own.compressor.compress
    core_z = compress(body)
    personal_z = compress(b"\n".join(personal)) if any(personal) else b""
    return Sealed(header, assemble(header_bytes, core_z, personal_z), hash_of(header_bytes))


def assemble(header_bytes: bytes, core_z: bytes, personal_z: bytes) -> bytes:
    """The frame of three parts: preamble before, check sum behind."""
    frame = b"".join(
        (
            _PREAMBLE.pack(MAGIC, VERSION, len(header_bytes), len(core_z), len(personal_z)),
            header_bytes,
            core_z,
            personal_z,
        )
    )
    return frame + hashlib.blake2b(frame, digest_size=_CHECK_BYTES).digest()


class Frame:
    """A frame that was read: its header is checked, its sections are opened on demand and checked then."""

    __slots__ = ("core_z", "hash", "header", "header_bytes", "personal_z", "wire")

    def __init__(self, wire: bytes, header_bytes: bytes, core_z: bytes, personal_z: bytes) -> None:
        self.wire = wire
        self.header_bytes = header_bytes
        self.core_z = core_z
        self.personal_z = personal_z
        self.header = _checked_header(header_bytes)
        self.hash = hash_of(header_bytes)

    def core(self) -> bytes:
        """The core section, decompressed and checked against the header."""
        body = _decompress(self.core_z, "core")
        if len(body) != self.header.core_bytes or hashlib.sha256(body).hexdigest() != self.header.core_sha256:
            raise MalformedBatch(f"the core section of batch {self.header.no} is not the one its header names")
        return body

    def core_lines(self) -> list[CoreLine]:
        """The core lines, decoded and checked one by one."""
        return decode_core(self.core(), self.header.events)

    def personal_lines(self) -> list[bytes]:
        """The personal lines as they stand, one an event; all empty where there are none or they were erased."""
        if not self.personal_z:
            return [b""] * self.header.events
        lines = _decompress(self.personal_z, "personal").split(b"\n")
        if len(lines) != self.header.events:
            raise MalformedBatch(f"the personal section has {len(lines)} lines for {self.header.events} events")
        return lines

    def rows(self) -> list[tuple[CoreLine, bytes]]:
        """Each core line with its personal line, every commitment checked."""
        core, personal = self.core_lines(), self.personal_lines()
        sha256 = hashlib.sha256
        for index, (event, line) in enumerate(zip(core, personal, strict=True)):
            if line and (event.commit is None or sha256(line).hexdigest() != event.commit):
                raise MalformedBatch(f"the personal line of event {index} is not the one its core line commits to")
        return list(zip(core, personal, strict=True))

    def events(self) -> list[Event]:
        """The events, whole again."""
        events = []
        for index, (c, line) in enumerate(self.rows()):
            named = decode_personal(line, index) if line else PersonalLine()
            data = msgspec.json.decode(c.data) if c.data else {}
            events.append(
                Event(
                    c.time, c.observed, c.type, c.source, c.severity, c.src_ip, c.target, c.outcome, c.message, c.correlation_id,
                    named.actor, named.raw, {**data, **named.data},
                )
            )  # fmt: skip
        return events


def decode_core(body: bytes, count: int) -> list[CoreLine]:
    """Core lines from an uncompressed core section of `count` events."""
    try:
        lines = _core_decoder.decode_lines(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBatch(f"a core line is not an event: {error}") from None
    if len(lines) != count:
        raise MalformedBatch(f"the core section has {len(lines)} lines, the header says {count}")
    for index, line in enumerate(lines):
        if not 1 <= line.severity <= 6:  # noqa: PLR2004
            raise MalformedBatch(f"event {index}: severity {line.severity} is not 1 … 6")
        if len(line.type) > TYPE_LENGTH_MAX or not TYPE_PATTERN.fullmatch(line.type):
            raise MalformedBatch(f"event {index}: type {line.type[:80]!r} is not a dotted lower-case name")
        if bytes(line.data)[:1] not in (b"", b"{"):
            raise MalformedBatch(f"event {index}: data is not an object")
    return lines


def decode_personal(line: bytes, index: int = 0) -> PersonalLine:
    """The object of a personal line, its salt left out."""
    try:
        return _personal_decoder.decode(line[_SALT_CHARS:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBatch(f"the personal line of event {index} cannot be read: {error}") from None


def read_frames(body: bytes, *, frames_max: int = 65_536) -> Iterator[Frame]:
    """The frames that stand one after the other in `body`. Raises MalformedBatch with the offset of the first bad one."""
    offset = 0
    for _ in range(frames_max):
        if offset == len(body):
            return
        frame, offset = _read_frame(body, offset)
        yield frame
    if offset != len(body):
        raise MalformedBatch(f"more than {frames_max} frames", offset)


def read_frame(wire: bytes) -> Frame:
    """The one frame that `wire` is."""
    frame, end = _read_frame(wire, 0)
    if end != len(wire):
        raise MalformedBatch(f"{len(wire) - end} bytes behind the frame")
    return frame


def _read_frame(body: bytes, start: int) -> tuple[Frame, int]:
    if len(body) - start < FRAME_BYTES_MIN:
        raise MalformedBatch(f"{len(body) - start} bytes are too few for a frame", start)
    magic, version, header_len, core_len, personal_len = _PREAMBLE.unpack_from(body, start)
    if magic != MAGIC:
        raise MalformedBatch("not a Linewarden batch: it does not begin with LWB", start)
    if version != VERSION:
        raise MalformedBatch(f"batch version {version} is not known here; this program reads version {VERSION}", start)
    if header_len > HEADER_BYTES_MAX or core_len > SECTION_BYTES_MAX or personal_len > SECTION_BYTES_MAX:
        raise MalformedBatch(f"oversized: header {header_len}, core {core_len}, personal {personal_len} bytes", start)
    core_at = start + _PREAMBLE.size + header_len
    check_at = core_at + core_len + personal_len
    end = check_at + _CHECK_BYTES
    if end > len(body):
        raise MalformedBatch(f"cut off: the frame needs {end - start} bytes, {len(body) - start} are there", start)
    if hashlib.blake2b(memoryview(body)[start:check_at], digest_size=_CHECK_BYTES).digest() != body[check_at:end]:
        raise MalformedBatch("damaged: the check sum does not fit", start)
    try:
        frame = Frame(
            body[start:end],
            body[start + _PREAMBLE.size : core_at],
            body[core_at : core_at + core_len],
            body[core_at + core_len : check_at],
        )
    except MalformedBatch as error:
        error.offset = start
        raise
    return frame, end


_HEX = frozenset("0123456789abcdef")


def _checked_header(header_bytes: bytes) -> Header:
    try:
        header = _header_decoder.decode(header_bytes)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBatch(f"the header cannot be read: {error}") from None
    hashes = [header.prev, header.core_sha256] + ([header.gap.last] if header.gap else [])
    if any(len(h) != 64 or not _HEX.issuperset(h) for h in hashes):  # noqa: PLR2004
        raise MalformedBatch("the header holds a hash that is not 64 hex digits")
    if len(header.agent) != 36 or len(header.buffer) != 32 or not _HEX.issuperset(header.buffer):  # noqa: PLR2004
        raise MalformedBatch("the header's agent is not a UUID or its buffer not 32 hex digits")
    if not _HEX.issuperset(header.agent.replace("-", "", 4)) or len(header.agent.replace("-", "")) != 32:  # noqa: PLR2004
        raise MalformedBatch("the header's agent is not a UUID")
    if header.lane not in (0, 1):
        raise MalformedBatch(f"lane {header.lane} does not exist")
    if not 1 <= header.no <= header.through < 2**62:
        raise MalformedBatch(f"batch number {header.no} … {header.through} is out of range")
    if not 1 <= header.events <= EVENTS_MAX or not 0 < header.core_bytes <= SECTION_BYTES_MAX:
        raise MalformedBatch(f"{header.events} events in {header.core_bytes} bytes is out of range")
    if header.gap is not None and header.events != 1:
        raise MalformedBatch("a gap holds one event, the one that declares it")
    if not -(2**62) < header.sealed < 2**62:
        raise MalformedBatch("the time of sealing is out of range")
    return header


def _decompress(section: bytes, name: str) -> bytes:
    try:
        size = zstandard.frame_content_size(section)
        if not 0 <= size <= SECTION_BYTES_MAX:
            raise MalformedBatch(
                f"the {name} section would decompress to {size} bytes; {SECTION_BYTES_MAX} are allowed"
            )
        body = _own.decompressor.decompress(section, max_output_size=SECTION_BYTES_MAX, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise MalformedBatch(f"the {name} section cannot be decompressed: {error}") from None
    if len(body) != size:
        raise MalformedBatch(f"the {name} section is {len(body)} bytes long and says {size}")
    return body


def header_of(wire: bytes) -> tuple[Header, str]:
    """Header and hash of a frame that is known to be whole: nothing but the header is read."""
    length = _PREAMBLE.unpack_from(wire)[2]
    header_bytes = wire[_PREAMBLE.size : _PREAMBLE.size + length]
    return _checked_header(header_bytes), hash_of(header_bytes)
