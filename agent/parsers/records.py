"""A record of named values (a JSON line, logfmt, a CSV row, a regular expression's groups) → an event.

Which key means what is found by its usual names, or told by the options. The text that a program wrote may name people, and nobody can
tell from outside, so it is `raw`, which is personal, unless the options say `message_is_personal = false`. Personal keys that lie
deeper in the record are lifted to `data.person`, for only the outermost keys of `data` are looked at when personal data is set apart.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.parsers.base import Clock, Context, Memory, ip_of
from agent.wire.event import Event
from agent.wire.taxonomy import PERSONAL_KEYS, TAXONOMY, TYPE_LENGTH_MAX, TYPE_PATTERN, default_severity, is_collectors

KEYS_MAX = 200
"""Keys of a record that are kept; of the others only the number, in `keys_left_out`."""
DEPTH_MAX = 12
"""What lies deeper is kept as text."""

_TIMES = (
    "@timestamp",
    "timestamp",
    "time",
    "ts",
    "datetime",
    "date",
    "eventTime",
    "asctime",
    "t",
    "Timestamp",
    "DateTime",
    "Time",
    "TIMESTAMP",
)
_LEVELS = ("level", "severity", "levelname", "log.level", "lvl", "loglevel", "Level", "severity_text")
_MESSAGES = ("message", "msg", "text", "@message", "short_message", "Message", "body")
_CORRELATIONS = (
    "correlationId",
    "correlation_id",
    "correlationID",
    "requestId",
    "request_id",
    "reqId",
    "traceId",
    "trace_id",
    "x-request-id",
)
_SOURCES = (
    "src_ip",
    "clientIp",
    "client_ip",
    "remote_ip",
    "remoteAddress",
    "remote_addr",
    "ip",
    "client",
    "sourceIp",
    "remote",
)
_ACTORS = ("actor", "user", "username", "userName", "user_name", "login")
_TYPES = ("event_type", "eventType", "type", "event")
OUTCOMES = {
    "success": "success", "succeeded": "success", "ok": "success", "pass": "success", "passed": "success", "true": "success",
    "failure": "failure", "failed": "failure", "fail": "failure", "error": "failure", "denied": "failure", "false": "failure",
}  # fmt: skip
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
OURS_ALONE = ("alert", "agent", "collection")
"""Types that a log must not claim for itself."""

SEVERITY_OF_LEVEL = {
    "emerg": 5, "emergency": 5, "panic": 5, "fatal": 5, "alert": 5, "crit": 4, "critical": 4, "error": 3, "err": 3, "severe": 3,
    "failure": 3, "warn": 2, "warning": 2, "notice": 1, "info": 1, "information": 1, "informational": 1, "http": 1, "verbose": 1,
    "debug": 1, "trace": 1, "silly": 1, "fine": 1,
}  # fmt: skip


_SYSLOG = (5, 5, 4, 3, 2, 1, 1, 1, 1, 1)
_SYSLOG_MAX = 9
_PINO = (1, 1, 1, 1, 2, 3, 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOptions:
    """How records are understood. Empty: by the usual names.

    type: the event type where the record names none that the taxonomy knows.
    fields: key of the record → the event's field (time, type, level, message, correlation_id, src_ip, target, outcome, actor),
        or a new name in `data`.
    drop: keys left out.
    """

    type: str = "application"
    time_field: str = ""
    level_field: str = ""
    message_field: str = ""
    message_is_personal: bool = True
    fields: dict[str, str] = field(default_factory=dict)
    drop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.type) > TYPE_LENGTH_MAX or not TYPE_PATTERN.fullmatch(self.type):
            raise ValueError(f"type: {self.type!r} is no event type; write a dotted name like 'application.request'")
        if is_collectors(self.type):
            raise ValueError(
                f"type: {self.type!r} is reserved for the collector; write another, like 'application.request'"
            )


def severity_of(level: Any) -> int | None:
    """Our severity of a level, by name, or by number as pino and syslog count."""
    if isinstance(level, int) and not isinstance(level, bool):
        return _PINO[min(level // 10, 6)] if level > _SYSLOG_MAX else _SYSLOG[max(level, 0)]
    if isinstance(level, str):
        return SEVERITY_OF_LEVEL.get(_ANSI.sub("", level).strip().lower())
    return None


def lift_personal(value: Any, path: str, found: dict[str, Any], depth: int = 0) -> Any:
    """The value without the personal keys inside it, which go to `found` under their path."""
    if depth > DEPTH_MAX:
        return str(value)[:1_000]
    if isinstance(value, dict):
        kept: dict[str, Any] = {}
        for key, inner in value.items():
            if key in PERSONAL_KEYS:
                found[f"{path}.{key}"] = inner
            else:
                kept[str(key)] = lift_personal(inner, f"{path}.{key}", found, depth + 1)
        return kept
    if isinstance(value, list):
        return [lift_personal(inner, f"{path}.{n}", found, depth + 1) for n, inner in enumerate(value)]
    return value


def set_apart(data: dict[str, Any]) -> dict[str, Any]:
    """The data of an event, with the personal keys that lie deeper in it lifted to `person`."""
    person: dict[str, Any] = {}
    kept = {
        key: lift_personal(value, key, person) if isinstance(value, dict | list) and key not in PERSONAL_KEYS else value
        for key, value in data.items()
    }
    if person:
        named = kept.get("person", {})
        kept["person"] = {**(named if isinstance(named, dict) else {"person": named}), **person}
    return kept


def _reserved(type_: str) -> bool:
    return type_.partition(".")[0] in OURS_ALONE or is_collectors(type_)


class Records:
    """Records → events."""

    def __init__(self, options: RecordOptions, context: Context) -> None:
        self._options = options
        self._source = context.source
        self._raw = context.raw
        self._clock = Clock(context.zone)
        to: dict[str, list[str]] = {}
        for key, name in options.fields.items():
            to.setdefault(name, []).append(key)
        named = {"time": options.time_field, "level": options.level_field, "message": options.message_field}
        usual = {
            "time": _TIMES, "level": _LEVELS, "message": _MESSAGES, "correlation_id": _CORRELATIONS, "src_ip": _SOURCES, "actor": _ACTORS,
            "type": _TYPES, "outcome": ("outcome", "result"), "target": ("target",),
        }  # fmt: skip
        self._names: dict[str, tuple[str, ...]] = {
            name: (*((named[name],) if named.get(name) else ()), *to.get(name, ()), *keys)
            for name, keys in usual.items()
        }
        self._renamed = {key: name for key, name in options.fields.items() if name not in usual}
        self._drop = frozenset(options.drop)

    def event(self, record: Mapping[str, Any], line: str, observed_us: int) -> Event:
        """The event of a record."""
        data = {str(key): value for key, value in record.items() if key not in self._drop}
        time_us = self._clock.any(self._take(data, "time", self._clock.any))
        level = self._take(data, "level", severity_of)
        type_ = self._type(data, level)
        outcome = OUTCOMES.get(str(self._take(data, "outcome", lambda value: OUTCOMES.get(str(value).lower()))).lower())
        severity = max(severity_of(level) or 0, default_severity(type_, outcome))
        text = self._take(data, "message", lambda value: value if isinstance(value, str) else None)
        src_ip = ip_of(str(self._take(data, "src_ip", lambda value: ip_of(value) if isinstance(value, str) else None)))
        correlation = self._take(data, "correlation_id", lambda value: value if isinstance(value, str | int) else None)
        actor = self._take(data, "actor", lambda value: value if isinstance(value, str) else None)
        target = self._take(data, "target", lambda value: value if isinstance(value, str) else None)
        if level is not None:
            data["level"] = _ANSI.sub("", level) if isinstance(level, str) else level
        personal = self._options.message_is_personal
        return Event(
            time_us if time_us is not None else observed_us,
            observed_us,
            type_,
            self._source,
            severity,
            src_ip,
            target,
            outcome,
            None if personal else text,
            None if correlation is None else str(correlation)[:256],
            actor,
            self._raw(line, text if personal else None),
            self._data(data),
        )

    def _take(self, data: dict[str, Any], name: str, valid: Any) -> Any:
        """Take the first value out that is of use for the field."""
        for key in self._names[name]:
            if key in data and valid(data[key]) is not None:
                return data.pop(key)
        return None

    def _type(self, data: dict[str, Any], level: Any) -> str:
        for key in self._names["type"]:
            value = data.get(key)
            if isinstance(value, str) and value in TAXONOMY and not _reserved(value):
                return str(data.pop(key))
        if self._options.type == "application" and (severity_of(level) or 0) >= SEVERITY_OF_LEVEL["error"]:
            return "application.error"
        return self._options.type

    def _data(self, data: dict[str, Any]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for n, (key, value) in enumerate(data.items()):
            if n >= KEYS_MAX:
                kept["keys_left_out"] = len(data) - KEYS_MAX
                break
            kept[self._renamed.get(key, key)] = value
        return set_apart(kept)


class LineParser(ABC):
    """A parser for which each line is a record of its own: what it reads of one is in `one`."""

    def __init__(self, config: RecordOptions, context: Context) -> None:
        self._records = Records(config, context)
        self._source = context.source

    def parse(
        self,
        lines: Sequence[str],
        *,
        observed_us: int,
        reference_us: int,  # noqa: ARG002  # times have their year,
        memory: Memory,  # noqa: ARG002  # a line stands alone,
        final: bool = False,  # noqa: ARG002  # and is whole
    ) -> tuple[list[Event], int]:
        """See Parser."""
        return [self.one(line, observed_us) for line in lines if line.strip()], len(lines)

    @abstractmethod
    def one(self, line: str, observed_us: int) -> Event:
        """The event of a line."""
