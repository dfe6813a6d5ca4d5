"""The collector is known before it is trusted, by the authority in the token; proxies in front of it change nothing."""

import contextlib
import shutil
import signal
import ssl
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from agent.simulator.postgres import Postgres
from agent.wire.signature import holds
from collector.expiry import Expiry
from collector.store.database import Database
from tests.agent_process import Agent, log_source
from tests.collector_process import Collector, poll_until, run_cli
from tests.integration.test_enrolment import agent_command, fetch
from tests.ports import free_port


def create(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    done = run_cli("", "tls", "create", "--dir", str(folder), *arguments)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    create(folder, "--name", "127.0.0.1", "--name", "localhost")
    create(folder, "--client", "press-7")
    (folder / "haproxy.pem").write_bytes(
        (folder / "collector.pem").read_bytes() + (folder / "collector.key").read_bytes()
    )
    return folder


@pytest.fixture(scope="module")
def secure(postgres: Postgres, certificates: Path) -> Iterator[Collector]:
    server = {
        "SERVER__CERTIFICATE_FILE": str(certificates / "collector.pem"),
        "SERVER__KEY_FILE": str(certificates / "collector.key"),
    }
    collector = Collector(postgres.create_database("tls"), **server, IDENTITY__UNSIGNED="refuse")
    collector.scheme = "https"
    with collector as running:
        yield running


def token_of(collector: Collector, url: str, *options: str, ca: Path | None = None) -> str:
    given = ["--ca", str(ca)] if ca else []
    done = run_cli(collector.dsn, "token", "create", "--url", url, *given, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def station(folder: Path, url: str, **sync: Any) -> Agent:
    folder.mkdir(exist_ok=True)
    (folder / "auth.log").write_text(
        "Jan  1 00:00:00 host sshd[1]: Failed password for root from 10.0.0.1 port 1 ssh2\n"
    )
    return Agent(folder, url, "", log_source(folder / "auth.log"), sync=sync)


def enroll(agent: Agent, token: str, *options: str) -> "subprocess.CompletedProcess[str]":
    return agent_command("enroll", "--token", "-", *options, "--config", str(agent.config), stdin=token)


def test_made_keys_are_readable_by_their_owner_alone_and_a_renewal_keeps_the_authority(tmp_path: Path) -> None:
    first = create(tmp_path, "--name", "localhost")
    authority = (tmp_path / "ca.pem").read_bytes()
    before = (tmp_path / "collector.pem").read_bytes()
    assert "fingerprint" in first.stdout
    for key in ("ca.key", "collector.key"):
        assert (tmp_path / key).stat().st_mode & 0o777 == 0o600
    create(tmp_path, "--name", "localhost")
    assert (tmp_path / "ca.pem").read_bytes() == authority
    assert (tmp_path / "collector.pem").read_bytes() != before
    (tmp_path / "ca.key").unlink()
    done = run_cli("", "tls", "create", "--dir", str(tmp_path), "--name", "localhost")
    assert done.returncode == 1
    assert "ca.key" in done.stderr


def test_an_agent_knows_the_collector_by_the_token_and_pins_its_authority(
    tmp_path: Path, secure: Collector, certificates: Path
) -> None:
    agent = station(tmp_path, secure.url)
    done = enroll(agent, token_of(secure, secure.url, ca=certificates / "ca.pem"))
    assert done.returncode == 0, done.stderr
    pinned = tmp_path / "state" / "identity" / "ca.pem"
    assert pinned.read_bytes() == (certificates / "ca.pem").read_bytes()
    with agent:
        poll_until(agent.drained, why="nothing is sent over TLS")
    rows = fetch(
        secure,
        "SELECT k.public_key, s.signed, s.signature FROM signatures s JOIN agent_keys k USING (key_id) WHERE s.agent_id = $1",
        UUID(agent.id),
    )
    assert rows
    assert all(holds(row["public_key"], row["signed"].encode(), row["signature"]) for row in rows)


def test_a_collector_of_another_authority_never_sees_the_token(tmp_path: Path, secure: Collector) -> None:
    create(tmp_path / "other", "--name", "localhost")
    token = token_of(secure, secure.url, ca=tmp_path / "other" / "ca.pem")
    agent = station(tmp_path, secure.url)
    done = enroll(agent, token)
    assert done.returncode == 1
    assert "not the collector that the token was made for" in done.stderr
    (row,) = fetch(secure, "SELECT used FROM enrolment_tokens WHERE prefix = $1", token.split(".")[1])
    assert row["used"] is None


def test_without_an_authority_nothing_is_trusted_not_even_what_the_computer_trusts(
    tmp_path: Path, secure: Collector
) -> None:
    agent = station(tmp_path, secure.url)
    with agent:
        said = poll_until(lambda: agent.status()["sync"]["last_error"])
    assert "authority" in said


def test_tls_before_1_3_is_refused_by_both_ends(secure: Collector) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with httpx.Client(verify=context, trust_env=False) as client, pytest.raises(httpx.ConnectError):
        client.get(f"{secure.url}/healthz")


def test_a_token_does_not_go_to_another_computer_in_clear(tmp_path: Path, secure: Collector) -> None:
    agent = station(tmp_path, secure.url)
    done = enroll(agent, token_of(secure, secure.url), "--collector", "http://192.0.2.1:8443")
    assert done.returncode == 2
    assert "without TLS" in done.stderr


async def test_a_certificate_that_ends_soon_is_told_thirty_days_before_and_when_it_has_ended(
    secure: Collector, certificates: Path
) -> None:
    database = Database(secure.dsn, pool_size=2, synchronous_commit="on")
    await database.open()
    try:
        told: list[None] = []
        expiry = Expiry(
            database, [("server.certificate_file", certificates / "collector.pem")], lambda: told.append(None)
        )
        now = datetime.now(UTC)
        await expiry.look(now + timedelta(days=397 - 32))
        assert not told
        await expiry.look(now + timedelta(days=397 - 29))
        await expiry.look(now + timedelta(days=398))
        assert len(told) == 2
        async with database.connection() as connection:
            rows = await connection.fetch(
                "SELECT type FROM security_events WHERE type LIKE 'security.certificate.%' ORDER BY batch_no"
            )
        assert [row["type"] for row in rows] == ["security.certificate.expiring", "security.certificate.invalid"]
    finally:
        await database.close()


# ── proxies ──────────────────────────────────────────────────────────────────────────────────────────────────────────

EXAMPLES = Path(__file__).parents[2] / "packaging" / "proxy"
OWN_TRUTH = {
    "X-Forwarded-For": "203.0.113.9", "X-Real-IP": "203.0.113.9", "Forwarded": "for=203.0.113.9", "X-SSL-Client-Cert": "forged",
    "X-SSL-Client-Verify": "SUCCESS", "X-SSL-Client-S-DN": "CN=admin", "X-Client-Cert": "forged", "X-Remote-User": "admin",
}  # fmt: skip


@contextlib.contextmanager
def proxy(kind: str, folder: Path, certificates: Path, upstream: int) -> Iterator[str]:
    """The example as it is shipped, with this test's ports and folders in it."""
    if shutil.which(kind) is None:
        pytest.skip(f"{kind} is not installed")
    port = free_port()
    text = (EXAMPLES / {"nginx": "nginx.conf", "haproxy": "haproxy.cfg"}[kind]).read_text()
    text = text.replace("/etc/linewarden/tls", str(certificates)).replace("127.0.0.1:8444", f"127.0.0.1:{upstream}")
    folder.mkdir(exist_ok=True)
    file = folder / "proxy.conf"
    if kind == "nginx":
        text = text.replace("listen 8443 ssl", f"listen 127.0.0.1:{port} ssl")
        places = "".join(
            f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        text = (
            f"daemon off; pid {folder}/pid; error_log stderr; events {{}} http {{ access_log off; {places}\n{text} }}"
        )
        command = ["nginx", "-e", "stderr", "-p", str(folder), "-c", str(file)]
    else:
        text = text.replace("bind :8443", f"bind 127.0.0.1:{port}")
        command = ["haproxy", "-db", "-f", str(file)]
    file.write_text(text)
    with (folder / "said").open("wb") as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
        try:
            url = f"https://localhost:{port}"

            def answers() -> bool:
                assert process.poll() is None, (folder / "said").read_text()
                with contextlib.suppress(httpx.HTTPError):
                    return (
                        httpx.get(f"{url}/readyz", verify=_trusting(certificates), trust_env=False).status_code == 200
                    )
                return False

            poll_until(answers, within_s=30, why="the proxy does not answer")
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def _trusting(certificates: Path, *, client: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    if client:
        context.load_cert_chain(certificates / "client-press-7.pem", certificates / "client-press-7.key")
    return context


@pytest.fixture(scope="module")
def behind(postgres: Postgres, certificates: Path) -> Iterator[Collector]:
    """A collector on loopback that leaves TLS to a proxy."""
    ca = str(certificates / "ca.pem")
    with Collector(postgres.create_database("behind"), IDENTITY__UNSIGNED="refuse", IDENTITY__CA_FILE=ca) as running:
        yield running


@pytest.mark.parametrize("kind", ["nginx", "haproxy"])
def test_an_agent_enrols_and_sends_through_a_proxy_that_asks_for_its_certificate(
    tmp_path: Path, behind: Collector, certificates: Path, kind: str
) -> None:
    with proxy(kind, tmp_path / "proxy", certificates, behind.port) as url:
        shown = {
            "certificate_file": str(certificates / "client-press-7.pem"),
            "certificate_key_file": str(certificates / "client-press-7.key"),
        }
        agent = station(tmp_path / "a", url, **shown)
        done = enroll(agent, token_of(behind, url, ca=certificates / "ca.pem"))
        assert done.returncode == 0, done.stderr
        with agent:
            poll_until(agent.drained, why="nothing gets through the proxy")
        done = agent_command("rotate-key", "--config", str(agent.config))
        assert done.returncode == 0, done.stderr
        without = station(tmp_path / "b", url)
        assert enroll(without, token_of(behind, url, ca=certificates / "ca.pem")).returncode == 0
        with without:
            said = poll_until(lambda: without.status()["sync"]["last_error"])
        assert "certificate_file" in said
    count = (
        "SELECT count(*) FROM security_events WHERE agent_id = $1 AND src_ip = '10.0.0.1' AND type NOT LIKE 'alert.%'"
    )
    assert fetch(behind, count, UUID(agent.id))[0][0] == 1
    assert fetch(behind, count, UUID(without.id))[0][0] == 0


@pytest.mark.parametrize("kind", ["nginx", "haproxy"])
def test_a_proxy_lets_nobody_say_from_outside_who_they_are(tmp_path: Path, certificates: Path, kind: str) -> None:
    seen: list[dict[str, str]] = []

    class Recorder(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with proxy(kind, tmp_path / "proxy", certificates, server.server_port) as url:
                seen.clear()
                context = _trusting(certificates, client=True)
                answer = httpx.get(f"{url}/v1/batches", headers=OWN_TRUTH, verify=context, trust_env=False)
                assert answer.status_code == 200
        finally:
            server.shutdown()
            thread.join()
    asked = [headers for headers in seen if "accept-encoding" in headers]
    assert asked
    for headers in asked:
        assert headers.pop("x-forwarded-for") == "127.0.0.1"
        assert not {name.lower() for name in OWN_TRUTH} & set(headers)
        assert "203.0.113.9" not in str(headers)
