"""`linewarden-agent parse`: what a parser makes of a file or of standard input."""

import gzip
import io
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from agent.cli import DONE, WRONG, main
from agent.cli_parse import LINE_BYTES_MAX, LINES_MAX

REFUSED = "Mar  1 10:00:00 host sshd[7]: Failed password for root from 192.0.2.7 port 22 ssh2"


def parsed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    code = main(["parse", *arguments])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def test_one_event_a_line_with_the_personal_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "auth.log"
    log.write_text(f"{REFUSED}\nMar  1 10:00:01 host hmi[1]: Ann pressed start\r\nunfinished")
    code, events, err = parsed(capsys, "--parser", "auth", str(log))
    assert (code, err) == (DONE, "")
    assert [each["type"] for each in events] == ["authentication.failure", "log.line", "log.line"]
    assert (events[0]["actor"], events[0]["src_ip"], events[0]["data"]["port"]) == ("root", "192.0.2.7", 22)
    assert [each["raw"] for each in events[1:]] == ["Mar  1 10:00:01 host hmi[1]: Ann pressed start", "unfinished"]


def test_options_time_zone_and_the_original_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "x.csv"
    log.write_text("2026-07-01 10:00:00;ann;7\n")
    options = json.dumps({"columns": ["time", "user", "n"], "delimiter": ";"})
    code, events, _ = parsed(
        capsys, "--parser", "csv", "--options", options, "--time-zone", "Europe/Berlin", "--keep-raw", str(log)
    )
    assert code == DONE
    assert (events[0]["time"], events[0]["actor"], events[0]["data"]) == (1_782_892_800_000_000, "ann", {"n": 7})
    assert events[0]["raw"] == "2026-07-01 10:00:00;ann;7"


def test_standard_input_and_packed_files_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(f"{REFUSED}\n".encode()))))
    assert [each["type"] for each in parsed(capsys, "--parser", "auth", "-")[1]] == ["authentication.failure"]
    packed = tmp_path / "auth.log.2.gz"
    packed.write_bytes(gzip.compress(f"{REFUSED}\n".encode()))
    assert [each["type"] for each in parsed(capsys, "--parser", "auth", str(packed))[1]] == ["authentication.failure"]


def test_an_empty_file_has_no_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").write_bytes(b"")
    assert parsed(capsys, "--parser", "audit", str(tmp_path / "x")) == (DONE, [], "")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--parser", "auht", "x"], "Did you mean 'auth'"),
        (["--parser", "auth", "/nonexistent/x"], "cannot be read: No such file"),
        (["--parser", "auth", "/"], "Is a directory"),
        (["--parser", "csv", "--options", "{", "x"], "--options: not usable"),
        (["--parser", "csv", "--options", "[]", "x"], "--options: not usable"),
        (["--parser", "csv", "--options", '{"delimeter":";"}', "x"], "did you mean 'delimiter'"),
        (["--parser", "regex", "x"], "needs a pattern"),
        (["--parser", "auth", "--time-zone", "Mars/Base", "x"], "no time zone 'Mars/Base'"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_remedy_and_status_2(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, events, err = parsed(capsys, *arguments)
    assert (code, events) == (WRONG, [])
    assert text in err
    assert err.count("\n") <= 2
    assert "Traceback" not in err


def test_damaged_archives_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"a\n" * 100_000)[:60])
    code, _, err = parsed(capsys, "--parser", "auth", str(tmp_path / "x.gz"))
    assert code == WRONG
    assert "cannot be read" in err


def test_a_line_of_any_length_is_cut_and_the_cut_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "x"
    log.write_bytes(b"a" * (3 * LINE_BYTES_MAX) + b"\n" + REFUSED.encode() + b"\n" + b"b" * (2 * LINE_BYTES_MAX))
    code, events, err = parsed(capsys, "--parser", "auth", str(log))
    assert code == DONE
    assert [each["type"] for each in events] == ["log.line", "authentication.failure", "log.line"]
    assert "2 lines were longer than" in err


def test_records_of_several_lines_are_joined_across_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "audit.log"
    with log.open("w") as file:
        for n in range(LINES_MAX):
            stamp = f"msg=audit(1772359200.100:{n}): "
            file.write(f'type=SYSCALL {stamp}success=yes pid=7 comm="cat" exe="/bin/cat"\n')
            file.write(f'type=EXECVE {stamp}argc=2 a0="cat" a1="{n}"\ntype=PROCTITLE {stamp}proctitle="cat"\n')
    code, events, _ = parsed(capsys, "--parser", "audit", str(log))
    assert code == DONE
    assert [each["data"]["command"] for each in events] == [f"cat {n}" for n in range(LINES_MAX)]


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nowhere(io.TextIOBase):
        def write(self, text: str) -> int:
            return len(text)

    monkeypatch.setattr(sys, "stdout", Nowhere())
    peaks = []
    for count in (4_000, 12_000):
        (tmp_path / "auth.log").write_text(f"{REFUSED}\n" * count)
        tracemalloc.start()
        try:
            assert main(["parse", "--parser", "auth", str(tmp_path / "auth.log")]) == DONE
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.5
