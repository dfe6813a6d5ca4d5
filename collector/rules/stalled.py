"""An agent's buffer takes nothing: its disk is full or fails. Logs wait to be read; what devices say meanwhile may be lost."""

from datetime import datetime

from collector.rules.base import OVER, Agent, Finding, Section, _Over, agent_type

CRITICAL = 5


class Config(Section):
    """Nothing to set."""


class Rule:
    """A rule of its own beside `buffer`: it is told also where the same buffer was told to be filling up before."""

    name = "stalled"

    def __init__(self, config: Config) -> None:
        self._config = config

    def judge(self, agent: Agent, now: datetime, *, active: bool) -> Finding | _Over | None:
        """See AgentRule."""
        del now
        buffer = agent.status.get("buffer")
        stalled = isinstance(buffer, dict) and buffer.get("stalled") is True
        if agent.revoked or not stalled:
            return OVER if active else None
        if active:
            return None
        return Finding(
            rule=self.name,
            key=str(agent.agent_id),
            type=agent_type(self.name),
            severity=CRITICAL,
            message=f"the buffer of {agent.name} takes nothing: its disk is full or fails",
            place_id=agent.place_id,
            target=str(agent.agent_id),
            data={"used_bytes": agent.said("buffer", "used_bytes"), "bytes_max": agent.said("buffer", "bytes_max")},
        )
