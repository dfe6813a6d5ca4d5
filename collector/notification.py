"""Telling alerts: at least once each, with retry and back-off, and never as a flood.

    alert ──same transaction──► outbox ──put together──► message ──try──► sent
                                                            └──► tried again … after attempts_max: dead, and shown

Everything that waits for a target goes into one message, and there are at most `per_minute_max` messages a minute: ten thousand alerts
are a few messages that list some and say "and N more". Any collector may send any message; it is marked as in work for a while first,
and as sent only after the other side took it.
"""

import asyncio
import contextlib
import logging
import random
from collections import Counter
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID, uuid4

import msgspec
from litestar import Request, get, post
from litestar.datastructures import State
from litestar.params import QueryParameter
from msgspec import Struct

from collector import audit
from collector.background import Pulse
from collector.notification_targets import SEVERITIES, Mail, NotificationSettings, Undelivered, Webhook
from collector.problems import Problem
from collector.store import notifications as store
from collector.store.database import Database, StoreMisconfigured, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from collector.access import Caller

_log = logging.getLogger("linewarden.collector.notification")

POLL_S = 2.0
CLEAN_EVERY_S = 3_600.0
SERVE_LATE_S = 300.0
BACKOFF_S_MAX = 900.0
LEASE_S = 10.0
"""A message in work is left alone for its time limit and so much more."""


class Notifier:
    """One a collector."""

    def __init__(self, database: Database, settings: NotificationSettings) -> None:
        self._database = database
        self._targets: Mapping[str, Webhook | Mail] = settings.targets
        self._wakes = {name: asyncio.Event() for name in settings.targets}
        self._pulses = {name: Pulse() for name in settings.targets}
        self._cleaned = Pulse()
        self.tried: Counter[tuple[str, str]] = Counter()
        """Tries of this collector, by target and outcome: sent, failed, dead."""

    @property
    def names(self) -> list[str]:
        """Of the targets."""
        return sorted(self._targets)

    @property
    def routes(self) -> list[tuple[str, Any]]:
        """Targets and which alert events they want."""
        return [(name, target.matches) for name, target in self._targets.items()]

    def wake(self) -> None:
        """Something lies in the outbox."""
        for event in self._wakes.values():
            event.set()

    def tasks(self) -> "Iterator[tuple[str, Callable[[], Awaitable[None]], Pulse, float]]":
        """Yield what is to be run until cancelled: name, function, pulse, and its late_s. Each target by itself: one that hangs
        holds up no other.
        """
        for name, target in self._targets.items():
            yield f"notifications of {name}", partial(self._serve, name, target), self._pulses[name], SERVE_LATE_S
        yield "notification cleanup", self._clean, self._cleaned, 2 * CLEAN_EVERY_S

    async def _serve(self, name: str, target: Webhook | Mail) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._wakes[name].wait()
            self._wakes[name].clear()
            try:
                await self._put_together(name, target)
                while await self._try(name, target):
                    pass
                self._pulses[name].ok()
            except (StoreUnavailable, StoreMisconfigured) as error:
                self._pulses[name].waits(error)
                _log.warning("notifications of %s wait for the database: %s", name, error)
                await asyncio.sleep(random.uniform(1.0, 3.0))  # noqa: S311 - a jitter

    async def _clean(self) -> None:
        while True:
            await asyncio.sleep(CLEAN_EVERY_S * random.uniform(0.5, 1.0))  # noqa: S311 - a jitter
            with contextlib.suppress(StoreUnavailable, StoreMisconfigured):
                async with self._database.connection() as connection, connection.transaction():
                    await store.clean(connection)
                self._cleaned.ok()

    async def _put_together(self, name: str, target: Webhook | Mail) -> None:
        async with self._database.connection() as connection, connection.transaction():
            taken = await store.put_together(
                connection, name, per_minute_max=target.per_minute_max, listed_max=target.listed_max
            )
            if taken is not None:
                body = body_of(taken.message_id, name, [dict(row) for row in taken.alerts], taken.count)
                await store.keep_body(connection, taken.message_id, taken.count, body)

    async def _try(self, name: str, target: Webhook | Mail) -> bool:
        """Whether there was one to be tried."""
        lease_s = target.timeout_s * 2 + LEASE_S
        async with self._database.connection() as connection:
            message = await store.claim(connection, name, lease_s)
        if message is None:
            return False
        number: UUID = message["message_id"]
        try:
            await target.send(str(number), msgspec.json.decode(message["body"]))
        except Undelivered as error:
            await self._failed(name, target, message, str(error))
            return True
        self.tried[name, "sent"] += 1
        async with self._database.connection() as connection:
            await store.sent(connection, number)
        return True

    async def _failed(self, name: str, target: Webhook | Mail, message: Any, trouble: str) -> None:
        attempts: int = message["attempts"]
        dead = attempts >= target.attempts_max
        self.tried[name, "dead" if dead else "failed"] += 1
        wait_s = min(BACKOFF_S_MAX, target.backoff_s * 2 ** min(attempts - 1, 20)) * random.uniform(0.75, 1.0)  # noqa: S311
        async with self._database.connection() as connection:
            await store.failed(connection, message["message_id"], trouble, None if dead else wait_s)
        level, what = (logging.ERROR, "is given up") if dead else (logging.WARNING, f"is tried again in {wait_s:.0f} s")
        _log.log(level, "message %s to %s was not taken (%s) and %s", message["message_id"], name, trouble, what)


def body_of(message_id: UUID, target: str, alerts: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """What a message says. Only what is named here: nothing personal gets into it by itself."""
    listed = [
        {
            "alert_id": one["alert_id"], "incident_id": one["incident_id"], "why": one["why"], "severity": one["severity"],
            "type": one["type"], "rule": one["rule"], "message": one["message"], "src_ip": one["src_ip"], "target": one["target"],
            "site": one["site"], "line": one["line"], "station": one["station"],
            "where": "/".join(filter(None, (one["site"], one["line"], one["station"]))), "count": one["count"], "state": one["state"],
            "first": _iso(one["first"]), "last": _iso(one["last"]),
        }
        for one in alerts
    ]  # fmt: skip
    worst = listed[0] if listed else None
    subject = "Linewarden: no alert"
    if worst is not None:
        subject = f"Linewarden: {SEVERITIES[worst['severity']]}: {worst['message'] or worst['type']}"[:200]
        subject += f" and {count - 1} more" if count > 1 else ""
    made = _iso(datetime.now(UTC))
    return {
        "message_id": str(message_id), "target": target, "made": made, "subject": subject, "count": count, "alerts": listed,
        "more": count - len(listed),
    }  # fmt: skip


def _iso(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def example(name: str) -> tuple[str, dict[str, Any]]:
    """A message that says that it is a test."""
    number, now = uuid4(), datetime.now(UTC)
    alert = {
        "alert_id": 0, "incident_id": 0, "why": "test", "severity": 1, "type": "alert.test", "rule": "test", "src_ip": None, "target": None,
        "message": "this is a test of the notification, nothing happened", "site": "", "line": "", "station": "", "count": 1,
        "state": "closed", "first": now, "last": now,
    }  # fmt: skip
    return str(number), body_of(number, name, [alert], 1)


class TargetOut(Struct):
    """How far a target is. `alerts_waiting`: in no message yet; `dead`: messages that were given up; `trouble`: the latest."""

    target: str
    alerts_waiting: int
    waiting: int
    sent: int
    dead: int
    last_sent: datetime | None
    trouble: str | None


class MessageOut(Struct):
    """A message."""

    message_id: UUID
    target: str
    made: datetime
    alerts: int
    state: str
    attempts: int
    next_try: datetime
    trouble: str | None
    done: datetime | None


class Notifications(Struct):
    """Targets, and the latest messages."""

    targets: list[TargetOut]
    messages: list[MessageOut]


@get(
    "/v1/notifications",
    opt={"access": "read"},
    tags=["alerts"],
    summary="Notifications: what was sent, waits, was given up",
)
async def get_notifications(
    request: Request[Any, Any, Any],
    state: State,
    of: Annotated[Literal["waiting", "sent", "dead"] | None, QueryParameter(name="state")] = None,
    limit: Annotated[int, QueryParameter(name="limit", ge=1, le=1_000)] = 100,
) -> Notifications:
    """For those who may see every place: messages tell of all of them."""
    _everywhere(request.auth)
    database: Database = state.database
    async with database.connection() as connection:
        targets = await store.targets(connection)
        messages = await store.messages(connection, state=of, limit=limit)
    return Notifications([TargetOut(*row) for row in targets], [MessageOut(*row) for row in messages])


@post(
    "/v1/notifications/{message_id:uuid}/retry",
    status_code=204,
    opt={"access": "work"},
    tags=["alerts"],
    summary="Try a dead message again",
)
async def retry_notification(request: Request[Any, Any, Any], state: State, message_id: UUID) -> None:
    """From its first try on."""
    caller: Caller = request.auth
    _everywhere(caller)
    database: Database = state.database
    async with database.connection() as connection, connection.transaction():
        if not await store.again(connection, message_id):
            raise Problem(404, "there is no such message that was given up", code="notification")
        await audit.record(connection, caller.who, "notification.retried", target=f"notification/{message_id}")


def _everywhere(caller: "Caller") -> None:
    if not store.everywhere(caller.scope):
        raise Problem(403, "notifications tell of every place; your key or user sees some only", code="scope")


ROUTES = [get_notifications, retry_notification]
