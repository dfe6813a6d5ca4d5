"""Live streams on a real PostgreSQL: every event once, whoever stores it, however often a client comes back."""

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from agent.wire.batch import read_frames
from agent.wire.event import Event
from collector import stream as live
from collector.app import migrate_at
from collector.match import contains, matcher
from collector.store import stream
from collector.store.batches import Transaction
from collector.store.events import ALL, COLUMNS_READ, Filter, where_of
from collector.store.stream import Cursor, Snapshot
from tests.collector_process import Chain, Collector, event, events_of, poll_until, post
from tests.postgres import connected


def _open(collector: Collector, key: str, **parameters: Any) -> ClientConnection:
    url = f"ws://127.0.0.1:{collector.port}/v1/stream?{urlencode(parameters, doseq=True)}"
    return connect(url, additional_headers={"Authorization": f"Bearer {key}"}, proxy=None, max_size=None)


def _next(socket: ClientConnection, within_s: float = 30) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(socket.recv(within_s))
    return message


def _drain(socket: ClientConnection) -> None:
    while True:
        _next(socket)


class Reader(threading.Thread):
    """Reads until it has seen enough, cutting its connection at random and coming back to any of the collectors with its last cursor."""

    def __init__(self, collectors: list[Collector], key: str, cursor: str, enough: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.collectors, self.key, self.cursor, self.enough = collectors, key, cursor, enough
        self.random = random.Random(seed)
        self.seen: list[str] = []
        self.connections = 0

    def has(self, count: int) -> bool:
        return len(self.seen) >= count

    def run(self) -> None:
        while len(self.seen) < self.enough:
            self.connections += 1
            with _open(self.random.choice(self.collectors), self.key, after=self.cursor) as socket:
                for _ in range(self.random.randrange(1, 12)):
                    try:
                        message = _next(socket, 0.5)
                    except TimeoutError:
                        break
                    assert message["type"] in ("events", "ping")
                    self.seen += [e["event_id"] for e in message.get("events", ())]
                    self.cursor = message["cursor"]
                socket.socket.close()


def _write(collector: Collector, key: str, seed: int, requests: int) -> list[str]:
    rng, written = random.Random(seed), []
    chain = Chain()
    with collector.client(key) as client:
        for _ in range(requests):
            batches = [chain.seal([event()] * rng.randrange(1, 5)) for _ in range(rng.randrange(1, 4))]
            assert post(client, *batches).status_code == 200
            written += [chain.identity(b.header.no, n) for b in batches for n in range(b.header.events)]
    return written


def _write_slowly(dsn: str) -> list[str]:
    """A transaction that takes its number early and commits late, as a large backlog does."""
    chain = Chain()
    frame = next(read_frames(chain.seal([event("late")] * 3).frame))

    async def run() -> None:
        async with connected(dsn) as connection, connection.transaction():
            await Transaction(connection, UUID(chain.agent)).store([frame], 1, careful=False)  # type: ignore[arg-type]
            await asyncio.sleep(2.5)

    asyncio.run(run())
    return [chain.identity(1, n) for n in range(3)]


def test_with_four_that_store_and_two_that_stream_a_client_that_reconnects_sees_every_event_once(dsn: str) -> None:
    """grafana#17378, grafana#19532: tails that missed lines and repeated them on reconnecting."""
    with ExitStack() as stack, ThreadPoolExecutor(6) as pool:
        first = stack.enter_context(Collector(dsn))
        others = [Collector(dsn) for _ in range(5)]
        list(pool.map(stack.enter_context, others))
        storing, streaming = [first, *others[:3]], others[3:]
        viewer = first.key("viewer")
        with _open(streaming[0], viewer) as socket:
            start = _next(socket)["cursor"]
        late = pool.submit(_write_slowly, dsn)
        work = [pool.submit(_write, c, c.key("agent"), n, 30) for n, c in enumerate(storing)]
        # Long before all is written, so that most of it is seen live.
        enough = 10**9
        readers = [Reader(streaming, viewer, start, enough, n) for n in range(3)]
        for reader in readers:
            reader.start()
        written = [identity for done in [*work, late] for identity in done.result(120)]
        for reader in readers:
            poll_until(partial(reader.has, len(written)), within_s=60, why="events are missing")
            reader.enough = 0
            reader.join(30)
        for reader in readers:
            assert reader.connections > 3
            assert sorted(reader.seen) == sorted(written)


@pytest.fixture(scope="module")
def keys(collector: Collector) -> dict[str, str]:
    return {
        "north": collector.key("agent", site="north"),
        "viewer": collector.key("viewer"),
        "south viewer": collector.key("viewer", site="south"),
    }


def test_filters_and_the_scope_of_the_key_hold_in_streams(collector: Collector, keys: dict[str, str]) -> None:
    chain = Chain()
    wanted = {"agent": chain.agent, "severity": 3}
    with (
        _open(collector, keys["viewer"], **wanted) as socket,
        _open(collector, keys["south viewer"], agent=chain.agent) as outside,
        collector.client(keys["north"]) as client,
    ):
        start = _next(socket)
        _next(outside)
        assert start["type"] == "ping"
        post(client, chain.seal([event("dull"), event("grave", severity=5)]))
        message = _next(socket)
        assert [e["message"] for e in message["events"]] == ["grave"]
        with collector.client(keys["viewer"]) as viewer:
            assert message["events"] == events_of(viewer, **wanted)
        with pytest.raises(TimeoutError):
            outside.recv(0.5)
    with _open(collector, keys["viewer"], after=start["cursor"], **wanted) as socket:
        again = [_next(socket), _next(socket)]
        assert [e["message"] for m in again for e in m.get("events", ())] == ["grave"]


def test_server_sent_events_carry_the_same_and_go_on_from_the_last_id(
    collector: Collector, keys: dict[str, str]
) -> None:
    chain = Chain()

    def read(lines: Iterator[str]) -> tuple[str, dict[str, Any]]:
        frame: dict[str, str] = {}
        for line in lines:
            if not line:
                return frame["id"], json.loads(frame["data"])
            name, _, value = line.partition(": ")
            frame[name] = value
        raise AssertionError("it ended")

    with collector.client(keys["viewer"]) as viewer, collector.client(collector.key("agent")) as client:
        with viewer.stream("GET", "/v1/stream", params={"agent": chain.agent}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = answer.iter_lines()
            assert read(lines)[1]["type"] == "ping"
            post(client, chain.batch("one"))
            identity, message = read(lines)
            assert [e["message"] for e in message["events"]] == ["one"]
            assert identity == message["cursor"]
        post(client, chain.batch("two"))
        headers = {"Last-Event-ID": identity}
        with viewer.stream("GET", "/v1/stream", params={"agent": chain.agent}, headers=headers) as answer:
            lines = answer.iter_lines()
            found = [read(lines)[1], read(lines)[1]]
            assert [e["message"] for m in found for e in m.get("events", ())] == ["two"]


def _cursor(home: int, xid: int) -> str:
    return Cursor(home, Snapshot(1, xid, xid, ())).encode()


def test_a_cursor_that_cannot_be_is_refused_with_a_reason(collector: Collector, keys: dict[str, str]) -> None:
    with _open(collector, keys["viewer"]) as socket:
        good = _next(socket)["cursor"]
    home = stream.decode_cursor(good, _home(good)).home
    for after, said in (
        ("nonsense", "not a cursor"),
        (_cursor(home + 1, 5), "another database"),
        (_cursor(home, 2**60), "put back"),
    ):
        with collector.client(keys["viewer"]) as viewer:
            answer = viewer.get("/v1/stream", params={"after": after})
            assert answer.status_code == 400, answer.text
            assert said in answer.text
        with _open(collector, keys["viewer"], after=after) as socket:
            assert said in _next(socket)["detail"]
            with pytest.raises(ConnectionClosed):
                socket.recv(10)
            assert socket.close_code == 4400


def _home(cursor: str) -> int:
    import base64

    import msgspec

    decoded: list[Any] = msgspec.msgpack.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    return int(decoded[0])


def test_nobody_streams_without_a_key(collector: Collector) -> None:
    with pytest.raises(InvalidStatus):
        _open(collector, "lw_none_none")


def test_a_stop_ends_streams_at_once(dsn: str) -> None:
    with Collector(dsn) as collector:
        with _open(collector, collector.key("viewer")) as socket:
            _next(socket)
            assert collector.stop() == 0
            with pytest.raises(ConnectionClosed):
                _drain(socket)
        collector.start()


# ── filters mean the same here and in SQL ────────────────────────────────────────────────────────────────────────────

_VALUES = st.sampled_from(
    [1, 1.0, True, None, "a", "A", [1, "a"], {"x": 1}, {"x": [1, {"y": 2}]}, [], {}, 10**30, [[1]], 0.1]
)
_DATA = st.dictionaries(st.sampled_from(["p", "q"]), _VALUES, max_size=2)
_TYPES = ["authentication.failure", "authentication", "authentications", "log.line"]
_FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "types": st.lists(st.sampled_from([*_TYPES, "authentication.*", "log.*"]), min_size=1, max_size=2).map(tuple),
        "severity_min": st.integers(1, 6),
        "severities": st.lists(st.integers(1, 6), min_size=1).map(tuple),
        "categories": st.just(("authentication",)),
        "sources": st.just(("a", "b")),
        "actors": st.just(("ann",)),
        "outcomes": st.just(("failure",)),
        "text": st.sampled_from(["refused", "REFUSED", "%", "_", "\\", ""]),
        "data": _DATA.map(json.dumps),
        "begin": st.integers(0, 3).map(lambda n: datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=n)),
        "end": st.integers(0, 3).map(lambda n: datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=n)),
        "sites": st.just(("north",)),
        "scope": st.sampled_from([ALL, (), (("north", "", ""),), (("", "", "press"), ("south", "L1", ""))]),
    },
)
_EVENTS = st.builds(
    lambda second, kind, source, **rest: Event(1772323200_000_000 + second * 1_000_000, 0, kind, source, **rest),
    st.integers(0, 3), st.sampled_from(_TYPES), st.sampled_from(["a", "b", "c"]),
    severity=st.integers(1, 6), message=st.sampled_from([None, "Refused", "100%", "a_b\\c"]), actor=st.sampled_from([None, "ann"]),
    outcome=st.sampled_from([None, "failure"]), data=_DATA,
)  # fmt: skip


@pytest.fixture
async def filled(dsn: str) -> AsyncIterator[tuple[Any, int]]:
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        yield (
            connection,
            await connection.fetchval(
                "INSERT INTO places (site, line, station) VALUES ('north', 'L1', 'press') RETURNING place_id"
            ),
        )


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(batches=st.lists(st.lists(_EVENTS, min_size=1, max_size=10), min_size=2, max_size=2), wanted=_FILTERS)
async def test_a_filter_picks_the_same_events_here_and_in_sql(
    filled: tuple[Any, int], batches: list[list[Event]], wanted: dict[str, Any]
) -> None:
    found = await _both(*filled, batches, Filter(**{"scope": ALL, **wanted}))
    assert found[0] == found[1]


async def _both(connection: Any, place: int, batches: list[list[Event]], wanted: Filter) -> tuple[list[Any], list[Any]]:
    transaction = connection.transaction()
    await transaction.start()
    try:
        for place_id, events in zip((1, place), batches, strict=True):
            chain = Chain()
            frame = next(read_frames(chain.seal(events).frame))
            await Transaction(connection, UUID(chain.agent)).store([frame], place_id, careful=False)
        where = where_of(wanted)
        sql = f"SELECT {COLUMNS_READ} FROM security_events e JOIN places p USING (place_id) WHERE "
        by_sql = await connection.fetch(sql + str(where), *where.arguments)
        rows = await connection.fetch(sql + "true")
        matches: Callable[[Any], bool] = matcher(wanted)
        return _names(by_sql), _names([row for row in rows if matches(row)])
    finally:
        await transaction.rollback()


def _names(rows: list[Any]) -> list[tuple[int, int]]:
    return sorted((row["batch_id"], row["idx"]) for row in rows)


def test_true_is_not_one_in_containment() -> None:
    assert not contains({"a": True}, {"a": 1})


async def test_a_client_that_is_slow_is_told_how_many_were_skipped_and_from_where_they_can_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "QUEUE_EVENTS_MAX", 10)
    cursors = [Cursor(1, Snapshot(1, n, n, ())) for n in range(1, 7)]
    client = live.Client(Filter(scope=ALL))
    for before, after in pairwise(cursors):
        client.put(live.Message(b"x", 4, after), before)
    taken = [await client.take(0.01) for _ in range(4)]
    assert [(type(t).__name__, t.events) for t in taken if t] == [("Message", 4), ("Message", 4), ("Skipped", 12)]
    skipped = taken[2]
    assert isinstance(skipped, live.Skipped)
    assert (skipped.after, skipped.cursor) == (cursors[2], cursors[5])
    client.put(live.Message(b"y", 4, cursors[5]), cursors[5])
    assert isinstance(await client.take(0.01), live.Message)
