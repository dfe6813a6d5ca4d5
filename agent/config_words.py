"""What validation finds, in words: the key as it is written, what is wrong in plain terms, and what to do.

pydantic names the place by a tuple in which the members of a union stand as labels of their own, once for each member that did
not fit. Here the label is taken out, and only the member is heard that the value was plainly meant for.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

from agent.config import Problem

TEXT_CHARS_MAX = 80
"""A value is shown so far and no further."""
KNOWN_MAX = 40
SECRETS = frozenset(
    {"password", "passwd", "passphrase", "secret", "token", "api_key", "apikey", "key", "private_key", "user_key"}
)
SECRET_REMEDY = "Put it into a file that only the agent's user can read, and give {} with its path."  # noqa: S105 (a sentence)

Path = tuple[str | int, ...]
Error = Mapping[str, Any]

_NUMBERED = {
    "greater_than_equal": ("ge", "at least"), "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"), "less_than": ("lt", "less than"),
}  # fmt: skip
_LENGTHS = {
    "too_short": "at least",
    "too_long": "at most",
    "string_too_short": "at least",
    "string_too_long": "at most",
}
_WANTED = {
    "string_type": "a text", "int_type": "a whole number", "int_from_float": "a whole number", "int_parsing": "a whole number",
    "float_type": "a number", "bool_type": "true or false", "finite_number": "a finite number", "tuple_type": "a list",
    "list_type": "a list", "dict_type": "a table", "dataclass_type": "a table", "none_required": "left out",
}  # fmt: skip
_EXAMPLES = {
    "a text": '"…"', "a whole number": "5", "a number": "0.5", "a finite number": "0.5", "true or false": "true", "a list": "[…]",
}  # fmt: skip


def key_text(path: Iterable[str | int]) -> str:
    """The key as a person writes it: sources.press_plc.points[3].address; what is no bare key stands in quotes."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else '"' + shorten(part).replace('"', '\\"') + '"'
            text += f".{name}" if text else name
    return text


def shorten(text: str) -> str:
    """At most TEXT_CHARS_MAX characters, all of them printable, on one line."""
    cut = text if len(text) <= TEXT_CHARS_MAX else text[: TEXT_CHARS_MAX - 1] + "…"
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in cut)


def shown(value: Any) -> str:
    """A value, and of what type it is."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text '{shorten(value)}'"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, dict):
        return "a table"
    return f"{'the whole number' if isinstance(value, int) else 'the number'} {shorten(str(value))}"


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy for a name that is not known."""
    known = list(known)
    near = get_close_matches(name.lower(), known, 1, 0.6)
    if near:
        return f"Did you mean {near[0]}?"
    return f"Known here: {', '.join(known[:KNOWN_MAX])}." if known else "Remove it."


# Types ----------------------------------------------------------------------------------------------------------------------------


@cache
def fields_of(config: type) -> dict[str, Any]:
    """The keys of a Config and their types."""
    hints = typing.get_type_hints(config, include_extras=True)
    return {each.name: hints[each.name] for each in dataclasses.fields(config)}


def members(hint: Any) -> tuple[Any, ...]:
    """What a value may be: the members of a union without None, or the type alone; Annotated is looked through."""
    while typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(inner for each in typing.get_args(hint) if each is not type(None) for inner in members(each))
    return (hint,)


def inside(hint: Any, part: str | int) -> Any:
    """The type of a part of a value of this type; None where it has no such part."""
    for member in members(hint):
        origin, arguments = typing.get_origin(member), typing.get_args(member)
        if dataclasses.is_dataclass(member) and isinstance(member, type) and part in fields_of(member):
            return fields_of(member)[str(part)]
        if origin in (tuple, list) and isinstance(part, int):
            return arguments[0]
        if origin is dict and isinstance(part, str):
            return arguments[1]
        if member is Any:
            return Any
    return None


def at(hint: Any, path: Iterable[str | int]) -> Any:
    """The type of what stands at a path; None where there is no such place."""
    for part in path:
        hint = inside(hint, part)
        if hint is None:
            return None
    return hint


def wanted(hint: Any) -> str:
    """What a type takes, in words."""
    words: dict[str, None] = {}
    for member in members(hint):
        origin = typing.get_origin(member) or member
        if origin is typing.Literal:
            words["one of " + ", ".join(f"'{each}'" for each in typing.get_args(member))] = None
        else:
            plain = {
                str: "a text",
                int: "a whole number",
                float: "a number",
                bool: "true or false",
                tuple: "a list",
                list: "a list",
            }
            words[plain.get(origin, "a table")] = None
    return " or ".join(words)


# Errors ---------------------------------------------------------------------------------------------------------------------------


def problems_of(errors: Sequence[Error], config: type, data: Any, prefix: Path) -> list[Problem]:
    """All of what validation found in `data`, which should have been a `config` and stands at `prefix`."""
    found: dict[tuple[Path, str], Problem] = {}
    for error in errors:
        path, union = _place(error["loc"], config)
        if union is None or _meant(union, path, data):
            problem = _said(error, config, path, prefix)
        else:
            value = _value(data, path[: union.depth])
            if _kind(value) in {_kind_of(member) for member in union.members}:
                continue
            where = path[: union.depth]
            problem = Problem(
                key_text(prefix + where), f"must be {wanted(union.hint)}, is {shown(value)}", "Correct the value."
            )
        found.setdefault((path, problem.text), problem)
    return _without_echoes(found)


def _without_echoes(found: Mapping[tuple[Path, str], Problem]) -> list[Problem]:
    """A key that is missing because it was misspelt beside it is one problem and not two."""
    misspelt = {(path[:-1], each.remedy) for (path, text), each in found.items() if text == "there is no such key"}
    return [
        each
        for (path, text), each in found.items()
        if text != "is missing" or (path[:-1], f"Did you mean {path[-1]}?") not in misspelt
    ]


class _Union(typing.NamedTuple):
    hint: Any
    members: tuple[Any, ...]
    chosen: Any
    depth: int


def _place(loc: Sequence[str | int], config: type) -> tuple[Path, _Union | None]:
    """The path without the labels of unions, and the innermost union on the way with its member that this error speaks of."""
    hint: Any = config
    path: list[str | int] = []
    union: _Union | None = None
    rest = list(loc)
    while rest:
        choices = members(hint) if hint is not None else ()
        if len(choices) > 1:
            label = str(rest.pop(0))
            chosen = next((each for each in choices if _label(each) == label.partition("[")[0]), None)
            union = _Union(hint, choices, chosen, len(path))
            hint = chosen
            continue
        part = rest.pop(0)
        path.append(part)
        hint = inside(hint, part)
    return tuple(path), union


def _label(member: Any) -> str:
    origin = typing.get_origin(member)
    if origin is typing.Literal:
        return "literal"
    return str(getattr(origin or member, "__name__", member))


def _kind_of(member: Any) -> str:
    origin = typing.get_origin(member) or member
    if origin in (tuple, list):
        return "list"
    if origin in (str, int, float, bool):
        return str(origin.__name__)
    return "literal" if origin is typing.Literal else "table"


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "list"
    return "table" if isinstance(value, dict) else type(value).__name__


def _meant(union: _Union, path: Path, data: Any) -> bool:
    # The member that has the value's own shape is the one that was meant; what the others miss is no news.
    value = _value(data, path[: union.depth])
    return union.chosen is not None and _kind_of(union.chosen) == _kind(value)


def _value(data: Any, path: Path) -> Any:
    for part in path:
        data = data[part]
    return data


def _said(error: Error, config: type, path: Path, prefix: Path) -> Problem:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    key = key_text(prefix + path)
    name = str(path[-1]) if path else ""
    hint = at(config, path)
    if kind == "value_error":
        return sentence(str(context["error"]), hint, prefix + path)
    if kind == "unexpected_keyword_argument":
        return unknown(key, name, _known(config, path))
    want = wanted(hint) if hint is not None and kind != "finite_number" else _WANTED.get(kind, "")
    if kind == "missing":
        return Problem(key, "is missing", f"Add {name} = {_EXAMPLES.get(want, '…')} ({want}).")
    if kind in _NUMBERED or kind in _LENGTHS:
        return Problem(key, *_out_of_bounds(kind, value, context))
    if kind == "literal_error" and isinstance(value, str):
        choices = [str(each) for member in members(hint) for each in typing.get_args(member)]
        return Problem(key, f"must be {want}, is {shown(value)}", nearest(value, choices))
    text = f"must be {want}, is {shown(value)}" if want else f"{error['msg']}, is {shown(value)}"
    return Problem(key, text, _mend(kind, value, name))


def _known(config: type, path: Path) -> list[str]:
    """The keys of the table that holds this one."""
    owners = [each for each in members(at(config, path[:-1])) if dataclasses.is_dataclass(each)]
    return [name for owner in owners for name in fields_of(typing.cast("type", owner))]


def _out_of_bounds(kind: str, value: Any, context: Mapping[str, Any]) -> tuple[str, str]:
    if kind in _NUMBERED:
        bound, words = _NUMBERED[kind]
        return f"must be {words} {_digits(context[bound])}, is {_digits(value)}", "Correct the number."
    bound = context.get("min_length", context.get("max_length"))
    what = "characters" if kind.startswith("string") else "entries"
    return f"must have {_LENGTHS[kind]} {bound} {what}, has {len(value)}", "Correct the value."


def _digits(value: float) -> str:
    return f"{int(value):_}" if isinstance(value, int) or value.is_integer() else f"{value:_}"


def _mend(kind: str, value: Any, name: str) -> str:
    """How to write the value that was probably meant."""
    if isinstance(value, str):
        bare = value.strip().lower()
        number = re.fullmatch(r"[+-]?\d[\d_]*(\.\d+)?", bare)
        if (kind in ("int_type", "float_type") and number) or (kind == "bool_type" and bare in ("true", "false")):
            return f"Write it without quotes: {name} = {bare}"
        if kind in ("tuple_type", "list_type"):
            return f'Write it as a list: {name} = ["{shorten(value)}"]'
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"Write it without a fraction: {name} = {int(value)}"
    if kind == "string_type" and not isinstance(value, list | dict) and value is not None:
        plain = str(value).lower() if isinstance(value, bool) else str(value)
        return f'Write it in quotes: {name} = "{shorten(plain)}"'
    return "Write true or false." if kind == "bool_type" else "Correct the value."


def unknown(key: str, name: str, known: list[str]) -> Problem:
    """A key that is not known; a secret is sent to its file."""
    file = next((each for each in known if each == f"{name}_file"), None)
    if file is None and name.lower() in SECRETS:
        file = next((each for each in known if each.endswith("_file") and SECRETS & {each.removesuffix("_file")}), None)
    if file is not None:
        return Problem(key, "a secret does not stand in the configuration itself", SECRET_REMEDY.format(file))
    return Problem(key, "there is no such key", nearest(name, known))


def sentence(text: str, config: Any, path: Path) -> Problem:
    """What a Config said itself. A key at its beginning belongs to the path; what follows its last "; " is the remedy."""
    text, *below = (" ".join(line.split()) for line in text.splitlines() if line.strip())
    found = re.match(r"([a-z_][a-z0-9_]*(?:\.[A-Za-z0-9_-]+)*): (?=.)", text)
    names = [name for each in members(config) if dataclasses.is_dataclass(each) for name in fields_of(each)]  # type: ignore[arg-type]
    key = path
    if found and found[1].partition(".")[0] in names:
        key, text = (*path, *found[1].split(".")), text[found.end() :]
    else:
        first = re.match(r"[a-z_][a-z0-9_]*(?:\.[a-z0-9_]+)*", text)
        if first and first[0].partition(".")[0] in names:
            key = (*path, *first[0].split("."))
    what, remedy = _parted(text)
    if below:  # an expression, with a mark below the place
        what, remedy = text.rstrip(":"), f"Correct it there: {below[0]}"
    return Problem(key_text(key), what, remedy)


_HINT = re.compile(r"(?P<what>.*\S)\s*\((?P<remedy>did you mean .*\?|known: .*)\)", re.IGNORECASE)
_ADVICE = re.compile(
    r"(?P<what>.*): (?P<remedy>(?:write|give|choose|name|use|set|put|add|remove|correct) .*)", re.IGNORECASE
)


def _parted(text: str) -> tuple[str, str]:
    """What is wrong, and what to do about it."""
    found = _HINT.fullmatch(text)
    what, _, remedy = (found["what"], "", found["remedy"]) if found else text.rpartition("; ")
    if not what:
        what, _, remedy = text.rstrip(".").rpartition(". ")
    if not what and (found := _ADVICE.fullmatch(text)):
        what, remedy = found["what"], found["remedy"]
    if not what:
        return text.rstrip("."), "Correct the value."
    return what, remedy[:1].upper() + remedy[1:].rstrip(".") + ("" if remedy.endswith("?") else ".")
