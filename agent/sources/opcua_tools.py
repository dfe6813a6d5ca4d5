"""For the commands `browse` and `trust`: look at a server before it is configured, and take its certificate for true.

`browse` reads over whatever the server offers without a password; it trusts nothing and leaves nothing behind. `trust` is the moment in
which a person decides: it writes down the certificate that the server shows now, and gives back what there is to compare.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.component import ConfigError
from agent.sources.opcua_browse import walk
from agent.sources.opcua_connect import Access, connect, shown_certificate, translated
from agent.sources.opcua_nodes import plain, resolve
from agent.sources.opcua_private import ua
from agent.sources.opcua_trust import (
    expires_in_days,
    fingerprint,
    read_certificate,
    subject,
    thumbprint,
    trusted_file,
    write_file,
)

OBJECTS = "i=85"
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable that could be watched."""

    node: str
    path: str
    value: Any
    kind: str
    """Its OPC UA type, such as Double; empty where it cannot be read."""


@dataclass(frozen=True, slots=True)
class Browsed:
    """What `browse` found. `complete` is False where a bound ended the walk."""

    variables: list[Variable]
    complete: bool


@dataclass(frozen=True, slots=True)
class Trusted:
    """What `trust` wrote down, for a person to compare with the server's own tools."""

    file: Path
    thumbprint: str
    fingerprint: str
    subject: str
    expires_in_days: float
    replaced_thumbprint: str | None
    """Of the certificate that was trusted before, where it was another one."""


async def browse(
    url: str,
    depth: int = 4,
    *,
    root: str = OBJECTS,
    match: str = "*",
    nodes_max: int = 1_000,
    access: Access | None = None,
) -> Browsed:
    """The variables of a server with their present values. Raises NotConnected and ConfigError, each with what to do.

    Without `access` it connects without encryption and anonymously, as one looks at a machine in commissioning.
    """
    with translated(url):
        connection = await connect(access or Access(url=url, security="None", timeout_s=TIMEOUT_S), None)
        try:
            found = await walk(connection, root, match=match, depth=depth, nodes_max=nodes_max)
            if found is None:
                raise ConfigError(f"{url} has no node {root}", key="root", remedy="Begin at i=85, the folder Objects.")
            node_ids = [resolve(each.node, connection.namespaces) for each in found.found]
            answers = await connection.link.read(
                ((node, ua.AttributeIds.Value) for node in node_ids), nodes_max=connection.limits.nodes_per_read
            )
        finally:
            await connection.link.close()
    variables = [
        Variable(each.node, each.path, *_shown(answer)) for each, answer in zip(found.found, answers, strict=True)
    ]
    return Browsed(variables, found.complete)


def _shown(answer: Any) -> tuple[Any, str]:
    if answer.Value is None or not answer.StatusCode.is_good():
        return None, ""
    return plain(answer.Value.Value), answer.Value.VariantType.name


async def trust(url: str, folder: Path) -> Trusted:
    """Take the certificate that the server shows now for the server's, and keep it in `folder` (the source's `<state_dir>/opcua`).

    Raises NotConnected where nobody answers, ConfigError where the server has no certificate or the folder cannot be written.
    """
    shown = await shown_certificate(url, TIMEOUT_S)
    if not shown:
        remedy = 'There is nothing to trust: it can only be read with security = "None".'
        raise ConfigError(f"{url} shows no certificate", key="security", remedy=remedy)
    file = trusted_file(folder, url)
    before = read_certificate(file, "server_certificate_file") if file.exists() else shown
    try:
        write_file(file, shown, mode=0o644)
    except OSError as error:
        remedy = "Run it as the agent's user, or name a folder that can be written."
        raise ConfigError(f"{error.filename}: {error.strerror}", key="state_dir", remedy=remedy) from None
    replaced = thumbprint(before) if before != shown else None
    return Trusted(file, thumbprint(shown), fingerprint(shown), subject(shown), expires_in_days(shown), replaced)


def as_configuration(variables: Sequence[Variable]) -> str:
    """TOML to paste below `[sources.NAME]`: the nodes, each with its value of now as a comment."""
    lines = ["nodes = ["]
    for each in variables:
        # A JSON string is a TOML string, but for one character.
        text = json.dumps(each.node, ensure_ascii=False).replace("\x7f", "\\u007f")
        now = " ".join(f"{each.kind} {each.value!r}".split())[:80]
        lines.append(f"  {text},  # {now}".rstrip())
    return "\n".join([*lines, "]"])
