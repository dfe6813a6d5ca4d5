"""The table of requirements: every test that it names is in the tree, and what the page says is what the table says, escaped."""

import ast
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.wire.taxonomy import TAXONOMY
from collector import compliance
from collector.compliance import CHECKS, Fleet, Report, RequirementOut
from collector.compliance_table import CSF, GDPR, IEC, OUTSIDE, REQUIREMENTS, STANDARDS, Requirement

ROOT = Path(__file__).parents[2]


def _tests_of(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda one: one.number)
def test_each_test_that_a_requirement_names_is_in_the_tree(requirement: Requirement) -> None:
    for test in requirement.tests:
        file, _, name = test.partition("::")
        assert name in _tests_of(ROOT / file), test


def test_each_requirement_is_there_once_and_its_check_is_known() -> None:
    keys = [(one.standard, one.number) for one in REQUIREMENTS]
    assert len(keys) == len(set(keys))
    assert {one.standard for one in REQUIREMENTS} == set(STANDARDS)
    assert {one.check for one in REQUIREMENTS} <= {OUTSIDE, *CHECKS}


def test_nothing_claims_to_be_certified() -> None:
    for one in REQUIREMENTS:
        assert "certified" not in f"{one.title} {one.does}".lower()
        assert "complian" not in f"{one.title} {one.does}".lower()


def test_what_was_asked_for_is_in_the_table() -> None:
    numbers = {standard: {one.number for one in REQUIREMENTS if one.standard == standard} for standard in STANDARDS}
    assert {f"1.{n}" for n in range(1, 14)} <= numbers[IEC]
    assert {
        "2.8",
        "2.9",
        "2.10",
        "2.11",
        "2.12",
        "6.1",
        "6.2",
        *(f"3.{n}" for n in range(1, 10)),
        *(f"7.{n}" for n in range(1, 9)),
    } <= numbers[IEC]
    assert numbers[GDPR] == {"5", "15", "17", "25", "30", "32"}
    # Every tag of the NIST framework that a type of event carries is answered for.
    assert {tag for row in TAXONOMY.values() for tag in row.nist_csf} <= numbers[CSF]


def test_the_page_is_escaped_and_needs_nothing_from_elsewhere() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    row = RequirementOut(
        IEC, "SR 1.1", "<b>t</b>", "unmet", "<script>alert(1)</script>", "a & b", ["x"], ["t::t"], 5, ["<i>"], 1, now
    )
    fleet = Fleet(1, 0, 0, 0, 1, 0, 0, 0, 0, 0, None, 0)
    page = compliance.html(Report(now, now, now, compliance.DISCLAIMER, fleet, {name: {} for name in STANDARDS}, [row]))
    assert "<script" not in page
    assert "<i>" not in page
    assert "&lt;script&gt;" in page
    for outside in ("http://", "https://", "src=", "url(", "@import"):
        assert outside not in page
