"""A driver for each type of source: its peer, which can be made to come, go, speak, flood, and lose things.

What a peer says is a number, and every number is one event, so that a reader of the buffer can tell what is missing and what came twice.
To add a source: a Driver, and its line in DRIVERS.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from agent.cli_events import opened
from agent.cli_store import Store
from agent.simulator.opcua_server import NAMESPACE
from agent.wire.event import Event
from tests.agent_process import Agent
from tests.collector_process import ROOT, poll_until
from tests.ports import free_port
from tests.posting import Poster

REMOTE = Path("/usr/lib/systemd/systemd-journal-remote")
BASE = 10_000
"""Numbers begin here: no value that a peer has by itself is taken for one."""


def stored(agent: Agent) -> list[Event]:
    """Every event in the buffer of an agent that runs or does not, in the order in which they were stored."""
    path = agent.folder / "state" / "buffer.db"
    if not path.exists():
        return []
    store = Store(path)
    try:
        return [event for batch in store.batches({}) for event in opened(batch)]
    finally:
        store.close()


class Driver:
    """The peer of one source. Cold: `appear` brings it up."""

    kind: ClassVar[str]
    every: ClassVar[bool] = True
    """Each number arrives. Where not (a register that is polled), numbers may be skipped, but none comes twice or late."""
    speaks_to_the_dead: ClassVar[bool] = True
    """What is said while the agent is down waits for it at the peer."""
    needs: ClassVar[Callable[[], str | None]] = staticmethod(lambda: None)
    """What this computer lacks to run it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said = BASE

    def configuration(self) -> str:
        """The source's section; its name is `it`."""
        raise NotImplementedError

    def appear(self) -> None:
        """The peer comes up, or comes back."""
        raise NotImplementedError

    def vanish(self, agent: Agent) -> None:
        """The peer dies."""
        raise NotImplementedError

    def say(self, count: int) -> None:
        """The next numbers."""
        first, self.said = self.said + 1, self.said + count
        self.speak(range(first, self.said + 1))

    def speak(self, numbers: Iterable[int]) -> None:
        """Say these numbers."""
        raise NotImplementedError

    def number(self, event: Event) -> int | None:
        """The number that an event tells; None where it is about something else."""
        raise NotImplementedError

    def flood(self, until: threading.Event) -> None:
        """As much as the peer can, until told otherwise."""
        while not until.is_set():
            self.say(500)

    def lose(self, agent: Agent) -> None:
        """Something is lost for good, and can be noticed. The agent runs before and after."""
        raise NotImplementedError

    def close(self) -> None:
        """The peer goes for good."""

    def numbers(self, events: Iterable[Event]) -> list[int]:
        """All numbers told, in the order in which they were stored."""
        found = (self.number(event) for event in events if event.source == "it" and not event.type.startswith("alert."))
        return [number for number in found if number is not None and number > BASE]


class Simulated(Driver):
    """A simulator in a process of its own that obeys its stdin."""

    module: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def appear(self) -> None:
        command = [sys.executable, "-m", f"agent.simulator.{self.module}", "--port", str(self.port)]
        with (self.folder / "peer.err").open("ab") as said:
            self.process = subprocess.Popen(
                [*command, "--rate", "2", "--control"],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
            )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith(b"READY "), (self.folder / "peer.err").read_text()

    def vanish(self, agent: Agent) -> None:  # noqa: ARG002 - whoever reads it
        self.close()

    def close(self) -> None:
        if self.process is not None:
            process, self.process = self.process, None
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with suppress(OSError):  # what nobody read any more
                    pipe.close()

    def obey(self, *commands: dict[str, object]) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join(json.dumps(command).encode() + b"\n" for command in commands))
        self.process.stdin.flush()

    def flood(self, until: threading.Event) -> None:
        self.obey({"rate": 5_000})
        until.wait()
        if self.process is not None:
            self.obey({"rate": 2})


class OpcUa(Simulated):
    """A press cell. Its numbers are values of one node, each of them a change."""

    kind, module = "opcua", "opcua_server"

    def configuration(self) -> str:
        names = "Setpoint.Speed", "Press.Cycles", "Spindle.Temp", "Spindle.Speed", "Oil.Pressure", "Spindle.Vibration"
        return (
            f'[sources.it]\ntype = "opcua"\nurl = "opc.tcp://127.0.0.1:{self.port}/press"\nsecurity = "None"\n'
            f"publishing_interval_ms = 50\ntimeout_s = 2\ndead_after_s = 2\n"
            f"nodes = {json.dumps([f'nsu={NAMESPACE};s={name}' for name in names])}\n"
        )

    def speak(self, numbers: Iterable[int]) -> None:
        self.obey(*({"set": "Setpoint.Speed", "value": float(number)} for number in numbers))

    def number(self, event: Event) -> int | None:
        return int(event.data["value"]) if event.target == "Setpoint.Speed" and "value" in event.data else None

    def lose(self, agent: Agent) -> None:
        """The server restarts, and its subscriptions with it."""
        self.vanish(agent)
        self.appear()


class Modbus(Simulated):
    """A controller. Its numbers stand in a register, each for some polls."""

    kind, module, every = "modbus", "plc", False

    def configuration(self) -> str:
        return (
            f'[sources.it]\ntype = "modbus"\nurl = "tcp://127.0.0.1:{self.port}"\ninterval_s = 0.02\ntimeout_s = 1\n'
            + "".join(
                f'[[sources.it.points]]\nname = "{name}"\ntable = "{table}"\naddress = {address}\ntype = "{kind}"\n'
                for name, table, address, kind in (
                    ("number", "holding", 200, "uint16"),
                    ("cycles", "holding", 100, "uint32"),
                    ("level", "input", 0, "uint16"),
                )
            )
        )

    def speak(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.obey({"set": "speed_setpoint", "value": number})
            time.sleep(0.005)

    def number(self, event: Event) -> int | None:
        return int(event.data["value"]) if event.target == "number" and "value" in event.data else None

    def numbers(self, events: Iterable[Event]) -> list[int]:
        """What still stands in the register when a new process first looks is told again, as a reading of that moment."""
        told = super().numbers(events)
        return [number for at, number in enumerate(told) if told[at - 1 : at] != [number]]

    def lose(self, agent: Agent) -> None:
        """Nobody polls for a while."""
        agent.kill9()
        time.sleep(1.5)
        agent.start()


def line(number: int) -> bytes:
    """A line of sshd; the number is its process."""
    return b"sshd[%d]: Failed password for root from 203.0.113.7 port 4 ssh2\n" % number


def process_number(event: Event) -> int | None:
    """The number of such a line."""
    return event.data.get("pid")


class Log(Driver):
    """A program that writes a log. It is gone when its folder is (a share that is not mounted)."""

    kind = "log"
    number = staticmethod(process_number)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.place, self.away = folder / "log", folder / "away"

    def configuration(self) -> str:
        return (
            f'[sources.it]\ntype = "log"\npaths = ["{self.place}/auth.log*"]\nparser = "auth"\npoll_interval_s = 0.1\n'
        )

    def appear(self) -> None:
        if self.away.exists():
            self.away.rename(self.place)
        self.place.mkdir(exist_ok=True)

    def vanish(self, agent: Agent) -> None:  # noqa: ARG002 - whoever reads it
        self.place.rename(self.away)

    def speak(self, numbers: Iterable[int]) -> None:
        at = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()).encode()
        with (self.place / "auth.log").open("ab") as file:
            file.write(b"".join(b"%s station-1 %s" % (at, line(number)) for number in numbers))

    def lose(self, agent: Agent) -> None:
        """The file is cut while lines in it were not read."""
        agent.kill9()
        self.say(50)
        (self.place / "auth.log").write_bytes(b"")
        self.say(1)
        agent.start()


class Journal(Driver):
    """A machine with a journal. It is gone when the journal's folder is, and journalctl with it."""

    kind = "journal"
    number = staticmethod(process_number)
    needs = staticmethod(lambda: None if REMOTE.exists() else "needs systemd-journal-remote")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.place, self.away = folder / "journal", folder / "away"
        self.at_us = time.time_ns() // 1_000 - 3_600_000_000
        self.boot = "0123456789abcdef0123456789abcdef"

    def configuration(self) -> str:
        return f'[sources.it]\ntype = "journal"\ndirectory = "{self.place}"\n'

    def appear(self) -> None:
        if self.away.exists():
            self.away.rename(self.place)
        self.place.mkdir(exist_ok=True)

    def vanish(self, agent: Agent) -> None:
        self.place.rename(self.away)
        for child in children(agent):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def speak(self, numbers: Iterable[int]) -> None:
        export = b"".join(
            b"__REALTIME_TIMESTAMP=%d\n__MONOTONIC_TIMESTAMP=%d\n_BOOT_ID=%s\n_HOSTNAME=station-1\nSYSLOG_IDENTIFIER=sshd\n"
            b"_PID=%d\nPRIORITY=6\nMESSAGE=Failed password for root from 203.0.113.7 port 4 ssh2\n\n"
            % (self.at_us + number * 1_000, number, self.boot.encode(), number)
            for number in numbers
        )
        subprocess.run(
            [str(REMOTE), "-o", str(self.place / "t.journal"), "-"], input=export, check=True, capture_output=True
        )

    def flood(self, until: threading.Event) -> None:
        while not until.is_set():
            self.say(5_000)

    def lose(self, agent: Agent) -> None:
        """The journal is another one when the agent comes back: vacuumed, or a new machine."""
        agent.kill9()
        for file in self.place.iterdir():
            file.unlink()
        self.say(10)
        agent.start()


def children(agent: Agent) -> list[int]:
    """The processes that an agent started."""
    assert agent.process is not None
    found = []
    for task in Path(f"/proc/{agent.process.pid}/task").iterdir():
        with suppress(OSError):
            found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


class Syslog(Driver):
    """A device that sends syslog over TCP, and holds what nobody takes."""

    kind = "syslog"
    speaks_to_the_dead = False
    number = staticmethod(process_number)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()
        self._line: socket.socket | None = None

    def configuration(self) -> str:
        return (
            f'[sources.it]\ntype = "syslog"\nlisten = ["tcp://127.0.0.1:{self.port}", "udp://127.0.0.1:{self.port}"]\n'
        )

    def appear(self) -> None:
        self.close()

    def vanish(self, agent: Agent) -> None:  # noqa: ARG002 - whoever listens
        self.close()

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def speak(self, numbers: Iterable[int]) -> None:
        messages = b"".join(b"<38>1 2026-03-01T10:00:00Z station-1 sshd %d - - x\n" % number for number in numbers)
        self._connected().sendall(messages)

    def _connected(self) -> socket.socket:
        if self._line is None:

            def called() -> bool:
                with suppress(OSError):
                    self._line = socket.create_connection(("127.0.0.1", self.port), timeout=30)
                return self._line is not None

            poll_until(called, why="nobody listens")
        assert self._line is not None
        return self._line

    def flood(self, until: threading.Event) -> None:
        """Datagrams as well, which cannot be held."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, suppress(OSError):
            while not until.is_set():
                self.say(500)
                for _ in range(500):
                    datagrams.sendto(b"<38>1 - device - - - - flood", ("127.0.0.1", self.port))

    def lose(self, agent: Agent) -> None:
        """Nobody listens for a while."""
        agent.kill9()
        self.close()
        agent.start()


class Intake(Driver):
    """A program of the station: it keeps what it has to say until it hears that it was taken, and sends it again with the same key."""

    kind = "intake"
    BATCH, HELD_MAX = 50, 5_000

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._socket = folder / "intake.sock"
        self._held: deque[dict[str, Any]] = deque()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def configuration(self) -> str:
        return f'[sources.it]\ntype = "intake"\nsocket = "{self._socket}"\n'

    def appear(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._post_all, args=(self._stop,))
        self._thread.start()

    def vanish(self, agent: Agent) -> None:  # noqa: ARG002 - whoever listens
        self.close()

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def speak(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._hold({"type": "application", "data": {"n": number}})

    def _hold(self, event: dict[str, Any]) -> None:
        while len(self._held) >= self.HELD_MAX and not self._stop.is_set():
            time.sleep(0.005)
        self._held.append(event)

    def number(self, event: Event) -> int | None:
        return event.data.get("n")

    def lose(self, agent: Agent) -> None:  # noqa: ARG002 - it is the program that loses
        """The program itself has to drop something, and says so."""
        self._hold({"type": "collection.gap", "data": {"reason": "the program's own memory was full", "events": 50}})

    def _post_all(self, stop: threading.Event) -> None:
        with Poster(self._socket) as program:
            while not stop.is_set():
                batch = list(islice(self._held, self.BATCH))
                if not batch or not self._post(program, batch, uuid.uuid4().hex, stop):
                    time.sleep(0.005)
                    continue
                for _ in batch:
                    self._held.popleft()

    @staticmethod
    def _post(program: Poster, batch: list[dict[str, Any]], key: str, stop: threading.Event) -> bool:
        while not stop.is_set():
            with suppress(OSError):
                answer = program.post(batch, Idempotency_Key=key)
                if answer.status == 202:
                    return True
                assert answer.status in (429, 503), answer
            stop.wait(0.05)
        return False


DRIVERS: dict[str, type[Driver]] = {driver.kind: driver for driver in (OpcUa, Modbus, Log, Journal, Syslog, Intake)}
