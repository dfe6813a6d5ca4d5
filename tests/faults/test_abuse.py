"""Eight clients without a key abuse the collector beside 200 agents: the agents notice nothing, and nothing of it stays.

An hour, or LINEWARDEN_ABUSE_SECONDS. Half of the clients come from the address of the agents, half from addresses of their own.
"""

import asyncio
import contextlib
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from agent.wire.signature import HEAD, HEADER
from tests.collector_process import ROOT, Chain, Collector, event, now_us, poll_until
from tests.faults.abuse import KINDS, KNOWN_KEY
from tests.integration.test_enrolment import Station, enrolled
from tests.postgres import Postgres

pytestmark = [pytest.mark.long, pytest.mark.timeout(0)]

SECONDS = float(os.environ.get("LINEWARDEN_ABUSE_SECONDS", "3600"))
AGENTS = 200
EVERY_S = 5.0
P99_S_MAX = 1.0
GROWTH_BYTES_MAX = 192 * 2**20
LOG_BYTES_A_MINUTE_MAX = 65_536
RETRY_S = 0.5
CONTEXT = ssl.create_default_context()
"""Of all agents' clients: to make one takes 50 ms, in which nobody is served."""


def memory_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - of a folder in /proc


@contextlib.contextmanager
def abusers(port: int, known_key: str) -> Iterator[None]:
    """One of each kind."""
    env = {**os.environ, KNOWN_KEY: known_key}
    processes = []
    try:
        for n, kind in enumerate(KINDS):
            address = "127.0.0.1" if n % 2 else f"127.0.0.{10 + n}"
            command = [sys.executable, "-m", "tests.faults.abuse", kind, "--port", str(port), "--address", address]
            processes.append(subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL))
        yield
        assert [process.poll() for process in processes] == [None] * len(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


class Fleet:
    """The agents: one signs, the others have a key each. Every request is timed until it is acknowledged."""

    def __init__(self, collector: Collector, station: Station) -> None:
        self.took_s: list[float] = []
        self.stored = self.tries = 0
        self._url = collector.url
        self._station = station
        keys = (collector.key("agent", site="fleet", station=f"s{n}") for n in range(AGENTS - 1))
        self._agents: list[tuple[str | None, Chain]] = [(None, station.chain), *((key, Chain()) for key in keys)]

    async def run(self, seconds: float) -> None:
        """Send for so long."""
        self.took_s.clear()
        self.stored = self.tries = 0
        until_s = time.monotonic() + seconds
        await asyncio.gather(*(self._agent(n, key, chain, until_s) for n, (key, chain) in enumerate(self._agents)))

    async def _agent(self, number: int, key: str | None, chain: Chain, until_s: float) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        await asyncio.sleep(number * EVERY_S / AGENTS)
        async with httpx.AsyncClient(
            base_url=self._url, headers=headers, timeout=30, trust_env=False, verify=CONTEXT
        ) as client:
            while time.monotonic() < until_s:
                frame = chain.seal([event(f"{number}") for _ in range(10)]).frame
                began = time.monotonic()
                while not await self._sent(client, frame, signed=key is None):  # noqa: ASYNC110 - a request, not a wait
                    await asyncio.sleep(RETRY_S)
                self.took_s.append(time.monotonic() - began)
                await asyncio.sleep(max(0.0, EVERY_S - self.took_s[-1]))

    async def _sent(self, client: httpx.AsyncClient, frame: bytes, *, signed: bool) -> bool:
        self.tries += 1
        headers = {}
        if signed:
            station, sent = self._station, now_us()
            signature = station.keyring.sign(station.id, [frame], frame, "{}", sent)
            head = station.keyring.sign_head(station.id, frame, "{}", sent)
            assert signature is not None
            assert head is not None
            headers = {HEADER: signature, HEAD: head, "Linewarden-Agent-Time": str(sent), "Linewarden-Status": "{}"}
        try:
            answer = await client.post("/v1/batches", content=frame, headers=headers)
        except httpx.TransportError:
            return False
        if answer.status_code == 200:
            self.stored += answer.json()["events"]
        return answer.status_code == 200

    def p99_s(self) -> float:
        """The time that 99 of 100 requests did not exceed."""
        return sorted(self.took_s)[int(0.99 * len(self.took_s))]


@pytest.fixture
def besieged(postgres: Postgres) -> Iterator[Collector]:
    with Collector(postgres.create_database("abused")) as running:
        yield running


async def test_eight_clients_without_keys_cost_200_agents_less_than_a_second_and_leave_nothing(
    tmp_path: Path, besieged: Collector
) -> None:
    station = await asyncio.to_thread(enrolled, tmp_path, besieged)
    fleet = Fleet(besieged, station)
    await fleet.run(2 * EVERY_S)
    quiet_s = fleet.p99_s()
    before, log, open_before = memory_bytes(besieged.pid), len(besieged.log), descriptors(besieged.pid)
    highest = [0, 0]
    with abusers(besieged.port, station.saved.key_id):
        sending = asyncio.create_task(fleet.run(SECONDS))
        while not sending.done():
            highest = [max(highest[0], memory_bytes(besieged.pid)), max(highest[1], descriptors(besieged.pid))]
            await asyncio.wait({sending}, timeout=1)
        await sending
    print(
        f"\n{len(fleet.took_s)} requests of {AGENTS} agents in {SECONDS:g} s, {fleet.tries - len(fleet.took_s)} sent again; p99 "
        f"{fleet.p99_s() * 1000:.0f} ms (without abuse {quiet_s * 1000:.0f} ms), slowest {max(fleet.took_s):.1f} s; memory "
        f"+{(highest[0] - before) / 2**20:.0f} MiB, descriptors {open_before}, at most {highest[1]}, log "
        f"{(len(besieged.log) - log) / SECONDS * 60:.0f} bytes a minute"
    )
    assert fleet.stored == 10 * len(fleet.took_s)
    assert fleet.p99_s() < P99_S_MAX
    assert highest[0] - before < GROWTH_BYTES_MAX
    assert "Traceback" not in besieged.log
    assert (len(besieged.log) - log) / SECONDS * 60 < LOG_BYTES_A_MINUTE_MAX
    poll_until(lambda: descriptors(besieged.pid) <= open_before, within_s=60, why="descriptors stay")
