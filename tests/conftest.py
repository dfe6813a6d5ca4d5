"""Fixtures that every test may use."""

import hypothesis

from tests.collector_process import collector
from tests.postgres import dsn, own_postgres, postgres

__all__ = ["collector", "dsn", "own_postgres", "postgres"]

# On a busy machine a slow example says nothing about the code.
hypothesis.settings.register_profile("linewarden", deadline=None)
hypothesis.settings.load_profile("linewarden")
