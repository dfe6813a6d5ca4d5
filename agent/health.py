"""The local endpoint: what the agent is doing, for people, programs and Prometheus on this computer.

    GET /healthz   {"state": "ok" | "degraded" | "failed", "ok": …, "checks": {name: {"state", "detail", "remedy"}}}
                   200 where it is ok or degraded (it collects and stores; something configured delivers nothing), 503 where it has failed
    GET /readyz    the same for "can it take events now"
    GET /status    `Status` as JSON
    GET /metrics   the same facts for Prometheus (health_metrics.py)

The facts are handed in; nothing here knows a source or a buffer. Other routes (the intake's POST /v1/events) are `mounts`, which outlive
the server: a source that answers requests has `routes()`, and the daemon mounts them. What the server bounds is told in health_http.py.

Times are µs since the epoch, UTC (`_us`); durations are seconds (`_s`).
"""

import os
import re
import resource
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from annotated_types import Ge, Gt, Le, Len

from agent.component import now_us
from agent.health_http import Address, Answer, HttpServer, Limits, Mounts, Refused, Request, Response, Route
from agent.health_metrics import CONTENT_TYPE, render
from agent.health_status import (
    AgentStatus,
    BufferStatus,
    Check,
    HandlerStatus,
    SourceStatus,
    Status,
    SyncStatus,
    health_of,
)

__all__ = [
    "Address",
    "AgentStatus",
    "Answer",
    "BufferStatus",
    "Check",
    "HandlerStatus",
    "HealthConfig",
    "HealthServer",
    "Mounts",
    "Refused",
    "Request",
    "Response",
    "Route",
    "SourceStatus",
    "Status",
    "SyncStatus",
]
UNIX = "unix:"
UNIX_PATH_BYTES_MAX = 107
"""What the kernel takes."""

_HOST = re.compile(r"[0-9a-z._-]+|[0-9a-f:.]+(%[0-9a-z]+)?")


def parse_address(text: str) -> Address:
    """The address in "127.0.0.1:8801", "[::1]:8801" or "unix:/path". Raises ValueError with a sentence."""
    if text.startswith(UNIX):
        path = text.removeprefix(UNIX)
        if not path.startswith("/") or "\0" in path:
            raise ValueError(f"{text!r} is no socket's path; write unix:/run/linewarden/agent.sock")
        if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
            raise ValueError(
                f"a socket's path has at most {UNIX_PATH_BYTES_MAX} bytes, this one {len(os.fsencode(path))}; choose a shorter one"
            )
        return Address(path=path)
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port is None or not _HOST.fullmatch(host) or text.rpartition(":")[0].strip("[]").lower() != host:
        raise ValueError(
            f"{text!r} is not an address to listen on; write 127.0.0.1:8801, [::1]:8801 or unix:/run/linewarden/agent.sock"
        )
    return Address(host, port)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthConfig:
    """[health]

    listen           host:port or unix:/path, or a list of these; an empty list: no endpoint. Port 0: any that is free
    allow_remote     listen on an address that other computers reach: whoever reaches it reads what the agent is doing
    connections_max  at once; when all are busy one more is answered 503
    request_s_max    for a request to arrive, to be answered, and for its answer to be taken, each; who is slower is cut off
    idle_s_max       how long a connection is kept without a request
    """

    listen: str | Annotated[tuple[str, ...], Len(0, 8)] = "127.0.0.1:8801"
    allow_remote: bool = False
    connections_max: Annotated[int, Ge(1), Le(1_000)] = 64
    request_s_max: Annotated[float, Gt(0), Le(600)] = 10.0
    idle_s_max: Annotated[float, Gt(0), Le(3_600)] = 60.0

    def __post_init__(self) -> None:
        try:
            addresses = self.addresses()
        except ValueError as error:
            raise ValueError(f"listen: {error}") from None
        remote = next((each for each in addresses if not each.is_local), None)
        if remote is not None and not self.allow_remote:
            raise ValueError(
                f"listen: {remote} is reached by other computers, who could read what the agent is doing; "
                "listen on 127.0.0.1, or set allow_remote = true"
            )

    def addresses(self) -> tuple[Address, ...]:
        """All of them, parsed."""
        return tuple(map(parse_address, (self.listen,) if isinstance(self.listen, str) else self.listen))

    def problems(self) -> Iterable[tuple[str, str, str]]:
        """Whether a socket's path is taken by something else."""
        for address in self.addresses():
            path = Path(address.path)
            if not address.path:
                continue
            try:
                if path.exists() and not path.is_socket():
                    yield "listen", f"{path} is there and is no socket", "Move it away, or choose another path."
            except OSError as error:
                yield "listen", f"{path}: {error.strerror}", "Choose a path that the agent's user can reach."


def process_facts() -> tuple[int, float]:
    """Bytes of memory of this process now, and seconds of processor time since it began."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE"), used.ru_utime + used.ru_stime
    return used.ru_maxrss * 1024, used.ru_utime + used.ru_stime


class HealthServer:
    """See the module. Cold until `start`; `close` ends it."""

    def __init__(
        self,
        config: HealthConfig,
        status: Callable[[], Awaitable[Status]],
        checks: Callable[[], Sequence[Check]],
        ready: Callable[[], Sequence[Check]] | None = None,
        mounts: Mounts | None = None,
    ) -> None:
        limits = Limits(config.connections_max, config.request_s_max, config.idle_s_max)
        self._http = HttpServer(config.addresses(), limits, mounts=mounts)
        self._status = status
        self._http.add("GET", "/healthz", Route(_answering(checks)))
        self._http.add("GET", "/readyz", Route(_answering(ready or checks)))
        self._http.add("GET", "/status", Route(self._answer_status))
        self._http.add("GET", "/metrics", Route(self._answer_metrics))
        self.add = self._http.add
        self.remove = self._http.remove

    @property
    def bound(self) -> list[Address]:
        """Where it listens, with the ports that were found."""
        return self._http.bound

    async def start(self) -> None:
        """Listen. Raises ConfigError where an address cannot be had."""
        await self._http.start()

    async def close(self) -> None:
        """Listen no more; requests under way may end."""
        await self._http.close()

    async def _answer_status(self, _: Request) -> Response:
        return Response(200, msgspec.json.encode(await self._status()))

    async def _answer_metrics(self, _: Request) -> Response:
        return Response(200, render(await self._status(), now_us()).encode(errors="replace"), CONTENT_TYPE)


def _answering(checks: Callable[[], Sequence[Check]]) -> Answer:
    async def answer(_: Request) -> Response:
        health = health_of(checks())
        return Response(200 if health.ok else 503, msgspec.json.encode(health))

    return answer
