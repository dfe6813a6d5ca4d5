"""What leaves of the audit log and of alerts, against tombstones, on a real PostgreSQL; and that nothing else does, or is found."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from collector import audit
from collector.app import migrate_at
from collector.config import RetentionSettings
from collector.evidence import checkpoint
from collector.evidence.note import Signer
from collector.evidence.verify import Report, Wanted, verify
from collector.legal import leave
from collector.store import audit as store
from collector.store import logs, partitions, tree
from collector.store.merkle import consistency, consistent, included, inclusion, leaf_hash
from tests import evidence
from tests.collector_process import Collector, event, poll_until, run_cli
from tests.integration.test_alerts import Plant, alert
from tests.postgres import connected

SIGNER = Signer("test.example/plant", Ed25519PrivateKey.generate())
NOW = datetime.now(UTC)
ANN = audit.Who("ann", "user", "admin")
SETTINGS = RetentionSettings(audit_days=400, alert_days=30)


async def look(dsn: str, outside: str | None = None) -> Report:
    return await verify(dsn, Wanted(processes=1, outside=outside, keys=(str(SIGNER.verifier),)))


@contextmanager
def clock(at: datetime) -> Iterator[None]:
    """The database's clock, as the audit log asks for it."""
    asked = store._HEAD
    store._HEAD = asked.replace("clock_timestamp()", f"'{at.isoformat()}'::timestamptz")
    try:
        yield
    finally:
        store._HEAD = asked


async def recorded(connection: Any, *ages_days: float) -> None:
    for age in ages_days:
        with clock(NOW - timedelta(days=age)):
            await audit.record(connection, ANN, "thing.done", target=str(age))


@asynccontextmanager
async def filled(dsn: str) -> AsyncIterator[Any]:
    """Six records of 500 days and more ago, three of this year."""
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        await partitions.ensure(connection, ahead_days=1)
        await recorded(connection, 900, 800, 700, 600, 550, 500, 300, 10, 1)
        yield connection


async def gone(connection: Any, settings: RetentionSettings = SETTINGS, *, dry: bool = False) -> list[tuple[str, int]]:
    found = await leave(connection, settings, audit.Who.system(), dry=dry, sign=SIGNER.sign)
    return [(action.kind, action.events) for action in found]


async def test_old_audit_records_leave_against_a_signed_tombstone_and_everything_still_holds(dsn: str) -> None:
    async with filled(dsn) as connection:
        before = await checkpoint.create(connection, SIGNER)
        copy = await store.following(connection, 0, 100)
        assert await gone(connection, dry=True) == [("audit", 6)]
        assert await store.least(connection) == 1
        assert await gone(connection) == [("audit", 6)]
        kept = await store.following(connection, 0, 100)
        assert [record.no for record in kept] == [7, 8, 9, 10]
        assert (kept[-1].action, kept[-1].who, kept[-1].data["last"]) == ("audit.retention", "collector", 6)
        assert await gone(connection) == []
        stone = await connection.fetchrow("SELECT kind, streams, signature IS NOT NULL AS signed FROM tombstones")
        assert (stone["kind"], stone["signed"]) == ("audit", True)
        assert json.loads(stone["streams"]) == [
            {"first": 1, "last": 6, "records": 6, "prev": audit.GENESIS.hex(), "hash": copy[5].hash.hex()}
        ]
        last = await checkpoint.create(connection, SIGNER)
        report = await look(dsn, outside=before.note + "\n" + last.note)
        assert report.ok, report.findings
        assert (report.leaves, report.audit_records, report.checkpoints_proven) == (11, 10, 2)
        await _proves(connection, before, last, copy)


async def _proves(connection: Any, before: Any, last: Any, copy: list[audit.Record]) -> None:
    """The tree goes on from the checkpoint before, and still has each record that left, of which somebody kept a copy."""
    root = bytes.fromhex(last.root)
    ranges = consistency(before.leaves, last.leaves)
    proof = (await tree.tree_for(connection, ranges)).hashes(ranges)
    assert consistent(before.leaves, bytes.fromhex(before.root), last.leaves, root, proof)
    refs = (await connection.fetchrow("SELECT refs FROM merkle_leaves WHERE tile = 0"))["refs"]
    for record in copy:
        leaf = list(refs).index(record.no)
        ranges = inclusion(leaf, last.leaves)
        proof = (await tree.tree_for(connection, ranges)).hashes(ranges)
        assert included(leaf_hash(tree.audit_leaf(record.no, record.hash)), leaf, last.leaves, proof, root)


async def test_retention_of_the_audit_log_goes_on_where_it_was_left_also_in_small_pieces(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "RECORDS_MAX", 2)
    async with filled(dsn) as connection:
        assert await gone(connection) == [("audit", 2)] * 3
        await recorded(connection, 0)
        report = await look(dsn)
        assert report.ok, report.findings


async def test_a_log_that_is_old_as_a_whole_never_becomes_empty(dsn: str) -> None:
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        await recorded(connection, 900, 800)
        # The last record stays, until that of the retention itself lies behind it.
        assert await gone(connection) == [("audit", 1), ("audit", 1)]
        assert [record.no for record in await store.following(connection, 0, 9)] == [3, 4]
        # The clock of the database went back: what is younger keeps what lies behind it.
        await recorded(connection, 1, 900, 1)
        assert await gone(connection) == []
    report = await look(dsn)
    assert report.ok, report.findings


async def test_what_was_recorded_since_a_legal_hold_stays_until_it_is_released(dsn: str) -> None:
    async with filled(dsn) as connection:
        number = await evidence.hold(connection, "case 7", "severity=5")
        await connection.execute("UPDATE legal_holds SET created = now() - interval '650 days'")
        await evidence.recorded(connection, ("hold", str(number)))
        assert await gone(connection) == [("audit", 3)]
        assert await evidence.release(connection, number)
        assert await gone(connection) == [("audit", 3)]
    report = await look(dsn)
    assert report.ok, report.findings


STONE = """
INSERT INTO tombstones (made, day, kind, rule, rule_key, events, streams, prev, hash)
SELECT now(), now()::date, 'audit', 'mine', '', 0, jsonb_build_array(jsonb_build_object('first', {first}, 'last', {last}, 'records',
    {last} - {first} + 1, 'prev', (SELECT encode(prev, 'hex') FROM audit_log WHERE no = {first}),
    'hash', (SELECT encode(hash, 'hex') FROM audit_log WHERE no = {last}))), 'x', 'x';
"""
REFUSED = {
    "without a tombstone": "DELETE FROM audit_log WHERE no <= 3",
    "all": "DELETE FROM audit_log",
    "truncated": "TRUNCATE audit_log",
    "changed": "UPDATE audit_log SET who = 'eve' WHERE no = 1",
    "less than the tombstone says": STONE.format(first=1, last=4) + "DELETE FROM audit_log WHERE no <= 3",
    "more than the tombstone says": STONE.format(first=1, last=2) + "DELETE FROM audit_log WHERE no <= 3",
    "from the middle": STONE.format(first=2, last=3) + "DELETE FROM audit_log WHERE no BETWEEN 2 AND 3",
    "younger than a year": STONE.format(first=1, last=7) + "DELETE FROM audit_log WHERE no <= 7",
    "the head": "DELETE FROM audit_head",
}


async def test_no_other_way_takes_anything_out_of_the_audit_log(dsn: str) -> None:
    async with filled(dsn) as connection:
        for what, statement in REFUSED.items():
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="the audit log only grows"):
                await connection.execute(statement)
            assert await connection.fetchval("SELECT count(*) FROM audit_log") == 9, what
        assert await connection.fetchval("SELECT count(*) FROM tombstones") == 0


TABLES = ("audit_log", "tombstones")
UNLOCK = "ALTER TABLE audit_log DISABLE TRIGGER ALL; "
FOUND = {
    "records behind the tombstone taken away": (UNLOCK + "DELETE FROM audit_log WHERE no = 7", "audit.deleted"),
    "a record put back with another text": (
        "CREATE TEMP TABLE t AS SELECT * FROM audit_log WHERE no = 7; UPDATE t SET no = 6; INSERT INTO audit_log TABLE t; DROP TABLE t",
        "audit.inserted",
    ),
    "the tombstone taken away": ("DELETE FROM tombstones", "audit.deleted"),
    "the tombstone made longer": (
        UNLOCK + "DELETE FROM audit_log WHERE no = 7; UPDATE tombstones SET streams = jsonb_set(streams, '{0,last}', '7')",
        "tombstone.changed",
    ),
    "a tombstone made by somebody else": (
        UNLOCK + STONE.format(first=7, last=8) + "DELETE FROM audit_log WHERE no <= 8", "tombstone.unsigned",
    ),
}  # fmt: skip


async def test_a_removal_that_no_tombstone_stands_for_is_found_behind_one_that_has_one(dsn: str) -> None:
    async with filled(dsn) as connection:
        await gone(connection)
        await checkpoint.create(connection, SIGNER)
        assert (await look(dsn)).ok
        for table in TABLES:
            await connection.execute(f"CREATE TEMP TABLE kept_{table} AS SELECT * FROM {table}")
        for what, (statement, kind) in FOUND.items():
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(statement)
            await connection.execute("ALTER TABLE audit_log ENABLE TRIGGER ALL")
            await transaction.commit()
            found = {finding.kind for finding in (await look(dsn)).findings}
            assert kind in found, (what, found)
            await _put_back(connection)
            assert (await look(dsn)).ok, what


async def _put_back(connection: Any) -> None:
    """As it was, from the copy."""
    await connection.execute("ALTER TABLE audit_log DISABLE TRIGGER ALL")
    for table in TABLES:
        await connection.execute(
            f"DELETE FROM {table}; INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM kept_{table}"
        )
    await connection.execute("ALTER TABLE audit_log ENABLE TRIGGER ALL")


async def test_the_command_says_which_records_would_go_and_takes_them(dsn: str) -> None:
    async with filled(dsn):
        pass
    said = await asyncio.to_thread(
        run_cli, dsn, "retention", "--dry-run", LINEWARDEN_COLLECTOR__RETENTION__AUDIT_DAYS="400"
    )
    assert "audit records" in said.stdout, said.stderr
    short = await asyncio.to_thread(run_cli, dsn, "retention", LINEWARDEN_COLLECTOR__RETENTION__AUDIT_DAYS="364")
    assert short.returncode == 2
    assert "audit_days" in short.stderr
    assert "365" in short.stderr
    done = await asyncio.to_thread(
        run_cli, dsn, "retention", "--json", LINEWARDEN_COLLECTOR__RETENTION__AUDIT_DAYS="400"
    )
    assert [(a["kind"], a["events"]) for a in json.loads(done.stdout)] == [("audit", 6)], done.stderr


YEARS = """
ALTER TABLE alert_history DISABLE TRIGGER USER;
UPDATE incidents SET first = first - interval '2 years', last = last - interval '2 years';
UPDATE alerts SET first = first - interval '2 years', time = time - interval '2 years', changed = changed - interval '2 years',
    received = received - interval '2 years', opened = opened - interval '2 years';
UPDATE alert_history SET at = at - interval '2 years';
ALTER TABLE alert_history ENABLE TRIGGER USER;
"""
TABLES_OF_ALERTS = ("incidents", "alerts", "alert_events", "alert_history", "incident_keys")


async def counts(connection: Any) -> tuple[int, ...]:
    return tuple([await connection.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES_OF_ALERTS])


def incidents(collector: Collector) -> dict[str, int]:
    """An incident of each kind, by what is to become of it: its number."""
    plant = Plant(collector, "north")
    try:
        plant.send(event("what caused it", actor="eve", correlation_id="held"))
        for name in ("closed", "closed too", "open", "held", "quiet", "of late"):
            plant.send(alert(target=name, correlation_id=name), alert(target=name, correlation_id=name))
        found = poll_until(lambda: len(a := plant.alerts()) == 6 and {one["target"]: one for one in a})
        for name, one in found.items():
            if name == "open":
                assert plant.act(one, "acknowledge").status_code == 200
            elif name == "quiet":
                until = (NOW + timedelta(days=90)).isoformat()
                assert plant.act(one, "false_positive", until=until).status_code == 200
            else:
                assert plant.act(one, "close", reason="resolved", comment="seen to").status_code == 200
        return {name: one["incident_id"] for name, one in found.items()}
    finally:
        plant.close()


async def test_incidents_closed_long_ago_leave_as_a_whole_open_quiet_and_held_ones_stay(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The alerts are made older than their events, which are of today: no alert counts those of the incidents that leave.
    monkeypatch.setattr("collector.store.alertcheck.YOUNGEST_DAYS", -1)
    with Collector(dsn, ALERTS__LOOK_S="0.2") as collector:
        numbers = await asyncio.to_thread(incidents, collector)
    async with connected(dsn) as connection:
        assert await gone(connection) == []
        await connection.execute(YEARS)
        await connection.execute("UPDATE alerts SET changed = now() WHERE target = 'of late'")
        number = await evidence.hold(connection, "case 9", "actor=eve")
        for statement in (
            "DELETE FROM alert_history", "TRUNCATE alert_history", "UPDATE alert_history SET who = 'eve'",
            "DELETE FROM alert_history WHERE incident_id = " + str(numbers["closed"]),
        ):  # fmt: skip
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="the history of alerts only grows"):
                await connection.execute(statement)
        before = await counts(connection)
        assert await gone(connection, dry=True) == [("alerts", 2)]
        assert await counts(connection) == before
        assert await gone(connection) == [("alerts", 2)]
        left = {row[0] for row in await connection.fetch("SELECT incident_id FROM incidents")}
        assert left == set(numbers.values()) - {numbers["closed"], numbers["closed too"]}
        # Of each: an alert, two events, opened and closed, its key.
        assert [b - a for a, b in zip(await counts(connection), before, strict=True)] == [2, 2, 4, 4, 2]
        stone = json.loads(await connection.fetchval("SELECT streams FROM tombstones"))[0]
        assert stone["incidents"] == sorted([numbers["closed"], numbers["closed too"]])
        assert (stone["alerts"], stone["alert_events"], stone["history"]) == (2, 4, 4)
        last = (await store.following(connection, 0, 10_000))[-1]
        assert (last.action, last.data["incidents"], last.data["history_hash"]) == (
            "alerts.retention",
            2,
            stone["history_hash"],
        )
        assert await evidence.release(connection, number)
        assert await gone(connection) == [("alerts", 1)]
        assert numbers["held"] not in {row[0] for row in await connection.fetch("SELECT incident_id FROM incidents")}
    report = await look(dsn)
    assert report.ok, report.findings
    with Collector(dsn, ALERTS__LOOK_S="0.2") as collector:
        await asyncio.to_thread(_comes_again, collector)


def _comes_again(collector: Collector) -> None:
    """What comes again when its alert has left is a new one; what stayed goes on."""
    plant = Plant(collector, "north", station="s2")
    try:
        plant.send(alert(target="closed", correlation_id="closed"))
        found = poll_until(lambda: plant.alerts(state="open"))
        assert [(one["target"], one["count"]) for one in found] == [("closed", 1)]
    finally:
        plant.close()
