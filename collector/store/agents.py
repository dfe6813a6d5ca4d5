"""Reading what is known of the fleet."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collector.store.database import Anyone

_AGENTS = """
SELECT a.agent_id, p.site, p.line, p.station, a.version, a.first_seen, a.last_seen, a.last_event, a.events, a.batches, a.gaps,
       a.clock_offset_us, a.status,
       (SELECT jsonb_agg(jsonb_build_object('buffer', replace(h.buffer_id::text, '-', ''), 'lane', h.lane, 'no', h.batch_no,
                                            'events', h.events, 'gaps', h.gaps) ORDER BY h.changed)
        FROM batch_heads h WHERE h.agent_id = a.agent_id) AS streams
FROM agents a JOIN places p USING (place_id)
WHERE ($1 = '' OR p.site = $1) AND ($2 = '' OR p.line = $2) AND ($3 = '' OR p.station = $3)
ORDER BY p.site, p.line, p.station, a.agent_id
"""


async def everyone(connection: "Anyone", scope: tuple[str, str, str]) -> list[dict[str, Any]]:
    """All agents within a scope of site, line, station (empty: all). `status` and `streams` are JSON as text."""
    return [dict(row) for row in await connection.fetch(_AGENTS, *scope)]
