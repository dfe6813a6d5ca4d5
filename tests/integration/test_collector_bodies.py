"""What no request may hold is refused in words by every route that takes a body, with a key and without."""

import re
from typing import Any

import httpx
import pytest

from tests.collector_process import Collector

DIGITS = b"9" * 5_000
BODIES = {
    "no UTF-8": b'{"a":"\xff"}',
    "no UTF-8 at all": b'"\xff"',
    "980 levels": b'{"a":' + b"[" * 980 + b"]" * 980 + b"}",
    "65 levels": b"[" * 65 + b"]" * 65,
    "5,000 digits": b'{"version":' + DIGITS + b"}",
    "beyond a double": b'{"n":1e999}',
    "half of it": b'{"a":',
}
END = "9999-12-31T23:59:59.999999-12:00"


@pytest.fixture(scope="module")
def routes(collector: Collector) -> list[tuple[str, str]]:
    """Method and path of every operation that takes a JSON body."""
    with collector.client() as client:
        document: dict[str, Any] = client.get("/schema/openapi.json").json()
    return [
        (method.upper(), re.sub(r"\{agent_id\}", "6f1c1a52-9d6b-4a9e-8f55-2f6f2f3f4c11", path).replace("{", "").replace("}", ""))
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if "application/json" in operation.get("requestBody", {}).get("content", {})
    ]  # fmt: skip


def test_a_body_that_cannot_be_read_is_refused_by_every_route_and_leaves_no_traceback(
    collector: Collector, routes: list[tuple[str, str]]
) -> None:
    assert len(routes) > 8
    before = collector.log.count("Traceback")
    with collector.client(collector.key("admin")) as admin, collector.client() as nobody:
        for method, path in routes:
            for name, body in BODIES.items():
                for client in (admin, nobody):
                    answer = client.request(method, path, content=body, headers={"Content-Type": "application/json"})
                    assert 400 <= answer.status_code < 500, (method, path, name, answer.text)
                    assert answer.headers["content-type"] == "application/problem+json"
    assert collector.log.count("Traceback") == before


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/keys", {"role": "viewer", "name": "end", "expires": END}),
        ("POST", "/v1/suppressions", {"filter": "type=alert.none", "comment": "x", "expires": END}),
        ("POST", "/v1/alerts/preview", {"filter": f"from={END}"}),
        ("POST", "/v1/alerts/preview", {"filter": f"incident={'9' * 5_000}"}),
        ("POST", "/v1/alerts/preview", {"filter": f"severity={'9' * 5_000}"}),
    ],
)
def test_a_moment_or_number_beyond_all_bounds_is_a_problem_and_no_defect(
    collector: Collector, method: str, path: str, body: dict[str, str]
) -> None:
    with collector.client(collector.key("admin")) as admin, collector.client(collector.key("analyst")) as analyst:
        answers = [client.request(method, path, json=body) for client in (admin, analyst)]
    assert all(400 <= answer.status_code < 500 for answer in answers), [answer.text for answer in answers]
    assert 400 in {answer.status_code for answer in answers}


def test_metrics_take_a_key_that_sees_every_place_unless_they_are_open(collector: Collector) -> None:
    def status(client: httpx.Client) -> int:
        with client:
            return client.get("/metrics").status_code

    assert status(collector.client()) == 401
    assert status(collector.client(collector.key("viewer", site="north"))) == 403
    assert status(collector.client(collector.key("agent"))) == 403
    assert status(collector.client(collector.key("viewer"))) == 200
