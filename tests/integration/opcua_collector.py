"""A process to kill: reads a server and commits events and cursor together, as one line that is on disk before the source goes on."""

import asyncio
import json
import os
import sys
from pathlib import Path

import msgspec

from agent.component import NotConnected
from tests.integration.opcua_line import Reader, config


async def main(url: str, store: Path) -> None:
    lines = store.read_bytes().split(b"\n") if store.exists() else [b""]
    whole = b"\n".join(lines[:-1]) + b"\n" if len(lines) > 1 else b""
    store.write_bytes(whole)
    cursor = json.loads(lines[-2])["cursor"] if len(lines) > 1 else None
    reader = Reader(config(url, sampling_interval_ms=0.0), cursor)
    with store.open("ab") as out:
        while True:
            try:
                async for events, cursor in reader.source.batches(reader.cursor):
                    out.write(msgspec.json.encode({"events": events, "cursor": cursor}) + b"\n")
                    out.flush()
                    os.fsync(out.fileno())
                    reader.cursor = cursor
            except NotConnected:
                await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
