"""A batch is stored once, by more than a lock: the head moves only from where it was read, and the tables refuse a second row."""

from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import pytest

from agent.wire.batch import Frame, read_frames
from collector.app import migrate_at
from collector.store import batches, partitions
from collector.store.batches import Transaction
from collector.store.database import StoreUnavailable
from tests.collector_process import Chain, event
from tests.postgres import connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from collector.store.batches import Head, Stream


@pytest.fixture
async def opened(dsn: str) -> "AsyncIterator[asyncpg.Connection[Any]]":
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        await partitions.ensure(connection, ahead_days=0)
        yield connection


def frame_of(chain: Chain) -> Frame:
    return next(read_frames(chain.seal([event("a"), event("b")]).frame))


async def put(connection: Any, chain: Chain, frame: Frame, heads: "dict[Stream, Head] | None" = None) -> None:
    transaction = Transaction(connection, UUID(chain.agent))
    stream = UUID(chain.buffer), chain.lane
    heads = heads or await transaction.lock_heads([stream])
    head = heads[stream]
    head.no, head.hash, head.batches, head.events = frame.header.no, frame.hash, 1, 2
    await transaction.store([frame], 1, careful=False)
    await transaction.move_heads(heads)


async def test_a_batch_whose_head_was_moved_meanwhile_is_not_stored_though_no_lock_held_it(
    opened: "asyncpg.Connection[Any]",
) -> None:
    chain = Chain()
    frame = frame_of(chain)
    stale = {(UUID(chain.buffer), chain.lane): batches.Head()}
    async with opened.transaction():
        await put(opened, chain, frame)
    with pytest.raises(StoreUnavailable, match="moved by another request"):
        async with opened.transaction():
            await put(opened, chain, frame, stale)
    assert await opened.fetchval("SELECT count(*) FROM evidence") == 1
    assert await opened.fetchval("SELECT count(*) FROM security_events") == 2


@pytest.mark.parametrize("table", ["evidence", "security_events"])
async def test_the_tables_refuse_a_second_row_of_a_batch(opened: "asyncpg.Connection[Any]", table: str) -> None:
    chain = Chain()
    async with opened.transaction():
        await put(opened, chain, frame_of(chain))
    columns = await opened.fetchval(
        "SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped",
        table,
    )
    values = columns.replace("batch_id", "nextval('batch_ids')") if table == "evidence" else columns
    with pytest.raises(asyncpg.UniqueViolationError):
        await opened.execute(f"INSERT INTO {table} ({columns}) SELECT {values} FROM {table}")
