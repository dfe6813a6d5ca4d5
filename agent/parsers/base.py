"""What every parser shares: the seam, clocks without a year or a zone, and rules for the messages of one program.

Invariant: a parser never raises on any text, and every line that it consumes becomes at least one event, but for a blank line, which
says nothing. A line that it does not know becomes `log.line` with the line in `raw`: who knows nothing of a line cannot know
that nobody is named in it, so the line travels as personal data, and `message` stays empty.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, ClassVar, NamedTuple, Protocol
from zoneinfo import ZoneInfo

from agent.wire.event import Event
from agent.wire.taxonomy import default_severity

EVENTS_MAX = 4_096
"""A call of `parse` stops after the line that takes it past this many events; the lines that remain are fed again."""
REPEATS_MAX = 1_000
"""`message repeated N times` becomes at most this many events; the last has the number of the others in `data.repeats_unexpanded`."""
DAY_US = 86_400_000_000

Memory = dict[str, Any]
"""What a parser must remember of one stream of lines (the header of a CSV file). JSON; it is stored with the source's cursor."""


class Line(str):
    """A line that handlers search and that is not stored: before the commit `kept` replaces it in `raw`."""

    __slots__ = ("kept",)
    kept: str | None


def hide_lines(events: Iterable[Event]) -> None:
    """Replace each `Line` in `raw` by what is stored instead."""
    for event in events:
        raw = event.raw
        if type(raw) is Line:
            event.raw = raw.kept


@dataclass(slots=True)
class Lines:
    """Whether handlers search the lines of a source, as keyword rules do. Switched while the source runs."""

    shown: bool = False


@dataclass(frozen=True, slots=True)
class Context:
    """What a parser is told of where it works. `zone` is for times that name none; None is the computer's own."""

    source: str = ""
    keep_raw: bool = False
    zone: tzinfo | None = None
    lines: Lines = field(default_factory=Lines, compare=False)

    def raw(self, line: str, kept: str | None = None) -> str | None:
        """Return the `raw` of an event: the line if it is stored, a `Line` if handlers search it, else `kept`."""
        if self.keep_raw:
            return line
        if not self.lines.shown:
            return kept
        shown = Line(line)
        shown.kept = kept
        return shown


class Parser(Protocol):
    """Lines → events. One instance serves all the files of a source; what it knows of one file is in `memory`."""

    Config: ClassVar[type]

    def __init__(self, config: Any, context: Context) -> None: ...

    def parse(
        self, lines: Sequence[str], *, observed_us: int, reference_us: int, memory: Memory, final: bool = False
    ) -> tuple[list[Event], int]:
        """The events of the first `n` lines, and `n`.

        Lines that are not consumed are fed again, with what follows them: a record that is not whole yet, or what was over EVENTS_MAX.
        With `final` nothing more will follow, so at least one line is consumed. `reference_us` is a moment that no line is much later
        than: it gives a date without a year its year.
        """
        ...


_MONTHS = {
    name: n
    for n, name in enumerate(("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), 1)
}
_CACHE_MAX = 4_096


def zone_of(name: str) -> tzinfo | None:
    """The time zone of a configured name; None, the computer's own, for "". Raises ValueError."""
    if not name:
        return None
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError):
        raise ValueError(
            f"time_zone: there is no time zone {name!r} on this computer; use a name like 'Europe/Berlin' or 'UTC'"
        ) from None


def to_us(moment: datetime, zone: tzinfo | None) -> int | None:
    """µs since the epoch, or None where the moment has none."""
    try:
        if moment.tzinfo is None and zone is not None:
            moment = moment.replace(tzinfo=zone)
        return round(moment.timestamp() * 1_000_000)
    except (ValueError, OverflowError, OSError):
        return None


class Clock:
    """Times as logs write them → µs since the epoch, UTC."""

    __slots__ = ("_classic", "_day", "_zone")

    def __init__(self, zone: tzinfo | None) -> None:
        self._zone = zone
        self._classic: dict[str, int] = {}
        self._day = 0

    def seen(self, reference_us: int) -> dict[str, int]:
        """The classic times read so far that hold for this reference."""
        day = reference_us // DAY_US
        if day != self._day or len(self._classic) > _CACHE_MAX:
            self._day = day
            self._classic.clear()
        return self._classic

    def classic(self, text: str, reference_us: int) -> int | None:
        """`Mon DD HH:MM:SS`, without year or zone: the latest year that puts it no more than a day after the reference."""
        month = _MONTHS.get(text[:3])
        clock = text[7:15]
        if month is None or len(clock) != 8 or clock[2] != ":" or clock[5] != ":":  # noqa: PLR2004  # HH:MM:SS
            return None
        latest_us = reference_us + DAY_US
        try:
            day, hour, minute, second = int(text[4:6]), int(clock[:2]), int(clock[3:5]), int(clock[6:])
            year = datetime.fromtimestamp(latest_us / 1e6, self._zone).year
        except (ValueError, OverflowError, OSError):
            return None
        for candidate in range(year, year - 9, -1):  # 29 February is found within eight years
            try:
                moment = datetime(candidate, month, day, hour, minute, min(second, 59))  # noqa: DTZ001  # the zone is added by to_us
            except ValueError:
                continue
            us = to_us(moment, self._zone)
            if us is not None and us <= latest_us:
                self._classic[text] = us
                return us
        return None

    def iso(self, text: str) -> int | None:
        """RFC 3339 and its relatives: a space for the T, a comma before the fraction, no zone, a leap second."""
        try:
            return to_us(datetime.fromisoformat(text), self._zone)
        except ValueError:
            pass
        if text[16:19] != ":60":
            return None
        # A leap second counts as the second before it, as in `classic`.
        try:
            return to_us(datetime.fromisoformat(f"{text[:16]}:59{text[19:]}"), self._zone)
        except ValueError:
            return None

    def dated(self, year: int, text: str) -> int | None:
        """Return the time of a classic `Mon DD HH:MM:SS` whose year is known."""
        month, clock = _MONTHS.get(text[:3]), text[7:15]
        if month is None or len(clock) != 8 or clock[2] != ":" or clock[5] != ":":  # noqa: PLR2004  # HH:MM:SS
            return None
        try:
            day, hour, minute, second = int(text[4:6]), int(clock[:2]), int(clock[3:5]), int(clock[6:])
            return to_us(datetime(year, month, day, hour, minute, min(second, 59)), self._zone)  # noqa: DTZ001  # the zone is added by to_us
        except ValueError:
            return None

    def shifted(self, time_us: int, offset_s: int) -> int:
        """Return the time that was written in a zone `offset_s` east of UTC but read in the configured one."""
        try:
            local = datetime.fromtimestamp(time_us / 1e6, self._zone)
            if self._zone is None:
                local = local.astimezone()
            read_s = round((local.utcoffset() or timedelta()).total_seconds())
        except (ValueError, OverflowError, OSError):
            return time_us
        return time_us + (read_s - offset_s) * 1_000_000

    def number(self, value: float) -> int | None:
        """Seconds, milliseconds, microseconds or nanoseconds since the epoch, told apart by size."""
        size = abs(value)
        for limit, factor in ((1e11, 1e6), (1e14, 1e3), (1e17, 1.0), (1e20, 1e-3)):
            if size < limit:
                return round(value * factor)
        return None

    def any(self, value: Any) -> int | None:
        """A time in whatever of these ways it is written."""
        if isinstance(value, bool):
            return None
        if isinstance(value, int | float):
            return self.number(value) if value == value and value > 0 else None  # noqa: PLR0124  # NaN
        if not isinstance(value, str) or len(value) > 96:  # noqa: PLR2004  # no time is longer
            return None
        text = value.strip()
        us = self.iso(text) if text[4:5] == "-" else None
        if us is None and text.replace(".", "", 1).isdecimal():
            us = self.number(float(text))
        return us if us is not None else self._dashed(text)

    def _dashed(self, text: str) -> int | None:
        for form in (
            "%d/%b/%Y:%H:%M:%S %z",
            "%d.%m.%Y %H:%M:%S",
            "%Y/%m/%d %H:%M:%S",
            "%a %b %d %H:%M:%S %Y",
            "%d.%m.%Y %H:%M:%S.%f",
            "%a %b %d %Y %H:%M:%S GMT%z",
        ):
            try:
                return to_us(datetime.strptime(text.partition(" (")[0], form), self._zone)  # noqa: DTZ007  # the zone is added by to_us
            except ValueError:
                continue
        return None


def when(us: int) -> str:
    """A moment for people."""
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="seconds")


@lru_cache(maxsize=8_192)
def ip_of(text: str) -> str | None:
    """The text as an address, or None where it is a name. An IPv4 address inside IPv6 is given as IPv4; a zone index is cut."""
    try:
        address = ip_address(text.partition("%")[0].strip("[]"))
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


class Found(NamedTuple):
    """What a message says, beyond what was put into `data`.

    voice: set where several writers report one and the same attempt (two PAM modules, PAM and the program); see attempts.py.
    """

    type: str
    severity: int
    src_ip: str | None = None
    target: str | None = None
    outcome: str | None = None
    message: str | None = None
    actor: str | None = None
    voice: str | None = None


Reader = Callable[[str, dict[str, Any]], Found | None]
"""Reads the message of a program: adds to `data`, and says what it is; None where it does not know."""

_INTEGERS = frozenset({"port", "uid", "gid", "count", "exit_code", "limit", "bytes", "device_no"})


class Rule:
    """One kind of message: a pattern whose groups name the fields.

    A pattern must not let text that a peer writes (a user name, a key id, a version string) supply another field: what stands before
    such text is read from the left, what follows it by the fixed words at the end of the line, with `$`.

    `actor`, `src` (address or host name) and `target` become the event's own; the other groups go into `data` under their names.
    """

    __slots__ = ("message", "outcome", "pattern", "severity", "type", "voice")

    def __init__(
        self,
        pattern: str,
        type_: str,
        message: str,
        outcome: str | None = None,
        severity: int = 0,
        voice: str | None = None,
    ) -> None:
        self.pattern = re.compile(pattern)
        self.voice = voice
        self.type = type_
        self.message = message
        self.outcome = outcome
        self.severity = severity or default_severity(type_, outcome)

    def read(self, text: str, data: dict[str, Any]) -> Found | None:
        match = self.pattern.match(text)
        return None if match is None else self.found(match.groupdict(), data)

    def found(self, groups: Mapping[str, str | None], data: dict[str, Any]) -> Found:
        src_ip = target = actor = None
        for name, value in groups.items():
            if not value:
                continue
            if name == "actor":
                actor = value
            elif name == "target":
                target = value
            elif name == "src":
                src_ip = put_source(value, data)
            elif name in _INTEGERS:
                data[name] = int(value) if value.isdecimal() and len(value) < 18 else value  # noqa: PLR2004  # fits 64 bits
            else:
                data[name] = value
        return Found(self.type, self.severity, src_ip, target, self.outcome, self.message, actor, self.voice)


def put_pid(data: dict[str, Any], text: str) -> None:
    """A process id goes into `data`; anything else does not."""
    if text.isdecimal() and len(text) <= 10:  # noqa: PLR2004  # a pid fits 32 bits
        data["pid"] = int(text)


def put_source(text: str, data: dict[str, Any]) -> str | None:
    """An address is returned; a host name goes into `data`."""
    address = ip_of(text)
    if address is None and text not in ("", "UNKNOWN", "?"):
        data["src_host"] = text
    return address


def by_first_word(rules: Mapping[str, Sequence[Rule]], otherwise: Reader | None = None) -> Reader:
    """A reader that looks up its rules by the first word of the message, so that a line meets few patterns."""

    def read(text: str, data: dict[str, Any]) -> Found | None:
        for rule in rules.get(text.partition(" ")[0], ()):
            found = rule.read(text, data)
            if found is not None:
                return found
        return otherwise(text, data) if otherwise is not None else None

    return read


def first_of(*rules: Rule) -> Reader:
    """A reader that tries its rules in order."""

    def read(text: str, data: dict[str, Any]) -> Found | None:
        for rule in rules:
            found = rule.read(text, data)
            if found is not None:
                return found
        return None

    return read


def unknown(line: str, time_us: int, observed_us: int, source: str, data: dict[str, Any] | None = None) -> Event:
    """The event of a line that is not understood."""
    return Event(time_us, observed_us, "log.line", source, 1, raw=line, data=data if data is not None else {})
