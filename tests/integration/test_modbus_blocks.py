"""What one block costs that a device does not answer, answers wrongly, or is too busy for: itself, and no other point."""

import struct
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from agent.handlers.builtin import ConfigBuiltin
from agent.handlers.engine import Engine
from agent.sources.modbus import ConfigUnit
from tests.integration.modbus_line import Device, Reader, Request, config, point

Body = Callable[[Request, bytes], bytes | None]


def of_coils(answer: Body) -> Body:
    return lambda request, body: answer(request, body) if request.function == 1 else body


def more(device: Device, requests: int) -> bool:
    return len(device.requests) > requests


WRONG: dict[str, Body] = {
    "no values": of_coils(lambda *_: b"\1\0"),
    "another function": of_coils(lambda _, body: b"\2" + body[1:]),
    "a count that lies": of_coils(lambda _, body: b"\1\x63" + body[2:]),
    "too many values": of_coils(lambda _, body: bytes((1, body[1] + 2)) + body[2:] + b"\0\0"),
    "silence": of_coils(lambda *_: None),
    "no path": of_coils(lambda *_: b"\x81\x0a"),
}


@pytest.mark.parametrize("framing", ["tcp", "rtu"])
@pytest.mark.parametrize("how", WRONG)
async def test_a_block_that_is_answered_wrongly_costs_itself_and_not_its_unit(
    how: str, framing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jsmodbus answers function 1 beyond its coils with no values: 0 readings came instead of 190. Coils are asked for first."""
    monkeypatch.setattr("agent.sources.modbus_units.RETRY_S", 0.3)
    async with Device(framing) as device:
        device.set(1, "coil", 0, *([1] * 10))
        device.set(1, "holding", 0, *range(100))
        device.set(1, "input", 0, *range(90))
        points = [
            *(point(f"c{at}", at, table="coil") for at in range(10)),
            *(point(f"h{at}", at) for at in range(100)),
            *(point(f"i{at}", at, table="input") for at in range(90)),
        ]
        device.body = WRONG[how]
        async with Reader(config(device.url, *points, timeout_s=0.1, heartbeat_s=0)) as reader:
            await reader.until(lambda: len({event.target for event in reader.of_type("equipment.reading")}) == 190)
            device.set(1, "holding", 5, 999)
            await reader.until(lambda: reader.values("h5") == [5, 999])
            assert not reader.of_type("device.comms.lost")
            device.body = lambda _, body: body
            await reader.until(lambda: reader.values("c0") == [True])


async def test_one_bad_point_in_the_only_block_of_a_unit_is_found_and_the_others_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A device that says nothing at all where a block reaches over an address that it does not have."""
    monkeypatch.setattr("agent.sources.modbus_units.SUSPENDED_S_MIN", 0.05)
    async with Device() as device:
        device.set(1, "holding", 0, *range(20))
        device.body = lambda request, body: None if request.address <= 0 < request.address + request.count else body
        points = [point(f"p{at}", at) for at in range(20)]
        async with Reader(config(device.url, *points, timeout_s=0.1)) as reader:
            await reader.until(lambda: len({event.target for event in reader.of_type("equipment.reading")}) == 19, 30)
            await reader.until(lambda: "unit 1 holding 0" in reader.report.trouble, 30)
            assert len(reader.of_type("device.comms.lost")) <= 1
            await reader.until(lambda: "unit 1" not in reader.report.trouble)


async def test_many_addresses_that_are_not_there_do_not_make_one_cycle_of_a_thousand_requests() -> None:
    async with Device() as device:
        device.set(1, "holding", 0, 7)
        points = [point("good", 0), *(point(f"c{at}", at, table="coil") for at in range(250))]
        async with Reader(config(device.url, *points, heartbeat_s=0.01)) as reader:
            await reader.until(lambda: len(reader.values("good")) >= 10)
            await reader.until(lambda: reader.report.counts["exceptions"] > 120)
            assert len(reader.of_type("device.exception")) == 100, "a wrong table is told of, and no flood"
            asked = [n for n, request in enumerate(device.requests) if request.function == 3]
            assert max(b - a for a, b in pairwise(asked)) <= 100


@pytest.mark.parametrize("how", ["silence", "another function", "exception"])
async def test_a_block_that_is_read_again_tells_of_the_time_in_which_it_was_not(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.sources.modbus_units.RETRY_S", 0.3)
    async with Device() as device:
        for at, table in enumerate(("coil", "holding")):
            device.set(1, table, 0, at)
        points = (point("c0", 0, table="coil"), point("h0", 0))
        async with Reader(config(device.url, *points, timeout_s=0.1, heartbeat_s=0.05)) as reader:
            await reader.until(lambda: reader.values("c0") and reader.values("h0"))
            device.body = WRONG[how] if how in WRONG else of_coils(lambda *_: b"\x81\4")
            await reader.until(lambda: reader.report.trouble)
            seen = len(reader.values("h0"))
            await reader.until(lambda: len(reader.values("h0")) > seen + 5)
            device.body = lambda _, body: body
            await reader.until(lambda: reader.of_type("collection.gap"))
            await reader.until(lambda: not reader.report.trouble)
            (gap,) = reader.of_type("collection.gap")
            assert gap.message == "unit 1: coil 0 to 0 could not be read; changes in between are unknown"
            assert gap.data["points"] == ["c0"]
            times = [event.time for event in reader.events if event.target == "c0"]
            hole = max(pairwise(times), key=lambda pair: pair[1] - pair[0])
            assert hole[0] - 150_000 <= gap.data["from_us"] <= gap.data["to_us"] <= hole[1] + 150_000
            assert reader.report.counts["gaps"] == 1


# Busy ------------------------------------------------------------------------------------------------------------------------------


async def test_a_device_that_is_busy_for_a_moment_is_asked_again_within_the_cycle_and_is_no_event() -> None:
    async with Device() as device:
        device.set(1, "holding", 0, 5)
        device.set(1, "input", 0, 6)
        refusals = iter([5, 6, 6, 5])
        device.body = lambda request, body: (
            body if (code := next(refusals, 0)) == 0 else bytes((request.function | 0x80, code))
        )
        points = (point("a", 0), point("b", 0, table="input"))
        async with Reader(config(device.url, *points, interval_s=30.0)) as reader:
            await reader.until(lambda: reader.values("a") == [5] and reader.values("b") == [6])
            assert {event.type for event in reader.events} == {"equipment.reading"}
            assert not reader.report.trouble


async def test_a_device_that_stays_busy_is_one_event_is_asked_less_often_and_is_no_scan() -> None:
    """home-assistant/core#51103 and the alert of a scan: 190 points, every request refused with exception 6, and in between answered."""
    async with Device() as device:
        for table in ("holding", "input", "coil"):
            device.set(1, table, 0, *([1] * 600))
        points = [
            point(f"{table}{at}", at, table=table) for table in ("holding", "input", "coil") for at in range(0, 600, 3)
        ]
        settings = config(device.url, *points, interval_s=0.02)
        async with Reader(settings) as reader:
            await reader.until(lambda: len(reader.of_type("equipment.reading")) == len(points))
            device.exceptions[1] = 6
            await reader.until(lambda: reader.of_type("device.exception"))
            (begins,) = reader.of_type("device.exception")
            assert (begins.data["exception_code"], begins.outcome) == (6, "failure")
            assert any("it is busy and is asked less often" in text for text in reader.report.trouble.values())
            asked = len(device.requests)
            await reader.until(lambda: len(device.requests) > asked + 5)
            for _ in range(12):  # busy, and not, and busy again
                device.exceptions.clear()
                await reader.until(partial(more, device, len(device.requests) + 3))
                device.exceptions[1] = 5
                await reader.until(partial(more, device, len(device.requests) + 3))
            assert reader.report.counts["busy"] > 3
            assert len(reader.of_type("device.exception")) <= 3, "it began, it ended, and it is not told again at once"
            assert not reader.of_type("device.comms.lost")
        engine = Engine.build({"builtin": ConfigBuiltin()})
        alerts = [alert.type for event in reader.events for alert in engine.handle([event], event.observed)]
        assert "alert.device.scan" not in alerts


async def test_an_exception_that_comes_and_goes_is_told_three_times_and_its_end_as_often() -> None:
    async with Device() as device:
        device.set(1, "holding", 0, 5)
        device.body = lambda _, body: body if len(device.requests) % 2 else b"\x83\4"
        async with Reader(config(device.url, point("a", 0), interval_s=0.01)) as reader:
            await reader.until(lambda: len(device.requests) > 40)
            codes = [event.data["exception_code"] for event in reader.of_type("device.exception")]
            assert codes == [4, None] * 3
            assert reader.report.counts["exceptions"] > 10


# Addresses and ids -------------------------------------------------------------------------------------------------------------------


async def test_an_address_that_is_not_there_is_in_the_report_with_the_address_that_is_probably_meant() -> None:
    async with Device() as device:
        device.set(1, "holding", 0, *range(10))
        points = (point("good", 3), point("oil", 40_101), point("level", 30_002), point("none", 77))
        async with Reader(config(device.url, *points)) as reader:
            await reader.until(lambda: reader.values("good") == [3] and len(reader.report.trouble) == 3)
            trouble = reader.report.trouble
            assert trouble["unit 1 holding 40101"] == (
                "unit 1: holding 40101 (oil): exception 2 (illegal data address); 40101 looks like a Modicon number; "
                'if it is one, write table = "holding", address = 100'
            )
            assert 'write table = "input", address = 1' in trouble["unit 1 holding 30002"]
            assert trouble["unit 1 holding 77"].endswith("check the address and the table in the device's manual")
            assert len(reader.of_type("device.exception")) == 3
            assert reader.report.connected


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (lambda _: 0, "with id 0"),
        (lambda sent: sent + 1, "counts the id up by one"),
        (lambda sent: sent << 8 | sent >> 8, "swaps"),
    ],
    ids=["zero", "one more", "swapped"],
)
async def test_a_gateway_that_answers_with_another_id_is_named_and_read_where_ids_are_ignored(
    number: Callable[[int], int], says: str
) -> None:
    async with Device() as device:
        device.set(1, "holding", 0, 5)
        device.frame = lambda _, frame: struct.pack(">H", number(int.from_bytes(frame[:2], "big")) & 0xFFFF) + frame[2:]
        async with Reader(config(device.url, point("a", 0))) as reader:
            await reader.until(lambda: reader.of_type("device.comms.lost"))
            assert says in reader.report.trouble["unit 1"]
            assert 'set transaction_id = "ignore"' in reader.report.trouble["unit 1"]
            assert not reader.values("a")
        units = tuple(ConfigUnit(unit=unit, points=(point("a", 0),)) for unit in (0, 1, 255))
        for unit in (0, 255):
            device.set(unit, "holding", 0, 6)
        settings = config(device.url, points=(), units=units, transaction_id="ignore")
        async with Reader(settings) as reader:
            await reader.until(lambda: sorted(reader.values("a")) == [5, 6, 6])
            assert not reader.report.trouble
