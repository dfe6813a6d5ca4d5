"""`baseline`: a signal leaves the band in which it was learned, and stays away.

    readings ─► means over part_s of steady running ─► the first learn_parts make the band ─► `parts` in a row beyond it: alert
                (a value holds until the next one)      lowest to highest mean

    limit = the band's end, and `margin` of its width, or `floor` of what is usual if that is more, beyond it

A mean over time is the same whether a source reports each poll, each change or a heartbeat, and one spike does not move it. Only the
time counts in which the machine ran and had settled (machine.py); signals are learned anew under other setpoints. A value holds for
HOLD_US at most: a longer silence is a hole, and no time at all.

`alone`: raised only while a signal says that the machine runs, and most of its other signals stay where they were. A sensor drifts by
itself; a machine that stops, and cools down, cannot be told from one without being told.

The part that is being filled is stored PIECES times in its course, so that a poll does not write a row for each signal: a kill costs
at most that piece of one mean. Readings are judged in the order of their times; older ones are late.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

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
    numeric,
    seconds_us,
)
from agent.handlers.machine import Machine, Machines, Spots, hidden, measured, no_key
from agent.wire.event import Event

IDLE_US = 90 * 86_400 * 1_000_000
HOLD_US = 3_600 * 1_000_000
PIECES = 12
FLOOR_OF_RANGE = 0.01
"""Of the range that is given: a signal about zero needs some width too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigBaseline(ConfigEpisodic):
    """A signal by key (`by`); the value is `data.value`.

    part_s        length of a mean; parts: so many in a row have to be beyond
    learn_parts   means that make the band
    margin        how far beyond the band, in widths of it; floor: at least this share of the band's middle
    direction     which way is bad
    alone         only while the machine says that it runs, and most of its other signals are in their bands
    above_zero    values of zero and less say that nothing was made
    settle_s      after a start, a stop, or a changed setpoint
    """

    by: tuple[str, ...] = ("source", "target")
    part_s: Annotated[float, Ge(1), Le(86_400)] = 300.0
    parts: Annotated[int, Ge(1), Le(1_000)] = 3
    learn_parts: Annotated[int, Ge(2), Le(100_000)] = 288
    margin: Annotated[float, Ge(0)] = 0.5
    floor: Annotated[float, Ge(0), Le(10)] = 0.05
    direction: Literal["up", "down", "both"] = "both"
    alone: bool = False
    above_zero: bool = False
    settle_s: Annotated[float, Ge(0), Le(86_400)] = 600.0
    cool_down_s: Annotated[float, Ge(0), Le(31_622_400)] = 86_400.0

    def __post_init__(self) -> None:
        check_episodic(self)


class Signal(Episode, array_like=True, gc=False):
    """What is known of a signal under one regime.

    last, value     its newest reading, that holds; last 0: none does
    area, covered   of the part that is being filled: value x µs, and µs; saved: `covered` as it is stored
    learned         parts learned; low, high: the band
    away            parts in a row beyond it; since: the reading that began the first of them; begin: of this part
    """

    machine: str = ""
    last: int = 0
    value: float = 0.0
    area: float = 0.0
    covered: int = 0
    saved: int = 0
    learned: int = 0
    low: float = 0.0
    high: float = 0.0
    away: int = 0
    since: tuple[int, str, str, str | None] | None = None
    begin: tuple[int, str, str, str | None] | None = None


class BaselineHandler(Episodic[Signal]):
    """See the module."""

    kind: ClassVar[str] = "baseline"
    Config: ClassVar[type] = ConfigBaseline

    def __init__(self, name: str, config: ConfigBaseline) -> None:
        self.config = config
        self._part_us = seconds_us(config.part_s)
        self._piece_us = self._part_us // PIECES
        self._machines = Machines(seconds_us(config.settle_s))
        self._bands: dict[tuple[str, str], dict[Key, None]] = {}
        """Machine and regime → its signals whose band is learned."""
        super().__init__(name, config, Signal, idle_us=IDLE_US, protect=True)
        self._key, self._spots = no_key, Spots(config.by)

    def see(self, event: Event, key: Key, now_us: int, alerts: list[Event]) -> None:
        key, name = self._spots.of(event)
        machine = self._machines.judging(event, name)
        if machine is None:
            return
        place = hidden(key, name, machine.regime)
        signal = self.table.get(place)
        value = measured(event)
        if signal is None:
            signal = Signal(newest=event.time, machine=name)
            if value is None or not self.table.add(place, signal, now_us):
                return
        elif event.time < signal.newest:
            self.stats.late += 1
            return
        signal.newest, signal.touched = event.time, now_us
        if value is None or not machine.steady(event.time) or (self.config.above_zero and value <= 0):
            signal.last = 0
            return
        held_us = event.time - signal.last
        if signal.last >= machine.steady_from and 0 < held_us <= HOLD_US and signal.last:
            signal.begin = signal.begin or cause(event)
            signal.area += signal.value * held_us
            signal.covered += held_us
        signal.last, signal.value = event.time, value
        if signal.covered >= self._part_us:
            self._close(event, place, signal, machine, now_us, alerts)
        elif signal.covered - signal.saved >= self._piece_us:
            signal.saved = signal.covered
            self.table.touch(place)

    def _close(
        self, event: Event, place: Key, signal: Signal, machine: Machine, now_us: int, alerts: list[Event]
    ) -> None:
        """A part is full."""
        mean, begin = signal.area / signal.covered, signal.begin
        signal.area, signal.covered, signal.saved, signal.begin = 0.0, 0, 0, None
        self.table.touch(place)
        if signal.learned < self.config.learn_parts:
            signal.low = min(signal.low, mean) if signal.learned else mean
            signal.high = max(signal.high, mean) if signal.learned else mean
            signal.learned += 1
            if signal.learned == self.config.learn_parts:
                self._bands.setdefault((signal.machine, machine.regime), {})[place] = None
            return
        low, high = self.limits(signal, event)
        direction = self.config.direction
        beyond = (mean > high and direction != "down") or (mean < low and direction != "up")
        if not beyond:
            signal.away, signal.since = 0, None
            self.well(signal)
            self.near(place, mean, high, event)
            return
        signal.away += 1
        signal.since = signal.since or begin
        if signal.away < self.config.parts or (self.config.alone and not self._alone(place, signal, machine)):
            return
        self.bad(
            event, place, signal, now_us, alerts, lambda: self._words(event, place, signal, mean, low, high), stays=True,
            first=Cause(*signal.since) if signal.since else None,
        )  # fmt: skip

    def limits(self, signal: Signal, event: Event) -> tuple[float, float]:
        """Beyond these a mean is bad."""
        config = self.config
        least = config.floor * abs(signal.low + signal.high) / 2
        bounds = event.data.get("range")
        if type(bounds) is list and len(bounds) == 2:  # noqa: PLR2004  (low, high)
            bottom, top = numeric(bounds[0]), numeric(bounds[1])
            if bottom is not None and top is not None:
                least = max(least, FLOOR_OF_RANGE * (top - bottom))
        slack = max(config.margin * (signal.high - signal.low), least)
        return signal.low - slack, signal.high + slack

    def _alone(self, place: Key, signal: Signal, machine: Machine) -> bool:
        """Whether the machine is known to run, and most of the others are where they were."""
        names = self._bands.get((signal.machine, machine.regime), {})
        home = away = 0
        for name in [name for name in names if name != place]:
            other = self.table.get(name)
            if other is None:
                del names[name]  # it was forgotten
            elif other.away:
                away += 1
            else:
                home += 1
        return machine.says_running and (home > away or not away)

    def _words(
        self, event: Event, key: Key, signal: Signal, mean: float, low: float, high: float
    ) -> tuple[str, dict[str, Any]]:
        config, data = self.config, event.data
        unit, name = data.get("unit"), data.get("quantity") or "value"
        shown = f" {unit}" if type(unit) is str else ""
        side, limit = ("above", high) if mean > high else ("below", low)
        sentence = (
            f"{name}{self.whose(key)} is {number(mean)}{shown} in the mean, {side} {number(limit)}{shown}, {signal.away} times"
            f" {duration(config.part_s)} in a row; usual is {number(signal.low)} to {number(signal.high)}{shown}"
        )
        return sentence, {
            "value": mean,
            "unit": unit,
            "limit": limit,
            "usual": [signal.low, signal.high],
            "side": side,
            "count": signal.away,
            "window_s": config.part_s * signal.away,
        }

    def changes(self) -> dict[str, bytes | None]:
        """See component.Handler."""
        return super().changes() | self._machines.changes()

    def restore(self, state: Mapping[str, bytes]) -> None:
        """See component.Handler."""
        super().restore(state)
        self._machines.restore(state)
        for place, signal in self.table.groups.items():
            signal.last = 0  # what came between the last piece and the end is not known
            if signal.learned >= self.config.learn_parts and isinstance(place, tuple):
                self._bands.setdefault((signal.machine, str(place[-1])), {})[place] = None
