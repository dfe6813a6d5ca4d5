"""Handlers that every plant wants, on by default under `[handlers.builtin]`.

    [handlers.builtin]
    enabled = true                    # false switches all of them off
    off = ["usb_attached"]            # or some
    time_zone = "Europe/Berlin"       # of the shifts; that of the computer where it is not given
    shifts = ["Mon-Fri 06:00-22:00"]  # when people are expected at the line
    [handlers.builtin.tune.login_burst]
    at_least = 10                     # any key of the handler's kind

The table of them, each with its why, the value to turn, and its ATT&CK for ICS technique, is in builtin_table.py; BUILTIN.md shows it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import msgspec

from agent.component import load
from agent.handlers import EXTRA, HANDLERS
from agent.handlers.base import ConfigCommon
from agent.handlers.builtin_table import BUILTIN

Setting = str | int | float | bool | None | list[Any] | dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigBuiltin:
    """Settings of the built-in handlers."""

    enabled: bool = True
    off: tuple[str, ...] = ()
    time_zone: str | None = None
    shifts: tuple[str, ...] = ()
    tune: dict[str, dict[str, Setting]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, names in (("off", self.off), ("tune", self.tune)):
            for name in names:
                if name not in BUILTIN:
                    near = get_close_matches(name, BUILTIN, 1)
                    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(BUILTIN)}"
                    raise ValueError(f"{key}: there is no built-in handler {name!r} ({hint})")
        builtin_configs(self)


def config_of(kind: str, settings: Mapping[str, Any]) -> ConfigCommon:
    """The Config instance of a kind. Raises ValueError, with the key that is wrong; an unknown key is refused by name."""
    config_class = load(HANDLERS, kind, what="handler", extra=EXTRA).Config
    known = (
        [one.name for one in msgspec.structs.fields(config_class)]
        if hasattr(config_class, "__struct_fields__")
        else list(config_class.__dataclass_fields__)
    )
    for key in settings:
        if key not in known:
            near = get_close_matches(key, known, 1)
            raise ValueError(
                f"{key}: a {kind} handler has no such key" + (f" (did you mean {near[0]!r}?)" if near else "")
            )
    config: ConfigCommon = msgspec.convert(settings, config_class, strict=False)
    return config


def builtin_configs(builtin: ConfigBuiltin) -> dict[str, ConfigCommon]:
    """The built-in handlers that are on, tuned."""
    if not builtin.enabled:
        return {}
    configs: dict[str, ConfigCommon] = {}
    for name, settings in BUILTIN.items():
        if name in builtin.off:
            continue
        merged = {key: value for key, value in settings.items() if key != "type"}
        if settings["type"] == "schedule" and builtin.shifts:
            merged["windows"] = list(builtin.shifts)
            if builtin.time_zone:
                merged["time_zone"] = builtin.time_zone
        merged.update(builtin.tune.get(name, {}))
        if settings["type"] == "schedule" and "windows" not in merged:
            continue  # nobody has said when people are expected
        try:
            configs[name] = config_of(settings["type"], merged)
        except ValueError as error:
            raise ValueError(f"tune.{name}: {error}") from None
    return configs
