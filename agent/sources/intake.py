"""`intake`: `POST /v1/events`, for the programs of this station: JSON, an array of it, or NDJSON, plain or gzip.

What an answer says is true:

    202  {"accepted": n}   all events of the request are committed in the buffer
    200                    the same, at /v1/events/winston: winston's HTTP transport takes nothing else for success
    422                    nothing was taken; each error with its path ([3].severity). A request is taken whole or not at all
    429, 503               nothing was taken; send it again after Retry-After seconds. Only where the commit was already under way
                           and did not end in time is it not known, and then it says so (`"taken": "unknown"`): sent again with
                           the same Idempotency-Key it arrives once
    400 401 403 405 408 411 413 415   nothing was taken

An Idempotency-Key is remembered with the commit of its events: while the agent runs the last KEYS_MAX of them, and over a restart
the last KEYS_KEPT_MAX, in the cursor, which is in the transaction of the events themselves. A request whose key is known is
answered as the first one was, and stored no second time; one whose key has been forgotten is taken as a new one. The same key over
another body is 422.

Bounds, and what happens there: request_bytes_max (unpacked too) and EVENTS_MAX events a request (intake_read.py), 413.
QUEUE_EVENTS_MAX events or QUEUE_BYTES_MAX bytes that wait for the running commit, 429. BODIES_BYTES_MAX bytes of bodies that are
still arriving, 429. A body has BODY_S_MAX to arrive, 408; a commit commit_s_max, 503; while one takes longer than STALL_S, new
requests are 503 at once.

It answers on the local endpoint ([health] listen), or on a unix socket of its own. Who comes from another computer is refused
(403), unless `allow_remote` is set. A web page cannot post here: health_http.py refuses what has an Origin, and JSON is no content
type of a form.
"""

import asyncio
import contextlib
import grp
import hashlib
import hmac
import os
import re
import time
import zlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, ClassVar

import annotated_types
import msgspec

from agent.component import ConfigError, Cursor, Report, now_us
from agent.health_http import Address, HttpServer, Limits, Refused, Request, Response, Route, SocketAccess
from agent.parsers.base import zone_of
from agent.sources.intake_read import Reader
from agent.wire.event import Event

PATH = "/v1/events"
PATH_WINSTON = "/v1/events/winston"
QUEUE_EVENTS_MAX = 20_000
QUEUE_BYTES_MAX = 2 * 1024 * 1024
BATCH_EVENTS = 8_192
"""Requests are put together into batches of this, or of one request where that has more."""
BODIES_BYTES_MAX = 8 * 1024 * 1024
BODY_S_MAX = 10.0
STALL_S = 2.0
KEYS_MAX = 8_192
KEYS_KEPT_MAX = 256
"""After a restart only those matter whose answer was under way when it came; connections are fewer."""
KEY_CHARS_MAX = 256
FILES_EVERY_S = 5.0
"""The files of the programs' keys are read again this often, when somebody asks: a new key works and an old one ends within this."""
REFUSALS_MAX = 20
"""Events a minute of posts without a right key."""
KEY_BYTES_MIN, KEY_BYTES_MAX = 16, 4_096
SOCKET_PATH_BYTES_MAX = 107
CONNECTIONS_MAX = 64
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(rf"[\x21-\x7e]{{1,{KEY_CHARS_MAX}}}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MODE = re.compile(r"0?[0-7]{3}")

_JSON = frozenset({"application/json", "text/json"})
_LINES = frozenset(
    {
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
        "application/jsonlines",
        "application/x-jsonlines",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program that may post, by its key: in a file, or as the SHA-256 of it (hex): printf %s KEY | sha256sum."""

    key_file: str | None = None
    key_sha256: str | None = None

    def __post_init__(self) -> None:
        if (self.key_file is None) == (self.key_sha256 is None):
            raise ValueError("key_file: give either key_file or key_sha256")
        if self.key_sha256 is not None and not _SHA256.fullmatch(self.key_sha256):
            raise ValueError("key_sha256: must be 64 hex digits in lower case; make it with: printf %s KEY | sha256sum")


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeConfig:
    """Where programs post, and which may.

    socket: path of a unix socket of its own; empty: the local endpoint. socket_mode, socket_group: who may connect to it.
    allow_remote: take events from other computers too, where [health] listen is reached by them. programs: name → its key;
    none: every program of this computer may post. message_is_personal: whether the text of log records may name people; then it is `raw`.
    """

    socket: str = ""
    socket_mode: str = "0660"
    socket_group: str = ""
    allow_remote: bool = False
    programs: Annotated[dict[str, Program], annotated_types.Len(0, 200)] = field(default_factory=dict)
    request_bytes_max: Annotated[int, annotated_types.Ge(1_024), annotated_types.Le(4_194_304)] = 1_048_576
    commit_s_max: Annotated[float, annotated_types.Gt(0), annotated_types.Le(60)] = 10.0
    message_is_personal: bool = True
    time_zone: str = ""

    def __post_init__(self) -> None:
        zone_of(self.time_zone)
        if self.socket and (not self.socket.startswith("/") or "\0" in self.socket):
            raise ValueError(f"socket: {self.socket!r} is not an absolute path; write /run/linewarden/intake.sock")
        if len(os.fsencode(self.socket)) > SOCKET_PATH_BYTES_MAX:
            raise ValueError(f"socket: a socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes; choose a shorter one")
        if not _MODE.fullmatch(self.socket_mode):
            raise ValueError(f"socket_mode: {self.socket_mode!r} is no file mode; write it in octal, like '0660'")
        if self.socket_group and not self.socket:
            raise ValueError("socket_group: there is no socket; give socket, or take this out")
        for name in self.programs:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"programs: {name[:80]!r} is no name; use letters, digits, '.', '-' and '_', at most 64"
                )

    def doors(self, listen: Iterable[Address]) -> list[str]:
        """Where it answers: what no two sources may share."""
        return [f"unix:{self.socket}"] if self.socket else [f"{PATH} at {each}" for each in listen]

    def problems(self) -> Iterable[tuple[str, str, str]]:
        """Whether the socket can be had, and the keys are keys."""
        if self.socket:
            yield from self._socket_problems(Path(self.socket))
        for name, program in self.programs.items():
            try:
                _digest_of(program)
            except ConfigError as error:
                yield f"programs.{name}.key_file", str(error.args[0]), error.remedy

    def _socket_problems(self, path: Path) -> Iterable[tuple[str, str, str]]:
        try:
            if path.exists() and not path.is_socket():
                yield "socket", f"{path} is there and is no socket", "Move it away, or choose another path."
        except OSError as error:
            yield "socket", f"{path}: {error.strerror}", "Choose a path that the agent's user can reach."
        try:
            access_of(self)
        except ConfigError as error:
            yield error.key, str(error.args[0]), error.remedy

    def warnings(self) -> Iterable[tuple[str, str, str]]:
        """A folder that systemd makes at the start need not be there yet."""
        if self.socket and not Path(self.socket).parent.is_dir():
            text = f"{Path(self.socket).parent} is not there just now"
            yield (
                "socket",
                text,
                "The service makes /run/linewarden when it starts; another folder must be there before.",
            )


def access_of(config: IntakeConfig) -> SocketAccess:
    """Mode and group of the socket. Raises ConfigError."""
    group = None
    if config.socket_group:
        try:
            group = grp.getgrnam(config.socket_group).gr_gid
        except KeyError:
            remedy = f"Create it (groupadd {config.socket_group}), or name another."
            text = f"there is no group {config.socket_group!r} on this computer"
            raise ConfigError(text, key="socket_group", remedy=remedy) from None
    return SocketAccess(int(config.socket_mode, 8), group)


def _digest_of(program: Program) -> bytes:
    """SHA-256 of a program's key. Raises ConfigError where its file holds none."""
    if program.key_sha256 is not None:
        return bytes.fromhex(program.key_sha256)
    path = Path(program.key_file or "")
    try:
        # Not to wait: for a pipe that nobody writes to everything would stand still.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123  # a descriptor
            key = (file.read(KEY_BYTES_MAX + 1) or b"").strip()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", remedy="Name a file that the agent's user can read.") from None
    if not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX or not _is_key(key):
        remedy = f"openssl rand -hex 32 > {path}"
        raise ConfigError(
            f"{path} holds no key: one line of {KEY_BYTES_MIN} printable characters or more", remedy=remedy
        )
    return hashlib.sha256(key).digest()


def _is_key(text: bytes) -> bool:
    return all(0x20 < byte < 0x7F for byte in text)  # noqa: PLR2004  # what can be seen in ASCII


class Programs:
    """Whose key is it?"""

    def __init__(self, programs: Mapping[str, Program], report: Report) -> None:
        self.unknown = 0
        """Keys of nobody that were not told of yet."""
        self._programs = programs
        self._report = report
        self._digests: dict[str, bytes] = {}
        self._read_s = float("-inf")

    def name(self, authorization: str) -> str:
        """The program that shows this. Raises Refused (401)."""
        scheme, _, key = authorization.partition(" ")
        shown = hashlib.sha256(key.strip().encode("latin-1")).digest()
        found = ""
        # All of them, each compared in the same time, whichever it is.
        for name, digest in self._known().items():
            if hmac.compare_digest(digest, shown):
                found = name
        if not found or scheme.lower() != "bearer":
            self.unknown += 1
            self._report.count("refused_keys")
            text = "this is not the key of a program that may post here; send Authorization: Bearer KEY"
            raise Refused(HTTPStatus.UNAUTHORIZED, text, {"WWW-Authenticate": 'Bearer realm="linewarden-agent"'})
        return found

    def _known(self) -> dict[str, bytes]:
        if time.monotonic() - self._read_s < FILES_EVERY_S:
            return self._digests
        self._read_s, self._digests = time.monotonic(), {}
        for name, program in self._programs.items():
            try:
                self._digests[name] = _digest_of(program)
                self._report.trouble.pop(f"program {name}", None)
            except ConfigError as error:
                self._report.fault(str(error), f"program {name}")
        return self._digests


class Fate(Enum):
    """What became of a request."""

    STORED = "stored"
    NOT_TAKEN = "not taken"
    UNKNOWN = "unknown"


class Post:
    """A request on its way to the disk. Several may wait for one: those that came again with the same key."""

    __slots__ = ("body_bytes", "events", "fate", "key", "print", "waiting")

    def __init__(self, events: list[Event], body_bytes: int, key: str | None, print_: str) -> None:
        self.events = events
        self.body_bytes = body_bytes
        self.key = key
        self.print = print_
        """Of the body: the same key must come with the same."""
        self.fate: asyncio.Future[Fate] = asyncio.get_running_loop().create_future()
        self.waiting = 0

    def settle(self, fate: Fate) -> None:
        """Tell whoever waits."""
        if not self.fate.done():
            self.fate.set_result(fate)


class Queue:
    """Requests that wait for the running commit, and those that it holds. Open while the source runs."""

    def __init__(self) -> None:
        self.open = False
        self.filled = asyncio.Event()
        self.storing: list[Post] = []
        self._storing_since_s = 0.0
        self._posts: deque[Post] = deque()
        self._events = 0
        self._bytes = 0

    def put(self, post: Post) -> None:
        """Raises Refused: 429 where it is full, 503 where nothing is stored just now."""
        if not self.open:
            raise _later("the intake is not running just now", 2)
        if self.storing and time.monotonic() - self._storing_since_s > STALL_S:
            raise _later("nothing can be stored just now; the agent's /healthz says why", 5)
        if self._posts and (
            self._events + len(post.events) > QUEUE_EVENTS_MAX or self._bytes + post.body_bytes > QUEUE_BYTES_MAX
        ):
            raise _too_many()
        self._posts.append(post)
        self._events += len(post.events)
        self._bytes += post.body_bytes
        self.filled.set()

    def take(self) -> list[Event]:
        """The events of the next batch. Their requests are `storing` until `stored`."""
        count = 0
        while self._posts and (not count or count + len(self._posts[0].events) <= BATCH_EVENTS):
            post = self._posts.popleft()
            self._events -= len(post.events)
            self._bytes -= post.body_bytes
            self.storing.append(post)
            count += len(post.events)
        if not self._posts:
            self.filled.clear()
        self._storing_since_s = time.monotonic()
        return [event for post in self.storing for event in post.events]

    def stored(self) -> list[Post]:
        """The commit is through."""
        done, self.storing = self.storing, []
        return done

    def withdraw(self, post: Post) -> bool:
        """Take it back, where it is not in the commit already."""
        if post not in self._posts:
            return False
        self._posts.remove(post)
        self._events -= len(post.events)
        self._bytes -= post.body_bytes
        if not self._posts:
            self.filled.clear()
        return True

    def close(self) -> None:
        """Nothing is taken any more; who waits hears what is known."""
        self.open = False
        for post in self.storing:
            post.settle(Fate.UNKNOWN)
        for post in self._posts:
            post.settle(Fate.NOT_TAKEN)
        self.storing = []
        self._posts.clear()
        self._events = self._bytes = 0
        self.filled.clear()


def _later(text: str, seconds: int) -> Refused:
    headers = {"Retry-After": str(seconds)}
    return Refused(HTTPStatus.SERVICE_UNAVAILABLE, f"{text}; nothing of this request was taken", headers, taken=False)


def _too_many() -> Refused:
    text = "too much at once; nothing of this request was taken"
    return Refused(HTTPStatus.TOO_MANY_REQUESTS, text, {"Retry-After": "1"}, taken=False)


class Keys:
    """Idempotency keys whose events are stored: key → [how many events, print of the body], oldest first."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[int, str]] = OrderedDict()

    def restore(self, cursor: Cursor | None) -> None:
        """Those that were committed."""
        for key, (count, print_) in (cursor or {}).get("keys", {}).items():
            self._known.setdefault(key, (count, print_))

    def find(self, key: str) -> tuple[int, str] | None:
        return self._known.get(key)

    def add(self, posts: Iterable[Post]) -> None:
        for post in posts:
            if post.key is not None:
                self._known[post.key] = len(post.events), post.print
        while len(self._known) > KEYS_MAX:
            self._known.popitem(last=False)

    def cursor(self, posts: Iterable[Post]) -> Cursor | None:
        """With these stored too; None where none of them has a key."""
        new = {post.key: (len(post.events), post.print) for post in posts if post.key is not None}
        if not new:
            return None
        kept = list({**self._known, **new}.items())[-KEYS_KEPT_MAX:]
        return {"keys": {key: list(value) for key, value in kept}}


class IntakeSource:
    """Takes what programs post."""

    Config: ClassVar[type] = IntakeConfig
    rereadable: ClassVar[bool] = False

    def __init__(self, name: str, config: IntakeConfig, report: Report) -> None:
        self._name = name
        self._config = config
        self._report = report
        self._reader = Reader(name, zone_of(config.time_zone), config.message_is_personal)
        self._programs = Programs(config.programs, report)
        self._reserved: Callable[[], Container[Any]] = frozenset
        self._queue: Queue | None = None
        self._keys = Keys()
        self._pending: dict[str, Post] = {}
        self._arriving_bytes = 0
        self._refusals = 0
        self._refusals_since_s = float("-inf")

    def reserve(self, names: Callable[[], Container[Any]]) -> None:
        """Keep the names of programs that have a key at any intake of this agent from posters that show none."""
        self._reserved = names

    def routes(self) -> dict[tuple[str, str], Route]:
        """What is answered at the local endpoint: nothing, where it has a socket of its own."""
        return {} if self._config.socket else self._routes()

    def _routes(self) -> dict[tuple[str, str], Route]:
        bytes_max = self._config.request_bytes_max
        s_max = BODY_S_MAX + self._config.commit_s_max + STALL_S
        return {
            ("POST", PATH): Route(self._accepted, bytes_max, s_max),
            ("POST", PATH_WINSTON): Route(self._ok, bytes_max, s_max),
        }

    async def batches(self, cursor: Cursor | None) -> AsyncIterator[tuple[list[Event], Cursor | None]]:
        """See agent.component.Source. The cursor holds the last idempotency keys; a batch without any leaves it as it is."""
        self._keys.restore(cursor)
        queue = self._queue = Queue()
        async with contextlib.AsyncExitStack() as stack:
            await self._listen(stack)
            stack.callback(self._pending.clear)
            stack.callback(queue.close)
            queue.open = True
            self._report.ok()
            yield [], None
            while True:
                await queue.filled.wait()
                events = queue.take()
                yield events, self._keys.cursor(queue.storing)
                # Resumed: durable.
                done = queue.stored()
                self._keys.add(done)
                for post in done:
                    if post.key is not None:
                        self._pending.pop(post.key, None)
                    post.settle(Fate.STORED)

    async def _listen(self, stack: contextlib.AsyncExitStack) -> None:
        if not self._config.socket:
            return
        address = Address(path=self._config.socket)
        server = HttpServer(
            (address,), Limits(CONNECTIONS_MAX), any_host=True, access=access_of(self._config), key="socket"
        )
        for (method, path), route in self._routes().items():
            server.add(method, path, route)
        await server.start()
        stack.push_async_callback(server.close)

    # ── a request ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _ok(self, request: Request) -> Response:
        return await self._answer(request, HTTPStatus.OK)

    async def _accepted(self, request: Request) -> Response:
        return await self._answer(request, HTTPStatus.ACCEPTED)

    async def _answer(self, request: Request, status: HTTPStatus) -> Response:
        self._report.count("requests")
        try:
            accepted, again = await self._take(request)
        except Refused as refused:
            self._report.count("refused_requests")
            if refused.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
                self._report.count("deferred_requests")
            raise
        if again:
            self._report.count("repeated_requests")
        headers = {"Idempotent-Replayed": "true"} if again else {}
        return Response(status, msgspec.json.encode({"accepted": accepted}), headers=headers)

    async def _take(self, request: Request) -> tuple[int, bool]:
        """How many events are durable now, and whether they were before. Raises Refused."""
        program = self._admit(request)
        lines, zipped = _form_of(request.headers)
        key = _key_of(request.headers, program)
        if self._queue is None or not self._queue.open:
            raise _later("the intake is not running just now", 2)
        body = await self._body(request)
        if zipped:
            body = _unzipped(body, self._config.request_bytes_max)
        print_ = "" if key is None else hashlib.blake2b(body, digest_size=6).hexdigest()
        known = None if key is None else self._known(key, print_)
        if isinstance(known, int):
            return known, True
        post = known
        if post is None:
            events = self._reader.events(body, lines=lines, program=program, reserved=self._reserved())
            if not events:
                return 0, False
            post = Post(events, len(body), key, print_)
            self._queue.put(post)
            if key is not None:
                self._pending[key] = post
        del body
        return await self._stored(post), known is not None

    def _admit(self, request: Request) -> str:
        """The name of the program; "" where programs need no key. Raises Refused: 401, 403."""
        if not request.is_local and not self._config.allow_remote:
            text = (
                f"only programs of this computer may post here; [sources.{self._name}] allow_remote = true lets others"
            )
            raise Refused(HTTPStatus.FORBIDDEN, text)
        if not self._config.programs:
            return ""
        try:
            return self._programs.name(request.headers.get("authorization", ""))
        except Refused:
            self._tell_of_refusal()
            raise

    def _tell_of_refusal(self) -> None:
        """An event each, at most REFUSALS_MAX a minute; the next minute's first one has the number of the others."""
        now_s = time.monotonic()
        if now_s - self._refusals_since_s >= 60:  # noqa: PLR2004  # a minute
            self._refusals_since_s, self._refusals = now_s, 0
        if self._queue is None or self._refusals >= REFUSALS_MAX:
            return
        self._refusals += 1
        now = now_us()
        text = "a program posted to the intake without the key of one that may"
        event = Event(now, now, "authentication.failure", self._name, target="intake", outcome="failure", message=text)
        event.data = {"attempts": self._programs.unknown}
        with contextlib.suppress(Refused):  # what cannot be taken just now is counted in the next
            self._queue.put(Post([event], 0, None, ""))
            self._programs.unknown = 0

    async def _body(self, request: Request) -> bytes:
        if "content-length" not in request.headers and "transfer-encoding" not in request.headers:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "there is no body; send one, with its Content-Length")
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_S_MAX):
                async for chunk in request.chunks:
                    size += len(chunk)
                    self._arriving_bytes += len(chunk)
                    # One alone may always come: what is refused now must be able to come later.
                    if self._arriving_bytes > max(BODIES_BYTES_MAX, size):
                        raise _too_many()
                    chunks.append(chunk)
        except TimeoutError:
            text = f"the body was not there within {BODY_S_MAX:g} s"
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, text) from None
        finally:
            self._arriving_bytes -= size
        return b"".join(chunks)

    def _known(self, key: str, print_: str) -> int | Post | None:
        """How many events were stored under this key, or the request that is on its way. Raises Refused where that was another."""
        found = self._keys.find(key)
        pending = self._pending.get(key)
        first = found[1] if found is not None else pending.print if pending is not None else print_
        if first != print_:
            text = "this Idempotency-Key came with another body before; nothing of this request was taken"
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, text, errors=[], errors_left_out=0)
        return found[0] if found is not None else pending

    async def _stored(self, post: Post) -> int:
        """How many events, once they are durable. Raises Refused (503) where they are not, in time."""
        post.waiting += 1
        try:
            async with asyncio.timeout(self._config.commit_s_max):
                # Its fate is the same for all that wait for it, and goes on when one of them gives up.
                fate = await asyncio.shield(post.fate)
        except TimeoutError:
            fate = Fate.UNKNOWN
        finally:
            post.waiting -= 1
        if fate is Fate.STORED:
            return len(post.events)
        if fate is Fate.NOT_TAKEN or (not post.waiting and self._withdraw(post)):
            raise _later("it was not stored in time", 5)
        self._report.count("unknown_requests")
        text = "it is being stored, and whether it will be is not known; send it again with the same Idempotency-Key"
        if post.key is None:
            text = "it is being stored, and whether it will be is not known; without an Idempotency-Key it may arrive twice"
        raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, text, {"Retry-After": "5"}, taken="unknown")

    def _withdraw(self, post: Post) -> bool:
        if self._queue is None or not self._queue.withdraw(post):
            return False
        if post.key is not None:
            self._pending.pop(post.key, None)
        return True


def _form_of(headers: Mapping[str, str]) -> tuple[bool, bool]:
    """Whether the body is lines, and whether it is gzip. Raises Refused (415)."""
    kind, _, parameters = headers.get("content-type", "").lower().partition(";")
    kind, charset = kind.strip(), re.search(r"charset\s*=\s*\"?([^\s;\"]+)", parameters)
    if kind not in _JSON and kind not in _LINES:
        text = "send application/json, or application/x-ndjson, as Content-Type"
        accepted = {"Accept-Post": "application/json, application/x-ndjson"}
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, text, accepted)
    if charset is not None and charset[1] not in ("utf-8", "utf8", "us-ascii"):
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be UTF-8")
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip", "x-gzip"):
        text = "send it as it is, or as gzip"
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, text, {"Accept-Encoding": "gzip, identity"})
    return kind in _LINES, coding != "identity"


def _key_of(headers: Mapping[str, str], program: str) -> str | None:
    """The idempotency key as it is remembered: each program has its own. Raises Refused (400)."""
    key = headers.get("idempotency-key")
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        text = f"the Idempotency-Key must be 1 to {KEY_CHARS_MAX} printable ASCII characters without blanks"
        raise Refused(HTTPStatus.BAD_REQUEST, text)
    return hashlib.blake2b(f"{program}\0{key}".encode(), digest_size=12).hexdigest()


def _unzipped(body: bytes, bytes_max: int) -> bytes:
    """What is in a gzip body. Raises Refused: 400, 413."""
    opened = zlib.decompressobj(wbits=31)
    try:
        plain = opened.decompress(body, bytes_max + 1)
    except zlib.error as error:
        raise Refused(HTTPStatus.BAD_REQUEST, f"the body is no gzip: {error}") from None
    if len(plain) > bytes_max:
        text = f"the body has more than {bytes_max} bytes when it is unpacked"
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text, bytes_max=bytes_max)
    if not opened.eof or opened.unused_data:
        raise Refused(HTTPStatus.BAD_REQUEST, "the body is no gzip: it is cut, or something follows it")
    return plain
