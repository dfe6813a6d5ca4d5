"""`rate`: spikes against a learned baseline, against a model that counts and learns from the whole history again."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.handlers.base import ConfigRaises
from agent.handlers.rate import QUIET_PARTS_MAX, ConfigRate, RateHandler
from tests.handlers import S, event, facts, play, play_with_restarts


def config(**changed: Any) -> ConfigRate:
    given_: dict[str, Any] = {
        "by": ("source",),
        "part_s": 10,
        "learn_parts": 5,
        "at_least": 4,
        "raises": ConfigRaises(type="alert.data.read_burst"),
    }
    return ConfigRate(**(given_ | changed))


def test_spike_is_raised_within_its_part_with_what_is_usual() -> None:
    handler = RateHandler("r", config(by=()))
    quiet = [event(second) for second in range(0, 100, 5)]
    assert not play(handler, quiet)
    (alert,) = play(handler, [event(100 + i / 100) for i in range(200)])
    assert alert.message == "11 x events within 10 s, usual are 2 (limit 10.4853)"
    assert (alert.data["count"], alert.data["window_s"], alert.data["first"]["time"]) == (11, 10, 100 * S)


def test_nothing_is_raised_before_it_is_learned() -> None:
    assert not play(RateHandler("r", config()), [event(i / 100) for i in range(4_000)])


def test_attack_does_not_teach_itself_quickly() -> None:
    handler = RateHandler("r", config(cool_down_s=0, memory_parts=60))
    play(handler, [event(second) for second in range(0, 1_000, 5)])
    for part in range(3):
        assert play(handler, [event(1_000 + 10 * part + i / 20) for i in range(200)])


def test_event_of_a_part_that_is_over_is_late() -> None:
    handler = RateHandler("r", config(late_s=2))
    play(handler, [event(5), event(11.9), event(9), event(12), event(9)])
    assert handler.stats.late == 1


def test_key_that_was_quiet_for_very_long_learns_anew() -> None:
    handler = RateHandler("r", config())
    play(handler, [event(second) for second in range(100)])
    play(handler, [event(100 + 10 * (QUIET_PARTS_MAX + 9))])
    (group,) = handler.table.groups.values()
    assert (group.learned, group.mean) == (0, 0.0)


def test_flood_of_keys_pushes_out_nobody_who_was_learned() -> None:
    handler = RateHandler("r", config(max_keys=5))
    play(handler, [event(second) for second in range(100)])
    play(handler, [event(100, source=f"spoofed {i}") for i in range(100)])
    assert "plc" in handler.table.groups
    assert handler.stats.refused == 96


def test_lateness_beyond_the_open_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="late_s may be 62 times part_s"):
        config(part_s=1, late_s=63)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-15, 15), st.integers(1, 9), st.sampled_from("ab")), max_size=40),
    st.integers(0, 15),
    st.integers(1, 4),
    st.sets(st.integers(0, 100)),
)
def test_alerts_are_those_of_learning_from_the_whole_history_again(
    steps: list[tuple[int, int, str]], late: int, learn: int, killed: set[int]
) -> None:
    events, expected, now = [], [], 10_000
    seen: dict[str, list[int]] = {"a": [], "b": []}
    newest: dict[str, int] = {}
    made = config(late_s=late, learn_parts=learn, cool_down_s=0, at_least=2, spreads=1, memory_parts=4)
    for step, times, key in steps:
        now += step
        for _ in range(times):
            events.append(event(now, source=key))
            part = now // 10
            top = newest.get(key)
            if top is not None and (part <= (top - late) // 10 - 1 or part < seen[key][0]):
                continue
            newest[key] = max(now, now if top is None else top)
            seen[key].append(part)
            mean = square = 0.0
            learned = 0
            for number in range(seen[key][0], (newest[key] - late) // 10):
                count = float(seen[key].count(number))
                if learned >= learn:
                    count = min(count, limit_of(made, mean, square))
                learned += 1
                weight = max(0.25, 1 / learned)
                away = count - mean
                mean += weight * away
                square = (1 - weight) * (square + weight * away * away)
            if learned >= learn and seen[key].count(part) > limit_of(made, mean, square):
                expected.append((now * S, key))

    def make() -> RateHandler:
        return RateHandler("r", made)

    alerts = play(make(), events)
    assert facts(play_with_restarts(make, events, killed)) == facts(alerts)
    if all(step >= 0 for step, _, _ in steps):
        assert [(alert.time, alert.source) for alert in alerts] == expected


def limit_of(made: ConfigRate, mean: float, square: float) -> float:
    return max(made.at_least, mean + made.spreads * max(math.sqrt(square), math.sqrt(mean)), made.factor * mean)
