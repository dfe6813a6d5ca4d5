"""Paths of requests that have one spelling: every other spelling of a path is 404.

A proxy in front decides by the path whether a request needs a client certificate, and the router here decides what it means. Both have to
read the same path. RFC 3986 lets one resource be written in many ways (`//`, a slash at the end, `.` and `..`, `%2f`, `%62` for `b`,
upper-case hex digits in a UUID), and programs differ in which of them they undo. So only the shortest spelling is served:

    /segment/segment     segments of unreserved characters and `@ ! $ & ' ( ) * + , = :`, and of octets that have to be encoded, `%` and
                         two upper-case hex digits; no empty segment, no `.` or `..`, nothing encoded that need not be, no encoded
                         slash, backslash or control character
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from collector.problems import MEDIA_TYPE

PATH_BYTES_MAX = 4_096
_PLAIN = rb"[A-Za-z0-9._~!$&'()*+,=:@-]"
_SEGMENT = re.compile(rb"(?:" + _PLAIN + rb"|%[0-9A-F]{2})+")
_ENCODED = re.compile(rb"%([0-9A-F]{2})")
_UNENCODED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/\\")
_CONTROL_MAX = 0x1F
_DELETE = 0x7F
_UUID = re.compile(r"[{(]?(?:urn:uuid:)?[0-9A-Fa-f-]{32,36}[)}]?")
_BODY = (
    b'{"type":"urn:linewarden:problem:path","title":"Not Found","status":404,'
    b'"detail":"the path is not spelled as it is served: no //, no slash at the end, nothing encoded that need not be","code":"path"}'
)
_HEADERS = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(_BODY)).encode())]

Scope = Any
App = Callable[[Scope, Any, Any], Awaitable[None]]


def is_normal(raw: bytes) -> bool:
    """Whether a raw path, without its query, is the one spelling of what it means."""
    if raw == b"/":
        return True
    if not raw.startswith(b"/") or len(raw) > PATH_BYTES_MAX:
        return False
    return all(_is_segment(segment) for segment in raw[1:].split(b"/"))


def _is_segment(segment: bytes) -> bool:
    if segment in (b".", b"..") or not _SEGMENT.fullmatch(segment):
        return False
    octets = (int(found[1], 16) for found in _ENCODED.finditer(segment))
    return not any(
        octet in _UNENCODED or octet <= _CONTROL_MAX or octet == _DELETE for octet in octets
    ) and _is_uuid_plain(segment.decode("ascii"))


def _is_uuid_plain(segment: str) -> bool:
    """Whether a segment that can be read as a UUID is written as one: lower case, in five groups, or as 32 digits, which are names here."""
    if not _UUID.fullmatch(segment):
        return True
    try:
        found = UUID(segment)
    except ValueError:
        return True
    return segment in (str(found), found.hex)


def _raw(scope: Scope) -> bytes:
    raw: bytes | None = scope.get("raw_path")
    return scope["path"].encode() if raw is None else raw


def only_normal(app: App) -> App:
    """The application behind a check of each request's path."""

    async def checked(scope: Scope, receive: Any, send: Any) -> None:
        # Some servers, and clients for tests, have the query in it.
        if scope["type"] not in ("http", "websocket") or is_normal(_raw(scope).partition(b"?")[0]):
            await app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": list(_HEADERS)})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else _BODY})
        else:
            await receive()
            await send({"type": "websocket.close", "code": 4404, "reason": "no such path"})

    return checked
