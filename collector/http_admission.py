"""Bound the connections of the HTTP server: how many there are, whose they are, and which one gives way at the bound.

A connection is *unproven* until a request on it showed a valid credential (a key, a session, a signature). The bounds:

    connections_max         all connections. At the bound the connection that gives way is an unproven one of the address that has most,
                            else a proven one that is idle for longest
    unproven_max            unproven connections of all addresses together: a quarter of connections_max
    address_unproven_max    unproven connections of one address (IPv6: of one /64). The address's own oldest one gives way
    owner_max               connections of one key or user: a quarter of connections_max. The owner's own oldest idle one gives way

A connection gives way only while the collector waits for its client: for a TLS handshake, a request's head, its body, or the next request.
A request that is complete is always answered. Because the oldest gives way, a client that sends its request at once gets an answer however
many connections others hold open; where nothing can give way, a new connection is refused.

A connection from a trusted proxy counts for no address: the proxy carries many clients, and bounds them itself.
"""

import ipaddress
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import Any, Protocol

Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]

ADDRESS_UNPROVEN_MAX = 256
SHARE = 4
"""One owner, and all unproven connections together, get at most the fourth part of all connections."""
CONNECTION = "linewarden.connection"
"""The name in the state of an ASGI scope under which the application finds the connection's `Ticket`."""
IPV6_PREFIX = 64
"""A subscriber of IPv6 has at least such a network, and can send from each of its addresses."""


class Phase(IntEnum):
    """What a connection waits for, the most dispensable first."""

    IDLE = 0
    HEAD = 1
    BODY = 2
    ANSWER = 3
    """For the collector: it does not give way."""


class Held(Protocol):
    """What holds the connection itself."""

    def cut(self) -> None:
        """Close it at once, without a response."""
        ...

    def look(self, now: float) -> None:
        """Close it if a deadline has passed."""
        ...


class Slot:
    """The place of one connection. `phase` is written by its protocol."""

    __slots__ = ("held", "owner", "peer", "phase")

    def __init__(self, peer: str, held: Held) -> None:
        self.peer = peer
        self.owner = ""
        """The key or user that was proven on it."""
        self.phase = Phase.HEAD
        self.held = held


def network_of(address: str, proxies: Networks = ()) -> str:
    """Return the name by which an address is counted; "" for a trusted proxy."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is None:
            return "" if _among(found, proxies) else str(ipaddress.ip_network((found, IPV6_PREFIX), strict=False))
        found = found.ipv4_mapped
    return "" if _among(found, proxies) else str(found)


def _among(address: ipaddress.IPv4Address | ipaddress.IPv6Address, networks: Networks) -> bool:
    return any(address in network for network in networks)


class Admission:
    """All connections of one server. Not thread-safe: used by its event loop alone."""

    def __init__(
        self,
        connections_max: int,
        *,
        address_unproven_max: int = ADDRESS_UNPROVEN_MAX,
        proxies: Networks = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connections_max = connections_max
        self._share_max = max(1, connections_max // SHARE)
        self._address_max = min(address_unproven_max, self._share_max)
        self._proxies = proxies
        self._clock = clock
        # Dictionaries for their order: the oldest first. An owner's is the order of its last requests.
        self._all: dict[Slot, None] = {}
        self._unproven: dict[str, dict[Slot, None]] = {}
        self._unproven_count = 0
        self._owned: dict[str, dict[Slot, None]] = {}
        self.counts: Counter[str] = Counter()
        """Since the start: accepted, refused, evicted, and requests refused before the application by reason."""

    def __len__(self) -> int:
        return len(self._all)

    @property
    def unproven(self) -> int:
        """How many connections have shown no credential."""
        return self._unproven_count

    def enter(self, address: str, held: Held) -> Slot | None:
        """Return a place for a new connection, at the cost of another where there is none free; None: refuse it."""
        peer = network_of(address, self._proxies)
        mine = self._unproven.get(peer, {})
        if (
            (peer and len(mine) >= self._address_max and not self._evict(mine))
            or (self._unproven_count >= self._share_max and not self._evict(self._largest()))
            or (len(self._all) >= self._connections_max and not self.relieve())
        ):
            self.counts["refused"] += 1
            return None
        self.counts["accepted"] += 1
        slot = Slot(peer, held)
        self._all[slot] = None
        self._unproven.setdefault(peer, {})[slot] = None
        self._unproven_count += 1
        return slot

    def leave(self, slot: Slot) -> None:
        """Free the place. Does nothing where it is free already."""
        if slot not in self._all:
            return
        del self._all[slot]
        self._forget(slot)

    def prove(self, slot: Slot, owner: str) -> None:
        """A request on this connection showed a valid credential of `owner`."""
        if slot not in self._all:
            return
        if slot.owner != owner:
            self._forget(slot)
            slot.owner = owner
            theirs = self._owned.setdefault(owner, {})
            if len(theirs) >= self._share_max:
                self._evict(theirs)
            # Evicting may have emptied and dropped it.
            self._owned.setdefault(owner, {})[slot] = None
        self._all[slot] = self._all.pop(slot)

    def relieve(self) -> bool:
        """Close the most dispensable connection. Whether there was one."""
        return self._evict(self._largest()) or self._evict(self._all, (Phase.IDLE,))

    def look(self) -> None:
        """Close the connections whose deadlines have passed."""
        now = self._clock()
        for slot in list(self._all):
            slot.held.look(now)

    def _largest(self) -> dict[Slot, None]:
        return max(self._unproven.values(), key=len, default={})

    def _evict(self, slots: Iterable[Slot], phases: tuple[Phase, ...] = (Phase.IDLE, Phase.HEAD, Phase.BODY)) -> bool:
        # By phase first: of two that wait for their clients, an idle one is missed less than one in the middle of a body.
        oldest: dict[Phase, Slot] = {}
        for slot in slots:
            oldest.setdefault(slot.phase, slot)
            if slot.phase is phases[0]:
                break
        found = next((oldest[phase] for phase in phases if phase in oldest), None)
        if found is None:
            return False
        self.counts["evicted"] += 1
        self.leave(found)
        found.held.cut()
        return True

    def _forget(self, slot: Slot) -> None:
        of, name = (self._owned, slot.owner) if slot.owner else (self._unproven, slot.peer)
        slots = of.get(name)
        if slots is None or slot not in slots:
            return
        del slots[slot]
        if not slots:
            del of[name]
        if not slot.owner:
            self._unproven_count -= 1


class Ticket:
    """What the application knows of a connection: it may prove it."""

    __slots__ = ("_admission", "_slot", "proven")

    def __init__(self, admission: Admission, slot: Slot) -> None:
        self._admission = admission
        self._slot = slot
        self.proven = False
        """Whether the request in work showed a valid credential."""

    @property
    def slot(self) -> Slot:
        """The place of the connection."""
        return self._slot

    @property
    def admission(self) -> Admission:
        """Where the connection is counted."""
        return self._admission

    def prove(self, owner: str) -> None:
        """The request in work showed a valid credential of this owner."""
        self.proven = True
        self._admission.prove(self._slot, owner)


def prove(state: Mapping[str, Any], owner: str) -> None:
    """The request whose scope has this state showed a valid credential. Does nothing under another server."""
    ticket: Ticket | None = state.get(CONNECTION)
    if ticket is not None:
        ticket.prove(owner)
