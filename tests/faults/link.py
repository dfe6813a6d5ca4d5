"""A link between agents and collectors that carries requests one by one, does harm to them, and keeps a record of what was said.

The record is the oracle's: an acknowledgement that a collector uttered is an obligation, whether the agent heard it or not; what
an agent sent is all that may be stored. `before_ack` is called with each acknowledgement before anybody hears it, so that
somebody can look whether it was durable by then.
"""

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

import zstandard

from agent.wire.batch import Frame, read_frames
from tests.ports import free_port

Mood = Literal["well", "harmful", "away", "deaf", "slow"]
Harm = Literal[
    "none",
    "request lost",
    "answer lost",
    "answer cut",
    "answer garbled",
    "sent twice",
    "sent to two collectors at once",
    "an old request sent again",
    "held up",
    "500",
    "503",
    "429",
    "413",
]
HARMS: dict[Harm, int] = {
    "none": 12,
    "request lost": 2,
    "answer lost": 3,
    "answer cut": 2,
    "answer garbled": 1,
    "sent twice": 3,
    "sent to two collectors at once": 3,
    "an old request sent again": 3,
    "held up": 2,
    "500": 1,
    "503": 1,
    "429": 1,
    "413": 1,
}
"""What can happen to a request, and how often beside the others."""
KEPT_MAX = 64
"""Old requests kept, to be sent again."""
SMALL_BYTES = 20_000
"""A request of less is not refused as too large."""

BatchId = tuple[str, str, int, int]
"""Agent, buffer, lane, number."""
StreamId = tuple[str, str, int]


@dataclass(slots=True)
class Record:
    """What went over the link."""

    sent: dict[BatchId, dict[str, bytes]] = field(default_factory=dict)
    """Frames that agents sent, by their hash: more than one where a buffer was put back."""
    acked: dict[StreamId, int] = field(default_factory=dict)
    """The last number of each stream that a collector acknowledged."""
    requests: int = 0
    acks: int = 0
    harms: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Request:
    head: bytes
    body: bytes

    @property
    def wire(self) -> bytes:
        return self.head + self.body


@dataclass(slots=True)
class _Answer:
    status: int
    wire: bytes
    body: bytes


async def _nothing(_: Sequence[StreamId], __: dict[StreamId, int]) -> None:
    return


class Link:
    """Listens on `port`; carries to the collectors at `targets` (ports), which may change at any time."""

    def __init__(
        self,
        targets: list[int],
        *,
        seed: int,
        before_ack: Callable[[Sequence[StreamId], dict[StreamId, int]], Awaitable[None]] = _nothing,
    ) -> None:
        self.port = free_port()
        self.targets = targets
        self.mood: Mood = "well"
        self.record = Record()
        self.before_ack = before_ack
        self._random = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[object]] = set()
        self._old: list[_Request] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def become(self, mood: Mood) -> None:
        """Change the mood. Connections are cut by going away; otherwise they stay."""
        self.mood = mood
        if mood == "away" and self._server is not None:
            self._server.close()
            self._server = None
            for writer in self._writers:
                writer.transport.abort()
            self._writers.clear()
        elif mood != "away" and self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=2**20)

    async def __aenter__(self) -> Self:
        await self.become("well")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.become("away")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._one(reader, writer):
                    pass
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await _read_request(reader)
        self._note_sent(request)
        if self.mood == "deaf":
            # Half open: the other side is there, takes everything, and says nothing.
            await reader.read()
            return False
        harm: Harm = "none"
        if self.mood == "harmful":
            harm = self._random.choices(list(HARMS), list(HARMS.values()))[0]
            self.record.harms[harm] += harm != "none"
        elif self.mood == "slow":
            await asyncio.sleep(self._random.uniform(0.2, 1.0))
        answer = await self._carry(request, harm)
        if answer is None:
            return False
        writer.write(answer)
        await writer.drain()
        return harm not in {"answer cut", "answer garbled"}

    async def _carry(self, request: _Request, harm: Harm) -> bytes | None:
        """What the agent hears; None: nothing, the connection ends."""
        if harm.isdecimal() and not (harm == "413" and len(request.body) < SMALL_BYTES):
            return f"HTTP/1.1 {harm} Harm\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n".encode()
        if harm == "request lost":
            return None
        answer = await self._deliver(request, harm)
        if answer is None or harm == "answer lost":
            return None
        if harm == "answer cut":
            return answer.wire[: self._random.randrange(len(answer.wire))]
        if harm == "answer garbled":
            return b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 14\r\n\r\n<h1>It works</"
        return answer.wire

    async def _deliver(self, request: _Request, harm: Harm) -> _Answer | None:
        rng = self._random
        if harm == "held up":
            await asyncio.sleep(rng.uniform(0.2, 1.5))
        if harm == "sent to two collectors at once":
            answer = rng.choice(await asyncio.gather(*(self._ask(request, port) for port in (self.targets * 2)[:2])))
        else:
            answer = await self._ask(request, rng.choice(self.targets))
        if harm == "sent twice":
            answer = await self._ask(request, rng.choice(self.targets))
        if harm == "an old request sent again" and self._old:
            await self._ask(rng.choice(self._old), rng.choice(self.targets))
        if len(self._old) < KEPT_MAX:
            self._old.append(request)
        else:
            self._old[rng.randrange(KEPT_MAX)] = request
        return answer

    async def _ask(self, request: _Request, port: int) -> _Answer | None:
        """One request to one collector, over a connection of its own; None where it is not there."""
        writer = None
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
            writer.write(request.wire)
            await writer.drain()
            answer = await _read_answer(reader)
        except (OSError, asyncio.IncompleteReadError):
            return None
        finally:
            if writer is not None:
                writer.transport.abort()
        self.record.requests += 1
        if answer.status == 200:
            await self._note_acked(request, answer)
        return answer

    def _note_sent(self, request: _Request) -> None:
        for frame in _frames(request):
            h = frame.header
            place = (h.agent, h.buffer, h.lane, h.no)
            self.record.sent.setdefault(place, {})[frame.hash] = bytes(frame.wire)

    async def _note_acked(self, request: _Request, answer: _Answer) -> None:
        said = json.loads(answer.body).get("acked", [])
        agents = {(frame.header.buffer, frame.header.lane): frame.header.agent for frame in _frames(request)}
        acked = {(agents[item["buffer"], item["lane"]], item["buffer"], item["lane"]): int(item["no"]) for item in said}
        self.record.acks += 1
        await self.before_ack(list(acked), acked)
        for stream, no in acked.items():
            self.record.acked[stream] = max(no, self.record.acked.get(stream, 0))


def _frames(request: _Request) -> list[Frame]:
    body = request.body
    if b"content-encoding: zstd" in request.head.lower():
        body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
    return list(read_frames(body))


async def _read_request(reader: asyncio.StreamReader) -> _Request:
    head = await reader.readuntil(b"\r\n\r\n")
    return _Request(head, await reader.readexactly(_length(head)))


async def _read_answer(reader: asyncio.StreamReader) -> _Answer:
    head = await reader.readuntil(b"\r\n\r\n")
    body = await reader.readexactly(_length(head))
    return _Answer(int(head.split(b" ", 2)[1]), head + body, body)


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    return 0
