"""The demo's processes: started with their output in a file each, watched, and stopped in order.

Each leads a group of its own, so that the Ctrl-C of a terminal reaches the demo alone, which then stops them one after the other: first the
agent, which brings its last events to the collector. The janitor knows all of them.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.simulator.janitor import Janitor

COMMAND_S_MAX = 60.0
STOP_S_MAX = 20.0
LOG_LINES_SHOWN = 15


class Failed(Exception):
    """The demo cannot go on. The text says what, and where to look."""


@dataclass(slots=True)
class Child:
    """A process of ours."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    def check(self) -> None:
        """Raises Failed where it has ended although nobody asked it to."""
        if self.process.returncode is not None:
            raise Failed(f"the {self.name} ended by itself, exit status {self.process.returncode}.{_end_of(self.log)}")


class Processes:
    """All of them, by name, in the order of their start."""

    def __init__(self, folder: Path, janitor: Janitor) -> None:
        self._folder = folder
        self._janitor = janitor
        self._children: dict[str, Child] = {}

    async def start(self, name: str, command: Sequence[str], *, piped: bool = False) -> Child:
        """Start one; `piped`: we speak with it through stdin and stdout."""
        log = self._folder / f"{name}.log"
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE if piped else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if piped else output,
                stderr=output,
                start_new_session=True,
                env=_environment(),
            )
        self._janitor.watch(process.pid)
        self._children[name] = child = Child(name, process, log)
        return child

    async def command(self, *command: str) -> str:
        """Run one of the project's commands to its end; what it wrote on stdout. Raises Failed with what it said."""
        process = await asyncio.create_subprocess_exec(
            program(command[0]),
            *command[1:],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env=_environment(),
        )
        self._janitor.watch(process.pid)
        try:
            async with asyncio.timeout(COMMAND_S_MAX):
                out, said = await process.communicate()
        except TimeoutError:
            raise Failed(f"{' '.join(command)} takes longer than {COMMAND_S_MAX:g} s") from None
        if process.returncode:
            text = (said or out).decode(errors="replace").strip()
            raise Failed(f"{' '.join(command)} ended with {process.returncode}:\n{text}")
        return out.decode()

    def check(self) -> None:
        """Raises Failed where one has ended by itself."""
        for child in self._children.values():
            child.check()

    async def stop(self, name: str) -> None:
        """Ask it to end, and wait; kill it where it does not."""
        child = self._children.pop(name, None)
        if child is None or child.process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            child.process.terminate()
        try:
            async with asyncio.timeout(STOP_S_MAX):
                await child.process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)
            await child.process.wait()

    async def stop_all(self) -> None:
        """The last started first."""
        for name in reversed(list(self._children)):
            await self.stop(name)


def program(name: str) -> str:
    """A command of this environment."""
    return str(Path(sys.executable).parent / name)


def _environment() -> dict[str, str]:
    # Settings for a real installation must not reach the demo's.
    return {key: value for key, value in os.environ.items() if not key.startswith(("LINEWARDEN_", "NOTIFY_SOCKET"))}


def _end_of(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES_SHOWN:]
    except OSError:
        return ""
    return "\n    ".join([" Its last words:", *lines]) if lines else ""
