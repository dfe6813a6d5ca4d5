"""Brings what is in the buffer to the centre, in order, and lets go of it once it is durable there.

One request is under way at a time: what arrives meanwhile waits in the buffer and goes with the next one, so requests are small when the
line is quiet and full when there is a backlog. Lane 0 goes first, always. Only as much as one request holds is in memory.

        ┌───────────── something to send, or HEARTBEAT_S passed ─────────────┐
        ▼                                                                    │
    SENDING ──ack──► IDLE ───────────────────────────────────────────────────┘
        │ ▲
        │ └── after a wait: full jitter, or what Retry-After asks
        ▼
    WAITING ──FAILURES_OPEN failures in a row──► PROBING: one small batch a try, until one is taken
"""

import asyncio
import ipaddress
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from annotated_types import Ge, Gt
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from agent.buffer import Buffer, Stored
from agent.component import Ack, ConfigError, Refusal, Sink, TooLarge, Unavailable, now_us

FAILURES_OPEN = 5
HEARTBEAT_S = 30.0
"""A sign of life is sent when nothing else was for so long."""
REFUSED_WAIT_S = 30.0
"""A batch that the collector cannot read although it is whole here needs a person; it is offered again this often."""
PROBE_BYTES = 1
"""`peek` gives one batch for any bound, so this asks for exactly one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncConfig:
    """[sync]

    url                   the collector, https://host:port
    ca_file               certificate authority to trust for it (PEM), and nobody else; none: the one that came with the enrolment
    system_ca             trust whom the operating system trusts, as well
    certificate_file      client certificate (PEM), where a proxy in front of the collector asks for one
    certificate_key_file  its private key
    key_file              file with an API key, for an agent that is not enrolled
    batch_bytes_max       bytes of batches in one request
    rate_bytes_per_s_max  0: no limit
    timeout_s             of one request, its answer included
    backoff_s_max         longest wait between two tries while the collector is away
    allow_plaintext       http:// to other than this computer; the events then travel unprotected
    """

    url: str
    ca_file: str | None = None
    system_ca: bool = False
    certificate_file: str | None = None
    certificate_key_file: str | None = None
    key_file: str | None = None
    batch_bytes_max: Annotated[int, Ge(16_384)] = 1_048_576
    rate_bytes_per_s_max: Annotated[int, Ge(0)] = 0
    timeout_s: Annotated[float, Gt(0)] = 30.0
    backoff_s_max: Annotated[float, Gt(0)] = 60.0
    allow_plaintext: bool = False

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.certificate_key_file is None):
            raise ValueError("certificate_file and certificate_key_file belong together: give both, or neither")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url {self.url!r} is no collector's address; write https://host:port")
        if parts.scheme == "http" and not self.allow_plaintext and not is_loopback(parts.hostname):
            raise ValueError(
                "url is http:// to another computer: events would travel unprotected. Use https://, or set allow_plaintext = true"
            )


def _before(batches: list[Stored], refusal: Refusal) -> list[Stored]:
    place = (refusal.buffer, refusal.lane, refusal.no)
    return list(takewhile(lambda batch: (batch.buffer, batch.lane, batch.no) != place, batches))


def is_loopback(host: str) -> bool:
    """Whether a host is this computer."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


@dataclass(slots=True)
class SyncState:
    """Where sync stands; shown in /status and /metrics."""

    state: Literal["idle", "sending", "waiting", "probing"] = "idle"
    failures: int = 0
    """Failures in a row."""
    failures_total: int = 0
    last_error: str | None = None
    trouble: str | None = None
    """Why the collector takes nothing (`Unavailable.kind`, or configuration); None while it takes what is sent."""
    failing_since_us: int | None = None
    last_success_us: int | None = None
    sent_batches: int = 0
    sent_events: int = 0
    sent_bytes: int = 0
    requests: int = 0
    wait_until_us: int | None = None


class Sync:
    """The loop that empties a buffer into a sink. `status` gives what is sent along as the agent's state."""

    def __init__(self, config: SyncConfig, buffer: Buffer, sink: Sink, status: Callable[[], dict[str, Any]]) -> None:
        self.config = config
        self.state = SyncState()
        self._buffer = buffer
        self._sink = sink
        self._status = status
        self._bytes_max = config.batch_bytes_max
        self._retry_after_s: float | None = None
        self._jitter = wait_random_exponential(multiplier=0.5, max=config.backoff_s_max)
        self._earliest = 0.0

    async def run(self) -> None:
        """Send until cancelled. Whatever the collector does, this goes on."""
        while True:
            await self._wait_for_work()
            retrying = AsyncRetrying(
                retry=retry_if_exception_type((Unavailable, ConfigError)),
                wait=self._wait_s,
                before_sleep=self._note_failure,
                reraise=True,
            )
            async for attempt in retrying:
                with attempt:
                    await self._turn()

    async def flush(self, timeout_s: float) -> None:
        """One last try at shutdown to bring what is left, as long as it works at once."""
        with suppress(Unavailable, ConfigError, TooLarge, TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._buffer.pending_events:
                    await self._turn()

    async def _wait_for_work(self) -> None:
        if not self._buffer.pending_events:
            self._buffer.growth.clear()
            if not self._buffer.pending_events:
                self.state.state = "idle"
                with suppress(TimeoutError):
                    async with asyncio.timeout(HEARTBEAT_S):
                        await self._buffer.growth.wait()
        await asyncio.sleep(max(0.0, self._earliest - time.monotonic()))

    async def _turn(self) -> None:
        """One request: peek, send, act upon the answer."""
        probing = self.state.failures >= FAILURES_OPEN
        batches = await self._buffer.peek(PROBE_BYTES if probing else self._bytes_max)
        self.state.state = "probing" if probing else "sending"
        self.state.wait_until_us = None
        self.state.requests += 1
        try:
            ack = await self._sink.send([batch.wire for batch in batches], self._status())
        except TooLarge as error:
            self._shrink(batches, error)
            return
        await self._settle(batches, ack)

    async def _settle(self, batches: list[Stored], ack: Ack) -> None:
        for (buffer, lane), no in ack.through.items():
            await self._buffer.ack(buffer, lane, no)
        if ack.refused is not None:
            before = _before(batches, ack.refused)
            if before and ack.refused.code != "missing":
                # Nothing of the request was stored. What stands before the refused batch goes first, so that it is settled whether
                # the centre has it, and the refused one comes at the head of a request.
                self._bytes_max = sum(len(batch.wire) for batch in before)
                return
            await self._answer(ack.refused)
            return
        size = sum(len(batch.wire) for batch in batches)
        state = self.state
        state.failures, state.last_error, state.last_success_us = 0, None, now_us()
        state.trouble = state.failing_since_us = None
        state.sent_batches += len(batches)
        state.sent_events += sum(batch.events for batch in batches)
        state.sent_bytes += size
        self._bytes_max = min(self.config.batch_bytes_max, self._bytes_max * 2)
        if self.config.rate_bytes_per_s_max:
            self._earliest = time.monotonic() + size / self.config.rate_bytes_per_s_max

    async def _answer(self, refusal: Refusal) -> None:
        """The collector is there and wants something else. Each answer here changes what is sent next, or waits."""
        self.state.last_error = refusal.text
        if refusal.code == "missing":
            await self._buffer.expect(refusal.buffer, refusal.lane, refusal.expected, refusal.head_hash)
        elif refusal.code == "forked":
            await self._buffer.fork(refusal.buffer, refusal.lane)
        elif await self._buffer.check(refusal.buffer, refusal.lane, refusal.no):
            raise Unavailable(
                f"{refusal.text}. The batch is whole here: agent and collector disagree",
                REFUSED_WAIT_S,
                kind="disputed",
            )
        self.state.failures += 1
        if self.state.failures > FAILURES_OPEN:
            raise Unavailable(refusal.text, kind="disputed")

    def _shrink(self, batches: list[Stored], error: TooLarge) -> None:
        if len(batches) <= 1:
            raise Unavailable(
                f"{error}. A single batch is too large: raise the collector's request_bytes_max",
                REFUSED_WAIT_S,
                kind="disputed",
            )
        self._bytes_max = max(1, sum(len(batch.wire) for batch in batches) // 2)

    def _wait_s(self, retry: RetryCallState) -> float:
        error = retry.outcome.exception() if retry.outcome else None
        asked = error.retry_after_s if isinstance(error, Unavailable) else REFUSED_WAIT_S
        return max(self._jitter(retry), asked or 0.0)

    def _note_failure(self, retry: RetryCallState) -> None:
        error = retry.outcome.exception() if retry.outcome else None
        state = self.state
        state.failures += 1
        state.failures_total += 1
        state.last_error = str(error)
        state.trouble = error.kind if isinstance(error, Unavailable) else "configuration"
        state.failing_since_us = state.failing_since_us or now_us()
        state.state = "probing" if state.failures >= FAILURES_OPEN else "waiting"
        wait_s = retry.next_action.sleep if retry.next_action else 0.0
        state.wait_until_us = now_us() + int(wait_s * 1e6)
