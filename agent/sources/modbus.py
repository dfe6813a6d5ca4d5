"""Polls a Modbus gateway: every configured point as an event when it changes, or an event that says why it cannot be read.

    due ─► for each unit: planned requests ─► points ─► events ─► yield (committed, with what is known of setpoints) ─► sleep until due

Polling sees only what stands in a register when it looks; what it did not look at is declared. From the last poll that is known to be
durable until the first one of a new connection nobody was looking: that is a `collection.gap`, of the source or of one unit. What a
setpoint, a mode or a counter was before is in the cursor, so that a change in that time is an event all the same, though nobody knows by
whom or when.

The cadence is kept by due times, not by pauses: a slow cycle does not shift the next one, and a cycle that is missed is counted and said.
Only reads leave this program (agent.sources.modbus_client is the fence around pymodbus's client).
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from annotated_types import Ge, Gt, Le

from agent.component import Cursor, NotConnected, Report, now_us
from agent.sources.modbus_events import gap_event
from agent.sources.modbus_link import (
    BITS_MAX,
    REGISTERS_MAX,
    ConfigTls,
    Exceptional,
    Link,
    NoAnswer,
    Timing,
    parse_url,
)
from agent.sources.modbus_points import ConfigPoint, Watch, modicon
from agent.sources.modbus_units import Limits, Unit, in_order
from agent.wire.event import Event

GAP_INTERVALS: Final = 3
"""Not having polled for so many intervals is a gap; at least GAP_S_MIN, so that a fast poll does not make one of a hiccup."""
GAP_S_MIN: Final = 1.0
CURSOR_EVERY_S: Final = 5.0
"""The cursor moves so often when nothing changes: a gap may seem to begin so much earlier than it did."""
COMMIT_EVERY_S: Final = 0.05
"""A poll faster than this does not make a commit of each cycle: a station's disk is not to be worn out."""
EVENTS_MAX: Final = 2_000
"""In one batch; so many are never held back."""
FLAPS_MAX, FLAPPING_S = 3, 600
"""So many losses within that time are flapping; said once in that time."""
WHOLE: Final = ""
"""The gateway as a part, beside its units."""

IDENTITY_OBJECTS: Final = {
    0: "vendor",
    1: "product_code",
    2: "revision",
    3: "vendor_url",
    4: "product_name",
    5: "model",
    6: "application",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigUnit:
    """One unit behind a gateway."""

    unit: Annotated[int, Ge(0), Le(255)]
    name: str | None = None
    points: tuple[ConfigPoint, ...]

    @property
    def label(self) -> str:
        """What people call it."""
        return self.name or f"unit {self.unit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigModbus:
    """One gateway or device. Either `unit` and `points`, or several `units` with points of their own."""

    url: str
    unit: Annotated[int, Ge(0), Le(255)] = 1
    points: tuple[ConfigPoint, ...] = ()
    units: tuple[ConfigUnit, ...] = ()
    interval_s: Annotated[float, Ge(0.01), Le(86_400)] = 1.0
    heartbeat_s: Annotated[float, Ge(0), Le(604_800)] = 300.0
    """A value is reported so often although it has not changed; 0: never."""
    timeout_s: Annotated[float, Ge(0.01), Le(60)] = 1.0
    connect_timeout_s: Annotated[float, Gt(0), Le(60)] = 5.0
    connect_pause_s: Annotated[float, Ge(0), Le(60)] = 0.0
    """Some devices need a moment after connecting (telegraf#11919)."""
    request_pause_s: Annotated[float, Ge(0), Le(10)] = 0.0
    registers_per_request_max: Annotated[int, Ge(1), Le(REGISTERS_MAX)] = REGISTERS_MAX
    bits_per_request_max: Annotated[int, Ge(1), Le(BITS_MAX)] = BITS_MAX
    bridge_addresses_max: Annotated[int, Ge(0), Le(100)] = 0
    """So many addresses that nobody configured may be read along between two points, to save a request."""
    transaction_id: Literal["check", "ignore"] = "check"
    """`ignore`: accept answers whose transaction id differs from the request's. They are guarded like those of RTU: after a time-out the
    connection is replaced, and the next answer is accepted only if no second one follows. No other client may use the gateway.
    """
    identity: bool = False
    """Ask each unit who it is (function 43), on a connection of its own. Some devices choke on it."""
    identity_interval_s: Annotated[float, Ge(1), Le(604_800)] = 3_600.0
    tls: ConfigTls = field(default_factory=ConfigTls)

    def __post_init__(self) -> None:
        try:
            address = parse_url(self.url)
        except ValueError as error:
            raise ValueError(f"url: {error}") from None
        if address.rtu and self.transaction_id == "ignore":
            raise ValueError(f"transaction_id: {address.scheme}:// has no transaction ids; remove it")
        if self.tls != ConfigTls() and address.scheme != "tls":
            raise ValueError(f"tls: certificates have no use with {address.scheme}://; write tls:// or remove them")
        if bool(self.tls.key_file) and not self.tls.certificate_file:
            raise ValueError("tls.certificate_file: missing; tls.key_file belongs to one")
        if bool(self.points) == bool(self.units):
            raise ValueError("points: give points (of one unit), or units with points of their own; one of the two")
        numbers = [unit.unit for unit in self.all_units()]
        if len(set(numbers)) < len(numbers):
            raise ValueError("units: a unit stands here twice; put its points together")
        labels = [unit.label for unit in self.all_units()]
        if len(set(labels)) < len(labels):
            raise ValueError("units: two units have the same name; rename one of them")
        if address.rtu and 0 in numbers:
            raise ValueError("unit: on a serial line 0 is everybody, and nobody answers; give the number of the unit")
        for unit in self.all_units():
            self._check_points(unit)

    def _check_points(self, unit: ConfigUnit) -> None:
        names = [point.name for point in unit.points]
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice is not None:
            raise ValueError(f"points: two points of unit {unit.unit} are called {twice!r}; rename one of them")
        if not names:
            raise ValueError(f"units: unit {unit.unit} has no points; give it some or remove it")
        widest = max(p.registers for p in unit.points)
        if widest > self.registers_per_request_max:
            raise ValueError(
                f"registers_per_request_max: a point of unit {unit.unit} takes {widest} registers and has to fit in one request"
            )

    def all_units(self) -> tuple[ConfigUnit, ...]:
        """The units, also where only one was given in short."""
        return self.units or (ConfigUnit(unit=self.unit, points=self.points),)

    def timing(self) -> Timing:
        """How long to wait for what."""
        return Timing(self.timeout_s, self.connect_timeout_s, self.connect_pause_s, self.request_pause_s)

    def warnings(self) -> Iterable[tuple[str, str, str]]:
        """What works, and is probably meant otherwise: (key, what, what to do)."""
        for number, unit in enumerate(self.all_units()):
            place = f"units[{number}].points" if self.units else "points"
            found = [(at, hint) for at, p in enumerate(unit.points) if (hint := modicon(p.table, p.address))]
            if not found:
                continue
            at, hint = found[0]
            more = f" (and {len(found) - 1} more points of unit {unit.unit})" if len(found) > 1 else ""
            text = f"{unit.points[at].name!r} is read from address {unit.points[at].address} of {unit.points[at].table}{more}"
            yield f"{place}[{at}].address", text, f"{hint}. Leave it where the device really counts that far."

    def problems(self) -> Iterable[tuple[str, str, str]]:
        """Files and devices that are not there or cannot be read: (key, what is wrong, what to do)."""
        files = {f"tls.{key}": getattr(self.tls, key) for key in ("ca_file", "certificate_file", "key_file")}
        for key, path in files.items():
            if path is None:
                continue
            try:
                with Path(path).open("rb"):
                    pass
            except OSError as error:
                yield (
                    key,
                    f"{path}: {error.strerror}",
                    "Name a PEM file that exists and that the agent's user can read.",
                )
        device = parse_url(self.url).device
        if device and not Path(device).exists():
            yield (
                "url",
                f"{device}: there is no such device",
                "Plug it in, or name another; ls /dev/serial/by-id shows them.",
            )
        elif device and not os.access(device, os.R_OK | os.W_OK):
            yield (
                "url",
                f"{device}: permission denied",
                "Add the agent's user to the group of the device (often dialout).",
            )


@dataclass(slots=True)
class Position:
    """The cursor, unpacked."""

    seen_us: int | None = None
    """When was last polled; None before the first time."""
    known: dict[str, list[Any]] = field(default_factory=dict)
    lost_us: dict[str, int] = field(default_factory=dict)
    """Parts that do not answer, and since when."""
    losses_us: dict[str, list[int]] = field(default_factory=dict)
    identities: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def load(cls, cursor: Cursor | None) -> "Position":
        """From a cursor; an empty one where there is none or it is of another version."""
        if not cursor or cursor.get("v") != 1:
            return cls()
        return cls(
            cursor["seen_us"],
            dict(cursor["known"]),
            dict(cursor["lost_us"]),
            {part: list(times) for part, times in cursor["losses_us"].items()},
            dict(cursor["identities"]),
        )

    def save(self) -> Cursor:
        """As a cursor."""
        return {
            "v": 1,
            "seen_us": self.seen_us,
            "known": dict(self.known),
            "lost_us": dict(self.lost_us),
            "losses_us": {part: list(times) for part, times in self.losses_us.items()},
            "identities": dict(self.identities),
        }


class _Cadence:
    """Due times on a grid that never drifts."""

    def __init__(self, interval_s: float, report: Report) -> None:
        self._interval_s = interval_s
        self._report = report
        self._due_s = time.monotonic()
        self._behind = False

    def left_s(self) -> float:
        """Until the next cycle."""
        return self._due_s + self._interval_s - time.monotonic()

    async def wait(self) -> None:
        """Until the next cycle is due. Missed ones are counted, and said when it begins."""
        self._due_s += self._interval_s
        late_s = time.monotonic() - self._due_s
        missed = int(late_s / self._interval_s) if late_s > 0 else 0
        if missed:
            self._due_s += missed * self._interval_s
            self._report.count("cycles_missed", missed)
            if not self._behind:
                self._behind = True
                self._report.fault(
                    f"a cycle takes longer than interval_s ({self._interval_s:g} s): {late_s + self._interval_s:.2f} s; "
                    "raise interval_s, or read fewer points",
                    "cadence",
                )
        elif self._behind and late_s <= 0:
            self._behind = False
            self._report.ok("cadence")
        if late_s < 0:
            await asyncio.sleep(-late_s)
        else:
            await asyncio.sleep(0)


class ModbusSource:
    """A gateway, polled. See the module's text."""

    Config: ClassVar[type] = ConfigModbus
    rereadable: ClassVar[bool] = False

    def __init__(self, name: str, config: ConfigModbus, report: Report) -> None:
        self._name = name
        self._config = config
        self._report = report
        self._address = parse_url(config.url)
        limits = Limits(config.registers_per_request_max, config.bits_per_request_max, config.bridge_addresses_max)
        self._units = [
            Unit(
                unit.unit,
                unit.label,
                [Watch(point, unit.unit, name, config.heartbeat_s) for point in unit.points],
                limits,
                name,
                report,
            )
            for unit in config.all_units()
        ]
        self._identify_s = 0.0
        self._events: list[Event] = []
        """Read, and not yet handed on."""

    @property
    def requests_planned(self) -> int:
        """Requests that one cycle takes when every unit answers."""
        return sum(unit.requests_planned for unit in self._units)

    async def batches(self, cursor: Cursor | None) -> AsyncGenerator[tuple[list[Event], Cursor | None], None]:
        """One connection's worth of events; see agent.component.Source."""
        position = Position.load(cursor)
        config = self._config
        link = Link(self._address, config.timing(), config.tls, ignore_id=config.transaction_id == "ignore")
        self._events = []
        try:
            await link.open()
            self._connected(position)
            async with aclosing(self._cycles(link, position)) as cycles:
                async for batch in cycles:
                    yield batch
        except NotConnected as error:
            # What was read before the end counts: the points know it as reported.
            for unit in self._units:
                self._events += unit.drain()
            self._events += self._lost(position, WHOLE, str(error))
            if self._events:
                yield self._events, position.save()
            raise
        finally:
            link.close()

    def _connected(self, position: Position) -> None:
        """What is to be done and said at the start of a connection."""
        self._report.ok()
        for unit in self._units:
            unit.begin()
            for watch in unit.watches:
                watch.remember(position.known.get(watch.key))
        self._forget_what_is_gone(position)
        self._events += self._restored(position, WHOLE)
        longest_s = max(self._config.interval_s * GAP_INTERVALS, GAP_S_MIN)
        if position.seen_us is not None and now_us() - position.seen_us > longest_s * 1_000_000:
            self._events.append(self._gap("polling had stopped; changes in between are unknown", position.seen_us))

    def _forget_what_is_gone(self, position: Position) -> None:
        """Points and units that are no longer configured do not stay in the cursor for ever."""
        keys = {watch.key for unit in self._units for watch in unit.watches}
        parts = {WHOLE, *(str(unit.id) for unit in self._units)}
        position.known = {key: value for key, value in position.known.items() if key in keys}
        position.lost_us = {part: value for part, value in position.lost_us.items() if part in parts}
        position.losses_us = {part: value for part, value in position.losses_us.items() if part in parts}
        position.identities = {part: value for part, value in position.identities.items() if part in parts}

    async def _cycles(self, link: Link, position: Position) -> AsyncGenerator[tuple[list[Event], Cursor | None], None]:
        cadence = _Cadence(self._config.interval_s, self._report)
        moved_s = 0.0
        while True:
            await self._cycle(link, position, cadence)
            since_s = time.monotonic() - moved_s
            held_back = since_s < COMMIT_EVERY_S and len(self._events) < EVENTS_MAX
            if since_s >= CURSOR_EVERY_S or (self._events and not held_back):
                moved_s = time.monotonic()
                for batch in _parts(self._events, position.save):
                    yield batch
                self._events = []
            await cadence.wait()

    async def _cycle(self, link: Link, position: Position, cadence: _Cadence) -> None:
        """Ask every unit for everything, once: first those that answer, then, with the time that is left, those that did not."""
        for unit in in_order(self._units, lambda unit: not unit.suspended):
            await self._poll(link, position, unit, None, max(0.0, cadence.left_s() / 2))
        for unit in in_order(self._units, lambda unit: unit.suspended and unit.is_due(time.monotonic())):
            patience_s = unit.patience_s(cadence.left_s(), self._config.timeout_s)
            if patience_s is not None:
                await self._poll(link, position, unit, patience_s)
        if self._config.identity and time.monotonic() >= self._identify_s:
            await self._identify(link, position)
        self._count(link)
        position.seen_us = now_us()

    async def _poll(
        self, link: Link, position: Position, unit: Unit, patience_s: float | None, spare_s: float = 0.0
    ) -> None:
        """One unit, once. What it says of setpoints and counters is known from here on."""
        try:
            await unit.poll(link, patience_s, spare_s)
        finally:
            position.known |= unit.memory()
        self._events += self._changed(position, unit)

    def _count(self, link: Link) -> None:
        """Counters of the link, into the report."""
        for name, value in (("requests", link.requests), ("late_answers", link.late_answers)):
            if value:
                self._report.count(name, value)
        link.requests = link.late_answers = 0

    # Contact ------------------------------------------------------------------------------------------------------------------

    def _changed(self, position: Position, unit: Unit) -> list[Event]:
        """The events of a unit's poll, led by what changed about its answering at all."""
        part = str(unit.id)
        if unit.suspended:
            return unit.drain() + self._lost(position, part, unit.trouble, unit)
        if part not in position.lost_us or unit.failures:
            return unit.drain()
        since_us = position.lost_us[part]
        return [
            *self._restored(position, part, unit),
            self._gap(f"{unit.label} did not answer; its changes in between are unknown", since_us, unit),
            *unit.drain(),
        ]

    def _lost(self, position: Position, part: str, why: str, unit: Unit | None = None) -> list[Event]:
        """A part stopped answering: once. Of a gateway that was never reached the runner has said it already."""
        if part in position.lost_us or (part == WHOLE and position.seen_us is None):
            return []
        now = now_us()
        position.lost_us[part] = (unit.answered_us if unit else position.seen_us) or now
        name = unit.label if unit else self._address.url
        data = {"unit_id": unit.id if unit else None, "reason": why, "url": self._address.url}
        lost = Event(
            now,
            now,
            "device.comms.lost",
            self._name,
            target=name,
            outcome="failure",
            message=f"{name} does not answer: {why}"[:1_000],
            data=data,
        )
        return [lost, *self._flapping(position, part, name, data, now)]

    def _flapping(self, position: Position, part: str, name: str, data: dict[str, Any], now: int) -> list[Event]:
        times = [us for us in position.losses_us.get(part, []) if now - us < FLAPPING_S * 1_000_000] + [now]
        position.losses_us[part] = times
        if len(times) < FLAPS_MAX:
            return []
        position.losses_us[part] = []
        message = f"{name} comes and goes: lost {len(times)} times within {FLAPPING_S} s"
        data = {**data, "losses": len(times), "within_s": FLAPPING_S}
        return [
            Event(
                now,
                now,
                "device.comms.flapping",
                self._name,
                target=name,
                outcome="failure",
                message=message,
                data=data,
            )
        ]

    def _restored(self, position: Position, part: str, unit: Unit | None = None) -> list[Event]:
        """A part answers again, if it had been lost."""
        since_us = position.lost_us.pop(part, None)
        if since_us is None:
            return []
        now = now_us()
        name = unit.label if unit else self._address.url
        data = {"unit_id": unit.id if unit else None, "lost_us": since_us, "away_s": (now - since_us) / 1_000_000}
        return [
            Event(
                now,
                now,
                "device.comms.restored",
                self._name,
                target=name,
                outcome="success",
                message=f"{name} answers again",
                data=data,
            )
        ]

    def _gap(self, reason: str, from_us: int, unit: Unit | None = None) -> Event:
        self._report.count("gaps")
        label, unit_id = (unit.label, unit.id) if unit else (self._name, None)
        return gap_event(self._name, label, unit_id, reason, from_us)

    # Identity -----------------------------------------------------------------------------------------------------------------

    async def _identify(self, link: Link, position: Position) -> None:
        """Ask every unit that answers who it is; an event where it is not who it was."""
        self._identify_s = time.monotonic() + self._config.identity_interval_s
        for unit in self._units:
            if unit.suspended:
                continue
            try:
                objects = await link.identify(unit.id)
            except (NoAnswer, Exceptional) as error:
                text = f"{unit.label} does not say who it is: {error}; if it never does, set identity = false"
                self._report.fault(text, f"{unit.label} identity")
                continue
            self._report.ok(f"{unit.label} identity")
            now_it_is = {IDENTITY_OBJECTS.get(number, f"object_{number}"): text for number, text in objects.items()}
            before = position.identities.get(str(unit.id))
            position.identities[str(unit.id)] = now_it_is
            if before is not None and before != now_it_is:
                self._events.append(self._another(unit, before, now_it_is))

    def _another(self, unit: Unit, before: dict[str, str], after: dict[str, str]) -> Event:
        changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
        firmware = changed == ["revision"]
        now = now_us()
        return Event(
            now,
            now,
            "configuration.firmware.changed" if firmware else "equipment.identity.changed",
            self._name,
            target=unit.label,
            message=f"{unit.label} identifies itself otherwise than before: {', '.join(changed)}",
            data={"unit_id": unit.id, "value": after, "previous": before, "changed": changed},
        )


def _parts(events: list[Event], save: Callable[[], Cursor]) -> Iterable[tuple[list[Event], Cursor | None]]:
    """In batches of a bearable size; the cursor moves with the last."""
    while len(events) > EVENTS_MAX:
        yield events[:EVENTS_MAX], None
        events = events[EVENTS_MAX:]
    yield events, save()
