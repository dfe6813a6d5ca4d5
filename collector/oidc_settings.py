"""Who comes in by OpenID Connect, as what, and what they see: settings, and the rules from claims to role and places.

Deny by default: somebody whom no rule fits is refused. The first rule that fits gives the role, and every fitting rule of that role adds
its places, so that two rules never add up to more than one of them says: who is analyst of one site and viewer of another does not
become analyst of both.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from collector.accounts import SCOPES_MAX, scopes_of
from collector.problems import Problem
from collector.store.events import Scope
from collector.store.users import UserRole

CREDENTIAL = "oidc.secret"
"""Name of the secret among the credentials of systemd."""
VALUES_MAX = 10_000
"""Values of one claim that are looked at; a group behind them is not found, and so gives nothing."""
_PLACE_CHARS_MAX = 200


class Grant(NamedTuple):
    """What the rules give."""

    role: UserRole
    scope: Scope


class OidcRule(BaseModel):
    """Whoever has `value` in `claim` comes in with `role`, and sees `places` and those that the claim `places_claim` lists.

    claim         name of a claim, or a path into one: realm_access.roles
    value         exactly as the provider writes it: the name of a group, the id of one, an app role
    places        SITE, SITE/LINE, SITE/LINE/STATION, or * for all
    places_claim  a claim that lists places of the same form; * is not taken from it
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    claim: Annotated[str, Field(min_length=1, max_length=200)] = "groups"
    value: Annotated[str, Field(min_length=1, max_length=500)]
    role: UserRole
    places: Annotated[tuple[str, ...], Field(max_length=SCOPES_MAX)] = ()
    places_claim: Annotated[str, Field(max_length=200)] = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.places and not self.places_claim:
            raise ValueError(
                f"the rule for {self.value!r} gives no places. Give places, as in ['north'], or places_claim"
            )
        scopes_of(self.places)
        return self

    def fits(self, claims: Mapping[str, Any]) -> bool:
        """Whether somebody has the value."""
        return self.value in values_of(claims, self.claim)

    def scope(self, claims: Mapping[str, Any]) -> Scope:
        """What somebody sees by this rule. What the claim lists and is no place gives nothing."""
        listed = values_of(claims, self.places_claim) if self.places_claim else []
        return tuple(dict.fromkeys([*scopes_of(self.places), *(place for text in listed for place in _place(text))]))


class OidcSettings(BaseModel):
    """The provider, and who comes in.

    issuer              as the provider writes it in its tokens, and where /.well-known/openid-configuration is found below it
    client_id           of this installation at the provider
    client_secret_file  its secret (default: the systemd credential oidc.secret; without either a public client, by PKCE alone)
    name                what the button says: Sign in with …
    scopes              what is asked for
    name_claim          becomes the user's name at the first sign-in; display_claim is shown beside it
    session_s_max       a session ends after so long; a group that was taken away is noticed then at the latest
    leeway_s            so far the clocks may be apart
    ca_file             authority to trust instead of the system's
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    issuer: str
    client_id: Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[\x20-\x7e]+$")]
    client_secret_file: Path | None = None
    name: Annotated[str, Field(min_length=1, max_length=60)] = "single sign-on"
    scopes: Annotated[tuple[str, ...], Field(max_length=20)] = ("openid", "profile", "email")
    name_claim: Annotated[str, Field(min_length=1, max_length=200)] = "preferred_username"
    display_claim: Annotated[str, Field(min_length=1, max_length=200)] = "name"
    session_s_max: Annotated[int, Field(ge=60, le=604_800)] = 28_800
    leeway_s: Annotated[int, Field(ge=0, le=600)] = 60
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 10.0
    ca_file: Path | None = None
    rules: Annotated[tuple[OidcRule, ...], Field(min_length=1, max_length=200)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if problem := unsafe(self.issuer) or ("?" in self.issuer or "#" in self.issuer):
            why = problem if isinstance(problem, str) else "has a query"
            raise ValueError(
                f"issuer {self.issuer!r} {why}. Write it as the provider does, as in https://login.corp.example/realms/plant"
            )
        if "openid" not in self.scopes or not all(_is_scope(one) for one in self.scopes):
            raise ValueError('scopes are single words, and openid is among them, as in ["openid", "profile", "groups"]')
        for name in ("client_secret_file", "ca_file"):
            path = getattr(self, name)
            if path is not None and not os.access(path, os.R_OK):
                raise ValueError(
                    f"{name} {path} cannot be read. Check the path and that the service's user may read it"
                )
        if self.client_secret_file is not None and not self.client_secret:
            raise ValueError(f"client_secret_file {self.client_secret_file} is empty. Put the client's secret into it")
        return self

    @property
    def client_secret(self) -> str:
        """As it is in its file now; empty where there is none. Raises OSError, UnicodeDecodeError."""
        path = self.client_secret_file
        if path is None and (folder := os.environ.get("CREDENTIALS_DIRECTORY")):
            path = Path(folder) / CREDENTIAL
            path = path if path.exists() else None
        return path.read_text(encoding="utf-8").strip() if path is not None else ""

    def granted(self, claims: Mapping[str, Any]) -> Grant:
        """What the rules give to whoever has these claims. Raises Problem where that is nothing."""
        fitting = [rule for rule in self.rules if rule.fits(claims)]
        if not fitting:
            raise Problem(403, self._nothing(claims), code="oidc-group")
        role = fitting[0].role
        scope = tuple(dict.fromkeys(place for rule in fitting if rule.role == role for place in rule.scope(claims)))
        if not scope:
            named = ", ".join(sorted({rule.places_claim for rule in fitting if rule.role == role}))
            raise Problem(
                403, f"the provider names no site that you may see (claim {named}). An administrator there can set it", code="oidc-place"
            )  # fmt: skip
        if len(scope) > SCOPES_MAX:
            raise Problem(
                403, f"the provider names {len(scope)} places and {SCOPES_MAX} are taken. Name sites, not their stations", code="oidc-place"
            )  # fmt: skip
        return Grant(role, scope)

    def _nothing(self, claims: Mapping[str, Any]) -> str:
        wanted = sorted({rule.claim for rule in self.rules})
        elsewhere = claims.get("_claim_names")
        if isinstance(elsewhere, dict) and any(name in elsewhere for name in wanted):
            return (
                "you are in more groups than the provider puts into a token. An administrator there can send app roles, or the groups of "
                "this application alone"
            )
        if not any(values_of(claims, name) for name in wanted):
            return (
                f"the provider says nothing in {', '.join(wanted)}, so you have no role here. An administrator there can put you into a "
                "group, or the claim into the token"
            )
        return "none of your groups has a role here. An administrator can put you into one that has, or add a rule in [access.oidc]"


def values_of(claims: Mapping[str, Any], path: str) -> list[str]:
    """The values of a claim, as texts. A name with dots is looked for as it is first, then as a path."""
    found = _found(claims, path)
    values = found[:VALUES_MAX] if isinstance(found, list) else [found]
    return [text for value in values for text in _text(value)]


def text_of(claims: Mapping[str, Any], path: str) -> str:
    """The one value of a claim; empty where it has none."""
    return next(iter(values_of(claims, path)), "")


def _found(claims: Mapping[str, Any], path: str) -> Any:
    if path in claims:
        return claims[path]
    # From the longest name on, so that "https://corp.example/plant.sites" finds "https://corp.example/plant" before "https://corp".
    for at in [at for at, char in enumerate(path) if char == "."][::-1]:
        inner = claims.get(path[:at])
        if isinstance(inner, dict):
            return _found(inner, path[at + 1 :])
    return None


def _text(value: Any) -> Iterator[str]:
    if isinstance(value, bool):
        yield "true" if value else "false"
    elif isinstance(value, str | int):
        yield str(value)


def _place(text: str) -> Scope:
    if text == "*" or not text.isprintable() or any(len(part) > _PLACE_CHARS_MAX for part in text.split("/")):
        return ()
    try:
        return scopes_of([text])
    except ValueError:
        return ()


def _is_scope(text: str) -> bool:
    return bool(text) and all("\x21" <= char <= "\x7e" and char not in '"\\' for char in text)


def unsafe(address: str) -> str:
    """Why nothing secret goes to an address; empty where it may."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return "is no address"
    if parts.scheme == "https" and parts.hostname and address.isprintable() and " " not in address:
        return ""
    if parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost"):
        return ""
    return "is http:// to another computer" if parts.scheme == "http" else "does not begin with https://"
