"""For station programs: their events, log records and web requests → the agent on this computer (its `intake` source).

    client = Client("http://127.0.0.1:8801", program="mes")      # or "unix:/run/linewarden/intake.sock"
    client.emit("quality.rejected", "a part was scrapped", data={"part": "A-77"})
    logging.getLogger().addHandler(Handler(client))
    app.add_middleware(ASGIMiddleware, client=client, logins=["/login"], data=["/parts/*"])

Standard library only, and nothing of the agent's: this one file may be copied into a program.

Invariant: the program comes first. `emit`, the handler and the middleware never wait for the agent and never raise; a thread sends what is
queued in memory, tries again until the agent has it on disk, and gives each request an identity, so that trying again stores nothing twice.

    bound                                    then
    events_max, bytes_max of the queue       the oldest go: urgent ones (severity ≥ 4, alerts) last
    EVENT_BYTES_MAX of an event              its `data` goes, and says how long it was
    KEYS_MAX, NODES_MAX, DEPTH_MAX of `data` the rest is left out, or stands there as text
    VALUE_CHARS_MAX of a text in `data`      it is cut, and says how long it was
    the agent refuses an event               it goes
    what is left after exit_s_max at exit    goes, and a warning says how many

Whatever goes is counted, and reported to the agent as a `collection.gap` with the number, the reason and the time, as soon as it can be.
Who needs to know that an event is on disk calls `send`, which waits for that.
"""

import atexit
import contextlib
import datetime as dt
import fnmatch
import http.client
import ipaddress
import itertools
import json
import logging
import math
import os
import random
import re
import socket
import sys
import threading
import time as clock
import traceback
import uuid
import weakref
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit

__all__ = [
    "ASGIMiddleware",
    "Client",
    "DataAccess",
    "Handler",
    "Login",
    "NotAccepted",
    "Stats",
    "correlated",
    "correlation",
]

EVENT_BYTES_MAX = 200_000
DEPTH_MAX = 8
NODES_MAX = 5_000
KEYS_MAX = 150
VALUE_CHARS_MAX = 16_000
STACK_CHARS_MAX = 8_000
BATCH_EVENTS_MAX = 1_000
BATCH_BYTES_MAX = 500_000
REASONS_MAX = 20
"""Reasons of losses that are told apart until they are reported."""
ANSWER_BYTES_MAX = 262_144
BACKOFF_S_MIN = 0.2
HURRIED_S_MAX = 0.25
"""Between two tries while somebody waits in `flush`."""

_CHARS_MAX = {"message": 8_000, "target": 1_000, "actor": 1_000, "correlation_id": 256, "raw": VALUE_CHARS_MAX}
_SEVERITIES = {"informational": 1, "low": 2, "medium": 3, "high": 4, "critical": 5, "fatal": 6}
_SEVERITY_MAX, _URGENT = 6, 4
_TYPE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+){0,7}")
_TYPE_CHARS_MAX = 128
_INTEGER_MIN, _INTEGER_MAX = -(2**63), 2**63 - 1

log = logging.getLogger("linewarden.client")
"""What the client says of itself. `Handler` leaves it out: it must not feed on its own words."""

correlation: ContextVar[str | None] = ContextVar("linewarden_correlation", default=None)
"""The correlation id of what is being done now; events and log records take it up."""


@contextlib.contextmanager
def correlated(correlation_id: str | None = None) -> Iterator[str]:
    """All events and log records inside share a correlation id: the given one, or a new one."""
    chosen = correlation_id or uuid.uuid4().hex
    token = correlation.set(chosen)
    try:
        yield chosen
    finally:
        correlation.reset(token)


class NotAccepted(Exception):
    """`send` could not bring an event onto the agent's disk. The text says why.

    status: what the agent answered, None where it gave no answer. errors: what is wrong with the event, as the agent names it.
    uncertain: the agent may have stored it all the same; send it again with `idempotency_key`, and it is stored once.
    """

    def __init__(self, text: str, *, status: int | None, errors: Sequence[Any], uncertain: bool, key: str) -> None:
        super().__init__(text)
        self.status = status
        self.errors = list(errors)
        self.uncertain = uncertain
        self.idempotency_key = key


class Stats(NamedTuple):
    """What became of the events so far. `lost` were declared to the agent, or will be; `last_error` is None while it takes them."""

    waiting: int
    accepted: int
    lost: int
    last_error: str | None


# ── an event as bytes ────────────────────────────────────────────────────────────────────────────────────────────────


def _clean(text: str, chars_max: int) -> str:
    """Text that any reader takes: cut, without NUL and lone surrogates."""
    text = text[:chars_max].replace("\0", "\\0")
    return text[:chars_max] if text.isascii() else text.encode("utf-8", "backslashreplace").decode()[:chars_max]


def _shown(value: Any, chars_max: int = 1_000) -> str:
    """Any object as text; its own __str__ may do anything."""
    try:
        text = str(value)
    except Exception as error:  # noqa: BLE001 - code of whoever wrote the object
        text = f"<{type(value).__name__}, which cannot be shown: {type(error).__name__}>"
    return _clean(text, chars_max)


class _Plain:
    """Any objects → what JSON knows, within DEPTH_MAX and NODES_MAX."""

    def __init__(self) -> None:
        self._nodes = 0

    def mapping(self, value: Mapping[Any, Any], keys_max: int, depth: int) -> dict[str, Any]:
        """A mapping with text for keys."""
        kept: dict[str, Any] = {}
        for key, inner in list(value.items()):
            if len(kept) >= keys_max or self._nodes >= NODES_MAX:
                kept["keys_left_out"] = len(value) - len(kept)
                break
            kept[_shown(key, 200)] = self.value(inner, depth + 1)
        return kept

    def value(self, value: Any, depth: int) -> Any:
        """A value of any kind."""
        self._nodes += 1
        if value is None or isinstance(value, bool | str | int | float):
            return self._simple(value)
        if depth < DEPTH_MAX:
            if isinstance(value, Mapping):
                return self.mapping(value, NODES_MAX, depth)
            if isinstance(value, list | tuple | set | frozenset | deque):
                room = max(0, NODES_MAX - self._nodes)
                return [self.value(inner, depth + 1) for inner in itertools.islice(list(value), room)]
        return self._other(value)

    @staticmethod
    def _simple(value: Any) -> bool | int | float | str | None:
        if isinstance(value, str):
            more = f"… ({len(value)} characters)" if len(value) > VALUE_CHARS_MAX else ""
            return _clean(value, VALUE_CHARS_MAX) + more
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else str(float(value))
        if isinstance(value, int) and not isinstance(value, bool):
            return int(value) if _INTEGER_MIN <= value <= _INTEGER_MAX else hex(value)[:1_000]
        return value  # type: ignore[no-any-return]

    @staticmethod
    def _other(value: Any) -> str:
        if isinstance(value, dt.datetime | dt.date | dt.time):
            return str(value.isoformat())
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value[:1_000]).decode("utf-8", "backslashreplace").replace("\0", "\\0")
        if isinstance(value, BaseException):
            return _clean(f"{type(value).__name__}: {_shown(value)}", 1_000)
        return _shown(value)


def _now_us() -> int:
    return clock.time_ns() // 1_000


def _ip(text: object) -> str | None:
    """An address as text; None for what is none."""
    try:
        address = ipaddress.ip_address(str(text).strip().strip("[]").partition("%")[0])
    except ValueError:
        return None
    return str(getattr(address, "ipv4_mapped", None) or address)


def _event(
    type: str,  # noqa: A002 - the name of the field
    message: str | None = None,
    *,
    severity: int | str | None = None,
    actor: str | None = None,
    src_ip: str | None = None,
    target: str | None = None,
    outcome: str | None = None,
    data: Mapping[str, Any] | None = None,
    correlation_id: str | None = None,
    time: dt.datetime | float | str | None = None,
    raw: str | None = None,
) -> dict[str, Any]:
    """The event as the intake takes it. What does not fit its field goes into `data`, so that no mistake costs the event."""
    kept = (
        _Plain().mapping(data, KEYS_MAX, 0)
        if isinstance(data, Mapping)
        else {}
        if data is None
        else {"data": _shown(data)}
    )
    event: dict[str, Any] = {"type": _shown(type, 200), "time": _time(time, kept), "data": kept}
    given = {"message": message, "target": target, "actor": actor, "raw": raw}
    given["correlation_id"] = correlation.get() if correlation_id is None else correlation_id
    event.update({name: _shown(value, _CHARS_MAX[name]) for name, value in given.items() if value is not None})
    if src_ip:
        address = _ip(src_ip)
        event.update({"src_ip": address} if address else {})
        kept.update({} if address else {"src_host": _shown(src_ip, 255)})
    if severity is not None:
        number = _SEVERITIES.get(severity.lower(), 0) if isinstance(severity, str) else severity
        known = isinstance(number, int) and 1 <= number <= _SEVERITY_MAX
        event.update({"severity": int(number)} if known else {})
        kept.update({} if known else {"severity_given": _shown(severity, 80)})
    if outcome in ("success", "failure"):
        event["outcome"] = outcome
    elif outcome is not None:
        kept["outcome_given"] = _shown(outcome, 80)
    return event


def _time(time: dt.datetime | float | str | None, data: dict[str, Any]) -> int | float | str:
    if isinstance(time, dt.datetime):
        return round(time.timestamp() * 1_000_000)
    if isinstance(time, str):
        return _clean(time, 80)
    if isinstance(time, int | float) and not isinstance(time, bool) and math.isfinite(time) and 0 < time < 1e19:  # noqa: PLR2004 - ns
        return time
    if time is not None:
        data["time_given"] = _shown(time, 80)
    return _now_us()


def _line(event: dict[str, Any], program: str) -> bytes:
    """The JSON of an event, at most EVENT_BYTES_MAX."""
    if program:
        event["data"]["program"] = program
    line = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
    if len(line) > EVENT_BYTES_MAX:
        event["data"] = {"oversized_bytes": len(line), **({"program": program} if program else {})}
        line = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
    return line


# ── one connection to the agent ──────────────────────────────────────────────────────────────────────────────────────


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except OSError:
            self.close()
            raise


class _Answer(NamedTuple):
    status: int
    detail: str
    errors: list[Any]
    retry_after_s: float
    taken: bool
    """False: it says that it took nothing."""


_UNREACHABLE = (OSError, http.client.HTTPException)


class _Link:
    """Posts to the intake, over a connection that is kept. For one thread at a time."""

    def __init__(self, url: str, key: str) -> None:
        self._socket_path, self._host, self._port, self._path = "", "", 0, "/v1/events"
        if url.startswith("unix:"):
            self._socket_path = url.removeprefix("unix:").removeprefix("//")
            wrong = not self._socket_path.startswith("/")
        else:
            try:
                parts = urlsplit(url)
                self._host, self._port = parts.hostname or "", parts.port or 80
            except ValueError:
                parts = urlsplit("")
            wrong = parts.scheme != "http" or not self._host
            self._path = self._path if parts.path in ("", "/") else parts.path
        if wrong:
            raise ValueError(
                f"{url!r} is no address of an agent; write 'http://127.0.0.1:8801' or 'unix:/run/linewarden/intake.sock'"
            )
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._connection: http.client.HTTPConnection | None = None

    def post(self, body: bytes, key: str, timeout_s: float) -> _Answer:
        """The agent's answer. Raises one of _UNREACHABLE."""
        kept = self._connection is not None
        try:
            return self._ask(body, key, timeout_s)
        except TimeoutError:
            self.close()
            raise
        except _UNREACHABLE:
            self.close()
            if not kept:
                raise
        # The agent closed the kept connection in the meantime, or was started anew. With the same key nothing is taken twice.
        try:
            return self._ask(body, key, timeout_s)
        except _UNREACHABLE:
            self.close()
            raise

    def _ask(self, body: bytes, key: str, timeout_s: float) -> _Answer:
        connection = self._connection
        if connection is None:
            if self._socket_path:
                connection = _UnixConnection(self._socket_path, timeout_s)
            else:
                connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
            self._connection = connection
        elif connection.sock is not None:
            connection.sock.settimeout(timeout_s)
        connection.request("POST", self._path, body, {**self._headers, "Idempotency-Key": key})
        response = connection.getresponse()
        said = response.read(ANSWER_BYTES_MAX)
        if not response.isclosed():
            self.close()
        return _answer(response.status, said, response.getheader("Retry-After"))

    def close(self) -> None:
        """Close the connection; the next `post` opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _answer(status: int, body: bytes, retry_after: str | None) -> _Answer:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    said = said if isinstance(said, dict) else {}
    errors = said.get("errors")
    wait_s = float(retry_after) if retry_after and retry_after.isdecimal() and len(retry_after) < 9 else 0.0  # noqa: PLR2004 - decades
    detail, listed = _shown(said.get("detail") or ""), errors if isinstance(errors, list) else []
    return _Answer(status, detail, listed, wait_s, said.get("taken") is not False)


# ── the client ───────────────────────────────────────────────────────────────────────────────────────────────────────


class _Queued(NamedTuple):
    line: bytes
    time_us: int
    lane: int
    """0: urgent, 1: the rest, 2: a gap of ours, which is not counted."""


@dataclass(slots=True)
class _Batch:
    """Events under way. The same key and the same bytes at each try."""

    events: list[_Queued]
    key: str
    body: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.body = b"[" + b",".join([each.line for each in self.events]) + b"]"


@dataclass(slots=True)
class _Loss:
    events: int
    from_us: int
    to_us: int


_CLIENTS: dict[int, "weakref.ref[Client]"] = {}
_DEFINITE = frozenset({400, 413, 422})
"""Answers that another try does not change."""
_LATER = frozenset({408, 409, 425, 429})
"""Answers of the kind "you are wrong" that another try may change."""


class Client:
    """Sends events to the agent on this computer; see the module.

    url             "http://HOST:PORT" or "unix:/path"; of [health] listen, or of the source's own `listen`
    program         the name of this program; stands in `data.program` of each event
    key             the program's key, where the source asks for one
    events_max, bytes_max   what waits in memory at the most, beside the one batch that is under way
    linger_s        an event waits so long for others to travel with
    timeout_s       for one request
    backoff_s_max   between two tries while the agent is away
    exit_s_max      how long the end of the program is delayed at the most, to send what waits

    Cheap until the first event: then a thread begins. After a fork parent and child each have a queue of their own; what waits at the fork
    stays with the parent. A child of os.fork that ends with os._exit calls `close` before.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8801",
        *,
        program: str = "",
        key: str = "",
        events_max: int = 10_000,
        bytes_max: int = 16_777_216,
        linger_s: float = 0.1,
        timeout_s: float = 15.0,
        backoff_s_max: float = 15.0,
        exit_s_max: float = 3.0,
    ) -> None:
        if events_max < 1 or bytes_max < EVENT_BYTES_MAX:
            raise ValueError(
                f"events_max must be at least 1, and bytes_max at least {EVENT_BYTES_MAX}, so that one event fits"
            )
        if any(ord(char) < 33 or ord(char) > 126 for char in key):  # noqa: PLR2004 - what a header takes
            raise ValueError(
                "key: it holds a space, a line end or another character that no key has; strip what was read from a file"
            )
        self.url = url
        self.program = _shown(program, 200)
        self._key = key
        self._events_max, self._bytes_max = events_max, bytes_max
        self._linger_s, self._timeout_s, self._backoff_s_max = linger_s, timeout_s, backoff_s_max
        self.exit_s_max = exit_s_max
        self._exit_at: float | None = None
        self._begin_empty()
        number = id(self)
        _CLIENTS[number] = weakref.ref(self, lambda _: _CLIENTS.pop(number, None))

    def _begin_empty(self) -> None:
        """The state of a new client, and of one in a forked child."""
        self._changed = threading.Condition()  # re-entrant: a signal handler may log while this very thread holds it
        self._sending = threading.RLock()
        self._thread: threading.Thread | None = None
        self._link = _Link(self.url, self._key)
        self._identity, self._requests = uuid.uuid4().hex, itertools.count(1)
        self._lanes: tuple[deque[_Queued], deque[_Queued]] = (deque(), deque())
        self._bytes = 0
        self._under_way: deque[_Batch] = deque()
        self._losses: dict[str, _Loss] = {}
        self._put = [0, 0, 0]
        self._settled = [0, 0, 0]
        self._accepted = self._lost = 0
        self._failures = 0
        self._last_error: str | None = None
        self._to_say: deque[tuple[int, str, tuple[object, ...]]] = deque(maxlen=20)
        self._flushing = 0
        self._at_once = False
        self._closed = False

    # ── for programs ──

    def emit(
        self,
        type: str,  # noqa: A002 - the name of the field
        message: str | None = None,
        *,
        severity: int | str | None = None,
        actor: str | None = None,
        src_ip: str | None = None,
        target: str | None = None,
        outcome: str | None = None,
        data: Mapping[str, Any] | None = None,
        correlation_id: str | None = None,
        time: dt.datetime | float | str | None = None,
        raw: str | None = None,
    ) -> None:
        """Queue an event. Never waits, never raises.

        type      a dotted name of the taxonomy, or one of the program's own; of what is no such name `application` is made
        message   a sentence without personal data; who did it is `actor`, text that names people is `raw`
        severity  1 … 6 or informational, low, medium, high, critical, fatal; without it type and outcome decide
        outcome   "success" or "failure"
        data      all the rest; whatever JSON does not know is written as text
        time      when it happened; now, where it is not given
        """
        try:
            event = _event(
                type, message, severity=severity, actor=actor, src_ip=src_ip, target=target, outcome=outcome, data=data,
                correlation_id=correlation_id, time=time, raw=raw,
            )  # fmt: skip
            if not isinstance(type, str) or len(type) > _TYPE_CHARS_MAX or not _TYPE.fullmatch(type):
                event["type"], event["data"]["type_given"] = "application", _shown(type, 200)
            urgent = event.get("severity", 0) >= _URGENT or event["type"].startswith("alert.")
            line = _line(event, self.program)
        except Exception as error:  # noqa: BLE001 - what a program hands over may do anything when it is looked at
            self.lose(f"an event could not be written: {type_name(error)}")
            return
        self._enqueue(_Queued(line, _now_us(), 0 if urgent else 1))

    def send(
        self,
        type: str,  # noqa: A002 - the name of the field
        message: str | None = None,
        *,
        timeout_s: float = 15.0,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> None:
        """Send one event now and return when it is on the agent's disk. The fields are those of `emit`. Raises NotAccepted.

        It waits: in a coroutine write `await asyncio.to_thread(client.send, …)`. It does not stand in the queue behind others.
        """
        body = b"[" + _line(_event(type, message, **fields), self.program) + b"]"
        key = idempotency_key or uuid.uuid4().hex
        link = _Link(self.url, self._key)
        ends, failures, uncertain = clock.monotonic() + timeout_s, 0, False
        try:
            while True:
                wait_s, status = 0.0, None
                try:
                    answer = link.post(body, key, max(0.05, ends - clock.monotonic()))
                except _UNREACHABLE as error:
                    said = _words(error)
                    uncertain = uncertain or not isinstance(error, ConnectionRefusedError | FileNotFoundError)
                else:
                    said, status, wait_s = (
                        f"{answer.status} {answer.detail}".strip(),
                        answer.status,
                        answer.retry_after_s,
                    )
                    if status < 300:  # noqa: PLR2004 - taken
                        return
                    if status < 500 and status not in _LATER:  # noqa: PLR2004 - not the server's own trouble
                        text = f"the agent did not take the event: {said}"
                        raise NotAccepted(text, status=status, errors=answer.errors, uncertain=uncertain, key=key)
                    uncertain = uncertain or (status >= 500 and answer.taken)  # noqa: PLR2004
                failures += 1
                wait_s = max(wait_s, _backoff_s(failures, 2.0))
                if clock.monotonic() + wait_s >= ends:
                    text = f"the agent at {self.url} did not take the event within {timeout_s:g} s: {said}"
                    raise NotAccepted(text, status=status, errors=(), uncertain=uncertain, key=key)
                clock.sleep(wait_s)
        finally:
            link.close()

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until what was emitted so far is settled: with the agent, or lost and declared. Whether it is."""
        ends = clock.monotonic() + timeout_s
        with self._changed:
            wanted = tuple(self._put)
            self._flushing += 1
            self._at_once, self._failures = True, 0
            self._changed.notify_all()
        try:
            while not self._is_settled(wanted) and (left := ends - clock.monotonic()) > 0:
                if self._thread is not None and self._thread.is_alive():
                    with self._changed:
                        self._changed.wait_for(lambda: self._is_settled(wanted), min(left, 1.0))
                else:  # at the end of the interpreter no thread begins any more
                    clock.sleep(min(left, HURRIED_S_MAX, self._step(left)))
                    self._speak()
        finally:
            with self._changed:
                self._flushing -= 1
        return self._is_settled(wanted)

    def close(self, timeout_s: float = 5.0) -> bool:
        """Flush, then end. Whether everything was settled; of the rest a warning says how much it is. Later events are lost."""
        settled = self.flush(timeout_s)
        with self._changed:
            already, self._closed = self._closed, True
            self._changed.notify_all()
        thread = self._thread
        if settled and thread is not None and thread is not threading.current_thread():
            thread.join(1.0)
        elif thread is None:
            self._link.close()
        if not already:
            self._say_what_is_lost()
        return settled

    def stats(self) -> Stats:
        """What became of the events so far."""
        with self._changed:
            return Stats(self._waiting(), self._accepted, self._lost, self._last_error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ── the queue ──

    def _enqueue(self, event: _Queued) -> None:
        with self._changed:
            if self._closed:
                self._lose("the client was closed", event)
                return
            self._put[event.lane] += 1
            self._lanes[event.lane].append(event)
            self._bytes += len(event.line)
            queued = len(self._lanes[0]) + len(self._lanes[1])
            while queued > self._events_max or self._bytes > self._bytes_max:
                queued -= 1
                oldest = (self._lanes[1] or self._lanes[0]).popleft()
                self._bytes -= len(oldest.line)
                self._settled[oldest.lane] += 1
                self._lose("the queue of the program was full", oldest)
            if self._thread is None:
                self._start()
            if queued == 1 or queued % BATCH_EVENTS_MAX == 0:
                self._changed.notify_all()

    def _lose(self, reason: str, event: _Queued) -> None:
        """Remember a loss. The caller holds the lock."""
        if event.lane not in (0, 1):
            return
        self._lost += 1
        if reason not in self._losses and len(self._losses) >= REASONS_MAX:
            reason = "other reasons"
        loss = self._losses.get(reason)
        if loss is None:
            self._losses[reason] = _Loss(1, event.time_us, event.time_us)
        else:
            loss.events += 1
            loss.from_us, loss.to_us = min(loss.from_us, event.time_us), max(loss.to_us, event.time_us)

    def lose(self, reason: str) -> None:
        """Declare the loss of an event that never was in the queue, for want of what it was to be made of."""
        with self._changed:
            self._lose(reason, _Queued(b"", _now_us(), 1))
            if self._thread is None and not self._closed:
                self._start()
            self._changed.notify_all()

    def _gaps(self) -> list[_Queued]:
        """The losses so far as events. The caller holds the lock."""
        gaps = []
        for reason, loss in self._losses.items():
            data = {"reason": reason, "events": loss.events, "from_us": loss.from_us, "to_us": loss.to_us}
            line = _line(_event("collection.gap", reason, data=data, correlation_id=""), self.program)
            gaps.append(_Queued(line, loss.to_us, 2))
        self._put[2] += len(gaps)
        self._losses = {}
        return gaps

    def _waiting(self) -> int:
        under_way = sum(event.lane in (0, 1) for batch in self._under_way for event in batch.events)
        return len(self._lanes[0]) + len(self._lanes[1]) + under_way

    def _is_settled(self, wanted: Sequence[int]) -> bool:
        return all(map(int.__ge__, self._settled, wanted)) and not self._losses and self._settled[2] == self._put[2]

    def _new_key(self) -> str:
        return f"{self._identity}-{next(self._requests)}"

    def _next(self) -> _Batch | None:
        """The batch under way, or the next one, losses first. The caller holds the lock."""
        if not self._under_way:
            events = self._gaps()
            size = sum(len(each.line) for each in events)
            for lane in self._lanes:
                while (
                    lane
                    and len(events) < BATCH_EVENTS_MAX
                    and (not events or size + len(lane[0].line) <= BATCH_BYTES_MAX)
                ):
                    size += len(lane[0].line)
                    self._bytes -= len(lane[0].line)
                    events.append(lane.popleft())
            if not events:
                return None
            self._under_way.append(_Batch(events, self._new_key()))
        return self._under_way[0]

    # ── the thread ──

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="linewarden-client", daemon=True)
        try:
            self._thread.start()
        except (
            RuntimeError
        ):  # the interpreter is ending, or there are too many threads: `flush` sends, or the next event tries again
            self._thread = None
            return
        _finish_with_multiprocessing()

    def _run(self) -> None:
        wait_s = 0.0
        while True:
            with self._changed:
                if wait_s:
                    self._changed.wait_for(lambda: self._at_once or self._closed, wait_s)
                else:
                    self._gather()
                self._at_once = False
                if self._closed:
                    break
            wait_s = self._step(self._timeout_s)
            self._speak()
        with self._sending:
            self._link.close()

    def _gather(self) -> None:
        """Wait until there is something to send, and a little longer for what may travel with it. The caller holds the lock."""
        lanes = self._lanes
        self._changed.wait_for(lambda: lanes[0] or lanes[1] or self._under_way or self._losses or self._closed)
        self._changed.wait_for(
            lambda: len(lanes[0]) + len(lanes[1]) >= BATCH_EVENTS_MAX or self._flushing or self._closed, self._linger_s
        )

    def _step(self, timeout_s: float) -> float:
        """Try once to send what is next. How long to wait before the next step."""
        with self._sending:
            with self._changed:
                batch = self._next()
            if batch is None:
                return 0.0
            try:
                answer = self._link.post(batch.body, batch.key, min(timeout_s, self._timeout_s))
            except _UNREACHABLE as error:
                return self._not_now(_words(error), 0.0)
            with self._changed:
                if answer.status < 300:  # noqa: PLR2004 - taken
                    self._settle(batch)
                elif answer.status in _DEFINITE:
                    self._refused(batch, answer)
                else:
                    return self._not_now(f"{answer.status} {answer.detail}".strip(), answer.retry_after_s)
                self._changed.notify_all()
        return 0.0

    def _settle(self, batch: _Batch) -> None:
        self._under_way.popleft()
        for event in batch.events:
            self._settled[event.lane] += 1
            self._accepted += event.lane < 2  # noqa: PLR2004 - a gap is none of the program's events
        self._failures = 0
        if self._last_error is not None:
            self._last_error = None
            self._to_say.append((logging.INFO, "The agent at %s takes events again.", (self.url,)))

    def _refused(self, batch: _Batch, answer: _Answer) -> None:
        """The agent never takes this request as it is. What is bad in it goes; the rest is sent anew. The caller holds the lock."""
        bad = {
            each["index"]: each
            for each in answer.errors
            if isinstance(each, dict) and isinstance(each.get("index"), int)
        }
        self._under_way.popleft()
        if not any(0 <= index < len(batch.events) for index in bad):
            if len(batch.events) > 1:  # one of them is bad, or they are too many: the halves tell
                middle = len(batch.events) // 2
                halves = (batch.events[:middle], batch.events[middle:])
                self._under_way.extendleft([_Batch(half, self._new_key()) for half in reversed(halves)])
                return
            bad = {0: {"detail": answer.detail}}
        rest = []
        for index, event in enumerate(batch.events):
            if index not in bad:
                rest.append(event)
                continue
            path = re.sub(
                r"^\[\d+\]\.?", "", str(bad[index].get("path", ""))
            )  # its place in the request says nothing to anybody
            said = _shown(f"{path}: {bad[index].get('detail', '')}".strip(": "), 300)
            self._settled[event.lane] += 1
            self._lose(f"the agent refused the event: {said}", event)
            self._to_say.append(
                (logging.WARNING, "The agent refused an event of this program, which is lost: %s", (said,))
            )
        if rest:
            self._under_way.appendleft(_Batch(rest, self._new_key()))

    def _not_now(self, said: str, retry_after_s: float) -> float:
        """How long to wait until the next try."""
        with self._changed:
            self._failures += 1
            first, self._last_error = self._last_error is None, said
            wait_s = _backoff_s(self._failures, self._backoff_s_max)
            wait_s = max(wait_s, min(retry_after_s, self._backoff_s_max))
            wait_s = min(wait_s, HURRIED_S_MAX) if self._flushing else wait_s
            if first:
                text = "The agent at %s takes no events: %s. They wait in memory, up to %d."
                self._to_say.append((logging.WARNING, text, (self.url, said, self._events_max)))
        return wait_s

    def _speak(self) -> None:
        """Say what there is to say; without the lock, for a handler of the program's may hold its own and wait for ours."""
        while self._to_say:
            level, text, values = self._to_say.popleft()
            log.log(level, text, *values)

    # ── forks and ends ──

    def _after_fork(self) -> None:
        self._link.close()  # this process's half of it; the parent keeps its own
        closed = self._closed
        self._begin_empty()
        self._closed = closed

    def exit_s_left(self) -> float:
        """How much longer the end of the program may be delayed; exit_s_max while it does not end."""
        return self.exit_s_max if self._exit_at is None else max(0.0, self._exit_at - clock.monotonic())

    def _at_exit(self) -> None:
        if self._exit_at is None:
            self._exit_at = clock.monotonic() + self.exit_s_max
        if not self._closed and not self.flush(self.exit_s_left()):
            self._say_what_is_lost()

    def _say_what_is_lost(self) -> None:
        waiting = self._waiting()
        if waiting:
            log.warning(
                "%d events were not taken by the agent at %s in time, and are lost: %s",
                waiting,
                self.url,
                self._last_error,
            )


def type_name(value: object) -> str:
    """The name of the class of an object."""
    return type(value).__name__


def _words(error: BaseException) -> str:
    """What happened to a connection, in the system's own words."""
    return getattr(error, "strerror", None) or str(error) or type_name(error)


def _backoff_s(failures: int, most_s: float) -> float:
    return min(most_s, BACKOFF_S_MIN * 2.0 ** min(failures - 1, 20)) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _all_clients() -> list[Client]:
    return [client for each in list(_CLIENTS.values()) if (client := each()) is not None]


def _all_exit() -> None:
    for client in _all_clients():
        client._at_exit()  # noqa: SLF001 - this module's own business


def _all_after_fork() -> None:
    for client in _all_clients():
        client._after_fork()  # noqa: SLF001 - this module's own business


def _finish_with_multiprocessing() -> None:
    """A child of multiprocessing ends without atexit; it has an end of its own."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, _all_exit, exitpriority=0)


atexit.register(_all_exit)
os.register_at_fork(after_in_child=_all_after_fork)


# ── log records ──────────────────────────────────────────────────────────────────────────────────────────────────────

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_FIELDS = {
    "actor": "actor",
    "user": "actor",
    "src_ip": "src_ip",
    "client_ip": "src_ip",
    "outcome": "outcome",
    "target": "target",
}
_FRAMES_MAX = 50


class Handler(logging.Handler):
    """Log records → events of type `application`, or `application.error` from ERROR on, or what `extra={"event_type": …}` says.

    Levels become severities, the names in `extra` data, and `correlation_id`, `actor` (or `user`), `src_ip`, `outcome`, `target` in it the
    event's own fields. A text with values filled in may name people, and nobody can tell from outside: it travels as personal data (`raw`),
    the text as it stands in the code as `message`. Where no record of the program names people, say `message_is_personal=False`.
    """

    def __init__(self, client: Client, level: int | str = logging.NOTSET, *, message_is_personal: bool = True) -> None:
        super().__init__(level)
        self._client = client
        self._personal = message_is_personal
        self._inside = threading.local()
        # A filter, since it is asked before the handler's lock is taken.
        self.addFilter(lambda record: record.name != log.name)

    def emit(self, record: logging.LogRecord) -> None:
        """Never raises; a record made while another is being written (by the __str__ of what is logged, say) is lost and counted."""
        if getattr(self._inside, "now", False):
            self._client.lose("a record was logged while another was being written")
            return
        self._inside.now = True
        try:
            self._emit(record)
        except Exception as error:  # noqa: BLE001 - what a program logs may do anything when it is looked at
            self._client.lose(f"a log record could not be written: {type_name(error)}")
        finally:
            self._inside.now = False

    def _emit(self, record: logging.LogRecord) -> None:
        data: dict[str, Any] = {
            "logger": record.name,
            "level": record.levelname,
            "module": record.module,
            "line": record.lineno,
        }
        if record.threadName not in (None, "MainThread"):
            data["thread"] = record.threadName
        fields: dict[str, Any] = {}
        type_ = None
        for name, value in record.__dict__.items():
            if name in _FIELDS and isinstance(value, str):
                fields[_FIELDS[name]] = value
            elif name in ("correlation_id", "correlationId") and isinstance(value, str | int):
                fields["correlation_id"] = str(value)
            elif name == "event_type" and isinstance(value, str) and _TYPE.fullmatch(value):
                type_ = value
            elif name not in _STANDARD:
                data[name] = value
        text = _text_of(record)
        template = record.msg if record.args and isinstance(record.msg, str) else None
        raw = text if self._personal else None
        if record.exc_info and record.exc_info[1] is not None:
            data |= _of_exception(record.exc_info[1])
            raw = f"{text}\n{_shown(_what(record.exc_info[1]))}"
        elif record.exc_text:
            raw = f"{text}\n{record.exc_text}"
        self._client.emit(
            type_ or ("application.error" if record.levelno >= logging.ERROR else "application"),
            template if self._personal else text,
            severity=_severity_of(record.levelno), data=data, time=int(record.created * 1_000_000), raw=raw, **fields,
        )  # fmt: skip

    def flush(self) -> None:
        """Wait for what was logged, for as long as the end of the program may be delayed."""
        self._client.flush(self._client.exit_s_left())


def _severity_of(level: int) -> int:
    return 4 if level >= logging.CRITICAL else 3 if level >= logging.ERROR else 2 if level >= logging.WARNING else 1


def _text_of(record: logging.LogRecord) -> str:
    try:
        return _shown(record.getMessage(), VALUE_CHARS_MAX)
    except Exception:  # noqa: BLE001 - values that do not fit their places: the text as it stands is better than none
        return _shown(record.msg, VALUE_CHARS_MAX)


def _what(error: BaseException) -> str:
    return f"{type_name(error)}: {_shown(error)}"


def _of_exception(error: BaseException) -> dict[str, Any]:
    """Its kind and where it was raised, with its causes; not its text, which may name people."""
    lines: list[str] = []
    each: BaseException | None = error
    seen: set[int] = set()
    while each is not None and id(each) not in seen and len(seen) < DEPTH_MAX:
        seen.add(id(each))
        lines.insert(0, "".join([*traceback.format_tb(each.__traceback__, -_FRAMES_MAX), type_name(each)]))
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return {"exception": type_name(error), "stack": "\n\n".join(lines)[-STACK_CHARS_MAX:]}


# ── web requests ─────────────────────────────────────────────────────────────────────────────────────────────────────

_Scope = Any  # each framework has types of its own for scope, messages and the two functions
_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[Any]]
_Send = Callable[[Any], Awaitable[None]]
_App = Callable[[Any, Any, Any], Awaitable[None]]

_CORRELATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_QUERY_NAMES_MAX = 50
_FORWARDED_MAX = 50


class Login(NamedTuple):
    """Where people sign in: `authentication.success` or `.failure`. In paths `*` stands for anything.

    succeeded: the statuses of a sign-in that worked; by default all below 400. (A form that answers 200 to a wrong password: {302, 303}.)
    """

    path: str
    methods: Collection[str] = ("POST",)
    succeeded: Collection[int] = range(100, 400)


class DataAccess(NamedTuple):
    """Where data is looked at: `data.read`, `data.written` or `data.deleted` by method, or the given type (`data.exported`, say)."""

    path: str
    type: str = ""
    methods: Collection[str] = ()


_DATA_TYPES = {"GET": "data.read", "HEAD": "data.read", "QUERY": "data.read", "DELETE": "data.deleted"}
_DATA_TYPES |= dict.fromkeys(("POST", "PUT", "PATCH"), "data.written")


class ASGIMiddleware:
    """Each web request → one event, named for what it was: a sign-in, a refusal (`access.denied`), access to data, else
    `application.request`; an exception becomes an `application.error` besides, and is raised again. No bodies; of the query only names.

    logins, data      where people sign in, where data is looked at: paths with `*` for anything, or Login and DataAccess
    exclude           paths that are not recorded (health checks), unless they fail
    masked            paths that are secrets themselves ("/reset/*"): the pattern is recorded in their place
    sample            the share of `application.request` that is recorded, 0 … 1; what failed always is
    trusted_proxies   addresses or networks whose X-Forwarded-For is believed; "unix": whoever comes over a unix socket
    user              who it is, from the scope; asked when the answer has been sent

    The correlation id comes from X-Correlation-ID or traceparent where it is well-formed, else it is new; it goes onto the answer, into the
    events, and into whatever is logged or emitted meanwhile. WebSockets and the lifespan pass through.
    """

    def __init__(
        self,
        app: _App,
        client: Client,
        *,
        logins: Iterable[str | Login] = (),
        data: Iterable[str | DataAccess] = (),
        exclude: Iterable[str] = (),
        masked: Iterable[str] = (),
        sample: float = 1.0,
        trusted_proxies: Iterable[str] = (),
        user: Callable[[_Scope], str | None] | None = None,
    ) -> None:
        proxies = list(trusted_proxies)
        self._app = app
        self.client = client
        self._logins = [(_pattern(each.path), each) for each in (Login(e) if isinstance(e, str) else e for e in logins)]
        self._data = [
            (_pattern(each.path), each) for each in (DataAccess(e) if isinstance(e, str) else e for e in data)
        ]
        self._exclude = [_pattern(each) for each in exclude]
        self._masked = [(_pattern(each), each) for each in masked]
        self._sample = sample
        self._unix_trusted = "unix" in proxies
        self._proxies = [ipaddress.ip_network(each, strict=False) for each in proxies if each != "unix"]
        self._user = user

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = _Exchange(scope)
        token = correlation.set(seen.correlation)

        async def receiving() -> _Message:
            message: _Message = await receive()
            seen.received(message)
            return message

        async def sending(message: _Message) -> None:
            if message["type"] == "http.response.start":
                message = seen.started(message)
            await send(message)
            if seen.sent(message):
                self._record(seen)

        try:
            await self._app(scope, receiving, sending)
        except BaseException as error:
            seen.error = error
            raise
        finally:
            self._record(seen)
            correlation.reset(token)

    def _record(self, seen: "_Exchange") -> None:
        """The events of a request, once; and of its exception, whenever it comes."""
        path, error = str(seen.scope.get("path", "")), seen.error
        target = next((text for pattern, text in self._masked if pattern(path)), path)
        fields = {"src_ip": self._address(seen), "target": target, "correlation_id": seen.correlation}
        if not seen.recorded:
            seen.recorded = True
            type_, outcome = self._kind(seen, path)
            if self._wanted(seen, type_, outcome, path):
                data = seen.data()
                if type_ == "application.request" and self._sample < 1.0:
                    data["sampled"] = self._sample
                actor = self._actor(seen, data)
                message = f"{seen.method} {'was broken off' if seen.broken_off else f'answered with {seen.status}'}"
                self.client.emit(type_, message, actor=actor, outcome=outcome, time=seen.began_us, data=data, **fields)
        if isinstance(error, Exception):
            seen.error = None
            data = {"method": seen.method, **_of_exception(error)}
            self.client.emit(
                "application.error",
                f"{seen.method} raised {type_name(error)}",
                outcome="failure",
                data=data,
                raw=_what(error),
                **fields,
            )

    def _kind(self, seen: "_Exchange", path: str) -> tuple[str, str]:
        """What a request was, and how it ended."""
        status, method = seen.status, seen.method
        outcome = "failure" if status >= 400 or seen.broken_off else "success"  # noqa: PLR2004 - an error
        if status < 500 and not seen.broken_off:  # noqa: PLR2004 - a server's own trouble says nothing of who asked
            for pattern, login in self._logins:
                if pattern(path) and method in login.methods:
                    worked = status in login.succeeded
                    return ("authentication.success", "success") if worked else ("authentication.failure", "failure")
            if status == 403 or (status == 401 and "authorization" in seen.headers):  # noqa: PLR2004 - refused, not merely asked who it is
                return "access.denied", "failure"
        for pattern, access in self._data:
            if pattern(path) and (method in access.methods if access.methods else method in _DATA_TYPES):
                return access.type or _DATA_TYPES.get(method, "data.read"), outcome
        return "application.request", outcome

    def _wanted(self, seen: "_Exchange", type_: str, outcome: str, path: str) -> bool:
        if type_ != "application.request" or seen.status >= 500 or isinstance(seen.error, Exception):  # noqa: PLR2004
            return True
        if any(pattern(path) for pattern in self._exclude):
            return False
        # By the correlation id, so that the programs of one chain choose the same requests.
        return outcome == "failure" or zlib.crc32(seen.correlation.encode()) < self._sample * 2**32

    def _address(self, seen: "_Exchange") -> str | None:
        """Who asks: the first from the right that is no proxy of ours."""
        peer = seen.scope.get("client")
        peer = str(peer[0]) if peer and peer[0] else ""
        address = _ip(peer)
        if address is None and (peer or not self._unix_trusted):
            return peer or None  # whatever a server calls it; `emit` knows where it belongs
        if address is not None and not self._is_proxy(address):
            return address
        for each in reversed(seen.headers.get("x-forwarded-for", "").split(",")[-_FORWARDED_MAX:]):
            found = _ip(each)
            if found is None:
                break
            address = found
            if not self._is_proxy(found):
                break
        return address

    def _is_proxy(self, address: str) -> bool:
        return any(ipaddress.ip_address(address) in network for network in self._proxies)

    def _actor(self, seen: "_Exchange", data: dict[str, Any]) -> str | None:
        if self._user is None:
            return None
        try:
            return self._user(seen.scope)
        except Exception as error:  # noqa: BLE001 - the program's own function; the request was answered already
            data["user_unknown"] = type_name(error)
            return None


def _pattern(path: str) -> Callable[[str], object]:
    return re.compile(fnmatch.translate(path)).match


class _Exchange:
    """A request and its answer, as far as they got."""

    def __init__(self, scope: _Scope) -> None:
        self.scope = scope
        self.method = str(scope.get("method", ""))[:20]
        self.headers: dict[str, str] = {}
        for name, value in scope.get("headers", ()):
            key = name.decode("latin-1").lower()
            text = value.decode("latin-1")
            self.headers[key] = f"{self.headers[key]},{text}" if key in self.headers else text
        self.correlation, self._given = self._correlation()
        self.began_us, self._began = _now_us(), clock.perf_counter()
        self._ended: float | None = None
        self._status = 0
        self._request_bytes = self._response_bytes = 0
        self._gone = False
        self.recorded = False
        self.error: BaseException | None = None

    def _correlation(self) -> tuple[str, str]:
        given = self.headers.get("x-correlation-id", "").strip()
        if _CORRELATION.fullmatch(given):
            return given, "x-correlation-id"
        trace = _TRACEPARENT.fullmatch(self.headers.get("traceparent", "").strip())
        return (trace[1], "traceparent") if trace else (uuid.uuid4().hex, "")

    @property
    def status(self) -> int:
        """What was answered, or will be by the server, where the program failed before it answered."""
        return self._status or (500 if isinstance(self.error, Exception) else 0)

    @property
    def broken_off(self) -> bool:
        """Whether the answer did not get to its end: the other side went away, or the program failed in the middle of it."""
        return self._ended is None and (self._status > 0 or not isinstance(self.error, Exception))

    def received(self, message: _Message) -> None:
        """Something came in."""
        if message["type"] == "http.request":
            self._request_bytes += len(message.get("body") or b"")
        elif message["type"] == "http.disconnect" and self._ended is None:
            self._gone = True

    def started(self, message: _Message) -> _Message:
        """The start of the answer, with the correlation id."""
        self._status = int(message["status"])
        headers = list(message.get("headers") or ())
        if not any(name.lower() == b"x-correlation-id" for name, _ in headers):
            headers.append((b"x-correlation-id", self.correlation.encode()))
        return {**message, "headers": headers}

    def sent(self, message: _Message) -> bool:
        """Something went out; whether it was the end of the answer."""
        kind = message["type"]
        if kind == "http.response.body":
            self._response_bytes += len(message.get("body") or b"")
        if kind == "http.response.pathsend" or (
            kind in ("http.response.body", "http.response.zerocopysend") and not message.get("more_body", False)
        ):
            # A server takes what is sent to somebody who has gone and throws it away.
            self._ended = None if self._gone else clock.perf_counter()
            return True
        return False

    def data(self) -> dict[str, Any]:
        """What is recorded of it."""
        ended = clock.perf_counter() if self._ended is None else self._ended
        data: dict[str, Any] = {"method": self.method, "duration_ms": round((ended - self._began) * 1_000, 3)}
        data |= {"status": self.status} if self.status else {}
        data |= {"request_bytes": self._request_bytes, "response_bytes": self._response_bytes}
        data |= {"disconnected": True} if self.broken_off and not isinstance(self.error, Exception) else {}
        route = getattr(self.scope.get("route"), "path", None)
        data |= {"route": route} if isinstance(route, str) else {}
        query = parse_qsl(self.scope.get("query_string", b"")[:8_192].decode("latin-1"), keep_blank_values=True)
        data |= {"query": sorted({name[:80] for name, _ in query})[:_QUERY_NAMES_MAX]} if query else {}
        data |= {"user_agent": self.headers["user-agent"][:300]} if "user-agent" in self.headers else {}
        data |= {"correlation_from": self._given} if self._given else {}
        return data
