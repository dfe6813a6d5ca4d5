"""Reads stored events again for alerts, beside what is new: after a fault of the reader, after a database was put back, on request.

It goes by the numbers of batches and not by the order of commits, up to the last that was there when it began; what comes later is the
reader's. Nothing is counted twice: an alert event is known by its identity in `alert_events`, what a rule of the centre found by the
identity of the event that it names, a sighting by its key. An event that is counted late changes its alert as far as an earlier event
can: the count, the first time, the severity. It opens an alert that is closed only if it is newer than all that the alert has.
"""

from datetime import timedelta
from typing import TYPE_CHECKING

from collector.alert_unread import report, split
from collector.rules import base
from collector.store import alerts as store
from collector.store import fleet as fleet_store
from collector.store import readers, stream
from collector.store.batches import CENTRE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collector.alert_reader import AlertReader
    from collector.store.alerts import Reader
    from collector.store.database import Connection
    from collector.store.events import Record

BATCHES_MAX = 200


async def piece(reader: "AlertReader", connection: "Connection", state: "Reader") -> tuple[list[base.Finding], bool]:
    """Read the next batches again; what the rules find in them, and whether anything was written to the outbox."""
    done, until = state.reread or 0, state.reread_to or 0
    batches = await store.batches_again(connection, done, until, state.reread_since, BATCHES_MAX)
    if not batches:
        await _end(connection)
        return [], False
    items = await stream.items_of(connection, batches, reader.picked)
    rows = sorted((item.row for item in items), key=lambda row: (row["received"], row["batch_id"], row["idx"]))
    rows, findings = await _unjudged(reader, connection, state, rows)
    counted = await reader.count_again(connection, state, rows)
    recent = state.now - timedelta(seconds=max((rule.within_s for rule in reader.spread_rules), default=0))
    findings += await reader.spread(connection, [batch for batch in batches if batch["received"] >= recent], state.now)
    await store.move_reread(connection, batches[-1]["batch_id"])
    return findings, counted


async def _unjudged(
    reader: "AlertReader", connection: "Connection", state: "Reader", rows: "Sequence[Record]"
) -> "tuple[list[Record], list[base.Finding]]":
    """Return the rows that can be read, and what the rules find in those of which nothing was found before."""

    async def attempt(row: "Record") -> None:
        reader.judge([row])
        await reader.count_again(connection, state, [row])

    good, bad = await split(connection, rows, attempt)
    findings = reader.judge(good)
    known = await store.found_before(connection, [name for finding in findings for name in finding.data["events"]])
    findings = [
        finding for finding in findings if not known & {(finding.rule, name) for name in finding.data["events"]}
    ]
    return good, [*findings, *(await report(connection, readers.ALERTS, bad) if bad else ())]


async def _end(connection: "Connection") -> None:
    await fleet_store.note_stops(connection, await fleet_store.last_stops(connection, CENTRE))
    await store.end_reread(connection)
