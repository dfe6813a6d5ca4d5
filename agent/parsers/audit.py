"""`audit`: auditd's audit.log. An event of the kernel is written as several records with one serial number; they are joined again.

Invariant: an event is given out once all its records are there: after EOE or PROCTITLE, or at once for a record that always comes alone.
Events keep the order of their first records, so one that is not whole holds back what came after it, but no longer than HELD_LINES_MAX
lines.
"""

# ruff: noqa: E501  # tables

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from agent.parsers.base import Context, Memory, ip_of, put_pid, unknown
from agent.wire.event import Event
from agent.wire.taxonomy import default_severity

HELD_LINES_MAX = 500
"""After so many lines an event counts as whole."""
ARGUMENTS_MAX = 32
RECORDS_KEPT_MAX = 32
"""Records of one event of which the fields are read; of what comes after only the number is kept."""

_RECORD = re.compile(r"(?:node=(\S+) )?type=(\S+) msg=audit\((\d{1,12})\.(\d{3}):(\d{1,20})\): ?(.*)", re.DOTALL)
_FIELD = re.compile(r"([a-zA-Z_][\w-]*)=(\"[^\"]*\"|'[^']*'|[^\s'\"]*)")
_HEX_FIELDS = frozenset(
    {"proctitle", "comm", "exe", "cmd", "acct", "name", "cwd", "key", "data", "path", "ocomm", "vm", "grp"}
)
_HEX = re.compile(r"(?:[0-9A-F]{2})+")
_NOBODY = frozenset({"4294967295", "-1", "unset"})

# record type → event type, message, what the outcome is where the record has none
_TYPES: dict[str, tuple[str, str]] = {
    "USER_AUTH": ("authentication.success", "sign-in checked"),
    "USER_LOGIN": ("authentication.session.opened", "sign-in"),
    "USER_START": ("authentication.session.opened", "session opened"),
    "USER_END": ("authentication.session.closed", "session closed"),
    "USER_LOGOUT": ("authentication.logout", "signed out"),
    "LOGIN": ("authentication", "session given to a user"),
    "USER_ACCT": ("authentication", "account checked"),
    "CRED_ACQ": ("authentication", "credentials acquired"),
    "CRED_DISP": ("authentication", "credentials given up"),
    "CRED_REFR": ("authentication", "credentials refreshed"),
    "USER_ERR": ("authentication", "error at sign-in"),
    "USER_CMD": ("access.privilege.used", "command run with another user's rights"),
    "USER_ROLE_CHANGE": ("access", "role changed"),
    "ADD_USER": ("account.created", "account created"),
    "DEL_USER": ("account.deleted", "account deleted"),
    "USER_MGMT": ("account.changed", "account changed"),
    "ACCT_LOCK": ("account.changed", "account locked"),
    "ACCT_UNLOCK": ("account.changed", "account unlocked"),
    "USER_CHAUTHTOK": ("account.password.changed", "password or account data changed"),
    "ADD_GROUP": ("account.group.changed", "group created"),
    "DEL_GROUP": ("account.group.changed", "group deleted"),
    "GRP_MGMT": ("account.group.changed", "group changed"),
    "GRP_CHAUTHTOK": ("account.group.changed", "group password changed"),
    "SERVICE_START": ("system.service.started", "service started"),
    "SERVICE_STOP": ("system.service.stopped", "service stopped"),
    "SYSTEM_BOOT": ("system.booted", "the computer starts"),
    "SYSTEM_SHUTDOWN": ("system.shutdown", "the computer stops"),
    "SYSTEM_RUNLEVEL": ("system", "run level changed"),
    "DAEMON_START": ("system.service.started", "the audit daemon started"),
    "DAEMON_END": ("security.logging.stopped", "the audit daemon stopped"),
    "DAEMON_ABORT": ("security.logging.stopped", "the audit daemon gave up"),
    "DAEMON_ROTATE": ("system", "the audit log was rotated"),
    "CONFIG_CHANGE": ("configuration.changed", "audit rules changed"),
    "NETFILTER_CFG": ("configuration.changed", "firewall changed"),
    "MAC_STATUS": ("configuration.changed", "mandatory access control switched"),
    "MAC_POLICY_LOAD": ("configuration.changed", "mandatory access rules loaded"),
    "KERN_MODULE": ("configuration.changed", "kernel module loaded"),
    "TIME_INJOFFSET": ("system.clock.stepped", "the clock was set"),
    "AVC": ("security.policy.violated", "a mandatory access rule refused something"),
    "USER_AVC": ("security.policy.violated", "a mandatory access rule refused something"),
    "APPARMOR_DENIED": ("security.policy.violated", "AppArmor refused something"),
    "SECCOMP": ("security.policy.violated", "a system call was refused"),
    "ANOM_ABEND": ("application.error", "program crashed"),
    "ANOM_PROMISCUOUS": ("network.scan", "a network card listens to everything"),
    "ANOM_LOGIN_FAILURES": ("authentication.lockout", "too many refused sign-ins"),
    "RESP_ACCT_LOCK": ("authentication.lockout", "account locked after refused sign-ins"),
    "RESP_ACCT_LOCK_TIMED": ("authentication.lockout", "account locked after refused sign-ins"),
    "EXECVE": ("system.process.started", "program run"),
    "SYSCALL": ("access", "watched system call"),
    "CRYPTO_KEY_USER": ("security.channel.opened", "key agreed"),
    "CRYPTO_SESSION": ("security.channel.opened", "cipher agreed"),
    "USYS_CONFIG": ("configuration.changed", "system configuration changed"),
    "TTY": ("access", "terminal input recorded"),
    "USER_TTY": ("access", "terminal input recorded"),
}
_OUTCOMES = {
    "success": "success",
    "yes": "success",
    "1": "success",
    "failed": "failure",
    "no": "failure",
    "0": "failure",
}
_FAILED = {
    "authentication.success": ("authentication.failure", "sign-in refused"),
    "authentication.session.opened": ("authentication", "sign-in refused"),
    "system.service.started": ("system.service.failed", "service could not be started"),
}
"""What an event is where its outcome is failure. USER_LOGIN follows the USER_AUTH that is already counted as the refused attempt."""
_BY_WEIGHT = ("AVC", "APPARMOR_DENIED", "SECCOMP", "ANOM_PROMISCUOUS", "KERN_MODULE", "NETFILTER_CFG", "CONFIG_CHANGE", "LOGIN", "MAC_POLICY_LOAD", "MAC_STATUS", "TIME_INJOFFSET", "EXECVE", "SYSCALL")  # fmt: skip
"""Which record names the event where there are several."""
_OF_MANY = frozenset({*_BY_WEIGHT, "PATH", "CWD", "PROCTITLE", "SOCKADDR", "EOE", "OBJ_PID", "BPRM_FCAPS", "IPC", "MMAP", "FD_PAIR", "INTEGRITY_RULE", "BPF", "URINGOP"})  # fmt: skip
_LAST = frozenset({"EOE", "PROCTITLE"})
_ALONE_THOUGH_KERNEL = frozenset({"ANOM_ABEND"})
_DATA = ("tty", "terminal", "ses", "key", "unit", "op", "success", "exit", "syscall", "comm", "exe", "hostname", "uid", "euid", "auid", "res", "reason", "audit_enabled", "operation", "profile")  # fmt: skip


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
        memory: Memory,  # noqa: ARG002  # what is not whole is fed again
        final: bool = False,
    ) -> tuple[list[Event], int]:
        order, unread = self._join(lines)
        end = len(lines) if final else self._whole(order, len(lines))
        events: list[tuple[int, Event]] = [
            (n, unknown(line, observed_us, observed_us, self._source)) for n, line in unread if n < end
        ]
        events += [(joined.first, self._event(joined, observed_us)) for joined in order if joined.last < end]
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

    def _event(self, joined: _Joined, observed_us: int) -> Event:
        kind = next((k for k in _BY_WEIGHT if k in joined.kinds), joined.kinds[0])
        known = _TYPES.get(kind)
        data: dict[str, Any] = {"record": kind, "record_types": list(dict.fromkeys(joined.kinds[:RECORDS_KEPT_MAX]))}
        if joined.host:
            data["host"] = joined.host
        if len(joined.kinds) > 1:
            data["records"] = len(joined.kinds)
        raw = "\n".join(joined.lines)
        if known is None:
            return unknown(raw, joined.time_us, observed_us, self._source, data)
        fields: dict[str, str] = {}
        paths: list[str] = []
        words: list[str] = []
        for record, body in zip(joined.kinds, joined.bodies, strict=False):
            read = _fields(body)
            if record == "PATH" and read.get("name"):
                paths.append(read["name"])
            elif record == "EXECVE":
                words = [read[f"a{i}"] for i in range(min(100, len(read))) if f"a{i}" in read]
            for name, value in read.items():
                fields.setdefault(name, value)
        return self._build(joined, known, fields, (paths, words), data, observed_us, raw)

    def _build(
        self,
        joined: _Joined,
        known: tuple[str, str],
        fields: dict[str, str],
        lists: tuple[list[str], list[str]],
        data: dict[str, Any],
        observed_us: int,
        raw: str,
    ) -> Event:
        type_, message = known
        paths, words = lists
        outcome = (
            "failure"
            if type_ == "security.policy.violated"
            else _OUTCOMES.get(fields.get("res", fields.get("success", "")))
        )
        if outcome == "failure":
            type_, message = _FAILED.get(type_, known)
        if fields.get("audit_enabled") == "0":
            type_, message = "security.logging.stopped", "auditing was switched off"
        for name in _DATA:
            value = fields.get(name)
            if value and value not in {"?", "(null)", "(none)", *_NOBODY}:
                data[name] = value
        put_pid(data, fields.get("pid", ""))
        if paths:
            data["paths"] = paths[:20]
        command = " ".join(words) or fields.get("cmd") or (fields.get("proctitle", "").replace("\0", " ") or None)
        if command:
            data["command"] = command
        if words:
            data["args"] = words[:ARGUMENTS_MAX]
        if "auid" in data:
            data["actor_uid"] = data.pop("auid")
        actor = fields.get("acct") or fields.get("AUID") or fields.get("id") or None
        src = fields.get("addr", "?")
        return Event(
            joined.time_us,
            observed_us,
            type_,
            self._source,
            default_severity(type_, outcome),
            ip_of(src),
            fields.get("unit") or (paths[0] if paths and type_ == "access" else None) or joined.host,
            outcome,
            message,
            f"audit/{joined.host or ''}/{data['ses']}" if "ses" in data else None,
            None if actor in {"?", "(unknown)", *_NOBODY} else actor,
            self._raw(raw),
            data,
        )


def _fields(body: str) -> dict[str, str]:
    """The fields of a record; those of a user message stand inside msg='…'. The enriched part after GS overrides nothing."""
    fields: dict[str, str] = {}
    for name, value in _FIELD.findall(body.replace("\x1d", " ")):
        if name == "msg" and value.startswith("'"):
            for inner, text in _FIELD.findall(value[1:-1]):
                fields.setdefault(inner, _decoded(inner, text))
        else:
            fields.setdefault(name, _decoded(name, value))
    return fields


def _decoded(name: str, value: str) -> str:
    """A value without its quotes; one with blanks or control characters was written in hex."""
    if value[:1] in {'"', "'"}:
        return value[1:-1]
    if (name in _HEX_FIELDS or (name[:1] == "a" and name[1:].isdecimal())) and len(value) > 1 and _HEX.fullmatch(value):
        if name[0] == "a" and len(value) < 8:  # noqa: PLR2004  # a bare number of a SYSCALL, not a word of an EXECVE
            return value
        return bytes.fromhex(value).decode("utf-8", "backslashreplace").replace("\0", " ").strip()
    return value
