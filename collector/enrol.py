"""How an agent gets in, changes its key, and is put out: POST /v1/enroll, /v1/agents/{id}/keys, /v1/agents/{id}/revoke.

    GET /v1/authority    the certificate of the authority. Public, and believed only where its fingerprint is the one in the token
    POST /v1/enroll      token + public key, signed with the new key (it is there) → identity. The token is used up in the same transaction
    POST …/keys          a new key, signed by itself and by the one whose place it takes → both are good for the overlap
    POST …/revoke        no key of the agent is good from the next request on

Each of them answers the same again when it is asked the same again, so that whoever was killed before the answer came asks again.
"""

import asyncio
import logging
import math
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
from litestar import Request, Response, get, post
from litestar.datastructures import State
from msgspec import Struct

from agent.wire.event import Event
from agent.wire.signature import (
    PUBLIC_KEY_BYTES,
    SIGNATURE_BYTES,
    MalformedSignature,
    enrolment_text,
    holds,
    key_id_of,
    rotation_text,
)
from collector import access, audit, own
from collector.audit import Who
from collector.enrol_authority import Authority, NoAuthority
from collector.enrol_signature import refuse
from collector.limits import networks_of
from collector.problems import Problem
from collector.store import agents, batches, identity, keys
from collector.store.database import Database, StoreMisconfigured, StoreUnavailable

if TYPE_CHECKING:
    from collector.access import Caller
    from collector.limits import Rates

_log = logging.getLogger("linewarden.collector")

PUBLIC = "public"
"""As in access.py: these answer by token and signature, and need no key."""
TEXT_CHARS_MAX = 500


@dataclass(frozen=True, slots=True)
class Enrolling:
    """What enrolment needs. `authority_file`: PEM of the authority that agents are to trust; None: there is none."""

    authority_file: Path | None = None
    overlap: timedelta = timedelta(hours=1)


class Enrolment(Struct, forbid_unknown_fields=True):
    """What an agent sends to get in."""

    token: str
    """`prefix.secret`: the first two parts of what `token create` printed, without what is for the agent alone."""
    agent_id: UUID
    public_key: str
    """32 bytes, hex."""
    url: str
    """Where the agent found the collector; part of what it signs."""
    sent_us: int
    signature: str
    """By the key, over agent.wire.signature.enrolment_text; 64 bytes, hex."""


class Rotation(Struct, forbid_unknown_fields=True):
    """A new key, and who vouches for it."""

    old_key: str
    public_key: str
    sent_us: int
    signature: str
    old_signature: str
    """By the old key, over the same text."""


class LinkOut(Struct):
    """Where a stream of whoever stood here before ended."""

    agent_id: UUID
    buffer: str
    lane: int
    no: int
    hash: str


class Identity(Struct):
    """Who an agent is."""

    agent_id: UUID
    key_id: str
    site: str
    line: str
    station: str
    valid_from: datetime
    links: list[LinkOut] = []


class Revoked(Struct):
    """How many keys of the agent were taken back."""

    agent_id: UUID
    keys: int


class KeyOut(Struct):
    """A key of an agent."""

    key_id: str
    public_key: str
    valid_from: datetime
    valid_until: datetime | None
    revoked: datetime | None
    parent: str | None
    last_used: datetime | None
    good: bool


def _bytes(text: str, length: int, name: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != length or len(text) != 2 * length:
        raise Problem(400, f"{name} has to be {length} bytes as {2 * length} hex digits", code="malformed")
    return value


def _address(request: Request[Any, Any, Any]) -> str:
    return access.address_of(request)


def _not_too_often(request: Request[Any, Any, Any], state: State) -> None:
    """Raises Problem where an address asks to be let in faster than anybody may ask for anything."""
    rates: Rates = state.rates
    if wait_s := rates.take_each(f"enrolment {network}" for network in networks_of(_address(request))):
        headers = {"Retry-After": str(math.ceil(wait_s))}
        problem = Problem(429, "too many requests; come again later", code="rate", headers=headers)
        refuse(request, Who.nobody(_address(request)), problem)
        raise problem


def _refused(request: Request[Any, Any, Any], agent_id: UUID, error: identity.Refused) -> Problem:
    problem = Problem(403, str(error), code=error.code, agent_id=str(agent_id))
    refuse(request, Who(str(agent_id), "agent", "agent", _address(request)), problem)
    return problem


def _not_proven(request: Request[Any, Any, Any], agent_id: UUID, text: str) -> Problem:
    problem = Problem(401, text, code="signature", agent_id=str(agent_id))
    refuse(request, Who(str(agent_id), "agent", "agent", _address(request)), problem)
    return problem


@get(
    "/v1/authority", opt={"access": PUBLIC}, media_type="application/x-pem-file", tags=["agents"],
    summary="The certificate of the authority that agents are to trust; believed by its fingerprint, which is in each token",
)  # fmt: skip
async def get_authority(state: State) -> Response[str]:
    """The authority's certificate, PEM."""
    enrolling: Enrolling = state.enrolling
    if enrolling.authority_file is None:
        raise Problem(404, "This collector has no certificate. Give identity.ca_file, or server.certificate_file")
    try:
        authority = await asyncio.to_thread(Authority.read, enrolling.authority_file)
    except NoAuthority as error:
        raise StoreMisconfigured(f"identity.ca_file: {error}") from None
    return Response(authority.pem, media_type="application/x-pem-file")


@post("/v1/enroll", status_code=200, opt={"access": PUBLIC}, tags=["agents"], summary="Let an agent in by a token")
async def post_enroll(request: Request[Any, Any, Any], data: Enrolment, state: State) -> Identity:
    """Let an agent in."""
    _not_too_often(request, state)
    public_key = _bytes(data.public_key, PUBLIC_KEY_BYTES, "public_key")
    signature = _bytes(data.signature, SIGNATURE_BYTES, "signature")
    prefix, _, secret = data.token.partition(".")
    if max(map(len, (data.token, data.url))) > TEXT_CHARS_MAX or not (prefix + secret).isascii() or "\0" in data.token:
        raise Problem(400, "token or url is longer than it can be, or no text", code="malformed")
    if data.agent_id == batches.CENTRE:
        raise Problem(
            400, "this is the id of the centre itself. Delete the agent's id: it makes another", code="malformed"
        )
    try:
        text = enrolment_text(
            agent=str(data.agent_id), public_key=public_key, token=identity.secret_hash(secret).hex(), url=data.url, sent_us=data.sent_us
        )  # fmt: skip
    except MalformedSignature as error:
        raise Problem(400, str(error), code="malformed") from None
    if not holds(public_key, text, signature):
        raise _not_proven(request, data.agent_id, "The signature is not that of the key that is to be let in")
    proof = identity.Proof(data.agent_id, key_id_of(public_key), public_key, _storable(text), signature)
    database: Database = state.database
    try:
        async with database.connection() as store, store.transaction():
            key, links, new = await identity.enrol(store, prefix=prefix, secret=secret, proof=proof)
            if new:
                who = Who(str(data.agent_id), "agent", "agent", _address(request))
                facts = {"token": prefix, "key": key.key_id, "site": key.site, "line": key.line, "station": key.station}
                objects = [("agent", str(data.agent_id)), ("token", prefix)]
                await audit.record(store, who, "agent.enrol", target=str(data.agent_id), data=facts, objects=objects)
    except identity.Refused as error:
        raise _refused(request, data.agent_id, error) from None
    if new:
        await _tell(
            state, "agent.enrolled", data.agent_id, f"an agent was let in by token {prefix}", {"key_id": key.key_id}
        )
    found = [LinkOut(link.agent_id, link.buffer_id.hex, link.lane, link.batch_no, link.hash) for link in links]
    return _identity(request, key, found)


def _storable(text: bytes) -> str:
    if b"\0" in text:
        raise Problem(400, "a NUL character in what was signed", code="malformed")
    return text.decode()


def _identity(request: Request[Any, Any, Any], key: identity.AgentKey, links: list[LinkOut]) -> Identity:
    if not key.good:
        text = f"Key {key.key_id} {identity.ended(key)}. Enrol with a new key and a new token"
        raise _refused(request, key.agent_id, identity.Refused("revoked" if key.revoked else "key_ended", text))
    return Identity(key.agent_id, key.key_id, key.site, key.line, key.station, key.valid_from, links)


@post(
    "/v1/agents/{agent_id:uuid}/keys", status_code=200, opt={"access": PUBLIC}, tags=["agents"],
    summary="Let a new key take the place of an agent's key, which vouches for it",
)  # fmt: skip
async def post_key(request: Request[Any, Any, Any], agent_id: UUID, data: Rotation, state: State) -> Identity:
    """Change an agent's key."""
    _not_too_often(request, state)
    public_key = _bytes(data.public_key, PUBLIC_KEY_BYTES, "public_key")
    signature = _bytes(data.signature, SIGNATURE_BYTES, "signature")
    old_signature = _bytes(data.old_signature, SIGNATURE_BYTES, "old_signature")
    text = rotation_text(
        agent=str(agent_id), old_key=_bytes(data.old_key, 16, "old_key").hex(), public_key=public_key, sent_us=data.sent_us
    )  # fmt: skip
    database: Database = state.database
    enrolling: Enrolling = state.enrolling
    async with database.connection() as store:
        old = await identity.find(store, data.old_key)
    if old is None or old.agent_id != agent_id:
        raise _refused(request, agent_id, identity.Refused("key_unknown", f"key {data.old_key} is none of {agent_id}"))
    if not holds(public_key, text, signature) or not holds(old.public_key, text, old_signature):
        raise _not_proven(request, agent_id, "One of the two signatures does not hold")
    proof = identity.Proof(agent_id, key_id_of(public_key), public_key, _storable(text), signature, old_signature)
    try:
        async with database.connection() as store, store.transaction():
            key, new = await identity.rotate(store, old=data.old_key, proof=proof, overlap=enrolling.overlap)
            if new:
                who = Who(str(agent_id), "agent", "agent", _address(request))
                facts = {"old": data.old_key, "new": key.key_id}
                objects = [("agent", str(agent_id))]
                await audit.record(store, who, "agent.key.change", target=str(agent_id), data=facts, objects=objects)
    except identity.Refused as error:
        raise _refused(request, agent_id, error) from None
    if new:
        data_out = {"key_id": key.key_id, "old_key_id": data.old_key}
        await _tell(state, "agent.key.changed", agent_id, "a new key took the place of an agent's key", data_out)
    return _identity(request, key, [])


@get("/v1/agents/{agent_id:uuid}/keys", opt={"access": "audit"}, tags=["agents"], summary="The keys of an agent")
async def get_keys(request: Request[Any, Any, Any], agent_id: UUID, state: State) -> list[KeyOut]:
    """An agent's keys, oldest first."""
    caller: Caller = request.auth
    database: Database = state.database
    async with database.connection() as store:
        if not await agents.seen(store, agent_id, caller.scope):
            raise Problem(404, f"There is no agent {agent_id}. See GET /v1/agents")
        found = await identity.keys_of(store, agent_id)
    return [
        KeyOut(k.key_id, k.public_key.hex(), k.valid_from, k.valid_until, k.revoked, k.parent, k.last_used, k.good)
        for k in found
    ]


@post(
    "/v1/agents/{agent_id:uuid}/revoke", status_code=200, opt={"access": "manage"}, tags=["agents"],
    summary="Take back all keys of an agent, from its next request on",
)  # fmt: skip
async def post_revoke(request: Request[Any, Any, Any], agent_id: UUID, state: State) -> Revoked:
    """Put an agent out."""
    caller: Caller = request.auth
    database: Database = state.database
    async with database.connection() as store, store.transaction():
        count = None
        if await agents.seen(store, agent_id, caller.scope):
            count = await revoke(store, agent_id, caller.who)
    if count is None:
        raise Problem(404, f"There is no agent {agent_id}. See GET /v1/agents")
    if count:
        await _tell(state, "agent.revoked", agent_id, "the keys of an agent were taken back", {"by": caller.who.name})
    return Revoked(agent_id, count)


async def revoke(store: "Any", agent_id: UUID, who: Who) -> int | None:
    """Take back an agent's keys and record it, in the caller's transaction."""
    if agent_id == batches.CENTRE:
        return None
    count = await identity.revoke_agent(store, agent_id, who.name)
    if count is not None:
        told = {"keys": count}
        objects = [("agent", str(agent_id)), *(("key", prefix) for prefix in await keys.of_agent(store, agent_id))]
        await audit.record(store, who, "agent.revoke", target=str(agent_id), data=told, objects=objects)
    return count


async def _tell(state: State, type_: str, agent_id: UUID, message: str, data: dict[str, Any]) -> None:
    """An event of the centre. What it tells of is done and recorded: where it cannot be stored just now, the log has it."""
    now = time.time_ns() // 1000
    event = Event(
        time=now, observed=now, type=type_, source="collector", target=str(agent_id), outcome="success", message=message,
        data={"agent_id": str(agent_id), **data},
    )  # fmt: skip
    try:
        await own.tell(state.database, [event], about=agent_id)
    except (StoreUnavailable, StoreMisconfigured) as error:
        _log.warning("not told to the SOC (%s): %s %s", error, message, msgspec.json.encode(event.data).decode())
    else:
        state.hub.stored()


ROUTES = [get_authority, post_enroll, post_key, get_keys, post_revoke]
