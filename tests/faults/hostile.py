"""The other side with ill intent: bytes that no protocol allows, and a proxy that changes what real devices answer."""

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Self

from tests.ports import free_port

EDGES = [
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\r\n\r\n",
    b"%s%n",
    b"\xf0\x28\x8c\x28",
    b"\xed\xa0\x80",
    b"{" * 64,
    b"[" * 64,
    b'"',
]


BEGUN = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
"""A request without its end."""


def mutated(rng: random.Random, data: bytes) -> bytes:
    """The same with something wrong in it: bytes changed, cut, doubled, put in, a length made huge."""
    body = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(body) + 1)
        kind = rng.randrange(6)
        if kind == 0 and body:
            body[at % len(body)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del body[at : at + rng.randrange(1, 40)]
        elif kind == 2:
            body[at:at] = rng.choice(EDGES) * rng.randrange(1, 8)
        elif kind == 3:
            body[at:at] = body[at : at + rng.randrange(1, 200)]
        elif kind == 4:
            body[at : at + 4] = rng.choice(
                [b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"]
            )
        else:
            body[at:at] = rng.randbytes(rng.randrange(1, 300))
    return bytes(body)


class Door:
    """A TCP door that is knocked at: one connection a time, each with what it is not prepared for."""

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self.random = random.Random(seed)
        self.knocks = 0
        self.answers: dict[int, int] = {}
        """HTTP status → how often; 0: nothing, or nothing that is HTTP."""

    def knock(self, sent: bytes, *, wait_s: float = 0.5, half_close: bool = True) -> bytes:
        """Send it, and hear what is said. A server may take a half-closed connection for one that is gone."""
        self.knocks += 1
        heard = bytearray()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=5) as client:
            client.settimeout(wait_s)
            client.sendall(sent)
            if half_close:
                client.shutdown(socket.SHUT_WR)
            while len(heard) < 65_536 and (part := client.recv(65_536)):
                heard += part
        status = int(heard[9:12]) if heard[:5] == b"HTTP/" and heard[9:12].isdigit() else 0
        self.answers[status] = self.answers.get(status, 0) + 1
        return bytes(heard)

    def siege(self, seconds: float, *seeds: bytes) -> None:
        """Knock for so long, with variants of these."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            choice = self.random.random()
            seed = self.random.choice(seeds)
            self.knock(
                self.random.randbytes(self.random.randrange(1, 4_000)) if choice < 0.2 else mutated(self.random, seed)
            )


@contextlib.contextmanager
def slow_clients(port: int, count: int, begun: bytes = BEGUN) -> Iterator[list[socket.socket]]:
    """So many clients that begin a request and never end it."""
    clients: list[socket.socket] = []
    try:
        for _ in range(count):
            with contextlib.suppress(OSError):
                client = socket.create_connection(("127.0.0.1", port), timeout=5)
                client.sendall(begun)
                clients.append(client)
        yield clients
    finally:
        for client in clients:
            client.close()


class Liar:
    """A proxy in front of a real device that changes some of its answers. `share` of them, 0 … 1."""

    def __init__(self, target_port: int, *, seed: int, share: float = 0.3) -> None:
        self.port = free_port()
        self.share = share
        self.lies = 0
        self._target = target_port
        self._random = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
                there = asyncio.create_task(_carry(reader, far_writer, lambda data: data))
                try:
                    await _carry(far_reader, writer, self._lie)
                finally:
                    there.cancel()
                    far_writer.transport.abort()
        finally:
            writer.transport.abort()

    def _lie(self, data: bytes) -> bytes:
        if self._random.random() > self.share:
            return data
        self.lies += 1
        return mutated(self._random, data)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Callable[[bytes], bytes]) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(change(data))
            await writer.drain()
