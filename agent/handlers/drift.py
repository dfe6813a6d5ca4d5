"""`drift`: a signal leaves the place it was learned at: slowly (EWMA, CUSUM) or with single values (robust z).

    z = (value - centre) / spread

    ewma      s += smoothing * (z - s)                                      |s| > limit: the mean has moved
    cusum     hi = max(0, hi + z - slack), lo = max(0, lo - z - slack)      the larger > limit: small shifts add up
    robust_z  |z| > limit, with median and MAD for centre and spread        a value that does not belong

Centre and spread are given, or learned from the first `learn_readings` of a key. So is the limit: what the statistic reached while
it was learned, times `margin`, LIMITS_MIN at least (a short clean period shows less than its signal can do).

Each key is a signal, judged in the order of its events' times; older readings are counted late and not judged. A CUSUM is cut at
twice its limit, so that a long deviation does not take as long to forget.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from annotated_types import Ge, Gt, Le

from agent.handlers import where
from agent.handlers.base import (
    ConfigEpisodic,
    Episode,
    Episodic,
    Key,
    check_episodic,
    check_field,
    number,
    numeric,
)
from agent.handlers.lessons import Lessons
from agent.wire.event import Event

Method = Literal["ewma", "cusum", "robust_z"]
LIMITS_MIN: dict[str, float] = {"ewma": 1.0, "cusum": 5.0, "robust_z": 5.0}
MARGINS = {"ewma": 3.5, "cusum": 3.5, "robust_z": 1.5}
"""Where no margin is given. A single value reaches less far beyond the clean period than a mean that has moved."""
MAD_TO_SPREAD = 1.4826
SPREAD_OF_CENTRE_MIN = 1e-4
CUSUM_CUT = 2.0
IDLE_US = 90 * 86_400 * 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigDrift(ConfigEpisodic):
    """A signal by key (`by`).

    method           see the module
    learn_readings   readings of the clean period
    centre, spread   given instead of learned, both
    limit            given instead of learned; margin: how far beyond what was learned; MARGINS where not given
    smoothing        of ewma: weight of the newest reading; slack: of cusum, in spreads: what is let pass
    """

    value: str = "data.value"
    by: tuple[str, ...] = ("source", "target")
    method: Method = "ewma"
    learn_readings: Annotated[int, Ge(10), Le(100_000)] = 400
    centre: float | None = None
    spread: Annotated[float, Gt(0)] | None = None
    limit: Annotated[float, Gt(0)] | None = None
    margin: Annotated[float, Gt(0)] | None = None
    smoothing: Annotated[float, Gt(0), Le(1)] = 0.1
    slack: Annotated[float, Ge(0)] = 0.5

    def __post_init__(self) -> None:
        check_episodic(self)
        check_field(self.value, "value")
        if (self.centre is None) != (self.spread is None):
            raise ValueError("centre and spread are given together, or both learned")


class Learned(msgspec.Struct, array_like=True, gc=False):
    """Where the signal was, and what the statistic may reach."""

    centre: float
    spread: float
    limit: float


class Signal(Episode, array_like=True, gc=False):
    """What is known of a signal: the statistic (s; or hi and lo)."""

    high: float = 0.0
    low: float = 0.0


class DriftHandler(Episodic[Signal]):
    """See the module."""

    kind: ClassVar[str] = "drift"
    Config: ClassVar[type] = ConfigDrift

    def __init__(self, name: str, config: ConfigDrift) -> None:
        self.config = config
        self._value = where.field(config.value)
        self._lessons = Lessons(Learned)
        self._given: Learned | None = None
        if config.centre is not None and config.spread is not None:
            limit = config.limit or margin_of(config) * LIMITS_MIN[config.method]
            self._given = Learned(config.centre, config.spread, limit)
        super().__init__(name, config, Signal, idle_us=IDLE_US, protect=True)

    def see(self, event: Event, key: Key, now_us: int, alerts: list[Event]) -> None:
        value = numeric(self._value(event))
        if value is None:
            return
        signal = self.follow(event, key, now_us, 0)
        if signal is None:
            return
        learned = self._given or self._lessons.models.get(key)
        if learned is None:
            rows = self._lessons.add(key, [value])
            if len(rows) >= self.config.learn_readings:
                self._lessons.done(key, learn([row[0] for row in rows], self.config))
            return
        reached = step(signal, (value - learned.centre) / learned.spread, self.config, learned.limit)
        if abs(reached) > learned.limit:
            self.bad(
                event, key, signal, now_us, alerts, lambda: self._words(event, key, value, reached, learned), stays=True
            )
        else:
            self.well(signal)
            self.near(key, abs(reached), learned.limit, event)

    def _words(
        self, event: Event, key: Key, value: float, reached: float, learned: Learned
    ) -> tuple[str, dict[str, Any]]:
        config = self.config
        unit = event.data.get("unit")
        shown_unit = f" {unit}" if type(unit) is str else ""
        direction = "up" if reached > 0 else "down"
        sentence = (
            f"{config.value.removeprefix('data.')}{self.whose(key)} drifts {direction} from {number(learned.centre)}{shown_unit}:"
            f" now {number(value)}{shown_unit}, {config.method} {number(abs(reached))}, limit {number(learned.limit)}"
        )
        return sentence, {
            "value": value,
            "unit": unit,
            "limit": learned.limit,
            "statistic": reached,
            "method": config.method,
            "centre": learned.centre,
            "spread": learned.spread,
        }

    def changes(self) -> dict[str, bytes | None]:
        """See component.Handler."""
        changed = super().changes()
        return changed if self._given else changed | self._lessons.changes(self.table.groups)

    def restore(self, state: Mapping[str, bytes]) -> None:
        """See component.Handler."""
        super().restore(state)
        self._lessons.restore(state)


def step(signal: Signal, z: float, config: ConfigDrift, limit: float) -> float:
    """The statistic after one more reading, with the sign of its direction."""
    if config.method == "ewma":
        signal.high += config.smoothing * (z - signal.high)
        return signal.high
    if config.method == "robust_z":
        return z
    signal.high = min(max(0.0, signal.high + z - config.slack), CUSUM_CUT * limit)
    signal.low = min(max(0.0, signal.low - z - config.slack), CUSUM_CUT * limit)
    return signal.high if signal.high >= signal.low else -signal.low


def margin_of(config: ConfigDrift) -> float:
    """The margin that is given, or that of the method."""
    return MARGINS[config.method] if config.margin is None else config.margin


def learn(values: Sequence[float], config: ConfigDrift) -> Learned:
    """Centre, spread and limit of a clean period."""
    if config.method == "robust_z":
        centre = float(median(values))
        spread = MAD_TO_SPREAD * median([abs(value - centre) for value in values])
    else:
        centre = math.fsum(values) / len(values)
        spread = math.sqrt(math.fsum([(value - centre) ** 2 for value in values]) / (len(values) - 1))
    spread = max(spread, SPREAD_OF_CENTRE_MIN * abs(centre), 1e-12)
    if config.limit is not None:
        return Learned(centre, spread, config.limit)
    signal = Signal()
    reached = max([abs(step(signal, (value - centre) / spread, config, math.inf)) for value in values])
    return Learned(centre, spread, max(LIMITS_MIN[config.method], margin_of(config) * reached))
