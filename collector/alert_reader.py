"""From events to alerts: reads what was committed, once and in order, and writes all that follows from it in one transaction.

    events ──step──► rules ──► events of the centre's own stream ──next step──┐
              └────► alerts, incidents, history, notifications  ◄─────────────┘

Several collectors run this; an advisory lock lets one at a time be the reader, for one transaction. In that transaction are the
cursor, the alerts, the states of rules, the centre's events and the notifications to be sent; whoever is killed leaves nothing of it,
and the next one begins where the last commit ended. So each alert is raised once.

The snapshot of a step is taken before the transaction writes anything: until then it has no number, so that the events that it
stores itself lie behind the step and are read by the next one.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from agent.wire import bounds
from agent.wire.event import INFORMATIONAL, Event
from agent.wire.taxonomy import CLAIMED, TYPE_PATTERN, is_collectors
from collector import alert_reread, fleet_state
from collector.alert_state import Standing, clear, fire
from collector.alert_unread import CANNOT_READ, finding_of, report, split
from collector.background import Pulse, described
from collector.match import Matches, matcher
from collector.own import tell_within
from collector.problems import Problem
from collector.query import filter_of
from collector.rules import base
from collector.rules import build as build_rules
from collector.store import alerts as store
from collector.store import batches, readers, stream
from collector.store import fleet as fleet_store
from collector.store.database import StoreMisconfigured, StoreUnavailable
from collector.store.events import ALL

if TYPE_CHECKING:
    from collector.store.alerts import Alert, Reader, Written
    from collector.store.database import Connection, Database
    from collector.store.events import Record

_log = logging.getLogger("linewarden.collector.alerts")

POLL_S = 1.0
PACE_S = 0.1
"""Between one look and the next: under a steady stream one step takes what several commits brought."""
PICKED_MAX = 2_000
"""Events that a step takes, and so many more as its last piece has."""
PIECES_MAX = 20
"""Pieces of the stream that a step reads at most: bounds its transaction."""
SAVE_EVERY_S = 10.0
"""While nothing is found, the cursor is written this often."""
COLLECTOR = ("collector", "system")
PLAN_TYPES = ("agent.started", "agent.stopped")


class AlertSettings(BaseModel):
    """[alerts]

    again_s      a closed alert that fires again within it is opened again, later it is a new one
    incident_s   alerts of one correlation id, or of one address at one site, are one incident while they come this close
    look_s       how often the rules look at the agents
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    again_s: Annotated[float, Field(ge=1, le=31_536_000)] = 86_400.0
    incident_s: Annotated[float, Field(ge=1, le=31_536_000)] = 14_400.0
    look_s: Annotated[float, Field(ge=0.1, le=3_600)] = 15.0


Routes = Sequence[tuple[str, Matches]]
"""Names of notification targets, and which events they want."""


@dataclass(slots=True)
class Timed:
    """How a rule ran here. `runs`: looks at the agents, or at the events of a step."""

    runs: int = 0
    seconds: float = 0.0
    last: datetime | None = None


class AlertReader:
    """One a collector. Holds no state that matters."""

    def __init__(
        self,
        database: "Database",
        settings: AlertSettings,
        rules: Any,
        routes: Routes,
        *,
        on_stored: Callable[[], None] = lambda: None,
        on_outbox: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = database
        self._settings = settings
        self._routes = routes
        self._on_stored = on_stored
        self._on_outbox = on_outbox
        found = build_rules(rules)
        self._agent_rules: list[base.AgentRule] = [rule for rule in found if hasattr(rule, "judge")]
        self._event_rules: list[base.EventRule] = [rule for rule in found if hasattr(rule, "see")]
        self.spread_rules: list[base.SpreadRule] = [rule for rule in found if hasattr(rule, "key")]
        silent = rules.silent
        self._bounds = (
            silent.interval_s * silent.late_intervals,
            silent.interval_s * silent.silent_intervals,
            silent.recover_s,
        )
        self.picked = _picked(
            {*PLAN_TYPES, "alert", "alert.*", *(name for rule in self._event_rules for name in rule.types)}
        )
        self._wake = asyncio.Event()
        self.pulse = Pulse()
        self._home = 0
        self._buffer: UUID | None = None
        self.unread = 0
        """Events passed over by this collector, since its start."""
        self.alerts = 0
        """Events counted in alerts by this collector, since its start."""
        self.rules = {rule.name: Timed() for rule in found}

    def wake(self) -> None:
        """Something was stored."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        failures = 0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                began = time.monotonic()
                while await self.step() or await self.reread():
                    # As long again nothing: a long way behind, it leaves half of the time to those who ask and send.
                    await asyncio.sleep(time.monotonic() - began)
                    began = time.monotonic()
                failures = 0
                self.pulse.ok()
                await asyncio.sleep(PACE_S)
            except (StoreUnavailable, StoreMisconfigured) as error:
                failures += 1
                self.pulse.waits(error)
                if failures & (failures - 1) == 0:
                    _log.warning("alerts wait for the database (%d): %s", failures, error)
                await asyncio.sleep(random.uniform(0.5, 1.0) * min(30.0, 2.0**failures))  # noqa: S311 - a jitter

    async def step(self) -> bool:
        """Read on; whether there is more. Nothing where another collector reads."""
        try:
            return await self._step(careful=False)
        except CANNOT_READ as error:
            _log.warning("alerts: a step stops at an event, each is tried alone now: %s", described(error))
        return await self._step(careful=True)

    async def reread(self) -> bool:
        """Read a piece of what is to be read again; whether there is more. See alert_reread.py."""
        async with self._database.connection() as connection, connection.transaction():
            reader = await store.lock_reader(connection)
            if reader is None or reader.reread is None:
                return False
            findings, told = await alert_reread.piece(self, connection, reader)
            if findings:
                await self._tell(connection, findings)
        if findings:
            self._on_stored()
        if told:
            self._on_outbox()
        return True

    async def _step(self, *, careful: bool) -> bool:
        stored = told = False
        async with self._database.connection() as connection, connection.transaction():
            reader = await store.lock_reader(connection)
            if reader is None:
                return False
            self._home = self._home or await stream.home_of(connection)
            cursor = reader.cursor or stream.Cursor(self._home, reader.start)
            cursor, restored = await self._after_restore(connection, cursor)
            read, rows, cursor, more = await self._read(connection, cursor)
            due = (
                (reader.now - reader.looked).total_seconds() >= self._settings.look_s if _real(reader.looked) else True
            )
            idle = reader.moved is not None and (reader.now - reader.moved).total_seconds() < SAVE_EVERY_S
            if not read and not due and not more and idle:
                return False
            unread: list[base.Finding] = []
            if careful:
                rows, unread = await self._readable(connection, reader, rows)
            await self._note_stops(connection, rows)
            findings = [*restored, *unread, *self.judge(rows), *await self.spread(connection, read, reader.now)]
            await readers.count(connection, readers.ALERTS, read)
            if due:
                findings += await self._look(connection, reader.now)
            written = await self._count(connection, reader, [row for row in rows if _is_alert(row)], late=False)
            if due and cursor.step is None:
                findings += await self._check(connection, cursor)
            if findings:
                await self._tell(connection, findings)
                stored = True
            told = bool(written and written.outbox)
            await store.move_reader(connection, cursor, reader.now if due else reader.looked)
        if stored:
            self._on_stored()
        if told:
            self._on_outbox()
        return more or stored

    async def _read(
        self, connection: "Connection", cursor: stream.Cursor
    ) -> "tuple[list[Record], list[Record], stream.Cursor, bool]":
        """The next batches, the picked events of them, the cursor behind them, and whether there is more."""
        new = cursor.step or await stream.now(connection)
        base_, position = cursor.base, cursor.position
        read: list[Record] = []
        rows: list[Record] = []
        for _ in range(PIECES_MAX):
            # The cursor always stands behind a whole batch.
            piece, reached = await stream.batches_between(connection, base_, new, position)
            read += piece
            rows += [item.row for item in await stream.items_of(connection, piece, self.picked)]
            if reached is None:
                # The step ends here. One that was begun before may have others behind it.
                return read, rows, stream.Cursor(self._home, new), cursor.step is not None
            position = reached
            if len(rows) >= PICKED_MAX:
                break
        return read, rows, stream.Cursor(self._home, base_, new, position), True

    # ── rules ──

    async def _after_restore(
        self, connection: "Connection", cursor: stream.Cursor
    ) -> "tuple[stream.Cursor, list[base.Finding]]":
        """The cursor, or, where the database was put back and counts its transactions from lower on, one that begins now."""
        now = await stream.now(connection)
        if now.covers(cursor.base):
            return cursor, []
        await readers.request_repair(connection, readers.ALERTS)
        await readers.begin_anew(connection, readers.ALERTS, now)
        text = "the database was put back: the numbers of its transactions lie before those that were read; alerts are read again"
        return stream.Cursor(self._home, now), [
            base.Finding(
                rule="reader", key="restored", type="alert.collector.reader", severity=4, target="alerts", message=text
            )
        ]

    async def _check(self, connection: "Connection", cursor: stream.Cursor) -> list[base.Finding]:
        """What was read, held against what was stored."""
        if not await readers.due(connection, readers.ALERTS):
            return []
        difference = await readers.compare(connection, readers.ALERTS, cursor.base)
        if difference is None:
            return []
        _log.error("%s", difference.text)
        return [finding_of(difference)]

    async def _readable(
        self, connection: "Connection", reader: "Reader", rows: "list[Record]"
    ) -> "tuple[list[Record], list[base.Finding]]":
        async def attempt(row: "Record") -> None:
            self.judge([row])
            await self._count(connection, reader, [row] if _is_alert(row) else [], late=False)

        good, bad = await split(connection, rows, attempt)
        for row, reason in bad:
            _log.error("alerts: event %s cannot be read and is passed over: %s", _identity(row), reason)
        self.unread += len(bad)
        return good, await report(connection, readers.ALERTS, bad) if bad else []

    async def _note_stops(self, connection: "Connection", rows: "list[Record]") -> None:
        stops = {
            row["agent_id"]: row["received"] if row["type"] == "agent.stopped" else None
            for row in rows if row["type"] in PLAN_TYPES and row["agent_id"] != batches.CENTRE
        }  # fmt: skip
        if stops:
            await fleet_store.note_stops(connection, stops)

    def judge(self, rows: "list[Record]") -> list[base.Finding]:
        """What rules about single events find."""
        findings: list[base.Finding] = []
        for event_rule in self._event_rules if rows else ():
            with self._timing(event_rule.name):
                for row in rows:
                    if (
                        _fits(row["type"], event_rule.types)
                        and _believed(row)
                        and (finding := event_rule.see(row)) is not None
                    ):
                        causes = {"causes": [_identity(row)]}
                        findings.append(_with(finding, place_id=row["place_id"], causes=causes, row=row))
        return findings

    @contextlib.contextmanager
    def _timing(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._ran(name, time.perf_counter() - started)

    def _ran(self, name: str, seconds: float) -> None:
        timed = self.rules[name]
        timed.runs += 1
        timed.seconds += seconds
        timed.last = datetime.now(UTC)

    async def spread(self, connection: "Connection", read: "list[Record]", now: datetime) -> list[base.Finding]:
        """What rules about several stations find, the events of these batches being seen."""
        findings: list[base.Finding] = []
        for rule in self.spread_rules if read else ():
            with self._timing(rule.name):
                keys = await fleet_store.sight(connection, rule.name, rule.key, _picked(rule.types), read)
                if keys:
                    findings += await self._spread_of(connection, rule, keys, now)
        return findings

    async def _spread_of(
        self, connection: "Connection", rule: base.SpreadRule, keys: Sequence[str], now: datetime
    ) -> list[base.Finding]:
        since = now - timedelta(seconds=rule.within_s)
        findings = []
        for found in await fleet_store.spreads(connection, rule.name, keys, since, rule.at_least):
            places = list(zip(found["sites"], found["lines"], found["stations"], strict=True))
            spread = base.Spread(found["key"], found["members"], places, found["events"], found["correlations"])
            causes = {"causes": list(spread.events)[:20], "correlations": sorted(set(spread.correlations))[:20]}
            place_id = await store.place_for(connection, places)
            findings.append(_with(rule.found(spread), place_id=place_id, causes=causes, row=None))
        await fleet_store.keep_raised(connection, [(one.rule, one.key) for one in findings], [])
        return findings

    async def _look(self, connection: "Connection", now: datetime) -> list[base.Finding]:
        """Look at the agents, and let go what is long over."""
        findings: list[base.Finding] = []
        began: list[tuple[str, str]] = []
        over: list[tuple[str, str]] = []
        raised = await fleet_store.raised(connection)
        contacts = []
        spent = dict.fromkeys((rule.name for rule in self._agent_rules), 0.0)
        for row in await fleet_store.agents(connection, ALL):
            before = fleet_state.Contact(row["state"], row["since"], row["good_since"]) if row["state"] else None
            contact = fleet_state.heard(before, row["last_seen"], now, self._bounds)
            if contact != before:
                contacts.append((row["agent_id"], contact))
            agent = _agent(row, contact)
            for rule in self._agent_rules:
                active = (rule.name, str(agent.agent_id)) in raised
                started = time.perf_counter()
                verdict = rule.judge(agent, now, active=active)
                spent[rule.name] += time.perf_counter() - started
                if isinstance(verdict, base.Finding):
                    findings.append(verdict)
                    began.append((verdict.rule, verdict.key))
                elif verdict is base.OVER:
                    findings.append(_over(rule.name, agent))
                    over.append((rule.name, str(agent.agent_id)))
        for name, seconds in spent.items():
            self._ran(name, seconds)
        await fleet_store.keep_contacts(connection, contacts)
        await fleet_store.keep_raised(connection, began, over)
        for spread_rule in self.spread_rules:
            await fleet_store.forget(connection, spread_rule.name, now - timedelta(seconds=spread_rule.within_s))
        return findings

    async def _tell(self, connection: "Connection", findings: list[base.Finding]) -> None:
        """Store findings as events of the centre."""
        transaction = batches.Transaction(connection, batches.CENTRE)
        nowhere = await transaction.place_of(UUID(int=0))
        placed: dict[int, list[Event]] = {}
        for finding in findings:
            placed.setdefault(finding.place_id or nowhere, []).append(event_of(finding))
        if self._buffer is None:
            self._buffer = await connection.fetchval("SELECT buffer_id FROM installation")
        assert self._buffer is not None  # noqa: S101 - the row is made with the table
        await tell_within(transaction, self._buffer, list(placed.items()))

    # ── alerts ──

    async def count_again(self, connection: "Connection", reader: "Reader", rows: "list[Record]") -> bool:
        """Count what was not counted; whether somebody is to be notified."""
        written = await self._count(connection, reader, [row for row in rows if _is_alert(row)], late=True)
        return bool(written and written.outbox)

    async def _count(
        self, connection: "Connection", reader: "Reader", rows: "list[Record]", *, late: bool
    ) -> "Written | None":
        if not rows:
            return None
        before = await store.seen_before(connection, rows)
        rows = [row for row in rows if (row["batch_id"], row["idx"]) not in before]
        counter = Counter(self._settings, self._routes, reader.secret, late=late)
        await counter.prepare(connection, rows)
        for row in rows:
            counter.take(row)
        await store.write(connection, counter.written)
        self.alerts += len(rows)
        return counter.written


class Counter:
    """Counts the alert events of a step in alerts: reads all that it needs at once, decides in memory, and leaves what to write."""

    def __init__(self, settings: AlertSettings, routes: Routes, secret: bytes, *, late: bool = False) -> None:
        self._late = late
        self._again = timedelta(seconds=settings.again_s)
        self._together = timedelta(seconds=settings.incident_s)
        self._routes = routes
        self._secret = secret
        self._current: dict[bytes, Alert] = {}
        self._raised: list[Alert] = []
        self._ties: dict[str, tuple[int, datetime]] = {}
        self._quiet: list[tuple[int, Matches]] = []
        self._alert_numbers: list[int] = []
        self._incident_numbers: list[int] = []
        self.written: Written = store.Written()

    async def prepare(self, connection: "Connection", rows: "list[Record]") -> None:
        """Read what is there."""
        over = [(_rule(_data(row)), row["target"] or "") for row in rows if _is_over(row)]
        locked = await store.current(connection, [self._dedup(row) for row in rows], over)
        for alert in locked:  # by number: of a key the latest counts
            self._current[alert.dedup] = alert
        self._raised = [alert for alert in locked if alert.agent_id == batches.CENTRE]
        self._ties = await store.incidents_of(connection, [tie for row in rows for tie in _ties(row)])
        self._quiet = await _quiet(connection)
        self._alert_numbers = await store.numbers(connection, "alerts", len(rows))
        self._incident_numbers = await store.numbers(connection, "incidents", len(rows))

    def _dedup(self, row: "Record") -> bytes:
        data = _data(row)
        # A person is part of what makes it the same, and is not to be read out of it: a keyed hash.
        parts = [
            str(row["agent_id"]), row["place_id"], _rule(data), row["type"], data.get("key"), row["src_ip"], row["target"], row["actor"],
            row["personal"] or row["personal_text"],
        ]  # fmt: skip
        text = json.dumps(parts, sort_keys=True, default=str).encode("utf-8", "surrogatepass")
        return hmac.new(self._secret, text, hashlib.sha256).digest()[:16]

    def take(self, row: "Record") -> None:
        """Count an event."""
        dedup, data = self._dedup(row), _data(row)
        alert = self._current.get(dedup)
        if _is_over(row):
            self._clear(row)
            return
        suppression = next((number for number, matches in self._quiet if matches(row)), None)
        if suppression is not None:
            self.written.hits[suppression] = self.written.hits.get(suppression, 0) + 1
        if alert is None or not self._goes_on(alert, row["received"]):
            alert = self._open(row, dedup, data, suppressed=suppression is not None)
        else:
            self._again_fired(alert, row, suppressed=suppression is not None)
        self._update(alert, row, suppression)

    def _goes_on(self, alert: "Alert", received: datetime) -> bool:
        if self._late and received <= alert.received:
            return True
        s = alert.standing
        quiet = s.quiet_until is not None and received < s.quiet_until
        return s.state != "closed" or quiet or received - alert.received <= self._again

    def _open(self, row: "Record", dedup: bytes, data: dict[str, Any], *, suppressed: bool) -> "Alert":
        standing = Standing("closed", "suppressed") if suppressed else Standing()
        alert = store.Alert(
            alert_id=self._alert_numbers.pop(0), incident_id=self._incident(row), dedup=dedup, rule=_rule(data), standing=standing, count=0,
            opened=row["received"], first=row["time"], time=row["time"], received=row["received"], place_id=row["place_id"],
            agent_id=row["agent_id"], severity=row["severity"], type=row["type"], category=row["category"], source=row["source"],
            src_ip=row["src_ip"], target=row["target"], outcome=row["outcome"], message=row["message"],
            correlation_id=row["correlation_id"], data=row["data"],
        )  # fmt: skip
        self._current[dedup] = alert
        self._note(alert, "open", (None, standing.state))
        if not suppressed:
            self._notify(alert, row, "opened")
        return alert

    def _again_fired(self, alert: "Alert", row: "Record", *, suppressed: bool) -> None:
        if self._late and row["received"] <= alert.received:
            return
        before = alert.standing
        alert.standing = fire(before, row["received"], suppressed=suppressed)
        if alert.standing != before:
            self._note(alert, "reopen", (before.state, alert.standing.state), fired=True)
            self._notify(alert, row, "reopened")

    def _clear(self, row: "Record") -> None:
        """Close what the collector raised about this, wherever it stood then: the agent may have moved since."""
        about = (_rule(_data(row)), row["target"])
        for alert in {one.alert_id: one for one in (*self._raised, *self._current.values())}.values():
            before = alert.standing
            if alert.agent_id != batches.CENTRE or (alert.rule, alert.target) != about or before.state == "closed":
                continue
            if self._late and row["received"] < alert.received:
                continue
            alert.standing = clear(before)
            self._note(alert, "clear", (before.state, alert.standing.state), event=_identity(row))
            self.written.alerts[alert.alert_id] = alert

    def _update(self, alert: "Alert", row: "Record", suppression: int | None) -> None:
        alert.count += 1
        alert.first = min(alert.first, row["time"])
        alert.severity = max(alert.severity, row["severity"])
        alert.time = max(row["time"], alert.time)
        if not self._late or row["received"] >= alert.received:
            alert.received, alert.place_id, alert.source = row["received"], row["place_id"], row["source"]
            alert.outcome, alert.message, alert.data = row["outcome"], row["message"], row["data"]
            alert.correlation_id = row["correlation_id"]
        self.written.alerts[alert.alert_id] = alert
        first, last = self.written.incidents.get(alert.incident_id, (row["time"], row["time"]))
        self.written.incidents[alert.incident_id] = min(first, row["time"]), max(last, row["time"])
        for tie in _ties(row):
            held = self._ties.get(tie)
            if held is None or held[0] == alert.incident_id or row["received"] - held[1] > self._together:
                self._ties[tie] = self.written.keys[tie] = alert.incident_id, row["received"]
        self.written.events.append(
            (row["batch_id"], row["idx"], row["received"], row["time"], alert.alert_id, row["agent_id"], row["buffer_id"], row["lane"],
             row["batch_no"], row["correlation_id"], suppression)
        )  # fmt: skip

    def _incident(self, row: "Record") -> int:
        for tie in _ties(row):
            held = self._ties.get(tie)
            if held is not None and row["received"] - held[1] <= self._together:
                return held[0]
        return self._incident_numbers.pop(0)

    def _note(self, alert: "Alert", action: str, states: Any, **data: Any) -> None:
        line = store.note(
            (alert.alert_id, alert.incident_id), COLLECTOR, action, states, standing=alert.standing, **data
        )
        self.written.history.append(line)

    def _notify(self, alert: "Alert", row: "Record", why: str) -> None:
        self.written.outbox += [(name, alert.alert_id, why) for name, matches in self._routes if matches(row)]


async def _quiet(connection: "Connection") -> list[tuple[int, Matches]]:
    found = []
    for one in await store.suppressions(connection, active=True):
        try:
            found.append((one["suppression_id"], matcher(filter_of(one["filter"], one["scope"]))))
        except (Problem, ValueError) as error:
            # It cannot be read any more: alerts come through, which is the safe side.
            _log.warning("suppression %s cannot be read and has no effect: %s", one["suppression_id"], error)
    return found


def _picked(types: Collection[str]) -> str:
    """In SQL: events of these types. A name with `.*` behind it means all below it."""
    exact = sorted(name for name in types if not name.endswith(".*"))
    below = sorted(name.removesuffix("*") for name in types if name.endswith(".*"))
    if not all(TYPE_PATTERN.fullmatch(name.removesuffix(".")) for name in [*exact, *below]):
        raise ValueError(f"a rule names a type that is none: {sorted(types)}")
    # The slash is what follows the point.
    ranges = [f"e.type COLLATE \"C\" BETWEEN '{name}' AND '{name.removesuffix('.')}/'" for name in below]
    return " OR ".join([f"e.type IN ({', '.join(map(repr, exact))})", *ranges])


def _believed(row: "Record") -> bool:
    """Return whether an event may say what it says: types of the collector count in its own stream alone.

    A `claimed.*` is how such a type of anybody else is stored, and says only that it was claimed.
    """
    return row["agent_id"] == batches.CENTRE or row["type"].startswith(f"{CLAIMED}.") or not is_collectors(row["type"])


def _is_alert(row: "Record") -> bool:
    return bool(row["type"] == "alert" or row["type"].startswith("alert."))


def _fits(name: str, types: tuple[str, ...]) -> bool:
    return name in types or any(one.endswith(".*") and name.startswith(one[:-1]) for one in types)


def _is_over(row: "Record") -> bool:
    """Return whether the collector says by an event that something it raised is over."""
    return row["agent_id"] == batches.CENTRE and _data(row).get("cleared") is True


def _real(moment: datetime) -> bool:
    return moment.year > 1


def _data(row: "Record") -> dict[str, Any]:
    try:
        return bounds.loads(row["data"]) if row["data"] else {}
    except ValueError:
        # Stored before values had bounds. The alert is counted all the same, without what its handler said.
        return {}


def _rule(data: dict[str, Any]) -> str:
    said = data.get("rule") or data.get("handler")
    return said[:200] if isinstance(said, str) else ""


def _ties(row: "Record") -> list[str]:
    """What ties an alert to others at its site: its correlation ids, and its address.

    Never across sites: an agent chooses its correlation ids, and whoever sees an incident sees what is written to it.
    """
    data = _data(row)
    others = [one for name in ("causes", "correlations") for one in _texts(data.get(name))]
    ties = [f"correlation {one[:200]} {row['site'][:100]}" for one in [row["correlation_id"], *others[:20]] if one]
    if row["src_ip"]:
        ties.append(f"address {row['src_ip'][:100]} {row['site'][:100]}")
    return ties


def _texts(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _identity(row: "Record") -> str:
    return f"{row['agent_id']}/{row['buffer_id'].hex}/{row['lane']}/{row['batch_no']}/{row['idx']}"


def _with(finding: base.Finding, *, place_id: int, causes: dict[str, Any], row: "Record | None") -> base.Finding:
    """The same with its place and what it comes from."""
    correlation = finding.correlation_id or (row["correlation_id"] if row is not None else None)
    data = {**finding.data, "events": causes.pop("causes"), **causes}
    fields = {name: getattr(finding, name) for name in base.Finding.__slots__}
    return base.Finding(**{**fields, "place_id": place_id, "data": data, "correlation_id": correlation})


def _agent(row: "Record", contact: fleet_state.Contact) -> base.Agent:
    return base.Agent(
        agent_id=row["agent_id"], place_id=row["place_id"], site=row["site"], line=row["line"], station=row["station"],
        last_seen=row["last_seen"], last_event=row["last_event"], clock_offset_us=row["clock_offset_us"],
        status=fleet_store.status_of(row), state=contact.state, since=contact.since, stopped=row["stopped"],
        revoked=row["revoked"] is not None,
    )  # fmt: skip


def _over(rule: str, agent: base.Agent) -> base.Finding:
    return base.Finding(
        rule=rule, key=str(agent.agent_id), type=base.agent_type(rule), severity=INFORMATIONAL, place_id=agent.place_id,
        message=f"over: {rule} of {agent.name}", target=str(agent.agent_id), data={"cleared": True},
    )  # fmt: skip


def event_of(finding: base.Finding) -> Event:
    """The centre's event of what a rule found."""
    now = time.time_ns() // 1000
    cleared = finding.data.get("cleared") is True
    return Event(
        now, now, finding.type, "collector", finding.severity, src_ip=finding.src_ip, target=finding.target,
        outcome="success" if cleared else "failure", message=finding.message, correlation_id=finding.correlation_id,
        data={"rule": finding.rule, "key": {"on": finding.key}, **finding.data},
    )  # fmt: skip
