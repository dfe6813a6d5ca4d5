"""Health of a running agent, from its real parts: whatever is configured and delivers nothing makes it degraded, with what to do."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agent.buffer import Buffer, BufferConfig
from agent.cli_status import lines
from agent.component import Ack, ConfigError, Cursor, NotConnected, Report, Unavailable, now_us
from agent.daemon_health import BUSY_S, conditions_of, health, ready_of
from agent.daemon_status import PROGRESS_S_MAX, Facts, status_of, told_to_collector
from agent.health_status import Check
from agent.host import Host
from agent.pipeline import NoHandlers, Pipeline
from agent.sync import Sync, SyncConfig
from agent.wire.event import Event

AGENT = "a" * 32
URL = "http://127.0.0.1:9"


class Line:
    """A source that does as it is told, and says of itself what a real one says."""

    Config: ClassVar[type] = object
    rereadable: ClassVar[bool] = False

    def __init__(self, report: Report) -> None:
        self.report = report
        self.error: Exception | None = None

    async def batches(self, cursor: Cursor | None) -> AsyncIterator[tuple[list[Event], Cursor | None]]:
        del cursor
        while True:
            if self.error is not None:
                raise self.error
            self.report.ok()
            yield [Event(now_us(), now_us(), "equipment.reading", "plc")], None
            await asyncio.sleep(0.005)


class Centre:
    """A collector that answers as it is told."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    async def send(self, batches: Any, status: Any) -> Ack:
        del batches, status
        if self.error is not None:
            raise self.error
        return Ack({})


class Station:
    """An agent without its process."""

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer
        self.pipeline = Pipeline(buffer, NoHandlers())
        self.centre = Centre()
        self.sync = Sync(SyncConfig(url=URL, backoff_s_max=0.01), buffer, self.centre, dict)
        host = Host(self.pipeline, buffer, time.monotonic)
        self.facts = Facts(
            AGENT, "1", "/x.toml", None, buffer, self.pipeline, host, self.sync.state, URL, now_us()
        )  # fmt: skip
        report = Report()
        self.line = Line(report)
        self.report = report

    def check(self, name: str) -> Check:
        return health(self.facts).checks[name]

    def lines(self) -> list[str]:
        return [each.text for each in conditions_of(self.facts).values()]

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():  # noqa: ASYNC110  # what is looked at has no event
                await asyncio.sleep(0.002)


@asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[Station]:
    buffer = await Buffer.open(tmp_path / "buffer.db", BufferConfig(free_bytes_min=0), AGENT)
    station = Station(buffer)
    try:
        station.pipeline.start("plc", "modbus", station.line, station.report)
        yield station
    finally:
        await station.pipeline.stop_all()
        await buffer.close()


async def test_an_agent_whose_parts_all_work_is_ok(tmp_path: Path) -> None:
    async with running(tmp_path) as station:
        await station.until(lambda: station.report.connected)
        assert (health(station.facts).state, conditions_of(station.facts)) == ("ok", {})
        assert status_of(station.facts, health(station.facts)).health.state == "ok"


@pytest.mark.parametrize(
    ("error", "says", "remedy"),
    [
        (NotConnected("tcp://plc:502: connection refused"), "connection refused", "this station reaches it"),
        (ConfigError("no such device", remedy="Plug it in."), "no such device. Plug it in.", "then every 60 s"),
        (KeyError("x"), "KeyError: 'x'", "report it"),
    ],
)
async def test_a_source_that_delivers_nothing_is_degraded_and_says_when_it_is_tried_again_until_it_works(
    tmp_path: Path, error: Exception, says: str, remedy: str
) -> None:
    async with running(tmp_path) as station:
        station.line.error = error
        await station.until(lambda: bool(station.report.trouble))
        check = station.check("sources")
        assert (health(station.facts).state, check.state) == ("degraded", "degraded")
        assert says in check.detail
        assert "linewarden-agent check" in check.remedy
        line, summary = station.lines()
        assert line.startswith("source plc: ")
        assert says in line
        assert "Next try in" in line
        assert remedy in line
        assert summary == "health is degraded: sources. linewarden-agent status shows what to do"
        assert told_to_collector(station.facts)["sources"]["plc"]["trouble"] == 1
        if not isinstance(error, ConfigError):
            station.line.error = None
            await station.until(lambda: not conditions_of(station.facts))
            assert health(station.facts).state == "ok"


async def test_the_command_status_shows_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    async with running(tmp_path) as station:
        station.report.fault("/var/log/press.log: no such file", "/var/log/press.log")
        shown = "\n".join(lines(status_of(station.facts, health(station.facts)), now_us()))
        assert "health     DEGRADED" in shown
        assert "DEGRADED sources: plc: /var/log/press.log: no such file\n" in shown
        assert "linewarden-agent check names what is wrong" in shown
        station.buffer.stalled = "nothing can be stored"
        assert "health     FAILED" in "\n".join(lines(status_of(station.facts, health(station.facts)), now_us()))


async def test_a_part_of_a_source_that_delivers_nothing_is_degraded_while_the_source_runs(tmp_path: Path) -> None:
    async with running(tmp_path) as station:
        await station.until(lambda: station.report.connected)
        station.report.fault("/var/log/press.log: no such file", "/var/log/press.log")
        assert station.check("sources").state == "degraded"
        assert station.lines()[0] == "source plc: /var/log/press.log: no such file. It is tried again until it works"
        station.report.ok("/var/log/press.log")
        assert health(station.facts).state == "ok"


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (Unavailable("http://127.0.0.1:9/v1/batches: connection refused"), "Check [sync] url"),
        (Unavailable("certificate verify failed: unable to get local issuer"), "another authority"),
        (Unavailable("answered 401: the key was revoked", 30, kind="refused"), "Enrol this agent again"),
        (Unavailable("answered 401. Check the key in sync.key_file", 30, kind="refused"), "key create --role agent"),
        (Unavailable("it cannot read batch 4", 30, kind="disputed"), "Compare the versions"),
        (ConfigError("the key cannot be read", key="sync.key_file"), "linewarden-agent check"),
    ],
)
async def test_a_collector_that_takes_nothing_is_degraded_with_the_next_try_and_the_remedy_until_it_does(
    tmp_path: Path, error: Exception, remedy: str
) -> None:
    async with running(tmp_path) as station:
        station.centre.error = error
        sending = asyncio.create_task(station.sync.run())
        await station.until(lambda: station.sync.state.trouble is not None)
        check = station.check("collector")
        assert (check.state, health(station.facts).state) == ("degraded", "degraded")
        assert remedy in check.remedy
        line = conditions_of(station.facts)["collector",].text
        assert str(error) in line
        assert "Next try in" in line
        assert remedy in line
        assert [check.state for check in ready_of(station.facts)] == ["ok", "ok"], "it goes on taking events"
        station.centre.error = None
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        sending = asyncio.create_task(station.sync.run())
        await station.until(lambda: station.sync.state.trouble is None)
        assert health(station.facts).state == "ok"
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_a_collector_that_asks_us_to_wait_is_no_outage_before_it_does_so_for_long(tmp_path: Path) -> None:
    async with running(tmp_path) as station:
        state = station.sync.state
        state.trouble, state.failing_since_us, state.last_error = "busy", now_us(), "answered 503: try later"
        assert station.check("collector").state == "ok"
        state.failing_since_us = now_us() - int(BUSY_S * 1e6) - 1
        assert station.check("collector").state == "degraded"


async def test_a_buffer_that_stores_nothing_or_hangs_is_failed(tmp_path: Path) -> None:
    async with running(tmp_path) as station:
        station.buffer.stalled = "nothing can be stored in /x: disk is full"
        assert (health(station.facts).state, station.check("buffer").state) == ("failed", "failed")
        assert "health is failed: buffer" in station.lines()[-1]
        station.buffer.stalled = None
        station.buffer.tried_s = time.monotonic() - PROGRESS_S_MAX - 1
        assert (health(station.facts).state, station.check("progress").state) == ("failed", "failed")


async def test_what_else_does_not_do_its_duty_is_degraded_and_named(tmp_path: Path) -> None:
    async with running(tmp_path) as station:
        facts = station.facts
        facts.reload_error = "sources.plc.unit: 300 is no unit"
        facts.endpoint_trouble = "127.0.0.1:8801 is in use"
        facts.key_trouble = lambda: "the collector refused the new key"
        facts.defects["tick"] = "KeyError: 1", time.monotonic()
        facts.host.expired["sync.ca_file"] = "the certificate in /ca.pem expired on 2026-01-01"
        checks = health(facts).checks
        degraded = {name for name, check in checks.items() if check.state == "degraded"}
        assert degraded == {"configuration", "endpoint", "identity", "parts", "certificates"}
        assert all(checks[name].remedy for name in degraded)
        assert health(facts).ok


async def test_the_traceback_of_a_defect_is_logged_once_and_not_with_every_try(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.pipeline.BACKOFF_S_MIN", 0.001)
    monkeypatch.setattr("agent.pipeline.BACKOFF_S_MAX", 0.001)
    async with running(tmp_path) as station:
        station.line.error = KeyError("x")
        await station.until(lambda: station.pipeline.sources["plc"].restarts > 20)
        assert caplog.text.count("Traceback") == 1
