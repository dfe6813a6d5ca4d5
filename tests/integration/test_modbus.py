"""The Modbus source against a device that misbehaves in every way that devices do."""

import asyncio
import random
import shutil
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent.sources.modbus import ConfigUnit
from agent.sources.modbus_link import Exceptional, Link, NoAnswer, Timing, parse_url
from tests.integration.modbus_line import Device, Reader, Request, config, point, serial_line

FRAMINGS = ["tcp", "rtu"]


def said(reader: Reader, kind: str, times: int) -> bool:
    return len(reader.of_type(kind)) == times


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_values_of_all_tables_come_as_events_and_again_only_when_they_change(framing: Any) -> None:
    async with Device(framing) as device:
        device.set(1, "holding", 100, *struct.unpack(">HH", struct.pack(">f", 61.5)))
        device.set(1, "input", 7, 1234)
        device.set(1, "coil", 0, 1, 0, 1)
        device.set(1, "discrete", 65_535, 1)
        points = [
            point("oil", 100, type="float32", unit="degC"),
            point("level", 7, table="input", scale=0.1),
            *(point(f"coil{at}", at, table="coil") for at in range(3)),
            point("door", 65_535, table="discrete"),
        ]
        async with Reader(config(device.url, *points, heartbeat_s=0)) as reader:
            await reader.until(lambda: len(reader.events) == 6)
            assert {event.target: event.data["value"] for event in reader.events} == {
                "oil": 61.5, "level": 123.4, "coil0": True, "coil1": False, "coil2": True, "door": True,
            }  # fmt: skip
            assert {event.type for event in reader.events} == {"equipment.reading"}
            assert reader.events[0].data["unit_id"] == 1
            asked = len(device.requests)
            await reader.until(lambda: len(device.requests) >= asked + 12)
            assert len(reader.events) == 6
            device.set(1, "coil", 1, 1)
            await reader.until(lambda: reader.values("coil1") == [False, True])
            assert len(reader.events) == 7
    assert device.open_most == 1, "one client a gateway"


async def test_neighbouring_points_are_one_request_and_nothing_that_nobody_configured_is_read() -> None:
    async with Device() as device:
        device.set(1, "holding", 0, *range(300))
        points = [point(f"p{at}", at) for at in [*range(10), *range(20, 40), 299]]
        async with Reader(config(device.url, *points)) as reader:
            await reader.until(lambda: len(reader.events) == 31)
            assert {(r.address, r.count) for r in device.requests} == {(0, 10), (20, 20), (299, 1)}


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_an_address_that_the_device_refuses_costs_no_other_point_its_value(framing: Any) -> None:
    """telegraf#14671, wb-mqtt-serial#124: an illegal address aborted the whole coalesced read. Split on error, and remembered."""
    async with Device(framing) as device:
        device.set(1, "holding", 0, *range(16))
        for hole in (5, 11):
            del device.memory[1, "holding"][hole]
        async with Reader(config(device.url, *(point(f"p{at}", at) for at in range(16)))) as reader:
            await reader.until(lambda: len({e.target for e in reader.of_type("equipment.reading")}) == 14)
            refused = reader.of_type("device.exception")
            await reader.until(lambda: len(device.requests) > 60)
            assert sorted(event.data["points"] for event in refused) == [["p11"], ["p5"]]
            assert {(event.data["exception_code"], event.data["function"], event.outcome) for event in refused} == {
                (2, 3, "failure")
            }
            assert len(reader.of_type("device.exception")) == 2, "said once"
            steady = {(r.address, r.count) for r in device.requests[-12:]}
            assert steady == {(0, 5), (6, 5), (12, 4)}, "what it learned it does not try again"
            assert "p5" in reader.report.trouble["unit 1 holding 5"]
            assert not reader.of_type("device.comms.lost")


async def test_a_refused_address_that_appears_later_is_read_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.sources.modbus_units.RETRY_S", 0.3)
    async with Device() as device:
        device.set(1, "holding", 0, 1, 2)
        async with Reader(config(device.url, *(point(f"p{at}", at) for at in range(3)))) as reader:
            await reader.until(lambda: reader.of_type("device.exception"))
            device.set(1, "holding", 2, 3)
            await reader.until(lambda: reader.values("p2") == [3])
            assert [event.outcome for event in reader.of_type("device.exception")] == ["failure", "success"]
            await reader.until(lambda: not reader.report.trouble)


async def test_many_refused_addresses_are_not_asked_for_again_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.sources.modbus_units.RETRY_S", 0.2)
    async with Device() as device:
        device.set(1, "holding", 0, 1)
        points = [point(f"p{at}", at) for at in range(30)]
        async with Reader(config(device.url, *points)) as reader:
            await reader.until(lambda: len(reader.of_type("device.exception")) == 29)
            await reader.until(lambda: device.requests[-1].address == 0)
            asked = len(device.requests)
            await reader.until(lambda: len(device.requests) >= asked + 30)
            again = [r.address for r in device.requests[asked : asked + 30]]
            assert again.count(0) >= 8, "at most two of them a cycle"


async def test_a_device_that_answers_illegal_addresses_with_silence_keeps_its_other_values() -> None:
    async with Device() as device:
        device.set(1, "holding", 0, *range(20))

        def silent_at_hole(request: Request, body: bytes) -> bytes | None:
            return None if request.address <= 13 < request.address + request.count else body

        device.body = silent_at_hole
        points = [point("a", 0), *(point(f"p{at}", at) for at in range(10, 18))]
        async with Reader(config(device.url, *points, timeout_s=0.15)) as reader:
            await reader.until(lambda: len({e.target for e in reader.of_type("equipment.reading")}) == 8)
            await reader.until(lambda: any("p13" in text for text in reader.report.trouble.values()))
            assert not reader.of_type("device.comms.lost")


async def test_an_exception_is_an_event_when_it_begins_changes_and_ends_and_never_a_value() -> None:
    """home-assistant/core#51103: a busy slave was recorded as 0."""
    async with Device() as device:
        device.set(1, "holding", 0, 55)
        async with Reader(config(device.url, point("p", 0))) as reader:
            await reader.until(lambda: reader.values("p") == [55])
            for number, code in enumerate((6, 4), 1):
                device.exceptions[1] = code
                await reader.until(partial(said, reader, "device.exception", number))
            device.exceptions.clear()
            await reader.until(lambda: len(reader.of_type("device.exception")) == 3)
            codes = [(e.data["exception_code"], e.data["previous_code"]) for e in reader.of_type("device.exception")]
            assert codes == [(6, None), (4, 6), (None, 4)]
            assert reader.values("p") == [55]
            assert not reader.report.trouble


async def test_a_dead_unit_behind_a_gateway_costs_its_neighbours_nothing() -> None:
    """telegraf#11782: one dead slave discarded the data of all. node-red-contrib-modbus#446: it stalled the gateway."""
    async with Device() as device:
        units = []
        for unit in (1, 2, 3):
            device.set(unit, "holding", 0, unit)
            units.append(ConfigUnit(unit=unit, points=(point("p", 0),)))
        async with Reader(config(device.url, points=(), units=tuple(units), interval_s=0.1, timeout_s=0.5)) as reader:
            await reader.until(lambda: sorted(reader.values("p")) == [1, 2, 3])
            device.silent.add(2)
            await reader.until(lambda: reader.of_type("device.comms.lost"))
            lost = reader.of_type("device.comms.lost")[0]
            assert (lost.target, lost.data["unit_id"]) == ("unit 2", 2)
            begun, before = time.monotonic(), len(device.requests)
            await reader.until(lambda: len([r for r in device.requests[before:] if r.unit == 1]) >= 20)
            spent = time.monotonic() - begun
            to_dead = len([r for r in device.requests[before:] if r.unit == 2])
            assert to_dead <= 6, "it is asked once in a while"
            assert spent < 20 * 0.1 + 0.5 + 2, "the others keep their pace"
            device.set(1, "holding", 0, 100)
            await reader.until(lambda: 100 in reader.values("p"))
            assert reader.report.trouble.keys() == {"unit 2"}
            device.set(2, "holding", 0, 200)
            device.silent.clear()
            await reader.until(lambda: 200 in reader.values("p"))
            restored = reader.of_type("device.comms.restored")[0]
            assert restored.target == "unit 2"
            gap = reader.of_type("collection.gap")[0]
            assert (gap.data["unit_id"], gap.data["from_us"]) == (2, restored.data["lost_us"])
            assert not reader.report.trouble


async def test_a_gateway_that_answers_for_a_unit_that_is_not_there_tells_of_a_lost_unit() -> None:
    async with Device() as device:
        units = tuple(ConfigUnit(unit=unit, points=(point("p", 0),)) for unit in (1, 9))
        device.set(1, "holding", 0, 1)
        device.exceptions[9] = 11
        async with Reader(config(device.url, points=(), units=units)) as reader:
            await reader.until(lambda: reader.of_type("device.comms.lost"))
            assert "gateway target did not respond" in (reader.of_type("device.comms.lost")[0].message or "")
            assert reader.values("p") == [1]


# Answers that are none -----------------------------------------------------------------------------------------------------------


def _other_transaction(_: Request, frame: bytes) -> bytes:
    return bytes((frame[0] ^ 0x55, frame[1] ^ 0x55)) + frame[2:]


def _other_unit(_: Request, frame: bytes) -> bytes:
    return frame[:6] + bytes((frame[6] + 1,)) + frame[7:]


def _other_protocol(_: Request, frame: bytes) -> bytes:
    return frame[:2] + b"\0\1" + frame[4:]


def _other_function(_: Request, frame: bytes) -> bytes:
    return frame[:7] + bytes((frame[7] ^ 1,)) + frame[8:]


def _more_than_asked(request: Request, _: bytes) -> bytes:
    body = bytes((3, request.count * 2 + 2)) + b"\0\x07" * (request.count + 1)
    return b"\0\1\0\0" + struct.pack(">HB", len(body) + 1, request.unit) + body


def _count_that_lies(_: Request, frame: bytes) -> bytes:
    return frame[:8] + bytes((frame[8] + 4,)) + frame[9:]


def _cut_short(_: Request, frame: bytes) -> bytes:
    return frame[:-1]


def _garbage(_: Request, frame: bytes) -> bytes:
    return b"\xde\xad" * len(frame)


def _http(_: Request, frame: bytes) -> bytes:
    del frame
    return b"HTTP/1.1 400 Bad Request\r\n\r\n"


@pytest.mark.parametrize(
    "wrong",
    [
        _other_transaction,
        _other_unit,
        _other_protocol,
        _other_function,
        _more_than_asked,
        _count_that_lies,
        _cut_short,
        _garbage,
        _http,
    ],
)
async def test_what_is_not_the_answer_is_never_a_value_and_the_right_one_is_taken_again(
    wrong: Callable[[Request, bytes], bytes],
) -> None:
    async with Device() as device:
        device.set(1, "holding", 0, 5, 6)
        right = device.frame
        async with Reader(config(device.url, point("a", 0), point("b", 1), timeout_s=0.15)) as reader:
            await reader.until(lambda: reader.values("a") == [5])
            device.frame = wrong
            await reader.until(lambda: reader.of_type("device.comms.lost"))
            device.set(1, "holding", 0, 8)
            device.frame = right
            await reader.until(lambda: reader.of_type("device.comms.restored"))
            await reader.until(lambda: reader.values("a")[-1] == 8)
            assert reader.values("a")[0] == 5
            assert set(reader.values("a")) == {5, 8}
            assert set(reader.values("b")) == {6}


@pytest.mark.parametrize("wrong", ["checksum", "unit", "function", "length", "noise"])
async def test_what_is_not_the_answer_on_a_serial_line_is_never_a_value(wrong: str) -> None:
    def mangle(request: Request, frame: bytes) -> bytes:
        from agent.sources.modbus_link import crc16

        body = {
            "checksum": frame[:-2],
            "unit": bytes((9,)) + frame[1:-2],
            "function": frame[:1] + bytes((4,)) + frame[2:-2],
            "length": frame[:2] + bytes((frame[2] + 2,)) + frame[3:-2] + b"\0\7",
            "noise": bytes(range(40)),
        }[wrong]
        del request
        return body + (b"\0\0" if wrong in ("checksum", "noise") else crc16(body))

    async with Device("rtu") as device:
        device.set(1, "holding", 0, 5, 6)
        right = device.frame
        async with Reader(config(device.url, point("a", 0), point("b", 1), timeout_s=0.15)) as reader:
            await reader.until(lambda: reader.values("a") == [5])
            device.frame = mangle
            await reader.until(lambda: reader.of_type("device.comms.lost"))
            device.frame = right
            await reader.until(lambda: reader.of_type("device.comms.restored"))
            assert set(reader.values("a")) == {5}
            assert set(reader.values("b")) == {6}


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_whatever_bytes_come_they_are_the_answer_or_an_error_of_ours(framing: Any) -> None:
    """A hundred answers, flipped, cut, lengthened or made up (seeded). Where there is a checksum, none of them becomes a value."""
    draw = random.Random(4)

    def spoil(_: Request, frame: bytes) -> bytes:
        kind = draw.randrange(5)
        if kind == 0:
            return draw.randbytes(draw.randrange(40))
        if kind == 1:
            return frame[: draw.randrange(len(frame))]
        if kind == 2:
            return frame + draw.randbytes(draw.randrange(1, 9))
        at = draw.randrange(len(frame))
        return frame[:at] + bytes((frame[at] ^ 1 << draw.randrange(8),)) + frame[at + 1 :]

    async with Device(framing) as device:
        device.set(1, "holding", 0, *range(100, 110))
        right = struct.pack(">10H", *range(100, 110))
        device.frame = spoil
        link = Link(parse_url(device.url), Timing(timeout_s=0.02))
        values = 0
        try:
            for _ in range(100):
                try:
                    payload = await link.read(1, "holding", 0, 10)
                except (NoAnswer, Exceptional):
                    continue
                values += 1
                assert len(payload) == 20
                assert payload == right or framing == "tcp", "a flipped bit came through"
        finally:
            link.close()
        assert values < 80, "most of them are no answers"


async def test_fewer_values_than_asked_for_are_asked_for_in_smaller_pieces() -> None:
    """As jsmodbus does, which answers 2000 coils with 160 and no error: lengths are checked, and what it can do is found out."""
    async with Device() as device:
        device.set(1, "coil", 0, *(at % 3 == 0 for at in range(400)))

        def at_most_160(request: Request, body: bytes) -> bytes:
            return bytes((1, 20)) + body[2:22] if request.count > 160 else body

        device.body = at_most_160
        async with Reader(config(device.url, *(point(f"c{at}", at, table="coil") for at in range(400)))) as reader:
            await reader.until(lambda: len(reader.events) >= 400)
            assert all(reader.values(f"c{at}") == [at % 3 == 0] for at in range(400))
            asked = len(device.requests)
            await reader.until(lambda: len(device.requests) >= asked + 8)
            assert max(r.count for r in device.requests[asked + 4 :]) <= 160, "and remembered"


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_late_answer_is_never_taken_for_the_value_of_another_register(framing: Any) -> None:
    """pymodbus#538: a reply that came after its timeout was returned as the value of the register asked for next."""
    async with Device(framing) as device:
        device.set(1, "holding", 100, 11)
        device.set(1, "holding", 200, 22)
        link = Link(parse_url(device.url), Timing(timeout_s=0.25))
        try:
            for _ in range(3):
                device.delay_s = lambda request: 0.35 if request.address == 100 else 0.0
                with pytest.raises(NoAnswer):
                    await link.read(1, "holding", 100, 1)
                for _ in range(8):
                    try:
                        assert await link.read(1, "holding", 200, 1) == b"\0\x16"
                    except NoAnswer:
                        continue
                    break
                else:
                    pytest.fail("it never answers again")
        finally:
            link.close()


async def test_a_late_answer_on_a_gateway_s_serial_side_is_not_taken_either() -> None:
    """The hard case: the gateway keeps the late answer and gives it to the *next* connection, right before that one's own answer."""
    async with Device("rtu") as device:
        device.set(1, "holding", 100, 11)
        device.set(1, "holding", 200, 22)
        stale: list[bytes] = []

        def keep(request: Request, frame: bytes) -> bytes:
            if request.address == 100:
                stale.append(frame)
                return b""
            before = b"".join(stale)
            stale.clear()
            return before + frame

        device.frame = keep
        link = Link(parse_url(device.url), Timing(timeout_s=0.5))
        try:
            with pytest.raises(NoAnswer):
                await link.read(1, "holding", 100, 1)
            with pytest.raises(NoAnswer, match="two answers"):
                await link.read(1, "holding", 200, 1)
            assert await link.read(1, "holding", 200, 1) == b"\0\x16"
        finally:
            link.close()


@pytest.mark.skipif(shutil.which("socat") is None, reason="socat is not installed")
async def test_a_late_answer_on_a_serial_port_is_discarded_with_its_cycle(tmp_path: Path) -> None:
    """pymodbus#538, on a port: after a timeout it is closed, opened again, and listened to until it is quiet."""
    async with Device("rtu") as device, serial_line(tmp_path, f"tcp:127.0.0.1:{device.port}") as (near, _):
        device.set(1, "holding", 100, 11)
        device.set(1, "holding", 200, 22)
        points = (point("a", 100), point("b", 200))
        async with Reader(config(f"rtu://{near}", *points, timeout_s=0.3, heartbeat_s=0.05)) as reader:
            await reader.until(lambda: len(reader.values("b")) > 3)
            slow = iter([0.4, 0.32, 0.35] + [0.0] * 10_000)
            device.delay_s = lambda request: next(slow) if request.address == 100 else 0.0
            seen = len(reader.values("b"))
            await reader.until(lambda: len(reader.values("b")) > seen + 10)
            assert set(reader.values("a")) == {11}
            assert set(reader.values("b")) == {22}
            assert reader.report.counts["timeouts"] >= 1


# Changes that are worth an alarm ---------------------------------------------------------------------------------------------------


async def test_a_setpoint_that_changes_is_an_event_only_after_a_second_read_says_the_same() -> None:
    async with Device() as device:
        device.set(1, "holding", 200, 1_200)
        async with Reader(config(device.url, point("speed", 200, role="setpoint"))) as reader:
            await reader.until(lambda: reader.values("speed") == [1_200])
            glitch = iter([struct.pack(">BBH", 3, 2, 9_999)])
            device.body = lambda _, body: next(glitch, body)
            await reader.until(lambda: reader.report.counts.get("changes_not_confirmed") == 1)
            device.set(1, "holding", 200, 1_900)
            await reader.until(lambda: reader.of_type("configuration.setpoint.changed"))
            (event,) = reader.of_type("configuration.setpoint.changed")
            assert (event.data["previous"], event.data["value"]) == (1_200, 1_900)
            assert event.message == "speed changed from 1200 to 1900"
            assert 9_999 not in reader.values("speed")


async def test_a_setpoint_that_moves_at_every_look_is_told_of_all_the_same() -> None:
    async with Device() as device:
        device.set(1, "holding", 200, 0)
        async with Reader(config(device.url, point("speed", 200, role="setpoint"))) as reader:
            await reader.until(lambda: reader.values("speed") == [0])
            ramp = iter(range(1, 60_000))
            device.body = lambda *_: struct.pack(">BBH", 3, 2, next(ramp))
            await reader.until(lambda: len(reader.of_type("configuration.setpoint.changed")) >= 3)


async def test_a_setpoint_that_goes_back_to_what_the_first_look_saw_is_told_of_again() -> None:
    async with Device() as device:
        device.set(1, "holding", 200, 5)
        async with Reader(config(device.url, point("speed", 200, role="setpoint"))) as reader:
            await reader.until(lambda: reader.values("speed") == [5])
            looks = iter([7, 8])
            device.body = lambda *_: struct.pack(">BBH", 3, 2, next(looks, 7))
            await reader.until(lambda: reader.values("speed") == [5, 8, 7])


async def test_a_setpoint_changed_while_nobody_looked_is_an_event_after_the_restart() -> None:
    async with Device() as device:
        device.set(1, "holding", 200, 1_200)
        settings = config(device.url, point("speed", 200, role="setpoint"), point("oil", 201))
        device.set(1, "holding", 201, 50)
        async with Reader(settings) as reader:
            await reader.until(lambda: reader.values("speed") == [1_200])
        device.set(1, "holding", 200, 1_900)
        cursor = dict(reader.cursor or {})
        cursor["seen_us"] -= 60_000_000
        async with Reader(settings, cursor) as again:
            await again.until(lambda: again.of_type("configuration.setpoint.changed"))
            (gap,) = again.of_type("collection.gap")
            assert gap.data["from_us"] == cursor["seen_us"]
            (event,) = again.of_type("configuration.setpoint.changed")
            assert event.data["previous"] == 1_200
            assert again.values("oil") == [50]


# Peers that go away ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_device_that_goes_away_and_comes_back_is_told_of_and_read_again(framing: Any) -> None:
    """thingsboard-gateway#1592: no reconnect after a restart of the PLC."""
    async with Device(framing) as device:
        device.set(1, "holding", 0, 5)
        settings = config(device.url, point("a", 0))
        async with Reader(settings) as reader:
            await reader.until(lambda: reader.values("a") == [5])
            await device.unplug()
            await reader.until(lambda: reader.of_type("device.comms.lost") and reader.errors)
            assert "cannot be reached" in str(reader.errors[-1])
            await asyncio.sleep(1.2)  # long enough to be a gap
            device.set(1, "holding", 0, 6)
            await device.plug()
            await reader.until(lambda: reader.values("a") == [5, 6])
            (restored,) = reader.of_type("device.comms.restored")
            assert restored.data["away_s"] >= 1.2
            (gap,) = reader.of_type("collection.gap")
            assert gap.data["events"] is None
            assert gap.data["to_us"] - gap.data["from_us"] >= 1_200_000


async def test_what_one_unit_said_is_kept_when_the_gateway_goes_away_at_the_next() -> None:
    async with Device() as device:
        units = tuple(ConfigUnit(unit=unit, points=(point("speed", 0, role="setpoint"),)) for unit in (1, 2))
        for unit in (1, 2):
            device.set(unit, "holding", 0, 5)
        async with Reader(config(device.url, points=(), units=units, timeout_s=20.0)) as reader:
            await reader.until(lambda: reader.values("speed") == [5, 5])
            told: list[Request] = []

            def silent_once_told(request: Request, body: bytes) -> bytes | None:
                if request.unit == 1 and body[-1] == 6:
                    told.append(request)
                return None if told and request.unit == 2 else body

            device.body = silent_once_told
            device.set(1, "holding", 0, 6)
            await reader.until(lambda: told and device.requests[-1].unit == 2)
            await device.unplug()
            await reader.until(lambda: reader.of_type("device.comms.lost"))
            (event,) = reader.of_type("configuration.setpoint.changed")
            assert (event.data["unit_id"], event.data["value"]) == (1, 6)


async def test_a_device_that_is_not_there_at_boot_is_read_when_it_is() -> None:
    device = Device()
    async with Reader(config(device.url, point("a", 0))) as reader:
        await reader.until(lambda: reader.errors)
        assert not reader.events, "it was never there: the runner tells of that"
        async with device:
            device.set(1, "holding", 0, 7)
            await reader.until(lambda: reader.values("a") == [7])


async def test_a_device_that_hangs_up_after_an_answer_or_two_is_read_all_the_same() -> None:
    async with Device() as device:
        device.set(1, "holding", 0, 5)

        async def hang_up() -> None:
            while True:
                await asyncio.sleep(0.15)  # one answer or two, and then the connection ends
                await device.unplug()
                await device.plug()

        rude = asyncio.create_task(hang_up())
        async with Reader(config(device.url, point("a", 0), interval_s=0.1)) as reader:
            await reader.until(lambda: device.connections >= 5)
            rude.cancel()
            device.set(1, "holding", 0, 6)
            await reader.until(lambda: reader.values("a")[-1] == 6)


async def test_a_device_that_comes_and_goes_is_said_to_flap_once() -> None:
    async with Device() as device:
        device.set(1, "holding", 0, 5)
        async with Reader(config(device.url, point("a", 0), timeout_s=0.1)) as reader:
            await reader.until(lambda: reader.values("a"))
            for number in range(1, 4):
                device.silent.add(1)
                await reader.until(partial(said, reader, "device.comms.lost", number))
                device.silent.clear()
                await reader.until(partial(said, reader, "device.comms.restored", number))
            (flapping,) = reader.of_type("device.comms.flapping")
            assert flapping.data["losses"] == 3


async def test_a_device_that_needs_a_moment_after_connecting_gets_it() -> None:
    """telegraf#11919: a delay after connecting is needed by some devices."""
    async with Device() as device:
        device.set(1, "holding", 0, 5)
        waited: list[float] = []

        def note(_: Request, body: bytes) -> bytes:
            waited.append(time.monotonic() - device.connected_s)
            return body

        device.body = note
        async with Reader(config(device.url, point("a", 0), connect_pause_s=0.4)) as reader:
            await reader.until(lambda: reader.values("a"))
            assert waited[0] > 0.35


async def test_a_peer_that_floods_is_cut_off_before_it_fills_the_memory() -> None:
    async with Device() as device:
        device.set(1, "holding", 0, 5)
        device.frame = lambda _, frame: frame + b"\0" * 10_000_000
        async with Reader(config(device.url, point("a", 0), interval_s=0.3)) as reader:
            await reader.until(lambda: device.connections >= 3)
            assert set(reader.values("a")) <= {5}


async def test_it_stops_at_once_also_while_it_waits_for_an_answer() -> None:
    async with Device() as device:
        device.silent.add(1)
        async with Reader(config(device.url, point("a", 0), timeout_s=60.0)) as reader:
            await reader.until(lambda: device.requests)
            begun = time.monotonic()
        assert time.monotonic() - begun < 5


# Cadence ---------------------------------------------------------------------------------------------------------------------------


async def test_the_cadence_does_not_drift_and_a_cycle_that_is_missed_is_counted_and_said() -> None:
    async with Device() as device:
        device.set(1, "holding", 0, 5)
        device.delay_s = lambda _: 0.03
        async with Reader(config(device.url, point("a", 0), interval_s=0.1)) as reader:
            await reader.until(lambda: len(device.requests) >= 1)
            begun = time.monotonic()
            await reader.until(lambda: len(device.requests) >= 21)
            took = time.monotonic() - begun
            missed = reader.report.counts.get("cycles_missed", 0)
            assert abs(took - 2.0 - missed * 0.1) < 0.45, (
                "twenty cycles are twenty intervals, though each takes a while"
            )
            device.delay_s = lambda _: 0.25
            await reader.until(lambda: "cadence" in reader.report.trouble)
            assert "raise interval_s, or read fewer points" in reader.report.trouble["cadence"]
            assert reader.report.counts["cycles_missed"] > missed
            device.delay_s = lambda _: 0.0
            await reader.until(lambda: "cadence" not in reader.report.trouble)


# Identity --------------------------------------------------------------------------------------------------------------------------


async def test_who_a_device_is_is_asked_only_where_wanted_and_told_when_it_changes() -> None:
    async with Device(identity={0: "ACME", 1: "PC4", 2: "V1.0"}) as device:
        device.set(1, "holding", 0, 5)
        async with Reader(config(device.url, point("a", 0))) as reader:
            await reader.until(lambda: len(device.requests) > 5)
            assert {request.function for request in device.requests} == {3}, "off unless asked for"
        settings = config(device.url, point("a", 0), identity=True, identity_interval_s=1.0)
        async with Reader(settings) as reader:
            await reader.until(lambda: reader.cursor and reader.cursor["identities"])
            device.identity[2] = "V1.1"
            await reader.until(lambda: reader.of_type("configuration.firmware.changed"))
            device.identity[1] = "PC5"
            await reader.until(lambda: reader.of_type("equipment.identity.changed"))
            (event,) = reader.of_type("equipment.identity.changed")
            assert event.data["changed"] == ["product_code"]
            assert event.data["value"] == {"vendor": "ACME", "product_code": "PC5", "revision": "V1.1"}
        device.identity[0] = "EVIL"
        async with Reader(settings, reader.cursor) as again:
            await again.until(lambda: again.of_type("equipment.identity.changed"))
    assert device.open_most == 1, "never a second connection beside the first"
