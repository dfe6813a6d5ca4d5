"""Events of the centre itself, stored in a stream of its own, chained like any other."""

import time
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from agent.wire.batch import EVENTS_MAX, Frame, encode_safely, read_frames, seal
from agent.wire.event import LANE_URGENT, Event
from collector.store import batches
from collector.store.batches import Head, Transaction
from collector.store.database import Database


async def tell(
    database: Database,
    events: Sequence[Event],
    *,
    about: UUID = batches.CENTRE,
    first: Callable[[Transaction], Awaitable[bool]] | None = None,
) -> bool:
    """Store events at the place of the agent that they are about.

    `first` may say, in the same transaction, that there is nothing to tell.
    """
    buffer = await batches.centre_buffer(database)
    async with batches.transaction(database, batches.CENTRE) as transaction:
        if first is not None and not await first(transaction):
            return False
        await tell_within(transaction, buffer, [(await transaction.place_of(about), events)])
    return True


async def tell_within(transaction: Transaction, buffer: UUID, placed: Sequence[tuple[int, Sequence[Event]]]) -> None:
    """Store events in a transaction of `batches.CENTRE` that is there, each with the place that it is about; `buffer`: the centre's."""
    stream = (buffer, LANE_URGENT)
    heads = await transaction.lock_heads([stream])
    head = heads[stream]
    own_place = await transaction.place_of(batches.CENTRE)
    for place_id, events in placed:
        for at in range(0, len(events), EVENTS_MAX):
            frame = _frame(events[at : at + EVENTS_MAX], buffer, head)
            head.no, head.hash = frame.header.no, frame.hash
            head.batches, head.events = head.batches + 1, head.events + frame.header.events
            await transaction.store([frame], place_id, careful=True)
    await transaction.move_heads(heads)
    await transaction.note_agent(heads.values(), place_id=own_place, version=None, clock_offset_us=None, status=None)


def _frame(events: Sequence[Event], buffer: UUID, head: Head) -> Frame:
    core, personal = encode_safely(events)
    sealed = seal(
        core,
        personal,
        agent=str(batches.CENTRE),
        buffer=buffer.hex,
        lane=LANE_URGENT,
        no=head.no + 1,
        prev=head.hash,
        sealed=time.time_ns() // 1000,
    )
    return next(read_frames(sealed.frame))
