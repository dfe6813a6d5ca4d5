"""WS and GET /v1/stream: events as they are stored, each once and in the order of their commits, from a cursor on.

    database ──step──► Hub ──match──► Client's queue ──► WebSocket or server-sent events

One Hub a collector reads each step from snapshot to snapshot once (see store.stream), whatever the number of clients. It wakes when this
collector has stored something, when another one says so (LISTEN/NOTIFY, a marker and never an event), and every POLL_S in any case:
a lost wake-up costs time and no event. What a filter picks is encoded once, and the same bytes go to every client with that filter.

A client that comes with a cursor is first read up to by itself, then handed to the Hub at the edge of a step, so that there is no seam.
A client that is slow has a queue that fills up; what no longer fits is counted and told in place of the events: `skipped`, with
the cursor from which they can still be read. Nothing that a client does slows down another.

Messages are JSON objects: `events` (cursor, events), `skipped` (events, after, cursor), `ping` (cursor), `end` (detail). A cursor may be
kept as soon as its message was worked off.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import asyncpg
import msgspec
from litestar import Request, WebSocket, get, websocket
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions import WebSocketDisconnect
from litestar.params import QueryParameter
from litestar.response import Stream

from collector import access, own, personal
from collector.alert_reader import event_of
from collector.alert_unread import finding_of
from collector.background import UNREADABLE, Pulse, described
from collector.match import Matches, matcher
from collector.problems import Problem
from collector.query import event_out, provide_filter
from collector.store import readers, stream
from collector.store.database import Database, StoreMisconfigured, StoreUnavailable, translated
from collector.store.events import Filter, Record
from collector.store.stream import BadCursor, Cursor, Item, Position, Snapshot
from collector.vault import Vault

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from collector.store.database import Connection

_log = logging.getLogger("linewarden.collector.stream")

CHANNEL = "linewarden_events"
POLL_S = 1.0
PACE_S = 0.02
"""Between two steps, and between two wake-ups sent: what is stored meanwhile comes together."""
RETRY_S = 2.0
PING_S = 15.0
"""So long without a message, and the client is sent a ping."""
LOOK_S = 5.0
"""So often the right of a client to read is looked at again."""
CLIENTS_MAX = 1_000
"""More at once are refused, 503."""
OWNER_CLIENTS_MAX = 20
"""Of one key or user; more are refused, 429."""
MESSAGE_EVENTS_MAX = 500
QUEUE_EVENTS_MAX = 20_000
QUEUE_BYTES_MAX = 16 * 1024 * 1024
"""Of one client. Beyond either its events are skipped, and it is told."""
JOIN_S_MAX = 15.0
CATCHING_UP_MAX = 4
"""Clients that read from the database at once; the others wait for their turn."""


@dataclass(slots=True)
class Message:
    """What goes to a client, encoded."""

    body: bytes
    events: int
    cursor: Cursor


@dataclass(slots=True)
class Skipped:
    """In place of messages that did not fit."""

    events: int
    after: Cursor
    cursor: Cursor


class Client:
    """One reader. The Hub puts, the connection takes."""

    def __init__(self, wanted: Filter) -> None:
        self.wanted = wanted
        self.cursor: Cursor | None = None
        """Behind everything that was put, whether it fitted the filter or not."""
        self.joined: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()
        self.must_cover: Snapshot | None = None
        self.ended = ""
        self._queue: deque[Message | Skipped] = deque()
        self._events = self._bytes = 0
        self._filled = asyncio.Event()

    def put(self, message: Message, before: Cursor) -> None:
        """Take a message into the queue, or count it as skipped."""
        last = self._queue[-1] if self._queue else None
        if self._events + message.events > QUEUE_EVENTS_MAX or self._bytes + len(message.body) > QUEUE_BYTES_MAX:
            if isinstance(last, Skipped):
                last.events += message.events
                last.cursor = message.cursor
            else:
                self._queue.append(Skipped(message.events, before, message.cursor))
        else:
            self._queue.append(message)
            self._events += message.events
            self._bytes += len(message.body)
        self._filled.set()

    def end(self, detail: str) -> None:
        """Nothing more comes; what is queued may still be sent."""
        self.ended = self.ended or detail
        self.joined.cancel()
        self._filled.set()

    async def take(self, within_s: float) -> Message | Skipped | None:
        """The next one; None when there was none in time, or it has ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not self._queue and not self.ended:
                    self._filled.clear()
                    await self._filled.wait()
        if not self._queue:
            return None
        taken = self._queue.popleft()
        if isinstance(taken, Message):
            self._events -= taken.events
            self._bytes -= len(taken.body)
        return taken


@dataclass(slots=True)
class Counts:
    """For /metrics, since the start."""

    events: int = 0
    skipped: int = 0
    unread: int = 0
    """Events that could not be shown, and were passed over."""


@dataclass(slots=True)
class _Step:
    """A step that is being read: it is gone on with after a failure, not begun again."""

    new: Snapshot
    after: Position | None = None


@dataclass(slots=True)
class _Tally:
    """What was read since a snapshot, to be held against what was stored."""

    base: Snapshot
    read: readers.Read = field(default_factory=readers.Read)
    began: float = field(default_factory=time.monotonic)


class Hub:
    """Reads what is new once, and hands it to all clients of this collector."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault
        self._owners: Counter[str] = Counter()
        self._clients: set[Client] = set()
        self._joining: set[Client] = set()
        self._home = 0
        self._base: Snapshot | None = None
        self._step: _Step | None = None
        self._wake = asyncio.Event()
        self._tell = asyncio.Event()
        self._tally = _Tally(Snapshot(0, 1, 1, ()))
        self._stopping = ""
        self.counts = Counts()
        self.catching_up = asyncio.Semaphore(CATCHING_UP_MAX)
        self.pulse = Pulse()
        self.heard = Pulse()

    @property
    def clients(self) -> int:
        """How many there are now."""
        return len(self._clients) + len(self._joining)

    def stored(self) -> None:
        """Something was stored by this collector: read it, and tell the others."""
        self._wake.set()
        self._tell.set()

    def stop(self) -> None:
        """End all clients, and take no more."""
        self._stopping = "the collector stops; come again with the cursor"
        for client in [*self._clients, *self._joining]:
            client.end(self._stopping)

    # ── waking ──

    async def listen(self) -> None:
        """Hear the other collectors and tell them, on a connection of its own: LISTEN does not survive a pooler of transactions."""
        while True:
            try:
                await self._listening()
            except (StoreUnavailable, StoreMisconfigured) as error:
                self.heard.waits(error)
                _log.warning(
                    "wake-ups of other collectors are not heard, looking every %g s instead: %s", POLL_S, error
                )
            await asyncio.sleep(RETRY_S)

    async def _listening(self) -> None:
        with translated():
            connection = await asyncpg.connect(
                self._database.dsn, timeout=10, server_settings={"application_name": "linewarden-collector stream"}
            )
            try:
                await connection.add_listener(CHANNEL, lambda *_: self._wake.set())
                while not connection.is_closed():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(PING_S):
                            await self._tell.wait()
                    # Cleared before it is sent: what is stored from here on is told again.
                    self._tell.clear()
                    await connection.execute(f"NOTIFY {CHANNEL}", timeout=10)
                    self.heard.ok()
                    await asyncio.sleep(PACE_S)
            finally:
                await connection.close(timeout=5)

    # ── reading ──

    async def read(self) -> None:
        """Read what is new for all clients, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                if self.clients:
                    await self._advance()
                else:
                    # Nobody to read for: the next one begins at its own now.
                    self._base = self._step = None
                self.pulse.ok()
            except (StoreUnavailable, StoreMisconfigured) as error:
                self.pulse.waits(error)
                _log.warning("live streams wait for the database: %s", error)
                await asyncio.sleep(RETRY_S)
            await asyncio.sleep(PACE_S)

    async def _advance(self) -> None:
        """One step, to now."""
        async with self._database.connection() as connection:
            if self._step is None:
                self._home = self._home or await stream.home_of(connection)
                new = await stream.now(connection)
                if self._base is not None and not new.covers(self._base):
                    self._end_all("the database was put back; begin anew without a cursor")
                if self._base is None:
                    self._base, self._tally = new, _Tally(new)
                self._admit(self._base)
                self._step = _Step(new)
            step, base = self._step, self._base
            if base is None:
                return
            while True:
                batches, reached = await stream.batches_between(connection, base, step.new, step.after)
                await self._deliver(await stream.items_of(connection, batches), base, step)
                self._tally.read += readers.read_of(batches)
                step.after = reached
                if reached is None:
                    break
            self._base, self._step = step.new, None
            self._admit(step.new)
            await self._check(connection, step.new)

    async def _check(self, connection: "Connection", edge: Snapshot) -> None:
        """Hold what was read against what was stored, once a minute; clients that may have missed something are ended."""
        tally = self._tally
        if time.monotonic() - tally.began < readers.EVERY_S:
            return
        self._tally = _Tally(edge)
        stored = await readers.stored_between(connection, tally.base, edge)
        # Less than was read: a partition was dropped meanwhile.
        if stored == tally.read or stored.numbers < tally.read.numbers:
            return
        difference = readers.Difference("streams", tally.base.taken, stored, tally.read, repairs=True)
        _log.error("%s", difference.text)
        await own.tell(self._database, [event_of(finding_of(difference))])
        self._end_all("events may have been skipped; read the last minutes with GET /v1/events, and begin anew")

    def _end_all(self, detail: str) -> None:
        self._base = self._step = None
        for client in [*self._clients]:
            client.end(detail)
        self._clients.clear()

    def _admit(self, base: Snapshot) -> None:
        """Clients join at the edge of a step, and only where the base has all that they have read."""
        for client in list(self._joining):
            if client.must_cover is None or base.covers(client.must_cover):
                self._joining.discard(client)
                if not client.joined.done():
                    client.joined.set_result(base)
                    self._clients.add(client)

    async def _deliver(self, items: list[Item], base: Snapshot, step: _Step) -> None:
        # What is shown as it is and what is hidden are two encodings of one event.
        encodings: dict[bool, dict[Position, bytes]] = {True: {}, False: {}}
        for wanted in {client.wanted for client in self._clients}:
            matches = self._guarded(matcher(wanted))
            messages = [
                self._message(
                    part, Cursor(self._home, base, step.new, part[-1].position), encodings[wanted.personal], wanted
                )
                for part in _parts([item for item in items if matches(item.row)])
            ]
            for client in [c for c in self._clients if c.wanted == wanted]:
                for message in messages:
                    client.put(message, client.cursor or Cursor(self._home, base))
                    client.cursor = message.cursor
                    self.counts.events += message.events
            # Others have their turn: matching and encoding a large step takes a while.
            await asyncio.sleep(0)
        if items:
            end = Cursor(self._home, base, step.new, items[-1].position)
            for client in self._clients:
                client.cursor = end

    # ── clients ──

    async def home(self) -> int:
        """Which database this is."""
        if not self._home:
            async with self._database.connection() as connection:
                self._home = await stream.home_of(connection)
        return self._home

    @contextlib.contextmanager
    def share(self, owner: str) -> "Iterator[None]":
        """Count a stream of a key or user, from its first read on. Raises Problem where they have too many."""
        if self._owners[owner] >= OWNER_CLIENTS_MAX:
            detail = f"{OWNER_CLIENTS_MAX} streams of {owner} are open here; close one, or come again later"
            raise Problem(429, detail, code="rate", headers={"Retry-After": "10"})
        self._owners[owner] += 1
        try:
            yield
        finally:
            self._owners[owner] -= 1
            if not self._owners[owner]:
                del self._owners[owner]

    def enter(self, client: Client) -> None:
        """Take a client. Raises Problem."""
        if self._stopping or self.clients >= CLIENTS_MAX:
            detail = self._stopping or f"{CLIENTS_MAX} streams are open here"
            raise Problem(503, detail, code="busy", headers={"Retry-After": "2"})
        self._joining.add(client)
        self._wake.set()

    def leave(self, client: Client) -> None:
        """Let a client go."""
        self._clients.discard(client)
        self._joining.discard(client)

    async def read_on(self, cursor: Cursor, until: Snapshot, wanted: Filter) -> "AsyncGenerator[Message, None]":
        """What lies between a cursor and a snapshot."""
        matches = self._guarded(matcher(wanted))
        steps = [(cursor.base, cursor.step, cursor.position)] if cursor.step is not None else []
        for base, new, position in [*steps, (cursor.newest, until, None)]:
            after = position
            while new is not None:
                async with self.catching_up, self._database.connection() as connection:
                    items, reached = await stream.between(connection, base, new, after)
                encoded: dict[Position, bytes] = {}
                for part in _parts([item for item in items if matches(item.row)]):
                    yield self._message(part, Cursor(self._home, base, new, part[-1].position), encoded, wanted)
                if reached is None:
                    break
                after = reached

    def _message(self, items: list[Item], cursor: Cursor, encoded: dict[Position, bytes], wanted: Filter) -> Message:
        vault = None if wanted.personal else self._vault
        bodies = []
        for item in items:
            if (body := encoded.get(item.position)) is None:
                try:
                    body = msgspec.json.encode(event_out(item.row, vault))
                except UNREADABLE as error:
                    self._pass_over(item.row, error)
                    body = b""
                encoded[item.position] = body
            if body:
                bodies.append(body)
        head = b'{"type":"events","cursor":"' + cursor.encode().encode() + b'","events":['
        return Message(head + b",".join(bodies) + b"]}", len(bodies), cursor)

    def _guarded(self, matches: Matches) -> Matches:
        """The same, but what cannot be read fits nothing: one event stops no stream."""

        def guarded(row: Record) -> bool:
            try:
                return matches(row)
            except UNREADABLE as error:
                self._pass_over(row, error)
                return False

        return guarded

    def _pass_over(self, row: Record, error: Exception) -> None:
        self.counts.unread += 1
        _log.error(
            "streams: event %d of batch %d cannot be shown and is passed over: %s", row["idx"], row["batch_id"], described(error)
        )  # fmt: skip

    async def now(self) -> Snapshot:
        """What is committed now."""
        async with self._database.connection() as connection:
            return await stream.now(connection)


def _parts(items: list[Item]) -> list[list[Item]]:
    return [items[at : at + MESSAGE_EVENTS_MAX] for at in range(0, len(items), MESSAGE_EVENTS_MAX)]


async def follow(
    hub: Hub, wanted: Filter, after: str | None, still_allowed: "Callable[[], Any]", owner: str
) -> "AsyncGenerator[tuple[str, bytes], None]":
    """Messages of a client of `owner` with their cursors, until it has to end. Raises Problem before the first one."""
    with hub.share(owner):
        async for pair in _followed(hub, wanted, after, still_allowed):
            yield pair


async def _followed(
    hub: Hub, wanted: Filter, after: str | None, still_allowed: "Callable[[], Any]"
) -> "AsyncGenerator[tuple[str, bytes], None]":
    try:
        cursor = stream.decode_cursor(after, await hub.home()) if after else None
    except BadCursor as error:
        raise Problem(400, str(error), code="cursor") from None
    client, look = Client(wanted), Look(still_allowed)
    try:
        if cursor is not None:
            # Most of the way before joining, so that the queue has little to hold meanwhile.
            until = await hub.now()
            if not until.covers(cursor.newest):
                raise Problem(
                    400,
                    "after is ahead of this database, which was put back since. Begin anew without it",
                    code="cursor",
                )
            async for message in hub.read_on(cursor, until, wanted):
                await look()
                yield message.cursor.encode(), message.body
            cursor = Cursor(await hub.home(), until)
            client.must_cover = until
        hub.enter(client)
        yield await _greeting(hub, client, cursor)
        if cursor is not None:
            async for message in hub.read_on(cursor, client.joined.result(), wanted):
                await look()
                yield message.cursor.encode(), message.body
        async for pair in _live(hub, client, look):
            yield pair
    finally:
        hub.leave(client)


async def _greeting(hub: Hub, client: Client, cursor: Cursor | None) -> tuple[str, bytes]:
    """The first ping: from here on nothing is missed."""
    await asyncio.wait({client.joined}, timeout=JOIN_S_MAX)
    if client.ended or not client.joined.done():
        raise Problem(503, client.ended or "the stream could not begin in time", code="busy")
    base = client.joined.result()
    text = (cursor or Cursor(await hub.home(), base)).encode()
    return text, msgspec.json.encode({"type": "ping", "cursor": text})


class Look:
    """Looks again, every LOOK_S, whether a client may still read."""

    def __init__(self, still_allowed: "Callable[[], Any]") -> None:
        self._still_allowed = still_allowed
        self._looked = time.monotonic()

    async def __call__(self) -> None:
        """Raises Problem where it may not."""
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        # Where the database is away it cannot be known, and nothing is read now either.
        with contextlib.suppress(StoreUnavailable, StoreMisconfigured):
            await self._still_allowed()


async def _live(hub: Hub, client: Client, look: Look) -> "AsyncGenerator[tuple[str, bytes], None]":
    said = time.monotonic()
    while True:
        taken = await client.take(LOOK_S)
        # Before it is handed on: what was stored for a reader that may not read any more stays here.
        await look()
        if isinstance(taken, Message):
            yield taken.cursor.encode(), taken.body
        elif isinstance(taken, Skipped):
            hub.counts.skipped += taken.events
            text, start = taken.cursor.encode(), taken.after.encode()
            yield text, msgspec.json.encode({"type": "skipped", "events": taken.events, "after": start, "cursor": text})
        elif client.ended:
            yield "", msgspec.json.encode({"type": "end", "detail": client.ended})
            return
        elif time.monotonic() - said < PING_S:
            continue
        else:
            text = (
                client.cursor.encode() if client.cursor else Cursor(await hub.home(), client.joined.result()).encode()
            )
            yield text, msgspec.json.encode({"type": "ping", "cursor": text})
        said = time.monotonic()


_OPT = {"access": "read", "parameters": frozenset({"after", "personal"})}
_After = Annotated[
    str | None,
    QueryParameter(name="after", max_length=stream.CURSOR_CHARS_MAX, description="`cursor` of the last message"),
]


@websocket("/v1/stream", opt=_OPT, dependencies={"wanted": Provide(provide_filter)})
async def stream_websocket(
    socket: WebSocket[Any, Any, Any], state: State, wanted: Filter, after: _After = None
) -> None:
    """Live events. What the client sends is not looked at."""
    if wanted.personal:
        await personal.read(socket, state, 0, live=True)
    await socket.accept()
    sending = asyncio.create_task(_send(socket, state.hub, wanted, after))
    hearing = asyncio.create_task(_hear(socket))
    done, waiting = await asyncio.wait({sending, hearing}, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for task in done:
        task.result()


async def _send(socket: WebSocket[Any, Any, Any], hub: Hub, wanted: Filter, after: str | None) -> None:
    handler = socket.route_handler
    code, reason = 1012, "the stream has ended; come again with the cursor"
    try:
        following = follow(hub, wanted, after, lambda: access.still(socket, handler), socket.auth.account)
        async with contextlib.aclosing(following) as messages:
            async for _, body in messages:
                await socket.send_data(body, mode="text", encoding="utf-8")
    except Problem as problem:
        detail = {"type": "end", "detail": problem.detail, "code": problem.code}
        await socket.send_data(msgspec.json.encode(detail), mode="text")
        code, reason = 4000 + problem.status, problem.detail[:100]
    except (StoreUnavailable, StoreMisconfigured) as error:
        code, reason = 1013, str(error)[:100]
    except WebSocketDisconnect:
        return
    await socket.close(code=code, reason=reason)


async def _hear(socket: WebSocket[Any, Any, Any]) -> None:
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await socket.receive_data(mode="text")


@get(
    "/v1/stream",
    opt=_OPT,
    dependencies={"wanted": Provide(provide_filter)},
    tags=["events"],
    summary="Live events as server-sent events; as a WebSocket at the same address",
    media_type="text/event-stream",
)
async def stream_sse(request: Request[Any, Any, Any], state: State, wanted: Filter, after: _After = None) -> Stream:
    """Each event's id is a cursor, so that a browser that reconnects goes on by itself."""
    hub: Hub = state.hub
    if wanted.personal:
        await personal.read(request, state, 0, live=True)
    start = request.headers.get("last-event-id") or after
    messages = follow(hub, wanted, start, lambda: access.still(request, request.route_handler), request.auth.account)
    # The first one before the answer begins, so that what is wrong with the request is told by its status.
    first = await anext(messages)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return Stream(_sse(first, messages), media_type="text/event-stream", headers=headers)


async def _sse(
    first: tuple[str, bytes], messages: "AsyncGenerator[tuple[str, bytes], None]"
) -> "AsyncGenerator[bytes, None]":
    kind: Literal["message"] = "message"
    yield _frame(*first, kind)
    with contextlib.suppress(StoreUnavailable, StoreMisconfigured):
        try:
            async for cursor, body in messages:
                yield _frame(cursor, body, kind)
        except Problem as problem:
            end = {"type": "end", "detail": problem.detail, "code": problem.code}
            yield _frame("", msgspec.json.encode(end), kind)


def _frame(cursor: str, body: bytes, kind: str) -> bytes:
    # JSON has no line break in it.
    name = f"id: {cursor}\n" if cursor else ""
    return f"event: {kind}\n{name}data: ".encode() + body + b"\n\n"


ROUTES: list[Any] = [stream_websocket, stream_sse]
