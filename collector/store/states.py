"""What audited rows are, as digests: written into the audit record of each change, and held against the rows by `verify`.

An object is something that people or the collector change and that has an audit record for each change: an API key, a user with their
places, codes and identities, a token, the keys of an agent, a session, a suppression, a legal hold, an erasure and the lines that it took
out. Its digest is the SHA-256 of its columns as PostgreSQL writes them in a JSON array, times as microseconds since 1970. Left out are
columns that change without a record: when something was last used, how often.

The record that is the last thing in a transaction holds `data.state`: `kind name` → digest, or an empty text where the object is gone. So
whoever changes a row without a record, puts one in or takes one out contradicts the last record of it.
"""

import hashlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from collector.store.database import Anyone

GONE = ""
CARRIED_AT_ONCE = 90
"""Objects in one record: longer objects in `data` are cut."""


class Object(NamedTuple):
    """A kind. `sql`: name and columns of each object, WHICH stands for a condition on its name; `table`: for findings."""

    table: str
    sql: str
    may_go: bool = False
    """Whether rows leave without a record: sessions end by themselves, erased lines go with the day of their batch."""

    def which(self, condition: str) -> str:
        """Return the query for objects of which the name fulfils a condition."""
        return self.sql.replace("WHICH", condition)


def _us(column: str) -> str:
    return f"(extract(epoch FROM {column}) * 1000000)::bigint"


OBJECTS: dict[str, Object] = {
    "key": Object(
        "api_keys",
        "SELECT prefix AS object, jsonb_build_array(encode(hash, 'hex'), role, name, site, line, station, agent_id, created_by, "
        f"{_us('created')}, {_us('expires')}, {_us('revoked')}) AS columns, revoked IS NOT NULL AS ended FROM api_keys WHERE prefix WHICH",
    ),
    "user": Object(
        "users",
        "SELECT u.user_id::text AS object, jsonb_build_array(u.name, u.role, u.origin, u.password, encode(u.totp, 'hex'), "
        f"{_us('u.totp_since')}, {_us('u.created')}, {_us('u.disabled')}, "
        "(SELECT jsonb_agg(jsonb_build_array(s.site, s.line, s.station) ORDER BY s.site, s.line, s.station) FROM user_scopes s "
        "WHERE s.user_id = u.user_id), "
        "(SELECT jsonb_agg(encode(c.hash, 'hex') ORDER BY c.hash) FROM recovery_codes c WHERE c.user_id = u.user_id), "
        "(SELECT jsonb_agg(jsonb_build_array(i.issuer, i.subject) ORDER BY i.issuer, i.subject) FROM oidc_identities i "
        "WHERE i.user_id = u.user_id)) AS columns, u.disabled IS NOT NULL AS ended FROM users u WHERE u.user_id::text WHICH",
    ),
    "session": Object(
        "sessions",
        "SELECT left(encode(sha256(s.hash), 'hex'), 32) AS object, jsonb_build_array(u.name, s.method, s.address, "
        f"{_us('s.created')}, {_us('s.expires')}, extract(epoch FROM s.idle)::bigint) AS columns, false AS ended "
        "FROM sessions s JOIN users u USING (user_id) WHERE left(encode(sha256(s.hash), 'hex'), 32) WHICH",
        may_go=True,
    ),
    "token": Object(
        "enrolment_tokens",
        "SELECT prefix AS object, jsonb_build_array(encode(hash, 'hex'), site, line, station, agent_id, created_by, used_agent, used_key, "
        f"{_us('created')}, {_us('expires')}, {_us('revoked')}, {_us('used')}) AS columns, "
        "revoked IS NOT NULL OR used IS NOT NULL AS ended FROM enrolment_tokens WHERE prefix WHICH",
    ),
    "agent": Object(
        "agent_keys",
        "SELECT k.agent_id::text AS object, jsonb_build_array("
        f"(SELECT {_us('a.revoked')} FROM agents a WHERE a.agent_id = k.agent_id), "
        "jsonb_agg(jsonb_build_array(k.key_id, encode(k.public_key, 'hex'), p.site, p.line, p.station, k.revoked_by, k.token_id, k.parent, "
        "encode(sha256(convert_to(k.proof, 'UTF8')), 'hex'), encode(k.signature, 'hex'), encode(k.parent_signature, 'hex'), "
        f"{_us('k.valid_from')}, {_us('k.valid_until')}, {_us('k.revoked')}) ORDER BY k.key_id)) AS columns, "
        "bool_and(k.revoked <= now() OR coalesce(k.valid_until <= now(), false)) AS ended "
        "FROM agent_keys k JOIN places p USING (place_id) WHERE k.agent_id::text WHICH GROUP BY k.agent_id",
    ),
    "suppression": Object(
        "suppressions",
        "SELECT suppression_id::text AS object, jsonb_build_array(filter, scope, comment, created_by, ended_by, "
        f"{_us('created')}, {_us('expires')}, {_us('ended')}) AS columns, ended IS NOT NULL AS ended "
        "FROM suppressions WHERE suppression_id::text WHICH",
    ),
    "hold": Object(
        "legal_holds",
        f"SELECT hold_id::text AS object, jsonb_build_array(name, query, {_us('created')}, {_us('released')}) AS columns, "
        "released IS NOT NULL AS ended FROM legal_holds WHERE hold_id::text WHICH",
    ),
    "erasure": Object(
        "erasures",
        "SELECT erasure_id::text AS object, jsonb_build_array(state, names IS NULL, reason, requested_by, confirmed_by, events, batches, "
        f"{_us('requested')}, {_us('confirmed')}, {_us('finished')}, {_us('standing_until')}) AS columns, false AS ended "
        "FROM erasures WHERE erasure_id::text WHICH",
    ),
    "erased": Object(
        "erased_lines",
        "SELECT batch_id || '/' || erasure_id AS object, jsonb_build_array(idx::text) AS columns, false AS ended FROM erased_lines "
        "WHERE batch_id || '/' || erasure_id WHICH",
        may_go=True,
    ),
}
_DIGEST = "encode(sha256(convert_to(o.columns::text, 'UTF8')), 'hex')"

Named = tuple[str, str]
"""Kind and name of an object."""


def session_name(hashed: bytes) -> str:
    """Return how a session is called, by the hash of its token."""
    return hashlib.sha256(hashed).hexdigest()[:32]


async def digests(connection: "Anyone", objects: "Iterable[Named]") -> dict[str, str]:
    """Return the digests of objects as they are in the caller's transaction, GONE where there is none."""
    found: dict[str, str] = {}
    by_kind: dict[str, list[str]] = {}
    for kind, name in objects:
        by_kind.setdefault(kind, []).append(name)
        found[f"{kind} {name}"] = GONE
    for kind, names in by_kind.items():
        sql = f"SELECT o.object, {_DIGEST} AS digest FROM ({OBJECTS[kind].which('= ANY ($1::text[])')}) o"
        found.update({f"{kind} {row['object']}": row["digest"] for row in await connection.fetch(sql, names)})
    return found


class Standing(NamedTuple):
    """What an object is now. `ended`: revoked, disabled, released or used up."""

    digest: str
    ended: bool


async def now(connection: "Anyone", kind: str) -> dict[str, Standing]:
    """Return all objects of a kind as they are."""
    sql = f"SELECT o.object, {_DIGEST} AS digest, o.ended FROM ({OBJECTS[kind].which('IS NOT NULL')}) o"
    rows = await connection.fetch(sql, timeout=3_600.0)
    return {row["object"]: Standing(row["digest"], bool(row["ended"])) for row in rows}


class Recorded(NamedTuple):
    """What the last record of an object says."""

    digest: str
    no: int
    action: str


async def recorded(connection: "Anyone") -> dict[str, dict[str, Recorded]]:
    """Return what the audit log says last of each object, by kind and name."""
    found: dict[str, dict[str, Recorded]] = {kind: {} for kind in OBJECTS}
    for row in await connection.fetch(_RECORDED, timeout=3_600.0):
        kind, _, name = row["object"].partition(" ")
        found.setdefault(kind, {})[name] = Recorded(row["digest"], row["no"], row["action"])
    return found


async def unrecorded(connection: "Anyone") -> list[list[Named]]:
    """Return all objects, in pieces that fit a record, of a database from before records held what they left; nothing otherwise."""
    if await connection.fetchval("SELECT EXISTS (SELECT FROM audit_log WHERE data ? 'state')"):
        return []
    every: list[Named] = [(kind, name) for kind in OBJECTS for name in await now(connection, kind)]
    return [every[at : at + CARRIED_AT_ONCE] for at in range(0, len(every), CARRIED_AT_ONCE)]


async def leaving(connection: "Anyone", last: int) -> "Sequence[dict[str, str]]":
    """Return what records up to `last` alone say of objects that are not gone, in pieces that fit a record: it has to stay known."""
    rows = [
        row for row in await connection.fetch(_RECORDED, timeout=3_600.0) if row["no"] <= last and row["digest"] != GONE
    ]
    return [
        {row["object"]: row["digest"] for row in rows[at : at + CARRIED_AT_ONCE]}
        for at in range(0, len(rows), CARRIED_AT_ONCE)
    ]


_RECORDED = """
SELECT DISTINCT ON (s.key) s.key AS object, s.value AS digest, a.no, a.action
FROM audit_log a CROSS JOIN LATERAL jsonb_each_text(a.data->'state') s
WHERE a.data ? 'state' AND jsonb_typeof(a.data->'state') = 'object' ORDER BY s.key, a.no DESC
"""
