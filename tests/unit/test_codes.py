"""Every code that is raised anywhere is in the one enum, has its row in the one table, and is reported by the event that stands there."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.wire.taxonomy import TAXONOMY
from collector import codes, problems
from collector.codes import TABLE, Code
from collector.enrol_signature import Forgeries, _event
from collector.problems import Problem

COLLECTOR = Path(problems.__file__).parent
CARRIES_CODE = {"Problem", "Refused", "identity.Refused", "_Refusal"}
"""What is raised with a code: as the argument `code`, or as the first one."""
HANDED_ON = {"error.code", "refused.code", "self._failed.code", "problem.code"}
"""What hands a code on that was raised with a literal elsewhere."""


def raised() -> Iterator[tuple[str, str]]:
    """Where a code is raised, and the expression."""
    for file in sorted(COLLECTOR.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) not in CARRIES_CODE:
                continue
            at = f"{file.name}:{node.lineno}"
            given = [word.value for word in node.keywords if word.arg == "code"]
            if ast.unparse(node.func) != "Problem" and len(node.args) > 1:
                given.append(node.args[0])
            for value in given:
                either = (value.body, value.orelse) if isinstance(value, ast.IfExp) else (value,)
                yield from ((at, ast.unparse(one)) for one in either)


def value_of(expression: str) -> Any:
    """The code that an expression names."""
    if expression.startswith(("Code.", "codes.Code.")):
        return Code[expression.rpartition(".")[2]]
    return ast.literal_eval(expression)


def test_every_code_raised_anywhere_is_a_member_of_the_enum() -> None:
    found = [(at, expression) for at, expression in raised() if expression not in HANDED_ON]
    assert len(found) > 100, "the sources are read"
    unknown = [(at, expression) for at, expression in found if value_of(expression) not in set(Code)]
    assert unknown == []


def test_every_member_of_the_enum_is_raised_somewhere_and_has_words() -> None:
    used = {value_of(expression) for _, expression in raised() if expression not in HANDED_ON}
    assert set(Code) - used == set()
    assert set(TABLE) == set(Code)
    assert all(row.words for row in TABLE.values())


@pytest.mark.parametrize("code", [code for code in Code if TABLE[code].event])
def test_a_refusal_is_reported_by_the_event_of_its_code(code: Code) -> None:
    forgeries: Any = Forgeries(None, lambda: None)  # type: ignore[arg-type]
    forgeries.note(Problem(403, "no", code=code, agent_id="a"), "10.0.0.1")
    ((kind),) = forgeries._kinds.values()
    made = _event(kind, 1)
    assert made.type == TABLE[code].event
    assert made.type in TAXONOMY
    assert (made.data["reason"], made.src_ip) == (code, "10.0.0.1")


def test_refusals_of_known_keys_and_foreign_tokens_are_enrolments_to_the_soc() -> None:
    enrolment = {code for code, row in TABLE.items() if row.event == codes.ENROLMENT_REFUSED}
    assert {"key_known", "token_agent", "agent_known", "token", "token_used"} == enrolment


def test_a_problem_without_an_event_in_the_table_is_not_reported() -> None:
    forgeries: Any = Forgeries(None, lambda: None)  # type: ignore[arg-type]
    forgeries.note(Problem(400, "no", code="filter"), "")
    forgeries.note(Problem(404, "no"), "")
    assert not forgeries._kinds
