"""The provider of OpenID Connect: what it says of itself, its keys, and what its ID tokens are worth.

Nothing is fetched before somebody signs in, so a provider that is away keeps no collector from starting. An ID token counts only where a
key of the provider signed it by an algorithm with a public key, for this client and this one sign-in, and now. What cannot be used is told
in words, as a Problem.
"""

import asyncio
import math
import ssl
import time
import warnings
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote_plus

import httpx
import msgspec
from joserfc import jws
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey, import_key
from msgspec import Struct

from collector.oidc_settings import OidcSettings, unsafe
from collector.problems import Problem

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")
"""Those with a public key. With `none` or an HMAC anybody who knows that key could make tokens."""
ANSWER_BYTES_MAX = 1024 * 1024
TOKEN_CHARS_MAX = 64 * 1024
METADATA_S = 3_600.0
KEYS_S = 3_600.0
KEYS_AGAIN_S = 10.0
"""An unknown key id is looked for at the provider at most so often."""
FAILED_S = 2.0
"""For so long a provider that did not answer is not asked again."""
AGE_S_MAX = 600
RSA_BITS_MIN = 2_048
_KEYS_MAX = 100
_SUBJECT_CHARS_MAX = 255


class Metadata(Struct):
    """What the provider says of itself."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    id_token_signing_alg_values_supported: list[str] = msgspec.field(default_factory=lambda: ["RS256"])
    token_endpoint_auth_methods_supported: list[str] = msgspec.field(default_factory=lambda: ["client_secret_basic"])
    authorization_response_iss_parameter_supported: bool = False
    end_session_endpoint: str = ""


class _Tokens(Struct):
    id_token: Annotated[str, msgspec.Meta(max_length=TOKEN_CHARS_MAX)]


class _Header(Struct):
    alg: str
    kid: str | None = None


class _Trouble(Struct):
    error: str = ""
    error_description: str = ""


class Provider:
    """Asked when somebody signs in."""

    def __init__(self, settings: OidcSettings) -> None:
        self.settings = settings
        self._metadata: Metadata | None = None
        self._metadata_at = 0.0
        self._keys: list[Key] = []
        self._keys_at = -math.inf
        self._failed: Problem | None = None
        self._failed_at = -math.inf
        self._lock = asyncio.Lock()
        self._keys_lock = asyncio.Lock()

    async def metadata(self) -> Metadata:
        """What it says of itself, at most an hour old. Raises Problem."""
        async with self._lock:
            now = time.monotonic()
            if self._metadata is not None and now - self._metadata_at < METADATA_S:
                return self._metadata
            if self._failed is not None and now - self._failed_at < FAILED_S:
                raise Problem(self._failed.status, self._failed.detail, code=self._failed.code)
            try:
                self._metadata = await self._discover()
            except Problem as problem:
                self._failed, self._failed_at = problem, time.monotonic()
                raise
            self._metadata_at, self._failed = time.monotonic(), None
            return self._metadata

    async def _discover(self) -> Metadata:
        address = self.settings.issuer.rstrip("/") + "/.well-known/openid-configuration"
        content = await self._answered("GET", address, "its description")
        found: Metadata = _decoded(content, Metadata, f"{address} is no description of a provider")
        if found.issuer != self.settings.issuer:
            raise _unfit(
                f"it calls itself {found.issuer[:200]!r}, and [access.oidc] issuer is {self.settings.issuer!r}"
            )
        needed = [found.authorization_endpoint, found.token_endpoint, found.jwks_uri]
        for endpoint in [*needed, *filter(None, [found.end_session_endpoint])]:
            if why := unsafe(endpoint):
                raise _unfit(f"its address {endpoint[:200]!r} {why}")
        return found

    async def claims(self, code: str, *, verifier: str, nonce: str, redirect_uri: str) -> dict[str, Any]:
        """Who signed in, for the code that came back. Raises Problem."""
        metadata = await self.metadata()
        token = await self._exchange(metadata, code, verifier, redirect_uri)
        header = _header(token)
        allowed = [name for name in ALGORITHMS if name in metadata.id_token_signing_alg_values_supported]
        if header.alg not in allowed:
            raise _bad(f"it is signed by {header.alg[:40]!r}, and {', '.join(allowed) or 'nothing'} is taken")
        key = await self._key(metadata, header)
        return checked(token, key, header.alg, self.settings, nonce)

    async def _exchange(self, metadata: Metadata, code: str, verifier: str, redirect_uri: str) -> str:
        try:
            secret = self.settings.client_secret
        except (OSError, UnicodeDecodeError) as error:
            raise Problem(502, f"the secret of [access.oidc] cannot be read: {error}", code="oidc-client") from None
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }
        form["client_id"] = self.settings.client_id
        headers = {}
        if secret and "client_secret_basic" in metadata.token_endpoint_auth_methods_supported:
            pair = f"{quote_plus(self.settings.client_id)}:{quote_plus(secret)}"
            auth = httpx.BasicAuth(*pair.split(":", 1))
            headers["Authorization"] = next(auth.auth_flow(httpx.Request("POST", metadata.token_endpoint))).headers[
                "Authorization"
            ]
            del form["client_id"]
        elif secret:
            form["client_secret"] = secret
        content = await self._answered("POST", metadata.token_endpoint, "a token", form=form, headers=headers)
        tokens: _Tokens = _decoded(content, _Tokens, "its answer has no ID token")
        return tokens.id_token

    async def _key(self, metadata: Metadata, header: _Header) -> Key:
        # A lock of its own: keys that are slow to come hold up nobody who is only sent to the provider.
        async with self._keys_lock:
            age_s = time.monotonic() - self._keys_at
            found = _chosen(self._keys, header) if age_s < KEYS_S else None
            if found is None and age_s >= KEYS_AGAIN_S:
                self._keys = _keys(await self._answered("GET", metadata.jwks_uri, "its keys"))
                self._keys_at = time.monotonic()
                found = _chosen(self._keys, header)
        if found is None:
            raise _bad("the provider has no such key to sign with; where it changed keys just now, try again")
        return found

    async def _answered(
        self, method: str, address: str, what: str, *, form: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> bytes:  # fmt: skip
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                status, content = await self._asked(
                    method, address, form, {"Accept-Encoding": "identity", **(headers or {})}
                )
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            why = f"{type(error).__name__}: {error}"[:200]
            raise Problem(
                503, f"the provider of sign-ins did not give {what} ({why}). Try later, or sign in with a password", code="oidc-provider"
            ) from None  # fmt: skip
        if status != 200:  # noqa: PLR2004
            raise _refused(status, content, what)
        return content

    async def _asked(
        self, method: str, address: str, form: Mapping[str, str] | None, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        file = self.settings.ca_file
        verify = await asyncio.to_thread(ssl.create_default_context, cafile=str(file) if file else None)
        content = bytearray()
        async with (
            httpx.AsyncClient(timeout=self.settings.timeout_s, verify=verify, follow_redirects=False) as client,
            client.stream(method, address, data=form, headers=headers) as answer,
        ):
            async for part in answer.aiter_raw():
                content += part
                if len(content) > ANSWER_BYTES_MAX:
                    raise _unfit(f"it answers with more than {ANSWER_BYTES_MAX} bytes")
        return answer.status_code, bytes(content)


def checked(token: str, key: Key, algorithm: str, settings: OidcSettings, nonce: str) -> dict[str, Any]:
    """The claims of an ID token, where all of it is right. Raises Problem."""
    registry = jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
    registry.max_header_length = 16_384
    try:
        payload = jws.deserialize_compact(token, key, registry=registry).payload
        claims: dict[str, Any] = msgspec.json.decode(payload or b"", type=dict[str, Any])
    except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise _bad(f"its signature or form is wrong ({type(error).__name__})") from None
    if claims.get("iss") != settings.issuer:
        raise _bad(f"another issuer made it: {str(claims.get('iss'))[:200]!r}")
    _check_audience(claims, settings.client_id)
    _check_times(claims, settings.leeway_s)
    if claims.get("nonce") != nonce:
        raise _bad("it belongs to another sign-in (nonce)")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= _SUBJECT_CHARS_MAX or not subject.isprintable():
        raise _bad("it does not say whom it is about (sub)")
    return claims


def _check_audience(claims: Mapping[str, Any], client_id: str) -> None:
    audience = claims.get("aud")
    everyone = audience if isinstance(audience, list) else [audience]
    party = claims.get("azp")
    if client_id not in everyone or party not in (None, client_id) or (len(everyone) > 1 and party is None):
        raise Problem(
            403,
            "the provider's token is for another application. Compare client_id in [access.oidc]",
            code="oidc-audience",
        )


def _check_times(claims: Mapping[str, Any], leeway_s: int) -> None:
    now = time.time()
    moments = {name: claims.get(name) for name in ("exp", "iat", "nbf") if name != "nbf" or "nbf" in claims}
    for name, value in moments.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _bad(f"it does not say when it holds ({name})")
    early = max(float(moments["iat"] or 0), float(moments.get("nbf") or 0)) - now
    late = max(now - float(moments["exp"] or 0), now - float(moments["iat"] or 0) - AGE_S_MAX)
    if early > leeway_s or late > leeway_s:
        way = f"{early:.0f} s from the future" if early > leeway_s else f"{late:.0f} s too old"
        raise Problem(
            403, f"by this collector's clock the provider's token is {way}. Compare both clocks (timedatectl)", code="oidc-clock"
        )  # fmt: skip


def _header(token: str) -> _Header:
    try:
        return msgspec.convert(jws.extract_compact(token.encode()).headers(), _Header)
    except (JoseError, ValueError, TypeError, KeyError, RecursionError):
        raise _bad("it has no form that is known. It may be encrypted: have the provider only sign it") from None


def _keys(content: bytes) -> list[Key]:
    """Keys that sign; others are left aside, so that one of a new kind does not spoil the rest."""
    found: list[Key] = []
    listed = _decoded(content, dict[str, Any], "its keys cannot be read").get("keys")
    for each in (listed if isinstance(listed, list) else [])[:_KEYS_MAX]:
        if not isinstance(each, dict) or each.get("kty") not in ("RSA", "EC", "OKP") or each.get("use", "sig") != "sig":
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SecurityWarning)  # of a small key, which is left aside below
                key = import_key({name: value for name, value in each.items() if isinstance(value, str)})
            if isinstance(key, RSAKey) and key.public_key.key_size < RSA_BITS_MIN:
                continue
        except (JoseError, ValueError, TypeError, KeyError):
            continue
        found.append(key)
    return found


def _chosen(keys: list[Key], header: _Header) -> Key | None:
    kind = {"R": RSAKey, "P": RSAKey}.get(header.alg[0], ECKey if header.alg.startswith("ES") else OKPKey)
    fitting = [key for key in keys if isinstance(key, kind) and key.get("alg") in (None, header.alg)]
    if header.kid is not None:
        return next((key for key in fitting if key.get("kid") == header.kid), None)
    return fitting[0] if len(fitting) == 1 else None


def _decoded(content: bytes, kind: type[Any], why: str) -> Any:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise _unfit(why) from None


def _refused(status: int, content: bytes, what: str) -> Problem:
    try:
        trouble = msgspec.json.decode(content, type=_Trouble)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        trouble = _Trouble()
    if trouble.error == "invalid_grant":
        return Problem(
            403, "the provider does not take its code again, or it is too old. Sign in once more", code="oidc-code"
        )
    if trouble.error in ("invalid_client", "unauthorized_client"):
        return Problem(
            502, "the provider refuses this collector. Compare client_id and secret in [access.oidc] with those there", code="oidc-client"
        )  # fmt: skip
    if status >= 500:  # noqa: PLR2004
        return Problem(
            503, f"the provider of sign-ins answers {status} for {what}. Try again later", code="oidc-provider"
        )
    return _unfit(f"it answers {status} for {what} {trouble.error[:60]}".rstrip())


def _unfit(why: str) -> Problem:
    return Problem(502, f"the provider of sign-ins cannot be used: {why}", code="oidc-provider")


def _bad(why: str) -> Problem:
    return Problem(403, f"the provider's token is not taken: {why}", code="oidc-token")
