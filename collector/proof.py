"""Proof over the API: checkpoints, and the ways that lead from a batch, or from an earlier checkpoint, to the root of one (RFC 9162).

What an auditor gets here can be checked without us: `leaf` hashed as RFC 9162 says, folded along `path`, is the root that `note` signs.
"""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from litestar import Request, get
from litestar.datastructures import State
from litestar.params import QueryParameter
from msgspec import Struct

from agent.wire.batch import MalformedBatch, read_frame
from collector.evidence.bundle import NotProvable, wanted_of
from collector.problems import Problem
from collector.store import events, evidence, tree
from collector.store.database import NUMBER_MAX, Database
from collector.store.events import BadFilter
from collector.store.merkle import MissingTile, consistency, inclusion
from collector.store.tree import StoredCheckpoint

if TYPE_CHECKING:
    from collector.access import Caller

LIMIT_MAX = 1_000


class CheckpointOut(Struct):
    """A signed root. `note`: as it was written off the machine, a signed note of C2SP."""

    number: int
    made: datetime
    leaves: int
    root: str
    key_id: str
    note: str


class Checkpoints(Struct):
    """Checkpoints, oldest first, and the verifier keys that signed them; `next` is null where there are no more now."""

    checkpoints: list[CheckpointOut]
    keys: dict[str, str]
    next: int | None


class Inclusion(Struct):
    """That a batch is under a root: `leaf` is number `number` of `leaves`. `header` is what the batch's hash, in the leaf, is made of."""

    checkpoint: CheckpointOut
    number: int
    leaf: str
    path: list[str]
    header: str


class Consistency(Struct):
    """That a root continues an earlier one."""

    checkpoint: CheckpointOut
    earlier: CheckpointOut
    path: list[str]


class SignatureOut(Struct):
    """The signature of the request that a batch came in: see agent/wire/signature.py."""

    key_id: str
    signed: str
    signature: str


class Proven(Struct):
    """What proves a batch besides its frame. `leaf`: its number in the tree; `checkpoint`: the first that has it."""

    header: str | None = None
    signature: SignatureOut | None = None
    leaf: int | None = None
    checkpoint: int | None = None


async def proof_of(database: Database, batch_id: int, received: datetime, wire: bytes) -> Proven:
    """What there is of it."""
    found = Proven()
    try:
        found.header = read_frame(wire).header_bytes.decode()
    except (MalformedBatch, UnicodeDecodeError):
        found.header = None
    async with database.connection() as connection:
        begin, end = evidence.bounds(received.date())
        signature = await evidence.signature_of(connection, begin, end, batch_id)
        if signature is not None:
            found.signature = SignatureOut(signature.key_id, signature.signed, signature.signature.hex())
        found.leaf = await tree.leaf_of_batch(connection, batch_id)
        if found.leaf is not None:
            first = await tree.checkpoint(connection, None, leaves=found.leaf + 1)
            found.checkpoint = first.checkpoint_id if first is not None else None
    return found


def _out(stored: StoredCheckpoint) -> CheckpointOut:
    return CheckpointOut(
        stored.checkpoint_id, stored.made, stored.leaves, stored.root, stored.key_id, stored.note
    )  # fmt: skip


@get("/v1/checkpoints", opt={"access": "audit"}, tags=["evidence"], summary="Signed roots over everything accepted")
async def get_checkpoints(
    state: State,
    after: Annotated[
        int, QueryParameter(name="after", ge=0, le=NUMBER_MAX, description="Number of the last that is known")
    ] = 0,
    limit: Annotated[int, QueryParameter(name="limit", ge=1, le=LIMIT_MAX)] = 100,
) -> Checkpoints:
    """Oldest first."""
    database: Database = state.database
    async with database.connection() as connection:
        found = await tree.checkpoints(connection, after=after, limit=limit + 1)
        keys = await tree.keys(connection)
    more = found[limit - 1].checkpoint_id if len(found) > limit else None
    return Checkpoints([_out(one) for one in found[:limit]], keys, more)


@get(
    "/v1/checkpoints/{number:int}/proof",
    opt={"access": "audit"},
    tags=["evidence"],
    summary="That an event, or an earlier checkpoint, is under a signed root",
)
async def get_proof(
    request: Request[Any, Any, Any],
    state: State,
    number: int,
    event: Annotated[str | None, QueryParameter(name="event", max_length=300, description="Id of an event")] = None,
    earlier: Annotated[
        int | None, QueryParameter(name="earlier", ge=1, le=NUMBER_MAX, description="Number of a checkpoint")
    ] = None,
) -> Inclusion | Consistency:
    """Give one of `event` and `earlier`."""
    if (event is None) == (earlier is None):
        raise Problem(400, "give event, the id of an event, or earlier, the number of a checkpoint", code="filter")
    database: Database = state.database
    caller: Caller = request.auth
    if event is not None and not await _visible(database, event, caller):
        raise Problem(404, f"there is no event {event}", code="event")
    async with database.connection() as connection:
        point = await _checkpoint(connection, number)
        try:
            if earlier is not None:
                return await _consistency(connection, point, await _checkpoint(connection, earlier))
            return await _inclusion(connection, point, event or "")
        except MissingTile as error:
            raise Problem(
                409, f"The tree is not whole: {error}. Run: linewarden-collector verify", code="tree"
            ) from None


async def _visible(database: Database, event: str, caller: "Caller") -> bool:
    """Whether the caller may see the event: what lies outside of its scope does not exist for it."""
    try:
        ((agent_id, buffer_id, lane, no), (idx,)) = next(iter(wanted_of([event]).items()))
        found = await events.one(
            database, agent_id=agent_id, buffer_id=buffer_id, lane=lane, no=no, idx=idx, scope=caller.scope
        )
    except NotProvable as error:
        raise Problem(400, f"{error}", code="event") from None
    except BadFilter:
        return False
    return found is not None


async def _checkpoint(connection: Any, number: int) -> StoredCheckpoint:
    found = await tree.checkpoint(connection, number) if 0 < number <= NUMBER_MAX else None
    if found is None:
        raise Problem(404, f"there is no checkpoint {str(number)[:30]}", code="checkpoint")
    return found


async def _consistency(connection: Any, point: StoredCheckpoint, earlier: StoredCheckpoint) -> Consistency:
    if earlier.leaves > point.leaves:
        raise Problem(
            400, f"checkpoint {earlier.checkpoint_id} has more leaves than {point.checkpoint_id}", code="filter"
        )
    ranges = consistency(earlier.leaves, point.leaves) if earlier.leaves else []
    path = (await tree.tree_for(connection, ranges)).hashes(ranges)
    return Consistency(_out(point), _out(earlier), [hash_.hex() for hash_ in path])


async def _inclusion(connection: Any, point: StoredCheckpoint, event: str) -> Inclusion:
    (batch,) = wanted_of([event])
    kept = await evidence.stream_batches(connection, *batch, batch[3])
    leaf = await tree.leaf_of_batch(connection, kept[0].batch_id) if kept else None
    if not kept or leaf is None or leaf >= point.leaves:
        text = f"the batch of event {event} is not under checkpoint {point.checkpoint_id}. A later one may have it"
        raise Problem(404, text, code="event")
    ranges = inclusion(leaf, point.leaves)
    path = (await tree.tree_for(connection, ranges)).hashes(ranges)
    body = tree.batch_leaf(await tree.batch_row(connection, kept[0].batch_id))
    try:
        header = read_frame(kept[0].frame).header_bytes.decode()
    except MalformedBatch as error:
        raise Problem(
            409, f"The frame of the batch is damaged: {error}. Run: linewarden-collector verify", code="frame"
        ) from None
    return Inclusion(_out(point), leaf, body.decode(), [hash_.hex() for hash_ in path], header)


ROUTES: list[Any] = [get_checkpoints, get_proof]
