"""OPC UA alarms: what is reported of a condition's life, from the notifications of its server."""

from typing import TYPE_CHECKING, Any

import pytest

from agent.component import Report
from agent.sources.opcua import ConfigOpcUa, OpcUaSource
from agent.sources.opcua_alarms import State, change
from agent.sources.opcua_items import Items
from agent.sources.opcua_nodes import ConfigNode
from agent.sources.opcua_position import REMEMBERED_MAX, Position, Subscription
from agent.sources.opcua_private import Change, Published, ua

if TYPE_CHECKING:
    from agent.sources.opcua_events import EventReader
    from agent.wire.event import Event

ALARM, OVERFLOW, START, END = (ua.NodeId(number) for number in (9482, 3035, 2787, 2788))
HIGH_HIGH, HIGH = ua.NodeId(9329), ua.NodeId(9331)


class Server:
    """Sends notifications to a source whose events are kept, as its messages would bring them."""

    def __init__(self, cursor: Any = None) -> None:
        self.source = OpcUaSource("cell", ConfigOpcUa(url="opc.tcp://c:1", alarms=True), Report())
        self.position = Position.load(cursor)
        self.events: list[Event] = []
        reader = self.source._events
        assert reader is not None
        self.reader: EventReader = reader
        self.reader.select(core_only=False)
        self.reader._kinds = {ALARM: 2782, OVERFLOW: 3035, START: 2787, END: 2788}
        self.subscription = Subscription(5, 0, "")

    async def send(self, *notifications: dict[str, Any]) -> list[str]:
        """One message; the types of the events that it came to, less what they have in common."""
        fields = [[ua.Variant(each.get(name)) for name in self.reader._fields] for each in notifications]
        listed = ua.EventNotificationList(Events=[ua.EventFieldList(1, each) for each in fields])
        message = Published(5, self.subscription.next_sequence, [listed], [])
        connection: Any = type("Connection", (), {"namespaces": ["ua", "urn:x"]})
        came = await self.source._take(connection, self.position, self.subscription, message)
        self.events += came
        return [event.type.removeprefix("equipment.alarm.") for event in came]


def alarm(name: str = "Hot", *, active: bool = True, acked: bool = False, **more: Any) -> dict[str, Any]:
    return {
        "EventType": ALARM,
        "ConditionId": ua.NodeId(name, 1),
        "ConditionName": name,
        "Severity": 500,
        "Retain": active or not acked,
        "EnabledState/Id": True,
        "ActiveState/Id": active,
        "AckedState/Id": acked,
    } | {key.replace("_", "/"): value for key, value in more.items()}


def exclusive(limit: Any, **more: Any) -> dict[str, Any]:
    return alarm(**more) | {"LimitState/CurrentState/Id": limit}


async def test_an_alarm_that_goes_from_high_to_high_high_and_back_is_reported_each_time() -> None:
    server = Server()
    assert await server.send(exclusive(HIGH)) == ["raised"]
    assert await server.send(exclusive(HIGH_HIGH, Severity=900)) == ["changed"]
    assert await server.send(exclusive(HIGH_HIGH, Severity=900)) == []
    assert await server.send(exclusive(HIGH)) == ["changed"]
    assert await server.send(exclusive(HIGH, acked=True)) == ["acknowledged"]
    assert await server.send(alarm(active=False, acked=True)) == ["cleared"]
    worse, better = server.events[1], server.events[2]
    assert (worse.data["previous_limit"], worse.data["limit"], worse.severity) == ("High", "HighHigh", 4)
    assert (worse.data["previous_severity"], worse.message) == (500, "alarm Hot changed from High to HighHigh")
    assert (better.data["limit"], better.severity) == ("High", 3)


@pytest.mark.parametrize(
    "beyond",
    [
        {"HighState/Id": True, "HighHighState/Id": True},
        {"LimitState/CurrentState/Id": ua.NodeId(7, 1), "LimitState/CurrentState": ua.LocalizedText("HighHigh")},
        {"LowLowState/Id": True, "LowState/Id": True},
    ],
)
async def test_limits_of_other_kinds_of_alarms_are_part_of_their_state(beyond: dict[str, Any]) -> None:
    server = Server()
    await server.send(alarm() | {"HighState/Id": True})
    assert await server.send(alarm() | {"HighState/Id": None} | beyond) == ["changed"]
    assert server.events[-1].data["limit"] in ("HighHigh+High", "HighHigh", "Low+LowLow")


@pytest.mark.parametrize(
    ("severities", "changes"),
    [((500, 900), 1), ((200, 400), 1), ((500, 510, 520), 0), ((400, 450, 510), 1), ((0, 0), 0)],
)
async def test_a_severity_that_moves_far_is_a_change_and_one_that_trembles_is_none(
    severities: tuple[int, ...], changes: int
) -> None:
    server = Server()
    for severity in severities:
        await server.send(alarm(Severity=severity))
    assert [event.type for event in server.events].count("equipment.alarm.changed") == changes


async def test_a_limit_and_a_severity_survive_the_cursor_and_an_earlier_versions_cursor_makes_no_change() -> None:
    server = Server()
    await server.send(exclusive(HIGH))
    later = Server(server.position.save())
    assert await later.send({"EventType": START}, exclusive(HIGH), {"EventType": END}) == []
    assert await later.send({"EventType": START}, exclusive(HIGH_HIGH), {"EventType": END}) == ["changed"]
    assert later.events[-1].data["while_away"] is True
    cursor = server.position.save() | {"alarms": {"nsu=urn:x;s=Hot": "AU"}}
    cursor.pop("alarms_forgotten")
    earlier = Server(cursor)
    assert await earlier.send(exclusive(HIGH)) == []
    assert await earlier.send(exclusive(HIGH_HIGH)) == ["changed"]


async def test_a_branch_is_no_second_raise_and_its_acknowledgement_is_reported_once() -> None:
    server = Server()
    assert await server.send(alarm()) == ["raised"]
    assert await server.send(alarm(active=False)) == ["cleared"]
    assert await server.send(alarm(), alarm(BranchId=ua.NodeId(7, 1))) == ["raised"]
    assert await server.send(alarm(BranchId=ua.NodeId(7, 1), active=False)) == []
    assert await server.send(alarm(BranchId=ua.NodeId(7, 1), active=False, acked=True)) == ["acknowledged"]
    assert await server.send(alarm(BranchId=ua.NodeId(7, 1), active=False, acked=True)) == []
    assert await server.send(alarm(active=False, acked=True)) == ["cleared"]
    assert server.position.alarms == {}


async def test_a_thousand_unacknowledged_branches_stop_no_alarm_from_being_raised_and_cleared() -> None:
    server = Server()
    for number in range(REMEMBERED_MAX + 200):
        await server.send(alarm(active=False, BranchId=ua.NodeId(number + 1, 1)))
    assert [event.type for event in server.events] == ["collection.gap"] * 200
    for number in range(3):
        assert "raised" in await server.send(alarm(f"Late{number}"))
        assert "cleared" in await server.send(alarm(f"Late{number}", active=False, acked=True))
    assert len(server.position.alarms) <= REMEMBERED_MAX


async def test_of_too_many_alarms_the_oldest_acknowledged_goes_first_and_the_newest_never() -> None:
    server = Server()
    await server.send(
        alarm("first"), alarm("second", acked=True), alarm("third", acked=True), alarm("over", active=False)
    )
    for number in range(REMEMBERED_MAX - 4):
        await server.send(alarm(f"n{number}"))
    for number, gone in enumerate(("over", "second", "third", "first")):
        assert await server.send(alarm(f"late{number}", acked=True)) == ["raised", "collection.gap"]
        assert server.events[-1].data["conditions"] == [f"nsu=urn:x;s={gone}"]
        assert server.events[-1].data["conditions_count"] == 1
        server.position.alarms[f"nsu=urn:x;s=late{number}"] = "AU 500"


async def test_an_alarm_whose_state_was_forgotten_is_still_cleared_and_not_raised_again_by_a_refresh() -> None:
    server = Server()
    await server.send(*(alarm(f"n{number}") for number in range(REMEMBERED_MAX + 2)))
    assert server.position.alarms_forgotten == 2
    later = Server(server.position.save())
    assert await later.send(alarm("n0", active=False, acked=True)) == ["cleared"]
    assert await later.send(
        {"EventType": START}, *(alarm(f"n{n}") for n in range(1, REMEMBERED_MAX + 2)), {"EventType": END}
    ) == ["collection.gap"]
    assert await later.send(alarm("never raised", active=False, acked=True)) in ([], ["cleared"])
    assert "raised" in await later.send(alarm("new"))


async def test_a_refresh_of_which_events_were_lost_clears_nothing() -> None:
    server = Server()
    server.source._refresh_after_s = float("inf")
    await server.send(alarm("one"), alarm("two"))
    assert "cleared" not in await server.send(
        {"EventType": START}, alarm("one"), {"EventType": OVERFLOW}, {"EventType": END}
    )
    assert await server.send({"EventType": START}, alarm("one")) == []
    kinds = dict(server.reader._kinds)
    server.reader.begin_session()
    server.reader._kinds = kinds
    assert await server.send({"EventType": END}) == []
    assert await server.send({"EventType": START}, alarm("one"), {"EventType": END}) == ["cleared"]


async def test_an_alarm_that_was_over_before_anybody_listened_and_waits_for_an_operator_was_raised() -> None:
    server = Server()
    assert await server.send({"EventType": START}, alarm(active=False), {"EventType": END}) == ["raised"]
    assert server.events[0].data["active"] is False
    assert await server.send(alarm(active=False, acked=True)) == ["acknowledged"]


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ("A 500", "AU 500", "changed"),
        ("AU 500 High", "AU 500 HighHigh", "changed"),
        ("AU 500 High", "A 500 HighHigh", "changed"),
        ("AU 500 High", " ", "cleared"),
        ("AU", "AU 900 HighHigh", None),
        ("S 500", "", "other"),
        ("U 500", "AU 500", "raised"),
    ],
)
def test_what_became_of_an_alarm_with_its_limit(before: str, after: str, what: str | None) -> None:
    assert change(before, after) == what


@pytest.mark.parametrize("text", ["", "A", "AU 500", "A 0 High+HighHigh"])
def test_a_state_survives_its_text(text: str) -> None:
    assert State.parse(text).text() == text


def test_setpoints_beyond_what_the_cursor_holds_are_changes_when_they_change() -> None:
    nodes = [
        ConfigNode(node=f"i={number}", name=f"n{number}", role="setpoint") for number in range(1, REMEMBERED_MAX + 21)
    ]
    items, position = Items("cell", Report(), sampling_interval_ms=100, queue_size=10), Position()
    items.lay_out(nodes, [])
    items.taken_up([], 10)
    for value in (1.0, 2.0):
        events, _ = items.take([Change(handle, value, 0, None, None) for handle in items._items], position, 1)
        position.forget_too_many()
        assert len(events) == len(nodes)
    assert {event.type for event in events} == {"configuration.setpoint.changed"}
    items.committed()
    taken = list(items._items)[-1]
    assert len(items.take([Change(taken, 3.0, 0, 9, None)], position, 1)[0]) == 1
    items.roll_back()
    position.known.clear()
    assert [event.data["previous"] for event in items.take([Change(taken, 3.0, 0, 9, None)], position, 1)[0]] == [2.0]
