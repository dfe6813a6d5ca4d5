"""`count`: N events (or N different values) of one key within a window.

    not alerted ──N of them within within_s──► alert, episode begins ──quiet for cool_down_s──► not alerted
                                               │ further ones are counted, not raised
                                               └─ `escalate`: one more alert each, at so many events of the episode

Plain counting is exact whatever the order of arrival: an alert is raised as soon as any N events of the key lie within within_s of
each other (the first and the last may lie exactly within_s apart), as long as none comes more than within_s + late_s after the newest.
With `distinct`, the values are counted that were seen within the window that ends at the newest event of the key.

A key holds fewer than N times (1 + late_s / within_s, rounded up) events, since more would have raised the alert.
"""

from bisect import bisect_right, insort
from dataclasses import dataclass
from hashlib import blake2b
from operator import itemgetter
from typing import Annotated, ClassVar

import msgspec
from annotated_types import Ge, Gt, Le

from agent.handlers import where
from agent.handlers.base import (
    SEVERITIES,
    Cause,
    ConfigCommon,
    ConfigEscalation,
    Group,
    Key,
    Keyed,
    check_common,
    check_field,
    duration,
    key_value,
    said,
    seconds_us,
)
from agent.wire.event import Event

_time = itemgetter(0)
WEIGHT_MAX = 1_000_000
"""An event of an episode stands for so many at the most."""
DIGESTS_MAX = 1_024
"""The digests of so many values are at hand, then they are found anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigCount(ConfigCommon):
    """At least `at_least` events that match `where`, of one key (`by`), within `within_s` seconds.

    distinct      count the different values of this field instead of the events
    weight        field that says for how many an event stands, as data.count; 1 where it is missing or no whole number above 0
    late_s        how much later than the newest of its key, beyond the window, an event may come and still count
    cool_down_s   the key must be quiet for so long before it can raise an alert again; within_s where it is not given
    escalate      further alerts while the same episode goes on
    """

    at_least: Annotated[int, Ge(1), Le(100_000)]
    within_s: Annotated[float, Gt(0), Le(31_622_400)]
    distinct: str | None = None
    weight: str | None = None
    late_s: Annotated[float, Ge(0), Le(86_400)] = 5.0
    cool_down_s: Annotated[float, Ge(0), Le(31_622_400)] | None = None
    escalate: tuple[ConfigEscalation, ...] = ()

    def __post_init__(self) -> None:
        check_common(self)
        if self.distinct is not None:
            check_field(self.distinct, "distinct")
        if self.weight is not None:
            check_field(self.weight, "weight")
        if any(step.at <= self.at_least for step in self.escalate):
            raise ValueError(f"escalate.at must lie above at_least ({self.at_least}): the first alert comes there")


class Window(Group, array_like=True, gc=False):
    """What is known of a key.

    seen      identities of events that may still be part of a burst, oldest first (without `distinct`)
    values    hash of a value → time it was last seen (with `distinct`)
    newest    time of the newest event
    began     first event of the episode, None outside one
    total     events (or values) of the episode; stage: escalations done; correlation: that of its alerts
    """

    seen: list[tuple[int, str, str, str | None]] = msgspec.field(default_factory=list)
    values: dict[bytes, int] = msgspec.field(default_factory=dict)
    newest: int = 0
    began: tuple[int, str, str, str | None] | None = None
    total: int = 0
    stage: int = 0
    correlation: str = ""


class CountHandler(Keyed[Window]):
    """See the module."""

    kind: ClassVar[str] = "count"
    Config: ClassVar[type] = ConfigCount

    def __init__(self, name: str, config: ConfigCount) -> None:
        self.config = config
        self._within_us = seconds_us(config.within_s)
        self._keep_us = self._within_us + seconds_us(config.late_s)
        self._cool_us = self._within_us if config.cool_down_s is None else seconds_us(config.cool_down_s)
        self._escalate = sorted(config.escalate, key=lambda step: step.at)
        self._distinct = where.field(config.distinct) if config.distinct else None
        self._weight = where.field(config.weight) if config.weight else None
        super().__init__(name, config, Window, idle_us=max(self._keep_us, self._cool_us), protect=False)
        self._touch = self.table.touch
        self._digests: dict[str, bytes] = {}

    def see(self, event: Event, key: Key, now_us: int, alerts: list[Event]) -> None:
        table = self.table
        window = table.get(key)
        if window is None:
            window = Window(newest=event.time)
            if not table.add(key, window, now_us):
                return
        elif event.time < window.newest - self._keep_us:
            self.stats.late += 1
            return
        else:
            window.touched = now_us
            self._touch(key)
        if window.began is not None:
            if event.time - window.newest < self._cool_us:
                self._go_on(event, key, window, now_us, alerts)
                return
            window.began, window.total, window.stage, window.correlation = None, 0, 0, ""
            window.seen, window.values = [], {}
        first = self._add(event, window) if self._distinct is None else self._add_value(event, window)
        progress = len(window.seen) or len(window.values)
        if first is None:
            self.near(key, progress, self.config.at_least, event)
            if progress > 1:
                table.advance(key, window, progress)
        else:
            self._begin(event, key, window, first, now_us, alerts)

    def _add(self, event: Event, window: Window) -> Cause | None:
        """Count the event; the first of those that make up the burst, if there is one."""
        one = (event.time, event.source, event.type, event.correlation_id)
        seen, at_least = window.seen, self.config.at_least
        if self._weight is not None:
            # The event itself is added below, and stands for the last of them.
            for _ in range(min(self._stands_for(event), at_least) - 1):
                insort(seen, one, key=_time)
        if event.time >= window.newest or not seen:
            seen.append(one)
            window.newest = max(window.newest, event.time)
            if seen[0][0] < window.newest - self._keep_us:
                del seen[: bisect_right(seen, window.newest - self._keep_us - 1, key=_time)]
        else:
            insort(seen, one, key=_time)
        if len(seen) < at_least:
            return None
        for start in range(len(seen) - at_least + 1):
            if seen[start + at_least - 1][0] - seen[start][0] <= self._within_us:
                return Cause(*seen[start])
        return None

    def _stands_for(self, event: Event) -> int:
        """Return for how many the event stands."""
        value = None if self._weight is None else self._weight(event)
        return value if type(value) is int and value > 0 else 1

    def _digest(self, event: Event) -> bytes:
        """Stands for a value in the state: that of a user name is as long as any other, and no name."""
        value = None if self._distinct is None else key_value(self._distinct(event))
        # 1 and 1.0 would share a place: texts alone are remembered.
        known = self._digests.get(value) if type(value) is str else None
        if known is not None:
            return known
        digest = blake2b(repr(value).encode(errors="surrogatepass"), digest_size=8).digest()
        if type(value) is str:
            if len(self._digests) >= DIGESTS_MAX:
                self._digests.clear()
            self._digests[value] = digest
        return digest

    def _add_value(self, event: Event, window: Window) -> Cause | None:
        """Count the value; the event that stands for the first of those that make up the burst."""
        digest, values = self._digest(event), window.values
        values[digest] = max(values.get(digest, event.time), event.time)
        window.newest = max(window.newest, event.time)
        if len(values) < self.config.at_least:
            return None
        oldest = window.newest - self._within_us
        window.values = values = {name: time for name, time in values.items() if time >= oldest}
        if len(values) < self.config.at_least:
            return None
        return Cause(min(values.values()), event.source, event.type, event.correlation_id)

    def _begin(self, event: Event, key: Key, window: Window, first: Cause, now_us: int, alerts: list[Event]) -> None:
        window.began = first
        window.total = self.config.at_least
        window.seen = []
        self.near(key, window.total, self.config.at_least, event)
        self.table.advance(key, window, self.config.at_least + 1)
        self._raise(event, key, window, first, now_us, alerts, None)

    def _go_on(self, event: Event, key: Key, window: Window, now_us: int, alerts: list[Event]) -> None:
        """Part of an episode that was alerted: counted, and raised again only where it escalates."""
        if self._distinct is None:
            window.total += 1 if self._weight is None else min(self._stands_for(event), WEIGHT_MAX)
        elif event.time > window.newest - self._keep_us:
            self._add_value_again(event, window)
        if event.time > window.newest:  # noqa: PLR1730  (the path of every event of a flood: max() costs a call)
            window.newest = event.time
        self.stats.suppressed += 1
        self.near(key, window.total, self.config.at_least, event)
        if event.correlation_id is None:
            self.tags.append((event, window.correlation))
        if (
            self._escalate
            and window.began
            and window.stage < len(self._escalate)
            and window.total >= self._escalate[window.stage].at
        ):
            severity = SEVERITIES[self._escalate[window.stage].severity]
            window.stage += 1
            self._raise(event, key, window, Cause(*window.began), now_us, alerts, severity)

    def _add_value_again(self, event: Event, window: Window) -> None:
        digest = self._digest(event)
        ceiling = max([self.config.at_least, *(step.at for step in self._escalate)])
        if digest not in window.values and len(window.values) < ceiling:
            window.values[digest] = event.time
            window.total += 1

    def _raise(
        self,
        event: Event,
        key: Key,
        window: Window,
        first: Cause,
        now_us: int,
        alerts: list[Event],
        severity: int | None,
    ) -> None:
        config = self.config
        limit = config.at_least if severity is None else self._escalate[window.stage - 1].at
        what = "events" if config.distinct is None else f"values of {config.distinct.removeprefix('data.')}"
        named, _, _ = self.raiser.names(key)
        whose = f" of {said(named)}" if named else ""
        spent = duration(config.within_s) if severity is None else f"{(window.newest - first.time) / 1e6:.0f} s"
        alert = self.fire(
            alerts,
            key=key,
            first=first,
            last=event,
            now_us=now_us,
            span_us=self._within_us if severity is None else 0,
            sentence=f"{window.total} {event.type} {what}{whose} within {spent} (limit {limit})",
            correlation=window.correlation or None,
            severity=severity,
            count=window.total,
            window_s=config.within_s,
            limit=limit,
            distinct=config.distinct,
            escalation=window.stage or None,
        )
        window.correlation = alert.correlation_id or ""

    def totals(self) -> dict[Key, int]:
        """Events so far of the episodes that are open, by key."""
        return {key: window.total for key, window in self.table.groups.items() if window.began is not None}
