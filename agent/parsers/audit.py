"""`audit`: auditd's audit.log. An event of the kernel is written as several records with one serial number; they are joined again.

Invariant: an event is given out once all its records are there: after EOE or PROCTITLE, or at once for a record that always comes alone.
Events keep the order of their first records, so one that is not whole holds back what came after it, but no longer than HELD_LINES_MAX
lines.
"""

# ruff: noqa: E501  # tables

import re
from collections.abc import Sequence
from dataclasses import dataclass
from posixpath import join, normpath
from typing import Any, ClassVar

from agent.parsers.attempts import repeats
from agent.parsers.audit_fields import fields_of
from agent.parsers.audit_records import KINDS, judge, kind_name, put_fields
from agent.parsers.base import Context, Found, Memory, unknown
from agent.wire.event import Event

HELD_LINES_MAX = 500
"""After so many lines an event counts as whole."""
ARGUMENTS_MAX = 32
RECORDS_KEPT_MAX = 32
"""Records of one event of which the fields are read; of what comes after only the number is kept."""

_RECORD = re.compile(r"(?:node=(\S+) )?type=(\S+) msg=audit\((\d{1,12})\.(\d{3}):(\d{1,20})\): ?(.*)", re.DOTALL)
_BY_WEIGHT = (
    "AVC", *(name for name in KINDS if name.startswith(("APPARMOR", "IPE_", "LANDLOCK_ACCESS", "INTEGRITY_"))), "SELINUX_ERR", "SECCOMP", "ANOM_PROMISCUOUS", "ANOM_LINK",
    "ANOM_CREAT", "KERN_MODULE", "NETFILTER_CFG", "CONFIG_CHANGE", "FEATURE_CHANGE", "LOGIN", *(name for name in KINDS if name.startswith("MAC_") and name != "MAC_CHECK"),
    "TIME_INJOFFSET", "FANOTIFY", "EXECVE", "TTY", "SYSCALL",
)  # fmt: skip
"""Which record names the event where there are several."""
_WEIGHTS = {name: len(_BY_WEIGHT) - n for n, name in enumerate(_BY_WEIGHT)}
_OF_MANY = frozenset({*_BY_WEIGHT, "PATH", "CWD", "PROCTITLE", "SOCKADDR", "SOCKETCALL", "EOE", "OBJ_PID", "BPRM_FCAPS", "CAPSET", "IPC", "IPC_SET_PERM", "MMAP", "FD_PAIR", "MQ_OPEN", "MQ_SENDRECV", "MQ_NOTIFY", "MQ_GETSETATTR", "BPF", "URINGOP", "OPENAT2", "KERN_MODULE", "AVC_PATH", "DM_CTRL", "DM_EVENT", "TIME_ADJNTPVAL", "NETFILTER_PKT"}) - {"LANDLOCK_DOMAIN"}  # fmt: skip
_LAST = frozenset({"EOE", "PROCTITLE"})


@dataclass(slots=True)
class _Joined:
    host: str | None
    time_us: int
    first: int
    last: int
    kinds: list[str]
    bodies: list[str]
    lines: list[str]
    complete: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """No options."""


class AuditParser:
    """Reads audit.log."""

    Config: ClassVar[type] = AuditConfig

    def __init__(self, config: AuditConfig, context: Context) -> None:  # noqa: ARG002  # nothing to configure
        self._source = context.source
        self._raw = context.raw

    def parse(
        self,
        lines: Sequence[str],
        *,
        observed_us: int,
        reference_us: int,  # noqa: ARG002  # the records have full times
        memory: Memory,
        final: bool = False,
    ) -> tuple[list[Event], int]:
        order, unread = self._join(lines)
        end = len(lines) if final else self._whole(order, len(lines))
        events: list[tuple[int, Event]] = [
            (n, unknown(line, observed_us, observed_us, self._source)) for n, line in unread if n < end
        ]
        events += [(joined.first, self._event(joined, observed_us, memory)) for joined in order if joined.last < end]
        events.sort(key=lambda pair: pair[0])
        return [event for _, event in events], end

    @staticmethod
    def _join(lines: Sequence[str]) -> tuple[list[_Joined], list[tuple[int, str]]]:
        """The events in the order of their first records, and the lines that are no records."""
        by_serial: dict[tuple[str | None, str, str], _Joined] = {}
        done: list[_Joined] = []
        unread: list[tuple[int, str]] = []
        for n, line in enumerate(lines):
            match = _RECORD.match(line)
            if match is None:
                if line.strip():
                    unread.append((n, line))
                continue
            host, kind, seconds, millis, serial, body = match.groups()
            joined = by_serial.get((host, seconds, serial))
            if joined is None or joined.complete:
                joined = by_serial[host, seconds, serial] = _Joined(
                    host, int(seconds) * 1_000_000 + int(millis) * 1_000, n, n, [], [], []
                )
                done.append(joined)
            joined.last = n
            joined.kinds.append(kind)
            if len(joined.bodies) < RECORDS_KEPT_MAX:
                joined.bodies.append(body)
                joined.lines.append(line)
            joined.complete = kind in _LAST or (kind not in _OF_MANY and len(joined.kinds) == 1)
            if (
                kind == "PROCTITLE"
                and n + 1 < len(lines)
                and "type=EOE" in lines[n + 1]
                and f":{serial})" in lines[n + 1]
            ):
                joined.complete = False
        return done, unread

    @staticmethod
    def _whole(order: list[_Joined], n: int) -> int:
        """How many lines may be given out: up to the first event that is not whole, and no event cut in two."""
        end = n
        for joined in order:
            if not joined.complete and n - joined.first < HELD_LINES_MAX:
                end = min(end, joined.first)
                break
        moved = True
        while moved:
            moved = False
            for joined in order:
                if joined.first < end <= joined.last:
                    end, moved = joined.first, True
        # Two long events laced into each other could hold each other back for ever.
        return end if end or n < HELD_LINES_MAX else n

    def _event(self, joined: _Joined, observed_us: int, memory: Memory) -> Event:
        kinds = [kind_name(kind) for kind in joined.kinds]
        name = kinds[0] if len(kinds) == 1 else max(kinds, key=lambda each: _WEIGHTS.get(each, 0))
        kind = KINDS.get(name)
        data: dict[str, Any] = {"record": name, "record_types": list(dict.fromkeys(kinds[:RECORDS_KEPT_MAX]))}
        if joined.host:
            data["host"] = joined.host
        if len(kinds) > 1:
            data["records"] = len(kinds)
        raw = "\n".join(joined.lines)
        if kind is None:
            return unknown(raw, joined.time_us, observed_us, self._source, data)
        body, paths, words = joined.bodies[0], None, None
        if len(kinds) > 1 or name == "EXECVE":
            fields, body, paths, words = _together(name, kinds, joined.bodies)
        else:
            fields = fields_of(body)
        if paths is not None and paths.names:
            data["paths"] = paths.names[:20]
        put_fields(fields, data)
        found = judge(name, kind, fields, body, data)
        command = " ".join(words or ()) or fields.get("cmd") or fields.get("proctitle", "").replace("\0", " ")
        if command:
            data["command"] = command
        if words:
            data["args"] = words[:ARGUMENTS_MAX]
        return self._finished(joined, found, paths, data, observed_us, raw, memory)

    def _finished(
        self,
        joined: _Joined,
        found: Found,
        paths: "_Paths | None",
        data: dict[str, Any],
        observed_us: int,
        raw: str,
        memory: Memory,
    ) -> Event:
        if found.voice is not None:
            key = f"{joined.host or ''}/audit/{data.get('pid', '')}/{found.type}"
            if repeats(memory, key, found.voice, joined.time_us):
                found = found._replace(type="authentication", severity=1, outcome=None)
        target = found.target
        if target is None and paths is not None and found.type in ("access", "access.denied"):
            target = paths.target()
        return Event(
            joined.time_us,
            observed_us,
            found.type,
            self._source,
            found.severity,
            found.src_ip,
            target or joined.host,
            found.outcome,
            found.message,
            f"audit/{joined.host or ''}/{data['ses']}" if "ses" in data else None,
            found.actor,
            self._raw(raw),
            data,
        )


def _together(name: str, kinds: list[str], bodies: list[str]) -> tuple[dict[str, str], str, "_Paths", list[str]]:
    """Return the fields of all records, the first of a name counts; the text of the one that names the event; files; words of a command."""
    fields: dict[str, str] = {}
    paths = _Paths()
    words: list[str] = []
    body = bodies[0]
    for record, text in zip(kinds, bodies, strict=False):
        read = fields_of(text)
        if record == name:
            body = text
        if record == "PATH":
            paths.add(read)
        elif record == "CWD":
            paths.folder = read.get("cwd", "")
        elif record == "EXECVE":
            words = [read[f"a{i}"] for i in range(min(100, len(read))) if f"a{i}" in read]
        fields = {**read, **fields}
    return fields, body, paths, words


class _Paths:
    """The files that a system call named, with the folders they lie in.

    The kernel writes the folder first (nametype=PARENT), then the file; a rename has two folders, and the file as it was and as it is.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.folder = ""
        self._kinds: list[str] = []

    def add(self, read: dict[str, str]) -> None:
        """Add a PATH record."""
        name = read.get("name", "")
        if name and name != "(null)":
            self.names.append(name)
            self._kinds.append(read.get("nametype", ""))

    def target(self) -> str | None:
        """Return the file that the call was about: what it made, else what it took away, else what it opened or ran."""
        for wanted, last in (("CREATE", True), ("DELETE", True), ("NORMAL", False), ("UNKNOWN", False)):
            at = [n for n, kind in enumerate(self._kinds) if kind == wanted]
            if at:
                return self._whole(at[-1] if last else at[0], last=last)
        if not self.names:
            return None
        # Old kernels do not say which is the folder.
        if len(self.names) > 1 and "" in self._kinds and self.names[1].startswith(self.names[0]):
            return self._whole(1, last=False)
        return self._whole(0, last=False)

    def _whole(self, at: int, *, last: bool) -> str:
        """The absolute name."""
        name = self.names[at]
        if name.startswith("/"):
            return name
        parents = [self.names[n] for n, kind in enumerate(self._kinds) if kind == "PARENT" and n != at]
        parent = (parents[-1] if last else parents[0]) if parents else ""
        if parent.startswith("/"):
            return normpath(join(parent, name.rpartition("/")[2]))
        return normpath(join(self.folder, name)) if self.folder.startswith("/") else name
