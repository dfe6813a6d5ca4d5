"""Alerts: what the reader of events writes, and what people read and change.

Locks are taken in one order: alerts by number, then incidents by number, then the head of the centre's stream, then the audit log.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from collector.alert_state import Action, NotAllowed, Reason, Standing, State, act
from collector.store.database import translated
from collector.store.events import ALL, Filter, Record, Scope, Where, fetch_bounded, scope_conditions, where_of
from collector.store.rows import to_us
from collector.store.stream import Cursor, Snapshot

if TYPE_CHECKING:
    from collector.store.database import Anyone

READER_LOCK = 0x4C57_0006
"""Key of the advisory lock that one evaluator holds at a time."""
SELECTION_MAX = 50_000
"""Alerts that one action may touch at most."""
SELECTION_HOURS = 24


@dataclass(frozen=True, slots=True)
class Reader:
    """How far the reader is."""

    cursor: Cursor | None
    start: Snapshot
    looked: datetime
    moved: datetime | None
    now: datetime
    secret: bytes
    reread: int | None
    """Batches up to this number were read again; None: nothing is being read again."""
    reread_to: int | None
    reread_since: datetime
    """What was stored before is not counted: alerts began then, or their incidents have left."""


async def lock_reader(connection: "Anyone") -> Reader | None:
    """Become the reader until the end of the transaction; None where somebody else is. Writes nothing: see alert_reader.py why."""
    if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", READER_LOCK):
        return None
    row = await connection.fetchrow(_READER)
    if row is None:
        return None
    xmin, xmax, running = row["start"].split(":")
    start = Snapshot(row["since_us"], int(xmin), int(xmax), tuple(map(int, running.split(","))) if running else ())
    cursor = msgspec.json.decode(row["cursor"], type=Cursor) if row["cursor"] else None
    return Reader(
        cursor, start, row["looked"], row["moved"], row["now"], row["secret"], row["reread"], row["reread_to"], row["reread_since"]
    )  # fmt: skip


async def move_reader(connection: "Anyone", cursor: Cursor, looked: datetime) -> None:
    """Write how far it is."""
    text = msgspec.json.encode(cursor).decode()
    await connection.execute(
        "UPDATE alert_reader SET cursor = $1, looked = $2, moved = clock_timestamp()", text, looked
    )


async def batches_again(connection: "Anyone", after: int, until: int, since: datetime, limit: int) -> Sequence[Record]:
    """Return the next batches that are to be read again."""
    return await connection.fetch(
        "SELECT xid::text AS xid, batch_id, received, events FROM evidence "
        "WHERE batch_id > $1 AND batch_id <= $2 AND received >= $3 ORDER BY evidence.batch_id LIMIT $4",
        after, until, since, limit,
    )  # fmt: skip


async def move_reread(connection: "Anyone", through: int) -> None:
    """Write how far batches were read again."""
    await connection.execute("UPDATE alert_reader SET reread = $1", through)


async def end_reread(connection: "Anyone") -> None:
    """Everything was read again."""
    await connection.execute("UPDATE alert_reader SET reread = NULL, reread_to = NULL")


async def found_before(connection: "Anyone", identities: Sequence[str]) -> set[tuple[str, str]]:
    """Return which rules of the centre have found something in which of these events."""
    if not identities:
        return set()
    rows = await connection.fetch(_FOUND_BEFORE, list(set(identities)))
    return {(row["rule"], row["name"]) for row in rows}


@dataclass(slots=True)
class Alert:
    """An alert while events are counted in it; the fields are the columns."""

    alert_id: int
    incident_id: int
    dedup: bytes
    rule: str
    standing: Standing
    count: int
    opened: datetime
    first: datetime
    time: datetime
    received: datetime
    place_id: int
    agent_id: UUID
    severity: int
    type: str
    category: str
    source: str
    src_ip: str | None
    target: str | None
    outcome: str | None
    message: str | None
    correlation_id: str | None
    data: str | None


@dataclass(slots=True)
class Written:
    """What a step adds. Everything is written by `write`."""

    alerts: dict[int, Alert] = field(default_factory=dict)
    incidents: dict[int, tuple[datetime, datetime]] = field(default_factory=dict)
    keys: dict[str, tuple[int, datetime]] = field(default_factory=dict)
    events: list[tuple[Any, ...]] = field(default_factory=list)
    history: list[tuple[Any, ...]] = field(default_factory=list)
    outbox: list[tuple[str, int, str]] = field(default_factory=list)
    hits: dict[int, int] = field(default_factory=dict)


async def seen_before(connection: "Anyone", rows: Sequence[Record]) -> set[tuple[int, int]]:
    """Which of the events are counted already."""
    found = await connection.fetch(
        "SELECT batch_id, idx FROM alert_events WHERE (batch_id, idx) IN (SELECT * FROM unnest($1::bigint[], $2::integer[]))",
        [row["batch_id"] for row in rows],
        [row["idx"] for row in rows],
    )
    return {(row["batch_id"], row["idx"]) for row in found}


async def current(connection: "Anyone", dedups: Sequence[bytes], over: Sequence[tuple[str, str]] = ()) -> list[Alert]:
    """The latest alert of each key, and those of the collector that are not closed and whose rule and target `over` names; locked."""
    rules, targets = [rule for rule, _ in over], [target for _, target in over]
    rows = await connection.fetch(_CURRENT, list(set(dedups)), rules, targets)
    return [_alert(row) for row in rows]


def _alert(row: Record) -> Alert:
    plain = {name: row[name] for name in Alert.__slots__ if name != "standing"}
    return Alert(**plain, standing=standing_of(row))


def standing_of(row: Record) -> Standing:
    """Of a row of alerts."""
    return Standing(*(row[name] for name in Standing.__slots__))


async def incidents_of(connection: "Anyone", keys: Iterable[str]) -> dict[str, tuple[int, datetime]]:
    """What ties to which incident, and when it last did."""
    rows = await connection.fetch(
        "SELECT key, incident_id, last FROM incident_keys WHERE key = ANY ($1::text[])", list(set(keys))
    )
    return {row["key"]: (row["incident_id"], row["last"]) for row in rows}


async def numbers(connection: "Anyone", table: str, count: int) -> list[int]:
    """New numbers for rows of `alerts` or `incidents`."""
    column = f"{table.removesuffix('s')}_id"
    rows = await connection.fetch(
        f"SELECT nextval(pg_get_serial_sequence('{table}', '{column}')) AS no FROM generate_series(1, $1::integer)",
        count,
    )
    return [row["no"] for row in rows]


async def suppressions(connection: "Anyone", *, active: bool, scope: Scope | None = None) -> list[dict[str, Any]]:
    """Suppressions, latest first; `scope`: those that touch it only by being made within it."""
    condition = "WHERE ended IS NULL AND expires > clock_timestamp()" if active else ""
    rows = await connection.fetch(f"SELECT * FROM suppressions {condition} ORDER BY suppression_id DESC LIMIT 1000")
    found = [{**row, "scope": _scope(row["scope"])} for row in rows]
    if scope is None:
        return found
    # What reaches no place belongs to nobody but those who see every place.
    return [one for one in found if all(_inside(place, scope) for place in one["scope"] or ALL)]


def _scope(text: str) -> Scope:
    return tuple((site, line, station) for site, line, station in json.loads(text))


def _inside(place: tuple[str, str, str], scope: Scope) -> bool:
    return any(all(not w or w == value for w, value in zip(allowed, place, strict=True)) for allowed in scope)


async def write(connection: "Anyone", step: Written) -> None:
    """All that a step adds, in the caller's transaction."""
    incidents = [(number, first, last) for number, (first, last) in sorted(step.incidents.items())]
    await connection.executemany(_PUT_INCIDENT, incidents)
    await connection.executemany(_PUT_ALERT, [_values(alert) for _, alert in sorted(step.alerts.items())])
    keys = [(key, number, last) for key, (number, last) in sorted(step.keys.items())]
    await connection.executemany(_PUT_KEY, keys)
    await connection.executemany(_PUT_EVENT, step.events)
    await connection.executemany(_NOTE, step.history)
    await connection.executemany(_PUT_OUTBOX, step.outbox)
    await connection.executemany(_HIT, list(step.hits.items()))


def standing_text(s: Standing) -> str:
    """Return a standing as the history keeps it, the same as STANDING_SQL makes of a row of alerts."""
    until = "" if s.quiet_until is None else str(to_us(s.quiet_until))
    return "|".join((s.state, s.reason or "", until, s.assignee or "", str(s.reopened), str(s.version)))


STANDING_SQL = (
    "concat_ws('|', a.state, coalesce(a.reason, ''), coalesce((extract(epoch FROM a.quiet_until) * 1000000)::bigint::text, ''), "
    "coalesce(a.assignee, ''), a.reopened, a.version)"
)


def _values(alert: Alert) -> tuple[Any, ...]:
    s = alert.standing
    return (
        alert.alert_id, alert.incident_id, alert.dedup, alert.rule, s.state, s.reason, s.quiet_until, s.assignee, alert.count, s.reopened,
        s.version, alert.opened, alert.first, alert.time, alert.received, alert.place_id, alert.agent_id, alert.severity, alert.type,
        alert.category, alert.source, alert.src_ip, alert.target, alert.outcome, alert.message, alert.correlation_id, alert.data,
    )  # fmt: skip


def note(
    alert: "tuple[int | None, int]", who: tuple[str, str], action: str, states: tuple[State | None, State | None], *,
    standing: Standing | None = None, **data: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """A line of the history. `alert`: its number and that of its incident; `standing`: how far it is then, for `verify`."""
    kept = {name: value for name, value in data.items() if value is not None}
    if standing is not None:
        kept["standing"] = standing_text(standing)
    return (*alert, *who, action, *states, json.dumps(kept, default=str))


async def write_note(connection: "Anyone", line: tuple[Any, ...]) -> None:
    """A line of the history."""
    await connection.execute(_NOTE, *line)


# ── what people read ──


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which alerts. `events`: conditions on what the alert says, those of an event; its scope is the caller's."""

    events: Filter
    states: tuple[State, ...] = ()
    reasons: tuple[Reason, ...] = ()
    rules: tuple[str, ...] = ()
    assignees: tuple[str, ...] = ()
    incident: int | None = None


def _where(wanted: Wanted) -> Where:
    w = where_of(wanted.events)
    w.any_of("e.state", "text", wanted.states)
    w.any_of("e.reason", "text", wanted.reasons)
    w.any_of("e.rule", "text", wanted.rules)
    w.any_of("e.assignee", "text", wanted.assignees)
    if wanted.incident is not None:
        w.add("e.incident_id = {}::bigint", wanted.incident)
    return w


async def page(
    connection: "Anyone", wanted: Wanted, *, after: tuple[datetime, int] | None, limit: int
) -> Sequence[Record]:
    """Alerts by the time of their last event, latest first. Raises BadFilter, TooSlow."""
    w = _where(wanted)
    if after is not None:
        w.conditions.append(f"(e.time, e.alert_id) < ({w.bind(after[0])}::timestamptz, {w.bind(after[1])}::bigint)")
    sql = f"{_READ} WHERE {w} ORDER BY e.time DESC, e.alert_id DESC LIMIT {int(limit)}"
    return await fetch_bounded(connection, sql, w.arguments)  # type: ignore[arg-type]


async def one(connection: "Anyone", alert_id: int, scope: Scope, *, lock: bool = False) -> Record | None:
    """An alert within a scope."""
    w = _where(Wanted(events=Filter(scope=scope)))
    w.add("e.alert_id = {}::bigint", alert_id)
    return await connection.fetchrow(f"{_READ} WHERE {w}{' FOR UPDATE OF e' if lock else ''}", *w.arguments)


async def history(
    connection: "Anyone", *, alert_id: int | None = None, incident_id: int | None = None
) -> Sequence[Record]:
    """What was done, in order, the last thousand: with an alert, or with an incident as a whole."""
    condition = "alert_id = $1" if alert_id is not None else "incident_id = $1 AND alert_id IS NULL"
    rows = await connection.fetch(
        f"SELECT history_id, at, who, who_kind, action, from_state, to_state, data FROM alert_history WHERE {condition} "
        "ORDER BY history_id DESC LIMIT 1000",
        alert_id if alert_id is not None else incident_id,
    )
    return rows[::-1]


async def events_of(connection: "Anyone", alert_id: int, limit: int) -> Sequence[Record]:
    """Its last events, latest first."""
    return await connection.fetch(
        "SELECT agent_id, buffer_id, lane, batch_no, idx, time, received, correlation_id, suppression_id FROM alert_events "
        f"WHERE alert_id = $1 ORDER BY batch_id DESC, idx DESC LIMIT {int(limit)}",
        alert_id,
    )


# ── what people do ──


@dataclass(frozen=True, slots=True)
class Done:
    """What came of an action on one alert."""

    before: Standing
    after: Standing
    incident_id: int


async def change(connection: "Anyone", row: Record, action: Action, who: tuple[str, str], now: datetime) -> Done:
    """Apply an action to a locked alert. Raises NotAllowed."""
    before = standing_of(row)
    after = act(before, action, now)
    done = Done(before, after, row["incident_id"])
    await put(connection, row["alert_id"], after)
    line = note(
        (row["alert_id"], row["incident_id"]), who, action.verb, (before.state, after.state), standing=after,
        reason=after.reason if after.reason != before.reason else None, comment=action.comment, until=action.until,
        assignee=after.assignee if action.verb == "assign" else None, before=before.assignee if action.verb == "assign" else None,
    )  # fmt: skip
    await connection.execute(_NOTE, *line)
    return done


async def put(connection: "Anyone", alert_id: int, standing: Standing) -> None:
    """Write how far an alert is."""
    s = standing
    await connection.execute(_STAND, alert_id, s.state, s.reason, s.quiet_until, s.assignee, s.reopened, s.version)


async def touch(connection: "Anyone", incidents: Iterable[int]) -> None:
    """Count a change of incidents."""
    await connection.execute(
        "UPDATE incidents SET version = version + 1 WHERE incident_id IN "
        "(SELECT incident_id FROM incidents WHERE incident_id = ANY ($1::bigint[]) ORDER BY incident_id FOR UPDATE)",
        sorted(set(incidents)),
    )


@dataclass(frozen=True, slots=True)
class Selection:
    """What was shown before an action on many."""

    selection_id: UUID
    count: int
    by_state: Mapping[str, int]
    cut: bool


async def select(connection: "Anyone", wanted: Wanted, query: str, who: str) -> Selection:
    """Note which alerts a filter finds now, in which version."""
    w = _where(wanted)
    rows = await fetch_bounded(
        connection,  # type: ignore[arg-type]
        f"SELECT e.alert_id, e.version, e.state FROM alerts e WHERE {w} ORDER BY e.alert_id LIMIT {SELECTION_MAX + 1}",
        w.arguments,
    )
    kept = rows[:SELECTION_MAX]
    await connection.execute(
        f"DELETE FROM alert_selections WHERE made < now() - interval '{SELECTION_HOURS} hours' AND applied IS NULL"
    )
    number: UUID = await connection.fetchval(
        "INSERT INTO alert_selections (made_by, filter, alerts, versions) VALUES ($1, $2, $3, $4) RETURNING selection_id",
        who, query, [row["alert_id"] for row in kept], [row["version"] for row in kept],
    )  # fmt: skip
    states: dict[str, int] = {}
    for row in kept:
        states[row["state"]] = states.get(row["state"], 0) + 1
    return Selection(number, len(kept), states, len(rows) > SELECTION_MAX)


async def lock_selection(connection: "Anyone", selection_id: UUID, who: str) -> Record | None:
    """A selection of this person, locked."""
    return await connection.fetchrow(
        "SELECT * FROM alert_selections WHERE selection_id = $1 AND made_by = $2 FOR UPDATE", selection_id, who
    )


async def apply(
    connection: "Anyone", selection: Record, action: Action, who: tuple[str, str], scope: Scope, now: datetime
) -> tuple[int, int]:
    """Do it to those that are still as they were shown; how many were changed, and how many left alone."""
    shown = dict(zip(selection["alerts"], selection["versions"], strict=True))
    rows = await _locked(connection, list(shown), scope)
    before: list[list[Any]] = []
    changes, lines, incidents = [], [], set()
    for row in rows:
        standing = standing_of(row)
        if standing.version != shown[row["alert_id"]]:
            continue
        try:
            after = act(standing, action, now)
        except NotAllowed:
            continue
        before.append([row["alert_id"], after.version, msgspec.to_builtins(standing)])
        changes.append(_stand(row["alert_id"], after))
        line = note((row["alert_id"], row["incident_id"]), who, action.verb, (standing.state, after.state),
                    standing=after, reason=after.reason, comment=action.comment, until=action.until, assignee=action.assignee,
                    selection=selection["selection_id"])  # fmt: skip
        lines.append(line)
        incidents.add(row["incident_id"])
    await connection.executemany(_STAND, changes)
    await connection.executemany(_NOTE, lines)
    await touch(connection, incidents)
    await connection.execute(
        "UPDATE alert_selections SET applied = clock_timestamp(), before = $2 WHERE selection_id = $1",
        selection["selection_id"], json.dumps(before),
    )  # fmt: skip
    return len(changes), len(shown) - len(changes)


async def undo(connection: "Anyone", selection: Record, who: tuple[str, str], scope: Scope) -> tuple[int, int]:
    """Put those back that nobody changed since; how many, and how many were left alone."""
    kept = {
        number: (version, msgspec.convert(was, Standing)) for number, version, was in json.loads(selection["before"])
    }
    rows = await _locked(connection, list(kept), scope)
    changes, lines, incidents = [], [], set()
    for row in rows:
        version, was = kept[row["alert_id"]]
        if row["version"] != version:
            continue
        back = replace(was, version=version + 1)
        changes.append(_stand(row["alert_id"], back))
        lines.append(note((row["alert_id"], row["incident_id"]), who, "undo", (row["state"], was.state), standing=back,
                          selection=selection["selection_id"]))  # fmt: skip
        incidents.add(row["incident_id"])
    await connection.executemany(_STAND, changes)
    await connection.executemany(_NOTE, lines)
    await touch(connection, incidents)
    await connection.execute(
        "UPDATE alert_selections SET undone = clock_timestamp() WHERE selection_id = $1", selection["selection_id"]
    )
    return len(changes), len(kept) - len(changes)


def _stand(alert_id: int, s: Standing) -> tuple[Any, ...]:
    return alert_id, s.state, s.reason, s.quiet_until, s.assignee, s.reopened, s.version


async def _locked(connection: "Anyone", numbers_: list[int], scope: Scope) -> Sequence[Record]:
    w = _where(Wanted(events=Filter(scope=scope)))
    w.add("e.alert_id = ANY ({}::bigint[])", numbers_)
    return await connection.fetch(f"SELECT e.* FROM alerts e WHERE {w} ORDER BY e.alert_id FOR UPDATE", *w.arguments)


async def lock_incident(connection: "Anyone", incident_id: int, scope: Scope) -> Sequence[Record]:
    """The alerts of an incident within a scope, locked."""
    w = _where(Wanted(events=Filter(scope=scope), incident=incident_id))
    return await connection.fetch(f"SELECT e.* FROM alerts e WHERE {w} ORDER BY e.alert_id FOR UPDATE", *w.arguments)


@dataclass(frozen=True, slots=True)
class Quieted:
    """How many events and alerts of the past a suppression would have kept quiet, and how many alerts of them are not closed."""

    events: int
    alerts: int
    open: int


async def would_quiet(connection: "Anyone", wanted: Filter, since: datetime | None) -> Quieted:
    """What a filter fits of what came; the same filter and the same time range as a suppression has then."""
    w = where_of(wanted)
    if since is not None:
        w.add("x.time >= {}::timestamptz", since)
    row = (await fetch_bounded(connection, _WOULD.format(w), w.arguments))[0]  # type: ignore[arg-type]
    return Quieted(row["events"], row["alerts"], row["open"])


async def suppress(
    connection: "Anyone", *, query: str, scope: Scope, comment: str, who: str, expires: datetime
) -> Record | None:  # fmt: skip
    """Make a suppression."""
    return await connection.fetchrow(
        "INSERT INTO suppressions (filter, scope, comment, created_by, expires) VALUES ($1, $2, $3, $4, $5) RETURNING *",
        query, json.dumps(scope), comment, who, expires,
    )  # fmt: skip


async def end_suppression(connection: "Anyone", suppression_id: int, who: str) -> bool:
    """End one; False where it is over already."""
    done = await connection.fetchval(
        "UPDATE suppressions SET ended = now(), ended_by = $2 WHERE suppression_id = $1 AND ended IS NULL RETURNING suppression_id",
        suppression_id, who,
    )  # fmt: skip
    return done is not None


async def database_now(connection: "Anyone") -> datetime:
    """The time by which everything here is judged."""
    with translated():
        found: datetime = await connection.fetchval("SELECT clock_timestamp()")
    return found


async def place_for(connection: "Anyone", places: Sequence[tuple[str, str, str]]) -> int:
    """Number of the smallest place that holds all of these, made where it is new."""
    common = ["", "", ""]
    for level in range(3):
        names = {place[level] for place in places}
        if len(names) != 1:
            break
        common[level] = names.pop()
    await connection.execute(
        "INSERT INTO places (site, line, station) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", *common
    )
    found: int = await connection.fetchval(
        "SELECT place_id FROM places WHERE site = $1 AND line = $2 AND station = $3", *common
    )
    return found


def scoped(scope: Scope, arguments: list[Any]) -> str:
    """The scope as a condition on `places p`."""
    w = Where()
    w.arguments = arguments
    w.conditions += scope_conditions(w, scope, "p.")
    return str(w)


def ago(now: datetime, seconds: float) -> datetime:
    """So long before."""
    return now - timedelta(seconds=seconds)


_READER = """
SELECT r.cursor, r.start, (extract(epoch FROM r.since) * 1000000)::bigint AS since_us, r.looked, r.moved, clock_timestamp() AS now,
       (SELECT value FROM installation_secrets WHERE name = 'alerts') AS secret, r.reread, r.reread_to,
       CASE WHEN r.reread IS NULL THEN r.since
            ELSE greatest(r.since, (SELECT max(t.day) + 2 FROM tombstones t WHERE t.kind = 'alerts')::timestamptz) END AS reread_since
FROM alert_reader r
"""
_FOUND_BEFORE = """
SELECT DISTINCT e.data ->> 'rule' AS rule, name FROM security_events e
CROSS JOIN LATERAL jsonb_array_elements_text(
    CASE WHEN jsonb_typeof(e.data -> 'events') = 'array' THEN e.data -> 'events' ELSE '[]' END) AS name
WHERE e.agent_id = '00000000-0000-0000-0000-000000000000' AND e.data -> 'events' ?| $1::text[] AND name = ANY ($1::text[])
"""
_CURRENT = """
SELECT * FROM alerts WHERE alert_id IN (
    SELECT max(alert_id) FROM alerts WHERE dedup = ANY ($1::bytea[]) GROUP BY dedup
    UNION SELECT alert_id FROM alerts WHERE state <> 'closed' AND agent_id = '00000000-0000-0000-0000-000000000000'
        AND (rule, target) IN (SELECT * FROM unnest($2::text[], $3::text[]))
) ORDER BY alert_id FOR UPDATE
"""
_READ = """
SELECT e.*, p.site, p.line, p.station FROM alerts e JOIN places p ON p.place_id = e.place_id
"""
_PUT_INCIDENT = """
INSERT INTO incidents AS i (incident_id, first, last) VALUES ($1, $2, $3)
ON CONFLICT (incident_id) DO UPDATE SET first = least(i.first, excluded.first), last = greatest(i.last, excluded.last),
    version = i.version + 1
"""
_PUT_ALERT = """
INSERT INTO alerts (alert_id, incident_id, dedup, rule, state, reason, quiet_until, assignee, count, reopened, version, opened, first,
    time, received, place_id, agent_id, severity, type, category, source, src_ip, target, outcome, message, correlation_id, data)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27)
ON CONFLICT (alert_id) DO UPDATE SET state = excluded.state, reason = excluded.reason, quiet_until = excluded.quiet_until,
    count = excluded.count, reopened = excluded.reopened, version = excluded.version, changed = clock_timestamp(),
    first = excluded.first, time = excluded.time, received = excluded.received, place_id = excluded.place_id,
    severity = excluded.severity, source = excluded.source, outcome = excluded.outcome, message = excluded.message,
    correlation_id = excluded.correlation_id, data = excluded.data
"""
_PUT_KEY = """
INSERT INTO incident_keys AS k (key, incident_id, last) VALUES ($1, $2, $3)
ON CONFLICT (key) DO UPDATE SET incident_id = excluded.incident_id, last = greatest(k.last, excluded.last)
"""
_PUT_EVENT = """
INSERT INTO alert_events (batch_id, idx, received, time, alert_id, agent_id, buffer_id, lane, batch_no, correlation_id, suppression_id)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
"""
_NOTE = """
INSERT INTO alert_history (alert_id, incident_id, who, who_kind, action, from_state, to_state, data)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::jsonb)
"""
_PUT_OUTBOX = "INSERT INTO notification_outbox (target, alert_id, why) VALUES ($1, $2, $3)"
_HIT = "UPDATE suppressions SET hits = hits + $2::bigint, last_hit = clock_timestamp() WHERE suppression_id = $1"
_STAND = """
UPDATE alerts SET state = $2, reason = $3, quiet_until = $4, assignee = $5, reopened = $6, version = $7, changed = clock_timestamp()
WHERE alert_id = $1
"""
_WOULD = """
SELECT count(*) AS events, count(DISTINCT x.alert_id) AS alerts, count(DISTINCT x.alert_id) FILTER (WHERE a.state <> 'closed') AS open
FROM alert_events x JOIN alerts a USING (alert_id)
JOIN security_events e ON e.received = x.received AND e.batch_id = x.batch_id AND e.idx = x.idx
WHERE {}
"""
