"""Whether this collector can do its duty, and its counters."""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from litestar import Request, Response, get
from litestar.datastructures import State
from msgspec import Struct

from collector.access import PUBLIC
from collector.background import TaskHealth, reasons
from collector.http_admission import Admission
from collector.ingest import Ingest
from collector.store.database import Database, StoreMisconfigured, StoreUnavailable
from collector.store.partitions import Partitions
from collector.stream import Hub

if TYPE_CHECKING:
    from collector.access import Caller
    from collector.figures import Figures

PREFIX = "linewarden_collector_"
PING_S_MAX = 3.0


class Check(Struct):
    """One of the things that have to be so."""

    ok: bool
    detail: str


class TaskOut(Struct):
    """A background task. `age_s`: since its last success; null: there was none yet."""

    ok: bool
    age_s: float | None
    restarts: int
    detail: str


class Health(Struct):
    """All of them; `ok` where every one is. `tasks`: what goes on beside requests."""

    ok: bool
    checks: dict[str, Check]
    tasks: dict[str, TaskOut]


@dataclass(slots=True)
class Condition:
    """What the background work last found. Read by /healthz, /readyz and /metrics."""

    started: float = field(default_factory=time.monotonic)
    ready: bool = False
    trouble: str = "starting"
    partitions: Partitions | None = None
    partitions_trouble: str | None = None
    tasks: Callable[[], dict[str, TaskHealth]] = dict
    """How the background tasks are."""
    checkpoints: Callable[[], tuple[bool, str]] | None = None
    """Where they are made: whether all is well with them, and what there is to say."""

    def partitions_check(self, today: date) -> Check:
        """Whether there is a place for what comes tomorrow."""
        found = self.partitions
        if self.partitions_trouble is not None:
            return Check(ok=False, detail=self.partitions_trouble)
        if found is None or found.through is None:
            return Check(ok=False, detail="there are no partitions yet")
        if found.through < today + timedelta(days=1):
            return Check(ok=False, detail=f"partitions end on {found.through}. Run: linewarden-collector db partition")
        if found.stray:
            return Check(
                ok=False,
                detail=f"{found.stray} rows lie in a default partition. Run: linewarden-collector db partition",
            )
        return Check(ok=True, detail=f"{found.days} days, through {found.through}")


async def look(database: Database, condition: Condition) -> Health:
    """Ask everything."""
    checks = {"process": Check(ok=True, detail=f"up {time.monotonic() - condition.started:.0f} s")}
    if not condition.ready:
        checks["database"] = Check(ok=False, detail=condition.trouble)
    else:
        try:
            async with asyncio.timeout(PING_S_MAX):
                await database.ping()
            checks["database"] = Check(ok=True, detail="answers")
        except (StoreUnavailable, StoreMisconfigured, TimeoutError) as error:
            checks["database"] = Check(ok=False, detail=str(error) or f"no answer within {PING_S_MAX:g} s")
        checks["partitions"] = condition.partitions_check(datetime.now(UTC).date())
    if condition.checkpoints is not None:
        ok, detail = condition.checkpoints()
        checks["checkpoints"] = Check(ok=ok, detail=detail)
    tasks = condition.tasks()
    wrong = reasons(tasks.items())
    checks["background"] = Check(ok=not wrong, detail=wrong or f"{len(tasks)} tasks run")
    told = {name: TaskOut(one.ok, one.age_s, one.restarts, one.detail) for name, one in tasks.items()}
    return Health(all(check.ok for check in checks.values()), checks, told)


def _answer(health: Health) -> Response[Health]:
    return Response(health, status_code=200 if health.ok else 503, headers={"Cache-Control": "no-store"})


@get("/healthz", opt={"access": PUBLIC}, tags=["health"], summary="Whether the collector can do its duty")
async def healthz(state: State) -> Response[Health]:
    """200, or 503 with what is wrong."""
    return _answer(await look(state.database, state.condition))


_NOT_READINESS = ("partitions", "checkpoints", "background")


@get("/readyz", opt={"access": PUBLIC}, tags=["health"], summary="Whether to send requests here")
async def readyz(state: State) -> Response[Health]:
    """200 where a batch would be taken now. Partitions may be missing: what finds none is caught; a checkpoint and alerts may wait."""
    health = await look(state.database, state.condition)
    checks = {name: check for name, check in health.checks.items() if name not in _NOT_READINESS}
    return _answer(Health(all(check.ok for check in checks.values()), checks, health.tasks))


async def metrics(request: Request[Any, Any, Any], state: State) -> Response[str]:
    """In the text format 0.0.4. It counts everything there is, so it takes a caller who may see every place, unless it is open."""
    if request.route_handler.opt["access"] != PUBLIC:
        caller: Caller = request.auth
        caller.must_see_all()
    ingest: Ingest = state.ingest
    hub: Hub = state.hub
    figures: Figures = state.figures
    families = await figures.families(ready=state.condition.ready)
    told = (line for family in families for line in _metric(*family))
    connections: Admission | None = state.get("connections")
    doors = _connection_lines(connections) if connections is not None else ()
    text = "".join(f"{line}\n" for line in [*_lines(ingest, state.condition), *_stream_lines(hub), *doors, *told])
    return Response(text, media_type="text/plain; version=0.0.4")


def _metric(name: str, kind: str, meaning: str, values: Iterable[tuple[str, Any]]) -> Iterable[str]:
    yield f"# HELP {PREFIX}{name} {meaning}"
    yield f"# TYPE {PREFIX}{name} {kind}"
    for labels, value in values:
        yield f"{PREFIX}{name}{labels} {value}"


_OUTCOMES = (
    "stored",
    "missing",
    "forked",
    "malformed",
    "toolarge",
    "slow",
    "busy",
    "unavailable",
    "forbidden",
    "agent",
)


def _lines(ingest: Ingest, condition: Condition) -> Iterable[str]:
    counts = ingest.counts
    outcomes = [(f'{{outcome="{name}"}}', counts.outcomes[name]) for name in sorted({*_OUTCOMES, *counts.outcomes})]
    yield from _metric("requests_total", "counter", "Requests to store batches, by outcome", outcomes)
    by_kind = [(f'{{kind="{name}"}}', counts.batches[name]) for name in ("new", "again")]
    yield from _metric(
        "batches_total", "counter", "Batches of accepted requests: stored now, or stored before", by_kind
    )
    yield from _metric("events_total", "counter", "Events stored", [("", counts.events)])
    yield from _metric(
        "request_bytes_total", "counter", "Bytes of requests to store batches, as sent", [("", counts.bytes)]
    )
    yield from _metric(
        "careful_total", "counter", "Requests with a value that jsonb cannot hold", [("", counts.careful)]
    )
    yield from _metric(
        "store_seconds_total", "counter", "Time spent on accepted requests", [("", round(counts.seconds, 6))]
    )
    yield from _metric("held_bytes", "gauge", "Bytes of requests in work now", [("", ingest.held_bytes)])
    yield from _metric(
        "ready", "gauge", "Whether the database was reached and is migrated", [("", int(condition.ready))]
    )
    tasks = condition.tasks()
    ages = [(f'{{task="{name}"}}', one.age_s) for name, one in tasks.items() if one.age_s is not None]
    yield from _metric("task_age_seconds", "gauge", "Since the last success of a background task", ages)
    ends = [(f'{{task="{name}"}}', one.restarts) for name, one in tasks.items()]
    yield from _metric(
        "task_restarts_total", "counter", "How often a background task ended and was started again", ends
    )
    found = condition.partitions
    if found is not None:
        yield from _metric("partitions_days", "gauge", "Days that have partitions", [("", found.days)])
        yield from _metric("stray_rows", "gauge", "Rows that found no partition of their day", [("", found.stray)])


def _stream_lines(hub: Hub) -> Iterable[str]:
    yield from _metric("streams", "gauge", "Clients of live streams", [("", hub.clients)])
    yield from _metric("stream_events_total", "counter", "Events handed to live streams", [("", hub.counts.events)])
    yield from _metric(
        "stream_skipped_total", "counter", "Events that slow clients were told of only", [("", hub.counts.skipped)]
    )
    yield from _metric(
        "stream_unread_total",
        "counter",
        "Events that could not be shown and were passed over",
        [("", hub.counts.unread)],
    )


_CONNECTIONS = (
    "accepted",
    "refused",
    "evicted",
    "handshake",
    "stalled",
    "slow",
    "header",
    "target",
    "http",
    "descriptors",
)


def _connection_lines(connections: Admission) -> Iterable[str]:
    yield from _metric("connections", "gauge", "Open connections", [("", len(connections))])
    yield from _metric(
        "connections_unproven", "gauge", "Open connections that have shown no credential", [("", connections.unproven)]
    )
    counts = connections.counts
    outcomes = [(f'{{outcome="{name}"}}', counts[name]) for name in sorted({*_CONNECTIONS, *counts})]
    meaning = "Connections, and requests refused before the application, by what became of them"
    yield from _metric("connections_total", "counter", meaning, outcomes)


@get("/", opt={"access": PUBLIC}, include_in_schema=False, media_type="text/html")
async def front() -> Response[str]:
    """Where to go from here."""
    return Response(_FRONT, media_type="text/html", headers={"Content-Security-Policy": "default-src 'none'"})


_FRONT = """<!doctype html><html lang="en"><title>Linewarden collector</title>
<h1>Linewarden collector</h1><p>The API is described at <a href="/schema">/schema</a>;
its health is at <a href="/healthz">/healthz</a>.</p></html>
"""


def routes(*, metrics_open: bool) -> list[Any]:
    """Return the routes. `metrics_open`: whether anybody may read /metrics."""
    shown = get("/metrics", opt={"access": PUBLIC if metrics_open else "read"}, tags=["health"], summary="Counters for Prometheus",
                media_type="text/plain")(metrics)  # fmt: skip
    return [healthz, readyz, shown, front]
