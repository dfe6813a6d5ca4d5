"""The local endpoint on a loop in a thread of its own, and a raw client for it: tests that speak to it byte by byte need no loop."""

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from agent.health import (
    AgentStatus,
    BufferStatus,
    Check,
    HandlerStatus,
    HealthConfig,
    HealthServer,
    Mounts,
    SourceStatus,
    Status,
    SyncStatus,
)

T = TypeVar("T")
ANSWER_S_MAX = 10.0


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.complaints: list[dict[str, Any]] = []
        """What the loop's exception handler was told: errors that nobody answered."""
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something there, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def close(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class Answer(NamedTuple):
    """An HTTP answer, read from a raw connection."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Its body."""
        return json.loads(self.body)


class Client:
    """A raw connection."""

    def __init__(self, address: Any) -> None:
        if isinstance(address, str):
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(ANSWER_S_MAX)
            self.sock.connect(address)
        else:
            self.sock = socket.create_connection(address, timeout=ANSWER_S_MAX)
        self._rest = b""

    def send(self, data: bytes) -> None:
        """As it is."""
        self.sock.sendall(data)

    def get(self, path: str, method: str = "GET", headers: str = "", body: bytes = b"") -> Answer:
        """A request and its answer."""
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        self.send(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}{headers}\r\n".encode() + body)
        return self.answer(method)

    def answer(self, method: str = "GET") -> Answer:
        """The next answer. Raises ConnectionError where the connection ends before."""
        while b"\r\n\r\n" not in self._rest:
            self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        status = int(first.split(" ", 2)[1])
        if status == 100 or method == "HEAD":
            return Answer(status, headers, b"")
        length = int(headers["content-length"])
        while len(self._rest) < length:
            self._more()
        body, self._rest = self._rest[:length], self._rest[length:]
        return Answer(status, headers, body)

    def is_closed(self) -> bool:
        """Whether the other side has ended it; waits for that."""
        try:
            while data := self.sock.recv(65_536):
                self._rest += data
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        return True

    def close(self) -> None:
        """End it."""
        self.sock.close()

    def _more(self) -> None:
        data = self.sock.recv(65_536)
        if not data:
            raise ConnectionResetError("closed by the server")
        self._rest += data


def example_status() -> Status:
    """A status with something in every place."""
    return Status(
        agent=AgentStatus(
            id="6f1c1a52-9d6b-4a9e-8f55-2f6f2f3f4c11", version="1", pid=1, started_us=1_000_000, config_file="/x.toml"
        ),
        sources={
            "auth": SourceStatus(kind="log", state="running", connected=True, events=5, last_event_us=2_000_000),
            "plc": SourceStatus(
                kind="modbus", state="waiting", gaps=1, last_error="no answer", last_error_us=2_500_000,
                trouble={"": "no answer"}, counts={"requests": 7, "Reads per s!": 2},
            ),
        },
        buffer=BufferStatus(events=3, bytes=900, oldest_us=1_500_000, bytes_max=1_000_000),
        sync=SyncStatus(state="waiting", url="https://c:8443", lag_s=1.5, failures=2, last_error="503"),
        handlers={"login_burst": HandlerStatus(kind="count", events=5, alerts=1, last_evaluated_us=2_000_000)},
        alerts=1,
    )  # fmt: skip


class Served(NamedTuple):
    """A running endpoint."""

    server: HealthServer
    loop: Loop
    checks: list[Check]
    clients: list[Client]

    @property
    def address(self) -> tuple[str, int]:
        """Where its TCP listener is."""
        bound = next(each for each in self.server.bound if not each.path)
        return bound.host, bound.port

    def client(self, address: Any = None) -> Client:
        """A connection to it; closed at the end, if not before."""
        client = Client(address or self.address)
        self.clients.append(client)
        return client


@contextmanager
def served(
    config: HealthConfig | None = None,
    status: Callable[[], Awaitable[Status]] | None = None,
    prepare: Callable[[HealthServer], None] = lambda _: None,
    mounts: Mounts | None = None,
) -> Iterator[Served]:
    """An endpoint on a free port."""

    async def example() -> Status:
        return example_status()

    loop, checks = Loop(), [Check("buffer", detail="stores")]
    server = HealthServer(
        config or HealthConfig(listen="127.0.0.1:0"), status or example, lambda: checks, mounts=mounts
    )
    prepare(server)
    running = Served(server, loop, checks, [])
    try:
        loop.do(server.start())
        yield running
    finally:
        loop.do(server.close())
        for client in running.clients:
            client.close()
        loop.close()
