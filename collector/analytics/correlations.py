"""Correlations: which user, source or severity goes with which type; which stations move together.

Tables of counts: Cramér's V without bias for the strength, chi-square for its significance, and the cells that make it up, each with its
pointwise mutual information (bits) and its own p-value, corrected for all cells. Events that come in bursts count as often as they
came, which makes p-values small sooner than they should be: look at the strength first.

Stations: hourly counts without what each hour of the day usually has, correlated with delays of up to three hours; corrected for all pairs
and delays.
"""

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from collector.analytics.answer import FINDINGS_MAX, Analysis, Asked, Findings, Insufficient, grid
from collector.analytics.statistics import Q, adjusted, fisher_z, normal_sf, shown, stable, table, within_family
from collector.store import analytics_read as store

if TYPE_CHECKING:
    from collector.analytics.statistics import Numbers
    from collector.store.database import Database

SIDE_MAX, STATIONS_MAX = 100, 100
EVENTS_MIN, HOURS_MIN, LAGS = 50, 72, 3
EXPECTED_MIN = 1.0
REST = "(rest)"


async def gather(database: "Database", asked: Asked) -> Any:
    """Counts of both together; of stations, by hour."""
    if asked.dimension == "station":
        return await store.series(database, asked.span, "hour", "station")
    return await store.crossed(database, asked.span, asked.dimension or "source", "type")


def compute(data: Any, asked: Asked) -> Findings:
    """Of a table of counts, or of hourly counts by station."""
    return _stations(data, asked) if asked.dimension == "station" else _crossed(data, asked)


def _crossed(rows: Any, asked: Asked) -> Findings:
    names, types, counts = _table(rows)
    side = asked.dimension or "source"
    events = int(counts.sum())
    if events < EVENTS_MIN or min(counts.shape) < 2:  # noqa: PLR2004
        raise Insufficient(
            f"{EVENTS_MIN} events of two {side}s and two types; there are {events}, of {len(names)} and {len(types)}",
            events,
        )
    told = table(counts)
    cells = [(i, j) for i, j in np.argwhere(told.expected >= EXPECTED_MIN)]
    ps = adjusted([2 * normal_sf(abs(float(told.z[i, j]))) for i, j in cells])
    found: list[dict[str, Any]] = [
        {side: names[i], "type": types[j], "events": int(counts[i, j]), "expected": shown(float(told.expected[i, j])),
         "pmi": shown(math.log2(counts[i, j] / told.expected[i, j])) if counts[i, j] else None, "z": shown(float(told.z[i, j])),
         "p": shown(p)}
        for (i, j), p in zip(cells, ps, strict=True) if p < Q
    ]  # fmt: skip
    significant = told.p < Q
    return Findings(
        "Cramér's V (Bergsma), chi-square, adjusted residuals with Benjamini-Hochberg",
        events,
        {"p": shown(told.p), "false_findings_share_max": Q},
        {
            "strength": shown(told.v) if significant else 0.0,
            "significant": significant,
            "chi2": shown(told.chi2),
            "cells": sorted(found, key=lambda one: -abs(one["z"]))[:FINDINGS_MAX] if significant else [],
        },
        {"with": side, "rows": len(names), "columns": len(types)},
    )


def _table(rows: Any) -> "tuple[list[str], list[str], Numbers]":
    """The largest rows and columns; the others are added up."""
    sides: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for row in rows:
        for side, key in zip(sides, (row["a"], row["b"]), strict=True):
            side[key] = side.get(key, 0) + row["events"]
    names, types = (sorted(side, key=lambda key: (-side[key], key))[:SIDE_MAX] for side in sides)
    if len(sides[0]) > SIDE_MAX:
        names.append(REST)
    if len(sides[1]) > SIDE_MAX:
        types.append(REST)
    at, of = ({key: number for number, key in enumerate(keys)} for keys in (names, types))
    counts = np.zeros((max(1, len(names)), max(1, len(types))))
    for row in rows:
        counts[at.get(row["a"], len(names) - 1), of.get(row["b"], len(types) - 1)] += row["events"]
    return names, types, counts


def _stations(rows: Any, asked: Asked) -> Findings:
    begin = max(asked.span.begin, asked.since or asked.span.begin)
    counts = grid(rows, begin, asked.span.end, "hour")
    hours = counts.counts.shape[1]
    loud = [
        int(i)
        for i in np.argsort(-counts.counts.sum(1), kind="stable")[:STATIONS_MAX]
        if counts.counts[i].sum() >= EVENTS_MIN
    ]
    if len(loud) < 2 or hours < HOURS_MIN:  # noqa: PLR2004
        raise Insufficient(
            f"two stations with {EVENTS_MIN} events in {HOURS_MIN} hours; there are {len(loud)} in {hours} hours",
            counts.events,
        )
    rest = _rest(counts.counts[loud])
    pairs = [(a, b) for a in range(len(loud)) for b in range(a + 1, len(loud))]
    best = [
        max(((lag, _r(rest[a], rest[b], lag)) for lag in range(-LAGS, LAGS + 1)), key=lambda x: abs(x[1]))
        for a, b in pairs
    ]
    ps = adjusted([within_family(fisher_z(r, hours - abs(lag)), 2 * LAGS + 1) for lag, r in best])
    found: list[dict[str, Any]] = [
        {"a": counts.keys[loud[a]], "b": counts.keys[loud[b]], "r": shown(r), "delay_hours": lag, "p": shown(p)}
        for (a, b), (lag, r), p in zip(pairs, best, ps, strict=True) if p < Q
    ]  # fmt: skip
    return Findings(
        "correlation of hourly counts without the usual of the hour, delays of up to 3 hours, Benjamini-Hochberg",
        counts.events,
        {"false_findings_share_max": Q},
        {"pairs": sorted(found, key=lambda one: -abs(one["r"]))[:FINDINGS_MAX]},
        {"stations": len(loud), "hours": hours, "stations_left_out": len(counts.keys) - len(loud)},
    )


def _rest(counts: "Numbers") -> "Numbers":
    """Without what each hour of the day usually has, and without the level of the day before."""
    y = stable(counts)
    phase = np.arange(y.shape[1]) % 24
    for hour in range(24):
        y[:, phase == hour] -= y[:, phase == hour].mean(1, keepdims=True)
    return np.asarray(y - y.mean(1, keepdims=True))


def _r(a: "Numbers", b: "Numbers", lag: int) -> float:
    """How b follows a after `lag` hours."""
    x, y = (a[: len(a) - lag], b[lag:]) if lag >= 0 else (a[-lag:], b[:lag])
    power = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / power if power > 0 else 0.0


ANALYSIS = Analysis(
    name="correlations", version="1", summary="What goes with what, how strongly, and whether that may be chance",
    source="event_metrics, entity_activity", gather=gather, compute=compute, default=timedelta(days=7),
    dimensions=("source", "severity", "station", "user", "address"),
)  # fmt: skip
