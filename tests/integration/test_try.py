"""`linewarden-agent try`: what the handlers would have raised over a log, as text and as JSON, through the command."""

import json
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

from agent.simulator.logs import Script
from tests.collector_process import ROOT


def tried(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "agent.cli", "try", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def write(path: Path, scene: str, count: int, newline: str = "\n") -> Path:
    lines = (
        f"2026-03-02T08:{n // 600 % 60:02d}:{n // 10 % 60:02d}+00:00 station-1 {line.program}[{line.no}]: {line.text}"
        for n, line in enumerate(islice(Script(4, scene).lines(), count))
    )
    path.write_bytes("".join(line + newline for line in lines).encode())
    return path


def config(folder: Path, log: Path, handlers: str = "") -> Path:
    path = folder / "agent.toml"
    path.write_text(
        f'[sync]\nurl = "https://c:8443"\n[sources.auth]\ntype = "log"\npaths = ["{log}"]\nparser = "auth"\n{handlers}'
    )
    return path


def test_every_address_with_a_burst_is_named_once_with_its_count(tmp_path: Path) -> None:
    log = write(tmp_path / "auth.log", "brute_force", 3_000)
    attackers = {line.rpartition(" from ")[2].split()[0] for line in log.read_text().splitlines()}
    answer = tried(str(log), "--config", str(config(tmp_path, log)), "--json")
    assert answer.returncode == 0, answer.stderr
    alerts = [json.loads(line) for line in answer.stdout.splitlines()]
    first = [each for each in alerts if each["type"] == "alert.authentication.burst" and each["severity"] == 4]
    assert Counter(each["src_ip"] for each in first) == dict.fromkeys(attackers, 1)
    assert {each["data"]["count"] for each in first} == {5}


def test_lines_with_carriage_returns_are_read_like_others(tmp_path: Path) -> None:
    log = write(tmp_path / "auth.log", "brute_force", 60, "\r\n")
    answer = tried(str(log), "--config", str(config(tmp_path, log)))
    assert "refused sign-ins from" in answer.stdout
    assert "60 lines, 60 events" in answer.stdout


def test_a_quiet_log_says_so_and_explain_tells_what_each_handler_saw(tmp_path: Path) -> None:
    log = write(tmp_path / "auth.log", "quiet", 30)
    answer = tried(str(log), "--config", str(config(tmp_path, log)), "--explain")
    assert answer.stdout.startswith("Nothing would have been raised.")
    assert "matched, and never reached its bound" in answer.stdout
    assert "nothing that concerns it" in answer.stdout


def test_handlers_of_the_configuration_are_tried_and_recorded_events_too(tmp_path: Path) -> None:
    handler = '[handlers.mine]\ntype = "count"\nwhere = "type == \'equipment.reading\'"\nby = ["target"]\nat_least = 3\nwithin_s = 10\nraises = { type = "alert.mine" }\n'  # noqa: E501
    events = tmp_path / "events.ndjson"
    event = {"observed": 1, "type": "equipment.reading", "severity": 1, "source": "plc", "target": "t"}
    events.write_text("".join(json.dumps({"time": 1_772_323_200_000_000 + n, **event}) + "\n" for n in range(3)))
    answer = tried(str(events), "--config", str(config(tmp_path, tmp_path / "x.log", handler)), "--json")
    assert [json.loads(line)["type"] for line in answer.stdout.splitlines()] == ["alert.mine"]


def test_what_cannot_be_read_is_a_clear_error(tmp_path: Path) -> None:
    log = write(tmp_path / "auth.log", "quiet", 3)
    there = str(config(tmp_path, log))
    broken = tmp_path / "events.ndjson"
    broken.write_text('{"time":1,"observed":1,"type":"log.line","severity":1}\n{"time":1,"observed":\n')
    for arguments, says in (
        ((str(tmp_path / "none.log"), "--config", there), "none.log cannot be read: No such file or directory"),
        ((str(log), "--config", there, "--parser", "autth"), "Did you mean 'auth'?"),
        ((str(log), "--config", str(tmp_path / "no.toml")), "no.toml"),
        ((str(broken), "--config", there), "line 2 is no event"),
    ):
        answer = tried(*arguments)
        assert answer.returncode in (1, 2)
        assert says in answer.stderr
        assert "Traceback" not in answer.stderr
