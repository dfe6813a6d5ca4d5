"""An agent's buffer fills up: told before events are lost, not after."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import Field, model_validator

from collector.rules.base import OVER, Agent, Finding, Section, _Over, agent_type

MEDIUM = 3


class Config(Section):
    """`used_max`: told when more of the buffer is in use; over below `used_over`."""

    used_max: Annotated[float, Field(gt=0, le=1)] = 0.8
    used_over: Annotated[float, Field(gt=0, le=1)] = 0.6

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.used_over >= self.used_max:
            raise ValueError("used_over has to be less than used_max, or the alert would come and go")
        return self


class Rule:
    """By what the agent says of its buffer."""

    name = "buffer"

    def __init__(self, config: Config) -> None:
        self._config = config

    def judge(self, agent: Agent, now: datetime, *, active: bool) -> Finding | _Over | None:
        """See AgentRule."""
        del now
        used, most = agent.said("buffer", "used_bytes"), agent.said("buffer", "bytes_max")
        part = used / most if used is not None and most else 0.0
        if agent.revoked or (active and part < self._config.used_over):
            return OVER if active else None
        if active or part < self._config.used_max:
            return None
        return Finding(
            rule=self.name,
            key=str(agent.agent_id),
            type=agent_type(self.name),
            severity=MEDIUM,
            message=f"the buffer of {agent.name} is {part:.0%} full",
            place_id=agent.place_id,
            target=str(agent.agent_id),
            data={"used_bytes": used, "bytes_max": most},
        )
