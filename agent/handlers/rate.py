"""`rate`: more events than usual: a spike against what was learned of the key.

Events are counted in parts of `part_s` by their own time. When a part is over (an event has come at least late_s after its end) it is
learned from: mean and mean square of the deviation, each an exponentially weighted average over about `memory_parts` parts; parts
without events count as zero. A part raises as soon as its count is above

    limit = max(at_least, mean + spreads * max(deviation, sqrt(mean)), factor * mean)

The square root is what chance alone does to a count. What is above the limit is learned as if it were the limit, so that an attack cannot
teach itself quickly, while a lasting change is followed. Nothing is raised before `learn_parts` parts are over.

Events whose part is over are counted late and not judged. When the table is full nobody who was learned is pushed out.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import msgspec
from annotated_types import Ge, Gt, Le

from agent.handlers.base import (
    Cause,
    ConfigEpisodic,
    Episode,
    Episodic,
    Key,
    cause,
    check_episodic,
    duration,
    number,
    seconds_us,
)
from agent.wire.event import Event

OPEN_PARTS_MAX = 64
QUIET_PARTS_MAX = 10_000
"""After so many parts without an event the key has forgotten what was usual, and learns anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigRate(ConfigEpisodic):
    """A spike of the number of events in `part_s`.

    at_least       fewer events than this are no spike; more than the limit of the module is one
    spreads        how many deviations above the mean; factor: and at least so many times the mean
    memory_parts   how many parts the baseline remembers; learn_parts: how many have to be over before anything is raised
    late_s         how long after its end a part stays open
    """

    part_s: Annotated[float, Gt(0), Le(604_800)] = 60.0
    at_least: Annotated[int, Ge(1), Le(10_000_000)] = 10
    spreads: Annotated[float, Ge(0)] = 6.0
    factor: Annotated[float, Ge(1)] = 2.0
    memory_parts: Annotated[int, Ge(2), Le(100_000)] = 60
    learn_parts: Annotated[int, Ge(1), Le(100_000)] = 30
    late_s: Annotated[float, Ge(0), Le(86_400)] = 5.0

    def __post_init__(self) -> None:
        check_episodic(self)
        if self.late_s > (OPEN_PARTS_MAX - 2) * self.part_s:
            raise ValueError(f"late_s may be {OPEN_PARTS_MAX - 2} times part_s at the most")


class Open(msgspec.Struct, array_like=True, gc=False):
    """A part that is not over: its number, the events in it, its first."""

    number: int
    events: int
    first: tuple[int, str, str, str | None]


class Usual(Episode, array_like=True, gc=False):
    """What is known of a key: mean, mean square deviation, parts learned, the number of the last part that is over, the open ones."""

    mean: float = 0.0
    square: float = 0.0
    learned: int = 0
    over: int = 0
    parts: list[Open] = msgspec.field(default_factory=list)


class RateHandler(Episodic[Usual]):
    """See the module."""

    kind: ClassVar[str] = "rate"
    Config: ClassVar[type] = ConfigRate

    def __init__(self, name: str, config: ConfigRate) -> None:
        self.config = config
        self._part_us = seconds_us(config.part_s)
        self._late_us = seconds_us(config.late_s)
        self._weight = 1.0 / config.memory_parts
        idle_us = self._part_us * max(config.memory_parts, config.learn_parts) * 10
        super().__init__(name, config, Usual, idle_us=idle_us, protect=True)

    def see(self, event: Event, key: Key, now_us: int, alerts: list[Event]) -> None:
        part = event.time // self._part_us
        usual = self.table.get(key)
        if usual is None:
            usual = Usual(newest=event.time, over=part - 1)
            if not self.table.add(key, usual, now_us):
                return
        elif part <= usual.over:
            self.stats.late += 1
            return
        usual.touched = now_us
        self.table.touch(key)
        if event.time > usual.newest:
            usual.newest = event.time
            self._close(usual, (event.time - self._late_us) // self._part_us - 1)
        current = self._part(usual, part, event)
        current.events += 1
        self._judge(event, key, usual, current, now_us, alerts)

    @staticmethod
    def _part(usual: Usual, part: int, event: Event) -> Open:
        at = len(usual.parts)
        while at and usual.parts[at - 1].number > part:
            at -= 1
        if at and usual.parts[at - 1].number == part:
            return usual.parts[at - 1]
        usual.parts.insert(at, Open(part, 0, cause(event)))
        return usual.parts[at]

    def _close(self, usual: Usual, through: int) -> None:
        """Learn from the parts up to this one."""
        if through <= usual.over:
            return
        if through - usual.over > QUIET_PARTS_MAX:
            usual.mean, usual.square, usual.learned, usual.over, usual.parts = 0.0, 0.0, 0, through, []
            return
        counts = {part.number: part.events for part in usual.parts if part.number <= through}
        usual.parts = [part for part in usual.parts if part.number > through]
        for number_ in range(usual.over + 1, through + 1):
            self._learn(usual, counts.get(number_, 0))
        usual.over = through

    def _learn(self, usual: Usual, count: float) -> None:
        if usual.learned >= self.config.learn_parts:
            count = min(count, self._limit(usual))
        usual.learned += 1
        # The first parts weigh alike, so that the baseline does not hang on the very first.
        weight = max(self._weight, 1.0 / usual.learned)
        away = count - usual.mean
        usual.mean += weight * away
        usual.square = (1.0 - weight) * (usual.square + weight * away * away)

    def _limit(self, usual: Usual) -> float:
        config = self.config
        spread = max(math.sqrt(usual.square), math.sqrt(usual.mean))
        return max(float(config.at_least), usual.mean + config.spreads * spread, config.factor * usual.mean)

    def _judge(self, event: Event, key: Key, usual: Usual, part: Open, now_us: int, alerts: list[Event]) -> None:
        if usual.learned < self.config.learn_parts:
            return
        limit = self._limit(usual)
        if part.events <= limit:
            self.near(key, part.events, limit, event)
            return
        first = Cause(*part.first)
        tell = lambda: self._words(key, event, usual, part, limit)  # noqa: E731  (called at once or never)
        self.bad(event, key, usual, now_us, alerts, tell, stays=False, first=first, span_us=self._part_us)

    def _words(self, key: Key, event: Event, usual: Usual, part: Open, limit: float) -> tuple[str, dict[str, Any]]:
        config = self.config
        sentence = (
            f"{part.events} {event.type} events{self.whose(key)} within {duration(config.part_s)}, usual are"
            f" {number(usual.mean)} (limit {number(limit)})"
        )
        return sentence, {"count": part.events, "window_s": config.part_s, "limit": limit, "usual": usual.mean}
