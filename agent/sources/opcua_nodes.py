"""From a monitored item's notification to an event: node ids as people write them, values as JSON, times that mean something.

A node is configured by namespace URI and identifier, `nsu=http://acme/press;s=Spindle.Temp`, since a namespace's index may differ
after every restart of a server; it is resolved anew for each session. What a notification carries is kept: raw status code, source
and server time. A time that is a sentinel (1601, 1970, 9999) is no time and is refused.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, is_dataclass
from dataclasses import fields as fields_of
from datetime import UTC, datetime, timedelta
from enum import Enum
from math import isfinite
from typing import Annotated, Any, Literal
from uuid import UUID

from annotated_types import Ge, Le

from agent.sources.opcua_decode import Structure
from agent.sources.opcua_private import Change, ua
from agent.sources.signals import ConfigSignal, check_signal
from agent.wire.event import Event

TEXT_CHARS_MAX = 4_096
"""A longer text value is cut, and `value_chars` says how long it was."""
ITEMS_MAX = 256
"""A longer array value is cut, and `value_items` says how many there were."""
DEPTH_MAX = 4

OVERFLOW = 0x480
"""InfoType DataValue with the overflow bit: the server's queue of this item was full and values are missing before this one."""

Role = Literal["reading", "state", "counter", "setpoint", "mode"]

TYPES: dict[str, str] = {
    "reading": "equipment.reading",
    "state": "equipment.state.changed",
    "counter": "equipment.counter",
    "setpoint": "configuration.setpoint.changed",
    "mode": "configuration.mode.changed",
}
REMEMBERED_ROLES = frozenset({"state", "setpoint", "mode"})
"""Roles whose last value goes into the cursor, so that a change while the agent was away is an event."""

_NODE = re.compile(r"(?:(?P<ns>ns=\d{1,5}|nsu=[^;]+);)?(?P<kind>[isgb])=(?P<id>.+)", re.DOTALL)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TIME_MIN, _TIME_MAX = datetime(1971, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigNode(ConfigSignal):
    """One node to watch. What is left out is as the source has it."""

    node: str
    name: str | None = None
    role: Role = "reading"
    unit: str | None = None
    sampling_interval_ms: Annotated[float, Ge(0), Le(86_400_000)] | None = None
    queue_size: Annotated[int, Ge(1), Le(100_000)] | None = None
    deadband: Annotated[float, Ge(0)] = 0.0
    deadband_type: Literal["absolute", "percent"] = "absolute"

    def __post_init__(self) -> None:
        check_node(self.node)
        if self.deadband_type == "percent" and self.deadband > 100:  # noqa: PLR2004 - percent
            raise ValueError(f"deadband: {self.deadband:g} percent of a range is more than all of it; give 0 to 100")
        check_signal(self, self.role, numeric=True)


def check_node(text: str) -> None:
    """Raises ValueError with a sentence where a text is not a node id."""
    found = _NODE.fullmatch(text)
    good = found is not None
    if found is not None and found["kind"] == "i":
        good = found["id"].isdecimal() and int(found["id"]) < 2**32
    elif found is not None and found["kind"] == "g":
        good = re.fullmatch(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", found["id"]) is not None
    if not good:
        raise ValueError(
            f"node: {text!r} is not a node id; write nsu=NAMESPACE-URI;s=NAME (or i=NUMBER, g=GUID, b=BASE64), or ns=INDEX;…"
        )


def default_name(text: str) -> str:
    """What a node is called where the configuration does not say: its identifier."""
    found = _NODE.fullmatch(text)
    return found["id"] if found is not None else text


def resolve(text: str, namespaces: Sequence[str]) -> Any:
    """The NodeId in this session, or None where the server has no such namespace."""
    found = _NODE.fullmatch(text)
    if found is None:
        return None
    space = found["ns"] or "ns=0"
    if space.startswith("nsu="):
        if space[4:] not in namespaces:
            return None
        space = f"ns={namespaces.index(space[4:])}"
    try:
        return ua.NodeId.from_string(f"{space};{found['kind']}={found['id']}")
    except (ua.UaError, ValueError):
        return None


def as_text(node_id: Any, namespaces: Sequence[str]) -> str:
    """A NodeId with its namespace's URI, so that it holds beyond this session."""
    text: str = (
        ua.NodeId(node_id.Identifier, 0, node_id.NodeIdType).to_string()
        if node_id.NamespaceIndex
        else node_id.to_string()
    )
    if not node_id.NamespaceIndex:
        return text
    text = text.rpartition("ns=0;")[2]
    index = node_id.NamespaceIndex
    return f"nsu={namespaces[index]};{text}" if index < len(namespaces) else f"ns={index};{text}"


def time_us(moment: datetime | None) -> int | None:
    """µs since the epoch; None for no time and for a sentinel."""
    if moment is None or not _TIME_MIN < moment < _TIME_MAX:
        return None
    return (moment - _EPOCH) // _MICROSECOND


def status_name(code: int) -> str:
    """The symbolic name of a status code, without its info bits."""
    name = _STATUS_NAMES.get(code & 0xFFFF0000)
    if name is None:
        name = ua.StatusCode(code & 0xFFFF0000).name
        if len(_STATUS_NAMES) < 1_000:  # noqa: PLR2004 - there are some 250; a hostile server could send four thousand million
            _STATUS_NAMES[code & 0xFFFF0000] = name
    return name


_STATUS_NAMES: dict[int, str] = {0: "Good"}


def severity_of(server: Any) -> int:
    """Our severity for OPC UA's 1 to 1000; 0, for "derive it", where the server gives none: 0 is outside the standard's range."""
    if not isinstance(server, int) or server <= 0:
        return 0
    bands = ((100, 1), (333, 2), (666, 3))
    return next((ours for limit, ours in bands if server <= limit), 4)


def plain(value: Any, depth: int = 0) -> Any:  # noqa: PLR0911 - one case a kind of value
    """A value as JSON can carry it, bounded."""
    kind = type(value)
    if kind is float:
        return value if isfinite(value) else str(value)
    if value is None or kind in (bool, int):
        return value
    if isinstance(value, str):
        # A controller's text fills its variable up with NULs, which PostgreSQL does not take.
        text = value.rstrip("\0")[:TEXT_CHARS_MAX]
        # asyncua keeps bytes that are no UTF-8 as lone surrogates, which JSON cannot carry.
        return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return plain(float(value))
    if isinstance(value, bytes):
        return value[: TEXT_CHARS_MAX // 2].hex()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    return _composed(value, depth)


def _composed(value: Any, depth: int) -> Any:
    for kinds, text in _NAMED:
        if isinstance(value, kinds):
            return plain(text(value), depth)
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value[:ITEMS_MAX]] if depth < DEPTH_MAX else f"{len(value)} items"
    if is_dataclass(value):
        value = {each.name: getattr(value, each.name) for each in fields_of(value) if each.name != "Encoding"}
    if not isinstance(value, dict):
        return plain(repr(value))
    if depth >= DEPTH_MAX:
        return f"{len(value)} fields"
    return {str(name): plain(each, depth + 1) for name, each in list(value.items())[:ITEMS_MAX]}


_NAMED: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (ua.LocalizedText, lambda value: value.Text),
    (ua.NodeId, lambda value: value.to_string()),
    (ua.QualifiedName, lambda value: value.Name),
    (ua.StatusCode, lambda value: status_name(value.value)),
    (ua.Variant | ua.DataValue, lambda value: value.Value),
    (
        Structure,
        lambda value: {"type": value.type_id.to_string(), "bytes": len(value.body), "body": value.body},
    ),
)
"""OPC UA's own types, and what of them is stored."""


@dataclass(slots=True, eq=False)
class Item:
    """One monitored item of the present plan."""

    config: ConfigNode
    handle: int
    name: str
    node_id: Any = None
    queue_size: int = 1
    watched: bool = False
    """The server has taken it."""
    missing: bool = False
    """The server does not have it, or had it and has deleted it."""
    fresh: bool = True
    """Its first notification is the present value, not a change."""
    seen: tuple[int | None, Any, int] | None = None
    """Source time, value and status of the last notification in this process. The same once more is no news: a server repeats its
    present value in a new subscription, and node-opcua also after a transfer."""
    filtered_here: bool = False
    """The server cannot filter it: an absolute deadband is applied to what it sends."""
    passed: tuple[int, float] | None = None
    """Status and value that last passed the deadband applied here."""
    last: Any = None
    """The last value in this process, in a tuple; None before the first. The cursor holds so many only."""
    range_asked: bool = False
    """The server was asked for its range in this session."""
    constants: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.constants = {"node": self.config.node, "name": self.name}
        if self.config.unit:
            self.constants["unit"] = self.config.unit
        self.constants |= self.config.signal_data()


def reading(item: Item, source: str, change: Change, now_us: int, known: dict[str, Any]) -> Event | None:
    """The event of one notification; None where it brings nothing new. `known` holds the last value of each remembered node."""
    _, raw, code, source_us, server_us = change
    kind: Any = type(raw)
    value = raw if kind is int or kind is bool or (kind is float and isfinite(raw)) else plain(raw)
    initial, item.fresh = item.fresh, False
    if item.seen == (source_us, value, code) and (initial or source_us is not None):
        return None
    item.seen = (source_us, value, code)
    data = {**item.constants, "value": value, "status": _STATUS_NAMES.get(code) or status_name(code)}
    if code:
        data["status_code"] = code
    if server_us is not None:
        data["server_time_us"] = server_us
    if source_us is None:
        data["time_from"] = "server" if server_us is not None else "agent"
    if kind is str or kind is bytes or kind is list:
        _note_cut(data, raw)
    if initial:
        data["initial"] = True
    role = item.config.role
    event_type = TYPES[role] if not code and role not in REMEMBERED_ROLES else _type(item, code, data, known)
    if event_type is None:
        return None
    at = source_us or server_us or now_us
    if not code & 0x80000000 and "previous" not in data:
        return Event(at, now_us, event_type, source, 0, None, item.name, data=data)
    message = f"{role} {item.name} changed" if "previous" in data else None
    outcome = "failure" if code & 0x80000000 else None
    return Event(at, now_us, event_type, source, target=item.name, outcome=outcome, message=message, data=data)


def _note_cut(data: dict[str, Any], raw: Any) -> None:
    if isinstance(raw, list):
        if len(raw) > ITEMS_MAX:
            data["value_items"] = len(raw)
    elif len(raw) > TEXT_CHARS_MAX // (2 if isinstance(raw, bytes) else 1):
        data["value_chars"] = len(raw)


def _type(item: Item, code: int, data: dict[str, Any], known: dict[str, Any]) -> str | None:
    """The type by role and by what is known; None where nothing changed.

    A setpoint seen for the first time, or with a bad status, is a reading: nobody changed anything.
    """
    role = item.config.role
    if code & 0x80000000:
        data["role"] = role
        return "equipment.reading"
    if role not in REMEMBERED_ROLES:
        return TYPES[role]
    value, before = data["value"], known.get(item.name, item.last[0] if item.last else _UNKNOWN)
    item.last = (value,)
    if before is not _UNKNOWN and before == value and type(before) is type(value):
        return None
    known[item.name] = value
    if before is not _UNKNOWN:
        data["previous"] = before
        if data.pop("initial", False):
            data["while_away"] = True
        return TYPES[role]
    if role == "state":
        return TYPES[role]
    data["role"] = role
    return "equipment.reading"


_UNKNOWN = object()
