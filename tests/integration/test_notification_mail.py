"""Alerts by mail to a real SMTP server: only over TLS of an authority that is trusted, and a password never in the open."""

import asyncio
import ssl
from collections.abc import Callable, Iterator
from datetime import timedelta
from email import message_from_bytes
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError

from collector.notification import example
from collector.notification_targets import Mail, Undelivered
from tests.collector_process import run_cli
from tests.integration.authority import Authority, key_pem
from tests.ports import free_port

if TYPE_CHECKING:
    from email.message import Message

PASSWORD = "correct horse"


class Post:
    """A mail server's insides: what it took, and how it came."""

    def __init__(self) -> None:
        self.mails: list[Message] = []
        self.protected: list[bool] = []
        self.logins: list[tuple[bytes, bytes]] = []

    async def handle_DATA(self, server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        self.mails.append(message_from_bytes(envelope.content))
        self.protected.append(server.transport.get_extra_info("ssl_object") is not None)
        return "250 taken"

    def login(self, _server: Any, _session: Any, _envelope: Any, _mechanism: str, given: LoginPassword) -> AuthResult:
        self.logins.append((given.login, given.password))
        return AuthResult(success=given.password == PASSWORD.encode(), handled=False)


class Server(Controller):
    """Closes the connections that its clients broke off, when it stops."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.connections: list[Any] = []

    def factory(self) -> Any:
        self.connections.append(made := super().factory())  # type: ignore[no-untyped-call]
        return made

    def stop(self, no_assert: bool = False) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self.loop).result(10)
        super().stop(no_assert)

    async def _close(self) -> None:
        for one in self.connections:
            if one._handler_coroutine is not None and not one._handler_coroutine.done():
                one._handler_coroutine.cancel()
            for transport in filter(None, (one.transport, one._original_transport)):
                transport.abort()
        # Its own pipe and the door; a connection whose TLS failed is known to nobody else.
        sockets = cast("Any", self.loop)._selector.get_map()
        for _ in range(500):
            if len(sockets) <= 2:
                break
            await asyncio.sleep(0.01)


class Plant:
    """Makes mail servers, and the settings that fit them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority("plant root")
        self.servers: list[Server] = []

    def file(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def trusted(self, authority: Authority) -> Path:
        return self.file(f"{authority.name}.pem", authority.certificate.public_bytes(Encoding.PEM))

    def context(self, **certificate: Any) -> ssl.SSLContext:
        issued = self.authority.issue(**certificate)
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(
            self.file("server.pem", issued.public_bytes(Encoding.PEM)), self.file("server.key", key_pem("server"))
        )
        return made

    def serve(self, tls: str, post: Post, **certificate: Any) -> int:
        """A server that takes logins; its port."""
        # It knows of its own STARTTLS only as protection, and would warn of each connection.
        over = tls == "starttls"
        given: dict[str, Any] = {"authenticator": post.login, "auth_required": over, "auth_require_tls": over}
        if tls == "starttls":
            given |= {"tls_context": self.context(**certificate), "require_starttls": True}
        elif tls == "tls":
            given |= {"ssl_context": self.context(**certificate)}
        server = Server(post, hostname="127.0.0.1", port=free_port(), **given)
        server.start()
        self.servers.append(server)
        return int(server.port)

    def mail(self, port: int, tls: str, **more: Any) -> Mail:
        given = {
            "type": "mail", "host": "127.0.0.1", "port": port, "tls": tls, "ca_file": self.trusted(self.authority), "user": "linewarden",
            "password_file": self.file("password", PASSWORD.encode() + b"\n"), "sender": "lw@corp.example", "to": ["soc@corp.example"],
            "timeout_s": 5.0,
        }  # fmt: skip
        return Mail.model_validate(given | more)


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    made = Plant(tmp_path)
    yield made
    for server in made.servers:
        server.stop()


async def refused(mail: Mail, post: Post) -> str:
    """Why it was not sent; the server saw neither it nor a password."""
    with pytest.raises(Undelivered) as error:
        await mail.send(*example("duty"))
    assert not post.mails
    assert PASSWORD not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("tls", ["starttls", "tls"])
async def test_a_mail_goes_out_behind_a_login_over_tls_of_a_trusted_authority(plant: Plant, tls: str) -> None:
    post = Post()
    number, body = example("duty")
    await plant.mail(plant.serve(tls, post), tls).send(number, body)
    (mail,) = post.mails
    assert mail["Message-ID"] == f"<{number}@linewarden>"
    assert (post.protected, post.logins) == ([True], [(b"linewarden", PASSWORD.encode())])


CERTIFICATES: dict[str, tuple[dict[str, Any], str]] = {
    "for another name": ({"hosts": ("mail.corp.example",)}, "127.0.0.1"),
    "that ended": ({"begin": timedelta(days=-9), "end": timedelta(days=-1)}, "expired"),
    "of another authority": ({}, "issuer"),
}


@pytest.mark.parametrize("tls", ["starttls", "tls"])
@pytest.mark.parametrize("what", CERTIFICATES)
async def test_a_server_with_a_certificate_that_does_not_hold_is_told_neither_alert_nor_password(
    plant: Plant, what: str, tls: str
) -> None:
    certificate, word = CERTIFICATES[what]
    post = Post()
    port = plant.serve(tls, post, **certificate)
    trusted = plant.trusted(Authority("somebody else")) if what == "of another authority" else None
    said = await refused(plant.mail(port, tls, **({"ca_file": trusted} if trusted else {})), post)
    assert said.startswith(f"the certificate of 127.0.0.1:{port} does not hold")
    assert word in said
    assert "ca_file" in said
    assert not post.logins


async def test_a_server_that_offers_no_tls_is_told_nothing(plant: Plant) -> None:
    """Also where somebody between takes the offer away."""
    post = Post()
    said = await refused(plant.mail(plant.serve("none", post), "starttls"), post)
    assert "nothing was sent unprotected" in said
    assert not post.logins


@pytest.mark.parametrize(
    ("spoken", "meant", "words"), [("starttls", "tls", "is tls = 'tls' what this port speaks"), ("tls", "starttls", "")]
)
async def test_the_other_kind_of_tls_is_told_and_does_not_hang(
    plant: Plant, spoken: str, meant: str, words: str
) -> None:
    post = Post()
    port = plant.serve(spoken, post)
    said = await refused(plant.mail(port, meant, timeout_s=1.0), post)
    assert f"127.0.0.1:{port}" in said
    assert words in said
    assert not post.logins


async def test_a_refused_login_and_a_server_that_is_not_there_are_told_in_words(plant: Plant) -> None:
    post = Post()
    wrong = plant.file("wrong", b"battery staple")
    said = await refused(plant.mail(plant.serve("starttls", post), "starttls", password_file=wrong), post)
    assert "refuses user 'linewarden' with code 535" in said
    assert "password_file" in said
    assert "battery" not in said
    assert "refused" in (await refused(plant.mail(free_port(), "tls"), post)).lower()


async def test_a_login_in_the_open_takes_a_word_of_its_own_and_never_leaves_this_computer(plant: Plant) -> None:
    post = Post()
    port = plant.serve("none", post)
    with pytest.raises(ValidationError, match="login_unprotected = true"):
        plant.mail(port, "none")
    with pytest.raises(ValidationError, match="unprotected"):
        plant.mail(port, "none", host="mail.corp.example", login_unprotected=True)
    await plant.mail(port, "none", login_unprotected=True).send(*example("duty"))
    assert (len(post.mails), post.protected) == (1, [False])


def broken(plant: Plant) -> Path:
    return plant.file("broken.pem", b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")


@pytest.mark.parametrize("made", [broken, lambda plant: plant.file("empty.pem", b"")], ids=["broken", "empty"])
def test_a_ca_file_without_a_certificate_is_found_before_an_alert_needs_it(
    plant: Plant, made: Callable[[Plant], Path]
) -> None:
    with pytest.raises(ValidationError, match="holds no certificate"):
        plant.mail(25, "tls", ca_file=made(plant))


def test_the_test_command_says_that_the_certificate_does_not_hold(plant: Plant, dsn: str) -> None:
    mail = plant.mail(plant.serve("tls", Post()), "tls", ca_file=plant.trusted(Authority("somebody else")))
    given = {
        "TYPE": "mail", "HOST": mail.host, "PORT": str(mail.port), "TLS": "tls", "CA_FILE": str(mail.ca_file), "SENDER": mail.sender,
        "TO": '["soc@corp.example"]',
    }  # fmt: skip
    settings = {f"LINEWARDEN_COLLECTOR__NOTIFICATION__TARGETS__DUTY__{key}": value for key, value in given.items()}
    done = run_cli(dsn, "notify", "test", "duty", **settings)
    assert done.returncode == 1
    assert "duty did not take it: the certificate of 127.0.0.1" in done.stderr
    assert "Traceback" not in done.stderr
