"""Compressed log files, read from front to back. Nothing is ever unpacked to disk, and no call unpacks more than a bounded amount.

Bounds: a window or dictionary of more than 128 MiB is refused, like a damaged archive.
"""

# Plain strings: ten thousand paths, twice a second; a pathlib path costs ten times as much.
# ruff: noqa: PTH123

import errno
import gzip
import lzma
import zlib
from typing import IO, cast

import zstandard

SLICE_BYTES = 32 * 1_048_576
"""Content unpacked in one call at the most: about 0.3 s. A position further on takes several calls."""
WINDOW_BYTES_MAX = 2**27
_READ_BYTES = 262_144


class Unfinished(Exception):
    """The position was not reached within one slice; call again."""


class Archive:
    """A compressed file at a position. Going back begins anew."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._at = 0
        self.head = self.read_at(0, 1_024)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def read_at(self, offset: int, n: int) -> bytes:
        """Return up to `n` bytes of the content from `offset` on; fewer at its end. Raises OSError, Unfinished."""
        try:
            file = self._file
            if file is None or offset < self._at:
                self.close()
                file = self._file = _opened(self._path)
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


class _Xz:
    """An .xz file with a bound on the memory that its dictionary takes; lzma.open has none."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb")  # noqa: SIM115  # closed by close()
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

    def close(self) -> None:
        self._file.close()


def _opened(path: str) -> IO[bytes]:
    if path.endswith(".gz"):
        return cast("IO[bytes]", gzip.open(path))  # kept open between reads
    if path.endswith(".xz"):
        return cast("IO[bytes]", _Xz(path))
    if path.endswith(".bz2"):
        import bz2

        return cast("IO[bytes]", bz2.open(path))
    file = open(path, "rb")  # noqa: SIM115  # closed with its reader
    reader: IO[bytes] = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX).stream_reader(
        file, read_across_frames=True, closefd=True
    )
    return reader
