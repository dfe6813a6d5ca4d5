"""`sequence`: A, then B (then C …) of one key, within a time. A step may have to happen several times.

    within_s = 600
    steps = [ { where = "type == 'authentication.failure'", at_least = 3 }, { where = "type == 'authentication.success'" } ]

The steps are laid out as a chain (here A A A B). An alert is raised as soon as events of the key, in the order of their times, hold
the chain within within_s, from its first to its last; other events may lie between. One event stands for one link. Events at the
same time stand in the order in which they came.

Order. Events that come late are put in their place, as long as they are no older than the newest of the key by more than `late_s`. Older
ones are counted late. For this the last `late_s` of a key's events are kept, TAIL_MAX at most; beyond that the
oldest are settled, and what is older than a settled event is late.

State. For each length of chain it is enough to know the one that began last (any other leaves the window sooner), so that a
key costs as much as the chain has links, however many events there are.

A handler of this kind also sees alerts, where a step names their type.
"""

from bisect import bisect_right
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
    check_episodic,
    check_field,
    duration,
    key_of,
    seconds_us,
)
from agent.wire.event import Event

LINKS_MAX = 64
STEPS_MAX = 16
TAIL_MAX = 256
RUNNING_MAX = 1_024
"""So many keys have their chains at hand, the tail included; those of the others are found anew from settled and tail."""
Link = tuple[int, str, str, str | None] | None
Chains = list[Link]
"""At i: the first event of the chain of i + 1 links that began last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigStep:
    """What has to happen, how often, and which fields hold the key, where they are named otherwise than in the handler's `by`."""

    where: str
    at_least: Annotated[int, Ge(1), Le(LINKS_MAX)] = 1
    by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigSequence(ConfigEpisodic):
    """The steps, in order, by one key, within `within_s` from the first event to the last.

    late_s        how much older than the newest of its key an event may come and still be put in its place
    cool_down_s   a sequence that is complete sooner than this after the last one is counted, not raised
    """

    steps: tuple[ConfigStep, ...]
    within_s: Annotated[float, Gt(0), Le(31_622_400)]
    late_s: Annotated[float, Ge(0), Le(86_400)] = 5.0

    def __post_init__(self) -> None:
        check_episodic(self)
        if not 0 < len(self.steps) <= STEPS_MAX or not 2 <= sum(step.at_least for step in self.steps) <= LINKS_MAX:  # noqa: PLR2004
            raise ValueError(f"steps: a sequence has 1 to {STEPS_MAX} steps, and 2 to {LINKS_MAX} events in all")
        check_steps(self.steps, self.by)


def check_steps(steps: tuple[ConfigStep, ...], by: tuple[str, ...]) -> None:
    """Raise ValueError where a step cannot be read, or names another number of fields than `by`."""
    for number, step in enumerate(steps):
        try:
            where.parse(step.where)
        except where.WhereError as error:
            raise ValueError(f"steps[{number}].where: {error}") from None
        if step.by and len(step.by) != len(by):
            raise ValueError(f"steps[{number}].by must name as many fields as by does ({len(by)})")
        for name in step.by:
            check_field(name, f"steps[{number}].by")


class Progress(Episode, array_like=True, gc=False):
    """What is known of a key.

    settled   chains of the events that nothing can come before any more; bound: time of the newest of these
    tail      (time, steps it stands for as bits, source, type, correlation id) of the others, in order
    """

    settled: Chains = msgspec.field(default_factory=list)
    bound: int = -(2**63)
    tail: list[tuple[int, int, str, str, str | None]] = msgspec.field(default_factory=list)


class SequenceHandler(Episodic[Progress]):
    """See the module."""

    kind: ClassVar[str] = "sequence"
    Config: ClassVar[type] = ConfigSequence

    def __init__(self, name: str, config: ConfigSequence) -> None:
        self.config = config
        self._within_us = seconds_us(config.within_s)
        self._late_us = seconds_us(config.late_s)
        self._wheres = [where.Where(step.where) for step in config.steps]
        self._keys = [key_of(step.by or config.by) for step in config.steps]
        self._own_keys = any(step.by for step in config.steps)
        self._links = [number for number, step in enumerate(config.steps) for _ in range(step.at_least)]
        self._running: dict[Key, tuple[Progress, Chains]] = {}
        self._by_type: dict[str, int] = {}
        self._by_bits: dict[int, tuple[int, ...]] = {}
        super().__init__(name, config, Progress, idle_us=self._within_us + self._late_us, protect=False)
        self._common = self.where
        # An event matches the handler where it stands for one of the steps.
        steps = where.AnyOf(tuple(one.node for one in self._wheres))
        self.where = where.Where(config.where, where.All((self._common.node, steps)))

    def sees_alert(self, type_: str) -> bool:
        """Whether a step names this type of alert; a step that holds of any type does not mean alerts."""
        return self._common.can_match(type_) and any(
            step.can_match(type_) and not step.can_match("unnamed") for step in self._wheres
        )

    def see(self, event: Event, key: Key, now_us: int, alerts: list[Event]) -> None:
        if not self._own_keys:
            bits = self._by_type.get(event.type)
            if bits is None:
                bits = self._learn(event.type)
            if bits < 0:
                bits = sum([1 << number for number, step in enumerate(self._wheres) if step(event)])
            self._take(event, key, bits, now_us, alerts)
            return
        masks: dict[Key, int] = {}
        for number, step in enumerate(self._wheres):
            if step(event):
                own = self._keys[number](event)
                masks[own] = masks.get(own, 0) | 1 << number
        for own, bits in masks.items():
            self._take(event, own, bits, now_us, alerts)

    def _learn(self, type_: str) -> int:
        """The steps that every event of this type stands for, as bits; -1 where the type alone does not say it."""
        if len(self._by_type) >= where.TYPES_DECIDED_MAX:
            self._by_type.clear()
        tests = [step.learn(type_) for step in self._wheres]
        decided = all(test is where.always or test is where.never for test in tests)
        bits = sum(1 << number for number, test in enumerate(tests) if test is where.always) if decided else -1
        self._by_type[type_] = bits
        return bits

    def _links_of(self, bits: int) -> tuple[int, ...]:
        """The links that these steps may be, from the longest down, so that no event stands for two of them."""
        if len(self._by_bits) >= RUNNING_MAX:
            self._by_bits.clear()
        links = tuple(link for link in range(len(self._links) - 1, -1, -1) if bits >> self._links[link] & 1)
        self._by_bits[bits] = links
        return links

    def _take(self, event: Event, key: Key, bits: int, now_us: int, alerts: list[Event]) -> None:
        group = self.table.get(key)
        if group is None:
            if not bits & 1 and not self._late_us:
                return  # a key whose first step was not seen, and cannot come any more, has nothing to remember
            group = Progress(newest=event.time)
            if not self.table.add(key, group, now_us):
                return
        elif event.time < group.newest and event.time <= max(group.bound, group.newest - self._late_us - 1):
            self.stats.late += 1
            return
        group.touched = now_us
        if event.time > group.newest:  # noqa: PLR1730  (the path of every event of a flood: max() costs a call)
            group.newest = event.time
        self.table.touch(key)
        one = (event.time, bits, event.source, event.type, event.correlation_id)
        tail = group.tail
        in_order = not tail or tail[-1][0] <= event.time
        tail.insert(len(tail) if in_order else bisect_right(tail, event.time, key=lambda other: other[0]), one)
        known = self._running.get(key)
        if in_order and known is not None and known[0] is group:
            chains = self._extended(known[1], one)
            self._settle(group)
        else:
            self._settle(group)
            chains = group.settled
            for other in group.tail:
                chains = self._extended(chains, other)
        if len(self._running) >= RUNNING_MAX:
            self._running.clear()
        self._running[key] = (group, chains)
        self._judge(event, key, group, chains, now_us, alerts)

    def _settle(self, group: Progress) -> None:
        """Fold what nothing can come before any more into the chains."""
        tail, oldest = group.tail, group.newest - self._late_us
        done = 0
        while done < len(tail) and (tail[done][0] < oldest or len(tail) - done > TAIL_MAX):
            group.settled = self._extended(group.settled, tail[done])
            group.bound = tail[done][0]
            done += 1
        if done:
            del tail[:done]

    def _extended(self, chains: Chains, one: tuple[int, int, str, str, str | None]) -> Chains:
        """The chains after one more event."""
        time, bits, source, type_, correlation = one
        oldest, length = time - self._within_us, len(chains)
        found = chains.copy()
        links = self._by_bits.get(bits)
        for link in self._links_of(bits) if links is None else links:
            if link > length:
                continue
            begin: Link = chains[link - 1] if link else (time, source, type_, correlation)
            if begin is None or begin[0] < oldest:
                continue
            if link == len(found):
                found.append(begin)
                continue
            known = found[link]
            if known is None or known[0] <= begin[0]:
                found[link] = begin
        return found

    def _judge(self, event: Event, key: Key, group: Progress, chains: Chains, now_us: int, alerts: list[Event]) -> None:
        length = len(self._links)
        if len(chains) < length:
            self.near(key, len(chains), length, event)
            if len(chains) > 1:
                self.table.advance(key, group, len(chains))
            return
        begin = chains[-1]
        first = cause_of(begin) if begin else None
        # What was used for one alert is not used for the next.
        group.settled, group.tail, group.bound = [], [], group.newest
        del self._running[key]
        self.table.advance(key, group, length + 1)
        self.bad(
            event,
            key,
            group,
            now_us,
            alerts,
            lambda: self._words(key, first, event),
            stays=False,
            first=first,
            span_us=self._within_us,
        )

    def _words(self, key: Key, first: Cause | None, last: Event) -> tuple[str, dict[str, Any]]:
        began = first.type if first else last.type
        taken_s = max(0, last.time - first.time) / 1e6 if first else 0.0
        steps = len(self.config.steps)
        sentence = (
            f"{began}, then {last.type}{self.whose(key)}: {steps} steps in order within {taken_s:.3g} s"
            f" (limit {duration(self.config.within_s)})"
        )
        return sentence, {"window_s": self.config.within_s, "limit": len(self._links), "events": len(self._links)}


def cause_of(link: tuple[int, str, str, str | None]) -> Cause:
    """The identity of the event that began a chain."""
    return Cause(*link)
