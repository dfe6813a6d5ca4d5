"""Passwords (argon2id) and one-time codes (RFC 6238: SHA-1, 30 s, six digits, as every authenticator app makes them).

Hashing a password takes 64 MiB and a tenth of a second by intent: few at once, and a bounded number waits.
"""

import asyncio
import base64
import hashlib
import hmac
import secrets
import struct
import time
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple
from urllib.parse import quote, urlencode

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from collector.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Given = TypeVarTuple("Given")
AT_ONCE_MAX = 2
WAITING_MAX = 50
PASSWORD_CHARS_MIN = 12
PASSWORD_CHARS_MAX = 200
STEP_S = 30
STEPS_OFF = 1
"""A clock may be off by so many steps."""
CODE_DIGITS = 6
RECOVERY_CODES = 10
_HASHER = PasswordHasher()
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"


def weak(password: str, name: str) -> str | None:
    """Why a password is not taken; None where it is."""
    if len(password) < PASSWORD_CHARS_MIN:
        return f"a password has at least {PASSWORD_CHARS_MIN} characters. A few words make a good one"
    if len(password) > PASSWORD_CHARS_MAX:
        return f"a password has at most {PASSWORD_CHARS_MAX} characters"
    if name.lower() in password.lower() or len(set(password)) < 5:  # noqa: PLR2004 - aaaaaaaaaaaa
        return "this password is the first that others would try: it holds the name, or few different characters"
    return None


def hashed(password: str) -> str:
    """argon2id. Takes a tenth of a second."""
    return _HASHER.hash(password.encode(errors="surrogatepass"))


def needs_rehash(stored: str) -> bool:
    """Whether it was made at lower costs than today's."""
    return _HASHER.check_needs_rehash(stored)


def _fits(stored: str, password: str) -> bool:
    try:
        return _HASHER.verify(stored, password.encode(errors="surrogatepass"))
    except (VerificationError, InvalidHashError):
        return False


class Hashing:
    """Few at once."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(AT_ONCE_MAX)
        self._waiting = 0
        self._nobody = hashed(
            "nobody has this password: it makes a name that does not exist take as long as one that does"
        )

    async def verify(self, stored: str | None, password: str) -> bool:
        """Whether it is the password. Where there is none, the answer takes as long. Raises Problem."""
        fits = await self._run(_fits, stored or self._nobody, password)
        return fits and stored is not None

    async def hash(self, password: str) -> str:
        """As `hashed`. Raises Problem."""
        return await self._run(hashed, password)

    async def _run(self, work: "Callable[[*Given], T]", *arguments: *Given) -> T:
        if self._waiting >= WAITING_MAX:
            raise Problem(503, "too many sign-ins wait here", code="busy", headers={"Retry-After": "5"})
        self._waiting += 1
        try:
            async with self._slots:
                return await asyncio.to_thread(work, *arguments)
        finally:
            self._waiting -= 1


def new_secret() -> bytes:
    """For one-time codes."""
    return secrets.token_bytes(20)


def totp_code(secret: bytes, step: int) -> str:
    """The code of a time step."""
    digest = hmac.digest(secret, struct.pack(">Q", step), hashlib.sha1)
    at = digest[-1] & 15
    number = int.from_bytes(digest[at : at + 4]) & 0x7FFFFFFF
    return str(number % 10**CODE_DIGITS).zfill(CODE_DIGITS)


def step_of(secret: bytes, code: str, now_s: float | None = None) -> int | None:
    """The time step whose code this is; None where it is of none that counts now."""
    step = int(time.time() if now_s is None else now_s) // STEP_S
    found = None
    for near in range(step - STEPS_OFF, step + STEPS_OFF + 1):
        if hmac.compare_digest(totp_code(secret, near).encode(), code.encode(errors="replace")):
            found = near
    return found


def address_of(secret: bytes, name: str) -> str:
    """What an authenticator app reads, as text or as a picture of it."""
    text = base64.b32encode(secret).decode().rstrip("=")
    query = {"secret": text, "issuer": "Linewarden", "algorithm": "SHA1", "digits": CODE_DIGITS, "period": STEP_S}
    return f"otpauth://totp/{quote(f'Linewarden:{name}')}?{urlencode(query)}"


def new_recovery_codes() -> list[str]:
    """Codes of 80 bits that each stand in once for a one-time code."""
    return [
        "-".join("".join(secrets.choice(_ALPHABET) for _ in range(4)) for _ in range(4)) for _ in range(RECOVERY_CODES)
    ]


def recovery_hash(code: str) -> bytes:
    """As it is stored. Case and dashes do not matter."""
    return hashlib.sha256(code.strip().lower().replace("-", "").encode(errors="replace")).digest()
