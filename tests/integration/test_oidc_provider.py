"""A provider of OpenID Connect that means ill, is slow, or changes its keys: what is taken of it, and how often it is asked."""

import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest
from joserfc import jws
from joserfc.jwk import OctKey, RSAKey

from collector import oidc_provider
from collector.oidc_provider import Provider
from collector.oidc_settings import OidcSettings
from collector.problems import Problem

CLIENT, NONCE = "linewarden", "n" * 20
RULES: Any = [{"value": "soc", "role": "viewer", "places": ["*"]}]
OLD, NEW = (RSAKey.generate_key(2048, {"kid": name, "use": "sig"}) for name in ("old", "new"))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it is not meant to be good
    SMALL = RSAKey.generate_key(1024, {"kid": "small", "use": "sig"})


class Hostile:
    """What it says, by path; and how often each was asked for."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: Counter[str] = Counter()
        self.slow_s = 0.0
        self.keys = [OLD]
        self.token = ""
        self.description: dict[str, Any] = {
            "issuer": url, "authorization_endpoint": f"{url}/auth", "token_endpoint": f"{url}/token", "jwks_uri": f"{url}/jwks",
            "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
        }  # fmt: skip
        self.padding = b""

    def answer(self, path: str) -> bytes:
        self.asked[path] += 1
        time.sleep(self.slow_s)
        if path == "/jwks":
            return msgspec.json.encode({"keys": [key.as_dict(private=False) for key in self.keys]}) + self.padding
        if path == "/token":
            return (
                msgspec.json.encode({"id_token": self.token, "access_token": "x", "token_type": "Bearer"})
                + self.padding
            )
        return msgspec.json.encode(self.description) + self.padding

    def sign(self, key: Any, algorithm: str = "RS256", **changed: Any) -> None:
        now = int(time.time())
        claims = {"iss": self.url, "aud": CLIENT, "sub": "1", "nonce": NONCE, "iat": now, "exp": now + 300, **changed}
        header = {"alg": algorithm, "kid": key.get("kid") or "old"}
        self.token = jws.serialize_compact(header, msgspec.json.encode(claims), key, algorithms=[algorithm])


@contextmanager
def providing() -> Iterator[tuple[Hostile, Provider]]:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = hostile.answer(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.daemon_threads = True
        hostile = Hostile(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        settings = OidcSettings(issuer=hostile.url, client_id=CLIENT, rules=RULES, timeout_s=2)
        try:
            yield hostile, Provider(settings)
        finally:
            server.shutdown()
            thread.join()


async def come(provider: Provider) -> dict[str, Any]:
    return await provider.claims("code", verifier="v", nonce=NONCE, redirect_uri="https://here/back")


async def refused(provider: Provider) -> Problem:
    with pytest.raises(Problem) as problem:
        await come(provider)
    return problem.value


async def test_keys_that_change_are_fetched_again_and_unknown_ones_no_faster_than_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(oidc_provider, "KEYS_AGAIN_S", 0.5)
    with providing() as (hostile, provider):
        hostile.sign(OLD)
        assert (await come(provider))["sub"] == "1"
        hostile.sign(NEW)
        for _ in range(20):
            assert (await refused(provider)).code == "oidc-token"
        few = hostile.asked["/jwks"]
        hostile.keys = [OLD, NEW]
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                assert (await come(provider))["sub"] == "1"
                break
            except Problem:
                continue
        else:
            pytest.fail("the new key is never taken")
        assert few <= 1 + 20
        assert hostile.asked["/jwks"] <= 2 + (time.monotonic() - deadline + 20) / 0.5 + few
        # Described once for all of them.
        assert hostile.asked["/.well-known/openid-configuration"] == 1


@pytest.mark.parametrize("algorithm", ["HS256", "none"])
async def test_a_token_that_the_public_key_itself_could_sign_is_refused_though_the_provider_says_it_uses_such(
    algorithm: str,
) -> None:
    with providing() as (hostile, provider):
        public = msgspec.json.encode(OLD.as_dict(private=False))
        if algorithm == "none":
            hostile.sign(OLD)
            head = b"eyJhbGciOiJub25lIiwia2lkIjoib2xkIn0"
            hostile.token = f"{head.decode()}.{hostile.token.split('.')[1]}."
        else:
            hostile.sign(OctKey.import_key(public), "HS256")
        problem = await refused(provider)
        assert problem.code == "oidc-token"
        assert algorithm in problem.detail
        assert hostile.asked["/jwks"] == 0


@pytest.mark.filterwarnings("ignore:Key size")
async def test_a_key_that_is_too_small_signs_nothing() -> None:
    with providing() as (hostile, provider):
        hostile.keys = [SMALL]
        hostile.sign(SMALL)
        assert (await refused(provider)).code == "oidc-token"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"issuer": "https://elsewhere.example"}, "calls itself"),
        ({"token_endpoint": "http://192.0.2.1/token"}, "192.0.2.1"),
        ({"jwks_uri": "file:///etc/passwd"}, "file:"),
        ({"end_session_endpoint": "javascript:alert(1)"}, "javascript:"),
        ({"jwks_uri": 7}, "no description"),
    ],
)
async def test_a_provider_that_describes_itself_as_another_or_sends_us_elsewhere_is_not_used(
    changed: dict[str, Any], says: str
) -> None:
    with providing() as (hostile, provider):
        hostile.description.update(changed)
        hostile.sign(OLD)
        problem = await refused(provider)
        assert (problem.status, problem.code) == (502, "oidc-provider")
        assert says in problem.detail
        assert hostile.asked["/token"] == 0


async def test_an_answer_without_end_and_one_that_does_not_come_cost_a_bound_each() -> None:
    with providing() as (hostile, provider):
        hostile.padding = b" " * 2 * oidc_provider.ANSWER_BYTES_MAX
        problem = await refused(provider)
        assert (problem.status, "more than" in problem.detail) == (502, True)
    with providing() as (hostile, provider):
        hostile.slow_s = 4
        began = time.monotonic()
        problem = await refused(provider)
        assert (problem.status, problem.code) == (503, "oidc-provider")
        assert time.monotonic() - began < 20
        # And is not asked again at once by whoever comes next.
        await refused(provider)
        assert sum(hostile.asked.values()) == 1
