"""GET /v1/events and its neighbours on a real PostgreSQL: filters, pages, formats, keys and their scope."""

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.wire.event import Event
from collector.store.keys import Role
from tests.collector_process import Chain, Collector, event, events_of, post, run_cli
from tests.postgres import connected

BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)


def _us(moment: datetime) -> int:
    return int((moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))


def _plant() -> list[Event]:
    at = _us(BEGIN)
    return [
        Event(at, at, "authentication.failure", "auth", src_ip="10.0.0.9", target="sshd", outcome="failure", message="password refused",
              correlation_id="c1", actor="ann", data={"port": 22, "user": "ann"}),
        Event(at + 1_000_000, at, "authentication.failure", "auth", src_ip="10.0.0.10", outcome="failure", correlation_id="c1",
              message="Password REFUSED again 100%", data={"port": 23}),
        Event(at + 2_000_000, at, "authentication.success", "auth", src_ip="10.0.0.9", outcome="success", correlation_id="c1",
              data={"port": 22, "deep": {"list": [1, 2, {"x": "y"}]}}),
        Event(at + 3_000_000, at, "equipment.reading", "plc", target="oil", data={"value": 61.5, "unit": "degC"}),
        Event(at + 4_000_000, at, "security.log.cleared", "auth", message="_under%score\\", data={}),
        Event(at + 5_000_000, at, "authentications", "auth"),
    ]  # fmt: skip


class Plant:
    """A filled collector database and who may read it."""

    def __init__(self, collector: Collector) -> None:
        self.collector = collector
        self.chain = Chain()
        self.viewer = collector.client(collector.key("viewer"))
        self.analyst = collector.client(collector.key("analyst"))
        with collector.client(collector.key("agent", site="north", line="L1", station="press")) as client:
            answer = post(client, self.chain.seal(_plant()))
            assert answer.status_code == 200, answer.text
        self.other = Chain()
        with collector.client(collector.key("agent", site="south")) as client:
            post(client, self.other.batch("elsewhere"))

    def find(self, **parameters: Any) -> list[int]:
        """Indexes of the events that a filter finds, oldest first."""
        client = self.analyst if "personal" in parameters else self.viewer
        found = events_of(client, **{"agent": self.chain.agent, "order": "asc", **parameters})
        return [int(e["event_id"].rpartition("/")[2]) for e in found]


@pytest.fixture(scope="module")
def plant(collector: Collector) -> Iterator[Plant]:
    made = Plant(collector)
    yield made
    made.viewer.close()
    made.analyst.close()


FILTERS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "nothing": ({}, [0, 1, 2, 3, 4, 5]),
    "from is inclusive": ({"from": (BEGIN + timedelta(seconds=3)).isoformat()}, [3, 4, 5]),
    "to is exclusive": ({"to": "2026-03-01T12:00:01Z"}, [0]),
    "another offset is the same time": ({"from": "2026-03-01T15:00:04+03:00"}, [4, 5]),
    "site": ({"site": "north"}, [0, 1, 2, 3, 4, 5]),
    "another site": ({"site": "south"}, []),
    "line and station": ({"line": "L1", "station": "press"}, [0, 1, 2, 3, 4, 5]),
    "exact type": ({"type": "authentication.failure"}, [0, 1]),
    "type and all below it, and no name that only begins alike": ({"type": "authentication.*"}, [0, 1, 2]),
    "two types": ({"type": ["authentication.success", "equipment.*"]}, [2, 3]),
    "category": ({"category": "equipment"}, [3]),
    "severity at least": ({"severity": 3}, [0, 1, 4]),
    "severity of a list": ({"severity_in": [5, 3]}, [0, 1, 4]),
    "source": ({"source": "plc"}, [3]),
    "actor, by whoever may": ({"actor": "ann", "personal": "true"}, [0]),
    "personal data changes nothing of what is found": ({"personal": "true"}, [0, 1, 2, 3, 4, 5]),
    "src_ip": ({"src_ip": ["10.0.0.10", "1.1.1.1"]}, [1]),
    "target": ({"target": "oil"}, [3]),
    "outcome": ({"outcome": "success"}, [2]),
    "text, any case": ({"text": "password refused"}, [0, 1]),
    "text with a percent sign means a percent sign": ({"text": "100%"}, [1]),
    "text with an underscore means an underscore": ({"text": "_under"}, [4]),
    "text with a backslash": ({"text": "score\\"}, [4]),
    "data contains": ({"data": '{"port":22}'}, [0, 2]),
    "data contains, deep": ({"data": '{"deep":{"list":[{"x":"y"}]}}'}, [2]),
    "personal keys are not in data": ({"data": '{"user":"ann"}'}, []),
    "correlation": ({"correlation_id": "c1"}, [0, 1, 2]),
    "several filters have to hold together": (
        {"type": "authentication.*", "src_ip": "10.0.0.9", "outcome": "failure"},
        [0],
    ),
}


@pytest.mark.parametrize(("parameters", "expected"), FILTERS.values(), ids=FILTERS.keys())
def test_a_filter_finds_exactly_its_events(plant: Plant, parameters: dict[str, Any], expected: list[int]) -> None:
    assert plant.find(**parameters) == expected


WRONG = {
    "a misspelt parameter": ({"sevrity": 3}, "severity"),
    "no date": ({"from": "yesterday"}, "from"),
    "no UUID": ({"agent": "x"}, "agent"),
    "severity out of range": ({"severity": 9}, "severity"),
    "severities out of range": ({"severity_in": 99999999}, "severity_in"),
    "limit too large": ({"limit": 1001}, "limit"),
    "no JSON": ({"data": "{"}, "data"),
    "no object": ({"data": "[1]"}, "data"),
    "data that jsonb refuses": ({"data": '{"a":"\\u0000"}'}, "filter"),
    "a NUL": ({"text": "a\0b"}, "filter"),
    "no cursor": ({"after": "abc"}, "after"),
    "a cursor of zeros": ({"after": "A" * 30}, "cursor"),
    "no order": ({"order": "sideways"}, "order"),
    "too many values": ({"type": ["a"] * 101}, "type"),
}


@pytest.mark.parametrize(("parameters", "named"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_parameter_is_400_and_named(plant: Plant, parameters: dict[str, Any], named: str) -> None:
    answer = plant.viewer.get("/v1/events", params=parameters)
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert named in answer.text
    assert "Traceback" not in answer.text


def test_a_cursor_of_the_other_order_is_refused(plant: Plant) -> None:
    page = plant.viewer.get("/v1/events", params={"agent": plant.chain.agent, "limit": 1, "order": "asc"}).json()
    answer = plant.viewer.get("/v1/events", params={"after": page["next"], "order": "desc"})
    assert answer.status_code == 400


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    times=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=8), min_size=1, max_size=6),
    limit=st.integers(1, 9),
    order=st.sampled_from(["asc", "desc"]),
)
def test_pages_put_together_are_all_events_each_once_in_order(
    pages_agent: "tuple[Chain, httpx.Client, httpx.Client]", times: list[list[int]], limit: int, order: str
) -> None:
    """Many events share a time: the key, not the time, orders them."""
    _, client, viewer = pages_agent
    at = _us(BEGIN)
    # A buffer a run: one agent, and each run finds its own events by correlation.
    chain = Chain(pages_agent[0].agent)
    run = chain.buffer
    batches = [
        chain.seal([event(f"{n}.{i}", time=at + t, correlation_id=run) for i, t in enumerate(batch)])
        for n, batch in enumerate(times)
    ]
    assert post(client, *batches).status_code == 200
    found = events_of(viewer, correlation_id=run, limit=limit, order=order)
    expected = sorted((t, n, i) for n, batch in enumerate(times) for i, t in enumerate(batch))
    assert [e["message"] for e in found] == [
        f"{n}.{i}" for _, n, i in (expected if order == "asc" else reversed(expected))
    ]


@pytest.fixture(scope="module")
def pages_agent(collector: Collector) -> Iterator[tuple[Chain, httpx.Client, httpx.Client]]:
    with collector.client(collector.key("agent")) as client, collector.client(collector.key("viewer")) as viewer:
        yield Chain(), client, viewer


def test_pages_stay_the_same_while_events_arrive(collector: Collector) -> None:
    chain = Chain()
    at = _us(BEGIN)
    with collector.client(collector.key("agent")) as client, collector.client(collector.key("viewer")) as viewer:
        post(client, chain.seal([event(str(n), time=at + n) for n in range(10)]))
        first = viewer.get("/v1/events", params={"agent": chain.agent, "limit": 4}).json()
        post(client, chain.seal([event("newer", time=at + 100)]))
        second = viewer.get("/v1/events", params={"agent": chain.agent, "limit": 100, "after": first["next"]}).json()
        assert [e["message"] for e in first["events"] + second["events"]] == [str(n) for n in range(9, -1, -1)]
        assert second["next"] is None


def test_ndjson_and_csv_by_accept_and_by_format(plant: Plant) -> None:
    parameters: dict[str, Any] = {"agent": plant.chain.agent, "order": "asc", "limit": 4}
    lines = plant.viewer.get("/v1/events", params=parameters, headers={"Accept": "application/x-ndjson"})
    assert lines.headers["content-type"].startswith("application/x-ndjson")
    assert [json.loads(line)["type"] for line in lines.text.splitlines()][3] == "equipment.reading"
    table = plant.viewer.get("/v1/events", params={**parameters, "format": "csv"})
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert len(rows) == 4
    assert rows[0]["src_ip"] == "10.0.0.9"
    assert json.loads(rows[3]["data"]) == {"unit": "degC", "value": 61.5}
    assert table.headers["Linewarden-Next"] in table.headers["Link"]
    rest = plant.viewer.get(table.links["next"]["url"])
    assert len(list(csv.DictReader(io.StringIO(rest.text)))) == 2


def test_a_csv_cell_that_a_spreadsheet_would_run_is_defused(collector: Collector) -> None:
    chain = Chain()
    with collector.client(collector.key("agent")) as client, collector.client(collector.key("viewer")) as viewer:
        post(client, chain.batch('=HYPERLINK("http://x")'))
        text = viewer.get("/v1/events", params={"agent": chain.agent, "format": "csv"}).text
        assert next(csv.DictReader(io.StringIO(text)))["message"] == '\'=HYPERLINK("http://x")'


def test_an_event_comes_with_the_evidence_of_its_batch(plant: Plant) -> None:
    identity = plant.chain.identity(1, 3)
    found = plant.viewer.get(f"/v1/events/{identity}").json()
    assert found["event"]["event_id"] == identity
    assert found["event"]["data"] == {"value": 61.5, "unit": "degC"}
    evidence = found["evidence"]
    assert (evidence["hash"], evidence["prev"], evidence["index"], evidence["events"]) == (
        plant.chain.hash,
        "0" * 64,
        3,
        6,
    )
    assert evidence["frame"] == "whole"


async def test_a_changed_frame_is_shown_as_damaged(collector: Collector) -> None:
    chain = Chain()
    with collector.client(collector.key("agent")) as client, collector.client(collector.key("viewer")) as viewer:
        post(client, chain.batch("a"))
        async with connected(collector.dsn) as connection:
            await connection.execute(
                "UPDATE evidence SET frame = set_byte(frame, 60, 0) WHERE agent_id = $1::uuid", chain.agent
            )
        assert viewer.get(f"/v1/events/{chain.identity(1, 0)}").json()["evidence"]["frame"].startswith("damaged")


@pytest.mark.parametrize(
    "identity", ["x", "a/b/c/d/e", "1/2/3/4", f"{'0' * 32}/{'0' * 32}/1/1/²", f"{'0' * 32}/zz/1/1/0"]
)
def test_what_is_no_event_id_is_400(plant: Plant, identity: str) -> None:
    assert plant.viewer.get(f"/v1/events/{identity}").status_code == 400


def test_an_event_that_is_not_there_is_404(plant: Plant) -> None:
    assert plant.viewer.get(f"/v1/events/{plant.chain.identity(1, 6)}").status_code == 404
    assert plant.viewer.get(f"/v1/events/{plant.chain.identity(99, 0)}").status_code == 404
    assert plant.viewer.get(f"/v1/events/{plant.chain.identity(99, 2**40)}").status_code == 404


def test_a_correlation_is_told_in_order(plant: Plant) -> None:
    found = plant.viewer.get("/v1/correlations/c1").json()["events"]
    assert [e["outcome"] for e in found if e["agent_id"] == plant.chain.agent] == ["failure", "failure", "success"]


def test_agents_are_listed_with_place_and_how_far_they_are_stored(plant: Plant) -> None:
    (found,) = [a for a in plant.viewer.get("/v1/agents").json()["agents"] if a["agent_id"] == plant.chain.agent]
    assert (found["site"], found["line"], found["station"], found["events"]) == ("north", "L1", "press", 6)
    assert found["streams"] == [{"buffer": plant.chain.buffer, "lane": 1, "no": 1, "events": 6, "gaps": 0}]


# Keys


def test_without_a_good_key_nothing_is_answered(plant: Plant) -> None:
    for key in (None, "lw_x_y", "nonsense", "lw_" + "a" * 500, "lw_aaaaaaaa_\u00e9"):
        with httpx.Client(base_url=plant.collector.url, trust_env=False) as client:
            headers = {b"Authorization": b"Bearer " + key.encode("latin-1")} if key else {}
            answer = client.get("/v1/events", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")


ROUTES = [
    ("GET", "/v1/events"),
    ("GET", "/v1/events/x"),
    ("GET", "/v1/correlations/x"),
    ("GET", "/v1/agents"),
    ("POST", "/v1/batches"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("role", ["agent", "viewer", "analyst", "auditor", "admin"])
def test_each_role_may_do_its_own_and_nothing_else(plant: Plant, role: Role, method: str, path: str) -> None:
    with plant.collector.client(plant.collector.key(role)) as client:
        allowed = (method == "POST") == (role == "agent")
        assert (client.request(method, path).status_code == 403) is not allowed


def test_a_key_with_a_site_sees_that_site_only(plant: Plant) -> None:
    with plant.collector.client(plant.collector.key("viewer", site="south")) as south:
        assert {e["site"] for e in events_of(south)} == {"south"}
        assert events_of(south, agent=plant.chain.agent) == []
        assert south.get(f"/v1/events/{plant.chain.identity(1, 0)}").status_code == 404
        assert south.get(f"/v1/events/{plant.other.identity(1, 0)}").status_code == 200
        assert south.get("/v1/correlations/c1").json()["events"] == []
        assert {a["site"] for a in south.get("/v1/agents").json()["agents"]} == {"south"}


def test_a_revoked_key_is_refused_from_the_next_request_on(plant: Plant) -> None:
    key = plant.collector.key("viewer")
    with plant.collector.client(key) as client:
        assert client.get("/v1/agents").status_code == 200
        assert run_cli(plant.collector.dsn, "key", "revoke", key.split("_")[1]).returncode == 0
        answer = client.get("/v1/agents")
        assert answer.status_code == 401
        assert "revoked" in answer.json()["detail"]


async def test_an_expired_key_is_refused(plant: Plant) -> None:
    key = run_cli(plant.collector.dsn, "key", "create", "--role", "viewer", "--expires", "1h").stdout.strip()
    with plant.collector.client(key) as client:
        assert client.get("/v1/agents").status_code == 200
        async with connected(plant.collector.dsn) as connection:
            await connection.execute("UPDATE api_keys SET expires = now() WHERE prefix = $1", key.split("_")[1])
            stored = await connection.fetchval("SELECT hash FROM api_keys WHERE prefix = $1", key.split("_")[1])
        assert client.get("/v1/agents").status_code == 401
        assert key.encode() not in stored


# Health


def test_health_names_its_checks(plant: Plant) -> None:
    health = plant.viewer.get("/healthz").json()
    assert health["ok"] is True
    assert set(health["checks"]) == {"process", "database", "partitions", "background"}
    assert all(task["ok"] for task in health["tasks"].values())


def test_metrics_are_prometheus_text(plant: Plant) -> None:
    answer = plant.viewer.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    assert all(line.startswith("linewarden_collector_") and float(line.split()[-1]) >= 0 for line in lines)
    assert any(line.startswith("linewarden_collector_events_total ") for line in lines)


@pytest.mark.parametrize("path", ["/nowhere", "/v1/events/../../etc", "/v1/streams"])
def test_an_unknown_path_is_a_problem_too(plant: Plant, path: str) -> None:
    answer = plant.viewer.get(path)
    assert answer.status_code in (400, 404)
    assert answer.headers["content-type"].startswith("application/problem+json")


def _statistics(plant: Plant, path: str = "/v1/statistics", **parameters: Any) -> dict[str, Any]:
    answer = plant.viewer.get(
        path, params={"from": "2026-03-01T12:10:00Z", "to": "2026-03-01T12:50:00Z", "site": "north", **parameters}
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_statistics_count_the_events_of_whole_hours_by_group(plant: Plant) -> None:
    found = _statistics(plant, group=["category", "outcome"])
    assert (found["begin"], found["end"], found["events"]) == ("2026-03-01T12:00:00Z", "2026-03-01T13:00:00Z", 6)
    assert {(g["group"]["category"], g["group"]["outcome"]): g["events"] for g in found["groups"]} == {
        ("authentication", "failure"): 2, ("authentication", "success"): 1, ("equipment", ""): 1, ("security", ""): 1, ("custom", ""): 1,
    }  # fmt: skip
    latency = found["groups"][0]["latency"]
    assert latency["count"] == 2
    assert 0 < latency["min"] <= latency["p50"] <= latency["p99"] <= latency["max"]


@pytest.mark.parametrize(
    ("parameters", "events"),
    [
        ({"type": "authentication.*"}, 3),
        ({"severity": 3}, 3),
        ({"source": "plc"}, 1),
        ({"outcome": "failure"}, 2),
        ({"station": "press", "line": "L1"}, 6),
        ({"site": "south"}, 0),
    ],
)
def test_statistics_take_filters(plant: Plant, parameters: dict[str, Any], events: int) -> None:
    assert _statistics(plant, **parameters)["events"] == events


@pytest.mark.parametrize(
    ("period", "begin"), [("hour", "03-01T12"), ("day", "03-01T00"), ("week", "02-23T00"), ("month", "03-01T00")]
)
def test_metrics_are_rolled_up_by_period(plant: Plant, period: str, begin: str) -> None:
    found = _statistics(plant, "/v1/metrics", period=period, group="site")
    assert [(b["bucket"], b["group"], b["events"]) for b in found["buckets"]] == [
        (f"2026-{begin}:00:00Z", {"site": "north"}, 6)
    ]


def test_statistics_refuse_a_filter_that_roll_ups_do_not_have(plant: Plant) -> None:
    answer = plant.viewer.get("/v1/statistics", params={"actor": "ann"})
    assert answer.status_code == 400
    assert "actor" in answer.text


def test_statistics_stay_within_the_scope_of_the_key(plant: Plant) -> None:
    with plant.collector.client(plant.collector.key("viewer", site="south")) as viewer:
        answer = viewer.get("/v1/statistics", params={"from": "2026-03-01T12:00:00Z", "to": "2026-03-01T13:00:00Z"})
        assert answer.json()["events"] == 0
        answer = viewer.get("/v1/statistics", params={"group": "site"})
        assert {g["group"]["site"] for g in answer.json()["groups"]} <= {"south"}
