"""Risk: 0 to 100 in five levels per station, line, site, user or address, as the sum of what makes it up.

Five things are looked at, each of which gives points up to its own greatest number, the more of it the closer:
points = most * (1 - exp(-x / k)).
So contributions add up to the risk, none hides another, and more of anything never lowers it. Counts are by day, so that longer periods
do not look riskier. It says where to look first. It is a weighting that was agreed on, not a probability of anything.
"""

import math
from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from agent.wire.taxonomy import lookup
from collector.analytics.answer import Analysis, Asked, Findings, Insufficient
from collector.analytics.statistics import shown
from collector.store import analytics_read as store
from collector.store.analytics import OTHER

if TYPE_CHECKING:
    from collector.store.database import Database

LEVELS = ((80, "critical"), (60, "high"), (40, "medium"), (20, "low"), (0, "informational"))
_SEVERE = {4: 1.0, 5: 4.0, 6: 8.0}
_CHANGES = ("configuration.", "account.", "security.trust", "equipment.identity")
SUBJECTS_MAX = 500


class Part(NamedTuple):
    """One thing that is looked at: points at the most, and at which amount 63 % of them are reached."""

    most: float
    k: float
    meaning: str


PARTS = {
    "severe": Part(35, 5, "events of severity high and above, by their weight, a day"),
    "alerts": Part(25, 3, "alerts a day"),
    "failures": Part(15, 20, "events that failed, a day"),
    "techniques": Part(15, 4, "different techniques of attack that events could be of"),
    "changes": Part(10, 10, "changes of configuration, accounts and identity, a day"),
}


async def gather(database: "Database", asked: Asked) -> Any:
    """Counts by subject, type and severity."""
    return await store.of_whom(database, asked.span, asked.per or "station")


def amounts(rows: Any, days: float) -> dict[str, dict[str, float]]:
    """How much of each part there is, by subject."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(PARTS, 0.0))
    techniques: dict[str, set[str]] = defaultdict(set)
    for key, type_, severity, events, failures in rows:
        mine = found[key]
        row = lookup(type_)
        mine["severe"] += events / days * _SEVERE.get(severity, 0.0)
        mine["failures"] += failures / days
        if type_.startswith("alert"):
            mine["alerts"] += events / days
        if type_.startswith(_CHANGES):
            mine["changes"] += events / days
        if row.technique is not None and severity >= 3:  # noqa: PLR2004 - medium: below, it is the usual
            techniques[key].add(row.technique)
    for key, names in techniques.items():
        found[key]["techniques"] = len(names)
    return {key: {name: float(mine[name]) for name in PARTS} for key, mine in found.items()}


def contributions(amount: dict[str, float]) -> dict[str, float]:
    """The points of each part."""
    return {name: part.most * (1 - math.exp(-max(0.0, amount[name]) / part.k)) for name, part in PARTS.items()}


def level(score: float) -> str:
    """The level of a risk."""
    return next(name for least, name in LEVELS if score >= least)


def compute(data: Any, asked: Asked) -> Findings:
    """Of rows (key, type, severity, events, failures)."""
    days = max((asked.span.end - asked.span.begin) / timedelta(days=1), 1 / 24)
    events = sum(row[3] for row in data)
    if not events:
        raise Insufficient("an event in the period; there is none")
    found: list[dict[str, Any]] = []
    for key, amount in amounts([row for row in data if row[0] != OTHER], days).items():
        points = {name: round(value, 2) for name, value in contributions(amount).items()}
        score = round(sum(points.values()), 2)
        low, high = (_score(amount, days, sign) for sign in (-1, 1))
        found.append(
            {"subject": key, "risk": score, "level": level(score), "low": shown(low), "high": shown(high),
             "contributions": [
                 {"part": name, "points": points[name], "of": PARTS[name].most, "amount": shown(amount[name]), "what": PARTS[name].meaning}
                 for name in sorted(PARTS, key=lambda name: -points[name])
             ]}
        )  # fmt: skip
    found.sort(key=lambda one: (-one["risk"], one["subject"]))
    return Findings(
        "sum of five saturating contributions",
        events,
        {"interval": "0.95, from the chance in counts alone; the weights are agreed, not measured"},
        {"per": asked.per, "subjects": found[:SUBJECTS_MAX]},
        {"per": asked.per, "subjects": len(found)},
    )


def _score(amount: dict[str, float], days: float, sign: int) -> float:
    """The risk if chance had it otherwise: counts vary by their root."""
    moved = {
        name: value if name == "techniques" else value + sign * 1.96 * math.sqrt(max(value * days, 1.0 if sign > 0 else 0.0)) / days
        for name, value in amount.items()
    }  # fmt: skip
    return sum(contributions(moved).values())


ANALYSIS = Analysis(
    name="risk", version="1", summary="0 to 100 in five levels, with what makes it up", source="event_metrics, entity_activity",
    gather=gather, compute=compute, default=timedelta(days=7), pers=("station", "line", "site", "user", "address"),
)  # fmt: skip
