"""The intake without a daemon: what it understands, what it refuses and how it says so, and that every answer is true."""

import asyncio
import gzip
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.component import Cursor, Report
from agent.health_http import Address, HttpServer, Limits, Refused, Request
from agent.parsers.base import Context
from agent.parsers.json import JsonConfig, WinstonParser
from agent.sources import intake, intake_read
from agent.sources.intake import IntakeConfig, IntakeSource, Program
from agent.sources.intake_read import Reader
from agent.wire.batch import encode_lines
from agent.wire.event import EVENT_BYTES_MAX, Event
from tests.posting import Answer, Poster

KEY = "correct-horse-battery"


def read(body: Any, *, lines: bool = False, program: str = "") -> list[Event]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reader("apps").events(data, lines=lines, program=program)


def refusal(body: Any, *, lines: bool = False) -> Refused:
    with pytest.raises(Refused) as caught:
        read(body, lines=lines)
    return caught.value


def paths(body: Any) -> list[str]:
    refused = refusal(body)
    assert refused.status == 422
    return [each["path"] for each in refused.members["errors"]]


# ── what is understood ───────────────────────────────────────────────────────────────────────────────────────────────


def test_every_field_of_the_contract_arrives_as_it_was_sent() -> None:
    event = read(
        {
            "time": "2026-03-01T10:00:00.5Z", "type": "data.exported", "severity": "critical", "message": "a report was exported",
            "actor": "anna", "src_ip": "10.1.2.3", "target": "report 7", "outcome": "success", "correlation_id": "c-1",
            "raw": "anna exported report 7", "data": {"rows": 12, "user_id": "u7"},
        }
    )[0]  # fmt: skip
    assert event.time == 1_772_359_200_500_000
    assert (event.type, event.severity, event.message) == ("data.exported", 5, "a report was exported")
    assert (event.actor, event.src_ip, event.target, event.outcome) == ("anna", "10.1.2.3", "report 7", "success")
    assert (event.correlation_id, event.raw, event.source) == ("c-1", "anna exported report 7", "apps")
    assert event.data == {"rows": 12, "user_id": "u7"}


@pytest.mark.parametrize(
    ("given_", "us"),
    [
        (1_772_359_200, 1_772_359_200_000_000),
        (1_772_359_200.25, 1_772_359_200_250_000),
        (1_772_359_200_250, 1_772_359_200_250_000),
        (1_772_359_200_250_125, 1_772_359_200_250_125),
        (1_772_359_200_250_125_999, 1_772_359_200_250_126),
        ("2026-03-01T11:00:00+01:00", 1_772_359_200_000_000),
        ("2026-03-01 10:00:00,250Z", 1_772_359_200_250_000),
    ],
)
def test_a_time_is_iso_or_a_number_since_1970_in_whatever_unit(given_: Any, us: int) -> None:
    assert read({"type": "application", "time": given_})[0].time == us


def test_an_event_without_time_or_severity_gets_now_and_what_its_type_and_outcome_say() -> None:
    event = read({"type": "authentication.login", "outcome": "failed", "severity": None})[0]
    assert event.time == event.observed
    assert (event.outcome, event.severity) == ("failure", 3)


@pytest.mark.parametrize(("word", "number"), [("Informational", 1), ("warning", 2), ("error", 3), ("high", 4), (6, 6)])
def test_a_severity_is_a_number_or_a_word_of_ours_or_of_log_levels(word: Any, number: int) -> None:
    assert read({"type": "application", "severity": word})[0].severity == number


def test_a_type_of_the_program_s_own_is_kept_and_judged_as_its_nearest_ancestor() -> None:
    assert [event.severity for event in read([{"type": "equipment.fault.gripper"}, {"type": "hmi.recipe.chosen"}])] == [
        4,
        1,
    ]


def test_personal_keys_deep_in_data_are_set_apart_so_that_they_can_be_erased() -> None:
    event = read({"type": "data.read", "data": {"request": {"user": "anna", "page": 1}, "person": {"x": 1}}})[0]
    assert event.data == {"request": {"page": 1}, "person": {"x": 1, "request.user": "anna"}}
    core, personal = encode_lines([event])
    assert b"anna" not in core[0]
    assert b"anna" in personal[0]


@pytest.mark.parametrize(
    "body",
    [
        b'[{"type":"a"},{"type":"b"}]',
        b'{"type":"a"}\n{"type":"b"}',
        b'{"type":"a"}\r\n\r\n{"type":"b"}\r\n',
        b'\xef\xbb\xbf[{"type":"a"},\n {"type":"b"}]',
        b'[\n  {"type": "a"},\n  {"type": "b"}\n]\n',
    ],
)
def test_an_array_and_lines_are_understood_where_only_json_is_said(body: bytes) -> None:
    assert [event.type for event in read(body)] == ["a", "b"]


def test_a_single_object_and_ndjson_are_understood() -> None:
    assert [event.type for event in read(b'{\n"type":"a"\n}')] == ["a"]
    assert [event.type for event in read(b'{"type":"a"}\n\n{"type":"b"}\n', lines=True)] == ["a", "b"]
    assert read(b"[]") == []


# What winston 3.19's Http transport sent: one record, with `batch: true` a list of them; and what winston 2 sent.
WINSTON = (
    b'{"correlationId":"c-9","level":"warn","message":"order %s late for %s","meta":{"user":"anna","line":"L1"},'
    b'"splat":["A7","anna"],"timestamp":"2026-03-01T10:00:00.123Z"}'
)
WINSTON_2 = b'{"method":"collect","params":{"level":"warn","message":"late","meta":{"line":"L1"}}}'


def test_what_winston_posts_is_read_as_its_files_are() -> None:
    posted = read(WINSTON)[0]
    parser = WinstonParser(JsonConfig(), Context("apps"))
    (tailed,), _ = parser.parse(
        [WINSTON.decode()], observed_us=posted.observed, reference_us=posted.observed, memory={}
    )
    assert posted == tailed
    assert (posted.severity, posted.correlation_id, posted.actor) == (2, "c-9", "anna")
    assert (posted.message, posted.raw) == ("order %s late for %s", "order A7 late for anna")
    assert posted.data == {"level": "warn", "line": "L1", "person": {"splat": ["A7", "anna"]}}


def test_winston_s_batches_and_older_winstons_are_understood_beside_events() -> None:
    assert [event.raw for event in read(b"[" + WINSTON + b"," + WINSTON + b"]")] == ["order A7 late for anna"] * 2
    assert read(WINSTON_2)[0].data == {"level": "warn", "line": "L1"}
    assert [event.type for event in read(b'[{"type":"x"},' + WINSTON + b"]")] == ["x", "application"]


def test_a_log_record_is_never_refused() -> None:
    record = {"level": {"no": "level"}, "message": 7, "timestamp": "yesterday", "type": "alert.x", "\0": 10**30}
    event = read(record)[0]
    assert event.type == "application"
    assert event.data["message"] == 7


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("event", "path"),
    [
        ({}, "[1].type"),
        ({"type": "Not A Type"}, "[1].type"),
        ({"type": "a." + "b" * 200}, "[1].type"),
        ({"type": "alert.mine"}, "[1].type"),
        ({"type": "agent.stopped"}, "[1].type"),
        ({"type": "a", "severty": 3}, "[1].severty"),
        ({"type": "a", "source": "me"}, "[1].source"),
        ({"type": "a", "severity": 7}, "[1].severity"),
        ({"type": "a", "severity": True}, "[1].severity"),
        ({"type": "a", "severity": "loud"}, "[1].severity"),
        ({"type": "a", "time": "yesterday"}, "[1].time"),
        ({"type": "a", "time": -1}, "[1].time"),
        ({"type": "a", "time": True}, "[1].time"),
        ({"type": "a", "outcome": "maybe"}, "[1].outcome"),
        ({"type": "a", "src_ip": "host-7"}, "[1].src_ip"),
        ({"type": "a", "actor": 7}, "[1].actor"),
        ({"type": "a", "message": "x" * 8_001}, "[1].message"),
        ({"type": "a", "message": "a\0b"}, "[1].message"),
        ({"type": "a", "correlation_id": []}, "[1].correlation_id"),
        ({"type": "a", "data": [1]}, "[1].data"),
        ({"type": "a", "data": {str(n): n for n in range(201)}}, "[1].data"),
        ({"type": "a", "data": {"x": [{"y": "\0"}]}}, "[1].data.x[0].y"),
        ({"type": "a", "data": {"x": {"y": 2**64}}}, "[1].data.x.y"),
        ({"type": "a", "data": {"x": {"\0": 1}}}, "[1].data.x"),
        ({"type": "collection.gap", "data": {"events": -1, "reason": "full"}}, "[1].data.events"),
        (7, "[1]"),
        (None, "[1]"),
    ],
)
def test_an_error_is_named_by_its_path(event: Any, path: str) -> None:
    assert paths([{"type": "fine"}, event, {"type": "fine"}]) == [path]


def test_a_single_object_s_errors_have_no_index_in_their_path() -> None:
    assert paths({"type": "a", "severity": 9, "time": "x"}) == ["time", "severity"]
    assert paths(7) == [""]


def test_every_error_is_named_up_to_a_hundred_and_the_others_are_counted() -> None:
    refused = refusal([{"type": "a", "severity": 9}] * 250)
    errors = refused.members["errors"]
    assert len(errors) == 100
    assert [each["index"] for each in errors] == list(range(100))
    assert refused.members["errors_left_out"] == 150
    assert refused.detail == "250 errors; nothing of this request was taken"


def test_data_is_no_deeper_than_can_be_stored_as_it_is() -> None:
    def nested(levels: int) -> dict[str, Any]:
        inner: Any = 1
        for _ in range(levels):
            inner = {"k": inner}
        return {"type": "a", "data": inner}

    event = read(nested(12))[0]
    assert json.loads(msgspec.json.encode(event))["data"] == nested(12)["data"]
    assert paths(nested(14)) == ["data" + ".k" * 12]


def test_an_event_longer_than_can_be_stored_is_refused() -> None:
    long = {"type": "a", "data": {"x": "y" * EVENT_BYTES_MAX}}
    assert paths([{"type": "a"}, long]) == ["[1]"]


@pytest.mark.parametrize(
    "body",
    [b"", b" \n", b"{", b"[1,", b'{"type":"a"} x', b'"\xff"', b"[" * 100_000, b'{"type":NaN}',
     b'{"type":"a","data":{"n":1e999}}', b'{"type":"a","data":{"n":' + b"9" * 5_000 + b"}}", b"\x00", b'{"type":"a"}\n{'],
)  # fmt: skip
def test_what_is_no_json_is_refused(body: bytes) -> None:
    assert refusal(body).status == 400


def test_half_an_emoji_costs_neither_the_record_nor_its_neighbours() -> None:
    """What a program cut in the middle of a pair of surrogates, as winston posts it."""
    body = rb'[{"level":"info","message":"a\ud83d"},{"type":"a","message":"\ud83d\ude00 \\ud800 \uDC00"}]'
    record, event = Reader("apps").events(body, lines=False)
    assert record.raw == "a\\ud83d"
    assert event.message == "\U0001f600 \\ud800 \\uDC00"


def test_a_line_that_is_no_json_is_named_by_its_number() -> None:
    assert "line 3 " in refusal(b'{"type":"a"}\n\n{"type"\n{"type":"b"}', lines=True).detail


def test_more_events_than_a_request_may_have_are_413() -> None:
    assert refusal([{"type": "a"}] * (intake_read.EVENTS_MAX + 1)).status == 413


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
almost = st.fixed_dictionaries(
    {"type": st.sampled_from(["a", "a.b", "alert.x", "collection.gap"]) | json_values},
    optional=dict.fromkeys(("time", "severity", "message", "src_ip", "outcome", "data", "level", "meta"), json_values),
)


def fate(body: bytes, *, lines: bool = False) -> list[Event] | Refused:
    try:
        return read(body, lines=lines)
    except Refused as refused:
        return refused


@settings(max_examples=300)
@given(st.lists(almost | json_values, max_size=4) | almost | json_values)
def test_whatever_json_comes_becomes_events_that_can_be_stored_or_is_refused(value: Any) -> None:
    found = fate(json.dumps(value).encode())
    if isinstance(found, Refused):
        assert found.status in (400, 422)
        msgspec.json.encode(found.members)
    else:
        encode_lines(found)


@given(st.binary(max_size=200))
def test_whatever_bytes_come_are_read_or_refused(body: bytes) -> None:
    for lines in (False, True):
        found = fate(body, lines=lines)
        assert not isinstance(found, Refused) or found.status in (400, 422)


# ── the source, its commits done by hand ─────────────────────────────────────────────────────────────────────────────


class Station:
    """A source behind a server; batches are taken, and committed, when the test says so."""

    def __init__(self, cursor: Cursor | None = None, **options: Any) -> None:
        self.report = Report()
        self.source = IntakeSource("apps", IntakeConfig(**options), self.report)
        self.server = HttpServer((Address("127.0.0.1", 0),), Limits())
        for (method, path), route in self.source.routes().items():
            self.server.add(method, path, route)
        self.batches = self.source.batches(cursor)
        self.cursor = cursor
        self.posts: list[asyncio.Task[Answer]] = []

    async def taken(self) -> list[Event]:
        """The next batch; the one before it is durable by this."""
        async with asyncio.timeout(20):
            events, cursor = await anext(self.batches)
        self.cursor = cursor or self.cursor
        return events

    async def committed(self) -> None:
        """What was taken last is durable."""
        waiting = asyncio.ensure_future(self.taken())
        await asyncio.sleep(0)
        self.posts.append(waiting)  # type: ignore[arg-type]  # ended with the others

    def post(self, body: Any, **headers: str) -> asyncio.Task[Answer]:
        """Post it, from a thread of its own."""

        def work() -> Answer:
            with Poster(self.server.bound[0].port) as program:
                return program.post(body, **headers)

        task = asyncio.create_task(asyncio.to_thread(work))
        self.posts.append(task)
        return task

    async def until_waiting(self, count: int) -> None:
        """So many requests wait in the queue."""
        queue = self.source._queue
        assert queue is not None
        async with asyncio.timeout(20):
            while len(queue._posts) < count:  # noqa: ASYNC110  # polled
                await asyncio.sleep(0.005)


@asynccontextmanager
async def station(cursor: Cursor | None = None, **options: Any) -> AsyncIterator[Station]:
    made = Station(cursor, **options)
    await made.server.start()
    assert await made.taken() == []
    try:
        yield made
    finally:
        for task in made.posts:
            if not task.done():
                task.cancel()
        await asyncio.gather(*made.posts, return_exceptions=True)
        await made.batches.aclose()  # type: ignore[attr-defined]
        await made.server.close()


async def test_it_is_202_only_when_the_events_are_durable() -> None:
    async with station() as apps:
        answer = apps.post([{"type": "a"}, {"type": "b"}])
        assert [event.type for event in await apps.taken()] == ["a", "b"]
        await asyncio.sleep(0.2)
        assert not answer.done()
        await apps.committed()
        assert ((await answer).status, (await answer).json()) == (202, {"accepted": 2})


async def test_winston_s_transport_hears_the_200_that_it_waits_for() -> None:
    async with station() as apps:

        def work() -> Answer:
            with Poster(apps.server.bound[0].port) as program:
                return program.post(WINSTON, path=intake.PATH_WINSTON)

        answer = asyncio.create_task(asyncio.to_thread(work))
        apps.posts.append(answer)
        await apps.taken()
        await apps.committed()
        assert (await answer).status == 200


async def test_what_waits_for_longer_than_commit_s_max_is_taken_back_and_said_to_be() -> None:
    async with station(commit_s_max=0.3) as apps:
        first = apps.post({"type": "a"})
        assert len(await apps.taken()) == 1
        second = apps.post({"type": "b"})
        assert (await second).status == 503
        assert (await second).json()["taken"] is False
        assert (await second).headers["retry-after"] == "5"
        # The first is on its way to the disk, and nobody can take it back.
        assert (await first).status == 503
        assert (await first).json()["taken"] == "unknown"
        third = apps.post({"type": "c"})
        await apps.until_waiting(1)
        assert [event.type for event in await apps.taken()] == ["c"]
        await apps.committed()
        assert (await third).status == 202


async def test_a_commit_that_hangs_makes_new_requests_503_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "STALL_S", 0.05)
    async with station() as apps:
        first = apps.post({"type": "a"})
        await apps.taken()
        await asyncio.sleep(0.1)
        assert (await apps.post({"type": "b"})).status == 503
        await apps.committed()
        assert (await first).status == 202


async def test_a_full_queue_is_429_and_costs_those_that_wait_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "QUEUE_EVENTS_MAX", 3)
    async with station() as apps:
        first = apps.post({"type": "a"})
        await apps.taken()
        second = apps.post([{"type": "b"}] * 3)
        await apps.until_waiting(1)
        third = await apps.post({"type": "c"})
        assert (third.status, third.headers["retry-after"], third.json()["taken"]) == (429, "1", False)
        assert len(await apps.taken()) == 3
        await apps.committed()
        assert (await first).status == (await second).status == 202
    assert apps.report.counts == {"requests": 3, "refused_requests": 1, "deferred_requests": 1}


async def test_bodies_on_their_way_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "BODIES_BYTES_MAX", 1_000)
    async with station() as apps:
        reader, writer = await asyncio.open_connection("127.0.0.1", apps.server.bound[0].port)
        writer.write(
            b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n"
            + b" " * 800
        )
        async with asyncio.timeout(20):
            while not apps.source._arriving_bytes:  # noqa: ASYNC110  # polled
                await asyncio.sleep(0.005)
        large = {"type": "a", "data": {"x": "y" * 2_000}}
        assert (await apps.post(large)).status == 429
        writer.close()
        await writer.wait_closed()
        del reader
        # Alone, it may come.
        async with asyncio.timeout(20):
            while apps.source._arriving_bytes:  # noqa: ASYNC110  # polled
                await asyncio.sleep(0.005)
        alone = apps.post(large)
        assert len(await apps.taken()) == 1
        await apps.committed()
        assert (await alone).status == 202


async def test_the_same_key_is_one_event_while_it_is_stored_and_afterwards_and_after_a_restart() -> None:
    async with station() as apps:
        first = apps.post({"type": "a"}, Idempotency_Key="k")
        assert len(await apps.taken()) == 1
        again = apps.post({"type": "a"}, Idempotency_Key="k")
        other = apps.post({"type": "b"}, Idempotency_Key="other")
        await apps.until_waiting(1)
        assert [event.type for event in await apps.taken()] == ["b"]
        assert (await first).headers.get("idempotent-replayed") is None
        assert (await again).headers["idempotent-replayed"] == "true"
        await apps.committed()
        assert (await again).status == (await other).status == 202
        late = await apps.post(gzip.compress(b'{"type": "a"}'), Idempotency_Key="k", Content_Encoding="gzip")
        assert (late.status, late.json(), late.headers["idempotent-replayed"]) == (202, {"accepted": 1}, "true")
    async with station(apps.cursor) as restarted:
        assert (await restarted.post({"type": "a"}, Idempotency_Key="k")).headers["idempotent-replayed"] == "true"
        assert (await restarted.post({"type": "x"}, Idempotency_Key="k")).status == 422


async def test_an_attempt_whose_commit_was_slow_is_found_by_the_one_that_comes_again() -> None:
    async with station(commit_s_max=0.3) as apps:
        first = apps.post({"type": "a"}, Idempotency_Key="k")
        await apps.taken()
        assert (await first).json()["taken"] == "unknown"
        again = apps.post({"type": "a"}, Idempotency_Key="k")
        await asyncio.sleep(0.1)
        await apps.committed()
        assert (await again).status == 202
        assert apps.report.counts["repeated_requests"] == 1


async def test_a_key_that_was_taken_back_is_free_again() -> None:
    async with station(commit_s_max=0.3) as apps:
        blocking = apps.post({"type": "a"})
        await apps.taken()
        assert (await apps.post({"type": "b"}, Idempotency_Key="k")).json()["taken"] is False
        again = apps.post({"type": "b"}, Idempotency_Key="k")
        await apps.until_waiting(1)
        assert [event.type for event in await apps.taken()] == ["b"]
        await apps.committed()
        assert (await again).headers.get("idempotent-replayed") is None
        await blocking


def test_keys_are_bounded_and_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "KEYS_MAX", 3)
    monkeypatch.setattr(intake, "KEYS_KEPT_MAX", 2)

    async def fill() -> None:
        keys = intake.Keys()
        posts = [intake.Post([], 0, f"k{n}", "p") for n in range(5)]
        assert keys.cursor(posts) == {"keys": {"k3": [0, "p"], "k4": [0, "p"]}}
        keys.add(posts)
        assert [keys.find(f"k{n}") is not None for n in range(5)] == [False, False, True, True, True]
        assert keys.cursor([intake.Post([], 0, None, "")]) is None

    asyncio.run(fill())


async def test_when_it_ends_who_waits_hears_what_is_known() -> None:
    async with station() as apps:
        storing = apps.post({"type": "a"})
        await apps.taken()
        waiting = apps.post({"type": "b"})
        await apps.until_waiting(1)
        await apps.batches.aclose()  # type: ignore[attr-defined]
        assert (await storing).json()["taken"] == "unknown"
        assert (await waiting).json()["taken"] is False
        late = await apps.post({"type": "c"})
        assert (late.status, late.json()["taken"]) == (503, False)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content_Type": "text/plain"}, b'{"type":"a"}', 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, b'{"type":"a"}', 415),
        ({"Content_Type": "application/json; charset=latin-1"}, b'{"type":"a"}', 415),
        ({"Content_Encoding": "br"}, b'{"type":"a"}', 415),
        ({"Content_Encoding": "gzip"}, b'{"type":"a"}', 400),
        ({"Content_Encoding": "gzip"}, gzip.compress(b'{"type":"a"}')[:-3], 400),
        ({"Content_Encoding": "gzip"}, gzip.compress(b'{"type":"a"}') + b"x", 400),
        ({"Content_Encoding": "gzip"}, gzip.compress(bytes(200_000_000), 9), 413),
        ({}, b" " * 2_000_000, 413),
        ({"Origin": "https://evil.example"}, b'{"type":"a"}', 403),
        ({"Host": "evil.example"}, b'{"type":"a"}', 421),
        ({"Idempotency_Key": "a b"}, b'{"type":"a"}', 400),
        ({"Idempotency_Key": "k" * 257}, b'{"type":"a"}', 400),
        ({}, b'[{"type":"a"},{}]', 422),
    ],
)
async def test_each_refusal_has_its_status_and_takes_nothing(headers: dict[str, str], body: bytes, status: int) -> None:
    async with station() as apps:
        refused = await apps.post(body, **headers)
        assert refused.status == status, refused.body
        assert refused.headers["content-type"] == "application/problem+json"
        accepted = apps.post({"type": "only"})
        assert [event.type for event in await apps.taken()] == ["only"]
        await apps.committed()
        assert (await accepted).status == 202


async def test_a_post_without_a_body_is_411_and_other_methods_are_405() -> None:
    async with station() as apps:
        for request, status in (
            (b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\r\n", b"411"),
            (b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n", b"405"),
            (b"DELETE /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n", b"405"),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", apps.server.bound[0].port)
            writer.write(request)
            assert (await reader.readline()).split()[1] == status
            writer.close()
            await writer.wait_closed()


async def test_a_body_that_does_not_come_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "BODY_S_MAX", 0.2)
    async with station() as apps:
        reader, writer = await asyncio.open_connection("127.0.0.1", apps.server.bound[0].port)
        writer.write(
            b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        assert (await reader.readline()).split()[1] == b"408"
        writer.close()
        await writer.wait_closed()
        assert apps.source._arriving_bytes == 0


# ── who may ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_program_without_a_key_takes_no_name_of_one_that_has_one() -> None:
    async with station() as apps:
        apps.source.reserve(lambda: frozenset({"mes"}))
        claims = [{"type": "a", "data": {"program": "mes"}}, {"level": "info", "program": "mes"}]
        others = [{"type": "a", "data": {"program": "hmi"}}, {"type": "a", "data": {"program": ["mes"]}}, {"type": "a"}]
        posted = apps.post(claims + others)
        await apps.until_waiting(1)
        events = await apps.taken()
        assert [event.data.get("program_claimed") for event in events] == ["mes", "mes", None, None, None]
        assert [event.data.get("program") for event in events] == [None, None, "hmi", ["mes"], None]
        await apps.committed()
        assert (await posted).status == 202


async def test_each_program_has_its_key_and_its_name_stands_beside_its_events(tmp_path: Path) -> None:
    (tmp_path / "mes").write_text(f"{KEY}\n")
    hashed = Program(key_sha256="5d5e6b5f2a0a" + "0" * 52)
    async with station(programs={"mes": Program(key_file=str(tmp_path / "mes")), "hmi": hashed}) as apps:
        for wrong in ({}, {"Authorization": KEY}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
            refused = await apps.post({"type": "a"}, **wrong)
            assert refused.status == 401
            assert refused.headers["www-authenticate"].startswith("Bearer")
            assert KEY.encode() not in refused.body
        right = apps.post(
            [{"type": "a", "data": {"program": "another"}}, {"level": "info"}], Authorization=f"Bearer {KEY}"
        )
        await apps.until_waiting(5)
        events = await apps.taken()
        assert [event.type for event in events[:4]] == ["authentication.failure"] * 4
        assert [event.data["program"] for event in events[4:]] == ["mes", "mes"]
        await apps.committed()
        assert (await right).status == 202
    assert apps.report.counts["refused_keys"] == 4


async def test_a_key_in_a_file_can_be_exchanged_and_a_file_that_is_gone_lets_nobody_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "FILES_EVERY_S", 0.0)
    path = tmp_path / "mes"
    async with station(programs={"mes": Program(key_file=str(path))}) as apps:
        assert (await apps.post({"type": "a"}, Authorization=f"Bearer {KEY}")).status == 401
        assert "No such file" in apps.report.trouble["program mes"]
        path.write_text(KEY)
        assert (await apps.post([], Authorization=f"Bearer {KEY}")).status == 202
        assert apps.report.trouble == {}
        path.write_text("another-key-of-the-program")
        assert (await apps.post([], Authorization=f"Bearer {KEY}")).status == 401
        assert (await apps.post([], Authorization="Bearer another-key-of-the-program")).status == 202


async def test_refusals_beyond_twenty_a_minute_are_counted_and_not_told_one_by_one() -> None:
    async with station(programs={"mes": Program(key_sha256="0" * 64)}) as apps:
        for _ in range(25):
            assert (await apps.post([])).status == 401
        assert len(await apps.taken()) == 20
        assert apps.source._programs.unknown == 5
        apps.source._refusals_since_s -= 61
        assert (await apps.post([])).status == 401
        assert [event.data for event in await apps.taken()] == [{"attempts": 6}]


async def test_a_request_from_another_computer_is_refused_unless_that_is_allowed() -> None:
    async def nothing() -> AsyncIterator[bytes]:
        yield b"[]"

    for allowed in (False, True):
        async with station(allow_remote=allowed) as apps:
            headers = {"content-type": "application/json", "content-length": "2"}
            request = Request("POST", "/v1/events", headers, nothing(), is_local=False)
            if allowed:
                assert (await apps.source._accepted(request)).status == 202
            else:
                with pytest.raises(Refused, match="only programs of this computer") as refused:
                    await apps.source._accepted(request)
                assert refused.value.status == 403


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"socket": "intake.sock"}, "socket"),
        ({"socket": "/" + "x" * 120}, "socket"),
        ({"socket": "/run/x", "socket_mode": "rw"}, "socket_mode"),
        ({"socket_group": "adm"}, "socket_group"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"programs": {"a b": Program(key_sha256="0" * 64)}}, "programs"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}: "):
        IntakeConfig(**options)


def test_a_program_has_one_key() -> None:
    for wrong in ({}, {"key_file": "/x", "key_sha256": "0" * 64}, {"key_sha256": "ABC"}):
        with pytest.raises(ValueError, match=r"^key_(file|sha256): "):
            Program(**wrong)


def test_what_is_wrong_around_the_configuration_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("short\n")
    os.mkfifo(tmp_path / "pipe")
    config = IntakeConfig(
        socket=str(tmp_path / "file"),
        socket_group="no-such-group",
        programs={
            "a": Program(key_file=str(tmp_path / "file")),
            "b": Program(key_file=str(tmp_path / "none")),
            "c": Program(key_file=str(tmp_path / "pipe")),
        },
    )
    assert [problem[0] for problem in config.problems()] == [
        "socket",
        "socket_group",
        "programs.a.key_file",
        "programs.b.key_file",
        "programs.c.key_file",
    ]
    assert [warning[0] for warning in IntakeConfig(socket=str(tmp_path / "away" / "x")).warnings()] == ["socket"]
