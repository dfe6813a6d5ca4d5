"""What a program said, wherever it was read (a syslog file, a datagram, the journal) → events."""

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from agent.parsers import devices
from agent.parsers.attempts import repeats
from agent.parsers.base import REPEATS_MAX, Context, Found, Memory, Reader, put_pid, unknown
from agent.parsers.programs import OTHER, PROGRAMS
from agent.wire.event import Event

SEVERITY_OF_SYSLOG = (5, 5, 4, 3, 2, 1, 1, 1)
"""Syslog's severities, emerg … debug, as ours. For lines that no parser knows; what is known has the severity of its type."""

_AGAIN = "the message before came again so many times"
_LAST_REPEATED = re.compile(r"(?:last )?message repeated (\d{1,9}) times?\.?$")
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


_SOLARIS_ID = re.compile(r"\[ID \d+ [a-z0-9]+\.[a-z]+\] ")
_FAMILIES = frozenset({"rsyslogd", *devices.PROGRAMS})
_VSFTPD = re.compile(r"\[pid (\d{1,10})\] ((?:\[.*\] [A-Z]+ [A-Z]+|CONNECT|\[.*\] FTP \w+): .*)", re.DOTALL)
"""vsftpd's own log names no program."""
_CISCO = re.compile(r"%([A-Z][A-Z0-9_]*(?:-[A-Z0-9_]+)*-([0-7])-[A-Z0-9_]+) ?: ?(.*)", re.DOTALL)


def split_tag(text: str) -> tuple[str, str, str]:
    """Return program, pid and message of `program[pid]: message`; no program where there is no tag.

    The program may be given with its path, and the colon may be missing after a pid, or after a program whose message is then known.
    """
    if text.startswith("[pid "):
        ftp = _VSFTPD.match(text)
        if ftp is not None:
            return "vsftpd", ftp[1], ftp[2]
    if text.startswith("%"):
        device = _CISCO.match(text)
        if device is not None:
            return device[1], "", device[3]
    tag, colon, message = text.partition(": ")
    if not colon and text.endswith(":"):
        tag, colon, message = text[:-1], ":", ""
    if not colon or not tag or " " in tag:
        return _split_without_colon(text)
    program, _, pid = tag.partition("[")
    if not program:
        inner = tag[1:-1]
        return (inner, "", message) if inner in PROGRAMS and tag.endswith("]") else ("", "", text)
    if program[0] == "/":
        program = program.rpartition("/")[2] or program
    if message.startswith("[ID "):
        message = _SOLARIS_ID.sub("", message, count=1)
    return program, pid.removesuffix("]"), message


def _split_without_colon(text: str) -> tuple[str, str, str]:
    word, _, message = text.partition(" ")
    name, bracket, pid = word.partition("[")
    program = name.rpartition("/")[2] if name.startswith("/") else name
    if bracket:
        return (
            (program, pid[:-1], message) if program and pid[:-1].isdecimal() and pid.endswith("]") else ("", "", text)
        )
    reader = PROGRAMS.get(program)
    if reader is not None and message and reader(message, {"program": program}) is not None:
        return program, "", message
    return "", "", text


def reader_of(program: str) -> Reader:
    """Return what reads the messages of a program. `%SEC_LOGIN-4-…` of a device is read by the name before its severity."""
    reader = PROGRAMS.get(program)
    if reader is not None:
        return reader
    if "-" in program:
        family = program.partition("-")[0]
        if family in _FAMILIES:
            return PROGRAMS[family]
    return OTHER


class Said:
    """Messages → events, by the tables of programs."""

    def __init__(self, context: Context) -> None:
        self._source = context.source
        self._raw = context.raw
        self._memory: Memory = {}

    def events(
        self, line: str, text: str, origin: Origin, time_us: int, observed_us: int, memory: Memory | None = None
    ) -> Iterable[Event]:
        """One event, or N for `message repeated N times`.

        `memory` is that of the stream of lines; without one, what was counted is remembered while this object lives.
        """
        kept = self._memory if memory is None else memory
        times = 1
        if text.startswith("message repeated "):
            repeated = _REPEATED.match(text)
            if repeated is not None:
                times, text = int(repeated[1]), repeated[2]
        count = max(1, min(times, REPEATS_MAX))
        events = [self._event(line, text, origin, time_us, observed_us, kept) for _ in range(count)]
        if times > 1:
            for event in events:
                event.data["repeated"] = True
            if times > REPEATS_MAX:
                events[-1].data["repeats_unexpanded"] = times - REPEATS_MAX
        return events

    def _event(self, line: str, text: str, origin: Origin, time_us: int, observed_us: int, memory: Memory) -> Event:
        host, program, pid = origin.host, origin.program, origin.pid
        if program.endswith(")") and "(" in program[1:]:
            program, text = _with_module(program, text)
        data: dict[str, Any] = dict(origin.more) if origin.more else {}
        if host:
            data["host"] = host
        if program:
            data["program"] = program
        put_pid(data, pid)
        found = reader_of(program)(text, data)
        if found is None:
            last = _LAST_REPEATED.match(text) if "message repeated " in text[:24] else None
            if last is not None:
                data["count"] = int(last[1])
                return Event(
                    time_us,
                    observed_us,
                    "log",
                    self._source,
                    1,
                    message=_AGAIN,
                    raw=self._raw(line),
                    data=data,
                )
            event = unknown(line, time_us, observed_us, self._source, data)
            if origin.syslog_severity is not None:
                event.severity = SEVERITY_OF_SYSLOG[origin.syslog_severity]
            return event
        if found.voice is not None:
            found = _once(found, host, program, pid, time_us, memory)
        type_, severity, src_ip, target, outcome, message, actor, _ = found
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


def _with_module(program: str, text: str) -> tuple[str, str]:
    """`sshd(pam_unix)[123]: …`, as old systems write it, in the present form."""
    program, _, module = program[:-1].partition("(")
    return program, f"{module}({program}): {text}" if module.startswith("pam_") else text


def _once(found: Found, host: str, program: str, pid: str, time_us: int, memory: Memory) -> Found:
    """Take back the count of a line that only adds to an attempt that another voice reported."""
    who = pid or str(zlib.crc32((found.actor or "").encode("utf-8", "backslashreplace")))
    if not repeats(memory, f"{host}/{program}/{who}/{found.type}", found.voice or "", time_us):
        return found
    return found._replace(type=found.type.partition(".")[0], severity=1, outcome=None)
