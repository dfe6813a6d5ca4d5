"""Incidents as they are read: what is known of one is what its alerts within the caller's scope say."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from collector.store.events import Filter, Record, Scope, Where, fetch_bounded, where_of

if TYPE_CHECKING:
    from collector.store.database import Anyone, Connection


async def page(
    connection: "Connection", scope: Scope, states: Sequence[str], *, after: tuple[datetime, int] | None, limit: int
) -> Sequence[Record]:
    """Incidents by the time of their last event, latest first; `states`: those that have an alert in one of these."""
    w = where_of(Filter(scope=scope))
    w.any_of("e.state", "text", states)
    conditions = [f"EXISTS (SELECT FROM alerts e WHERE e.incident_id = i.incident_id AND {w})"]
    if after is not None:
        conditions.append(f"(i.last, i.incident_id) < ({w.bind(after[0])}::timestamptz, {w.bind(after[1])}::bigint)")
    return await _read(connection, w, " AND ".join(conditions), scope, limit)


async def one(connection: "Connection", incident_id: int, scope: Scope) -> Record | None:
    """An incident of which something lies within a scope."""
    w = Where()
    rows = await _read(connection, w, f"i.incident_id = {w.bind(incident_id)}::bigint", scope, 1)
    return rows[0] if rows and rows[0]["alerts"] else None


async def size(connection: "Anyone", incident_id: int) -> int:
    """Return how many alerts an incident has, whoever may see them."""
    found: int = await connection.fetchval("SELECT count(*) FROM alerts WHERE incident_id = $1", incident_id)
    return found


async def evidence_of(
    connection: "Anyone", *, alerts: Sequence[int], incidents: Sequence[int], limit: int
) -> tuple[list[str], list[int], list[int]]:
    """Identities of the events of alerts and incidents: what was counted in their alerts, the events that these name, and all events of
    the correlation ids that either has, at most `limit`; and which of the alerts and incidents there are.
    """
    rows = await connection.fetch(
        "SELECT alert_id, incident_id FROM alerts WHERE alert_id = ANY($1::bigint[]) OR incident_id = ANY($2::bigint[])",
        alerts,
        incidents,
    )
    chosen = [row["alert_id"] for row in rows]
    found = await connection.fetch(_EVIDENCE_OF, chosen, limit)
    return (
        [row["event_id"] for row in found],
        sorted(set(alerts) & set(chosen)),
        sorted(set(incidents) & {row["incident_id"] for row in rows}),
    )


async def _read(connection: "Connection", w: Where, condition: str, scope: Scope, limit: int) -> Sequence[Record]:
    inner = where_of(Filter(scope=scope), w.arguments)
    sql = _READ.format(inner=inner, condition=condition, limit=int(limit))
    return await fetch_bounded(connection, sql, w.arguments)


_READ = """
SELECT i.incident_id, i.opened, i.version, i.last AS position, s.* FROM (
    SELECT * FROM incidents i WHERE {condition} ORDER BY i.last DESC, i.incident_id DESC LIMIT {limit}
) i CROSS JOIN LATERAL (
    SELECT count(*) AS alerts, coalesce(sum(e.count), 0)::bigint AS events, min(e.first) AS first, max(e.time) AS last,
           max(e.severity) AS severity,
           count(*) FILTER (WHERE e.state = 'open') AS open, count(*) FILTER (WHERE e.state = 'acknowledged') AS acknowledged,
           count(*) FILTER (WHERE e.state = 'closed') AS closed,
           (array_agg(DISTINCT e.type))[:50] AS types, (array_agg(DISTINCT e.rule))[:50] AS rules,
           (array_remove(array_agg(DISTINCT e.assignee), NULL))[:50] AS assignees,
           (array_remove(array_agg(DISTINCT e.src_ip), NULL))[:50] AS addresses,
           (array_agg(DISTINCT concat_ws('/', nullif(p.site, ''), nullif(p.line, ''), nullif(p.station, ''))))[:50] AS places,
           (array_remove(array_agg(DISTINCT e.correlation_id), NULL))[:50] AS correlations,
           (array_agg(e.message ORDER BY e.severity DESC, e.alert_id))[1] AS title
    FROM alerts e JOIN places p ON p.place_id = e.place_id WHERE e.incident_id = i.incident_id AND {inner}
) s ORDER BY i.last DESC, i.incident_id DESC
"""

# An alert names its causes in its event's data as identities or as correlation ids, see agent/handlers/base.py and alert_reader.py.
_EVIDENCE_OF = """
WITH own AS MATERIALIZED (
    SELECT agent_id, buffer_id, lane, batch_no, batch_id, idx, correlation_id FROM alert_events WHERE alert_id = ANY($1::bigint[])
    ORDER BY batch_id, idx LIMIT $2
), said AS MATERIALIZED (
    SELECT data FROM alerts WHERE alert_id = ANY($1::bigint[])
    UNION ALL SELECT e.data FROM own JOIN security_events e USING (agent_id, batch_id, idx)
), named AS MATERIALIZED (
    SELECT DISTINCT v.value #>> '{}' AS name FROM said
    CROSS JOIN LATERAL (VALUES (said.data -> 'events'), (said.data -> 'causes'), (said.data -> 'correlations')) AS lists (list)
    CROSS JOIN LATERAL jsonb_array_elements(CASE WHEN jsonb_typeof(lists.list) = 'array' THEN lists.list ELSE '[]' END) AS v
    WHERE jsonb_typeof(v.value) = 'string'
), correlated AS MATERIALIZED (
    SELECT name FROM named WHERE name NOT LIKE '%/%/%/%/%'
    UNION SELECT correlation_id FROM own WHERE correlation_id IS NOT NULL
    UNION SELECT correlation_id FROM alerts WHERE alert_id = ANY($1::bigint[]) AND correlation_id IS NOT NULL
)
SELECT event_id FROM (
    SELECT concat_ws('/', agent_id, replace(buffer_id::text, '-', ''), lane, batch_no, idx) AS event_id FROM own
    UNION SELECT name FROM named WHERE name LIKE '%/%/%/%/%'
    UNION SELECT concat_ws('/', e.agent_id, replace(e.buffer_id::text, '-', ''), e.lane, e.batch_no, e.idx)
    FROM security_events e WHERE e.correlation_id IN (SELECT name FROM correlated)
) AS all_of_them ORDER BY event_id LIMIT $2
"""
