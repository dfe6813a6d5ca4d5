"""The clock on the wall: windows of the week, maintenance windows, holidays, shifts; for the handlers that judge by it.

A window is one of

    "Mon-Fri 06:00-22:00"    days and hours of the week; "Sat,Sun 08:00-12:00", "06:00-14:00" (every day); 22:00-06:00 ends on the next day
    "2026-12-01 08:00/2026-12-01 12:00"    once: a maintenance window

by the wall clock of a time zone, across changes to and from summer time. The beginning belongs to the window, the end does not. On a
holiday ("12-25" every year, "2026-05-14" once) no weekly window begins.

Any integer is a time here: what lies outside the calendar is judged as its nearest end.
"""

import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from agent.handlers.base import SECOND_US

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
DAY_MIN = 24 * 60
MINUTE_US = 60 * SECOND_US
YEAR_9000_US = 221_845_392_000 * SECOND_US
"""Times beyond this, and before 1970, are judged as if they were these: a calendar has an end."""

_WEEKLY = re.compile(r"(?:(?P<days>[A-Za-z,\- ]+?)\s+)?(?P<from>\d\d:\d\d)-(?P<to>\d\d:\d\d)")
_ONCE = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d)\s*/\s*(\d{4}-\d\d-\d\d[ T]\d\d:\d\d)")
_START = re.compile(r"\d\d:\d\d")
_HOLIDAY = re.compile(r"(?:(\d{4})-)?(\d\d)-(\d\d)")


@dataclass(frozen=True, slots=True)
class Weekly:
    """Minutes of the day, on days of the week (0 is Monday). Where end <= begin it ends on the next day."""

    days: frozenset[int]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Once:
    """From one minute of the wall clock to another."""

    begin: datetime
    end: datetime


def _minute(text: str, whole: str) -> int:
    hour, minute = int(text[:2]), int(text[3:])
    if minute >= 60 or hour * 60 + minute > DAY_MIN:  # noqa: PLR2004  (24:00 is the end of a day)
        raise ValueError(f"{whole!r}: there is no time {text}")
    return hour * 60 + minute


def _day(text: str, whole: str) -> int:
    name = text.strip().capitalize()[:3]
    if name not in DAYS:
        raise ValueError(f"{whole!r}: there is no day {text.strip()!r}; days are {', '.join(DAYS)}")
    return DAYS.index(name)


def _days(text: str | None, whole: str) -> frozenset[int]:
    if not text:
        return frozenset(range(7))
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        begin = _day(first, whole)
        end = _day(last, whole) if dash else begin
        found.update((begin + step) % 7 for step in range((end - begin) % 7 + 1))
    return frozenset(found)


def window(text: str) -> Weekly | Once:
    """A window as it is written. Raises ValueError."""
    once = _ONCE.fullmatch(text.strip())
    if once:
        begin, end = (datetime.fromisoformat(part) for part in once.groups())
        if end <= begin:
            raise ValueError(f"{text!r} ends before it begins")
        return Once(begin, end)
    weekly = _WEEKLY.fullmatch(text.strip())
    if weekly is None:
        raise ValueError(
            f"{text!r} is no window: write 'Mon-Fri 06:00-22:00', '22:00-06:00' or '2026-12-01 08:00/2026-12-01 12:00'"
        )
    begin_min, end_min = _minute(weekly["from"], text), _minute(weekly["to"], text)
    if begin_min in (end_min, DAY_MIN):
        raise ValueError(f"{text!r} is empty: for the whole day write 00:00-24:00")
    return Weekly(_days(weekly["days"], text), begin_min, end_min)


def holiday(text: str) -> tuple[int | None, int, int]:
    """A holiday as (year or None, month, day). Raises ValueError."""
    match = _HOLIDAY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no date: write 2026-05-14, or 12-25 for every year")
    year, month, day = match.groups()
    date(int(year or 2000), int(month), int(day))
    return (int(year) if year else None, int(month), int(day))


def zone(name: str | None) -> tzinfo | None:
    """The time zone of a name; None, that of the computer. Raises ValueError."""
    if name is None:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"time_zone: there is no time zone {name!r}; write it as Europe/Berlin") from None


class Calendar:
    """Says whether a time lies in one of the windows."""

    def __init__(self, windows: tuple[str, ...], holidays: tuple[str, ...], time_zone: str | None) -> None:
        given = [window(text) for text in windows]
        self._weekly = [one for one in given if isinstance(one, Weekly)]
        self._once = [one for one in given if isinstance(one, Once)]
        self._holidays = frozenset(holiday(text) for text in holidays)
        self._zone = zone(time_zone)
        self._known: tuple[int, bool] = (-1, False)

    def local(self, time_us: int) -> datetime:
        """The wall clock at a time, without its zone."""
        seconds = min(max(time_us, 0), YEAR_9000_US) // SECOND_US
        moment = datetime.fromtimestamp(seconds, timezone.utc)  # noqa: UP017  (UTC of 3.11 is the same)
        return moment.astimezone(self._zone).replace(tzinfo=None)

    def holds(self, time_us: int) -> bool:
        """Whether the time lies in a window; windows begin and end on the minute, so one look serves a minute."""
        minute = time_us // MINUTE_US
        if minute != self._known[0]:
            self._known = (minute, self._look(time_us))
        return self._known[1]

    def minutes_to_edge(self, time_us: int, most: int) -> int:
        """How many minutes lie between this one and the nearest that a window's beginning or end parts from it; `most` where none is near.

        Looks at every minute, which is for `try --explain` and not for the way of an event.
        """
        here = self._look(time_us)
        for minutes in range(1, most):
            if any(self._look(time_us + way * minutes * MINUTE_US) is not here for way in (-1, 1)):
                return minutes
        return most

    def _look(self, time_us: int) -> bool:
        local = self.local(time_us)
        at = local.hour * 60 + local.minute
        return any(once.begin <= local < once.end for once in self._once) or any(
            self._begins(one, local) if one.begin <= at and (at < one.end or one.end <= one.begin)
            else one.end <= one.begin and at < one.end and self._begins(one, local - timedelta(days=1))
            for one in self._weekly
        )  # fmt: skip

    def _begins(self, one: Weekly, local: datetime) -> bool:
        """Whether the window begins on this day."""
        return (
            local.weekday() in one.days
            and (None, local.month, local.day) not in self._holidays
            and (local.year, local.month, local.day) not in self._holidays
        )


def start_minutes(texts: tuple[str, ...]) -> list[int]:
    """Starts of shifts, as minutes of the day, in order. Raises ValueError."""
    found: set[int] = set()
    for text in texts:
        if not _START.fullmatch(text.strip()):
            raise ValueError(f"{text!r} is no time of the day: write it as 06:00")
        found.add(_minute(text.strip(), text) % DAY_MIN)
    return sorted(found)


class Shifts:
    """Numbers the shifts: the number grows with time, and is the same within a shift."""

    def __init__(self, starts: tuple[str, ...], time_zone: str | None) -> None:
        self._starts = start_minutes(starts)
        self._calendar = Calendar((), (), time_zone)
        self._known: tuple[int, int] = (-1, 0)

    def number(self, time_us: int) -> int:
        """The shift that a time lies in; shifts begin on the minute, so one look serves a minute."""
        minute = time_us // MINUTE_US
        if minute != self._known[0]:
            local = self._calendar.local(time_us)
            at = local.hour * 60 + local.minute
            begun = [start for start in self._starts if start <= at]
            day = local.toordinal()
            self._known = (minute, day * DAY_MIN + begun[-1] if begun else (day - 1) * DAY_MIN + self._starts[-1])
        return self._known[1]
