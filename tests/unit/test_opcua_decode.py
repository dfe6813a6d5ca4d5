"""Decoding values of OPC UA: whatever a server puts into a field, the fields and events around it come through."""

import base64
import contextlib
import struct
import zlib
from typing import Any

import msgspec
import pytest
from asyncua.common.utils import Buffer
from asyncua.ua import ua_binary
from hypothesis import given
from hypothesis import strategies as st

from agent.component import Report
from agent.sources.opcua import ConfigOpcUa, OpcUaSource
from agent.sources.opcua_decode import DEPTH_MAX, VALUES_MAX, Malformed, Reader, Structure, skip_variant, variant
from agent.sources.opcua_events import EventReader
from agent.sources.opcua_nodes import plain
from agent.sources.opcua_position import Position, Subscription
from agent.sources.opcua_private import Published, Unreadable, decode_publish, decode_read, ua

OPEN62541 = zlib.decompress(
    base64.b64decode(
        "eNpjZLBlzr18n5G78S6jKAMU/AcCIMUExIxQGkzAFDKCJaYwM/KxMjCwQlUpAzG/AJBY+STKr2XPs0jt3Vds7Lw+8wsyMphwCDIz"
        "MnAAJf0zc/RCUnMLePiBHMeSkqLMpNKSVP3wosySVN7n97eCzedle7AV6iKg6bzityA8RkYeNaCu0qI8q/yC1DwzI1MTQ73SvOT8"
        "vLTM9NKi1BS9xIKCnMzkxJLM/DweY6BSI6u8YltD63TblKRUY6OkRANdwxSLFF3jFAMT3aQUiyRdUwsD00QDi8Qki5QkK7AjeKCe"
        "BwJ2XiAB5ktwQ0R+2MNYsg4MSADF/+cLChdbOtcfs7wXYns7Lvw13P+gkHIsKkqsxOr5N+bbIJ7nstiG5PlPZtsG2vNtzEgJAcSW"
        "aAOxWBggkY8zIHzqngu/Epo6WUO237D9hY0pPCBAOkNSK0qwhoNfPzQcMvuRwyGzb8DDgQfk6/xsCR6Qr/Pys/F4fVqnRqRwcOCT"
        "K7/XSpQ6ZU9HSQNBiXnpqVj9fuYZ1O/vniH7/cTTAfe7GCNDGTOjANy3H+yhDAcMKQ5o1hDAnUUaQ6r5f/j6HVNStW491LxjMjB4"
        "/DkEGUJ5+FACxTkxJ4d3me12SJgcgzIgYXLeZjsZYWJEcpiA3AAOAmGU2IbFZXBJYlEJkvh/KAAA/VtaEg=="
    )
)
"""A PublishResponse of open62541 (master of 2026-08, auditing on), as it came over the wire: four writes by a client (a Double, an array,
a text with trailing NULs, a Range), with OldValue and NewValue, and a method call with arguments."""


def captured_fields() -> list[list[bytes]]:
    """The fields of each event of the captured message, encoded as they are there."""
    reader = Reader(OPEN62541, OPEN62541.index(struct.pack("<BBHB", 1, 0, 916, 1)) + 9)
    events = []
    for _ in range(reader.int32()):
        reader.take(4)
        fields = []
        for _ in range(reader.int32()):
            start = reader.at
            skip_variant(reader)
            fields.append(OPEN62541[start : reader.at])
        events.append(fields)
    return events


def as_variants(encoded: bytes, name: str) -> bytes:
    """OldValue and NewValue as a build of open62541 sends them that hands its Variants on as they are: within another Variant."""
    return b"\x18" + encoded if name in ("OldValue", "NewValue") and encoded != b"\0" else encoded


@pytest.mark.parametrize("nested", [False, True])
def test_audits_of_open62541_with_old_and_new_value_are_read_to_the_last(nested: bool) -> None:
    reader = EventReader("cell", Report(), audit=True, alarms=True, arguments=False)
    reader.select(core_only=False)
    reader._kinds = {ua.NodeId(number): number for number in (2100, 2127)}
    message = OPEN62541
    if nested:
        names = CAPTURED_FIELDS
        message = event_message(
            *([as_variants(each, name) for each, name in zip(event, names, strict=True)] for event in captured_fields())
        )
    published = decode_publish(Buffer(message))
    assert published.notifications is not None
    reader._fields = list(CAPTURED_FIELDS)
    (events,) = published.notifications
    namespaces = ["http://opcfoundation.org/UA/", "urn:lab"]
    taken = reader.take(events.Events, Position(), namespaces, 1).events
    written = [event for event in taken if event.type == "data.written"]
    targets = [f"nsu=urn:lab;s={name}" for name in ("Oil.Temp", "Array", "Text", "Range")]
    assert [event.target for event in written] == targets
    assert [(event.data["old_value"], event.data["new_value"]) for event in written] == [
        (1.5, 7.25),
        ([1, 2, 3], [4, 5]),
        ("ok", "nok"),
        ({"Low": 1.0, "High": 2.0}, {"Low": 3.0, "High": 4.0}),
    ]
    (called,) = (event for event in taken if event.type == "equipment.method.called")
    assert called.outcome == "success"
    assert "hunter2" not in repr(called)


CAPTURED_FIELDS = (
    "EventId", "EventType", "SourceNode", "SourceName", "Time", "ReceiveTime", "Message", "Severity", "ActionTimeStamp", "Status",
    "ServerId", "ClientAuditEntryId", "ClientUserId", "StatusCodeId", "SecureChannelId", "SessionId", "ClientCertificateThumbprint",
    "SecurityPolicyUri", "Certificate", "AttributeId", "IndexRange", "OldValue", "NewValue", "MethodId", "ConditionName", "BranchId",
    "Retain", "EnabledState/Id", "ActiveState/Id", "AckedState/Id", "ConfirmedState/Id", "SuppressedState/Id", "OutOfServiceState/Id",
    "ShelvingState/CurrentState/Id", "ConditionId",
)  # fmt: skip
"""What was selected when the message was captured."""


# ── what a field may be, byte by byte (Part 6, 5.2.2) ────────────────────────────────────────────────────────────────


def text(value: bytes | None) -> bytes:
    return struct.pack("<i", -1) if value is None else struct.pack("<i", len(value)) + value


_texts = st.builds(text, st.none() | st.binary(max_size=8))
_node_ids = st.one_of(
    st.builds(lambda number: b"\x00" + bytes([number]), st.integers(0, 255)),
    st.builds(lambda number: struct.pack("<BBH", 1, 3, number), st.integers(0, 65_535)),
    st.builds(lambda number: struct.pack("<BHI", 2, 3, number), st.integers(0, 2**32 - 1)),
    st.builds(lambda name: struct.pack("<BH", 3, 3) + name, _texts),
    st.builds(lambda guid: struct.pack("<BH", 4, 3) + guid, st.binary(min_size=16, max_size=16)),
    st.builds(lambda octets: struct.pack("<BH", 5, 3) + octets, _texts),
)
_expanded = st.builds(lambda uri: b"\xc0\x07" + uri + struct.pack("<I", 9), _texts)
_extensions = st.builds(
    lambda kind, encoding, body: kind + bytes([encoding]) + (body if encoding else b""),
    _node_ids | st.sampled_from([struct.pack("<BBH", 1, 0, number) for number in (870, 886, 298, 8917, 863)]),
    st.integers(0, 2),
    _texts,
)


@st.composite
def _diagnostics(draw: Any) -> Any:
    mask = draw(st.integers(0, 0x3F))
    own = bytes([mask]) + b"\0\0\0\0" * (mask & 0x0F).bit_count()
    own += draw(_texts) if mask & 0x10 else b""
    own += b"\0\0\0\x80" if mask & 0x20 else b""
    inner = draw(st.integers(0, 3))
    return b"".join(bytes([own[0] | 0x40]) + own[1:] for _ in range(inner)) + own


_flat: dict[int, Any] = {
    **{kind: st.binary(min_size=size, max_size=size) for kind, size in enumerate((1, 1, 1, 2, 2, 4, 4, 8, 8, 4, 8), 1)},
    12: _texts,
    13: st.binary(min_size=8, max_size=8),
    14: st.binary(min_size=16, max_size=16),
    15: _texts,
    16: _texts,
    17: _node_ids,
    18: _node_ids | _expanded,
    19: st.binary(min_size=4, max_size=4),
    20: st.builds(lambda name: b"\1\0" + name, _texts),
    21: st.builds(lambda locale, words: b"\3" + locale + words, _texts, _texts) | st.just(b"\0"),
    22: _extensions,
    25: _diagnostics(),
    26: _texts,
    31: _texts,
}


@st.composite
def _variants(draw: Any, inner: Any) -> Any:
    """A Variant of any kind: scalar, array, null array, matrix; of other Variants and DataValues too."""
    kind = draw(st.sampled_from([0, 22, 25, *_flat] if inner is None else [23, 24, 24]))
    if kind == 24:
        element = inner
    elif kind == 23:
        element = _data_values(inner)
    else:
        element = _flat.get(kind, st.just(b""))
    form = draw(st.sampled_from(["scalar", "array", "null", "matrix"]))
    if form == "scalar":
        return bytes([kind]) + draw(element)
    if form == "null":
        return bytes([kind | 0x80]) + struct.pack("<i", -1)
    items = draw(st.lists(element, min_size=4, max_size=4) if form == "matrix" else st.lists(element, max_size=3))
    body = bytes([kind | (0xC0 if form == "matrix" else 0x80)]) + struct.pack("<i", len(items)) + b"".join(items)
    return body + (struct.pack("<iii", 2, 2, draw(st.sampled_from([2, 3]))) if form == "matrix" else b"")


@st.composite
def _data_values(draw: Any, value: Any) -> Any:
    mask = draw(st.integers(0, 0x3F))
    content = draw(value) if mask & 1 else b""
    sizes = ((0x02, 4), (0x04, 8), (0x10, 2), (0x08, 8), (0x20, 2))
    return bytes([mask]) + content + b"\0" * sum(size for bit, size in sizes if mask & bit)


def _nested(levels: int) -> Any:
    strategy = _variants(None)
    for _ in range(levels):
        strategy = st.one_of(_variants(None), _variants(strategy))
    return strategy


_any_variant = _nested(4)


def event_message(*events: list[bytes], sequence: int = 9) -> bytes:
    """A PublishResponse with one EventNotificationList of these fields."""
    body = struct.pack("<i", len(events))
    for fields in events:
        body += struct.pack("<Ii", 1, len(fields)) + b"".join(fields)
    return publish(extension(916, body), sequence=sequence)


def extension(number: int, body: bytes) -> bytes:
    return struct.pack("<BBHBi", 1, 0, number, 1, len(body)) + body


def publish(*notifications: bytes, sequence: int = 9) -> bytes:
    head = struct.pack("<BBH", 1, 0, 829) + struct.pack("<qII", 0, 1, 0) + b"\0" + struct.pack("<i", -1) + b"\0\0\0"
    message = struct.pack("<Iqi", sequence, 0, len(notifications)) + b"".join(notifications)
    return head + struct.pack("<Ii", 5, -1) + b"\0" + message + struct.pack("<ii", -1, -1)


FIRST, LAST = b"\x06" + struct.pack("<i", 41), b"\x0c" + text(b"last")


@given(st.lists(_any_variant, min_size=1, max_size=3), st.lists(_any_variant, max_size=2))
def test_any_field_that_can_be_encoded_costs_no_other_field_and_no_other_event(
    one: list[bytes], other: list[bytes]
) -> None:
    published = decode_publish(Buffer(event_message([FIRST, *one, LAST], [LAST, *other, FIRST])))
    assert published.notifications is not None, published.reason
    first, second = ([field.Value for field in each.EventFields] for each in published.notifications[0].Events)
    assert (first[0], first[-1], second[0], second[-1]) == (41, "last", "last", 41)
    assert (len(first), len(second)) == (len(one) + 2, len(other) + 2)
    msgspec.json.encode([plain(value) for value in first + second])


@given(_any_variant)
def test_what_is_stepped_over_and_what_is_decoded_end_at_the_same_byte(encoded: bytes) -> None:
    decoded, skipped = Reader(encoded + b"\xff"), Reader(encoded + b"\xff")
    variant(decoded)
    skip_variant(skipped)
    assert decoded.at == skipped.at == len(encoded)


@given(_any_variant, st.integers(0, 2**32 - 1))
def test_any_value_in_a_data_change_costs_no_other_value(encoded: bytes, code: int) -> None:
    items = (
        struct.pack("<i", 2)
        + struct.pack("<IB", 1, 1)
        + encoded
        + struct.pack("<IBB", 2, 3, 6)
        + struct.pack("<iI", 7, code)
    )
    published = decode_publish(Buffer(publish(extension(811, items))))
    assert published.notifications is not None, published.reason
    (data,) = published.notifications
    assert [change.handle for change in data.changes] == [1, 2]
    assert data.changes[1][1:3] == (7, code)
    msgspec.json.encode(plain(data.changes[0].value))


@given(_any_variant)
def test_any_value_that_is_read_costs_no_other_value_of_the_read(encoded: bytes) -> None:
    head = struct.pack("<BBH", 1, 0, 634) + struct.pack("<qII", 0, 1, 0) + b"\0" + struct.pack("<i", -1) + b"\0\0\0"
    answers, _ = decode_read(Buffer(head + struct.pack("<i", 2) + b"\1" + encoded + b"\1" + LAST))
    assert answers[1].Value is not None
    assert answers[1].Value.Value == "last"


@pytest.mark.parametrize("levels", [1, DEPTH_MAX - 1, DEPTH_MAX, 2_000, 200_000])
@pytest.mark.parametrize("form", [b"\x18", b"\x98\x01\0\0\0", b"\x17\x01"])
def test_values_within_values_are_followed_to_a_depth_and_stepped_over_beyond_it(levels: int, form: bytes) -> None:
    published = decode_publish(Buffer(event_message([form * levels + LAST, FIRST])))
    assert published.notifications is not None, published.reason
    deep, after = (field.Value for field in published.notifications[0].Events[0].EventFields)
    assert after == 41
    if levels < DEPTH_MAX:
        while isinstance(deep, list):
            (deep,) = deep
        assert deep == "last"
    assert ("nested deeper" in repr(deep)) == (levels >= DEPTH_MAX)
    msgspec.json.encode(plain(deep))


@pytest.mark.parametrize("kind", [0, *_flat, 23, 24])
def test_an_array_that_announces_more_than_came_is_malformed_at_once(kind: int) -> None:
    raw = bytes([kind | 0x80]) + struct.pack("<i", 2**31 - 1) + b"\0" * 64
    if kind == 0:
        assert variant(Reader(raw)).Value is None, "nulls take no bytes, and no memory"
        return
    with pytest.raises(Malformed):
        variant(Reader(raw))


def test_a_message_of_more_values_than_anybody_means_is_declared_and_not_decoded_for_minutes() -> None:
    raw = b"\x98" + struct.pack("<i", VALUES_MAX + 1) + b"\0" * (VALUES_MAX + 1)
    with pytest.raises(Malformed, match="more than"):
        variant(Reader(raw))


def test_a_structure_of_an_unknown_type_is_json_with_its_type_and_its_bytes() -> None:
    value = variant(Reader(b"\x16" + struct.pack("<BHI", 2, 3, 70_000) + b"\1" + text(b"\xca\xfe"))).Value
    assert isinstance(value, Structure)
    assert plain(value) == {"type": "ns=3;i=70000", "bytes": 2, "body": "cafe"}


def test_a_structure_that_is_known_is_json_with_its_fields() -> None:
    unit = ua.EUInformation(
        NamespaceUri="u", UnitId=7, DisplayName=ua.LocalizedText("mm"), Description=ua.LocalizedText("x")
    )
    for value, expected in (
        (ua.Range(1.0, 2.0), {"Low": 1.0, "High": 2.0}),
        (unit, {"NamespaceUri": "u", "UnitId": 7, "DisplayName": "mm", "Description": "x"}),
        ([ua.Range(1.0, 2.0)], [{"Low": 1.0, "High": 2.0}]),
    ):
        came = variant(Reader(ua_binary.variant_to_binary(ua.Variant(value)))).Value
        assert plain(came) == expected
        assert "Range(" not in repr(plain(came))


def test_a_structure_that_holds_values_of_any_type_is_kept_as_bytes_and_not_followed_without_bound() -> None:
    """Its Variant announces two thousand million nulls, which take no bytes: asyncua's decoder would count them all."""
    body = struct.pack("<i", 1) + b"\x80" + struct.pack("<i", 2**31 - 1)
    kind = ua.typeid_by_extension_objects[ua.HistoryEventFieldList]
    came = variant(Reader(b"\x16" + ua_binary.nodeid_to_binary(kind) + b"\1" + text(body))).Value
    assert isinstance(came, Structure)
    assert came.body == body


@pytest.mark.parametrize(("sent", "stored"), [("run\0\0\0", "run"), ("\0\0", ""), ("a\0b\0", "a\0b"), ("ok", "ok")])
def test_trailing_nuls_of_a_text_go(sent: str, stored: str) -> None:
    assert plain(sent) == plain(ua.LocalizedText(sent)) == stored
    assert plain(["x", sent]) == ["x", stored]


async def test_of_a_notification_that_breaks_off_what_came_before_is_kept_and_the_rest_is_a_gap() -> None:
    changes = struct.pack("<i", 1) + struct.pack("<IBB", 1, 1, 6) + struct.pack("<i", 7)
    broken = (
        struct.pack("<i", 2) + struct.pack("<Ii", 1, 1) + FIRST + struct.pack("<Ii", 1, 1) + b"\x0c\xff\xff\xff\x7f"
    )
    published = decode_publish(Buffer(publish(extension(916, broken), extension(811, changes))))
    assert published.notifications is not None
    events, unreadable, data = published.notifications
    assert [field.Value for field in events.Events[0].EventFields] == [41]
    assert isinstance(unreadable, Unreadable)
    assert data.changes[0].value == 7
    source = OpcUaSource("cell", ConfigOpcUa(url="opc.tcp://c:1", nodes=("i=1",)), Report())
    message = Published(5, 1, [unreadable], [])
    (gap,) = await source._take(None, Position(), Subscription(5, 0, ""), message)  # type: ignore[arg-type]
    assert gap.type == "collection.gap"
    assert "could not be decoded" in gap.data["reason"]


@given(st.binary(max_size=120))
def test_arbitrary_bytes_raise_nothing_but_malformed(data: bytes) -> None:
    for read in (variant, skip_variant):
        with contextlib.suppress(Malformed):
            read(Reader(data))
