"""One connection to one Modbus gateway, one request at a time, and nothing that could change a machine.

The protocol is pymodbus's; the fence around its client (agent.sources.modbus_client) passes read requests only, and only the exact answer
to the pending request. An answer is believed only if everything about it fits what was asked: transaction id (TCP, TLS) or checksum (RTU),
unit, function, and the exact number of bytes. Whatever does not fit is a `BadAnswer` and never a value.

    tcp://  tls://     [transaction 2][protocol 2 = 0][length 2][unit 1] [function 1][data]     late answers are told apart by their id
    rtu://  rtu+tcp:// [unit 1] [function 1][data] [crc 2]                                      nothing tells a late answer apart

So after silence or garbage on RTU the line is closed, opened again and listened to until it is quiet, and the first answer after that
is taken only if no second one follows it: else the late answer of an earlier question would be read as the value of another register.
The same holds on Modbus TCP where the ids are ignored (`transaction_id = "ignore"`), for gateways that do not send them back.
"""

import asyncio
import ssl
import termios
from collections import deque
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from annotated_types import Ge, Le
from pymodbus.pdu import ModbusPDU

from agent.component import ConfigError, NotConnected, in_words
from agent.sources.modbus_address import Address, parse_url
from agent.sources.modbus_client import (
    ADU_BYTES_MAX,
    EXCEPTIONS,
    IDENTIFY,
    IDENTIFY_KIND,
    IDS_REMEMBERED,
    READS,
    BadAnswer,
    Exceptional,
    Gate,
    HungUp,
    NoAnswer,
    NotARead,
    Port,
    ShortAnswer,
    crc16,
    identity_request,
    read_request,
)

__all__ = [
    "BITS_MAX",
    "BUSY",
    "EXCEPTIONS",
    "GATEWAY_EXCEPTIONS",
    "IDENTIFY",
    "READS",
    "REGISTERS_MAX",
    "Address",
    "BadAnswer",
    "ConfigTls",
    "Exceptional",
    "Link",
    "NoAnswer",
    "NotARead",
    "ShortAnswer",
    "Table",
    "Timing",
    "crc16",
    "parse_url",
]

Table = Literal["coil", "discrete", "input", "holding"]

REGISTERS_MAX, BITS_MAX = 125, 2_000
"""What one request may ask for, by the specification."""
SILENCES_MAX = 2
"""Questions in a row without any answer after which the connection itself is doubted and made anew."""
QUIET_S_MAX = 0.25
TLS_SHUTDOWN_S = 1.0
"""A peer that does not take part in saying good-bye is left after this."""
OBJECTS_MAX = 64
"""Identification objects taken from one device."""
GATEWAY_EXCEPTIONS: Final = frozenset({10, 11})
"""The gateway speaks, because the unit does not."""
BUSY: Final = frozenset({5, 6})
"""Exceptions that say: later."""

_AROUND_BYTES = 16
"""Of a request and of what stands around the values of its answer, on a serial line."""


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


class Link:
    """See the module's text. `read` and `identify` open the connection when there is none; they raise

    NotConnected   the gateway cannot be reached
    NoAnswer       the gateway is there, the unit does not answer (BadAnswer: or not with an answer to this)
    Exceptional    the unit answered with an exception
    """

    def __init__(
        self,
        address: Address,
        timing: Timing | None = None,
        tls: ConfigTls | None = None,
        *,
        ignore_id: bool = False,
    ) -> None:
        self.address = address
        self.timing = timing or Timing()
        self.requests = 0
        self.late_answers = 0
        """Answers to earlier questions, thrown away."""
        self.connections = 0
        self._tls = tls or ConfigTls()
        self._ignore_id = ignore_id
        self._unproven = address.rtu or ignore_id
        """Nothing in an answer tells which request it answers."""
        self._ids: deque[int] = deque(maxlen=IDS_REMEMBERED)
        self._gate: Gate | None = None
        self._answered = False
        """This connection has answered something."""
        self._silences = 0
        self._doubtful = False
        """What comes next on this connection may not be the answer to what is asked next."""
        self._guarded = False
        """The next answer is taken only if no other one follows."""
        self._pause_until_s = 0.0

    # Opening and closing ------------------------------------------------------------------------------------------------------

    async def open(self) -> Gate:
        """Connect, where there is no connection that can be trusted. Raises NotConnected, ConfigError."""
        if self._gate is not None and not self._doubtful and not self._gate.closed:
            return self._gate
        doubtful, self._doubtful = self._doubtful, False
        self.close()
        gate = Gate(self.address, self._ids, ignore_id=self._ignore_id)
        if self.address.scheme == "rtu":
            self._open_serial(gate)
        else:
            await self._open_socket(gate)
        self._gate = gate
        self.connections += 1
        self._answered, self._silences = False, 0
        if self.timing.connect_pause_s:
            await asyncio.sleep(self.timing.connect_pause_s)
        if self._unproven and doubtful:
            self.late_answers += bool(await gate.quiet(self._quiet_s, self.timing.timeout_s))
            self._guarded = True
        return gate

    @property
    def _quiet_s(self) -> float:
        return min(self.timing.timeout_s, QUIET_S_MAX)

    def close(self) -> None:
        """Let go of the connection."""
        if self._gate is not None:
            self._gate.close()
        self._gate = None

    def _open_serial(self, gate: Gate) -> None:
        try:
            gate.connection_made(Port(self.address, gate))
        except RuntimeError:  # pymodbus without pyserial
            raise ConfigError(
                "rtu:// needs pyserial, which is not installed",
                key="url",
                remedy="Install it: pip install 'linewarden[modbus]'.",
            ) from None
        except (OSError, ValueError, termios.error) as error:  # serial.SerialException is an OSError
            raise NotConnected(
                f"{self.address.device} cannot be opened: {error}; check that it is plugged in, that no other program holds it, "
                "and that the agent's user is in the group dialout"
            ) from None

    async def _open_socket(self, gate: Gate) -> None:
        address = self.address
        loop = asyncio.get_running_loop()
        context = self._tls_context() if address.scheme == "tls" else None
        try:
            async with asyncio.timeout(self.timing.connect_timeout_s):
                await loop.create_connection(
                    lambda: gate,
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
        expected = count * 2 if READS[table] > 2 else (count + 7) // 8  # noqa: PLR2004 (3 and 4 are the registers)
        data = await self._ask(read_request(unit, table, address, count), timeout_s, expected)
        came = data[0]
        if came != len(data) - 1:
            self._doubtful = True
            raise BadAnswer(f"an answer that says {came} bytes and has {len(data) - 1}")
        if came > expected or (came < expected and self._unproven):
            # Where nothing tells a late answer apart, another length is a sign of one.
            self._doubtful = True
            raise BadAnswer(f"{expected} bytes asked for, {came} came")
        if came < expected:
            raise ShortAnswer(f"{expected} bytes asked for, {came} came")
        return data[1:]

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
            data = await self._ask(identity_request(unit, following), None, ADU_BYTES_MAX)
            more, following, came = _identification(data)
            objects |= came
            if not more or len(objects) >= OBJECTS_MAX:
                break
        return objects

    async def _ask(self, request: ModbusPDU, timeout_s: float | None, answer_bytes: int) -> bytes:
        """The answer's bytes after its function code. A connection that had grown old is made anew once."""
        gate = await self.open()
        timeout_s = (timeout_s or self.timing.timeout_s) + (answer_bytes + _AROUND_BYTES) * self.address.byte_s
        fresh = not self._answered
        try:
            return await self._once(gate, request, timeout_s)
        except HungUp:
            self.close()
            if fresh:
                raise NoAnswer("it hung up instead of answering") from None
        gate = await self.open()
        try:
            return await self._once(gate, request, timeout_s)
        except HungUp:
            self.close()
            raise NoAnswer("it hung up instead of answering, twice") from None

    async def _once(self, gate: Gate, request: ModbusPDU, timeout_s: float) -> bytes:
        loop = asyncio.get_running_loop()
        if (pause_s := self._pause_until_s - loop.time()) > 0:
            await asyncio.sleep(pause_s)
        self.requests += 1
        settled = False
        try:
            try:
                async with asyncio.timeout(timeout_s):
                    data = await gate.ask(request)
            except Exceptional:
                # As good an answer as any, and as doubtful.
                await self._alone(gate)
                settled = True
                raise
            await self._alone(gate)
            settled = True
        except TimeoutError:
            self._silences += 1
            raise _silence(timeout_s, gate.stranger) from None
        except BadAnswer:
            self._doubtful = True
            raise
        finally:
            if settled:
                self._answered, self._silences = True, 0
            # Also when cancelled: the answer may still come, and would be taken for that of the next question.
            elif self._unproven or self._silences >= SILENCES_MAX:
                self._doubtful = True
            self.late_answers += gate.late_answers
            gate.late_answers = 0
            self._pause_until_s = loop.time() + max(self.timing.request_pause_s, self.address.silence_s)
        return data

    async def _alone(self, gate: Gate) -> None:
        """The first answer after a doubt is taken only if no second one follows: two would mean that the first is an old one."""
        if not self._guarded:
            return
        if await gate.quiet(self._quiet_s, self._quiet_s):
            self.late_answers += 1
            raise BadAnswer("two answers to one question")
        self._guarded = False


def _silence(timeout_s: float, stranger: str) -> NoAnswer:
    text = f"no answer within {timeout_s:g} s{stranger}"
    return BadAnswer(text) if stranger else NoAnswer(text)


def _identification(data: bytes) -> tuple[bool, int, dict[int, str]]:
    """Whether more follows, from which object on, and the objects of one answer."""
    if len(data) < 6 or data[0] != IDENTIFY_KIND:  # noqa: PLR2004 (the fixed part)
        raise BadAnswer("not an identification")
    more, following, count = data[3] == 0xFF, data[4], data[5]  # noqa: PLR2004 (0xFF: more follows)
    objects: dict[int, str] = {}
    at = 6
    for _ in range(count):
        if at + 2 > len(data) or at + 2 + data[at + 1] > len(data):
            raise BadAnswer("an identification that is cut off")
        text = data[at + 2 : at + 2 + data[at + 1]].decode("utf-8", "backslashreplace")
        objects[data[at]] = text.replace("\0", "").strip()
        at += 2 + data[at + 1]
    return more, following, objects
