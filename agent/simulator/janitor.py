"""Ends what a killed demo leaves behind: its processes, its PostgreSQL, its folder.

It runs beside the demo and reads the names of its processes from a pipe. When the pipe closes the demo has ended, orderly or by
`kill -9`, and whatever still runs is stopped: asked first, killed after a while. A process is known by its number and the time of its
birth, so that a number given anew never costs a stranger its life.

    process PID      a process that has to go; it leads its own group
    folder PATH      a folder that has to go, with a PostgreSQL server in PATH/pg if there is one
    keep             leave the folder: somebody wants to look at it
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

ASKED_S_MAX = 8.0
_STAT_STATE, _STAT_BORN = 0, 19


def born(pid: int) -> str | None:
    """When a process was born, in clock ticks since the boot; None where there is no such process any more."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The name in parentheses may hold anything: what follows the last one is a list of fields.
    fields = stat.rpartition(")")[2].split()
    return None if fields[_STAT_STATE] in "ZX" else fields[_STAT_BORN]


class Janitor:
    """The demo's end of the pipe."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agent.simulator.janitor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._say(f"folder {folder}")

    def watch(self, pid: int) -> None:
        """A process that must not outlive us."""
        self._say(f"process {pid}")

    def close(self, *, keep: bool) -> None:
        """All is stopped; the folder goes unless it is to be kept. Returns when nothing is left."""
        if keep:
            self._say("keep")
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()

    def _say(self, line: str) -> None:
        if self._process.stdin:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()


def main(told: IO[str]) -> None:
    """Listen until the pipe closes, then clean up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    processes: dict[int, str] = {}
    folder: Path | None = None
    keep = False
    for line in told:
        word, _, rest = line.rstrip("\n").partition(" ")
        if word == "process" and (since := born(int(rest))):
            processes[int(rest)] = since
        elif word == "folder":
            folder = Path(rest)
        elif word == "keep":
            keep = True
    _end(processes, signal.SIGTERM)
    if folder is not None:
        # Last: those who write into the database are gone by now.
        _end(_postgres(folder), signal.SIGINT)
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _postgres(folder: Path) -> dict[int, str]:
    try:
        pid = int((folder / "pg" / "data" / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])
    except (OSError, ValueError):
        return {}
    since = born(pid)
    return {pid: since} if since else {}


def _end(processes: dict[int, str], number: signal.Signals) -> None:
    deadline = time.monotonic() + ASKED_S_MAX
    for pid, since in processes.items():
        _signal(pid, since, number)
    while (left := [pid for pid, since in processes.items() if born(pid) == since]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        _signal(pid, processes[pid], signal.SIGKILL)


def _signal(pid: int, since: str, number: signal.Signals) -> None:
    if born(pid) == since:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)


if __name__ == "__main__":
    main(sys.stdin)
