"""An agent sent an event of a type that only the collector may state: it is changed, or somebody speaks with its key."""

from collector.rules.base import Finding, Row, Section, agent_type


class Config(Section):
    """Nothing to set."""


class Rule:
    """One alert an agent, about the agent that sent it and nobody that the event names."""

    name = "claimed"
    types = ("claimed.*",)

    def __init__(self, config: Config) -> None:
        self._config = config

    def see(self, row: Row) -> Finding | None:
        """See EventRule."""
        agent = str(row["agent_id"])
        return Finding(
            rule=self.name,
            key=agent,
            type=agent_type(self.name),
            severity=4,
            message=f"agent {agent} sent {row['type'].partition('.')[2]}, which only the collector may state; nothing of it is believed",
            target=agent,
            data={"claimed": row["type"].partition(".")[2], "technique": "T0859"},
        )
