"""The ASGI middleware around a Litestar application in uvicorn, and a real agent: what was asked of a program becomes events."""

import asyncio
import contextlib
import json
import logging
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

import httpx
import pytest
import uvicorn
import websockets.sync.client
from litestar import Litestar, Request, WebSocket, get, post, websocket
from litestar.exceptions import NotAuthorizedException, PermissionDeniedException
from litestar.middleware import DefineMiddleware
from litestar.params import FromPath
from litestar.response import Stream

from agent.client import ASGIMiddleware, Client, DataAccess, Handler, Login, correlation
from agent.wire.event import Event
from tests.agent_process import Agent
from tests.collector_process import poll_until
from tests.integration.test_client import by, station, until
from tests.ports import free_port

log = logging.Logger("mes")  # noqa: LOG001 - none that the test runner listens to


@get("/parts/{part:str}", sync_to_thread=True)
def part(part: FromPath[str]) -> dict[str, str]:
    log.warning("looked up", extra={"part": part})
    return {"part": part}


@post("/parts")
async def made(request: Request[Any, Any, Any]) -> dict[str, int]:
    return {"bytes": len(await request.body())}


@get("/export")
async def export() -> Stream:
    async def rows() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x" * 1_000
            await asyncio.sleep(0)

    return Stream(rows())


@post("/login")
async def login(request: Request[Any, Any, Any]) -> str:
    asked = await request.json()
    request.scope["state"]["who"] = asked["user"]
    if asked["password"] != "open":
        raise NotAuthorizedException
    return "welcome"


@get("/form-login")
async def form() -> str:
    return "wrong password, try again"


@get("/secret")
async def secret() -> None:
    raise PermissionDeniedException


@get("/boom")
async def boom() -> None:
    raise RuntimeError("handled by the framework")


@get(["/health", "/plain", "/reset/{token:str}"])
async def plain() -> str:
    return f"ok{correlation.get()}"


@get("/endless")
async def endless() -> Stream:
    async def rows() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1_000
            await asyncio.sleep(0.01)

    return Stream(rows())


@websocket("/echo")
async def echo(socket: WebSocket[Any, Any, Any]) -> None:
    await socket.accept()
    await socket.send_text(await socket.receive_text())
    await socket.close()


STARTED: list[str] = []


def application() -> Any:
    """A Litestar application, and beside it two paths that fail as no framework lets them fail."""
    handlers = [part, made, export, login, form, secret, boom, plain, endless, echo]
    app = Litestar(handlers, on_startup=[lambda: STARTED.append("up")], openapi_config=None)

    async def around(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") == "/raw/before":
            raise ValueError("ann's order")
        if scope.get("path") == "/raw/within":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x-correlation-id", b"own")]})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            raise OSError("the disk is gone")
        await app(scope, receive, send)

    return around


class Served:
    """uvicorn in a thread of its own."""

    def __init__(self, app: Any) -> None:
        self.port = free_port()
        config = uvicorn.Config(
            app, port=self.port, ws="websockets-sansio", log_config=None, access_log=False, proxy_headers=False
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=30)

    def __enter__(self) -> Self:
        self._thread.start()
        poll_until(lambda: self._server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self._server.should_exit = True
        self._thread.join(30)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with station(tmp_path_factory.mktemp("agent")) as agent:
        yield agent


@pytest.fixture
def client(running: Agent) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{running.port}", program=f"mes-{uuid.uuid4().hex}") as made:
        handler = Handler(made, message_is_personal=False)
        log.addHandler(handler)
        yield made
        log.removeHandler(handler)


@pytest.fixture
def mes(client: Client) -> Iterator[Served]:
    """The application, observed."""
    observed = ASGIMiddleware(
        application(), client, logins=["/login", Login("/form-login", ("GET",), {302})],
        data=["/parts*", DataAccess("/export", "data.exported")], exclude=["/health", "/raw/*"], masked=["/reset/*"],
        trusted_proxies=["127.0.0.1", "10.0.0.0/8"], user=lambda scope: scope.get("state", {}).get("who"),
    )  # fmt: skip
    with Served(observed) as served:
        yield served


def one(agent: Agent, client: Client, count: int = 1) -> Event:
    """The event of the request that was made, where `count` events were."""
    return min(by(agent, client.program, count), key=lambda event: event.type)


def test_a_request_and_what_is_logged_in_it_share_the_id_that_the_caller_sees(
    running: Agent, client: Client, mes: Served
) -> None:
    answer = mes.http.get("/parts/A-77?token=secret&q=1", headers={"User-Agent": "hmi/3"})
    record, request = sorted(by(running, client.program, 2), key=lambda event: event.type)
    assert (record.type, record.message, record.data["part"]) == ("application", "looked up", "A-77")
    assert (request.type, request.outcome, request.target) == ("data.read", "success", "/parts/A-77")
    assert (request.message, request.src_ip) == ("GET answered with 200", "127.0.0.1")
    assert request.correlation_id == record.correlation_id == answer.headers["x-correlation-id"]
    assert request.data["query"] == ["q", "token"]
    assert "secret" not in repr(request)
    assert (request.data["method"], request.data["status"], request.data["user_agent"]) == ("GET", 200, "hmi/3")
    assert request.data["response_bytes"] == len(answer.content)
    assert 0 < request.data["duration_ms"] < 60_000
    assert request.time <= record.time


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ({"X-Correlation-ID": "order-4711/7"}, "order-4711/7"),
        ({"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}, "ab" * 16),
        ({"X-Correlation-ID": "two words", "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}, "ab" * 16),
        ({"X-Correlation-ID": "x" * 129}, None),
        ({"traceparent": f"00-{'00' * 16}-{'cd' * 8}-01"}, None),
        ({"traceparent": f"ff-{'ab' * 16}-{'cd' * 8}-01"}, None),
        ({}, None),
    ],
)
def test_a_well_formed_correlation_id_is_taken_up_and_any_other_replaced(
    running: Agent, client: Client, mes: Served, headers: dict[str, str], wanted: str | None
) -> None:
    answer = mes.http.get("/plain", headers=headers)
    given = answer.headers["x-correlation-id"]
    assert given == wanted if wanted else uuid.UUID(given)
    assert answer.text == f"ok{given}"
    assert one(running, client).correlation_id == given


def test_a_sign_in_is_told_by_its_answer_and_by_whom(running: Agent, client: Client, mes: Served) -> None:
    mes.http.post("/login", json={"user": "ann", "password": "guess"})
    mes.http.post("/login", json={"user": "ann", "password": "open"})
    mes.http.get("/form-login")
    mes.http.get("/login")
    events = sorted(by(running, client.program, 4), key=lambda event: event.time)
    assert [(e.type, e.outcome, e.actor, e.severity) for e in events] == [
        ("authentication.failure", "failure", "ann", 3),
        ("authentication.success", "success", "ann", 1),
        ("authentication.failure", "failure", None, 3),
        ("application.request", "failure", None, 2),
    ]
    assert "guess" not in repr(events)


def test_data_that_is_read_written_exported_or_refused_is_named(running: Agent, client: Client, mes: Served) -> None:
    mes.http.post("/parts", content=b"x" * 70_000)
    exported = mes.http.get("/export")
    mes.http.get("/secret")
    mes.http.get("/reset/s3cr3t")
    events = sorted(by(running, client.program, 4), key=lambda event: event.time)
    assert [(e.type, e.target) for e in events] == [
        ("data.written", "/parts"), ("data.exported", "/export"), ("access.denied", "/secret"), ("application.request", "/reset/*"),
    ]  # fmt: skip
    assert events[0].data["request_bytes"] == 70_000
    assert events[1].data["response_bytes"] == len(exported.content) == 10_000
    assert events[2].outcome == "failure"


def test_an_exception_is_told_and_raised_again_though_the_path_is_left_out(
    running: Agent, client: Client, mes: Served
) -> None:
    assert mes.http.get("/raw/before").status_code == 500
    with pytest.raises(httpx.RemoteProtocolError):
        mes.http.get("/raw/within")
    mes.http.get("/boom")
    mes.http.get("/health")
    mes.http.get("/plain")
    events = by(running, client.program, 6)
    assert "/health" not in {event.target for event in events}
    before = {e.type: e for e in events if e.target == "/raw/before"}
    assert (before["application.error"].raw, before["application.error"].severity) == ("ValueError: ann's order", 3)
    assert "ann" not in json.dumps(before["application.error"].data["stack"].replace('"ann\'s order"', ""))
    assert (before["application.request"].data["status"], before["application.request"].outcome) == (500, "failure")
    assert before["application.request"].correlation_id == before["application.error"].correlation_id
    within = {e.type: e for e in events if e.target == "/raw/within"}
    assert within["application.request"].outcome == "failure"
    assert within["application.error"].data["exception"] == "OSError"
    (handled,) = (e for e in events if e.target == "/boom")
    assert (handled.type, handled.data["status"], handled.outcome) == ("application.request", 500, "failure")


def test_who_goes_away_in_the_middle_of_an_answer_is_told(running: Agent, client: Client, mes: Served) -> None:
    with contextlib.suppress(httpx.HTTPError), mes.http.stream("GET", "/endless") as answer:
        next(answer.iter_raw())
    event = one(running, client)
    assert (event.type, event.target, event.outcome) == ("application.request", "/endless", "failure")
    assert event.data["disconnected"] is True
    assert event.message == "GET was broken off"
    assert event.data["response_bytes"] >= 1_000


def test_the_address_is_the_first_that_is_no_proxy_of_ours(running: Agent, client: Client, mes: Served) -> None:
    chains = {
        "203.0.113.9, 10.0.0.7": "203.0.113.9",
        "198.51.100.1, 203.0.113.9": "203.0.113.9",  # what stands left of it, anybody may have written
        "rubbish": "127.0.0.1",
        "10.0.0.8": "10.0.0.8",
        "2001:db8::5": "2001:db8::5",
    }
    for chain in chains:
        mes.http.get("/plain", headers={"X-Forwarded-For": chain})
    events = sorted(by(running, client.program, len(chains)), key=lambda event: event.time)
    assert [event.src_ip for event in events] == list(chains.values())


def test_websockets_and_the_lifespan_pass_through(mes: Served) -> None:
    assert STARTED
    with websockets.sync.client.connect(f"ws://127.0.0.1:{mes.port}/echo", proxy=None) as connection:
        connection.send("hello")
        assert connection.recv() == "hello"


def test_as_middleware_of_the_framework_with_a_share_of_the_requests(running: Agent, client: Client) -> None:
    observed = DefineMiddleware(ASGIMiddleware, client=client, sample=0.2)
    with Served(Litestar([plain, boom], middleware=[observed], openapi_config=None)) as served:
        ids = [served.http.get("/plain").headers["x-correlation-id"] for _ in range(100)]
        again = {
            served.http.get("/plain", headers={"X-Correlation-ID": each}).headers["x-correlation-id"] for each in ids
        }
        assert again == set(ids)
        served.http.get("/boom")
        client.emit("custom.end")
        events = until(
            running, lambda all_: any(e.type == "custom.end" and e.data["program"] == client.program for e in all_)
        )
    mine = [e for e in events if e.data.get("program") == client.program]
    sampled = [e.correlation_id for e in mine if e.target == "/plain"]
    assert 0 < len(sampled) < 120
    assert {sampled.count(each) for each in sampled} == {2}, "by its id, a request is in or out everywhere"
    assert all(e.data["sampled"] == 0.2 for e in mine if e.target == "/plain")
    assert "application.request" in {e.type for e in mine if e.target == "/boom"}, "what failed is always told"


def test_requests_are_answered_while_the_agent_is_away_or_deaf() -> None:
    with socket.socket() as deaf:  # takes connections and never answers
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(1)
        client = Client(f"http://127.0.0.1:{deaf.getsockname()[1]}", timeout_s=30, events_max=50)
        log.addHandler(handler := Handler(client))
        try:
            with Served(ASGIMiddleware(application(), client, data=["/parts*"])) as served:
                began = time.monotonic()
                for n in range(100):
                    assert served.http.get(f"/parts/{n}").status_code == 200
                assert time.monotonic() - began < 25, "no request waited for the agent"
                assert client.stats().lost > 0, "beyond the bound it is counted, to be declared"
        finally:
            log.removeHandler(handler)
            client.close(0)
