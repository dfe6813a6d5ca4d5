"""What changes is one line; what stays, or is tried again, is none; what flaps is bounded."""

import logging
from collections.abc import Mapping

import pytest

from agent.changes import ALL_LINES_MAX, LINES_MAX, PARTS_MAX, REFILL_S, Changes, Condition, Key


class Journal:
    """A log with a clock in hand."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        self._caplog = caplog
        self.now_s = 1_000.0
        self._changes = Changes(logging.getLogger("journal"), lambda: self.now_s)

    def forget(self, *key: str) -> None:
        self._changes.forget(*key)

    def look(self, conditions: Mapping[Key, Condition] | None = None, *, after_s: float = 1.0) -> list[str]:
        """The lines of one look."""
        self.now_s += after_s
        self._caplog.clear()
        self._changes.look(conditions or {})
        return [f"{record.levelname} {record.getMessage()}" for record in self._caplog.records]


@pytest.fixture
def journal(caplog: pytest.LogCaptureFixture) -> Journal:
    return Journal(caplog)


def away(kind: str = "unreachable", text: str = "no answer. Next try in 4 s") -> dict[Key, Condition]:
    return {("collector",): Condition(text, "it answers again", kind)}


def test_a_trouble_is_one_line_when_it_begins_and_one_when_it_ends_however_often_it_is_tried(journal: Journal) -> None:
    assert journal.look() == []
    assert journal.look(away()) == ["WARNING no answer. Next try in 4 s"]
    assert [journal.look(away(text=f"no answer, try {n}")) for n in range(240)] == [[]] * 240
    assert journal.look() == ["INFO it answers again, after 4 min"]
    assert journal.look() == []


def test_another_reason_is_another_state(journal: Journal) -> None:
    journal.look(away())
    assert journal.look(away("refused", "the key was revoked")) == ["WARNING the key was revoked"]
    assert journal.look() == ["INFO it answers again, after 2 s"]


def test_what_flaps_has_a_few_lines_and_then_one_now_and_then_that_counts(journal: Journal) -> None:
    lines = [line for n in range(7_200) for line in journal.look(away() if n % 2 else {})]
    assert LINES_MAX < len(lines) <= LINES_MAX + 7_200 / REFILL_S + 1
    assert lines[:2] == ["WARNING no answer. Next try in 4 s", "INFO it answers again, after 1 s"]
    assert "times since the last line" in lines[-1]
    said = journal.look(away(), after_s=REFILL_S)
    assert journal.look(away(), after_s=REFILL_S) == []
    assert [*lines, *said][-1].startswith("WARNING"), "the last line is what holds"


def test_what_is_configured_otherwise_did_not_begin_to_work(journal: Journal) -> None:
    plc: dict[Key, Condition] = {("source", "plc"): Condition("plc: away", "plc works again")}
    journal.look(plc)
    journal.forget("source", "plc")
    assert journal.look() == []
    assert journal.look(plc) == ["WARNING plc: away"]


def test_a_hundred_parts_that_fail_at_once_are_a_few_lines_and_a_number(journal: Journal) -> None:
    many: dict[Key, Condition] = {
        ("source", "plc", f"unit {n}"): Condition(f"unit {n}: no answer", f"unit {n} works") for n in range(100)
    }
    lines = journal.look(many)
    assert len(lines) == PARTS_MAX + 1
    assert lines[-1] == "WARNING source plc: 95 more parts changed; linewarden-agent status shows each"
    assert journal.look(many) == []
    assert len(journal.look()) == PARTS_MAX + 1


def test_a_thousand_sources_that_fail_at_once_do_not_flood_and_none_is_forgotten(journal: Journal) -> None:
    many: dict[Key, Condition] = {
        ("source", f"s{n}"): Condition(f"s{n}: away", f"s{n} works again") for n in range(300)
    }
    first = journal.look(many)
    assert len(first) == ALL_LINES_MAX
    later = [line for _ in range(300) for line in journal.look(many, after_s=2)]
    assert len({*first, *later}) == 300
