"""What every analysis is asked and answers: the same frame for all, so that none leaves out where its numbers come from.

An analysis has two halves. `gather` reads counts from the tables, within the scope of the caller; `compute` is given them and nothing else,
runs in a thread, and is a function: the same counts give the same answer. `Insufficient` says what is lacking instead of a guess.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from msgspec import Struct

from collector.store.analytics_read import STEPS, Span, Step

if TYPE_CHECKING:
    from collector.analytics.statistics import Numbers
    from collector.store.database import Database

FINDINGS_MAX = 100


class Insufficient(Exception):
    """Too little to answer. The text says what is lacking."""

    def __init__(self, lacking: str, sample: int = 0) -> None:
        super().__init__(lacking)
        self.sample = sample


class BadQuestion(Exception):
    """A question that makes no sense. The text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked. Each analysis names in `Analysis.parameters` which of these it takes."""

    span: Span
    step: Step
    dimension: str | None = None
    per: str | None = None
    signals: tuple[str, ...] = ()
    limit: float | None = None
    of: str = "volume"
    horizon: int = 24
    since: datetime | None = None
    """When the counts of the caller's places begin."""

    @property
    def steps(self) -> int:
        """How many buckets."""
        return int((self.span.end - self.span.begin) / STEPS[self.step])


@dataclass(slots=True)
class Findings:
    """What an analysis found: how, of how many events or readings, how sure, and the result."""

    method: str
    sample: int
    uncertainty: dict[str, Any]
    result: dict[str, Any]
    inputs: dict[str, Any] = field(default_factory=dict)


class AnswerOut(Struct):
    """The answer of an analysis. `state` is `insufficient data` where it would have to guess; then `lacking` says what it takes."""

    analysis: str
    state: Literal["ok", "insufficient data"]
    lacking: list[str]
    method: str
    version: str
    begin: datetime
    end: datetime
    inputs: dict[str, Any]
    sample_size: int
    uncertainty: dict[str, Any]
    result: dict[str, Any]


Gather = Callable[["Database", Asked], Awaitable[Any]]
Compute = Callable[[Any, Asked], Findings]


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """A row of the registry. `personal`: whether it is about people unless asked otherwise."""

    name: str
    version: str
    summary: str
    source: str
    """Which tables it reads."""
    gather: Gather
    compute: Compute
    default: timedelta
    step: Step = "hour"
    steps: tuple[Step, ...] = ("hour",)
    parameters: frozenset[str] = frozenset()
    dimensions: tuple[str, ...] = ()
    pers: tuple[str, ...] = ()
    filters: frozenset[str] = frozenset({"type", "severity", "severity_in", "source"})


@dataclass(frozen=True, slots=True)
class Grid:
    """Counts by key (rows) and by bucket (columns)."""

    keys: list[str]
    begin: datetime
    step: timedelta
    counts: "Numbers"

    @property
    def total(self) -> "Numbers":
        """All keys together."""
        return np.asarray(self.counts.sum(0))

    @property
    def events(self) -> int:
        """All of it."""
        return int(self.counts.sum())

    def at(self, index: int) -> datetime:
        """When a bucket begins."""
        return self.begin + self.step * index


def grid(rows: Sequence[Any], begin: datetime, end: datetime, step: Step) -> Grid:
    """A grid of rows (bucket, key, events); buckets without a row have 0."""
    width = STEPS[step]
    keys = sorted({row[1] for row in rows})
    index = {key: number for number, key in enumerate(keys)}
    counts = np.zeros((len(keys), max(1, int((end - begin) / width))))
    for bucket, key, events in rows:
        column = int((bucket - begin) / width)
        if 0 <= column < counts.shape[1]:
            counts[index[key], column] += events
    return Grid(keys, begin, width, counts)
