"""`syslog`: a receiver for devices that can do nothing but send syslog: UDP, TCP, TLS; octet-counted or one message a line.

Nothing can be asked for again, so between the sockets and the buffer stands a queue of at most QUEUE_MESSAGES_MAX messages and
QUEUE_BYTES_MAX bytes. At the bound, TCP and TLS are not read from, so that the sender waits; a datagram is dropped, counted, and declared
as a `collection.gap` with its number, and so is what the kernel dropped because we came too late. While nobody listened
at all (a stop, a kill, a port that was taken), devices sent into the void: the cursor knows until when we listened, and a
`collection.gap` says from when to when.

Counted messages (`83 <34>1 …`, RFC 6587) and messages that end with a line's end are told apart by how each begins. What stands unfinished
when a connection closes is taken as it is, and marked `cut`.
"""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

import annotated_types

from agent.component import ConfigError, Cursor, NotConnected, Report, now_us
from agent.listening import Listener, tcp_sockets
from agent.parsers.base import Context, Lines, ip_of, zone_of
from agent.parsers.syslog import SyslogConfig, SyslogParser
from agent.wire.event import Event

BACKLOG = 100
QUEUE_MESSAGES_MAX = 20_000
QUEUE_BYTES_MAX = 16 * 1024 * 1024
BATCH_MESSAGES = 2_000
RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024
"""Asked of the kernel for UDP; it gives what net.core.rmem_max allows."""
KERNEL_DROPS_CHECK_S = 2.0
CURSOR_EVERY_S = 5.0
"""The cursor moves so often when nothing comes: a gap may seem to begin so much earlier than it did."""
_COUNT_DIGITS_MAX = 7
_SCHEMES = ("udp", "tcp", "tls")


class Address(NamedTuple):
    """Where to listen."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> "Address":
        """Read `udp://0.0.0.0:514`. Raises ValueError."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme not in _SCHEMES or not parts.hostname or port is None:
            raise ValueError(
                f"listen: {url!r} is no address to listen on; write udp://, tcp:// or tls://, then address:port"
            )
        return cls(parts.scheme, parts.hostname, port)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyslogReceiverConfig:
    """Where to listen, and whom to listen to.

    allow: networks that may send; empty: all. certificate_file, key_file: for tls://. client_ca_file: clients must show a certificate
    of it. time_zone: the zone of times that name none; empty: this computer's.
    """

    listen: Annotated[tuple[str, ...], annotated_types.Len(1, 16)] = ("udp://127.0.0.1:5514", "tcp://127.0.0.1:5514")
    allow: tuple[str, ...] = ()
    certificate_file: str = ""
    key_file: str = ""
    client_ca_file: str = ""
    message_bytes_max: Annotated[int, annotated_types.Ge(480), annotated_types.Le(262_144)] = 16_384
    connections_max: Annotated[int, annotated_types.Ge(1), annotated_types.Le(10_000)] = 256
    keep_raw: bool = False
    time_zone: str = ""

    def __post_init__(self) -> None:
        addresses = [Address.of(url) for url in self.listen]
        zone_of(self.time_zone)
        for network in self.allow:
            try:
                ip_network(network)
            except ValueError as error:
                raise ValueError(f"allow: {error}; write a network like 192.168.10.0/24") from None
        if any(address.scheme == "tls" for address in addresses) and not (self.certificate_file and self.key_file):
            raise ValueError("certificate_file: tls:// needs certificate_file and key_file")

    def problems(self) -> Iterable[tuple[str, str, str]]:
        """Whether the certificate can be used, and the ports are free and may be taken."""
        for key in ("certificate_file", "key_file", "client_ca_file"):
            name = getattr(self, key)
            if name and not os.access(name, os.R_OK):
                yield key, f"{name} cannot be read", "Correct the path, or let the agent's user read it."
                return
        try:
            tls_of(self)
        except ConfigError as error:
            yield error.key, str(error.args[0]), error.remedy
        if os.geteuid() != 0:
            for url in self.listen:
                if Address.of(url).port < _unprivileged_from():
                    yield "listen", f"{url}: only root may listen there", _REMEDY_PORT


_REMEDY_PORT = "Use a port from 1024 on, or give the service AmbientCapabilities=CAP_NET_BIND_SERVICE."


def _unprivileged_from() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 1024


def tls_of(config: SyslogReceiverConfig) -> ssl.SSLContext | None:
    """The TLS settings, where TLS is asked for. Raises ConfigError."""
    if not any(url.startswith("tls://") for url in config.listen):
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.certificate_file, config.key_file)
    except (OSError, ssl.SSLError) as error:
        text = f"{config.certificate_file}, {config.key_file}: {error}"
        raise ConfigError(text, key="certificate_file", remedy="Give a PEM certificate and its key.") from None
    if config.client_ca_file:
        try:
            context.load_verify_locations(config.client_ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"{config.client_ca_file}: {error}", key="client_ca_file", remedy="Give PEM certificates."
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Message(NamedTuple):
    """A message as it came. `cut`: its end is missing."""

    text: bytes
    sender: str
    transport: str
    cut: bool = False


class Queue:
    """What came and was not yet taken, and who waits because it is full."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._bytes = 0
        self._waiting: set[Stream] = set()
        self.filled = asyncio.Event()
        self.dropped = 0

    @property
    def full(self) -> bool:
        return len(self._messages) >= QUEUE_MESSAGES_MAX or self._bytes >= QUEUE_BYTES_MAX

    def put(self, message: Message) -> None:
        self._messages.append(message)
        self._bytes += len(message.text)
        self.filled.set()

    def drop(self) -> None:
        """A message that could not wait."""
        self.dropped += 1
        self.filled.set()

    def wait(self, stream: "Stream") -> None:
        self._waiting.add(stream)

    def forget(self, stream: "Stream") -> None:
        self._waiting.discard(stream)

    def take(self) -> tuple[list[Message], int]:
        """Up to a batch of messages, and how many were dropped since the last time."""
        messages = [self._messages.popleft() for _ in range(min(BATCH_MESSAGES, len(self._messages)))]
        self._bytes -= sum(len(message.text) for message in messages)
        dropped, self.dropped = self.dropped, 0
        if not self._messages:
            self.filled.clear()
        while self._waiting and not self.full:
            self._waiting.pop().go_on()
        return messages, dropped


class Datagrams(asyncio.DatagramProtocol):
    """UDP: one datagram, one message."""

    def __init__(self, receiver: "SyslogSource", queue: Queue) -> None:
        self._receiver = receiver
        self._queue = queue

    def datagram_received(self, data: bytes, addr: Any) -> None:
        sender = str(addr[0])
        if not self._receiver.allows(sender):
            return
        limit = self._receiver.message_bytes_max
        if self._queue.full:
            self._queue.drop()
        else:
            self._queue.put(Message(data[:limit], sender, "udp", len(data) > limit))


class Stream(asyncio.Protocol):
    """TCP or TLS: messages one after the other."""

    def __init__(self, receiver: "SyslogSource", queue: Queue, transport_name: str) -> None:
        self._receiver = receiver
        self._queue = queue
        self._name = transport_name
        self._transport: asyncio.Transport | None = None
        self._data = bytearray()
        self._sender = ""
        self._skip = 0  # bytes of a counted message that are passed over
        self._skip_line = False
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # TCP has one
        self._transport = transport
        self._sender = str((transport.get_extra_info("peername") or ("?",))[0])
        if not self._receiver.admit(self, self._sender):
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self._data += data
        self.go_on()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # how it ended does not matter
        self._ended = True
        self.go_on()
        self._receiver.release(self)

    def go_on(self) -> None:
        """Take messages out of what came, while there is room for them."""
        while True:
            if self._queue.full:
                self._queue.wait(self)
                if self._transport is not None and not self._ended:
                    self._transport.pause_reading()
                return
            if not self._step():
                break
        if self._ended:
            self._rest()
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _put(self, text: bytes, *, cut: bool = False) -> None:
        if text.strip():
            self._queue.put(Message(text, self._sender, self._name, cut))

    def _step(self) -> bool:
        """Take one message; False where there is none whole."""
        if self._skip:
            passed = min(self._skip, len(self._data))
            del self._data[:passed]
            self._skip -= passed
            return passed > 0
        if not self._data:
            return False
        if not self._skip_line and self._data[0] in b"123456789":
            return self._counted_step()
        return self._line_step()

    def _counted_step(self) -> bool:
        blank = self._data.find(b" ", 0, _COUNT_DIGITS_MAX + 1)
        if blank < 0 and len(self._data) <= _COUNT_DIGITS_MAX and self._data.isdigit():
            return False
        if blank < 0 or not self._data[:blank].isdigit():
            return self._line_step()  # a line that happens to begin with a digit
        if len(self._data) < blank + 2:
            return False
        if self._data[blank + 1] not in b"<":  # a counted message begins with its priority
            return self._line_step()
        limit = self._receiver.message_bytes_max
        size = int(self._data[:blank])
        wanted = min(size, limit)
        if len(self._data) - blank - 1 < wanted:
            return False
        begin = blank + 1
        self._put(bytes(self._data[begin : begin + wanted]), cut=size > limit)
        del self._data[: begin + wanted]
        self._skip = size - wanted
        return True

    def _line_step(self) -> bool:
        limit = self._receiver.message_bytes_max
        # Some devices end with a NUL.
        ends = [end for end in (self._data.find(b"\n", 0, limit + 1), self._data.find(b"\0", 0, limit + 1)) if end >= 0]
        if ends:
            end = min(ends)
            if self._skip_line:
                self._skip_line = False
            else:
                self._put(bytes(self._data[:end]).rstrip(b"\r"))
            del self._data[: end + 1]
            return True
        if len(self._data) <= limit:
            return False
        if not self._skip_line:
            self._put(bytes(self._data[:limit]), cut=True)
        self._skip_line = True
        del self._data[:limit]
        return True

    def _rest(self) -> None:
        if self._data and not self._skip and not self._skip_line:
            self._put(bytes(self._data), cut=True)
        self._data.clear()


class SyslogSource:
    """Messages that devices send, as events."""

    Config: ClassVar[type] = SyslogReceiverConfig
    rereadable: ClassVar[bool] = False

    def __init__(self, name: str, config: SyslogReceiverConfig, report: Report) -> None:
        self._name = name
        self._config = config
        self._report = report
        self._lines = Lines()
        context = Context(name, config.keep_raw, zone_of(config.time_zone), self._lines)
        self._parser = SyslogParser(SyslogConfig(), context)
        self._networks = [ip_network(network) for network in config.allow]
        self._streams: set[Stream] = set()
        self._datagram_sockets: list[socket.socket] = []
        self._kernel_drops: dict[int, int] = {}
        self.message_bytes_max = config.message_bytes_max
        self.addresses: list[tuple[str, Any]] = []
        """Where it listens: scheme and socket address, once it does."""

    def show_lines(self, *, wanted: bool) -> None:
        """Switch whether events carry their line for the handlers to search."""
        self._lines.shown = wanted

    async def batches(self, cursor: Cursor | None) -> AsyncIterator[tuple[list[Event], Cursor | None]]:
        """See agent.component.Source. Nothing can be read again: the cursor is the time until which somebody listened."""
        queue = Queue()
        async with contextlib.AsyncExitStack() as stack:
            for url in self._config.listen:
                await self._listen(url, queue, stack)
            self._report.ok()
            away = [] if cursor is None else [self._was_away(int(cursor["listened_us"]))]
            listened_us, moved_s = now_us(), time.monotonic()
            yield away, {"listened_us": listened_us}
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(KERNEL_DROPS_CHECK_S):
                        await queue.filled.wait()
                looked_us = now_us()
                messages, dropped = queue.take()
                if not queue.filled.is_set():
                    # What came before this is in our hands; while the queue holds more, a kill would lose older ones.
                    listened_us = looked_us
                events = self._events(messages)
                if dropped:
                    events.append(
                        self._gap(
                            f"the queue was full ({QUEUE_MESSAGES_MAX} messages or {QUEUE_BYTES_MAX} bytes)", dropped
                        )
                    )
                missed = self._missed()
                if missed:
                    events.append(self._gap("the kernel dropped datagrams before they were read", missed))
                if events or time.monotonic() - moved_s >= CURSOR_EVERY_S:
                    moved_s = time.monotonic()
                    yield events, {"listened_us": listened_us}

    # Who may

    def allows(self, sender: str) -> bool:
        """Whether this address may send."""
        if not self._networks:
            return True
        address = ip_address(ip_of(sender) or "0.0.0.0")  # noqa: S104  # stands for nobody
        if any(address in network for network in self._networks):
            return True
        self._report.count("refused_senders")
        return False

    def admit(self, stream: Stream, sender: str) -> bool:
        """Take a connection in, or not."""
        if not self.allows(sender):
            return False
        if len(self._streams) >= self._config.connections_max:
            self._report.count("refused_connections")
            self._report.fault(
                f"more than connections_max = {self._config.connections_max} connections; {sender} was refused",
                "connections",
            )
            return False
        self._streams.add(stream)
        return True

    def release(self, stream: Stream) -> None:
        """A connection ended."""
        if stream in self._streams:
            self._streams.remove(stream)
            self._report.trouble.pop("connections", None)

    # Sockets

    async def _listen(self, url: str, queue: Queue, stack: contextlib.AsyncExitStack) -> None:
        loop = asyncio.get_running_loop()
        address = Address.of(url)
        try:
            if address.scheme == "udp":
                bound = await self._datagram_socket(address)
                transport, _ = await loop.create_datagram_endpoint(lambda: Datagrams(self, queue), sock=bound)
                stack.callback(transport.close)
                self._datagram_sockets.append(bound)
                stack.callback(self._datagram_sockets.remove, bound)
                self.addresses.append((address.scheme, bound.getsockname()))
                return
            tls = tls_of(self._config) if address.scheme == "tls" else None
            sockets = await asyncio.to_thread(tcp_sockets, address.host, address.port, BACKLOG)
        except OSError as error:
            raise self._refusal(url, error) from None
        for sock in sockets:
            listener = Listener(sock, lambda: Stream(self, queue, address.scheme), _no_room, tls)
            stack.callback(listener.close)
            self.addresses.append((address.scheme, sock.getsockname()))
        stack.callback(self._hang_up)

    @staticmethod
    async def _datagram_socket(address: Address) -> socket.socket:
        loop = asyncio.get_running_loop()
        infos = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, where = infos[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setblocking(False)  # noqa: FBT003  # its only parameter
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            bound.bind(where)
        except OSError:
            bound.close()
            raise
        return bound

    def _hang_up(self) -> None:
        for stream in list(self._streams):
            stream.close()

    @staticmethod
    def _refusal(url: str, error: OSError) -> Exception:
        if error.errno == errno.EACCES:
            return ConfigError(f"{url}: permission denied", key="listen", remedy=_REMEDY_PORT)
        if isinstance(error, socket.gaierror):
            return ConfigError(f"{url}: {error.strerror}", key="listen", remedy="Write an address of this computer.")
        return NotConnected(f"{url}: {error.strerror or error}")

    # Events

    def _events(self, messages: list[Message]) -> list[Event]:
        observed_us = now_us()
        events: list[Event] = []
        for message in messages:
            text = message.text.decode("utf-8", "backslashreplace").replace("\0", "").strip("\r\n")
            if not text.strip():
                continue
            sender = ip_of(message.sender) or message.sender
            more: dict[str, Any] = {"sender": sender, "transport": message.transport}
            if message.cut:
                more["cut"] = True
            events.extend(self._parser.message(text, observed_us, observed_us, sender, more))
        return events

    def _missed(self) -> int:
        """How many datagrams the kernel dropped on our sockets since the last look."""
        missed = 0
        for bound in self._datagram_sockets:
            inode = os.fstat(bound.fileno()).st_ino
            drops = _drops_of(inode, "/proc/net/udp6" if bound.family == socket.AF_INET6 else "/proc/net/udp")
            missed += max(0, drops - self._kernel_drops.get(inode, 0))
            self._kernel_drops[inode] = drops
        return missed

    def _was_away(self, since_us: int) -> Event:
        """Nobody listened from then until now."""
        self._report.count("gaps")
        at = now_us()
        reason = "nobody listened; what devices sent in between is unknown"
        data = {"reason": reason, "events": None, "from_us": since_us, "to_us": at}
        return Event(at, at, "collection.gap", self._name, message=reason, data=data)

    def _gap(self, reason: str, events: int) -> Event:
        self._report.count("gaps")
        self._report.count("dropped", events)
        at = now_us()
        return Event(at, at, "collection.gap", self._name, message=reason, data={"reason": reason, "events": events})


def _no_room() -> None:
    """A device that sends is not closed for one that wants to: it waits in the kernel."""


def _drops_of(inode: int, table: str) -> int:
    """The last column of the socket's row in the kernel's table."""
    try:
        with Path(table).open(encoding="ascii") as rows:
            for row in rows:
                cells = row.split()
                if len(cells) > 12 and cells[9] == str(inode):  # noqa: PLR2004  # inode is the tenth, drops the last
                    return int(cells[-1])
    except (OSError, ValueError):
        return 0
    return 0
