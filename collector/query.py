"""Reading: events by filter, by id, by correlation; agents. Pages follow an opaque cursor and never skip or repeat an event.

A cursor is the key of the last event of a page and the order it was read in. It holds for any later time; an event that arrives meanwhile
is on the pages to come if its key lies behind the cursor, else it was too late for this reading.
"""

import base64
import csv
import io
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import parse_qs, urlencode
from uuid import UUID

import msgspec
from litestar import Request, Response, get
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.di import Provide
from litestar.openapi import ResponseSpec
from litestar.params import QueryParameter
from litestar.types import Scope
from msgspec import Raw, Struct

from agent.wire import bounds
from agent.wire.batch import MalformedBatch, read_frame
from collector import access, personal
from collector.bodies import moment
from collector.problems import Problem
from collector.proof import Proven, proof_of
from collector.store import agents, events
from collector.store.events import BadFilter, Filter, Order, Position, TooSlow
from collector.store.events import Scope as EventScope
from collector.store.rows import from_us, to_us
from collector.vault import Vault

if TYPE_CHECKING:
    from collector.access import Caller
    from collector.store.database import Database

VALUES_MAX = 100
"""Values that one filter may list."""
TEXT_CHARS_MAX = 1_000
DATA_CHARS_MAX = 16_384
FORMATS = {"json": "application/json", "ndjson": "application/x-ndjson", "csv": "text/csv"}
_CURSOR = struct.Struct(">BBqqi")
_CURSOR_VERSION = 1


class EventOut(Struct):
    """An event as it is answered. Its id is `agent_id/buffer/lane/batch_no/index`.

    `actor`, `raw` and `personal` are personal: pseudonyms stand for them unless they were asked for with `personal=true`.
    `time_flag`: why the claimed time was not taken (future, ancient, range), or `late`: it came after the events of its day were dropped.
    """

    event_id: str
    received: datetime
    time: datetime
    observed: datetime | None
    time_flag: str | None
    time_claimed: int | None
    agent_id: UUID
    site: str
    line: str
    station: str
    type: str
    category: str
    severity: int
    source: str
    src_ip: str | None
    target: str | None
    outcome: str | None
    message: str | None
    correlation_id: str | None
    actor: str | None
    raw: str | None
    data: Raw | dict[str, Any]
    personal: Raw | dict[str, Any]


class Page(Struct):
    """Events and the cursor behind them; `next` is null where there are no more now."""

    events: list[EventOut]
    next: str | None


class EvidenceOut(Struct):
    """What proves an event: the batch that it came in. `frame` says whether the stored frame is whole and is that batch."""

    batch_id: int
    batch_no: int
    through: int
    index: int
    events: int
    hash: str
    prev: str
    received: datetime
    frame_bytes: int
    frame: str
    proof: Proven


class EventWithEvidence(Struct):
    """An event and its evidence; null where the frame is no longer kept."""

    event: EventOut
    evidence: EvidenceOut | None


class AgentOut(Struct):
    """An agent as it is known here. `streams`: how far each lane of its buffers is stored."""

    agent_id: UUID
    site: str
    line: str
    station: str
    version: str | None
    first_seen: datetime
    last_seen: datetime
    last_event: datetime | None
    events: int
    batches: int
    gaps: int
    clock_offset_us: int | None
    status: Raw | None
    streams: Raw | None


class Agents(Struct):
    """The fleet."""

    agents: list[AgentOut]


def _json(value: str | None, text: str | None) -> Raw | dict[str, Any]:
    if value is not None:
        return Raw(value.encode())
    if text is None:
        return {}
    try:
        bounds.loads(text)
    except ValueError:
        return {"text": text}
    return Raw(text.encode())


def event_out(row: events.Record, vault: Vault | None) -> EventOut:
    """A stored row as it is answered: personal data by its pseudonyms, or with no vault as it is."""
    identity = f"{row['agent_id']}/{row['buffer_id'].hex}/{row['lane']}/{row['batch_no']}/{row['idx']}"
    event = EventOut(
        identity, row["received"], row["time"], row["observed"], row["time_flag"], row["time_claimed"], row["agent_id"], row["site"],
        row["line"], row["station"], row["type"], row["category"], row["severity"], row["source"], row["src_ip"], row["target"],
        row["outcome"], row["message"], row["correlation_id"], row["actor"], row["raw"], _json(row["data"], row["data_text"]),
        _json(row["personal"], row["personal_text"]),
    )  # fmt: skip
    if vault is not None:
        personal.hide(event, vault)
    return event


def position_of(row: events.Record) -> Position:
    """The key of a row."""
    return row["time"], row["batch_id"], row["idx"]


def encode_cursor(position: Position, order: Order) -> str:
    """Opaque to the client: a version, the order, the key."""
    packed = _CURSOR.pack(_CURSOR_VERSION, order == "asc", to_us(position[0]), position[1], position[2])
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def decode_cursor(text: str, order: Order) -> Position:
    """The key of a cursor. Raises Problem."""
    try:
        version, ascending, us, batch_id, idx = _CURSOR.unpack(
            base64.b64decode(text + "=" * (-len(text) % 4), "-_", validate=True)
        )
    except (ValueError, struct.error):
        raise Problem(400, "after is not a cursor of ours. Give the `next` of the page before", code="cursor") from None
    moment = from_us(us)
    if version != _CURSOR_VERSION or moment is None:
        raise Problem(400, f"after is a cursor of version {version}; begin anew without it", code="cursor")
    if bool(ascending) != (order == "asc"):
        raise Problem(400, "after comes from a reading in the other order", code="cursor")
    return moment, batch_id, idx


def _many(name: str, values: "Sequence[Any] | None") -> tuple[Any, ...]:
    if values and len(values) > VALUES_MAX:
        raise Problem(400, f"{name}: {len(values)} values; {VALUES_MAX} are taken", code="filter")
    return tuple(values or ())


def _data(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        value = bounds.loads(text)
    except ValueError as error:
        raise Problem(400, f"data: not JSON: {error}", code="filter") from None
    if not isinstance(value, dict):
        raise Problem(
            400, 'data: give a JSON object that the event\'s data contains, as in {"unit":"degC"}', code="filter"
        )
    return text


_PAGING = frozenset({"after", "order", "limit", "format", "personal"})
FILTERS = frozenset(
    {
        "from", "to", "agent", "site", "line", "station", "type", "category", "severity", "severity_in", "source", "actor", "src_ip",
        "target", "outcome", "text", "data", "correlation_id",
    }
)  # fmt: skip


def _check_names(connection: ASGIConnection[Any, Any, Any, Any]) -> None:
    """A filter that is misspelt would answer with everything: refused instead. A route names what else it takes in `opt["parameters"]`."""
    access.only(connection, known(connection.route_handler.opt))


def known(opt: Mapping[str, Any]) -> frozenset[str]:
    """Names of the parameters that a route with filters takes."""
    found: frozenset[str] = opt.get("filters", FILTERS) | opt.get("parameters", _PAGING)
    return found


Asked = Annotated[
    bool,
    QueryParameter(name="personal", description="Show personal data as it is, which is recorded; not for viewers"),
]
_Texts = list[Annotated[str, msgspec.Meta(max_length=TEXT_CHARS_MAX)]] | None
Format = Literal["json", "ndjson", "csv"]


async def provide_filter(
    scope: Scope,
    from_: Annotated[
        datetime | None, QueryParameter(name="from", description="Time of the event, inclusive, RFC 3339")
    ] = None,
    to: Annotated[
        datetime | None, QueryParameter(name="to", description="Time of the event, exclusive, RFC 3339")
    ] = None,
    agent: Annotated[list[UUID] | None, QueryParameter(name="agent")] = None,
    site: Annotated[_Texts, QueryParameter(name="site")] = None,
    line: Annotated[_Texts, QueryParameter(name="line")] = None,
    station: Annotated[_Texts, QueryParameter(name="station")] = None,
    type_: Annotated[
        _Texts, QueryParameter(name="type", description="A name, or `authentication.*` for it and all below")
    ] = None,
    category: Annotated[_Texts, QueryParameter(name="category")] = None,
    severity: Annotated[int | None, QueryParameter(name="severity", ge=1, le=6, description="At least this")] = None,
    severity_in: Annotated[
        list[int] | None, QueryParameter(name="severity_in", description="Exactly one of these")
    ] = None,
    source: Annotated[_Texts, QueryParameter(name="source")] = None,
    actor: Annotated[_Texts, QueryParameter(name="actor")] = None,
    src_ip: Annotated[_Texts, QueryParameter(name="src_ip")] = None,
    target: Annotated[_Texts, QueryParameter(name="target")] = None,
    outcome: Annotated[_Texts, QueryParameter(name="outcome")] = None,
    text: Annotated[
        str | None, QueryParameter(name="text", max_length=TEXT_CHARS_MAX, description="Part of the message, any case")
    ] = None,
    data_: Annotated[
        str | None,
        QueryParameter(name="data", max_length=DATA_CHARS_MAX, description="A JSON object that data contains"),
    ] = None,
    correlation_id: Annotated[str | None, QueryParameter(name="correlation_id", max_length=TEXT_CHARS_MAX)] = None,
    personal_: Asked = False,  # noqa: FBT002 - a parameter of the request, by its name
) -> Filter:
    """The filter of a request, within the scope of its caller."""
    connection: ASGIConnection[Any, Any, Any, Any] = ASGIConnection(scope)
    _check_names(connection)
    caller: Caller = connection.auth
    shown = caller.may_see_personal(asked=personal_)
    if severity_in and not all(1 <= value <= 6 for value in severity_in):  # noqa: PLR2004
        raise Problem(400, "severity_in: severities are 1 … 6", code="filter")
    return Filter(
        begin=moment("from", from_),
        end=moment("to", to),
        agents=_many("agent", agent),
        sites=_many("site", site),
        lines=_many("line", line),
        stations=_many("station", station),
        types=_many("type", type_),
        categories=_many("category", category),
        severity_min=severity,
        severities=_many("severity_in", severity_in),
        sources=_many("source", source),
        **personal.actors_of(_many("actor", actor), connection.app.state.vault, personal=shown),
        src_ips=_many("src_ip", src_ip),
        targets=_many("target", target),
        outcomes=_many("outcome", outcome),
        text=text,
        data=_data(data_),
        correlation_id=correlation_id,
        personal=shown,
        scope=caller.scope,
    )


_TEXTS = {
    "site": "sites", "line": "lines", "station": "stations", "type": "types", "category": "categories", "source": "sources",
    "actor": "actors", "src_ip": "src_ips", "target": "targets", "outcome": "outcomes",
}  # fmt: skip


def filter_of(query: str, scope: EventScope) -> Filter:
    """The filter that a query string means; the same names as in a request, and actors by their names. Raises Problem."""
    fields: dict[str, Any] = {"scope": scope}
    for name, values in parse_qs(query, keep_blank_values=True, strict_parsing=bool(query)).items():
        if name in _TEXTS:
            fields[_TEXTS[name]] = _many(name, values)
        elif name in ("text", "correlation_id"):
            fields[name] = values[-1]
        elif name == "data":
            fields[name] = _data(values[-1])
        elif name in FILTERS:
            fields.update(_converted(name, values))
        else:
            raise Problem(400, f"there is no filter {name!r}. Known: {', '.join(sorted(FILTERS))}", code="filter")
    return Filter(**fields)


def _converted(name: str, values: list[str]) -> dict[str, Any]:
    try:
        if name in ("from", "to"):
            return {"begin" if name == "from" else "end": moment(name, datetime.fromisoformat(values[-1]))}
        if name == "agent":
            return {"agents": tuple(map(UUID, values))}
        numbers = tuple(bounds.integer(value, 0, 9) for value in values)
    except ValueError:
        raise Problem(400, f"{name}: {', '.join(values)[:200]} cannot be read", code="filter") from None
    return {"severity_min": numbers[-1]} if name == "severity" else {"severities": numbers}


def _format(request: Request[Any, Any, Any], asked: Format | None) -> Format:
    if asked is not None:
        return asked
    accept = request.headers.get("accept", "")
    for name in ("ndjson", "csv"):
        if FORMATS[name] in accept or (name == "ndjson" and "application/ndjson" in accept):
            return "ndjson" if name == "ndjson" else "csv"
    return "json"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, Raw):
        return bytes(value).decode()
    if isinstance(value, dict):
        return msgspec.json.encode(value).decode() if value else ""
    text = str(value)
    # A spreadsheet takes such a cell for a formula, and what stands in it came from outside.
    return "'" + text if isinstance(value, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def csv_lines(found: Iterable[EventOut], *, head: bool) -> bytes:
    """Events as CSV, with the names of the columns where `head`."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    if head:
        writer.writerow(EventOut.__struct_fields__)
    for event in found:
        writer.writerow([_cell(getattr(event, name)) for name in EventOut.__struct_fields__])
    return out.getvalue().encode()


def _csv(found: Iterable[EventOut]) -> bytes:
    return csv_lines(found, head=True)


def _ndjson(found: Iterable[EventOut]) -> bytes:
    return msgspec.json.Encoder().encode_lines(list(found))


_WRITERS: dict[str, Callable[[Iterable[EventOut]], bytes]] = {"ndjson": _ndjson, "csv": _csv}


async def _page(
    request: Request[Any, Any, Any], state: State, wanted: Filter, after: str | None, order: Order, limit: int
) -> Page:
    position = decode_cursor(after, order) if after is not None else None
    try:
        rows = await events.page(state.database, wanted, after=position, order=order, limit=limit + 1)
    except BadFilter as error:
        raise Problem(400, f"a filter cannot be used: {error}", code="filter") from None
    except TooSlow as error:
        raise Problem(504, f"{error}. Narrow it: give from and to, or an agent", code="slow") from None
    found = [event_out(row, None if wanted.personal else state.vault) for row in rows[:limit]]
    if wanted.personal and (count := sum(map(personal.has_personal, found))):
        await personal.read(request, state, count)
    return Page(found, encode_cursor(position_of(rows[limit - 1]), order) if len(rows) > limit else None)


def _answer(request: Request[Any, Any, Any], page: Page, asked: Format | None) -> Response[Any]:
    chosen = _format(request, asked)
    headers = {"Cache-Control": "no-store"}
    if page.next is not None:
        # For the formats whose body has no place for it.
        query = [(key, value) for key, value in request.query_params.multi_items() if key != "after"]
        headers["Link"] = f'<{request.url.path}?{urlencode([*query, ("after", page.next)])}>; rel="next"'
        headers["Linewarden-Next"] = page.next
    body = msgspec.json.encode(page) if chosen == "json" else _WRITERS[chosen](page.events)
    return Response(body, media_type=FORMATS[chosen], headers=headers)


_After = Annotated[str | None, QueryParameter(name="after", max_length=200, description="`next` of the page before")]
_Limit = Annotated[int, QueryParameter(name="limit", ge=1, le=events.LIMIT_MAX)]


@get(
    "/v1/events",
    opt={"access": "read", "formats": ("application/x-ndjson", "text/csv")},
    responses={200: ResponseSpec(Page, generate_examples=False, description="A page of them")},
    dependencies={"wanted": Provide(provide_filter)},
    tags=["events"],
    summary="Find events",
)
async def get_events(
    request: Request[Any, Any, Any],
    state: State,
    wanted: Filter,
    after: _After = None,
    order: Order = "desc",
    limit: _Limit = 100,
    format_: Annotated[Format | None, QueryParameter(name="format", description="Instead of Accept")] = None,
) -> Response[Any]:
    """Events by filter, newest first unless asked otherwise."""
    return _answer(request, await _page(request, state, wanted, after, order, limit), format_)


@get(
    "/v1/correlations/{correlation_id:str}",
    opt={"access": "read", "formats": ("application/x-ndjson", "text/csv")},
    responses={200: ResponseSpec(Page, generate_examples=False, description="A page of them")},
    tags=["events"],
    summary="All events of one correlation id",
)
async def get_correlation(
    request: Request[Any, Any, Any],
    state: State,
    correlation_id: str,
    after: _After = None,
    limit: _Limit = 100,
    personal_: Asked = False,  # noqa: FBT002 - a parameter of the request, by its name
) -> Response[Any]:
    """In the order in which they happened."""
    caller: Caller = request.auth
    shown = caller.may_see_personal(asked=personal_)
    wanted = Filter(correlation_id=correlation_id, personal=shown, scope=caller.scope)
    return _answer(request, await _page(request, state, wanted, after, "asc", limit), None)


@get("/v1/events/{event_id:path}", opt={"access": "read"}, tags=["events"], summary="One event with its evidence")
async def get_event(
    request: Request[Any, Any, Any],
    state: State,
    event_id: str,
    personal_: Asked = False,  # noqa: FBT002 - see above
) -> EventWithEvidence:
    """By `agent_id/buffer/lane/batch_no/index`."""
    caller: Caller = request.auth
    shown = caller.may_see_personal(asked=personal_)
    identity = _identity(event_id.strip("/"))
    try:
        found = await events.one(state.database, **identity, scope=caller.scope)
    except BadFilter:
        found = None
    if found is None:
        raise Problem(404, f"there is no event {event_id.strip('/')[:200]}", code="event")
    row, evidence = found
    event = event_out(row, None if shown else state.vault)
    if shown and personal.has_personal(event):
        await personal.read(request, state, 1)
    if evidence is None:
        return EventWithEvidence(event, None)
    proven = await proof_of(state.database, evidence["batch_id"], evidence["received"], evidence["frame"])
    return EventWithEvidence(event, _evidence(evidence, identity["idx"], proven))


def _identity(text: str) -> dict[str, Any]:
    parts = text.split("/")
    numbers = parts[2:]
    if len(parts) != 5 or not all(part.isascii() and part.isdecimal() and len(part) < 20 for part in numbers):  # noqa: PLR2004
        raise Problem(400, "an event's id is agent_id/buffer/lane/batch_no/index", code="event")
    try:
        agent_id, buffer_id = UUID(parts[0]), UUID(parts[1])
    except ValueError:
        raise Problem(
            400, "an event's id begins with two UUIDs: agent_id/buffer/lane/batch_no/index", code="event"
        ) from None
    lane, no, idx = map(int, numbers)
    if lane > 1 or no >= 2**63 or idx >= 2**31:
        raise Problem(404, f"there is no event {text[:200]}", code="event")
    return {"agent_id": agent_id, "buffer_id": buffer_id, "lane": lane, "no": no, "idx": idx}


def _evidence(row: events.Record, idx: int, proven: Proven) -> EvidenceOut:
    return EvidenceOut(
        row["batch_id"], row["batch_no"], row["through"], idx, row["events"], row["hash"], row["prev"], row["received"],
        len(row["frame"]), _frame_state(row), proven,
    )  # fmt: skip


def _frame_state(row: events.Record) -> str:
    """Either "whole", or what is wrong with the stored frame."""
    try:
        frame = read_frame(row["frame"])
        frame.core_lines()
    except MalformedBatch as error:
        return f"damaged: {error}"
    return (
        "whole"
        if frame.hash == row["hash"] and frame.header.prev == row["prev"]
        else "another batch than its hash names"
    )


@get("/v1/agents", opt={"access": "read"}, tags=["agents"], summary="The fleet")
async def get_agents(request: Request[Any, Any, Any], state: State) -> Agents:
    """All agents that the key may see."""
    caller: Caller = request.auth
    database: Database = state.database
    async with database.connection() as connection:
        found = await agents.everyone(connection, caller.scope)
    return Agents([agent_out(row) for row in found])


def agent_out(row: dict[str, Any]) -> AgentOut:
    """A stored agent as it is answered."""

    def raw(name: str) -> Raw | None:
        return Raw(row[name].encode()) if row[name] is not None and bounds.excess(row[name].encode()) is None else None

    return AgentOut(**{**row, "status": raw("status"), "streams": raw("streams")})


ROUTES = [get_events, get_correlation, get_event, get_agents]
