"""Reading what is known of the fleet."""

from typing import TYPE_CHECKING, Any
from uuid import UUID

from collector.store.events import Scope, Where, scope_conditions

if TYPE_CHECKING:
    from collector.store.database import Anyone

_AGENTS = """
SELECT a.agent_id, p.site, p.line, p.station, a.version, a.first_seen, a.last_seen, a.last_event, a.events, a.batches, a.gaps,
       a.clock_offset_us, a.status,
       (SELECT jsonb_agg(jsonb_build_object('buffer', replace(h.buffer_id::text, '-', ''), 'lane', h.lane, 'no', h.batch_no,
                                            'events', h.events, 'gaps', h.gaps) ORDER BY h.changed)
        FROM (SELECT * FROM batch_heads b WHERE b.agent_id = a.agent_id ORDER BY b.changed DESC LIMIT 20) h) AS streams
FROM agents a JOIN places p USING (place_id)
"""


async def everyone(connection: "Anyone", scope: Scope) -> list[dict[str, Any]]:
    """All agents within a scope. `status` and `streams` are JSON as text."""
    w = Where()
    w.conditions += scope_conditions(w, scope, "p.")
    order = "ORDER BY p.site, p.line, p.station, a.agent_id"
    return [dict(row) for row in await connection.fetch(f"{_AGENTS} WHERE {w} {order}", *w.arguments)]


async def seen(connection: "Anyone", agent_id: UUID, scope: Scope) -> bool:
    """Whether an agent is known and stands within a scope now."""
    w = Where()
    w.add("a.agent_id = {}::uuid", agent_id)
    w.conditions += scope_conditions(w, scope, "p.")
    sql = f"SELECT EXISTS (SELECT FROM agents a JOIN places p USING (place_id) WHERE {w})"
    return bool(await connection.fetchval(sql, *w.arguments))
