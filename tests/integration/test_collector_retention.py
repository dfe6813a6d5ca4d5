"""Retention, legal holds and export on a real PostgreSQL."""

import csv
import io
import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from agent.wire.batch import read_frames
from collector.app import migrate_at
from collector.legal import held
from collector.store import partitions, retention
from collector.store.batches import Transaction
from collector.store.retention import Rule
from tests import evidence
from tests.collector_process import Chain, Collector, event, post, run_cli
from tests.postgres import connected

if TYPE_CHECKING:
    from collections.abc import Callable

TODAY = datetime.now(UTC).date()
POLICY = [Rule(types=("equipment.*",), days=5), Rule(severity_min=5, days=40), Rule(days=20)]


async def _filled(connection: Any, day: date) -> None:
    """A day that lies back, with one event of each kind."""
    for table in partitions.PARTITIONED:
        await partitions._make(connection, table, day)
    events = [
        event("r", type="equipment.reading"),
        event("grave", severity=5),
        event("rest"),
        event("keep", actor="eve"),
    ]
    chain = Chain()
    async with connection.transaction():
        frame = next(read_frames(chain.seal(events).frame))
        await Transaction(connection, UUID(chain.agent)).store([frame], 1, careful=False)
        for table in partitions.PARTITIONED:
            moment = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
            await connection.execute(f"UPDATE {table} SET received = $1 WHERE agent_id = $2", moment, UUID(chain.agent))


async def _left(connection: Any) -> dict[int, list[str]]:
    rows = await connection.fetch("SELECT received::date AS day, message FROM security_events ORDER BY idx")
    found: dict[int, list[str]] = {}
    for row in rows:
        found.setdefault((TODAY - row["day"]).days - 1, []).append(row["message"])
    return found


async def test_days_and_rows_leave_by_rule_and_age_and_what_is_held_stays(dsn: str) -> None:
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        await partitions.ensure(connection, ahead_days=0)
        for age in (45, 30, 10, 2):
            await _filled(connection, TODAY - timedelta(days=age + 1))
        number = await evidence.hold(connection, "case 7", "actor=eve&text=keep")
        planned = await retention.run(connection, POLICY, await held(connection), dry=True)
        assert len(await _left(connection)) == 4
        done = await retention.run(connection, POLICY, await held(connection), dry=False)
        assert planned == done
        assert await _left(connection) == {
            45: ["keep"], 30: ["grave", "keep"], 10: ["grave", "rest", "keep"], 2: ["r", "grave", "rest", "keep"],
        }  # fmt: skip
        assert await retention.run(connection, POLICY, await held(connection), dry=False) == []
        assert await evidence.release(connection, number)
        done = await retention.run(connection, POLICY, [], dry=False)
        assert [(a.kind, a.events) for a in done] == [("drop", 1), ("delete", 1)]
        assert await _left(connection) == {
            30: ["grave"],
            10: ["grave", "rest", "keep"],
            2: ["r", "grave", "rest", "keep"],
        }
        await _check_tombstones(connection)


async def _check_tombstones(connection: Any) -> None:
    prev = retention.ZEROS
    for row in await connection.fetch("SELECT * FROM tombstones ORDER BY tombstone_id"):
        streams = json.loads(row["streams"])
        fields = (row["made"], row["day"], row["kind"], row["rule"], row["events"], streams, row["rows_hash"])
        assert row["prev"] == prev
        assert row["hash"] == retention.Tombstone(*fields).hash(prev)
        if row["kind"] == "dropped":
            assert [(s["first"], s["last"], s["lane"], len(s["last_hash"])) for s in streams] == [(1, 1, 1, 64)]
        prev = row["hash"]


async def test_without_a_policy_nothing_leaves(dsn: str) -> None:
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        await _filled(connection, TODAY - timedelta(days=5_000))
        assert await retention.run(connection, [Rule(days=None)], [], dry=False) == []
        assert [len(left) for left in (await _left(connection)).values()] == [4]


async def test_the_command_says_what_would_go_and_holds_are_kept_by_command(dsn: str) -> None:
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        await _filled(connection, TODAY - timedelta(days=31))
        said = run_cli(dsn, "retention", "--dry-run", LINEWARDEN_COLLECTOR__RETENTION__DAYS="20")
        assert "the whole day" in said.stdout, said.stderr
        assert run_cli(dsn, "hold", "create", "--name", "x", "--where", "nonsense=1").returncode == 1
        assert "hold 1" in run_cli(dsn, "hold", "create", "--name", "x", "--where", "severity=5").stdout
        said = run_cli(dsn, "retention", "--json", LINEWARDEN_COLLECTOR__RETENTION__DAYS="20")
        assert [(a["kind"], a["events"]) for a in json.loads(said.stdout)] == [("delete", 3)], said.stderr
        rebuilt = run_cli(dsn, "metrics", "rebuild", "--from", "2020-01-01", "--to", "2020-01-02")
        assert "retention" in rebuilt.stderr
        assert "Traceback" not in rebuilt.stderr


@pytest.fixture(scope="module")
def exported(collector: Collector) -> Chain:
    chain = Chain()
    with collector.client(collector.key("agent")) as client:
        batches = [chain.seal([event(f"{n}.{i}", data={"n": n}) for i in range(500)]) for n in range(11)]
        assert post(client, *batches).status_code == 200
    return chain


@pytest.mark.parametrize("form", ["json", "ndjson", "csv"])
def test_an_export_has_every_event_once_across_pages(collector: Collector, exported: Chain, form: str) -> None:
    with collector.client(collector.key("viewer")) as viewer:
        answer = viewer.get("/v1/export", params={"agent": exported.agent, "format": form})
        assert answer.status_code == 200
        empty = viewer.get("/v1/export", params={"agent": exported.agent, "format": form, "source": "none"}).text
    readers: dict[str, Callable[[str], list[dict[str, Any]]]] = {
        "json": json.loads,
        "ndjson": lambda text: [json.loads(line) for line in text.splitlines()],
        "csv": lambda text: list(csv.DictReader(io.StringIO(text))),
    }
    read = readers[form]
    assert sorted(e["message"] for e in read(answer.text)) == sorted(f"{n}.{i}" for n in range(11) for i in range(500))
    assert read(empty) == []


def test_the_command_exports_into_a_file_also_as_parquet(collector: Collector, exported: Chain, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "events.parquet"
    where = ("--where", f"agent={exported.agent}")
    done = run_cli(collector.dsn, "export", "--format", "parquet", "--output", str(out), *where)
    assert done.returncode == 0, done.stderr
    table = parquet.read_table(out)
    assert table.num_rows == 5_500
    assert json.loads(table["data"][0].as_py()) == {"n": 0}


def test_an_export_stays_within_the_scope_of_the_key(collector: Collector, exported: Chain) -> None:
    with collector.client(collector.key("viewer", site="elsewhere")) as viewer:
        assert viewer.get("/v1/export", params={"agent": exported.agent}).text == ""


def test_the_state_of_tables_and_partitions_is_told_to_auditors_and_by_command(
    collector: Collector, exported: Chain
) -> None:
    assert exported.no == 11
    with collector.client(collector.key("auditor")) as auditor, collector.client(collector.key("viewer")) as viewer:
        found = auditor.get("/v1/storage").json()
        assert viewer.get("/v1/storage").status_code == 403
    assert f"security_events_{TODAY:%Y%m%d}" in {p["name"] for p in found["partitions"]}
    assert next(p["bytes"] for p in found["partitions"] if p["name"] == f"security_events_{TODAY:%Y%m%d}") > 100_000
    done = run_cli(collector.dsn, "db", "status")
    assert "event_metrics" in done.stdout, done.stderr


async def test_an_event_of_a_day_that_was_dropped_is_taken_and_flagged(dsn: str) -> None:
    await migrate_at(dsn)
    day = TODAY - timedelta(days=31)
    async with connected(dsn) as connection:
        await _filled(connection, day)
        assert [a.kind for a in await retention.run(connection, [Rule(days=20)], [], dry=False)] == ["drop"]
    at = datetime(day.year, day.month, day.day, 8, tzinfo=UTC)
    with Collector(dsn) as collector, collector.client(collector.key("agent")) as client:
        times = [int((at + timedelta(days=n)).timestamp()) * 1_000_000 for n in (0, 1)]
        assert post(client, Chain().seal([event(time=us) for us in times])).json()["events"] == 2
        with collector.client(collector.key("viewer")) as viewer:
            found = viewer.get("/v1/events", params={"order": "asc"}).json()["events"]
            assert [e["time_flag"] for e in found] == ["late", None]
