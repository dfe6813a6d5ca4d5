"""The audit log on a real PostgreSQL: it only grows, its chain can be computed again, and floods of refusals stay small."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector import audit
from collector.app import migrate_at
from collector.audit import Who
from collector.store import audit as store
from collector.store.database import Database
from tests.collector_process import Collector, poll_until
from tests.postgres import connected


async def _all(connection: "asyncpg.Connection[asyncpg.Record]") -> list[audit.Record]:
    return await store.following(connection, 0, 100_000)


def _holds(records: list[audit.Record]) -> bool:
    before = audit.GENESIS
    for no, record in enumerate(records, 1):
        if record.no != no or record.prev != before or record.hash != audit.record_hash(record):
            return False
        before = record.hash
    return True


async def test_records_form_a_chain_that_can_be_computed_again(dsn: str) -> None:
    await migrate_at(dsn)
    data: dict[str, Any] = {
        "b": 1,
        "a": "ä\0\ud800\u2028",
        "f": 1.5,
        "g": 2.0,
        "big": 10**40,
        "nan": float("nan"),
        "deep": [[[[[[1]]]]]],
    }
    async with connected(dsn) as connection:
        await audit.record(connection, Who("ann", "user", "admin", "10.0.0.1"), "session.created")
        await audit.record(connection, Who.command(), "events.exported", target="x\0", result="failure", data=data)
        await audit.record(
            connection, Who.system(), "key.created", data={"long": "x" * 100_000, "many": list(range(100_000))}
        )
        found = await _all(connection)
        assert len(found) == 3
        assert _holds(found)
        assert await store.head(connection) == (3, found[-1].hash)
        assert found[1].data["a"] == "ä\ufffd?\u2028"
        assert found[1].data["f"] == "1.5"
        assert len(json.dumps(found[2].data)) < 20_000


async def test_a_changed_record_no_longer_has_its_hash(dsn: str) -> None:
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        made = await audit.record(connection, Who("ann", "user"), "key.created", target="abc", data={"role": "viewer"})
    assert audit.record_hash(made) == made.hash
    changes: list[dict[str, Any]] = [
        {"no": 2}, {"who": "bob"}, {"role": "x"}, {"target": "abd"}, {"data": {"role": "admin"}}, {"prev": b"1" * 32},
        {"result": "refused"},
        {"address": "::1"}, {"action": "key.revoked"}, {"who_kind": "key"},
    ]  # fmt: skip
    assert all(audit.record_hash(replace(made, **change)) != made.hash for change in changes)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET who = 'x'", "DELETE FROM audit_log", "TRUNCATE audit_log", "DELETE FROM audit_head",
        "TRUNCATE audit_head", "UPDATE audit_head SET no = 0", "UPDATE audit_head SET hash = '\\x00'",
    ],
)  # fmt: skip
async def test_what_was_recorded_cannot_be_changed_or_removed(dsn: str, statement: str) -> None:
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        await audit.record(connection, Who.system(), "key.created")
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match=r"only grows|grows by one"):
            await connection.execute(statement)
        assert _holds(await _all(connection))


async def test_those_who_record_at_once_stand_in_one_line(dsn: str) -> None:
    await migrate_at(dsn)

    async def write(name: str) -> None:
        async with connected(dsn) as connection:
            for number in range(20):
                await audit.record(connection, Who(name, "user"), "personal.read", target=str(number))

    await asyncio.gather(*(write(f"u{number}") for number in range(8)))
    async with connected(dsn) as connection:
        found = await _all(connection)
    assert len(found) == 160
    assert _holds(found)
    assert [record.time for record in found] == sorted(record.time for record in found)


async def test_a_record_is_undone_with_what_it_records(dsn: str) -> None:
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        await audit.record(connection, Who.system(), "key.created")
        transaction = connection.transaction()
        await transaction.start()
        await audit.record(connection, Who.system(), "key.revoked")
        await transaction.rollback()
        await audit.record(connection, Who.system(), "user.created")
        found = await _all(connection)
    assert [record.action for record in found] == ["key.created", "user.created"]
    assert _holds(found)


async def test_a_flood_of_refusals_becomes_few_records_that_count_all_of_them(dsn: str) -> None:
    await migrate_at(dsn)
    database = Database(dsn, pool_size=2, synchronous_commit="on")
    await database.open()
    try:
        refusals = audit.Refusals(database)
        for number in range(50_000):
            refusals.note(Who.nobody(f"10.0.{number % 1000 // 256}.{number % 256}"), "key", "GET /v1/events")
        await refusals.write(everything=False)
        for _ in range(1_000):
            refusals.note(Who.nobody("10.0.0.1"), "key", "GET /v1/agents")
        await refusals.write(everything=False)
        await refusals.write(everything=True)
        async with connected(dsn) as connection:
            found = await _all(connection)
    finally:
        await database.close()
    assert len(found) <= audit.KINDS_MAX + 2
    assert sum(record.data["count"] for record in found) == 51_000
    assert {record.action for record in found} == {"access.refused"}


def test_a_request_without_a_good_key_is_recorded_with_its_address(postgres: Any) -> None:
    with Collector(postgres.create_database("refused")) as collector:
        with collector.client("lw_abcdefgh_nothing") as client:
            assert client.get("/v1/events").status_code == 401
        with collector.client(collector.key("viewer")) as client:
            assert client.post("/v1/batches", content=b"").status_code == 403

        async def refused() -> list[audit.Record]:
            async with connected(collector.dsn) as connection:
                return [record for record in await _all(connection) if record.action == "access.refused"]

        found = poll_until(lambda: len(f := asyncio.run(refused())) == 2 and f, why="both refusals are recorded")
    assert {(record.who_kind, record.role, record.data["reason"]) for record in found} == {
        ("nobody", "", "key"),
        ("key", "viewer", "role"),
    }
    assert {record.address for record in found} == {"127.0.0.1"}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_data_is_the_same_after_json(value: Any) -> None:
    kept = store.bounded({"value": value})
    assert json.loads(json.dumps(kept, ensure_ascii=False)) == kept
    json.dumps(kept, ensure_ascii=False).encode()
