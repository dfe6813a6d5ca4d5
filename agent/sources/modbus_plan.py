"""Which addresses to ask for together: as few requests as the layout allows, and never an address that nobody configured.

A request covers one run of configured addresses of one table, at most as long as the device allows. Points never straddle two requests,
for half a float from one moment and half from another is a third value that never was. Going from the lowest address up and taking in
whatever still fits gives the least possible number of requests.

What a device refuses is remembered beside the plan: `cuts` are addresses that a request must not reach across (both sides answer,
together they do not), `apart` are points asked for alone (one of them is what the device refuses).
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from agent.sources.modbus_link import BITS_MAX, REGISTERS_MAX


class Span(NamedTuple):
    """The addresses of one point."""

    table: str
    address: int
    count: int  # type: ignore[assignment]  # a tuple's own count() is nothing that a span is asked for


@dataclass(frozen=True, slots=True)
class Block:
    """One request, and the spans that it answers."""

    table: str
    address: int
    count: int
    spans: tuple[Span, ...]

    def halves(self) -> "tuple[Block, Block] | None":
        """Two blocks with the same spans, cut as near the middle as the points allow. None where all spans overlap."""
        best: int | None = None
        middle = self.address + self.count / 2
        reach = 0
        for index, span in enumerate(self.spans):
            clean = index and span.address >= reach
            if clean and (best is None or abs(span.address - middle) < abs(self.spans[best].address - middle)):
                best = index
            reach = max(reach, span.address + span.count)
        return None if best is None else (block(self.spans[:best]), block(self.spans[best:]))


def block(spans: tuple[Span, ...]) -> Block:
    """The block of these spans, which are sorted and of one table."""
    address = spans[0].address
    return Block(spans[0].table, address, max(s.address + s.count for s in spans) - address, spans)


def plan(
    spans: Iterable[Span],
    *,
    registers_max: int = REGISTERS_MAX,
    bits_max: int = BITS_MAX,
    bridge_max: int = 0,
    cuts: Collection[tuple[str, int]] = (),
    apart: Collection[Span] = (),
) -> list[Block]:
    """The requests for these spans. `bridge_max`: so many unconfigured addresses may lie between two spans of one request."""
    blocks: list[Block] = []
    run: list[Span] = []
    end = 0
    for span in sorted(set(spans) - set(apart)):
        longest = bits_max if span.table in ("coil", "discrete") else registers_max
        fits = (
            run
            and run[0].table == span.table
            and span.address <= end + bridge_max
            and max(end, span.address + span.count) - run[0].address <= longest
            and not any(table == span.table and run[0].address < cut <= span.address for table, cut in cuts)
        )
        if run and not fits:
            blocks.append(block(tuple(run)))
            run = []
        end = max(end, span.address + span.count) if run else span.address + span.count
        run.append(span)
    if run:
        blocks.append(block(tuple(run)))
    return blocks
