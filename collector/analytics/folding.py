"""The task that folds stored events into the tables of analytics, a few seconds behind. Failing loses nothing: the cursor stays."""

import asyncio
import logging
import random
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from collector import own
from collector.alert_reader import event_of
from collector.alert_unread import finding_of
from collector.background import Pulse, described
from collector.compliance_table import tags
from collector.rules.base import Finding
from collector.store import analytics, analytics_compliance, readers
from collector.store.database import StoreMisconfigured, StoreUnavailable
from collector.store.stream import BadCursor
from collector.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Callable

    from collector.store.database import Connection, Database
    from collector.store.events import Record

_log = logging.getLogger("linewarden.collector")
EVERY_S, EXPIRE_EVERY_S, TROUBLE_S = 5.0, 3_600.0, 30.0


class Folding:
    """Folds until cancelled."""

    def __init__(self, database: "Database", stored: "Callable[[], None]" = lambda: None) -> None:
        self._database = database
        self._stored = stored
        self._expired = 0.0
        self._vault: Vault | None = None
        self.pulse = Pulse()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            wait_s = EVERY_S
            try:
                began = time.monotonic()
                while await self._folded():
                    # As long again nothing: a long way behind, as after an outage, it leaves half of the time to those who ask and send.
                    await asyncio.sleep(time.monotonic() - began)
                    began = time.monotonic()
                await self._expire()
                self.pulse.ok()
            except (StoreUnavailable, StoreMisconfigured, BadCursor) as error:
                self.pulse.waits(error)
                _log.warning("the tables of analytics could not be folded, trying on: %s", error)
                wait_s = TROUBLE_S
            # A jitter, so that many collectors do not come at once.
            await asyncio.sleep(wait_s * random.uniform(0.8, 1.2))  # noqa: S311

    async def _folded(self) -> bool:
        """Whether there is more."""
        async with self._database.connection() as connection:
            if self._vault is None:
                await analytics_compliance.sync_tags(connection, tags())
                vault = Vault()
                await vault.load(connection)
                self._vault = vault
            if (since := await analytics.rebuild(connection)) is not None:
                _log.warning("the tables of analytics are made anew from the events since %s", since)
            pseudonym = self._vault.pseudonym
            try:
                folded = await analytics.fold(connection, pseudonym)
            except analytics.CANNOT_FOLD as error:
                _log.warning("analytics: a fold stops at a batch, each is folded alone now: %s", described(error))
                folded = await self._folded_carefully(connection, pseudonym)
            if folded is None:
                await self._check(connection)
            return folded is not None

    async def _folded_carefully(self, connection: "Connection", pseudonym: "Callable[[str], str]") -> int | None:
        passed: list[tuple[int, str]] = []

        def unread(batch: "Record", error: Exception) -> None:
            _log.error(
                "analytics: batch %d cannot be folded and is passed over: %s", batch["batch_id"], described(error)
            )
            passed.append((batch["batch_id"], described(error)))

        folded = await analytics.fold(connection, pseudonym, unread)
        if passed:
            number, reason = passed[0]
            await self._tell(
                Finding(
                    rule="unread", key="analytics", type="alert.collector.unread", severity=4, target="analytics",
                    message=f"analytics: {len(passed)} stored batches could not be read and were passed over: {reason}",
                    data={"reader": "analytics", "unread": len(passed), "reason": reason, "batch_id": number},
                )
            )  # fmt: skip
        return folded

    async def _check(self, connection: "Connection") -> None:
        """Hold what was folded against what was stored, once a minute."""
        if not await readers.due(connection, readers.ANALYTICS):
            return
        if (difference := await analytics.check(connection)) is not None:
            _log.error("%s", difference.text)
            await self._tell(finding_of(difference))

    async def _tell(self, finding: Finding) -> None:
        await own.tell(self._database, [event_of(finding)])
        self._stored()

    async def _expire(self) -> None:
        if time.monotonic() - self._expired >= EXPIRE_EVERY_S or not self._expired:
            async with self._database.connection() as connection:
                await analytics.expire(connection, datetime.now(UTC))
            self._expired = time.monotonic()
