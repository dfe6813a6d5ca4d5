"""The network watch: a cable that decodes every request proves that nothing ever leaves the agent that could change a machine.

It decodes by itself, from the bytes, and knows nothing of the agent's own guards. Over it go the real daemon, killed, cut off, reloaded
and refused, and every command that speaks to a machine. A request that it cannot decode is taken for a write.
"""

import asyncio
import contextlib
import json
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import pytest
from asyncua import ua as _ua
from asyncua.common.utils import Buffer
from asyncua.ua import ua_binary

from agent.simulator.opcua_server import NAMESPACE
from agent.wire.event import Event
from tests.agent_process import Agent, modbus_source
from tests.collector_process import ROOT
from tests.integration.modbus_line import READING, Wire
from tests.integration.opcua_line import poll_until, press_cell
from tests.integration.source_drivers import stored
from tests.integration.test_modbus_counterparts import plc
from tests.ports import free_port

ua: Any = _ua
pytestmark = pytest.mark.timeout(200)

CHANGES_NOTHING = {
    "CreateSession", "ActivateSession", "CloseSession", "GetEndpoints", "OpenSecureChannel", "CloseSecureChannel", "Read", "Browse",
    "BrowseNext", "CreateSubscription", "CreateMonitoredItems", "DeleteSubscriptions", "TransferSubscriptions", "Publish", "Republish",
}  # fmt: skip
"""Services of OPC UA that read, or concern nothing but the client's own session and subscriptions."""
CONDITION_REFRESH = (f"i={ua.ObjectIds.ConditionType}", f"i={ua.ObjectIds.ConditionType_ConditionRefresh}")
"""The one method that may be called: makes the server send its present alarms to the caller again."""
_SERVICES = {
    getattr(ua.ObjectIds, name): name.removesuffix("Request_Encoding_DefaultBinary")
    for name in dir(ua.ObjectIds)
    if name.endswith("Request_Encoding_DefaultBinary")
}


class Decoded:
    """What one connection sent, decoded chunk by chunk. `told` gets (service, methods called)."""

    def __init__(self, told: list[tuple[str, list[tuple[str, str]]]]) -> None:
        self._told = told
        self._rest = b""
        self._chunks: dict[int, bytes] = {}

    def feed(self, data: bytes) -> None:
        self._rest += data
        while len(self._rest) >= 8:
            size = int.from_bytes(self._rest[4:8], "little")
            assert 8 <= size < 2**24, "this is no OPC UA"
            if len(self._rest) < size:
                return
            message, self._rest = self._rest[:size], self._rest[size:]
            self._message(message)

    def _message(self, message: bytes) -> None:
        kind, final = message[:3], message[3:4]
        if kind == b"HEL":
            return
        if kind == b"OPN":
            self._told.append(("OpenSecureChannel", []))
            return
        assert kind in (b"MSG", b"CLO"), f"{kind!r} is no message of a client"
        request_id = int.from_bytes(message[20:24], "little")
        body = self._chunks.pop(request_id, b"") + message[24:]
        if final == b"C":
            self._chunks[request_id] = body
        elif final == b"F":
            self._told.append(self._request(body))
        else:
            assert final == b"A"

    @staticmethod
    def _request(body: bytes) -> tuple[str, list[tuple[str, str]]]:
        data: Any = Buffer(body)
        kind = ua_binary.nodeid_from_binary(data)
        assert kind.NamespaceIndex == 0
        service = _SERVICES[kind.Identifier]
        if service != "Call":
            return service, []
        call = ua_binary.struct_from_binary(ua.CallRequest, Buffer(body))
        return service, [(m.ObjectId.to_string(), m.MethodId.to_string()) for m in call.Parameters.MethodsToCall]


class WatchedCable:
    """A cable to an OPC UA server without encryption; can be cut and plugged in again."""

    def __init__(self, port: int) -> None:
        self.port = free_port()
        self.requests: list[tuple[str, list[tuple[str, str]]]] = []
        self.connections = 0
        self._to = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failed: list[BaseException] = []

    @property
    def url(self) -> str:
        return f"opc.tcp://127.0.0.1:{self.port}/press"

    def services(self) -> Counter[str]:
        return Counter(service for service, _ in self.requests)

    def count(self, service: str) -> int:
        return self.services()[service]

    async def __aenter__(self) -> Self:
        await self.plug()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()
        assert self._failed == [], "something was sent that cannot be decoded"

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
        self.connections += 1
        decoded, far = Decoded(self.requests), None
        try:
            from_far, far = await asyncio.open_connection("127.0.0.1", self._to)
            back = asyncio.create_task(self._back(from_far, writer))
            self._tasks.add(back)
            while data := await reader.read(65_536):
                # Decoded before it goes on: what cannot be decoded does not arrive.
                decoded.feed(data)
                far.write(data)
        except (OSError, asyncio.CancelledError):
            pass
        except Exception as error:  # noqa: BLE001 - told at the end
            self._failed.append(error)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()
            if far is not None:
                far.transport.abort()

    @staticmethod
    async def _back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.transport.abort()


async def command(*arguments: str) -> int:
    """A command of the agent, as a person runs it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agent.cli", *arguments, cwd=ROOT,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    return await process.wait()


@contextlib.asynccontextmanager
async def daemon(tmp_path: Path, sources: str) -> AsyncIterator[Agent]:
    agent = Agent(tmp_path, f"http://127.0.0.1:{free_port()}", sources=sources)
    try:
        yield await asyncio.to_thread(agent.start)
    finally:
        await asyncio.to_thread(agent.kill9)


def told(agent: Agent, kind: str, **data: Any) -> list[Event]:
    return [e for e in stored(agent) if e.type == kind and all(e.data.get(key) == value for key, value in data.items())]


def cell_source(url: str, *, more: str = "") -> str:
    nodes = json.dumps([f"nsu={NAMESPACE};s={name}" for name in ("Press.Cycles", "Setpoint.Speed", "Not.There")])
    # A signal that says what it is: the server is asked for its range.
    signal_ = f'{{ node = "nsu={NAMESPACE};s=Spindle.Temp", quantity = "temperature" }}'
    nodes = f"{nodes.removesuffix(']')}, {signal_}]"
    return (
        f'[sources.cell]\ntype = "opcua"\nurl = "{url}"\nsecurity = "None"\nnodes = {nodes}\naudit = true\naudit_arguments = true\n'
        f"alarms = true\npublishing_interval_ms = 50\ntimeout_s = 2\ndead_after_s = 2\n"
        f'browse = [{{ root = "nsu={NAMESPACE};s=Line", match = "*.Status" }}]\n{more}'
    )


async def test_of_all_that_the_agent_says_to_an_opc_ua_server_nothing_changes_anything(tmp_path: Path) -> None:
    port = free_port()
    async with contextlib.AsyncExitStack() as stack:
        cable = await stack.enter_async_context(WatchedCable(port))
        agent = await stack.enter_async_context(daemon(tmp_path, cell_source(cable.url)))
        async with press_cell(port=port) as cell:

            async def until_count(count: int) -> None:
                await cell.set("Press.Cycles", count)
                await poll_until(lambda: told(agent, "equipment.reading", value=count), 60)

            # Read, alarms, audits; a node that is not there; then the cable is cut, and what was missed is asked for again.
            await until_count(1_000)
            await poll_until(lambda: told(agent, "equipment.reading", range=[-20.0, 150.0]), 60)
            await cell.audit_login("mallory", ok=False)
            await poll_until(lambda: told(agent, "authentication.failure"))
            await cable.cut()
            await cell.set("Press.Cycles", 1_001)
            await cable.plug()
            await until_count(1_002)
            # Killed, started again.
            await asyncio.to_thread(agent.kill9)
            await cell.set("Press.Cycles", 1_003)
            await asyncio.to_thread(agent.start)
            await until_count(1_004)
            # Another configuration: what was watched is given up.
            agent.configure(cell_source(cable.url, more="sampling_interval_ms = 100\n"))
            agent.signal(signal.SIGHUP)
            await poll_until(lambda: cable.count("DeleteSubscriptions"))
            await until_count(1_005)
        # The server is gone, and a new one knows nothing of us: sessions, subscriptions, alarms anew.
        async with press_cell(port=port) as cell:
            await until_count(1_006)
            (tmp_path / "password").write_text("wrong")
            wrong = f'user = "eve"\npassword_file = "{tmp_path}/password"\nallow_password_in_clear = true\n'
            agent.configure(cell_source(cable.url, more=wrong))
            agent.signal(signal.SIGHUP)
            await poll_until(lambda: agent_says(agent, "BadUserAccessDenied"), 60)
            assert await command("browse", cable.url, "--depth", "6") == 0
            assert (
                await command("trust", cable.url, "--folder", str(tmp_path / "trusted")) != 0
            )  # it has no certificate
            assert await asyncio.to_thread(agent.stop) == 0
            before = cable.connections
            await command("check", "--config", str(agent.config))
            assert cable.connections == before, "check looks at files, and at no machine"
        services, calls = cable.services(), [call for _, called in cable.requests for call in called]
        print(dict(services))
    assert services.keys() - {"Call"} <= CHANGES_NOTHING
    assert set(calls) == {CONDITION_REFRESH}
    assert services["Call"] == len(calls), "a call is of one method"
    seldom = {"BrowseNext", "CloseSession", "CloseSecureChannel"}  # asyncua's server never has more pages
    assert services.keys() >= CHANGES_NOTHING - seldom, "all that it knows how to ask was asked"


def agent_says(agent: Agent, text: str) -> bool:
    return text in (agent.status()["sources"]["cell"]["last_error"] or "")


async def test_without_alarms_no_method_is_called_at_all(tmp_path: Path) -> None:
    async with press_cell() as cell, WatchedCable(int(cell.url.split(":")[2].split("/")[0])) as cable:
        source = cell_source(cable.url).replace("alarms = true\n", "")
        async with daemon(tmp_path, source) as agent:
            await cell.set("Press.Cycles", 1_000)
            await poll_until(lambda: told(agent, "equipment.reading", value=1_000), 60)
            await cable.cut()
            await cable.plug()
            await cell.set("Press.Cycles", 1_001)
            await poll_until(lambda: told(agent, "equipment.reading", value=1_001), 60)
        assert cable.services().keys() <= CHANGES_NOTHING


async def test_the_watch_itself_sees_a_write_and_a_call(tmp_path: Path) -> None:
    """A watch that sees nothing proves nothing."""
    del tmp_path
    from asyncua.client.client import Client

    async with press_cell() as cell, WatchedCable(int(cell.url.split(":")[2].split("/")[0])) as cable:
        async with Client(cable.url) as client:
            with contextlib.suppress(ua.UaError):
                await client.get_node(f"nsu={NAMESPACE};s=Setpoint.Speed").write_value(1.0)
            index = await client.get_namespace_index(NAMESPACE)
            with contextlib.suppress(ua.UaError):
                await client.get_node(ua.NodeId("Setpoint.Speed", index)).write_value(ua.Variant(1.0))
            with contextlib.suppress(ua.UaError):
                await client.nodes.server.call_method(ua.NodeId(ua.ObjectIds.Server_GetMonitoredItems), 1)
        assert {"Write", "Call"} <= cable.services().keys()
        assert [called for _, called in cable.requests if called] == [
            [(f"i={ua.ObjectIds.Server}", f"i={ua.ObjectIds.Server_GetMonitoredItems}")]
        ]


async def test_of_all_that_the_agent_says_to_a_modbus_device_nothing_changes_anything(tmp_path: Path) -> None:
    async with plc(tmp_path / "truth", "--control", "--rate", "20") as (process, port), Wire(port) as wire:

        def obey(**line: Any) -> None:
            assert process.stdin is not None
            process.stdin.write(json.dumps(line).encode() + b"\n")

        more = "identity = true\nidentity_interval_s = 1\ntimeout_s = 0.3\nbridge_addresses_max = 5\n"
        source = modbus_source(wire.url).replace("interval_s = 0.1\n", f"interval_s = 0.1\n{more}")
        source += '[[sources.plc.points]]\nname = "nothing"\ntable = "holding"\naddress = 5000\ntype = "uint16"\n'
        async with daemon(tmp_path, source) as agent:
            await poll_until(lambda: told(agent, "equipment.counter"), 60)
            obey(set="speed_setpoint", value=1_950)
            await poll_until(lambda: told(agent, "configuration.setpoint.changed", value=1_950), 60)
            for line, kind in (
                ({"exception": 4}, "device.exception"),
                ({"exception": None}, "device.exception"),
                ({"silent": [1]}, "device.comms.lost"),
                ({"silent": []}, "device.comms.restored"),
            ):
                count = len(told(agent, kind))
                obey(**line)
                await poll_until(lambda: len(told(agent, kind)) > count, 60)  # noqa: B023 - used in its turn
            await wire.cut()
            await asyncio.sleep(0.5)
            await wire.plug()
            await asyncio.to_thread(agent.kill9)
            await asyncio.to_thread(agent.start)
            obey(set="speed_setpoint", value=1_960)
            await poll_until(lambda: told(agent, "configuration.setpoint.changed", value=1_960), 60)
            options = ("--addresses", "0-400", "--rate", "500", "--identify", "--name", "it")
            assert await command("probe", wire.url, *options) == 0
            assert await asyncio.to_thread(agent.stop) == 0
            before = len(wire.functions)
            await command("check", "--config", str(agent.config))
            assert len(wire.functions) == before, "check looks at files, and at no machine"
        print(Counter(wire.functions))
        assert set(wire.functions) == READING, "all that it knows how to ask was asked, and nothing else"
