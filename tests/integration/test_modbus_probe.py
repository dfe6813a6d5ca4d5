"""`linewarden-agent probe`, as a person runs it, against the virtual line's controller and against devices that are none."""

import asyncio
import contextlib
import json
import os
import pty
import signal
import sys
import textwrap
import time
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.sources.modbus import ConfigModbus
from tests.integration.modbus_line import Device, Reader, config, poll_until
from tests.integration.test_modbus_counterparts import plc
from tests.ports import free_port

PROGRAM = Path(sys.executable).with_name("linewarden-agent")


async def run(*options: str) -> tuple[int, str, str]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(str(PROGRAM), "probe", *options, stdout=pipe, stderr=pipe)
    out, err = await process.communicate()
    assert process.returncode is not None
    assert b"Traceback" not in err
    return process.returncode, out.decode(), err.decode()


async def test_what_is_printed_is_configuration_that_reads_the_device(tmp_path: Path) -> None:
    async with plc(tmp_path / "truth") as (_, port):
        url = f"tcp://127.0.0.1:{port}"
        code, out, err = await run(
            url, "--addresses", "0-320", "--rate", "1000", "--all", "--name", "press", "--identify"
        )
        assert (code, err) == (0, "")
        source = tomllib.loads(out)["sources"]["press"]
        assert source.pop("type") == "modbus"
        settings = msgspec.convert(source, ConfigModbus)
        read = {(p.table, p.address) for p in settings.points}
        assert read == {
            *(("holding", at) for at in [*range(100, 108), 200, 201, 202, *range(300, 308)]),
            ("input", 0), ("discrete", 0), ("coil", 0),
        }  # fmt: skip
        assert "# holding 100 to 107: 8 readable" in out
        assert "# identification 0: ACME" in out
        assert 'as float32 with word_order = "big": 55' in out
        async with Reader(config(url, *settings.points)) as reader:
            await reader.until(lambda: len({event.target for event in reader.events}) == len(read))


async def test_a_script_gets_json() -> None:
    async with Device() as device:
        device.set(1, "holding", 10, 1, 0, 3)
        code, out, _ = await run(device.url, "--addresses", "0-20", "--rate", "1000", "--table", "holding", "--json")
        shown = json.loads(out)
        assert code == 0
        assert shown["complete"] is True
        assert shown["readable"] == [{"table": "holding", "address": 10, "values": [1, 0, 3]}]
        assert shown["requests"] == len(device.requests)


async def test_it_is_polite_and_leaves_a_table_that_the_device_does_not_know() -> None:
    async with Device() as device:
        device.set(1, "holding", 0, 7)
        device.body = lambda request, body: body if request.function == 3 else bytes((request.function | 0x80, 1))
        begun = time.monotonic()
        code, out, _ = await run(device.url, "--addresses", "0-3", "--rate", "10")
        assert code == 0
        assert len(device.requests) == 10, "seven for the registers, one for each other table"
        assert time.monotonic() - begun >= 0.9
        assert device.open_most == 1
        assert "coil: the device does not know this table" in out


async def test_a_device_that_falls_silent_is_left_in_peace_and_what_was_found_is_told() -> None:
    async with Device() as device:
        device.set(1, "holding", 0, *([7] * 1_000))
        device.delay_s = lambda request: 60.0 if request.address >= 250 else 0.0
        code, out, err = await run(device.url, "--rate", "1000", "--timeout", "0.5")
        assert code == 0
        assert len(device.requests) == 5
        assert "it stopped answering at holding 500" in err
        assert "# holding 0 to 249: 250 readable" in out


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("tcp://127.0.0.1:{free}",), 1, "cannot be reached"),
        (("tcp://127.0.0.1:{silent}", "--timeout", "0.05"), 1, "unit 1 does not answer"),
        (("tcp://127.0.0.1:{silent}", "--unit", "9"), 1, "gateway target did not respond. Is it another number?"),
        (("http://127.0.0.1",), 2, "is not a Modbus address"),
        (("tcp://127.0.0.1", "--addresses", "9-1"), 2, "is no range like 0-999"),
        (("tcp://127.0.0.1", "--unit", "300"), 2, "is no number from 0 to 255"),
        (("tcp://127.0.0.1", "--rate", "nan"), 2, "is no number from 0.1 to 1000"),
        (("rtu:///dev/there-is-none",), 1, "cannot be opened"),
    ],
)
async def test_what_cannot_be_probed_says_why_and_what_to_do(options: tuple[str, ...], code: int, says: str) -> None:
    async with Device(silent={1}, exceptions={9: 11}) as device:
        filled = [option.format(free=free_port(), silent=device.port) for option in options]
        got, out, err = await run(*filled)
        assert got == code, err
        assert says in err
        assert out == ""


@pytest.mark.parametrize(
    ("missing", "says"), [("pymodbus", "needs pymodbus, which"), ("serial", "needs pyserial, which")]
)
async def test_what_is_not_installed_is_named_with_what_to_install(missing: str, says: str) -> None:
    program = f"""
        import sys
        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == {missing!r}:
                    raise ModuleNotFoundError(f"No module named {{name}}", name=name)
        sys.meta_path.insert(0, Missing())
        from agent.cli import main
        sys.argv = ["linewarden-agent", "probe", "rtu:///dev/ttyS0"]
        sys.exit(main())
    """
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", textwrap.dedent(program), stderr=pipe)
    _, err = await process.communicate()
    assert process.returncode == 2
    assert says in err.decode()
    assert "pip install 'linewarden[modbus]'" in err.decode()


async def test_a_busy_device_is_asked_again_and_a_gateway_without_ids_is_read_on_request() -> None:
    """Being busy says nothing about an address: halves of a block were asked for, and addresses left out that are there."""
    async with Device() as device:
        device.set(1, "holding", 0, *range(1, 11))
        device.frame = lambda _, frame: b"\0\0" + frame[2:]
        asked = (device.url, "--rate", "1000", "--table", "holding")
        code, out, err = await run(*asked)
        assert (code, out) == (1, "")
        assert "unit 1 answers wrongly: transaction id" in err
        assert 'set transaction_id = "ignore"' in err
        busy = iter([6, 5])
        device.body = lambda _, body: bytes((0x83, code)) if (code := next(busy, 0)) else body
        code, out, err = await run(*asked, "--addresses", "0-9", "--ignore-transaction-id")
        assert (code, err) == (0, "")
        assert 'transaction_id = "ignore"' in out
        assert "# holding 0 to 9: 10 readable" in out
        assert [request.count for request in device.requests[-3:]] == [10, 10, 10]


async def test_on_a_terminal_it_shows_where_it_is_and_ctrl_c_ends_it_with_what_was_found() -> None:
    async with Device() as device:
        device.set(1, "holding", 0, *([7] * 200))
        main, terminal = pty.openpty()
        # A shell starts what runs in the background with SIGINT ignored, and that is inherited: not so at a terminal.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            process = await asyncio.create_subprocess_exec(
                str(PROGRAM), "probe", device.url, "--rate", "20", stdout=asyncio.subprocess.PIPE, stderr=terminal
            )
        finally:
            signal.signal(signal.SIGINT, before)
        os.close(terminal)
        os.set_blocking(main, False)
        shown = bytearray()

        def read() -> None:
            # All the while, as a terminal does: who is not read stands still in the middle of a word.
            with contextlib.suppress(OSError):
                shown.extend(os.read(main, 4_096))

        asyncio.get_running_loop().add_reader(main, read)

        def seen() -> bool:
            return b"readable" in shown and b"requests" in shown and len(device.requests) > 5

        await poll_until(seen)
        process.send_signal(signal.SIGINT)
        out: Any = (await process.communicate())[0]
        asyncio.get_running_loop().remove_reader(main)
        os.close(main)
        assert process.returncode == 0
        assert b"# holding 0 to 1" in out
        assert b"there may be more" in out
