"""What /metrics says of alerts and notifications: by indexes over what is not done yet, however much is done."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from collector.store.database import translated

if TYPE_CHECKING:
    from collector.store.database import Anyone


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits for a target of notifications."""

    messages: int
    alerts: int
    oldest_s: float
    dead: int


NOTHING = Waiting(0, 0, 0.0, 0)


@dataclass(frozen=True, slots=True)
class Found:
    """`alerts`: state, severity, rule, and how many. `looked`, `moved`: see alert_reader."""

    alerts: Sequence[tuple[str, int, str, int]]
    incidents: int
    targets: dict[str, Waiting]
    looked: datetime | None
    moved: datetime | None

    def alerts_by_rule(self) -> list[tuple[str, int]]:
        """How many of each rule."""
        counted: dict[str, int] = defaultdict(int)
        for _, _, rule, count in self.alerts:
            counted[rule] += count
        return list(counted.items())


async def read(connection: "Anyone") -> Found:
    """As it is now."""
    with translated():
        alerts = await connection.fetch(_ALERTS)
        incidents = await connection.fetchval(_INCIDENTS)
        targets = await connection.fetch(_TARGETS)
        reader = await connection.fetchrow(_READER)
    return Found(
        [tuple(row) for row in alerts],
        incidents,
        {row["target"]: Waiting(row["messages"], row["alerts"], row["oldest_s"], row["dead"]) for row in targets},
        reader["looked"] if reader else None,
        reader["moved"] if reader else None,
    )


_ALERTS = "SELECT state, severity, rule, count(*) FROM alerts WHERE state <> 'closed' GROUP BY 1, 2, 3"
_INCIDENTS = "SELECT count(DISTINCT incident_id) FROM alerts WHERE state <> 'closed'"
_TARGETS = """
SELECT target, sum(messages)::bigint AS messages, sum(alerts)::bigint AS alerts, sum(dead)::bigint AS dead,
    greatest(coalesce(extract(epoch FROM clock_timestamp() - min(oldest)), 0), 0)::float8 AS oldest_s
FROM (
    SELECT target, count(*) AS messages, 0 AS alerts, 0 AS dead, min(made) AS oldest FROM notification_messages
    WHERE state = 'waiting' GROUP BY target
    UNION ALL
    SELECT target, 0, 0, count(*), NULL FROM notification_messages WHERE state = 'dead' GROUP BY target
    UNION ALL
    SELECT target, 0, count(DISTINCT alert_id), 0, min(made) FROM notification_outbox WHERE message_id IS NULL GROUP BY target
) AS waiting GROUP BY target
"""
_READER = "SELECT nullif(looked, '-infinity') AS looked, moved FROM alert_reader"
