"""What the OPC UA tests share: the press cell on a free port, a cable that can be cut, and a reader that commits like the buffer does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

from agent.component import Cursor, Report
from agent.simulator.opcua_server import NAMESPACE, NODES, PressCell
from agent.sources.opcua import ConfigOpcUa, OpcUaSource
from agent.sources.opcua_nodes import ConfigNode, Role
from agent.wire.event import Event
from tests.ports import free_port

ROLES: dict[str, Role] = {
    "Press.Cycles": "counter",
    "Press.Mode": "mode",
    "Setpoint.Speed": "setpoint",
    "Setpoint.Temp": "setpoint",
}


def node(name: str) -> str:
    return f"nsu={NAMESPACE};s={name}"


def all_nodes() -> tuple[ConfigNode, ...]:
    return tuple(
        ConfigNode(node=node(name), role=ROLES.get(name, "state" if name.endswith("Status") else "reading"))
        for name in NODES
    )


def config(url: str, **options: Any) -> ConfigOpcUa:
    usual: dict[str, Any] = {
        "security": "None",
        "nodes": all_nodes(),
        "publishing_interval_ms": 50.0,
        "dead_after_s": 2.0,
        "timeout_s": 2.0,
    }
    return ConfigOpcUa(url=url, **(usual | options))


@contextlib.asynccontextmanager
async def press_cell(*, port: int | None = None, **options: Any) -> AsyncIterator[PressCell]:
    cell = PressCell(port=port or free_port(), **options)
    await cell.start()
    try:
        yield cell
    finally:
        await cell.stop()


async def poll_until(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for is outside this process, or a condition over many events
            await asyncio.sleep(0.01)


class Reader:
    """Runs a source as the runner does: what it yields is committed when the generator is resumed."""

    def __init__(self, settings: ConfigOpcUa, cursor: Cursor | None = None) -> None:
        self.report = Report()
        self.source = OpcUaSource("cell", settings, self.report)
        self.cursor = cursor
        self.events: list[Event] = []
        self.errors: list[Exception] = []
        self.connections = 0
        self._task: asyncio.Task[None] | None = None

    async def run_once(self) -> None:
        self.connections += 1
        async with contextlib.aclosing(self.source.batches(self.cursor)) as batches:
            async for events, cursor in batches:
                self.events += events
                self.cursor = cursor or self.cursor

    async def _run(self) -> None:
        while True:
            try:
                await self.run_once()
            except Exception as error:  # noqa: BLE001 - what the runner does
                self.errors.append(error)
            await asyncio.sleep(0.1)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Cancel once, and be told of a source that takes no notice of it: it would read on for ever."""
        assert self._task is not None
        self._task.cancel()
        running = (await asyncio.wait({self._task}, timeout=20))[1]
        assert not running, f"the source was stopped and reads on: {self._task.get_stack()}, errors {self.errors[-3:]}"

    def values(self, name: str) -> list[Any]:
        return [event.data["value"] for event in self.events if event.target == name and "value" in event.data]

    def of_type(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.type == kind]

    async def until(self, condition: Callable[[], Any], timeout_s: float = 15.0) -> None:
        try:
            await poll_until(condition, timeout_s)
        except TimeoutError:
            raise AssertionError(
                f"not in {timeout_s} s; errors {self.errors[-3:]}, last events {self.events[-3:]}, {self.report}"
            ) from None


class Cable:
    """A TCP line to the server that can be cut (connections reset, new ones refused) or stalled (bytes go nowhere)."""

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self.connections = 0
        self._target = target_port
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.upstream = bytearray()
        """What the client sent."""

    @property
    def url(self) -> str:
        return f"opc.tcp://127.0.0.1:{self.port}/press"

    async def __aenter__(self) -> Self:
        await self.plug()
        return self

    async def plug(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    def stall(self) -> None:
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    async def __aexit__(self, *_: object) -> None:
        await self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        for source, sink, kept in ((reader, far_writer, self.upstream), (far_reader, writer, None)):
            task = asyncio.create_task(self._pump(source, sink, kept))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray | None) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await self._flowing.wait()
                if kept is not None:
                    kept += data
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


def truth(path: Path) -> list[dict[str, Any]]:
    import json

    return [json.loads(line) for line in path.read_text().splitlines()]
