"""The head of a syslog line: when, which host, which program; what daemons and devices write before the text.

    Mar  1 10:00:00 host app[123]: text             RFC 3164; the day may be unpadded, a year, a fraction, a zone may follow
    2026-03-01T10:00:00.1+01:00 host app: text      with either separator, comma or point, with or without a zone
    Mar  1 10:00:00 host auth.info app[123]: text   BusyBox
    Thu Mar  1 10:00:00 2026 auth.info app[123]: …  OpenWrt: no host
    Mar  1 10:00:00 <auth.info> host app[123]: text BSD
    45: *Mar  1 10:00:00.123 UTC: %SYS-5-CONFIG_I: …  Cisco
    1 2026-03-01T10:00:00Z host app 123 ID47 [x@1 y="z"] text   RFC 5424

Before any of them a priority `<34>` may stand, also with a blank after it. Invariant: no part of the time is ever taken for the host, and no
part of the head for the text. The common forms cost a lookup or one split; the others meet one pattern.
"""

# ruff: noqa: E501  # patterns

import re
from collections.abc import Mapping
from typing import NamedTuple

from agent.parsers.base import Clock

FACILITIES = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp", "audit", "alert", "clock",
    "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
)  # fmt: skip
_LEVELS: Mapping[str, int] = {
    "emerg": 0, "panic": 0, "alert": 1, "crit": 2, "err": 3, "error": 3, "warning": 4, "warn": 4, "notice": 5, "info": 6, "debug": 7,
}  # fmt: skip
_WORDS: Mapping[str, tuple[str, int]] = {
    f"{facility}.{level}": (facility, number)
    for facility in (*FACILITIES, "security", "console")
    for level, number in _LEVELS.items()
}
"""`auth.info` and so on, as BusyBox and the BSDs write the priority."""
_HOUR_S = 3_600
ZONES: Mapping[str, int | None] = {
    "Z": 0, "UTC": 0, "GMT": 0, "WET": 0, "WEST": 1, "CET": 1, "CEST": 2, "MET": 1, "MEST": 2, "EET": 2, "EEST": 3, "MSK": 3, "SGT": 8, "HKT": 8,
    "AWST": 8, "JST": 9, "KST": 9, "AEST": 10, "AEDT": 11, "NZST": 12, "NZDT": 13, "EST": -5, "EDT": -4, "CDT": -5, "MDT": -6, "PDT": -7, "AKST": -9,
    "CST": None, "MST": None, "PST": None, "BST": None, "IST": None, "HST": None,
}  # fmt: skip
"""Hours east of UTC; None where several zones share the name: then the configured zone holds."""
_SURELY_ZONES = frozenset({"Z", "UTC", "GMT"})
NO_HOSTS = frozenset({*ZONES, *_WORDS, *(f"<{word}>" for word in _WORDS)})
"""Words that may stand where a host does and are none."""

_MONTH = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_RARE = re.compile(
    r"(?:: |(?P<number>\d{1,10}): )?(?:(?P<origin>[A-Za-z][\w.-]{0,254}): )?(?:(?P<count>\d{1,10}): )?[*.]?"
    r"(?:(?P<first_year>(?:19|20)\d\d) )?(?P<weekday>(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? )?"
    rf"(?P<month>{_MONTH}) {{1,2}}(?P<day>\d{{1,2}})(?:,? (?P<year>(?:19|20)\d\d))? (?P<clock>\d{{1,2}}:\d\d:\d\d)(?P<fraction>[.,]\d{{1,9}})?"
    r"(?(weekday)(?: (?P<last_year>(?:19|20)\d\d)(?= ))?)"
    rf"(?: ?(?P<zone>[+-]\d\d:?\d\d|{'|'.join(sorted(ZONES, key=len, reverse=True))})(?=[ :]))?(?P<colon> ?:)?(?: +|$)"
)
_ISO = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)[Tt ](?P<clock>\d\d:\d\d:\d\d)(?P<fraction>[.,]\d{1,9})?(?: ?(?P<zone>[+-]\d\d(?::?\d\d)?|[Zz]|UTC|GMT)(?= ))? +"
)


class Head(NamedTuple):
    """What stands before the text. `time_us` is None where no time does; `rest` begins with the tag of the program."""

    time_us: int | None
    host: str
    rest: str
    facility: str = ""
    severity: int | None = None


class Heads:
    """Reads heads; remembers the times of the day, as Clock does."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def read(self, text: str, reference_us: int) -> Head:
        """Split a line without its priority."""
        stamp = text[:15]
        time_us = self._clock.seen(reference_us).get(stamp)
        if time_us is None and text[3:4] == " ":
            time_us = self._clock.classic(stamp, reference_us)
        if time_us is not None and text[15:16] == " ":
            word = text[16:].partition(" ")[0]
            if word not in ZONES and word[:1] not in ("+", "-") and word.rstrip(":") not in ZONES:
                return _placed(time_us, text[16:])
            return self._rare(text, reference_us)
        if text[4:5] == "-" and text[10:11] == "T":
            stamp, _, rest = text.partition(" ")
            time_us = self._clock.iso(stamp)
            if time_us is not None:
                return _placed(time_us, rest)
        if text[4:5] == "-" and text[7:8] == "-":
            return self._iso(text)
        return self._rare(text, reference_us)

    def _iso(self, text: str) -> Head:
        match = _ISO.match(text)
        if match is None:
            return Head(None, "", text)
        day, clock, fraction, zone = match.groups()
        offset = "+00:00" if zone in ("Z", "z", "UTC", "GMT") else zone or ""
        if len(offset) == 5:  # noqa: PLR2004  # +0100
            offset = f"{offset[:3]}:{offset[3:]}"
        time_us = self._clock.iso(f"{day}T{clock}{(fraction or '').replace(',', '.')[:7]}{offset}")
        return Head(None, "", text) if time_us is None else _placed(time_us, text[match.end() :])

    def _rare(self, text: str, reference_us: int) -> Head:
        match = _RARE.match(text)
        if match is None:
            return Head(None, "", text)
        origin = match["origin"] or ""
        counted = origin or match["number"] or match["count"] or text.startswith(": ")
        rest = text[match.end() :]
        if counted and not match["colon"] and not rest.startswith("%"):
            return Head(None, "", text)
        stamp = f"{match['month']} {match['day']:>2} {match['clock']:0>8}"
        year = match["first_year"] or match["year"] or match["last_year"]
        clock = self._clock
        time_us = clock.dated(int(year), stamp) if year else clock.classic(stamp, reference_us)
        if time_us is None:
            return Head(None, "", text)
        if match["fraction"]:
            time_us += int(match["fraction"][1:7].ljust(6, "0"))
        zone = match["zone"]
        if zone and zone not in _SURELY_ZONES and zone[0] not in "+-" and not match["colon"]:
            first = rest.partition(" ")[0]
            if first.endswith(":") or "[" in first:  # a host of that name
                return _placed(time_us, f"{zone} {rest}")
        offset_s = _offset_s(zone) if zone else None
        if offset_s is not None:
            time_us = clock.shifted(time_us, offset_s)
        if match["colon"]:
            return Head(time_us, origin, rest)
        return _placed(time_us, rest)


def _offset_s(zone: str) -> int | None:
    if zone[0] in "+-":
        digits = zone[1:].replace(":", "")
        return (int(digits[:2]) * _HOUR_S + int(digits[2:]) * 60) * (-1 if zone[0] == "-" else 1)
    hours = ZONES[zone]
    return None if hours is None else hours * _HOUR_S


def _placed(time_us: int, rest: str) -> Head:
    """What follows the time: host, priority in words, and the rest; a host may be left out."""
    first, _, tail = rest.partition(" ")
    facility, severity = "", None
    word = _WORDS.get(first.strip("<>"))
    if word is not None:
        facility, severity = word
        if not first.startswith("<"):
            return Head(time_us, "", tail, facility, severity)
        rest = tail
        first, _, tail = rest.partition(" ")
    if first.endswith(":") and tail.startswith("%"):  # a device that ends its name with a colon
        return Head(time_us, first[:-1], tail, facility, severity)
    tagged = first.endswith(":") or (first.endswith("]") and "[" in first[1:])
    if tagged or first == "[pid" or (first == "last" and tail.startswith("message repeated ")):
        return Head(time_us, "", rest, facility, severity)
    second = tail.partition(" ")[0]
    word = _WORDS.get(second)
    if word is not None:
        return Head(time_us, first, tail[len(second) + 1 :], *word)
    return Head(time_us, first, tail.removeprefix(": ") if tail.startswith(": %") else tail, facility, severity)
