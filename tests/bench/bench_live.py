"""From the acknowledgement of a batch to the WebSocket message that has its events: p50 and p99 with 1, 50 and 500 clients.

Small batches come at a steady rate; each event carries when it was sent, and each client says how long it took until it had it, so
the time that storing takes is in it too. All clients are in this process, which the time of the largest number owes a part to.

    LINEWARDEN_BENCH_CLIENTS=1,50,500 LINEWARDEN_BENCH_RATE=1000 LINEWARDEN_BENCH_SECONDS=20 pytest -s -m bench tests/bench/bench_live.py
"""

import asyncio
import json
import os
import threading
import time

import pytest
from websockets.asyncio.client import connect

from tests.collector_process import Chain, Collector, event, now_us, post

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]

CLIENTS = [int(n) for n in os.environ.get("LINEWARDEN_BENCH_CLIENTS", "1,50").split(",")]
RATE = int(os.environ.get("LINEWARDEN_BENCH_RATE", "1000"))
SECONDS = float(os.environ.get("LINEWARDEN_BENCH_SECONDS", "5"))
BATCH = 20
P99_MS_MAX = 100.0
"""With 50 clients."""


def _send(collector: Collector, key: str, stop: threading.Event) -> None:
    chain = Chain()
    with collector.client(key) as client:
        started, sent = time.monotonic(), 0
        while not stop.is_set():
            sent += BATCH
            assert post(client, chain.seal([event(time=now_us()) for _ in range(BATCH)])).status_code == 200
            stop.wait(max(0.0, started + sent / RATE - time.monotonic()))


async def _client(
    collector: Collector, key: str, ready: asyncio.Semaphore, until: asyncio.Event
) -> tuple[list[float], int]:
    """Milliseconds of each message, from the sending of its newest event; and the number of its events."""
    took: list[float] = []
    events = 0
    url = f"ws://127.0.0.1:{collector.port}/v1/stream"
    async with connect(url, additional_headers={"Authorization": f"Bearer {key}"}, proxy=None, max_size=None) as socket:
        await socket.recv()
        ready.release()
        while not until.is_set():
            try:
                body = await asyncio.wait_for(socket.recv(), 0.5)
            except TimeoutError:
                continue
            arrived = now_us()
            message = json.loads(body)
            assert message["type"] == "events", message["type"]
            events += len(message["events"])
            newest = message["events"][-1]["time"]
            took.append((arrived - _us(newest)) / 1000)
    return took, events


def _us(text: str) -> int:
    from datetime import UTC, datetime, timedelta

    return int((datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))


async def _measure(collector: Collector, count: int) -> tuple[float, float, int]:
    viewer, agent = collector.key("viewer"), collector.key("agent")
    ready, until, stop = asyncio.Semaphore(0), asyncio.Event(), threading.Event()
    clients = [asyncio.create_task(_client(collector, viewer, ready, until)) for _ in range(count)]
    for _ in range(count):
        await ready.acquire()
    sending = asyncio.create_task(asyncio.to_thread(_send, collector, agent, stop))
    await asyncio.sleep(SECONDS)
    stop.set()
    await sending
    await asyncio.sleep(1)
    until.set()
    found = await asyncio.gather(*clients)
    assert len({events for _, events in found}) == 1, "all clients see the same"
    took = sorted(one for times, _ in found for one in times)
    return took[len(took) // 2], took[int(len(took) * 0.99)], found[0][1]


def test_events_reach_live_clients_in_time(dsn: str) -> None:
    measured: dict[int, float] = {}
    with Collector(dsn) as collector:
        asyncio.run(
            _measure(collector, 1)
        )  # programs are read from the disk, partitions are touched for the first time
        for count in CLIENTS:
            p50, p99, events = asyncio.run(_measure(collector, count))
            measured[count] = p99
            print(
                f"\n{count} clients: p50 {p50:.0f} ms, p99 {p99:.0f} ms; {events / SECONDS:,.0f} events/s (asked for {RATE:,}/s)",
                end="",
            )
    print(f"\naim: p99 {P99_MS_MAX:g} ms with 50 clients")
    assert all(p99 <= P99_MS_MAX for count, p99 in measured.items() if count <= 50), measured
