"""What a request may hold, whatever route it is for: JSON within the bounds, text that is UTF-8, moments that can be computed with."""

from datetime import UTC, datetime
from typing import Any

from litestar import Request

from agent.wire import bounds
from collector.problems import Problem

LATEST = datetime(9999, 12, 30, tzinfo=UTC)
"""So far from the end of the calendar that every time zone still has a date for it."""


async def before_request(request: Request[Any, Any, Any]) -> None:
    """Refuse a body that no handler should see. Raises Problem. A route that reads its body as a stream bounds it by itself."""
    if "data" not in request.route_handler.parsed_fn_signature.parameters:
        return
    body = await request.body()
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise Problem(400, f"the body is not UTF-8: byte {error.start}", code="malformed") from None
    if (reason := bounds.excess(body)) is not None:
        raise Problem(400, f"the body is {reason}", code="deep")


def moment(name: str, value: datetime | None) -> datetime | None:
    """Return a moment of a request in UTC; without a time zone it is UTC. Raises Problem where it is none to compute with."""
    if value is None:
        return None
    try:
        found = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except (OverflowError, ValueError):
        found = None
    if found is None or found > LATEST:
        raise Problem(
            400, f"{name}: {value.isoformat()} is beyond the calendar; the latest is {LATEST:%Y-%m-%d}", code="filter"
        )
    return found
