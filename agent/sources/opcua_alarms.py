"""Alarms and conditions: a server sends states, we report what changed.

A condition's state has three parts: letters, each for something that is not normal (A active, U unacknowledged, S suppressed, H shelved,
O out of service, D disabled), its severity, and the limits that it is beyond (High, HighHigh, …). A state that was reported before (a
server repeats all it retains on ConditionRefresh, and so after each reconnect) is no event. A condition that was active and is not among
those that a refresh brings went away while nobody listened.

    letters        '' → A… raised      A → '' cleared      U gone: acknowledged      S H O D come: suppressed
    limit, severity  another one while active: changed (High → HighHigh, and back)

A branch (BranchId) is an earlier state of a condition that still waits for an operator: it was raised once, as the condition, and is no
alarm of its own. Of a branch its acknowledgement is reported, and nothing else.

Only conditions that are not normal are remembered, so that the cursor holds what is wrong now and not what ever was; how many, and which
go first, is in opcua_position.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from agent.sources.opcua_nodes import plain, severity_of, time_us
from agent.sources.opcua_position import Position
from agent.wire.event import Event

_UNSHELVED = 2930
"""ns=0 id of ShelvedStateMachineType.Unshelved."""
_LIMITS = {9329: "HighHigh", 9331: "High", 9333: "Low", 9335: "LowLow"}
"""ns=0 ids of the states of ExclusiveLimitStateMachineType."""
_LIMIT_NAMES = ("HighHigh", "High", "Low", "LowLow")
SEVERITY_STEP = 100
"""A server's severity (1 to 1000) that moves by less, within one of our severities, is no change: some compute it from the value."""
_KNOWN_ONCE = "known"


class State(NamedTuple):
    """A condition's state. `severity` is the server's; -1 where it is not known, as in a cursor of an earlier version."""

    letters: str
    severity: int = -1
    limit: str = ""

    @classmethod
    def parse(cls, text: str) -> "State":
        """From its text in the cursor: `AU 700 HighHigh`."""
        letters, _, rest = text.partition(" ")
        severity, _, limit = rest.partition(" ")
        return cls(letters, int(severity) if severity.isdecimal() else -1, limit)

    def text(self) -> str:
        """For the cursor; empty for a normal condition."""
        return (
            f"{self.letters} {self.severity} {self.limit}".strip()
            if self.letters and self.severity >= 0
            else self.letters
        )


def letters(values: dict[str, Any]) -> str:
    """The letters of a condition's state; empty for a normal one. What a condition does not have is normal."""
    active = values.get("ActiveState/Id")
    shelved = getattr(values.get("ShelvingState/CurrentState/Id"), "Identifier", None)
    marks = (
        ("A", bool(values.get("Retain")) if active is None else active),
        ("U", values.get("AckedState/Id") is False),
        ("S", values.get("SuppressedState/Id")),
        ("H", shelved not in (None, 0, _UNSHELVED)),
        ("O", values.get("OutOfServiceState/Id")),
        ("D", values.get("EnabledState/Id") is False),
    )
    return "".join(letter for letter, marked in marks if marked)


def limit_of(values: dict[str, Any]) -> str:
    """The limits that a condition is beyond: one of an exclusive alarm, several of another; empty where it has none."""
    beyond = [name for name in _LIMIT_NAMES if values.get(f"{name}State/Id")]
    if beyond:
        return "+".join(beyond)
    state = values.get("LimitState/CurrentState/Id")
    if state is not None and state.NamespaceIndex == 0 and state.Identifier in _LIMITS:
        return _LIMITS[state.Identifier]
    named = plain(values.get("LimitState/CurrentState"))
    return "".join(named.split())[:40] if isinstance(named, str) else ""


def state_of(values: dict[str, Any]) -> State:
    """The state in a notification."""
    severity = values.get("Severity")
    active = letters(values)
    return State(
        active,
        max(0, severity) if isinstance(severity, int) else 0,
        limit_of(values) if "A" in active else "",
    )


def change(before: str, after: str) -> str | None:
    """What became of a condition, by its states as text; None where nothing did."""
    old, new = State.parse(before), State.parse(after)
    came, went = set(new.letters) - set(old.letters), set(old.letters) - set(new.letters)
    if "A" in came or (old.letters == "" and new.letters == "U"):
        # Unacknowledged and over before anybody heard of it: it was raised all the same.
        return "raised"
    if "A" in went:
        return "cleared"
    if set("SHOD") & came:
        return "suppressed"
    if "A" in new.letters and (_other_limit(old, new) or _other_severity(old.severity, new.severity) or "U" in came):
        return "changed"
    if "U" in went:
        return "acknowledged"
    return "other" if came or went else None


def _other_limit(old: State, new: State) -> bool:
    return old.severity >= 0 and old.limit != new.limit


def _other_severity(old: int, new: int) -> bool:
    if old <= 0 or new <= 0:
        return False
    return severity_of(old) != severity_of(new) or abs(old - new) >= SEVERITY_STEP


class Alarms:
    """The conditions of one server."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._refreshed: set[str] | None = None

    def incomplete(self) -> None:
        """Events are missing: a refresh that is under way did not bring all, and ends without a word about the rest."""
        self._refreshed = None

    def take(
        self,
        raised_type: str,
        values: dict[str, Any],
        data: dict[str, Any],
        position: Position,
        condition: str | None,
        now_us: int,
    ) -> Event | None:
        """The event of one notification; None where it brings nothing new."""
        key = condition or f"{data.get('source_node')}/{values.get('ConditionName')}"
        branch = getattr(values.get("BranchId"), "Identifier", None)
        if branch:
            key += f"#{plain(branch)}"
        if self._refreshed is not None:
            self._refreshed.add(key)
        after = state_of(values)
        if branch:
            after = State("U" if "U" in after.letters else "", after.severity)
        before = State.parse(position.alarms.get(key, ""))
        became = _of_branch(before, after) if branch else change(before.text(), after.text())
        what = became if branch else self._of_forgotten(became, before, after, position)
        if what is None and before.letters == after.letters:
            # What is compared with is what was reported: a severity that creeps is reported once it has gone far enough.
            after = before if before.severity >= 0 else after
        position.remember_alarm(key, after.text())
        if what is None or what == _KNOWN_ONCE:
            return None
        data |= {"condition": key, "condition_name": plain(values.get("ConditionName")), "state": after.letters}
        if self._refreshed is not None:
            data["while_away"] = True
        _describe(data, what, before, after)
        return self._event(raised_type, what, values, data, now_us)

    def _of_forgotten(self, what: str | None, before: State, after: State, position: Position) -> str | None:
        """What a condition comes to that may be one of those whose states did not fit into the cursor."""
        if not position.alarms_forgotten or before.letters:
            return what
        if what == "raised" and self._refreshed is not None:
            position.alarms_forgotten -= 1
            return _KNOWN_ONCE
        if what is None and not after.letters and self._refreshed is None:
            position.alarms_forgotten -= 1
            return "cleared"
        return what

    def _event(self, raised_type: str, what: str, values: dict[str, Any], data: dict[str, Any], now_us: int) -> Event:
        event_type = {"raised": raised_type, "other": "equipment.operator.action"}.get(what, f"equipment.alarm.{what}")
        severity = severity_of(values.get("Severity")) if what in ("raised", "changed") else 0
        name = data["condition_name"] or data["condition"]
        return Event(
            time_us(values.get("Time")) or now_us,
            now_us,
            event_type,
            self._source,
            severity,
            target=data.get("source_name") or data.get("source_node"),
            message=f"alarm {name} {_in_words(what, data)}",
            correlation_id=data["condition"],
            actor=plain(values.get("ClientUserId")) or None,
            raw=plain(values.get("Message")) or None,
            data=data,
        )

    def refresh(self, position: Position, now_us: int, *, began: bool) -> Iterator[Event]:
        """A refresh begins or ends. At its end, what was active and did not come again is over."""
        if began:
            self._refreshed = set()
            return
        came, self._refreshed = self._refreshed, None
        if came is None:
            return
        for key in [key for key in position.alarms if key not in came]:
            state = State.parse(position.alarms.pop(key))
            if "A" in state.letters:
                data = {"condition": key, "state": "", "while_away": True}
                message = "alarm went away while nobody listened"
                yield Event(
                    now_us,
                    now_us,
                    "equipment.alarm.cleared",
                    self._source,
                    target=key,
                    message=message,
                    correlation_id=key,
                    data=data,
                )


def _of_branch(before: State, after: State) -> str | None:
    return "acknowledged" if before.letters and not after.letters else None


def _describe(data: dict[str, Any], what: str, before: State, after: State) -> None:
    if after.limit:
        data["limit"] = after.limit
    if what == "raised" and "A" not in after.letters:
        data["active"] = False
    if what == "changed":
        if before.limit != after.limit:
            data["previous_limit"] = before.limit
        if before.severity != after.severity:
            data["previous_severity"] = before.severity


def _in_words(what: str, data: dict[str, Any]) -> str:
    if what == "other":
        return "was handled"
    if what == "changed" and "previous_limit" in data:
        return f"changed from {data['previous_limit'] or 'no limit'} to {data.get('limit') or 'no limit'}"
    return what
