"""The OPC UA source against a real server: every change once, or a gap that says it is missing."""

import asyncio
import json
import os
import random
import signal
import stat
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent.component import ConfigError, NotConnected
from agent.simulator.opcua_server import PASSWORD, USER
from agent.sources.opcua_connect import CertificateChanged
from agent.sources.opcua_trust import thumbprint, trusted_file, write_file
from tests.integration.opcua_line import Cable, Reader, config, node, poll_until, press_cell, truth
from tests.ports import free_port


def changes(reader: Reader) -> list[tuple[str, Any]]:
    return [(e.target or "", e.data["value"]) for e in reader.events if "value" in e.data and not e.data.get("initial")]


async def test_every_change_arrives_once_and_in_the_order_of_its_node(tmp_path: Path) -> None:
    async with press_cell(seed=5, truth=tmp_path / "truth") as cell, Reader(config(cell.url)) as reader:
        await reader.until(lambda: len(reader.events) >= 16)
        for _ in range(400):
            await cell.step()
        await reader.until(lambda: reader.values("Press.Cycles")[-1] == 400)
        await reader.until(lambda: len(changes(reader)) >= len(truth(tmp_path / "truth")))
    expected: dict[str, list[Any]] = {}
    for record in truth(tmp_path / "truth"):
        expected.setdefault(record["node"], []).append(record["value"])
    got: dict[str, list[Any]] = {}
    for name, value in changes(reader):
        got.setdefault(name, []).append(value)
    assert got == expected
    assert reader.of_type("collection.gap") == []


async def test_source_time_and_server_time_and_status_come_with_the_value() -> None:
    async with press_cell() as cell, Reader(config(cell.url)) as reader:
        await reader.until(lambda: reader.values("Oil.Temp"))
        await cell.set("Oil.Temp", 71.5)
        await reader.until(lambda: reader.values("Oil.Temp")[-1] == 71.5)
    event = [e for e in reader.events if e.target == "Oil.Temp"][-1]
    assert event.type == "equipment.reading"
    assert event.data["status"] == "Good"
    assert abs(event.observed - event.time) < 5_000_000
    assert event.data["server_time_us"] == event.time
    assert event.data["node"] == node("Oil.Temp")


async def test_bad_quality_is_a_failed_reading_and_silences_nobody() -> None:
    """thingsboard-gateway#2093: one node with a bad status silenced the others."""
    async with press_cell() as cell, Reader(config(cell.url)) as reader:
        await reader.until(lambda: reader.values("Oil.Temp"))
        await cell.set("Setpoint.Speed", None, status=0x80310000)
        await reader.until(lambda: any(e.outcome == "failure" for e in reader.events))
        await cell.set("Oil.Temp", 99.0)
        await reader.until(lambda: reader.values("Oil.Temp")[-1] == 99.0)
    failed = next(e for e in reader.events if e.outcome == "failure")
    assert (failed.type, failed.target, failed.data["status"]) == (
        "equipment.reading",
        "Setpoint.Speed",
        "BadNoCommunication",
    )


async def test_a_setpoint_first_seen_is_a_reading_and_changed_later_is_a_configuration_event() -> None:
    async with press_cell() as cell, Reader(config(cell.url)) as reader:
        await reader.until(lambda: reader.values("Setpoint.Speed") == [1200.0])
        await cell.set("Setpoint.Speed", 1900.0)
        await reader.until(lambda: reader.of_type("configuration.setpoint.changed"))
        await cell.set("Press.Mode", 2)
        await reader.until(lambda: reader.of_type("configuration.mode.changed"))
    first = next(e for e in reader.events if e.target == "Setpoint.Speed")
    changed = reader.of_type("configuration.setpoint.changed")
    assert (first.type, first.data["initial"]) == ("equipment.reading", True)
    assert [(e.data["previous"], e.data["value"]) for e in changed] == [(1200.0, 1900.0)]


async def test_a_setpoint_changed_while_nobody_listened_and_the_server_forgot_us_is_an_event_all_the_same() -> None:
    port = free_port()
    async with press_cell(port=port) as cell, Reader(config(cell.url)) as first:
        await first.until(lambda: first.values("Setpoint.Speed"))
    async with press_cell(port=port) as cell:
        await cell.set("Setpoint.Speed", 2500.0)
        async with Reader(config(cell.url), first.cursor) as second:
            await second.until(lambda: second.of_type("configuration.setpoint.changed"))
    (event,) = second.of_type("configuration.setpoint.changed")
    assert (event.data["previous"], event.data["value"], event.data["while_away"]) == (1200.0, 2500.0, True)


async def test_a_cut_cable_loses_nothing_and_needs_no_gap() -> None:
    """thingsboard-gateway#1641, telegraf#8632: the server away at first, and away in between."""
    port = free_port()
    async with Cable(port) as cable, Reader(config(cable.url)) as reader:
        await reader.until(lambda: reader.errors)
        assert isinstance(reader.errors[0], NotConnected)
        async with press_cell(port=port) as cell:
            for pause in (0, 60, 0, 150):
                await reader.until(lambda: reader.values("Press.Cycles"))
                for _ in range(40):
                    await cell.step()
                    await asyncio.sleep(0.005)
                await cable.cut()
                for _ in range(pause):
                    await cell.step()
                    await asyncio.sleep(0.002)
                await cable.plug()
            last = cell.model.values["Press.Cycles"]
            await reader.until(lambda: reader.values("Press.Cycles")[-1] == last)
    cycles = reader.values("Press.Cycles")
    assert cycles == list(range(cycles[0], last + 1))
    assert reader.of_type("collection.gap") == []


async def test_a_silent_line_is_noticed_within_seconds_and_nothing_is_lost_over_it() -> None:
    """opcua-asyncio#1660: reconnecting hung for ever when packets vanished."""
    async with (
        press_cell() as cell,
        Cable(int(cell.url.split(":")[2].split("/")[0])) as cable,
        Reader(config(cable.url)) as reader,
    ):
        await reader.until(lambda: reader.values("Press.Cycles"))
        await cell.step()
        cable.stall()
        for _ in range(30):
            await cell.step()
        await reader.until(lambda: reader.errors, timeout_s=6)
        assert isinstance(reader.errors[0], NotConnected)
        cable.flow()
        await reader.until(lambda: reader.values("Press.Cycles")[-1] == 31)
    assert reader.values("Press.Cycles") == list(range(32))


async def test_a_stop_at_any_step_of_a_broken_connection_ends_the_source() -> None:
    """A cancellation that fell into the farewell to the server was taken for the end of that, and the source read on for ever."""
    async with press_cell() as cell, Cable(int(cell.url.split(":")[2].split("/")[0])) as cable:
        for steps in range(24):
            async with Reader(config(cable.url)) as reader:
                await reader.until(partial(reader.values, "Press.Cycles"))
                await cable.cut()
                for _ in range(steps):
                    await asyncio.sleep(0)
            await cable.plug()


async def test_a_server_that_restarts_is_taken_up_again_with_a_gap() -> None:
    """telegraf#18454: connected, no data, and nobody subscribed again."""
    port = free_port()
    settings = config(f"opc.tcp://127.0.0.1:{port}/press")
    async with Reader(settings) as reader:
        async with press_cell(port=port) as cell:
            await reader.until(lambda: reader.values("Press.Cycles"))
        await reader.until(lambda: reader.errors)
        async with press_cell(port=port) as cell:
            await reader.until(lambda: reader.of_type("collection.gap"))
            await cell.set("Oil.Temp", 12.25)
            await reader.until(lambda: reader.values("Oil.Temp")[-1] == 12.25)
    (gap,) = reader.of_type("collection.gap")
    assert gap.data["events"] is None
    assert gap.data["from_us"] < gap.data["to_us"]
    assert "no longer had the subscription" in gap.data["reason"]


@pytest.mark.filterwarnings(
    "ignore:.*MonitoredItemService.datachange_callback.*"
)  # asyncua's server forgets to await it when a node goes
async def test_a_missing_node_is_named_and_silences_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """telegraf#19186: one vanished node meant no connection at all, for ever."""
    monkeypatch.setattr("agent.sources.opcua.RETRY_MISSING_S", 0.3)
    monkeypatch.setattr("agent.sources.opcua.LOOK_S", 0.3)
    nodes = (node("Oil.Temp"), node("Not.There"), "nsu=http://other/space;s=X")
    async with press_cell() as cell, Reader(config(cell.url, nodes=nodes)) as reader:
        await reader.until(lambda: reader.values("Oil.Temp"))
        await reader.until(lambda: len(reader.report.trouble) == 2)
        assert "BadNodeIdUnknown" in reader.report.trouble[node("Not.There")]
        assert "no such namespace" in reader.report.trouble["nsu=http://other/space;s=X"]
        await cell.add("Not.There", 7)
        await reader.until(lambda: reader.values("Not.There") == [7])
        assert node("Not.There") not in reader.report.trouble
        await cell.remove("Not.There")
        await cell.set("Oil.Temp", 33.0)
        await reader.until(lambda: reader.values("Oil.Temp")[-1] == 33.0)
        await reader.until(lambda: len(reader.of_type("configuration.changed")) == 2)
        assert "the node is gone" in reader.report.trouble[node("Not.There")]
        await cell.add("Not.There", 8)
        await reader.until(lambda: reader.values("Not.There")[-1:] == [8])
        await reader.until(lambda: len(reader.of_type("configuration.changed")) == 3)
        assert node("Not.There") not in reader.report.trouble
        assert reader.connections == 1
    changes = [(event.target, event.data["change"]) for event in reader.of_type("configuration.changed")]
    assert changes == [("Not.There", change) for change in ("added", "deleted", "added")]


async def test_an_overflow_bit_is_declared_as_a_gap_beside_the_value() -> None:
    async with press_cell() as cell, Reader(config(cell.url)) as reader:
        await reader.until(lambda: reader.values("Oil.Temp"))
        await cell.set("Oil.Temp", 81.0, status=0x480)
        await reader.until(lambda: reader.of_type("collection.gap"))
    (gap,) = reader.of_type("collection.gap")
    assert (gap.data["events"], gap.data["nodes"]) == (None, ["Oil.Temp"])
    assert reader.values("Oil.Temp")[-1] == 81.0


async def test_a_full_queue_of_a_server_that_sets_no_overflow_bit_is_declared_too() -> None:
    async with press_cell() as cell, Reader(config(cell.url, queue_size=5, publishing_interval_ms=400.0)) as reader:
        await reader.until(lambda: reader.values("Press.Cycles"))
        for _ in range(60):
            await cell.step()
        await reader.until(lambda: reader.values("Press.Cycles")[-1] == 60)
    assert reader.values("Press.Cycles") != list(range(61))
    assert any("Press.Cycles" in gap.data["nodes"] for gap in reader.of_type("collection.gap"))


@pytest.mark.parametrize("kills", [4, pytest.param(10, marks=pytest.mark.long)])
async def test_kills_at_random_moments_lose_nothing_and_repeat_nothing(kills: int, tmp_path: Path) -> None:
    """Azure/Industrial-IoT#2168: a restart lost everything that was buffered."""
    store, rng = tmp_path / "store", random.Random(11)
    async with press_cell() as cell:
        steps = asyncio.create_task(cell.run(80))
        for _ in range(kills):
            process = await _collector(cell.url, store)
            await _wait_for_growth(store)
            await asyncio.sleep(rng.uniform(0.0, 0.3))
            process.send_signal(signal.SIGKILL)
            await process.wait()
        steps.cancel()
        last = cell.model.values["Press.Cycles"]
        process = await _collector(cell.url, store)
        await poll_until(lambda: any(record["data"].get("value") == last for record in _stored(store)))
        process.kill()
        await process.wait()
    stored = _stored(store)
    cycles = [record["data"]["value"] for record in stored if record["target"] == "Press.Cycles"]
    gaps = [record for record in stored if record["type"] == "collection.gap"]
    assert len(cycles) == len(set(cycles))
    if not gaps:
        assert cycles == list(range(cycles[0], last + 1))
    assert cycles == sorted(cycles)


async def _collector(url: str, store: Path) -> asyncio.subprocess.Process:
    program = [sys.executable, "-m", "tests.integration.opcua_collector", url, str(store)]
    return await asyncio.create_subprocess_exec(
        *program, cwd=Path(__file__).parents[2], env=os.environ | {"PYTHONPATH": "."}
    )


async def _wait_for_growth(store: Path) -> None:
    size = store.stat().st_size if store.exists() else 0
    await poll_until(lambda: store.exists() and store.stat().st_size > size)


def _stored(store: Path) -> list[dict[str, Any]]:
    """Whole lines only: a line that a kill cut was never committed."""
    return [event for line in store.read_bytes().split(b"\n")[:-1] for event in json.loads(line)["events"]]


async def test_an_unknown_server_is_refused_with_its_thumbprint_and_the_command_that_trusts_it(tmp_path: Path) -> None:
    """telegraf#11454, #17608: an opaque EOF where trust was missing, and no way to trust a server."""
    async with press_cell(certificates=tmp_path / "server") as cell:
        settings = config(cell.url, security="Basic256Sha256/SignAndEncrypt", state_dir=str(tmp_path / "agent"))
        with pytest.raises(ConfigError) as refused:
            await Reader(settings).run_once()
    shown = thumbprint((tmp_path / "server" / "server.der").read_bytes())
    assert shown in str(refused.value)
    assert f"linewarden-agent trust {cell.url}" in str(refused.value)


@pytest.mark.parametrize(
    "security",
    [
        "Basic256Sha256/SignAndEncrypt",
        "Basic256Sha256/Sign",
        "Aes256Sha256RsaPss/SignAndEncrypt",
        "Aes128Sha256RsaOaep/SignAndEncrypt",
    ],
)
async def test_a_pinned_server_is_read_encrypted_and_with_a_password(tmp_path: Path, security: str) -> None:
    (tmp_path / "password").write_text(PASSWORD + "\n")
    async with press_cell(certificates=tmp_path / "server", anonymous=False) as cell:
        settings = config(
            cell.url,
            security=security,
            state_dir=str(tmp_path / "agent"),
            server_certificate_file=str(tmp_path / "server" / "server.der"),
            user=USER,
            password_file=str(tmp_path / "password"),
        )
        async with Reader(settings) as reader:
            await reader.until(lambda: reader.values("Oil.Temp"))
    key = tmp_path / "agent" / "opcua" / "own" / "key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert (USER, True) in cell.logins


async def test_a_wrong_password_says_user_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("wrong")
    async with press_cell(certificates=tmp_path / "server") as cell:
        settings = config(
            cell.url,
            security="Basic256Sha256/SignAndEncrypt",
            state_dir=str(tmp_path / "agent"),
            server_certificate_file=str(tmp_path / "server" / "server.der"),
            user=USER,
            password_file=str(tmp_path / "password"),
        )
        with pytest.raises(ConfigError) as refused:
            await Reader(settings).run_once()
    assert refused.value.key == "user"
    assert "password_file" in refused.value.remedy


async def test_a_changed_server_certificate_is_an_event_once_and_then_waits_for_a_person(tmp_path: Path) -> None:
    async with press_cell(certificates=tmp_path / "other") as cell:
        pinned = (tmp_path / "other" / "server.der").read_bytes()
    async with press_cell(certificates=tmp_path / "new") as cell:
        trusted = trusted_file(tmp_path / "agent" / "opcua", cell.url)
        trusted.parent.mkdir(parents=True)
        write_file(trusted, pinned, mode=0o644)
        reader = Reader(config(cell.url, security="Basic256Sha256/SignAndEncrypt", state_dir=str(tmp_path / "agent")))
        for _ in range(2):
            with pytest.raises(CertificateChanged):
                await reader.run_once()
    (event,) = reader.events
    assert event.type == "security.certificate.changed"
    assert event.data["trusted_thumbprint"] == thumbprint(pinned)
    assert event.data["shown_thumbprint"] == thumbprint((tmp_path / "new" / "server.der").read_bytes())


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"ACKF\xff\xff\xff\x7f", b"", b"\x00" * 100_000]
)
async def test_a_peer_that_speaks_something_else_is_not_connected_and_not_held_in_memory(answer: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(NotConnected):
        await Reader(config(f"opc.tcp://127.0.0.1:{port}")).run_once()
    server.close()


async def test_stopping_takes_less_than_five_seconds_even_on_a_silent_line() -> None:
    async with press_cell() as cell, Cable(int(cell.url.split(":")[2].split("/")[0])) as cable:
        async with Reader(config(cable.url, dead_after_s=60.0, timeout_s=60.0)) as reader:
            await reader.until(lambda: reader.values("Oil.Temp"))
            cable.stall()
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 5
