"""What the Modbus tests share: a device that misbehaves as told, a watch over everything that goes over the wire, a reader that commits."""

import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from agent.component import Cursor, Report
from agent.sources.modbus import ConfigModbus, ModbusSource
from agent.sources.modbus_link import crc16
from agent.sources.modbus_points import ConfigPoint
from agent.wire.event import Event
from tests.ports import free_port

READING = {1, 2, 3, 4, 43}
"""The only function codes that may ever leave the agent."""
TABLES = {1: "coil", 2: "discrete", 3: "holding", 4: "input"}


def point(name: str, address: int, **options: Any) -> ConfigPoint:
    return ConfigPoint(name=name, address=address, **options)


def config(url: str, *points: ConfigPoint, **options: Any) -> ConfigModbus:
    usual: dict[str, Any] = {"interval_s": 0.05, "timeout_s": 0.4, "points": points}
    return ConfigModbus(url=url, **(usual | options))


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked."""

    unit: int
    function: int
    address: int
    count: int


def answered(request: Request, cells: dict[int, int]) -> bytes:
    """The answer to a read, as the specification has it, function code first."""
    wanted = range(request.address, request.address + request.count)
    if any(at not in cells for at in wanted):
        return bytes((request.function | 0x80, 2))
    values = [cells[at] for at in wanted]
    if request.function > 2:
        return bytes((request.function, len(values) * 2)) + struct.pack(f">{len(values)}H", *values)
    packed = sum(value << at for at, value in enumerate(values)).to_bytes((len(values) + 7) // 8, "little")
    return bytes((request.function, len(packed))) + packed


@dataclass
class Device:
    """A gateway with units behind it, on a port. `framing` is how it speaks; each of the other fields is a way to misbehave."""

    framing: Literal["tcp", "rtu"] = "tcp"
    port: int = field(default_factory=free_port)
    memory: dict[tuple[int, str], dict[int, int]] = field(default_factory=dict)
    silent: set[int] = field(default_factory=set)
    exceptions: dict[int, int] = field(default_factory=dict)
    identity: dict[int, str] = field(default_factory=dict)
    delay_s: Callable[[Request], float] = lambda _: 0.0
    body: Callable[[Request, bytes], bytes | None] = lambda _, body: body
    """Another answer than the right one (function code first); None: none."""
    frame: Callable[[Request, bytes], bytes] = lambda _, frame: frame
    """Other bytes than the right frame."""
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    connected_s: float = 0.0
    open_now: int = 0
    open_most: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"{'tcp' if self.framing == 'tcp' else 'rtu+tcp'}://127.0.0.1:{self.port}"

    def set(self, unit: int, table: str, address: int, *values: int) -> None:
        self.memory.setdefault((unit, table), {}).update(enumerate(values, address))

    async def __aenter__(self) -> Self:
        await self.plug()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.unplug()
        assert {request.function for request in self.requests} <= READING, "something other than a read was sent"

    async def plug(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, reuse_address=True)

    async def unplug(self) -> None:
        """Nobody listens any more, and every connection ends."""
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.connected_s = time.monotonic()
        self.open_now += 1
        self.open_most = max(self.open_most, self.open_now)
        try:
            while True:
                head = await self._request(reader)
                answer = asyncio.create_task(self._respond(writer, *head))
                self._tasks.add(answer)
                answer.add_done_callback(self._tasks.discard)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open_now -= 1
            self._tasks.discard(task)
            writer.close()

    async def _request(self, reader: asyncio.StreamReader) -> tuple[Request, int]:
        transaction = 0
        if self.framing == "tcp":
            transaction, _, length, unit = struct.unpack(">HHHB", await reader.readexactly(7))
            pdu = await reader.readexactly(length - 1)
        else:
            unit, function = await reader.readexactly(2)
            rest = await reader.readexactly(5 if function == 43 else 6)
            pdu = bytes((function,)) + rest[:-2]
            assert crc16(bytes((unit,)) + pdu) == rest[-2:]
        address, count = struct.unpack(">HH", pdu[1:5]) if pdu[0] != 43 else (0, 0)
        request = Request(unit, pdu[0], address, count)
        self.requests.append(request)
        return request, transaction

    async def _respond(self, writer: asyncio.StreamWriter, request: Request, transaction: int) -> None:
        if request.unit in self.silent:
            return
        if (delay_s := self.delay_s(request)) > 0:
            await asyncio.sleep(delay_s)
        body = self.body(request, self._right_answer(request))
        if body is None or writer.is_closing():
            return
        if self.framing == "tcp":
            frame = struct.pack(">HHHB", transaction, 0, len(body) + 1, request.unit) + body
        else:
            frame = bytes((request.unit,)) + body
            frame += crc16(frame)
        writer.write(self.frame(request, frame))

    def _right_answer(self, request: Request) -> bytes:
        if request.unit in self.exceptions:
            return bytes((request.function | 0x80, self.exceptions[request.unit]))
        if request.function == 43:
            if not self.identity:
                return bytes((0xAB, 1))
            objects = b"".join(bytes((number, len(text))) + text.encode() for number, text in self.identity.items())
            return bytes((43, 14, 2, 2, 0, 0, len(self.identity))) + objects
        return answered(request, self.memory.get((request.unit, TABLES[request.function]), {}))


class Wire:
    """A cable to a Modbus TCP server that decodes every request that goes over it; can be cut and plugged in again."""

    def __init__(self, port: int) -> None:
        self.port = free_port()
        self.functions: list[int] = []
        self._to = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.plug()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    async def plug(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port, reuse_address=True)

    async def cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        far: asyncio.StreamWriter | None = None
        try:
            from_far, far = await asyncio.open_connection("127.0.0.1", self._to)
            back = asyncio.create_task(self._back(from_far, writer))
            self._tasks.add(back)
            while True:
                head = await reader.readexactly(7)
                _, protocol, length, _ = struct.unpack(">HHHB", head)
                assert protocol == 0
                body = await reader.readexactly(length - 1)
                self.functions.append(body[0])
                far.write(head + body)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            if far is not None:
                far.close()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()


async def poll_until(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for is outside this process, or a condition over many events
            await asyncio.sleep(0.01)


class Reader:
    """Runs a source as the runner does: what it yields is committed when the generator is resumed."""

    def __init__(self, settings: ConfigModbus, cursor: Cursor | None = None) -> None:
        self.report = Report()
        self.source = ModbusSource("plc", settings, self.report)
        self.cursor = cursor
        self.events: list[Event] = []
        self.errors: list[Exception] = []
        self._task: asyncio.Task[None] | None = None

    async def _run(self) -> None:
        while True:
            try:
                async with contextlib.aclosing(self.source.batches(self.cursor)) as batches:
                    async for events, cursor in batches:
                        self.events += events
                        self.cursor = cursor or self.cursor
            except Exception as error:  # noqa: BLE001 - what the runner does
                self.errors.append(error)
            await asyncio.sleep(0.1)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task], timeout=5)
        assert self._task.done(), "it does not stop within 5 s"

    def values(self, name: str) -> list[Any]:
        return [event.data["value"] for event in self.events if event.target == name and "value" in event.data]

    def of_type(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.type == kind]

    async def until(self, condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
        try:
            await poll_until(condition, timeout_s)
        except TimeoutError:
            raise AssertionError(
                f"not in {timeout_s} s; errors {self.errors[-3:]}, last events {self.events[-3:]}, {self.report}"
            ) from None


@contextlib.asynccontextmanager
async def program(
    *command: str, ready: str | None = None, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program that runs beside the test; with `ready` once it has said so. Ended with the test."""
    import os

    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | environment,
    )
    assert process.stdout is not None
    try:
        if ready is not None:
            async with asyncio.timeout(60):
                while ready not in (line := (await process.stdout.readline()).decode()):
                    assert line, f"{command[0]} ended"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@contextlib.asynccontextmanager
async def serial_line(folder: Path, far: str | None = None) -> AsyncIterator[tuple[Path, Path]]:
    """Two ends of a serial line without hardware. With `far` (an address of socat) the other end is that."""
    import os

    near, other = folder / "near", folder / "far"
    ends = [f"pty,raw,echo=0,link={near}", far or f"pty,raw,echo=0,link={other}"]
    async with program("socat", *ends):
        await poll_until(lambda: near.exists() and (far or other.exists()))
        # A port that nobody holds open would end socat when the agent closes it for a moment.
        held = [os.open(end, os.O_RDWR | os.O_NOCTTY) for end in ([near] if far else [near, other])]
        try:
            yield near, other
        finally:
            for number in held:
                os.close(number)
