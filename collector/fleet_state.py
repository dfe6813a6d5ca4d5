"""Whether an agent is heard: online, late, silent. With hysteresis, so that a bad link does not make it flap (Fleet #37097).

heard within late_s                   online stays online; late and silent become online after recover_s without a pause
not heard for late_s, then silent_s   late, then silent; a silent one never becomes late again, only online
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

State = Literal["online", "late", "silent"]


@dataclass(frozen=True, slots=True)
class Contact:
    """What is remembered of an agent. `good_since`: since when it is heard again, where it is not online."""

    state: State
    since: datetime
    good_since: datetime | None = None


def heard(before: Contact | None, last_seen: datetime, now: datetime, bounds: tuple[float, float, float]) -> Contact:
    """The state now. `bounds`: late_s, silent_s, recover_s."""
    late_s, silent_s, recover_s = bounds
    age_s = (now - last_seen).total_seconds()
    found: State = "silent" if age_s > silent_s else "late" if age_s > late_s else "online"
    if before is None:
        return Contact(found, now)
    if found == "online":
        if before.state == "online":
            return before
        good_since = before.good_since or now
        if (now - good_since).total_seconds() >= recover_s:
            return Contact("online", now)
        return replace(before, good_since=good_since)
    if before.state in (found, "silent"):
        return replace(before, good_since=None)
    return Contact(found, now)
