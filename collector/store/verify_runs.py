"""When `verify` ran by itself, and which of several collectors does it: whoever has the lock, one at a time."""

import contextlib
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from collector.store.database import connect, translated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from collector.store.database import Anyone, Plain

ADVISORY_LOCK = 0x4C57_000E
KEPT_DAYS = 100


class Last(NamedTuple):
    """The last run. `findings`: None where it did not come to its end."""

    finished: datetime
    findings: int | None
    age_s: float


@contextlib.asynccontextmanager
async def turn(dsn: str) -> "AsyncIterator[Plain | None]":
    """Be the one that verifies while this lasts, on a connection of its own; None where another collector is."""
    connection = await connect(dsn)
    try:
        with translated():
            had = await connection.fetchval("SELECT pg_try_advisory_lock($1)", ADVISORY_LOCK)
            yield connection if had else None
    finally:
        # The lock goes with the connection, also where this process is killed.
        await connection.close(timeout=5)


async def last(connection: "Anyone") -> Last | None:
    """Return the last run; None before the first."""
    row = await connection.fetchrow(
        "SELECT finished, findings, extract(epoch FROM clock_timestamp() - finished)::float8 AS age_s FROM verify_runs "
        "ORDER BY finished DESC LIMIT 1"
    )
    return Last(*row) if row is not None else None


async def note(
    connection: "Anyone", started: datetime, *, findings: int | None, events: int, sampled: bool, trouble: str | None
) -> None:
    """Write down a run, and forget those of long ago."""
    await connection.execute(
        "INSERT INTO verify_runs (started, findings, events, sampled, trouble) VALUES ($1, $2, $3, $4, $5)",
        started, findings, events, sampled, trouble,
    )  # fmt: skip
    await connection.execute(f"DELETE FROM verify_runs WHERE finished < now() - interval '{KEPT_DAYS} days'")
