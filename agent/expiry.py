"""When the certificates end that the configuration names: of the collector's authority, of receivers and devices that speak TLS.

Read with the standard library alone, for a lean agent has nothing that reads certificates: of X.509 only the way to the end of the
validity is walked, and what is not a certificate is passed over, since `check` and the part that uses the file complain of it in their own
words.
What an OPC UA source holds and is shown is told by that source (agent.sources.opcua_watch), which knows it even where no file does.
"""

import base64
import dataclasses
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

WARN_DAYS = 30
FILE_BYTES_MAX = 1_048_576
CERTIFICATES_MAX = 20
"""A file with more is a distribution's bundle, and renewed by it: some root in it always ends soon. It is not looked at."""
DEPTH_MAX = 5
_TOLD_BY_OPC_UA = ("client_certificate_file", "server_certificate_file")
_PEM = re.compile(rb"-----BEGIN (?:TRUSTED )?CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END")
_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18


def named(config: Any, place: str, depth: int = 0) -> Iterator[tuple[str, Path]]:
    """Every key of a configuration that names a certificate's file, with the file."""
    if depth > DEPTH_MAX:
        return
    if isinstance(config, list | tuple):
        for number, each in enumerate(config):
            yield from named(each, f"{place}[{number}]", depth + 1)
    elif dataclasses.is_dataclass(config):
        for field in dataclasses.fields(config):
            value, key = getattr(config, field.name), f"{place}.{field.name}"
            if not isinstance(value, str):
                yield from named(value, key, depth + 1)
            elif value and field.name.endswith(("certificate_file", "ca_file")) and field.name not in _TOLD_BY_OPC_UA:
                yield key, Path(value)


def ends_soonest(path: Path) -> datetime | None:
    """When the first certificate of a file ends. None where there is none that can be read."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX)
    except OSError:
        return None
    matches = _PEM.findall(content)
    if len(matches) > CERTIFICATES_MAX:
        return None
    ends = []
    for text in matches:
        with suppress(ValueError, IndexError):
            ends.append(not_after(base64.b64decode(text)))
    if not matches:
        with suppress(ValueError, IndexError):
            ends.append(not_after(content))
    return min(ends, default=None)


def not_after(der: bytes) -> datetime:
    """The end of a certificate's validity. Raises ValueError, IndexError."""
    tag, certificate = _element(der, 0)[:2]
    inner, to_be_signed, _ = _element(certificate, 0)
    if (tag, inner) != (_SEQUENCE, _SEQUENCE):
        raise ValueError("no certificate")
    at = 0
    if to_be_signed[0] == _VERSION:
        at = _element(to_be_signed, at)[2]
    for _ in ("serial number", "signature", "issuer"):
        at = _element(to_be_signed, at)[2]
    validity = _element(to_be_signed, at)[1]
    kind, text, _ = _element(validity, _element(validity, 0)[2])
    if kind not in (_UTC_TIME, _GENERALIZED_TIME):
        raise ValueError("no time")
    shown = text.decode("ascii")
    if kind == _UTC_TIME:  # two digits of the year: from 50 on of the last century (RFC 5280)
        shown = ("19" if shown[:2] >= "50" else "20") + shown
    return datetime.strptime(shown, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _element(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Tag, content, and where the next element begins."""
    tag, first = data[at], data[at + 1]
    octets = first & 0x7F if first & 0x80 else 0
    length = int.from_bytes(data[at + 2 : at + 2 + octets], "big") if octets else first
    begin = at + 2 + octets
    if begin + length > len(data):
        raise ValueError("cut off")
    return tag, data[begin : begin + length], begin + length
