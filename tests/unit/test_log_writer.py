"""The log writer of the virtual line."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.parsers.auth import AuthConfig, AuthParser
from agent.parsers.base import Context
from agent.simulator.logs import SCENES, Script, write_log


@pytest.mark.parametrize("scene", SCENES)
def test_the_same_seed_writes_the_same_lines_each_with_its_number_and_every_one_is_understood(
    tmp_path: Path, scene: str
) -> None:
    first, again = Script(7, scene).lines(), Script(7, scene).lines()
    for n in range(1, 1_001):
        line = next(first)
        assert line == next(again)
        assert line.no == n
    path = tmp_path / "auth.log"
    write_log(path, count=1_000, seed=7, scene=scene, classic=scene == "quiet")
    now_us = time.time_ns() // 1000
    lines = path.read_text().splitlines()
    events, consumed = AuthParser(AuthConfig(), Context("auth")).parse(
        lines, observed_us=now_us, reference_us=now_us, memory={}
    )
    assert consumed == 1_000
    assert [event.data["pid"] for event in events] == list(range(1, 1_001))
    assert "log.line" not in {event.type for event in events}


def test_the_command_writes_rotates_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "auth.log"
    command = [
        sys.executable,
        "-m",
        "agent.simulator.logs",
        "--path",
        str(path),
        "--rate",
        "0",
        "--count",
        "2500",
        "--rotate-lines",
        "1000",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "2500 lines written" in done.stdout
    assert [len((tmp_path / name).read_text().splitlines()) for name in ("auth.log.2", "auth.log.1", "auth.log")] == [
        1_000,
        1_000,
        500,
    ]
