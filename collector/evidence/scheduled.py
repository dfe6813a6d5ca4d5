"""The process in which `verify` runs by itself: an order comes in, a report goes out. See schedule.py."""

import asyncio
import contextlib
import os
import sys

import msgspec

from collector.evidence.schedule import Order
from collector.evidence.verify import Wanted, verify
from collector.store.database import StoreMisconfigured, StoreUnavailable

LOWEST = 19


def main() -> int:
    """Do it; the exit code."""
    with contextlib.suppress(OSError):
        # A unit that forbids it is no reason not to verify.
        os.nice(LOWEST)
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    try:
        report = asyncio.run(verify(order.dsn, Wanted(processes=1, events_max=order.events_max)))
    except (StoreUnavailable, StoreMisconfigured) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
