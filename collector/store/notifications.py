"""Notifications: from the outbox, which is written with the alerts, to messages, and how far each of these is.

One at a time puts messages of a target together (an advisory lock); what is being tried has its next try in the future, so that nobody else
tries it. Who dies between sending and marking leaves a message that is sent again when that time has come: with the same id.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from collector.store.events import Record, Scope, Where, scope_conditions

if TYPE_CHECKING:
    from collector.store.database import Anyone

LOCK = 0x4C57_0007
TAKEN_MAX = 50_000
"""Alerts that one message stands for at most."""
KEPT_DAYS = 90


@dataclass(frozen=True, slots=True)
class Taken:
    """What a message will be about."""

    message_id: UUID
    alerts: list[Record]
    count: int


async def put_together(connection: "Anyone", target: str, *, per_minute_max: int, listed_max: int) -> Taken | None:
    """Take what waits for a target into a new message, within the caller's transaction; None: nothing waits, or not yet."""
    if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1, hashtext($2))", LOCK, target):
        return None
    row = await connection.fetchrow(_STATE, target)
    if row is None or not row["waits"] or row["lately"] >= per_minute_max:
        return None
    message_id: UUID = await connection.fetchval(
        "INSERT INTO notification_messages (target, alerts, body) VALUES ($1, 0, '{}') RETURNING message_id", target
    )
    count: int = await connection.fetchval(_TAKE, target, message_id, TAKEN_MAX)
    alerts = await connection.fetch(_LISTED, message_id, listed_max)
    return Taken(message_id, list(alerts), count)


async def keep_body(connection: "Anyone", message_id: UUID, count: int, body: dict[str, Any]) -> None:
    """What the message says, at each try the same."""
    await connection.execute(
        "UPDATE notification_messages SET alerts = $2, body = $3::text::jsonb WHERE message_id = $1",
        message_id,
        count,
        json.dumps(body),
    )


async def claim(connection: "Anyone", target: str, lease_s: float) -> Record | None:
    """A message that is due, for so long nobody else's."""
    return await connection.fetchrow(_CLAIM, target, lease_s)


async def sent(connection: "Anyone", message_id: UUID) -> None:
    """It was taken."""
    await connection.execute(
        "UPDATE notification_messages SET state = 'sent', done = now(), trouble = NULL WHERE message_id = $1",
        message_id,
    )


async def failed(connection: "Anyone", message_id: UUID, trouble: str, wait_s: float | None) -> None:
    """It was not; None: it is given up."""
    await connection.execute(_FAILED, message_id, trouble, wait_s)


async def targets(connection: "Anyone") -> Sequence[Record]:
    """How far each target is."""
    return await connection.fetch(_TARGETS)


async def messages(connection: "Anyone", *, state: str | None, limit: int) -> Sequence[Record]:
    """The latest messages."""
    return await connection.fetch(_MESSAGES, state, limit)


async def again(connection: "Anyone", message_id: UUID) -> bool:
    """Try a dead message again from now on; False where there is none."""
    done = await connection.fetchval(
        "UPDATE notification_messages SET state = 'waiting', attempts = 0, next_try = now(), done = NULL "
        "WHERE message_id = $1 AND state = 'dead' RETURNING message_id",
        message_id,
    )
    return done is not None


async def clean(connection: "Anyone") -> None:
    """Let old messages go."""
    await connection.execute(
        f"DELETE FROM notification_outbox o USING notification_messages m WHERE m.message_id = o.message_id "
        f"AND m.state <> 'waiting' AND m.made < now() - interval '{KEPT_DAYS} days'"
    )
    await connection.execute(
        f"DELETE FROM notification_messages m WHERE state <> 'waiting' AND made < now() - interval '{KEPT_DAYS} days' "
        "AND NOT EXISTS (SELECT FROM notification_outbox o WHERE o.message_id = m.message_id)"
    )


def everywhere(scope: Scope) -> bool:
    """Whether a scope holds every place: messages tell of all of them."""
    w = Where()
    return not scope_conditions(w, scope)


_STATE = """
SELECT EXISTS (SELECT FROM notification_outbox WHERE target = $1 AND message_id IS NULL) AS waits,
       (SELECT count(*) FROM notification_messages WHERE target = $1 AND made > now() - interval '1 minute') AS lately
"""
_TAKE = """
WITH taken AS (
    UPDATE notification_outbox SET message_id = $2
    WHERE outbox_id IN (SELECT outbox_id FROM notification_outbox WHERE target = $1 AND message_id IS NULL ORDER BY outbox_id LIMIT $3)
    RETURNING alert_id
) SELECT count(DISTINCT alert_id) FROM taken
"""
_LISTED = """
SELECT a.alert_id, a.incident_id, a.severity, a.type, a.rule, a.message, a.src_ip, a.target, a.count, a.state, a.first, a.time AS last,
       p.site, p.line, p.station, o.why
FROM (SELECT alert_id, max(why) AS why FROM notification_outbox WHERE message_id = $1 GROUP BY alert_id) o
JOIN alerts a USING (alert_id) JOIN places p USING (place_id)
ORDER BY a.severity DESC, a.alert_id LIMIT $2
"""
_CLAIM = """
UPDATE notification_messages SET attempts = attempts + 1, next_try = clock_timestamp() + make_interval(secs => $2)
WHERE message_id = (
    SELECT message_id FROM notification_messages WHERE target = $1 AND state = 'waiting' AND next_try <= clock_timestamp()
    ORDER BY next_try LIMIT 1 FOR UPDATE SKIP LOCKED
) RETURNING message_id, attempts, body
"""
_FAILED = """
UPDATE notification_messages SET trouble = $2, state = CASE WHEN $3::float8 IS NULL THEN 'dead' ELSE 'waiting' END,
    done = CASE WHEN $3::float8 IS NULL THEN now() END,
    next_try = clock_timestamp() + make_interval(secs => coalesce($3::float8, 0))
WHERE message_id = $1 AND state = 'waiting'
"""
_TARGETS = """
SELECT t.target, (SELECT count(*) FROM notification_outbox o WHERE o.target = t.target AND o.message_id IS NULL) AS alerts_waiting,
       count(m.message_id) FILTER (WHERE m.state = 'waiting') AS waiting, count(m.message_id) FILTER (WHERE m.state = 'sent') AS sent,
       count(m.message_id) FILTER (WHERE m.state = 'dead') AS dead, max(m.done) FILTER (WHERE m.state = 'sent') AS last_sent,
       (array_agg(m.trouble ORDER BY m.made DESC) FILTER (WHERE m.trouble IS NOT NULL))[1] AS trouble
FROM (SELECT DISTINCT target FROM notification_messages UNION SELECT DISTINCT target FROM notification_outbox) t
LEFT JOIN notification_messages m USING (target) GROUP BY t.target ORDER BY t.target
"""
_MESSAGES = """
SELECT message_id, target, made, alerts, state, attempts, next_try, trouble, done FROM notification_messages
WHERE $1::text IS NULL OR state = $1 ORDER BY made DESC LIMIT $2
"""
