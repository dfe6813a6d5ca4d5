"""All that leans on asyncua's inside, in one file: a link is one socket, one secure channel, one session.

asyncua's own subscription and its supervisor are not used: they acknowledge a publish before anybody has stored it, and delete a
subscription that a session still holds. A Link sends the services one by one, hears every answer, and leaves it to its user when to
acknowledge. What it takes from the inside is listed here, pinned by `asyncua>=2.1,<2.2` and held by tests/unit/test_opcua_private.py:

    Client._server_nonce, Client._policy_ids     to activate a session that an earlier process made
    Client.server_policy                         to see whether the server wants the password in clear
    UaSession._send_request                      to create a subscription without starting asyncua's publish loop
    ua_binary.struct_from_binary                 to decode the answers of services that carry no values
    UaClient._make_protocol                      to refuse a message that is too long before it is read

Read-only: every request of every kind passes `_ReadOnly.observe_request`, which lets through the services that read and nothing else.
"""

import asyncio
import logging
import struct
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from asyncua import ua as _ua
from asyncua.client.client import Client
from asyncua.client.ua_client import UASocketProtocol
from asyncua.crypto import security_policies
from asyncua.crypto.uacrypto import CertProperties
from asyncua.observer import Observer
from asyncua.ua import ua_binary

from agent.component import NotConnected
from agent.sources.opcua_decode import Answer, Malformed, Reader, data_value, extension, response_head, variant

ua: Any = _ua
"""asyncua's generated types, as Any: they re-export implicitly and ask for int and str subclasses of their own everywhere."""

logging.getLogger("asyncua").setLevel(logging.CRITICAL + 1)
"""It logs tracebacks of what reaches us as an exception anyway, and says it with our names and remedies."""

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
"""A chunk or message of a server that is longer ends the connection before it is held in memory."""
NOT_FOUND = object()

_READING_SERVICES = frozenset(
    {
        "ActivateSessionRequest", "BrowseNextRequest", "BrowseRequest", "CloseSecureChannelRequest", "CloseSessionRequest",
        "CreateMonitoredItemsRequest", "CreateSessionRequest", "CreateSubscriptionRequest", "DeleteSubscriptionsRequest",
        "GetEndpointsRequest", "OpenSecureChannelRequest", "PublishRequest", "ReadRequest", "RepublishRequest",
        "TransferSubscriptionsRequest",
    }
)  # fmt: skip
"""What an agent may send. There is no Write, no HistoryUpdate, no AddNodes and no Call among them."""

_GONE = ("BadSubscriptionIdInvalid", "BadNoSubscription", "BadMessageNotAvailable")


class ReadOnlyViolation(Exception):
    """Something tried to send a request that is not a reading one. A defect, and it was not sent."""


class PasswordInClear(Exception):
    """The password would cross the network readable by everybody; nothing was sent."""


def condition_refresh(subscription_id: int) -> Any:
    """The one Call there is: ConditionType.ConditionRefresh, which makes the server send its present alarms again and changes nothing.

    Part 9 offers no other way to learn of alarms that were raised before the subscription. It goes out only where `alarms = true`.
    """
    method = ua.CallMethodRequest()
    method.ObjectId = ua.NodeId(ua.ObjectIds.ConditionType)
    method.MethodId = ua.NodeId(ua.ObjectIds.ConditionType_ConditionRefresh)
    method.InputArguments = [ua.Variant(subscription_id, ua.VariantType.UInt32)]
    return method


class _ReadOnly(Observer):
    """Sees each request before it is encoded, and stops what does not read. `conditions`: whether ConditionRefresh may pass."""

    def __init__(self, *, conditions: bool) -> None:
        self.conditions = conditions

    def observe_request(self, request: Any) -> AbstractContextManager[None]:
        kind = type(request).__name__
        if kind not in _READING_SERVICES and not (
            self.conditions and kind == "CallRequest" and _is_condition_refresh(request)
        ):
            raise ReadOnlyViolation(f"{kind} is not a reading service and was not sent")
        return nullcontext()


def _is_condition_refresh(request: Any) -> bool:
    allowed = (ua.NodeId(ua.ObjectIds.ConditionType), ua.NodeId(ua.ObjectIds.ConditionType_ConditionRefresh))
    calls = request.Parameters.MethodsToCall
    return bool(calls) and all((call.ObjectId, call.MethodId) == allowed for call in calls)


class _BoundedProtocol(UASocketProtocol):
    """Refuses a message by its announced length: asyncua would hold whatever a peer announces until it is complete."""

    def data_received(self, data: bytes) -> None:
        pending = self.receive_buffer or b""
        head = (pending[:8] + data[: 8 - len(pending)]) if len(pending) < 8 else pending[:8]  # noqa: PLR2004 - message header
        if len(head) == 8 and struct.unpack_from("<I", head, 4)[0] > MESSAGE_BYTES_MAX:  # noqa: PLR2004
            self.disconnect_socket()
            return
        super().data_received(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """How a channel is protected. Policy "None" needs nothing else."""

    policy: str = "None"
    mode: str = "None"
    certificate: bytes = b""
    key: bytes = b""
    server_certificate: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Who signs in: nobody, a user with a password, or the holder of a certificate."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    certificate: bytes = b""
    key: bytes = field(default=b"", repr=False)


class Change(NamedTuple):
    """One value of a monitored item. A time is µs since the epoch; None where the server gave none, or a sentinel."""

    handle: int
    value: Any
    code: int
    source_us: int | None
    server_us: int | None


class DataChanges(NamedTuple):
    """What one notification says of monitored items."""

    changes: list[Change]


class Unreadable(NamedTuple):
    """What follows in its notification could not be read: it is lost."""

    reason: str


class Published(NamedTuple):
    """One answer to a publish. `notifications` is None where it could not be decoded: what was in it is lost, its number is known.

    `published_us`: when the server made it, by the server's clock; None where it does not say.
    """

    subscription_id: int
    sequence: int
    notifications: list[Any] | None
    available: list[int]
    reason: str = ""
    published_us: int | None = None


class Link:
    """One connection to a server, used once: open, use, drop."""

    def __init__(
        self,
        url: str,
        security: Security,
        login: Login,
        *,
        application_uri: str,
        timeout_s: float,
        session_s: float,
        conditions: bool,
        allow_password_in_clear: bool = False,
    ) -> None:
        client = Client(url, timeout=timeout_s)
        client.application_uri = application_uri
        client.name = client.description = "Linewarden"
        client.product_uri = "urn:linewarden:agent"
        client.session_timeout = round(session_s * 1000)
        self.url = url
        self._client = client
        self._security = security
        self._login = login
        self._allow_password_in_clear = allow_password_in_clear
        self._renewal: asyncio.Task[None] | None = None
        self.guard = _ReadOnly(conditions=conditions)
        client.uaclient.observer = self.guard
        client.uaclient._make_protocol = self._make_protocol  # type: ignore[method-assign]  # noqa: SLF001

    def _make_protocol(self) -> UASocketProtocol:
        uaclient = self._client.uaclient
        protocol = _BoundedProtocol(uaclient._timeout, security_policy=uaclient.security_policy)  # noqa: SLF001
        protocol.pre_request_hook = uaclient.pre_request_hook
        protocol.on_connection_lost = uaclient._on_transport_lost  # noqa: SLF001
        protocol.is_session_closing = uaclient._is_session_closing  # noqa: SLF001
        uaclient.protocol = protocol
        return protocol

    # Opening and closing ------------------------------------------------------------------------------------------------------

    async def open_channel(self) -> None:
        """Socket, hello, secure channel; the channel renews itself until the link is dropped."""
        if self._security.policy != "None":
            await self._client.set_security(
                getattr(security_policies, f"SecurityPolicy{self._security.policy}"),
                CertProperties(self._security.certificate, "der"),
                CertProperties(self._security.key, "pem"),
                server_certificate=CertProperties(self._security.server_certificate, "der"),
                mode=getattr(ua.MessageSecurityMode, self._security.mode),
            )
        await self._client.connect_socket()
        await self._client.send_hello()
        await self._client.open_secure_channel()
        self._renewal = asyncio.create_task(self._renew())

    async def endpoints(self) -> list[Any]:
        """What the server offers: endpoints with policies, its certificate, ways to sign in."""
        found: list[Any] = await self._client.get_endpoints()
        return found

    async def open_session(self, certificate: bytes = b"") -> None:
        """A new session, signed in. `certificate`: the server's, with which a password is encrypted where the channel has none."""
        await self._load_login()
        await self._client.create_session()
        self._prepare_tokens(self._client._policy_ids, certificate)  # noqa: SLF001
        await self._activate()

    def _prepare_tokens(self, policies: Sequence[Any], certificate: bytes) -> None:
        """Choose among the ways to sign in, and the key that a password is encrypted with.

        A token has a policy of its own: over a channel without security a password can still be encrypted with the server's certificate.
        Servers list several (open62541 also with elliptic curves, which asyncua does not speak), and asyncua takes the first of a kind.
        """
        channel = self._client.security_policy
        self._client._policy_ids = usable_tokens(policies, channel.URI)  # noqa: SLF001
        if certificate and channel.URI == security_policies.SecurityPolicyNone.URI:
            channel.peer_certificate = certificate

    async def reopen_session(self, token: str, nonce: str, policies: Sequence[Any], certificate: bytes) -> bool:
        """Take up a session that an earlier connection made. False where the server does not have it or does not give it.

        `certificate`: the server's, with which a password is encrypted and a signature bound to it, even where the channel has none.
        """
        await self._load_login()
        session = self._client.uaclient.session
        session.restore_authentication_token(ua.NodeId.from_string(token))
        self._client._server_nonce = bytes.fromhex(nonce) if nonce else None  # type: ignore[assignment]  # noqa: SLF001
        self._prepare_tokens(policies, certificate)
        try:
            await self._activate()
        except ua.UaStatusCodeError:
            session.reset_authentication_token()
            self._client._server_nonce = None  # noqa: SLF001
            return False
        return True

    def session(self) -> tuple[str, str]:
        """What `reopen_session` needs: the token and the nonce of the present session."""
        nonce: bytes | None = self._client._server_nonce  # noqa: SLF001
        return self._client.uaclient.session.authentication_token.to_string(), nonce.hex() if nonce else ""

    async def _load_login(self) -> None:
        if self._login.certificate:
            await self._client.load_client_certificate(self._login.certificate, "der")  # type: ignore[arg-type]
            await self._client.load_private_key(self._login.key, None, "pem")  # type: ignore[arg-type]

    async def _activate(self) -> None:
        login, certificate = self._login, self._client.user_certificate
        if login.password and not certificate and not self._allow_password_in_clear:
            self._refuse_clear_password()
        await self._client.activate_session(username=login.user, password=login.password, certificate=certificate)

    def _refuse_clear_password(self) -> None:
        """A server may ask for the password unencrypted (its token policy None) over a channel that signs and does not encrypt."""
        policy = self._client.server_policy(ua.UserTokenType.UserName).SecurityPolicyUri
        encrypts = self._client.security_policy.Mode == ua.MessageSecurityMode.SignAndEncrypt
        if not encrypts and policy in (None, "", security_policies.SecurityPolicyNone.URI):
            raise PasswordInClear

    async def _renew(self) -> None:
        """A new key for the channel at three quarters of its life. Where that fails, the next request finds the link dead."""
        while True:
            await asyncio.sleep(self._client.secure_channel_timeout * 0.75 / 1000)
            try:
                await self._client.open_secure_channel(renew=True)
            except (OSError, TimeoutError, ua.UaError):
                self._client.disconnect_socket()
                return
            self._client.uaclient.revolve_security_token()

    async def close(self) -> None:
        """Sign out: the server forgets session and subscriptions. For tools; a source only drops the link."""
        with suppress(OSError, TimeoutError, ua.UaError):
            await self._client.uaclient.close_session(delete_subscriptions=True)
        await self.drop()

    async def drop(self) -> None:
        """End the connection and leave the session at the server, to be taken up again within its timeout."""
        try:
            if self._renewal is not None:
                self._renewal.cancel()
                # Not `suppress(CancelledError)`: it would take a stop of ours for the end of the renewal, and go on for ever.
                await asyncio.gather(self._renewal, return_exceptions=True)
                # Only an opened channel has the keys to say goodbye with.
                with suppress(OSError, TimeoutError, ua.UaError):
                    async with asyncio.timeout(1.0):
                        await self._client.close_secure_channel()
        finally:
            protocol = self._client.uaclient.protocol
            if protocol is not None and protocol.transport is not None:
                protocol.transport.abort()
            self._client.disconnect_socket()

    # Services -----------------------------------------------------------------------------------------------------------------

    async def _request(self, request: Any, response: Any, timeout_s: float | None = None) -> Any:
        data = await self._client.uaclient.session._send_request(request, timeout_s)  # noqa: SLF001
        answer = ua_binary.struct_from_binary(response, data)
        answer.ResponseHeader.ServiceResult.check()
        return answer

    async def read(self, nodes: Iterable[tuple[Any, Any]], *, nodes_max: int = 500) -> list[Answer]:
        """Values of (node, attribute) pairs, in order, in requests of at most `nodes_max`. One that cannot be decoded costs itself."""
        wanted, values = list(nodes), []
        for at in range(0, len(wanted), nodes_max):
            values += (await self._read(wanted[at : at + nodes_max]))[0]
        return values

    async def _read(self, wanted: Sequence[tuple[Any, Any]]) -> tuple[list[Answer], Any]:
        request = ua.ReadRequest()
        request.Parameters.TimestampsToReturn = ua.TimestampsToReturn.Neither
        for node, attribute in wanted:
            request.Parameters.NodesToRead.append(ua.ReadValueId(NodeId=node, AttributeId=attribute))
        answers, moment = decode_read(await self._client.uaclient.session._send_request(request, None))  # noqa: SLF001
        if len(answers) != len(wanted):
            raise Malformed(f"{len(answers)} values came where {len(wanted)} were asked for")
        return answers, moment

    async def read_values(self, nodes: Sequence[Any], *, nodes_max: int = 500) -> list[Any]:
        """The plain values of nodes; NOT_FOUND where there is none."""
        answers = await self.read(((node, ua.AttributeIds.Value) for node in nodes), nodes_max=nodes_max)
        return [a.Value.Value if a.StatusCode.is_good() and a.Value is not None else NOT_FOUND for a in answers]

    async def clock(self) -> list[Any]:
        """What the server says of its clock when it answers, which is after we asked: the latest of it is meant.

        That is the head of its answer: the variable CurrentTime is renewed once a second by asyncua's server, and later by a busy one.
        """
        current = ua.NodeId(ua.ObjectIds.Server_ServerStatus_CurrentTime)
        (answer,), moment = await self._read([(current, ua.AttributeIds.Value)])
        return [moment, answer.Value.Value if answer.Value is not None else None]

    async def browse(
        self, nodes: Sequence[Any], *, reference: int, inverse: bool = False, references_max: int = 1000
    ) -> list[list[Any]]:
        """The references of each node, of one kind and its subtypes, all pages of them."""
        parameters = ua.BrowseParameters()
        parameters.RequestedMaxReferencesPerNode = references_max
        for node in nodes:
            wanted = ua.BrowseDescription()
            wanted.NodeId = node
            wanted.BrowseDirection = ua.BrowseDirection.Inverse if inverse else ua.BrowseDirection.Forward
            wanted.ReferenceTypeId = ua.NodeId(reference)
            wanted.IncludeSubtypes = True
            wanted.ResultMask = ua.BrowseResultMask.All
            parameters.NodesToBrowse.append(wanted)
        session = self._client.uaclient.session
        found: list[list[Any]] = []
        for result in await session.browse(parameters):
            references = list(result.References or [])
            while result.ContinuationPoint:
                following = ua.BrowseNextParameters(
                    ReleaseContinuationPoints=False, ContinuationPoints=[result.ContinuationPoint]
                )
                result = (await session.browse_next(following))[0]  # noqa: PLW2901 - the same node's next page
                references += result.References or []
            found.append(references)
        return found

    async def create_subscription(self, parameters: Any) -> Any:
        """A subscription that nobody publishes for but us."""
        request = ua.CreateSubscriptionRequest()
        request.Parameters = parameters
        return (await self._request(request, ua.CreateSubscriptionResponse)).Parameters

    async def create_items(self, subscription_id: int, items: Sequence[Any]) -> list[Any]:
        """Monitored items; one result each, good or bad."""
        parameters = ua.CreateMonitoredItemsParameters()
        parameters.SubscriptionId = subscription_id
        parameters.TimestampsToReturn = ua.TimestampsToReturn.Both
        parameters.ItemsToCreate = list(items)
        results: list[Any] = await self._client.uaclient.session.create_monitored_items(parameters)
        return results

    async def delete_subscription(self, subscription_id: int) -> None:
        """Let the server forget a subscription; it is fine if it has already."""
        request = ua.DeleteSubscriptionsRequest()
        request.Parameters.SubscriptionIds = [subscription_id]
        with suppress(ua.UaStatusCodeError):
            await self._request(request, ua.DeleteSubscriptionsResponse)

    async def transfer(self, subscription_id: int) -> bool:
        """Take a subscription of another session over. True also where it is ours already: then node-opcua says BadNothingToDo."""
        request = ua.TransferSubscriptionsRequest()
        request.Parameters.SubscriptionIds = [subscription_id]
        request.Parameters.SendInitialValues = False
        try:
            result = (await self._request(request, ua.TransferSubscriptionsResponse)).Parameters.Results[0]
        except ua.UaStatusCodeError as error:
            return bool(error.code == ua.StatusCodes.BadNothingToDo)
        return bool(result.StatusCode.is_good() or result.StatusCode.value == ua.StatusCodes.BadNothingToDo)

    async def refresh_conditions(self, subscription_id: int) -> None:
        """See `condition_refresh`. Raises UaStatusCodeError where the server does not know it."""
        results = await self._client.uaclient.session.call([condition_refresh(subscription_id)])
        results[0].StatusCode.check()

    async def publish(self, acknowledged: Sequence[tuple[int, int]]) -> Published:
        """Wait for the next notification of any subscription, and acknowledge those that are durable. Never times out by itself."""
        request = ua.PublishRequest()
        for subscription_id, sequence in acknowledged:
            done = ua.SubscriptionAcknowledgement(SubscriptionId=subscription_id, SequenceNumber=sequence)
            request.Parameters.SubscriptionAcknowledgements.append(done)
        data = await self._client.uaclient.session._send_request(request, 0)  # noqa: SLF001
        return decode_publish(data)

    async def republish(self, subscription_id: int, sequence: int) -> Published | None:
        """One message again. None where the server does not have it (any more)."""
        request = ua.RepublishRequest()
        request.Parameters.SubscriptionId = subscription_id
        request.Parameters.RetransmitSequenceNumber = sequence
        try:
            data = await self._client.uaclient.session._send_request(request)  # noqa: SLF001
            return decode_republish(subscription_id, sequence, data)
        except ua.UaStatusCodeError as error:
            if error.code in _gone_codes():
                return None
            raise


_TOKEN_POLICIES = (
    "Aes256_Sha256_RsaPss",
    "Aes128_Sha256_RsaOaep",
    "Basic256Sha256",
    "Basic256",
    "Basic128Rsa15",
    "None",
)
"""Policies of tokens that asyncua can use, the best first."""


def usable_tokens(policies: Sequence[Any], channel_uri: str) -> list[Any]:
    """The ways to sign in that can be used, the best first: encrypted before clear; one without a policy has the channel's."""
    ranked = []
    for policy in policies:
        name = (policy.SecurityPolicyUri or channel_uri).rpartition("#")[2]
        if name in _TOKEN_POLICIES:
            ranked.append((_TOKEN_POLICIES.index(name), policy))
    return [policy for _, policy in sorted(ranked, key=lambda pair: pair[0])]


def _gone_codes() -> frozenset[int]:
    return frozenset(getattr(ua.StatusCodes, name) for name in _GONE)


def subscription_is_gone(error: Exception) -> bool:
    """Whether an answer says that there is no such subscription."""
    return isinstance(error, ua.UaStatusCodeError) and error.code in _gone_codes()


# Decoding -------------------------------------------------------------------------------------------------------------------------
#
# Our own, for two reasons. asyncua decodes a message whole or not at all, so that one value it cannot read costs every event of the
# message (see opcua_decode). And it makes four objects of each value.

_ITEM, _INT32, _UINT32, _INT64 = (struct.Struct(form) for form in ("<IB", "<i", "<I", "<q"))
_SCALARS = {kind: struct.Struct(f"<{form}") for kind, form in enumerate("?bBhHiIqQfd", start=1)}
"""A Variant's first byte → how its scalar is packed: Boolean (1) to Double (11)."""
_STRING = 12
_EPOCH_US = 11_644_473_600_000_000
"""µs from 1601, where OPC UA's time begins, to 1970 (Part 6, 5.2.2.5)."""
_TIME_US_MIN, _TIME_US_MAX = 31_536_000_000_000, 7_258_118_400_000_000
"""1971 and 2200: what lies outside is a sentinel (1601, 1970, 9999), and no time."""


def is_of_decoding(error: BaseException) -> bool:
    """Whether an error arose in decoding: an answer that no server should give raises whatever its decoder stumbles over."""
    of_decoding = isinstance(error, Malformed)
    at = error.__traceback__
    while at is not None and not isinstance(error, Malformed):
        module = str(at.tb_frame.f_globals.get("__name__", ""))
        if module.startswith(("asyncua.", "agent.")):
            of_decoding = module.startswith("asyncua.")
        at = at.tb_next
    return of_decoding


def decode_publish(data: Any) -> Published:
    """A PublishResponse. Of one that cannot be decoded, subscription and sequence number are known all the same.

    Raises UaStatusCodeError for a bad service result, NotConnected where not even the head can be read.
    """
    reader = Reader(data.read(len(data)))
    try:
        _, result = response_head(reader)
        if result.is_good():
            subscription_id = reader.uint32()
            available = [reader.uint32() for _ in range(reader.count(4))]
            reader.take(1)  # MoreNotifications
            sequence = reader.uint32()
    except Exception as error:
        text = f"the server sent a publish response that cannot be read at all ({type(error).__name__})"
        raise NotConnected(text) from error
    result.check()
    return _published(subscription_id, sequence, available, reader)


def decode_republish(subscription_id: int, sequence: int, data: Any) -> Published | None:
    """A RepublishResponse. asyncua's server answers with an empty message where the standard wants BadMessageNotAvailable."""
    reader = Reader(data.read(len(data)))
    try:
        _, result = response_head(reader)
        if result.is_good():
            reader.take(4)  # its sequence number: we asked for it
    except Exception as error:  # noqa: BLE001 - a decoder of foreign bytes raises anything
        return Published(subscription_id, sequence, None, [], _described(error))
    result.check()
    published = _published(subscription_id, sequence, [], reader)
    return None if published.notifications == [] else published


def decode_read(data: Any) -> tuple[list[Answer], Any]:
    """A ReadResponse: its answers, and the time in its head as a datetime. Raises UaStatusCodeError for a bad service result, Malformed."""
    reader = Reader(data.read(len(data)))
    ticks, result = response_head(reader)
    result.check()
    return [data_value(reader) for _ in range(reader.count())], ua.win_epoch_to_datetime(ticks)


def _published(subscription_id: int, sequence: int, available: list[int], reader: Reader) -> Published:
    try:
        ticks = reader.int64()
        return Published(subscription_id, sequence, _notifications(reader), available, published_us=_time_us(ticks))
    except Exception as error:  # noqa: BLE001 - a decoder of foreign bytes raises anything
        return Published(subscription_id, sequence, None, available, _described(error))


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def _notifications(reader: Reader) -> list[Any]:
    """The notifications of a message. Of one that cannot be read to its end, what came before it, and an Unreadable."""
    names = ua.ObjectIds
    notifications: list[Any] = []
    for _ in range(reader.count(3)):
        kind, body = extension(reader)
        if kind.Identifier == names.DataChangeNotification_Encoding_DefaultBinary:
            changes, error = _changes(body)
            notifications.append(DataChanges(changes))
        elif kind.Identifier == names.EventNotificationList_Encoding_DefaultBinary:
            events, error = _events(Reader(body))
            notifications.append(ua.EventNotificationList(Events=events))
        elif kind.Identifier == names.StatusChangeNotification_Encoding_DefaultBinary:
            status, error = Reader(body).uint32(), None
            notifications.append(ua.StatusChangeNotification(Status=ua.StatusCode(status)))
        else:
            continue
        if error is not None:
            notifications.append(Unreadable(_described(error)))
    return notifications


def _changes(raw: bytes) -> tuple[list[Change], Exception | None]:
    """A DataChangeNotification's items; the diagnostics that follow them are of no interest. The loop of every reading: kept flat."""
    changes: list[Change] = []
    try:
        at, context = 4, Reader(raw)
        for _ in range(_INT32.unpack_from(raw)[0]):
            handle, mask = _ITEM.unpack_from(raw, at)
            at += 5
            value, code, source_us, server_us = None, 0, None, None
            if mask & 0x01:
                scalar = _SCALARS.get(raw[at])
                if scalar is not None:
                    (value,) = scalar.unpack_from(raw, at + 1)
                    at += 1 + scalar.size
                else:
                    value, at = _unusual(context, at)
            if mask & 0x02:
                (code,) = _UINT32.unpack_from(raw, at)
                at += 4
            if mask & 0x04:
                source_us = _time_us(_INT64.unpack_from(raw, at)[0])
                at += 8
            if mask & 0x10:  # picoseconds of the source
                at += 2
            if mask & 0x08:
                server_us = _time_us(_INT64.unpack_from(raw, at)[0])
                at += 8
            if mask & 0x20:  # picoseconds of the server
                at += 2
            changes.append(Change(handle, value, code, source_us, server_us))
    except Exception as error:  # noqa: BLE001 - a decoder of foreign bytes raises anything
        return changes, error
    return changes, None


def _time_us(ticks: int) -> int | None:
    us = ticks // 10 - _EPOCH_US
    return us if _TIME_US_MIN < us < _TIME_US_MAX else None


def _unusual(context: Reader, at: int) -> tuple[Any, int]:
    """A value that is no plain number, and where it ends."""
    raw = context.raw
    if raw[at] == _STRING:
        (length,) = _INT32.unpack_from(raw, at + 1)
        end = at + 5 + max(0, length)
        if end > len(raw):
            raise Malformed("a text is longer than its message")
        return (raw[at + 5 : end].decode("utf-8", "backslashreplace") if length >= 0 else None), end
    context.at = at
    return variant(context).Value, context.at


def _events(reader: Reader) -> tuple[list[Any], Exception | None]:
    events: list[Any] = []
    try:
        for _ in range(reader.count(8)):
            handle = reader.uint32()
            fields = [variant(reader) for _ in range(reader.count())]
            events.append(ua.EventFieldList(ClientHandle=handle, EventFields=fields))
    except Exception as error:  # noqa: BLE001 - a decoder of foreign bytes raises anything
        return events, error
    return events, None
