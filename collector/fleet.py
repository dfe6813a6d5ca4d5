"""GET /v1/fleet and /v1/agents/{id}: who is heard, how far behind each is, what it cannot do; the worst first.

The last event and the last sign of life are told apart: an agent on a quiet line is well although nothing happened there for hours, and
whether it is heard has hysteresis (Fleet #37097).
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

from litestar import Request, get
from litestar.datastructures import State
from litestar.params import QueryParameter
from msgspec import Raw, Struct

from collector.problems import Problem
from collector.store import fleet as store

if TYPE_CHECKING:
    from collector.access import Caller
    from collector.store.database import Database
    from collector.store.events import Record

SOURCES_MAX = 100
"""Of one agent, in answers."""
STATES = ("silent", "late", "unknown", "stopped", "online", "revoked")
"""Of an agent, the worst first. stopped: silent, and it had said that it was stopped; unknown: the rules did not look at it yet."""


class SourceOut(Struct):
    """What an agent says of one of its sources."""

    name: str
    kind: str | None
    state: str | None
    connected: bool | None
    trouble: int
    gaps: int
    last_event: datetime | None


class FleetAgent(Struct):
    """An agent. `last_heartbeat`: when it last said anything; `last_event`: when its last new event was stored.

    `lag_s`: how long its oldest unsent event waited when it last spoke; `trouble`: what is wrong, in words.
    """

    agent_id: UUID
    site: str
    line: str
    station: str
    state: str
    since: datetime | None
    last_heartbeat: datetime
    last_event: datetime | None
    version: str | None
    first_seen: datetime
    events: int
    batches: int
    gaps: int
    open_alerts: int
    lag_s: float | None
    clock_offset_s: float | None
    buffer_events: int | None
    buffer_bytes: int | None
    buffer_bytes_max: int | None
    buffer_oldest: datetime | None
    sources: list[SourceOut]
    sources_unnamed: int
    trouble: list[str]


class AgentDetail(Struct):
    """An agent, all that it said of itself, and how far each lane of its buffers is stored."""

    agent: FleetAgent
    status: Raw | None
    streams: Raw | None


class Group(Struct):
    """A place with its agents counted by state, and what is below it; the worst first. `worst`: the worst state there."""

    name: str
    worst: str
    agents: int
    by_state: dict[str, int]
    open_alerts: int
    gaps: int
    lag_s_max: float | None
    below: "list[Group]"


class Fleet(Struct):
    """The sites, each with its lines and their stations."""

    worst: str
    agents: int
    by_state: dict[str, int]
    sites: list[Group]


def _moment(us: Any) -> datetime | None:
    if not isinstance(us, int | float) or isinstance(us, bool) or not 0 < us < 4e15:  # noqa: PLR2004 - the year 2096
        return None
    return datetime.fromtimestamp(us / 1e6, UTC)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def _text(value: Any) -> str | None:
    return value[:100] if isinstance(value, str) else None


def _source(name: str, said: Any) -> SourceOut:
    said = said if isinstance(said, Mapping) else {}
    connected = said.get("connected")
    return SourceOut(
        name[:200],
        _text(said.get("kind")),
        _text(said.get("state")),
        connected if isinstance(connected, bool) else None,
        _count(said.get("trouble")) or 0,
        _count(said.get("gaps")) or 0,
        _moment(said.get("last_event_us")),
    )


def state_of(row: "Record") -> str:
    """One of STATES."""
    if row["revoked"] is not None:
        return "revoked"
    if row["state"] == "silent" and row["stopped"] is not None:
        return "stopped"
    return row["state"] or "unknown"


def agent_of(row: "Record") -> FleetAgent:
    """A stored agent as it is answered. What it says of itself is not believed further than it can be read."""
    status = store.status_of(row)
    buffer = status.get("buffer")
    buffer = buffer if isinstance(buffer, Mapping) else {}
    listed = status.get("sources")
    named = islice(listed.items(), SOURCES_MAX) if isinstance(listed, Mapping) else ()
    sources = [_source(name, said) for name, said in named]
    oldest = _moment(buffer.get("oldest_us"))
    offset_us = row["clock_offset_us"]
    lag_s = None
    if buffer:
        seen_us = row["last_seen"].timestamp() * 1e6 + (offset_us or 0)
        lag_s = round(max(0.0, seen_us / 1e6 - oldest.timestamp()), 3) if oldest is not None else 0.0
    return FleetAgent(
        row["agent_id"], row["site"], row["line"], row["station"], state_of(row), row["since"], row["last_seen"], row["last_event"],
        row["version"], row["first_seen"], row["events"], row["batches"], row["gaps"], row["open_alerts"], lag_s,
        offset_us / 1e6 if offset_us is not None else None, _count(buffer.get("events")), _count(buffer.get("used_bytes")),
        _count(buffer.get("bytes_max")), oldest, sources, _count(status.get("sources_unnamed")) or 0, _trouble(status, sources),
    )  # fmt: skip


def _trouble(status: Mapping[str, Any], sources: Iterable[SourceOut]) -> list[str]:
    said = []
    buffer = status.get("buffer")
    if isinstance(buffer, Mapping) and buffer.get("stalled") is True:
        said.append("its buffer takes nothing")
    if status.get("reload_error") is True:
        said.append("its configuration could not be read again")
    if failed := _count(status.get("handlers_failed")):
        said.append(f"{failed} handlers failed")
    said += [
        f"source {one.name} is {one.state}" for one in sources if one.state not in (None, "running") or one.trouble
    ]
    return said


def _worst(states: Iterable[str]) -> str:
    return min(states, key=STATES.index, default="online")


def grouped(agents: list[FleetAgent]) -> Fleet:
    """By site, line and station."""
    states = [one.state for one in agents]
    return Fleet(_worst(states), len(agents), _by_state(states), _groups(agents, ("site", "line", "station")))


def _by_state(states: list[str]) -> dict[str, int]:
    return {name: count for name in STATES if (count := states.count(name))}


def _groups(agents: list[FleetAgent], levels: tuple[str, ...]) -> list[Group]:
    if not levels:
        return []
    by_name: dict[str, list[FleetAgent]] = {}
    for one in agents:
        by_name.setdefault(getattr(one, levels[0]), []).append(one)
    made = []
    for name, ones in by_name.items():
        states = [one.state for one in ones]
        lags = [one.lag_s for one in ones if one.lag_s is not None]
        made.append(
            Group(name, _worst(states), len(ones), _by_state(states), sum(one.open_alerts for one in ones), sum(one.gaps for one in ones),
                  max(lags, default=None), _groups(ones, levels[1:]))
        )  # fmt: skip
    return sorted(made, key=lambda one: (STATES.index(one.worst), -one.open_alerts, one.name))


_Name = Annotated[str | None, QueryParameter(max_length=200)]
_In = Annotated[
    list[Literal["silent", "late", "unknown", "stopped", "online", "revoked"]] | None,
    QueryParameter(name="state", description="Only agents in one of these states", max_items=6),
]


async def _agents(
    request: Request[Any, Any, Any], state: State, place: tuple[str | None, ...], of: Sequence[str] | None
) -> list[FleetAgent]:
    caller: Caller = request.auth
    database: Database = state.database
    async with database.connection() as connection:
        rows = await store.agents(connection, caller.scope)
    there = zip(("site", "line", "station"), place, strict=True)
    wanted = [(name, value) for name, value in there if value is not None]
    found = [agent_of(row) for row in rows if all(row[name] == value for name, value in wanted)]
    return [one for one in found if of is None or one.state in of]


@get("/v1/fleet", opt={"access": "read"}, tags=["agents"], summary="The fleet by site, line and station")
async def get_fleet(
    request: Request[Any, Any, Any],
    state: State,
    site: _Name = None,
    line: _Name = None,
    station: _Name = None,
    of: _In = None,
) -> Fleet:
    """Counts by state, the worst first."""
    return grouped(await _agents(request, state, (site, line, station), of))


@get("/v1/agents/{agent_id:uuid}", opt={"access": "read"}, tags=["agents"], summary="One agent")
async def get_agent(request: Request[Any, Any, Any], state: State, agent_id: UUID) -> AgentDetail:
    """With all that it said of itself."""
    caller: Caller = request.auth
    database: Database = state.database
    async with database.connection() as connection:
        rows = await store.agents(connection, caller.scope, agent_id)
    if not rows:
        raise Problem(404, f"there is no agent {agent_id}", code="agent")
    row = rows[0]
    return AgentDetail(agent_of(row), _raw(row["status"] if store.status_of(row) else None), _raw(row["streams"]))


def _raw(text: str | None) -> Raw | None:
    return Raw(text.encode()) if text is not None else None


@get("/v1/fleet/agents", opt={"access": "read"}, tags=["agents"], summary="All agents, the worst first")
async def get_fleet_agents(
    request: Request[Any, Any, Any],
    state: State,
    site: _Name = None,
    line: _Name = None,
    station: _Name = None,
    of: _In = None,
) -> list[FleetAgent]:
    """Each with its last event and its last sign of life."""
    found = await _agents(request, state, (site, line, station), of)
    return sorted(found, key=lambda one: (STATES.index(one.state), one.site, one.line, one.station))


ROUTES = [get_fleet, get_fleet_agents, get_agent]
