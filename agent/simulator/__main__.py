"""`python -m agent.simulator`: the virtual line alone, to try sources and rules without a plant.

With `--json` it speaks to a program: one JSON object a line, first the addresses, then each attack as it begins. On stdin it obeys
`quiet`: it stops producing, and goes on answering whoever reads it.
"""

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from agent.simulator.scenario import Act, Line


def _human(line: Line) -> str:
    where = line.addresses()
    return (
        f"The virtual line runs. Ctrl-C ends it.\n\n"
        f"  OPC UA   {where['opcua']}   user {where['opcua_user']}, password {where['opcua_password']}\n"
        f"           Basic256Sha256/SignAndEncrypt; certificate {where['opcua_certificate']}\n"
        f"  Modbus   {where['modbus']}   unit 1\n"
        f"  log      {where['log']}\n\n"
        f"  linewarden-agent browse {where['opcua']}     finds nodes to watch\n"
    )


async def _run(arguments: argparse.Namespace, folder: Path) -> None:
    def tell(act: Act) -> None:
        print(json.dumps({"act": act.kind, "text": act.text}) if arguments.json else f"  {act.text}", flush=True)

    line = Line(folder, seed=arguments.seed, tell=tell)
    await line.start()
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    print(json.dumps({"addresses": line.addresses()}) if arguments.json else _human(line), flush=True)
    work = asyncio.create_task(line.run(), name="line")
    ended = asyncio.create_task(stop.wait(), name="stop")
    tasks = [work, ended]
    if arguments.json:
        tasks.append(asyncio.create_task(_obey(work), name="stdin"))
    try:
        await asyncio.wait([ended, work], return_when=asyncio.FIRST_COMPLETED)
        if work.done() and not work.cancelled():
            work.result()  # it never ends by itself: this raises what stopped it
        await ended  # cancelled by `quiet`: the servers go on answering
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await line.stop()


async def _obey(work: asyncio.Task[Any]) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while command := await reader.readline():
        if command.strip() == b"quiet":
            work.cancel()
            await asyncio.wait([work])
            print(json.dumps({"quiet": True}), flush=True)


def main() -> int:
    """Run until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m agent.simulator",
        description="A virtual line: a press cell (OPC UA), its controller (Modbus) and a station's log, with attacks now and then.",
    )
    parser.add_argument("--seed", type=int, default=7, help="the same seed plays the same attacks (default: 7)")
    parser.add_argument(
        "--folder", type=Path, help="where log and certificates go (default: a temporary one, removed at the end)"
    )
    parser.add_argument("--json", action="store_true", help="speak JSON, one object a line, and obey `quiet` on stdin")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="linewarden-line-"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        asyncio.run(_run(arguments, folder))
    except OSError as error:
        print(f"the virtual line cannot run: {error}", file=sys.stderr)
        return 1
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
