"""Decode OPC UA's binary values so that one that cannot be decoded costs itself and nothing else (Part 6, 5.2.2).

Every built-in type says where it ends, so each is either decoded or stepped over by its exact length:

    Variant ──► scalar or array of any built-in type, also of Variants (open62541 sends OldValue and NewValue so), also a matrix
    ExtensionObject ──► its length stands before its body: a body of an unknown or wrongly defined type is skipped
    DataValue, DiagnosticInfo ──► a mask says what follows

Only a length that leads beyond the end of its message leaves nothing to go by; that raises, and the message is declared lost.

Bounded: what is nested deeper than DEPTH_MAX is stepped over without recursion, and a message may hold VALUES_MAX values at most.
"""

import struct
from collections.abc import Callable
from dataclasses import fields as fields_of
from dataclasses import is_dataclass
from functools import cache
from math import prod
from typing import Any, NamedTuple, get_args, get_type_hints
from uuid import UUID

from asyncua import ua as _ua
from asyncua.common.utils import Buffer
from asyncua.ua import ua_binary

ua: Any = _ua

DEPTH_MAX = 16
"""Values within values; deeper ones become a text that says so. What is stored goes four levels deep (opcua_nodes.plain)."""
VALUES_MAX = 1_000_000
"""Values in one message that are Python objects of their own; a message with more ends with an error."""
STRUCTURE_BYTES_MAX = 256 * 1024
"""A longer body of a structure is kept as bytes: it could not be stored whole anyway."""
DIMENSIONS_MAX = 16

BOOLEAN, BYTE_STRING, EXTENSION_OBJECT, DATA_VALUE, VARIANT, DIAGNOSTIC_INFO = 1, 15, 22, 23, 24, 25
_RESERVED = range(26, 32)
"""Kinds that the standard keeps free, to be taken for ByteStrings."""

_INT32, _UINT32, _INT64, _UINT16 = (struct.Struct(form) for form in ("<i", "<I", "<q", "<H"))
_FORMS = dict(enumerate("?bBhHiIqQfd", start=1))
_SCALARS = {kind: struct.Struct(f"<{form}") for kind, form in _FORMS.items()}
_OPAQUE_IN_STRUCTURES = ("Variant", "DataValue", "ExtensionObject", "DiagnosticInfo")


class Malformed(ValueError):
    """Bytes that are no message: a length leads beyond the end, or a kind that does not exist."""


class Field(NamedTuple):
    """A decoded Variant: its value, and the number of its built-in type."""

    Value: Any
    kind: int = 0

    @property
    def VariantType(self) -> Any:  # noqa: N802 - as asyncua's Variant has it
        return ua.VariantType(BYTE_STRING if self.kind in _RESERVED else self.kind)


class Answer(NamedTuple):
    """A decoded DataValue."""

    Value: Field | None
    StatusCode: Any
    source_ticks: int | None = None
    server_ticks: int | None = None


class Structure(NamedTuple):
    """A structure of a type that is not known here: its type, and its body as it came."""

    type_id: Any
    body: bytes


class Reader:
    """A message and a place in it."""

    def __init__(self, raw: bytes, at: int = 0) -> None:
        self.raw = raw
        self.at = at
        self._values = 0

    def left(self) -> int:
        """Bytes that were not read yet."""
        return len(self.raw) - self.at

    def take(self, size: int) -> bytes:
        """The next bytes. Raises Malformed where there are not so many."""
        if size < 0 or size > len(self.raw) - self.at:
            raise Malformed(f"{size} bytes announced, {self.left()} left")
        start, self.at = self.at, self.at + size
        return self.raw[start : self.at]

    def number(self, form: struct.Struct) -> Any:
        """One packed number."""
        if form.size > len(self.raw) - self.at:
            raise Malformed(f"{form.size} bytes expected, {self.left()} left")
        (value,) = form.unpack_from(self.raw, self.at)
        self.at += form.size
        return value

    def byte(self) -> int:
        """One byte."""
        return self.take(1)[0]

    def int32(self) -> int:
        """An Int32."""
        return int(self.number(_INT32))

    def uint32(self) -> int:
        """A UInt32."""
        return int(self.number(_UINT32))

    def int64(self) -> int:
        """An Int64."""
        return int(self.number(_INT64))

    def octets(self) -> bytes | None:
        """A ByteString, or the bytes of a String; None for a null one."""
        length = self.int32()
        return None if length < 0 else self.take(length)

    def text(self) -> str | None:
        """A String; bytes that are no UTF-8 as lone surrogates, as asyncua keeps them."""
        octets = self.octets()
        return None if octets is None else octets.decode("utf-8", "surrogateescape")

    def count(self, least: int = 1) -> int:
        """The length of an array whose elements take at least so many bytes; 0 for a null one."""
        count = max(0, self.int32())
        if count * least > self.left():
            raise Malformed(f"an array of {count} announced, {self.left()} bytes left")
        return count

    def length(self, least: int = 1) -> int | None:
        """As `count`, None for a null array."""
        if self.left() >= _INT32.size and _INT32.unpack_from(self.raw, self.at)[0] < 0:
            self.at += _INT32.size
            return None
        return self.count(least)

    def spend(self, values: int) -> None:
        """Count values. Raises Malformed where a message holds more than anybody could mean."""
        self._values += values
        if self._values > VALUES_MAX:
            raise Malformed(f"more than {VALUES_MAX} values in one message")


def node_id(reader: Reader) -> Any:
    """A NodeId or ExpandedNodeId."""
    encoding = reader.byte()
    kind = ua.NodeIdType(encoding & 0x3F) if encoding & 0x3F < 6 else None  # noqa: PLR2004 - six ways to write one
    if kind is None:
        raise Malformed(f"a node id of kind {encoding & 0x3F}")
    space = 0
    identifier: Any
    if kind == ua.NodeIdType.TwoByte:
        identifier = reader.byte()
    elif kind == ua.NodeIdType.FourByte:
        space, identifier = reader.byte(), reader.number(_UINT16)
    else:
        space = reader.number(_UINT16)
        if kind == ua.NodeIdType.Numeric:
            identifier = reader.uint32()
        elif kind == ua.NodeIdType.String:
            identifier = reader.text() or ""
        elif kind == ua.NodeIdType.Guid:
            identifier = UUID(bytes_le=reader.take(16))
        else:
            identifier = reader.octets() or b""
    uri = reader.text() if encoding & 0x80 else None
    server = reader.uint32() if encoding & 0x40 else None
    if uri is None and server is None:
        return ua.NodeId(identifier, space, kind)
    return ua.ExpandedNodeId(identifier, space, kind, uri, server or 0)


def _qualified_name(reader: Reader) -> Any:
    space = reader.number(_UINT16)
    return ua.QualifiedName(reader.text(), space)


def _localized_text(reader: Reader) -> Any:
    mask = reader.byte()
    locale = reader.text() if mask & 0x01 else None
    return ua.LocalizedText(Text=reader.text() if mask & 0x02 else None, Locale=locale)


def extension(reader: Reader) -> tuple[Any, bytes]:
    """The type and the body of an ExtensionObject, binary or XML, stepping over it."""
    kind = node_id(reader)
    encoding = reader.byte()
    if encoding > 2:  # noqa: PLR2004 - none, binary, XML
        raise Malformed(f"a structure encoded as {encoding}")
    return kind, (reader.octets() or b"") if encoding else b""


def _structure(reader: Reader) -> Any:
    """A structure as asyncua's object where its type is known and holds no values of any type; else its bytes, or why not."""
    kind, body = extension(reader)
    if kind.Identifier == 0 and not kind.NamespaceIndex and not body:
        return None
    known = ua.extension_objects_by_typeid.get(kind)
    if known is None or len(body) > STRUCTURE_BYTES_MAX or not _plain_fields(known):
        return Structure(kind, body)
    try:
        return ua_binary.from_binary(known, Buffer(body))
    except Exception:  # noqa: BLE001 - a decoder of foreign bytes raises anything
        return f"a structure that cannot be decoded ({kind.to_string()})"


@cache
def _plain_fields(known: Any) -> bool:
    """Whether a structure has no field of any type: asyncua's decoder follows these as deep and as long as a message says."""
    return not any(name in _OPAQUE_IN_STRUCTURES for name in _field_types(known, frozenset()))


def _field_types(kind: Any, seen: frozenset[Any]) -> set[str]:
    inner = get_args(kind)
    if inner:
        return set().union(*(_field_types(each, seen) for each in inner))
    name = getattr(kind, "__name__", str(kind))
    if kind in seen or not is_dataclass(kind) or name in _OPAQUE_IN_STRUCTURES:
        return {name}
    try:
        hints = get_type_hints(kind, None, {"ua": ua})
    except Exception:  # noqa: BLE001 - asyncua's annotations are texts, and some name what is not there
        return {"Variant"}
    return {name}.union(*(_field_types(hints[each.name], seen | {kind}) for each in fields_of(kind)))


def diagnostic_info(reader: Reader) -> dict[str, Any]:
    """A DiagnosticInfo, of which one may hold another: the outermost one's fields."""
    found: dict[str, Any] = {}
    while True:
        mask = reader.byte()
        here: dict[str, Any] = {}
        for bit, name in ((0x01, "symbolic_id"), (0x02, "namespace_uri"), (0x08, "locale"), (0x04, "localized_text")):
            if mask & bit:
                here[name] = reader.int32()
        if mask & 0x10:
            here["additional_info"] = reader.text()
        if mask & 0x20:
            here["inner_status"] = reader.uint32()
        found = found or here
        if not mask & 0x40:
            return found
        reader.spend(1)


_READ: dict[int, tuple[int, Callable[[Reader], Any]]] = {
    0: (0, lambda reader: None),  # noqa: ARG005 - a null takes no bytes
    12: (4, Reader.text),
    13: (8, lambda reader: ua.win_epoch_to_datetime(reader.int64())),
    14: (16, lambda reader: UUID(bytes_le=reader.take(16))),
    BYTE_STRING: (4, Reader.octets),
    16: (4, Reader.text),
    17: (2, node_id),
    18: (2, node_id),
    19: (4, lambda reader: ua.StatusCode(reader.uint32())),
    20: (6, _qualified_name),
    21: (1, _localized_text),
    EXTENSION_OBJECT: (3, _structure),
    DIAGNOSTIC_INFO: (1, diagnostic_info),
    **dict.fromkeys(_RESERVED, (4, Reader.octets)),
}
"""Kind → the least bytes of one, and what reads it. Numbers (1 to 11), DataValue and Variant have ways of their own."""


def variant(reader: Reader, depth: int = 0) -> Field:
    """A Variant. One that is nested too deep is stepped over, and its value says so."""
    if depth >= DEPTH_MAX:
        skip_variant(reader)
        return Field(f"nested deeper than {DEPTH_MAX} levels", 12)
    encoding = reader.byte()
    kind = encoding & 0x3F
    value = _array(reader, kind, depth) if encoding & 0x80 else _scalar(reader, kind, depth)
    if encoding & 0x40:
        sizes = [reader.int32() for _ in range(reader.count(4))]
        if isinstance(value, list):
            value = _shaped(value, sizes)
    return Field(value, kind)


def _scalar(reader: Reader, kind: int, depth: int) -> Any:
    number = _SCALARS.get(kind)
    if number is not None:
        return reader.number(number)
    reader.spend(1)
    if kind == VARIANT:
        return variant(reader, depth + 1).Value
    if kind == DATA_VALUE:
        return _as_plain(data_value(reader, depth + 1))
    if kind not in _READ:
        raise Malformed(f"a value of kind {kind}")
    return _READ[kind][1](reader)


def _array(reader: Reader, kind: int, depth: int) -> list[Any] | None:
    form = _FORMS.get(kind)
    if form is not None:
        size = _SCALARS[kind].size
        length = reader.length(size)
        return None if length is None else list(struct.unpack(f"<{length}{form}", reader.take(length * size)))
    if kind in (VARIANT, DATA_VALUE):
        length = reader.length()
        return None if length is None else [_scalar(reader, kind, depth) for _ in range(length)]
    if kind not in _READ:
        raise Malformed(f"an array of kind {kind}")
    least, read = _READ[kind]
    length = reader.length(least)
    if length is None or not least:
        return None
    reader.spend(length)
    return [read(reader) for _ in range(length)]


def _shaped(flat: list[Any], sizes: list[int]) -> list[Any]:
    """A matrix as lists of lists; flat where the sizes do not fit what came."""
    if not 1 < len(sizes) <= DIMENSIONS_MAX or min(sizes) < 1 or prod(sizes) != len(flat):
        return flat
    for size in reversed(sizes[1:]):
        flat = [flat[at : at + size] for at in range(0, len(flat), size)]
    return flat


def data_value(reader: Reader, depth: int = 0) -> Answer:
    """A DataValue."""
    mask = reader.byte()
    value = variant(reader, depth) if mask & 0x01 else None
    code = reader.uint32() if mask & 0x02 else 0
    source = reader.int64() if mask & 0x04 else None
    if mask & 0x10:
        reader.take(2)
    server = reader.int64() if mask & 0x08 else None
    if mask & 0x20:
        reader.take(2)
    return Answer(value, ua.StatusCode(code), source, server)


def _as_plain(answer: Answer) -> Any:
    value = answer.Value.Value if answer.Value is not None else None
    return {"value": value, "status": answer.StatusCode.name} if answer.StatusCode.value else value


_TAIL, _SIZES = -1, -2
"""What `skip_variant` has to step over beside values: the end of a DataValue, the sizes of a matrix."""
_AFTER_VALUE = ((0x02, 4), (0x04, 8), (0x10, 2), (0x08, 8), (0x20, 2))
"""Bit of a DataValue's mask → bytes that follow its value."""


def skip_variant(reader: Reader) -> None:
    """Step over a Variant, however deep: a list of what is still to be stepped over instead of recursion."""
    todo = [(VARIANT, 1)]
    while todo:
        kind, count = todo.pop()
        if kind == _TAIL:
            reader.take(count)
        elif kind == _SIZES:
            reader.take(4 * reader.count(4))
        else:
            reader.spend(1)
            if count > 1:
                todo.append((kind, count - 1))
            if kind == VARIANT:
                _skip_into_variant(reader, todo)
            else:
                mask = reader.byte()
                todo.append((_TAIL, sum(size for bit, size in _AFTER_VALUE if mask & bit)))
                todo += [(VARIANT, 1)] if mask & 0x01 else []


def _skip_into_variant(reader: Reader, todo: list[tuple[int, int]]) -> None:
    encoding = reader.byte()
    inner = encoding & 0x3F
    if encoding & 0x40:
        todo.append((_SIZES, 1))
    if inner in (VARIANT, DATA_VALUE):
        elements = reader.count() if encoding & 0x80 else 1
        todo += [(inner, elements)] if elements else []
    elif encoding & 0x80:
        _array(reader, inner, 0)
    else:
        _scalar(reader, inner, 0)


def response_head(reader: Reader) -> tuple[int, Any]:
    """The head of any response: the server's time of it (in ticks), and its service result. What else is in it is stepped over."""
    node_id(reader)
    ticks = reader.int64()
    reader.uint32()
    result = ua.StatusCode(reader.uint32())
    diagnostic_info(reader)
    for _ in range(reader.count(4)):
        reader.octets()
    extension(reader)
    return ticks, result
