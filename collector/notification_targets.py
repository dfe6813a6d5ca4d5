"""Where alerts are told: a webhook or a mailbox. Settings, what is sent, and the way out.

A message has an id that is the same at each try, so that the other side can know a repetition: `Idempotency-Key` of a webhook,
`Message-ID` of a mail. A webhook is signed: `Linewarden-Signature: t=SECONDS,v1=HEX`, HMAC-SHA256 over `SECONDS.BODY` with the
secret; the time lets the other side refuse what is old. Nothing personal is in it: no actor, no original line, no personal keys of data.
"""

import asyncio
import hashlib
import hmac
import os
import smtplib
import ssl
import time
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import httpx
import msgspec
from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent.wire.event import HIGH
from collector.match import Matches, matcher
from collector.problems import Problem
from collector.query import filter_of
from collector.store.events import ALL, Filter

SEVERITIES = ("", "informational", "low", "medium", "high", "critical", "fatal")


class Undelivered(Exception):
    """It was not taken. The text says why; it may be tried again."""


class _Target(BaseModel):
    """Which alerts, and how often.

    severity         at least this
    where            a filter as of GET /v1/events: type, site, line, station, src_ip, …
    per_minute_max   messages a minute; what comes more often is told together
    listed_max       alerts that a message lists; of the others it says how many they are
    attempts_max     tries; then the message is dead, and shown as such
    timeout_s        of one try
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    severity: Annotated[int, Field(ge=1, le=6)] = HIGH
    where: str = ""
    per_minute_max: Annotated[int, Field(ge=1, le=600)] = 6
    listed_max: Annotated[int, Field(ge=1, le=500)] = 20
    attempts_max: Annotated[int, Field(ge=1, le=100)] = 12
    timeout_s: Annotated[float, Field(gt=0, le=120)] = 15.0
    backoff_s: Annotated[float, Field(gt=0, le=3_600)] = 5.0

    def _filter(self) -> Filter:
        try:
            return filter_of(self.where, ALL)
        except (Problem, ValueError) as error:
            raise ValueError(f"where cannot be read: {error}. Write it as in type=alert.*&site=north") from None

    @property
    def matches(self) -> Matches:
        """Whether an alert event is to be told here."""
        chosen, least = matcher(self._filter()), self.severity
        return lambda row: bool(row["severity"] >= least) and chosen(row)


def _secret(path: Path | None) -> str:
    return path.read_text(encoding="utf-8").strip() if path is not None else ""


def _readable(path: Path | None, name: str) -> None:
    if path is not None and not os.access(path, os.R_OK):
        raise ValueError(f"{name} {path} cannot be read. Check the path and that the service's user may read it")


def _authority(path: Path | None) -> None:
    _readable(path, "ca_file")
    try:
        ssl.create_default_context(cafile=str(path) if path else None)
    except (ssl.SSLError, OSError):
        raise ValueError(
            f"ca_file {path} holds no certificate. It has to be PEM: -----BEGIN CERTIFICATE-----"
        ) from None


class Webhook(_Target):
    """POST of JSON. `secret_file`: what signs it; `ca_file`: authority to trust instead of the system's."""

    type: Literal["webhook"]
    url: str
    secret_file: Path
    ca_file: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        parts = urlsplit(self.url)
        if parts.scheme not in ("https", "http") or not parts.hostname:
            raise ValueError(f"url {self.url!r} is no address; write https://host/path")
        if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError("url is http:// to another computer: alerts would travel unprotected. Use https://")
        _readable(self.secret_file, "secret_file")
        _authority(self.ca_file)
        if not _secret(self.secret_file):
            raise ValueError(f"secret_file {self.secret_file} is empty. Put a long random text into it")
        self._filter()
        return self

    async def send(self, message_id: str, body: dict[str, Any]) -> None:
        """One try. Raises Undelivered."""
        content = msgspec.json.encode(body)
        now = int(time.time())
        headers = {
            "Content-Type": "application/json", "Idempotency-Key": message_id, "Linewarden-Timestamp": str(now),
            "Linewarden-Signature": f"t={now},v1={signature(_secret(self.secret_file), now, content)}",
        }  # fmt: skip
        verify = ssl.create_default_context(cafile=str(self.ca_file)) if self.ca_file else True
        try:
            async with httpx.AsyncClient(timeout=self.timeout_s, verify=verify, follow_redirects=False) as client:
                answer = await client.post(self.url, content=content, headers=headers)
        except (httpx.HTTPError, OSError) as error:
            raise Undelivered(f"{type(error).__name__}: {error}"[:300]) from None
        if not answer.is_success:
            raise Undelivered(f"answered {answer.status_code}")


def signature(secret: str, at_s: int, content: bytes) -> str:
    """What a webhook is signed with: compute it the same way, compare in constant time, and look at the time."""
    return hmac.new(secret.encode(), f"{at_s}.".encode() + content, hashlib.sha256).hexdigest()


class Mail(_Target):
    """Mail by SMTP.

    tls                  starttls (as it should be), tls (from the first byte), or none, which only this computer's own server may be
    ca_file              authority to trust instead of the system's
    login_unprotected    with tls none: send user and password all the same
    """

    type: Literal["mail"]
    host: str
    port: Annotated[int, Field(ge=1, le=65_535)] = 587
    tls: Literal["starttls", "tls", "none"] = "starttls"
    ca_file: Path | None = None
    user: str = ""
    password_file: Path | None = None
    login_unprotected: bool = False
    sender: str
    to: Annotated[tuple[str, ...], Field(min_length=1, max_length=50)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tls == "none" and self.host not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError("tls is none to another computer: alerts would travel unprotected. Use starttls or tls")
        if bool(self.user) != (self.password_file is not None):
            raise ValueError("user and password_file belong together. Give both or neither")
        if self.tls == "none" and self.user and not self.login_unprotected:
            raise ValueError(
                "user and password would travel unprotected, since tls is none. Use starttls or tls, or say login_unprotected = true"
            )
        if any("@" not in one or any(char in one for char in "\r\n,;") for one in (self.sender, *self.to)):
            raise ValueError("sender and to are addresses, as in soc@corp.example, each by itself")
        _readable(self.password_file, "password_file")
        _authority(self.ca_file)
        self._filter()
        return self

    async def send(self, message_id: str, body: dict[str, Any]) -> None:
        """One try. Raises Undelivered."""
        mail = self._mail(message_id, body)
        try:
            async with asyncio.timeout(self.timeout_s * 2):
                await asyncio.to_thread(self._send, mail)
        except (smtplib.SMTPException, OSError, TimeoutError, UnicodeError) as error:
            raise Undelivered(self._told(error)[:300]) from None

    def _told(self, error: Exception) -> str:
        """Why a try failed, and what to do about it."""
        at = f"{self.host}:{self.port}"
        if isinstance(error, ssl.SSLCertVerificationError):
            trusted = (
                f"ca_file {self.ca_file}"
                if self.ca_file
                else "the system's authorities; give ca_file for one of your own"
            )
            return f"the certificate of {at} does not hold ({error.verify_message}), by {trusted}"
        if isinstance(error, ssl.SSLError):
            return f"no TLS with {at} ({error.reason or error}); is tls = {self.tls!r} what this port speaks?"
        if isinstance(error, smtplib.SMTPNotSupportedError):
            return f"{at} does not offer what is asked for ({error}); nothing was sent unprotected"
        if isinstance(error, smtplib.SMTPAuthenticationError):
            return f"{at} refuses user {self.user!r} with code {error.smtp_code}; look at user and password_file"
        if isinstance(error, TimeoutError):
            return f"{at} did not answer in time"
        return f"{type(error).__name__} at {at}: {error}"

    def _mail(self, message_id: str, body: dict[str, Any]) -> EmailMessage:
        mail = EmailMessage()
        mail["Message-ID"] = f"<{message_id}@linewarden>"
        mail["From"], mail["To"] = self.sender, ", ".join(self.to)
        mail["Subject"] = _line(str(body["subject"]))
        made = msgspec.convert(body["made"], datetime)
        mail["Date"] = format_datetime(made)
        mail["Auto-Submitted"] = "auto-generated"
        lines = [
            f"{one['last']}  {SEVERITIES[one['severity']]:<13} {one['where'] or '-'}  {one['type']}  {one['count']} times\n"
            f"    {_line(one['message'] or '')}  (alert {one['alert_id']}, incident {one['incident_id']})"
            for one in body["alerts"]
        ]
        if body["more"]:
            lines.append(f"and {body['more']} more")
        mail.set_content("\n".join([*lines, "", f"Message {message_id}"]))
        return mail

    def _send(self, mail: EmailMessage) -> None:
        context = ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)
        plain = smtplib.SMTP_SSL if self.tls == "tls" else smtplib.SMTP
        extra: dict[str, Any] = {"context": context} if self.tls == "tls" else {}
        with plain(self.host, self.port, timeout=self.timeout_s, **extra) as server:
            if self.tls == "starttls":
                server.starttls(context=context)
            if self.user:
                server.login(self.user, _secret(self.password_file))
            refused = server.send_message(mail)
            if refused:
                raise smtplib.SMTPRecipientsRefused(refused)


def _line(text: str) -> str:
    """In one line, without control characters: what stands in it came from outside."""
    return "".join(char if char.isprintable() else " " for char in text)[:500]


Target = Annotated[Webhook | Mail, Field(discriminator="type")]


class NotificationSettings(BaseModel):
    """[notification.targets.NAME]"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    targets: Annotated[dict[str, Target], Field(max_length=50)] = Field(default_factory=dict)
