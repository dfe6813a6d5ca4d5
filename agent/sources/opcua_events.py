"""OPC UA events as ours: audits, system events, alarms and conditions.

One monitored item on the Server object brings them all, without a WHERE clause: servers evaluate OfType differently (asyncua's takes no
subtypes), and a filter that is silently wrong is the one failure nobody notices. What was not asked for is dropped here and counted.
Fields are selected by name on BaseEventType, which Part 4 lets a server answer for every type; a field an event does not have is null.

A type is classified by its nearest known ancestor: a vendor's subtype is looked up once by browsing, and remembered for the session. Types
that are neither audits nor conditions are stored where the configuration names them, or an ancestor of theirs, in `events`.

Severities: both large open stacks send 0 on audits, which is no severity; the taxonomy's is taken then. Else bands of 1 to 1000, and for
audits never less than the taxonomy's: a server that calls a refused login 1 does not make it harmless.

Never stored: arguments of method calls (AddUser and ChangePassword carry passwords in them), unless `audit_arguments` asks for it.
"""

import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from agent.component import Report
from agent.sources.opcua_alarms import Alarms
from agent.sources.opcua_connect import Connection
from agent.sources.opcua_nodes import as_text, check_node, plain, resolve, severity_of, status_name, time_us
from agent.sources.opcua_position import Position
from agent.sources.opcua_private import ua
from agent.sources.opcua_trust import first_certificate, thumbprint
from agent.wire.event import Event
from agent.wire.taxonomy import TYPE_LENGTH_MAX, TYPE_PATTERN, default_severity

HANDLE = 1
QUEUE_SIZE = 5_000
TYPES_MAX = 2_000
"""Event types remembered in a session; a server that invents more is looked up again each time."""
ANCESTORS_MAX = 20
EVENT_FIELDS_MAX = 50

INTERNAL_SESSION = "g=00000001-0000-0000-0000-000000000000"
"""open62541's own session: it audits what the server does to itself."""

CONDITION, OVERFLOW, REFRESH_START, REFRESH_END, REFRESH_REQUIRED = 2782, 3035, 2787, 2788, 2789
_SESSION, _CREATE_SESSION, _ACTIVATE_SESSION, _CONDITION_ENABLE, _URL_MISMATCH, _CHANNEL = (
    2069,
    2071,
    2075,
    2803,
    2748,
    2059,
)
_DISABLE_METHOD = "i=9028"

TYPES: dict[int, str] = {
    2052: "equipment.operator.action",
    2058: "security",
    _ACTIVATE_SESSION: "authentication.success",
    _SESSION: "authentication.session.opened",
    _CREATE_SESSION: "authentication.session.opened",
    2078: "authentication",
    _URL_MISMATCH: "authentication.session.opened",
    _CHANNEL: "security.channel.opened",
    2060: "security.channel.opened",
    2080: "security.certificate.invalid",
    2082: "security.certificate.invalid",
    2085: "security.certificate.invalid",
    2086: "security.certificate.invalid",
    2087: "security.certificate.untrusted",
    2088: "security.certificate.invalid",
    2089: "security.certificate.invalid",
    12620: "security.certificate.changed",
    32306: "configuration.trust.changed",
    12561: "configuration.trust.changed",
    32260: "configuration.trust.changed",
    18011: "configuration.trust.changed",
    18029: "configuration.trust.changed",
    18047: "configuration.trust.changed",
    2090: "configuration.changed",
    2091: "configuration.changed",
    2093: "configuration.changed",
    2095: "configuration.changed",
    2097: "configuration.changed",
    17641: "configuration.role.changed",
    15541: "configuration.changed",
    2132: "configuration.changed",
    2133: "configuration.changed",
    2738: "configuration.changed",
    32758: "configuration.changed",
    2099: "data.written",
    2100: "data.written",
    2104: "data.written",
    2999: "data.written",
    3006: "data.written",
    3012: "data.deleted",
    3014: "data.deleted",
    3019: "data.deleted",
    3022: "data.deleted",
    19095: "data.written",
    32803: "data.written",
    2127: "equipment.method.called",
    2315: "equipment.method.called",
    11856: "equipment.method.called",
    3806: "equipment.method.called",
    23606: "equipment.method.called",
    23926: "equipment.method.called",
    2790: "equipment.operator.action",
    _CONDITION_ENABLE: "equipment.operator.action",
    2829: "equipment.operator.action",
    8927: "equipment.operator.action",
    8944: "equipment.alarm.acknowledged",
    8961: "equipment.alarm.acknowledged",
    11093: "equipment.alarm.suppressed",
    17225: "equipment.alarm.suppressed",
    17242: "equipment.alarm.suppressed",
    17259: "equipment.alarm.suppressed",
    15013: "equipment.operator.action",
    2130: "equipment",
    2131: "equipment.fault",
    11446: "equipment.state.changed",
    CONDITION: "equipment.alarm.raised",
    13225: "security.certificate.expiring",
    19297: "security.certificate.untrusted",
    OVERFLOW: "collection.gap",
    REFRESH_START: "",
    REFRESH_END: "",
    REFRESH_REQUIRED: "",
}
"""Standard event type (ns=0) → our type. The nearest one among an event type's ancestors counts."""

_CONDITION_TYPES = frozenset({CONDITION, 13225, 19297})

_CORE = ("EventId", "EventType", "SourceNode", "SourceName", "Time", "ReceiveTime", "Message", "Severity")
_AUDIT = (
    "ActionTimeStamp", "Status", "ServerId", "ClientAuditEntryId", "ClientUserId", "StatusCodeId", "SecureChannelId", "SessionId",
    "ClientCertificateThumbprint", "SecurityPolicyUri", "Certificate", "AttributeId", "IndexRange", "OldValue", "NewValue", "MethodId",
    "EndpointUrl",
)  # fmt: skip
_ALARM = (
    "ConditionName", "BranchId", "Retain", "EnabledState/Id", "ActiveState/Id", "AckedState/Id", "ConfirmedState/Id",
    "SuppressedState/Id", "OutOfServiceState/Id", "ShelvingState/CurrentState/Id", "LimitState/CurrentState",
    "LimitState/CurrentState/Id", "HighHighState/Id", "HighState/Id", "LowState/Id", "LowLowState/Id",
)  # fmt: skip
_IN_DATA = {
    "ReceiveTime": "receive_time_us", "ServerId": "server_id", "ClientAuditEntryId": "client_audit_entry_id", "SecureChannelId": "channel",
    "SessionId": "session", "ClientCertificateThumbprint": "client_certificate_thumbprint", "SecurityPolicyUri": "security_policy",
    "EndpointUrl": "endpoint_url",
    "AttributeId": "attribute", "IndexRange": "index_range", "OldValue": "old_value", "NewValue": "new_value", "MethodId": "method",
    "InputArguments": "input_arguments", "SourceName": "source_name", "Severity": "server_severity",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigEvent:
    """Events of a type, and of its subtypes that nothing nearer speaks for.

    `fields`: further fields of the type, by browse name; one in another namespace than the type's as nsu=NAMESPACE-URI;NAME.
    """

    event: str
    type: str = "equipment.event"
    fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_node(self.event)
        if not TYPE_PATTERN.fullmatch(self.type) or len(self.type) > TYPE_LENGTH_MAX:
            raise ValueError(
                f"type: {self.type!r} is no type of event; write small letters joined by dots, as equipment.fault"
            )
        if self.type.split(".")[0] in ("security", "collection", "alert"):
            raise ValueError(f"type: {self.type!r} is the agent's own; choose another, as equipment.fault")
        if len(self.fields) > EVENT_FIELDS_MAX:
            raise ValueError(f"fields: {len(self.fields)} are too many for one type; give at most {EVENT_FIELDS_MAX}")


class Taken(NamedTuple):
    """What a message's events came to."""

    events: list[Event]
    overflowed: bool
    refresh_wanted: bool


class EventReader:
    """Makes one server's event notifications into events."""

    def __init__(
        self,
        source: str,
        report: Report,
        *,
        audit: bool,
        alarms: bool,
        arguments: bool,
        events: Sequence[ConfigEvent] = (),
        url: str = "",
    ) -> None:
        self._source = source
        self._report = report
        self._audit = audit
        self._alarms = Alarms(source) if alarms else None
        self._arguments = arguments
        self._asked = tuple(events)
        self._url = url.rstrip("/")
        self._fields: list[str] = []
        self._kinds: dict[Any, int | None] = {}
        self._nearer: dict[Any, ConfigEvent] = {}
        """Event type → what the configuration asks of it, where that is nearer than any standard type that is read."""

    def begin_session(self) -> None:
        """Namespace indices may be others now: types are looked up again. A refresh that was under way never ends."""
        self._kinds.clear()
        self._nearer.clear()
        self.incomplete()

    def incomplete(self) -> None:
        """Events of the server are missing."""
        if self._alarms is not None:
            self._alarms.incomplete()

    def plan(self) -> str:
        """Fingerprint of what is asked for, as a subscription that was made for other fields cannot be continued."""
        asked = "".join(f"{each.event} {each.fields};" for each in self._asked)
        suffix = hashlib.sha256(asked.encode()).hexdigest()[:8] if asked else ""
        return f"2{'a' if self._audit else ''}{'c' if self._alarms else ''}{'i' if self._arguments else ''}{suffix}"

    def request(self, namespaces: Sequence[str] = (), *, core_only: bool = False) -> Any:
        """The one monitored item. `core_only` for servers that refuse fields they do not know."""
        self.select(core_only=core_only)
        request = ua.MonitoredItemCreateRequest()
        request.ItemToMonitor.NodeId = ua.NodeId(ua.ObjectIds.Server)
        request.ItemToMonitor.AttributeId = ua.AttributeIds.EventNotifier
        request.MonitoringMode = ua.MonitoringMode.Reporting
        asked = request.RequestedParameters
        asked.ClientHandle = HANDLE
        asked.SamplingInterval = 0
        asked.QueueSize = QUEUE_SIZE
        asked.DiscardOldest = True
        asked.Filter = ua.EventFilter()
        asked.Filter.SelectClauses = [self._operand(name, namespaces) for name in self._fields]
        return request

    def select(self, *, core_only: bool) -> None:
        """Which fields the notifications carry, and in which order."""
        self._fields = [*_CORE]
        if core_only:
            return
        if self._audit:
            self._fields += _AUDIT
            if self._arguments:
                self._fields.append("InputArguments")
        if self._alarms is not None:
            self._fields += [*_ALARM, "ConditionId"]
        self._fields += [f"{number} {name}" for number, each in enumerate(self._asked) for name in each.fields]

    def _operand(self, name: str, namespaces: Sequence[str]) -> Any:
        number, space, field = name.partition(" ")
        if not space:
            return _operand(name)
        kind = resolve(self._asked[int(number)].event, namespaces) or ua.NodeId(ua.ObjectIds.BaseEventType)
        uri, _, plain_name = field.rpartition(";")
        index = namespaces.index(uri[4:]) if uri[4:] in namespaces else kind.NamespaceIndex
        operand = ua.SimpleAttributeOperand()
        operand.TypeDefinitionId, operand.AttributeId = kind, ua.AttributeIds.Value
        operand.BrowsePath = [ua.QualifiedName(part, index) for part in plain_name.split("/")]
        return operand

    async def learn(self, connection: Connection, notifications: Sequence[Any]) -> None:
        """Look up the event types in a message that were not met before."""
        for fields in notifications:
            kind = self._value(fields, "EventType")
            if kind is not None and kind not in self._kinds:
                if len(self._kinds) >= TYPES_MAX:
                    self._kinds.clear()
                    self._nearer.clear()
                await self._classify(connection, kind)

    async def _classify(self, connection: Connection, kind: Any) -> None:
        """Find the nearest type that the table knows, and the nearest that was asked for, on the way to the root."""
        asked = {resolve(each.event, connection.namespaces): each for each in self._asked}
        standard, nearer = None, None
        async for ancestor in _lineage(connection, kind):
            if nearer is None and ancestor in asked and not self._is_read(standard):
                nearer = asked[ancestor]
            if standard is None and ancestor.NamespaceIndex == 0 and ancestor.Identifier in TYPES:
                standard = int(ancestor.Identifier)
            if standard is not None and (nearer is not None or not asked):
                break
        self._kinds[kind] = standard
        if nearer is not None:
            self._nearer[kind] = nearer

    def _is_read(self, standard: int | None) -> bool:
        """Whether events of a standard type are stored for what they are."""
        if standard in _CONDITION_TYPES:
            return self._alarms is not None
        return self._audit and standard is not None

    def _value(self, fields: Any, name: str) -> Any:
        try:
            variant = fields.EventFields[self._fields.index(name)]
        except (ValueError, IndexError):
            return None
        return variant.Value

    def take(self, notifications: Sequence[Any], position: Position, namespaces: Sequence[str], now_us: int) -> Taken:
        """The events of one message, in order."""
        events: list[Event] = []
        overflowed = refresh_wanted = False
        for notification in notifications:
            values = dict(zip(self._fields, (variant.Value for variant in notification.EventFields), strict=False))
            kind = self._kinds.get(values.get("EventType"))
            nearer = self._nearer.get(values.get("EventType"))
            if kind == OVERFLOW:
                overflowed = True
                self.incomplete()
            elif kind == REFRESH_REQUIRED:
                refresh_wanted = True
            elif self._alarms is not None and kind in (REFRESH_START, REFRESH_END):
                events += self._alarms.refresh(position, now_us, began=kind == REFRESH_START)
            elif nearer is not None and TYPES.get(kind or 0) != "":
                events.append(self._asked_for(nearer, values, namespaces, now_us))
            else:
                event = self._event(kind, values, position, namespaces, now_us)
                events += [event] if event is not None else []
        return Taken(events, overflowed, refresh_wanted)

    def _event(
        self, kind: int | None, values: dict[str, Any], position: Position, namespaces: Sequence[str], now_us: int
    ) -> Event | None:
        if kind in _CONDITION_TYPES:
            if self._alarms is None:
                return None
            condition = values.get("ConditionId")
            key = plain(as_text(condition, namespaces)) if condition is not None else None
            return self._alarms.take(TYPES[kind or CONDITION], values, _data(values, namespaces), position, key, now_us)
        if kind is None or not self._audit:
            self._report.count("events_not_asked_for")
            return None
        return self._audited(kind, values, namespaces, now_us)

    def _asked_for(self, asked: ConfigEvent, values: dict[str, Any], namespaces: Sequence[str], now_us: int) -> Event:
        data = _data(values, namespaces)
        number = self._asked.index(asked)
        for field in asked.fields:
            value, name = values.get(f"{number} {field}"), field.rpartition(";")[2]
            if value is not None:
                data[name if name not in data else f"field_{name}"] = plain(value)
        kind = data.get("event_type_name") or data.get("event_type")
        return Event(
            time_us(values.get("Time")) or now_us,
            now_us,
            asked.type,
            self._source,
            severity_of(values.get("Severity")),
            target=data.get("source_name") or data.get("source_node"),
            message=f"event {kind}",
            raw=plain(values.get("Message")) or None,
            data=data,
        )

    def _audited(self, kind: int, values: dict[str, Any], namespaces: Sequence[str], now_us: int) -> Event | None:
        data = _data(values, namespaces)
        if INTERNAL_SESSION in str(data.get("session")):
            self._report.count("audits_internal")
            return None
        if kind == _URL_MISMATCH and self._is_own_address(values.get("EndpointUrl")):
            self._report.count("audits_of_own_address")
            return None
        status = values.get("Status")
        outcome = None if status is None else "success" if status else "failure"
        event_type = _audit_type(kind, outcome, values, str(data.get("method")))
        severity = severity_of(values.get("Severity"))
        if severity:
            severity = max(severity, default_severity(event_type, outcome))
        target = (
            data.get("source_node")
            if kind not in (_ACTIVATE_SESSION, _SESSION, _CREATE_SESSION)
            else data.get("source_name")
        )
        text = values.get("Message")
        return Event(
            time_us(values.get("Time")) or now_us,
            now_us,
            event_type,
            self._source,
            severity,
            target=target or data.get("source_name"),
            outcome=outcome,
            message=f"{data.get('event_type_name') or 'event'} {outcome or ''}".strip(),
            correlation_id=data.get("session") or data.get("client_audit_entry_id"),
            actor=plain(values.get("ClientUserId")) or None,
            raw=plain(text) or None,
            data=data,
        )

    def _is_own_address(self, url: Any) -> bool:
        """Whether somebody signed in at the address by which this agent calls the server, which may be another than the server's own."""
        return isinstance(url, str) and bool(self._url) and url.rstrip("/").lower() == self._url.lower()


def _operand(name: str) -> Any:
    operand = ua.SimpleAttributeOperand()
    if name == "ConditionId":
        operand.TypeDefinitionId, operand.AttributeId, operand.BrowsePath = (
            ua.NodeId(CONDITION),
            ua.AttributeIds.NodeId,
            [],
        )
        return operand
    operand.TypeDefinitionId = ua.NodeId(ua.ObjectIds.BaseEventType)
    operand.AttributeId = ua.AttributeIds.Value
    operand.BrowsePath = [ua.QualifiedName(part, 0) for part in name.split("/")]
    return operand


async def _lineage(connection: Connection, kind: Any) -> AsyncIterator[Any]:
    """A type and its ancestors, the nearest first, as far as the server gives them."""
    for _ in range(ANCESTORS_MAX):
        yield kind
        try:
            ((*parents,),) = await connection.link.browse([kind], reference=ua.ObjectIds.HasSubtype, inverse=True)
        except ua.UaStatusCodeError:
            return
        if not parents:
            return
        kind = parents[0].NodeId


def _audit_type(kind: int, outcome: str | None, values: dict[str, Any], method: str) -> str:
    if outcome == "failure" and kind in _ON_FAILURE:
        return _ON_FAILURE[kind]
    source = str(values.get("SourceName") or "")
    if kind in (_SESSION, _CREATE_SESSION) and ("Close" in source or "Timeout" in source):
        return "authentication.session.closed"
    if kind == _CHANNEL and "Close" in source:
        return "security.channel.closed"
    if kind == _CONDITION_ENABLE and method == _DISABLE_METHOD:
        return "equipment.alarm.suppressed"
    return TYPES[kind]


_ON_FAILURE = {
    _URL_MISMATCH: "authentication.session.rejected",
    _ACTIVATE_SESSION: "authentication.failure",
    _SESSION: "authentication.session.rejected",
    _CREATE_SESSION: "authentication.session.rejected",
}
"""Audits that are of another type where what they tell of was refused."""


def _data(values: dict[str, Any], namespaces: Sequence[str]) -> dict[str, Any]:
    """What was said, without what was not."""
    kind = values.get("EventType")
    data: dict[str, Any] = {}
    if kind is not None:
        data["event_type"] = plain(as_text(kind, namespaces))
        if kind.NamespaceIndex == 0 and isinstance(kind.Identifier, int):
            data["event_type_name"] = ua.ObjectIdNames.get(kind.Identifier, "")
    if isinstance(values.get("EventId"), bytes):
        data["event_id"] = values["EventId"][:64].hex()
    if values.get("SourceNode") is not None:
        data["source_node"] = plain(as_text(values["SourceNode"], namespaces))
    code = getattr(values.get("StatusCodeId"), "value", None)
    if code:
        data["status"], data["status_code"] = status_name(code), code
    if isinstance(values.get("Certificate"), bytes) and values["Certificate"]:
        data["certificate_thumbprint"] = thumbprint(first_certificate(values["Certificate"]))
    for name, key in _IN_DATA.items():
        value = values.get(name)
        if name == "ReceiveTime":
            value = time_us(value)
        if value is not None and value != "":
            data[key] = plain(value)
    return data
