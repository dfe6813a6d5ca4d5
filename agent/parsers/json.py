"""`json`: one JSON object a line. `winston`: the same as Node's winston writes it.

A winston line may keep what it logged beside the text: `splat` holds the values for the `%s` of the message, `meta` (or `metadata`) an
object of the program's own. The message with its `%s` is a sentence without personal data, so it becomes `message`; the text with the
values filled in, and the values, are personal. What stands in `meta` is lifted into `data`, where its personal keys are found.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from agent.parsers.base import Context, Memory, unknown
from agent.parsers.records import RecordOptions, Records
from agent.wire.event import Event

STACK_CHARS_MAX = 8_000
_PLACE = re.compile(r"%[sdifjoOc]")
_decoder = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonConfig(RecordOptions):
    """Nothing of its own."""


class JsonParser:
    """Reads lines of JSON objects."""

    Config: ClassVar[type] = JsonConfig

    def __init__(self, config: JsonConfig, context: Context) -> None:
        self._records = Records(config, context)
        self._source = context.source

    def parse(
        self,
        lines: Sequence[str],
        *,
        observed_us: int,
        reference_us: int,  # noqa: ARG002  # times have their year,
        memory: Memory,  # noqa: ARG002  # a line stands alone,
        final: bool = False,  # noqa: ARG002  # and is whole
    ) -> tuple[list[Event], int]:
        return [self._one(line, observed_us) for line in lines if line.strip()], len(lines)

    def _one(self, line: str, observed_us: int) -> Event:
        try:
            record = _decoder.decode(line)
        except (msgspec.DecodeError, RecursionError, ValueError):
            record = None
        if not isinstance(record, dict):
            return unknown(line, observed_us, observed_us, self._source)
        return self._event(record, line, observed_us)

    def _event(self, record: dict[str, Any], line: str, observed_us: int) -> Event:
        return self._records.event(record, line, observed_us)


class WinstonParser(JsonParser):
    """Reads the JSON lines of winston."""

    def _event(self, record: dict[str, Any], line: str, observed_us: int) -> Event:
        for name in ("meta", "metadata"):
            inner = record.get(name)
            if isinstance(inner, dict):
                del record[name]
                record = {**inner, **record}
        splat = record.pop("splat", None)
        stack = record.pop("stack", None)
        event = super()._event(record, line, observed_us)
        if isinstance(stack, str):
            event.data["stack"] = stack[:STACK_CHARS_MAX]
        if isinstance(splat, list):
            self._filled(event, record, splat)
        return event

    @staticmethod
    def _filled(event: Event, record: dict[str, Any], splat: list[Any]) -> None:
        template = record.get("message")
        event.data["person"] = {**event.data.get("person", {}), "splat": splat[:50]}
        if not isinstance(template, str) or not _PLACE.search(template):
            return
        values = iter(splat)

        def fill(place: re.Match[str]) -> str:
            value = next(values, place[0])
            return value if isinstance(value, str) else _encoder.encode(value).decode()

        event.message = template
        if event.raw == template:
            event.raw = _PLACE.sub(fill, template)
