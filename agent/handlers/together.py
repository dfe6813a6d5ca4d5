"""`together`: all of these of one key within a time, in whatever order (Sigma's `temporal`).

    within_s = 300
    steps = [ { where = "type == 'security.usb.attached'" }, { where = "type == 'system.process.started'" } ]

An alert is raised as soon as every step was seen, the first and the last at most within_s apart, whatever the order of arrival; no event
may come more than within_s + late_s after the newest of its key. One event may stand for several steps, as in Sigma. What was used for
one alert is not used for the next. Of each step the STEP_EVENTS_MAX newest events of a key are kept; older ones are
given up, so that a flood of one step costs no memory.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import msgspec
from annotated_types import Ge, Gt, Le

from agent.handlers import where
from agent.handlers.base import (
    Cause,
    ConfigEpisodic,
    Episode,
    Episodic,
    Key,
    check_episodic,
    duration,
    key_of,
    seconds_us,
)
from agent.handlers.sequence import STEPS_MAX, ConfigStep, check_steps
from agent.wire.event import Event

STEP_EVENTS_MAX = 64
Seen = tuple[int, str, str, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigTogether(ConfigEpisodic):
    """The steps, in any order, by one key, within `within_s` from the first event to the last.

    late_s   how much later than the newest of its key, beyond the window, an event may come and still count
    """

    steps: tuple[ConfigStep, ...]
    within_s: Annotated[float, Gt(0), Le(31_622_400)]
    late_s: Annotated[float, Ge(0), Le(86_400)] = 5.0

    def __post_init__(self) -> None:
        check_episodic(self)
        if not 2 <= len(self.steps) <= STEPS_MAX:  # noqa: PLR2004
            raise ValueError(f"steps: together takes 2 to {STEPS_MAX} steps")
        if any(step.at_least != 1 for step in self.steps):
            raise ValueError("steps: at_least counts in a sequence; here each step is needed once")
        check_steps(self.steps, self.by)


class Meeting(Episode, array_like=True, gc=False):
    """What is known of a key: of each step the events that may still be part of an alert, oldest first."""

    seen: list[list[Seen]] = msgspec.field(default_factory=list)


class TogetherHandler(Episodic[Meeting]):
    """See the module."""

    kind: ClassVar[str] = "together"
    Config: ClassVar[type] = ConfigTogether

    def __init__(self, name: str, config: ConfigTogether) -> None:
        self.config = config
        self._within_us = seconds_us(config.within_s)
        self._keep_us = self._within_us + seconds_us(config.late_s)
        self._wheres = [where.Where(step.where) for step in config.steps]
        self._keys = [key_of(step.by or config.by) for step in config.steps]
        super().__init__(name, config, Meeting, idle_us=self._keep_us, protect=False)
        # An event matches the handler where it stands for one of the steps.
        steps = where.AnyOf(tuple(one.node for one in self._wheres))
        self.where = where.Where(config.where, where.All((self.where.node, steps)))

    def see(self, event: Event, key: Key, now_us: int, alerts: list[Event]) -> None:
        del key  # each step has its own
        steps_of: dict[Key, list[int]] = {}
        for number, step in enumerate(self._wheres):
            if step(event):
                steps_of.setdefault(self._keys[number](event), []).append(number)
        for own, steps in steps_of.items():
            self._take(event, own, steps, now_us, alerts)

    def _take(self, event: Event, key: Key, steps: list[int], now_us: int, alerts: list[Event]) -> None:
        group = self.follow(event, key, now_us, self._keep_us)
        if group is None:
            return
        if not group.seen:
            group.seen = [[] for _ in self._wheres]
        for number in steps:
            insort(
                group.seen[number], (event.time, event.source, event.type, event.correlation_id), key=lambda one: one[0]
            )
        oldest = group.newest - self._keep_us
        for seen in group.seen:
            # The events beyond what is kept, and those that no window can hold any more.
            del seen[: max(bisect_left(seen, oldest, key=lambda one: one[0]), len(seen) - STEP_EVENTS_MAX)]
        first = self._first(group.seen, event.time)
        if first is None:
            met = sum(map(bool, group.seen))
            self.near(key, met, len(group.seen), event)
            self.table.advance(key, group, met)
            return
        group.seen = []
        self.table.advance(key, group, len(self._wheres) + 1)
        self.bad(
            event,
            key,
            group,
            now_us,
            alerts,
            lambda: self._words(key, first, event),
            stays=False,
            first=first,
            span_us=self._within_us,
        )

    def _first(self, steps: list[list[Seen]], time: int) -> Cause | None:
        """The first event of the earliest window around `time` that holds every step."""
        if not all(steps):
            return None
        starts = sorted(
            (one for seen in steps for one in seen if time - self._within_us <= one[0] <= time), key=lambda one: one[0]
        )
        for start in starts:
            begin = start[0]
            for seen in steps:
                place = bisect_left(seen, begin, key=lambda one: one[0])
                if place == len(seen) or seen[place][0] > begin + self._within_us:
                    break
            else:
                return Cause(*start)
        return None

    def _words(self, key: Key, first: Cause, last: Event) -> tuple[str, dict[str, Any]]:
        steps = len(self.config.steps)
        limit = duration(self.config.within_s)
        sentence = f"{first.type} and {last.type}{self.whose(key)}: all of {steps} within {limit}"
        return sentence, {"window_s": self.config.within_s, "limit": steps, "events": steps}
