"""`sigma`: the SOC's own rules, read from folders and matched on our events.

    [handlers.sigma]
    paths = ["/etc/linewarden/sigma"]

What holds:

* A rule is translated, never interpreted: a plain rule becomes a `where` and a `count` of one, a correlation a `count`, `sequence` or
  `together`. So windows, late events, bounds, cool-down and stored state are those of these kinds, and a rule costs what they cost.
* pySigma is needed for reading only (sigma_read.py), in the process that judges the configuration. The daemon is handed the translation
  (`compiled`) and never imports it. SIGHUP reads the rules again.
* What cannot be expressed is refused by name: file, title, what, and what to do about it. Nothing is left out in silence.

SIGMA.md has the fields and log sources.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

import msgspec
from annotated_types import Ge, Le

from agent.component import ConfigError
from agent.handlers import where
from agent.handlers.base import ConfigCommon, check_field

Refusal = tuple[str, str, str]
"""Key, what is wrong, remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A rule as one of our handlers: its name, its kind, and the settings of the kind as JSON."""

    name: str
    kind: str
    settings: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigSigma:
    """Rules from files and folders (*.yml, *.yaml, at any depth).

    by, cool_down_s   what matches again of the same key sooner than this belongs to the alert that was raised (plain rules)
    fields            further names of Sigma fields and what they are called here: { WorkstationName = "data.host" }
    logsources        further log sources, "product/category/service" with "-" for any, and their `where`
    on_unsupported    refuse: the configuration is wrong; skip: such rules are left out, and `check` warns of each
    compiled          the rules, translated; filled in when the configuration is read
    """

    paths: tuple[str, ...]
    by: tuple[str, ...] = ("source", "target", "src_ip")
    cool_down_s: Annotated[float, Ge(0), Le(31_622_400)] = 300.0
    max_keys: Annotated[int, Ge(1), Le(10_000_000)] = 20_000
    fields: dict[str, str] = field(default_factory=dict)
    logsources: dict[str, str] = field(default_factory=dict)
    on_unsupported: Literal["refuse", "skip"] = "refuse"
    enabled: bool = True
    compiled: tuple[Compiled, ...] | None = None

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("paths: name at least one folder or file with rules")
        for name in self.by:
            check_field(name, "by")
        for name, ours in self.fields.items():
            check_field(ours, f"fields.{name}")
        for name, text in self.logsources.items():
            if len(name.split("/")) != 3:  # noqa: PLR2004
                raise ValueError(f'logsources: {name!r} is written "product/category/service", with - for any')
            try:
                where.parse(text)
            except where.WhereError as error:
                raise ValueError(f"logsources.{name}: {error}") from None

    def resolved(self) -> tuple["ConfigSigma", list[Refusal]]:
        """With the rules read and translated, and what is wrong with them."""
        try:
            from agent.handlers.sigma_read import read
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("agent"):
                raise
            text = f"rules are read by {error.name}, which is not installed"
            return self, [("paths", text, "Install it: pip install 'linewarden[sigma]'.")]
        if not self.enabled:
            return replace(self, compiled=()), []
        compiled, refused, unsupported = read(self)
        return replace(self, compiled=tuple(compiled)), refused + (
            unsupported if self.on_unsupported == "refuse" else []
        )

    def warnings(self) -> list[Refusal]:
        """What was left out, where that is allowed."""
        if self.on_unsupported == "refuse" or not self.enabled:
            return []
        from agent.handlers.sigma_read import read

        return read(self)[2]

    def expanded(self, name: str) -> dict[str, ConfigCommon]:
        """The handlers that the rules are."""
        from agent.handlers.builtin import config_of

        config, refused = (self, []) if self.compiled is not None else self.resolved()
        if refused:
            key, text, remedy = refused[0]
            raise ConfigError(text, key=f"handlers.{name}.{key}", remedy=remedy)
        return {
            f"{name}/{one.name}": config_of(one.kind, msgspec.json.decode(one.settings))
            for one in config.compiled or ()
        }


class SigmaHandler:
    """The kind in the table of kinds. There is no such handler: each rule is one of its own, see `ConfigSigma.expanded`."""

    kind: ClassVar[str] = "sigma"
    Config: ClassVar[type] = ConfigSigma
