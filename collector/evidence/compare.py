"""Stored rows against the frames that they came from, byte by byte.

PostgreSQL sends rows in the form of a binary COPY, and `rows_of` makes of a frame the very bytes that were sent when it was stored. So
a row is as
it came where both are the same bytes, but for `data` and `personal`, which jsonb writes in its own way: those are the same where their
tokens are. `Comparison` walks the rows of many batches that way and tells which batches are not whole; `differences` then says of one of
those what is wrong with it, row by row and column by column. The first has to be fast, the second exact.

What may be missing is known: rows that a tombstone names, personal lines that an erasure names.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from agent.wire.batch import Frame, MalformedBatch, read_frame
from collector.evidence.finding import Finding
from collector.store.evidence import Kept
from collector.store.rows import COLUMNS, COPY_HEAD, COPY_TAIL, PARTS, Rows, rows_of

NULL = b"\xff\xff\xff\xff"
_LENGTH = 4
_BATCH_ID = slice(18, 26)
"""Where the bytes of `batch_id` are in a row: behind the count of fields, `received`, and its own length."""
_DATA, _FLAGS, _NAMES, _NAMED = 10, 11, 12, 13
_JSONB = frozenset({"data", "personal"})
ROW_FINDINGS_MAX = 1_000
"""Of one batch; the rest is counted."""

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_NUMERIC = frozenset(b"-0123456789")


def same_json(sent: bytes, stored: bytes) -> bool:
    """Whether jsonb, having been given the one, writes the other."""
    try:
        return _members(sent) == _members(stored) or _same(sent, stored)
    except RecursionError:
        # Nested deeper than Python follows, which jsonb may have taken: at least no character was changed.
        return _characters(sent) == _characters(stored)
    except (msgspec.MsgspecError, ValueError, InvalidOperation):
        return False


def _same(sent: bytes, stored: bytes) -> bool:
    """Values token by token: 1, 1.0, true and "1" are four things; the order of members and white space are none."""
    if sent == stored:
        return True
    kind = sent[:1]
    if kind != stored[:1] and not (sent[0] in _NUMERIC and stored[0] in _NUMERIC):
        return False
    if kind == b"{":
        a, b = _members(sent), _members(stored)
        return a == b or (a.keys() == b.keys() and all(_same(bytes(value), bytes(b[key])) for key, value in a.items()))
    if kind == b"[":
        left, right = _items(sent), _items(stored)
        return len(left) == len(right) and all(_same(bytes(x), bytes(y)) for x, y in zip(left, right, strict=True))
    if kind == b'"':
        return bool(json.loads(sent) == json.loads(stored))
    return sent[0] in _NUMERIC and _number(sent.decode()) == _number(stored.decode())


def _number(token: str) -> str:
    """As PostgreSQL writes a numeric: no exponent, no minus before zero, as many decimals as were given."""
    number = Decimal(token)
    text = format(number, "f")
    return text if number else text.lstrip("-")


def _characters(text: bytes) -> list[int]:
    return sorted(text.replace(b" ", b""))


class Expected(NamedTuple):
    """What the rows of a batch have to be."""

    kept: Kept
    frame: Frame
    rows: Rows
    parts: list[bytes]
    """Those of the rows that are not declared gone."""
    events: int


def opened(kept: Kept, frame: Frame, gone: frozenset[int], *, careful: bool = False) -> Expected:
    """Raises MalformedBatch."""
    rows = rows_of(
        frame,
        batch_id=kept.batch_id,
        place_id=kept.place_id if kept.place_id is not None else 0,
        received=kept.received,
        agent_id=kept.agent_id,
        buffer_id=kept.buffer_id,
        careful=careful,
    )
    parts = rows.parts
    if gone:
        parts = [part for n, part in enumerate(parts) if n // PARTS not in gone]
    return Expected(kept, frame, rows, parts, len(parts) // PARTS)


@dataclass(slots=True)
class Comparison:
    """Rows of many batches, in the order of batch and place, against what they have to be."""

    body: bytes
    """The whole COPY."""
    at: int = len(COPY_HEAD)
    suspects: set[int] = field(default_factory=set)
    """Batches whose rows are not what they have to be."""
    strays: list[int] = field(default_factory=list)
    """Where in `body` rows lie that belong to none of the batches."""
    rows: int = 0
    known: frozenset[int] = frozenset()

    def batch(self, expected: Expected) -> None:
        """The next batch."""
        number = expected.kept.batch_id
        self._pass(number)
        end = _agree(self.body, self.at, expected.parts)
        if end is None:
            self.suspects.add(number)
            self._pass(number + 1)
            return
        self.at = end
        self.rows += expected.events

    def skip(self, number: int) -> None:
        """A batch whose frame cannot be opened: its rows are looked at one by one."""
        self.suspects.add(number)
        self._pass(number + 1)

    def end(self) -> None:
        """There are no more batches."""
        self._pass(2**63)

    def _pass(self, number: int) -> None:
        """Walk over rows of batches before this one: those left of a batch that was done are too many."""
        body = self.body
        while not body.startswith(COPY_TAIL, self.at) and self.at < len(body):
            owner = int.from_bytes(body[self.at + _BATCH_ID.start : self.at + _BATCH_ID.stop], "big", signed=True)
            if owner >= number:
                return
            if owner in self.known:
                self.suspects.add(owner)
            elif len(self.strays) < ROW_FINDINGS_MAX:
                self.strays.append(self.at)
            self.rows += 1
            self.at = _row_end(body, self.at)


def _agree(body: bytes, at: int, parts: list[bytes]) -> int | None:
    """Where the rows that begin at `at` end, if they are made of these parts; else None."""
    starts, join = body.startswith, b"".join
    for n in range(0, len(parts), PARTS):
        prefix = join(parts[n : n + _DATA])
        if not starts(prefix, at):
            return None
        at += len(prefix)
        data, flags, names, named = parts[n + _DATA : n + PARTS]
        if data[:_LENGTH] != NULL:
            end = _json_end(body, at, data)
            if end is None:
                return None
            at, data = end, NULL
        if named[:_LENGTH] == NULL:
            rest = data + flags + names + named
        else:
            rest = data + flags + names
            if not starts(rest, at):
                return None
            end = _json_end(body, at + len(rest), named)
            if end is None:
                return None
            at, rest = end, NULL
        if not starts(rest, at):
            return None
        at += len(rest)
    return at


def _json_end(body: bytes, at: int, fields: bytes) -> int | None:
    """Where a jsonb at `at` ends, if it says what the first of `fields` does (the second being null)."""
    size = int.from_bytes(body[at : at + _LENGTH], "big")
    end = at + _LENGTH + size
    # Behind each length stands the version of jsonb, one byte.
    if end > len(body) or not same_json(fields[_LENGTH + 1 : -_LENGTH], body[at + _LENGTH + 1 : end]):
        return None
    return end


def _row_end(body: bytes, at: int) -> int:
    at += 2
    for _ in COLUMNS:
        length = int.from_bytes(body[at : at + _LENGTH], "big", signed=True)
        at += _LENGTH + max(length, 0)
    return at


Fields = dict[str, bytes | None]
"""A row: the bytes of each column."""


def fields_of(body: bytes, at: int) -> tuple[Fields, int]:
    """The row at `at`, and where it ends."""
    found: Fields = {}
    at += 2
    for name in COLUMNS:
        length = int.from_bytes(body[at : at + _LENGTH], "big", signed=True)
        at += _LENGTH
        found[name] = None if length < 0 else body[at : at + length]
        at += max(length, 0)
    return found, at


def rows_in(body: bytes) -> Iterator[Fields]:
    """The rows of a whole COPY."""
    at = len(COPY_HEAD)
    while at < len(body) and not body.startswith(COPY_TAIL, at):
        row, at = fields_of(body, at)
        yield row


def _different(sent: Fields, stored: Fields) -> tuple[str, ...]:
    names = []
    for name in COLUMNS:
        a, b = sent[name], stored[name]
        same = a == b or (name in _JSONB and a is not None and b is not None and same_json(a[1:], b[1:]))
        if not same:
            names.append(name)
    # Stored before values had bounds: jsonb holds what is kept as text today.
    for name in _JSONB & {*names}:
        text = f"{name}_text"
        value, kept = sent[text], stored[name]
        if sent[name] is stored[text] is None and value is not None and kept is not None and same_json(value, kept[1:]):
            names = [one for one in names if one not in (name, text)]
    return tuple(names)


def idx_of(row: Fields) -> int:
    """Its place in the batch."""
    return int.from_bytes(row["idx"] or b"", "big", signed=True)


def _same_but_place(sent: Fields, stored: Fields) -> bool:
    return not set(_different(sent, stored)) - {"idx"}


def differences(kept: Kept, frame: Frame, gone: frozenset[int], body: bytes) -> list[Finding]:
    """What is wrong with the rows of a batch whose frame can be opened. `body`: a COPY of them, by place. Raises MalformedBatch."""
    stored = list(rows_in(body))
    # A batch was stored in one of two ways; it is held against the one that it is nearer to.
    judged = [_judged(opened(kept, frame, gone, careful=careful), stored) for careful in (False, True)]
    found = min(judged, key=lambda findings: sum(len(finding.columns) or 1 for finding in findings))
    if len(found) > ROW_FINDINGS_MAX:
        text = f"and {len(found) - ROW_FINDINGS_MAX} more rows of this batch"
        found = [*found[:ROW_FINDINGS_MAX], about(kept, "row.changed", text)]
    return found


def _judged(expected: Expected, stored: Sequence[Fields]) -> list[Finding]:
    kept = expected.kept
    sent = {idx_of(row): row for row in rows_in(COPY_HEAD + b"".join(expected.parts) + COPY_TAIL)}
    if kept.place_id is None and stored:
        # From before the place was kept: at least all rows have to stand at one.
        place = stored[0]["place_id"]
        sent = {idx: {**row, "place_id": place} for idx, row in sent.items()}
    left: list[Fields] = []
    matched: dict[int, Fields] = {}
    for row in stored:
        idx = idx_of(row)
        known = matched.get(idx)
        if idx not in sent:
            left.append(row)
        elif known is None:
            matched[idx] = row
        elif _different(sent[idx], known) and not _different(sent[idx], row):
            matched[idx] = row
            left.append(known)
        else:
            left.append(row)
    return [*_rows_changed(kept, sent, matched), *_rows_left(kept, sent, matched, left)]


def _rows_changed(kept: Kept, sent: dict[int, Fields], matched: dict[int, Fields]) -> Iterator[Finding]:
    changed = {idx: names for idx, row in matched.items() if (names := _different(sent[idx], row))}
    for idx, names in sorted(changed.items()):
        other = next((n for n in changed if n != idx and _same_but_place(sent[n], matched[idx])), None)
        if other is not None:
            text = f"holds what event {other} of its batch has to hold"
            yield about(kept, "row.reordered", text, event=idx, columns=("idx",))
        else:
            yield about(kept, "row.changed", "is not what the frame says", event=idx, columns=names)


def _rows_left(
    kept: Kept, sent: dict[int, Fields], matched: dict[int, Fields], left: Iterable[Fields]
) -> Iterator[Finding]:
    missing = {idx for idx in sent if idx not in matched}
    for row in left:
        meant = next((idx for idx in sorted(missing) if _same_but_place(sent[idx], row)), None)
        if meant is not None:
            missing.discard(meant)
            text = f"stands at {idx_of(row)} instead of {meant}"
            yield about(kept, "row.reordered", text, event=meant, columns=("idx",))
        else:
            yield inserted(row, "is in no frame, or twice")
    for idx in sorted(missing):
        yield about(kept, "row.deleted", "is in the frame and not in the table", event=idx)


def about(kept: Kept, kind: str, text: str, *, event: int | None = None, columns: tuple[str, ...] = ()) -> Finding:
    return Finding(
        kind=kind, text=text, agent=str(kept.agent_id), buffer=kept.buffer_id.hex, lane=kept.lane, batch=kept.batch_no,
        event=event, columns=columns, table="security_events" if kind.startswith("row.") else "evidence",
    )  # fmt: skip


# ── the frame itself ─────────────────────────────────────────────────────────────────────────────────────────────────


def header_differences(expected: Expected) -> tuple[str, ...]:
    """Columns of `evidence` that are not what the frame says."""
    kept, h, rows = expected.kept, expected.frame.header, expected.rows
    said: dict[str, Any] = {
        "agent_id": UUID(h.agent), "buffer_id": UUID(h.buffer), "lane": h.lane, "batch_no": h.no, "through": h.through, "prev": h.prev,
        "hash": expected.frame.hash, "events": h.events, "first_time": rows.first_time, "last_time": rows.last_time,
    }  # fmt: skip
    return tuple(name for name, value in said.items() if getattr(kept, name) != value)


def broken(kept: Kept, error: MalformedBatch) -> Iterator[Finding]:
    """What is wrong with a frame that cannot be opened as it stands."""
    try:
        frame = read_frame(kept.frame)
        core = frame.core_lines()
        lines = frame.personal_lines()
    except MalformedBatch:
        yield about(kept, "frame.changed", f"{error}", columns=("frame",))
        return
    for idx, (line, personal) in enumerate(zip(core, lines, strict=True)):
        if personal and (line.commit is None or hashlib.sha256(personal).hexdigest() != line.commit):
            text = "the personal line in the frame is not the one that its core line commits to"
            yield about(kept, "personal.changed", text, event=idx, columns=("frame",))


def undeclared(expected: Expected, erased: frozenset[int]) -> Iterator[Finding]:
    """Personal lines that are gone, or still there, against what was declared."""
    bare = frozenset(expected.rows.bare)
    for idx in sorted(bare - erased):
        text = "the personal line is gone and no erasure declares it"
        yield about(expected.kept, "personal.deleted", text, event=idx, columns=("frame",))
    for idx in sorted(erased - bare):
        yield about(expected.kept, "personal.kept", "was declared erased and is still there", event=idx)


def gap_differences(expected: Expected, stored: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """Rows of `gaps` against the frame's declarations."""
    kept, h = expected.kept, expected.frame.header
    by_idx = {row["idx"]: row for row in stored}
    whole = (h.gap.through, h.prev, h.gap.last) if h.gap else (None, None, None)
    for gap in expected.rows.gaps:
        row = by_idx.pop(gap.idx, None)
        if row is None:
            text = "the declaration of a loss is in the frame and not in the table"
            yield about(kept, "gap.deleted", text, event=gap.idx)
            continue
        said: dict[str, Any] = {
            "received": kept.received, "time": gap.time, "agent_id": kept.agent_id, "buffer_id": kept.buffer_id, "lane": h.lane,
            "batch_no": h.no, "through": whole[0], "prev": whole[1], "last_hash": whole[2], "source": gap.source, "lost": gap.lost,
            "reason": gap.reason,
        }  # fmt: skip
        names = [name for name, value in said.items() if row[name] != value]
        if (row["data"] is None) != (gap.data is None) or (
            gap.data is not None and not same_json(gap.data.encode(), row["data"].encode())
        ):
            names.append("data")
        if names:
            text = "the declaration of a loss is not what the frame says"
            yield about(kept, "gap.changed", text, event=gap.idx, columns=tuple(names))
    for idx in by_idx:
        yield about(kept, "gap.inserted", "a loss that no frame declares", event=idx)


def identity_of(row: Fields) -> tuple[str, str, int, int, int]:
    """Agent, buffer, lane, batch and place that a row claims."""
    number = int.from_bytes
    agent, buffer = UUID(bytes=row["agent_id"] or bytes(16)), UUID(bytes=row["buffer_id"] or bytes(16))
    lane, batch = number(row["lane"] or b"", "big", signed=True), number(row["batch_no"] or b"", "big", signed=True)
    return str(agent), buffer.hex, lane, batch, idx_of(row)


def inserted(row: Fields, text: str) -> Finding:
    """A row that has no place where it lies, by what it claims to be."""
    agent, buffer, lane, batch, idx = identity_of(row)
    return Finding(
        kind="row.inserted", text=text, agent=agent, buffer=buffer, lane=lane, batch=batch, event=idx, table="security_events"
    )  # fmt: skip
