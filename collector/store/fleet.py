"""What is known of agents beside their batches: whether they are heard, and what the centre's rules remember of them."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from agent.wire import bounds
from collector.fleet_state import Contact
from collector.store.batches import CENTRE
from collector.store.events import Record, Scope, Where, scope_conditions

if TYPE_CHECKING:
    from collector.store.database import Anyone

KEY_CHARS_MAX = 300
"""What is longer is not counted: of such a key no index could be kept."""


async def agents(connection: "Anyone", scope: Scope, agent_id: UUID | None = None) -> Sequence[Record]:
    """All agents but the centre itself, each with its contact."""
    w = Where()
    w.conditions += scope_conditions(w, scope, "p.")
    w.add("a.agent_id <> {}::uuid", CENTRE)
    if agent_id is not None:
        w.add("a.agent_id = {}::uuid", agent_id)
    return await connection.fetch(f"{_AGENTS} WHERE {w} ORDER BY p.site, p.line, p.station, a.agent_id", *w.arguments)


async def keep_contacts(connection: "Anyone", contacts: Iterable[tuple[UUID, Contact]]) -> None:
    """Write what changed."""
    await connection.executemany(_PUT, [(number, c.state, c.since, c.good_since) for number, c in contacts])


async def note_stops(connection: "Anyone", stopped: dict[UUID, datetime | None]) -> None:
    """Note agents that said that they were stopped, or started."""
    await connection.executemany(_STOP, list(stopped.items()))


async def last_stops(connection: "Anyone", centre: UUID) -> dict[UUID, datetime | None]:
    """Return of each agent whether it last said that it was stopped, and when; None: that it was started."""
    rows = await connection.fetch(_LAST_STOPS, centre)
    return {row["agent_id"]: row["received"] if row["type"] == "agent.stopped" else None for row in rows}


async def raised(connection: "Anyone") -> dict[tuple[str, str], datetime]:
    """What rules have raised and is not over: rule and key → since when."""
    rows = await connection.fetch("SELECT rule, key, since FROM rule_states")
    return {(row["rule"], row["key"]): row["since"] for row in rows}


async def keep_raised(connection: "Anyone", began: Sequence[tuple[str, str]], over: Sequence[tuple[str, str]]) -> None:
    """Write what began and what is over."""
    await connection.executemany(
        "INSERT INTO rule_states (rule, key, since) VALUES ($1, $2, clock_timestamp()) ON CONFLICT DO NOTHING", began
    )
    await connection.executemany("DELETE FROM rule_states WHERE rule = $1 AND key = $2", over)


async def sight(connection: "Anyone", rule: str, key: str, picked: str, batches: Sequence[Record]) -> Sequence[str]:
    """Note where things were seen in these batches; what was seen.

    `key`, `picked`: SQL over the event `e` and its place `p`, constants of ours: what was seen, and which events count.
    """
    received = [batch["received"] for batch in batches]
    numbers = [batch["batch_id"] for batch in batches]
    found = await connection.fetch(
        _SIGHT.format(key=key, picked=picked), rule, numbers, min(received), max(received), CENTRE, KEY_CHARS_MAX
    )
    return sorted({row["key"] for row in found})


async def spreads(
    connection: "Anyone", rule: str, keys: Sequence[str], since: datetime, at_least: int
) -> Sequence[Record]:
    """Where each key was seen since then, of those that were seen at enough stations and are not raised."""
    return await connection.fetch(_SPREADS, rule, keys, since, at_least)


async def forget(connection: "Anyone", rule: str, before: datetime) -> None:
    """Let go what was not seen since then; what was raised for it is over."""
    await connection.execute("DELETE FROM rule_sightings WHERE rule = $1 AND seen < $2", rule, before)
    await connection.execute(
        "DELETE FROM rule_states s WHERE rule = $1 AND NOT EXISTS "
        "(SELECT FROM rule_sightings g WHERE g.rule = s.rule AND g.key = s.key)",
        rule,
    )


def status_of(row: Record) -> dict[str, Any]:
    """What the agent said of itself."""
    try:
        said = bounds.loads(row["status"]) if row["status"] else {}
    except ValueError:
        # Taken before a status had bounds. The next one that the agent sends replaces it.
        return {}
    return said if isinstance(said, dict) else {}


_AGENTS = """
SELECT a.agent_id, a.place_id, p.site, p.line, p.station, a.version, a.first_seen, a.last_seen, a.last_event, a.events, a.batches, a.gaps,
       a.clock_offset_us, a.status, a.revoked, c.state, c.since, c.good_since, c.stopped,
       (SELECT jsonb_agg(jsonb_build_object('buffer', replace(h.buffer_id::text, '-', ''), 'lane', h.lane, 'no', h.batch_no,
                                            'events', h.events, 'gaps', h.gaps) ORDER BY h.changed)
        FROM (SELECT * FROM batch_heads b WHERE b.agent_id = a.agent_id ORDER BY b.changed DESC LIMIT 20) h) AS streams,
       coalesce(o.open_alerts, 0) AS open_alerts
FROM agents a JOIN places p USING (place_id) LEFT JOIN agent_contact c USING (agent_id)
LEFT JOIN (
    SELECT CASE WHEN agent_id = '00000000-0000-0000-0000-000000000000' THEN target ELSE agent_id::text END AS about, count(*) AS open_alerts
    FROM alerts WHERE state <> 'closed' GROUP BY 1
) o ON o.about = a.agent_id::text
"""
_PUT = """
INSERT INTO agent_contact (agent_id, state, since, good_since) VALUES ($1, $2, $3, $4)
ON CONFLICT (agent_id) DO UPDATE SET state = excluded.state, since = excluded.since, good_since = excluded.good_since
"""
_STOP = """
INSERT INTO agent_contact (agent_id, state, since, stopped) VALUES ($1, 'online', clock_timestamp(), $2)
ON CONFLICT (agent_id) DO UPDATE SET stopped = excluded.stopped
"""
_LAST_STOPS = """
SELECT DISTINCT ON (agent_id) agent_id, type, received FROM security_events
WHERE type IN ('agent.started', 'agent.stopped') AND agent_id <> $1 ORDER BY agent_id, received DESC, batch_id DESC, idx DESC
"""
_SIGHT = """
INSERT INTO rule_sightings AS g (rule, key, member, place_id, seen, event, correlation_id)
SELECT $1, key, member, place_id, received, concat_ws('/', agent_id, replace(buffer_id::text, '-', ''), lane, batch_no, idx), correlation_id
FROM (
    SELECT DISTINCT ON (key, member) * FROM (
        SELECT ({key}) COLLATE "C" AS key,
               CASE WHEN p.station <> '' THEN concat_ws('/', p.site, p.line, p.station) ELSE e.agent_id::text END COLLATE "C" AS member,
               e.place_id, e.received, e.agent_id, e.buffer_id, e.lane, e.batch_no, e.batch_id, e.idx, e.correlation_id
        FROM security_events e JOIN places p ON p.place_id = e.place_id
        WHERE e.batch_id = ANY ($2::bigint[]) AND e.received BETWEEN $3 AND $4 AND e.agent_id <> $5 AND ({picked})
    ) seen WHERE length(key) <= $6
    ORDER BY key, member, received DESC, batch_id DESC, idx DESC
) last
ON CONFLICT (rule, key, member) DO UPDATE SET place_id = excluded.place_id, seen = greatest(g.seen, excluded.seen),
    event = excluded.event, correlation_id = excluded.correlation_id
RETURNING key
"""
_SPREADS = """
WITH many AS (
    SELECT g.key FROM rule_sightings g
    WHERE g.rule = $1 AND g.key = ANY ($2::text[]) AND g.seen >= $3
        AND NOT EXISTS (SELECT FROM rule_states s WHERE s.rule = g.rule AND s.key = g.key)
    GROUP BY g.key HAVING count(*) >= $4
)
SELECT g.key, array_agg(g.member ORDER BY g.member) AS members, array_agg(p.site ORDER BY g.member) AS sites,
       array_agg(p.line ORDER BY g.member) AS lines, array_agg(p.station ORDER BY g.member) AS stations,
       array_agg(g.event ORDER BY g.member) AS events,
       array_remove(array_agg(g.correlation_id ORDER BY g.member), NULL) AS correlations
FROM many JOIN rule_sightings g ON g.rule = $1 AND g.key = many.key AND g.seen >= $3 JOIN places p USING (place_id)
GROUP BY g.key
"""
