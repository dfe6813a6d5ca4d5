"""When a certificate ends, as the lean agent reads it, against a library that can read all of it."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from agent.expiry import ends_soonest, named, not_after

KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(end: datetime, name: str = "x") -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(subject, subject, KEY.public_key(), x509.random_serial_number())
    return builder.not_valid_before(datetime(1990, 1, 1, tzinfo=UTC)).not_valid_after(end).sign(KEY, hashes.SHA256())


@given(
    st.integers(10_000, 2_900_000).map(lambda days: datetime(1970, 1, 1, 1, 2, 3, tzinfo=UTC) + timedelta(days=days)),
    st.text(min_size=1, max_size=64).filter(
        lambda text: len(text.encode("utf-8", "ignore")) < 64 and text.isprintable()
    ),
)
def test_the_end_of_a_certificate_is_read_whatever_its_year_and_its_name(end: datetime, name: str) -> None:
    made = certificate(end, name)
    assert not_after(made.public_bytes(Encoding.DER)) == made.not_valid_after_utc == end


@given(st.binary(max_size=300))
def test_what_is_no_certificate_is_passed_over(content: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        not_after(content)


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_certificate_harms_nobody(at: int, value: int) -> None:
    der = bytearray(certificate(datetime(2030, 1, 1, tzinfo=UTC)).public_bytes(Encoding.DER))
    der[at % len(der)] = value
    with suppress(ValueError, IndexError):
        not_after(bytes(der))


def test_of_a_bundle_the_first_to_end_counts_and_every_file_that_is_named_is_found(tmp_path: Path) -> None:
    soon, late = datetime(2031, 1, 1, tzinfo=UTC), datetime(2041, 1, 1, tzinfo=UTC)
    pem = b"".join(certificate(end).public_bytes(Encoding.PEM) for end in (late, soon, late + timedelta(days=1)))
    (tmp_path / "ca.pem").write_bytes(b"# ours\n" + pem)
    assert ends_soonest(tmp_path / "ca.pem") == soon
    assert ends_soonest(tmp_path / "missing.pem") is None
    (tmp_path / "bundle.pem").write_bytes(pem * 10)
    assert ends_soonest(tmp_path / "bundle.pem") is None, "a distribution's"
    (tmp_path / "key.pem").write_bytes(b"nothing")
    assert ends_soonest(tmp_path / "key.pem") is None

    @dataclass
    class Tls:
        ca_file: str | None = None
        certificate_file: str = ""
        key_file: str = "key"

    @dataclass
    class Config:
        client_certificate_file: str
        user_certificate_file: str
        tls: tuple[Tls, ...]

    config = Config("told by OPC UA itself", "user.der", (Tls(), Tls("ca.pem", "own.pem")))
    assert list(named(config, "sources.s")) == [
        ("sources.s.user_certificate_file", Path("user.der")),
        ("sources.s.tls[1].ca_file", Path("ca.pem")),
        ("sources.s.tls[1].certificate_file", Path("own.pem")),
    ]
