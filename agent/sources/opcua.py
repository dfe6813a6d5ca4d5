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
import os
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le

from agent.component import ConfigError, Cursor, Report, now_us
from agent.sources.opcua_authorities import problems_of, read_trust_list, stale_revocations
from agent.sources.opcua_browse import ConfigBrowse, browsed_nodes
from agent.sources.opcua_connect import (
    Access,
    CertificateChanged,
    CertificateRefused,
    Connection,
    SessionRefused,
    connect,
    translated,
)
from agent.sources.opcua_events import ConfigEvent, EventReader
from agent.sources.opcua_items import Items
from agent.sources.opcua_nodes import ConfigNode, default_name, time_us
from agent.sources.opcua_position import REMEMBERED_MAX, Position, Subscription
from agent.sources.opcua_private import DataChanges, Published, Unreadable, subscription_is_gone, ua
from agent.sources.opcua_pump import PublishPump, SubscriptionLost
from agent.sources.opcua_trust import check_pair, read_certificate, read_key, thumbprint
from agent.sources.opcua_watch import AUDITED, OWN, Watch
from agent.wire.event import Event

NOTIFICATIONS_MAX = 2_000
"""Asked of the server for one message, and about what one yield carries."""
REPUBLISH_MAX = 10_000
"""Messages asked for again after an absence; what lies beyond is declared a gap when the next number comes."""
CURSOR_KEPT_S = 60.0
"""How old a cursor gets where only keep-alives come: a gap of a quiet server does not begin with its last value, days ago."""
RETRY_MISSING_S = 30.0
LOOK_S = 30.0
"""Between two looks at whether the nodes, a part of them in turns, are still there: not every server reports a deleted one."""
REFRESH_PAUSE_S = 60.0
"""Between two ConditionRefreshes that are asked for because events were lost."""
GAP_NAMES_MAX = 20

_REFUSED_SIGN_INS = ("authentication.failure", "authentication.session.rejected")
DEPRECATED = ("Basic128Rsa15", "Basic256")
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
    trust_dir: str | None = None
    """Certificates of authorities, their revocation lists, certificates of servers; `<state_dir>/opcua/trust` if not given."""
    crl_required: bool = False
    """Refuse a server whose authority has no current revocation list in the trust list."""
    nodes: tuple[str | ConfigNode, ...] = ()
    browse: tuple[ConfigBrowse, ...] = ()
    audit: bool = False
    audit_arguments: bool = False
    alarms: bool = False
    events: tuple[str | ConfigEvent, ...] = ()
    """Further types of events: a node id (with subtypes; i=2041 is all there are), or a table with `event`, `type`, `fields`."""
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
        known = self.server_certificate_file or self.trust_dir
        if self.user and self.security == "None" and not (self.allow_password_in_clear or known):
            raise ValueError(
                'user: the password would cross the network for everybody to read with security = "None"; choose a security, or give '
                "server_certificate_file (or trust_dir) to encrypt it with, or set allow_password_in_clear = true"
            )
        if bool(self.user_certificate_file) != bool(self.user_key_file):
            raise ValueError(
                "user_key_file: user_certificate_file and user_key_file belong together; give both or neither"
            )
        if not (self.nodes or self.browse or self.audit or self.alarms or self.events):
            raise ValueError(
                "nodes: nothing to read; give nodes or browse (linewarden-agent browse URL finds some), audit = true, alarms = true"
                " or events"
            )
        self.asked_events()
        names = [node.name or default_name(node.node) for node in self.configured()]
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice is not None:
            raise ValueError(f"nodes: two nodes are called {twice!r}; give one of them another name")

    def configured(self) -> list[ConfigNode]:
        """The nodes, with those given as mere text made whole."""
        return [ConfigNode(node=node) if isinstance(node, str) else node for node in self.nodes]

    def asked_events(self) -> list[ConfigEvent]:
        """The types of events, with those given as mere text made whole."""
        return [ConfigEvent(event=event) if isinstance(event, str) else event for event in self.events]

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
            trust_dir=self.trust_dir,
            crl_required=self.crl_required,
            allow_password_in_clear=self.allow_password_in_clear,
            timeout_s=self.timeout_s,
            session_s=self.session_s,
            conditions=self.alarms,
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
        for whose in ("client", "user"):
            yield from self._pair_problems(f"{whose}_certificate_file", f"{whose}_key_file")
        if self.trust_dir is not None:
            yield from problems_of(Path(self.trust_dir))

    def _pair_problems(self, certificate_key: str, key_key: str) -> Iterable[tuple[str, str, str]]:
        certificate_file, key_file = getattr(self, certificate_key), getattr(self, key_key)
        if not (
            certificate_file and key_file and os.access(certificate_file, os.R_OK) and os.access(key_file, os.R_OK)
        ):
            return
        try:
            certificate = read_certificate(Path(certificate_file), certificate_key)
            check_pair(certificate, read_key(Path(key_file), key_key), Path(certificate_file), Path(key_file), key_key)
        except ConfigError as error:
            yield error.key, str(error.args[0]), error.remedy

    def warnings(self) -> Iterable[tuple[str, str, str]]:
        """What works, and should be otherwise: (key, what, what to do)."""
        policy = self.security.partition("/")[0]
        if policy in DEPRECATED:
            text = f"{policy} rests on SHA-1 or short keys and was withdrawn by the OPC Foundation"
            yield (
                "security",
                text,
                "Choose Basic256Sha256, Aes128Sha256RsaOaep or Aes256Sha256RsaPss where the server has one.",
            )
        if policy == "None":
            text = "anybody on the network can read what the server sends, and answer in its place"
            yield "security", text, "Choose a security where the server has one (linewarden-agent browse URL)."
        if self.allow_password_in_clear:
            yield "allow_password_in_clear", "everybody on the network can read the password", "Take it out again."
        if self.trust_dir is not None:
            with suppress(ConfigError):
                for text in stale_revocations(read_trust_list(Path(self.trust_dir))):
                    yield (
                        "trust_dir",
                        text,
                        "Put a current list there, or nobody notices a certificate that was revoked.",
                    )


def _until_now(gaps: list[Event]) -> list[Event]:
    # Nobody listened until the new items were there, which takes a busy server seconds: the gap ends here, not where it was noticed.
    for gap in gaps:
        gap.time = gap.observed = gap.data["to_us"] = now_us()
    return gaps


class OpcUaSource:
    """A server, read by subscription. See the module's text."""

    Config: ClassVar[type] = ConfigOpcUa
    rereadable: ClassVar[bool] = False

    def __init__(self, name: str, config: ConfigOpcUa, report: Report) -> None:
        self._name = name
        self._config = config
        self._report = report
        self._items = Items(
            name, report, sampling_interval_ms=config.sampling_interval_ms, queue_size=config.queue_size
        )
        self._events: EventReader | None = None
        if config.audit or config.alarms or config.events:
            self._events = EventReader(
                name,
                report,
                audit=config.audit,
                alarms=config.alarms,
                arguments=config.audit_arguments,
                events=config.asked_events(),
                url=config.url,
            )
        self._watch = Watch(name, config.url)
        self._distrusted: set[int] = set()
        """Ids of subscriptions that turned out to be gone: the cursor has them still, and they must not be continued."""
        self._ahead_us: int | None = None
        """How much our clock is at least ahead of the server's; None where it does not tell its own."""
        self._refused: tuple[str, str] | None = None
        """The session that the server would not take up: the next connection makes a new one, and transfers the subscriptions."""
        self._transferred = False
        """In this connection a subscription was taken over from an earlier session."""
        self._ended: Exception | None = None
        """A subscription or the connection has ended, and why: raised when what came before its end is durable."""
        self._retry_missing_s = self._refresh_after_s = self._look_s = 0.0

    async def batches(self, cursor: Cursor | None) -> AsyncGenerator[tuple[list[Event], Cursor | None], None]:
        """One connection's worth of events; see agent.component.Source."""
        self._ended, position = None, Position.load(cursor)
        session, self._refused = position.session if position.session != self._refused else None, None
        try:
            connection = await connect(self._config.access(), session)
        except SessionRefused:
            self._refused = session
            raise
        except (CertificateChanged, CertificateRefused) as refused:
            events = self._certificate_refused(refused, position)
            if events:
                yield events, position.save()
            raise
        position.warned.pop("refused", None)
        pump = PublishPump(connection.link)
        try:
            with translated(self._config.url):
                events = await self._establish(connection, position)
            self._report.ok()
            # Also without events: from here on the cursor knows the session, and a kill finds its way back.
            yield events, position.save()
            self._items.committed()
            pump.start()
            kept_s = time.monotonic()
            while True:
                with translated(self._config.url):
                    self._raise_if_ended()
                    events, taken = await self._next(connection, position, pump)
                if events or taken or time.monotonic() - kept_s > CURSOR_KEPT_S:
                    yield events, position.save()
                    kept_s = time.monotonic()
                    self._not_silent_while_away(position)
                self._items.committed()
                for subscription_id, sequence in taken:
                    pump.acknowledge(subscription_id, sequence)
        except SubscriptionLost:
            self._distrusted = {subscription.id for subscription in position.subscriptions.values()}
            raise
        finally:
            # What was taken and not stored will be asked for again, and is news then as it was now.
            self._items.roll_back()
            try:
                await pump.close()
            finally:
                await connection.link.drop()

    def _raise_if_ended(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            raise ended

    # Subscribing --------------------------------------------------------------------------------------------------------------

    async def _establish(self, connection: Connection, position: Position) -> list[Event]:
        """Continue what there was, or begin anew; the events that come with it."""
        position.session = connection.link.session()
        self._watch.begin_session()
        if connection.refused_own:
            position.counters[OWN] = position.counters.get(OWN, 0) + 1
        await self._compare_clocks(connection)
        self._transferred = False
        self._look_s = time.monotonic() + LOOK_S
        # What an earlier subscription was told is over with it.
        self._report.ok("subscription")
        nodes = {node.node: node for node in self._config.configured()}
        found, troubles = await browsed_nodes(connection, self._config.browse)
        for browse in self._config.browse:
            if browse.root in troubles:
                self._report.fault(troubles[browse.root], f"browse {browse.root}")
            else:
                self._report.ok(f"browse {browse.root}")
        plan = self._items.lay_out(
            [*nodes.values(), *(node for node in found if node.node not in nodes)], connection.namespaces
        )
        await self._items.learn_ranges(connection)
        events = list(self._watch.expiring(connection, position, now_us()))
        wanted = {"data"} if len(self._items) else set()
        for kind in position.subscriptions.keys() - wanted - ({"events"} if self._events is not None else set()):
            events += await self._let_go(connection, position, kind, "")
        if wanted:
            events += await self._establish_data(connection, position, plan)
        if self._events is not None and self._ended is None:
            events += await self._establish_events(connection, position, self._events)
        return [*events, *self._keep_cursor_small(position)]

    async def _compare_clocks(self, connection: Connection) -> None:
        """How much our clock is at least ahead of the server's: it read its own after we had read ours."""
        asked_us = now_us()
        told = [time_us(each) for each in await connection.link.clock() if isinstance(each, datetime)]
        server_us = max((each for each in told if each is not None), default=None)
        self._ahead_us = asked_us - server_us if server_us is not None else None

    def _complete_until(self, message: Published, now: int) -> int:
        """Up to when all is known once this message is taken: the last sampling before the server made it.

        By when it came a gap would begin too late: it may have been long on its way, or have lain here.
        """
        made_us = now
        if message.published_us is not None and self._ahead_us is not None:
            made_us = min(now, message.published_us + self._ahead_us)
        return made_us - round(self._config.publishing_interval_ms * 1_000)

    async def _establish_data(self, connection: Connection, position: Position, plan: str) -> list[Event]:
        earlier = position.subscriptions.get("data")
        events: list[Event] = []
        if earlier is not None and earlier.plan == plan:
            self._items.taken_up(position.missing, position.queue_size)
            if await self._continue(connection, position, earlier, events):
                return events
        gap = await self._let_go(connection, position, "data", plan)
        subscription = position.subscriptions["data"] = await self._create(connection, plan)
        self._items.start_over()
        await self._watch_items(connection, position, subscription)
        return [*events, *_until_now(gap)]

    async def _establish_events(self, connection: Connection, position: Position, reader: EventReader) -> list[Event]:
        earlier, plan = position.subscriptions.get("events"), reader.plan()
        reader.begin_session()
        events: list[Event] = []
        continued = False
        if earlier is not None and earlier.plan in (plan, f"{plan}-core"):
            reader.select(core_only=earlier.plan != plan)
            continued = await self._continue(connection, position, earlier, events)
        if not continued:
            gap = await self._let_go(connection, position, "events", plan)
            events += gap
            subscription = await self._create(connection, plan)
            answer = (await connection.link.create_items(subscription.id, [reader.request(connection.namespaces)]))[
                0
            ].StatusCode
            if not answer.is_good():
                subscription.plan = f"{plan}-core"
                answer = (await connection.link.create_items(subscription.id, [reader.request(core_only=True)]))[
                    0
                ].StatusCode
            if not answer.is_good():
                text = (
                    f"{self._config.url} gives no events: it answers {answer.name}; give a user who may read its events"
                )
                self._report.fault(text, "events")
                await connection.link.delete_subscription(subscription.id)
                return events
            self._report.ok("events")
            position.subscriptions["events"] = subscription
            _until_now(gap)
        if self._config.alarms:
            await self._refresh_conditions(connection, position)
        return events

    async def _let_go(self, connection: Connection, position: Position, kind: str, plan: str) -> list[Event]:
        """Give up what cannot be continued. A gap says so, if there was anything."""
        earlier = position.subscriptions.pop(kind, None)
        if earlier is None:
            return []
        if connection.resumed:
            await connection.link.delete_subscription(earlier.id)
        same = earlier.plan.removesuffix("-core") == plan
        reason = "the server no longer had the subscription" if same else "what is watched was changed"
        return [self._gap(f"{reason}; {kind} in between is unknown", earlier.complete_us)]

    async def _continue(
        self, connection: Connection, position: Position, subscription: Subscription, events: list[Event]
    ) -> bool:
        """Take an earlier subscription up again and fetch what was sent in between, into `events`. False where the server has it not."""
        if subscription.id in self._distrusted:
            return False
        if not connection.resumed:
            if not await connection.link.transfer(subscription.id):
                return False
            self._transferred = True
        for _ in range(REPUBLISH_MAX):
            try:
                again = await connection.link.republish(subscription.id, subscription.next_sequence)
            except ua.UaStatusCodeError as error:
                if subscription_is_gone(error):
                    return False
                raise
            except (OSError, TimeoutError) as error:
                # A server may give each message once (asyncua's does): what came before the break is kept, and the break told after it.
                self._ended = error
                break
            if again is None:
                break
            self._report.count("messages_republished")
            events += await self._take(connection, position, subscription, again)
        subscription.heard_s = time.monotonic()
        return True

    async def _create(self, connection: Connection, plan: str) -> Subscription:
        config = self._config
        parameters = ua.CreateSubscriptionParameters()
        parameters.RequestedPublishingInterval = config.publishing_interval_ms
        keep_alive = max(1, round(config.dead_after_s * 1000 / 4 / config.publishing_interval_ms))
        parameters.RequestedMaxKeepAliveCount = keep_alive
        parameters.RequestedLifetimeCount = max(
            3 * keep_alive, round(config.session_s * 1000 / config.publishing_interval_ms)
        )
        parameters.MaxNotificationsPerPublish = NOTIFICATIONS_MAX
        parameters.PublishingEnabled = True
        asked_us = now_us()
        created = await connection.link.create_subscription(parameters)
        return Subscription(created.SubscriptionId, 0, plan, asked_us)

    async def _watch_items(self, connection: Connection, position: Position, subscription: Subscription) -> None:
        await self._items.watch(connection, subscription.id)
        position.queue_size = self._items.smallest_queue()
        position.missing = self._items.unwatched()
        self._retry_missing_s = time.monotonic() + RETRY_MISSING_S

    async def _refresh_conditions(self, connection: Connection, position: Position) -> None:
        """Learn of the alarms there are. Not fatal: node-opcua answers BadInternalError and tells of later ones all the same."""
        try:
            await connection.link.refresh_conditions(position.subscriptions["events"].id)
        except ua.UaStatusCodeError as error:
            self._report.count("condition_refreshes_refused")
            self._report.fault(
                f"alarms that are active already are unknown: the server answers ConditionRefresh with {type(error).__name__}; "
                "later ones are reported",
                "alarms",
            )
        else:
            self._report.ok("alarms")

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
            if message.notifications == []:
                # A keep-alive: there was nothing to tell.
                subscription.complete_us = self._complete_until(message, now_us())
            else:
                taken.append((message.subscription_id, message.sequence))
                events += await self._take(connection, position, subscription, message)
        self._check_silence(position)
        events += await self._now_and_then(connection, position)
        return events, taken

    async def _now_and_then(self, connection: Connection, position: Position) -> list[Event]:
        """What is not told by messages: refused sign-ins, certificates that end, nodes that have come."""
        if position.missing and time.monotonic() >= self._retry_missing_s:
            # A program download may bring nodes, and their namespace with them.
            namespaces = (await connection.link.read_values([ua.NodeId(ua.ObjectIds.Server_NamespaceArray)]))[0]
            connection.namespaces = namespaces if isinstance(namespaces, list) else connection.namespaces
            await self._watch_items(connection, position, position.subscriptions["data"])
            await self._items.learn_ranges(connection)
        events = self._items.returned(now_us())
        if len(self._items) and time.monotonic() >= self._look_s:
            self._look_s = time.monotonic() + LOOK_S
            events += await self._items.look(connection, position, now_us())
        events += list(self._watch.expiring(connection, position, now_us()))
        if self._config.audit:
            events += await self._watch.rejected(connection, position, now_us())
        return events

    async def _probe(self, connection: Connection) -> None:
        """Nothing came for a while: does the server answer at all? Raises TimeoutError within dead_after_s of the last sign."""
        async with asyncio.timeout(self._config.dead_after_s / 2):
            await connection.link.read_values([ua.NodeId(ua.ObjectIds.Server_ServerStatus_State)])

    def _check_silence(self, position: Position) -> None:
        """A server that answers while a subscription brings not even keep-alives has lost it (telegraf#18454)."""
        limit_s = 2 * self._config.dead_after_s
        for kind, subscription in position.subscriptions.items():
            if time.monotonic() - subscription.heard_s > limit_s:
                self._ended = SubscriptionLost(
                    f"{self._config.url}: the subscription of {kind} was silent for {limit_s:g} s while the server answers"
                )

    def _not_silent_while_away(self, position: Position) -> None:
        """While the buffer took its time nobody listened: that is not the server's silence."""
        for subscription in position.subscriptions.values():
            subscription.heard_s = max(subscription.heard_s, time.monotonic() - self._config.dead_after_s / 2)

    async def _fill_hole(
        self, connection: Connection, position: Position, subscription: Subscription, message: Published
    ) -> list[Event]:
        """Messages between the last one taken and this one: asked for again, and declared lost where the server has none."""
        events: list[Event] = []
        for _ in range(min(subscription.ahead(message.sequence), REPUBLISH_MAX)):
            again = await connection.link.republish(subscription.id, subscription.next_sequence)
            if again is None:
                break
            events += await self._take(connection, position, subscription, again)
        lost = subscription.ahead(message.sequence)
        if lost > 0:
            self._events_are_missing()
            subscription.sequence = message.sequence - 1
            reason = f"{lost} messages of the server are missing"
            events.append(self._gap(reason, subscription.complete_us, messages=lost))
        return events

    async def _take(
        self, connection: Connection, position: Position, subscription: Subscription, message: Published
    ) -> list[Event]:
        """The events of one message, in order; one that was taken before gives none."""
        if subscription.ahead(message.sequence) < 0:
            return []
        now, from_us = now_us(), subscription.complete_us
        subscription.sequence = message.sequence
        subscription.complete_us = self._complete_until(message, now)
        if message.notifications is None:
            self._events_are_missing()
            return [self._gap(f"a message of the server could not be decoded ({message.reason})", from_us)]
        events: list[Event] = []
        for notification in message.notifications:
            if isinstance(notification, DataChanges):
                came, overflowed = self._items.take(notification.changes, position, now)
                events += [self._overflow(overflowed, from_us), *came] if overflowed else came
            elif isinstance(notification, ua.EventNotificationList) and self._events is not None:
                events += await self._take_events(
                    connection, position, self._events, notification.Events or [], from_us
                )
            elif isinstance(notification, ua.StatusChangeNotification):
                self._status_change(notification)
            elif isinstance(notification, Unreadable):
                self._events_are_missing()
                reason = f"part of a message of the server could not be decoded ({notification.reason})"
                events.append(self._gap(reason, from_us))
        return [*events, *self._keep_cursor_small(position)]

    async def _take_events(
        self,
        connection: Connection,
        position: Position,
        reader: EventReader,
        notifications: list[Any],
        from_us: int | None,
    ) -> list[Event]:
        await reader.learn(connection, notifications)
        taken = reader.take(notifications, position, connection.namespaces, now_us())
        if self._config.audit:
            refused = sum(event.type in _REFUSED_SIGN_INS for event in taken.events)
            position.counters[AUDITED] = position.counters.get(AUDITED, 0) + refused
        if self._config.alarms and (taken.refresh_wanted or (taken.overflowed and self._may_refresh())):
            await self._refresh_conditions(connection, position)
        if not taken.overflowed:
            return taken.events
        return [self._gap("the event queue of the server overflowed, events are missing", from_us), *taken.events]

    def _may_refresh(self) -> bool:
        """After an overflow alarms may have ended unseen: their present state is asked for, but a refresh may overflow too."""
        if time.monotonic() < self._refresh_after_s:
            return False
        self._refresh_after_s = time.monotonic() + REFRESH_PAUSE_S
        return True

    def _events_are_missing(self) -> None:
        if self._events is not None:
            self._events.incomplete()

    def _status_change(self, notification: Any) -> None:
        """The subscription itself says something. Its end is met by a new one; the rest is told."""
        code, name = notification.Status.value, notification.Status.name
        if code == ua.StatusCodes.GoodSubscriptionTransferred and self._transferred:
            # Meant for our own earlier session, from which we took it over; node-opcua tells it to the new one.
            return
        if code in (ua.StatusCodes.BadTimeout, ua.StatusCodes.GoodSubscriptionTransferred):
            self._ended = SubscriptionLost(f"{self._config.url}: the server ended the subscription ({name})")
            return
        if notification.Status.is_good():
            self._report.ok("subscription")
            return
        self._report.count("status_changes")
        self._report.fault(f"the server says of the subscription: {name}", "subscription")

    def _keep_cursor_small(self, position: Position) -> list[Event]:
        forgotten = position.forget_too_many()
        if not forgotten:
            return []
        self._report.count("values_not_remembered", forgotten)
        dropped, position.alarms_dropped = position.alarms_dropped, []
        if not dropped:
            return []
        reason = f"more than {REMEMBERED_MAX} alarms are not normal, the states of the oldest were forgotten"
        return [self._gap(reason, None, conditions=dropped[:GAP_NAMES_MAX], conditions_count=len(dropped))]

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

    def _overflow(self, names: list[str], from_us: int | None) -> Event:
        self._report.count("queue_overflows", len(names))
        reason = "queues of the server overflowed, values of these nodes are missing"
        return self._gap(reason, from_us, nodes=names[:GAP_NAMES_MAX], nodes_count=len(names))

    def _certificate_refused(self, refused: CertificateChanged | CertificateRefused, position: Position) -> list[Event]:
        """Said once for each certificate that shows up, however often the connection is tried."""
        shown = thumbprint(refused.shown)
        if position.warned.get("refused") == shown:
            return []
        position.warned["refused"] = shown
        now = now_us()
        if isinstance(refused, CertificateChanged):
            kind = "security.certificate.changed"
            message = f"the server of {self._name} shows another certificate than the trusted one"
            data = {"trusted_thumbprint": thumbprint(refused.pinned), "shown_thumbprint": shown}
        else:
            kind = f"security.certificate.{refused.kind}"
            message = f"the server of {self._name} shows a certificate that {refused.reason}"
            data = {"whose": "server", "thumbprint": shown, "reason": refused.reason}
        return [
            Event(now, now, kind, self._name, target=self._config.url, outcome="failure", message=message, data=data)
        ]
