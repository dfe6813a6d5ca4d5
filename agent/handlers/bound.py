"""`bound`: a value beyond a bound that its own event carries, because the configuration of the point gives it (or the server knows it).

    range     field that holds [low, high]: raised below low and above high, where nothing can be measured
    reached   field that holds a number: raised from that number on, as run hours at which maintenance is due

Of a signal that is where it may be nothing is kept, so that the many good values cost next to nothing; of one that is beyond, its
episode is. A value that the device itself calls bad is no value. Values older than the newest of a signal that is beyond are late.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from agent.handlers import where
from agent.handlers.base import (
    Cause,
    ConfigEpisodic,
    Episode,
    Episodic,
    Key,
    cause,
    check_episodic,
    check_field,
    number,
    numeric,
    seconds_us,
)
from agent.handlers.machine import Spots, hidden, measured, no_key
from agent.wire.event import Event

if TYPE_CHECKING:
    from collections.abc import Callable

IDLE_US = 90 * 86_400 * 1_000_000
Side = Literal["", "above", "below", "reached"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigBound(ConfigEpisodic):
    """One of `range` and `reached`; the value is `data.value`.

    dwell_s   how long it has to be beyond; 0: the first value raises
    """

    by: tuple[str, ...] = ("source", "target")
    range: str | None = None
    reached: str | None = None
    dwell_s: Annotated[float, Ge(0), Le(2_678_400)] = 0.0

    def __post_init__(self) -> None:
        check_episodic(self)
        if (self.range is None) == (self.reached is None):
            raise ValueError(
                'range or reached must be given, one of them: the field that holds the bound, as "data.range"'
            )
        for key, name in (("range", self.range), ("reached", self.reached)):
            if name is not None:
                check_field(name, key)


class Beyond(Episode, array_like=True, gc=False):
    """A signal that is, or was, beyond its bound: on which side, and since which event."""

    side: Side = ""
    since: tuple[int, str, str, str | None] | None = None


class BoundHandler(Episodic[Beyond]):
    """See the module."""

    kind: ClassVar[str] = "bound"
    Config: ClassVar[type] = ConfigBound

    def __init__(self, name: str, config: ConfigBound) -> None:
        self.config = config
        self._get: Callable[[Event], Any] = where.field(config.range or config.reached or "")
        self._is_range = config.range is not None
        self._dwell_us = seconds_us(config.dwell_s)
        super().__init__(name, config, Beyond, idle_us=IDLE_US, protect=True)
        self._key, self._spots = no_key, Spots(config.by)

    def see(self, event: Event, key: Key, now_us: int, alerts: list[Event]) -> None:
        value = measured(event)
        if value is None:
            return
        bounds = self._get(event)
        if self._is_range:
            if type(bounds) is not list or len(bounds) != 2:  # noqa: PLR2004  (low, high)
                return
            low, high = numeric(bounds[0]), numeric(bounds[1])
            side: Side = (
                "above" if high is not None and value > high else "below" if low is not None and value < low else ""
            )
            limit = high if side == "above" else low
        else:
            limit = numeric(bounds)
            side = "reached" if limit is not None and value >= limit else ""
        if not side and not self.table.groups and self.peaks is None:
            return
        key, name = self._spots.of(event)
        place = hidden(key, name)
        signal = self.table.get(place)
        if signal is None:
            if not side:
                if self.peaks is not None and limit is not None and not self._is_range:
                    self.near(place, value, limit, event)
                return
            signal = Beyond(newest=event.time)
            if not self.table.add(place, signal, now_us):
                return
        elif event.time < signal.newest:
            self.stats.late += 1
            return
        signal.newest, signal.touched = event.time, now_us
        self._judge(event, place, signal, side, now_us, alerts, value, limit)

    def _judge(
        self, event: Event, place: Key, signal: Beyond, side: Side, now_us: int, alerts: list[Event], value: float,
        limit: float | None,
    ) -> None:  # fmt: skip
        if side != signal.side:
            signal.side, signal.since = side, cause(event)
            self.table.touch(place)
            if not side:
                self.well(signal)
        if not side or signal.since is None or event.time - signal.since[0] < self._dwell_us:
            return
        self.table.touch(place)
        self.bad(
            event, place, signal, now_us, alerts, lambda: self._words(event, place, side, value, limit), stays=True,
            first=Cause(*signal.since),
        )  # fmt: skip

    def _words(
        self, event: Event, key: Key, side: Side, value: float, limit: float | None
    ) -> tuple[str, dict[str, Any]]:
        data = event.data
        unit, name = data.get("unit"), data.get("quantity") or "value"
        shown = f" {unit}" if type(unit) is str else ""
        if side == "reached":
            sentence = f"{name}{self.whose(key)}: {number(value)}{shown}, due at {number(limit)}{shown}"
        else:
            sentence = f"{name}{self.whose(key)} is {number(value)}{shown}, {side} {number(limit)}{shown}: nothing can be measured there"
        return sentence, {"value": value, "unit": unit, "limit": limit, "side": side}
