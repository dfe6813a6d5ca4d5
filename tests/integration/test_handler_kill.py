"""State commits with the events: what a handler knows outlives `kill -9`, in a real agent with the built-in handlers."""

from pathlib import Path

from agent.wire.event import Event
from tests.agent_process import Agent, log_source
from tests.collector_process import poll_until
from tests.integration.source_drivers import stored
from tests.ports import free_port

REFUSED = "2026-03-02T08:00:{second:02d}+00:00 station-1 sshd[{pid}]: Failed password for root from 203.0.113.9 port {port} ssh2\n"


def refusals(agent: Agent) -> list[Event]:
    return [event for event in stored(agent) if event.type == "authentication.failure"]


def bursts(agent: Agent) -> list[Event]:
    return [event for event in stored(agent) if event.type == "alert.authentication.burst"]


def until_stored(agent: Agent, count: int) -> None:
    poll_until(lambda: len(refusals(agent)) == count, within_s=60, why=f"not {count} stored:\n{agent.log[-2_000:]}")


def test_kill_9_after_every_second_event_of_a_burst_leaves_exactly_one_alert(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    log.write_text("")
    agent = Agent(tmp_path, f"http://127.0.0.1:{free_port()}", sources=log_source(log))
    written = 0
    for _ in range(5):
        agent.start()
        try:
            with log.open("a") as file:
                for _ in range(2):
                    written += 1
                    file.write(REFUSED.format(second=written, pid=written, port=40_000 + written))
            until_stored(agent, written)
        finally:
            agent.kill9()
    assert [event.data["pid"] for event in refusals(agent)] == list(range(1, written + 1))
    (alert,) = bursts(agent)
    assert alert.data["count"] == alert.data["limit"] == 5
    assert alert.data["window_s"] == 60
    assert alert.data["first"]["time"] < alert.data["last"]["time"] == alert.time
    assert alert.src_ip == "203.0.113.9"
    assert "5 refused sign-ins from 203.0.113.9" in (alert.message or "")
    assert alert.severity == 4
    assert alert.data["causes"] == ["station-1/sshd/1", "station-1/sshd/5"]
