"""Events posted to the intake until they are durable, against the least that a server can do for the same promise.

The bare server reads requests by their Content-Length and nothing else, decodes the lines, compresses the body, and inserts it into
SQLite (WAL, synchronous=FULL) in a thread; whatever came while a commit ran is committed with the next one, as the agent does it. It
keeps no event, runs no handler, checks nothing. The agent is a whole one, with the built-in handlers. Both are processes of their own,
and hear the same bytes from the same client. Rounds change their order, and the median of their ratios counts.

    LINEWARDEN_BENCH_SECONDS=5 pytest -m bench -s tests/bench/bench_intake.py
"""

import asyncio
import os
import random
import re
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
import zstandard

from tests.agent_process import Agent
from tests.collector_process import ROOT
from tests.ports import free_port

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

SECONDS = float(os.environ.get("LINEWARDEN_BENCH_SECONDS", "4"))
ROUNDS = int(os.environ.get("LINEWARDEN_BENCH_ROUNDS", "3"))
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: *(\d+)")


class Load(NamedTuple):
    """What is posted: so many events a request, over so many connections that are kept."""

    name: str
    events: int
    connections: int
    ratio_min: float


LOADS = (
    Load("one event a request, one connection", 1, 1, 0.3),
    Load("one event a request, 16 connections", 1, 16, 0.12),
    Load("NDJSON, 100 events a request, 4 connections", 100, 4, 0.06),
    Load("NDJSON, 1,000 events a request, 4 connections", 1_000, 4, 0.06),
)


def request_of(events: int) -> bytes:
    """A request of a station program, as bytes."""
    rng = random.Random(7)
    body = b"\n".join(
        msgspec.json.encode(
            {
                "time": "2026-03-01T10:00:00.123Z", "type": "application.request", "outcome": "success",
                "src_ip": f"10.1.2.{rng.randrange(250)}",
                "actor": f"user{rng.randrange(500)}", "correlation_id": f"order-{rng.randrange(10**6)}", "message": "recipe was read",
                "data": {"method": "GET", "path": "/recipes", "status": 200, "duration_ms": round(rng.random() * 90, 2)},
            }
        )
        for _ in range(events)
    )  # fmt: skip
    head = f"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


# ── the bare server ──────────────────────────────────────────────────────────────────────────────────────────────────


class Bare:
    """See the module."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for statement in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "CREATE TABLE bodies (no INTEGER PRIMARY KEY, body BLOB)",
        ):
            self._db.execute(statement)
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()

    async def serve(self, port: int) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", port, limit=4 * 1024 * 1024)
        print("READY", flush=True)
        async with server:
            await self._write()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder, compressor = msgspec.json.Decoder(), zstandard.ZstdCompressor(level=1)
        try:
            while True:
                length = _LENGTH.search(await reader.readuntil(b"\r\n\r\n"))
                assert length is not None
                body = await reader.readexactly(int(length[1]))
                decoder.decode_lines(body)
                done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.append((compressor.compress(body), done))
                self._wake.set()
                await done
                writer.write(b'HTTP/1.1 202 Accepted\r\nContent-Length: 14\r\n\r\n{"accepted":1}')
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            group, self._waiting = self._waiting, []
            await asyncio.to_thread(self._insert, [(body,) for body, _ in group])
            for _, done in group:
                if not done.done():
                    done.set_result(None)

    def _insert(self, rows: list[tuple[bytes]]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany("INSERT INTO bodies (body) VALUES (?)", rows)
        self._db.execute("COMMIT")


@contextmanager
def bare(folder: Path) -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.bench_intake", str(folder / "bare.db"), str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"READY\n"
        yield port
    finally:
        process.kill()
        process.wait(20)
        process.stdout.close()


# ── the client ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def _posts(port: int, request: bytes, until: float) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    count = 0
    while time.perf_counter() < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        assert length is not None
        body = await reader.readexactly(int(length[1]))
        if head.startswith(b"HTTP/1.1 202"):
            count += 1
        else:
            # Somebody else's disk: what was put off is sent again, and counts when it is taken.
            assert head[9:12] in (b"429", b"503"), head + body
            await asyncio.sleep(0.05)
    writer.close()
    await writer.wait_closed()
    return count


async def _rate(port: int, load: Load) -> float:
    request = request_of(load.events)
    begin = time.perf_counter()
    counts = await asyncio.gather(*(_posts(port, request, begin + SECONDS) for _ in range(load.connections)))
    return sum(counts) * load.events / (time.perf_counter() - begin)


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
async def test_events_posted_until_they_are_durable(tmp_path: Path, load: Load) -> None:
    agent = Agent(tmp_path, f"http://127.0.0.1:{free_port()}", sources='[sources.apps]\ntype = "intake"\n')
    rates: dict[str, list[float]] = {"bare": [], "ours": []}
    await asyncio.to_thread(agent.start)
    try:
        with bare(tmp_path) as bare_port:
            ports = {"bare": bare_port, "ours": agent.port}
            for n in range(ROUNDS):
                for name in ("bare", "ours") if n % 2 else ("ours", "bare"):
                    rates[name].append(await _rate(ports[name], load))
    finally:
        await asyncio.to_thread(agent.kill9)
    ratio = statistics.median(ours / limit for ours, limit in zip(rates["ours"], rates["bare"], strict=True))
    print(
        f"\n{load.name}: {statistics.median(rates['ours']):,.0f} events/s durable, bare server "
        f"{statistics.median(rates['bare']):,.0f}/s, ratio {ratio:.2f} (limit {load.ratio_min})"
    )
    assert ratio >= load.ratio_min


if __name__ == "__main__":
    asyncio.run(Bare(sys.argv[1]).serve(int(sys.argv[2])))
