"""Finds the files that rotation, compression and editors made of a stream, and compares contents. Everything here may block.

Comparing takes bounded time: of two files some places are compared, of an archive at most one slice is unpacked in one call. What is not
decided then is `Kin.UNCLEAR`, and goes on at the next call where it stopped.
"""

# Plain strings: ten thousand paths, twice a second; a pathlib path costs ten times as much.
# ruff: noqa: PTH116, PTH118, PTH119

import errno
import itertools
import os
import stat
import time
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from agent.sources.logfile_archive import SLICE_BYTES, Archive, Unfinished
from agent.sources.logfile_identity import Id, Kin, Plain, Tail
from agent.sources.logfile_name import family_of, is_archive, live_of
from agent.sources.logfile_open import birth_ns, open_regular

ARCHIVES_OPEN_MAX = 4
"""Archives being unpacked at once; one that is closed in between is unpacked from its beginning again."""
READ_BYTES = 262_144
SAMPLE_BYTES = 4_096
SAMPLES = 16
SUBDIRECTORIES_MAX = 64
ENTRIES_MAX = 500_000
RECENT_NS = 2_000_000_000


class Sibling(NamedTuple):
    """A file of a family."""

    path: str
    status: os.stat_result

    @property
    def id(self) -> Id:
        return self.status.st_dev, self.status.st_ino


class Directories:
    """The rotated files in directories, by the base name of their live file. A directory is read again when it was changed."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[int, dict[str, list[str]]]] = {}

    def refresh(self, directories: Iterable[str]) -> set[str]:
        """Read the directories that were changed. Returns the base names of live files that have, or had, rotated files there."""
        changed: set[str] = set()
        for directory in directories:
            try:
                mtime_ns = os.stat(directory).st_mtime_ns
            except OSError:
                self._read.pop(directory, None)
                continue
            before = self._read.get(directory)
            # A change right after it was read may have the same time.
            if before is None or before[0] != mtime_ns or time.time_ns() - mtime_ns < RECENT_NS:
                self._read[directory] = mtime_ns, _members(directory)
                changed.update(*(one[1] for one in (before, self._read[directory]) if one))
        return changed

    def members(self, live: str, directories: Iterable[str]) -> list[Sibling]:
        """Return the rotated files of a live file: regular files, no links. The live file itself is not among them."""
        found: dict[Id, Sibling] = {}
        for directory in directories:
            if directory not in self._read:
                self.refresh((directory,))
            for name in self._read.get(directory, (0, {}))[1].get(os.path.basename(live), ()):
                path = os.path.join(directory, name)
                try:
                    status = os.stat(path, follow_symlinks=False)
                except OSError:
                    continue
                if stat.S_ISREG(status.st_mode):
                    found.setdefault((status.st_dev, status.st_ino), Sibling(path, status))
        return list(found.values())


def _members(directory: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    try:
        with os.scandir(directory) as entries:
            for entry in itertools.islice(entries, ENTRIES_MAX):
                for live in {family_of(entry.name), live_of(entry.name)} - {entry.name}:
                    found.setdefault(live, []).append(entry.name)
    except OSError:
        pass
    return found


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
            archive = Archive(path)
            if archive.id != id_:
                archive.close()
                raise FileNotFoundError(errno.ENOENT, "renamed just now", path)
            self._archives[id_] = archive
            while len(self._archives) > ARCHIVES_OPEN_MAX:
                self._archives.popitem(last=False)[1].close()
        self._archives.move_to_end(id_)
        return archive

    def compare(self, tail: Tail, sibling: Sibling) -> tuple[Kin, int]:
        """Return what a file is to a stream, and when the file was made. A file that cannot be read is unclear."""
        try:
            fd = open_regular(sibling.path, follow=False)
            try:
                status = os.fstat(fd)
                if (status.st_dev, status.st_ino) != sibling.id:
                    return Kin.UNCLEAR, 0
                if is_archive(sibling.path):
                    return tail.compare(self.archive(sibling.id, sibling.path), None), birth_ns(fd)
                return tail.compare(Plain(fd), status.st_size), birth_ns(fd)
            finally:
                os.close(fd)
        except Unfinished:
            self.busy = True
            return Kin.UNCLEAR, 0
        except OSError:
            return Kin.UNCLEAR, 0

    def position(self, tail: Tail, sibling: Sibling) -> int | None:
        """Return where a stream goes on in a file that is an edited version of it."""
        try:
            fd = open_regular(sibling.path, follow=False)
        except OSError:
            return None
        try:
            return tail.position_in_edited(fd, os.fstat(fd).st_size)
        except OSError:
            return None
        finally:
            os.close(fd)

    def rebase(self, tail: Tail, sibling: Sibling) -> None:
        """Take a stream's fingerprints from a file that holds an edited version."""
        with suppress(OSError):
            fd = open_regular(sibling.path, follow=False)
            try:
                tail.rebase(fd)
            finally:
                os.close(fd)

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
                data = archive.read_at(at, READ_BYTES)
            except Unfinished:
                break
            if data[: max(0, size - at)] != os.pread(origin, len(data), at):
                self._compared.pop(key, None)
                return None
            at += len(data)
            if len(data) < READ_BYTES:  # its end
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
