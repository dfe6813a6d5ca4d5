"""API keys: `lw_<prefix>_<secret>`. The secret is shown once and never stored; the prefix tells keys apart."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from collector.store.database import translated

if TYPE_CHECKING:
    from collector.store.database import Anyone

Role = Literal["agent", "viewer", "analyst", "auditor", "admin"]
ROLES: tuple[Role, ...] = ("agent", "viewer", "analyst", "auditor", "admin")
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
"""Without characters that are mistaken for others when read aloud."""
KEY_CHARS_MAX = 200


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it is stored."""

    key_id: int
    prefix: str
    role: Role
    name: str
    site: str
    line: str
    station: str
    agent_id: UUID | None
    created: datetime
    expires: datetime | None
    revoked: datetime | None
    last_used: datetime | None
    created_by: str = ""


_COLUMNS = "key_id, prefix, role, name, site, line, station, agent_id, created, expires, revoked, last_used, created_by"


async def create(
    connection: "Anyone",
    *,
    role: Role,
    name: str,
    site: str,
    line: str,
    station: str,
    expires: datetime | None,
    created_by: str = "",
) -> tuple[str, Key]:
    """Make a key: the key itself, which is nowhere else, and what is stored of it."""
    prefix = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    secret = f"lw_{prefix}_{secrets.token_urlsafe(32)}"
    with translated():
        row = await connection.fetchrow(
            f"INSERT INTO api_keys (prefix, hash, role, name, site, line, station, expires, created_by) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) "
            f"RETURNING {_COLUMNS}",
            prefix, hashlib.sha256(secret.encode()).digest(), role, name, site, line, station, expires, created_by,
        )  # fmt: skip
    assert row is not None  # noqa: S101 - RETURNING of one inserted row
    return secret, Key(*row)


async def find(connection: "Anyone", secret: str) -> tuple[Key, str | None] | None:
    """The key, and why it is no longer good, if so; None where there is no such key."""
    parts = secret.split("_", 2)
    if len(parts) != 3 or parts[0] != "lw" or len(secret) > KEY_CHARS_MAX or not secret.isascii() or "\0" in secret:  # noqa: PLR2004
        return None
    with translated():
        row = await connection.fetchrow(_FIND, parts[1])
    if row is None or not hmac.compare_digest(row["hash"], hashlib.sha256(secret.encode()).digest()):
        return None
    key = Key(*(row[name] for name in _COLUMNS.split(", ")))
    if row["stale"]:
        with translated():
            await connection.execute("UPDATE api_keys SET last_used = now() WHERE key_id = $1", key.key_id)
    if row["revoked"] is not None:
        return key, "was revoked"
    return key, "has expired" if row["expired"] else None


async def bind(connection: "Anyone", key_id: int, agent_id: UUID) -> UUID:
    """Bind an agent's key to the first agent that uses it; the agent that it is bound to, whichever it is."""
    bound: UUID | None = await connection.fetchval(_BIND, key_id, agent_id)
    if bound is None:
        bound = await connection.fetchval("SELECT agent_id FROM api_keys WHERE key_id = $1", key_id)
    assert bound is not None  # noqa: S101 - either we bound it or somebody else did
    return bound


async def of_agent(connection: "Anyone", agent_id: UUID) -> list[str]:
    """Return the prefixes of the keys that are bound to an agent, the latest 90."""
    sql = "SELECT prefix FROM api_keys WHERE agent_id = $1 ORDER BY key_id DESC LIMIT 90"
    return [row["prefix"] for row in await connection.fetch(sql, agent_id)]


async def place_of(connection: "Anyone", key: Key) -> int:
    """Number of the place that a key names, made where it is new."""
    return await place_named(connection, key.site, key.line, key.station)


async def place_named(connection: "Anyone", site: str, line: str, station: str) -> int:
    """Number of a place, made where it is new."""
    arguments = (site, line, station)
    found: int | None = await connection.fetchval(_PLACE, *arguments)
    if found is None:
        await connection.execute(_MAKE_PLACE, *arguments)
        found = await connection.fetchval(_PLACE, *arguments)
    assert found is not None  # noqa: S101 - it was just made
    return found


async def everyone(connection: "Anyone") -> list[Key]:
    """All keys, oldest first."""
    with translated():
        return [Key(*row) for row in await connection.fetch(f"SELECT {_COLUMNS} FROM api_keys ORDER BY key_id")]


async def by_prefix(connection: "Anyone", prefix: str) -> Key | None:
    """The key of a prefix."""
    with translated():
        row = await connection.fetchrow(f"SELECT {_COLUMNS} FROM api_keys WHERE prefix = $1", prefix.replace("\0", ""))
    return Key(*row) if row is not None else None


async def revoke(connection: "Anyone", prefix: str) -> bool:
    """Take a key back; False where there is none of that prefix."""
    with translated():
        done = await connection.fetchval(
            "UPDATE api_keys SET revoked = coalesce(revoked, now()) WHERE prefix = $1 RETURNING key_id", prefix
        )
    return done is not None


_FIND = f"""
SELECT {_COLUMNS}, hash, coalesce(expires <= now(), false) AS expired,
       coalesce(last_used < now() - interval '1 minute', true) AS stale
FROM api_keys WHERE prefix = $1
"""
_BIND = "UPDATE api_keys SET agent_id = $2 WHERE key_id = $1 AND (agent_id IS NULL OR agent_id = $2) RETURNING agent_id"
_PLACE = "SELECT place_id FROM places WHERE site = $1 AND line = $2 AND station = $3"
_MAKE_PLACE = "INSERT INTO places (site, line, station) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"
