"""What a program said, wherever it was read (a syslog file, a datagram, the journal) → events."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from agent.parsers.base import REPEATS_MAX, Context, put_pid, unknown
from agent.parsers.programs import OTHER, PROGRAMS
from agent.wire.event import Event

SEVERITY_OF_SYSLOG = (5, 5, 4, 3, 2, 1, 1, 1)
"""Syslog's severities, emerg … debug, as ours. For lines that no parser knows; what is known has the severity of its type."""

_REPEATED = re.compile(r"message repeated (\d{1,9}) times?: \[ ?(.*?)\]?$", re.DOTALL)
_ONE_PROCESS_ONE_SIGN_IN = frozenset({"sshd", "sshd-session", "sshd-auth"})


@dataclass(frozen=True, slots=True)
class Origin:
    """Who said it. `syslog_severity`, 0 to 7, where the way it came has one; `more` goes into `data`."""

    host: str = ""
    program: str = ""
    pid: str = ""
    syslog_severity: int | None = None
    more: dict[str, Any] | None = None


def split_tag(text: str) -> tuple[str, str, str]:
    """`program[pid]: message` → program, pid, message; without a program where there is no tag."""
    tag, colon, message = text.partition(": ")
    if not colon and text.endswith(":"):
        tag, message = text[:-1], ""
    program, _, pid = tag.partition("[")
    if (not colon and not text.endswith(":")) or not program or " " in program:
        return "", "", text
    return program, pid.removesuffix("]"), message


class Said:
    """Messages → events, by the tables of programs."""

    def __init__(self, context: Context) -> None:
        self._source = context.source
        self._raw = context.raw

    def events(self, line: str, text: str, origin: Origin, time_us: int, observed_us: int) -> Iterable[Event]:
        """One event, or N for `message repeated N times`."""
        times = 1
        if text.startswith("message repeated "):
            repeated = _REPEATED.match(text)
            if repeated is not None:
                times, text = int(repeated[1]), repeated[2]
        count = max(1, min(times, REPEATS_MAX))
        events = [self._event(line, text, origin, time_us, observed_us) for _ in range(count)]
        if times > 1:
            for event in events:
                event.data["repeated"] = True
            if times > REPEATS_MAX:
                events[-1].data["repeats_unexpanded"] = times - REPEATS_MAX
        return events

    def _event(self, line: str, text: str, origin: Origin, time_us: int, observed_us: int) -> Event:
        host, program, pid = origin.host, origin.program, origin.pid
        data: dict[str, Any] = dict(origin.more) if origin.more else {}
        if host:
            data["host"] = host
        if program:
            data["program"] = program
        put_pid(data, pid)
        found = PROGRAMS.get(program, OTHER)(text, data)
        if found is None:
            event = unknown(line, time_us, observed_us, self._source, data)
            if origin.syslog_severity is not None:
                event.severity = SEVERITY_OF_SYSLOG[origin.syslog_severity]
            return event
        type_, severity, src_ip, target, outcome, message, actor = found
        correlation = f"{host}/sshd/{pid}" if pid and program in _ONE_PROCESS_ONE_SIGN_IN else None
        raw = self._raw(line)
        return Event(
            time_us,
            observed_us,
            type_,
            self._source,
            severity,
            src_ip,
            target or host or None,
            outcome,
            message,
            correlation,
            actor,
            raw,
            data,
        )
