"""The task that folds stored events into the tables of analytics, a few seconds behind. Failing loses nothing: the cursor stays."""

import asyncio
import logging
import random
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from collector.compliance_table import tags
from collector.store import analytics, analytics_compliance
from collector.store.database import StoreMisconfigured, StoreUnavailable
from collector.store.stream import BadCursor
from collector.vault import Vault

if TYPE_CHECKING:
    from collector.store.database import Database

_log = logging.getLogger("linewarden.collector")
EVERY_S, EXPIRE_EVERY_S, TROUBLE_S = 5.0, 3_600.0, 30.0


class Folding:
    """Folds until cancelled."""

    def __init__(self, database: "Database") -> None:
        self._database = database
        self._expired = 0.0
        self._vault: Vault | None = None

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
            except (StoreUnavailable, StoreMisconfigured, BadCursor) as error:
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
            return await analytics.fold(connection, self._vault.pseudonym) is not None

    async def _expire(self) -> None:
        if time.monotonic() - self._expired >= EXPIRE_EVERY_S or not self._expired:
            async with self._database.connection() as connection:
                await analytics.expire(connection, datetime.now(UTC))
            self._expired = time.monotonic()
