"""What events add to the roll-ups: one deterministic rule, used when they are stored and when roll-ups are rebuilt from them.

An event is counted in the hour of its own time, so one that comes late corrects the hour in which it happened. Two things are measured:
`latency`, from when it happened to when the centre took it, left out where its time was not believed; and `processing`, from when the
agent saw it to when the centre took it, left out where the agent's time was no date.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.wire.taxonomy import lookup
from collector.store.sketch import Measure

HOUR_US = 3_600_000_000
TEXT_CHARS_MAX = 200
"""Longer sources and outcomes are counted under their beginning: they are part of a key in an index, which bounds its length."""


class Key(NamedTuple):
    """What is counted together. `hour`: hours since 1970."""

    hour: int
    type: str
    category: str
    severity: int
    source: str
    outcome: str


@dataclass(slots=True)
class Tally:
    """How many events, and their measures in microseconds."""

    events: int = 0
    latency: Measure = field(default_factory=Measure)
    processing: Measure = field(default_factory=Measure)

    def merge(self, other: "Tally") -> None:
        """Take in what another has."""
        self.events += other.events
        self.latency.merge(other.latency)
        self.processing.merge(other.processing)


Tallies = dict[Key, Tally]


class Group(NamedTuple):
    """Events of one key before they are added up: plain lists, since this is filled once an event."""

    latencies: list[int]
    processings: list[int]
    flagged: list[None]
    """One None for each event whose time was not believed: it is counted, and has no latency."""


class Groups(defaultdict[tuple[int, str, int, str, str | None], Group]):
    """By hour, type, severity, source, outcome."""

    def __init__(self) -> None:
        super().__init__(lambda: Group([], [], []))

    def tallies(self) -> Iterator[tuple[Key, Tally]]:
        """Added up. Two keys may be the same: no outcome and an empty one, long texts that begin alike."""
        for (hour, kind, severity, source, outcome), group in self.items():
            tally = Tally(len(group.latencies) + len(group.flagged))
            tally.latency.add(group.latencies)
            tally.processing.add(group.processings)
            yield (
                Key(
                    hour,
                    kind,
                    lookup(kind).category,
                    severity,
                    source[:TEXT_CHARS_MAX],
                    (outcome or "")[:TEXT_CHARS_MAX],
                ),
                tally,
            )


def merge_into(all_: Tallies, more: Iterable[tuple[Key, Tally]]) -> None:
    """Add up by key."""
    for key, tally in more:
        if (known := all_.get(key)) is None:
            all_[key] = tally
        else:
            known.merge(tally)
