"""Alarms and conditions: a server tells states, we tell what changed.

A condition's state is kept as letters, each for something that is not normal: A active, U unacknowledged, S suppressed, H shelved,
O out of service, D disabled. A state that was told before (a server repeats all it retains on ConditionRefresh, and so after each
reconnect) is no event. A condition that was active and is not among those that a refresh tells went away while nobody listened.

Only conditions that are not normal are remembered, so that the cursor holds what is wrong now and not what ever was.
"""

from collections.abc import Iterator
from typing import Any

from agent.sources.opcua_nodes import plain, severity_of, time_us
from agent.sources.opcua_position import Position
from agent.wire.event import Event

_UNSHELVED = 2930
"""ns=0 id of ShelvedStateMachineType.Unshelved."""


def letters(values: dict[str, Any]) -> str:
    """The state of a condition; empty for a normal one. What a condition does not have is normal."""
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


def change(before: str, after: str) -> str | None:
    """What became of a condition; None where nothing did."""
    if before == after:
        return None
    if ("A" in after) != ("A" in before):
        return "raised" if "A" in after else "cleared"
    if set("SHOD") & set(after) - set(before):
        return "suppressed"
    if "U" in before and "U" not in after:
        return "acknowledged"
    return "other"


class Alarms:
    """The conditions of one server."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._refreshed: set[str] | None = None

    def take(
        self,
        raised_type: str,
        values: dict[str, Any],
        data: dict[str, Any],
        position: Position,
        condition: str | None,
        now_us: int,
    ) -> Event | None:
        """The event of one notification; None where it tells nothing new."""
        branch = getattr(values.get("BranchId"), "Identifier", None)
        key = (condition or f"{data.get('source_node')}/{values.get('ConditionName')}") + (
            f"#{branch}" if branch else ""
        )
        if self._refreshed is not None:
            self._refreshed.add(key)
        before, after = position.alarms.get(key, ""), letters(values)
        what = change(before, after)
        if after:
            position.alarms[key] = after
        else:
            position.alarms.pop(key, None)
        if what is None:
            return None
        data |= {"condition": key, "condition_name": plain(values.get("ConditionName")), "state": after}
        if self._refreshed is not None:
            data["while_away"] = True
        return self._event(raised_type, what, values, data, now_us)

    def _event(self, raised_type: str, what: str, values: dict[str, Any], data: dict[str, Any], now_us: int) -> Event:
        event_type = {"raised": raised_type, "other": "equipment.operator.action"}.get(what, f"equipment.alarm.{what}")
        severity = severity_of(values.get("Severity")) if what == "raised" else 0
        name = data["condition_name"] or data["condition"]
        return Event(
            time_us(values.get("Time")) or now_us,
            now_us,
            event_type,
            self._source,
            severity,
            target=data.get("source_name") or data.get("source_node"),
            message=f"alarm {name} {what if what != 'other' else 'was handled'}",
            correlation_id=data["condition"],
            actor=plain(values.get("ClientUserId")) or None,
            raw=plain(values.get("Message")) or None,
            data=data,
        )

    def refresh(self, position: Position, now_us: int, *, began: bool) -> Iterator[Event]:
        """A refresh begins or ends. At its end, what was active and was not told again is over."""
        if began:
            self._refreshed = set()
            return
        told, self._refreshed = self._refreshed, None
        if told is None:
            return
        for key in [key for key in position.alarms if key not in told]:
            state = position.alarms.pop(key)
            if "A" in state:
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
