"""The centre's rules about one agent, at their bounds: what is told, what is not, and when it is over."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from collector.rules import RULES, buffer, lag, stalled
from collector.rules.base import OVER, Agent, AgentRule, Finding

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LAG, BUFFER, STALLED = lag.Rule(lag.Config()), buffer.Rule(buffer.Config()), stalled.Rule(stalled.Config())


def agent(status: Mapping[str, Any], **more: Any) -> Agent:
    known: dict[str, Any] = {
        "agent_id": UUID(int=1), "place_id": 1, "site": "north", "line": "l1", "station": "s1", "last_seen": NOW, "last_event": NOW,
        "clock_offset_us": None, "state": "online", "since": NOW, "stopped": None, "revoked": False,
    }  # fmt: skip
    return Agent(**{**known, **more}, status=status)


def waiting(seconds: float, **more: Any) -> Agent:
    """Its oldest event waits so long already."""
    oldest = NOW - timedelta(seconds=seconds)
    return agent({"buffer": {"oldest_us": round(oldest.timestamp() * 1e6), "events": 7}}, **more)


def used(part: float, **more: Any) -> Agent:
    return agent({"buffer": {"used_bytes": round(1_000_000 * part), "bytes_max": 1_000_000}}, **more)


def told(rule: AgentRule, about: Agent, *, active: bool = False) -> str | None:
    """Type of the finding, `over`, or None."""
    verdict = rule.judge(about, NOW, active=active)
    return verdict.type if isinstance(verdict, Finding) else "over" if verdict is OVER else None


@pytest.mark.parametrize(
    ("rule", "about", "active", "says"),
    [
        (LAG, waiting(900.001), False, "alert.agent.lag"),
        (LAG, waiting(900), False, None),
        (LAG, waiting(900.001), True, None),
        (LAG, waiting(450), True, None),
        (LAG, waiting(449.999), True, "over"),
        (LAG, waiting(10_000, state="silent"), False, None),
        (LAG, waiting(10_000, revoked=True), False, None),
        (LAG, waiting(10_000, revoked=True), True, "over"),
        # Its clock is half an hour ahead of ours: what looks fresh to us waits, what looks old does not.
        (LAG, waiting(0, clock_offset_us=1_800_000_000), False, "alert.agent.lag"),
        (LAG, waiting(1_800, clock_offset_us=-1_800_000_000), False, None),
        (LAG, agent({}), False, None),
        (LAG, agent({}), True, "over"),
        (LAG, agent({"buffer": {}}), False, None),
        (LAG, agent({"buffer": {"oldest_us": "yesterday"}}), False, None),
        (BUFFER, used(0.8), False, "alert.agent.buffer"),
        (BUFFER, used(0.799_999), False, None),
        (BUFFER, used(0.6), True, None),
        (BUFFER, used(0.599_999), True, "over"),
        (BUFFER, used(1.0, revoked=True), False, None),
        (BUFFER, agent({"buffer": {"used_bytes": 5, "bytes_max": 0}}), False, None),
        (BUFFER, agent({"buffer": "full"}), False, None),
        (STALLED, agent({"buffer": {"stalled": True}}), False, "alert.agent.stalled"),
        (STALLED, agent({"buffer": {"stalled": True}}), True, None),
        (STALLED, agent({"buffer": {"stalled": False}}), True, "over"),
        (STALLED, agent({"buffer": {"stalled": "true"}}), False, None),
        (STALLED, agent({"buffer": {"stalled": True}}, revoked=True), False, None),
        (STALLED, agent({}), True, "over"),
    ],
)
def test_agent_rule_tells_behind_its_bound_once_and_is_over_behind_the_other(
    rule: AgentRule, about: Agent, active: bool, says: str | None
) -> None:
    assert told(rule, about, active=active) == says


def test_buffer_that_was_told_to_fill_up_is_told_again_when_it_takes_nothing() -> None:
    full = agent({"buffer": {"used_bytes": 9, "bytes_max": 10, "stalled": True}})
    assert told(BUFFER, full, active=True) is None
    assert told(STALLED, full) == "alert.agent.stalled"


@pytest.mark.parametrize("name", RULES)
def test_each_rule_is_called_as_its_section_of_the_settings(name: str) -> None:
    from importlib import import_module

    module = import_module(RULES[name])
    assert module.Rule(module.Config()).name == name
