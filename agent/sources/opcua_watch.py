"""What no subscription tells: refused sign-ins of servers that emit no event for them, and certificates that will end.

node-opcua audits no wrong password at all; its diagnostics counters count it all the same. They are polled, and a counter that grew is
an event with the difference. A counter that shrank belongs to a server that restarted, and is a new beginning.
"""

import time
from collections.abc import Iterator

from agent.sources.opcua_connect import Connection
from agent.sources.opcua_position import Position
from agent.sources.opcua_private import ua
from agent.sources.opcua_trust import WARN_DAYS, expires_in_days, thumbprint
from agent.wire.event import Event

DIAGNOSTICS_POLL_S = 10.0
EXPIRY_POLL_S = 3_600.0
_SUMMARY = "Server_ServerDiagnostics_ServerDiagnosticsSummary_"
COUNTERS = ("SecurityRejectedSessionCount", "RejectedSessionCount", "SecurityRejectedRequestsCount")


class Watch:
    """Looks at one server now and then."""

    def __init__(self, source: str, url: str) -> None:
        self._source = source
        self._url = url
        self._diagnostics_s = self._expiry_s = 0.0

    async def rejected(self, connection: Connection, position: Position, now_us: int) -> list[Event]:
        """An event for each diagnostics counter that grew. At most one read in DIAGNOSTICS_POLL_S."""
        if time.monotonic() < self._diagnostics_s:
            return []
        self._diagnostics_s = time.monotonic() + DIAGNOSTICS_POLL_S
        values = await connection.link.read_values(
            [ua.NodeId(getattr(ua.ObjectIds, _SUMMARY + name)) for name in COUNTERS]
        )
        events = []
        for name, value in zip(COUNTERS, values, strict=True):
            if isinstance(value, bool) or not isinstance(value, int):
                continue
            before, position.counters[name] = position.counters.get(name), int(value)
            if before is not None and value > before:
                events.append(self._rejected(name, int(value) - before, now_us))
        return events

    def _rejected(self, name: str, count: int, now_us: int) -> Event:
        message = f"the server counted {count} more refused {'requests' if 'Requests' in name else 'sessions'}"
        data = {"counter": name, "count": count}
        return Event(
            now_us,
            now_us,
            "authentication.session.rejected",
            self._source,
            target=self._url,
            outcome="failure",
            message=message,
            data=data,
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
