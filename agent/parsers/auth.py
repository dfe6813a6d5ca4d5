"""`auth` and `syslog`: what a syslog daemon writes to auth.log, secure, messages, syslog, kern.log.

The head is read in any of the forms of heads.py, and then what the program says, by the tables of programs. `message repeated N times: […]`
is N events. `syslog` reads the same lines; this parser has a short way for the line that a brute force attack writes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from agent.parsers.base import EVENTS_MAX, Context, Memory, ip_of
from agent.parsers.heads import NO_HOSTS
from agent.parsers.sshd import SIGN_IN_REFUSED
from agent.parsers.syslog import SyslogConfig, SyslogParser
from agent.wire.event import Event

_REFUSED = re.compile(
    r"(.{15}|[0-9]{4}-[^ ]+) ([^ ]+) (sshd(?:-session)?)\[([0-9]{1,10})\]: Failed ([a-z-]+) for "
    r"(invalid user )?([^ ]+) from ([0-9a-f:.]+) port ([0-9]{1,5}) ssh2$",
    re.ASCII,
)
"""The line that a brute force attack writes by the million, whole, in one match. Whatever looks a little different goes the general way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthConfig:
    """No options."""


class AuthParser:
    """Reads syslog files."""

    Config: ClassVar[type] = AuthConfig

    def __init__(self, config: AuthConfig, context: Context) -> None:  # noqa: ARG002  # the seam has it; there is nothing to configure
        self._source = context.source
        self._context = context
        self._general = SyslogParser(SyslogConfig(), context, time_needed=True)
        self._clock = self._general.clock

    def parse(
        self,
        lines: Sequence[str],
        *,
        observed_us: int,
        reference_us: int,
        memory: Memory,
        final: bool = False,  # noqa: ARG002  # a line is whole
    ) -> tuple[list[Event], int]:
        known, source, context = self._clock.seen(reference_us).get, self._source, self._context
        keep_raw = context.keep_raw or context.lines.shown
        refused, general = _REFUSED.match, self._general.message
        events: list[Event] = []
        append = events.append
        consumed = 0
        for line in lines:
            consumed += 1
            match = refused(line)
            if match is None:
                if line.strip():
                    events += general(line, observed_us, reference_us, memory=memory)
                if len(events) >= EVENTS_MAX:
                    break
                continue
            text, host, program, pid, method, invalid, user, src, port = match.groups()
            time_us = known(text) or self._time(text, reference_us)
            src_ip = ip_of(src)
            if time_us is None or src_ip is None or method == "none" or host in NO_HOSTS:
                events += general(line, observed_us, reference_us, memory=memory)
                continue
            data = {"host": host, "program": program, "pid": int(pid), "method": method, "port": int(port)}
            if invalid:
                data["user_known"] = False
            append(
                Event(
                    time_us,
                    observed_us,
                    "authentication.failure",
                    source,
                    3,
                    src_ip,
                    host,
                    "failure",
                    SIGN_IN_REFUSED,
                    f"{host}/sshd/{pid}",
                    user,
                    context.raw(line) if keep_raw else None,
                    data,
                )
            )
        return events, consumed

    def _time(self, text: str, reference_us: int) -> int | None:
        return self._clock.iso(text) if text[4:5] == "-" else self._clock.classic(text, reference_us)
