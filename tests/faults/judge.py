"""Reads PostgreSQL when all is over, and says of each promise whether it held, and where not."""

from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from uuid import UUID

from agent.wire.batch import read_frame
from tests.faults.campaign import FRESH_S_MAX, Result
from tests.postgres import connected

SHOWN = 10
OWN_EVENTS_MAX = 200
"""Events of the agent itself that may have gone with lines that had to go."""

LINES = """
    SELECT buffer_id, lane, batch_no, idx, observed, (data->>'pid')::int AS no FROM security_events
    WHERE agent_id = $1 AND source = 'auth' AND data ? 'pid' AND type NOT LIKE 'alert.%' ORDER BY buffer_id, lane, batch_no, idx
"""
GAPS = """
    SELECT (data->>'events')::int AS events, message FROM security_events WHERE agent_id = $1 AND type = 'collection.gap'
"""
EVIDENCE = "SELECT agent_id, buffer_id, lane, batch_no, through, hash, prev, events, frame, batch_id FROM evidence ORDER BY batch_no"
ROWS = "SELECT batch_id, count(*) AS rows FROM security_events GROUP BY batch_id"


@dataclass(slots=True)
class Verdict:
    """Each list holds what speaks against a promise; all empty: all hold."""

    lost_after_ack: list[Any] = field(default_factory=list)
    stored_twice: list[Any] = field(default_factory=list)
    never_sent: list[Any] = field(default_factory=list)
    undeclared: list[Any] = field(default_factory=list)
    overdeclared: list[Any] = field(default_factory=list)
    out_of_order: list[Any] = field(default_factory=list)
    early_acks: list[Any] = field(default_factory=list)
    broken_chains: list[Any] = field(default_factory=list)
    late: list[Any] = field(default_factory=list)
    lines: int = 0
    stored: int = 0
    declared: int = 0
    """Lines that are not stored, and declared lost."""
    batches: int = 0

    @property
    def holds(self) -> bool:
        return not any(getattr(self, name) for name in self.__slots__ if isinstance(getattr(self, name), list))


async def judge(result: Result, connection: Any = None) -> Verdict:
    """Hold what is stored (as `connection` sees it) against what was written, sent and acknowledged."""
    verdict = Verdict(early_acks=result.early_acks)
    verdict.late = [(agent, took_s) for agent, took_s in result.fresh_s.items() if took_s > FRESH_S_MAX]
    async with AsyncExitStack() as exits:
        database = connection or await exits.enter_async_context(connected(result.dsn))
        evidence = await database.fetch(EVIDENCE)
        rows = {row["batch_id"]: row["rows"] for row in await database.fetch(ROWS)}
        for agent, written in result.written.items():
            gaps = await database.fetch(GAPS, UUID(agent))
            _judge_lines(verdict, agent, written, await database.fetch(LINES, UUID(agent)), gaps)
    _judge_batches(verdict, result, evidence, rows)
    return verdict


def _judge_lines(verdict: Verdict, agent: str, written: int, stored: Any, gaps: Any) -> None:
    streams: dict[Any, list[Any]] = defaultdict(list)
    for row in stored:
        streams[row["buffer_id"], row["lane"]].append(row)
    times = Counter(row["no"] for row in stored)
    verdict.lines += written
    verdict.stored += len(times)
    missing = [no for no in range(1, written + 1) if not times[no]]
    unknown = any(gap["events"] is None for gap in gaps)
    declared = sum(gap["events"] or 0 for gap in gaps)
    verdict.declared += len(missing)
    if len(missing) > declared and not unknown:
        verdict.undeclared.append(
            (agent, missing[:SHOWN], f"{len(missing)} missing, declared: {[tuple(gap) for gap in gaps]}")
        )
    if declared > len(missing):
        # What was lost are this source's lines and the agent's own events beside them; a declaration of much more would be a lie too.
        verdict.overdeclared += [(agent, declared, len(missing))] if declared > len(missing) + OWN_EVENTS_MAX else []
    verdict.stored_twice += [(agent, no) for no, count in times.items() if count > 1][:SHOWN]
    verdict.never_sent += [(agent, no) for no in times if not 1 <= no <= written][:SHOWN]
    verdict.out_of_order += [
        (agent, before, after) for stream in streams.values() for before, after in pairwise(stream) if after <= before
    ][:SHOWN]


def _judge_batches(verdict: Verdict, result: Result, evidence: Any, rows: dict[int, int]) -> None:
    heads: dict[tuple[str, str, int], tuple[int, str]] = {}
    for row in evidence:
        stream = (str(row["agent_id"]), row["buffer_id"].hex, row["lane"])
        place = (*stream, row["batch_no"])
        frame = read_frame(row["frame"])
        verdict.batches += 1
        no, link = heads.get(stream, (0, "0" * 64))
        if row["batch_no"] <= no:
            verdict.stored_twice.append(place)
        if (row["batch_no"], frame.header.prev, frame.hash) != (no + 1, link, row["hash"]):
            verdict.broken_chains.append(place)
        heads[stream] = (frame.header.through, frame.header.gap.last if frame.header.gap else frame.hash)
        if rows.get(row["batch_id"], 0) != frame.header.events:
            verdict.undeclared.append((place, "rows", rows.get(row["batch_id"], 0), frame.header.events))
        if stream[0] in result.written and result.record.sent.get(place, {}).get(frame.hash) != bytes(row["frame"]):
            verdict.never_sent.append(place)
    for stream, no in result.record.acked.items():
        if heads.get(stream, (0, ""))[0] < no:
            verdict.lost_after_ack.append((*stream, no))


def table(result: Result, verdict: Verdict) -> str:
    """What was done and what came of it, for people and for the README."""
    broken = {
        "acknowledged and not stored": verdict.lost_after_ack,
        "stored twice": verdict.stored_twice,
        "stored and never sent": verdict.never_sent,
        "lost without a declaration": verdict.undeclared,
        "declared lost, and not lost": verdict.overdeclared,
        "out of order": verdict.out_of_order,
        "acknowledged before it was durable": verdict.early_acks,
        "chains that do not hold": verdict.broken_chains,
        "slow to come back": verdict.late,
    }
    facts = [
        ("seed", result.seed),
        ("minutes of faults", round(result.seconds / 60, 1)),
        ("faults", result.faults.total()),
        *((f"  {name}", count) for name, count in sorted(result.faults.items())),
        ("requests that reached a collector", result.record.requests),
        ("acknowledgements, each looked at before it was passed on", result.acks_checked),
        ("lines written", verdict.lines),
        ("lines stored", verdict.stored),
        ("lines declared lost (the disk was full)", verdict.declared),
        ("batches stored", verdict.batches),
        *((name, len(found)) for name, found in broken.items()),
        ("events in the buffers when the faults ended", sum(count or 0 for count in result.backlog.values())),
        ("a fresh line arrived after", f"{max(result.fresh_s.values(), default=0):.1f} s"),
    ]
    width = max(len(name) for name, _ in facts)
    text = [
        f"{name:<{width}}  {value:>9,}" if isinstance(value, int) else f"{name:<{width}}  {value:>9}"
        for name, value in facts
    ]
    text += [f"  {name}: {found[:SHOWN]}" for name, found in broken.items() if found]
    return "\n".join(text)
