"""From the events of a frame to the rows of `security_events`: one deterministic rule, used when a batch is stored and when rows
are compared with their frame later.

PostgreSQL cannot hold everything that an event can say. No event is refused for it; what it says is kept in another form:

* A time that is no date, lies beyond FUTURE_S_MAX ahead of `received`, or before ANCIENT_DAYS_MAX: `time` is `received`, `time_claimed`
  has the microseconds as sent, `time_flag` says why. An impossible `observed` is null.
* A NUL character in text becomes U+2400 (its picture); the frame has the original.
* JSON that jsonb refuses (NUL escapes, numbers beyond numeric, nesting beyond its stack, bytes that are no UTF-8) goes to `data_text` as it
  came.

To look at every event for the last two costs more than it is worth, so the fast way lets PostgreSQL find out: the whole transaction
is then done again with `careful`, which looks.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from agent.wire.batch import CoreLine, Frame, decode_personal
from agent.wire.taxonomy import lookup

if TYPE_CHECKING:
    from typing_extensions import Buffer

COLUMNS = (
    "received", "time", "observed", "batch_id", "batch_no", "agent_id", "buffer_id", "idx", "place_id", "lane", "severity", "type",
    "category", "source", "src_ip", "target", "outcome", "message", "correlation_id", "data", "actor", "raw", "personal", "data_text",
    "personal_text", "time_claimed", "time_flag",
)  # fmt: skip

FUTURE_S_MAX = 86_400
"""A time further ahead than this is not believed. A day, since a wrong time zone is common and explains itself."""
ANCIENT_DAYS_MAX = 3_650
"""A time further back than this is not believed. Ten years: old logs may be read, a clock without a battery says 1970."""
JSON_DEPTH_MAX = 500
NUMBER_CHARS_MAX = 1_000
EXPONENT_MAX = 1_000
TEXT_CHARS_MAX = 1_000_000_000

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US_MIN = (datetime(1, 1, 2, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
_US_MAX = (datetime(9999, 12, 30, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)

_US_EXACT_MAX = 4_000_000_000_000_000
"""Up to here a float of seconds is finer than half a microsecond."""
_date = datetime.fromtimestamp
_encode = msgspec.json.encode

Row = tuple[Any, ...]


class Gap(NamedTuple):
    """A row of `gaps`."""

    idx: int
    time: datetime
    source: str
    lost: int | None
    reason: str | None
    data: str | None


class Rows(NamedTuple):
    """What a frame becomes."""

    events: list[Row]
    gaps: list[Gap]
    first_time: datetime
    last_time: datetime


def to_us(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def from_us(us: int) -> datetime | None:
    """The date, or None where there is none."""
    if 0 < us < _US_EXACT_MAX:
        return _date(us / 1e6, UTC)
    return EPOCH + timedelta(microseconds=us) if _US_MIN < us < _US_MAX else None


def _clean(text: str | None) -> str | None:
    return text.replace("\0", "\u2400") if text is not None and "\0" in text else text


def rows_of(
    frame: Frame, *, batch_id: int, place_id: int, received: datetime, agent_id: Any, buffer_id: Any, careful: bool
) -> Rows:
    """The rows of a frame. Raises MalformedBatch: everything in it is opened and checked here.

    This loop bounds how fast a backlog drains, hence its plain writing: each call that is left out of it counts.
    """
    received_us = to_us(received)
    latest, earliest = received_us + FUTURE_S_MAX * 1_000_000, received_us - ANCIENT_DAYS_MAX * 86_400_000_000
    number, lane = frame.header.no, frame.header.lane
    events: list[Row] = []
    gaps: list[Gap] = []
    first_us, last_us = 2**63, -(2**63)
    for idx, (c, personal_line) in enumerate(frame.rows()):
        us, flag, claimed = c.time, None, None
        if earliest <= us <= latest:
            time = _date(us / 1e6, UTC)  # exact to the microsecond from 1970 to 2100
        else:
            flag, claimed, us, time = _why(us, latest), _bigint(us), received_us, received
        first_us = min(first_us, us)
        last_us = max(last_us, us)
        observed = time if c.observed == c.time and flag is None else from_us(c.observed)
        data = data_text = actor = raw = personal = personal_text = None
        if c.data:
            data, data_text = _json(c.data, careful)
        if personal_line:
            actor, raw, personal, personal_text = _personal(personal_line, idx, careful)
        if careful:
            c = _cleaned(c)  # noqa: PLW2901 - the same line, as PostgreSQL can hold it
        events.append(
            (
                received, time, observed, batch_id, number, agent_id, buffer_id, idx, place_id, lane, c.severity, c.type,
                lookup(c.type).category, c.source, c.src_ip, c.target, c.outcome, c.message, c.correlation_id, data, actor, raw, personal,
                data_text, personal_text, claimed, flag,
            )
        )  # fmt: skip
        if c.type == "collection.gap":
            gaps.append(_gap(idx, time, c.source, bytes(c.data), data))
    return Rows(events, gaps, EPOCH + timedelta(microseconds=first_us), EPOCH + timedelta(microseconds=last_us))


def _cleaned(line: CoreLine) -> CoreLine:
    return msgspec.structs.replace(
        line,
        source=_clean(line.source) or "",
        src_ip=_clean(line.src_ip),
        target=_clean(line.target),
        outcome=_clean(line.outcome),
        message=_clean(line.message),
        correlation_id=_clean(line.correlation_id),
    )


def _why(us: int, latest: int) -> str:
    if not _US_MIN < us < _US_MAX:
        return "range"
    return "future" if us > latest else "ancient"


def _bigint(us: int) -> int:
    return max(min(us, 2**63 - 1), -(2**63))


def _json(text: "Buffer", careful: bool) -> tuple[str | None, str | None]:  # noqa: FBT001 - an inner loop, called by position
    try:
        decoded = str(text, "utf-8")
    except UnicodeDecodeError:
        return None, bytes(text).decode("utf-8", "backslashreplace").replace("\0", "\u2400")
    if careful and not storable(decoded):
        return None, decoded.replace("\0", "\u2400")
    return decoded, None


def _personal(line: bytes, idx: int, careful: bool) -> tuple[str | None, str | None, str | None, str | None]:  # noqa: FBT001
    named = decode_personal(line, idx)
    personal = personal_text = None
    if named.data:
        # Written anew from the object: what could be decoded is valid UTF-8.
        personal, personal_text = _json(_encode(named.data), careful)
    if careful:
        return _clean(named.actor), _clean(named.raw), personal, personal_text
    return named.actor, named.raw, personal, personal_text


def _gap(idx: int, time: datetime, source: str, text: bytes, data: str | None) -> Gap:
    try:
        said = msgspec.json.decode(text) if text else {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        said = {}
    lost, reason = said.get("events"), said.get("reason")
    lost = lost if isinstance(lost, int) and not isinstance(lost, bool) and 0 <= lost < 2**63 else None
    return Gap(idx, time, _clean(source) or "", lost, _clean(reason) if isinstance(reason, str) else None, data)


def storable(text: str) -> bool:
    """Whether jsonb can hold this JSON. Stricter than PostgreSQL where that is simpler: a false no costs only searchability."""
    bad = False

    def number(digits: str) -> int:
        nonlocal bad
        mantissa, _, exponent = digits.lower().partition("e")
        bad = bad or len(mantissa) > NUMBER_CHARS_MAX or len(exponent) > 6 or abs(int(exponent or 0)) > EXPONENT_MAX  # noqa: PLR2004
        return 0

    try:
        value = json.loads(text, parse_float=number, parse_int=number, parse_constant=number)
    except (ValueError, RecursionError):
        return False
    return not bad and all(map(_plain, _strings(value)))


def _plain(text: str) -> bool:
    # A surrogate that stands alone has no UTF-8, and jsonb refuses the escape of NUL.
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def _strings(value: Any) -> Iterator[str]:
    """Every string in a decoded value; one with a NUL where it is nested too deep."""
    level = [value]
    for _ in range(JSON_DEPTH_MAX):
        if not level:
            return
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                yield from item.keys()
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, str):
                yield item
        level = below
    if level:
        yield "\0"
