"""A point: where a value stands in a device, how its bytes become a number, and when the number is worth an event.

Bytes become a value or nothing: the codec takes exactly the bytes of the point and cannot guess. A float that is not a number is no value
either; it is reported as null with `data.quality` saying so, for JSON has no NaN.

    reading    equipment.reading when it moved more than the deadband since it was last *reported*, and after heartbeat_s anyway
    counter    equipment.counter with how far and how fast it went, and whether it began again (reset) or turned over (rollover)
    state      equipment.state.changed
    setpoint   configuration.setpoint.changed  ┐ only after a second read says the same; known across restarts, so that
    mode       configuration.mode.changed      ├ a change while the agent was away is an event too
    identity   equipment.identity.changed      ┘
The first value of the last four, and their heartbeat, is a reading: nothing has changed.
"""

import hashlib
import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Annotated, Any, Final, Literal

from annotated_types import Ge, Le, MaxLen, MinLen

from agent.sources.modbus_link import REGISTERS_MAX, Table
from agent.sources.modbus_plan import Span
from agent.sources.signals import ConfigSignal, check_signal
from agent.wire.event import INFORMATIONAL, LOW, Event

ADDRESS_MAX: Final = 65_535
_MODICON: Final[dict[int, Table]] = {1: "discrete", 3: "input", 4: "holding"}
"""What the first digit of a Modicon number means; 0 (coils) cannot be told from an address."""

Role = Literal["reading", "counter", "state", "setpoint", "mode", "identity"]
Order = Literal["big", "little"]
Value = int | float | bool | str | None

_NUMBERS: Final[dict[str, str]] = {
    "int16": "h",
    "uint16": "H",
    "int32": "i",
    "uint32": "I",
    "int64": "q",
    "uint64": "Q",
    "float32": "f",
    "float64": "d",
}
_STRING = re.compile(r"string\((\d{1,3})\)")
_SIGNIFICANT_DIGITS = 12
_TURNED_OVER_SHARE = 0.25
"""A counter that falls from the top quarter of its range into the lowest quarter turned over; any other fall is a reset."""

CHANGE_TYPES: Final[dict[str, str]] = {
    "state": "equipment.state.changed",
    "setpoint": "configuration.setpoint.changed",
    "mode": "configuration.mode.changed",
    "identity": "equipment.identity.changed",
}
CONFIRMED: Final = frozenset({"setpoint", "mode", "identity"})
"""Roles whose change is worth an alarm, and therefore a second look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigPoint(ConfigSignal):
    """One value of a device. `address` counts from 0, as on the wire (40001 in a manual is holding 0)."""

    name: Annotated[str, MinLen(1), MaxLen(200)]
    table: Table = "holding"
    address: Annotated[int, Ge(0), Le(499_999)]
    """At most ADDRESS_MAX; a larger one is refused with the address that its Modicon number stands for."""
    type: str | None = None
    """int16 uint16 int32 uint32 int64 uint64 float32 float64 bool string(N). Without it: bool in the bit tables, uint16 elsewhere."""
    word_order: Order = "big"
    byte_order: Order = "big"
    bit: Annotated[int, Ge(0), Le(63)] | None = None
    """Take only this bit of an integer (0 is the lowest); with `bits`, that many from it on."""
    bits: Annotated[int, Ge(1), Le(32)] = 1
    scale: float = 1.0
    offset: float = 0.0
    unit: str | None = None
    deadband: Annotated[float, Ge(0)] | None = None
    deadband_percent: Annotated[float, Ge(0), Le(100)] | None = None
    """Of the last reported value."""
    role: Role = "reading"
    heartbeat_s: Annotated[float, Ge(0), Le(604_800)] | None = None
    texts: dict[str, str] | None = None
    """What numbers mean: { 0 = "stopped", 1 = "running" }."""

    def __post_init__(self) -> None:
        kind = self.kind
        if kind not in _NUMBERS and kind != "bool" and not _STRING.fullmatch(kind):
            raise ValueError(f"type: there is no {kind!r}; it is one of {', '.join(_NUMBERS)}, bool, string(N)")
        if self.in_bits and kind != "bool":
            raise ValueError(f"type: the table {self.table} holds bits, so it can only be bool")
        if kind.startswith("string") and not 1 <= self.registers <= REGISTERS_MAX:
            raise ValueError(f"type: a string has 1 to {REGISTERS_MAX * 2} characters")
        if self.address > ADDRESS_MAX:
            hint = modicon(self.table, self.address) or "addresses count from 0, as on the wire"
            raise ValueError(f"address: {self.address} is beyond {ADDRESS_MAX}; {hint}")
        if self.address + self.span.count > ADDRESS_MAX + 1:
            raise ValueError(f"address: {kind} at {self.address} reaches beyond 65535")
        self._check_bits()
        if self.deadband is not None and self.deadband_percent is not None:
            raise ValueError("deadband_percent: deadband and deadband_percent exclude each other; give one of them")
        if self.role == "counter" and not self.numeric:
            raise ValueError(f"role: a counter is a number, and {kind} is not")
        if not self.numeric and (self.scale != 1 or self.offset or self.deadband or self.deadband_percent):
            raise ValueError(f"scale: scale, offset and deadband are for numbers, and {kind} is not one")
        check_signal(self, self.role, numeric=self.numeric)

    def _check_bits(self) -> None:
        kind = self.kind
        if self.bit is not None and (self.in_bits or kind.startswith(("string", "float"))):
            raise ValueError(
                "bit: bits are taken out of integer registers only; use an integer type or bool in holding or input"
            )
        if self.bit is not None and self.bit + self.bits > self.registers * 16:
            raise ValueError(f"bit: {kind} has the bits 0 to {self.registers * 16 - 1}")
        if self.bits > 1 and (self.bit is None or kind == "bool"):
            raise ValueError("bits: needs bit and an integer type")

    @property
    def kind(self) -> str:
        """The type, with its default filled in."""
        return self.type or ("bool" if self.in_bits else "uint16")

    @property
    def in_bits(self) -> bool:
        """It stands in a table of single bits."""
        return self.table in ("coil", "discrete")

    @property
    def numeric(self) -> bool:
        """It can be scaled and compared by distance."""
        return self.kind in _NUMBERS and (self.bit is None or self.bits > 1)

    @property
    def registers(self) -> int:
        """How many registers it takes; 1 in the bit tables too."""
        if text := _STRING.fullmatch(self.kind):
            return (int(text[1]) + 1) // 2
        return struct.calcsize(_NUMBERS.get(self.kind, "H")) // 2

    @property
    def span(self) -> Span:
        """The addresses that it needs."""
        return Span(self.table, self.address, self.registers)


def modicon(table: str, address: int) -> str:
    """How to write what looks like a Modicon number (40101, 400101: holding 100); empty where it does not.

    A number of another table than the point's is one too, where the point's table is the default.
    """
    for size in (10_000, 100_000):
        first, number = divmod(address, size)
        meant = _MODICON.get(first)
        if meant is not None and number and table in (meant, "holding"):
            return (
                f'{address} looks like a Modicon number; if it is one, write table = "{meant}", address = {number - 1}'
            )
    return ""


# From bytes to values -------------------------------------------------------------------------------------------------------------


def decoder(config: ConfigPoint) -> Callable[[bytes], Value]:
    """What makes the raw value (before scaling) of the registers' bytes as they came. NaN and infinities come out as floats."""
    order = _permutation(config)
    put = itemgetter(*order) if order else None

    def straight(data: bytes) -> bytes:
        return data if put is None else bytes(put(data))

    if text := _STRING.fullmatch(config.kind):
        length = int(text[1])

        def as_text(data: bytes) -> str:
            return straight(data)[:length].split(b"\0", 1)[0].decode("utf-8", "backslashreplace").rstrip()

        return as_text
    unpack = struct.Struct(">" + _NUMBERS.get(config.kind, "H")).unpack
    if config.bit is not None:
        return _bits(config, lambda data: int(unpack(straight(data))[0]))
    if config.kind == "bool":
        return any
    if put is None:
        return lambda data: unpack(data)[0]
    return lambda data: unpack(straight(data))[0]


def _permutation(config: ConfigPoint) -> tuple[int, ...]:
    """Which byte goes where; empty where all stay."""
    words = list(range(config.registers))
    if config.word_order == "little" and not config.kind.startswith("string"):
        words.reverse()
    within = (1, 0) if config.byte_order == "little" else (0, 1)
    order = tuple(word * 2 + byte for word in words for byte in within)
    return () if order == tuple(range(len(order))) else order


def _bits(config: ConfigPoint, number: Callable[[bytes], int]) -> Callable[[bytes], Value]:
    shift, mask = config.bit or 0, (1 << config.bits) - 1
    if config.bits == 1:
        return lambda data: bool(number(data) >> shift & 1)
    return lambda data: number(data) >> shift & mask


def shortest32(value: float) -> float:
    """The float with the fewest digits that is the same in 32 bits: 20.1 and not 20.100000381469727."""
    for digits in (6, 7, 8):
        short = float(f"{value:.{digits}g}")
        if struct.pack(">f", short) == struct.pack(">f", value):
            return short
    return value


# From values to events -----------------------------------------------------------------------------------------------------------


class Watch:
    """One point while it is being watched: what was last reported, and what the next value is worth."""

    __slots__ = (
        "_base", "_fresh", "_heartbeat_s", "_known", "_known_us", "_plain", "_sharp", "_short", "_shown", "_simple", "_source",
        "config", "confirmed", "decode", "due_s", "fingerprint", "key", "span",
    )  # fmt: skip

    def __init__(self, config: ConfigPoint, unit_id: int, source: str, heartbeat_s: float) -> None:
        self.config = config
        self.key = f"{unit_id}/{config.name}"
        self.span = config.span
        self.decode = decoder(config)
        self.fingerprint = hashlib.blake2b(
            repr(
                (
                    config.table,
                    config.address,
                    config.kind,
                    config.word_order,
                    config.byte_order,
                    config.bit,
                    config.bits,
                )
            ).encode(),
            digest_size=4,
        ).hexdigest()
        self.due_s = math.inf
        """When its heartbeat is due, on the monotonic clock."""
        self._source = source
        self._heartbeat_s = (heartbeat_s if config.heartbeat_s is None else config.heartbeat_s) or math.inf
        self._plain = config.scale == 1 and config.offset == 0
        self._short = config.kind == "float32"
        self._sharp = config.deadband is None and config.deadband_percent is None
        self.confirmed = config.role in CONFIRMED
        self._simple = config.role == "reading" and not config.texts
        self._known: Value = None
        self._shown: Value = None
        """The known value, scaled."""
        self._known_us = 0
        self._fresh = True
        """Nothing was reported yet."""
        self._base: dict[str, Any] = {
            "point": config.name,
            "table": config.table,
            "address": config.address,
            "unit_id": unit_id,
        }
        if config.unit is not None:
            self._base["unit"] = config.unit
        self._base |= config.signal_data()

    def remember(self, stored: list[Any] | None) -> None:
        """Begin anew from what the cursor knows: [fingerprint, raw value, when]; from nothing where it is of another layout."""
        self._fresh, self._known, self._known_us, self.due_s = True, None, 0, math.inf
        if self.config.role != "reading" and stored and stored[0] == self.fingerprint:
            self._fresh, self._known, self._known_us = False, stored[1], stored[2]
            self._shown = self._scaled(self._known)
            self.due_s = -math.inf

    @property
    def known(self) -> list[Any] | None:
        """For the cursor; None where the role needs no memory."""
        if self.config.role == "reading" or self._fresh:
            return None
        return [self.fingerprint, self._known, self._known_us]

    def suspicious(self, data: bytes) -> bool:
        """Its value differs from the known one in a way that wants a second look before anybody is told."""
        if not self.confirmed or self._fresh:
            return False
        value = self.decode(data)
        return self._moved(_clean(value)[0] if isinstance(value, float) else value)

    def see(self, sent: bytes, at_us: int, now_s: float) -> Event | None:
        """The event that these bytes are worth, if any."""
        value, quality = self.decode(sent), None
        if isinstance(value, float):
            value, quality = _clean(value)
        moved = not self._fresh and (value != self._known if self._sharp else self._moved(value))
        if not moved and not self._fresh and now_s < self.due_s:
            return None
        shown = value if self._plain and not self._short else self._scaled(value)
        data = {**self._base, "value": shown, "previous": None if self._fresh else self._shown}
        if quality:
            data["quality"] = quality
        if not moved and not self._fresh:
            data["heartbeat"] = True
        event = self._reading(data, at_us) if self._simple else self._event(value, data, at_us, moved=moved)
        self._known, self._known_us, self._shown, self._fresh = value, at_us, shown, False
        self.due_s = now_s + self._heartbeat_s
        return event

    def _moved(self, value: Value) -> bool:
        """It differs from what was last reported by more than the deadband."""
        known, config = self._known, self.config
        if value == known:
            return False
        if self._sharp or value is None or known is None or isinstance(value, str) or isinstance(known, str):
            return True
        if config.deadband is not None:
            return abs(value - known) * abs(config.scale) > config.deadband
        before = known * config.scale + config.offset
        return abs(value - known) * abs(config.scale) > abs(before) * (config.deadband_percent or 0) / 100

    def _scaled(self, raw: Value) -> Value:
        if raw is None or isinstance(raw, bool | str):
            return raw
        if self._plain:
            return shortest32(raw)
        scaled = raw * self.config.scale + self.config.offset
        # 0.1 has no exact binary form: without this 203 * 0.1 would be 20.300000000000001.
        return float(f"{scaled:.{_SIGNIFICANT_DIGITS}g}") if math.isfinite(scaled) else None

    def _text(self, value: Value) -> str | None:
        texts = self.config.texts
        if not texts or value is None:
            return None
        return texts.get(str(int(value)) if isinstance(value, bool) else str(value))

    def _reading(self, data: dict[str, Any], at_us: int) -> Event:
        return Event(
            at_us, at_us, "equipment.reading", self._source, INFORMATIONAL, None, self.config.name, None, None, None, None,
            None, data,
        )  # fmt: skip  # by place: it is made for every value that moves

    def _event(self, raw: Value, data: dict[str, Any], at_us: int, *, moved: bool) -> Event:
        config = self.config
        if config.texts:
            data["text"], data["previous_text"] = self._text(data["value"]), self._text(data["previous"])
        if config.role == "counter":
            return self._counter(raw, data, at_us)
        if config.role == "reading" or not moved:
            if config.role != "reading":
                data["role"] = config.role
            return self._reading(data, at_us)
        shown, before = data.get("text") or str(data["value"]), data.get("previous_text") or str(data["previous"])
        message = f"{config.name} changed from {before} to {shown}"
        return Event(
            at_us, at_us, CHANGE_TYPES[config.role], self._source, target=config.name, message=message[:500], data=data
        )

    def _counter(self, raw: Value, data: dict[str, Any], at_us: int) -> Event:
        """How far it went since it was last reported, and how fast."""
        known, severity, message = self._known, 0, None
        if not self._fresh and isinstance(raw, int | float) and isinstance(known, int | float):
            delta: int | float = raw - known
            if delta < 0 and (size := self._turned_over(known, raw)):
                delta += size
                data["rollover"] = True
            elif delta < 0:
                delta = raw
                data["reset"] = True
                severity, message = LOW, f"{self.config.name} began again"
            seconds = (at_us - self._known_us) / 1_000_000
            delta = _round(delta * self.config.scale)
            data["delta"] = delta
            if seconds > 0:
                data["rate_per_s"] = _round(delta / seconds)
        return Event(
            at_us,
            at_us,
            "equipment.counter",
            self._source,
            severity,
            target=self.config.name,
            message=message,
            data=data,
        )

    def _turned_over(self, known: float, raw: float) -> int:
        """The size of the counter's range, if it turned over at its end; 0 if not."""
        kind = self.config.kind
        if kind.startswith("float"):
            return 0
        bits = self.config.bits if self.config.bit is not None else self.config.registers * 16
        size = 1 << bits
        low = -(size // 2) if kind.startswith("int") and self.config.bit is None else 0
        near = size * _TURNED_OVER_SHARE
        return size if known - low >= size - near and raw - low < near else 0


def _clean(value: float) -> tuple[float | None, str | None]:
    """The value, or null and why there is none."""
    if math.isfinite(value):
        return value, None
    return None, "not_a_number" if math.isnan(value) else "infinite"


def _round(number: float) -> int | float:
    rounded = float(f"{number:.{_SIGNIFICANT_DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded
