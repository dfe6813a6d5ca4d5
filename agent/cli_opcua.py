"""`browse` and `trust`: look at an OPC UA server before it is configured."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from agent.cli import DONE, SERVICE
from agent.component import ConfigError, load
from agent.service_account import make_state_folder
from agent.sources import EXTRA, SOURCES

FOLDER = "opcua"
"""Below the state folder: where sources keep the certificates that they trust."""
TIMEOUT_S = 10.0
T = TypeVar("T")


ACCESS_KEYS = frozenset(
    {
        "url", "security", "state_dir", "server_certificate_file", "client_certificate_file", "client_key_file", "user", "password_file",
        "user_certificate_file", "user_key_file", "allow_password_in_clear", "trust_dir", "crl_required", "timeout_s",
    }
)  # fmt: skip
"""Keys of a source that say how to sign in: what else it has may still be missing or wrong when somebody browses."""


def browse(options: argparse.Namespace) -> int:
    """Print the variables of a server, as configuration to paste."""
    tools = _tools()
    configured = _configured(options)
    if not options.url:
        raise ConfigError("browse needs an address", key="url", remedy="Write opc.tcp://HOST:4840, or --source NAME.")
    if options.trust:
        _trust(tools, options)
    access = _access(options, configured)
    found = _run(
        lambda: tools.browse(options.url, options.depth, root=options.root, match=options.match, access=access)
    )
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


def _configured(options: argparse.Namespace) -> dict[str, Any]:
    """Return how the source signs in that was named, or that has the address; nothing where there is none. Completes the address."""
    from agent.config import ConfigProblems
    from agent.config_read import source

    def chosen(name: str, table: dict[str, Any]) -> bool:
        return name == options.source if options.source else _same(table.get("url"), options.url)

    try:
        found = source(options.config, os.environ, "opcua", chosen, ACCESS_KEYS)
    except ConfigProblems as error:
        if options.source:
            raise
        if options.config.exists():
            print(f"{error.path} cannot be read, so no source's user is taken from it: {error}", file=sys.stderr)
        return {}
    if found is None:
        if options.source:
            text = f"{options.config} has no OPC UA source {options.source!r}"
            raise ConfigError(text, key="sources", remedy="Name one that is there, or give an address.")
        return {}
    name, table = found
    options.url = options.url or table.get("url")
    print(f"signing in as the source {name} does", file=sys.stderr)
    return table


def _same(one: Any, other: str | None) -> bool:
    return isinstance(one, str) and bool(other) and one.rstrip("/").lower() == str(other).rstrip("/").lower()


def _access(options: argparse.Namespace, configured: dict[str, Any]) -> Any:
    """Return how to sign in: the options, then the source, then without encryption and anonymously. Raises ConfigError."""
    from agent.config_read import section
    from agent.sources.opcua import ConfigOpcUa
    from agent.sources.opcua_trust import trusted_file

    given = {
        "url": options.url,
        "security": options.security,
        "user": options.user,
        "password_file": options.password_file,
        "server_certificate_file": options.server_certificate,
        "allow_password_in_clear": options.allow_password_in_clear,
    }
    usual = {"timeout_s": TIMEOUT_S} | ({} if configured else {"security": "None"})
    table = usual | configured | {key: value for key, value in given.items() if value is not None}
    if table.get("state_dir") is None and (table.get("security") != "None" or table.get("user")):
        if options.folder is not None:
            table["state_dir"] = str(options.folder.absolute().parent)
            kept = trusted_file(options.folder, options.url)
            if kept.exists():
                table.setdefault("server_certificate_file", str(kept))
        else:
            state_dir = Path(section("agent", options.config, os.environ).state_dir)
            make_state_folder(SERVICE, options.config, state_dir)
            table["state_dir"] = str(state_dir)
    try:
        config: Any = msgspec.convert(table | {"audit": True}, ConfigOpcUa)
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(
            str(error), key="browse", remedy="Correct the option, or the source it was taken from."
        ) from None
    return replace(config.access(), conditions=False, session_s=60.0)


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
