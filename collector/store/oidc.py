"""What a sign-in by OpenID Connect leaves behind: states that came back, so that none does twice."""

import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING

from collector.store.database import translated

if TYPE_CHECKING:
    from collector.store.database import Anyone

STATES_KEPT = timedelta(hours=2)
"""Longer than a state is good for, whatever two collectors' clocks say."""


async def use_state(connection: "Anyone", state: str) -> bool:
    """Whether a state did not come back before; from now on it did."""
    hashed = hashlib.sha256(state.encode()).digest()
    with translated():
        await connection.execute("DELETE FROM oidc_states WHERE used < now() - $1::interval", STATES_KEPT)
        sql = "INSERT INTO oidc_states (state) VALUES ($1) ON CONFLICT DO NOTHING RETURNING state"
        return await connection.fetchval(sql, hashed) is not None
