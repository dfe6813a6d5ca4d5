"""`schedule`: what happens outside the hours in which it may (or inside those in which it may not).

Windows, holidays and time zones are those of clock.py. Each event is judged by its own time, so that neither order nor delay matter.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from agent.handlers.base import SECOND_US, ConfigEpisodic, Episode, Episodic, Key, check_episodic
from agent.handlers.clock import DAYS, Calendar, holiday, window, zone
from agent.wire.event import Event

WINDOWS_MAX = 1_000
NEAR_MINUTES = 60
"""For `try --explain`: minutes of the last hour before the edge of a window that were gone, and beyond it those behind the edge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigSchedule(ConfigEpisodic):
    """Events at times when they are not expected.

    windows       when they are; `raise_when = "inside"`: when they are not
    holidays      days on which no weekly window begins
    time_zone     of the windows, as Europe/Berlin; that of the computer where it is not given
    cool_down_s   further events of the same key within this time of the last are counted, not raised
    """

    windows: tuple[str, ...]
    raise_when: Literal["outside", "inside"] = "outside"
    holidays: tuple[str, ...] = ()
    time_zone: str | None = None
    cool_down_s: Annotated[float, Ge(0), Le(31_622_400)] = 3_600.0

    def __post_init__(self) -> None:
        check_episodic(self)
        if not 0 < len(self.windows) <= WINDOWS_MAX:
            raise ValueError("windows: name at least one, as in windows = ['Mon-Fri 06:00-22:00']")
        for key, texts, read in (("windows", self.windows, window), ("holidays", self.holidays, holiday)):
            for text in texts:
                try:
                    read(text)
                except ValueError as error:
                    raise ValueError(f"{key}: {error}") from None
        zone(self.time_zone)


class ScheduleHandler(Episodic[Episode]):
    """See the module."""

    kind: ClassVar[str] = "schedule"
    Config: ClassVar[type] = ConfigSchedule

    def __init__(self, name: str, config: ConfigSchedule) -> None:
        self.config = config
        self._calendar = Calendar(config.windows, config.holidays, config.time_zone)
        self._raise_inside = config.raise_when == "inside"
        super().__init__(name, config, Episode, idle_us=86_400 * SECOND_US, protect=False)

    def see(self, event: Event, key: Key, now_us: int, alerts: list[Event]) -> None:
        unexpected = self._calendar.holds(event.time) is self._raise_inside
        if self.peaks is not None:
            minutes = self._calendar.minutes_to_edge(event.time, NEAR_MINUTES)
            self.near(key, NEAR_MINUTES + (minutes if unexpected else -minutes), NEAR_MINUTES, event)
        if not unexpected:
            return
        group = self.table.get(key)
        if group is None:
            group = Episode(newest=event.time)
            if not self.table.add(key, group, now_us):
                return
            self.table.advance(key, group, 2)
        group.touched = now_us
        self.table.touch(key)
        self.bad(event, key, group, now_us, alerts, lambda: self._words(event, key), stays=False)

    def _words(self, event: Event, key: Key) -> tuple[str, dict[str, Any]]:
        local = self._calendar.local(event.time)
        when = f"{DAYS[local.weekday()]} {local:%Y-%m-%d %H:%M}"
        sentence = (
            f"{event.type}{self.whose(key)} at {when}, {self.config.raise_when} {'; '.join(self.config.windows[:5])}"
        )
        return sentence, {"local_time": when, "limit": list(self.config.windows[:20])}
