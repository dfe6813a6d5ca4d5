"""Bounds on JSON from outside: ours, the same at every entry of agent and collector, whatever interpreter or database runs them.

Python refuses integers of more than 4,300 digits and nesting beyond its stack; msgspec and PostgreSQL have other limits, and each version
has its own. What one of them takes and the next one refuses stops the next one. So a value that passes here is one that all of them take:

    DEPTH_MAX           objects and lists within each other
    NUMBER_CHARS_MAX    characters of a number, written with an exponent or without; and it is finite as a double
    ITEMS_MAX           members and elements of a decoded value, where a value is cut

`loads` decodes text from outside, `excess` names the bound that encoded JSON exceeds, `within` cuts a Python value before it is encoded,
`integer` reads a whole number of a query. Pure functions; strings are bounded by the length of what they came in.
"""

import math
import re
from collections.abc import Sequence
from itertools import repeat
from typing import Any

import msgspec

DEPTH_MAX = 64
NUMBER_CHARS_MAX = 320
ITEMS_MAX = 65_536
_BITS_MAX = 1_023
_EXPONENT_MIN = -340
"""Of the least double and all its digits."""
_DEEP_BYTES_MIN = 2 * DEPTH_MAX + 2
"""Shorter text cannot be nested deeper than DEPTH_MAX."""
_RUN = 200
_STRIDE = 25
_DIGITS_RUN = b"0" * (_RUN // _STRIDE - 1)
_TOO_DEEP = f"nested deeper than {DEPTH_MAX} levels"
_TOO_LONG = f"a number of more than {NUMBER_CHARS_MAX} characters, or beyond the range of a double"
_TOO_MANY = f"more than {ITEMS_MAX} members"

_SHAPES = bytes(0x30 if chr(i).isdecimal() and i < 0x80 else 0x65 if i in b"eE" else 0x20 for i in range(256))  # noqa: PLR2004
_LARGE = re.compile(rb"(?:^|[\s:,\[])-?[0-9.]+[eE][+-]?[0-9]{3}|[0-9]{%d}" % _RUN)
_LONG_DIGITS = re.compile(rb"[0-9]{%d}" % _RUN)
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]|-?[0-9][0-9.eE+-]*', re.DOTALL)


class OutOfBounds(ValueError):
    """A value beyond one of the bounds. The text names it."""


def has_long_digits(body: bytes) -> bool:
    """Return whether some 200 digits follow each other in a line: a quick look over many lines at once, then an exact one.

    The quick look alone takes the salts of personal lines for digits, in every batch.
    """
    return _DIGITS_RUN in body[::_STRIDE].translate(_SHAPES) and _LONG_DIGITS.search(body) is not None


def is_deep(value: bytes) -> bool:
    """Return whether a JSON text may be nested too deep: a quick look, false only where it is not."""
    return len(value) >= _DEEP_BYTES_MIN and value.count(b"[") + value.count(b"{") > DEPTH_MAX


def any_deep(lines: Sequence[bytes]) -> bool:
    """Return whether one of many JSON texts may be nested too deep: false only where none is."""
    most = sum(max(map(bytes.count, lines, repeat(bracket)), default=0) for bracket in (b"[", b"{"))
    return most > DEPTH_MAX and any(map(is_deep, lines))


def excess(value: bytes) -> str | None:
    """Return which bound a JSON text exceeds, in words, or None."""
    # Most texts end here, and ingest looks at every one.
    suspicious = is_deep(value) or has_long_digits(value) or b"0e000" in value.translate(_SHAPES, b"+-.")
    return _scanned(value) if suspicious and (is_deep(value) or _LARGE.search(value)) else None


def _scanned(value: bytes) -> str | None:
    depth = 0
    for match in _TOKEN.finditer(value):
        token = match[0]
        first = token[:1]
        if first in b"[{":
            depth += 1
            if depth > DEPTH_MAX:
                return _TOO_DEEP
        elif first in b"]}":
            depth -= 1
        elif first != b'"' and not _is_number(token):
            return _TOO_LONG
    return None


def _is_number(token: bytes) -> bool:
    if len(token) > NUMBER_CHARS_MAX:
        return False
    try:
        # A number so small that a double has 0 for it would still have a million digits in PostgreSQL.
        exponent = int(token.lower().partition(b"e")[2] or b"0")
        return exponent >= _EXPONENT_MIN and math.isfinite(float(token))
    except ValueError:
        # No number at all: whoever decodes it says so.
        return True


def loads(text: bytes | str) -> Any:
    """Return the value of a JSON text from outside. Raises OutOfBounds, or ValueError where it is no JSON."""
    body = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if (reason := excess(body)) is not None:
        raise OutOfBounds(reason)
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None


def within(value: Any) -> tuple[Any, str | None]:
    """Return a value without what is beyond the bounds, and which bound that was; None where the value is returned as it is.

    What is cut is replaced by the name of the bound in brackets.
    """
    cutter = _Cutter()
    made = cutter.of(value, 1)
    return (made, cutter.reason) if cutter.reason else (value, None)


class _Cutter:
    def __init__(self) -> None:
        self.reason: str | None = None
        self._left = ITEMS_MAX

    def of(self, value: Any, depth: int) -> Any:
        if isinstance(value, dict | list | tuple):
            return self._inside(value, depth)
        if isinstance(value, int) and value.bit_length() > _BITS_MAX:
            return self._cut(_TOO_LONG)
        if isinstance(value, msgspec.Raw) and (reason := excess(bytes(value))):
            return self._cut(reason)
        return value

    def _inside(self, value: "dict[Any, Any] | list[Any] | tuple[Any, ...]", depth: int) -> Any:
        self._left -= len(value)
        if depth > DEPTH_MAX or self._left < 0:
            return self._cut(_TOO_DEEP if depth > DEPTH_MAX else _TOO_MANY)
        if isinstance(value, dict):
            return {key: self.of(item, depth + 1) for key, item in value.items()}
        return [self.of(item, depth + 1) for item in value]

    def _cut(self, reason: str) -> str:
        self.reason = self.reason or reason
        return f"({reason})"


def integer(text: str, low: int, high: int) -> int:
    """Return a whole number that lies within a range. Raises OutOfBounds."""
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdecimal() and len(digits) <= len(str(max(abs(low), abs(high)))):
        number = int(text)
        if low <= number <= high:
            return number
    raise OutOfBounds(f"{text[:40]!r} is not a whole number from {low} to {high}")
