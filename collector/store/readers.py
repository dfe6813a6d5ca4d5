"""Readers in the order of commits held against what was stored, and made to read again.

A reader counts what it reads, in the transaction in which it moves its cursor (`count`). At the end of a step, when its cursor is one
snapshot, `compare` asks the table itself what lies between that snapshot and the one of the check before: how many batches, the sum of
their numbers, how many events. It is one statement without an order, a limit or a position, so it has none of the faults that reading in
pieces can have. Where the two differ, something was skipped or read twice.

Batches that were dropped by retention in between are no difference: then the check begins anew.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from collector.store.stream import Snapshot, between_arguments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collector.store.database import Anyone
    from collector.store.events import Record

ALERTS, ANALYTICS = "alerts", "analytics"
EVERY_S = 60.0
REPAIR_EVERY_S = 86_400.0
"""A reader is made to read again at most so often; a difference is reported each time."""
UNREAD_DAYS = 400
REASON_CHARS_MAX = 300


@dataclass(frozen=True, slots=True)
class Read:
    """Batches: how many, the sum of their numbers, their events."""

    batches: int = 0
    numbers: int = 0
    events: int = 0

    def __add__(self, other: "Read") -> "Read":
        return Read(self.batches + other.batches, self.numbers + other.numbers, self.events + other.events)


@dataclass(frozen=True, slots=True)
class Difference:
    """What a reader has read is not what was stored."""

    reader: str
    since: datetime
    stored: Read
    read: Read
    repairs: bool
    """Whether everything is read again because of it."""
    uncounted: int = 0
    """Of alerts: alert events that are in no alert."""

    @property
    def text(self) -> str:
        """In words."""
        stored, read = self.stored, self.read
        what = f"{read.batches} batches of {read.events} events were read"
        if stored == read:
            return (
                f"{self.reader}: {self.uncounted} alert events are in no alert since {self.since:%Y-%m-%d %H:%M:%S} UTC"
            )
        if stored.batches == read.batches:
            what += ", some of them twice and others not at all,"
        return f"{self.reader}: {what} where {stored.batches} of {stored.events} were stored since {self.since:%Y-%m-%d %H:%M:%S} UTC"


def read_of(batches: "Sequence[Record]") -> Read:
    """Return the sums of batches."""
    return Read(len(batches), sum(batch["batch_id"] for batch in batches), sum(batch["events"] for batch in batches))


async def count(connection: "Anyone", reader: str, batches: "Sequence[Record]") -> None:
    """Count what a reader has read, in the transaction that moves its cursor."""
    if batches:
        read = read_of(batches)
        await connection.execute(_COUNT, reader, read.batches, read.numbers, read.events)


async def due(connection: "Anyone", reader: str) -> bool:
    """Return whether a reader is to be checked."""
    found: bool = await connection.fetchval(_DUE, reader, timedelta(seconds=EVERY_S))
    return found


async def compare(connection: "Anyone", reader: str, edge: Snapshot) -> Difference | None:
    """Check a reader that has read everything that `edge` sees and nothing else, in its transaction; None where all is well."""
    row = await connection.fetchrow(
        "SELECT base, batches, numbers::text AS numbers, events, repaired, clock_timestamp() AS now FROM reader_checks WHERE reader = $1",
        reader,
    )
    if row is None:
        return None
    base = msgspec.json.decode(row["base"], type=Snapshot) if row["base"] else None
    text = msgspec.json.encode(edge).decode()
    await connection.execute(_BEGIN, reader, text)
    if base is None or not edge.covers(base):
        return None
    read = Read(row["batches"], int(row["numbers"]), row["events"])
    stored = await stored_between(connection, base, edge)
    uncounted = await _uncounted(connection, base, edge) if reader == ALERTS else 0
    same = stored == read or (read.numbers > stored.numbers and await _dropped_since(connection, base))
    if same and not uncounted:
        return None
    repairs = row["repaired"] is None or (row["now"] - row["repaired"]).total_seconds() > REPAIR_EVERY_S
    await connection.execute(
        "UPDATE reader_checks SET differed = clock_timestamp(), repaired = CASE WHEN $2 THEN clock_timestamp() ELSE repaired END "
        "WHERE reader = $1",
        reader, repairs,
    )  # fmt: skip
    if repairs:
        await request_repair(connection, reader)
    return Difference(reader, base.taken, stored, read, repairs, uncounted)


async def stored_between(connection: "Anyone", old: Snapshot, new: Snapshot) -> Read:
    """Return what was stored that `new` sees and `old` does not."""
    row = await connection.fetchrow(_STORED, *between_arguments(old, new))
    return Read(row["batches"], int(row["numbers"]), row["events"]) if row is not None else Read()


async def _uncounted(connection: "Anyone", old: Snapshot, new: Snapshot) -> int:
    """Return how many alert events between two snapshots are neither counted in an alert nor passed over. Alerts travel in lane 0."""
    found: int = await connection.fetchval(_UNCOUNTED, *between_arguments(old, new))
    return found


async def _dropped_since(connection: "Anyone", base: Snapshot) -> bool:
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM tombstones WHERE kind = 'dropped' AND made >= $1)", base.taken
    )
    return found


async def begin_anew(connection: "Anyone", reader: str, base: Snapshot | None) -> None:
    """Check a reader from a snapshot on, or from its next check."""
    text = msgspec.json.encode(base).decode() if base is not None else None
    await connection.execute(_BEGIN, reader, text)


# ── what could not be read ──


async def pass_over(connection: "Anyone", reader: str, events: "Sequence[tuple[int, int, datetime, str]]") -> int:
    """Record events that a reader could not read: batch, place, when stored, why. Return how many were not recorded before."""
    found = await connection.fetch(
        _PASSED_OVER, reader, [one[0] for one in events], [one[1] for one in events], [one[2] for one in events],
        [one[3][:REASON_CHARS_MAX].replace("\0", "\u2400") for one in events],
    )  # fmt: skip
    return len(found)


async def passed_over(connection: "Anyone") -> dict[str, int]:
    """Return how many events each reader has passed over."""
    rows = await connection.fetch("SELECT reader, count(*) AS events FROM unread_events GROUP BY reader")
    return {row["reader"]: row["events"] for row in rows}


async def forget_unread(connection: "Anyone") -> None:
    """Let go of what is long past."""
    await connection.execute("DELETE FROM unread_events WHERE seen < now() - make_interval(days => $1)", UNREAD_DAYS)


# ── reading again ──


async def request_repair(connection: "Anyone", reader: str) -> None:
    """Have a reader read everything again. The collector that runs does it, beside what is new."""
    await connection.execute(_REREAD if reader == ALERTS else _REBUILD)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a reader is. `waiting`: batches that are to be read again."""

    reader: str
    checked: datetime | None
    differed: datetime | None
    waiting: int
    unread: int


async def progress(connection: "Anyone") -> list[Progress]:
    """Return how far each reader is."""
    unread = await passed_over(connection)
    rows = await connection.fetch(_PROGRESS)
    return [
        Progress(row["reader"], row["checked"], row["differed"], row["waiting"], unread.get(row["reader"], 0))
        for row in rows
    ]


_COUNT = """
UPDATE reader_checks SET batches = batches + $2, numbers = numbers + $3::bigint, events = events + $4 WHERE reader = $1
"""
_DUE = "SELECT EXISTS (SELECT FROM reader_checks WHERE reader = $1 AND checked <= clock_timestamp() - $2::interval)"
_BEGIN = """
UPDATE reader_checks SET base = $2, batches = 0, numbers = 0, events = 0, checked = clock_timestamp() WHERE reader = $1
"""
_STORED = """
SELECT count(*) AS batches, coalesce(sum(batch_id), 0)::text AS numbers, coalesce(sum(events), 0)::bigint AS events FROM evidence
WHERE xid >= $1::text::xid8 AND xid < $2::text::xid8 AND pg_visible_in_snapshot(xid, $4::text::pg_snapshot)
    AND NOT pg_visible_in_snapshot(xid, $3::text::pg_snapshot) AND received >= $5
"""
_UNCOUNTED = """
SELECT count(*) FROM evidence v JOIN security_events e ON e.batch_id = v.batch_id AND e.received = v.received
WHERE v.xid >= $1::text::xid8 AND v.xid < $2::text::xid8 AND pg_visible_in_snapshot(v.xid, $4::text::pg_snapshot)
    AND NOT pg_visible_in_snapshot(v.xid, $3::text::pg_snapshot) AND v.received >= $5 AND v.lane = 0
    AND (e.type = 'alert' OR e.type COLLATE "C" BETWEEN 'alert.' AND 'alert/')
    AND NOT (e.agent_id = '00000000-0000-0000-0000-000000000000' AND coalesce(e.data @> '{"cleared": true}', false))
    AND NOT EXISTS (SELECT FROM alert_events a WHERE a.batch_id = e.batch_id AND a.idx = e.idx)
    AND NOT EXISTS (SELECT FROM unread_events u WHERE u.reader = 'alerts' AND u.batch_id = e.batch_id AND u.idx = e.idx)
"""
_PASSED_OVER = """
INSERT INTO unread_events (reader, batch_id, idx, received, reason)
SELECT $1, * FROM unnest($2::bigint[], $3::integer[], $4::timestamptz[], $5::text[]) ON CONFLICT DO NOTHING RETURNING batch_id
"""
_REREAD = "UPDATE alert_reader SET reread = 0, reread_to = (SELECT coalesce(max(batch_id), 0) FROM evidence)"
_REBUILD = "UPDATE analytics_state SET rebuild = true"
_PROGRESS = """
SELECT c.reader, nullif(c.checked, '-infinity') AS checked, c.differed, CASE c.reader
    WHEN 'alerts' THEN (SELECT count(*) FROM evidence v, alert_reader r WHERE v.batch_id > r.reread AND v.batch_id <= r.reread_to)
    ELSE (SELECT count(*) FROM evidence v, analytics_state s WHERE s.rebuild) END AS waiting
FROM reader_checks c ORDER BY c.reader
"""
