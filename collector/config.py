"""Settings of the collector: a TOML file, and the environment over it (`LINEWARDEN_COLLECTOR__SECTION__KEY`).

An unknown key is refused with the nearest known name; every problem is told at once, each with its key path.
"""

import ipaddress
import os
import tomllib
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from collector.alert_reader import AlertSettings
from collector.evidence import checkpoint
from collector.ingest import Limits
from collector.notification_targets import NotificationSettings
from collector.oidc_settings import OidcSettings
from collector.rules import RulesSettings
from collector.sessions import Terms
from collector.store.logs import AUDIT_DAYS_MIN
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
    metrics_open        /metrics without a key: only where nobody but Prometheus reaches this port
    connections_max     open connections; a quarter of them may be without a credential, and a quarter of one key or user
    address_connections_max  connections of one address that have shown no credential; addresses in access.trusted_proxies are exempt
    head_s_max          a request's head has so long to arrive
    body_s_max          and its body
    """

    listen: str = "127.0.0.1:8443"
    certificate_file: Path | None = None
    key_file: Path | None = None
    allow_plaintext: bool = False
    metrics_open: bool = False
    request_bytes_max: Annotated[int, Field(ge=65_536, le=1_073_741_824)] = 16 * 1024 * 1024
    request_open_bytes_max: Annotated[int, Field(ge=8_388_608, le=8_589_934_592)] = 256 * 1024 * 1024
    bodies_bytes_max: Annotated[int, Field(ge=65_536, le=68_719_476_736)] = 256 * 1024 * 1024
    concurrent_max: Annotated[int, Field(ge=1, le=10_000)] = 8
    body_s_max: Annotated[float, Field(gt=0, le=3_600)] = 60.0
    shutdown_s_max: Annotated[int, Field(ge=1, le=600)] = 20
    connections_max: Annotated[int, Field(ge=16, le=65_000)] = 4_096
    address_connections_max: Annotated[int, Field(ge=4, le=65_000)] = 256
    head_s_max: Annotated[float, Field(gt=0, le=600)] = 10.0

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
    """Where PostgreSQL is. Give `dsn`, or `dsn_file` where it holds a password.

    pool_size  connections for batches (no more than server.concurrent_max); readers get half as many, and twelve more are for the rest
    """

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


class IdentitySettings(_Section):
    """Who may send.

    unsigned       allow: batches of agents that were never enrolled are taken with an API key of role agent; verify shows them as unsigned
    ca_file        PEM of the authority that agents are to trust (default: the last certificate in server.certificate_file; behind a proxy,
                   the authority of the proxy's certificate)
    url            where agents reach the collector; goes into tokens
    key_overlap_s  so long an agent's old key stays good when a new one has taken its place
    """

    unsigned: Literal["refuse", "allow"] = "refuse"
    ca_file: Path | None = None
    url: str | None = None
    key_overlap_s: Annotated[int, Field(ge=60, le=2_592_000)] = 3_600

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.url is not None and (not self.url.startswith(("https://", "http://")) or not self.url.isprintable()):
            raise ValueError(f"url is {self.url!r}. Write https://host:port, as agents reach it")
        if self.ca_file is not None and not os.access(self.ca_file, os.R_OK):
            raise ValueError(
                f"ca_file {self.ca_file} cannot be read. Check the path and that the service's user may read it"
            )
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
    """How long events stay: by the first rule that fits, else `days`. Without `days` and rules all stay for ever.

    audit_days  records of the audit log (at least a year)
    alert_days  incidents, since they were closed
    """

    days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    audit_days: Annotated[int, Field(ge=AUDIT_DAYS_MIN, le=36_500)] = 1_096
    alert_days: Annotated[int, Field(ge=30, le=36_500)] = 1_096
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


class EvidenceSettings(_Section):
    """Checkpoints: signed roots over everything accepted, written off the machine; and `verify`, which runs by itself.

    verify_every_s      so often everything stored is held against its evidence, and what does not hold is an alert; 0: only by command
    verify_events_max   rows of so many events are compared each time, chosen by chance; 0: of all
    key_file            Ed25519, PEM, 0600; made where there is none (default: a credential of systemd, or the service's folder of state)
    origin              name of this installation in its checkpoints
    targets             file:///…, syslog+tls://host:port (also +tcp, +udp), https://… (PUT; {leaves} and {number} are filled in)
    authorization_file  what a PUT has as its Authorization header
    ca_file             whom syslog+tls and https believe (default: the system's)
    """

    key_file: Path | None = None
    origin: Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]{1,200}$")] | None = None
    verify_every_s: Annotated[int, Field(ge=0, le=31_536_000)] = 86_400
    verify_events_max: Annotated[int, Field(ge=0, le=10_000_000_000)] = 1_000_000
    checkpoint_every_s: Annotated[int, Field(ge=1, le=86_400)] = 3_600
    targets: Annotated[tuple[str, ...], Field(max_length=20)] = ()
    authorization_file: Path | None = None
    ca_file: Path | None = None

    @property
    def key(self) -> Path | None:
        """Where the key is, or is made; None: no checkpoints are."""
        return self.key_file or checkpoint.default_key_file()

    @property
    def places(self) -> checkpoint.Places:
        """Where checkpoints go."""
        return checkpoint.Places(self.targets, self._authorization, self.ca_file)

    def _authorization(self) -> str | None:
        return self.authorization_file.read_text(encoding="utf-8").strip() if self.authorization_file else None

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = [problem for target in self.targets if (problem := checkpoint.problem_of(target))]
        if problems:
            raise ValueError("; ".join(problems))
        for name in ("authorization_file", "ca_file"):
            path = getattr(self, name)
            if path is not None and not os.access(path, os.R_OK):
                raise ValueError(
                    f"{name} {path} cannot be read. Check the path and that the service's user may read it"
                )
        return self


class PrivacySettings(_Section):
    """Personal data. `erase_two_persons`: whoever asks for an erasure cannot confirm it."""

    erase_two_persons: bool = True


class AccessSettings(_Section):
    """Who is let in, and how often.

    requests_per_s      of one key or user on average; 0: no limit. Agents are bounded by [server] instead
    requests_burst      at once
    session_idle_s      unused for so long a session ends
    session_s_max       a session ends after so long, however much it is used
    sessions_max        of one user; the one used longest ago ends
    trusted_proxies     addresses or networks whose X-Forwarded-For is believed
    public_url          where users reach this collector, as in https://linewarden.corp.example; for HSTS and OpenID Connect
    oidc                sign-in by OpenID Connect, see collector/oidc_settings.py
    """

    requests_per_s: Annotated[float, Field(ge=0, le=100_000)] = 100.0
    requests_burst: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000
    session_idle_s: Annotated[int, Field(ge=60, le=604_800)] = 1_800
    session_s_max: Annotated[int, Field(ge=60, le=2_592_000)] = 43_200
    sessions_max: Annotated[int, Field(ge=1, le=1_000)] = 10
    trusted_proxies: Annotated[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...], Field(max_length=100)] = ()
    public_url: str = ""
    oidc: OidcSettings | None = None

    @property
    def terms(self) -> Terms:
        """Of sessions."""
        return Terms(
            idle=timedelta(seconds=self.session_idle_s),
            lasts=timedelta(seconds=self.session_s_max),
            per_user_max=self.sessions_max,
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        url = urlsplit(self.public_url)
        if self.public_url and (
            url.scheme not in ("http", "https") or not url.netloc or url.path.strip("/") or url.query
        ):
            raise ValueError(
                f"public_url is {self.public_url!r}. Write scheme and host alone, as in https://linewarden.corp.example"
            )
        if self.oidc is not None and not self.public_url:
            raise ValueError(
                "oidc needs public_url: the provider sends people back to it, as https://linewarden.corp.example"
            )
        return self


class Settings(BaseSettings):
    """All of it."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix=PREFIX, env_nested_delimiter="__")

    server: Server = Field(default_factory=Server)
    database: DatabaseSettings
    identity: IdentitySettings = Field(default_factory=IdentitySettings)
    store: StoreSettings = Field(default_factory=StoreSettings)
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    access: AccessSettings = Field(default_factory=AccessSettings)
    evidence: EvidenceSettings = Field(default_factory=EvidenceSettings)
    privacy: PrivacySettings = Field(default_factory=PrivacySettings)
    alerts: AlertSettings = Field(default_factory=AlertSettings)
    rules: RulesSettings = Field(default_factory=RulesSettings)
    notification: NotificationSettings = Field(default_factory=NotificationSettings)

    @property
    def authority_file(self) -> Path | None:
        """Where the certificate is that agents are to trust."""
        return self.identity.ca_file or self.server.certificate_file

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
    "identity": IdentitySettings,
    "store": StoreSettings,
    "retention": RetentionSettings,
    "alerts": AlertSettings,
    "rules": RulesSettings,
    "notification": NotificationSettings,
    "evidence": EvidenceSettings,
    "privacy": PrivacySettings,
    "access": AccessSettings,
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
    except FileNotFoundError:
        raise SettingsError([f"there is no file {file}. Name another with --config FILE"]) from None
    except OSError as error:
        raise SettingsError([f"{file} cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise SettingsError([f"{file} is not UTF-8 at byte {error.start}: save it as UTF-8"]) from None
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
