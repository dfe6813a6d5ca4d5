"""Alerts and incidents as people work on them: read, acknowledge, assign, comment, close, reopen, many at once, and suppress.

Whoever changes an alert names the version that they saw (`If-Match: "3"`, or `version` in the body): where another was there before, 412
or 409 says so, and nothing is changed. An action on many touches exactly the alerts that its preview counted, in the version
counted, and can be undone. Everything is in the history of the alert and in the audit log, in one transaction with the change.
"""

import base64
import re
import struct
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

from litestar import Request, delete, get, patch, post
from litestar.datastructures import State
from litestar.di import Provide
from litestar.params import QueryParameter
from msgspec import Meta, Raw, Struct

from agent.wire import bounds
from agent.wire.bounds import OutOfBounds
from collector import audit
from collector.alert_state import REASONS, STATES, Action, NotAllowed, Reason, Verb
from collector.alert_state import State as AlertState
from collector.bodies import moment
from collector.problems import Problem
from collector.query import FILTERS, filter_of, provide_filter
from collector.store import alerts as store
from collector.store import incidents as incident_store
from collector.store.alerts import Wanted
from collector.store.database import NUMBER_MAX
from collector.store.events import BadFilter, Filter, Record, Scope, TooSlow
from collector.store.rows import from_us, to_us

if TYPE_CHECKING:
    from collector.access import Caller
    from collector.store.database import Connection, Database

_CURSOR = struct.Struct(">Bqq")
EVENTS_SHOWN = 100
COMMENT_CHARS_MAX = 4_000
SUPPRESS_DAYS_MAX = 366
LOOK_BACK_DAYS = 30
"""A preview of a suppression without a time range counts what it would have kept quiet in so many days."""

_Comment = Annotated[str, Meta(max_length=COMMENT_CHARS_MAX, pattern="^[^\x00]*$")]
_Name = Annotated[str, Meta(max_length=200, pattern="^[^\x00]*$")]
_Query = Annotated[str, Meta(max_length=8_000)]


class AlertOut(Struct):
    """An alert. `count`: events counted in it; `version`: to be named by whoever changes it."""

    alert_id: int
    incident_id: int
    version: int
    state: AlertState
    reason: Reason | None
    quiet_until: datetime | None
    assignee: str | None
    count: int
    reopened: int
    opened: datetime
    changed: datetime
    first: datetime
    last: datetime
    rule: str
    type: str
    severity: int
    site: str
    line: str
    station: str
    agent_id: UUID
    source: str
    src_ip: str | None
    target: str | None
    message: str | None
    correlation_id: str | None
    data: Raw | dict[str, Any]


class AlertPage(Struct):
    """Alerts, latest first, and the cursor behind them."""

    alerts: list[AlertOut]
    next: str | None


class HistoryOut(Struct):
    """Something that was done: by whom, when, from which state to which."""

    at: datetime
    who: str
    who_kind: str
    action: str
    from_state: str | None
    to_state: str | None
    data: Raw


class AlertEventOut(Struct):
    """An event counted in an alert. `event_id` is read at /v1/events/{event_id}, what caused it at /v1/correlations/{correlation_id}."""

    event_id: str
    time: datetime
    received: datetime
    correlation_id: str | None
    suppression_id: int | None


class AlertWithHistory(Struct):
    """An alert, what was done with it, its last events, and the events that it names as its causes."""

    alert: AlertOut
    history: list[HistoryOut]
    events: list[AlertEventOut]
    causes: list[str]


class Change(Struct, forbid_unknown_fields=True):
    """An action. `reason`: of close; `until`: of false_positive; `assignee`: of assign, null for nobody; `version`: what was seen."""

    action: Verb
    reason: Reason | None = None
    until: datetime | None = None
    assignee: _Name | None = None
    comment: _Comment | None = None
    version: int | None = None

    def act(self) -> Action:
        """As the state machine takes it."""
        until = moment("until", self.until)
        return Action(
            verb=self.action, reason=self.reason, until=until, assignee=self.assignee, comment=self.comment
        )  # fmt: skip


class IncidentOut(Struct):
    """An incident: what its alerts that may be seen say together. `state`: open while one is, then acknowledged, then closed."""

    incident_id: int
    version: int
    state: AlertState
    title: str | None
    severity: int
    opened: datetime
    first: datetime
    last: datetime
    alerts: int
    events: int
    by_state: dict[str, int]
    types: list[str]
    rules: list[str]
    places: list[str]
    addresses: list[str]
    assignees: list[str]
    correlations: list[str]


class IncidentPage(Struct):
    """Incidents, latest first, and the cursor behind them."""

    incidents: list[IncidentOut]
    next: str | None


class IncidentWithHistory(Struct):
    """An incident, what was done with it as a whole, and its last alerts."""

    incident: IncidentOut
    history: list[HistoryOut]
    alerts: list[AlertOut]


class Preview(Struct, forbid_unknown_fields=True):
    """`filter`: parameters as of GET /v1/alerts, as a query string."""

    filter: _Query


class PreviewOut(Struct):
    """What an action would touch. `cut`: there are more than one action may touch; it would touch `count`."""

    selection_id: UUID
    count: int
    by_state: dict[str, int]
    cut: bool


class Outcome(Struct):
    """What an action on many did. `left`: somebody changed them meanwhile, or it does not fit their state."""

    changed: int
    left: int


class Suppress(Struct, forbid_unknown_fields=True):
    """`filter`: parameters as of GET /v1/events, as a query string; with `from` and `to` it holds for events of that time alone."""

    filter: _Query
    expires: datetime
    comment: _Comment


class SuppressPreview(Struct, forbid_unknown_fields=True):
    """The filter of a suppression."""

    filter: _Query


class SuppressPreviewOut(Struct):
    """What the filter fits of what came: in its own time range, else in the last days. `open`: alerts of them that are not closed."""

    events: int
    alerts: int
    open: int
    from_: datetime | None
    to: datetime | None


class SuppressionOut(Struct):
    """A suppression and what it kept quiet."""

    suppression_id: int
    filter: str
    comment: str
    created: datetime
    created_by: str
    expires: datetime
    ended: datetime | None
    ended_by: str | None
    hits: int
    last_hit: datetime | None


class Suppressions(Struct):
    """The suppressions, latest first."""

    suppressions: list[SuppressionOut]


# ── reading ──


def _encode(time: datetime, number: int) -> str:
    return base64.urlsafe_b64encode(_CURSOR.pack(1, to_us(time), number)).decode().rstrip("=")


def _decode(text: str) -> tuple[datetime, int]:
    try:
        version, us, number = _CURSOR.unpack(base64.b64decode(text + "=" * (-len(text) % 4), "-_", validate=True))
    except (ValueError, struct.error):
        version, us, number = 0, 0, 0
    moment = from_us(us)
    if version != 1 or moment is None:
        raise Problem(400, "after is not a cursor of ours. Give the `next` of the page before", code="cursor")
    return moment, number


def _alert(row: Record) -> AlertOut:
    fields = {name: row[name] for name in AlertOut.__struct_fields__ if name not in ("last", "data")}
    return AlertOut(**fields, last=row["time"], data=Raw(row["data"].encode()) if row["data"] else {})


def _history(rows: Iterable[Record]) -> list[HistoryOut]:
    return [
        HistoryOut(**{**{name: row[name] for name in HistoryOut.__struct_fields__}, "data": Raw(row["data"].encode())})
        for row in rows
    ]


def _causes(data: str | None) -> list[str]:
    """Correlation ids and identities that an alert names."""
    try:
        said = bounds.loads(data) if data else {}
    except ValueError:
        return []
    found = [one for name in ("events", "causes", "correlations") for one in _list(said.get(name))]
    return [one for one in found if isinstance(one, str)][:100]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


_OWN = ("state", "reason", "rule", "assignee", "incident")
_FITS = frozenset(FILTERS - {"actor"})
"""Filters of events that fit alerts: who did it is not kept in them."""


def _of(events: Filter, chosen: dict[str, tuple[str, ...]]) -> Wanted:
    if unknown := [one for one in chosen.get("state", ()) if one not in STATES]:
        raise Problem(400, f"state: {unknown[0][:40]!r} is none of {', '.join(STATES)}", code="filter")
    if unknown := [one for one in chosen.get("reason", ()) if one not in REASONS]:
        raise Problem(400, f"reason: {unknown[0][:40]!r} is none of {', '.join(REASONS)}", code="filter")
    try:
        incident = [bounds.integer(one, 0, NUMBER_MAX) for one in chosen.get("incident", ())]
    except OutOfBounds as error:
        raise Problem(400, f"incident: {error}", code="filter") from None
    return Wanted(
        events=events,
        states=chosen.get("state", ()),  # type: ignore[arg-type]
        reasons=chosen.get("reason", ()),  # type: ignore[arg-type]
        rules=chosen.get("rule", ()),
        assignees=chosen.get("assignee", ()),
        incident=incident[-1] if incident else None,
    )


def wanted_of(query: str, scope: Scope) -> Wanted:
    """Which alerts a query string means; the names of GET /v1/alerts. Raises Problem."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise Problem(400, "filter: not a query string, as in type=alert.*&severity=4", code="filter") from None
    chosen: dict[str, tuple[str, ...]] = {}
    rest = []
    for name, value in pairs:
        if name in _OWN:
            chosen[name] = (*chosen.get(name, ()), value)
        elif name == "actor":
            raise Problem(400, "there is no filter 'actor' for alerts: who did it is not kept in them", code="filter")
        else:
            rest.append((name, value))
    return _of(_event_filter(urlencode(rest), scope), chosen)


def _event_filter(query: str, scope: Scope) -> Filter:
    try:
        return filter_of(query, scope)
    except ValueError:
        raise Problem(400, "filter: not a query string, as in type=alert.*&severity=4", code="filter") from None


_Several = list[Annotated[str, Meta(max_length=200)]] | None
_After = Annotated[str | None, QueryParameter(name="after", max_length=200, description="`next` of the page before")]
_Limit = Annotated[int, QueryParameter(name="limit", ge=1, le=1_000)]


@get(
    "/v1/alerts",
    opt={"access": "read", "filters": _FITS, "parameters": frozenset({"after", "limit", *_OWN})},
    dependencies={"wanted": Provide(provide_filter)},
    tags=["alerts"],
    summary="Find alerts",
)
async def get_alerts(
    request: Request[Any, Any, Any],
    state: State,
    wanted: Filter,
    states: Annotated[_Several, QueryParameter(name="state", description="open, acknowledged, closed")] = None,
    reasons: Annotated[_Several, QueryParameter(name="reason", description="Why it was closed")] = None,
    rule: Annotated[_Several, QueryParameter(name="rule")] = None,
    assignee: Annotated[_Several, QueryParameter(name="assignee")] = None,
    incident: Annotated[int | None, QueryParameter(name="incident", ge=1, le=NUMBER_MAX)] = None,
    after: _After = None,
    limit: _Limit = 100,
) -> AlertPage:
    """By the time of their last event, latest first. `from` and `to` mean that time."""
    del request
    chosen = {"state": states, "reason": reasons, "rule": rule, "assignee": assignee}
    of = _of(wanted, {name: tuple(values or ()) for name, values in chosen.items()})
    of = Wanted(**{**{name: getattr(of, name) for name in Wanted.__slots__}, "incident": incident})
    position = _decode(after) if after is not None else None
    database: Database = state.database
    async with database.connection() as connection, _bounded():
        rows = await store.page(connection, of, after=position, limit=limit + 1)
    found = [_alert(row) for row in rows[:limit]]
    last = rows[limit - 1] if len(rows) > limit else None
    return AlertPage(found, _encode(last["time"], last["alert_id"]) if last is not None else None)


class _bounded:  # noqa: N801 - reads as a word
    """What the store cannot take becomes a problem."""

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BadFilter):
            raise Problem(400, f"a filter cannot be used: {error}", code="filter") from None
        if isinstance(error, TooSlow):
            raise Problem(504, f"{error}. Narrow it: give from and to", code="slow") from None


@get("/v1/alerts/{alert_id:int}", opt={"access": "read"}, tags=["alerts"], summary="One alert with its history")
async def get_alert(request: Request[Any, Any, Any], state: State, alert_id: int) -> AlertWithHistory:
    """With its last events and what caused it."""
    caller: Caller = request.auth
    database: Database = state.database
    async with database.connection() as connection:
        row = await _one(connection, alert_id, caller.scope)
        return await _whole(connection, row)


async def _one(connection: "Connection", alert_id: int, scope: Scope, *, lock: bool = False) -> Record:
    row = await store.one(connection, alert_id, scope, lock=lock) if 0 < alert_id <= NUMBER_MAX else None
    if row is None:
        raise Problem(404, f"there is no alert {str(alert_id)[:30]}", code="alert")
    return row


async def _whole(connection: "Connection", row: Record) -> AlertWithHistory:
    done = await store.history(connection, alert_id=row["alert_id"])
    events = [
        AlertEventOut(
            f"{one['agent_id']}/{one['buffer_id'].hex}/{one['lane']}/{one['batch_no']}/{one['idx']}", one["time"], one["received"],
            one["correlation_id"], one["suppression_id"],
        )
        for one in await store.events_of(connection, row["alert_id"], EVENTS_SHOWN)
    ]  # fmt: skip
    return AlertWithHistory(_alert(row), _history(done), events, _causes(row["data"]))


# ── one ──


@patch("/v1/alerts/{alert_id:int}", opt={"access": "work"}, tags=["alerts"], summary="Work on an alert")
async def patch_alert(request: Request[Any, Any, Any], state: State, alert_id: int, data: Change) -> AlertWithHistory:
    """Acknowledge, assign, comment, close with a reason, mark as a false positive until a time, reopen."""
    caller: Caller = request.auth
    database: Database = state.database
    async with database.connection() as connection, connection.transaction():
        row = await _one(connection, alert_id, caller.scope, lock=True)
        _check_version(request, data, row["version"])
        now = await store.database_now(connection)
        try:
            done = await store.change(connection, row, data.act(), _who(caller), now)
        except NotAllowed as error:
            raise Problem(409, str(error), code="state", version=row["version"]) from None
        await store.touch(connection, [done.incident_id])
        whole = await _whole(connection, await _one(connection, alert_id, caller.scope))
        told = {"from": done.before.state, "to": done.after.state, "reason": data.reason, "version": done.after.version}
        await audit.record(connection, caller.who, f"alert.{data.action}", target=f"alert/{alert_id}", data=told)
    return whole


def _who(caller: "Caller") -> tuple[str, str]:
    return caller.who.name, caller.who.kind


def _check_version(request: Request[Any, Any, Any], change: Change, version: int) -> None:
    match = request.headers.get("if-match")
    if match is not None:
        named = re.fullmatch(r'(?:W/)?"?([0-9]{1,18})"?', match.strip())
        if match.strip() != "*" and (named is None or int(named[1]) != version):
            raise Problem(
                412, f"it is version {version} now: somebody changed it. Read it again", code="version", version=version
            )
    elif change.version is not None:
        if change.version != version:
            raise Problem(
                409, f"it is version {version} now: somebody changed it. Read it again", code="version", version=version
            )
    elif change.action != "comment":
        raise Problem(
            428, "Name the version that you saw: If-Match, or version in the body", code="version", version=version
        )


# ── many ──


@post(
    "/v1/alerts/preview",
    status_code=200,
    opt={"access": "work"},
    tags=["alerts"],
    summary="Which alerts an action would touch",
)
async def preview_alerts(request: Request[Any, Any, Any], state: State, data: Preview) -> PreviewOut:
    """Counts them and keeps which they are, for a day: the action touches these and no others."""
    caller: Caller = request.auth
    wanted = wanted_of(data.filter, caller.scope)
    database: Database = state.database
    async with database.connection() as connection, _bounded():
        found = await store.select(connection, wanted, data.filter, caller.who.name)
    return PreviewOut(found.selection_id, found.count, dict(found.by_state), found.cut)


@post(
    "/v1/alerts/selections/{selection_id:uuid}/apply",
    status_code=200,
    opt={"access": "work"},
    tags=["alerts"],
    summary="Act on many alerts",
)
async def apply_selection(request: Request[Any, Any, Any], state: State, selection_id: UUID, data: Change) -> Outcome:
    """What a preview counted; alerts that somebody changed since are left alone."""
    caller: Caller = request.auth
    database: Database = state.database
    async with database.connection() as connection, connection.transaction():
        selection = await _selection(connection, selection_id, caller)
        if selection["applied"] is not None:
            raise Problem(409, "this was done already. Make a new preview", code="selection")
        now = await store.database_now(connection)
        action = data.act()
        if action.verb == "false_positive" and (action.until is None or action.until <= now):
            raise Problem(409, "a false positive needs an expiry that lies ahead: until", code="state")
        changed, left = await store.apply(connection, selection, action, _who(caller), caller.scope, now)
        told = {"changed": changed, "left": left, "filter": selection["filter"], "reason": data.reason}
        await audit.record(
            connection, caller.who, f"alerts.{data.action}", target=f"selection/{selection_id}", data=told
        )
    return Outcome(changed, left)


@post(
    "/v1/alerts/selections/{selection_id:uuid}/undo",
    status_code=200,
    opt={"access": "work"},
    tags=["alerts"],
    summary="Undo an action on many",
)
async def undo_selection(request: Request[Any, Any, Any], state: State, selection_id: UUID) -> Outcome:
    """Puts those back as they were that nobody changed since."""
    caller: Caller = request.auth
    database: Database = state.database
    async with database.connection() as connection, connection.transaction():
        selection = await _selection(connection, selection_id, caller)
        if selection["applied"] is None or selection["undone"] is not None:
            raise Problem(409, "there is nothing to undo: it was not done, or undone already", code="selection")
        changed, left = await store.undo(connection, selection, _who(caller), caller.scope)
        told = {"changed": changed, "left": left, "filter": selection["filter"]}
        await audit.record(connection, caller.who, "alerts.undo", target=f"selection/{selection_id}", data=told)
    return Outcome(changed, left)


async def _selection(connection: "Connection", selection_id: UUID, caller: "Caller") -> Record:
    found = await store.lock_selection(connection, selection_id, caller.who.name)
    if found is None:
        raise Problem(404, "there is no such preview of yours; it is kept for a day", code="selection")
    return found


# ── incidents ──


def _incident(row: Record) -> IncidentOut:
    by_state = {"open": row["open"], "acknowledged": row["acknowledged"], "closed": row["closed"]}
    state: Literal["open", "acknowledged", "closed"] = (
        "open" if row["open"] else "acknowledged" if row["acknowledged"] else "closed"
    )
    return IncidentOut(
        row["incident_id"], row["version"], state, row["title"], row["severity"], row["opened"], row["first"], row["last"], row["alerts"],
        row["events"], by_state, row["types"], row["rules"], row["places"], row["addresses"], row["assignees"], row["correlations"],
    )  # fmt: skip


@get("/v1/incidents", opt={"access": "read"}, tags=["alerts"], summary="Find incidents")
async def get_incidents(
    request: Request[Any, Any, Any],
    state: State,
    states: Annotated[_Several, QueryParameter(name="state", description="Has an alert that is so")] = None,
    after: _After = None,
    limit: _Limit = 100,
) -> IncidentPage:
    """By the time of their last event, latest first."""
    caller: Caller = request.auth
    _of(Filter(scope=caller.scope), {"state": tuple(states or ())})
    position = _decode(after) if after is not None else None
    database: Database = state.database
    async with database.connection() as connection, _bounded():
        rows = await incident_store.page(connection, caller.scope, states or (), after=position, limit=limit + 1)
    last = rows[limit - 1] if len(rows) > limit else None
    found = [_incident(row) for row in rows[:limit] if row["alerts"]]
    return IncidentPage(found, _encode(last["position"], last["incident_id"]) if last is not None else None)


@get("/v1/incidents/{incident_id:int}", opt={"access": "read"}, tags=["alerts"], summary="One incident with its alerts")
async def get_incident(request: Request[Any, Any, Any], state: State, incident_id: int) -> IncidentWithHistory:
    """With its last thousand alerts; all are at /v1/alerts?incident=…"""
    caller: Caller = request.auth
    database: Database = state.database
    async with database.connection() as connection, _bounded():
        return await _whole_incident(connection, incident_id, caller.scope)


async def _whole_incident(connection: "Connection", incident_id: int, scope: Scope) -> IncidentWithHistory:
    row = await incident_store.one(connection, incident_id, scope) if 0 < incident_id <= NUMBER_MAX else None
    if row is None:
        raise Problem(404, f"there is no incident {str(incident_id)[:30]}", code="incident")
    # What was written to an incident is about all of it: it is shown to those who see all of it.
    whole = await incident_store.size(connection, incident_id) == row["alerts"]
    done = await store.history(connection, incident_id=incident_id) if whole else []
    wanted = Wanted(events=Filter(scope=scope), incident=incident_id)
    rows = await store.page(connection, wanted, after=None, limit=1_000)
    return IncidentWithHistory(_incident(row), _history(done), [_alert(one) for one in rows])


@patch("/v1/incidents/{incident_id:int}", opt={"access": "work"}, tags=["alerts"], summary="Work on an incident")
async def patch_incident(
    request: Request[Any, Any, Any], state: State, incident_id: int, data: Change
) -> IncidentWithHistory:
    """The same actions, on all its alerts that may be seen and that they fit; a comment stands with the incident."""
    caller: Caller = request.auth
    database: Database = state.database
    async with database.connection() as connection, connection.transaction():
        rows = await store.lock_incident(connection, incident_id, caller.scope) if 0 < incident_id <= NUMBER_MAX else []
        if not rows:
            raise Problem(404, f"there is no incident {str(incident_id)[:30]}", code="incident")
        found = await incident_store.one(connection, incident_id, caller.scope)
        _check_version(request, data, found["version"] if found is not None else 0)
        changed = await _act_on(connection, rows, data, _who(caller))
        line = store.note((None, incident_id), _who(caller), data.action, (None, None), reason=data.reason, comment=data.comment,
                          until=data.until, assignee=data.assignee, alerts=changed)  # fmt: skip
        await store.write_note(connection, line)
        await store.touch(connection, [incident_id])
        whole = await _whole_incident(connection, incident_id, caller.scope)
        told = {"alerts": changed, "reason": data.reason}
        await audit.record(
            connection, caller.who, f"incident.{data.action}", target=f"incident/{incident_id}", data=told
        )
    return whole


async def _act_on(connection: "Connection", rows: Iterable[Record], data: Change, who: tuple[str, str]) -> int:
    if data.action == "comment":
        if not data.comment:
            raise Problem(409, "a comment needs a text", code="state")
        return 0
    now = await store.database_now(connection)
    changed, refused = 0, ""
    for row in rows:
        try:
            await store.change(connection, row, data.act(), who, now)
            changed += 1
        except NotAllowed as error:
            refused = str(error)
    if not changed:
        raise Problem(409, f"it fits none of its alerts: {refused}", code="state")
    return changed


# ── suppressions ──


def _suppressing(query: str, scope: Scope) -> Filter:
    wanted = _event_filter(query, scope)
    if wanted == Filter(scope=scope):
        raise Problem(400, "a suppression needs a filter: without one it would keep everything quiet", code="filter")
    return wanted


@post(
    "/v1/suppressions/preview",
    status_code=200,
    opt={"access": "work"},
    tags=["alerts"],
    summary="What a suppression would keep quiet",
)
async def preview_suppression(
    request: Request[Any, Any, Any], state: State, data: SuppressPreview
) -> SuppressPreviewOut:
    """Counted with the filter and the time range that the suppression will have."""
    caller: Caller = request.auth
    wanted = _suppressing(data.filter, caller.scope)
    database: Database = state.database
    async with database.connection() as connection, _bounded():
        now = await store.database_now(connection)
        since = None if wanted.begin or wanted.end else now - timedelta(days=LOOK_BACK_DAYS)
        found = await store.would_quiet(connection, wanted, since)
    return SuppressPreviewOut(found.events, found.alerts, found.open, wanted.begin or since, wanted.end)


@post("/v1/suppressions", opt={"access": "work"}, tags=["alerts"], summary="Suppress alerts by a filter")
async def create_suppression(request: Request[Any, Any, Any], state: State, data: Suppress) -> SuppressionOut:
    """Alerts that fit are counted, stay closed, and are told to nobody, until it expires. Those that are open stay open."""
    caller: Caller = request.auth
    _suppressing(data.filter, caller.scope)
    expires = moment("expires", data.expires)
    database: Database = state.database
    async with database.connection() as connection, connection.transaction():
        now = await store.database_now(connection)
        if expires is None or not now < expires <= now + timedelta(days=SUPPRESS_DAYS_MAX):
            raise Problem(400, f"expires has to lie ahead, at most {SUPPRESS_DAYS_MAX} days", code="expires")
        made = await store.suppress(
            connection,
            query=data.filter,
            scope=caller.scope,
            comment=data.comment,
            who=caller.who.name,
            expires=expires,
        )
        assert made is not None  # noqa: S101 - RETURNING of one inserted row
        told = {"filter": data.filter, "expires": expires.isoformat(), "comment": data.comment}
        await audit.record(
            connection, caller.who, "suppression.created", target=f"suppression/{made['suppression_id']}", data=told,
            objects=[("suppression", str(made["suppression_id"]))],
        )  # fmt: skip
    return _suppression(dict(made))


@get("/v1/suppressions", opt={"access": "read"}, tags=["alerts"], summary="The suppressions")
async def get_suppressions(request: Request[Any, Any, Any], state: State) -> Suppressions:
    """Those that have no effect outside of what may be seen."""
    caller: Caller = request.auth
    database: Database = state.database
    async with database.connection() as connection:
        found = await store.suppressions(connection, active=False, scope=caller.scope)
    return Suppressions([_suppression(one) for one in found])


@delete(
    "/v1/suppressions/{suppression_id:int}",
    status_code=204,
    opt={"access": "work"},
    tags=["alerts"],
    summary="End a suppression",
)
async def end_suppression(request: Request[Any, Any, Any], state: State, suppression_id: int) -> None:
    """From now on; what it kept quiet stays as it is."""
    caller: Caller = request.auth
    database: Database = state.database
    async with database.connection() as connection, connection.transaction():
        seen = await store.suppressions(connection, active=False, scope=caller.scope)
        if not any(one["suppression_id"] == suppression_id for one in seen):
            raise Problem(404, f"there is no suppression {str(suppression_id)[:30]}", code="suppression")
        if not await store.end_suppression(connection, suppression_id, caller.who.name):
            raise Problem(409, "it is over already", code="suppression")
        objects = [("suppression", str(suppression_id))]
        await audit.record(
            connection, caller.who, "suppression.ended", target=f"suppression/{suppression_id}", objects=objects
        )


def _suppression(row: dict[str, Any]) -> SuppressionOut:
    return SuppressionOut(**{name: row[name] for name in SuppressionOut.__struct_fields__})


ROUTES = [
    get_alerts, get_alert, patch_alert, preview_alerts, apply_selection, undo_selection, get_incidents, get_incident, patch_incident,
    preview_suppression, create_suppression, get_suppressions, end_suppression,
]  # fmt: skip
