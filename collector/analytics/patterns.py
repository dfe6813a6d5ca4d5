"""Patterns: what is frequent, what has a rhythm, what came in bursts, what appears together; by any dimension.

rhythm      Fisher's exact test on the periodogram of each key, for the number of keys (Bonferroni)
burst       ten minutes, hours or days with more than their usual, by a robust spread and by Poisson, whichever doubts more; for all cells
together    keys seen in the same ten minutes at the same station more often than chance, of the last week (Benjamini-Hochberg)
"""

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from collector.analytics.answer import FINDINGS_MAX, Analysis, Asked, Findings, Grid, Insufficient, grid
from collector.analytics.statistics import (
    Q,
    adjusted,
    normal_sf,
    normal_sfs,
    period,
    poisson_sf,
    robust_scale,
    shown,
    stable,
    wilson,
    within_family,
)
from collector.store import analytics_read as store
from collector.store.analytics_read import Span

if TYPE_CHECKING:
    from collector.analytics.statistics import Numbers
    from collector.store.database import Database

KEYS_MAX = 60
EVENTS_MIN, BUCKETS_MIN = 50, 24
WEEK = timedelta(days=7)
_NORMAL_FROM = 10.0


async def gather(database: "Database", asked: Asked) -> Any:
    """Counts by the dimension, and what was there in each ten minutes of the last week."""
    rows = await store.series(database, asked.span, asked.step, asked.dimension)
    if asked.dimension not in ("type", "severity", "source"):
        return rows, []
    span = asked.span
    last = Span(wanted=span.wanted, begin=max(span.begin, span.end - WEEK), end=span.end)
    return rows, await store.windows(database, last, asked.dimension)


def compute(data: Any, asked: Asked) -> Findings:
    """Of counts by bucket and key, and of windows."""
    rows, windows = data
    counts = grid(rows, asked.span.begin, asked.span.end, asked.step)
    if counts.events < EVENTS_MIN or counts.counts.shape[1] < BUCKETS_MIN:
        raise Insufficient(
            f"{EVENTS_MIN} events in {BUCKETS_MIN} buckets; there are {counts.events} in {counts.counts.shape[1]}",
            counts.events,
        )
    result = {
        "frequent": _frequent(counts),
        "rhythms": _rhythms(counts),
        "bursts": _bursts(counts),
        "together": _together(windows) if windows else [],
    }
    return Findings(
        "shares (Wilson); Fisher's test on periodograms; robust and Poisson bursts; co-occurrence in ten minutes",
        counts.events,
        {"false_findings_max": Q, "corrected_for": "all keys and buckets looked at"},
        result,
        {"keys": len(counts.keys), "buckets": counts.counts.shape[1]},
    )


def _frequent(counts: Grid) -> list[dict[str, Any]]:
    totals = counts.counts.sum(1)
    found = []
    for index in np.argsort(-totals, kind="stable")[:20]:
        many = int(totals[index])
        low, high = wilson(many, counts.events)
        found.append(
            {"key": counts.keys[index], "events": many, "share": shown(many / counts.events), "low": shown(low), "high": shown(high)}
        )  # fmt: skip
    return found


def _rhythms(counts: Grid) -> list[dict[str, Any]]:
    tried = [(key, row) for key, row in _rows(counts) if row.sum() >= EVENTS_MIN]
    found: list[dict[str, Any]] = []
    for key, row in tried:
        rhythm = period(row)
        if rhythm is not None and (p := within_family(rhythm.p, len(tried))) < Q:
            seconds = rhythm.steps * counts.step.total_seconds()
            width = seconds * rhythm.steps / row.size / 2
            found.append(
                {"key": key, "period_s": shown(seconds), "period_s_within": shown(width), "share_of_variation": shown(rhythm.share),
                 "p": shown(p)}
            )  # fmt: skip
    return sorted(found, key=lambda one: (one["p"], -one["share_of_variation"]))[:FINDINGS_MAX]


def _rows(counts: Grid) -> "list[tuple[str | None, Numbers]]":
    """All together under None, then the largest keys."""
    order = np.argsort(-counts.counts.sum(1), kind="stable")[:KEYS_MAX]
    alone = [(counts.keys[index], np.asarray(counts.counts[index])) for index in order]
    return [(None, counts.total), *alone] if len(counts.keys) > 1 else list(alone)


def _bursts(counts: Grid) -> list[dict[str, Any]]:
    rows = _rows(counts)
    cells = len(rows) * counts.counts.shape[1]
    found: list[dict[str, Any]] = []
    for key, row in rows:
        usual = _usual(row)
        rest = stable(row) - stable(usual)
        p = normal_sfs(rest / robust_scale(rest))
        hot = [
            int(i)
            for i in np.flatnonzero((p * cells < Q) & (row >= 5))  # noqa: PLR2004 - fewer are no burst
            if within_family(poisson_sf(int(row[i]), float(usual[i])), cells) < Q
        ]
        for first, last in _runs(hot):
            events = int(row[first : last + 1].sum())
            found.append(
                {"key": key, "begin": counts.at(first), "end": counts.at(last + 1), "events": events,
                 "usual": shown(float(usual[first : last + 1].sum())),
                 "p": shown(within_family(float(p[first : last + 1].min()), cells))}
            )  # fmt: skip
    return sorted(found, key=lambda one: -one["events"] / (one["usual"] + 1))[:FINDINGS_MAX]


def _usual(row: "Numbers") -> "Numbers":
    """What is usual in each bucket: what is so over the whole, without the highest, but at least the rhythm of it."""
    kept = np.sort(row)[: max(1, int(len(row) * 0.95))]
    level = np.full(len(row), max(float(np.median(row)), float(kept.mean())))
    rhythm = period(row)
    if rhythm is not None and rhythm.p < Q and rhythm.steps >= 3 and len(row) >= 3 * rhythm.steps:  # noqa: PLR2004
        level = np.maximum(level, _by_phase(row, round(rhythm.steps)))
    return level


def _by_phase(row: "Numbers", length: int) -> "Numbers":
    """The median of each phase of a rhythm, at each bucket. All phases at once, since one by one is most of the time of an analysis."""
    times, beyond = divmod(len(row), length)
    whole, rest = row[: times * length].reshape(times, length), row[times * length :]
    longer = np.median(np.vstack([whole[:, :beyond], rest]), axis=0)
    usual = np.concatenate([longer, np.median(whole[:, beyond:], axis=0)])
    return np.asarray(np.tile(usual, times + 1)[: len(row)])


def _runs(hot: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for index in hot:
        if runs and index <= runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    return runs


def _together(rows: Any) -> list[dict[str, Any]]:
    """Pairs of keys in windows of ten minutes at one station."""
    spots = {spot: number for number, spot in enumerate(sorted({(row[0], row[1]) for row in rows}))}
    seen: dict[str, list[int]] = {}
    for bucket, place, key in rows:
        seen.setdefault(key, []).append(spots[bucket, place])
    keys = sorted(seen, key=lambda key: (-len(seen[key]), key))[:KEYS_MAX]
    places = len({place for _, place in spots})
    n = max(len(spots), len({bucket for bucket, _ in spots}) * places)
    present = np.zeros((n, len(keys)), dtype=np.float32)
    for column, key in enumerate(keys):
        present[seen[key], column] = 1
    both = (present.T @ present).astype(float)
    pairs = [(a, b) for a in range(len(keys)) for b in range(a + 1, len(keys)) if both[a, b] >= 5]  # noqa: PLR2004
    chances = [_chance(both[a, b], both[a, a], both[b, b], n) for a, b in pairs]
    found: list[dict[str, Any]] = [
        {"a": keys[a], "b": keys[b], "windows": int(both[a, b]), "expected": shown(both[a, a] * both[b, b] / n),
         "pmi": shown(math.log2(both[a, b] * n / (both[a, a] * both[b, b]))),
         "jaccard": shown(both[a, b] / (both[a, a] + both[b, b] - both[a, b])), "p": shown(p)}
        for (a, b), p in zip(pairs, adjusted(chances), strict=True) if p < Q
    ]  # fmt: skip
    return sorted(found, key=lambda one: -one["jaccard"])[:FINDINGS_MAX]


def _chance(both: float, a: float, b: float, n: int) -> float:
    """How likely so many windows with both are, given those with each."""
    expected = a * b / n
    if expected < _NORMAL_FROM:
        return poisson_sf(int(both), expected)
    variance = expected * (n - a) * (n - b) / (n * max(1, n - 1))
    return 1.0 if variance <= 0 else normal_sf((both - 0.5 - expected) / math.sqrt(variance))


ANALYSIS = Analysis(
    name="patterns", version="1", summary="Frequent, periodic, bursting and co-occurring events", source="event_metrics, activity",
    gather=gather, compute=compute, default=timedelta(days=7), steps=("10min", "hour", "day"),
    dimensions=("type", "category", "severity", "source", "outcome", "site", "line", "station", "user", "address"),
)  # fmt: skip
