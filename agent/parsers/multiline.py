"""Records of several lines (a stack trace) before another parser: a line that does not begin a record belongs to the one before.

The last record is held back until the next one begins, or until nothing came for the source's `hold_s`.
"""

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from agent.parsers.base import Context, Memory, Parser
from agent.wire.event import Event

RECORD_LINES_MAX = 500
"""A record of more lines is given out in parts."""


class Multiline:
    """Joins lines for the parser behind it."""

    Config: ClassVar[type] = type(None)

    def __init__(self, config: Any, context: Context, *, begin: re.Pattern[str], behind: Parser) -> None:  # noqa: ARG002  # made by the source
        self._begins = begin.search
        self._behind = behind

    def parse(
        self, lines: Sequence[str], *, observed_us: int, reference_us: int, memory: Memory, final: bool = False
    ) -> tuple[list[Event], int]:
        records: list[str] = []
        ends: list[int] = []
        first = 0
        for n in range(1, len(lines) + 1):
            whole = n == len(lines) or self._begins(lines[n]) is not None or n - first >= RECORD_LINES_MAX
            if whole and (n < len(lines) or final or n - first >= RECORD_LINES_MAX):
                records.append("\n".join(lines[first:n]))
                ends.append(n)
                first = n
        events, consumed = self._behind.parse(
            records, observed_us=observed_us, reference_us=reference_us, memory=memory, final=final
        )
        return events, ends[consumed - 1] if consumed else 0
