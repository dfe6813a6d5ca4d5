"""Write files so that they belong to the user of the folder that they are written to, whoever runs the command.

An administrator runs `enroll`, `trust` or `tls create` as root; the service that reads the files afterwards is not root. A file made by
root is therefore given to the owner of its folder before it has any content, with exactly the mode that is asked for (whatever the umask).

The owner of a folder can put a symbolic link anywhere in it, also while root works there. So root opens a folder step by step from `/`,
follows a link only out of folders that nobody but root can write to, and from then on uses the open descriptor and never the path again.
Every file is made under another name, on the disk, and then renamed: it is there whole or not at all.
"""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

ROOT = 0
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Owner(NamedTuple):
    """User and group, by number."""

    uid: int
    gid: int


def write(path: Path, content: bytes, *, mode: int = 0o600, owner: Owner | None = None) -> None:
    """Replace a file durably. As root it becomes the folder owner's, or `owner`'s where that is given. Raises OSError."""
    with _pinned(path.parent) as folder, _draft(folder, path.name, mode, owner) as file:
        _put(file, content)


@contextmanager
def replacing(path: Path, *, mode: int = 0o600) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name when the block ends without an error. A device or pipe is written as it is."""
    with _pinned(path.parent) as folder:
        if _is_special(folder, path.name):
            with path.open("wb") as out:
                yield out
            return
        with _draft(folder, path.name, mode, None) as descriptor, os.fdopen(os.dup(descriptor), "wb") as out:
            yield out


def make_once(path: Path, content: bytes, *, mode: int = 0o600) -> bool:
    """Make a file durably where there is none; of two that do so at once the first wins. Return whether it was this one."""
    with _pinned(path.parent) as folder:
        name = f".{path.name}.{secrets.token_hex(8)}"
        file = os.open(name, _NEW, 0o600, dir_fd=folder)
        try:
            give(file, folder)
            os.fchmod(file, mode)
            _put(file, content)
            os.fsync(file)
            with suppress(FileExistsError):
                os.link(name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
                return True
        finally:
            os.close(file)
            os.unlink(name, dir_fd=folder)
            _sync(folder)
    return False


def make_folder(path: Path, *, mode: int = 0o700, owner: Owner | None = None) -> None:
    """Make a folder and those above it that are missing; as root each becomes its parent's owner's, the last one `owner`'s if given."""
    missing: list[Path] = []
    at = path.absolute()
    while not at.is_dir() and at.parent != at:
        missing.append(at)
        at = at.parent
    for each in reversed(missing):
        with _pinned(each.parent) as parent:
            try:
                os.mkdir(each.name, mode=0o700, dir_fd=parent)
            except FileExistsError:
                continue
            with _opened(each.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, parent) as made:
                os.fchmod(made, mode)
                give(made, parent, owner if each == missing[0] else None)
            _sync(parent)


def open_kept(path: Path, *, mode: int = 0o600, flags: int = os.O_RDWR) -> int:
    """Open a file that is not replaced, a lock or what is appended to; made where there is none. Raises OSError."""
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW
    with _pinned(path.parent) as folder:
        try:
            file = os.open(path.name, flags | os.O_CREAT | os.O_EXCL, mode, dir_fd=folder)
        except FileExistsError:
            return os.open(path.name, flags, dir_fd=folder)
        os.fchmod(file, mode)
        give(file, folder)
        return file


def read(path: Path, bytes_max: int) -> tuple[bytes, int]:
    """Return content and mode of a regular file, which may not be a symbolic link. Raises OSError."""
    with (
        _pinned(path.parent) as folder,
        _opened(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, folder) as file,
    ):
        mode = os.fstat(file).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(22, "not a file", str(path))
        with os.fdopen(os.dup(file), "rb") as reader:
            return reader.read(bytes_max), mode


def rename(folder: Path, old: str, new: str) -> None:
    """Rename within a folder, on the disk when it returns. Raises OSError."""
    with _pinned(folder) as pinned:
        os.rename(old, new, src_dir_fd=pinned, dst_dir_fd=pinned)
        _sync(pinned)


def give(file: int, folder: int, owner: Owner | None = None) -> None:
    """As root: give an open file to the owner of an open folder, or to `owner`. As anybody else: nothing."""
    if os.geteuid() != ROOT:
        return
    if owner is None:
        there = os.fstat(folder)
        owner = Owner(there.st_uid, there.st_gid)
    os.fchown(file, *owner)


def owner_of(folder: Path) -> Owner | None:
    """Return the owner of a folder that is not root's; None where it is root's or is not there."""
    with suppress(OSError), _pinned(folder) as pinned:
        there = os.fstat(pinned)
        return Owner(there.st_uid, there.st_gid) if there.st_uid != ROOT else None
    return None


@contextmanager
def _pinned(path: Path) -> Iterator[int]:
    """Open a folder; as root without following links that another user may have made."""
    at = os.open(path if os.geteuid() != ROOT else "/", _FOLDER)
    try:
        if os.geteuid() == ROOT:
            for part in path.absolute().parts[1:]:
                below = _step(at, part)
                os.close(at)
                at = below
        yield at
    except OSError as error:
        # What is opened by its name in an open folder is told with the folder.
        if error.filename is None or not Path(error.filename).is_absolute():
            error.filename = str(path)
        raise
    finally:
        os.close(at)


def _step(at: int, part: str) -> int:
    here = os.fstat(at)
    safe = here.st_uid == ROOT and not here.st_mode & _OTHERS_WRITE
    return os.open(part, _FOLDER | (0 if safe else os.O_NOFOLLOW), dir_fd=at)


@contextmanager
def _opened(name: str, flags: int, folder: int) -> Iterator[int]:
    file = os.open(name, flags | os.O_CLOEXEC, dir_fd=folder)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def _draft(folder: int, name: str, mode: int, owner: Owner | None) -> Iterator[int]:
    draft = f".{name}.new"
    with suppress(FileNotFoundError):
        os.unlink(draft, dir_fd=folder)
    file = os.open(draft, _NEW, 0o600, dir_fd=folder)
    try:
        kept, readable = _before(folder, name) if owner is None else (owner, 0)
        give(file, folder, kept)
        os.fchmod(file, mode | readable)
        yield file
        os.fsync(file)
        os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft, dir_fd=folder)
        raise
    finally:
        os.close(file)
    _sync(folder)


def _before(folder: int, name: str) -> tuple[Owner | None, int]:
    """Whose a file of root's folder was, and whether its group might read it: an administrator gave it to a service, and it stays so."""
    if os.geteuid() != ROOT or os.fstat(folder).st_uid != ROOT:
        return None, 0
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None, 0
    given = stat.S_ISREG(found.st_mode) and (found.st_uid, found.st_gid) != (ROOT, ROOT)
    return (Owner(found.st_uid, found.st_gid), found.st_mode & stat.S_IRGRP) if given else (None, 0)


def _put(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]


def _sync(folder: int) -> None:
    """Names in a folder are on the disk. What was opened as a place alone (O_PATH) is opened once more for it."""
    with _opened(".", os.O_RDONLY | os.O_DIRECTORY, folder) as here:
        os.fsync(here)


def _is_special(folder: int, name: str) -> bool:
    try:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode)
