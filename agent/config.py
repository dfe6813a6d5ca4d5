"""Settings of the agent: one TOML file, and the environment over it (`LINEWARDEN_AGENT__SECTION__KEY`).

What holds:

* Settings that were loaded are right as far as they can be judged without touching anything: no unknown key, no wrong type, no
  value out of its bounds, and the parts of each section fit each other. Every problem is told at once, each with its key and a remedy.
* The daemon never carries what judging takes. Validation (pydantic, which alone costs more memory than the log source may) runs in a
  short-lived process; the daemon rebuilds the same frozen dataclasses from its answer:

      load(file) ──► python -m agent.config FILE ──► config_read.py: layers, types, bounds, words
          ▲                                             │ 0: the settings as JSON    2: the problems as JSON
          └──────────── msgspec.convert ◄───────────────┘

Sections belong to the parts: the class of `[buffer]` lives in buffer.py, that of a source of type `log` beside the source.
"""

import asyncio
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from agent.buffer import BufferConfig
from agent.component import ConfigError
from agent.component import load as load_kind
from agent.handlers import EXTRA as HANDLER_EXTRA
from agent.handlers import HANDLERS
from agent.health import HealthConfig
from agent.identity import IdentityConfig
from agent.sources import EXTRA as SOURCE_EXTRA
from agent.sources import SOURCES
from agent.sync import SyncConfig

BUFFER_FILE = "buffer.db"
DEFAULT_FILE = Path("/etc/linewarden/agent.toml")
PREFIX = "LINEWARDEN_AGENT__"
BUILTIN = "builtin"
"""`[handlers.builtin]` holds the settings of the built-in handlers and is none itself."""
READ_S_MAX = 60.0
"""A slow disk and a busy processor included. A child that takes longer is ended, and the configuration counts as unreadable."""
DONE, FAILED, WRONG = 0, 1, 2


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong: where (the path of the key, "" for the file), what, and what to do about it."""

    key: str
    text: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.key}: " if self.key else ""
        return f"{where}{self.text}. {self.remedy}"


class ConfigProblems(Exception):
    """The configuration cannot be used. All of its problems, in the order of the file where that is known."""

    def __init__(self, path: Path, problems: Iterable[Problem]) -> None:
        self.path = path
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """[agent]

    state_dir  where the buffer, the agent's id and its keys are kept; absolute, on a local disk
    """

    state_dir: str = "/var/lib/linewarden"

    def __post_init__(self) -> None:
        if not self.state_dir.startswith("/"):
            raise ValueError(f"state_dir: {self.state_dir!r} is not an absolute path; write it from / on")

    @property
    def buffer_path(self) -> Path:
        """Where the buffer lies."""
        return Path(self.state_dir) / BUFFER_FILE

    def problems(self) -> Iterable[tuple[str, str, str]]:
        """Whether it can be written, or made where it is not there yet."""
        path = Path(self.state_dir)
        remedy = f"Create it and give it to the agent's user: install -d -m 750 -o linewarden {path}"
        existing = next((each for each in (path, *path.parents) if _exists(each)), path)
        if existing != path and not os.access(existing, os.W_OK | os.X_OK):
            yield "state_dir", f"{path} does not exist, and {existing} may not be written", remedy
        elif not existing.is_dir():
            yield "state_dir", f"{existing} is not a folder", "Name a folder."
        elif not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
            yield "state_dir", f"{path} may not be written by this user", remedy


def _exists(path: Path) -> bool:
    with suppress(OSError):
        return path.exists()
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings:
    """A source: its type, and the Config of that type."""

    kind: str
    config: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All of it. `handlers` is what `agent.handlers.engine.Engine.build` takes: name → Config of its kind, "builtin" → ConfigBuiltin."""

    agent: AgentConfig
    sync: SyncConfig
    buffer: BufferConfig
    health: HealthConfig
    identity: IdentityConfig
    sources: dict[str, SourceSettings] = field(default_factory=dict)
    handlers: dict[str, Any] = field(default_factory=dict)
    actions: dict[str, Any] = field(default_factory=dict)
    """Name → ConfigAction."""


def source_config(kind: str) -> Any:
    """The Config class of a type of source. Raises ConfigError where there is none, or its library is missing."""
    return load_kind(SOURCES, kind, what="source", extra=SOURCE_EXTRA).Config


def handler_config(kind: str) -> Any:
    """The Config class of a kind of handler; of the settings of the built-in ones for "builtin". Raises ConfigError."""
    if kind == BUILTIN:
        from agent.handlers.builtin import ConfigBuiltin

        return ConfigBuiltin
    return load_kind(HANDLERS, kind, what="handler", extra=HANDLER_EXTRA).Config


def action_config() -> Any:
    """The Config class of actions: loaded only where there are any, as most stations have none."""
    from agent.handlers.actions import ConfigAction

    return ConfigAction


def to_plain(settings: Settings) -> dict[str, Any]:
    """Settings as a JSON object; `from_plain` makes the same settings of it."""
    plain: dict[str, Any] = {
        section: msgspec.to_builtins(getattr(settings, section))
        for section in ("agent", "sync", "buffer", "health", "identity")
    }
    plain["sources"] = {
        name: {"type": source.kind, "config": msgspec.to_builtins(source.config)}
        for name, source in settings.sources.items()
    }
    plain["handlers"] = {
        name: {"type": kind_of_handler(config), "config": msgspec.to_builtins(config)}
        for name, config in settings.handlers.items()
    }
    plain["actions"] = {name: msgspec.to_builtins(config) for name, config in settings.actions.items()}
    return plain


def kind_of_handler(config: object) -> str:
    """The kind that a handler's Config belongs to, by the module that both live in."""
    module = type(config).__module__
    return next((kind for kind, path in HANDLERS.items() if path.partition(":")[0] == module), BUILTIN)


def from_plain(plain: Mapping[str, Any]) -> Settings:
    """The settings that `to_plain` wrote. Only the modules of the configured sources and handlers are imported."""
    return Settings(
        agent=msgspec.convert(plain["agent"], AgentConfig),
        sync=msgspec.convert(plain["sync"], SyncConfig),
        buffer=msgspec.convert(plain["buffer"], BufferConfig),
        health=msgspec.convert(plain["health"], HealthConfig),
        identity=msgspec.convert(plain["identity"], IdentityConfig),
        sources={
            name: SourceSettings(kind=each["type"], config=msgspec.convert(each["config"], source_config(each["type"])))
            for name, each in plain["sources"].items()
        },
        handlers={
            name: msgspec.convert(each["config"], handler_config(each["type"]))
            for name, each in plain["handlers"].items()
        },
        actions={name: msgspec.convert(each, action_config()) for name, each in plain["actions"].items()},
    )


async def load(path: Path) -> Settings:
    """Read and judge the configuration in a process of its own. Raises ConfigProblems with everything that is wrong."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "agent.config", str(path),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(READ_S_MAX):
            answer, said = await child.communicate()
    except TimeoutError:
        raise _unreadable(path, f"reading it took longer than {READ_S_MAX:g} s", "Is the disk all right?") from None
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode == WRONG:
        with suppress(msgspec.MsgspecError):
            raise ConfigProblems(path, msgspec.json.decode(answer, type=list[Problem]))
    if child.returncode == DONE:
        try:
            return from_plain(msgspec.json.decode(answer))
        except (msgspec.MsgspecError, KeyError, ConfigError) as error:
            raise _unreadable(path, f"it was judged to be right and cannot be taken over: {error}") from None
    last = said.decode(errors="replace").strip().rpartition("\n")[2][:500]
    raise _unreadable(path, f"the process that reads it ended with {child.returncode}: {last or 'no reason given'}")


def _unreadable(path: Path, text: str, remedy: str = "linewarden-agent check may tell more.") -> ConfigProblems:
    return ConfigProblems(path, [Problem("", text, remedy)])


if __name__ == "__main__":
    from agent.config_read import main

    sys.exit(main(sys.argv[1:]))
