"""A real winston application: its JSON file tailed by the log source, its HTTP transport posting to the intake, both in one agent.

The file loses nothing, whatever happens to the agent. The HTTP transport sends each request once and never again: what it posts while
nobody answers is lost, and only an event `warn` on the transport says so. These tests hold both as they are.
"""

import datetime as dt
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.wire.event import Event
from tests.agent_process import Agent
from tests.collector_process import poll_until
from tests.integration.source_drivers import stored
from tests.integration.test_opcua_node import node_modules
from tests.ports import free_port

__all__ = ["node_modules"]

PROGRAM = Path(__file__).parents[1] / "node" / "winston_application.js"
WITHIN_S = 60
SOURCES = """
[sources.posted]
type = "intake"

[sources.tailed]
type = "log"
paths = ["{logs}/app*.log"]
parser = "winston"
"""


class Application:
    """The node process; each command is answered."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        assert self.answer() == "READY"

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the application ended"
        return json.loads(line)

    def do(self, **command: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self.answer()


@contextmanager
def application(node_modules: Path, **options: Any) -> Iterator[Application]:
    with subprocess.Popen(
        ["node", str(PROGRAM), json.dumps(options)], env={"NODE_PATH": str(node_modules), "PATH": "/usr/bin:/bin:/usr/local/bin"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield Application(process)
        finally:
            process.kill()


def http_of(agent: Agent, **more: Any) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": agent.port, "path": "/v1/events/winston", **more}


def file_of(folder: Path, **more: Any) -> dict[str, Any]:
    return {"filename": str(folder / "logs" / "app.log"), **more}


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    (tmp_path / "logs").mkdir()
    sources = SOURCES.format(logs=tmp_path / "logs")
    with Agent(tmp_path, f"http://127.0.0.1:{free_port()}", sources=sources) as running:
        yield running


def of(agent: Agent, source: str) -> list[Event]:
    return [event for event in stored(agent) if event.source == source]


def until(agent: Agent, source: str, there: Callable[[list[Event]], bool]) -> list[Event]:
    try:
        poll_until(lambda: there(of(agent, source)), within_s=WITHIN_S)
    except AssertionError:
        raise AssertionError(f"{len(of(agent, source))} of {source}\n{agent.log[-1_500:]}") from None
    return of(agent, source)


def numbers(events: list[Event]) -> Counter[int]:
    return Counter(event.data["n"] for event in events if "n" in event.data)


@pytest.mark.parametrize("batch", [{}, {"batch": True, "batchInterval": 200, "batchCount": 3}], ids=["single", "batch"])
def test_every_record_arrives_once_by_each_way_with_level_time_id_and_meta(
    agent: Agent, node_modules: Path, tmp_path: Path, batch: dict[str, Any]
) -> None:
    began = dt.datetime.now(dt.UTC).timestamp() * 1e6 - 1_000
    records: list[tuple[list[Any], str, int]] = [
        (["info", "plain"], "application", 1),
        (
            ["debug", "with meta", {"correlationId": "c-1", "part": {"id": "A-7", "user": "ann"}, "n": 5}],
            "application",
            1,
        ),
        (["http", "GET /parts"], "application", 1),
        (["warn", "%s has %d of %j", "drawer", 3, {"a": 1}, {"correlationId": "c-2", "n": 6}], "application", 2),
        (
            ["error", "it failed", {"event_type": "quality.rejected", "target": "cell4", "outcome": "failure"}],
            "quality.rejected",
            3,
        ),
        (["emerg", "Umlaut ü, emoji \U0001f525, nul \0, lone \ud800"], "application.error", 5),
    ]
    with application(node_modules, file=file_of(tmp_path), http=http_of(agent, **batch)) as mes:
        for record, _, _ in records:
            mes.do(log=record)
        mes.do(fail="not a number", of="E42")
        found = {
            source: until(agent, source, lambda events: len(events) == len(records) + 1)
            for source in ("posted", "tailed")
        }
        requests = (len(records) + 3) // 3 if batch else len(records) + 1
        poll_until(lambda: mes.do(heard=True)["logged"] == requests)
        assert mes.do(heard=True)["warned"] == [], "winston takes the answer for success"
        mes.do(end=True)
    for events in found.values():
        said = sorted(events, key=lambda event: event.time)
        by_text = {(event.raw or "").split(",")[0]: event for event in said}
        assert len(by_text) == len(records) + 1
        assert all(began < event.time <= event.observed for event in said)
        plain, meta, http, filled, rejected, emerg = (
            by_text[text]
            for text in ("plain", "with meta", "GET /parts", 'drawer has 3 of {"a":1}', "it failed", "Umlaut ü")
        )
        assert [(e.type, e.severity) for e in (plain, meta, http, filled, rejected, emerg)] == [
            (type_, severity) for _, type_, severity in records
        ]
        assert (plain.data["level"], plain.correlation_id) == ("info", None)
        assert meta.correlation_id == "c-1"
        meta.data.pop("file", None)
        assert meta.data == {"level": "debug", "n": 5, "part": {"id": "A-7"}, "person": {"part.user": "ann"}}
        assert (filled.correlation_id, filled.data["n"]) == ("c-2", 6)
        assert (rejected.target, rejected.outcome) == ("cell4", "failure")
        failed = by_text["not a number"]
        assert (failed.type, failed.severity, failed.correlation_id) == ("application.error", 3, "c-fail")
        assert failed.data["code"] == "E42"
        assert failed.data["stack"].startswith("TypeError: not a number\n    at ")
    twins = [
        [(e.time, e.type, e.severity, e.raw, e.correlation_id) for e in found[each]] for each in ("posted", "tailed")
    ]
    assert sorted(twins[0], key=str) == sorted(twins[1], key=str), "both ways say the same"


def test_values_that_stay_beside_their_message_leave_a_sentence_without_people(
    agent: Agent, node_modules: Path, tmp_path: Path
) -> None:
    with application(node_modules, splat="apart", file=file_of(tmp_path), http=http_of(agent)) as mes:
        mes.do(log=["info", "drawer opened by %s", "ann"])
        for source in ("posted", "tailed"):
            (event,) = until(agent, source, bool)
            assert (event.message, event.raw) == ("drawer opened by %s", "drawer opened by ann")
            assert event.data["person"]["splat"] == ["ann"]


@pytest.mark.parametrize("tailable", [True, False], ids=["tailable", "numbered"])
def test_rotation_by_winston_itself_loses_nothing(
    agent: Agent, node_modules: Path, tmp_path: Path, *, tailable: bool
) -> None:
    with application(
        node_modules, file=file_of(tmp_path, maxsize=20_000, maxFiles=200, tailable=tailable), paced=True
    ) as mes:
        for start in range(0, 3_000, 500):
            mes.do(burst=[start, start + 500])
        mes.do(end=True)
    files = list((tmp_path / "logs").iterdir())
    assert len(files) > 5, "it did rotate"
    # winston itself may drop records that come while it changes files: what counts is what it wrote.
    wrote = Counter(json.loads(line)["n"] for file in files for line in file.read_text().splitlines())
    assert len(wrote) > 1_000
    until(agent, "tailed", lambda events: len(events) >= len(wrote))
    assert numbers(of(agent, "tailed")) == wrote


def test_a_burst_is_carried_by_a_few_connections_and_not_by_one_for_each_record(
    agent: Agent, node_modules: Path
) -> None:
    """Node opens a connection for each request under way, unless told otherwise, and the agent has 64: what is over it is answered 503."""
    for start, sockets in ((0, 0), (1_000, 4)):
        with application(node_modules, http=http_of(agent), sockets=sockets) as mes:
            mes.do(burst=[start, start + 600])
            heard = poll_until(lambda mes=mes: _all_of(600, mes.do(heard=True)), within_s=WITHIN_S)  # type: ignore[misc]
        there = numbers([event for event in of(agent, "posted") if event.data["n"] // 1_000 == start // 1_000])
        assert set(there.values()) == {1}
        assert len(there) >= heard["logged"], "what was answered is there"
        if sockets:
            assert (heard["warned"], len(there)) == ([], 600)


def _all_of(count: int, heard: dict[str, Any]) -> dict[str, Any] | None:
    return heard if heard["logged"] + len(heard["warned"]) == count else None


def test_while_the_agent_is_dead_the_file_keeps_everything_and_the_http_transport_nothing(
    agent: Agent, node_modules: Path, tmp_path: Path
) -> None:
    with application(node_modules, file=file_of(tmp_path), http=http_of(agent), sockets=4) as mes:
        mes.do(burst=[0, 300])
        poll_until(lambda: mes.do(heard=True)["logged"] == 300, within_s=WITHIN_S)
        agent.kill9()
        mes.do(burst=[300, 900])
        poll_until(lambda: len(mes.do(heard=True)["warned"]) == 600, within_s=WITHIN_S)
        agent.start()
        mes.do(burst=[900, 1_200])
        poll_until(lambda: mes.do(heard=True)["logged"] == 600, within_s=WITHIN_S)
        heard = mes.do(heard=True)
        mes.do(end=True)
    assert set(heard["warned"]) <= {"ECONNREFUSED", "ECONNRESET", "EPIPE"}
    tailed = until(agent, "tailed", lambda events: len(events) >= 1_200)
    assert numbers(tailed) == Counter(range(1_200)), "the file: each once"
    posted = until(agent, "posted", lambda events: len(events) >= 600)
    assert numbers(posted) == Counter([*range(300), *range(900, 1_200)]), "HTTP: what was answered, and nothing else"


def test_the_examples_run_as_they_are(agent: Agent, node_modules: Path, tmp_path: Path) -> None:
    examples = PROGRAM.parents[2] / "examples"
    log = str(tmp_path / "logs" / "app.log")
    for command, way, count in (
        (["node", str(examples / "station_program.js"), "127.0.0.1", str(agent.port), log], "tailed", 3),
        ([sys.executable, str(examples / "station_program.py"), f"http://127.0.0.1:{agent.port}"], "posted", 3 + 4),
    ):
        environment = os.environ | {"NODE_PATH": str(node_modules), "PYTHONPATH": str(PROGRAM.parents[2])}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert len(until(agent, way, lambda events, count=count: len(events) >= count)) == count  # type: ignore[misc]
    assert {e.correlation_id for e in of(agent, "posted") if e.raw != "done"} == {"order-4711"}
