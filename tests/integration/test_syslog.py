"""The syslog receiver, with logger(1) and bare sockets as senders."""

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from agent.component import ConfigError, Cursor, NotConnected, Report
from agent.sources import syslog
from agent.sources.syslog import SyslogReceiverConfig, SyslogSource
from agent.wire.event import Event

needs_logger = pytest.mark.skipif(shutil.which("logger") is None, reason="needs logger(1)")


class Receiver:
    """A running source, its batches taken when asked for."""

    def __init__(self, cursor: Cursor | None = None, **options: Any) -> None:
        self.report = Report()
        config = SyslogReceiverConfig(**{"listen": ("udp://127.0.0.1:0", "tcp://127.0.0.1:0"), **options})
        self.source = SyslogSource("syslog", config, self.report)
        self.cursor = cursor
        self.batches = self.source.batches(cursor)
        self.events: list[Event] = []
        self._next: asyncio.Future[Any] | None = None

    async def start(self) -> None:
        self._next = asyncio.ensure_future(anext(self.batches))
        async with asyncio.timeout(5):
            while len(self.source.addresses) < len(self.source._config.listen):  # noqa: ASYNC110  # polled until it listens
                await asyncio.sleep(0.01)

    def port(self, scheme: str) -> int:
        return int(next(where[1] for name, where in self.source.addresses if name == scheme))

    async def until(self, n: int) -> list[Event]:
        async with asyncio.timeout(20):
            while len(self.events) < n:
                batch, cursor = await (self._next or anext(self.batches))
                self._next = None
                assert cursor is not None
                self.cursor = cursor
                self.events += batch
        return self.events

    async def close(self) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
        await self.batches.aclose()  # type: ignore[attr-defined]


@asynccontextmanager
async def receiving(cursor: Cursor | None = None, **options: Any) -> AsyncIterator[Receiver]:
    receiver = Receiver(cursor, **options)
    await receiver.start()
    try:
        yield receiver
    finally:
        await receiver.close()


async def send(port: int, *pieces: bytes, tls: ssl.SSLContext | None = None) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname="localhost" if tls else None)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.01)
    writer.close()
    await writer.wait_closed()


@needs_logger
@pytest.mark.parametrize(
    "options",
    [["--udp"], ["--udp", "--rfc3164"], ["--tcp"], ["--tcp", "--octet-count"], ["--tcp", "--rfc3164", "--octet-count"]],
)
async def test_logger_is_understood(options: list[str]) -> None:
    async with receiving() as receiver:
        port = receiver.port("udp" if "--udp" in options else "tcp")
        command = [
            "logger",
            "--server",
            "127.0.0.1",
            "--port",
            str(port),
            "--tag",
            "sshd",
            "--priority",
            "auth.info",
            *options,
        ]
        for n in (1, 2, 3):
            sent = await asyncio.create_subprocess_exec(
                *command, f"Failed password for root from 203.0.113.7 port {n} ssh2"
            )
            assert await sent.wait() == 0
        events = await receiver.until(3)
        assert [(e.type, e.src_ip, e.actor, e.data["port"]) for e in events] == [
            ("authentication.failure", "203.0.113.7", "root", n) for n in (1, 2, 3)
        ]
        assert events[0].data["facility"] == "auth"
        assert events[0].data["sender"] == "127.0.0.1"
        assert events[0].data["host"] not in ("", "127.0.0.1")


async def test_both_framings_cut_anywhere_and_mixed_give_the_same_messages() -> None:
    counted = b"".join(b"%d %s" % (len(text), text) for text in (b"<13>app: one\nline", b"<13>app: two"))
    stream = counted + b"<13>app: three\n\n<13>app: four\r\n<13>app: five\0" + b"12 <13>app: six"
    async with receiving() as receiver:
        for size in (1, 7, len(stream)):
            receiver.events.clear()
            await send(receiver.port("tcp"), *(stream[i : i + size] for i in range(0, len(stream), size)))
            events = await receiver.until(6)
            assert [e.raw for e in events] == [
                f"<13>app: {n}" for n in ("one\nline", "two", "three", "four", "five", "six")
            ]
            assert not any("cut" in e.data for e in events)


async def test_what_is_unfinished_or_too_long_is_taken_and_marked() -> None:
    async with receiving(message_bytes_max=480) as receiver:
        await send(receiver.port("tcp"), b"x" * 1_500 + b"\nnext\nunfin")
        events = await receiver.until(3)
        assert [(len(e.raw or ""), e.data.get("cut")) for e in events] == [(480, True), (4, None), (5, True)]
        await send(receiver.port("tcp"), b"1004 <13>" + b"y" * 1_000 + b"9 <13>after")
        events = await receiver.until(5)
        assert [(e.raw or "")[:5] for e in events[3:]] == ["<13>y", "<13>a"]


async def test_at_the_bound_datagrams_are_dropped_and_declared_with_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(syslog, "QUEUE_MESSAGES_MAX", 100)
    async with receiving() as receiver:
        await send(receiver.port("tcp"), b"first\n")
        await receiver.until(1)
        receiver.events.clear()
        # Nobody takes batches now: the consumer is busy with its commit.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for n in range(500):
                sender.sendto(b"<13>app: %d" % n, ("127.0.0.1", receiver.port("udp")))
        await asyncio.sleep(0.2)
        events = await receiver.until(101)
        assert [e.raw for e in events[:100]] == [f"<13>app: {n}" for n in range(100)]
        assert (events[100].type, events[100].data["events"]) == ("collection.gap", 400)


async def test_at_the_bound_a_tcp_sender_waits_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syslog, "QUEUE_MESSAGES_MAX", 100)
    async with receiving() as receiver:
        sending = asyncio.ensure_future(
            send(receiver.port("tcp"), b"".join(b"<13>app: %d\n" % n for n in range(50_000)))
        )
        await asyncio.sleep(0.1)
        events = await receiver.until(50_000)
        await sending
        assert [e.raw for e in events] == [f"<13>app: {n}" for n in range(50_000)]


async def test_what_the_kernel_dropped_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syslog, "RECEIVE_BUFFER_BYTES", 2_048)
    monkeypatch.setattr(syslog, "KERNEL_DROPS_CHECK_S", 0.1)
    async with receiving(listen=("udp://127.0.0.1:0",)) as receiver:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for n in range(2_000):  # the loop does not run meanwhile
                sender.sendto(b"<13>app: %d %s" % (n, b"x" * 500), ("127.0.0.1", receiver.port("udp")))
        async with asyncio.timeout(10):
            while sum(e.data.get("events", 1) for e in receiver.events) < 2_000:
                await receiver.until(len(receiver.events) + 1)
        assert sum(e.data.get("events", 1) for e in receiver.events) == 2_000
        assert any(e.type == "collection.gap" for e in receiver.events)


async def test_the_time_in_which_nobody_listened_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syslog, "KERNEL_DROPS_CHECK_S", 0.05)
    monkeypatch.setattr(syslog, "CURSOR_EVERY_S", 0.1)
    async with receiving() as receiver:
        await send(receiver.port("tcp"), b"before\n")
        assert [e.type for e in await receiver.until(1)] == ["log.line"], "at the first start nobody was away"
        heard = receiver.cursor
        batch, receiver.cursor = await anext(receiver.batches)
        assert (batch, receiver.cursor != heard) == ([], True), "the cursor moves while nothing comes"
    async with receiving(receiver.cursor) as again:
        (gap,) = await again.until(1)
    assert (gap.type, gap.data["events"]) == ("collection.gap", None)
    assert receiver.cursor is not None
    assert (gap.data["from_us"], gap.data["to_us"]) == (receiver.cursor["listened_us"], gap.time)


async def test_only_the_allowed_networks_and_so_many_connections_are_heard() -> None:
    async with receiving(allow=("10.0.0.0/8",)) as receiver:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"no", ("127.0.0.1", receiver.port("udp")))
        async with asyncio.timeout(5):
            while receiver.report.counts.get("refused_senders", 0) < 1:  # noqa: ASYNC110  # polled until it is counted
                await asyncio.sleep(0.01)
    async with receiving(connections_max=1) as receiver:
        _, first = await asyncio.open_connection("127.0.0.1", receiver.port("tcp"))
        first.write(b"one\n")
        await receiver.until(1)
        reader, second = await asyncio.open_connection("127.0.0.1", receiver.port("tcp"))
        assert await reader.read() == b""
        assert "connections_max" in receiver.report.trouble["connections"]
        for writer in (first, second):
            writer.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("tls")
    key, pem = place / "key.pem", place / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(key),
         "-out", str(pem), "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"],
        check=True, capture_output=True,
    )  # fmt: skip
    return pem, key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
async def test_tls_is_spoken_and_a_client_without_its_certificate_is_refused(certificate: tuple[Path, Path]) -> None:
    pem, key = certificate
    ours: dict[str, Any] = {"listen": ("tls://127.0.0.1:0",), "certificate_file": str(pem), "key_file": str(key)}
    client = ssl.create_default_context(cafile=str(pem))
    async with receiving(**ours) as receiver:
        await send(receiver.port("tls"), b"15 <13>app: secret", tls=client)
        (event,) = await receiver.until(1)
        assert (event.raw, event.data["transport"]) == ("<13>app: secret", "tls")
    async with receiving(**ours, client_ca_file=str(pem)) as receiver:
        with suppress(ssl.SSLError, ConnectionError):  # TLS 1.3 tells the client only after it has sent
            await send(receiver.port("tls"), b"without\n", tls=client)
        client.load_cert_chain(pem, key)
        await send(receiver.port("tls"), b"with\n", tls=client)
        assert (await receiver.until(1))[0].raw == "with"


async def test_a_port_that_is_taken_is_not_connected_and_settings_are_checked(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        source = SyslogSource(
            "s", SyslogReceiverConfig(listen=(f"tcp://127.0.0.1:{taken.getsockname()[1]}",)), Report()
        )
        with pytest.raises(NotConnected, match="in use"):
            await anext(source.batches(None))
    for options, text in [
        ({"listen": ("http://x:1",)}, "no address to listen on"),
        ({"listen": ("udp://x",)}, "no address to listen on"),
        ({"listen": ("tls://127.0.0.1:1",)}, "needs certificate_file"),
        ({"allow": ("10.0.0.1/8",)}, "allow:"),
    ]:
        with pytest.raises(ValueError, match=text):
            SyslogReceiverConfig(**options)  # type: ignore[arg-type]
    bad = tmp_path / "bad.pem"
    bad.write_text("nothing")
    config = SyslogReceiverConfig(listen=("tls://127.0.0.1:0",), certificate_file=str(bad), key_file=str(bad))
    assert [key for key, _, _ in config.problems()] == ["certificate_file"]
    with pytest.raises(ConfigError, match="PEM"):
        await anext(SyslogSource("s", config, Report()).batches(None))
