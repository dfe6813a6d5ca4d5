"""Alerts, incidents and notifications as figures for /metrics.

What is in the database is read at most every few seconds, however often it is asked for, since anybody may ask; while the database does not
answer these figures are left out and not repeated, so that nobody takes what was for what is. What this collector itself did is counted
beside it.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from collector.store import figures as store
from collector.store.database import Database, StoreMisconfigured, StoreUnavailable
from collector.store.events import TooSlow

if TYPE_CHECKING:
    from collector.alert_reader import AlertReader
    from collector.notification import Notifier

Family = tuple[str, str, str, list[tuple[str, Any]]]
"""Name, kind, meaning, and values by labels as they are written."""

FRESH_S = 5.0
READ_S_MAX = 2.0
RULES_MAX = 100
"""Rules that are told apart, those with most alerts first; agents name theirs as they like, so the rest is counted together."""
OTHER = "(other)"


def labels(**values: object) -> str:
    """As the format has them."""
    quoted = (f'{name}="{_escaped(str(value))}"' for name, value in values.items())
    return "{" + ",".join(quoted) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Figures:
    """One a collector."""

    def __init__(self, database: Database, reader: "AlertReader", notifier: "Notifier") -> None:
        self._database = database
        self._reader = reader
        self._notifier = notifier
        self._lock = asyncio.Lock()
        self._read_at = float("-inf")
        self._found: store.Found | None = None

    async def families(self, *, ready: bool) -> list[Family]:
        """All there is to say now."""
        passed = [("", self._reader.unread)]
        unread = ("alerts_unread_total", "counter", "Events that alerts could not read and passed over", passed)
        own = [*_rules(self._reader), *_attempts(self._notifier), unread]
        found = await self._fresh() if ready else None
        if found is None:
            return own
        return [*own, *_alerts(found), *_waiting(found, self._notifier.names), *_looked(found)]

    async def _fresh(self) -> store.Found | None:
        async with self._lock:
            if time.monotonic() - self._read_at >= FRESH_S:
                try:
                    async with asyncio.timeout(READ_S_MAX), self._database.connection() as connection:
                        self._found = await store.read(connection)
                except (StoreUnavailable, StoreMisconfigured, TooSlow, TimeoutError):
                    self._found = None
                self._read_at = time.monotonic()
            return self._found


def _rules(reader: "AlertReader") -> Iterable[Family]:
    yield "alert_events_total", "counter", "Events counted in alerts by this collector", [("", reader.alerts)]
    timed = sorted(reader.rules.items())
    runs = [(labels(rule=name), rule.runs) for name, rule in timed]
    seconds = [(labels(rule=name), round(rule.seconds, 6)) for name, rule in timed]
    yield "rule_runs_total", "counter", "Looks of a rule at agents or events, by this collector", runs
    yield "rule_seconds_total", "counter", "Time spent in a rule, by this collector", seconds
    last = [(labels(rule=name), _seconds(rule.last)) for name, rule in timed if rule.last is not None]
    if last:
        yield "rule_last_run_timestamp_seconds", "gauge", "When this collector last ran a rule", last


def _attempts(notifier: "Notifier") -> Iterable[Family]:
    kinds = [
        (labels(target=name, outcome=kind), notifier.tried[name, kind])
        for name in notifier.names
        for kind in ("sent", "failed", "dead")
    ]
    if kinds:
        text = "Tries to tell alerts, by this collector: sent, failed and to be tried again, given up"
        yield "notification_attempts_total", "counter", text, kinds


def _alerts(found: store.Found) -> Iterable[Family]:
    least = sorted(found.alerts_by_rule(), key=lambda pair: (-pair[1], pair[0]))[:RULES_MAX]
    named = {name for name, _ in least}
    counted: dict[tuple[str, int, str], int] = defaultdict(int)
    for state, severity, rule, count in found.alerts:
        counted[state, severity, rule if rule in named else OTHER] += count
    values = [
        (labels(state=state, severity=severity, rule=rule), count)
        for (state, severity, rule), count in sorted(counted.items())
    ]
    if values:
        yield "alerts", "gauge", "Alerts that are not closed, by state, severity (1 to 6) and rule", values
    by_state = {"open": 0, "acknowledged": 0}
    for state, _, _, count in found.alerts:
        by_state[state] += count
    yield (
        "alerts_unclosed",
        "gauge",
        "Alerts that are not closed, by state",
        [(labels(state=s), n) for s, n in by_state.items()],
    )
    yield "incidents_open", "gauge", "Incidents of which an alert is not closed", [("", found.incidents)]


def _waiting(found: store.Found, names: Sequence[str]) -> Iterable[Family]:
    # A target that is no longer configured may have something waiting for it.
    targets = {**dict.fromkeys(names, store.NOTHING), **found.targets}
    if not targets:
        return
    told = sorted(targets.items())
    text = "Messages that were put together and are not taken yet"
    yield "notification_messages_waiting", "gauge", text, [(labels(target=n), t.messages) for n, t in told]
    yield (
        "notification_alerts_waiting",
        "gauge",
        "Alerts that are in no message yet",
        [(labels(target=n), t.alerts) for n, t in told],
    )
    text = "Age of the oldest that is not told yet"
    yield "notification_oldest_seconds", "gauge", text, [(labels(target=n), round(t.oldest_s, 3)) for n, t in told]
    yield (
        "notification_messages_dead",
        "gauge",
        "Messages that were given up",
        [(labels(target=n), t.dead) for n, t in told],
    )


def _looked(found: store.Found) -> Iterable[Family]:
    if found.looked is not None:
        text = "When the agents were last looked at by the rules, by any collector"
        yield "rules_looked_timestamp_seconds", "gauge", text, [("", _seconds(found.looked))]
    if found.moved is not None:
        text = "When stored events were last looked at for alerts, by any collector"
        yield "alert_reader_timestamp_seconds", "gauge", text, [("", _seconds(found.moved))]


def _seconds(moment: datetime) -> float:
    return round(moment.timestamp(), 3)
