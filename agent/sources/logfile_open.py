"""Which files a pattern names, and how they are opened: no link is followed out of a pattern, and only regular files are read.

Whoever may write into a watched directory can put a name there that leads elsewhere. So below the last directory that a pattern names
without wildcards, no symbolic link is followed, neither a file nor a directory; a file with several names is read only where its
owner is also the owner of the directory, or nobody but root and the agent may write to the directory.

A path without wildcards was chosen by an administrator, and may be a link, or lead through one: a link is followed where root or the
agent's user made it, or where the maker of the link owns the file it leads to (and so could read it anyway).

A file is then opened without following a link in its last component, and compared with the device and inode that were listed.
"""

# Plain strings: ten thousand paths, twice a second; a pathlib path costs ten times as much.
# ruff: noqa: PTH116, PTH118, PTH119, PTH120

import ctypes
import errno
import fnmatch
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from glob import has_magic

ENTRIES_MAX = 500_000
"""Directory entries looked at for one pattern; the rest is not seen, and reported."""
DEPTH_MAX = 32

Refuse = Callable[[str, str], None]
"""Receives a path and why it is not read."""


def root_of(pattern: str) -> str:
    """Return the last directory that a pattern names without wildcards."""
    directory = os.path.dirname(pattern) or "."
    while has_magic(directory):
        directory = os.path.dirname(directory) or "."
    return directory


def matches(pattern: str, refuse: Refuse) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the regular files that a pattern names, with their status."""
    if not has_magic(pattern):
        yield from _one(pattern, refuse)
        return
    root = root_of(pattern)
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return  # the caller reports a pattern that matches nothing
    parts = tuple(part for part in pattern[len(root) :].split("/") if part)
    yield from _Walk(refuse).below(fd, root, parts, 0)


def _one(path: str, refuse: Refuse) -> Iterator[tuple[str, os.stat_result]]:
    try:
        status = os.stat(path)
        link = _distrusted(path, status)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        refuse(path, f"{path}: {error.strerror}")
        return
    if link is not None:
        refuse(path, f"{path}: the symbolic link {link} was made by another user and is not followed; name its target")
    elif not stat.S_ISREG(status.st_mode):
        refuse(path, f"{path} is not a regular file; remove it from paths")
    else:
        yield path, status


def _distrusted(path: str, target: os.stat_result) -> str | None:
    """Return the first link on the way to a file that was made by somebody who is not trusted with it."""
    trusted = {0, os.geteuid(), target.st_uid}
    at = ""
    for part in path.split("/")[1:]:
        at += f"/{part}"
        status = os.lstat(at)
        if stat.S_ISLNK(status.st_mode) and status.st_uid not in trusted:
            return at
    return None


class _Walk:
    """The directories below a root, by descriptors, so that none can be exchanged for a link on the way."""

    def __init__(self, refuse: Refuse) -> None:
        self._refuse = refuse
        self._left = ENTRIES_MAX

    def below(self, fd: int, path: str, parts: tuple[str, ...], depth: int) -> Iterator[tuple[str, os.stat_result]]:
        """Yield what the rest of a pattern names in a directory; closes its descriptor."""
        try:
            part, rest = parts[0], parts[1:]
            if part == "**" and rest:
                yield from self.below(os.dup(fd), path, rest, depth)
            yield from self._entries(fd, path, part, (parts if part == "**" else rest), depth)
        finally:
            os.close(fd)

    def _entries(
        self, fd: int, path: str, part: str, rest: tuple[str, ...], depth: int
    ) -> Iterator[tuple[str, os.stat_result]]:
        last = not rest or rest == ("**",)
        deeper = bool(rest) and depth < DEPTH_MAX
        directory = os.fstat(fd)
        for entry in self._matching(fd, path, "*" if part == "**" else part):
            full = os.path.join(path, entry.name)
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISDIR(status.st_mode):
                if deeper and (below := self._opened(entry.name, fd)) is not None:
                    yield from self.below(below, full, rest, depth + 1)
            elif not last:
                self._link(full, status, fd, stat.S_IFDIR)
            elif stat.S_ISREG(status.st_mode):
                if status.st_nlink > 1 and not _may_have_linked(status, directory):
                    self._refuse(full, f"{full}: a hard link that another user may have made; it is not read")
                else:
                    yield full, status
            elif not self._link(full, status, fd, stat.S_IFREG):
                self._refuse(full, f"{full} is not a regular file and is not read; narrow the paths")

    def _matching(self, fd: int, path: str, part: str) -> "list[os.DirEntry[str]]":
        wanted = _compiled(part)
        found: list[os.DirEntry[str]] = []
        with os.scandir(fd) as entries:
            for entry in entries:
                self._left -= 1
                if self._left < 0:
                    self._refuse(
                        path, f"{path}: more than {ENTRIES_MAX} entries; the rest is not read. Narrow the paths"
                    )
                    break
                if wanted(entry.name) and (entry.name[0] != "." or part[0] == "."):
                    found.append(entry)
        return sorted(found, key=lambda one: one.name)

    def _link(self, full: str, status: os.stat_result, fd: int, kind: int) -> bool:
        """Report a symbolic link that leads to something of this kind. Returns whether it is a link."""
        if not stat.S_ISLNK(status.st_mode):
            return False
        try:
            target = os.stat(os.path.basename(full), dir_fd=fd)
        except OSError:
            return True
        if stat.S_IFMT(target.st_mode) == kind:
            self._refuse(
                full, f"{full}: a symbolic link, which is not followed below a wildcard; add its target to paths"
            )
        return True

    @staticmethod
    def _opened(name: str, fd: int) -> int | None:
        try:
            return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        except OSError:
            return None


def _may_have_linked(status: os.stat_result, directory: os.stat_result) -> bool:
    """Return whether the directory's writers could read the file without the link."""
    private = directory.st_uid in (0, os.geteuid()) and not directory.st_mode & 0o022
    return private or status.st_uid == directory.st_uid


@lru_cache(1_024)
def _compiled(part: str) -> Callable[[str], re.Match[str] | None]:
    return re.compile(fnmatch.translate(part)).match


def open_regular(path: str, *, follow: bool) -> int:
    """Return a descriptor for reading. Never waits, takes no terminal. Raises OSError."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    return os.open(path, flags if follow else flags | os.O_NOFOLLOW)


# When an inode was made: with it, an inode number that was given to another file is recognised.

_AT_EMPTY_PATH, _AT_SYMLINK_NOFOLLOW = 0x1000, 0x100
_STATX_BTIME = 0x800
_BTIME_AT = 80


@lru_cache(1)
def _statx() -> Callable[..., int] | None:
    try:
        function = ctypes.CDLL(None, use_errno=True).statx
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p]
    return function


def birth_ns(fd: int) -> int:
    """Return when the file of a descriptor was made, in ns since the epoch; 0 where the system does not know."""
    statx = _statx()
    if statx is None:
        return 0
    buffer = ctypes.create_string_buffer(256)
    if statx(fd, b"", _AT_EMPTY_PATH | _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, buffer) != 0:
        return 0
    raw = buffer.raw
    if not int.from_bytes(raw[:4], sys.byteorder) & _STATX_BTIME:
        return 0
    at = raw[_BTIME_AT : _BTIME_AT + 12]
    return int.from_bytes(at[:8], sys.byteorder, signed=True) * 1_000_000_000 + int.from_bytes(at[8:], sys.byteorder)


def data_from(fd: int, offset: int, size: int) -> int:
    """Return where data begins at or after `offset`; `size` where only a hole follows, `offset` where holes are not known."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        return size if error.errno == errno.ENXIO else offset


def hole_from(fd: int, offset: int, size: int) -> int:
    """Return where the data at `offset` ends: at a hole, or at the end."""
    try:
        return os.lseek(fd, offset, os.SEEK_HOLE)
    except OSError:
        return size
