"""Tells in good time that a certificate of the collector ends: agents that find it ended keep their data and stop sending."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from agent.wire.event import Event
from collector import own
from collector.background import Pulse
from collector.enrol_authority import NoAuthority, ends
from collector.store.database import Database, StoreMisconfigured, StoreUnavailable

_log = logging.getLogger("linewarden.collector")

WARN_DAYS = 30
EVERY_S = 86_400.0
AGAIN_S = 60.0


class Expiry:
    """Looks once a day. Several collectors tell of their own files each."""

    def __init__(
        self, database: Database, files: Iterable[tuple[str, Path | None]], stored: Callable[[], None]
    ) -> None:
        self._database = database
        self._files = [(key, path) for key, path in files if path is not None]
        self._stored = stored
        self.pulse = Pulse()

    async def run(self) -> None:
        """Until cancelled; returns where there are no files."""
        while self._files:
            try:
                await self.look(datetime.now(UTC))
                self.pulse.ok()
            except (StoreUnavailable, StoreMisconfigured) as error:
                self.pulse.waits(error)
                _log.warning("that a certificate ends could not be told yet: %s", error)
                await asyncio.sleep(AGAIN_S)
                continue
            await asyncio.sleep(EVERY_S)

    async def look(self, now: datetime) -> None:
        """Tell of each that ends soon, or has ended."""
        events = []
        for key, path in self._files:
            try:
                end, subject = await asyncio.to_thread(ends, path)
            except NoAuthority as error:
                _log.error("%s: %s", key, error)
                continue
            days = (end - now).days
            if days < WARN_DAYS:
                events.append(_event(key, path, end, subject, days))
        if events:
            await own.tell(self._database, events)
            self._stored()


def _event(key: str, path: Path, end: datetime, subject: str, days: int) -> Event:
    now = time.time_ns() // 1000
    ended = days < 0
    text = "has ended: agents refuse it" if ended else f"ends in {days} day{'s' * (days != 1)}"
    remedy = "linewarden-collector tls create, then systemctl reload linewarden-collector"
    _log.warning("%s: the certificate %s %s. Renew it: %s", key, path, text, remedy)
    return Event(
        time=now,
        observed=now,
        type="security.certificate.invalid" if ended else "security.certificate.expiring",
        source="collector",
        target=str(path),
        message=f"a certificate of the collector {text}",
        data={"key": key, "subject": subject, "ends": end.isoformat(), "days": days, "remedy": remedy},
    )
