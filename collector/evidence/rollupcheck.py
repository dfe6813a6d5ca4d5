"""Roll-ups, counted again: hours from the events, longer periods and all places together from their parts.

Hours of days that retention has taken something from cannot be counted again; their sums still have to be those of their parts.
"""

import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from collector.evidence.finding import Finding
from collector.store import retention, rollups

if TYPE_CHECKING:
    from collector.store.database import Anyone

FOUND_MAX = 200
"""Cells that are named; a table that was rewritten as a whole says so by that many."""
_FAR = datetime(9999, 1, 1, tzinfo=UTC)
_EARLY = datetime(1900, 1, 1, tzinfo=UTC)


async def rollup_findings(connection: "Anyone", hours_max: int | None) -> tuple[list[Finding], int]:
    """Compare, in the caller's transaction: all hours, or so many of them, chosen by chance; what was found, and how many hours."""
    since = await retention.dropped_until(connection)
    there = await rollups.hours(connection, since)
    found: list[Finding] = []
    if hours_max is None or len(there) <= hours_max:
        rows = await rollups.differing(connection, since or _EARLY, _FAR, FOUND_MAX)
        found += [_cell(row, "hour", "events") for row in rows]
    elif hours_max == 0:
        there = []
    else:
        there = [there[-1], *random.sample(there[:-1], hours_max - 1)]
        for hour in there:
            if len(found) < FOUND_MAX:
                rows = await rollups.differing(connection, hour, hour + timedelta(hours=1), FOUND_MAX)
                found += [_cell(row, "hour", "events") for row in rows]
    found += [_cell(row, row["period"], "parts") for row in await rollups.unsummed(connection, FOUND_MAX)]
    return found, len(there)


def _cell(row: Any, period: str, of: str) -> Finding:
    text = (
        f"{period} of {row['bucket']:%Y-%m-%d %H:%M}Z, place {row['place_id']}, type {row['type']}, severity {row['severity']}: "
        f"{row['said']} events or their times are not what its {of} add up to ({row['counted']})"
    )
    return Finding(kind="rollup.changed", text=text, table="event_metrics")
