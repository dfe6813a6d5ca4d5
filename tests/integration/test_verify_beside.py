"""What `verify` holds beside rows and frames: keys, users, roles, tokens, agents, suppressions, holds, erasures, alerts and their history,
roll-ups, triggers. Whoever owns the tables changes each, with the triggers off; each is found by name, and all is put back.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.simulator.postgres import Postgres
from agent.wire.signature import key_id_of
from collector import app, audit, enrol, subject
from collector.accounts import recorded_key
from collector.alert_reader import AlertReader, AlertSettings
from collector.alert_state import Action
from collector.app import migrate_at
from collector.audit import Who
from collector.evidence import rollupcheck
from collector.evidence.alertcheck import alert_findings
from collector.evidence.finding import Finding
from collector.evidence.statecheck import state_findings
from collector.evidence.verify import Wanted, verify
from collector.rules import RulesSettings
from collector.store import alerts, identity, keys, partitions, retention, rollups, schema, sessions, states, users
from collector.store.database import Database
from collector.store.events import ALL, Filter
from collector.store.identity import Proof
from tests.collector_process import Chain
from tests.evidence import fill, store
from tests.integration.test_alerts import alert
from tests.postgres import connected

AGENT = UUID("11111111-1111-4111-8111-111111111111")
SIGNER = UUID("33333333-3333-4333-8333-333333333333")
ANN = Who("ann", "user", "analyst")


async def _key(connection: Any, role: Any, site: str = "") -> keys.Key:
    _, key = await keys.create(connection, role=role, name="k", site=site, line="", station="", expires=None)
    await recorded_key(connection, Who.command(), key)
    return key


async def _enrolled(connection: Any, agent: UUID, *, known: bool) -> None:
    word, token = await identity.create_token(
        connection, site="s", line="", station="", agent_id=agent if known else None, expires=timedelta(hours=1), by="t"
    )
    await audit.record(
        connection, Who.command(), "token.create", target=token.prefix, objects=[("token", token.prefix)]
    )
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    proof = Proof(agent, key_id_of(public), public, public.hex(), private.sign(public.hex().encode()))
    await identity.enrol(connection, prefix=token.prefix, secret=word.partition(".")[2], proof=proof)
    objects = [("agent", str(agent)), ("token", token.prefix)]
    await audit.record(connection, Who.command(), "agent.enrol", target=str(agent), objects=objects)


async def _people(connection: Any) -> None:
    """A viewer of one site who has codes and is signed in, an admin who is shut out; keys, of which one is revoked."""
    for name, role in (("viewer", "viewer"), ("former", "admin")):
        user = await users.create(connection, name=name, role=role, scopes=(("north", "", ""),), password="$argon2id$x")  # type: ignore[arg-type]
        await audit.record(
            connection, Who.command(), "user.created", target=name, objects=[("user", str(user.user_id))]
        )
    viewer, former = await users.find(connection, "viewer"), await users.find(connection, "former")
    assert viewer is not None
    assert former is not None
    await users.set_totp(connection, viewer.user_id, b"sealed")
    await users.confirm_totp(connection, viewer.user_id, [b"1" * 32, b"2" * 32])
    await audit.record(
        connection, Who.command(), "user.totp.enabled", target="viewer", objects=[("user", str(viewer.user_id))]
    )
    await users.change(connection, former.user_id, role="admin", display="", disabled=True)
    await audit.record(
        connection, Who.command(), "user.disabled", target="former", objects=[("user", str(former.user_id))]
    )
    await sessions.begin(
        connection, b"h" * 32, viewer.user_id, method="password", address="", user_agent="", idle=timedelta(hours=1),
        lasts=timedelta(hours=2), keep=5,
    )  # fmt: skip
    named = [("session", states.session_name(b"h" * 32))]
    await audit.record(connection, Who("viewer", "user"), "session.created", target="viewer", objects=named)
    await _key(connection, "viewer", "north")
    revoked = await _key(connection, "admin")
    await keys.revoke(connection, revoked.prefix)
    await audit.record(
        connection, Who.command(), "key.revoked", target=revoked.prefix, objects=[("key", revoked.prefix)]
    )


async def _things(connection: Any) -> None:
    """Agents of which one is revoked, a token, a suppression that was ended and one that holds, a legal hold, an erasure."""
    await _enrolled(connection, SIGNER, known=False)
    await _enrolled(connection, SIGNER, known=True)
    gone = uuid4()
    await _enrolled(connection, gone, known=False)
    await enrol.revoke(connection, gone, Who.command())
    for ends in (False, True):
        made = await alerts.suppress(
            connection, query="type=x", scope=ALL, comment="c", who="ann", expires=datetime.now(UTC) + timedelta(days=1)
        )
        assert made is not None
        named = [("suppression", str(made["suppression_id"]))]
        await audit.record(connection, ANN, "suppression.created", objects=named)
        if ends:
            await alerts.end_suppression(connection, made["suppression_id"], "ann")
            await audit.record(connection, ANN, "suppression.ended", objects=named)
    hold = await retention.hold(connection, "case", "type=nothing")
    await audit.record(connection, Who.command(), "hold.created", objects=[("hold", str(hold))])
    number = await subject.request(connection, Who.command(), ["eve"], "case 7", [])
    await subject.confirm(connection, Who("other", "user"), number, [], two_persons=True)
    await subject.run(connection, Who.command(), number, [])


async def _alerts(dsn: str, connection: Any) -> None:
    """Alerts of an agent: one closed by hand, one of several events, one closed with others; and roll-ups that are folded."""
    await store(
        connection,
        Chain(str(AGENT), lane=0).seal([alert(src_ip=f"10.0.0.{n % 3}", severity=4 + n % 2) for n in range(9)]),
    )
    database = Database(dsn, pool_size=2, synchronous_commit="on")
    await database.open()
    try:
        reader = AlertReader(database, AlertSettings(), RulesSettings(), [])
        while await reader.step():
            pass
    finally:
        await database.close()
    now = datetime.now(UTC)
    async with connection.transaction():
        row = await alerts.one(connection, 1, ALL, lock=True)
        assert row is not None
        done = await alerts.change(connection, row, Action(verb="close", reason="benign"), ("ann", "user"), now)
        told = {"version": done.after.version}
        await audit.record(connection, ANN, "alert.close", target="alert/1", data=told)
    async with connection.transaction():
        chosen = await alerts.select(connection, alerts.Wanted(events=Filter(scope=ALL), states=("open",)), "", "ann")
        selection = await alerts.lock_selection(connection, chosen.selection_id, "ann")
        assert selection is not None
        changed, left = await alerts.apply(connection, selection, Action(verb="acknowledge"), ("ann", "user"), ALL, now)
        told = {"changed": changed, "left": left}
        await audit.record(connection, ANN, "alerts.acknowledge", target=f"selection/{chosen.selection_id}", data=told)
    while await rollups.fold(connection):
        pass


@pytest.fixture(scope="module")
def filled(postgres: Postgres) -> str:
    dsn = postgres.create_database(f"b{uuid4().hex}")

    async def fill_it() -> None:
        await migrate_at(dsn)
        async with connected(dsn) as connection:
            await partitions.ensure(connection, ahead_days=1)
            await fill(connection, [Chain(str(AGENT))])
            async with connection.transaction():
                await _people(connection)
            await _things(connection)
            await _alerts(dsn, connection)

    asyncio.run(fill_it())
    return dsn


@pytest.fixture
async def owner(filled: str) -> AsyncIterator[Any]:
    """Somebody who owns the tables, in a transaction that leaves nothing."""
    async with connected(filled) as connection:
        transaction = connection.transaction()
        await transaction.start()
        yield connection
        await transaction.rollback()


async def look(connection: Any) -> list[Finding]:
    """What is found beside rows and frames."""
    cells, _ = await rollupcheck.rollup_findings(connection, None)
    troubles = [Finding(kind=one.kind, text=one.text, table=one.table) for one in await schema.troubles(connection)]
    return [*await state_findings(connection), *await alert_findings(connection), *cells, *troubles]


async def test_what_was_done_by_the_rules_holds(filled: str) -> None:
    report = await verify(filled, Wanted(processes=1))
    assert report.findings == []
    assert report.ok
    assert report.erased > 0
    assert report.rollup_hours > 0


NOBODY = "repeat('x', 32)::bytea"
TAMPERED: dict[str, tuple[str, str, str]] = {
    "a key made without a record": (
        f"INSERT INTO api_keys (prefix, hash, role) VALUES ('evil', {NOBODY}, 'admin')", "key.unrecorded", "api_keys"),
    "a key that may do more": ("UPDATE api_keys SET role = 'admin' WHERE role = 'viewer'", "key.changed", "api_keys"),
    "a key that sees more": ("UPDATE api_keys SET site = '' WHERE role = 'viewer'", "key.changed", "api_keys"),
    "a key with another secret": (f"UPDATE api_keys SET hash = {NOBODY} WHERE role = 'viewer'", "key.changed", "api_keys"),
    "a revoked key made good again": ("UPDATE api_keys SET revoked = NULL WHERE role = 'admin'", "key.revived", "api_keys"),
    "a key taken away": ("DELETE FROM api_keys WHERE role = 'admin'", "key.deleted", "api_keys"),
    "a user made without a record": (
        "INSERT INTO users (name, role, password) VALUES ('mallory', 'admin', 'x')", "user.unrecorded", "users"),
    "another role": ("UPDATE users SET role = 'admin' WHERE name = 'viewer'", "user.changed", "users"),
    "another password": ("UPDATE users SET password = 'mine' WHERE name = 'viewer'", "user.changed", "users"),
    "another place": ("UPDATE user_scopes SET site = ''", "user.changed", "users"),
    "no one-time codes any more": ("UPDATE users SET totp = NULL, totp_since = NULL", "user.changed", "users"),
    "a recovery code of one's own": (
        f"INSERT INTO recovery_codes (user_id, hash) SELECT user_id, {NOBODY} FROM users WHERE name = 'viewer'", "user.changed", "users"),
    "an identity at a provider": (
        "INSERT INTO oidc_identities (issuer, subject, user_id) SELECT 'i', 'me', user_id FROM users WHERE name = 'viewer'",
        "user.changed", "users"),
    "a user let in again": ("UPDATE users SET disabled = NULL WHERE name = 'former'", "user.revived", "users"),
    "a user taken away": ("DELETE FROM users WHERE name = 'former'", "user.deleted", "users"),
    "a session made by hand": (
        (f"INSERT INTO sessions (hash, user_id, method, address, idle, expires) SELECT {NOBODY}, user_id, 'password', '', '1 h', "
        "now() + interval '1 h' FROM users WHERE name = 'former'"), "session.unrecorded", "sessions"),
    "a session of somebody else": (
        "UPDATE sessions SET user_id = (SELECT user_id FROM users WHERE name = 'former')", "session.changed", "sessions"),
    "an agent's revoked keys made good again": (
        "UPDATE agent_keys SET revoked = NULL, revoked_by = NULL WHERE agent_id IN (SELECT agent_id FROM agents WHERE revoked IS NOT NULL)",
        "agent.revived", "agent_keys"),
    "an agent's earlier key made good again": (
        f"UPDATE agent_keys SET revoked = NULL, revoked_by = NULL WHERE agent_id = '{SIGNER}'", "agent.changed", "agent_keys"),
    "an agent's key put in": (
        ("INSERT INTO agent_keys (key_id, agent_id, public_key, place_id, token_id, proof, signature) "
        f"SELECT 'mine', agent_id, {NOBODY}, place_id, token_id, 'p', '' FROM agent_keys WHERE agent_id = '{SIGNER}' LIMIT 1"),
        "agent.changed", "agent_keys"),
    "a used token made good again": (
        "UPDATE enrolment_tokens SET used = NULL, used_agent = NULL, used_key = NULL", "token.revived", "enrolment_tokens"),
    "a token made without a record": (
        f"INSERT INTO enrolment_tokens (prefix, hash, created_by, expires) VALUES ('mine', {NOBODY}, 'x', now() + interval '1 y')",
        "token.unrecorded", "enrolment_tokens"),
    "a suppression made without a record": (
        "INSERT INTO suppressions (filter, scope, comment, created_by, expires) VALUES ('type=alert.*', '[]', '', 'x', now())",
        "suppression.unrecorded", "suppressions"),
    "a suppression that reaches further": ("UPDATE suppressions SET filter = 'type=alert.*'", "suppression.changed", "suppressions"),
    "a suppression that was ended": ("UPDATE suppressions SET ended = NULL, ended_by = NULL", "suppression.revived", "suppressions"),
    "a legal hold taken away": ("DELETE FROM legal_holds", "hold.deleted", "legal_holds"),
    "a legal hold that holds less": ("UPDATE legal_holds SET query = 'type=less'", "hold.changed", "legal_holds"),
    "a made-up erasure": (
        ("WITH e AS (INSERT INTO erasures (state, reason, requested_by) VALUES ('done', 'r', 'x') RETURNING erasure_id) "
        "INSERT INTO erased_lines SELECT max(v.batch_id), max(e.erasure_id), '{[1,2)}' FROM e, evidence v"),
        "erasure.forged", "erased_lines"),
    "lines added to a true erasure": (
        "UPDATE erased_lines SET idx = idx + '{[1,3)}' WHERE batch_id = (SELECT min(batch_id) FROM erased_lines)",
        "erasure.changed", "erased_lines"),
    "another batch added to a true erasure": (
        "INSERT INTO erased_lines SELECT max(batch_id), 1, '{[0,1)}' FROM evidence", "erasure.forged", "erased_lines"),
    "an erasure that says something else": ("UPDATE erasures SET confirmed_by = 'user ann'", "erasure.changed", "erasures"),
    "an alert closed by hand": (
        "UPDATE alerts SET state = 'closed', reason = 'benign' WHERE state <> 'closed'", "alert.changed", "alerts"),
    "an alert kept quiet for a year": (
        "UPDATE alerts SET quiet_until = now() + interval '1 y' WHERE state = 'closed'", "alert.changed", "alerts"),
    "an alert given to somebody": ("UPDATE alerts SET assignee = 'ann'", "alert.changed", "alerts"),
    "an alert that is less severe": ("UPDATE alerts SET severity = 1", "alert.changed", "alerts"),
    "an alert that says something else": ("UPDATE alerts SET message = 'nothing'", "alert.changed", "alerts"),
    "an alert that counts less": ("UPDATE alerts SET count = 1", "alert.changed", "alerts"),
    "an alert taken away": (
        ("WITH e AS (DELETE FROM alert_events WHERE alert_id = 2), h AS (DELETE FROM alert_history WHERE alert_id = 2), "
        "o AS (DELETE FROM notification_outbox WHERE alert_id = 2) DELETE FROM alerts WHERE alert_id = 2"),
        "alert.deleted", "alert_events"),
    "an alert of an event that never was": (
        "INSERT INTO alert_events SELECT 999999, 0, now(), now(), 1, agent_id, buffer_id, lane, 9, NULL, NULL FROM alert_events LIMIT 1",
        "alert.forged", "alert_events"),
    "a closing with a line of its own": (
        ("WITH a AS (UPDATE alerts SET state = 'closed', reason = 'benign', version = version + 1 WHERE alert_id = 2 RETURNING *) "
        "INSERT INTO alert_history (alert_id, incident_id, who, who_kind, action, from_state, to_state, data) SELECT alert_id, "
        "incident_id, 'ann', 'user', 'close', 'open', 'closed', jsonb_build_object('standing', concat_ws('|', state, reason, '', '', "
        "reopened, version)) FROM a"), "history.forged", "alert_history"),
    "a closing in the name of the collector": (
        ("WITH a AS (UPDATE alerts SET state = 'closed', reason = 'resolved', version = version + 1 WHERE alert_id = 2 RETURNING *) "
        "INSERT INTO alert_history (alert_id, incident_id, who, who_kind, action, from_state, to_state, data) SELECT alert_id, "
        "incident_id, 'collector', 'system', 'clear', 'open', 'closed', jsonb_build_object('event', 'x/y', 'standing', concat_ws('|', "
        "state, reason, '', '', reopened, version)) FROM a"), "history.forged", "alert_history"),
    "a line of the history taken out": (
        "DELETE FROM alert_history WHERE action = 'close'", "history.deleted", "alert_history"),
    "lines of an action on many taken out": (
        "DELETE FROM alert_history WHERE action = 'acknowledge'", "history.deleted", "alert_history"),
    "an hour that counts less": (
        "UPDATE event_metrics SET events = events - 1 WHERE period = 'hour'", "rollup.changed", "event_metrics"),
    "a day taken out": ("DELETE FROM event_metrics WHERE period = 'day'", "rollup.changed", "event_metrics"),
    "a month that counts more": (
        "UPDATE event_metrics SET events = events + 1 WHERE period = 'month'", "rollup.changed", "event_metrics"),
    "all places together": (
        "UPDATE event_metrics SET latency_sum = 0 WHERE period = 'hour' AND place_id = 0", "rollup.changed", "event_metrics"),
    "a trigger dropped": ("DROP TRIGGER audit_log_kept ON audit_log", "trigger.deleted", "audit_log"),
    "a trigger switched off": ("ALTER TABLE audit_log DISABLE TRIGGER audit_log_whole", "trigger.disabled", "audit_log"),
    "all triggers switched off": ("ALTER TABLE alert_history DISABLE TRIGGER ALL", "trigger.disabled", "alert_history"),
    "a trigger for replicas alone": (
        "ALTER TABLE audit_log ENABLE REPLICA TRIGGER audit_log_whole", "trigger.disabled", "audit_log"),
    "a trigger that lets all through": (
        "CREATE OR REPLACE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "trigger.changed", "audit_log"),
    "a trigger that fires for less": (
        "CREATE OR REPLACE TRIGGER audit_head_forward BEFORE INSERT ON audit_head FOR EACH ROW EXECUTE FUNCTION audit_advance()",
        "trigger.changed", "audit_head"),
    "a trigger that rewrites": (
        "CREATE TRIGGER mine BEFORE INSERT ON alerts FOR EACH ROW EXECUTE FUNCTION audit_refuse()", "trigger.unknown", "alerts"),
    "a rule that drops what is written": (
        "CREATE RULE mine AS ON INSERT TO gaps DO INSTEAD NOTHING", "rule.unknown", "gaps"),
    "a policy that hides rows": ("ALTER TABLE alerts ENABLE ROW LEVEL SECURITY", "policy.unknown", "alerts"),
    "a migration that was another": (
        "UPDATE schema_migrations SET sha256 = 'x' WHERE version = 3", "migration.changed", "schema_migrations"),
}  # fmt: skip
GUARDED = {
    "trigger.deleted",
    "trigger.disabled",
    "trigger.changed",
    "trigger.unknown",
    "rule.unknown",
    "policy.unknown",
}


@pytest.mark.parametrize("name", TAMPERED)
async def test_what_the_owner_of_the_tables_changes_is_found_by_name(name: str, owner: Any) -> None:
    statement, kind, table = TAMPERED[name]
    if kind not in GUARDED:
        # Triggers and foreign keys do not stand in the way of who owns the tables, and show nothing once they are on again.
        await owner.execute("SET LOCAL session_replication_role = replica")
    await owner.execute(statement)
    await owner.execute("SET LOCAL session_replication_role = origin")
    found = await look(owner)
    assert (kind, table) in {(one.kind, one.table) for one in found}
    assert {one.kind.partition(".")[0] for one in found} <= {kind.partition(".")[0], "history", "alert", "erasure"}


async def test_what_audit_records_said_of_keys_and_users_is_handed_on_when_they_leave(filled: str) -> None:
    async with connected(filled) as connection:
        last = await connection.fetchval("SELECT max(no) FROM audit_log")
        pieces = await states.leaving(connection, last)
        whole = await states.recorded(connection)
        kept = {f"{kind} {name}": one.digest for kind, of in whole.items() for name, one in of.items() if one.digest}
        assert {name: digest for piece in pieces for name, digest in piece.items()} == kept
        assert await states.leaving(connection, 0) == []


async def test_hours_by_sample_are_counted_again_like_all_of_them(owner: Any) -> None:
    assert await rollupcheck.rollup_findings(owner, 1) == ([], 1)
    await owner.execute("UPDATE event_metrics SET events = events + 1 WHERE period = 'hour'")
    found, hours = await rollupcheck.rollup_findings(owner, 1)
    assert hours == 1
    assert found


async def test_a_sample_of_rows_says_that_it_is_one_and_finds_what_lies_in_it(filled: str) -> None:
    report = await verify(filled, Wanted(processes=1, events_max=10))
    assert report.ok
    assert report.sampled
    assert "a sample" in report.notes[0]
    assert not (await verify(filled, Wanted(processes=1, events_max=10_000))).sampled


async def test_what_was_there_before_records_held_it_is_recorded_once_and_never_again(dsn: str) -> None:
    await migrate_at(dsn)
    made = f"INSERT INTO api_keys (prefix, hash, role) VALUES ($1, {NOBODY}, 'viewer')"
    async with connected(dsn) as connection:
        await connection.execute(made, "old")
        assert [one.kind for one in await state_findings(connection)] == ["key.unrecorded"]
        await app._baseline(connection)
        assert await state_findings(connection) == []
        await connection.execute(made, "evil")
        await app._baseline(connection)
        assert [one.kind for one in await state_findings(connection)] == ["key.unrecorded"]
