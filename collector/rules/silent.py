"""An agent is not heard any more. Where it said that it was stopped, its silence is planned, and said so quietly."""

from datetime import datetime

from collector.rules.base import OVER, Agent, Finding, Section, _Over, agent_type

HIGH, LOW = 4, 2


class Config(Section):
    """`interval_s`: how often an agent gives a sign of life; without one for `late_intervals` it is late, for `silent_intervals` silent.

    `recover_s`: so long it has to be heard without a pause to be online again.
    """

    interval_s: float = 30.0
    late_intervals: float = 3.0
    silent_intervals: float = 6.0
    recover_s: float = 60.0


class Rule:
    """By the state that has hysteresis already."""

    name = "silent"

    def __init__(self, config: Config) -> None:
        self._config = config

    def judge(self, agent: Agent, now: datetime, *, active: bool) -> Finding | _Over | None:
        """See AgentRule."""
        if agent.state == "online" or agent.revoked:
            return OVER if active else None
        if active or agent.state != "silent":
            return None
        planned = agent.stopped is not None
        ago_s = round((now - agent.last_seen).total_seconds())
        how = "was stopped and is silent" if planned else "is silent"
        return Finding(
            rule=self.name,
            key=str(agent.agent_id),
            type=agent_type(self.name),
            severity=LOW if planned else HIGH,
            message=f"agent of {agent.name} {how}: last heard {ago_s} s ago",
            place_id=agent.place_id,
            target=str(agent.agent_id),
            data={
                "last_seen": agent.last_seen.isoformat(),
                "silent_s": ago_s,
                "planned": planned,
                "technique": "T0804",
            },
        )
