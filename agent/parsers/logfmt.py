"""`logfmt`: `time=2026-03-01T10:00:00Z level=info msg="some text" user=anna` on a line.

A writer quotes what holds a blank or `=`. Where a key occurs twice, some text was not quoted and may hold pairs of a peer's choice: which
is the true one is not known, so the key keeps all its values in `data` and fills no field of the event.
"""

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from agent.parsers.base import unknown
from agent.parsers.records import LineParser, RecordOptions
from agent.wire.event import Event

VALUES_MAX = 20
"""Values of a key that occurs more than once; more are left out."""
_PAIR = re.compile(r"([^\s=\"]+)(?:=(?:\"((?:[^\"\\]|\\.)*)\"|([^\s\"]*)))?(?:\s+|$)")
_ESCAPE = re.compile(r"\\(.)")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,14})(\.\d{1,15})?")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


def number_or_text(text: str) -> int | float | str:
    """A plain number as a number. `007` and `1e5` stay text, for they may be names."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return text
    return float(text) if match[1] else int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogfmtConfig(RecordOptions):
    """Nothing of its own."""


class LogfmtParser(LineParser):
    """Reads lines of pairs."""

    Config: ClassVar[type] = LogfmtConfig

    def one(self, line: str, observed_us: int) -> Event:
        """See LineParser."""
        record: dict[str, Any] = {}
        doubled: set[str] = set()
        text = line.strip()
        at = 0
        while at < len(text):
            pair = _PAIR.match(text, at)
            if pair is None:
                break
            at = pair.end()
            key = pair[1]
            value: Any = True
            if pair[2] is not None:
                value = _ESCAPE.sub(lambda escape: _ESCAPES.get(escape[1], escape[1]), pair[2])
            elif pair[3] is not None:
                value = number_or_text(pair[3])
            if key in record and value is not True:
                several = record[key] if key in doubled else [record[key]]
                doubled.add(key)
                value = [*several, value][:VALUES_MAX]
            if key not in record or value is not True:
                record[key] = value
        # Prose is words without a value.
        pairs = sum(value is not True for value in record.values())
        if at < len(text) or not pairs or pairs * 2 < len(record):
            return unknown(line, observed_us, observed_us, self._source)
        return self._records.event(record, line, observed_us)
