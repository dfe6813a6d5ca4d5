"""The `where` language: which events a handler looks at.

What holds:

* Total: any expression that parses gives true or false for any event. Nothing in it can raise, loop, or take longer than the
  length of what it looks at (regular expressions run on RE2, which is linear in the text by construction).
* Parsed once, compiled to closures. Nothing is evaluated as Python.
* What is known from the type of an event alone is decided once a type (`decide`), so that an event of another type costs nothing.

    expression := disjunct ("or" disjunct)*
    disjunct   := part ("and" part)*
    part       := "not" part | "(" expression ")" | operand [comparison]
    comparison := ("==" | "!=" | "<" | "<=" | ">" | ">=") operand
                | ["not"] "in" (list | field | cidr("10.0.0.0/8", …))
                | ["not"] ("contains" | "startswith" | "endswith") operand | ["not"] "matches" "regular expression"
    operand    := literal | field | lower(operand) | length(operand)
    literal    := "text" | 'text' | number | true | false | null | informational | low | medium | high | critical | fatal
    field      := time | observed | type | category | source | severity | src_ip | target | outcome | message
                | correlation_id | actor | raw | line | data.name | data.name.name | data.name.0 | data["any name"]

`line` is the original line, also where it is not stored, else the message. A field that is not there, or a step into something that is no
object, is null. null equals null and nothing else; `<`, `<=`, `>`, `>=`, contains, startswith, endswith, matches and in-a-network are
false for null and for values of another kind; `!=` and `not in` are the exact opposites of `==` and `in`. true and false are no numbers;
arrays and objects equal nothing. A bare operand is true only if it is the value true.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from operator import attrgetter
from typing import Any

from agent.wire.event import Event
from agent.wire.taxonomy import lookup

EXPRESSION_CHARS_MAX = 10_000
DEPTH_MAX = 64
"""Brackets and `not` nest at most this deep; deeper is refused at parsing."""
NUMBER_CHARS_MAX = 40
INDEX_DIGITS_MAX = 6
TYPES_DECIDED_MAX = 4_096
"""Decisions by type are remembered for so many types, then begun anew: types may be invented by whoever sends events."""

Test = Callable[[Event], bool]
Get = Callable[[Event], Any]

ATTRIBUTES = (
    "time",
    "observed",
    "type",
    "source",
    "severity",
    "src_ip",
    "target",
    "outcome",
    "message",
    "correlation_id",
    "actor",
    "raw",
)
_SEVERITIES = {"informational": 1, "low": 2, "medium": 3, "high": 4, "critical": 5, "fatal": 6}
_CONSTANTS: dict[str, Any] = {"true": True, "false": False, "null": None, **_SEVERITIES}
_WORDS = frozenset(
    {"and", "or", "not", "in", "contains", "matches", "startswith", "endswith", "lower", "length", "cidr", *_CONSTANTS}
)
_ORDERINGS = ("<", "<=", ">", ">=")
_TEXT_TESTS = ("contains", "startswith", "endswith")


class WhereError(ValueError):
    """The expression cannot be read. `column` counts from 0; `str()` shows the expression with a caret under it."""

    def __init__(self, text: str, expression: str, column: int) -> None:
        super().__init__(text)
        self.text = text
        self.expression = expression
        self.column = column

    def __str__(self) -> str:
        start = self.expression.rfind("\n", 0, self.column) + 1
        line = self.expression[start:].partition("\n")[0]
        at = self.column - start
        cut = max(0, at - 100)
        return f"{self.text}, at column {self.column + 1}:\n  {line[cut : cut + 160]}\n  {' ' * (at - cut)}^"


@dataclass(frozen=True, slots=True)
class Literal:
    """A value written in the expression."""

    value: Any


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the event; `path` is ("data", …) for what is inside data."""

    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """lower(…) or length(…)."""

    name: str
    operand: "Operand"


@dataclass(frozen=True, slots=True)
class Networks:
    """cidr(…)."""

    networks: tuple[IPv4Network | IPv6Network, ...]


Operand = Literal | Field | Call


@dataclass(frozen=True, slots=True)
class Compare:
    """One comparison. For `in`, `right` is a tuple of literals, a field, or networks; for `matches` it is the pattern."""

    op: str
    left: Operand
    right: "Operand | Networks"


@dataclass(frozen=True, slots=True)
class Truth:
    """A bare operand."""

    operand: Operand


@dataclass(frozen=True, slots=True)
class Not:
    """Negation."""

    part: "Node"


@dataclass(frozen=True, slots=True)
class All:
    """`and`."""

    parts: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class AnyOf:
    """`or`."""

    parts: "tuple[Node, ...]"


Node = Compare | Truth | Not | All | AnyOf
ALWAYS = All(())
NEVER = AnyOf(())

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\w.]))|(?P<word>[A-Za-z_]\w*(?:\.\w+)*)"""
    r"""|(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<sign>==|!=|<=|>=|[<>()\[\],]))""",
    re.DOTALL,
)
_HINTS = {
    "=": "write == to compare",
    "&": "write and",
    "|": "write or",
    "!": "write not, or !=",
    "'": "the text is not closed",
    '"': "the text is not closed",
}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    column: int


def _tokens(expression: str) -> list[_Token]:
    if len(expression) > EXPRESSION_CHARS_MAX:
        raise WhereError(
            f"an expression may have {EXPRESSION_CHARS_MAX} characters, this one has {len(expression)}", expression, 0
        )
    found: list[_Token] = []
    at, end = 0, len(expression.rstrip())
    while at < end:
        match = _TOKEN.match(expression, at)
        if match is None:
            at += len(expression[at:]) - len(expression[at:].lstrip())
            sign = expression[at]
            hint = f" ({_HINTS[sign]})" if sign in _HINTS else ""
            raise WhereError(f"cannot read {sign!r}{hint}", expression, at)
        kind = match.lastgroup or ""
        found.append(_Token(kind, match[kind], match.start(kind)))
        at = match.end()
    found.append(_Token("end", "the end", end))
    return found


class _Parser:
    """Recursive descent, one method a rule of the grammar above."""

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._tokens = _tokens(expression)
        self._at = 0
        self._depth = 0

    def parse(self) -> Node:
        node = self._either()
        if self._now.kind != "end":
            raise self._error(f"expected and, or, or the end, found {self._now.text!r}")
        return node

    @property
    def _now(self) -> _Token:
        return self._tokens[self._at]

    def _error(self, text: str, column: int | None = None) -> WhereError:
        return WhereError(text, self._expression, self._now.column if column is None else column)

    def _take(self, *texts: str) -> str | None:
        token = self._now
        if token.kind in ("word", "sign") and token.text in texts:
            self._at += 1
            return token.text
        return None

    def _need(self, text: str) -> None:
        if not self._take(text):
            raise self._error(f"expected {text!r}, found {self._now.text!r}")

    def _either(self) -> Node:
        parts = [self._both()]
        while self._take("or"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def _both(self) -> Node:
        parts = [self._part()]
        while self._take("and"):
            parts.append(self._part())
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _part(self) -> Node:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self._error(f"nested deeper than {DEPTH_MAX}")
        try:
            if self._take("not"):
                return Not(self._part())
            if self._take("("):
                node = self._either()
                self._need(")")
                return node
            return self._comparison()
        finally:
            self._depth -= 1

    def _comparison(self) -> Node:
        left = self._operand()
        negated = self._take("not") is not None
        op = (
            self._take("in", "matches", *_TEXT_TESTS)
            if negated
            else self._take("==", "!=", *_ORDERINGS, "in", "matches", *_TEXT_TESTS)
        )
        if op is None:
            if negated:
                raise self._error("after not comes in, contains, startswith, endswith or matches")
            return Truth(left)
        node: Node
        if op == "in":
            node = Compare(op, left, self._members())
        elif op == "matches":
            node = Compare(op, left, self._pattern())
        else:
            node = Compare("==" if op == "!=" else op, left, self._operand())
        if self._now.text in ("==", "!=", *_ORDERINGS) and self._now.kind == "sign":
            raise self._error("comparisons do not chain; join two with and")
        return Not(node) if negated or op == "!=" else node

    def _operand(self) -> Operand:
        token = self._now
        if token.kind == "end":
            raise self._error("expected a field or a value, found the end")
        self._at += 1
        if token.kind == "number":
            return Literal(self._number(token))
        if token.kind == "text":
            return Literal(_unquote(token.text))
        if token.kind == "word":
            return self._named(token)
        raise self._error(f"expected a field or a value, found {token.text!r}", token.column)

    def _number(self, token: _Token) -> int | float:
        if len(token.text) > NUMBER_CHARS_MAX:
            raise self._error("this number is too long", token.column)
        value = float(token.text)
        if value in (float("inf"), float("-inf")):
            raise self._error("this number is too large", token.column)
        return int(token.text) if token.text.lstrip("-").isdecimal() else value

    def _named(self, token: _Token) -> Operand:
        if token.text in _CONSTANTS:
            return Literal(_CONSTANTS[token.text])
        if token.text in ("lower", "length"):
            self._need("(")
            operand = self._operand()
            self._need(")")
            return Call(token.text, operand)
        if token.text in _WORDS:
            raise self._error(f"expected a field or a value, found {token.text!r}", token.column)
        path = tuple(token.text.split("."))
        while path[0] == "data" and self._take("["):
            name = self._now
            if name.kind != "text":
                raise self._error('expected a name in quotes, as in data["spindle temperature"]')
            self._at += 1
            self._need("]")
            path = (*path, _unquote(name.text))
        return Field(self._checked(path, token))

    def _checked(self, path: tuple[str, ...], token: _Token) -> tuple[str, ...]:
        problem = path_problem(path)
        if problem:
            raise self._error(problem, token.column)
        return path

    def _members(self) -> Operand | Networks:
        if self._take("cidr"):
            return self._networks()
        if not self._take("["):
            column, operand = self._now.column, self._operand()
            if not isinstance(operand, Field):
                raise self._error('after in comes a list ["a", "b"], a field, or cidr("10.0.0.0/8")', column)
            return operand
        values: list[Any] = []
        while not self._take("]"):
            column, operand = self._now.column, self._operand()
            if not isinstance(operand, Literal):
                raise self._error("a list holds values, not fields", column)
            values.append(operand.value)
            if not self._take(","):
                self._need("]")
                break
        return Literal(tuple(values))

    def _networks(self) -> Networks:
        self._need("(")
        networks: list[IPv4Network | IPv6Network] = []
        while True:
            token = self._now
            if token.kind != "text":
                raise self._error('expected a network in quotes, as in cidr("10.0.0.0/8")')
            try:
                networks.append(ip_network(_unquote(token.text), strict=False))
            except ValueError as error:
                raise self._error(str(error), token.column) from None
            self._at += 1
            if not self._take(","):
                self._need(")")
                return Networks(tuple(networks))

    def _pattern(self) -> Literal:
        token = self._now
        if token.kind != "text":
            raise self._error("after matches comes a regular expression in quotes")
        self._at += 1
        pattern = _unquote(token.text)
        try:
            regex(pattern)
        except ValueError as error:
            raise self._error(f"not a regular expression that RE2 can run: {error}", token.column) from None
        return Literal(pattern)


def _unquote(text: str) -> str:
    """Only quotes and the backslash are escaped, so that a regular expression stays as it is written."""
    return re.sub(r"\\([\\'\"])", r"\1", text[1:-1])


def path_problem(path: tuple[str, ...]) -> str | None:
    """Why there can be no such field, or None."""
    if path[0] == "data":
        return "data is an object: name a key in it, as in data.port" if len(path) == 1 else None
    if len(path) == 1 and (path[0] in ATTRIBUTES or path[0] in _COMPUTED):
        return None
    name = ".".join(path)
    near = get_close_matches(name, [*ATTRIBUTES, *_COMPUTED], 1)
    hint = f"did you mean {near[0]}?" if near else f"a key inside data is written data.{name}"
    return f"an event has no field {name!r} ({hint})"


@cache
def regex(pattern: str) -> Callable[[str], bool]:
    """Whether a text holds the pattern, in time linear in the text. Raises ValueError; RE2 is loaded by the first use."""
    import re2  # type: ignore[import-untyped]  # it has no stubs

    options = re2.Options()
    options.log_errors = False
    options.max_mem = 8 << 20
    try:
        search = re2.compile(pattern, options).search
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0] if error.args else error
        raise ValueError(reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)) from None

    def found(text: str) -> bool:
        try:
            return search(text) is not None
        except UnicodeEncodeError:  # lone surrogates, as a log that is no UTF-8 may hold
            return search(text.encode(errors="replace").decode()) is not None

    return found


def getter(path: tuple[str, ...]) -> Get:
    """What reads a field."""
    if path[0] != "data":
        return _COMPUTED.get(path[0]) or attrgetter(path[0])
    if len(path) == 2:  # noqa: PLR2004  (data.name: nearly all of them)
        name = path[1]
        return lambda event: event.data.get(name)
    names = path[1:]

    def inside(event: Event) -> Any:
        value: Any = event.data
        for name in names:
            if isinstance(value, dict):
                value = value.get(name)
            elif isinstance(value, list) and name.isdecimal() and len(name) < INDEX_DIGITS_MAX:
                value = value[int(name)] if int(name) < len(value) else None
            else:
                return None
        return value

    return inside


def field(name: str) -> Get:
    """What reads the field of a dotted name, as `by` and `value` of a handler give it. Raises ValueError."""
    path = tuple(name.split(".")) if not name.startswith('data["') else ("data", name[6:].removesuffix('"]'))
    problem = path_problem(path)
    if problem:
        raise ValueError(problem)
    return getter(path)


def _category(event: Event) -> str:
    return lookup(event.type).category


def _raw(event: Event) -> str | None:
    raw = event.raw
    return raw if raw is None or type(raw) is str else str(raw)


def _line(event: Event) -> str | None:
    raw = event.raw
    return event.message if raw is None else str(raw)


_COMPUTED: dict[str, Get] = {"category": _category, "raw": _raw, "line": _line}


def _read(operand: Operand) -> Get:
    if isinstance(operand, Literal):
        value = operand.value
        return lambda _: value
    if isinstance(operand, Field):
        return getter(operand.path)
    inner = _read(operand.operand)
    if operand.name == "lower":
        return lambda event: value.lower() if type(value := inner(event)) is str else None
    return lambda event: len(value) if type(value := inner(event)) in (str, list, dict) else None


def _kind(value: Any) -> str:
    kind = type(value)
    return "number" if kind is int or kind is float else kind.__name__


def equal(left: Any, right: Any) -> bool:
    """Equality of the language: true is not 1; an array or an object equals nothing, so that no depth is ever walked."""
    kind = _kind(left)
    return kind == _kind(right) and kind not in ("list", "dict") and bool(left == right)


def _compile_equal(compare: Compare) -> Test:
    get, right = _read(compare.left), compare.right
    if not isinstance(right, Literal):
        other = _read(right)  # type: ignore[arg-type]
        return lambda event: equal(get(event), other(event))
    value = right.value
    if value is None or value is True or value is False:
        return lambda event: get(event) is value
    if type(value) is str:
        return lambda event: bool(get(event) == value)
    return lambda event: (found := get(event)) == value and found is not True and found is not False


def _order(op: str, left: Any, right: Any) -> bool:
    if op == "<":
        return bool(left < right)
    if op == "<=":
        return bool(left <= right)
    return bool(left > right) if op == ">" else bool(left >= right)


def _compile_order(compare: Compare) -> Test:
    get, op, other = _read(compare.left), compare.op, _read(compare.right)  # type: ignore[arg-type]

    def test(event: Event) -> bool:
        left, right = get(event), other(event)
        kind = _kind(left)
        return kind in ("number", "str") and kind == _kind(right) and _order(op, left, right)

    return test


def _compile_in(compare: Compare) -> Test:
    get, right = _read(compare.left), compare.right
    if isinstance(right, Networks):
        return _compile_networks(get, right)
    if isinstance(right, Literal):
        values = tuple(right.value)
        if all(type(value) is str for value in values):
            texts = frozenset(values)
            return lambda event: type(found := get(event)) is str and found in texts
        return lambda event: _among(get(event), values)
    other = _read(right)
    return lambda event: _among(get(event), found if type(found := other(event)) is list else ())


def _among(value: Any, values: Any) -> bool:
    return any(equal(value, one) for one in values)


def _compile_networks(get: Get, right: Networks) -> Test:
    def inside(event: Event) -> bool:
        text = get(event)
        if type(text) is not str:
            return False
        try:
            address = ip_address(text)
        except ValueError:
            return False
        return any(address in network for network in right.networks)

    return inside


def _compile_text(compare: Compare) -> Test:
    get, op, other = _read(compare.left), compare.op, _read(compare.right)  # type: ignore[arg-type]

    def test(event: Event) -> bool:
        left, right = get(event), other(event)
        if op == "contains" and type(left) is list:
            return _among(right, left)
        if type(left) is not str or type(right) is not str:
            return False
        if op == "contains":
            return right in left
        return left.startswith(right) if op == "startswith" else left.endswith(right)

    return test


def _compile_matches(compare: Compare) -> Test:
    get = _read(compare.left)
    found = regex(compare.right.value)  # type: ignore[union-attr]
    return lambda event: type(text := get(event)) is str and found(text)


_COMPARISONS: dict[str, Callable[[Compare], Test]] = {
    "==": _compile_equal,
    "in": _compile_in,
    "matches": _compile_matches,
    **dict.fromkeys(_ORDERINGS, _compile_order),
    **dict.fromkeys(_TEXT_TESTS, _compile_text),
}


def always(event: Event) -> bool:
    """True of every event."""
    del event
    return True


def never(event: Event) -> bool:
    """True of no event."""
    del event
    return False


def compiled(node: Node) -> Test:
    """The closure of a node."""
    if isinstance(node, Compare):
        return _COMPARISONS[node.op](node)
    if isinstance(node, Truth):
        get = _read(node.operand)
        return lambda event: get(event) is True
    if isinstance(node, Not):
        inner = compiled(node.part)
        return lambda event: not inner(event)
    tests = tuple(compiled(part) for part in node.parts)
    return _conjunction(tests) if isinstance(node, All) else _disjunction(tests)


def _conjunction(tests: tuple[Test, ...]) -> Test:
    if not tests:
        return always
    if len(tests) == 2:  # noqa: PLR2004  (the usual case, without a loop)
        one, two = tests
        return lambda event: one(event) and two(event)

    def test(event: Event) -> bool:
        for part in tests:  # noqa: SIM110  (all() with a generator costs three times as much)
            if not part(event):
                return False
        return True

    return test


def _disjunction(tests: tuple[Test, ...]) -> Test:
    if not tests:
        return never

    def test(event: Event) -> bool:
        for part in tests:  # noqa: SIM110  (see above)
            if part(event):
                return True
        return False

    return test


def _about_type(operand: Operand | Networks) -> bool:
    """Whether the operand is known as soon as the type is."""
    if isinstance(operand, Call):
        return _about_type(operand.operand)
    return isinstance(operand, Literal | Networks) or operand.path in (("type",), ("category",))


def decide(node: Node, type_: str) -> Node:
    """The node for events of this type: what depends on the type alone is replaced by ALWAYS or NEVER, and taken out."""
    if isinstance(node, Compare | Truth):
        known = (
            _about_type(node.operand) if isinstance(node, Truth) else _about_type(node.left) and _about_type(node.right)
        )
        return node if not known else ALWAYS if compiled(node)(Event(0, 0, type_, severity=1)) else NEVER
    if isinstance(node, Not):
        inner = decide(node.part, type_)
        return NEVER if inner == ALWAYS else ALWAYS if inner == NEVER else Not(inner)
    absorbing, neutral = (NEVER, ALWAYS) if isinstance(node, All) else (ALWAYS, NEVER)
    parts = [part for part in (decide(part, type_) for part in node.parts) if part != neutral]
    if absorbing in parts:
        return absorbing
    return parts[0] if len(parts) == 1 else type(node)(tuple(parts))


Needs = dict[str, frozenset[str] | None]
"""Keys of data of which an event must have at least one, each with the texts that it may be; None: any value."""


def needs(node: Node) -> Needs:
    """What an event must have for the node to be true; empty where nothing is known of it."""
    if isinstance(node, Not):
        compare = node.part
        # `!= null`: the opposite of equality with null.
        known = isinstance(compare, Compare) and compare.op == "==" and compare.right == Literal(None)
        return _need(compare.left, None) if known and isinstance(compare, Compare) else {}
    if isinstance(node, Truth):
        return _need(node.operand, None)
    if isinstance(node, Compare):
        return _needs_of(node)
    found = [needs(part) for part in node.parts]
    if isinstance(node, All):
        return next((one for one in found if one), {})
    together: Needs = {}
    for one in found:
        if not one:
            return {}
        for key, values in one.items():
            before = together.get(key, frozenset())
            together[key] = None if values is None or before is None else before | values
    return together


def _needs_of(compare: Compare) -> Needs:
    given = compare.right.value if isinstance(compare.right, Literal) else None
    values = given if type(given) is tuple else (given,)
    if None in values:
        return {}
    are_texts = compare.op in ("==", "in") and all(type(value) is str for value in values)
    return _need(compare.left, frozenset(values) if are_texts else None)


def _need(operand: Operand, values: frozenset[str] | None) -> Needs:
    if not isinstance(operand, Field) or operand.path[0] != "data":
        return {}
    return {operand.path[1]: values if len(operand.path) == 2 else None}  # noqa: PLR2004  (data.name)


def paths(node: Node | Operand | Networks) -> Iterator[tuple[str, ...]]:
    """Yield the path of every field that the node reads."""
    match node:
        case Field():
            yield node.path
        case Call() | Truth():
            yield from paths(node.operand)
        case Compare():
            yield from paths(node.left)
            yield from paths(node.right)
        case Not():
            yield from paths(node.part)
        case All() | AnyOf():
            for part in node.parts:
                yield from paths(part)


class Where:
    """A parsed expression. `tests` maps the types met so far to their closures; `learn` adds one.

    The loop of a handler:   test = tests.get(event.type) or learn(event.type);   if test(event): …
    """

    __slots__ = ("node", "tests", "text")

    def __init__(self, text: str, node: Node | None = None) -> None:
        self.text = text
        self.node = parse(text) if node is None else node
        self.tests: dict[str, Test] = {}

    def learn(self, type_: str) -> Test:
        """The closure for events of this type."""
        if len(self.tests) >= TYPES_DECIDED_MAX:
            self.tests.clear()
        node = decide(self.node, type_)
        test = self.tests[type_] = always if node == ALWAYS else never if node == NEVER else compiled(node)
        return test

    def can_match(self, type_: str) -> bool:
        """Whether an event of this type may match at all."""
        return decide(self.node, type_) != NEVER

    def needs(self, type_: str) -> Needs:
        """What an event of this type has in its data if it matches; empty where nothing is known of that."""
        return needs(decide(self.node, type_))

    def reads(self, *names: str) -> bool:
        """Whether the expression reads one of these fields (no keys inside data)."""
        return not {(name,) for name in names}.isdisjoint(paths(self.node))

    def __call__(self, event: Event) -> bool:
        return (self.tests.get(event.type) or self.learn(event.type))(event)


def parse(text: str) -> Node:
    """The tree of an expression; an empty one is true of every event. Raises WhereError."""
    return _Parser(text).parse() if text.strip() else ALWAYS
