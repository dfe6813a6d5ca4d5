"""The `where` language: total, typed, decided by type, and its errors point at the place."""

import math
import re
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.handlers.where import (
    ALWAYS,
    NEVER,
    All,
    AnyOf,
    Field,
    Literal,
    Networks,
    Not,
    Truth,
    Where,
    WhereError,
    decide,
    parse,
)
from agent.wire.event import Event
from agent.wire.taxonomy import lookup

EVENT = Event(
    5,
    6,
    "authentication.failure",
    "auth",
    src_ip="10.0.0.5",
    outcome="failure",
    data={
        "port": 22,
        "ratio": 0.5,
        "ok": True,
        "one": 1,
        "tags": ["a", 3],
        "x": {"y": {"z": "deep"}},
        "odd key": "o",
        "n": None,
    },
)

TRUE = """
type == 'authentication.failure'
type startswith "authentication."
category == 'authentication'
severity >= medium and severity < critical
data.port == 22 and data.port == 22.0
data.ratio < 1
data.ok
data.ok == true
data.one == 1
not data.one == true
data.ok != 1
data.x.y.z == 'deep'
data["odd key"] == 'o'
data.missing == null
data.n == null
data.port.sub == null
'a' in data.tags and 3 in data.tags and 'b' not in data.tags
data.tags contains 'a'
data.port in [21, 22, 'x']
src_ip in cidr('192.168.0.0/16', '10.0.0.0/8')
src_ip not in cidr('fe80::/10')
src_ip contains '.0.' and src_ip endswith '.5'
src_ip matches '^10\\.(0\\.)+5$'
lower(outcome) == 'failure' and length(outcome) == 7 and length(data.tags) == 2
not (type == 'x' or data.port > 22)
type == 'x' and type == 'y' or data.port != 23
target == null and not target == 'x' and target != 'x' and target not in ['x']
data.tags != data.tags
"""

FALSE = """
data.one == true
data.one
outcome
data.missing < 1
data.missing > 1
data.port < 'a'
data.ok < 2
target contains 'x'
target matches '.*'
data.port matches '22'
data.port in cidr('10.0.0.0/8')
outcome in cidr('10.0.0.0/8')
data.x == data.x
length(data.port) == 2
lower(data.port) == '22'
'x' in data.port
"""


@pytest.mark.parametrize("text", TRUE.strip().splitlines())
def test_expression_is_true_of_the_event(text: str) -> None:
    assert Where(text)(EVENT) is True


@pytest.mark.parametrize("text", FALSE.strip().splitlines())
def test_expression_is_false_of_the_event(text: str) -> None:
    assert Where(text)(EVENT) is False


def test_empty_expression_is_true_of_every_event() -> None:
    assert Where("")(EVENT)
    assert Where("  ").node == ALWAYS


@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        ("type = 'a'", 5, "write =="),
        ("type == 'a' && data.b", 12, "write and"),
        ("typo == 'a'", 0, "no field 'typo'"),
        ("port == 3", 0, "data.port"),
        ("data == 3", 0, "name a key"),
        ("data.a >", 8, "found the end"),
        ("(data.a", 7, "expected ')'"),
        ("data.a == 'x", 10, "not closed"),
        ("data.a matches '(?=x)'", 15, "RE2"),
        ("data.a matches data.b", 15, "in quotes"),
        ("data.a in 'x'", 10, "after in comes"),
        ("data.a in [data.b]", 11, "values, not fields"),
        ("data.a in cidr('10.0.0.0/99')", 15, "10.0.0.0/99"),
        ("1 < data.a < 3", 11, "do not chain"),
        ("data.a == 1 data.b", 12, "expected and, or"),
        ("data.a == 1e999", 10, "too large"),
        ("not " * 100 + "data.a", 256, "deeper"),
        ("\n  type == \n  in", 14, "found 'in'"),
    ],
)
def test_error_points_at_the_column_with_a_caret(text: str, column: int, says: str) -> None:
    with pytest.raises(WhereError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert caught.value.column == column
    shown, caret = str(caught.value).splitlines()[-2:]
    if column < len(text):
        assert shown[caret.index("^")] == text[column]


def test_expression_that_is_too_long_is_refused() -> None:
    with pytest.raises(WhereError, match="10000 characters"):
        parse("data.a == 1 or " * 1_000 + "data.b")


def test_type_that_cannot_match_is_decided_without_an_event() -> None:
    node = parse("(type == 'a.b' or type startswith 'c.') and data.x == 1")
    assert decide(node, "z") == NEVER
    assert decide(node, "a.b") == parse("data.x == 1")
    assert decide(parse("type == 'a' or data.x == 1"), "a") == ALWAYS
    assert decide(parse("not type == 'a'"), "a") == NEVER


def test_regular_expression_takes_time_linear_in_the_text() -> None:
    """What backtracks for longer than the universe exists is answered at once."""
    assert not Where("message matches '^(a+)+$'")(Event(0, 0, "x", message="a" * 200_000 + "b"))


def test_text_that_is_no_unicode_is_searched_all_the_same() -> None:
    assert Where("raw matches 'abc'")(Event(0, 0, "x", raw="\udce4abc"))


_names = st.sampled_from(
    ["type", "category", "src_ip", "severity", "time", "data.a", "data.b", "data.c.d", 'data["e f"]', "message"]
)
_texts = st.sampled_from(["a", "a.b", "10.0.0.1", "x y", "", "ä"])
_literals = st.one_of(
    _texts.map(lambda text: f"'{text}'"),
    st.integers(-3, 30).map(str),
    st.sampled_from(["0.5", "true", "false", "null", "high", "-1e3"]),
)
_operands = st.one_of(
    _names, _literals, _names.map(lambda name: f"lower({name})"), _names.map(lambda name: f"length({name})")
)
_comparisons = st.one_of(
    _operands,
    st.tuples(
        _operands, st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "contains", "startswith", "endswith"]), _operands
    ).map(" ".join),
    st.tuples(_operands, st.sampled_from(["in", "not in"]), st.lists(_literals, max_size=3)).map(
        lambda t: f"{t[0]} {t[1]} [{', '.join(t[2])}]"
    ),
    st.tuples(_operands, st.sampled_from(["in", "not in"]), _names).map(" ".join),
    _operands.map(lambda operand: f"{operand} in cidr('10.0.0.0/8')"),
    _operands.map(lambda operand: f"{operand} matches 'a|^x.*y$'"),
)
expressions = st.recursive(
    _comparisons,
    lambda inner: st.one_of(
        inner.map(lambda one: f"not ({one})"),
        st.tuples(inner, st.sampled_from([" and ", " or "]), inner).map(lambda t: f"({t[0]}{t[1]}{t[2]})"),
    ),
    max_leaves=8,
)
_values: Any = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), _texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abcd"), inner, max_size=3)),
    max_leaves=6,
)
events = st.builds(
    Event,
    st.integers(0, 2**60),
    st.integers(0, 2**60),
    st.sampled_from(["a", "a.b", "authentication.failure", "x"]),
    st.sampled_from(["", "plc"]),
    st.integers(1, 6),
    st.none() | st.sampled_from(["10.0.0.1", "fe80::1", "not an address"]),
    message=st.none() | st.text(max_size=5),
    data=st.dictionaries(st.sampled_from(["a", "b", "c", "e f"]), _values, max_size=4),
)


@settings(max_examples=300, deadline=None)
@given(expressions, events)
def test_every_expression_is_true_or_false_of_every_event_and_not_is_its_opposite(text: str, event: Event) -> None:
    found = Where(text)(event)
    assert found is True or found is False
    assert Where(f"not ({text})")(event) is not found


@settings(max_examples=300, deadline=None)
@given(expressions, events)
def test_what_is_decided_by_type_never_changes_the_answer(text: str, event: Event) -> None:
    where = Where(text)
    if not where.can_match(event.type):
        assert not where(event)
    from agent.handlers.where import compiled

    assert compiled(where.node)(event) is where(event)


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet="abdt.ype= '\"<>!()[],0123\\\n-andornotincidr", max_size=60))
def test_any_text_parses_or_is_refused_with_a_column_inside_it(text: str) -> None:
    try:
        where = Where(text)
    except WhereError as error:
        _check_column(error, text)
        return
    assert where(EVENT) in (True, False)


def _check_column(error: WhereError, text: str) -> None:
    assert 0 <= error.column <= len(text)
    assert "^" in str(error)


# ── the obvious interpreter: walks the tree for each event, with the rules of the module's text written out one by one ──


def field_of(path: tuple[str, ...], event: Event) -> Any:
    if path == ("category",):
        return lookup(event.type).category
    value: Any = getattr(event, path[0])
    for name in path[1:]:
        value = value[name] if isinstance(value, dict) and name in value else None
    return value


def value_of(operand: Any, event: Event) -> Any:
    if isinstance(operand, Literal):
        return operand.value
    if isinstance(operand, Field):
        return field_of(operand.path, event)
    value = value_of(operand.operand, event)
    if operand.name == "lower":
        return value.lower() if isinstance(value, str) else None
    return len(value) if isinstance(value, str | list | dict) else None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def same(left: Any, right: Any) -> bool:
    if is_number(left) and is_number(right):
        return bool(left == right)
    plain = isinstance(left, str | bool | None) and type(left) is type(right)
    return plain and left == right


def in_networks(value: Any, networks: Any) -> bool:
    try:
        return isinstance(value, str) and any(ip_address(value) in network for network in networks)
    except ValueError:
        return False


def compares(op: str, left: Any, right: Any) -> bool:  # noqa: PLR0911  (a return a rule)
    both_text = isinstance(left, str) and isinstance(right, str)
    if op == "==":
        return same(left, right)
    if op == "in":
        return isinstance(right, list | tuple) and any(same(left, one) for one in right)
    if op == "contains" and isinstance(left, list):
        return any(same(right, one) for one in left)
    if op in ("contains", "startswith", "endswith"):
        return (
            both_text
            and {"contains": right in left, "startswith": left.startswith(right), "endswith": left.endswith(right)}[op]
        )
    if op == "matches":
        return isinstance(left, str) and re.search(right, left) is not None
    if not both_text and not (is_number(left) and is_number(right)):
        return False
    return bool({"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[op])


def obvious(node: Any, event: Event) -> bool:
    if isinstance(node, Not):
        return not obvious(node.part, event)
    if isinstance(node, All):
        return all(obvious(part, event) for part in node.parts)
    if isinstance(node, AnyOf):
        return any(obvious(part, event) for part in node.parts)
    if isinstance(node, Truth):
        return value_of(node.operand, event) is True
    left = value_of(node.left, event)
    if isinstance(node.right, Networks):
        return in_networks(left, node.right.networks)
    return compares(node.op, left, value_of(node.right, event))


@settings(max_examples=400, deadline=None)
@given(expressions, events)
def test_every_expression_is_what_the_obvious_interpreter_says(text: str, event: Event) -> None:
    where = Where(text)
    assert where(event) is obvious(where.node, event)


def test_nan_and_infinity_compare_without_error() -> None:
    event = Event(0, 0, "x", data={"a": math.nan, "b": math.inf, "c": 10**400})
    assert not Where("data.a < 1 or data.a >= 1 or data.a == data.a")(event)
    assert Where("data.b > 1 and data.c > 1.5")(event)


@given(expressions, events)
def test_an_event_that_matches_has_one_of_the_keys_that_are_needed(text: str, event: Event) -> None:
    tested = Where(text)
    needed = tested.needs(event.type)
    if needed and tested(event):
        assert any(
            event.data.get(key) is not None and (values is None or event.data[key] in values)
            for key, values in needed.items()
        )


def test_keys_that_are_needed_are_found_where_they_can_be() -> None:
    def needs(text: str) -> set[str]:
        return set(Where(text).needs("a"))

    assert needs("type == 'a' and data.q in ['x', 'y']") == {"q"}
    assert needs("data.q != null") == needs("data.q") == needs("data.q.r > 3") == {"q"}
    assert needs("data.q == 1 or data.r == 2") == {"q", "r"}
    assert needs("(type == 'a' and data.q == 1) or type == 'b'") == {"q"}
    for text in (
        "",
        "data.q == null",
        "data.q != 1",
        "data.q in [1, null]",
        "data.q == data.r",
        "data.q == 1 or severity > 2",
    ):
        assert needs(text) == set()
    assert Where("data.q in ['x', 'y'] or data.q == 'z'").needs("a") == {"q": frozenset("xyz")}
    assert Where("data.q in ['x', 1] or data.q == 'z'").needs("a") == {"q": None}
    assert Where("data.q.r == 'z'").needs("a") == Where("data.q contains 'z'").needs("a") == {"q": None}
