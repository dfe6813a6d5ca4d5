"""The composition root: builds the parts of a running agent, watches over them, and takes them down in order.

    start    lock, identity, buffer, handlers with their stored state, sources, sync, local endpoint; then READY
    SIGHUP   the file is read again; what changed is exchanged, what did not goes on untouched; an invalid file changes nothing
    SIGTERM  sources end (what they yielded is stored), `agent.stopped`, one last try to send, close

A part that fails is started again; nothing but the end of the buffer's writer (a defect) ends the agent, with exit code 1, so that systemd
starts a new one.
"""

import asyncio
import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import to_builtins

from agent import enrolment, expiry, identity, notify, owned_files
from agent.buffer import Buffer
from agent.changes import Changes
from agent.component import ConfigError, Report, Source, load, now_us
from agent.config import ConfigProblems, Settings, SourceSettings
from agent.config import load as load_settings
from agent.daemon_health import checks_of, conditions_of, health, ready_of
from agent.daemon_status import BEAT_S, Facts, makes_progress, status_of, told_to_collector
from agent.handlers.engine import Engine
from agent.health import HealthServer, Mounts, Status
from agent.host import SELF, Host, Run, began, boot_id, configuration_changed, file_sha256, host_event
from agent.pipeline import ACTIONS, Pipeline
from agent.sources import EXTRA, SOURCES
from agent.sync import Sync, SyncConfig, SyncState
from agent.uplink import HttpSink, Tls

if TYPE_CHECKING:
    from agent.handlers.actions import Actions

log = logging.getLogger("linewarden")

AGAIN_S = 10.0
"""A part that failed, or an address that is taken, is tried again after this."""
FLUSH_S_MAX = 5.0
LOOK_S = 1.0
IDENTITY = "!identity"
"""Under this name the buffer keeps which key we have told of."""
LOCK_FILE = "agent.lock"
SWITCH_S = 0.0005
"""Threads that come back from the disk or the compressor wait no longer than this for a parser at work (Python's own: 5 ms)."""


async def run(settings: Settings, path: Path) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code. Raises ConfigError where the state folder cannot be used."""
    sys.setswitchinterval(SWITCH_S)
    async with AsyncExitStack() as stack:
        daemon = await Daemon.start(settings, path, stack)
        return await daemon.until_stopped()


@dataclass(slots=True)
class _Uplink:
    sink: HttpSink
    sync: Sync
    task: "asyncio.Task[None]"
    renewal: "asyncio.Task[None]"


class Daemon:
    """A running agent."""

    def __init__(self, settings: Settings, path: Path, facts: Facts) -> None:
        self.settings = settings
        self.facts = facts
        self._path = path
        self._buffer = facts.buffer
        self._pipeline = facts.pipeline
        self._stop = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._uplink: _Uplink | None = None
        self._actions: Actions | None = None
        self._acting: asyncio.Task[None] | None = None
        self._mounts = Mounts()
        self._answered_s = time.monotonic()
        self._served: asyncio.Task[None] | None = None
        self._health_tried = asyncio.Event()
        self._changes = Changes(log)

    # ── start ────────────────────────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    async def start(cls, settings: Settings, path: Path, stack: AsyncExitStack) -> "Daemon":
        """Everything up; what was opened is closed by the stack, whatever happens."""
        state_dir = Path(settings.agent.state_dir)
        agent_id = identity.load_or_create(state_dir)
        stack.callback(os.close, _lock(state_dir))
        engine = Engine.build(settings.handlers)
        sources = {name: _make(name, each, settings) for name, each in settings.sources.items()}
        buffer = await Buffer.open(settings.agent.buffer_path, settings.buffer, agent_id)
        stack.push_async_callback(buffer.close)
        engine.restore(await buffer.states())
        pipeline = Pipeline(buffer, engine)
        actions = pipeline.actions = _actions(settings, buffer, (await buffer.states()).get(ACTIONS, {}))
        daemon: Daemon
        host = Host(
            pipeline,
            buffer,
            lambda: daemon.last_contact_s(),  # noqa: PLW0108 (there is no daemon yet)
            lambda: daemon.certificates(),  # noqa: PLW0108
        )
        facts = Facts(
            agent_id,
            _version(),
            str(path),
            file_sha256(path),
            buffer,
            pipeline,
            host,
            SyncState(),
            settings.sync.url,
            now_us(),
        )
        daemon = cls(settings, path, facts)
        daemon._acts(actions)
        stack.push_async_callback(daemon.close)
        run = daemon._run(ended=False)
        await pipeline.store(began(run, await buffer.cursor(SELF)), SELF, run.cursor())
        for name, (source, report) in sources.items():
            daemon._begin_source(name, source, report)
        daemon._start_parts()
        await daemon._health_tried.wait()
        return daemon

    def _start_parts(self) -> None:
        self._connect()
        self._serve()
        for name, work in (
            ("tick", self._pipeline.tick),
            ("host", self.facts.host.watch),
            ("beat", self._beat),
            ("changes", self._log_changes),
            ("watchdog", lambda: notify.feed_watchdog(lambda: makes_progress(self._buffer))),
        ):
            self._begin(name, work)

    def _acts(self, actions: "Actions | None") -> None:
        self._actions = actions
        self._acting = None if actions is None else self._begin("actions", actions.run)

    def _begin_source(self, name: str, source: Source, report: Report) -> None:
        # A source that answers requests (the intake) does so at the local endpoint; until it runs it answers that it does not.
        self._mounts.put(name, getattr(source, "routes", dict)())
        getattr(source, "reserve", lambda _: None)(self._programs)
        self._pipeline.start(name, self.settings.sources[name].kind, source, report)

    def _programs(self) -> frozenset[str]:
        """The programs that have a key, at whichever intake."""
        found = (getattr(each.config, "programs", ()) for each in self.settings.sources.values())
        return frozenset(name for names in found for name in names)

    def _begin(self, name: str, work: Callable[[], Awaitable[None]]) -> "asyncio.Task[None]":
        task = asyncio.create_task(self._keep(name, work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run a part for ever. One that fails by a defect begins again; its traceback is logged once, health has it meanwhile."""
        last = ""
        while True:
            try:
                return await work()
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
                if text != last:
                    log.exception("%s failed by a defect and begins again every %.0f s", name, AGAIN_S)
                last = text
                self.facts.defects[name] = text, time.monotonic()
            await asyncio.sleep(AGAIN_S)

    def _connect(self) -> None:
        """Begin to send, as [sync] says now."""
        config = self.settings.sync
        keyring = identity.Keyring(Path(self.settings.agent.state_dir), self.settings.identity)
        sink = HttpSink(
            url=config.url,
            key_file=config.key_file,
            tls=lambda: tls_of(config, keyring),
            timeout_s=config.timeout_s,
            version=self.facts.version,
            agent_id=self.facts.agent_id,
            signer=keyring,
        )
        renewal = enrolment.Renewal(keyring, lambda: tls_of(config, keyring), self._enrolled)
        sync = Sync(config, self._buffer, sink, lambda: told_to_collector(self.facts))
        self.facts.sync, self.facts.url = sync.state, config.url
        self.facts.key_trouble = lambda: renewal.trouble
        self._uplink = _Uplink(sink, sync, self._begin("sync", sync.run), self._begin("identity", renewal.run))

    async def _enrolled(self, saved: identity.Saved) -> None:
        """Say in our own stream who we are, and where the streams before ours ended: once for each key, signed with what follows."""
        cursor = await self._buffer.cursor(IDENTITY)
        if cursor is not None and cursor.get("key_id") == saved.key_id:
            return
        new = cursor is None or cursor.get("token") != saved.token
        type_ = "agent.enrolled" if new else "agent.key.changed"
        text = "the agent was enrolled" if new else "a new key took the place of the agent's key"
        event = host_event(type_, text, outcome="success", key_id=saved.key_id, enrolment=saved.token)
        if new:
            event.data["earlier"] = [to_builtins(link) for link in saved.links]
        await self._pipeline.store([event], IDENTITY, {"key_id": saved.key_id, "token": saved.token})

    def _serve(self) -> None:
        self._served = self._begin("health", self._serve_health)

    async def _serve_health(self) -> None:
        """The local endpoint. An address that cannot be had costs the endpoint, not the collecting: it is tried again."""
        while True:
            server = HealthServer(
                self.settings.health,
                self._status,
                lambda: checks_of(self.facts),
                lambda: ready_of(self.facts),
                self._mounts,
            )
            try:
                await server.start()
            except ConfigError as error:
                if self.facts.endpoint_trouble is None:
                    log.error("no local endpoint: %s (tried again every %.0f s)", error, AGAIN_S)  # noqa: TRY400 (no defect)
                self.facts.endpoint_trouble = str(error)
                self._health_tried.set()
                await asyncio.sleep(AGAIN_S)
                continue
            self.facts.endpoint_trouble = None
            log.info("status at %s", ", ".join(map(str, server.bound)) or "no address: [health] listen is empty")
            self._health_tried.set()
            try:
                await asyncio.Event().wait()
            finally:
                await server.close()

    async def _status(self) -> Status:
        return status_of(self.facts, health(self.facts))

    async def _log_changes(self) -> None:
        """Log what began to fail and what works again; systemd shows the health beside the state of the unit."""
        while True:
            now = health(self.facts)
            if now.state != self.facts.health_state or self.facts.health_since_us is None:
                self.facts.health_state, self.facts.health_since_us = now.state, now_us()
                notify.notify(STATUS=f"{now.state}: {self._summary()}")
            self._changes.look(conditions_of(self.facts))
            await asyncio.sleep(LOOK_S)

    async def _beat(self) -> None:
        """An empty transaction now and then: that it comes through is what the watchdog and /healthz go by."""
        while True:
            await self._buffer.append(())
            await asyncio.sleep(BEAT_S)

    def last_contact_s(self) -> float:
        """When the collector last answered, monotonic seconds; the start where it never did."""
        last_us = self.facts.sync.last_success_us
        if last_us is not None:
            self._answered_s = time.monotonic() - max(0.0, (now_us() - last_us) / 1e6)
        return self._answered_s

    def certificates(self) -> list[tuple[str, Path]]:
        """The files with certificates that the configuration names now."""
        found = list(expiry.named(self.settings.sync, "sync"))
        # What the enrolment brought; one that is not there is passed over.
        found.append(("sync.ca_file", Path(self.settings.agent.state_dir) / identity.FOLDER / "ca.pem"))
        for name, source in self.settings.sources.items():
            found += expiry.named(source.config, f"sources.{name}")
        return found

    def _run(self, *, ended: bool) -> Run:
        return Run(self.facts.version, self.facts.config_sha256, boot_id(), ended)

    # ── run ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def until_stopped(self) -> int:
        """Wait for a signal; stop in order."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        notify.ready(self._summary())
        log.info("agent %s runs: %s", self.facts.agent_id, self._summary())
        self._warn_of_nothing()
        asked = asyncio.create_task(self._stop.wait())
        failed = asyncio.create_task(self._buffer.failed())
        await asyncio.wait([asked, failed], return_when=asyncio.FIRST_COMPLETED)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
        if failed.done():
            log.error("the buffer's writer ended: %r", failed.result())
            asked.cancel()
            return 1
        failed.cancel()
        await self._shut_down()
        return 0

    def _warn_of_nothing(self) -> None:
        if not self.settings.sources:
            log.warning("no source is configured, so nothing is collected; add one and reload")

    def _summary(self) -> str:
        count = len(self.settings.sources)
        return f"{count} source{'s' * (count != 1)}, sends to {self.settings.sync.url}"

    def _hang_up(self) -> None:
        task = asyncio.create_task(self.reload(), name="reload")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _shut_down(self) -> None:
        notify.stopping("storing and sending what is left")
        self._changes.look(conditions_of(self.facts))
        log.info("stopping")
        await self._pipeline.stop_all()
        if self._acting is not None:
            await _end(self._acting)
        stopped = host_event("agent.stopped", "the agent was stopped", outcome="success")
        try:
            # A disk that is full just now must not hold up the stop: then the next start says that this one did not end in order.
            async with asyncio.timeout(FLUSH_S_MAX):
                await self._pipeline.store([stopped], SELF, self._run(ended=True).cursor())
        except TimeoutError:
            return
        if self._uplink is not None:
            await _end(self._uplink.task)
            await self._uplink.sync.flush(FLUSH_S_MAX)

    async def close(self) -> None:
        """End every part; the buffer is closed after this."""
        await self._pipeline.stop_all()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._uplink is not None:
            await self._uplink.sink.close()

    # ── reload ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def reload(self) -> None:
        """Read the file again and apply what changed. An invalid one leaves everything as it is, and says so."""
        async with self._reloading:
            notify.reloading()
            before, after = self.facts.config_sha256, file_sha256(self._path)
            try:
                await self._apply(await load_settings(self._path))
            except (ConfigProblems, ConfigError) as error:
                self.facts.reload_error = str(error)
                log.error("the configuration was not taken over, the one before goes on:\n%s", error)  # noqa: TRY400
                first = str(error).splitlines()[0]
                await self._pipeline.store([configuration_changed(before, after, first)])
            else:
                self.facts.reload_error, self.facts.reloaded_us = None, now_us()
                self.facts.config_sha256 = after
                log.info("the configuration was read again: %s", self._summary())
                self._warn_of_nothing()
                if before != after:
                    cursor = self._run(ended=False).cursor()
                    await self._pipeline.store([configuration_changed(before, after)], SELF, cursor)
            notify.ready(self._summary())

    async def _apply(self, new: Settings) -> None:
        old = self.settings
        if new.agent != old.agent:
            raise ConfigError(
                "is taken over only at a start",
                key="agent.state_dir",
                remedy="systemctl restart linewarden-agent, or put the old value back.",
            )
        # Everything that can be refused is made first; from then on nothing fails.
        engine = Engine.build(new.handlers) if new.handlers != old.handlers else None
        changed = [name for name, each in new.sources.items() if old.sources.get(name) != each]
        made = {name: _make(name, new.sources[name], new) for name in changed}
        self.settings = new
        if engine is not None:
            await self._pipeline.exchange(engine)
        if self._actions is not None:
            self._actions.configure(new.actions)
        elif new.actions:
            self._acts(_actions(new, self._buffer, {}))
            self._pipeline.actions = self._actions
        await self._buffer.reconfigure(new.buffer)
        ending = [name for name in old.sources if name in made or name not in new.sources]
        await asyncio.gather(*(self._pipeline.stop(name) for name in ending))
        for name in ending:
            self._mounts.remove(name)
            del self._pipeline.sources[name]
            self._changes.forget("source", name)
        for name, (source, report) in made.items():
            self._begin_source(name, source, report)
        if (new.sync, new.identity) != (old.sync, old.identity) and self._uplink is not None:
            await _end(self._uplink.task)
            await _end(self._uplink.renewal)
            await self._uplink.sink.close()
            self._changes.forget("collector")
            self._connect()
        if new.health != old.health and self._served is not None:
            await _end(self._served)
            self._serve()


def tls_of(config: SyncConfig, keyring: identity.Keyring) -> Tls:
    """Whom to trust as the collector: what the configuration says, else what the enrolment brought."""
    pinned = str(keyring.authority_file) if keyring.authority_file.exists() else None
    return Tls(
        ca_file=config.ca_file or pinned,
        system=config.system_ca,
        certificate_file=config.certificate_file,
        key_file=config.certificate_key_file,
    )


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _actions(settings: Settings, buffer: Buffer, stored: Mapping[str, bytes]) -> "Actions | None":
    """What the station does by itself; nothing of it is loaded where nothing is configured and nothing is left."""
    if not settings.actions and not stored:
        return None
    from agent.handlers.actions import Actions

    return Actions(buffer, settings.actions, stored)


def _make(name: str, settings: SourceSettings, all_settings: Settings) -> tuple[Source, Report]:
    config = settings.config
    if hasattr(config, "state_dir") and config.state_dir is None:
        config = replace(config, state_dir=all_settings.agent.state_dir)
    report = Report()
    return load(SOURCES, settings.kind, what="source", extra=EXTRA)(name, config, report), report


def _version() -> str:
    from importlib.metadata import version

    return version("linewarden")


def _lock(state_dir: Path) -> int:
    """Held as long as the agent lives: two agents on one buffer would both be right and the centre would see a clone."""
    path = state_dir / LOCK_FILE
    try:
        file = owned_files.open_kept(path, mode=0o640)
    except OSError as error:
        remedy = "Give the folder to the agent's user."
        raise ConfigError(f"{path} cannot be opened: {error.strerror}", key="agent.state_dir", remedy=remedy) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.pread(file, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(file)
        raise ConfigError(
            f"another agent runs with the state folder {state_dir} (process {owner})",
            key="agent.state_dir",
            remedy="Stop it first, or give this one a state_dir of its own.",
        ) from None
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    return file
