"""Events that stop a reader: found one by one, recorded, reported, and passed over, so that what comes after them is read.

A step takes many events at once. Where one of them cannot be read, the step is done again with each event tried alone in a savepoint
that is rolled back; those that fail are left out of it and are in `unread_events` from then on.
"""

from datetime import datetime
from typing import TYPE_CHECKING, Any

import asyncpg

from collector.background import UNREADABLE, described
from collector.rules.base import Finding
from collector.store import readers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from collector.store.database import Connection
    from collector.store.events import Record

CANNOT_READ: tuple[type[Exception], ...] = (*UNREADABLE, asyncpg.DataError, asyncpg.ProgramLimitExceededError)
"""What an event does to a step that it stops."""
NAMED_MAX = 20
Unread = tuple[int, int, datetime, str]


async def split(
    connection: "Connection", rows: "Sequence[Record]", attempt: "Callable[[Record], Awaitable[Any]]"
) -> "tuple[list[Record], list[tuple[Record, str]]]":
    """Return the rows with which an attempt works, and the others with the reason; nothing of the attempts stays."""
    good: list[Record] = []
    bad: list[tuple[Record, str]] = []
    for row in rows:
        savepoint = connection.transaction()
        await savepoint.start()
        try:
            await attempt(row)
            good.append(row)
        except CANNOT_READ as error:
            bad.append((row, described(error)))
        finally:
            await savepoint.rollback()
    return good, bad


async def report(connection: "Connection", reader: str, bad: "Sequence[tuple[Record, str]]") -> list[Finding]:
    """Record what could not be read; return what is to be reported of it."""
    events: list[Unread] = [(row["batch_id"], row["idx"], row["received"], reason) for row, reason in bad]
    if not await readers.pass_over(connection, reader, events):
        return []
    row, reason = bad[0]
    identities = [
        f"{one['agent_id']}/{one['buffer_id'].hex}/{one['lane']}/{one['batch_no']}/{one['idx']}"
        for one, _ in bad[:NAMED_MAX]
    ]
    return [
        Finding(
            rule="unread", key=f"{reader} {row['agent_id']}", type="alert.collector.unread", severity=4, place_id=row["place_id"],
            target=str(row["agent_id"]), message=f"{reader}: {len(bad)} stored events could not be read and were passed over: {reason}",
            data={"reader": reader, "unread": len(bad), "reason": reason, "events": identities},
        )
    ]  # fmt: skip


def finding_of(difference: readers.Difference) -> Finding:
    """Return what is to be reported where a reader has not read what was stored."""
    then = "everything is read again" if difference.repairs else "run: linewarden-collector db reread"
    stored, read = difference.stored, difference.read
    return Finding(
        rule="reader", key=difference.reader, type="alert.collector.reader", severity=5, target=difference.reader,
        message=f"{difference.text}; {then}",
        data={
            "reader": difference.reader, "stored_batches": stored.batches, "stored_events": stored.events, "read_batches": read.batches,
            "read_events": read.events, "uncounted": difference.uncounted, "repairs": difference.repairs,
        },
    )  # fmt: skip
