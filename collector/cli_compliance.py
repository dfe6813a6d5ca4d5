"""Commands about compliance: the report of what is supported and what was recorded."""

import argparse
import asyncio
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from agent import owned_files
from collector import compliance
from collector.cli_store import Add
from collector.config import Settings
from collector.store.database import Database
from collector.store.events import ALL, TooSlow
from collector.store.rollups import TooMany

DONE, FAILED = 0, 1
DAYS_MAX = 3_650


def register(commands: Any, add: Add) -> None:
    """Add the commands of this part."""
    group = commands.add_parser("compliance", help="what standards ask, what backs it, what was recorded")
    actions = group.add_subparsers(required=True, metavar="ACTION")
    reporting = add(
        actions, "report", _report, "write the report of the last days. It says `supports`, never `certified`"
    )
    reporting.add_argument("--format", choices=("html", "json"), default="html")
    reporting.add_argument("--days", type=_days, default=30, metavar="N", help=f"1 to {DAYS_MAX} (default: 30)")
    reporting.add_argument("--output", type=Path, metavar="FILE", help="(default: standard output)")


def _days(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= DAYS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days from 1 to {DAYS_MAX}")
    return int(text)


def _report(settings: Settings, options: argparse.Namespace) -> int:
    async def work() -> compliance.Report:
        database = Database(settings.database.address, pool_size=2, synchronous_commit="on")
        await database.open()
        try:
            end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
            return await compliance.report(database, settings, ALL, end - timedelta(days=options.days), end)
        finally:
            await database.close()

    try:
        found = asyncio.run(work())
    except (TooMany, TooSlow) as error:
        print(f"{error}. Give fewer --days", file=sys.stderr)
        return FAILED
    text = compliance.html(found) if options.format == "html" else msgspec.json.encode(found).decode()
    if options.output is None:
        print(text)
    else:
        with owned_files.replacing(options.output) as out:
            out.write(text.encode())
    return DONE
