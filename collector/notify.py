"""sd_notify: tells systemd that the service is ready, what it does, and that it is alive. Silent where nobody listens."""

import contextlib
import os
import socket


def notify(**state: str) -> None:
    """Send variables of the state, each by its name: READY="1", STATUS="taking batches"."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or address[0] not in "/@":
        return
    text = "\n".join(f"{key}={value}" for key, value in state.items())
    # An abstract socket is written with @ and begins with a zero byte. Not being heard is no reason to stop.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(1)
        sock.sendto(text.encode(), "\0" + address[1:] if address[0] == "@" else address)


def watchdog_s() -> float | None:
    """How often to send WATCHDOG=1: half the time that systemd allows; None where it does not watch us."""
    interval_us = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not interval_us.isdecimal() or pid != str(os.getpid()):
        return None
    return max(0.1, int(interval_us) / 2_000_000)
