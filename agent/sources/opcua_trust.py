"""Who we are to OPC UA servers, and which server we take for itself.

The agent's own certificate and key are made on first run, in the state directory, the key readable by its owner alone; its SAN carries
the application URI, which servers compare with what the client calls itself. A server's certificate is pinned: the file that the
configuration names, or the one that `linewarden-agent trust URL` left in the folder `trusted`. A certificate that was never seen is
refused with its thumbprint and with that command; nothing is ever trusted because a network said so.
"""

import base64
import hashlib
import os
import re
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from asyncua.crypto.cert_gen import dump_private_key_as_pem, generate_private_key, generate_self_signed_app_certificate
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from agent import owned_files
from agent.component import ConfigError

CERTIFICATE_DAYS = 1_825
"""Five years: changing it takes a person at every machine's trust list, so it is warned of and not changed behind their backs."""
WARN_DAYS = 30
CERTIFICATE_BYTES_MAX = 100_000
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Identity:
    """The agent as an OPC UA client application: certificate (DER), key (PEM), and the URI that the certificate names."""

    certificate: bytes
    key: bytes
    application_uri: str


def state_folder(state_dir: str | None) -> Path:
    """Where OPC UA's certificates live: below the agent's state directory, or systemd's, or the usual one."""
    return Path(state_dir or os.environ.get("STATE_DIRECTORY", "").split(":")[0] or "/var/lib/linewarden") / "opcua"


def default_application_uri() -> str:
    """The URI of a certificate that we make: stable for a computer, different for two of them."""
    return f"urn:{socket.gethostname()}:linewarden:agent"


def thumbprint(certificate: bytes) -> str:
    """SHA-1 of the DER, in hex: what OPC UA calls a thumbprint and every server's tools show."""
    return hashlib.sha1(certificate, usedforsecurity=False).hexdigest().upper()


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of the DER, in hex: what trust rests on."""
    return hashlib.sha256(certificate).hexdigest()


def first_certificate(der: bytes) -> bytes:
    """The leaf of what a server presents: some send their chain behind it, one DER after the other."""
    if len(der) < 4 or der[0] != 0x30:  # noqa: PLR2004 - a DER sequence
        return der
    octets = der[1] & 0x7F if der[1] & 0x80 else 0
    length = int.from_bytes(der[2 : 2 + octets], "big") if octets else der[1]
    return der[: 2 + octets + length]


def read_certificate(path: Path, key: str) -> bytes:
    """A certificate file, DER or PEM, as DER. Raises ConfigError, naming the configuration key."""
    try:
        content = path.read_bytes()[:CERTIFICATE_BYTES_MAX]
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}", key=key, remedy="Name a readable certificate file, DER or PEM."
        ) from None
    found = _PEM.search(content)
    try:
        der = base64.b64decode(found.group(1)) if found else first_certificate(content)
        x509.load_der_x509_certificate(der)
    except ValueError:
        raise ConfigError(f"{path} is not a certificate", key=key, remedy="It must be X.509, as DER or PEM.") from None
    return der


def expires_in_days(certificate: bytes, now: datetime | None = None) -> float:
    """Days until a certificate ends; negative when it has."""
    end = x509.load_der_x509_certificate(certificate).not_valid_after_utc
    return (end - (now or datetime.now(UTC))).total_seconds() / 86_400


def subject(certificate: bytes) -> str:
    """Whose certificate it says it is."""
    return x509.load_der_x509_certificate(certificate).subject.rfc4514_string()


def application_uri_of(certificate: bytes) -> str | None:
    """The URI in the subject alternative name."""
    try:
        names = x509.load_der_x509_certificate(certificate).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except x509.ExtensionNotFound:
        return None
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    return uris[0] if uris else None


def own_identity(certificate_file: Path, key_file: Path) -> Identity:
    """Our certificate and key, made if neither is there. Raises ConfigError where one is missing, unreadable or without a URI."""
    if not certificate_file.exists() and not key_file.exists():
        _make_identity(certificate_file, key_file)
    certificate = read_certificate(certificate_file, "client_certificate_file")
    try:
        key = key_file.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{key_file}: {error.strerror}",
            key="client_key_file",
            remedy="Give the key that belongs to the certificate, as PEM.",
        ) from None
    uri = application_uri_of(certificate)
    if uri is None:
        remedy = "Servers compare it with what the client calls itself. Use a certificate with a URI in its subject alternative name."
        raise ConfigError(f"{certificate_file} names no application URI", key="client_certificate_file", remedy=remedy)
    return Identity(certificate, key, uri)


def _make_identity(certificate_file: Path, key_file: Path) -> None:
    uri, host = default_application_uri(), socket.gethostname()
    key = generate_private_key()
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri), x509.DNSName(host)]
    subject_names = {"organizationName": "Linewarden"}
    certificate = generate_self_signed_app_certificate(
        key, "Linewarden agent", subject_names, names, [ExtendedKeyUsageOID.CLIENT_AUTH], CERTIFICATE_DAYS
    )
    try:
        # The key first: a certificate without its key would be found on the next start and never be repaired.
        write_file(key_file, dump_private_key_as_pem(key), mode=0o600)
        write_file(certificate_file, certificate.public_bytes(Encoding.DER), mode=0o644)
    except OSError as error:
        remedy = "The agent makes its certificate there on first run: make the folder writable for it, or name another in state_dir."
        raise ConfigError(f"{error.filename}: {error.strerror}", key="client_certificate_file", remedy=remedy) from None


def write_file(path: Path, content: bytes, *, mode: int) -> None:
    """Write a whole file or none, on the disk before it has its name, owned by the owner of its folder."""
    owned_files.make_folder(path.parent)
    owned_files.write(path, content, mode=mode)


def trusted_file(folder: Path, url: str) -> Path:
    """Where `trust` keeps the certificate of the server at a URL."""
    parts = urlsplit(url)
    host = re.sub(r"[^A-Za-z0-9._-]", "_", parts.hostname or "unknown")
    return folder / "trusted" / f"{host}_{parts.port or 4840}.der"
