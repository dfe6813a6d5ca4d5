"""A hash chain forked or does not hold: a cloned agent, a buffer put back from a copy, or somebody changed what was stored."""

from collector.rules.base import Finding, Row, Section


class Config(Section):
    """Nothing to set."""


class Rule:
    """One finding an event; those about one agent are counted in one alert."""

    name = "chain"
    types = ("security.chain.forked", "security.chain.broken")
    """Of the collector's own stream alone: the reader hands over no other, so that nobody states this of an agent but the collector."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def see(self, row: Row) -> Finding | None:
        """See EventRule."""
        about = row["target"] or str(row["agent_id"])
        kind = row["type"].rpartition(".")[2]
        return Finding(
            rule=self.name,
            key=f"{kind} {about}",
            type=f"alert.chain.{kind}",
            severity=5,
            message=f"the hash chain of agent {about[:100]} {'forked' if kind == 'forked' else 'does not hold'}",
            target=about[:200],
            data={"technique": "T0872"},
        )
