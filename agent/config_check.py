"""What `check` looks at beyond the configuration itself: whether what it names is there, can be read, and is not open to everybody.

Each Config says of itself what is wrong with its own files (`problems`). What they have in common is looked at here: every key that ends in
_file names a file, and one that holds a secret is not for everybody's eyes. Handlers and sources are made as the daemon makes them, which
does no I/O, so that what only shows when the parts come together shows here too.
"""

import dataclasses
import glob
import ssl
import stat
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from agent.component import ConfigError, Report, load
from agent.config import Problem, Settings
from agent.config_words import key_text
from agent.handlers.engine import build_handlers
from agent.identity import Keyring
from agent.sources import EXTRA, SOURCES

SECRET_BYTES_MAX = 65_536
SYSTEM_LOGS = ("auth.log", "syslog", "secure", "messages", "kern.log", "daemon.log", "user.log", "cron", "cron.log")
"""What rsyslog writes, where it is installed."""
JOURNALS = ("/run/systemd/journal", "/run/log/journal", "/var/log/journal")
_SECRET_ENDINGS = ("key_file", "password_file", "token_file", "secret_file")

Place = tuple[str | int, ...]


def problems_outside(settings: Settings) -> list[Problem]:
    """Everything that is wrong around a configuration that is right in itself."""
    found: list[Problem] = []
    for place, config in _parts(settings):
        told = list(_of_config(place, config))
        # What a Config says of its own file is said in its own words; once is enough.
        keys = {problem.key for problem in told}
        found += told
        found += [problem for problem in _of_files(place, config) if problem.key not in keys]
    if settings.sync.ca_file is not None and not any(problem.key == "sync.ca_file" for problem in found):
        found += _of_authority(settings.sync.ca_file)
    found += _of_shared_files(settings)
    found += _of_making(settings)
    return list(dict.fromkeys(found))


def warnings_outside(settings: Settings) -> list[Problem]:
    """What a configuration can run with, and should not: a Config says so by `warnings`."""
    found = [
        Problem(f"{key_text(place)}.{key}", text, remedy)
        for place, config in _parts(settings)
        if hasattr(config, "warnings")
        for key, text, remedy in config.warnings()
    ]
    return [*found, *_of_silence(settings), *_of_enrolment(settings)]


def _of_silence(settings: Settings) -> Iterator[Problem]:
    """What is configured and will deliver nothing as things are now."""
    if not settings.sources:
        yield Problem(
            "sources", "no source is configured, so nothing is collected", "Add one, as agent.example.toml shows."
        )
    for name, source in settings.sources.items():
        if source.kind != "log":
            continue
        for pattern in getattr(source.config, "paths", ()):
            if not any(islice(glob.iglob(pattern, recursive=True), 1)):  # noqa: PTH207  # absolute patterns
                remedy = "Correct the path, or leave it where the program that writes it comes later."
                if Path(pattern).name in SYSTEM_LOGS and any(Path(each).exists() for each in JOURNALS):
                    remedy = (
                        'This computer keeps its log in the journal: write [sources.NAME] type = "journal" instead of this path; '
                        "or install rsyslog, which writes such files."
                    )
                yield Problem(key_text(("sources", name, "paths")), f"{pattern} matches no file", remedy)


def _of_enrolment(settings: Settings) -> Iterator[Problem]:
    """An agent that is not enrolled collects, and nobody takes it."""
    keyring = Keyring(Path(settings.agent.state_dir), settings.identity)
    try:
        saved = keyring.saved()
    except ConfigError:
        # Another user's folder may not be looked into; the daemon says what is wrong with its own.
        return
    if saved is None and settings.sync.key_file is None:
        remedy = f"linewarden-agent enroll --collector {settings.sync.url} --token-file FILE"
        yield Problem("identity", "the agent is not enrolled, so what it collects waits in its buffer", remedy)


def _parts(settings: Settings) -> Iterator[tuple[Place, Any]]:
    for section in ("agent", "sync", "buffer", "health", "identity"):
        yield (section,), getattr(settings, section)
    for name, source in settings.sources.items():
        yield ("sources", name), source.config
    for name, config in settings.handlers.items():
        yield ("handlers", name), config
    for name, config in settings.actions.items():
        yield ("actions", name), config


def _of_config(place: Place, config: Any) -> Iterator[Problem]:
    if hasattr(config, "problems"):
        for key, text, remedy in config.problems():
            yield Problem(f"{key_text(place)}.{key}", text, remedy)


# Files ----------------------------------------------------------------------------------------------------------------------------


def _of_files(place: Place, config: Any) -> Iterator[Problem]:
    """Every key that ends in _file, however deep."""
    if isinstance(config, list | tuple):
        for number, each in enumerate(config):
            yield from _of_files((*place, number), each)
    elif isinstance(config, dict):
        for name, each in config.items():
            yield from _of_files((*place, name), each)
    elif dataclasses.is_dataclass(config):
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if field.name.endswith("_file") and isinstance(value, str):
                is_secret = field.name.endswith(_SECRET_ENDINGS)
                yield from _of_file(key_text((*place, field.name)), Path(value), is_secret=is_secret)
            else:
                yield from _of_files((*place, field.name), value)


def _of_file(key: str, path: Path, *, is_secret: bool) -> Iterator[Problem]:
    try:
        # Looked at first: to open a pipe waits for whoever writes into it.
        mode = path.stat().st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            yield Problem(key, f"{path} is a pipe or a socket", "Name a file.")
            return
        with path.open("rb") as file:
            content = file.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        remedy = "Name a file that exists and that the agent's user can read."
        yield Problem(key, f"{path}: {error.strerror}", remedy)
        return
    if not content.strip():
        yield Problem(key, f"{path} is empty", "Put into it what it should hold.")
    elif is_secret and len(content) > SECRET_BYTES_MAX:
        yield Problem(key, f"{path} is longer than any secret", "Name the right file.")
    if is_secret and stat.S_ISREG(mode) and mode & stat.S_IROTH:
        yield Problem(key, f"{path} holds a secret and can be read by everybody on this computer", f"chmod o= {path}")


def _of_authority(path: str) -> Iterator[Problem]:
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError):
        yield Problem(
            "sync.ca_file",
            f"{path} holds no certificate",
            "Give the PEM file of the authority that signed the collector's certificate.",
        )


def _of_shared_files(settings: Settings) -> Iterator[Problem]:
    """A file that two sources read gives every event twice."""
    first: dict[str, str] = {}
    for name, source in settings.sources.items():
        paths: Iterable[str] = getattr(source.config, "paths", ())
        for path in paths:
            other = first.setdefault(path, name)
            if other != name:
                text = f"{path} is read by sources.{other} too, so every line of it would be two events"
                yield Problem(key_text(("sources", name, "paths")), text, "Take it out of one of the two.")


# Making the parts -----------------------------------------------------------------------------------------------------------------


def _of_making(settings: Settings) -> Iterator[Problem]:
    try:
        build_handlers(settings.handlers)
    except ConfigError as error:
        yield _made_of(error, "handlers")
    for name, source in settings.sources.items():
        try:
            load(SOURCES, source.kind, what="source", extra=EXTRA)(name, source.config, Report())
        except ConfigError as error:
            yield _made_of(error, key_text(("sources", name)))


def _made_of(error: ConfigError, place: str) -> Problem:
    key = error.key if error.key.startswith(place) else f"{place}.{error.key}" if error.key else place
    return Problem(key, str(error.args[0]), error.remedy or "Correct the value.")
