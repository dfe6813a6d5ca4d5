"""A small HTTP/1.1 server: routes, bounded in everything, for programs and people on this computer.

What a client can do at the most, whoever it is:

    header of a request    HEADER_BYTES_MAX          431, then closed
    body                   the route's own bound     413, then closed
    one request            request_s_max             408 while it is being sent, 503 while it is being answered, then closed
    between two requests   idle_s_max                closed
    connections            connections_max           one that waits for its client gives way: of the user or address that has most
                                                     connections the one that is idle for longest, else the oldest request that is
                                                     not whole; if all are being answered: 503, closed
    requests of programs   connections_max less RESERVE, and SHARE of that for one user    503: health is always answered
    answer not taken       request_s_max             cut off
    descriptors            the process's limit       as connections; one line of log a minute (listening.py)

A web page that somebody has open on this computer must not reach it either: names other than this computer's are refused (a page can
make its own name point here), and so is whatever a browser posts.
"""

import asyncio
import ipaddress
import logging
import os
import socket
import stat
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import h11
import msgspec

from agent.component import ConfigError
from agent.health_peer import peer_of
from agent.listening import Listener, tcp_sockets

log = logging.getLogger(__name__)

HEADER_BYTES_MAX = 16_384
READ_BYTES = 65_536
BACKLOG = 128
CLOSE_S_MAX = 2.0
"""At the end, requests under way have so long."""
SOCKET_MODE = 0o660
LINGER_S_MAX = 1.0
"""What a refused client still sends is read so long, so that the answer reaches it before the connection is reset."""
LINGER_BYTES_MAX = 1_048_576
RESERVE = 8
"""One connection in so many is kept from what is mounted: from programs that wait for the disk."""
SHARE = 0.75
"""Of the others one user may have so much at once."""

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no time: closing resets the connection."""


class Address(NamedTuple):
    """Where to listen: host and port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this computer reaches it."""
        return bool(self.path) or _is_loopback(self.host)


@lru_cache(maxsize=256)
def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


@dataclass(frozen=True, slots=True)
class Limits:
    """See the module."""

    connections_max: int = 64
    request_s_max: float = 10.0
    idle_s_max: float = 60.0


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, whole."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


class Refused(Exception):
    """What was asked for cannot be answered as asked; becomes problem+json (RFC 9457). `members` are added to the object."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}
        self.members = members

    def response(self) -> Response:
        """As it goes out."""
        title = HTTPStatus(self.status).phrase
        problem = {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail, **self.members}
        return Response(self.status, msgspec.json.encode(problem), "application/problem+json", self.headers)


class Request:
    """One request. The body comes as it is read: `chunks`, or `body` for all of it, both within the route's bound."""

    def __init__(
        self, method: str, target: str, headers: Mapping[str, str], chunks: AsyncIterator[bytes], *, is_local: bool
    ) -> None:
        parts = urlsplit(target)
        self.method = method
        self.path = parts.path
        self.query = parts.query
        self.headers = headers
        """By lower-case name; of several of a name, the last."""
        self.chunks = chunks
        self.is_local = is_local
        """Whether it came in by an address, or a socket, that only this computer reaches."""

    async def body(self) -> bytes:
        """All of it. Raises Refused (413) beyond the route's bound."""
        return b"".join([chunk async for chunk in self.chunks])


Answer = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a method at a path. `request_s_max` takes the place of the server's where a request has to wait for the disk."""

    answer: Answer
    body_bytes_max: int = 0
    request_s_max: float | None = None


class Mounts:
    """Routes that outlive a server: by who answers them. Whichever server is up has them."""

    def __init__(self) -> None:
        self._routes: dict[str, dict[tuple[str, str], Route]] = {}

    def put(self, owner: str, routes: Mapping[tuple[str, str], Route]) -> None:
        """These and no others are the owner's: (method, path) → route."""
        self._routes[owner] = dict(routes)

    def remove(self, owner: str) -> None:
        """The owner answers no longer."""
        self._routes.pop(owner, None)

    def at(self, path: str) -> dict[str, Route]:
        """Method → route."""
        return {
            method: route
            for routes in self._routes.values()
            for (method, place), route in routes.items()
            if place == path
        }

    def paths(self) -> set[str]:
        """All of them."""
        return {path for routes in self._routes.values() for _, path in routes}


@dataclass(frozen=True, slots=True)
class SocketAccess:
    """Who may connect to a unix socket. `group`: its group id; None leaves the process's own."""

    mode: int = SOCKET_MODE
    group: int | None = None


class HttpServer:
    """See the module. Cold until `start`; `close` ends it. `key`: the setting that names the addresses."""

    def __init__(
        self,
        addresses: tuple[Address, ...],
        limits: Limits,
        *,
        any_host: bool = False,
        mounts: Mounts | None = None,
        access: SocketAccess | None = None,
        key: str = "health.listen",
    ) -> None:
        self.bound: list[Address] = []
        """Where it listens, with the ports that were found."""
        self._addresses = addresses
        self._limits = limits
        self._any_host = any_host or any(not each.is_local for each in addresses)
        self._routes: dict[str, dict[str, Route]] = {}
        self._mounts = mounts or Mounts()
        self._access = access or SocketAccess()
        self._key = key
        self._servers: list[Listener] = []
        self._sockets: list[tuple[Path, int]] = []
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._turned_away: set[asyncio.Task[None]] = set()
        self._programs: set[_Connection] = set()
        """Those whose request is being answered by what is mounted."""

    def add(self, method: str, path: str, route: Route) -> None:
        """Answer `method` at `path`. GET answers HEAD too."""
        self._routes.setdefault(path, {})[method] = route

    def remove(self, method: str, path: str) -> None:
        """Answer it no longer."""
        methods = self._routes.get(path, {})
        methods.pop(method, None)
        if not methods:
            self._routes.pop(path, None)

    async def start(self) -> None:
        """Listen. Raises ConfigError where an address cannot be had; then none is."""
        try:
            for address in self._addresses:
                await self._listen(address)
        except BaseException:
            await self.close()
            raise

    async def _listen(self, address: Address) -> None:
        try:
            if address.path:
                sock, inode = _unix_socket(Path(address.path), self._access)
                self._sockets.append((Path(address.path), inode))
                self._servers.append(Listener(sock, self._protocol, self._make_room))
                self.bound.append(address)
            else:
                for sock in await asyncio.to_thread(tcp_sockets, address.host, address.port, BACKLOG):
                    self._servers.append(Listener(sock, self._protocol, self._make_room))
                    self.bound.append(Address(*sock.getsockname()[:2]))
        except OSError as error:
            reason = error.strerror or str(error)
            remedy = "Is another agent running? Otherwise choose another address, or end what listens there (ss -ltnp)."
            raise ConfigError(f"cannot listen on {address}: {reason}", key=self._key, remedy=remedy) from None

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(READ_BYTES), self._serve)

    async def close(self) -> None:
        """Listen no more; requests under way may end, for CLOSE_S_MAX."""
        for server in self._servers:
            server.close()
        for task, connection in list(self._connections.items()):
            if connection.idle:
                task.cancel()
        tasks = [*self._connections, *self._turned_away]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSE_S_MAX)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        for path, inode in self._sockets:
            with suppress(OSError):
                if path.stat().st_ino == inode:
                    path.unlink()
        self._servers, self._sockets, self.bound = [], [], []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:  # a connection is always served by a task of its own
            return
        connection = _Connection(reader, writer, self._limits)
        try:
            if len(self._connections) >= self._limits.connections_max and not self._make_room():
                await self._turn_away(task, connection)
            else:
                self._connections[task] = connection
                await connection.run(self._answer)
        except asyncio.CancelledError:
            # By `close` or `_make_room`: the task is this connection's own, and nobody waits for its result.
            connection.abort()
        finally:
            self._connections.pop(task, None)
            self._turned_away.discard(task)
            with suppress(OSError):
                await writer.wait_closed()

    async def _turn_away(self, task: asyncio.Task[None], connection: "_Connection") -> None:
        # Being polite takes a connection too: beyond as many again, they are cut without a word.
        if len(self._turned_away) >= self._limits.connections_max:
            connection.abort()
        else:
            self._turned_away.add(task)
            await connection.turn_away()

    def _make_room(self) -> bool:
        """Close a connection that waits for its client, of the peer that has most. Whether there was one."""
        waiting = [(each, task) for task, each in self._connections.items() if each.waits_for_client()]
        if not waiting:
            return False
        peers = Counter(each.peer() for each in self._connections.values())
        most = max(peers[each.peer()] for each, _ in waiting)
        _, task = min(
            (pair for pair in waiting if peers[pair[0].peer()] == most),
            key=lambda pair: (not pair[0].idle, pair[0].since),
        )
        task.cancel()
        self._connections.pop(task)
        return True

    def _take_turn(self, connection: "_Connection") -> None:
        """Count a request of a program. Raises Refused where there are too many."""
        places = self._limits.connections_max - self._limits.connections_max // RESERVE
        if len(self._programs) >= places:
            raise Refused(
                HTTPStatus.SERVICE_UNAVAILABLE, "too many requests are waiting", {"Retry-After": "1"}, taken=False
            )
        if len(self._programs) >= SHARE * places:
            mine = sum(each.peer() == connection.peer() for each in self._programs)
            if mine >= SHARE * places:
                text = "too many requests of this user are waiting"
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, text, {"Retry-After": "1"}, taken=False)
        self._programs.add(connection)

    async def _answer(self, connection: "_Connection", head: h11.Request) -> Response:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        method, target = head.method.decode("latin-1"), head.target.decode("latin-1")
        try:
            route = self._route(method, _path(target), headers)
            if _path(target) not in self._routes:
                self._take_turn(connection)
            chunks = connection.body(route.body_bytes_max)
            request = Request(method, target, headers, chunks, is_local=connection.is_local())
            if int(headers.get("content-length", "0")) > route.body_bytes_max:
                return _too_large(route.body_bytes_max).response()
            limit_s = route.request_s_max or self._limits.request_s_max
            async with asyncio.timeout(limit_s):
                return await route.answer(request)
        except Refused as refused:
            return refused.response()
        except TimeoutError:
            text = f"it took longer than {limit_s:g} s"
            if not connection.request_is_whole():
                return Refused(HTTPStatus.REQUEST_TIMEOUT, f"the body was not there: {text}").response()
            return Refused(HTTPStatus.SERVICE_UNAVAILABLE, text, {"Retry-After": "5"}).response()
        except (h11.RemoteProtocolError, ConnectionError, asyncio.IncompleteReadError):
            raise
        except Exception:
            log.exception("defect in %s %s", method, _path(target))
            text = "the agent has a defect here; its log says where"
            return Refused(HTTPStatus.INTERNAL_SERVER_ERROR, text).response()
        finally:
            self._programs.discard(connection)

    def _route(self, method: str, path: str, headers: Mapping[str, str]) -> Route:
        host = headers.get("host", "")
        if not self._any_host and host and not _is_here(host):
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, f"this is not {host[:80]}; ask 127.0.0.1 or localhost")
        methods = self._routes.get(path) or self._mounts.at(path)
        if not methods:
            known = ", ".join(sorted({*self._routes, *self._mounts.paths()}))
            raise Refused(HTTPStatus.NOT_FOUND, f"there is nothing here; there is {known}")
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            allowed = sorted({*methods, *(("HEAD",) if "GET" in methods else ())})
            text = f"{path} takes {', '.join(allowed)}"
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, text, {"Allow": ", ".join(allowed)})
        if method not in ("GET", "HEAD") and "origin" in headers:
            raise Refused(HTTPStatus.FORBIDDEN, "a web page may not send anything here")
        return route


def _too_large(bound: int) -> Refused:
    return Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {bound} bytes", bytes_max=bound)


def _path(target: str) -> str:
    try:
        return urlsplit(target).path
    except ValueError:
        return target


@lru_cache(maxsize=256)
def _is_here(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    name = name.strip("[]").lower()
    with suppress(ValueError):
        return bool(ipaddress.ip_address(name))
    return name == "localhost"


def _unix_socket(path: Path, access: SocketAccess) -> tuple[socket.socket, int]:
    """A listening socket, in place of one that a dead process left, and its inode. Raises OSError where a living one has it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            _remove_dead(path)
        sock.bind(str(path))
        _give(path, access.group)
        path.chmod(access.mode)
        sock.listen(BACKLOG)
        return sock, path.stat().st_ino
    except OSError:
        sock.close()
        raise


def _give(path: Path, group: int | None) -> None:
    if group is None:
        return
    try:
        os.chown(path, -1, group)
    except OSError as error:
        path.unlink()
        # systemd's filter of system calls answers with the same error as the kernel.
        text = f"it cannot be given to its group ({error.strerror}): the agent's user must be in it, and its unit must allow chown"
        raise OSError(error.errno, text) from None


def _remove_dead(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise OSError(0, "somebody listens there")


class _Connection:
    """One connection: its requests, one after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: Limits) -> None:
        self.idle = True
        self.since = asyncio.get_running_loop().time()
        """Since when it is idle, or its request began."""
        self._has_body = False
        self._peer = ""
        self._reader = reader
        self._writer = writer
        # Nothing is left to the kernel's patience: `drain` returns when all of the answer was taken.
        writer.transport.set_write_buffer_limits(0)
        self._limits = limits
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_BYTES_MAX)

    def request_is_whole(self) -> bool:
        """Whether all of it has been read. What is read here is not read again."""
        with suppress(h11.RemoteProtocolError):
            while self._http.their_state is h11.SEND_BODY and isinstance(self._http.next_event(), h11.EndOfMessage):
                pass
        return self._http.their_state is h11.DONE

    def waits_for_client(self) -> bool:
        """Whether it is idle, or the rest of its request is not here."""
        states = (h11.IDLE, h11.SEND_BODY) if self._has_body else (h11.IDLE,)
        return self.idle or self._http.their_state in states

    def peer(self) -> str:
        """The user or the address on the other side."""
        self._peer = self._peer or peer_of(self._writer.get_extra_info("socket"))
        return self._peer

    def is_local(self) -> bool:
        """Whether it came in by an address that only this computer reaches."""
        address = self._writer.get_extra_info("sockname")
        return not isinstance(address, tuple) or _is_loopback(str(address[0]))

    def abort(self) -> None:
        """Cut it, with whatever the kernel still holds for it."""
        sock = self._writer.get_extra_info("socket")
        if sock is not None:
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._writer.transport.abort()

    async def turn_away(self) -> None:
        """There are too many already."""
        refused = Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections", {"Retry-After": "5"})
        with suppress(ConnectionError, TimeoutError, h11.LocalProtocolError):
            async with asyncio.timeout(LINGER_S_MAX):
                await self._send(refused.response(), h11.Request(method="GET", target="/", headers=[("Host", "")]))
        await self._end()

    async def run(self, answer: Callable[["_Connection", h11.Request], Awaitable[Response]]) -> None:
        """Until it closes, is cut, or breaks the protocol."""
        try:
            while await self._wait_for_request() and await self._serve_one(answer):
                self._http.start_next_cycle()
        except (ConnectionError, TimeoutError):
            self.abort()
        else:
            await self._end()

    async def _wait_for_request(self) -> bool:
        """False where the client has gone or stays silent for too long."""
        if self._http.trailing_data[0]:
            return True
        self.idle, self.since = True, asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._limits.idle_s_max):
                data = await self._reader.read(READ_BYTES)
        except TimeoutError:
            return False
        finally:
            self.idle, self.since = False, asyncio.get_running_loop().time()
        if data:
            self._http.receive_data(data)
        return bool(data)

    async def _serve_one(self, answer: Callable[["_Connection", h11.Request], Awaitable[Response]]) -> bool:
        """One request and its answer. Whether the connection may be used for another."""
        head: h11.Request | None = None
        try:
            async with asyncio.timeout(self._limits.request_s_max):
                event = await self._event()
            if not isinstance(event, h11.Request):
                return False
            head = event
            self._has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in head.headers)
            response = await answer(self, head)
        except h11.RemoteProtocolError as error:
            response = Refused(error.error_status_hint, f"this is not HTTP/1.1 as it should be: {error}").response()
        except TimeoutError:
            text = f"the request was not there within {self._limits.request_s_max:g} s"
            response = Refused(HTTPStatus.REQUEST_TIMEOUT, text).response()
        async with asyncio.timeout(self._limits.request_s_max):
            await self._send(response, head)
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _event(self) -> Any:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self._http.they_are_waiting_for_100_continue:
                await self._write(h11.InformationalResponse(status_code=100, headers=[]))
            self._http.receive_data(await self._reader.read(READ_BYTES))

    async def body(self, bytes_max: int) -> AsyncIterator[bytes]:
        """The body, piece by piece. Raises Refused (413) beyond the bound."""
        size = 0
        while True:
            event = await self._event()
            if isinstance(event, h11.Data):
                size += len(event.data)
                if size > bytes_max:
                    raise _too_large(bytes_max)
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise ConnectionResetError("the client went away in the middle of its body")

    async def _send(self, response: Response, head: h11.Request | None) -> None:
        """The answer. What is left of the request is not read: then the connection ends with this."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        headers = [
            ("Date", formatdate(usegmt=True)),
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            *response.headers.items(),
        ]
        if not self.request_is_whole():
            headers.append(("Connection", "close"))
        events: list[Any] = [h11.Response(status_code=response.status, headers=headers)]
        if response.body and (head is None or head.method != b"HEAD"):
            events.append(h11.Data(data=response.body))
        await self._write(*events, h11.EndOfMessage())

    async def _write(self, *events: Any) -> None:
        """Write them at once."""
        data = b"".join([self._http.send(event) or b"" for event in events])
        if data:
            self._writer.write(data)
            await self._writer.drain()

    async def _end(self) -> None:
        """Close in order: say that no more comes, hear the rest for a moment, then go. May be cut short for somebody else."""
        self.idle, self.since = True, 0.0
        try:
            async with asyncio.timeout(LINGER_S_MAX):
                if self._writer.can_write_eof():
                    self._writer.write_eof()
                size = 0
                while (data := await self._reader.read(READ_BYTES)) and size < LINGER_BYTES_MAX:
                    size += len(data)
        except (OSError, TimeoutError, RuntimeError):
            self.abort()
        finally:
            self._writer.close()
