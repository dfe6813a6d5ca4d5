"""`json`: one JSON object a line. `winston`: the same as Node's winston writes it.

A winston line may keep what it logged beside the text: `splat` holds the values for the `%s` of the message, `meta` (or `metadata`) an
object of the program's own; `format.logstash()` puts everything but time and message into `@fields`. The message with its `%s` is a
sentence without personal data, so it becomes `message`; the text with the values filled in, and the values, are personal. What stands in
those objects is lifted into `data`, where its personal keys are found. A stack may be a text or a list of texts.
"""

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from agent.parsers.base import unknown
from agent.parsers.records import LineParser, RecordOptions, set_apart
from agent.wire.event import Event

STACK_CHARS_MAX = 8_000
_PLACE = re.compile(r"%[sdifjoOc]")
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_decoder = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()


def mended(text: bytes) -> bytes:
    """JSON in which half a pair of surrogates (an emoji that a program cut in two) is shown as its escape, since no text can hold it."""
    return _ESCAPE.sub(lambda each: b"\\\\" + each[1] if each[1] else each[0], text)


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonConfig(RecordOptions):
    """Nothing of its own."""


class JsonParser(LineParser):
    """Reads lines of JSON objects."""

    Config: ClassVar[type] = JsonConfig

    def one(self, line: str, observed_us: int) -> Event:
        """See LineParser."""
        record = _decoded(line)
        if record is None and "\\u" in line:
            record = _decoded(mended(line.encode("utf-8", "backslashreplace")))
        if not isinstance(record, dict):
            return unknown(line, observed_us, observed_us, self._source)
        return self.event(record, line, observed_us)

    def event(self, record: dict[str, Any], line: str, observed_us: int) -> Event:
        """The event of a record that was read already. `record` may be changed."""
        return self._records.event(record, line, observed_us)


def _decoded(line: str | bytes) -> Any:
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return None


class WinstonParser(JsonParser):
    """Reads the JSON lines of winston."""

    def event(self, record: dict[str, Any], line: str, observed_us: int) -> Event:
        """The event of a record that was read already. `record` may be changed."""
        for name in ("@fields", "meta", "metadata"):
            inner = record.get(name)
            if isinstance(inner, dict):
                # What the program logged never takes the place of what winston wrote.
                record = {**inner, **{key: value for key, value in record.items() if key != name}}
        splat = record.pop("splat", None)
        stack = record.pop("stack", None)
        event = super().event(record, line, observed_us)
        if isinstance(stack, list):
            stack = "\n".join(each if isinstance(each, str) else _encoder.encode(each).decode() for each in stack)
        if isinstance(stack, str):
            event.data["stack"] = stack[:STACK_CHARS_MAX]
        elif stack is not None:
            event.data = set_apart({**event.data, "stack": stack})
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
