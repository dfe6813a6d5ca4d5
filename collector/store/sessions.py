"""Sessions: a random token in a cookie, its hash here.

What the user may do is looked up with each request, so that a change holds at once.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from collector.store.database import translated
from collector.store.users import COLUMNS, User, user_of

if TYPE_CHECKING:
    from collector.store.database import Anyone


@dataclass(frozen=True, slots=True)
class Session:
    """A session and whose it is."""

    hash: bytes
    user: User
    method: str
    created: datetime
    expires: datetime


async def begin(
    connection: "Anyone", hashed: bytes, user_id: int, *, method: str, address: str, user_agent: str, idle: timedelta,
    lasts: timedelta, keep: int,
) -> None:  # fmt: skip
    """Begin a session; of a user's sessions the `keep` used last stay."""
    with translated():
        # The lock puts sign-ins of one user in order: the bound holds.
        await connection.execute("UPDATE users SET last_sign_in = now() WHERE user_id = $1", user_id)
        await connection.execute(_BEGIN, hashed, user_id, method, address[:100], user_agent[:200], idle, lasts)
        await connection.execute(
            "DELETE FROM sessions WHERE user_id = $1 AND hash NOT IN "
            "(SELECT hash FROM sessions WHERE user_id = $1 ORDER BY hash = $2 DESC, last_used DESC LIMIT $3)",
            user_id, hashed, keep,
        )  # fmt: skip


async def find(connection: "Anyone", hashed: bytes, *, touch: bool) -> Session | None:
    """The session of a token's hash, if it holds. `touch`: it is used, which puts off its end."""
    with translated():
        row = await connection.fetchrow(_FIND, hashed)
        if row is None:
            return None
        if touch and row["stale"]:
            await connection.execute("UPDATE sessions SET last_used = now() WHERE hash = $1", hashed)
    return Session(hashed, user_of(row), row["method"], row["session_created"], row["session_expires"])


async def end(connection: "Anyone", hashed: bytes) -> None:
    """End a session."""
    with translated():
        await connection.execute("DELETE FROM sessions WHERE hash = $1", hashed)


async def end_all(connection: "Anyone", user_id: int) -> None:
    """End all sessions of a user."""
    with translated():
        await connection.execute("DELETE FROM sessions WHERE user_id = $1", user_id)


_BEGIN = """
INSERT INTO sessions (hash, user_id, method, address, user_agent, idle, expires) VALUES ($1, $2, $3, $4, $5, $6, now() + $7)
"""
_FIND = f"""
SELECT {COLUMNS}, s.method, s.created AS session_created, s.expires AS session_expires,
    s.last_used < now() - interval '1 minute' AS stale
FROM sessions s JOIN users u USING (user_id)
WHERE s.hash = $1 AND s.expires > now() AND s.last_used + s.idle > now() AND u.disabled IS NULL
"""
