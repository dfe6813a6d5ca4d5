"""Doors fuzzed by coverage (atheris): what comes in from outside is changed byte by byte towards code that no input has reached yet.

A door takes any bytes and answers in its own words, or with an error that it declares; anything else is a finding, and atheris leaves the
input in the folder. What was found new is kept in the corpus, so that the next run goes on from there.

    make fuzz                                     each door for MINUTES
    python -m tests.faults.guided where --seconds 3600 --corpus FOLDER

Doors: frame (a batch as it comes to the collector), rows (its sections), signature, where, intake, and each parser by its name.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["agent"]):
    from agent.handlers.where import Where, WhereError
    from agent.health_http import Refused
    from agent.parsers import PARSERS
    from agent.parsers.base import Context
    from agent.sources.intake_read import Reader
    from agent.sources.logfile import parser_of
    from agent.wire.batch import MalformedBatch, encode_lines, read_frames, seal
    from agent.wire.event import Event
    from agent.wire.signature import MalformedSignature, read_header, read_text

OPTIONS: dict[str, Any] = {"csv": {"columns": ["time", "type", "message"]}, "regex": {"pattern": "(?P<message>.*)"}}
"""Of the parsers that need some."""
EVENT = Event(
    1, 2, "authentication.failure", "auth", 3, src_ip="192.0.2.1", target="sshd", outcome="failure", message="refused",
    correlation_id="c", actor="ann", data={"port": 22, "value": 1.5, "list": [1, None], "text": "a b", "deep": {"a": {"b": True}}},
)  # fmt: skip

Door = Callable[[bytes], None]


def _sealed() -> bytes:
    core, personal = encode_lines([EVENT, EVENT])
    agent = "00000000-0000-4000-8000-000000000001"
    return seal(core, personal, agent=agent, buffer="0" * 32, lane=1, no=1, prev="0" * 64, sealed=1).frame


SEEDS = {
    "frame": [_sealed(), _sealed() * 2],
    "rows": [_sealed()],
    "where": [
        b"type == 'a.b' and data.port in (22, 23) or not cidr(src_ip, '10.0.0.0/8')",
        b"lower(actor) contains 'root' and data.text matches '^a+b$' and length(message) > 3",
    ],
    "intake": [b'{"type":"a.b","time":"2026-01-01T00:00:00Z","data":{"a":1}}', b'[{"level":"warn","message":"m","timestamp":1}]'],
    "signature": [f"1 {'0' * 32} {'0' * 128}".encode()],
    "auth": [b"Jan  1 00:00:00 host sshd[1]: Failed password for root from 10.0.0.1 port 22 ssh2\nmessage repeated 3 times: [x]"],
    "syslog": [b'<34>1 2026-01-01T00:00:00Z host app 12 ID47 [a@1 b="c"] hello'],
    "audit": [b'type=USER_LOGIN msg=audit(1700000000.123:45): pid=1 uid=0 acct="root" exe="/x" res=failed'],
    "winston": [b'{"level":"error","message":"x","timestamp":"2026-01-01T00:00:00Z","correlationId":"c"}'],
    "logfmt": [b'time=2026-01-01T00:00:00Z level=warn msg="a b" n=1'],
}  # fmt: skip


def _frame(data: bytes) -> None:
    with contextlib.suppress(MalformedBatch):
        for frame in read_frames(data):
            frame.rows()


def _rows(data: bytes) -> None:
    """The sections of a frame whose header holds: what a header's checks keep from the code behind them."""
    for frame in read_frames(_sealed()):
        for core, personal in ((data, frame.personal_z), (frame.core_z, data)):
            other = type(frame)(frame.wire, frame.header_bytes, core, personal)
            with contextlib.suppress(MalformedBatch):
                other.rows()


def _signature(data: bytes) -> None:
    with contextlib.suppress(MalformedSignature):
        read_text(data)
    with contextlib.suppress(MalformedSignature):
        read_header(data.decode("latin-1"))


def _where(data: bytes) -> None:
    with contextlib.suppress(WhereError):
        Where(data.decode("utf-8", "replace"))(EVENT)


def _intake(data: bytes) -> None:
    for lines in (False, True):
        with contextlib.suppress(Refused):
            Reader("fuzz").events(data, lines=lines)


def _parser(name: str) -> Door:
    def door(data: bytes) -> None:
        parser = parser_of(name, OPTIONS.get(name, {}), Context("fuzz"))
        lines = data.decode("utf-8", "surrogateescape").split("\n")
        memory: dict[str, object] = {}
        while lines:
            events, used = parser.parse(lines, observed_us=2, reference_us=1, memory=memory, final=True)
            if used <= 0 or (
                not events and any(line.strip() for line in lines[:used]) and name not in ("csv", "audit")
            ):
                raise AssertionError(f"{used} of {len(lines)} lines gave {len(events)} events")
            lines = lines[used:]

    return door


DOORS: dict[str, Door] = {
    "frame": _frame, "rows": _rows, "signature": _signature, "where": _where, "intake": _intake,
    **{name: _parser(name) for name in PARSERS},
}  # fmt: skip


def run_all(seconds: int, corpus: Path) -> int:
    """Each door in a process of its own, one after the other; how many found something."""
    found = 0
    for name in DOORS:
        command = [
            sys.executable,
            "-m",
            "tests.faults.guided",
            name,
            "--seconds",
            str(seconds),
            "--corpus",
            str(corpus),
        ]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        print(f"{name:10} {'holds' if done.returncode == 0 else 'FOUND SOMETHING'}: {last}", flush=True)
        if done.returncode:
            found += 1
            print(done.stderr[-4_000:], done.stdout[-4_000:])
    return found


def main() -> int:
    """One door, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("door", choices=("all", *DOORS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="(default: a folder that goes with the run)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        corpus = options.corpus or Path(scratch)
        if options.door == "all":
            return run_all(options.seconds, corpus)
        own = corpus / options.door
        own.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(SEEDS.get(options.door, [b"{}"])):
            (own / f"seed{number}").write_bytes(seed)
        limits = [
            f"-max_total_time={options.seconds}",
            "-max_len=8192",
            "-timeout=10",
            "-rss_limit_mb=1024",
            "-print_final_stats=0",
        ]
        atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={own}/", str(own)], DOORS[options.door])
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
