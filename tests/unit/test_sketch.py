"""Percentiles that can be added up: in any order, from any parts, the same to the bit."""

import random

from hypothesis import given
from hypothesis import strategies as st

from collector.store.sketch import ALPHA, Measure

VALUES = st.lists(st.integers(-(2**40), 2**62), min_size=1, max_size=300)
FEW = st.lists(st.integers(0, 50_000), min_size=1, max_size=200)


def measured(values: list[int]) -> Measure:
    made = Measure()
    made.add(values)
    return made


@given(st.lists(VALUES, min_size=1, max_size=8), st.randoms())
def test_what_is_merged_from_stored_parts_is_what_the_whole_would_be_whatever_the_order(
    parts: list[list[int]], order: random.Random
) -> None:
    whole = measured([value for part in parts for value in part])
    order.shuffle(parts)
    stored = [measured(part) for part in parts]
    low = min(one.low for one in stored if one.low is not None)
    high = max(one.high for one in stored if one.high is not None)
    merged = Measure()
    merged.merge_stored(
        sum(one.count for one in stored), sum(one.total for one in stored), low, high, [one.encode() for one in stored]
    )
    assert (merged.count, merged.total, merged.low, merged.high) == (whole.count, whole.total, whole.low, whole.high)
    assert merged.encode() == whole.encode()


def test_counts_beyond_what_a_double_holds_are_added_exactly() -> None:
    one = measured([5, 70, 900, 70])
    one.bins = one.bins.__class__(dict.fromkeys(range(300), 2**60 + 1))
    merged = Measure()
    merged.merge_stored(2**61, 1, 5, 900, [one.encode(), one.encode()])
    assert set(merged.bins.values()) == {2**61 + 2}


@given(FEW, st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_is_within_two_percent_of_the_value_at_its_rank(values: list[int], share: float) -> None:
    exact = sorted(values)[int(share * (len(values) - 1))]
    (found,) = measured(values).quantiles([share])
    assert found is not None
    assert abs(found - exact) <= ALPHA * exact + 1e-9


def test_of_nothing_there_is_no_percentile() -> None:
    assert Measure().quantiles([0.5, 0.9]) == [None, None]
