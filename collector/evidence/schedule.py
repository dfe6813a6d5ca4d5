"""`verify` by itself: once a day, one of several collectors at a time, in a process of low priority; what it finds is an alert.

It is light: rows of at most `events_max` events, those of the newest day first and then of days chosen by chance, so that over the days all
of them come up; everything that is not rows is looked at as a whole. A process of its own does it, since comparing would hold up the loop
that serves requests; it is ended after RUN_S_MAX.

Each kind of finding becomes an event `security.evidence.broken` of the collector's own stream, at the place of the agent that it is about.
The same thing found the next day is counted in the same alert.
"""

import asyncio
import contextlib
import logging
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from agent.wire.event import Event
from collector import own
from collector.background import Pulse
from collector.evidence.finding import Finding
from collector.evidence.verify import Report
from collector.store import verify_runs
from collector.store.batches import CENTRE
from collector.store.database import Database, StoreMisconfigured, StoreUnavailable

if TYPE_CHECKING:
    from collector.store.database import Plain

_log = logging.getLogger("linewarden.collector.evidence")

LOOK_EVERY_S_MAX = 600.0
FIRST_AFTER_S_MAX = 300.0
"""So long after the start at most the first look is: a start has other things to do."""
RUN_S_MAX = 6 * 3_600.0
TOLD_MAX = 100
"""Events of one run: more kinds of findings are told as one."""
RETRY_AFTER_S = 3_600.0
"""A run that did not come to its end is tried again after this."""


class Order(msgspec.Struct):
    """What the process is asked to do; it comes by its standard input, since it holds the password of the database."""

    dsn: str
    events_max: int | None


class Inspector:
    """Cold until `run`. `every_s` 0: never."""

    def __init__(self, database: Database, *, every_s: float, events_max: int, on_stored: Callable[[], None]) -> None:
        self._database = database
        self._every_s = every_s
        self._events_max = events_max
        self._on_stored = on_stored
        self.pulse = Pulse()

    @property
    def on(self) -> bool:
        """Whether it verifies at all."""
        return self._every_s > 0

    @property
    def late_s(self) -> float:
        """So long without a success is too long: a run may take its time, and looks in between succeed."""
        return RUN_S_MAX + 2 * LOOK_EVERY_S_MAX

    async def run(self) -> None:
        """Until cancelled."""
        wait_s = min(FIRST_AFTER_S_MAX, self._every_s / 4)
        while True:
            await asyncio.sleep(wait_s * random.uniform(0.8, 1.0))  # noqa: S311 - a jitter
            try:
                await self.look()
            except (StoreUnavailable, StoreMisconfigured) as error:
                self.pulse.waits(error)
                _log.warning("stored data could not be verified, trying again: %s", error)
            wait_s = min(LOOK_EVERY_S_MAX, self._every_s / 4)

    async def look(self) -> Report | None:
        """Verify, where it is time and no other collector does; what was found."""
        async with verify_runs.turn(self._database.dsn) as connection:
            if connection is None:
                self.pulse.ok()
                return None
            last = await verify_runs.last(connection)
            if last is not None and last.age_s < (
                self._every_s if last.findings is not None else min(self._every_s, RETRY_AFTER_S)
            ):
                if last.findings is not None:
                    self.pulse.ok()
                return None
            return await self._verify(connection)

    async def _verify(self, connection: "Plain") -> Report | None:
        started = datetime.now(UTC)
        try:
            report = await _in_process(Order(self._database.dsn, self._events_max or None))
        except _Failed as error:
            _log.error("verify did not come to its end: %s", error)
            self.pulse.waits(f"the last run did not come to its end: {error}")
            await verify_runs.note(
                connection, started, findings=None, events=0, sampled=False, trouble=str(error)[:500]
            )
            return None
        found = len(report.findings) + report.findings_left_out
        for agent, events in _told(report.findings, report.findings_left_out):
            await own.tell(self._database, events, about=agent)
        if found:
            self._on_stored()
        # After the events: whoever is killed in between verifies again, and the alerts count the same things once more.
        await verify_runs.note(
            connection, started, findings=found, events=report.events, sampled=report.sampled, trouble=None
        )
        self.pulse.ok()
        _log.log(
            logging.ERROR if found else logging.INFO,
            "verified %d events, %d audit records: %s", report.events, report.audit_records,
            f"{found} things do not hold, see: linewarden-collector verify" if found else "everything holds",
        )  # fmt: skip
        return report


class _Failed(Exception):
    """The process did not come to its end. The text says why."""


async def _in_process(order: Order) -> Report:
    """Raises _Failed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "collector.evidence.scheduled", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(RUN_S_MAX):
            out, errors = await process.communicate(msgspec.json.encode(order))
    except TimeoutError:
        raise _Failed(f"it took longer than {RUN_S_MAX / 3_600:g} h") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        raise _Failed(
            errors.decode(errors="replace").strip().rpartition("\n")[2] or f"it ended with {process.returncode}"
        )
    return msgspec.json.decode(out, type=Report)


def _told(found: Sequence[Finding], left_out: int) -> Iterator[tuple[UUID, list[Event]]]:
    """Events, by the agent whose place they belong to: one a kind, agent and table."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in found:
        groups.setdefault((finding.kind, finding.agent or "", finding.table or ""), []).append(finding)
    by_agent: dict[str, list[Event]] = {}
    kept, rest = list(groups.items())[:TOLD_MAX], list(groups.items())[TOLD_MAX:]
    for (kind, agent, table), findings in kept:
        by_agent.setdefault(agent, []).append(_event(kind, agent, table, findings[0], len(findings)))
    more = left_out + sum(len(findings) for _, findings in rest)
    if more:
        many = Finding(kind="verify.more", text=f"{more} more things do not hold")
        by_agent.setdefault("", []).append(_event(many.kind, "", "", many, more))
    for agent, events in by_agent.items():
        yield UUID(agent) if agent else CENTRE, events


def _event(kind: str, agent: str, table: str, first: Finding, count: int) -> Event:
    now = time.time_ns() // 1000
    more = f" (and {count - 1} more of this kind)" if count > 1 else ""
    said = {
        name: value
        for name in ("buffer", "lane", "batch", "event", "record")
        if (value := getattr(first, name)) is not None
    }
    return Event(
        time=now, observed=now, type="security.evidence.broken", source="collector", target=agent or table or kind, outcome="failure",
        message=f"{first}{more}"[:2_000], data={"finding": kind, "table": table, "agent_id": agent, "count": count, **said},
    )  # fmt: skip
