"""Sequences: which type of event follows which within half an hour, for users and for sources.

frequent    transitions that happen more often than the frequency of the second type alone would have it (corrected for all)
rare        transitions that are at most 1 % of what follows a type that was seen often
unusual     transitions of one user or source that the others make far less often (corrected for all)
"""

import math
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from collector.analytics.answer import FINDINGS_MAX, Analysis, Asked, Findings, Insufficient
from collector.analytics.statistics import Q, adjusted, normal_sf, poisson_sf, shown, wilson
from collector.store import analytics_read as store

if TYPE_CHECKING:
    from collector.store.database import Database

EVENTS_MIN, BEFORE_MIN, RARE = 50, 100, 0.01
_NORMAL_FROM = 10.0


async def gather(database: "Database", asked: Asked) -> Any:
    """Counts of transitions."""
    return await store.transitions(database, asked.span, asked.per or "source")


def compute(data: Any, asked: Asked) -> Findings:
    """Of rows (entity, before, after, events)."""
    pairs, befores, afters, of_whom = Counter[Any](), Counter[str](), Counter[str](), Counter[str]()
    theirs: Counter[tuple[str, str]] = Counter()
    for entity, before, after, events in data:
        pairs[before, after] += events
        befores[before] += events
        afters[after] += events
        of_whom[entity] += events
        theirs[entity, before] += events
    total = befores.total()
    if total < EVENTS_MIN:
        raise Insufficient(f"{EVENTS_MIN} transitions; there are {total}", total)
    return Findings(
        "Markov chain of the first order: shares (Wilson), binomial tests with Benjamini-Hochberg",
        total,
        {"false_findings_share_max": Q, "shares": "95 % intervals"},
        {
            "frequent": _frequent(pairs, befores, afters, total),
            "rare": _rare(pairs, befores),
            "unusual": _unusual(data, pairs, befores, theirs) if len(of_whom) > 1 else [],
        },
        {"per": asked.per, "transitions": len(pairs), f"{asked.per}s": len(of_whom)},
    )


def _more(count: int, tries: int, share: float, *, others: float = math.inf) -> float:
    """How likely so many or more are, where the share is known from so many others."""
    mean = tries * share
    if mean < _NORMAL_FROM:
        return poisson_sf(count, mean + tries * math.sqrt(share / others))
    spread = math.sqrt(mean * max(1e-12, 1 - share) * (1 + tries / others))
    return normal_sf((count - 0.5 - mean) / spread)


def _frequent(pairs: Any, befores: Any, afters: Any, total: int) -> list[dict[str, Any]]:
    ps = adjusted([_more(n, befores[a], afters[b] / total) for (a, b), n in pairs.items()])
    found = []
    for ((a, b), n), p in zip(pairs.items(), ps, strict=True):
        if p < Q:
            low, high = wilson(n, befores[a])
            found.append(
                {"before": a, "after": b, "events": n, "share": shown(n / befores[a]), "low": shown(low), "high": shown(high),
                 "lift": shown(n * total / (befores[a] * afters[b])), "p": shown(p)}
            )  # fmt: skip
    return sorted(found, key=lambda one: -one["events"])[:FINDINGS_MAX]


def _rare(pairs: Any, befores: Any) -> list[dict[str, Any]]:
    found = []
    for (a, b), n in pairs.items():
        if befores[a] >= BEFORE_MIN and n <= RARE * befores[a]:
            low, high = wilson(n, befores[a])
            found.append(
                {"before": a, "after": b, "events": n, "share": shown(n / befores[a]), "low": shown(low), "high": shown(high),
                 "surprise_bits": shown(-math.log2(n / befores[a]))}
            )  # fmt: skip
    return sorted(found, key=lambda one: -one["surprise_bits"])[:FINDINGS_MAX]


def _unusual(rows: Any, pairs: Any, befores: Any, theirs: Any) -> list[dict[str, Any]]:
    tried = []
    for entity, a, b, n in rows:
        others = befores[a] - theirs[entity, a]
        if others < BEFORE_MIN:
            continue
        # One more than was seen: that the others never did it does not prove that they never will.
        share = (pairs[a, b] - n + 1) / (others + 1)
        tried.append((entity, a, b, n, share, _more(n, theirs[entity, a], share, others=others)))
    ps = adjusted([p for *_, p in tried])
    found = [
        {"entity": entity, "before": a, "after": b, "events": n, "share_of_others": shown(share), "p": shown(p)}
        for (entity, a, b, n, share, _), p in zip(tried, ps, strict=True) if p < Q
    ]  # fmt: skip
    return sorted(found, key=lambda one: (one["p"], -one["events"]))[:FINDINGS_MAX]


ANALYSIS = Analysis(
    name="sequences", version="1", summary="What follows what, and what rarely does", source="transitions",
    gather=gather, compute=compute, default=timedelta(days=30), pers=("source", "user"), filters=frozenset({"type", "source"}),
)  # fmt: skip
