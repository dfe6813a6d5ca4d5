"""What every answer tells a browser: no sniffing, no frames, no referrer, nothing loaded, nothing kept.

A page says for itself what it loads, by a policy of its own.
"""

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from litestar.datastructures import MutableScopeHeaders
from litestar.types import Message, Scope

_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_CSP = "Content-Security-Policy"
_FRAMES = "frame-ancestors 'none'"
_NOTHING = f"default-src 'none'; base-uri 'none'; form-action 'none'; {_FRAMES}"
_HSTS = "max-age=31536000; includeSubDomains"


def _secured(scope: Scope, public_url: str) -> bool:
    """Whether this came by TLS: here, or to a proxy in front, by the name that users have for it."""
    if scope.get("scheme") == "https":
        return True
    asked = dict(scope.get("headers") or ())
    https = public_url.startswith("https://") and asked.get(b"x-forwarded-proto", b"https") == b"https"
    return https and asked.get(b"host", b"").decode("latin-1") == urlsplit(public_url).netloc


def before_send(*, public_url: str) -> Callable[[Message, Scope], Awaitable[None]]:
    """The hook. `public_url`: where users come to; with https:// a proxy in front ends their TLS."""

    async def add(message: Message, scope: Scope) -> None:
        if message["type"] != "http.response.start":
            return
        headers: Any = MutableScopeHeaders.from_message(message)
        for name, value in _ALWAYS.items():
            headers.setdefault(name, value)
        policy = headers.get(_CSP)
        if policy is None:
            headers[_CSP] = _NOTHING
        elif "frame-ancestors" not in policy:
            headers[_CSP] = f"{policy}; {_FRAMES}"
        if scope["path"].startswith("/v1/"):
            headers.setdefault("Cache-Control", "no-store")
        if _secured(scope, public_url):
            headers.setdefault("Strict-Transport-Security", _HSTS)

    return add
