"""Compliance: what each requirement asks, what backs it, and what this installation has really recorded of it in a period.

The product supports requirements; it is certified for none, and no number here says so. A requirement is

    supported     a test backs it, the look at this installation finds nothing against it, and its types were recorded
    no record     as above, but nothing of the types that it rests on was recorded in the period
    unmet         no test backs it, or something here speaks against it: `why` says what, and what to do
    outside       for something else than this product
"""

import html as html_
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.di import Provide
from litestar.params import QueryParameter
from msgspec import Struct

from agent.wire.taxonomy import lookup
from collector.compliance_table import OUTSIDE, REQUIREMENTS, SP, STANDARDS, Requirement, tags
from collector.metrics import period_of
from collector.problems import Problem
from collector.query import provide_filter
from collector.store import agents, analytics_compliance, analytics_read
from collector.store.analytics_compliance import Recorded
from collector.store.analytics_read import Span
from collector.store.events import BadFilter, Filter, Scope, TooSlow
from collector.store.rollups import TooMany

if TYPE_CHECKING:
    from collector.access import Caller
    from collector.config import Settings
    from collector.store.database import Database

Standing = Literal["supported", "no record", "unmet", "outside"]
DEFAULT = timedelta(days=30)
CHECKPOINT_AGE_MAX = timedelta(days=2)
DISCLAIMER = (
    "This report says what the product supports and what this installation has recorded. It is no certificate, and no assessment by "
    "one who may give it."
)


class RequirementOut(Struct):
    """One requirement. `stations`: at how many of the fleet's its types were recorded."""

    standard: str
    requirement: str
    title: str
    standing: Standing
    why: str
    does: str
    types: list[str]
    tests: list[str]
    events: int
    types_recorded: list[str]
    stations: int
    last: datetime | None


class Fleet(Struct):
    """What was recorded in the period beside events."""

    agents: int
    agents_silent: int
    agents_enrolled: int
    clocks_off: int
    stations: int
    gaps: int
    events_lost: int
    gaps_of_unknown_size: int
    forks: int
    audit_records: int
    last_checkpoint: datetime | None
    erasures: int


class Report(Struct):
    """The whole."""

    made: datetime
    begin: datetime
    end: datetime
    note: str
    fleet: Fleet
    counts: dict[str, dict[str, int]]
    requirements: list[RequirementOut]


def _tls(settings: "Settings", _: Recorded) -> str:
    if settings.server.certificate_file is None:
        return "TLS is off: [server] certificate_file is not given. If a proxy in front ends TLS, this has to be shown for the proxy"
    return ""


def _retention(settings: "Settings", _: Recorded) -> str:
    return "" if settings.retention.anything else "nothing ever leaves: give [retention] days, or rules"


def _checkpoints(settings: "Settings", found: Recorded) -> str:
    if found.checkpoint is None or datetime.now(UTC) - found.checkpoint > CHECKPOINT_AGE_MAX:
        return (
            "no checkpoint of the last two days: give [evidence] key_file, and see linewarden-collector checkpoint list"
        )
    if not settings.evidence.targets:
        return "checkpoints stay on this computer: give [evidence] targets"
    return ""


def _agents(_: "Settings", found: Recorded) -> str:
    if not found.agents:
        return "no agent has ever sent anything"
    return f"{found.silent} of {found.agents} agents were not heard of for a day" if found.silent else ""


def _gaps(settings: "Settings", found: Recorded) -> str:
    if found.gaps:
        more = f", {_many(found.unknown, 'gap')} of unknown size" if found.unknown else ""
        return f"declared in the period: {_many(found.gaps, 'gap')}, {_many(found.lost, 'event')} lost{more}. See them: type=collection.gap"
    return _agents(settings, found)


def _clocks(settings: "Settings", found: Recorded) -> str:
    if found.clocks_off:
        return f"the clocks of {found.clocks_off} agents are off by more than a minute: see /v1/agents"
    return _agents(settings, found)


def _signed(settings: "Settings", found: Recorded) -> str:
    if found.enrolled < found.agents:
        return f"not enrolled, so that their batches are not signed: {found.agents - found.enrolled} of {_many(found.agents, 'agent')}"
    return _agents(settings, found)


def _audit(_: "Settings", found: Recorded) -> str:
    return "" if found.audit_records else "the audit log has no record of the period"


CHECKS: dict[str, Callable[["Settings", Recorded], str]] = {
    "none": lambda _settings, _found: "", "tls": _tls, "retention": _retention, "checkpoints": _checkpoints, "agents": _agents,
    "gaps": _gaps, "clocks": _clocks, "signed": _signed, "audit": _audit,
}  # fmt: skip
"""Looks at an installation: what speaks against a requirement, or nothing."""


class _Seen(Struct):
    events: int = 0
    stations: set[str] = set()
    last: datetime | None = None


async def report(database: "Database", settings: "Settings", scope: Scope, begin: datetime, end: datetime) -> Report:
    """The report of a period. Raises TooMany, TooSlow."""
    span = Span(wanted=Filter(scope=scope), begin=begin, end=end)
    counted = await analytics_read.of_whom(database, span, "station")
    days = await analytics_read.series(database, span, "day", "type")
    async with database.connection() as connection:
        found = await analytics_compliance.recorded(connection, scope, begin, end)
        await analytics_compliance.sync_tags(connection, tags())
        fleet = await agents.everyone(connection, scope)
    seen: dict[str, _Seen] = {}
    for station, type_, _, events, _ in counted:
        one = seen.setdefault(lookup(type_).name, _Seen())
        one.events += events
        one.stations.add(station)
    for bucket, type_, _ in days:
        if (known := seen.get(lookup(type_).name)) is not None:
            known.last = max(known.last or bucket, bucket)
    backing: dict[tuple[str, str], list[str]] = {}
    for standard, number, type_ in tags():
        backing.setdefault((standard, number), []).append(type_)
    rows = [
        _judged(each, backing.get((each.standard, each.number), []), seen, settings, found) for each in REQUIREMENTS
    ]
    counts: dict[str, dict[str, int]] = {standard: {} for standard in STANDARDS}
    for row in rows:
        counts[row.standard][row.standing] = counts[row.standard].get(row.standing, 0) + 1
    stations = {(row["site"], row["line"], row["station"]) for row in fleet}
    return Report(datetime.now(UTC), begin, end, DISCLAIMER, _fleet(found, len(stations)), counts, rows)


def _judged(
    asked: Requirement, types: list[str], seen: dict[str, _Seen], settings: "Settings", found: Recorded
) -> RequirementOut:
    mine = {name: seen[name] for name in types if name in seen}
    standing: Standing = "supported"
    if asked.check == OUTSIDE:
        standing, why = "outside", "not the business of this product"
    elif not asked.tests:
        standing, why = "unmet", "no test backs it"
    elif why := CHECKS[asked.check](settings, found):
        standing = "unmet"
    elif types and not mine:
        standing, why = "no record", "none of its types of events was recorded in the period"
    stations = set().union(*(one.stations for one in mine.values())) if mine else set()
    return RequirementOut(
        asked.standard, asked.name, asked.title, standing, why, asked.does, types, list(asked.tests),
        sum(one.events for one in mine.values()), sorted(mine), len(stations),
        max((one.last for one in mine.values() if one.last is not None), default=None),
    )  # fmt: skip


def _fleet(found: Recorded, stations: int) -> Fleet:
    return Fleet(
        found.agents, found.silent, found.enrolled, found.clocks_off, stations, found.gaps, found.lost, found.unknown, found.forks,
        found.audit_records, found.checkpoint, found.erasures,
    )  # fmt: skip


# ── as HTML ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_STYLE = """
:root{color-scheme:light}*{box-sizing:border-box}
body{font:14px/1.45 system-ui,"Segoe UI",Roboto,sans-serif;color:#1c2430;background:#fff;max-width:1180px;margin:0 auto;padding:28px 24px}
h1{font-size:24px;margin:0 0 4px}h2{font-size:18px;margin:32px 0 8px;border-bottom:2px solid #1c2430;padding-bottom:4px}
.note{background:#f3f5f8;border-left:4px solid #5b6b82;padding:10px 14px;margin:16px 0}
table{border-collapse:collapse;width:100%;table-layout:fixed}th{text-align:left;font-weight:600;background:#f3f5f8}
td,th{padding:7px 9px;border-bottom:1px solid #d9dee6;vertical-align:top;overflow-wrap:anywhere}
thead{display:table-header-group}tr{break-inside:avoid}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(170px,1fr));gap:10px}
.facts div{border:1px solid #d9dee6;border-radius:6px;padding:8px 12px}
.facts b{display:block;font-size:18px;font-variant-numeric:tabular-nums}
.s{display:inline-block;padding:1px 8px;border-radius:10px;font-size:12px;font-weight:600;white-space:nowrap;border:1px solid}
.supported{color:#0b5d34;background:#e5f5ec;border-color:#8fcfae}.unmet{color:#8c1d18;background:#fdeceb;border-color:#e5a19d}
.norecord{color:#7a4b00;background:#fff3dc;border-color:#e2bd7b}.outside{color:#4a5568;background:#eef1f5;border-color:#b9c2cf}
.why{color:#8c1d18}.small{font-size:12px;color:#4a5568}details{margin-top:4px}summary{cursor:pointer;font-size:12px;color:#34507a}
details ul{margin:4px 0 0;padding-left:18px;font:11px/1.5 ui-monospace,Consolas,monospace}
.c1{width:11%}.c2{width:17%}.c3{width:11%}.c4{width:36%}.c5{width:25%}
@media print{body{max-width:none;padding:0;font-size:11px}h2{break-after:avoid}.facts{grid-template-columns:repeat(4,1fr)}}
@page{size:A4 landscape;margin:14mm}
"""


def html(found: Report) -> str:
    """The report as a page that needs nothing else, to be read and printed."""
    sections = "".join(
        _section(standard, [row for row in found.requirements if row.standard == standard], found.counts[standard])
        for standard in STANDARDS
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Compliance report</title><style>{_STYLE}</style></head><body><h1>Compliance report</h1>"
        f'<div class="small">Events of {_time(found.begin)} to {_time(found.end)}, made {_time(found.made)}</div>'
        f'<p class="note">{_text(found.note)}</p><div class="facts">{_facts(found.fleet)}</div>{sections}</body></html>'
    )


def _many(count: int, thing: str) -> str:
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def _text(value: Any) -> str:
    return html_.escape(str(value))


def _time(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"


def _facts(fleet: Fleet) -> str:
    names = {
        "agents": "agents", "agents_silent": "not heard of for a day", "agents_enrolled": "enrolled, so signing",
        "clocks_off": "clocks off by a minute",
        "stations": "stations", "gaps": "gaps declared", "events_lost": "events known to be lost",
        "gaps_of_unknown_size": "gaps of unknown size",
        "forks": "forked chains", "audit_records": "audit records", "erasures": "erasures asked for, ever",
    }  # fmt: skip
    shown = "".join(f"<div><b>{getattr(fleet, name):,}</b>{_text(text)}</div>" for name, text in names.items())
    return f"{shown}<div><b>{_time(fleet.last_checkpoint)}</b>last checkpoint</div>"


def _section(standard: str, rows: list[RequirementOut], counts: dict[str, int]) -> str:
    told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
    head = "".join(
        f'<th class="c{index}">{name}</th>'
        for index, name in enumerate(("Requirement", "Title", "Here", "What the product does", "Recorded"), 1)
    )
    body = "".join(map(_line, rows))
    extra = '<p class="small">Named by the section of the guide that they are about.</p>' if standard == SP else ""
    title = f'<h2>{_text(standard)}</h2><p class="small">{_text(told)}</p>{extra}'
    return f"{title}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _line(row: RequirementOut) -> str:
    why = f'<div class="why">{_text(row.why)}</div>' if row.why and row.standing in ("unmet", "no record") else ""
    if row.types:
        recorded = (
            f"{_many(row.events, 'event')} of {len(row.types_recorded)} of {_many(len(row.types), 'type')}, "
            f"at {_many(row.stations, 'station')}"
            + (f", last on {row.last:%Y-%m-%d}<details><summary>types</summary>{_list(row.types_recorded)}</details>" if row.last else "")
        )  # fmt: skip
    else:
        recorded = '<span class="small">no type of event is about it</span>'
    tests = (
        f"<details><summary>{_many(len(row.tests), 'test')}</summary>{_list(row.tests)}</details>" if row.tests else ""
    )
    return (
        f'<tr><td><b>{_text(row.requirement)}</b></td><td>{_text(row.title)}</td><td><span class="s {row.standing.replace(" ", "")}">'
        f"{_text(row.standing)}</span></td><td>{_text(row.does)}{why}{tests}</td><td>{recorded}</td></tr>"
    )


def _list(items: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(item)}</li>' for item in items)}</ul>"


# ── over HTTP ────────────────────────────────────────────────────────────────────────────────────────────────────────


@get(
    "/v1/compliance",
    opt={
        "access": "audit",
        "filters": frozenset({"from", "to"}),
        "parameters": frozenset({"format"}),
        "formats": ("text/html",),
    },
    dependencies={"wanted": Provide(provide_filter)},
    tags=["compliance"],
    summary="What requirements ask, what backs them, what was recorded here",
)
async def get_compliance(
    request: Request[Any, Any, Any],
    state: State,
    wanted: Filter,
    format_: Annotated[Literal["json", "html"], QueryParameter(name="format")] = "json",
) -> Response[Any]:
    """The last 30 days unless asked otherwise. Agents, gaps and events are those that the caller may see."""
    caller: Caller = request.auth
    begin, end = period_of(wanted, datetime.now(UTC), DEFAULT)
    try:
        found = await report(state.database, state.settings, caller.scope, begin, end)
    except (TooMany, BadFilter) as error:
        raise Problem(400, f"{error}. Narrow it: a shorter period", code="filter") from None
    except TooSlow as error:
        raise Problem(504, f"{error}. Narrow it: a shorter period", code="slow") from None
    headers = {"Cache-Control": "no-store"}
    if format_ == "html":
        headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'"
        return Response(html(found).encode(), media_type="text/html; charset=utf-8", headers=headers)
    return Response(found, headers=headers)


ROUTES: list[Any] = [get_compliance]
