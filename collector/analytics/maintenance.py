"""Maintenance: when a reading or a counter reaches its limit, how long a machine has run, whether its alarms grow.

A line (Theil-Sen) through the means of days or hours, anchored in its middle; where its trend is significant and leads to the limit,
the time to it follows, with an interval from that of the slope. The error of a back-test is given beside it: the line through the first
seventy per cent of the points, against the rest. A signal without such a trend has no date: none is made up.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from collector.analytics.answer import FINDINGS_MAX, Analysis, Asked, Findings, Insufficient, grid
from collector.analytics.statistics import Q, adjusted, shown, slope, within_family
from collector.store import analytics_read as store
from collector.store.analytics import OTHER
from collector.store.analytics_read import Span

if TYPE_CHECKING:
    from collector.analytics.statistics import Numbers
    from collector.store.database import Database

POINTS_MIN, POINTS_MAX, DAYS_MIN = 10, 400, 14
SIGNALS_MAX = 200
YEARS_MAX = 20
ALARMS = ("equipment.alarm.raised", "equipment.fault")


async def gather(database: "Database", asked: Asked) -> Any:
    """Readings by hour, and alarms by day and station."""
    rows = await store.readings(database, asked.span, asked.signals)
    wanted = replace(asked.span.wanted, types=ALARMS, sources=())
    days = Span(wanted=wanted, begin=_day(asked.span.begin), end=_day(asked.span.end))
    alarms = await store.series(database, days, "day", "station") if days.begin < days.end else []
    return rows, alarms


def _day(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def compute(data: Any, asked: Asked) -> Findings:
    """Of readings by hour, and alarms by day."""
    rows, alarms = data
    found = []
    readings = 0
    whole = {key: list(group) for key, group in groupby(rows, key=lambda row: tuple(row[1:5]))}
    for key, group in list(whole.items())[:SIGNALS_MAX]:
        readings += sum(row["readings"] for row in group)
        if key[2] != OTHER:
            found.append(_signal(key, group, asked, len(whole)))
    known = [one for one in found if one is not None]
    growing = _alarms(alarms, asked)
    if not known and not growing:
        raise Insufficient(
            f"a signal with {POINTS_MIN} hours of readings, or {DAYS_MIN} days with alarms; there are {len(whole)} signals",
            readings,
        )
    known.sort(key=lambda one: (one["hours_to_limit"] is None, one["hours_to_limit"] or 0.0, one["signal"]))
    return Findings(
        "Theil-Sen's line with its interval; Mann-Kendall for whether it is one",
        readings,
        {"interval": 0.95, "alpha": Q, "back_test": "each signal has its own: back_test_error"},
        {"signals": known[:FINDINGS_MAX], "alarms": growing},
        {"signals": len(whole), "signals_left_out": max(0, len(whole) - SIGNALS_MAX), "limit": asked.limit},
    )


def _points(group: Any) -> "tuple[Numbers, Numbers, datetime]":
    """Hours since the first, and values: by the hour, or by the day where there are many."""
    first: datetime = group[0]["hour"]
    value = "high" if group[0]["kind"] == "counter" else "mean"
    x = np.array([(row["hour"] - first) / timedelta(hours=1) for row in group])
    y = np.array([float(row[value]) for row in group])
    width = 1
    while len(x) / width > POINTS_MAX:
        width *= 2
    if width > 1:
        # As even as they can be: the first ones have one more.
        each, more = divmod(len(x), len(x) // width)
        sizes = np.full(len(x) // width, each)
        sizes[:more] += 1
        starts = np.cumsum(sizes) - sizes
        x, y = np.add.reduceat(x, starts) / sizes, np.add.reduceat(y, starts) / sizes
    return x, y, first


def _signal(key: tuple[str, ...], group: Any, asked: Asked, tests: int) -> dict[str, Any] | None:
    x, y, first = _points(group)
    if len(x) < POINTS_MIN:
        return None
    line = _line(x, y)
    p = within_family(line["p"], tests)
    moved = [b["high"] > a["high"] for a, b in pairwise(group)]
    out: dict[str, Any] = {
        "station": key[0], "source": key[1], "signal": key[2], "kind": key[3], "points": len(x), "last": shown(float(y[-1])),
        "slope_an_hour": shown(line["slope"]), "slope_low": shown(line["low"]), "slope_high": shown(line["high"]), "p": shown(p),
        "run_hours": sum(moved) if key[3] == "counter" else None, "hours_with_readings": len(group),
        "back_test_error": _back_test(x, y), "limit": asked.limit, "hours_to_limit": None, "reached": None, "reached_early": None,
        "reached_late": None, "why": None,
    }  # fmt: skip
    if asked.limit is None:
        out["why"] = "no limit was given: limit=…"
    elif p >= Q:
        out["why"] = "no trend that could not be chance"
    elif (asked.limit - y[-1]) * line["slope"] <= 0:
        out["why"] = "the limit is behind it" if line["slope"] else "no trend"
    else:
        _reach(out, line, asked, first)
    return out


def _reach(out: dict[str, Any], line: dict[str, float], asked: Asked, first: datetime) -> None:
    limit = asked.limit or 0.0
    now = (asked.span.end - first) / timedelta(hours=1)

    def hours(steep: float) -> float | None:
        if steep * line["slope"] <= 0:
            return None
        at = line["x"] + (limit - line["y"]) / steep
        return at if at < YEARS_MAX * 8_766 else None

    def moment(at: float | None) -> datetime | None:
        return None if at is None else first + timedelta(hours=at)

    at = hours(line["slope"])
    if at is None:
        out["why"] = f"later than in {YEARS_MAX} years"
        return
    fast, slow = (line["high"], line["low"]) if line["slope"] > 0 else (line["low"], line["high"])
    out.update(
        hours_to_limit=shown(max(0.0, at - now), 6), reached=moment(at), reached_early=moment(hours(fast)), reached_late=moment(hours(slow))
    )  # fmt: skip


def _line(x: "Numbers", y: "Numbers") -> dict[str, float]:
    """Theil-Sen over the true times. Steps of equal width are tested; readings that are missing only widen a step."""
    i, j = np.triu_indices(len(x), 1)
    middle = float(np.median((y[j] - y[i]) / (x[j] - x[i])))
    tested = slope(y)
    mean = (x[-1] - x[0]) / (len(x) - 1)
    # The interval's ranks are those of the test; its values those of the true times.
    scale = middle / (tested.slope / mean) if tested.slope else 1.0
    low, high = sorted((tested.low / mean * scale, tested.high / mean * scale))
    at = float(np.median(x))
    return {
        "slope": middle, "low": min(low, middle), "high": max(high, middle), "p": tested.p, "x": at,
        "y": float(np.median(y - middle * (x - at))),
    }  # fmt: skip


def _back_test(x: "Numbers", y: "Numbers") -> float | None:
    cut = int(len(x) * 0.7)
    if cut < POINTS_MIN // 2:
        return None
    line = _line(x[:cut], y[:cut])
    return shown(float(np.median(np.abs(line["y"] + line["slope"] * (x[cut:] - line["x"]) - y[cut:]))))


def _alarms(rows: Any, asked: Asked) -> list[dict[str, Any]]:
    begin, end = _day(max(asked.span.begin, asked.since or asked.span.begin)), _day(asked.span.end)
    if not rows or (end - begin).days < DAYS_MIN:
        return []
    counts = grid(rows, begin, end, "day")
    lines = [slope(np.asarray(row)) for row in counts.counts]
    ps = adjusted([line.p for line in lines])
    return [
        {"station": key, "alarms": int(row.sum()), "slope_a_day": shown(line.slope), "low": shown(line.low), "high": shown(line.high),
         "p": shown(p), "growing": bool(p < Q and line.slope >= 0 and line.high > 0), "hours_between": shown(24 * len(row) / row.sum())}
        for key, row, line, p in zip(counts.keys, counts.counts, lines, ps, strict=True) if row.sum()
    ][:FINDINGS_MAX]  # fmt: skip


ANALYSIS = Analysis(
    name="maintenance", version="1", summary="When a reading or counter reaches its limit; run hours; alarms",
    source="signals, event_metrics",
    gather=gather, compute=compute, default=timedelta(days=30), parameters=frozenset({"signal", "limit"}), filters=frozenset({"source"}),
)  # fmt: skip
