"""Who we are to OPC UA servers, and which server we take for itself.

The agent's own certificate and key are made on first run, in the state directory, the key readable by its owner alone; its SAN carries
the application URI, which servers compare with what the client calls itself. A server's certificate is pinned: the file that the
configuration names, or the one that `linewarden-agent trust URL` left in the folder `trusted`. A certificate that was never seen is
refused with its thumbprint and with that command; nothing is ever trusted because a network said so.
"""

import base64
import fcntl
import hashlib
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from asyncua.crypto.cert_gen import dump_private_key_as_pem, generate_private_key, generate_self_signed_app_certificate
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent import owned_files
from agent.component import ConfigError, NotConnected

CERTIFICATE_DAYS = 1_825
"""Five years: changing it takes a person at every machine's trust list, so it is warned of and not changed behind their backs."""
WARN_DAYS = 30
CERTIFICATE_BYTES_MAX = 100_000
COMMON_NAME = "Linewarden agent"
"""Of a certificate that we make; by it, and by being its own issuer, such a one is known."""
LOCK_WAIT_S = 20.0
"""For another process that makes our key: longer than the slowest station takes for one."""
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


def own_identity(certificate_file: Path, key_file: Path, *, repair: bool = False) -> Identity:
    """Return our certificate and key, made if neither is there. Raises ConfigError where they cannot be used, NotConnected where
    another process holds the folder too long.

    One writer at a time, in this process and in others (several sources start at once; `check`, `browse` and the daemon run side by side).
    The key is on disk before its certificate: after a crash between the two, the key is given a certificate by the next start.

    `repair`: the pair is the agent's own, in its state directory. One that does not match, which earlier versions could leave behind, is
    made good: no server can have accepted it. A pair that a person has put there is never touched.
    """
    try:
        if not _usable(certificate_file, key_file):
            with _only_writer(key_file.parent):
                _make_or_repair(certificate_file, key_file, repair=repair)
    except OSError as error:
        remedy = "The agent makes its certificate there on first run: make the folder writable for it, or name another in state_dir."
        raise ConfigError(f"{error.filename}: {error.strerror}", key="client_certificate_file", remedy=remedy) from None
    certificate = read_certificate(certificate_file, "client_certificate_file")
    key = read_key(key_file, "client_key_file")
    check_pair(certificate, key, certificate_file, key_file, "client_key_file")
    uri = application_uri_of(certificate)
    if uri is None:
        remedy = "Servers compare it with what the client calls itself. Use a certificate with a URI in its subject alternative name."
        raise ConfigError(f"{certificate_file} names no application URI", key="client_certificate_file", remedy=remedy)
    return Identity(certificate, key, uri)


def read_key(path: Path, key: str) -> bytes:
    """Return a private key file's PEM. Raises ConfigError, naming the configuration key, where it is none that can be used."""
    try:
        content = path.read_bytes()[:CERTIFICATE_BYTES_MAX]
    except OSError as error:
        remedy = "Give the key that belongs to the certificate, as PEM."
        raise ConfigError(f"{path}: {error.strerror}", key=key, remedy=remedy) from None
    try:
        _load_key(content)
    except TypeError:
        remedy = "Give it without a passphrase, readable by the agent's user alone."
        raise ConfigError(f"{path} is protected by a passphrase", key=key, remedy=remedy) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(
            f"{path} is not a private key", key=key, remedy="It must be PEM, without a passphrase."
        ) from None
    return content


def check_pair(certificate: bytes, key: bytes, certificate_file: Path, key_file: Path, name: str) -> None:
    """Raise ConfigError where a certificate (DER) was made for another key (PEM) than the given one."""
    if not _match(certificate, key):
        remedy = "Give the key that the certificate was made for, or a certificate made for this key."
        raise ConfigError(f"{key_file} is not the key of the certificate {certificate_file}", key=name, remedy=remedy)


def _match(certificate: bytes, key: bytes) -> bool:
    public = x509.load_der_x509_certificate(certificate).public_key()
    return _load_key(key).public_key() == public


def _load_key(pem: bytes) -> PrivateKeyTypes:
    # Without the test for primes, which takes a small station longer than all the rest of a connection.
    return load_pem_private_key(pem, None, unsafe_skip_rsa_key_validation=True)


def _usable(certificate_file: Path, key_file: Path) -> bool:
    """Whether both files are there and belong together. An error of a file counts as usable: reading it names the error."""
    if not certificate_file.exists() or not key_file.exists():
        return False
    try:
        certificate, key = read_certificate(certificate_file, ""), read_key(key_file, "")
    except ConfigError:
        return False
    return _match(certificate, key)


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: no file is left behind for it. Where a file system has no locks there is one writer less to fear."""
    owned_files.make_folder(folder)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline_s = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise NotConnected(
                        f"{folder}: another process has been writing there for {LOCK_WAIT_S:g} s"
                    ) from None
                time.sleep(0.02)
            except OSError:
                break
        yield
    finally:
        os.close(handle)


def _make_or_repair(certificate_file: Path, key_file: Path, *, repair: bool) -> None:
    """Make what is missing, under the lock: another process may have made it while this one waited."""
    if _usable(certificate_file, key_file):
        return
    no_certificate = not certificate_file.exists()
    if key_file.exists() and not repair:
        return
    if not no_certificate and not (repair and key_file.exists() and _made_here(certificate_file)):
        return
    key = _own_key(key_file)
    if key is None:
        return
    write_file(certificate_file, _certificate_for(key).public_bytes(Encoding.DER), mode=0o644)


def _own_key(key_file: Path) -> rsa.RSAPrivateKey | None:
    """Return the key in the file, a new one where there is none or only the remains of one. None where it is somebody else's."""
    if key_file.exists():
        try:
            key = _load_key(key_file.read_bytes())
        except ValueError:
            pass
        except TypeError:
            return None
        else:
            return key if isinstance(key, rsa.RSAPrivateKey) else None
    key = generate_private_key()
    write_file(key_file, dump_private_key_as_pem(key), mode=0o600)
    return key


def _made_here(certificate_file: Path) -> bool:
    """Whether a certificate is one that an agent made for itself, or what a crash left of one: a readable one of others is kept."""
    try:
        found = x509.load_der_x509_certificate(read_certificate(certificate_file, ""))
    except ConfigError:
        return not certificate_file.read_bytes()
    return found.issuer == found.subject and COMMON_NAME in {
        attribute.value for attribute in found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    }


def _certificate_for(key: rsa.RSAPrivateKey) -> x509.Certificate:
    uri, host = default_application_uri(), socket.gethostname()
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri), x509.DNSName(host)]
    return generate_self_signed_app_certificate(
        key, COMMON_NAME, {"organizationName": "Linewarden"}, names, [ExtendedKeyUsageOID.CLIENT_AUTH], CERTIFICATE_DAYS
    )


def write_file(path: Path, content: bytes, *, mode: int) -> None:
    """Write a whole file or none, on the disk before it has its name, owned by the owner of its folder."""
    owned_files.make_folder(path.parent)
    owned_files.write(path, content, mode=mode)


def trusted_file(folder: Path, url: str) -> Path:
    """Where `trust` keeps the certificate of the server at a URL."""
    parts = urlsplit(url)
    host = re.sub(r"[^A-Za-z0-9._-]", "_", parts.hostname or "unknown")
    return folder / "trusted" / f"{host}_{parts.port or 4840}.der"
