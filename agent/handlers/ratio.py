"""`ratio`: how many of the events are bad, as scrap rate or first-pass yield, by order, by shift, or over a sliding time.

    ratio = events that match `where` and `bad` / events that match `where`

What is counted together:

* `within_s`: the newest PARTS parts of within_s / PARTS each, by the key's newest event (so the window is exact to one part)
* `shift_starts`: since the last start of a shift by the wall clock
* neither: as long as the key is there, as when `by` names the order

Events are judged by their own time and may come in any order; one whose part, or shift, is no longer counted is late. When the
table is full nobody who is counted is pushed out by newcomers; a key that no event touched for IDLE_US makes room.
"""

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
    cause,
    check_episodic,
    duration,
    seconds_us,
)
from agent.handlers.clock import Shifts, start_minutes, zone
from agent.wire.event import Event

PARTS = 60
SHIFTS_MAX = 24
DAY_US = 86_400 * 1_000_000
IDLE_US = 30 * DAY_US


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigRatio(ConfigEpisodic):
    """The share of bad events.

    bad            expression: which of the events are bad
    above, below   raised where the ratio is beyond
    at_least       so many events before anything is judged
    within_s       sliding window; or shift_starts, as ["06:00", "14:00", "22:00"], by the clock of time_zone; or neither
    """

    bad: str
    above: Annotated[float, Ge(0), Le(1)] | None = None
    below: Annotated[float, Ge(0), Le(1)] | None = None
    at_least: Annotated[int, Ge(1), Le(1_000_000)] = 20
    within_s: Annotated[float, Gt(0), Le(31_622_400)] | None = None
    shift_starts: tuple[str, ...] = ()
    time_zone: str | None = None

    def __post_init__(self) -> None:
        check_episodic(self)
        try:
            where.parse(self.bad)
        except where.WhereError as error:
            raise ValueError(f"bad: {error}") from None
        if self.above is None and self.below is None:
            raise ValueError("above or below must be given: without a bound no ratio can be beyond it")
        if self.within_s is not None and self.shift_starts:
            raise ValueError("within_s and shift_starts exclude each other: choose a sliding window or shifts")
        if len(self.shift_starts) > SHIFTS_MAX:
            raise ValueError(f"shift_starts: {SHIFTS_MAX} are enough for any day")
        try:
            start_minutes(self.shift_starts)
        except ValueError as error:
            raise ValueError(f"shift_starts: {error}") from None
        zone(self.time_zone)


class Part(msgspec.Struct, array_like=True, gc=False):
    """A part of the window: its number, the events in it, how many of them were bad, and its first."""

    number: int
    events: int
    bad: int
    first: tuple[int, str, str, str | None]


class Share(Episode, array_like=True, gc=False):
    """What is known of a key: the parts of its window, oldest first."""

    parts: list[Part] = msgspec.field(default_factory=list)


class RatioHandler(Episodic[Share]):
    """See the module."""

    kind: ClassVar[str] = "ratio"
    Config: ClassVar[type] = ConfigRatio

    def __init__(self, name: str, config: ConfigRatio) -> None:
        self.config = config
        self._bad = where.Where(config.bad)
        self._part_us = max(1, seconds_us(config.within_s) // PARTS) if config.within_s is not None else 0
        self._shifts = Shifts(config.shift_starts, config.time_zone) if config.shift_starts else None
        self._parts_max = PARTS if self._part_us else 1
        super().__init__(name, config, Share, idle_us=max(IDLE_US, 2 * seconds_us(config.within_s or 0)), protect=True)

    def _number(self, time_us: int) -> int:
        if self._part_us:
            return time_us // self._part_us
        return self._shifts.number(time_us) if self._shifts else 0

    def reads_lines(self) -> bool:
        """See Keyed."""
        return super().reads_lines() or self._bad.reads("raw", "line")

    def see(self, event: Event, key: Key, now_us: int, alerts: list[Event]) -> None:
        number = self._number(event.time)
        share = self.table.get(key)
        if share is None:
            share = Share(newest=event.time)
            if not self.table.add(key, share, now_us):
                return
        elif number <= share.parts[-1].number - self._parts_max:
            self.stats.late += 1
            return
        share.touched, share.newest = now_us, max(share.newest, event.time)
        self.table.touch(key)
        is_bad = self._bad(event)
        self._count(share.parts, number, event, is_bad=is_bad)
        self._judge(event, key, share, now_us, alerts)

    def _count(self, parts: list[Part], number: int, event: Event, *, is_bad: bool) -> None:
        at = len(parts)
        while at and parts[at - 1].number > number:
            at -= 1
        if at and parts[at - 1].number == number:
            part = parts[at - 1]
        else:
            part = Part(number, 0, 0, cause(event))
            parts.insert(at, part)
        part.events += 1
        part.bad += is_bad
        oldest = parts[-1].number - self._parts_max
        while parts[0].number <= oldest:
            del parts[0]

    def _judge(self, event: Event, key: Key, share: Share, now_us: int, alerts: list[Event]) -> None:
        events = sum([part.events for part in share.parts])
        bad = sum([part.bad for part in share.parts])
        ratio, config = bad / events, self.config
        limit = config.above if config.above is not None and ratio > config.above else None
        if limit is None and config.below is not None and ratio < config.below:
            limit = config.below
        if events < config.at_least:
            self.well(share)
            self.near(key, events, config.at_least, event)
        elif limit is None:
            self.well(share)
            if config.above is not None:
                self.near(key, ratio, config.above, event)
        else:
            # The lambda is called at once or never, so that it sees these very numbers.
            self.bad(
                event,
                key,
                share,
                now_us,
                alerts,
                lambda: self._words(key, bad, events, limit),
                stays=True,
                first=Cause(*share.parts[0].first),
            )

    def _words(self, key: Key, bad: int, events: int, limit: float) -> tuple[str, dict[str, Any]]:
        config = self.config
        span = " in this shift" if config.shift_starts else ""
        if config.within_s is not None:
            span = f" within {duration(config.within_s)}"
        ratio = bad / events
        beyond = "above" if ratio > limit else "below"
        sentence = f"{bad} of {events} events{self.whose(key)}{span} are bad: {100 * ratio:.3g} %, {beyond} {100 * limit:.3g} %"
        return sentence, {
            "count": events,
            "bad": bad,
            "value": ratio,
            "limit": limit,
            "window_s": config.within_s,
        }
