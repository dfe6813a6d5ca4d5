"""Export: all events that a filter finds, as a stream with constant memory, as JSON, NDJSON, CSV or (command only) Parquet.

It is read page by page along the key, as GET /v1/events is: no transaction stays open, however long the reader takes. What is stored
meanwhile with a key that lies ahead is in it. A failure on the way breaks the connection off, so that half an export never looks whole.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from types import TracebackType
from typing import Annotated, Any, BinaryIO, Self

import msgspec
from litestar import Request, get
from litestar.datastructures import State
from litestar.di import Provide
from litestar.params import QueryParameter
from litestar.response import Stream

from collector import audit, personal
from collector.problems import Problem
from collector.query import FORMATS, EventOut, Format, csv_lines, event_out, position_of, provide_filter
from collector.store import events
from collector.store.database import Database, StoreMisconfigured, StoreUnavailable
from collector.store.events import BadFilter, Filter, Position, TooSlow
from collector.vault import Vault

_log = logging.getLogger("linewarden.collector")

RECORD_S_MAX = 10.0
PAGE_EVENTS = 2_000
EXPORTS_MAX = 4
"""At once in one collector; more are refused, 503."""


class NoParquet(Exception):
    """pyarrow is not installed."""


async def pages(database: Database, vault: Vault | None, wanted: Filter) -> "AsyncGenerator[list[EventOut], None]":
    """All events, oldest first; with no vault personal data as it is. Raises BadFilter, TooSlow."""
    position: Position | None = None
    while True:
        rows = await events.page(database, wanted, after=position, order="asc", limit=PAGE_EVENTS)
        if rows:
            yield [event_out(row, vault) for row in rows]
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
    opt={
        "access": "read",
        "parameters": frozenset({"format", "personal"}),
        "formats": ("application/x-ndjson", "text/csv"),
    },
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
    """The connection breaks off where it cannot be finished. That it began and how it ended is recorded."""
    body = _body(request, state, wanted, format_)
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


async def _body(
    request: Request[Any, Any, Any], state: State, wanted: Filter, chosen: Format
) -> "AsyncGenerator[bytes, None]":
    exports: Exports = state.exports
    exported = Exported(state.database, request.auth.who, "/v1/export", personal.question(request, state.vault), wanted)
    vault = None if wanted.personal else state.vault
    with exports.one():
        async with exported:
            async for part in encoded(exported.counted(pages(state.database, vault, wanted)), chosen):
                yield part


class Exported:
    """The record of an export: one before its first event leaves, one of how it ended and how many events left."""

    def __init__(self, database: Database, who: audit.Who, target: str, query: str, wanted: Filter) -> None:
        self._database = database
        self._who = who
        self._target = target
        self._data = {"query": query, "personal": wanted.personal}
        self.events = 0

    async def counted(self, found: "AsyncGenerator[list[EventOut], None]") -> "AsyncGenerator[list[EventOut], None]":
        """The same pages."""
        async for page in found:
            self.events += len(page)
            yield page

    async def __aenter__(self) -> Self:
        await self._record("events.export.begun", "success", self._data)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        result: audit.Result = "success" if kind is None else "failure"
        try:
            # Whoever breaks off is cancelled here; the record is made all the same.
            ended = self._record("events.exported", result, {**self._data, "events": self.events})
            await asyncio.shield(asyncio.wait_for(ended, RECORD_S_MAX))
        except (StoreUnavailable, StoreMisconfigured, TimeoutError) as failure:
            if kind is None:
                raise StoreUnavailable(f"the export could not be recorded: {failure}") from failure
            _log.warning("the end of an export could not be recorded: %s", failure)

    async def _record(self, action: str, result: audit.Result, data: dict[str, Any]) -> None:
        async with self._database.connection() as connection:
            await audit.record(connection, self._who, action, target=self._target, result=result, data=data)


async def _after(first: bytes, rest: "AsyncGenerator[bytes, None]") -> "AsyncGenerator[bytes, None]":
    async with contextlib.aclosing(rest):
        yield first
        async for part in rest:
            yield part


async def write(database: Database, wanted: Filter, chosen: str, out: BinaryIO, *, query: str = "") -> int:
    """Export into a file as a command does, personal data as it is; how many events. Raises NoParquet, BadFilter, TooSlow."""
    async with Exported(database, audit.Who.command(), "command", query, wanted) as exported:
        found = exported.counted(pages(database, None, wanted))
        if chosen == "parquet":
            await _parquet(found, out)
        else:
            form: Format = "json" if chosen == "json" else "csv" if chosen == "csv" else "ndjson"
            async for part in encoded(found, form):
                out.write(part)
    return exported.events


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
