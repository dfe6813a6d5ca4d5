"""The event: what happened, when, where, to what. One Struct from the source to the buffer.

An event has two halves. The *core* half is covered by the hash chain and is never changed. The *personal* half
(`actor`, `raw`, and the keys of `data` that the taxonomy marks as personal) travels beside it and can be erased; see batch.py.
Sources fill one Event and need not care: the split is made when a batch is sealed.
"""

from typing import Any

from msgspec import Struct

from agent.wire.taxonomy import default_severity

EVENT_BYTES_MAX = 262_144
"""An event whose encoded core or personal line is longer is stored cut; see `agent.wire.batch.fit`."""

INFORMATIONAL, LOW, MEDIUM, HIGH, CRITICAL, FATAL = 1, 2, 3, 4, 5, 6
"""Severities: OCSF `severity_id`."""

LANE_URGENT, LANE_BULK = 0, 1
"""Lane 0: alerts, and events of severity high and above. Lane 1: the rest. Lane 0 is sent first and evicted last."""


class Event(Struct, omit_defaults=True, gc=False, kw_only=False):
    """One thing that happened.

    time            µs since the epoch, UTC: when it happened, by the source's clock
    observed        µs since the epoch, UTC: when the agent saw it
    type            dotted name, see taxonomy.py
    source          name of the configured source
    severity        1 to 6; 0 means "derive it from type and outcome", and is replaced on construction
    src_ip          from where; target: on what; outcome: "success" or "failure" where it applies
    message         a sentence without personal data
    correlation_id  ties the events of one request, login or production order
    data            all the rest, a JSON object
    actor, raw      personal: who did it; the original line
    """

    time: int
    observed: int
    type: str
    source: str = ""
    severity: int = 0
    src_ip: str | None = None
    target: str | None = None
    outcome: str | None = None
    message: str | None = None
    correlation_id: str | None = None
    actor: str | None = None
    raw: str | None = None
    data: dict[str, Any] = {}
    commit: str | None = None
    """Belongs to batch.py: set while the core line is written, None otherwise."""

    def __post_init__(self) -> None:
        if not self.severity:
            self.severity = default_severity(self.type, self.outcome)

    @property
    def lane(self) -> int:
        """The lane that it travels in: alerts, and whatever is high and above, do not wait behind readings."""
        return LANE_URGENT if self.severity >= HIGH or self.type.startswith("alert.") else LANE_BULK
