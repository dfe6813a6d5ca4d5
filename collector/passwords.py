"""Passwords (argon2id) and one-time codes (RFC 6238: SHA-1, 30 s, six digits, as every authenticator app makes them).

Hashing a password takes 64 MiB and a tenth of a second by intent: few at once, and a bounded number waits. A crowd that waits does not
keep the owners out: of one network only a few wait, and some places are for browsers in which the user signed in before.

How easily a password is guessed is judged by zxcvbn: lists of leaked passwords, words and names, with what people do to them (capital
letters, digits behind, 0 for o, rows of keys, dates), and the words that belong to the account.
"""

import asyncio
import base64
import hashlib
import hmac
import re
import secrets
import struct
import time
from collections import Counter
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
WAITING_NETWORK_MAX = 10
"""Of one network: so many wait at most, and the rest is told to come again."""
WAITING_KNOWN_MAX = 20
"""Beside WAITING_MAX, for browsers in which the user signed in before."""
PASSWORD_CHARS_MIN = 12
PASSWORD_CHARS_MAX = 200
SCORE_MIN = 3
"""Of zxcvbn, 0 to 4: at least 10^8 guesses, too many for a sign-in that slows down."""
JUDGED_CHARS_MAX = 40
"""What is behind is not looked at: the time that zxcvbn takes grows with the square of the length, and more."""
STEP_S = 30
STEPS_OFF = 1
"""A clock may be off by so many steps."""
CODE_DIGITS = 6
RECOVERY_CODES = 10
KNOWN = "known"
"""In place of a network: browsers in which the user signed in before, and users who are signed in."""
_HASHER = PasswordHasher()
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"


def weak(password: str, name: str, *about: str) -> str | None:
    """Return why a password is not taken; None where it is. `about`: other texts that belong to the account, like the shown name."""
    if len(password) < PASSWORD_CHARS_MIN:
        return f"a password has at least {PASSWORD_CHARS_MIN} characters. A few words make a good one"
    if len(password) > PASSWORD_CHARS_MAX:
        return f"a password has at most {PASSWORD_CHARS_MAX} characters"
    if name.lower() in password.lower() or len(set(password)) < 5:  # noqa: PLR2004 - aaaaaaaaaaaa
        return "this password is the first that others would try: it holds the name, or few different characters"
    # Lists of 100,000 words: loaded where a password is set, and not by the agent or the tests of other parts.
    from zxcvbn import zxcvbn

    texts = [name, *about]
    words = {word for text in texts for word in re.split(r"\W+|_", text.lower()) if word}
    found = zxcvbn(password[:JUDGED_CHARS_MAX], user_inputs=["linewarden", *texts, *sorted(words)])
    if found["score"] >= SCORE_MIN:
        return None
    warning = str(found["feedback"]["warning"] or "").rstrip(".").lower()
    why = f"this password is easily guessed{f': {warning}' if warning else ''}"
    return f"{why}. A few words that nobody else would put together make a good one"


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
        self._waiting: Counter[str] = Counter()
        self._nobody = hashed(
            "nobody has this password: it makes a name that does not exist take as long as one that does"
        )

    async def verify(self, stored: str | None, password: str, *, network: str = "", known: bool = False) -> bool:
        """Return whether it is the password. Where there is none, the answer takes as long. Raises Problem.

        `network`: from where; `known`: by a browser in which the user signed in before.
        """
        fits = await self._run(_fits, stored or self._nobody, password, network=KNOWN if known else network)
        return fits and stored is not None

    async def hash(self, password: str) -> str:
        """As `hashed`. Raises Problem."""
        return await self._run(hashed, password, network=KNOWN)

    async def weak(self, password: str, name: str, *about: str) -> str | None:
        """As `weak`, which takes up to half a second. Raises Problem."""
        return await self._run(weak, password, name, *about, network=KNOWN)

    def _has_room(self, network: str) -> bool:
        if network == KNOWN:
            return self._waiting[KNOWN] < WAITING_KNOWN_MAX
        others = self._waiting.total() - self._waiting[KNOWN]
        return others < WAITING_MAX and (not network or self._waiting[network] < WAITING_NETWORK_MAX)

    async def _run(self, work: "Callable[[*Given], T]", *arguments: *Given, network: str) -> T:
        if not self._has_room(network):
            raise Problem(503, "too many sign-ins wait here", code="busy", headers={"Retry-After": "5"})
        self._waiting[network] += 1
        try:
            async with self._slots:
                return await asyncio.to_thread(work, *arguments)
        finally:
            self._waiting[network] -= 1
            if not self._waiting[network]:
                del self._waiting[network]


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
