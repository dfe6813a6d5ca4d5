"""A client without a key that means ill, as a process of its own: `python -m tests.faults.abuse KIND --port N`.

Each kind holds or spends something that others need: descriptors, memory, the account of bodies, the processor, the log. It goes on until
it is ended, a little slower than it could, so that the machine of a test measures the collector and not the race for its processor.
"""

import argparse
import asyncio
import base64
import contextlib
import os
import random
from collections.abc import Awaitable, Callable

from tests.faults.hostile import mutated

PAUSE_S = 0.02
KNOWN_KEY = "LINEWARDEN_ABUSE_KEY_ID"
GET = b"GET /v1/events?limit=5 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer lw_abcdefgh_none\r\n\r\n"
POST = (
    b"POST /v1/batches HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nAuthorization: Bearer lw_abcdefgh_none\r\n\r\nhello"
)
SIGN_IN = (
    b"POST /v1/session HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 35\r\n\r\n"
    b'{"name":"admin","password":"guess"}'
)
UPGRADE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
)


class Client:
    """Connects from one address. Connections that are held are closed by whoever they bother."""

    def __init__(self, port: int, address: str, seed: int) -> None:
        self.random = random.Random(seed)
        self._port = port
        self._address = address
        self.held: list[asyncio.StreamWriter] = []

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection. Raises OSError."""
        async with asyncio.timeout(5):
            return await asyncio.open_connection("127.0.0.1", self._port, local_addr=(self._address, 0))

    async def say(self, data: bytes, *, wait_s: float = 1.0) -> None:
        """One connection, one message, as much of an answer as comes, and the end."""
        reader, writer = await self.open()
        try:
            writer.write(data)
            async with asyncio.timeout(wait_s):
                await writer.drain()
                while await reader.read(65_536):
                    pass
        finally:
            writer.transport.abort()

    async def hold(self, data: bytes, count_max: int) -> None:
        """Begin a request, and keep it open; the oldest goes when there are many."""
        _, writer = await self.open()
        writer.write(data)
        self.held.append(writer)
        while len(self.held) > count_max:
            self.held.pop(0).transport.abort()


async def headers(client: Client) -> None:
    """Headers without end."""
    _, writer = await client.open()
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")
        for n in range(4_000):
            writer.write(b"X-%d: %s\r\n" % (n, b"a" * client.random.choice((1, 100, 8_000))))
            if n % 50 == 0:
                await writer.drain()
                await asyncio.sleep(0.001)
    finally:
        writer.transport.abort()


async def heads(client: Client) -> None:
    """Heads that are never ended, and now and then another byte of one."""
    await client.hold(client.random.choice((b"", b"G", b"POST /v1/batches HTTP/1.1\r\nHost", b"\r\n")), 500)
    client.random.choice(client.held).write(b"x")


async def bodies(client: Client) -> None:
    """Bodies that are never ended, of a key that is known by its id alone."""
    key = os.environ.get(KNOWN_KEY, "0" * 32)
    head = f"POST /v1/batches HTTP/1.1\r\nHost: x\r\nLinewarden-Signature: 1 {key} {'0' * 128}\r\nContent-Length: 16000000\r\n\r\n"
    await client.hold(head.encode() + bytes(client.random.choice((0, 1_000, 1_000_000))), 200)
    await asyncio.sleep(0.1)


async def posts(client: Client) -> None:
    """Requests with a key that is none, many on one connection, and answers that are not read."""
    kind = client.random.random()
    if kind < 0.5:
        await client.say(POST * client.random.choice((1, 8, 40)) + GET)
    elif kind < 0.8:
        await client.hold(b"GET /schema/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 30, 100)
    else:
        await client.say(
            b"POST /v1/batches HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 20_000
        )


async def sockets(client: Client) -> None:
    """WebSockets: without a key, cut in the middle, with frames that nobody asked for."""
    key = base64.b64encode(client.random.randbytes(16)) + b"\r\n\r\n"
    frames = b"".join(
        bytes([client.random.choice((0x01, 0x81, 0x89, 0x80, 0xFF)), 0x84]) + client.random.randbytes(8)
        for _ in range(500)
    )
    await client.say(
        client.random.choice((UPGRADE + key, UPGRADE, UPGRADE + key + frames, mutated(client.random, UPGRADE + key)))
    )


async def silence(client: Client) -> None:
    """Connections on which nothing is said."""
    await client.hold(b"", 1_000)


async def nonsense(client: Client) -> None:
    """What is nearly a request."""
    seed = client.random.choice((GET, POST, SIGN_IN, UPGRADE))
    await client.say(
        client.random.choice((mutated(client.random, seed), client.random.randbytes(client.random.randrange(1, 4_000))))
    )


async def doors(client: Client) -> None:
    """The routes that take something before anybody is known."""
    path = client.random.choice((b"/v1/enroll", b"/v1/session", b"/v1/session/oidc"))
    body = client.random.choice((b"{" * 60_000, b'{"name":"' + b"a" * 60_000 + b'"}', b"\xff" * 100, b"[" * 5_000))
    await client.say(
        b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
        % (path, len(body), body)
    )
    await client.say(SIGN_IN)


KINDS: dict[str, Callable[[Client], Awaitable[None]]] = {
    each.__name__: each for each in (headers, heads, bodies, posts, sockets, silence, nonsense, doors)
}


async def go_on(kind: str, client: Client) -> None:
    """Until cancelled."""
    while True:
        with contextlib.suppress(OSError, TimeoutError):
            await KINDS[kind](client)
        await asyncio.sleep(PAUSE_S)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    with contextlib.suppress(OSError):
        os.nice(10)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(go_on(options.kind, Client(options.port, options.address, options.seed)))


if __name__ == "__main__":
    main()
