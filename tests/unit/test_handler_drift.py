"""`drift`: EWMA, CUSUM and robust z, learned or given, against the formulas applied to the whole history."""

import math
import random
from statistics import fmean, median, stdev
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.handlers.base import ConfigRaises
from agent.handlers.drift import LIMITS_MIN, ConfigDrift, DriftHandler
from agent.handlers.lessons import CHUNK
from agent.wire.event import Event
from tests.handlers import Store, facts, play, play_with_restarts, reading


def config(**changed: Any) -> ConfigDrift:
    given_: dict[str, Any] = {"learn_readings": 50, "raises": ConfigRaises(type="alert.equipment.drift")}
    return ConfigDrift(**(given_ | changed))


def noise(count: int, centre: float = 20.0, start: int = 0, step: float = 0.0) -> list[Event]:
    draw = random.Random(start)
    return [reading(start + i, centre + step * i + draw.gauss(0, 1), unit="degC") for i in range(count)]


@pytest.mark.parametrize("method", ["ewma", "cusum", "robust_z"])
def test_signal_that_creeps_away_is_raised_once_and_one_that_stays_is_not(method: str) -> None:
    handler = DriftHandler("d", config(method=method, learn_readings=200))
    assert not play(handler, noise(1_000))
    (alert,) = play(handler, noise(300, start=1_000, step=0.1))
    assert "value of source plc, target temperature drifts up from 19.9" in str(alert.message)
    assert alert.data["method"] == method
    assert abs(alert.data["statistic"]) > alert.data["limit"]


def test_centre_spread_and_limit_may_be_given() -> None:
    handler = DriftHandler("d", config(centre=20, spread=1, limit=3, method="robust_z"))
    (alert,) = play(handler, [reading(0, 22.9), reading(1, 16.5)])
    assert alert.message == (
        "value of source plc, target temperature drifts down from 20: now 16.5, robust_z 3.5, limit 3"
    )
    with pytest.raises(ValueError, match="centre and spread are given together"):
        config(centre=20)


def test_signal_that_stood_still_while_it_was_learned_may_move_its_last_digit() -> None:
    handler = DriftHandler("d", config())
    assert not play(handler, [reading(i, 100.0) for i in range(50)] + [reading(50 + i, 100.01) for i in range(50)])
    assert play(handler, [reading(100 + i, 101.0) for i in range(50)])


def test_learning_writes_each_reading_a_bounded_number_of_times_and_leaves_the_model_alone() -> None:
    handler, store = DriftHandler("d", config()), Store()
    for one in noise(49):
        handler.handle([one], one.observed)
        sizes = [len(value or b"") for value in handler.changes().values()]
        assert max(sizes) < 12 * CHUNK + 60
    for one in noise(60, start=49):
        handler.handle([one], one.observed)
        store.keep(handler)
    assert sorted(name[:2] for name in store.state) == ["!m", "j["]


def test_forgotten_signal_takes_its_lessons_along() -> None:
    handler, store = DriftHandler("d", config()), Store()
    play(handler, noise(60))
    store.keep(handler)
    for key in list(handler.table.groups):
        handler.table.drop(key)
    store.keep(handler)
    assert store.state == {}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1, 2), st.integers(-50, 50), st.sampled_from("ab")), min_size=25, max_size=90),
    st.sampled_from(["ewma", "cusum", "robust_z"]),
    st.sampled_from([None, 1.5]),
    st.sets(st.integers(0, 90), max_size=8),
)
def test_alerts_are_those_of_the_formulas_applied_to_the_whole_history(
    steps: list[tuple[int, int, str]], method: str, limit: float | None, killed: set[int]
) -> None:
    events, expected, now = [], [], 100
    seen: dict[str, list[float]] = {"a": [], "b": []}
    newest = {"a": 0, "b": 0}
    open_ = {"a": False, "b": False}
    for step, value, key in steps:
        now += step
        events.append(reading(now, value, key))
        if now < newest[key]:
            continue
        newest[key] = now
        seen[key].append(value)
        if len(seen[key]) <= 10:
            continue
        beyond = exceeds(seen[key][:10], seen[key][10:], method, limit)
        if beyond and not open_[key]:
            expected.append((now, key))
        open_[key] = beyond

    def make() -> DriftHandler:
        return DriftHandler("d", config(method=method, limit=limit, learn_readings=10, margin=1.2, cool_down_s=0))

    alerts = play(make(), events)
    assert [(alert.time // 1_000_000, alert.target) for alert in alerts] == expected
    assert facts(play_with_restarts(make, events, killed)) == facts(alerts)


def exceeds(clean: list[float], after: list[float], method: str, limit: float | None) -> bool:
    robust = method == "robust_z"
    centre = median(clean) if robust else math.fsum(clean) / len(clean)
    assert robust or math.isclose(centre, fmean(clean), abs_tol=1e-9)
    spread = 1.4826 * median([abs(v - centre) for v in clean]) if robust else stdev(clean)
    spread = max(spread, 1e-4 * abs(centre), 1e-12)
    z_clean, z_after = [(v - centre) / spread for v in clean], [(v - centre) / spread for v in after]
    if limit is None:
        reached = max(abs(statistic(z_clean[: n + 1], method, math.inf)) for n in range(len(z_clean)))
        limit = max(LIMITS_MIN[method], 1.2 * reached)
    return abs(statistic(z_after, method, limit)) > limit * (1 + 1e-12)


def statistic(z: list[float], method: str, limit: float) -> float:
    s = high = low = 0.0
    for one in z:
        s += 0.1 * (one - s)
        high = min(max(0.0, high + one - 0.5), 2 * limit)
        low = min(max(0.0, low - one - 0.5), 2 * limit)
    return {"ewma": s, "cusum": max(high, low), "robust_z": z[-1]}[method]
