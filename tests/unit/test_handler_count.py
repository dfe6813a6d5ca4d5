"""`count`: exact against an obvious model, one alert an episode, and the same after a restart in the middle."""

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.handlers.base import ConfigEscalation, ConfigRaises
from agent.handlers.count import ConfigCount, CountHandler
from agent.wire.event import Event

S = 1_000_000


def config(**changed: Any) -> ConfigCount:
    given_: dict[str, Any] = {
        "where": "type == 'authentication.failure'",
        "by": ("src_ip",),
        "at_least": 3,
        "within_s": 10,
        "raises": ConfigRaises(type="alert.authentication.burst", severity="high", technique="T0812"),
    }
    return ConfigCount(**(given_ | changed))


def failure(second: float, src_ip: str | None = "10.0.0.1", **more: Any) -> Event:
    time = round(second * S)
    return Event(time, time, "authentication.failure", "auth", src_ip=src_ip, **more)


def run(handler: CountHandler, events: list[Event]) -> list[Event]:
    return [alert for event in events for alert in handler.handle([event], event.observed)]


def test_alert_says_in_a_sentence_what_it_saw_without_naming_a_user() -> None:
    events = [failure(i, actor="bob") for i in range(3)]
    (alert,) = CountHandler("burst", config()).handle(events, 77)
    assert alert.message == "3 authentication.failure events of src_ip 10.0.0.1 within 10 s (limit 3)"
    assert (alert.type, alert.severity, alert.time, alert.observed, alert.src_ip) == (
        "alert.authentication.burst",
        4,
        2 * S,
        77,
        "10.0.0.1",
    )
    assert alert.data["technique"] == "T0812"
    assert (alert.data["count"], alert.data["limit"], alert.data["window_s"]) == (3, 3, 10)
    assert alert.data["first"] == {"time": 0, "source": "auth", "type": "authentication.failure"}
    assert alert.data["last"]["time"] == 2 * S
    assert "bob" not in repr(alert)


def test_key_that_is_a_user_travels_as_actor_and_nowhere_else() -> None:
    (alert,) = CountHandler("burst", config(by=("actor", "data.user", "target"))).handle(
        [failure(i, actor="bob", target="plc", data={"user": "rob"}) for i in range(3)], 0
    )
    assert alert.actor == "bob"
    assert alert.data["user"] == "rob"
    assert alert.data["key"] == {"target": "plc"}
    assert "ob" not in f"{alert.message}{alert.correlation_id}{alert.data['key']}"


def test_events_exactly_the_window_apart_count_and_a_microsecond_more_does_not() -> None:
    assert len(run(CountHandler("b", config()), [failure(0), failure(5), failure(10)])) == 1
    assert not run(CountHandler("b", config()), [failure(0), failure(5), failure(10.000001)])


def test_burst_is_raised_once_until_its_key_has_been_quiet() -> None:
    handler = CountHandler("b", config(cool_down_s=20))
    assert len(run(handler, [failure(i) for i in range(60)])) == 1
    assert handler.totals() == {"10.0.0.1": 60}
    assert len(run(handler, [failure(i) for i in (79, 80, 81)])) == 1


def test_episode_that_goes_on_escalates_under_the_same_correlation_id() -> None:
    steps = (ConfigEscalation(at=10, severity="critical"), ConfigEscalation(at=20, severity=6))
    alerts = run(CountHandler("b", config(escalate=steps)), [failure(i) for i in range(40)])
    assert [(alert.severity, alert.data["count"]) for alert in alerts] == [(4, 3), (5, 10), (6, 20)]
    assert len({alert.correlation_id for alert in alerts}) == 1


def test_causes_without_a_correlation_id_are_tagged_and_shared_ones_are_taken_over() -> None:
    handler = CountHandler("b", config())
    events = [failure(0), failure(1), failure(2)]
    (alert,) = handler.handle(events, 0)
    assert [(event.time, tag) for event, tag in handler.tags] == [
        (event.time, alert.correlation_id) for event in events
    ]
    (alert,) = CountHandler("b", config()).handle([failure(i, correlation_id="session 7") for i in range(3)], 0)
    assert alert.correlation_id == "session 7"


def test_event_later_than_its_key_allows_is_counted_late_and_not_judged() -> None:
    handler = CountHandler("b", config(late_s=5))
    assert not run(handler, [failure(100), failure(84), failure(84), failure(84)])
    assert handler.stats.late == 3
    assert not run(handler, [failure(85), failure(86)])
    assert len(run(handler, [failure(95)])) == 1


def test_distinct_counts_values_and_not_events() -> None:
    handler = CountHandler("spray", config(distinct="actor"))
    assert not run(handler, [failure(0, actor="a")] * 50)
    assert len(run(handler, [failure(1, actor="b"), failure(2, actor="c")])) == 1
    assert not any(b"actor-name" in (value or b"") for value in handler.changes().values())


def test_address_that_is_missing_is_a_key_like_any_other() -> None:
    assert len(run(CountHandler("b", config()), [failure(i, None) for i in range(3)])) == 1


def test_flood_of_spoofed_addresses_does_not_push_out_a_real_burst_and_is_reported_once() -> None:
    handler = CountHandler("b", config(at_least=5, max_keys=100))
    real = [failure(i, "10.0.0.1") for i in range(5)]
    alerts = run(handler, real[:2])
    for part in range(2, 5):
        alerts += run(handler, [failure(part - 0.5, f"spoofed {part} {i}") for i in range(1_000)])
        alerts += run(handler, [real[part]])
    assert [alert.type for alert in alerts] == ["alert.handler.flooded", "alert.authentication.burst"]
    assert alerts[1].src_ip == "10.0.0.1"
    assert len(handler.table) == 100
    assert handler.stats.evicted > 2_000


def test_keys_that_nobody_touches_are_forgotten_as_new_ones_come() -> None:
    handler = CountHandler("b", config(max_keys=1_000_000))
    run(handler, [failure(i, f"address {i}") for i in range(1_000)])
    assert len(handler.table) < 50
    changes = handler.changes()
    assert sum(value is not None for value in changes.values()) == len(handler.table)


def test_changes_name_only_what_changed_since_the_last_call() -> None:
    handler = CountHandler("b", config())
    handler.handle([failure(0, f"10.0.0.{i}") for i in range(100)], 0)
    assert len(handler.changes()) == 100
    assert handler.changes() == {}
    handler.handle([failure(1, "10.0.0.7")], 0)
    assert list(handler.changes()) == ["s10.0.0.7"]


class Model:
    """All events of a key, looked at again for each one: slow and obvious."""

    def __init__(self, at_least: int, within: int, late: int, cool: int) -> None:
        self.at_least, self.within, self.late, self.cool = at_least, within, late, cool
        self.seen: dict[str, list[int]] = defaultdict(list)
        self.newest: dict[str, int] = {}
        self.open: set[str] = set()

    def see(self, key: str, time: int) -> bool:
        newest = self.newest.get(key, time)
        if time < newest - self.within - self.late:
            return False
        if key in self.open and time - newest < self.cool:
            self.newest[key] = max(newest, time)
            return False
        self.open.discard(key)
        self.newest[key] = max(newest, time)
        self.seen[key].append(time)
        times = sorted(t for t in self.seen[key] if t >= self.newest[key] - self.within - self.late)
        if any(sum(start <= t <= start + self.within for t in times) >= self.at_least for start in times):
            self.seen[key] = []
            self.open.add(key)
            return True
        return False


arrivals = st.lists(st.tuples(st.sampled_from("ab"), st.integers(-12, 12)), max_size=80)


@settings(max_examples=300, deadline=None)
@given(arrivals, st.integers(1, 4), st.integers(1, 8), st.integers(0, 4), st.integers(0, 12), st.data())
def test_alerts_are_those_of_the_obvious_model_with_any_order_and_any_restart(
    steps: list[tuple[str, int]], at_least: int, within: int, late: int, cool: int, data: st.DataObject
) -> None:
    settings_ = config(at_least=at_least, within_s=within, late_s=late, cool_down_s=cool)
    handler, model = CountHandler("b", settings_), Model(at_least, within * S, late * S, cool * S)
    stored: dict[str, bytes] = {}
    time = 1_000
    for key, step in steps:
        time += step
        event = failure(time, key)
        raised = [alert.src_ip for alert in handler.handle([event], 0)]
        assert raised == ([key] if model.see(key, time * S) else [])
        for name, value in handler.changes().items():
            stored.pop(name, None) if value is None else stored.update({name: value})
        if data.draw(st.booleans(), label="killed"):
            handler = CountHandler("b", settings_)
            handler.restore(stored)


@settings(max_examples=100, deadline=None)
@given(arrivals, st.integers(1, 4), st.lists(st.integers(1, 10), max_size=20))
def test_alerts_do_not_depend_on_how_events_are_cut_into_batches(
    steps: list[tuple[str, int]], at_least: int, cuts: list[int]
) -> None:
    time, events = 1_000, []
    for key, step in steps:
        time += step
        events.append(failure(time, key))
    whole, cut = CountHandler("b", config(at_least=at_least)), CountHandler("b", config(at_least=at_least))
    expected = whole.handle(events, 9)
    found: list[Event] = []
    left = events
    for size in cuts:
        found += cut.handle(left[:size], 9)
        left = left[size:]
    assert found + cut.handle(left, 9) == expected


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"where": "typ == 'a'"}, "where: an event has no field 'typ'"),
        ({"by": ("src",)}, "by: an event has no field 'src' .did you mean src_ip"),
        ({"distinct": "usr"}, "distinct"),
        ({"by": ("type",) * 9}, "8 are enough"),
        ({"escalate": (ConfigEscalation(at=3, severity="low"),)}, "escalate.at must lie above"),
    ],
)
def test_configuration_that_cannot_work_is_refused_with_its_key(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        config(**changed)


def test_alert_type_and_message_are_checked() -> None:
    with pytest.raises(ValueError, match=r"write it as alert\.name"):
        ConfigRaises(type="authentication.burst")
    with pytest.raises(ValueError, match="No user is named"):
        ConfigRaises(type="alert.x", message="{actor} failed")


@pytest.mark.parametrize(
    ("weight", "raised"), [(None, 0), (0, 0), (-5, 0), ("7", 0), (2.5, 0), (True, 0), (2, 0), (3, 1), (10**30, 1)]
)
def test_event_stands_for_as_many_as_its_weight_says_if_that_is_a_whole_number(weight: Any, raised: int) -> None:
    handler = CountHandler("c", config(weight="data.n"))
    data = {} if weight is None else {"n": weight}
    assert len(run(handler, [failure(0, data=data)])) == raised
    assert len(run(handler, [failure(1, data=data), failure(2, data=data)])) == 1 - raised
