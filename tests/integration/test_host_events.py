"""What happens to the agent itself and to its computer, told by a real daemon: each bullet of it once."""

import signal
import time
from pathlib import Path
from typing import Any

from agent.host import Run, began, configuration_changed
from agent.wire.event import Event
from tests.agent_process import Agent, log_source
from tests.collector_process import poll_until
from tests.exposition import parse
from tests.integration.authority import DAY, Authority, der, key_pem
from tests.integration.source_drivers import stored
from tests.ports import free_port

SILENT = """
[handlers.quiet_sources]
type = "absence"
where = "category != 'agent'"
by = ["source"]
expect = ["auth"]
for_s = 2
raises = { type = "alert.source.silent", severity = "medium" }
"""


def away() -> str:
    return f"http://127.0.0.1:{free_port()}"


def told(agent: Agent, kind: str) -> list[Event]:
    return [event for event in stored(agent) if event.type == kind]


def until_told(agent: Agent, kind: str) -> list[Event]:
    found = poll_until(lambda: told(agent, kind), within_s=60, why=f"no {kind}\n{agent.log[-2_000:]}")
    assert isinstance(found, list)
    return found


def test_how_long_a_source_has_been_silent_is_in_the_status_and_in_the_metrics_and_is_an_alert_where_one_is_wanted(
    tmp_path: Path,
) -> None:
    """telegraf#18454, fluent-bit#11847: it looked healthy, and nothing came."""
    log = tmp_path / "auth.log"
    log.write_text("")
    with Agent(tmp_path, away(), sources=log_source(log) + SILENT) as agent:
        (alert,) = until_told(agent, "alert.source.silent")
        assert "auth" in repr(alert)
        assert agent.status()["sources"]["auth"]["silent_s"] >= 2
        with log.open("a") as file:
            file.write(
                "2026-03-01T10:00:00+00:00 station-1 sshd[1]: Failed password for root from 203.0.113.7 port 1 ssh2\n"
            )
        poll_until(lambda: agent.status()["sources"]["auth"]["events"] == 1)
        first = agent.status()["sources"]["auth"]["silent_s"]
        assert first < 30
        poll_until(lambda: agent.status()["sources"]["auth"]["silent_s"] > first)
        metrics = parse(agent.get("/metrics").text)
        (silent_s,) = metrics["linewarden_agent_source_silent_seconds"].samples.values()
        assert 0 < silent_s < 60
        assert metrics["linewarden_agent_source_last_event_timestamp_seconds"].samples


def test_certificates_that_the_configuration_names_are_told_before_they_end(tmp_path: Path) -> None:
    plant = Authority("plant of the host")
    own = plant.issue(end=5 * DAY, name="station 1")
    pem = _pem(der(own))
    (tmp_path / "own.pem").write_text(pem)
    (tmp_path / "key.pem").write_bytes(key_pem("server"))
    (tmp_path / "old.pem").write_text(_pem(der(plant.issue(begin=-9 * DAY, end=-DAY))))
    source = (
        f'[sources.it]\ntype = "syslog"\nlisten = ["tls://127.0.0.1:{free_port()}"]\ncertificate_file = "{tmp_path}/own.pem"\n'
        f'key_file = "{tmp_path}/key.pem"\nclient_ca_file = "{tmp_path}/old.pem"\n'
    )
    with Agent(tmp_path, away(), sources=source) as agent:
        (soon,) = until_told(agent, "security.certificate.expiring")
        (over,) = until_told(agent, "security.certificate.invalid")
    assert (soon.data["key"], round(soon.data["days"])) == ("sources.it.certificate_file", 5)
    assert (over.data["key"], round(over.data["days"])) == ("sources.it.client_ca_file", -1)


def _pem(content: bytes) -> str:
    from base64 import encodebytes

    return f"-----BEGIN CERTIFICATE-----\n{encodebytes(content).decode()}-----END CERTIFICATE-----\n"


def test_a_disk_with_too_little_room_is_told_once(tmp_path: Path) -> None:
    with Agent(tmp_path, away(), buffer={"free_bytes_min": 2**60}) as agent:
        (pressure,) = until_told(agent, "system.disk.pressure")
        assert pressure.data["free_bytes"] < pressure.data["free_bytes_min"]


def test_a_changed_configuration_is_told_with_its_hash_before_and_after_and_whether_it_runs(tmp_path: Path) -> None:
    with Agent(tmp_path, away(), sources=log_source(tmp_path / "a.log")) as agent:
        before = agent.status()["agent"]["config_sha256"]
        agent.configure(log_source(tmp_path / "b.log"))
        agent.signal(signal.SIGHUP)
        (changed,) = until_told(agent, "agent.configuration.changed")
        assert (changed.data["before"], changed.data["after"]) == (before, agent.status()["agent"]["config_sha256"])
        assert changed.outcome == "success"
        agent.configure("[sources.x]\ntype = 'nonsense'\n")
        agent.signal(signal.SIGHUP)
        poll_until(lambda: len(told(agent, "agent.configuration.changed")) == 2)
        assert told(agent, "agent.configuration.changed")[1].outcome == "failure"
        agent.configure(log_source(tmp_path / "c.log"))
        agent.kill9()
        # Changed while it did not run.
        agent.start()
        poll_until(lambda: len(told(agent, "agent.configuration.changed")) == 3)
        assert agent.stop() == 0
    assert told(agent, "agent.stopped") != []


def test_what_waits_in_the_buffer_survives_a_configuration_that_knows_its_source_no_more(tmp_path: Path) -> None:
    """telegraf#18283: the buffer was kept under a hash of the configuration, and an edit orphaned it."""
    log = tmp_path / "auth.log"
    log.write_text(
        "2026-03-01T10:00:00+00:00 station-1 sshd[7]: Failed password for root from 203.0.113.7 port 1 ssh2\n"
    )
    with Agent(tmp_path, away(), sources=log_source(log)) as agent:
        poll_until(lambda: agent.status()["buffer"]["events"] >= 2)
        assert agent.stop() == 0
        agent.configure(log_source(tmp_path / "other.log", name="another"))
        agent.start()
        assert [event.data["pid"] for event in stored(agent) if event.source == "auth" and "pid" in event.data] == [7]
        assert agent.status()["buffer"]["events"] >= 2


def test_an_upgrade_is_told_with_both_versions() -> None:
    last = Run("1.0", "a", "boot", ended=True).cursor()
    started, upgraded = began(Run("1.1", "a", "boot", ended=False), last)
    assert (started.type, started.data["unclean"]) == ("agent.started", False)
    assert (upgraded.type, upgraded.data["before"], upgraded.data["after"]) == ("agent.upgraded", "1.0", "1.1")
    assert configuration_changed("a", "b").type == "agent.configuration.changed"


def test_a_clock_that_steps_is_told_with_its_offset(tmp_path: Path, monkeypatch: Any) -> None:
    """The clock of this computer is not ours to set: what is asked for the time is."""
    from agent import host

    del tmp_path
    watch = host.Host(None, None, time.monotonic)  # type: ignore[arg-type]
    assert watch._clock() == []
    real = host._wall_offset_s()
    monkeypatch.setattr(host, "_wall_offset_s", lambda: real - 3_600)
    (stepped,) = watch._clock()
    assert (stepped.type, round(stepped.data["offset_s"])) == ("system.clock.stepped", -3_600)
    assert watch._clock() == []
