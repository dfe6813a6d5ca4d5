"""Analyses on generated counts whose answer is known: what was planted is found, and where nothing was, nothing is."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.wire.taxonomy import TAXONOMY
from collector.analytics import (
    anomalies,
    correlations,
    forecast,
    maintenance,
    patterns,
    risk,
    sequences,
    threats,
    trends,
)
from collector.analytics.answer import Asked, Insufficient
from collector.analytics.statistics import adjusted, chi2_sf, poisson_sf, slope
from collector.store.analytics import HEADS_MAX, TRANSITIONS, sums_of
from collector.store.analytics_read import STEPS, Span, Step
from collector.store.events import ALL, Filter

BEGIN = datetime(2026, 3, 2, tzinfo=UTC)  # a Monday
RUNS = 40


def asked(steps: int, step: Step = "hour", **more: Any) -> Asked:
    span = Span(wanted=Filter(scope=ALL), begin=BEGIN, end=BEGIN + STEPS[step] * steps)
    return Asked(span=span, step=step, since=BEGIN, **more)


def rows(counts: Any, key: str = "log.line", step: Step = "hour") -> list[tuple[datetime, str, int]]:
    return [(BEGIN + STEPS[step] * index, key, int(count)) for index, count in enumerate(counts) if count]


def noise(seed: int, mean: Any = 8.0, hours: int = 14 * 24) -> Any:
    return np.random.default_rng(seed).poisson(mean, hours)


def record(**fields: Any) -> Any:
    base = {"time": BEGIN, "batch_id": 1, "idx": 0, "place_id": 1, "type": "log.line", "severity": 1, "source": "s", "src_ip": None,
            "target": None, "outcome": None, "actor": None, "value": None}  # fmt: skip
    return {**base, **fields}


# ── the statistics themselves ────────────────────────────────────────────────────────────────────────────────────────


def test_tail_probabilities_are_those_of_the_tables() -> None:
    for x, freedom, p in ((3.841459, 1, 0.05), (18.307038, 10, 0.05), (135.806723, 100, 0.01), (0.5, 40, 1.0)):
        assert chi2_sf(x, freedom) == pytest.approx(p, abs=1e-6)
    assert poisson_sf(3, 1.0) == pytest.approx(1 - math.exp(-1) * 2.5)
    assert poisson_sf(0, 5.0) == 1.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_a_corrected_p_value_is_never_smaller_and_keeps_the_order(ps: list[float]) -> None:
    out = adjusted(ps)
    assert all(b >= a - 1e-12 for a, b in zip(ps, out, strict=True))
    assert [b for _, b in sorted(zip(ps, out, strict=True))] == sorted(out)


@settings(deadline=None)
@given(st.floats(-5, 5), st.floats(-100, 100))
def test_the_slope_of_a_line_is_its_slope(steep: float, start: float) -> None:
    line = slope(start + steep * np.arange(30.0))
    assert line.slope == pytest.approx(steep, abs=1e-9)
    assert line.low <= line.slope + 1e-9
    assert line.high >= line.slope - 1e-9


# ── patterns ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_planted_period_is_found_and_named_in_seconds() -> None:
    hours = np.arange(14 * 24)
    found = patterns.compute((rows(noise(1, 8 + 6 * np.sin(2 * np.pi * hours / 12))), []), asked(14 * 24)).result
    best = found["rhythms"][0]
    assert best["period_s"] == pytest.approx(12 * 3600, rel=0.02)
    assert best["p"] < 1e-6


def test_a_planted_burst_is_found_where_it_is_and_nothing_else() -> None:
    counts = noise(2)
    counts[100:103] += 60
    (burst,) = patterns.compute((rows(counts), []), asked(14 * 24)).result["bursts"]
    assert burst["begin"] == BEGIN + timedelta(hours=100)
    assert burst["end"] == BEGIN + timedelta(hours=103)


def test_what_always_comes_together_is_found_and_what_does_not_is_not() -> None:
    random = np.random.default_rng(3)
    windows = []
    for window in range(1000):
        moment = BEGIN + timedelta(minutes=10 * window)
        a = random.random() < 0.1
        windows += [(moment, 1, key) for key, there in
                    (("a", a), ("b", a and random.random() < 0.9), ("c", random.random() < 0.1), ("z", True)) if there]  # fmt: skip
    found = patterns.compute((rows(noise(3)), windows), asked(14 * 24)).result["together"]
    assert [(one["a"], one["b"]) for one in found] == [("a", "b")]
    assert found[0]["pmi"] > 2


def test_patterns_in_noise_are_hardly_ever_found() -> None:
    wrong = 0
    for seed in range(RUNS):
        data = rows(noise(seed), "a") + rows(noise(seed + 1000, 0.3), "b")
        found = patterns.compute((data, []), asked(14 * 24)).result
        wrong += bool(found["rhythms"]) + bool(found["bursts"])
    assert wrong <= 2, f"{wrong} of {2 * RUNS}"


# ── anomalies ────────────────────────────────────────────────────────────────────────────────────────────────────────

DAILY = 10 + 8 * np.sin(2 * np.pi * np.arange(28 * 24) / 24)


def test_an_hour_far_above_its_hour_of_the_week_is_found_though_other_hours_reach_as_high() -> None:
    counts = noise(5, np.maximum(0.5, DAILY), 28 * 24)
    quiet = 27 * 24 + 18
    counts[quiet] = 22
    found = anomalies.compute(rows(counts), asked(28 * 24)).result["frequency"]
    assert {one["hour"] for one in found} == {BEGIN + timedelta(hours=quiet)}


def test_silence_is_an_anomaly() -> None:
    counts = noise(6, 30.0, 28 * 24)
    counts[-5:] = 0
    found = anomalies.compute(rows(counts), asked(28 * 24)).result["frequency"]
    assert {one["hour"] for one in found} == {BEGIN + timedelta(hours=28 * 24 - back) for back in range(1, 6)}


def test_a_user_who_comes_at_night_is_found_and_one_never_seen_before_is_new() -> None:
    office = np.where((np.arange(28 * 24) % 24 >= 8) & (np.arange(28 * 24) % 24 < 17), 3.0, 0.0)
    worker = noise(7, office, 28 * 24)
    worker[27 * 24 + 2] = 4
    stranger = np.zeros(28 * 24)
    stranger[-1] = 2
    found = anomalies.compute(rows(worker, "user-1") + rows(stranger, "user-2"), asked(28 * 24)).result
    assert [(one["key"], one["hour_of_day"]) for one in found["time_of_day"]] == [("user-1", 2)]
    assert [one["key"] for one in found["new"]] == ["user-2"]


def test_anomalies_in_noise_are_hardly_ever_found() -> None:
    wrong = 0
    for seed in range(RUNS):
        data = [
            row for key in range(5) for row in rows(noise(seed * 10 + key, np.maximum(0.5, DAILY), 28 * 24), str(key))
        ]
        found = anomalies.compute(data, asked(28 * 24)).result
        wrong += bool(found["frequency"]) + bool(found["time_of_day"])
    assert wrong <= 4, f"{wrong} of {2 * RUNS}"


# ── correlations ─────────────────────────────────────────────────────────────────────────────────────────────────────


def crossed(counts: Any) -> list[dict[str, Any]]:
    return [
        {"a": f"s{i}", "b": f"t{j}", "events": int(n), "failures": 0} for (i, j), n in np.ndenumerate(np.array(counts))
    ]


def test_a_planted_correlation_has_its_strength_and_its_cell() -> None:
    random = np.random.default_rng(8)
    counts = random.poisson(100, (4, 5))
    counts[2, 3] += 400
    found = correlations.compute(crossed(counts), asked(168, dimension="source")).result
    assert found["significant"]
    assert (found["cells"][0]["source"], found["cells"][0]["type"]) == ("s2", "t3")
    assert found["cells"][0]["pmi"] > 0.5
    perfect = correlations.compute(crossed([[100, 0], [0, 100]]), asked(168, dimension="source")).result
    assert perfect["strength"] == pytest.approx(1, abs=0.01)


def test_stations_that_move_together_are_found_with_their_delay() -> None:
    random = np.random.default_rng(9)
    common = random.gamma(2, 5, 340)
    a, b, c = random.poisson(common[2:338]), random.poisson(common[:336]), random.poisson(10, 336)
    found = correlations.compute(rows(a, "a") + rows(b, "b") + rows(c, "c"), asked(336, dimension="station")).result[
        "pairs"
    ]
    assert [(one["a"], one["b"], one["delay_hours"]) for one in found] in ([("a", "b", 2)], [("b", "a", -2)])


def test_correlations_in_noise_are_hardly_ever_found() -> None:
    wrong = 0
    for seed in range(RUNS):
        random = np.random.default_rng(seed)
        wrong += correlations.compute(crossed(random.poisson(20, (6, 8))), asked(168, dimension="source")).result[
            "significant"
        ]
        data = [row for key in "abcd" for row in rows(random.poisson(5, 336), key)]
        wrong += bool(correlations.compute(data, asked(336, dimension="station")).result["pairs"])
    assert wrong <= 4, f"{wrong} of {2 * RUNS}"


# ── sequences ────────────────────────────────────────────────────────────────────────────────────────────────────────


def chain(seed: int, planted: bool) -> list[tuple[str, str, str, int]]:
    random = np.random.default_rng(seed)
    out: dict[tuple[str, str, str], int] = {}
    for entity in ("u1", "u2", "u3"):
        before = "a"
        for _ in range(2000):
            after = "b" if planted and before == "a" and random.random() < 0.7 else str(random.choice(list("abcd")))
            out[entity, before, after] = out.get((entity, before, after), 0) + 1
            before = after
    if planted:
        out["u1", "d", "x"] = 9
    return [(*key, n) for key, n in out.items()]


def test_planted_transitions_are_found_as_frequent_rare_and_unusual_for_one() -> None:
    found = sequences.compute(chain(10, planted=True), asked(24, per="user")).result
    assert (found["frequent"][0]["before"], found["frequent"][0]["after"]) == ("a", "b")
    assert [(one["before"], one["after"]) for one in found["rare"]] == [("d", "x")]
    assert [(one["entity"], one["after"]) for one in found["unusual"]] == [("u1", "x")]


def test_transitions_in_noise_are_hardly_ever_found() -> None:
    wrong = 0
    for seed in range(RUNS):
        found = sequences.compute(chain(seed, planted=False), asked(24, per="user")).result
        wrong += bool(found["frequent"]) + bool(found["rare"]) + bool(found["unusual"])
    assert wrong <= 4, f"{wrong} of {3 * RUNS}"


def test_what_is_late_or_long_after_follows_nothing() -> None:
    moments = [0, 60, 30, 60 + 1801, 60 + 1801 + 5]
    events = [record(time=BEGIN + timedelta(seconds=at), type=f"t{i}", idx=i) for i, at in enumerate(moments)]
    first = sums_of(events[:2], {}, str)
    again = sums_of(events[2:], first.heads, str)
    assert {key[-2:] for key in first.cells[TRANSITIONS.name]} == {("t0", "t1")}
    assert {key[-2:] for key in again.cells[TRANSITIONS.name]} == {("t3", "t4")}
    assert HEADS_MAX > 0


# ── trends ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_planted_slope_lies_in_its_interval() -> None:
    counts = np.random.default_rng(11).poisson(50 + 3 * np.arange(24))
    found = trends.compute(rows(counts), asked(24)).result["trends"][0]
    assert found["direction"] == "rising"
    assert found["low"] <= 3 <= found["high"]
    falling = trends.compute(rows(counts[::-1]), asked(24)).result["trends"][0]
    assert falling["direction"] == "falling"


def test_an_hour_by_ten_minutes_has_a_trend_where_every_step_rises() -> None:
    found = trends.compute(rows([1, 4, 9, 15, 22, 30], step="10min"), asked(6, "10min")).result["trends"][0]
    assert found["direction"] == "rising"


def test_trends_in_noise_are_hardly_ever_found() -> None:
    wrong = sum(
        trends.compute(rows(noise(seed, 20, 48)), asked(48)).result["trends"][0]["direction"] != "none" for seed in range(100)
    )  # fmt: skip
    assert wrong <= 11, f"{wrong} of 100"


# ── risk ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

_risky = st.lists(
    st.tuples(st.sampled_from(sorted(TAXONOMY)), st.integers(1, 6), st.integers(1, 500)), min_size=1, max_size=20
)


def risk_of(found: list[tuple[str, int, int]]) -> dict[str, Any]:
    data = [("s1", kind, severity, n, n if kind.endswith("failure") else 0) for kind, severity, n in found]
    (one,) = risk.compute(data, asked(168, per="station")).result["subjects"]
    return one  # type: ignore[no-any-return]


@settings(deadline=None)
@given(_risky, st.sampled_from(sorted(TAXONOMY)), st.integers(1, 6), st.integers(1, 500))
def test_contributions_add_up_to_the_risk_and_more_never_lowers_it(
    found: Any, kind: str, severity: int, n: int
) -> None:
    one = risk_of(found)
    assert sum(part["points"] for part in one["contributions"]) == pytest.approx(one["risk"], abs=0.001)
    assert 0 <= one["risk"] <= 100
    assert one["low"] - 0.1 <= one["risk"] <= one["high"] + 0.1
    assert risk_of([*found, (kind, severity, n)])["risk"] >= one["risk"] - 0.001


def test_a_quiet_station_is_informational_and_one_under_attack_is_not() -> None:
    assert risk_of([("equipment.reading", 1, 500)])["level"] == "informational"
    attacked = [("authentication.failure", 3, 500), ("security.log.cleared", 5, 30), ("alert", 4, 100), ("account.created", 3, 50),
                ("configuration.program.changed", 4, 60), ("network.scan", 3, 40), ("security.usb.attached", 3, 5)]  # fmt: skip
    assert risk_of(attacked)["level"] in ("high", "critical")


# ── maintenance ──────────────────────────────────────────────────────────────────────────────────────────────────────


def worn(seed: int, steep: float, hours: int = 240, kind: str = "reading") -> list[dict[str, Any]]:
    values = 20 + steep * np.arange(hours) + np.random.default_rng(seed).normal(0, 1, hours)
    return [
        {"hour": BEGIN + timedelta(hours=h), "station": "a/b/c", "source": "plc", "signal": "vibration", "kind": kind, "readings": 6,
         "mean": v, "low": v, "high": v}
        for h, v in enumerate(values)
    ]  # fmt: skip


class Row(dict[Any, Any]):
    """A row as the database gives it: by name and by place."""

    def __getitem__(self, key: Any) -> Any:
        return list(self.values())[key] if isinstance(key, int | slice) else super().__getitem__(key)


def worn_rows(*arguments: Any, **more: Any) -> list[Any]:
    names = ("hour", "station", "source", "signal", "kind", "readings", "mean", "low", "high")
    return [Row({name: row[name] for name in names}) for row in worn(*arguments, **more)]


def test_a_planted_wear_reaches_its_limit_when_it_was_planted_to() -> None:
    # 20 + 0.1 h reaches 54 at hour 340: 100 hours from the end of 240.
    inside = 0
    for seed in range(20):
        (one,) = maintenance.compute((worn_rows(seed, 0.1), []), asked(240, limit=54.0)).result["signals"]
        assert one["hours_to_limit"] == pytest.approx(100, abs=20)
        inside += one["reached_early"] <= BEGIN + timedelta(hours=340) <= one["reached_late"]
        assert one["back_test_error"] < 3
    assert inside >= 16


def test_no_date_is_made_up_without_a_trend_towards_the_limit() -> None:
    dated = [
        maintenance.compute((worn_rows(seed, 0.0), []), asked(240, limit=54.0)).result["signals"][0]
        for seed in range(RUNS)
    ]
    assert sum(one["reached"] is not None for one in dated) <= 2
    (away,) = maintenance.compute((worn_rows(1, -0.1), []), asked(240, limit=54.0)).result["signals"]
    assert away["reached"] is None
    assert away["why"]


def test_run_hours_are_those_in_which_a_counter_moved() -> None:
    data = worn_rows(1, 0.0, hours=50, kind="counter")
    for hour, row in enumerate(data):
        dict.__setitem__(row, "high", float(min(hour, 30)))
    (one,) = maintenance.compute((data, []), asked(50)).result["signals"]
    assert one["run_hours"] == 30


def test_alarms_that_become_more_are_told() -> None:
    alarms = rows(np.random.default_rng(4).poisson(2 + np.arange(30)), "a/b/c", "day")
    (one,) = maintenance.compute(([], alarms), asked(30, "day")).result["alarms"]
    assert one["growing"]


# ── threats ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_technique_of_the_taxonomy_has_a_name_a_tactic_and_an_action() -> None:
    assert {row.technique for row in TAXONOMY.values() if row.technique} <= set(threats.TECHNIQUES)
    assert {one.tactic for one in threats.TECHNIQUES.values()} <= set(threats.TACTICS)


def test_the_level_is_that_of_the_evidence_and_names_what_to_do() -> None:
    calm = threats.compute(([("s", "equipment.reading", 1, 1000, 0)], []), asked(24)).result
    assert calm["level"] == "none"
    assert calm["evidence"] == []
    grave = threats.compute(([("s", "security.log.cleared", 5, 1, 0)], []), asked(24)).result
    assert grave["level"] == "high"
    assert grave["actions"][0]["technique"] == "T0872"
    many = [
        ("s", kind, 4, 3, 0)
        for kind in ("security.log.cleared", "configuration.program.changed", "system.memory.exhausted")
    ]
    assert threats.compute((many, []), asked(24)).result["level"] == "high"
    assert sum(len(tactic["techniques"]) for tactic in grave["coverage"]) == len(threats.TECHNIQUES)


def test_the_usual_number_is_no_increase() -> None:
    wrong = 0
    for seed in range(100):
        now, before = np.random.default_rng(seed).poisson(50, 2)
        far = asked(24)
        far = Asked(span=far.span, step="hour", since=BEGIN - timedelta(days=2))
        found = threats.compute(([("s", "network.scan", 3, now, 0)], [("s", "network.scan", 3, before, 0)]), far).result
        wrong += found["level"] != "guarded"
    assert wrong <= 3


# ── forecast ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_better_of_two_methods_is_given_and_never_worse_than_seasonal_naive() -> None:
    truth = np.maximum(0.5, 20 + 15 * np.sin(2 * np.pi * np.arange(29 * 24) / 24))
    counts = noise(12, truth, 29 * 24)
    found = forecast.compute((rows(counts[: 28 * 24]), [], None), asked(28 * 24))
    assert found.result["given"].startswith("profile")
    assert found.uncertainty["back_test_mae"] <= found.uncertainty["seasonal_naive_mae"]
    hours = found.result["hours"]
    error = np.abs(np.array([hour["events"] for hour in hours]) - truth[28 * 24 :]).mean()
    assert error < 2.5
    inside = sum(hour["low"] <= count <= hour["high"] for hour, count in zip(hours, counts[28 * 24 :], strict=True))
    assert inside >= 16


def test_a_calendar_that_repeats_itself_exactly_is_forecast_exactly() -> None:
    counts = np.tile(np.arange(24), 20)
    found = forecast.compute((rows(counts), [], None), asked(480))
    assert found.uncertainty["back_test_mae"] == 0
    assert [hour["events"] for hour in found.result["hours"]] == list(range(24))


def test_the_load_is_what_so_many_events_take() -> None:
    counts = np.tile(np.full(24, 3600), 20)
    timed = [{"events": 3600, "mean_ms": 12.0} for _ in range(480)]
    load = forecast.compute((rows(counts), timed, 500.0), asked(480, of="load")).result["load"]
    assert load["busiest_events_per_s"] == 1.0
    assert load["bytes"] == 24 * 3600 * 500
    assert load["processing_ms_when_busiest"] == 12.0


# ── too little ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("compute", "data"),
    [
        (patterns.compute, ([], [])), (anomalies.compute, []), (correlations.compute, []), (sequences.compute, []), (trends.compute, []),
        (risk.compute, []), (maintenance.compute, ([], [])), (threats.compute, ([], [])), (forecast.compute, ([], [], None)),
    ],
)  # fmt: skip
def test_without_enough_no_analysis_guesses_and_each_says_what_it_takes(compute: Any, data: Any) -> None:
    for steps in (1, 48, 1000):
        with pytest.raises(Insufficient, match=r"there (is|are)"):
            compute(data, asked(steps, dimension="source", per="station"))
