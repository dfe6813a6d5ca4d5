"""Plays a log file, or recorded events, through parsers and handlers, as the agent would have: what would have been raised, when, and why.

Nothing is stored and nothing sent. Time is that of the events, so that a log of last year is judged as on the day it was written. Only
a few thousand lines are in memory at once.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from agent.component import ConfigError, now_us
from agent.handlers.base import Peak
from agent.handlers.engine import Engine
from agent.parsers.base import Parser
from agent.wire.event import Event

BLOCK_BYTES = 1_048_576
LINES_MAX = 4_096
STEP_US = 1_000_000
"""Handlers are asked at least once for each second of the events' time, as the agent asks them once a second."""

_decoder = msgspec.json.Decoder(Event)


@dataclass(slots=True)
class Trial:
    """What was seen on the way."""

    lines: int = 0
    events: int = 0
    alerts: int = 0
    first_us: int | None = None
    last_us: int | None = None
    types: dict[str, int] = field(default_factory=dict)


def play(
    path: Path, parser: Parser | None, engine: Engine, trial: Trial, progress: Callable[[int, int], None]
) -> Iterator[Event]:
    """The alerts, as they would have been raised. Without a parser the file holds events, one JSON object a line.

    `progress` is told bytes done and bytes in all. Raises ConfigError where the file cannot be read, or a line of it is no event.
    """
    now = 0
    for batch in _batches(path, parser, trial, progress):
        trial.events += len(batch)
        for event in batch:
            trial.types[event.type] = trial.types.get(event.type, 0) + 1
            trial.first_us = event.time if trial.first_us is None else min(trial.first_us, event.time)
            trial.last_us = event.time if trial.last_us is None else max(trial.last_us, event.time)
        begin = 0
        for index, event in enumerate(batch):
            if event.time - now >= STEP_US:
                yield from _counted(engine.handle(batch[begin:index], now) if index > begin else [], trial)
                begin, now = index, max(now, event.time)
        if begin < len(batch):
            yield from _counted(engine.handle(batch[begin:], now), trial)


class Near(msgspec.Struct, frozen=True, omit_defaults=True):
    """How near one key of a handler came to its bound, or how far it went beyond."""

    reached: float
    limit: float
    time: int
    key: dict[str, Any] = {}


def explain(engine: Engine) -> None:
    """Let the handlers remember how near each key comes; before `play`."""
    for handler in engine.handlers.values():
        handler.peaks = {}


def nearest(engine: Engine, count: int | None = None) -> dict[str, list[Near]]:
    """By handler what came nearest to its bound, the nearest first."""
    found: dict[str, list[Near]] = {}
    for name, handler in engine.handlers.items():
        peaks = sorted((handler.peaks or {}).items(), key=lambda pair: -_share(pair[1]))[:count]
        if peaks:
            found[name] = [Near(p.reached, p.limit, p.at.time, handler.raiser.names(key)[0]) for key, p in peaks]
    return found


def _share(peak: Peak) -> float:
    """How much of the way was gone; where both are negative (a lower limit) the nearer is the smaller."""
    if not peak.limit or peak.limit < 0:
        return peak.reached - peak.limit
    return peak.reached / peak.limit


def _counted(alerts: list[Event], trial: Trial) -> list[Event]:
    trial.alerts += len(alerts)
    return alerts


def _batches(
    path: Path, parser: Parser | None, trial: Trial, progress: Callable[[int, int], None]
) -> Iterator[list[Event]]:
    try:
        size, reference_us = path.stat().st_size, min(path.stat().st_mtime_ns // 1_000, now_us())
        with path.open("rb") as file:
            memory: dict[str, Any] = {}
            rest: list[str] = []
            tail = b""
            done = 0
            while True:
                block = file.read(BLOCK_BYTES)
                done += len(block)
                whole, end, tail = (tail + block).rpartition(b"\n") if block else (tail, b"", b"")
                if not block and not whole and not rest:
                    return
                text = whole.decode("utf-8", "backslashreplace").replace("\r\n", "\n").removesuffix("\r")
                fresh = text.split("\n") if whole or end else []
                rest += fresh
                trial.lines += len(fresh)
                while rest:
                    chunk, final = rest[:LINES_MAX], not block and len(rest) <= LINES_MAX
                    if parser is None:
                        yield _recorded(chunk, trial.lines - len(rest), path)
                        del rest[: len(chunk)]
                        continue
                    events, consumed = parser.parse(
                        chunk, observed_us=reference_us, reference_us=reference_us, memory=memory, final=final
                    )
                    yield events
                    del rest[:consumed]
                    if not consumed and (block or final):
                        break
                progress(done, size)
                if not block:
                    return
    except OSError as error:
        remedy = "Name a file that this user may read."
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}", remedy=remedy) from None


def _recorded(lines: list[str], before: int, path: Path) -> list[Event]:
    events = []
    for number, line in enumerate(lines, before + 1):
        if not line.strip():
            continue
        try:
            events.append(_decoder.decode(line))
        except msgspec.MsgspecError as error:
            remedy = "Give a file that linewarden-agent events --json wrote, or the parser with --parser."
            raise ConfigError(f"{path}, line {number} is no event: {error}", remedy=remedy) from None
    return events


def is_recorded(path: Path) -> bool:
    """Whether a file holds events rather than log lines, by its first bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(256).lstrip()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror or os.strerror(error.errno or 0)}",
            remedy="Name a file that this user may read.",
        ) from None
    return head.startswith(b'{"time":') and b'"observed":' in head
