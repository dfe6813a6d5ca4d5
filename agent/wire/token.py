"""The one-time token of an enrolment: what the collector's command prints, and the agent's command reads.

    lwe1 . prefix . secret . fingerprint . url        the last two may be "-"

`prefix.secret` is what the collector knows (the secret by its hash). `fingerprint` is the SHA-256 of the public key of the authority behind
the collector's certificate, hex: by it the agent knows the collector before it sends the secret. `url` is base64url without padding.
"""

import base64
import binascii
import re
from typing import NamedTuple

NOTHING = "-"
_PATTERN = re.compile(
    r"lwe1\.([a-z0-9]{8})\.([A-Za-z0-9_-]{22,100})\.(-|[0-9a-f]{64})\.(-|[A-Za-z0-9_-]{1,1000})", re.ASCII
)


class MalformedToken(ValueError):
    """A text that is no token. It is not repeated in the message: it may be a mistyped secret."""


class Token(NamedTuple):
    """What a token says."""

    prefix: str
    secret: str
    fingerprint: str | None
    url: str | None

    @property
    def shown(self) -> str:
        """What is sent to the collector."""
        return f"{self.prefix}.{self.secret}"


def write_token(token: Token) -> str:
    """The token as one word."""
    url = base64.urlsafe_b64encode(token.url.encode()).decode().rstrip("=") if token.url else NOTHING
    return f"lwe1.{token.prefix}.{token.secret}.{token.fingerprint or NOTHING}.{url}"


def read_token(text: str) -> Token:
    """What a token says. Raises MalformedToken."""
    found = _PATTERN.fullmatch(text.strip())
    if found is None:
        raise MalformedToken(
            "this is no enrolment token: it begins with lwe1. and has five parts; give it as it was printed"
        )
    prefix, secret, fingerprint, url = found.groups()
    try:
        where = None if url == NOTHING else base64.urlsafe_b64decode(url + "=" * (-len(url) % 4)).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise MalformedToken("the address in the token cannot be read; give the token as it was printed") from None
    return Token(prefix, secret, None if fingerprint == NOTHING else fingerprint, where)
