"""pymodbus's client within a fence: only read requests leave, and only the exact answer to the pending request enters.

    Link ──► client ──trace_pdu──► framer ──► Outlet.write ──► transport     functions 1, 2, 3, 4, 43/14; anything else raises NotARead
    Link ◄── client ◄── one whole frame ◄── Gate.data_received ◄── transport    unit, function, id or checksum, and length are right

pymodbus builds the requests, numbers them, checks checksums, matches and decodes answers. One client belongs to one connection, and one
connection to one gateway; it retries nothing and reconnects nothing. The fence answers for what 3.16 does otherwise (each is a test of
tests/unit/test_modbus_client.py, so that another release that changes it is noticed):

    it can write                                            the Outlet is the only transport that it has
    transaction id 0 answers every request                  another id than the one sent is a BadAnswer (or is ignored on request)
    on RTU it looks for a frame in whatever comes           the first byte is the unit that was asked, or it is a BadAnswer
    more than 264 bytes at once are dropped, the answer too the Gate keeps what comes, and passes one frame at a time
    what it cannot decode ends its connection by traceback  only answers of the five functions are passed on
    a lost connection leaves the request to its timeout     the request ends at once

All that is used of pymodbus beyond its documented API is here: `client.ctx` as an asyncio protocol, its `response_future`, `next_tid` and
`comm_params`, and its serial transport.
"""

import asyncio
import contextlib
import logging
import struct
import termios
from collections import deque
from typing import Any, Final, NamedTuple

from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ConnectionException, ModbusException
from pymodbus.framer import FramerRTU, FramerType
from pymodbus.pdu import ExceptionResponse, ModbusPDU
from pymodbus.pdu.bit_message import ReadCoilsRequest, ReadDiscreteInputsRequest
from pymodbus.pdu.mei_message import ReadDeviceInformationRequest, ReadDeviceInformationResponse
from pymodbus.pdu.register_message import ReadHoldingRegistersRequest, ReadInputRegistersRequest
from pymodbus.transport.serialtransport import SerialTransport

from agent.sources.modbus_address import Address

logging.getLogger("pymodbus").setLevel(logging.CRITICAL + 1)
"""It logs the bytes of every failure; what failed reaches us as an exception and is reported with our names and remedies."""

READS: Final[dict[str, int]] = {"coil": 1, "discrete": 2, "holding": 3, "input": 4}
IDENTIFY: Final = 43
IDENTIFY_KIND: Final = 14
"""Sub-function of 43: read device identification. Its other one, 13, can write."""

ADU_BYTES_MAX: Final = 260
LENGTH_MIN, LENGTH_MAX = 3, ADU_BYTES_MAX - 6
"""What the length field of Modbus TCP may say: unit, function and at least one byte more."""
INBOX_BYTES_MAX: Final = 65_536
"""Of unread answers; a peer that sends more than this is cut off."""
STALE_ANSWERS_MAX: Final = 16
"""Late answers skipped while one is awaited; more of them are garbage."""
IDS_REMEMBERED: Final = 64
"""Transaction ids that were sent last: an answer with one of these is late, one with any other is wrong."""
IDS_SKIPPED: Final = 16
"""After a request without its answer: the late answer of a gateway that counts the id up must not fit the next request."""

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

_MBAP = struct.Struct(">HHHB")
_LENGTH = struct.Struct(">HH")
"""Protocol and length, from the third byte of a frame on."""
_READ_BYTES, _IDENTIFY_BYTES = 5, 4
"""Of a request from its function code on."""
_EXCEPTION_BYTES = 9
"""Of an exception as a frame of Modbus TCP."""
_ERROR: Final = 0x80
"""Added to the function code of a request that is answered with an exception."""


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


class HungUp(Exception):
    """The connection ended while an answer was awaited."""


class NotARead(RuntimeError):
    """Code of ours tried to send something that is not a read request. Nothing was sent."""


# What may leave -------------------------------------------------------------------------------------------------------------------


def read_request(unit: int, table: str, address: int, count: int) -> ModbusPDU:
    """The request for `count` values of a table."""
    return _REQUESTS[READS[table]](address=address, count=count, dev_id=unit)


def identity_request(unit: int, first: int) -> ModbusPDU:
    """The request for the basic and regular identification, from object `first` on."""
    return ReadDeviceInformationRequest(read_code=2, object_id=first, dev_id=unit)


_REQUESTS: Final[dict[int, type[ModbusPDU]]] = {
    1: ReadCoilsRequest,
    2: ReadDiscreteInputsRequest,
    3: ReadHoldingRegistersRequest,
    4: ReadInputRegistersRequest,
}


def _only_reads(sending: bool, pdu: ModbusPDU) -> ModbusPDU:  # noqa: FBT001 (pymodbus calls it by place)
    """Raise NotARead for every request but the five."""
    kind = pdu.function_code, pdu.sub_function_code
    if sending and kind[0] not in _REQUESTS and kind != (IDENTIFY, IDENTIFY_KIND):
        raise NotARead(f"function {kind[0]} is not a read; Linewarden never writes to a machine")
    return pdu


def _check_bytes(frame: bytes, *, rtu: bool) -> None:
    """Raise NotARead unless the frame is one whole request of the five, and nothing else."""
    at, end = (1, len(frame) - 2) if rtu else (7, len(frame))
    function = frame[at] if at < end else 0
    wanted = _READ_BYTES if function in _REQUESTS else _IDENTIFY_BYTES
    right = (
        end - at == wanted
        and (function in _REQUESTS or (function == IDENTIFY and frame[at + 1] == IDENTIFY_KIND))
        and (rtu or frame[2:6] == struct.pack(">HH", 0, end - 6))
    )
    if not right:
        raise NotARead(f"function {function} in {len(frame)} bytes is not a read; Linewarden never writes to a machine")


class Outlet(asyncio.Transport):
    """The transport that pymodbus is given: it takes read requests, and raises NotARead for every other byte."""

    def __init__(self, transport: asyncio.WriteTransport, gate: "Gate") -> None:
        super().__init__()
        self._transport = transport
        self._gate = gate

    def write(self, data: Any) -> None:
        """Send a read request, and make it the one that is answered next."""
        _check_bytes(data, rtu=self._gate.rtu)
        self._gate.asked(data)
        self._transport.write(data)

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def abort(self) -> None:
        """Close the connection without sending what is left."""
        self._transport.abort()

    def is_closing(self) -> bool:
        """Whether it is being closed."""
        return self._transport.is_closing()


class Port(SerialTransport):
    """A serial port, held exclusively."""

    def __init__(self, address: Address, gate: "Gate") -> None:
        super().__init__(
            asyncio.get_running_loop(),
            gate,
            address.device,
            address.baudrate,
            address.bytesize,
            address.parity,
            address.stopbits,
            0,
        )
        self.setup()

    def close(self, exc: Exception | None = None) -> None:
        """Close the port. What it could not send is of no use any more; the kernel would wait for it."""
        if self.sync_serial is not None:
            with contextlib.suppress(OSError, termios.error):
                self.sync_serial.reset_output_buffer()
        super().close(exc)


# What may enter -------------------------------------------------------------------------------------------------------------------


class _Answer(ModbusPDU):
    """An answer's bytes after its function code, as they came: what they mean is known where the point is known."""

    rtu_byte_count_pos = 2
    data = b""

    def decode(self, data: bytes) -> None:
        """Keep the bytes."""
        self.data = data


class _Coils(_Answer):
    function_code = 1


class _Discretes(_Answer):
    function_code = 2


class _Holdings(_Answer):
    function_code = 3


class _Inputs(_Answer):
    function_code = 4


class _Identification(_Answer):
    function_code = IDENTIFY

    @classmethod
    def calculateRtuFrameSize(cls, data: bytes) -> int:  # noqa: N802 (pymodbus's name)
        """How long the frame is that begins like this; more than a frame where that cannot be known yet."""
        return ReadDeviceInformationResponse.calculateRtuFrameSize(data)


_ANSWERS: Final[dict[int, type[_Answer]]] = {
    each.function_code: each for each in (_Coils, _Discretes, _Holdings, _Inputs, _Identification)
}


class _Asked(NamedTuple):
    """The request that is to be answered."""

    transaction: int
    unit: int
    function: int
    frame: bytes


def crc16(frame: bytes) -> bytes:
    """The checksum at the end of an RTU frame."""
    return FramerRTU.compute_CRC(frame).to_bytes(2, "big")


class Gate(asyncio.Protocol):
    """One connection: what arrives is judged here, and pymodbus's client sees nothing but answers.

    `ids_known` holds the ids sent last, over all connections of a link. With `ignore_id` an answer of Modbus TCP may carry any id, and is
    as unproven as one of RTU.
    """

    def __init__(self, address: Address, ids_known: deque[int], *, ignore_id: bool = False) -> None:
        self.rtu = address.rtu
        self.closed = False
        self.late_answers = 0
        """Answers to earlier requests, thrown away."""
        self._ignore_id = ignore_id
        self._ids = ids_known
        self._echo = address.echo
        self._echo_due = False
        self._inbox = bytearray()
        self._asked: _Asked | None = None
        self._strangers: list[int] = []
        """Ids that were skipped while this request waits."""
        self._stirred: asyncio.Future[None] | None = None
        self._client = AsyncModbusTcpClient(
            address.host or address.device,
            framer=FramerType.RTU if address.rtu else FramerType.SOCKET,
            port=address.port,
            retries=0,
            reconnect_delay=0,
            trace_pdu=_only_reads,
        )
        for answer in _ANSWERS.values():
            self._client.register(answer)
        # The link waits as long as this request is worth waiting for; no second clock.
        self._client.ctx.comm_params.timeout_connect = None  # type: ignore[assignment]

    # The connection ---------------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Give pymodbus its way out. Its ids go on where those of the last connection ended."""
        ctx = self._client.ctx
        if not (self._client.connected or self.closed):
            ctx.connection_made(Outlet(transport, self))  # type: ignore[arg-type]  # asyncio hands over what can write
            ctx.next_tid = self._ids[-1] + IDS_SKIPPED if self._ids else 0

    def connection_lost(self, exc: Exception | None) -> None:
        """End the pending request at once."""
        self.closed = True
        self._client.ctx.connection_lost(exc)
        self._end(HungUp())
        self._stir()

    def close(self) -> None:
        """Let go of the connection."""
        self.closed = True
        self._client.close()

    # Asking -----------------------------------------------------------------------------------------------------------------------

    async def ask(self, request: ModbusPDU) -> bytes:
        """The answer's bytes after its function code. Raises HungUp, BadAnswer, Exceptional; has no time limit of its own."""
        if self.closed:
            raise HungUp
        if self._inbox and (self.rtu or self._ignore_id):
            self.drop()
            self.late_answers += 1
            raise BadAnswer("something was said that nobody had asked for")
        answered = False
        try:
            answer = await self._client.execute(False, request)  # noqa: FBT003 (pymodbus's own)
            answered = True
        except ConnectionException:
            raise HungUp from None
        except ModbusException as error:  # the fence lets nothing in that it could find fault with
            raise BadAnswer(f"pymodbus does not take the answer: {error}") from None
        finally:
            self._asked = None
            if not answered:
                self._client.ctx.next_tid += IDS_SKIPPED
        if isinstance(answer, ExceptionResponse):
            raise Exceptional(answer.exception_code)
        return answer.data  # type: ignore[no-any-return]  # of the classes that are registered, and no other

    def asked(self, frame: bytes) -> None:
        """A request goes out: from now on its answer is awaited."""
        self._strangers.clear()
        if self.rtu:
            self._asked, self._echo_due = _Asked(0, frame[0], frame[1], frame), self._echo
        else:
            transaction, _, _, unit = _MBAP.unpack_from(frame)
            self._asked = _Asked(transaction, unit, frame[7], frame)
            self._ids.append(transaction)

    @property
    def stranger(self) -> str:
        """What came instead of the answer that is awaited, where something did."""
        if not self._strangers:
            return ""
        return f"; transaction id {self._strangers[-1]} came, an earlier one" + " again" * (len(self._strangers) > 1)

    # Listening --------------------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Keep what came; pass the answer on when it is whole."""
        self._inbox += data
        if len(self._inbox) > INBOX_BYTES_MAX:
            self._inbox.clear()
            self.closed = True
            transport = self._client.ctx.transport
            if isinstance(transport, Outlet):
                transport.abort()
        elif self._asked is not None:
            try:
                frame = self._rtu_answer(self._asked) if self.rtu else self._tcp_answer(self._asked)
            except BadAnswer as error:
                self._end(error)
            else:
                if frame is not None:
                    self._asked = None
                    self._client.ctx.data_received(frame)
        self._stir()

    def _tcp_answer(self, asked: _Asked) -> bytes | None:
        """The whole frame that answers; None as long as it is not there."""
        inbox = self._inbox
        while len(inbox) >= _MBAP.size:
            transaction, protocol, length, unit = _MBAP.unpack_from(inbox)
            if protocol != 0 or not LENGTH_MIN <= length <= LENGTH_MAX:
                raise BadAnswer("what came is not Modbus TCP; is it RTU over TCP (rtu+tcp://)?")
            if len(inbox) < length + 6:
                return None
            frame = bytes(inbox[: length + 6])
            del inbox[: length + 6]
            if transaction != asked.transaction and not self._ignore_id:
                self._skip(asked.transaction, transaction)
                continue
            if unit != asked.unit:
                raise BadAnswer(f"unit {asked.unit} was asked, unit {unit} answered; is {unit} its number?")
            function = frame[7]
            if function & ~_ERROR != asked.function or (function & _ERROR and len(frame) != _EXCEPTION_BYTES):
                raise BadAnswer(f"function {asked.function} asked for, {function} came")
            self._check_rest()
            return asked.frame[:2] + frame[2:]
        return None

    def _check_rest(self) -> None:
        """Raise BadAnswer where what follows the answer shows that it may be another one, or be filled up with bytes of another."""
        inbox = self._inbox
        if inbox and (self.rtu or self._ignore_id):
            self.late_answers += 1
            raise BadAnswer("two answers to one question")
        at = 0
        while len(inbox) >= at + 4:
            protocol, length = _LENGTH.unpack_from(inbox.ljust(at + 6, b"\4"), at + 2)
            if protocol != 0 or not (LENGTH_MIN <= length <= LENGTH_MAX or len(inbox) < at + 6):
                raise BadAnswer("what follows the answer is not Modbus TCP, so the answer may not be one")
            at += 6 + length

    def _skip(self, sent: int, came: int) -> None:
        """Skip a late answer, which has a recently sent id. Raise BadAnswer for any other id."""
        self.late_answers += 1
        self._strangers.append(came)
        if came not in self._ids:
            raise BadAnswer(_wrong_id(sent, came))
        if len(self._strangers) > STALE_ANSWERS_MAX:
            raise BadAnswer("nothing but answers to other questions")

    def _rtu_answer(self, asked: _Asked) -> bytes | None:
        inbox = self._inbox
        if self._echo_due:
            if len(inbox) < len(asked.frame):
                return None
            if inbox[: len(asked.frame)] != asked.frame:
                raise BadAnswer("the echo is not what was sent; is echo=1 right for this adapter?")
            del inbox[: len(asked.frame)]
            self._echo_due = False
        if len(inbox) < 2:  # noqa: PLR2004 (unit and function)
            return None
        unit, function = inbox[0], inbox[1]
        if unit != asked.unit or function & ~_ERROR != asked.function:
            raise BadAnswer(
                f"unit {asked.unit} function {asked.function} was asked, unit {unit} function {function} answered"
            )
        kind: type[ModbusPDU] = ExceptionResponse if function & _ERROR else _ANSWERS[function]
        size = kind.calculateRtuFrameSize(bytes(inbox))
        if min(size, len(inbox)) > ADU_BYTES_MAX:
            raise BadAnswer("an answer longer than a frame")
        if not size or len(inbox) < size:
            return None
        frame = bytes(inbox[:size])
        del inbox[:size]
        if crc16(frame[:-2]) != frame[-2:]:
            raise BadAnswer("the checksum is wrong")
        self._check_rest()
        return frame

    def _end(self, error: Exception) -> None:
        """The pending request, if any, ends like this."""
        self._asked = None
        future = self._client.ctx.response_future
        if not future.done():
            future.set_exception(error)
            future.exception()  # seen: whoever asked may be gone

    # Silence ----------------------------------------------------------------------------------------------------------------------

    def _stir(self) -> None:
        if self._stirred is not None and not self._stirred.done():
            self._stirred.set_result(None)

    def drop(self) -> int:
        """Forget what has arrived; how much it was."""
        dropped = len(self._inbox)
        self._inbox.clear()
        return dropped

    async def quiet(self, quiet_s: float, longest_s: float) -> int:
        """Wait until nothing has come for `quiet_s`, at most `longest_s`; how many bytes were dropped meanwhile."""
        dropped = self.drop()
        loop = asyncio.get_running_loop()
        end = loop.time() + longest_s
        while loop.time() < end and not self.closed:
            self._stirred = loop.create_future()
            try:
                async with asyncio.timeout(quiet_s):
                    await self._stirred
            except TimeoutError:
                return dropped
            dropped += self.drop()
        return dropped


def _wrong_id(sent: int, came: int) -> str:
    """What a gateway does to the transaction id, and what can be done about it."""
    if came == 0:
        what = "the gateway answers with id 0"
    elif came == (sent + 1) & 0xFFFF:
        what = "the gateway counts the id up by one"
    elif came == int.from_bytes(sent.to_bytes(2, "little"), "big"):
        what = "the gateway swaps the two bytes of the id"
    else:
        what = "the gateway answers with an id that was not sent"
    return (
        f"transaction id {sent} (0x{sent:04x}) was sent, {came} (0x{came:04x}) came back: {what}; "
        'where Linewarden is its only client, set transaction_id = "ignore"'
    )
