"""The same change on several stations of a line: rolled out on purpose, or by somebody who means the whole line."""

import json

from collector.rules.base import Finding, Spread, SpreadSection, stations

_NAMED = ", ".join(f"nullif(e.data->>'{name}', '')" for name in ("point", "name", "path", "group"))
_WHAT = f"coalesce({_NAMED}, e.target, '')"


class Config(SpreadSection):
    """See SpreadSection."""


class Rule:
    """Changes are the same where site, line, type, and what was changed are."""

    name = "change"
    types = (
        "configuration.changed", "configuration.setpoint.changed", "configuration.mode.changed", "configuration.program.changed",
        "configuration.firmware.changed", "configuration.limit.changed", "configuration.trust.changed", "configuration.role.changed",
        "account.created", "account.group.changed",
    )  # fmt: skip

    key = f"CASE WHEN p.line <> '' THEN jsonb_build_array(p.site, p.line, e.type, left({_WHAT}, 100))::text END"

    def __init__(self, config: Config) -> None:
        self.at_least, self.within_s = config.at_least, config.within_s

    def found(self, spread: Spread) -> Finding:
        """See SpreadRule."""
        site, line, kind, what = json.loads(spread.key)
        where = stations(spread)
        return Finding(
            rule=self.name,
            key=spread.key,
            type="alert.fleet.change",
            severity=4,
            message=f"the same change on {len(spread.members)} stations of {site}/{line}: {kind}{f' of {what}' if what else ''}",
            target=what or None,
            data={"stations": where, "count": len(spread.members), "change": kind, "window_s": self.within_s},
        )
