"""Types that only the collector may state: nobody else sends them, and what is sent anyway is never taken for them."""

from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from agent.handlers.base import ConfigRaises
from agent.health_http import Refused
from agent.parsers.base import Context
from agent.parsers.records import RecordOptions, Records
from agent.sources.intake_read import Reader
from agent.wire.batch import read_frame
from agent.wire.taxonomy import COLLECTOR_TYPES, TAXONOMY, TYPE_LENGTH_MAX, TYPE_PATTERN, claimed, is_collectors
from collector.rules import RULES
from collector.rules.base import agent_type
from collector.store.rows import CENTRE, COLUMNS, EPOCH, rows_of
from tests.collector_process import Chain, event

FORGED = sorted(
    {
        *COLLECTOR_TYPES,
        "security.chain.forked",
        "security.signature.refused",
        "security.enrolment.refused",
        "alert.chain.x",
    }
)
ALLOWED = [
    "security",
    "security.log.cleared",
    "security.chains",
    "alert.agent.pressure",
    "agent.enrolled",
    "alert.authentication.burst",
]


@pytest.mark.parametrize("type_", FORGED)
def test_the_intake_refuses_a_type_of_the_collector_and_names_it(type_: str) -> None:
    with pytest.raises(Refused) as caught:
        Reader("apps").events(msgspec.json.encode([{"type": "application"}, {"type": type_}]), lines=False)
    assert caught.value.status == 422
    (error,) = caught.value.members["errors"]
    assert error["path"] == "[1].type"
    assert type_ in error["detail"]


@pytest.mark.parametrize("type_", [one for one in FORGED if one in TAXONOMY])
def test_a_log_line_does_not_choose_a_type_of_the_collector(type_: str) -> None:
    record = {"type": type_, "message": "x"}
    made = Records(RecordOptions(), Context("app")).event(record, "x", 1_772_359_200_000_000)
    assert made.type == "application"
    assert made.data["type"] == type_, "what the line says is kept"


@pytest.mark.parametrize("type_", FORGED)
def test_no_parser_or_handler_is_configured_to_make_a_type_of_the_collector(type_: str) -> None:
    with pytest.raises(ValueError, match="reserved for the collector"):
        RecordOptions(type=type_)
    with pytest.raises(ValueError, match=r"reserved for the collector|is no alert type"):
        ConfigRaises(type=type_)


@pytest.mark.parametrize("type_", ALLOWED)
def test_other_types_are_left_as_they_are(type_: str) -> None:
    assert not is_collectors(type_)


def stored_types(agent: UUID, *types: str) -> tuple[list[str], set[str]]:
    """The types under which a frame's events are stored, and those that the roll-ups count."""
    chain = Chain(str(agent))
    frame = read_frame(chain.seal([event("x", type=one) for one in types]).frame)
    rows = rows_of(
        frame, batch_id=1, place_id=1, received=EPOCH, agent_id=agent, buffer_id=UUID(chain.buffer), careful=False
    )
    row: Any = 14
    found = []
    for n in range(len(types)):
        field = rows.parts[n * row + 3]
        found.append(field[4 : 4 + int.from_bytes(field[:4], "big")].decode())
    return found, {key.type for key in rows.tallies}


def test_a_type_of_the_collector_that_an_agent_sends_is_stored_and_counted_as_claimed() -> None:
    stored, counted = stored_types(uuid4(), "security.chain.forked", "log.line", "alert.fleet.address")
    assert stored == ["claimed.security.chain.forked", "log.line", "claimed.alert.fleet.address"]
    assert counted == set(stored)


def test_the_collector_s_own_events_keep_their_types() -> None:
    assert stored_types(CENTRE, "security.chain.forked")[0] == ["security.chain.forked"]


@pytest.mark.parametrize("type_", ["a", "security.chain.a.b.c.d.e.f", "claimed." + "x" * 120])
def test_a_claimed_type_is_a_type_and_the_collector_s_alone(type_: str) -> None:
    made = claimed(type_)
    assert TYPE_PATTERN.fullmatch(made)
    assert len(made) <= TYPE_LENGTH_MAX
    assert is_collectors(made)


def test_every_rule_of_the_collector_raises_types_that_nobody_else_may_send() -> None:
    own = [
        "alert.chain.forked",
        "alert.evidence.broken",
        "alert.collection.gap",
        "alert.fleet.address",
        "alert.fleet.change",
    ]
    spread = {"address", "change", "chain", "evidence", "gap"}
    own += [agent_type(name) for name in RULES if name not in spread]
    assert [name for name in own if not is_collectors(name)] == []
    assert "type" in COLUMNS
