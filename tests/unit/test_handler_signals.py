"""`bound`, `baseline`, `frozen`, `share`: against slow models of the whole history, over restarts, and what they know of machines."""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.handlers.base import ConfigRaises
from agent.handlers.baseline import HOLD_US, PIECES, BaselineHandler, ConfigBaseline
from agent.handlers.bound import BoundHandler, ConfigBound
from agent.handlers.frozen import ConfigFrozen, FrozenHandler
from agent.handlers.machine import MACHINES_MAX, Machines, machine_key, measured
from agent.handlers.share import DEVIATIONS, ConfigShare, ShareHandler
from agent.wire.event import Event
from tests.handlers import S, Store, event, facts, play, play_with_restarts, reading

RAISES = ConfigRaises(type="alert.signal")


def running(second: float, value: Any, **more: Any) -> Event:
    return event(
        second, "equipment.state.changed", target="drive", data={"value": value, "quantity": "running", **more}
    )


def setpoint(second: float, value: float, previous: float, **more: Any) -> Event:
    data = {"value": value, "previous": previous, **more}
    return event(second, "configuration.setpoint.changed", target="speed", data=data)


# bound ----------------------------------------------------------------------------------------------------------------------------


def bound(**changed: Any) -> BoundHandler:
    given_: dict[str, Any] = {"range": "data.range", "raises": RAISES, "cool_down_s": 0}
    return BoundHandler("b", ConfigBound(**(given_ | changed)))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1, 3), st.integers(-3, 13), st.sampled_from("ab")), max_size=60),
    st.sets(st.integers(0, 60), max_size=6),
)
def test_bound_raises_each_way_out_of_the_range_once(steps: list[tuple[int, int, str]], killed: set[int]) -> None:
    events, expected, now = [], [], 100
    newest: dict[str, int] = {}
    is_out = {"a": False, "b": False}
    for step, value, target in steps:
        now += step
        events.append(reading(now, value, target, range=[0, 10]))
        out = not 0 <= value <= 10
        # Of a signal that never was beyond, nothing is kept, not even its newest time.
        if target in newest and now < newest[target]:
            continue
        if target in newest or out:
            newest[target] = now
        if out and not is_out[target]:
            expected.append((now, target))
        is_out[target] = out
    alerts = play(bound(), events)
    assert [(alert.time // S, alert.target) for alert in alerts] == expected
    assert facts(play_with_restarts(bound, events, killed)) == facts(alerts)


def test_bound_keeps_nothing_of_a_signal_that_is_where_it_may_be() -> None:
    handler, store = bound(), Store()
    play(handler, [reading(n, n % 10, f"t{n}", range=[0, 10]) for n in range(1_000)])
    store.keep(handler)
    assert len(handler.table) == 0
    assert store.state == {}


def test_bound_tells_apart_points_of_the_same_name_in_two_units() -> None:
    alerts = play(bound(), [reading(n, 99, range=[0, 10], unit_id=n) for n in (1, 2)])
    assert len(alerts) == 2
    assert alerts[0].message == "value of source plc, target temperature is 99, above 10: nothing can be measured there"


def test_bound_that_has_to_dwell_waits_for_it() -> None:
    handler = bound(dwell_s=10)
    assert not play(handler, [reading(n, 99, range=[0, 10]) for n in range(10)])
    assert not play(handler, [reading(10, 5, range=[0, 10]), *(reading(n, 99, range=[0, 10]) for n in range(11, 21))])
    (alert,) = play(handler, [reading(21, 99, range=[0, 10])])
    assert alert.data["first"]["time"] == 11 * S


def test_bound_needs_one_field_that_holds_the_bound() -> None:
    with pytest.raises(ValueError, match="one of them"):
        bound(reached="data.x")


# baseline -------------------------------------------------------------------------------------------------------------------------

PART = 10


def baseline(**changed: Any) -> BaselineHandler:
    given_: dict[str, Any] = {
        "part_s": PART, "parts": 2, "learn_parts": 4, "margin": 0.5, "floor": 0.1, "settle_s": 5, "cool_down_s": 0, "raises": RAISES,
    }  # fmt: skip
    return BaselineHandler("m", ConfigBaseline(**(given_ | changed)))


@dataclass
class SlowSignal:
    """The whole history of a signal, judged from its beginning each time."""

    readings: list[tuple[int, float]] = field(default_factory=list)

    def means(self) -> list[tuple[int, float]]:
        """(when it was full, mean) of each part."""
        found, pieces = [], list[tuple[int, float]]()
        for (before, value), (at, _) in zip(self.readings, self.readings[1:], strict=False):
            if 0 < (at - before) * S <= HOLD_US:
                pieces.append((at - before, value))
            if sum(length for length, _ in pieces) >= PART:
                covered = sum(length for length, _ in pieces)
                found.append((at, sum(length * value for length, value in pieces) / covered))
                pieces = []
        return found

    def alerts(self) -> list[int]:
        means = self.means()
        band = [mean for _, mean in means[:4]]
        if len(band) < 4:
            return []
        slack = max(0.5 * (max(band) - min(band)), 0.1 * abs(max(band) + min(band)) / 2)
        found, away = [], 0
        for at, mean in means[4:]:
            away = away + 1 if not min(band) - slack <= mean <= max(band) + slack else 0
            if away == 2:
                found.append(at)
        return found


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([-1, 1, 4, 10, 25, 4_000]), st.sampled_from([20, 21, 24, 40]), st.sampled_from("ab")),
        min_size=20,
        max_size=120,
    )
)
def test_baseline_raises_when_the_slow_model_does(steps: list[tuple[int, int, str]]) -> None:
    events, now = [], 100
    slow = {"a": SlowSignal(), "b": SlowSignal()}
    for step, value, target in steps:
        now += step
        events.append(reading(now, value, target))
        history = slow[target].readings
        if not history or now >= history[-1][0]:
            history.append((now, value))
    alerts = play(baseline(), events)
    for target, signal in slow.items():
        assert [alert.time // S for alert in alerts if alert.target == target] == signal.alerts()


def steady(start: int, count: int, value: float, target: str = "temperature") -> list[Event]:
    return [reading(start + n, value + n % 2, target, unit="degC", quantity="temperature") for n in range(count)]


def test_baseline_reads_as_a_sentence_and_says_what_is_usual() -> None:
    (alert,) = play(baseline(), [*steady(0, 60, 20), *steady(60, 30, 60)])
    assert alert.message == (
        "temperature of source plc, target temperature is 60.5 degC in the mean, above 22.55 degC, 2 times 10 s in a row;"
        " usual is 20.5 to 20.5 degC"
    )
    assert alert.data["usual"] == [20.5, 20.5]


@pytest.mark.parametrize("killed", [5, 37, 64, 71, 80, 95])
def test_baseline_raises_one_alert_however_often_it_is_killed(killed: int) -> None:
    events = [*steady(0, 60, 20), *steady(60, 60, 60)]
    again = play_with_restarts(baseline, events, {killed, killed + 3})
    assert len(again) == 1


def test_baseline_stores_a_part_a_bounded_number_of_times() -> None:
    handler, rows = baseline(part_s=1_200), 0
    for one in steady(0, 1_200, 20):
        handler.handle([one], one.observed)
        rows += len(handler.changes())
    assert rows <= PIECES + 2


def test_baseline_counts_only_time_in_which_the_machine_runs_and_has_settled() -> None:
    hot_at_start = [reading(60 + n, 90.0) for n in range(1, 5)]
    events = [running(0, True), *steady(0, 59, 20), running(59, "idle"), *steady(59, 1, 5), running(60, "Running")]
    handler = baseline(parts=1)
    assert not play(handler, [*events, *hot_at_start, *steady(65, 40, 20)])
    assert not play(handler, [running(106, 0), *steady(107, 100, 3)])
    assert len(play(handler, [running(300, 1), *steady(305, 40, 60)])) == 1


def test_baseline_learns_anew_under_other_setpoints_and_knows_the_old_ones_when_they_come_back() -> None:
    handler = baseline()
    assert not play(handler, steady(0, 60, 20))
    assert not play(handler, [setpoint(60, 9, 5), *steady(66, 60, 60)])
    assert len(play(handler, [setpoint(127, 5, 9), *steady(133, 30, 60)])) == 1
    assert len(play(handler, [setpoint(170, 9, 5), *steady(176, 30, 20)])) == 1


def test_baseline_alone_is_quiet_while_others_move_or_nobody_says_that_it_runs() -> None:
    learn = [one for target in "abc" for one in steady(0, 60, 20, target)]
    moved = steady(60, 60, 60, "a")
    stay = [one for target in "bc" for one in steady(60, 60, 20, target)]
    go = [one for target in "bc" for one in steady(60, 60, 60, target)]
    for first, others, count in (([running(0, True)], stay, 1), ([running(0, True)], go, 0), ([], stay, 0)):
        events = sorted([*learn, *others, *moved], key=lambda one: (one.time, one.target != "a"), reverse=False)
        alerts = play(baseline(alone=True, parts=3), [*first, *events])
        assert len([alert for alert in alerts if alert.target == "a"]) == count


# frozen ---------------------------------------------------------------------------------------------------------------------------


def frozen(**changed: Any) -> FrozenHandler:
    given_: dict[str, Any] = {
        "for_s": 20, "factor": 2, "learn_s": 40, "learn_changes": 3, "settle_s": 0, "cool_down_s": 0, "raises": RAISES,
    }  # fmt: skip
    return FrozenHandler("f", ConfigFrozen(**(given_ | changed)))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(*(st.booleans() for _ in range(4))), min_size=40, max_size=160))
def test_frozen_raises_when_the_slow_model_does(moves: list[tuple[bool, ...]]) -> None:
    """One reading of each of four signals every 4 s; looked at when the first comes, every 2 s at the most."""
    events, expected = [], []
    values, changed, count, longest, told = [1] * 4, [0] * 4, [0] * 4, [0] * 4, [False] * 4
    for n, row in enumerate(moves):
        at = 4 * n
        for i, moved in enumerate(row):
            if moved and n:
                if told[i]:
                    longest[i], told[i] = max(longest[i], at - changed[i]), False
                values[i], changed[i], count[i] = values[i] + 1, at, count[i] + 1
            events.append(reading(at, values[i], f"s{i}"))
            if i or not n:
                continue
            known = [j for j in range(4) if count[j] >= 3]
            for j in known:
                others = [k for k in known if k != j and longest[k] <= 20]
                alive = [k for k in others if at - changed[k] <= 20]
                stood = at - changed[j]
                if len(others) < 2 or 2 * len(alive) <= len(others):
                    continue
                if at < 40:
                    longest[j] = max(longest[j], stood) if stood > 2 else longest[j]
                elif stood > max(20, 2 * longest[j]) and not told[j]:
                    told[j] = True
                    expected.append((at, f"s{j}"))
    assert [(alert.time // S, alert.target) for alert in play(frozen(), events)] == expected


def cell(seconds: range, stuck_from: float = math.inf, *, targets: str = "abc") -> list[Event]:
    return [
        reading(at, 7 if target == "a" and at >= stuck_from else at % 5 + 1, target)
        for at in seconds
        for target in targets
    ]


def test_frozen_is_told_once_and_again_only_after_it_moved() -> None:
    handler = frozen()
    assert not play(handler, cell(range(100)))
    (alert,) = play(handler, cell(range(100, 300), 100))
    assert alert.target == "a"
    assert alert.message == (
        "value of source plc, target a has stood at 7 for 22 s while the machine goes on (limit 20 s)"
    )
    assert alert.data["first"]["time"] == 100 * S
    # What ended by itself is what it may do: it is not told again for twice as long.
    assert not play(handler, [*cell(range(300, 320)), *cell(range(320, 700), 320)])
    assert len(play(handler, cell(range(700, 800), 700))) == 1


@pytest.mark.parametrize("killed", [50, 305, 340, 361, 380, 600])
def test_frozen_raises_one_alert_however_often_it_is_killed(killed: int) -> None:
    events = [*cell(range(100)), *cell(range(100, 300), 100)]
    assert len(play_with_restarts(frozen, events, {killed, killed + 5})) == 1


def test_frozen_with_a_running_signal_needs_no_others_and_knows_a_standstill() -> None:
    alone: Any = {"targets": "a"}
    begun = [running(0, True), *cell(range(100), **alone)]
    assert len(play(frozen(), [*begun, *cell(range(100, 200), 100, **alone)])) == 1
    assert not play(frozen(), [*begun, running(100, False), *cell(range(100, 300), 100, **alone)])


def test_frozen_does_not_count_what_nobody_has_seen() -> None:
    handler = frozen()
    assert not play(handler, [*cell(range(100)), *cell(range(100, 115), 100)])
    # Nobody read for an hour. What stands stands since then.
    assert not play(handler, cell(range(3_700, 3_719), 0))


# share ----------------------------------------------------------------------------------------------------------------------------


def share(**changed: Any) -> ShareHandler:
    given_: dict[str, Any] = {
        "window_parts": 20, "learn_windows": 2, "above": 0.1, "factor": 1.5, "settle_s": 5, "cool_down_s": 0, "raises": RAISES,
    }  # fmt: skip
    return ShareHandler("s", ConfigShare(**(given_ | changed)))


def counted(second: float, quantity: str, value: float, **more: Any) -> Event:
    return event(second, "equipment.counter", target=quantity, data={"value": value, "quantity": quantity, **more})


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=10, max_size=120),
    st.booleans(),
    st.sets(st.integers(0, 120), max_size=6),
)
def test_share_raises_when_the_slow_model_does(made: list[tuple[bool, int]], deltas: bool, killed: set[int]) -> None:
    totals, events, expected = {True: 0, False: 0}, [], []
    window: list[tuple[bool, int]] = []
    learned: list[list[tuple[bool, int]]] = []
    is_open = False
    seen: set[bool] = set()
    for n, (good, parts) in enumerate(made):
        totals[good] += parts
        more = {"delta": parts} if deltas else {}
        events.append(counted(n, "good_count" if good else "scrap_count", totals[good], **more))
        if not deltas and good not in seen:
            seen.add(good)
            continue
        if not parts:
            continue
        window.append((good, parts))
        count, scrap = sum(p for _, p in window), sum(p for g, p in window if not g)
        if len(learned) < 2:
            if count >= 20:
                learned.append(window)
                window = []
            continue
        shares = [sum(p for g, p in w if not g) / sum(p for _, p in w) for w in learned]
        usual = sum(p for w in learned for g, p in w if not g) / sum(p for w in learned for _, p in w)
        limit = min(1.0, max(0.1, 1.5 * max(shares), usual + DEVIATIONS * math.sqrt(usual * (1 - usual) / 20)))
        if scrap > limit * max(20, count):
            if not is_open:
                expected.append(n)
            is_open, window = True, []
        elif count >= 20:
            is_open, window = False, []
    alerts = play(share(), events)
    assert [alert.time // S for alert in alerts] == expected
    assert facts(play_with_restarts(share, events, killed)) == facts(alerts)


def test_share_takes_the_counter_of_all_parts_where_there_is_one() -> None:
    handler = share()
    learn = [counted(n, "total_count", n * 10, delta=10) for n in range(1, 8)]
    assert not play(handler, learn)
    (alert,) = play(handler, [counted(9, "scrap_count", 3, delta=3)])
    assert alert.message == "3 of 10 parts of source plc were scrap: beyond 10 % of 20 parts; usual is 0 %"


def test_share_ignores_a_counter_that_began_again_or_was_set() -> None:
    handler = share()
    assert not play(handler, [counted(n, "good_count", n * 10) for n in range(8)])
    assert not play(
        handler, [counted(9, "scrap_count", 5_000), counted(10, "scrap_count", 3), counted(11, "scrap_count", 9_000)]
    )
    assert not play(handler, [counted(12, "scrap_count", 9_000, delta=9_000, reset=True)])
    assert len(play(handler, [counted(13, "scrap_count", 9_003)])) == 1


# machines -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "more", "runs"),
    [
        (True, {}, True), (1, {}, True), (2.5, {}, True), ("Running ", {}, True), (3, {"text": "producing"}, True),
        (False, {}, False), (0, {}, False), (None, {}, False), ("idle", {}, False), (1, {"text": "fault"}, False),
        (True, {"status_code": 0x80310000}, False), (math.nan, {}, False), ([], {}, False),
    ],
)  # fmt: skip
def test_a_machine_runs_where_its_signal_says_so(value: Any, more: dict[str, Any], runs: bool) -> None:
    machines = Machines(0)
    machine = machines.of("plc")
    assert machine is not None
    assert machines.judging(running(1, value, **more), "plc") is None
    assert machine.steady(2 * S) is runs


def test_setpoints_of_what_has_no_signals_are_not_kept() -> None:
    machines = Machines(0)
    assert machines.judging(setpoint(2, 9, 5), "plc") is None
    assert machines.changes() == {}


def test_machines_survive_a_restart_and_are_bounded() -> None:
    machines = Machines(5 * S)
    machine = machines.of("plc")
    assert machine is not None
    assert machines.judging(running(1, True), "plc") is None
    assert machines.judging(setpoint(2, 9, 5), "plc") is None
    assert machine.regime != ""
    stored = {key: value for key, value in machines.changes().items() if value is not None}
    again = Machines(5 * S)
    again.restore(stored)
    assert again.of("plc") == machine
    assert [again.of(f"m{n}") is not None for n in range(MACHINES_MAX)].count(False) == 1


def test_signals_are_of_the_machine_that_is_named_or_of_their_unit_or_of_the_source() -> None:
    assert machine_key(reading(0, 1)) == "plc"
    assert machine_key(reading(0, 1, unit_id=3)) == "plc/3"
    assert machine_key(reading(0, 1, unit_id=3, machine="press 1")) == "plc/press 1"


@pytest.mark.parametrize(
    "more",
    [{"outcome": "failure"}, {"data": {"value": 1, "quality": "infinite"}}, {"data": {"value": 1, "status_code": 0x40000000}},
     {"data": {"value": None}}, {"data": {"value": True}}, {"data": {"value": "1"}}],
)  # fmt: skip
def test_a_value_that_the_device_calls_bad_is_none(more: dict[str, Any]) -> None:
    assert measured(event(0, "equipment.reading", **({"data": {"value": 1}} | more))) is None
    assert measured(event(0, "equipment.reading", data={"value": 1, "status_code": 0x480})) == 1.0
