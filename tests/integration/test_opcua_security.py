"""Every way to secure a connection against a real server, the trust list, and what is said of certificates that end."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from asyncua import ua as _ua
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agent.component import ConfigError
from agent.simulator.opcua_server import PASSWORD, USER
from agent.sources.opcua import SECURITIES
from agent.sources.opcua_authorities import read_trust_list, refusal
from agent.sources.opcua_connect import CertificateChanged, CertificateRefused
from agent.sources.opcua_tools import trust
from agent.sources.opcua_trust import thumbprint
from tests.collector_process import ROOT
from tests.integration.authority import DAY, Authority, der, given, key_pem
from tests.integration.opcua_line import Cable, Reader, config, press_cell

ua: Any = _ua
ALL = [str(each) for each in SECURITIES.__args__]  # type: ignore[attr-defined]
PLANT = "ACME plant"


@pytest.fixture(scope="module")
def plant() -> Authority:
    return Authority(PLANT)


def user_token(kind: str, folder: Path, plant: Authority) -> dict[str, Any]:
    """The settings that sign in this way."""
    folder.mkdir(exist_ok=True)
    if kind == "username":
        (folder / "password").write_text(PASSWORD)
        return {"user": USER, "password_file": str(folder / "password"), "allow_password_in_clear": True}
    if kind == "certificate":
        (folder / "user.der").write_bytes(der(user_certificate(plant)))
        (folder / "user.pem").write_bytes(key_pem("server"))
        return {"user_certificate_file": str(folder / "user.der"), "user_key_file": str(folder / "user.pem")}
    return {}


_USERS: dict[str, x509.Certificate] = {}


def user_certificate(plant: Authority) -> x509.Certificate:
    return _USERS.setdefault("agent", plant.issue(name="agent", uri="urn:user:agent"))


@pytest.mark.parametrize("token", ["anonymous", "username", "certificate"])
async def test_every_policy_and_mode_reads_with_every_way_to_sign_in(
    tmp_path: Path, plant: Authority, token: str
) -> None:
    """thingsboard-gateway#701: security settings that hold for one connection, and not for the next."""
    users = frozenset({der(user_certificate(plant))})
    async with press_cell(
        certificates=tmp_path / "server", every_policy=True, anonymous=token == "anonymous", user_certificates=users
    ) as cell:
        await trust(cell.url, tmp_path / "agent" / "opcua")
        signing_in = user_token(token, tmp_path / "user", plant)
        for number, security in enumerate(ALL, start=1):
            settings = config(cell.url, security=security, state_dir=str(tmp_path / "agent"), **signing_in)
            port = int(cell.url.split(":")[2].split("/")[0])
            async with Cable(port) as cable:
                there = config(cable.url, security=security, state_dir=settings.state_dir, **signing_in)
                _trusted_as(tmp_path, cell.url, cable.url)
                async with Reader(there) as reader:
                    await reader.until(lambda: reader.values("Oil.Temp"))
                    await cable.cut()
                    await cell.set("Oil.Temp", 100.0 + number)
                    await cable.plug()
                    await reader.until(lambda: reader.values("Oil.Temp")[-1] == 100.0 + number)  # noqa: B023
                    assert reader.of_type("collection.gap") == [], security
    who = {"username": USER, "certificate": "certificate"}.get(token)
    assert who is None or cell.logins.count((who, True)) >= 2 * len(ALL)


def _trusted_as(tmp_path: Path, one: str, other: str) -> None:
    """The certificate that was trusted at one address, trusted at another."""
    from agent.sources.opcua_trust import trusted_file

    folder = tmp_path / "agent" / "opcua"
    trusted_file(folder, other).write_bytes(trusted_file(folder, one).read_bytes())


async def test_a_user_certificate_that_the_server_does_not_know_is_refused_with_what_to_do(
    tmp_path: Path, plant: Authority
) -> None:
    async with press_cell(certificates=tmp_path / "server", anonymous=False) as cell:
        await trust(cell.url, tmp_path / "agent" / "opcua")
        signing_in = user_token("certificate", tmp_path / "user", plant)
        with pytest.raises(ConfigError) as refused:
            await Reader(
                config(cell.url, security="Basic256Sha256/Sign", state_dir=str(tmp_path / "agent"), **signing_in)
            ).run_once()
    assert refused.value.key == "user"
    assert "BadUserAccessDenied" in str(refused.value)


async def test_a_password_never_crosses_a_channel_that_only_signs_though_the_server_asks_for_it(
    tmp_path: Path,
) -> None:
    """A server (or whoever changes its answers) may say that it wants the password in clear."""
    (tmp_path / "password").write_text(PASSWORD)
    async with press_cell(certificates=tmp_path / "server", anonymous=False) as cell:
        for endpoint in cell.server.iserver.endpoints:
            for token in endpoint.UserIdentityTokens:
                if token.TokenType == ua.UserTokenType.UserName:
                    token.SecurityPolicyUri = "http://opcfoundation.org/UA/SecurityPolicy#None"
        await trust(cell.url, tmp_path / "agent" / "opcua")
        async with Cable(int(cell.url.split(":")[2].split("/")[0])) as cable:
            _trusted_as(tmp_path, cell.url, cable.url)
            options: dict[str, Any] = {"state_dir": str(tmp_path / "agent"), "user": USER}
            options["password_file"] = str(tmp_path / "password")
            with pytest.raises(ConfigError, match="in clear"):
                await Reader(config(cable.url, security="Basic256Sha256/Sign", **options)).run_once()
            async with Reader(config(cable.url, security="Basic256Sha256/SignAndEncrypt", **options)) as reader:
                await reader.until(lambda: reader.values("Oil.Temp"))
            assert PASSWORD.encode() not in bytes(cable.upstream)


def encrypted_tokens(cell: Any, policy: str) -> None:
    """Every endpoint, also the one without security, has tokens of this policy, and lists one first that nobody here speaks."""
    for endpoint in cell.server.iserver.endpoints:
        for token in [each for each in endpoint.UserIdentityTokens if each.TokenType == ua.UserTokenType.UserName]:
            token.SecurityPolicyUri = f"http://opcfoundation.org/UA/SecurityPolicy#{policy}"
            curve = "http://opcfoundation.org/UA/SecurityPolicy#ECC_nistP256"
            other = ua.UserTokenPolicy(PolicyId="ecc", TokenType=token.TokenType, SecurityPolicyUri=curve)
            endpoint.UserIdentityTokens.insert(0, other)


@pytest.mark.parametrize("known", ["nothing", "pinned", "another's"])
async def test_a_password_is_encrypted_over_a_channel_without_security_where_the_token_has_a_policy(
    tmp_path: Path, plant: Authority, known: str
) -> None:
    """open62541's usual setting: the endpoint has no security, the token is encrypted with the server's certificate."""
    (tmp_path / "password").write_text(PASSWORD)
    options: dict[str, Any] = {
        "user": USER,
        "password_file": str(tmp_path / "password"),
        "state_dir": str(tmp_path / "agent"),
    }
    async with press_cell(certificates=tmp_path / "server", anonymous=False) as cell:
        encrypted_tokens(cell, "Basic256Sha256")
        if known == "pinned":
            options["server_certificate_file"] = str(tmp_path / "server" / "server.der")
        elif known == "another's":
            (tmp_path / "other.der").write_bytes(der(user_certificate(plant)))
            options["server_certificate_file"] = str(tmp_path / "other.der")
        else:
            options["allow_password_in_clear"] = True
        async with Cable(int(cell.url.split(":")[2].split("/")[0])) as cable:
            if known == "another's":
                with pytest.raises(CertificateChanged):
                    await Reader(config(cable.url, **options)).run_once()
            else:
                async with Reader(config(cable.url, **options)) as reader:
                    await reader.until(lambda: reader.values("Oil.Temp"))
                    await cable.cut()
                    await cell.set("Oil.Temp", 99.0)
                    await cable.plug()
                    await reader.until(lambda: reader.values("Oil.Temp")[-1] == 99.0)
            assert PASSWORD.encode() not in bytes(cable.upstream)
    assert cell.logins.count((USER, False)) == 0


async def test_a_password_without_security_needs_a_certificate_that_is_known_or_leave_to_be_read(
    tmp_path: Path,
) -> None:
    (tmp_path / "password").write_text(PASSWORD)
    with pytest.raises(ValueError, match=r"^user: the password would cross"):
        config("opc.tcp://c:1", user=USER, password_file=str(tmp_path / "password"))
    async with press_cell(certificates=tmp_path / "server", anonymous=False) as cell:
        options = {"user": USER, "password_file": str(tmp_path / "password"), "state_dir": str(tmp_path / "agent")}
        options["server_certificate_file"] = str(tmp_path / "server" / "server.der")
        encrypted_tokens(cell, "None")
        async with Cable(int(cell.url.split(":")[2].split("/")[0])) as cable:
            with pytest.raises(ConfigError, match="in clear"):
                await Reader(config(cable.url, **options)).run_once()
            assert PASSWORD.encode() not in bytes(cable.upstream)


# ── the trust list ───────────────────────────────────────────────────────────────────────────────────────────────────


def secure(url: str, folder: Path, **options: Any) -> Any:
    return config(url, security="Basic256Sha256/SignAndEncrypt", state_dir=str(folder), **options)


def trust_folder(folder: Path, **files: bytes) -> Path:
    """`<state_dir>/opcua/trust` with these files."""
    place = folder / "opcua" / "trust"
    place.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (place / name.replace("_", ".")).write_bytes(content)
    return place


async def test_a_server_that_the_plants_authority_vouches_for_needs_no_pinning(
    tmp_path: Path, plant: Authority
) -> None:
    """telegraf#17608: servers by the hundred, and no way to trust them together."""
    trust_folder(tmp_path, ca_pem=plant.certificate.public_bytes(Encoding.PEM), list_crl=plant.revoking())
    async with press_cell(certificates=given(tmp_path / "server", plant.issue())) as cell:
        async with Reader(secure(cell.url, tmp_path, crl_required=True)) as reader:
            await reader.until(lambda: reader.values("Oil.Temp"))
        assert reader.errors == []


Make = Callable[[Authority], tuple[x509.Certificate, dict[str, bytes]]]


def _revoked(plant: Authority) -> tuple[x509.Certificate, dict[str, bytes]]:
    leaf = plant.issue()
    return leaf, {"a_crl": plant.revoking(leaf)}


REFUSED: dict[str, tuple[Make, dict[str, Any], str, str]] = {
    "expired": (lambda p: (p.issue(begin=-9 * DAY, end=-DAY), {}), {}, "security.certificate.invalid", "expired on"),
    "not valid yet": (lambda p: (p.issue(begin=DAY), {}), {}, "security.certificate.invalid", "only from"),
    "wrong host": (
        lambda p: (p.issue(hosts=("cell5", "10.0.0.5")), {}),
        {},
        "security.certificate.invalid",
        "is for cell5, 10.0.0.5, and not for 127.0.0.1",
    ),
    "wrong application": (
        lambda p: (p.issue(uri="urn:acme:other"), {}),
        {},
        "security.certificate.invalid",
        "is for the application urn:acme:other",
    ),
    "revoked": (_revoked, {}, "security.certificate.invalid", "was revoked on"),
    "another authority": (
        lambda _: (Authority("somebody else").issue(), {}),
        {},
        "security.certificate.untrusted",
        "which is no authority in",
    ),
    "an authority with the same name": (
        lambda _: (_impostor().issue(), {}),
        {},
        "security.certificate.untrusted",
        "which is no authority in",
    ),
    "no list": (lambda p: (p.issue(), {}), {"crl_required": True}, "security.certificate.invalid", "is missing in"),
    "an old list": (
        lambda p: (p.issue(), {"old_crl": p.revoking(next_update=-DAY)}),
        {"crl_required": True},
        "security.certificate.invalid",
        "is out of date in",
    ),
}


def _impostor() -> Authority:
    """Calls itself by the name of the plant's authority, with a key of its own."""
    impostor = Authority("impostor")
    impostor.name = PLANT
    impostor.issue = _with_key(impostor)  # type: ignore[method-assign]
    return impostor


def _with_key(impostor: Authority) -> Any:
    """Signed with the impostor's key, under the plant's name."""
    from cryptography.hazmat.primitives import hashes

    def issue(**options: Any) -> x509.Certificate:
        right = Authority(PLANT).issue(**options)
        builder = x509.CertificateBuilder(
            right.issuer, right.subject, right.public_key(), right.serial_number,
            right.not_valid_before_utc, right.not_valid_after_utc,
        )  # fmt: skip
        for each in right.extensions:
            if not isinstance(each.value, x509.AuthorityKeyIdentifier):
                builder = builder.add_extension(each.value, critical=each.critical)
        return builder.sign(impostor.key, hashes.SHA256())

    return issue


@pytest.mark.parametrize("why", REFUSED)
async def test_a_server_that_the_trust_list_does_not_vouch_for_is_refused_with_the_reason_and_the_command(
    tmp_path: Path, plant: Authority, why: str
) -> None:
    """telegraf#11454: an opaque EOF for every trouble with a certificate."""
    make, options, kind, text = REFUSED[why]
    leaf, files = make(plant)
    trust_folder(tmp_path, ca_der=der(plant.certificate), **files)
    async with press_cell(certificates=given(tmp_path / "server", leaf)) as cell:
        reader = Reader(secure(cell.url, tmp_path, **options))
        for _ in range(2):
            with pytest.raises(CertificateRefused) as refused:
                await reader.run_once()
        assert text in str(refused.value)
        assert thumbprint(der(leaf)) in str(refused.value)
        assert f"linewarden-agent trust {cell.url}" in refused.value.remedy
        (event,) = reader.events
        assert (event.type, event.outcome, event.data["thumbprint"]) == (kind, "failure", thumbprint(der(leaf)))
        # A person may take it all the same.
        await trust(cell.url, tmp_path / "opcua")
        async with Reader(secure(cell.url, tmp_path, **options), reader.cursor) as again:
            await again.until(lambda: again.values("Oil.Temp"))


def test_a_chain_over_an_intermediate_holds_whether_it_is_sent_along_or_lies_in_the_folder(tmp_path: Path) -> None:
    root = Authority("root of chains")
    line = Authority("line authority", issuer=root)
    leaf = line.issue()
    url, uri = "opc.tcp://127.0.0.1:4840", "urn:acme:press:cell4"
    folder = trust_folder(tmp_path, root_der=der(root.certificate))
    assert refusal(der(leaf) + der(line.certificate), url, uri, read_trust_list(folder), crl_required=False) is None
    alone = refusal(der(leaf), url, uri, read_trust_list(folder), crl_required=False)
    assert alone is not None
    assert alone.kind == "untrusted"
    trust_folder(tmp_path, line_der=der(line.certificate))
    assert refusal(der(leaf), url, uri, read_trust_list(folder), crl_required=False) is None
    # The intermediate alone is an authority too, where a person put it there.
    (folder / "root.der").unlink()
    assert refusal(der(leaf), url, uri, read_trust_list(folder), crl_required=False) is None
    (folder / "line.der").unlink()
    trust_folder(tmp_path, root_der=der(root.certificate), a_crl=root.revoking(line.certificate))
    revoked = refusal(der(leaf) + der(line.certificate), url, uri, read_trust_list(folder), crl_required=False)
    assert revoked is not None
    assert "rests on" in revoked.text
    assert "revoked" in revoked.text


def test_an_end_entity_cannot_act_as_an_authority_and_an_expired_authority_vouches_for_nobody(tmp_path: Path) -> None:
    """The classic hole: any certificate of the plant signing another."""
    plant = Authority("plant of holes")
    folder = trust_folder(tmp_path, ca_der=der(plant.certificate))
    url, uri = "opc.tcp://127.0.0.1:4840", "urn:acme:press:cell4"
    cell = plant.issue(name="server")
    forger = Authority("server")  # holds the key of a server's certificate, and signs with it
    forged = forger.issue()
    found = refusal(der(forged) + der(cell), url, uri, read_trust_list(folder), crl_required=False)
    assert found is not None
    assert found.kind == "untrusted"
    old = Authority("old authority", until=-DAY)
    folder = trust_folder(tmp_path / "old", ca_der=der(old.certificate))
    found = refusal(der(old.issue()), url, uri, read_trust_list(folder), crl_required=False)
    assert found is not None
    assert "rests on" in found.text
    assert "expired on" in found.text


def test_a_file_in_the_trust_list_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    folder = trust_folder(tmp_path, note_txt=b"hello")
    with pytest.raises(ConfigError, match=r"note\.txt"):
        read_trust_list(folder)
    settings = config("opc.tcp://127.0.0.1:1", trust_dir=str(folder))
    assert [key for key, _, _ in settings.problems()] == ["trust_dir"]
    (folder / "note.txt").unlink()
    assert "holds no certificate" in next(text for _, text, _ in settings.problems())
    plant = Authority("plant of lists")
    trust_folder(tmp_path, ca_der=der(plant.certificate), old_crl=plant.revoking(next_update=-DAY))
    assert list(settings.problems()) == []
    assert any("out of date" in text for key, text, _ in settings.warnings() if key == "trust_dir")


async def test_browse_can_trust_and_says_what_it_trusted(tmp_path: Path) -> None:
    """`browse --trust`, as a person runs it: the thumbprint on stderr, configuration on stdout, and the source connects with it."""
    async with press_cell(certificates=tmp_path / "server") as cell:
        command = ["-m", "agent.cli", "browse", cell.url, "--trust", "--folder", str(tmp_path / "agent" / "opcua")]
        pipe = asyncio.subprocess.PIPE
        done = await asyncio.create_subprocess_exec(sys.executable, *command, cwd=ROOT, stdout=pipe, stderr=pipe)
        out, err = await done.communicate()
        assert done.returncode == 0, err.decode()
        assert thumbprint((tmp_path / "server" / "server.der").read_bytes()) in err.decode()
        assert "Oil.Temp" in out.decode()
        async with Reader(secure(cell.url, tmp_path / "agent")) as reader:
            await reader.until(lambda: reader.values("Oil.Temp"))


# ── what ends ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("days", "kind"), [(29, "security.certificate.expiring"), (-1, "security.certificate.invalid"), (31, None)]
)
async def test_certificates_that_end_within_thirty_days_are_told_once_each(
    tmp_path: Path, plant: Authority, days: int, kind: str | None
) -> None:
    leaf = plant.issue(begin=-40 * DAY, end=timedelta(days=days, minutes=5))
    own = plant.issue(begin=-40 * DAY, end=timedelta(days=days, minutes=5), uri="urn:agent", name="agent")
    (tmp_path / "own.der").write_bytes(der(own))
    (tmp_path / "own.pem").write_bytes(key_pem("server"))
    options = {"client_certificate_file": str(tmp_path / "own.der"), "client_key_file": str(tmp_path / "own.pem")}
    async with press_cell(certificates=given(tmp_path / "server", leaf)) as cell:
        await trust(cell.url, tmp_path / "opcua")
        async with Reader(secure(cell.url, tmp_path, **options)) as reader:
            await reader.until(lambda: reader.values("Oil.Temp"))
        async with Reader(secure(cell.url, tmp_path, **options), reader.cursor) as again:
            await cell.set("Oil.Temp", 12.5)
            await again.until(lambda: again.values("Oil.Temp")[-1:] == [12.5])
    told = [event for event in reader.events if event.type.startswith("security.")]
    assert [(event.type, event.data["whose"]) for event in told] == ([(kind, "own"), (kind, "server")] if kind else [])
    assert [event for event in again.events if event.type.startswith("security.")] == []
    for event in told:
        assert event.data["days"] == pytest.approx(days, abs=0.1)
        assert datetime.fromtimestamp(event.time / 1e6, UTC) < datetime.now(UTC)


# ── check ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_check_warns_of_withdrawn_policies_and_passes(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("x")
    (tmp_path / "key").chmod(0o600)
    text = f'[agent]\nstate_dir = "{tmp_path}"\n[sync]\nurl = "https://127.0.0.1:1"\nkey_file = "{tmp_path}/key"\n'
    for number, security in enumerate(ALL):
        text += f'[sources.s{number}]\ntype = "opcua"\nurl = "opc.tcp://127.0.0.1:1"\nsecurity = "{security}"\naudit = true\n'
    (tmp_path / "agent.toml").write_text(text)
    for form in ((), ("--json",)):
        command = [sys.executable, "-m", "agent.cli", "check", *form, "--config", str(tmp_path / "agent.toml")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "withdrawn by the OPC Foundation" in done.stdout
    warned = {ALL[int(each["key"].split(".")[1][1:])].partition("/")[0] for each in json.loads(done.stdout)["warnings"]}
    assert warned == {"None", "Basic128Rsa15", "Basic256"}
