"""What every type of source has to do, one suite over the table of sources: a real daemon, a real peer, and the worst of both.

Starts cold, resumes after a kill, survives its peer's death, is bounded under a flood, stops within five seconds, declares what is lost.
Nothing is sent: the buffer is read as it stands, so that what is durable is what is looked at.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.sources import SOURCES
from agent.wire.event import Event
from tests.agent_process import Agent
from tests.collector_process import poll_until
from tests.integration.source_drivers import DRIVERS, Driver, stored
from tests.ports import free_port

pytestmark = pytest.mark.timeout(200)

WITHOUT_DRIVER: set[str] = set()
"""Types that this suite does not know how to drive."""
AWAY_S, AWAY_LONG_S = 3.0, 60.0
FLOOD_S = 2.5
FLOOD_BYTES_MAX = 64 * 1024 * 1024
"""So much memory may come on top of what the agent had before: queues, a batch or three on their way to the disk, caches."""
STOP_S_MAX = 5.0


def test_every_type_of_source_is_driven_by_this_suite() -> None:
    missing = SOURCES.keys() - DRIVERS.keys() - WITHOUT_DRIVER
    assert not missing, (
        f"no driver for {', '.join(sorted(missing))}: write one in tests/integration/source_drivers.py, and its line in DRIVERS"
    )
    assert DRIVERS.keys() <= SOURCES.keys()


@pytest.fixture(params=sorted(DRIVERS))
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Driver]:
    kind = DRIVERS[request.param]
    lacking = kind.needs()
    if lacking:
        pytest.skip(lacking)
    (tmp_path / "peer").mkdir()
    peer = kind(tmp_path / "peer")
    yield peer
    peer.close()


def agent_of(tmp_path: Path, driver: Driver) -> Agent:
    """An agent with this source. Its collector is away."""
    return Agent(tmp_path, f"http://127.0.0.1:{free_port()}", sources=driver.configuration())


def until_heard(agent: Agent, driver: Driver, number: int, within_s: float = 60.0) -> list[Event]:
    """Wait for the number; all events."""

    def heard() -> list[Event]:
        events = stored(agent)
        return events if number in driver.numbers(events) else []

    events = poll_until(heard, within_s=within_s, why=f"{number} was not heard of\n{agent.log[-2_000:]}")
    assert isinstance(events, list)
    return events


def gaps(events: list[Event]) -> list[Event]:
    return [event for event in events if event.type == "collection.gap" and event.source == "it"]


def assert_once_in_order(driver: Driver, events: list[Event], *, since: int) -> None:
    """Each number once and in order; one that is missing is in a gap that is declared."""
    numbers = [number for number in driver.numbers(events) if number > since]
    assert numbers == sorted(set(numbers)), "something came twice, or late"
    assert numbers[-1] == driver.said
    whole = numbers == list(range(since + 1, driver.said + 1))
    if driver.every:
        assert whole or gaps(events), f"{driver.said - since - len(numbers)} numbers are missing and nobody says so"


def test_it_starts_before_its_peer_is_there_and_reads_it_when_it_comes(tmp_path: Path, driver: Driver) -> None:
    """telegraf#8632, #9154: a server that was off at boot ended the whole agent."""
    with agent_of(tmp_path, driver) as agent:
        assert agent.status()["sources"]["it"]["events"] == 0
        driver.appear()
        if driver.every:
            # What comes after the first number was heard has to be whole; a server is subscribed to some time after it came.
            driver.say(1)
            until_heard(agent, driver, driver.said)
        since = driver.said
        driver.say(40)
        events = until_heard(agent, driver, driver.said)
        assert_once_in_order(driver, events, since=since)
        assert gaps(events) == []
        source = agent.status()["sources"]["it"]
        assert source["state"] == "running"
        assert source["trouble"] == {}


def test_after_a_kill_it_goes_on_where_its_last_durable_event_was(tmp_path: Path, driver: Driver) -> None:
    """Azure/Industrial-IoT#2168, wazuh#11217: a restart lost what was underway; telegraf keeps offsets on a clean stop only."""
    driver.appear()
    with agent_of(tmp_path, driver) as agent:
        driver.say(1)
        until_heard(agent, driver, driver.said)
        since = driver.said
        for _ in range(2):
            speaking = threading.Thread(target=driver.say, args=(100,))
            speaking.start()
            time.sleep(0.05)
            if driver.speaks_to_the_dead:
                agent.kill9()
                speaking.join()
            else:
                speaking.join()
                agent.kill9()
                driver.vanish(agent)
            agent.start()
            driver.say(20)
        events = until_heard(agent, driver, driver.said)
    assert_once_in_order(driver, events, since=since)


def survives(tmp_path: Path, driver: Driver, away_s: float) -> None:
    driver.appear()
    with agent_of(tmp_path, driver) as agent:
        driver.say(1)
        until_heard(agent, driver, driver.said)
        since = driver.said
        driver.say(30)
        until_heard(agent, driver, driver.said)
        driver.vanish(agent)
        time.sleep(away_s)
        assert agent.get("/healthz").status_code == 200
        driver.appear()
        # Whoever is not connected again yet misses what is said now, as anybody would who was not there.
        until_heard_again(agent, driver)
        again = driver.said
        driver.say(30)
        events = until_heard(agent, driver, driver.said)
        numbers = driver.numbers(events)
        assert numbers == sorted(set(numbers)), "something came twice, or late"
        assert_once_in_order(driver, events, since=again)
        if driver.every:
            assert set(range(since + 1, since + 31)) <= set(numbers)
        assert agent.status()["sources"]["it"]["state"] == "running"


def until_heard_again(agent: Agent, driver: Driver) -> None:
    def heard() -> bool:
        driver.say(1)
        time.sleep(0.2)
        return driver.said in driver.numbers(stored(agent))

    poll_until(heard, within_s=90, why=f"nothing is heard of the peer that came back\n{agent.log[-2_000:]}")


def test_it_survives_the_death_of_its_peer(tmp_path: Path, driver: Driver) -> None:
    """telegraf#18454, thingsboard-gateway#1592, #1641: the peer was back, and nothing came any more."""
    survives(tmp_path, driver, AWAY_S)


@pytest.mark.long
def test_it_survives_a_minute_of_its_peer_s_death(tmp_path: Path, driver: Driver) -> None:
    survives(tmp_path, driver, AWAY_LONG_S)


def rss_bytes(agent: Agent) -> int:
    assert agent.process is not None
    pages = int(Path(f"/proc/{agent.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_under_a_flood_its_memory_is_bounded_and_it_stops_within_five_seconds(tmp_path: Path, driver: Driver) -> None:
    """opcua-asyncio#116, fluent-bit#5166: memory that grows with what comes in. The collector is away: the buffer takes it all."""
    driver.appear()
    with agent_of(tmp_path, driver) as agent:
        driver.say(1)
        until_heard(agent, driver, driver.said)
        before = rss_bytes(agent)
        events_before = agent.status()["sources"]["it"]["events"]
        enough = threading.Event()
        flood = threading.Thread(target=driver.flood, args=(enough,))
        flood.start()
        try:
            most, until = before, time.monotonic() + FLOOD_S
            while time.monotonic() < until:
                most = max(most, rss_bytes(agent))
                time.sleep(0.05)
            came = agent.status()["sources"]["it"]["events"] - events_before
            # While the flood goes on.
            asked = time.monotonic()
            agent.signal(signal.SIGTERM)
            assert agent.process is not None
            code = agent.process.wait(60)
            took_s = time.monotonic() - asked
        finally:
            enough.set()
            driver.close()
            flood.join(30)
        print(
            f"{driver.kind}: {came} events, {(most - before) / 1e6:.0f} MB more than {before / 1e6:.0f}, {took_s:.1f} s"
        )
        assert code == 0
        assert came > 50, "that was no flood"
        assert most - before < FLOOD_BYTES_MAX
        assert took_s < STOP_S_MAX
        agent.process = None


def test_what_is_lost_is_declared(tmp_path: Path, driver: Driver) -> None:
    driver.appear()
    with agent_of(tmp_path, driver) as agent:
        driver.say(5)
        until_heard(agent, driver, driver.said)
        assert gaps(stored(agent)) == []
        driver.lose(agent)
        declared = poll_until(
            lambda: gaps(stored(agent)), within_s=60, why=f"no gap was declared\n{agent.log[-2_000:]}"
        )
        assert all(gap.data["reason"] for gap in declared)
        until_heard_again(agent, driver)
        numbers = driver.numbers(stored(agent))
    assert numbers == sorted(set(numbers)), "something came twice, or late"
