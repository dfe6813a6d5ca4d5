"""Parts of the collector that need no database: cursors, what jsonb can hold, deciding, the word to systemd."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from agent.wire.batch import read_frame
from collector.ingest import Ingest, Limits, Refused, decide, decompressed, parsed, stream_of
from collector.notify import notify, watchdog_s
from collector.problems import Problem
from collector.query import decode_cursor, encode_cursor
from collector.store.batches import Head, Known
from collector.store.database import Database
from collector.store.rows import COLUMNS, PARTS, from_us, rows_of, storable, to_us
from tests.collector_process import Chain, event


@contextmanager
def _only(*statuses: int) -> Iterator[None]:
    """Nothing is raised but a problem of these statuses."""
    try:
        yield
    except Problem as problem:
        if problem.status not in statuses:
            raise


MOMENTS = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=st.just(UTC))  # noqa: DTZ001 - bounds are naive here


@given(MOMENTS, st.integers(0, 2**63 - 1), st.integers(0, 2**31 - 1), st.sampled_from(["asc", "desc"]))
def test_a_cursor_round_trips(moment: datetime, batch_id: int, idx: int, order: Any) -> None:
    assert decode_cursor(encode_cursor((moment, batch_id, idx), order), order) == (moment, batch_id, idx)


@given(st.text(max_size=60))
def test_anything_else_is_no_cursor_or_a_sound_one(text: str) -> None:
    with _only(400):
        assert decode_cursor(text, "desc")[0].tzinfo is UTC


@given(MOMENTS)
def test_microseconds_and_dates_are_the_same(moment: datetime) -> None:
    assert from_us(to_us(moment)) == moment


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_json_is_storable_unless_it_has_a_nul(value: dict[str, Any]) -> None:
    has_nul = "\\u0000" in json.dumps(value).replace("\\\\", "")
    assert storable(json.dumps(value, ensure_ascii=False).encode()) is not has_nul


@pytest.mark.parametrize(
    "text",
    [rb'{"a":"\u0000"}', rb'{"\u0000":1}', rb'{"a":"\ud800"}', b'{"a":1e9999}', b'{"a":' + b"1" * 2000 + b"}", b'{"a":"\xff"}', b"{"],
)  # fmt: skip
def test_what_jsonb_refuses_is_not_storable(text: bytes) -> None:
    assert not storable(text)


def test_nesting_beyond_the_bound_is_not_storable() -> None:
    assert storable(b'{"a":' + b"[" * 63 + b"]" * 63 + b"}")
    assert not storable(b'{"a":' + b"[" * 64 + b"]" * 64 + b"}")
    assert not storable(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def test_rows_have_as_many_fields_as_there_are_columns() -> None:
    events = [
        event("a", actor="x", data={"user": "u", "n": 1}),
        event("b", time=0),
        event("c", correlation_id="k"),
    ]
    sealed = Chain().seal(events)
    frame = read_frame(sealed.frame)
    rows = rows_of(
        frame,
        batch_id=1,
        place_id=1,
        received=datetime.now(UTC),
        agent_id=UUID(int=1),
        buffer_id=UUID(int=2),
        careful=True,
    )
    binary = b"".join(rows.parts)
    assert len(rows.parts) == PARTS * len(events)
    at = 0
    for _ in events:
        assert int.from_bytes(binary[at : at + 2], "big") == len(COLUMNS)
        at += 2
        for _ in COLUMNS:
            length = int.from_bytes(binary[at : at + 4], "big", signed=True)
            at += 4 + max(length, 0)
    assert at == len(binary)


class _Memory:
    """What decide asks of a transaction."""

    def __init__(self, stored: dict[int, Known]) -> None:
        self.stored = stored

    async def known(self, _: Any, numbers: Any) -> dict[int, Known]:
        return {no: self.stored[no] for no in numbers if no in self.stored}


async def test_a_batch_that_retention_has_dropped_is_acknowledged() -> None:
    chain = Chain()
    old = read_frame(chain.batch("old").frame)
    heads = {stream_of(old): Head(no=7, hash="a" * 64)}
    assert await decide(_Memory({}), [old], heads) == []  # type: ignore[arg-type]
    assert heads[stream_of(old)].no == 7


async def test_a_gap_across_the_head_is_refused_even_where_nothing_is_known_of_its_beginning() -> None:
    chain = Chain()
    gap = read_frame(chain.seal([event("gap")], gap=9).frame)
    heads = {stream_of(gap): Head(no=7, hash="a" * 64)}
    with pytest.raises(Refused) as caught:
        await decide(_Memory({}), [gap], heads)  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.expected) == ("missing", 8)


@given(st.binary(max_size=300))
def test_any_body_is_frames_or_a_problem(body: bytes) -> None:
    with _only(413, 422):
        parsed(body, Limits())


@given(st.binary(max_size=300))
def test_any_compressed_body_is_bytes_or_a_problem(body: bytes) -> None:
    for candidate in (body, zstandard.compress(body), zstandard.compress(body) + body):
        with _only(413, 422):
            decompressed(candidate, 1_000)


def test_too_many_frames_are_refused() -> None:
    chain = Chain()
    body = b"".join(chain.batch("x").frame for _ in range(11))
    with pytest.raises(Problem) as caught:
        parsed(body, Limits(request_frames_max=10))
    assert caught.value.status == 413


async def test_a_request_that_finds_no_slot_in_time_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.ingest.WAIT_S_MAX", 0.01)
    ingest = Ingest(Database("postgresql://x", pool_size=2, synchronous_commit="on"), Limits(concurrent_max=1))
    async with ingest.slot():
        with pytest.raises(Problem) as caught:
            async with ingest.slot():
                pass
        assert (caught.value.status, caught.value.headers["Retry-After"]) == (503, "1")
    async with ingest.slot():
        pass


def test_systemd_is_told_through_its_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify(READY="1", STATUS="taking batches")
        assert listener.recv(100) == b"READY=1\nSTATUS=taking batches"


@pytest.mark.parametrize("address", [None, "", "relative", "/nowhere/at/all"])
def test_nobody_listening_is_no_trouble(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify(READY="1")


def test_the_watchdog_is_fed_at_half_its_time_and_only_by_the_process_it_watches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert watchdog_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_s() == 30
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_s() is None
