"""Sign-in by OpenID Connect against a provider of another maker (oidc-provider, in node), over real sockets."""

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx
import pytest

from collector.access import COOKIE as SESSION
from tests.collector_process import Collector, poll_until
from tests.integration.test_opcua_node import node_modules
from tests.ports import free_port
from tests.postgres import connected

__all__ = ["node_modules"]
PROGRAM = Path(__file__).parents[1] / "node" / "oidc_provider.mjs"
RULES = [
    {"value": "soc", "role": "analyst", "places": ["*"]},
    {"value": "plant", "role": "viewer", "places_claim": "sites"},
]
HTML = {"Accept": "text/html"}


class Person:
    """Somebody with a browser, at the collector and at the provider. Cookies are kept by hand: httpx keeps no Secure one of plain HTTP."""

    def __init__(self, door: Collector) -> None:
        self.door = door
        self.jars: dict[str, dict[str, str]] = {}
        self.client = httpx.Client(timeout=60, trust_env=False, follow_redirects=False)

    def ask(self, method: str, address: str, **options: Any) -> httpx.Response:
        jar = self.jars.setdefault(urlsplit(address).netloc, {})
        headers = {**HTML, **options.pop("headers", {}), "Cookie": "; ".join(f"{k}={v}" for k, v in jar.items())}
        answer = self.client.request(method, address, headers=headers, **options)
        for line in answer.headers.get_list("set-cookie"):
            name, _, value = line.partition(";")[0].partition("=")
            jar[name] = value.strip('"')
        return answer

    def begin(self, back: str = "/") -> httpx.Response:
        return self.ask("GET", f"{self.door.url}/v1/session/oidc", params={"return": back})

    def to_the_way_back(self, login: str) -> str:
        """Through the provider's forms; the address at the collector that it sends the browser to."""
        answer = self.begin()
        assert answer.status_code == 303, answer.text
        return self.at_the_provider(answer.headers["location"], login)

    def at_the_provider(self, address: str, login: str) -> str:
        name, groups, sites = (*login.split(":"), "")[:3]
        people = Path(self.door.people)  # type: ignore[attr-defined]
        known = json.loads(people.read_text())
        known[name] = {"groups": list(filter(None, groups.split(","))), "sites": list(filter(None, sites.split(",")))}
        people.write_text(json.dumps(known))
        for _ in range(12):
            if address.startswith(self.door.url):
                return address
            answer = self.ask("GET", address)
            if answer.status_code == 200:
                action = re.search(r'action="([^"]+)"', answer.text)
                prompt = re.search(r'name="prompt" value="(\w+)"', answer.text)
                assert action, answer.text
                assert prompt, answer.text
                form = {"prompt": prompt[1], "login": name, "password": "any"}
                answer = self.ask("POST", urljoin(address, action[1]), data=form)
            assert answer.status_code in (302, 303), answer.text
            address = urljoin(address, answer.headers["location"])
        raise AssertionError(f"still at {address}")

    def sign_in(self, login: str) -> httpx.Response:
        return self.ask("GET", self.to_the_way_back(login))

    def me(self) -> Any:
        return self.ask("GET", f"{self.door.url}/v1/session", headers={"Accept": "application/json"}).json()


@pytest.fixture(scope="module")
def door(postgres: Any, node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    port, dsn = free_port(), postgres.create_database("oidc")
    settings = {"issuer": f"http://127.0.0.1:{port}", "client_id": "linewarden", "name": "Plant SSO", "rules": RULES}
    folder = tmp_path_factory.mktemp("oidc")
    secret, people = folder / "secret", folder / "people"
    people.write_text("{}")
    secret.write_text("of the test\n")
    settings["client_secret_file"] = str(secret)
    collector = Collector(dsn)
    collector.people = people  # type: ignore[attr-defined]
    collector._environment |= {
        "LINEWARDEN_COLLECTOR__ACCESS__OIDC": json.dumps(settings),
        "LINEWARDEN_COLLECTOR__ACCESS__PUBLIC_URL": collector.url,
    }
    process = subprocess.Popen(
        ["node", str(PROGRAM), str(port), f"{collector.url}/v1/session/oidc/callback", str(people)],
        env={"NODE_PATH": str(node_modules), "PATH": "/usr/bin:/bin:/usr/local/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        while b"READY" not in (line := process.stdout.readline()):
            assert line, "the provider ended"
        with collector:
            yield collector
    finally:
        process.kill()
        process.wait(20)
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def person(door: Collector) -> Iterator[Person]:
    made = Person(door)
    yield made
    made.client.close()


def _records(collector: Collector, action: str, result: str) -> list[Any]:
    async def run() -> list[Any]:
        sql = "SELECT who, address, data FROM audit_log WHERE action = $1 AND result = $2 ORDER BY no"
        async with connected(collector.dsn) as connection:
            return [
                (row["who"], row["address"], json.loads(row["data"]))
                for row in await connection.fetch(sql, action, result)
            ]

    return asyncio.run(run())


def test_somebody_signs_in_at_the_provider_and_is_what_their_group_says(door: Collector, person: Person) -> None:
    begun = person.begin("/v1/events")
    assert {"code_challenge_method=S256", "response_type=code"} <= set(
        begun.headers["location"].split("?")[1].split("&")
    )
    cookie = begun.headers["set-cookie"].lower()
    assert {"samesite=lax", "httponly", "secure"} <= {part.strip() for part in cookie.split(";")}
    answer = person.ask("GET", person.at_the_provider(begun.headers["location"], "ann:soc"))
    assert answer.status_code == 200, answer.text
    assert "url=/v1/events" in answer.text, "a page of ours goes on, so that the Strict cookie goes along"
    assert any(
        line.startswith(SESSION) and "samesite=strict" in line.lower() for line in answer.headers.get_list("set-cookie")
    )
    assert (person.me()["name"], person.me()["role"], person.me()["scopes"]) == (
        "ann", "analyst", [{"site": "", "line": "", "station": ""}],
    )  # fmt: skip
    (record,) = [found for found in _records(door, "session.created", "success") if found[0] == "ann"]
    assert record[1] == "127.0.0.1"
    assert record[2]["subject"] == "ann"
    ways = person.ask("GET", f"{door.url}/v1/session/ways").json()
    assert ways["oidc"] == {"name": "Plant SSO", "address": "/v1/session/oidc", "end": "/v1/session/oidc/end"}


def test_whoever_signs_out_here_can_sign_out_at_the_provider_and_is_asked_again_who_they_are(
    door: Collector, person: Person
) -> None:
    assert person.sign_in("ivy:soc").status_code == 200
    csrf = person.me()["csrf"]
    left = person.ask("DELETE", f"{door.url}/v1/session", headers={"Linewarden-CSRF": csrf, "Origin": door.url})
    assert left.status_code == 204, left.text
    # Without this the provider lets the next person at this screen in as the last one.
    silent = person.begin().headers["location"]
    assert person.ask("GET", silent).headers["location"].startswith(door.url)
    answer = person.ask("GET", f"{door.url}/v1/session/oidc/end")
    assert answer.status_code == 303, answer.text
    asked = person.ask("GET", answer.headers["location"])
    action = re.search(r'action="([^"]+)"', asked.text)
    secret = re.search(r'name="xsrf" value="([^"]+)"', asked.text)
    assert action, asked.text
    assert secret, asked.text
    form = {"xsrf": secret[1], "logout": "yes"}
    done = person.ask("POST", urljoin(answer.headers["location"], action[1]), data=form)
    assert done.headers["location"] == f"{door.url}/"
    asked_anew = person.ask("GET", person.begin().headers["location"])
    assert not asked_anew.headers["location"].startswith(door.url)


def test_a_name_that_somebody_has_is_given_with_a_mark_and_never_makes_two_people_one(
    door: Collector, person: Person
) -> None:
    with door.client(door.key("admin")) as admin:
        body = {"name": "joe", "role": "admin", "scopes": [{}], "password": "seven copper kettles"}
        assert admin.post("/v1/users", json=body).status_code == 201
        assert person.sign_in("joe:plant:north").status_code == 200
        me = person.me()
        assert re.fullmatch(r"joe-[0-9a-f]{12}", me["name"])
        assert me["role"] == "viewer", "the local joe is an administrator"
        assert admin.patch(f"/v1/users/{me['name']}", json={"disabled": True}).status_code == 200
    assert person.me()["code"] == "session"
    answer = person.sign_in("joe:plant:north")
    assert (answer.status_code, "oidc-disabled" in answer.text) == (403, True)


def test_whoever_the_provider_names_no_site_for_is_told_which_claim_is_missing(person: Person) -> None:
    answer = person.sign_in("kim:plant:*")
    assert (answer.status_code, "oidc-place" in answer.text, "claim sites" in answer.text) == (403, True, True)


def test_sites_of_a_claim_hold_and_a_star_in_it_gives_nothing(person: Person) -> None:
    assert person.sign_in("bea:plant:north,south/line1,*").status_code == 200
    me = person.me()
    assert me["role"] == "viewer"
    assert [(place["site"], place["line"]) for place in me["scopes"]] == [("north", ""), ("south", "line1")]


def test_without_a_group_nobody_comes_in_and_whoever_lost_theirs_loses_their_sessions(
    door: Collector, person: Person
) -> None:
    assert person.sign_in("cid:soc").status_code == 200
    other = Person(door)
    answer = other.sign_in("cid:visitors")
    assert answer.status_code == 403
    assert "oidc-group" in answer.text
    assert person.me()["code"] == "session"
    assert ("cid", "oidc-group") in [
        (who, data["reason"]) for who, _, data in _records(door, "session.created", "refused")
    ]
    assert other.sign_in("dan:").status_code == 403
    other.client.close()


def test_a_way_back_counts_once_and_in_the_browser_that_began_it(door: Collector, person: Person) -> None:
    way = person.to_the_way_back("eve:soc")
    stranger = Person(door)
    assert "oidc-state" in stranger.ask("GET", way).text
    kept = dict(person.jars[urlsplit(door.url).netloc])
    wrong = way.replace(parse_qs(urlsplit(way).query)["state"][0], "another")
    assert "oidc-state" in person.ask("GET", wrong).text
    assert person.ask("GET", way).status_code == 200
    person.jars[urlsplit(door.url).netloc] = kept
    again = person.ask("GET", way, headers={"Accept": "application/json"})
    assert (again.status_code, again.json()["code"]) == (400, "oidc-reused")
    # The same code with a sign-in of its own: the provider takes it once.
    code = parse_qs(urlsplit(way).query)["code"][0]
    fresh = stranger.to_the_way_back("eve:soc")
    replayed = fresh.replace(parse_qs(urlsplit(fresh).query)["code"][0], code)
    assert "oidc-code" in stranger.ask("GET", replayed).text
    stranger.client.close()

    def told() -> bool:
        reasons = {data["reason"] for _, _, data in _records(door, "access.refused", "refused")}
        return {"oidc-state", "oidc-reused"} <= reasons

    poll_until(told)


def test_whoever_cancels_is_told_so(person: Person) -> None:
    way = person.to_the_way_back("flo:soc")
    state = parse_qs(urlsplit(way).query)["state"][0]
    answer = person.ask("GET", f"{person.door.url}/v1/session/oidc/callback?error=access_denied&state={state}")
    assert (answer.status_code, "cancelled" in answer.text) == (403, True)


@pytest.mark.parametrize(
    "back", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)", "evil"]
)
def test_a_sign_in_ends_nowhere_else_than_here(person: Person, back: str) -> None:
    assert person.begin(back).status_code == 400


def test_a_provider_that_is_away_is_told_and_passwords_still_work(postgres: Any) -> None:
    settings = {"issuer": f"http://127.0.0.1:{free_port()}", "client_id": "x", "rules": RULES}
    collector = Collector(
        postgres.create_database("oidcaway"), ACCESS__OIDC=json.dumps(settings), ACCESS__PUBLIC_URL="https://lw.example"
    )
    with collector, collector.client(collector.key("admin")) as admin:
        body = {"name": "gus", "role": "viewer", "scopes": [{}], "password": "seven copper kettles"}
        assert admin.post("/v1/users", json=body).status_code == 201
        answer = httpx.get(f"{collector.url}/v1/session/oidc", headers=HTML, trust_env=False)
        assert "strict-transport-security" not in answer.headers, "not over plain HTTP"
        behind = {**HTML, "Host": "lw.example", "X-Forwarded-Proto": "https"}
        proxied = httpx.get(f"{collector.url}/v1/session/oidc", headers=behind, trust_env=False)
        assert "strict-transport-security" in proxied.headers, "behind a proxy that ends TLS"
        assert (answer.status_code, "sign in with a password" in answer.text) == (503, True)
        answer = httpx.get(f"{collector.url}/v1/session/oidc/end", headers=HTML, trust_env=False)
        assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (503, "text/html")
        given = {"name": "gus", "password": body["password"]}
        assert httpx.post(f"{collector.url}/v1/session", json=given, trust_env=False).status_code == 200
