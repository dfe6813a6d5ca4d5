"""Commands about readers in the order of commits: how far each is, and having them read everything again."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from collector import audit
from collector.audit import Who
from collector.cli_access import table
from collector.cli_store import with_store
from collector.config import Settings
from collector.store import readers

if TYPE_CHECKING:
    from collector.store.database import Plain

Add = Callable[[Any, str, Callable[..., Any], str], argparse.ArgumentParser]


def register(db: Any, add: Add) -> None:
    """Add the commands to `db`."""
    add(
        db,
        "readers",
        _readers,
        "show how far alerts and analytics are, when each was checked, and what it could not read",
    ).add_argument("--json", action="store_true", help="for scripts")
    again = add(
        db,
        "reread",
        _reread,
        "have alerts count what they missed, and analytics made anew; the running collector does it",
    )
    again.add_argument("--only", choices=(readers.ALERTS, readers.ANALYTICS), help="(default: both)")


def _readers(settings: Settings, options: argparse.Namespace) -> None:
    async def work(connection: "Plain") -> list[readers.Progress]:
        return await readers.progress(connection)

    found = with_store(settings, work)
    if options.json:
        print(msgspec.json.encode(found).decode())
        return
    head = ("READER", "CHECKED", "DIFFERED", "TO READ AGAIN", "PASSED OVER")
    moments = [
        (one, [f"{when:%Y-%m-%d %H:%M:%S}" if when else "-" for when in (one.checked, one.differed)]) for one in found
    ]
    table([head, *((one.reader, *when, f"{one.waiting} batches", f"{one.unread} events") for one, when in moments)])


def _reread(settings: Settings, options: argparse.Namespace) -> None:
    chosen = [options.only] if options.only else [readers.ALERTS, readers.ANALYTICS]

    async def work(connection: "Plain") -> None:
        async with connection.transaction():
            for reader in chosen:
                await readers.request_repair(connection, reader)
            await audit.record(connection, Who.command(), "readers.reread", target=", ".join(chosen), data={})

    with_store(settings, work)
    print(f"{' and '.join(chosen)}: the collector reads again while it runs. How far: linewarden-collector db readers")
