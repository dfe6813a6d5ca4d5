"""Users: what they may do and see, how they prove who they are, and how often that failed of late.

A sign-in is counted as failed before it is looked at and forgiven when it succeeds, so that a hundred at once are as many failures and not
one. Each is counted in several buckets (see `Bucket`); a bucket that failed too often lets nothing through for a time that doubles. A
success forgives the failures of this user from this place; those of others in the same name or from the same network stay.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import asyncpg

from collector.store.database import translated
from collector.store.events import Scope

if TYPE_CHECKING:
    from collector.store.database import Anyone

UserRole = Literal["viewer", "analyst", "auditor", "admin"]
USER_ROLES: tuple[UserRole, ...] = ("viewer", "analyst", "auditor", "admin")
Origin = Literal["local", "oidc"]
BUCKETS_MAX = 100_000
"""More are forgotten, the oldest first: a flood of names costs bounded room."""


class Taken(Exception):
    """There is a user of that name."""


@dataclass(frozen=True, slots=True)
class User:
    """A user as others may know it."""

    user_id: int
    name: str
    display: str
    role: UserRole
    origin: Origin
    scopes: Scope
    password: bool
    password_changed: datetime | None
    totp: bool
    created: datetime
    disabled: datetime | None
    last_sign_in: datetime | None


class Proof(NamedTuple):
    """What a sign-in is held against."""

    user: User
    password: str | None
    totp: bytes | None


class Bucket(NamedTuple):
    """What failed sign-ins have in common; `free` of them cost nothing, then the time doubles up to `wait_s_max`."""

    name: str
    free: int
    wait_s_max: int

    @property
    def key(self) -> str:
        """As it is stored: names and addresses are nobody's business."""
        return hashlib.sha256(self.name.encode(errors="replace")).hexdigest()


_SCOPES = "ARRAY(SELECT ARRAY[s.site, s.line, s.station] FROM user_scopes s WHERE s.user_id = u.user_id ORDER BY 1)"
COLUMNS = f"""
u.user_id, u.name, u.display, u.role, u.origin, {_SCOPES} AS scopes, u.password IS NOT NULL AS password, u.password_changed,
u.totp_since IS NOT NULL AS totp, u.created, u.disabled, u.last_sign_in
"""


def user_of(row: Any) -> User:
    """A row of COLUMNS."""
    fields = {name: row[name] for name in User.__slots__}
    return User(**{**fields, "scopes": tuple(tuple(place) for place in fields["scopes"])})


async def installation_secret(connection: "Anyone", new: bytes) -> bytes:
    """The secret of the installation; `new` becomes it where there is none."""
    with translated():
        await connection.execute(
            "INSERT INTO installation_secrets (name, value) VALUES ('secret', $1) ON CONFLICT DO NOTHING", new
        )
        found: bytes = await connection.fetchval("SELECT value FROM installation_secrets WHERE name = 'secret'")
    return found


async def everyone(connection: "Anyone") -> list[User]:
    """All, by name."""
    with translated():
        return [user_of(row) for row in await connection.fetch(f"SELECT {COLUMNS} FROM users u ORDER BY u.name")]


async def find(connection: "Anyone", name: str) -> User | None:
    """The user of a name."""
    with translated():
        row = await connection.fetchrow(f"SELECT {COLUMNS} FROM users u WHERE u.name = $1", name)
    return user_of(row) if row is not None else None


async def proof(connection: "Anyone", name: str) -> Proof | None:
    """What a sign-in under a name is held against. `totp`: None where no code is asked for."""
    sealed = "CASE WHEN u.totp_since IS NOT NULL THEN u.totp END AS sealed"
    sql = f"SELECT {COLUMNS}, u.password AS hash, {sealed} FROM users u WHERE u.name = $1"
    with translated():
        row = await connection.fetchrow(sql, name)
    return Proof(user_of(row), row["hash"], row["sealed"]) if row is not None else None


async def create(
    connection: "Anyone", *, name: str, role: UserRole, scopes: Scope, display: str = "", origin: Origin = "local",
    password: str | None = None,
) -> User:  # fmt: skip
    """Make a user, in the caller's transaction. Raises Taken."""
    sql = """
        INSERT INTO users (name, role, display, origin, password, password_changed)
        VALUES ($1, $2, $3, $4, $5, CASE WHEN $5::text IS NOT NULL THEN now() END) ON CONFLICT (name) DO NOTHING RETURNING user_id
    """
    with translated():
        user_id = await connection.fetchval(sql, name, role, display, origin, password)
    if user_id is None:
        raise Taken(name)
    await set_scopes(connection, user_id, scopes)
    made = await find(connection, name)
    assert made is not None  # noqa: S101 - it was just made, in this transaction
    return made


async def set_scopes(connection: "Anyone", user_id: int, scopes: Scope) -> None:
    """What a user may see from now on."""
    with translated():
        await connection.execute("DELETE FROM user_scopes WHERE user_id = $1", user_id)
        rows = [(user_id, *place) for place in dict.fromkeys(scopes)]
        await connection.executemany(
            "INSERT INTO user_scopes (user_id, site, line, station) VALUES ($1, $2, $3, $4)", rows
        )


async def change(connection: "Anyone", user_id: int, *, role: UserRole, display: str, disabled: bool) -> None:
    """Change what a user is. Whoever is shut out is signed out."""
    sql = """
        UPDATE users SET role = $2, display = $3, disabled = CASE WHEN $4 THEN coalesce(disabled, now()) END WHERE user_id = $1
    """
    with translated():
        await connection.execute(sql, user_id, role, display, disabled)
        if disabled:
            await connection.execute("DELETE FROM sessions WHERE user_id = $1", user_id)


async def set_password(connection: "Anyone", user_id: int, password: str, *, keep: bytes = b"") -> None:
    """Set a password (its argon2id), and end all sessions but the one whose hash is `keep`."""
    with translated():
        await connection.execute(
            "UPDATE users SET password = $2, password_changed = now() WHERE user_id = $1", user_id, password
        )
        await connection.execute("DELETE FROM sessions WHERE user_id = $1 AND hash <> $2", user_id, keep)


async def rehash(connection: "Anyone", user_id: int, old: str, new: str) -> None:
    """The same password under newer costs."""
    with translated():
        await connection.execute(
            "UPDATE users SET password = $3 WHERE user_id = $1 AND password = $2", user_id, old, new
        )


async def set_totp(connection: "Anyone", user_id: int, sealed: bytes | None) -> None:
    """A new secret that is not confirmed yet; None: no code is asked for any more."""
    with translated():
        await connection.execute(
            "UPDATE users SET totp = $2, totp_since = NULL, totp_step = 0 WHERE user_id = $1", user_id, sealed
        )
        await connection.execute("DELETE FROM recovery_codes WHERE user_id = $1", user_id)


async def totp(connection: "Anyone", user_id: int) -> bytes | None:
    """The sealed secret, confirmed or not."""
    with translated():
        found: bytes | None = await connection.fetchval("SELECT totp FROM users WHERE user_id = $1", user_id)
    return found


async def confirm_totp(connection: "Anyone", user_id: int, recovery: Sequence[bytes]) -> None:
    """Ask for codes from now on. `recovery`: hashes of the codes that stand in for one."""
    with translated():
        await connection.execute(
            "UPDATE users SET totp_since = coalesce(totp_since, now()) WHERE user_id = $1", user_id
        )
        await connection.execute("DELETE FROM recovery_codes WHERE user_id = $1", user_id)
        await connection.executemany(
            "INSERT INTO recovery_codes (user_id, hash) VALUES ($1, $2)", [(user_id, code) for code in recovery]
        )


async def use_step(connection: "Anyone", user_id: int, step: int) -> bool:
    """Whether the code of a time step was not used before; it is from now on."""
    sql = "UPDATE users SET totp_step = $2 WHERE user_id = $1 AND totp_step < $2 RETURNING user_id"
    with translated():
        return await connection.fetchval(sql, user_id, step) is not None


async def use_recovery(connection: "Anyone", user_id: int, code: bytes) -> bool:
    """Whether a recovery code is good; it is used up."""
    sql = "UPDATE recovery_codes SET used = now() WHERE user_id = $1 AND hash = $2 AND used IS NULL RETURNING user_id"
    with translated():
        return await connection.fetchval(sql, user_id, code) is not None


async def identified(connection: "Anyone", issuer: str, subject: str) -> User | None:
    """The user that somebody of a provider is."""
    sql = f"SELECT {COLUMNS} FROM oidc_identities i JOIN users u USING (user_id) WHERE i.issuer = $1 AND i.subject = $2"
    with translated():
        row = await connection.fetchrow(sql, issuer, subject)
    return user_of(row) if row is not None else None


async def identify(connection: "Anyone", issuer: str, subject: str, user_id: int) -> bool:
    """Say who somebody of a provider is; False where that was said before."""
    sql = "INSERT INTO oidc_identities (issuer, subject, user_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING user_id"
    with translated():
        return await connection.fetchval(sql, issuer, subject, user_id) is not None


async def attempt(connection: "Anyone", buckets: Sequence[Bucket]) -> float:
    """Count a sign-in as failed in all its buckets. Seconds to wait where one lets nothing through; then none is counted."""
    with translated():
        transaction = connection.transaction()
        await transaction.start()
        try:
            # In one order everywhere, so that two never wait for each other.
            for bucket in sorted(buckets, key=lambda bucket: bucket.key):
                if await connection.fetchval(_ATTEMPT, bucket.key, bucket.free, bucket.wait_s_max) is None:
                    await transaction.rollback()
                    return max(1.0, float(await connection.fetchval(_WAIT, [bucket.key for bucket in buckets]) or 1.0))
            await transaction.commit()
        except asyncpg.PostgresError:
            await transaction.rollback()
            raise
    return 0.0


async def forgive(connection: "Anyone", own: Bucket, shared: Sequence[Bucket] = ()) -> None:
    """It did not fail: forget what failed in `own`, and take as many off from `shared`, to which the failures of others stay."""
    with translated():
        transaction = connection.transaction()
        await transaction.start()
        try:
            keys = [own.key, *(bucket.key for bucket in shared)]
            rows = await connection.fetch(_FAILED, keys)
            failures = next((row["failures"] for row in rows if row["bucket"] == own.key), 0)
            await connection.execute("DELETE FROM sign_in_failures WHERE bucket = $1", own.key)
            await connection.execute(_FORGIVE, keys, failures)
            await transaction.commit()
        except asyncpg.PostgresError:
            await transaction.rollback()
            raise


async def unlock(connection: "Anyone") -> None:
    """Forget all failures."""
    with translated():
        await connection.execute("DELETE FROM sign_in_failures")


async def prune(connection: "Anyone") -> None:
    """Take away what no longer counts: sessions that ended, failures of yesterday, and more failures than there is room for."""
    with translated():
        await connection.execute("DELETE FROM sessions WHERE expires <= now() OR last_used + idle <= now()")
        await connection.execute("DELETE FROM sign_in_failures WHERE last < now() - interval '1 day'")
        await connection.execute(
            "DELETE FROM sign_in_failures WHERE bucket IN "
            f"(SELECT bucket FROM sign_in_failures ORDER BY last DESC OFFSET {BUCKETS_MAX})"
        )


# `until` is looked at again under the lock of the row: of many at once each sees what the one before it left.
_ATTEMPT = """
INSERT INTO sign_in_failures AS f (bucket, failures, last, until) VALUES ($1, 1, clock_timestamp(), clock_timestamp())
ON CONFLICT (bucket) DO UPDATE SET last = clock_timestamp(),
    failures = CASE WHEN f.last < now() - interval '1 day' THEN 1 ELSE least(f.failures + 1, 1000) END,
    until = clock_timestamp() + CASE WHEN f.failures < $2::integer OR f.last < now() - interval '1 day' THEN interval '0'
        ELSE make_interval(secs => least($3::float8, power(2, least(f.failures - $2::integer, 20)))) END
WHERE f.until <= clock_timestamp() RETURNING failures
"""
# In the order in which `attempt` locks them.
_FAILED = "SELECT bucket, failures FROM sign_in_failures WHERE bucket = ANY ($1) ORDER BY bucket FOR UPDATE"
# A bucket that let this one through waited for nobody before it: so it does again.
_FORGIVE = """
UPDATE sign_in_failures SET failures = greatest(0, failures - $2::integer), until = clock_timestamp() WHERE bucket = ANY ($1)
"""
_WAIT = (
    "SELECT extract(epoch FROM max(until) - clock_timestamp())::float8 FROM sign_in_failures WHERE bucket = ANY ($1)"
)
