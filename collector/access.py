"""Who may ask for what. Deny by default: a route without `opt["access"]` is closed to everybody.

A caller shows a key (`Authorization: Bearer`) or the cookie of a session. Either is looked up for each request, so that taking one back,
shutting out a user or changing what they may see holds from the next request on; `still` says so to those that read a stream.

A browser sends a cookie with whatever request any page makes it send. So the cookie is `SameSite=Strict`, a request that changes something
needs the session's token in a header as well, and one that names another origin is refused.
"""

import hashlib
import hmac
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from agent.wire.signature import HEADER
from collector import enrol_signature
from collector.audit import Refusals, Who
from collector.http_admission import prove
from collector.limits import networks_of
from collector.problems import Problem
from collector.store import keys, sessions
from collector.store.database import Database, read_for
from collector.store.events import ALL, Scope, contains

if TYPE_CHECKING:
    from collector.limits import Known, Rates

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
PERSONAL = ("analyst", "auditor", "admin")
"""Roles that may see personal data as it is, when they ask for it."""
COOKIE = "__Host-linewarden"
CSRF_HEADER = "linewarden-csrf"
_SAFE = ("GET", "HEAD", "OPTIONS")
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="linewarden"'}

Connection = ASGIConnection[Any, Any, Any, Any]
Networks = tuple[IPv4Network | IPv6Network, ...]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a key, or a user by way of a session."""

    name: str
    """What the caller is called in records: the prefix of a key, the name of a user."""
    role: keys.Role
    scope: Scope
    """What may be seen; for SQL see `scope_conditions`, for one place `within` of store.events."""
    address: str
    proof: keys.Key | sessions.Session

    @property
    def kind(self) -> Literal["agent", "key", "user"]:
        """What it is."""
        if isinstance(self.proof, sessions.Session):
            return "user"
        return "agent" if self.role == "agent" else "key"

    @property
    def account(self) -> str:
        """On whose account a request is taken, where there are bounds for each."""
        return f"{self.kind} {self.name}"

    @property
    def who(self) -> Who:
        """The caller for the audit log."""
        return Who(self.name, self.kind, self.role, self.address)

    @property
    def key(self) -> keys.Key:
        """The key of a caller that has one: agents always do."""
        if isinstance(self.proof, keys.Key):
            return self.proof
        raise Problem(403, "this takes a key, and not a session", code="key")

    @property
    def session(self) -> sessions.Session:
        """The session of a caller that has one."""
        if isinstance(self.proof, sessions.Session):
            return self.proof
        raise Problem(400, "this takes a session, and not a key. Sign in: POST /v1/session", code="session")

    @property
    def agent_id(self) -> UUID | None:
        """The agent that an agent's key is bound to."""
        return self.key.agent_id

    def covers(self, scope: Scope) -> bool:
        """Return whether `scope` lies within what the caller may see. One without places lies within no site: it takes all of them."""
        return contains(self.scope, scope or ALL)

    def must_cover(self, scope: Scope) -> None:
        """Raises Problem where `scope` reaches beyond what the caller may see: nobody gives more than they have."""
        if not self.covers(scope):
            raise Problem(403, "this reaches beyond the places that you may see", code="scope")

    def must_see_all(self) -> None:
        """Raises Problem unless every place may be seen: for what belongs to no place."""
        self.must_cover(ALL)

    def may_see_personal(self, *, asked: bool) -> bool:
        """Whether personal data is shown as it is: only to those who may, and only when asked for. Raises Problem."""
        if asked and self.role not in PERSONAL:
            raise Problem(403, f"personal data takes one of the roles {', '.join(PERSONAL)}", code="personal")
        return asked


def token_hash(token: str) -> bytes:
    """How a session's token is stored."""
    return hashlib.sha256(token.encode(errors="replace")).digest()


def csrf_of(token: str) -> str:
    """What a request that changes something has to show beside the cookie: only who was told can know it."""
    return hmac.digest(token.encode(errors="replace"), b"linewarden csrf", hashlib.sha256).hex()


def address_of(connection: Connection) -> str:
    """Where a request comes from. A proxy is believed where the settings trust it."""
    address = connection.client.host if connection.client is not None else ""
    trusted: Networks = connection.app.state.trusted_proxies
    if not trusted or not _among(address, trusted):
        return address
    for name in reversed(connection.headers.get("x-forwarded-for", "").split(",")):
        hop = name.strip()
        if not _is_address(hop):
            break
        address = hop
        if not _among(hop, trusted):
            break
    return address


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _among(address: str, networks: Networks) -> bool:
    return _is_address(address) and any(ip_address(address) in network for network in networks)


def same_origin(connection: Connection) -> None:
    """Raises Problem where a browser says that another site's page sends this."""
    origin = connection.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != connection.headers.get("host", ""):
        raise Problem(403, f"this comes from {origin[:200]!r}, another origin than this one", code="origin")


async def guard(connection: Connection, handler: BaseRouteHandler) -> None:
    """The one guard of the application: sets `connection.scope["auth"]` to the Caller, or refuses. Refusals are recorded."""
    _as_written(connection)
    access = handler.opt.get("access")
    if access == PUBLIC:
        return
    caller = await _admitted(connection, access, touch=True)
    rates: Rates = connection.app.state.rates
    if caller.role != "agent" and (wait_s := rates.take(caller.account)):
        raise _refused(connection, caller.who, _too_many(wait_s))
    connection.scope["auth"] = caller
    if access != "send":
        read_for(caller.account)
    if (known := handler.opt.get("known")) is not None:
        only(connection, known)


def _as_written(connection: Connection) -> None:
    """Raises Problem where a UUID in the path is written otherwise than we write it: 32 digits without groups are one too."""
    segments = connection.scope["path"].split("/")
    if any(isinstance(value, UUID) and str(value) not in segments for value in connection.path_params.values()):
        raise Problem(404, "a UUID in the path is written in lower case and with its hyphens", code="path")


def only(connection: Connection, known: frozenset[str]) -> None:
    """Refuse parameters that are none: one that is misspelt would answer another question than the one that was asked. Raises Problem."""
    for name in connection.query_params:
        if name not in known:
            near = get_close_matches(name[:100], known, 1)
            hint = (
                f"Did you mean {near[0]!r}?"
                if near
                else f"Known: {', '.join(sorted(known))}"
                if known
                else "It takes none"
            )
            raise Problem(400, f"there is no parameter {name[:100]!r}. {hint}", code="filter")


async def still(connection: Connection, handler: BaseRouteHandler) -> None:
    """Whether a caller that was let in still may, and sees the same. Raises Problem. Being asked for is no use of a session."""
    caller = await _admitted(connection, handler.opt.get("access"), touch=False)
    before: Caller = connection.scope["auth"]
    if (caller.role, caller.scope) != (before.role, before.scope):
        raise Problem(403, "what you may see was changed; begin anew", code="scope")


def _shown(connection: Connection, signed_from: str) -> str:
    """What a request shows of a credential, and the next one will. A signing key's id is no secret: it counts with the address."""
    if signed_from:
        return f"{signed_from} {connection.headers[HEADER.lower()].rpartition(' ')[0]}"
    return f"{connection.headers.get('authorization', '')} {connection.cookies.get(COOKIE, '')}"


async def _admitted(connection: Connection, access: str | None, *, touch: bool) -> Caller:
    address = address_of(connection)
    rates: Rates = connection.app.state.rates
    known: Known = connection.app.state.known
    signed = access == "send" and enrol_signature.is_signed(connection)
    shown = token_hash(_shown(connection, address if signed else ""))
    refused = [f"refused {network}" for network in networks_of(address)]
    wait_s = 0.0 if shown in known else rates.wait_s_each(refused)
    if wait_s and not signed:
        raise _refused(connection, Who.nobody(address), _too_many(wait_s))
    try:
        if signed:
            # An agent that signs is not held up by others who knock from its address: it has its turn among them.
            turn: AbstractAsyncContextManager[Any] = connection.app.state.doubtful if wait_s else nullcontext()
            async with turn:
                key = await enrol_signature.identify(connection, connection.app.state.admission)
            caller = Caller(key.prefix, key.role, ((key.site, key.line, key.station),), address, key)
            proven = enrol_signature.is_proven(connection)
        else:
            caller = await _identify(connection, address, touch=touch)
            proven = True
        if proven:
            known.add(shown)
            prove(connection.scope["state"], caller.account)
    except Problem as problem:
        for name in refused:
            rates.take(name)
        enrol_signature.refuse(connection, Who.nobody(address), problem)
        raise
    if access not in MAY or caller.role not in MAY[access]:
        allowed = ", ".join(MAY.get(access or "", ())) or "nobody"
        thing = "key" if isinstance(caller.proof, keys.Key) else "user"
        refusal = Problem(403, f"A {thing} of role {caller.role} may not do this; it takes {allowed}", code="role")
        raise _refused(connection, caller.who, refusal)
    return caller


def _too_many(wait_s: float) -> Problem:
    headers = {"Retry-After": str(max(1, int(wait_s + 0.999)))}
    return Problem(429, "too many requests; come again later", code="rate", headers=headers)


def _refused(connection: Connection, who: Who, problem: Problem) -> Problem:
    refuse(connection, who, problem)
    return problem


def refuse(connection: Connection, who: Who, problem: Problem) -> None:
    """Record a refusal."""
    method = connection.scope.get("method", "WEBSOCKET")
    refusals: Refusals = connection.app.state.refusals
    refusals.note(who, problem.code, f"{method} {connection.scope['path']}"[:200])


async def _identify(connection: Connection, address: str, *, touch: bool) -> Caller:
    scheme, _, secret = connection.headers.get("authorization", "").partition(" ")
    database: Database = connection.app.state.admission
    token = connection.cookies.get(COOKIE)
    if not scheme and token:
        return await _by_session(connection, database, token, address, touch=touch)
    if scheme.lower() != "bearer" or not secret.strip():
        raise Problem(401, "Give a key: Authorization: Bearer KEY. Or sign in", code="key", headers=_CHALLENGE)
    async with database.connection() as store:
        found = await keys.find(store, secret.strip())
    if found is None:
        raise Problem(401, "There is no such key", code="key", headers=_CHALLENGE)
    key, trouble = found
    if trouble:
        raise Problem(
            401,
            f"Key {key.prefix} {trouble}. Make a new one: linewarden-collector key create",
            code="key",
            headers=_CHALLENGE,
        )
    return Caller(key.prefix, key.role, ((key.site, key.line, key.station),), address, key)


async def _by_session(connection: Connection, database: Database, token: str, address: str, *, touch: bool) -> Caller:
    method = connection.scope.get("method")
    # A WebSocket has no method: what it may do is read, but another site's page could open it.
    if method not in _SAFE:
        same_origin(connection)
    if method is not None and method not in _SAFE:
        shown = connection.headers.get(CSRF_HEADER, "")
        if not hmac.compare_digest(shown.encode(), csrf_of(token).encode()):
            raise Problem(403, f"with a session this takes the header {CSRF_HEADER}, see GET /v1/session", code="csrf")
    async with database.connection() as store:
        found = await sessions.find(store, token_hash(token), touch=touch)
    if found is None:
        raise Problem(401, "The session has ended. Sign in again", code="session", headers=_CHALLENGE)
    return Caller(found.user.name, found.user.role, found.user.scopes, address, found)
