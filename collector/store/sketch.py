"""Percentiles that can be added up: a DDSketch, and the measure that carries one.

A value v of 1 or more falls into bin floor(log v / log GAMMA), GAMMA = (1 + ALPHA) / (1 - ALPHA), so that the middle of a bin is at most
ALPHA, 2 %, away from any value in it, however large. A sketch is the count of each bin. Two are merged by adding counts, which is exact,
whatever the order: a roll-up merged from parts is the roll-up of the whole, bit for bit. That is why it is this and not a t-digest, whose
result depends on the order.

What is below 1 (a clock that runs ahead makes a latency negative) is counted in one bin, `BELOW`, and answered as 0; `low` has the true
least value. Values are whole microseconds up to 2^63, which bounds a sketch to about 1,100 bins; real ones have 20 to 60.

Stored, a sketch is its bins in order, each `<hQ`: bin, count.
"""

import struct
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from math import log
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ALPHA = 0.02
GAMMA = (1 + ALPHA) / (1 - ALPHA)
BELOW = -1
_PER_LOG = 1 / log(GAMMA)
_BIN = struct.Struct("<hQ")
_ITEM = np.dtype([("bin", "<i2"), ("many", "<u8")])
_MANY_BYTES = 2_000
"""From here on the loop costs more than a call of numpy."""
_EXACT_MAX = 2**53
"""numpy adds these up as doubles, which are exact up to here."""


def _bins(values: "Sequence[int]") -> "Counter[int]":
    if min(values) < 1:
        below = sum(value < 1 for value in values)
        rest = _bins(kept) if (kept := [value for value in values if value >= 1]) else Counter[int]()
        rest[BELOW] += below
        return rest
    # Without a loop in Python: this runs for every event that is stored.
    return Counter(map(int, map(_PER_LOG.__mul__, map(log, values))))


def _middle(number: int) -> float:
    return 0.0 if number == BELOW else float(2 * GAMMA ** (number + 1) / (GAMMA + 1))


@dataclass(slots=True)
class Measure:
    """Count, sum, least, greatest and distribution of some values."""

    count: int = 0
    total: int = 0
    low: int | None = None
    high: int | None = None
    bins: "Counter[int]" = field(default_factory=Counter)

    def add(self, values: "Sequence[int]") -> None:
        """Take values in."""
        if not values:
            return
        low, high = min(values), max(values)
        self._widen(low, high)
        self.count += len(values)
        self.total += sum(values)
        self.bins.update(_bins(values))

    def merge(self, other: "Measure") -> None:
        """Take in what another has."""
        if not other.count:
            return
        self._widen(other.low, other.high)
        self.count += other.count
        self.total += other.total
        self.bins.update(other.bins)

    def _widen(self, low: int | None, high: int | None) -> None:
        if low is not None:
            self.low = low if self.low is None else min(self.low, low)
        if high is not None:
            self.high = high if self.high is None else max(self.high, high)

    def quantiles(self, shares: "Iterable[float]") -> list[float | None]:
        """For each share the value below which so much of all lies, within ALPHA; None where there is none."""
        if not self.count or self.low is None or self.high is None:
            return [None for _ in shares]
        low, high = float(self.low), float(self.high)
        numbers = sorted(self.bins)
        seen = list(accumulate(map(self.bins.__getitem__, numbers)))
        # The first bin up to which more lie than the rank. A middle may lie outside of what was seen.
        found = (bisect_right(seen, share * (self.count - 1)) for share in shares)
        return [min(max(_middle(numbers[at]), low), high) if at < len(numbers) else high for at in found]

    @property
    def mean(self) -> float | None:
        """The arithmetic mean."""
        return self.total / self.count if self.count else None

    def encode(self) -> bytes:
        """The bins as they are stored."""
        return b"".join(_BIN.pack(number, self.bins[number]) for number in sorted(self.bins))

    def merge_stored(self, count: int, total: int, low: int | None, high: int | None, bins: "Iterable[bytes]") -> None:
        """Take in what is stored, of one row or of several that are already added up."""
        if not count:
            return
        self._widen(low, high)
        self.count += count
        self.total += total
        mine, content = self.bins, b"".join(bins)
        if len(content) < _MANY_BYTES or count > _EXACT_MAX:
            for number, many in _BIN.iter_unpack(content):
                mine[number] += many
            return
        items = np.frombuffer(content, dtype=_ITEM)
        sums = np.bincount(items["bin"].astype(np.intp) - BELOW, weights=items["many"])
        for at in np.flatnonzero(sums).tolist():
            mine[at + BELOW] += int(sums[at])
