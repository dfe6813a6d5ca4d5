"""Who agents are: enrolment tokens, keys, and what is known of their succession.

What holds, whatever races: a token lets one key in (one UPDATE decides, `used IS NULL`); a key belongs to one agent for ever (its primary
key is its hash); a change of key is one transaction that holds the agent's keys locked. Asking again for what was done already, with the
same key, gives the same answer: whoever was killed before the answer came asks again.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from collector.store import keys
from collector.store.database import translated

if TYPE_CHECKING:
    from collector.store.database import Anyone

_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
"""Without characters that are mistaken for others when read aloud."""
SECRET_BYTES = 32
ADVISORY_LOCK = 0x4C57_0004
"""Taken for an agent while it is enrolled: two tokens do not let in two keys for one that was unknown."""
LINKS_MAX = 64
"""Heads of earlier streams that an enrolment links to: the newest ones."""


class Refused(Exception):
    """Not allowed. `code` names why for programs, the text for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is stored."""

    token_id: int
    prefix: str
    site: str
    line: str
    station: str
    agent_id: UUID | None
    created: datetime
    created_by: str
    expires: datetime
    revoked: datetime | None
    used: datetime | None
    used_agent: UUID | None
    used_key: str | None


@dataclass(frozen=True, slots=True)
class AgentKey:
    """A key of an agent, and where that stands."""

    key_id: str
    agent_id: UUID
    public_key: bytes
    valid_from: datetime
    valid_until: datetime | None
    revoked: datetime | None
    parent: str | None
    last_used: datetime | None
    site: str
    line: str
    station: str
    good: bool
    """Whether it speaks for its agent now."""
    stale: bool
    """Whether `last_used` is to be written anew."""


@dataclass(frozen=True, slots=True)
class Link:
    """Head of a stream of the agent that stood here before."""

    agent_id: UUID
    buffer_id: UUID
    lane: int
    batch_no: int
    hash: str


@dataclass(frozen=True, slots=True)
class Proof:
    """A key that wants in: what it signed, and its signature (with that of its parent, where it takes its place)."""

    agent_id: UUID
    key_id: str
    public_key: bytes
    text: str
    signature: bytes
    parent_signature: bytes | None = None


_COLUMNS = (
    "token_id, prefix, site, line, station, agent_id, created, created_by, expires, revoked, used, used_agent, used_key"
)


async def create_token(
    connection: "Anyone", *, site: str, line: str, station: str, agent_id: UUID | None, expires: timedelta, by: str
) -> tuple[str, Token]:
    """Make a token: `prefix.secret`, which is nowhere else, and what is stored of it."""
    prefix = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    secret = secrets.token_urlsafe(SECRET_BYTES)
    sql = (
        "INSERT INTO enrolment_tokens (prefix, hash, site, line, station, agent_id, expires, created_by) "
        f"VALUES ($1, $2, $3, $4, $5, $6, now() + $7, $8) RETURNING {_COLUMNS}"
    )
    with translated():
        row = await connection.fetchrow(sql, prefix, secret_hash(secret), site, line, station, agent_id, expires, by)
    assert row is not None  # noqa: S101 - RETURNING of one inserted row
    return f"{prefix}.{secret}", Token(*row)


def secret_hash(secret: str) -> bytes:
    """How a secret is stored."""
    return hashlib.sha256(secret.encode()).digest()


async def tokens(connection: "Anyone") -> list[Token]:
    """All tokens, oldest first."""
    with translated():
        return [
            Token(*row) for row in await connection.fetch(f"SELECT {_COLUMNS} FROM enrolment_tokens ORDER BY token_id")
        ]


async def revoke_token(connection: "Anyone", prefix: str) -> Token | None:
    """Take a token back; None where there is none of that prefix. What it let in already is not touched."""
    sql = f"UPDATE enrolment_tokens SET revoked = coalesce(revoked, now()) WHERE prefix = $1 RETURNING {_COLUMNS}"
    with translated():
        row = await connection.fetchrow(sql, prefix)
    return Token(*row) if row else None


async def enrol(connection: "Anyone", *, prefix: str, secret: str, proof: Proof) -> tuple[AgentKey, list[Link], bool]:
    """Let a key in by a token, in the caller's transaction: the key, what it links to, and whether this is new. Raises Refused."""
    await _alone(connection, proof.agent_id)
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS}, hash, expires <= now() AS late FROM enrolment_tokens WHERE prefix = $1 FOR UPDATE",
        prefix,
    )
    if row is None or not hmac.compare_digest(row["hash"], secret_hash(secret)):
        raise Refused("token", "there is no such token. Make one: linewarden-collector token create")
    token = Token(*(row[name.strip()] for name in _COLUMNS.split(",")))
    if token.used is not None:
        if (token.used_key, token.used_agent) != (proof.key_id, proof.agent_id):
            text = f"token {prefix} was used by agent {token.used_agent}. Each agent needs a token of its own"
            raise Refused("token_used", text)
        return await _known(connection, proof.key_id), await links(connection, token.token_id), False
    if token.revoked is not None or row["late"]:
        state = "was revoked" if token.revoked is not None else "has expired"
        raise Refused("token", f"token {prefix} {state}. Make a new one: linewarden-collector token create")
    await _admissible(connection, token, proof)
    place_id = await keys.place_named(connection, *await _place(connection, token, proof.agent_id))
    await connection.execute(
        "UPDATE enrolment_tokens SET used = now(), used_agent = $2, used_key = $3 WHERE token_id = $1 AND used IS NULL",
        token.token_id, proof.agent_id, proof.key_id,
    )  # fmt: skip
    await connection.execute(_LINK, proof.agent_id, place_id, token.token_id, LINKS_MAX)
    # Whoever is enrolled anew has lost its keys, or somebody else has them: none of them speaks for it any more.
    await connection.execute(_SUPERSEDE, proof.agent_id, f"token {prefix}")
    await connection.execute(
        _INSERT, proof.key_id, proof.agent_id, proof.public_key, place_id, token.token_id, None, proof.text, proof.signature, None
    )  # fmt: skip
    await connection.execute(_NOTE_AGENT, proof.agent_id, place_id)
    return await _known(connection, proof.key_id), await links(connection, token.token_id), True


async def _alone(connection: "Anyone", agent_id: UUID) -> None:
    """Let nobody else change the keys of an agent until the transaction ends: a key that comes while they are revoked would stay good."""
    await connection.execute("SELECT pg_advisory_xact_lock($1, hashtext($2))", ADVISORY_LOCK, str(agent_id))


async def _place(connection: "Anyone", token: Token, agent_id: UUID) -> tuple[str, str, str]:
    """Return where an agent stands once a token has enrolled it: a known agent keeps its place unless the token names another."""
    row = await connection.fetchrow(_STANDS, agent_id)
    return place_after((token.site, token.line, token.station), tuple(row) if row is not None else ("", "", ""))


def place_after(named: tuple[str, str, str], present: tuple[str, str, str]) -> tuple[str, str, str]:
    """Return the place that follows from what a token names and where the agent stands.

    A token that names nothing, or a place that holds the present one, moves nobody. Otherwise the levels above the highest named one
    stay (a new station is one of the same line), and those that are not named below it are empty (a new line has other stations).
    """
    if all(not new or new == old for new, old in zip(named, present, strict=True)):
        return present
    highest = next(level for level, new in enumerate(named) if new)
    site, line, station = (*present[:highest], *named[highest:])
    return site, line, station


async def _admissible(connection: "Anyone", token: Token, proof: Proof) -> None:
    """Raises Refused where a token that is good may not let in this key for this agent."""
    if token.agent_id is not None and token.agent_id != proof.agent_id:
        raise Refused(
            "token_agent", f"token {token.prefix} is for agent {token.agent_id}, and this is {proof.agent_id}"
        )
    if await connection.fetchval("SELECT EXISTS (SELECT FROM agent_keys WHERE key_id = $1)", proof.key_id):
        raise Refused("key_known", f"key {proof.key_id} was enrolled before. Enrol with a new one: --new-key")
    if token.agent_id is None and await connection.fetchval(_IS_KNOWN, proof.agent_id):
        # A token for any agent must not let its holder speak for one that is here already.
        remedy = f"Make a token for it: linewarden-collector token create --agent {proof.agent_id}"
        raise Refused("agent_known", f"agent {proof.agent_id} is known here already. {remedy}")


async def _known(connection: "Anyone", key_id: str) -> AgentKey:
    found = await find(connection, key_id)
    assert found is not None  # noqa: S101 - it was inserted in this transaction or before
    return found


async def links(connection: "Anyone", token_id: int) -> list[Link]:
    """What the enrolment by a token links to."""
    sql = (
        "SELECT earlier_agent, buffer_id, lane, batch_no, hash FROM agent_links WHERE token_id = $1 "
        "ORDER BY earlier_agent, buffer_id, lane"
    )
    return [Link(*row) for row in await connection.fetch(sql, token_id)]


async def find(connection: "Anyone", key_id: str) -> AgentKey | None:
    """A key by its id."""
    with translated():
        row = await connection.fetchrow(f"{_KEYS} WHERE k.key_id = $1", key_id)
    return AgentKey(*row) if row else None


async def keys_of(connection: "Anyone", agent_id: UUID) -> list[AgentKey]:
    """The keys of an agent, oldest first."""
    with translated():
        rows = await connection.fetch(f"{_KEYS} WHERE k.agent_id = $1 ORDER BY k.valid_from, k.key_id", agent_id)
    return [AgentKey(*row) for row in rows]


async def is_enrolled(connection: "Anyone", agent_id: UUID) -> bool:
    """Whether an agent ever had a key: from then on it signs what it sends."""
    found: bool = await connection.fetchval("SELECT EXISTS (SELECT FROM agent_keys WHERE agent_id = $1)", agent_id)
    return found


async def rotate(connection: "Anyone", *, old: str, proof: Proof, overlap: timedelta) -> tuple[AgentKey, bool]:
    """Let a key take the place of another, in the caller's transaction; whether this is new. Raises Refused.

    The old one stays good for `overlap`, for requests that are under way.
    """
    await _alone(connection, proof.agent_id)
    await connection.execute("SELECT FROM agent_keys WHERE agent_id = $1 ORDER BY key_id FOR UPDATE", proof.agent_id)
    existing = await find(connection, proof.key_id)
    if existing is not None:
        if existing.agent_id == proof.agent_id and existing.parent == old:
            return existing, False
        raise Refused("key_known", f"key {proof.key_id} is known already, and did not follow key {old}")
    parent = await find(connection, old)
    if parent is None or parent.agent_id != proof.agent_id:
        raise Refused("key_unknown", f"key {old} is none of agent {proof.agent_id}")
    if not parent.good:
        raise Refused("key_ended", f"key {old} {ended(parent)}, so it cannot name the one that follows. Enrol again")
    if parent.valid_until is not None:
        text = f"key {old} has been followed by another already. The agent was cloned, or its key was stolen: revoke it"
        raise Refused("key_followed", text)
    await connection.execute("UPDATE agent_keys SET valid_until = now() + $2 WHERE key_id = $1", old, overlap)
    await connection.execute(
        _FOLLOW, proof.key_id, proof.public_key, old, proof.text, proof.signature, proof.parent_signature
    )
    return await _known(connection, proof.key_id), True


def ended(key: AgentKey) -> str:
    """Why a key is not good any more, in words."""
    if key.revoked is not None:
        return f"was revoked on {key.revoked:%Y-%m-%d %H:%M:%S}Z"
    if key.valid_until is not None:
        return f"was followed by another and ended on {key.valid_until:%Y-%m-%d %H:%M:%S}Z"
    return f"begins on {key.valid_from:%Y-%m-%d %H:%M:%S}Z"


async def revoke_agent(connection: "Anyone", agent_id: UUID, by: str) -> int | None:
    """Take back all keys of an agent, those of the API included; how many. None where there is no such agent."""
    with translated():
        await _alone(connection, agent_id)
        known = await connection.fetchval(_IS_KNOWN, agent_id)
        if not known:
            return None
        sql = (
            "UPDATE agent_keys SET revoked = now(), revoked_by = $2 WHERE agent_id = $1 AND revoked IS NULL RETURNING 1"
        )
        ended_keys = await connection.fetch(sql, agent_id, by)
        api = await connection.fetch(
            "UPDATE api_keys SET revoked = now() WHERE agent_id = $1 AND role = 'agent' AND revoked IS NULL RETURNING 1",
            agent_id,
        )
        await connection.execute("UPDATE agents SET revoked = coalesce(revoked, now()) WHERE agent_id = $1", agent_id)
    return len(ended_keys) + len(api)


async def touch(connection: "Anyone", key: AgentKey) -> None:
    """Note that a key was used, at most once a minute."""
    if key.stale:
        await connection.execute("UPDATE agent_keys SET last_used = now() WHERE key_id = $1", key.key_id)


async def overview(connection: "Anyone") -> list[dict[str, Any]]:
    """For each agent that has a key: the key that is good, since when, and until when."""
    with translated():
        return [dict(row) for row in await connection.fetch(_OVERVIEW)]


_GOOD = "(k.revoked IS NULL OR k.revoked > now()) AND k.valid_from <= now() AND (k.valid_until IS NULL OR k.valid_until > now())"
_KEYS = f"""
SELECT k.key_id, k.agent_id, k.public_key, k.valid_from, k.valid_until, k.revoked, k.parent, k.last_used, p.site, p.line, p.station,
       {_GOOD} AS good, coalesce(k.last_used < now() - interval '1 minute', true) AS stale
FROM agent_keys k JOIN places p USING (place_id)
"""
_IS_KNOWN = """
SELECT EXISTS (SELECT FROM agent_keys WHERE agent_id = $1) OR EXISTS (SELECT FROM batch_heads WHERE agent_id = $1)
    OR EXISTS (SELECT FROM agents WHERE agent_id = $1)
"""
_STANDS = "SELECT p.site, p.line, p.station FROM agents a JOIN places p USING (place_id) WHERE a.agent_id = $1"
# The streams of whoever stood at this place before, and of the agent itself where it is enrolled again. A place without a station is none.
_LINK = """
INSERT INTO agent_links (agent_id, earlier_agent, buffer_id, lane, batch_no, hash, token_id)
SELECT $1, h.agent_id, h.buffer_id, h.lane, h.batch_no, h.hash, $3
FROM batch_heads h JOIN agents a USING (agent_id) JOIN places p USING (place_id)
WHERE h.batch_no > 0 AND a.agent_id <> '00000000-0000-0000-0000-000000000000' AND (a.agent_id = $1 OR (a.place_id = $2 AND p.station <> ''))
ORDER BY h.changed DESC LIMIT $4
"""
_SUPERSEDE = """
UPDATE agent_keys SET revoked = now(), revoked_by = $2
WHERE agent_id = $1 AND revoked IS NULL AND (valid_until IS NULL OR valid_until > now())
"""
_INSERT = """
INSERT INTO agent_keys (key_id, agent_id, public_key, place_id, token_id, parent, proof, signature, parent_signature)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""
_FOLLOW = """
INSERT INTO agent_keys (key_id, agent_id, public_key, place_id, parent, proof, signature, parent_signature)
SELECT $1, agent_id, $2, place_id, key_id, $4, $5, $6 FROM agent_keys WHERE key_id = $3
"""
_NOTE_AGENT = """
INSERT INTO agents (agent_id, place_id, first_seen, last_seen) VALUES ($1, $2, now(), now())
ON CONFLICT (agent_id) DO UPDATE SET place_id = excluded.place_id, revoked = NULL
"""
_OVERVIEW = f"""
SELECT DISTINCT ON (k.agent_id) k.agent_id, k.key_id, k.valid_from, k.valid_until, k.revoked, k.last_used, {_GOOD} AS good
FROM agent_keys k ORDER BY k.agent_id, ({_GOOD}) DESC, k.valid_from DESC
"""
