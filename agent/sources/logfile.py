"""`log`: files that programs write lines to.

Invariant: every complete line of every file is handed on once, in the order of its file, whatever the writer's rotation does, and the
cursor never passes a line that was not handed on. Where that cannot be kept (lines written in the moment between a copy and the cut that
follows it, a file deleted before it was read), a `collection.gap` stands in their place.

A file is found by stat, every `poll_interval_s`; inotify only makes it faster. A batch is read with one pread from the offset of the last
complete line, decoded and split once, and parsed in one loop; nothing read is kept in memory between batches. Blank lines say nothing and
are passed over. A hole of a sparse file is not read: it is declared and passed over, or waited at where nothing follows it.

Files of one family (`auth.log`, `auth.log.1`) are one stream in order of age; different families take turns, a block each. A file with
no more than a block to read goes first, and the files are looked at between any two turns, so that a backlog of one delays no other.
"""

import asyncio
import fnmatch
import os
import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from glob import has_magic
from typing import Annotated, Any, ClassVar, Literal

import annotated_types
import msgspec

from agent.component import ConfigError, Cursor, Report, load, now_us
from agent.parsers import PARSERS
from agent.parsers.base import Context, Lines, Parser, zone_of
from agent.parsers.multiline import Multiline
from agent.sources.logfile_archive import Unfinished
from agent.sources.logfile_identity import HEAD_BYTES, Tail
from agent.sources.logfile_name import is_archive
from agent.sources.logfile_tail import BLOCK_BYTES, Block, Exchanged, Files, Replaced, Trouble
from agent.sources.logfile_watch import Hints
from agent.wire.event import Event

LINES_MAX = 4_096
"""Lines parsed at once; a block of very short lines is taken in several steps."""
BATCH_EVENTS = 2_000
"""Events of several files are gathered up to this many before they are handed on."""
READS_AT_ONCE = 64
"""Files read in one step in the thread."""
TURN_S_MAX = 0.5
"""A turn over many files with a backlog ends after so long, and the next one begins with the others."""
HOLE_BYTES_MIN = 65_536
"""A smaller hole is passed over without a declaration: a writer that goes on at its old position after a cut leaves one."""
SCAN_COST_MAX = 100
"""Looking for changes takes at most one part in this many of the time: with ten thousand files the poll slows down by itself."""
PAUSE_PER_FILE_S = 20e-6
"""The cursor names every file, so with very many files it is written less often."""

Option = str | int | float | bool | list[str] | dict[str, str] | None


def parser_of(kind: str, options: dict[str, Option], context: Context) -> Parser:
    """The parser with its options checked. Raises ValueError naming the key and the remedy."""
    if kind not in PARSERS:
        near = get_close_matches(kind, PARSERS, 1)
        raise ValueError(
            f"parser: there is no parser {kind!r}. "
            + (f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(sorted(PARSERS))}.")
        )
    class_ = load(PARSERS, kind, what="parser", extra={})
    known = [f.name for f in msgspec.inspect.type_info(class_.Config).fields]  # type: ignore[attr-defined]
    for key in options:
        if key not in known:
            near = get_close_matches(key, known, 1)
            remedy = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
            raise ValueError(f"options.{key}: the parser {kind!r} has no such option; {remedy}")
    try:
        config = msgspec.convert(options, class_.Config)
    except msgspec.ValidationError as error:
        raise ValueError(f"options: {error} (parser {kind!r})") from None
    parser: Parser = class_(config, context)
    return parser


READABLE = "Add the agent's user to the group that may read it (often adm)."


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """Which files, and how they are read.

    from_start: read what stood in the files when the agent first ran. A file that appears later is always read from its first byte.
    line_bytes_max: a longer line is cut there, and the cut declared as a gap.
    keep_raw: keep every line as it was, as personal data.
    time_zone: the zone of times that name none; empty: this computer's.
    rotation_grace_s: how long a rotated file may stay unchanged before its last unfinished line counts as finished.
    multiline_start: a pattern that the first line of a record has; lines without it belong to the record before (a stack trace).
    hold_s: how long a record of several lines may wait for its next line.
    rotated_to: other directories that rotation moves files to ("olddir"); the file's own and those directly below it are searched anyway.

    No symbolic link is followed below a wildcard. A path without one may be a link: see logfile_open.py for which are followed.
    """

    paths: Annotated[tuple[str, ...], annotated_types.Len(1, 1_000)]
    parser: str
    options: dict[str, Option] = field(default_factory=dict)
    multiline_start: str = ""
    from_start: bool = True
    line_bytes_max: Annotated[int, annotated_types.Ge(256), annotated_types.Le(BLOCK_BYTES // 2)] = 65_536
    keep_raw: bool = False
    time_zone: str = ""
    encoding: Literal["utf-8", "latin-1", "cp1252", "cp437", "cp850", "iso8859-15", "gb18030", "shift_jis"] = "utf-8"
    poll_interval_s: Annotated[float, annotated_types.Ge(0.05), annotated_types.Le(3600)] = 0.5
    rotation_grace_s: Annotated[float, annotated_types.Ge(0.05), annotated_types.Le(3600)] = 5.0
    hold_s: Annotated[float, annotated_types.Ge(0.05), annotated_types.Le(3600)] = 2.0
    files_max: Annotated[int, annotated_types.Ge(1), annotated_types.Le(100_000)] = 10_000
    rotated_to: Annotated[tuple[str, ...], annotated_types.Len(0, 16)] = ()

    def __post_init__(self) -> None:
        for key, paths in (("paths", self.paths), ("rotated_to", self.rotated_to)):
            for path in paths:
                if not path.startswith("/"):
                    raise ValueError(f"{key}: {path!r} is not an absolute path; write it from / on")
        self.make_parser("")

    def make_parser(self, source: str, lines: Lines | None = None) -> Parser:
        """Return the parser of a source of this name; `lines` switches whether handlers search its lines. Raises ValueError."""
        context = Context(source, self.keep_raw, zone_of(self.time_zone), lines or Lines())
        parser = parser_of(self.parser, self.options, context)
        if not self.multiline_start:
            return parser
        try:
            begin = re.compile(self.multiline_start)
        except re.error as error:
            raise ValueError(f"multiline_start: {error}") from None
        return Multiline(None, context, begin=begin, behind=parser)

    def problems(self) -> Iterable[tuple[str, str, str]]:
        """What is wrong with the files now, and with the parser's options."""
        parser_class = load(PARSERS, self.parser, what="parser", extra={})
        options = msgspec.convert(self.options, parser_class.Config)
        if hasattr(options, "problems"):
            for key, text, remedy in options.problems():
                yield f"options.{key}", text, remedy
        files = Files(self.paths, files_max=self.files_max, grace_s=self.rotation_grace_s, rotated_to=self.rotated_to)
        files.scan()
        for trouble in files.troubles.values():
            if "yet" not in trouble:
                denied = "permission" in trouble.lower()
                what, _, remedy = trouble.partition("; ")
                remedy = remedy or "correct the path, or wait for the program that writes it"
                yield "paths", what, READABLE if denied else f"{remedy[0].upper()}{remedy[1:]}."
        for tail in list(files.tails.values())[:100]:
            if not os.access(tail.path, os.R_OK):
                yield "paths", f"{tail.path}: permission denied", READABLE


class LogSource:
    """Lines of files, as events."""

    Config: ClassVar[type] = LogConfig
    rereadable: ClassVar[bool] = True

    def __init__(self, name: str, config: LogConfig, report: Report) -> None:
        self._name = name
        self._config = config
        self._report = report
        self._shown = Lines()
        self._parser = config.make_parser(name, self._shown)
        self._files = self._made()
        self._label = len(config.paths) > 1 or any(has_magic(path) for path in config.paths)
        self._troubled: set[str] = set()

    def show_lines(self, *, wanted: bool) -> None:
        """Switch whether events carry their line for the handlers to search."""
        self._shown.shown = wanted

    def _made(self) -> Files:
        config = self._config
        return Files(
            config.paths, files_max=config.files_max, grace_s=config.rotation_grace_s, rotated_to=config.rotated_to
        )

    async def batches(self, cursor: Cursor | None) -> AsyncIterator[tuple[list[Event], Cursor | None]]:
        self._files = self._made()
        self._files.restore((cursor or {}).get("files", ()))
        try:
            with Hints(self._concerns) as hints:
                if cursor is None:
                    await asyncio.to_thread(self._files.scan, start_at_end=not self._config.from_start)
                    # From here on a file that appears is read from its first byte, even if we are killed now.
                    yield [], self._cursor()
                async for batch in self._watch(hints):
                    yield batch
        finally:
            self._files.close()

    async def _watch(self, hints: Hints) -> AsyncIterator[tuple[list[Event], Cursor]]:
        loop = asyncio.get_running_loop()
        scan_at = 0.0
        while True:
            now = loop.time()
            if hints.changed or now >= scan_at:
                await asyncio.to_thread(self._files.scan)
                hints.watch(self._files.directories())
                self._tell()
                cost_s = loop.time() - now
                scan_at = loop.time() + max(self._config.poll_interval_s, cost_s * SCAN_COST_MAX)
            else:
                for path in hints.written:
                    self._files.look(path)
            async for batch in self._turn():
                yield batch
            pause_s = PAUSE_PER_FILE_S * len(self._files.tails)
            if pause_s > 0.01:  # noqa: PLR2004  # below, it would not be noticed
                await asyncio.sleep(pause_s)
            if self._files.wants_look():
                scan_at = 0.0
            if scan_at == 0.0 or any(family[0].due for family in self._families()):
                hints.poll()
            else:
                await hints.wait(max(0.001, min(scan_at - loop.time(), self._held_s(loop.time()))))

    def _concerns(self, path: str) -> bool:
        return path in self._files.by_path or any(fnmatch.fnmatch(path, pattern) for pattern in self._config.paths)

    def _tell(self) -> None:
        """Say what is wrong with which file, and what no longer is."""
        troubles = self._files.troubles
        for part in self._troubled - troubles.keys():
            self._report.ok(part)
        for part, text in troubles.items():
            if self._report.trouble.get(part) != text:
                self._report.fault(text, part)
        self._troubled = set(troubles)
        if self._files.tails:
            self._report.ok()

    def _cursor(self) -> Cursor:
        return {"v": 2, "files": self._files.states()}

    # From due files to batches

    def _families(self) -> list[list[Tail]]:
        """The tails that have something, by family, oldest first."""
        now = asyncio.get_running_loop().time()
        families: dict[str, list[Tail]] = {}
        for tail in self._files.tails.values():
            if tail.leftover and self._files.ended(tail):
                tail.due = True
            if tail.held_since is not None and now - tail.held_since >= self._config.hold_s:
                tail.due = True
            waits = tail.leftover and (tail.superseded or tail.gone_at is not None)
            if (tail.due or waits) and not self._files.moves.waits(tail):
                families.setdefault(tail.family, []).append(tail)
        for tail in self._files.stuck.values():
            # It has something that cannot be read just now; that keeps its place in the order.
            family = families.get(tail.family)
            if family is not None and tail not in family and self._files.waited_for(tail):
                family.append(tail)
        for family in families.values():
            if len(family) > 1:
                family.sort(key=lambda tail: (tail.order, tail.mtime_ns, tail.path))
        return list(families.values())

    def _held_s(self, now: float) -> float:
        """How long until a held record has waited long enough."""
        since = min(
            (tail.held_since for tail in self._files.tails.values() if tail.held_since is not None), default=None
        )
        return self._config.poll_interval_s * SCAN_COST_MAX if since is None else since + self._config.hold_s - now

    async def _turn(self) -> AsyncIterator[tuple[list[Event], Cursor]]:
        """Read a block of each family that has something; those that have no more than that first."""
        events: list[Event] = [self._gap(data) for data in self._files.declared]
        self._files.declared.clear()
        moved = bool(events)
        # Within a family the oldest goes first, and one that waits for the end of its last line makes the younger wait.
        firsts = [family[0] for family in self._families() if family[0].due]
        firsts.sort(key=lambda tail: (is_archive(tail.path) or tail.size - tail.offset > BLOCK_BYTES, tail.turn))
        loop = asyncio.get_running_loop()
        begun = loop.time()
        done = 0
        while done < len(firsts):
            blocks = await asyncio.to_thread(self._files.read, firsts[done : done + READS_AT_ONCE])
            done += len(blocks)
            for tail, block in blocks:
                before = tail.offset, tail.skipped
                self._take(tail, block, events)
                moved = moved or before != (tail.offset, tail.skipped)
            if len(events) >= BATCH_EVENTS:
                yield events, self._cursor()
                events = []
                moved = False
            if loop.time() - begun > TURN_S_MAX:
                break
        if events or moved:
            yield events, self._cursor()

    def _take(self, tail: Tail, block: Block | Trouble, events: list[Event]) -> None:
        """Turn what was read into events, and move the tail on."""
        if isinstance(block, Replaced):
            self._files.moves.cut(tail)
            return
        if isinstance(block, Exchanged):
            self._files.moves.leave(tail)
            return
        if isinstance(block, Unfinished):
            return  # a slice of an archive was unpacked; the next turn goes on
        if isinstance(block, OSError):
            self._unreadable(tail, block)
            return
        self._files.release(tail)
        if tail.path in self._report.trouble:
            self._report.ok(tail.path)
        if block.hole:
            self._hole(tail, block, events)
        elif tail.skipped:
            self._skip(tail, block, events)
        else:
            self._lines(tail, block, events)
        if block.end and not tail.due and is_archive(tail.path):
            tail.state["done"] = True

    def _unreadable(self, tail: Tail, error: OSError) -> None:
        """It is tried again at the next scan. Younger files of its family wait for that: their lines come after its own."""
        tail.due = False
        tail.seen = (-1, -1)  # tried again at every scan
        renamed = isinstance(error, FileNotFoundError)
        if renamed or not is_archive(tail.path):
            self._files.hold(tail)  # an archive is damaged for good, or not finished
        if renamed:
            return  # between stat and open; the next scan finds it
        text = f"{tail.path}: {error.strerror or error}"
        if isinstance(error, PermissionError):
            text += "; add the agent's user to the group that may read it"
        if self._report.trouble.get(tail.path) != text:
            self._report.fault(text, tail.path)

    def _lines(self, tail: Tail, block: Block, events: list[Event]) -> None:
        data = block.data
        cut = data.rfind(b"\n") + 1
        ended = block.broken or (block.end and self._files.ended(tail))
        if not cut:
            if len(data) > self._config.line_bytes_max:
                self._begin_skip(tail, block, events)
                return
            if not (ended and data):
                tail.leftover = bool(data)
                tail.due = not block.end
                return
        if ended:
            cut = len(data)
        body = data[:cut] if cut < len(data) else data
        tail.leftover = cut < len(data)
        lines = self._split(body)
        overdue = (
            tail.held_since is not None and asyncio.get_running_loop().time() - tail.held_since >= self._config.hold_s
        )
        final = ended or overdue
        found, consumed = self._parse(tail, lines, block.mtime_us, final=final)
        if not consumed and lines and not block.end:
            # A record longer than a block: what there is of it has to do.
            found, consumed = self._parse(tail, lines, block.mtime_us, final=True)
        if consumed < len(lines) or len(lines) == LINES_MAX:
            body = self._first(body, consumed)
            tail.leftover = True
        tail.held_since = None if consumed or not lines else tail.held_since or asyncio.get_running_loop().time()
        tail.due = (not block.end) or (consumed > 0 and len(body) < cut)
        if body:
            tail.advance(tail.offset + len(body), block.head, body)
        events.extend(found)

    def _split(self, body: bytes) -> list[str]:
        """The lines of a body that ends with a line's end, or with the end of the file; at most LINES_MAX."""
        text = body.decode(self._config.encoding, "backslashreplace")
        if "\r" in text:
            text = text.replace("\r\n", "\n")
        if "\0" in text:
            # A writer that did not notice a cut leaves a hole of zeros before its next line.
            text = text.replace("\0", "")
        lines = text.split("\n", LINES_MAX)
        if not lines[-1] or len(lines) > LINES_MAX:
            lines.pop()
        return lines

    @staticmethod
    def _first(body: bytes, lines: int) -> bytes:
        """The bytes of the first lines."""
        pieces = body.split(b"\n", lines)
        return body[: len(body) - len(pieces[-1])] if len(pieces) > lines else body

    def _parse(self, tail: Tail, lines: list[str], mtime_us: int, *, final: bool) -> tuple[list[Event], int]:
        observed_us = now_us()
        chars_max = self._config.line_bytes_max
        longest = max(map(len, lines), default=0)
        fed = lines if longest <= chars_max else [line[:chars_max] for line in lines]
        events, consumed = self._parser.parse(
            fed, observed_us=observed_us, reference_us=min(observed_us, mtime_us), memory=tail.memory, final=final
        )
        if longest > chars_max:
            cut_bytes = sum(len(line) - chars_max for line in lines[:consumed] if len(line) > chars_max)
            if cut_bytes:
                events.append(self._gap(self._overlong(tail, cut_bytes)))
        if self._label:
            name = tail.family
            for event in events:
                event.data["file"] = name
        return events, consumed

    # What is lost, and said

    def _overlong(self, tail: Tail, cut_bytes: int) -> dict[str, Any]:
        return {
            "reason": f"a line was longer than line_bytes_max = {self._config.line_bytes_max}; its end was cut off",
            "file": tail.family,
            "events": 0,
            "bytes": cut_bytes,
        }

    def _begin_skip(self, tail: Tail, block: Block, events: list[Event]) -> None:
        """A line of which no end is in sight: hand on its beginning, then pass over the rest."""
        body = block.data[: self._config.line_bytes_max]
        found, _ = self._parse(tail, self._split(body)[:1] or [""], block.mtime_us, final=True)
        events.extend(found)
        tail.skip(1)
        tail.advance(tail.offset + len(body), block.head, body)
        tail.due = True

    def _skip(self, tail: Tail, block: Block, events: list[Event]) -> None:
        data = block.data
        end = data.find(b"\n") + 1
        n = end or len(data)
        if end or block.broken or (block.end and self._files.ended(tail)):
            events.append(self._gap(self._overlong(tail, tail.skipped - 1 + n)))
            tail.skip(0)
        else:
            tail.skip(tail.skipped + n)
        tail.due = bool(end) or not block.end
        tail.leftover = not end
        if n:
            tail.advance(tail.offset + n, block.head, data[:n])

    def _gap(self, data: dict[str, Any]) -> Event:
        self._report.count("gaps")
        at = now_us()
        return Event(at, at, "collection.gap", self._name, message=data["reason"], data=data)

    def _hole(self, tail: Tail, block: Block, events: list[Event]) -> None:
        """Pass over a hole; at one that nothing follows, wait for what may be written there."""
        end = tail.offset + block.hole
        declared = int(tail.state.get("hole", 0))
        if block.hole >= HOLE_BYTES_MIN and end > declared:
            tail.state["hole"] = end
            events.append(
                self._gap(
                    {
                        "reason": "a hole in a sparse file was passed over; it holds no lines",
                        "file": tail.family,
                        "events": 0,
                        "offset": tail.offset,
                        "bytes": block.hole,
                    }
                )
            )
        tail.due = not block.end
        if tail.due:
            tail.pass_over(end, bytes(min(block.hole, HEAD_BYTES)))


__all__ = ["ConfigError", "LogConfig", "LogSource"]
