"""Keeps publish requests waiting at the server, and acknowledges to it only what the agent has made durable.

A message stays in the server's retransmission queue until it is acknowledged; the acknowledgement travels with the next publish after
`acknowledge` was called, which is after the commit. So whatever is lost with this process or this connection can be asked for again.

Bounded: PUBLISHES_IN_FLIGHT requests at the server and WAITING_MAX answers here. When the buffer stalls, no further publish is sent, and
the values wait in the server's own queues, which say so in the status code when they overflow.
"""

import asyncio
from typing import Any

from agent.component import NotConnected
from agent.sources.opcua_private import Link, Published, ua

PUBLISHES_IN_FLIGHT = 3
WAITING_MAX = 4
ACKNOWLEDGEMENTS_MAX = 500
"""In one request; the rest goes with the next."""


TIMED_OUT_PAUSE_S = 0.2
"""Some servers answer a publish with BadTimeout when nothing happened; one that does so at once must not make us spin."""


class SubscriptionLost(NotConnected):
    """The server has no such subscription any more: there is nothing to continue, a new one has to be made."""


class PublishPump:
    """Start it when the subscriptions stand; `next` gives what came; `close` ends it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._came: asyncio.Queue[Published | Exception] = asyncio.Queue(WAITING_MAX)
        self._acknowledged: list[tuple[int, int]] = []
        self._workers: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Send the first requests."""
        for _ in range(PUBLISHES_IN_FLIGHT):
            task = asyncio.create_task(self._work())
            self._workers.add(task)
            task.add_done_callback(self._workers.discard)

    def acknowledge(self, subscription_id: int, sequence: int) -> None:
        """A message is durable here: the server may forget it."""
        self._acknowledged.append((subscription_id, sequence))

    async def next(self, timeout_s: float, notifications_max: int) -> list[Published]:
        """What came since the last call, at least one message and not many more notifications than asked for. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            first = await self._came.get()
        came = [_checked(first)]
        while not self._came.empty() and sum(_size(message) for message in came) < notifications_max:
            following = self._came.get_nowait()
            if isinstance(following, Exception):
                # What came before it is good: hand it out, and meet the error on the next call.
                self._came.put_nowait(following)
                break
            came.append(following)
        return came

    async def _work(self) -> None:
        """One request at the server at any time. Whatever goes wrong is told to `next`, and ends this worker."""
        while True:
            taken, self._acknowledged = (
                self._acknowledged[:ACKNOWLEDGEMENTS_MAX],
                self._acknowledged[ACKNOWLEDGEMENTS_MAX:],
            )
            try:
                published = await self._link.publish(taken)
            except ua.UaStatusCodeError as error:
                if error.code == ua.StatusCodes.BadTooManyPublishRequests and len(self._workers) > 1:
                    self._acknowledged += taken
                    return
                if error.code == ua.StatusCodes.BadTimeout:
                    self._acknowledged += taken
                    await asyncio.sleep(TIMED_OUT_PAUSE_S)
                    continue
                await self._came.put(error)
                return
            except (OSError, TimeoutError, NotConnected, ua.UaError) as error:
                await self._came.put(error)
                return
            await self._came.put(published)

    async def close(self) -> None:
        """Stop waiting. What was not acknowledged stays at the server."""
        workers = list(self._workers)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def _checked(came: Published | Exception) -> Published:
    if isinstance(came, Published):
        return came
    if isinstance(came, ua.UaStatusCodeError) and came.code in (
        ua.StatusCodes.BadNoSubscription,
        ua.StatusCodes.BadSubscriptionIdInvalid,
    ):
        raise SubscriptionLost("the server has dropped the subscription")
    raise came


def _size(message: Published) -> int:
    notifications: list[Any] = message.notifications or []
    return sum(len(getattr(each, "changes", None) or getattr(each, "Events", None) or ()) for each in notifications)
