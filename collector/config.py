"""Settings of the collector: a TOML file, and the environment over it (`LINEWARDEN_COLLECTOR__SECTION__KEY`).

An unknown key is refused with the nearest known name; every problem is told at once, each with its key path.
"""

import ipaddress
import os
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from collector.ingest import Limits
from collector.store.retention import Rule

DEFAULT_FILE = Path("/etc/linewarden/collector.toml")
PREFIX = "LINEWARDEN_COLLECTOR__"


class SettingsError(Exception):
    """What was configured cannot be used: one line a problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Server(_Section):
    """Where the collector listens.

    listen              host:port
    certificate_file    PEM chain; with key_file turns TLS on (1.3 and later)
    allow_plaintext     let the network be read: only where a proxy in front ends TLS
    """

    listen: str = "127.0.0.1:8443"
    certificate_file: Path | None = None
    key_file: Path | None = None
    allow_plaintext: bool = False
    request_bytes_max: Annotated[int, Field(ge=65_536, le=1_073_741_824)] = 16 * 1024 * 1024
    request_open_bytes_max: Annotated[int, Field(ge=8_388_608, le=8_589_934_592)] = 256 * 1024 * 1024
    bodies_bytes_max: Annotated[int, Field(ge=65_536, le=68_719_476_736)] = 256 * 1024 * 1024
    concurrent_max: Annotated[int, Field(ge=1, le=10_000)] = 8
    body_s_max: Annotated[float, Field(gt=0, le=3_600)] = 60.0
    shutdown_s_max: Annotated[int, Field(ge=1, le=600)] = 20

    @property
    def host(self) -> str:
        """Address part of `listen`."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Port part of `listen`."""
        return int(self.listen.rpartition(":")[2])

    @property
    def limits(self) -> Limits:
        """What ingest takes at once."""
        return Limits(
            request_bytes_max=self.request_bytes_max,
            request_open_bytes_max=self.request_open_bytes_max,
            bodies_bytes_max=self.bodies_bytes_max,
            concurrent_max=self.concurrent_max,
            body_s_max=self.body_s_max,
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65_535:  # noqa: PLR2004
            raise ValueError(f"listen is {self.listen!r}. Write host:port, as in 0.0.0.0:8443 or [::]:8443")
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file belong together. Give both, or neither behind a proxy")
        for name in ("certificate_file", "key_file"):
            path = getattr(self, name)
            if path is not None and not os.access(path, os.R_OK):
                raise ValueError(
                    f"{name} {path} cannot be read. Check the path and that the service's user may read it"
                )
        if self.certificate_file is None and not self.allow_plaintext and not _loopback(self.host):
            raise ValueError(
                f"listen is {self.listen}, which others reach, without TLS. Give certificate_file and key_file, or, where a proxy "
                "in front ends TLS, allow_plaintext = true"
            )
        return self


class DatabaseSettings(_Section):
    """Where PostgreSQL is. Give `dsn`, or `dsn_file` where it holds a password."""

    dsn: str | None = None
    dsn_file: Path | None = None
    pool_size: Annotated[int, Field(ge=2, le=500)] = 10
    synchronous_commit: Literal["on", "remote_write", "remote_apply"] = "on"
    migrate_at_start: bool = True

    @property
    def address(self) -> str:
        """The DSN, from wherever it was given."""
        if self.dsn_file is not None:
            return self.dsn_file.read_text(encoding="utf-8").strip()
        return self.dsn or ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.dsn is None) == (self.dsn_file is None):
            raise ValueError("give dsn or dsn_file, one of them: postgresql://linewarden@db.corp.example/linewarden")
        try:
            address = self.address
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"dsn_file {self.dsn_file} cannot be read: {error}") from None
        if not address.startswith(("postgresql://", "postgres://")):
            raise ValueError("the address of the database has to begin with postgresql://")
        return self


class StoreSettings(_Section):
    """How events are kept."""

    partitions_ahead_days: Annotated[int, Field(ge=1, le=365)] = 7


class RetentionRule(_Section):
    """Events that stay otherwise than the rest. `days`: none means for ever."""

    types: tuple[str, ...] = ()
    severity_min: Annotated[int, Field(ge=1, le=6)] = 1
    severity_max: Annotated[int, Field(ge=1, le=6)] = 6
    days: Annotated[int, Field(ge=1, le=36_500)] | None = None


class RetentionSettings(_Section):
    """How long events stay: by the first rule that fits, else `days`. Without `days` and rules all stay for ever."""

    days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    rules: Annotated[tuple[RetentionRule, ...], Field(max_length=100)] = ()

    @property
    def policy(self) -> list[Rule]:
        """The rules in order, that for the rest at the end."""
        ruled = [Rule(**rule.model_dump()) for rule in self.rules]
        return [*ruled, Rule(days=self.days)]

    @property
    def anything(self) -> bool:
        """Whether anything ever leaves."""
        return any(rule.days is not None for rule in self.policy)


class Settings(BaseSettings):
    """All of it."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix=PREFIX, env_nested_delimiter="__")

    server: Server = Field(default_factory=Server)
    database: DatabaseSettings
    store: StoreSettings = Field(default_factory=StoreSettings)
    retention: RetentionSettings = Field(default_factory=RetentionSettings)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment stands over the file, which comes as init arguments."""
        del settings_cls, dotenv_settings, file_secret_settings
        return env_settings, init_settings


_SECTIONS: dict[str, type[BaseModel]] = {
    "server": Server,
    "database": DatabaseSettings,
    "store": StoreSettings,
    "retention": RetentionSettings,
}


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load(file: Path | None) -> Settings:
    """Read the settings. Raises SettingsError with every problem."""
    table = _read(file)
    problems = _unknown_variables()
    try:
        settings = Settings(**table)
    except ValidationError as error:
        problems += [_told(item["loc"], item["type"], item["msg"]) for item in error.errors()]
        raise SettingsError(problems) from None
    except ValueError as error:  # pydantic-settings: a variable that should be an object and is not
        raise SettingsError([*problems, str(error)]) from None
    if problems:
        raise SettingsError(problems)
    return settings


def _read(file: Path | None) -> dict[str, Any]:
    if file is None:
        if not DEFAULT_FILE.exists():
            return {}
        file = DEFAULT_FILE
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"{file} cannot be read: {error}"]) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError([f"{file} is not TOML: {error}"]) from None


def _unknown_variables() -> list[str]:
    """Variables of ours that name no section; those of an unknown key in a section are found by the model."""
    problems = []
    for name in os.environ:
        if name.upper().startswith(PREFIX):
            section = name[len(PREFIX) :].lower().partition("__")[0]
            if section not in _SECTIONS:
                problems.append(f"{name}: there is no section {section!r}.{_near(section, _SECTIONS)}")
    return problems


def _told(where: tuple[int | str, ...], kind: str, text: str) -> str:
    path = ".".join(map(str, where)) or "settings"
    if kind == "extra_forbidden":
        parent, name = where[:-1], str(where[-1])
        known = _SECTIONS[str(parent[0])].model_fields if parent and parent[0] in _SECTIONS else _SECTIONS
        return f"{path}: there is no such key.{_near(name, known)}"
    if kind == "missing":
        remedy = (
            " Give [database] dsn, as in postgresql://linewarden@db.corp.example/linewarden"
            if path == "database"
            else ""
        )
        return f"{path}: is missing.{remedy}"
    return f"{path}: {text.removeprefix('Value error, ')}"


def _near(name: str, known: Any) -> str:
    near = get_close_matches(name, list(known), 1)
    return f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(sorted(known))}"
