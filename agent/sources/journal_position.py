"""What was read of a journal, by the identity of its entries and never by their times.

Invariant: an entry was read if its number is not above the last one read of its sequence, or, where its sequence is not known, if its
time since boot is not above the last one read of its boot. A station without a clock battery starts years behind, so the time of day
orders nothing; the number of an entry in its sequence and the time since boot always grow.

Bounds: SEQUENCES_MAX sequences and BOOTS_MAX boots are remembered, the least recently read is forgotten first. Once as many boots are
remembered, a boot that is not among them is taken for an old one that was read.
"""

from typing import Any, NamedTuple, Self

SEQUENCES_MAX = 32
BOOTS_MAX = 512
KEY_CHARS = 8
"""Of an id of 32 characters; ids are random."""
READ_WHOLE = 2**62


class Place(NamedTuple):
    """The fields of an entry's `__CURSOR`."""

    sequence: str
    no: int
    boot: str
    monotonic_us: int
    realtime_us: int
    content: str

    @classmethod
    def of(cls, cursor: str) -> Self:
        """Return the place of a cursor; a field that it lacks is empty or 0."""
        fields = dict(part.partition("=")[::2] for part in cursor.split(";"))
        return cls(
            fields.get("s", ""),
            _hex(fields.get("i", "")),
            fields.get("b", ""),
            _hex(fields.get("m", "")),
            _hex(fields.get("t", "")),
            fields.get("x", ""),
        )

    def is_same_entry(self, other: "Place") -> bool:
        """Return whether it is the same entry, maybe in another file: journald copies early entries to the persistent journal."""
        return self[2:] == other[2:] and bool(self.boot)


def _hex(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return 0


class Position:
    """The last entry handed on, and what was read of each sequence and boot."""

    def __init__(self, state: dict[str, Any] | None) -> None:
        state = state or {}
        self.cursor: str | None = state.get("cursor")
        self.realtime_us = int(state.get("realtime_us", 0))
        self._boots: dict[str, int] = dict(state.get("boots", {}))
        self._sequences: dict[str, int] = dict(state.get("sequences", {}))
        if self.cursor is not None:
            self._note(Place.of(self.cursor))

    def state(self) -> dict[str, Any] | None:
        """Return what the source's cursor keeps; None before the first entry."""
        if self.cursor is None:
            return None
        return {
            "cursor": self.cursor, "realtime_us": self.realtime_us, "boots": dict(self._boots), "sequences": dict(self._sequences),
        }  # fmt: skip

    @property
    def place(self) -> Place:
        """The place of the last entry."""
        return Place.of(self.cursor or "")

    def move(self, cursor: str, realtime_us: int) -> None:
        """Note that an entry is handed on."""
        self.cursor, self.realtime_us = cursor, realtime_us
        self._note(Place.of(cursor))

    def was_read(self, place: Place) -> bool:
        """Return whether an entry was handed on before."""
        last = self._sequences.get(place.sequence[:KEY_CHARS])
        if last is not None:
            return place.no <= last
        return place.monotonic_us <= self._boots.get(place.boot[:KEY_CHARS], -1)

    def is_unread(self, boot: str) -> bool:
        """Return whether nothing of a boot was read."""
        return boot[:KEY_CHARS] not in self._boots and len(self._boots) < BOOTS_MAX

    def pass_over(self, boot: str) -> None:
        """Note that the entries of a boot are not wanted."""
        self._boots.setdefault(boot[:KEY_CHARS], READ_WHOLE)

    def _note(self, place: Place) -> None:
        for table, key, value, most in (
            (self._sequences, place.sequence, place.no, SEQUENCES_MAX),
            (self._boots, place.boot, place.monotonic_us, BOOTS_MAX),
        ):
            if key:
                table[key[:KEY_CHARS]] = max(value, table.pop(key[:KEY_CHARS], 0))
                while len(table) > most:
                    del table[next(iter(table))]
