"""The three seams of the agent: Source, Handler, Sink. Read this first.

        Source ──(events, cursor)──► handlers ──► Buffer.append ──► Sync ──► Sink
                                     (events + alerts, ONE transaction)

A source yields what it read together with the position up to which it has read. The runner (pipeline.py) appends both in one
SQLite transaction, and only then asks the source for more: awaiting the append *is* the back-pressure, and whatever a source
does after `yield` (acknowledge a publish, delete a file) it does after the commit.

A source, a handler, a parser: one file each and one line in the table of its package. The config class is a frozen
stdlib dataclass in the same file, with `annotated_types` for bounds; units stand last in the names of its fields.
"""

import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar, Protocol

from agent.wire.event import Event

Cursor = dict[str, Any]
"""Where a source stands: a JSON object, opaque to everybody but the source."""

State = Mapping[str, bytes | None]
"""What a handler has to keep: key → bytes, None to forget the key. Only what changed since it was last asked."""


def in_words(error: OSError) -> str:
    """What the system says of an error, in its own words: asyncio writes "Connect call failed" for every reason."""
    said = error.strerror or str(error)
    return os.strerror(error.errno) if error.errno and said.startswith("Connect call failed") else said


def now_us() -> int:
    """µs since the epoch, UTC, by this computer's clock."""
    return time.time_ns() // 1000


class NotConnected(Exception):
    """The other side cannot be reached now. The runner says so, waits and tries again: nothing is wrong with the configuration."""


class ConfigError(Exception):
    """What was configured cannot work. `key` is the path in the configuration, `remedy` what to do about it."""

    def __init__(self, text: str, *, key: str = "", remedy: str = "") -> None:
        super().__init__(text)
        self.key = key
        self.remedy = remedy

    def __str__(self) -> str:
        where = f"{self.key}: " if self.key else ""
        return f"{where}{super().__str__()}" + (f". {self.remedy}" if self.remedy else "")


class Unavailable(Exception):
    """The sink cannot take it now; `retry_after_s` is its wish, if it has one.

    `kind`: unreachable (nobody answers), refused (it does not take us), busy (it wants us to wait), disputed (it cannot read what is whole
    here).
    """

    def __init__(self, text: str, retry_after_s: float | None = None, *, kind: str = "unreachable") -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s
        self.kind = kind


@dataclass(slots=True)
class Report:
    """What a source says of itself while it runs. Handed to it; the runner, /status and /metrics read it.

    `trouble` maps a part ("" for the whole, or a unit, node, file) to what is wrong with it now. A part without trouble works.
    """

    connected: bool = False
    trouble: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    last_error: str | None = None
    last_error_us: int | None = None

    TROUBLES_MAX: ClassVar[int] = 100

    def ok(self, part: str = "") -> None:
        """The part works (again)."""
        self.connected = True
        self.trouble.pop(part, None)

    def fault(self, text: str, part: str = "") -> None:
        """The part does not work, and why. At most TROUBLES_MAX parts are named; the count `troubles_unnamed` has the rest."""
        self.last_error, self.last_error_us = text, now_us()
        if part in self.trouble or len(self.trouble) < self.TROUBLES_MAX:
            self.trouble[part] = text
        else:
            self.count("troubles_unnamed")

    def count(self, name: str, n: int = 1) -> None:
        """Add to a counter, shown as `linewarden_agent_source_<name>_total`."""
        self.counts[name] = self.counts.get(name, 0) + n


class TooLarge(Exception):
    """The sink takes no request of this size; smaller ones may do."""


class Source(Protocol):
    """Where events come from.

    `Config` is its dataclass; an instance is made cold (no I/O) with its configured name, its config and its report.
    """

    Config: ClassVar[type]
    rereadable: ClassVar[bool]
    """True where what was not yet yielded can be read again later (a file, a journal); such a source may be paused at will."""

    def batches(self, cursor: Cursor | None) -> AsyncIterator[tuple[list[Event], Cursor | None]]:
        """Events as they come, in batches of at most a few thousand, each with the cursor after it.

        `cursor` is the last one committed, None at first. When the generator is resumed, what it yielded is durable (a
        rereadable source may be asked for a batch or two more while the last ones are being stored). A cursor of None leaves the stored
        one as it is; an empty list moves the cursor alone. Raises NotConnected, ConfigError; anything else is taken for a
        defect, reported, and tried again. Cancelled at shutdown: it must end within seconds.
        """
        ...


class Handler(Protocol):
    """Looks at every event before it is stored, and raises alerts. Pure: no I/O, no clock but `now_us`, all state inside."""

    Config: ClassVar[type]

    def handle(self, events: Sequence[Event], now_us: int) -> Iterable[Event]:
        """The alerts that these events raise, in order. Called with every batch, and about once a second with none."""
        ...

    def changes(self) -> State:
        """State changed since the last call; stored in the transaction of the events that changed it."""
        ...

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Take up the stored state. Called once, before the first `handle`."""
        ...


@dataclass(frozen=True, slots=True)
class Ack:
    """Answer of a sink: these batches are durable there. `refused` names the batch that it did not take, if any."""

    through: Mapping[tuple[str, int], int]
    """(buffer, lane) → the last batch number that is stored."""
    refused: "Refusal | None" = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A batch that the sink did not take. `code`: missing (it wants `expected` first), forked (it has another batch of this
    number), bad (it cannot read batch `no`).
    """

    code: str
    buffer: str
    lane: int
    no: int
    expected: int
    head_hash: str
    text: str


class Sink(Protocol):
    """Where batches go."""

    async def send(self, batches: Sequence[bytes], status: Mapping[str, Any]) -> Ack:
        """Deliver batches (frames) in order, with what the agent says of itself; return when they are durable there.

        No batches: a sign of life. Sending the same batch again changes nothing. Raises Unavailable, TooLarge.
        """
        ...


def load(table: Mapping[str, str], kind: str, *, what: str, extra: Mapping[str, str]) -> Any:
    """The class behind a kind of a table of lazy module paths ("agent.sources.opcua:OpcUaSource").

    Raises ConfigError where there is no such kind, or where its library is not installed, naming the extra that brings it.
    """
    from difflib import get_close_matches

    if kind not in table:
        near = get_close_matches(kind, table, 1)
        raise ConfigError(
            f"there is no {what} type {kind!r}",
            remedy=f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(sorted(table))}.",
        )
    module, _, name = table[kind].partition(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if kind not in extra or (error.name or "").split(".")[0] in ("agent", "collector"):
            raise
        raise ConfigError(
            f"{what} type {kind!r} needs {error.name}, which is not installed",
            remedy=f"Install it: pip install 'linewarden[{extra[kind]}]'.",
        ) from None
