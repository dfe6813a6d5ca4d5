"""OPC UA events without a server: counters of refused sign-ins, addresses, types of events that were asked for."""

from typing import Any

import msgspec
import pytest

from agent.component import Report
from agent.sources.opcua import ConfigOpcUa
from agent.sources.opcua_events import ConfigEvent, EventReader
from agent.sources.opcua_position import Position
from agent.sources.opcua_private import ua
from agent.sources.opcua_watch import AUDITED, COUNTERS, OWN, Watch
from agent.wire.event import Event

SECURITY, SESSIONS, REQUESTS = COUNTERS
URL = "opc.tcp://192.0.2.7:4840/press"


class Polled:
    """A watch, fed with what it would have read."""

    def __init__(self, counters: dict[str, int] | None = None) -> None:
        self.watch = Watch("cell", URL)
        self.position = Position(counters=dict(counters or {}))

    def poll(self, security: int, sessions: int, requests: int) -> list[tuple[str, str, int]]:
        numbers = dict(zip(COUNTERS, (security, sessions, requests), strict=True))
        events: list[Event] = list(self.watch._grown(numbers, self.position, 1))
        return [(event.type.rpartition(".")[2], event.data["counter"], event.data["count"]) for event in events]


@pytest.mark.parametrize("grown", [(1, 1, 1), (1, 1, 2), (1, 0, 0), (1, 0, 1)])
def test_one_refused_sign_in_is_one_event_whichever_counters_it_shows_in(grown: tuple[int, int, int]) -> None:
    polled = Polled()
    assert polled.poll(5, 7, 9) == []
    after = [before + more for before, more in zip((5, 7, 9), grown, strict=True)]
    assert polled.poll(*after) == []
    assert polled.poll(*after) == [("rejected", SECURITY, 1)]
    assert [polled.poll(*after) for _ in range(3)] == [[], [], []]


def test_a_refused_sign_in_that_the_server_audits_and_counts_is_one_event() -> None:
    polled = Polled()
    polled.poll(0, 0, 0)
    polled.position.counters[AUDITED] = 2
    assert [polled.poll(3, 3, 3) for _ in range(2)] == [[], [("rejected", SECURITY, 1)]]
    assert polled.position.counters[AUDITED] == 0
    polled.position.counters[AUDITED] = 1
    assert [polled.poll(3, 3, 3) for _ in range(3)] == [[], [], []]
    assert polled.position.counters[AUDITED] == 0, "a server that does not count what it audits hides nothing later"
    assert [polled.poll(4, 4, 4) for _ in range(2)] == [[], [("rejected", SECURITY, 1)]]


def test_an_audit_that_comes_after_its_counter_was_read_still_belongs_to_it() -> None:
    polled = Polled()
    polled.poll(0, 0, 0)
    assert polled.poll(1, 1, 1) == []
    polled.position.counters[AUDITED] = 1
    assert [polled.poll(1, 1, 1) for _ in range(3)] == [[], [], []]


def test_the_agents_own_expired_session_is_no_refused_sign_in_and_hides_none() -> None:
    polled = Polled({SECURITY: 0, SESSIONS: 0, REQUESTS: 0, OWN: 1})
    assert [polled.poll(0, 1, 0) for _ in range(2)] == [[], []]
    polled = Polled({SECURITY: 0, SESSIONS: 0, REQUESTS: 0, OWN: 1})
    assert [polled.poll(1, 1, 1) for _ in range(2)] == [[], [("rejected", SECURITY, 1)]]


def test_growth_that_goes_on_is_told_once_each_and_many_at_once_are_of_high_severity() -> None:
    polled = Polled()
    polled.poll(0, 0, 0)
    assert [polled.poll(n, n, n) for n in (1, 3, 6, 6, 6)] == [
        [],
        [("rejected", SECURITY, 1)],
        [("rejected", SECURITY, 2)],
        [("rejected", SECURITY, 3)],
        [],
    ]
    (event,) = Watch("cell", URL)._refused({SECURITY: 3, SESSIONS: 3}, {}, 1)
    assert event.severity == 4


def test_requests_refused_for_something_else_are_no_sign_ins() -> None:
    polled = Polled()
    polled.poll(0, 0, 0)
    assert [polled.poll(1, 1, 40) for _ in range(2)] == [[], [("rejected", SECURITY, 1), ("denied", REQUESTS, 39)]]
    assert [polled.poll(1, 1, 42) for _ in range(2)] == [[], [("denied", REQUESTS, 2)]]


def test_a_server_that_restarted_counts_from_its_new_beginning() -> None:
    polled = Polled()
    polled.poll(9, 9, 9)
    assert [polled.poll(0, 0, 0), polled.poll(1, 1, 1), polled.poll(1, 1, 1)] == [[], [], [("rejected", SECURITY, 1)]]


def reader(**options: Any) -> EventReader:
    usual: dict[str, Any] = {"audit": True, "alarms": False, "arguments": False, "url": URL}
    made = EventReader("cell", Report(), **(usual | options))
    made.select(core_only=False)
    return made


def taken(of: EventReader, standard: int | None, nearer: ConfigEvent | None = None, **values: Any) -> list[Event]:
    kind = ua.NodeId(7, 1)
    of._kinds[kind] = standard
    if nearer is not None:
        of._nearer[kind] = nearer
    named = {"EventType": kind} | {name.replace("__", " "): value for name, value in values.items()}
    fields = [ua.Variant(named.get(name)) for name in of._fields]
    return of.take([ua.EventFieldList(1, fields)], Position(), ["ua", "urn:acme"], 1).events


def test_a_mismatch_of_addresses_that_the_agent_causes_is_no_event_and_no_mismatch_is_a_rejection() -> None:
    source = reader()
    assert taken(source, 2748, EndpointUrl=URL) == []
    assert taken(source, 2748, EndpointUrl=URL.upper().replace("OPC.TCP", "opc.tcp") + "/") == []
    assert source._report.counts == {"audits_of_own_address": 2}
    (other,) = taken(source, 2748, EndpointUrl="opc.tcp://elsewhere:4840")
    assert (other.type, other.data["endpoint_url"]) == ("authentication.session.opened", "opc.tcp://elsewhere:4840")
    (refused,) = taken(source, 2748, EndpointUrl="opc.tcp://elsewhere:4840", Status=False)
    assert refused.type == "authentication.session.rejected"


def test_an_event_of_a_type_that_was_asked_for_is_stored_with_its_own_fields() -> None:
    asked = ConfigEvent(event="nsu=urn:acme;i=7", type="equipment.fault", fields=("Recipe", "nsu=urn:b;Batch"))
    source = reader(events=[asked], audit=False)
    assert taken(source, None) == []
    (event,) = taken(
        source, None, asked, Severity=900, SourceName="Press", **{"0__Recipe": "A7", "0__nsu=urn:b;Batch": 3}
    )
    assert (event.type, event.severity, event.target) == ("equipment.fault", 4, "Press")
    assert (event.data["Recipe"], event.data["Batch"], event.data["event_type"]) == ("A7", 3, "nsu=urn:acme;i=7")
    clauses = source.request(["ua", "urn:acme", "urn:b"]).RequestedParameters.Filter.SelectClauses[-2:]
    assert [(each.TypeDefinitionId, each.BrowsePath[0].NamespaceIndex) for each in clauses] == [
        (ua.NodeId(7, 1), 1),
        (ua.NodeId(7, 1), 2),
    ]


async def test_the_nearer_of_a_standard_type_and_one_that_was_asked_for_speaks_for_an_event() -> None:
    chain = {ua.NodeId(7, 1): ua.NodeId(2100), ua.NodeId(2100): ua.NodeId(2099), ua.NodeId(2099): ua.NodeId(2041)}
    own, everything = ConfigEvent(event="ns=1;i=7"), ConfigEvent(event="i=2041")

    class Link:
        async def browse(self, nodes: list[Any], **_: Any) -> list[list[Any]]:
            parent = chain.get(nodes[0])
            return [[type("Reference", (), {"NodeId": parent})] if parent is not None else []]

    connection: Any = type("Connection", (), {"namespaces": ["ua", "urn:acme"], "link": Link()})
    for options, kind, expected in (
        ({"events": [own]}, ua.NodeId(7, 1), own),
        ({"events": [everything]}, ua.NodeId(7, 1), None),
        ({"events": [everything], "audit": False}, ua.NodeId(7, 1), everything),
        ({"events": [everything]}, ua.NodeId(2041), everything),
        ({"events": [own, everything], "audit": False}, ua.NodeId(2100), everything),
    ):
        source = reader(**options)
        await source._classify(connection, kind)
        assert source._nearer.get(kind) == expected, options
    assert source._kinds[ua.NodeId(2100)] == 2100


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"event": "Recipe"}, "^event|^node"),
        ({"event": "i=1", "type": "Security"}, "^type"),
        ({"event": "i=1", "type": "alert.x"}, "^type"),
    ],
)
def test_a_type_of_events_that_cannot_be_is_refused(event: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ConfigEvent(**event)


def test_types_of_events_alone_are_something_to_read() -> None:
    config = msgspec.convert({"url": URL, "events": ["i=2041", {"event": "i=1", "fields": ["A"]}]}, ConfigOpcUa)
    assert [each.fields for each in config.asked_events()] == [(), ("A",)]
