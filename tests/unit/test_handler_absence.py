"""`absence`: silence by the agent's clock, standing values by the events' own time."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.handlers.absence import AbsenceHandler, ConfigAbsence
from agent.handlers.base import ConfigEscalation, ConfigRaises
from agent.wire.event import Event
from tests.handlers import S, Store, event, facts, play, play_with_restarts, reading


def config(**changed: Any) -> ConfigAbsence:
    given_: dict[str, Any] = {"by": ("source",), "for_s": 10, "raises": ConfigRaises(type="alert.device.silent")}
    return ConfigAbsence(**(given_ | changed))


def tick(handler: AbsenceHandler, second: float) -> list[Event]:
    return handler.handle([], round(second * S))


def test_silence_is_raised_once_when_its_time_is_up_and_again_after_the_key_was_heard() -> None:
    handler = AbsenceHandler("a", config(cool_down_s=0))
    play(handler, [event(0)])
    assert not tick(handler, 9.9)
    (alert,) = tick(handler, 10)
    assert alert.message == "nothing from source plc for 10 s (limit 10 s)"
    assert (alert.source, alert.data["first"]["time"], alert.data["value"], alert.data["limit"]) == ("plc", 0, 10, 10)
    assert not tick(handler, 100)
    play(handler, [event(101)])
    assert len(tick(handler, 111)) == 1


def test_silence_that_no_tick_saw_is_raised_when_the_key_is_heard_again() -> None:
    assert len(play(AbsenceHandler("a", config()), [event(0), event(100), event(101)])) == 1


def test_silence_that_lasts_escalates() -> None:
    handler = AbsenceHandler("a", config(escalate=(ConfigEscalation(at=3, severity="critical"),)))
    play(handler, [event(0)])
    alerts = [alert for second in range(60) for alert in tick(handler, second)]
    assert [(alert.severity, alert.data["value"]) for alert in alerts] == [(4, 10), (5, 30)]
    assert len({alert.correlation_id for alert in alerts}) == 1


def test_expected_key_that_was_never_heard_is_raised() -> None:
    handler = AbsenceHandler("a", config(expect=("press", "saw")))
    assert not tick(handler, 1_000)
    assert not play(handler, [event(1_005, source="press")])
    (alert,) = tick(handler, 1_010)
    assert alert.message == "nothing from source saw for 10 s (limit 10 s), and nothing ever before"


def test_agent_that_was_off_counts_silence_from_its_start() -> None:
    handler, store = AbsenceHandler("a", config()), Store()
    play(handler, [event(0)])
    store.keep(handler)
    handler = AbsenceHandler("a", config())
    handler.restore(store.state)
    assert not tick(handler, 1_000)
    assert not tick(handler, 1_009)
    assert len(tick(handler, 1_010)) == 1


def test_silence_that_was_raised_is_not_raised_again_after_a_restart() -> None:
    handler, store = AbsenceHandler("a", config()), Store()
    play(handler, [event(0)])
    assert len(tick(handler, 10)) == 1
    store.keep(handler)
    handler = AbsenceHandler("a", config())
    handler.restore(store.state)
    assert not [alert for second in range(20, 60) for alert in tick(handler, second)]


def test_clock_that_goes_back_starts_the_count_anew() -> None:
    handler = AbsenceHandler("a", config())
    play(handler, [event(1_000)])
    assert not tick(handler, 500)
    assert not tick(handler, 509)
    assert len(tick(handler, 510)) == 1


def test_key_that_flutters_is_raised_once_within_its_cool_down() -> None:
    handler = AbsenceHandler("a", config(cool_down_s=1_000))
    assert len(play(handler, [event(second) for second in range(0, 500, 11)])) == 1
    assert handler.stats.suppressed == 44


def test_flood_of_keys_pushes_out_nobody_who_is_watched() -> None:
    handler = AbsenceHandler("a", config(max_keys=5))
    alerts = play(handler, [event(0), *(event(1, source=f"spoofed {i}") for i in range(100))])
    assert [alert.type for alert in alerts] == ["alert.handler.flooded"]
    assert tick(handler, 10)[0].source == "plc"
    assert handler.stats.refused == 96


def test_frozen_value_is_raised_while_its_events_go_on() -> None:
    handler = AbsenceHandler("a", config(value="data.value", by=("target",), tolerance=0.5))
    events = [reading(second, 20.0 + (second % 2) / 2, unit="degC") for second in range(0, 30, 3)]
    (alert,) = play(handler, events)
    assert alert.message == "value of target temperature has stood at 20 degC for 12 s (limit 10 s)"
    assert (alert.time, alert.data["first"]["time"], alert.data["value"]) == (12 * S, 0, 20)
    assert not play(handler, [reading(30, 21.0), reading(39, 21.0)])


def test_frozen_value_needs_events_and_silence_alone_is_none() -> None:
    handler = AbsenceHandler("a", config(value="data.value"))
    play(handler, [reading(0, 1)])
    assert not tick(handler, 1_000)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"value": "data"}, "value: data is an object"),
        ({"expect": ("a",), "by": ()}, "expect names the values of one field"),
        ({"expect": ("a", "b"), "max_keys": 1}, "expect names 2 keys"),
        ({"forget_s": 10}, "forget_s must be longer than for_s"),
    ],
)
def test_configuration_that_cannot_work_is_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        config(**changed)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from(["a", "b", "c", None])), max_size=60), st.booleans())
def test_silence_is_what_a_look_at_every_key_at_every_step_finds(
    steps: list[tuple[int, str | None]], expecting: bool
) -> None:
    handler = AbsenceHandler("a", config(expect=("a",) if expecting else (), cool_down_s=0))
    heard: dict[str, int] = {}
    said: set[str] = set()
    now = 100
    handler.handle([], now * S)
    if expecting:
        heard["a"] = now
    for step, source in steps:
        now += step
        silent = {key for key, at in heard.items() if now - at >= 10 and key not in said}
        found = handler.handle([event(now, source=source)] if source else [], now * S)
        assert {alert.data["key"]["source"] for alert in found} == silent
        said |= silent
        if source:
            heard[source] = now
            said.discard(source)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-3, 8), st.integers(0, 2), st.sampled_from("ab")), max_size=60),
    st.integers(1, 20),
    st.sets(st.integers(0, 60)),
)
def test_standing_values_are_those_of_the_obvious_model_with_any_restart(
    steps: list[tuple[int, int, str]], for_s: int, killed: set[int]
) -> None:
    events, expected, now = [], [], 100
    kept: dict[str, list[tuple[int, int]]] = {"a": [], "b": []}
    raised: dict[str, int] = {}
    for step, value, key in steps:
        now += step
        events.append(reading(now, value, key))
        history = kept[key]
        if history and now < history[-1][0]:
            continue
        history.append((now, value))
        since = now
        for time, before in reversed(history):
            if before != value:
                break
            since = time
        if now - since >= for_s and raised.get(key) != since:
            raised[key] = since
            expected.append((now * S, key))

    def make() -> AbsenceHandler:
        return AbsenceHandler("a", config(by=("target",), value="data.value", for_s=for_s, cool_down_s=0))

    alerts = play(make(), events)
    assert [(alert.time, alert.target) for alert in alerts] == expected
    assert facts(play_with_restarts(make, events, killed)) == facts(alerts)
