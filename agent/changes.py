"""Log each change of state once: what began to fail and what works again, not every attempt.

A condition is something that is wrong now, by a key: a source, a part of a source, the collector. The look once a second compares the
conditions with what was logged last. What began is one line, with the next try and the remedy; what ended is one line, with how long it
lasted. What begins and ends between two looks is no line.

Bounds: a key has LINES_MAX lines, then one each REFILL_S; all keys together have ALL_LINES_MAX, then one each ALL_REFILL_S. A line that
is over the bound is not lost: the state is logged as soon as there is room, with how often it changed meanwhile. PARTS_MAX parts of one
source that fail at once are named, the others counted.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

LINES_MAX, REFILL_S = 4, 300.0
ALL_LINES_MAX, ALL_REFILL_S = 100, 2.0
PARTS_MAX = 5
FORGET_S = 3_600.0

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is wrong now. `kind` makes two reasons of one key different states; the text may change within one."""

    text: str
    """For the line when it begins: what, the next try, the remedy."""
    ended: str
    """For the line when it is over."""
    kind: str = ""
    level: int = logging.WARNING


class _Tokens:
    """A bound on lines: `size` at once, one more each `refill_s`."""

    def __init__(self, size: int, refill_s: float, now_s: float) -> None:
        self._size, self._refill_s = float(size), refill_s
        self._left, self._at_s = float(size), now_s

    def any(self, now_s: float) -> bool:
        self._left = min(self._size, self._left + (now_s - self._at_s) / self._refill_s)
        self._at_s = now_s
        return self._left >= 1

    def take(self) -> None:
        self._left -= 1


@dataclass(slots=True)
class _Known:
    tokens: _Tokens
    now: Condition | None = None
    since_s: float = 0.0
    logged: Condition | None = None
    """What the last line said; None: that it works."""
    changes: int = 0
    """Since the last line."""
    last_s: float = 0.0


class Changes:
    """Compares and logs; `look` is called about once a second."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._known: dict[Key, _Known] = {}
        self._all = _Tokens(ALL_LINES_MAX, ALL_REFILL_S, clock())

    def look(self, conditions: Mapping[Key, Condition]) -> None:
        """Log what began, changed its kind, or ended since the last look."""
        now_s = self._clock()
        for key, condition in conditions.items():
            self._note(key, condition, now_s)
        for key in [key for key in self._known if key not in conditions]:
            self._note(key, None, now_s)
        named: dict[Key, int] = {}
        for key, known in list(self._known.items()):
            if _kind(known.now) != _kind(known.logged):
                self._line(key, known, named, now_s)
            elif known.now is None and now_s - known.last_s > FORGET_S:
                del self._known[key]
        for group, count in named.items():
            if count > PARTS_MAX:
                text = "%s: %d more parts changed; linewarden-agent status shows each"
                self._log.warning(text, " ".join(group), count - PARTS_MAX)

    def forget(self, *key: str) -> None:
        """Forget a key and what is below it, without a line: what was configured otherwise did not begin to work."""
        for each in [each for each in self._known if each[: len(key)] == key]:
            del self._known[each]

    def _note(self, key: Key, condition: Condition | None, now_s: float) -> None:
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = _Known(_Tokens(LINES_MAX, REFILL_S, now_s))
        if _kind(known.now) != _kind(condition):
            known.changes += 1
            known.last_s = now_s
            if known.now is None:
                known.since_s = now_s
        known.now = condition

    def _line(self, key: Key, known: _Known, named: dict[Key, int], now_s: float) -> None:
        group = key[:2]
        if len(key) > len(group):
            named[group] = named.get(group, 0) + 1
            if named[group] > PARTS_MAX:
                known.logged, known.changes = known.now, 0
                return
        if not (known.tokens.any(now_s) and self._all.any(now_s)):
            return
        known.tokens.take()
        self._all.take()
        meanwhile = f" (changed {known.changes} times since the last line)" if known.changes > 1 else ""
        if known.now is not None:
            self._log.log(known.now.level, "%s%s", known.now.text, meanwhile)
        elif known.logged is not None:
            self._log.info("%s, after %s%s", known.logged.ended, span(now_s - known.since_s), meanwhile)
        known.logged, known.changes = known.now, 0


def _kind(condition: Condition | None) -> str | None:
    return None if condition is None else condition.kind


def span(seconds: float) -> str:
    """A length of time, in the unit that fits."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
