"""`probe`: find the readable addresses of a Modbus device before it is configured."""

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING

import msgspec

from agent.cli import DONE, FAILED
from agent.component import ConfigError, load
from agent.sources import EXTRA, SOURCES

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.sources.modbus_probe import Found


def run(options: argparse.Namespace) -> int:
    """The readable addresses of a device, as configuration to paste."""
    load(SOURCES, "modbus", what="source", extra=EXTRA)  # says what to install where pymodbus is missing
    from agent.sources.modbus_link import ConfigTls
    from agent.sources.modbus_probe import TABLES, as_configuration, probe

    first, last = options.addresses
    live = sys.stderr.isatty()
    try:
        found = asyncio.run(
            probe(
                options.url,
                options.unit,
                tables=options.table or TABLES,
                first=first,
                last=last,
                rate_per_s=options.rate,
                timeout_s=options.timeout,
                tls=ConfigTls(ca_file=str(options.ca)) if options.ca else None,
                identify=options.identify,
                ignore_id=options.ignore_transaction_id,
                tell=_progress(last) if live else lambda *_: None,
            )
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    finally:
        if live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    print(_json(found) if options.json else as_configuration(found, options.name, everything=options.all))
    if found.incomplete:
        print(f"linewarden-agent: there may be more: {found.incomplete}", file=sys.stderr)
    return DONE if found.runs else FAILED


def _progress(last: int) -> "Callable[[str, int, Found], None]":
    """One line on the terminal, about what is being asked."""

    def show(table: str, address: int, found: "Found") -> None:
        text = f"  {table} {address} of {last}   {found.readable} readable   {found.requests} requests   Ctrl-C ends it"
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    return show


def _json(found: "Found") -> str:
    shown = {
        "url": found.url,
        "unit": found.unit,
        "complete": not found.incomplete,
        "incomplete": found.incomplete or None,
        "requests": found.requests,
        "identity": {str(number): text for number, text in found.identity.items()},
        "notes": found.notes,
        "readable": [{"table": run.table, "address": run.address, "values": run.values} for run in found.runs],
    }
    return msgspec.json.encode(shown).decode()
