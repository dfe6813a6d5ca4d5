"""Where an OPC UA source stands, as its cursor keeps it.

The cursor is written with every batch of events, in the same transaction, so it is kept small: one entry a subscription, the
last value of each state, setpoint and mode, the state of each alarm. What would grow with the number of watched nodes is not in it.

Of alarms at most REMEMBERED_MAX are kept. Beyond it the oldest go, and never the one that came last: first branches, then what is no
longer active, then what is acknowledged, then the rest. What goes is declared; `alarms_forgotten` counts the active ones among it, so
that their end is reported though their state is not known.
"""

import time
from dataclasses import dataclass, field
from typing import Any

from agent.component import Cursor

VERSION = 1
REMEMBERED_MAX = 1_000
"""Last values (and alarm states) kept in the cursor. Beyond it a change that happens while the agent is stopped is taken for a first
reading; `values_not_remembered` counts."""


@dataclass(slots=True)
class Subscription:
    """A subscription at the server: how far it has been taken, and what it was made for."""

    id: int
    sequence: int
    """Of the last message that was taken; 0 before the first."""
    plan: str
    """Fingerprint of the items: a subscription made for others cannot be continued."""
    complete_us: int | None = None
    """Up to when all that happened is known or declared, by our clock: a gap of this subscription begins here."""
    heard_s: float = field(default_factory=time.monotonic)

    @property
    def next_sequence(self) -> int:
        """Sequence numbers begin again at 1, never 0."""
        return self.sequence + 1 if self.sequence < 2**32 - 1 else 1

    def ahead(self, sequence: int) -> int:
        """How many messages lie between the last one taken and this one: 0 for the next, negative for one that was taken before."""
        distance = (sequence - self.next_sequence) % 2**32
        if distance >= 2**31:
            return distance - 2**32
        return distance - (sequence < self.next_sequence)


@dataclass(slots=True)
class Position:
    """The cursor, unpacked."""

    session: tuple[str, str] | None = None
    """Token and nonce of the session at the server, to be taken up again."""
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    """By kind: data, events."""
    known: dict[str, Any] = field(default_factory=dict)
    """Node's name → last value, for roles of which a change while nobody listened is an event."""
    alarms: dict[str, str] = field(default_factory=dict)
    """Condition → its state as text, the oldest first; see opcua_alarms."""
    alarms_forgotten: int = 0
    """Active conditions whose state did not fit."""
    alarms_dropped: list[str] = field(default_factory=list)
    """Conditions that were forgotten and have not been declared yet. Not in the cursor."""
    counters: dict[str, int] = field(default_factory=dict)
    """The server's diagnostics counters as last read."""
    missing: list[str] = field(default_factory=list)
    """Nodes that the server did not take into the subscription."""
    queue_size: int = 0
    """The smallest queue that the server gave an item."""
    warned: dict[str, str] = field(default_factory=dict)
    """What was said once and is not said again: kind of warning → about what."""

    @classmethod
    def load(cls, cursor: Cursor | None) -> "Position":
        """From a cursor; an empty one where there is none, or it is another version's."""
        if not cursor or cursor.get("v") != VERSION:
            return cls()
        fields = cursor
        position = cls(**{name: fields[name] for name in cls.__slots__ if name in fields})
        position.session = (fields["session"][0], fields["session"][1]) if fields["session"] else None
        position.subscriptions = {kind: Subscription(*each) for kind, each in fields["subscriptions"].items()}
        for name in ("known", "alarms", "counters", "warned"):
            setattr(position, name, dict(fields[name]))
        return position

    def save(self) -> Cursor:
        """As a cursor: nothing of it is shared with this object."""
        return {
            "v": VERSION,
            "session": list(self.session) if self.session else None,
            "subscriptions": {
                kind: [each.id, each.sequence, each.plan, each.complete_us] for kind, each in self.subscriptions.items()
            },
            "known": dict(self.known),
            "alarms": dict(self.alarms),
            "alarms_forgotten": self.alarms_forgotten,
            "counters": dict(self.counters),
            "missing": list(self.missing),
            "queue_size": self.queue_size,
            "warned": dict(self.warned),
        }

    def remember_alarm(self, key: str, state: str) -> None:
        """Keep a condition's state, or forget the condition where it is empty."""
        if state:
            self.alarms[key] = state
        else:
            self.alarms.pop(key, None)

    def forget_too_many(self) -> int:
        """Keep the cursor small; how many values were forgotten. Conditions among them are added to `alarms_dropped`."""
        forgotten = 0
        while len(self.known) > REMEMBERED_MAX:
            self.known.popitem()
            forgotten += 1
        excess = len(self.alarms) - REMEMBERED_MAX
        if excess > 0:
            # Stable: within each kind the oldest goes first.
            for key in sorted(list(self.alarms)[:-1], key=self._worth)[:excess]:
                self.alarms_forgotten += "A" in self.alarms.pop(key).partition(" ")[0]
                self.alarms_dropped.append(key)
                forgotten += 1
        return forgotten

    def _worth(self, key: str) -> int:
        letters = self.alarms[key].partition(" ")[0]
        if "#" in key and "A" not in letters:
            return 0
        if "A" not in letters:
            return 1
        return 3 if "U" in letters else 2
