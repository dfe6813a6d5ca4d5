"""The centre's own rules: what no single station can see. One file each, one line here, its settings in [rules.NAME].

What a rule finds becomes an event in the centre's own stream, and from there an alert on the same way as those of agents.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, create_model

RULES = {
    "silent": "collector.rules.silent",
    "lag": "collector.rules.lag",
    "clock": "collector.rules.clock",
    "buffer": "collector.rules.buffer",
    "stalled": "collector.rules.stalled",
    "gap": "collector.rules.gap",
    "chain": "collector.rules.chain",
    "claimed": "collector.rules.claimed",
    "evidence": "collector.rules.evidence",
    "address": "collector.rules.address",
    "change": "collector.rules.change",
}
"""Name → module. It has `Config`, a section of the settings, and `Rule`, made of one."""


def _sections() -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for name, path in RULES.items():
        config = import_module(path).Config
        fields[name] = (config, config())
    return create_model("RulesSettings", __config__=ConfigDict(extra="forbid", frozen=True), **fields)


if TYPE_CHECKING:

    class RulesSettings(BaseModel):
        """[rules]: a section each rule, made of the table."""

        def __getattr__(self, name: str) -> Any: ...

else:
    RulesSettings = _sections()


def build(settings: BaseModel) -> list[Any]:
    """The rules that are on."""
    made = []
    for name, path in RULES.items():
        config = getattr(settings, name)
        if config.enabled:
            made.append(import_module(path).Rule(config))
    return made
