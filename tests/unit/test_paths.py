"""A path has one spelling: what a proxy let through by another is 404 here."""

from typing import Any

import pytest

from collector.paths import is_normal, only_normal

NORMAL = [
    "/", "/healthz", "/v1/batches", "/v1/users/J%C3%BCrgen%20K", "/v1/users/a@b.example", "/v1/events/a/b/1/2/3", "/v1/keys/ab-c_d~e",
    "/v1/agents/6f1c1a52-9d6b-4a9e-8f55-2f6f2f3f4c11/keys", "/v1/correlations/sshd-1%3A2", "/v1/events/0123456789abcdef0123456789abcdef",
]  # fmt: skip
OTHERWISE = [
    "", "v1", "//", "/v1/batches/", "//v1/batches", "/v1//batches", "/./v1/batches", "/v1/x/../batches", "/v1/%2e%2e/batches",
    "/v1%2fbatches", "/v1%2Fbatches", "/v1/batche%73", "/v1/batch%65s", "/v1/batches;x", "/v1\\batches", "/v1/batches%5C", "/v1/batches%00",
    "/v1/users/%7f", "/v1/users/%c3%bc", "/v1/users/%", "/v1/users/%4", "/v1/users/%GG", "/v1/batches#x", "http://x/v1/batches",
    "/v1/agents/6F1C1A52-9D6B-4A9E-8F55-2F6F2F3F4C11/keys", "/v1/agents/{6f1c1a52-9d6b-4a9e-8f55-2f6f2f3f4c11}/keys",
    "/v1/agents/urn:uuid:6f1c1a52-9d6b-4a9e-8f55-2f6f2f3f4c11/keys", "/v1/agents/6F1C1A529D6B4A9E8F552F6F2F3F4C11/keys",
    "/v1/agents/6f1c-1a529d6b4a9e8f552f6f2f3f4c11/keys", "/v1/b\u00fc", "/v1/ x", f"/{'x' * 5_000}",
]  # fmt: skip


@pytest.mark.parametrize("path", NORMAL)
def test_a_path_as_it_is_served_is_normal(path: str) -> None:
    assert is_normal(path.encode())


@pytest.mark.parametrize("path", OTHERWISE)
def test_every_other_spelling_of_a_path_is_not(path: str) -> None:
    assert not is_normal(path.encode())


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("path", NORMAL[:3] + OTHERWISE[3:6])
async def test_the_application_sees_normal_paths_alone(path: str, kind: str) -> None:
    seen: list[str] = []
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(scope["raw_path"].decode())

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await only_normal(app)(
        {"type": kind, "method": "GET", "path": "/v1/batches", "raw_path": path.encode()}, receive, send
    )
    if path in NORMAL:
        assert (seen, sent) == ([path], [])
    else:
        assert not seen
        assert sent[0].get("status", 404) == 404
        assert sent[0]["type"] in ("http.response.start", "websocket.close")
