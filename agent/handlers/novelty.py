"""`novelty`: a value seen for the first time: a user, an address, a program, a USB device, a register's identity.

    first event of the agent ──learn_s──► values are remembered, nothing is raised ──► an unknown value raises, once, and is known

Time is that of the events; the order in which they come does not matter, except that learning begins with the first event that the
agent handles, of whatever type: a station that nobody has signed in to for a month has learned that nobody does, and the first sign-in
is new. A value that no event has shown for `forget_s` is new again (at the earliest: it leaves as others come).

When the table is full, nobody who is known is pushed out; newcomers are neither raised nor remembered, and
`alert.handler.flooded` says so: whoever invents values wins no silence that is not announced, and no known value turns new.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Le

from agent.handlers.base import (
    BY_MAX,
    ConfigEpisodic,
    Episode,
    Episodic,
    Key,
    Value,
    check_episodic,
    check_field,
    is_personal,
    key_of,
    said,
    seconds_us,
)
from agent.wire.event import Event

_BEGAN = "!began"
_REFRESHES = 64
"""That a value was seen again is noted in steps of forget_s / 64, so that a busy value costs no write each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigNovelty(ConfigEpisodic):
    """The values of the fields `of`, together, that no event of the same `by` has had before.

    learn_s       from the agent's first event on (of any type), for so long, everything is taken up and nothing raised
    forget_s      a value that was not seen for so long is new again
    cool_down_s   further new values of the same `by` within this time of the last are counted, not raised; 0: each is raised
    """

    of: tuple[str, ...]
    learn_s: Annotated[float, Ge(0), Le(31_622_400)] = 86_400.0
    forget_s: Annotated[float, Ge(1), Le(315_360_000)] = 7_776_000.0
    cool_down_s: Annotated[float, Ge(0), Le(31_622_400)] = 0.0

    def __post_init__(self) -> None:
        check_episodic(self)
        if not 0 < len(self.of) <= BY_MAX:
            raise ValueError(
                f"of: name the field whose values are looked at, as in of = ['src_ip'] (1 to {BY_MAX} of them)"
            )
        for name in self.of:
            check_field(name, "of")


class NoveltyHandler(Episodic[Episode]):
    """See the module. The table holds what is known, and, with a cool-down, the episode of each `by`."""

    kind: ClassVar[str] = "novelty"
    Config: ClassVar[type] = ConfigNovelty

    def __init__(self, name: str, config: ConfigNovelty) -> None:
        self.config = config
        self._of = key_of(config.of)
        self._learn_us = seconds_us(config.learn_s)
        self._refresh_us = seconds_us(config.forget_s) // _REFRESHES
        self._began: int | None = None
        self._began_changed = False
        super().__init__(name, config, Episode, idle_us=seconds_us(config.forget_s), protect=True)

    def begin(self, time_us: int) -> None:
        """Start learning at this time, unless it started in an earlier run."""
        if self._began is None:
            self._began, self._began_changed = time_us, True

    def see(self, event: Event, key: Key, now_us: int, alerts: list[Event]) -> None:
        began = self._began
        if began is None:
            began = event.time
            self.begin(began)
        value = self._of(event)
        known_as = ("v", *_flat(key), *_flat(value))
        known = self.table.get(known_as)
        if known is not None:
            if now_us - known.touched > self._refresh_us:
                known.touched = now_us
                self.table.touch(known_as)
            return
        if not self.table.add(known_as, Episode(newest=event.time), now_us):
            return
        learned_us = event.time - began
        if learned_us < self._learn_us:
            self.near(key, learned_us / 1e6, self.config.learn_s, event)
            return
        self._raise(event, key, value, now_us, alerts)

    def _raise(self, event: Event, key: Key, value: Key, now_us: int, alerts: list[Event]) -> None:
        episode_key = ("e", *_flat(key))
        episode = self.table.get(episode_key) if self._cool_us else None
        if episode is None:
            episode = Episode(newest=event.time)
            if self._cool_us and not self.table.add(episode_key, episode, now_us):
                return
        episode.touched = now_us
        if self._cool_us:
            self.table.touch(episode_key)
        self.bad(event, key, episode, now_us, alerts, lambda: self._words(event, key, value), stays=False)

    def _words(self, event: Event, key: Key, value: Key) -> tuple[str, dict[str, Any]]:
        shown: dict[str, Value] = {}
        personal: dict[str, Value] = {}
        hidden: list[str] = []
        for name, one in zip(self.config.of, _flat(value), strict=True):
            if not is_personal(name):
                shown[name] = one
                continue
            hidden.append("user" if name == "actor" else name.removeprefix("data."))
            if name.startswith("data.") and one is not None:
                personal[name.split(".")[1]] = one
        what = " and ".join([*([said(shown)] if shown else []), *(f"this {name}" for name in hidden)])
        sentence = f"{what} seen for the first time{self.whose(key)} ({event.type})"
        return sentence, {"new": shown or None, **personal}

    def fire(
        self, alerts: list[Event], *, key: Key, last: Event, now_us: int, span_us: int = 0, **details: Any
    ) -> Event:
        """As any handler; a user that is new travels as the alert's actor."""
        alert = super().fire(alerts, key=key, last=last, now_us=now_us, span_us=span_us, **details)
        if "actor" in self.config.of:
            alert.actor = last.actor
        if "src_ip" in self.config.of:
            alert.src_ip = last.src_ip
        if "target" in self.config.of:
            alert.target = last.target
        return alert

    def changes(self) -> dict[str, bytes | None]:
        """See component.Handler."""
        changed = super().changes()
        if self._began_changed:
            self._began_changed = False
            changed[_BEGAN] = str(self._began).encode()
        return changed

    def restore(self, state: Mapping[str, bytes]) -> None:
        """See component.Handler."""
        super().restore(state)
        if _BEGAN in state:
            self._began = int(state[_BEGAN])


def _flat(key: Key) -> tuple[Value, ...]:
    return key if isinstance(key, tuple) else (key,)
