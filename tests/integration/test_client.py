"""The client for station programs, against a real agent: what is said arrives once or is declared lost, and the program never waits."""

import asyncio
import datetime as dt
import itertools
import logging
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import agent.client
from agent.client import Client, Handler, NotAccepted, correlated
from agent.wire.event import Event
from tests.agent_process import Agent
from tests.collector_process import poll_until
from tests.faulty_link import FaultyLink
from tests.integration.source_drivers import stored
from tests.ports import free_port

INTAKE = '[sources.apps]\ntype = "intake"\n'
WITHIN_S = 60


def station(folder: Path, sources: str = INTAKE) -> Agent:
    """An agent whose collector is away, so that its buffer keeps everything."""
    return Agent(folder, f"http://127.0.0.1:{free_port()}", sources=sources)


def said(agent: Agent) -> list[Event]:
    """What programs said."""
    return [event for event in stored(agent) if event.source == "apps"]


def until(agent: Agent, there: Callable[[list[Event]], Any]) -> list[Event]:
    """What programs said, when it is as wanted."""
    kept: list[Event] = []

    def look() -> bool:
        kept[:] = said(agent)
        return bool(there(kept))

    try:
        poll_until(look, within_s=WITHIN_S)
    except AssertionError:
        raise AssertionError(f"stored so far: {str(kept[-5:])[-2_000:]}\n{agent.log[-2_000:]}") from None
    return kept


def by(agent: Agent, program: str, count: int) -> list[Event]:
    """What one program said, when it is so many events."""

    def mine(events: list[Event]) -> list[Event]:
        return [event for event in events if event.data.get("program") == program]

    return mine(until(agent, lambda events: len(mine(events)) >= count))


def numbers(events: list[Event]) -> Counter[int]:
    return Counter(event.data["n"] for event in events if "n" in event.data)


def lost(events: list[Event]) -> int:
    return sum(event.data["events"] for event in events if event.type == "collection.gap")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """One agent for the tests that leave it alone; each looks for its own words only."""
    with station(tmp_path_factory.mktemp("agent")) as agent:
        yield agent


@pytest.fixture
def url(running: Agent) -> str:
    return f"http://127.0.0.1:{running.port}"


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    made = logging.Logger(f"station.{uuid.uuid4().hex}")  # noqa: LOG001 - none that the test runner listens to
    yield made
    for handler in list(made.handlers):
        made.removeHandler(handler)
        handler.close()


# ── what arrives ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_event_arrives_with_everything_that_was_said_of_it(running: Agent, url: str) -> None:
    when = dt.datetime(2026, 3, 1, 10, 0, 0, 250_000, tzinfo=dt.UTC)
    with Client(url, program="mes") as client, correlated("order-4711"):
        client.emit(
            "quality.rejected", "a part was scrapped", severity="high", actor="ann", src_ip="::ffff:192.0.2.7", target="cell4",
            outcome="failure", data={"part": "A-77", "deep": {"user": "bob", "list": [1, 2.5, None, True]}}, time=when, raw="ann: A-77",
        )  # fmt: skip
        client.emit(
            "production.order.started", correlation_id="order-12", src_ip="gateway", severity=9, outcome="perhaps"
        )
    first, second = by(running, "mes", 2)
    assert (first.type, first.message, first.severity, first.actor) == (
        "quality.rejected",
        "a part was scrapped",
        4,
        "ann",
    )
    assert (first.src_ip, first.target, first.outcome, first.raw) == ("192.0.2.7", "cell4", "failure", "ann: A-77")
    assert (first.time, first.correlation_id) == (round(when.timestamp() * 1e6), "order-4711")
    assert first.data == {
        "part": "A-77", "deep": {"list": [1, 2.5, None, True]}, "person": {"deep.user": "bob"}, "program": "mes",
    }  # fmt: skip
    assert second.data == {"src_host": "gateway", "severity_given": "9", "outcome_given": "perhaps", "program": "mes"}
    assert abs(second.time - time.time_ns() // 1000) < 60_000_000


class Awkward:
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_whatever_a_program_puts_into_data_costs_neither_the_event_nor_its_neighbours(running: Agent, url: str) -> None:
    round_: list[Any] = []
    round_.append(round_)
    awkward: dict[Any, Any] = {
        "set": {1}, "bytes": b"\xff\0", "when": dt.date(2026, 1, 2), "huge": 10**40, "nan": float("nan"), "inf": float("-inf"),
        "surrogate": "a\ud800b", "nul": "a\0b", "object": Awkward(), "error": ValueError("x"), "round": round_, 7: "seven",
        "path": Path("/x"), "uuid": uuid.UUID(int=1), "negative": -(2**70), "type": int,
    }  # fmt: skip
    with Client(url, program="awkward") as client:
        client.emit("custom.awkward", data=awkward)
        client.emit("custom.wide", "wide", data={f"k{n}": [[n] * 50] * 50 for n in range(500)})
        client.emit("custom.long", "m\ud800" * 9_000, raw="ü" * 99_999, data={"text": ["x" * 99_999] * 99})
        client.emit("custom.cut", data={"text": "y" * 20_000})
        client.emit("Not A Type", "still told")
        client.emit(None, data=5)  # type: ignore[arg-type]
        client.emit("custom.time", time="yesterday")
        client.emit("custom.when", time=float("nan"), src_ip="\0", correlation_id=5)  # type: ignore[arg-type]
        client.emit("custom.last", data={"n": 1})
    events = until(running, lambda all_: any(e.type == "custom.last" for e in all_))
    mine = {e.type: e for e in events if e.data.get("program") == "awkward" and e.type != "application"}
    found = mine["custom.awkward"].data
    assert found["set"] == [1]
    assert found["bytes"] == "\\xff\\0"
    assert (found["when"], found["nan"], found["inf"], found["7"]) == ("2026-01-02", "nan", "-inf", "seven")
    assert (found["surrogate"], found["nul"]) == ("a\\ud800b", "a\\0b")
    assert found["object"] == "<Awkward, which cannot be shown: RuntimeError>"
    assert found["huge"].startswith("0x")
    assert mine["custom.wide"].data["keys_left_out"] >= 300
    assert mine["custom.long"].data["oversized_bytes"] > 200_000
    assert {e.message for e in events if e.data.get("type_given") == "Not A Type"} == {"still told"}
    assert mine["custom.cut"].data["text"].endswith("yyy… (20000 characters)")
    assert mine["custom.when"].data["time_given"] == "nan"
    (gap,) = (e for e in events if e.type == "collection.gap" and e.data["program"] == "awkward")
    assert gap.data["events"] == 1
    assert "time" in gap.data["reason"], "the one that the agent could not understand is declared, with the reason"
    assert client.stats() == (0, 9 - 1, 1, None)


def test_what_the_agent_never_takes_is_declared_and_the_rest_of_the_request_arrives(running: Agent, url: str) -> None:
    with Client(url, program="mixed", linger_s=0.5) as client:
        for n in range(20):
            client.emit("agent.started" if n % 5 == 0 else "custom.mixed", data={"n": n})
        assert client.flush(30)
    mine = by(running, "mixed", 17)
    assert sorted(numbers(mine)) == [n for n in range(20) if n % 5]
    assert lost(mine) == 4
    assert "for the agent alone" in next(e.data["reason"] for e in mine if e.type == "collection.gap")


def test_a_request_that_is_too_large_for_the_agent_is_sent_in_parts(tmp_path: Path) -> None:
    with station(tmp_path, INTAKE + "request_bytes_max = 20_000\n") as agent:
        with Client(f"http://127.0.0.1:{agent.port}", linger_s=0.5) as client:
            for n in range(40):
                client.emit("custom.big", data={"n": n, "text": ["x" * 2_000] * (15 if n == 33 else 1)})
            assert client.flush(40)
        events = until(agent, lost)
        assert numbers(events) == Counter(n for n in range(40) if n != 33)
        assert lost(events) == 1


def test_over_a_unix_socket_with_a_key_of_its_own(tmp_path: Path) -> None:
    socket, key = tmp_path / "intake.sock", "k" * 32
    (tmp_path / "mes.key").write_text(key)
    keys = f'[sources.apps.programs]\nmes = {{ key_file = "{tmp_path}/mes.key" }}\n'
    with station(tmp_path, f'{INTAKE}socket = "{socket}"\n{keys}') as agent:
        poll_until(socket.exists)
        with Client(f"unix:{socket}", program="another", key=key) as client:
            client.emit("custom.told", data={"n": 1})
            client.send("custom.told", data={"n": 2})
        wrong = Client(f"unix:{socket}", key="x" * 32)
        wrong.emit("custom.told", data={"n": 3})
        with pytest.raises(NotAccepted, match="401") as refused:
            wrong.send("custom.told", data={"n": 4})
        assert (refused.value.status, refused.value.uncertain) == (401, False)
        poll_until(lambda: "401" in (wrong.stats().last_error or ""))
        assert not wrong.close(0.1)
        told = by(agent, "mes", 2)
        assert numbers(said(agent)) == Counter([1, 2])
    assert [event.type for event in told] == ["custom.told"] * 2, "whose key it is says who it is"


def test_an_address_or_a_key_that_cannot_be_is_named_when_the_client_is_made() -> None:
    for address in ("127.0.0.1:8801", "https://agent:8801", "unix:relative", "http://", "http://x:99999999"):
        with pytest.raises(ValueError, match="is no address of an agent; write"):
            Client(address)
    with pytest.raises(ValueError, match="strip what was read from a file"):
        Client(key="secret\n")
    with pytest.raises(ValueError, match="events_max"):
        Client(events_max=0)


# ── when the agent is away ───────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_lost_while_the_agent_is_killed_and_comes_back(tmp_path: Path) -> None:
    with station(tmp_path) as agent, Client(f"http://127.0.0.1:{agent.port}", backoff_s_max=0.5) as client:
        ending = threading.Event()
        count = itertools.count()
        emitted = []

        def program() -> None:
            while not ending.wait(0.0005):
                emitted.append(next(count))
                client.emit("custom.counted", data={"n": emitted[-1]})

        worker = threading.Thread(target=program)
        worker.start()
        for _ in range(3):
            had = client.stats().accepted
            poll_until(lambda had=had: client.stats().accepted > had + 50, within_s=WITHIN_S)  # type: ignore[misc]
            agent.kill9()
            poll_until(lambda: client.stats().waiting > 50, within_s=WITHIN_S)
            poll_until(lambda: client.stats().last_error, within_s=WITHIN_S)
            agent.start()
        ending.set()
        worker.join()
        assert client.flush(WITHIN_S)
        assert client.stats() == (0, len(emitted), 0, None)
        agent.stop()
        assert numbers(said(agent)) == Counter(emitted), "each once"


def test_what_was_over_the_bound_is_declared_and_the_urgent_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        station(tmp_path) as agent,
        Client(f"http://127.0.0.1:{agent.port}", events_max=100, backoff_s_max=0.5) as client,
    ):
        caplog.set_level(logging.INFO, logger="linewarden.client")
        agent.kill9()
        client.emit("custom.before", data={"n": -1})
        poll_until(lambda: client.stats().last_error)  # one batch is under way, beside the queue
        for n in range(5):
            client.emit("alert.of.mine" if n else "custom.urgent", severity=0 if n else 5, data={"n": n})
        began = time.monotonic()
        for n in range(5, 305):
            client.emit("custom.flood", data={"n": n})
        assert time.monotonic() - began < 5, "the program was not held up"
        assert client.stats()[:3] == (101, 0, 205)
        agent.start()
        assert client.flush(WITHIN_S)
        agent.stop()
        events = said(agent)
    # Alerts are the agent's own to raise: it refuses them, and that is declared too.
    assert numbers(events) == Counter([-1, 0, *range(210, 305)])
    (gap, refused) = sorted((e for e in events if e.type == "collection.gap"), key=lambda e: -e.data["events"])
    assert (gap.data["events"], gap.data["reason"]) == (205, "the queue of the program was full")
    assert gap.data["from_us"] <= gap.data["to_us"] <= gap.observed
    assert refused.data["events"] == 4
    words = [record.message for record in caplog.records if record.name == "linewarden.client"]
    assert sum("takes no events: Connection refused" in word for word in words) == 1, "said once an outage"
    assert sum("takes events again" in word for word in words) == 1


async def test_an_answer_that_was_lost_on_the_way_does_not_make_it_twice(tmp_path: Path) -> None:
    with station(tmp_path) as agent:
        async with FaultyLink(agent.port, seed=3) as link:
            with Client(link.url, backoff_s_max=0.3, timeout_s=2, linger_s=0.01) as client:
                for n, mood in enumerate(("reset", "busy", "reset", "deaf", "slow", "away", "reset", "well")):
                    await link.become(mood)  # type: ignore[arg-type]
                    for k in range(20):
                        client.emit("custom.counted", data={"n": 100 * n + k})
                    await _settle_a_while(client)
                assert await asyncio.to_thread(client.flush, WITHIN_S)
        agent.stop()
        assert numbers(said(agent)) == Counter(100 * n + k for n in range(8) for k in range(20))


async def _settle_a_while(client: Client) -> None:
    """Until the client has met the link as it is: it failed once, or all is through."""
    for _ in range(100):
        stats = client.stats()
        if stats.last_error or not stats.waiting:
            return
        await asyncio.sleep(0.02)


# ── send ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_sent_survives_the_death_of_the_agent_in_the_next_moment(tmp_path: Path) -> None:
    with station(tmp_path) as agent:
        client = Client(f"http://127.0.0.1:{agent.port}")
        for n in range(3):
            client.send("custom.proof", data={"n": n}, timeout_s=60)
            agent.kill9()
            agent.start()
        agent.kill9()
        assert numbers(said(agent)) == Counter(range(3))


def test_send_says_what_is_wrong_with_the_event(url: str) -> None:
    with pytest.raises(NotAccepted, match="422") as refused:
        Client(url).send("Not A Type", time="yesterday")
    assert {each["path"] for each in refused.value.errors} == {"[0].type", "[0].time"}
    assert not refused.value.uncertain


async def test_send_says_whether_it_is_certain_that_it_was_not_taken(running: Agent) -> None:
    nobody = Client(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(NotAccepted, match=r"within 0.5 s: Connection refused") as certain:
        nobody.send("custom.x", timeout_s=0.5)
    assert (certain.value.uncertain, certain.value.status) == (False, None)
    async with FaultyLink(running.port) as link:
        await link.become("deaf")
        client = Client(link.url, program="perhaps")
        with pytest.raises(NotAccepted) as perhaps:
            await asyncio.to_thread(client.send, "custom.perhaps", data={"n": 1}, timeout_s=1.0)
        assert perhaps.value.uncertain
        await link.become("well")
        for _ in range(2):
            again: dict[str, Any] = {"idempotency_key": perhaps.value.idempotency_key, "time": 1e9, "timeout_s": 30}
            await asyncio.to_thread(client.send, "custom.perhaps", data={"n": 1}, **again)
    assert [e.type for e in by(running, "perhaps", 1)] == ["custom.perhaps"]


# ── log records ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_log_record_becomes_an_event(running: Agent, url: str, logger: logging.Logger) -> None:
    with Client(url, program="logs") as client, correlated("c-1"):
        logger.addHandler(Handler(client))
        logger.debug("drawer %s opened by %s", 3, "ann", extra={"drawer": 3, "object": Awkward()})
        logger.warning("slow", extra={"correlation_id": "c-2", "user": "bob", "src_ip": "192.0.2.1", "target": "cell4"})
        try:
            try:
                dict[str, int]()["secret"]
            except KeyError as error:
                raise ValueError("ann's number is 5") from error
        except ValueError:
            logger.exception("it failed for %s", "ann")
        logger.critical("by name", extra={"event_type": "equipment.fault", "outcome": "failure"})
        logger.info("does not fit: %d %d", 1)  # noqa: PLE1206 - that is the point
    debug, warning, failed, critical, misfit = sorted(by(running, "logs", 5), key=lambda event: event.time)
    assert (debug.type, debug.severity, debug.message) == ("application", 1, "drawer %s opened by %s")
    assert (debug.raw, debug.correlation_id) == ("drawer 3 opened by ann", "c-1")
    assert debug.data["drawer"] == 3
    assert debug.data["object"] == "<Awkward, which cannot be shown: RuntimeError>"
    assert (debug.data["logger"], debug.data["level"], debug.data["module"]) == (logger.name, "DEBUG", "test_client")
    assert (warning.severity, warning.correlation_id, warning.actor) == (2, "c-2", "bob")
    assert (warning.src_ip, warning.target, warning.message, warning.raw) == ("192.0.2.1", "cell4", None, "slow")
    assert (failed.type, failed.severity, failed.data["exception"]) == ("application.error", 3, "ValueError")
    assert failed.raw == "it failed for ann\nValueError: ann's number is 5"
    stack = failed.data["stack"]
    assert stack.index("KeyError") < stack.index("ValueError")
    assert "ann's number" not in stack.replace('raise ValueError("ann\'s number is 5")', "")
    assert (critical.type, critical.severity, critical.outcome) == ("equipment.fault", 4, "failure")
    assert misfit.raw == "does not fit: %d %d"
    assert abs(debug.time - time.time_ns() // 1000) < 120_000_000


def test_a_program_whose_records_name_nobody_says_so(running: Agent, url: str, logger: logging.Logger) -> None:
    with Client(url, program="impersonal") as client:
        logger.addHandler(Handler(client, logging.INFO, message_is_personal=False))
        logger.debug("not this")
        logger.info("cycle %d", 7)
    (event,) = by(running, "impersonal", 1)
    assert (event.message, event.raw, event.actor) == ("cycle 7", None, None)


class Chatty:
    """Logs while it is being logged."""

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger

    def __str__(self) -> str:
        self.logger.info("inside %s", self)
        return "chatty"


def test_a_record_that_logs_while_it_is_written_ends_and_the_inner_one_is_declared(
    running: Agent, url: str, logger: logging.Logger
) -> None:
    with Client(url, program="chatty") as client:
        logger.addHandler(Handler(client))
        logger.info("%s", Chatty(logger))
    events = by(running, "chatty", 2)
    assert [e.raw for e in events if e.type == "application"] == ["chatty"]
    assert lost(events) == 1


def test_the_handler_on_the_root_logger_does_not_feed_on_the_words_of_the_client(tmp_path: Path) -> None:
    with station(tmp_path) as agent, Client(f"http://127.0.0.1:{agent.port}", backoff_s_max=0.2) as client:
        handler = Handler(client)
        root = logging.getLogger()
        level = root.level
        root.addHandler(handler)
        root.setLevel(logging.DEBUG)
        try:
            agent.kill9()
            root.warning("n", extra={"n": 1})
            poll_until(lambda: client.stats().last_error)
            agent.start()
            assert client.flush(WITHIN_S)
        finally:
            root.setLevel(level)
            root.removeHandler(handler)
        agent.stop()
        assert [e.raw for e in said(agent) if e.data["logger"].startswith("linewarden")] == []
        assert len([e for e in said(agent) if e.data.get("n") == 1]) == 1


# ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def run(folder: Path, program: str, *, code: int = 0) -> str:
    """A program with a copy of the client beside it, and no package at all; what it wrote to stderr."""
    shutil.copy(agent.client.__file__, folder / "linewarden_client.py")
    path = folder / "program.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(folder)!r})\n{textwrap.dedent(program)}")
    done = subprocess.run([sys.executable, "-I", "-S", path], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    return done.stderr


def test_a_copy_of_the_one_file_works_without_any_package_and_what_waits_at_the_end_still_arrives(
    running: Agent, url: str, tmp_path: Path
) -> None:
    program = f"""
        import atexit, logging
        atexit.register(lambda: logging.info("the very last"))
        from linewarden_client import ASGIMiddleware, Client, Handler
        client = Client({url!r}, program="alone", linger_s=30)
        logging.basicConfig(level=logging.INFO, handlers=[Handler(client)])
        atexit.register(lambda: logging.info("first at the end"))
        client.emit("custom.alone")
        foreign = {{name.partition(".")[0] for name in sys.modules}} - sys.stdlib_module_names - {{"linewarden_client", "__main__"}}
        assert not foreign, foreign
        raise SystemExit(3)
    """
    assert run(tmp_path, program, code=3) == ""
    events = until(running, lambda all_: sum(e.data.get("program") == "alone" for e in all_) == 3)
    assert [e.raw or e.type for e in events if e.data.get("program") == "alone"] == [
        "custom.alone", "first at the end", "the very last",
    ]  # fmt: skip


def test_importing_it_imports_nothing_else_of_the_agent() -> None:
    code = "import sys, agent.client; print(sorted(name for name in sys.modules if name[:5] == 'agent'))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "['agent', 'agent.client']"


def test_a_program_that_ends_while_the_agent_is_away_ends_in_time_and_says_what_is_lost(tmp_path: Path) -> None:
    program = f"""
        import logging, time
        from linewarden_client import Client, Handler
        client = Client("http://127.0.0.1:{free_port()}", exit_s_max=1.0)
        logging.basicConfig(level=logging.INFO, handlers=[logging.StreamHandler(), Handler(client)])
        for n in range(7):
            client.emit("custom.lost", data={{"n": n}})
    """
    began = time.monotonic()
    words = run(tmp_path, program)
    assert time.monotonic() - began < 30
    assert "7 events were not taken by the agent" in words
    assert "Traceback" not in words


def test_after_a_fork_parent_and_child_each_send_their_own_once(running: Agent, url: str, tmp_path: Path) -> None:
    program = f"""
        import os, logging, threading, warnings
        from linewarden_client import Client, Handler
        warnings.simplefilter("ignore")
        client = Client({url!r}, program="forked", linger_s=0.3)
        logging.basicConfig(level=logging.INFO, handlers=[Handler(client)])
        ending = threading.Event()
        threads = [threading.Thread(target=lambda: [logging.info("busy") for _ in iter(ending.is_set, True)]) for _ in range(2)]
        client.emit("custom.forked", data={{"n": 0}})
        for thread in threads:
            thread.start()
        children = []
        for n in range(1, 6):
            child = os.fork()
            if child == 0:
                client.emit("custom.forked", data={{"n": n}})
                ok = client.close(30)
                os._exit(0 if ok else 9)
            children.append(child)
            client.emit("custom.forked", data={{"n": 100 + n}})
        ending.set()
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 5
    """
    run(tmp_path, program)
    wanted = Counter([0, *range(1, 6), *range(101, 106)])
    until(running, lambda all_: numbers([e for e in all_ if e.type == "custom.forked"]) == wanted)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_of_multiprocessing_needs_no_farewell(running: Agent, url: str, tmp_path: Path, method: str) -> None:
    program = f"""
        import multiprocessing, warnings
        from linewarden_client import Client
        warnings.simplefilter("ignore")
        client = Client({url!r}, program="{method}", linger_s=30)

        def work(n):
            client.emit("custom.worked", data={{"n": n}})

        if __name__ == "__main__":
            client.emit("custom.worked", data={{"n": 0}})
            context = multiprocessing.get_context("{method}")
            children = [context.Process(target=work, args=(n,)) for n in (1, 2)]
            for child in children:
                child.start()
            for child in children:
                child.join()
    """
    run(tmp_path, program)
    until(running, lambda all_: numbers([e for e in all_ if e.data.get("program") == method]) == Counter([0, 1, 2]))


def test_a_signal_handler_that_logs_in_the_middle_of_it_does_not_stand_still(url: str, tmp_path: Path) -> None:
    program = f"""
        import logging, signal
        from linewarden_client import Client, Handler
        client = Client({url!r}, program="signalled")
        logging.basicConfig(level=logging.INFO, handlers=[Handler(client)])
        count = 0
        def ring(*_):
            global count
            count += 1
            client.emit("custom.rung")
        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        for n in range(3000):
            client.emit("custom.steady")
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert count
        assert client.close(60)
        assert client.stats() == (0, 3000 + count, 0, None), (count, client.stats())
    """
    run(tmp_path, program)


def test_an_event_after_close_is_lost_and_counted_and_nothing_raises(url: str) -> None:
    client = Client(url)
    assert client.close()
    client.emit("custom.late")
    assert client.close()
    assert client.stats().lost == 1
