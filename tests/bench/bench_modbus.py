"""Modbus registers into the durable buffer, against the limit: a bare pymodbus loop that reads the same blocks and throws everything away.

A device in a process of its own has REGISTERS holding registers in blocks of 125, of which a share is another at every request. Each side
reads from a fresh one, in a process of its own, as fast as it can. What counts is registers a second of the reader's own processor time
("per core"), since device and reader share the machine. Every register is a point of its own, watched for changes; every change becomes an
event in the buffer. Rounds change their order; the median of each side counts.

    LINEWARDEN_BENCH_ROUNDS=3 LINEWARDEN_BENCH_SECONDS=4 pytest -s -m bench tests/bench/bench_modbus.py
"""

import asyncio
import contextlib
import multiprocessing
import os
import random
import statistics
import struct
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

REGISTERS = 12_500
BLOCK = 125
SECONDS = float(os.environ.get("LINEWARDEN_BENCH_SECONDS", "4"))
ROUNDS = int(os.environ.get("LINEWARDEN_BENCH_ROUNDS", "3"))
RATIO_MIN = 0.7
RATIO_SHARE = 0.01
"""At this share of changes it has to hold: at some thousand reads a second it still means ten thousand changes a second. The others are
printed: 0 shows what asking costs, 1 what an event costs.
"""
SHARES = (0.0, 0.01, 0.1, 1.0)
Spawned = multiprocessing.get_context("spawn")


class _Device(asyncio.Protocol):
    """As quick as Python allows: nothing but function 3, and `changing` registers of every answer are others than before."""

    def __init__(self, changing: int) -> None:
        self._changing = changing
        self._cells = [0] * REGISTERS
        self._draw = random.Random(1)
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        transaction, _, _, unit, function, address, count = struct.unpack(">HHHBBHH", data)
        cells = self._cells
        for at in self._draw.sample(range(address, address + count), min(self._changing, count)):
            cells[at] = (cells[at] + 1) & 0xFFFF
        body = struct.pack(f">{count}H", *cells[address : address + count])
        self._transport.write(struct.pack(">HHHBBB", transaction, 0, count * 2 + 3, unit, function, count * 2) + body)


def serve(share: float, port: Any) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: _Device(round(BLOCK * share)), "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


async def _ours(port: int, folder: Path) -> tuple[float, float]:
    from agent.buffer import Buffer, BufferConfig
    from agent.component import Report
    from agent.sources.modbus import ConfigModbus, ModbusSource
    from agent.sources.modbus_points import ConfigPoint

    points = tuple(ConfigPoint(name=f"p{at}", address=at) for at in range(REGISTERS))
    report = Report()
    source = ModbusSource("plc", ConfigModbus(url=f"tcp://127.0.0.1:{port}", points=points, interval_s=0.01), report)
    buffer = await Buffer.open(folder / f"buffer-{os.getpid()}.db", BufferConfig(free_bytes_min=0), "bench")
    begun = 0.0, 0.0, 0

    async def read() -> None:
        nonlocal begun
        async with contextlib.aclosing(source.batches(None)) as batches:
            async for events, cursor in batches:
                await buffer.append(events, source="plc", cursor=cursor)
                if not begun[2]:
                    begun = time.process_time(), time.monotonic(), report.counts["registers"]

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SECONDS + 2):
            await read()
    spent, took = time.process_time() - begun[0], time.monotonic() - begun[1]
    done = report.counts["registers"] - begun[2]
    await buffer.close()
    return done / spent, done / took


async def _bare(port: int) -> tuple[float, float]:
    from pymodbus.client import AsyncModbusTcpClient

    client = AsyncModbusTcpClient("127.0.0.1", port=port)
    await client.connect()
    await client.read_holding_registers(0, count=BLOCK)
    done, spent, begun = 0, time.process_time(), time.monotonic()
    while time.monotonic() - begun < SECONDS:
        for address in range(0, REGISTERS, BLOCK):
            answer = await client.read_holding_registers(address, count=BLOCK)
            done += len(answer.registers)
    speeds = done / (time.process_time() - spent), done / (time.monotonic() - begun)
    client.close()
    return speeds


def read(side: str, port: int, folder: str, speeds: Any) -> None:
    speeds.put(asyncio.run(_ours(port, Path(folder)) if side == "ours" else _bare(port)))


def _measure(side: str, share: float, folder: Path) -> tuple[float, float]:
    ports, speeds = Spawned.Queue(), Spawned.Queue()
    device = Spawned.Process(target=serve, args=(share, ports))
    device.start()
    reader = Spawned.Process(target=read, args=(side, ports.get(timeout=60), str(folder), speeds))
    reader.start()
    try:
        per_core, wall = speeds.get(timeout=300)
    finally:
        reader.join(30)
        device.kill()
        device.join()
    return float(per_core), float(wall)


def test_registers_into_the_buffer_against_a_bare_pymodbus_loop(tmp_path: Path) -> None:
    ratios = {}
    print()
    for share in SHARES:
        speeds: dict[str, list[tuple[float, float]]] = {"ours": [], "bare": []}
        for number in range(ROUNDS):
            for side in sorted(speeds, reverse=bool(number % 2)):
                speeds[side].append(_measure(side, share, tmp_path))
        ours, bare = (statistics.median(each[0] for each in speeds[side]) for side in ("ours", "bare"))
        walls = [statistics.median(each[1] for each in speeds[side]) for side in ("ours", "bare")]
        ratios[share] = ours / bare
        print(
            f"Modbus registers a second and core, {share:.0%} of them changing: into the buffer {ours:,.0f}, "
            f"bare and discarded {bare:,.0f}, ratio {ours / bare:.2f} (wall clock {walls[0]:,.0f} and {walls[1]:,.0f})"
        )
    assert ratios[RATIO_SHARE] >= RATIO_MIN


async def test_requests_against_the_least_possible_for_the_layout() -> None:
    """Blocks of all lengths with holes between them, in all four tables: one request for each 125 (2000) addresses of a block."""
    from tests.integration.modbus_line import Device, Reader, config, point

    draw, points, least = random.Random(5), [], 0
    async with Device() as device:
        for table, longest in (("holding", 125), ("input", 125), ("coil", 2_000), ("discrete", 2_000)):
            address = 0
            for _ in range(12):
                length = draw.choice([1, 2, 7, 60, 125, 126, 300])
                device.set(1, table, address, *([1] * length))
                points += [point(f"{table}{at}", at, table=table) for at in range(address, address + length)]
                least += -(-length // longest)
                address += length + draw.randrange(1, 9)
        async with Reader(config(device.url, *points, interval_s=0.05, heartbeat_s=0)) as reader:
            await reader.until(lambda: len(device.requests) >= least * 5)
            cycle = len({(r.function, r.address, r.count) for r in device.requests})
            print(f"\nModbus requests a cycle: {cycle}, least possible {least}, ratio {cycle / least:.2f}")
            assert cycle == reader.source.requests_planned == least
