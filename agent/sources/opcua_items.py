"""The monitored items of a source: laid out for a session, asked of the server, and their notifications made into events.

A handle is made of the node's text and not of its place in a list, so that a process after a kill arrives at the same handles and can
read what the server still sends for the old ones.

A node that the server deletes while it is watched is reported once, by the status of its value or, where the server sends none, by a look
at the nodes in turns; and so is its return, for which it is looked in the same way as for a node that was missing from the start.

Loss that shows here: the overflow bit (0x480), and a queue that comes full from a server that never sets the bit. Both are told as the
names of the nodes that miss values.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from agent.component import Report
from agent.sources.opcua_connect import Connection
from agent.sources.opcua_nodes import OVERFLOW, ConfigNode, Item, default_name, reading, resolve, status_name
from agent.sources.opcua_position import Position
from agent.sources.opcua_private import Change, ua
from agent.sources.opcua_ranges import learn_ranges
from agent.wire.event import Event

_NO_FILTER = frozenset(
    {
        "BadMonitoredItemFilterUnsupported",
        "BadMonitoredItemFilterInvalid",
        "BadDeadbandFilterInvalid",
        "BadFilterNotAllowed",
    }
)
"""What servers answer that cannot filter this item. It is then watched without, and an absolute deadband is applied here."""


NO_NODE = frozenset({0x80330000, 0x80340000})
"""BadNodeIdInvalid, BadNodeIdUnknown."""
_REMEDY = "compare the node with what linewarden-agent browse finds there"


class Items:
    """All items of one source. `lay_out` for each session, then `taken_up` or `watch`."""

    def __init__(self, source: str, report: Report, *, sampling_interval_ms: float, queue_size: int) -> None:
        self._source = source
        self._report = report
        self._sampling_interval_ms = sampling_interval_ms
        self._queue_size = queue_size
        self._items: dict[int, Item] = {}
        self._before: dict[str, tuple[Any, Any, Any]] = {}
        """Of each node that was heard of since the last commit: what was `seen`, `passed` and `last` then."""

        self._next_checked = 0
        """Where the next look at whether the nodes are still there begins."""
        self._came: list[Item] = []
        """Nodes that were missing and have been taken by the server, not reported yet."""

    def __len__(self) -> int:
        return len(self._items)

    def lay_out(self, nodes: Iterable[ConfigNode], namespaces: Sequence[str]) -> str:
        """Lay the items out for this session, keeping what is known of them; the fingerprint of what was laid out."""
        before = {item.config.node: item for item in self._items.values()}
        self._items = {}
        for node in sorted(nodes, key=lambda node: node.node):
            handle = int.from_bytes(hashlib.blake2b(node.node.encode(), digest_size=4).digest(), "big")
            while handle in self._items:
                handle = (handle + 1) % 2**32
            item = Item(node, handle, node.name or default_name(node.node))
            item.node_id = resolve(node.node, namespaces)
            if node.node in before:
                earlier = before[node.node]
                item.seen, item.last, item.missing = earlier.seen, earlier.last, earlier.missing
            self._items[handle] = item
        for gone in before.keys() - {item.config.node for item in self._items.values()}:
            self._report.trouble.pop(gone, None)
        described = repr([(item.config, self._sampling(item), self._queue(item)) for item in self._items.values()])
        return hashlib.sha256(described.encode()).hexdigest()[:16]

    async def learn_ranges(self, connection: Connection) -> None:
        """Ask the server for the ranges of signals that have none, those that were not asked for in this session."""
        await learn_ranges(connection, self._items.values(), self._report)

    def taken_up(self, missing: Sequence[str], queue_size: int) -> None:
        """The server goes on with the subscription that an earlier process made: its next notifications are changes."""
        absent = frozenset(missing)
        for item in self._items.values():
            item.watched, item.fresh = item.config.node not in absent, False
            item.queue_size = queue_size or self._queue(item)
            if not item.watched:
                item.missing = True
                self._name_missing(item, "the server does not have this node")

    async def watch(self, connection: Connection, subscription_id: int) -> None:
        """Ask the server for every item that it does not watch yet, in calls as large as it allows. The first values are initial."""
        wanted = [item for item in self._items.values() if not item.watched]
        for item in wanted:
            item.fresh = True
            item.node_id = resolve(item.config.node, connection.namespaces)
            if item.node_id is None:
                item.missing = True
                self._name_missing(item, "the server has no such namespace")
        wanted = [item for item in wanted if item.node_id is not None]
        for at in range(0, len(wanted), connection.limits.items_per_call):
            unfiltered = await self._create(
                connection, subscription_id, wanted[at : at + connection.limits.items_per_call]
            )
            if unfiltered:
                await self._create(connection, subscription_id, unfiltered)

    async def _create(self, connection: Connection, subscription_id: int, items: list[Item]) -> list[Item]:
        """One call. Those that the server takes only without a filter are returned, to be asked for again."""
        unfiltered = []
        results = await connection.link.create_items(subscription_id, [self._request(item) for item in items])
        for item, result in zip(items, results, strict=True):
            answer = result.StatusCode.name
            if result.StatusCode.is_good():
                item.watched, item.queue_size = True, result.RevisedQueueSize
                self._came += [item] if item.missing else []
                item.missing = False
                self._report.ok(item.config.node)
            elif answer in _NO_FILTER and not item.filtered_here:
                item.filtered_here = True
                unfiltered.append(item)
                if item.config.deadband_type == "percent":
                    self._report.count("deadbands_refused")
            else:
                item.missing = True
                self._name_missing(item, f"the server answers {answer}")
        return unfiltered

    def committed(self) -> None:
        """What was taken is durable."""
        self._before.clear()

    def roll_back(self) -> None:
        """What was taken since the last commit never came: what is told of it again must not pass for a repetition."""
        for item in self._items.values():
            before = self._before.get(item.config.node)
            if before is not None:
                item.seen, item.passed, item.last = before
        self._before.clear()

    def unwatched(self) -> list[str]:
        """Nodes that the server does not give."""
        return [item.config.node for item in self._items.values() if not item.watched]

    def start_over(self) -> None:
        """A new subscription begins: nothing is watched."""
        for item in self._items.values():
            item.watched = False

    def smallest_queue(self) -> int:
        """The smallest queue that the server gave; 0 where nothing is watched."""
        return min((item.queue_size for item in self._items.values() if item.watched), default=0)

    def _name_missing(self, item: Item, why: str) -> None:
        self._report.fault(f"{item.config.node}: {why}; {_REMEDY}", item.config.node)

    async def look(self, connection: Connection, position: Position, now_us: int) -> list[Event]:
        """Ask for a part of the watched nodes whether they are still there, the next part each time: one Read."""
        watched = [item for item in self._items.values() if item.watched and item.node_id is not None]
        if self._next_checked >= len(watched):
            self._next_checked = 0
        part = watched[self._next_checked : self._next_checked + connection.limits.nodes_per_read]
        self._next_checked += len(part)
        answers = await connection.link.read((item.node_id, ua.AttributeIds.NodeClass) for item in part)
        return [
            self._gone(item, answer.StatusCode.name, position, now_us)
            for item, answer in zip(part, answers, strict=True)
            if answer.StatusCode.value & 0xFFFF0000 in NO_NODE
        ]

    def returned(self, now_us: int) -> list[Event]:
        """The events of nodes that were missing and are there (again)."""
        came, self._came = self._came, []
        return [self._node_event(item, "added", f"node {item.name} is there", now_us) for item in came]

    def _gone(self, item: Item, answer: str, position: Position, now_us: int) -> Event:
        """A watched node was deleted: it is missing from here on."""
        item.watched, item.missing = False, True
        position.missing = self.unwatched()
        self._name_missing(item, f"the node is gone, the server answers {answer}")
        return self._node_event(item, "deleted", f"node {item.name} is gone: the server answers {answer}", now_us)

    def _node_event(self, item: Item, change: str, message: str, now_us: int) -> Event:
        data = {"node": item.config.node, "name": item.name, "change": change}
        return Event(
            now_us, now_us, "configuration.changed", self._source, target=item.name, message=message, data=data
        )

    def _queue(self, item: Item) -> int:
        return item.config.queue_size or self._queue_size

    def _sampling(self, item: Item) -> float:
        own = item.config.sampling_interval_ms
        return self._sampling_interval_ms if own is None else own

    def _request(self, item: Item) -> Any:
        request = ua.MonitoredItemCreateRequest()
        request.ItemToMonitor.NodeId = item.node_id
        request.ItemToMonitor.AttributeId = ua.AttributeIds.Value
        request.MonitoringMode = ua.MonitoringMode.Reporting
        asked = request.RequestedParameters
        asked.ClientHandle = item.handle
        asked.SamplingInterval = self._sampling(item)
        asked.QueueSize = self._queue(item)
        asked.DiscardOldest = True
        if item.config.deadband and not item.filtered_here:
            kind = ua.DeadbandType.Percent if item.config.deadband_type == "percent" else ua.DeadbandType.Absolute
            trigger = ua.DataChangeTrigger.StatusValue
            asked.Filter = ua.DataChangeFilter(Trigger=trigger, DeadbandType=kind, DeadbandValue=item.config.deadband)
        return request

    def take(self, changes: Sequence[Change], position: Position, now_us: int) -> tuple[list[Event], list[str]]:
        """The events of one message's changes, in order, and the names of nodes that miss values before them."""
        events: list[Event] = []
        overflowed: list[str] = []
        items, source, known, touched = self._items, self._source, position.known, self._before
        for change in changes:
            item = items.get(change.handle)
            if item is None:
                self._report.count("notifications_unknown")
                continue
            if item.config.node not in touched:
                touched[item.config.node] = (item.seen, item.passed, item.last)
            if change.code & OVERFLOW == OVERFLOW:
                overflowed.append(item.name)
            if item.filtered_here and _within_deadband(item, change):
                continue
            event = reading(item, source, change, now_us, known)
            if event is not None:
                events.append(event)
            if change.code & 0xFFFF0000 in NO_NODE and item.watched:
                events.append(self._gone(item, status_name(change.code), position, now_us))
        if position.queue_size > 1 and len(changes) >= position.queue_size:
            overflowed += self._full(changes)
        return events, list(dict.fromkeys(overflowed))

    def _full(self, changes: Sequence[Change]) -> list[str]:
        """Items whose queue came full: a server that never sets the overflow bit (asyncua's is one) may have dropped values."""
        counts = Counter(change.handle for change in changes)
        items = ((self._items.get(handle), n) for handle, n in counts.items())
        return [item.name for item, n in items if item is not None and n >= item.queue_size > 1]


def _within_deadband(item: Item, change: Change) -> bool:
    """An absolute deadband, for servers that have none. A change of status always passes."""
    value, code = change.value, change.code
    if item.config.deadband_type != "absolute" or isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if item.passed is not None and item.passed[0] == code and abs(value - item.passed[1]) <= item.config.deadband:
        return True
    item.passed = (code, value)
    return False
