"""For the command `probe`: finds out politely which addresses of a device can be read, before it is configured.

Only reads are sent (agent.sources.modbus_client lets nothing else out), one at a time and never more than `rate_per_s`. A block that is
refused is asked for in halves; a table that the device does not know at all is left at its first answer; a device that falls silent is left
in peace after SILENCES_MAX questions. What was found until then is given back, as it is when the person who waits has seen enough.
"""

import asyncio
import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from agent.component import NotConnected
from agent.sources.modbus_link import (
    BITS_MAX,
    BUSY,
    EXCEPTIONS,
    GATEWAY_EXCEPTIONS,
    REGISTERS_MAX,
    BadAnswer,
    ConfigTls,
    Exceptional,
    Link,
    NoAnswer,
    ShortAnswer,
    Timing,
    parse_url,
)
from agent.sources.modbus_points import shortest32

TABLES = ("holding", "input", "coil", "discrete")
SILENCES_MAX = 3
"""Questions in a row without an answer, after which the device is left alone."""
BUSY_PAUSES_S = (0.2, 0.5, 1.0, 2.0)
"""Before a device that is busy is asked for the same again."""
POINTS_MAX = 500
"""Points written out as configuration; the rest is only summed up."""
ILLEGAL_FUNCTION = 1
_FLOAT_MIN, _FLOAT_MAX = 1e-4, 1e7


@dataclass(frozen=True, slots=True)
class Run:
    """Addresses in a row that can be read, and what stood there."""

    table: str
    address: int
    values: tuple[int, ...]


@dataclass(slots=True)
class Found:
    """What a probe found. `incomplete` says why it ended before the end, if it did."""

    url: str
    unit: int
    runs: list[Run] = field(default_factory=list)
    requests: int = 0
    identity: dict[int, str] = field(default_factory=dict)
    incomplete: str = ""
    ignore_id: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def readable(self) -> int:
        """How many addresses can be read."""
        return sum(len(run.values) for run in self.runs)


class _Ended(Exception):
    """The device is to be left alone."""


class _Probe:
    def __init__(self, link: Link, found: Found, tell: Callable[[str, int, Found], None]) -> None:
        self._link = link
        self._found = found
        self._tell = tell
        self._silences = 0
        self._answers = 0

    async def table(self, table: str, first: int, last: int) -> None:
        """All addresses of a table, from the lowest."""
        longest = REGISTERS_MAX if table in ("holding", "input") else BITS_MAX
        work = [(at, min(longest, last + 1 - at)) for at in range(first, last + 1, longest)][::-1]
        while work:
            address, count = work.pop()
            self._tell(table, address, self._found)
            try:
                values = await self._patiently(table, address, count)
            except (Exceptional, ShortAnswer) as error:
                if isinstance(error, Exceptional) and error.code == ILLEGAL_FUNCTION:
                    self._found.notes.append(f"{table}: the device does not know this table")
                    return
                if isinstance(error, Exceptional) and error.code in BUSY:
                    self._found.notes.append(f"{table} {address} to {address + count - 1}: {error}; ask again later")
                    continue
                if count > 1:
                    half = count // 2
                    work += [(address + half, count - half), (address, half)]
            except NoAnswer as error:
                self._silent(table, address, count, error)
            else:
                self._add(Run(table, address, values))

    async def _patiently(self, table: str, address: int, count: int) -> tuple[int, ...]:
        """The values; a device that is busy is asked again, for that says nothing about the addresses."""
        for pause_s in BUSY_PAUSES_S:
            try:
                return await self._values(table, address, count)
            except Exceptional as error:
                if error.code not in BUSY:
                    raise
            await asyncio.sleep(pause_s)
        return await self._values(table, address, count)

    async def _values(self, table: str, address: int, count: int) -> tuple[int, ...]:
        self._found.requests += 1
        try:
            payload = await self._link.read(self._found.unit, table, address, count)
        except Exceptional as error:
            if error.code in GATEWAY_EXCEPTIONS:
                raise NotConnected(
                    f"{self._found.url}: unit {self._found.unit}: {EXCEPTIONS[error.code]}. Is it another number? Give it with --unit."
                ) from None
            self._silences, self._answers = 0, self._answers + 1
            raise
        except ShortAnswer:
            self._silences = 0
            raise
        self._silences, self._answers = 0, self._answers + 1
        if table in ("holding", "input"):
            return struct.unpack(f">{count}H", payload)
        return tuple(payload[at >> 3] >> (at & 7) & 1 for at in range(count))

    def _silent(self, table: str, address: int, count: int, error: NoAnswer) -> None:
        text = str(error)
        self._silences += 1
        if self._silences < SILENCES_MAX:
            self._found.notes.append(f"{table} {address} to {address + count - 1}: {text}")
            return
        if not self._answers and isinstance(error, BadAnswer):
            raise NotConnected(f"{self._found.url}: unit {self._found.unit} answers wrongly: {text}")
        if not self._answers:
            raise NotConnected(
                f"{self._found.url}: unit {self._found.unit} does not answer: {text}. Is it another number? Give it with --unit."
            )
        raise _Ended(f"it stopped answering at {table} {address}: {text}")

    def _add(self, run: Run) -> None:
        runs = self._found.runs
        if runs and runs[-1].table == run.table and runs[-1].address + len(runs[-1].values) == run.address:
            run = Run(run.table, runs[-1].address, runs.pop().values + run.values)
        runs.append(run)


async def probe(
    url: str,
    unit: int = 1,
    *,
    tables: Sequence[str] = TABLES,
    first: int = 0,
    last: int = 999,
    rate_per_s: float = 20.0,
    timeout_s: float = 2.0,
    tls: ConfigTls | None = None,
    identify: bool = False,
    ignore_id: bool = False,
    tell: Callable[[str, int, Found], None] = lambda *_: None,
) -> Found:
    """The readable addresses from `first` to `last`. Raises NotConnected, ConfigError, ValueError (of the url). Cancelled, it gives
    back what it has.
    """
    link = Link(parse_url(url), Timing(timeout_s=timeout_s, request_pause_s=1 / rate_per_s), tls, ignore_id=ignore_id)
    found = Found(url, unit, ignore_id=ignore_id)
    work = _Probe(link, found, tell)
    try:
        await link.open()
        for table in tables:
            await work.table(table, first, last)
        if identify:
            await _identify(link, found)
    except asyncio.CancelledError:
        found.incomplete = "it was stopped"
    except _Ended as ended:
        found.incomplete = str(ended)
    finally:
        link.close()
    return found


async def _identify(link: Link, found: Found) -> None:
    try:
        found.identity = await link.identify(found.unit)
    except (NoAnswer, Exceptional) as error:
        found.notes.append(f"it does not say who it is: {error}")


# As configuration -----------------------------------------------------------------------------------------------------------------


def as_configuration(found: Found, name: str, *, everything: bool = False) -> str:
    """A piece of agent.toml with a point for every address that holds something (or everything that answers), and what stood there."""
    lines = [f"[sources.{name}]", 'type = "modbus"', f"url = {json.dumps(found.url)}", f"unit = {found.unit}"]
    if found.ignore_id:
        lines.append('transaction_id = "ignore"')
    lines += [f"# {text}" for text in _summary(found)]
    left = POINTS_MAX
    for run in found.runs:
        for at, value in enumerate(run.values):
            if left and (value or everything):
                left -= 1
                lines += _point(name, run, at)
    points = POINTS_MAX - left
    rest = found.readable - points
    if rest and left:
        lines.append(f"# {rest} more answer with 0; --all writes them out too.")
    elif rest:
        lines.append(f"# {rest} more answer; these are the first {points}. Narrow it with --addresses and --table.")
    return "\n".join(lines)


def _summary(found: Found) -> Iterator[str]:
    for number, text in sorted(found.identity.items()):
        yield f"identification {number}: {_plain(text)}"
    for run in found.runs:
        last = run.address + len(run.values) - 1
        yield f"{run.table} {run.address} to {last}: {len(run.values)} readable"
    if not found.runs:
        yield "nothing here can be read; other addresses may be (--addresses)"
    for note in found.notes:
        yield _plain(note)
    if found.incomplete:
        yield f"there may be more: {_plain(found.incomplete)}"


def _plain(text: str) -> str:
    """What a device says, in one line and harmless."""
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


def _point(name: str, run: Run, at: int) -> list[str]:
    address, value = run.address + at, run.values[at]
    seen = f"was {value}"
    if run.table in ("holding", "input"):
        seen += "".join(_guesses(run.values[at : at + 2]))
    return [
        f"[[sources.{name}.points]]  # {seen}",
        f'name = "{run.table}_{address}"',
        f'table = "{run.table}"',
        f"address = {address}",
    ]


def _guesses(pair: Sequence[int]) -> Iterator[str]:
    """What two registers may be together, where it looks like a number that somebody measured."""
    if len(pair) < 2:  # noqa: PLR2004 (a pair)
        return
    for order, words in (("big", pair), ("little", pair[::-1])):
        value = struct.unpack(">f", struct.pack(">HH", *words))[0]
        if math.isfinite(value) and _FLOAT_MIN <= abs(value) <= _FLOAT_MAX:
            yield f'; as float32 with word_order = "{order}": {shortest32(value)}'
