"""Nothing names a person in the half of an event that cannot be erased: not what parsers read, not what handlers raise of it."""

from typing import Any

import pytest

from agent.handlers.builtin import ConfigBuiltin
from agent.simulator.scenes import SCENES
from agent.wire.batch import encode_lines
from agent.wire.event import Event
from tests.unit.test_builtin import alerts, events_of, scene
from tests.unit.test_parsers import SAID, read, said

MARK = "qzvmark"
SHIFTS = ConfigBuiltin(shifts=("Mon-Fri 06:00-22:00",), time_zone="UTC")


def core_of(events: list[Event]) -> bytes:
    core, _ = encode_lines(events)
    return b"\n".join(core)


NAMED = [(row[0], row[1], row[5]) for row in SAID if row[5] and len(row[5]) > 2 and row[1].count(row[5]) == 1]


@pytest.mark.parametrize(("program", "text", "actor"), NAMED)
def test_the_name_in_a_line_is_personal_wherever_the_parser_puts_it(program: str, text: str, actor: str) -> None:
    event = said(text.replace(actor, MARK), program)
    assert MARK.encode() not in core_of([event])


LINES = {
    "json": '{"time":"2026-03-01T10:00:00Z","msg":"did it","user":"qzvmark","email":"qzvmark@corp","username":"qzvmark"}',
    "winston": '{"timestamp":"2026-03-01T10:00:00Z","level":"info","message":"qzvmark did it","user":"qzvmark"}',
    "logfmt": 'time=2026-03-01T10:00:00Z level=info user=qzvmark msg="qzvmark did it"',
    "syslog": "<86>1 2026-03-01T10:00:00Z host app 1 - - qzvmark did it",
}


@pytest.mark.parametrize("kind", LINES)
def test_free_text_that_names_somebody_is_personal_as_a_whole(kind: str) -> None:
    events = read(kind, LINES[kind])
    assert events
    assert MARK.encode() not in core_of(events)


@pytest.mark.parametrize("name", SCENES)
def test_an_alert_names_nobody_but_in_its_personal_half(name: str) -> None:
    def marked(value: Any) -> Any:
        return MARK if value is not None else None

    events = []
    for played in events_of(scene(name).positive):
        data = {key: MARK if key in ("target_user", "user") else value for key, value in played.data.items()}
        changed = Event(
            **{
                **{field: getattr(played, field) for field in played.__struct_fields__ if field != "commit"},
                "data": data,
            }
        )
        changed.actor = marked(played.actor)
        events.append(changed)
    raised = alerts(events) + alerts(events, SHIFTS)
    assert not raised or MARK.encode() not in core_of(raised)
