"""Composition root: builds the parts from the settings, and runs what goes on beside requests.

`build` does no I/O. While the application runs, one background task reaches the database, migrates it, makes partitions ahead, and keeps
doing so; until it has succeeded once, requests are answered 503. A database that is away at the start is no reason to stop:
agents wait, and so do we.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from collector import access, export, health, metrics, problems, query, stream
from collector.config import Settings
from collector.health import Condition
from collector.ingest import Ingest, post_batches
from collector.notify import notify, watchdog_s
from collector.store import migrate, partitions, retention, rollups
from collector.store.database import Database, StoreMisconfigured, StoreUnavailable, connect
from collector.store.events import ALL

if TYPE_CHECKING:
    from collector.store.database import Anyone

_log = logging.getLogger("linewarden.collector")

PARTITIONS_EVERY_S = 3_600.0
FOLD_EVERY_S = 5.0
RETRY_S_MAX = 30.0


class Background:
    """What goes on beside requests: reaching the database, partitions, the watchdog."""

    def __init__(self, settings: Settings, database: Database, condition: Condition, hub: stream.Hub) -> None:
        self._settings = settings
        self._database = database
        self._condition = condition
        self._hub = hub

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watchdog())
            tasks.create_task(self._store())
            tasks.create_task(self._fold())
            tasks.create_task(self._hub.run())

    async def _watchdog(self) -> None:
        every_s = watchdog_s()
        while every_s is not None:
            # That this runs is what it says: the loop that serves requests turns.
            notify(WATCHDOG="1")
            await asyncio.sleep(every_s)

    async def _store(self) -> None:
        failures = 0
        while True:
            try:
                if not self._condition.ready:
                    await self._reach()
                await self._partitions()
                await self._retention()
            except (StoreUnavailable, StoreMisconfigured) as error:
                failures += 1
                self._failed(error, failures)
                wait_s = random.uniform(0.5, 1.0) * min(RETRY_S_MAX, 0.5 * 2 ** min(failures, 10))  # noqa: S311 - a jitter
                await asyncio.sleep(wait_s)
            else:
                failures = 0
                # A jitter, so that many collectors do not come at once.
                await asyncio.sleep(PARTITIONS_EVERY_S * random.uniform(0.9, 1.0))  # noqa: S311

    async def _fold(self) -> None:
        """Fold what requests added to the roll-ups. Failing loses nothing: readers add up both, and it is tried again."""
        while True:
            await asyncio.sleep(FOLD_EVERY_S * random.uniform(0.8, 1.2))  # noqa: S311 - a jitter
            try:
                while self._condition.ready and await self._folded():
                    pass
            except (StoreUnavailable, StoreMisconfigured) as error:
                _log.warning("roll-ups could not be folded, trying on: %s", error)

    async def _folded(self) -> bool:
        """Whether there is more."""
        async with self._database.connection() as connection:
            return await rollups.fold(connection) == rollups.FOLD_ROWS_MAX

    async def _reach(self) -> None:
        if self._settings.database.migrate_at_start:
            await migrate_at(self._settings.database.address)
        else:
            await _check_migrated(self._settings.database.address)
        await self._database.open()
        # Before the first batch, so that it finds its partition. Failing is no reason to refuse batches: the default one takes them.
        with contextlib.suppress(StoreUnavailable):
            await self._partitions()
        self._condition.ready, self._condition.trouble = True, ""
        notify(STATUS="taking batches")
        _log.info("the database is reached; taking batches")

    async def _partitions(self) -> None:
        async with self._database.connection() as connection:
            made = await partitions.ensure(connection, ahead_days=self._settings.store.partitions_ahead_days)
            self._condition.partitions = await partitions.look(connection)
            self._condition.partitions_trouble = None
            indexed = await partitions.index_closed(connection)
        if made:
            _log.info("partitions made: %s", ", ".join(made))
        if indexed:
            _log.info("partitions given their index for text: %s", ", ".join(indexed))

    async def _retention(self) -> None:
        policy = self._settings.retention
        if not policy.anything:
            return
        async with self._database.connection() as connection:
            for action in await retention.run(connection, policy.policy, await held(connection), dry=False):
                _log.info("retention, %s: %s of %d events (%s)", action.day, action.kind, action.events, action.rule)

    def _failed(self, error: Exception, failures: int) -> None:
        if self._condition.ready:
            self._condition.partitions_trouble = f"partitions could not be looked after: {error}"
            _log.warning("partitions could not be looked after: %s", error)
            return
        self._condition.trouble = str(error)
        notify(STATUS=f"waiting for the database: {error}")
        level = logging.ERROR if isinstance(error, StoreMisconfigured) else logging.WARNING
        if (
            failures & (failures - 1) == 0
        ):  # the first, second, fourth, eighth … time: not a line every half minute for ever
            _log.log(level, "the database cannot be used, trying on (%d): %s", failures, error)


async def held(connection: "Anyone") -> list[retention.Hold]:
    """The legal holds. One that cannot be read any more stops retention: nothing is taken away on a guess."""
    found = []
    for row in await retention.holds(connection):
        try:
            found.append(retention.Hold(row["hold_id"], query.filter_of(row["query"], ALL)))
        except (problems.Problem, ValueError) as error:
            raise StoreMisconfigured(
                f"legal hold {row['hold_id']} cannot be read, so nothing leaves: {error}"
            ) from error
    return found


async def migrate_at(dsn: str) -> list[str]:
    """Bring the tables up to date; names of what was run. Raises StoreUnavailable, StoreMisconfigured."""
    connection = await connect(dsn)
    try:
        return await migrate.migrate(connection)
    finally:
        await connection.close()


async def _check_migrated(dsn: str) -> None:
    connection = await connect(dsn)
    try:
        if waiting := await migrate.pending(connection):
            raise StoreMisconfigured(f"{', '.join(waiting)} did not run yet. Run: linewarden-collector migrate")
    finally:
        await connection.close()


def build(settings: Settings) -> Litestar:
    """The application, cold."""
    database = Database(
        settings.database.address,
        pool_size=settings.database.pool_size,
        synchronous_commit=settings.database.synchronous_commit,
    )
    condition = Condition()
    hub = stream.Hub(database)
    background = Background(settings, database, condition, hub)

    @contextlib.asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        task = asyncio.create_task(background.run(), name="background")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await database.close()

    return Litestar(
        [post_batches, *query.ROUTES, *metrics.ROUTES, *export.ROUTES, *stream.ROUTES, *health.ROUTES],
        guards=[access.guard],
        exception_handlers=problems.HANDLERS,
        lifespan=[lifespan],
        state=State(
            {
                "database": database,
                "condition": condition,
                "ingest": Ingest(database, settings.server.limits, on_stored=hub.stored),
                "hub": hub,
                "exports": export.Exports(),
            }
        ),
        request_max_body_size=65_536,
        openapi_config=_openapi(),
        logging_config=None,
        debug=False,
    )


def _openapi() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="Linewarden collector",
        version="1",
        description="Takes batches of agents exactly once, and answers for the events in them.",
        # Open to all: it says what there is, and nothing that is in it.
        openapi_router=Router("/schema", route_handlers=[], opt={"access": access.PUBLIC}),
        render_plugins=[JsonRenderPlugin(path="/openapi.json")],
        components=Components(security_schemes={"key": SecurityScheme(type="http", scheme="bearer")}),
        security=[{"key": []}],
    )
