"""Reads an OPC UA server by subscription: every change as an event, or a gap that says it is missing.

Continuity is a subscription's id and the sequence number of its last durable message. Both stand in the cursor, and so does the
session's token: after a cut, a restart of the agent or a `kill -9`, the session is taken up again at the server, the messages after
the last durable one are asked for again (Republish), and what piled up in the server's queues follows. Only where the server
has forgotten all that, a new subscription begins, and a `collection.gap` says from when to when nobody was listening.

    connect ─► continue, or create + gap ─► publish ─► events ─► yield ─► (committed) ─► acknowledge ─► publish …

Loss is declared: a hole in the sequence numbers that Republish cannot fill, the overflow bit (0x480), a queue that came full from a
server that never sets that bit, a message that could not be decoded, a subscription that is gone.

A node that does not exist is named in the report and tried again; it silences nobody (telegraf#19186).
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le

from agent.component import Cursor, Report, now_us
from agent.sources.opcua_connect import Access, CertificateChanged, Connection, connect, translated
from agent.sources.opcua_nodes import OVERFLOW, ConfigNode, Item, default_name, reading, resolve
from agent.sources.opcua_private import Published, subscription_is_gone, ua
from agent.sources.opcua_pump import PublishPump, SubscriptionLost
from agent.sources.opcua_trust import thumbprint
from agent.wire.event import Event

NOTIFICATIONS_MAX = 2_000
"""Asked of the server for one message, and about what one yield carries."""
REPUBLISH_MAX = 10_000
"""Messages asked for again after an absence; what lies beyond is declared a gap when the next number comes."""
REMEMBERED_MAX = 1_000
"""Last values kept in the cursor. Beyond it a change is not told from a first reading; `values_not_remembered` counts."""
RETRY_MISSING_S = 30.0
GAP_NAMES_MAX = 20

SECURITIES = Literal[
    "None",
    "Basic256Sha256/Sign",
    "Basic256Sha256/SignAndEncrypt",
    "Aes128Sha256RsaOaep/Sign",
    "Aes128Sha256RsaOaep/SignAndEncrypt",
    "Aes256Sha256RsaPss/Sign",
    "Aes256Sha256RsaPss/SignAndEncrypt",
    "Basic256/Sign",
    "Basic256/SignAndEncrypt",
    "Basic128Rsa15/Sign",
    "Basic128Rsa15/SignAndEncrypt",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigOpcUa:
    """One OPC UA server. Files named here are read when connecting; `state_dir` holds what the agent makes itself."""

    url: str
    security: SECURITIES = "Basic256Sha256/SignAndEncrypt"
    server_certificate_file: str | None = None
    client_certificate_file: str | None = None
    client_key_file: str | None = None
    state_dir: str | None = None
    user: str | None = None
    password_file: str | None = None
    user_certificate_file: str | None = None
    user_key_file: str | None = None
    allow_password_in_clear: bool = False
    nodes: tuple[str | ConfigNode, ...] = ()
    publishing_interval_ms: Annotated[float, Ge(10), Le(60_000)] = 250.0
    sampling_interval_ms: Annotated[float, Ge(0), Le(86_400_000)] = 250.0
    queue_size: Annotated[int, Ge(1), Le(100_000)] = 1_000
    timeout_s: Annotated[float, Gt(0), Le(120)] = 10.0
    dead_after_s: Annotated[float, Ge(1), Le(600)] = 10.0
    session_s: Annotated[float, Ge(10), Le(86_400)] = 600.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme != "opc.tcp" or not parts.hostname:
            raise ValueError(f"url: {self.url!r} is not an OPC UA address; write opc.tcp://HOST:4840/PATH")
        if parts.username or parts.password:
            raise ValueError("url: credentials in a URL end up in logs; give user and password_file instead")
        if self.user and not self.password_file:
            raise ValueError("password_file: missing; user needs it (a file with the password and nothing else)")
        if self.user and self.security == "None" and not self.allow_password_in_clear:
            raise ValueError(
                'user: would cross the network in clear with security = "None"; choose a security, or set allow_password_in_clear = true'
            )
        if bool(self.user_certificate_file) != bool(self.user_key_file):
            raise ValueError(
                "user_key_file: user_certificate_file and user_key_file belong together; give both or neither"
            )
        names = [node.name or default_name(node.node) for node in self.configured()]
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice is not None:
            raise ValueError(f"nodes: two nodes are called {twice!r}; give one of them another name")

    def configured(self) -> list[ConfigNode]:
        """The nodes, with those given as mere text made whole."""
        return [ConfigNode(node=node) if isinstance(node, str) else node for node in self.nodes]

    def access(self) -> Access:
        """What connecting needs of this."""
        return Access(
            url=self.url,
            security=self.security,
            state_dir=self.state_dir,
            server_certificate_file=self.server_certificate_file,
            client_certificate_file=self.client_certificate_file,
            client_key_file=self.client_key_file,
            user=self.user,
            password_file=self.password_file,
            user_certificate_file=self.user_certificate_file,
            user_key_file=self.user_key_file,
            timeout_s=self.timeout_s,
            session_s=self.session_s,
        )

    def problems(self) -> Iterable[tuple[str, str, str]]:
        """Files that are not there or cannot be read: (key, what is wrong, what to do)."""
        for key in (
            "server_certificate_file",
            "client_certificate_file",
            "client_key_file",
            "password_file",
            "user_certificate_file",
            "user_key_file",
        ):
            path = getattr(self, key)
            if path is None:
                continue
            try:
                with Path(path).open("rb"):
                    pass
            except OSError as error:
                yield key, f"{path}: {error.strerror}", "Name a file that exists and that the agent's user can read."


@dataclass(slots=True)
class Subscription:
    """A subscription at the server: how far it has been taken, and what it was made for."""

    id: int
    sequence: int
    """Of the last message that was taken; 0 before the first."""
    plan: str
    """Fingerprint of the items: a subscription made for others cannot be continued."""
    heard_s: float = field(default_factory=time.monotonic)

    @property
    def next_sequence(self) -> int:
        """Sequence numbers begin again at 1, never 0."""
        return self.sequence + 1 if self.sequence < 2**32 - 1 else 1


@dataclass(slots=True)
class Position:
    """The cursor, unpacked."""

    session: tuple[str, str] | None = None
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    known: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    seen_us: int | None = None
    """When the last message was taken; None before the first."""
    queue_size: int = 0
    certificate_reported: str | None = None

    @classmethod
    def load(cls, cursor: Cursor | None) -> "Position":
        """From a cursor; an empty one where there is none or it is of another version."""
        if not cursor or cursor.get("v") != 1:
            return cls()
        return cls(
            session=(cursor["session"][0], cursor["session"][1]) if cursor["session"] else None,
            subscriptions={kind: Subscription(*each) for kind, each in cursor["subscriptions"].items()},
            known=dict(cursor["known"]),
            missing=list(cursor["missing"]),
            seen_us=cursor["seen_us"],
            queue_size=cursor["queue_size"],
            certificate_reported=cursor["certificate_reported"],
        )

    def save(self) -> Cursor:
        """As a cursor."""
        return {
            "v": 1,
            "session": self.session,
            "subscriptions": {kind: [each.id, each.sequence, each.plan] for kind, each in self.subscriptions.items()},
            "known": dict(self.known),
            "missing": self.missing,
            "seen_us": self.seen_us,
            "queue_size": self.queue_size,
            "certificate_reported": self.certificate_reported,
        }


class OpcUaSource:
    """A server, read by subscription. See the module's text."""

    Config: ClassVar[type] = ConfigOpcUa
    rereadable: ClassVar[bool] = False

    def __init__(self, name: str, config: ConfigOpcUa, report: Report) -> None:
        self._name = name
        self._config = config
        self._report = report
        self._items: dict[int, Item] = {}
        self._distrusted: int | None = None
        """The id of a subscription that turned out to be gone: it is in the cursor still, and must not be continued."""
        self._retry_missing_s = 0.0

    async def batches(self, cursor: Cursor | None) -> AsyncGenerator[tuple[list[Event], Cursor | None], None]:
        """One connection's worth of events; see agent.component.Source."""
        position = Position.load(cursor)
        try:
            connection = await connect(self._config.access(), position.session)
        except CertificateChanged as changed:
            event = self._certificate_event(changed, position)
            if event is not None:
                yield [event], position.save()
            raise
        pump = PublishPump(connection.link)
        try:
            with translated(self._config.url):
                events = await self._subscribe(connection, position)
            self._report.ok()
            # Also without events: from here on the cursor knows the session, and a kill finds its way back.
            yield events, position.save()
            pump.start()
            while True:
                with translated(self._config.url):
                    events, taken = await self._next(connection, position, pump)
                if events:
                    yield events, position.save()
                for subscription_id, sequence in taken:
                    pump.acknowledge(subscription_id, sequence)
                for subscription in position.subscriptions.values():
                    subscription.heard_s = max(subscription.heard_s, time.monotonic() - self._config.dead_after_s / 2)
        except SubscriptionLost:
            self._distrust(position)
            raise
        finally:
            await pump.close()
            await connection.link.drop()

    # Subscribing --------------------------------------------------------------------------------------------------------------

    async def _subscribe(self, connection: Connection, position: Position) -> list[Event]:
        """Continue what there was, or begin anew; the events that come with it."""
        plan = self._plan(connection)
        earlier = position.subscriptions.get("data")
        position.session = connection.link.session()
        if (
            earlier is not None
            and earlier.plan == plan
            and earlier.id != self._distrusted
            and (not connection.resumed or earlier.id)
        ):
            events = await self._continue(connection, position, earlier)
            if events is not None:
                return events
        if earlier is not None and connection.resumed:
            await connection.link.delete_subscription(earlier.id)
        await self._create(connection, position, plan)
        if earlier is None and position.seen_us is None:
            return []
        reason = (
            "the server no longer had the subscription"
            if earlier is None or earlier.plan == plan
            else "the watched nodes changed"
        )
        return [self._gap(f"{reason}; changes in between are unknown", position.seen_us)]

    def _plan(self, connection: Connection) -> str:
        """Lay out the items for this session, keeping what is known of them; the fingerprint of what was laid out.

        A handle is made of the node's text, not of its place in a list, so that another process arrives at the same one.
        """
        before = {item.name: item for item in self._items.values()}
        self._items = {}
        for node in sorted(self._config.configured(), key=lambda node: node.node):
            handle = int.from_bytes(hashlib.blake2b(node.node.encode(), digest_size=4).digest(), "big")
            while handle in self._items:
                handle = (handle + 1) % 2**32
            item = Item(node, handle, node.name or default_name(node.node))
            item.node_id = resolve(node.node, connection.namespaces)
            if item.name in before:
                item.seen = before[item.name].seen
            self._items[handle] = item
        described = repr(
            [(h, i.config, self._config.sampling_interval_ms, self._config.queue_size) for h, i in self._items.items()]
        )
        return hashlib.sha256(described.encode()).hexdigest()[:16]

    async def _continue(
        self, connection: Connection, position: Position, subscription: Subscription
    ) -> list[Event] | None:
        """Take an earlier subscription up again and fetch what was sent in between. None where the server does not have it."""
        link = connection.link
        if not connection.resumed and not await link.transfer(subscription.id):
            return None
        for item in self._items.values():
            item.watched, item.fresh = item.config.node not in position.missing, False
            item.queue_size = position.queue_size or self._queue_size(item)
        events: list[Event] = []
        for _ in range(REPUBLISH_MAX):
            try:
                again = await link.republish(subscription.id, subscription.next_sequence)
            except ua.UaStatusCodeError as error:
                if subscription_is_gone(error):
                    return None
                raise
            if again is None:
                break
            self._report.count("messages_republished")
            events += self._take(position, subscription, again)
        subscription.heard_s = time.monotonic()
        self._name_missing()
        return events

    async def _create(self, connection: Connection, position: Position, plan: str) -> None:
        """A new subscription with all items. What it was before is forgotten."""
        config = self._config
        parameters = ua.CreateSubscriptionParameters()
        parameters.RequestedPublishingInterval = config.publishing_interval_ms
        parameters.RequestedMaxKeepAliveCount = max(
            1, round(config.dead_after_s * 1000 / 4 / config.publishing_interval_ms)
        )
        parameters.RequestedLifetimeCount = max(
            3 * parameters.RequestedMaxKeepAliveCount, round(config.session_s * 1000 / config.publishing_interval_ms)
        )
        parameters.MaxNotificationsPerPublish = NOTIFICATIONS_MAX
        parameters.PublishingEnabled = True
        created = await connection.link.create_subscription(parameters)
        for item in self._items.values():
            item.watched, item.fresh = False, True
        position.subscriptions["data"] = Subscription(created.SubscriptionId, 0, plan)
        await self._watch(connection, created.SubscriptionId, list(self._items.values()))
        watched = [item.queue_size for item in self._items.values() if item.watched]
        position.queue_size = min(watched, default=0)
        position.missing = self._missing()

    def _queue_size(self, item: Item) -> int:
        return item.config.queue_size or self._config.queue_size

    async def _watch(self, connection: Connection, subscription_id: int, items: list[Item]) -> None:
        """Create monitored items, in calls as large as the server allows. Those it does not take are named in the report."""
        wanted = [item for item in items if item.node_id is not None]
        for at in range(0, len(wanted), connection.limits.items_per_call):
            chunk = wanted[at : at + connection.limits.items_per_call]
            results = await connection.link.create_items(subscription_id, [self._request(item) for item in chunk])
            for item, result in zip(chunk, results, strict=True):
                item.watched = result.StatusCode.is_good()
                if item.watched:
                    item.queue_size = result.RevisedQueueSize
                    self._report.ok(item.config.node)
                else:
                    self._report.fault(
                        f"{item.config.node}: the server answers {result.StatusCode.name}", item.config.node
                    )
        self._name_missing()
        self._retry_missing_s = time.monotonic() + RETRY_MISSING_S

    def _request(self, item: Item) -> Any:
        request = ua.MonitoredItemCreateRequest()
        request.ItemToMonitor.NodeId = item.node_id
        request.ItemToMonitor.AttributeId = ua.AttributeIds.Value
        request.MonitoringMode = ua.MonitoringMode.Reporting
        asked = request.RequestedParameters
        asked.ClientHandle = item.handle
        sampling = item.config.sampling_interval_ms
        asked.SamplingInterval = self._config.sampling_interval_ms if sampling is None else sampling
        asked.QueueSize = self._queue_size(item)
        asked.DiscardOldest = True
        if item.config.deadband:
            kind = ua.DeadbandType.Percent if item.config.deadband_type == "percent" else ua.DeadbandType.Absolute
            asked.Filter = ua.DataChangeFilter(
                Trigger=ua.DataChangeTrigger.StatusValue, DeadbandType=kind, DeadbandValue=item.config.deadband
            )
        return request

    def _missing(self) -> list[str]:
        return [item.config.node for item in self._items.values() if not item.watched]

    def _name_missing(self) -> None:
        for item in self._items.values():
            if item.node_id is None:
                self._report.fault(f"{item.config.node}: the server has no such namespace", item.config.node)
            elif not item.watched and item.config.node not in self._report.trouble:
                self._report.fault(f"{item.config.node}: the server does not have this node", item.config.node)

    # Receiving ----------------------------------------------------------------------------------------------------------------

    async def _next(
        self, connection: Connection, position: Position, pump: PublishPump
    ) -> tuple[list[Event], list[tuple[int, int]]]:
        """Wait for messages and take them. The events, and what may be acknowledged once they are durable."""
        try:
            came = await pump.next(self._config.dead_after_s / 2, NOTIFICATIONS_MAX)
        except TimeoutError:
            came = []
            await self._probe(connection)
        self._check_silence(position)
        events: list[Event] = []
        taken: list[tuple[int, int]] = []
        for message in came:
            subscription = next(
                (each for each in position.subscriptions.values() if each.id == message.subscription_id), None
            )
            if subscription is None:
                self._report.count("messages_of_others")
                continue
            subscription.heard_s = time.monotonic()
            events += await self._fill_hole(connection, position, subscription, message)
            if message.notifications is None or message.notifications:
                taken.append((message.subscription_id, message.sequence))
                events += self._take(position, subscription, message)
        if self._missing() and time.monotonic() >= self._retry_missing_s:
            await self._retry_missing(connection, position)
        return events, taken

    async def _probe(self, connection: Connection) -> None:
        """Nothing came for a while: does the server answer at all? Raises NotConnected within dead_after_s of the last sign."""
        async with asyncio.timeout(self._config.dead_after_s / 2):
            await connection.link.read_values([ua.NodeId(ua.ObjectIds.Server_ServerStatus_State)])

    def _check_silence(self, position: Position) -> None:
        """A server that answers while a subscription brings not even keep-alives has lost it (telegraf#18454)."""
        limit_s = 2 * self._config.dead_after_s
        for subscription in position.subscriptions.values():
            if time.monotonic() - subscription.heard_s > limit_s:
                raise SubscriptionLost(
                    f"{self._config.url}: the subscription has been silent for {limit_s:g} s while the server answers"
                )

    def _distrust(self, position: Position) -> None:
        subscription = position.subscriptions.get("data")
        self._distrusted = subscription.id if subscription is not None else None

    async def _retry_missing(self, connection: Connection, position: Position) -> None:
        """Nodes that were not there may have come with a program download, and their namespace with them."""
        namespaces = (await connection.link.read_values([ua.NodeId(ua.ObjectIds.Server_NamespaceArray)]))[0]
        if isinstance(namespaces, list):
            connection.namespaces = namespaces
        missing = [item for item in self._items.values() if not item.watched]
        for item in missing:
            item.node_id = resolve(item.config.node, connection.namespaces)
        await self._watch(connection, position.subscriptions["data"].id, missing)
        position.missing = self._missing()

    async def _fill_hole(
        self, connection: Connection, position: Position, subscription: Subscription, message: Published
    ) -> list[Event]:
        """Messages between the last one taken and this one: asked for again, and declared lost where the server has none."""
        if subscription.sequence == 0:
            subscription.sequence = max(0, message.sequence - 1)
            return []
        ahead = (message.sequence - subscription.next_sequence) % 2**32
        if ahead == 0 or ahead > 2**31:
            return []
        events: list[Event] = []
        for _ in range(min(ahead, REPUBLISH_MAX)):
            again = await connection.link.republish(subscription.id, subscription.next_sequence)
            if again is None:
                break
            events += self._take(position, subscription, again)
        left = (message.sequence - subscription.next_sequence) % 2**32
        if left:
            from_us = position.seen_us
            subscription.sequence = message.sequence - 1
            events.append(self._gap(f"{left} messages of the server are missing", from_us, messages=left))
        return events

    def _take(self, position: Position, subscription: Subscription, message: Published) -> list[Event]:
        """The events of one message, in order; one that was taken before gives none."""
        if (message.sequence - subscription.next_sequence) % 2**32 > 2**31:
            return []
        now, from_us = now_us(), position.seen_us
        subscription.sequence = message.sequence
        position.seen_us = now
        if message.notifications is None:
            return [self._gap(f"a message of the server could not be decoded ({message.reason})", from_us)]
        events: list[Event] = []
        for notification in message.notifications:
            if isinstance(notification, ua.DataChangeNotification):
                events += self._data_changes(notification.MonitoredItems or [], position, now, from_us)
            elif isinstance(notification, ua.StatusChangeNotification):
                self._status_change(notification)
        return events

    def _data_changes(self, notifications: list[Any], position: Position, now: int, from_us: int | None) -> list[Event]:
        events: list[Event] = []
        overflowed: list[str] = []
        for notification in notifications:
            item = self._items.get(notification.ClientHandle)
            if item is None or notification.Value is None:
                self._report.count("notifications_unknown")
                continue
            code = notification.Value.StatusCode
            if code is not None and code.value & OVERFLOW == OVERFLOW:
                overflowed.append(item.name)
            event = reading(item, self._name, notification.Value, now, position.known)
            if event is not None:
                events.append(event)
        if position.queue_size > 1 and len(notifications) >= position.queue_size:
            overflowed += self._full(notifications)
        self._forget_too_many(position)
        if overflowed:
            events.insert(0, self._overflow(overflowed, from_us))
        return events

    def _full(self, notifications: list[Any]) -> list[str]:
        """Items whose queue came full: a server that never sets the overflow bit (asyncua's is one) may have dropped values of them."""
        counts: dict[int, int] = {}
        for notification in notifications:
            counts[notification.ClientHandle] = counts.get(notification.ClientHandle, 0) + 1
        items = ((self._items.get(handle), n) for handle, n in counts.items())
        return [item.name for item, n in items if item is not None and n >= item.queue_size > 1]

    def _overflow(self, names: list[str], from_us: int | None) -> Event:
        names = list(dict.fromkeys(names))
        self._report.count("queue_overflows", len(names))
        gap = self._gap("queues of the server overflowed, values of these nodes are missing", from_us)
        gap.data |= {"nodes": names[:GAP_NAMES_MAX], "nodes_count": len(names)}
        return gap

    def _forget_too_many(self, position: Position) -> None:
        while len(position.known) > REMEMBERED_MAX:
            position.known.popitem()
            self._report.count("values_not_remembered")

    def _status_change(self, notification: Any) -> None:
        """The subscription itself says something. The end of it is met by a new one; the rest is counted."""
        code = notification.Status.value
        if code in (ua.StatusCodes.BadTimeout, ua.StatusCodes.GoodSubscriptionTransferred):
            raise SubscriptionLost(
                f"{self._config.url}: the server ended the subscription ({notification.Status.name})"
            )
        self._report.count("status_changes")
        self._report.fault(f"the server says of the subscription: {notification.Status.name}", "subscription")

    # Events of our own --------------------------------------------------------------------------------------------------------

    def _gap(self, reason: str, from_us: int | None, **more: Any) -> Event:
        now = now_us()
        self._report.count("gaps")
        data = {"reason": reason, "events": None, "from_us": from_us, "to_us": now, **more}
        return Event(
            now,
            now,
            "collection.gap",
            self._name,
            target=self._config.url,
            message=f"{self._name}: {reason}",
            data=data,
        )

    def _certificate_event(self, changed: CertificateChanged, position: Position) -> Event | None:
        """Said once for each certificate that shows up, however often the connection is tried."""
        shown = thumbprint(changed.shown)
        if position.certificate_reported == shown:
            return None
        position.certificate_reported = shown
        now = now_us()
        data = {"trusted_thumbprint": thumbprint(changed.pinned), "shown_thumbprint": shown}
        message = f"the server of {self._name} shows another certificate than the trusted one"
        return Event(
            now,
            now,
            "security.certificate.changed",
            self._name,
            target=self._config.url,
            outcome="failure",
            message=message,
            data=data,
        )
