"""What gets through the proxies that are shipped: the paths that are served, each in its one spelling, and nothing else."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from collector.app import build
from collector.config import DatabaseSettings, Settings
from tests.integration.test_tls import EXAMPLES, create, proxy

AGENT = str(uuid4())
GATED = ["/v1/batches", f"/v1/agents/{AGENT}/keys"]


def spellings(path: str) -> list[str]:
    """Return other ways to write a path of agents, of which no program may make the path again after the gate."""
    last = path.rpartition("/")[2]
    agents, tail = path.rpartition("/")[0], f"%{ord(last[-1]):02x}"
    return [
        f"{path}/",
        f"{path}//",
        f"/{path}",
        f"//x/..{path}",
        path.replace("/v1/", "/v1//"),
        path.replace("/v1/", "/v1/./"),
        path.replace("/v1/", "/v1/x/../"),
        path.replace("/v1/", "/v1/events/../"),
        path.replace("/v1/", "/v1/events/%2e%2e/"),
        path.replace("/v1/", "/v1/users/..%2F"),
        path.replace("/v1/", "/v1/%2E/"),
        path.replace("/v1/", "/v1%2f"),
        path.replace("/v1/", "/v1%2F"),
        path.replace("/v1/", "/v1\\"),
        path.replace("/v1/", "/v1%5C"),
        path.replace("/v1/", "/V1/"),
        path.replace("/v1/", "/%761/"),
        f"{agents}/{last[:-1]}{tail}",
        f"{agents}/{last[:-1]}{tail.upper()}",
        f"{agents}/{last.upper()}",
        f"{path};x=1",
        f"{path};",
        f"{path}%00",
        f"{path}%20",
        f"{path}%3F",
        f"{path}%23",
        f"{path}#x",
        f"{path}.",
        f"{path}/.",
        f"{path}/..{path}",
        f"https://localhost{path}",
        f"https://localhost/{path}",
        f"HTTP://LOCALHOST{path}/",
        path.replace(AGENT, AGENT.upper()) if AGENT in path else f"{path}/%2e",
        path.replace(AGENT, AGENT.replace("-", "")) if AGENT in path else f"/%2e{path}",
        path.replace(AGENT, f"{{{AGENT}}}") if AGENT in path else f"/x/%2e%2e{path}",
    ]


class Recorder(BaseHTTPRequestHandler):
    """In place of the collector: notes what reaches it, however it is spelled."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        """Answer everything."""
        self.seen.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815 - the name that http.server looks for

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def recorded() -> Iterator[int]:
    """A recorder's port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    create(folder, "--name", "127.0.0.1", "--name", "localhost")
    pair = (folder / "collector.pem").read_bytes() + (folder / "collector.key").read_bytes()
    (folder / "haproxy.pem").write_bytes(pair)
    return folder


def ask(port: int, target: str, context: ssl.SSLContext, method: str = "GET") -> int:
    """Send a request with this very target; the status, 0 where the connection was closed."""
    with (
        socket.create_connection(("localhost", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        secure.sendall(
            f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            return int(secure.recv(4_096)[9:12] or b"0")
    return 0


def served() -> list[str]:
    """Return an example of every path that the collector serves, but for those of agents."""
    settings = Settings(database=DatabaseSettings(dsn="postgresql://x"))
    examples = {"uuid": AGENT, "int": "17", "str": "J%C3%BCrgen%20K", "path": f"{AGENT}/{uuid4().hex}/1/2/3"}
    paths: set[str] = set()
    for route in build(settings).routes:
        path = route.path_format
        for parameter in route.path_parameters.values():
            name, _, kind = parameter.full.partition(":")
            path = path.replace(f"{{{name}}}", examples[kind])
        paths.add(path)
    # The last is the framework's answer for what is no page of its document.
    paths.discard(f"/schema/{examples['str']}")
    return sorted(paths - set(GATED))


@pytest.mark.filterwarnings("ignore::litestar.exceptions.LitestarDeprecationWarning")  # of build, as in a server
@pytest.mark.parametrize("kind", ["nginx", "haproxy"])
def test_a_proxy_lets_every_path_through_that_is_served_and_no_other_spelling_of_one_of_agents(
    tmp_path: Path, certificates: Path, kind: str
) -> None:
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    with recorded() as upstream, proxy(kind, tmp_path / "proxy", certificates, upstream) as url:
        port = urlsplit(url).port
        assert port is not None
        for path in GATED:
            assert ask(port, path, context, "POST") == 403
            assert ask(port, f"{path}?x=/", context) == 403
        Recorder.seen.clear()
        statuses = {target: ask(port, target, context, "POST") for path in GATED for target in spellings(path)}
        let_through = [path for path in Recorder.seen if path not in ("/readyz", "/healthz")]
        assert not let_through, [target for target, status in statuses.items() if status == 200]
        assert set(statuses.values()) <= {0, 400, 403, 404}, statuses
        refused = {path: status for path in served() if (status := ask(port, path, context)) != 200}
        assert not refused


def test_both_proxy_files_name_the_setting_that_makes_the_collector_believe_them() -> None:
    for file in EXAMPLES.iterdir():
        assert "trusted_proxies" in file.read_text(), file
