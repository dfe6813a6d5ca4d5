"""How often and how much somebody may ask at once: a token bucket each, refilled at a rate; an account of bytes; a turn. In bounded memory.

What is forgotten where there are too many is the bucket that was not used for longest. It would be full again soon anyway, so that
forgetting it lets little through.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, ip_address, ip_network

BUCKETS_MAX = 10_000
_SUBSCRIBER, _SITE = 64, 48
"""IPv6 prefixes: what one computer can choose its addresses from, and what one customer of a provider gets."""


def networks_of(address: str) -> tuple[str, ...]:
    """Return the networks that limits count an address by: an IPv4 address by itself, an IPv6 address by its /64 and its /48.

    A computer has 2^64 IPv6 addresses and a customer 65,536 such networks, so a limit for each address would bound nobody.
    """
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return (address[:100],)
    if not isinstance(found, IPv4Address):
        found = found.ipv4_mapped or found
    if isinstance(found, IPv4Address):
        return (str(found),)
    return tuple(str(ip_network((found, length), strict=False)) for length in (_SUBSCRIBER, _SITE))


class Rates:
    """`per_s` requests a second on average and `burst` at once, for each name. `per_s` 0: no limit."""

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def _level(self, name: str) -> float:
        found = self._buckets.get(name)
        if found is None:
            return self._burst
        level, since = found
        return min(self._burst, level + (self._clock() - since) * self._per_s)

    def wait_s(self, name: str) -> float:
        """How long until one may come; 0: now. Takes nothing."""
        if self._per_s <= 0:
            return 0.0
        return max(0.0, (1.0 - self._level(name)) / self._per_s)

    def take(self, name: str) -> float:
        """Let one through, and 0; or how long to wait."""
        if wait := self.wait_s(name):
            return wait
        if self._per_s > 0:
            self._buckets[name] = (self._level(name) - 1.0, self._clock())
            self._buckets.move_to_end(name)
            if len(self._buckets) > BUCKETS_MAX:
                self._buckets.popitem(last=False)
        return 0.0

    def wait_s_each(self, names: Iterable[str]) -> float:
        """Return how long until each of several names may come; 0: now. Takes nothing."""
        return max(map(self.wait_s, names), default=0.0)

    def take_each(self, names: Iterable[str]) -> float:
        """Let one through in the name of each, and return 0; or return how long to wait, and take nothing."""
        names = list(names)
        if wait := self.wait_s_each(names):
            return wait
        for name in names:
            self.take(name)
        return 0.0


class Budget:
    """Bytes in work: `total_max` of all, `each_max` of one name. One request of a name alone is bounded by its own maximum only."""

    def __init__(self, total_max: int, each_max: int) -> None:
        self._total_max = total_max
        self._each_max = each_max
        self._held: dict[str, int] = {}
        self.total = 0

    def take(self, name: str, size: int) -> bool:
        """Count `size` bytes of `name`; False, and still counted, where that is too much: `give` them back then too."""
        held = self._held.get(name, 0) + size
        self._held[name] = held
        self.total += size
        return held <= self._each_max and self.total <= self._total_max

    def give(self, name: str, size: int) -> None:
        """They are worked off."""
        self.total -= size
        held = self._held.get(name, 0) - size
        if held > 0:
            self._held[name] = held
        else:
            self._held.pop(name, None)


class Known:
    """Credentials that were good of late: who shares an address with somebody that floods it with bad ones is still let in."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, credential: bytes) -> bool:
        return credential in self._known

    def add(self, credential: bytes) -> None:
        """It was good."""
        self._known[credential] = None
        self._known.move_to_end(credential)
        if len(self._known) > BUCKETS_MAX:
            self._known.popitem(last=False)
