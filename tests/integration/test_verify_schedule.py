"""`verify` by itself: what it finds becomes an alert, once however often it is found, and one of several collectors does it."""

import asyncio
import io
import os
import sys
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from agent.simulator.postgres import Postgres
from agent.wire.taxonomy import is_collectors
from collector.alert_reader import AlertReader, AlertSettings
from collector.app import migrate_at
from collector.evidence import schedule, scheduled
from collector.evidence.finding import Finding
from collector.evidence.schedule import Inspector
from collector.evidence.verify import Report, Wanted, verify
from collector.rules import RulesSettings
from collector.store import partitions, verify_runs
from collector.store.database import Database
from tests.collector_process import Chain, event
from tests.evidence import store
from tests.postgres import connected

AGENT = "11111111-1111-4111-8111-111111111111"


@pytest.fixture
async def database(postgres: Postgres) -> AsyncIterator[Database]:
    dsn = postgres.create_database(f"v{uuid4().hex}")
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        await partitions.ensure(connection, ahead_days=1)
        await store(connection, Chain(AGENT).seal([event(f"no. {n}") for n in range(5)]))
    found = Database(dsn, pool_size=3, synchronous_commit="on")
    await found.open()
    yield found
    await found.close()


def inspector(database: Database, every_s: float = 86_400) -> Inspector:
    return Inspector(database, every_s=every_s, events_max=0, on_stored=lambda: None)


async def raised(database: Database) -> list[tuple[Any, ...]]:
    """The alerts of what verify found."""
    reader = AlertReader(database, AlertSettings(), RulesSettings(), [])
    while await reader.step():
        pass
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT target, count, severity, data->>'finding' AS kind FROM alerts WHERE rule = 'evidence' ORDER BY 4"
        )
    return [tuple(row) for row in rows]


async def test_what_verify_finds_by_itself_is_an_alert_that_counts_the_same_again(database: Database) -> None:
    async with database.connection() as connection:
        await connection.execute("UPDATE security_events SET message = 'nothing' WHERE idx < 3")
        await connection.execute("ALTER TABLE audit_log DISABLE TRIGGER audit_log_kept")
    report = await inspector(database).look()
    assert report is not None
    assert {one.kind for one in report.findings} == {"row.changed", "trigger.disabled"}
    assert await raised(database) == [(AGENT, 1, 5, "row.changed"), ("audit_log", 1, 5, "trigger.disabled")]
    assert await inspector(database).look() is None, "it was done today"
    async with database.connection() as connection:
        await connection.execute("UPDATE verify_runs SET finished = finished - interval '2 days'")
    assert await inspector(database).look() is not None
    assert await raised(database) == [(AGENT, 2, 5, "row.changed"), ("audit_log", 2, 5, "trigger.disabled")]
    # Its own events and alerts hold, too.
    later = await verify(database.dsn, Wanted(processes=1))
    assert {one.kind for one in later.findings} == {"row.changed", "trigger.disabled"}


async def test_where_everything_holds_nothing_is_reported_and_the_run_is_written_down(database: Database) -> None:
    report = await inspector(database).look()
    assert report is not None
    assert report.ok
    assert await raised(database) == []
    async with database.connection() as connection:
        last = await verify_runs.last(connection)
    assert last is not None
    assert last.findings == 0


def test_a_unit_that_forbids_to_lower_the_priority_does_not_keep_verify_from_running(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    def refused(_: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    async def nothing(_dsn: str, _wanted: Wanted) -> Report:
        return Report(events=7)

    monkeypatch.setattr(os, "nice", refused)
    monkeypatch.setattr(scheduled, "verify", nothing)
    order = schedule.Order("postgresql://nowhere", None)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(msgspec.json.encode(order))))
    assert scheduled.main() == 0
    assert msgspec.json.decode(capsysbinary.readouterr().out, type=Report).events == 7


async def test_of_several_collectors_one_verifies_at_a_time(database: Database) -> None:
    async with verify_runs.turn(database.dsn) as mine:
        assert mine is not None
        assert await inspector(database).look() is None
    found = await asyncio.gather(*(inspector(database).look() for _ in range(3)))
    assert len([report for report in found if report is not None]) == 1


async def test_a_run_that_does_not_end_is_ended_written_down_and_tried_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "RUN_S_MAX", 0.001)
    late = inspector(database)
    assert await late.look() is None
    assert "did not come to its end" in late.pulse.trouble
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT findings IS NULL AND trouble <> '' FROM verify_runs")
        await connection.execute("UPDATE verify_runs SET finished = finished - interval '2 hours'")
    monkeypatch.undo()
    assert await inspector(database).look() is not None


def test_thousands_of_findings_are_a_bounded_number_of_events() -> None:
    found = [
        Finding(kind=f"kind{n}.changed", text="x", agent=AGENT if n % 2 else None) for n in range(300) for _ in range(2)
    ]
    told = [one for _, events in schedule._told(found, 7) for one in events]
    assert len(told) == schedule.TOLD_MAX + 1
    assert sum(one.data["count"] for one in told) == len(found) + 7
    assert all(is_collectors(one.type) for one in told)
    assert Report().ok
