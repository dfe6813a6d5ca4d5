"""What `verify` says of a thing that is not as it has to be: where it is, exactly, and what is wrong. Never a value: it may be personal."""

from msgspec import Struct


class Finding(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that does not hold. What does not apply is left out."""

    kind: str
    """Dotted: what it is about, and what happened to it, as in `row.changed`."""
    text: str
    agent: str | None = None
    buffer: str | None = None
    lane: int | None = None
    batch: int | None = None
    """Number of the batch in its stream."""
    through: int | None = None
    """Where more than one batch is meant: the last."""
    event: int | None = None
    """Place of the event in its batch, from 0."""
    columns: tuple[str, ...] = ()
    table: str | None = None
    record: int | None = None
    """Number of the row in a table that is not about events."""

    def __str__(self) -> str:
        where = [
            f"{name} {value}"
            for name, value in (
                ("agent", self.agent),
                ("buffer", self.buffer),
                ("lane", self.lane),
                ("batch", self.batch if self.through in (None, self.batch) else f"{self.batch} to {self.through}"),
                ("event", self.event),
                ("table", self.table),
                ("record", self.record),
            )
            if value is not None
        ]
        if self.columns:
            where.append(f"column {', '.join(self.columns)}")
        return f"{self.kind}: {'; '.join(where)}: {self.text}" if where else f"{self.kind}: {self.text}"
