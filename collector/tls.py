"""A private authority for a plant, and the certificates that it vouches for: of the collector, and of agents towards a proxy.

Whoever has the authority's key can pretend to be the collector. It is needed only when a certificate is made: keep it elsewhere meanwhile.
A file is replaced whole or not at all; keys are readable by their owner alone from the first byte on, and the collector's own key by the
collector's group where root makes it.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent import owned_files
from agent.owned_files import Owner

AUTHORITY_DAYS = 3_650
SKEW = timedelta(hours=1)
"""A certificate begins so long before it is made: clocks of stations differ."""


class CannotMake(Exception):
    """Why a certificate cannot be made."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """An authority."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def authority(folder: Path, name: str) -> tuple[Issuer, bool]:
    """The authority in a folder, made where there is none; whether it is new. Raises CannotMake."""
    certificate_file, key_file = folder / "ca.pem", folder / "ca.key"
    if certificate_file.exists() != key_file.exists():
        there, missing = (certificate_file, key_file) if certificate_file.exists() else (key_file, certificate_file)
        raise CannotMake(f"{there} is there and {missing} is not. Put it there, or name another folder: --dir")
    if certificate_file.exists():
        return _read(certificate_file, key_file), False
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    builder = _builder(subject, subject, key, key, AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs=True), critical=True)
    certificate = builder.sign(key, hashes.SHA256())
    # The key first: a certificate without its key would be trusted and of no use.
    owned_files.write(key_file, _key_pem(key))
    owned_files.write(certificate_file, certificate.public_bytes(Encoding.PEM), mode=0o644)
    return Issuer(certificate, key), True


def _read(certificate_file: Path, key_file: Path) -> Issuer:
    try:
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        key = load_pem_private_key(key_file.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise CannotMake(f"{certificate_file} and {key_file} cannot be read: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise CannotMake(f"{key_file} is not the key of {certificate_file}")
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        raise CannotMake(f"the authority {certificate_file} ended on {certificate.not_valid_after_utc:%Y-%m-%d}")
    return Issuer(certificate, key)


def issue(
    folder: Path,
    file: str,
    issuer: Issuer,
    names: Sequence[str],
    days: int,
    *,
    client: bool,
    reader: Owner | None = None,
) -> Path:
    """Make a certificate for names, with the authority's behind it; return its file. The key lies beside it. Raises CannotMake.

    `reader`: whose group may read the key, where root makes it in a folder of root's.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(names[0]), issuer.certificate.subject, key, issuer.key, days)
    purpose = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if not client:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(map(_alternative, names))), critical=False)
    certificate = builder.sign(issuer.key, hashes.SHA256())
    chain = certificate.public_bytes(Encoding.PEM) + issuer.certificate.public_bytes(Encoding.PEM)
    key_file = folder / f"{file}.key"
    if reader is None:
        owned_files.write(key_file, _key_pem(key))
    else:
        # The service reads its key and cannot put another in its place.
        owned_files.write(key_file, _key_pem(key), mode=0o640, owner=Owner(owned_files.ROOT, reader.gid))
    owned_files.write(folder / f"{file}.pem", chain, mode=0o644)
    return folder / f"{file}.pem"


def _name(text: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
    except ValueError as error:
        raise CannotMake(f"{text!r} cannot be a name in a certificate: {error}") from None


def _alternative(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        return x509.DNSName(text)
    except ValueError as error:
        raise CannotMake(f"{text!r} is neither an address nor a host's name: {error}") from None


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        key_cert_sign=signs, crl_sign=signs, encipher_only=False, decipher_only=False,
    )  # fmt: skip
