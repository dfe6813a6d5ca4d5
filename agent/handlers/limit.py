"""`limit`: a value above `high`, below `low`, or changing faster than it may.

             high ───────────────o───────────────   beyond it for dwell_s: alert
    high - hysteresis ───────────────────o───────   back below this: well again

Each key is a signal and is judged in the order of its events' times; readings older than the newest are counted late and not judged. What
is no number (text, true, NaN, infinity) is passed over.

`dwell_s` is judged by the time of the readings; where a source reports changes only and the value stays, by the agent's clock as it
is handed in. `rise_per_s` and `fall_per_s` compare a reading with the one before it, at least `span_s` away.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from agent.handlers import where
from agent.handlers.base import (
    Cause,
    ConfigEpisodic,
    Episode,
    Episodic,
    Kept,
    Key,
    cause,
    check_episodic,
    check_field,
    keep,
    kept,
    number,
    numeric,
    seconds_us,
)
from agent.wire.event import Event

Side = Literal["", "high", "low", "rise", "fall"]
_SAID = {"high": "above", "low": "below", "rise": "rises faster than", "fall": "falls faster than"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigLimit(ConfigEpisodic):
    """Bounds of a number.

    value        field that holds it
    hysteresis   how far it has to come back before it is well again
    dwell_s      how long it has to be beyond a bound
    rise_per_s   fastest way up, in units a second; fall_per_s: down; span_s: over at least so long
    """

    value: str = "data.value"
    by: tuple[str, ...] = ("source", "target")
    high: float | None = None
    low: float | None = None
    hysteresis: Annotated[float, Ge(0)] = 0.0
    dwell_s: Annotated[float, Ge(0), Le(2_678_400)] = 0.0
    rise_per_s: Annotated[float, Gt(0)] | None = None
    fall_per_s: Annotated[float, Gt(0)] | None = None
    span_s: Annotated[float, Ge(0), Le(86_400)] = 0.0

    def __post_init__(self) -> None:
        check_episodic(self)
        check_field(self.value, "value")
        if self.high is None and self.low is None and self.rise_per_s is None and self.fall_per_s is None:
            raise ValueError(
                "high, low, rise_per_s or fall_per_s must be given: without a bound nothing can be beyond it"
            )
        if self.high is not None and self.low is not None and self.high - self.hysteresis < self.low + self.hysteresis:
            raise ValueError("high, low: between them there must be twice the hysteresis, or no value would be well")


class Signal(Episode, array_like=True, gc=False):
    """What is known of a signal.

    side           the bound that it is beyond
    value, last    its newest reading
    base           (time, value) that the speed is measured from
    since          the event that went beyond; arrived: now_us of that
    """

    side: Side = ""
    value: float = 0.0
    last: Kept | None = None
    base: tuple[int, float] | None = None
    since: tuple[int, str, str, str | None] | None = None
    arrived: int = 0


class LimitHandler(Episodic[Signal]):
    """See the module."""

    kind: ClassVar[str] = "limit"
    Config: ClassVar[type] = ConfigLimit

    def __init__(self, name: str, config: ConfigLimit) -> None:
        self.config = config
        self._value = where.field(config.value)
        self._dwell_us = seconds_us(config.dwell_s)
        self._span_us = max(1, seconds_us(config.span_s))
        self._waiting: dict[Key, None] = {}
        """Signals beyond a bound whose dwell is not over, in the order in which they came there."""
        super().__init__(name, config, Signal, idle_us=30 * 86_400 * 1_000_000, protect=True)

    def see(self, event: Event, key: Key, now_us: int, alerts: list[Event]) -> None:
        value = numeric(self._value(event))
        if value is None:
            return
        signal = self.follow(event, key, now_us, 0)
        if signal is None:
            return
        speed = self._speed(signal, event.time, value)
        side = self._side(signal.side, value, speed)
        signal.value, signal.last = value, keep(event)
        if side != signal.side:
            self._waiting.pop(key, None)
            signal.side, signal.since, signal.arrived = side, cause(event), now_us
            if not side:
                self.well(signal)
            elif self._dwell_us and side in ("high", "low"):
                self._waiting[key] = None
        if not side:
            self._near(key, value, event)
        elif speed is not None if side in ("rise", "fall") else event.time - self._since(signal) >= self._dwell_us:
            self._raise(event, key, signal, now_us, alerts, speed)

    @staticmethod
    def _since(signal: Signal) -> int:
        return signal.since[0] if signal.since else 0

    def _speed(self, signal: Signal, time_us: int, value: float) -> float | None:
        """Units a second since the base; None while it is too near."""
        if self.config.rise_per_s is None and self.config.fall_per_s is None:
            return None
        if signal.base is None:
            signal.base = (time_us, value)
            return None
        before_us, before = signal.base
        if time_us - before_us < self._span_us:
            return None
        signal.base = (time_us, value)
        return (value - before) / ((time_us - before_us) / 1e6)

    def _side(self, side: Side, value: float, speed: float | None) -> Side:
        """Where the signal stands now, seen from where it stood."""
        config = self.config
        if config.high is not None and (
            value > config.high or (side == "high" and value > config.high - config.hysteresis)
        ):
            return "high"
        if config.low is not None and (
            value < config.low or (side == "low" and value < config.low + config.hysteresis)
        ):
            return "low"
        if speed is None:
            return side if side in ("rise", "fall") else ""
        if config.rise_per_s is not None and speed > config.rise_per_s:
            return "rise"
        return "fall" if config.fall_per_s is not None and -speed > config.fall_per_s else ""

    def _near(self, key: Key, value: float, event: Event) -> None:
        if self.peaks is None:
            return
        if self.config.high is not None:
            self.near(key, value, self.config.high, event)
        elif self.config.low is not None:
            self.near(key, -value, -self.config.low, event)

    def pass_time(self, now_us: int, alerts: list[Event]) -> None:
        """A signal that stays where it is may bring no further reading: its dwell is over by the clock."""
        for key in list(self._waiting):
            signal = self.table.get(key)
            if signal is None or signal.last is None:
                del self._waiting[key]
                continue
            if now_us - signal.arrived < self._dwell_us:
                return
            self.table.touch(key)
            self._raise(kept(signal.last), key, signal, now_us, alerts, None)

    def _raise(
        self, event: Event, key: Key, signal: Signal, now_us: int, alerts: list[Event], speed: float | None
    ) -> None:
        self._waiting.pop(key, None)
        first = Cause(*signal.since) if signal.since else None
        # A speed is of one moment; what is beyond a bound stays there until it is back.
        self.bad(
            event,
            key,
            signal,
            now_us,
            alerts,
            lambda: self._words(event, key, signal, speed),
            stays=signal.side in ("high", "low"),
            first=first,
        )

    def _words(self, event: Event, key: Key, signal: Signal, speed: float | None) -> tuple[str, dict[str, Any]]:
        config, side = self.config, signal.side
        bound = {
            "high": config.high,
            "low": config.low,
            "rise": config.rise_per_s,
            "fall": config.fall_per_s,
            "": None,
        }[side]
        unit = event.data.get("unit")
        shown_unit = f" {unit}" if type(unit) is str else ""
        name = config.value.removeprefix("data.")
        details: dict[str, Any] = {"value": signal.value, "unit": unit, "limit": bound, "side": side}
        if side in ("rise", "fall"):
            details["speed_per_s"] = speed
            sentence = (
                f"{name}{self.whose(key)} {_SAID[side]} {number(bound)}{shown_unit} a second: now at"
                f" {number(signal.value)}{shown_unit}, {number(abs(speed or 0.0))}{shown_unit} a second"
            )
            return sentence, details
        dwell = (
            f" for {(max(event.time, 0) - self._since(signal)) / 1e6:.6g} s" if event.time > self._since(signal) else ""
        )
        details["dwell_s"] = config.dwell_s or None
        return (
            f"{name}{self.whose(key)} is {number(signal.value)}{shown_unit}, {_SAID[side]} {number(bound)}{shown_unit}{dwell}",
            details,
        )

    def restore(self, state: Mapping[str, bytes]) -> None:
        """See component.Handler."""
        super().restore(state)
        if self._dwell_us:
            waiting = [
                (signal.arrived, signal.newest, key)
                for key, signal in self.table.groups.items()
                if signal.side in ("high", "low") and not signal.is_open
            ]
            waiting.sort(key=lambda one: one[:2])
            self._waiting = {key: None for _, _, key in waiting}
