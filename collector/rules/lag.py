"""An agent is heard, and yet its oldest event waits there for long: the link is too slow, or something holds it up."""

from datetime import datetime, timedelta
from typing import Annotated

from pydantic import Field

from collector.rules.base import OVER, Agent, Finding, Section, _Over, agent_type


class Config(Section):
    """`lag_s_max`: an event that waits longer is told; over when the oldest waits less than half of it."""

    lag_s_max: Annotated[float, Field(gt=0, le=31_536_000)] = 900.0


def lag_s(agent: Agent) -> float | None:
    """How long the oldest unsent event waited when the agent last spoke; None where it does not say."""
    if not isinstance(agent.status.get("buffer"), dict):
        return None
    oldest_us = agent.said("buffer", "oldest_us")
    if oldest_us is None:
        return 0.0
    seen_us = agent.last_seen.timestamp() * 1e6 + (agent.clock_offset_us or 0)
    return max(0.0, float(seen_us - oldest_us) / 1e6)


class Rule:
    """Silent agents are another rule's."""

    name = "lag"

    def __init__(self, config: Config) -> None:
        self._config = config

    def judge(self, agent: Agent, now: datetime, *, active: bool) -> Finding | _Over | None:
        """See AgentRule."""
        del now
        lag = lag_s(agent)
        if agent.revoked or lag is None:
            return OVER if active else None
        if active:
            return OVER if lag < self._config.lag_s_max / 2 else None
        if lag <= self._config.lag_s_max or agent.state == "silent":
            return None
        return Finding(
            rule=self.name,
            key=str(agent.agent_id),
            type=agent_type(self.name),
            severity=3,
            message=f"the oldest event of {agent.name} waits for {timedelta(seconds=round(lag))} to be sent",
            place_id=agent.place_id,
            target=str(agent.agent_id),
            data={"lag_s": round(lag), "limit_s": self._config.lag_s_max, "waiting": agent.said("buffer", "events")},
        )
