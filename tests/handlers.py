"""What the tests of all kinds of handlers share: events, and ways to play them to a handler."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from agent.wire.event import Event

S = 1_000_000
Make = Callable[[], Any]


def event(second: float, type_: str = "x", source: str = "plc", **more: Any) -> Event:
    """An event that is seen when it happens."""
    time = round(second * S)
    return Event(time, time, type_, source, **more)


def reading(second: float, value: Any, target: str = "temperature", **more: Any) -> Event:
    """A measured value."""
    return event(second, "equipment.reading", target=target, data={"value": value, **more})


def play(handler: Any, events: Iterable[Event]) -> list[Event]:
    """One at a time, each at its own time."""
    return [alert for one in events for alert in handler.handle([one], one.observed)]


class Store:
    """Keeps what handlers give, as the buffer does."""

    def __init__(self) -> None:
        self.state: dict[str, bytes] = {}

    def keep(self, handler: Any) -> None:
        for key, value in handler.changes().items():
            if value is None:
                self.state.pop(key, None)
            else:
                self.state[key] = value


def play_with_restarts(make: Make, events: Sequence[Event], killed_after: set[int]) -> list[Event]:
    """As `play`, with the handler made anew from its stored state after the events of these numbers."""
    handler, store, alerts = make(), Store(), list[Event]()
    for number, one in enumerate(events):
        alerts += handler.handle([one], one.observed)
        store.keep(handler)
        if number in killed_after:
            handler = make()
            handler.restore(dict(store.state))
    return alerts


def facts(alerts: Iterable[Event]) -> list[dict[str, Any]]:
    """Alerts to compare."""
    return [{name: getattr(alert, name) for name in alert.__struct_fields__} for alert in alerts]
