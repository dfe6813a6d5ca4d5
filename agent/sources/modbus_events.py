"""Events of a unit's blocks beyond values: exceptions, and times in which they were not read."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from agent.component import Report, now_us
from agent.sources.modbus_client import EXCEPTIONS, READS
from agent.sources.modbus_plan import Block, Span
from agent.wire.event import INFORMATIONAL, Event

NAMES_MAX = 10
"""Points named in one event or trouble."""
SPLITTING: Final = frozenset({2, 3})
"""Exceptions that say something about the addresses asked for, so that another question may be answered."""
EXCEPTION_EVENTS_MAX, EXCEPTION_EVENTS_S = 3, 600.0
"""So many times within that time the exception of a block is an event; one that comes and goes more often is counted."""
EXCEPTION_EVENTS_UNIT_MAX: Final = 100
"""So many of all blocks of a unit within that time; the others are counted, and named in the report as far as it reaches."""
REMEDIES: Final = {
    1: "the device does not know this table; check `table` in its manual",
    2: "check the address and the table in the device's manual",
    3: "check the address and the table in the device's manual, or lower registers_per_request_max or bits_per_request_max",
    4: "the device reports a failure of its own; look at the device",
    5: "it is busy and is asked less often until it answers; raise interval_s if it stays so",
    6: "it is busy and is asked less often until it answers; raise interval_s if it stays so",
}
"""What to do about an exception."""


def where(block: Block) -> str:
    """The addresses of a block, in words."""
    return f"{block.table} {block.address} to {block.address + block.count - 1}"


def exception_event(
    source: str, label: str, unit_id: int, block: Block, names: Sequence[str], code: int | None, before: int | None
) -> Event:
    """Return the event of an exception that begins, changes, or (without a code) ends."""
    now = now_us()
    what = None if code is None else EXCEPTIONS.get(code, "unknown")
    return Event(
        now,
        now,
        "device.exception",
        source,
        INFORMATIONAL if code is None else 0,
        target=label,
        outcome="success" if code is None else "failure",
        message=f"{label} answers {where(block)} {'again' if code is None else f'with {what}'}",
        data={
            "unit_id": unit_id,
            "function": READS[block.table],
            "exception_code": code,
            "previous_code": before,
            "exception": what,
            "table": block.table,
            "address": block.address,
            "count": block.count,
            "points": list(names[:NAMES_MAX]),
        },
    )


def gap_event(source: str, label: str, unit_id: int | None, reason: str, from_us: int, **data: object) -> Event:
    """Return a gap from `from_us` until now."""
    now = now_us()
    data = {"reason": reason, "events": None, "from_us": from_us, "to_us": now, "unit_id": unit_id, **data}
    return Event(now, now, "collection.gap", source, target=label, message=reason, data=data)


class Exceptions:
    """The exceptions of one unit's blocks, and which of them are reported as events."""

    def __init__(
        self, source: str, label: str, unit_id: int, report: Report, names: Callable[[Block], list[str]]
    ) -> None:
        self._source = source
        self._label = label
        self._unit_id = unit_id
        self._report = report
        self._names = names
        self._codes: dict[tuple[Span, ...], int] = {}
        self._reported: set[tuple[Span, ...]] = set()
        """Blocks whose exception is an event; its end is one too."""
        self._begun_s: dict[tuple[Span, ...], list[float]] = {}
        """When the recently reported exceptions of a block began."""
        self._begun_all_s: deque[float] = deque(maxlen=EXCEPTION_EVENTS_UNIT_MAX)

    def __contains__(self, block: Block) -> bool:
        return block.spans in self._codes

    def settle(self, block: Block) -> None:
        """A block that is asked for no more has no exception any more; its halves have theirs."""
        self._reported.discard(block.spans)
        if self._codes.pop(block.spans, None) is not None:
            self._report.ok(self._part(block))

    def change(self, block: Block, code: int | None) -> Event | None:
        """Record the exception code that a block answers with now (None: values). Return the event, if it is one."""
        before = self._codes.get(block.spans)
        if code == before:
            return None
        if before is None and self._may_begin(block):
            self._reported.add(block.spans)
        if code is None:
            del self._codes[block.spans]
            self._report.ok(self._part(block))
        else:
            self._codes[block.spans] = code
            self._report.count("exceptions")
            if code not in SPLITTING:
                remedy = REMEDIES.get(code, "look it up in the device's manual")
                text = f"{self._label}: {where(block)}: exception {code} ({EXCEPTIONS.get(code, 'unknown')}); {remedy}"
                self._report.fault(text, self._part(block))
        if block.spans not in self._reported:
            return None
        if code is None:
            self._reported.discard(block.spans)
        return exception_event(self._source, self._label, self._unit_id, block, self._names(block), code, before)

    def _part(self, block: Block) -> str:
        return f"{self._label} {where(block)}"

    def _may_begin(self, block: Block) -> bool:
        """Return whether the beginning of an exception is reported: one that recurs too often is only counted."""
        now_s = time.monotonic()
        begun = [at_s for at_s in self._begun_s.get(block.spans, ()) if now_s - at_s < EXCEPTION_EVENTS_S]
        self._begun_s[block.spans] = begun
        every = self._begun_all_s
        many = len(every) == EXCEPTION_EVENTS_UNIT_MAX and now_s - every[0] < EXCEPTION_EVENTS_S
        if many or len(begun) >= EXCEPTION_EVENTS_MAX:
            return False
        begun.append(now_s)
        every.append(now_s)
        return True
