"""An agent declared that events were lost."""

from typing import Annotated

from pydantic import Field

from agent.wire import bounds
from collector.rules.base import Finding, Row, Section


class Config(Section):
    """`events_min`: smaller gaps are not told; of unknown size they always are."""

    events_min: Annotated[int, Field(ge=1, le=1_000_000_000)] = 1


class Rule:
    """One finding a gap; those of one source are counted in one alert."""

    name = "gap"
    types = ("collection.gap",)

    def __init__(self, config: Config) -> None:
        self._config = config

    def see(self, row: Row) -> Finding | None:
        """See EventRule."""
        try:
            data = bounds.loads(row["data"]) if row["data"] else {}
        except ValueError:
            # Stored before values had bounds: the loss is reported all the more.
            data = {"reason": "the declaration cannot be read"}
        lost = data.get("events")
        lost = lost if isinstance(lost, int) and not isinstance(lost, bool) and 0 <= lost < 2**63 else None
        if lost is not None and lost < self._config.events_min:
            return None
        reason = str(data.get("reason") or "no reason given")[:100]
        source = row["source"] or "the buffer"
        return Finding(
            rule=self.name,
            key=f"{row['agent_id']} {row['source']}",
            type="alert.collection.gap",
            severity=3,
            message=f"{'an unknown number of' if lost is None else lost} events of {source[:100]} were lost: {reason}",
            target=str(row["agent_id"]),
            data={"lost": lost, "reason": reason, "source": row["source"][:200]},
        )
