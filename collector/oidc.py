"""Signing in by OpenID Connect: authorization code with PKCE, state and nonce. GET /v1/session/oidc, the way back, and /end.

What a sign-in needs on its way back lies sealed in a cookie of the browser that began it, `SameSite=Lax`, since the provider's page sends
it back from another site; a state is taken once. The session's own cookie is `Strict`, so the way back ends on a page of ours that goes on
by itself: what that page opens has the cookie. People are known by issuer and subject alone, never by name or mail.
"""

import base64
import hashlib
import html
import re
import secrets
import time
from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlencode

import msgspec
from litestar import Request, Response, get
from litestar.datastructures import Cookie, State
from litestar.params import QueryParameter
from msgspec import Struct

from collector import access, audit, sessions
from collector.access import PUBLIC
from collector.audit import Who
from collector.limits import networks_of
from collector.oidc_provider import Provider
from collector.oidc_settings import Grant, text_of
from collector.problems import Problem, away
from collector.store import oidc as store_oidc
from collector.store import sessions as store_sessions
from collector.store import users
from collector.store.database import StoreUnavailable
from collector.store.users import Taken, User
from collector.vault import Vault, decoded, encoded

COOKIE = "__Host-linewarden-oidc"
BEGUN_S_MAX = 600
"""So long a person may take at the provider."""
COOKIE_S = 3_600
BACK = "/v1/session/oidc/callback"
END = "/v1/session/oidc/end"
_TRIES = 3
_RETURN_CHARS_MAX = 500
_Text = Annotated[str, QueryParameter(max_length=4_000)]


class Begun(Struct):
    """A sign-in on its way, as it lies sealed in the cookie."""

    state: str
    nonce: str
    verifier: str
    back: str
    until: float


class Way(Struct):
    """A provider: its name, where to go to sign in there, and where to go after signing out here, to be signed out there too."""

    name: str
    address: str
    end: str


class Ways(Struct):
    """How to sign in here. `oidc`: null where none is configured."""

    password: bool
    oidc: Way | None


class _Person(NamedTuple):
    issuer: str
    subject: str
    name: str
    display: str


class _Again(Exception):
    """Somebody was made at the same time."""


@get("/v1/session/ways", opt={"access": PUBLIC}, tags=["access"], summary="How to sign in")
async def ways(state: State) -> Ways:
    """For a page that asks people to sign in."""
    provider: Provider | None = state.oidc
    return Ways(
        password=True, oidc=Way(provider.settings.name, "/v1/session/oidc", END) if provider is not None else None
    )


@get("/v1/session/oidc", status_code=303, opt={"access": PUBLIC}, tags=["access"], summary="Sign in at the provider")
async def begin(
    request: Request[Any, Any, Any],
    state: State,
    back: Annotated[
        str, QueryParameter(name="return", max_length=_RETURN_CHARS_MAX, description="Path to end on")
    ] = "/",
) -> Response[Any]:
    """Goes to the provider, which comes back to /v1/session/oidc/callback."""
    try:
        return await _begin(request, state, back)
    except Problem as problem:
        access.refuse(request, Who.nobody(access.address_of(request)), problem)
        return _told(request, problem)


@get(END, status_code=303, opt={"access": PUBLIC}, tags=["access"], summary="Sign out at the provider")
async def end(request: Request[Any, Any, Any], state: State) -> Response[Any]:
    """After DELETE /v1/session: goes to the provider, which ends its own session and comes back to `/` (RP-Initiated Logout 1.0)."""
    try:
        return Response(None, status_code=303, headers={"Location": await _end(_provider(request, state), state)})
    except Problem as problem:
        access.refuse(request, Who.nobody(access.address_of(request)), problem)
        return _told(request, problem)


async def _end(provider: Provider, state: State) -> str:
    address = (await provider.metadata()).end_session_endpoint
    if not address:
        raise Problem(
            404, "the provider has no page to sign out. You are signed out here; sign out there by its own page", code="oidc-end"
        )  # fmt: skip
    # No id_token_hint: an ID token is not kept. Without one the provider asks the person first.
    back = f"{state.public_url.rstrip('/')}/"
    return _with(address, {"client_id": provider.settings.client_id, "post_logout_redirect_uri": back})


async def _begin(request: Request[Any, Any, Any], state: State, back: str) -> Response[Any]:
    provider = _provider(request, state)
    vault: Vault = state.vault
    if not is_own_path(back):
        raise Problem(400, "return is no path of this collector; write it as in /v1/session", code="oidc-return")
    metadata = await provider.metadata()
    given, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
    begun = Begun(given, nonce, verifier, back, time.time() + BEGUN_S_MAX)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(begun.verifier.encode()).digest()).decode().rstrip("=")
    parameters = {
        "response_type": "code", "client_id": provider.settings.client_id, "redirect_uri": _redirect_uri(state),
        "scope": " ".join(provider.settings.scopes), "state": begun.state, "nonce": begun.nonce,
        "code_challenge": challenge, "code_challenge_method": "S256",
    }  # fmt: skip
    address = _with(metadata.authorization_endpoint, parameters)
    sealed = encoded(vault.seal("oidc", msgspec.json.encode(begun)))
    return Response(None, status_code=303, headers={"Location": address}, cookies=[_cookie(sealed, COOKIE_S)])


@get(
    BACK, status_code=200, opt={"access": PUBLIC}, tags=["access"], summary="Where the provider comes back to", media_type="text/html"
)  # fmt: skip
async def callback(
    request: Request[Any, Any, Any],
    state: State,
    code: _Text = "",
    given: Annotated[str, QueryParameter(name="state", max_length=200)] = "",
    iss: _Text = "",
    error: _Text = "",
) -> Response[Any]:
    """Begins the session, and goes on to where the sign-in was asked for."""
    try:
        return await _came(request, state, code, given, iss, error)
    except StoreUnavailable as unavailable:
        return _told(request, away(unavailable))


async def _came(
    request: Request[Any, Any, Any], state: State, code: str, given: str, iss: str, error: str
) -> Response[Any]:
    nobody = Who.nobody(access.address_of(request))
    try:
        provider = _provider(request, state)
        begun = await _came_back(request, state, given)
    except Problem as problem:
        access.refuse(request, nobody, problem)
        return _told(request, problem)
    try:
        _no_error(error)
        await _check_issuer(provider, iss)
        claims = await provider.claims(
            code, verifier=begun.verifier, nonce=begun.nonce, redirect_uri=_redirect_uri(state)
        )
    except Problem as problem:
        async with state.database.connection() as store:
            await audit.record(store, nobody, "session.created", result="failure", data={"reason": problem.code})
        return _told(request, problem)
    return await _let_in(request, state, provider, claims, begun.back)


def _with(address: str, parameters: dict[str, str]) -> str:
    return f"{address}{'&' if '?' in address else '?'}{urlencode(parameters)}"


def _provider(request: Request[Any, Any, Any], state: State) -> Provider:
    provider: Provider | None = state.oidc
    if provider is None:
        raise Problem(
            404, "no provider is configured here; see [access.oidc]. Sign in with a password", code="oidc-off"
        )
    if wait_s := state.rates.take_each(f"sign-in {network}" for network in networks_of(access.address_of(request))):
        raise Problem(429, "too many sign-ins; wait", code="rate", headers={"Retry-After": str(int(wait_s) + 1)})
    return provider


async def _came_back(request: Request[Any, Any, Any], state: State, given: str) -> Begun:
    """The sign-in that this belongs to; it is used up. Raises Problem."""
    vault: Vault = state.vault
    content = vault.unseal("oidc", decoded(request.cookies.get(COOKIE, "")))
    lost = "Cookies may be blocked, or it was begun in another tab. Sign in once more"
    if content is None:
        raise Problem(400, f"this browser began no sign-in, or more than an hour ago. {lost}", code="oidc-state")
    begun = msgspec.json.decode(content, type=Begun)
    if not secrets.compare_digest(begun.state.encode(), given.encode(errors="replace")):
        raise Problem(
            400, f"this belongs to another sign-in than the one that this browser began. {lost}", code="oidc-state"
        )
    if begun.until < time.time():
        raise Problem(400, "the sign-in took more than ten minutes. Sign in once more", code="oidc-expired")
    async with state.database.connection() as store:
        if not await store_oidc.use_state(store, begun.state):
            raise Problem(400, "this sign-in came back before, and counts once. Sign in once more", code="oidc-reused")
    return begun


def _no_error(error: str) -> None:
    if error == "access_denied":
        raise Problem(
            403,
            "the sign-in was cancelled at the provider, or it does not let you use this application",
            code="oidc-cancelled",
        )
    if error:
        shown = re.sub(r"[^a-z_]", "", error)[:40]
        raise Problem(
            403,
            f"the provider refused the sign-in ({shown}). Try again; its administrator can look it up",
            code="oidc-refused",
        )


async def _check_issuer(provider: Provider, iss: str) -> None:
    """Who answers, where it says so (RFC 9207)."""
    wanted = (await provider.metadata()).authorization_response_iss_parameter_supported
    if (iss or wanted) and iss != provider.settings.issuer:
        raise Problem(403, "another provider answered than the one that was asked", code="oidc-token")


async def _let_in(
    request: Request[Any, Any, Any], state: State, provider: Provider, claims: dict[str, Any], back: str
) -> Response[Any]:
    settings, address = provider.settings, access.address_of(request)
    person = _person(provider, claims)
    about = {"issuer": person.issuer, "subject": person.subject}
    try:
        user = await _known(state, person, settings.granted(claims), address)
        lasts = min(state.terms.lasts, timedelta(seconds=settings.session_s_max))
        terms = replace(state.terms, lasts=lasts)
        answer = await sessions.begun(request, state, user, "oidc", terms=terms, noted=about)
    except Problem as problem:
        await _refuse(state, person, problem, address)
        return _told(request, problem)
    body = _page("Signed in", "You are signed in.", back, "Go on", refresh=True)
    return Response(
        body, status_code=200, media_type="text/html", headers=_PAGE, cookies=[*answer.cookies, _cookie("", 0)]
    )


async def _refuse(state: State, person: _Person, problem: Problem, address: str) -> None:
    """Record it. Who has no role any more has no session any more."""
    async with state.database.connection() as store, store.transaction():
        known = await users.identified(store, person.issuer, person.subject)
        if known is not None and problem.code in ("oidc-group", "oidc-place"):
            await store_sessions.end_all(store, known.user_id)
        name = known.name if known is not None else person.name
        who = Who(name, "user" if known is not None else "nobody", known.role if known is not None else "", address)
        data = {"reason": problem.code, "method": "oidc", "issuer": person.issuer, "subject": person.subject}
        await audit.record(store, who, "session.created", target=name, result="refused", data=data)


def _person(provider: Provider, claims: dict[str, Any]) -> _Person:
    settings = provider.settings
    subject = str(claims["sub"])
    wanted = text_of(claims, settings.name_claim).lower()
    name = re.sub(r"[^a-z0-9._@+-]", "-", wanted).lstrip("._@+-")[:100]
    display = "".join(char for char in text_of(claims, settings.display_claim) if char.isprintable())[:200]
    return _Person(settings.issuer, subject, name or _mark(settings.issuer, subject), display)


def _mark(issuer: str, subject: str) -> str:
    return "user-" + hashlib.sha256(f"{issuer}\n{subject}".encode()).hexdigest()[:12]


async def _known(state: State, person: _Person, grant: Grant, address: str) -> User:
    """The user that somebody is, with what the rules give now; made where there is none. Raises Problem."""
    for _ in range(_TRIES):
        try:
            async with state.database.connection() as store, store.transaction():
                user = await users.identified(store, person.issuer, person.subject)
                if user is None:
                    return await _made(store, person, grant, address)
                return await _renewed(store, user, person, grant, address)
        except _Again:
            continue
    raise Problem(
        503, "this user is being made at this moment. Try again", code="oidc-again", headers={"Retry-After": "1"}
    )


async def _made(store: Any, person: _Person, grant: Grant, address: str) -> User:
    # A name that somebody has already says nothing of who this is: another one is taken.
    for name in (person.name, f"{person.name[:80]}-{_mark(person.issuer, person.subject)[5:]}"):
        try:
            user = await users.create(
                store, name=name, role=grant.role, scopes=grant.scope, display=person.display, origin="oidc"
            )
        except Taken:
            continue
        if not await users.identify(store, person.issuer, person.subject, user.user_id):
            raise _Again
        await _note(store, "user.created", user, address, {"issuer": person.issuer, "subject": person.subject})
        return user
    raise _Again


async def _renewed(store: Any, user: User, person: _Person, grant: Grant, address: str) -> User:
    if user.disabled is not None:
        raise Problem(403, "an administrator of this collector has shut you out", code="oidc-disabled")
    if user.origin != "oidc" or (user.role, set(user.scopes), user.display) == (
        grant.role,
        set(grant.scope),
        person.display,
    ):
        return user
    await users.set_scopes(store, user.user_id, grant.scope)
    await users.change(store, user.user_id, role=grant.role, display=person.display, disabled=False)
    changed = await users.find(store, user.name)
    if changed is None:
        raise _Again
    before = {"role": user.role, "scopes": [list(place) for place in user.scopes]}
    await _note(store, "user.changed", changed, address, {"before": before})
    return changed


async def _note(store: Any, action: str, user: User, address: str, data: dict[str, Any]) -> None:
    who = Who(user.name, "user", user.role, address)
    given = {"role": user.role, "scopes": [list(place) for place in user.scopes]}
    told = {"method": "oidc", **given, **data}
    await audit.record(store, who, action, target=user.name, data=told, objects=[("user", str(user.user_id))])


def is_own_path(path: str) -> bool:
    """Whether a path leads nowhere else than to this collector, however a browser reads it."""
    plain = all("\x21" <= char <= "\x7e" and char not in "\\\"'<>;" for char in path)
    return plain and path.startswith("/") and not path.startswith("//") and not path.startswith("/v1/session/oidc")


def _redirect_uri(state: State) -> str:
    return f"{state.public_url.rstrip('/')}{BACK}"


def _cookie(value: str, seconds: int) -> Cookie:
    return Cookie(key=COOKIE, value=value, path="/", secure=True, httponly=True, samesite="lax", max_age=seconds)


_PAGE = {"Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'"}


def _told(request: Request[Any, Any, Any], problem: Problem) -> Response[Any]:
    """A page for people; programs get the problem itself."""
    if "text/html" not in request.headers.get("accept", ""):
        raise problem
    text = f"{problem.detail[:1].upper()}{problem.detail[1:]}. ({problem.code})"
    body = _page("Not signed in", text, "/v1/session/oidc", "Sign in again", refresh=False)
    headers = {**_PAGE, **problem.headers}
    return Response(body, status_code=problem.status, media_type="text/html", headers=headers)


def _page(title: str, text: str, address: str, word: str, *, refresh: bool) -> str:
    on = html.escape(address)
    head = f'<meta http-equiv="refresh" content="0; url={on}">' if refresh else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title} - Linewarden</title>{head}'
        f'<h1>{title}</h1><p>{html.escape(text)}</p><p><a href="{on}">{word}</a></p></html>\n'
    )


ROUTES: list[Any] = [ways, begin, end, callback]
