"""Local actions of a real agent, also one that is killed while an action runs."""

from pathlib import Path

from agent.wire.event import Event
from tests.agent_process import Agent, log_source
from tests.collector_process import poll_until
from tests.integration.source_drivers import stored
from tests.ports import free_port

LINE = "2026-03-01T10:00:0{}+00:00 station-1 sshd[1]: Failed password for root from 203.0.113.{} port 1 ssh2\n"
RULE = """
[handlers.builtin]
enabled = false
[handlers.each]
type = "count"
where = "type == 'authentication.failure'"
by = ["src_ip"]
at_least = 1
within_s = 60
raises = { type = "alert.each", severity = "high" }
[actions.act]
type = "run"
argv = ["PROGRAM", "{src_ip}"]
handlers = ["each"]
timeout_s = 60
"""


def told(agent: Agent, ending: str) -> list[Event]:
    return [event for event in stored(agent) if event.type == f"agent.action.{ending}"]


def test_action_that_runs_when_the_agent_is_killed_is_not_done_again_and_one_that_waits_is_done_once(
    tmp_path: Path,
) -> None:
    log, program, begun, gate = (tmp_path / name for name in ("auth.log", "act", "begun", "gate"))
    log.write_text("")
    program.write_text(f'#!/bin/sh\necho "$1" >>{begun}\nuntil [ -e {gate} ]; do sleep 0.1; done\n')
    program.chmod(0o755)
    rules = RULE.replace("PROGRAM", str(program))
    with Agent(tmp_path, f"http://127.0.0.1:{free_port()}", sources=log_source(log) + rules) as agent:
        with log.open("a") as file:
            file.write(LINE.format(1, 7) + LINE.format(2, 8))
        poll_until(lambda: begun.exists() and begun.read_text() == "203.0.113.7\n", within_s=60)
        poll_until(lambda: agent.status()["alerts"] == 2, within_s=60)
        agent.kill9()
        gate.touch()
        agent.start()
        poll_until(lambda: told(agent, "unknown") and told(agent, "done"), within_s=60, why=agent.log[-2_000:])
        agent.kill9()
        agent.start()
        with log.open("a") as file:
            file.write(LINE.format(3, 9))
        poll_until(lambda: len(told(agent, "done")) == 2, within_s=60)
        assert begun.read_text().split() == ["203.0.113.7", "203.0.113.8", "203.0.113.9"]
        assert len(told(agent, "unknown")) == 1
        alerts = {event.correlation_id for event in stored(agent) if event.type == "alert.each"}
        assert {event.correlation_id for event in told(agent, "done") + told(agent, "unknown")} == alerts
