"""A program for the tests: appends numbered events to a buffer and prints each number once it is durable.

python -m tests.buffer_writer FOLDER FIRST COUNT [EVENTS_PER_APPEND] [BYTES_PER_EVENT]
"""

import asyncio
import sys
from pathlib import Path

from agent.buffer import Buffer, BufferConfig
from agent.wire.event import Event

AGENT = "6f1c1a52-9d6b-4a9e-8f55-2f6f2f3f4c11"


async def main(folder: str, first: int, count: int, each: int = 3, size: int = 40) -> None:
    """See the module."""
    buffer = await Buffer.open(Path(folder) / "buffer.db", BufferConfig(free_bytes_min=0), AGENT)
    print("open", flush=True)
    for number in range(first, first + count, each):
        events = [
            Event(n, n + 1, "log.line", "test", data={"n": n, "pad": f"{n:x}" * (size // 4)})
            for n in range(number, number + each)
        ]
        appending = asyncio.ensure_future(
            buffer.append(events, "test", {"n": number + each - 1}, {"h": {"last": str(number).encode()}})
        )
        while not appending.done():
            await asyncio.wait([appending], timeout=0.2)
            if buffer.stalled:
                print("stalled", flush=True)
        await appending
        print(number + each - 1, flush=True)
    await buffer.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
