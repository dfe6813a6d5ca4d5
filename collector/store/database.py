"""The way to PostgreSQL: one bounded pool, and one answer to everything that can happen to it.

Whatever the caller cannot mend by asking otherwise (the server is away, stops, is full, has failed over to a standby, lets nobody in)
comes out as `StoreUnavailable`. The caller answers "later"; the agent keeps its batches and asks again. A commit whose answer
was lost may have happened or not: asking again finds out, since a stored batch is recognised.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Literal

import asyncpg

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection = PoolConnectionProxy[asyncpg.Record]
    Plain = asyncpg.Connection[asyncpg.Record]
    Anyone = Connection | Plain
    Pool = asyncpg.Pool[asyncpg.Record]

ACQUIRE_S_MAX = 5.0
"""A request waits so long for a connection; then it is told to come again."""
COMMAND_S_MAX = 120.0
"""A statement that runs longer is cancelled, so that a lost server does not hold a request for ever."""


NUMBER_MAX = 2**63 - 1
"""The largest number that a bigint holds: what is larger can be no number of ours, and the database would refuse it."""


class StoreUnavailable(Exception):
    """The database cannot do it now. Nothing is wrong with the request; it may be sent again."""


class StoreMisconfigured(Exception):
    """The database refuses us for a reason that waiting does not mend: no such database, wrong password, missing right."""


_LATER = (
    asyncpg.PostgresConnectionError,  # 08: the connection broke
    asyncpg.OperatorInterventionError,  # 57: shutting down, crashed, starting up, cancelled
    asyncpg.InsufficientResourcesError,  # 53: disk full, too many connections, out of memory
    asyncpg.TransactionRollbackError,  # 40: deadlock, serialization
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,  # a standby: we are connected to the wrong one of a pair
    asyncpg.InternalServerError,  # XX
    asyncpg.PostgresIOError,  # 58030
    asyncpg.PostgresSystemError,  # 58
    asyncpg.InterfaceError,  # the connection was lost while in use, or the pool is closing
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
    EOFError,
)
_REFUSED = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)
_NOT_MIGRATED = (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError)


def is_unavailable(error: BaseException) -> bool:
    """Whether an error says that the database, or the way to it, is not there now."""
    return isinstance(error, _LATER)


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    text = str(error).strip().partition("\n")[0]
    return text or type(error).__name__


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Errors of the driver become ours."""
    try:
        yield
    except _REFUSED as error:
        raise StoreMisconfigured(f"PostgreSQL refuses: {first_line(error)}") from error
    except _NOT_MIGRATED as error:
        raise StoreMisconfigured(f"{first_line(error)}. Run: linewarden-collector migrate") from error
    except _LATER as error:
        raise StoreUnavailable(f"PostgreSQL cannot be used now: {first_line(error)}") from error


async def connect(dsn: str) -> "asyncpg.Connection[asyncpg.Record]":
    """One connection for a command."""
    with translated():
        return await asyncpg.connect(dsn, timeout=10, server_settings={"application_name": "linewarden-collector"})


class Database:
    """The pool. Cold until `open`; what is asked before or after is `StoreUnavailable`."""

    def __init__(
        self, dsn: str, *, pool_size: int, synchronous_commit: Literal["on", "remote_write", "remote_apply"]
    ) -> None:
        self._dsn = dsn
        self._pool_size = pool_size
        self._synchronous_commit = synchronous_commit
        self._pool: Pool | None = None

    @property
    def dsn(self) -> str:
        """The configured address."""
        return self._dsn

    async def open(self) -> None:
        """Connect. Raises StoreUnavailable, StoreMisconfigured."""
        settings = {
            "application_name": "linewarden-collector",
            "timezone": "UTC",
            # An acknowledgement is a promise: never less than a flush to disk, whatever the server's default is.
            "synchronous_commit": self._synchronous_commit,
            "jit": "off",
            "idle_in_transaction_session_timeout": "120s",
        }
        with translated():
            self._pool = await asyncpg.create_pool(
                self._dsn,
                min_size=1,
                max_size=self._pool_size,
                max_inactive_connection_lifetime=300,
                command_timeout=COMMAND_S_MAX,
                timeout=10,
                server_settings=settings,
            )

    async def close(self, within_s: float = 10.0) -> None:
        """Cut all connections after what runs has ended, or when the time is over. What still waits for an answer then gets an error."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(within_s):
                await pool.close()
        except TimeoutError:
            pool.terminate()

    @contextlib.asynccontextmanager
    async def connection(self) -> "AsyncIterator[Connection]":
        """A connection of the pool. Errors inside come out translated."""
        if self._pool is None:
            raise StoreUnavailable("PostgreSQL is not connected yet")
        with translated():
            async with self._pool.acquire(timeout=ACQUIRE_S_MAX) as connection:
                yield connection

    async def ping(self) -> None:
        """Raises unless a statement can be run."""
        async with self.connection() as connection:
            await connection.fetchval("SELECT 1", timeout=5)
