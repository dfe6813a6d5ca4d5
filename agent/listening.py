"""Accept connections, and go on when descriptors run out.

At the limit of descriptors asyncio's own server logs a traceback for each attempt, a hundred times a second and more each second
(python/cpython#151615). This one closes a connection that can be missed, waits RETRY_S and logs one line a minute; the connections that
could not be accepted wait in the kernel.
"""

import asyncio
import errno
import logging
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress

log = logging.getLogger(__name__)

ACCEPT_MAX = 32
"""Connections accepted before the loop gets its turn."""
OPENING_MAX = 64
"""Connections between accept and protocol, as in a TLS handshake; more are closed."""
HANDSHAKE_S_MAX = 10.0
RETRY_S = 0.5
LOG_EVERY_S = 60.0
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def tcp_sockets(host: str, port: int, backlog: int) -> list[socket.socket]:
    """Return listening sockets at every address of a host. Raises OSError; then there are none."""
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
            sock.listen(backlog)
    except OSError:
        for sock in made:
            sock.close()
        raise
    return made


class Listener:
    """One listening socket. `make_room` closes a connection that can be missed, if there is one."""

    def __init__(
        self,
        sock: socket.socket,
        protocol: Callable[[], asyncio.BaseProtocol],
        make_room: Callable[[], object],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        sock.settimeout(0)
        self.sock = sock
        self._protocol = protocol
        self._make_room = make_room
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._logged_s = float("-inf")
        self._listen()

    def close(self) -> None:
        """Accept no more."""
        if self.sock.fileno() < 0:
            return
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self.sock)
        self.sock.close()
        for task in self._opening:
            task.cancel()

    def _listen(self) -> None:
        self._loop.add_reader(self.sock, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPT_MAX):
            try:
                sock, _ = self.sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._rest(error)
                    return
                continue  # of one connection, which is gone already
            if len(self._opening) >= OPENING_MAX:
                sock.close()
                continue
            sock.settimeout(0)
            task = self._loop.create_task(self._open(sock))
            self._opening.add(task)
            task.add_done_callback(lambda task, sock=sock: self._opened(task, sock))  # type: ignore[misc]

    def _rest(self, error: OSError) -> None:
        self._make_room()
        now_s = time.monotonic()
        if now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            where = self.sock.getsockname()
            log.error(
                "no connection can be accepted at %s: %s. Raise LimitNOFILE of the service", where, error.strerror
            )
        self._loop.remove_reader(self.sock)
        self._retry = self._loop.call_later(RETRY_S, self._listen)

    async def _open(self, sock: socket.socket) -> None:
        handshake_s = HANDSHAKE_S_MAX if self._tls is not None else None
        await self._loop.connect_accepted_socket(self._protocol, sock, ssl=self._tls, ssl_handshake_timeout=handshake_s)

    def _opened(self, task: "asyncio.Task[None]", sock: socket.socket) -> None:
        """Clean up where it failed: also a task that was cancelled before it ran, which never reached its own end."""
        self._opening.discard(task)
        if task.cancelled() or task.exception() is not None:
            with suppress(OSError):
                sock.close()
