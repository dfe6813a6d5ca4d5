"""`multivariate`: its eigenvectors, T² and Q against the definitions; finds a broken relation; the same after a restart."""

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.handlers.base import ConfigRaises
from agent.handlers.multivariate import ConfigMultivariate, Matrix, MultivariateHandler, eigen, learn, settle
from agent.wire.event import Event
from tests.handlers import Store, facts, play, play_with_restarts, reading

SIGNALS = ("current", "flow", "pressure")


def config(**changed: Any) -> ConfigMultivariate:
    given_: dict[str, Any] = {
        "signals": SIGNALS,
        "learn_samples": 120,
        "smoothing": 0.2,
        "raises": ConfigRaises(type="alert.equipment.health"),
    }
    return ConfigMultivariate(**(given_ | changed))


def run(seconds: int, start: int = 0, broken: bool = False, shift: float = 0.0) -> list[Event]:
    """Flow and current follow the pressure; `broken`: flow goes its own way, within its usual bounds."""
    draw = random.Random(start)
    events = []
    for second in range(start, start + seconds):
        pressure = draw.gauss(0, 1)
        own = draw.gauss(0, 1) if broken else pressure
        values = {"current": 3 * pressure + draw.gauss(0, 0.1), "flow": -2 * own + draw.gauss(0, 0.1) + shift}
        events += [reading(second, value, name) for name, value in {**values, "pressure": pressure}.items()]
    return events


def test_relation_that_breaks_is_raised_once_though_each_signal_stays_within_its_bounds() -> None:
    handler = MultivariateHandler("m", config())
    assert not play(handler, run(400))
    (alert,) = play(handler, run(60, 400, broken=True))
    assert str(alert.message).startswith("3 signals of source plc are not as they were learned: index ")
    assert alert.data["q"] / alert.data["t2"] > 0
    assert set(alert.data["furthest"]) == set(SIGNALS)


def test_signal_that_leaves_is_named_first() -> None:
    handler = MultivariateHandler("m", config())
    play(handler, run(200))
    (alert,) = play(handler, run(60, 200, shift=8))
    assert next(iter(alert.data["furthest"])) == "flow"
    assert alert.data["value"] > alert.data["limit"] == 12


def test_nothing_is_judged_before_all_signals_were_seen_and_what_is_no_signal_is_passed_over() -> None:
    handler = MultivariateHandler("m", config())
    play(handler, [one for one in run(400) if one.target != "flow"])
    play(handler, [reading(500, "text", "flow"), reading(500, 1, "noise"), reading(500, math.nan, "flow")])
    (group,) = handler.table.groups.values()
    assert group.taken == 0


def test_reading_of_a_sample_that_was_taken_is_late() -> None:
    handler = MultivariateHandler("m", config())
    play(handler, [reading(1, 1, "flow"), reading(0.9, 1, "flow"), reading(1.5, 1, "flow"), reading(1.2, 1, "flow")])
    assert handler.stats.late == 1


def test_rows_are_gone_once_the_model_is_made() -> None:
    handler, store = MultivariateHandler("m", config()), Store()
    for one in run(130):
        handler.handle([one], one.observed)
        store.keep(handler)
    assert sorted(store.state) == ["!msplc", "splc"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"signals": ("a",)}, "signals: name 2 to 24"),
        ({"signals": ("a", "a")}, "different signals"),
        ({"learn_samples": 50, "smoothing": 0.02}, "need at least"),
    ],
)
def test_group_that_cannot_be_learned_is_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        config(**changed)


symmetric = st.integers(2, 6).flatmap(
    lambda size: st.lists(
        st.lists(st.integers(-50, 50).map(float), min_size=size, max_size=size), min_size=size, max_size=size
    )
)


@settings(max_examples=100, deadline=None)
@given(symmetric)
def test_eigenvectors_are_what_their_definition_says(half: Matrix) -> None:
    size = len(half)
    matrix = [[half[i][j] + half[j][i] for j in range(size)] for i in range(size)]
    values, vectors = eigen(matrix)
    assert values == sorted(values, reverse=True)
    for value, vector in zip(values, vectors, strict=True):
        image = [math.fsum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]
        assert image == pytest.approx([value * one for one in vector], abs=1e-6)
    for i, one in enumerate(vectors):
        for j, two in enumerate(vectors):
            assert math.fsum(a * b for a, b in zip(one, two, strict=True)) == pytest.approx(float(i == j), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1_000), st.lists(st.integers(-4, 4), min_size=3, max_size=3))
def test_t2_over_all_axes_is_mahalanobis_and_t2_and_q_split_the_distance(seed: int, point: list[int]) -> None:
    draw = random.Random(seed)
    rows = [[draw.gauss(0, 1), draw.gauss(5, 2), draw.gauss(0, 3)] for _ in range(60)]
    model = learn(rows, 0.9999999)
    scaled = model.scaled([float(one) for one in point])
    t2, q = model.statistics(scaled)
    assert q == pytest.approx(0.0, abs=1e-9)
    parts = list(zip(*[model.scaled(row) for row in rows], strict=True))
    covariance = [[math.fsum(a * b for a, b in zip(x, y, strict=True)) / 59 for y in parts] for x in parts]
    assert t2 == pytest.approx(sum(a * b for a, b in zip(scaled, solved(covariance, scaled), strict=True)), rel=1e-6)
    part = learn(rows, 0.5)
    along = [math.fsum(a * z for a, z in zip(axis, scaled, strict=True)) for axis in part.axes]
    assert math.fsum(a * a for a in along) + part.statistics(scaled)[1] == pytest.approx(sum(z * z for z in scaled))


def solved(matrix: Matrix, right: list[float]) -> list[float]:
    """X of matrix · x = right, by elimination."""
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda i: abs(rows[i][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for i in range(size):
            if i != column:
                factor = rows[i][column] / rows[column][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[column], strict=True)]
    return [rows[i][size] / rows[i][i] for i in range(size)]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1_000), st.sets(st.integers(0, 600), max_size=6))
def test_alerts_are_those_of_the_formulas_applied_to_the_whole_run_with_any_restart(
    seed: int, killed: set[int]
) -> None:
    events = run(150, 10_000 * seed) + run(50, 10_000 * seed + 150, broken=True)

    def make() -> MultivariateHandler:
        return MultivariateHandler("m", config(cool_down_s=0))

    alerts = play(make(), events)
    assert facts(play_with_restarts(make, events, killed)) == facts(alerts)

    vectors = [[one.data["value"] for one in events[at : at + 3]] for at in range(0, len(events), 3)]
    smoothed: list[list[float]] = []
    for vector in vectors:
        before = smoothed[-1] if smoothed else vector
        smoothed.append([old + 0.2 * (new - old) for old, new in zip(before, vector, strict=True)])
    # The order of the names is that of the configuration, and of the events.
    assert [one.target for one in events[:3]] == list(SIGNALS)
    model = learn(smoothed[settle(0.2) : 120], 0.8)
    beyond = [model.index(*model.statistics(model.scaled(one))) > 12 for one in smoothed[120:-1]]
    expected = [120 + at for at, now in enumerate(beyond) if now and not (at and beyond[at - 1])]
    assert [alert.time // 1_000_000 - 10_000 * seed for alert in alerts] == expected
