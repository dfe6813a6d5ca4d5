"""GET /v1/analytics/…: reads counts, computes in a thread, answers in the frame that all share.

At most COMPUTE_MAX compute at a time, others wait up to WAIT_S and are then told to come again. What computes longer than COMPUTE_S is
answered 504; its thread ends by itself, since the size of every input is bounded, and keeps its turn until then.

Users are pseudonyms wherever they appear, for everybody. Addresses are answered to those who may see personal data, and not to viewers.
Whoever asks about users or addresses is recorded first.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

from litestar import Request, get
from litestar.datastructures import State
from litestar.di import Provide
from litestar.params import QueryParameter
from msgspec import Meta

from collector import audit
from collector.analytics.answer import Analysis, AnswerOut, Asked, BadQuestion, Insufficient
from collector.analytics.registry import ANALYSES
from collector.problems import Problem
from collector.query import provide_filter
from collector.store import analytics_read
from collector.store.analytics_read import STEPS, Span, Step
from collector.store.events import BadFilter, Filter, TooSlow
from collector.store.rollups import TooMany

if TYPE_CHECKING:
    from collector.access import Caller
    from collector.store.database import Database

COMPUTE_MAX, COMPUTE_S, WAIT_S = 2, 30.0, 10.0
STEPS_MAX = 20_000
HORIZON_MAX = 168
LAST: dict[str, tuple[timedelta, Step]] = {
    "1h": (timedelta(hours=1), "10min"), "24h": (timedelta(days=1), "hour"), "7d": (timedelta(days=7), "day"),
}  # fmt: skip
ALWAYS = frozenset({"from", "to", "site", "line", "station"})
_PEOPLE = ("user", "address")


class Turns:
    """Who may compute now."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(COMPUTE_MAX)

    async def run(self, work: Callable[[], Any]) -> Any:
        """Compute in a thread. Raises Problem where it takes too long, or where too many compute."""
        try:
            await asyncio.wait_for(self._free.acquire(), WAIT_S)
        except TimeoutError:
            raise Problem(
                503, "too many analyses are computed now", code="busy", headers={"Retry-After": "5"}
            ) from None
        task = asyncio.create_task(asyncio.to_thread(work))
        task.add_done_callback(self._done)
        done, _ = await asyncio.wait({task}, timeout=COMPUTE_S)
        if not done:
            raise Problem(504, f"computing took longer than {COMPUTE_S:g} s. Narrow it: a shorter period", code="slow")
        return task.result()

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._free.release()
        if not task.cancelled():
            # Looked at, so that one that failed after nobody waited for it any more is not complained of.
            task.exception()


def _floor(moment: datetime, step: Step) -> datetime:
    width = STEPS[step]
    return datetime(1970, 1, 1, tzinfo=UTC) + (moment - datetime(1970, 1, 1, tzinfo=UTC)) // width * width


def _chosen(name: str, value: str | None, allowed: tuple[str, ...]) -> str | None:
    if value is not None and value not in allowed:
        raise Problem(
            400, f"{name}={value} does not go with this analysis. It takes {', '.join(allowed)}", code="filter"
        )
    return value if value is not None else (allowed[0] if allowed else None)


def _span(analysis: Analysis, wanted: Filter, step: Step, length: timedelta) -> Span:
    """Whole steps that have ended: one that goes on would look like a fall."""
    end = _floor(wanted.end or datetime.now(UTC), step)
    # What is counted by the day is asked for by the day.
    begin = _floor(wanted.begin, step) if wanted.begin is not None else end - length
    if analysis.name == "sequences":
        begin, end = _floor(begin, "day"), _floor(end - timedelta(microseconds=1), "day") + timedelta(days=1)
    if begin >= end:
        raise Problem(400, f"from has to be a {step} before to: steps that have not ended are left out", code="filter")
    if (end - begin) / STEPS[step] > STEPS_MAX:
        raise Problem(
            400, f"more than {STEPS_MAX} steps of {step}. Give a longer step, or a shorter period", code="filter"
        )
    return Span(wanted=replace(wanted, begin=None, end=None), begin=begin, end=end)


async def _permit(request: Request[Any, Any, Any], state: State, analysis: Analysis, subject: str | None) -> None:
    if subject not in _PEOPLE:
        return
    caller: Caller = request.auth
    if subject == "address" and caller.role == "viewer":
        raise Problem(
            403, "addresses are personal data: this takes one of the roles analyst, auditor, admin", code="personal"
        )
    database: Database = state.database
    async with database.connection() as connection, connection.transaction():
        data = {"analysis": analysis.name, "about": subject, "period": [_text(request, "from"), _text(request, "to")]}
        await audit.record(connection, caller.who, "analytics.read", target=request.url.path, data=data)


def _text(request: Request[Any, Any, Any], name: str) -> str:
    return str(request.query_params.get(name, ""))[:100]


@contextlib.asynccontextmanager
async def _refusals() -> AsyncIterator[None]:
    """What a question can be refused for, as problems."""
    try:
        yield
    except (BadFilter, TooMany, BadQuestion) as error:
        raise Problem(400, f"{error}. Narrow it: a shorter period, a longer step, a site", code="filter") from None
    except TooSlow as error:
        raise Problem(504, f"{error}. Narrow it: a shorter period, a site", code="slow") from None
    except OverflowError:
        raise Problem(400, "from, to: beyond the calendar", code="filter") from None


async def answer(database: "Database", turns: Turns, analysis: Analysis, asked: Asked) -> AnswerOut:
    """The answer to what is asked."""
    since = await analytics_read.first_hour(database, asked.span)
    asked = replace(asked, since=since)
    inputs = {"tables": analysis.source, "counts_since": since, "step": asked.step, **_given(asked)}
    span = asked.span
    if analysis.name == "maintenance" and asked.limit is None:
        inputs["limit"] = None
    data = await analysis.gather(database, asked)
    try:
        found = await turns.run(lambda: analysis.compute(data, asked))
    except Insufficient as error:
        return AnswerOut(analysis.name, "insufficient data", [f"it takes {error}"], "none", analysis.version, span.begin, span.end, inputs,
                         error.sample, {}, {})  # fmt: skip
    return AnswerOut(analysis.name, "ok", [], found.method, analysis.version, span.begin, span.end, {**inputs, **found.inputs},
                     found.sample, found.uncertainty, found.result)  # fmt: skip


def _given(asked: Asked) -> dict[str, Any]:
    return {name: value for name in ("dimension", "per") if (value := getattr(asked, name)) is not None}


Dimension = Literal["type", "category", "severity", "source", "outcome", "site", "line", "station", "user", "address"]
Per = Literal["station", "line", "site", "user", "address", "source"]


def _route(analysis: Analysis) -> Any:
    parameters = set(analysis.parameters)
    parameters |= {"dimension"} if analysis.dimensions else set()
    parameters |= {"per"} if analysis.pers else set()
    parameters |= {"step"} if len(analysis.steps) > 1 else set()

    @get(
        f"/v1/analytics/{analysis.name}",
        opt={"access": "read", "filters": ALWAYS | analysis.filters, "parameters": frozenset(parameters)},
        dependencies={"wanted": Provide(provide_filter)},
        tags=["analytics"],
        summary=analysis.summary,
        operation_id=f"analytics_{analysis.name}",
    )
    async def handler(
        request: Request[Any, Any, Any],
        state: State,
        wanted: Filter,
        dimension: Annotated[Dimension | None, QueryParameter(name="dimension")] = None,
        per: Annotated[Per | None, QueryParameter(name="per")] = None,
        step: Annotated[Step | None, QueryParameter(name="step")] = None,
        last: Annotated[Literal["1h", "24h", "7d"] | None, QueryParameter(name="last")] = None,
        signal: Annotated[list[Annotated[str, Meta(max_length=200)]] | None, QueryParameter(name="signal")] = None,
        limit: Annotated[
            float | None, QueryParameter(name="limit", description="What the signal must not reach")
        ] = None,
        of: Annotated[Literal["volume", "load"], QueryParameter(name="of")] = "volume",
        horizon: Annotated[
            int, QueryParameter(name="horizon", ge=1, le=HORIZON_MAX, description="Hours: looked at, or ahead")
        ] = 24,
    ) -> AnswerOut:
        length, width = LAST[last] if last is not None else (analysis.default, analysis.step)
        chosen = step or width
        about, of_whom = _chosen("dimension", dimension, analysis.dimensions), _chosen("per", per, analysis.pers)
        _check(chosen, about, wanted, signal)
        async with _refusals():
            span = _span(analysis, wanted, chosen, length)
            await _permit(request, state, analysis, of_whom or about)
            asked = Asked(
                span=span, step=chosen, dimension=about, per=of_whom, signals=tuple(signal or ()), limit=limit, of=of, horizon=horizon
            )  # fmt: skip
            return await answer(state.database, state.turns, analysis, asked)

    return handler


def _check(step: Step, about: str | None, wanted: Filter, signal: "list[str] | None") -> None:
    if step == "10min" and about in ("category", "outcome", *_PEOPLE):
        raise Problem(400, f"{about} is not counted by ten minutes. Take step=hour", code="filter")
    if about in _PEOPLE and wanted.sources:
        raise Problem(400, "users and addresses are not counted by source. Leave source out", code="filter")
    if len(signal or ()) > 100:  # noqa: PLR2004
        raise Problem(400, "signal: at most 100", code="filter")


ROUTES: list[Any] = [_route(analysis) for analysis in ANALYSES.values()]
