"""Listen for connections: admit or refuse each before TLS, and go on when descriptors run out.

uvicorn's own listener counts a connection after its TLS handshake, and at the limit of descriptors the event loop logs a traceback for each
attempt. This one counts when it accepts, gives a handshake HANDSHAKE_S, and at the limit closes the most dispensable connection, waits
RETRY_S and logs one line a minute.
"""

import asyncio
import contextlib
import errno
import logging
import resource
import socket
import sys
import time
from typing import Any

import uvicorn

from collector.http_admission import Admission, Slot
from collector.http_protocol import BoundedHttp, Deadlines, problem_bytes

_log = logging.getLogger("linewarden.collector")

START_FAILED = 3
"""Exit code of a server that could not listen, as uvicorn's."""
ACCEPT_MAX = 64
"""Connections accepted before the loop gets its turn."""
RETRY_S = 0.2
LOOK_S = 1.0
HANDSHAKE_S = 10.0
LOG_EVERY_S = 60.0
DESCRIPTORS_WANTED = 65_536
DESCRIPTORS_RESERVED = 256
"""For the database, files and everything that is no connection of a client."""
CONNECTIONS_MIN = 64
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
"""A peer that is gone without a word is noticed after two minutes."""
_NOISE = ("Invalid HTTP request received.", "Unsupported upgrade request.")
"""What any client can cause by the thousand is counted in `Admission.counts`, and is no line of log."""
_BUSY = problem_bytes(503, "busy", "too many connections are open; come again")


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """Whether a line of uvicorn's log says something that a client cannot cause at will."""
    return not str(record.msg).startswith(_NOISE)


def connections_max(wanted: int) -> int:
    """Return how many connections there can be, after raising the limit of descriptors as far as allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < DESCRIPTORS_WANTED and soft != resource.RLIM_INFINITY:
        soft = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_WANTED)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY or soft >= wanted + DESCRIPTORS_RESERVED:
        return wanted
    fits = max(
        CONNECTIONS_MIN, min(soft - DESCRIPTORS_RESERVED, soft // 2 if soft < 2 * DESCRIPTORS_RESERVED else soft)
    )
    _log.warning(
        "server.connections_max is %d, and the limit of %d descriptors allows %d: raise LimitNOFILE", wanted, soft, fits
    )
    return fits


class _Accepted:
    """A connection before its protocol has it: above all during the TLS handshake."""

    def __init__(self) -> None:
        self.protocol: BoundedHttp | None = None
        self.task: asyncio.Task[None] | None = None
        self._since = time.monotonic()

    def cut(self) -> None:
        """Close at once."""
        if self.protocol is not None:
            self.protocol.cut()
        if self.task is not None:
            self.task.cancel()

    def look(self, now: float) -> None:
        """The handshake has a deadline of its own; this is for where it does not hold."""
        if now - self._since > 2 * HANDSHAKE_S:
            self.cut()


class Listener:
    """One listening socket. Looks like an asyncio.Server to uvicorn's shutdown."""

    def __init__(self, sock: socket.socket, server: "BoundedServer") -> None:
        self._sock = sock
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._logged = float("-inf")
        self._retry: asyncio.TimerHandle | None = None
        self._listen()

    def close(self) -> None:
        """Accept no more."""
        if self._sock.fileno() < 0:
            return
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        for task in self._tasks:
            task.cancel()

    async def wait_closed(self) -> None:
        """Return when nothing is being accepted."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _listen(self) -> None:
        self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPT_MAX):
            try:
                sock, address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._rest(error)
                    return
                continue  # of one connection that is gone already
            self._enter(sock, str(address[0]))

    def _rest(self, error: OSError) -> None:
        """Make room, and come again: the connection that could not be accepted waits in the kernel."""
        admission = self._server.admission
        admission.counts["descriptors"] += 1
        admission.relieve()
        now = time.monotonic()
        if now - self._logged >= LOG_EVERY_S:
            self._logged = now
            _log.error(
                "no connection can be accepted: %s; %d are open. Raise LimitNOFILE", error.strerror, len(admission)
            )
        self._loop.remove_reader(self._sock)
        self._retry = self._loop.call_later(RETRY_S, self._listen)

    def _enter(self, sock: socket.socket, address: str) -> None:
        sock.settimeout(0)
        accepted = _Accepted()
        slot = self._server.admission.enter(address, accepted)
        if slot is None:
            if self._server.config.ssl is None:
                with contextlib.suppress(OSError):
                    sock.send(_BUSY)
            sock.close()
            return
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEP_ALIVE:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        accepted.task = task = self._loop.create_task(self._connect(sock, slot, accepted))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._connected(task, sock, slot))

    async def _connect(self, sock: socket.socket, slot: Slot, accepted: _Accepted) -> None:
        config = self._server.config
        arguments: dict[str, Any] = {"ssl_handshake_timeout": HANDSHAKE_S} if config.ssl is not None else {}

        def protocol() -> BoundedHttp:
            accepted.protocol = self._server.protocol(slot)
            return accepted.protocol

        await self._loop.connect_accepted_socket(protocol, sock=sock, ssl=config.ssl, **arguments)

    def _connected(self, task: "asyncio.Task[None]", sock: socket.socket, slot: Slot) -> None:
        """Clean up where it failed: also a task that was cancelled before it ran, which never reached its own end."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is None:
            return
        # No client of ours, or none any more: nothing to log.
        self._server.admission.counts["handshake"] += 1
        self._server.admission.leave(slot)
        sock.close()


class BoundedServer(uvicorn.Server):
    """uvicorn behind the bounds of `http_admission` and `http_protocol`."""

    def __init__(self, config: uvicorn.Config, admission: Admission, deadlines: Deadlines) -> None:
        super().__init__(config)
        self.admission = admission
        self._deadlines = deadlines
        self._looking: asyncio.TimerHandle | None = None
        log = logging.getLogger("uvicorn.error")
        log.setLevel(logging.WARNING)  # below that, a line for each WebSocket that is refused
        log.addFilter(is_worth_a_line)

    def protocol(self, slot: Slot) -> BoundedHttp:
        """Return the protocol of a new connection."""
        return BoundedHttp(
            admission=self.admission,
            slot=slot,
            deadlines=self._deadlines,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )

    async def startup(self, sockets: Any = None) -> None:
        """Start the application, then listen."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(START_FAILED)
        try:
            listening = sockets or _listening(self.config.host, self.config.port, self.config.backlog)
        except OSError as error:
            _log.error("cannot listen on %s:%d: %s", self.config.host, self.config.port, error.strerror or error)
            await self.lifespan.shutdown()
            sys.exit(START_FAILED)
        self.servers = [Listener(sock, self) for sock in listening]  # type: ignore[misc]
        self._look()
        self.started = True
        _log.info("listening on %s:%d", self.config.host, self.config.port)

    def _look(self) -> None:
        self._looking = asyncio.get_running_loop().call_later(LOOK_S, self._look)
        self.admission.look()

    async def shutdown(self, sockets: Any = None) -> None:
        """End what runs."""
        await super().shutdown(sockets)
        if self._looking is not None:
            self._looking.cancel()


def _listening(host: str, port: int, backlog: int) -> list[socket.socket]:
    """Listening sockets at every address of a name. Raises OSError."""
    made: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            made.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.settimeout(0)
            sock.listen(backlog)
    except OSError:
        for sock in made:
            sock.close()
        raise
    return made
