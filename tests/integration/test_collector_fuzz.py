"""The API under schemathesis, on a real PostgreSQL: whatever is asked, every answer is one that the OpenAPI document describes.

No defect, no status, media type or form that the document does not name, nothing answered to whoever shows no key where it takes one. The
short form asks each operation a few times. For hours, each of them 100,000 times:
`LINEWARDEN_FUZZ_EXAMPLES=100000 pytest -m long tests/integration/test_collector_fuzz.py`.
"""

import os
import re
import unittest
from collections.abc import Iterator
from typing import Any, cast

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi import checks as openapi

from tests.collector_process import Chain, Collector, event, post

ENDLESS = ("/v1/stream",)
"""Answers that do not end are read by the tests of streams."""
DOCUMENT = "/schema"
"""The document itself, by the framework."""
CHECKS = [
    checks.not_a_server_error,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_headers_conformance,
    openapi.response_schema_conformance,
    openapi.ignored_auth,
]
REFUSED = [*CHECKS[:-1], openapi.negative_data_rejection]
"""Of what does not fit the document."""
URL_CHARS_MAX = 1_300
LONG_EXAMPLES = int(os.environ.get("LINEWARDEN_FUZZ_EXAMPLES", "300"))


@pytest.fixture(scope="module")
def fuzzed(postgres: Any) -> Iterator[Collector]:
    with Collector(postgres.create_database("fuzz"), ACCESS__REQUESTS_PER_S="0") as collector:
        with collector.client(collector.key("agent", site="north")) as agent:
            alert = event("a", type="alert.authentication.burst", severity=4, src_ip="192.0.2.1")
            some = [event(actor="ann", data={"user": "ann", "n": 1}) for _ in range(20)]
            assert post(agent, Chain().seal([*some, alert])).status_code == 200
        yield collector


def _fuzz(collector: Collector, examples: int) -> list[str]:
    """What was wrong, by operation."""
    schema = schemathesis.openapi.from_url(f"{collector.url}/schema/openapi.json")
    headers = {"Authorization": f"Bearer {collector.key('admin')}"}
    wrong = []
    for result in schema.get_all_operations():
        operation = cast("Any", result).ok()
        if operation.path in ENDLESS or operation.path.startswith(DOCUMENT):
            continue

        @hypothesis.settings(
            max_examples=examples, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate],
        )  # fmt: skip
        @hypothesis.given(case=operation.as_strategy())
        def one(case: Any) -> None:
            answer = case.call(headers=headers, timeout=60)
            case.validate_response(answer, checks=CHECKS, headers=headers)

        try:
            one()
        except (AssertionError, BaseExceptionGroup) as error:
            inner = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error
            wrong.append(f"{operation.label}: {inner!s:.600}")
    return wrong


def test_whatever_is_asked_the_answer_is_as_the_document_says(fuzzed: Collector) -> None:
    wrong = _fuzz(fuzzed, 3)
    assert not wrong, "\n\n".join(wrong)


def _malformed(collector: Collector, examples: int) -> tuple[list[str], int]:
    """What malformed requests did that they must not, and how many there were."""
    schema = schemathesis.openapi.from_url(f"{collector.url}/schema/openapi.json")
    headers = {"Authorization": f"Bearer {collector.key('admin')}"}
    wrong: list[str] = []
    sent = 0
    for result in schema.get_all_operations():
        operation = cast("Any", result).ok()
        if operation.path in ENDLESS or operation.path.startswith(DOCUMENT):
            continue

        @hypothesis.settings(
            max_examples=examples, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate],
        )  # fmt: skip
        @hypothesis.given(case=operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
        def one(case: Any) -> None:
            nonlocal sent
            # A longer address (up to 12 bytes a character) is 414 whatever it holds; the checks do not take that for a refusal.
            hypothesis.assume(len(str(case.as_transport_kwargs()["params"])) < URL_CHARS_MAX)
            answer = case.call(headers=headers, timeout=60)
            sent += 1
            case.validate_response(answer, checks=REFUSED, headers=headers)

        try:
            one()
        except (hypothesis.errors.Unsatisfiable, unittest.SkipTest):
            # There is nothing in it that could be malformed.
            continue
        except (AssertionError, BaseExceptionGroup) as error:
            inner = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error
            wrong.append(f"{operation.label}: {inner!s:.900}")
    return wrong, sent


def test_what_is_malformed_is_refused_in_the_documented_form(fuzzed: Collector) -> None:
    wrong, sent = _malformed(fuzzed, 3)
    assert not wrong, "\n\n".join(wrong)
    assert sent > 100


@pytest.mark.long
@pytest.mark.timeout(0)
def test_whatever_is_asked_at_length_the_answer_is_as_the_document_says(fuzzed: Collector) -> None:
    wrong = _fuzz(fuzzed, LONG_EXAMPLES)
    assert not wrong, "\n\n".join(wrong)


def test_a_number_that_no_database_holds_is_answered_in_words_wherever_one_is_taken(fuzzed: Collector) -> None:
    """Every operation of the document that takes a whole number, in its path or its query, at both ends of 64 bits and far behind."""
    wrong = []
    with fuzzed.client(fuzzed.key("admin")) as client:
        document = client.get("/schema/openapi.json").json()
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                for parameter in operation.get("parameters", ()):
                    kinds = [
                        parameter["schema"],
                        *parameter["schema"].get("oneOf", ()),
                        *parameter["schema"].get("anyOf", ()),
                    ]
                    if not any(kind.get("type") == "integer" for kind in kinds):
                        continue
                    for number in (2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**40):
                        in_path = parameter["in"] == "path"
                        url = path.replace("{" + parameter["name"] + "}", str(number) if in_path else "1")
                        url = "".join("1" if part.startswith("{") else part for part in re.split(r"(\{[^}]*\})", url))
                        query = {} if in_path else {parameter["name"]: number}
                        status = client.request(method, url, params=query, json={}).status_code
                        if status >= 500 or (status < 300 and in_path):
                            wrong.append(f"{method} {url} {query}: {status}")
    assert not wrong, "\n".join(wrong)
