"""`parse`: what a parser makes of a file, one event a line as JSON. It needs no configuration and no running agent.

Lines are read as a log source reads them: at most LINES_MAX at once, a line longer than LINE_BYTES_MAX is cut and the cut is reported on
standard error. So memory is bounded whatever the length of the file or of its lines.
"""

import argparse
import gzip
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from agent.cli import DONE
from agent.component import ConfigError
from agent.parsers.base import Context, Memory, Parser, zone_of
from agent.sources.logfile import Option, parser_of

LINES_MAX = 4_096
LINE_BYTES_MAX = 262_144
BLOCK_BYTES = 262_144
_GZIP_MAGIC = b"\x1f\x8b"
_encoder = msgspec.json.Encoder()


def parse(options: argparse.Namespace) -> int:
    """Print the events of the file; 0, or 2 where an argument or the file cannot be used."""
    parser = _parser(options)
    try:
        with _opened(options.file) as (stream, reference_us):
            cut = _print_events(parser, stream, reference_us)
    except BrokenPipeError:
        raise
    except (OSError, EOFError) as error:
        what = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{options.file}: cannot be read: {what}", remedy="Name a file that this user may read."
        ) from None
    if cut:
        print(f"linewarden-agent: {cut} lines were longer than {LINE_BYTES_MAX} bytes and were cut", file=sys.stderr)
    return DONE


def _parser(options: argparse.Namespace) -> Parser:
    try:
        given = msgspec.json.decode(options.options, type=dict[str, Option])
    except msgspec.MsgspecError as error:
        remedy = """Write a JSON object, as in --options '{"delimiter": ";"}'."""
        raise ConfigError(f"--options: not usable: {error}", remedy=remedy) from None
    try:
        zone = zone_of(options.time_zone)
        return parser_of(options.parser, given, Context("parse", options.keep_raw, zone))
    except ValueError as error:
        raise ConfigError(f"--{str(error).replace('time_zone', 'time-zone', 1)}") from None


@contextmanager
def _opened(name: str) -> Iterator[tuple[IO[bytes], int]]:
    """The bytes of the file, and a moment that no line is much later than."""
    now_us = time.time_ns() // 1_000
    if name == "-":
        yield sys.stdin.buffer, now_us
        return
    path = Path(name)
    with path.open("rb") as file:
        changed_us = os.fstat(file.fileno()).st_mtime_ns // 1_000
        packed = file.peek(2)[:2] == _GZIP_MAGIC
        stream: IO[bytes] = gzip.open(file) if packed else file  # type: ignore[assignment]  # noqa: SIM115  # the file is closed
        yield stream, min(now_us, changed_us)


def _print_events(parser: Parser, stream: IO[bytes], reference_us: int) -> int:
    """Parse and print to the end of the stream; return how many lines were cut."""
    lines = _Lines(stream)
    memory: Memory = {}
    held: list[str] = []
    while not lines.ended or held:
        held += lines.take()
        while held:
            fed = held[:LINES_MAX]
            # A record of more lines than are held at once is taken as it is.
            final = len(fed) == len(held) if lines.ended else len(held) > LINES_MAX
            events, consumed = parser.parse(
                fed, observed_us=reference_us, reference_us=reference_us, memory=memory, final=final
            )
            sys.stdout.write("".join(f"{_encoder.encode(event).decode()}\n" for event in events))
            del held[:consumed]
            if not consumed and not final:
                break
        sys.stdout.flush()
    return lines.cut


class _Lines:
    """The lines of a stream as they come, each of bounded length."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
        self._rest = b""
        self._skipping = False
        self.ended = False
        self.cut = 0

    def take(self) -> list[str]:
        """The lines that one read completes; at the end of the stream also the last without a newline."""
        if self.ended:
            return []
        block = self._read(BLOCK_BYTES)
        if not block:
            self.ended = True
            last, self._rest = self._rest, b""
            return [_text(last)] if last and not self._skipping else []
        *whole, self._rest = (self._rest + block).split(b"\n")
        if self._skipping and whole:
            whole, self._skipping = whole[1:], False
        lines = [_text(line) for line in whole]
        if self._skipping:
            self._rest = b""
        elif len(self._rest) > LINE_BYTES_MAX:
            lines.append(_text(self._rest))
            self._rest, self._skipping = b"", True
            self.cut += 1
        self.cut += sum(len(line) > LINE_BYTES_MAX for line in whole)
        return lines


def _text(line: bytes) -> str:
    return line[:LINE_BYTES_MAX].removesuffix(b"\r").decode("utf-8", "backslashreplace").replace("\0", "")
