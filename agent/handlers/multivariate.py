"""`multivariate`: a group of signals that no longer go together as they did in a clean period (Hotelling's T² and Q).

    readings ──every sample_s──► vector ──EWMA──► learn_samples of them ──► mean, spread, principal axes, limits
                                                └─► each further one ──► index

The signals are held: a vector is what they showed last, taken when a reading of the next sample comes, so that sources that report
changes only are served too. The vector is smoothed, and measured in spreads of the learning period. The axes that hold `variance`
of it span what is usual:

    T²  how far along these axes, each in its own spread: too much of what is usual
    Q   how far away from them: a relation between signals that does not hold any more

The index is T² / its largest in the learning period + Q / its largest; above `margin` the plant is not as it was. The alert names the
signals that are furthest out.

Plain Python on purpose: the group is small (SIGNALS_MAX), a vector costs some tens of microseconds, learning one eigen-decomposition by
Jacobi's rotations (some 10 ms for 8 signals, once in the life of a key); numpy would cost every station 30 MB of memory and a binary
wheel. The same readings give the same floating-point numbers, bit for bit, on every machine with IEEE doubles.

Readings of a sample that was taken already are counted late and not judged.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import msgspec
from annotated_types import Ge, Gt, Le, Lt

from agent.handlers import where
from agent.handlers.base import (
    ConfigEpisodic,
    Episode,
    Episodic,
    Kept,
    Key,
    check_episodic,
    check_field,
    keep,
    kept,
    number,
    numeric,
    seconds_us,
)
from agent.handlers.lessons import Lessons
from agent.wire.event import Event

SIGNALS_MAX = 24
SWEEPS_MAX = 50
SPREAD_OF_MEAN_MIN = 1e-4
"""A signal that stood still while it was learned is given this spread, in parts of its mean: its last digit may move."""
NAMED_MAX = 3
IDLE_US = 90 * 86_400 * 1_000_000

Matrix = list[list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigMultivariate(ConfigEpisodic):
    """A group of signals by `by` (a machine).

    signals         values of the field `signal` that make up the group; value: the field with the number
    sample_s        how often a vector is taken
    learn_samples   vectors of the clean period
    smoothing       weight of the newest vector; 1: none
    variance        share of the learning period's variance that its axes have to hold
    margin          index above which it is raised; the learning period itself reaches 2 at the most
    """

    signals: tuple[str, ...]
    signal: str = "target"
    value: str = "data.value"
    by: tuple[str, ...] = ("source",)
    max_keys: Annotated[int, Ge(1), Le(100_000)] = 1_000
    sample_s: Annotated[float, Gt(0), Le(86_400)] = 1.0
    learn_samples: Annotated[int, Ge(50), Le(100_000)] = 400
    smoothing: Annotated[float, Gt(0), Le(1)] = 0.08
    variance: Annotated[float, Gt(0), Lt(1)] = 0.8
    margin: Annotated[float, Gt(0)] = 12.0

    def __post_init__(self) -> None:
        check_episodic(self)
        check_field(self.signal, "signal")
        check_field(self.value, "value")
        if not 2 <= len(self.signals) <= SIGNALS_MAX or len(set(self.signals)) < len(self.signals):  # noqa: PLR2004
            raise ValueError(f"signals: name 2 to {SIGNALS_MAX} different signals")
        if self.learn_samples < 4 * len(self.signals) + settle(self.smoothing):
            raise ValueError(
                f"learn_samples: {len(self.signals)} signals with this smoothing need at least"
                f" {4 * len(self.signals) + settle(self.smoothing)}"
            )


def settle(smoothing: float) -> int:
    """Vectors at the beginning that the smoothing has to forget before anything is learned from it."""
    return math.ceil(1.5 / smoothing) if smoothing < 1 else 0


class Model(msgspec.Struct, array_like=True, gc=False):
    """What was learned: per signal mean and spread; the axes with their variances; the largest T² and Q."""

    means: list[float]
    spreads: list[float]
    axes: Matrix
    variances: list[float]
    t2_max: float
    q_max: float

    def scaled(self, vector: Sequence[float]) -> list[float]:
        """In spreads from the mean."""
        return [(x - m) / s for x, m, s in zip(vector, self.means, self.spreads, strict=True)]

    def statistics(self, scaled: Sequence[float]) -> tuple[float, float]:
        """T² and Q of a scaled vector."""
        t2 = inside = 0.0
        for axis, variance in zip(self.axes, self.variances, strict=True):
            along = 0.0
            for a, z in zip(axis, scaled, strict=True):
                along += a * z
            t2 += along * along / variance
            inside += along * along
        return t2, max(0.0, math.fsum([z * z for z in scaled]) - inside)

    def index(self, t2: float, q: float) -> float:
        """Above 2 it was never so while it was learned."""
        return t2 / self.t2_max + q / self.q_max


def learn(rows: Sequence[Sequence[float]], variance: float) -> Model:
    """The model of a clean period."""
    count = len(rows)
    columns = list(zip(*rows, strict=True))
    means = [math.fsum(column) / count for column in columns]
    spreads = []
    for mean, column in zip(means, columns, strict=True):
        spread = math.sqrt(math.fsum([(x - mean) ** 2 for x in column]) / (count - 1))
        spreads.append(max(spread, SPREAD_OF_MEAN_MIN * abs(mean), 1e-12))
    model = Model(means, spreads, [], [], 1.0, 1.0)
    scaled = [model.scaled(row) for row in rows]
    parts = list(zip(*scaled, strict=True))
    covariance = [
        [math.fsum([a * b for a, b in zip(one, two, strict=True)]) / (count - 1) for two in parts] for one in parts
    ]
    values, axes = eigen(covariance)
    whole, held = math.fsum(values) or 1.0, 0.0
    for value, axis in zip(values, axes, strict=True):
        if held >= variance * whole and model.axes:
            break
        held += value
        model.axes.append(axis)
        model.variances.append(max(value, 1e-9))
    found = [model.statistics(one) for one in scaled]
    model.t2_max = max([1e-9, *(t2 for t2, _ in found)])
    # Where the axes hold everything nothing was ever away from them: then a whole spread is as far as T² at its largest.
    model.q_max = max([1e-3, *(q for _, q in found)])
    return model


def eigen(matrix: Matrix) -> tuple[list[float], Matrix]:
    """Eigenvalues of a symmetric matrix, the largest first, and their vectors, by Jacobi's cyclic rotations."""
    size = len(matrix)
    a = [list(row) for row in matrix]
    v = [[1.0 if i == j else 0.0 for j in range(size)] for i in range(size)]
    for _ in range(SWEEPS_MAX):
        off = math.fsum([a[i][j] ** 2 for i in range(size) for j in range(i)])
        if off < 1e-22 * size:
            break
        for p in range(size - 1):
            for q in range(p + 1, size):
                if a[p][q] != 0.0:
                    _rotate(a, v, p, q)
    order = sorted(range(size), key=lambda i: (-a[i][i], i))
    return [a[i][i] for i in order], [v[i] for i in order]


def _rotate(a: Matrix, v: Matrix, p: int, q: int) -> None:
    """Make a[p][q] zero. The rows of `v` become the eigenvectors."""
    theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q])
    t = math.copysign(1.0, theta) / (abs(theta) + math.hypot(theta, 1.0))
    c = 1.0 / math.hypot(t, 1.0)
    s = t * c
    for row in a:
        row[p], row[q] = c * row[p] - s * row[q], s * row[p] + c * row[q]
    a[p], a[q] = (
        [c * x - s * y for x, y in zip(a[p], a[q], strict=True)],
        [s * x + c * y for x, y in zip(a[p], a[q], strict=True)],
    )
    v[p], v[q] = (
        [c * x - s * y for x, y in zip(v[p], v[q], strict=True)],
        [s * x + c * y for x, y in zip(v[p], v[q], strict=True)],
    )


class Machine(Episode, array_like=True, gc=False):
    """What is known of a group: number of the running sample, what the signals show, the smoothed vector, vectors so far."""

    sample: int = 0
    shown: list[float | None] = msgspec.field(default_factory=list)
    smoothed: list[float] = msgspec.field(default_factory=list)
    taken: int = 0
    last: Kept | None = None


class MultivariateHandler(Episodic[Machine]):
    """See the module."""

    kind: ClassVar[str] = "multivariate"
    Config: ClassVar[type] = ConfigMultivariate

    def __init__(self, name: str, config: ConfigMultivariate) -> None:
        self.config = config
        self._places = {signal: place for place, signal in enumerate(config.signals)}
        self._signal = where.field(config.signal)
        self._value = where.field(config.value)
        self._sample_us = max(1, seconds_us(config.sample_s))
        self._settle = settle(config.smoothing)
        self._lessons = Lessons(Model)
        super().__init__(name, config, Machine, idle_us=IDLE_US, protect=True)

    def see(self, event: Event, key: Key, now_us: int, alerts: list[Event]) -> None:
        signal = self._signal(event)
        place = self._places.get(signal) if type(signal) is str else None
        value = numeric(self._value(event)) if place is not None else None
        if place is None or value is None:
            return
        sample = event.time // self._sample_us
        machine = self.table.get(key)
        if machine is None:
            machine = Machine(newest=event.time, sample=sample, shown=[None] * len(self._places))
            if not self.table.add(key, machine, now_us):
                return
        elif sample < machine.sample:
            self.stats.late += 1
            return
        elif sample > machine.sample:
            self._take(key, machine, now_us, alerts)
            machine.sample = sample
        machine.touched, machine.newest, machine.last = now_us, max(machine.newest, event.time), keep(event)
        machine.shown[place] = value
        self.table.touch(key)

    def _take(self, key: Key, machine: Machine, now_us: int, alerts: list[Event]) -> None:
        """The sample is over: its vector is learned from, or judged."""
        vector = [value for value in machine.shown if value is not None]
        if len(vector) < len(self._places) or machine.last is None:
            return
        weight, before = self.config.smoothing, machine.smoothed or vector
        machine.smoothed = smoothed = [old + weight * (new - old) for old, new in zip(before, vector, strict=True)]
        machine.taken += 1
        model = self._lessons.models.get(key)
        if model is not None:
            self._judge(key, machine, model, now_us, alerts)
        elif machine.taken > self._settle:
            rows = self._lessons.add(key, smoothed)
            if machine.taken >= self.config.learn_samples:
                self._lessons.done(key, learn(rows, self.config.variance))

    def _judge(self, key: Key, machine: Machine, model: Model, now_us: int, alerts: list[Event]) -> None:
        scaled = model.scaled(machine.smoothed)
        t2, q = model.statistics(scaled)
        index = model.index(t2, q)
        last = kept(machine.last) if machine.last else Event(now_us, now_us, "equipment.reading")
        if index > self.config.margin:
            self.bad(last, key, machine, now_us, alerts, lambda: self._words(key, scaled, t2, q, index), stays=True)
            return
        self.well(machine)
        self.near(key, index, self.config.margin, last)

    def _words(
        self, key: Key, scaled: Sequence[float], t2: float, q: float, index: float
    ) -> tuple[str, dict[str, Any]]:
        furthest = sorted(zip(scaled, self.config.signals, strict=True), key=lambda pair: -abs(pair[0]))[:NAMED_MAX]
        named = ", ".join(f"{signal} {z:+.3g}" for z, signal in furthest)
        sentence = (
            f"{len(scaled)} signals{self.whose(key)} are not as they were learned: index {number(index)}, limit"
            f" {number(self.config.margin)}; furthest out, in usual spreads: {named}"
        )
        return sentence, {
            "value": index,
            "limit": self.config.margin,
            "t2": t2,
            "q": q,
            "furthest": {signal: z for z, signal in furthest},
        }

    def changes(self) -> dict[str, bytes | None]:
        """See component.Handler."""
        return super().changes() | self._lessons.changes(self.table.groups)

    def restore(self, state: Mapping[str, bytes]) -> None:
        """See component.Handler."""
        super().restore(state)
        self._lessons.restore(state)
