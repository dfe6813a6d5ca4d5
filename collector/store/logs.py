"""What leaves of the centre's own logs: the oldest records of the audit log, and incidents that were closed long ago.

Both go against a tombstone in the chain of tombstones (see retention.py), written in the transaction that takes them away; triggers refuse
every other way. The audit log goes from its beginning and month by month: all records before the first that is too young to go. They are
leaves of the Merkle tree before they go, so that a copy that was kept elsewhere can still be proven, and the tombstone holds the hashes at
both ends, so that the chain can be followed across it. While a legal hold stands, what was recorded since it was made stays.

An incident goes as a whole: its alerts, their history, what was counted in them. All of it has to be closed, nothing may have happened to
it for so long, and no event of it, nor one of the same correlation id, may be under a legal hold.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from collector.store import states, tree
from collector.store.alerts import READER_LOCK
from collector.store.database import translated
from collector.store.events import Where
from collector.store.retention import ADVISORY_LOCK, NEXT, STATEMENT_S_MAX, Action, Hold, bury, held_condition

if TYPE_CHECKING:
    from collector.store.database import Anyone
    from collector.store.retention import Sign

    Note = Callable[[Anyone, str, dict[str, Any]], Awaitable[object]]
    """Adds to the audit log what was done, in words of a name and data."""

AUDIT_DAYS_MIN = 365
"""The trigger of the audit log knows it too."""
RECORDS_MAX = 200_000
"""Audit records of one tombstone."""
INCIDENTS_MAX = 500
"""Incidents of one tombstone."""
ROUNDS_MAX = 100
"""Tombstones of one run; the rest is for the next."""


async def run(
    connection: "Anyone", *, audit_days: int, alert_days: int, holds: Sequence[Hold], dry: bool, sign: "Sign | None", note: "Note",
) -> list[Action]:  # fmt: skip
    """Do what is due, or with `dry` only say it. Nothing where another collector is at it."""
    actions: list[Action] = []
    with translated():
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", ADVISORY_LOCK):
            return actions
        try:
            actions += await _incidents(connection, alert_days, holds, dry=dry, sign=sign, note=note)
            actions += await _audit(connection, max(audit_days, AUDIT_DAYS_MIN), dry=dry, sign=sign, note=note)
        finally:
            if not connection.is_closed():
                await connection.execute("SELECT pg_advisory_unlock($1)", ADVISORY_LOCK)
    return actions


# ── the audit log ────────────────────────────────────────────────────────────────────────────────────────────────────


async def _audit(connection: "Anyone", days: int, *, dry: bool, sign: "Sign | None", note: "Note") -> list[Action]:
    limit: datetime = await connection.fetchval(_AUDIT_LIMIT, days)
    rule = f"audit log: {days} days"
    if dry:
        row = await connection.fetchrow(_STRETCH, limit, 2**63 - 1, 2**31 - 1, timeout=STATEMENT_S_MAX)
        return [Action(_day(row["youngest"]), "audit", rule, row["records"])] if row and row["records"] else []
    actions: list[Action] = []
    if await connection.fetchval("SELECT EXISTS (SELECT FROM audit_log WHERE time < $1)", limit):
        await tree.grow(connection)
    while len(actions) < ROUNDS_MAX and (action := await _stretch(connection, limit, rule, sign, note)) is not None:
        actions.append(action)
    return actions


async def _stretch(
    connection: "Anyone", limit: datetime, rule: str, sign: "Sign | None", note: "Note"
) -> Action | None:
    async with connection.transaction():
        reached = (await tree.state(connection)).audit
        row = await connection.fetchrow(_STRETCH, limit, reached, RECORDS_MAX, timeout=STATEMENT_S_MAX)
        if row is None or not row["records"]:
            return None
        action = Action(_day(row["youngest"]), "audit", rule, row["records"])
        said = {name: row[name] for name in ("first", "last", "records", "prev", "hash")}
        # What these records alone say of keys, users and the like stays known: `verify` holds the rows against it.
        carried = await states.leaving(connection, row["last"])
        number: int = await connection.fetchval(NEXT)
        await bury(connection, number, action, "", [said], None, sign)
        await connection.execute(
            "DELETE FROM audit_log WHERE no BETWEEN $1 AND $2", row["first"], row["last"], timeout=STATEMENT_S_MAX
        )
        told = {"tombstone": number, "first": row["first"], "last": row["last"], "until": row["youngest"].isoformat()}
        for piece in carried:
            await note(connection, "audit.carried", {"tombstone": number, "state": piece})
        await note(connection, "audit.retention", {**told, "hash": row["hash"], "rule": rule})
    return action


def _day(moment: datetime) -> Any:
    return moment.astimezone(UTC).date()


# ── incidents ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _incidents(
    connection: "Anyone", days: int, holds: Sequence[Hold], *, dry: bool, sign: "Sign | None", note: "Note"
) -> list[Action]:
    rule = f"closed incidents: {days} days"
    limit: datetime = await connection.fetchval("SELECT now() - make_interval(days => $1)", days)
    condition, arguments = _over(limit, holds)
    if dry:
        sql = f"SELECT count(*) AS incidents, max(i.last) AS youngest FROM incidents i WHERE {condition}"
        row = await connection.fetchrow(sql, *arguments, timeout=STATEMENT_S_MAX)
        return [Action(_day(row["youngest"]), "alerts", rule, row["incidents"])] if row and row["incidents"] else []
    actions: list[Action] = []
    for _ in range(ROUNDS_MAX):
        async with connection.transaction():
            action = await _leave(connection, (condition, arguments), rule, sign, note)
        if action is None:
            break
        actions.append(action)
    return actions


def _over(limit: datetime, holds: Sequence[Hold]) -> tuple[str, list[Any]]:
    """The condition under which an incident `i` goes, and what is bound in it."""
    w = Where()
    before = f"{w.bind(limit)}::timestamptz"
    held = held_condition(w, holds)
    return _OVER.format(before=before, held=held if holds else "false"), w.arguments


async def _leave(
    connection: "Anyone", over: tuple[str, list[Any]], rule: str, sign: "Sign | None", note: "Note"
) -> Action | None:
    condition, arguments = over
    # Nobody counts an event in them meanwhile, and nobody opens one of them again.
    await connection.execute("SELECT pg_advisory_xact_lock($1)", READER_LOCK)
    sql = f"SELECT i.incident_id FROM incidents i WHERE {condition} ORDER BY i.incident_id LIMIT {INCIDENTS_MAX}"
    chosen = [row[0] for row in await connection.fetch(sql, *arguments, timeout=STATEMENT_S_MAX)]
    for table, key in (("alerts", "alert_id"), ("incidents", "incident_id")):
        lock = f"SELECT FROM {table} WHERE incident_id = ANY ($1::bigint[]) ORDER BY {key} FOR UPDATE"
        await connection.execute(lock, chosen)
    again = f"{condition} AND i.incident_id = ANY (${len(arguments) + 1}::bigint[])"
    sql = f"SELECT i.incident_id, i.last FROM incidents i WHERE {again} ORDER BY i.incident_id"
    rows = await connection.fetch(sql, *arguments, chosen, timeout=STATEMENT_S_MAX)
    if not rows:
        return None
    going = [row["incident_id"] for row in rows]
    said = dict(await connection.fetchrow(_SAID, going, timeout=STATEMENT_S_MAX) or {})
    action = Action(_day(max(row["last"] for row in rows)), "alerts", rule, len(going))
    number: int = await connection.fetchval(NEXT)
    await bury(connection, number, action, "", [{"incidents": going, **said}], None, sign)
    for statement in _LEAVE:
        await connection.execute(statement, going, timeout=STATEMENT_S_MAX)
    told = {"tombstone": number, "incidents": len(going), **said, "rule": rule}
    await note(connection, "alerts.retention", told)
    return action


# Whole months, and nothing that was recorded since the oldest hold was made that still stands.
_AUDIT_LIMIT = """
SELECT least(
    date_trunc('month', (now() - make_interval(days => $1)) AT TIME ZONE 'UTC') AT TIME ZONE 'UTC',
    (SELECT min(created) FROM legal_holds WHERE released IS NULL)
)
"""
# From the beginning up to the first record that is too young, the last of all, and what the tree has not got yet.
_STRETCH = """
WITH bound AS (
    SELECT least(
        $2::bigint,
        coalesce((SELECT no FROM audit_log WHERE time >= $1::timestamptz ORDER BY no LIMIT 1), 9223372036854775807) - 1,
        (SELECT no FROM audit_head) - 1,
        (SELECT min(no) FROM audit_log) + $3::integer - 1
    ) AS last
)
SELECT count(*) AS records, min(no) AS first, max(no) AS last, max(time) AS youngest,
    encode((array_agg(prev ORDER BY no))[1], 'hex') AS prev, encode((array_agg(hash ORDER BY no DESC))[1], 'hex') AS hash
FROM audit_log WHERE no <= (SELECT last FROM bound)
"""
# An alert says little of what an event says; the columns that it lacks are null, and what is null holds nothing.
_OVER = """
i.last < {before} AND NOT EXISTS (
    SELECT FROM alerts a WHERE a.incident_id = i.incident_id
        AND (a.state <> 'closed' OR a.changed >= {before} OR a.received >= {before} OR a.quiet_until > now())
) AND NOT EXISTS (SELECT FROM alert_history h WHERE h.incident_id = i.incident_id AND h.at >= {before})
AND NOT EXISTS (
    SELECT FROM (
        SELECT a.*, NULL::text AS actor, NULL::text AS raw FROM alerts a WHERE a.incident_id = i.incident_id
    ) e WHERE {held}
) AND NOT EXISTS (
    SELECT FROM alerts a JOIN alert_events c ON c.alert_id = a.alert_id
        JOIN security_events e ON e.received = c.received AND e.batch_id = c.batch_id AND e.idx = c.idx
    WHERE a.incident_id = i.incident_id AND ({held})
) AND NOT EXISTS (
    SELECT FROM alerts a JOIN alert_events c ON c.alert_id = a.alert_id JOIN security_events e ON e.correlation_id = c.correlation_id
    WHERE a.incident_id = i.incident_id AND ({held})
)
"""
# Lines of the history by which a copy that was kept elsewhere is known again.
_SAID = """
SELECT (SELECT count(*) FROM alerts WHERE incident_id = ANY ($1::bigint[])) AS alerts,
    (SELECT count(*) FROM alert_events c JOIN alerts a USING (alert_id) WHERE a.incident_id = ANY ($1::bigint[])) AS alert_events,
    count(*) AS history,
    encode(sha256(convert_to(coalesce(string_agg(concat_ws(' ', history_id, coalesce(alert_id, 0), incident_id,
        (extract(epoch FROM at) * 1000000)::bigint, to_json(who), who_kind, action, coalesce(from_state, '-'),
        coalesce(to_state, '-'), data),
        E'\\n' ORDER BY history_id), ''), 'UTF8')), 'hex') AS history_hash
FROM alert_history WHERE incident_id = ANY ($1::bigint[])
"""
_OF_THEM = "alert_id IN (SELECT alert_id FROM alerts WHERE incident_id = ANY ($1::bigint[]))"
_LEAVE = (
    f"DELETE FROM notification_outbox WHERE {_OF_THEM}",
    f"DELETE FROM alert_events WHERE {_OF_THEM}",
    "DELETE FROM alert_history WHERE incident_id = ANY ($1::bigint[])",
    "DELETE FROM alerts WHERE incident_id = ANY ($1::bigint[])",
    "DELETE FROM incident_keys WHERE incident_id = ANY ($1::bigint[])",
    "DELETE FROM incidents WHERE incident_id = ANY ($1::bigint[])",
)
