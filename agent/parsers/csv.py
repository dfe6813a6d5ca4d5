"""`csv`: rows with a header.

The header is the first line, or given by `columns`. A writer that opens its file again writes the header again: passed over. A header with
other columns takes over, and is an event. A row with another number of cells is not guessed at: it becomes `log.line`. A quoted cell may
go over several lines.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import annotated_types

from agent.parsers.base import Context, Memory, unknown
from agent.parsers.logfmt import number_or_text
from agent.parsers.records import RecordOptions, Records
from agent.wire.event import Event

ROW_LINES_MAX = 100
"""A quoted cell that goes on longer than this was never closed: its lines are taken one by one."""
_DELIMITERS = ",;\t|"


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvConfig(RecordOptions):
    """delimiter: empty: the one of , ; tab | that the header has most of. columns: their names, where the file has no header."""

    delimiter: Annotated[str, annotated_types.MaxLen(1)] = ""
    columns: tuple[str, ...] = ()


class CsvParser:
    """Reads rows."""

    Config: ClassVar[type] = CsvConfig

    def __init__(self, config: CsvConfig, context: Context) -> None:
        self._config = config
        self._records = Records(config, context)
        self._source = context.source

    def parse(
        self,
        lines: Sequence[str],
        *,
        observed_us: int,
        reference_us: int,  # noqa: ARG002  # times have their year
        memory: Memory,
        final: bool = False,
    ) -> tuple[list[Event], int]:
        events: list[Event] = []
        at = 0
        while at < len(lines):
            row = self._row(lines, at, final=final)
            if row is None:
                break
            text = lines[at] if row == 1 else "\n".join(lines[at : at + row])
            at += row
            if text.strip():
                event = self._event(text, observed_us, memory)
                if event is not None:
                    events.append(event)
        return events, at

    @staticmethod
    def _row(lines: Sequence[str], at: int, *, final: bool) -> int | None:
        """How many lines the row takes; None while its end is not there."""
        quotes = 0
        for n in range(at, min(len(lines), at + ROW_LINES_MAX)):
            quotes += lines[n].count('"')
            if quotes % 2 == 0:
                return n - at + 1
        return 1 if final or len(lines) - at >= ROW_LINES_MAX else None

    def _cells(self, text: str, delimiter: str) -> list[str] | None:
        try:
            rows = list(csv.reader([text] if "\n" not in text else text.splitlines(keepends=True), delimiter=delimiter))
        except csv.Error:
            return None
        return rows[0] if len(rows) == 1 else None

    def _event(self, text: str, observed_us: int, memory: Memory) -> Event | None:
        columns = list(self._config.columns) or memory.get("columns")
        delimiter = self._config.delimiter or memory.get("delimiter") or max(_DELIMITERS, key=text.count)
        cells = self._cells(text.removeprefix("\ufeff"), delimiter)
        names = [cell.strip() for cell in cells] if cells is not None else []
        if cells is None or (columns is None and not _may_be_names(names)):
            return unknown(text, observed_us, observed_us, self._source)
        if columns is None or names == columns:
            memory["columns"], memory["delimiter"] = names, delimiter
            return None
        if not self._config.columns and self._is_header(names, columns):
            memory["columns"], memory["delimiter"] = names, delimiter
            data = {"columns": names, "before": columns}
            return Event(observed_us, observed_us, "log", self._source, message="the columns changed", data=data)
        if len(cells) != len(columns):
            return unknown(text, observed_us, observed_us, self._source, {"cells": len(cells), "columns": len(columns)})
        record: dict[str, Any] = {
            name: number_or_text(cell.strip()) for name, cell in zip(columns, cells, strict=True) if cell
        }
        return self._records.event(record, text, observed_us)

    @staticmethod
    def _is_header(names: list[str], columns: list[str]) -> bool:
        """A later line is a header if it looks like one and has at least half of the columns known so far."""
        return _may_be_names(names) and len(set(names) & set(columns)) * 2 >= min(len(columns), len(names))


def _may_be_names(cells: list[str]) -> bool:
    """Column names: no two alike, none empty, none a number."""
    return len(set(cells)) == len(cells) and all(
        cell and isinstance(number_or_text(cell), str) and not cell[:1].isdigit() for cell in cells
    )
