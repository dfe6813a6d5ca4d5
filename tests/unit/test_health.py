"""The local endpoint, spoken to byte by byte: what it tells, and that nobody can hold it up."""

import asyncio
import logging
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.component import ConfigError
from agent.health import Check, HealthConfig, HealthServer, Mounts, Request, Response, Route, Status, parse_address
from agent.health_http import HEADER_BYTES_MAX
from agent.health_peer import peer_of
from tests.served import Served, served

SHORT = HealthConfig(listen="127.0.0.1:0", request_s_max=0.3, idle_s_max=0.3, connections_max=4)
BODY_BYTES_MAX = 1_000


def with_routes(server: HealthServer) -> None:
    """Routes as the intake has them."""

    async def echo(request: Request) -> Response:
        return Response(202, await request.body(), "application/octet-stream")

    async def huge(_: Request) -> Response:
        return Response(200, bytes(50_000_000))

    async def broken(_: Request) -> Response:
        raise KeyError("secret detail")

    server.add("POST", "/echo", Route(echo, body_bytes_max=BODY_BYTES_MAX))
    server.add("GET", "/huge", Route(huge))
    server.add("GET", "/broken", Route(broken))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Served]:
    with served(prepare=with_routes) as running:
        yield running
        assert running.loop.complaints == []


@pytest.fixture
def short() -> Iterator[Served]:
    with served(SHORT, prepare=with_routes) as running:
        yield running
        assert running.loop.complaints == []


# ── what it tells ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_health_is_200_while_ok_or_degraded_and_503_with_reason_and_remedy_when_failed() -> None:
    with served() as running:
        client = running.client()
        assert client.get("/healthz").json() == {
            "state": "ok",
            "ok": True,
            "checks": {"buffer": {"name": "buffer", "state": "ok", "detail": "stores", "remedy": ""}},
        }
        running.checks.append(Check("sources", "degraded", "plc: no answer", "Switch it on"))
        answer = client.get("/healthz")
        assert (answer.status, answer.json()["state"], answer.json()["ok"]) == (200, "degraded", True)
        running.checks.append(Check("disk", "failed", "/var is full", "Free some space"))
        for path in ("/healthz", "/readyz"):
            answer = client.get(path)
            assert (answer.status, answer.json()["state"], answer.json()["ok"]) == (503, "failed", False)
            disk = answer.json()["checks"]["disk"]
            assert (disk["detail"], disk["remedy"]) == ("/var is full", "Free some space")


def test_status_names_each_source_with_its_state_last_event_error_gaps_and_trouble(endpoint: Served) -> None:
    status = endpoint.client().get("/status").json()
    assert status["sources"]["plc"] == {
        "kind": "modbus", "state": "waiting", "connected": False, "events": 0, "gaps": 1, "restarts": 0,
        "last_event_us": None, "silent_s": 0.0, "last_error": "no answer", "last_error_us": 2_500_000, "retry_us": None,
        "trouble": {"": "no answer"},
        "counts": {"requests": 7, "Reads per s!": 2},
    }  # fmt: skip
    assert status["buffer"]["oldest_us"] == 1_500_000
    assert status["sync"]["lag_s"] == 1.5
    assert status["handlers"]["login_burst"]["last_evaluated_us"] == 2_000_000


def test_head_has_the_headers_of_get_and_no_body(endpoint: Served) -> None:
    client = endpoint.client()
    whole = client.get("/status")
    head = client.get("/status", "HEAD")
    assert head.status == 200
    assert head.headers["content-length"] == whole.headers["content-length"]
    assert client.get("/healthz").status == 200  # nothing of a body stands before the next answer


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "says"),
    [
        ("GET", "/nothing", "", b"", 404, "there is nothing here; there is /broken, /echo, /healthz"),
        ("DELETE", "/status", "", b"", 405, "/status takes GET, HEAD"),
        ("GET", "/echo", "", b"", 405, "/echo takes POST"),
        ("POST", "/echo", "", b"x" * 1_001, 413, "the body has more than 1000 bytes"),
        ("GET", "/status", "", b"x", 413, "the body has more than 0 bytes"),
        ("POST", "/echo", "Origin: http://evil.example\r\n", b"x", 403, "a web page may not send anything here"),
        ("GET", "/broken", "", b"", 500, "the agent has a defect here; its log says where"),
    ],
)
def test_what_cannot_be_answered_is_a_problem_that_says_why(
    endpoint: Served, method: str, path: str, headers: str, body: bytes, status: int, says: str
) -> None:
    answer = endpoint.client().get(path, method, headers, body)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert says in answer.json()["detail"]
    assert b"secret detail" not in answer.body
    assert b"Traceback" not in answer.body


def test_an_answer_405_names_the_methods_that_are_allowed(endpoint: Served) -> None:
    assert endpoint.client().get("/status", "PUT").headers["allow"] == "GET, HEAD"


# ── one connection ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_connection_is_kept_for_many_requests(endpoint: Served) -> None:
    client = endpoint.client()
    assert {client.get("/healthz").status for _ in range(200)} == {200}
    assert client.get("/nothing").status == 404
    assert client.get("/echo", "POST", body=b"abc").body == b"abc"


def test_requests_sent_ahead_are_answered_in_order(endpoint: Served) -> None:
    client = endpoint.client()
    sent = b"".join(
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n%02d" % number for number in range(50)
    )
    client.send(sent)
    assert [client.answer().body for _ in range(50)] == [b"%02d" % number for number in range(50)]


def test_a_request_cut_into_single_bytes_is_understood(endpoint: Served) -> None:
    client = endpoint.client()
    for byte in b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc":
        client.send(bytes([byte]))
    assert client.answer().body == b"abc"


def test_a_client_that_waits_for_100_continue_is_told_to_go_on(endpoint: Served) -> None:
    client = endpoint.client()
    client.send(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert client.answer().status == 100
    client.send(b"abc")
    assert client.answer().body == b"abc"


def test_a_body_in_chunks_is_bounded_as_it_comes(endpoint: Served) -> None:
    client = endpoint.client()
    client.send(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    client.send(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert client.answer().body == b"abcde"
    client.send(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    client.send(b"%x\r\n%s\r\n" % (BODY_BYTES_MAX + 1, b"x" * (BODY_BYTES_MAX + 1)))
    assert client.answer().status == 413
    assert client.is_closed()


# ── who may ask ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8801", "127.0.0.1:8801", "[::1]:8801", "[::1]", "192.168.1.5"]
)
def test_a_client_that_names_this_computer_is_answered(endpoint: Served, host: str) -> None:
    client = endpoint.client()
    client.send(f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert client.answer().status == 200


def test_a_page_whose_name_was_made_to_point_here_learns_nothing(endpoint: Served) -> None:
    client = endpoint.client()
    client.send(b"GET /status HTTP/1.1\r\nHost: evil.example:8801\r\n\r\n")
    answer = client.answer()
    assert answer.status == 421
    assert b"sources" not in answer.body


def test_an_address_that_others_reach_needs_their_leave() -> None:
    with pytest.raises(ValueError, match=r"0\.0\.0\.0:8801 is reached by other computers.*allow_remote = true"):
        HealthConfig(listen="0.0.0.0:8801")
    with served(HealthConfig(listen="0.0.0.0:0", allow_remote=True)) as running:
        client = running.client(("127.0.0.1", running.address[1]))
        client.send(b"GET /healthz HTTP/1.1\r\nHost: station4.plant.example\r\n\r\n")
        assert client.answer().status == 200


# ── who would hold it up ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /healthz HT",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc",
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    ],
)
def test_a_request_that_does_not_end_is_answered_408_and_cut(short: Served, sent: bytes) -> None:
    client = short.client()
    client.send(sent)
    answer = client.answer()
    assert answer.status == 408
    assert answer.headers["connection"] == "close"
    assert client.is_closed()


def test_a_client_that_sends_a_byte_now_and_then_is_cut_all_the_same(short: Served) -> None:
    client, began = short.client(), time.monotonic()
    with suppress(ConnectionError):
        while time.monotonic() - began < 10:
            client.send(b"X")
            time.sleep(0.05)
    assert time.monotonic() - began < 5


def test_a_silent_connection_is_closed(short: Served) -> None:
    client = short.client()
    assert client.is_closed()


def test_a_client_that_does_not_take_its_answer_is_cut(short: Served) -> None:
    client = short.client()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    client.send(b"GET /huge HTTP/1.1\r\nHost: localhost\r\n\r\n")
    time.sleep(1.0)  # what is tested is that nothing happens on this side
    assert client.is_closed()
    assert len(client._rest) < 50_000_000
    assert short.client().get("/healthz").status == 200


def test_a_header_beyond_the_bound_is_answered_431(endpoint: Served) -> None:
    client = endpoint.client()
    client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 2 * HEADER_BYTES_MAX)
    assert client.answer().status == 431
    assert client.is_closed()


def test_when_all_connections_are_taken_an_idle_one_gives_way() -> None:
    config = HealthConfig(listen="127.0.0.1:0", connections_max=3)
    with served(config) as running:
        clients = [running.client() for _ in range(3)]
        assert [client.get("/healthz").status for client in clients] == [200] * 3
        assert running.client().get("/healthz").status == 200
        assert clients[0].is_closed()
        assert [client.get("/healthz").status for client in clients[1:]] == [200] * 2


def test_when_all_connections_are_busy_one_more_is_answered_503() -> None:
    begun = threading.Semaphore(0)

    async def slow(_: Request) -> Response:
        begun.release()
        await asyncio.sleep(30)
        return Response(200)

    config = HealthConfig(listen="127.0.0.1:0", request_s_max=1.0, connections_max=2)
    with served(config, prepare=lambda server: server.add("GET", "/slow", Route(slow))) as running:
        busy = [running.client() for _ in range(2)]
        for client in busy:
            client.send(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert begun.acquire(timeout=10)
        answer = running.client().get("/healthz")
        assert answer.status == 503
        assert answer.headers["retry-after"] == "5"
        assert {client.answer().json()["detail"] for client in busy} == {"it took longer than 1 s"}
        assert running.client().get("/healthz").status == 200


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /hea",
        b"GET /healthz HTTP/1.1\r\n",
        b"POST /post HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n[",
    ],
)
def test_requests_that_are_not_whole_give_way_to_one_that_is(begun: bytes) -> None:
    async def take(request: Request) -> Response:
        return Response(200, await request.body())

    def prepare(server: HealthServer) -> None:
        server.add("POST", "/post", Route(take, body_bytes_max=1_000))

    # Their own deadlines are far away: what makes room is the request that is whole.
    config = HealthConfig(listen="127.0.0.1:0", connections_max=8, request_s_max=60, idle_s_max=60)
    with served(config, prepare=prepare) as running:
        for _ in range(40):
            with suppress(ConnectionError):
                running.client().send(begun)
        assert running.client().get("/healthz").status == 200


def test_programs_that_wait_leave_room_for_health_and_one_user_leaves_room_for_others() -> None:
    begun, ended = threading.Semaphore(0), asyncio.Event()

    async def slow(_: Request) -> Response:
        begun.release()
        await ended.wait()
        return Response(200)

    mounts = Mounts()
    mounts.put("apps", {("POST", "/v1/events"): Route(slow)})
    config = HealthConfig(listen="127.0.0.1:0", connections_max=16)
    with served(config, mounts=mounts) as running:
        clients = [running.client() for _ in range(12)]
        statuses = []
        for number, client in enumerate(clients):
            client.send(b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            if number < 11:
                assert begun.acquire(timeout=10)
            else:
                statuses.append(client.answer().status)
        assert statuses == [503]
        assert running.client().get("/healthz").status == 200
        running.loop.do(_set(ended))
        assert {client.answer().status for client in clients[:11]} == {200}


async def _set(event: asyncio.Event) -> None:
    event.set()


def test_at_the_limit_of_descriptors_there_is_one_line_of_log_and_service_afterwards(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with served() as running, ExitStack() as stack:
        clients = [stack.enter_context(socket.socket()) for _ in range(20)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # All that are open stay open; there is no room for one more.
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            for client in clients:
                client.connect(running.address)
                client.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            time.sleep(1.2)  # in which the server tries again, twice
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for client in clients:
            client.settimeout(10)
            assert client.recv(12) == b"HTTP/1.1 200"
        lines = [record for record in caplog.records if "no connection can be accepted" in record.getMessage()]
        assert len(lines) == 1
        assert not running.loop.complaints
        assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("kind", ["tcp", "tcp6", "unix"])
def test_a_local_connection_is_known_by_its_user(tmp_path: Path, kind: str) -> None:
    family = {"tcp": socket.AF_INET, "tcp6": socket.AF_INET6, "unix": socket.AF_UNIX}[kind]
    where: Any = {"tcp": ("127.0.0.1", 0), "tcp6": ("::1", 0), "unix": str(tmp_path / "s")}[kind]
    with socket.socket(family) as door, socket.socket(family) as client:
        try:
            door.bind(where)
        except OSError:
            pytest.skip(f"no {kind} here")
        door.listen()
        client.connect(door.getsockname())
        there, _ = door.accept()
        with there:
            assert peer_of(there) == f"user {os.getuid()}"


def test_a_crowd_at_the_door_is_cut_without_a_word() -> None:
    config = HealthConfig(listen="127.0.0.1:0", request_s_max=1.0, connections_max=2)
    with served(config) as running:
        crowd = [running.client() for _ in range(50)]
        for client in crowd:
            with suppress(ConnectionError):
                client.send(b"GET /healthz HTTP/1.1\r\n")
        assert sum(client.is_closed() for client in crowd[2:]) == 48
        for client in crowd:
            client.close()
        client = running.client()
        assert client.get("/healthz").status == 200


def test_the_end_does_not_wait_for_those_who_are_silent() -> None:
    with served() as running:
        idle = [running.client() for _ in range(5)]
        idle[0].get("/healthz")
        idle[1].send(b"GET /hea")
        began = time.monotonic()
        running.loop.do(running.server.close())
        assert time.monotonic() - began < 4
        assert all(client.is_closed() for client in idle)
        assert running.loop.complaints == []


def test_a_defect_in_what_it_shows_is_a_500_and_stands_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> Status:
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR), served(status=broken) as running:
        client = running.client()
        assert client.get("/metrics").status == 500
        assert client.get("/healthz").status == 200
    assert "defect in GET /metrics" in caplog.text


# ── garbage ──────────────────────────────────────────────────────────────────────────────────────────────────────────

REQUEST = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nX-A: b\r\n\r\nabcd"


def survives(endpoint: Served, sent: bytes) -> None:
    client = endpoint.client()
    try:
        client.send(sent)
        client.sock.shutdown(socket.SHUT_WR)
        assert client.is_closed()
    except ConnectionError:
        pass
    finally:
        client.close()
    if client._rest:
        assert client._rest.startswith(b"HTTP/1.1 ")
    healthy = endpoint.client()
    assert healthy.get("/healthz").status == 200
    healthy.close()
    assert endpoint.loop.complaints == []


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=2_000))
def test_any_bytes_leave_the_server_well(endpoint: Served, sent: bytes) -> None:
    survives(endpoint, sent)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, len(REQUEST) - 1), st.binary(max_size=3)), min_size=1, max_size=4))
def test_any_damaged_request_leaves_the_server_well(endpoint: Served, damages: list[tuple[int, bytes]]) -> None:
    sent = bytearray(REQUEST)
    for at, instead in damages:
        sent[at : at + 1] = instead
    survives(endpoint, bytes(sent))


@pytest.mark.parametrize(
    "sent",
    [
        b"GET http://[::1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET //[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"GET /healthz HTTP/2.0\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\r\n" * 10_000,
        b"GET /healthz HTTP/1.0\r\n\r\n",
    ],
)
def test_a_strange_request_leaves_the_server_well(endpoint: Served, sent: bytes) -> None:
    survives(endpoint, sent)


# ── where it listens ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_listens_on_a_unix_socket_too_and_removes_it_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with served(HealthConfig(listen=("127.0.0.1:0", f"unix:{path}"))) as running:
        assert path.stat().st_mode & 0o777 == 0o660
        assert running.client(str(path)).get("/healthz").status == 200
        assert running.client().get("/healthz").status == 200
    assert not path.exists()


def test_a_socket_left_by_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    dead.bind(str(path))
    dead.close()
    with served(HealthConfig(listen=f"unix:{path}")) as running:
        assert running.client(str(path)).get("/healthz").status == 200


def refused(config: HealthConfig) -> ConfigError:
    with pytest.raises(ConfigError) as caught, served(config):
        pass
    return caught.value


def test_an_address_that_is_taken_is_named_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with served(HealthConfig(listen=("127.0.0.1:0", f"unix:{path}"))) as running:
        port = running.address[1]
        error = refused(HealthConfig(listen=f"127.0.0.1:{port}"))
        assert str(error).startswith(f"health.listen: cannot listen on 127.0.0.1:{port}: ")
        assert "Is another agent running?" in error.remedy
        error = refused(HealthConfig(listen=f"unix:{path}"))
        assert "somebody listens there" in str(error)
        assert running.client(str(path)).get("/healthz").status == 200  # the first one's socket is still its own


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    error = refused(HealthConfig(listen=f"unix:{tmp_path}/none/agent.sock"))
    assert f"cannot listen on unix:{tmp_path}/none/agent.sock: No such file or directory" in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "", "8801", ":8801", "localhost", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:99999", "::1:88", "http://127.0.0.1:1",
        "unix:a", "unix:/" + "x" * 107, "a b:1", "u@h:1",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"write 127\.0\.0\.1:8801|write unix:/run|choose a shorter one"):
        parse_address(text)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_sentence(text: str) -> None:
    try:
        address = parse_address(text)
    except ValueError as error:
        assert any(advice in str(error) for advice in ("; write ", "; choose "))  # noqa: PT017  (either outcome is right)
    else:
        assert address.path or 0 <= address.port <= 65_535
