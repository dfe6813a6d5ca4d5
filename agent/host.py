"""What happens to the agent itself and to its computer, as events like any others.

    agent.started, agent.upgraded, agent.configuration.changed, agent.stopped     how the last run ended stands in the buffer, and
                                                                                  moves on in the transaction of the event that tells it
    system.clock.stepped                                                          wall clock against the monotonic one
    agent.buffer.pressure, system.disk.pressure                                   before anything has to be given up
    agent.contact.lost, agent.contact.restored                                    the collector has not answered for long
    security.certificate.expiring, security.certificate.invalid                   30 days before a certificate of ours ends, and after

Each pressure is told once when it begins, and again only after it was gone (hysteresis).
"""

import asyncio
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.buffer import Buffer
from agent.component import Cursor, now_us
from agent.expiry import WARN_DAYS, ends_soonest
from agent.pipeline import Pipeline
from agent.wire.event import Event

SELF = "!agent"
"""The name under which the agent's own events and its last run are kept. No source can be called so (config_read.py: NAME)."""
SOURCE = "agent"
WATCH_S = 1.0
DISK_EVERY_S = 10.0
CLOCK_STEP_S_MIN = 2.0
"""A clock that is disciplined moves by less than 1 ms a second; what jumps by more than this was set."""
PRESSURE_FROM, PRESSURE_UNTIL = 0.8, 0.6
DISK_AGAIN = 1.25
CONTACT_LOST_S = 900.0
EXPIRY_EVERY_S = 3_600.0


@dataclass(frozen=True, slots=True)
class Run:
    """What stays known of a run after it: which program, with which configuration, on which boot, and whether it ended in order."""

    version: str
    config_sha256: str | None
    boot: str
    ended: bool

    def cursor(self) -> Cursor:
        """As it is kept."""
        return {"version": self.version, "config_sha256": self.config_sha256, "boot": self.boot, "ended": self.ended}


def boot_id() -> str:
    """Changes with every start of the computer."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def file_sha256(path: Path) -> str | None:
    """As sha256sum prints it. None where the file cannot be read."""
    with suppress(OSError), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
    return None


def host_event(type_: str, message: str, *, outcome: str | None = None, **data: Any) -> Event:
    """An event of the agent's own."""
    now = now_us()
    return Event(now, now, type_, SOURCE, outcome=outcome, message=message, data=data)


def began(run: Run, last: Cursor | None) -> list[Event]:
    """What is to be told at the start."""
    if last is None:
        how = "for the first time"
    elif last.get("ended"):
        how = "after it was stopped"
    elif last.get("boot") != run.boot:
        how = "after the computer went down under it"
    else:
        how = "after it was killed or failed"
    events = [host_event("agent.started", f"the agent {run.version} started {how}", outcome="success", **run.cursor())]
    events[0].data["unclean"] = last is not None and not last.get("ended")
    if last is not None and last.get("version") != run.version:
        text = f"the agent's version is {run.version}; it was {last.get('version')}"
        events.append(host_event("agent.upgraded", text, before=last.get("version"), after=run.version))
    if last is not None and last.get("config_sha256") != run.config_sha256:
        events.append(configuration_changed(last.get("config_sha256"), run.config_sha256))
    return events


def configuration_changed(before: str | None, after: str | None, problem: str | None = None) -> Event:
    """The file is another one than before. `problem`: why it does not run."""
    text = "the agent's configuration changed"
    if problem is not None:
        text += " and cannot be used; the one before goes on"
    outcome = "success" if problem is None else "failure"
    return host_event("agent.configuration.changed", text, outcome=outcome, before=before, after=after, problem=problem)


class Host:
    """Watches the computer and tells what it sees. `watch` runs for ever."""

    def __init__(
        self,
        pipeline: Pipeline,
        buffer: Buffer,
        last_contact: Callable[[], float],
        certificates: Callable[[], Iterable[tuple[str, Path]]] = tuple,
    ) -> None:
        """`last_contact`: monotonic seconds of the collector's last answer, or of the start. `certificates`: key and file of each."""
        self._pipeline = pipeline
        self._buffer = buffer
        self._last_contact = last_contact
        self._certificates = certificates
        self._expiry_at = -EXPIRY_EVERY_S
        self._told: set[str] = set()
        self._offset_s = _wall_offset_s()
        self._disk_at = 0.0
        self.oldest_us: int | None = None
        """When the oldest unsent event was observed, as of the last look."""
        self.expired: dict[str, str] = {}
        """Certificates of ours that have ended: key of the configuration → what is wrong, as of the last look."""

    async def watch(self) -> None:
        """Look about once a second."""
        while True:
            await asyncio.sleep(WATCH_S)
            events = [*self._clock(), *self._pressure(), *self._contact(), *await self._expiry()]
            if events:
                await self._pipeline.store(events)
            self.oldest_us = await self._buffer.oldest_us() if self._buffer.pending_events else None

    def pressure(self) -> str | None:
        """What will have to be given up before long, and why; None where nothing."""
        if "disk" in self._told:
            return "the disk has less room than is to be kept free, so the buffer no longer grows"
        if "buffer" in self._told:
            return f"the buffer is {self._buffer.used_bytes / self._buffer.config.bytes_max:.0%} full"
        return None

    def _clock(self) -> list[Event]:
        offset_s = _wall_offset_s()
        step_s, self._offset_s = offset_s - self._offset_s, offset_s
        if abs(step_s) < CLOCK_STEP_S_MIN:
            return []
        way = "forward" if step_s > 0 else "back"
        return [
            host_event(
                "system.clock.stepped", f"the clock jumped {way} by {abs(step_s):.1f} s", offset_s=round(step_s, 3)
            )
        ]

    def _pressure(self) -> list[Event]:
        events: list[Event] = []
        buffer = self._buffer
        share = buffer.used_bytes / buffer.config.bytes_max
        if self._begins("buffer", share >= PRESSURE_FROM, share < PRESSURE_UNTIL):
            text = f"the buffer is {share:.0%} full; at 100 % the oldest readings are given up first, and declared"
            events.append(
                host_event(
                    "agent.buffer.pressure", text, used_bytes=buffer.used_bytes, bytes_max=buffer.config.bytes_max
                )
            )
        if time.monotonic() - self._disk_at >= DISK_EVERY_S:
            self._disk_at = time.monotonic()
            events += self._disk()
        return events

    def _disk(self) -> list[Event]:
        try:
            status = os.statvfs(self._buffer.path.parent)
        except OSError:
            return []  # the buffer says so itself, as soon as it has something to store
        free, least = status.f_bavail * status.f_frsize, self._buffer.config.free_bytes_min
        if not self._begins("disk", free < least, free >= least * DISK_AGAIN):
            return []
        text = f"{free // 1_000_000} MB are free on the disk, less than the {least // 1_000_000} MB to be kept: the buffer no longer grows"
        return [host_event("system.disk.pressure", text, free_bytes=free, free_bytes_min=least)]

    def _contact(self) -> list[Event]:
        silent_s = time.monotonic() - self._last_contact()
        lost = "contact" in self._told
        if self._begins("contact", silent_s >= CONTACT_LOST_S, silent_s < CONTACT_LOST_S):
            text = f"the collector has not answered for {CONTACT_LOST_S / 60:.0f} min; events are kept here"
            return [
                host_event("agent.contact.lost", text, outcome="failure", pending_events=self._buffer.pending_events)
            ]
        if lost and "contact" not in self._told:
            return [host_event("agent.contact.restored", "the collector answers again", outcome="success")]
        return []

    async def _expiry(self) -> list[Event]:
        """Certificates that end soon or have ended; each is told once before and once after its end."""
        if time.monotonic() - self._expiry_at < EXPIRY_EVERY_S:
            return []
        self._expiry_at = time.monotonic()
        ends = await asyncio.to_thread(lambda: [(key, path, ends_soonest(path)) for key, path in self._certificates()])
        events = []
        self.expired = {
            key: f"the certificate in {path} expired on {end:%Y-%m-%d}"
            for key, path, end in ends
            if end is not None and end.timestamp() < time.time()
        }
        for key, path, end in ends:
            days = (end.timestamp() - time.time()) / 86_400 if end is not None else math.inf
            name = f"{'over' if days < 0 else 'soon'} {path} {end}"
            if self._begins(name, days <= WARN_DAYS, days > WARN_DAYS):
                kind = "security.certificate.invalid" if days < 0 else "security.certificate.expiring"
                text = "has expired" if days < 0 else f"expires in {days:.0f} days"
                events.append(
                    host_event(
                        kind, f"a certificate in {path} {text} ({key})", whose="own", key=key, days=round(days, 1)
                    )
                )
        return events

    def _begins(self, name: str, on: bool, off: bool) -> bool:  # noqa: FBT001 (two thresholds, named by their parameters)
        if name in self._told:
            if off:
                self._told.discard(name)
            return False
        if on:
            self._told.add(name)
        return on


def _wall_offset_s() -> float:
    # CLOCK_BOOTTIME goes on while the computer sleeps, so that waking up is no step.
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
