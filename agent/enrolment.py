"""How the agent gets its identity and changes its key: what it says to the collector about itself.

The collector is known before it is trusted with the token: its authority is fetched over a connection on which nothing secret goes, and
believed only where its public key has the fingerprint that stands in the token. All that follows goes over connections that this authority
vouches for.
"""

import asyncio
import hashlib
import logging
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from agent import owned_files
from agent.component import ConfigError, NotConnected, now_us
from agent.identity import Key, Keyring, Link, Saved, write_durably
from agent.uplink import Tls, exchange
from agent.wire.signature import enrolment_text, rotation_text
from agent.wire.token import Token

log = logging.getLogger("linewarden")

ANSWER_BYTES_MAX = 262_144
LOOK_EVERY_S = 60.0
TRY_EVERY_S = 600.0
"""A change of the key that failed is tried again after this: there is time."""
DAY_US = 86_400_000_000


class Refused(Exception):
    """The collector said no. The text says why, and what to do."""


class _Answer(msgspec.Struct):
    agent_id: str
    key_id: str
    site: str
    line: str
    station: str
    links: list[Link] = []


class _Problem(msgspec.Struct):
    title: str = ""
    detail: str = ""


async def authority_of(url: str, token: Token, ca: Path | None) -> bytes | None:
    """The authority (PEM) that vouches for the collector; None where there is no TLS. Raises Refused, NotConnected, ConfigError."""
    if urlsplit(url).scheme == "http":
        return None
    if ca is not None:
        try:
            pem = await asyncio.to_thread(ca.read_bytes)
        except OSError as error:
            raise ConfigError(f"--ca {ca} cannot be read: {error.strerror}") from None
    elif token.fingerprint is None:
        raise ConfigError("the token names no authority for the collector", remedy="Give its certificate: --ca FILE.")
    else:
        # Nobody is known here yet: what comes is believed by its fingerprint alone.
        status, pem = await exchange("GET", f"{url}/v1/authority", Tls(unknown=True))
        if status != 200:  # noqa: PLR2004
            raise Refused(f"{url}/v1/authority answered {status}: {_told(pem)}. Give the authority: --ca FILE")
    found = fingerprint_of(pem)
    if token.fingerprint is not None and found != token.fingerprint:
        raise Refused(
            f"{url} is not the collector that the token was made for: its authority has the fingerprint {found}, the token names "
            f"{token.fingerprint}. Either the address is wrong, or somebody stands in between. The token was not sent"
        )
    return pem


def fingerprint_of(pem: bytes) -> str:
    """SHA-256 of the public key of the last certificate in a PEM. Raises Refused."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        certificate = x509.load_pem_x509_certificates(pem)[-1]
        spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except ValueError as error:
        raise Refused(f"what should be the authority's certificate is none: {error}") from None
    return hashlib.sha256(spki).hexdigest()


async def enrol(keyring: Keyring, agent_id: str, url: str, token: Token, *, ca: Path | None, fresh: bool) -> Saved:
    """Become an agent of this collector. Safe to do again. Raises Refused, NotConnected, ConfigError."""
    with keyring.locked():
        keyring.settle()
        saved = keyring.saved()
        current = keyring.current()
        done = saved is not None and current is not None and current.key_id == saved.key_id
        if saved is not None and done and saved.token == token.prefix and not fresh:
            return saved
        pem = await authority_of(url, token, ca)
        if pem is not None:
            write_durably(keyring.folder / "ca.new.pem", pem, mode=0o644)
        key = _external(keyring) or keyring.candidate(fresh=fresh)
        sent_us = now_us()
        secret = hashlib.sha256(token.secret.encode()).hexdigest()
        text = enrolment_text(agent=agent_id, public_key=key.public, token=secret, url=url, sent_us=sent_us)
        body = {
            "token": token.shown,
            "agent_id": agent_id,
            "public_key": key.public.hex(),
            "url": url,
            "sent_us": sent_us,
            "signature": key.sign(text).hex(),
        }
        tls = Tls(ca_file=str(keyring.folder / "ca.new.pem") if pem is not None else None)
        answer = await _ask(f"{url}/v1/enroll", body, tls, key)
        if pem is not None:
            owned_files.rename(keyring.folder, "ca.new.pem", keyring.authority_file.name)
        where = (answer.site, answer.line, answer.station)
        saved = Saved(agent_id, key.key_id, *where, url, token.prefix, now_us(), now_us(), answer.links)
        keyring.take(saved)
        return saved


def _external(keyring: Keyring) -> Key | None:
    return keyring.current() if keyring.external else None


async def _ask(url: str, body: dict[str, Any], tls: Tls, key: Key) -> _Answer:
    status, content = await exchange("POST", url, tls, msgspec.json.encode(body))
    if status != 200:  # noqa: PLR2004
        raise Refused(f"{url} answered {status}: {_told(content)}")
    try:
        answer = msgspec.json.decode(content, type=_Answer)
    except msgspec.MsgspecError as error:
        raise NotConnected(f"{url} answered with something that is no identity: {error}") from None
    if answer.key_id != key.key_id:
        raise NotConnected(f"{url} answered for another key: {answer.key_id}")
    return answer


def _told(content: bytes) -> str:
    try:
        problem = msgspec.json.decode(content, type=_Problem)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return "no reason given"
    return problem.detail or problem.title or "no reason given"


async def rotate(keyring: Keyring, tls: Tls) -> Saved:
    """Let a new key take the place of the agent's. Safe to do again. Raises Refused, NotConnected, ConfigError."""
    if keyring.external:
        remedy = "Make a new key there, and enrol with it."
        raise ConfigError(
            "the key is kept by something else, which has to change it", key="identity.key_file", remedy=remedy
        )
    with keyring.locked():
        keyring.settle()
        saved, old = keyring.saved(), keyring.current()
        if saved is None or old is None:
            raise ConfigError("this agent is not enrolled, so it has no key", remedy="linewarden-agent enroll")
        key = keyring.candidate()
        sent_us = now_us()
        text = rotation_text(agent=saved.agent_id, old_key=old.key_id, public_key=key.public, sent_us=sent_us)
        body = {
            "old_key": old.key_id,
            "public_key": key.public.hex(),
            "sent_us": sent_us,
            "signature": key.sign(text).hex(),
            "old_signature": old.sign(text).hex(),
        }
        url = f"{saved.collector}/v1/agents/{saved.agent_id}/keys"
        await _ask(url, body, tls, key)
        saved = msgspec.structs.replace(saved, key_id=key.key_id, key_us=now_us())
        keyring.take(saved)
        return saved


class Renewal:
    """Watches the key: tells of a new one (`announce`), and changes one that is too old."""

    def __init__(self, keyring: Keyring, tls: Callable[[], Tls], announce: Callable[[Saved], Awaitable[None]]) -> None:
        self._keyring = keyring
        self._tls = tls
        self._announce = announce
        self._announced: str | None = None
        self._tried_us = 0
        self.trouble: str | None = None
        """Why the last look failed; None where it did not."""

    async def run(self) -> None:
        """Until cancelled. Failing costs nothing: the old key goes on."""
        while True:
            try:
                await self.look()
            except (ConfigError, NotConnected, Refused, OSError, ssl.SSLError) as error:
                self.trouble = str(error)
            else:
                if abs(now_us() - self._tried_us) > TRY_EVERY_S * 1e6 or not self._keyring.changing:
                    self.trouble = None
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Once."""
        saved = self._keyring.saved()
        if saved is None:
            return
        if saved.key_id != self._announced:
            await self._announce(saved)
            self._announced = saved.key_id
        days, now = self._keyring.config.rotate_days, now_us()
        # A clock that was set back makes the key look young for a while: no harm.
        old = days and not self._keyring.external and now - saved.key_us > days * DAY_US
        # A change that was begun and not ended, by a command that was killed, say: the collector may have taken the new key already.
        if (old or self._keyring.changing) and abs(now - self._tried_us) > TRY_EVERY_S * 1e6:
            self._tried_us = now
            saved = await rotate(self._keyring, self._tls())
            log.info("key %s has taken the place of an older one", saved.key_id)
            await self._announce(saved)
            self._announced = saved.key_id
