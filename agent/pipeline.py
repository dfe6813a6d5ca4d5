"""Runs the sources: each one alone, timed, counted, restarted, and backed off alike, so that no source carries any of it.

    source ──events, cursor──► engine.handle ──events + alerts──► Buffer.append(…, cursor, handler state)

A source that fails costs only itself. Its trouble is an event when it begins and one when it ends, stands in /status all the while,
and makes the agent's health `degraded`; the log has a line when it begins and one when it ends (changes.py).
"""

import asyncio
import logging
import random
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec

from agent.buffer import Buffer
from agent.component import ConfigError, Cursor, NotConnected, Report, Source, State, now_us
from agent.parsers.base import hide_lines
from agent.wire.event import Event

log = logging.getLogger(__name__)

BACKOFF_S_MIN = 0.5
BACKOFF_S_MAX = 30.0
STEADY_S = 60.0
"""A source that ran so long without failing begins again with the shortest wait."""
CONFIG_RETRY_S = 60.0
"""What is wrong with the configuration may be put right outside it (a file's permissions): tried again this often."""
TICK_S = 1.0
STORING_MAX = 2
"""Batches of a rereadable source on their way to the disk while it is asked for the next."""
STOP_S_MAX = 5.0
STOP_AGAIN_S = 0.5


class Engine(Protocol):
    """What the pipeline asks of the handlers; agent.handlers.engine.Engine is it."""

    def handle(self, events: Sequence[Event], now_us: int) -> list[Event]:
        """The alerts that these events raise."""
        ...

    def changes(self) -> dict[str, dict[str, bytes | None]]:
        """State changed since the last call, by handler."""
        ...

    def restore(self, state: Mapping[str, Mapping[str, bytes]]) -> None:
        """Take up the stored state, by handler; once, before the first `handle`."""
        ...

    def stats(self) -> Mapping[str, Any]:
        """What each handler counts, by name."""
        ...

    @property
    def reads_lines(self) -> bool:
        """Whether a handler searches original lines."""
        ...


class Actions(Protocol):
    """What the pipeline asks of local actions; agent.handlers.actions.Actions is it."""

    def take(self, alerts: Sequence[Event]) -> State:
        """What is to be done with these alerts, to be stored in their transaction."""
        ...

    def committed(self, kept: State) -> None:
        """What `take` gave is durable: only now may anything be done."""
        ...

    def stats(self) -> Mapping[str, Any]:
        """What became of them, by the name of the action."""
        ...


ACTIONS = "!actions"
"""Under this name the buffer keeps what is to be done; no handler can be called so."""


KIND, AT = "kind", "at"
"""A source's cursor is kept with the kind of source that it is a position of."""


class NoHandlers:
    """An engine without handlers."""

    reads_lines = False

    def handle(self, events: Sequence[Event], now_us: int) -> list[Event]:
        """No alerts."""
        del events, now_us
        return []

    def changes(self) -> Mapping[str, State]:
        """No state."""
        return {}

    def restore(self, state: Mapping[str, Mapping[str, bytes]]) -> None:
        """Nothing to take up."""

    def stats(self) -> dict[str, Any]:
        """Nothing to count."""
        return {}


@dataclass(slots=True)
class SourceState:
    """A source as the runner sees it."""

    name: str
    kind: str
    report: Report = field(default_factory=Report)
    state: Literal["starting", "running", "waiting", "failed", "stopped"] = "starting"
    events: int = 0
    gaps: int = 0
    restarts: int = 0
    last_event_us: int | None = None
    heard_s: float = field(default_factory=time.monotonic)
    """When its last event was stored, or it was started, where there was none."""
    in_trouble: bool = False
    why: Literal["", "away", "configuration", "defect"] = ""
    """Why it ended the last time."""
    retry_us: int | None = None
    """When it is started again, while it waits for that."""
    defect: str = ""
    """Where the last defect was: its traceback is logged once, not with every try."""


class Pipeline:
    """All sources of an agent, its engine and its buffer. `run` never ends by itself."""

    def __init__(self, buffer: Buffer, engine: Engine | NoHandlers) -> None:
        self.sources: dict[str, SourceState] = {}
        self.alerts = 0
        self.engine = engine
        self.actions: Actions | None = None
        self._buffer = buffer
        self._open = asyncio.Event()
        self._open.set()
        """Closed while the engine is exchanged."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._show: dict[str, Callable[..., None]] = {}
        """By source, what switches whether its events carry their line for the handlers."""
        self._lines_shown = False
        """Whether any event may carry a line that must not be stored; stays true, since events are on their way at a switch."""

    async def tick(self) -> None:
        """Let time pass for the handlers, about once a second: absence and dwell need it."""
        while True:
            await asyncio.sleep(TICK_S)
            await self._open.wait()
            alerts = self.engine.handle((), now_us())
            changes = self.engine.changes()
            if alerts or changes:
                await self._append(alerts, alerts, changes)

    async def exchange(self, engine: Engine | NoHandlers) -> None:
        """Go on with other handlers. What the old ones knew is handed over by way of the buffer; no event passes meanwhile."""
        self._open.clear()
        try:
            # The buffer writes in order: once this is through, so is all state that went before it.
            await self._buffer.append(())
            engine.restore(await self._buffer.states())
            self.engine = engine
            for show in self._show.values():
                self._show_lines(show)
        finally:
            self._open.set()

    def start(self, name: str, kind: str, source: Source, report: Report) -> None:
        """Begin to run a source, by its configured name."""
        state = self.sources[name] = SourceState(name, kind, report)
        show = getattr(source, "show_lines", None)
        if show is not None:
            self._show[name] = show
            self._show_lines(show)
        self._tasks[name] = asyncio.create_task(self._run(source, state), name=f"source {name}")

    def _show_lines(self, show: Callable[..., None]) -> None:
        wanted = self.engine.reads_lines
        self._lines_shown |= wanted
        show(wanted=wanted)

    async def stop(self, name: str) -> None:
        """End a source; what it yielded is stored. One that does not end within STOP_S_MAX is left behind."""
        task = self._tasks.pop(name)
        self._show.pop(name, None)
        deadline = asyncio.get_running_loop().time() + STOP_S_MAX
        # Asked again now and then: a library on the way may have swallowed the cancellation.
        while not task.done() and asyncio.get_running_loop().time() < deadline:
            task.cancel()
            await asyncio.wait([task], timeout=STOP_AGAIN_S)
        self.sources[name].state = "stopped"
        if not task.done():
            log.warning("source %s did not stop within %s s", name, STOP_S_MAX)

    async def stop_all(self) -> None:
        """End all sources at once."""
        await asyncio.gather(*(self.stop(name) for name in list(self._tasks)))

    async def store(
        self, events: Sequence[Event], source: str | None = None, cursor: Cursor | msgspec.Raw | None = None
    ) -> None:
        """Handlers first, then everything in one transaction. Returns when it is durable."""
        if not self._open.is_set():
            await self._open.wait()
        alerts = self.engine.handle(events, now_us()) if events else []
        if self._lines_shown:
            hide_lines(events)
        changes = self.engine.changes()
        await self._append([*events, *alerts] if alerts else events, alerts, changes, source, cursor)

    async def _append(
        self,
        events: Sequence[Event],
        alerts: Sequence[Event],
        changes: Mapping[str, State],
        source: str | None = None,
        cursor: Cursor | msgspec.Raw | None = None,
    ) -> None:
        actions = self.actions
        kept = actions.take(alerts) if alerts and actions is not None else {}
        await self._buffer.append(events, source, cursor, {**changes, ACTIONS: kept} if kept else changes)
        self.alerts += len(alerts)
        if kept and actions is not None:
            actions.committed(kept)

    async def _run(self, source: Source, state: SourceState) -> None:
        loop = asyncio.get_running_loop()
        wait_s = BACKOFF_S_MIN
        while True:
            begun = loop.time()
            try:
                await self._read(source, state)
                error: Exception = NotConnected("the source ended")
            except (NotConnected, ConfigError) as caught:
                error = caught
            except Exception as caught:  # noqa: BLE001 (a defect of one source must not cost the others; it is reported, not hidden)
                _log_defect(state, caught)
                error = caught
            wait_s = BACKOFF_S_MIN if loop.time() - begun > STEADY_S else wait_s
            pause = CONFIG_RETRY_S if isinstance(error, ConfigError) else random.uniform(wait_s / 2, wait_s)  # noqa: S311 (jitter)
            state.retry_us = now_us() + int(pause * 1e6)
            await self._trouble(state, error)
            wait_s = min(wait_s * 2, BACKOFF_S_MAX)
            await asyncio.sleep(pause)
            state.restarts += 1
            state.retry_us = None

    async def _read(self, source: Source, state: SourceState) -> None:
        cursor = _own(await self._buffer.cursor(state.name), state)
        state.state = "starting" if cursor is None else "running"
        storing: deque[asyncio.Task[None]] = deque()
        try:
            async with aclosing(source.batches(cursor)) as batches:  # type: ignore[type-var]
                async for events, after in batches:
                    # Written down now: the source reads on meanwhile, and changes what its cursor is made of.
                    position = (
                        None if after is None else msgspec.Raw(msgspec.json.encode({KIND: state.kind, AT: after}))
                    )
                    storing.append(asyncio.create_task(self._store(state, events, position)))
                    # A rereadable source parses its next batch while these are being written and stored.
                    while len(storing) > (STORING_MAX if source.rereadable else 0):
                        # A stop does not tear it off: whoever reads the cursor next is to find what was yielded here in it.
                        await asyncio.shield(storing[0])
                        storing.popleft()
        finally:
            ended = await asyncio.gather(*storing, return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseException):
                raise error

    async def _store(self, state: SourceState, events: list[Event], cursor: msgspec.Raw | None) -> None:
        await self.store(events, state.name, cursor)
        state.state = "running"
        if events:
            state.events += len(events)
            state.last_event_us, state.heard_s = now_us(), time.monotonic()
            state.gaps += sum(event.type == "collection.gap" for event in events)
        if state.in_trouble and not state.report.trouble:
            state.in_trouble = False
            await self.store([_say(state, "agent.source.recovered", f"source {state.name} works again", "success")])

    async def _trouble(self, state: SourceState, error: Exception) -> None:
        text = str(error) if isinstance(error, NotConnected | ConfigError) else f"{type(error).__name__}: {error}"
        state.state = "failed" if isinstance(error, ConfigError) else "waiting"
        state.why = "configuration" if isinstance(error, ConfigError) else "defect"
        if isinstance(error, NotConnected):
            state.why = "away"
        state.report.connected = False
        state.report.fault(text)
        if not state.in_trouble:
            state.in_trouble = True
            await self.store([_say(state, "agent.source.trouble", f"source {state.name}: {text}", "failure")])


def _log_defect(state: SourceState, error: Exception) -> None:
    """With its traceback, once for each place: a defect comes again with every try."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{type(error).__name__} {last.filename}:{last.lineno}"
    if state.defect != place:
        state.defect = place
        shown = "".join(traceback.format_exception(error))
        log.error("source %s has a defect; it is started again and again: %s\n%s", state.name, error, shown)


def _own(kept: Cursor | None, state: SourceState) -> Cursor | None:
    """The cursor, where a source of this kind left it: one that was another kind before under this name begins as if new."""
    if kept is None:
        return None
    if kept.get(KIND) != state.kind:
        log.warning(
            "source %s was of type %s and is of type %s now: it begins anew", state.name, kept.get(KIND), state.kind
        )
        return None
    at: Cursor = kept[AT]
    return at


def _say(state: SourceState, type_: str, message: str, outcome: str) -> Event:
    now = now_us()
    return Event(now, now, type_, state.name, outcome=outcome, message=message[:2_000], data={"kind": state.kind})
