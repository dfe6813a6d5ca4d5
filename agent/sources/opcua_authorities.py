"""The trust list: which servers are themselves because an authority of the plant says so, and why one that comes is refused.

The folder holds authorities (CA certificates), their revocation lists (CRLs), and certificates of servers, as DER or PEM under any name. A
server is trusted where its certificate lies in the folder itself, or where a chain leads from it to an authority in the folder, every
certificate of that chain is within its time and on no revocation list, and it was made out for the host of the URL and for the application
that answers. Self-signed roots and intermediates alike count as authorities only from the folder, never from what a server sends along: of
that, intermediates are used to build the chain, and no more.

The chain itself is judged by `cryptography.x509.verification`; what is looked at before it is there so that a refusal says what is wrong
in words that help.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store, VerificationError

from agent.component import ConfigError
from agent.sources.opcua_trust import CERTIFICATE_BYTES_MAX, fingerprint, first_certificate

FILES_MAX = 1_000
"""Certificates and lists in the folder. More is a mistake, and is refused rather than read for minutes."""
CRL_BYTES_MAX = 4 * CERTIFICATE_BYTES_MAX
CHAIN_MAX = 8
"""Certificates of a chain that a server shows; what it sends beyond is not looked at."""


@dataclass(frozen=True, slots=True)
class TrustList:
    """A folder, read."""

    folder: Path
    authorities: list[x509.Certificate] = field(default_factory=list)
    servers: frozenset[str] = frozenset()
    """Fingerprints of certificates that are trusted by themselves."""
    revocations: list[x509.CertificateRevocationList] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.authorities or self.servers)


class Refusal(NamedTuple):
    """Why a certificate is not taken. `kind`: untrusted (nobody vouches for it) or invalid (somebody did, and it is no good)."""

    kind: str
    text: str


def read_trust_list(folder: Path) -> TrustList:
    """Everything in the folder; an empty list where there is none. Raises ConfigError naming the file that cannot be used."""
    authorities: list[x509.Certificate] = []
    servers: set[str] = set()
    revocations: list[x509.CertificateRevocationList] = []
    for path in _files(folder):
        for each in _read(path):
            if isinstance(each, x509.CertificateRevocationList):
                revocations.append(each)
            elif _is_authority(each):
                authorities.append(each)
            else:
                servers.add(fingerprint(_der(each)))
    return TrustList(folder, authorities, frozenset(servers), revocations)


def _files(folder: Path) -> list[Path]:
    try:
        found = sorted(Path(each.path) for each in os.scandir(folder) if each.is_file())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(folder, error.strerror or str(error)) from None
    if len(found) > FILES_MAX:
        raise _unreadable(folder, f"holds {len(found)} files, at most {FILES_MAX} are read")
    return found


def _unreadable(path: Path, text: str) -> ConfigError:
    remedy = (
        "It may hold certificates and revocation lists, as DER or PEM, readable by the agent's user, and nothing else."
    )
    return ConfigError(f"{path}: {text}", key="trust_dir", remedy=remedy)


def _read(path: Path) -> Sequence[x509.Certificate | x509.CertificateRevocationList]:
    try:
        content = path.read_bytes()[: CRL_BYTES_MAX + 1]
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None
    if len(content) > CRL_BYTES_MAX:
        raise _unreadable(path, f"is longer than {CRL_BYTES_MAX} bytes")
    try:
        if b"-----BEGIN X509 CRL" in content:
            return [x509.load_pem_x509_crl(content)]
        if b"-----BEGIN CERTIFICATE" in content:
            return x509.load_pem_x509_certificates(content)
        if path.suffix.lower() == ".crl":
            return [x509.load_der_x509_crl(content)]
        return [x509.load_der_x509_certificate(content)]
    except ValueError:
        raise _unreadable(path, "is neither a certificate nor a revocation list") from None


def _der(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.DER)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except (x509.ExtensionNotFound, ValueError):
        return False


def chain_of(shown: bytes) -> list[x509.Certificate]:
    """What a server shows: its own certificate, and those it sends behind it. Empty where there is none that can be read."""
    chain: list[x509.Certificate] = []
    while shown and len(chain) < CHAIN_MAX:
        der = first_certificate(shown)
        try:
            chain.append(x509.load_der_x509_certificate(der))
        except ValueError:
            break
        shown = shown[len(der) :]
    return chain


def refusal(
    shown: bytes, url: str, application_uri: str, trust: TrustList, *, crl_required: bool, now: datetime | None = None
) -> Refusal | None:
    """Why what a server shows is not trusted. None where it is."""
    chain = chain_of(shown)
    if not chain:
        return Refusal("invalid", "cannot be read")
    leaf, now = chain[0], now or datetime.now(UTC)
    text = _out_of_time(leaf, now) or _of_somebody_else(leaf, url, application_uri)
    if fingerprint(_der(leaf)) in trust.servers:
        return Refusal("invalid", text) if text else None
    path = _path(leaf, [*chain[1:], *trust.authorities], trust.authorities)
    if path is None:
        issuer = leaf.issuer.rfc4514_string()
        return Refusal("untrusted", f"was issued by {issuer}, which is no authority in {trust.folder}")
    text = text or _out_of_time_in(path, now) or _revoked(path, trust, now, crl_required=crl_required)
    text = text or _verify(leaf, chain[1:], trust, url, now)
    return Refusal("invalid", text) if text else None


def _out_of_time(certificate: x509.Certificate, now: datetime) -> str | None:
    if certificate.not_valid_after_utc < now:
        return f"expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
    if certificate.not_valid_before_utc > now:
        return f"is valid only from {certificate.not_valid_before_utc:%Y-%m-%d} on (is this computer's clock right?)"
    return None


def _out_of_time_in(path: Sequence[x509.Certificate], now: datetime) -> str | None:
    for authority in path[1:]:
        text = _out_of_time(authority, now)
        if text:
            return f"rests on {authority.subject.rfc4514_string()}, which {text}"
    return None


def _of_somebody_else(certificate: x509.Certificate, url: str, application_uri: str) -> str | None:
    """Not made out for the host that was called, or not for the application that answers."""
    host = urlsplit(url).hostname or ""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return "names neither host nor application (it has no subject alternative name)"
    hosts = [name.lower() for name in names.get_values_for_type(x509.DNSName)]
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    if host not in hosts and _plain_address(host) not in addresses:
        return f"is for {', '.join([*hosts, *addresses]) or 'no host'}, and not for {host}"
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if application_uri not in uris:
        return f"is for the application {', '.join(uris) or 'without a name'}, and {application_uri} answers"
    return None


def _plain_address(host: str) -> str | None:
    try:
        return str(ip_address(host))
    except ValueError:
        return None


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return _is_authority(issuer)


def _path(
    leaf: x509.Certificate, known: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]
) -> list[x509.Certificate] | None:
    """From the leaf to an authority of the folder. None where no way leads there."""
    path = [leaf]
    while len(path) <= CHAIN_MAX:
        issuers = [each for each in known if each not in path and _issued(each, path[-1])]
        if not issuers:
            return path if path[-1] in authorities else None
        # One of the folder first: what is trusted there ends the path, however long the chain goes on.
        path.append(next((each for each in issuers if each in authorities), issuers[0]))
        if path[-1] in authorities:
            return path
    return None


def _revoked(path: Sequence[x509.Certificate], trust: TrustList, now: datetime, *, crl_required: bool) -> str | None:
    """On a revocation list of its issuer; or, where one is asked for, without a list that is current."""
    for certificate, issuer in pairwise(path):
        name = certificate.subject.rfc4514_string()
        lists = [each for each in trust.revocations if each.issuer == issuer.subject and _signed(each, issuer)]
        for each in lists:
            entry = each.get_revoked_certificate_by_serial_number(certificate.serial_number)
            if entry is not None:
                whose = "was revoked" if certificate is path[0] else f"rests on {name}, which was revoked"
                return f"{whose} on {entry.revocation_date_utc:%Y-%m-%d}"
        current = [each for each in lists if each.next_update_utc is None or each.next_update_utc >= now]
        if crl_required and not current:
            what = "is out of date" if lists else "is missing"
            return f"cannot be checked for revocation: the list of {issuer.subject.rfc4514_string()} {what} in {trust.folder}"
    return None


def _signed(revocations: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    try:
        return revocations.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]  # others raise TypeError
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return False


def _verify(
    leaf: x509.Certificate, sent: Sequence[x509.Certificate], trust: TrustList, url: str, now: datetime
) -> str | None:
    """The whole chain by the rules of RFC 5280, in the hands of those who know them."""
    host = urlsplit(url).hostname or ""
    address = _plain_address(host)
    subject = x509.IPAddress(ip_address(address)) if address else x509.DNSName(host)
    builder = PolicyBuilder().store(Store(trust.authorities)).time(now).max_chain_depth(CHAIN_MAX)
    # OPC UA servers carry key usages that browsers do not know; what an end entity may be is Part 6's business, not the web's.
    end_entity = ExtensionPolicy.permit_all().require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
    builder = builder.extension_policies(ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=end_entity)
    try:
        builder.build_server_verifier(subject).verify(leaf, list(sent))
    except (VerificationError, ValueError) as error:
        return f"has a chain that does not hold: {error}"
    return None


def stale_revocations(trust: TrustList, now: datetime | None = None) -> Iterator[str]:
    """Authorities without a current revocation list, in words."""
    now = now or datetime.now(UTC)
    for authority in trust.authorities:
        lists = [each for each in trust.revocations if each.issuer == authority.subject and _signed(each, authority)]
        name = authority.subject.rfc4514_string()
        if not lists:
            yield f"{trust.folder} has no revocation list of {name}"
        elif all(each.next_update_utc is not None and each.next_update_utc < now for each in lists):
            yield f"the revocation list of {name} in {trust.folder} is out of date"


def problems_of(folder: Path) -> Iterable[tuple[str, str, str]]:
    """What `check` says of the folder."""
    try:
        trust = read_trust_list(folder)
    except ConfigError as error:
        yield "trust_dir", str(error.args[0]), error.remedy
        return
    if not trust:
        yield (
            "trust_dir",
            f"{folder} holds no certificate",
            "Put the plant's authorities into it, or leave trust_dir out.",
        )
