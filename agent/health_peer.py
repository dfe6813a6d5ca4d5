"""Who is on the other side of a local connection: a user of this computer, or an address."""

import ipaddress
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

_CREDENTIALS = struct.Struct("3i")
_TABLES = {socket.AF_INET: Path("/proc/net/tcp"), socket.AF_INET6: Path("/proc/net/tcp6")}
_LOCAL, _REMOTE, _USER = 1, 2, 7
"""Columns of the kernel's table."""
IPV6_PREFIX = 64


def peer_of(sock: Any) -> str:
    """Return "user N" for a connection from this computer, else the address (IPv6: its /64). Never raises."""
    with suppress(OSError, ValueError):
        if sock.family == socket.AF_UNIX:
            _, user, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            return f"user {user}"
        here, there = sock.getsockname(), sock.getpeername()
        address = ipaddress.ip_address(there[0].partition("%")[0])
        if here[0] == there[0] or address.is_loopback:
            found = _user_of(sock.family, there, here)
            if found is not None:
                return f"user {found}"
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
            return str(ipaddress.ip_network((address, IPV6_PREFIX), strict=False))
        return str(address)
    return "nobody"


def _user_of(family: int, local: tuple[Any, ...], remote: tuple[Any, ...]) -> int | None:
    """The user whose socket has these two ends, by the kernel's table."""
    wanted = _written(family, local), _written(family, remote)
    for cells in _rows(_TABLES[socket.AddressFamily(family)]):
        if (cells[_LOCAL], cells[_REMOTE]) == wanted:
            return int(cells[_USER])
    return None


def _rows(table: Path) -> Iterator[list[str]]:
    with table.open(encoding="ascii") as rows:
        next(rows, None)
        for row in rows:
            yield row.split()


def _written(family: int, end: tuple[Any, ...]) -> str:
    """An address and port as the table has them: words of 32 bits in the byte order of this computer."""
    packed = socket.inet_pton(family, end[0].partition("%")[0])
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{end[1]:04X}"
