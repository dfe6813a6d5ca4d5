"""`events`: what is in the buffer, as text or as JSON, and what comes."""

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from agent.cli import DONE, WRONG
from agent.cli_store import Store, StoredBatch
from agent.handlers.where import Where, WhereError
from agent.wire.batch import MalformedBatch, read_frame
from agent.wire.event import Event

FOLLOW_LAST = 10
POLL_S = 0.25
SEVERITIES = ("?", "info", "low", "medium", "high", "critical", "fatal")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Test = Callable[[Event], bool]


def events(options: argparse.Namespace) -> int:
    """Print them."""
    from agent.config_read import section

    try:
        where = Where(options.where)
    except WhereError as error:
        print(f"linewarden-agent: --where: {error}", file=sys.stderr)
        return WRONG
    show = _json if options.json else line
    store = Store(section("agent", options.config, os.environ).buffer_path)
    try:
        _print(store, options, where, show)
    finally:
        store.close()
    return DONE


def _print(store: Store, options: argparse.Namespace, where: Test, show: Callable[[Event], str]) -> None:
    last = options.last or (FOLLOW_LAST if options.follow else None)
    after: dict[int, int] = {}
    if last is not None:
        after = store.ends()
        for event in _last(store, last, where):
            print(show(event))
    for event in _all(store, after, where):
        print(show(event))
    while options.follow:
        sys.stdout.flush()
        time.sleep(POLL_S)
        for event in _all(store, after, where):
            print(show(event))


def _all(store: Store, after: dict[int, int], where: Test) -> Iterator[Event]:
    for batch in store.batches(after):
        yield from filter(where, opened(batch))


def _last(store: Store, count: int, where: Test) -> list[Event]:
    found: deque[Event] = deque()
    for batch in store.newest():
        found.extendleft(event for event in reversed(opened(batch)) if where(event))
        if len(found) >= count:
            break
    return list(found)[-count:]


def opened(batch: StoredBatch) -> list[Event]:
    """The events of a batch; of one that cannot be read, none, and a line that says so."""
    try:
        return read_frame(batch.frame).events()
    except MalformedBatch as error:
        print(f"linewarden-agent: batch {batch.no} cannot be read: {error}", file=sys.stderr)
        return []


def _json(event: Event) -> str:
    return msgspec.json.encode(event).decode()


def line(event: Event) -> str:
    """An event on one line: when, how severe, what, from where; then the message, or what there is in its place."""
    parts = [time_text(event.time), f"{SEVERITIES[event.severity]:8}", event.type, event.source or "-"]
    named = {"src_ip": event.src_ip, "target": event.target, "outcome": event.outcome, "actor": event.actor}
    parts += [f"{name}={value}" for name, value in named.items() if value]
    said = event.message or (_shown(event.data) if event.data else "")
    return " ".join(_printable(part) for part in [*parts, said] if part)


def _shown(data: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in data.items())


def _printable(text: str) -> str:
    # What a log or a machine sent may hold escape sequences, which a terminal would obey.
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def time_text(time_us: int) -> str:
    """µs since the epoch, as people read it, UTC."""
    try:
        return f"{_EPOCH + timedelta(microseconds=time_us):%Y-%m-%dT%H:%M:%S.%f}Z"
    except OverflowError:
        return f"{time_us}us"
