"""What servers of other makers were found to do, and what the standard allows and few expect: one test each, on a real server."""

import asyncio
import copy
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from asyncua import ua as _ua

from agent.component import now_us
from agent.simulator.opcua_server import NAMESPACE, PressCell
from agent.sources.opcua_browse import ConfigBrowse
from agent.sources.opcua_events import TYPES
from agent.sources.opcua_private import Link
from agent.wire.taxonomy import TAXONOMY
from tests.integration.opcua_line import Cable, Reader, config, press_cell
from tests.ports import free_port

ua: Any = _ua


def port_of(cell: PressCell) -> int:
    return int(cell.url.split(":")[2].split("/")[0])


def subscription_of(cell: PressCell, kind: str, reader: Reader) -> Any:
    """The server's own side of a subscription."""
    number = (reader.cursor or {})["subscriptions"][kind][0]
    return cell.server.iserver.subscription_service.subscriptions[number]


# ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_namespace_that_has_another_index_after_a_restart_is_found_by_its_uri() -> None:
    """Indices are a session's: asyncua's own reconnect goes on with the old ones, and watches somebody else's nodes."""
    port = free_port()

    class Reordered(PressCell):
        async def _make_nodes(self) -> None:
            for uri in ("urn:installed:later", "urn:and:another"):
                await self.server.register_namespace(uri)
            await super()._make_nodes()

    async with Reader(config(f"opc.tcp://127.0.0.1:{port}/press")) as reader:
        async with press_cell(port=port) as cell:
            await reader.until(lambda: reader.values("Oil.Temp"))
            before = await cell.server.get_namespace_index(NAMESPACE)
        cell = Reordered(port=port)
        await cell.start()
        try:
            assert await cell.server.get_namespace_index(NAMESPACE) != before
            await reader.until(lambda: reader.of_type("collection.gap"))
            await cell.set("Oil.Temp", 77.25)
            await reader.until(lambda: reader.values("Oil.Temp")[-1] == 77.25)
        finally:
            await cell.stop()
    assert reader.report.trouble == {}


async def test_browse_stops_at_its_depth() -> None:
    """An address space has loops and ends nowhere: a browse without a bound reads for ever."""
    shallow = ConfigBrowse(root="i=85", match="Line.*", depth=1)
    deep = ConfigBrowse(root="i=84", match="*.Status", depth=3)
    async with press_cell() as cell, Reader(config(cell.url, nodes=(), browse=(shallow, deep))) as reader:
        await reader.until(lambda: len({event.target for event in reader.events if "value" in event.data}) >= 3)
    assert {event.target for event in reader.events} == {"Line.Press.Status", "Line.Feeder.Status", "Line.Robot.Status"}
    assert "within depth 1" in reader.report.trouble["browse i=85"]


# ── loss ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_hole_in_the_sequence_numbers_that_the_server_cannot_fill_is_a_gap_with_its_number() -> None:
    """Azure/Industrial-IoT#143: 115 million notifications dropped on the way, and nobody was told."""
    async with press_cell() as cell, Reader(config(cell.url)) as reader:
        await reader.until(lambda: reader.values("Oil.Temp"))
        subscription_of(cell, "data", reader)._notification_seq += 3
        await cell.set("Oil.Temp", 61.5)
        await reader.until(lambda: reader.of_type("collection.gap"))
        await reader.until(lambda: reader.values("Oil.Temp")[-1] == 61.5)
        assert reader.connections == 1
    (gap,) = reader.of_type("collection.gap")
    assert gap.data["messages"] == 3
    assert gap.data["from_us"] < gap.data["to_us"]


async def test_a_first_message_that_went_lost_with_an_earlier_process_is_a_gap() -> None:
    """The first message has the number 1 (Part 4 §5.13.1.1): a higher one tells a cursor that knows of none what is missing."""
    async with press_cell() as cell:
        async with Reader(config(cell.url)) as first:
            await first.until(lambda: first.values("Press.Cycles") == [0])
        # As it is when a process is killed before its first commit, and the next one over the message that was given out again.
        cursor = copy.deepcopy(first.cursor or {})
        cursor["subscriptions"]["data"][1] = 0
        subscription_of(cell, "data", first)._not_acknowledged_results.clear()
        before_us = now_us()
        async with Reader(config(cell.url), cursor) as second:
            await cell.set("Press.Cycles", 1)
            await second.until(lambda: 1 in second.values("Press.Cycles"))
        assert second.values("Press.Cycles") == [1], "the subscription was not continued"
    (gap,) = second.of_type("collection.gap")
    assert gap.data["messages"] == 1
    assert gap.data["from_us"] < before_us


async def test_a_gap_in_the_values_begins_before_them_though_messages_of_events_came_since() -> None:
    """Each subscription is published by itself, and a busy server may be late with one of them."""
    async with press_cell() as cell, Reader(config(cell.url, dead_after_s=1.0, audit=True)) as reader:
        await reader.until(lambda: reader.values("Oil.Temp"))
        subscription_of(cell, "data", reader)._task.cancel()
        lost_us = now_us()
        await cell.set("Oil.Temp", 61.5)
        await cell.set("Oil.Temp", 61.75)
        await asyncio.sleep(0.5)
        await cell.audit(ua.ObjectIds.AuditUpdateMethodEventType)
        await reader.until(lambda: reader.of_type("collection.gap"), timeout_s=30)
    assert reader.of_type("collection.gap")[0].data["from_us"] < lost_us


async def test_a_server_whose_current_time_is_old_makes_no_gap_begin_late() -> None:
    """Asyncua's renews that variable once a second: by it, a message that was long on its way seems to be of just now."""
    async with press_cell() as cell, Cable(port_of(cell)) as cable:
        inner = cell.server.iserver
        inner._time_task_stop = True
        await inner.time_task
        await inner.current_time_node.write_value(datetime.now(UTC) - timedelta(hours=1))
        async with Reader(config(cable.url)) as reader:
            await reader.until(lambda: reader.values("Oil.Temp"))
            cable.stall()
            changed_us = now_us()
            await cell.set("Oil.Temp", 61.5)
            await asyncio.sleep(1)
            cable.flow()
            await reader.until(lambda: reader.values("Oil.Temp")[-1] == 61.5)
            assert (reader.cursor or {})["subscriptions"]["data"][3] < changed_us + 500_000


async def test_a_gap_of_a_server_where_nothing_changes_does_not_begin_with_its_last_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A keep-alive says that there was nothing to tell until then, and the cursor learns of it now and then."""
    monkeypatch.setattr("agent.sources.opcua.CURSOR_KEPT_S", 0.2)
    port = free_port()
    async with press_cell(port=port) as cell:
        async with Reader(config(cell.url, dead_after_s=0.8)) as first:
            await first.until(lambda: first.values("Oil.Temp"))
            await asyncio.sleep(2.5)
        stopped_us = now_us()
    async with press_cell(port=port) as cell, Reader(config(cell.url), first.cursor) as second:
        await second.until(lambda: second.of_type("collection.gap"))
    gap = second.of_type("collection.gap")[0]
    assert stopped_us - 1_500_000 < gap.data["from_us"] < stopped_us


async def test_a_subscription_that_falls_silent_while_the_server_answers_is_made_anew_with_a_gap() -> None:
    """telegraf#18454: connected, every request answered, and no data for ever."""
    async with press_cell() as cell, Reader(config(cell.url, dead_after_s=1.0)) as reader:
        await reader.until(lambda: reader.values("Oil.Temp"))
        subscription_of(cell, "data", reader)._task.cancel()
        await cell.set("Oil.Temp", 61.5)
        await reader.until(lambda: reader.of_type("collection.gap"), timeout_s=30)
        await reader.until(lambda: reader.values("Oil.Temp")[-1] == 61.5)
    assert any("silent" in str(error) for error in reader.errors)


@pytest.mark.parametrize("status", ["BadTimeout", "GoodSubscriptionTransferred"])
async def test_a_subscription_that_the_server_ends_is_made_anew_with_a_gap(status: str) -> None:
    """Asyncua tells its subscribers nothing of it."""
    async with press_cell() as cell, Reader(config(cell.url)) as reader:
        await reader.until(lambda: reader.values("Oil.Temp"))
        await subscription_of(cell, "data", reader).enqueue_statuschange(ua.StatusCode(getattr(ua.StatusCodes, status)))
        await cell.set("Oil.Temp", 61.5)
        await reader.until(lambda: reader.connections > 1)
        await reader.until(lambda: reader.of_type("collection.gap"))
        await reader.until(lambda: reader.values("Oil.Temp")[-1] == 61.5)


async def test_a_status_of_the_subscription_that_does_not_end_it_is_told_and_changes_nothing() -> None:
    async with press_cell() as cell, Reader(config(cell.url)) as reader:
        await reader.until(lambda: reader.values("Oil.Temp"))
        overload = ua.StatusCode(ua.StatusCodes.BadResourceUnavailable)
        await subscription_of(cell, "data", reader).enqueue_statuschange(overload)
        await cell.set("Oil.Temp", 61.5)
        await reader.until(lambda: reader.report.counts.get("status_changes"))
        await reader.until(lambda: reader.values("Oil.Temp")[-1] == 61.5)
        assert "BadResourceUnavailable" in reader.report.trouble["subscription"]
        assert reader.connections == 1


async def test_an_overflow_of_the_event_queue_is_a_gap() -> None:
    async with press_cell() as cell, Reader(config(cell.url, nodes=(), audit=True)) as reader:
        await reader.until(lambda: "events" in (reader.cursor or {}).get("subscriptions", {}))
        await cell.audit(ua.ObjectIds.EventQueueOverflowEventType)
        await reader.until(lambda: reader.of_type("collection.gap"))
    assert "event queue" in reader.of_type("collection.gap")[0].data["reason"]


async def test_a_connection_that_breaks_while_the_missed_is_asked_for_again_costs_none_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Asyncua's server gives each message again once, and not twice."""
    real, calls = Link.republish, 0

    async def breaks(self: Link, subscription_id: int, sequence: int) -> Any:
        nonlocal calls
        calls += 1
        if calls in (3, 6):
            raise ConnectionResetError(104, "Connection reset by peer")
        return await real(self, subscription_id, sequence)

    async with press_cell() as cell, Cable(port_of(cell)) as cable, Reader(config(cable.url)) as reader:
        await reader.until(lambda: reader.values("Press.Cycles") == [0])
        for number in (1, 2):
            await cell.set("Press.Cycles", number)
            await reader.until(lambda: reader.values("Press.Cycles")[-1] == number)  # noqa: B023 - used in its turn
        cable.stall()
        # Three messages are under way in the cable, one for each publish that waited there.
        for number in range(3, 8):
            await cell.set("Press.Cycles", number)
            await asyncio.sleep(0.15)
        monkeypatch.setattr(Link, "republish", breaks)
        await cable.cut()
        cable.flow()
        await cable.plug()
        await reader.until(lambda: reader.values("Press.Cycles")[-1] == 7)
    assert calls > 3, "the connection did not break in the middle of it"
    assert reader.values("Press.Cycles") == list(range(8))
    assert reader.of_type("collection.gap") == []


async def test_messages_of_a_subscription_that_is_not_ours_are_not_taken_and_not_acknowledged() -> None:
    """Asyncua acknowledges what it has no subscription for: whoever it was meant for never sees it."""
    async with press_cell() as cell:
        async with Reader(config(cell.url)) as first:
            await first.until(lambda: first.values("Oil.Temp"))
        cursor = dict(first.cursor or {})
        forgotten = subscription_of(cell, "data", first)
        # Of the two subscriptions of this session, the new process knows only its own.
        cursor["subscriptions"] = {}
        async with Reader(config(cell.url), cursor) as second:
            await second.until(lambda: second.values("Oil.Temp"))
            await cell.set("Oil.Temp", 61.5)
            await second.until(lambda: second.values("Oil.Temp")[-1] == 61.5)
            await second.until(lambda: second.report.counts.get("messages_of_others"))
        assert second.connections == 1
    assert forgotten._not_acknowledged_results
    assert len(second.values("Oil.Temp")) == len(set(second.values("Oil.Temp")))


async def test_each_back_off_step_is_one_connection() -> None:
    """opcua-asyncio#2020: two reconnects at once, each undoing the other. Beside it: no source runs wild against a server that hangs up."""
    async with press_cell() as cell, Cable(port_of(cell)) as cable, Reader(config(cable.url)) as reader:
        await reader.until(lambda: reader.values("Oil.Temp"))
        for number in range(5):
            await cable.cut()
            await asyncio.sleep(0.25)
            await cable.plug()
            await cell.set("Oil.Temp", float(number))
            await reader.until(lambda: reader.values("Oil.Temp")[-1] == number)  # noqa: B023 - used in its turn
    assert cable.connections <= reader.connections


@pytest.mark.long
async def test_a_session_that_the_server_gave_up_during_a_long_cut_is_begun_anew_with_a_gap() -> None:
    async with press_cell() as cell, Cable(port_of(cell)) as cable, Reader(config(cable.url, session_s=10.0)) as reader:
        await reader.until(lambda: reader.values("Oil.Temp"))
        await cable.cut()
        await asyncio.sleep(25)
        await cell.set("Oil.Temp", 61.5)
        await cable.plug()
        await reader.until(lambda: reader.values("Oil.Temp")[-1] == 61.5, timeout_s=60)
    assert reader.of_type("collection.gap")


# ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────────

MAPPING = {
    "authentication": (2075,),
    "authentication.session": (2069, 2071, 2748),
    "security.channel": (2059, 2060),
    "security.certificate": (2080, 2082, 2085, 2086, 2087, 2088, 2089, 12620, 13225, 19297),
    "configuration.trust": (32306, 12561, 32260, 18011, 18029, 18047),
    "configuration": (2090, 2091, 2093, 2095, 2097, 17641, 15541, 2132, 2133, 2738, 32758),
    "data": (2099, 2100, 2104, 2999, 3006, 3012, 3014, 3019, 3022, 19095, 32803),
    "equipment.method": (2127, 2315, 11856, 3806, 23606, 23926),
    "equipment": (2790, 2803, 2829, 8927, 8944, 8961, 11093, 17225, 17242, 17259, 15013, 2130, 2131, 11446, 2782),
}
"""Which standard event types belong where; the numbers of ns=0."""


def test_every_standard_type_that_matters_to_security_has_its_place() -> None:
    for prefix, numbers in MAPPING.items():
        for number in numbers:
            assert TYPES[number].startswith(prefix), (number, ua.ObjectIdNames.get(number))
    assert {kind for kind in TYPES.values() if kind} <= TAXONOMY.keys()


async def test_every_audit_type_of_the_standard_is_known_by_itself_or_by_an_ancestor() -> None:
    """telegraf#16275: some event types came, and others never. All that a server of the standard can send has a type of ours."""
    async with press_cell() as cell, Reader(config(cell.url, nodes=(), audit=True)) as reader:
        await reader.until(lambda: "events" in (reader.cursor or {}).get("subscriptions", {}))
        audits = [each async for each in _below(cell, ua.NodeId(ua.ObjectIds.AuditEventType))]
        assert len(audits) > 30
        for kind in audits:
            await cell.audit(kind.Identifier)
        await reader.until(lambda: len(_kinds(reader)) >= len(audits), timeout_s=60)
    assert _kinds(reader) == {f"i={kind.Identifier}" for kind in audits}
    assert all(event.type in TAXONOMY for event in reader.events)
    assert "events_not_asked_for" not in reader.report.counts


async def _below(cell: PressCell, kind: Any) -> Any:
    """A type and its subtypes, as far as the server can send them."""
    yield kind
    for child in await cell.server.get_node(kind).get_children(refs=ua.ObjectIds.HasSubtype):
        async for each in _below(cell, child.nodeid):
            yield each


def _kinds(reader: Reader) -> set[str]:
    return {event.data["event_type"] for event in reader.events if "event_type" in event.data}


async def test_what_a_server_audits_of_itself_is_left_out_and_counted() -> None:
    """open62541 audits its own writes by the hundred, under a session of its own."""
    async with press_cell() as cell, Reader(config(cell.url, nodes=(), audit=True)) as reader:
        await reader.until(lambda: "events" in (reader.cursor or {}).get("subscriptions", {}))
        own = ua.NodeId.from_string("g=00000001-0000-0000-0000-000000000000")
        for session in (own, own, ua.NodeId(7, 1)):
            await cell.audit(ua.ObjectIds.AuditSessionEventType, SessionId=session, Status=True)
        await reader.until(lambda: reader.of_type("authentication.session.opened"))
    assert len(reader.events) == 1
    assert reader.report.counts["audits_internal"] == 2


async def test_no_identity_token_is_ever_asked_for() -> None:
    """A UserIdentityToken may hold a password; node-opcua masks it, others need not."""
    from agent.sources.opcua_events import EventReader

    reader = EventReader(
        "cell", Reader(config("opc.tcp://127.0.0.1:1")).report, audit=True, alarms=True, arguments=True
    )
    asked = set(_asked_for(reader.request()))
    assert "UserIdentityToken" not in asked
    assert "ClientUserId" in asked


def _asked_for(request: Any) -> Iterator[str]:
    for clause in request.RequestedParameters.Filter.SelectClauses:
        yield "/".join(part.Name for part in clause.BrowsePath)
