"""A real agent in a process of its own, and the simulators that its sources read."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from agent.simulator import plc
from tests.collector_process import ROOT, poll_until
from tests.ports import free_port

START_S_MAX = 60.0


class Agent:
    """`linewarden-agent run` with its state in a folder. What it says goes to `log`."""

    def __init__(self, folder: Path, url: str, key: str = "", sources: str = "", **sections: Mapping[str, Any]) -> None:
        self.folder = folder
        self.config = folder / "agent.toml"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._copying: list[subprocess.Popen[bytes]] = []
        self.environment: dict[str, str] = {}
        """Beside the tests' own, from the next start on."""
        (folder / "key").write_text(f"{key}\n")
        given: dict[str, dict[str, Any]] = {
            "agent": {"state_dir": str(folder / "state")},
            "sync": {"url": url, "key_file": str(folder / "key"), "backoff_s_max": 0.5, "timeout_s": 5},
            "buffer": {"free_bytes_min": 0},
            "health": {"listen": f"127.0.0.1:{self.port}"},
        }
        for name, values in sections.items():
            given.setdefault(name, {}).update(values)
        self._head = "".join(
            f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
            for name, values in given.items()
        )
        self.configure(sources)

    def configure(self, sources: str) -> None:
        """Write the file anew, with these sources and handlers."""
        self.config.write_text(f"{self._head}\n{sources}")

    def start(self, *, ready: bool = True) -> Self:
        command = [sys.executable, "-m", "agent.cli", "run", "--config", str(self.config)]
        # Through a pipe: a process that is kept from writing files still has its say.
        with (self.folder / "agent.out").open("ab") as said:
            copying = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=said, process_group=0)
        assert copying.stdin is not None
        env = {**os.environ, **self.environment}
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=copying.stdin, stderr=copying.stdin, env=env)
        copying.stdin.close()
        self._copying.append(copying)
        if ready:
            self.until_ready()
        return self

    def until_ready(self) -> None:
        poll_until(self._answers, within_s=START_S_MAX, why=f"the agent does not answer:\n{self.log}")

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the agent ended with {self.process.returncode}:\n{self.log}")
        try:
            return self.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=10, trust_env=False)

    def status(self) -> dict[str, Any]:
        return dict(self.get("/status").json())

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill9(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(20)
        self._wait_for_the_last_word()

    def _wait_for_the_last_word(self) -> None:
        for copying in self._copying:
            copying.wait(20)
        self._copying.clear()

    def stop(self) -> int:
        """A clean stop; its exit code."""
        self.signal(signal.SIGTERM)
        assert self.process is not None
        code = self.process.wait(40)
        self.process = None
        self._wait_for_the_last_word()
        return code

    @property
    def log(self) -> str:
        return (self.folder / "agent.out").read_text(errors="replace")

    @property
    def id(self) -> str:
        return (self.folder / "state" / "agent_id").read_text().strip()

    def backlog(self) -> int | None:
        """Events in its buffer; None where it does not answer."""
        try:
            return int(self.status()["buffer"]["events"])
        except httpx.HTTPError:
            return None

    def drained(self) -> bool:
        """Whether the collector has everything."""
        return self.backlog() == 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill9()
        if error is not None:
            print(self.log[-4_000:])


def log_source(path: Path | str, name: str = "auth") -> str:
    return f'[sources.{name}]\ntype = "log"\npaths = ["{path}"]\nparser = "auth"\n'


def opcua_source(url: str, name: str = "cell") -> str:
    nodes = ["Spindle.Temp", "Spindle.Speed", "Press.Cycles", "Setpoint.Speed", "Quality.Width", "Line.Press.Status"]
    listed = ", ".join(f'"nsu=http://acme/press;s={node}"' for node in nodes)
    return f'[sources.{name}]\ntype = "opcua"\nurl = "{url}"\nsecurity = "None"\nnodes = [{listed}]\n'


def modbus_source(url: str, name: str = "plc", interval_s: float = 0.1) -> str:
    points = plc.configuration(name)
    return f'[sources.{name}]\ntype = "modbus"\nurl = "{url}"\nunit = 1\ninterval_s = {interval_s}\n{points}'


@contextmanager
def simulator(module: str, *arguments: str) -> Iterator[str]:
    """A simulator in a process of its own; where it can be reached."""
    with tempfile.TemporaryFile() as said:
        command = [sys.executable, "-m", f"agent.simulator.{module}", *arguments]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=said, env=os.environ)
        assert process.stdout is not None
        try:
            line = process.stdout.readline().decode()
            said.seek(0)
            assert line.startswith("READY "), said.read().decode()
            yield line.split()[1].replace("modbus://", "tcp://")
        finally:
            process.terminate()
            process.wait(20)
            process.stdout.close()
