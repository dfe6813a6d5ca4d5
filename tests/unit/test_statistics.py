"""The statistics of the analyses, held against scipy: in the middle, in both tails, and for large counts."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from collector.analytics import statistics

SMALL = 1e-290
"""Nothing that matters lies below, and doubles lose digits there."""


def close(mine: float, theirs: float, rel: float = 1e-9) -> None:
    if theirs < SMALL:
        assert mine < 10 * SMALL
    else:
        assert mine == pytest.approx(theirs, rel=rel)


@pytest.mark.parametrize(
    ("count", "mean"),
    [
        (100, 1.0), (60, 2.0), (40, 0.5), (1_000, 300.0), (7, 1e-3), (500, 3.5), (2, 1e-100), (30_000, 20_000.0), (1_000_000, 990_000.0),
        (10**8, 0.999e8), (10**8, 1.0001e8), (10**6, 10**6), (12_000, 11_990.0),
    ],
)  # fmt: skip
def test_a_rare_count_has_its_probability_far_below_the_precision_of_one(count: int, mean: float) -> None:
    close(statistics.poisson_sf(count, mean), float(stats.poisson.sf(count - 1, mean)), rel=2e-7)


def test_what_is_below_1e_16_is_not_zero() -> None:
    assert 0 < statistics.poisson_sf(40, 1.0) < 1e-47
    assert statistics.poisson_sf(41, 1.0) < statistics.poisson_sf(40, 1.0)


@given(st.integers(0, 60_000), st.floats(1e-6, 60_000))
def test_poisson_is_that_of_scipy(count: int, mean: float) -> None:
    close(statistics.poisson_sf(count, mean), float(stats.poisson.sf(count - 1, mean)), rel=1e-7)


@given(st.floats(0, 50_000), st.floats(0.5, 40_000))
def test_chi_square_is_that_of_scipy(x: float, freedom: float) -> None:
    close(statistics.chi2_sf(x, freedom), float(stats.chi2.sf(x, freedom)), rel=1e-7)


@pytest.mark.parametrize(
    ("x", "freedom"), [(1_500.0, 1_500), (1_600.0, 1_400), (5_000.0, 4_900), (2_000.0, 3.0), (0.0, 5), (3.0, 0)]
)
def test_chi_square_of_large_tables_is_that_of_scipy(x: float, freedom: float) -> None:
    close(statistics.chi2_sf(x, freedom), float(stats.chi2.sf(x, freedom)) if freedom else 1.0, rel=1e-8)


@given(st.floats(-8, 37))
def test_the_normal_tail_is_that_of_scipy(z: float) -> None:
    close(statistics.normal_sf(z), float(stats.norm.sf(z)))
    (one,) = statistics.normal_sfs(np.array([z]))
    close(float(one), float(stats.norm.sf(z)) if z >= 2 else 1.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_the_share_of_false_findings_is_that_of_scipy(p: list[float]) -> None:
    assert statistics.adjusted(p) == pytest.approx(list(stats.false_discovery_control(p)))


@given(st.integers(0, 500), st.integers(1, 500))
def test_the_interval_of_a_share_is_that_of_scipy(k: int, n: int) -> None:
    k = min(k, n)
    found = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert statistics.wilson(k, n) == pytest.approx((found.low, found.high), abs=1e-9)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_the_robust_spread_is_that_of_scipy(values: list[float]) -> None:
    theirs = float(stats.median_abs_deviation(values, scale="normal"))
    assert statistics.robust_scale(np.array(values), least=0.0) == pytest.approx(theirs, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_a_slope_and_its_interval_are_those_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.normal(size=40) + 0.05 * seed * np.arange(40)
    if statistics._inflation(y - statistics.slope(y).slope * np.arange(40)) != 1.0:
        pytest.skip("neighbours resemble each other here, which scipy does not look at")
    mine, theirs = statistics.slope(y), stats.theilslopes(y)
    assert (mine.slope, mine.low, mine.high) == pytest.approx((theirs.slope, theirs.low_slope, theirs.high_slope))
    # Mann and Kendall's test is that of tau, with a correction for continuity: one pair less.
    tau = stats.kendalltau(np.arange(40), y, method="asymptotic")
    pair = 1 / math.sqrt(40 * 39 * 85 / 18)
    assert float(stats.norm.isf(mine.p / 2)) == pytest.approx(float(stats.norm.isf(tau.pvalue / 2)) - pair, rel=1e-6)


_COUNTS = st.lists(st.lists(st.integers(1, 200), min_size=3, max_size=3), min_size=2, max_size=5)


@given(_COUNTS)
def test_a_table_of_counts_says_what_scipy_says(rows: list[list[int]]) -> None:
    counts = np.array(rows, dtype=float)
    mine = statistics.table(counts)
    theirs: Any = stats.chi2_contingency(counts, correction=False)
    assert mine.chi2 == pytest.approx(theirs.statistic, abs=1e-9)
    close(mine.p, float(theirs.pvalue), rel=1e-6)
    assert mine.expected == pytest.approx(theirs.expected_freq)
    n = counts.sum()
    expected = theirs.expected_freq
    adjusted = (counts - expected) / np.sqrt(
        expected * (1 - counts.sum(1, keepdims=True) / n) * (1 - counts.sum(0, keepdims=True) / n)
    )
    assert mine.z == pytest.approx(adjusted, abs=1e-9)
    # Bergsma's correction only ever takes away.
    assert 0 <= mine.v <= float(stats.contingency.association(counts.astype(int), method="cramer")) + 1e-9


@given(st.floats(-0.99, 0.99), st.integers(4, 10_000))
def test_the_probability_of_a_correlation_is_that_of_fisher_s_transformation(r: float, n: int) -> None:
    z = math.atanh(r) * math.sqrt(n - 3)
    close(statistics.fisher_z(r, n), float(2 * stats.norm.sf(abs(z))))


def test_a_rhythm_s_probability_is_an_upper_bound_of_fisher_s_exact_one() -> None:
    """The first term of his sum, which the whole sum never passes."""
    rng = np.random.default_rng(1)
    found = statistics.period(rng.poisson(20 + 15 * np.sin(np.arange(96) * 2 * np.pi / 24)).astype(float))
    assert found is not None
    many, g = (96 - 1) // 2, found.share
    exact = sum((-1) ** (k - 1) * math.comb(many, k) * (1 - k * g) ** (many - 1) for k in range(1, int(1 / g) + 1))
    assert round(found.steps) == 24
    assert found.p >= exact > 0
    assert found.p == pytest.approx(exact, rel=0.05)
