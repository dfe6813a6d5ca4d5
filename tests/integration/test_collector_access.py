"""The door on a real PostgreSQL: sessions, users, keys, pseudonyms, limits, headers; and that all of it is in the audit log."""

import asyncio
import base64
import json
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from websockets.sync.client import connect as websocket

from agent.wire.event import Event
from collector import passwords
from collector.access import COOKIE
from collector.limits import BUCKETS_MAX, Rates, networks_of
from collector.passwords import KNOWN, WAITING_KNOWN_MAX, WAITING_MAX, WAITING_NETWORK_MAX, Hashing
from collector.problems import Problem
from collector.store.users import Bucket
from tests.collector_process import Chain, Collector, event, events_of, now_us, poll_until, post, run_cli
from tests.postgres import connected

if TYPE_CHECKING:
    from collector.store.keys import Role

EVIL = "https://evil.example"
PASSWORD = "seven copper kettles"


@pytest.fixture(scope="module")
def door(postgres: Any) -> Iterator[Collector]:
    """A collector of the module's own: what is recorded is counted."""
    with Collector(postgres.create_database("door")) as running:
        yield running


def _sql(collector: Collector, statement: str, *arguments: Any) -> list[Any]:
    async def run() -> list[Any]:
        async with connected(collector.dsn) as connection:
            return list(await connection.fetch(statement, *arguments))

    return asyncio.run(run())


def _records(collector: Collector, action: str, **fields: str) -> list[Any]:
    where = "".join(f" AND {name} = ${number}" for number, name in enumerate(fields, 2))
    return _sql(collector, f"SELECT * FROM audit_log WHERE action = $1{where} ORDER BY no", action, *fields.values())


class Browser:
    """Somebody with a browser: keeps cookies, shows the CSRF token. (httpx keeps no Secure cookie of plain HTTP.)"""

    def __init__(self, collector: Collector) -> None:
        self.collector = collector
        self.cookies: dict[str, str] = {}
        self.csrf = ""
        self.client = httpx.Client(base_url=collector.url, timeout=60, trust_env=False)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items()), **options.pop("headers", {})}
        if self.csrf:
            headers.setdefault("Linewarden-CSRF", self.csrf)
        answer = self.client.request(method, path, headers=headers, **options)
        for line in answer.headers.get_list("set-cookie"):
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = value.strip('"')
        return answer

    def sign_in(self, name: str, password: str = PASSWORD, **more: str) -> httpx.Response:
        answer = self.request("POST", "/v1/session", json={"name": name, "password": password, **more})
        if answer.status_code == 200:
            self.csrf = answer.json()["csrf"]
        return answer


@pytest.fixture
def browser(door: Collector) -> Iterator[Browser]:
    made = Browser(door)
    yield made
    made.client.close()


def _user(collector: Collector, name: str, role: str = "viewer", *places: str) -> str:
    """A user, made through the API."""
    scopes = [dict(zip(("site", "line", "station"), place.split("/"), strict=False)) for place in places] or [{}]
    with collector.client(collector.key("admin")) as admin:
        body = {"name": name, "role": role, "scopes": scopes, "password": PASSWORD}
        answer = admin.post("/v1/users", json=body)
        assert answer.status_code == 201, answer.text
    return name


# Signing in


def test_a_user_signs_in_reads_and_signs_out(door: Collector, browser: Browser) -> None:
    _user(door, "ann", "analyst")
    answer = browser.sign_in("Ann")
    assert answer.status_code == 200, answer.text
    cookie = next(line for line in answer.headers.get_list("set-cookie") if line.startswith(COOKIE + "="))
    assert COOKIE.startswith("__Host-")
    assert {"secure", "httponly", "samesite=strict", "path=/"} <= {part.strip().lower() for part in cookie.split(";")}
    assert "domain" not in cookie.lower()
    me = browser.request("GET", "/v1/session").json()
    assert (me["name"], me["kind"], me["role"], me["personal"]) == ("ann", "user", "analyst", True)
    assert browser.request("GET", "/v1/events").status_code == 200
    token = browser.cookies[COOKIE].encode()
    assert all(token not in row["hash"] for row in _sql(door, "SELECT hash FROM sessions"))
    assert browser.request("DELETE", "/v1/session").status_code == 204
    browser.cookies[COOKIE] = token.decode()
    assert browser.request("GET", "/v1/events").status_code == 401
    assert [r["result"] for r in _records(door, "session.created", who="ann")] == ["success"]
    assert len(_records(door, "session.ended", who="ann")) == 1


def test_without_the_csrf_token_or_from_another_origin_nothing_is_changed(door: Collector, browser: Browser) -> None:
    browser.sign_in(_user(door, "csrf", "admin"))
    key = {"role": "viewer"}
    token, browser.csrf = browser.csrf, ""
    assert browser.request("POST", "/v1/keys", json=key).json()["code"] == "csrf"
    assert browser.request("POST", "/v1/keys", json=key, headers={"Linewarden-CSRF": "0" * 64}).status_code == 403
    browser.csrf = token
    evil = browser.request("POST", "/v1/keys", json=key, headers={"Origin": "https://evil.example"})
    assert evil.json()["code"] == "origin"
    assert browser.request("POST", "/v1/keys", json=key, headers={"Origin": door.url}).status_code == 201
    wrong = browser.request(
        "POST", "/v1/session", json={"name": "csrf", "password": PASSWORD}, headers={"Origin": "https://evil.example"}
    )
    assert wrong.status_code == 403


def test_a_websocket_that_another_origin_s_page_opens_is_refused(door: Collector, browser: Browser) -> None:
    browser.sign_in(_user(door, "wsorigin"))
    address = door.url.replace("http", "ws") + "/v1/stream"
    headers = {"Cookie": f"{COOKIE}={browser.cookies[COOKIE]}"}
    with (
        pytest.raises(Exception, match="403"),
        websocket(address, additional_headers={**headers, "Origin": "https://evil.example"}, proxy=None),
    ):
        pass
    with websocket(address, additional_headers=headers, proxy=None) as socket:
        assert '"ping"' in str(socket.recv(10))


def test_wrong_passwords_and_unknown_names_are_answered_alike_and_recorded(door: Collector, browser: Browser) -> None:
    _user(door, "bob")
    known = browser.sign_in("bob", "wrong wrong wrong")
    unknown = browser.sign_in("nobody.at.all", "wrong wrong wrong")
    assert known.status_code == unknown.status_code == 401
    assert known.json() == unknown.json()
    assert [r["result"] for r in _records(door, "session.created", who="bob")] == ["failure"]
    # A name that is not there may be a password in the wrong field.
    assert _records(door, "session.created", who="nobody.at.all") == []
    assert _records(door, "session.created", who_kind="nobody")


def test_after_failures_the_wait_grows_and_a_browser_that_was_let_in_before_is_not_kept_out(door: Collector) -> None:
    _sql(door, "DELETE FROM sign_in_failures")
    name = _user(door, "carl")
    known, guesser = Browser(door), Browser(door)
    assert known.sign_in(name).status_code == 200
    answers = [guesser.sign_in(name, "wrong wrong wrong") for _ in range(8)]
    assert answers[0].status_code == 401
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert guesser.sign_in(name).status_code == 429, "the right password does not jump the queue"
    assert known.sign_in(name).status_code == 200, "its owner is not locked out"
    assert run_cli(door.dsn, "user", "unlock").returncode == 0
    assert guesser.sign_in(name).status_code == 200
    for each in (known, guesser):
        each.client.close()


def test_a_hundred_guesses_at_once_are_a_hundred_failures(door: Collector) -> None:
    _sql(door, "DELETE FROM sign_in_failures")
    name = _user(door, "dora")

    async def storm() -> list[int]:
        async with httpx.AsyncClient(base_url=door.url, timeout=60, trust_env=False) as client:
            body = {"name": name, "password": "wrong wrong wrong"}
            answers = await asyncio.gather(*(client.post("/v1/session", json=body) for _ in range(40)))
            return [answer.status_code for answer in answers]

    statuses = asyncio.run(storm())
    assert set(statuses) <= {401, 429, 503}
    assert statuses.count(401) <= 8
    _sql(door, "DELETE FROM sign_in_failures")


def test_one_time_codes_are_asked_for_count_once_and_have_stand_ins(door: Collector, browser: Browser) -> None:
    name = _user(door, "erin")
    browser.sign_in(name)
    assert browser.request("POST", "/v1/session/totp", json={"password": "wrong wrong wrong"}).status_code == 403
    begun = browser.request("POST", "/v1/session/totp", json={"password": PASSWORD})
    assert begun.status_code == 200, begun.text
    address = urlsplit(begun.json()["address"])
    assert address.scheme == "otpauth"
    text = parse_qs(address.query)["secret"][0]
    secret = base64.b32decode(text + "=" * (-len(text) % 8))
    assert browser.request("POST", "/v1/session/totp/confirm", json={"code": "000000"}).status_code == 409
    code = passwords.totp_code(secret, int(time.time()) // 30)
    confirmed = browser.request("POST", "/v1/session/totp/confirm", json={"code": code})
    assert confirmed.status_code == 200, confirmed.text
    recovery = confirmed.json()["codes"][0]
    other = Browser(door)
    assert other.sign_in(name).json()["code"] == "code-missing"
    assert other.sign_in(name, code=code).json()["code"] == "code", "a code that was used is used up"
    _sql(door, "UPDATE users SET totp_step = 0 WHERE name = $1", name)
    fresh = passwords.totp_code(secret, int(time.time()) // 30)
    assert other.sign_in(name, code=fresh).status_code == 200
    assert other.sign_in(name, code=recovery).status_code == 200
    assert other.sign_in(name, code=recovery).status_code == 401
    assert secret not in bytes(_sql(door, "SELECT totp FROM users WHERE name = $1", name)[0][0])
    other.client.close()


def test_sessions_end_when_idle_at_their_time_with_the_password_and_when_there_are_too_many(
    door: Collector, browser: Browser
) -> None:
    name = _user(door, "finn")

    def works(which: Browser) -> bool:
        return which.request("GET", "/v1/session").status_code == 200

    browser.sign_in(name)
    assert works(browser)
    _sql(door, "UPDATE sessions SET last_used = now() - idle - interval '1 s'")
    assert not works(browser)
    browser.sign_in(name)
    _sql(door, "UPDATE sessions SET expires = now()")
    assert not works(browser)
    many = [Browser(door) for _ in range(12)]
    for each in many:
        assert each.sign_in(name).status_code == 200
    assert [works(each) for each in many] == [False] * 2 + [True] * 10
    changed = many[-1].request("POST", "/v1/session/password", json={"old": PASSWORD, "new": "eleven green bottles"})
    assert changed.status_code == 204, changed.text
    assert [works(each) for each in many] == [False] * 11 + [True]
    assert many[0].sign_in(name).status_code == 401
    assert run_cli(door.dsn, "user", "disable", name).returncode == 0
    assert not works(many[-1])
    assert many[0].sign_in(name, "eleven green bottles").status_code == 401
    for each in many:
        each.client.close()


def _with_codes(collector: Collector, name: str) -> bytes:
    """Let a user sign in with one-time codes; the secret of them."""
    done = run_cli(collector.dsn, "user", "totp", name)
    assert done.returncode == 0, done.stderr
    text = parse_qs(urlsplit(done.stdout.split()[0]).query)["secret"][0]
    return base64.b32decode(text + "=" * (-len(text) % 8))


def _fresh_code(collector: Collector, name: str, secret: bytes) -> str:
    _sql(collector, "UPDATE users SET totp_step = 0 WHERE name = $1", name)
    return passwords.totp_code(secret, int(time.time()) // 30)


def test_the_right_password_without_a_code_is_a_failure_like_any_other(door: Collector, browser: Browser) -> None:
    _sql(door, "DELETE FROM sign_in_failures")
    secret = _with_codes(door, _user(door, "greta"))
    wrong = [browser.sign_in("greta", "wrong wrong wrong").json()["code"] for _ in range(3)]
    missing = [browser.sign_in("greta").json()["code"] for _ in range(8)]
    assert wrong == ["password"] * 3
    assert missing[:2] == ["code-missing"] * 2
    assert missing[-1] == "locked", "the failures before it are not forgiven"
    reasons = [json.loads(r["data"])["reason"] for r in _records(door, "session.created", who="greta")]
    assert reasons[:5] == ["password"] * 3 + ["code-missing"] * 2
    _sql(door, "UPDATE sign_in_failures SET until = now()")
    assert browser.sign_in("greta", code=_fresh_code(door, "greta", secret)).status_code == 200
    assert browser.sign_in("greta", "wrong wrong wrong").json()["code"] == "password", "a success forgives its own"


def test_guesses_at_one_time_codes_are_few_however_many_addresses_they_come_from(postgres: Any) -> None:
    with Collector(postgres.create_database("codes"), ACCESS__TRUSTED_PROXIES='["127.0.0.1"]') as door:
        secret = _with_codes(door, _user(door, "hilda"))
        owner, guesser = Browser(door), Browser(door)
        assert owner.sign_in("hilda", code=_fresh_code(door, "hilda", secret)).status_code == 200

        def guess(address: str) -> str:
            guesser.cookies.clear()
            body = {"name": "hilda", "password": PASSWORD, "code": "00000"}
            answer = guesser.request("POST", "/v1/session", json=body, headers={"X-Forwarded-For": address})
            return str(answer.json()["code"])

        # How many are looked at goes by the time that they take: the wait doubles with each.
        far = [guess(f"198.51.100.{n}") for n in range(16)]
        assert far[:10] == ["code"] * 10
        assert "locked" in far
        _sql(door, "DELETE FROM sign_in_failures")
        near = [guess(f"2001:db8:0:1::{n:x}") for n in range(10)]
        assert near[:5] == ["code"] * 5
        assert "locked" in near, "addresses of one /64 are one"
        # The browser that was let in before has an allowance of its own.
        assert owner.sign_in("hilda", code=_fresh_code(door, "hilda", secret)).status_code == 200
        for each in (owner, guesser):
            each.client.close()


def test_a_code_is_taken_once_even_by_two_who_send_it_at_the_same_moment(door: Collector) -> None:
    _sql(door, "DELETE FROM sign_in_failures")
    secret = _with_codes(door, _user(door, "inga"))
    body = {"name": "inga", "password": PASSWORD, "code": _fresh_code(door, "inga", secret)}

    async def both() -> list[int]:
        async with httpx.AsyncClient(base_url=door.url, timeout=60, trust_env=False) as client:
            answers = await asyncio.gather(*(client.post("/v1/session", json=body) for _ in range(3)))
            return sorted(answer.status_code for answer in answers)

    assert asyncio.run(both()) == [200, 401, 401]


def test_success_of_one_user_does_not_forgive_what_failed_in_other_names(door: Collector) -> None:
    _sql(door, "DELETE FROM sign_in_failures")
    mine = _user(door, "judas")
    for n in range(4):
        guesser, owner = Browser(door), Browser(door)
        assert guesser.sign_in(f"somebody.{n}", "wrong wrong wrong").status_code == 401
        assert owner.sign_in(mine).status_code == 200
        guesser.client.close()
        owner.client.close()
    (found,) = _sql(
        door, "SELECT failures FROM sign_in_failures WHERE bucket = $1", Bucket("address 127.0.0.1", 0, 0).key
    )
    assert found["failures"] == 4


def test_an_account_without_places_belongs_to_nobody_but_an_admin_of_all(door: Collector) -> None:
    name = _user(door, "kurt", "analyst", "north")
    _sql(door, "DELETE FROM user_scopes WHERE user_id = (SELECT user_id FROM users WHERE name = $1)", name)
    body = {"name": "lena", "role": "viewer", "scopes": [], "password": PASSWORD}
    with door.client(door.key("admin", site="north")) as admin:
        assert name not in {user["name"] for user in admin.get("/v1/users").json()["users"]}
        assert admin.patch(f"/v1/users/{name}", json={"password": "nine silver spoons"}).status_code == 404
        assert admin.post("/v1/users", json=body).status_code == 403
        mine = _user(door, "moritz", "viewer", "north")
        assert admin.patch(f"/v1/users/{mine}", json={"scopes": []}).status_code == 403
    with door.client(door.key("admin")) as admin:
        assert name in {user["name"] for user in admin.get("/v1/users").json()["users"]}
        assert admin.patch(f"/v1/users/{name}", json={"display": "Kurt"}).status_code == 200
        assert admin.post("/v1/users", json=body).status_code == 201


@pytest.mark.parametrize(
    "password",
    [
        "short", "aaaaaaaaaaaaaaa", "gina-gina-gina", "Password123456", "P@ssw0rd!P@ssw0rd!", "qwertyuiop1234", "abcdefghijklm",
        "linewarden2026",
    ],
)  # fmt: skip
def test_weak_passwords_are_refused_with_the_reason(door: Collector, password: str) -> None:
    with door.client(door.key("admin")) as admin:
        body = {"name": "gina", "role": "viewer", "scopes": [{}], "password": password}
        answer = admin.post("/v1/users", json=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "weak")


@pytest.mark.parametrize("how", ["disable", "sign out", "another scope"])
def test_a_stream_ends_when_its_reader_may_no_longer_read(door: Collector, browser: Browser, how: str) -> None:
    name = _user(door, f"stream-{how.replace(' ', '-')}", "viewer", "north")
    browser.sign_in(name)
    headers = {"Cookie": f"{COOKIE}={browser.cookies[COOKIE]}"}
    with websocket(door.url.replace("http", "ws") + "/v1/stream", additional_headers=headers, proxy=None) as socket:
        assert '"ping"' in str(socket.recv(20))
        if how == "disable":
            run_cli(door.dsn, "user", "disable", name)
        elif how == "sign out":
            browser.request("DELETE", "/v1/session")
        else:
            with door.client(door.key("admin")) as admin:
                assert admin.patch(f"/v1/users/{name}", json={"scopes": [{"site": "south"}]}).status_code == 200
        assert '"end"' in str(socket.recv(40))


def test_an_open_stream_does_not_keep_an_idle_session_alive(door: Collector, browser: Browser) -> None:
    browser.sign_in(_user(door, "hugo"))
    headers = {"Cookie": f"{COOKIE}={browser.cookies[COOKIE]}"}
    with websocket(door.url.replace("http", "ws") + "/v1/stream", additional_headers=headers, proxy=None) as socket:
        socket.recv(20)
        _sql(door, "UPDATE sessions SET last_used = now() - idle - interval '1 s'")
        assert '"end"' in str(socket.recv(40))


# Places


def _event_at(collector: Collector, site: str, line: str = "", **fields: Any) -> Chain:
    chain = Chain()
    with collector.client(collector.key("agent", site=site, line=line)) as agent:
        assert post(agent, chain.seal([event(**fields)])).status_code == 200
    return chain


def test_a_user_sees_all_of_several_places_and_nothing_else(door: Collector, browser: Browser) -> None:
    marker = f"places{now_us()}"
    for site, line in (("north", "L1"), ("north", "L2"), ("south", "L1"), ("west", "")):
        _event_at(door, site, line, message=marker)
    browser.sign_in(_user(door, "iris", "viewer", "north/L1", "south"))
    found = browser.request("GET", "/v1/events", params={"text": marker}).json()["events"]
    assert {(e["site"], e["line"]) for e in found} == {("north", "L1"), ("south", "L1")}
    counted = browser.request("GET", "/v1/statistics", params={"group": "site"}).json()
    assert {a["site"] for a in browser.request("GET", "/v1/agents").json()["agents"]} == {"north", "south"}
    assert {g["group"]["site"] for g in counted["groups"]} == {"north", "south"}
    exported = browser.request("GET", "/v1/export", params={"text": marker}).text
    assert exported.count('"site":') == 2
    browser.sign_in(_user(door, "jack", "viewer", "nowhere"))
    with door.client(door.key("admin")) as admin:
        admin.patch("/v1/users/jack", json={"scopes": []})
    assert browser.request("GET", "/v1/events").json()["events"] == []
    assert browser.request("GET", "/v1/statistics").json()["events"] == 0


def test_an_admin_of_one_site_gives_nothing_beyond_it(door: Collector) -> None:
    outside = door.key("viewer", site="south").split("_")[1]
    _user(door, "kate", "viewer", "south")
    with door.client(door.key("admin", site="north")) as admin:
        assert admin.post("/v1/keys", json={"role": "admin"}).status_code == 403
        assert admin.post("/v1/keys", json={"role": "viewer", "site": "south"}).status_code == 403
        made = admin.post("/v1/keys", json={"role": "viewer", "site": "north", "line": "L9"})
        assert made.status_code == 201
        assert {k["site"] for k in admin.get("/v1/keys").json()["keys"]} == {"north"}
        assert admin.delete(f"/v1/keys/{outside}").status_code == 404
        assert admin.patch("/v1/users/kate", json={"disabled": True}).status_code == 404
        body = {"name": "lars", "role": "viewer", "scopes": [{"site": "north"}, {}], "password": PASSWORD}
        assert admin.post("/v1/users", json=body).status_code == 403
        assert admin.get("/v1/audit").status_code == 403, "the audit log belongs to no site"
        assert admin.delete(f"/v1/keys/{made.json()['prefix']}").status_code == 204
        with door.client(made.json()["key"]) as revoked:
            assert revoked.get("/v1/events").status_code == 401


# Personal data


def test_people_are_shown_as_pseudonyms_until_asked_for_by_whoever_may(door: Collector) -> None:
    marker = f"personal{now_us()}"
    _event_at(
        door, "north", message=marker, actor="Otto Normal", raw="Otto did it", data={"user": "Otto Normal", "n": 1}
    )
    _event_at(door, "north", message=marker, actor="Otto Normal")
    with door.client(door.key("viewer")) as viewer, door.client(door.key("analyst")) as analyst:
        hidden = events_of(viewer, text=marker, order="asc")
        pseudonym = hidden[0]["actor"]
        assert re.fullmatch(r"user-[0-9a-f]{16}", pseudonym)
        assert hidden[0]["personal"] == {"user": pseudonym}
        assert hidden[0]["raw"] is None
        assert hidden[1]["actor"] == pseudonym
        assert "Otto" not in viewer.get("/v1/export", params={"text": marker}).text
        assert "Otto" not in viewer.get(f"/v1/events/{hidden[0]['event_id']}").text
        assert "Otto" not in analyst.get("/v1/events", params={"text": marker}).text
        assert viewer.get("/v1/events", params={"personal": "true"}).status_code == 403
        assert viewer.get("/v1/events", params={"actor": "Otto Normal"}).status_code == 403, "no oracle"
        assert viewer.get("/v1/events", params={"actor": "nobody"}).status_code == 403
        assert len(events_of(viewer, actor=pseudonym, text=marker)) == 2
        assert events_of(viewer, actor="user-0000000000000000", text=marker) == []
        shown = events_of(analyst, text=marker, personal="true", order="asc", actor="Otto Normal")
        assert (shown[0]["actor"], shown[0]["raw"], shown[0]["personal"]) == (
            "Otto Normal",
            "Otto did it",
            {"user": "Otto Normal"},
        )
        who = analyst.headers["authorization"].split("_")[1]
        found = _records(door, "personal.read", who=who)
        assert len(found) == 1
        assert '"events": 2' in found[0]["data"]
        assert "Otto" not in found[0]["data"]
        assert "Otto" in analyst.get("/v1/export", params={"text": marker, "personal": "true"}).text
        assert "Otto" in analyst.get(f"/v1/events/{hidden[0]['event_id']}", params={"personal": "true"}).text
        assert len(_records(door, "personal.read", who=who)) == 2
    assert poll_until(lambda: _records(door, "events.exported", who=who))[0]["result"] == "success"


def test_a_stream_hides_people_too_and_shows_them_to_whoever_may(door: Collector) -> None:
    address = door.url.replace("http", "ws") + "/v1/stream"
    seen = {}
    readers: list[tuple[Role, str]] = [("viewer", ""), ("analyst", ""), ("auditor", "?personal=true")]
    for role, query in readers:
        with websocket(
            address + query, additional_headers={"Authorization": f"Bearer {door.key(role)}"}, proxy=None
        ) as socket:
            assert '"ping"' in str(socket.recv(20))
            _event_at(door, "north", actor="Paula")
            seen[role] = "Paula" in str(socket.recv(20))
    assert seen == {"viewer": False, "analyst": False, "auditor": True}
    assert _records(door, "personal.read", target="/v1/stream")


def test_names_that_no_text_can_hold_are_hidden_too(door: Collector) -> None:
    marker = f"odd{now_us()}"
    chain = Chain()
    now = now_us()
    with door.client(door.key("agent")) as agent:
        post(
            agent,
            chain.seal(
                [
                    Event(
                        now,
                        now,
                        "log.line",
                        "t",
                        message=marker,
                        actor="ä\U0001f600",
                        data={"user": "\0deep", "login": [{"x": "secret"}]},
                    )
                ]
            ),
        )
    with door.client(door.key("viewer")) as viewer:
        answer = viewer.get("/v1/events", params={"text": marker})
        assert "secret" not in answer.text
        assert "deep" not in answer.text
        actor = answer.json()["events"][0]["actor"]
        assert len(events_of(viewer, actor=actor, text=marker)) == 1


# The audit log


def test_the_audit_log_is_read_by_filter_and_page_by_page_and_the_reading_is_in_it(door: Collector) -> None:
    prefix = door.key("auditor")
    with door.client(prefix) as auditor, door.client(door.key("admin")) as admin:
        for number in range(5):
            admin.post("/v1/keys", json={"role": "viewer", "name": f"page{number}"})
        who = admin.headers["authorization"].split("_")[1]
        first = auditor.get("/v1/audit", params={"who": who, "action": "key.*", "limit": 2}).json()
        second = auditor.get(
            "/v1/audit", params={"who": who, "action": "key.*", "limit": 2, "after": first["next"]}
        ).json()
        third = auditor.get(
            "/v1/audit", params={"who": who, "action": "key.*", "limit": 2, "after": second["next"]}
        ).json()
        names = [r["data"]["name"] for page in (first, second, third) for r in page["records"]]
        assert names == [f"page{number}" for number in reversed(range(5))]
        assert third["next"] is None
        assert (
            auditor.get(
                "/v1/audit",
                params={"result": "success", "action": "key.created", "limit": 1000, "to": "2020-01-01T00:00:00Z"},
            ).json()["records"]
            == []
        )
        assert auditor.get("/v1/audit", params={"after": "nonsense"}).status_code == 400
        assert auditor.get("/v1/audit", params={"who": "a\0b"}).status_code == 400
    assert len(_records(door, "audit.read", who=prefix.split("_")[1])) >= 3
    with door.client(door.key("analyst")) as analyst:
        assert analyst.get("/v1/audit").status_code == 403


def test_commands_are_recorded_with_the_user_of_the_operating_system(dsn: str) -> None:
    assert run_cli(dsn, "migrate").returncode == 0
    made = run_cli(
        dsn, "user", "create", "mia", "--role", "auditor", "--scope", "north/L1", "--scope", "south", "--generate"
    )
    assert made.returncode == 0, made.stderr
    assert len(made.stdout.strip()) > 12
    assert run_cli(dsn, "user", "create", "mia", "--role", "auditor", "--scope", "*", "--generate").returncode == 1
    assert run_cli(dsn, "user", "create", "X!", "--role", "auditor", "--scope", "*", "--generate").returncode == 1
    listed = run_cli(dsn, "user", "list").stdout
    assert "north/L1, south" in listed
    codes = run_cli(dsn, "user", "totp", "mia").stdout.split()
    assert codes[0].startswith("otpauth://")
    assert len(codes) == 1 + passwords.RECOVERY_CODES
    prefix = run_cli(dsn, "key", "create", "--role", "viewer").stdout.split("_")[1]
    assert run_cli(dsn, "key", "revoke", prefix).returncode == 0
    assert run_cli(dsn, "key", "revoke", "absent").returncode == 1
    assert run_cli(dsn, "user", "totp", "absent").returncode == 1

    async def recorded() -> list[tuple[str, str, str]]:
        async with connected(dsn) as connection:
            rows = await connection.fetch("SELECT action, who_kind, target FROM audit_log ORDER BY no")
            return [tuple(row) for row in rows]

    assert asyncio.run(recorded()) == [
        ("user.created", "command", "mia"), ("user.totp.enabled", "command", "mia"), ("key.created", "command", prefix),
        ("key.revoked", "command", prefix),
    ]  # fmt: skip


# Limits and headers


def test_who_asks_too_often_is_told_when_to_come_again(postgres: Any) -> None:
    with Collector(
        postgres.create_database("rates"), ACCESS__REQUESTS_PER_S="1", ACCESS__REQUESTS_BURST="20"
    ) as collector:
        with collector.client(collector.key("agent")) as agent:
            chain = Chain()
            assert {post(agent, chain.batch()).status_code for _ in range(30)} == {200}, "agents have another measure"
        with collector.client(collector.key("viewer")) as one, collector.client(collector.key("viewer")) as other:
            answers = [one.get("/v1/session") for _ in range(30)]
            assert [a.status_code for a in answers[:15]] == [200] * 15
            assert answers[-1].status_code == 429
            assert int(answers[-1].headers["retry-after"]) >= 1
            assert other.get("/v1/session").status_code == 200, "each has a measure of its own"
            with collector.client("lw_bad_key") as bad:
                assert {bad.get("/v1/session").status_code for _ in range(40)} == {401, 429}
            assert other.get("/v1/session").status_code == 200, (
                "who was let in before is let in, whatever comes from that address"
            )


@pytest.mark.parametrize(
    ("address", "networks"),
    [
        ("10.0.0.1", ("10.0.0.1",)),
        ("2001:db8:1:2:3:4:5:6", ("2001:db8:1:2::/64", "2001:db8:1::/48")),
        ("2001:db8:1:2::", ("2001:db8:1:2::/64", "2001:db8:1::/48")),
        ("::ffff:10.0.0.1", ("10.0.0.1",)),
        ("fe80::1%eth0", ("fe80::/64", "fe80::/48")),
        ("not an address", ("not an address",)),
        ("", ("",)),
    ],
)
def test_limits_count_addresses_by_the_network_that_one_customer_has(address: str, networks: tuple[str, ...]) -> None:
    assert networks_of(address) == networks


def test_rates_of_several_names_are_taken_together_or_not_at_all() -> None:
    rates = Rates(1, 2, lambda: 0.0)
    assert rates.take_each(["a/64", "a/48"]) == 0
    assert rates.take_each(["b/64", "a/48"]) == 0
    assert rates.take_each(["c/64", "a/48"]) > 0
    assert rates.wait_s("c/64") == 0
    assert len(rates) == 3


async def test_a_crowd_that_waits_does_not_keep_known_browsers_out() -> None:
    hashing = Hashing()
    hashing._waiting.update({f"n{n}": WAITING_NETWORK_MAX for n in range(WAITING_MAX // WAITING_NETWORK_MAX)})
    with pytest.raises(Problem) as caught:
        await hashing.verify(None, "x", network="another")
    assert caught.value.code == "busy"
    assert not await hashing.verify(None, "x", known=True)
    hashing._waiting.clear()
    hashing._waiting["one"] = WAITING_NETWORK_MAX
    with pytest.raises(Problem):
        await hashing.verify(None, "x", network="one")
    assert not await hashing.verify(None, "x", network="another")
    hashing._waiting[KNOWN] = WAITING_KNOWN_MAX
    with pytest.raises(Problem):
        await hashing.verify(None, "x", known=True)


def test_rates_refill_and_take_bounded_room() -> None:
    now = 0.0
    rates = Rates(2.0, 3, lambda: now)
    assert [rates.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    now = 0.5
    assert rates.take("a") == 0
    assert rates.take("a") == pytest.approx(0.5)
    for number in range(BUCKETS_MAX + 100):
        rates.take(str(number))
    assert len(rates) == BUCKETS_MAX
    assert Rates(0, 1).take("a") == 0


def test_an_address_is_taken_from_a_proxy_that_is_trusted_and_from_no_other(postgres: Any) -> None:
    forwarded = {"X-Forwarded-For": "1.2.3.4, 203.0.113.9, 10.0.0.7"}
    for trusted, expected in (("[]", "127.0.0.1"), ('["127.0.0.1/32", "10.0.0.0/8"]', "203.0.113.9")):
        dsn = postgres.create_database(f"proxy{len(trusted)}")
        with (
            Collector(dsn, ACCESS__TRUSTED_PROXIES=trusted) as collector,
            collector.client(collector.key("admin")) as admin,
        ):
            assert admin.post("/v1/keys", json={"role": "viewer"}, headers=forwarded).status_code == 201
            assert _records(collector, "key.created")[-1]["address"] == expected


def test_every_answer_has_the_headers_that_keep_browsers_safe(door: Collector) -> None:
    with door.client(door.key("viewer")) as client:
        for path in ("/v1/events", "/v1/nothing", "/healthz", "/", "/schema/openapi.json"):
            headers = client.get(path).headers
            assert headers["x-content-type-options"] == "nosniff", path
            assert headers["referrer-policy"] == "no-referrer", path
            assert "frame-ancestors 'none'" in headers["content-security-policy"], path
            assert headers.get("cache-control", "") == "no-store" or not path.startswith("/v1/"), path
            assert "strict-transport-security" not in headers, "not over plain HTTP"


def test_bodies_that_are_too_large_or_too_deep_are_problems(door: Collector) -> None:
    with door.client(door.key("admin")) as admin:
        assert admin.post("/v1/keys", content=b'{"role":' + b"[" * 30_000).status_code == 400
        assert admin.post("/v1/keys", content=b'{"role":"viewer","name":"' + b"x" * 100_000 + b'"}').status_code == 413
        assert admin.post("/v1/keys", json={"role": "viewer", "rolle": "admin"}).status_code == 400
        assert admin.post("/v1/keys", json={"role": "viewer", "name": "a\0b"}).status_code == 400
