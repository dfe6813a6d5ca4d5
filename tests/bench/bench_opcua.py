"""OPC UA changes into the durable buffer, against the limit: a bare asyncua subscription whose iterator throws everything away.

Each side reads the same number of changes from its own run of the same press cell, in a process of its own; the server runs in another.
What counts is changes per second of the reader's own processor time ("per core"), since the server, which is asyncua's too and shares
the machine, is slower than either reader. Rounds change their order; the median of each side counts.

    LINEWARDEN_BENCH_CHANGES=40000 pytest -s -m bench tests/bench/bench_opcua.py
"""

import asyncio
import contextlib
import multiprocessing
import os
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.opcua_line import free_port

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

CHANGES = int(os.environ.get("LINEWARDEN_BENCH_CHANGES", "60000"))
ROUNDS = int(os.environ.get("LINEWARDEN_BENCH_ROUNDS", "3"))
STEPS_A_BURST = 50
RATIO_MIN = 0.7
Spawned = multiprocessing.get_context("spawn")


async def _serve(port: int, began: Any) -> None:
    """Steps in bursts with pauses for the publishing, so that no queue overflows, until it is killed."""
    from agent.simulator.opcua_server import PressCell

    cell = PressCell(port=port, seed=1)
    await cell.start()
    began.set()
    while True:
        for _ in range(STEPS_A_BURST):
            await cell.step()
        await asyncio.sleep(0.05)


def serve(port: int, began: Any) -> None:
    asyncio.run(_serve(port, began))


async def _ours(url: str, folder: Path) -> float:
    from agent.buffer import Buffer, BufferConfig
    from agent.component import Report
    from agent.sources.opcua import OpcUaSource
    from tests.integration.opcua_line import config

    buffer = await Buffer.open(folder / f"buffer-{os.getpid()}.db", BufferConfig(free_bytes_min=0), "bench")
    source = OpcUaSource("cell", config(url, queue_size=10_000), Report())
    changes, began = 0, 0.0
    async with contextlib.aclosing(source.batches(None)) as batches:
        async for events, cursor in batches:
            await buffer.append(events, source="cell", cursor=cursor)
            if not began and events:
                began = time.process_time()
                continue
            changes += len(events)
            if changes >= CHANGES:
                break
    taken = time.process_time() - began
    await buffer.close()
    return changes / taken


async def _bare(url: str) -> float:
    from asyncua import ua
    from asyncua.client.client import Client

    from agent.simulator.opcua_server import NAMESPACE, NODES

    types: Any = ua
    client = Client(url)
    await client.connect()
    index = await client.get_namespace_index(NAMESPACE)
    parameters = types.CreateSubscriptionParameters(
        RequestedPublishingInterval=50,
        RequestedLifetimeCount=3_000,
        RequestedMaxKeepAliveCount=10,
        PublishingEnabled=True,
    )
    subscription = await client.create_subscription(parameters, queue_maxsize=1_000_000)
    await subscription.subscribe_data_change(
        [client.get_node(types.NodeId(name, index)) for name in NODES], queuesize=10_000
    )
    for _ in NODES:
        await anext(subscription)
    changes, began = 0, time.process_time()
    async for _ in subscription:
        changes += 1
        if changes >= CHANGES:
            break
    taken = time.process_time() - began
    await client.disconnect()
    return changes / taken


def read(side: str, url: str, folder: str, speeds: Any) -> None:
    speeds.put(asyncio.run(_ours(url, Path(folder)) if side == "ours" else _bare(url)))


def _measure(side: str, folder: Path) -> float:
    port, began = free_port(), Spawned.Event()
    server = Spawned.Process(target=serve, args=(port, began))
    server.start()
    assert began.wait(60)
    speeds = Spawned.Queue()
    reader = Spawned.Process(target=read, args=(side, f"opc.tcp://127.0.0.1:{port}/press", str(folder), speeds))
    reader.start()
    try:
        return float(speeds.get(timeout=900))
    finally:
        reader.join(30)
        server.kill()
        server.join()


def test_changes_into_the_buffer_against_a_bare_subscription_that_discards(tmp_path: Path) -> None:
    speeds: dict[str, list[float]] = {"ours": [], "bare": []}
    for number in range(ROUNDS):
        for side in sorted(speeds, reverse=bool(number % 2)):
            speeds[side].append(_measure(side, tmp_path))
    ours, bare = (statistics.median(speeds[side]) for side in ("ours", "bare"))
    print(
        f"\nOPC UA changes a second and core: into the buffer {ours:,.0f}, bare and discarded {bare:,.0f}, ratio {ours / bare:.2f}"
    )
    assert ours / bare >= RATIO_MIN
