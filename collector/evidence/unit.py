"""A unit of `verify`: some batches of one day, each frame opened, each row compared. Runs in a process of its own, beside others."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from msgspec import Struct

from agent.wire.batch import Frame, MalformedBatch, read_frame
from collector.evidence import compare, signed
from collector.evidence.compare import Comparison
from collector.evidence.finding import Finding
from collector.store import evidence
from collector.store.database import connect, translated
from collector.store.evidence import Indexes, Kept, Unit

if TYPE_CHECKING:
    from datetime import datetime

    from collector.store.database import Plain

OPEN_BYTES = 32 * 1024 * 1024
"""Sections are opened, and rows held, up to about this much at once (and one batch more)."""
_NONE: frozenset[int] = frozenset()


class Checked(Struct):
    """What was looked at, and what was found."""

    batches: int = 0
    events: int = 0
    rows: int = 0
    gone: int = 0
    erased: int = 0
    findings: list[Finding] = []


async def check(connection: "Plain", unit: Unit, agent: UUID | None) -> Checked:
    """Compare all of it, in one transaction that reads."""
    checked = Checked()
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        kept = await evidence.kept(connection, unit, agent)
        numbers = [batch.batch_id for batch in kept]
        gone = await evidence.declared(connection, "tombstone_rows", numbers)
        erased = await evidence.declared(connection, "erased_lines", numbers)
        gaps: dict[int, list[dict[str, object]]] = {}
        for row in await evidence.gaps(connection, numbers):
            gaps.setdefault(row["batch_id"], []).append(row)
        checked.findings += await _signed(connection, unit, kept)
        low = unit.low
        for batches in _pieces([(batch, _frame(batch)) for batch in kept]):
            # The last piece goes on to the end of the unit: a row may claim a number behind its last batch.
            high = unit.high if batches[-1][0] is kept[-1] else batches[-1][0].batch_id
            only = None if agent is None else [batch.batch_id for batch, _ in batches]
            events = sum(frame.header.events for _, frame in batches if isinstance(frame, Frame))
            body = await evidence.copied(connection, unit, low=low, high=high, only=only, events=events)
            comparison = Comparison(body, known=frozenset(batch.batch_id for batch, _ in batches))
            for batch, frame in batches:
                checked.findings += _batch(comparison, batch, frame, gone, erased, gaps)
            comparison.end()
            checked.rows += comparison.rows
            checked.findings += _strays(comparison)
            checked.findings += await _suspects(connection, unit, comparison, batches, gone)
            low = high
        checked.batches, checked.events = len(kept), sum(batch.events for batch in kept)
        checked.gone, checked.erased = sum(map(len, gone.values())), sum(map(len, erased.values()))
    return checked


async def _signed(connection: "Plain", unit: Unit, kept: Sequence[Kept]) -> list[Finding]:
    keys = await evidence.agent_keys(connection, list({batch.agent_id for batch in kept}))
    numbers = {batch.signature_id for batch in kept if batch.signature_id is not None}
    if not keys and not numbers:
        return []
    stored = await evidence.signatures(connection, unit.begin, unit.end, list(numbers)) if numbers else []
    read = {one.signature_id: signed.read(one, keys) for one in stored}
    enrolled: dict[UUID, datetime] = {}
    for key in keys.values():
        enrolled[key.agent_id] = min(enrolled.get(key.agent_id, key.valid_from), key.valid_from)
    judged = (signed.batch_finding(batch, read, enrolled.get(batch.agent_id)) for batch in kept)
    return [finding for finding in judged if finding is not None]


_Batches = list[tuple[Kept, "Frame | MalformedBatch"]]


def _frame(batch: Kept) -> Frame | MalformedBatch:
    try:
        return read_frame(batch.frame)
    except MalformedBatch as error:
        return error


def _pieces(batches: _Batches) -> Iterator[_Batches]:
    piece: _Batches = []
    size = 0
    for batch, frame in batches:
        piece.append((batch, frame))
        size += (
            2 * frame.header.core_bytes + 4 * len(frame.personal_z) if isinstance(frame, Frame) else len(batch.frame)
        )
        if size > OPEN_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _batch(
    comparison: Comparison,
    batch: Kept,
    frame: Frame | MalformedBatch,
    gone: Indexes,
    erased: Indexes,
    gaps: dict[int, list[dict[str, object]]],
) -> list[Finding]:
    number = batch.batch_id
    try:
        if not isinstance(frame, Frame):
            raise frame
        expected = compare.opened(batch, frame, gone.get(number, _NONE))
    except MalformedBatch as error:
        comparison.skip(number)
        return list(compare.broken(batch, error))
    comparison.batch(expected)
    found: list[Finding] = []
    if names := compare.header_differences(expected):
        found.append(compare.about(batch, "evidence.changed", "is not what the frame says", columns=names))
    if expected.rows.bare or number in erased:
        found += compare.undeclared(expected, erased.get(number, _NONE))
    if expected.rows.gaps or number in gaps:
        found += compare.gap_differences(expected, gaps.get(number, []))
    return found


def _strays(comparison: Comparison) -> Iterator[Finding]:
    for at in comparison.strays:
        row, _ = compare.fields_of(comparison.body, at)
        yield compare.inserted(row, "its batch is not kept on the day of its `received`")


async def _suspects(
    connection: "Plain", unit: Unit, comparison: Comparison, batches: _Batches, gone: Indexes
) -> list[Finding]:
    found: list[Finding] = []
    for batch, frame in batches:
        number = batch.batch_id
        if number not in comparison.suspects or not isinstance(frame, Frame):
            continue
        body = await evidence.copied(connection, unit, low=0, high=0, only=[number], events=frame.header.events)
        try:
            found += compare.differences(batch, frame, gone.get(number, _NONE), body)
        except MalformedBatch:
            # Said already; what its rows have to be is not known then.
            continue
    return found


class Worker:
    """What a process of the pool keeps between units: a loop and a connection."""

    def __init__(self, dsn: str, agent: UUID | None) -> None:
        self._agent = agent
        self._runner = asyncio.Runner()
        self._connection = self._runner.run(connect(dsn))

    def check(self, unit: Unit) -> Checked:
        """One unit. Raises StoreUnavailable."""
        return self._runner.run(self._check(unit))

    async def _check(self, unit: Unit) -> Checked:
        with translated():
            return await check(self._connection, unit, self._agent)


_worker: list[Worker] = []


def start(dsn: str, agent: UUID | None) -> None:
    """Begin a process of the pool."""
    import signal

    # The command that started us hears of Ctrl-C too, and ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker.append(Worker(dsn, agent))


def work(units: Sequence[Unit]) -> list[Checked]:
    """Check units in a process of the pool."""
    return [_worker[0].check(unit) for unit in units]
