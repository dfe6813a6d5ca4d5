"""`browse` and `trust`: look at an OPC UA server before it is configured."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from agent.cli import DONE, SERVICE
from agent.component import load
from agent.service_account import make_state_folder
from agent.sources import EXTRA, SOURCES

FOLDER = "opcua"
"""Below the state folder: where sources keep the certificates that they trust."""
T = TypeVar("T")


def browse(options: argparse.Namespace) -> int:
    """The variables of a server, as configuration to paste."""
    tools = _tools()
    if options.trust:
        _trust(tools, options)
    found = _run(lambda: tools.browse(options.url, options.depth, root=options.root, match=options.match))
    if options.json:
        shown = {
            "complete": found.complete,
            "variables": [{"node": v.node, "path": v.path, "type": v.kind, "value": v.value} for v in found.variables],
        }
        print(msgspec.json.encode(shown, enc_hook=str).decode())
        return DONE
    print(f'[sources.{options.name}]\ntype = "opcua"\nurl = {json.dumps(options.url)}')
    print(tools.as_configuration(found.variables))
    if not found.complete:
        print("# There is more: narrow it with --root or --match.", file=sys.stderr)
    return DONE


def trust(options: argparse.Namespace) -> int:
    """Keep the certificate that a server shows now."""
    kept = _trust(_tools(), options)
    if options.json:
        print(msgspec.json.encode(kept, enc_hook=str).decode())
    return DONE


def _trust(tools: Any, options: argparse.Namespace) -> Any:
    from agent.config_read import section

    folder = options.folder
    if folder is None:
        state_dir = Path(section("agent", options.config, os.environ).state_dir)
        make_state_folder(SERVICE, options.config, state_dir)
        folder = state_dir / FOLDER
    kept = _run(lambda: tools.trust(options.url, folder))
    said = [
        f"{kept.subject}",
        f"  thumbprint (SHA-1)     {kept.thumbprint}",
        f"  fingerprint (SHA-256)  {kept.fingerprint}",
        f"  expires in {kept.expires_in_days:.0f} days; kept in {kept.file}",
    ]
    if kept.replaced_thumbprint:
        said.append(f"  it takes the place of {kept.replaced_thumbprint}, which was trusted before")
    said.append("Compare the thumbprint with the one that the server's own tools show.")
    print("\n".join(said), file=sys.stderr)
    return kept


def _tools() -> Any:
    # Named by the table's own loader, so that a missing library is told together with the extra that brings it.
    load(SOURCES, "opcua", what="source", extra=EXTRA)
    from agent.sources import opcua_tools

    return opcua_tools


def _run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return asyncio.run(work())
