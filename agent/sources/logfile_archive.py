"""Compressed log files, read from front to back. Nothing is ever unpacked to disk, and no call unpacks more than a bounded amount.

Bounds: a window or dictionary of more than 128 MiB is refused, like a damaged archive.
"""

# Plain strings: ten thousand paths, twice a second; a pathlib path costs ten times as much.

import errno
import gzip
import lzma
import os
import zlib
from typing import IO, Protocol

import zstandard

SLICE_BYTES = 32 * 1_048_576
"""Content unpacked in one call at the most: about 0.3 s. A position further on takes several calls."""
WINDOW_BYTES_MAX = 2**27
_READ_BYTES = 262_144


class Unfinished(Exception):
    """The position was not reached within one slice; call again."""


class Archive:
    """A compressed file at a position. Going back begins anew, in the same file: its name may be another's by then."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        self._file: _Unpacked | None = None
        self._at = 0
        try:
            status = os.fstat(self._fd)
            self.id = status.st_dev, status.st_ino
            self.head = self.read_at(0, 1_024)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._file = None
        os.close(self._fd)

    def read_at(self, offset: int, n: int) -> bytes:
        """Return up to `n` bytes of the content from `offset` on; fewer at its end. Raises OSError, Unfinished."""
        try:
            file = self._file
            if file is None or offset < self._at:
                os.lseek(self._fd, 0, os.SEEK_SET)
                file = self._file = _unpacked(self._path, open(self._fd, "rb", closefd=False))  # noqa: SIM115  # closed by close()
                self._at = 0
            budget = SLICE_BYTES
            while self._at < offset:
                if budget <= 0:
                    raise Unfinished
                passed = len(file.read(min(offset - self._at, _READ_BYTES)))
                if not passed:
                    return b""
                self._at += passed
                budget -= passed
            pieces: list[bytes] = []
            while n > 0:
                piece = file.read(n)
                if not piece:
                    break
                pieces.append(piece)
                n -= len(piece)
                self._at += len(piece)
            return b"".join(pieces)
        except (
            EOFError,
            zlib.error,
            zstandard.ZstdError,
            gzip.BadGzipFile,
            lzma.LZMAError,
            MemoryError,
            ValueError,
        ) as error:
            raise OSError(errno.EIO, f"the archive is damaged or not finished ({error})", self._path) from None


class _Unpacked(Protocol):
    """What a compressed file holds, from front to back."""

    def read(self, n: int, /) -> bytes: ...


class _Xz:
    """An .xz file with a bound on the memory that its dictionary takes; lzma.open has none."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._unpack = lzma.LZMADecompressor(memlimit=WINDOW_BYTES_MAX)
        self._more = b""

    def read(self, n: int) -> bytes:
        while True:
            if self._unpack.eof:
                self._more = (self._unpack.unused_data or self._file.read(_READ_BYTES)).lstrip(b"\0")
                if not self._more:
                    return b""
                self._unpack = lzma.LZMADecompressor(memlimit=WINDOW_BYTES_MAX)
            if self._unpack.needs_input and not self._more:
                self._more = self._file.read(_READ_BYTES)
                if not self._more:
                    raise EOFError("it ends within a block")
            data = self._unpack.decompress(self._more, n)
            self._more = b""
            if data:
                return data


def _unpacked(path: str, file: IO[bytes]) -> _Unpacked:
    if path.endswith(".gz"):
        return gzip.GzipFile(fileobj=file, mode="rb")
    if path.endswith(".xz"):
        return _Xz(file)
    if path.endswith(".bz2"):
        import bz2

        return bz2.BZ2File(file)
    return zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX).stream_reader(
        file, read_across_frames=True, closefd=False
    )
