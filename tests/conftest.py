"""Fixtures that every test may use."""

import os

import hypothesis
import pytest

from tests.collector_process import collector
from tests.postgres import dsn, own_postgres, postgres

# The tests start hundreds of programs of ours. Each would compile all their modules anew, a second or two, where this is set.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

__all__ = ["collector", "dsn", "own_postgres", "postgres"]


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a test by its argument's name where the value is bytes.

    A compressed body carries the time at which it was made, and workers that collect a second apart must give every test one name.
    """
    return argname if isinstance(val, bytes) else None


SLOW = (
    "test_demo", "test_spine", "test_enrolment", "test_every_source", "test_doors", "test_network_watch", "test_opcua_pitfalls",
    "test_campaign", "test_notification", "test_opcua", "test_collector_matrix",
)  # fmt: skip
"""Files that take longest as a whole: a file is one worker's work, and one of these begun last would have the others wait."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow files first; others keep their order."""
    rank = {f"{name}.py": at for at, name in enumerate(SLOW)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


# On a busy machine a slow example says nothing about the code. The same examples in every run of the suite, so that a change is judged by
# itself; other ones each time in `make faults` and with LINEWARDEN_EXPLORE=1, which are there to find what nobody thought of.
hypothesis.settings.register_profile("linewarden", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.register_profile("explore", deadline=None, print_blob=True)
hypothesis.settings.load_profile("explore" if os.environ.get("LINEWARDEN_EXPLORE") else "linewarden")
