"""After an outage: everybody comes back at once, the certificate has expired meanwhile, the database is another one."""

import asyncio
import ipaddress
import os
import re
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.buffer import Buffer, BufferConfig
from agent.simulator.logs import LogWriter, Script
from agent.sync import Sync, SyncConfig
from agent.uplink import HttpSink
from collector.store import keys
from tests.agent_process import Agent, log_source
from tests.collector_process import Collector, event, poll_until
from tests.faults.link import Link
from tests.postgres import Postgres, connected

pytestmark = pytest.mark.timeout(280)

# ── five hundred agents ──────────────────────────────────────────────────────────────────────────────────────────────

EVENTS_EACH = 60
STORED = """
    SELECT count(*), count(DISTINCT (agent_id, data->>'n')), count(DISTINCT agent_id) FROM security_events WHERE data ? 'n'
"""
NUMBERS = """
    SELECT (data->>'pid')::int AS no FROM security_events
    WHERE agent_id = $1 AND source = 'auth' AND type NOT LIKE 'alert.%' AND data ? 'pid'
"""


class Herd:
    """Agents without sources: real buffers, real sync, all in this process."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url
        self.buffers: dict[str, Buffer] = {}
        self.syncs: list[Sync] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def add(self, key: str, exits: AsyncExitStack) -> None:
        name = str(uuid4())
        place = self._folder / name
        place.mkdir()
        (place / "key").write_text(key)
        buffer = await Buffer.open(place / "buffer.db", BufferConfig(free_bytes_min=0, synchronous="normal"), name)
        exits.push_async_callback(buffer.close)
        config = SyncConfig(url=self._url, key_file=str(place / "key"), timeout_s=30, backoff_s_max=2)
        sink = HttpSink(url=self._url, key_file=config.key_file, timeout_s=30, version="1")
        exits.push_async_callback(sink.close)
        self.buffers[name] = buffer
        self.syncs.append(Sync(config, buffer, sink, dict))

    async def collect(self) -> None:
        for name, buffer in self.buffers.items():
            for part in range(3):
                await buffer.append([event(f"{name}/{part * 20 + n}", data={"n": part * 20 + n}) for n in range(20)])

    def run(self, exits: AsyncExitStack) -> None:
        self._tasks = [asyncio.create_task(sync.run()) for sync in self.syncs]

        async def end() -> None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        exits.push_async_callback(end)

    async def drained(self, within_s: float) -> None:
        async with asyncio.timeout(within_s):
            while self.pending:  # noqa: ASYNC110 - many buffers, no common event
                await asyncio.sleep(0.1)

    @property
    def pending(self) -> int:
        return sum(buffer.pending_events for buffer in self.buffers.values())


@pytest.mark.parametrize("agents", [150, pytest.param(500, marks=pytest.mark.long)])
async def test_many_agents_that_come_back_at_once_after_an_outage_are_all_served_each_event_once(
    tmp_path: Path, postgres: Postgres, agents: int
) -> None:
    dsn = postgres.create_database(f"herd{agents}")
    collector = Collector(dsn)
    await asyncio.to_thread(collector.start)
    try:
        async with AsyncExitStack() as exits, connected(dsn) as database:
            link = await exits.enter_async_context(Link([collector.port], seed=7))
            await link.become("away")
            herd = Herd(tmp_path, link.url)
            for _ in range(agents):
                key, _ = await keys.create(database, role="agent", name="", site="", line="", station="", expires=None)
                await herd.add(key, exits)
            herd.run(exits)
            await herd.collect()
            assert herd.pending == agents * EVENTS_EACH
            await link.become("well")
            await herd.drained(within_s=200)
            found = await database.fetch(STORED)
            assert tuple(found[0]) == (agents * EVENTS_EACH, agents * EVENTS_EACH, agents)
    finally:
        await asyncio.to_thread(collector.kill9)


# ── the certificate ──────────────────────────────────────────────────────────────────────────────────────────────────


class Authority:
    """A private authority, and the certificates that it gives the collector."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        self.file = folder / "ca.pem"
        ca = x509.BasicConstraints(ca=True, path_length=None)
        own = self._builder(self._name, self._key, datetime.now(UTC) + timedelta(days=900)).add_extension(
            ca, critical=True
        )
        self.file.write_bytes(own.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, until: datetime) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(until - timedelta(days=1_000))
            .not_valid_after(until)
        )

    def issue(self, *, until: datetime) -> None:
        """A certificate for 127.0.0.1, valid until then, with its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "collector")])
        here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        made = self._builder(subject, key, until).add_extension(here, critical=False).sign(self._key, hashes.SHA256())
        (self._folder / "server.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        (self._folder / "server.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


def test_an_expired_certificate_stops_sync_and_not_collecting_and_a_new_one_lets_it_go_on(
    tmp_path: Path, postgres: Postgres
) -> None:
    now = datetime.now(UTC)
    authority = Authority(tmp_path)
    authority.issue(until=now - timedelta(hours=1))
    collector = Collector(
        postgres.create_database("expired"),
        SERVER__CERTIFICATE_FILE=str(tmp_path / "server.pem"),
        SERVER__KEY_FILE=str(tmp_path / "server.key"),
    )
    collector.scheme = "https"
    with collector:
        sync = {"ca_file": str(authority.file)}
        agent = Agent(tmp_path, collector.url, collector.key("agent"), log_source(tmp_path / "auth.log"), sync=sync)
        with LogWriter(tmp_path / "auth.log") as writer, agent:
            writer.write(*islice(Script(7, "quiet").lines(), 50))
            poll_until(lambda: "certificate has expired" in (agent.status()["sync"]["last_error"] or ""))
            poll_until(lambda: agent.status()["buffer"]["events"] >= 50, why="collecting has stopped")
            authority.issue(until=now + timedelta(days=90))
            os.kill(collector.pid, 1)
            poll_until(agent.drained, within_s=60, why=f"{agent.status()['sync']}")


# ── a replica takes over ─────────────────────────────────────────────────────────────────────────────────────────────


class Replicated:
    """A primary, and a standby that has every commit before it is acknowledged (synchronous replication)."""

    def __init__(self) -> None:
        self.primary, self.standby = Postgres(), Postgres()

    def start(self) -> None:
        self.primary.start()
        self.standby.replicate(self.primary)
        self.primary.set("synchronous_standby_names", "'*'")

    def discard(self) -> None:
        self.standby.discard()
        self.primary.discard()


@pytest.fixture
def replicated() -> Iterator[Replicated]:
    made = Replicated()
    yield made
    made.discard()


def test_a_replica_that_takes_over_has_everything_that_was_acknowledged_and_takes_what_comes(
    tmp_path: Path, replicated: Replicated
) -> None:
    replicated.start()
    dsn = replicated.primary.create_database("linewarden")
    both = (
        re.sub(r"@[^/]*/", f"@127.0.0.1:{replicated.primary.port},127.0.0.1:{replicated.standby.port}/", dsn)
        + "?target_session_attrs=read-write"
    )
    collector = Collector(dsn)
    key = None
    count = 6_000
    with LogWriter(tmp_path / "auth.log") as writer:
        collector.dsn = both
        collector.start()
        collector.dsn = dsn
        key = collector.key("agent")
        lines = Script(7, "quiet").lines()
        agent = Agent(tmp_path, collector.url, key, log_source(tmp_path / "auth.log"))
        with agent:
            for n in range(0, count, 100):
                writer.write(*islice(lines, 100))
                if n == count // 2:
                    replicated.primary.kill9()
                    replicated.standby.promote()
                time.sleep(0.03)
            poll_until(agent.drained, within_s=90, why=f"{collector.log[-2_000:]}")
            name = agent.id
        collector.stop()

    async def numbers() -> list[int]:
        async with connected(replicated.standby.dsn_of("linewarden")) as database:
            return sorted(row["no"] for row in await database.fetch(NUMBERS, UUID(name)))

    assert asyncio.run(numbers()) == list(range(1, count + 1))
