"""The intake of a real agent: what was answered 202 is in the buffer, whatever happens, and nothing is there twice."""

import grp
import gzip
import http.client
import json
import os
import resource
import signal
import socket
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest

from agent.wire.event import Event
from tests.agent_process import Agent
from tests.collector_process import poll_until
from tests.integration.source_drivers import stored
from tests.integration.test_check import check, problems
from tests.ports import free_port
from tests.posting import Poster

SOURCE = '[sources.apps]\ntype = "intake"\n'
KEY = "correct-horse-battery-staple"
pytestmark = pytest.mark.timeout(200)


@pytest.fixture
def folder() -> Iterator[Path]:
    """One with a name short enough for a socket in it."""
    with TemporaryDirectory(prefix="lw") as made:
        yield Path(made)


def agent_of(folder: Path, sources: str = SOURCE) -> Agent:
    return Agent(folder, f"http://127.0.0.1:{free_port()}", sources=sources)


def from_apps(agent: Agent) -> list[Event]:
    return [event for event in stored(agent) if event.source == "apps"]


def numbers(agent: Agent) -> list[int]:
    return [event.data["n"] for event in from_apps(agent) if "n" in event.data]


def counted(ns: Iterable[int]) -> list[dict[str, object]]:
    return [{"type": "production.order", "data": {"n": n}} for n in ns]


def fill_disk(agent: Agent, size: int = 4_096) -> None:
    """Writes behind `size` of any file fail."""
    assert agent.process is not None
    resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


# ── what arrives ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_form_of_body_is_in_the_buffer_when_its_202_comes(folder: Path) -> None:
    forms: list[tuple[bytes, dict[str, str]]] = [
        (json.dumps(counted([1])[0]).encode(), {}),
        (json.dumps(counted([2, 3])).encode(), {}),
        (b"\n".join(json.dumps(each).encode() for each in counted([4, 5])), {"Content_Type": "application/x-ndjson"}),
        (b"\n".join(json.dumps(each).encode() for each in counted([6, 7])), {}),
        (gzip.compress(json.dumps(counted([8])).encode()), {"Content_Encoding": "gzip"}),
        (b'{"level":"info","message":"hello","n":9}', {}),
    ]
    taken = 0
    with agent_of(folder) as agent, Poster(agent.port) as program:
        for body, headers in forms:
            answer = program.post(body, **headers)
            assert answer.status == 202, answer
            taken += answer.json()["accepted"]
            assert numbers(agent) == list(range(1, taken + 1))
        assert taken == 9
        # In pieces, of a length that was not told before.
        chunked = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=30)
        pieces = iter([b'[{"type":"a",', b'"data":{"n":10}}]'])
        chunked.request("POST", "/v1/events", pieces, {"Content-Type": "application/json"}, encode_chunked=True)
        assert chunked.getresponse().status == 202
        chunked.close()
        assert numbers(agent) == list(range(1, 11))
        page = agent.get("/metrics").text
        assert 'linewarden_agent_source_requests_total{source="apps",type="intake"} 7' in page
        assert 'linewarden_agent_source_events_total{source="apps",type="intake"} 10' in page


def test_a_request_with_one_bad_event_is_refused_whole_with_the_path_of_each_error(folder: Path) -> None:
    with agent_of(folder) as agent, Poster(agent.port) as program:
        events = counted(range(5))
        events[1]["severity"] = 9
        events[3]["time"] = "soon"
        refused = program.post(events)
        assert (refused.status, refused.paths) == (422, ["[1].severity", "[3].time"])
        assert [each["index"] for each in refused.json()["errors"]] == [1, 3]
        assert numbers(agent) == []
        # Repaired, it is the same request: nothing arrives twice.
        del events[1]["severity"], events[3]["time"]
        assert program.post(events).status == 202
        assert numbers(agent) == [0, 1, 2, 3, 4]


def test_handlers_see_what_programs_post(folder: Path) -> None:
    """Five refused sign-ins at a station program raise the built-in alert, as those in a log do."""
    failure = {"type": "authentication.failure", "outcome": "failure", "src_ip": "203.0.113.9", "actor": "root"}
    with agent_of(folder) as agent, Poster(agent.port) as program:
        assert program.post([failure] * 12).status == 202
        poll_until(lambda: [event for event in stored(agent) if event.type.startswith("alert.authentication")])


# ── kills ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_kill_between_post_and_commit_leaves_no_202_and_no_row(folder: Path) -> None:
    """opentelemetry-collector#12711: what was acknowledged before it was in the queue on the disk was gone with the process."""
    agent = agent_of(folder)
    with agent, Poster(agent.port) as program, ThreadPoolExecutor() as threads:
        assert program.post(counted([1])).status == 202
        fill_disk(agent)
        posting = threads.submit(program.post, counted([2]), Idempotency_Key="two")
        poll_until(lambda: agent.status()["buffer"]["stalled"], why="the disk is not full")
        agent.kill9()
        with pytest.raises(OSError, match="no answer"):
            posting.result(30)
        assert numbers(agent) == [1]
        agent.start()
        again = program.post(counted([2]), Idempotency_Key="two")
        assert (again.status, again.headers.get("idempotent-replayed")) == (202, None)
        assert numbers(agent) == [1, 2]


def test_a_retry_after_a_kill_that_came_after_the_commit_is_not_two_events(folder: Path) -> None:
    agent = agent_of(folder)
    with agent, Poster(agent.port) as program:
        assert program.post(counted([1, 2]), Idempotency_Key="k").status == 202
        agent.kill9()
        program.close()
        agent.start()
        again = program.post(counted([1, 2]), Idempotency_Key="k")
        assert (again.status, again.json()) == (202, {"accepted": 2})
        assert again.headers["idempotent-replayed"] == "true"
        assert numbers(agent) == [1, 2]


class Program(threading.Thread):
    """Posts its numbers one by one and keeps each until it hears that it was taken."""

    def __init__(self, port: int, ns: Iterable[int], *, keyed: bool) -> None:
        super().__init__()
        self._port = port
        self._ns = ns
        self._keyed = keyed
        self.accepted: list[int] = []
        self.stop = threading.Event()

    def run(self) -> None:
        with Poster(self._port, timeout_s=20) as program:
            for n in self._ns:
                headers = {"Idempotency_Key": f"n{n}"} if self._keyed else {}
                while not self.stop.is_set():
                    with suppress(OSError):
                        answer = program.post(counted([n]), **headers)
                        if answer.status == 202:
                            self.accepted.append(n)
                            break
                        assert answer.status == 503, answer
                    time.sleep(0.01)


def test_through_kills_at_any_moment_what_was_accepted_is_there_and_with_a_key_it_is_there_once(folder: Path) -> None:
    agent = agent_of(folder)
    keyed = [Program(agent.port, range(1_000 * k, 1_000 * k + 1_000), keyed=True) for k in (1, 2, 3)]
    bare = Program(agent.port, range(5_000, 6_000), keyed=False)
    programs = [*keyed, bare]
    with agent:
        for program in programs:
            program.start()
        for pause_s in (0.3, 0.05, 0.4, 0.2):
            time.sleep(pause_s)
            agent.kill9()
            agent.start()
        time.sleep(0.2)
        for program in programs:
            program.stop.set()
        for program in programs:
            program.join(60)
        found = Counter(numbers(agent))
        for program in programs:
            assert len(program.accepted) > 3
            assert not [n for n in program.accepted if not found[n]], "accepted, and not there"
        assert {found[n] for program in keyed for n in program.accepted} == {1}, "there twice"
        assert all(found[n] == 1 for n in found if n < 5_000)


# ── a full disk ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_full_disk_is_503_and_nothing_is_lost_or_doubled_when_there_is_room_again(folder: Path) -> None:
    """thingsboard-gateway#1446: a database that could not be written was an endless loop of errors, and events were gone."""
    source = f"{SOURCE}commit_s_max = 1\n"
    with agent_of(folder, source) as agent, Poster(agent.port) as program:
        assert program.post(counted([0])).status == 202
        fill_disk(agent)
        first = program.post(counted([1]), Idempotency_Key="n1")
        assert (first.status, first.json()["taken"]) == (503, "unknown")
        assert int(first.headers["retry-after"]) > 0
        # While the commit hangs, nothing is kept for later behind the program's back.
        poll_until(lambda: program.post(counted([2]), Idempotency_Key="n2").json()["taken"] is False)
        assert agent.get("/healthz").status_code == 503
        fill_disk(agent, resource.RLIM_INFINITY)
        for n in (1, 2):

            def taken(n: int = n) -> bool:
                return program.post(counted([n]), Idempotency_Key=f"n{n}").status == 202

            poll_until(taken, why="there is room again")
        assert sorted(numbers(agent)) == [0, 1, 2]


# ── keys and sockets ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_with_keys_only_those_programs_post_and_their_name_stands_beside_their_events(folder: Path) -> None:
    key_file = folder / "mes.key"
    key_file.write_text(f"{KEY}\n")
    key_file.chmod(0o600)
    source = f'{SOURCE}[sources.apps.programs.mes]\nkey_file = "{key_file}"\n'
    with agent_of(folder, source) as agent, Poster(agent.port) as program:
        assert program.post(counted([1])).status == 401
        assert program.post(counted([1]), Authorization="Bearer wrong").status == 401
        assert program.post(counted([1]), Authorization=f"Bearer {KEY}").status == 202
        events = from_apps(agent)
        assert [event.type for event in events] == ["authentication.failure"] * 2 + ["production.order"]
        assert events[-1].data == {"n": 1, "program": "mes"}
    assert KEY not in agent.log
    assert KEY.encode() not in (folder / "state" / "buffer.db").read_bytes()


def test_a_unix_socket_has_the_mode_and_group_that_were_asked_for_and_outlives_a_kill(folder: Path) -> None:
    path = folder / "intake.sock"
    group = grp.getgrgid(max(os.getgroups() or [os.getgid()]))
    source = f'{SOURCE}socket = "{path}"\nsocket_mode = "0620"\nsocket_group = "{group.gr_name}"\n'
    agent = agent_of(folder, source)
    with agent, Poster(path) as program, Poster(agent.port) as elsewhere:
        assert stat.S_IMODE(path.stat().st_mode) == 0o620
        assert path.stat().st_gid == group.gr_gid
        # A socket has no name that a page could make its own.
        assert program.post(counted([1]), Host="station-7").status == 202
        assert elsewhere.post(counted([1])).status == 404
        agent.kill9()
        assert path.is_socket()
        agent.start()
        poll_until(lambda: posts(program, 2), why="the socket of the dead process was not replaced")
        assert numbers(agent) == [1, 2]
        assert agent.stop() == 0
        assert not path.exists()


def posts(program: Poster, n: int) -> bool:
    with suppress(OSError):
        return program.post(counted([n])).status == 202
    return False


def test_a_place_that_is_somebody_else_s_is_left_alone_and_said_to_be_taken(folder: Path) -> None:
    path = folder / "intake.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as living:
        living.bind(str(path))
        living.listen()
        with agent_of(folder, f'{SOURCE}socket = "{path}"\n') as agent:

            def said() -> bool:
                return "somebody listens there" in str(agent.status()["sources"]["apps"]["trouble"])

            poll_until(said)
            assert path.is_socket()
    path.unlink()
    path.write_text("precious")
    with agent_of(folder, f'{SOURCE}socket = "{path}"\n') as agent:
        poll_until(lambda: agent.status()["sources"]["apps"]["trouble"])
        assert path.read_text() == "precious"


def test_programs_of_other_computers_are_refused_where_the_endpoint_is_open_to_them(folder: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            own = probe.getsockname()[0]
        except OSError:
            own = "127.0.0.1"
    if own.startswith("127."):
        pytest.skip("this computer has no address that others reach")
    agent = agent_of(folder)
    text = agent.config.read_text().replace("[health]", "[health]\nallow_remote = true")
    agent.config.write_text(text.replace(f"127.0.0.1:{agent.port}", f"0.0.0.0:{agent.port}"))
    with agent, Poster(agent.port) as program:
        assert program.post(counted([1])).status == 202
        url = f"http://{own}:{agent.port}/v1/events"
        refused = httpx.post(url, json=counted([2]), trust_env=False)
        assert refused.status_code == 403
        assert "allow_remote" in refused.json()["detail"]
        agent.config.write_text(f"{agent.config.read_text()}allow_remote = true\n")
        agent.signal(signal.SIGHUP)
        poll_until(lambda: httpx.post(url, json=counted([3]), trust_env=False).status_code == 202)
        assert numbers(agent) == [1, 3]


# ── reload ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reload_moves_the_endpoint_and_the_intake_with_it(folder: Path) -> None:
    with agent_of(folder) as agent:
        with Poster(agent.port) as program:
            assert program.post(counted([1])).status == 202
        text, old, agent.port = agent.config.read_text(), agent.port, free_port()
        agent.config.write_text(text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{agent.port}"))
        agent.signal(signal.SIGHUP)
        with Poster(agent.port) as program:
            poll_until(lambda: posts(program, 2), why="the intake did not move")
        assert numbers(agent) == [1, 2]


def test_an_intake_comes_goes_and_changes_by_reload(folder: Path) -> None:
    with agent_of(folder, "") as agent, Poster(agent.port) as program:
        assert program.post(counted([1])).status == 404
        agent.configure(SOURCE)
        agent.signal(signal.SIGHUP)
        poll_until(lambda: posts(program, 2))
        assert program.post(counted([3]), Idempotency_Key="k").status == 202
        agent.configure(f'{SOURCE}time_zone = "UTC"\nrequest_bytes_max = 2000\n')
        agent.signal(signal.SIGHUP)
        poll_until(lambda: program.post(b" " * 3_000).status == 413)
        # The keys went over from the one before.
        assert program.post(counted([3]), Idempotency_Key="k").headers["idempotent-replayed"] == "true"
        agent.configure("")
        agent.signal(signal.SIGHUP)
        poll_until(lambda: program.post([]).status == 404)
        assert numbers(agent) == [2, 3]


def test_reloads_that_change_the_intake_lose_and_double_nothing_of_what_is_posted_meanwhile(folder: Path) -> None:
    """telegraf#3522: lines were lost during a reload."""
    agent = agent_of(folder)
    programs = [Program(agent.port, range(1_000 * k, 1_000 * k + 1_000), keyed=True) for k in (1, 2)]
    with agent:
        for program in programs:
            program.start()
        for size in (10_000, 20_000, 30_000, 40_000):
            agent.configure(f"{SOURCE}request_bytes_max = {size}\n")
            agent.signal(signal.SIGHUP)
            said = "configuration was read again"
            poll_until(lambda: agent.log.count(said) >= size // 10_000)  # noqa: B023  # called here
        for program in programs:
            program.stop.set()
        for program in programs:
            program.join(60)
        found = Counter(numbers(agent))
        accepted = {n for program in programs for n in program.accepted}
        assert len(accepted) > 10
        assert {found[n] for n in accepted} == {1}
        assert agent.log.count("Traceback") == 0


# ── check ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def configuration(folder: Path, sources: str, health: str = "127.0.0.1:8801") -> Path:
    path = folder / "agent.toml"
    listen = json.dumps(health) if health else "[]"
    path.write_text(
        f'[agent]\nstate_dir = "{folder}"\n[sync]\nurl = "https://collector.corp.example:8443"\n[health]\nlisten = {listen}\n{sources}'
    )
    return path


def test_check_refuses_two_intakes_at_one_place_and_one_that_nobody_reaches(folder: Path) -> None:
    other = SOURCE.replace("apps", "more")
    remedy = "Give each a socket of its own, or take one of the two out."
    found = problems(check(configuration(folder, SOURCE + other), "--json"))
    assert found == [("sources.more.socket", "/v1/events at 127.0.0.1:8801 belongs to sources.apps already", remedy)]
    at = 'socket = "/run/linewarden/x.sock"\n'
    found = problems(check(configuration(folder, SOURCE + at + other + at), "--json"))
    assert found == [("sources.more.socket", "unix:/run/linewarden/x.sock belongs to sources.apps already", remedy)]
    found = problems(check(configuration(folder, SOURCE + at, "unix:/run/linewarden/x.sock"), "--json"))
    assert found == [("sources.apps.socket", "unix:/run/linewarden/x.sock belongs to health.listen already", remedy)]
    found = problems(check(configuration(folder, SOURCE, ""), "--json"))
    assert [(each[0], each[2]) for each in found] == [
        ("sources.apps.socket", "Give it a socket, or [health] an address.")
    ]
    assert check(configuration(folder, SOURCE + other + at), "--json").returncode == 0


def test_check_tells_of_keys_that_are_none_and_files_that_everybody_reads(folder: Path) -> None:
    (folder / "key").write_text("short")
    (folder / "open").write_text(KEY)
    (folder / "open").chmod(0o644)
    source = "".join(f'[sources.apps.programs.{name}]\nkey_file = "{folder}/{name}"\n' for name in ("key", "open"))
    (folder / "key").chmod(0o600)
    found = {key: text for key, text, _ in problems(check(configuration(folder, SOURCE + source), "--json"))}
    assert "holds no key" in found["sources.apps.programs.key.key_file"]
    assert "can be read by everybody" in found["sources.apps.programs.open.key_file"]
