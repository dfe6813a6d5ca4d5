"""Readers in the order of commits, while the numbers of transactions grow by a digit: each reads every batch once."""

import base64
import os
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import msgspec
import pytest

from agent.simulator.postgres import Postgres
from agent.wire.batch import read_frames
from collector import stream as live
from collector.alert_reader import AlertReader, AlertSettings
from collector.app import migrate_at
from collector.rules import RulesSettings
from collector.store import analytics, partitions, stream, tree
from collector.store.batches import Transaction
from collector.store.database import Database
from collector.store.events import ALL, Filter
from collector.store.stream import Cursor, Snapshot
from collector.vault import Vault
from tests.collector_process import Chain, event
from tests.postgres import connected

if TYPE_CHECKING:
    import asyncpg

BEFORE, AFTER = 11, 11
"""Transactions before the number that has a digit more, and from it on."""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server of this file's own, whose transactions are counted up."""
    with Postgres() as running:
        yield running


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers take a few batches at once, so that each stands between two of them often."""
    monkeypatch.setattr(stream, "_CHUNK_BATCHES", 3)
    monkeypatch.setattr(analytics, "EVENTS_MAX", 3)


@pytest.fixture
async def opened(server: Postgres) -> "AsyncIterator[asyncpg.Connection[Any]]":
    """A migrated database."""
    name = f"o{uuid4().hex}"
    dsn = server.create_database(name)
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        await partitions.ensure(connection, ahead_days=0)
        yield connection
    server.drop_database(name)


async def store(connection: Any, batches: int) -> None:
    """Batches of one alert each, a transaction each."""
    chain = Chain(lane=0)
    for number in range(batches):
        alert = event(f"alert {number}", type="alert.test", severity=4, data={"handler": "h", "key": {"n": number}})
        frame = next(read_frames(chain.seal([alert]).frame))
        async with connection.transaction():
            await Transaction(connection, UUID(chain.agent)).store([frame], 1, careful=False)


async def burn_until(connection: Any, number: int) -> None:
    """Use up numbers of transactions, so that the next one is `number`."""
    now = int(await connection.fetchval("SELECT pg_snapshot_xmax(pg_current_snapshot())::text"))
    assert now <= number
    await connection.execute("SET synchronous_commit = off")
    await connection.execute(
        f"DO $$ BEGIN FOR i IN 1..{number - now} LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"
    )


def reset_to(server: Postgres, number: int) -> None:
    """Have a stopped server count on from a number."""
    server.stop()
    commits = server.folder / "data" / "pg_xact"
    for segment in range(number // 2**20 + 1):
        if not (file := commits / f"{segment:04X}").exists():
            file.write_bytes(bytes(2**18))
            owner = commits.stat()
            os.chown(file, owner.st_uid, owner.st_gid)
    done = server._run("pg_resetwal", "-x", str(number), "-D", str(server.folder / "data"))
    assert done.returncode == 0, done.stderr
    server.start()


async def read_all(connection: Any, old: Snapshot, new: Snapshot) -> list[tuple[int, int]]:
    """Transaction and number of every batch, by the function that all readers use."""
    found: list[tuple[int, int]] = []
    after = None
    while True:
        batches, after = await stream.batches_between(connection, old, new, after)
        found += [(int(batch["xid"]), batch["batch_id"]) for batch in batches]
        if after is None:
            return found


async def stored_between(connection: Any) -> list[tuple[int, int]]:
    rows = await connection.fetch("SELECT xid::text::bigint AS number, batch_id FROM evidence")
    return sorted((row["number"], row["batch_id"]) for row in rows)


async def alert_reader(dsn: str) -> tuple[Database, AlertReader]:
    database = Database(dsn, pool_size=3, synchronous_commit="on")
    await database.open()
    return database, AlertReader(database, AlertSettings(), RulesSettings(), ())


@pytest.mark.parametrize("digits", range(1, 8))
async def test_every_batch_is_delivered_once_and_in_order_though_the_numbers_grow_by_a_digit(
    opened: "asyncpg.Connection[Any]", digits: int
) -> None:
    first = max(1, 10**digits - BEFORE)
    await store(opened, 10**digits + AFTER - first)
    # A snapshot is numbers alone, so those of old transactions serve for any.
    await opened.execute(
        "UPDATE evidence e SET xid = (n.number)::text::xid8 FROM "
        "(SELECT batch_id, $1 - 1 + row_number() OVER (ORDER BY batch_id DESC) AS number FROM evidence) n "
        "WHERE n.batch_id = e.batch_id",
        first,
    )
    stored = await stored_between(opened)
    assert stored[0][0] < 10**digits <= stored[-1][0]
    new = Snapshot(0, 10**8, 10**8, ())
    assert await read_all(opened, Snapshot(0, 1, 1, ()), new) == stored


async def test_all_readers_read_every_batch_once_over_every_digit_of_the_transaction_numbers(
    server: Postgres, opened: "asyncpg.Connection[Any]"
) -> None:
    """Alerts, analytics, the tree and a client that comes back with a cursor: 500 of 800 were read when 10,000 came before 9,999."""
    name = await opened.fetchval("SELECT current_database()")
    dsn = server.dsn_of(name)
    await opened.close()
    stored = 0
    for edge in (10_000, 100_000, 10_000_000):
        if edge == 10_000_000:
            reset_to(server, edge - 2 * BEFORE - 10)
        async with connected(dsn) as connection:
            home = await stream.home_of(connection)
            start = Cursor(home, await stream.now(connection))
            await burn_until(connection, edge - BEFORE)
            await store(connection, BEFORE + AFTER)
            numbers = [number for number, _ in (await stored_between(connection))[stored:]]
            assert numbers[0] < edge <= numbers[-1]
            stored += BEFORE + AFTER
            await check_readers(dsn, connection, start, stored)


async def check_readers(dsn: str, connection: Any, start: Cursor, stored: int) -> None:
    database, reader = await alert_reader(dsn)
    vault = Vault()
    await vault.load(connection)
    hub = live.Hub(database, vault)
    try:
        until = await stream.now(connection)
        seen = 0
        async for message in hub.read_on(start, until, Filter(scope=ALL)):
            seen += message.events
        while await reader.step():
            pass
        while await analytics.fold(connection, vault.pseudonym) is not None:
            pass
        await tree.grow(connection)
        assert seen == BEFORE + AFTER
        assert await connection.fetchval("SELECT count(*) FROM alert_events") == stored
        assert await connection.fetchval("SELECT sum(events)::bigint FROM activity") == stored
        assert (await tree.state(connection)).leaves == stored
        assert await tree.not_in_tree(connection, until.xmin) == []
    finally:
        await database.close()


def test_a_client_s_cursor_of_the_former_order_reads_its_step_again() -> None:
    """What stood behind its position then is not what stands behind it now: rather twice than never."""
    base, step = Snapshot(0, 1, 1, ()), Snapshot(0, 10**8, 10**8, ())
    position = stream.Position(9, 3, 0)
    former = base64.urlsafe_b64encode(msgspec.msgpack.encode((7, base, step, position))).decode().rstrip("=")
    assert stream.decode_cursor(former, 7) == Cursor(7, base, step, stream.Position(0, 0, 0))
    assert stream.decode_cursor(Cursor(7, base, step, position).encode(), 7) == Cursor(7, base, step, position)
    assert stream.decode_cursor(Cursor(7, base).encode(), 7) == Cursor(7, base)
