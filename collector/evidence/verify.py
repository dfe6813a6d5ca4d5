"""`verify`: everything that is stored, held against everything that proves it.

Passes: rows and frames, unit by unit, in processes of their own; the chains of streams; tombstones; the audit log; the Merkle tree and its
checkpoints; what the audit log says of keys, users, tokens, suppressions, holds and erasures; alerts and their history; roll-ups; the
triggers that guard the tables. Each reads in transactions of its own and none waits for another, so ingest goes on; what is stored
meanwhile may be looked at or not, and is never found fault with. A row that lies in the wrong place is found twice, missing here and too
many there: the two are told as one.

With `events_max` rows and frames are a sample, those of the newest day first and then of days chosen by chance, and so are the hours of the
roll-ups; all the rest is looked at as a whole.
"""

import asyncio
import multiprocessing
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from msgspec import Struct

from collector.evidence import treecheck
from collector.evidence import unit as unit_
from collector.evidence.alertcheck import alert_findings
from collector.evidence.chain import Walk, missing_partitions, spans, tombstone_findings
from collector.evidence.finding import Finding
from collector.evidence.note import VerifierKey
from collector.evidence.rollupcheck import rollup_findings
from collector.evidence.signed import key_findings
from collector.evidence.statecheck import state_findings
from collector.evidence.unit import Checked
from collector.store import evidence, retention, schema
from collector.store.database import StoreUnavailable, connect, translated
from collector.store.evidence import Unit

if TYPE_CHECKING:
    from collector.store.database import Plain

FINDINGS_MAX = 10_000
FORKS_SHOWN = 20
"""More are counted and not listed."""
ALONE_EVENTS = 100_000
"""Up to so many events no process is started: that takes longer than they do."""
HOURS_MAX = 48
"""Hours of the roll-ups that are counted again where not all of them are."""
WAITING_UNITS = 4
"""Units handed to each process ahead of time."""


def processors() -> int:
    """How many processes compare rows, where nothing else is asked for."""
    return min(4, os.cpu_count() or 1)


class Report(Struct):
    """The answer. `ok`: nothing was found."""

    ok: bool = True
    findings: list[Finding] = []
    findings_left_out: int = 0
    batches: int = 0
    events: int = 0
    rows: int = 0
    deleted_by_retention: int = 0
    erased: int = 0
    sampled: bool = False
    """Whether rows and roll-ups were looked at by sample."""
    rollup_hours: int = 0
    streams: int = 0
    tombstones: int = 0
    audit_records: int = 0
    leaves: int = 0
    checkpoints: int = 0
    checkpoints_proven: int = 0
    """Of those given from outside: this database is a continuation of them."""
    forks: int = 0
    """Contradictions that were refused when they came: what is stored holds, and somebody said something else."""
    notes: list[str] = []
    """What could not be looked at, and why; and the contradictions, by name."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be looked at."""

    agent: UUID | None = None
    since: datetime | None = None
    processes: int = field(default_factory=processors)
    outside: str | None = None
    """Checkpoints that were kept off the machine."""
    keys: tuple[str, ...] = ()
    """Verifier keys that are believed, and no others."""
    own: VerifierKey | None = None
    """The key of this installation, from its file."""
    events_max: int | None = None
    """Rows of about so many events are compared, and no more; None: of all."""
    progress: Callable[[int, int], None] = lambda _done, _all: None
    """Called with events looked at, and about how many there are."""


async def verify(dsn: str, wanted: Wanted) -> Report:
    """All of it. Raises StoreUnavailable, StoreMisconfigured."""
    started = time.monotonic()
    report = Report()
    found: list[Finding] = []
    async with _connected(dsn) as connection:
        with translated():
            tombstones = await evidence.tombstones(connection)
            days = await evidence.days(connection)
            total = sum(head.events for head in await evidence.heads(connection, wanted.agent))
            # The chains are followed while the rows are compared.
            chains = asyncio.create_task(_chains(dsn, wanted, report, tombstones, days))
            try:
                found += await _rows(dsn, connection, wanted, report, days["security_events"] | days["evidence"], total)
                found += await chains
            finally:
                chains.cancel()
            report.tombstones = len(tombstones)
            hashes = await retention.rows_hashes(connection, tombstones)
            found += key_findings(await evidence.agent_keys(connection, None))
            found += tombstone_findings(tombstones, hashes)
            found += await _tree(connection, wanted, report, tombstones)
            if wanted.agent is None and wanted.since is None:
                whole = not any(finding.kind.startswith(("row.", "frame.", "partition.")) for finding in found)
                found += await _beside(connection, report, rows_hold=whole)
            report.forks, newest = await evidence.forks(connection, wanted.agent, wanted.since, FORKS_SHOWN)
            report.notes += _forked(report.forks, newest)
    report.findings = list(told_once(found))
    report.findings_left_out = max(0, len(report.findings) - FINDINGS_MAX)
    report.findings = report.findings[:FINDINGS_MAX]
    report.ok = not report.findings
    report.seconds = round(time.monotonic() - started, 3)
    return report


async def _beside(connection: "Plain", report: Report, *, rows_hold: bool) -> list[Finding]:
    """What is neither rows nor evidence, each of one moment. Roll-ups are held against rows only where those hold themselves."""
    found: list[Finding] = []
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        found += await state_findings(connection)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        found += await alert_findings(connection)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        hours = 0 if not rows_hold else HOURS_MAX if report.sampled else None
        cells, report.rollup_hours = await rollup_findings(connection, hours)
        if not rows_hold:
            report.notes.append("hours of the roll-ups were not counted again, since rows are not what they have to be")
    troubles = await schema.troubles(connection)
    return [*found, *cells, *(Finding(kind=one.kind, text=one.text, table=one.table) for one in troubles)]


def _forked(count: int, newest: "Iterable[Any]") -> list[str]:
    notes = [
        f"refused when it came, {fork['seen']:%Y-%m-%d %H:%M:%S}Z: agent {fork['agent_id']}, buffer {fork['buffer_id'].hex}, "
        f"lane {fork['lane']}: another batch {fork['batch_no']} ({fork['hash'][:16]}…) than the stored one "
        f"({fork['stored_hash'][:16]}…): a cloned agent, a buffer put back from a copy, or a forgery"
        for fork in newest
    ]
    return [*notes, f"… and {count - len(notes)} more that were refused"] if count > len(notes) else notes


@asynccontextmanager
async def _connected(dsn: str) -> "AsyncIterator[Plain]":
    connection = await connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def _tree(connection: "Plain", wanted: Wanted, report: Report, tombstones: list[dict[str, Any]]) -> list[Finding]:
    """The audit log, the tree, tombstones' signatures, checkpoints. With a part of the events alone: what was given from outside."""
    looked = treecheck.TreeReport()
    keys = await treecheck.known_keys(connection, wanted.keys, wanted.own, looked)
    found: list[Finding] = []
    if wanted.agent is None and wanted.since is None:
        found += await treecheck.audit_findings(connection, looked)
        # Read again: retention may have gone on, and the tree with it.
        found += await treecheck.tree_findings(connection, await evidence.tombstones(connection), looked)
        found += treecheck.tombstone_signatures(tombstones, keys)
        found += await treecheck.checkpoint_findings(connection, keys, looked)
    if wanted.outside is not None:
        found += await treecheck.outside_findings(connection, wanted.outside, keys, looked)
    report.audit_records, report.leaves, report.checkpoints = looked.audit_records, looked.leaves, looked.checkpoints
    report.checkpoints_proven = looked.proven
    report.notes += looked.notes
    return found


# ── rows and frames ──────────────────────────────────────────────────────────────────────────────────────────────────


async def _rows(
    dsn: str, connection: "Plain", wanted: Wanted, report: Report, days: Iterable[Any], total: int
) -> list[Finding]:
    found: list[Finding] = []
    since = wanted.since.date() if wanted.since is not None else None
    days = [day for day in sorted(days) if since is None or day >= since]
    if wanted.events_max is not None and total > wanted.events_max:
        return await _sample(dsn, connection, wanted, report, days, total)
    with _hands(dsn, wanted, total) as hand:
        waiting: set[asyncio.Future[list[Checked]]] = set()
        for day in days:
            high = -1
            async for unit in evidence.units(connection, day, wanted.agent):
                high = unit.high
                while len(waiting) >= hand.at_once:
                    waiting = await _take(waiting, report, found, wanted, total)
                waiting.add(asyncio.ensure_future(hand.give(unit)))
            found += [_stray(row) for row in await evidence.strays(connection, day, high, wanted.agent)]
        while waiting:
            waiting = await _take(waiting, report, found, wanted, total)
    return found


async def _sample(
    dsn: str, connection: "Plain", wanted: Wanted, report: Report, days: list[Any], total: int
) -> list[Finding]:
    """Units of the newest day, then of days chosen by chance, until there are enough."""
    report.sampled = True
    found: list[Finding] = []
    left = wanted.events_max or 0
    for day in [*days[-1:], *random.sample(days[:-1], max(0, len(days) - 1))]:
        units = [unit async for unit in evidence.units(connection, day, wanted.agent)]
        for unit in random.sample(units, len(units)):
            if left <= 0:
                break
            left -= unit.events
            async with _connected(dsn) as own:
                _add(await unit_.check(own, unit, wanted.agent), report, found)
            wanted.progress(report.events, wanted.events_max or 0)
        if left <= 0:
            break
    report.notes.append(f"a sample: rows of {report.events} of {total} events were compared")
    return found


def _add(one: Checked, report: Report, found: list[Finding]) -> None:
    report.batches += one.batches
    report.events += one.events
    report.rows += one.rows
    report.deleted_by_retention += one.gone
    report.erased += one.erased
    found += one.findings


async def _take(
    waiting: "set[asyncio.Future[list[Checked]]]", report: Report, found: list[Finding], wanted: Wanted, total: int
) -> "set[asyncio.Future[list[Checked]]]":
    done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for future in done:
        try:
            checked = future.result()
        except BrokenProcessPool as error:
            raise StoreUnavailable(f"a process of verify ended: {error}") from error
        for one in checked:
            _add(one, report, found)
    wanted.progress(report.events, max(total, report.events))
    return rest


@dataclass(slots=True)
class _Hand:
    """Whoever does the work: processes, or this one."""

    at_once: int
    pool: ProcessPoolExecutor | None
    alone: Callable[[Unit], Any] | None = None

    async def give(self, unit: Unit) -> list[Checked]:
        if self.pool is None:
            assert self.alone is not None  # noqa: S101 - one of the two is there
            return [await self.alone(unit)]
        future: Future[list[Checked]] = self.pool.submit(unit_.work, [unit])
        return await asyncio.wrap_future(future)


@contextmanager
def _hands(dsn: str, wanted: Wanted, total: int) -> "Iterator[_Hand]":
    if wanted.processes < 2 or total < ALONE_EVENTS:  # noqa: PLR2004

        async def alone(unit: Unit) -> Checked:
            async with _connected(dsn) as own:
                return await unit_.check(own, unit, wanted.agent)

        yield _Hand(1, None, alone)
        return
    pool = ProcessPoolExecutor(
        wanted.processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=unit_.start,
        initargs=(dsn, wanted.agent),
    )
    try:
        yield _Hand(wanted.processes * WAITING_UNITS, pool)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _stray(row: Any) -> Finding:
    return Finding(
        kind="row.inserted", text="its batch is not kept on the day of its `received`", agent=str(row["agent_id"]),
        buffer=row["buffer_id"].hex, lane=row["lane"], batch=row["batch_no"], event=row["idx"], table="security_events",
    )  # fmt: skip


def told_once(found: Iterable[Finding]) -> "Iterator[Finding]":
    """A row that is missing in its place and lies in another was moved: one finding, not two."""
    found = list(found)
    missing = {_place(f): n for n, f in enumerate(found) if f.kind == "row.deleted"}
    moved: dict[int, Finding] = {}
    gone: set[int] = set()
    for n, f in enumerate(found):
        if f.kind == "row.inserted" and (at := missing.pop(_place(f), None)) is not None:
            text = "lies with another batch or on another day than its frame"
            moved[at] = Finding(
                kind="row.changed", text=text, agent=f.agent, buffer=f.buffer, lane=f.lane, batch=f.batch, event=f.event,
                columns=("received", "batch_id"), table=f.table,
            )  # fmt: skip
            gone.add(n)
    for n, f in enumerate(found):
        if n not in gone:
            yield moved.get(n, f)


def _place(f: Finding) -> tuple[Any, ...]:
    return f.agent, f.buffer, f.lane, f.batch, f.event


# ── chains ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _chains(
    dsn: str, wanted: Wanted, report: Report, tombstones: list[dict[str, Any]], days: dict[str, Any]
) -> list[Finding]:
    found: list[Finding] = []
    async with _connected(dsn) as connection:
        with translated():
            # One moment for heads, batches and tombstones: no batch may come between.
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                heads = await evidence.heads(connection, wanted.agent)
                stood = await evidence.tombstones(connection)
                walk = Walk(
                    {(h.agent_id, h.buffer_id, h.lane): h for h in heads}, spans(stood), wanted.since is not None
                )
                async for link in evidence.links(connection, wanted.agent, wanted.since):
                    found += walk.feed(link)
                found += walk.finish()
    report.streams = walk.streams
    if wanted.agent is None and wanted.since is None:
        found += missing_partitions(days, walk.cut_days, tombstones, datetime.now(UTC).date())
    return found
