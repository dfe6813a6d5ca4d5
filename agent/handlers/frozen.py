"""`frozen`: a signal stands although its machine goes on, as when a sensor is stuck or somebody plays back one value.

That a value does not change says nothing by itself: a machine may stand, a source may report changes only. What says it are the others:

    stood longer than for_s, and `factor` times longer than it ever stood while learned
    and the machine runs, where a signal says so (machine.py)
    and most of the machine's other lively signals have changed within for_s; two of them at least where no signal says that it runs
    and the value is not 0, at which a machine rests

Stands are counted from the last change, or from the end of a hole: a start, a value that the device calls bad, a silence of the whole
machine longer than half of for_s. While a signal is learned (learn_s, and learn_changes changes), stands that the others outlived are
what it may do; so is a stand that was raised and then ended by itself. A value that is reported again unchanged (a heartbeat) is neither
needed nor harmful.

All signals of a machine are looked at every for_s / LOOKS, when an event of it comes. A change is stored at most so often: after a kill a
stand counts from the first event that is seen again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le

from agent.handlers.base import (
    Cause,
    ConfigEpisodic,
    Episode,
    Episodic,
    Kept,
    Key,
    check_episodic,
    keep,
    kept,
    number,
    seconds_us,
)
from agent.handlers.machine import Machine, Machines, Spots, hidden, measured, no_key
from agent.wire.event import Event

IDLE_US = 90 * 86_400 * 1_000_000
LOOKS = 10
OTHERS_MIN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFrozen(ConfigEpisodic):
    """A signal by key (`by`); the value is `data.value`.

    for_s           never raised sooner; factor: times the longest stand that was learned
    learn_s         from the first reading of a signal; learn_changes: so often it has to have changed
    settle_s        after a start or a changed setpoint
    """

    by: tuple[str, ...] = ("source", "target")
    for_s: Annotated[float, Ge(1), Le(2_678_400)] = 1_800.0
    factor: Annotated[float, Ge(1)] = 3.0
    learn_s: Annotated[float, Ge(0), Le(31_622_400)] = 86_400.0
    learn_changes: Annotated[int, Ge(1), Le(1_000_000)] = 50
    settle_s: Annotated[float, Ge(0), Le(86_400)] = 60.0
    cool_down_s: Annotated[float, Ge(0), Le(31_622_400)] = 3_600.0
    forget_s: Annotated[float, Gt(0), Le(315_360_000)] = 7_776_000.0

    def __post_init__(self) -> None:
        check_episodic(self)


class Stand(Episode, array_like=True, gc=False):
    """What is known of a signal.

    value, since     what it stands at, and from when that counts
    changes, first   how often it changed, and when it was first seen
    longest          µs that it may stand; saved: when it was last stored
    last             of its newest event
    """

    machine: str = ""
    value: float | None = None
    since: int = 0
    changes: int = 0
    first: int = 0
    longest: int = 0
    saved: int = 0
    last: Kept | None = None
    unit: str | None = None
    quantity: str | None = None


class FrozenHandler(Episodic[Stand]):
    """See the module."""

    kind: ClassVar[str] = "frozen"
    Config: ClassVar[type] = ConfigFrozen

    def __init__(self, name: str, config: ConfigFrozen) -> None:
        self.config = config
        self._for_us, self._learn_us = seconds_us(config.for_s), seconds_us(config.learn_s)
        self._look_us = max(1, self._for_us // LOOKS)
        self._machines = Machines(seconds_us(config.settle_s))
        self._members: dict[str, dict[Key, None]] = {}
        self._heard: dict[str, int] = {}
        self._begun: dict[str, int] = {}
        """Machine → end of its last hole."""
        self._looked: dict[str, int] = {}
        super().__init__(name, config, Stand, idle_us=seconds_us(config.forget_s), protect=True)
        self._key, self._spots = no_key, Spots(config.by)

    def see(self, event: Event, key: Key, now_us: int, alerts: list[Event]) -> None:
        key, name = self._spots.of(event)
        machine = self._machines.judging(event, name)
        if machine is None:
            return
        at = event.time
        heard = self._heard.get(name)
        if heard is None or at - heard > self._for_us // 2:
            self._begun[name] = self._looked[name] = at
        if heard is None or at > heard:
            self._heard[name] = at
        place = hidden(key, name)
        stand = self.table.get(place)
        if stand is None:
            stand = Stand(newest=at, machine=name, since=at, first=at)
            if not self.table.add(place, stand, now_us):
                return
            self._members.setdefault(name, {})[place] = None
        elif at < stand.newest:
            self.stats.late += 1
            return
        stand.newest, stand.touched = at, now_us
        self._note(event, place, stand)
        if at - self._looked[name] >= self._look_us:
            self._looked[name] = at
            self._look(name, machine, at, now_us, alerts)

    def _note(self, event: Event, place: Key, stand: Stand) -> None:
        """What the reading says of its own signal."""
        value, at = measured(event), event.time
        if value is None:
            stand.since = at
            return
        if value == stand.value:
            return
        if stand.is_open:
            # It was no fault, or it is over: such a stand is what it may do.
            stand.longest = max(stand.longest, min(at - self._from(stand, None), IDLE_US))
            self.well(stand)
            stand.saved = 0
        stand.changes += stand.value is not None
        stand.value, stand.since, stand.last = value, at, keep(event)
        if at - stand.saved >= self._look_us:
            stand.saved = at
            unit, quantity = event.data.get("unit"), event.data.get("quantity")
            stand.unit = unit if type(unit) is str else None
            stand.quantity = quantity if type(quantity) is str else None
            self.table.touch(place)

    def _from(self, stand: Stand, machine: Machine | None) -> int:
        """From when its stand counts."""
        return max(stand.since, self._begun.get(stand.machine, 0), machine.steady_from if machine else 0)

    def _look(self, name: str, machine: Machine, at: int, now_us: int, alerts: list[Event]) -> None:
        """Judge all signals of a machine."""
        if not machine.steady(at):
            return
        config, signals = self.config, list[tuple[Key, Stand]]()
        members = self._members[name]
        for place in list(members):
            stand = self.table.get(place)
            if stand is None:
                del members[place]  # it was forgotten
            elif stand.changes >= config.learn_changes:
                signals.append((place, stand))
        begun = max(self._begun[name], machine.steady_from)
        lively = {place for place, stand in signals if stand.longest <= self._for_us}
        living = {
            place
            for place, stand in signals
            if place in lively and at - stand.since <= self._for_us and stand.since >= begun
        }
        for place, stand in signals:
            others, alive = len(lively) - (place in lively), len(living) - (place in living)
            enough = others == 0 if machine.says_running else False
            if enough or (alive * 2 > others and (machine.says_running or others >= OTHERS_MIN)):
                self._judge(place, stand, at - max(stand.since, begun), at, now_us, alerts)

    def _judge(self, place: Key, stand: Stand, stood_us: int, at: int, now_us: int, alerts: list[Event]) -> None:
        if at - stand.first < self._learn_us:
            if stood_us > max(stand.longest, self._look_us):
                stand.longest = min(stood_us, IDLE_US)
                self.table.touch(place)
            return
        limit_us = max(self._for_us, round(self.config.factor * stand.longest))
        if stand.last is None or not stand.value:
            return
        event = kept((at, *stand.last[1:]))
        if stood_us <= limit_us:
            self.near(place, stood_us / 1e6, limit_us / 1e6, event)
            return
        self.table.touch(place)
        first = Cause(*stand.last[:4])
        self.bad(
            event, place, stand, now_us, alerts, lambda: self._words(place, stand, stood_us, limit_us), stays=True, first=first
        )  # fmt: skip

    def _words(self, key: Key, stand: Stand, stood_us: int, limit_us: int) -> tuple[str, dict[str, Any]]:
        unit, stood_s = stand.unit, stood_us / 1e6
        sentence = (
            f"{stand.quantity or 'value'}{self.whose(key)} has stood at {number(stand.value)}{f' {unit}' if unit else ''} for"
            f" {stood_s:.6g} s while the machine goes on (limit {limit_us / 1e6:.6g} s)"
        )
        return sentence, {"value": stand.value, "unit": unit, "stood_s": stood_s, "limit": limit_us / 1e6}

    def changes(self) -> dict[str, bytes | None]:
        """See component.Handler."""
        return super().changes() | self._machines.changes()

    def restore(self, state: Mapping[str, bytes]) -> None:
        """See component.Handler."""
        super().restore(state)
        self._machines.restore(state)
        for place, stand in self.table.groups.items():
            self._members.setdefault(stand.machine, {})[place] = None
