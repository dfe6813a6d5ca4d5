"""Tells systemd that the agent is ready, what it does, and that it makes progress (sd_notify). Silent where nobody listens.

The watchdog is fed only while there is progress, so that an agent that is stuck is restarted like one that died.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress

STATUS_CHARS_MAX = 500
SEND_S_MAX = 1.0


def notify(**state: str) -> bool:
    """Send variables, each by its name: READY="1", STATUS="3 sources". Whether somebody was there to hear it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    # A line is a variable: a line break in a value would be another one.
    lines = (f"{name}={' '.join(value.split())[:STATUS_CHARS_MAX]}" for name, value in state.items())
    message = "\n".join(lines).encode(errors="replace")
    # "@" stands for the zero byte that an abstract socket's name begins with.
    target = f"\0{address[1:]}" if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(SEND_S_MAX)
        sock.sendto(message, target)
        return True
    return False


def ready(status: str = "") -> None:
    """The agent does its duty from now on; also said at the end of a reload."""
    notify(READY="1", STATUS=status)


def reloading() -> None:
    """The configuration is being read again. `ready` ends it."""
    notify(RELOADING="1", MONOTONIC_USEC=str(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000))


def stopping(status: str = "") -> None:
    """The agent stores and sends what it has and ends."""
    notify(STOPPING="1", STATUS=status)


def watchdog_s() -> float | None:
    """How often to feed the watchdog: half of what systemd allows. None where it does not watch this process."""
    allowed_us = os.environ.get("WATCHDOG_USEC", "")
    watched = os.environ.get("WATCHDOG_PID") or str(os.getpid())
    if not allowed_us.isdecimal() or int(allowed_us) == 0 or watched != str(os.getpid()):
        return None
    return int(allowed_us) / 2_000_000


async def feed_watchdog(makes_progress: Callable[[], bool]) -> None:
    """Feed it as long as there is progress, until cancelled. Ends at once where nobody watches."""
    interval_s = watchdog_s()
    if interval_s is None:
        return
    while True:
        if makes_progress():
            notify(WATCHDOG="1")
        await asyncio.sleep(interval_s)
