"""Who sent a request of batches: whoever holds the key that signed it, and nothing else counts.

The key is looked up before the body is read, for each request, so that taking it back works with the next one. The signature over the head
is checked then too: a request that has none, or whose time is not now by the collector's clock, may be one of somebody who only knows the
key's id, so its body is taken on the small account of what is not proven. The signature over the batches is checked over what came.

What is refused is told to the SOC as `security.signature.refused`: at once when it is new, then once a minute with how many there were, and
never by more than KINDS_MAX events a minute, however many knock.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from agent.wire.batch import Frame
from agent.wire.event import Event
from agent.wire.signature import (
    HEAD,
    HEADER,
    MalformedSignature,
    Signed,
    head_text,
    holds,
    read_head,
    read_header,
    runs_of,
    signed_text,
)
from collector import codes, own
from collector.background import Pulse
from collector.codes import Code
from collector.problems import Problem
from collector.store import identity
from collector.store.batches import CENTRE, Signature
from collector.store.database import Database, StoreMisconfigured, StoreUnavailable
from collector.store.identity import AgentKey
from collector.store.keys import Key

if TYPE_CHECKING:
    from litestar.connection import ASGIConnection

    from collector.audit import Who

_log = logging.getLogger("linewarden.collector")

SCOPE = "linewarden.signed"
FRESH_US = 15 * 60 * 1_000_000
"""A head that was signed longer ago, or later than now, may be a copy. It is no reason to refuse: stations have wrong clocks."""
TIME_DIGITS_MAX = 18
KINDS_MAX = 50
"""Kinds of refusals (agent, reason) that are told apart in a minute; further ones are counted as one kind, of no agent."""
EVERY_S = 1.0
MINUTE_S = 60.0
_ENROL = (
    "Make a token, linewarden-collector token create --agent {0}, and enrol the agent again: linewarden-agent enroll"
)


@dataclass(frozen=True, slots=True)
class Shown:
    """A key that is good, and the signature that came with it."""

    key: AgentKey
    signature: bytes
    sent: str
    status: str
    proven: bool
    """Whether the head is signed, and fresh."""

    def checked(self, body: bytes, frames: Sequence[Frame]) -> Signature:
        """The signature, if it is that of the key over this body. Raises Problem."""
        sent_us = _time_of(self.key, self.sent)
        said = Signed(
            agent=str(self.key.agent_id),
            key=self.key.key_id,
            sent_us=sent_us,
            status_sha256=hashlib.sha256(self.status.encode("latin-1")).hexdigest(),
            body_sha256=hashlib.sha256(body).hexdigest(),
            runs=runs_of((frame.header, frame.hash) for frame in frames),
        )
        text = signed_text(said)
        if not holds(self.key.public_key, text, self.signature):
            raise _forged(self.key, "the signature is not that of the key over this request")
        return Signature(self.key.key_id, text, self.signature, sent_us)


def _time_of(key: AgentKey, sent: str) -> int:
    """Return the time that a request names, µs. Raises Problem where it names none that can be stored."""
    if not (sent.isascii() and sent.isdecimal() and len(sent) <= TIME_DIGITS_MAX):
        raise _forged(key, "the header Linewarden-Agent-Time names no time")
    return int(sent)


def _forged(key: AgentKey, text: str) -> Problem:
    why = "Something between agent and collector changes requests, or somebody speaks for it"
    detail = f"Agent {key.agent_id}, key {key.key_id}: {text}. {why}"
    return Problem(401, detail, code="signature", agent_id=str(key.agent_id), key_id=key.key_id)


def is_signed(connection: "ASGIConnection[Any, Any, Any, Any]") -> bool:
    """Whether a request says that it is signed."""
    return HEADER.lower() in connection.headers


async def identify(connection: "ASGIConnection[Any, Any, Any, Any]", database: Database) -> Key:
    """The agent that a signed request says it is of, as the key that it stands for. Raises Problem."""
    try:
        key_id, signature = read_header(connection.headers[HEADER.lower()])
    except MalformedSignature as error:
        raise Problem(401, f"{error}", code="signature") from None
    async with database.connection() as store:
        key = await identity.find(store, key_id)
        if key is not None and key.good:
            await identity.touch(store, key)
    if key is None:
        text = (
            f"Key {key_id} is not known here. Enrol the agent: linewarden-agent enroll, with a token of this collector"
        )
        raise Problem(401, text, code="key_unknown", key_id=key_id)
    if not key.good:
        text = f"Key {key_id} of agent {key.agent_id} {identity.ended(key)}. {_ENROL.format(key.agent_id)}"
        raise Problem(
            403, text, code="revoked" if key.revoked is not None else "key_ended", agent_id=str(key.agent_id), key_id=key_id
        )  # fmt: skip
    sent, status = connection.headers.get("linewarden-agent-time", ""), connection.headers.get("linewarden-status", "")
    proven = _is_proven(key, connection.headers.get(HEAD.lower()), sent, status)
    connection.scope[SCOPE] = Shown(key, signature, sent, status, proven)  # type: ignore[literal-required]
    return Key(
        0, key_id, "agent", "", key.site, key.line, key.station, key.agent_id, key.valid_from, key.valid_until, None, key.last_used
    )  # fmt: skip


def _is_proven(key: AgentKey, head: str | None, sent: str, status: str) -> bool:
    """Whether the head of a request is signed with its key, just now. Raises Problem where the signature does not hold."""
    if head is None:
        return False
    try:
        body_sha256, signature = read_head(head)
    except MalformedSignature as error:
        raise _forged(key, str(error)) from None
    sent_us = _time_of(key, sent)
    text = head_text(
        agent=str(key.agent_id),
        key=key.key_id,
        sent_us=sent_us,
        status_sha256=hashlib.sha256(status.encode("latin-1")).hexdigest(),
        body_sha256=body_sha256,
    )
    if not holds(key.public_key, text, signature):
        raise _forged(key, "the signature is not that of the key over this request's head")
    return abs(sent_us - time.time_ns() // 1000) <= FRESH_US


def shown_of(connection: "ASGIConnection[Any, Any, Any, Any]") -> Shown | None:
    """What `identify` found; None where the request is not signed."""
    found: Shown | None = connection.scope.get(SCOPE)  # type: ignore[assignment]
    return found


def is_proven(connection: "ASGIConnection[Any, Any, Any, Any]") -> bool:
    """Whether the signature over the head of a request holds, and is fresh."""
    shown = shown_of(connection)
    return shown is not None and shown.proven


def refuse(connection: "ASGIConnection[Any, Any, Any, Any]", who: "Who", problem: Problem) -> None:
    """Record a refusal, and tell the SOC where it is about who an agent is."""
    state = connection.app.state
    target = f"{connection.scope.get('method', 'WEBSOCKET')} {connection.scope['path']}"[:200]
    state.refusals.note(who, problem.code, target)
    state.forgeries.note(problem, who.address)


@dataclass(slots=True)
class _Kind:
    since: float
    problem: Problem
    address: str
    waiting: int = 0
    told: bool = False


class Forgeries:
    """Counts refusals that are about who an agent is, and tells of them behind."""

    def __init__(self, database: Database, stored: Callable[[], None]) -> None:
        self._database = database
        self._stored = stored
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self.pulse = Pulse()

    def note(self, problem: Problem, address: str) -> None:
        """Count one, where the table of codes has an event for it. Does no I/O."""
        found = codes.meaning(problem.code)
        if found is None or found.event is None:
            return
        key = (problem.members.get("agent_id", ""), problem.code)
        if key not in self._kinds and len(self._kinds) >= KINDS_MAX:
            key = ("", problem.code)
        kind = self._kinds.setdefault(key, _Kind(time.monotonic(), problem, address))
        kind.problem, kind.address, kind.waiting = problem, address, kind.waiting + 1

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            await self.tell(time.monotonic())
            self.pulse.ok()

    async def tell(self, now: float) -> None:
        """Tell what is due. A failure loses nothing: it is tried again."""
        due = [
            (key, kind)
            for key, kind in self._kinds.items()
            if (kind.waiting and not kind.told) or now - kind.since >= MINUTE_S
        ]
        for key, kind in due:
            if not kind.waiting:
                del self._kinds[key]
                continue
            count = kind.waiting
            agent = UUID(key[0]) if key[0] else None
            try:
                await own.tell(self._database, [_event(kind, count)], about=agent or CENTRE)
            except (StoreUnavailable, StoreMisconfigured) as error:
                _log.warning("refused signatures wait to be told: %s", error)
                return
            self._stored()
            kind.waiting -= count
            kind.since, kind.told = now, True


def _event(kind: _Kind, count: int) -> Event:
    now, problem = time.time_ns() // 1000, kind.problem
    agent_id = problem.members.get("agent_id", "")
    words, type_ = codes.TABLE[Code(problem.code)]
    what = "an enrolment" if type_ == codes.ENROLMENT_REFUSED else "a request of an agent"
    times = "" if count == 1 else f", {count} times"
    return Event(
        time=now,
        observed=now,
        type=type_ or codes.SIGNATURE_REFUSED,
        source="collector",
        src_ip=kind.address or None,
        target=agent_id or None,
        outcome="failure",
        message=f"{what} was refused: {words}{times}",
        data={
            "reason": problem.code,
            "count": count,
            "agent_id": agent_id,
            "key_id": problem.members.get("key_id", ""),
        },
    )
