"""What people and the collector change, held against the audit log: see store/states.py for what an object and its digest are.

The audit log is chained and a part of the signed tree; the rows of keys, users, tokens, suppressions, erasures and the like are not. So
each record of a change holds what the object was then, and here each object has to be what its last record says. Records that retention
took away hand on what they said (`audit.carried`).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from collector.evidence.finding import Finding
from collector.store import audit, states
from collector.store.states import GONE, OBJECTS, Object, Recorded, Standing

if TYPE_CHECKING:
    from collector.store.database import Anyone

ENDS: dict[str, tuple[str, ...]] = {
    "key": ("key.revoked", "agent.revoke"),
    "agent": ("agent.revoke",),
    "token": ("token.revoke", "agent.enrol"),
    "user": ("user.disabled",),
    "suppression": ("suppression.ended",),
    "hold": ("hold.released",),
}
"""Actions behind which an object of a kind is not good any more."""


async def state_findings(connection: "Anyone") -> list[Finding]:
    """Objects against their last records, in the caller's transaction."""
    known = await states.recorded(connection)
    found: list[Finding] = []
    for kind, thing in OBJECTS.items():
        rows = await states.now(connection, kind)
        found += _compared(kind, thing, rows, known.get(kind, {}))
    lines = [finding for finding in found if finding.table == "erased_lines"]
    others = [finding for finding in found if finding.table != "erased_lines"]
    others += [await _located(connection, finding) for finding in lines]
    return others + await _unconfirmed(connection)


def _compared(kind: str, thing: Object, rows: dict[str, Standing], known: dict[str, Recorded]) -> Iterator[Finding]:
    name = "erasure" if kind == "erased" else kind
    for object_, row in rows.items():
        last = known.get(object_)
        if last is None:
            how = "forged" if name == "erasure" else "unrecorded"
            yield _found(name, how, thing, object_, "no audit record made it")
        elif last.digest == GONE:
            yield _found(
                name, "revived", thing, object_, f"audit record {last.no} ({last.action}) ended it, and it is there"
            )
        elif last.digest != row.digest:
            revived = last.action in ENDS.get(kind, ()) and not row.ended
            text = f"is not what audit record {last.no} ({last.action}) left"
            yield _found(name, "revived" if revived else "changed", thing, object_, text)
    if thing.may_go:
        return
    for object_, last in known.items():
        if object_ not in rows and last.digest != GONE:
            yield _found(
                name, "deleted", thing, object_, f"audit record {last.no} ({last.action}) knows it, and it is gone"
            )


def _found(kind: str, how: str, thing: Object, object_: str, text: str) -> Finding:
    agent = object_ if kind == "agent" else None
    number = int(object_) if object_.isascii() and object_.isdecimal() and len(object_) < 19 else None  # noqa: PLR2004
    said = text if agent or number is not None else f"{object_}: {text}"
    return Finding(kind=f"{kind}.{how}", text=said, agent=agent, table=thing.table, record=number)


async def _located(connection: "Anyone", finding: Finding) -> Finding:
    """The same, with the stream and batch that the lines lie in."""
    object_, _, text = finding.text.partition(": ")
    batch_id, _, erasure = object_.partition("/")
    row = await connection.fetchrow(
        "SELECT agent_id, buffer_id, lane, batch_no FROM evidence WHERE batch_id = $1 LIMIT 1", int(batch_id)
    )
    said = f"lines are declared erased by erasure {erasure}: {text}"
    if row is None:
        return Finding(kind=finding.kind, text=said, table=finding.table, record=int(batch_id))
    return Finding(
        kind=finding.kind, text=said, agent=str(row["agent_id"]), buffer=row["buffer_id"].hex, lane=row["lane"], batch=row["batch_no"],
        table=finding.table,
    )  # fmt: skip


async def _unconfirmed(connection: "Anyone") -> list[Finding]:
    """Erasures that took something out and of which the audit log does not have both records: asked for, and confirmed after that."""
    if (await audit.least(connection) or 1) > 1:
        return []  # the records may have left; what they said of the erasure was handed on
    rows = await connection.fetch(_UNCONFIRMED, timeout=3_600.0)
    text = "lines were taken out, and no two audit records ask for it and confirm it before"
    return [Finding(kind="erasure.forged", text=text, table="erasures", record=row[0]) for row in rows]


_UNCONFIRMED = """
SELECT DISTINCT l.erasure_id FROM erased_lines l WHERE NOT EXISTS (
    SELECT FROM audit_log r JOIN audit_log c ON c.target = r.target AND c.no > r.no
    WHERE r.target = 'erasure ' || l.erasure_id AND r.action = 'subject.erase.requested' AND c.action = 'subject.erase.confirmed'
) ORDER BY 1
"""
