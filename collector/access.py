"""Who may ask for what. Deny by default: a route without `opt["access"]` is closed to everybody.

A key is looked up for each request, so that taking one back works with the next request.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from collector.problems import Problem
from collector.store import keys
from collector.store.database import Database

PUBLIC = "public"
"""`access` of a route that needs no key: health."""
_READERS = ("viewer", "analyst", "auditor", "admin")
MAY: dict[str, tuple[str, ...]] = {
    "send": ("agent",),
    "read": _READERS,
    "work": ("analyst", "admin"),
    "audit": ("auditor", "admin"),
    "manage": ("admin",),
}
"""What a route's `access` asks for → the roles that have it."""

Connection = ASGIConnection[Any, Any, Any, Any]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks."""

    key: keys.Key

    @property
    def role(self) -> keys.Role:
        """The role of the key."""
        return self.key.role

    @property
    def scope(self) -> tuple[str, str, str]:
        """Site, line, station that may be read; empty: all."""
        return self.key.site, self.key.line, self.key.station

    @property
    def agent_id(self) -> UUID | None:
        """The agent that an agent's key is bound to."""
        return self.key.agent_id


async def guard(connection: Connection, handler: BaseRouteHandler) -> None:
    """The one guard of the application: sets `connection.scope["auth"]` to the Caller, or refuses."""
    access = handler.opt.get("access")
    if access == PUBLIC:
        return
    caller = await _identify(connection, connection.app.state.database)
    if access not in MAY or caller.role not in MAY[access]:
        allowed = ", ".join(MAY.get(access or "", ())) or "nobody"
        raise Problem(403, f"A key of role {caller.role} may not do this; it takes {allowed}", code="role")
    connection.scope["auth"] = caller


async def _identify(connection: Connection, database: Database) -> Caller:
    scheme, _, secret = connection.headers.get("authorization", "").partition(" ")
    challenge = {"WWW-Authenticate": 'Bearer realm="linewarden"'}
    if scheme.lower() != "bearer" or not secret.strip():
        raise Problem(401, "Give a key: Authorization: Bearer KEY", code="key", headers=challenge)
    async with database.connection() as store:
        found = await keys.find(store, secret.strip())
    if found is None:
        raise Problem(401, "There is no such key", code="key", headers=challenge)
    key, trouble = found
    if trouble:
        raise Problem(
            401,
            f"Key {key.prefix} {trouble}. Make a new one: linewarden-collector key create",
            code="key",
            headers=challenge,
        )
    return Caller(key)
