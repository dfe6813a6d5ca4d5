"""A line for a plant that is not there: what happens on it, and when, by a seed.

The press cell (OPC UA), its controller (Modbus) and the station's log live in one process. Most of the time they produce; now and then
somebody attacks. `acts` is the script of the attacks, a pure function of the seed; `Line` plays it on real servers and on a real file:

    every ROUND_S     +4 s  refused sign-ins: one address tries many accounts of the station
                      +9 s  a setpoint is changed that nobody ordered, and put back 8 s later
                     +12 s  the oil temperature creeps up, as when a pump fails or a sensor is tampered with
                     +25 s  a break-in: refused, refused, let in, and at once with root's rights (every other round)
"""

import asyncio
import itertools
import logging
import random
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.simulator.logs import Line as LogLine
from agent.simulator.logs import LogWriter, Script
from agent.simulator.opcua_server import PASSWORD, USER, PressCell
from agent.simulator.plc import Plc

ROUND_S = 60.0
PRESS_STEPS_PER_S = 2.0
LOG_LINES_PER_S = 6.0
ATTACK_LINES_PER_S = 12.0
DRIFT_S = 12.0
DRIFT_PER_STEP_K = 0.25
SETPOINT_BACK_S = 8.0


@dataclass(frozen=True, slots=True)
class Act:
    """Something that somebody does to the line: when (seconds from the start), which kind, and in words."""

    at_s: float
    kind: str
    value: float = 0.0

    @property
    def text(self) -> str:
        """For a person who watches."""
        return {
            "spray": "somebody tries passwords of many accounts over SSH",
            "break_in": "somebody guesses a password, signs in, and becomes root",
            "setpoint": f"somebody sets the press to {self.value:g} strokes a minute, which nobody ordered",
            "setpoint_back": "the setpoint is put back",
            "drift": "the oil temperature begins to creep up",
        }[self.kind]


def acts(seed: int) -> Iterator[Act]:
    """What is done to the line, in order, without end."""
    draw = random.Random(seed)
    for number in itertools.count():
        begin = number * ROUND_S
        yield Act(begin + 4 + draw.random(), "spray")
        at_s = begin + 9 + draw.random()
        yield Act(at_s, "setpoint", value=float(draw.randrange(1_700, 2_400, 50)))
        yield Act(begin + 12 + draw.random(), "drift")
        yield Act(at_s + SETPOINT_BACK_S, "setpoint_back")
        if number % 2 == 0:
            yield Act(begin + 25 + draw.random(), "break_in")


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Line:
    """The line: `start`, then `run` until cancelled or `quiet`, then `stop`. Everything it writes lies in `folder`."""

    def __init__(self, folder: Path, *, seed: int, tell: Callable[[Act], None] = lambda _: None) -> None:
        self.folder = folder
        self.log_path = folder / "auth.log"
        self._seed = seed
        self._tell = tell
        self._cell = PressCell(port=free_port(), seed=seed, certificates=folder / "certificates", anonymous=False)
        self._plc = Plc(port=free_port(), seed=seed)
        self._script = Script(seed)
        self._writer = LogWriter(self.log_path)
        self._drift_until = 0.0
        self._ordered = float(self._cell.model.values["Setpoint.Speed"])

    async def start(self) -> None:
        """Listen, and make the log."""
        # asyncua warns of every unencrypted endpoint, asks for an administrator and the like: this is a toy, and says so itself.
        logging.getLogger("asyncua").setLevel(logging.CRITICAL)
        self._writer.__enter__()
        await self._cell.start()
        await self._plc.start()

    async def stop(self) -> None:
        """Close every connection and the file."""
        await self._plc.stop()
        await self._cell.stop()
        self._writer.__exit__()

    def addresses(self) -> dict[str, Any]:
        """Where to read it, for a program or a person."""
        return {
            "opcua": self._cell.url,
            "opcua_user": USER,
            "opcua_password": PASSWORD,
            "opcua_certificate": str(self.folder / "certificates" / "server.der"),
            "modbus": self._plc.url,
            "log": str(self.log_path),
        }

    async def run(self) -> None:
        """Produce, and be attacked, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._press())
            tasks.create_task(self._plc.run())
            tasks.create_task(self._log())
            tasks.create_task(self._attack())

    async def _press(self) -> None:
        due = time.monotonic()
        while True:
            await self._cell.step()
            if time.monotonic() < self._drift_until:
                warmer = round(self._cell.model.values["Oil.Temp"] + DRIFT_PER_STEP_K, 3)
                await self._cell.set("Oil.Temp", warmer)
            due = max(due + 1 / PRESS_STEPS_PER_S, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    async def _log(self) -> None:
        while True:
            await self._write(self._script.quiet(), LOG_LINES_PER_S)

    async def _write(self, lines: Iterator[LogLine], per_s: float) -> None:
        for line in lines:
            self._writer.write(line)
            await asyncio.sleep(1 / per_s)

    async def _attack(self) -> None:
        begin = time.monotonic()
        for act in acts(self._seed):
            await asyncio.sleep(max(0.0, begin + act.at_s - time.monotonic()))
            self._tell(act)
            await self._play(act)

    async def _play(self, act: Act) -> None:
        if act.kind == "spray":
            await self._write(self._script.spray(), ATTACK_LINES_PER_S)
        elif act.kind == "break_in":
            await self._write(self._script.break_in(), ATTACK_LINES_PER_S)
        elif act.kind == "drift":
            self._drift_until = time.monotonic() + DRIFT_S
        else:
            speed = act.value if act.kind == "setpoint" else self._ordered
            await self._cell.set("Setpoint.Speed", speed)
            self._plc.set("speed_setpoint", round(speed))
