"""HTTP/1.1 and WebSocket on one connection, bounded before the application sees anything.

uvicorn parses and answers; these two classes put bounds around it, because its own limits cover neither the size of a head nor the time
that a client takes (measured: one connection sends headers without end, a gigabyte in four seconds, and all of it is kept):

    head        HEAD_BYTES_MAX, TARGET_BYTES_MAX, HEADERS_MAX        431, 414
                head_s_max from its first byte                       408; a new connection has as long for its first byte
    body        body_s_max in all, STALL_S without a byte            408; UNPROVEN_BODY_S in all without a credential
    rest of a body whose answer is sent   DRAIN_BYTES_MAX, DRAIN_S   closed; with a credential body_s_max
    between requests   KEEP_ALIVE_S, UNPROVEN_KEEP_ALIVE_S           closed
    answer      WRITE_STALL_S in which the client takes nothing      closed
    pipelined requests PIPELINE_MAX                                  closed
    WebSocket   WS_MESSAGE_BYTES_MAX a message, WS_BYTES_PER_S on average after WS_BURST_BYTES, HANDSHAKE_S   closed, 1008

Deadlines are looked at once a second (`Admission.look`), so that no request starts a timer of its own. What is refused here is answered
with problem+json, as everything else, and the connection is closed after a moment in which the client may read the answer.
"""

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from collector.http_admission import CONNECTION, Admission, Phase, Slot, Ticket
from collector.problems import MEDIA_TYPE

HEAD_BYTES_MAX = 32_768
TARGET_BYTES_MAX = 16_384
HEADERS_MAX = 100
STALL_S = 15.0
UNPROVEN_BODY_S = 30.0
DRAIN_BYTES_MAX = 2 * 1024 * 1024
DRAIN_S = 5.0
KEEP_ALIVE_S = 75.0
UNPROVEN_KEEP_ALIVE_S = 15.0
WRITE_STALL_S = 60.0
PIPELINE_MAX = 16
LINGER_S = 1.0
HANDSHAKE_S = 20.0
CLOSING_S = 10.0
"""A connection that is being closed has so long for the rest of its answer between two bytes that the client takes."""
WS_MESSAGE_BYTES_MAX = 4_096
WS_BYTES_PER_S = 1_024.0
WS_BURST_BYTES = 65_536.0
"""A client of a stream has nothing to send but pongs and a close."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """What the settings choose."""

    head_s_max: float = 10.0
    body_s_max: float = 60.0


class _Refusal(Exception):
    """A request that ends before the application."""

    def __init__(self, code: str, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail


class _Written:
    """Whether the client takes what is written to it."""

    __slots__ = ("_left", "_since")

    def __init__(self) -> None:
        self._left = 0
        self._since = 0.0

    def stalled(self, left: int, now: float, s_max: float) -> bool:
        """Whether `left` bytes wait and none of them went for `s_max`."""
        if not left or left < self._left or not self._left:
            self._since = now
        self._left = left
        return bool(left) and now - self._since > s_max


class _Transport:
    """A transport to which nothing is written once it is closing.

    uvloop raises there, and a client that resets its connection at the right moment would make a traceback of every answer.
    """

    __slots__ = ("_inner",)

    def __init__(self, inner: asyncio.Transport) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, data: bytes) -> None:
        """Write, where that is still possible."""
        if not self._inner.is_closing():
            self._inner.write(data)


class BoundedHttp(HttpToolsProtocol):
    """See the module."""

    def __init__(self, *, admission: Admission, slot: Slot, deadlines: Deadlines, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._admission = admission
        self._slot = slot
        self._deadlines = deadlines
        self._ticket = Ticket(admission, slot)
        self.app_state = {**self.app_state, CONNECTION: self._ticket}
        self._since = time.monotonic()
        """Of what the connection waits for now: a head, the rest of a body, the end of it."""
        self._moved = self._since
        self._in_body = False
        self._head_bytes = 0
        self._head_parts = 0
        self._header_count = 0
        self._head_begun = False
        self._heads = self._turns = 0
        self._drained = 0
        self._refusal: _Refusal | None = None
        self._refused = False
        self._closing_since: float | None = None
        self._written = _Written()
        self._cut = self._made = False

    # ── what comes ──

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The connection is there, unless it had to give way before."""
        super().connection_made(cast("asyncio.Transport", _Transport(transport)))
        self._made = True
        self._slot.held = self
        if self._cut:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Free the place."""
        super().connection_lost(exc)
        self._admission.leave(self._slot)

    def data_received(self, data: bytes) -> None:
        """Parse within the bounds."""
        if self._refused:
            self._drain(len(data))
            return
        now = time.monotonic()
        turns = self._turns
        if not self._in_body and not self._head_bytes:
            self._since = now
        super().data_received(data)
        if self._refused or self.transport.is_closing():
            return
        # Where a request or its head ended in these bytes, the rest of them is not counted: it is one read at the most.
        if not self._in_body and self._turns == turns:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self._refuse(_Refusal("header", 431, f"the request's head has more than {HEAD_BYTES_MAX} bytes"))
                return
        self._note_phase()

    def on_message_begin(self) -> None:
        """A request begins."""
        if len(self.pipeline) >= PIPELINE_MAX:
            raise self._stop(_Refusal("pipeline", 400, f"more than {PIPELINE_MAX} requests are sent ahead"))
        self._head_parts = self._header_count = 0
        self._head_begun = True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Part of the target."""
        super().on_url(url)
        self._head_parts += len(url)
        if len(self.url) > TARGET_BYTES_MAX:
            raise self._stop(_Refusal("target", 414, f"the request's target has more than {TARGET_BYTES_MAX} bytes"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer, which nobody here reads."""
        self._head_parts += len(name) + len(value) + 4
        self._header_count += 1
        if self._header_count > HEADERS_MAX:
            raise self._stop(_Refusal("header", 431, f"the request has more than {HEADERS_MAX} headers"))
        if self._head_parts > HEAD_BYTES_MAX:
            raise self._stop(_Refusal("header", 431, f"the request's head has more than {HEAD_BYTES_MAX} bytes"))
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole: what follows is a body, or the next request."""
        if not self.url.startswith(b"/") or b"#" in self.url:
            text = "the request's target is not a path: a request to this collector begins with /"
            raise self._stop(_Refusal("path", 404, text))
        self._heads += 1
        self._turns += 1
        self._head_bytes = 0
        self._head_begun = False
        self._in_body = True
        self._since = self._moved = time.monotonic()
        self._drained = 0
        self._ticket.proven = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Part of a body."""
        self._moved = time.monotonic()
        super().on_body(body)
        if self.cycle is not None and self.cycle.response_complete:
            self._drain(len(body))

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._in_body = False
        self._turns += 1
        self._since = time.monotonic()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is sent."""
        self._since = time.monotonic()
        super().on_response_complete()
        # Ours looks at it: uvicorn's is forgotten with the next byte, which need not be a request's last.
        self._unset_keepalive_if_required()
        self._note_phase()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over."""
        self._in_body = False
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, or was refused by a bound, with a problem."""
        self._refuse(self._refusal or _Refusal("http", 400, msg))

    # ── what is held ──

    def cut(self) -> None:
        """Close at once, and let the application know: what it still writes goes nowhere."""
        self._cut = True
        if not self._made:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.abort()

    def look(self, now: float) -> None:
        """Close if a deadline has passed."""
        left = self.transport.get_write_buffer_size()
        if self.transport.is_closing() or self._refused:
            self._closing_since = self._closing_since or now
            if self._written.stalled(left, now, CLOSING_S) or now - self._closing_since > WRITE_STALL_S:
                self.cut()
        elif self._written.stalled(left, now, WRITE_STALL_S):
            self._admission.counts["stalled"] += 1
            self.cut()
        elif self._in_body:
            self._look_at_body(now)
        elif self._head_begun or self._head_bytes or not self._heads:
            self._look_at_head(now)
        elif self.cycle is None or self.cycle.response_complete:
            keep_s = KEEP_ALIVE_S if self._slot.owner or not self._slot.peer else UNPROVEN_KEEP_ALIVE_S
            if now - self._since > keep_s:
                self.transport.close()

    def _look_at_head(self, now: float) -> None:
        s_max = self._deadlines.head_s_max
        if now - self._since <= s_max:
            return
        if self._head_begun or self._head_bytes:
            self._refuse(_Refusal("slow", 408, f"the request's head was not there within {s_max:g} s"))
        else:
            self.transport.close()

    def _look_at_body(self, now: float) -> None:
        if self.flow.read_paused:
            # The application has yet to take what is here: the client is not late.
            self._moved = now
            return
        answered = self.cycle is not None and self.cycle.response_complete
        body_s = self._deadlines.body_s_max + 2
        """The application has the same deadline and a better answer; this one is for the routes that have none."""
        if not self._ticket.proven:
            body_s = DRAIN_S if answered else min(body_s, UNPROVEN_BODY_S)
        if now - self._since > body_s or now - self._moved > STALL_S:
            self._refuse(_Refusal("slow", 408, f"the request's body did not arrive: {now - self._since:.0f} s"))

    def _note_phase(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if self._in_body:
            self._slot.phase = Phase.BODY
        elif answering:
            self._slot.phase = Phase.ANSWER
        elif self._head_begun or self._head_bytes or not self._heads:
            self._slot.phase = Phase.HEAD
        else:
            self._slot.phase = Phase.IDLE

    # ── refusing ──

    def _stop(self, refusal: _Refusal) -> _Refusal:
        """The error that ends the parser; it comes out of it as one of its own, so this is kept beside it."""
        self._refusal = refusal
        return refusal

    def _refuse(self, refusal: _Refusal) -> None:
        """Answer, where nothing else is being answered, and close."""
        if self._refused:
            return
        self._refused = True
        self._admission.counts[refusal.code] += 1
        answering = self.cycle is not None and not self.cycle.response_complete
        started = answering and self.cycle.response_started
        if answering:
            # The application is told that the client has gone, and what it still answers goes nowhere.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if started or self.pipeline or (self._in_body and not answering):
            # Part of an answer is sent, or all of it: a second one would be taken for that of another request.
            self.cut()
            return
        self.transport.write(problem_bytes(refusal.status, refusal.code, refusal.detail))
        self.flow.resume_reading()
        with contextlib.suppress(NotImplementedError, RuntimeError, OSError):
            if self.transport.can_write_eof():
                self.transport.write_eof()
        # Read on for a moment: closing on unread bytes resets the connection, and the answer is lost with it.
        self.loop.call_later(LINGER_S, self.cut)

    def _drain(self, size: int) -> None:
        self._drained += size
        if self._drained > DRAIN_BYTES_MAX and not self._ticket.proven:
            self.cut()


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """See the module."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        ticket: Ticket = self.app_state[CONNECTION]
        self._admission, self._slot = ticket.admission, ticket.slot
        self._slot.held = self
        self._slot.phase = Phase.HEAD
        self._began = self._refilled = time.monotonic()
        self._budget = WS_BURST_BYTES
        self._upgraded = False
        self._closing_since: float | None = None
        self._written = _Written()

    def connection_lost(self, exc: Exception | None) -> None:
        """Free the place."""
        self._admission.leave(self._slot)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take frames within the bounds."""
        if not self._upgraded:
            # The request itself, which was bounded as every other.
            self._upgraded = True
            super().data_received(data)
            return
        now = time.monotonic()
        self._budget = min(WS_BURST_BYTES, self._budget + (now - self._refilled) * WS_BYTES_PER_S) - len(data)
        self._refilled = now
        if self._budget < 0:
            self._admission.counts["websocket"] += 1
            self._fail("nothing is asked of a client of a stream")
            return
        super().data_received(data)

    def _fail(self, reason: str) -> None:
        if self.handshake_complete and not self.close_sent and not self.transport.is_closing():
            self.conn.fail(1008, reason)
            self.close_sent = True
            self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.close()

    def cut(self) -> None:
        """Close at once, and let the application know: what it still writes goes nowhere."""
        self.disconnected = True
        self.writable.set()
        self.transport.abort()

    def look(self, now: float) -> None:
        """Close if a deadline has passed."""
        self._slot.phase = Phase.ANSWER if self.handshake_complete else Phase.HEAD
        left = self.transport.get_write_buffer_size()
        closing = self.transport.is_closing() or self.close_sent
        if closing:
            self._closing_since = self._closing_since or now
        if (
            self._written.stalled(left, now, CLOSING_S if closing else WRITE_STALL_S)
            or (self._closing_since is not None and now - self._closing_since > WRITE_STALL_S)
            or (not self.handshake_complete and now - self._began > HANDSHAKE_S)
        ):
            self.cut()


def problem_bytes(status: int, code: str, detail: str) -> bytes:
    """A whole response with a problem, after which the connection is closed."""
    title = STATUS_LINE[status][13:-2].decode()
    body = msgspec.json.encode(
        {"type": f"urn:linewarden:problem:{code}", "title": title, "status": status, "detail": detail, "code": code}
    )
    head = (
        f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\ncache-control: no-store\r\n"
        "x-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
    )
    return STATUS_LINE[status] + head.encode() + body
