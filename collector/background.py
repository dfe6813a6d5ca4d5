"""Runs what goes on beside requests: each task alone, its end logged at once, started again with back-off, its last success known.

    Supervisor.run ── a task each ──► run() ── Pulse.ok() after each success ──► health: age, reason, remedy
                                        └─ raises ──► one line in the log, back-off, run() again

No task ends another one. Whatever ends a task that should run for ever is logged in the moment in which it happens, and makes health red
until the task has succeeded again; so does a task that neither ends nor succeeds for `late_s`.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

_log = logging.getLogger("linewarden.collector")

BACK_OFF_S_MIN, BACK_OFF_S_MAX = 1.0, 60.0
TEXT_CHARS_MAX = 300
UNREADABLE = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""What decoding and judging a single stored event raises where it cannot be read. Readers pass over the event, and count and report it."""


@dataclass(slots=True)
class Pulse:
    """What a task reports of itself. Written by the task, read by health."""

    clock: Callable[[], float] = time.monotonic
    last: float | None = None
    """When it last succeeded; None: not yet."""
    trouble: str = ""
    """Why it does not, where it waits for something by itself."""

    def ok(self) -> None:
        """Report a success."""
        self.last, self.trouble = self.clock(), ""

    def waits(self, error: object) -> None:
        """Report what it waits for."""
        self.trouble = described(error)


@dataclass(slots=True, kw_only=True)
class Task:
    """Something that runs until it is cancelled. `late_s`: so long without a success, and health is red; `remedy`: what to do then."""

    name: str
    run: Callable[[], Awaitable[None]]
    pulse: Pulse
    late_s: float
    remedy: str = "See the log of the collector; restart it if the database answers and this stays"
    restarts: int = 0
    ended: str = ""
    """Why it last ended; empty as soon as it succeeded since."""
    ended_at: float = 0.0
    began: float | None = None
    finished: bool = False


@dataclass(frozen=True, slots=True)
class TaskHealth:
    """How a task is. `age_s`: since its last success; None: there was none yet."""

    ok: bool
    age_s: float | None
    restarts: int
    detail: str


def described(error: object) -> str:
    """Return an error in one line; of a group its first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = str(error).strip().partition("\n")[0][:TEXT_CHARS_MAX]
    if not isinstance(error, BaseException):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@dataclass(slots=True)
class Supervisor:
    """Keeps tasks running. `sleep` and `clock` are those of the loop, or a test's."""

    tasks: list[Task] = field(default_factory=list)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    def add(
        self, name: str, run: Callable[[], Awaitable[None]], pulse: Pulse, *, late_s: float, remedy: str = ""
    ) -> None:
        """Take a task, before `run`."""
        made = Task(name=name, run=run, pulse=pulse, late_s=late_s)
        made.remedy = remedy or made.remedy
        self.tasks.append(made)

    async def run(self) -> None:
        """Run all of them until cancelled."""
        async with asyncio.TaskGroup() as group:
            for task in self.tasks:
                group.create_task(self._keep(task), name=task.name)

    async def _keep(self, task: Task) -> None:
        failures = 0
        while True:
            task.began = began = self.clock()
            try:
                await task.run()
            except asyncio.CancelledError as error:
                current = asyncio.current_task()
                if current is not None and current.cancelling():
                    raise
                # Something that it awaited was cancelled, and nobody cancelled the task.
                reason: BaseException = error
            except Exception as error:  # noqa: BLE001 - this is the runner: whatever ends a task is logged here, and the task runs again
                reason = error
            else:
                task.finished = True
                return
            failures = 1 if self.clock() - began > BACK_OFF_S_MAX else failures + 1
            wait_s = min(BACK_OFF_S_MAX, BACK_OFF_S_MIN * 2.0 ** min(failures - 1, 10)) * random.uniform(0.8, 1.0)  # noqa: S311 - a jitter
            task.restarts += 1
            task.ended, task.ended_at = described(reason), self.clock()
            _log.error("background task %r ended and starts again in %.1f s: %s", task.name, wait_s, task.ended)
            _log.debug("background task %r", task.name, exc_info=reason)
            await self.sleep(wait_s)

    def health(self) -> dict[str, TaskHealth]:
        """Return how each task is."""
        return {task.name: self._of(task) for task in self.tasks if not task.finished}

    def _of(self, task: Task) -> TaskHealth:
        now, last, began = self.clock(), task.pulse.last, task.began
        age_s = round(now - last, 1) if last is not None else None
        if task.ended and last is not None and last > task.ended_at:
            task.ended = ""
        if task.ended:
            return TaskHealth(
                ok=False,
                age_s=age_s,
                restarts=task.restarts,
                detail=f"ended: {task.ended}; it is started again. {task.remedy}",
            )
        since = last if last is not None else began
        if since is not None and now - since > task.late_s:
            why = f": {task.pulse.trouble}" if task.pulse.trouble else ""
            return TaskHealth(
                ok=False,
                age_s=age_s,
                restarts=task.restarts,
                detail=f"no success for {now - since:.0f} s{why}. {task.remedy}",
            )
        return TaskHealth(
            ok=True,
            age_s=age_s,
            restarts=task.restarts,
            detail=task.pulse.trouble or ("runs" if last is not None else "starts"),
        )


def reasons(health: Iterable[tuple[str, TaskHealth]]) -> str:
    """Return which tasks are not well and why, in one line; empty where all are."""
    return "; ".join(f"{name}: {one.detail}" for name, one in health if not one.ok)
