"""What the handlers of signals have to know of a machine before they judge what is measured there: does it run, since when, and as what.

A machine is what a source reads, or one unit behind a gateway, or what `machine` names in the configuration of points.

    running       a signal of quantity "running" says so: true, a number that is not 0, or a word such as running. Without such a signal it
                  is unknown, and whoever judges has to do without
    steady_from   a start, a stop or a changed setpoint is followed by settle_s in which nothing is usual
    regime        setpoints and modes that differ from what they were first, as a short text. Signals are compared with what was under
                  the same setpoints: a recipe that is loaded is no drift

Events that are older than the newest of a machine's own are not taken. At most MACHINES_MAX machines are known, and SETPOINTS_MAX
setpoints of each; signals of further machines are not judged, further setpoints only begin a new settling.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from agent.handlers.base import KEY_CHARS_MAX, Key, key_of, key_value, numeric
from agent.wire.event import Event

MACHINES_MAX = 2_000
SETPOINTS_MAX = 256
SPOTS_MAX = 50_000
RUNNING = "running"
RUNNING_WORDS = frozenset(
    {"running", "run", "runs", "on", "true", "1", "production", "producing", "execute", "executing"}
)
_STATE = "!k"


class Machine(msgspec.Struct, array_like=True, gc=False):
    """See the module. `first`: setpoints as they were; `now`: those that differ; `named`: the regime; `newest`: time of the last taken."""

    newest: int = 0
    says_running: bool = False
    running: bool = False
    steady_from: int = 0
    first: dict[str, str] = msgspec.field(default_factory=dict)
    now: dict[str, str] = msgspec.field(default_factory=dict)
    named: str | None = ""

    @property
    def regime(self) -> str:
        """What tells these setpoints from others; empty for those that it had first. Made when it is asked for."""
        if self.named is None:
            told = repr(sorted(self.now.items())).encode(errors="backslashreplace")
            self.named = hashlib.blake2b(told, digest_size=6).hexdigest() if self.now else ""
        return self.named

    def steady(self, time_us: int) -> bool:
        """Whether it produces, as far as one knows, and has done so for long enough."""
        return (self.running or not self.says_running) and time_us >= self.steady_from


def machine_key(event: Event) -> str:
    """Which machine the event is of."""
    data = event.data
    part = data.get("machine")
    if part is None:
        part = data.get("unit_id")
    return event.source if part is None else f"{event.source}/{key_value(part)}"[:KEY_CHARS_MAX]


def measured(event: Event) -> float | None:
    """The value, or None where it is no number or the device itself says that it is not good."""
    data = event.data
    value = data.get("value")
    if (type(value) is not float and type(value) is not int) or "quality" in data or event.outcome == "failure":
        return None
    if "status_code" in data and not _is_good(data["status_code"]):
        return None
    return numeric(value)


def _is_good(code: Any) -> bool:
    return type(code) is not int or not code >> 30  # OPC UA: the upper two bits say uncertain or bad


class Machines:
    """The machines of one handler, and what changed of them."""

    def __init__(self, settle_us: int) -> None:
        self._settle_us = settle_us
        self._known: dict[str, Machine] = {}
        self._dirty: set[str] = set()
        self._decode = msgspec.msgpack.Decoder(Machine).decode

    def of(self, key: str) -> Machine | None:
        """The machine; None where there are too many."""
        machine = self._known.get(key)
        if machine is None and len(self._known) < MACHINES_MAX:
            machine = self._known[key] = Machine()
        return machine

    def judging(self, event: Event, key: str) -> Machine | None:
        """The machine, where the event is of one of its signals; None where it is about the machine itself, and is noted.

        Setpoints of what has no signals are nobody's: they cost a look-up.
        """
        if event.type.startswith("configuration."):
            machine = self._known.get(key)
            if machine is not None:
                self._set(event, key, machine)
            return None
        machine = self.of(key)
        if machine is None or event.data.get("quantity") != RUNNING:
            return machine
        if event.time >= machine.newest:
            self._run(event, key, machine, runs=_runs(event))
        return None

    def _run(self, event: Event, key: str, machine: Machine, *, runs: bool) -> None:
        if machine.says_running and machine.running is runs:
            return
        # What is met running for the first time may have done so for long; settling costs little and is safe.
        machine.says_running, machine.running = True, runs
        self._settle(event, key, machine)

    def _set(self, event: Event, key: str, machine: Machine) -> None:
        if event.time < machine.newest:
            return
        name, data = str(key_value(event.target)), event.data
        value, before = _text(data.get("value")), _text(data.get("previous"))
        if len(machine.first) < SETPOINTS_MAX or name in machine.first:
            if machine.first.setdefault(name, before) == value:
                machine.now.pop(name, None)
            else:
                machine.now[name] = value
            machine.named = None
        self._settle(event, key, machine)

    def _settle(self, event: Event, key: str, machine: Machine) -> None:
        machine.newest = event.time
        machine.steady_from = event.time + self._settle_us
        self._dirty.add(key)

    def changes(self) -> dict[str, bytes | None]:
        """What changed since the last call."""
        changed: dict[str, bytes | None] = {
            _STATE + key: msgspec.msgpack.encode(self._known[key]) for key in self._dirty
        }
        self._dirty.clear()
        return changed

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Take up what `changes` gave."""
        for name, value in state.items():
            if name.startswith(_STATE):
                self._known[name[len(_STATE) :]] = self._decode(value)


def _text(value: Any) -> str:
    return str(key_value(value))[:64]


def _runs(event: Event) -> bool:
    """What the signal says. A value that is not good does not say that it runs."""
    data = event.data
    if event.outcome == "failure" or not _is_good(data.get("status_code")):
        return False
    said = data.get("text")
    value = said if type(said) is str else data.get("value")
    if type(value) is str:
        return value.strip().lower() in RUNNING_WORDS
    return value is True or bool(numeric(value))


class Spots:
    """Key and machine of each signal, found once: what comes again and again costs one look-up. At most SPOTS_MAX, then anew."""

    def __init__(self, by: tuple[str, ...]) -> None:
        self._key = key_of(by)
        self._is_plain = set(by) <= {"source", "target"}
        self._known: dict[tuple[Any, ...], tuple[Key, str]] = {}

    def of(self, event: Event) -> tuple[Key, str]:
        """The key by `by`, and the machine's."""
        data = event.data
        raw = (event.source, event.target, machine := data.get("machine"), unit := data.get("unit_id"))
        # true and 1 are one key of a dictionary, and two of ours.
        is_plain = self._is_plain and type(machine) in _PLAIN and type(unit) in _PLAIN
        found = self._known.get(raw) if is_plain else None
        if found is None:
            found = (self._key(event), machine_key(event))
            if is_plain:
                if len(self._known) >= SPOTS_MAX:
                    self._known.clear()
                self._known[raw] = found
        return found


_PLAIN = frozenset({str, int, type(None)})


def no_key(event: Event) -> Key:
    """For the loop of handlers that look a signal up by themselves, where they need it."""
    del event
    return ()


def hidden(key: Key, *more: str) -> tuple[Any, ...]:
    """The key with what tells signals apart beyond `by`, and is not shown."""
    return (*key, *more) if isinstance(key, tuple) else (key, *more)
