"""Composition root: builds the parts from the settings, and runs what goes on beside requests.

`build` does no I/O. While the application runs, one background task reaches the database, migrates it, makes partitions ahead, and keeps
doing so; until it has succeeded once, requests are answered 503. A database that is away at the start is no reason to stop:
agents wait, and so do we.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from collector import (
    access,
    accounts,
    alerts,
    audit,
    bodies,
    compliance,
    description,
    enrol,
    export,
    fleet,
    headers,
    health,
    limits,
    metrics,
    notification,
    oidc,
    passwords,
    paths,
    problems,
    proof,
    query,
    sessions,
    stream,
    subject,
)
from collector.alert_reader import AlertReader
from collector.analytics import routes as analytics_routes
from collector.analytics.folding import Folding
from collector.background import Pulse, Supervisor
from collector.config import Settings
from collector.enrol_signature import Forgeries
from collector.evidence.keeper import Keeper
from collector.evidence.schedule import Inspector
from collector.expiry import EVERY_S as EXPIRY_EVERY_S
from collector.expiry import Expiry
from collector.figures import Figures
from collector.health import Condition
from collector.ingest import DOUBTFUL_MAX, Ingest, post_batches
from collector.legal import held, leave
from collector.notify import notify, watchdog_s
from collector.oidc_provider import Provider
from collector.store import migrate, partitions, readers, rollups, states, users
from collector.store.database import (
    Pools,
    StoreMisconfigured,
    StoreUnavailable,
    connect,
    first_line,
    is_unavailable,
    translated,
)
from collector.vault import Vault

_log = logging.getLogger("linewarden.collector")

PARTITIONS_EVERY_S = 3_600.0
FOLD_EVERY_S = 5.0
RETRY_S_MAX = 30.0
CHECKPOINTS_LATE_S = 3_600.0
STOP_S_MAX = 4.0
"""After the requests: for what goes on beside them to end, and again for the connections. systemd kills after 30 s."""


class Background:
    """What goes on beside requests: reaching the database, partitions, the watchdog."""

    def __init__(self, settings: Settings, pools: Pools, condition: Condition, hub: stream.Hub, vault: Vault) -> None:
        self._settings = settings
        self._pools = pools
        self._database = database = pools.background
        self._condition = condition
        self._hub = hub
        self._vault = vault
        self.refusals = audit.Refusals(database)
        self.notifier = notification.Notifier(database, settings.notification)
        self.reader = AlertReader(
            database,
            settings.alerts,
            settings.rules,
            self.notifier.routes,
            on_stored=hub.stored,
            on_outbox=self.notifier.wake,
        )
        self._reached = asyncio.Event()
        made = settings.evidence
        self.keeper = Keeper(
            database, key_file=made.key, origin=made.origin, every_s=made.checkpoint_every_s, places=made.places
        )
        if self.keeper.on:
            condition.checkpoints = self.keeper.state
        self.inspector = Inspector(
            database, every_s=made.verify_every_s, events_max=made.verify_events_max, on_stored=self.stored
        )
        self.forgeries = Forgeries(database, hub.stored)
        files = {
            "server.certificate_file": settings.server.certificate_file,
            "identity.ca_file": settings.identity.ca_file,
        }
        self._expiry = Expiry(database, files.items(), hub.stored)
        self._folding = Folding(database, hub.stored)
        self._pulses = {name: Pulse() for name in ("watchdog", "partitions", "retention", "erasures", "roll-ups")}
        self._supervisor = Supervisor()
        condition.tasks = self._supervisor.health
        self._add_tasks()

    def _add_tasks(self) -> None:
        add, pulses = self._supervisor.add, self._pulses
        hourly_late_s = 2 * PARTITIONS_EVERY_S + 600
        add("watchdog", self._watchdog, pulses["watchdog"], late_s=120)
        add("partitions", self._partitioning, pulses["partitions"], late_s=hourly_late_s)
        add("retention", partial(self._hourly, "retention", self._retention), pulses["retention"], late_s=hourly_late_s)
        add("erasures", partial(self._hourly, "erasures", self._erasures), pulses["erasures"], late_s=hourly_late_s)
        add("roll-ups", self._fold, pulses["roll-ups"], late_s=300)
        add("streams", self._hub.read, self._hub.pulse, late_s=120)
        add("wake-ups", self._hub.listen, self._hub.heard, late_s=120)
        add("refusals", self.refusals.run, self.refusals.pulse, late_s=120)
        add("forgeries", self.forgeries.run, self.forgeries.pulse, late_s=120)
        for name, run, pulse, late_s in (
            ("checkpoints", self.keeper.run, self.keeper.pulse, CHECKPOINTS_LATE_S),
            ("certificates", self._expiry.run, self._expiry.pulse, 2 * EXPIRY_EVERY_S),
            ("analytics", self._folding.run, self._folding.pulse, 600),
            ("alerts", self.reader.run, self.reader.pulse, 120),
            *self.notifier.tasks(),
        ):
            add(name, partial(self._when_reached, run, pulse), pulse, late_s=late_s)
        inspector = self.inspector
        if inspector.on:
            run = partial(self._when_reached, inspector.run, inspector.pulse)
            add("verify", run, inspector.pulse, late_s=inspector.late_s)

    async def run(self) -> None:
        """Run all tasks until cancelled. See background.py."""
        await self._supervisor.run()

    async def _when_reached(self, run: Callable[[], Awaitable[None]], pulse: Pulse) -> None:
        """Run a task as soon as the database was reached."""
        pulse.waits("the database was not reached yet")
        await self._reached.wait()
        pulse.waits("")
        await run()

    def stored(self) -> None:
        """Something was stored: streams and alerts look."""
        self._hub.stored()
        self.reader.wake()

    async def _watchdog(self) -> None:
        every_s = watchdog_s()
        while every_s is not None:
            # That this runs is what it says: the loop that serves requests turns.
            notify(WATCHDOG="1")
            self._pulses["watchdog"].ok()
            await asyncio.sleep(every_s)

    async def _partitioning(self) -> None:
        """Reach the database, then make partitions ahead."""
        failures = 0
        while True:
            try:
                if not self._condition.ready:
                    await self._reach()
                await self._partitions()
            except (StoreUnavailable, StoreMisconfigured) as error:
                self._pulses["partitions"].waits(error)
                failures += 1
                self._failed(error, failures)
                wait_s = random.uniform(0.5, 1.0) * min(RETRY_S_MAX, 0.5 * 2 ** min(failures, 10))  # noqa: S311 - a jitter
                await asyncio.sleep(wait_s)
            else:
                failures = 0
                self._pulses["partitions"].ok()
                # A jitter, so that many collectors do not come at once.
                await asyncio.sleep(PARTITIONS_EVERY_S * random.uniform(0.9, 1.0))  # noqa: S311

    async def _hourly(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do something at the start and every hour; by itself, so that nothing else waits for it or ends with it."""
        await self._reached.wait()
        pulse = self._pulses[name]
        while True:
            try:
                await work()
                pulse.ok()
                wait_s = PARTITIONS_EVERY_S
            except (StoreUnavailable, StoreMisconfigured) as error:
                _log.warning("%s: not done, trying again: %s", name, error)
                pulse.waits(error)
                wait_s = RETRY_S_MAX
            await asyncio.sleep(wait_s * random.uniform(0.9, 1.0))  # noqa: S311 - a jitter

    async def _fold(self) -> None:
        """Fold what requests added to the roll-ups. Failing loses nothing: readers add up both, and it is tried again."""
        while True:
            await asyncio.sleep(FOLD_EVERY_S * random.uniform(0.8, 1.2))  # noqa: S311 - a jitter
            try:
                while self._condition.ready and await self._folded():
                    pass
                self._pulses["roll-ups"].ok()
            except (StoreUnavailable, StoreMisconfigured) as error:
                self._pulses["roll-ups"].waits(error)
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
        await self._pools.open()
        async with self._database.connection() as connection:
            await self._vault.load(connection)
        # Before the first batch, so that it finds its partition. Failing is no reason to refuse batches: the default one takes them.
        with contextlib.suppress(StoreUnavailable):
            await self._partitions()
        self._condition.ready, self._condition.trouble = True, ""
        self._reached.set()
        notify(STATUS="taking batches")
        _log.info("the database is reached; taking batches")

    async def _partitions(self) -> None:
        async with self._database.connection() as connection:
            made = await partitions.ensure(connection, ahead_days=self._settings.store.partitions_ahead_days)
            self._condition.partitions = await partitions.look(connection)
            self._condition.partitions_trouble = None
            indexed = await partitions.index_closed(connection)
            await users.prune(connection)
            await readers.forget_unread(connection)
        if made:
            _log.info("partitions made: %s", ", ".join(made))
        if indexed:
            _log.info("partitions given their index for text: %s", ", ".join(indexed))

    async def _retention(self) -> None:
        async with self._database.connection() as connection:
            for action in await leave(
                connection,
                self._settings.retention,
                audit.Who.system(),
                dry=False,
                sign=await self.keeper.sign(connection),
            ):
                _log.info("retention, %s: %s of %d (%s)", action.day, action.kind, action.events, action.rule)

    async def _erasures(self) -> None:
        """Go on with what was broken off, and with what stands for late events."""
        async with self._database.connection() as connection:
            for done in await subject.go_on(connection, await held(connection)):
                _log.info("erasure %d: %d events", done.erasure_id, done.events)

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


async def migrate_at(dsn: str) -> list[str]:
    """Bring the tables up to date; names of what was run. Raises StoreUnavailable, StoreMisconfigured."""
    connection = await connect(dsn)
    try:
        ran = await migrate.migrate(connection)
        if ran and not ran[0].startswith("0001_"):
            await _baseline(connection)
        return ran
    finally:
        await connection.close()


async def _baseline(connection: Any) -> None:
    """Record once what keys, users and the like are, where that was not recorded yet: `verify` holds them to it from then on."""
    with translated():
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", migrate.ADVISORY_LOCK)
            for objects in await states.unrecorded(connection):
                await audit.record(connection, audit.Who.system(), "audit.baseline", objects=objects)


async def _check_migrated(dsn: str) -> None:
    connection = await connect(dsn)
    try:
        if waiting := await migrate.pending(connection):
            raise StoreMisconfigured(f"{', '.join(waiting)} did not run yet. Run: linewarden-collector migrate")
    finally:
        await connection.close()


def _pools(settings: Settings) -> Pools:
    database = settings.database
    return Pools(
        database.address,
        size=database.pool_size,
        ingest_max=settings.server.concurrent_max,
        synchronous_commit=database.synchronous_commit,
    )


def build(settings: Settings) -> Litestar:
    """The application, cold."""
    pools = _pools(settings)
    database = pools.background
    condition = Condition()
    vault = Vault()
    hub = stream.Hub(database, vault)
    background = Background(settings, pools, condition, hub, vault)

    ingest = Ingest(
        pools.ingest,
        settings.server.limits,
        unsigned=settings.identity.unsigned == "allow",
        on_stored=background.stored,
    )
    enrolling = enrol.Enrolling(settings.authority_file, timedelta(seconds=settings.identity.key_overlap_s))

    @contextlib.asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        task = asyncio.create_task(background.run(), name="background")
        try:
            yield
        finally:
            await _end(task, pools)

    app = Litestar(
        [
            post_batches,
            *enrol.ROUTES,
            *query.ROUTES,
            *metrics.ROUTES,
            *export.ROUTES,
            *stream.ROUTES,
            *proof.ROUTES,
            *analytics_routes.ROUTES,
            *compliance.ROUTES,
            *health.routes(metrics_open=settings.server.metrics_open),
            *audit.ROUTES,
            *sessions.ROUTES,
            *oidc.ROUTES,
            *accounts.ROUTES,
            *alerts.ROUTES,
            *notification.ROUTES,
            *fleet.ROUTES,
        ],
        guards=[access.guard],
        exception_handlers=problems.HANDLERS,
        lifespan=[lifespan],
        state=State(
            {
                "database": pools.requests,
                "admission": pools.admission,
                "doubtful": asyncio.Semaphore(DOUBTFUL_MAX),
                "condition": condition,
                "ingest": ingest,
                "enrolling": enrolling,
                "hub": hub,
                "refusals": background.refusals,
                "forgeries": background.forgeries,
                "vault": vault,
                **_door(settings),
                "exports": export.Exports(),
                "turns": analytics_routes.Turns(),
                "settings": settings,
                "figures": Figures(database, background.reader, background.notifier),
            }
        ),
        request_max_body_size=65_536,
        openapi_config=_openapi(),
        before_request=bodies.before_request,
        before_send=[headers.before_send(public_url=settings.access.public_url)],
        logging_config=None,
        debug=False,
    )
    description.complete(app)
    app.asgi_handler = paths.only_normal(app.asgi_handler)
    return app


async def _end(task: "asyncio.Task[None]", database: Pools) -> None:
    """End what goes on beside requests, and the connections, in bounded time."""
    asyncio.get_running_loop().set_exception_handler(_said_at_the_end)
    task.cancel()
    _, waiting = await asyncio.wait({task}, timeout=STOP_S_MAX)
    # What waits for a database that does not answer may hear of nothing else (asyncpg#873, #1265), but of a connection that is cut.
    await database.close(within_s=0 if waiting else STOP_S_MAX)
    if waiting:
        _, waiting = await asyncio.wait({task}, timeout=STOP_S_MAX)
    if waiting:
        _log.warning("stopped while the database did not answer; what was not committed is asked for again")
        return
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _said_at_the_end(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A connection that is cut while asyncpg gives it back leaves an error with nobody to take it: one line of log, and no traceback."""
    error = context.get("exception")
    if error is not None and is_unavailable(error):
        _log.info("a connection to the database ended with the collector: %s", first_line(error))
    else:
        loop.default_exception_handler(context)


def _door(settings: Settings) -> dict[str, object]:
    """What guards the door."""
    return {
        "rates": limits.Rates(settings.access.requests_per_s, settings.access.requests_burst),
        "known": limits.Known(),
        "trusted_proxies": settings.access.trusted_proxies,
        "terms": settings.access.terms,
        "hashing": passwords.Hashing(),
        "public_url": settings.access.public_url,
        "oidc": Provider(settings.access.oidc) if settings.access.oidc is not None else None,
    }


def _openapi() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="Linewarden collector",
        version="1",
        description="Takes batches of agents exactly once, and answers for the events in them.",
        # Open to all: it says what there is, and nothing that is in it.
        openapi_router=Router("/schema", route_handlers=[], opt={"access": access.PUBLIC}),
        render_plugins=[JsonRenderPlugin(path="/openapi.json")],
        components=Components(
            security_schemes={
                "key": SecurityScheme(type="http", scheme="bearer"),
                "session": SecurityScheme(type="apiKey", name=access.COOKIE, security_scheme_in="cookie"),
            }
        ),
        security=[{"key": []}, {"session": []}],
    )
