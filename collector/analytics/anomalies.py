"""Anomalies: the last hours against what was usual at this hour before, by type, severity, source, user or any other dimension.

The baseline is seasonal: the same hour of the week where three weeks are there, else the same hour of the day. An hour is anomalous where
its count is further from its baseline than the spread that the baseline itself shows, and further than Poisson alone would let it.
The share of false findings over all keys and hours is held (Benjamini-Hochberg). `time_of_day` looks at when a key happens and not how
often; `new` has what was never seen in the baseline: a fact, without a probability.
"""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from collector.analytics.answer import FINDINGS_MAX, Analysis, Asked, Findings, Grid, Insufficient, grid
from collector.analytics.statistics import Q, adjusted, chi2_sf, normal_sf, poisson_sf, robust_scale, shown, stable
from collector.store import analytics_read as store

if TYPE_CHECKING:
    from collector.analytics.statistics import Numbers
    from collector.store.database import Database

KEYS_MAX = 200
DAYS_MIN, WEEKS_MIN, DAY_H, WEEK_H = 7, 3, 24, 168
EVENTS_MIN, HABIT_MIN = 50, 100


async def gather(database: "Database", asked: Asked) -> Any:
    """Counts by hour."""
    return await store.series(database, asked.span, "hour", asked.dimension)


def compute(data: Any, asked: Asked) -> Findings:
    """Of counts by hour and key."""
    begin = max(asked.span.begin, asked.since or asked.span.begin)
    counts = grid(data, begin, asked.span.end, "hour")
    hours, window = counts.counts.shape[1], asked.horizon
    past = hours - window
    if past < DAYS_MIN * DAY_H or counts.events < EVENTS_MIN:
        raise Insufficient(
            f"{DAYS_MIN} days before the last {window} hours, with {EVENTS_MIN} events; there are {max(0, past) // DAY_H} days "
            f"with {counts.events}",
            counts.events,
        )
    season = WEEK_H if past >= WEEKS_MIN * WEEK_H else DAY_H
    totals = counts.counts.sum(1)
    order = [int(index) for index in np.argsort(-totals, kind="stable")[:KEYS_MAX]]
    rows: list[tuple[str | None, Numbers]] = [(None, counts.total)]
    rows += [(counts.keys[index], np.asarray(counts.counts[index])) for index in order]
    old = [(key, row) for key, row in rows if row[:past].sum() > 0]
    new = [
        {"key": key, "events": int(row.sum()), "first": counts.at(int(np.flatnonzero(row)[0]))}
        for key, row in rows
        if key is not None and row[:past].sum() == 0 and row.sum() > 0
    ]
    result = {
        "frequency": _frequency(counts, old, past, season),
        "time_of_day": _time_of_day(counts, old, past),
        "new": new[:FINDINGS_MAX],
    }
    return Findings(
        f"seasonal baseline of {season} hours, robust and Poisson; hours of the day by Poisson",
        counts.events,
        {"false_findings_share_max": Q, "baseline_hours": past},
        result,
        {"keys": len(counts.keys), "keys_left_out": max(0, len(counts.keys) - KEYS_MAX), "window_hours": window, "season_hours": season},
    )  # fmt: skip


def _frequency(counts: Grid, rows: "list[tuple[str | None, Numbers]]", past: int, season: int) -> list[dict[str, Any]]:
    found: list[tuple[dict[str, Any], float]] = []
    for key, row in rows:
        phase = np.arange(len(row)) % season
        many = np.bincount(phase[:past], minlength=season)
        usual = (np.bincount(phase[:past], row[:past], minlength=season) / many)[phase]
        rest = stable(row) - stable(usual)
        # The baseline is itself an estimate of so many hours, each as uncertain as the one that is judged.
        scale = robust_scale(rest[:past]) * np.sqrt(1 + 1 / many[phase])
        for index in range(past, len(row)):
            z = float(rest[index] / scale[index])
            p = _p(int(row[index]), float(usual[index]), int(many[phase[index]]), z)
            what = {
                "key": key,
                "hour": counts.at(index),
                "events": int(row[index]),
                "usual": shown(float(usual[index])),
                "z": shown(z),
            }
            found.append((what, p))
    ps = adjusted([p for _, p in found])
    told = [{**what, "p": shown(p)} for (what, _), p in zip(found, ps, strict=True) if p < Q]
    return sorted(told, key=lambda one: (one["p"], -abs(one["z"])))[:FINDINGS_MAX]


def _p(count: int, usual: float, many: int, z: float) -> float:
    """Two-sided; whichever doubts more of the robust spread and Poisson with an uncertain mean."""
    if z > 0:
        poisson = poisson_sf(count, usual + 1 / many + (usual / many) ** 0.5)
    else:
        # P(X <= count)
        low = max(0.0, usual - (usual / many) ** 0.5)
        poisson = chi2_sf(2 * low, 2 * (count + 1)) if low > 0 else 1.0
    return min(1.0, 2 * max(normal_sf(abs(z)), poisson))


def _time_of_day(counts: Grid, rows: "list[tuple[str | None, Numbers]]", past: int) -> list[dict[str, Any]]:
    first = counts.begin.hour
    found: list[tuple[dict[str, Any], float]] = []
    for key, row in rows:
        if key is None or row[:past].sum() < HABIT_MIN:
            continue
        hour_of = (np.arange(len(row)) + first) % DAY_H
        before = np.bincount(hour_of[:past], row[:past], minlength=DAY_H)
        lately = np.bincount(hour_of[past:], row[past:], minlength=DAY_H)
        share = (len(row) - past) / past
        for hour in np.flatnonzero(lately):
            if before[hour] * DAY_H < before.sum() / 4:
                # One more than was seen: that none was seen does not prove that there cannot be any.
                p = poisson_sf(int(lately[hour]), float(before[hour] + 1) * share)
                what = {"key": key, "hour_of_day": int(hour), "events": int(lately[hour]), "before": int(before[hour])}
                found.append((what, p))
    ps = adjusted([p for _, p in found])
    return [{**what, "p": shown(p)} for (what, _), p in zip(found, ps, strict=True) if p < Q][:FINDINGS_MAX]


ANALYSIS = Analysis(
    name="anomalies", version="1", summary="The last hours against their seasonal baseline", source="event_metrics, entity_activity",
    gather=gather, compute=compute, default=timedelta(days=28), parameters=frozenset({"horizon"}),
    dimensions=("type", "category", "severity", "source", "outcome", "site", "line", "station", "user", "address"),
)  # fmt: skip
