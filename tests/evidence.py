"""A database filled as a plant fills it, to be tampered with: see test_evidence_verify.py."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any
from uuid import UUID

from agent.wire.batch import Sealed, read_frames
from agent.wire.event import Event
from collector import audit
from collector.ingest import _advance, stream_of
from collector.store import batches, retention
from tests.collector_process import Chain, event

Connection = Any


async def store(connection: Connection, *sealed: Sealed, day: date | None = None) -> None:
    """Store batches as ingest does, heads and all; on another day than today where `day` says so."""
    frames = [frame for one in sealed for frame in read_frames(one.frame)]
    agent = UUID(frames[0].header.agent)
    async with connection.transaction():
        transaction = batches.Transaction(connection, agent)
        heads = await transaction.lock_heads({stream_of(frame) for frame in frames})
        with _at(day):
            await transaction.store(frames, 1, careful=False)
        for frame in frames:
            _advance(heads[stream_of(frame)], frame)
        await transaction.move_heads(heads)
        await transaction.note_agent(heads.values(), place_id=1, version=None, clock_offset_us=None, status=None)


async def recorded(connection: Connection, *objects: tuple[str, str], action: str = "test") -> None:
    """Have the audit log say what these are now, as whatever changes them does."""
    await audit.record(connection, audit.Who.command(), action, objects=objects)


async def hold(connection: Connection, name: str, query: str) -> int:
    """A legal hold, with its record."""
    number = await retention.hold(connection, name, query)
    await recorded(connection, ("hold", str(number)))
    return number


async def release(connection: Connection, number: int) -> bool:
    """End one, with its record."""
    done = await retention.release(connection, number)
    await recorded(connection, ("hold", str(number)))
    return done


@contextmanager
def _at(day: date | None) -> Iterator[None]:
    """While this lasts, batches are received at noon of that day."""
    said = batches._NUMBERS
    if day is not None:
        batches._NUMBERS = said.replace("clock_timestamp()", f"'{day} 12:00Z'::timestamptz")
    try:
        yield
    finally:
        batches._NUMBERS = said


def mixture(count: int, *, actor: str | None = "eve") -> list[Event]:
    """Events of several kinds, of which every third names somebody."""
    made = []
    for n in range(count):
        named = actor if n % 3 == 0 else None
        data: dict[str, Any] = {"n": n, "value": n / 7, "deep": {"list": [1, None, True, "1"], "f": 1e-9}}
        if n % 6 == 0 and named:
            data["user"] = named
        made.append(
            event(
                f"no. {n}", data=data, actor=named, raw=f"{named} did {n}" if named and n % 6 == 0 else None, severity=1 + n % 6,
                src_ip="10.0.0.1" if n % 2 else None, target="press", outcome="failure" if n % 4 == 0 else None,
                correlation_id=f"c{n // 2}" if n % 5 else None,
            )
        )  # fmt: skip
    return made


async def fill(connection: Connection, chains: Sequence[Chain], *, batches_each: int = 4, events: int = 12) -> None:
    """Some batches in each chain, with a gap in the middle of each."""
    for chain in chains:
        for n in range(batches_each):
            if n == batches_each // 2:
                lost = event("lost", type="collection.gap", source="buffer", data={"events": 7, "reason": "full"})
                await store(connection, chain.seal([lost], gap=3))
            await store(connection, chain.seal(mixture(events)))
