"""The built-in handlers: each raises what it is for, at its bound and not before, and is quiet on a quiet line."""

from collections.abc import Iterator
from functools import cache
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
from agent.simulator.opcua_server import PressModel
from agent.simulator.plc import POINTS, PlcModel
from agent.simulator.scenes import SCENES, Happenings, Scene
from agent.sources.logfile import parser_of
from agent.wire.event import Event
from agent.wire.taxonomy import TAXONOMY

NOW = 1_772_323_200_000_000
"""Sunday, 1 March 2026, midnight UTC."""


def event(type_: str, n: float = 0, **fields: Any) -> Event:
    at = NOW + round(n * 1_000_000)
    return Event(at, at, type_, **{"source": "src", "target": "tgt", **fields})


def alerts(events: list[Event], builtin: ConfigBuiltin | None = None) -> list[Event]:
    engine = Engine.build({"builtin": builtin or ConfigBuiltin()})
    return [alert for each in events for alert in engine.handle([each], each.observed)]


def raised(name: str, events: list[Event], builtin: ConfigBuiltin | None = None) -> int:
    return sum(alert.type == BUILTIN[name]["raises"]["type"] for alert in alerts(events, builtin))


@cache
def scene(name: str) -> Scene:
    return SCENES[name]()


def told(name: str, happenings: Happenings) -> list[str | None]:
    """Messages of the handler's alerts; the other built-in handlers look on."""
    shifts = scene(name).shifts
    builtin = ConfigBuiltin(shifts=shifts, time_zone="UTC") if shifts else ConfigBuiltin()
    kind = BUILTIN[name]["raises"]["type"]
    return [alert.message for alert in alerts(events_of(happenings), builtin) if alert.type == kind]


def events_of(happenings: Happenings) -> list[Event]:
    return [event(type_, at_s, **fields) for at_s, type_, fields in happenings]


SINGLE = [name for name, rule in BUILTIN.items() if rule.get("at_least") == 1 and name != "recipe_exported"]


def test_every_builtin_has_a_positive_a_negative_and_a_boundary_scene() -> None:
    assert set(SCENES) == set(BUILTIN)
    for name in BUILTIN:
        played = scene(name)
        assert played.positive, name
        assert played.negatives, name
        assert all(played.negatives.values()), name
        assert played.below, name
        assert played.at, name
        assert played.below != played.at, name


@pytest.mark.parametrize("name", BUILTIN)
def test_what_it_is_for_is_one_alert(name: str) -> None:
    messages = told(name, scene(name).positive)
    assert len(messages) == 1
    assert messages[0]


@pytest.mark.parametrize(("name", "harmless"), [(name, title) for name in BUILTIN for title in scene(name).negatives])
def test_what_only_looks_like_it_is_not_told(name: str, harmless: str) -> None:
    assert told(name, scene(name).negatives[harmless]) == []


@pytest.mark.parametrize("name", BUILTIN)
def test_at_its_bound_it_is_told_and_just_below_it_not(name: str) -> None:
    assert told(name, scene(name).below) == []
    assert len(told(name, scene(name).at)) == 1


@pytest.mark.parametrize("name", SINGLE)
def test_what_must_never_happen_is_told_at_once_and_once_an_hour(name: str) -> None:
    for type_ in BUILTIN[name]["where"].split("'")[1::2]:
        assert type_ in TAXONOMY
        assert raised(name, [event(type_)]) == 1
        assert raised(name, [event(type_), event(type_, 90)]) == 1
        assert raised(name, [event(type_), event(type_, 7_200)]) == 2
    assert raised(name, [event("equipment.reading")]) == 0


def test_without_shifts_nobody_is_out_of_hours() -> None:
    for name in ("login_out_of_hours", "setpoint_out_of_hours"):
        assert raised(name, events_of(scene(name).positive)) == 0


@pytest.mark.parametrize("name", BUILTIN)
def test_each_can_be_switched_off_and_says_why_it_is_there(name: str) -> None:
    rule = BUILTIN[name]
    assert rule["why"]
    assert rule["tuning"]
    assert raised(name, events_of(scene(name).at), ConfigBuiltin(off=(name,))) == 0


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


MEANT = {
    "Spindle.Temp": "temperature", "Spindle.Speed": "speed", "Spindle.Vibration": "vibration", "Oil.Temp": "temperature",
    "Oil.Pressure": "pressure", "Press.Good": "good_count", "Press.Scrap": "scrap_count",
}  # fmt: skip


def quiet_days(days: int) -> Iterator[list[Event]]:
    """The simulated cell and its controller as they run when nothing is wrong, a step a minute."""
    cell, controller = PressModel(1), PlcModel(1)
    for minute in range(days * 1_440):
        events = []
        for name, value in cell.step().items():
            if name in MEANT:
                type_ = "equipment.counter" if MEANT[name].endswith("count") else "equipment.reading"
                data = {"value": value, "quantity": MEANT[name]}
                events.append(event(type_, minute * 60, source="cell", target=name, data=data))
        for name, value in controller.step().items():
            known = POINTS[name].settings
            if "quantity" in known:
                type_ = "equipment.state.changed" if known["quantity"] == "running" else "equipment.reading"
                text = {"text": known["texts"][str(value)]} if "texts" in known else {}
                more = {"range": list(known["range"])} if "range" in known else {}
                data = {"value": value, "quantity": known["quantity"], "unit_id": 1, **text, **more}
                events.append(event(type_, minute * 60, source="plc", target=name, data=data))
        yield events


def test_nine_days_of_the_simulated_line_raise_nothing() -> None:
    """Longer than anything is learned: the signals are judged for two days, and nothing is wrong with them."""
    engine = Engine.build({})
    assert [alert.message for events in quiet_days(9) for alert in engine.handle(events, events[0].time)] == []
    held = engine.stats()
    assert all(held[name].keys for name in ("frozen_signal", "sensor_drift", "equipment_health", "scrap_counters"))


def test_sessions_that_a_server_counted_between_two_looks_are_as_many_refusals() -> None:
    assert raised("sessions_rejected", [event("authentication.session.rejected", data={"count": 3})]) == 1
    two = [event("authentication.session.rejected", n, data={"count": count}) for n, count in ((0, 2), (200, 1))]
    assert raised("sessions_rejected", two) == 1
    assert raised("sessions_rejected", [event("authentication.session.rejected", data={"count": 2})]) == 0


def guessed(users: int, *templates: str) -> list[Event]:
    """What a log says of so many user names tried from one address, each with these lines."""
    lines = [
        f"2026-11-01T02:00:{n:02d}+00:00 st1 sshd[{1_000 + n}]: " + template.format(user=f"name{n}", port=30_000 + n)
        for n in range(users)
        for template in templates
    ]
    parser = parser_of("auth", {}, Context("auth"))
    return parser.parse(lines, observed_us=0, reference_us=0, memory={}, final=True)[0]


UNKNOWN = "Invalid user {user} from 203.0.113.7 port {port}"
FAILED = "Failed password for invalid user {user} from 203.0.113.7 port {port} ssh2"


@pytest.mark.parametrize(
    "lines", [(UNKNOWN,), (UNKNOWN, FAILED), (FAILED,)], ids=["keys only", "passwords", "failed only"]
)
def test_names_guessed_at_a_server_are_one_alert_however_many_lines_say_so(lines: tuple[str, ...]) -> None:
    def sprays(users: int) -> list[str | None]:
        alerts = Engine.build({}).handle(guessed(users, *lines), 0)
        return [alert.src_ip for alert in alerts if alert.type == "alert.authentication.spray"]

    assert sprays(6) == ["203.0.113.7"]
    assert sprays(5) == []
