"""`share`: how much of what is counted is scrap, from the counters of a machine, against what is usual for it.

    quantities   scrap_count and good_count, or scrap_count and total_count; one of each at least

Counted are windows of `window_parts` parts, so that a machine that stands or is slow is judged by what it makes and not by the clock. The
first `learn_windows` say what is usual. Raised is where the scrap of a window goes beyond

    window_parts x max(above, factor x the worst window learned, the usual share and DEVIATIONS deviations of chance)

and that as soon as it does, not when the window is full. A counter that began again brings nothing; neither does a jump by more than JUMP
windows, for then somebody set it. After a start or a changed setpoint nothing counts for settle_s: the first parts are always bad.
"""

import math
from collections.abc import Mapping
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
    key_value,
    number,
    numeric,
    seconds_us,
)
from agent.handlers.machine import Machines, Spots, hidden, measured, no_key
from agent.wire.event import Event

IDLE_US = 90 * 86_400 * 1_000_000
JUMP = 10
DEVIATIONS = 4.0
COUNTERS_MAX = 16
"""Counters of one machine; further ones are not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigShare(ConfigEpisodic):
    """The share of scrap by machine.

    window_parts    parts of a window; learn_windows: how many say what is usual
    above           never raised below this share; factor: times the worst that was learned
    settle_s        after a start or a changed setpoint
    """

    by: tuple[str, ...] = ("source",)
    window_parts: Annotated[int, Ge(10), Le(1_000_000)] = 200
    learn_windows: Annotated[int, Ge(1), Le(10_000)] = 20
    above: Annotated[float, Gt(0), Le(1)] = 0.05
    factor: Annotated[float, Ge(1)] = 2.0
    settle_s: Annotated[float, Ge(0), Le(86_400)] = 600.0
    cool_down_s: Annotated[float, Ge(0), Le(31_622_400)] = 3_600.0

    def __post_init__(self) -> None:
        check_episodic(self)


class Line(Episode, array_like=True, gc=False):
    """What is known of a machine's counters.

    scrap, made     of the window; since: its first event
    learned         windows learned, and all_bad, all_total, worst of them
    has_total       it has a counter of all parts, so that the good ones are not added
    last            counter → value
    """

    scrap: float = 0.0
    made: float = 0.0
    since: tuple[int, str, str, str | None] | None = None
    learned: int = 0
    all_bad: float = 0.0
    all_total: float = 0.0
    worst: float = 0.0
    has_total: bool = False
    last: dict[str, float] = msgspec.field(default_factory=dict)


class ShareHandler(Episodic[Line]):
    """See the module."""

    kind: ClassVar[str] = "share"
    Config: ClassVar[type] = ConfigShare

    def __init__(self, name: str, config: ConfigShare) -> None:
        self.config = config
        self._machines = Machines(seconds_us(config.settle_s))
        super().__init__(name, config, Line, idle_us=IDLE_US, protect=True)
        self._key, self._spots = no_key, Spots(config.by)

    def see(self, event: Event, key: Key, now_us: int, alerts: list[Event]) -> None:
        key, name = self._spots.of(event)
        machine = self._machines.judging(event, name)
        if machine is None:
            return
        value = measured(event)
        place = hidden(key, name)
        line = self.table.get(place)
        if value is None:
            return
        if line is None:
            line = Line(newest=event.time)
            if not self.table.add(place, line, now_us):
                return
        line.newest, line.touched = max(line.newest, event.time), now_us
        self.table.touch(place)
        parts = self._made(event, line, value)
        if parts and machine.steady(event.time):
            self._count(event, line, parts)
            self._judge(event, place, line, now_us, alerts)

    def _made(self, event: Event, line: Line, value: float) -> float:
        """Parts since this counter was last heard; 0 where that cannot be told."""
        counter, data = str(key_value(event.target)), event.data
        before = line.last.get(counter)
        if before is None and len(line.last) >= COUNTERS_MAX:
            return 0.0
        line.last[counter] = value
        made = numeric(data.get("delta"))
        if made is None:
            made = value - before if before is not None else 0.0
        return made if 0 < made <= JUMP * self.config.window_parts and data.get("reset") is not True else 0.0

    @staticmethod
    def _count(event: Event, line: Line, parts: float) -> None:
        quantity = event.data.get("quantity")
        if quantity == "total_count" and not line.has_total:
            line.has_total, line.scrap, line.made, line.since = True, 0.0, 0.0, None
        line.since = line.since or cause(event)
        if quantity == "scrap_count":
            line.scrap += parts
        if quantity == "total_count" or not line.has_total:
            line.made += parts

    def limit(self, line: Line) -> float:
        """The share beyond which a window is bad."""
        config = self.config
        usual = line.all_bad / line.all_total if line.all_total else 0.0
        chance = DEVIATIONS * math.sqrt(usual * (1 - min(usual, 1.0)) / config.window_parts)
        return min(1.0, max(config.above, config.factor * line.worst, usual + chance))

    def _judge(self, event: Event, place: Key, line: Line, now_us: int, alerts: list[Event]) -> None:
        config = self.config
        is_full = line.made >= config.window_parts
        if line.learned < config.learn_windows:
            if is_full:
                line.learned += 1
                line.all_bad, line.all_total = line.all_bad + min(line.scrap, line.made), line.all_total + line.made
                line.worst = max(line.worst, min(1.0, line.scrap / line.made))
                self._begin(line)
            return
        limit = self.limit(line)
        self.near(place, line.scrap / config.window_parts, limit, event)
        if line.scrap > limit * max(config.window_parts, line.made):
            since = Cause(*line.since) if line.since else None
            self.bad(
                event, place, line, now_us, alerts, lambda: self._words(place, line, limit), stays=True, first=since
            )
            self._begin(line)
        elif is_full:
            self.well(line)
            self._begin(line)

    @staticmethod
    def _begin(line: Line) -> None:
        line.scrap, line.made, line.since = 0.0, 0.0, None

    def _words(self, key: Key, line: Line, limit: float) -> tuple[str, dict[str, Any]]:
        usual = line.all_bad / line.all_total if line.all_total else 0.0
        made = max(line.made, line.scrap)
        sentence = (
            f"{number(line.scrap)} of {number(made)} parts{self.whose(key)} were scrap: beyond {100 * limit:.3g} % of"
            f" {self.config.window_parts} parts; usual is {100 * usual:.3g} %"
        )
        return sentence, {
            "value": line.scrap / made,
            "limit": limit,
            "usual": usual,
            "bad": line.scrap,
            "count": round(made),
        }

    def changes(self) -> dict[str, bytes | None]:
        """See component.Handler."""
        return super().changes() | self._machines.changes()

    def restore(self, state: Mapping[str, bytes]) -> None:
        """See component.Handler."""
        super().restore(state)
        self._machines.restore(state)
