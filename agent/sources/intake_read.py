"""What a program posted → events, or everything that is wrong with it.

A request is taken whole or not at all: with one bad event in it nothing is taken, so that the program can repair that one and send
the same request again without anything arriving twice. Two kinds of objects are understood, also side by side:

    an event        has `type`, and no field but those of the event contract (FIELDS). Judged strictly: what does not fit is named
                    with its path
    a log record    has `level`: what winston's HTTP transport posts (pino and bunyan write the same). Read by the parser of
                    winston's files; it is never refused, since its program cannot do anything about it.
                    `{"method": "collect", "params": …}`, as older winstons post it, is the record in `params`
"""

import codecs
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import tzinfo
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import msgspec

from agent.component import now_us
from agent.health_http import Refused
from agent.parsers.base import Clock, Context, ip_of
from agent.parsers.json import JsonConfig, WinstonParser, mended
from agent.parsers.records import DEPTH_MAX, KEYS_MAX, OURS_ALONE, OUTCOMES, SEVERITY_OF_LEVEL, set_apart
from agent.wire.event import EVENT_BYTES_MAX, Event
from agent.wire.taxonomy import TYPE_LENGTH_MAX, TYPE_PATTERN, is_collectors

EVENTS_MAX = 10_000
"""Events of a request at the most: beyond it, 413."""
ERRORS_MAX = 100
"""Errors that a refusal names; of the others only the number."""
SHOWN_CHARS = 80

TEXT_CHARS_MAX = {"message": 8_000, "target": 1_000, "actor": 1_000, "correlation_id": 256, "raw": 65_536}
SEVERITIES = {
    **SEVERITY_OF_LEVEL,
    "informational": 1, "low": 2, "medium": 3, "high": 4, "critical": 5, "fatal": 6,
}  # fmt: skip
"""Words for a severity: ours, and those of log levels."""
_SEVERITY_MAX = 6
_GAP = "collection.gap"
"""The one type of our own that a program may use: it says what the program itself had to drop."""
_TIME_US_MAX = 253_402_300_800_000_000
"""The end of the year 9999."""
_INTEGER_MIN, _INTEGER_MAX = -(2**63), 2**64
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_LONG = b"0" * 19
_CONTAINERS = frozenset({dict, list})

_decoder = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()


class Posted(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An event as it was posted, not judged yet."""

    type: Any = None
    time: Any = None
    severity: Any = None
    outcome: Any = None
    src_ip: Any = None
    target: Any = None
    message: Any = None
    correlation_id: Any = None
    actor: Any = None
    raw: Any = None
    data: Any = None


FIELDS = frozenset(Posted.__struct_fields__)
_one, _many = msgspec.json.Decoder(Posted), msgspec.json.Decoder(list[Posted])


class Wrong(msgspec.Struct, frozen=True):
    """An error: of which object (from 0), at which path, and what."""

    index: int
    path: str
    detail: str


def objects_of(body: bytes, *, lines: bool) -> tuple[Sequence[Any], bool]:
    """The objects of a body, and whether it is one object that stands alone. Raises Refused (400) for what is no JSON.

    `lines`: NDJSON. Where it is only said to be JSON, one object a line is understood too. Where all are events by their keys, they are
    given as `Posted`, which takes a fraction of the time.
    """
    try:
        return _objects_of(body, lines=lines)
    except Refused:
        whole = mended(body) if b"\\u" in body else body
        if whole == body:
            raise
    return _objects_of(whole, lines=lines)


def _objects_of(body: bytes, *, lines: bool) -> tuple[Sequence[Any], bool]:
    body = body.removeprefix(codecs.BOM_UTF8)
    if not body.strip():
        raise Refused(HTTPStatus.BAD_REQUEST, "the body is empty")
    with suppress(ValueError, RecursionError):
        if lines:
            return _one.decode_lines(body), False
        if body.lstrip()[:1] == b"[":
            return _many.decode(body), False
    if lines:
        return _lines(body), False
    try:
        value = _decoder.decode(body)
    except (ValueError, RecursionError) as error:
        if b"\n" in body.strip() and _is_json(body.lstrip().partition(b"\n")[0]):
            return _objects_of(body, lines=True)
        raise Refused(HTTPStatus.BAD_REQUEST, f"the body is no JSON: {_said(error)}") from None
    if isinstance(value, dict) and value.get("method") == "collect" and isinstance(value.get("params"), dict | list):
        value = value["params"]
    return (value, False) if isinstance(value, list) else ([value], True)


def _is_json(line: bytes) -> bool:
    try:
        _decoder.decode(line)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(body: bytes) -> list[Any]:
    try:
        return _decoder.decode_lines(body)
    except (ValueError, RecursionError):
        pass
    # It is known that a line is no JSON: which one?
    for number, line in enumerate(body.split(b"\n"), 1):
        try:
            if line.strip():
                _decoder.decode(line)
        except (ValueError, RecursionError) as error:
            raise Refused(HTTPStatus.BAD_REQUEST, f"line {number} is no JSON: {_said(error)}") from None
    raise Refused(HTTPStatus.BAD_REQUEST, "the body is no NDJSON: write one object a line")


def _said(error: Exception) -> str:
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error)[:200]


def _is_special(body: bytes) -> bool:
    """Whether there may be a NUL in it, or a number of more than 64 bits: every value of others can be stored as it is."""
    return b"\\u0000" in body or _LONG in body.translate(_DIGITS)


@lru_cache(maxsize=4_096)
def _is_type(text: str) -> bool:
    return len(text) <= TYPE_LENGTH_MAX and TYPE_PATTERN.fullmatch(text) is not None


@dataclass(slots=True)
class Reader:
    """Reads the requests of one source. `zone` is for times that name none."""

    source: str
    zone: tzinfo | None = None
    message_is_personal: bool = True
    _clock: Clock = field(init=False)
    _winston: WinstonParser = field(init=False)

    def __post_init__(self) -> None:
        self._clock = Clock(self.zone)
        self._winston = WinstonParser(
            JsonConfig(message_is_personal=self.message_is_personal), Context(self.source, zone=self.zone)
        )

    def events(
        self, body: bytes, *, lines: bool, program: str = "", reserved: Container[Any] = frozenset()
    ) -> list[Event]:
        """The events of a body, `program` beside each. Raises Refused: 400, 413, 422.

        Without a program, one of the `reserved` names that the body gives itself goes to `data.program_claimed`.
        """
        found, alone = objects_of(body, lines=lines)
        if len(found) > EVENTS_MAX:
            text = f"{len(found)} events in one request; send at most {EVENTS_MAX}"
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text, events_max=EVENTS_MAX)
        judged = _Judged(self._clock, self.source, alone=alone, special=_is_special(body))
        measured = len(body) > EVENT_BYTES_MAX // 2
        events: list[Event] = []
        for index, each in enumerate(found):
            if isinstance(each, dict) and "level" in each:
                event: Event | None = self._winston.event(each, "", judged.observed_us)
            else:
                event = judged.event(each, index)
                if measured and event is not None:
                    judged.measure(event, index)
            if event is not None:
                if program:
                    event.data["program"] = program
                elif isinstance(claimed := event.data.get("program"), str) and claimed in reserved:
                    event.data["program_claimed"] = event.data.pop("program")
                events.append(event)
        judged.refuse()
        return events


class _Judged:
    """The objects of one request, each judged by itself, with what is wrong in any of them."""

    def __init__(self, clock: Clock, source: str, *, alone: bool, special: bool) -> None:
        self.observed_us = now_us()
        self._clock = clock
        self._source = source
        self._alone = alone
        self._special = special
        self._wrong: list[Wrong] = []
        self._count = 0
        self._index = 0

    def refuse(self) -> None:
        """Raise Refused (422) where anything is wrong."""
        if not self._count:
            return
        more = self._count - len(self._wrong)
        text = f"{self._count} error{'s' * (self._count != 1)}; nothing of this request was taken"
        errors = [msgspec.to_builtins(each) for each in self._wrong]
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, text, errors=errors, errors_left_out=more)

    def event(self, value: Any, index: int) -> Event | None:
        """The event of an object; None where something is wrong with it."""
        self._index, before = index, self._count
        if not isinstance(value, Posted):
            if not isinstance(value, dict):
                self._say("", f"is {_kind(value)}, and should be an object")
                return None
            for name in value.keys() - FIELDS:
                self._say(name[:SHOWN_CHARS], "is no field of an event; what is a program's own goes into data")
            value = Posted(**{name: each for name, each in value.items() if name in FIELDS})
        event = self._made(value)
        return event if self._count == before else None

    def _made(self, posted: Posted) -> Event:
        type_, time, severity, outcome = posted.type, posted.time, posted.severity, posted.outcome
        if (
            type(type_) is not str
            or not _is_type(type_)
            or type_.partition(".")[0] in OURS_ALONE
            or is_collectors(type_)
        ):
            type_ = self._type(type_)
        data = {} if posted.data is None else self._data(posted.data)
        if type_ == _GAP:
            self._gap(data)
        correlation = posted.correlation_id
        if type(correlation) is int and _INTEGER_MIN <= correlation < _INTEGER_MAX:
            correlation = str(correlation)
        text = self._text
        return Event(
            self.observed_us if time is None else self._time(time),
            self.observed_us,
            type_,
            self._source,
            # 0: derived from type and outcome.
            0 if severity is None else self._severity(severity),
            None if posted.src_ip is None else self._ip(posted.src_ip),
            None if posted.target is None else text("target", posted.target),
            None
            if outcome is None
            else OUTCOMES.get(outcome)
            if type(outcome) is str and outcome in OUTCOMES
            else self._outcome(outcome),
            None if posted.message is None else text("message", posted.message),
            None if correlation is None else text("correlation_id", correlation),
            None if posted.actor is None else text("actor", posted.actor),
            None if posted.raw is None else text("raw", posted.raw),
            data,
        )

    def measure(self, event: Event, index: int) -> None:
        """Whether it fits."""
        size = len(_encoder.encode(event))
        if size > EVENT_BYTES_MAX:
            self._index = index
            self._say("", f"has {size} bytes, and may have {EVENT_BYTES_MAX}")

    def _say(self, path: str, detail: str) -> None:
        self._count += 1
        if len(self._wrong) < ERRORS_MAX:
            place = "" if self._alone else f"[{self._index}]"
            self._wrong.append(Wrong(self._index, f"{place}.{path}".strip(".") if path else place, detail))

    def _type(self, value: Any) -> str:
        if value is None:
            self._say("type", "is missing; write a dotted name like 'application.request'")
        elif not isinstance(value, str) or not _is_type(value):
            self._say("type", f"{_shown(value)} is no event type; write a dotted name like 'application.request'")
        elif is_collectors(value):
            self._say("type", f"{value!r} is reserved for the collector; use a type of the program's own")
        elif value != _GAP:
            self._say("type", f"{value!r} is for the agent alone to say; use a type of the program's own")
        return _GAP if value == _GAP else "custom"

    def _time(self, value: Any) -> int:
        time_us = self._clock.any(value)
        if time_us is None or not 0 < time_us < _TIME_US_MAX:
            self._say("time", f"{_shown(value)} is no time; write ISO 8601, or seconds, ms, µs or ns since 1970")
            return 0
        return time_us

    def _severity(self, value: Any) -> int:
        found = SEVERITIES.get(value.strip().lower(), 0) if isinstance(value, str) else value
        if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found <= _SEVERITY_MAX:
            words = "informational, low, medium, high, critical, fatal"
            self._say("severity", f"{_shown(value)} is no severity; write 1 to {_SEVERITY_MAX}, or one of {words}")
            return 1
        return found

    def _outcome(self, value: Any) -> str | None:
        found = OUTCOMES.get(value.strip().lower()) if isinstance(value, str) else None
        if found is None:
            self._say("outcome", f"{_shown(value)} is no outcome; write 'success' or 'failure'")
        return found

    def _ip(self, value: Any) -> str | None:
        found = ip_of(value) if isinstance(value, str) else None
        if found is None and value != "":
            self._say("src_ip", f"{_shown(value)} is no IP address; a host's name goes into data.src_host")
        return found

    def _text(self, name: str, value: Any) -> str | None:
        if not isinstance(value, str):
            self._say(name, f"is {_kind(value)}, and should be text")
        elif len(value) > TEXT_CHARS_MAX[name]:
            self._say(name, f"has {len(value)} characters, and may have {TEXT_CHARS_MAX[name]}")
        elif self._special and "\0" in value:
            self._say(name, "holds a NUL character")
        else:
            return value
        return None

    def _data(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._say("data", f"is {_kind(value)}, and should be an object")
            return {}
        if len(value) > KEYS_MAX:
            self._say("data", f"has {len(value)} keys, and may have {KEYS_MAX}")
            return {}
        if not self._special and _CONTAINERS.isdisjoint(map(type, value.values())):
            return value
        before = self._count
        self._look(value, "data", 0)
        return set_apart(value) if self._count == before else {}

    def _look(self, value: Any, path: str, depth: int) -> None:
        """Whether it can be stored as it is: not too deep, no NUL, no number that no computer's word holds."""
        inner: Iterable[tuple[str, Any]] = ()
        if isinstance(value, dict):
            if self._special and any("\0" in key for key in value):
                self._say(path, "a key of it holds a NUL character")
            inner = ((f".{key[:SHOWN_CHARS]}", each) for key, each in value.items())
        elif isinstance(value, list):
            inner = ((f"[{n}]", each) for n, each in enumerate(value))
        elif isinstance(value, str) and "\0" in value:
            self._say(path, "holds a NUL character")
        elif isinstance(value, int) and not _INTEGER_MIN <= value < _INTEGER_MAX:
            self._say(path, "is a number of more than 64 bits; write it as text")
        for name, each in inner:
            if depth >= DEPTH_MAX:
                self._say(path, f"is nested deeper than {DEPTH_MAX} levels")
                return
            if self._special or isinstance(each, dict | list):
                self._look(each, path + name, depth + 1)

    def _gap(self, data: Mapping[str, Any]) -> None:
        lost = data.get("events")
        if not isinstance(data.get("reason"), str):
            self._say("data.reason", "is missing; a gap says why something was lost")
        if lost is not None and (not isinstance(lost, int) or isinstance(lost, bool) or lost < 0):
            self._say("data.events", f"{_shown(lost)} is no number of events; leave it out where it is not known")


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool) else _kind(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"


_KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "null")
