"""What goes on beside requests: a checkpoint each hour, and its way off the machine.

Of several collectors on one database one at a time does it; each may have the same key or its own. Without a key (a collector that is
run by
hand, outside of a service) no checkpoints are made, and nothing is said of them.
"""

import asyncio
import logging
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from collector.background import Pulse
from collector.evidence import checkpoint
from collector.evidence.checkpoint import BadKey, Places
from collector.store import tree
from collector.store.database import Database, StoreMisconfigured, StoreUnavailable

if TYPE_CHECKING:
    from collector.evidence.note import Signer
    from collector.store.database import Anyone
    from collector.store.retention import Sign

_log = logging.getLogger("linewarden.collector.evidence")

ADVISORY_LOCK = 0x4C57_0009
LOOK_EVERY_S_MAX = 30.0


class Keeper:
    """Cold until `run`."""

    def __init__(
        self, database: Database, *, key_file: Path | None, origin: str | None, every_s: float, places: Places
    ) -> None:
        self._database = database
        self._key_file = key_file
        self._origin = origin
        self._every_s = every_s
        self._places = places
        self._signer: Signer | None = None
        self._last: datetime | None = None
        self._targets: list[tree.Target] = []
        self._trouble: str | None = "no checkpoint was made yet"
        self.pulse = Pulse()

    @property
    def on(self) -> bool:
        """Whether checkpoints are made at all."""
        return self._key_file is not None

    def state(self) -> tuple[bool, str]:
        """Whether all is well, and what there is to say."""
        now = datetime.now(UTC)
        late = checkpoint.overdue(self._last, self._every_s, self._targets, now)
        failing = [f"{t.target}: {t.trouble}" for t in self._targets if t.trouble is not None]
        if late is not None:
            return False, self._trouble or late
        said = f"last {self._last:%Y-%m-%d %H:%M:%S}Z" if self._last else ""
        return True, "; ".join([said, *failing, *([self._trouble] if self._trouble else [])])

    async def sign(self, connection: "Anyone") -> "Sign | None":
        """What tombstones are signed by; None without a key. Raises StoreMisconfigured."""
        signer = await self._load(connection)
        return signer.sign if signer is not None else None

    async def _load(self, connection: "Anyone") -> "Signer | None":
        if self._signer is None and self._key_file is not None:
            try:
                self._signer = await checkpoint.signer(connection, self._key_file, self._origin, make=True)
            except BadKey as error:
                raise StoreMisconfigured(str(error)) from error
        return self._signer

    async def run(self) -> None:
        """Until cancelled."""
        while self.on:
            try:
                await self._round()
                self.pulse.ok()
            except (StoreUnavailable, StoreMisconfigured) as error:
                self.pulse.waits(error)
                if self._trouble != str(error):
                    _log.warning("no checkpoint can be made, trying on: %s", error)
                self._trouble = str(error)
            await asyncio.sleep(min(LOOK_EVERY_S_MAX, self._every_s / 4) * random.uniform(0.8, 1.0))  # noqa: S311 - a jitter

    async def _round(self) -> None:
        async with self._database.connection() as connection:
            signer = await self._load(connection)
            if signer is None:
                return
            if await connection.fetchval("SELECT pg_try_advisory_lock($1)", ADVISORY_LOCK):
                try:
                    await self._do(connection, signer)
                finally:
                    if not connection.is_closed():
                        await connection.execute("SELECT pg_advisory_unlock($1)", ADVISORY_LOCK)
            last = await tree.checkpoint(connection, None)
            self._last = last.made if last is not None else None
            self._targets = await tree.targets(connection, self._places.targets)
            self._trouble = None

    async def _do(self, connection: "Anyone", signer: "Signer") -> None:
        last = await tree.checkpoint(connection, None)
        if last is None or (datetime.now(UTC) - last.made).total_seconds() >= self._every_s:
            made = await checkpoint.create(connection, signer)
            _log.info("checkpoint %d over %d leaves", made.checkpoint_id, made.leaves)
        for trouble in await checkpoint.write_out(connection, self._places):
            _log.warning("%s", trouble)
