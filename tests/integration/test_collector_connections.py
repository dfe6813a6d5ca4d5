"""What a client without a key can hold of the collector: nothing for long, and never what others need."""

import asyncio
import contextlib
import hashlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from agent.component import now_us
from agent.wire.signature import HEAD, HEADER
from collector.store.database import Pools
from tests.collector_process import Chain, Collector, poll_until, post
from tests.integration.test_enrolment import Station, enrolled
from tests.postgres import Postgres

POST = "POST /v1/batches HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def door(postgres: Postgres) -> Iterator[Collector]:
    """Short deadlines, and small accounts."""
    bounds = {
        "SERVER__HEAD_S_MAX": "1", "SERVER__BODY_S_MAX": "1", "SERVER__ADDRESS_CONNECTIONS_MAX": "16",
        "SERVER__REQUEST_BYTES_MAX": "262144", "SERVER__BODIES_BYTES_MAX": "1048576", "DATABASE__POOL_SIZE": "4",
        "IDENTITY__UNSIGNED": "allow",
    }  # fmt: skip
    with Collector(postgres.create_database("connections"), **bounds) as running:
        yield running


def said(collector: Collector, data: bytes, *, wait_s: float = 10) -> bytes:
    """What is answered until the connection is closed."""
    heard = b""
    with socket.create_connection(("127.0.0.1", collector.port), timeout=wait_s) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(data)
        with contextlib.suppress(ConnectionError):
            while part := client.recv(65_536):
                heard += part
    return heard


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(5_000)), 431, "header"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000, 431, "header"),
        (b"GET / HTTP/1.1\r\n" + b"a" * 100_000 + b": 1\r\n\r\n", 431, "header"),
        (b"\r\n" * 50_000, 431, "header"),
        (b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n\r\n", 414, "target"),
        (b"GET /" + b"a" * 17_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "target"),
        (b"no request at all\r\n\r\n", 400, "http"),
        (b"GET http://x/healthz HTTP/1.1\r\nHost: x\r\n\r\n", 404, "path"),
        (b"GET /healthz#x HTTP/1.1\r\nHost: x\r\n\r\n", 404, "path"),
        (b"GET /healthz/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404, "path"),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404, "path"),
        (b"GET / HTTP/1.1\r\nHost: x", 408, "slow"),
        (
            b"POST /v1/session HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{",
            408,
            "slow",
        ),
    ],
)
def test_a_request_beyond_a_bound_is_answered_with_a_problem_and_closed(
    door: Collector, sent: bytes, status: int, code: str
) -> None:
    heard = said(door, sent)
    assert heard.startswith(b"HTTP/1.1 %d " % status), heard[:200]
    assert b"content-type: application/problem+json" in heard
    assert f'"code":"{code}"'.encode() in heard
    assert door.log.count("Traceback") == 0


def test_headers_without_end_cost_neither_memory_nor_the_loop(door: Collector) -> None:
    before = memory_bytes(door.pid)
    with socket.create_connection(("127.0.0.1", door.port), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        sent = 0
        with contextlib.suppress(OSError):
            for n in range(1_000):
                client.sendall(b"X-%d: %s\r\n" % (n, b"a" * 50_000))
                sent += 50_000
    assert sent < 20_000_000
    assert memory_bytes(door.pid) - before < 16 * 2**20


def memory_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /hea",
        f"{POST}Content-Length: 100000\r\n\r\nabc".encode(),
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_connections_that_are_held_give_way_and_their_descriptors_return(door: Collector, begun: bytes) -> None:
    open_before = descriptors(door.pid)
    with contextlib.ExitStack() as held, door.client(door.key("agent")) as agent:
        chain = Chain()
        assert post(agent, chain.batch()).status_code == 200
        for _ in range(100):
            client = held.enter_context(socket.create_connection(("127.0.0.1", door.port), timeout=5))
            with contextlib.suppress(ConnectionError):
                client.sendall(begun)
        assert post(agent, chain.batch()).status_code == 200
        assert httpx.get(f"{door.url}/readyz", trust_env=False).status_code == 200
        poll_until(lambda: descriptors(door.pid) <= open_before + 18, within_s=10)
    poll_until(lambda: descriptors(door.pid) <= open_before + 1, within_s=20)


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_a_body_that_nobody_reads_ends_with_its_answer(door: Collector) -> None:
    began = time.monotonic()
    heard = said(door, f"{POST}Content-Length: 100000000\r\n\r\n".encode() + bytes(4_000_000), wait_s=20)
    assert heard[:12] in (b"", b"HTTP/1.1 401"), heard[:100]  # closed on unread bytes, the answer may be lost
    assert time.monotonic() - began < 15


def test_an_answer_reaches_a_client_that_sends_its_whole_body_first(door: Collector) -> None:
    with door.client("lw_abcdefgh_none") as client:
        answers = [client.post("/v1/batches", content=bytes(size)) for size in (10, 200_000, 1_000_000, 10)]
    assert [answer.status_code for answer in answers] == [401] * 4


def test_a_client_that_takes_no_answer_and_one_that_resets_leave_no_traceback(door: Collector) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", door.port), timeout=5) as client:
            client.sendall(b"GET /schema/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with socket.create_connection(("127.0.0.1", door.port), timeout=5) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2_000)
        with contextlib.suppress(ConnectionError):
            while client.recv(65_536):
                pass
    assert httpx.get(f"{door.url}/readyz", trust_env=False).status_code == 200
    assert "Traceback" not in door.log


# ── what is not proven ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def station(door: Collector, tmp_path_factory: pytest.TempPathFactory) -> Station:
    return enrolled(tmp_path_factory.mktemp("station"), door)


def signed(station: Station, frame: bytes, *, sent: int | None = None, head_of: bytes | None = None) -> dict[str, str]:
    """Headers as an agent sends them."""
    sent = sent or now_us()
    signature = station.keyring.sign(station.id, [frame], frame, "{}", sent)
    head = station.keyring.sign_head(station.id, frame if head_of is None else head_of, "{}", sent)
    assert signature is not None
    assert head is not None
    return {HEADER: signature, HEAD: head, "Linewarden-Agent-Time": str(sent), "Linewarden-Status": "{}"}


def test_who_knows_a_keys_id_alone_holds_no_bytes_of_those_who_have_a_key(door: Collector, station: Station) -> None:
    key = f"Linewarden-Signature: 1 {station.saved.key_id} {'0' * 128}\r\nLinewarden-Agent-Time: {now_us()}\r\n"
    begun = f"{POST}{key}Content-Length: 260000\r\n\r\n".encode() + bytes(250_000)
    frame = station.chain.batch().frame
    with contextlib.ExitStack() as held, door.client() as client:
        for _ in range(12):
            holder = held.enter_context(socket.create_connection(("127.0.0.1", door.port), timeout=5))
            with contextlib.suppress(ConnectionError):
                holder.sendall(begun)
        assert client.post("/v1/batches", content=frame, headers=signed(station, frame)).status_code == 200


def test_a_head_that_is_not_signed_with_its_key_is_refused_before_its_body_comes(
    door: Collector, station: Station
) -> None:
    frame = Chain(station.id).batch().frame
    headers = signed(station, frame)
    headers["Linewarden-Status"] = '{"changed":1}'
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    # Nothing of the body is sent, and the answer comes all the same.
    with socket.create_connection(("127.0.0.1", door.port), timeout=5) as client:
        client.sendall(f"{POST}{lines}Content-Length: {len(frame)}\r\n\r\n".encode())
        heard = b""
        while not heard.endswith(b"}"):
            heard += client.recv(65_536)
    assert heard.startswith(b"HTTP/1.1 401")
    assert b'"code":"signature"' in heard


@pytest.mark.parametrize("offset_s", [0, 3_600, -86_400 * 365 * 10])
def test_an_agent_whose_clock_is_wrong_is_taken_nevertheless(door: Collector, station: Station, offset_s: int) -> None:
    frame = station.chain.batch().frame
    with door.client() as client:
        headers = signed(station, frame, sent=now_us() + offset_s * 1_000_000)
        assert client.post("/v1/batches", content=frame, headers=headers).status_code == 200


def test_a_body_that_is_not_the_one_of_the_signed_head_is_refused(door: Collector, station: Station) -> None:
    frame = station.chain.twin().batch("another").frame
    headers = signed(station, frame, head_of=hashlib.sha256(b"x").digest())
    with door.client() as client:
        # The head holds, for another body; the signature over the batches decides.
        headers[HEADER] = headers[HEADER][:-1] + ("0" if headers[HEADER][-1] != "0" else "1")
        assert client.post("/v1/batches", content=frame, headers=headers).status_code == 401


# ── readers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_reader_who_asks_too_much_waits_for_nobody_but_himself(dsn: str) -> None:
    """Real connections, each held by a statement that takes long."""
    from collector.store import database

    pools = Pools(dsn, size=4, synchronous_commit="on")
    await pools.open()

    async def read(name: str) -> str:
        database.read_for(name)
        try:
            async with pools.requests.connection() as connection, asyncio.timeout(20):
                await connection.execute("SELECT pg_sleep(0.6)")
        except database.TooManyReads:
            return "refused"
        return "read"

    try:
        slow = [asyncio.create_task(read("key greedy")) for _ in range(60)]
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await pools.requests.ping()
        async with pools.ingest.connection() as connection, pools.requests.connection() as other:
            await connection.execute("SELECT 1")
            await other.execute("SELECT 1")
        assert await asyncio.create_task(read("key modest")) == "read"
        assert time.monotonic() - began < 3
        results = await asyncio.gather(*slow)
        assert results.count("refused") >= 60 - 4 - database.READS_WAITING_MAX
        assert results.count("read") >= 2
        assert pools.requests._turns._names == {}
    finally:
        await pools.close()


async def test_a_readers_statement_is_ended_by_the_database(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from collector.store import database

    monkeypatch.setattr(database, "STATEMENT_S_MAX", 0.2)
    pools = Pools(dsn, size=2, synchronous_commit="on")
    await pools.open()
    try:
        with pytest.raises(database.StoreUnavailable):
            async with pools.reading.connection() as connection:
                await connection.execute("SELECT pg_sleep(5)")
    finally:
        await pools.close()
