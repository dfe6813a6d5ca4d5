"""A real PostgreSQL for the tests: one server a session, a fresh database a test. Registered in conftest.py."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from agent.simulator.postgres import Postgres

__all__ = ["Postgres", "dsn", "own_postgres", "postgres"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The session's server. Nobody stops it; who wants to, takes `own_postgres`."""
    with Postgres() as server:
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
