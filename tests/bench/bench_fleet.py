"""200 agents at once: what one collector takes from all of them together, against the same from one, and whether its memory stays flat.

Each agent has a key and a chain of its own and sends its next batches as soon as the last are acknowledged, over a connection of its
own. All are in this process, which their sealing is owed to. Memory is that of the collector, looked at each second.

    LINEWARDEN_BENCH_AGENTS=200 LINEWARDEN_BENCH_SECONDS=30 pytest -s -m bench tests/bench/bench_fleet.py
"""

import asyncio
import os
import time
from pathlib import Path

import httpx
import pytest

from agent.simulator.postgres import Postgres
from tests.collector_process import Chain, Collector, event, now_us

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1200)]

AGENTS = int(os.environ.get("LINEWARDEN_BENCH_AGENTS", "200"))
SECONDS = float(os.environ.get("LINEWARDEN_BENCH_SECONDS", "20"))
BATCHES, EVENTS = 5, 100
"""In a request, as an agent sends that has a little waiting."""
RATIO_MIN = 0.5
GROWTH_BYTES_MAX = 64 * 2**20
"""From the end of the first quarter on."""


def _rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _agent(url: str, key: str, until_s: float) -> tuple[int, int]:
    """Events stored, and requests that were told to come again."""
    chain, stored, again = Chain(), 0, 0
    some = [event("password refused", time=now_us(), data={"port": n}) for n in range(EVENTS)]
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
        while time.monotonic() < until_s:
            body = b"".join(chain.seal(some).frame for _ in range(BATCHES))
            while (answer := await client.post("/v1/batches", content=body)).status_code == 503:
                again += 1
                await asyncio.sleep(float(answer.headers["Retry-After"]))
            assert answer.status_code == 200, answer.text
            stored += answer.json()["events"]
    return stored, again


async def _measure(collector: Collector, agents: int) -> tuple[float, int, list[int]]:
    """Events a second, requests told to come again, and the collector's memory by the second."""
    keys = [collector.key("agent", site="fleet", station=f"s{n}") for n in range(agents)]
    began = time.monotonic()
    sending = asyncio.gather(*(_agent(collector.url, key, began + SECONDS) for key in keys))
    memory = []
    while not sending.done():
        memory.append(_rss_bytes(collector.pid))
        await asyncio.sleep(1)
    found = await sending
    took_s = time.monotonic() - began
    return sum(stored for stored, _ in found) / took_s, sum(again for _, again in found), memory


def test_two_hundred_agents_at_once_are_served_like_one_in_flat_memory(postgres: Postgres) -> None:
    with Collector(postgres.create_database("fleet")) as collector:
        asyncio.run(
            _measure(collector, 4)
        )  # not counted: programs are read from the disk, partitions are touched for the first time
        one, _, _ = asyncio.run(_measure(collector, 1))
        all_, again, memory = asyncio.run(_measure(collector, AGENTS))
    settled = memory[len(memory) // 4 :]
    growth = max(settled) - settled[0]
    print(
        f"\n{AGENTS} agents at once: {all_:,.0f} events/s, one alone {one:,.0f}/s, ratio {all_ / one:.2f} (limit {RATIO_MIN}); "
        f"{again} requests told to come again; memory {settled[0] / 2**20:.0f} MiB after a quarter of the time, "
        f"{max(settled) / 2**20:.0f} at most, {memory[-1] / 2**20:.0f} at the end"
    )
    assert all_ / one >= RATIO_MIN
    assert growth <= GROWTH_BYTES_MAX
