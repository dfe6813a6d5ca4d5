"""One connection to one Modbus gateway, one request at a time, and nothing that could change a machine.

Requests are put together here and nowhere else, and only five function codes exist: 1 coils, 2 discrete inputs, 3 holding registers,
4 input registers, 43 identification. There is no code for a write, and none can be passed in.

An answer is believed only if everything about it fits what was asked: transaction id (TCP, TLS) or checksum (RTU), unit, function,
and the exact number of bytes. Whatever does not fit is a `BadAnswer` and never a value.

    tcp://  tls://     [transaction 2][protocol 2 = 0][length 2][unit 1] [function 1][data]     late answers are told apart by their id
    rtu://  rtu+tcp:// [unit 1] [function 1][data] [crc 2]                                      nothing tells a late answer apart

So after silence or garbage on RTU the line is closed, opened again and listened to until it is quiet, and the first answer after that
is taken only if no second one follows it: else the late answer of an earlier question would be read as the value of another register.
"""

import asyncio
import contextlib
import os
import ssl
import struct
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal
from urllib.parse import parse_qsl, urlsplit

from annotated_types import Ge, Le

from agent.component import ConfigError, NotConnected, in_words

Table = Literal["coil", "discrete", "input", "holding"]

READS: Final[dict[str, int]] = {"coil": 1, "discrete": 2, "holding": 3, "input": 4}
IDENTIFY: Final = 43
IDENTIFY_KIND: Final = 14
"""Sub-function of 43: read device identification."""

REGISTERS_MAX, BITS_MAX = 125, 2_000
"""What one request may ask for, by the specification."""
ADU_BYTES_MAX = 260
LENGTH_MIN, LENGTH_MAX = 3, ADU_BYTES_MAX - 6
"""What the length field of Modbus TCP may say: unit, function and at least one byte more."""
INBOX_BYTES_MAX = 65_536
"""Of unread answers; a peer that sends more than this unasked is cut off."""
STALE_ANSWERS_MAX = 16
"""Late answers skipped while waiting for one; more of them is garbage."""
SILENCES_MAX = 2
"""Questions in a row without any answer after which the connection itself is doubted and made anew."""
QUIET_S_MAX = 0.25
TLS_SHUTDOWN_S = 1.0
"""A peer that does not take part in saying good-bye is left after this."""
OBJECTS_MAX = 64
"""Identification objects taken from one device."""

EXCEPTIONS: Final = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "device failure",
    5: "acknowledge, still working",
    6: "device busy",
    7: "negative acknowledge",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "gateway target did not respond",
}
GATEWAY_EXCEPTIONS: Final = frozenset({10, 11})
"""The gateway speaks, because the unit does not."""

_AROUND_BYTES = 16
"""Of a request and of what stands around the values of its answer, on a serial line."""
_MBAP = struct.Struct(">HHHB")
_ASK = struct.Struct(">BHH")


class NoAnswer(Exception):
    """The unit did not answer in time, or hung up instead of answering."""


class BadAnswer(NoAnswer):
    """Something came that is not an answer to what was asked."""


class ShortAnswer(BadAnswer):
    """The answer to this question, with fewer values than were asked for."""


class Exceptional(Exception):
    """The unit (or the gateway in its place) answered with an exception."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exception {code} ({EXCEPTIONS.get(code, 'unknown')})")
        self.code = code


class _HungUp(Exception):
    """The connection ended while an answer was awaited."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a gateway is, taken from a URL."""

    url: str
    scheme: str
    host: str = ""
    port: int = 0
    device: str = ""
    baudrate: int = 19_200
    parity: str = "N"
    bytesize: int = 8
    stopbits: int = 1
    echo: bool = False

    @property
    def rtu(self) -> bool:
        """Framed by checksum and silence, without transaction ids."""
        return self.scheme in ("rtu", "rtu+tcp")

    @property
    def byte_s(self) -> float:
        """How long one byte takes on a serial line; 0 on a network."""
        return (self.bytesize + 2 + self.stopbits) / self.baudrate if self.device else 0.0

    @property
    def silence_s(self) -> float:
        """What the specification wants between two frames on a serial line: three and a half bytes, and 1.75 ms at least."""
        return max(3.5 * self.byte_s, 0.00175) if self.device else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigTls:
    """What proves who is who on tls://."""

    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None
    """The name in the server's certificate, where it is not the host of the url."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long to wait for what."""

    timeout_s: Annotated[float, Ge(0.01), Le(60)] = 1.0
    connect_timeout_s: Annotated[float, Ge(0.1), Le(60)] = 5.0
    connect_pause_s: float = 0.0
    request_pause_s: float = 0.0


def parse_url(url: str) -> Address:
    """The address in a URL. Raises ValueError with a sentence that says what is wrong."""
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ValueError("credentials in a URL end up in logs, and Modbus has none; remove them")
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"{url!r}: the port is not a number from 1 to 65535") from None
    if parts.scheme in ("tcp", "tls", "rtu+tcp"):
        if not parts.hostname:
            raise ValueError(f"{url!r} names no host; write {parts.scheme}://HOST:{502}")
        return Address(url, parts.scheme, parts.hostname, port or (802 if parts.scheme == "tls" else 502))
    if parts.scheme == "rtu":
        if parts.netloc or not parts.path.startswith("/"):
            raise ValueError(f"{url!r} names no serial device; write rtu:///dev/ttyUSB0?baudrate=19200")
        return _serial(url, parts.path, dict(parse_qsl(parts.query)))
    raise ValueError(
        f"{url!r} is not a Modbus address; write tcp://HOST:502, tls://HOST:802, rtu+tcp://HOST:PORT or rtu:///dev/ttyUSB0?baudrate=19200"
    )


def _serial(url: str, device: str, options: dict[str, str]) -> Address:
    allowed = {
        "baudrate": {str(n) for n in (1200, 2400, 4800, 9600, 14400, 19200, 38400, 57600, 115200, 230400, 460800)},
        "parity": {"N", "E", "O"},
        "bytesize": {"7", "8"},
        "stopbits": {"1", "2"},
        "echo": {"0", "1"},
    }
    for key, value in options.items():
        if key not in allowed:
            raise ValueError(f"{url!r}: there is no serial option {key!r}; known are {', '.join(allowed)}")
        if value not in allowed[key]:
            raise ValueError(f"{url!r}: {key} cannot be {value!r}; it is one of {', '.join(sorted(allowed[key]))}")
    return Address(
        url,
        "rtu",
        device=device,
        baudrate=int(options.get("baudrate", 19_200)),
        parity=options.get("parity", "N"),
        bytesize=int(options.get("bytesize", 8)),
        stopbits=int(options.get("stopbits", 1)),
        echo=options.get("echo") == "1",
    )


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
        table.append(crc)
    return tuple(table)


_CRC = _crc_table()


def crc16(frame: bytes) -> bytes:
    """The checksum at the end of an RTU frame."""
    crc = 0xFFFF
    for byte in frame:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    return crc.to_bytes(2, "little")


class _Inbox(asyncio.Protocol):
    """What has arrived and was not read yet."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._waiter: asyncio.Future[None] | None = None
        self.closed = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._bytes += data
        if len(self._bytes) > INBOX_BYTES_MAX:
            self.closed = True
            self._bytes.clear()
            if self.transport is not None:
                self.transport.abort()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self, n: int) -> bytes:
        """The next n bytes; waits for them."""
        while len(self._bytes) < n:
            await self._more()
        taken = bytes(self._bytes[:n])
        del self._bytes[:n]
        return taken

    async def _more(self) -> None:
        if self.closed:
            raise _HungUp
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def drop(self) -> int:
        """Forget what has arrived; how much it was."""
        dropped = len(self._bytes)
        self._bytes.clear()
        return dropped

    async def quiet(self, quiet_s: float, longest_s: float) -> int:
        """Wait until nothing has come for `quiet_s`, at most `longest_s`; how many bytes were dropped meanwhile."""
        dropped = self.drop()
        loop = asyncio.get_running_loop()
        end = loop.time() + longest_s
        while loop.time() < end and not self.closed:
            try:
                async with asyncio.timeout(quiet_s):
                    await self._more()
            except TimeoutError:
                return dropped
            dropped += self.drop()
        return dropped


class _SerialWire:
    """A serial port as a transport: reads by the event loop, writes at once (a request is a few bytes and never waits)."""

    def __init__(self, address: Address, inbox: _Inbox) -> None:
        import serial  # type: ignore[import-untyped]

        self._inbox = inbox
        self._port: Any = serial.Serial(
            address.device,
            baudrate=address.baudrate,
            parity=address.parity,
            bytesize=address.bytesize,
            stopbits=address.stopbits,
            timeout=0,
            exclusive=True,
        )
        self._fd: int = self._port.fileno()
        self._port.reset_input_buffer()
        asyncio.get_running_loop().add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, 4_096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._inbox.data_received(data)
        else:
            # The device is gone. Without this the loop would be told that it is readable for ever.
            asyncio.get_running_loop().remove_reader(self._fd)
            self._inbox.connection_lost(None)

    def write(self, data: bytes) -> None:
        try:
            written = os.write(self._fd, data)
        except OSError:
            raise _HungUp from None
        if written < len(data):
            raise _HungUp  # the port takes nothing: nobody is behind it

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        with contextlib.suppress(OSError):
            # What the port could not send is of no use any more; without this the kernel would wait for it.
            self._port.reset_output_buffer()
        with contextlib.suppress(OSError):
            self._port.close()


class Link:
    """See the module's text. `read` and `identify` open the connection when there is none; they raise

    NotConnected   the gateway cannot be reached
    NoAnswer       the gateway is there, the unit does not answer (BadAnswer: or not with an answer to this)
    Exceptional    the unit answered with an exception
    """

    def __init__(self, address: Address, timing: Timing | None = None, tls: ConfigTls | None = None) -> None:
        self.address = address
        self.timing = timing or Timing()
        self.requests = 0
        self.late_answers = 0
        """Answers to earlier questions, thrown away."""
        self.connections = 0
        self._tls = tls or ConfigTls()
        self._inbox: _Inbox | None = None
        self._wire: asyncio.Transport | _SerialWire | None = None
        self._transaction = 0
        self._answered = False
        """This connection has answered something."""
        self._silences = 0
        self._doubtful = False
        """What comes next on this connection may not be the answer to what is asked next."""
        self._guarded = False
        """The next answer is taken only if no other one follows."""
        self._pause_until_s = 0.0

    # Opening and closing ------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect, where there is no connection that can be trusted. Raises NotConnected, ConfigError."""
        if self._wire is not None and not self._doubtful and not (self._inbox and self._inbox.closed):
            return
        doubtful, self._doubtful = self._doubtful, False
        self.close()
        inbox = _Inbox()
        if self.address.scheme == "rtu":
            self._wire = self._open_serial(inbox)
        else:
            self._wire = await self._open_socket(inbox)
        self._inbox = inbox
        self.connections += 1
        self._answered, self._silences = False, 0
        if self.timing.connect_pause_s:
            await asyncio.sleep(self.timing.connect_pause_s)
        if self.address.rtu and doubtful:
            self.late_answers += bool(await inbox.quiet(self._quiet_s, self.timing.timeout_s))
            self._guarded = True

    @property
    def _quiet_s(self) -> float:
        return min(self.timing.timeout_s, QUIET_S_MAX)

    def close(self) -> None:
        """Let go of the connection."""
        if self._wire is not None:
            self._wire.close()
        self._wire = self._inbox = None

    def _open_serial(self, inbox: _Inbox) -> _SerialWire:
        try:
            return _SerialWire(self.address, inbox)
        except ModuleNotFoundError:
            raise ConfigError(
                "rtu:// needs pyserial, which is not installed",
                key="url",
                remedy="Install it: pip install 'linewarden[modbus]'.",
            ) from None
        except (OSError, ValueError) as error:  # serial.SerialException is an OSError
            raise NotConnected(
                f"{self.address.device} cannot be opened: {error}; check that it is plugged in, that no other program holds it, "
                "and that the agent's user is in the group dialout"
            ) from None

    async def _open_socket(self, inbox: _Inbox) -> asyncio.Transport:
        address = self.address
        loop = asyncio.get_running_loop()
        context = self._tls_context() if address.scheme == "tls" else None
        try:
            async with asyncio.timeout(self.timing.connect_timeout_s):
                transport, _ = await loop.create_connection(
                    lambda: inbox,
                    address.host,
                    address.port,
                    ssl=context,
                    ssl_handshake_timeout=self.timing.connect_timeout_s if context else None,
                    ssl_shutdown_timeout=TLS_SHUTDOWN_S if context else None,
                    server_hostname=(self._tls.server_name or address.host) if context else None,
                )
        except TimeoutError:
            raise NotConnected(
                f"{address.url} did not accept a connection within {self.timing.connect_timeout_s:g} s"
            ) from None
        except ssl.SSLCertVerificationError as error:
            raise NotConnected(
                f"{address.url}: its certificate is not trusted ({error.verify_message}); check tls.ca_file and tls.server_name"
            ) from None
        except ssl.SSLError as error:
            raise NotConnected(
                f"{address.url}: no secure connection ({error.reason or error}); it may want a client certificate (tls.certificate_file)"
            ) from None
        except OSError as error:
            raise NotConnected(f"{address.url} cannot be reached: {in_words(error)}") from None
        return transport

    def _tls_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        tls = self._tls
        try:
            if tls.ca_file:
                context.load_verify_locations(tls.ca_file)
            else:
                context.load_default_certs()
            if tls.certificate_file:
                context.load_cert_chain(tls.certificate_file, tls.key_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"the certificates cannot be read: {error}",
                key="tls",
                remedy="Name PEM files that the agent's user can read.",
            ) from None
        return context

    # Asking -------------------------------------------------------------------------------------------------------------------

    async def read(self, unit: int, table: str, address: int, count: int, timeout_s: float | None = None) -> bytes:
        """The bytes of `count` registers (two each, as sent) or bits (eight a byte, lowest first) of a table."""
        function = READS[table]
        expected = count * 2 if function > 2 else (count + 7) // 8  # noqa: PLR2004 (3 and 4 are the registers)
        body = await self._ask(unit, _ASK.pack(function, address, count), timeout_s, expected)
        if body[1] != len(body) - 2:
            self._doubt()
            raise BadAnswer(f"an answer that says {body[1]} bytes and has {len(body) - 2}")
        if body[1] > expected or (body[1] < expected and self.address.rtu):
            # Where nothing tells a late answer apart, another length is a sign of one.
            self._doubt()
            raise BadAnswer(f"{expected} bytes asked for, {body[1]} came")
        if body[1] < expected:
            raise ShortAnswer(f"{expected} bytes asked for, {body[1]} came")
        return body[2:]

    async def identify(self, unit: int) -> dict[int, str]:
        """What the device says of itself (function 43/14, basic and regular), by object number.

        On a connection of its own, since some devices say nothing more on one where they were asked this; and never on a second one
        beside the first, since many gateways serve but one client, and a serial port has but one owner.
        """
        self.close()
        try:
            return await self._objects(unit)
        finally:
            self.close()

    async def _objects(self, unit: int) -> dict[int, str]:
        objects: dict[int, str] = {}
        following = 0
        for _ in range(OBJECTS_MAX):
            body = await self._ask(unit, bytes((IDENTIFY, IDENTIFY_KIND, 2, following)), None, ADU_BYTES_MAX)
            more, following, came = _identification(body)
            objects |= came
            if not more or len(objects) >= OBJECTS_MAX:
                break
        return objects

    async def _ask(self, unit: int, request: bytes, timeout_s: float | None, answer_bytes: int) -> bytes:
        """The answer's bytes from its function code on. A connection that had grown old is made anew once."""
        await self.open()
        timeout_s = (timeout_s or self.timing.timeout_s) + (answer_bytes + _AROUND_BYTES) * self.address.byte_s
        fresh = not self._answered
        try:
            body = await self._once(unit, request, timeout_s)
        except _HungUp:
            self.close()
            if fresh:
                raise NoAnswer("it hung up instead of answering") from None
            await self.open()
            try:
                body = await self._once(unit, request, timeout_s)
            except _HungUp:
                self.close()
                raise NoAnswer("it hung up instead of answering, twice") from None
        self._answered, self._silences = True, 0
        function = body[0]
        if function == request[0] | 0x80 and len(body) == 2:  # noqa: PLR2004 (function and code)
            raise Exceptional(body[1])
        if function != request[0] or len(body) < 3:  # noqa: PLR2004
            self._doubt()
            raise BadAnswer(f"function {request[0]} asked for, {function} came")
        return body

    async def _once(self, unit: int, request: bytes, timeout_s: float) -> bytes:
        loop = asyncio.get_running_loop()
        if (pause_s := self._pause_until_s - loop.time()) > 0:
            await asyncio.sleep(pause_s)
        self.requests += 1
        speak = self._rtu if self.address.rtu else self._tcp
        settled = False
        try:
            async with asyncio.timeout(timeout_s):
                body = await speak(unit, request)
            if self._guarded:
                await self._alone()
            settled = True
        except TimeoutError:
            self._silences += 1
            raise NoAnswer(f"no answer within {timeout_s:g} s") from None
        except BadAnswer:
            self._doubtful = True
            raise
        finally:
            # Also when cancelled: the answer may still come, and would be taken for that of the next question.
            if not settled and (self.address.rtu or self._silences >= SILENCES_MAX):
                self._doubtful = True
            self._pause_until_s = loop.time() + max(self.timing.request_pause_s, self.address.silence_s)
        return body

    def _doubt(self) -> None:
        self._doubtful = True

    async def _tcp(self, unit: int, request: bytes) -> bytes:
        inbox, wire = self._inbox, self._wire
        if inbox is None or wire is None or inbox.closed:
            raise _HungUp
        self._transaction = self._transaction % 65_535 + 1
        wire.write(_MBAP.pack(self._transaction, 0, len(request) + 1, unit) + request)
        for _ in range(STALE_ANSWERS_MAX):
            transaction, protocol, length, from_unit = _MBAP.unpack(await inbox.take(_MBAP.size))
            if protocol != 0 or not LENGTH_MIN <= length <= LENGTH_MAX:
                raise BadAnswer("what came is not Modbus TCP; is it RTU over TCP (rtu+tcp://)?")
            body = await inbox.take(length - 1)
            if transaction != self._transaction:
                self.late_answers += 1
                continue
            if from_unit != unit:
                raise BadAnswer(f"unit {unit} was asked, unit {from_unit} answered; is {from_unit} its number?")
            return body
        raise BadAnswer("nothing but answers to other questions")

    async def _rtu(self, unit: int, request: bytes) -> bytes:
        inbox, wire = self._inbox, self._wire
        if inbox is None or wire is None or inbox.closed:
            raise _HungUp
        if inbox.drop():
            self.late_answers += 1
            raise BadAnswer("something was said that nobody had asked for")
        frame = bytes((unit,)) + request
        frame += crc16(frame)
        wire.write(frame)
        if self.address.echo and await inbox.take(len(frame)) != frame:
            raise BadAnswer("the echo is not what was sent; is echo=1 right for this adapter?")
        head = await inbox.take(2)
        if head[0] != unit or head[1] & 0x7F != request[0]:
            raise BadAnswer(f"unit {unit} function {request[0]} was asked, unit {head[0]} function {head[1]} answered")
        answer = head + await _rest(inbox, head[1])
        if crc16(answer[:-2]) != answer[-2:]:
            raise BadAnswer("the checksum is wrong")
        return answer[1:-2]

    async def _alone(self) -> None:
        """The first answer after a doubt is taken only if no second one follows: two would mean that the first is an old one."""
        if self._inbox is not None and await self._inbox.quiet(self._quiet_s, self._quiet_s):
            self.late_answers += 1
            raise BadAnswer("two answers to one question")
        self._guarded = False


async def _rest(inbox: _Inbox, function: int) -> bytes:
    """What follows unit and function in an RTU answer, checksum included. Only the content tells how long it is."""
    if function & 0x80:
        return await inbox.take(3)
    if function != IDENTIFY:
        count = await inbox.take(1)
        return count + await inbox.take(count[0] + 2)
    data = await inbox.take(6)
    for _ in range(data[5]):
        head = await inbox.take(2)
        data += head + await inbox.take(head[1])
        if len(data) > ADU_BYTES_MAX:
            raise BadAnswer("an identification longer than a frame")
    return data + await inbox.take(2)


def _identification(body: bytes) -> tuple[bool, int, dict[int, str]]:
    """Whether more follows, from which object on, and the objects of one answer."""
    if len(body) < 7 or body[1] != IDENTIFY_KIND:  # noqa: PLR2004 (the fixed part)
        raise BadAnswer("not an identification")
    more, following, count = body[4] == 0xFF, body[5], body[6]  # noqa: PLR2004 (0xFF: more follows)
    objects: dict[int, str] = {}
    at = 7
    for _ in range(count):
        if at + 2 > len(body) or at + 2 + body[at + 1] > len(body):
            raise BadAnswer("an identification that is cut off")
        text = body[at + 2 : at + 2 + body[at + 1]].decode("utf-8", "backslashreplace")
        objects[body[at]] = text.replace("\0", "").strip()
        at += 2 + body[at + 1]
    return more, following, objects
