"""`together`: exact against a search through every window of all events, in any order of arrival, and the same after a restart."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.handlers.base import ConfigRaises
from agent.handlers.sequence import ConfigStep
from agent.handlers.together import STEP_EVENTS_MAX, ConfigTogether, TogetherHandler
from agent.wire.event import Event
from tests.handlers import S, event, facts, play, play_with_restarts

TYPES = ("a.one", "a.two", "a.three")


def config(**changed: Any) -> ConfigTogether:
    given_: dict[str, Any] = {
        "steps": tuple(ConfigStep(where=f"type == '{type_}'") for type_ in TYPES),
        "within_s": 10,
        "late_s": 3,
        "cool_down_s": 0,
        "by": ("src_ip",),
        "raises": ConfigRaises(type="alert.together"),
    }
    return ConfigTogether(**(given_ | changed))


def arriving(second: float, seen: float, type_: str, src_ip: str = "a") -> Event:
    return Event(round(second * S), round(seen * S), type_, "plc", src_ip=src_ip)


def reference(events: list[Event], one: ConfigTogether) -> list[tuple[int, str | None, int]]:
    """Slow and obvious: after each event, try every window that begins with an event and holds the new one.

    When an alert is raised, all that this key had is used up. An event later than the window and late_s does not count.
    """
    window, keep = round(one.within_s * S), round((one.within_s + one.late_s) * S)
    pool: dict[str | None, list[Event]] = {}
    newest: dict[str | None, int] = {}
    raised = []
    for new in events:
        key = new.src_ip
        newest[key] = max(newest.get(key, new.time), new.time)
        if new.time < newest[key] - keep:
            continue
        pool[key] = [old for old in [*pool.get(key, []), new] if old.time >= newest[key] - keep]
        for begin in sorted(old.time for old in pool[key]):
            held = {old.type for old in pool[key] if begin <= old.time <= begin + window}
            if begin <= new.time <= begin + window and held == set(TYPES):
                raised.append((new.time, key, begin))
                pool[key] = []
                break
    return raised


_events = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 16), st.sampled_from(TYPES), st.sampled_from(["a", "b"])), max_size=30
)


@settings(max_examples=200, deadline=None)
@given(drawn=_events, killed=st.sets(st.integers(0, 30)))
def test_alerts_are_those_of_a_search_through_all_windows_also_after_any_restart(
    drawn: list[tuple[int, int, str, str]], killed: set[int]
) -> None:
    given_ = sorted((arriving(at, at + delay, type_, ip) for at, delay, type_, ip in drawn), key=lambda e: e.observed)
    alerts = play(TogetherHandler("t", config()), given_)
    assert [(one.time, one.src_ip, one.data["first"]["time"]) for one in alerts] == reference(given_, config())
    assert facts(play_with_restarts(lambda: TogetherHandler("t", config()), given_, killed)) == facts(alerts)


@pytest.mark.parametrize(("last_s", "count"), [(10, 1), (10.000001, 0)])
def test_window_holds_its_last_microsecond_and_not_one_more(last_s: float, count: int) -> None:
    events = [arriving(0, 0, TYPES[2]), arriving(1, 1, TYPES[0]), arriving(last_s, last_s, TYPES[1])]
    assert len(play(TogetherHandler("t", config()), events)) == count


def test_flood_of_one_step_costs_a_bounded_state_and_the_newest_count() -> None:
    handler = TogetherHandler("t", config())
    play(handler, [event(n / 1_000, TYPES[0], src_ip="a") for n in range(2_000)])
    (state,) = handler.changes().values()
    assert state is not None
    assert len(state) < 100 * STEP_EVENTS_MAX
    (alert,) = play(handler, [event(3, TYPES[1], src_ip="a"), event(4, TYPES[2], src_ip="a")])
    assert alert.data["first"]["time"] == (2_000 - STEP_EVENTS_MAX) * S // 1_000
