"""`ratio`: scrap rate by order, by shift and over a sliding time, against a model that counts all events again."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.handlers.base import ConfigRaises
from agent.handlers.ratio import PARTS, ConfigRatio, RatioHandler
from agent.wire.event import Event
from tests.handlers import S, event, facts, play, play_with_restarts


def config(**changed: Any) -> ConfigRatio:
    given_: dict[str, Any] = {
        "bad": "outcome == 'failure'",
        "by": ("data.order",),
        "above": 0.1,
        "at_least": 10,
        "cool_down_s": 0,
        "raises": ConfigRaises(type="alert.quality.scrap"),
    }
    return ConfigRatio(**(given_ | changed))


def part(second: float, ok: bool = True, order: str = "4711") -> Event:
    return event(second, "quality.measured", outcome="success" if ok else "failure", data={"order": order})


def test_scrap_of_an_order_is_raised_once_enough_parts_are_made() -> None:
    handler = RatioHandler("r", config())
    assert not play(handler, [part(i, ok=i > 3) for i in range(9)])
    (alert,) = play(handler, [part(9), part(10)])
    assert alert.message == "4 of 10 events of order 4711 are bad: 40 %, above 10 %"
    assert (alert.data["count"], alert.data["bad"], alert.data["value"], alert.data["limit"]) == (10, 4, 0.4, 0.1)
    assert alert.data["first"]["time"] == 0


def test_order_that_is_well_again_can_be_raised_again() -> None:
    handler = RatioHandler("r", config(at_least=1, above=0.5))
    assert len(play(handler, [part(0, ok=False), part(1), part(2, ok=False)])) == 2


def test_yield_below_its_bound_is_raised() -> None:
    handler = RatioHandler("r", config(above=None, below=0.9, bad="outcome == 'success'"))
    assert len(play(handler, [part(i, ok=i % 5 > 0) for i in range(20)])) == 1


def test_shift_begins_anew() -> None:
    handler = RatioHandler("r", config(shift_starts=("06:00", "14:00", "22:00"), time_zone="UTC", by=()))
    day = 20_000 * 86_400
    assert not play(handler, [part(day + 14 * 3_600 - 9 + i, ok=False) for i in range(9)])
    assert not play(handler, [part(day + 14 * 3_600 + i, ok=False) for i in range(9)])
    (alert,) = play(handler, [part(day + 14 * 3_600 + 9, ok=False)])
    assert "in this shift" in str(alert.message)
    assert not play(handler, [part(day + 14 * 3_600 - 1, ok=False)])
    assert handler.stats.late == 1
    assert len(play(handler, [part(day + 29 * 3_600 + i, ok=False) for i in range(20)])) == 1


def test_flood_of_orders_pushes_out_nobody_who_is_counted() -> None:
    handler = RatioHandler("r", config(max_keys=5))
    play(handler, [part(i, ok=False) for i in range(9)])
    play(handler, [part(9, order=f"spoofed {i}") for i in range(100)])
    assert len(play(handler, [part(10, ok=False)])) == 1
    assert handler.stats.refused == 96


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"above": None}, "above or below must be given"),
        ({"bad": "outcom == 'failure'"}, "bad: an event has no field"),
        ({"within_s": 5, "shift_starts": ("06:00",)}, "exclude each other"),
        ({"shift_starts": ("6",)}, "shift_starts: '6' is no time"),
        ({"shift_starts": ("26:00",)}, "there is no time"),
        ({"time_zone": "Berlin"}, "there is no time zone"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        config(**changed)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-90, 60), st.booleans(), st.sampled_from("ab")), max_size=60),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.3, 0.5]),
    st.sampled_from([None, PARTS, PARTS * 3]),
    st.sets(st.integers(0, 60)),
)
def test_alerts_are_those_of_counting_everything_again(
    steps: list[tuple[int, bool, str]], at_least: int, above: float, within: int | None, killed: set[int]
) -> None:
    size = (within or 0) // PARTS
    events, expected, now = [], [], 10_000
    seen: dict[str, list[tuple[int, bool]]] = {"a": [], "b": []}
    open_: dict[str, bool] = {"a": False, "b": False}
    for step, ok, order in steps:
        now += step
        events.append(part(now, ok=ok, order=order))
        number = now // size if size else 0
        newest = max([one for one, _ in seen[order]], default=number)
        if size and number <= newest - PARTS:
            continue
        seen[order].append((number, ok))
        newest = max(newest, number)
        counted = [fine for one, fine in seen[order] if not size or one > newest - PARTS]
        if len(counted) < at_least:
            open_[order] = False
            continue
        beyond = counted.count(False) / len(counted) > above
        if beyond and not open_[order]:
            expected.append((now * S, order))
        open_[order] = beyond

    def make() -> RatioHandler:
        return RatioHandler("r", config(at_least=at_least, above=above, within_s=within, cool_down_s=0))

    alerts = play(make(), events)
    assert facts(play_with_restarts(make, events, killed)) == facts(alerts)
    if not any(step < 0 for step, _, _ in steps):
        assert [(alert.time, alert.data["key"]["data.order"]) for alert in alerts] == expected
    assert len(alerts) <= len(expected)
