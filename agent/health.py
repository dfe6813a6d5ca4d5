"""The local endpoint of the agent: where it listens."""

import ipaddress
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le, Len

UNIX = "unix:"
UNIX_PATH_BYTES_MAX = 107
"""What the kernel takes."""
PORT_MAX = 65_535


class Address(NamedTuple):
    """Where to listen: host and port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return UNIX + self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this computer reaches it."""
        if self.path:
            return True
        with suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return self.host == "localhost"


def parse_address(text: str) -> Address:
    """The address in "127.0.0.1:8801", "[::1]:8801" or "unix:/path". Raises ValueError with a sentence."""
    if text.startswith(UNIX):
        path = text.removeprefix(UNIX)
        if not path.startswith("/") or "\0" in path:
            raise ValueError(f"{text!r} is no socket's path; write unix:/run/linewarden/agent.sock")
        if len(path.encode(errors="surrogateescape")) > UNIX_PATH_BYTES_MAX:
            raise ValueError(
                f"{text!r} is longer than the {UNIX_PATH_BYTES_MAX} bytes of a socket's path; choose a shorter one"
            )
        return Address(path=path)
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port is None or text.rpartition(":")[0].strip("[]").lower() != host:
        raise ValueError(
            f"{text!r} is not an address to listen on; write 127.0.0.1:8801, [::1]:8801 or unix:/run/linewarden/agent.sock"
        )
    return Address(host, port)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthConfig:
    """[health]

    listen           host:port or unix:/path, or a list of these; an empty list: no endpoint. Port 0: any that is free
    allow_remote     listen on an address that other computers reach: whoever reaches it reads what the agent is doing
    connections_max  at once; one more is answered 503 and closed
    request_s_max    from the first byte of a request to the last of its answer; who is slower is cut off
    idle_s_max       how long a connection may be kept without a request
    """

    listen: str | Annotated[tuple[str, ...], Len(0, 8)] = "127.0.0.1:8801"
    allow_remote: bool = False
    connections_max: Annotated[int, Ge(1), Le(1_000)] = 64
    request_s_max: Annotated[float, Gt(0), Le(600)] = 10.0
    idle_s_max: Annotated[float, Gt(0), Le(3_600)] = 60.0

    def __post_init__(self) -> None:
        try:
            addresses = self.addresses()
        except ValueError as error:
            raise ValueError(f"listen: {error}") from None
        remote = next((each for each in addresses if not each.is_local), None)
        if remote is not None and not self.allow_remote:
            raise ValueError(
                f"listen: {remote} is reached by other computers, who could then read what the agent is doing; "
                "listen on 127.0.0.1, or set allow_remote = true"
            )

    def addresses(self) -> tuple[Address, ...]:
        """All of them, parsed."""
        return tuple(map(parse_address, (self.listen,) if isinstance(self.listen, str) else self.listen))

    def problems(self) -> Iterable[tuple[str, str, str]]:
        """Whether a socket's path is taken by something else."""
        for address in self.addresses():
            path = Path(address.path)
            if address.path and path.exists() and not path.is_socket():
                yield "listen", f"{path} is there and is no socket", "Move it away, or choose another path."
