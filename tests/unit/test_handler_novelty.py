"""`novelty`: raised once a value, learned first, forgotten in time, bounded, and the same after a restart."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.handlers.base import ConfigRaises
from agent.handlers.engine import Engine
from agent.handlers.novelty import ConfigNovelty, NoveltyHandler
from agent.wire.event import Event
from tests.handlers import S, event, facts, play, play_with_restarts


def config(**changed: Any) -> ConfigNovelty:
    given_: dict[str, Any] = {
        "where": "type == 'authentication.success'",
        "of": ("src_ip",),
        "learn_s": 100,
        "raises": ConfigRaises(type="alert.authentication.new"),
    }
    return ConfigNovelty(**(given_ | changed))


def login(second: float, src_ip: str | None = "10.0.0.1", **more: Any) -> Event:
    return event(second, "authentication.success", "auth", src_ip=src_ip, **more)


def test_value_is_raised_the_first_time_after_learning_and_never_again() -> None:
    handler = NoveltyHandler("n", config())
    events = [login(0), login(99, "10.0.0.2"), login(100, "10.0.0.2"), login(101, "10.0.0.3"), login(102, "10.0.0.3")]
    (alert,) = play(handler, events)
    assert (alert.time, alert.src_ip) == (101 * S, "10.0.0.3")
    assert alert.message == "src_ip 10.0.0.3 seen for the first time (authentication.success)"
    assert alert.data["new"] == {"src_ip": "10.0.0.3"}
    assert alert.data["first"] == alert.data["last"]


def test_new_user_is_named_as_actor_and_not_in_the_sentence() -> None:
    handler = NoveltyHandler("n", config(of=("actor", "data.user"), by=("target",), learn_s=0))
    (alert,) = handler.handle([login(0, actor="bob", target="press", data={"user": "rob"})], 0)
    assert (alert.actor, alert.data["user"]) == ("bob", "rob")
    assert alert.message == "this user and this user seen for the first time of target press (authentication.success)"
    assert "ob" not in f"{alert.message}{alert.correlation_id}{alert.data['key']}"


def test_value_is_new_for_each_by_of_its_own() -> None:
    handler = NoveltyHandler("n", config(by=("target",), learn_s=0))
    assert len(play(handler, [login(i, target=target) for i, target in enumerate("abab")])) == 2


def test_many_new_values_within_the_cool_down_are_one_alert() -> None:
    handler = NoveltyHandler("n", config(learn_s=0, cool_down_s=60))
    assert len(play(handler, [login(i, f"10.0.0.{i}") for i in range(100)])) == 1
    assert handler.stats.suppressed == 99
    assert len(play(handler, [login(99 + 60, "10.0.1.1")])) == 1


def test_flood_of_new_values_turns_no_known_value_new_and_is_reported() -> None:
    handler = NoveltyHandler("n", config(max_keys=10))
    alerts = play(handler, [login(0), *(login(200 + i / 10, f"spoofed {i}") for i in range(500)), login(300)])
    assert [alert.type for alert in alerts] == ["alert.authentication.new"] * 9 + ["alert.handler.flooded"]
    assert len(handler.table) == 10
    assert handler.stats.refused == 491


def test_value_that_was_not_seen_for_long_is_new_again() -> None:
    handler = NoveltyHandler("n", config(learn_s=0, forget_s=1_000))
    alerts = play(handler, [login(0), login(900), login(1_850), login(4_000, "10.0.0.2"), login(4_001)])
    assert [alert.time // S for alert in alerts] == [0, 4_000, 4_001]


def test_field_to_look_at_is_asked_for() -> None:
    with pytest.raises(ValueError, match="of: name the field"):
        config(of=())
    with pytest.raises(ValueError, match=r"of: an event has no field 'srcip' .did you mean src_ip"):
        config(of=("srcip",))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-20, 60), st.sampled_from("abcd"), st.sampled_from("xy")), max_size=60),
    st.integers(0, 300),
    st.sets(st.integers(0, 60)),
)
def test_alerts_are_those_of_a_set_of_what_was_seen(
    steps: list[tuple[int, str, str]], learn: int, killed: set[int]
) -> None:
    time, events, expected = 1_000, [], []
    seen: set[tuple[str, str]] = set()
    for step, value, scope in steps:
        time += step
        events.append(login(time, value, target=scope))
        if (value, scope) not in seen and time - events[0].time // S >= learn:
            expected.append((time * S, value, scope))
        seen.add((value, scope))

    def make() -> NoveltyHandler:
        return NoveltyHandler("n", config(by=("target",), learn_s=learn))

    alerts = play(make(), events)
    assert [(alert.time, alert.src_ip, alert.target) for alert in alerts] == expected
    assert facts(play_with_restarts(make, events, killed)) == facts(alerts)


def test_learning_starts_with_the_agent_and_not_with_the_first_sign_in() -> None:
    engine = Engine({"n": NoveltyHandler("n", config())})
    quiet = [event(second, "system.cron.started") for second in range(0, 101, 10)]
    alerts = play(engine, [*quiet, login(200, "203.0.113.7"), login(201, "203.0.113.8"), login(202, "203.0.113.7")])
    assert [alert.src_ip for alert in alerts] == ["203.0.113.7", "203.0.113.8"]


def test_start_of_learning_survives_a_restart_without_any_sign_in() -> None:
    before = Engine({"n": NoveltyHandler("n", config())})
    before.handle([event(0, "system.cron.started")], 0)
    after = Engine({"n": NoveltyHandler("n", config())})
    after.restore({name: {k: v for k, v in state.items() if v is not None} for name, state in before.changes().items()})
    assert [alert.src_ip for alert in play(after, [event(300, "system.cron.started"), login(301)])] == ["10.0.0.1"]


def test_handler_added_to_a_running_agent_learns_from_then_on() -> None:
    engine = Engine({"n": NoveltyHandler("n", config())})
    engine.restore({"other": {"!began": b"0"}})
    assert play(engine, [event(5_000, "system.cron.started"), login(5_099)]) == []


def test_line_is_no_part_of_what_an_alert_says_of_its_key_or_of_what_is_new() -> None:
    handler = NoveltyHandler("n", config(of=("line",), by=("raw", "line"), learn_s=0))
    (alert,) = handler.handle([login(0, raw="ann typed her password")], 0)
    assert "ann" not in f"{alert.message}{alert.correlation_id}{alert.data}"
