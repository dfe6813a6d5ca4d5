"""The Modbus source against servers of five makers, over every kind of line, and a watch over everything that it sends."""

import asyncio
import contextlib
import ctypes.util
import json
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.sources.modbus import ConfigModbus
from agent.sources.modbus_link import ConfigTls
from tests.integration.modbus_line import (
    READING,
    Reader,
    Wire,
    config,
    point,
    poll_until,
    program,
    serial_line,
)
from tests.integration.test_opcua_node import node_modules
from tests.ports import free_port

__all__ = ["node_modules"]

ROOT = Path(__file__).parents[2]
NODE = ROOT / "tests" / "node" / "modbus_device.js"
COUNTERPART = (sys.executable, "-m", "tests.integration.modbus_counterpart")
POINTS = (
    point("oil", 100, type="float32"),
    point("speed", 102, role="setpoint"),
    point("offset", 103, type="int32"),
    point("program", 105, type="string(10)"),
    point("level", 0, table="input"),
    point("guard", 0, table="discrete"),
    *(point(f"coil{at}", at, table="coil") for at in range(2_000)),
)
AGENT = "7d3f1c2e-0000-4000-8000-000000000001"
NO_SOCAT = pytest.mark.skipif(shutil.which("socat") is None, reason="socat is not installed")
NO_LIBMODBUS = pytest.mark.skipif(ctypes.util.find_library("modbus") is None, reason="libmodbus is not installed")
NO_MBPOLL = pytest.mark.skipif(shutil.which("mbpoll") is None, reason="mbpoll is not installed")


async def say(process: asyncio.subprocess.Process, line: str) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line.encode() + b"\n")
    async with asyncio.timeout(20):
        while (await process.stdout.readline()).strip() != b"DONE":
            assert process.returncode is None


async def is_read(settings: ConfigModbus, process: asyncio.subprocess.Process, *, refuses: bool = True) -> None:
    """Every value arrives right; a changed setpoint is an event; an address that is not there costs nobody anything."""
    async with Reader(settings) as reader:
        await reader.until(lambda: len(reader.of_type("equipment.reading")) >= len(POINTS))
        values = {event.target: event.data["value"] for event in reader.of_type("equipment.reading")}
        shown = {name: values[name] for name in ("oil", "speed", "offset", "program", "level", "guard")}
        assert shown == {
            "oil": 61.5, "speed": 1_200, "offset": -70_000, "program": "PRESS-4", "level": 870, "guard": True,
        }  # fmt: skip
        assert all(values[f"coil{at}"] is (at % 2 == 0) for at in range(2_000))
        if refuses:
            assert [(e.data["exception_code"], e.data["address"]) for e in reader.of_type("device.exception")] == [
                (2, 110)
            ]
        await say(process, "1900")
        await reader.until(lambda: reader.of_type("configuration.setpoint.changed"))
        (event,) = reader.of_type("configuration.setpoint.changed")
        assert (event.data["previous"], event.data["value"]) == (1_200, 1_900)
        assert not reader.errors
        assert not reader.of_type("device.comms.lost")


def settings_for(url: str, **options: Any) -> ConfigModbus:
    return config(url, *POINTS, point("nothing", 110), **({"interval_s": 0.1, "timeout_s": 2.0} | options))


@contextlib.asynccontextmanager
async def counterpart(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    async with program(*COUNTERPART, *arguments, ready="READY", PYTHONPATH=str(ROOT)) as process:
        yield process


@pytest.mark.parametrize("kind", ["tcp", "rtu+tcp"])
async def test_a_pymodbus_server_is_read(kind: str) -> None:
    port = free_port()
    async with counterpart("pymodbus", kind, str(port)) as process:
        await is_read(settings_for(f"{kind}://127.0.0.1:{port}"), process)


@NO_SOCAT
async def test_a_pymodbus_server_on_a_serial_line_is_read(tmp_path: Path) -> None:
    async with serial_line(tmp_path) as (near, far), counterpart("pymodbus", "rtu", str(far)) as process:
        await is_read(settings_for(f"rtu://{near}?baudrate=19200"), process)


@NO_LIBMODBUS
async def test_a_libmodbus_server_is_read() -> None:
    port = free_port()
    async with counterpart("libmodbus", "tcp", str(port)) as process:
        await is_read(settings_for(f"tcp://127.0.0.1:{port}"), process)


@NO_LIBMODBUS
@NO_SOCAT
async def test_a_libmodbus_server_on_a_serial_line_is_read(tmp_path: Path) -> None:
    async with serial_line(tmp_path) as (near, far), counterpart("libmodbus", "rtu", str(far)) as process:
        await is_read(settings_for(f"rtu://{near}?baudrate=19200"), process)


@pytest.mark.parametrize("maker", ["jsmodbus", "jsmodbus-rtu", "modbus-serial"])
async def test_a_server_in_javascript_is_read(node_modules: Path, maker: str) -> None:
    port = free_port()
    scheme = "rtu+tcp" if maker.endswith("rtu") else "tcp"
    refuses = not maker.startswith("jsmodbus")
    async with program("node", str(NODE), maker, str(port), ready="READY", NODE_PATH=str(node_modules)) as process:
        settings = settings_for(f"{scheme}://127.0.0.1:{port}")
        if not refuses:
            # It answers what is beyond its memory with fewer values, or with none and no exception.
            settings = replace(settings, points=(*settings.points, point("beyond", 2_007, table="coil")))
        await is_read(settings, process, refuses=refuses)


@NO_SOCAT
async def test_a_serial_server_in_javascript_is_read(node_modules: Path, tmp_path: Path) -> None:
    async with serial_line(tmp_path) as (near, far):
        arguments = ("modbus-serial-rtu", str(far))
        async with program("node", str(NODE), *arguments, ready="READY", NODE_PATH=str(node_modules)) as process:
            await is_read(settings_for(f"rtu://{near}?baudrate=19200"), process)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed one for 127.0.0.1, and its key."""
    import datetime as dt
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "press")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir()
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


async def test_a_server_behind_tls_is_read_where_its_certificate_is_trusted_and_nowhere_else(tmp_path: Path) -> None:
    port = free_port()
    own, other = certificate(tmp_path / "own"), certificate(tmp_path / "other")
    url = f"tls://127.0.0.1:{port}"
    async with counterpart("pymodbus", "tls", str(port), *map(str, own)) as process:
        async with Reader(settings_for(url, tls=ConfigTls(ca_file=str(other[0])))) as reader:
            await reader.until(lambda: reader.errors)
            assert "its certificate is not trusted" in str(reader.errors[0])
            assert not reader.events
        await is_read(settings_for(url, tls=ConfigTls(ca_file=str(own[0]))), process)


@contextlib.asynccontextmanager
async def plc(truth: Path, *options: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    port = free_port()
    command = (sys.executable, "-m", "agent.simulator.plc", "--port", str(port), "--truth", str(truth), *options)
    async with program(*command, ready="READY modbus://127.0.0.1", PYTHONPATH=str(ROOT)) as process:
        yield process, port


def plc_settings(url: str, **options: Any) -> ConfigModbus:
    from agent.simulator.plc import POINTS as LINE

    points = [point(n, p.address, table=p.table, type=p.type, **p.settings) for n, p in LINE.items()]
    return config(url, *points, **options)


@NO_MBPOLL
async def test_nothing_but_reads_ever_leaves_the_agent_while_an_attacker_s_write_is_noticed(tmp_path: Path) -> None:
    """The network watch: every request of a whole life with cuts, silence, exceptions, refusals and identification is decoded."""
    async with plc(tmp_path / "truth.jsonl", "--control", "--rate", "20") as (process, port), Wire(port) as wire:
        settings = plc_settings(wire.url, identity=True, identity_interval_s=1.0)
        settings = config(
            wire.url, *settings.points, point("nothing", 5_000), identity=True, identity_interval_s=1.0, timeout_s=0.2
        )
        async with Reader(settings) as reader:
            await reader.until(lambda: len(reader.of_type("equipment.counter")) > 10)
            write = [
                "mbpoll",
                "-m",
                "tcp",
                "-p",
                str(port),
                "-a",
                "1",
                "-t",
                "4",
                "-0",
                "-r",
                "200",
                "127.0.0.1",
                "1950",
            ]
            async with program(*write) as attacker:
                assert await attacker.wait() == 0
            await reader.until(lambda: reader.of_type("configuration.setpoint.changed"))
            assert reader.of_type("configuration.setpoint.changed")[0].data["value"] == 1_950
            for line, wanted in (
                (
                    {"exception": 4},
                    lambda: any(e.data["exception_code"] == 4 for e in reader.of_type("device.exception")),
                ),
                ({"exception": None}, lambda: any(e.outcome == "success" for e in reader.of_type("device.exception"))),
                ({"silent": [1]}, lambda: reader.of_type("device.comms.lost")),
                ({"silent": []}, lambda: reader.of_type("device.comms.restored")),
            ):
                assert process.stdin is not None
                process.stdin.write(json.dumps(line).encode() + b"\n")
                await reader.until(wanted)
            await wire.cut()
            await reader.until(lambda: reader.errors)
            await wire.plug()
            await reader.until(lambda: len(reader.of_type("device.comms.restored")) == 2)
        assert {1, 2, 3, 4, 43} == set(wire.functions), "all that it knows how to ask was asked"
        assert set(wire.functions) <= READING
    async with program("mbpoll", "-m", "tcp", "-p", str(port), "-1", "127.0.0.1") as gone:
        assert await gone.wait() != 0, "the controller ended with its test"


async def test_every_value_that_was_read_had_stood_in_the_controller(tmp_path: Path) -> None:
    truth = tmp_path / "truth.jsonl"
    async with plc(truth, "--rate", "50", "--seed", "3") as (_, port):
        async with Reader(plc_settings(f"tcp://127.0.0.1:{port}", interval_s=0.02)) as reader:
            await reader.until(lambda: len(reader.of_type("equipment.counter")) > 60)
        written: dict[str, list[Any]] = {}
        for line in truth.read_text().splitlines():
            record = json.loads(line)
            written.setdefault(record["point"], []).append(record["value"])
    for name in ("cycles", "spindle_speed", "oil_temperature", "hydraulic_level", "state"):
        possible = iter(written[name])
        for value in reader.values(name):
            assert any(abs(float(value) - float(true)) < 1e-3 for true in possible), f"{name} was never {value} then"
    counts = [event.data for event in reader.of_type("equipment.counter")]
    assert sum(each.get("delta", 0) for each in counts) == counts[-1]["value"] - counts[0]["value"]


async def test_the_controller_is_the_same_for_the_same_seed_and_obeys_what_it_understands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from agent.simulator.plc import Plc, PlcModel

    def steps(seed: int) -> list[Any]:
        model = PlcModel(seed)
        return [model.step() for _ in range(200)]

    assert steps(7) == steps(7) != steps(8)
    controller = Plc(port=free_port(), truth=tmp_path / "t")
    for line in ('{"set": "mode", "value": 70000}', '{"set": "none", "value": 1}', "nonsense", '{"x": 1}', "[]"):
        controller.obey(line)
    assert capsys.readouterr().err.count("control: ") == 5
    controller.obey('{"set": "mode", "value": 0}')
    assert controller.model.values["mode"] == 0
    await controller.start()
    await controller.stop()
    await poll_until((tmp_path / "t").read_text)


async def test_the_runner_and_the_buffer_take_it_up_where_it_stood(tmp_path: Path) -> None:
    """Through the real pipeline: a setpoint changed while the agent was away is in the buffer, once, after it is back."""
    from agent.buffer import Buffer, BufferConfig
    from agent.component import Report
    from agent.pipeline import NoHandlers, Pipeline
    from agent.sources.modbus import ModbusSource
    from agent.wire.batch import read_frame

    async def life(url: str, *, until: str) -> None:
        buffer = await Buffer.open(tmp_path / "buffer.db", BufferConfig(free_bytes_min=0), AGENT)
        pipeline, report = Pipeline(buffer, NoHandlers()), Report()
        pipeline.start("plc", "modbus", ModbusSource("plc", plc_settings(url, interval_s=0.05), report), report)
        try:
            async with asyncio.timeout(30):
                while until not in (types := [event.type for event in await stored(buffer)]):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert types.count("configuration.setpoint.changed") <= 1
        finally:
            await pipeline.stop_all()
            await buffer.close()

    async def stored(buffer: Buffer) -> list[Any]:
        return [event for batch in await buffer.peek(10_000_000) for event in read_frame(batch.wire).events()]

    async with plc(tmp_path / "truth", "--control") as (process, port):
        await life(f"tcp://127.0.0.1:{port}", until="equipment.counter")
        assert process.stdin is not None
        process.stdin.write(b'{"set": "speed_setpoint", "value": 1900}\n')
        await poll_until(lambda: '"speed_setpoint", "value": 1900' in (tmp_path / "truth").read_text())
        await life(f"tcp://127.0.0.1:{port}", until="configuration.setpoint.changed")
