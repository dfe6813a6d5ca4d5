r"""`syslog`: syslog messages, in files or as they come over the network: RFC 5424, RFC 3164, and what devices take for it.

    <34>1 2026-03-01T10:00:00.003Z host app 123 ID47 [example@32473 iut="3" eventSource="a\]b"] text
    <34>Mar  1 10:00:00 host app[123]: text
    <34>app: text                                   without time or host: the time of arrival, and the host that sent it

What the text says is read by the tables of programs, as for `auth`; the rest is `log.line`, with the severity that the message claims.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from agent.parsers.base import EVENTS_MAX, Clock, Context, Memory
from agent.parsers.messages import Origin, Said, split_tag
from agent.wire.event import Event

_PRI = re.compile(r"<(\d{1,3})>")
_HEAD_5424 = re.compile(r"1 (\S+) (\S+) (\S+) (\S+) (\S+) ?(.*)", re.DOTALL)
_ELEMENT = re.compile(r"\[([^\s=\"\]]{1,64})((?: [^\s=\"\]]{1,64}=\"(?:[^\"\\\]]|\\.)*\")*)\]", re.DOTALL)
_PARAMETER = re.compile(r" ([^\s=\"\]]+)=\"((?:[^\"\\\]]|\\.)*)\"", re.DOTALL)
_ESCAPE = re.compile(r"\\([\"\\\]])")
_PRI_MAX = 191
_ELEMENTS_MAX = 32
"""Elements of structured data that are read."""
FACILITIES = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp", "audit", "alert", "clock",
    "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SyslogConfig:
    """No options."""


class SyslogParser:
    """Reads syslog messages, one a line."""

    Config: ClassVar[type] = SyslogConfig

    def __init__(self, config: SyslogConfig, context: Context) -> None:  # noqa: ARG002  # nothing to configure
        self._clock = Clock(context.zone)
        self._said = Said(context)

    def parse(
        self,
        lines: Sequence[str],
        *,
        observed_us: int,
        reference_us: int,
        memory: Memory,  # noqa: ARG002  # a line stands alone: nothing to remember,
        final: bool = False,  # noqa: ARG002  # and nothing to wait for
    ) -> tuple[list[Event], int]:
        events: list[Event] = []
        consumed = 0
        for line in lines:
            consumed += 1
            if line.strip():
                events.extend(self.message(line, observed_us, reference_us))
            if len(events) >= EVENTS_MAX:
                break
        return events, consumed

    def message(
        self, line: str, observed_us: int, reference_us: int, sender: str = "", more: dict[str, Any] | None = None
    ) -> list[Event]:
        """The events of one message. `sender` stands for the host where the message names none."""
        data: dict[str, Any] = dict(more) if more else {}
        severity = None
        text = line.removeprefix("\ufeff")
        pri = _PRI.match(text)
        if pri is not None and int(pri[1]) <= _PRI_MAX:
            text = text[pri.end() :]
            severity = int(pri[1]) & 7
            data["facility"] = FACILITIES[int(pri[1]) >> 3]
        head = _HEAD_5424.match(text)
        time_us = None
        if head is not None:
            time_us = self._clock.iso(head[1]) if head[1] != "-" else observed_us
        if head is None or time_us is None:
            time_us, origin, text = self._bsd(text, sender, severity, data, observed_us, reference_us)
        else:
            host, program, pid, msgid = ("" if part == "-" else part for part in head.group(2, 3, 4, 5))
            if msgid:
                data["msgid"] = msgid[:64]
            text = structured(head[6], data)
            origin = Origin(host or sender, program, pid, severity, data)
        return list(self._said.events(line, text, origin, time_us, observed_us))

    def _bsd(
        self, text: str, sender: str, severity: int | None, data: dict[str, Any], observed_us: int, reference_us: int
    ) -> tuple[int, Origin, str]:
        """RFC 3164, with either time, or with none."""
        stamp, rest = text[:15], text[16:]
        if text[4:5] == "-" and text[10:11] == "T":
            stamp, _, rest = text.partition(" ")
            time_us = self._clock.iso(stamp)
        else:
            time_us = self._clock.seen(reference_us).get(stamp) or self._clock.classic(stamp, reference_us)
        host = sender
        if time_us is None:
            time_us, rest = observed_us, text
        elif not rest.partition(" ")[0].endswith(":"):  # some leave the host out
            host, _, rest = rest.partition(" ")
        program, pid, message = split_tag(rest)
        return time_us, Origin(host, program, pid, severity, data), message


def structured(text: str, data: dict[str, Any]) -> str:
    """Put the structured data at the beginning of a text into `data`, and return what follows it."""
    if text.startswith("-"):
        return text[1:].lstrip(" ").removeprefix("\ufeff")
    at = 0
    for _ in range(_ELEMENTS_MAX):
        element = _ELEMENT.match(text, at)
        if element is None:
            break
        at = element.end()
        for name, value in _PARAMETER.findall(element[2]):
            plain = _ESCAPE.sub(r"\1", value)[:2_000]
            # The name alone where it is free: that is where the taxonomy looks for personal data.
            data[name if name not in data else f"{element[1]}.{name}"] = plain
    return text[at:].lstrip(" ").removeprefix("\ufeff") if at else text
