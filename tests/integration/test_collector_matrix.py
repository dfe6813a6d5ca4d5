"""Roles, routes and sites, each against each, from the OpenAPI document, on a real PostgreSQL (IEC 62443-3-3 SR 1.1, 2.1).

Every operation of the document stands in MATRIX with who may have it and what a place means for it. An operation that is not there fails
the test: whoever adds a route says here who may use it. A request is made for each role, with every place, its own site and another one
in sight, and without credentials. Nothing that a caller of one site is answered names the other.
"""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

import httpx
import pytest

from agent.wire.event import Event
from collector.store.keys import ROLES, Role
from tests.collector_process import Chain, Collector, event, poll_until, post
from tests.integration.test_enrolment import fetch
from tests.postgres import connected

READ: tuple[Role, ...] = ("viewer", "analyst", "auditor", "admin")
AUDIT: tuple[Role, ...] = ("auditor", "admin")
MANAGE: tuple[Role, ...] = ("admin",)
SEND: tuple[Role, ...] = ("agent",)
WORK: tuple[Role, ...] = ("analyst", "admin")
SITES = ("sitealpha", "sitebeta")


class Entry(NamedTuple):
    """One operation. `roles`: who may; None: everybody, without credentials too.

    places: `own`, a caller of one site has that site alone, and what stands in the path of another is not found;
            `whole`, it belongs to no site and takes a caller who may see all; `free`, no site is in it.
    path:   the path filled in; what stands in braces is that of a site.
    body:   what is sent.
    """

    roles: tuple[Role, ...] | None
    places: Literal["own", "whole", "free"] = "own"
    path: str = ""
    body: dict[str, str] | None = None


SAFE = {
    "x-content-type-options": "nosniff", "x-frame-options": "DENY", "referrer-policy": "no-referrer",
    "content-security-policy": "frame-ancestors 'none'", "cross-origin-opener-policy": "same-origin",
}  # fmt: skip
"""Every answer has them, whatever its status."""
CHANGES_NOTHING = {"POST /v1/batches", "POST /v1/alerts/preview", "POST /v1/suppressions/preview"}
SUCCEEDED = "SELECT count(*) FROM audit_log WHERE result = 'success'"
COMMENT = {"action": "comment", "comment": "seen"}
LATER = f"{datetime.now(UTC).date() + timedelta(days=3)}T00:00:00Z"
NOBODYS = "00000000-0000-4000-8000-000000000000"
MATRIX = {
    "GET /": Entry(None, "free"),
    "GET /healthz": Entry(None, "free"),
    "GET /readyz": Entry(None, "free"),
    "GET /metrics": Entry(READ, "whole"),
    "GET /schema": Entry(None, "free"),
    "GET /schema/openapi.json": Entry(None, "free"),
    "GET /schema/{path}": Entry(None, "free", "/schema/openapi.json"),
    "POST /v1/batches": Entry(SEND, "free"),
    "GET /v1/authority": Entry(None, "free"),
    "POST /v1/enroll": Entry(None, "free"),
    "POST /v1/agents/{agent_id}/keys": Entry(None, "free", "/v1/agents/{agent}/keys"),
    "GET /v1/agents/{agent_id}/keys": Entry(AUDIT, "own", "/v1/agents/{agent}/keys"),
    "POST /v1/agents/{agent_id}/revoke": Entry(MANAGE, "own", "/v1/agents/{agent}/revoke"),
    "GET /v1/events": Entry(READ),
    "GET /v1/events/{event_id}": Entry(READ, "own", "/v1/events/{event}"),
    "GET /v1/correlations/{correlation_id}": Entry(READ, "own", "/v1/correlations/matrix"),
    "GET /v1/agents": Entry(READ),
    "GET /v1/statistics": Entry(READ, "own", "/v1/statistics?group=site"),
    "GET /v1/metrics": Entry(READ, "own", "/v1/metrics?group=site"),
    "GET /v1/export": Entry(READ),
    "GET /v1/stream": Entry(READ),
    "GET /v1/storage": Entry(AUDIT, "free"),
    "GET /v1/checkpoints": Entry(AUDIT, "free"),
    "GET /v1/checkpoints/{number}/proof": Entry(AUDIT, "free", "/v1/checkpoints/1/proof"),
    **{
        f"GET /v1/analytics/{name}": Entry(READ)
        for name in (
            "patterns", "anomalies", "correlations", "sequences", "trends", "risk", "maintenance", "threats", "forecast",
        )
    },
    "GET /v1/alerts": Entry(READ),
    "GET /v1/alerts/{alert_id}": Entry(READ, "own", "/v1/alerts/{alert}"),
    "PATCH /v1/alerts/{alert_id}": Entry(WORK, "own", "/v1/alerts/{alert}", COMMENT),
    "POST /v1/alerts/preview": Entry(WORK, "own", "", {"filter": ""}),
    "POST /v1/alerts/selections/{selection_id}/apply": Entry(WORK, "own", f"/v1/alerts/selections/{NOBODYS}/apply", COMMENT),
    "POST /v1/alerts/selections/{selection_id}/undo": Entry(WORK, "own", f"/v1/alerts/selections/{NOBODYS}/undo"),
    "GET /v1/incidents": Entry(READ),
    "GET /v1/incidents/{incident_id}": Entry(READ, "own", "/v1/incidents/{incident}"),
    "PATCH /v1/incidents/{incident_id}": Entry(WORK, "own", "/v1/incidents/{incident}", COMMENT),
    "GET /v1/suppressions": Entry(READ),
    "POST /v1/suppressions": Entry(WORK, "own", "", {"filter": "type=alert.none", "expires": LATER, "comment": "x"}),
    "POST /v1/suppressions/preview": Entry(WORK, "own", "", {"filter": "type=alert.*"}),
    "DELETE /v1/suppressions/{suppression_id}": Entry(WORK, "own", "/v1/suppressions/{suppression}"),
    "GET /v1/notifications": Entry(READ, "whole"),
    "POST /v1/notifications/{message_id}/retry": Entry(WORK, "whole", f"/v1/notifications/{NOBODYS}/retry"),
    "GET /v1/fleet": Entry(READ),
    "GET /v1/fleet/agents": Entry(READ),
    "GET /v1/agents/{agent_id}": Entry(READ, "own", "/v1/agents/{agent}"),
    "GET /v1/compliance": Entry(AUDIT),
    "GET /v1/audit": Entry(AUDIT, "whole"),
    "GET /v1/session": Entry(READ, "free"),
    "POST /v1/session": Entry(None, "free"),
    "DELETE /v1/session": Entry(READ, "free"),
    "GET /v1/session/ways": Entry(None, "free"),
    "GET /v1/session/oidc": Entry(None, "free"),
    "GET /v1/session/oidc/callback": Entry(None, "free"),
    "GET /v1/session/oidc/end": Entry(None, "free"),
    "POST /v1/session/password": Entry(READ, "free"),
    "POST /v1/session/totp": Entry(READ, "free"),
    "POST /v1/session/totp/confirm": Entry(READ, "free"),
    "GET /v1/keys": Entry(MANAGE),
    "POST /v1/keys": Entry(MANAGE, "free"),
    "DELETE /v1/keys/{prefix}": Entry(MANAGE, "own", "/v1/keys/{key}"),
    "GET /v1/users": Entry(MANAGE),
    "POST /v1/users": Entry(MANAGE, "free"),
    "PATCH /v1/users/{name}": Entry(MANAGE, "own", "/v1/users/{user}"),
}  # fmt: skip


def _alert(site: str, correlation: str, address: str) -> Event:
    data = {"handler": "login_burst", "key": {"src_ip": address}}
    return event(
        f"five failures at {site}", type="alert.authentication.burst", severity=4, src_ip=address, target=site,
        correlation_id=correlation, data=data,
    )  # fmt: skip


class Plant:
    """Two sites, alike but for their names, and a caller of each kind."""

    def __init__(self, collector: Collector) -> None:
        self.collector = collector
        self.things: dict[str, dict[str, str]] = {}
        for site in SITES:
            chain = Chain()
            with collector.client(collector.key("agent", site=site)) as client:
                fields = {"type": "authentication.failure", "outcome": "failure", "src_ip": "10.9.8.7"}
                made = [event(f"of {site}", correlation_id="matrix", target=site, **fields) for _ in range(3)]
                made += [_alert(site, f"alone-{site}", "192.0.2.1"), _alert(site, "together", "192.0.2.2")]
                assert post(client, chain.seal(made)).status_code == 200
            with collector.client(collector.key("admin")) as admin:
                body = {"role": "viewer", "scopes": [{"site": site}], "password": "nine silver spoons"}
                assert admin.post("/v1/users", json={**body, "name": f"user-of-{site}"}).status_code == 201
            self.things[site] = {
                "agent": chain.agent, "event": chain.identity(1, 0), "user": f"user-of-{site}",
                "key": collector.key("viewer", site=site).split("_")[1], "suppression": self._suppress(site),
            }  # fmt: skip
        self.incident = self._alerts()
        places = {"": {}, SITES[0]: {"site": SITES[0]}}
        self.keys = {(role, site): collector.key(role, **place) for role in ROLES for site, place in places.items()}

    def _suppress(self, site: str) -> str:
        with self.collector.client(self.collector.key("analyst", site=site)) as analyst:
            made = analyst.post("/v1/suppressions", json=MATRIX["POST /v1/suppressions"].body)
        assert made.status_code == 201, made.text
        return str(made.json()["suppression_id"])

    def _alerts(self) -> int:
        """The alerts of each site among its things; the incident that both sites are in."""
        with self.collector.client(self.collector.key("viewer")) as viewer:
            found = poll_until(
                lambda: len(all_ := viewer.get("/v1/alerts").json()["alerts"]) >= 2 * len(SITES) and all_
            )
        for one in found:
            if one["correlation_id"] == f"alone-{one['site']}":
                self.things[one["site"]] |= {"alert": str(one["alert_id"]), "incident": str(one["incident_id"])}
        # A correlation id joins nothing across sites any more; databases from before have such incidents.
        shared = min(one["incident_id"] for one in found if one["correlation_id"] == "together")
        asyncio.run(self._join(shared))
        return int(shared)

    async def _join(self, incident_id: int) -> None:
        async with connected(self.collector.dsn) as connection:
            await connection.execute(
                "UPDATE alerts SET incident_id = $1 WHERE correlation_id = 'together'", incident_id
            )  # fmt: skip

    def ask(self, operation: str, entry: Entry, key: str | None, site: str) -> tuple[int, str]:
        """Status and (the beginning of) the answer, about the things of a site."""
        method, _, path = operation.partition(" ")
        where = (entry.path or path).format(**self.things[site])
        body = entry.body if entry.body is not None else {} if method == "PATCH" else None
        with self.collector.client(key) as client, client.stream(method, where, json=body) as answer:
            for name, value in SAFE.items():
                assert value in answer.headers.get(name, ""), (
                    f"{operation}: {answer.status_code} without {name}: {value}"
                )
            kept = answer.headers.get("cache-control", "")
            assert kept == "no-store" or not where.startswith("/v1/"), f"{operation}: {answer.status_code} may be kept"
            if path == "/v1/stream" and answer.status_code == 200:
                return 200, next(answer.iter_text())
            return answer.status_code, answer.read().decode()


@pytest.fixture(scope="module")
def plant(postgres: Any) -> Iterator[Plant]:
    with Collector(postgres.create_database("matrix"), ACCESS__REQUESTS_PER_S="0") as collector:
        yield Plant(collector)


def test_every_operation_of_the_document_says_here_who_may_have_it(plant: Plant) -> None:
    document = httpx.get(f"{plant.collector.url}/schema/openapi.json", trust_env=False).json()
    found = {
        f"{method.upper()} {path}"
        for path, item in document["paths"].items()
        for method in item
        if method != "parameters"
    }
    missing = sorted(found - MATRIX.keys())
    assert not missing, (
        f"add these to MATRIX in {__name__}, with the roles that may and what a place means for each: {missing}"
    )
    gone = sorted(MATRIX.keys() - found - {"GET /"})
    assert not gone, f"these are in MATRIX and no longer in the document: {gone}"
    for operation in found:
        method, _, path = operation.partition(" ")
        described = document["paths"][path][method.lower()]
        closed = MATRIX[operation].roles is not None
        assert bool(described.get("security", document.get("security"))) is closed, (
            f"{operation}: its security in the document"
        )


@pytest.mark.parametrize("role", ROLES)
def test_each_role_may_do_its_own_at_its_own_places_and_nothing_else(plant: Plant, role: Role) -> None:
    wrong = []
    own, other = SITES
    # What changes things comes last, so that what is asked about is still there.
    for operation, entry in sorted(MATRIX.items(), key=lambda item: not item[0].startswith("GET")):
        allowed = entry.roles is None or role in entry.roles
        for scope, site in (("", own), (own, other), (own, own)):
            status, text = plant.ask(operation, entry, plant.keys[role, scope], site)
            if entry.roles is None:
                fits = status < 500
            elif not allowed or (entry.places == "whole" and scope):
                fits = status == 403
            elif scope and site == other and entry.places == "own" and "{" in entry.path:
                fits = status in (403, 404)
            else:
                fits = status not in (401, 403) and status < 500
            if scope and entry.places != "free" and other in text.replace(plant.things[site]["user"], ""):
                fits = False
            if not fits:
                wrong.append(f"{operation} as {role} of {scope or 'all'} about {site}: {status} {text[:150]}")
    assert wrong == []


def test_a_parameter_that_an_operation_does_not_take_is_refused_and_those_of_the_document_are_named(
    plant: Plant,
) -> None:
    """Left aside, a misspelt filter would answer another question than the one that was asked."""
    with plant.collector.client(plant.collector.key("admin")) as admin:
        paths = admin.get("/schema/openapi.json").json()["paths"]
        asked = 0
        for path, item in paths.items():
            entry = MATRIX.get(f"GET {path}")
            if "get" not in item or entry is None or entry.roles is None or "{" in path:
                continue
            answer = admin.get(path, params={"sitee": "north"})
            assert (answer.status_code, "there is no parameter 'sitee'" in answer.text) == (400, True), path
            names = {one["name"] for one in item["get"].get("parameters", ()) if one["in"] == "query"}
            assert "site" not in names or "Did you mean 'site'?" in answer.text, path
            asked += 1
        assert asked > 20


def test_without_credentials_only_what_is_open_to_all_is_answered(plant: Plant) -> None:
    wrong = []
    for operation, entry in MATRIX.items():
        status, text = plant.ask(operation, entry, None, SITES[0])
        if (status == 401) is (entry.roles is None and '"code":"key"' not in text) and not (
            entry.roles is None and status < 500
        ):
            wrong.append(f"{operation}: {status} {text[:150]}")
    assert wrong == []


def test_whoever_is_refused_and_whatever_is_changed_stands_in_the_audit_log_with_who_where_from_and_what(
    postgres: Any,
) -> None:
    refused = {op for op, entry in MATRIX.items() if entry.roles is not None and "viewer" not in entry.roles}
    with Collector(postgres.create_database("matrix_audit"), ACCESS__REQUESTS_PER_S="0") as collector:
        plant = Plant(collector)
        key, site = plant.keys["viewer", ""], SITES[0]
        statuses = {plant.ask(operation, MATRIX[operation], key, site)[0] for operation in refused}
        assert statuses == {403}
        unrecorded, changed = [], 0
        for operation, entry in MATRIX.items():
            if operation.startswith("GET") or operation in CHANGES_NOTHING or "admin" not in (entry.roles or ()):
                continue
            before = fetch(collector, SUCCEEDED)[0][0]
            if plant.ask(operation, entry, plant.keys["admin", ""], site)[0] < 300:
                changed += 1
                unrecorded += [operation] if fetch(collector, SUCCEEDED)[0][0] <= before else []
        assert unrecorded == []
        assert changed >= 6
    # Refusals of one caller for one reason are counted together, and written at the latest when the collector stops.
    who, address = key.split("_")[1], "127.0.0.1"
    sql = "SELECT sum((data->>'count')::int), min(target) FROM audit_log WHERE result = 'refused' AND who = $1 AND address = $2"
    ((count, target),) = fetch(collector, sql, who, address)
    assert count == len(refused)
    assert target


def test_of_an_incident_at_two_sites_a_caller_of_one_sees_and_changes_its_own_half(plant: Plant) -> None:
    own, other = SITES
    path = f"/v1/incidents/{plant.incident}"
    with (
        plant.collector.client(plant.keys["viewer", ""]) as whole,
        plant.collector.client(plant.keys["analyst", own]) as half,
    ):
        both = whole.get(path).json()
        assert {one["site"] for one in both["alerts"]} == set(SITES)
        seen = half.get(path)
        assert other not in seen.text
        assert [one["site"] for one in seen.json()["alerts"]] == [own]
        assert half.get("/v1/alerts", params={"site": other}).json()["alerts"] == []
        done = half.patch(
            path, json={"action": "close", "reason": "resolved", "version": seen.json()["incident"]["version"]}
        )
        assert done.status_code == 200, done.text
        assert other not in done.text
        assert {one["site"]: one["state"] for one in whole.get(path).json()["alerts"]} == {own: "closed", other: "open"}


def test_what_one_caller_counted_no_other_may_act_on_and_it_holds_the_own_places_alone(plant: Plant) -> None:
    own, other = SITES
    with (
        plant.collector.client(plant.keys["analyst", own]) as half,
        plant.collector.client(plant.keys["analyst", ""]) as whole,
    ):
        mine = half.post("/v1/alerts/preview", json={"filter": f"site={own}"}).json()
        assert half.post("/v1/alerts/preview", json={"filter": ""}).json()["count"] == mine["count"] > 0
        assert half.post("/v1/alerts/preview", json={"filter": f"site={other}"}).json()["count"] == 0
        assert whole.post(f"/v1/alerts/selections/{mine['selection_id']}/apply", json=COMMENT).status_code == 404
        quiet = [
            client.post("/v1/suppressions/preview", json={"filter": "type=alert.*"}).json()["events"]
            for client in (half, whole)
        ]
        assert 0 < quiet[0] < quiet[1]
