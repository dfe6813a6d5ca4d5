"""The authority that agents trust: its certificate, and the fingerprint by which a token names it.

The fingerprint is the SHA-256 of the authority's public key (SubjectPublicKeyInfo), so a certificate that is renewed with the same key
keeps it. Agents trust this authority alone; they are not asked to trust whom the operating system trusts.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


class NoAuthority(ValueError):
    """A file that holds no certificate. The text says why."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate that signs, or signed itself."""

    pem: str
    fingerprint: str
    """64 hex digits."""
    subject: str
    ends: datetime

    @classmethod
    def read(cls, path: Path) -> Self:
        """The last certificate of a PEM file: in a chain, the one nearest to the root. Raises NoAuthority."""
        certificate = certificates(path)[-1]
        spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return cls(
            certificate.public_bytes(Encoding.PEM).decode(),
            hashlib.sha256(spki).hexdigest(),
            certificate.subject.rfc4514_string(),
            certificate.not_valid_after_utc,
        )


def certificates(path: Path) -> list[x509.Certificate]:
    """The certificates of a PEM file, one at least. Raises NoAuthority."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise NoAuthority(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise NoAuthority(f"{path} holds no certificate in PEM: {error}") from None


def ends(path: Path) -> tuple[datetime, str]:
    """When the first certificate of a file to end does so, and whose that is. Raises NoAuthority."""
    return min((each.not_valid_after_utc.astimezone(UTC), each.subject.rfc4514_string()) for each in certificates(path))
