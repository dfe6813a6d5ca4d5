"""`journal`: systemd's journal, by way of `journalctl -o json -f`.

Invariant: the cursor is the `__CURSOR` of the last entry handed on. Reading continues *at* that entry, and the first entry that comes must
be it, and is dropped: journalctl accepts a cursor of another machine without an error and begins somewhere. Where it is not there:

* the next number of the same sequence comes first: nothing is missing (the journal was vacuumed up to there);
* a later number of the same sequence: a `collection.gap` with how many entries were between;
* anything else (the journal was replaced): a gap, and the whole journal is read except what was read before, by boot and sequence
  (journal_position.py). Times decide nothing: the clock may be years behind.

journalctl orders entries of different boots by time, so entries of a boot whose clock is behind are never shown after those of an
earlier one. Such a boot is found by its id when nothing comes, and then followed alone.

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
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import annotated_types
import msgspec

from agent.component import ConfigError, Cursor, NotConnected, Report, now_us
from agent.parsers.base import Context, Lines
from agent.parsers.messages import Origin, Said
from agent.sources.journal_position import Place, Position
from agent.wire.event import Event

JOURNALS = ("/var/log/journal", "/run/log/journal")
READ_BYTES = 262_144
ENTRY_BYTES_MAX = 1_048_576
"""A longer entry (a core dump) is passed over, and a gap says so."""
STALL_CHECK_S = 60.0
"""When nothing came for so long, it is checked that there is nothing."""
START_CHECK_S = 2.0
"""The same, when nothing came since journalctl was started."""
QUERY_S_MAX = 30.0
BOOTS_LOOKED_AT_MAX = 8
FILTER_CHECK_S = 600.0
STOP_S = 2.0
NAMES_SHOWN = 5
_GAP_REPLACED = (
    "the journal no longer has the entry where reading stopped; entries may be missing, what is left was read"
)
_GAP_VACUUMED = "the journal no longer has the entries after the one where reading stopped"
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


class Begin(NamedTuple):
    """How journalctl is started: at the position, for the whole journal, or for one boot; `reason` is that of a gap to be declared."""

    whole: bool = False
    boot: str = ""
    reason: str = ""


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
        self._position = Position(None)
        self._came = False
        """An entry came since journalctl was started."""
        self._stalls = 0
        """Times that journalctl was started again without an entry coming."""
        self._filters_at = float("-inf")
        self._machine = ""
        """Entries of others are left out; empty: of nobody."""

    def show_lines(self, *, wanted: bool) -> None:
        """Switch whether events carry their line for the handlers to search."""
        self._lines.shown = wanted

    async def batches(self, cursor: Cursor | None) -> AsyncIterator[tuple[list[Event], Cursor | None]]:
        self._position = Position(cursor)
        if self._position.cursor is None and not self._config.from_start:
            await self._stand_at_end()
        if not self._config.directory:
            self._machine = await asyncio.to_thread(_machine_id)
        begin = Begin()
        while True:
            verdict = begin
            # Closed here and waited for: left to the garbage collector, journalctl would outlive a source that is stopped.
            async with contextlib.aclosing(self._follow(begin)) as following:
                async for verdict, events in following:
                    if verdict is begin:
                        yield events, self._position.state()
            if verdict.reason:
                yield [self._gap(verdict.reason, None)], self._position.state()
            begin = verdict

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

    async def _query(self, *more: str) -> list[bytes]:
        """Return the lines that journalctl answers; none where it takes too long."""
        process = await self._start(*more)
        try:
            async with asyncio.timeout(QUERY_S_MAX):
                out, _ = await process.communicate()
        except TimeoutError:
            return []
        finally:
            await _end(process)
        return out.splitlines()

    async def _newest(self, *more: str) -> tuple[str, int] | None:
        """Return cursor and time of the newest entry."""
        for line in await self._query("--lines=1", *more):
            entry = _entry(line)
            if entry is not None:
                return str(entry["__CURSOR"]), _int(entry.get("__REALTIME_TIMESTAMP"))
        return None

    async def _values(self, field: str) -> list[str]:
        """Return the values that a field has in the journal."""
        return [line.decode("utf-8", "replace") for line in await self._query(f"--field={field}")]

    async def _stand_at_end(self) -> None:
        newest = await self._newest()
        if newest is None:
            return
        self._position.move(*newest)
        current = await asyncio.to_thread(_boot_id) if not self._config.directory else ""
        for boot in await self._values("_BOOT_ID"):
            last = await self._newest(f"_BOOT_ID={boot}") if boot == current else None
            if last is not None:
                self._position.move(*last)
            self._position.pass_over(boot)

    async def _follow(self, begin: "Begin") -> AsyncGenerator[tuple["Begin", list[Event]], None]:
        """Yield batches with `begin`, until journalctl has to be started in another way, which is yielded last."""
        expected = None if begin.whole or begin.boot else self._position.cursor
        where = [f"--cursor={expected}"] if expected is not None else []
        if begin.boot:
            where.append(f"_BOOT_ID={begin.boot}")
        process = await self._start("--follow", "--merge", "--lines=all", *where)
        complaints = asyncio.ensure_future(self._complaints(process))
        self._came = False
        try:
            await self._check_filters()
            async for entries, lost in self._entries(process):
                if entries is None:
                    other = await self._overlooked(begin, expected)
                    if other is not None:
                        self._report.count("restarts")
                        yield other, []
                        return
                    continue
                events: list[Event] = []
                if entries:
                    self._came = True
                    if expected is not None:
                        events, foreign = self._arrive(Place.of(expected), Place.of(str(entries[0]["__CURSOR"])))
                        if foreign:
                            yield Begin(whole=True, reason=_GAP_REPLACED), []
                            return
                        expected = None
                before = self._position.cursor
                events += self._events(entries)
                events += [
                    self._gap(f"an entry of the journal was longer than {ENTRY_BYTES_MAX} bytes", 1)
                    for _ in range(lost)
                ]
                if self._position.cursor != before:
                    self._stalls = 0
                if events or self._position.cursor != before:
                    yield begin, events
            text = await complaints
            raise NotConnected(f"{self._config.program} ended: {text or 'without an error message'}")
        finally:
            complaints.cancel()
            await _end(process)

    def _arrive(self, expected: Place, first: Place) -> tuple[list[Event], bool]:
        """Judge the first entry: a gap, if entries are missing, and whether it is of another journal."""
        if first.is_same_entry(expected):
            return [], False
        if first.sequence != expected.sequence or first.no <= expected.no:
            return [], True
        missing = first.no - expected.no - 1
        return ([self._gap(_GAP_VACUUMED, None, entries=missing)] if missing else []), False

    async def _overlooked(self, begin: "Begin", expected: str | None) -> "Begin | None":
        """Return how to start journalctl so that it shows what it does not show now; None where there is nothing."""
        await self._check_filters()
        position = self._position
        newest = await self._newest()
        if newest is None:
            self._report.fault(f"{self._where()} has no entries; check that systemd-journald runs", "journal")
            return None
        self._report.ok("journal")
        if expected is not None and not self._came and not await self._has(expected):
            return Begin(whole=True, reason=_GAP_REPLACED)
        boots = [position.place.boot] if position.cursor else []
        if not self._config.directory:
            boots.append(await asyncio.to_thread(_boot_id))
        boots += [boot for boot in await self._values("_BOOT_ID") if position.is_unread(boot)]
        for boot in [boot for boot in dict.fromkeys(boots) if boot][:BOOTS_LOOKED_AT_MAX]:
            last = await self._newest(f"_BOOT_ID={boot}")
            if last is None or position.was_read(Place.of(last[0])):
                continue
            self._stalls += 1
            # First as it was: journalctl may hang. If that does not help, the boot alone.
            return Begin() if self._stalls == 1 and boot != begin.boot and not begin.whole else Begin(boot=boot)
        return None

    async def _has(self, cursor: str) -> bool:
        """Return whether the entry of a cursor is there."""
        process = await self._start("--merge", f"--cursor={cursor}")
        assert process.stdout is not None  # noqa: S101  # it was asked for
        try:
            async with asyncio.timeout(QUERY_S_MAX):
                entry = _entry(await process.stdout.readline())
        except (TimeoutError, ValueError):
            return True  # not known: it is looked at again
        finally:
            await _end(process)
        return entry is not None

    def _where(self) -> str:
        return f"the journal in {self._config.directory}" if self._config.directory else "this computer's journal"

    async def _check_filters(self) -> None:
        """Report a configured unit or identifier that no entry has."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._filters_at < FILTER_CHECK_S:
            return
        self._filters_at = loop.time()
        for part, wanted, fields in (
            ("units", self._config.units, ("_SYSTEMD_UNIT", "UNIT")),
            ("identifiers", self._config.identifiers, ("SYSLOG_IDENTIFIER",)),
        ):
            if not wanted:
                continue
            known = {value for field in fields for value in await self._values(field)}
            unknown = [name for name in wanted if name not in known]
            if not unknown:
                self._report.ok(part)
                continue
            near = [one for name in unknown for one in get_close_matches(name, known, 1)]
            remedy = (
                f"did you mean {near[0]!r}?" if near else "correct the name (journalctl --field shows which there are)"
            )
            names = ", ".join(map(repr, unknown[:NAMES_SHOWN]))
            self._report.fault(f"{part}: {names}: no entry of {self._where()} has it; {remedy}", part)

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
        wait_s = START_CHECK_S
        while True:
            try:
                async with asyncio.timeout(min(wait_s, STALL_CHECK_S)):
                    data = await process.stdout.read(READ_BYTES)
            except TimeoutError:
                yield None, 0
                wait_s = STALL_CHECK_S
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

    # From entries to events

    def _events(self, entries: list[dict[str, Any]]) -> list[Event]:
        """Return the events of the entries that were not read before."""
        observed_us = now_us()
        events: list[Event] = []
        for entry in entries:
            cursor = str(entry["__CURSOR"])
            if self._position.was_read(Place.of(cursor)):
                continue
            realtime_us = _int(entry.get("__REALTIME_TIMESTAMP"))
            self._position.move(cursor, realtime_us)
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

    def _gap(self, reason: str, events: int | None, **more: int) -> Event:
        self._report.count("gaps")
        at = now_us()
        data = {"reason": reason, "events": events, **more}
        return Event(at, at, "collection.gap", self._name, message=reason, data=data)


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


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().replace("-", "")
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
