"""The engine: routes by type, isolates what breaks, keeps state by handler."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest

from agent.component import ConfigError
from agent.handlers.base import ConfigRaises
from agent.handlers.builtin import ConfigBuiltin
from agent.handlers.count import ConfigCount, CountHandler
from agent.handlers.engine import Engine
from agent.wire.event import Event

S = 1_000_000


def burst(type_: str = "authentication.failure", n: int = 5) -> list[Event]:
    return [Event(i * S, i * S, type_, "auth", src_ip="10.0.0.1") for i in range(n)]


def counting(**changed: Any) -> ConfigCount:
    given: dict[str, Any] = {
        "where": "type startswith 'x.'",
        "at_least": 2,
        "within_s": 10,
        "raises": ConfigRaises(type="alert.x"),
    }
    return ConfigCount(**(given | changed))


class Breaks:
    kind: ClassVar[str] = "breaks"

    Config: ClassVar[type] = ConfigCount

    def can_match(self, type_: str) -> bool:
        return type_ != ""

    def handle(self, events: Sequence[Event], now_us: int) -> list[Event]:
        raise ZeroDivisionError(f"{len(events) and now_us}")

    def changes(self) -> Mapping[str, bytes | None]:
        raise AssertionError("what broke keeps the state it had")

    def restore(self, state: Mapping[str, bytes]) -> None: ...


def test_builtin_login_burst_is_on_without_any_configuration() -> None:
    alerts = Engine.build({}).handle(burst(), 9 * S)
    assert [alert.type for alert in alerts] == ["alert.authentication.burst"]


def test_builtin_handlers_can_be_switched_off_tuned_and_replaced() -> None:
    assert not Engine.build({"builtin": ConfigBuiltin(enabled=False)}).handle(burst(), 0)
    assert not Engine.build({"builtin": ConfigBuiltin(off=("login_burst",))}).handle(burst(), 0)
    assert not Engine.build({"builtin": ConfigBuiltin(tune={"login_burst": {"at_least": 6}})}).handle(burst(), 0)
    replaced = Engine.build({"login_burst": counting(where="type == 'authentication.failure'", at_least=5)})
    assert [alert.type for alert in replaced.handle(burst(), 0)] == ["alert.x"]


def test_handler_that_is_not_enabled_is_not_built() -> None:
    assert Engine.build({"builtin": ConfigBuiltin(enabled=False), "x": counting(enabled=False)}).handlers == {}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"off": ("login_brust",)}, "did you mean 'login_burst'"),
        ({"tune": {"login_burst": {"at_leest": 3}}}, "tune.login_burst: at_leest.*did you mean 'at_least'"),
        ({"tune": {"login_burst": {"where": "a"}}}, "tune.login_burst: where: an event has no field"),
    ],
)
def test_wrong_setting_of_a_builtin_is_refused_by_name(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ConfigBuiltin(**given)


def test_handler_sees_only_events_that_can_match_it() -> None:
    engine = Engine({"a": CountHandler("a", counting()), "b": CountHandler("b", counting(where="type == 'y'"))})
    engine.handle([*burst("x.1", 1), *burst("y", 2), *burst("z", 3)], 0)
    assert {name: shown.events for name, shown in engine.stats().items()} == {"a": 1, "b": 2}


def test_handler_that_raises_is_set_aside_and_said_once_while_the_others_go_on() -> None:
    engine = Engine({"bad": Breaks(), "good": CountHandler("good", counting())})
    first = engine.handle(burst("x.1", 2), 7)
    assert [event.type for event in first] == ["agent.handler.failed", "alert.x"]
    assert first[0].message is not None
    assert "handler bad failed" in first[0].message
    assert engine.handle(burst("x.1", 1), 8) == []
    assert engine.handle([], 9) == []
    assert engine.changes().keys() == {"good"}
    assert engine.stats()["bad"].error == "ZeroDivisionError: 7"


def test_alerts_are_not_seen_by_handlers() -> None:
    engine = Engine({"all": CountHandler("all", counting(where="", at_least=1, cool_down_s=0))})
    alerts = engine.handle(burst("x", 1), 0)
    assert len(alerts) == 1
    assert engine.handle(alerts, 1) == []


def test_causes_share_the_correlation_id_of_their_alert() -> None:
    events = burst()
    (alert,) = Engine.build({}).handle(events, 0)
    assert {event.correlation_id for event in events} == {alert.correlation_id}


def test_kill_in_the_middle_of_a_burst_raises_exactly_one_alert() -> None:
    alerts: list[Event] = []
    stored: dict[str, dict[str, bytes]] = {}
    for event in burst(n=40):
        engine = Engine.build({})
        engine.restore(stored)
        alerts += engine.handle([event], event.observed)
        for name, changed in engine.changes().items():
            kept = stored.setdefault(name, {})
            for key, value in changed.items():
                kept.pop(key, None) if value is None else kept.update({key: value})
    assert [alert.data["count"] for alert in alerts] == [5]


def test_state_that_cannot_be_read_begins_anew() -> None:
    engine = Engine.build({})
    engine.restore({"login_burst": {"s10.0.0.1": b"garbage"}, "gone": {"a": b"b"}})
    assert len(engine.handle(burst(), 0)) == 1


def test_stats_tell_when_a_handler_last_evaluated_and_what_it_holds() -> None:
    engine = Engine.build({})
    engine.handle(burst(n=3), 42)
    shown = engine.stats()["login_burst"]
    assert (shown.kind, shown.events, shown.matched, shown.keys, shown.last_evaluated_us) == ("count", 3, 3, 1, 42)
    assert shown.busy_s > 0


def test_name_builtin_is_kept_for_the_builtin_handlers() -> None:
    with pytest.raises(ConfigError, match="Choose another name"):
        Engine.build({"builtin": counting()})


def test_a_handler_whose_state_cannot_be_written_is_set_aside_and_the_others_go_on() -> None:
    """Were it not, no event of any source could be stored."""
    engine = Engine.build({"builtin": ConfigBuiltin(enabled=False), "broken": counting(), "well": counting()})

    def fail() -> dict[str, bytes | None]:
        raise OverflowError("beyond what can be written")

    engine.handlers["broken"].changes = fail
    engine.handle(burst("x.y"), 1)
    assert set(engine.changes()) == {"well"}
    (told,) = engine.handle([], 2)
    assert told.type == "agent.handler.failed"
    assert told.data["handler"] == "broken"
    assert engine.stats()["broken"].error == "OverflowError: beyond what can be written"


def test_handler_that_needs_a_key_of_data_never_sees_an_event_without_it() -> None:
    where = "type == 'x.reading' and data.quantity in ['temperature', 'flow'] or type == 'x.setpoint'"
    engine = Engine.build({"builtin": ConfigBuiltin(enabled=False), "gated": counting(where=where), "all": counting()})
    events = [
        Event(n, n, "x.reading", data={"value": n} | ({"quantity": "flow"} if n % 3 == 0 else {})) for n in range(9)
    ]
    alerts = engine.handle([*events, Event(9, 9, "x.setpoint")], 9)
    seen = {name: stats.events for name, stats in engine.stats().items()}
    assert seen == {"gated": 4, "all": 10}
    assert [alert.data["handler"] for alert in alerts] == ["gated", "all"]
