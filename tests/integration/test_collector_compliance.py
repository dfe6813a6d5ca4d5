"""The report on a real installation: what is off is unmet, what was recorded is counted, and it says so by command and over HTTP."""

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

from agent.simulator.postgres import Postgres
from collector.store.migrate import migrations
from tests.collector_process import Chain, Collector, event, poll_until, post, run_cli
from tests.postgres import connected


def _named(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["requirement"]: row for row in report["requirements"]}


def test_an_installation_is_told_what_it_lacks_and_what_it_has_recorded(postgres: Postgres, tmp_path: Path) -> None:
    dsn = postgres.create_database(f"c{uuid4().hex}")
    assert migrations()
    with Collector(dsn) as running:
        key = running.key("auditor")
        with running.client(key) as client:
            empty = _named(client.get("/v1/compliance").json())
        assert empty["SR 6.2"]["standing"] == "unmet"
        assert "no agent" in empty["SR 6.2"]["why"]
        with running.client(running.key("agent", site="north", station="a")) as agent:
            chain = Chain()
            assert (
                post(
                    agent, chain.seal([event(type="authentication.failure", outcome="failure"), event(type="alert.x")])
                ).status_code
                == 200
            )
            assert (
                post(
                    agent, chain.seal([event(type="collection.gap", data={"events": 7, "reason": "test"})])
                ).status_code
                == 200
            )
        with running.client(key) as client:
            answer = client.get("/v1/compliance")
            report = answer.json()
            found = _named(report)
            page = client.get("/v1/compliance", params={"format": "html"})
        assert found["SR 1.11"]["standing"] == "supported"
        assert found["SR 1.11"]["events"] == 1
        assert found["SR 1.11"]["stations"] == 1
        assert found["SR 2.10"]["standing"] == "unmet"
        assert "7 events lost" in found["SR 2.10"]["why"]
        assert (report["fleet"]["gaps"], report["fleet"]["events_lost"]) == (1, 7)
        assert found["SR 3.1"]["standing"] == "unmet"
        assert "TLS is off" in found["SR 3.1"]["why"]
        assert "retention" in found["Art. 5"]["why"]
        assert found["SR 1.13"]["standing"] == "unmet"
        assert found["SR 7.5"]["standing"] == "outside"
        assert "no certificate" in report["note"]
        assert page.headers["content-type"].startswith("text/html")
        assert "TLS is off" in page.text
        with running.client(running.key("viewer")) as client:
            assert client.get("/v1/compliance").status_code == 403
        with running.client(running.key("auditor", site="south")) as client:
            other = client.get("/v1/compliance").json()
            assert (other["fleet"]["agents"], other["fleet"]["gaps"], _named(other)["SR 1.11"]["events"]) == (0, 0, 0)
        _view(running)
        _command(dsn, tmp_path)


def _view(running: Collector) -> None:
    async def asked() -> int:
        async with connected(running.dsn) as own:
            return int(
                await own.fetchval(
                    "SELECT coalesce(sum(events), 0)::bigint FROM v_compliance_coverage "
                    "WHERE standard = 'IEC 62443-3-3' AND requirement = '1.11'"
                )
            )

    # Roll-ups are folded behind.
    poll_until(lambda: asyncio.run(asked()) == 1, within_s=60, why="the view does not count it")


def _command(dsn: str, folder: Path) -> None:
    done = run_cli(dsn, "compliance", "report", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert _named(json.loads(done.stdout))["SR 1.11"]["events"] == 1
    file = folder / "report.html"
    assert run_cli(dsn, "compliance", "report", "--days", "7", "--output", str(file)).returncode == 0
    assert file.read_text().startswith("<!doctype html>")
    wrong = run_cli(dsn, "compliance", "report", "--days", "none")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
