"""The centre's own rules on real collectors: silence, gaps, one address at several stations; each alert once, whoever is killed."""

import asyncio
import json
from typing import Any
from uuid import uuid4

from agent.wire.event import Event
from collector import own
from collector.alert_reader import AlertReader, AlertSettings
from collector.app import migrate_at
from collector.rules import RulesSettings
from collector.store import keys
from collector.store.database import Database
from tests.collector_process import Chain, Collector, event, now_us, poll_until, post
from tests.integration.test_alerts import alert
from tests.postgres import connected

FAST = {"ALERTS__LOOK_S": "0.2", "RULES__SILENT__INTERVAL_S": "0.5", "RULES__SILENT__RECOVER_S": "0.5"}


def send(collector: Collector, station: str, *events: Event, **headers: str) -> Chain:
    chain = Chain(lane=0)
    with collector.client(collector.key("agent", site="north", line="l1", station=station)) as client:
        answer = post(client, chain.seal(list(events)), **headers)
        assert answer.status_code == 200, answer.text
    return chain


def alerts(collector: Collector, **parameters: Any) -> list[dict[str, Any]]:
    with collector.client(collector.key("viewer")) as client:
        found: list[dict[str, Any]] = client.get("/v1/alerts", params={"limit": 1000, **parameters}).json()["alerts"]
        return found


def test_a_silent_agent_is_told_and_cleared_and_a_planned_stop_is_told_quietly(dsn: str) -> None:
    """fleetdm/fleet#37097: the last event and the last sign of life are told apart."""
    with Collector(dsn, **FAST) as collector:
        chain = send(collector, "s1", event())
        send(collector, "s2", event(type="agent.stopped"))
        found = poll_until(lambda: len(a := alerts(collector, type="alert.agent.silent")) == 2 and a)
        assert {one["station"]: one["severity"] for one in found} == {"s1": 4, "s2": 2}
        with collector.client(collector.key("viewer", site="north")) as client:
            fleet = client.get("/v1/fleet").json()
            assert (fleet["worst"], fleet["by_state"]) == ("silent", {"silent": 1, "stopped": 1})
            assert [one["name"] for one in fleet["sites"][0]["below"][0]["below"]] == ["s1", "s2"]

            def listed(**wanted: Any) -> list[str]:
                answer = client.get("/v1/fleet/agents", params=wanted)
                assert answer.status_code == 200, answer.text
                return [one["station"] for one in answer.json()]

            assert listed(state=["silent", "late"]) == ["s1"]
            assert listed(site="north", station="s2") == ["s2"]
            assert listed(line="elsewhere") == []
            assert client.get("/v1/fleet", params={"state": "stopped"}).json()["agents"] == 1
            assert client.get("/v1/fleet/agents", params={"state": "asleep"}).status_code == 400
        with collector.client(collector.key("viewer", site="south")) as client:
            assert client.get("/v1/fleet").json()["agents"] == 0
            assert client.get(f"/v1/agents/{chain.agent}").status_code == 404
        with collector.client(collector.key("agent", site="north", line="l1", station="s1")) as client:

            def speak() -> bool:
                assert post(client, chain.batch("here")).status_code == 200
                return any(a["state"] == "closed" and a["station"] == "s1" for a in alerts(collector))

            # Another key of the same agent, as after a change of keys.
            poll_until(speak)


def test_gaps_clocks_and_one_address_at_three_stations_are_found(dsn: str) -> None:
    with Collector(dsn, ALERTS__LOOK_S="0.2") as collector:
        send(collector, "s1", event(type="collection.gap", data={"events": 7, "reason": "full"}))
        for number in range(3):
            send(collector, f"s{number}", event(type="authentication.failure", src_ip="203.0.113.9", outcome="failure"))
            send(collector, f"s{number}", event(type="configuration.changed", data={"name": "limit"}))
        send(collector, "s9", event(), **{"linewarden-agent-time": "1000"})
        kinds = {"alert.collection.gap", "alert.fleet.address", "alert.fleet.change", "alert.agent.clock"}
        poll_until(lambda: kinds <= {one["type"] for one in alerts(collector)})
        (found,) = alerts(collector, type="alert.fleet.address")
        assert (found["site"], found["line"], found["station"]) == ("north", "l1", "")
        assert found["data"]["count"] == 3
        assert len(found["data"]["events"]) == 3


def test_lag_a_buffer_that_fills_or_takes_nothing_and_a_forked_chain_are_told_and_are_over_when_they_are(
    dsn: str,
) -> None:
    def status(**buffer: Any) -> dict[str, str]:
        return {"linewarden-status": json.dumps({"buffer": buffer})}

    troubles = {
        "late": status(oldest_us=now_us() - 3_600_000_000, events=9),
        "filling": status(used_bytes=90, bytes_max=100),
        "stalled": status(used_bytes=10, bytes_max=100, stalled=True),
        "fine": status(oldest_us=now_us(), used_bytes=79, bytes_max=100, stalled=False),
        "cloned": {},
    }
    with Collector(dsn, ALERTS__LOOK_S="0.2") as collector:
        keys = {name: collector.key("agent", site="north", station=name) for name in troubles}
        chains = {name: Chain() for name in troubles}

        def say(name: str, **headers: str) -> int:
            with collector.client(keys[name]) as client:
                return post(client, chains[name].batch(), **headers).status_code

        for name, headers in troubles.items():
            assert say(name, **headers) == 200
        twin = chains["cloned"].twin()
        assert say("cloned") == 200
        with collector.client(keys["cloned"]) as client:
            assert post(client, twin.batch("another")).status_code == 409
        wanted = {
            ("late", "alert.agent.lag"), ("filling", "alert.agent.buffer"), ("stalled", "alert.agent.stalled"),
            ("cloned", "alert.chain.forked"),
        }  # fmt: skip
        found = poll_until(lambda: len(a := alerts(collector)) >= len(wanted) and a)
        by_agent = {chain.agent: name for name, chain in chains.items()}
        assert {(by_agent[one["target"]], one["type"]) for one in found} == wanted
        for name in ("late", "filling", "stalled"):
            assert say(name, **status(oldest_us=now_us(), used_bytes=59, bytes_max=100, stalled=False)) == 200
        poll_until(lambda: sum(one["state"] == "closed" for one in alerts(collector)) == 3)
        # A fork is nothing that passes by itself.
        assert {one["type"] for one in alerts(collector) if one["state"] != "closed"} == {"alert.chain.forked"}


def test_ten_thousand_alerts_at_two_collectors_of_which_one_is_killed_are_counted_once_each(dsn: str) -> None:
    with Collector(dsn, ALERTS__LOOK_S="1") as first, Collector(dsn, ALERTS__LOOK_S="1") as second:
        chain = Chain(lane=0)
        with second.client(second.key("agent", site="storm")) as client:
            for part in range(10):
                batch = chain.seal([alert(src_ip=f"10.{part}.{n // 250}.{n % 250}") for n in range(1_000)])
                assert post(client, batch).status_code == 200
                if part == 5:
                    first.kill9()

        async def look() -> tuple[int, int, int]:
            async with connected(dsn) as connection:
                row = await connection.fetchrow(
                    "SELECT (SELECT count(*) FROM alert_events e JOIN alerts a USING (alert_id) WHERE a.rule = 'login_burst') AS events, "
                    "(SELECT count(*) FROM alerts WHERE rule = 'login_burst') AS alerts, "
                    "(SELECT coalesce(sum(count), 0) FROM alerts WHERE rule = 'login_burst')::bigint AS counted"
                )
                assert row is not None
                return row["events"], row["alerts"], row["counted"]

        poll_until(lambda: asyncio.run(look())[0] >= 10_000, within_s=120)
        assert asyncio.run(look()) == (10_000, 10_000, 10_000)


async def test_the_same_of_another_place_is_another_alert_and_is_over_wherever_the_agent_stands_then(dsn: str) -> None:
    await migrate_at(dsn)
    database = Database(dsn, pool_size=2, synchronous_commit="on")
    await database.open()
    reader = AlertReader(database, AlertSettings(), RulesSettings(), [])
    agent = uuid4()

    async def raised(site: str, **data: Any) -> None:
        async with database.connection() as store:
            place = await keys.place_named(store, site, "", "")
            await store.execute(
                "INSERT INTO agents (agent_id, place_id, first_seen, last_seen) VALUES ($1, $2, now(), now()) "
                "ON CONFLICT (agent_id) DO UPDATE SET place_id = $2",
                agent, place,
            )  # fmt: skip
        about = {"rule": "silent", "key": {"on": str(agent)}, **data}
        await own.tell(database, [event("x", type="alert.agent.silent", target=str(agent), data=about)], about=agent)
        while await reader.step():
            pass

    async def states() -> list[tuple[str, str]]:
        async with database.connection() as store:
            sql = "SELECT site, state FROM alerts JOIN places USING (place_id) WHERE target = $1 ORDER BY alert_id"
            return [tuple(row) for row in await store.fetch(sql, str(agent))]

    try:
        await raised("north")
        await raised("south")
        assert await states() == [("north", "open"), ("south", "open")]
        await raised("south", cleared=True)
        assert await states() == [("north", "closed"), ("south", "closed")]
    finally:
        await database.close()
