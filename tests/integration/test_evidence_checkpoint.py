"""The Merkle tree, its checkpoints, and what they catch that chains alone do not, on a real PostgreSQL."""

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.wire.batch import read_frame
from collector import audit
from collector.app import migrate_at
from collector.evidence import checkpoint
from collector.evidence.checkpoint import BadKey, Places
from collector.evidence.keeper import Keeper
from collector.evidence.note import Signer, notes_in, opened, verifier_key
from collector.evidence.verify import Report, Wanted, verify
from collector.store import partitions, retention, tree
from collector.store.database import Database
from collector.store.merkle import consistency, consistent, included, inclusion, leaf_hash
from collector.store.retention import Rule
from tests.collector_process import Chain, Collector, event, poll_until, post, run_cli
from tests.evidence import mixture, store
from tests.ports import free_port
from tests.postgres import connected

SIGNER = Signer("test.example/plant", Ed25519PrivateKey.generate())
KEY = str(SIGNER.verifier)


async def look(dsn: str, *, outside: str | None = None, key: str | None = KEY) -> Report:
    return await verify(dsn, Wanted(processes=1, outside=outside, keys=(key,) if key else ()))


@asynccontextmanager
async def migrated(dsn: str) -> AsyncIterator[Any]:
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        await partitions.ensure(connection, ahead_days=1)
        yield connection


async def test_leaves_come_in_the_order_of_commits_and_none_is_left_behind(dsn: str) -> None:
    """A transaction that began earlier and commits later: nothing behind it is taken before it, and it is not passed over."""
    async with migrated(dsn) as one, connected(dsn) as two:
        slow, quick = Chain(), Chain()
        transaction = one.transaction()
        await transaction.start()
        await store(one, slow.seal(mixture(3)))
        await store(two, quick.seal(mixture(3)))
        assert await tree.grow(two) == 0
        await store(two, quick.seal(mixture(3)))
        await transaction.commit()
        assert await tree.grow(two) == 3
        assert await tree.grow(two) == 3
        rows = await two.fetch("SELECT batch_id FROM evidence ORDER BY xid, batch_id")
        found = await two.fetch("SELECT kinds, refs FROM merkle_leaves")
        assert [tuple(row) for row in found] == [("bbb", [row[0] for row in rows])]
    assert (await look(dsn)).ok


async def test_a_tree_that_grew_in_steps_is_the_tree_made_at_once_and_proves_each_batch(dsn: str) -> None:
    async with migrated(dsn) as connection:
        chain = Chain()
        points = []
        for step in range(4):
            await store(connection, *[chain.seal([event()]) for _ in range(150)])
            await audit.record(connection, audit.Who.command(), "step", target=str(step))
            points.append(await checkpoint.create(connection, SIGNER))
        last = points[-1]
        assert last.leaves == 604
        for point in points[:-1]:
            ranges = consistency(point.leaves, last.leaves)
            proof = (await tree.tree_for(connection, ranges)).hashes(ranges)
            assert consistent(point.leaves, bytes.fromhex(point.root), last.leaves, bytes.fromhex(last.root), proof)
        for row in await connection.fetch("SELECT batch_id FROM evidence ORDER BY batch_id LIMIT 400 OFFSET 140"):
            leaf = await tree.leaf_of_batch(connection, row[0])
            assert leaf is not None
            ranges = inclusion(leaf, last.leaves)
            proof = (await tree.tree_for(connection, ranges)).hashes(ranges)
            body = tree.batch_leaf(await tree.batch_row(connection, row[0]))
            assert included(leaf_hash(body), leaf, last.leaves, proof, bytes.fromhex(last.root))
        for table in ("merkle_tiles", "merkle_leaves"):
            await connection.execute(f"TRUNCATE {table}")
        await connection.execute("UPDATE merkle_state SET leaves = 0, xid = '0', tombstone = 0, audit = 0")
        assert await tree.grow(connection) == 604
    assert (await look(dsn)).ok is False  # audit records come behind all batches now: not what was signed
    found = {f.kind for f in (await look(dsn)).findings}
    assert found == {"checkpoint.broken"}


async def test_two_collectors_that_grow_the_tree_at_once_make_one_tree(dsn: str) -> None:
    async with migrated(dsn) as one, connected(dsn) as two, connected(dsn) as three:
        chains = [Chain() for _ in range(3)]

        async def ingest(connection: Any, chain: Chain) -> None:
            for _ in range(30):
                await store(connection, chain.seal([event()]))
                if chain.no % 10 == 0:
                    await tree.grow(connection)

        await asyncio.gather(*(ingest(c, chain) for c, chain in zip((one, two, three), chains, strict=True)))
        assert await tree.grow(one) == 90
    assert (await look(dsn)).ok


async def filled(connection: Any, chain: Chain) -> None:
    for _ in range(5):
        await store(connection, chain.seal(mixture(6)))
    for n in range(4):
        await audit.record(connection, audit.Who("ann", "user", "admin"), "thing.done", target=str(n))


UNLOCK = "ALTER TABLE audit_log DISABLE TRIGGER ALL; ALTER TABLE audit_head DISABLE TRIGGER ALL; "
WHERE = "batch_no = 2"
CAUGHT = {
    "the place of a batch, in rows and evidence alike": (
        "INSERT INTO places (site) VALUES ('x'); "
        + "; ".join(f"UPDATE {t} SET place_id = (SELECT max(place_id) FROM places) WHERE {WHERE}" for t in partitions.PARTITIONED),
        ("tree.changed", "evidence"),
    ),
    "the name of a place": ("UPDATE places SET site = 'elsewhere' WHERE place_id = 1", ("tree.changed", "evidence")),
    "when a batch came, in rows and evidence alike": (
        "; ".join(f"UPDATE {t} SET received = received + interval '1 ms' WHERE {WHERE}" for t in partitions.PARTITIONED),
        ("tree.changed", "evidence"),
    ),
    "the transaction of a batch": (f"UPDATE evidence SET xid = '5' WHERE {WHERE}", ("tree.changed", "evidence")),
    "the end of a chain cut off, its head put back": (
        ("DELETE FROM security_events WHERE batch_no = 5; DELETE FROM evidence WHERE batch_no = 5; UPDATE batch_heads SET batch_no = 4, "
        "hash = (SELECT hash FROM evidence WHERE batch_no = 4), events = 24, batches = 4"),
        ("tree.missing", "evidence"),
    ),
    "a batch put in under an old transaction": (
        ("CREATE TEMP TABLE t AS SELECT * FROM evidence WHERE batch_no = 1; UPDATE t SET batch_id = 1000, batch_no = 9; "
        "INSERT INTO evidence SELECT * FROM t"),
        ("tree.unknown", "evidence"),
    ),
    "a hash of a tile": ("UPDATE merkle_tiles SET hashes = set_byte(hashes, 5, get_byte(hashes, 5) # 1)", ("tree.changed", "evidence")),
    "a tile": ("DELETE FROM merkle_tiles; DELETE FROM merkle_leaves", ("tree.cut", "merkle_leaves")),
    "an audit record": (UNLOCK + "UPDATE audit_log SET who = 'eve' WHERE no = 2", ("audit.changed", "audit_log")),
    "an audit record taken away": (UNLOCK + "DELETE FROM audit_log WHERE no = 2", ("audit.deleted", "audit_log")),
    "an audit record put in": (
        UNLOCK + "CREATE TEMP TABLE t AS SELECT * FROM audit_log WHERE no = 4; UPDATE t SET no = 5; INSERT INTO audit_log SELECT * FROM t",
        ("audit.inserted", "audit_log"),
    ),
    "the end of the audit log": (UNLOCK + "DELETE FROM audit_log WHERE no = 4", ("audit.cut", "audit_log")),
    "the end of the audit log, its head put back": (
        UNLOCK + "DELETE FROM audit_log WHERE no = 4; UPDATE audit_head SET no = 3, hash = (SELECT hash FROM audit_log WHERE no = 3)",
        ("audit.deleted", "audit_log"),
    ),
    "a checkpoint": ("DELETE FROM checkpoints WHERE checkpoint_id = 1", ("checkpoint.deleted", "checkpoints")),
    "the root of a checkpoint": (
        "UPDATE checkpoints SET root = repeat('0', 64) WHERE checkpoint_id = 1", ("checkpoint.changed", "checkpoints"),
    ),
    "the text of a checkpoint": ("UPDATE checkpoints SET note = replace(note, 'time 2', 'time 3')", ("checkpoint.forged", "checkpoints")),
}  # fmt: skip


@pytest.mark.parametrize("name", CAUGHT)
async def test_what_no_chain_knows_of_is_found_by_the_tree(name: str, dsn: str) -> None:
    statement, wanted = CAUGHT[name]
    async with migrated(dsn) as connection:
        await filled(connection, Chain())
        await checkpoint.create(connection, SIGNER)
        await store(connection, Chain().seal(mixture(2)))
        await checkpoint.create(connection, SIGNER)
        report = await look(dsn)
        assert report.ok, report.findings
        assert (report.leaves, report.audit_records, report.checkpoints) == (10, 4, 2)
        await connection.execute(statement)
    found = (await look(dsn)).findings
    assert wanted in {(f.kind, f.table) for f in found}, found


async def _rewritten(connection: Any, old: Chain, agent: str) -> None:
    """What somebody does who owns the database and knows this program: another past, with everything made anew to fit."""
    rows = await connection.fetch("SELECT batch_id, frame FROM evidence ORDER BY batch_no")
    forged = Chain(agent, buffer=old.buffer, lane=old.lane)
    batches = [read_frame(row["frame"]).events() for row in rows]
    batches[1][2].message = "nothing happened"
    for table in (
        *partitions.PARTITIONED,
        "batch_heads",
        "agents",
        "merkle_tiles",
        "merkle_leaves",
        "checkpoints",
        "checkpoint_keys",
        "event_metrics",
        "metric_deltas",
    ):
        await connection.execute(f"TRUNCATE {table} RESTART IDENTITY")
    await connection.execute("UPDATE merkle_state SET leaves = 0, xid = '0', tombstone = 0, audit = 0")
    for events in batches:
        await store(connection, forged.seal(events))
    await checkpoint.create(connection, Signer(SIGNER.name, Ed25519PrivateKey.generate()))


async def test_a_database_that_was_rewritten_as_a_whole_contradicts_the_checkpoint_that_was_kept_elsewhere(
    dsn: str,
) -> None:
    async with migrated(dsn) as connection:
        chain = Chain()
        await filled(connection, chain)
        kept = (await checkpoint.create(connection, SIGNER)).note
        await store(connection, chain.seal(mixture(2)))
        assert (await look(dsn, outside=kept)).ok
        await _rewritten(connection, chain, chain.agent)
    within = await look(dsn, key=None)
    assert within.ok, "by itself it fits together"
    assert "is believed because the database has it" in within.notes[0]
    found = (await look(dsn, outside=kept)).findings
    assert "checkpoint.contradicted" in {f.kind for f in found}
    assert "checkpoint.forged" in {f.kind for f in found}
    assert (await look(dsn, outside=kept.replace("test.example", "best.example"))).findings[
        -1
    ].kind == "checkpoint.forged"


async def test_it_holds_through_retention_whose_tombstones_are_signed(dsn: str) -> None:
    today = datetime.now(UTC).date()
    async with migrated(dsn) as connection:
        chain = Chain()
        for back in (6, 5, 4, 1):
            for table in partitions.PARTITIONED:
                await partitions._make(connection, table, today - timedelta(days=back))
            await store(connection, chain.seal(mixture(4)), chain.seal(mixture(4)), day=today - timedelta(days=back))
            await checkpoint.create(connection, SIGNER)
        done = await retention.run(connection, [Rule(days=4)], [], dry=False, sign=SIGNER.sign)
        assert [a.kind for a in done] == ["drop", "drop"]
        kept = (await checkpoint.create(connection, SIGNER)).note
        report = await look(dsn, outside=kept)
        assert report.ok, report.findings
        assert report.leaves == 10
        await connection.execute("UPDATE tombstones SET signature = NULL WHERE tombstone_id = 2")
        assert [f.kind for f in (await look(dsn)).findings] == ["tombstone.unsigned"]
        await connection.execute(
            "UPDATE tombstones SET signature = (SELECT signature FROM tombstones WHERE tombstone_id = 1)"
        )
        assert [f.kind for f in (await look(dsn)).findings] == ["tombstone.forged"]
        await connection.execute("DELETE FROM tombstones WHERE tombstone_id = 2")
        kinds = {f.kind for f in (await look(dsn)).findings}
        assert {"chain.cut", "tombstone.deleted"} <= kinds


async def test_batches_stored_after_a_dump_was_restored_elsewhere_get_into_the_tree(dsn: str) -> None:
    """The numbers of transactions begin anew there, below those that are stored."""
    async with migrated(dsn) as connection:
        chain = Chain()
        await store(connection, chain.seal(mixture(2)))
        await tree.grow(connection)
        await store(connection, chain.seal(mixture(2)))
        # So it would be on a server that has done less than the one before.
        await connection.execute("UPDATE evidence SET xid = (4000000000 + batch_id)::text::xid8")
        await connection.execute("UPDATE merkle_state SET xid = '4000000002'")
        assert await tree.grow(connection) == 2
        await store(connection, chain.seal(mixture(2)))
        assert await tree.grow(connection) == 3
        assert await tree.grow(connection) == 3


class Sink:
    """A server that keeps what it is sent: syslog by octet counting, or HTTP PUT."""

    def __init__(self) -> None:
        self.port = free_port()
        self.received: list[bytes] = []
        self.status = 200

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", self.port):
            yield

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.read(3)
        if head == b"PUT":
            lines = head + await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1]) for line in lines.split(b"\r\n") if line.lower().startswith(b"content-length")
            )
            self.received.append(lines + await reader.readexactly(length))
            writer.write(f"HTTP/1.1 {self.status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        else:
            self.received.append(head + await reader.read())
        writer.close()


async def test_a_checkpoint_goes_to_file_syslog_and_store_and_waits_where_one_is_away(dsn: str, tmp_path: Path) -> None:
    log, objects = Sink(), Sink()
    objects.status = 503
    file = tmp_path / "check points.txt"
    targets = (
        f"file://{str(file).replace(' ', '%20')}",
        f"syslog+tcp://127.0.0.1:{log.port}",
        f"http://127.0.0.1:{objects.port}/w/{{number}}-{{leaves}}.txt",
    )
    places = Places(targets, lambda: "Bearer secret")
    async with migrated(dsn) as connection:
        await store(connection, Chain().seal(mixture(2)))
        for _ in range(2):
            await checkpoint.create(connection, SIGNER)
        async with objects.running():
            troubles = await checkpoint.write_out(connection, places)
        assert len(troubles) == 2
        assert "answered 503" in " ".join(troubles)
        states = {t.target.partition(":")[0]: t for t in await tree.targets(connection, targets)}
        assert (states["file"].written, states["http"].written, states["syslog+tcp"].written) == (2, 0, 0)
        assert states["syslog+tcp"].since is not None
        objects.status = 201
        async with objects.running(), log.running():
            assert await checkpoint.write_out(connection, places) == []
            assert await checkpoint.write_out(connection, places) == []
        async with objects.running(), log.running():
            await checkpoint.create(connection, SIGNER)
            assert await checkpoint.write_out(connection, places) == []
    assert [text.split(b" ")[1] for text in objects.received] == [b"/w/1-1.txt"] + [
        f"/w/{n}-1.txt".encode() for n in (1, 2, 3)
    ]
    assert b"Bearer secret" in objects.received[0]
    for kept in (file.read_text(), b"".join(log.received).decode().replace(">1 2", ">1 2").replace("<109>", "\n<109>")):
        notes = list(notes_in(kept))
        assert len(notes) == 3
        assert {opened(note, [SIGNER.verifier])[0].leaves for note in notes} == {1}
        assert (await look(dsn, outside=kept)).checkpoints_proven == 3


def test_the_key_is_ours_alone_and_made_once(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.key"
    with pytest.raises(BadKey, match="there is no key"):
        checkpoint.load_key(file, make=False)
    key = checkpoint.load_key(file, make=True)
    assert file.stat().st_mode & 0o777 == 0o600
    assert [f.name for f in tmp_path.iterdir()] == [file.name]
    assert checkpoint.load_key(file, make=True).private_bytes_raw() == key.private_bytes_raw()
    file.chmod(0o640)
    with pytest.raises(BadKey, match="chmod 600"):
        checkpoint.load_key(file, make=True)
    file.chmod(0o600)
    file.write_text("nonsense")
    with pytest.raises(BadKey, match="holds no key"):
        checkpoint.load_key(file, make=True)


@pytest.mark.parametrize(
    "target", ["ftp://x", "file://relative/x", "syslog+tcp://host", "https:///path", "syslog+udp://h:port"]
)
def test_a_target_that_cannot_be_is_refused_with_the_reason(target: str) -> None:
    assert checkpoint.problem_of(target)


def test_an_auditor_gets_over_the_api_what_proves_an_event(dsn: str, tmp_path: Path) -> None:
    settings = {"EVIDENCE__KEY_FILE": str(tmp_path / "key"), "EVIDENCE__CHECKPOINT_EVERY_S": "1"}
    with Collector(dsn, **settings) as collector, collector.client(collector.key("agent")) as client:
        chain = Chain()
        assert post(client, chain.seal(mixture(3)), chain.seal(mixture(3))).status_code == 200
        with collector.client(collector.key("auditor")) as auditor, collector.client(collector.key("viewer")) as viewer:
            path = f"/v1/events/{chain.identity(2, 1)}"
            poll_until(lambda: viewer.get(path).json()["evidence"]["proof"]["checkpoint"])
            proven = viewer.get(path).json()["evidence"]["proof"]
            assert viewer.get("/v1/checkpoints").status_code == 403
            known = auditor.get("/v1/checkpoints", params={"limit": 1}).json()
            first, last = (
                known["checkpoints"][0],
                poll_until(lambda: auditor.get("/v1/checkpoints", params={"after": 1}).json()["checkpoints"])[-1],
            )
            key = verifier_key(known["keys"][first["key_id"]])
            said, _ = opened(last["note"], [key])
            proof = auditor.get(
                f"/v1/checkpoints/{last['number']}/proof", params={"event": chain.identity(2, 1)}
            ).json()
            steps = [bytes.fromhex(text) for text in proof["path"]]
            assert proof["number"] == proven["leaf"]
            assert proof["header"] == proven["header"]
            assert included(leaf_hash(proof["leaf"].encode()), proof["number"], said.leaves, steps, said.root)
            earlier = auditor.get(
                f"/v1/checkpoints/{last['number']}/proof", params={"earlier": proven["checkpoint"]}
            ).json()
            old, _ = opened(earlier["earlier"]["note"], [key])
            assert consistent(
                old.leaves, old.root, said.leaves, said.root, [bytes.fromhex(text) for text in earlier["path"]]
            )
            for parameters, status in (
                ({}, 400),
                ({"event": "x"}, 400),
                ({"event": chain.identity(9, 9)}, 404),
                ({"earlier": 9_999}, 404),
            ):
                assert auditor.get(f"/v1/checkpoints/{last['number']}/proof", params=parameters).status_code == status
            assert auditor.get("/v1/checkpoints/9999/proof", params={"earlier": 1}).status_code == 404
            with collector.client(collector.key("auditor", site="elsewhere")) as stranger:
                asked = f"/v1/checkpoints/{last['number']}/proof"
                assert stranger.get(asked, params={"event": chain.identity(2, 1)}).status_code == 404


def test_the_collector_makes_checkpoints_and_says_in_its_health_where_they_do_not_get_to(
    dsn: str, tmp_path: Path
) -> None:
    file, missing = tmp_path / "points", tmp_path / "away" / "points"
    settings = {
        "EVIDENCE__KEY_FILE": str(tmp_path / "key"),
        "EVIDENCE__CHECKPOINT_EVERY_S": "1",
        "EVIDENCE__TARGETS": json.dumps([f"file://{file}", f"file://{missing}"]),
    }
    environment = {f"LINEWARDEN_COLLECTOR__{name}": value for name, value in settings.items()}
    with Collector(dsn, **settings) as collector, collector.client(collector.key("agent")) as client:
        assert post(client, Chain().seal(mixture(30))).status_code == 200

        def checkpoints() -> dict[str, Any]:
            said: dict[str, Any] = client.get("/healthz").json()["checks"].get("checkpoints", {})
            return said

        # Before the first is made the health says that none was: what counts here comes after it.
        poll_until(lambda: "takes no checkpoint since" in checkpoints().get("detail", ""), within_s=60)
        assert not checkpoints()["ok"]
        assert client.get("/readyz").status_code == 200
        missing.parent.mkdir()
        poll_until(lambda: checkpoints()["ok"], within_s=60)
        poll_until(lambda: re.search(r"\n[1-9][0-9]*\n", missing.read_text()), within_s=60)
    done = run_cli(dsn, "checkpoint", "key", **environment)
    key = done.stdout.strip()
    assert key.startswith("linewarden/"), done.stderr
    done = run_cli(dsn, "verify", "--json", "--checkpoint", str(missing), "--key", key)
    report = json.loads(done.stdout)
    assert report["ok"], report
    assert report["checkpoints_proven"] >= 2
    done = run_cli(dsn, "checkpoint", "create", **environment)
    assert done.returncode == 0, done.stderr
    assert opened(done.stdout, [verifier_key(key)])[0].leaves >= 1
    assert run_cli(dsn, "checkpoint", "create").returncode == 2
    assert run_cli(dsn, "verify", "--key", "nonsense").returncode == 2


async def test_without_a_key_nothing_is_made_and_nothing_is_said(dsn: str) -> None:
    keeper = Keeper(
        Database(dsn, pool_size=2, synchronous_commit="on"), key_file=None, origin=None, every_s=1, places=Places()
    )
    await asyncio.wait_for(keeper.run(), 5)
    assert not keeper.on


def test_of_many_who_want_a_key_at_once_where_there_is_none_all_get_the_same(tmp_path: Path) -> None:
    for n in range(20):
        file, start = tmp_path / f"key{n}", threading.Barrier(8)

        def want(file: Path = file, start: threading.Barrier = start) -> bytes:
            start.wait()
            return checkpoint.load_key(file, make=True).private_bytes_raw()

        with ThreadPoolExecutor(8) as pool:
            found = [done.result() for done in [pool.submit(want) for _ in range(8)]]
        assert len(set(found)) == 1
        assert checkpoint.load_key(file, make=False).private_bytes_raw() == found[0]
        assert [each.name for each in tmp_path.glob(f"key{n}*")] == [file.name]
