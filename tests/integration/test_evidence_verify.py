"""`verify` against everything that somebody who owns the database can do to it: each tampering is found and located."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.simulator.postgres import Postgres
from agent.wire.batch import Frame, assemble, read_frame
from collector.app import migrate_at
from collector.evidence.compare import same_json
from collector.evidence.finding import Finding
from collector.evidence.verify import Report, Wanted, verify
from collector.store import partitions, retention
from collector.store.retention import Rule
from tests.collector_process import Chain, Collector, event, post, run_cli
from tests.evidence import fill, mixture, store
from tests.postgres import connected

TODAY = datetime.now(UTC).date()
AGENT = "11111111-1111-4111-8111-111111111111"
OTHER = "22222222-2222-4222-8222-222222222222"
BUFFER = "b" * 32


@dataclass(frozen=True)
class Filled:
    """A database to copy. The agent's lane 1 has batches 1, 2, gap 3 … 5, 6, 7, of 12 events each."""

    postgres: Postgres
    name: str
    dsn: str


@pytest.fixture(scope="module")
def filled(postgres: Postgres) -> Filled:
    name = f"e{uuid4().hex}"
    dsn = postgres.create_database(name)

    async def fill_it() -> None:
        await migrate_at(dsn)
        async with connected(dsn) as connection:
            await partitions.ensure(connection, ahead_days=1)
            await fill(connection, [Chain(AGENT, buffer=BUFFER), Chain(AGENT, buffer=BUFFER, lane=0), Chain(OTHER)])

    asyncio.run(fill_it())
    return Filled(postgres, name, dsn)


def copied(filled: Filled) -> str:
    name = f"c{uuid4().hex}"
    run_sql(filled.postgres.dsn_of("postgres"), f"CREATE DATABASE {name} TEMPLATE {filled.name}")
    return filled.postgres.dsn_of(name)


def run_sql(dsn: str, *statements: str) -> None:
    async def run() -> None:
        async with connected(dsn) as connection:
            for statement in statements:
                await connection.execute(statement)

    asyncio.run(run())


@pytest.fixture
def copy(filled: Filled) -> str:
    """A copy of the filled database, the test's own. It goes with the server: dropping it takes longer than the test."""
    return copied(filled)


_TABLES = ("evidence", "security_events", "gaps", "batch_heads", "places")


@pytest.fixture(scope="module")
def shared(filled: Filled) -> str:
    """One copy for tests that put back what they changed, with `restored`."""
    dsn = copied(filled)
    run_sql(dsn, *(f"CREATE TABLE saved_{table} AS SELECT * FROM {table}" for table in _TABLES))
    return dsn


@asynccontextmanager
async def restored(dsn: str) -> AsyncIterator[Any]:
    """A connection; afterwards everything is as it was."""
    async with connected(dsn) as connection:
        try:
            yield connection
        finally:
            async with connection.transaction():
                for table in _TABLES:
                    await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
                    await connection.execute(f"DELETE FROM {table}")
                    await connection.execute(f"INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM saved_{table}")
                    await connection.execute(f"ALTER TABLE {table} ENABLE TRIGGER ALL")


async def look(dsn: str) -> Report:
    return await verify(dsn, Wanted(processes=1))


async def tampered(dsn: str, *statements: str) -> list[Finding]:
    async with connected(dsn) as connection:
        for statement in statements:
            await connection.execute(statement)
    return (await look(dsn)).findings


def place(finding: Finding) -> tuple[Any, ...]:
    return finding.kind, finding.lane, finding.batch, finding.event, finding.columns


async def test_what_was_stored_as_it_came_holds(filled: Filled) -> None:
    report = await look(filled.dsn)
    assert report.ok, report.findings
    assert (report.batches, report.streams, report.rows, report.events) == (15, 3, 147, 147)


WHERE = f"agent_id = '{AGENT}' AND lane = 1 AND batch_no = 2"
NO_KEY_OF_ROWS, NO_KEY_OF_FRAMES = "DROP INDEX IF EXISTS security_events_once", "DROP INDEX IF EXISTS evidence_once"
"""The tables' owner takes the unique keys away first."""
MATRIX: dict[str, tuple[list[str], tuple[Any, ...]]] = {
    "a changed row": (
        [f"UPDATE security_events SET message = 'nothing happened' WHERE {WHERE} AND idx = 4"],
        ("row.changed", 1, 2, 4, ("message",)),
    ),
    "a changed number deep in data": (
        [f"UPDATE security_events SET data = jsonb_set(data, '{{deep,list,0}}', '2') WHERE {WHERE} AND idx = 0"],
        ("row.changed", 1, 2, 0, ("data",)),
    ),
    "a number that became true": (
        [f"UPDATE security_events SET data = jsonb_set(data, '{{deep,list,0}}', 'true') WHERE {WHERE} AND idx = 0"],
        ("row.changed", 1, 2, 0, ("data",)),
    ),
    "a changed name in the row alone": (
        [f"UPDATE security_events SET actor = 'mallory' WHERE {WHERE} AND idx = 3"],
        ("row.changed", 1, 2, 3, ("actor",)),
    ),
    "a name taken out of the row alone": (
        [f"UPDATE security_events SET actor = NULL, raw = NULL, personal = NULL WHERE {WHERE} AND idx = 0"],
        ("row.changed", 1, 2, 0, ("actor", "raw", "personal")),
    ),
    "a moved place": (
        ["INSERT INTO places (site) VALUES ('elsewhere')",
         f"UPDATE security_events SET place_id = (SELECT max(place_id) FROM places) WHERE {WHERE} AND idx = 9"],
        ("row.changed", 1, 2, 9, ("place_id",)),
    ),
    "a deleted row": (
        [f"DELETE FROM security_events WHERE {WHERE} AND idx = 11"],
        ("row.deleted", 1, 2, 11, ()),
    ),
    "an inserted copy of a row": (
        [NO_KEY_OF_ROWS, f"INSERT INTO security_events SELECT * FROM security_events WHERE {WHERE} AND idx = 5"],
        ("row.inserted", 1, 2, 5, ()),
    ),
    "a row inserted behind its batch": (
        [f"CREATE TEMP TABLE t AS SELECT * FROM security_events WHERE {WHERE} AND idx = 5", "UPDATE t SET idx = 12",
         "INSERT INTO security_events SELECT * FROM t"],
        ("row.inserted", 1, 2, 12, ()),
    ),
    "a row inserted under a batch that never was": (
        [f"CREATE TEMP TABLE t AS SELECT * FROM security_events WHERE {WHERE} AND idx = 5",
         "UPDATE t SET batch_id = 1000000, batch_no = 99", "INSERT INTO security_events SELECT * FROM t"],
        ("row.inserted", 1, 99, 5, ()),
    ),
    "a row inserted below the first batch": (
        [f"CREATE TEMP TABLE t AS SELECT * FROM security_events WHERE {WHERE} AND idx = 5",
         "UPDATE t SET batch_id = 0, batch_no = 98", "INSERT INTO security_events SELECT * FROM t"],
        ("row.inserted", 1, 98, 5, ()),
    ),
    "a row moved to another day": (
        [f"UPDATE security_events SET received = received + interval '1 day' WHERE {WHERE} AND idx = 6"],
        ("row.changed", 1, 2, 6, ("received", "batch_id")),
    ),
    "a row moved to another batch": (
        [f"UPDATE security_events SET batch_id = batch_id + 1 WHERE {WHERE} AND idx = 6"],
        ("row.changed", 1, 2, 6, ("received", "batch_id")),
    ),
    "two rows that changed places": (
        [NO_KEY_OF_ROWS, f"UPDATE security_events SET idx = CASE idx WHEN 3 THEN 8 ELSE 3 END WHERE {WHERE} AND idx IN (3, 8)"],
        ("row.reordered", 1, 2, 3, ("idx",)),
    ),
    "a row at another place": (
        [f"UPDATE security_events SET idx = 40 WHERE {WHERE} AND idx = 6"],
        ("row.reordered", 1, 2, 6, ("idx",)),
    ),
    "a flipped byte of a frame": (
        [f"UPDATE evidence SET frame = set_byte(frame, 200, get_byte(frame, 200) # 1) WHERE {WHERE}"],
        ("frame.changed", 1, 2, None, ("frame",)),
    ),
    "a frame cut short": (
        [f"UPDATE evidence SET frame = substring(frame FOR 300) WHERE {WHERE}"],
        ("frame.changed", 1, 2, None, ("frame",)),
    ),
    "another batch's frame": (
        [f"UPDATE evidence SET frame = (SELECT frame FROM evidence WHERE agent_id = '{OTHER}' AND batch_no = 2) WHERE {WHERE}"],
        ("evidence.changed", 1, 2, None, ("agent_id", "buffer_id", "prev", "hash", "first_time", "last_time")),
    ),
    "a changed hash": (
        [f"UPDATE evidence SET hash = '{'0' * 64}' WHERE {WHERE}"],
        ("evidence.changed", 1, 2, None, ("hash",)),
    ),
    "a changed count of events": (
        [f"UPDATE evidence SET events = 11 WHERE {WHERE}"],
        ("evidence.changed", 1, 2, None, ("events",)),
    ),
    "a batch taken out of the middle": (
        [f"DELETE FROM security_events WHERE {WHERE}", f"DELETE FROM evidence WHERE {WHERE}"],
        ("chain.cut", 1, 2, None, ()),
    ),
    "the last batch taken away": (
        [f"DELETE FROM {table} WHERE agent_id = '{AGENT}' AND lane = 1 AND batch_no = 7" for table in ("security_events", "evidence")],
        ("chain.cut", 1, 7, None, ()),
    ),
    "a whole stream taken away, but for its head": (
        [f"DELETE FROM {table} WHERE agent_id = '{AGENT}' AND lane = 1" for table in ("security_events", "evidence", "gaps")],
        ("chain.cut", 1, 1, None, ()),
    ),
    "a head put back": (
        [f"UPDATE batch_heads SET batch_no = 6 WHERE agent_id = '{AGENT}' AND lane = 1"],
        ("chain.rolled_back", 1, 6, None, ()),
    ),
    "a head with another hash": (
        [f"UPDATE batch_heads SET hash = '{'a' * 64}' WHERE agent_id = '{AGENT}' AND lane = 1"],
        ("head.changed", 1, 7, None, ("hash",)),
    ),
    "a head that counts otherwise": (
        [f"UPDATE batch_heads SET events = events - 1 WHERE agent_id = '{AGENT}' AND lane = 1"],
        ("head.changed", 1, 7, None, ("events",)),
    ),
    "a head taken away": (
        [f"DELETE FROM batch_heads WHERE agent_id = '{AGENT}' AND lane = 1"],
        ("head.deleted", 1, 7, None, ()),
    ),
    "a batch put in twice": (
        [NO_KEY_OF_FRAMES, f"CREATE TEMP TABLE t AS SELECT * FROM evidence WHERE {WHERE}", "UPDATE t SET batch_id = 1000000, events = 0",
         "INSERT INTO evidence SELECT * FROM t"],
        ("chain.forked", 1, 2, None, ()),
    ),
    "a declared loss that was changed": (
        [f"UPDATE gaps SET lost = 1 WHERE agent_id = '{AGENT}' AND lane = 1"],
        ("gap.changed", 1, 3, 0, ("lost",)),
    ),
    "a declared loss that was taken away": (
        [f"DELETE FROM gaps WHERE agent_id = '{AGENT}' AND lane = 1"],
        ("gap.deleted", 1, 3, 0, ()),
    ),
    "a loss made up": (
        [f"CREATE TEMP TABLE t AS SELECT * FROM gaps WHERE agent_id = '{AGENT}' AND lane = 1",
         f"UPDATE t SET batch_id = (SELECT batch_id FROM evidence WHERE {WHERE}), through = NULL", "INSERT INTO gaps SELECT * FROM t"],
        ("gap.inserted", 1, 2, 0, ()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MATRIX)
async def test_a_tampering_is_found_and_located(name: str, shared: str) -> None:
    statements, wanted = MATRIX[name]
    async with restored(shared) as connection:
        for statement in statements:
            await connection.execute(statement)
        found = (await look(shared)).findings
        await connection.execute("DROP TABLE IF EXISTS t")
    assert wanted in [place(finding) for finding in found], found
    if wanted[0] != "evidence.changed":
        mine = [finding for finding in found if finding.agent == AGENT and finding.lane == 1]
        assert mine == [finding for finding in found if finding.agent is not None], "only this stream is accused"


def _remade(frame: Frame, **changes: Any) -> bytes:
    """A frame with another header, made by somebody who knows how."""
    import msgspec

    header = msgspec.json.encode(msgspec.structs.replace(frame.header, **changes))
    return assemble(header, frame.core_z, frame.personal_z)


async def _rewrite(connection: Any, make: Any) -> None:
    where = f"agent_id = '{AGENT}' AND lane = 1 AND batch_no = 2"
    frame = read_frame(await connection.fetchval(f"SELECT frame FROM evidence WHERE {where}"))
    wire = make(frame)
    new = read_frame(wire)
    await connection.execute(
        f"UPDATE evidence SET frame = $1, hash = $2, prev = $3 WHERE {where}", wire, new.hash, new.header.prev
    )


async def test_a_batch_made_anew_does_not_fit_the_one_behind_it(copy: str) -> None:
    """Row, frame and hash all agree; the next batch still names the old one."""
    async with connected(copy) as connection:
        await _rewrite(connection, lambda frame: _remade(frame, sealed=frame.header.sealed + 1))
    assert [place(f)[:3] for f in (await look(copy)).findings] == [("chain.broken", 1, 6 - 3)]


async def test_a_personal_line_changed_in_frame_and_row_is_found(copy: str) -> None:
    import zstandard

    def with_other_name(frame: Frame) -> bytes:
        lines = [line.replace(b'"eve"', b'"bob"') for line in frame.personal_lines()]
        return assemble(frame.header_bytes, frame.core_z, zstandard.compress(b"\n".join(lines)))

    async with connected(copy) as connection:
        await _rewrite(connection, with_other_name)
        await connection.execute(f"UPDATE security_events SET actor = 'bob' WHERE {WHERE} AND actor = 'eve'")
    found = {place(f)[:4] for f in (await look(copy)).findings}
    assert found == {("personal.changed", 1, 2, idx) for idx in (0, 3, 6, 9)}


async def test_a_personal_line_that_nobody_declared_erased_is_found(copy: str) -> None:
    async with connected(copy) as connection:
        await _rewrite(connection, lambda frame: assemble(frame.header_bytes, frame.core_z, b""))
        await connection.execute(f"UPDATE security_events SET actor = NULL, raw = NULL, personal = NULL WHERE {WHERE}")
        found = {place(f)[:4] for f in (await look(copy)).findings}
        assert found == {("personal.deleted", 1, 2, idx) for idx in (0, 3, 6, 9)}
        number = await connection.fetchval(f"SELECT batch_id FROM evidence WHERE {WHERE}")
        sql = "INSERT INTO erased_lines VALUES ($1, 1, '{[0,1),[3,4),[6,7),[9,10)}')"
        await connection.execute(sql, number)
    # A row that declares them erased is no erasure: nobody asked for it, and nobody confirmed it.
    (forged, unconfirmed) = (await look(copy)).findings
    assert (forged.kind, forged.lane, forged.batch, forged.table) == ("erasure.forged", 1, 2, "erased_lines")
    assert (unconfirmed.kind, unconfirmed.table, unconfirmed.record) == ("erasure.forged", "erasures", 1)


@pytest.mark.parametrize("gone", [("security_events", "evidence"), ("security_events",), ("evidence",)])
async def test_a_partition_that_was_dropped_by_hand_is_named(copy: str, gone: tuple[str, ...]) -> None:
    day = TODAY - timedelta(days=3)
    chain = Chain()
    async with connected(copy) as connection:
        for back in (4, 3, 2):
            for table in partitions.PARTITIONED:
                await partitions._make(connection, table, TODAY - timedelta(days=back))
            await store(connection, chain.seal(mixture(5)), day=TODAY - timedelta(days=back))
        assert (await look(copy)).ok
        for table in gone:
            await connection.execute(f"DROP TABLE {table}_{day:%Y%m%d}")
    found = (await look(copy)).findings
    assert f"{gone[-1]}_{day:%Y%m%d}" in {f.table for f in found if f.kind == "partition.missing"}, found


async def _aged(connection: Any, days: int) -> Chain:
    """A stream with two batches on each of the last days."""
    chain = Chain()
    for back in range(days, 0, -1):
        day = TODAY - timedelta(days=back)
        for table in partitions.PARTITIONED:
            await partitions._make(connection, table, day)
        await store(connection, chain.seal(mixture(10)), day=day)
        lost = event("lost", type="collection.gap", source="buffer", data={"events": 7, "reason": "full"})
        await store(connection, chain.seal([lost], gap=2), day=day)
    return chain


POLICY = [Rule(severity_min=5, days=6), Rule(days=3)]


async def test_it_holds_through_retention_and_names_what_goes_beside_it(copy: str) -> None:
    async with connected(copy) as connection:
        chain = await _aged(connection, 9)
        await connection.execute("UPDATE legal_holds SET released = now()")
        done = await retention.run(connection, POLICY, [], dry=False)
        assert {a.kind for a in done} == {"drop", "delete"}
        report = await look(copy)
        assert report.ok, report.findings
        assert report.deleted_by_retention > 0
        row = await connection.fetchrow(
            "SELECT batch_no, idx FROM security_events WHERE agent_id = $1 ORDER BY received, idx LIMIT 1",
            UUID(chain.agent),
        )
        assert row is not None
        sql = "DELETE FROM security_events WHERE agent_id = $1 AND batch_no = $2 AND idx = $3"
        await connection.execute(sql, UUID(chain.agent), row["batch_no"], row["idx"])
    found = (await look(copy)).findings
    assert [(f.kind, f.batch, f.event) for f in found] == [("row.deleted", row["batch_no"], row["idx"])]


async def test_frames_that_retention_took_without_their_day_leave_a_chain_that_holds(copy: str) -> None:
    async with connected(copy) as connection:
        await _aged(connection, 9)
        kept = retention.Hold(1, await _held("severity=6"))
        await retention.run(connection, POLICY, [kept], dry=False)
        assert await connection.fetchval("SELECT count(*) FROM tombstones WHERE rule LIKE 'frames%'")
        assert (await look(copy)).ok, (await look(copy)).findings
        await retention.run(connection, POLICY, [], dry=False)
        assert (await look(copy)).ok, (await look(copy)).findings


async def _held(query: str) -> Any:
    from collector.query import filter_of
    from collector.store.events import ALL

    return filter_of(query, ALL)


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("UPDATE tombstones SET events = events + 1 WHERE tombstone_id = 2", "tombstone.changed"),
        ("DELETE FROM tombstones WHERE tombstone_id = 2", "tombstone.broken"),
        ("UPDATE tombstone_rows SET idx = idx + '{[9,10)}' WHERE NOT idx @> 9", "tombstone.changed"),
    ],
)
async def test_a_tampered_tombstone_is_found(copy: str, statement: str, kind: str) -> None:
    async with connected(copy) as connection:
        await _aged(connection, 9)
        await retention.run(connection, POLICY, [], dry=False)
        await connection.execute(statement)
    found = (await look(copy)).findings
    assert kind in {f.kind for f in found}, found


def _edited(value: Any, draw: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return draw(st.integers(-30_000, 30_000).filter(lambda n: n != value))
    if isinstance(value, datetime):
        return value + timedelta(microseconds=draw(st.integers(1, 10**6)))
    if isinstance(value, UUID):
        return UUID(int=value.int ^ (1 << draw(st.integers(0, 127))))
    if value.startswith("{"):
        return json.dumps(
            {**json.loads(value), draw(st.sampled_from(["n", "value", "new"])): draw(st.integers(10**6, 10**9))}
        )
    at = draw(st.integers(0, len(value)))
    return value[:at] + draw(st.sampled_from("xyz\u00e4 ")) + value[at:]


NOT_PROVEN = {"evidence": {"xid", "batch_id", "received", "place_id"}, "security_events": set()}
"""Columns that no frame knows of: the Merkle tree has them, see test_evidence_checkpoint.py."""


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_any_edit_of_any_stored_column_is_found(shared: str, data: st.DataObject) -> None:
    """Of an event's row, or of the row about its batch: every column, any value that PostgreSQL takes."""
    table = data.draw(st.sampled_from(["security_events", "security_events", "evidence"]))
    async with restored(shared) as connection:
        rows = await connection.fetch(
            f"SELECT ctid::text AS at, tableoid::regclass::text AS part, * FROM {table} ORDER BY batch_id, lane"
        )
        row = data.draw(st.sampled_from(rows))
        columns = [c for c in row.keys() if c not in ("at", "part", "frame") and c not in NOT_PROVEN[table]]  # noqa: SIM118
        column = data.draw(st.sampled_from(columns))
        old = row[column]
        new = "1" if old is None and column == "time_claimed" else _edited(old, data.draw) if old is not None else "x"
        if column in ("data", "personal") and old is None:
            new = '{"n": 1}'
        kind = await connection.fetchval(
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = $1::regclass AND attname = $2",
            table,
            column,
        )
        value = None if new is None else str(new)
        try:
            sql = f"UPDATE {table} SET {column} = $1::text::{kind} WHERE ctid = $2::text::tid AND tableoid = $3::text::regclass"
            status = await connection.execute(sql, value, row["at"], row["part"])
        except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError):
            return
        assert status == "UPDATE 1"
        report = await look(shared)
    assert not report.ok, (table, column, old, new)


numbers = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.dictionaries(st.text(max_size=5), values, max_size=5))
async def test_what_jsonb_makes_of_an_object_is_the_same_and_of_another_is_not(
    shared: str, value: dict[str, Any]
) -> None:
    sent = json.dumps(value).encode()
    async with connected(shared) as connection:
        try:
            stored = (await connection.fetchval("SELECT $1::text::jsonb::text", sent.decode())).encode()
        except (asyncpg.DataError, asyncpg.PostgresSyntaxError):
            return
    assert same_json(sent, stored)
    other = json.dumps({**value, "one more": 1}).encode()
    assert same_json(other, stored) == ("one more" in value and value["one more"] == 1)


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (b'{"a":1}', b'{"a": true}'),
        (b'{"a":1.0}', b'{"a": 1}'),
        (b'{"a":"1"}', b'{"a": 1}'),
        (b'{"a":[1,2]}', b'{"a": [2, 1]}'),
    ],
)
def test_values_that_look_alike_are_told_apart(sent: bytes, stored: bytes) -> None:
    assert not same_json(sent, stored)


def test_the_command_says_where_and_ends_with_one_while_events_come_in(copy: str) -> None:
    with Collector(copy) as collector, collector.client(collector.key("agent")) as client:
        chain = Chain()
        for _ in range(3):
            assert post(client, chain.seal(mixture(400))).status_code == 200
        done = run_cli(copy, "verify", "--json", "--agent", chain.agent)
        assert json.loads(done.stdout)["events"] == 1200, done.stderr
    run_sql(copy, "UPDATE security_events SET severity = 1 WHERE batch_no = 2 AND idx = 5 AND lane = 0")
    done = run_cli(copy, "verify")
    assert done.returncode == 1
    assert (
        f"agent {AGENT}; buffer {BUFFER}; lane 0; batch 2; event 5; table security_events; column severity"
        in done.stdout
    )
    assert run_cli(copy, "verify", "--agent", OTHER).returncode == 0


async def test_it_holds_while_events_come_in(copy: str) -> None:
    """Batches that are stored while it looks are seen whole or not at all."""
    stop = asyncio.Event()

    async def ingest() -> None:
        chain = Chain()
        async with connected(copy) as connection:
            while not stop.is_set():
                await store(connection, chain.seal(mixture(50)), chain.seal(mixture(50)))

    task = asyncio.create_task(ingest())
    try:
        reports = [await look(copy) for _ in range(8)]
    finally:
        stop.set()
        await task
    assert [report.findings for report in reports] == [[]] * 8
    assert reports[-1].rows > reports[0].rows
    since = await verify(copy, Wanted(processes=1, since=datetime.now(UTC) + timedelta(days=1)))
    assert since.ok
    assert since.batches == 0


async def test_values_that_jsonb_cannot_hold_are_compared_in_the_form_they_are_kept_in(copy: str) -> None:
    events = [event("a\0b", data={"x": "nul \0 here", "n": 1}, actor="e\0ve"), event("c", data={"y": 2})]
    with Collector(copy) as collector, collector.client(collector.key("agent")) as client:
        chain = Chain()
        assert post(client, chain.seal(events)).status_code == 200
    assert (await look(copy)).ok
    found = await tampered(
        copy, f"UPDATE security_events SET data_text = '{{}}' WHERE agent_id = '{chain.agent}' AND idx = 0"
    )
    assert [place(f) for f in found] == [("row.changed", 1, 1, 0, ("data_text",))]


async def test_several_processes_find_the_same(copy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.evidence.verify.ALONE_EVENTS", 0)
    report = await verify(copy, Wanted(processes=2))
    assert report.ok
    assert report.rows == 147
    async with connected(copy) as connection:
        await connection.execute(f"DELETE FROM security_events WHERE {WHERE} AND idx = 1")
    report = await verify(copy, Wanted(processes=2))
    assert [place(f) for f in report.findings] == [("row.deleted", 1, 2, 1, ())]
