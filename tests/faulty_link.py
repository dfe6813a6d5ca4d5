"""A link to the collector with a mind of its own: it can be away, busy, slow, or cut in the middle of things."""

import asyncio
import contextlib
import random
from typing import Literal, Self

from tests.ports import free_port

Mood = Literal["well", "away", "busy", "slow", "reset", "deaf"]
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class FaultyLink:
    """`mood`: well; away (refuses connections); busy (503 to everything); slow (answers wait); reset (the request is delivered, and the
    connection cut before its answer, or in the middle of it); deaf (takes everything and never answers).
    """

    def __init__(self, target_port: int, *, seed: int = 7, slow_s: float = 1.0) -> None:
        self.port = free_port()
        self.mood: Mood = "well"
        self.connections = 0
        self._target = target_port
        self._slow_s = slow_s
        self._random = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def become(self, mood: Mood) -> None:
        """Change the mood; connections of the old one are cut."""
        self.mood = mood
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        if mood == "away" and self._server is not None:
            self._server.close()
            self._server = None
        elif mood != "away" and self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def __aenter__(self) -> Self:
        await self.become(self.mood)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.become("away")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            if self.mood == "busy":
                await self._answer_busy(reader, writer)
            elif self.mood == "deaf":
                while await reader.read(65_536):
                    pass
            else:
                await self._carry(reader, writer)
        writer.transport.abort()

    async def _answer_busy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        await reader.readexactly(length)
        writer.write(BUSY)
        await writer.drain()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers.add(far_writer)
        there = asyncio.create_task(self._there(reader, far_writer))
        try:
            while data := await far_reader.read(65_536):
                if self.mood == "slow":
                    await asyncio.sleep(self._slow_s)
                if self.mood == "reset":
                    # What the collector says is durable there; the agent hears nothing of it, or half.
                    writer.write(data[: self._random.randint(0, len(data) - 1)])
                    await writer.drain()
                    return
                writer.write(data)
                await writer.drain()
        finally:
            there.cancel()
            far_writer.transport.abort()

    @staticmethod
    async def _there(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()
