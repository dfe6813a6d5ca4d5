"""The supervisor of background tasks: none ends another, each starts again by itself, and health knows which is not well."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from collector.background import BACK_OFF_S_MAX, Pulse, Supervisor, described, reasons


@dataclass
class Clock:
    """A clock that sleeping moves."""

    now: float = 1_000.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


async def turns(supervisor: Supervisor, until: Callable[[], bool]) -> None:
    """Run until something is so, then cancel."""
    running = asyncio.create_task(supervisor.run())
    async with asyncio.timeout(5):
        while not until():
            assert not running.done()
            await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def failing(*errors: BaseException) -> tuple[list[int], Callable[[], Awaitable[None]]]:
    """A task that ends with these errors, then runs for ever."""
    begun: list[int] = []

    async def run() -> None:
        begun.append(len(begun))
        if len(begun) <= len(errors):
            raise errors[len(begun) - 1]
        await asyncio.Event().wait()

    return begun, run


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Exceeds the limit (4300 digits)"), RecursionError("maximum recursion depth exceeded"),
        ExceptionGroup("unhandled errors in a TaskGroup", [KeyError("key")]), asyncio.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
async def test_a_task_that_ends_starts_again_and_ends_no_other(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    supervisor = Supervisor(clock=clock, sleep=clock.sleep)
    begun, bad = failing(error, error, error)
    others, good = failing()
    supervisor.add("alerts", bad, Pulse(clock), late_s=60)
    supervisor.add("streams", good, Pulse(clock), late_s=60)
    with caplog.at_level(logging.INFO):
        await turns(supervisor, lambda: len(begun) == 4)
    assert others == [0]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert all(line.startswith("background task 'alerts' ended and starts again in ") for line in lines)
    assert "\n" not in "".join(lines)
    assert all(record.exc_info is None for record in caplog.records)


async def test_the_back_off_grows_to_a_bound() -> None:
    clock = Clock()
    supervisor = Supervisor(clock=clock, sleep=clock.sleep)
    begun, run = failing(*[ValueError("x")] * 10)
    supervisor.add("alerts", run, Pulse(clock), late_s=60)
    await turns(supervisor, lambda: len(begun) == 11)
    assert clock.slept[0] <= 1 < clock.slept[1] < clock.slept[2]
    assert max(clock.slept) <= BACK_OFF_S_MAX


async def test_health_is_red_from_the_end_of_a_task_until_it_has_succeeded_again() -> None:
    clock = Clock()
    supervisor = Supervisor(clock=clock, sleep=clock.sleep)
    begun, run = failing(ValueError("bad row"))
    pulse = Pulse(clock)
    supervisor.add("alerts", run, pulse, late_s=60, remedy="Do this")
    pulse.ok()
    await turns(supervisor, lambda: len(begun) == 2)
    (one,) = supervisor.health().values()
    assert (one.ok, one.restarts) == (False, 1)
    assert one.detail == "ended: ValueError: bad row; it is started again. Do this"
    assert reasons(supervisor.health().items()) == f"alerts: {one.detail}"
    clock.now += 5
    pulse.ok()
    clock.now += 7
    (one,) = supervisor.health().values()
    assert (one.ok, one.age_s, one.detail) == (True, 7.0, "runs")
    assert reasons(supervisor.health().items()) == ""


async def test_health_is_red_where_a_task_runs_and_does_not_succeed() -> None:
    clock = Clock()
    supervisor = Supervisor(clock=clock, sleep=clock.sleep)
    _, run = failing()
    pulse = Pulse(clock)
    supervisor.add("alerts", run, pulse, late_s=60)
    await turns(supervisor, lambda: supervisor.tasks[0].began is not None)
    assert supervisor.health()["alerts"].ok
    pulse.waits("PostgreSQL cannot be used now")
    clock.now += 61
    found = supervisor.health()["alerts"]
    assert not found.ok
    assert found.detail.startswith("no success for 61 s: PostgreSQL cannot be used now. ")


async def test_a_task_that_has_nothing_to_do_returns_and_is_not_missed() -> None:
    clock = Clock()
    supervisor = Supervisor(clock=clock, sleep=clock.sleep)

    async def nothing() -> None:
        return

    supervisor.add("checkpoints", nothing, Pulse(clock), late_s=1)
    await supervisor.run()
    clock.now += 100
    assert supervisor.health() == {}


def test_an_error_is_described_in_one_line() -> None:
    group = ExceptionGroup("a", [ExceptionGroup("b", [ValueError("first\nsecond")])])
    assert described(group) == "ValueError: first"
    assert described(KeyError()) == "KeyError"
    assert len(described(ValueError("x" * 5_000))) < 400
