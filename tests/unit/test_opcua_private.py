"""The contract with asyncua's inside: what agent/sources/opcua_private.py leans on is there and behaves as it is taken to."""

import asyncio
import contextlib
import struct
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from asyncua.client.client import Client
from asyncua.client.ua_client import UaClient, UASocketProtocol
from asyncua.client.ua_session import UaSession
from asyncua.common.utils import Buffer
from asyncua.ua import ua_binary
from hypothesis import given
from hypothesis import strategies as st

from agent.component import NotConnected
from agent.sources.opcua_private import (
    MESSAGE_BYTES_MAX,
    Change,
    Link,
    Login,
    ReadOnlyViolation,
    Security,
    _BoundedProtocol,
    condition_refresh,
    decode_publish,
    decode_republish,
    ua,
    usable_tokens,
)


def link(*, conditions: bool = False) -> Link:
    return Link(
        "opc.tcp://127.0.0.1:1",
        Security(),
        Login(),
        application_uri="urn:x",
        timeout_s=1,
        session_s=60,
        conditions=conditions,
    )


def test_what_is_used_of_asyncuas_inside_is_there() -> None:
    client = Client("opc.tcp://127.0.0.1:1")
    assert client._server_nonce is None
    assert client._policy_ids == []
    assert client.server_policy(ua.UserTokenType.UserName).SecurityPolicyUri.endswith("#None")
    assert not client.security_policy.peer_certificate
    for owner, names in (
        (UaClient, ("_make_protocol", "_on_transport_lost", "_is_session_closing", "revolve_security_token")),
        (
            UaSession,
            ("_send_request", "restore_authentication_token", "reset_authentication_token", "browse_next", "call"),
        ),
        (UASocketProtocol, ("data_received", "disconnect_socket")),
        (ua_binary, ("struct_from_binary", "nodeid_from_binary", "unpack_uatype_array")),
    ):
        for name in names:
            assert hasattr(owner, name), name
    assert client.uaclient._timeout == 4


def test_of_all_services_only_the_reading_ones_pass_the_guard() -> None:
    guard, passing = link(conditions=True).guard, set()
    services = {
        name
        for name in dir(ua)
        if name.endswith("Request") and "RequestHeader" in getattr(getattr(ua, name), "__slots__", ())
    }
    for name in services:
        try:
            guard.observe_request(getattr(ua, name)())
        except ReadOnlyViolation:
            continue
        passing.add(name.removesuffix("Request"))
    assert len(services) > 30
    assert passing == {
        *(
            "ActivateSession",
            "BrowseNext",
            "Browse",
            "CloseSecureChannel",
            "CloseSession",
            "CreateMonitoredItems",
            "CreateSession",
        ),
        *(
            "CreateSubscription",
            "DeleteSubscriptions",
            "GetEndpoints",
            "OpenSecureChannel",
            "Publish",
            "Read",
            "Republish",
        ),
        "TransferSubscriptions",
    }


async def test_the_guard_stands_in_the_way_of_asyncuas_own_methods() -> None:
    """Whoever calls Node.write_value on our client meets it, even before there is a connection."""
    client = link()._client
    with pytest.raises(ReadOnlyViolation):
        await client.get_node("ns=2;s=Setpoint").write_value(1.0)
    with pytest.raises(ReadOnlyViolation):
        await client.get_node("ns=2;s=Object").call_method("ns=2;s=Start")


def _call(*methods: Any) -> Any:
    request = ua.CallRequest()
    request.Parameters.MethodsToCall = list(methods)
    return request


def test_condition_refresh_passes_only_where_alarms_were_asked_for_and_only_alone() -> None:
    other = ua.CallMethodRequest(ObjectId=ua.NodeId(85), MethodId=ua.NodeId(7))
    link(conditions=True).guard.observe_request(_call(condition_refresh(7)))
    for conditions, request in (
        (False, _call(condition_refresh(7))),
        (True, _call(other)),
        (True, _call(condition_refresh(7), other)),
        (True, _call()),
    ):
        with pytest.raises(ReadOnlyViolation):
            link(conditions=conditions).guard.observe_request(request)


def publish_response(values: list[Any], sequence: int = 9) -> bytes:
    response = ua.PublishResponse()
    response.Parameters.SubscriptionId = 5
    response.Parameters.MoreNotifications = False
    response.Parameters.NotificationMessage.SequenceNumber = sequence
    notification = ua.DataChangeNotification()
    notification.MonitoredItems = [
        ua.MonitoredItemNotification(ClientHandle=1, Value=ua.DataValue(ua.Variant(value))) for value in values
    ]
    response.Parameters.NotificationMessage.NotificationData = [notification]
    return bytes(ua_binary.struct_to_binary(response))


def test_of_a_publish_that_cannot_be_decoded_subscription_and_number_are_known() -> None:
    whole = publish_response([1.5, "text"])
    assert decode_publish(Buffer(whole)).notifications is not None
    damaged = decode_publish(Buffer(whole[:-30]))
    assert (damaged.subscription_id, damaged.sequence, damaged.notifications) == (5, 9, None)
    assert damaged.reason


def undecodable() -> Any:
    """What open62541 puts into OldValue, and asyncua's definition of that structure cannot read."""
    kind = ua.NodeId(ua.ObjectIds.SessionSecurityDiagnosticsDataType_Encoding_DefaultBinary)
    return ua.Variant(ua.ExtensionObject(TypeId=kind, Body=b"\x01\x02\x03"), ua.VariantType.ExtensionObject)


def message_with_undecodable_fields() -> Any:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    fields = [
        [ua.Variant("first"), undecodable(), ua.Variant(3)],
        [ua.Variant("second"), ua.Variant(None), ua.Variant(4)],
    ]
    events = ua.EventNotificationList(Events=[ua.EventFieldList(ClientHandle=1, EventFields=each) for each in fields])
    values = [
        ua.DataValue(each, SourceTimestamp=moment, ServerTimestamp=moment) for each in (undecodable(), ua.Variant(7.5))
    ]
    data = ua.DataChangeNotification(
        MonitoredItems=[ua.MonitoredItemNotification(ClientHandle=2, Value=each) for each in values]
    )
    return ua.NotificationMessage(SequenceNumber=9, NotificationData=[events, data])


@pytest.mark.parametrize("republished", [False, True])
def test_a_field_that_cannot_be_decoded_costs_itself_and_no_other_event(republished: bool) -> None:
    if republished:
        response = ua.RepublishResponse(NotificationMessage=message_with_undecodable_fields())
        published = decode_republish(5, 9, Buffer(ua_binary.struct_to_binary(response)))
    else:
        parameters = ua.PublishResult(SubscriptionId=5, NotificationMessage=message_with_undecodable_fields())
        published = decode_publish(Buffer(ua_binary.struct_to_binary(ua.PublishResponse(Parameters=parameters))))
    assert published is not None
    assert (published.subscription_id, published.sequence, published.reason) == (5, 9, "")
    assert published.notifications is not None
    came = [[field.Value for field in each.EventFields] for each in published.notifications[0].Events]
    assert came[1] == ["second", None, 4]
    assert (came[0][0], came[0][2]) == ("first", 3)
    assert "cannot be decoded" in came[0][1]
    moment = round(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1_000_000)
    assert published.notifications[1].changes[1] == Change(2, 7.5, 0, moment, moment)


_scalars = st.one_of(
    st.builds(ua.Variant, st.integers(-(2**31), 2**31 - 1), st.just(ua.VariantType.Int32)),
    st.builds(ua.Variant, st.integers(0, 2**64 - 1), st.just(ua.VariantType.UInt64)),
    st.builds(ua.Variant, st.integers(-128, 127), st.just(ua.VariantType.SByte)),
    st.builds(ua.Variant, st.floats(allow_nan=False), st.just(ua.VariantType.Double)),
    st.builds(ua.Variant, st.booleans()),
    st.builds(ua.Variant, st.text(st.characters(exclude_categories=["Cs"])), st.just(ua.VariantType.String)),
    st.builds(ua.Variant, st.binary(), st.just(ua.VariantType.ByteString)),
    st.builds(ua.Variant, st.lists(st.integers(0, 255), min_size=1), st.just(ua.VariantType.UInt16)),
)


@given(st.lists(st.tuples(_scalars, st.integers(0, 2**32 - 1), st.booleans(), st.booleans()), min_size=1, max_size=8))
def test_our_decoder_reads_what_asyncua_writes(items: list[tuple[Any, int, bool, bool]]) -> None:
    moment = datetime(2026, 1, 1, 2, 3, 4, 567_890, tzinfo=UTC)
    us = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    notified = []
    for n, (variant, code, source, server) in enumerate(items):
        times = {"SourceTimestamp": moment if source else None, "ServerTimestamp": moment if server else None}
        whole = ua.DataValue(variant, StatusCode=ua.StatusCode(code), **times)
        notified.append(ua.MonitoredItemNotification(ClientHandle=n, Value=whole))
    message = ua.NotificationMessage(
        SequenceNumber=9, NotificationData=[ua.DataChangeNotification(MonitoredItems=notified)]
    )
    parameters = ua.PublishResult(SubscriptionId=5, NotificationMessage=message)
    published = decode_publish(Buffer(ua_binary.struct_to_binary(ua.PublishResponse(Parameters=parameters))))
    assert published.notifications is not None
    assert published.notifications[0].changes == [
        Change(n, variant.Value, code, us if source else None, us if server else None)
        for n, (variant, code, source, server) in enumerate(items)
    ]


@given(st.binary(max_size=200))
def test_arbitrary_bytes_as_a_publish_raise_nothing_but_our_own_errors(data: bytes) -> None:
    with contextlib.suppress(NotConnected, ua.UaStatusCodeError):
        decode_publish(Buffer(data))
    with contextlib.suppress(ua.UaStatusCodeError):
        decode_republish(1, 2, Buffer(data))


@given(st.integers(0, 200), st.integers(0, 255))
def test_any_flipped_byte_in_a_publish_raises_nothing_but_our_own_errors(at: int, value: int) -> None:
    data = bytearray(publish_response([1.5, "text", [1, 2, 3]]))
    data[at % len(data)] = value
    with contextlib.suppress(NotConnected, ua.UaStatusCodeError):
        decode_publish(Buffer(bytes(data)))


def test_of_the_ways_to_sign_in_the_best_that_can_be_used_comes_first() -> None:
    def token(policy: str) -> Any:
        uri = f"http://opcfoundation.org/UA/SecurityPolicy#{policy}" if policy else ""
        return ua.UserTokenPolicy(PolicyId=policy, TokenType=ua.UserTokenType.UserName, SecurityPolicyUri=uri)

    offered = [token(name) for name in ("ECC_nistP256", "None", "Basic256Sha256", "Aes256_Sha256_RsaPss", "")]
    for channel, order in (
        ("None", ["Aes256_Sha256_RsaPss", "Basic256Sha256", "None", ""]),
        ("Aes256_Sha256_RsaPss", ["Aes256_Sha256_RsaPss", "", "Basic256Sha256", "None"]),
    ):
        usable = usable_tokens(offered, f"http://opcfoundation.org/UA/SecurityPolicy#{channel}")
        assert [each.PolicyId for each in usable] == order


class _Transport(asyncio.Transport):
    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("cut", [0, 3, 8, 20])
def test_a_message_that_announces_too_much_ends_the_connection_however_it_is_cut(cut: int) -> None:
    protocol, transport = _BoundedProtocol(1), _Transport()
    protocol.connection_made(transport)
    announced = struct.pack("<3scI", b"MSG", b"F", MESSAGE_BYTES_MAX + 1) + b"\0" * 20
    for part in (announced[:cut], announced[cut:]):
        protocol.data_received(part)
    assert transport.closed
