"""Which file is which, and how far it was read. Everything here may block, and runs in a thread.

Invariant: a `Tail` is one stream of bytes, read from `offset`, which stands after the last complete line that was handed on. It is
found again by device, inode, the first bytes (`head`, up to 1,024, growing with what was read) and the last bytes before
the offset (`last`):

* the same inode with another head is another file: the kernel gives the inode of a deleted file to the next one made, and a file
  cut to nothing and filled again keeps its inode (copytruncate);
* another inode with the same head, and the same last bytes before the offset, is a copy of it: the copytruncate copy, from which
  what was not read yet can still be read.

A name is only where a stream was last seen: after a rotation by rename the stream goes on under its new name, or without one, on the open
descriptor.
"""

# Plain strings: ten thousand paths, twice a second: plain strings cost a tenth of pathlib.
# ruff: noqa: PTH100, PTH112, PTH116, PTH118, PTH120, PTH123, PTH207

import errno
import gzip
import os
import re
import stat
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from glob import has_magic, iglob
from hashlib import blake2b
from typing import IO, Any, NamedTuple, cast

import zstandard

HEAD_BYTES = 1_024
BLOCK_BYTES = 262_144
"""Bytes read at once: about 2,400 lines, ten milliseconds of parsing."""
FDS_MAX = 256
"""Descriptors kept open. Beyond it the one that was not read for longest is closed, and opened again when it is needed."""
ORPHAN_FDS_MAX = 64
"""Descriptors kept open of files that were renamed out of sight or deleted."""
ARCHIVES_OPEN_MAX = 4
"""Archives being unpacked at once; one that is closed in between is unpacked from its beginning again."""
RETIRED_MAX = 1_000
"""Streams remembered after their file went out of sight, so that a disk that is mounted again is not read twice."""
RENAMED_KEEP_S = 3_600.0
"""A file renamed out of sight is looked at this long: a writer that was not told of the rotation writes there."""
STUCK_WAIT_S = 15.0
STUCK_TRIES = 2
"""Younger files of a family wait for an older one that cannot be read, so long and for so many attempts; then they are read, and its
lines come late. One that stays unreadable must not keep a whole family from being read."""

Id = tuple[int, int]


def _hash(data: bytes) -> str:
    return blake2b(data, digest_size=8).hexdigest()


class Replaced(Exception):
    """The inode holds another content than what was read before."""


class Shortened(Exception):
    """The end of the file was cut off, what stands before is the same."""


class Tail:
    """A stream of bytes and how far it was read."""

    __slots__ = (
        "due", "gap", "gone_at", "grew_at", "head", "held_since", "id", "leftover", "memory", "mtime_ns", "offset", "path", "seen",
        "size", "state", "stuck_since", "stuck_tries",
    )  # fmt: skip

    def __init__(self, path: str, id_: Id) -> None:
        self.path = path
        self.id = id_
        self.offset = 0
        self.head = b""
        self.memory: dict[str, Any] = {}
        self.size = 0
        self.mtime_ns = 0
        self.seen = (-1, -1)  # size and mtime when it was last read to the end
        self.due = False
        self.gone_at: float | None = None
        self.grew_at = 0.0
        self.held_since: float | None = None
        self.leftover = False
        self.gap: dict[str, Any] | None = None
        self.stuck_since = 0.0
        self.stuck_tries = 0
        self.state: dict[str, Any] = {"path": path, "dev": id_[0], "ino": id_[1], "offset": 0}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> "Tail":
        """The tail of a stored state. Raises KeyError, TypeError, ValueError where it is none."""
        tail = cls(str(state["path"]), (int(state["dev"]), int(state["ino"])))
        tail.offset = int(state["offset"])
        tail.memory = dict(state.get("memory", {}))
        tail.state = dict(state)
        return tail

    @property
    def head_bytes(self) -> int:
        return int(self.state.get("head_bytes", 0))

    def is_head(self, head: bytes) -> bool:
        """Whether a file that begins with these bytes may be this one. A stream of which nothing was read fits any."""
        n = self.head_bytes
        if self.head:
            return head.startswith(self.head)
        return n == 0 or (len(head) >= n and _hash(head[:n]) == self.state["head"])

    def advance(self, offset: int, head: bytes, last: bytes) -> None:
        """The lines up to `offset` were handed on. `last` is what stands before it."""
        self.offset = offset
        n = min(HEAD_BYTES, offset, len(head))
        if n > len(self.head):
            self.head = head[:n]
            self.state["head_bytes"] = n
            self.state["head"] = _hash(self.head)
        if last:
            last = last[-HEAD_BYTES:]
            self.state["last_bytes"] = len(last)
            self.state["last"] = _hash(last)
        self.state["offset"] = offset
        self.state["path"] = self.path
        if self.memory:
            self.state["memory"] = self.memory
        else:
            self.state.pop("memory", None)

    def skip(self, n: int) -> None:
        """Note that an overlong line is being passed over: `n` of its bytes so far; 0 at its end."""
        if n:
            self.state["skipped"] = n
        else:
            self.state.pop("skipped", None)

    @property
    def skipped(self) -> int:
        return int(self.state.get("skipped", 0))

    def restart(self, gap: dict[str, Any] | None) -> None:
        """Begin again at the first byte: the inode holds another file now."""
        self.offset = 0
        self.head = b""
        self.memory = {}
        self.held_since = None
        self.leftover = False
        self.gap = gap
        self.seen = (-1, -1)
        self.due = True
        self.state = {"path": self.path, "dev": self.id[0], "ino": self.id[1], "offset": 0}

    def at(self, offset: int, path: str, id_: Id) -> "Tail":
        """The same stream, where its copy lies."""
        copy = Tail(path, id_)
        copy.state = {**self.state, "path": path, "dev": id_[0], "ino": id_[1], "offset": offset}
        copy.offset, copy.head, copy.memory = offset, self.head, dict(self.memory)
        copy.due = True
        return copy


class Block(NamedTuple):
    """What was read from a tail's offset. `end` is True where the file had no more."""

    data: bytes
    head: bytes
    mtime_us: int
    end: bool


Trouble = OSError | Replaced | Shortened

_SUFFIX = re.compile(r"([.-]\d{1,3}|[.-]\d{4}-?\d\d-?\d\d([-_T.]?\d{2,6})?|-\d{10}|\.(gz|zst|bak|old|copy))+$")


def family_of(path: str) -> str:
    """The name without what a rotation adds: `auth.log` for `auth.log.1` and for `auth.log-20260301.gz`."""
    directory, name = os.path.split(path)
    return os.path.join(directory, _SUFFIX.sub("", name) or name)


def is_archive(path: str) -> bool:
    """Whether a file is compressed, by its name."""
    return path.endswith((".gz", ".zst"))


class Archive:
    """A compressed file, read from front to back. Going back begins anew; nothing is ever unpacked to disk."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._at = 0
        self.head = self.read_at(0, HEAD_BYTES)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def read_at(self, offset: int, n: int) -> bytes:
        """Up to `n` bytes of the content from `offset` on; fewer at its end. Raises OSError."""
        try:
            file = self._file
            if file is None or offset < self._at:
                self.close()
                file = self._file = _opened(self._path)
                self._at = 0
            while self._at < offset:
                passed = len(file.read(min(offset - self._at, BLOCK_BYTES)))
                if not passed:
                    return b""
                self._at += passed
            pieces: list[bytes] = []
            while n > 0:
                piece = file.read(n)
                if not piece:
                    break
                pieces.append(piece)
                n -= len(piece)
                self._at += len(piece)
            return b"".join(pieces)
        except (EOFError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile) as error:
            raise OSError(errno.EIO, f"the archive is damaged or not finished ({error})", self._path) from None


def _opened(path: str) -> IO[bytes]:
    if path.endswith(".gz"):
        return cast("IO[bytes]", gzip.open(path))  # kept open between reads
    file = open(path, "rb")  # noqa: SIM115  # closed with its reader
    reader: IO[bytes] = zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(
        file, read_across_frames=True, closefd=True
    )
    return reader


class Files:
    """All the tails of a source, and their open descriptors."""

    def __init__(self, paths: Iterable[str], *, files_max: int, grace_s: float) -> None:
        self._paths = tuple(paths)
        self._files_max = files_max
        self._grace_s = grace_s
        self.tails: dict[Id, Tail] = {}
        self.retired: OrderedDict[Id, Tail] = OrderedDict()
        self._fds: OrderedDict[Id, int] = OrderedDict()
        self._archives: OrderedDict[Id, Archive] = OrderedDict()
        self.troubles: dict[str, str] = {}
        self.lost: list[Tail] = []
        self.by_path: dict[str, Tail] = {}
        self.stuck: dict[Id, Tail] = {}
        """Those that could not be read when they should have been."""

    def restore(self, states: Iterable[dict[str, Any]]) -> None:
        for state in states:
            try:
                tail = Tail.restored(state)
            except (KeyError, TypeError, ValueError):
                continue
            if state.get("retired"):
                self.retired[tail.id] = tail
            else:
                self.tails[tail.id] = tail

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])
        while self._archives:
            self._archives.popitem()[1].close()

    # What is there

    def _listing(self) -> dict[Id, tuple[str, os.stat_result]]:
        found: dict[Id, tuple[str, os.stat_result]] = {}
        self.troubles = {}
        for pattern in self._paths:
            matched = False
            for path in self._expand(pattern):
                try:
                    status = os.stat(path)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    self.troubles[path] = f"{path}: {error.strerror}"
                    continue
                if not stat.S_ISREG(status.st_mode):
                    self.troubles[path] = f"{path} is not a regular file"
                    continue
                matched = True
                if is_archive(path) and time.time() - status.st_mtime < self._grace_s:
                    continue  # may still be written; one that was made from an old file has that file's time
                if len(found) >= self._files_max and (status.st_dev, status.st_ino) not in found:
                    self.troubles[pattern] = (
                        f"more than files_max = {self._files_max} files; the rest is not read. Narrow the paths or raise files_max"
                    )
                    break
                found.setdefault((status.st_dev, status.st_ino), (path, status))
            if not matched and pattern not in self.troubles:
                self.troubles[pattern] = self._why_nothing(pattern)
        return found

    @staticmethod
    def _expand(pattern: str) -> Iterator[str]:
        return iglob(pattern, recursive=True) if has_magic(pattern) else iter((pattern,))

    @staticmethod
    def _why_nothing(pattern: str) -> str:
        directory = os.path.dirname(pattern) or "."
        while has_magic(directory):
            directory = os.path.dirname(directory) or "."
        if not os.path.isdir(directory):
            return f"{directory}: there is no such directory yet"
        if not os.access(directory, os.R_OK | os.X_OK):
            return f"{directory}: permission denied; add the agent's user to the group that may read it"
        return f"{pattern}: no such file yet"

    def directories(self) -> set[str]:
        """The directories in which something may happen that matters."""
        places = {os.path.dirname(os.path.abspath(tail.path)) for tail in self.tails.values()}
        for pattern in self._paths:
            directory = os.path.dirname(os.path.abspath(pattern))
            if not has_magic(directory):
                places.add(directory)
        return places

    def scan(self, *, start_at_end: bool = False) -> None:
        """Bring the tails up to date with what lies on the disk."""
        listing = self._listing()
        now = time.monotonic()
        kin = self._kin() if any(id_ not in self.tails for id_ in listing) else {}
        for id_, (path, status) in listing.items():
            tail = self.tails.get(id_) or self._back(id_, path)
            if tail is None:
                tail = self._new(id_, path, status, kin)
                if tail is None:
                    continue
                if start_at_end:
                    self._to_end(tail, status.st_size)
            tail.path = path
            tail.gone_at = None
            self._touch(tail, status, now)
        for id_ in [id_ for id_ in self.tails if id_ not in listing]:
            self._missing(self.tails[id_], now)
        for id_ in [id_ for id_ in self.stuck if id_ not in listing and id_ not in self.tails]:
            self.release(self.stuck[id_])
        self.by_path = {tail.path: tail for tail in self.tails.values() if tail.gone_at is None}

    def _kin(self) -> dict[str, list[Tail]]:
        """The streams of which something was read, by family."""
        kin: dict[str, list[Tail]] = {}
        for tail in (*self.tails.values(), *self.retired.values()):
            if tail.head_bytes:
                kin.setdefault(family_of(tail.path), []).append(tail)
        return kin

    def _back(self, id_: Id, path: str) -> Tail | None:
        """The stream of an inode that comes into sight again, unless the inode was given to another file meanwhile."""
        tail = self.retired.pop(id_, None)
        if tail is None or not _may_be(tail, path):
            return None
        tail.state.pop("retired", None)
        tail.seen = (-1, -1)
        self.tails[id_] = tail
        return tail

    @staticmethod
    def _touch(tail: Tail, status: os.stat_result, now: float) -> None:
        if status.st_size != tail.size:
            tail.grew_at = now
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
            self._touch(tail, status, time.monotonic())

    def _new(self, id_: Id, path: str, status: os.stat_result, kin: dict[str, list[Tail]]) -> Tail | None:
        """A file not seen before: a new stream, or a copy of one that is known; None while it is not certain which."""
        family = family_of(path)
        tail = Tail(path, id_)
        # A copy has a name that a rotation gave it.
        may_be_copy = path != family and family in kin
        if may_be_copy and not self._is_readable(tail, status):
            return None
        origin = _origin(path, kin[family]) if may_be_copy else None
        if origin is not None:
            if is_archive(path):
                if origin.id in self._fds and origin.gone_at is not None:
                    return None  # the file that was compressed is still being read to its end
                tail = origin.at(origin.offset, path, id_) if _has_last(origin, path) else tail
            elif status.st_size >= origin.offset:
                if _has_last(origin, path):
                    tail = origin.at(origin.offset, path, id_)
            elif status.st_size <= HEAD_BYTES or time.time() - status.st_mtime < self._grace_s:
                return (
                    None  # still being copied, or too short to tell: it shows when it grows or when the origin is cut
                )
            else:
                tail = origin.at(status.st_size, path, id_)
        self.tails[id_] = tail
        return tail

    def _is_readable(self, tail: Tail, status: os.stat_result) -> bool:
        """Whether it can be told what a new file is. One that cannot be read keeps its place in the order meanwhile."""
        try:
            _read_at(tail.path, 0, 1)
        except OSError as error:
            if is_archive(tail.path):
                return True
            self.troubles[tail.path] = f"{tail.path}: {error.strerror or error}"
            tail.mtime_ns = status.st_mtime_ns
            self.hold(tail)
            return False
        self.release(tail)
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

    def _missing(self, tail: Tail, now: float) -> None:
        """The name is gone: the file was renamed or deleted, or its file system is not there."""
        if tail.gone_at is None:
            tail.gone_at = tail.grew_at = now
            if tail.id not in self._fds and not self._find_renamed(tail):
                if os.path.isdir(os.path.dirname(tail.path) or "."):
                    self._forget(tail, lost=True)
                else:
                    tail.gone_at = None
                return
            if tail.id not in self.tails:
                return  # it goes on as an archive
        fd = self._fds.get(tail.id)
        try:
            status = os.fstat(fd) if fd is not None else os.stat(tail.path)
        except OSError:
            self._forget(tail, lost=tail.seen[0] != tail.offset)
            return
        if (status.st_dev, status.st_ino) != tail.id:
            self._forget(tail, lost=tail.seen[0] != tail.offset)
            return
        self._touch(tail, status, now)
        keep_s = self._grace_s if status.st_nlink == 0 else max(self._grace_s, RENAMED_KEEP_S)
        if not tail.due and not tail.leftover and now - max(tail.gone_at, tail.grew_at) > keep_s:
            self._forget(tail, lost=False)

    def _find_renamed(self, tail: Tail) -> bool:
        for path in (tail.path, *_siblings(tail.path)):
            try:
                status = os.stat(path)
                if (status.st_dev, status.st_ino) == tail.id and _may_be(tail, path):
                    tail.path = path
                    return True
            except OSError:
                continue
        return self._find_compressed(tail)

    def _find_compressed(self, tail: Tail) -> bool:
        """Look for the archive that the file was turned into, and read on there."""
        for path in _siblings(tail.path, archives=True):
            try:
                status = os.stat(path)
            except OSError:
                continue
            id_ = (status.st_dev, status.st_ino)
            if id_ not in self.tails and tail.is_head(_first_bytes(path)) and _has_last(tail, path):
                archived = tail.at(tail.offset, path, id_)
                archived.gone_at = archived.grew_at = time.monotonic()
                self.retired.pop(id_, None)
                self.tails[id_] = archived
                self._forget(tail, lost=False)
                return True
        return False

    def _forget(self, tail: Tail, *, lost: bool) -> None:
        self.tails.pop(tail.id, None)
        self.release(tail)
        self._close(tail.id)
        tail.due = tail.leftover = False
        tail.held_since = None
        tail.state["retired"] = True
        self.retired[tail.id] = tail
        if lost:
            self.lost.append(tail)
        while len(self.retired) > RETIRED_MAX:
            self.retired.popitem(last=False)

    def ended(self, tail: Tail) -> bool:
        """Whether nothing more is expected of a stream: an archive, or rotated away and not grown for the grace."""
        if is_archive(tail.path):
            return True
        return tail.gone_at is not None and time.monotonic() - max(tail.gone_at, tail.grew_at) > self._grace_s

    def hold(self, tail: Tail) -> None:
        """Note that a stream cannot be read just now; it keeps its place in the order for a while."""
        tail = self.stuck.setdefault(tail.id, tail)
        tail.stuck_tries += 1
        if tail.stuck_tries == 1:
            tail.stuck_since = time.monotonic()

    def release(self, tail: Tail) -> None:
        """It was read, or will not be."""
        held = self.stuck.pop(tail.id, None)
        if held is not None:
            held.stuck_tries = 0

    @staticmethod
    def waited_for(tail: Tail) -> bool:
        """Whether younger files still wait for a stream that is held."""
        return tail.stuck_tries < STUCK_TRIES or time.monotonic() - tail.stuck_since < STUCK_WAIT_S

    # Reading

    def _close(self, id_: Id) -> None:
        archive = self._archives.pop(id_, None)
        if archive is not None:
            archive.close()
        fd = self._fds.pop(id_, None)
        if fd is not None:
            os.close(fd)

    def _open(self, tail: Tail) -> int:
        fd = self._fds.get(tail.id)
        if fd is not None:
            self._fds.move_to_end(tail.id)
            return fd
        fd = os.open(tail.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != tail.id:
            os.close(fd)
            raise FileNotFoundError(2, "renamed just now", tail.path)
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
        """A block of each, until there is a block's worth in all."""
        blocks: list[tuple[Tail, Block | Trouble]] = []
        budget = BLOCK_BYTES
        for tail in tails:
            try:
                block = self._block(tail)
            except (OSError, Replaced, Shortened) as error:
                blocks.append((tail, error))
                continue
            blocks.append((tail, block))
            budget -= len(block.data)
            if budget <= 0:
                break
        return blocks

    def _archived(self, tail: Tail) -> Block:
        archive = self._archives.get(tail.id)
        if archive is None:
            archive = self._archives[tail.id] = Archive(tail.path)
            while len(self._archives) > ARCHIVES_OPEN_MAX:
                self._archives.popitem(last=False)[1].close()
        status = os.stat(tail.path)
        if not tail.is_head(archive.head):
            raise Replaced
        tail.head = tail.head or archive.head[: tail.head_bytes]
        data = archive.read_at(tail.offset, BLOCK_BYTES)
        end = len(data) < BLOCK_BYTES
        if end:
            tail.seen = (status.st_size, status.st_mtime_ns)
            tail.state["done"] = True
            self._close(tail.id)
        return Block(data, archive.head, status.st_mtime_ns // 1000, end)

    def _block(self, tail: Tail) -> Block:
        if is_archive(tail.path):
            return self._archived(tail)
        fd = self._open(tail)
        # The status before the data: what is written between the two is then noticed as a change.
        status = os.fstat(fd)
        data = os.pread(fd, BLOCK_BYTES, tail.offset)
        # The head after the data: had the file been cut and filled again before, it shows now.
        head = os.pread(fd, HEAD_BYTES, 0)
        if not tail.is_head(head):
            raise Replaced
        if status.st_size < tail.offset:
            raise Shortened
        if not tail.head and tail.head_bytes:
            tail.head = head[: tail.head_bytes]
        end = len(data) < BLOCK_BYTES
        if end:
            tail.seen = (status.st_size, status.st_mtime_ns)
        return Block(data, head, status.st_mtime_ns // 1000, end)

    def replaced(self, tail: Tail) -> None:
        """The inode of a tail holds another content: find the copy of the old one, then begin the new one at its first byte."""
        recovered = self._adopt_copy(tail)
        gap = {
            "reason": "the file was cut or replaced; lines written just before may be lost",
            "file": family_of(tail.path),
            "events": None,
            "offset": tail.offset,
            "rest_recovered": recovered,
        }
        tail.restart(gap if tail.offset else None)

    def _adopt_copy(self, tail: Tail) -> bool:
        """Look for the copy of what the file was, and read on there. False where there is none that reaches so far."""
        for path in (*_siblings(tail.path), *_siblings(tail.path, archives=True)):
            try:
                status = os.stat(path)
            except OSError:
                continue
            id_ = (status.st_dev, status.st_ino)
            head = _first_bytes(path)
            if id_ == tail.id or not head or _origin(path, (tail,)) is None:
                continue
            if not is_archive(path) and status.st_size < tail.offset:
                # It was copied before the last lines that we read were written: nothing in it is new.
                if id_ not in self.tails:
                    self.retired[id_] = tail.at(status.st_size, path, id_)
                    self.retired[id_].state["retired"] = True
                return False
            if _has_last(tail, path):
                if id_ not in self.tails:
                    orphan = tail.at(tail.offset, path, id_)
                    orphan.gone_at = orphan.grew_at = time.monotonic()
                    self.tails[id_] = orphan
                return True
        return False

    def shortened(self, tail: Tail) -> None:
        """The end of the file was cut off by hand: go on where it ends now."""
        gap = {
            "reason": "the end of the file was cut off; lines written just before may be lost",
            "file": family_of(tail.path),
            "events": None,
            "offset": tail.offset,
        }
        fd = self._open(tail)
        size = os.fstat(fd).st_size
        begin = max(0, size - HEAD_BYTES)
        tail.advance(size, os.pread(fd, HEAD_BYTES, 0), os.pread(fd, size - begin, begin))
        tail.gap = gap
        tail.due = True


def _origin(path: str, kin: Iterable[Tail]) -> Tail | None:
    """The stream that this file begins like, if there is one."""
    head = b""
    for tail in kin:
        head = head or _first_bytes(path)
        if head and (tail.is_head(head) or tail.head.startswith(head)):
            return tail
    return None


def _read_at(path: str, offset: int, n: int) -> bytes:
    """Bytes of the content of a file, compressed or not. Raises OSError."""
    if is_archive(path):
        archive = Archive(path)
        try:
            return archive.read_at(offset, n)
        finally:
            archive.close()
    with open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), n, offset)


def _first_bytes(path: str) -> bytes:
    try:
        return _read_at(path, 0, HEAD_BYTES)
    except OSError:
        return b""


def _may_be(tail: Tail, path: str) -> bool:
    """Whether a file of the same inode may be this stream. Where it cannot be read now, the inode has to do; its head is looked at
    again whenever it is read.
    """
    try:
        return tail.is_head(_read_at(path, 0, HEAD_BYTES))
    except OSError:
        return not is_archive(path)


def _has_last(tail: Tail, path: str) -> bool:
    """Whether a file has the same bytes before the offset as the stream had."""
    n = int(tail.state.get("last_bytes", 0))
    if not n or "last" not in tail.state:
        return False
    try:
        data = _read_at(path, tail.offset - n, n)
    except OSError:
        return False
    return _hash(data) == str(tail.state["last"])


def _siblings(path: str, *, archives: bool = False) -> list[str]:
    """The other files of the same family, newest first; the compressed ones, or the others."""
    family = family_of(path)
    directory = os.path.dirname(path) or "."
    found: list[tuple[float, str]] = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                full = os.path.join(os.path.dirname(path), entry.name)
                if full != path and is_archive(full) is archives and family_of(full) == family and entry.is_file():
                    found.append((entry.stat().st_mtime, full))
    except OSError:
        return []
    return [name for _, name in sorted(found, reverse=True)]
