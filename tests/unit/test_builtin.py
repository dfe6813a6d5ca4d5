"""The built-in handlers: each raises what it is for, at its bound and not before, and is quiet on a quiet line."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from agent.handlers import builtin_table
from agent.handlers.builtin import ConfigBuiltin
from agent.handlers.builtin_table import BUILTIN
from agent.handlers.engine import Engine
from agent.parsers.base import Context
from agent.simulator.logs import Script
from agent.sources.logfile import parser_of
from agent.wire.event import Event
from agent.wire.taxonomy import TAXONOMY

NOW = 1_772_323_200_000_000
"""Sunday, 1 March 2026, midnight UTC."""


def event(type_: str, n: int = 0, **fields: Any) -> Event:
    at = NOW + n * 1_000_000
    return Event(at, at, type_, **{"source": "src", "target": "tgt", **fields})


def alerts(events: list[Event], builtin: ConfigBuiltin | None = None) -> list[Event]:
    engine = Engine.build({"builtin": builtin or ConfigBuiltin()})
    return [alert for each in events for alert in engine.handle([each], each.observed)]


def raised(name: str, events: list[Event], builtin: ConfigBuiltin | None = None) -> int:
    return sum(alert.type == BUILTIN[name]["raises"]["type"] for alert in alerts(events, builtin))


def failures(count: int, **fields: Any) -> list[Event]:
    return [event("authentication.failure", n, src_ip="203.0.113.7", outcome="failure", **fields) for n in range(count)]


def success(n: int, **fields: Any) -> Event:
    return event("authentication.success", n, outcome="success", **{"src_ip": "203.0.113.7", **fields})


WEEK = 7 * 86_400
SHIFTS = ConfigBuiltin(shifts=("Mon-Fri 06:00-22:00",), time_zone="UTC")
MONDAY_NOON = 36 * 3_600

SCENES: dict[str, tuple[list[Event], list[Event]]] = {
    "login_burst": (failures(5, actor="eve"), failures(4, actor="eve")),
    "password_spray": (
        [event("authentication.failure", n * 20, src_ip="203.0.113.7", actor=f"u{n}") for n in range(6)],
        [event("authentication.failure", n * 20, src_ip="203.0.113.7", actor=f"u{n % 5}") for n in range(12)],
    ),
    "brute_force_succeeded": ([*failures(5), success(6)], [*failures(4), success(6)]),
    "new_address": (
        [success(0), success(WEEK + 1), success(WEEK + 2, src_ip="198.51.100.9")],
        [success(0), success(WEEK - 1, src_ip="198.51.100.9"), success(WEEK + 2, src_ip="198.51.100.9")],
    ),
    "new_user": (
        [success(0, actor="anna"), success(WEEK + 2, actor="eve")],
        [success(0, actor="anna"), success(WEEK + 2, actor="anna")],
    ),
    "account_created_then_used": (
        [event("account.created", data={"target_user": "svc"}), success(60, actor="svc")],
        [event("account.created", data={"target_user": "svc"}), success(60, actor="anna")],
    ),
    "rights_refused": (
        [event("access.denied", n, actor="eve", outcome="failure") for n in range(3)],
        [event("access.privilege.used", n, actor="eve", outcome="success") for n in range(3)],
    ),
    "setpoints_flood": (
        [event("configuration.setpoint.changed", n) for n in range(20)],
        [event("configuration.setpoint.changed", n) for n in range(19)],
    ),
    "sessions_rejected": (
        [event("authentication.session.rejected", n) for n in range(3)],
        [event("authentication.session.rejected", n * 200) for n in range(3)],
    ),
    "device_scan": (
        [event("device.exception", n) for n in range(20)],
        [event("device.exception", n * 4) for n in range(20)],
    ),
    "faults": ([event("equipment.fault", n) for n in range(3)], [event("equipment.fault", n * 1_900) for n in range(3)]),
    "scrap": (
        [event("quality.rejected" if n % 5 == 0 else "quality.measured", n) for n in range(60)],
        [event("quality.rejected" if n % 20 == 0 else "quality.measured", n) for n in range(60)],
    ),
    "mass_reads": (
        [event("data.read", n) for n in range(0, 7_200, 30)] + [event("data.read", 7_200 + n // 20) for n in range(400)],
        [event("data.read", n) for n in range(0, 7_200, 30)],
    ),
}  # fmt: skip
SINGLE = [name for name, rule in BUILTIN.items() if rule.get("at_least") == 1]
SCHEDULED = ["login_out_of_hours", "setpoint_out_of_hours"]


def test_every_builtin_has_a_scene() -> None:
    assert {*SCENES, *SINGLE, *SCHEDULED} == set(BUILTIN)


@pytest.mark.parametrize("name", SCENES)
def test_what_it_is_for_is_one_alert(name: str) -> None:
    assert raised(name, SCENES[name][0]) == 1


@pytest.mark.parametrize("name", SCENES)
def test_just_below_its_bound_it_is_quiet(name: str) -> None:
    assert raised(name, SCENES[name][1]) == 0


@pytest.mark.parametrize("name", SINGLE)
def test_what_must_never_happen_is_told_at_once_and_once_an_hour(name: str) -> None:
    for type_ in BUILTIN[name]["where"].split("'")[1::2]:
        assert type_ in TAXONOMY
        assert raised(name, [event(type_)]) == 1
        assert raised(name, [event(type_), event(type_, 90)]) == 1
        assert raised(name, [event(type_), event(type_, 7_200)]) == 2
    assert raised(name, [event("equipment.reading")]) == 0


@pytest.mark.parametrize(
    ("name", "type_"),
    [("login_out_of_hours", "authentication.success"), ("setpoint_out_of_hours", "configuration.mode.changed")],
)
def test_outside_the_shifts_it_is_told_and_within_them_not(name: str, type_: str) -> None:
    assert raised(name, [event(type_)], SHIFTS) == 1
    assert raised(name, [event(type_, MONDAY_NOON)], SHIFTS) == 0
    assert raised(name, [event(type_)]) == 0


@pytest.mark.parametrize("name", BUILTIN)
def test_each_can_be_switched_off_and_says_why_it_is_there(name: str) -> None:
    rule = BUILTIN[name]
    assert rule["why"]
    assert rule["tuning"]
    scene = SCENES[name][0] if name in SCENES else []
    assert raised(name, scene, ConfigBuiltin(off=(name,))) == 0


def test_a_quiet_station_raises_nothing() -> None:
    """Two thousand lines of people at their work: the alerts that nobody should get used to."""
    parser = parser_of("auth", {}, Context("auth"))
    lines = [
        f"2026-03-02T{8 + n // 400 % 10:02d}:{n // 7 % 60:02d}:{n % 60:02d}+00:00 station-1 {line.program}[{line.no}]: {line.text}"
        for n, line in enumerate(islice(Script(5, "quiet").lines(), 2_000))
    ]
    events, _ = parser.parse(lines, observed_us=NOW + 2 * 86_400_000_000, reference_us=NOW, memory={}, final=True)
    events.sort(key=lambda each: each.time)
    assert len(events) >= 2_000
    assert [alert.message for alert in alerts(events)] == []


def test_the_page_for_people_is_that_of_the_table() -> None:
    page = Path(builtin_table.__file__).with_name("BUILTIN.md")
    assert page.read_text(encoding="utf-8") == builtin_table.document(), (
        "python -m agent.handlers.builtin_table > agent/handlers/BUILTIN.md"
    )
