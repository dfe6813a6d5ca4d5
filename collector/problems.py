"""Every error that leaves the collector is an RFC 9457 problem: what, where, and what to do; never a traceback."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException

from collector.store.database import StoreMisconfigured, StoreUnavailable, TooManyReads

_log = logging.getLogger("linewarden.collector")

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2
"""What a client is asked to wait while the database is away. Agents add a jitter of their own."""


class Problem(Exception):
    """An answer that is not the one that was asked for. `code`: of collector/codes.py; `members` are added to the problem object."""

    def __init__(
        self, status: int, detail: str, *, code: str = "", headers: Mapping[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.code = code
        self.headers = dict(headers or {})
        self.members = members


def _answer(problem: Problem) -> Response[bytes]:
    title = HTTPStatus(problem.status).phrase
    body: dict[str, Any] = {"type": "about:blank", "title": title, "status": problem.status, "detail": problem.detail}
    if problem.code:
        body["type"] = f"urn:linewarden:problem:{problem.code}"
        body["code"] = problem.code
    content = msgspec.json.encode({**body, **problem.members})
    return Response(content, status_code=problem.status, media_type=MEDIA_TYPE, headers=problem.headers)


def of_problem(_: Request[Any, Any, Any], error: Problem) -> Response[bytes]:
    """Our own."""
    return _answer(error)


def away(error: StoreUnavailable) -> Problem:
    """The database is away: come again."""
    _log.warning("answered 503: %s", error)
    return Problem(503, str(error), code="store", headers={"Retry-After": str(RETRY_AFTER_S)})


def of_store(_: Request[Any, Any, Any], error: StoreUnavailable) -> Response[bytes]:
    """The same, as an answer."""
    return _answer(away(error))


def of_misconfigured(_: Request[Any, Any, Any], error: StoreMisconfigured) -> Response[bytes]:
    """The database refuses us: a person has to look, and the client has to come again."""
    _log.error("%s", error)
    return _answer(Problem(503, str(error), code="store", headers={"Retry-After": "30"}))


def of_reads(_: Request[Any, Any, Any], error: TooManyReads) -> Response[bytes]:
    """One key or user asks for too much at once: others have their turn."""
    text = f"{error}; come again later, or ask for less at once"
    return _answer(Problem(429, text, code="rate", headers={"Retry-After": str(RETRY_AFTER_S)}))


def of_http(_: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """The framework's: not found, method not allowed, a parameter that does not fit."""
    members: dict[str, Any] = {}
    detail = error.detail
    if isinstance(error, ValidationException) and isinstance(error.extra, list):
        # An argument that would hide a name of Python's is written with a _ behind: `from_` is the parameter `from`.
        members["errors"] = [
            {"key": item.get("key", "").rstrip("_"), "message": item.get("message", "")} for item in error.extra
        ]
        detail = "; ".join(f"{item['key']}: {item['message']}" for item in members["errors"]) or detail
    return _answer(Problem(error.status_code, detail, headers=dict(error.headers or {}), **members))


def of_deep(_: Request[Any, Any, Any], error: RecursionError) -> Response[bytes]:
    """A body that is nested without end."""
    del error
    return _answer(Problem(400, "the body is nested too deep", code="deep"))


def of_defect(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Ours to mend. The log has the traceback; the client does not."""
    _log.error("defect in %s %s", request.method, request.url.path, exc_info=error)
    return _answer(Problem(500, "The collector has a defect; its log says where. Nothing was stored.", code="defect"))


HANDLERS: dict[type[Exception] | int, Any] = {
    Problem: of_problem,
    StoreUnavailable: of_store,
    StoreMisconfigured: of_misconfigured,
    TooManyReads: of_reads,
    HTTPException: of_http,
    RecursionError: of_deep,
    Exception: of_defect,
}
