"""Where a Modbus gateway is: tcp://, tls://, rtu+tcp:// and rtu:// URLs, read once into an Address."""

from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit


@dataclass(frozen=True, slots=True)
class Address:
    """Where a gateway is, taken from a URL."""

    url: str
    scheme: str
    host: str = ""
    port: int = 0
    device: str = ""
    baudrate: int = 19_200
    parity: str = "N"
    bytesize: int = 8
    stopbits: int = 1
    echo: bool = False

    @property
    def rtu(self) -> bool:
        """Framed by checksum and silence, without transaction ids."""
        return self.scheme in ("rtu", "rtu+tcp")

    @property
    def byte_s(self) -> float:
        """How long one byte takes on a serial line; 0 on a network."""
        return (self.bytesize + 2 + self.stopbits) / self.baudrate if self.device else 0.0

    @property
    def silence_s(self) -> float:
        """What the specification wants between two frames on a serial line: three and a half bytes, and 1.75 ms at least."""
        return max(3.5 * self.byte_s, 0.00175) if self.device else 0.0


def parse_url(url: str) -> Address:
    """The address in a URL. Raises ValueError with a sentence that says what is wrong."""
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ValueError("credentials in a URL end up in logs, and Modbus has none; remove them")
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"{url!r}: the port is not a number from 1 to 65535") from None
    if parts.scheme in ("tcp", "tls", "rtu+tcp"):
        if not parts.hostname:
            raise ValueError(f"{url!r} names no host; write {parts.scheme}://HOST:{502}")
        return Address(url, parts.scheme, parts.hostname, port or (802 if parts.scheme == "tls" else 502))
    if parts.scheme == "rtu":
        if parts.netloc or not parts.path.startswith("/"):
            raise ValueError(f"{url!r} names no serial device; write rtu:///dev/ttyUSB0?baudrate=19200")
        return _serial(url, parts.path, dict(parse_qsl(parts.query)))
    raise ValueError(
        f"{url!r} is not a Modbus address; write tcp://HOST:502, tls://HOST:802, rtu+tcp://HOST:PORT or rtu:///dev/ttyUSB0?baudrate=19200"
    )


def _serial(url: str, device: str, options: dict[str, str]) -> Address:
    allowed = {
        "baudrate": {str(n) for n in (1200, 2400, 4800, 9600, 14400, 19200, 38400, 57600, 115200, 230400, 460800)},
        "parity": {"N", "E", "O"},
        "bytesize": {"7", "8"},
        "stopbits": {"1", "2"},
        "echo": {"0", "1"},
    }
    for key, value in options.items():
        if key not in allowed:
            raise ValueError(f"{url!r}: there is no serial option {key!r}; known are {', '.join(allowed)}")
        if value not in allowed[key]:
            raise ValueError(f"{url!r}: {key} cannot be {value!r}; it is one of {', '.join(sorted(allowed[key]))}")
    return Address(
        url,
        "rtu",
        device=device,
        baudrate=int(options.get("baudrate", 19_200)),
        parity=options.get("parity", "N"),
        bytesize=int(options.get("bytesize", 8)),
        stopbits=int(options.get("stopbits", 1)),
        echo=options.get("echo") == "1",
    )
