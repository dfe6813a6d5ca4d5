"""The files of a source: which of them are streams that are read, which are copies, and where a stream went. Everything here may block,
and runs in a thread.

Invariant: every stream that was ever followed is in one of three places until it is finished, and all three are in the cursor:

* `tails`: its file is there, by device and inode;
* `adrift`: its file is gone, exchanged or cut, and it is looked for by name and content; meanwhile no younger file of its family is read;
* `past`: it was read to its end. It is remembered, so that its copy, its archive or its disk mounted again is not read a second time.

A stream that is not found is declared as a gap, and a file of another stream under its name is read from its first byte. Files between
the last known one and the live one (rotations while nobody looked) are read in order, whether the patterns name them or not.
See logfile_identity.py for how a stream is recognised, and logfile_moves.py for what became of one.
"""

# Plain strings: ten thousand paths, twice a second; a pathlib path costs ten times as much.
# ruff: noqa: PTH100, PTH112, PTH116, PTH120, PTH123

import itertools
import os
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from glob import has_magic
from typing import Any, NamedTuple

from agent.sources.logfile_archive import Unfinished
from agent.sources.logfile_identity import HEAD_BYTES, Id, Tail
from agent.sources.logfile_name import family_of, in_order, is_archive, is_temporary, live_of
from agent.sources.logfile_open import birth_ns, data_from, hole_from, matches, open_regular, root_of
from agent.sources.logfile_search import Contents

BLOCK_BYTES = 262_144
"""Bytes read at once: about 2,400 lines, ten milliseconds of parsing."""
FDS_MAX = 256
"""Descriptors kept open. Beyond it the one that was not read for longest is closed, and opened again when it is needed."""
ORPHAN_FDS_MAX = 64
"""Descriptors kept open of files that were renamed out of sight or deleted."""
PAST_MAX = 1_000
"""Finished streams that are remembered; beyond it the oldest is forgotten, and a copy of it that appears is read again."""
RENAMED_KEEP_S = 3_600.0
"""A file renamed out of sight is looked at this long: a writer that was not told of the rotation writes there."""
STUCK_WAIT_S = 15.0
STUCK_TRIES = 2
"""Younger files of a family wait for an older one that cannot be read, so long and for so many attempts; then they are read, and its
lines come late. One that stays unreadable must not keep a whole family from being read."""


class Replaced(Exception):
    """The file was cut or written anew: what stands before the offset is not what was read."""


class Exchanged(Exception):
    """Device and inode are those of another file now."""


class Block(NamedTuple):
    """What was read from a tail's offset. `end`: the file has no more; `hole`: bytes of a hole that begins at the offset;
    `broken`: a hole follows, so that the last line ends here.
    """

    data: bytes
    head: bytes
    mtime_us: int
    end: bool
    hole: int = 0
    broken: bool = False


Trouble = OSError | Replaced | Exchanged | Unfinished


class Files:
    """All the streams of a source, and their open descriptors."""

    def __init__(
        self,
        paths: Iterable[str],
        *,
        files_max: int,
        grace_s: float,
        rotated_to: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        from agent.sources.logfile_moves import Moves

        self._paths = tuple(paths)
        self._files_max = files_max
        self.grace_s = grace_s
        self.clock = clock
        self._wall_clock = wall_clock
        self.rotated_to = tuple(rotated_to)
        self.tails: dict[Id, Tail] = {}
        self.past: OrderedDict[tuple[Id, str], Tail] = OrderedDict()
        self._fds: OrderedDict[Id, int] = OrderedDict()
        self.contents = Contents()
        self.troubles: dict[str, str] = {}
        self.declared: list[dict[str, Any]] = []
        """What is lost, as the data of gaps; taken by the source with its next batch."""
        self.by_path: dict[str, Tail] = {}
        self.stuck: dict[Id, Tail] = {}
        """Those that could not be read when they should have been."""
        self.moves = Moves(self)
        self._turn = 0
        self._streams = 0
        self._missing_since: dict[str, float] = {}
        self._matched: set[str] = set()

    def restore(self, states: Iterable[dict[str, Any]]) -> None:
        for state in states:
            try:
                tail = Tail.restored(state, family_of(str(state["path"])))
            except (KeyError, TypeError, ValueError):
                continue
            self._streams = max(self._streams, tail.no)
            self.moves.anchor(tail)
            if state.get("retired"):
                self.past[tail.id, str(state.get("head"))] = tail
            elif state.get("adrift"):
                self.moves.set_adrift(tail)
            else:
                self.tails[tail.id] = tail

    def states(self) -> list[dict[str, Any]]:
        """Return what the cursor keeps."""
        return [tail.state for tail in (*self.tails.values(), *self.moves.adrift, *self.past.values())]

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])
        self.contents.close()

    # What is there

    def _listing(self) -> dict[Id, tuple[str, os.stat_result]]:
        found: dict[Id, tuple[str, os.stat_result]] = {}
        self.troubles = {}
        refused: dict[str, str] = {}
        for pattern in self._paths:
            matched = False
            for path, status in matches(pattern, refused.__setitem__):
                matched = True
                if is_archive(path) and self.is_young(status):
                    continue  # may still be written; one that was made from an old file has that file's time
                if len(found) >= self._files_max and (status.st_dev, status.st_ino) not in found:
                    self.troubles[pattern] = (
                        f"more than files_max = {self._files_max} files; the rest is not read. Narrow the paths or raise files_max"
                    )
                    break
                found.setdefault((status.st_dev, status.st_ino), (path, status))
            self._note_match(pattern, matched=matched or pattern in refused)
        listed = {os.path.realpath(path) for path, _ in found.values()} if refused else set()
        # A link to a file that is read anyway hides nothing.
        self.troubles.update({path: text for path, text in refused.items() if os.path.realpath(path) not in listed})
        return found

    def _note_match(self, pattern: str, *, matched: bool) -> None:
        """Report a pattern that matches nothing; between the two steps of a rotation a file may be missing for a moment."""
        if matched:
            self._matched.add(pattern)
            self._missing_since.pop(pattern, None)
            return
        since = self._missing_since.setdefault(pattern, self.clock())
        if (pattern not in self._matched or self.clock() - since > self.grace_s) and pattern not in self.troubles:
            self.troubles[pattern] = self._why_nothing(pattern)

    @staticmethod
    def _why_nothing(pattern: str) -> str:
        directory = root_of(pattern)
        if not os.path.isdir(directory):
            return f"{pattern}: no such directory yet: {directory}; correct the path, or create the directory"
        if not os.access(directory, os.R_OK | os.X_OK):
            return f"{directory}: permission denied; add the agent's user to the group that may read it"
        what = "matches no file yet" if has_magic(pattern) else "no such file yet"
        return f'{pattern}: {what}; correct the path, or start the program that writes it (a system without log files: type = "journal")'

    def directories(self) -> set[str]:
        """The directories in which something may happen that matters."""
        places = {os.path.dirname(os.path.abspath(tail.path)) for tail in self.tails.values()}
        for pattern in self._paths:
            directory = os.path.dirname(os.path.abspath(pattern))
            if not has_magic(directory):
                places.add(directory)
        return places

    def scan(self, *, start_at_end: bool = False) -> None:
        """Bring the streams up to date with what lies on the disk."""
        self.contents.busy = False
        listing = self._listing()
        self.moves.look()
        now = self.clock()
        unknown: list[tuple[Id, str, os.stat_result]] = []
        for id_, (path, status) in listing.items():
            tail = self.tails.get(id_)
            if tail is not None and not self._is_same(tail, path, status):
                self.moves.leave(tail)
                tail = None
            if tail is None:
                unknown.append((id_, path, status))
            else:
                self.moves.renamed(tail, path)
                tail.gone_at = None
                self.touch(tail, status, now)
        for id_ in [id_ for id_ in self.tails if id_ not in listing]:
            self.moves.missing(self.tails[id_], now)
        if unknown:
            self._take_up(unknown, now, start_at_end=start_at_end)
        self.moves.settle(now)
        for id_ in [id_ for id_ in self.stuck if id_ not in listing and id_ not in self.tails]:
            self.release(self.stuck[id_])
        self._rank()
        self.by_path = {tail.path: tail for tail in self.tails.values() if tail.gone_at is None}

    def _take_up(self, unknown: list[tuple[Id, str, os.stat_result]], now: float, *, start_at_end: bool) -> None:
        """Begin or continue streams in files not seen before. Live files first: one with a rotated name may be a copy of one."""
        unknown.sort(key=lambda one: one[1] != family_of(one[1]) or live_of(one[1]) != one[1])
        kin = self.moves.kin()
        for id_, path, status in unknown:
            tail = self._new(id_, path, status, kin)
            if tail is None:
                continue
            if start_at_end:
                self._to_end(tail, status.st_size)
            self.touch(tail, status, now)
            if tail not in kin.setdefault(tail.family, []):
                kin[tail.family].append(tail)

    def _is_same(self, tail: Tail, path: str, status: os.stat_result) -> bool:
        """Return whether the file of a tail's inode is the tail's: an open file keeps its inode, others are looked at."""
        changed = is_archive(path) and status.st_mtime_ns != tail.mtime_ns
        if tail.id in self._fds or (tail.verified and tail.path == path and not changed):
            return True
        try:
            fd = open_regular(path, follow=not self._is_below_wildcard(path))
        except OSError:
            return True  # not known now; it is looked at again when it is read
        try:
            tail.verified = self.is_file(tail, fd)
            return tail.verified
        finally:
            os.close(fd)

    def _is_below_wildcard(self, path: str) -> bool:
        return path not in self._paths

    @staticmethod
    def is_file(tail: Tail, fd: int) -> bool:
        """Return whether an open file is a tail's, by device, inode and birth."""
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != tail.id:
            return False
        birth = birth_ns(fd)
        return not tail.birth_ns or not birth or tail.birth_ns == birth

    def wants_look(self) -> bool:
        """Return whether another look can decide something now; once for each new file."""
        return self.contents.busy or self.moves.wants_look()

    def touch(self, tail: Tail, status: os.stat_result, now: float) -> None:
        """Note size and time of a tail's file."""
        if status.st_size != tail.size:
            tail.grew_at = now
        if status.st_size > tail.state.get("end", status.st_size) and not is_archive(tail.path):
            tail.state["late"] = True
        elif "late" in tail.state and now - tail.grew_at > self.grace_s:
            del tail.state["late"]
        if tail.state.get("done") and status.st_mtime_ns != tail.state.get("mtime", status.st_mtime_ns):
            del tail.state["done"]  # an archive does not change: it is another one now
        tail.size, tail.mtime_ns = status.st_size, status.st_mtime_ns
        if (tail.size, tail.mtime_ns) != tail.seen and not tail.state.get("done"):
            tail.due = True

    def look(self, path: str) -> None:
        """Look at one file that was written to."""
        tail = self.by_path.get(path)
        if tail is None:
            return
        try:
            status = os.stat(path)
        except OSError:
            return
        if (status.st_dev, status.st_ino) == tail.id:
            self.touch(tail, status, self.clock())

    def add(self, path: str, id_: Id, family: str, status: os.stat_result) -> Tail:
        """Begin a stream at the first byte of a file."""
        tail = Tail(path, id_, family)
        self._streams += 1
        tail.state["no"] = self._streams
        tail.state["mtime"] = tail.mtime_ns = status.st_mtime_ns
        self.tails[id_] = tail
        with suppress(OSError, Exchanged):
            # Open from now on: whatever becomes of its name, it is read to its end while we run.
            tail.state["birth"] = birth_ns(self.open(tail))
        if is_archive(path):
            self._close(id_)  # it does not grow, and is read through Archive
        self.moves.begin(tail)
        return tail

    def _new(self, id_: Id, path: str, status: os.stat_result, kin: dict[str, list[Tail]]) -> Tail | None:
        """Return the tail of a file not seen before; None while it is not certain what it is, or where it has nothing new."""
        family = self.moves.family(path)
        if is_temporary(path) and self.is_young(status):
            return None
        live = live_of(path)
        if live == path or not (live in kin or self.moves.is_adrift(live)):
            live = family
        known = kin.get(live, ())
        if path != live:
            if self.moves.is_adrift(live):
                return None  # decided together with the stream that is looked for
            if known and not self._is_readable(path, id_, family, status):
                return None
        decision = self.moves.decide(path, status, known)
        if decision is not False:
            return None if decision is True else decision
        tail = self.add(path, id_, family, status)
        if path == family:
            self.moves.doubt(tail)
        return tail

    def _is_readable(self, path: str, id_: Id, family: str, status: os.stat_result) -> bool:
        """Return whether it can be told what a new file is. One that cannot be read keeps its place in the order meanwhile."""
        stuck = self.stuck.get(id_) or Tail(path, id_, family)
        if not is_archive(path):
            try:
                os.close(open_regular(path, follow=False))
            except OSError as error:
                self.troubles[path] = _in_words(path, error)
                stuck.mtime_ns = status.st_mtime_ns
                self.hold(stuck)
                return False
        self.release(stuck)
        return True

    @staticmethod
    def _to_end(tail: Tail, size: int) -> None:
        """Stand after the last complete line."""
        if is_archive(tail.path):
            tail.state["done"] = True
            return
        try:
            with open(tail.path, "rb", buffering=0) as file:
                begin = max(0, size - BLOCK_BYTES)
                data = os.pread(file.fileno(), size - begin, begin)
                offset = begin + data.rfind(b"\n") + 1
                tail.advance(offset, os.pread(file.fileno(), HEAD_BYTES, 0), data[: offset - begin])
        except OSError:
            return

    def _rank(self) -> None:
        """Order each family, and note which of its files have a successor."""
        families: defaultdict[str, list[Tail]] = defaultdict(list)
        for tail in self.tails.values():
            families[tail.family].append(tail)
        for family, tails in families.items():
            if len(tails) == 1:
                tails[0].order, tails[0].superseded = 0, False
                continue
            places = {
                path: n for n, path in enumerate(in_order([(tail.path, tail.mtime_ns) for tail in tails], family), 1)
            }
            for tail in tails:
                named = tail.gone_at is None or (
                    tail.path != family and (tail.id not in self._fds or os.fstat(self._fds[tail.id]).st_nlink > 0)
                )
                tail.order = places[tail.path] if named else 0
            tails.sort(key=lambda tail: (tail.order, tail.mtime_ns))
            tails[-1].superseded = False
            begun = False
            for tail, successor in reversed(list(itertools.pairwise(tails))):
                tail.superseded = True
                begun = begun or successor.size > 0 or successor.superseded
                if (
                    (begun or self.clock() - tail.grew_at > self.grace_s)
                    and not tail.settling
                    and not is_archive(tail.path)
                ):
                    tail.settling = tail.due = True  # what is read from now on is its end

    def retire(self, tail: Tail) -> None:
        """Put a stream that was read to its end among those of the past."""
        if self.tails.get(tail.id) is tail:
            del self.tails[tail.id]
            self._close(tail.id)
        self.release(tail)
        tail.due = tail.leftover = False
        tail.held_since = None
        tail.state["retired"] = True
        tail.state.pop("adrift", None)
        self.past[tail.id, str(tail.state.get("head"))] = tail
        while len(self.past) > PAST_MAX:
            self.past.popitem(last=False)

    def ended(self, tail: Tail) -> bool:
        """Whether nothing more is expected of a stream: an archive, or rotated away and not grown for the grace."""
        if is_archive(tail.path):
            return True
        rotated = tail.superseded or tail.gone_at is not None
        return rotated and self.clock() - max(tail.gone_at or 0.0, tail.grew_at) > self.grace_s

    def hold(self, tail: Tail) -> None:
        """Note that a stream cannot be read just now; it keeps its place in the order for a while."""
        tail = self.stuck.setdefault(tail.id, tail)
        tail.stuck_tries += 1
        if tail.stuck_tries == 1:
            tail.stuck_since = self.clock()

    def release(self, tail: Tail) -> None:
        """It was read, or will not be."""
        held = self.stuck.pop(tail.id, None)
        if held is not None:
            held.stuck_tries = 0

    def is_young(self, status: os.stat_result) -> bool:
        """Whether a file was changed within the grace."""
        return self._wall_clock() - status.st_mtime < self.grace_s

    def waited_for(self, tail: Tail) -> bool:
        """Whether younger files still wait for a stream that is held."""
        return tail.stuck_tries < STUCK_TRIES or self.clock() - tail.stuck_since < STUCK_WAIT_S

    # Reading

    def descriptor(self, tail: Tail) -> int | None:
        """Return the open descriptor of a stream, if it has one. Another stream may have the same device and inode by now."""
        return self._fds.get(tail.id) if self.tails.get(tail.id) is tail else None

    def _close(self, id_: Id) -> None:
        self.contents.drop(id_)
        fd = self._fds.pop(id_, None)
        if fd is not None:
            os.close(fd)

    def forget(self, tail: Tail) -> None:
        """Take a stream from those whose file is there."""
        if self.tails.get(tail.id) is tail:
            del self.tails[tail.id]
        self.release(tail)
        self._close(tail.id)

    def open(self, tail: Tail) -> int:
        """Return a descriptor of a stream's file. Raises OSError, Exchanged."""
        fd = self._fds.get(tail.id)
        if fd is not None:
            self._fds.move_to_end(tail.id)
            return fd
        fd = open_regular(tail.path, follow=not self._is_below_wildcard(tail.path))
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != tail.id:
            os.close(fd)
            raise FileNotFoundError(2, "renamed just now", tail.path)
        if not self.is_file(tail, fd):
            os.close(fd)
            raise Exchanged
        self._fds[tail.id] = fd
        self._evict()
        return fd

    def _evict(self) -> None:
        orphans = [id_ for id_ in self._fds if id_ in self.tails and self.tails[id_].gone_at is not None]
        for id_ in orphans[: max(0, len(orphans) - ORPHAN_FDS_MAX)]:
            self._close(id_)
        for id_ in list(self._fds)[: max(0, len(self._fds) - FDS_MAX)]:
            if id_ not in orphans:
                self._close(id_)

    def read(self, tails: Iterable[Tail]) -> list[tuple[Tail, Block | Trouble]]:
        """Return a block of each of the first of them, until there is a block's worth in all."""
        blocks: list[tuple[Tail, Block | Trouble]] = []
        budget = BLOCK_BYTES
        for tail in tails:
            self._turn += 1
            tail.turn = self._turn
            try:
                block = self._archived(tail) if is_archive(tail.path) else self._block(tail)
            except (OSError, Replaced, Exchanged, Unfinished) as error:
                blocks.append((tail, error))
                continue
            blocks.append((tail, block))
            budget -= len(block.data)
            if budget <= 0:
                break
        return blocks

    def _archived(self, tail: Tail) -> Block:
        status = os.stat(tail.path)
        if (status.st_dev, status.st_ino) != tail.id:
            raise FileNotFoundError(2, "renamed just now", tail.path)
        archive = self.contents.archive(tail.id, tail.path)
        if not tail.is_head(archive.head):
            raise Exchanged
        tail.head = tail.head or archive.head[: tail.head_bytes]
        data = archive.read_at(tail.offset, BLOCK_BYTES)
        end = len(data) < BLOCK_BYTES
        if end:
            tail.seen = (status.st_size, status.st_mtime_ns)
        return Block(data, archive.head, status.st_mtime_ns // 1000, end)

    def _block(self, tail: Tail) -> Block:
        fd = self.open(tail)
        settling = tail.settling
        before = min(int(tail.state.get("last_bytes", 0)), tail.offset)
        # The status before the data: what is written between the two is then noticed as a change.
        status = os.fstat(fd)
        data = os.pread(fd, before + BLOCK_BYTES, tail.offset - before)
        # The head after the data: had the file been cut and filled again before, it shows now.
        head = os.pread(fd, HEAD_BYTES, 0)
        if status.st_size < tail.offset or not tail.is_head(head) or not tail.is_last(data[:before]):
            raise Replaced
        data = data[before:]
        if not tail.head and tail.head_bytes:
            tail.head = head[: tail.head_bytes]
        end = len(data) < BLOCK_BYTES
        mtime_us = status.st_mtime_ns // 1000
        block = Block(data, head, mtime_us, end)
        if b"\0" in data:
            block = self._without_hole(fd, tail.offset, status.st_size, block)
        if block.end:
            tail.seen = (status.st_size, status.st_mtime_ns)
            if settling:
                tail.state["end"] = status.st_size
        return block

    @staticmethod
    def _without_hole(fd: int, offset: int, size: int, block: Block) -> Block:
        """Return a block that ends before a hole. A hole at the end of a file is not passed over: it may be filled."""
        data = block.data
        if not data[0]:
            begin = data_from(fd, offset, size)
            if begin == offset and not data.strip(b"\0"):
                begin = size if block.end else offset + len(data)  # zeros that take up disk: alike
            if begin > offset:
                return Block(b"", block.head, block.mtime_us, begin >= size, begin - offset)
        hole = hole_from(fd, offset, size)
        if hole >= offset + len(data):
            return block
        ends = data_from(fd, hole, size) >= size
        return Block(data[: hole - offset], block.head, block.mtime_us, ends, 0, broken=not ends)


def _in_words(path: str, error: OSError) -> str:
    text = f"{path}: {error.strerror or error}"
    return text + ("; add the agent's user to the group that may read it" if isinstance(error, PermissionError) else "")
