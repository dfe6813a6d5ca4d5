"""Who did what: the one way into the audit log.

`record` writes within the caller's transaction, so that what was done and its record are there both or not at all; make it the last thing
there, since others that record wait until the transaction ends. What is only read is recorded before it is answered.

Refusals can come in floods, so they are not written one by one: `Refusals` counts them by who, address and reason. The first of a kind
is written within a second, the rest of its minute as one record with their number.
"""

import asyncio
import base64
import getpass
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from litestar import Request, get
from litestar.datastructures import State
from litestar.params import QueryParameter
from msgspec import Struct

from collector.background import Pulse
from collector.bodies import moment
from collector.problems import Problem
from collector.store import audit as store
from collector.store import states
from collector.store.audit import GENESIS, Record, record_hash
from collector.store.database import StoreMisconfigured, StoreUnavailable, translated
from collector.store.events import BadFilter, TooSlow

if TYPE_CHECKING:
    from collector.access import Caller
    from collector.store.database import Anyone, Database

__all__ = ["GENESIS", "Kind", "Record", "Refusals", "Result", "Who", "record", "record_hash"]

_log = logging.getLogger("linewarden.collector")

Kind = Literal["key", "user", "agent", "system", "command", "nobody"]
Result = Literal["success", "failure", "refused"]
KINDS_MAX = 200
"""Kinds of refusals that are told apart in a minute; more are counted together, as of many addresses."""
EVERY_S = 1.0
MINUTE_S = 60.0
STOP_S_MAX = 5.0
MANY = "(many)"


@dataclass(frozen=True, slots=True)
class Who:
    """Who does something, and from where."""

    name: str
    kind: Kind
    role: str = ""
    address: str = ""

    @classmethod
    def command(cls) -> Self:
        """Whoever runs a command here: the user of the operating system."""
        try:
            name = getpass.getuser()
        except (KeyError, OSError):
            name = "(unknown)"
        return cls(name, "command")

    @classmethod
    def system(cls) -> Self:
        """The collector itself."""
        return cls("collector", "system")

    @classmethod
    def nobody(cls, address: str) -> Self:
        """Somebody who did not say who they are."""
        return cls("", "nobody", "", address)


async def record(
    connection: "Anyone", who: Who, action: str, *, target: str = "", result: Result = "success",
    data: Mapping[str, Any] | None = None, objects: "Iterable[states.Named]" = (),
) -> Record:  # fmt: skip
    """Add a record in the caller's transaction: the last thing there. Raises StoreUnavailable, StoreMisconfigured.

    `objects`: what was changed, of the kinds of store/states.py. The record then holds what they are now, and `verify` holds them to it.
    """
    if objects:
        with translated():
            data = {**(data or {}), "state": await states.digests(connection, objects)}
    return await store.append(
        connection, who=who.name, who_kind=who.kind, role=who.role, address=who.address, action=action, target=target, result=result,
        data=data,
    )  # fmt: skip


@dataclass(slots=True)
class _Kind:
    """What is known of one kind of refusals in its minute."""

    who: Who
    reason: str
    target: str
    since: float
    waiting: int = 0
    written: bool = False
    targets: set[str] = field(default_factory=set)


class Refusals:
    """Counts what was refused, and writes it behind."""

    def __init__(self, database: "Database") -> None:
        self._database = database
        self._kinds: dict[tuple[Who, str], _Kind] = {}
        self.pulse = Pulse()
        self.total = 0

    def note(self, who: Who, reason: str, target: str) -> None:
        """Count one. `reason`: the code of the problem. Does no I/O."""
        self.total += 1
        key = (who, reason)
        if key not in self._kinds and len(self._kinds) >= KINDS_MAX:
            key = (Who(MANY, "nobody", "", MANY), reason)
            if key not in self._kinds and len(self._kinds) >= 2 * KINDS_MAX:
                key = (key[0], MANY)
        kind = self._kinds.setdefault(key, _Kind(*key, target, time.monotonic()))
        kind.waiting += 1
        if len(kind.targets) < 5:  # noqa: PLR2004 - an example or two says where it knocks
            kind.targets.add(target)

    async def run(self) -> None:
        """Until cancelled; what is counted then is written first."""
        try:
            while True:
                await asyncio.sleep(EVERY_S)
                await self.write(everything=False)
                self.pulse.ok()
        finally:
            async with asyncio.timeout(STOP_S_MAX):
                await self.write(everything=True)

    async def write(self, *, everything: bool) -> None:
        """Write what is due: what is new, and what has counted for a minute. A failure loses nothing, it is tried again."""
        now = time.monotonic()
        due = [
            (key, kind)
            for key, kind in self._kinds.items()
            if (kind.waiting and (everything or not kind.written)) or now - kind.since >= MINUTE_S
        ]
        waiting = [(kind, kind.waiting, sorted(kind.targets)) for _, kind in due if kind.waiting]
        if waiting:
            try:
                await self._store(waiting)
            except (StoreUnavailable, StoreMisconfigured) as error:
                _log.warning("%d refusals wait to be recorded: %s", sum(count for _, count, _ in waiting), error)
                return
        for kind, count, _ in waiting:
            kind.waiting -= count
            kind.written = True
            kind.targets.clear()
        for key, kind in due:
            if now - kind.since >= MINUTE_S:
                if kind.waiting:
                    kind.since, kind.written = now, False
                else:
                    del self._kinds[key]

    async def _store(self, waiting: list[tuple[_Kind, int, list[str]]]) -> None:
        async with self._database.connection() as connection, connection.transaction():
            for kind, count, targets in waiting:
                data = {"reason": kind.reason, "count": count, "targets": targets}
                await record(connection, kind.who, "access.refused", target=kind.target, result="refused", data=data)


class RecordOut(Struct):
    """A record as it is answered; `prev` and `hash` in hex."""

    no: int
    time: datetime
    who: str
    who_kind: str
    role: str
    address: str
    action: str
    target: str
    result: str
    data: dict[str, Any]
    prev: str
    hash: str


class Trail(Struct):
    """Records, newest first, and the cursor behind them; `next` is null where there are no more."""

    records: list[RecordOut]
    next: str | None


_CURSOR_BYTES = 8


def _cursor(no: int) -> str:
    return base64.urlsafe_b64encode(no.to_bytes(_CURSOR_BYTES)).decode().rstrip("=")


def _decoded(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        found = base64.b64decode(text + "=" * (-len(text) % 4), "-_", validate=True)
    except ValueError:
        found = b""
    if len(found) != _CURSOR_BYTES or (no := int.from_bytes(found)) >= 2**63:
        raise Problem(400, "after is not a cursor of ours. Give the `next` of the page before", code="cursor")
    return no


_Text = Annotated[str | None, QueryParameter(max_length=500)]


@get("/v1/audit", opt={"access": "audit"}, tags=["access"], summary="Who did what")
async def get_audit(
    request: Request[Any, Any, Any],
    state: State,
    from_: Annotated[datetime | None, QueryParameter(name="from", description="Inclusive, RFC 3339")] = None,
    to: Annotated[datetime | None, QueryParameter(name="to", description="Exclusive, RFC 3339")] = None,
    who: _Text = None,
    action: Annotated[
        str | None, QueryParameter(max_length=500, description="A name, or `session.*` for all below it")
    ] = None,
    target: _Text = None,
    result: Result | None = None,
    after: Annotated[str | None, QueryParameter(max_length=200, description="`next` of the page before")] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=1_000)] = 100,
) -> Trail:
    """The audit log. It belongs to no place, so it takes a caller who may see all of them. That it was read is recorded in it."""
    caller: Caller = request.auth
    caller.must_see_all()
    wanted = store.Wanted(
        begin=moment("from", from_), end=moment("to", to), who=who, action=action, target=target, result=result
    )
    before = _decoded(after)
    database: Database = state.database
    async with database.connection() as connection:
        try:
            found = await store.page(connection, wanted, before=before, limit=limit + 1)
        except BadFilter as error:
            raise Problem(400, f"a filter cannot be used: {error}", code="filter") from None
        except TooSlow as error:
            raise Problem(504, f"{error}. Narrow it: give from and to", code="slow") from None
        data = {"query": str(request.url.query)[:1_000], "records": len(found[:limit])}
        await record(connection, caller.who, "audit.read", target="/v1/audit", data=data)
    out = [
        RecordOut(
            **{name: getattr(each, name) for name in RecordOut.__struct_fields__ if name not in ("prev", "hash")},
            prev=each.prev.hex(),
            hash=each.hash.hex(),
        )
        for each in found[:limit]
    ]
    return Trail(out, _cursor(found[limit - 1].no) if len(found) > limit else None)


ROUTES: list[Any] = [get_audit]
