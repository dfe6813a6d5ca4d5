"""What holds for every kind: its example is true, it survives any event and any restart, and it keeps its bounds."""

import math
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ConfigDict, TypeAdapter, with_config

from agent.component import load
from agent.handlers import EXTRA, HANDLERS
from agent.handlers.base import KEY_CHARS_MAX, decode_key, encode_key, key_value
from agent.handlers.builtin import config_of
from agent.handlers.engine import Engine, handler_of
from agent.wire.event import Event
from tests.handlers import facts, play, play_with_restarts

README = Path(__file__).parents[2] / "agent" / "handlers" / "README.md"
OWN = (
    "absence",
    "baseline",
    "bound",
    "count",
    "drift",
    "frozen",
    "limit",
    "multivariate",
    "novelty",
    "rate",
    "ratio",
    "schedule",
    "sequence",
    "share",
    "together",
)
QUANTITIES = ("temperature", "level", "pressure", "running", "scrap_count", "total_count")
FORGETS_A_LITTLE = {"absence", "baseline", "frozen"}
"""Silence counts from the start; a part of a mean and a stand are stored now and then. A restart is meant to matter to these."""


def examples() -> list[tuple[str, dict[str, Any]]]:
    blocks = re.findall(r"```toml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    # [handlers.sigma] is no handler: each of its rules is one, of another kind, and test_sigma.py looks after it.
    found = [(name, one) for block in blocks for name, one in tomllib.loads(block).get("handlers", {}).items()]
    return [(name, one) for name, one in found if name != "sigma"]


EXAMPLES = examples()


def settings_of(example: dict[str, Any], **changed: Any) -> Any:
    given_ = {key: value for key, value in example.items() if key not in ("type", "where")} | changed
    return config_of(example["type"], given_)


def test_every_kind_has_an_example() -> None:
    assert {example["type"] for _, example in EXAMPLES} >= set(OWN)
    assert set(OWN) <= set(HANDLERS)


@pytest.mark.parametrize(("name", "example"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_example_of_the_documentation_is_accepted_and_runs(name: str, example: dict[str, Any]) -> None:
    plain = {key: value for key, value in example.items() if key != "type"}
    config = config_of(example["type"], plain)
    checked = TypeAdapter(with_config(ConfigDict(extra="forbid"))(type(config))).validate_python(plain)
    assert checked == config == msgspec.convert(msgspec.to_builtins(config), type(config))
    engine = Engine({name: handler_of(name, config)})
    assert engine.handle([], 0) == []
    assert engine.stats()[name].kind == example["type"]


_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
SIGNAL_KEYS = (
    "value",
    "order",
    "unit",
    "range",
    "machine",
    "unit_id",
    "status_code",
    "delta",
    "reset",
    "quality",
    "text",
    "previous",
)
wild = st.lists(
    st.builds(
        Event,
        st.integers(-(2**63), 2**63 - 1) | st.integers(0, 1_000_000_000),
        st.integers(0, 2**60),
        st.sampled_from(
            [
                "authentication.failure",
                "authentication.success",
                "equipment.reading",
                "configuration.setpoint.changed",
                "a.b",
            ]
        ),
        st.sampled_from(["", "plc"]),
        src_ip=st.none() | st.text(max_size=3),
        target=st.none() | st.sampled_from(["current", "flow", "pressure", "vibration", "\udce4"]),
        outcome=st.none() | st.sampled_from(["success", "failure"]),
        data=st.builds(
            lambda said, more: more | said,
            st.fixed_dictionaries({}, optional={"quantity": st.sampled_from(QUANTITIES), "value": st.floats(-9, 9)}),
            st.dictionaries(st.sampled_from(SIGNAL_KEYS), _values, max_size=3),
        ),
    ),
    max_size=25,
)


@pytest.mark.parametrize(("name", "example"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
@settings(max_examples=15, deadline=None)
@given(events=wild, killed=st.sets(st.integers(0, 25)))
def test_any_events_are_judged_without_error_and_alike_after_any_restart_and_within_max_keys(
    name: str, example: dict[str, Any], events: list[Event], killed: set[int]
) -> None:
    changed: dict[str, Any] = {"max_keys": 6, "cool_down_s": 0}
    if example["type"] in FORGETS_A_LITTLE:
        killed = set()
    config = settings_of(example, **changed)
    made: list[Any] = []

    def make() -> Any:
        made.append(load(HANDLERS, example["type"], what="handler", extra=EXTRA)(name, config))
        return made[-1]

    alerts = play(make(), events)
    assert facts(play(make(), events)) == facts(alerts)
    for handler in made:
        assert len(handler.table) <= 6
    again = play_with_restarts(make, events, killed)
    assert [alert.type for alert in again if "flooded" not in alert.type] == [
        alert.type for alert in alerts if "flooded" not in alert.type
    ]
    for alert in alerts:
        assert alert.message
        assert alert.data["handler"] == name
        msgspec.json.encode(alert.data)


@pytest.mark.parametrize(
    "value",
    ["\udce4", "x" * 9_000, 10**400, -(2**70), math.nan, math.inf, True, ["\udce4"], {"a": 10**40}, [[], {}], None],
)
def test_any_value_is_a_key_that_can_be_stored_and_found_again(value: Any) -> None:
    key = key_value(value)
    assert decode_key(encode_key(key)) == key == key_value(value)
    assert decode_key(encode_key((key, 1))) == (key, 1)
    encode_key(key).encode()
    assert len(str(key)) <= KEY_CHARS_MAX
