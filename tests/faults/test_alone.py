"""A station whose collector was never there: its handlers watch all the same, and what they raised is the first thing the centre hears."""

from pathlib import Path
from uuid import UUID

from agent.simulator.postgres import Postgres
from tests.agent_process import Agent, log_source
from tests.collector_process import Collector, events_of, poll_until
from tests.integration.test_network_watch import told
from tests.ports import free_port

BURST = "".join(
    f"Mar  1 12:00:{n:02d} press-7 sshd[{n}]: Failed password for root from 203.0.113.7 port {n} ssh2\n"
    for n in range(8)
)
HORN = '[actions.horn]\ntype = "write"\npath = "{}"\nhandlers = ["login_burst"]\n'


def test_handlers_and_actions_of_a_station_fire_where_no_collector_ever_was_also_after_kill_9_and_are_heard_once_there_is_one(
    tmp_path: Path, postgres: Postgres
) -> None:
    log, horn = tmp_path / "auth.log", tmp_path / "horn.jsonl"
    log.write_text(BURST)
    collector = Collector(postgres.create_database("alone"))
    collector.port = free_port()
    agent = Agent(tmp_path, collector.url, "", log_source(log) + HORN.format(horn))
    # /readyz waits for nobody: an agent that has no collector is well.
    with agent:
        poll_until(lambda: told(agent, "alert.authentication.burst"), why="nothing was raised")
        poll_until(lambda: told(agent, "agent.action.done"), why="nothing was done")
        agent.kill9()
        agent.start()
        status = agent.status()
        assert status["sync"]["last_success_us"] is None
        assert len(told(agent, "alert.authentication.burst")) == 1
        assert len(horn.read_bytes().splitlines()) == 1
        with collector:
            (tmp_path / "key").write_text(collector.key("agent"))
            agent.kill9()
            agent.start()
            poll_until(agent.drained, within_s=60, why=agent.log[-2_000:])
            with collector.client(collector.key("viewer")) as viewer:
                found = events_of(viewer, agent=str(UUID(agent.id)), type="alert.authentication.burst")
    assert [(one["src_ip"], one["data"]["count"]) for one in found] == [("203.0.113.7", 5)]
