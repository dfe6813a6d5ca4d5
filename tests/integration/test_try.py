"""`linewarden-agent try`: what the handlers would have raised over a log, as text and as JSON, through the command."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

from agent import cli
from agent.simulator.logs import Script
from tests.collector_process import ROOT
from tests.commands import run_main


def tried(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return run_main(cli.main, "try", *arguments, environ=os.environ)


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


def test_replay_gives_the_same_alerts_bit_for_bit_in_any_process(tmp_path: Path) -> None:
    """Whatever the order of its sets, and whenever it runs."""
    log = write(tmp_path / "auth.log", "mixed", 2_000)
    command = [sys.executable, "-m", "agent.cli", "try", str(log), "--config", str(config(tmp_path, log)), "--json"]
    answers = [
        subprocess.run(
            command, cwd=ROOT, capture_output=True, check=True, timeout=60, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        for seed in ("1", "2")
    ]
    assert b"alert.authentication.burst" in answers[0].stdout
    assert b"alert.authentication.broken_in" in answers[0].stdout
    assert answers[0].stdout == answers[1].stdout


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


def refusals(path: Path, bursts: dict[str, int]) -> Path:
    """A log in the form that sshd gives where syslog writes neither year nor zone: several programs' lines, several for one refusal."""
    lines = []
    for order, (address, count) in enumerate(bursts.items()):
        for n in range(count):
            head = f"Dec 10 {6 + order:02d}:{n // 30:02d}:{n % 30 * 2:02d} LabSZ sshd[{24_000 + n}]:"
            lines += [
                f"{head} Invalid user u{n % 3} from {address}",
                f"{head} input_userauth_request: invalid user u{n % 3} [preauth]",
                f"{head} Failed password for invalid user u{n % 3} from {address} port {38_000 + n} ssh2",
                f"{head} Connection closed by {address} [preauth]",
            ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_every_source_of_an_sshd_log_is_explained_once_with_the_right_count(tmp_path: Path) -> None:
    bursts = {"203.0.113.1": 4, "203.0.113.2": 5, "203.0.113.3": 61, "203.0.113.4": 286}
    log = refusals(tmp_path / "OpenSSH.log", bursts)
    answer = tried(str(log), "--config", str(config(tmp_path, log)), "--json", "--explain")
    *alerts, explained = [json.loads(line) for line in answer.stdout.splitlines()]
    near = {each["key"]["src_ip"]: each["reached"] for each in explained["near"]["login_burst"]}
    assert near == bursts
    first = [a["src_ip"] for a in alerts if a["type"] == "alert.authentication.burst" and a["severity"] == 4]
    assert Counter(first) == {address: 1 for address, count in bursts.items() if count >= 5}
    page = tried(str(log), "--config", str(config(tmp_path, log)), "--explain").stdout
    assert ["login_burst", "src_ip", "203.0.113.1", "4", "5"] in [line.split()[:5] for line in page.splitlines()]


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


def test_on_a_terminal_a_bar_shows_how_far_it_is_and_is_gone_at_the_end(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    line = "Mar  1 12:00:00 host sshd[1]: Failed password for root from 10.0.0.1 port 1 ssh2\n"
    log.write_text(line * 100_000)
    main, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "agent.cli", "try", str(log), "--parser", "auth"], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=terminal,
    ) as process:  # fmt: skip
        os.close(terminal)
        shown = bytearray()
        # At its end a terminal is read with an error.
        with contextlib.suppress(OSError):
            while data := os.read(main, 4_096):
                shown += data
        assert process.stdout is not None
        page = process.stdout.read().decode()
        assert process.wait(60) == 0
    os.close(main)
    shares = [int(found) for found in re.findall(rb"\] +(\d+)%", bytes(shown))]
    assert shares
    assert shares == sorted(shares)
    assert bytes(shown).endswith(b"\r\x1b[K")
    assert "100 000 lines" in page
