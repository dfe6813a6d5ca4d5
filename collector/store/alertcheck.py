"""Reading what `verify` holds alerts and their history against: each other, the events that they count, and the audit log."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from collector.store.alerts import STANDING_SQL
from collector.store.readers import UNREAD_DAYS
from collector.store.stream import Cursor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collector.store.database import Anyone

FOUND_MAX = 1_000
"""Of one kind; the rest is left out."""
YOUNGEST_DAYS = 30
"""An incident that leaves was closed for at least so long: [retention] alert_days."""
STATEMENT_S_MAX = 3_600.0


class Read(NamedTuple):
    """What the reader of alerts has read for certain: batches of transactions from `first` on and before `end`."""

    first: int
    end: int


async def standing_differs(connection: "Anyone") -> "Sequence[Any]":
    """Alerts that do not stand where the last line of their history left them."""
    return await connection.fetch(_STANDING, timeout=STATEMENT_S_MAX)


async def content_differs(connection: "Anyone") -> "Sequence[Any]":
    """Alerts that do not say what their events say, or count another number of them; with `columns`."""
    return await connection.fetch(_CONTENT, timeout=STATEMENT_S_MAX)


async def counted_nothing(connection: "Anyone") -> "Sequence[Any]":
    """What is counted in an alert and is no event: its batch is not kept, though its day is."""
    return await connection.fetch(_NOTHING, timeout=STATEMENT_S_MAX)


async def read_until(connection: "Anyone") -> Read | None:
    """How far the reader is; None where it has read nothing yet."""
    row = await connection.fetchrow("SELECT cursor, start FROM alert_reader")
    if row is None or row["cursor"] is None:
        return None
    cursor = msgspec.json.decode(row["cursor"], type=Cursor)
    return Read(int(row["start"].split(":")[1]), cursor.base.xmin)


async def uncounted(connection: "Anyone", read: Read) -> "Sequence[Any]":
    """Alert events that the reader has read and no alert counts.

    Where incidents left, only those too young to be of them; and none of which it is known that the reader could not read it, as long as
    that is known, nor those that are about to be read again.
    """
    left: datetime | None = await connection.fetchval("SELECT max(made) FROM tombstones WHERE kind = 'alerts'")
    since = datetime.now(UTC) - timedelta(days=UNREAD_DAYS - 10)
    since = max(since, left - timedelta(days=YOUNGEST_DAYS)) if left is not None else since
    return await connection.fetch(_UNCOUNTED, since, str(read.first), str(read.end), timeout=STATEMENT_S_MAX)


async def lines(connection: "Anyone") -> "Sequence[Any]":
    """The history: of people all of it, of the collector what closes, or is of an action that it does not do."""
    return await connection.fetch(_LINES, timeout=STATEMENT_S_MAX)


async def actions(connection: "Anyone") -> "Sequence[Any]":
    """Audit records of work on alerts and incidents, oldest first."""
    return await connection.fetch(_ACTIONS, timeout=STATEMENT_S_MAX)


async def oldest_record(connection: "Anyone") -> datetime | None:
    """When the oldest audit record that is kept was made, where older ones have left."""
    row = await connection.fetchrow("SELECT no, time FROM audit_log ORDER BY no LIMIT 1")
    return row["time"] if row is not None and row["no"] > 1 else None


async def alerts_there(connection: "Anyone") -> tuple[set[int], bool]:
    """Numbers of the alerts that are kept, and whether retention ever took some."""
    rows = await connection.fetch("SELECT alert_id FROM alerts", timeout=STATEMENT_S_MAX)
    gone: bool = await connection.fetchval("SELECT EXISTS (SELECT FROM tombstones WHERE kind = 'alerts')")
    return {row[0] for row in rows}, gone


async def cleared(connection: "Anyone", identities: "Sequence[str]") -> set[str]:
    """Which of these identities of the collector's events say that something is over, or lie on a day that has left."""
    rows = await connection.fetch(_CLEARED, list(identities), timeout=STATEMENT_S_MAX)
    return {row[0] for row in rows}


# Alerts from before the history held where they stand, and of which nothing was done since, have nothing to be held against.
_STANDING = f"""
SELECT a.alert_id FROM alerts a LEFT JOIN LATERAL (
    SELECT h.data->>'standing' AS standing FROM alert_history h WHERE h.alert_id = a.alert_id AND h.data ? 'standing'
    ORDER BY h.history_id DESC LIMIT 1
) h ON true WHERE h.standing IS DISTINCT FROM {STANDING_SQL}
    AND NOT (h.standing IS NULL AND a.opened < (SELECT applied FROM schema_migrations WHERE name LIKE '%_verify_runs.sql'))
ORDER BY 1 LIMIT {FOUND_MAX}
"""
# The greatest severity is only known where every event is still there.
_CONTENT = f"""
SELECT a.alert_id, array_remove(ARRAY[
    CASE WHEN a.count <> c.counted THEN 'count' END,
    CASE WHEN c.kept > 0 AND c.types IS DISTINCT FROM ARRAY[a.type] THEN 'type' END,
    CASE WHEN c.kept > 0 AND c.agents IS DISTINCT FROM ARRAY[a.agent_id] THEN 'agent_id' END,
    CASE WHEN c.kept > 0 AND c.addresses IS DISTINCT FROM ARRAY[coalesce(a.src_ip, '')] THEN 'src_ip' END,
    CASE WHEN c.kept > 0 AND c.targets IS DISTINCT FROM ARRAY[coalesce(a.target, '')] THEN 'target' END,
    CASE WHEN c.kept = c.counted AND c.severity IS DISTINCT FROM a.severity THEN 'severity' END,
    CASE WHEN c.kept = c.counted AND NOT coalesce(a.message, '') = ANY (c.messages) THEN 'message' END
], NULL) AS columns
FROM alerts a LEFT JOIN LATERAL (
    SELECT count(*) AS counted, count(e.batch_id) AS kept, max(e.severity) AS severity,
        array_agg(DISTINCT e.type) FILTER (WHERE e.batch_id IS NOT NULL) AS types,
        array_agg(DISTINCT e.agent_id) FILTER (WHERE e.batch_id IS NOT NULL) AS agents,
        array_agg(DISTINCT coalesce(e.src_ip, '')) FILTER (WHERE e.batch_id IS NOT NULL) AS addresses,
        array_agg(DISTINCT coalesce(e.target, '')) FILTER (WHERE e.batch_id IS NOT NULL) AS targets,
        array_agg(DISTINCT coalesce(e.message, '')) FILTER (WHERE e.batch_id IS NOT NULL) AS messages
    FROM alert_events x LEFT JOIN security_events e ON e.received = x.received AND e.batch_id = x.batch_id AND e.idx = x.idx
    WHERE x.alert_id = a.alert_id
) c ON true
WHERE a.count <> c.counted OR (c.kept > 0 AND (
    c.types IS DISTINCT FROM ARRAY[a.type] OR c.agents IS DISTINCT FROM ARRAY[a.agent_id]
    OR c.addresses IS DISTINCT FROM ARRAY[coalesce(a.src_ip, '')] OR c.targets IS DISTINCT FROM ARRAY[coalesce(a.target, '')]
)) OR (c.kept = c.counted AND c.kept > 0 AND (
    c.severity IS DISTINCT FROM a.severity OR NOT coalesce(a.message, '') = ANY (c.messages)
)) ORDER BY 1 LIMIT {FOUND_MAX}
"""
_NOTHING = f"""
SELECT x.alert_id, x.batch_id, x.idx, x.agent_id, x.buffer_id, x.lane, x.batch_no FROM alert_events x
WHERE NOT EXISTS (SELECT FROM evidence v WHERE v.batch_id = x.batch_id AND v.received = x.received AND x.idx < v.events)
    AND NOT EXISTS (SELECT FROM tombstones t WHERE t.kind IN ('dropped', 'deleted') AND t.day = (x.received AT TIME ZONE 'UTC')::date)
ORDER BY 1, 2, 3 LIMIT {FOUND_MAX}
"""
_UNCOUNTED = f"""
SELECT e.agent_id, e.buffer_id, e.lane, e.batch_no, e.idx, e.type FROM security_events e
JOIN evidence v ON v.batch_id = e.batch_id AND v.received = e.received
WHERE (e.type = 'alert' OR e.type LIKE 'alert.%') AND e.received >= $1
    AND v.xid >= $2::text::xid8 AND v.xid < $3::text::xid8
    AND NOT (e.agent_id = '00000000-0000-0000-0000-000000000000' AND e.data->>'cleared' IS NOT DISTINCT FROM 'true')
    AND NOT EXISTS (SELECT FROM alert_events x WHERE x.batch_id = e.batch_id AND x.idx = e.idx)
    AND NOT EXISTS (SELECT FROM unread_events u WHERE u.reader = 'alerts' AND u.batch_id = e.batch_id AND u.idx IN (-1, e.idx))
    AND e.batch_id > coalesce((SELECT reread_to FROM alert_reader WHERE reread IS NOT NULL), 0)
ORDER BY e.batch_id, e.idx LIMIT {FOUND_MAX}
"""
_LINES = """
SELECT history_id, alert_id, incident_id, at, who, who_kind, action, data->>'selection' AS selection, data->>'event' AS event,
    CASE WHEN data->>'standing' ~ '[|][0-9]{1,9}$' THEN substring(data->>'standing' FROM '[|]([0-9]{1,9})$')::bigint END AS version
FROM alert_history WHERE who_kind <> 'system' OR action NOT IN ('open', 'reopen') ORDER BY history_id
"""
_ACTIONS = """
SELECT no, time, who, action, target, data->>'version' AS version, data->>'changed' AS changed, data->>'alerts' AS alerts
FROM audit_log WHERE action COLLATE "C" >= 'alert.' AND action COLLATE "C" < 'alert/' AND result = 'success'
    OR action COLLATE "C" >= 'alerts.' AND action COLLATE "C" < 'alerts/' AND action <> 'alerts.retention'
    OR action COLLATE "C" >= 'incident.' AND action COLLATE "C" < 'incident/' ORDER BY no
"""
_CLEARED = """
SELECT i.identity FROM unnest($1::text[]) AS i (identity)
CROSS JOIN LATERAL string_to_array(i.identity, '/') AS p (part)
WHERE array_length(p.part, 1) = 5 AND p.part[1] = '00000000-0000-0000-0000-000000000000' AND (
    EXISTS (
        SELECT FROM evidence v JOIN security_events e ON e.batch_id = v.batch_id AND e.received = v.received
        WHERE v.agent_id = p.part[1]::uuid AND v.buffer_id = p.part[2]::uuid AND v.lane = p.part[3]::smallint
            AND v.batch_no = p.part[4]::bigint AND e.idx = p.part[5]::integer AND e.data->>'cleared' = 'true')
    OR EXISTS (SELECT FROM tombstones t WHERE t.kind IN ('dropped', 'deleted'))
)
"""
