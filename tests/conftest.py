"""Fixtures that every test may use."""

from tests.collector_process import collector
from tests.postgres import dsn, own_postgres, postgres

__all__ = ["collector", "dsn", "own_postgres", "postgres"]
