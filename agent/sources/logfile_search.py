"""Finds the files that rotation, compression and editors made of a stream, and compares contents. Everything here may block.

Comparing takes bounded time: of two files some places are compared, of an archive at most one slice is unpacked in one call. What is not
decided then is `Kin.UNCLEAR`, and goes on at the next call where it stopped.
"""

# Plain strings, as in logfile_tail.py.
# ruff: noqa: PTH112, PTH116, PTH118, PTH208

import os
import stat
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from agent.sources.logfile_archive import SLICE_BYTES, Archive, Unfinished
from agent.sources.logfile_identity import Id, Kin, Plain, Tail
from agent.sources.logfile_name import is_archive, is_member
from agent.sources.logfile_open import birth_ns, open_regular

ARCHIVES_OPEN_MAX = 4
"""Archives being unpacked at once; one that is closed in between is unpacked from its beginning again."""
SAMPLE_BYTES = 4_096
SAMPLES = 16
SUBDIRECTORIES_MAX = 64
ENTRIES_MAX = 100_000


class Sibling(NamedTuple):
    """A file of a family."""

    path: str
    status: os.stat_result

    @property
    def id(self) -> Id:
        return self.status.st_dev, self.status.st_ino


def siblings(live: str, directories: Iterable[str]) -> list[Sibling]:
    """Return the rotated files of a live file in these directories: regular files, no links. The live file itself is not among them."""
    base = os.path.basename(live)
    found: dict[Id, Sibling] = {}
    for directory in directories:
        try:
            with os.scandir(directory) as entries:
                for n, entry in enumerate(entries):
                    if n >= ENTRIES_MAX:
                        break
                    if not is_member(entry.name, base):
                        continue
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        sibling = Sibling(os.path.join(directory, entry.name), status)
                        found.setdefault(sibling.id, sibling)
        except OSError:
            continue
    return list(found.values())


def subdirectories(directory: str) -> list[str]:
    """Return the directories in a directory, no links: rotation may move files to one of them ("olddir")."""
    try:
        with os.scandir(directory) as entries:
            found = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return sorted(found)[:SUBDIRECTORIES_MAX]


class Contents:
    """Compares files with streams. Archives stay open between calls, since unpacking begins at the front."""

    def __init__(self) -> None:
        self._archives: OrderedDict[Id, Archive] = OrderedDict()
        self._compared: OrderedDict[tuple[Id, Id], int] = OrderedDict()
        """Bytes of an archive found equal with those of a file so far."""
        self.busy = False
        """A comparison stopped at its bound and has to be called again."""

    def close(self) -> None:
        while self._archives:
            self._archives.popitem()[1].close()

    def drop(self, id_: Id) -> None:
        archive = self._archives.pop(id_, None)
        if archive is not None:
            archive.close()

    def archive(self, id_: Id, path: str) -> Archive:
        """Return the open archive. Raises OSError."""
        archive = self._archives.get(id_)
        if archive is None:
            archive = self._archives[id_] = Archive(path)
            while len(self._archives) > ARCHIVES_OPEN_MAX:
                self._archives.popitem(last=False)[1].close()
        self._archives.move_to_end(id_)
        return archive

    def compare(self, tail: Tail, sibling: Sibling) -> tuple[Kin, int]:
        """Return what a file is to a stream, and when the file was made. A file that cannot be read is unclear."""
        try:
            if is_archive(sibling.path):
                return tail.compare(self.archive(sibling.id, sibling.path), None), 0
            fd = open_regular(sibling.path, follow=False)
            try:
                status = os.fstat(fd)
                if (status.st_dev, status.st_ino) != sibling.id:
                    return Kin.UNCLEAR, 0
                return tail.compare(Plain(fd), status.st_size), birth_ns(fd)
            finally:
                os.close(fd)
        except Unfinished:
            self.busy = True
            return Kin.UNCLEAR, 0
        except OSError:
            return Kin.UNCLEAR, 0

    def copied(self, origin: int, tail: Tail, sibling: Sibling) -> int | None:
        """Return the size of the content of a file that is a copy of an open one, or -1 while that is not decided; None: it is none.

        `origin` is the descriptor of the stream's file, which is intact. Raises OSError.
        """
        size = os.fstat(origin).st_size
        if is_archive(sibling.path):
            return self._copied_archive(origin, tail.id, size, sibling)
        fd = open_regular(sibling.path, follow=False)
        try:
            status = os.fstat(fd)
            n = min(status.st_size, size)
            if (status.st_dev, status.st_ino) != sibling.id or not n:
                return -1
            return status.st_size if _same(origin, fd, n) else None
        finally:
            os.close(fd)

    def _copied_archive(self, origin: int, origin_id: Id, size: int, sibling: Sibling) -> int | None:
        archive = self.archive(sibling.id, sibling.path)
        key = origin_id, sibling.id
        at = self._compared.get(key, 0)
        begin = at
        while at - begin < SLICE_BYTES:
            try:
                data = archive.read_at(at, 262_144)
            except Unfinished:
                break
            if data[: max(0, size - at)] != os.pread(origin, len(data), at):
                self._compared.pop(key, None)
                return None
            at += len(data)
            if len(data) < 262_144:  # noqa: PLR2004  # its end
                self._compared.pop(key, None)
                return at
        self._compared[key] = at
        while len(self._compared) > ARCHIVES_OPEN_MAX:
            self._compared.popitem(last=False)
        self.busy = True
        return -1


def _same(a: int, b: int, n: int) -> bool:
    """Return whether two files are equal at the beginning, the end and some places of their first `n` bytes."""
    step = max(SAMPLE_BYTES, n // SAMPLES)
    places = [*range(0, max(1, n - SAMPLE_BYTES), step), max(0, n - SAMPLE_BYTES)]
    return all(
        os.pread(a, min(SAMPLE_BYTES, n - at), at) == os.pread(b, min(SAMPLE_BYTES, n - at), at) for at in places
    )
