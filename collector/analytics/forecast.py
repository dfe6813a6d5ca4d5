"""Forecast: how many events come, and what that means for the store. Two methods compete, and the better in a back-test is given.

seasonal-naive   as it was a season ago
profile          the usual shape of a season, at the level of late: exponentially smoothed, its smoothing chosen in the back-test

The back-test forecasts from several moments of the past and compares with what came; its errors are also where the interval comes from:
of each hour ahead, between the 5th and the 95th percentile of what it was off by.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from collector.analytics.answer import Analysis, Asked, Findings, Insufficient, grid
from collector.analytics.statistics import shown
from collector.store import analytics_read as store

if TYPE_CHECKING:
    from collector.analytics.statistics import Numbers
    from collector.store.database import Database

DAY_H, WEEK_H = 24, 168
SEASONS_MIN, WEEKS_MIN, ORIGINS_MAX = 4, 5, 14
SMOOTHINGS = (0.0, 0.01, 0.05, 0.2)

Method = Callable[["Numbers", int, int], "Numbers"]


def seasonal_naive(past: "Numbers", season: int, ahead: int) -> "Numbers":
    """As it was a season ago."""
    return np.asarray(np.resize(past[-season:], ahead))


def profile(past: "Numbers", season: int, ahead: int, *, smoothing: float) -> "Numbers":
    """The usual shape at the level of late. Shape: the mean of the last seasons, as a share of their mean."""
    whole = past[len(past) % season :].reshape(-1, season)[-8:]
    mean = float(whole.mean())
    if mean <= 0:
        return np.zeros(ahead)
    shape = whole.mean(0) / mean
    levels = whole.sum(1) / season
    level = float(levels.mean())
    if smoothing:
        weights = (1 - min(0.95, smoothing * 4)) ** np.arange(len(levels))[::-1]
        level = float((levels * weights).sum() / weights.sum())
    return np.asarray(np.resize(shape, ahead) * level)


def methods() -> dict[str, Method]:
    """Both, the second with each of its smoothings."""

    def smoothed(smoothing: float) -> Method:
        return lambda past, season, ahead: profile(past, season, ahead, smoothing=smoothing)

    return {"seasonal-naive": seasonal_naive, **{f"profile({value:g})": smoothed(value) for value in SMOOTHINGS}}


async def gather(database: "Database", asked: Asked) -> Any:
    """Counts by hour; for the load also the time on the way, and the bytes of an event."""
    rows = await store.series(database, asked.span, "hour", None)
    if asked.of == "volume":
        return rows, [], None
    return rows, await store.processing(database, asked.span), await store.bytes_an_event(database)


def compute(data: Any, asked: Asked) -> Findings:
    """Of counts by hour."""
    rows, processing, bytes_each = data
    begin = max(asked.span.begin, asked.since or asked.span.begin)
    counts = grid(rows, begin, asked.span.end, "hour")
    ahead, hours, events = asked.horizon, counts.counts.shape[1], counts.events
    season = WEEK_H if hours >= WEEKS_MIN * WEEK_H + ahead else DAY_H
    if hours < SEASONS_MIN * DAY_H + ahead or not events:
        raise Insufficient(
            f"{SEASONS_MIN} days and the {ahead} hours of a back-test; there are {hours} hours with {events} events",
            events,
        )
    y = counts.total
    errors = _back_test(y, season, ahead)
    scores = {name: float(np.abs(error).mean()) for name, error in errors.items()}
    best = min(scores, key=lambda name: (scores[name], name != "seasonal-naive"))
    forecast = np.maximum(0, methods()[best](y, season, ahead))
    low, high = (np.maximum(0, forecast + np.percentile(errors[best], q, axis=0)) for q in (5, 95))
    points = [
        {"hour": asked.span.end + timedelta(hours=i), **{name: shown(float(values[i])) for name, values in
         (("events", forecast), ("low", low), ("high", high))}}
        for i in range(ahead)
    ]  # fmt: skip
    result: dict[str, Any] = {
        "given": best, "compared": {name: shown(score) for name, score in scores.items()}, "events": shown(float(forecast.sum()), 6),
        "hours": points,
    }  # fmt: skip
    if asked.of == "load":
        result["load"] = _load(forecast, high, processing, bytes_each)
    return Findings(
        f"{best}, the better in a back-test from {len(errors[best])} moments; season of {season} hours",
        events,
        {
            "back_test_mae": shown(scores[best]), "seasonal_naive_mae": shown(scores["seasonal-naive"]), "interval": 0.9,
            "of_interval": f"{len(errors[best])} back-tests of each hour ahead",
        },
        result,
        {"hours": hours, "season_hours": season, "ahead_hours": ahead},
    )  # fmt: skip


def _back_test(y: "Numbers", season: int, ahead: int) -> "dict[str, Numbers]":
    """What each method was off by, from each moment (rows) for each hour ahead (columns)."""
    first = 2 * season
    last = len(y) - ahead
    origins = np.unique(np.linspace(first, last, min(ORIGINS_MAX, last - first + 1)).astype(int))
    return {
        name: np.array([y[at : at + ahead] - np.maximum(0, method(y[:at], season, ahead)) for at in origins])
        for name, method in methods().items()
    }


def _load(forecast: "Numbers", high: "Numbers", processing: Any, bytes_each: float | None) -> dict[str, Any]:
    """What so many events mean: how many a second at the busiest, how many bytes, how long they take on the way then."""
    load: dict[str, Any] = {
        "busiest_events_per_s": shown(float(forecast.max()) / 3_600), "busiest_events_per_s_high": shown(float(high.max()) / 3_600),
        "bytes": shown(float(forecast.sum()) * bytes_each) if bytes_each else None,
        "bytes_high": shown(float(high.sum()) * bytes_each) if bytes_each else None,
        "bytes_an_event": shown(bytes_each) if bytes_each else None,
    }  # fmt: skip
    timed = [(row["events"], row["mean_ms"]) for row in processing if row["mean_ms"] is not None]
    if len(timed) >= DAY_H:
        volume, ms = (np.array(column, dtype=float) for column in zip(*timed, strict=True))
        near = np.argsort(np.abs(volume - float(forecast.max())))[: max(5, len(timed) // 10)]
        load["processing_ms_when_busiest"] = shown(float(np.median(ms[near])))
        load["processing_ms_high"] = shown(float(np.percentile(ms[near], 95)))
    else:
        load["processing_ms_when_busiest"] = None
    return load


ANALYSIS = Analysis(
    name="forecast", version="1", summary="Volume and load of the hours to come, with the error of a back-test", source="event_metrics",
    gather=gather, compute=compute, default=timedelta(days=42), parameters=frozenset({"horizon", "of"}),
)  # fmt: skip
