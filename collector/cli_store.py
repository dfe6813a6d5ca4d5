"""What the commands of all parts share: work on the store, and spans of time in words."""

import argparse
import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from collector.config import Settings
from collector.store.database import connect, translated

if TYPE_CHECKING:
    from collector.store.database import Plain

T = TypeVar("T")
Add = Callable[..., argparse.ArgumentParser]

_SECONDS = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800, "y": 31_536_000}
_SPAN_MAX = timedelta(days=365 * 100)


def with_store(settings: Settings, work: "Callable[[Plain], Awaitable[T]]") -> T:
    """Run `work` on a connection of its own. It begins and ends its transactions itself."""

    async def run() -> T:
        connection = await connect(settings.database.address)
        try:
            with translated():
                return await work(connection)
        finally:
            await connection.close()

    return asyncio.run(run())


def in_transaction(settings: Settings, work: "Callable[[Plain], Awaitable[T]]") -> T:
    """Run `work` in one transaction on a connection of its own."""

    async def whole(connection: "Plain") -> T:
        async with connection.transaction():
            return await work(connection)

    return with_store(settings, whole)


def duration(text: str) -> timedelta:
    """A time as in 12h, 30d, 1y."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})([mhdwy])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write a number and one of m, h, d, w, y, as in 30d")
    return min(timedelta(seconds=int(match[1]) * _SECONDS[match[2]]), _SPAN_MAX)
