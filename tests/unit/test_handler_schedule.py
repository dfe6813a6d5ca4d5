"""`schedule`: shifts, holidays, maintenance windows and summer time, against a model that walks the minutes."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.handlers.base import ConfigRaises
from agent.handlers.clock import DAYS, Calendar
from agent.handlers.schedule import ConfigSchedule, ScheduleHandler
from agent.wire.event import Event
from tests.handlers import S, event, facts, play, play_with_restarts

BERLIN = ZoneInfo("Europe/Berlin")


def config(**changed: Any) -> ConfigSchedule:
    given_: dict[str, Any] = {
        "windows": ("Mon-Fri 06:00-22:00",),
        "time_zone": "Europe/Berlin",
        "raises": ConfigRaises(type="alert.setpoint.out_of_hours"),
    }
    return ConfigSchedule(**(given_ | changed))


def at(text: str, **more: Any) -> Event:
    moment = datetime.fromisoformat(text)
    return event(moment.replace(tzinfo=moment.tzinfo or BERLIN).timestamp(), "configuration.setpoint.changed", **more)


def raised(text: str, **changed: Any) -> bool:
    return bool(play(ScheduleHandler("s", config(**changed)), [at(text)]))


def test_change_at_night_is_raised_with_its_local_time() -> None:
    (alert,) = play(ScheduleHandler("s", config(by=("target",))), [at("2026-03-02 22:00", target="press")])
    assert alert.message == (
        "configuration.setpoint.changed of target press at Mon 2026-03-02 22:00, outside Mon-Fri 06:00-22:00"
    )
    assert alert.data["limit"] == ["Mon-Fri 06:00-22:00"]


def test_window_holds_its_beginning_and_not_its_end() -> None:
    assert [raised(f"2026-03-02 {time}") for time in ("05:59:59", "06:00", "21:59:59", "22:00")] == [
        True,
        False,
        False,
        True,
    ]


def test_window_over_midnight_belongs_to_the_day_it_begins_on() -> None:
    night = {"windows": ("Fri 22:00-06:00",)}
    assert not raised("2026-03-06 23:00", **night)
    assert not raised("2026-03-07 05:59", **night)
    assert raised("2026-03-07 06:00", **night)
    assert raised("2026-03-06 05:00", **night)
    assert raised("2026-03-07 23:00", **night)


def test_hours_follow_the_wall_clock_into_summer_time() -> None:
    assert raised("2026-03-27T04:30:00+00:00")
    assert not raised("2026-03-30T04:30:00+00:00")


def test_no_shift_begins_on_a_holiday() -> None:
    assert raised("2026-12-25 10:00", holidays=("12-25",))
    assert raised("2026-05-14 10:00", holidays=("2026-05-14",))
    assert not raised("2027-05-14 10:00", holidays=("2026-05-14",))
    assert not raised("2026-12-25 05:00", holidays=("12-25",), windows=("22:00-06:00",))


def test_maintenance_window_is_expected_once() -> None:
    windows = {"windows": ("2026-03-07 08:00/2026-03-07 12:00",)}
    assert not raised("2026-03-07 08:00", **windows)
    assert raised("2026-03-07 12:00", **windows)
    assert raised("2026-03-14 08:00", **windows)
    assert raised("2026-03-07 08:00", **windows, raise_when="inside")


def test_work_of_one_night_is_one_alert() -> None:
    handler = ScheduleHandler("s", config(by=("source",)))
    assert len(play(handler, [at(f"2026-03-02 23:{minute:02d}") for minute in range(60)])) == 1
    assert handler.stats.suppressed == 59
    assert len(play(handler, [at("2026-03-03 00:59:00")])) == 1


@pytest.mark.parametrize(
    ("time", "reached"),
    [
        ("12:00", 0),
        ("21:00", 0),
        ("21:01", 1),
        ("21:59", 59),
        ("06:00", 59),
        ("22:00", 61),
        ("05:30", 90),
        ("02:00", 120),
    ],
)
def test_what_came_near_the_end_of_a_shift_is_remembered_where_it_is_asked_for(time: str, reached: float) -> None:
    handler = ScheduleHandler("s", config())
    handler.peaks = {}
    play(handler, [at(f"2026-03-02 {time}")])
    (peak,) = handler.peaks.values()
    assert (peak.reached, peak.limit) == (reached, 60)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"windows": ()}, "name at least one"),
        ({"windows": ("always",)}, "windows: 'always' is no window: write 'Mon-Fri"),
        ({"windows": ("Mo-Fry 06:00-22:00",)}, "there is no day"),
        ({"windows": ("06:00-25:00",)}, "there is no time 25:00"),
        ({"windows": ("06:00-06:00",)}, "for the whole day write 00:00-24:00"),
        ({"windows": ("2026-03-07 08:00/2026-03-06 12:00",)}, "ends before it begins"),
        ({"holidays": ("25.12.",)}, "holidays: '25.12.' is no date"),
        ({"holidays": ("02-30",)}, "holidays: "),
        ({"time_zone": "Europe/Berln"}, "time_zone: there is no time zone"),
    ],
)
def test_calendar_that_cannot_be_is_refused_with_its_key(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        config(**changed)


@pytest.mark.parametrize("time", [-(10**18), 0, 10**18, 2**63])
def test_any_time_is_judged(time: int) -> None:
    assert ScheduleHandler("s", config()).handle([Event(time, 0, "x")], 0) is not None


windows_ = st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 23), st.integers(1, 24)).filter(
    lambda t: t[2] != t[3]
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(windows_, min_size=1, max_size=3),
    st.lists(st.integers(0, 14 * 24 * 4), min_size=1, max_size=40),
    st.booleans(),
)
def test_windows_hold_the_minutes_that_a_walk_through_them_finds(
    given_: list[tuple[int, int, int, int]], quarters: list[int], over_the_change: bool
) -> None:
    calendar = Calendar(
        tuple(f"{DAYS[a]}-{DAYS[b]} {begin:02d}:00-{end:02d}:00" for a, b, begin, end in given_), (), "Europe/Berlin"
    )
    start = datetime(2026, 3, 20, tzinfo=UTC) if over_the_change else datetime(2026, 6, 1, tzinfo=UTC)
    inside: set[tuple[int, int, int]] = set()
    for first, last, begin, end in given_:
        day = first
        while True:
            hour, on = begin, day
            while hour != end or (on == day and end <= begin):
                inside.add((on, hour, 0))
                hour += 1
                if hour == 24:
                    if end == 24:
                        break
                    hour, on = 0, (on + 1) % 7
            if day == last:
                break
            day = (day + 1) % 7
    for quarter in quarters:
        moment = start + timedelta(minutes=15 * quarter)
        local = moment.astimezone(BERLIN)
        assert calendar.holds(int(moment.timestamp()) * S) is ((local.weekday(), local.hour, 0) in inside)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-7_200, 30_000), st.sampled_from("ab")), max_size=50),
    st.integers(0, 20_000),
    st.sets(st.integers(0, 50)),
)
def test_alerts_are_those_of_the_obvious_model_with_any_restart(
    steps: list[tuple[int, str]], cool: int, killed: set[int]
) -> None:
    time, events, expected = 1_772_000_000, [], []
    last: dict[str, int] = {}
    for step, target in steps:
        time += step
        events.append(event(time, target=target))
        local = datetime.fromtimestamp(time, BERLIN)
        if local.weekday() >= 5 or not 6 <= local.hour < 22:
            if target not in last or time - last[target] >= cool:
                expected.append((time * S, target))
                last[target] = time
            last[target] = max(last[target], time)

    def make() -> ScheduleHandler:
        return ScheduleHandler("s", config(by=("target",), cool_down_s=cool))

    alerts = play(make(), events)
    assert [(alert.time, alert.target) for alert in alerts] == expected
    assert facts(play_with_restarts(make, events, killed)) == facts(alerts)
