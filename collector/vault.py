"""What is derived from the secret of the installation: pseudonyms, sealed texts, signatures. All its collectors derive the same.

The secret is made once and lies in the database, where personal data lies too: whoever can read it there could read those as well. A
pseudonym is an HMAC, so that nobody without the secret can find whom it stands for by trying names.
"""

import base64
import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from collector.store import users
from collector.store.database import StoreUnavailable

if TYPE_CHECKING:
    from collector.store.database import Anyone

PSEUDONYM_PREFIX = "user-"
PSEUDONYM_CHARS = 16
_BLOCK_BYTES = 64
_NONCE_BYTES = 12


class Pads(NamedTuple):
    """The two keys of an HMAC-SHA256, for computing it in SQL: sha256(outer || sha256(inner || text))."""

    inner: bytes
    outer: bytes


class Vault:
    """Empty until `load`."""

    def __init__(self) -> None:
        self._secret = b""

    async def load(self, connection: "Anyone") -> None:
        """Read the secret, or make it. Raises StoreUnavailable, StoreMisconfigured."""
        self._secret = await users.installation_secret(connection, secrets.token_bytes(32))

    def _key(self, purpose: str) -> bytes:
        if not self._secret:
            raise StoreUnavailable("the secret of the installation was not read yet")
        return hmac.digest(self._secret, b"linewarden " + purpose.encode(), hashlib.sha256)

    def pseudonym(self, text: str) -> str:
        """What stands for a person's name: always the same, and nobody can go back."""
        digest = hmac.digest(self._key("pseudonym"), text.encode(errors="replace"), hashlib.sha256)
        return PSEUDONYM_PREFIX + digest.hex()[:PSEUDONYM_CHARS]

    @property
    def pads(self) -> Pads:
        """For finding by pseudonym in SQL."""
        key = self._key("pseudonym").ljust(_BLOCK_BYTES, b"\0")
        return Pads(bytes(byte ^ 0x36 for byte in key), bytes(byte ^ 0x5C for byte in key))

    def sign(self, purpose: str, content: bytes) -> bytes:
        """A signature that only we can make."""
        return hmac.digest(self._key(purpose), content, hashlib.sha256)

    def seal(self, purpose: str, content: bytes) -> bytes:
        """What only we can read and nobody can change."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + AESGCM(self._key(purpose)).encrypt(nonce, content, None)

    def unseal(self, purpose: str, sealed: bytes) -> bytes | None:
        """What was sealed; None where it was not, or not for this."""
        try:
            return AESGCM(self._key(purpose)).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None)
        except (InvalidTag, ValueError):
            return None


def encoded(content: bytes) -> str:
    """For cookies and addresses."""
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def decoded(text: str) -> bytes:
    """Back; empty where it cannot be."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), "-_", validate=True)
    except ValueError:
        return b""
