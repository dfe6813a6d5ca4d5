"""A block as it is asked for, cycle after cycle: which points its bytes are, what it last answered, and when it is asked again."""

from collections.abc import Iterable
from itertools import chain, compress
from operator import ne
from typing import NamedTuple

from agent.sources.modbus_plan import Block, Span
from agent.sources.modbus_points import CONFIRMED, Watch


class Place(NamedTuple):
    """A point, and where its bytes stand in an answer; `end` is 0 where it is a single bit."""

    watch: Watch
    begin: int
    end: int


class Asked:
    """A block, with the bytes that were last taken from it."""

    __slots__ = ("_at", "again_s", "block", "busy", "confirmed", "due_s", "last", "misses", "places", "read")

    def __init__(self, block: Block, watches: dict[Span, list[Watch]]) -> None:
        self.block = block
        self.last: bytes | None = None
        self.misses = 0
        """Times in a row that it was not answered, or wrongly, although another block of the unit was."""
        self.busy = 0
        """Cycles in a row that it was busy."""
        self.read: tuple[int, int] | None = None
        """When it was read last: in which cycle of its unit, and at which time (µs)."""
        self.again_s = 0.0
        """It is left alone until then, by the monotonic clock."""
        self.due_s = 0.0
        """No heartbeat is due before this."""
        bits = block.table in ("coil", "discrete")
        self.places: list[Place] = []
        self._at: list[list[Place]] = [[] for _ in range(-(-block.count // 8) if bits else block.count * 2)]
        """The points that a byte is a part of."""
        for span in block.spans:
            offset = span.address - block.address
            where = (offset, 0) if bits else (offset * 2, (offset + span.count) * 2)
            places = [Place(watch, *where) for watch in watches[span]]
            self.places += places
            for byte in (offset >> 3,) if bits else range(*where):
                self._at[byte] += places
        self.confirmed = [place for place in self.places if place.watch.config.role in CONFIRMED]

    def changed(self, payload: bytes, last: bytes) -> Iterable[Place]:
        """The points of which a byte is another than it was."""
        # A point comes up with each byte of it that changed, and is looked at once.
        return dict.fromkeys(chain.from_iterable(compress(self._at, map(ne, payload, last))))


def cut(payload: bytes, begin: int, end: int) -> bytes:
    """The bytes of one point; of a bit (end 0) a single byte, 0 or 1."""
    return payload[begin:end] if end else b"\1" if payload[begin >> 3] >> (begin & 7) & 1 else b"\0"
