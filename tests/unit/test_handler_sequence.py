"""`sequence`: exact against a search through all events, in any order of arrival, and the same after a restart."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.handlers.base import ConfigRaises
from agent.handlers.count import ConfigCount, CountHandler
from agent.handlers.engine import Engine
from agent.handlers.sequence import TAIL_MAX, ConfigSequence, ConfigStep, SequenceHandler
from agent.wire.event import Event
from tests.handlers import S, event, facts, play, play_with_restarts

FAILED, LET_IN = "authentication.failure", "authentication.success"


def config(**changed: Any) -> ConfigSequence:
    given_: dict[str, Any] = {
        "steps": (ConfigStep(where=f"type == '{FAILED}'", at_least=3), ConfigStep(where=f"type == '{LET_IN}'")),
        "within_s": 60,
        "by": ("src_ip",),
        "raises": ConfigRaises(type="alert.authentication.broken_in", severity="critical"),
    }
    return ConfigSequence(**(given_ | changed))


def sign_in(second: float, type_: str = FAILED, src_ip: str = "10.0.0.1", **more: Any) -> Event:
    return event(second, type_, "auth", src_ip=src_ip, **more)


def test_failures_then_success_of_one_address_is_raised_with_its_causes() -> None:
    events = [
        sign_in(0),
        sign_in(1),
        sign_in(2, LET_IN),
        sign_in(3),
        sign_in(4),
        sign_in(4, LET_IN, "10.0.0.2"),
        sign_in(6, LET_IN),
    ]
    handler = SequenceHandler("s", config())
    (alert,) = play(handler, events)
    assert alert.message == (
        "authentication.failure, then authentication.success of src_ip 10.0.0.1: 2 steps in order within 5 s (limit 60 s)"
    )
    assert (alert.time, alert.src_ip, alert.data["first"]["time"], alert.data["events"]) == (
        6 * S,
        "10.0.0.1",
        1 * S,
        4,
    )


def test_causes_in_one_batch_share_the_correlation_id() -> None:
    events = [sign_in(0), sign_in(1), sign_in(2), sign_in(3, LET_IN)]
    (alert,) = Engine({"s": SequenceHandler("s", config())}).handle(events, 0)
    assert {one.correlation_id for one in events} == {alert.correlation_id}


def test_chain_is_whole_up_to_the_window_and_a_microsecond_more_is_too_long() -> None:
    steps = [sign_in(0), sign_in(1), sign_in(2)]
    assert len(play(SequenceHandler("s", config()), [*steps, sign_in(60, LET_IN)])) == 1
    assert not play(SequenceHandler("s", config()), [*steps, sign_in(60.000001, LET_IN)])


def test_event_that_comes_late_is_put_in_its_place() -> None:
    late = [sign_in(0), sign_in(1), sign_in(3, LET_IN), sign_in(2)]
    assert len(play(SequenceHandler("s", config()), late)) == 1
    handler = SequenceHandler("s", config(late_s=0.5))
    assert not play(handler, late)
    assert handler.stats.late == 1


def test_steps_may_name_their_key_otherwise() -> None:
    steps = (
        ConfigStep(where="type == 'account.created'", by=("data.target_user",)),
        ConfigStep(where=f"type == '{LET_IN}'"),
    )
    handler = SequenceHandler("s", config(by=("actor",), steps=steps))
    events = [
        event(0, "account.created", actor="root", data={"target_user": "eve"}),
        sign_in(1, LET_IN, actor="root"),
        sign_in(2, LET_IN, actor="eve"),
    ]
    (alert,) = play(handler, events)
    assert (alert.time, alert.actor) == (2 * S, "eve")
    assert "eve" not in f"{alert.message}{alert.correlation_id}"


def test_step_may_be_an_alert_of_another_handler() -> None:
    raises = ConfigRaises(type="alert.burst")
    counting = ConfigCount(where=f"type == '{FAILED}'", by=("src_ip",), at_least=2, within_s=9, raises=raises)
    burst = CountHandler("burst", counting)
    steps = (ConfigStep(where="type == 'alert.burst'"), ConfigStep(where=f"type == '{LET_IN}'"))
    engine = Engine({"burst": burst, "s": SequenceHandler("s", config(steps=steps))})
    assert [alert.type for alert in engine.handle([sign_in(0), sign_in(1)], 0)] == ["alert.burst"]
    assert [alert.type for alert in engine.handle([sign_in(2, LET_IN)], 0)] == ["alert.authentication.broken_in"]


def test_step_that_holds_of_any_type_does_not_mean_alerts() -> None:
    handler = SequenceHandler("s", config(steps=(ConfigStep(where="severity >= low", at_least=2),)))
    assert not handler.sees_alert("alert.burst")


def test_event_that_fits_two_steps_stands_for_one() -> None:
    handler = SequenceHandler("s", config(steps=(ConfigStep(where=""), ConfigStep(where=""))))
    assert not play(handler, [sign_in(0)])
    assert len(play(handler, [sign_in(1)])) == 1


def test_flood_of_first_steps_does_not_push_out_who_is_on_the_way() -> None:
    handler = SequenceHandler("s", config(max_keys=50))
    alerts = play(handler, [sign_in(0), sign_in(1), sign_in(2)])
    alerts += play(handler, [sign_in(3 + i / 1000, FAILED, f"spoofed {i}") for i in range(2_000)])
    alerts += play(handler, [sign_in(6, LET_IN)])
    assert [alert.type for alert in alerts] == ["alert.handler.flooded", "alert.authentication.broken_in"]
    assert len(handler.table) == 50


def test_burst_on_one_key_costs_a_bounded_state() -> None:
    handler = SequenceHandler("s", config())
    play(handler, [sign_in(i / 1000) for i in range(3_000)])
    (state,) = handler.changes().values()
    assert state is not None
    assert len(state) < 100 * TAIL_MAX
    assert len(play(handler, [sign_in(4, LET_IN)])) == 1


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"steps": ()}, "a sequence has"),
        ({"steps": (ConfigStep(where=""),)}, "2 to 64 events"),
        ({"steps": (ConfigStep(where=""), ConfigStep(where="typ == 'a'"))}, r"steps\[1\].where: an event has no field"),
        ({"steps": (ConfigStep(where=""), ConfigStep(where="", by=("actor", "type")))}, "as many fields as by does"),
        (
            {"steps": (ConfigStep(where=""), ConfigStep(where="", by=("actr",)))},
            r"steps\[1\].by: an event has no field",
        ),
    ],
)
def test_steps_that_cannot_be_are_refused_with_their_place(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        config(**changed)


def holds(events: list[tuple[int, str]], links: str, within: int) -> bool:
    """Search for the chain from every event: slow and obvious."""
    for start, (began, _) in enumerate(events):
        at = 0
        for time, letter in events[start:]:
            if time <= began + within and at < len(links) and letter == links[at]:
                at += 1
        if at == len(links):
            return True
    return False


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-6, 10), st.sampled_from("ABC"), st.sampled_from("xy")), max_size=40),
    st.sampled_from(["AB", "AAB", "ABC", "AA", "ABA"]),
    st.integers(1, 25),
    st.integers(0, 8),
    st.sets(st.integers(0, 40)),
)
def test_alerts_are_those_of_a_search_through_all_events_with_any_order_and_any_restart(
    arrivals: list[tuple[int, str, str]], links: str, within: int, late: int, killed: set[int]
) -> None:
    kept: dict[str, list[tuple[int, str]]] = {"x": [], "y": []}
    newest: dict[str, int] = {}
    bound: dict[str, int] = {}
    events, expected, time = [], [], 1_000
    for step, letter, key in arrivals:
        time += step
        events.append(sign_in(time, letter, key))
        if letter not in links:
            continue
        top = newest.get(key)
        if top is not None and (time < top - late or time <= bound.get(key, -1)) and time < top:
            continue
        if top is None and not late and letter != links[0]:
            continue
        newest[key] = max(time, time if top is None else top)
        kept[key].append((time, letter))
        kept[key].sort(key=lambda one: one[0])
        if holds(kept[key], links, within):
            expected.append((key, time * S))
            kept[key], bound[key] = [], newest[key]

    def make() -> SequenceHandler:
        steps = tuple(ConfigStep(where=f"type == '{letter}'") for letter in links)
        return SequenceHandler("s", config(steps=steps, within_s=within, late_s=late, cool_down_s=0))

    alerts = play(make(), events)
    assert [(alert.src_ip, alert.time) for alert in alerts] == expected
    assert facts(play_with_restarts(make, events, killed)) == facts(alerts)
