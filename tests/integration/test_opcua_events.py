"""Audits, alarms, diagnostics, browse and trust, against a real server."""

import asyncio
import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from asyncua import ua as _ua
from asyncua.common import events as ua_events

from agent import cli
from agent.component import ConfigError
from agent.simulator.opcua_server import NAMESPACE, PASSWORD, USER, PressCell
from agent.sources import opcua_tools
from agent.sources.opcua_browse import ConfigBrowse
from agent.sources.opcua_connect import Access
from agent.sources.opcua_events import ConfigEvent
from agent.sources.opcua_nodes import ConfigNode, as_text
from agent.sources.opcua_trust import thumbprint
from tests.integration.opcua_line import Cable, Reader, config, node, press_cell

ua: Any = _ua


async def test_a_refused_sign_in_at_the_server_is_an_authentication_failure_with_its_user_as_personal_data() -> None:
    """telegraf#12518, vector#17593: events were asked for over years."""
    async with press_cell() as cell, Reader(config(cell.url, audit=True)) as reader:
        await reader.until(lambda: reader.values("Oil.Temp"))
        await cell.audit_login("mallory", ok=False)
        await cell.audit_login("adam", ok=True)
        await reader.until(lambda: reader.of_type("authentication.success"))
    (failure,) = reader.of_type("authentication.failure")
    assert (failure.actor, failure.outcome, failure.severity) == ("mallory", "failure", 3)
    assert failure.data["status"] == "BadUserAccessDenied"
    assert failure.data["event_type_name"] == "AuditActivateSessionEventType"
    assert "mallory" not in repr(failure.data) + str(failure.message)
    assert reader.of_type("authentication.success")[0].severity == 1


@pytest.mark.parametrize(
    ("standard", "ours"),
    [
        ("AuditWriteUpdateEventType", "data.written"),
        ("AuditUpdateMethodEventType", "equipment.method.called"),
        ("AuditCertificateUntrustedEventType", "security.certificate.untrusted"),
        ("AuditCertificateExpiredEventType", "security.certificate.invalid"),
        ("AuditOpenSecureChannelEventType", "security.channel.opened"),
        ("AuditAddNodesEventType", "configuration.changed"),
        ("AuditConditionAcknowledgeEventType", "equipment.alarm.acknowledged"),
        ("AuditHistoryEventDeleteEventType", "data.deleted"),
        ("DeviceFailureEventType", "equipment.fault"),
        ("GeneralModelChangeEventType", "configuration.changed"),
    ],
)
async def test_each_standard_audit_has_its_place_in_the_taxonomy(
    audited: tuple[PressCell, Reader], standard: str, ours: str
) -> None:
    cell, reader = audited
    await cell.audit(getattr(ua.ObjectIds, standard))
    await reader.until(lambda: reader.of_type(ours))
    (event,) = reader.of_type(ours)
    assert event.data["event_type_name"] == standard


@pytest.fixture
async def audited() -> Any:
    async with press_cell() as cell, Reader(config(cell.url, nodes=(), audit=True)) as reader:
        await reader.until(lambda: "events" in (reader.cursor or {}).get("subscriptions", {}))
        yield cell, reader


async def test_a_vendors_subtype_is_classified_by_its_nearest_known_ancestor(audited: tuple[PressCell, Reader]) -> None:
    cell, reader = audited
    index = await cell.server.get_namespace_index(NAMESPACE)
    kind = await cell.server.create_custom_event_type(
        index, "RecipeWriteAudit", ua.ObjectIds.AuditWriteUpdateEventType, [("Recipe", ua.VariantType.String)]
    )
    generator = await cell.server.get_event_generator(kind, ua.ObjectIds.Server)
    await generator.trigger(message="")
    await reader.until(lambda: reader.of_type("data.written"))
    (event,) = reader.of_type("data.written")
    assert event.data["event_type"].startswith(f"nsu={NAMESPACE};")


async def test_events_of_a_machines_own_types_come_where_they_were_asked_for_with_their_fields() -> None:
    """Plain subtypes of BaseEventType: no audit, no condition, and what many machines report their work with."""
    async with press_cell() as cell:
        index = await cell.server.get_namespace_index(NAMESPACE)
        kind = await cell.server.create_custom_event_type(
            index, "RecipeLoaded", ua.ObjectIds.BaseEventType, [("Recipe", ua.VariantType.String)]
        )
        generator = await cell.server.get_event_generator(kind, ua.ObjectIds.Server)
        generator.event.Recipe = "A7\0\0"
        asked = ConfigEvent(
            event=as_text(kind.nodeid, ["", "", NAMESPACE]), type="equipment.recipe.loaded", fields=("Recipe",)
        )
        everything = {"events": ("i=2041",)}
        async with (
            Reader(config(cell.url, nodes=(), events=(asked,))) as reader,
            Reader(config(cell.url, nodes=(), **everything)) as other,
        ):
            for each in (reader, other):
                await each.until(lambda: "events" in (each.cursor or {}).get("subscriptions", {}))  # noqa: B023 - used in its turn
            await cell.audit(ua.ObjectIds.AuditActivateSessionEventType)
            await generator.trigger(message="loaded")
            await reader.until(lambda: reader.events)
            await other.until(lambda: len(other.events) == 2)
    (event,) = reader.events
    assert (event.type, event.data["Recipe"], event.raw) == ("equipment.recipe.loaded", "A7", "loaded")
    assert [each.type for each in other.events] == ["equipment.event", "equipment.event"]


async def test_old_and_new_value_of_a_write_are_kept_and_arguments_of_a_method_are_not(
    audited: tuple[PressCell, Reader],
) -> None:
    cell, reader = audited
    await cell.audit(
        ua.ObjectIds.AuditWriteUpdateEventType,
        OldValue=ua.Variant(1200.0),
        NewValue=ua.Variant(1900.0),
        ClientUserId="mallory",
    )
    await cell.audit(ua.ObjectIds.AuditUpdateMethodEventType, InputArguments=["hunter2"])
    await reader.until(lambda: reader.of_type("equipment.method.called"))
    (written,) = reader.of_type("data.written")
    assert (written.data["old_value"], written.data["new_value"], written.actor) == (1200.0, 1900.0, "mallory")
    assert "hunter2" not in repr(reader.events)


async def test_severity_zero_is_derived_and_a_servers_severity_never_makes_an_audit_harmless(
    audited: tuple[PressCell, Reader],
) -> None:
    cell, reader = audited
    await cell.audit(ua.ObjectIds.AuditActivateSessionEventType, Status=False, Severity=1)
    await cell.audit(ua.ObjectIds.AuditActivateSessionEventType, Status=False, Severity=900)
    await reader.until(lambda: len(reader.of_type("authentication.failure")) == 2)
    assert [event.severity for event in reader.of_type("authentication.failure")] == [3, 4]


async def test_refused_sessions_are_noticed_on_servers_that_audit_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.sources.opcua_watch.DIAGNOSTICS_POLL_S", 0.1)
    async with press_cell() as cell, Reader(config(cell.url, audit=True)) as reader:
        counter = ua.NodeId(ua.ObjectIds.Server_ServerDiagnostics_ServerDiagnosticsSummary_SecurityRejectedSessionCount)
        await cell.server.write_attribute_value(counter, ua.DataValue(ua.Variant(5, ua.VariantType.UInt32)))
        await reader.until(
            lambda: (reader.cursor or {}).get("counters", {}).get("SecurityRejectedSessionCount") == 5 or _moved(cell)
        )
        await cell.server.write_attribute_value(counter, ua.DataValue(ua.Variant(8, ua.VariantType.UInt32)))
        await reader.until(lambda: reader.of_type("authentication.session.rejected"))
    event = reader.of_type("authentication.session.rejected")[-1]
    assert event.data == {"counter": "SecurityRejectedSessionCount", "count": 3}


def _moved(cell: PressCell) -> bool:
    """The cursor moves with events only: make one."""
    asyncio.get_running_loop().create_task(cell.step())
    return False


async def _condition(cell: PressCell, *, active: bool, acked: bool, severity: int = 700, name: str = "OilHot") -> None:
    event = ua_events.Event()
    index = await cell.server.get_namespace_index(NAMESPACE)
    boolean, string = ua.VariantType.Boolean, ua.VariantType.String
    fields: dict[str, tuple[Any, Any]] = {
        "EventId": (b"%d" % severity, ua.VariantType.ByteString),
        "EventType": (ua.NodeId(ua.ObjectIds.ExclusiveLevelAlarmType), ua.VariantType.NodeId),
        "SourceNode": (ua.NodeId("Oil.Temp", index), ua.VariantType.NodeId),
        "SourceName": ("Oil.Temp", string),
        "Message": (ua.LocalizedText("too hot"), ua.VariantType.LocalizedText),
        "Severity": (severity, ua.VariantType.UInt16),
        "ConditionName": (name, string),
        "Retain": (active or not acked, boolean),
        "EnabledState/Id": (True, boolean),
        "ActiveState/Id": (active, boolean),
        "AckedState/Id": (acked, boolean),
        "NodeId": (ua.NodeId(name, index), ua.VariantType.NodeId),
    }
    for key, (value, kind) in fields.items():
        event.add_property(key, value, kind)
    event.emitting_node = ua.NodeId(ua.ObjectIds.Server)
    await cell.server.iserver.subscription_service.trigger_event(event)


async def test_an_alarm_is_raised_acknowledged_and_cleared_once_each_and_told_after_a_reconnect_only_if_it_changed() -> (
    None
):
    async with press_cell() as cell:
        port = int(cell.url.split(":")[2].split("/")[0])
        async with Cable(port) as cable, Reader(config(cable.url, nodes=(), alarms=True)) as reader:
            await reader.until(lambda: "events" in (reader.cursor or {}).get("subscriptions", {}))
            await _condition(cell, active=True, acked=False)
            await _condition(cell, active=True, acked=False, severity=701)
            await _condition(cell, active=True, acked=True)
            await _condition(cell, active=False, acked=True)
            await reader.until(lambda: reader.of_type("equipment.alarm.cleared"))
            assert [event.type.rpartition(".")[2] for event in reader.events] == ["raised", "acknowledged", "cleared"]
            assert (reader.events[0].severity, reader.events[0].target, reader.events[0].raw) == (
                4,
                "Oil.Temp",
                "too hot",
            )
            await _condition(cell, active=True, acked=False, name="Second")
            await reader.until(lambda: len(reader.of_type("equipment.alarm.raised")) == 2)
            await cable.cut()
            await cable.plug()
            await reader.until(lambda: reader.connections == 2)
            await _condition(cell, active=False, acked=False, name="Second")
            await reader.until(lambda: len(reader.of_type("equipment.alarm.cleared")) == 2)
    assert len(reader.of_type("equipment.alarm.raised")) == 2


_REQUESTS = {
    str(getattr(ua.ObjectIds, name)): name.removesuffix("_Encoding_DefaultBinary")
    for name in dir(ua.ObjectIds)
    if name.endswith("Request_Encoding_DefaultBinary")
}
"""Number on the wire → service."""


def services(sent: bytes) -> list[str]:
    """The services in what a client sent over an unencrypted channel, from the bytes alone: header, token, sequence, request type."""
    found, at = [], 0
    while at + 8 <= len(sent):
        kind, size = sent[at : at + 3], struct.unpack_from("<I", sent, at + 4)[0]
        if kind == b"MSG":
            encoding, number = sent[at + 24], 0
            number = sent[at + 25] if encoding == 0 else struct.unpack_from("<H", sent, at + 26)[0]
            found.append(_REQUESTS[str(number)])
        at += size
    return found


async def test_nothing_but_reading_services_goes_over_the_wire_and_of_calls_only_condition_refresh() -> None:
    allowed = re.compile(
        "(Create|Activate)Session|GetEndpoints|Read|Browse|Create(Subscription|MonitoredItems)|Publish|Republish|Transfer|Delete.*Subscri"
    )
    for alarms in (False, True):
        async with press_cell() as cell:
            port = int(cell.url.split(":")[2].split("/")[0])
            browse = (ConfigBrowse(root=node("Line")),)
            async with Cable(port) as cable:
                async with Reader(config(cable.url, audit=True, alarms=alarms, browse=browse)) as reader:
                    await reader.until(lambda: reader.values("Oil.Temp"))
                    await cell.step()
                    await reader.until(lambda: reader.values("Press.Cycles")[-1] == 1)
                    await cable.cut()
                    await cable.plug()
                    await cell.step()
                    await reader.until(lambda: reader.values("Press.Cycles")[-1] == 2)
                sent = services(bytes(cable.upstream))
        unusual = [service for service in sent if not allowed.match(service)]
        assert len(sent) > 20
        assert set(unusual) == ({"CallRequest"} if alarms else set())
        assert bytes(cable.upstream).count(
            struct.pack("<BBH", 1, 0, ua.ObjectIds.ConditionType_ConditionRefresh)
        ) == sent.count("CallRequest")


async def test_browse_watches_what_matches_below_a_root_and_says_when_nothing_does() -> None:
    browse = (
        ConfigBrowse(root=node("Line"), match="*.Status", role="state"),
        ConfigBrowse(root=node("Line"), match="*.Nothing"),
    )
    async with press_cell() as cell, Reader(config(cell.url, nodes=(), browse=browse)) as reader:
        await reader.until(lambda: len(reader.of_type("equipment.state.changed")) == 3)
        await cell.set("Line.Robot.Status", "fault")
        await reader.until(lambda: reader.values("Line.Robot.Status")[-1] == "fault")
    assert {event.target for event in reader.events} == {"Line.Press.Status", "Line.Feeder.Status", "Line.Robot.Status"}
    assert "nothing below" in reader.report.trouble[f"browse {node('Line')}"]


async def test_the_browse_command_gives_configuration_that_works() -> None:
    async with press_cell() as cell:
        found = await opcua_tools.browse(cell.url, root=node("Cell"), match="Oil.*")
        assert {each.node for each in found.variables} == {node("Oil.Temp"), node("Oil.Pressure")}
        assert found.variables[0].kind == "Double"
        few = await opcua_tools.browse(cell.url, root=node("Cell"), nodes_max=3)
        assert (len(few.variables), few.complete) == (3, False)
    import tomllib

    assert tomllib.loads(opcua_tools.as_configuration(found.variables))["nodes"] == [
        each.node for each in found.variables
    ]


@pytest.mark.parametrize("given", ["--source", "url", "options"])
async def test_the_browse_command_signs_in_as_the_configured_source_or_by_its_own_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    """A source that has no nodes yet: that is when somebody browses."""
    (tmp_path / "password").write_text(PASSWORD)
    async with press_cell(certificates=tmp_path / "server", anonymous=False) as cell:
        await opcua_tools.trust(cell.url, tmp_path / "state" / "opcua")
        access = {
            "security": "Basic256Sha256/SignAndEncrypt",
            "user": USER,
            "password_file": str(tmp_path / "password"),
        }
        source = {"type": "opcua", "url": cell.url, **(access if given != "options" else {})}
        lines = [f'[agent]\nstate_dir = "{tmp_path / "state"}"\n[sources.cell]']
        (tmp_path / "agent.toml").write_text(
            "\n".join([*lines, *(f'{key} = "{value}"' for key, value in source.items())])
        )
        own = [text for key, value in access.items() for text in (f"--{key.replace('_', '-')}", value)]
        which = {"--source": ["--source", "cell"], "url": [cell.url], "options": [cell.url, *own]}[given]
        command = ["browse", *which, "--root", node("Cell"), "--match", "Oil.*", "--json"]
        code = await asyncio.to_thread(cli.main, [*command, "--config", str(tmp_path / "agent.toml")])
        if given == "options":
            refused = await asyncio.to_thread(
                cli.main, ["browse", cell.url, "--config", str(tmp_path / "agent.toml"), "--security", "None"]
            )
            assert refused == 2
    printed, said = capsys.readouterr()
    assert code == 0, said
    assert {each["path"] for each in json.loads(printed)["variables"]} == {"Oil.Temp", "Oil.Pressure"}
    assert PASSWORD not in printed + said


async def test_trust_writes_the_shown_certificate_where_the_source_looks_for_it(tmp_path: Path) -> None:
    async with press_cell(certificates=tmp_path / "server") as cell:
        trusted = await opcua_tools.trust(cell.url, tmp_path / "agent" / "opcua")
        assert trusted.thumbprint == thumbprint((tmp_path / "server" / "server.der").read_bytes())
        assert trusted.replaced_thumbprint is None
        settings = config(cell.url, security="Basic256Sha256/SignAndEncrypt", state_dir=str(tmp_path / "agent"))
        async with Reader(settings) as reader:
            await reader.until(lambda: reader.values("Oil.Temp"))
        access = Access(url=cell.url, security="Basic256Sha256/Sign", state_dir=str(tmp_path / "agent"))
        assert (await opcua_tools.browse(cell.url, access=access, root=node("Cell"))).variables


async def test_trust_of_a_server_without_encryption_says_that_there_is_nothing_to_trust(tmp_path: Path) -> None:
    async with press_cell() as cell:
        with pytest.raises(ConfigError, match="shows no certificate"):
            await opcua_tools.trust(cell.url, tmp_path)


async def test_ranges_that_the_server_knows_come_with_the_values_of_signals_that_say_what_they_are() -> None:
    """InstrumentRange before EURange; one that nobody filled in counts as none; a range of the configuration wins."""
    nodes = (
        ConfigNode(node=node("Spindle.Temp"), quantity="temperature"),
        ConfigNode(node=node("Spindle.Vibration"), quantity="vibration", machine="spindle"),
        ConfigNode(node=node("Spindle.Speed"), quantity="speed"),
        ConfigNode(node=node("Oil.Temp"), quantity="temperature"),
        ConfigNode(node=node("Oil.Pressure"), quantity="pressure", range=(0.0, 400.0)),
        ConfigNode(node=node("Quality.Width")),
        ConfigNode(node=node("Not.There"), quantity="flow"),
    )
    async with press_cell() as cell, Reader(config(cell.url, nodes=nodes)) as reader:
        await reader.until(lambda: len({event.target for event in reader.events}) >= 6)
        await cell.set("Spindle.Temp", 71.5)
        await reader.until(lambda: reader.values("Spindle.Temp")[-1] == 71.5)
    last = {event.target: event.data for event in reader.events}
    assert last["Spindle.Temp"]["range"] == [-20.0, 150.0]
    assert last["Spindle.Vibration"]["range"] == [0.0, 20.0]
    assert last["Spindle.Vibration"]["machine"] == "spindle"
    assert last["Oil.Pressure"]["range"] == [0.0, 400.0]
    assert all("range" not in last[name] for name in ("Spindle.Speed", "Oil.Temp", "Quality.Width"))
    assert not {"quantity", "range", "machine", "maintenance_at_h"} & set(last["Quality.Width"])
