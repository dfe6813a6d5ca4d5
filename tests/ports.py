"""Ports for servers that a test starts."""

import itertools
import os
import random
import socket
from contextlib import suppress

_FIRST, _LAST = 10_000, 32_000
"""Below those that the system hands out by itself to whoever connects or binds."""
_chances = random.SystemRandom()
_ports = itertools.count(_chances.randrange(_FIRST, _LAST))


def free_port() -> int:
    """A port that nobody listens on, and that neither the system nor another worker of this run is about to hand out."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    mine = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = _FIRST + next(_ports) % (_LAST - _FIRST)
        if port % workers != mine:
            continue
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
