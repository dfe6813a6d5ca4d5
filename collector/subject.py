"""A person's rights: everything of them as a file (GDPR 15, 20), and everything of them taken out (GDPR 17).

Who is meant is told by names: that of the account, and others that the person goes by. An event is theirs where its personal half
(actor, original
line, personal keys of data) has one of them as a word, whatever its case. `anna` is not in `anna.smith` nor in `anna@corp`: such a
name is given
beside it.

Erasing empties that half in the row and takes the line with its salt out of the frame. What the chain proves is the commitment to it, which
stays and says nothing any more. It runs batch by batch, each in one transaction with its declaration in `erased_lines`, so that a kill in
its middle leaves a state that `verify` finds whole, and it goes on where it stood. Analytics know a user by a pseudonym, which whoever
knows the name can find again: what they counted of it goes in the same transactions. At the end the names are forgotten; the request
stays, with its reason, its numbers and who wanted it. What cannot be erased is counted: the audit log, which the law asks for, and a
name in
the core half of an event, where no parser of ours puts one.
"""

import json
import logging
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import zstandard

from agent.wire.batch import MalformedBatch, assemble, decode_personal, read_frame
from collector import audit
from collector.query import EventOut, event_out
from collector.store import analytics, evidence, subjects
from collector.store.subjects import Erasure
from collector.vault import Vault

if TYPE_CHECKING:
    from collector.audit import Who
    from collector.store.database import Anyone
    from collector.store.retention import Hold

_log = logging.getLogger("linewarden.collector.subject")

NAMES_MAX = 50
NAME_CHARS_MIN, NAME_CHARS_MAX = 2, 200
BATCHES_AT_ONCE = 20
"""Batches in one transaction: what is done again after a kill, and how long their rows are locked."""


class Refused(Exception):
    """It cannot be done. The text says why, and what to do."""


@dataclass(slots=True)
class Erased:
    """What was done, and what is left."""

    erasure_id: int
    events: int = 0
    batches: int = 0
    elsewhere: dict[str, int] = field(default_factory=dict)
    """Rows of other tables, by table and column."""
    analytics_rows: int = 0
    damaged: list[int] = field(default_factory=list)
    """Batches whose frame cannot be opened: their rows are as they were, and the request stays open."""
    core_mentions: int = 0
    audit_mentions: int = 0
    done: bool = False


def checked(names: Sequence[str]) -> list[str]:
    """Names that can be looked for. Raises Refused."""
    found = list(dict.fromkeys(name.strip() for name in names))
    for name in found:
        if not NAME_CHARS_MIN <= len(name) <= NAME_CHARS_MAX or "\0" in name or not name.isprintable():
            raise Refused(
                f"{name[:40]!r} is no name to look for: {NAME_CHARS_MIN} to {NAME_CHARS_MAX} characters that can be printed"
            )
    if not 0 < len(found) <= NAMES_MAX:
        raise Refused(f"{len(found)} names were given; 1 to {NAMES_MAX} are taken")
    return found


_LETTERS = "0-9A-Za-z\u00c0-\u024f\u0370-\u03ff\u0400-\u04ff"
_WORD = _LETTERS + "_.@-"
"""Written out, since what a class of letters means goes by the locale of the database."""


def pattern_of(names: Sequence[str]) -> str:
    """The expression that finds the person: the same for PostgreSQL and for Python."""
    forms = {form for name in names for form in (name, json.dumps(name, ensure_ascii=False)[1:-1])}
    either = "|".join("".join(map(_either_case, form)) for form in sorted(forms))
    return f"(^|[^{_WORD}])({either})($|[^{_WORD}]|[.]($|[^{_LETTERS}]))"


def _either_case(char: str) -> str:
    cases = sorted({case for case in (char, char.lower(), char.upper()) if len(case) == 1})
    if len(cases) > 1:
        return f"[{''.join(cases)}]"
    return char if char.isalnum() or char == "_" else "\\" + char


def python_pattern(names: Sequence[str]) -> "re.Pattern[str]":
    """The same, ready to be used."""
    return re.compile(pattern_of(names))


async def _days(connection: "Anyone") -> list[date]:
    found = await evidence.days(connection)
    return sorted(found["security_events"] | found["evidence"])


# ── erasing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def request(
    connection: "Anyone",
    who: "Who",
    names: Sequence[str],
    reason: str,
    holds: "Sequence[Hold]",
    standing_until: Any = None,
) -> int:
    """Note a request to erase; its number. Raises Refused."""
    names = checked(names)
    if python_pattern(names).search(reason):
        raise Refused(
            "the reason names the person, and it stays. Give one without: a number of a case, an article of a law"
        )
    await _not_held(connection, names, holds)
    async with connection.transaction():
        number = await subjects.request(
            connection, names=names, reason=reason, by=name_of(who), standing_until=standing_until
        )
        data = {"reason": reason, "standing_until": str(standing_until) if standing_until else None}
        objects = [("erasure", str(number))]
        await audit.record(
            connection, who, "subject.erase.requested", target=f"erasure {number}", data=data, objects=objects
        )
    return number


def name_of(who: "Who") -> str:
    """Who asks, as it is kept with the request."""
    return f"{who.kind} {who.name}"


async def confirm(connection: "Anyone", who: "Who", number: int, holds: "Sequence[Hold]", *, two_persons: bool) -> None:
    """Let a request run. Raises Refused."""
    found = await _known(connection, number)
    if found.state != "requested":
        raise Refused(f"erasure {number} is {found.state}. See: linewarden-collector subject list")
    if two_persons and found.requested_by == name_of(who):
        raise Refused(
            f"erasure {number} was requested by {found.requested_by}: somebody else has to confirm it "
            "([privacy] erase_two_persons of the settings)"
        )
    await _not_held(connection, found.names or [], holds)
    async with connection.transaction():
        await subjects.confirm(connection, number, name_of(who))
        objects = [("erasure", str(number))]
        await audit.record(connection, who, "subject.erase.confirmed", target=f"erasure {number}", objects=objects)


async def withdraw(connection: "Anyone", who: "Who", number: int) -> None:
    """Take a request back that was not confirmed. Raises Refused."""
    async with connection.transaction():
        if not await subjects.withdraw(connection, number):
            raise Refused(f"there is no erasure {number} that waits. See: linewarden-collector subject list")
        objects = [("erasure", str(number))]
        await audit.record(connection, who, "subject.erase.withdrawn", target=f"erasure {number}", objects=objects)


async def _known(connection: "Anyone", number: int) -> Erasure:
    found = await subjects.one(connection, number)
    if found is None:
        raise Refused(f"there is no erasure {number}. See: linewarden-collector subject list")
    return found


async def _not_held(connection: "Anyone", names: Sequence[str], holds: "Sequence[Hold]") -> None:
    hold = await subjects.held(connection, pattern_of(names), holds)
    if hold is not None:
        raise Refused(
            f"legal hold {hold} covers events of this person: they have to stay while it lasts (GDPR 17 (3) e). "
            f"See: linewarden-collector hold list; hold release {hold}"
        )


async def run(connection: "Anyone", who: "Who", number: int, holds: "Sequence[Hold]") -> Erased:
    """Do, or go on with, a request that was confirmed. Raises Refused."""
    found = await _known(connection, number)
    if found.state != "running" or found.names is None:
        raise Refused(f"erasure {number} is {found.state}. See: linewarden-collector subject list")
    if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", subjects.ADVISORY_LOCK):
        raise Refused("another erasure runs now. It may be tried again when that is done")
    try:
        await _not_held(connection, found.names, holds)
        return await _erase(connection, who, found, found.names)
    finally:
        if not connection.is_closed():
            await connection.execute("SELECT pg_advisory_unlock($1)", subjects.ADVISORY_LOCK)


async def _erase(connection: "Anyone", who: "Who", request_: Erasure, names: Sequence[str]) -> Erased:
    pattern, expression = pattern_of(names), python_pattern(names)
    result = Erased(request_.erasure_id)
    vault = Vault()
    await vault.load(connection)
    since = request_.finished.date() - timedelta(days=1) if request_.finished is not None else date.min
    for day in await _days(connection):
        if day < since:
            continue  # done; what stands is about what came since
        before = result.events
        wanted = await subjects.batches_of_rows(connection, day, pattern)
        for batch in await subjects.batches_without_rows(connection, day):
            wanted.setdefault(batch, [])
        numbers = sorted(wanted)
        for at in range(0, len(numbers), BATCHES_AT_ONCE):
            async with connection.transaction():
                await analytics.hold_still(connection)
                some = {batch: wanted[batch] for batch in numbers[at : at + BATCHES_AT_ONCE]}
                actors, done = await _erase_some(connection, day, some, expression, result)
                await _forget(connection, vault, actors, result)
                await _note_lines(connection, who, request_.erasure_id, done)
        if result.events > before:
            await subjects.vacuum(connection, day)
    async with connection.transaction():
        await analytics.hold_still(connection)
        # Retention may have dropped the events while what was counted of them is still there: then only the names are left to go by.
        await _forget(connection, vault, {form for name in names for form in _cases(name)}, result)
        result.elsewhere = await subjects.blank_elsewhere(connection, pattern)
        if request_.finished is None:
            result.core_mentions = await subjects.mentions(connection, pattern)
            result.audit_mentions = len(await subjects.audit_records(connection, pattern))
        if not result.damaged:
            result.done = await subjects.finish(connection, request_.erasure_id)
        if result.events or result.elsewhere or result.analytics_rows or result.done or request_.finished is None:
            data = {
                "events": result.events,
                "batches": result.batches,
                "elsewhere": result.elsewhere,
                "analytics_rows": result.analytics_rows,
                "damaged": len(result.damaged),
            }
            objects = [("erasure", str(request_.erasure_id))]
            target = f"erasure {request_.erasure_id}"
            await audit.record(connection, who, "subject.erased", target=target, data=data, objects=objects)
    return result


async def _note_lines(connection: "Anyone", who: "Who", erasure: int, batches: Sequence[int]) -> None:
    """Record which lines were taken out, with them: `verify` believes an erasure of a line by its record, and not by its row."""
    if not batches:
        return
    objects = [("erasure", str(erasure)), *(("erased", f"{batch}/{erasure}") for batch in batches)]
    data = {"batches": len(batches)}
    await audit.record(connection, who, "subject.lines.erased", target=f"erasure {erasure}", data=data, objects=objects)


async def _erase_some(
    connection: "Anyone", day: date, some: dict[int, list[int]], expression: "re.Pattern[str]", result: Erased
) -> tuple[set[str], list[int]]:
    """Take the person out of some batches of a day; as whom analytics may have counted them by these, and which batches had them."""
    actors: set[str] = set()
    done: list[int] = []
    for batch, places in some.items():
        before = result.batches
        actors |= await _erase_batch(connection, day, batch, places, expression, result)
        done += [batch] if result.batches > before else []
    return actors, done


async def _erase_batch(
    connection: "Anyone", day: date, batch: int, places: Sequence[int], expression: "re.Pattern[str]", result: Erased
) -> set[str]:
    """Take the person out of a batch; as whom analytics may have counted them by it."""
    wire = await subjects.frame(connection, day, batch)
    if wire is None:
        return set()
    try:
        frame = read_frame(wire)
        lines = frame.personal_lines()
    except MalformedBatch as error:
        _log.error("batch %d cannot be opened, nothing of it is erased: %s", batch, error)
        result.damaged.append(batch)
        return set()
    # What the row says counts, and what the frame says: either may be all that is left of it.
    named = set(places) | {n for n, line in enumerate(lines) if line and expression.search(_text(line))}
    blank = sorted(n for n in named if n < len(lines) and (lines[n] or n in places))
    if not blank:
        return set()
    actors = {actor for n in blank if (actor := _actor(lines[n]))}
    actors |= await subjects.actors(connection, day, batch, blank)
    for n in blank:
        lines[n] = b""
    personal = (
        zstandard.ZstdCompressor(level=1, write_content_size=True).compress(b"\n".join(lines)) if any(lines) else b""
    )
    await subjects.blank(
        connection, day, batch, blank, assemble(frame.header_bytes, frame.core_z, personal), result.erasure_id
    )
    result.events += len(blank)
    result.batches += 1
    # A line that only names the person may be about what somebody else did, who stays.
    return {actor for actor in actors if expression.search(actor)}


async def _forget(connection: "Anyone", vault: Vault, actors: set[str], result: Erased) -> None:
    for actor in sorted(actors):
        result.analytics_rows += await analytics.forget(connection, vault.pseudonym(actor))


def _cases(name: str) -> set[str]:
    return {name, name.lower(), name.upper(), name.title()}


def _actor(line: bytes) -> str | None:
    try:
        return decode_personal(line).actor
    except MalformedBatch:
        return None


def _text(line: bytes) -> str:
    """The words of a personal line."""
    try:
        named = decode_personal(line)
    except MalformedBatch:
        return line.decode("utf-8", "replace")
    values = json.dumps(named.data, ensure_ascii=False) if named.data else ""
    return "\n".join(text for text in (named.actor, named.raw, values) if text)


async def go_on(connection: "Anyone", holds: "Sequence[Hold]") -> list[Erased]:
    """Go on with what was begun, and with what stands: events that came late."""
    done = []
    for erasure in await subjects.running(connection):
        try:
            result = await run(connection, audit.Who.system(), erasure.erasure_id, holds)
        except Refused as error:
            _log.warning("erasure %d waits: %s", erasure.erasure_id, error)
        else:
            done.append(result)
    return done


# ── exporting ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def events(connection: "Anyone", names: Sequence[str]) -> "AsyncIterator[list[EventOut]]":
    """All events of a person, a page at a time."""
    pattern = pattern_of(checked(names))
    for day in await _days(connection):
        after = (-1, -1)
        while rows := await subjects.page(connection, day, pattern, after):
            yield [event_out(row, None) for row in rows]
            after = rows[-1]["batch_id"], rows[-1]["idx"]


async def beside(connection: "Anyone", names: Sequence[str]) -> dict[str, Any]:
    """What other tables have of a person."""
    pattern = pattern_of(checked(names))
    return {
        "elsewhere": await subjects.rows_elsewhere(connection, pattern),
        "audit": await subjects.audit_records(connection, pattern),
        "core_mentions": await subjects.mentions(connection, pattern),
    }


async def exported(connection: "Anyone", who: "Who", count: int, reason: str) -> None:
    """Record that it was done: how much, and why, and not of whom."""
    await audit.record(connection, who, "subject.exported", data={"events": count, "reason": reason})
