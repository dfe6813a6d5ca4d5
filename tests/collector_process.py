"""A real collector in a process of its own, and a chain of batches to send to it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import httpx
import pytest

from agent.simulator.postgres import Postgres
from agent.wire.batch import GENESIS, GapRange, Sealed, encode_lines, seal
from agent.wire.event import Event
from collector import cli
from collector.accounts import recorded_key
from collector.audit import Who
from collector.store import keys
from tests.commands import run_main
from tests.ports import free_port
from tests.postgres import connected

ROOT = Path(__file__).parent.parent
START_S_MAX = 60.0


def poll_until(what: Callable[[], Any], *, within_s: float = 20.0, why: str = "") -> Any:
    """Ask again and again until the answer is true; the answer."""
    deadline = time.monotonic() + within_s
    while not (answer := what()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {why or what}")
        time.sleep(0.02)
    return answer


def run_cli(dsn: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of the collector."""
    env = {**os.environ, "LINEWARDEN_COLLECTOR__DATABASE__DSN": dsn, **environment}
    return run_main(cli.main, *arguments, environ=env)


def run_serve(dsn: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run `serve` as a process, where it is to end by itself."""
    env = {**os.environ, "LINEWARDEN_COLLECTOR__DATABASE__DSN": dsn, **environment}
    command = [sys.executable, "-m", "collector.cli", "serve"]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=60)


class Collector:
    """`linewarden-collector serve` on a free port. Its output goes to `log`, to be looked at when a test fails."""

    def __init__(self, dsn: str, **environment: str) -> None:
        self.dsn = dsn
        self.port = free_port()
        self.scheme = "http"
        self._environment = {f"LINEWARDEN_COLLECTOR__{key}": value for key, value in environment.items()}
        self._process: subprocess.Popen[bytes] | None = None
        self._log = bytearray()
        self._log_file: Any = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None

    def start(self, *, ready: bool = True) -> Self:
        env = {
            **os.environ,
            "LINEWARDEN_COLLECTOR__DATABASE__DSN": self.dsn,
            "LINEWARDEN_COLLECTOR__SERVER__LISTEN": f"127.0.0.1:{self.port}",
            # Most tests send as agents that were not enrolled.
            "LINEWARDEN_COLLECTOR__IDENTITY__UNSIGNED": "allow",
            **self._environment,
        }
        self._log_file = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop
        self._process = subprocess.Popen(
            [sys.executable, "-m", "collector.cli", "serve"],
            cwd=ROOT,
            env=env,
            stdout=self._log_file,
            stderr=self._log_file,
        )
        poll_until(lambda: self._answers(ready=ready), within_s=START_S_MAX, why="the collector does not answer")
        return self

    def _answers(self, *, ready: bool) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the collector ended with {self._process.returncode}:\n{self.log}")
        try:
            status = httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False, verify=False).status_code
        except httpx.HTTPError:
            return False
        return status == 200 or not ready

    @property
    def log(self) -> str:
        """What it said, from its first start on."""
        earlier = self._log.decode(errors="replace")
        if self._log_file is None or self._log_file.closed:
            return earlier
        position = self._log_file.tell()
        self._log_file.seek(0)
        text = self._log_file.read().decode(errors="replace")
        self._log_file.seek(position)
        return f"{earlier}{text}"

    def stop(self) -> int:
        """A clean stop; its exit code."""
        return self._end(signal.SIGTERM)

    def kill9(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        code = self._process.wait(40)
        self._log = bytearray(self.log.encode())
        self._log_file.close()
        self._process = None
        return code

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.stop()

    def key(self, role: keys.Role, *, site: str = "", line: str = "", station: str = "") -> str:
        """A new key, made without the command: that takes a second, and every test wants one."""

        async def make() -> str:
            async with connected(self.dsn) as connection:
                async with connection.transaction():
                    secret, made = await keys.create(
                        connection, role=role, name="", site=site, line=line, station=station, expires=None
                    )
                    await recorded_key(connection, Who.command(), made)
                return secret

        # In a thread: the caller may have a loop that runs.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, make()).result()

    def client(self, key: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)


class Chain:
    """A stream as an agent makes it: batches numbered and chained."""

    def __init__(self, agent: str | None = None, *, buffer: str | None = None, lane: int = 1) -> None:
        self.agent = agent or str(uuid4())
        self.buffer = buffer or uuid4().hex
        self.lane = lane
        self.no = 0
        self.hash = GENESIS

    def twin(self) -> "Chain":
        """A copy that goes on by itself: a cloned agent, a buffer put back."""
        other = Chain(self.agent, buffer=self.buffer, lane=self.lane)
        other.no, other.hash = self.no, self.hash
        return other

    def seal(self, events: Sequence[Event], *, gap: int = 0, last: str = "f" * 64) -> Sealed:
        """The next batch; with `gap` it stands for so many lost ones."""
        return self.seal_lines(*encode_lines(events), gap=gap, last=last)

    def seal_lines(
        self, core: Sequence[bytes], personal: Sequence[bytes], *, gap: int = 0, last: str = "f" * 64
    ) -> Sealed:
        no = self.no + 1
        sealed = seal(
            core,
            personal,
            agent=self.agent,
            buffer=self.buffer,
            lane=self.lane,
            no=no,
            prev=self.hash,
            sealed=now_us(),
            gap=GapRange(no + gap - 1, last) if gap else None,
        )
        self.no, self.hash = sealed.header.through, last if gap else sealed.hash
        return sealed

    def batch(self, *messages: str) -> Sealed:
        """The next batch, of one event a message."""
        return self.seal([event(message) for message in messages or ("hello",)])

    def identity(self, no: int, index: int) -> str:
        return f"{self.agent}/{self.buffer}/{self.lane}/{no}/{index}"


def now_us() -> int:
    return time.time_ns() // 1000


def event(message: str = "hello", **fields: Any) -> Event:
    now = now_us()
    return Event(**{"time": now, "observed": now, "type": "log.line", "source": "test", "message": message, **fields})


def post(client: httpx.Client, *batches: Sealed, **headers: str) -> httpx.Response:
    """Send batches."""
    return client.post("/v1/batches", content=b"".join(b.frame for b in batches), headers=headers)


def events_of(client: httpx.Client, **parameters: Any) -> list[dict[str, Any]]:
    """All events that a filter finds, page by page."""
    found: list[dict[str, Any]] = []
    while True:
        answer = client.get("/v1/events", params={"limit": 1000, **parameters})
        assert answer.status_code == 200, answer.text
        page = json.loads(answer.content)
        found += page["events"]
        if page["next"] is None:
            return found
        parameters["after"] = page["next"]


@pytest.fixture(scope="session")
def collector(postgres: Postgres) -> Iterator[Collector]:
    """The session's collector. Each test sends as an agent of its own, and asks only for that."""
    with Collector(postgres.create_database("collector")) as running:
        yield running
