"""Walks a server's address space, with a bound on depth and on how much is found. It reads; it never asks a server for more than that.

Breadth first, each node once (address spaces have loops), in Browse calls no larger than the server allows. Properties are left out:
they describe a variable and seldom change.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le

from agent.sources.opcua_connect import Connection
from agent.sources.opcua_nodes import ConfigNode, Role, as_text, check_node, default_name, resolve
from agent.sources.opcua_private import ua

VISITED_MAX = 200_000
"""Nodes looked at in one walk. Beyond it the walk ends and says that it is not complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigBrowse:
    """Watch every variable below `root` whose path or identifier matches; looked for anew in each session."""

    root: str
    match: str = "*"
    depth: Annotated[int, Ge(1), Le(20)] = 5
    nodes_max: Annotated[int, Gt(0), Le(100_000)] = 1_000
    role: Role = "reading"
    sampling_interval_ms: Annotated[float, Ge(0), Le(86_400_000)] | None = None
    queue_size: Annotated[int, Ge(1), Le(100_000)] | None = None
    deadband: Annotated[float, Ge(0)] = 0.0

    def __post_init__(self) -> None:
        check_node(self.root)


@dataclass(frozen=True, slots=True)
class Found:
    """A variable: its node id with namespace URI, and its way from the root, names joined by dots."""

    node: str
    path: str


@dataclass(slots=True)
class Walk:
    """What a walk found; `complete` is False where a bound ended it."""

    found: list[Found]
    complete: bool = True


async def walk(connection: Connection, root: str, *, match: str, depth: int, nodes_max: int) -> Walk | None:
    """The variables below a node, in the order of the server. None where the server does not have the root."""
    start = resolve(root, connection.namespaces)
    if start is None:
        return None
    result, seen = Walk([]), {start}
    level: list[tuple[Any, str]] = [(start, "")]
    for _ in range(depth):
        below: list[tuple[Any, str]] = []
        for at in range(0, len(level), connection.limits.nodes_per_browse):
            chunk = level[at : at + connection.limits.nodes_per_browse]
            answers = await connection.link.browse(
                [node for node, _ in chunk], reference=ua.ObjectIds.HierarchicalReferences
            )
            for (_, path), references in zip(chunk, answers, strict=True):
                for reference in _children(references, seen):
                    name = reference.BrowseName.Name or ""
                    below.append((reference.NodeId, f"{path}.{name}" if path else name))
                    if reference.NodeClass == ua.NodeClass.Variable:
                        _keep(result, below[-1], match, connection.namespaces)
            if len(result.found) > nodes_max or len(seen) > VISITED_MAX:
                return Walk(result.found[:nodes_max], complete=False)
        level = below
    return result


def _children(references: Sequence[Any], seen: set[Any]) -> Iterator[Any]:
    """References to nodes that were not met before and are not mere properties."""
    for reference in references:
        if reference.ReferenceTypeId != ua.NodeId(ua.ObjectIds.HasProperty) and reference.NodeId not in seen:
            seen.add(reference.NodeId)
            yield reference


def _keep(result: Walk, child: tuple[Any, str], match: str, namespaces: Sequence[str]) -> None:
    node, path = child
    text = as_text(node, namespaces)
    if fnmatchcase(path, match) or fnmatchcase(default_name(text), match):
        result.found.append(Found(text, path))


async def browsed_nodes(
    connection: Connection, wanted: Sequence[ConfigBrowse]
) -> tuple[list[ConfigNode], dict[str, str]]:
    """The nodes that `browse` finds in this session, as if they were configured; and by root, what is wrong with the search."""
    nodes: dict[str, ConfigNode] = {}
    troubles: dict[str, str] = {}
    for each in wanted:
        found = await walk(connection, each.root, match=each.match, depth=each.depth, nodes_max=each.nodes_max)
        if found is None or not found.found:
            troubles[each.root] = f"browse: nothing below {each.root} matches {each.match!r} within depth {each.depth}"
            continue
        if not found.complete:
            troubles[each.root] = (
                f"browse: more than {each.nodes_max} nodes below {each.root}; only these are watched, raise nodes_max"
            )
        for variable in found.found:
            nodes.setdefault(
                variable.node,
                ConfigNode(
                    node=variable.node,
                    role=each.role,
                    sampling_interval_ms=each.sampling_interval_ms,
                    queue_size=each.queue_size,
                    deadband=each.deadband,
                ),
            )
    return list(nodes.values()), troubles
