"""A real PostgreSQL for the tests: one server a session, a fresh database a test. Registered in conftest.py."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg
import pytest

from agent.simulator.postgres import Postgres

__all__ = ["Postgres", "connected", "dsn", "own_postgres", "postgres"]


@asynccontextmanager
async def connected(dsn: str) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    """A connection, closed at the end."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The session's server. Nobody stops it; who wants to, takes `own_postgres`. So it need not write to the disk itself."""
    with Postgres(settings={"fsync": "off", "full_page_writes": "off"}) as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server of the test's own, to stop and kill."""
    with Postgres() as server:
        yield server


@pytest.fixture
def dsn(postgres: Postgres) -> Iterator[str]:
    """A fresh, empty database."""
    name = f"t{uuid4().hex}"
    yield postgres.create_database(name)
    postgres.drop_database(name)
