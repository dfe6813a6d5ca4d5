"""The OPC UA source against node-opcua, a server of another maker that behaves differently where it hurts."""

import asyncio
import contextlib
import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.component import ConfigError
from agent.sources.opcua import SECURITIES
from agent.sources.opcua_nodes import ConfigNode
from agent.sources.opcua_tools import trust
from agent.sources.opcua_trust import own_identity
from tests.integration.opcua_line import Cable, Reader, config, node
from tests.ports import free_port

NODE = Path(__file__).parents[1] / "node"
CYCLES = ConfigNode(node=node("Press.Cycles"), role="counter", sampling_interval_ms=0.0)


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The npm packages of tests/node/package.json, installed once for as long as that file stays the same."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    wanted = (NODE / "package.json").read_bytes()
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "linewarden-tests"
    folder = base / f"node-{hashlib.sha256(wanted).hexdigest()[:12]}"
    if not (folder / "installed").exists():
        import subprocess

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_bytes(wanted)
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=folder, check=True, timeout=280)
        (folder / "installed").touch()
    return folder / "node_modules"


class NodeServer:
    """The node-opcua process; commands go to its stdin, each answered by DONE."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.port = port
        self.url = f"opc.tcp://127.0.0.1:{port}/press"
        self._process = process

    async def say(self, **command: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        await self.line("DONE")

    async def line(self, wanted: str) -> None:
        assert self._process.stdout is not None
        async with asyncio.timeout(60):
            while (line := await self._process.stdout.readline()).decode().strip() != wanted:
                assert line, "the server ended"


@pytest.fixture
async def server(node_modules: Path, tmp_path: Path) -> AsyncIterator[NodeServer]:
    port, pipe = free_port(), asyncio.subprocess.PIPE
    environment = os.environ | {"NODE_PATH": str(node_modules)}
    program = ["node", str(NODE / "opcua_server.js"), str(port), str(tmp_path / "pki")]
    process = await asyncio.create_subprocess_exec(
        *program, env=environment, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
    )
    running = NodeServer(process, port)
    try:
        await running.line("READY")
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def settings(url: str, **options: Any) -> Any:
    return config(url, **({"nodes": (CYCLES,), "queue_size": 5_000} | options))


async def test_a_cut_cable_loses_nothing_though_this_server_refuses_to_transfer_what_is_ours_already(
    server: NodeServer,
) -> None:
    """A client that takes BadNothingToDo for a refusal deletes the subscription here, and loses what it held."""
    async with Cable(server.port) as cable, Reader(settings(cable.url)) as reader:
        await reader.until(lambda: reader.values("Press.Cycles") == [0])
        for rounds in range(1, 5):
            await server.say(count=50)
            await cable.cut()
            await server.say(count=25)
            await asyncio.sleep(0.3)
            await server.say(count=25)
            await cable.plug()
            await reader.until(lambda: reader.values("Press.Cycles")[-1] == rounds * 100)  # noqa: B023 - used in its turn
    assert reader.values("Press.Cycles") == list(range(401))
    assert reader.of_type("collection.gap") == []


async def test_a_silent_line_loses_nothing(server: NodeServer) -> None:
    async with Cable(server.port) as cable, Reader(settings(cable.url)) as reader:
        await reader.until(lambda: reader.values("Press.Cycles") == [0])
        cable.stall()
        await server.say(count=200)
        await reader.until(lambda: reader.errors, timeout_s=6)
        cable.flow()
        await reader.until(lambda: reader.values("Press.Cycles")[-1] == 200)
    assert reader.values("Press.Cycles") == list(range(201))


async def test_a_line_that_loses_stalls_and_breaks_again_and_again_loses_nothing(server: NodeServer) -> None:
    """opcua-asyncio#1660: packets that vanish, answers that come late, connections that break while the last break is being mended."""
    rng, total = random.Random(17), 0
    async with Cable(server.port) as cable, Reader(settings(cable.url)) as reader:
        await reader.until(lambda: reader.values("Press.Cycles") == [0])
        for _ in range(8):
            total += 20
            counting = asyncio.create_task(server.say(count=20))
            trouble = rng.choice(("cut", "short stall", "long stall"))
            if trouble == "cut":
                await asyncio.sleep(rng.uniform(0, 0.2))
                await cable.cut()
                await asyncio.sleep(rng.uniform(0, 0.3))
                await cable.plug()
            else:
                cable.stall()
                await asyncio.sleep(rng.uniform(0.1, 0.9) if trouble == "short stall" else 3.0)
                cable.flow()
            await counting
        await reader.until(lambda: reader.values("Press.Cycles")[-1] == total, timeout_s=40)
    assert reader.values("Press.Cycles") == list(range(total + 1))
    assert reader.of_type("collection.gap") == []


async def test_a_kill_is_followed_by_everything_that_was_not_durable(server: NodeServer, tmp_path: Path) -> None:
    """The process dies for real, with messages taken and not acknowledged."""
    store = tmp_path / "store"
    program = [sys.executable, "-m", "tests.integration.opcua_collector", server.url, str(store)]
    expected = 0
    for pause in (0.0, 0.05, 0.4, 0.9):
        process = await asyncio.create_subprocess_exec(*program, cwd=NODE.parents[1])
        await server.say(count=100)
        async with asyncio.timeout(30):
            while not store.exists() or not store.read_bytes().endswith(b"\n"):  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.05)
        await asyncio.sleep(pause)
        process.kill()
        await process.wait()
        await server.say(count=50)
        expected += 150
    cursor = json.loads(store.read_bytes().split(b"\n")[-2])["cursor"]
    durable = [event for line in store.read_bytes().split(b"\n")[:-1] for event in json.loads(line)["events"]]
    async with Reader(config(server.url, sampling_interval_ms=0.0), cursor) as reader:
        await reader.until(lambda: (reader.values("Press.Cycles") or [0])[-1] == expected)
    values = [event["data"]["value"] for event in durable if event["target"] == "Press.Cycles"] + reader.values(
        "Press.Cycles"
    )
    gaps = [event for event in durable if event["type"] == "collection.gap"] + reader.of_type("collection.gap")
    assert len(values) == len(set(values))
    assert values == sorted(values)
    assert gaps == []
    assert values == list(range(values[0], expected + 1))


async def test_a_kill_between_signing_in_and_the_commit_leaves_an_old_nonce_and_still_loses_nothing(
    server: NodeServer, tmp_path: Path
) -> None:
    await trust(server.url, tmp_path / "agent" / "opcua")
    secure = settings(server.url, security="Basic256Sha256/SignAndEncrypt", state_dir=str(tmp_path / "agent"))
    async with Reader(secure) as first:
        await first.until(lambda: first.values("Press.Cycles") == [0])
        await server.say(count=20)
        await first.until(lambda: first.values("Press.Cycles")[-1] == 20)
    for _ in range(2):
        await server.say(count=20)
        killed = Reader(secure)
        async with contextlib.aclosing(killed.source.batches(first.cursor)) as batches:
            await anext(batches)  # signed in and read, and dies before the commit
    async with Reader(secure, first.cursor) as last:
        await server.say(count=20)
        await last.until(lambda: last.values("Press.Cycles")[-1:] == [80])
    assert first.values("Press.Cycles") + last.values("Press.Cycles") == list(range(81))
    assert last.of_type("collection.gap") == []


async def test_its_limits_are_honoured_over_a_trusted_encrypted_connection_with_a_password(
    server: NodeServer, tmp_path: Path
) -> None:
    """telegraf#14568: a thousand nodes in one request is an EOF. Twenty items a call here, fifty reads, ten browses."""
    (tmp_path / "password").write_text("press-cell-4")
    await trust(server.url, tmp_path / "agent" / "opcua")
    nodes = tuple(node(f"Many.{number}") for number in range(100))
    options = {"security": "Basic256Sha256/SignAndEncrypt", "state_dir": str(tmp_path / "agent"), "user": "agent"}
    async with Reader(settings(server.url, nodes=nodes, password_file=str(tmp_path / "password"), **options)) as reader:
        await reader.until(lambda: len(reader.events) == 100)
    assert reader.report.trouble == {}
    assert {event.data["value"] for event in reader.events} == set(range(100))


async def test_it_is_read_with_every_policy_that_both_sides_have_and_every_way_to_sign_in(
    server: NodeServer, tmp_path: Path
) -> None:
    """thingsboard-gateway#701. What a runtime has withdrawn (RSA with PKCS#1 v1.5 in a new Node.js) is named, and not tried for ever."""
    agent = str(tmp_path / "agent")
    (tmp_path / "password").write_text("press-cell-4")
    user = own_identity(tmp_path / "user.der", tmp_path / "user.pem")
    assert user.certificate
    await trust(server.url, tmp_path / "agent" / "opcua")
    named = {"user": "agent", "password_file": str(tmp_path / "password"), "allow_password_in_clear": True}
    held = {"user_certificate_file": str(tmp_path / "user.der"), "user_key_file": str(tmp_path / "user.pem")}
    refused = {}
    for security in SECURITIES.__args__:  # type: ignore[attr-defined]
        for signing_in in ({}, named, held):
            reader = Reader(settings(server.url, security=security, state_dir=agent, **signing_in))
            async with reader:
                await reader.until(lambda: reader.values("Press.Cycles") or reader.errors)  # noqa: B023 - used in its turn
            if reader.errors:
                refused[security, *signing_in] = str(reader.errors[0])
    print(refused)
    assert {policy.partition("/")[0] for policy, *_ in refused} <= {"Basic128Rsa15"}, refused


async def test_deadbands_are_each_nodes_own_and_one_that_the_server_refuses_costs_no_value(server: NodeServer) -> None:
    """Absolute, percent of the range that the server gives, and on a text, which has none."""
    nodes = (
        ConfigNode(node=node("Oil.Temp"), deadband=5.0, sampling_interval_ms=0.0),
        ConfigNode(node=node("Oil.Level"), deadband=10.0, deadband_type="percent", sampling_interval_ms=0.0),
        ConfigNode(node=node("Quality.Result"), deadband=1.0, sampling_interval_ms=0.0),
        CYCLES,
    )
    async with Reader(settings(server.url, nodes=nodes)) as reader:
        await reader.until(lambda: len({event.target for event in reader.events}) == 4)
        for value in (57.0, 59.9, 61.0, 58.0, 66.5):
            await server.say(set="Oil.Temp", value=value)
        for value in (110.0, 119.0, 121.0, 130.0, 100.0):
            await server.say(set="Oil.Level", value=value)
        await server.say(set="Quality.Result", value="nok")
        await server.say(count=1)
        await reader.until(lambda: reader.values("Press.Cycles") == [0, 1])
        await reader.until(lambda: reader.values("Quality.Result") == ["ok", "nok"])
    assert reader.values("Oil.Temp") == [55.0, 61.0, 66.5]
    assert reader.values("Oil.Level") == [100.0, 121.0, 100.0]
    assert reader.report.trouble == {}


async def test_alarms_are_read_with_their_limits_though_it_cannot_refresh_them(server: NodeServer) -> None:
    """It answers ConditionRefresh with BadInternalError, which is counted and not fatal. HighHigh and back are changes of one alarm."""
    async with Reader(settings(server.url, alarms=True, audit=True)) as reader:
        await reader.until(lambda: reader.values("Press.Cycles"))
        await server.say(count=3)
        await reader.until(lambda: reader.values("Press.Cycles")[-1] == 3)
        await server.say(alarm="Oil.Level")
        for value in (160, 190, 160, 100):
            await server.say(set="Oil.Level", value=value)
        await reader.until(lambda: reader.of_type("equipment.alarm.cleared"))
    assert reader.connections == 1
    alarms = [(each.type, each.data.get("limit")) for each in reader.events if each.type.startswith("equipment.alarm.")]
    assert alarms == [
        ("equipment.alarm.raised", "High"),
        ("equipment.alarm.changed", "HighHigh"),
        ("equipment.alarm.changed", "High"),
        ("equipment.alarm.cleared", None),
    ]
    refused = reader.report.counts.get("condition_refreshes_refused", 0)
    assert bool(refused) == ("alarms" in reader.report.trouble)


async def test_its_sentinel_time_is_not_taken_for_a_time(server: NodeServer) -> None:
    async with Reader(settings(server.url)) as reader:
        await reader.until(lambda: reader.values("Press.Cycles"))
        await server.say(count=1)
        await reader.until(lambda: reader.values("Press.Cycles") == [0, 1])
    for event in reader.events:
        assert event.data.get("server_time_us", event.observed) < event.observed + 60_000_000


async def test_a_queue_that_overflows_says_so(server: NodeServer) -> None:
    async with Reader(settings(server.url, queue_size=10, publishing_interval_ms=500.0)) as reader:
        await reader.until(lambda: reader.values("Press.Cycles") == [0])
        await server.say(count=200)
        await reader.until(lambda: reader.values("Press.Cycles")[-1] == 200)
    gaps = reader.of_type("collection.gap")
    assert gaps
    assert all(gap.data["nodes"] == ["Press.Cycles"] for gap in gaps)
    assert any(event.data.get("status_code", 0) & 0x480 == 0x480 for event in reader.events)


async def test_a_wrong_password_that_it_audits_not_is_counted_by_its_diagnostics(
    server: NodeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.sources.opcua_watch.DIAGNOSTICS_POLL_S", 0.2)
    (tmp_path / "password").write_text("wrong")
    await trust(server.url, tmp_path / "agent" / "opcua")
    options = {"security": "Basic256Sha256/SignAndEncrypt", "state_dir": str(tmp_path / "agent"), "user": "agent"}
    async with Reader(settings(server.url, audit=True, alarms=True)) as reader:
        await reader.until(lambda: reader.values("Press.Cycles"))
        await server.say(count=1)
        await reader.until(lambda: (reader.cursor or {})["counters"] or reader.of_type("authentication.session.opened"))
        with pytest.raises(ConfigError, match="user"):
            await Reader(settings(server.url, password_file=str(tmp_path / "password"), **options)).run_once()
        await reader.until(lambda: reader.of_type("authentication.session.rejected"))
    assert reader.connections == 1
