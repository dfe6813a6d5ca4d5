"""Modbus without a wire: bytes to values, values to events, addresses to requests, URLs and settings."""

import itertools
import math
import re
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.sources.modbus import ConfigModbus, ConfigUnit
from agent.sources.modbus_blocks import cut
from agent.sources.modbus_link import BITS_MAX, REGISTERS_MAX, ConfigTls, crc16, parse_url
from agent.sources.modbus_plan import Block, Span, block, plan
from agent.sources.modbus_points import ConfigPoint, Watch, decoder, shortest32
from agent.wire.event import Event

FORMS = {
    "int16": "h", "uint16": "H", "int32": "i", "uint32": "I", "int64": "q", "uint64": "Q", "float32": "f", "float64": "d",
}  # fmt: skip
ORDERS = st.sampled_from(["big", "little"])


def laid_out(packed: bytes, word_order: str, byte_order: str) -> bytes:
    """Big-endian bytes as a device with these orders sends them, done word by word, as the manuals describe it."""
    words = [packed[at : at + 2] for at in range(0, len(packed), 2)]
    if word_order == "little":
        words.reverse()
    return b"".join(word[::-1] if byte_order == "little" else word for word in words)


def numbers(kind: str) -> st.SearchStrategy[int | float]:
    bits = struct.calcsize(FORMS[kind]) * 8
    if kind.startswith("float"):
        return st.floats(width=32 if bits == 32 else 64)
    low = -(2 ** (bits - 1)) if kind.startswith("int") else 0
    return st.integers(low, low + 2**bits - 1)


# Bytes to values ------------------------------------------------------------------------------------------------------------------


@given(st.data(), st.sampled_from(sorted(FORMS)), ORDERS, ORDERS)
def test_every_number_comes_out_as_it_was_put_in_whatever_the_order(
    data: st.DataObject, kind: str, word_order: Any, byte_order: Any
) -> None:
    value = data.draw(numbers(kind))
    sent = laid_out(struct.pack(">" + FORMS[kind], value), word_order, byte_order)
    read = decoder(ConfigPoint(name="x", address=0, type=kind, word_order=word_order, byte_order=byte_order))(sent)
    assert read == value or (math.isnan(float(value)) and isinstance(read, float) and math.isnan(read))


@given(st.integers(0, 2**32 - 1), st.integers(0, 31), st.integers(1, 32), ORDERS, ORDERS)
def test_bit_fields_are_the_bits_of_the_number_and_no_others(
    number: int, bit: int, bits: int, word_order: Any, byte_order: Any
) -> None:
    bits = min(bits, 32 - bit)
    point = ConfigPoint(
        name="x", address=0, type="uint32", bit=bit, bits=bits, word_order=word_order, byte_order=byte_order
    )
    read = decoder(point)(laid_out(number.to_bytes(4, "big"), word_order, byte_order))
    assert read == int(f"{number:032b}"[::-1][bit : bit + bits][::-1], 2)
    assert isinstance(read, bool) == (bits == 1)


@given(st.integers(-(2**15), 2**15 - 1), st.integers(0, 15))
def test_bits_of_a_negative_number_are_those_of_its_registers(number: int, bit: int) -> None:
    point = ConfigPoint(name="x", address=0, type="int16", bit=bit)
    assert decoder(point)(struct.pack(">h", number)) is bool((number & 0xFFFF) >> bit & 1)


@given(st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126), max_size=20), ORDERS)
def test_a_text_comes_out_without_what_fills_it_up(text: str, byte_order: Any) -> None:
    point = ConfigPoint(name="x", address=0, type="string(20)", byte_order=byte_order)
    for filler in (b"\0", b" "):
        sent = laid_out(text.encode().ljust(20, filler), "big", byte_order)
        assert decoder(point)(sent) == text


@given(st.binary(min_size=20, max_size=20))
def test_whatever_stands_in_a_text_is_a_text_that_can_be_stored(sent: bytes) -> None:
    read = decoder(ConfigPoint(name="x", address=0, type="string(20)"))(sent)
    assert isinstance(read, str)
    assert "\0" not in read
    read.encode()


def test_a_text_of_odd_length_ends_where_it_was_said_to_end() -> None:
    assert decoder(ConfigPoint(name="x", address=0, type="string(3)"))(b"ABCD") == "ABC"


@given(st.binary(min_size=1, max_size=250), st.data())
def test_a_single_bit_is_cut_out_of_a_packed_answer(payload: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(payload) * 8 - 1))
    in_order = [byte >> bit & 1 for byte in payload for bit in range(8)]
    assert decoder(ConfigPoint(name="x", table="coil", address=0))(cut(payload, at, 0)) is bool(in_order[at])


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_short_float_is_still_the_same_float(value: float) -> None:
    assert struct.pack(">f", shortest32(value)) == struct.pack(">f", value)
    assert shortest32(struct.unpack(">f", struct.pack(">f", 20.1))[0]) == 20.1


# Values to events -----------------------------------------------------------------------------------------------------------------


class Point:
    """A point with its clock: feed it values, take its events."""

    def __init__(self, heartbeat_s: float = 0.0, **settings: Any) -> None:
        merged: dict[str, Any] = {"name": "p", "address": 0} | settings
        self.config = ConfigPoint(**merged)
        self.watch = Watch(self.config, 1, "plc", heartbeat_s)
        self.now_s = 1_000.0

    def see(self, value: float | str, after_s: float = 1.0) -> Event | None:
        self.now_s += after_s
        kind = self.config.kind
        sent = str(value).encode() if kind.startswith("string") else struct.pack(">" + FORMS[kind], value)
        return self.watch.see(sent, round(self.now_s * 1e6), self.now_s)

    def values(self, *seen: float) -> list[Any]:
        return [event.data["value"] for value in seen if (event := self.see(value)) is not None]


def test_what_moves_no_more_than_the_deadband_since_it_was_last_reported_is_not_reported() -> None:
    assert Point(deadband=2.0).values(100, 102, 98, 103, 104, 105, 106, 100) == [100, 103, 106, 100]
    assert Point(deadband=0.2, scale=0.1).values(100, 102, 103) == [10.0, 10.3]
    assert Point(deadband_percent=10.0).values(100, 110, 111, 122, 123) == [100, 111, 123]
    assert Point().values(5, 5, 6, 6, 5) == [5, 6, 5]


@given(st.lists(st.integers(0, 65_535), min_size=1, max_size=60), st.integers(0, 5_000))
def test_a_deadband_never_lets_the_reported_value_be_further_away_than_itself(seen: list[int], deadband: int) -> None:
    point = Point(deadband=float(deadband))
    reported: int | None = None
    for value in seen:
        event = point.see(value)
        if event is not None:
            assert reported is None or abs(event.data["value"] - reported) > deadband
            assert event.data["previous"] == reported
            reported = event.data["value"]
        assert reported is not None
        assert abs(value - reported) <= deadband


def test_what_does_not_move_is_reported_all_the_same_when_its_heartbeat_is_due() -> None:
    point = Point(heartbeat_s=10)
    assert point.see(7) is not None
    assert point.see(7, after_s=9) is None
    event = point.see(7, after_s=1)
    assert event is not None
    assert event.data["heartbeat"]
    assert (event.type, event.data["value"], event.data["previous"]) == ("equipment.reading", 7, 7)
    assert point.see(7, after_s=9) is None


def test_a_float_that_is_no_number_is_no_value_and_says_why() -> None:
    point = Point(type="float32", deadband=1.0)
    assert point.values(20.0, 20.5) == [20.0]
    event = point.see(math.nan)
    assert event is not None
    assert (event.data["value"], event.data["quality"]) == (None, "not_a_number")
    assert point.see(math.inf) is None, "it was no value before and is none now"
    event = point.see(20.0)
    assert event is not None
    assert "quality" not in event.data


def test_scaling_does_not_bring_up_digits_that_nobody_sent() -> None:
    assert Point(scale=0.1).values(203) == [20.3]
    assert Point(scale=0.1, offset=-40).values(203) == [-19.7]
    assert Point(type="float32").values(20.1) == [20.1]
    assert Point(type="uint64").values(2**64 - 1) == [2**64 - 1]


def test_texts_say_what_numbers_mean_before_and_after() -> None:
    point = Point(role="state", texts={"0": "stopped", "1": "running"})
    first = point.see(0)
    assert first is not None
    assert (first.type, first.data["text"], first.data["role"]) == ("equipment.reading", "stopped", "state")
    event = point.see(1)
    assert event is not None
    assert (event.type, event.message) == ("equipment.state.changed", "p changed from stopped to running")
    assert (event.data["text"], event.data["previous_text"]) == ("running", "stopped")
    unknown = point.see(9)
    assert unknown is not None
    assert unknown.message == "p changed from running to 9"


@pytest.mark.parametrize(
    ("role", "kind"),
    [
        ("state", "equipment.state.changed"),
        ("setpoint", "configuration.setpoint.changed"),
        ("mode", "configuration.mode.changed"),
        ("identity", "equipment.identity.changed"),
    ],
)
def test_the_first_value_of_a_role_is_a_reading_and_a_change_is_its_own_event(role: Any, kind: str) -> None:
    point = Point(role=role)
    assert [event.type if event else None for event in (point.see(1), point.see(1), point.see(2))] == [
        "equipment.reading",
        None,
        kind,
    ]


def test_a_counter_says_how_far_and_how_fast_it_went() -> None:
    point = Point(role="counter", type="uint32", scale=0.5)
    assert point.see(100) is not None
    event = point.see(140, after_s=10)
    assert event is not None
    assert (event.type, event.data["value"], event.data["delta"]) == ("equipment.counter", 70.0, 20)
    assert event.data["rate_per_s"] == 2


@given(
    st.sampled_from(["uint16", "int16", "uint32", "int32", "uint64", "int64"]),
    st.integers(0, 1_000),
    st.integers(1, 1_000),
)
def test_a_counter_that_turns_over_goes_on_counting(kind: str, below: int, further: int) -> None:
    bits = struct.calcsize(FORMS[kind]) * 8
    low = -(2 ** (bits - 1)) if kind.startswith("int") else 0
    top = low + 2**bits - 1
    point = Point(role="counter", type=kind)
    point.see(top - below)
    event = point.see(low + (further - 1))
    assert event is not None
    assert event.data["rollover"]
    assert event.data["delta"] == below + further
    assert "reset" not in event.data


@given(st.integers(1, 2**31), st.integers(0, 2**31))
def test_a_counter_that_falls_from_its_middle_began_again(before: int, after: int) -> None:
    before, after = max(before, after + 1), min(before, after)
    point = Point(role="counter", type="uint32")
    point.see(before)
    event = point.see(after)
    assert event is not None
    assert event.data["reset"]
    assert event.data["delta"] == after
    assert event.message == "p began again"
    assert "rollover" not in event.data


def test_what_a_setpoint_was_is_known_again_after_a_restart_and_not_where_it_lies_elsewhere_now() -> None:
    old = Point(role="setpoint")
    old.see(1_200)
    again = Point(role="setpoint")
    again.watch.remember(old.watch.known)
    event = again.see(1_900)
    assert event is not None
    assert (event.type, event.data["previous"]) == ("configuration.setpoint.changed", 1_200)
    moved = Point(role="setpoint", address=5)
    moved.watch.remember(old.watch.known)
    event = moved.see(1_900)
    assert event is not None
    assert event.type == "equipment.reading"


# Addresses to requests ------------------------------------------------------------------------------------------------------------

SPANS = st.lists(
    st.builds(
        Span, st.sampled_from(["coil", "discrete", "input", "holding"]), st.integers(0, 400), st.sampled_from([1, 1, 2, 4, 10])
    ).map(lambda span: Span(span.table, span.address, 1 if span.table in ("coil", "discrete") else span.count)),
    min_size=1,
    max_size=80,
)  # fmt: skip


def addresses(spans: list[Span] | list[Block]) -> set[tuple[str, int]]:
    return {(span.table, at) for span in spans for at in range(span.address, span.address + span.count)}


@given(SPANS, st.integers(10, REGISTERS_MAX), st.integers(1, 64))
def test_the_plan_asks_for_every_point_whole_and_for_nothing_else(spans: list[Span], registers: int, bits: int) -> None:
    blocks = plan(spans, registers_max=registers, bits_max=bits)
    assert sorted(span for each in blocks for span in each.spans) == sorted(set(spans))
    assert addresses(blocks) == addresses(spans), "nothing that nobody configured"
    for each in blocks:
        assert each.count <= (bits if each.table in ("coil", "discrete") else registers)
        for span in each.spans:
            assert each.address <= span.address
            assert span.address + span.count <= each.address + each.count


@given(SPANS, st.integers(1, 30))
def test_a_bridge_reads_along_at_most_so_many_addresses_and_saves_requests(spans: list[Span], bridge: int) -> None:
    bridged, strict = plan(spans, bridge_max=bridge), plan(spans)
    assert len(bridged) <= len(strict)
    wanted = addresses(spans)
    for each in bridged:
        run = 0
        for at in range(each.address, each.address + each.count):
            run = 0 if (each.table, at) in wanted else run + 1
            assert run <= bridge


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 4)), min_size=1, max_size=40))
def test_no_plan_of_non_overlapping_points_has_fewer_requests(gaps: list[tuple[int, int]]) -> None:
    """Against the least number, by trying every way to cut each run of neighbours."""
    spans, at = [], 0
    for gap, count in gaps:
        at += gap % 3
        spans.append(Span("holding", at, count))
        at += count
    limit = 10
    best = [0] + [10**9] * len(spans)
    for end in range(1, len(spans) + 1):
        for begin in range(end):
            piece = spans[begin:end]
            unbroken = all(a.address + a.count == b.address for a, b in itertools.pairwise(piece))
            if unbroken and sum(span.count for span in piece) <= limit:
                best[end] = min(best[end], best[begin] + 1)
    assert len(plan(spans, registers_max=limit)) == best[-1]


@given(SPANS)
def test_halves_hold_the_same_points_until_none_can_be_cut(spans: list[Span]) -> None:
    work = plan(spans)
    seen: list[Span] = []
    while work:
        each = work.pop()
        halves = each.halves()
        if halves is None:
            seen += each.spans
        else:
            assert halves[0].spans + halves[1].spans == each.spans
            assert addresses(list(halves)) == addresses([each])
            work += halves
    assert sorted(seen) == sorted(set(spans))


def test_a_cut_is_not_reached_across_and_what_stands_apart_is_not_asked_for() -> None:
    spans = [Span("holding", at, 1) for at in range(10)]
    assert [(b.address, b.count) for b in plan(spans, cuts={("holding", 4)})] == [(0, 4), (4, 6)]
    assert [(b.address, b.count) for b in plan(spans, cuts={("input", 4)})] == [(0, 10)]
    assert [(b.address, b.count) for b in plan(spans, apart={spans[3]})] == [(0, 3), (4, 6)]


def test_the_limits_of_the_specification_are_the_limits_of_a_request() -> None:
    assert [b.count for b in plan([Span("holding", at, 1) for at in range(300)])] == [125, 125, 50]
    assert [b.count for b in plan([Span("coil", at, 1) for at in range(4_500)])] == [2_000, 2_000, 500]
    assert (REGISTERS_MAX, BITS_MAX) == (125, 2_000)
    assert block((Span("input", 5, 2), Span("input", 6, 1))).count == 2


# Settings -------------------------------------------------------------------------------------------------------------------------


def test_checksums_are_those_of_the_specification() -> None:
    assert crc16(bytes.fromhex("01030000000a")) == bytes.fromhex("c5cd")
    assert crc16(bytes.fromhex("1103006b0003")) == bytes.fromhex("7687")


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port"),
    [
        ("tcp://10.0.0.7", "tcp", "10.0.0.7", 502),
        ("tcp://plc:1502", "tcp", "plc", 1502),
        ("tls://plc", "tls", "plc", 802),
        ("rtu+tcp://[fe80::1]:4001", "rtu+tcp", "fe80::1", 4001),
    ],
)
def test_a_gateway_is_where_its_url_says(url: str, scheme: str, host: str, port: int) -> None:
    address = parse_url(url)
    assert (address.scheme, address.host, address.port) == (scheme, host, port)


def test_a_serial_port_is_as_its_url_says() -> None:
    address = parse_url("rtu:///dev/ttyUSB0?baudrate=9600&parity=E&stopbits=2&echo=1")
    assert (address.device, address.baudrate, address.parity, address.stopbits, address.echo) == (
        "/dev/ttyUSB0",
        9600,
        "E",
        2,
        True,
    )
    assert 0.004 < address.silence_s < 0.005
    assert parse_url("tcp://x").silence_s == 0


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("10.0.0.7:502", "is not a Modbus address"),
        ("http://10.0.0.7", "is not a Modbus address"),
        ("tcp://", "names no host"),
        ("tcp://x:99999", "the port is not a number"),
        ("tcp://user:secret@x", "credentials in a URL"),
        ("rtu://ttyUSB0", "names no serial device"),
        ("rtu:///dev/ttyS0?speed=9600", "there is no serial option 'speed'"),
        ("rtu:///dev/ttyS0?baudrate=12345", "baudrate cannot be '12345'"),
    ],
)
def test_a_url_that_cannot_be_used_says_what_is_wrong_with_it(url: str, says: str) -> None:
    with pytest.raises(ValueError, match="url: ") as caught:
        ConfigModbus(url=url, points=(ConfigPoint(name="a", address=0),))
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"type": "int8"}, "there is no 'int8'"),
        ({"type": "string(0)"}, "a string has 1 to"),
        ({"type": "string(251)"}, "a string has 1 to"),
        ({"type": "float32", "address": 65_535}, "reaches beyond 65535"),
        ({"address": 65_536}, "65536 is beyond 65535; addresses count from 0"),
        ({"address": 400_101}, 'a Modicon number; if it is one, write table = "holding", address = 100'),
        ({"address": 300_001}, 'write table = "input", address = 0'),
        ({"table": "coil", "type": "uint16"}, "holds bits"),
        ({"type": "float32", "bit": 3}, "bits are taken out of integer registers"),
        ({"bit": 16}, "has the bits 0 to 15"),
        ({"bit": 10, "bits": 8}, "has the bits 0 to 15"),
        ({"bits": 4}, "needs bit"),
        ({"deadband": 1.0, "deadband_percent": 1.0}, "exclude each other"),
        ({"type": "string(4)", "role": "counter"}, "a counter is a number"),
        ({"type": "bool", "scale": 2.0}, "are for numbers"),
    ],
)
def test_a_point_that_cannot_be_says_which_key_is_wrong(settings: dict[str, Any], says: str) -> None:
    merged: dict[str, Any] = {"name": "p", "address": 0} | settings
    with pytest.raises(ValueError, match=r"^[a-z_]+: ") as caught:
        ConfigPoint(**merged)
    assert says in str(caught.value)


def test_a_gateway_that_cannot_be_says_which_key_is_wrong() -> None:
    a, b = ConfigPoint(name="a", address=0), ConfigPoint(name="b", address=1, type="string(40)")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "points: give points"),
        ({"points": (a,), "units": (ConfigUnit(unit=2, points=(a,)),)}, "points: give points"),
        ({"points": (a, a)}, "two points of unit 1 are called 'a'"),
        ({"units": (ConfigUnit(unit=2, points=(a,)), ConfigUnit(unit=2, points=(b,)))}, "stands here twice"),
        ({"units": (ConfigUnit(unit=2, points=()),)}, "has no points"),
        ({"units": tuple(ConfigUnit(unit=u, name="a", points=(a,)) for u in (2, 3))}, "two units have the same name"),
        ({"points": (a,), "unit": 0, "url": "rtu+tcp://plc:4001"}, "0 is everybody"),
        ({"points": (b,), "registers_per_request_max": 16}, "takes 20 registers"),
        ({"points": (a,), "tls": ConfigTls(ca_file="/x")}, "certificates have no use with tcp"),
        (
            {"points": (a,), "transaction_id": "ignore", "url": "rtu+tcp://plc:4001"},
            "has no transaction ids; remove it",
        ),
    ]
    for settings, says in wrong:
        with pytest.raises(ValueError, match=r"^[a-z_.]+: ") as caught:
            ConfigModbus(**({"url": "tcp://plc"} | settings))
        assert says in str(caught.value)


def test_files_and_devices_that_are_not_there_are_named_before_anything_runs() -> None:
    points = (ConfigPoint(name="a", address=0),)
    serial = ConfigModbus(url="rtu:///dev/there-is-none", points=points)
    assert [(key, what) for key, what, _ in serial.problems()] == [
        ("url", "/dev/there-is-none: there is no such device")
    ]
    tls = ConfigModbus(url="tls://plc", points=points, tls=ConfigTls(ca_file="/there/is/none"))
    assert [key for key, _, _ in tls.problems()] == ["tls.ca_file"]


@pytest.mark.parametrize(
    ("table", "address", "meant"),
    [
        ("holding", 40_101, 'table = "holding", address = 100'),
        ("holding", 49_999, 'table = "holding", address = 9998'),
        ("holding", 30_001, 'table = "input", address = 0'),
        ("input", 30_011, 'table = "input", address = 10'),
        ("discrete", 10_001, 'table = "discrete", address = 0'),
        ("holding", 40_000, ""),
        ("input", 40_101, ""),
        ("holding", 100, ""),
        ("holding", 50_001, ""),
        ("coil", 17, ""),
    ],
)
def test_an_address_that_is_written_as_in_a_manual_is_warned_of_with_the_one_on_the_wire(
    table: Any, address: int, meant: str
) -> None:
    """Linewarden counts from 0, as the wire does; 40101 of a manual is holding 100, and reading 40101 gives exception 2 for ever."""
    points = (ConfigPoint(name="a", table=table, address=1), ConfigPoint(name="oil", table=table, address=address))
    told = list(ConfigModbus(url="tcp://plc", points=points).warnings())
    assert [(key, meant in remedy) for key, _, remedy in told] == ([("points[1].address", True)] if meant else [])
    units = (ConfigUnit(unit=3, points=points[:1]), ConfigUnit(unit=4, points=points))
    told = list(ConfigModbus(url="tcp://plc", units=units).warnings())
    assert [key for key, _, _ in told] == (["units[1].points[1].address"] if meant else [])


def test_many_such_addresses_are_one_warning() -> None:
    points = tuple(ConfigPoint(name=f"p{n}", address=40_001 + n) for n in range(50))
    ((key, text, _),) = ConfigModbus(url="tcp://plc", points=points).warnings()
    assert (key, text) == (
        "points[0].address",
        "'p0' is read from address 40001 of holding (and 49 more points of unit 1)",
    )


# What signals mean ----------------------------------------------------------------------------------------------------------------


def test_what_a_signal_means_stands_in_its_events_and_costs_others_nothing() -> None:
    meant = ConfigPoint(name="oil", address=0, quantity="temperature", range=(-20, 150), machine="press 1")
    event = Watch(meant, 1, "plc", 60).see(b"\0\x07", 1, 0.0)
    assert event is not None
    told = {"quantity": "temperature", "range": [-20, 150], "machine": "press 1"}
    assert {key: event.data[key] for key in told} == told
    plain = Watch(ConfigPoint(name="oil", address=0), 1, "plc", 60).see(b"\0\x07", 1, 0.0)
    assert plain is not None
    assert event.data.keys() - plain.data.keys() == told.keys()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"quantity": "temperature", "role": "setpoint"},
            "quantity: it is for what is measured, and a setpoint is set",
        ),
        ({"quantity": "scrap_count"}, 'quantity: scrap_count is counted, so the point needs role = "counter"'),
        (
            {"quantity": "flow", "role": "counter"},
            "quantity: a counter is one of good_count, scrap_count, total_count, not flow",
        ),
        ({"quantity": "flow", "role": "state"}, "quantity: a state can only be running"),
        ({"quantity": "flow", "type": "string(4)"}, "quantity: flow is a number, and this is none"),
        ({"range": (5, 5)}, "range: write [low, high] with low below high"),
        ({"range": (0, 5), "role": "counter"}, "range: it is for numbers of the role reading"),
        ({"maintenance_at_h": 9, "quantity": "flow"}, 'maintenance_at_h: it needs quantity = "run_hours"'),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value).partition(":")[0],
)
def test_meanings_that_cannot_be_are_refused_with_what_to_do(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        ConfigPoint(name="x", address=0, **options)
    assert ConfigPoint(name="x", address=0, type="bool", quantity="running", role="state").quantity == "running"
