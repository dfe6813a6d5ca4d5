"""What a server knows of the range of its signals: InstrumentRange (what the sensor can show), else EURange (what is usual).

Asked once a session, for nodes that say what they measure (`quantity`) and have no `range` of their own: one Browse for their
properties, one Read for the values. Many servers give everything the range 0 to 0 or none; that counts as none. A server that does
not answer these questions costs nothing but the ranges.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent.component import Report
from agent.sources.opcua_connect import Connection
from agent.sources.opcua_nodes import Item
from agent.sources.opcua_private import ua
from agent.sources.signals import usable_range

PREFERRED = ("InstrumentRange", "EURange")
COUNTED_APART = frozenset({"running", "run_hours", "cycle_time", "good_count", "scrap_count", "total_count"})
"""Quantities of which a range says nothing."""


async def learn_ranges(connection: Connection, items: Iterable[Item], report: Report) -> None:
    """Put into the items' constants the ranges that the server has for them."""
    wanted = [item for item in items if _wants(item)]
    for item in wanted:
        item.range_asked = True
    limits = connection.limits
    try:
        found: list[tuple[Item, Any]] = []
        for at in range(0, len(wanted), limits.nodes_per_browse):
            part = wanted[at : at + limits.nodes_per_browse]
            answers = await connection.link.browse([item.node_id for item in part], reference=ua.ObjectIds.HasProperty)
            found += [
                (item, node)
                for item, answer in zip(part, answers, strict=True)
                if (node := _property(answer)) is not None
            ]
        values = await connection.link.read_values([node for _, node in found], nodes_max=limits.nodes_per_read)
    except ua.UaStatusCodeError as error:
        report.count("ranges_unread", len(wanted))
        report.fault(
            f"the server does not tell the ranges of its signals: {type(error).__name__}; give range", "ranges"
        )
        return
    if wanted:
        report.ok("ranges")
    for (item, _), value in zip(found, values, strict=True):
        low, high = getattr(value, "Low", None), getattr(value, "High", None)
        if usable_range(low, high):
            item.constants["range"] = [low, high]


def _wants(item: Item) -> bool:
    config = item.config
    says = config.quantity is not None and config.quantity not in COUNTED_APART and config.range is None
    return says and config.role == "reading" and item.node_id is not None and not item.range_asked


def _property(references: Sequence[Any]) -> Any:
    """The node of the range that is preferred, or None."""
    named: Mapping[str | None, Any] = {reference.BrowseName.Name: reference.NodeId for reference in references}
    return next((named[name] for name in PREFERRED if name in named), None)
