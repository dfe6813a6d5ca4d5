"""An agent's clock is off: the times of its events cannot be compared with those of others."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from collector.rules.base import OVER, Agent, Finding, Section, _Over, agent_type


class Config(Section):
    """`offset_s_max`: further off is told; over when it is off by less than half of it."""

    offset_s_max: Annotated[float, Field(gt=0, le=31_536_000)] = 60.0


class Rule:
    """By what was measured when the agent last sent, travel time included."""

    name = "clock"

    def __init__(self, config: Config) -> None:
        self._config = config

    def judge(self, agent: Agent, now: datetime, *, active: bool) -> Finding | _Over | None:
        """See AgentRule."""
        del now
        if agent.revoked or agent.clock_offset_us is None:
            return OVER if active else None
        offset_s = agent.clock_offset_us / 1e6
        if active:
            return OVER if abs(offset_s) < self._config.offset_s_max / 2 else None
        if abs(offset_s) <= self._config.offset_s_max:
            return None
        return Finding(
            rule=self.name,
            key=str(agent.agent_id),
            type=agent_type(self.name),
            severity=3,
            message=f"the clock of {agent.name} is {abs(offset_s):.0f} s {'ahead' if offset_s > 0 else 'behind'}",
            place_id=agent.place_id,
            target=str(agent.agent_id),
            data={"offset_s": round(offset_s, 3), "limit_s": self._config.offset_s_max},
        )
