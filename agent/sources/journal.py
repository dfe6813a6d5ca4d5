"""`journal`: systemd's journal, by way of `journalctl -o json -f`.

Invariant: the cursor is the `__CURSOR` of the last entry handed on. Reading goes on *at* that entry, and the first entry that comes must
be it, and is dropped: journalctl takes a cursor of another machine without a word and begins somewhere. Where it is not there (the
journal was vacuumed, or replaced), reading goes on by time, and a `collection.gap` says so.

`journalctl --follow` shows the present boot alone, without a word: what was written before a reboot and not read would be lost. With
`--merge` it shows all boots, and journals that other machines sent here too, which are left out by their machine's id.

The pipe is the back-pressure: while nobody asks for more, journalctl waits. Units and identifiers are picked out here and not by
journalctl, which loses entries when it filters while it follows (systemd#30288). Once in a while the newest entry is compared with
ours, so that a journalctl that hangs after a rotation is noticed and started again.
"""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import annotated_types
import msgspec

from agent.component import ConfigError, Cursor, NotConnected, Report, now_us
from agent.parsers.base import Context, Lines
from agent.parsers.messages import Origin, Said
from agent.wire.event import Event

JOURNALS = ("/var/log/journal", "/run/log/journal")
READ_BYTES = 262_144
ENTRY_BYTES_MAX = 1_048_576
"""A longer entry (a core dump) is passed over, and a gap says so."""
STALL_CHECK_S = 60.0
"""When nothing came for so long, it is checked that there is nothing."""
STOP_S = 2.0
_GAP_VACUUMED = "the journal no longer has the entry where reading stopped; entries may be missing, it goes on by time"
_decoder = msgspec.json.Decoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalConfig:
    """Which entries of which journal.

    directory: another journal than this computer's, such as a mounted one. units, identifiers: only entries of these; empty: of all.
    priority_max: only entries at least this urgent: 0 emergency to 7 debug. from_start: read what the journal held when the agent
    first ran.
    """

    directory: str = ""
    units: tuple[str, ...] = ()
    identifiers: tuple[str, ...] = ()
    priority_max: Annotated[int, annotated_types.Ge(0), annotated_types.Le(7)] = 7
    from_start: bool = True
    keep_raw: bool = False
    program: str = "journalctl"

    def problems(self) -> Iterable[tuple[str, str, str]]:
        """Whether journalctl and the journal are there and may be read."""
        if shutil.which(self.program) is None:
            yield (
                "program",
                f"{self.program} is not installed",
                'Install systemd, or read the log files with type = "log".',
            )
        if self.directory and not os.access(self.directory, os.R_OK | os.X_OK):
            yield "directory", f"{self.directory} cannot be read", "Add the agent's user to the group systemd-journal."
        elif not self.directory and (closed := _closed_journal()) is not None:
            yield "type", f"the journal {closed} cannot be read", "Add the agent's user to the group systemd-journal."


def _closed_journal() -> Path | None:
    """Return what of the system's journal may not be read; None where all of it may, or there is none."""
    for folder in map(Path, JOURNALS):
        for each in (folder, *_inside(folder)):
            if os.path.lexists(each) and not os.access(each, os.R_OK):
                return each
    return None


def _inside(folder: Path) -> list[Path]:
    try:
        return [path for below in folder.iterdir() for path in (below, below / "system.journal")]
    except OSError:
        return []


class JournalSource:
    """Entries of the journal, as events."""

    Config: ClassVar[type] = JournalConfig
    rereadable: ClassVar[bool] = True

    def __init__(self, name: str, config: JournalConfig, report: Report) -> None:
        self._name = name
        self._config = config
        self._report = report
        self._lines = Lines()
        self._said = Said(Context(name, config.keep_raw, lines=self._lines))
        self._cursor: str | None = None
        self._realtime_us = 0
        self._machine = ""
        """Entries of others are left out; empty: of nobody."""

    def show_lines(self, *, wanted: bool) -> None:
        """Switch whether events carry their line for the handlers to search."""
        self._lines.shown = wanted

    async def batches(self, cursor: Cursor | None) -> AsyncIterator[tuple[list[Event], Cursor | None]]:
        self._cursor = cursor["cursor"] if cursor else None
        self._realtime_us = int(cursor["realtime_us"]) if cursor else 0
        if self._cursor is None and not self._config.from_start:
            await self._stand_at_end()
        if not self._config.directory:
            self._machine = await asyncio.to_thread(_machine_id)
        by_time = False
        while True:
            verdict = "more"
            # Closed here and waited for: left to the garbage collector, journalctl would outlive a source that is stopped.
            async with contextlib.aclosing(self._follow(by_time=by_time)) as following:
                async for verdict, events in following:
                    if verdict == "more":
                        yield events, self._position()
            if verdict == "foreign":
                yield [self._gap(_GAP_VACUUMED, None)], self._position()
            by_time = verdict == "foreign"

    def _position(self) -> Cursor | None:
        return None if self._cursor is None else {"cursor": self._cursor, "realtime_us": self._realtime_us}

    # journalctl

    def _arguments(self, *more: str) -> list[str]:
        where = [f"--directory={self._config.directory}"] if self._config.directory else []
        return [self._config.program, "--output=json", "--no-pager", "--all", *where, *more]

    async def _start(self, *more: str) -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(
                *self._arguments(*more),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, "LC_ALL": "C"},
            )
        except FileNotFoundError:
            raise ConfigError(
                f"{self._config.program} is not installed",
                key="program",
                remedy='Install systemd, or read the log files with type = "log".',
            ) from None
        except OSError as error:
            raise NotConnected(f"{self._config.program}: {error.strerror}") from None

    async def _newest(self) -> tuple[str, int] | None:
        """Cursor and time of the newest entry."""
        process = await self._start("--lines=1")
        try:
            async with asyncio.timeout(30):
                out, _ = await process.communicate()
        except TimeoutError:
            return None
        finally:
            await _end(process)
        for line in out.splitlines():
            entry = _entry(line)
            if entry is not None:
                return str(entry["__CURSOR"]), _int(entry.get("__REALTIME_TIMESTAMP"))
        return None

    async def _stand_at_end(self) -> None:
        newest = await self._newest()
        if newest is not None:
            self._cursor, self._realtime_us = newest

    async def _follow(self, *, by_time: bool) -> AsyncGenerator[tuple[str, list[Event]], None]:
        """Batches, until journalctl has to be started anew: "foreign" where the cursor is not of this journal, "stalled"."""
        expected = None if by_time else self._cursor
        where: list[str] = []
        if expected is not None:
            where = [f"--cursor={expected}"]
        elif by_time:
            where = [f"--since=@{self._realtime_us / 1e6:.6f}"]
        process = await self._start("--follow", "--merge", "--lines=all", *where)
        complaints = asyncio.ensure_future(self._complaints(process))
        after_us = self._realtime_us if by_time else -1
        try:
            async for read, lost in self._entries(process):
                entries = read
                if entries is None:
                    if await self._stalled():
                        self._report.count("restarts")
                        yield "stalled", []
                        return
                    continue
                if expected is not None and entries:
                    if entries[0]["__CURSOR"] != expected:
                        yield "foreign", []
                        return
                    entries, expected = entries[1:], None
                events = self._events(entries, after_us)
                events += [
                    self._gap(f"an entry of the journal was longer than {ENTRY_BYTES_MAX} bytes", 1)
                    for _ in range(lost)
                ]
                if entries or events:
                    yield "more", events
            text = await complaints
            raise NotConnected(f"{self._config.program} ended: {text or 'without a word'}")
        finally:
            complaints.cancel()
            await _end(process)

    async def _complaints(self, process: asyncio.subprocess.Process) -> str:
        """Read what journalctl says on the side; a lack of rights is told at once. Returns the last line."""
        last = ""
        assert process.stderr is not None  # noqa: S101  # it was asked for
        async for line in process.stderr:
            text = line.decode("utf-8", "replace").strip()
            last = text or last
            if "not seeing messages" in text or "insufficient permissions" in text:
                self._report.fault(f"{text}; add the agent's user to the group systemd-journal", "rights")
        return last[:500]

    async def _entries(
        self, process: asyncio.subprocess.Process
    ) -> AsyncIterator[tuple[list[dict[str, Any]] | None, int]]:
        """Entries as they come, and how many were passed over for their length; None after a while without any."""
        assert process.stdout is not None  # noqa: S101  # it was asked for
        rest = b""
        skipping = False
        while True:
            try:
                async with asyncio.timeout(STALL_CHECK_S):
                    data = await process.stdout.read(READ_BYTES)
            except TimeoutError:
                yield None, 0
                continue
            if not data:
                return
            self._report.ok()
            *lines, rest = (rest + data).split(b"\n")
            lost = 0
            if skipping and lines:
                lines, skipping, lost = lines[1:], False, 1
            if skipping or len(rest) > ENTRY_BYTES_MAX:
                rest, skipping = b"", True
            yield [entry for line in lines if (entry := _entry(line)) is not None], lost

    async def _stalled(self) -> bool:
        """Whether the journal has entries that journalctl did not give us."""
        newest = await self._newest()
        return (
            newest is not None
            and self._cursor is not None
            and newest[1] > self._realtime_us
            and newest[0] != self._cursor
        )

    # From entries to events

    def _events(self, entries: list[dict[str, Any]], after_us: int) -> list[Event]:
        observed_us = now_us()
        events: list[Event] = []
        for entry in entries:
            realtime_us = _int(entry.get("__REALTIME_TIMESTAMP"))
            if realtime_us <= after_us:
                continue
            self._cursor, self._realtime_us = str(entry["__CURSOR"]), realtime_us
            if self._wanted(entry):
                events.extend(self._said_of(entry, realtime_us, observed_us))
        return events

    def _wanted(self, entry: dict[str, Any]) -> bool:
        config = self._config
        if self._machine and _text(entry.get("_MACHINE_ID")) not in ("", self._machine):
            return False
        if (
            config.units
            and _text(entry.get("_SYSTEMD_UNIT")) not in config.units
            and _text(entry.get("UNIT")) not in config.units
        ):
            return False
        if config.identifiers and _text(entry.get("SYSLOG_IDENTIFIER")) not in config.identifiers:
            return False
        return _int(entry.get("PRIORITY"), 6) <= config.priority_max

    def _said_of(self, entry: dict[str, Any], realtime_us: int, observed_us: int) -> Iterable[Event]:
        message = _text(entry.get("MESSAGE"))
        kernel = entry.get("_TRANSPORT") == "kernel"
        program = "kernel" if kernel else _text(entry.get("SYSLOG_IDENTIFIER")) or _text(entry.get("_COMM"))
        more: dict[str, Any] = {}
        unit = _text(entry.get("_SYSTEMD_UNIT")) or _text(entry.get("UNIT"))
        if unit:
            more["unit"] = unit
        if entry.get("_UID"):
            more["actor_uid"] = _text(entry["_UID"])
        priority = _int(entry.get("PRIORITY"), 6)
        origin = Origin(
            _text(entry.get("_HOSTNAME")),
            program,
            _text(entry.get("_PID")) or _text(entry.get("SYSLOG_PID")),
            priority if 0 <= priority <= 7 else None,  # noqa: PLR2004  # syslog's
            more,
        )
        time_us = _int(entry.get("_SOURCE_REALTIME_TIMESTAMP")) or realtime_us
        return self._said.events(message, message, origin, time_us, observed_us)

    def _gap(self, reason: str, events: int | None) -> Event:
        self._report.count("gaps")
        at = now_us()
        return Event(at, at, "collection.gap", self._name, message=reason, data={"reason": reason, "events": events})


async def _end(process: asyncio.subprocess.Process) -> None:
    """Stop journalctl, kindly and then not."""
    try:
        if process.returncode is None:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(STOP_S):
                        await process.wait()
                        break
    finally:
        # The pipes are closed here, not when the garbage is collected; what still runs is killed, also where nobody waits any longer.
        process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001


def _machine_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/etc/machine-id").read_text(encoding="ascii").strip()
    return ""


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return entry if isinstance(entry, dict) and "__CURSOR" in entry else None


def _text(value: Any) -> str:
    """A field's text. A field that is not UTF-8 comes as a list of bytes, one given several times as a list of those."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        if isinstance(value[0], int):
            return bytes(byte & 255 for byte in value if isinstance(byte, int)).decode("utf-8", "backslashreplace")
        return _text(value[0])
    return ""


def _int(value: Any, otherwise: int = 0) -> int:
    text = _text(value)
    return int(text) if text.isdecimal() and len(text) < 19 else otherwise  # noqa: PLR2004  # fits 64 bits
