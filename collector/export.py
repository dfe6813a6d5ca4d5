"""Export: all events that a filter finds, as a stream with constant memory, as JSON, NDJSON, CSV or (command only) Parquet.

It is read page by page along the key, as GET /v1/events is: no transaction stays open, however long the reader takes. What is stored
meanwhile with a key that lies ahead is in it. A failure on the way breaks the connection off, so that half an export never looks whole.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Annotated, Any, BinaryIO

import msgspec
from litestar import Request, get
from litestar.datastructures import State
from litestar.di import Provide
from litestar.params import QueryParameter
from litestar.response import Stream

from collector.problems import Problem
from collector.query import FORMATS, EventOut, Format, csv_lines, event_out, position_of, provide_filter
from collector.store import events
from collector.store.database import Database
from collector.store.events import BadFilter, Filter, Position, TooSlow

PAGE_EVENTS = 2_000
EXPORTS_MAX = 4
"""At once in one collector; more are refused, 503."""


class NoParquet(Exception):
    """pyarrow is not installed."""


async def pages(database: Database, wanted: Filter) -> "AsyncGenerator[list[EventOut], None]":
    """All events, oldest first. Raises BadFilter, TooSlow."""
    position: Position | None = None
    while True:
        rows = await events.page(database, wanted, after=position, order="asc", limit=PAGE_EVENTS)
        if rows:
            yield [event_out(row) for row in rows]
        if len(rows) < PAGE_EVENTS:
            return
        position = position_of(rows[-1])


def _lines(found: "Iterable[EventOut]") -> bytes:
    return msgspec.json.Encoder().encode_lines(list(found))


async def encoded(found: "AsyncGenerator[list[EventOut], None]", chosen: Format) -> "AsyncGenerator[bytes, None]":
    """The bytes of an export, a page at a time."""
    first = True
    if chosen == "json":
        yield b"["
    async for page in found:
        if chosen == "json":
            yield (b"" if first else b",\n") + msgspec.json.encode(page)[1:-1]
        elif chosen == "csv":
            yield await asyncio.to_thread(csv_lines, page, head=first)
        else:
            yield await asyncio.to_thread(_lines, page)
        first = False
    if chosen == "json":
        yield b"]\n"
    elif chosen == "csv" and first:
        yield csv_lines([], head=True)


class Exports:
    """Bounds how many run at once."""

    def __init__(self) -> None:
        self.running = 0

    @contextlib.contextmanager
    def one(self) -> Any:
        """Raises Problem."""
        if self.running >= EXPORTS_MAX:
            raise Problem(503, f"{EXPORTS_MAX} exports are running here", code="busy", headers={"Retry-After": "30"})
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1


@get(
    "/v1/export",
    opt={"access": "read", "parameters": frozenset({"format"})},
    dependencies={"wanted": Provide(provide_filter)},
    tags=["events"],
    summary="All events that a filter finds, oldest first, as a stream",
)
async def get_export(
    request: Request[Any, Any, Any],
    state: State,
    wanted: Filter,
    format_: Annotated[Format, QueryParameter(name="format")] = "ndjson",
) -> Stream:
    """The connection breaks off where it cannot be finished."""
    del request
    body = _body(state.database, state.exports, wanted, format_)
    try:
        first = await anext(body)
    except BadFilter as error:
        raise Problem(400, f"a filter cannot be used: {error}", code="filter") from None
    except TooSlow as error:
        raise Problem(504, f"{error}. Narrow it: give from and to, or an agent", code="slow") from None
    except StopAsyncIteration:
        first = b""
    headers = {"Cache-Control": "no-store", "Content-Disposition": f'attachment; filename="events.{format_}"'}
    return Stream(_after(first, body), media_type=FORMATS[format_], headers=headers)


async def _body(database: Database, exports: Exports, wanted: Filter, chosen: Format) -> "AsyncGenerator[bytes, None]":
    with exports.one():
        async for part in encoded(pages(database, wanted), chosen):
            yield part


async def _after(first: bytes, rest: "AsyncGenerator[bytes, None]") -> "AsyncGenerator[bytes, None]":
    async with contextlib.aclosing(rest):
        yield first
        async for part in rest:
            yield part


async def write(database: Database, wanted: Filter, chosen: str, out: BinaryIO) -> int:
    """Export into a file; how many events. Raises NoParquet, BadFilter, TooSlow."""
    count = 0

    async def counted() -> "AsyncGenerator[list[EventOut], None]":
        nonlocal count
        async for page in pages(database, wanted):
            count += len(page)
            yield page

    if chosen == "parquet":
        await _parquet(counted(), out)
    else:
        form: Format = "json" if chosen == "json" else "csv" if chosen == "csv" else "ndjson"
        async for part in encoded(counted(), form):
            out.write(part)
    return count


async def _parquet(found: "AsyncGenerator[list[EventOut], None]", out: BinaryIO) -> None:
    try:
        import pyarrow as pa  # type: ignore[import-not-found,import-untyped,unused-ignore]
        import pyarrow.parquet as pq  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise NoParquet("Parquet needs pyarrow: pip install 'linewarden[parquet]'") from None
    kinds = {"received": pa.timestamp("us", "UTC"), "time": pa.timestamp("us", "UTC"), "observed": pa.timestamp("us", "UTC"),
             "time_claimed": pa.int64(), "severity": pa.int16()}  # fmt: skip
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in EventOut.__struct_fields__])
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        async for page in found:
            rows = [{name: _plain(getattr(event, name)) for name in schema.names} for event in page]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


_AS_TEXT: dict[type, Callable[[Any], Any]] = {
    msgspec.Raw: lambda value: bytes(value).decode(),
    dict: lambda value: msgspec.json.encode(value).decode(),
}


def _plain(value: Any) -> Any:
    if isinstance(value, (msgspec.Raw, dict)):
        return _AS_TEXT[type(value)](value)
    return str(value) if type(value).__name__ == "UUID" else value


ROUTES: list[Any] = [get_export]
