"""Signing in and out: POST, GET and DELETE /v1/session, and what users change of themselves.

A sign-in is slow by intent and counted before it is looked at. Whoever signed in from a browser before has a cookie there that says so;
failures elsewhere, in their name or from their address, do not keep that browser out. So a guesser is slowed down, and nobody can lock
others out for good.

What counts as a failure: a wrong name or password, a one-time code that is wrong or used, and the right password without a code, which is
what somebody sends who has found the password and not the phone. Guesses at codes are counted once more by themselves: a code has six
digits, so an account takes few of them, from however many addresses they come.
"""

import logging
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.datastructures import Cookie, State
from msgspec import Struct

from collector import access, audit, passwords
from collector.access import COOKIE, PERSONAL, PUBLIC, Caller, csrf_of, token_hash
from collector.audit import Who
from collector.limits import networks_of
from collector.problems import Problem
from collector.store import sessions, states, users
from collector.store.keys import Role
from collector.store.sessions import Session
from collector.store.users import Bucket
from collector.vault import Vault, decoded, encoded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from collector.store.database import Anyone, Database
    from collector.store.events import Scope

_log = logging.getLogger("linewarden.collector")

DEVICE_COOKIE = "__Host-linewarden-browser"
DEVICE_DAYS = 180
_DEVICE_BYTES = 16
_NAME = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
_PASSWORD = Annotated[str, msgspec.Meta(max_length=passwords.PASSWORD_CHARS_MAX)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How long sessions last, and how many a user may have."""

    idle: timedelta = timedelta(minutes=30)
    lasts: timedelta = timedelta(hours=12)
    per_user_max: int = 10


class SignIn(Struct, forbid_unknown_fields=True):
    """Name, password, and a one-time or recovery code where the user has those."""

    name: _NAME
    password: _PASSWORD
    code: Annotated[str, msgspec.Meta(max_length=40)] = ""


class Place(Struct, forbid_unknown_fields=True, frozen=True):
    """A place, or all below it: an empty text stands for every one."""

    site: Annotated[str, msgspec.Meta(max_length=200)] = ""
    line: Annotated[str, msgspec.Meta(max_length=200)] = ""
    station: Annotated[str, msgspec.Meta(max_length=200)] = ""


class Me(Struct):
    """Who asks. `csrf`: what a request that changes something has to show in the header `Linewarden-CSRF`; null for a key."""

    name: str
    kind: str
    role: Role
    scopes: list[Place]
    personal: bool
    csrf: str | None
    expires: datetime | None


class NewPassword(Struct, forbid_unknown_fields=True):
    """The present password, and the next."""

    old: _PASSWORD
    new: _PASSWORD


class Password(Struct, forbid_unknown_fields=True):
    """The present password: whoever finds a screen unlocked does not know it."""

    password: _PASSWORD


class Code(Struct, forbid_unknown_fields=True):
    """A one-time code."""

    code: Annotated[str, msgspec.Meta(max_length=40)]


class Totp(Struct):
    """What an authenticator app reads."""

    address: str


class Recovery(Struct):
    """Codes that each stand in once for a one-time code. They are shown this once."""

    codes: list[str]


def places_of(scope: "Scope") -> list[Place]:
    """A scope as it is answered."""
    return [Place(*place) for place in scope]


def scope_of(places: "Sequence[Place]") -> "Scope":
    """A scope as it is asked for."""
    return tuple((place.site, place.line, place.station) for place in places)


def _me(caller: Caller, csrf: str | None, expires: datetime | None) -> Me:
    may = caller.role in PERSONAL
    return Me(caller.name, caller.kind, caller.role, places_of(caller.scope), may, csrf, expires)


def _device(request: Request[Any, Any, Any], vault: Vault, name: str) -> bytes | None:
    """What tells a browser in which this user signed in before."""
    content = decoded(request.cookies.get(DEVICE_COOKIE, ""))
    nonce, signature = content[:_DEVICE_BYTES], content[_DEVICE_BYTES:]
    good = secrets.compare_digest(signature, vault.sign("browser", nonce + name.encode(errors="replace")))
    return nonce if good else None


@dataclass(frozen=True, slots=True)
class Limits:
    """Where an attempt is counted: `own` is of this user from here, `shared` also counts what others do."""

    own: Bucket
    shared: tuple[Bucket, ...] = ()

    @property
    def all(self) -> list[Bucket]:
        """Every bucket."""
        return [self.own, *self.shared]


def _limits(name: str, address: str, device: bytes | None) -> Limits:
    """Where a sign-in is counted."""
    if device is not None:
        return Limits(Bucket(f"browser {device.hex()}", 5, 900))
    network, *wider = networks_of(address)
    shared = (
        # Bounded low: others may come in this name, and must not shut its owner out.
        Bucket(f"name {name}", 20, 60),
        Bucket(f"address {network}", 50, 300),
        *(Bucket(f"address {wide}", 500, 300) for wide in wider),
    )
    return Limits(Bucket(f"both {name} {network}", 5, 900), shared)


def _code_limits(user: users.User, address: str, device: bytes | None) -> Limits:
    """Where a one-time code is counted: of a million codes three count at a time."""
    if device is not None:
        return Limits(Bucket(f"code browser {device.hex()}", 5, 900))
    network, *wider = networks_of(address)
    shared = (
        Bucket(f"code user {user.user_id}", 10, 900),
        Bucket(f"code address {network}", 20, 900),
        *(Bucket(f"code address {wide}", 100, 900) for wide in wider),
    )
    return Limits(Bucket(f"code both {user.user_id} {network}", 5, 900), shared)


@dataclass(slots=True)
class Attempt:
    """A sign-in that is being looked at."""

    given: SignIn
    name: str
    address: str
    device: bytes | None
    proof: users.Proof | None = None
    passed: list[Limits] = field(default_factory=list)
    """What is forgiven when it succeeds."""

    @property
    def who(self) -> Who:
        """For the audit log. A name that is not there may be a password in the wrong field: not recorded."""
        proof = self.proof
        return Who(
            proof.user.name if proof is not None else "", "user" if proof is not None else "nobody", "", self.address
        )

    async def count(self, store: "Anyone", limits: Limits) -> None:
        """Count it as failed. Raises Problem where a bucket lets nothing through."""
        if wait_s := await users.attempt(store, limits.all):
            headers = {"Retry-After": str(int(wait_s) + 1)}
            raise Problem(429, "too many sign-ins failed; wait", code="locked", headers=headers)
        self.passed.append(limits)


async def _checked(state: State, attempt: Attempt) -> tuple[users.User, str]:
    """The user, and how they proved it. Raises Problem."""
    hashing: passwords.Hashing = state.hashing
    proof, given = attempt.proof, attempt.given
    network, known = networks_of(attempt.address)[0], attempt.device is not None
    stored = proof.password if proof is not None else None
    good = await hashing.verify(stored, given.password, network=network, known=known)
    if not good or proof is None or proof.user.disabled is not None or proof.user.origin != "local":
        raise Problem(401, "name or password is wrong, or the user may not sign in", code="password")
    if proof.password is not None and passwords.needs_rehash(proof.password):
        await _rehash(state, proof.user, proof.password, given.password)
    if proof.totp is None:
        return proof.user, "password"
    if not given.code:
        raise Problem(401, "this user signs in with a one-time code as well: give code", code="code-missing")
    return proof.user, await _second(state, attempt, proof.user, proof.totp)


async def _rehash(state: State, user: users.User, old: str, password: str) -> None:
    made = await state.hashing.hash(password)
    async with state.database.connection() as store, store.transaction():
        await users.rehash(store, user.user_id, old, made)
        await audit.record(
            store, Who.system(), "user.password.rehashed", target=user.name, objects=[("user", str(user.user_id))]
        )


async def _second(state: State, attempt: Attempt, user: users.User, sealed: bytes) -> str:
    vault: Vault = state.vault
    secret = vault.unseal("totp", sealed) or b""
    code = attempt.given.code
    async with state.database.connection() as store:
        await attempt.count(store, _code_limits(user, attempt.address, attempt.device))
        step = passwords.step_of(secret, code.strip()) if secret else None
        if step is not None and await users.use_step(store, user.user_id, step):
            return "password+totp"
        if await users.use_recovery(store, user.user_id, passwords.recovery_hash(code)):
            return "password+recovery"
    raise Problem(401, "the one-time code is wrong, or was used before", code="code")


@post(
    "/v1/session", status_code=200, opt={"access": PUBLIC}, tags=["access"], summary="Sign in", security=[{}]
)  # fmt: skip
async def sign_in(request: Request[Any, Any, Any], state: State, data: SignIn) -> Response[Me]:
    """The session is in a cookie that scripts cannot read. After failures the wait doubles: 429."""
    access.same_origin(request)
    database: Database = state.database
    name, address = data.name.strip().lower(), access.address_of(request)
    attempt = Attempt(data, name, address, _device(request, state.vault, name))
    try:
        async with database.connection() as store:
            if "\0" not in name:
                attempt.proof = await users.proof(store, name)
            await attempt.count(store, _limits(name, address, attempt.device))
        user, method = await _checked(state, attempt)
    except Problem as problem:
        await _failed(request, database, attempt, problem)
        raise
    return await begun(request, state, user, method, attempt.passed)


async def _failed(request: Request[Any, Any, Any], database: "Database", attempt: Attempt, problem: Problem) -> None:
    """Record it: what was not looked at as a refusal, of which there can be floods; the rest as a failure each."""
    if problem.code in ("locked", "busy"):
        access.refuse(request, attempt.who, problem)
        return
    async with database.connection() as store:
        await audit.record(store, attempt.who, "session.created", result="failure", data={"reason": problem.code})


async def begun(
    request: Request[Any, Any, Any], state: State, user: users.User, method: str, forgiven: "Sequence[Limits]" = (), *,
    terms: Terms | None = None, noted: "Mapping[str, Any] | None" = None,
) -> Response[Me]:  # fmt: skip
    """The answer that begins a session, with its cookies. `noted`: what the record of it says beside how."""
    terms = terms or state.terms
    assert terms is not None  # noqa: S101 - the application has them
    vault: Vault = state.vault
    token, address = secrets.token_urlsafe(32), access.address_of(request)
    who = Who(user.name, "user", user.role, address)
    agent = request.headers.get("user-agent", "")
    async with state.database.connection() as store, store.transaction():
        for limits in forgiven:
            await users.forgive(store, limits.own, limits.shared)
        await sessions.begin(
            store, token_hash(token), user.user_id, method=method, address=address, user_agent=agent.replace("\0", ""), idle=terms.idle,
            lasts=terms.lasts, keep=terms.per_user_max,
        )  # fmt: skip
        found = await sessions.find(store, token_hash(token), touch=False)
        objects = [("session", states.session_name(token_hash(token)))]
        told = {"method": method, **(noted or {})}
        await audit.record(store, who, "session.created", target=user.name, data=told, objects=objects)
    if found is None:
        raise Problem(401, "the user may not sign in any more", code="password")
    nonce = secrets.token_bytes(_DEVICE_BYTES)
    browser = encoded(nonce + vault.sign("browser", nonce + user.name.encode()))
    caller = Caller(user.name, user.role, user.scopes, address, found)
    cookies = [
        _cookie(COOKIE, token, int(terms.lasts.total_seconds())),
        _cookie(DEVICE_COOKIE, browser, DEVICE_DAYS * 86_400),
    ]
    return Response(_me(caller, csrf_of(token), found.expires), cookies=cookies)


def _cookie(name: str, value: str, seconds: int) -> Cookie:
    return Cookie(key=name, value=value, path="/", secure=True, httponly=True, samesite="strict", max_age=seconds)


@get("/v1/session", opt={"access": "read"}, tags=["access"], summary="Who I am")
async def get_session(request: Request[Any, Any, Any]) -> Me:
    """Role, what may be seen, and for a session its CSRF token."""
    caller: Caller = request.auth
    if not isinstance(caller.proof, Session):
        return _me(caller, None, caller.proof.expires)
    return _me(caller, csrf_of(request.cookies.get(COOKIE, "")), caller.proof.expires)


@delete("/v1/session", status_code=204, opt={"access": "read"}, tags=["access"], summary="Sign out")
async def sign_out(request: Request[Any, Any, Any], state: State) -> Response[None]:
    """The session ends at once, here and in its streams."""
    caller: Caller = request.auth
    async with state.database.connection() as store, store.transaction():
        await sessions.end(store, caller.session.hash)
        objects = [("session", states.session_name(caller.session.hash))]
        await audit.record(store, caller.who, "session.ended", target=caller.name, objects=objects)
    return Response(None, status_code=204, cookies=[_cookie(COOKIE, "", 0)])


async def _proved(request: Request[Any, Any, Any], state: State, password: str) -> tuple[Caller, users.User]:
    """The caller, who knows the password. Guessing here is counted as it is at the door. Raises Problem."""
    caller: Caller = request.auth
    user = caller.session.user
    hashing: passwords.Hashing = state.hashing
    bucket = Bucket(f"session {caller.session.hash.hex()}", 5, 900)
    async with state.database.connection() as store:
        await _within(request, store, bucket)
        proof = await users.proof(store, user.name)
    if proof is None or not await hashing.verify(proof.password, password, known=True):
        async with state.database.connection() as store:
            await audit.record(store, caller.who, "password.checked", target=user.name, result="failure")
        raise Problem(403, "the present password is wrong", code="password")
    async with state.database.connection() as store:
        await users.forgive(store, bucket)
    return caller, user


async def _changed(store: "Anyone", caller: Caller, action: str) -> None:
    """Record what users change of themselves."""
    await audit.record(
        store, caller.who, action, target=caller.name, objects=[("user", str(caller.session.user.user_id))]
    )


async def _within(request: Request[Any, Any, Any], store: "Anyone", bucket: Bucket) -> None:
    """Count a guess of somebody who is signed in. Raises Problem where there were too many."""
    if wait_s := await users.attempt(store, [bucket]):
        headers = {"Retry-After": str(int(wait_s) + 1)}
        problem = Problem(429, "it was wrong too often; wait", code="locked", headers=headers)
        access.refuse(request, request.auth.who, problem)
        raise problem


@post("/v1/session/password", status_code=204, opt={"access": "read"}, tags=["access"], summary="Change my password")
async def change_password(request: Request[Any, Any, Any], state: State, data: NewPassword) -> None:
    """All other sessions of the user end."""
    caller, user = await _proved(request, state, data.old)
    if why := await state.hashing.weak(data.new, user.name, user.display):
        raise Problem(400, why, code="weak")
    made = await state.hashing.hash(data.new)
    async with state.database.connection() as store, store.transaction():
        await users.set_password(store, user.user_id, made, keep=caller.session.hash)
        await _changed(store, caller, "user.password.changed")


@post("/v1/session/totp", status_code=200, opt={"access": "read"}, tags=["access"], summary="Begin with one-time codes")
async def begin_totp(request: Request[Any, Any, Any], state: State, data: Password) -> Totp:
    """A new secret for an authenticator app. Codes are asked for once one of them was shown to be right."""
    caller, user = await _proved(request, state, data.password)
    if user.totp:
        raise Problem(409, "there are one-time codes already; an administrator can take them away", code="totp")
    vault: Vault = state.vault
    secret = passwords.new_secret()
    async with state.database.connection() as store, store.transaction():
        await users.set_totp(store, user.user_id, vault.seal("totp", secret))
        await _changed(store, caller, "user.totp.begun")
    return Totp(passwords.address_of(secret, user.name))


@post(
    "/v1/session/totp/confirm",
    status_code=200,
    opt={"access": "read"},
    tags=["access"],
    summary="Show that the codes work",
)
async def confirm_totp(request: Request[Any, Any, Any], state: State, data: Code) -> Recovery:
    """From now on each sign-in takes a code. The answer has the recovery codes, this once."""
    caller: Caller = request.auth
    user, vault = caller.session.user, state.vault
    async with state.database.connection() as store:
        # In a transaction of its own: a guess is counted however it ends.
        await _within(request, store, bucket := Bucket(f"confirm {caller.session.hash.hex()}", 5, 900))
    async with state.database.connection() as store, store.transaction():
        sealed = await users.totp(store, user.user_id)
        secret = vault.unseal("totp", sealed) if sealed is not None and not user.totp else None
        step = passwords.step_of(secret, data.code.strip()) if secret else None
        if step is None or not await users.use_step(store, user.user_id, step):
            raise Problem(409, "this code does not fit. Begin with POST /v1/session/totp", code="code")
        codes = passwords.new_recovery_codes()
        await users.confirm_totp(store, user.user_id, [passwords.recovery_hash(code) for code in codes])
        await users.forgive(store, bucket)
        await _changed(store, caller, "user.totp.enabled")
    return Recovery(codes)


ROUTES: list[Any] = [sign_in, get_session, sign_out, change_password, begin_totp, confirm_totp]
