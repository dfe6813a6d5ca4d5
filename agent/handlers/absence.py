"""`absence`: nothing from X for a time; or, with `value`, events go on but the value stands still (a frozen sensor, a stuck heartbeat).

Silence is judged by the agent's clock as it is handed in (`now_us`), since nothing else passes when nothing comes; a source's own clock
and the age of what it reads do not matter. What is raised once stays raised until the key is heard again. After a start silence
counts from the start, for an agent that was off has heard nothing, and no station is silent for that. Where the clock goes
back, silence counts anew from there.

    heard ──for_s──► silent: alert ──`escalate` at = n: n times for_s──► alert ──heard──► heard

A standing value is judged by the time of the events alone: the first event at least for_s after the last change raises. Events
older than the newest of their key are counted late and not judged.

Keys are those that were seen once, and those named in `expect`, which count as heard at the start. Nobody who is watched is pushed out by
newcomers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le

from agent.handlers import where
from agent.handlers.base import (
    SEVERITIES,
    Cause,
    ConfigEpisodic,
    Episode,
    Episodic,
    Kept,
    Key,
    Value,
    cause,
    check_episodic,
    check_field,
    duration,
    encode_key,
    is_personal,
    keep,
    kept,
    key_value,
    number,
    numeric,
    seconds_us,
)
from agent.wire.event import Event

EXPECTED_MAX = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigAbsence(ConfigEpisodic):
    """Keys from which nothing comes for `for_s`, or whose `value` stands still for so long.

    value       field that has to change; without it, any event will do
    tolerance   a number that moved no further than this since it last changed stands still
    expect      keys that have to be heard even if they never were (one field in `by`)
    escalate    further alerts when it has lasted `at` times for_s
    cool_down_s a key that is absent again sooner than this after the last alert is counted, not raised
    forget_s    a key that was silent for so long is no longer watched, once newcomers need the room
    """

    for_s: Annotated[float, Gt(0), Le(31_622_400)]
    value: str | None = None
    tolerance: Annotated[float, Ge(0)] = 0.0
    expect: tuple[str, ...] = ()
    forget_s: Annotated[float, Ge(1), Le(315_360_000)] = 2_592_000.0
    cool_down_s: Annotated[float, Ge(0), Le(31_622_400)] = 60.0

    def __post_init__(self) -> None:
        check_episodic(self)
        if self.value is not None:
            check_field(self.value, "value")
        if self.expect and (len(self.by) != 1 or self.value is not None):
            raise ValueError("expect names the values of one field in by, and goes without value")
        if len(self.expect) > min(EXPECTED_MAX, self.max_keys):
            raise ValueError(
                f"expect names {len(self.expect)} keys, at most {min(EXPECTED_MAX, self.max_keys)} are watched"
            )
        if self.forget_s <= self.for_s:
            raise ValueError("forget_s must be longer than for_s, or silence would be forgotten before it is found")


class Watch(Episode, array_like=True, gc=False):
    """What is known of a key: its last event; the value that stands, and the event that brought it."""

    last: Kept | None = None
    value: Value = None
    since: tuple[int, str, str, str | None] | None = None


class AbsenceHandler(Episodic[Watch]):
    """See the module."""

    kind: ClassVar[str] = "absence"
    Config: ClassVar[type] = ConfigAbsence

    def __init__(self, name: str, config: ConfigAbsence) -> None:
        self.config = config
        self._for_us = seconds_us(config.for_s)
        self._value = where.field(config.value) if config.value else None
        self._agenda: list[tuple[int, str, Key]] = []
        """When to look at which key (as text, for the order). Entries that `_look` does not know are passed over."""
        self._look: dict[Key, int] = {}
        self._since_us: int | None = None
        self._now_us = 0
        super().__init__(name, config, Watch, idle_us=seconds_us(config.forget_s), protect=True)

    def handle(self, events: Sequence[Event], now_us: int) -> list[Event]:
        """See component.Handler."""
        if self._since_us is None or now_us < self._now_us:
            self._begin(now_us)
        self._now_us = now_us
        return super().handle(events, now_us)

    def _begin(self, now_us: int) -> None:
        """Count silence from here, for every key."""
        self._since_us = now_us
        self._agenda, self._look = [], {}
        for name in self.config.expect:
            if self.table.get(name) is None:
                self.table.add(name, Watch(), now_us)
        for key, watch in self.table.groups.items():
            watch.touched = min(watch.touched, now_us)
            self._plan(key, watch)

    # ── silence ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _due_us(self, watch: Watch) -> int | None:
        """When the key is silent for long enough for its next alert; None where there is none left to raise."""
        if watch.is_open and watch.stage >= len(self._steps):
            return None
        times = self._steps[watch.stage].at if watch.is_open else 1
        return max(watch.touched, self._since_us or 0) + times * self._for_us

    def _plan(self, key: Key, watch: Watch) -> None:
        due_us = None if self._value else self._due_us(watch)
        if due_us is None:
            self._look.pop(key, None)
            return
        self._look[key] = due_us
        heappush(self._agenda, (due_us, encode_key(key), key))

    def pass_time(self, now_us: int, alerts: list[Event]) -> None:
        """Raise what has become silent."""
        agenda = self._agenda
        while agenda and agenda[0][0] <= now_us:
            look_us, _, key = heappop(agenda)
            watch = self.table.get(key)
            if watch is None or self._look.get(key) != look_us:
                continue
            self._raise_silence(key, watch, now_us, alerts)
            self._plan(key, watch)

    def _raise_silence(self, key: Key, watch: Watch, now_us: int, alerts: list[Event]) -> None:
        while (due_us := self._due_us(watch)) is not None and due_us <= now_us:
            last = kept(watch.last) if watch.last else Event(now_us, now_us, "nothing", severity=1)
            self.table.touch(key)
            if watch.is_open:
                severity = SEVERITIES[self._steps[watch.stage].severity]
                watch.stage += 1
            elif watch.began is not None and due_us - watch.last_bad < self._cool_us:
                watch.is_open, watch.stage, watch.last_bad = True, len(self._steps), due_us
                self.stats.suppressed += 1
                continue
            else:
                severity = None
                watch.began, watch.correlation, watch.total, watch.stage = cause(last), "", 0, 0
                watch.is_open = True
            watch.last_bad = due_us
            watch.total = (now_us - self._heard_us(watch)) // self._for_us
            self._tell(last, key, watch, now_us, alerts, lambda: self._silent_words(key, watch, now_us), 0, severity)

    def _heard_us(self, watch: Watch) -> int:
        return max(watch.touched, self._since_us or 0)

    def _silent_words(self, key: Key, watch: Watch, now_us: int) -> tuple[str, dict[str, Any]]:
        silent_s = (now_us - self._heard_us(watch)) / 1e6
        what = f"nothing{self.whose(key).replace(' of ', ' from ', 1)}"
        never = "" if watch.last else ", and nothing ever before"
        limit = duration(self.config.for_s)
        return f"{what} for {silent_s:.6g} s (limit {limit}){never}", {
            "value": silent_s,
            "unit": "s",
            "limit": self.config.for_s,
            "count": 0,
        }

    def see(self, event: Event, key: Key, now_us: int, alerts: list[Event]) -> None:
        if self._value is not None:
            self._see_value(event, key, now_us, alerts)
            return
        watch = self.table.get(key)
        if watch is None:
            watch = Watch(newest=event.time)
            if not self.table.add(key, watch, now_us):
                return
        else:
            # What the clock did not get round to saying, since a batch was long in coming, is said first.
            self._raise_silence(key, watch, now_us, alerts)
            self.well(watch)
            watch.touched, watch.newest = now_us, max(watch.newest, event.time)
            self.table.touch(key)
        watch.last = keep(event)
        if key not in self._look:
            self._plan(key, watch)

    # ── a value that stands ──────────────────────────────────────────────────────────────────────────────────────────

    def _see_value(self, event: Event, key: Key, now_us: int, alerts: list[Event]) -> None:
        watch = self.follow(event, key, now_us, 0)
        if watch is None or self._value is None:
            return
        value = key_value(self._value(event))
        if watch.since is None or not self._stands(watch.value, value):
            watch.value, watch.since = value, cause(event)
            self.well(watch)
            return
        since = Cause(*watch.since)
        stood_us = event.time - since.time
        if stood_us < self._for_us:
            self.near(key, stood_us / 1e6, self.config.for_s, event)
            return
        self.bad(
            event, key, watch, now_us, alerts, lambda: self._frozen_words(event, key, watch), stays=True, first=since
        )

    def _stands(self, before: Value, after: Value) -> bool:
        old, new = numeric(before), numeric(after)
        return before == after if old is None or new is None else abs(new - old) <= self.config.tolerance

    def _frozen_words(self, event: Event, key: Key, watch: Watch) -> tuple[str, dict[str, Any]]:
        stood_s = (event.time - (watch.since[0] if watch.since else event.time)) / 1e6
        name = (self.config.value or "").removeprefix("data.")
        unit = event.data.get("unit")
        personal = is_personal(self.config.value or "")
        value = None if personal else watch.value
        shown = "" if personal else f" at {number(value)}{f' {unit}' if type(unit) is str else ''}"
        sentence = f"{name}{self.whose(key)} has stood{shown} for {stood_s:.6g} s (limit {duration(self.config.for_s)})"
        return sentence, {"value": value, "unit": unit, "stood_s": stood_s, "limit": self.config.for_s}
