"""Trends: does it grow or fall, by how much a step, and may that be chance.

Theil-Sen's slope with its 95 % interval, and the test of Mann and Kendall, corrected for neighbours that resemble each other and for the
number of keys. At 10-minute steps an hour has six points: only a trend without a single turn is significant there.
"""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from collector.analytics.answer import Analysis, Asked, BadQuestion, Findings, Insufficient, grid
from collector.analytics.statistics import adjusted, shown, slope
from collector.store import analytics_read as store

if TYPE_CHECKING:
    from collector.store.database import Database

KEYS_MAX, POINTS_MIN, POINTS_MAX = 20, 6, 1_000
ALPHA = 0.05


async def gather(database: "Database", asked: Asked) -> Any:
    """Counts by step."""
    return await store.series(database, asked.span, asked.step, asked.dimension)


def compute(data: Any, asked: Asked) -> Findings:
    """Of counts by step and key."""
    counts = grid(data, asked.span.begin, asked.span.end, asked.step)
    points = counts.counts.shape[1]
    if points > POINTS_MAX:
        raise BadQuestion(f"{points} steps; {POINTS_MAX} are taken. Give a longer step, or a shorter period")
    if points < POINTS_MIN or not counts.events:
        raise Insufficient(f"{POINTS_MIN} steps with an event; there are {points} with {counts.events}", counts.events)
    order = np.argsort(-counts.counts.sum(1), kind="stable")[:KEYS_MAX]
    rows = [(None, counts.total), *((counts.keys[i], counts.counts[i]) for i in order)]
    lines = [(key, row, slope(np.asarray(row, dtype=float))) for key, row in rows]
    ps = adjusted([line.p for _, _, line in lines])
    found = []
    for (key, row, line), p in zip(lines, ps, strict=True):
        way = "none" if p >= ALPHA else "rising" if line.slope >= 0 and line.high > 0 else "falling"
        found.append(
            {"key": key, "direction": way, "slope_a_step": shown(line.slope), "low": shown(line.low), "high": shown(line.high),
             "p": shown(p), "events": int(row.sum()), "counts": [int(value) for value in row] if key is None else None}
        )  # fmt: skip
    return Findings(
        "Theil-Sen's slope, Mann-Kendall with ties and autocorrelation, Benjamini-Hochberg",
        counts.events,
        {"interval": 0.95, "alpha": ALPHA},
        {"step_s": int(counts.step.total_seconds()), "trends": found},
        {"steps": points, "keys": len(counts.keys)},
    )


ANALYSIS = Analysis(
    name="trends", version="1", summary="Slopes with their interval and significance", source="event_metrics, activity",
    gather=gather, compute=compute, default=timedelta(days=1), steps=("10min", "hour", "day"), parameters=frozenset({"last"}),
    dimensions=("type", "category", "severity", "source", "outcome", "site", "line", "station", "user", "address"),
)  # fmt: skip
