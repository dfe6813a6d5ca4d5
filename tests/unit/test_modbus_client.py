"""The fence around pymodbus's client: what may leave, what may enter, and what pymodbus does without it."""

import asyncio
import contextlib
import inspect
import os
import ssl
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pymodbus.client import AsyncModbusTcpClient
from pymodbus.client.mixin import ModbusClientMixin
from pymodbus.exceptions import ModbusIOException
from pymodbus.framer import FramerRTU, FramerType
from pymodbus.pdu import DecodePDU

from agent.component import NotConnected
from agent.sources.modbus_address import parse_url
from agent.sources.modbus_client import Gate, NotARead, crc16, read_request
from agent.sources.modbus_link import BadAnswer, ConfigTls, Exceptional, Link, NoAnswer, ShortAnswer, Timing
from tests.integration.test_modbus_counterparts import certificate

READING = ("read_coils", "read_discrete_inputs", "read_holding_registers", "read_input_registers")
OTHERS = sorted(
    name
    for name, member in inspect.getmembers(ModbusClientMixin, inspect.isfunction)
    if not name.startswith(("_", "convert_")) and name not in (*READING, "execute", "read_device_information")
)
Answer = Callable[[bytes], Iterable[bytes]]


class Peer:
    """Listens on a port, keeps every byte that comes, and answers each request with the pieces that `answer` makes of it."""

    def __init__(self, answer: Answer, *, context: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self.came = bytearray()
        self.connections = 0
        self.port = 0
        self._context = context
        self._writers: list[asyncio.StreamWriter] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while frame := await reader.read(300):
                self.came += frame
                for piece in self.answer(frame):
                    if not piece:
                        writer.close()
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.001)  # a segment of its own
        writer.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Peer"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in self._writers:
                writer.close()
            await asyncio.sleep(0)

    def link(
        self, scheme: str = "tcp", *, timeout_s: float = 0.3, ignore_id: bool = False, tls: ConfigTls | None = None
    ) -> Link:
        address = parse_url(f"{scheme}://127.0.0.1:{self.port}")
        return Link(address, Timing(timeout_s=timeout_s), tls, ignore_id=ignore_id)


def right(frame: bytes, value: int = 7) -> bytes:
    """The answer to a read of registers or bits: all of them `value`."""
    function, count = frame[7], int.from_bytes(frame[10:12], "big")
    payload = struct.pack(">H", value) * count if function > 2 else bytes((count + 7) // 8)
    return frame[:4] + struct.pack(">HBBB", len(payload) + 3, frame[6], function, len(payload)) + payload


def right_rtu(frame: bytes, value: int = 7) -> bytes:
    body = frame[:2] + bytes((2 * frame[5],)) + struct.pack(">H", value) * frame[5]
    return body + crc16(body)


def with_id(frame: bytes, number: int) -> bytes:
    return struct.pack(">H", number & 0xFFFF) + frame[2:]


def id_of(frame: bytes) -> int:
    return int.from_bytes(frame[:2], "big")


def framed(body: bytes, frame: bytes) -> list[bytes]:
    return [frame[:4] + struct.pack(">HB", len(body) + 1, frame[6]) + body]


# What may leave -------------------------------------------------------------------------------------------------------------------


async def gate_to(peer: Peer, scheme: str) -> Gate:
    gate = Gate(parse_url(f"{scheme}://127.0.0.1:{peer.port}"), deque(maxlen=8))
    await asyncio.get_running_loop().create_connection(lambda: gate, "127.0.0.1", peer.port)
    return gate


@pytest.mark.parametrize("scheme", ["tcp", "rtu+tcp"])
async def test_no_request_but_a_read_leaves_whatever_method_of_the_client_is_called(scheme: str) -> None:
    filled: dict[str, Any] = {"values": [1], "registers": [1], "records": [], "value": True, "data": b"\0"}
    assert len(OTHERS) > 20
    assert {"write_coil", "write_registers", "mask_write_register", "readwrite_registers"} < set(OTHERS)
    async with Peer(lambda _: ()).running() as peer:
        gate = await gate_to(peer, scheme)
        for name in OTHERS:
            method = getattr(gate._client, name)
            required = [
                each.name
                for each in inspect.signature(method).parameters.values()
                if each.default is inspect.Parameter.empty
            ]
            with pytest.raises(NotARead, match="never writes to a machine"):
                await method(**{each: filled.get(each, 1) for each in required if each != "kwargs"})
        await asyncio.sleep(0.02)
        assert peer.came == b""
        gate.close()


@pytest.mark.parametrize(
    "frame",
    [
        "000100000006010500001234",  # write one coil
        "0001000000060106000a04d2",  # write one register
        "00010000000901100000000102ffff",  # write registers
        "00010000000d01170000000100000001020001",  # read and write
        "00010000000801160000ffff0001",  # mask
        "0001000000050" + "12b0d0000",  # 43/13, which may write
        "000100000006010300000001" + "000200000006010500001234",  # a write behind a read
        "0001000000020103",  # cut off
        "000100000002010300000001",  # a length that hides four bytes
        "",
    ],
)  # fmt: skip
async def test_bytes_that_are_not_one_read_request_do_not_reach_the_transport(frame: str) -> None:
    async with Peer(lambda _: ()).running() as peer:
        gate = await gate_to(peer, "tcp")
        ctx: Any = gate._client.ctx
        for send in (ctx.send, ctx.transport.write, lambda data: ctx.transport.writelines([data])):
            with pytest.raises(NotARead):
                send(bytes.fromhex(frame))
        with pytest.raises(AttributeError):
            ctx.transport.sendto(bytes.fromhex(frame))
        await asyncio.sleep(0.01)
        assert peer.came == b""
        gate.close()


# What may enter -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (lambda _: 0, "the gateway answers with id 0"),
        (lambda sent: sent + 1, "the gateway counts the id up by one"),
        (lambda sent: sent << 8 | sent >> 8, "the gateway swaps the two bytes of the id"),
        (lambda sent: sent ^ 0x5555, "the gateway answers with an id that was not sent"),
    ],
    ids=["zero", "one more", "swapped", "other"],
)
async def test_an_answer_with_another_transaction_id_is_no_value_unless_ids_are_ignored(
    number: Callable[[int], int], says: str
) -> None:
    """kellerza/sunsynk#680, pymodbus#2709."""
    async with Peer(lambda frame: [with_id(right(frame), number(id_of(frame)))]).running() as peer:
        link = peer.link(timeout_s=5)
        begun = time.monotonic()
        for _ in range(2):
            with pytest.raises(BadAnswer) as caught:
                await link.read(1, "holding", 0, 2)
            sent = id_of(bytes(peer.came[-12:]))
            came = number(sent) & 0xFFFF
            assert f"transaction id {sent} (0x{sent:04x}) was sent, {came} (0x{came:04x}) came back: {says}" in str(
                caught.value
            )
            assert 'transaction_id = "ignore"' in str(caught.value)
        assert time.monotonic() - begun < 4, "it is known at once, and not after a time-out"
        link.close()
        link = peer.link(ignore_id=True)
        for _ in range(3):
            assert await link.read(1, "holding", 0, 2) == b"\0\7\0\7"
        link.close()
        assert peer.connections == 3


async def test_where_ids_are_ignored_a_late_answer_is_not_taken_for_the_next_one() -> None:
    """pymodbus#538 on TCP: the first answer comes after its time-out, on a gateway that keeps it for the next connection."""
    kept: list[bytes] = []

    def answer(frame: bytes) -> list[bytes]:
        if frame[9] == 100:
            kept.append(with_id(right(frame, 11), 0))
            return []
        late, kept[:] = b"".join(kept), []
        return [late + with_id(right(frame, 22), 0)]

    async with Peer(answer).running() as peer:
        link = peer.link(ignore_id=True, timeout_s=0.1)
        with pytest.raises(NoAnswer):
            await link.read(1, "holding", 100, 1)
        with pytest.raises(BadAnswer, match="two answers"):
            await link.read(1, "holding", 200, 1)
        assert await link.read(1, "holding", 200, 1) == b"\0\x16"
        assert peer.connections == 3
        link.close()


async def test_where_ids_are_ignored_an_answer_that_nobody_asked_for_is_not_taken() -> None:
    async with Peer(lambda frame: [with_id(right(frame), 0)] * 2).running() as peer:
        link = peer.link(ignore_id=True, timeout_s=0.1)
        assert await link.read(1, "holding", 0, 1) == b"\0\7"
        gate = await link.open()
        while not gate._inbox:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        with pytest.raises(BadAnswer, match="nobody had asked for"):
            await link.read(1, "holding", 1, 1)
        link.close()


async def test_a_late_answer_of_a_gateway_that_counts_the_id_up_does_not_fit_the_next_request() -> None:
    held: list[bytes] = []

    def answer(frame: bytes) -> list[bytes]:
        if not held:
            held.append(with_id(right(frame, 11), id_of(frame) + 1))
            return []
        return [held[0], right(frame, 22)]

    async with Peer(answer).running() as peer:
        link = peer.link(timeout_s=0.05)
        with pytest.raises(NoAnswer):
            await link.read(1, "holding", 100, 1)
        with pytest.raises(BadAnswer, match="came back"):
            await link.read(1, "holding", 200, 1)
        link.close()


async def test_a_late_answer_is_named_where_the_right_one_never_comes() -> None:
    first: list[bytes] = []

    def answer(frame: bytes) -> list[bytes]:
        first.append(frame)
        return [right(first[0])] if len(first) > 1 else []

    async with Peer(answer).running() as peer:
        link = peer.link(timeout_s=0.05)
        with pytest.raises(NoAnswer, match=r"^no answer within 0.05 s$"):
            await link.read(1, "holding", 0, 1)
        with pytest.raises(BadAnswer, match=r"no answer within 0.05 s; transaction id 1 came, an earlier one"):
            await link.read(1, "holding", 0, 1)
        assert link.late_answers == 1
        link.close()


SCATTERED: dict[str, Callable[[bytes, bytes], list[bytes]]] = {
    "byte by byte": lambda _, whole: [bytes((byte,)) for byte in whole],
    "twice in one segment": lambda _, whole: [whole * 2],
    "after long late ones in one segment": lambda late, whole: [late * 3 + whole],
    "after a late one in two pieces": lambda late, whole: [late[:50], late[50:] + whole[:5], whole[5:]],
    "before a late one in two pieces": lambda late, whole: [whole + late[:50], late[50:]],
}


@pytest.mark.parametrize("how", SCATTERED)
async def test_the_right_answer_is_found_however_it_is_scattered_over_segments(how: str) -> None:
    count = 3 if how == "byte by byte" else 120
    late: list[bytes] = []

    def answer(frame: bytes) -> list[bytes]:
        if not late:
            late.append(right(frame, 9))
            return []
        return SCATTERED[how](late[0], right(frame))

    async with Peer(answer).running() as peer:
        link = peer.link(timeout_s=5)
        with pytest.raises(NoAnswer):
            await link.read(1, "holding", 0, count, 0.02)
        for _ in range(3):
            assert await link.read(1, "holding", 0, count) == b"\0\7" * count
        assert peer.connections == 1
        link.close()


@pytest.mark.parametrize("count", [1, 125])
async def test_an_rtu_answer_that_comes_byte_by_byte_is_read(count: int) -> None:
    def answer(frame: bytes) -> list[bytes]:
        whole = right_rtu(frame)
        return [*(whole[at : at + 1] for at in range(9)), whole[9:]] if len(whole) > 9 else [whole[:3], whole[3:]]

    async with Peer(answer).running() as peer:
        link = peer.link("rtu+tcp", timeout_s=2)
        assert await link.read(1, "holding", 0, count) == b"\0\7" * count
        link.close()


async def test_an_answer_that_was_cut_off_is_not_filled_up_with_bytes_of_the_next() -> None:
    late: list[bytes] = []

    def answer(frame: bytes) -> list[bytes]:
        late.append(right(frame, 9))
        return [right(frame)[:15] + late[0]] if len(late) > 1 else []

    async with Peer(answer).running() as peer:
        link = peer.link(timeout_s=0.05)
        with pytest.raises(NoAnswer):
            await link.read(1, "holding", 0, 10)
        with pytest.raises(BadAnswer, match="the answer may not be one"):
            await link.read(1, "holding", 0, 10)
        link.close()


@pytest.mark.parametrize("scheme", ["tcp", "rtu+tcp"])
async def test_where_nothing_tells_answers_apart_two_in_one_segment_are_none(scheme: str) -> None:
    async with Peer(lambda frame: [(right(frame) if scheme == "tcp" else right_rtu(frame)) * 2]).running() as peer:
        link = peer.link(scheme, ignore_id=scheme == "tcp")
        with pytest.raises(BadAnswer, match="two answers to one question"):
            await link.read(1, "holding", 0, 1)
        link.close()


@pytest.mark.parametrize("unit", [0, 1, 247, 255])
async def test_every_unit_id_of_modbus_tcp_is_read_and_its_answer_has_to_carry_it(unit: int) -> None:
    async with Peer(lambda frame: [right(frame)]).running() as peer:
        link = peer.link()
        assert await link.read(unit, "input", 5, 1) == b"\0\7"
        peer.answer = lambda frame: [right(frame[:6] + bytes((frame[6] ^ 1,)) + frame[7:])]
        with pytest.raises(BadAnswer, match=f"unit {unit} was asked, unit {unit ^ 1} answered"):
            await link.read(unit, "input", 5, 1)
        link.close()


async def test_no_values_at_all_are_an_answer_that_is_too_short_and_the_connection_goes_on() -> None:
    """Jsmodbus answers function 1 beyond its coils with a count of zero."""
    empty = lambda frame: [frame[:4] + struct.pack(">HBBB", 3, frame[6], frame[7], 0)]  # noqa: E731
    async with Peer(empty).running() as peer:
        link = peer.link()
        with pytest.raises(ShortAnswer, match="250 bytes asked for, 0 came"):
            await link.read(1, "coil", 0, 2_000)
        peer.answer = lambda frame: [right(frame)]
        assert await link.read(1, "holding", 0, 1) == b"\0\7"
        assert peer.connections == 1
        link.close()


async def test_a_function_that_was_not_asked_for_is_a_bad_answer_and_no_traceback() -> None:
    """Without the fence it raises out of data_received at a function that it does not know, and asyncio logs that with a traceback."""
    loose: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: loose.append(context))
    bodies = [b"\x63\2\0\0", b"\x83", b"\x83\2\2", b"\x84\2", b"\x2b\x0e\1", b"\x03"]
    async with Peer(lambda _: ()).running() as peer:
        for body in bodies:
            peer.answer = partial(framed, body)
            link = peer.link()
            with pytest.raises(BadAnswer):
                await link.read(1, "holding", 0, 1)
            link.close()
        peer.answer = lambda frame: [frame[:4] + struct.pack(">HBBB", 3, frame[6], 0x83, 2)]
        link = peer.link()
        with pytest.raises(Exceptional, match=r"exception 2 \(illegal data address\)"):
            await link.read(1, "holding", 0, 1)
        link.close()
    await asyncio.sleep(0.01)
    assert loose == []


async def test_a_connection_that_ends_ends_its_request_at_once_and_is_made_anew() -> None:
    async with Peer(lambda _: [b""]).running() as peer:
        link = peer.link(timeout_s=30)
        begun = time.monotonic()
        with pytest.raises(NoAnswer, match="hung up"):
            await link.read(1, "holding", 0, 1)
        assert time.monotonic() - begun < 5
        peer.answer = lambda frame: [right(frame), b""]
        for _ in range(4):
            assert await link.read(1, "holding", 0, 1) == b"\0\7", "a gateway that closes after each request is read"
        assert peer.connections == 5
        link.close()


async def test_a_peer_that_floods_is_cut_off() -> None:
    async with Peer(lambda frame: [frame[:4] + b"\0\xfd" + bytes(8_000)] * 20).running() as peer:
        link = peer.link(timeout_s=0.5)
        with pytest.raises(NoAnswer):
            await link.read(1, "holding", 0, 1)
        assert link._gate is None or len(link._gate._inbox) <= 65_536
        link.close()


# TLS and serial -------------------------------------------------------------------------------------------------------------------


async def test_tls_answers_may_come_in_pieces_and_a_refusal_says_its_reason(tmp_path: Path) -> None:
    """The TLS framing of pymodbus takes whatever comes first for a whole answer."""
    own, other = certificate(tmp_path / "own"), certificate(tmp_path / "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*own)
    async with Peer(lambda frame: [right(frame)[:9], right(frame)[9:]], context=context).running() as peer:
        link = peer.link("tls", tls=ConfigTls(ca_file=str(own[0])))
        assert await link.read(1, "holding", 0, 10) == b"\0\7" * 10
        link.close()
        for tls, says in (
            (ConfigTls(ca_file=str(other[0])), r"certificate is not trusted \(self-signed certificate\)"),
            (
                ConfigTls(ca_file=str(own[0]), server_name="elsewhere"),
                r"certificate is not trusted \(Hostname mismatch",
            ),
        ):
            with pytest.raises(NotConnected, match=says):
                await peer.link("tls", tls=tls).read(1, "holding", 0, 1)
        with pytest.raises(NoAnswer, match="hung up"):
            await peer.link("tcp").read(1, "holding", 0, 1)
    async with Peer(lambda _: [b"HTTP/1.1 400 Bad Request\r\n\r\n"]).running() as plain:
        with pytest.raises(NotConnected, match="no secure connection"):
            await plain.link("tls", tls=ConfigTls(ca_file=str(own[0]))).read(1, "holding", 0, 1)


async def test_a_serial_port_has_one_owner_and_its_loss_is_no_answer() -> None:
    controller, terminal = os.openpty()
    device = os.ttyname(terminal)
    link = Link(parse_url(f"rtu://{device}"), Timing(timeout_s=0.2))
    try:
        gate = await link.open()
        with pytest.raises(NotConnected, match="no other program holds it"):
            await Link(parse_url(f"rtu://{device}")).open()
        asked = asyncio.create_task(link.read(1, "holding", 0, 1))
        async with asyncio.timeout(5):
            while not gate._asked:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.005)
        frame = os.read(controller, 100)
        assert frame == bytes.fromhex("010300000001840a")
        os.write(controller, right_rtu(frame))
        assert await asked == b"\0\7"
        os.close(controller)
        with pytest.raises((NoAnswer, NotConnected)):
            await link.read(1, "holding", 0, 1)
    finally:
        link.close()
        os.close(terminal)


# What pymodbus does without the fence, so that it is noticed where another release does otherwise ------------------------------------


async def bare(peer: Peer, framer: FramerType = FramerType.SOCKET) -> AsyncModbusTcpClient:
    client = AsyncModbusTcpClient("127.0.0.1", port=peer.port, framer=framer, timeout=0.1, retries=0, reconnect_delay=0)
    await client.connect()
    return client


async def test_bare_pymodbus_takes_id_zero_for_the_answer_to_anything() -> None:
    async with Peer(lambda frame: [with_id(right(frame, 11), 0)]).running() as peer:
        client = await bare(peer)
        assert (await client.read_holding_registers(0, count=1)).registers == [11]
        client.close()


async def test_bare_pymodbus_drops_a_right_answer_behind_late_ones() -> None:
    async with Peer(lambda frame: [with_id(right(frame), 9) * 2 + right(frame)]).running() as peer:
        client = await bare(peer)
        with pytest.raises(ModbusIOException):
            await client.read_holding_registers(0, count=60)
        client.close()


async def test_bare_pymodbus_looks_for_an_rtu_frame_in_whatever_comes() -> None:
    body = bytes.fromhex("6003020007")
    used, unit, _, pdu = FramerRTU(DecodePDU(False)).decode(b"\x55" + body + crc16(body))
    assert (used, unit, pdu) == (8, 0x60, body[1:])


async def test_bare_pymodbus_writes() -> None:
    async with Peer(lambda frame: [frame]).running() as peer:
        client = await bare(peer)
        await client.write_register(10, 1234)
        assert peer.came.hex() == "0001000000060106000a04d2"
        client.close()


async def test_the_client_counts_no_second_clock_and_numbers_on_over_connections() -> None:
    async with Peer(lambda frame: [right(frame)]).running() as peer:
        link = peer.link()
        gate = await link.open()
        assert gate._client.ctx.retries == 0
        assert not gate._client.ctx.comm_params.reconnect_delay
        assert vars(gate._client.ctx.comm_params)["timeout_connect"] is None
        await gate.ask(read_request(1, "holding", 0, 1))
        first = id_of(bytes(peer.came[-12:]))
        link.close()
        await link.read(1, "holding", 0, 1)
        assert id_of(bytes(peer.came[-12:])) > first
        link.close()
