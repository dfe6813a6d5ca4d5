"""Something stored is not what its evidence says: `verify`, which runs by itself, found it."""

import json

from collector.rules.base import Finding, Row, Section


class Config(Section):
    """Nothing to set."""


class Rule:
    """One alert a kind of finding and agent or table; what is found again the next day is counted in it."""

    name = "evidence"
    types = ("security.evidence.broken",)

    def __init__(self, config: Config) -> None:
        self._config = config

    def see(self, row: Row) -> Finding | None:
        """See EventRule."""
        said = json.loads(row["data"] or "{}")
        return Finding(
            rule=self.name,
            key=f"{said.get('finding')} {said.get('agent_id') or said.get('table')}",
            type="alert.evidence.broken",
            severity=5,
            message=(row["message"] or "something stored is not what its evidence says")[:1_000],
            target=row["target"],
            data={"finding": said.get("finding"), "count": said.get("count"), "technique": "T0872"},
        )
