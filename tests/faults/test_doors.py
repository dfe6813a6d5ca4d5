"""Every door with somebody at it who means ill: whatever comes, the program lives, stays within its memory, and serves the others.

Seconds here; hours with `LINEWARDEN_SIEGE_SECONDS=3600 make faults`.
"""

import asyncio
import gzip
import os
import socket
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import zstandard

from agent.simulator.logs import LogWriter, Script
from tests.agent_process import Agent, log_source, modbus_source, opcua_source, simulator
from tests.collector_process import Chain, Collector, poll_until
from tests.faults.hostile import Door, Liar, slow_clients
from tests.ports import free_port
from tests.postgres import Postgres
from tests.posting import Poster

pytestmark = pytest.mark.timeout(0)

SECONDS = float(os.environ.get("LINEWARDEN_SIEGE_SECONDS", "6"))
SEED = int(os.environ.get("LINEWARDEN_FAULTS_SEED", "7"))
AGENT_BYTES_MAX = 256 * 2**20
"""MemoryHigh of the agent's unit."""
COLLECTOR_GROWTH_BYTES_MAX = 256 * 2**20

GET = b"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\nConnection: close\r\n\r\n"
POST = (
    b"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 62\r\n"
    b'Connection: close\r\n\r\n{"type":"log.line","message":"hello","data":{"a":[1,2.5,null]}}'
)
CHUNKED = b"POST /v1/batches HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Encoding: zstd\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
QUERY = b"GET /v1/events?data=%s HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\nConnection: close\r\n\r\n"
HEADERS = b"GET /healthz HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 100) for n in range(2_000)) + b"\r\n"
LONG_LINE = b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n\r\n"
HEAD = "POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
SYSLOG = [
    b"<34>1 2026-01-01T00:00:00Z host sshd 12 ID47 - Failed password for root from 203.0.113.7 port 22 ssh2\n",
    b"<13>Jan  1 00:00:00 host app: hello\n",
    b"51 <34>1 2026-01-01T00:00:00Z host app - - - hello world",
]


def posting(body: bytes, more: str = "") -> bytes:
    """A request to the intake, as bytes."""
    return f"{HEAD}{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


EVENT = b'{"type":"data.exported","time":"2026-03-01T10:00:00Z","severity":"high","src_ip":"10.1.2.3","data":{"a":{"user":"x"}}}'
WINSTON = b'{"level":"warn","message":"late %s","splat":["x"],"timestamp":"2026-03-01T10:00:00Z","meta":{"user":"x","n":[1,{"b":2}]}}'
POSTS = [
    POST,
    posting(EVENT, "Idempotency-Key: k\r\n"),
    posting(EVENT + b"\n" + WINSTON + b"\n"),
    posting(b"[" + EVENT + b"," + WINSTON + b"]"),
    posting(gzip.compress(EVENT), "Content-Encoding: gzip\r\n"),
    f"{HEAD}Transfer-Encoding: chunked\r\n\r\n{len(EVENT):x}\r\n".encode() + EVENT + b"\r\n0\r\n\r\n",
]
BODY_BYTES_MAX = 1_048_576


def memory_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Station:
    """An agent with its doors open, and a log that has to come through meanwhile."""

    def __init__(self, folder: Path, sources: str) -> None:
        self.log = folder / "auth.log"
        self.agent = Agent(folder, "http://127.0.0.1:9", "", log_source(self.log) + sources)
        self._writer = LogWriter(self.log).__enter__()
        self._lines = Script(SEED, "quiet").lines()

    def serves(self) -> None:
        """Fails unless it is alive, within its memory, healthy, and collects."""
        agent = self.agent
        assert agent.process is not None
        assert agent.process.poll() is None, agent.log
        before = agent.status()["sources"]["auth"]["events"]
        self._writer.write(*islice(self._lines, 5))
        poll_until(lambda: agent.status()["sources"]["auth"]["events"] >= before + 5, why="it does not collect")
        assert agent.get("/healthz").status_code == 200
        assert memory_bytes(agent.process.pid) < AGENT_BYTES_MAX
        assert "Traceback" not in agent.log, agent.log

    def end(self) -> None:
        self.agent.kill9()
        self._writer.__exit__()


@pytest.fixture
def syslog_ports() -> dict[str, int]:
    return {"udp": free_port(), "tcp": free_port()}


@pytest.fixture
def station(tmp_path: Path, syslog_ports: dict[str, int]) -> Iterator[Station]:
    listen = ", ".join(f'"{kind}://127.0.0.1:{port}"' for kind, port in syslog_ports.items())
    made = Station(
        tmp_path, f'[sources.devices]\ntype = "syslog"\nlisten = [{listen}]\n[sources.apps]\ntype = "intake"\n'
    )
    made.agent.start()
    yield made
    made.end()


def test_the_agents_endpoint_answers_or_closes_whatever_is_sent(station: Station) -> None:
    door = Door(station.agent.port, SEED)
    door.siege(SECONDS, GET, *POSTS)
    door.knock(HEADERS)
    door.knock(LONG_LINE)
    assert door.knocks > 20
    # 501: a Transfer-Encoding that nobody knows.
    assert not [status for status in door.answers if status >= 500 and status not in (501, 503)]
    station.serves()


def test_the_intake_refuses_bombs_and_depths_within_bounded_memory(station: Station) -> None:
    door = Door(station.agent.port, SEED)
    gzipped = "Content-Encoding: gzip\r\n"
    for body, more, statuses in (
        (gzip.compress(bytes(500_000_000), 9), gzipped, (b"413",)),
        (gzip.compress(b"[" * BODY_BYTES_MAX), gzipped, (b"400",)),
        (b'{"type":"a","data":' + b'{"k":' * 100_000 + b"1" + b"}" * 100_001, "", (b"400",)),
        (b'{"type":"a","data":' + b'{"k":' * 900 + b"1" + b"}" * 901, "", (b"422",)),
        (b'{"type":"a","data":{"n":' + b"9" * 500_000 + b"}}", "", (b"400",)),
        (b'{"type":"a","data":{"n":' + b"9" * 4_000 + b"}}", "", (b"422",)),
        (b'{"type":"a","data":{"n":1e' + b"9" * 4_000 + b"}}", "", (b"400",)),
        (b"[" + b"[]," * 340_000 + b"[]]", "", (b"413",)),
        (b'{"type":"a","data":{"n":[' + b"{}," * 340_000 + b"{}]}}", "", (b"422",)),
        (b'{"level":"info","n":[' + b"{}," * 340_000 + b"{}]}", "", (b"202",)),
        (b"[" + b"{}," * 9_000 + b"{}]", "", (b"422",)),
        (b'{"type":"a","message":"\\u0000"}', "", (b"422",)),
        (b'{"type":"\\ud800"}', "", (b"422",)),
        (b'{"type":"\xff\xfe"}', "", (b"400",)),
        (b" " * (BODY_BYTES_MAX + 1), "", (b"413",)),
    ):
        said = door.knock(posting(body, more), wait_s=20, half_close=False)
        assert said[9:12] in statuses, (body[:60], said[:300])
    station.serves()


def test_many_great_bodies_at_once_are_refused_before_they_fill_the_memory(station: Station) -> None:
    events = b"[" + b",".join([EVENT] * (BODY_BYTES_MAX // (len(EVENT) + 2))) + b"]"
    assert station.agent.process is not None
    with ThreadPoolExecutor(32) as threads:
        asked = [
            threads.submit(Door(station.agent.port, SEED).knock, posting(events), wait_s=60, half_close=False)
            for _ in range(64)
        ]
        answers = {each.result()[9:12] for each in asked}
    assert b"202" in answers
    assert answers <= {b"202", b"429", b"503"}
    station.serves()


def test_clients_that_stop_in_the_middle_of_a_body_keep_no_program_out(station: Station) -> None:
    begun = f"{HEAD}Content-Length: 100000\r\n\r\n[".encode()
    with slow_clients(station.agent.port, 200, begun), Poster(station.agent.port, timeout_s=5) as program:

        def taken() -> bool:
            with suppress(OSError):
                return program.post({"type": "a"}).status == 202
            return False

        poll_until(taken, within_s=60)
        station.serves()


def test_clients_that_never_end_their_request_keep_nobody_out(station: Station) -> None:
    with slow_clients(station.agent.port, 200):
        poll_until(lambda: is_healthy(station), within_s=60)
        station.serves()


def is_healthy(station: Station) -> bool:
    with suppress(httpx.HTTPError):  # while all are busy, one more is cut
        return station.agent.get("/healthz").status_code == 200
    return False


def test_the_syslog_door_takes_what_it_can_and_nothing_ends_it(station: Station, syslog_ports: dict[str, int]) -> None:
    door = Door(syslog_ports["tcp"], SEED)
    door.siege(SECONDS, *SYSLOG, b"".join(SYSLOG) * 20, b"999999999999 <34>1 x", b"<" * 100_000)
    rng = door.random
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(500):
            sender.sendto(
                rng.choice([*SYSLOG, rng.randbytes(rng.randrange(1, 9_000))]), ("127.0.0.1", syslog_ports["udp"])
            )
    station.serves()
    poll_until(lambda: station.agent.status()["sources"]["devices"]["events"] > 0)


# ── the collector ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def besieged(postgres: Postgres) -> Iterator[Collector]:
    with Collector(postgres.create_database("besieged")) as running:
        yield running


def still_stores(collector: Collector) -> None:
    with collector.client(collector.key("agent")) as client:
        batch = Chain().batch("still here")
        assert client.post("/v1/batches", content=batch.frame).status_code == 200
    assert "Traceback" not in collector.log


def test_the_collectors_door_refuses_what_is_no_request_and_goes_on_storing(besieged: Collector) -> None:
    door = Door(besieged.port, SEED)
    before = memory_bytes(besieged.pid)
    frame = Chain().batch("hello").frame
    head = f"POST /v1/batches HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {besieged.key('agent')}\r\nConnection: close\r\n"
    whole = f"{head}Content-Length: {len(frame)}\r\n\r\n".encode() + frame
    door.siege(SECONDS, GET, POST, CHUNKED, whole)
    door.knock(HEADERS)
    door.knock(LONG_LINE)
    assert door.knocks > 20
    assert not [status for status in door.answers if status >= 500 and status != 503]
    still_stores(besieged)
    assert memory_bytes(besieged.pid) - before < COLLECTOR_GROWTH_BYTES_MAX


def test_bombs_and_depths_are_refused_within_bounded_memory(besieged: Collector) -> None:
    before = memory_bytes(besieged.pid)
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(2 * 2**30 - 1))
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    with besieged.client(besieged.key("agent")) as client:
        answer = client.post("/v1/batches", content=bomb, headers={"Content-Encoding": "zstd"})
        assert answer.status_code == 413, answer.text
        assert client.post("/v1/batches", content=deep).status_code == 422
    with besieged.client(besieged.key("viewer")) as client:
        key = client.headers["Authorization"].encode()
    deep = b'{"a":' * 2_500 + b"1" + b"}" * 2_500
    for text in (quote(deep), quote("[" * 12_000), "1" + "0" * 20_000):
        # Written by hand: a client library has bounds of its own.
        said = Door(besieged.port, SEED).knock(QUERY % (text.encode(), key), wait_s=20, half_close=False)
        assert said[9:12] in (b"400", b"413", b"414", b"422", b"431"), said[:200]
    still_stores(besieged)
    assert memory_bytes(besieged.pid) - before < COLLECTOR_GROWTH_BYTES_MAX


def test_clients_of_the_collector_that_never_end_their_request_keep_nobody_out(besieged: Collector) -> None:
    with slow_clients(besieged.port, 200):
        still_stores(besieged)


# ── hostile devices ──────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def lying_line() -> AsyncIterator[tuple[Liar, Liar]]:
    """A PLC and an OPC UA server behind proxies that change their answers."""
    async with AsyncExitStack() as exits:
        liars = []
        for module in ("plc", "opcua_server"):
            port = free_port()
            await asyncio.to_thread(exits.enter_context, simulator(module, "--port", str(port), "--seed", "7"))
            liars.append(await exits.enter_async_context(Liar(port, seed=SEED)))
        yield liars[0], liars[1]


@pytest.mark.long
async def test_devices_that_answer_nonsense_cost_neither_the_agent_nor_the_other_sources_anything(
    tmp_path: Path,
) -> None:
    """telegraf#13172, telegraf#19186: one bad device stops the rest."""
    async with lying_line() as (plc, cell):
        sources = modbus_source(f"tcp://127.0.0.1:{plc.port}") + opcua_source(f"opc.tcp://127.0.0.1:{cell.port}/press")
        station = Station(tmp_path, sources)
        try:
            await asyncio.to_thread(station.agent.start)
            deadline = asyncio.get_running_loop().time() + 2 * SECONDS
            while asyncio.get_running_loop().time() < deadline:
                await asyncio.to_thread(station.serves)
                await asyncio.sleep(0.5)
            assert plc.lies > 5
            assert cell.lies
            plc.share = cell.share = 0.0
            for name in ("plc", "cell"):
                recovered = partial(works, station, name)
                await asyncio.to_thread(poll_until, recovered, within_s=120, why=f"{name}: no recovery")
            await asyncio.to_thread(station.serves)
        finally:
            station.end()


def works(station: Station, source: str) -> bool:
    try:
        return not station.agent.status()["sources"][source]["trouble"]
    except httpx.HTTPError:
        return False
