"""`make demo`: everything stored exactly once, and nothing left behind, however it ends."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.simulator.scenario import acts

ROOT = Path(__file__).parents[2]
READY = "What happens:"
START_S_MAX = 120.0

pytestmark = pytest.mark.timeout(280)


def processes_naming(text: str) -> list[str]:
    """Command lines of living processes that name a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in command:
                found.append(command)
    return found


def eventually(holds: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.1)
    return holds()


def figure(text: str, name: str) -> int:
    """The last one of this name: the progress lines come before the summary."""
    found = re.findall(rf"{name} +([\d,]+)", text)
    assert found, text
    return int(found[-1].replace(",", ""))


class Run:
    """A demo in a folder for temporary things of its own, so that what it leaves behind is seen."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.output = folder / "output"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        for part in (folder, self.temporary):
            part.chmod(0o755)  # PostgreSQL passes through as another user where we are root
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agent.simulator.demo", *arguments],
                cwd=ROOT,
                env={**os.environ, "TMPDIR": str(self.temporary)},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def until_ready(self) -> None:
        assert eventually(lambda: READY in self.text() or self.process.poll() is not None, START_S_MAX), self.text()
        assert self.process.poll() is None, self.text()

    def leftovers(self) -> list[str]:
        return [*map(str, self.temporary.iterdir()), *processes_naming(str(self.temporary))]


@pytest.fixture
def place() -> Iterator[Path]:
    # Short, and open to the account that PostgreSQL runs as: pytest's own folders are neither.
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="lwd-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_demo_stores_everything_exactly_once_says_so_and_leaves_nothing(place: Path) -> None:
    run = Run(place, "--duration", "25")
    assert run.process.wait(240) == 0, run.text()
    said = run.text()
    collected, stored = (figure(said, what) for what in ("events collected", "stored"))
    assert collected == stored > 100
    assert re.search(r"lost +0 ", said)
    assert re.search(r"duplicated +0\n", said)
    lines = re.search(r"log lines +([\d,]+) of ([\d,]+)", said)
    assert lines
    assert lines[1] == lines[2]
    assert "alert:" in said
    assert "Everything that was collected was stored exactly once." in said
    assert "Traceback" not in said
    assert run.leftovers() == []


@pytest.mark.long
def test_interrupted_demo_judges_what_there_is_and_leaves_nothing(place: Path) -> None:
    run = Run(place)
    run.until_ready()
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(120) == 0, run.text()
    assert "Everything that was collected was stored exactly once." in run.text()
    assert run.leftovers() == []


def test_killed_demo_leaves_neither_processes_nor_files(place: Path) -> None:
    run = Run(place)
    run.until_ready()
    run.process.kill()
    run.process.wait()
    assert eventually(lambda: run.leftovers() == [], 30), run.leftovers()


@pytest.mark.long
def test_demo_whose_collector_dies_says_so_and_keeps_the_logs(place: Path) -> None:
    run = Run(place)
    run.until_ready()
    pids = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal() and _is_collector(entry, run.temporary)
    ]
    assert len(pids) == 1
    os.kill(pids[0], signal.SIGKILL)
    assert run.process.wait(120) == 1
    assert "the collector ended by itself, exit status -9" in run.text()
    assert "are kept for a look" in run.text()
    assert processes_naming(str(run.temporary)) == []


def _is_collector(entry: Path, folder: Path) -> bool:
    try:
        command = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return False
    return "linewarden-collector serve" in command and str(folder) in command


def test_the_same_seed_plays_the_same_attacks_in_order() -> None:
    first, second, other = ([act for act, _ in zip(acts(seed), range(40), strict=False)] for seed in (7, 7, 8))
    assert first == second != other
    assert [act.at_s for act in first] == sorted(act.at_s for act in first)
    assert {"spray", "setpoint", "setpoint_back", "drift", "break_in"} == {act.kind for act in first}
