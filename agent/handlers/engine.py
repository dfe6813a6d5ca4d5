"""The engine: all handlers of an agent, as the pipeline calls them.

    Engine.build(handlers)                   handlers: name → Config instance of its kind (ConfigCount, …); the name "builtin" →
                                             ConfigBuiltin. Without "builtin" the built-in handlers run with their defaults.
    Engine(handlers)                         handlers: name → Handler, as `build` makes them
    handle(events, now_us) -> list[Event]    the alerts, by handler in the order of the configuration, each in the order of its causes
    changes() -> dict[str, dict[str, bytes | None]]        handler → key → value, what changed since the last call
    restore(state)                           the same shape, once, before the first `handle`
    stats() -> dict[str, HandlerStats]

Routing. For each type of event the handlers that can match it are found once (their `where` is decided for the type) and remembered,
so that an event costs one look-up, and a handler never sees what cannot concern it. Those that need a key of data (most readings have no
`quantity`) stand behind a gate: an event without the key costs them one look-up together. With no events (the pipeline's tick) each
handler is called, since time has passed.

Loops. Alerts are not seen by handlers, with one exception: a handler of kind `sequence` sees an alert if one of its steps names its
type. What is raised by that second look is seen by nobody.

Isolation. A handler that raises an error is set aside with its last committed state, and one `agent.handler.failed` says so. The others
go on.
"""

import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from agent.component import ConfigError, Handler, load
from agent.handlers import EXTRA, HANDLERS
from agent.handlers.base import ConfigCommon
from agent.wire.event import Event

log = logging.getLogger(__name__)

ROUTES_MAX = 4_096
"""Routes are remembered for so many types, then found anew: types may be invented by whoever sends events."""
BUILTIN = "builtin"


@dataclass(slots=True)
class HandlerStats:
    """What /status and /metrics show of a handler."""

    kind: str
    events: int = 0
    matched: int = 0
    late: int = 0
    alerts: int = 0
    suppressed: int = 0
    keys: int = 0
    evicted: int = 0
    refused: int = 0
    busy_s: float = 0.0
    last_evaluated_us: int | None = None
    error: str | None = None


class _Slot:
    """A handler, the events that wait for it, and what is counted of it."""

    __slots__ = ("busy_ns", "error", "events", "handler", "last_us", "name", "pending", "sees_alerts")

    def __init__(self, name: str, handler: Any) -> None:
        self.name = name
        self.handler = handler
        self.pending: list[Event] = []
        self.events = 0
        self.busy_ns = 0
        self.last_us: int | None = None
        self.error: str | None = None
        self.sees_alerts = getattr(handler, "sees_alert", None)


class _Gate(NamedTuple):
    """Of one type and key of data: the handlers that want any value of it, and by text, all that want this one."""

    key: str
    any: tuple[_Slot, ...]
    by_text: Mapping[str, tuple[_Slot, ...]]


def _through(gates: tuple[_Gate, ...], event: Event) -> bool:
    """Hand the event to the handlers whose gate it passes; whether there were any."""
    data, passed = event.data, False
    for key, slots, by_text in gates:
        value = data.get(key)
        if value is None:
            continue
        if type(value) is str:
            slots = by_text.get(value, slots)  # noqa: PLW2901  (all that want any value are in it)
        if slots:
            passed = True
            for slot in slots:
                slot.pending.append(event)
    return passed


def _gates(wanted: Mapping[str, Sequence[tuple[_Slot, frozenset[str] | None]]]) -> tuple[_Gate, ...]:
    gates = []
    for key, wants in wanted.items():
        texts = {text for _, values in wants for text in values or ()}
        by_text = {
            text: tuple(slot for slot, values in wants if values is None or text in values) for text in sorted(texts)
        }
        gates.append(_Gate(key, tuple(slot for slot, values in wants if values is None), by_text))
    return tuple(gates)


class Engine:
    """See the module."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._slots = [_Slot(name, handler) for name, handler in handlers.items()]
        self._routes: dict[str, tuple[_Slot, ...]] = {}
        self._gates: dict[str, tuple[_Gate, ...]] = {}
        self._untold: list[Event] = []
        """What `changes` has to say: told with the next events."""
        self._now_us = 0
        self._learners = [slot for slot in self._slots if hasattr(slot.handler, "begin")]
        """Handlers whose learning starts with the agent's first event of any type."""

    @classmethod
    def build(cls, handlers: Mapping[str, object]) -> "Engine":
        """The engine of a configuration; does no I/O but for Sigma rules, which are read. Raises ConfigError."""
        return cls(build_handlers(handlers))

    @property
    def reads_lines(self) -> bool:
        """Whether a handler searches original lines, so that parsers have to show them."""
        return any(slot.handler.reads_lines() for slot in self._slots if hasattr(slot.handler, "reads_lines"))

    @property
    def handlers(self) -> dict[str, Any]:
        """The handlers by name."""
        return {slot.name: slot.handler for slot in self._slots}

    def handle(self, events: Sequence[Event], now_us: int) -> list[Event]:
        """The alerts that these events raise. Tags causes that have no correlation id with that of their alert."""
        self._now_us = now_us
        told, self._untold = self._untold, []
        if events and self._learners:
            for slot in self._learners:
                slot.handler.begin(events[0].time)
            self._learners = []
        if not events:
            alerts = self._run([slot for slot in self._slots if slot.error is None], now_us)
        else:
            alerts = self._run(self._route(events), now_us)
        if alerts and any(slot.sees_alerts is not None for slot in self._slots):
            alerts += self._second_look(alerts, now_us)
        return told + alerts if told else alerts

    def _route(self, events: Sequence[Event]) -> list[_Slot]:
        """Hand each event to the handlers that may match it; these, in the order of the configuration."""
        routes, found, gates_of = self._routes.get, self._find_route, self._gates.get
        touched: dict[str, tuple[_Slot, ...]] = {}
        gated = False
        for event in events:
            type_ = event.type
            slots = routes(type_)
            if slots is None:
                slots = found(type_)
            if slots:
                touched[type_] = slots
                for slot in slots:
                    slot.pending.append(event)
            gates = gates_of(type_)
            if gates is not None and _through(gates, event):
                gated = True
        if gated:
            return [slot for slot in self._slots if slot.pending]
        if not touched:
            return []
        if len(touched) == 1:
            return list(next(iter(touched.values())))
        return [slot for slot in self._slots if slot.pending]

    def _find_route(self, type_: str) -> tuple[_Slot, ...]:
        if len(self._routes) >= ROUTES_MAX:
            self._forget_routes()
        alive = [slot for slot in self._slots if slot.error is None]
        wanted = [] if type_.startswith("alert.") else [slot for slot in alive if slot.handler.can_match(type_)]
        gates: dict[str, list[tuple[_Slot, frozenset[str] | None]]] = {}
        route: list[_Slot] = []
        for slot in wanted:
            needs = slot.handler.needs(type_) if hasattr(slot.handler, "needs") else {}
            if len(needs) == 1:
                ((key, values),) = needs.items()
                gates.setdefault(key, []).append((slot, values))
            else:
                # Of several keys an event might have more than one, and would come twice.
                route.append(slot)
        if gates:
            self._gates[type_] = _gates(gates)
        self._routes[type_] = tuple(route)
        return self._routes[type_]

    def _forget_routes(self) -> None:
        self._routes.clear()
        self._gates.clear()

    def _run(self, slots: Sequence[_Slot], now_us: int) -> list[Event]:
        alerts: list[Event] = []
        for slot in slots:
            pending = slot.pending
            slot.pending = []
            began = time.perf_counter_ns()
            try:
                raised = slot.handler.handle(pending, now_us)
            except Exception as error:  # noqa: BLE001  (a defect of one handler must not cost the others; it is reported, and the handler set aside)
                raised = [self._set_aside(slot, error, now_us)]
            slot.busy_ns += time.perf_counter_ns() - began
            slot.events += len(pending)
            slot.last_us = now_us
            if raised:
                alerts += raised
        for slot in slots:
            self._tag(slot)
        return alerts

    @staticmethod
    def _tag(slot: _Slot) -> None:
        tags = getattr(slot.handler, "tags", None)
        if tags:
            for event, correlation in tags:
                if event.correlation_id is None:
                    event.correlation_id = correlation
            tags.clear()

    def _second_look(self, alerts: list[Event], now_us: int) -> list[Event]:
        seen: list[_Slot] = []
        for slot in self._slots:
            if slot.sees_alerts is not None and slot.error is None:
                slot.pending = [alert for alert in alerts if slot.sees_alerts(alert.type)]
                if slot.pending:
                    seen.append(slot)
        return self._run(seen, now_us) if seen else []

    def _set_aside(self, slot: _Slot, error: Exception, now_us: int) -> Event:
        slot.error = f"{type(error).__name__}: {error}"[:500]
        self._forget_routes()
        log.error("handler %s was set aside: %s\n%s", slot.name, slot.error, traceback.format_exc())
        return Event(
            now_us,
            now_us,
            "agent.handler.failed",
            outcome="failure",
            message=f"handler {slot.name} failed and was set aside; the others go on. It begins again with the agent",
            data={"handler": slot.name, "error": type(error).__name__},
        )

    def changes(self) -> dict[str, dict[str, bytes | None]]:
        """What the handlers have to keep, changed since the last call. A handler that was set aside keeps what it had."""
        changed: dict[str, dict[str, bytes | None]] = {}
        for slot in self._slots:
            if slot.error is not None:
                continue
            try:
                state = slot.handler.changes()
            except Exception as error:  # noqa: BLE001  (as in _run: a defect of one handler must not stop the storing of everybody's events)
                self._untold.append(self._set_aside(slot, error, self._now_us))
                continue
            if state:
                changed[slot.name] = state
        return changed

    def restore(self, state: Mapping[str, Mapping[str, bytes]]) -> None:
        """Take up the stored state. That of handlers that are no longer configured is left alone.

        What cannot be read (the handler's kind changed, or a newer version wrote it) is forgotten, and the handler begins anew.
        """
        for slot in self._slots:
            stored = state.get(slot.name)
            if not stored:
                continue
            try:
                slot.handler.restore(stored)
            except (ValueError, TypeError, KeyError, IndexError) as error:  # msgspec's errors are ValueErrors
                log.warning("handler %s begins anew: its stored state cannot be read (%s)", slot.name, error)

    def stats(self) -> dict[str, HandlerStats]:
        """What each handler counts, by name."""
        return {slot.name: _stats(slot) for slot in self._slots}


def _stats(slot: _Slot) -> HandlerStats:
    handler = slot.handler
    counted = getattr(handler, "stats", None)
    keys = len(handler.table) if hasattr(handler, "table") else getattr(handler, "keys_held", 0)
    shown = HandlerStats(
        handler.kind,
        slot.events,
        busy_s=slot.busy_ns / 1e9,
        last_evaluated_us=slot.last_us,
        error=slot.error,
        keys=keys,
    )
    for name in ("matched", "late", "alerts", "suppressed", "evicted", "refused"):
        setattr(shown, name, getattr(counted, name, 0))
    return shown


def build_handlers(handlers: Mapping[str, object]) -> dict[str, Any]:
    """Name → handler. A configured handler takes the place of the built-in of the same name."""
    from agent.handlers.builtin import ConfigBuiltin, builtin_configs

    given = handlers.get(BUILTIN)
    if given is not None and not isinstance(given, ConfigBuiltin):
        raise ConfigError(
            "handlers.builtin holds the settings of the built-in handlers",
            key="handlers.builtin",
            remedy="Choose another name.",
        )
    configs: dict[str, object] = dict(builtin_configs(given or ConfigBuiltin()))
    for name, config in handlers.items():
        if name != BUILTIN:
            configs.update(config.expanded(name) if hasattr(config, "expanded") else {name: config})
    built: dict[str, Any] = {}
    for name, config in configs.items():
        if not isinstance(config, ConfigCommon) or config.enabled:
            built[name] = handler_of(name, config)
    return built


def handler_of(name: str, config: object) -> Any:
    """The handler of a configuration, by its class."""
    for kind, path in HANDLERS.items():
        # The class that was instantiated says by its module which kind it is, so that no other kind need be imported.
        if path.partition(":")[0] == type(config).__module__:
            return load({kind: path}, kind, what="handler", extra=EXTRA)(name, config)
    raise ConfigError(f"{type(config).__name__} configures no handler", key=f"handlers.{name}")
