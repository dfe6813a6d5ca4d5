"""How fast lines become events: each parser alone, and a file of 1,000,000 sshd lines through the whole source.

The limit of the source is the bare loop: read the file line by line, match the same regular expression, build the same Event. What is measured
here discards the events; the bench of the buffer has the durable way.
"""

# ruff: noqa: E501  # a table of lines

import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.component import Report
from agent.parsers import PARSERS
from agent.parsers.base import Context
from agent.sources.logfile import LogConfig, LogSource, parser_of
from agent.wire.event import Event

pytestmark = pytest.mark.bench

LINES = 1_000_000
PARSER_LINES = 4_000
"""What the source feeds at once."""
SSHD = "Mar {day:2d} {hour:02d}:{minute:02d}:{second:02d} station-1 sshd[{n}]: Failed password for invalid user admin from 203.0.113.{ip} port {port} ssh2"


def sshd_line(n: int) -> str:
    """Fifty lines a second, as an attack writes them."""
    at = n // 50
    return SSHD.format(
        day=1 + at // 86_400 % 28,
        hour=at // 3_600 % 24,
        minute=at // 60 % 60,
        second=at % 60,
        n=n,
        ip=n % 250,
        port=32_768 + n % 20_000,
    )


SAMPLES: dict[str, tuple[Callable[[int], str], dict[str, Any]]] = {
    "auth": (sshd_line, {}),
    "syslog": (lambda n: f"<86>1 2026-03-01T10:00:00.{n % 1000:03d}Z station-1 sshd {n} - - Accepted password for anna from 203.0.113.7 port {n % 60_000} ssh2", {}),
    "audit": (lambda n: f"type=USER_AUTH msg=audit(1772359200.100:{n}): pid={n} uid=0 auid=1000 ses=3 msg='op=PAM:authentication acct=\"anna\" exe=\"/usr/sbin/sshd\" hostname=? addr=203.0.113.7 terminal=ssh res=failed'", {}),
    "json": (lambda n: json.dumps({"timestamp": "2026-03-01T10:00:00Z", "level": "info", "message": "order done", "order": n, "duration_ms": 12.5}), {}),
    "winston": (lambda n: json.dumps({"timestamp": "2026-03-01T10:00:00Z", "level": "info", "message": "order %d done", "splat": [n], "meta": {"correlationId": f"c{n}"}}), {}),
    "logfmt": (lambda n: f'time=2026-03-01T10:00:00Z level=info msg="order done" order={n} duration_ms=12.5', {}),
    "csv": (lambda n: f"2026-03-01 10:00:00;{n};20.5;RUN" if n else "time;order;temperature;state", {}),
    "regex": (lambda n: f"2026-03-01 10:00:00 LOGIN failed anna panel={n}", {"pattern": r"^(?P<time>\S+ \S+) LOGIN (?P<outcome>\w+) (?P<actor>\w+) panel=(?P<panel>\d+)"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(PARSERS))
def test_lines_per_second_of_each_parser(kind: str) -> None:
    make, options = SAMPLES[kind]
    lines = [make(n) for n in range(PARSER_LINES)]
    parser = parser_of(kind, options, Context("bench"))
    now_us = time.time_ns() // 1000
    best_s = min(
        _timed(lambda: parser.parse(lines, observed_us=now_us, reference_us=now_us, memory={})) for _ in range(5)
    )
    print(f"\n{kind:8} {PARSER_LINES / best_s:>10,.0f} lines/s")
    assert PARSER_LINES / best_s > 20_000  # a station's worst day is a hundredth of it


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


BARE = re.compile(
    r"(\w{3} [ \d]\d \d\d:\d\d:\d\d) (\S+) (sshd)\[(\d+)\]: Failed (\S+) for (invalid user )?(\S+) from ([\d.]+) port (\d+) ssh2$"
)


def bare_loop(path: Path) -> int:
    """What nobody can do with less: read, match, build."""
    observed_us = time.time_ns() // 1000
    events = 0
    times: dict[str, int] = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            match = BARE.match(line)
            if match is None:
                continue
            text, host, program, pid, method, invalid, user, src_ip, port = match.groups()
            time_us = times.get(text)
            if time_us is None:
                time_us = times[text] = int(
                    datetime.strptime(f"2026 {text}", "%Y %b %d %H:%M:%S").replace(tzinfo=UTC).timestamp() * 1e6
                )
            data = {
                "host": host,
                "program": program,
                "pid": int(pid),
                "method": method,
                "port": int(port),
                "user_known": not invalid,
            }
            Event(
                time_us,
                observed_us,
                "authentication.failure",
                "auth",
                3,
                src_ip,
                host,
                "failure",
                "sign-in refused",
                None,
                user,
                None,
                data,
            )
            events += 1
    return events


async def through_the_source(path: Path) -> int:
    source = LogSource("auth", LogConfig(paths=(str(path),), parser="auth"), Report())
    batches = source.batches(None)
    events = 0
    async for batch, _ in batches:
        events += len(batch)
        if events >= LINES:
            break
    await batches.aclose()  # type: ignore[attr-defined]
    return events


async def test_a_million_lines_through_the_source_against_the_bare_loop(tmp_path: Path) -> None:
    path = tmp_path / "auth.log"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(sshd_line(n) + "\n" for n in range(LINES))
    begin = time.perf_counter()
    assert bare_loop(path) == LINES
    bare_s = time.perf_counter() - begin
    begin = time.perf_counter()
    assert await through_the_source(path) == LINES
    source_s = time.perf_counter() - begin
    print(
        f"\nbare loop {LINES / bare_s:,.0f} lines/s, source {LINES / source_s:,.0f} lines/s, ratio {bare_s / source_s:.2f}"
    )
    assert bare_s / source_s >= 0.8
