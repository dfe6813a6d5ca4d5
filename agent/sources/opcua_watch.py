"""What no subscription brings: refused sign-ins of servers that emit no event for them, certificates that will end, nodes that are gone.

node-opcua audits no wrong password at all; its diagnostics counters count it. They are polled, and growth becomes one event. The counters
overlap (Part 5, 12.9: what is refused for security is among the sessions refused and among the requests refused), and some servers count
and audit the same sign-in. So a growth waits for one poll, what was audited meanwhile and what this agent itself was refused is taken off,
and the rest is one event, whichever counters it shows in. A counter that shrank belongs to a server that restarted: a new beginning.
"""

import time
from collections.abc import Iterator

from agent.sources.opcua_connect import Connection
from agent.sources.opcua_position import Position
from agent.sources.opcua_private import ua
from agent.sources.opcua_trust import WARN_DAYS, expires_in_days, thumbprint
from agent.wire.event import HIGH, Event

DIAGNOSTICS_POLL_S = 10.0
EXPIRY_POLL_S = 3_600.0
_SUMMARY = "Server_ServerDiagnostics_ServerDiagnosticsSummary_"
COUNTERS = ("SecurityRejectedSessionCount", "RejectedSessionCount", "SecurityRejectedRequestsCount")
AUDITED, OWN = "audited", "own"
"""Beside the server's counters in the cursor: refused sign-ins that were audited, and those of this agent, not yet seen in a counter."""


MANY = 3
"""Refusals between two polls that nobody explains by a slip of the finger: the event's severity is high."""


def _taken_off(known: dict[str, int], what: str, at_most: int) -> int:
    """Take what is explained already off a growth."""
    off = min(known.get(what, 0), at_most)
    known[what] = known.get(what, 0) - off
    return off


class Watch:
    """Looks at one server now and then."""

    def __init__(self, source: str, url: str) -> None:
        self._source = source
        self._url = url
        self._diagnostics_s = self._expiry_s = 0.0
        self._noticed: dict[str, int] | None = None
        """The counters as read when a growth was first seen, until the next poll."""

    def begin_session(self) -> None:
        """What was noticed in an earlier session is compared with the cursor again."""
        self._noticed = None

    async def rejected(self, connection: Connection, position: Position, now_us: int) -> list[Event]:
        """The events of counters that grew. At most one read in DIAGNOSTICS_POLL_S."""
        if time.monotonic() < self._diagnostics_s:
            return []
        self._diagnostics_s = time.monotonic() + DIAGNOSTICS_POLL_S
        values = await connection.link.read_values(
            [ua.NodeId(getattr(ua.ObjectIds, _SUMMARY + name)) for name in COUNTERS]
        )
        numbers = {
            name: int(value)
            for name, value in zip(COUNTERS, values, strict=True)
            if isinstance(value, int) and not isinstance(value, bool)
        }
        return list(self._grown(numbers, position, now_us))

    def _grown(self, numbers: dict[str, int], position: Position, now_us: int) -> Iterator[Event]:
        known = position.counters
        for name, value in numbers.items():
            if value < known.get(name, value + 1):
                known[name] = value
        noticed, self._noticed = self._noticed, None
        if all(numbers[name] == known[name] for name in numbers):
            if noticed is None and (known.get(AUDITED) or known.get(OWN)):
                # Audited and in no counter: this server does not count what it audits. One poll later, as it may count late.
                self._noticed = dict(numbers)
            elif noticed is not None:
                known.update({AUDITED: 0, OWN: 0})
            return
        if noticed is None or any(noticed.get(name, 0) < known.get(name, 0) for name in numbers):
            self._noticed = dict(numbers)
            return
        growth = {name: noticed[name] - known[name] for name in numbers if name in noticed}
        known.update(noticed)
        if any(numbers[name] > known[name] for name in numbers):
            self._noticed = dict(numbers)
        yield from self._refused(growth, known, now_us)

    def _refused(self, growth: dict[str, int], known: dict[str, int], now_us: int) -> Iterator[Event]:
        for_security, all_sessions, requests = (growth.get(name, 0) for name in COUNTERS)
        refused = max(for_security, all_sessions)
        # An earlier session that the server no longer knows is refused, and not for security: no wrong password hides in there.
        left = refused - _taken_off(known, OWN, max(0, all_sessions - for_security))
        left -= _taken_off(known, AUDITED, left)
        if left:
            yield self._rejected(COUNTERS[0] if for_security >= all_sessions else COUNTERS[1], left, now_us)
        # A refused sign-in is a refused request too, or two; more than that were refused for something else.
        if requests > 2 * refused:
            others = requests - refused
            yield self._rejected(COUNTERS[2], others, now_us)

    def _rejected(self, name: str, count: int, now_us: int) -> Event:
        requests = "Requests" in name
        message = f"the server counted {count} more refused {'requests' if requests else 'sessions'}"
        return Event(
            now_us,
            now_us,
            "access.denied" if requests else "authentication.session.rejected",
            self._source,
            HIGH if count >= MANY else 0,
            target=self._url,
            outcome="failure",
            message=message,
            data={"counter": name, "count": count},
        )

    def expiring(self, connection: Connection, position: Position, now_us: int) -> Iterator[Event]:
        """Certificates that end within WARN_DAYS or have ended; each is told once before and once after its end."""
        if time.monotonic() < self._expiry_s:
            return
        self._expiry_s = time.monotonic() + EXPIRY_POLL_S
        for whose, certificate in (("own", connection.own_certificate), ("server", connection.server_certificate)):
            days = expires_in_days(certificate) if certificate else WARN_DAYS + 1
            said = f"{thumbprint(certificate)}:{'over' if days < 0 else 'soon'}"
            if days > WARN_DAYS or position.warned.get(whose) == said:
                continue
            position.warned[whose] = said
            event_type = "security.certificate.invalid" if days < 0 else "security.certificate.expiring"
            text = "has expired" if days < 0 else f"expires in {days:.0f} days"
            message = f"the {'certificate of the server' if whose == 'server' else 'own OPC UA certificate of the agent'} {text}"
            data = {"whose": whose, "thumbprint": thumbprint(certificate), "days": round(days, 1)}
            yield Event(now_us, now_us, event_type, self._source, target=self._url, message=message, data=data)
