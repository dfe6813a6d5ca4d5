r"""`syslog`: syslog messages, in files or as they come over the network: RFC 5424, RFC 3164, and what devices take for it.

    <34>1 2026-03-01T10:00:00.003Z host app 123 ID47 [example@32473 iut="3" eventSource="a\]b"] text
    <34>Mar  1 10:00:00 host app[123]: text
    <34>app: text                                   without time or host: the time of arrival, and the host that sent it

The forms of the second are in heads.py.

What the text says is read by the tables of programs, as for `auth`; the rest is `log.line`, with the severity that the message claims.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from agent.parsers.base import EVENTS_MAX, Clock, Context, Memory, unknown
from agent.parsers.heads import FACILITIES, Heads
from agent.parsers.messages import Origin, Said, split_tag
from agent.wire.event import Event

_PRI = re.compile(r"<(\d{1,3})> *")
_HEAD_5424 = re.compile(r"1 (\S+) (\S+) (\S+) (\S+) (\S+) ?(.*)", re.DOTALL)
_ELEMENT = re.compile(r"\[([^\s=\"\]]{1,64})((?: [^\s=\"\]]{1,64}=\"(?:[^\"\\]|\\.)*\")*)\]", re.DOTALL)
_PARAMETER = re.compile(r" ([^\s=\"\]]+)=\"((?:[^\"\\]|\\.)*)\"", re.DOTALL)
_ESCAPE = re.compile(r"\\([\"\\\]])")
_HOST_AND_TAG = re.compile(r"([\w.-]{1,255}) ([\w./-]{1,64}\[\d{1,10}\]: .*)", re.DOTALL)
_PRI_MAX = 191
_ELEMENTS_MAX = 32
"""Elements of structured data that are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyslogConfig:
    """No options."""


class SyslogParser:
    """Reads syslog messages, one a line."""

    Config: ClassVar[type] = SyslogConfig

    def __init__(self, config: SyslogConfig, context: Context, *, time_needed: bool = False) -> None:  # noqa: ARG002  # nothing to configure
        self._source = context.source
        self._time_needed = time_needed
        self.clock = Clock(context.zone)
        self._heads = Heads(self.clock)
        self._said = Said(context)

    def parse(
        self,
        lines: Sequence[str],
        *,
        observed_us: int,
        reference_us: int,
        memory: Memory,
        final: bool = False,  # noqa: ARG002  # a line is whole
    ) -> tuple[list[Event], int]:
        events: list[Event] = []
        consumed = 0
        for line in lines:
            consumed += 1
            if line.strip():
                events += self.message(line, observed_us, reference_us, memory=memory)
            if len(events) >= EVENTS_MAX:
                break
        return events, consumed

    def message(
        self,
        line: str,
        observed_us: int,
        reference_us: int,
        sender: str = "",
        more: dict[str, Any] | None = None,
        memory: Memory | None = None,
    ) -> list[Event]:
        """Return the events of one message. `sender` stands for the host where the message names none.

        `memory` is that of the stream of lines; see Said.
        """
        data: dict[str, Any] = dict(more) if more else {}
        severity = None
        text = line.removeprefix("\ufeff")
        pri = _PRI.match(text)
        if pri is not None and int(pri[1]) <= _PRI_MAX:
            text = text[pri.end() :]
            severity = int(pri[1]) & 7
            data["facility"] = FACILITIES[int(pri[1]) >> 3]
        if text.startswith("1 "):
            events = self._modern(line, text, sender, severity, data, observed_us, memory)
            if events is not None:
                return events
        head = self._heads.read(text, reference_us)
        if head.time_us is None and self._time_needed:
            return [unknown(line, observed_us, observed_us, self._source)]
        if head.facility:
            data["facility"] = head.facility
            severity = head.severity
        program, pid, message = split_tag(head.rest)
        if head.time_us is None and not program:
            named = _HOST_AND_TAG.match(head.rest)  # journalctl without times, and devices that have no clock
            if named is not None:
                head = head._replace(host=named[1])
                program, pid, message = split_tag(named[2])
        origin = Origin(head.host or sender, program, pid, severity, data)
        time_us = observed_us if head.time_us is None else head.time_us
        return list(self._said.events(line, message, origin, time_us, observed_us, memory))

    def _modern(
        self,
        line: str,
        text: str,
        sender: str,
        severity: int | None,
        data: dict[str, Any],
        observed_us: int,
        memory: Memory | None,
    ) -> list[Event] | None:
        """RFC 5424."""
        head = _HEAD_5424.match(text)
        if head is None:
            return None
        stamp = head[1]
        if stamp == "-":
            time_us: int | None = observed_us
        else:
            time_us = self.clock.iso(stamp) if stamp[4:5] == "-" else self.clock.any(stamp)
        if time_us is None:
            return None
        host, program, pid, msgid = ("" if part == "-" else part for part in head.group(2, 3, 4, 5))
        if msgid:
            data["msgid"] = msgid[:64]
        program = program.rpartition("/")[2] if program.startswith("/") else program
        message = structured(head[6], data)
        origin = Origin(host or sender, program, pid, severity, data)
        return list(self._said.events(line, message, origin, time_us, observed_us, memory))


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
