"""Whether everything that was collected was stored exactly once: asked of both ends, and of the log file itself.

The agent says how many events it made durable. PostgreSQL says how many rows it has, and of how many distinct identities. The heads of the
streams are compared number by number with the agent's buffer after it has stopped. And each line of the log file, which the
simulator wrote and the agent tailed, must be in the rows exactly as often as it is in the file.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    import asyncpg

NAMED_MAX = 3
"""Lines that a failure quotes."""

_COUNTS = """
    SELECT count(*) AS rows, count(DISTINCT (buffer_id, lane, batch_no, idx)) AS events,
           count(*) FILTER (WHERE type LIKE 'alert.%') AS alerts
    FROM security_events WHERE agent_id = $1
"""
_LATENCY = """
    SELECT percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY extract(epoch FROM received - observed) * 1000)
    FROM security_events WHERE agent_id = $1
"""
_GAPS = "SELECT source, lost, reason FROM gaps WHERE agent_id = $1 ORDER BY received"
_RAW = "SELECT raw, count(*) AS times FROM security_events WHERE agent_id = $1 AND source = $2 AND raw IS NOT NULL GROUP BY raw"
_BY_SOURCE = (
    "SELECT source, count(*) AS events FROM security_events WHERE agent_id = $1 GROUP BY source ORDER BY 2 DESC"
)
_HEADS = "SELECT replace(buffer_id::text, '-', ''), lane, batch_no FROM batch_heads WHERE agent_id = $1"


@dataclass(slots=True)
class Verdict:
    """What was found, and what of it is wrong."""

    collected: int = 0
    stored: int = 0
    duplicated: int = 0
    declared_lost: int = 0
    gaps: list[str] = field(default_factory=list)
    alerts: int = 0
    by_source: dict[str, int] = field(default_factory=dict)
    log_lines: int = 0
    log_lines_once: int = 0
    stored_ms: tuple[float, float] = (0.0, 0.0)
    """p50 and p99 of observed → stored."""
    failures: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Collected, and neither stored nor to come."""
        return max(0, self.collected - self.stored)


async def count(database: "asyncpg.Connection[asyncpg.Record]", agent: UUID) -> tuple[int, int, int]:
    """Rows, distinct events, alerts."""
    row = await database.fetchrow(_COUNTS, agent)
    return (row["rows"], row["events"], row["alerts"]) if row else (0, 0, 0)


async def judge(
    database: "asyncpg.Connection[asyncpg.Record]",
    agent: UUID,
    *,
    collected: int,
    log_source: str,
    log_files: Iterable[Path],
) -> Verdict:
    """Everything that can be said while the agent still runs, and stands still."""
    rows, events, alerts = await count(database, agent)
    verdict = Verdict(collected=collected, stored=events, duplicated=rows - events, alerts=alerts)
    for source, lost, reason in await database.fetch(_GAPS, agent):
        verdict.gaps.append(f"{source or 'buffer'}: {'an unknown number' if lost is None else lost} ({reason})")
        verdict.declared_lost += lost or 0
    verdict.by_source = {row["source"]: row["events"] for row in await database.fetch(_BY_SOURCE, agent)}
    if latency := await database.fetchval(_LATENCY, agent):
        verdict.stored_ms = (float(latency[0]), float(latency[1]))
    if verdict.lost:
        verdict.failures.append(f"{verdict.lost} of {collected} collected events are not stored")
    if events > collected:
        verdict.failures.append(f"{events - collected} events are stored that the agent did not collect")
    if verdict.duplicated:
        verdict.failures.append(f"{verdict.duplicated} rows are there twice")
    if verdict.gaps:
        verdict.failures.append(f"{len(verdict.gaps)} gaps were declared: {'; '.join(verdict.gaps[:NAMED_MAX])}")
    stored = {row["raw"]: row["times"] for row in await database.fetch(_RAW, agent, log_source)}
    _compare_lines(verdict, _lines(log_files), stored)
    return verdict


def _lines(files: Iterable[Path]) -> Counter[str]:
    written: Counter[str] = Counter()
    for file in files:
        written.update(file.read_text(encoding="utf-8", errors="replace").splitlines())
    return written


def _compare_lines(verdict: Verdict, written: Counter[str], stored: dict[str, int]) -> None:
    verdict.log_lines = sum(written.values())
    verdict.log_lines_once = sum(times for line, times in written.items() if stored.get(line, 0) == times)
    wrong = [(line, times) for line, times in written.items() if stored.get(line, 0) != times]
    for line, times in wrong[:NAMED_MAX]:
        verdict.failures.append(
            f"this log line was written {times} times and is stored {stored.get(line, 0)} times: {line!r}"
        )
    if len(wrong) > NAMED_MAX:
        verdict.failures.append(f"… and {len(wrong) - NAMED_MAX} more log lines")
    for line in [line for line in stored if line not in written][:NAMED_MAX]:
        verdict.failures.append(f"a log line is stored that was never written: {line!r}")


async def compare_heads(database: "asyncpg.Connection[asyncpg.Record]", agent: UUID, buffer: Path) -> list[str]:
    """After the agent has stopped: what its buffer and the centre's heads disagree about."""
    heads = {(stream, lane): no for stream, lane, no in await database.fetch(_HEADS, agent)}
    with closing(sqlite3.connect(buffer)) as file:
        streams = file.execute("SELECT buffer, lane, next_no, pending_events FROM streams").fetchall()
    failures = []
    for stream, lane, next_no, pending in streams:
        if pending:
            failures.append(f"lane {lane}: {pending} events are still in the agent's buffer")
        elif heads.get((stream, lane), 0) != next_no - 1:
            failures.append(
                f"lane {lane}: the agent made {next_no - 1} batches, the centre has {heads.get((stream, lane), 0)}"
            )
    return failures
