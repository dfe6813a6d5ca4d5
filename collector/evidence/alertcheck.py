"""Alerts and their history, held against each other, the events that they count, and the audit log.

An alert stands where the last line of its history says, says what its events say, and counts each of them once; every alert event that
was read is counted. What people did has its audit record, and each such record its line; the collector alone opens alerts, opens them
again, and closes what it raised itself by an event that says so.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from collector.evidence.finding import Finding
from collector.store import alertcheck as store

if TYPE_CHECKING:
    from collector.store.database import Anyone


async def alert_findings(connection: "Anyone") -> list[Finding]:
    """All of it, in the caller's transaction."""
    found = [
        _alert("alert.changed", "does not stand where its history left it", row["alert_id"], ("state",))
        for row in await store.standing_differs(connection)
    ]
    found += [
        _alert("alert.changed", "is not what its events say", row["alert_id"], tuple(row["columns"]))
        for row in await store.content_differs(connection)
    ]
    found += [
        _event("alert.forged", f"is counted in alert {row['alert_id']} and was never stored", row)
        for row in await store.counted_nothing(connection)
    ]
    if (read := await store.read_until(connection)) is not None:
        text = "is an alert that was read, and no alert counts it"
        found += [_event("alert.deleted", text, row) for row in await store.uncounted(connection, read)]
    return found + await _history(connection)


def _alert(kind: str, text: str, number: int, columns: tuple[str, ...] = ()) -> Finding:
    return Finding(kind=kind, text=text, table="alerts", record=number, columns=columns)


def _event(kind: str, text: str, row: Any) -> Finding:
    return Finding(
        kind=kind, text=text, agent=str(row["agent_id"]), buffer=row["buffer_id"].hex, lane=row["lane"], batch=row["batch_no"],
        event=row["idx"], table="alert_events",
    )  # fmt: skip


# ── what was done ──


@dataclass(slots=True)
class Done:
    """What the audit log knows of work on alerts, to be ticked off by the lines of the history."""

    single: set[tuple[int, str, str, int]] = field(default_factory=set)
    """Alert, who, verb, version behind it."""
    chosen: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Selection, who, verb → alerts."""
    incident: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    """Incident, who, verb → alerts."""
    whole: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    """Incident, who, verb → actions."""

    def add(self, row: Any) -> None:
        """Take in a record."""
        what, _, verb = row["action"].partition(".")
        name = row["target"].rpartition("/")[2]
        if what == "alert" and name.isdecimal():
            self.single.add((int(name), row["who"], verb, int(row["version"] or 0)))
        elif what == "alerts":
            self.chosen[name, row["who"], verb] += int(row["changed"] or 0)
        elif what == "incident" and name.isdecimal():
            self.incident[int(name), row["who"], verb] += int(row["alerts"] or 0)
            self.whole[int(name), row["who"], verb] += 1


async def _history(connection: "Anyone") -> list[Finding]:
    since = await store.oldest_record(connection)
    done = Done()
    for row in await store.actions(connection):
        done.add(row)
    lines = [row for row in await store.lines(connection) if since is None or row["at"] >= since]
    people = [row for row in lines if row["who_kind"] != "system"]
    system = [row for row in lines if row["who_kind"] == "system"]
    found = list(_people(people, done))
    found += _left(done, *await store.alerts_there(connection))
    return found + await _system(connection, system)


def _people(lines: "Iterable[Any]", done: Done) -> Iterator[Finding]:
    for row in lines:
        who, verb = row["who"], row["action"]
        if row["alert_id"] is None:
            known = _take(done.whole, (row["incident_id"], who, verb))
        elif row["selection"] is not None:
            known = _take(done.chosen, (row["selection"], who, verb))
        elif (one := (row["alert_id"], who, verb, row["version"] or 0)) in done.single:
            done.single.discard(one)
            known = True
        else:
            known = _take(done.incident, (row["incident_id"], who, verb))
        if not known:
            text = f"{verb} by a {row['who_kind']}: no audit record knows of it"
            yield Finding(kind="history.forged", text=text, table="alert_history", record=row["history_id"])


def _take(counter: "Counter[Any]", key: Any) -> bool:
    counter[key] -= 1
    return counter[key] >= 0


def _left(done: Done, there: set[int], gone: bool) -> Iterator[Finding]:  # noqa: FBT001 - what `alerts_there` answers
    """Records that no line was found for. What belongs to an alert that retention took away has left with it."""
    for number, _, verb, version in sorted(done.single):
        if number in there or not gone:
            text = f"the audit log knows of {verb} (version {version}) of alert {number}, and the history does not"
            yield Finding(kind="history.deleted", text=text, table="alert_history", record=number)
    if gone:
        return
    for name, counter in (("selection", done.chosen), ("incident", done.incident), ("incident", done.whole)):
        for (of, _, verb), missing in counter.items():
            if missing > 0:
                text = f"the audit log knows of {verb} with {name} {of}, and {missing} lines of the history are gone"
                yield Finding(kind="history.deleted", text=text, table="alert_history")


async def _system(connection: "Anyone", lines: Sequence[Any]) -> list[Finding]:
    """The collector closes what it raised, by an event of its own, and does nothing else but open."""
    over = await store.cleared(connection, [row["event"] for row in lines if row["event"]])
    return [
        Finding(
            kind="history.forged", text=f"{row['action']} in the name of the collector, and no event of it says so",
            table="alert_history", record=row["history_id"],
        )
        for row in lines
        if row["action"] != "clear" or row["event"] not in over
    ]  # fmt: skip
