"""From a configuration to a session with a server that is who it should be, and what went wrong when it is not.

Order of a connection: our own certificate (made on first run), the pinned certificate of the server, the channel, the session. Errors
are sorted by what helps: NotConnected where waiting may, ConfigError where a person must do something, with what to do.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agent.component import ConfigError, NotConnected, in_words
from agent.sources.opcua_authorities import Refusal, read_trust_list, refusal
from agent.sources.opcua_private import Link, Login, PasswordInClear, Security, is_of_decoding, ua
from agent.sources.opcua_trust import (
    Identity,
    check_pair,
    default_application_uri,
    fingerprint,
    first_certificate,
    own_identity,
    read_certificate,
    read_key,
    state_folder,
    subject,
    thumbprint,
    trusted_file,
)

PASSWORD_BYTES_MAX = 1_024
TRUST_FOLDER = "trust"
"""Below the state folder's `opcua`: the trust list, where trust_dir names no other."""
ITEMS_PER_CALL_USUAL = 500
"""Where a server gives no limit: small enough for a message of 64 KiB."""


class CertificateChanged(ConfigError):
    """The server shows another certificate than the one that is pinned."""

    def __init__(self, url: str, pinned: bytes, shown: bytes) -> None:
        super().__init__(
            f"{url} shows the certificate {thumbprint(shown)} ({subject(shown)}), trusted is {thumbprint(pinned)}",
            key="server_certificate_file",
            remedy=f"If the server's was renewed on purpose: linewarden-agent trust {url}. If not, somebody stands between.",
        )
        self.pinned = pinned
        self.shown = shown


class CertificateRefused(ConfigError):
    """The trust list does not vouch for the certificate that the server shows. `kind`: untrusted or invalid."""

    def __init__(self, url: str, shown: bytes, why: Refusal) -> None:
        name = f"{thumbprint(shown)} ({subject(shown)}, SHA-256 {fingerprint(shown)})" if shown else "there"
        super().__init__(
            f"{url} shows a certificate that is refused: {name} {why.text}",
            key="trust_dir",
            remedy=(
                "Let the server have a new certificate of the plant's authority. To take this one all the same, as it is: "
                f"linewarden-agent trust {url}"
            ),
        )
        self.kind = why.kind
        self.shown = shown
        self.reason = why.text


class SessionRefused(NotConnected):
    """The server would not take up the earlier session, and ended the connection over it: begin a new one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a connection needs, as configured: files are names here, not contents."""

    url: str
    security: str
    state_dir: str | None = None
    server_certificate_file: str | None = None
    client_certificate_file: str | None = None
    client_key_file: str | None = None
    user: str | None = None
    password_file: str | None = None
    user_certificate_file: str | None = None
    user_key_file: str | None = None
    trust_dir: str | None = None
    crl_required: bool = False
    allow_password_in_clear: bool = False
    timeout_s: float = 10.0
    session_s: float = 600.0
    conditions: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """The server's OperationLimits; a usual number where it gives none."""

    items_per_call: int = ITEMS_PER_CALL_USUAL
    nodes_per_read: int = ITEMS_PER_CALL_USUAL
    nodes_per_browse: int = ITEMS_PER_CALL_USUAL


@dataclass(slots=True)
class Connection:
    """A link with an activated session, and what this session knows of its server."""

    link: Link
    resumed: bool
    namespaces: list[str]
    limits: Limits
    server_certificate: bytes
    own_certificate: bytes
    refused_own: bool = False
    """The server did not have the earlier session any more, and may have counted that as a refused one."""


@dataclass(frozen=True, slots=True)
class _Keys:
    identity: Identity | None
    server_certificate: bytes
    login: Login


async def connect(access: Access, session: tuple[str, str] | None) -> Connection:
    """Open a link and a session, the earlier one if the server still has it. Raises NotConnected, ConfigError, CertificateChanged."""
    keys = await asyncio.to_thread(_load, access)
    if not keys.server_certificate and (keys.identity is not None or _password_needs_certificate(access)):
        keys = replace(keys, server_certificate=await _vouched_for(access))
    link = _link(access, keys)
    try:
        return await _open(access, keys, link, session)
    except BaseException:
        await link.drop()
        raise


async def _open(access: Access, keys: _Keys, link: Link, session: tuple[str, str] | None) -> Connection:
    with translated(access.url):
        try:
            await link.open_channel()
        except (OSError, TimeoutError, ua.UaError) as error:
            await _explain_channel(access, keys, error)
        endpoint = _endpoint(access, await link.endpoints())
        if keys.identity is None and keys.server_certificate:
            _compare(access, keys.server_certificate, endpoint)
        resumed = await _sign_in(link, session, endpoint, keys.server_certificate)
        namespaces, limits = await _learn(link)
        own = keys.identity.certificate if keys.identity is not None else b""
        shown = first_certificate(endpoint.ServerCertificate or b"") if keys.identity is not None else b""
        refused_own = session is not None and not resumed
        return Connection(link, resumed, namespaces, limits, shown, own, refused_own)


def _password_needs_certificate(access: Access) -> bool:
    """Whether a password goes over a channel without security, where only a certificate that is known keeps it from others."""
    return bool(access.user) and access.security == "None" and not access.allow_password_in_clear


def _compare(access: Access, trusted: bytes, endpoint: Any) -> None:
    shown = first_certificate(endpoint.ServerCertificate or b"")
    if shown and shown != trusted:
        raise CertificateChanged(access.url, trusted, shown)


async def _sign_in(link: Link, session: tuple[str, str] | None, endpoint: Any, trusted: bytes) -> bool:
    """Take up the earlier session if the server still has it, else make one; whether it is the earlier one.

    A kill between an activation and its commit leaves an old nonce in the cursor. A server may then close the channel, and would
    do so for ever: SessionRefused says that this session is not worth another try.
    """
    certificate = trusted or first_certificate(endpoint.ServerCertificate or b"")
    if session is None:
        await link.open_session(certificate)
        return False
    try:
        if await link.reopen_session(*session, endpoint.UserIdentityTokens or [], certificate):
            return True
        await link.open_session(certificate)
    except (OSError, TimeoutError) as error:
        raise SessionRefused("the server ended the connection over the earlier session") from error
    return False


def _load(access: Access) -> _Keys:
    """Read (and on first run make) the files. Blocking."""
    folder = state_folder(access.state_dir)
    identity, server_certificate = None, b""
    if access.security != "None":
        certificate_file = Path(access.client_certificate_file or folder / "own" / "certificate.der")
        key_file = Path(access.client_key_file or folder / "own" / "key.pem")
        own = access.client_certificate_file is None and access.client_key_file is None
        identity = own_identity(certificate_file, key_file, repair=own)
    if access.security != "None" or access.user:
        pinned = (
            Path(access.server_certificate_file) if access.server_certificate_file else trusted_file(folder, access.url)
        )
        if access.server_certificate_file or pinned.exists():
            server_certificate = read_certificate(pinned, "server_certificate_file")
    return _Keys(identity, server_certificate, _login(access))


def _login(access: Access) -> Login:
    if access.user_certificate_file and access.user_key_file:
        certificate_file, key_file = Path(access.user_certificate_file), Path(access.user_key_file)
        certificate = read_certificate(certificate_file, "user_certificate_file")
        key = read_key(key_file, "user_key_file")
        check_pair(certificate, key, certificate_file, key_file, "user_key_file")
        return Login(certificate=certificate, key=key)
    password = (
        _secret(access.password_file, "password_file").decode("utf-8", "replace").rstrip("\r\n")
        if access.password_file
        else None
    )
    return Login(user=access.user, password=password)


def _secret(path: str, key: str) -> bytes:
    try:
        return Path(path).read_bytes()[: 64 * PASSWORD_BYTES_MAX]
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}", key=key, remedy="Name a file that the agent's user can read."
        ) from None


def _link(access: Access, keys: _Keys) -> Link:
    security, uri = Security(), default_application_uri()
    if keys.identity is not None:
        policy, _, mode = access.security.partition("/")
        own = keys.identity
        security = Security(
            policy=policy,
            mode=mode,
            certificate=own.certificate,
            key=own.key,
            server_certificate=keys.server_certificate,
        )
        uri = own.application_uri
    return Link(
        access.url,
        security,
        keys.login,
        application_uri=uri,
        timeout_s=access.timeout_s,
        session_s=access.session_s,
        conditions=access.conditions,
        allow_password_in_clear=access.allow_password_in_clear,
    )


async def shown_certificate(url: str, timeout_s: float) -> bytes:
    """The certificate that whoever answers at the URL shows now; empty where it has none. Raises NotConnected. Trusts nothing."""
    return first_certificate((await _shown(url, timeout_s))[0])


async def _shown(url: str, timeout_s: float) -> tuple[bytes, str]:
    """What a server shows, its chain and all, and as which application it answers."""
    link = Link(
        url,
        Security(),
        Login(),
        application_uri=default_application_uri(),
        timeout_s=timeout_s,
        session_s=60,
        conditions=False,
    )
    try:
        with translated(url):
            await link.open_channel()
            certificates = [
                (each.ServerCertificate, each.Server.ApplicationUri or "")
                for each in await link.endpoints()
                if each.ServerCertificate
            ]
            return certificates[0] if certificates else (b"", "")
    finally:
        await link.drop()


async def _vouched_for(access: Access) -> bytes:
    """The certificate of a server that nobody pinned, if the trust list vouches for it; else a refusal that says why, and what to do.

    It came over a channel that proves nothing. What proves that the server is its holder is the channel that is opened with it.
    """
    folder = Path(access.trust_dir) if access.trust_dir else state_folder(access.state_dir) / TRUST_FOLDER
    trust = await asyncio.to_thread(read_trust_list, folder)
    chain, application_uri = await _shown(access.url, access.timeout_s)
    shown = first_certificate(chain)
    if not shown:
        remedy = 'Its endpoints have no encryption. Set security = "None" if that is how the plant wants it.'
        raise ConfigError(f"{access.url} shows no certificate", key="security", remedy=remedy)
    if trust:
        why = refusal(chain, access.url, application_uri, trust, crl_required=access.crl_required)
        if why is None:
            return shown
        raise CertificateRefused(access.url, shown, why)
    raise ConfigError(
        f"{access.url} shows a certificate that was never trusted: {thumbprint(shown)} ({subject(shown)}, SHA-256 {fingerprint(shown)})",
        key="server_certificate_file",
        remedy=f"Compare the thumbprint with the one in the server's own tools, then run: linewarden-agent trust {access.url}",
    )


async def _explain_channel(access: Access, keys: _Keys, error: Exception) -> None:
    """Why the channel did not open. A server with another certificate than the pinned one cannot even read our first message."""
    if keys.server_certificate:
        shown = b""
        with suppress(NotConnected):
            shown = await shown_certificate(access.url, access.timeout_s)
        if shown and shown != keys.server_certificate:
            raise CertificateChanged(access.url, keys.server_certificate, shown) from error
    with translated(access.url, keys.identity):
        raise error


def _endpoint(access: Access, endpoints: list[Any]) -> Any:
    """The endpoint that was asked for. Raises ConfigError, naming what the server has instead."""
    policy, _, mode = access.security.partition("/")
    offered = []
    for endpoint in endpoints:
        name = (endpoint.SecurityPolicyUri or "").rpartition("#")[2].replace("_", "")
        its_mode = endpoint.SecurityMode.name.rstrip("_")
        if name == policy and its_mode == (mode or "None"):
            return endpoint
        offered.append(f"{name}/{its_mode}" if name != "None" else "None")
    remedy = f"It offers: {', '.join(dict.fromkeys(offered)) or 'nothing'}."
    raise ConfigError(f"{access.url} has no endpoint with {access.security}", key="security", remedy=remedy)


async def _learn(link: Link) -> tuple[list[str], Limits]:
    """Namespaces and limits of this session's server."""
    names = ua.ObjectIds
    prefix = "Server_ServerCapabilities_OperationLimits_MaxNodesPer"
    numbers = [
        names.Server_NamespaceArray,
        names.Server_ServerCapabilities_OperationLimits_MaxMonitoredItemsPerCall,
        getattr(names, prefix + "Read"),
        getattr(names, prefix + "Browse"),
    ]
    namespaces, *limits = await link.read_values([ua.NodeId(number) for number in numbers])
    if not isinstance(namespaces, list):
        raise NotConnected("the server does not give its namespaces")
    known = [
        min(value, ITEMS_PER_CALL_USUAL) if isinstance(value, int) and value > 0 else ITEMS_PER_CALL_USUAL
        for value in limits
    ]
    return namespaces, Limits(*known)


_REMEDIES = {
    "BadUserAccessDenied": (
        "user",
        "The server refuses user or password. Check user and password_file, or the user's rights at the server.",
    ),
    "BadIdentityTokenRejected": (
        "user",
        "The server does not take this way of signing in. Check user, or give user and password_file.",
    ),
    "BadIdentityTokenInvalid": (
        "user",
        "The server does not take this way of signing in. Check user, or give user and password_file.",
    ),
    "BadSecurityPolicyRejected": (
        "security",
        "The server does not offer this policy: see linewarden-agent browse URL for what it has.",
    ),
    "BadSecurityModeRejected": (
        "security",
        "The server does not offer this mode: see linewarden-agent browse URL for what it has.",
    ),
}
_OUR_CERTIFICATE = ("BadCertificate", "BadSecurityChecksFailed")


@contextmanager
def translated(url: str, identity: Identity | None = None) -> Iterator[None]:
    """Asyncua's errors and the network's as ours."""
    try:
        yield
    except (OSError, TimeoutError) as error:
        host = urlsplit(url).netloc
        text = "no answer in time" if isinstance(error, TimeoutError) else in_words(error)
        raise NotConnected(f"{host}: {text or type(error).__name__}") from error
    except ua.UaStatusCodeError as error:
        name = type(error).__name__
        if name in _REMEDIES:
            key, remedy = _REMEDIES[name]
            raise ConfigError(f"{url} answers {name}", key=key, remedy=remedy) from error
        if name.startswith(_OUR_CERTIFICATE):
            shown = f" {thumbprint(identity.certificate)}" if identity else ""
            remedy = (
                f"The server does not trust the agent's certificate{shown}: accept it in the server's own trust list."
            )
            raise ConfigError(f"{url} answers {name}", key="client_certificate_file", remedy=remedy) from error
        raise NotConnected(f"{url} answers {name}") from error
    except PasswordInClear as error:
        raise ConfigError(
            f"{url} wants the password in clear over a channel that does not encrypt",
            key="security",
            remedy="Choose a security with SignAndEncrypt, or set allow_password_in_clear = true.",
        ) from error
    except ua.UaError as error:
        raise NotConnected(f"{url}: {error}") from error
    except Exception as error:
        if not is_of_decoding(error):
            raise
        raise NotConnected(f"{url} answered what cannot be decoded ({type(error).__name__}: {error})"[:300]) from error
