"""POST /v1/batches: each batch stored exactly once, in order, or refused with what is expected instead.

A stream is a lane of a buffer of an agent. Its head is the number and the hash up to which it is stored. For a batch (`no`, or a gap
that stands for `no … through`) there are four answers:

    new      no = head + 1 and prev = the head's hash      stored; the head moves to `through`
    again    no ≤ head, and the same hash is stored        acknowledged, not stored
    missing  no > head + 1, or a gap that begins at or     refused, 409: names the number that is expected. Also a batch
             before the head and ends behind it            that a stored gap declares lost and nothing contradicts
    forked   another batch is stored under this number,    refused, 409, and told to the SOC once: a cloned agent, a buffer
             or prev is not the head's hash                put back from a copy, or a forgery

A batch up to the head of which nothing is known any more was dropped by retention: it was stored once, so it is acknowledged.

All frames of a request are stored in one transaction that holds the heads locked, and the acknowledgement leaves after its
commit. One refused frame refuses the request. What was acknowledged is therefore on disk, and what was not is asked for again.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

import zstandard
from litestar import Request, post
from litestar.datastructures import State
from msgspec import Struct

from agent.wire import bounds
from agent.wire.batch import Frame, MalformedBatch, read_frames
from agent.wire.bounds import OutOfBounds
from agent.wire.event import Event
from collector import audit, own
from collector.enrol_signature import refuse, shown_of
from collector.http_admission import network_of, prove
from collector.limits import Budget
from collector.problems import Problem
from collector.store import batches, identity, keys
from collector.store.batches import Head, Known, Signature, Stream, Transaction
from collector.store.database import Database, StoreUnavailable
from collector.store.rows import storable, to_us

if TYPE_CHECKING:
    from collector.access import Caller
    from collector.enrol_signature import Shown

_log = logging.getLogger("linewarden.collector.ingest")

CONTENT_TYPE = "application/vnd.linewarden.batches"
STATUS_CHARS_MAX = 4_096
VERSION_CHARS_MAX = 64
WAIT_S_MAX = 10.0
SHARE = 4
"""One key, and all senders together that are not proven, may hold the fourth part of the bodies."""
DOUBTFUL_MAX = 2
"""Requests of which only the body shows who sent them are opened so many at once."""
WINDOW_BYTES_MAX = 2**27
"""Window of a compressed request: zstd's own limit for level 19 and below."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request, and all of them together, may take.

    request_bytes_max       a request, as sent and decompressed; longer is 413
    request_open_bytes_max  the sections of its frames, decompressed; more is 413. They are opened a few at a time
    request_frames_max      frames in a request; more is 413
    bodies_bytes_max        all requests that are coming in or waiting, together; beyond it one is 503 at once. One key may hold a quarter
                            of it. Requests whose sender is not proven yet have an account of their own, as large as a quarter, of which
                            an address may hold one request: nobody without a key takes the place of those who have one
    concurrent_max          requests being stored; more wait for at most WAIT_S_MAX, then 503
    body_s_max              a request that takes longer to come in is 408
    """

    request_bytes_max: int = 16 * 1024 * 1024
    request_open_bytes_max: int = 256 * 1024 * 1024
    request_frames_max: int = 65_536
    bodies_bytes_max: int = 256 * 1024 * 1024
    concurrent_max: int = 8
    body_s_max: float = 60.0


@dataclass(slots=True)
class Counts:
    """Counters since the start, for /metrics."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """Requests by outcome: stored, missing, forked, malformed, toolarge, slow, busy, unavailable; agent (another's key), signature
    (forged), unsigned."""
    batches: Counter[str] = field(default_factory=Counter)
    """Batches of accepted requests: new, again."""
    events: int = 0
    bytes: int = 0
    careful: int = 0
    """Requests of which jsonb could not hold every value, and which were stored in its text form."""
    seconds: float = 0.0
    """Time spent on accepted requests."""


class AckedStream(Struct):
    """A stream of the request and the number up to which it is stored."""

    buffer: str
    lane: int
    no: int


class Acknowledged(Struct):
    """Answer to a request of which every batch is stored."""

    acked: list[AckedStream]
    events: int
    """New events stored."""
    duplicates: int
    """Events that were stored before."""
    received_us: int
    """When the collector took them, µs since 1970, by its database's clock."""


class Refused(Exception):
    """A batch that is not stored, and with it the request. `code`: missing or forked."""

    def __init__(self, code: str, frame: Frame, head: Head, stored_hash: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.frame = frame
        self.expected = head.no + 1
        self.head_hash = head.hash
        self.stored_hash = stored_hash


@dataclass(frozen=True, slots=True)
class Sent:
    """What came: the frames, and what the agent says of itself."""

    agent_id: UUID | None
    frames: list[Frame]
    version: str | None
    clock_offset_us: int | None
    status: str | None
    signature: Signature | None = None


@dataclass(slots=True)
class Ingest:
    """Takes requests. One instance a collector; holds counters and the bound on requests in work, and nothing that must survive."""

    database: Database
    limits: Limits
    counts: Counts = field(default_factory=Counts)
    unsigned: bool = True
    """Whether batches are taken that are not signed, of agents that were never enrolled."""
    on_stored: Callable[[], None] = lambda: None
    """Called after each commit that stored events."""
    _slots: asyncio.Semaphore = field(init=False)
    _doubtful: asyncio.Semaphore = field(init=False)
    _proven: Budget = field(init=False)
    _unproven: Budget = field(init=False)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.limits.concurrent_max)
        self._doubtful = asyncio.Semaphore(DOUBTFUL_MAX)
        bodies, request = self.limits.bodies_bytes_max, min(self.limits.request_bytes_max, self.limits.bodies_bytes_max)
        part = max(request, bodies // SHARE)
        self._proven = Budget(bodies, part)
        self._unproven = Budget(part, request)

    @property
    def held_bytes(self) -> int:
        """Bodies that are coming in, waiting or being stored."""
        return self._proven.total + self._unproven.total

    def busy(self, text: str) -> Problem:
        """Too much at once."""
        self.counts.outcomes["busy"] += 1
        return Problem(503, f"{text}; come again", code="busy", headers={"Retry-After": "1"})

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """A place among the requests being stored. Raises Problem where none comes free in time."""
        async with self._place(self._slots, f"{self.limits.concurrent_max} requests are being stored"):
            yield

    @asynccontextmanager
    async def doubtful(self) -> AsyncIterator[None]:
        """A place among the requests whose signature is checked only now. Raises Problem where none comes free in time."""
        async with self._place(self._doubtful, f"{DOUBTFUL_MAX} requests without a signed head are being checked"):
            yield

    @asynccontextmanager
    async def _place(self, places: asyncio.Semaphore, text: str) -> AsyncIterator[None]:
        try:
            await asyncio.wait_for(places.acquire(), WAIT_S_MAX)
        except TimeoutError:
            raise self.busy(text) from None
        try:
            yield
        finally:
            places.release()

    @asynccontextmanager
    async def body(self, request: Request[Any, Any, Any], holder: str, *, proven: bool) -> AsyncIterator[bytes]:
        """The request's body, within the bounds: on the account of `holder`, a key, or an address that is not proven. Raises Problem."""
        budget = self._proven if proven else self._unproven
        chunks: list[bytes] = []
        size = 0
        try:
            try:
                async with asyncio.timeout(self.limits.body_s_max):
                    async for chunk in request.stream():
                        size += len(chunk)
                        fits = budget.take(holder, len(chunk))
                        if size > self.limits.request_bytes_max:
                            raise _too_large(f"The request has more than {self.limits.request_bytes_max} bytes")
                        if not fits:
                            raise self.busy(f"requests of {budget.total} bytes are in work")
                        chunks.append(chunk)
            except TimeoutError:
                text = f"The request did not come in within {self.limits.body_s_max:g} s"
                raise Problem(408, text, code="slow") from None
            body = b"".join(chunks)
            chunks.clear()
            yield body
        finally:
            budget.give(holder, size)

    async def take(self, request: Sent, key: keys.Key) -> Acknowledged:
        """Store a request. Raises Problem, StoreUnavailable."""
        started = time.monotonic()
        agent_id = await self._agent(request, key)
        try:
            answer = await self._store(request, key, agent_id)
        except Refused as refused:
            self.counts.outcomes[refused.code] += 1
            if refused.code == "forked":
                await self._tell_fork(agent_id, refused)
            raise _conflict(refused) from None
        except batches.TooManyStreams:
            text = f"Agent {agent_id} has {batches.STREAMS_MAX} streams, the most that one may have, and begins another"
            raise Problem(403, f"{text}. Enrol this station as an agent of its own", code="streams") from None
        except batches.BadFrame as bad:
            raise _malformed(str(bad), request.frames.index(bad.frame), None, bad.frame) from None
        except StoreUnavailable:
            self.counts.outcomes["unavailable"] += 1
            raise
        self.counts.outcomes["stored"] += 1
        self.counts.events += answer.events
        if answer.events:
            self.on_stored()
        self.counts.seconds += time.monotonic() - started
        return answer

    async def _agent(self, request: Sent, key: keys.Key) -> UUID:
        """The agent that sends, which has to be the one that the key is bound to."""
        agent_id = request.agent_id or key.agent_id
        if request.signature is None:
            await self._may_be_unsigned(agent_id)
        if agent_id is None:
            raise Problem(
                422, "No batch, and a key that no agent has used yet: nobody to note it for", code="malformed"
            )
        bound = key.agent_id
        if bound is None:
            async with self.database.connection() as connection, connection.transaction():
                bound = await keys.bind(connection, key.key_id, agent_id)
                if bound == agent_id:
                    who, objects = audit.Who(key.prefix, "agent", "agent"), [("key", key.prefix)]
                    await audit.record(connection, who, "key.bound", target=str(agent_id), objects=objects)
        if bound != agent_id or agent_id == batches.CENTRE:
            text = f"Key {key.prefix} belongs to agent {bound}, the batches to {agent_id}. Each agent needs a key of its own"
            raise Problem(403, text, code="agent")
        return agent_id

    async def _may_be_unsigned(self, agent_id: UUID | None) -> None:
        """Raises Problem where only a signature will do."""
        remedy = "Make a token, linewarden-collector token create, and enrol the agent with it: linewarden-agent enroll"
        if not self.unsigned:
            raise Problem(403, f"Batches have to be signed here. {remedy}", code="unsigned")
        if agent_id is None:
            return
        async with self.database.connection() as connection:
            if await identity.is_enrolled(connection, agent_id):
                text = f"Agent {agent_id} is enrolled, and this is not signed with its key"
                raise Problem(403, f"{text}. If the key is lost: {remedy}", code="unsigned")

    async def _store(self, request: Sent, key: keys.Key, agent_id: UUID) -> Acknowledged:
        try:
            return await self._attempt(request, key, agent_id, careful=False)
        except batches.Unstorable as first:
            _log.info("agent %s sent a value that jsonb cannot hold (%s); kept as text", agent_id, first)
            self.counts.careful += 1
        try:
            return await self._attempt(request, key, agent_id, careful=True)
        except batches.Unstorable as second:
            raise StoreUnavailable(f"PostgreSQL refuses a value of this request: {second}") from second

    async def _attempt(self, request: Sent, key: keys.Key, agent_id: UUID, *, careful: bool) -> Acknowledged:
        async with batches.transaction(self.database, agent_id) as transaction:
            heads = (
                await transaction.lock_heads({stream_of(frame) for frame in request.frames}) if request.frames else {}
            )
            new = await decide(transaction, request.frames, heads)
            place_id = await transaction.place(key)
            signature = request.signature
            stored = await transaction.store(new, place_id, careful=careful, signature=signature) if new else None
            await transaction.move_heads(heads)
            await transaction.note_agent(
                heads.values(),
                place_id=place_id,
                version=request.version,
                clock_offset_us=request.clock_offset_us,
                status=request.status,
                sent_us=signature.sent_us if signature else None,
            )
        self.counts.batches["new"] += len(new)
        self.counts.batches["again"] += len(request.frames) - len(new)
        events = sum(frame.header.events for frame in request.frames)
        stored_events = stored.events if stored else 0
        received_us = to_us(stored.received) if stored else time.time_ns() // 1000
        return Acknowledged(_acked(request.frames), stored_events, events - stored_events, received_us)

    async def _tell_fork(self, agent_id: UUID, refused: Refused) -> None:
        """Store `security.chain.forked`, once for each contradicting batch; a second sight of it says nothing new."""

        async def first(transaction: Transaction) -> bool:
            return await transaction.note_fork(agent_id, refused.frame, refused.stored_hash)

        if await own.tell(self.database, [_fork_event(agent_id, refused)], about=agent_id, first=first):
            self.on_stored()
            header = refused.frame.header
            _log.error("agent %s, buffer %s, lane %s: %s", agent_id, header.buffer, header.lane, refused)


def stream_of(frame: Frame) -> Stream:
    """The stream of a frame, its agent being known."""
    return UUID(frame.header.buffer), frame.header.lane


async def decide(transaction: Transaction, frames: Sequence[Frame], heads: dict[Stream, Head]) -> list[Frame]:
    """The frames that are new, in order; `heads` is moved over them. Raises Refused."""
    # One question for each stream, not for each batch: what is stored under the numbers that may have been sent before.
    earlier: dict[Stream, list[int]] = {}
    for frame in frames:
        stream = stream_of(frame)
        if frame.header.no <= heads[stream].no:
            earlier.setdefault(stream, []).append(frame.header.no)
    known = {stream: await transaction.known(stream, numbers) for stream, numbers in earlier.items()}
    new: list[Frame] = []
    for frame in frames:
        stream = stream_of(frame)
        head, stored = heads[stream], known.setdefault(stream, {})
        if _is_new(frame, head, stored.get(frame.header.no)):
            h = frame.header
            stored[h.no] = Known(h.no, h.through, frame.hash, h.prev, h.gap.last if h.gap else None)
            _advance(head, frame)
            new.append(frame)
    return new


def _is_new(frame: Frame, head: Head, known: Known | None) -> bool:
    """Whether the frame is new (True) or here again (False). Raises Refused. See the module."""
    no, through, prev = frame.header.no, frame.header.through, frame.header.prev
    if no > head.no + 1:
        raise Refused("missing", frame, head, head.hash, f"batch {no} came where {head.no + 1} is expected")
    if no == head.no + 1:
        if prev != head.hash:
            text = f"batch {no} names {prev[:16]}… before it, and {head.hash[:16]}… is stored there"
            raise Refused("forked", frame, head, head.hash, text)
        return True
    if through > head.no:
        raise Refused("missing", frame, head, head.hash, f"a gap {no} … {through} came where {head.no + 1} is expected")
    if known is None or known.hash == frame.hash:
        # None: stored once, and dropped by retention since. The head proves that it was here.
        return False
    if known.last is not None and frame.header.gap is None and _fits_gap(frame, known):
        text = f"batch {no} was declared lost with {known.no} … {known.through}; {head.no + 1} is expected"
        raise Refused("missing", frame, head, head.hash, text)
    raise Refused("forked", frame, head, known.hash or known.last or "", f"another batch is stored under number {no}")


def _fits_gap(frame: Frame, gap: Known) -> bool:
    # Of the lost batches only the ends are known: what came before the first, and the hash of the last.
    first_fits = frame.header.no != gap.no or frame.header.prev == gap.prev
    return first_fits and (frame.header.no != gap.through or frame.hash == gap.last)


def _advance(head: Head, frame: Frame) -> None:
    h = frame.header
    head.no, head.hash = h.through, h.gap.last if h.gap else frame.hash
    head.batches += 1
    head.events += h.events
    head.gaps += h.gap is not None


def _acked(frames: Iterable[Frame]) -> list[AckedStream]:
    through: dict[tuple[str, int], int] = {}
    for frame in frames:
        stream = frame.header.buffer, frame.header.lane
        through[stream] = max(through.get(stream, 0), frame.header.through)
    return [AckedStream(buffer, lane, no) for (buffer, lane), no in through.items()]


def _fork_event(agent_id: UUID, refused: Refused) -> Event:
    now, header = time.time_ns() // 1000, refused.frame.header
    return Event(
        time=now,
        observed=now,
        type="security.chain.forked",
        source="collector",
        target=str(agent_id),
        outcome="failure",
        message=f"an agent sent a batch that contradicts a stored one: {refused}",
        data={
            "agent_id": str(agent_id),
            "buffer": header.buffer,
            "lane": header.lane,
            "no": header.no,
            "hash": refused.frame.hash,
            "stored_hash": refused.stored_hash,
            "expected": refused.expected,
        },
    )


def _conflict(refused: Refused) -> Problem:
    h = refused.frame.header
    return Problem(
        409,
        str(refused),
        code=refused.code,
        buffer=h.buffer,
        lane=h.lane,
        no=h.no,
        expected=refused.expected,
        head_hash=refused.head_hash,
    )


def _malformed(text: str, index: int, offset: int | None, frame: Frame | None) -> Problem:
    members: dict[str, Any] = {"frame": index}
    if offset is not None:
        members["offset"] = offset
    if frame is not None:
        members.update(buffer=frame.header.buffer, lane=frame.header.lane, no=frame.header.no)
    return Problem(422, f"frame {index}: {text}", code="malformed", **members)


def _too_large(text: str) -> Problem:
    return Problem(413, f"{text}. Send fewer batches at once", code="toolarge")


def decompressed(body: bytes, bytes_max: int) -> bytes:
    """A zstd body, decompressed within the bound. Raises Problem."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX)
    try:
        with decompressor.stream_reader(body, read_across_frames=True) as reader:
            out = reader.read(bytes_max + 1)
    except zstandard.ZstdError as error:
        raise Problem(422, f"the body cannot be decompressed: {error}", code="malformed") from None
    if len(out) > bytes_max:
        raise _too_large(f"The body decompresses to more than {bytes_max} bytes")
    return out


def parsed(body: bytes, limits: Limits) -> tuple[UUID | None, list[Frame]]:
    """The frames of a body, their headers checked, and their agent. Raises Problem."""
    frames: list[Frame] = []
    open_bytes = 0
    try:
        for frame in read_frames(body):
            frames.append(frame)
            # What it says of itself; `rows` refuses a section that is longer than it says.
            open_bytes += frame.header.core_bytes + max(0, _content_size(frame.personal_z))
            if len(frames) > limits.request_frames_max or open_bytes > limits.request_open_bytes_max:
                raise _too_large(
                    f"{len(frames)} batches of {open_bytes} bytes when opened are more than is taken at once"
                )
    except MalformedBatch as error:
        raise _malformed(str(error), len(frames), error.offset, None) from None
    if not frames:
        return None, []
    agent = frames[0].header.agent
    for index, frame in enumerate(frames):
        if frame.header.agent != agent:
            raise _malformed(f"is of agent {frame.header.agent}, the first of {agent}", index, None, frame)
    if str(agent_id := UUID(agent)) != agent:
        raise _malformed(f"agent {agent} is not written as {agent_id}", 0, None, frames[0])
    return agent_id, frames


def _content_size(section: bytes) -> int:
    try:
        return zstandard.frame_content_size(section) if section else 0
    except zstandard.ZstdError:
        return 0


def _note(request: Request[Any, Any, Any], name: str, chars_max: int) -> str | None:
    """A header that the agent may send; left out where it is too long or no text: it is a courtesy, not a part of the request."""
    value = request.headers.get(name)
    return value if value and len(value) <= chars_max and value.isprintable() and value.isascii() else None


def _status(request: Request[Any, Any, Any]) -> str | None:
    text = _note(request, "linewarden-status", STATUS_CHARS_MAX)
    try:
        return text if text and isinstance(bounds.loads(text), dict) and storable(text.encode()) else None
    except ValueError:
        return None


def _clock_offset_us(request: Request[Any, Any, Any]) -> int | None:
    said = _note(request, "linewarden-agent-time", 20)
    try:
        return bounds.integer(said, -(2**62), 2**62) - time.time_ns() // 1000 if said is not None else None
    except OutOfBounds:
        return None


def _opened(
    body: bytes, encoding: str, limits: Limits, shown: "Shown | None"
) -> tuple[UUID | None, list[Frame], Signature | None]:
    whole = decompressed(body, limits.request_bytes_max) if encoding == "zstd" else body
    agent_id, frames = parsed(whole, limits)
    return agent_id, frames, shown.checked(body, frames) if shown else None


INLINE_BYTES_MAX = 65_536
"""A body up to here is read where we are; above, in a thread, so that it does not hold up others."""


async def _opened_of(
    ingest: Ingest, encoding: str, shown: "Shown | None", body: bytes
) -> tuple[UUID | None, list[Frame], Signature | None]:
    inline = len(body) <= INLINE_BYTES_MAX and encoding == "identity"
    arguments = (body, encoding, ingest.limits, shown)
    opened = _opened(*arguments) if inline else await asyncio.to_thread(_opened, *arguments)
    ingest.counts.bytes += len(body)
    return opened


@post(
    "/v1/batches",
    status_code=200,
    opt={"access": "send"},
    request_max_body_size=None,  # bounded here, see Limits
    summary="Store batches",
    description=(
        "The body is frames one after the other, optionally as a whole with `Content-Encoding: zstd`. 200 only after they are committed. "
        "409 names the batch that is expected; 422 and 413 name the first frame that cannot be taken; 503 says when to come again."
    ),
    tags=["ingest"],
)
async def post_batches(request: Request[Any, Any, Any], state: State) -> Acknowledged:
    """Store the batches of a request."""
    ingest: Ingest = state.ingest
    caller: Caller = request.auth
    shown = shown_of(request)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "zstd"):
        raise Problem(415, f"Content-Encoding {encoding[:40]!r} is not known here; use zstd or none", code="encoding")
    offset_us = _clock_offset_us(request)
    version, status = _note(request, "linewarden-version", VERSION_CHARS_MAX), _status(request)
    opening = partial(_opened_of, ingest, encoding, shown)
    try:
        if shown is None or shown.proven:
            async with ingest.body(request, caller.account, proven=True) as body, ingest.slot():
                agent_id, frames, signature = await opening(body)
                return await ingest.take(Sent(agent_id, frames, version, offset_us, status, signature), caller.key)
        async with ingest.body(request, network_of(caller.address), proven=False) as body:
            async with ingest.doubtful():
                agent_id, frames, signature = await opening(body)
            prove(request.scope["state"], caller.account)
            async with ingest.slot():
                return await ingest.take(Sent(agent_id, frames, version, offset_us, status, signature), caller.key)
    except Problem as problem:
        if problem.code in ("signature", "unsigned", "agent"):
            refuse(request, caller.who, problem)
        if problem.code not in ("busy", "missing", "forked"):  # counted where they arise
            ingest.counts.outcomes[problem.code] += 1
        raise
