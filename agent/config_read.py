"""Reads the configuration and judges it, in a process of its own: see config.py.

    TOML file ─┐                           ┌─ each section, source and handler against its own Config, strictly
    environment┴─► layers (the environment ├─ what TOML has and we have not (dates, NaN, 65 bits)
                   wins)                   └─ names

Values of the file are taken as they are: "5" is a text and no number. Values of the environment are always texts, so they are read
as what the key wants: `30` for a number, `yes` for a switch, JSON for a list or a table. An empty variable counts as none.
"""

import json
import math
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import msgspec
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from agent.buffer import BufferConfig
from agent.component import ConfigError
from agent.config import (
    BUILTIN,
    DEFAULT_FILE,
    DONE,
    PREFIX,
    WRONG,
    AgentConfig,
    ConfigProblems,
    Problem,
    Settings,
    SourceSettings,
    action_config,
    handler_config,
    source_config,
    to_plain,
)
from agent.config_words import at, key_text, members, nearest, problems_of, shorten, shown
from agent.handlers import HANDLERS
from agent.health import HealthConfig
from agent.identity import IdentityConfig
from agent.sources import SOURCES
from agent.sync import SyncConfig

FILE_BYTES_MAX = 4 * 1024 * 1024
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,62}[A-Za-z0-9])?")
PROBLEMS_MAX = 200
"""More are counted and not told: a file that wrong is another file."""
_INT_MAX = 2**63 - 1
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Table = dict[str, Any]
Place = tuple[str | int, ...]

SECTIONS: dict[str, Any] = {
    "agent": AgentConfig,
    "sync": SyncConfig,
    "buffer": BufferConfig,
    "health": HealthConfig,
    "identity": IdentityConfig,
}
GROUPS = {"sources": "source", "handlers": "handler", "actions": "action"}


# The file -------------------------------------------------------------------------------------------------------------------------


def read_file(path: Path, environ: Mapping[str, str]) -> Table:
    """The tables of the file. Raises ConfigProblems, with line and column where it is not TOML."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        if path == DEFAULT_FILE and any(name.upper().startswith(PREFIX) for name in environ):
            return {}  # all of it comes from the environment, as in a container
        raise _no_file(
            path, f"there is no file {path}", "Name another with --config FILE, or begin with agent.example.toml."
        ) from None
    except IsADirectoryError:
        raise _no_file(path, f"{path} is a folder", "Name the file in it.") from None
    except PermissionError:
        remedy = f"Let the agent's user read it: chgrp linewarden {path} && chmod 640 {path}"
        raise _no_file(path, f"{path} may not be read by this user", remedy) from None
    except OSError as error:
        raise _no_file(path, f"{path} cannot be read: {error.strerror}", "Look after the disk or the path.") from None
    if len(content) > FILE_BYTES_MAX:
        raise _no_file(
            path, f"{path} is longer than {FILE_BYTES_MAX} bytes", "This is no configuration; name the right file."
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _no_file(path, f"line {line} is not UTF-8", "Save the file in UTF-8.") from None
    return _parse(path, text)


def _no_file(path: Path, text: str, remedy: str) -> ConfigProblems:
    return ConfigProblems(path, [Problem("", text, remedy)])


def _parse(path: Path, text: str) -> Table:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigProblems(path, [_syntax(text, str(error))]) from None
    except RecursionError:
        raise _no_file(path, f"{path} is nested too deeply", "Remove what was put in by mistake.") from None


def _syntax(text: str, said: str) -> Problem:
    """What tomllib said, with the key it is about where that can be told."""
    what, _, where = said.rstrip(")").partition(" (at ")
    lines = text.splitlines() or [""]
    line_no = re.match(r"line (\d+)", where)
    number = int(line_no[1]) if line_no else len(lines)
    where = where if line_no else f"line {number}, column {len(lines[-1]) + 1} (the end)"
    # A duplicate is noticed behind the end of its line.
    line = lines[number - 1] if 0 < number <= len(lines) else ""
    if what.startswith(("Cannot declare", "Cannot overwrite")):
        key = _key_of_line(lines[:number])
        return Problem(
            key, f"stands twice in the file, the second time in {where}", "Rename one of the two, or put them together."
        )
    shown_line = f": {shorten(line.strip())}" if line.strip() and not _may_be_secret(line) else ""
    return Problem("", f"this is not TOML in {where}: {what[:1].lower()}{what[1:]}", f"Correct it there{shown_line}")


def _may_be_secret(line: str) -> bool:
    return re.search(r"pass|secret|token|key|user", line, re.IGNORECASE) is not None


def _key_of_line(lines: list[str]) -> str:
    """The key that the last line gives, below the header of its table."""
    own = ""
    for line in reversed(lines):
        header = re.match(r"\s*\[\[?([^\]]+)\]", line)
        if header:
            table = header[1].replace(" ", "")
            return f"{table}.{own}" if own else table
        if not own and (pair := re.match(r"\s*([A-Za-z0-9_.\"'-]+)\s*=", line)):
            own = pair[1]
    return own


# The environment ------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Environment:
    """The variables that begin with PREFIX, put where they belong. `origin` has the variable of each place."""

    tables: Table = field(default_factory=dict)
    origin: dict[Place, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def variable(self, place: Place) -> str | None:
        """The variable that a place came from; that of a list or table for what is in it."""
        return next((self.origin[place[:n]] for n in range(len(place), 0, -1) if place[:n] in self.origin), None)


def read_environment(environ: Mapping[str, str], file: Table) -> Environment:
    """The tables that the environment gives."""
    found = Environment()
    texts: dict[Place, str] = {}
    for variable, text in sorted(environ.items()):
        if not variable.upper().startswith(PREFIX) or not text:
            continue
        place = _place_of(variable, file)
        if not all(place) or len(place) < 2:  # noqa: PLR2004  (a section and a key in it)
            remedy = f"Write it as {PREFIX}SECTION__KEY, as in {PREFIX}SYNC__URL."
            found.problems.append(Problem(variable, "this variable names no key", remedy))
        else:
            texts[place] = text
            found.origin[place] = variable
    # A table given as a whole comes before what is given inside it.
    for place, text in sorted(texts.items(), key=lambda pair: len(pair[0])):
        kinds = _merged(file, found.tables)
        # The type decides how the rest is read, and may come from the environment too.
        sibling = texts.get((*place[:2], "type"))
        value = _from_text(_type_at(place, kinds, sibling), text)
        if not _put(found.tables, place, value):
            other = found.variable(place[:-1])
            found.problems.append(
                Problem(
                    found.origin[place], f"{other} already gives this as one value", "Set one of the two variables."
                )
            )
    return found


def _place_of(variable: str, file: Table) -> Place:
    """The key of a variable. Names in the file are met however they are written: PRESS_PLC is press-plc, Press_PLC and press_plc."""
    parts = variable[len(PREFIX) :].lower().split("__")
    if len(parts) > 1 and parts[0] in GROUPS:
        names = file.get(parts[0])
        same = [name for name in names if name.lower().replace("-", "_") == parts[1]] if isinstance(names, dict) else []
        parts[1] = same[0] if same else parts[1]
    return tuple(parts)


def _merged(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return {**below, **{key: _merged(below.get(key), value) for key, value in above.items()}}
    return above


def _put(tables: Table, place: Place, value: Any) -> bool:
    inner: Any = tables
    for part in place[:-1]:
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
            return False
    inner[place[-1]] = value
    return True


def _type_at(place: Place, tables: Table, kind: str | None) -> Any:
    """The type that the key at a place wants; None where there is no such key."""
    section, *rest = place
    if section in SECTIONS:
        return at(SECTIONS[section], rest)
    if section not in GROUPS:
        return None
    if len(rest) == 1:
        return dict[str, Any]
    if rest[1] == "type":
        return str
    table = tables.get(section, {})
    table = table.get(rest[0], {}) if isinstance(table, dict) else {}
    try:
        return at(
            _config_of(
                section,
                str(rest[0]),
                {**(table if isinstance(table, dict) else {}), **({"type": kind} if kind else {})},
            ),
            rest[1:],
        )
    except (ConfigError, _Untyped):
        return None


def _from_text(hint: Any, text: str) -> Any:
    """A variable's text as what the key wants. What does not fit stays as it is, and validation says so."""
    if hint is None:
        return text
    try:
        decoded = json.loads(text)
    except (ValueError, RecursionError):
        decoded = text
    kinds = members(hint)
    if isinstance(decoded, list | dict):
        return decoded if any(getattr(kind, "__origin__", kind) is not str for kind in kinds) else text
    candidates = (decoded, text) if len(kinds) > 1 and str in kinds else (text, decoded)
    # Without its bounds: a number out of them is a number all the same, and is told as one.
    adapter = TypeAdapter[Any](reduce(or_, kinds))
    for candidate in candidates:
        try:
            value = adapter.validate_python(candidate)
        except ValidationError:
            continue
        if isinstance(value, str | int | float):
            return value
    return text


# Layers ---------------------------------------------------------------------------------------------------------------------------


class _Layers(BaseSettings):
    """The two layers, one over the other; what stands in them is judged afterwards, part by part."""

    model_config = SettingsConfigDict(extra="allow")
    layers: ClassVar[tuple[Table, ...]] = ()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The first wins."""
        del init_settings, env_settings, dotenv_settings, file_secret_settings
        return tuple(_Layer(settings_cls, layer) for layer in cls.layers)


class _Layer(PydanticBaseSettingsSource):
    def __init__(self, settings_cls: type[BaseSettings], tables: Table) -> None:
        super().__init__(settings_cls)
        self._tables = tables

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """One section."""
        del field
        return self._tables.get(field_name), field_name, False

    def __call__(self) -> Table:
        return self._tables


def layered(*tables: Table) -> Table:
    """One table of several; the first wins, key by key."""
    layers = type("_TheseLayers", (_Layers,), {"layers": tables, "__module__": __name__})
    return dict(layers().__pydantic_extra__ or {})


# Judging --------------------------------------------------------------------------------------------------------------------------


class _Untyped(Exception):
    """A source or handler does not say what it is; the problem is told."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.text)
        self.problem = problem


def _config_of(group: str, name: str, table: Table) -> Any:
    """The Config of a source or handler. Raises ConfigError and _Untyped."""
    if group == "actions":
        return action_config()
    if group == "handlers" and name == BUILTIN:
        return handler_config(BUILTIN)
    known = SOURCES if group == "sources" else HANDLERS
    kind = table.get("type", name if group == "handlers" and name in HANDLERS else None)
    key = key_text((group, name, "type"))
    if kind is None:
        raise _Untyped(Problem(key, "is missing", f'Add type = "…", one of: {", ".join(sorted(known))}.'))
    if not isinstance(kind, str):
        raise _Untyped(Problem(key, f"must be a text, is {shown(kind)}", f"Write one of: {', '.join(sorted(known))}."))
    try:
        return source_config(kind) if group == "sources" else handler_config(kind)
    except ConfigError as error:
        raise ConfigError(str(error.args[0]), key=key, remedy=error.remedy) from None


class Judge:
    """Validates part by part and collects what is wrong."""

    def __init__(self, environment: Environment) -> None:
        self.problems: list[Problem] = []
        self._environment = environment
        self._strange: set[Place] = set()

    def add(self, problem: Problem, place: Place = ()) -> None:
        """Note a problem; that of a value from the environment names its variable."""
        variable = self._environment.variable(place) if place else None
        if variable is not None:
            problem = Problem(problem.key, f"{problem.text} (from {variable})", problem.remedy)
        self.problems.append(problem)

    def part(self, config: Any, table: Any, place: Place) -> Any:
        """The Config of one table, or None where something is wrong in it."""
        if not isinstance(table, dict):
            self.add(
                Problem(key_text(place), f"must be a table, is {shown(table)}", f"Write it as [{key_text(place)}]."),
                place,
            )
            return None
        before = len(self.problems)
        table = self._plain(table, place)
        # Nested Configs take this over: validation alone knows of it, the class and the daemon do not.
        config.__pydantic_config__ = _STRICT
        try:
            made = TypeAdapter(config).validate_json(json.dumps(table))
        except ValidationError as error:
            for problem, where in _placed(problems_of(error.errors(include_url=False), config, table, place), place):
                if not any(where[: len(strange)] == strange for strange in self._strange):
                    self.add(problem, where)
            return None
        except ConfigError as error:
            key = key_text(place) + (f".{error.key}" if error.key else "")
            self.add(Problem(key, str(error.args[0]), error.remedy or "Correct the value."), place)
            return None
        return made if len(self.problems) == before else None

    def _plain(self, value: Any, place: Place) -> Any:
        """The value as JSON has it. What JSON has not is told and replaced."""
        if isinstance(value, dict):
            return {self._text(key, place): self._plain(each, (*place, key)) for key, each in value.items()}
        if isinstance(value, list):
            return [self._plain(each, (*place, number)) for number, each in enumerate(value)]
        if isinstance(value, str):
            self._url(value, place)
            return self._text(value, place)
        strange = _strange(value)
        if strange is not None:
            self._refuse(place, *strange)
            return 0
        return value

    def _text(self, text: str, place: Place) -> str:
        if text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text):
            return text
        self._refuse(place, "is not UTF-8", "Correct the text.")
        return "?"

    def _url(self, text: str, place: Place) -> None:
        try:
            parts = urlsplit(text if place[-1] == "url" and "@" in text else "")
        except ValueError:
            return
        if parts.password or parts.username:
            remedy = "Take it out of the address, and use the keys that end in _file."
            self._refuse(place, "holds a user or password, which would end up in logs", remedy)

    def _refuse(self, place: Place, text: str, remedy: str) -> None:
        self._strange.add(place)
        self.add(Problem(key_text(place), text, remedy), place)


def _strange(value: Any) -> tuple[str, str] | None:
    """What is wrong with a scalar that TOML has and JSON has not, and what to do about it."""
    if value is None:
        return "must not be null", "Leave the key out."
    if isinstance(value, float):
        return None if math.isfinite(value) else (f"must be a finite number, is {value}", "Correct the number.")
    if isinstance(value, int):
        return None if abs(value) <= _INT_MAX else ("is a number of more than 64 bits", "Correct the number.")
    return f"must not be a date or time, is {value}", f'Write it in quotes: "{value}"'


def _placed(problems: list[Problem], place: Place) -> Iterator[tuple[Problem, Place]]:
    """Each problem with its place, taken back from its key: what a Config says of itself names keys in words."""
    prefix = key_text(place)
    for problem in problems:
        inner = problem.key[len(prefix) :]
        parts = (int(number) if number else name for name, number in re.findall(r"\.([A-Za-z0-9_-]+)|\[(\d+)\]", inner))
        yield problem, (*place, *parts)


def validated(path: Path, environ: Mapping[str, str]) -> Settings:
    """The settings of a file and an environment. Raises ConfigProblems with everything that is wrong."""
    file = read_file(path, environ)
    environment = read_environment(environ, file)
    judge = Judge(environment)
    judge.problems += environment.problems
    tables = layered(environment.tables, file)
    for name in tables:
        if name not in SECTIONS and name not in GROUPS:
            judge.add(
                Problem(key_text((name,)), "there is no such section", nearest(name, [*SECTIONS, *GROUPS])),
                _first(environment, name),
            )
    sections = {name: judge.part(config, tables.get(name, {}), (name,)) for name, config in SECTIONS.items()}
    sources = _group(judge, tables, "sources")
    handlers = _group(judge, tables, "handlers")
    actions = _group(judge, tables, "actions")
    for name, config in handlers.items():
        # What is read from files beside the configuration, such as rules, is read here and handed on.
        if hasattr(config, "resolved"):
            handlers[name], refused = config.resolved()
            for key, text, remedy in refused:
                judge.add(Problem(key_text(("handlers", name, key)), text, remedy))
    _doors(judge, sections["health"], sources)
    _meant(judge, handlers, actions)
    if judge.problems:
        told = list(dict.fromkeys(judge.problems))
        if len(told) > PROBLEMS_MAX:
            rest = Problem("", f"and {len(told) - PROBLEMS_MAX} more", "Begin with these.")
            told = [*told[:PROBLEMS_MAX], rest]
        raise ConfigProblems(path, told)
    for name, config in sources.items():
        # What a source keeps beside the buffer lies below the agent's own folder, if nothing else is said.
        if getattr(config, "state_dir", "") is None:
            sources[name] = replace(config, state_dir=sections["agent"].state_dir)
    return Settings(
        **sections,
        sources={
            name: SourceSettings(kind=tables["sources"][name]["type"], config=config)
            for name, config in sources.items()
        },
        handlers=handlers,
        actions=actions,
    )


def _meant(judge: Judge, handlers: Table, actions: Table) -> None:
    """An action of a handler that does not exist would never be done."""
    if not actions or judge.problems:
        return
    from agent.handlers.builtin import ConfigBuiltin, builtin_configs

    known = dict.fromkeys(["*", *builtin_configs(handlers.get(BUILTIN) or ConfigBuiltin())])
    for name, config in handlers.items():
        if name != BUILTIN:
            known.update(dict.fromkeys(config.expanded(name) if hasattr(config, "expanded") else [name]))
    for name, config in actions.items():
        for index, handler in enumerate(config.handlers):
            if handler not in known:
                place = ("actions", name, "handlers", index)
                judge.add(
                    Problem(key_text(place), f"there is no handler {handler!r}", nearest(handler, list(known))), place
                )


def _doors(judge: Judge, health: HealthConfig | None, sources: Table) -> None:
    """A source that answers requests does so alone: of two at one place, one would hear nothing."""
    if health is None:
        return
    taken = {str(address): "health.listen" for address in health.addresses()}
    for name, config in sources.items():
        if not hasattr(config, "doors"):
            continue
        key = key_text(("sources", name, "socket"))
        doors = config.doors(health.addresses())
        if not doors:
            text = "nobody could post to it: [health] listen is empty, and it has no socket of its own"
            judge.add(Problem(key, text, "Give it a socket, or [health] an address."), ("sources", name))
        others = [taken.setdefault(door, f"sources.{name}") for door in doors]
        other = next((each for each in others if each != f"sources.{name}"), None)
        if other is not None:
            text = f"{doors[others.index(other)]} belongs to {other} already"
            judge.add(
                Problem(key, text, "Give each a socket of its own, or take one of the two out."), ("sources", name)
            )


def section(name: str, path: Path, environ: Mapping[str, str]) -> Any:
    """One section alone, for commands that need no more. Raises ConfigProblems with what is wrong in it; the rest is not looked at."""
    file = read_file(path, environ)
    environment = read_environment(environ, file)
    judge = Judge(environment)
    made = judge.part(SECTIONS[name], layered(environment.tables, file).get(name, {}), (name,))
    if judge.problems:
        raise ConfigProblems(path, judge.problems)
    return made


def source(
    path: Path, environ: Mapping[str, str], kind: str, chosen: Callable[[str, Table], bool], keys: frozenset[str]
) -> tuple[str, Table] | None:
    """Return the name and some `keys` of the first source of a kind that is chosen; None where there is none.

    For commands that look at a machine before its source is complete: nothing but TOML and environment is judged. Raises ConfigProblems.
    """
    file = read_file(path, environ)
    given = layered(read_environment(environ, file).tables, file).get("sources", {})
    for name, table in given.items() if isinstance(given, dict) else ():
        if isinstance(table, dict) and table.get("type") == kind and chosen(name, table):
            return name, {key: value for key, value in table.items() if key in keys}
    return None


def _first(environment: Environment, section: str) -> Place:
    return next((place for place in environment.origin if place[0] == section), (section,))


def _group(judge: Judge, tables: Table, group: str) -> Table:
    """All sources, or all handlers."""
    given = tables.get(group, {})
    if not isinstance(given, dict):
        judge.add(Problem(group, f"must be a table, is {shown(given)}", f"Write each as [{group}.NAME]."), (group,))
        return {}
    made: Table = {}
    spelt: dict[str, str] = {}
    for name, table in given.items():
        place = (group, name)
        other = spelt.setdefault(name.lower().replace("-", "_"), name)
        if not NAME.fullmatch(name):
            remedy = "Use letters, digits, - and _, at most 64, beginning and ending with a letter or digit."
            judge.add(
                Problem(key_text(place), f"'{shorten(name)}' cannot be the name of a {GROUPS[group]}", remedy), place
            )
        elif other != name:
            remedy = "Rename one of the two."
            judge.add(
                Problem(key_text(place), f"cannot be told apart from {group}.{other} in the environment", remedy), place
            )
        if not isinstance(table, dict):
            judge.add(
                Problem(key_text(place), f"must be a table, is {shown(table)}", f"Write it as [{key_text(place)}]."),
                place,
            )
            continue
        try:
            config = _config_of(group, name, table)
        except _Untyped as error:
            judge.add(error.problem, (*place, "type"))
        except ConfigError as error:
            judge.add(Problem(error.key, str(error.args[0]), error.remedy), (*place, "type"))
        else:
            # What an action does is one of its own keys; of the others the type says which Config it is.
            own = {key: value for key, value in table.items() if key != "type" or group == "actions"}
            made[name] = judge.part(config, own, place)
    return made


# The process ----------------------------------------------------------------------------------------------------------------------


def resolve(path: Path, environ: Mapping[str, str]) -> Table:
    """The settings as a JSON object, every default filled in. Raises ConfigProblems."""
    return to_plain(validated(path, environ))


def main(arguments: list[str], read: Callable[[Path, Mapping[str, str]], Table] = resolve) -> int:
    """Print the settings, or what is wrong with them, as JSON; the exit code tells which."""
    try:
        answer: Any = read(Path(arguments[0]), os.environ)
        code = DONE
    except ConfigProblems as error:
        answer, code = list(error.problems), WRONG
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    return code
