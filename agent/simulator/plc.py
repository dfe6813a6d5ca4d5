"""The virtual line's controller: a real Modbus TCP server whose registers follow a seeded model.

What the controller does is a pure function of its seed and of how many steps it has made. `cycles` grows by exactly one a step, so that
whoever reads it can tell a missed step, and `--truth FILE` writes every change down, one JSON object a line, once it can be read.

    python -m agent.simulator.plc --port 5020 --seed 7 --rate 10 --control

With `--control` it obeys JSON lines on stdin: {"set": "speed_setpoint", "value": 1900}, {"rate": 50}, {"silent": [2]} (units that say
nothing), {"exception": 4} (every answer is this exception; null ends it), {"delay_s": 0.5}. It takes writes over the wire as well
(functions 5, 6, 15, 16), so that any Modbus tool can play the attacker. An address where nothing stands is answered with exception 2, as
real devices do.
"""

import argparse
import asyncio
import contextlib
import json
import random
import signal
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE, TARGET_SILENT = 1, 2, 3, 11
CONNECTIONS_MAX = 64
"""One more is hung up on at once."""
LENGTH_MIN, LENGTH_MAX = 2, 254
"""Of what follows the length field of a request."""
READ_MAX: Final = {1: 2_000, 2: 2_000, 3: 125, 4: 125}
"""By function: how many one request may ask for."""
IDENTITY: Final = {0: "ACME", 1: "PC4", 2: "V2.1"}
_TABLES: Final = {1: "coil", 2: "discrete", 3: "holding", 4: "input"}
_FORMS: Final = {"uint16": ">H", "int16": ">h", "uint32": ">I", "float32": ">f"}
_STATES: Final = ("running", "running", "running", "idle", "starved", "fault")


@dataclass(frozen=True, slots=True)
class Point:
    """Where a value stands, what it is at first, and what a reader should know of it."""

    table: str
    address: int
    type: str
    first: int | float | str
    settings: Mapping[str, Any]
    """More keys for a reader's configuration: role, unit, scale, deadband, texts, quantity, range."""


POINTS: Final[dict[str, Point]] = {
    "oil_temperature": Point(
        "holding",
        100,
        "float32",
        55.0,
        {"unit": "degC", "deadband": 0.2, "quantity": "temperature", "range": (-20, 150)},
    ),
    "oil_pressure": Point(
        "holding", 102, "float32", 160.0, {"unit": "bar", "deadband": 1.0, "quantity": "pressure", "range": (0, 400)}
    ),
    "spindle_speed": Point(
        "holding", 104, "uint16", 1_200, {"unit": "1/min", "deadband": 5.0, "quantity": "speed", "range": (0, 6_000)}
    ),
    "cycles": Point("holding", 105, "uint32", 0, {"role": "counter"}),
    "state": Point(
        "holding",
        107,
        "uint16",
        0,
        {
            "role": "state",
            "texts": {"0": "running", "1": "idle", "2": "starved", "3": "fault"},
            "quantity": "running",
        },
    ),
    "speed_setpoint": Point("holding", 200, "uint16", 1_200, {"role": "setpoint", "unit": "1/min"}),
    "temperature_setpoint": Point("holding", 201, "int16", 550, {"role": "setpoint", "unit": "degC", "scale": 0.1}),
    "mode": Point("holding", 202, "uint16", 1, {"role": "mode", "texts": {"0": "manual", "1": "automatic"}}),
    "program": Point("holding", 300, "string(16)", "PRESS-4.2", {"role": "identity"}),
    "hydraulic_level": Point("input", 0, "uint16", 870, {"unit": "mm", "deadband": 3.0, "quantity": "level"}),
    "guard_closed": Point("discrete", 0, "bool", 1, {"role": "state"}),
    "lubrication": Point("coil", 0, "bool", 0, {"role": "state"}),
}
"""Everything there is. The tables have nothing else: an address beside these is refused."""
_TEXT_OF_STATE: Final = {text: number for number, text in enumerate(("running", "idle", "starved", "fault"))}


def configuration(source: str) -> str:
    """The points as a reader's configuration, in TOML."""
    lines = []
    for name, point in POINTS.items():
        lines += [f"[[sources.{source}.points]]", f"name = {json.dumps(name)}", f"table = {json.dumps(point.table)}"]
        lines += [f"address = {point.address}", f"type = {json.dumps(point.type)}"]
        for key, value in point.settings.items():
            inline = (
                "{ " + ", ".join(f"{number} = {json.dumps(text)}" for number, text in value.items()) + " }"
                if isinstance(value, Mapping)
                else json.dumps(value)
            )
            lines.append(f"{key} = {inline}")
    return "\n".join(lines) + "\n"


class PlcModel:
    """What the controller does, step by step: no clock, no network, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.values: dict[str, int | float | str] = {name: point.first for name, point in POINTS.items()}

    def step(self) -> dict[str, int | float | str]:
        """The points that change with this step and their new values; `cycles` is always one of them."""
        draw, now = self._random.gauss, self.values
        speed, wanted = float(now["spindle_speed"]), float(now["speed_setpoint"])
        oil = float(now["oil_temperature"])
        changes: dict[str, int | float | str] = {
            "cycles": (int(now["cycles"]) + 1) % 2**32,
            "oil_temperature": round(oil + (float(now["temperature_setpoint"]) / 10 - oil) * 0.02 + draw(0, 0.1), 3),
            "oil_pressure": round(160.0 + draw(0, 1.5), 2),
            "spindle_speed": min(65_535, max(0, round(speed + (wanted - speed) * 0.2 + draw(0, 2)))),
            "hydraulic_level": min(1_000, max(0, round(870 + draw(0, 2)))),
        }
        if int(changes["cycles"]) % 25 == 0:
            changes["state"] = _TEXT_OF_STATE[self._random.choice(_STATES)]
            changes["lubrication"] = 1 - int(now["lubrication"])
        changes = {name: value for name, value in changes.items() if value != now[name]}
        self.values |= changes
        return changes


def _encode(point: Point, value: float | str) -> list[int]:
    """What stands in the addresses of a point."""
    if point.type == "bool":
        return [int(bool(value))]
    if point.type.startswith("string"):
        length = int(point.type[7:-1])
        packed = str(value).encode()[:length].ljust(length + length % 2, b"\0")
    elif point.type == "float32":
        packed = struct.pack(">f", float(value))
    else:
        packed = struct.pack(_FORMS[point.type], int(value))
    return [int.from_bytes(packed[at : at + 2], "big") for at in range(0, len(packed), 2)]


class _Refused(Exception):
    """Answered with this exception code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Plc:
    """The server around the model. `start`, then `step` as often as wanted, or `run`; `stop` at the end."""

    def __init__(
        self,
        *,
        port: int,
        seed: int = 1,
        host: str = "127.0.0.1",
        units: Sequence[int] = (1,),
        truth: Path | None = None,
    ) -> None:
        self.url = f"tcp://{host}:{port}"
        self.model = PlcModel(seed)
        self.units = frozenset(units)
        """All of them show the same memory; any other unit is answered for by the gateway, with exception 11."""
        self.silent: frozenset[int] = frozenset()
        self.exception: int | None = None
        self.delay_s = 0.0
        self.rate = 2.0
        self.requests = 0
        self._host, self._port = host, port
        self._memory: dict[str, dict[int, int]] = {table: {} for table in _TABLES.values()}
        self._truth_path = truth
        self._truth: IO[str] | None = None
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        for name in POINTS:
            self._put(name)

    async def start(self) -> None:
        """Listen."""
        if self._truth_path is not None:
            self._truth = self._truth_path.open("a", encoding="utf-8")
            for name in POINTS:
                self._note(name)
        self._server = await asyncio.start_server(self._serve, self._host, self._port, reuse_address=True)

    async def stop(self) -> None:
        """Close the port and every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        if self._truth is not None:
            self._truth.close()

    # What changes -------------------------------------------------------------------------------------------------------------

    def set(self, name: str, value: float | str) -> None:
        """Write a value as the machine, an operator or an attacker would, and into the truth."""
        _encode(POINTS[name], value)  # what does not fit is refused before anything changes
        self.model.values[name] = value
        self._put(name)
        self._note(name)

    def step(self) -> dict[str, int | float | str]:
        """One step of the model, in the registers."""
        changes = self.model.step()
        for name in changes:
            self._put(name)
            self._note(name)
        return changes

    async def run(self, rate: float = 2.0, steps: int = 0) -> None:
        """Step at a fixed rate, drift-free; for ever when `steps` is 0."""
        self.rate = rate
        due, done = time.monotonic(), 0
        while steps == 0 or done < steps:
            self.step()
            done += 1
            due = max(due + 1 / self.rate, time.monotonic() - 1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _put(self, name: str) -> None:
        point = POINTS[name]
        cells = self._memory[point.table]
        cells.update(enumerate(_encode(point, self.model.values[name]), point.address))

    def _note(self, name: str) -> None:
        if self._truth is not None:
            record = {"point": name, "value": self.model.values[name], "time_us": time.time_ns() // 1000}
            self._truth.write(json.dumps(record) + "\n")
            self._truth.flush()

    # What is asked ------------------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (start_server runs it as one)
        self._open.add(task)
        try:
            while len(self._open) <= CONNECTIONS_MAX:
                head = await reader.readexactly(7)
                transaction, protocol, length, unit = struct.unpack(">HHHB", head)
                if protocol != 0 or not LENGTH_MIN <= length <= LENGTH_MAX:
                    break
                body = await reader.readexactly(length - 1)
                self.requests += 1
                if unit in self.silent:
                    continue
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                answer = self._answer(unit, body)
                writer.write(struct.pack(">HHHB", transaction, 0, len(answer) + 1, unit) + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # gone, or this server is being stopped: there is nobody to tell
        finally:
            self._open.discard(task)
            writer.close()

    def _answer(self, unit: int, body: bytes) -> bytes:
        function = body[0]
        code = self.exception if unit in self.units else TARGET_SILENT
        if code is not None:
            return bytes((function | 0x80, code))
        try:
            if function in _TABLES:
                return self._read(function, body)
            if function == 43:  # noqa: PLR2004 (device identification)
                return self._identify(body)
            return self._write(function, body)
        except _Refused as refused:
            return bytes((function | 0x80, refused.code))
        except struct.error:
            return bytes((function | 0x80, ILLEGAL_VALUE))

    def _read(self, function: int, body: bytes) -> bytes:
        address, count = struct.unpack(">HH", body[1:])
        if not 1 <= count <= READ_MAX[function]:
            raise _Refused(ILLEGAL_VALUE)
        cells = self._memory[_TABLES[function]]
        try:
            values = [cells[at] for at in range(address, address + count)]
        except KeyError:
            raise _Refused(ILLEGAL_ADDRESS) from None
        if function > 2:  # noqa: PLR2004 (3 and 4 are the registers)
            return bytes((function, count * 2)) + struct.pack(f">{count}H", *values)
        packed = sum(value << at for at, value in enumerate(values)).to_bytes((count + 7) // 8, "little")
        return bytes((function, len(packed))) + packed

    @staticmethod
    def _identify(body: bytes) -> bytes:
        if len(body) != 4 or body[1] != 14:  # noqa: PLR2004 (read device identification)
            raise _Refused(ILLEGAL_FUNCTION)
        objects = b"".join(bytes((number, len(text))) + text.encode() for number, text in IDENTITY.items())
        return bytes((43, 14, body[2], 1, 0, 0, len(IDENTITY))) + objects

    def _write(self, function: int, body: bytes) -> bytes:
        """Functions 5, 6, 15 and 16, from whoever plays the attacker. The model goes on from what was written."""
        if function not in {5, 6, 15, 16}:
            raise _Refused(ILLEGAL_FUNCTION)
        address, count = struct.unpack(">HH", body[1:5])
        bits = function in {5, 15}
        if function in {5, 6}:
            values = [int(count != 0) if bits else count]
        elif bits:
            packed = int.from_bytes(body[6:], "little")
            values = [packed >> at & 1 for at in range(count)]
        else:
            values = list(struct.unpack(f">{count}H", body[6:]))
        cells = self._memory["coil" if bits else "holding"]
        if not values or any(at not in cells for at in range(address, address + len(values))):
            raise _Refused(ILLEGAL_ADDRESS)
        cells.update(enumerate(values, address))
        self._take_over("coil" if bits else "holding", range(address, address + len(values)))
        return body[:5]

    def _take_over(self, table: str, written: range) -> None:
        for name, point in POINTS.items():
            size = len(_encode(point, point.first))
            if point.table != table or not set(range(point.address, point.address + size)) & set(written):
                continue
            cells = [self._memory[table][point.address + at] for at in range(size)]
            packed = struct.pack(f">{size}H", *cells)
            if point.type == "bool":
                self.model.values[name] = cells[0]
            elif point.type.startswith("string"):
                self.model.values[name] = packed.split(b"\0", 1)[0].decode("utf-8", "replace")
            else:
                self.model.values[name] = struct.unpack(_FORMS[point.type], packed)[0]
            self._note(name)

    def obey(self, line: str) -> None:
        """One command of `--control`. What cannot be understood is answered on stderr and changes nothing."""
        try:
            command = json.loads(line)
            if "set" in command:
                self.set(command["set"], command["value"])
            elif "rate" in command:
                self.rate = max(0.01, float(command["rate"]))
            elif "silent" in command:
                self.silent = frozenset(int(unit) for unit in command["silent"])
            elif "exception" in command:
                self.exception = None if command["exception"] is None else int(command["exception"]) & 0xFF
            elif "delay_s" in command:
                self.delay_s = max(0.0, float(command["delay_s"]))
            else:
                print(f"control: there is no such command: {line.strip()[:200]!r}", file=sys.stderr)
        except (ValueError, KeyError, TypeError, OverflowError, struct.error) as error:
            print(f"control: {line.strip()[:200]!r}: {error}", file=sys.stderr)


async def _control(plc: Plc) -> None:
    reader = asyncio.StreamReader(limit=65_536)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        plc.obey(line.decode("utf-8", "replace"))


async def _main(arguments: argparse.Namespace) -> None:
    plc = Plc(
        port=arguments.port,
        seed=arguments.seed,
        host=arguments.host,
        units=arguments.unit or [1],
        truth=arguments.truth,
    )
    await plc.start()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    print(f"READY modbus://{arguments.host}:{arguments.port}", flush=True)
    tasks = [asyncio.create_task(plc.run(arguments.rate, arguments.steps))]
    if arguments.control:
        tasks.append(asyncio.create_task(_control(plc)))
    try:
        await stopped.wait()
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)
        await plc.stop()


def _arguments() -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    yield ("--port",), {"type": int, "default": 5020}
    yield ("--host",), {"default": "127.0.0.1"}
    yield ("--seed",), {"type": int, "default": 1, "help": "the same seed makes the same values"}
    yield ("--rate",), {"type": float, "default": 2.0, "help": "steps a second"}
    yield ("--steps",), {"type": int, "default": 0, "help": "stop changing after so many steps; 0: never"}
    yield ("--unit",), {"type": int, "action": "append", "help": "a unit that answers (default: 1); may be repeated"}
    yield ("--truth",), {"type": Path, "help": "write every value here, one JSON object a line"}
    yield ("--control",), {"action": "store_true", "help": "obey JSON lines on stdin"}


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m agent.simulator.plc", description="A virtual controller that speaks Modbus TCP."
    )
    for flags, options in _arguments():
        parser.add_argument(*flags, **options)
    asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
