"""`auth` and `syslog`: what a syslog daemon writes to auth.log, secure, messages, syslog, kern.log.

Either head is read, the classic `Mon DD HH:MM:SS host program[pid]: ` and RFC 3339 `2026-11-23T09:20:44.1+01:00 host …`, and then
what the program says, by the tables of programs. `message repeated N times: [ … ]` is N events. `syslog` reads the same lines.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from agent.parsers.base import EVENTS_MAX, Clock, Context, Memory, ip_of, unknown
from agent.parsers.logins import SIGN_IN_REFUSED
from agent.parsers.messages import Origin, Said, split_tag
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
        known, source, context = self._clock.seen(reference_us).get, self._source, self._context
        keep_raw = context.keep_raw or context.lines.shown
        refused, one = _REFUSED.match, self._one
        events: list[Event] = []
        append = events.append
        consumed = 0
        for line in lines:
            consumed += 1
            match = refused(line)
            if match is None:
                one(line, observed_us, reference_us, events)
                if len(events) >= EVENTS_MAX:
                    break
                continue
            text, host, program, pid, method, invalid, user, src, port = match.groups()
            time_us = known(text) or self._time(text, reference_us)
            src_ip = ip_of(src)
            if time_us is None or src_ip is None or method == "none":
                one(line, observed_us, reference_us, events)
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

    def _one(self, line: str, observed_us: int, reference_us: int, events: list[Event]) -> None:
        """Add the events of any line."""
        text, rest = line[:15], line[16:]
        if line[4:5] == "-" and line[10:11] == "T":
            text, _, rest = line.partition(" ")
        time_us = self._clock.seen(reference_us).get(text) or self._time(text, reference_us)
        if time_us is not None:
            host, _, text = rest.partition(" ")
            program, pid, text = split_tag(text)
            events.extend(self._said.events(line, text, Origin(host, program, pid), time_us, observed_us))
        elif line.strip():
            events.append(unknown(line, observed_us, observed_us, self._source))
