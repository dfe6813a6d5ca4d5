"""Alerts on a real PostgreSQL: each event counted once, the same thing in one alert, people's work on them, and who may see what."""

import asyncio
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from agent.simulator.postgres import Postgres
from agent.wire.event import Event
from tests.collector_process import Chain, Collector, event, poll_until, post
from tests.postgres import connected

FAST = {"ALERTS__LOOK_S": "0.3"}


@pytest.fixture(scope="module")
def collector(postgres: Postgres) -> Iterator[Collector]:
    """A collector of this file's own, that looks at its agents often."""
    with Collector(postgres.create_database("alerts"), **FAST) as running:
        yield running


def alert(message: str = "five failures", **fields: Any) -> Event:
    """An alert as an agent's handler raises it."""
    key = fields.pop("key", {"src_ip": fields.get("src_ip", "")})
    given = {"type": "alert.authentication.burst", "severity": 4, "data": {"handler": "login_burst", "key": key}}
    return event(message, **{**given, **fields})


class Plant:
    """An agent at a place, and somebody who reads of that site."""

    def __init__(self, collector: Collector, site: str, line: str = "l1", station: str = "s1") -> None:
        self.collector = collector
        self.site = site
        self.chain = Chain(lane=0)
        self.sender = collector.client(collector.key("agent", site=site, line=line, station=station))
        self.analyst = collector.client(collector.key("analyst", site=site))
        self.viewer = collector.client(collector.key("viewer", site=site))

    def close(self) -> None:
        for client in (self.sender, self.analyst, self.viewer):
            client.close()

    def send(self, *events: Event) -> None:
        assert post(self.sender, self.chain.seal(list(events))).status_code == 200

    def alerts(self, **parameters: Any) -> list[dict[str, Any]]:
        answer = self.viewer.get("/v1/alerts", params=parameters)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["alerts"]
        return found

    def one(self, **parameters: Any) -> dict[str, Any]:
        """The one alert that is there, or comes."""
        found = poll_until(lambda: self.alerts(**parameters))
        assert len(found) == 1, found
        one: dict[str, Any] = found[0]
        return one

    def counted(self, count: int, **parameters: Any) -> list[dict[str, Any]]:
        """The alerts, as soon as so many events are counted in them."""
        poll_until(lambda: sum(one["count"] for one in self.alerts(limit=1000, **parameters)) >= count)
        found = self.alerts(limit=1000, **parameters)
        assert sum(one["count"] for one in found) == count
        return found

    def act(self, one: dict[str, Any], action: str, **fields: Any) -> httpx.Response:
        body = {"action": action, "version": one["version"], **fields}
        return self.analyst.patch(f"/v1/alerts/{one['alert_id']}", json=body)

    def whole(self, alert_id: int) -> dict[str, Any]:
        answer = self.viewer.get(f"/v1/alerts/{alert_id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


class Plants:
    """Makes plants at one collector."""

    def __init__(self, collector: Collector) -> None:
        self.collector = collector
        self.made: list[Plant] = []

    def __call__(self, site: str, line: str = "l1", station: str = "s1") -> Plant:
        self.made.append(Plant(self.collector, site, line, station))
        return self.made[-1]


@pytest.fixture
def plants(collector: Collector) -> Iterator[Plants]:
    made = Plants(collector)
    yield made
    for plant in made.made:
        plant.close()


def soon(**after: float) -> str:
    return (datetime.now(UTC) + timedelta(**after)).isoformat()


def test_the_same_alert_again_is_counted_and_each_of_its_events_can_be_read(plants: Plants) -> None:
    plant = plants("same")
    plant.send(*(alert(src_ip="10.0.0.1", correlation_id=f"c{number}") for number in range(3)))
    plant.send(alert(src_ip="10.0.0.1"), alert(src_ip="10.0.0.2"))
    found = plant.counted(5)
    assert sorted(one["count"] for one in found) == [1, 4]
    most = max(found, key=lambda one: one["count"])
    whole = plant.whole(most["alert_id"])
    assert len(whole["events"]) == 4
    for one in whole["events"]:
        answer = plant.viewer.get(f"/v1/events/{one['event_id']}")
        assert answer.status_code == 200
        assert answer.json()["event"]["src_ip"] == "10.0.0.1"
    assert [(line["action"], line["to_state"], line["who_kind"]) for line in whole["history"]] == [
        ("open", "open", "system")
    ]
    assert most["rule"] == "login_burst"


def test_an_alert_is_acknowledged_assigned_closed_and_opens_again_when_it_fires(plants: Plants) -> None:
    """Who, when, why and what it was before are kept: wazuh#26874, wazuh#19009, wazuh#26819."""
    plant = plants("work")
    plant.send(alert())
    one = plant.one()
    for action, fields, state in [
        ("acknowledge", {}, "acknowledged"), ("assign", {"assignee": "ann"}, "acknowledged"),
        ("comment", {"comment": "looks like the backup"}, "acknowledged"), ("close", {"reason": "benign"}, "closed"),
    ]:  # fmt: skip
        answer = plant.act(one, action, **fields)
        assert answer.status_code == 200, answer.text
        one = answer.json()["alert"]
        assert one["state"] == state
    assert (one["assignee"], one["reason"], one["version"]) == ("ann", "benign", 5)
    plant.send(alert())
    poll_until(lambda: plant.whole(one["alert_id"])["alert"]["state"] == "open")
    whole = plant.whole(one["alert_id"])
    assert (whole["alert"]["count"], whole["alert"]["reopened"], whole["alert"]["reason"]) == (2, 1, None)
    assert [line["action"] for line in whole["history"]] == [
        "open",
        "acknowledge",
        "assign",
        "comment",
        "close",
        "reopen",
    ]
    assert [line["from_state"] for line in whole["history"]] == [
        None,
        "open",
        "acknowledged",
        "acknowledged",
        "acknowledged",
        "closed",
    ]
    assert whole["history"][3]["data"]["comment"] == "looks like the backup"


def test_a_false_positive_stays_closed_and_is_counted_until_it_expires(plants: Plants) -> None:
    """wazuh#26874: a false positive has an expiry."""
    plant = plants("false")
    plant.send(alert())
    one = plant.one()
    assert plant.act(one, "false_positive").status_code == 409
    until = datetime.now(UTC) + timedelta(seconds=4)
    answer = plant.act(one, "false_positive", until=until.isoformat(), comment="the scanner of the IT")
    assert answer.json()["alert"]["reason"] == "false_positive"
    plant.send(alert(), alert())
    found = plant.counted(3)[0]
    if datetime.now(UTC) < until:
        assert found["state"] == "closed"
    poll_until(lambda: datetime.now(UTC) > until + timedelta(seconds=0.5))
    plant.send(alert())
    poll_until(lambda: plant.one()["state"] == "open")
    assert plant.one()["count"] == 4


def test_of_two_analysts_who_act_at_once_one_is_told_that_the_other_was_there(plants: Plants) -> None:
    plant = plants("race")
    plant.send(alert())
    one = plant.one()
    url = f"/v1/alerts/{one['alert_id']}"
    assert plant.analyst.patch(url, json={"action": "acknowledge"}).status_code == 428
    answers: list[httpx.Response] = []
    barrier = threading.Barrier(2)

    def act(action: str, **fields: Any) -> None:
        client = plants("race").analyst
        barrier.wait()
        answers.append(
            client.patch(url, json={"action": action, **fields}, headers={"If-Match": f'"{one["version"]}"'})
        )

    threads = [
        threading.Thread(target=act, args=("acknowledge",)),
        threading.Thread(target=act, args=("close",), kwargs={"reason": "resolved"}),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200, 412]
    refused = next(answer for answer in answers if answer.status_code == 412)
    assert refused.json()["version"] == 2
    assert plant.act(one, "close", reason="resolved").status_code == 409
    assert len(plant.whole(one["alert_id"])["history"]) == 2


def test_what_lies_at_another_site_cannot_be_seen_or_touched(plants: Plants) -> None:
    plant, other = plants("mine"), plants("theirs")
    plant.send(alert(correlation_id="shared"))
    other.send(alert(correlation_id="shared"))
    mine, theirs = plant.one(), other.one()
    # A correlation id is the agent's to choose: it joins nothing across sites.
    assert mine["incident_id"] != theirs["incident_id"]
    url = f"/v1/alerts/{theirs['alert_id']}"
    assert plant.viewer.get(url).status_code == 404
    assert plant.analyst.patch(url, json={"action": "acknowledge", "version": 1}).status_code == 404
    assert (
        plant.viewer.patch(f"/v1/alerts/{mine['alert_id']}", json={"action": "acknowledge", "version": 1}).status_code
        == 403
    )
    incident = plant.viewer.get(f"/v1/incidents/{mine['incident_id']}").json()
    assert incident["incident"]["alerts"] == 1
    assert incident["incident"]["places"] == ["mine/l1/s1"]
    assert len(incident["alerts"]) == 1
    closed = plant.analyst.patch(
        f"/v1/incidents/{mine['incident_id']}", json={"action": "close", "reason": "resolved", "version": incident["incident"]["version"]}
    )  # fmt: skip
    assert closed.status_code == 200
    assert (plant.one()["state"], other.one()["state"]) == ("closed", "open")


def test_what_is_written_to_an_incident_of_two_sites_is_shown_to_those_who_see_both(plants: Plants) -> None:
    """As incidents were joined before: by a correlation id."""
    plant, other = plants("joined-a"), plants("joined-b")
    plant.send(alert(correlation_id="shared"))
    other.send(alert(correlation_id="shared"))
    number = plant.one()["incident_id"]
    other.one()

    async def join() -> None:
        async with connected(plant.collector.dsn) as connection:
            await connection.execute(
                "UPDATE alerts SET incident_id = $1 WHERE place_id IN (SELECT place_id FROM places WHERE site = 'joined-b')",
                number,
            )

    asyncio.run(join())
    version = plant.viewer.get(f"/v1/incidents/{number}").json()["incident"]["version"]
    comment = {"action": "comment", "comment": "the vault's code is on the door", "version": version}
    assert plant.analyst.patch(f"/v1/incidents/{number}", json=comment).status_code == 200
    with plant.collector.client(plant.collector.key("viewer")) as both:
        for viewer, lines in ((plant.viewer, 0), (other.viewer, 0), (both, 1)):
            answer = viewer.get(f"/v1/incidents/{number}")
            assert (len(answer.json()["history"]), "vault" in answer.text) == (lines, lines == 1)


def test_an_action_on_many_touches_what_the_preview_counted_and_is_undone(plants: Plants) -> None:
    """kibana#82004, kibana#145675: the time range holds, other rules are not hit; and there is a way back."""
    plant = plants("many")
    hour = 3_600_000_000
    now = datetime.now(UTC)
    old = [alert(src_ip=f"10.1.0.{n}", time=int(now.timestamp() * 1e6) - 5 * hour) for n in range(3)]
    new = [alert(src_ip=f"10.2.0.{n}") for n in range(4)]
    others = [alert(src_ip=f"10.3.0.{n}", data={"handler": "another"}) for n in range(2)]
    plant.send(*old, *new, *others)
    plant.counted(9)
    filter_ = f"rule=login_burst&from={(now - timedelta(hours=1)).strftime('%Y-%m-%dT%H:%M:%SZ')}"
    preview = plant.analyst.post("/v1/alerts/preview", json={"filter": filter_})
    assert preview.status_code == 200, preview.text
    assert (preview.json()["count"], preview.json()["by_state"]) == (4, {"open": 4})
    changed_meanwhile = plant.alerts(src_ip="10.2.0.0")[0]
    plant.act(changed_meanwhile, "acknowledge")
    plant.send(alert(src_ip="10.2.0.9"))
    plant.counted(10)
    url = f"/v1/alerts/selections/{preview.json()['selection_id']}"
    assert plant.viewer.post(f"{url}/apply", json={"action": "close", "reason": "benign"}).status_code == 403
    assert plants("many").analyst.post(f"{url}/undo").status_code == 404
    done = plant.analyst.post(f"{url}/apply", json={"action": "close", "reason": "benign"})
    assert done.json() == {"changed": 3, "left": 1}
    assert {one["src_ip"] for one in plant.alerts(state="closed")} == {"10.2.0.1", "10.2.0.2", "10.2.0.3"}
    assert plant.analyst.post(f"{url}/apply", json={"action": "close", "reason": "benign"}).status_code == 409
    again = plant.alerts(src_ip="10.2.0.1")[0]
    plant.act(again, "reopen")
    assert plant.analyst.post(f"{url}/undo").json() == {"changed": 2, "left": 1}
    assert plant.alerts(state="closed") == []
    assert plant.analyst.post(f"{url}/undo").status_code == 409


def test_a_suppression_keeps_quiet_what_its_preview_counted_and_nothing_else(plants: Plants) -> None:
    """wazuh#26973: no rule has to be edited; kibana#82004: the time range holds."""
    plant, other = plants("quiet"), plants("loud")
    plant.send(alert(src_ip="10.0.0.1"), alert(src_ip="10.0.0.1"), alert(src_ip="10.0.0.2"))
    plant.counted(3)
    filter_ = "src_ip=10.0.0.1&type=alert.authentication.*"
    found = plant.analyst.post("/v1/suppressions/preview", json={"filter": filter_}).json()
    assert (found["events"], found["alerts"], found["open"]) == (2, 1, 1)
    past = f"{filter_}&to=2020-01-01T00:00:00Z"
    assert plant.analyst.post("/v1/suppressions/preview", json={"filter": past}).json()["events"] == 0
    assert plant.analyst.post("/v1/suppressions/preview", json={"filter": ""}).status_code == 400
    body = {"filter": filter_, "expires": soon(hours=1), "comment": "a test of the IT"}
    assert plant.viewer.post("/v1/suppressions", json=body).status_code == 403
    assert plant.analyst.post("/v1/suppressions", json={**body, "expires": soon(hours=-1)}).status_code == 400
    made = plant.analyst.post("/v1/suppressions", json=body)
    assert made.status_code == 201, made.text
    plant.act(plant.alerts(src_ip="10.0.0.1")[0], "close", reason="benign")
    plant.send(alert(src_ip="10.0.0.1"), alert(src_ip="10.0.0.1", key={"src_ip": "x"}), alert(src_ip="10.0.0.3"))
    other.send(alert(src_ip="10.0.0.1"))
    plant.counted(6)
    assert {(one["src_ip"], one["state"]) for one in plant.alerts()} == {
        ("10.0.0.1", "closed"),
        ("10.0.0.2", "open"),
        ("10.0.0.3", "open"),
    }
    assert other.one()["state"] == "open", "a suppression has no effect outside of what its maker may see"
    listed = plant.viewer.get("/v1/suppressions").json()["suppressions"]
    assert [one["hits"] for one in listed] == [2]
    assert other.viewer.get("/v1/suppressions").json()["suppressions"] == []
    url = f"/v1/suppressions/{made.json()['suppression_id']}"
    assert other.analyst.delete(url).status_code == 404
    assert plant.analyst.delete(url).status_code == 204
    plant.send(alert(src_ip="10.0.0.1"))
    poll_until(lambda: any(one["state"] == "open" for one in plant.alerts(src_ip="10.0.0.1")))


def test_pages_of_alerts_hold_each_of_them_once(plants: Plants) -> None:
    plant = plants("pages")
    plant.send(*(alert(src_ip=f"10.9.0.{number}", time=1_750_000_000_000_000) for number in range(25)))
    plant.counted(25)
    seen, after = [], None
    while True:
        page = plant.viewer.get("/v1/alerts", params={"limit": 10, **({"after": after} if after else {})}).json()
        seen += [one["src_ip"] for one in page["alerts"]]
        after = page["next"]
        if after is None:
            break
    assert len(seen) == len(set(seen)) == 25
    for wrong in ("state=shut", "actor=ann", "after=xx", "stat=open", "incident=x"):
        assert plant.viewer.get(f"/v1/alerts?{wrong}").status_code == 400, wrong


def test_two_persons_are_two_alerts_and_neither_can_be_read_out_of_them(plants: Plants) -> None:
    plant = plants("persons")
    plant.send(alert(key={}, actor="ann"), alert(key={}, actor="bob"), alert(key={}, actor="ann"))
    found = plant.counted(3)
    assert sorted(one["count"] for one in found) == [1, 2]
    assert not any(name in json.dumps(plant.whole(one["alert_id"])) for one in found for name in ("ann", "bob"))


async def _audited(collector: Collector, target: str) -> list[str]:
    async with connected(collector.dsn) as connection:
        rows = await connection.fetch("SELECT action FROM audit_log WHERE target = $1 ORDER BY no", target)
        return [row["action"] for row in rows]


def test_what_was_done_is_in_the_audit_log_and_the_history_only_grows(plants: Plants) -> None:
    plant = plants("audited")
    plant.send(alert())
    one = plant.one()
    plant.act(one, "acknowledge")
    plant.act({**one, "version": 2}, "close", reason="other")
    assert asyncio.run(_audited(plants.collector, f"alert/{one['alert_id']}")) == ["alert.acknowledge", "alert.close"]

    async def tamper() -> str:
        async with connected(plants.collector.dsn) as connection:
            try:
                await connection.execute("UPDATE alert_history SET who = 'nobody'")
            except Exception as error:  # noqa: BLE001 - its text is what is asked for
                return str(error)
        return ""

    assert "only grows" in asyncio.run(tamper())


def test_nobody_states_a_fork_of_another_agent_but_the_collector(plants: Plants) -> None:
    victim, forger = plants("victims"), plants("forgers")
    victim.send(event("first"))
    forged = event("forked", type="security.chain.forked", severity=5, target=victim.chain.agent)
    forger.send(forged, alert(type="alert.chain.forked", target=victim.chain.agent, data={"rule": "chain"}))
    told = forger.counted(2, type="alert.agent.claimed")
    assert [(one["target"], one["site"]) for one in told] == [(forger.chain.agent, "forgers")]
    stored = forger.viewer.get("/v1/events", params={"agent": forger.chain.agent}).json()["events"]
    assert {one["type"] for one in stored} == {"claimed.security.chain.forked", "claimed.alert.chain.forked"}
    assert victim.alerts() == []
    assert forger.alerts(type="alert.chain.*") == []
    # The true one: the collector sees it, at the agent's own place, and nobody of the other site can close it.
    twin = Chain(victim.chain.agent, buffer=victim.chain.buffer, lane=victim.chain.lane)
    assert post(victim.sender, twin.batch("another first")).status_code == 409
    true = victim.one(type="alert.chain.forked")
    assert (true["target"], true["site"]) == (victim.chain.agent, "victims")
    assert forger.act(true, "close", reason="other").status_code == 404


@pytest.mark.parametrize("kind", ["alert.test", "collection.gap"])
def test_data_beyond_all_bounds_from_an_agent_stops_neither_alerts_nor_health(plants: Plants, kind: str) -> None:
    """Integers of 5,000 digits, 980 levels, a number beyond any double: each is kept as text, and what comes after it is counted."""
    plant = plants(f"hostile-{kind}")
    for data in (b'{"n":' + b"9" * 5_000 + b"}", b'{"n":' + b"[" * 980 + b"]" * 980 + b"}", b'{"events":1e5000}'):
        at = int(datetime.now(UTC).timestamp() * 1e6)
        head = f'{{"time":{at},"observed":{at},"type":"{kind}","severity":4,"source":"s","data":'
        assert post(plant.sender, plant.chain.seal_lines([head.encode() + data + b"}"], [b""])).status_code == 200
    plant.send(alert("after"))
    kinds = [one["type"] for one in plant.counted(4)]
    assert "alert.authentication.burst" in kinds
    with plant.collector.client() as nobody:
        health = nobody.get("/healthz")
    assert health.status_code == 200
    assert all(task["restarts"] == 0 for task in health.json()["tasks"].values())
