"""Make an event that fires a rule: the proof that a translated rule can fire at all.

    condition ──ways──► comparisons that have to hold, or not ──values──► an event ──where──► true, or the next way

A rule whose `type` compares with something that no event is called, or whose parts exclude each other, has no such event. The search is
bounded; what it finds is tested by the condition itself, so it never proves too much.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from agent.handlers import where
from agent.handlers.sigma_words import LISTS
from agent.wire.event import Event
from agent.wire.taxonomy import TAXONOMY, TYPE_PATTERN

WAYS_MAX = 256
REPEATS_MAX = 1_000
Path = tuple[str, ...]
Part = tuple[where.Compare | where.Truth, bool]
"""A comparison, and whether it has to hold."""


def witness(text: str) -> Event | None:
    """Return an event that matches the expression, of a type that agents send; None where none was found."""
    node = where.parse(text)
    test = where.Where(text, node)
    for parts in islice(_ways(node, wanted=True), WAYS_MAX):
        event = _event(parts)
        if event is not None and test(event):
            return event
    return None


def _ways(node: where.Node, *, wanted: bool) -> Iterator[list[Part]]:
    """Yield what has to hold, in each way in which the node becomes as wanted."""
    if isinstance(node, where.Compare | where.Truth):
        yield [(node, wanted)]
    elif isinstance(node, where.Not):
        yield from _ways(node.part, wanted=not wanted)
    elif isinstance(node, where.All) is wanted:
        yield from _together(node.parts, wanted=wanted)
    else:
        for part in node.parts:
            yield from _ways(part, wanted=wanted)


def _together(parts: Sequence[where.Node], *, wanted: bool) -> Iterator[list[Part]]:
    if not parts:
        yield []
        return
    for first in _ways(parts[0], wanted=wanted):
        for rest in _together(parts[1:], wanted=wanted):
            yield first + rest


def _event(parts: list[Part]) -> Event | None:
    by_path: dict[Path, list[Part]] = {}
    pairs: list[tuple[Path, Path]] = []
    for part, wanted in parts:
        read = list(dict.fromkeys(where.paths(part)))
        if len(read) > 1:
            if wanted:
                pairs.append((read[0], read[1]))
            continue
        for path in read:
            by_path.setdefault(("type",) if path == ("category",) else path, []).append((part, wanted))
    for one, other in pairs:
        # A reference from one field to another: both get the value that the rule asks of either.
        known = by_path.get(one) or by_path.get(other) or []
        by_path.setdefault(one, known)
        by_path.setdefault(other, known)
    event = Event(0, 0, "log.line", "source", data={})
    for path, conditions in by_path.items():
        if not _fill(event, path, conditions, equal=any(path in pair for pair in pairs)):
            return None
    return event


def _fill(event: Event, path: Path, conditions: list[Part], *, equal: bool) -> bool:
    """Give the field a value under which all conditions are as wanted; whether there is one."""
    tests = [
        (where.compiled(part), wanted) for part, wanted in conditions if set(where.paths(part)) <= {path, ("category",)}
    ]
    for value in _values(path, conditions, equal=equal):
        _put(event, path, value)
        if all(test(event) is wanted for test, wanted in tests):
            return True
    return False


def _put(event: Event, path: Path, value: Any) -> None:
    if path == ("line",):
        event.raw = value
    elif path[0] != "data":
        setattr(event, path[0], value)
    else:
        inside: dict[str, Any] = event.data
        for name in path[1:-1]:
            inside = inside.setdefault(name, {})
        inside[path[-1]] = value


def _values(path: Path, conditions: list[Part], *, equal: bool) -> Iterator[Any]:
    """Yield values that the field might need."""
    asked = [(part, value) for part, wanted in conditions if wanted for value in _asked(part)]
    if path == ("type",):
        yield from TAXONOMY
        yield from (value for _, value in asked if _is_a_type(value))
        return
    if not equal:
        yield None
    if ".".join(path) in LISTS:
        yield [value for _, value in asked]
        return
    yield from (value for _, value in asked)
    texts = [(part.op, value) for part, value in asked if isinstance(part, where.Compare) and isinstance(value, str)]
    start = "".join(value for op, value in texts if op == "startswith")
    end = "".join(value for op, value in texts if op == "endswith")
    middle = " ".join(value for op, value in texts if op not in ("startswith", "endswith"))
    yield start + middle + end
    yield from ("x", f"{start}x{middle}x{end}", 1, True, 0, "10.0.0.1", -1, 10**9)
    for _, value in asked:
        if type(value) in (int, float):
            yield from (value + 1, value - 1)


def _is_a_type(value: Any) -> bool:
    """Whether a station program could send events of this type: it belongs below one of ours, or is `custom.…`."""
    if not isinstance(value, str) or not TYPE_PATTERN.fullmatch(value):
        return False
    parents = [value.rsplit(".", count)[0] for count in range(1, value.count(".") + 1)]
    return any(parent in TAXONOMY for parent in parents)


def _asked(part: where.Compare | where.Truth) -> list[Any]:
    """What the comparison compares with, or a text that it would match."""
    if isinstance(part, where.Truth):
        return [True]
    if isinstance(part.right, where.Networks):
        return [str(network[min(1, network.num_addresses - 1)]) for network in part.right.networks]
    literals = [one.value for one in (part.right, part.left) if isinstance(one, where.Literal)]
    if part.op == "matches":
        return [_sample(literals[0])]
    return [each for value in literals for each in (value if isinstance(value, tuple) else (value,))]


def _sample(pattern: str) -> str:
    """Return a text that the regular expression probably matches."""
    try:
        tree = re._parser.parse(pattern)  # noqa: SLF001 - there is no public way to its parts
    except (re.error, RecursionError, OverflowError):
        return ""
    return _text(tree)


def _text(tree: Any) -> str:
    return "".join(_one(str(op), argument) for op, argument in tree)


def _one(op: str, argument: Any) -> str:
    found = ""
    match op:
        case "LITERAL":
            found = chr(argument)
        case "NOT_LITERAL":
            found = "a" if argument != ord("a") else "b"
        case "ANY":
            found = "a"
        case "IN":
            found = _member(argument)
        case "BRANCH":
            found = _text(argument[1][0])
        case "SUBPATTERN":
            found = _text(argument[-1])
        case "MAX_REPEAT" | "MIN_REPEAT":
            least, _, part = argument
            found = _text(part) * min(int(least), REPEATS_MAX)
    return found


def _member(members: Any) -> str:
    negated = str(members[0][0]) == "NEGATE"
    inside = "".join(_inside(str(op), argument) for op, argument in members)
    if not negated:
        return inside[:1]
    return next((character for character in "a 0_-.Z~" if character not in inside), "\u00e9")


def _inside(op: str, argument: Any) -> str:
    match op:
        case "LITERAL":
            return chr(argument)
        case "RANGE":
            low, high = argument
            return "".join(map(chr, range(low, min(high, low + 128) + 1)))
        case "CATEGORY":
            kinds = {"DIGIT": "0123456789", "SPACE": " \t", "WORD": "aZ0_"}
            name = str(argument).removeprefix("CATEGORY_")
            opposite = {"NOT_DIGIT": "a", "NOT_SPACE": "a", "NOT_WORD": "-"}
            return kinds.get(name) or opposite.get(name, "")
        case _:
            return ""
