"""What a handler learns of its keys before it judges them: rows of numbers first, then a model made of them.

Rows are stored in chunks of CHUNK under state keys of their own ("!r<chunk>:<key>"), so that learning from 400 rows does not write
400 rows with each of them. When the model is made ("!m<key>") the rows go. Both go with their key.
"""

from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

import msgspec

from agent.handlers.base import Key, decode_key, encode_key

CHUNK = 16
_ROWS = "!r"
_MODEL = "!m"

M = TypeVar("M", bound=msgspec.Struct)
Row = list[float]
_encode = msgspec.msgpack.encode
_decode_rows = msgspec.msgpack.Decoder(list[list[float]]).decode


class Lessons(Generic[M]):
    """Rows and models by key, and what changed of them."""

    def __init__(self, model: type[M]) -> None:
        self.models: dict[Key, M] = {}
        self._rows: dict[Key, list[Row]] = {}
        self._decode = msgspec.msgpack.Decoder(model).decode
        self._dirty: dict[str, bytes | None] = {}

    def add(self, key: Key, row: Row) -> list[Row]:
        """One row more; all of them."""
        rows = self._rows.setdefault(key, [])
        rows.append(row)
        chunk = (len(rows) - 1) // CHUNK
        self._dirty[f"{_ROWS}{chunk}:{encode_key(key)}"] = _encode(rows[chunk * CHUNK :])
        return rows

    def done(self, key: Key, model: M) -> None:
        """The model of the key is made; the rows are no longer needed."""
        self._drop_rows(key)
        self.models[key] = model
        self._dirty[_MODEL + encode_key(key)] = _encode(model)

    def _drop_rows(self, key: Key) -> None:
        rows = self._rows.pop(key, [])
        for chunk in range((len(rows) + CHUNK - 1) // CHUNK):
            self._dirty[f"{_ROWS}{chunk}:{encode_key(key)}"] = None

    def changes(self, alive: Mapping[Key, object]) -> dict[str, bytes | None]:
        """What changed since the last call. What belongs to keys that are no longer alive goes."""
        if len(self.models) + len(self._rows) > len(alive):
            self._forget(key for key in [*self.models, *self._rows] if key not in alive)
        changed, self._dirty = self._dirty, {}
        return changed

    def _forget(self, keys: Iterable[Key]) -> None:
        for key in list(keys):
            self._drop_rows(key)
            if self.models.pop(key, None) is not None:
                self._dirty[_MODEL + encode_key(key)] = None

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Take up what `changes` gave, all of it."""
        chunks: list[tuple[Key, int, list[Row]]] = []
        for name, value in state.items():
            if name.startswith(_MODEL):
                self.models[decode_key(name[len(_MODEL) :])] = self._decode(value)
            elif name.startswith(_ROWS):
                number, _, text = name[len(_ROWS) :].partition(":")
                chunks.append((decode_key(text), int(number), _decode_rows(value)))
        for key, _, rows in sorted(chunks, key=lambda chunk: chunk[1]):
            self._rows.setdefault(key, []).extend(rows)
