"""A plant's certificate authority: certificates of servers, intermediates and revocation lists, good and bad."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.simulator.opcua_server import APPLICATION_URI

DAY = timedelta(days=1)


@lru_cache(maxsize=16)
def key_of(name: str) -> rsa.RSAPrivateKey:
    """A key for each name, made once: making them is what takes the time."""
    del name
    return rsa.generate_private_key(public_exponent=65_537, key_size=2_048)


def named(name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "ACME")]
    )


@dataclass
class Authority:
    """An authority; `issuer`: the one above it, or none for a root."""

    name: str
    issuer: "Authority | None" = None
    until: timedelta = 300 * DAY

    def __post_init__(self) -> None:
        self.key = key_of(self.name)
        self.certificate = self._sign(
            named(self.name),
            self.key,
            self.issuer or self,
            -10 * DAY,
            self.until,
            [
                (x509.BasicConstraints(ca=True, path_length=None), True),
                (usage(signs_certificates=True), True),
            ],
        )

    def _sign(
        self,
        subject: x509.Name,
        key: rsa.RSAPrivateKey,
        issuer: "Authority",
        begin: timedelta,
        end: timedelta,
        extensions: Sequence[tuple[x509.ExtensionType, bool]],
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(named(issuer.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begin)
            .not_valid_after(now + end)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key_of(issuer.name).public_key()), critical=False
            )
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(key_of(issuer.name), hashes.SHA256())

    def issue(
        self,
        *,
        hosts: Sequence[str] = ("127.0.0.1", "localhost"),
        uri: str = APPLICATION_URI,
        begin: timedelta = -DAY,
        end: timedelta = 100 * DAY,
        name: str = "press cell 4",
    ) -> x509.Certificate:
        """A certificate of an OPC UA application, as Part 6 wants it."""
        names: list[x509.GeneralName] = [
            x509.UniformResourceIdentifier(uri),
            *(x509.IPAddress(ip_address(host)) if host[0].isdigit() else x509.DNSName(host) for host in hosts),
        ]
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return self._sign(
            named(name),
            key_of("server"),
            self,
            begin,
            end,
            [
                (x509.SubjectAlternativeName(names), False),
                (x509.BasicConstraints(ca=False, path_length=None), True),
                (usage(signs_certificates=False), True),
                (x509.ExtendedKeyUsage(uses), False),
            ],
        )

    def revoking(self, *revoked: x509.Certificate, next_update: timedelta = 30 * DAY) -> bytes:
        """A revocation list, DER."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(named(self.name))
            .last_update(now - 60 * DAY)
            .next_update(now + next_update)
        )
        for each in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder().serial_number(each.serial_number).revocation_date(now - DAY).build()
            )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.DER)


def usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=not signs_certificates,
        key_encipherment=not signs_certificates,
        data_encipherment=not signs_certificates,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def key_pem(name: str) -> bytes:
    return key_of(name).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def given(folder: Path, certificate: x509.Certificate) -> Path:
    """A folder for PressCell(certificates=…) with a certificate that an authority gave."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "server_key.pem").write_bytes(key_pem("server"))
    (folder / "given.der").write_bytes(der(certificate))
    return folder
