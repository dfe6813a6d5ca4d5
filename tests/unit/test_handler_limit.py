"""`limit`: bounds with hysteresis, dwell and speed, against a model that looks at the whole history."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.handlers.base import ConfigEscalation, ConfigRaises
from agent.handlers.limit import ConfigLimit, LimitHandler
from tests.handlers import S, Store, facts, play, play_with_restarts, reading


def config(**changed: Any) -> ConfigLimit:
    given_: dict[str, Any] = {"high": 80.0, "cool_down_s": 0, "raises": ConfigRaises(type="alert.temperature")}
    return ConfigLimit(**(given_ | changed))


def test_value_beyond_its_limit_is_raised_once_until_it_is_back_by_the_hysteresis() -> None:
    handler = LimitHandler("l", config(hysteresis=5.0))
    values = [79, 80, 81, 90, 76, 75.5, 81, 75, 81]
    alerts = play(handler, [reading(i, value, unit="degC") for i, value in enumerate(values)])
    assert [alert.time // S for alert in alerts] == [2, 8]
    assert alerts[0].message == "value of source plc, target temperature is 81 degC, above 80 degC"
    assert (alerts[0].data["value"], alerts[0].data["limit"], alerts[0].data["side"]) == (81, 80, "high")


def test_low_limit_is_the_mirror_of_the_high_one() -> None:
    handler = LimitHandler("l", config(high=None, low=10.0, hysteresis=1.0))
    assert [a.time // S for a in play(handler, [reading(i, v) for i, v in enumerate([10, 9, 10.5, 9, 11, 9])])] == [
        1,
        5,
    ]


def test_value_has_to_be_beyond_for_its_dwell() -> None:
    handler = LimitHandler("l", config(dwell_s=10))
    assert not play(handler, [reading(0, 90), reading(5, 70), reading(6, 90), reading(15.9, 90)])
    (alert,) = play(handler, [reading(16, 90)])
    assert alert.message == "value of source plc, target temperature is 90, above 80 for 10 s"
    assert alert.data["first"]["time"] == 6 * S


def test_value_that_stays_without_a_further_reading_is_raised_when_its_dwell_is_over() -> None:
    handler, store = LimitHandler("l", config(dwell_s=10)), Store()
    play(handler, [reading(0, 90)])
    store.keep(handler)
    handler = LimitHandler("l", config(dwell_s=10))
    handler.restore(store.state)
    assert not handler.handle([], 9 * S)
    (alert,) = handler.handle([], 10 * S)
    assert (alert.target, alert.data["value"]) == ("temperature", 90)
    assert not handler.handle([], 99 * S)


def test_value_that_rises_too_fast_is_raised() -> None:
    handler = LimitHandler("l", config(high=None, rise_per_s=1.0, fall_per_s=2.0, span_s=2))
    (rise, fall) = play(handler, [*(reading(i, v) for i, v in enumerate([0, 5, 2, 2, 6, 6, 4, 0])), reading(10, -9)])
    assert (rise.data["side"], rise.time // S, rise.data["speed_per_s"]) == ("rise", 4, 2)
    assert (fall.data["side"], fall.time // S) == ("fall", 10)
    assert "rises faster than 1 a second: now at 6, 2 a second" in str(rise.message)


def test_long_violation_escalates() -> None:
    handler = LimitHandler("l", config(escalate=(ConfigEscalation(at=5, severity="critical"),)))
    assert [a.severity for a in play(handler, [reading(i, 90) for i in range(20)])] == [4, 5]


def test_what_is_no_number_is_passed_over() -> None:
    handler = LimitHandler("l", config())
    values: list[Any] = ["90", True, None, math.nan, math.inf, [90], {}]
    assert not play(handler, [reading(i, value) for i, value in enumerate(values)])


def test_reading_older_than_the_newest_is_late() -> None:
    handler = LimitHandler("l", config())
    assert not play(handler, [reading(5, 70), reading(4, 90)])
    assert handler.stats.late == 1


def test_flood_of_signals_pushes_out_nobody_who_is_watched() -> None:
    handler = LimitHandler("l", config(max_keys=5, hysteresis=20.0))
    play(handler, [reading(0, 90), *(reading(1, 0, f"spoofed {i}") for i in range(100))])
    assert not play(handler, [reading(2, 79), reading(3, 81)])
    assert len(handler.table) == 5


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"high": None}, "without a bound"),
        ({"low": 79.0, "hysteresis": 5.0}, "twice the hysteresis"),
        ({"value": "val"}, "value: an event has no field 'val'"),
    ],
)
def test_bounds_that_cannot_be_are_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        config(**changed)


def obvious(history: list[tuple[int, float]], high: float, low: float, hysteresis: float) -> tuple[str, int]:
    """The side of the newest reading and since when, found by walking the history from its beginning."""
    side, since = "", 0
    for time, value in history:
        if value > high or (side == "high" and value > high - hysteresis):
            new = "high"
        elif value < low or (side == "low" and value < low + hysteresis):
            new = "low"
        else:
            new = ""
        if new != side:
            side, since = new, time
    return side, since


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-2, 5), st.integers(-8, 8), st.sampled_from("ab")), max_size=60),
    st.integers(0, 4),
    st.integers(0, 10),
    st.sets(st.integers(0, 60)),
)
def test_alerts_are_those_of_a_walk_through_the_history_with_any_restart(
    steps: list[tuple[int, int, str]], hysteresis: int, dwell: int, killed: set[int]
) -> None:
    events, expected, now = [], [], 100
    history: dict[str, list[tuple[int, float]]] = {"a": [], "b": []}
    open_: dict[str, bool] = {"a": False, "b": False}
    for step, value, key in steps:
        now += step
        events.append(reading(now, value, key))
        if history[key] and now < history[key][-1][0]:
            continue
        history[key].append((now, value))
        side, since = obvious(history[key], 4, -4, hysteresis)
        if not side:
            open_[key] = False
        elif now - since >= dwell and not open_[key]:
            open_[key] = True
            expected.append((now * S, key, side))

    def make() -> LimitHandler:
        handler = LimitHandler("l", config(high=4, low=-4, hysteresis=hysteresis, dwell_s=dwell))
        handler.pass_time = lambda *_: None  # type: ignore[method-assign]  # the clock's part has a test of its own
        return handler

    alerts = play(make(), events)
    assert [(alert.time, alert.target, alert.data["side"]) for alert in alerts] == expected
    assert facts(play_with_restarts(make, events, killed)) == facts(alerts)
