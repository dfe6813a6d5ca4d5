"""One unit behind a gateway: what is asked of it each cycle, and what its silence and its exceptions cost whom.

    answers ──► blocks as planned                    silent FAILURES_MAX times ──► suspended: asked once in a while, at the end
       ▲                                                  of a cycle and only in the time that is left of it; when it answers, all
       └──────────────────── answers again ◄───────────── is read again

A silent unit costs its neighbours FAILURES_MAX timeouts (telegraf#11782, node-red-contrib-modbus#446), then nothing but idle time.
Every FULL_PATIENCE_EVERYth try takes a whole timeout, for it may have become slow: one in a minute or two.

A block that is not answered, or not with an answer to it, costs itself and not its unit as long as another block is answered: it is asked
last from then on, so that it delays nothing, and is cut in halves until what is wrong stands alone.

A unit that refuses a block is asked for halves of it until the point that it refuses stands alone (telegraf#14671); that is remembered,
the point is named, and asked for again every RETRY_S. One that says nothing where others would refuse is found out likewise, a cut at a
time. An exception is an event when it begins, when it becomes another, and when it ends.

A unit that is busy (exception 5 or 6) is asked again in the time that is left of the cycle, then with growing pauses. It is an event only
when it stays so, and once in BUSY_EVENT_S at most: being busy is no answer about an address, and nothing that an attacker is found by.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from agent.component import Report, now_us
from agent.sources.modbus_blocks import Asked, Place, cut
from agent.sources.modbus_events import NAMES_MAX, REMEDIES, SPLITTING, Exceptions, gap_event, where
from agent.sources.modbus_link import (
    BUSY,
    GATEWAY_EXCEPTIONS,
    READS,
    BadAnswer,
    Exceptional,
    Link,
    NoAnswer,
    ShortAnswer,
)
from agent.sources.modbus_plan import Block, Span, plan
from agent.sources.modbus_points import Watch, modicon
from agent.wire.event import Event

FAILURES_MAX: Final = 2
RETRY_S: Final = 60.0
RETRIES_A_CYCLE_MAX: Final = 2
"""Of points that are refused; a hundred of them are no reason to ask a hundred questions at once, nor to wait for each."""
SUSPENDED_S_MIN, SUSPENDED_S_MAX = 1.0, 30.0
FULL_PATIENCE_EVERY: Final = 4
"""Every so many tries a suspended unit gets its whole timeout, however little time is left: it may have become slow."""
PATIENCE_S_MIN: Final = 0.05
SPLITS_A_CYCLE_MAX: Final = 32
"""Requests that find out what a refused block cannot be asked for; the next cycle goes on where this one ended."""
WRONG_A_CYCLE_MAX: Final = 3
"""Blocks with a wrong answer, after which the rest of the unit waits for the next cycle: each may have cost a new connection."""
BUSY_PAUSES_S: Final = (0.05, 0.1, 0.2)
"""Before a busy block is asked again within its cycle, where so much is left of it."""
BUSY_S_MIN, BUSY_S_MAX = 0.2, 10.0
"""How long a block is left alone that stays busy: doubled each time after BUSY_CYCLES_MAX."""
BUSY_CYCLES_MAX: Final = 3
"""Cycles in a row in which a block was busy, after which it is an event."""
UNREAD_MAX: Final = 3
"""Cycles in a row in which a block was not read while its unit was, after which that is a gap."""
BUSY_EVENT_S: Final = 600.0
BUSY_A_CYCLE_MAX: Final = 2
"""Busy answers with no other answer of the unit, after which the rest of it waits for the next cycle."""


class _Busy(Exception):
    """The unit wants to be asked later."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a request may be for this device."""

    registers_max: int
    bits_max: int
    bridge_max: int


@dataclass(slots=True)
class _Round:
    """What came of asking a unit for its blocks, once."""

    answered: bool
    busy: list[tuple[Asked, int]] = field(default_factory=list)
    missed: list[tuple[Asked, NoAnswer]] = field(default_factory=list)

    @property
    def silent(self) -> bool:
        """It ended with a block that was not answered at all."""
        return bool(self.missed) and not isinstance(self.missed[-1][1], BadAnswer)


class Unit:
    """See the module's text. Lives as long as the source; `begin` is called for every connection."""

    def __init__(
        self, unit_id: int, label: str, watches: list[Watch], limits: Limits, source: str, report: Report
    ) -> None:
        self.id = unit_id
        self.label = label
        self.watches = watches
        self.failures = 0
        self.answered_us: int | None = None
        """When it last answered everything that it was asked."""
        self.suspended = False
        self.trouble = ""
        self._remembering = [watch for watch in watches if watch.config.role != "reading"]
        self._limits = limits
        self._source = source
        self._report = report
        self._by_span: dict[Span, list[Watch]] = {}
        for watch in watches:
            self._by_span.setdefault(watch.span, []).append(watch)
        self._cuts: set[tuple[str, int]] = set()
        self._suspects: set[Span] = set()
        """Of blocks that were not answered, or wrongly: these are asked last."""
        self._splits_left = 0
        self._outdated = False
        """The plan has to be rebuilt at the end of the cycle, because of what was learned of the layout."""
        self._cycle = 0
        self._read_at: dict[Span, tuple[int, int]] = {}
        """When a point was read last (cycle, µs), as of the last time that the plan was laid out."""
        self._unread: list[tuple[Block, int]] = []
        """Blocks that are read again after a gap, and when they were read last."""
        self._busy_event_s = -BUSY_EVENT_S
        """When being busy was an event last."""
        self._refused: dict[Span, float] = {}
        """Asked alone, and when again."""
        self._asked: list[Asked] = []
        self._exceptions = Exceptions(source, label, unit_id, report, self._names)
        self._events: list[Event] = []
        self._tries = 0
        self._suspended_tries = 0
        self._again_s = 0.0
        self._wait_s = SUSPENDED_S_MIN

    def begin(self) -> None:
        """A new connection: nothing that was read before counts as just read. What was learned of the layout stays."""
        self._forget_when_read()
        self._lay_out()

    def _forget_when_read(self) -> None:
        """Of what was missed until now the whole unit or source tells."""
        self._read_at.clear()
        for asked in self._asked:
            asked.read = None

    def _lay_out(self) -> None:
        limits = self._limits
        self._outdated = False
        self._read_at |= {span: asked.read for asked in self._asked if asked.read for span in asked.block.spans}
        blocks = plan(
            self._by_span,
            registers_max=limits.registers_max,
            bits_max=limits.bits_max,
            bridge_max=limits.bridge_max,
            cuts=self._cuts,
            apart=self._refused,
        )
        before = {asked.block.spans: asked for asked in self._asked}
        self._asked = [Asked(block, self._by_span) for block in blocks]
        for asked in self._asked:
            asked.read = min((self._read_at[span] for span in asked.block.spans if span in self._read_at), default=None)
            if (same := before.get(asked.block.spans)) is not None:
                asked.misses, asked.busy, asked.again_s = same.misses, same.busy, same.again_s
        self._asked.sort(key=lambda asked: not self._suspects.isdisjoint(asked.block.spans))

    @property
    def requests_planned(self) -> int:
        """Requests that one cycle takes."""
        return len(self._asked)

    def is_due(self, now_s: float) -> bool:
        """A suspended unit may be tried again."""
        return now_s >= self._again_s

    def patience_s(self, left_s: float, timeout_s: float) -> float | None:
        """How long to wait for a suspended unit, with so much of the cycle left; None: not in this cycle."""
        self._tries += 1
        if self._tries % FULL_PATIENCE_EVERY == 0 or left_s >= timeout_s:
            return timeout_s
        return left_s if left_s >= PATIENCE_S_MIN else None

    async def poll(self, link: Link, patience_s: float | None = None, spare_s: float = 0.0) -> None:
        """Ask for everything once; `drain` has what it was worth. Silence ends it and is counted here. Raises NotConnected.

        `spare_s` may be spent on asking again what is busy.
        """
        self._splits_left = SPLITS_A_CYCLE_MAX
        self._cycle += 1
        if self.suspended:
            self._forget_when_read()
        try:
            await self._ask(link, patience_s, spare_s)
        finally:
            if self._outdated:
                self._lay_out()

    async def _ask(self, link: Link, patience_s: float | None, spare_s: float) -> None:
        alive, patience_s = await self._sign_of_life(link, patience_s)
        came = await self._round(link, patience_s, alive=alive)
        if not came.answered and (came.missed or (came.busy and self.suspended)):
            self._nothing(came)
            return
        wrong = [self._missed(asked, error, sure=alive) for asked, error in came.missed]
        if any(wrong):
            self._outdated = True
        if not came.silent:
            await self._again(link, came.busy, spare_s)
            await self._retries(link)
        if came.answered or not self._asked:
            self._works()

    async def _round(self, link: Link, patience_s: float | None, *, alive: bool) -> _Round:
        """Ask for every block that is due. Silence ends it, wrong answers and busy ones do after a few."""
        came = _Round(answered=alive)
        now_s = time.monotonic()
        for asked in [asked for asked in self._asked if now_s >= asked.again_s]:
            try:
                await self._block(link, asked, patience_s)
            except _Busy as error:
                came.busy.append((asked, error.code))
                if len(came.busy) >= BUSY_A_CYCLE_MAX and not came.answered:
                    break
            except NoAnswer as error:
                came.missed.append((asked, error))
                if came.silent or len(came.missed) >= WRONG_A_CYCLE_MAX:
                    break
            else:
                came.answered = True
            patience_s = None
        return came

    async def _sign_of_life(self, link: Link, patience_s: float | None) -> tuple[bool, float | None]:
        """Whether a unit that seems dead answers a single point: then it is a block that it does not answer, and not the unit.

        Every second try of a suspended unit begins so. What comes is thrown away; the plan is asked for next.
        """
        if not self.suspended or self._suspended_tries % 2 == 0 or not self._asked:
            return False, patience_s
        spans = self._asked[0].block.spans
        if len(spans) == 1:
            return False, patience_s
        span = spans[self._suspended_tries // 2 % len(spans)]
        try:
            await link.read(self.id, span.table, span.address, span.count, patience_s)
        except Exceptional as error:
            return error.code not in GATEWAY_EXCEPTIONS, None
        except ShortAnswer:
            return True, None
        except NoAnswer:
            return False, patience_s
        return True, None

    async def _again(self, link: Link, busy: list[tuple[Asked, int]], spare_s: float) -> None:
        """Ask again for what was busy, as long as there is time; what stays busy is left alone for a while."""
        for pause_s in BUSY_PAUSES_S:
            if not busy or pause_s > spare_s:
                break
            spare_s -= pause_s
            await asyncio.sleep(pause_s)
            still: list[tuple[Asked, int]] = []
            for asked, _ in busy:
                try:
                    await self._block(link, asked)
                except _Busy as error:
                    still.append((asked, error.code))
                except NoAnswer as error:
                    if self._missed(asked, error):
                        self._outdated = True
            busy = still
        for asked, code in busy:
            self._stays_busy(asked, code)

    def _stays_busy(self, asked: Asked, code: int) -> None:
        asked.busy += 1
        wait_s = min(BUSY_S_MIN * 2 ** min(max(asked.busy - BUSY_CYCLES_MAX, 0), 10), BUSY_S_MAX)
        now_s = time.monotonic()
        asked.again_s = now_s + wait_s
        self._report.count("busy")
        if asked.busy >= BUSY_CYCLES_MAX and (
            asked.block in self._exceptions or now_s - self._busy_event_s >= BUSY_EVENT_S
        ):
            self._busy_event_s = now_s
            self._exception(asked.block, code)

    async def _retries(self, link: Link) -> None:
        now_s = time.monotonic()
        due = (span for span, again_s in list(self._refused.items()) if now_s >= again_s)
        for span in islice(due, RETRIES_A_CYCLE_MAX):
            await self._retry(link, span)

    def memory(self) -> dict[str, list[Any]]:
        """What its points have to know again after a restart, by their keys."""
        return {watch.key: known for watch in self._remembering if (known := watch.known) is not None}

    def drain(self) -> list[Event]:
        """What was gathered since the last call. To be taken also when `poll` raised: the points know it as reported."""
        events, self._events = self._events, []
        if self._unread:
            events.insert(0, self._gap())
        return events

    def _gap(self) -> Event:
        """One for all blocks that are read again."""
        unread, self._unread = self._unread, []
        self._report.count("gaps")
        names = [name for block, _ in unread for name in self._names(block)]
        more = f" and {len(unread) - 1} more blocks" if len(unread) > 1 else ""
        reason = f"{self.label}: {where(unread[0][0])}{more} could not be read; changes in between are unknown"
        from_us = min(read_us for _, read_us in unread)
        return gap_event(self._source, self.label, self.id, reason, from_us, points=names[:NAMES_MAX])

    def _nothing(self, came: _Round) -> None:
        """Nothing of the unit was answered: it is the unit. Next time another block is asked first, in case it is that block."""
        for asked, _ in came.missed:
            self._last(asked)
        error: Exception = came.missed[-1][1] if came.missed else Exceptional(came.busy[-1][1])
        self._fail(str(error), answered_badly=isinstance(error, BadAnswer))

    def _missed(self, asked: Asked, error: NoAnswer, *, sure: bool = False) -> bool:
        """A block that is not answered, or wrongly, while others of the unit are. Return whether the plan is outdated.

        It may be a slip; of the second time, or where the unit answered for nothing else just before (`sure`), it is the block.
        """
        self._report.count("bad_answers" if isinstance(error, BadAnswer) else "timeouts")
        asked.misses += 1
        self._suspects |= set(asked.block.spans)
        if asked.misses < FAILURES_MAX and not sure:
            self._last(asked)
            return False
        halves = asked.block.halves()
        if halves is None:
            self._refuse(asked.block, str(error), None)
        else:
            self._cuts.add((halves[1].table, halves[1].address))
        return True

    def _last(self, asked: Asked) -> None:
        """Asked last from now on."""
        if asked in self._asked:
            self._asked.remove(asked)
            self._asked.append(asked)

    def _works(self) -> None:
        self.answered_us = now_us()
        self.failures = self._tries = self._suspended_tries = 0
        self.suspended = False
        self._wait_s = SUSPENDED_S_MIN
        self._report.ok(self.label)

    def _fail(self, text: str, *, answered_badly: bool) -> None:
        self.failures += 1
        self.trouble = text
        self._report.count("bad_answers" if answered_badly else "timeouts")
        self._report.fault(f"{self.label}: {text}", self.label)
        if self.failures >= FAILURES_MAX:
            self.suspended = True
            self._suspended_tries += 1
            self._again_s = time.monotonic() + random.uniform(self._wait_s / 2, self._wait_s)  # noqa: S311 (jitter)
            self._wait_s = min(self._wait_s * 2, SUSPENDED_S_MAX)

    # One block ----------------------------------------------------------------------------------------------------------------

    async def _block(self, link: Link, asked: Asked, patience_s: float | None = None) -> None:
        try:
            payload = await self._read(link, asked.block, patience_s)
        except ShortAnswer as error:
            self._answers(asked)
            await self._split(link, asked, f"{error}; its answers are limited", None)
        except Exceptional as error:
            if error.code in GATEWAY_EXCEPTIONS:
                # The gateway answers for a unit that does not: the unit is silent.
                raise NoAnswer(str(error)) from None
            if error.code in BUSY:
                raise _Busy(error.code) from None
            self._answers(asked)
            if error.code in SPLITTING:
                await self._split(link, asked, str(error), error.code)
            else:
                self._exception(asked.block, error.code)
        else:
            self._read_again(asked)
            self._answers(asked)
            self._exception(asked.block, None)
            await self._take(link, asked, payload)

    def _read_again(self, asked: Asked) -> None:
        """Note that it is read, and since when it was not. Being busy now and then is no gap, but waiting."""
        counts = not asked.busy or asked.block in self._exceptions
        if asked.read is not None and self._cycle - asked.read[0] > UNREAD_MAX and counts:
            self._unread.append((asked.block, asked.read[1]))
        asked.read = self._cycle, now_us()

    def _answers(self, asked: Asked) -> None:
        asked.misses = asked.busy = 0
        asked.again_s = 0.0
        if self._suspects:
            self._suspects -= set(asked.block.spans)

    async def _read(self, link: Link, block: Block, patience_s: float | None = None) -> bytes:
        payload = await link.read(self.id, block.table, block.address, block.count, patience_s)
        self._report.count("registers" if READS[block.table] > 2 else "bits", block.count)  # noqa: PLR2004 (3 and 4: registers)
        return payload

    async def _take(self, link: Link, asked: Asked, payload: bytes) -> None:
        """What these bytes are worth. Bytes that are the same as before are worth nothing until a heartbeat is due."""
        now_s, at_us, last = time.monotonic(), now_us(), asked.last
        if last is None or now_s >= asked.due_s:
            places: Iterable[Place] = asked.places
        elif payload == last:
            return
        else:
            places = asked.changed(payload, last)
        again = await self._second_look(link, asked, payload) if asked.confirmed else None
        held = False
        for watch, begin, end in places:
            data = cut(payload, begin, end)
            if watch.confirmed and watch.suspicious(data):
                if again is None or not watch.suspicious(cut(again, begin, end)):
                    held = True
                    self._report.count("changes_not_confirmed")
                    continue
                data = cut(again, begin, end)
            if (event := watch.see(data, at_us, now_s)) is not None:
                self._events.append(event)
        # After a second look the points know other bytes than these: all of them are looked at again next time.
        asked.last = None if held or again is not None else payload
        if places is asked.places:
            # Those seen since then are due later than this says: it is looked at too early, and never too late.
            asked.due_s = min(place.watch.due_s for place in places)

    async def _second_look(self, link: Link, asked: Asked, payload: bytes) -> bytes | None:
        """The same block once more, where a change in it wants to be borne out. None: it cannot be had.

        A point that is no longer changed then keeps its known value, and the next cycle looks again; one that has meanwhile changed
        further is changed all the same.
        """
        if not any(watch.suspicious(cut(payload, begin, end)) for watch, begin, end in asked.confirmed):
            return None
        try:
            return await self._read(link, asked.block)
        except (ShortAnswer, Exceptional):
            return None

    async def _split(self, link: Link, asked: Asked, text: str, code: int | None) -> None:
        """Ask for halves until what is refused stands alone, then lay the plan out anew."""
        halves = asked.block.halves()
        if halves is None:
            self._refuse(asked.block, text, code)
            self._outdated = True
            return
        if self._splits_left <= 0:
            return  # asked for again next cycle, without what was found until now
        self._splits_left -= len(halves)
        self._exceptions.settle(asked.block)
        refused_before = set(self._refused)
        for half in halves:
            await self._block(link, Asked(half, self._by_span))
        if set(self._refused) == refused_before and self._splits_left > 0:
            # Each half is answered: the device does not let one request reach across this address.
            self._cuts.add((halves[1].table, halves[1].address))
        self._outdated = True

    def _refuse(self, block: Block, text: str, code: int | None) -> None:
        names = self._names(block)
        for span in block.spans:
            self._refused[span] = time.monotonic() + RETRY_S
            hint = modicon(span.table, span.address) or REMEDIES[2]
            self._report.fault(
                f"{self.label}: {block.table} {span.address} ({', '.join(names[:NAMES_MAX])}): {text}; {hint}",
                self._part(span),
            )
        self._exception(block, code)

    def _part(self, span: Span) -> str:
        return f"{self.label} {span.table} {span.address}"

    async def _retry(self, link: Link, span: Span) -> None:
        """A point that was refused may be there by now."""
        self._refused[span] = time.monotonic() + RETRY_S
        alone = Asked(Block(*span, (span,)), self._by_span)
        alone.read = self._read_at.get(span)
        try:
            payload = await self._read(link, alone.block)
        except (Exceptional, NoAnswer):
            # Where it is silent: the others answered just now, so it is this address that makes it so.
            return
        self._read_again(alone)
        self._read_at[span] = self._cycle, now_us()
        del self._refused[span]
        self._report.ok(self._part(span))
        self._exception(alone.block, None)
        await self._take(link, alone, payload)
        self._outdated = True

    def _exception(self, block: Block, code: int | None) -> None:
        """An event when what a block answers with becomes another."""
        if (event := self._exceptions.change(block, code)) is not None:
            self._events.append(event)

    def _names(self, block: Block) -> list[str]:
        return [watch.config.name for span in block.spans for watch in self._by_span[span]]


def in_order(units: Iterable[Unit], wanted: Callable[[Unit], bool]) -> list[Unit]:
    """Those wanted; one that was silent a moment ago comes last, so that it does not delay the others."""
    return sorted(filter(wanted, units), key=lambda unit: unit.failures)
