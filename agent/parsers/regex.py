"""`regex`: a pattern of the user's own, whose named groups are the fields.

A pattern can take exponential time on a line made for it, and Python's engine cannot be stopped. So lines are cut at `chars_max` before
they are matched, a pattern in which one unbounded repetition stands inside another is refused, and `check` tries the pattern on lines
made to hurt.
"""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from re import _parser  # type: ignore[attr-defined, unused-ignore]  # the only way to the structure of a pattern
from typing import Annotated, Any, ClassVar, Literal

import annotated_types

from agent.parsers.base import Context, unknown
from agent.parsers.logfmt import number_or_text
from agent.parsers.records import LineParser, RecordOptions
from agent.wire.event import Event

_REPEATS = frozenset({"MAX_REPEAT", "MIN_REPEAT"})
_UNBOUNDED = 64
"""A repetition of more than this counts as unbounded."""
_TRIAL_S_MAX = 0.05
_TRIAL_CHARS = (*range(12, 42, 2), 64, 128, 256, 512, 1_024, 2_048, 4_096)
"""In small steps, so that a pattern of exponential time is found out before it takes minutes."""


def nested_repetition(pattern: str) -> bool:
    """Whether an unbounded repetition stands inside another: `(a+)+`."""

    def walk(items: Iterable[Any], inside: bool) -> bool:  # noqa: FBT001  # a local walk
        for op, value in items:
            name = str(op)
            if name in _REPEATS:
                unbounded = value[1] > _UNBOUNDED
                if (inside and unbounded) or walk(value[2], inside or unbounded):
                    return True
            elif name == "BRANCH":
                if any(walk(branch, inside) for branch in value[1]):
                    return True
            elif name == "SUBPATTERN":
                if walk(value[3], inside):
                    return True
            elif name in ("ASSERT", "ASSERT_NOT") and walk(value[1], inside):
                return True
            # POSSESSIVE_REPEAT and ATOMIC_GROUP never go back, so that what is inside them does no harm.
        return False

    return walk(_parser.parse(pattern), False)  # noqa: FBT003


@dataclass(frozen=True, slots=True, kw_only=True)
class RegexConfig(RecordOptions):
    """pattern: with named groups; it is searched for unless `whole` asks for the whole line. chars_max: what is matched of a line."""

    pattern: str = ""
    whole: bool = False
    ignore_case: bool = False
    outcome: Literal["", "success", "failure"] = ""
    chars_max: Annotated[int, annotated_types.Ge(64), annotated_types.Le(65_536)] = 4_096

    def __post_init__(self) -> None:
        RecordOptions.__post_init__(self)
        if not self.pattern:
            raise ValueError("pattern: the regex parser needs a pattern with named groups, like (?P<actor>\\S+)")
        try:
            compiled = re.compile(self.pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"pattern: {error}") from None
        if not compiled.groupindex:
            raise ValueError("pattern: it has no named group; name what is to be kept, like (?P<actor>\\S+)")
        if nested_repetition(self.pattern):
            raise ValueError(
                "pattern: an unbounded repetition stands inside another, which can take for ever; bound one, or make it possessive: (a++)+"
            )

    def problems(self) -> Iterable[tuple[str, str, str]]:
        """Try the pattern on lines made to hurt it."""
        compiled = re.compile(self.pattern)
        for seed in sorted({*"a1 .:/-=[", '"', *self.pattern}):
            for n in (n for n in _TRIAL_CHARS if n <= self.chars_max):
                begin = time.perf_counter()
                compiled.search(seed * n + "\0")
                took_s = time.perf_counter() - begin
                if took_s > _TRIAL_S_MAX:
                    remedy = "Anchor it with ^, and replace .* by what may stand there."
                    yield "pattern", f"it takes {took_s:.2f} s on a line of {n} times {seed!r}", remedy
                    return


class RegexParser(LineParser):
    """Reads lines by the user's pattern."""

    Config: ClassVar[type] = RegexConfig

    def __init__(self, config: RegexConfig, context: Context) -> None:
        pattern = re.compile(config.pattern, re.IGNORECASE if config.ignore_case else 0)
        self._match = pattern.fullmatch if config.whole else pattern.search
        self._outcome = config.outcome or None
        self._chars_max = config.chars_max
        super().__init__(config, context)

    def one(self, line: str, observed_us: int) -> Event:
        """See LineParser."""
        match = self._match(line[: self._chars_max])
        if match is None:
            return unknown(line, observed_us, observed_us, self._source)
        record: dict[str, Any] = {
            name: number_or_text(value) for name, value in match.groupdict().items() if value is not None
        }
        if self._outcome is not None:
            record.setdefault("outcome", self._outcome)
        return self._records.event(record, line, observed_us)
