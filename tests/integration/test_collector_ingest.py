"""POST /v1/batches on a real PostgreSQL: what is stored, what is acknowledged, what is refused.

Answers the lack that no peer has an idempotent ingest (shared list "None of them has", 4), and fluent-bit's and
rsyslog's duplicates after a kill.
"""

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import zstandard

from agent.wire.batch import assemble, read_frame, read_frames
from collector.store import batches
from tests.collector_process import Chain, Collector, event, events_of, now_us, poll_until, post
from tests.postgres import Postgres, connected


class Agent:
    """An agent with a key of its own, and somebody who may read."""

    def __init__(self, collector: Collector) -> None:
        self.collector = collector
        self.chain = Chain()
        self.client = collector.client(collector.key("agent"))

    def messages(self, reader: httpx.Client) -> list[str]:
        return [e["message"] for e in events_of(reader, agent=self.chain.agent, order="asc")]


@pytest.fixture(scope="module")
def reader(collector: Collector) -> Any:
    with collector.client(collector.key("viewer")) as client:
        yield client


@pytest.fixture
def agent(collector: Collector) -> Any:
    made = Agent(collector)
    yield made
    made.client.close()


def test_batches_are_stored_in_order_and_acknowledged_up_to_the_last(agent: Agent, reader: httpx.Client) -> None:
    answer = post(agent.client, agent.chain.batch("a", "b"), agent.chain.batch("c"))
    assert answer.status_code == 200
    body = answer.json()
    assert body["acked"] == [{"buffer": agent.chain.buffer, "lane": 1, "no": 2}]
    assert (body["events"], body["duplicates"]) == (3, 0)
    assert agent.messages(reader) == ["a", "b", "c"]


def test_the_same_request_again_is_acknowledged_and_not_stored(agent: Agent, reader: httpx.Client) -> None:
    batches = [agent.chain.batch("a"), agent.chain.batch("b")]
    post(agent.client, *batches)
    again = post(agent.client, *batches).json()
    assert (again["events"], again["duplicates"]) == (0, 2)
    assert again["acked"] == [{"buffer": agent.chain.buffer, "lane": 1, "no": 2}]
    assert agent.messages(reader) == ["a", "b"]


def test_a_request_that_overlaps_the_one_before_stores_only_what_is_new(agent: Agent, reader: httpx.Client) -> None:
    first, second, third = (agent.chain.batch(text) for text in "abc")
    post(agent.client, first, second)
    answer = post(agent.client, first, second, third).json()
    assert (answer["events"], answer["duplicates"]) == (1, 2)
    assert agent.messages(reader) == ["a", "b", "c"]


def test_a_batch_that_comes_twice_in_one_request_is_stored_once(agent: Agent, reader: httpx.Client) -> None:
    first = agent.chain.batch("a")
    answer = post(agent.client, first, first, agent.chain.batch("b")).json()
    assert (answer["events"], answer["duplicates"]) == (2, 1)
    assert agent.messages(reader) == ["a", "b"]


def test_a_missing_batch_is_named_and_nothing_of_the_request_is_stored(agent: Agent, reader: httpx.Client) -> None:
    first = agent.chain.batch("a")
    agent.chain.batch("lost on the way")
    third = agent.chain.batch("c")
    answer = post(agent.client, first, third)
    assert answer.status_code == 409
    assert answer.headers["content-type"].startswith("application/problem+json")
    problem = answer.json()
    assert problem["code"] == "missing"
    assert (problem["no"], problem["expected"], problem["lane"], problem["buffer"]) == (3, 2, 1, agent.chain.buffer)
    assert problem["head_hash"] == first.hash
    assert agent.messages(reader) == []


def test_the_first_batch_of_a_stream_has_number_one(agent: Agent) -> None:
    agent.chain.batch("never sent")
    problem = post(agent.client, agent.chain.batch("b")).json()
    assert (problem["code"], problem["expected"], problem["head_hash"]) == ("missing", 1, "0" * 64)


def test_another_batch_under_a_stored_number_is_a_fork_and_told_once(agent: Agent, reader: httpx.Client) -> None:
    twin = agent.chain.twin()
    post(agent.client, agent.chain.batch("mine"), agent.chain.batch("mine too"))
    other = twin.batch("not mine")
    for _ in range(3):
        answer = post(agent.client, other)
        assert answer.status_code == 409
        problem = answer.json()
        assert (problem["code"], problem["no"], problem["expected"], problem["head_hash"]) == (
            "forked",
            1,
            3,
            agent.chain.hash,
        )
    told = events_of(reader, type="security.chain.forked", target=agent.chain.agent)
    assert len(told) == 1
    assert told[0]["severity"] == 5
    assert told[0]["data"]["hash"] == other.hash
    assert told[0]["agent_id"] == str(UUID(int=0))
    assert agent.messages(reader) == ["mine", "mine too"]


def test_a_next_batch_that_names_another_before_it_is_a_fork(agent: Agent, reader: httpx.Client) -> None:
    twin = agent.chain.twin()
    post(agent.client, agent.chain.batch("mine"))
    twin.batch("never sent")
    problem = post(agent.client, twin.batch("on top of it")).json()
    assert (problem["code"], problem["no"], problem["expected"]) == ("forked", 2, 2)
    assert len(events_of(reader, type="security.chain.forked", target=agent.chain.agent)) == 1


def test_the_centres_own_events_have_evidence_like_any_other(agent: Agent, reader: httpx.Client) -> None:
    twin = agent.chain.twin()
    post(agent.client, agent.chain.batch("mine"))
    post(agent.client, twin.batch("not mine"))
    (told,) = events_of(reader, type="security.chain.forked", target=agent.chain.agent)
    found = reader.get(f"/v1/events/{told['event_id']}").json()
    assert found["event"] == told
    assert found["evidence"]["frame"] == "whole"


def test_a_gap_moves_the_head_and_the_next_batch_fits_behind_it(agent: Agent, reader: httpx.Client) -> None:
    post(agent.client, agent.chain.batch("a"))
    gap = agent.chain.seal([_gap_event(17)], gap=5, last="e" * 64)
    after = agent.chain.batch("z")
    answer = post(agent.client, gap, after).json()
    assert answer["acked"] == [{"buffer": agent.chain.buffer, "lane": 1, "no": 7}]
    assert [e["type"] for e in events_of(reader, agent=agent.chain.agent, order="asc")] == [
        "log.line",
        "collection.gap",
        "log.line",
    ]
    assert post(agent.client, gap, after).json()["duplicates"] == 2


async def test_gap_events_are_kept_in_gaps_with_count_and_reason(agent: Agent) -> None:
    post(agent.client, agent.chain.seal([_gap_event(17)], gap=3), agent.chain.seal([_gap_event(None), event("x")]))
    async with connected(agent.collector.dsn) as connection:
        rows = await connection.fetch(
            "SELECT batch_no, through, lost, reason, source FROM gaps WHERE agent_id = $1::uuid ORDER BY batch_id",
            agent.chain.agent,
        )
    assert [tuple(row) for row in rows] == [(1, 3, 17, "disk full", "buffer"), (4, None, None, "disk full", "buffer")]


def test_a_gap_that_begins_at_a_stored_batch_is_asked_to_begin_behind_it(agent: Agent) -> None:
    # The agent gave batch 2 up while the request with it was on its way, and it came through after all.
    twin = agent.chain.twin()
    post(agent.client, agent.chain.batch("a"), agent.chain.batch("b"))
    twin.batch("a")
    twin.no, twin.hash = 1, agent.chain.hash
    problem = post(agent.client, twin.seal([_gap_event(3)], gap=3)).json()
    assert (problem["code"], problem["no"], problem["expected"], problem["head_hash"]) == (
        "missing",
        2,
        3,
        agent.chain.hash,
    )


def test_a_batch_that_was_declared_lost_and_comes_late_is_refused_without_alarm(
    agent: Agent, reader: httpx.Client
) -> None:
    late = agent.chain.twin()
    first, second = late.batch("late"), late.batch("late too")
    post(agent.client, agent.chain.seal([_gap_event(2)], gap=2, last=second.hash))
    for batch in (first, second):
        problem = post(agent.client, batch).json()
        assert (problem["code"], problem["expected"]) == ("missing", 3)
    assert events_of(reader, type="security.chain.forked", target=agent.chain.agent) == []


def test_a_batch_that_contradicts_a_declared_gap_is_a_fork(agent: Agent) -> None:
    late = agent.chain.twin()
    late.batch("late")
    second = late.batch("late too")
    post(agent.client, agent.chain.seal([_gap_event(2)], gap=2, last="a" * 64))
    assert post(agent.client, second).json()["code"] == "forked"


def test_lanes_and_buffers_are_streams_of_their_own(agent: Agent, reader: httpx.Client) -> None:
    urgent = Chain(agent.chain.agent, buffer=agent.chain.buffer, lane=0)
    other = Chain(agent.chain.agent)
    answer = post(agent.client, urgent.batch("u"), agent.chain.batch("a"), other.batch("o"))
    assert answer.status_code == 200
    assert len(answer.json()["acked"]) == 3
    assert sorted(agent.messages(reader)) == ["a", "o", "u"]


def test_eight_replays_at_once_are_stored_once(agent: Agent, reader: httpx.Client) -> None:
    batches = [agent.chain.batch(*(f"{n}.{i}" for i in range(50))) for n in range(10)]
    barrier = threading.Barrier(8)

    def send(_: int) -> dict[str, Any]:
        with httpx.Client(
            base_url=agent.collector.url, headers=agent.client.headers, timeout=60, trust_env=False
        ) as client:
            barrier.wait()
            answer = post(client, *batches)
            assert answer.status_code == 200, answer.text
            return dict(answer.json())

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(8)))
    assert sum(a["events"] for a in answers) == 500
    assert agent.messages(reader) == [f"{n}.{i}" for n in range(10) for i in range(50)]


def test_a_compressed_body_is_taken(agent: Agent, reader: httpx.Client) -> None:
    body = zstandard.compress(b"".join(agent.chain.batch(text).frame for text in "abc"))
    answer = agent.client.post("/v1/batches", content=body, headers={"Content-Encoding": "zstd"})
    assert answer.status_code == 200
    assert agent.messages(reader) == ["a", "b", "c"]


def test_a_decompression_bomb_is_413_within_bounded_memory(agent: Agent) -> None:
    bomb = zstandard.compress(bytes(3_000_000_000 // 8))
    assert len(bomb) < 100_000
    before = _rss_bytes(agent.collector.pid)
    answer = agent.client.post("/v1/batches", content=bomb, headers={"Content-Encoding": "zstd"})
    assert answer.status_code == 413
    assert answer.json()["code"] == "toolarge"
    assert _rss_bytes(agent.collector.pid) - before < 100_000_000


def test_frames_that_open_to_too_much_are_413_before_they_are_opened(agent: Agent) -> None:
    lines = [b'{"time":1,"observed":1,"type":"log.line","severity":1,"message":"' + b"x" * 4_100_000 + b'"}']
    frames = b"".join(agent.chain.seal_lines(lines, [b""]).frame for _ in range(70))
    answer = agent.client.post("/v1/batches", content=frames)
    assert answer.status_code == 413


def test_a_body_that_is_too_long_is_413(agent: Agent) -> None:
    answer = agent.client.post("/v1/batches", content=bytes(17 * 1024 * 1024))
    assert answer.status_code == 413


def test_a_megabyte_of_batches_is_taken_in_one_request(agent: Agent, reader: httpx.Client) -> None:
    rows = [event(f"{n}", data={"noise": "".join(uuid4().hex for _ in range(5))}) for n in range(12_000)]
    batches = [agent.chain.seal(rows[at : at + 1500]) for at in range(0, len(rows), 1500)]
    assert sum(len(b.frame) for b in batches) > 1_000_000
    assert post(agent.client, *batches).json()["events"] == 12_000
    assert agent.messages(reader) == [str(n) for n in range(12_000)]


def test_a_bad_frame_is_named_by_index_and_offset(agent: Agent, reader: httpx.Client) -> None:
    first, second = agent.chain.batch("a"), agent.chain.batch("b")
    damaged = bytearray(second.frame)
    damaged[40] ^= 1
    answer = agent.client.post("/v1/batches", content=first.frame + bytes(damaged))
    assert answer.status_code == 422
    problem = answer.json()
    assert (problem["code"], problem["frame"], problem["offset"]) == ("malformed", 1, len(first.frame))
    assert agent.messages(reader) == []


def test_a_frame_whose_lines_are_not_what_its_header_says_is_named_and_nothing_is_stored(
    agent: Agent, reader: httpx.Client
) -> None:
    first, second = agent.chain.batch("a"), agent.chain.batch("b")
    frame = read_frame(second.frame)
    forged = assemble(frame.header_bytes, read_frame(first.frame).core_z, b"")
    answer = agent.client.post("/v1/batches", content=first.frame + forged)
    assert answer.status_code == 422
    problem = answer.json()
    assert (problem["frame"], problem["buffer"], problem["lane"], problem["no"]) == (1, agent.chain.buffer, 1, 2)
    assert agent.messages(reader) == []


@pytest.mark.parametrize("body", [b"x", b"LWB", b"LWB\x02" + bytes(100), b"{}", bytes(1000)])
def test_garbage_is_422_with_a_reason(agent: Agent, body: bytes) -> None:
    answer = agent.client.post("/v1/batches", content=body)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("frame 0: ")
    assert "Traceback" not in answer.text


def test_an_empty_request_notes_that_the_agent_is_alive(agent: Agent, reader: httpx.Client) -> None:
    assert agent.client.post("/v1/batches").status_code == 422  # nobody yet
    post(agent.client, agent.chain.batch("a"))
    answer = agent.client.post(
        "/v1/batches", headers={"Linewarden-Status": '{"events":7}', "Linewarden-Version": "9.9"}
    )
    assert answer.json()["acked"] == []
    (known,) = [a for a in reader.get("/v1/agents").json()["agents"] if a["agent_id"] == agent.chain.agent]
    assert (known["status"], known["version"], known["events"]) == ({"events": 7}, "9.9", 1)


def test_clock_offset_is_noted_and_nonsense_in_the_courtesy_headers_is_left_out(
    agent: Agent, reader: httpx.Client
) -> None:
    def known() -> dict[str, Any]:
        (found,) = [a for a in reader.get("/v1/agents").json()["agents"] if a["agent_id"] == agent.chain.agent]
        return dict(found)

    post(agent.client, agent.chain.batch("a"), **{"Linewarden-Agent-Time": "1000000"})
    assert known()["clock_offset_us"] < -1_000_000_000_000_000
    odd = {"Linewarden-Agent-Time": "1e9", "Linewarden-Status": '{"a":"\\u0000"}', "Linewarden-Version": "v" * 500}
    assert post(agent.client, agent.chain.batch("b"), **odd).status_code == 200
    assert (known()["status"], known()["version"]) == (None, None)


def test_frames_of_two_agents_in_one_request_are_refused(agent: Agent) -> None:
    answer = post(agent.client, agent.chain.batch("a"), Chain().batch("b"))
    assert answer.status_code == 422
    assert answer.json()["frame"] == 1


def test_a_key_belongs_to_the_first_agent_that_uses_it(agent: Agent, reader: httpx.Client) -> None:
    post(agent.client, agent.chain.batch("a"))
    stranger = Chain()
    answer = post(agent.client, stranger.batch("b"))
    assert answer.status_code == 403
    assert stranger.agent in answer.json()["detail"]
    assert events_of(reader, agent=stranger.agent) == []


def test_nobody_may_send_as_the_centre(agent: Agent) -> None:
    assert post(agent.client, Chain("00000000-0000-0000-0000-000000000000").batch("a")).status_code == 403


def test_an_agent_id_written_oddly_is_refused(agent: Agent) -> None:
    plain = agent.chain.agent.replace("-", "")
    assert (
        post(
            agent.client, Chain(plain[:2] + "-" + plain[2:5] + "-" + plain[5:9] + "-" + plain[9:] + "-").batch("a")
        ).status_code
        == 422
    )


def test_an_unknown_content_encoding_is_415(agent: Agent) -> None:
    assert agent.client.post("/v1/batches", content=b"x", headers={"Content-Encoding": "br"}).status_code == 415


# What an event can say and PostgreSQL cannot hold


def _line(data: bytes, **more: str) -> bytes:
    extra = "".join(f',"{key}":"{value}"' for key, value in more.items()).encode()
    return b'{"time":%d,"observed":1700000000000000,"type":"log.line","severity":1%s,"data":%s}' % (
        1_760_000_000_000_000,
        extra,
        data,
    )


ODD = {
    "a NUL in a value": rb'{"a":"x\u0000y"}',
    "a NUL in a key": rb'{"x\u0000y":1}',
    "a number beyond numeric": b'{"a":1e999999}',
    "a number of very many digits": b'{"a":' + b"9" * 200_000 + b"}",
    "a very small number": b'{"a":1e-999999}',
    "deep nesting": b'{"a":' + b"[" * 900 + b"]" * 900 + b"}",
    "an escaped backslash before u0000": rb'{"a":"\\u0000"}',
    "the same key twice": b'{"a":1,"a":2}',
    "an emoji in escapes": rb'{"a":"\ud83d\ude00"}',
}


@pytest.mark.parametrize("data", ODD.values(), ids=ODD.keys())
def test_data_that_jsonb_refuses_is_stored_all_the_same(agent: Agent, reader: httpx.Client, data: bytes) -> None:
    batch = agent.chain.seal_lines([_line(b'{"plain":1}'), _line(data), _line(b'{"plain":2}')], [b"", b"", b""])
    answer = post(agent.client, batch)
    assert answer.status_code == 200, answer.text
    raw = reader.get("/v1/events", params={"agent": agent.chain.agent, "order": "asc"})
    assert raw.status_code == 200
    found = events_of(reader, agent=agent.chain.agent, data='{"plain":2}')
    assert len(found) == 1
    assert reader.get(f"/v1/events/{agent.chain.identity(1, 1)}").json()["evidence"]["frame"] == "whole"
    assert post(agent.client, batch).json()["duplicates"] == 3


def test_data_with_bytes_that_are_no_utf8_is_stored_all_the_same(agent: Agent, reader: httpx.Client) -> None:
    post(agent.client, agent.chain.seal_lines([_line(b'{"a":"\xff\xfe"}')], [b""]))
    (found,) = events_of(reader, agent=agent.chain.agent)
    assert "\\xff\\xfe" in str(found["data"]) or found["data"]


def test_nul_in_text_becomes_its_picture(collector: Collector, agent: Agent) -> None:
    strange = event("a\0b", actor="bob\0", raw="\0line", src_ip="\0", data={"user": "x\0y"})
    assert post(agent.client, agent.chain.seal([strange])).status_code == 200
    with collector.client(collector.key("analyst")) as analyst:
        (found,) = events_of(analyst, agent=agent.chain.agent, personal="true")
    assert (found["message"], found["actor"], found["raw"]) == ("a\u2400b", "bob\u2400", "\u2400line")
    assert found["personal"] == {"user": "x\0y"}


US_PER_DAY = 86_400_000_000
CLOCKS = {
    "1970": (0, "ancient"),
    "before Christ": (-(2**61), "range"),
    "the largest number": (2**63 - 1, "range"),
    "the smallest number": (-(2**63), "range"),
    "ten years behind": (-3_700 * US_PER_DAY, "ancient"),
    "ten years ahead": (3_700 * US_PER_DAY, "future"),
    "an hour ahead": (3_600_000_000, None),
    "a month behind": (-30 * US_PER_DAY, None),
}


@pytest.mark.parametrize(("offset", "flag"), CLOCKS.values(), ids=CLOCKS.keys())
def test_an_absurd_clock_is_kept_and_flagged(agent: Agent, reader: httpx.Client, offset: int, flag: str | None) -> None:
    claimed = offset if flag == "range" or offset == 0 else now_us() + offset
    assert post(agent.client, agent.chain.seal([event("x", time=claimed, observed=claimed)])).status_code == 200
    (found,) = events_of(reader, agent=agent.chain.agent)
    assert found["time_flag"] == flag
    if flag is None:
        assert found["time_claimed"] is None
    else:
        assert found["time_claimed"] == claimed
        assert found["time"] == found["received"]


def test_a_time_beyond_64_bits_is_kept_as_far_as_it_goes(agent: Agent, reader: httpx.Client) -> None:
    line = b'{"time":%d,"observed":1,"type":"log.line","severity":1}' % 2**70
    assert post(agent.client, agent.chain.seal_lines([line], [b""])).status_code == 200
    (found,) = events_of(reader, agent=agent.chain.agent)
    assert (found["time_flag"], found["time_claimed"]) == ("range", 2**63 - 1)


# Failures


def test_postgresql_away_is_503_with_retry_after_and_works_again_when_it_is_back(own_postgres: Postgres) -> None:
    with Collector(own_postgres.create_database("lw")) as collector:
        agent, reader = Agent(collector), collector.client(collector.key("viewer"))
        post(agent.client, agent.chain.batch("a"))
        batch = agent.chain.batch("b")
        own_postgres.kill9()
        answer = post(agent.client, batch)
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert "Traceback" not in answer.text
        assert reader.get("/healthz").status_code == 503
        own_postgres.restart()
        assert post(agent.client, batch).status_code == 200
        assert agent.messages(reader) == ["a", "b"]
        assert reader.get("/healthz").status_code == 200
        agent.client.close()
        reader.close()


def test_a_collector_stops_in_time_while_its_database_does_not_answer(own_postgres: Postgres) -> None:
    """asyncpg#873, #1265: a statement that is cancelled waits for the server's word that it is."""
    with Collector(own_postgres.create_database("lw"), ALERTS__LOOK_S="0.1") as collector:
        with own_postgres.stalled():
            # So long that something waits for an answer.
            time.sleep(3)
            began = time.monotonic()
            assert collector.stop() == 0
            assert time.monotonic() - began < 20
        assert "Traceback" not in collector.log


def test_a_collector_that_starts_before_its_database_waits_for_it(own_postgres: Postgres) -> None:
    address = own_postgres.create_database("lw")
    own_postgres.stop()
    collector = Collector(address).start(ready=False)
    try:
        with collector.client("lw_x_y") as client:
            assert post(client, Chain().batch("a")).status_code == 503
            assert client.get("/healthz").status_code == 503
        own_postgres.start()
        poll_until(lambda: httpx.get(f"{collector.url}/readyz", trust_env=False).status_code == 200, within_s=40)
    finally:
        collector.stop()


def test_kill_9_of_postgresql_and_collector_in_the_middle_stores_each_event_once(own_postgres: Postgres) -> None:
    """The agent asks again until it is answered, as sync does; at the end each event is there once, in order."""
    rng = random.Random(7)
    with Collector(own_postgres.create_database("lw")) as collector:
        agent = Agent(collector)
        reader = collector.client(collector.key("viewer"))
        batches = [agent.chain.batch(*(f"{n}.{i}" for i in range(200))) for n in range(60)]
        stop = threading.Event()

        def kill() -> None:
            for number in range(6):
                if stop.wait(rng.uniform(0.05, 0.4)):
                    return
                if number % 2:
                    collector.kill9()
                    collector.start(ready=False)
                else:
                    own_postgres.kill9()
                    own_postgres.restart()

        killer = threading.Thread(target=kill)
        killer.start()
        at, deadline = 0, time.monotonic() + 120
        while at < len(batches):
            assert time.monotonic() < deadline, collector.log[-2000:]
            try:
                answer = post(agent.client, *batches[at : at + 3])
            except httpx.HTTPError:
                time.sleep(0.05)
                continue
            if answer.status_code == 200:
                at += 3
            else:
                assert answer.status_code == 503, answer.text
                time.sleep(0.05)
        stop.set()
        killer.join()
        own_postgres.restart()
        assert post(agent.client, *batches).json()["duplicates"] == 12_000
        assert agent.messages(reader) == [f"{n}.{i}" for n in range(60) for i in range(200)]
        agent.client.close()
        reader.close()


def test_requests_beyond_the_bytes_held_together_are_503_at_once(dsn: str) -> None:
    with Collector(dsn, SERVER__BODIES_BYTES_MAX="65536") as collector:
        agent = Agent(collector)
        frame = agent.chain.batch("slow").frame
        started, release = threading.Event(), threading.Event()

        def slow_body() -> Iterator[bytes]:
            yield frame + bytes(60_000)
            started.set()
            release.wait(20)
            yield b""

        with ThreadPoolExecutor(1) as pool, collector.client(collector.key("agent")) as other:
            slow = pool.submit(agent.client.post, "/v1/batches", content=slow_body())
            try:
                started.wait(20)

                def busy() -> bool:
                    answer = other.post("/v1/batches", content=bytes(10_000))
                    return (
                        answer.status_code == 503
                        and answer.json()["code"] == "busy"
                        and "Retry-After" in answer.headers
                    )

                poll_until(busy, within_s=10)
            finally:
                release.set()
            assert slow.result().status_code == 422
            assert post(other, Chain().batch("now there is room")).status_code == 200
        agent.client.close()


def test_a_slow_request_does_not_keep_others_waiting(dsn: str) -> None:
    with Collector(dsn, SERVER__CONCURRENT_MAX="1", SERVER__BODY_S_MAX="3") as collector:
        agent = Agent(collector)
        body = agent.chain.batch("slow").frame
        started, release = threading.Event(), threading.Event()

        def slow_body() -> Iterator[bytes]:
            yield body[:10]
            started.set()
            release.wait(20)
            yield body[10:]

        with ThreadPoolExecutor(1) as pool, collector.client(collector.key("agent")) as other:
            slow = pool.submit(agent.client.post, "/v1/batches", content=slow_body())
            started.wait(20)
            assert post(other, Chain().batch("quick")).status_code == 200
            assert not slow.done()
            with collector.client(collector.key("viewer")) as viewer:
                metrics = poll_until(lambda: "".join(_slow(viewer)), within_s=10)
            release.set()
            assert metrics
            # The answer may come while the body is still being sent, and the connection end with it.
            with suppress(httpx.TransportError):
                assert slow.result().status_code == 408
        agent.client.close()


def _slow(client: httpx.Client) -> list[str]:
    return [
        line
        for line in client.get("/metrics").text.splitlines()
        if line == 'linewarden_collector_requests_total{outcome="slow"} 1'
    ]


def _gap_event(lost: int | None) -> Any:
    return event(
        "events were lost", type="collection.gap", source="buffer", data={"reason": "disk full", "events": lost}
    )


def _rss_bytes(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * 4096


def test_one_agent_invents_neither_streams_nor_forks_without_end(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the database, with bounds that are reached quickly."""
    monkeypatch.setattr(batches, "STREAMS_MAX", 4)
    monkeypatch.setattr(batches, "FORKS_A_DAY_MAX", 3)
    agent = str(uuid4())

    async def run() -> list[bool]:
        async with connected(collector.dsn) as connection, connection.transaction():
            transaction = batches.Transaction(connection, UUID(agent))  # type: ignore[arg-type]
            await transaction.lock_heads({(uuid4(), lane) for lane in (0, 1)})
            await transaction.lock_heads({(uuid4(), lane) for lane in (0, 1)})
            with pytest.raises(batches.TooManyStreams):
                await transaction.lock_heads({(uuid4(), 0)})
            chain = Chain(agent)
            frames = [next(read_frames(chain.twin().batch(f"twin {n}").frame)) for n in range(5)]
            return [await transaction.note_fork(UUID(agent), frame, "0" * 64) for frame in frames]

    assert asyncio.run(run()) == [True, True, True, False, False]


def test_a_correlation_id_too_long_for_an_index_stops_no_agent(agent: Agent, reader: httpx.Client) -> None:
    long = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=100_000))
    assert post(agent.client, agent.chain.seal([event(correlation_id=long), event("beside")])).status_code == 200
    found = {one["message"]: one["correlation_id"] for one in events_of(reader, agent=agent.chain.agent)}
    assert found == {"hello": long[:500], "beside": None}
