"""What an installation has recorded that requirements ask for: counts and bounds, never a scan of events."""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from collector.store.events import Scope, Where, scope_conditions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from collector.store.database import Anyone


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Of a period. `lost`: events of declared gaps whose number is known; `unknown`: gaps without a number."""

    agents: int
    silent: int
    clocks_off: int
    enrolled: int
    gaps: int
    lost: int
    unknown: int
    forks: int
    audit_records: int
    checkpoint: datetime | None
    erasures: int


async def recorded(connection: "Anyone", scope: Scope, begin: datetime, end: datetime) -> Recorded:
    """Within a scope: agents and gaps. The rest belongs to no place."""
    w = Where()
    first, last = w.bind(begin), w.bind(end)
    w.conditions += scope_conditions(w, scope, "p.")
    row: Any = await connection.fetchrow(_RECORDED.format(begin=first, end=last, where=str(w)), *w.arguments)
    return Recorded(**dict(row))


async def sync_tags(connection: "Anyone", tags: "Iterable[tuple[str, str, str]]") -> None:
    """Write the taxonomy of this program into its table, for those who ask by SQL."""
    rows = sorted(set(tags))
    columns = [list(column) for column in zip(*rows, strict=True)]
    async with connection.transaction():
        known = await connection.fetch("SELECT standard, requirement, type FROM taxonomy_tags")
        if {tuple(row) for row in known} == set(rows):
            return
        await connection.execute("LOCK TABLE taxonomy_tags IN SHARE ROW EXCLUSIVE MODE")
        await connection.execute("DELETE FROM taxonomy_tags")
        await connection.execute(
            "INSERT INTO taxonomy_tags SELECT * FROM unnest($1::text[], $2::text[], $3::text[])", *columns
        )


_RECORDED = """
WITH fleet AS (
    SELECT a.* FROM agents a JOIN places p USING (place_id) WHERE {where} AND a.agent_id <> '00000000-0000-0000-0000-000000000000'
), lost AS (
    SELECT g.lost FROM gaps g WHERE g.agent_id IN (SELECT agent_id FROM fleet) AND g.received >= {begin} AND g.received < {end}
)
SELECT (SELECT count(*) FROM fleet) AS agents,
    (SELECT count(*) FROM fleet WHERE last_seen < now() - interval '1 day') AS silent,
    (SELECT count(*) FROM fleet WHERE abs(clock_offset_us) > 60000000) AS clocks_off,
    (SELECT count(DISTINCT agent_id) FROM agent_keys WHERE agent_id IN (SELECT agent_id FROM fleet)) AS enrolled,
    (SELECT count(*) FROM lost) AS gaps, (SELECT coalesce(sum(lost), 0)::bigint FROM lost) AS lost,
    (SELECT count(*) FROM lost WHERE lost IS NULL) AS unknown,
    (SELECT count(*) FROM forks WHERE agent_id IN (SELECT agent_id FROM fleet) AND seen >= {begin} AND seen < {end}) AS forks,
    (SELECT count(*) FROM audit_log WHERE time >= {begin} AND time < {end}) AS audit_records,
    (SELECT max(made) FROM checkpoints) AS checkpoint,
    (SELECT count(*) FROM erasures) AS erasures
"""
