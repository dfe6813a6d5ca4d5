"""The way to PostgreSQL: bounded pools, and one answer to everything that can happen to them.

`Database` is one pool, as a command has it. `Pools` are those of the server, so that no kind of work waits for another:

    ingest       batches of agents
    admission    credentials: short statements that everything else waits for
    entrance     what is asked without a credential, as sign-in and enrolment: anybody can ask for much of it
    reading      queries of keys and users, on account of each: READS_MAX at once, then READS_WAITING_MAX wait, for READ_WAIT_S at most
    background   everything that goes on beside requests
    health       one connection, for readiness alone

A handler gets `Pools.requests`: `reading` for a request that the guard put on its caller's account (`read_for`), `entrance` for others.

Whatever the caller cannot mend by asking otherwise (the server is away, stops, is full, has failed over to a standby, lets nobody in)
comes out as `StoreUnavailable`. The caller answers "later"; the agent keeps its batches and asks again. A commit whose answer
was lost may have happened or not: asking again finds out, since a stored batch is recognised.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
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
STATEMENT_S_MAX = 60
"""A statement of a reader: the server itself ends it then, also where the one who asked has gone."""
ADMISSION_SIZE = 3
ENTRANCE_SIZE = 2
BACKGROUND_SIZE = 6
READS_MAX = 4
"""Requests of one key or user that read at once; at most half of the pool."""
READS_WAITING_MAX = 32
READ_WAIT_S = 5.0
READ_ON_S = 60.0
"""A request that has read already, as an export does page by page, waits longer for its next turn than one that only begins."""
PING_S_MAX = 5.0

NUMBER_MAX = 2**63 - 1
"""The largest number that a bigint holds: what is larger can be no number of ours, and the database would refuse it."""


class StoreUnavailable(Exception):
    """The database cannot do it now. Nothing is wrong with the request; it may be sent again."""


class TooManyReads(Exception):
    """One key or user asks for too much at once."""


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


Durability = Literal["on", "remote_write", "remote_apply"]


class Database:
    """The pool. Cold until `open`; what is asked before or after is `StoreUnavailable`."""

    def __init__(
        self,
        dsn: str,
        *,
        pool_size: int,
        synchronous_commit: Durability,
        size_min: int = 1,
        statement_s_max: float | None = None,
    ) -> None:
        self._dsn = dsn
        self._pool_size = pool_size
        self._synchronous_commit = synchronous_commit
        self._size_min = size_min
        self._statement_s_max = statement_s_max
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
        if self._statement_s_max is not None:
            settings["statement_timeout"] = f"{self._statement_s_max * 1000:.0f}"
        with translated():
            self._pool = await asyncpg.create_pool(
                self._dsn,
                min_size=self._size_min,
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
            await connection.fetchval("SELECT 1", timeout=PING_S_MAX)


# ── the server's pools ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True, eq=False)
class Reader:
    """A request that reads, on account of its caller. `held`: connections that it has now."""

    name: str
    held: int = 0
    has_read: bool = False


_READER: ContextVar[Reader | None] = ContextVar("reader", default=None)


def read_for(name: str) -> None:
    """From here on the request in work reads on account of this key or user."""
    _READER.set(Reader(name))


class Turns:
    """How many requests of one name read at once. What holds for one request holds for all connections that it takes."""

    def __init__(self, at_once_max: int, *, waiting_max: int = READS_WAITING_MAX) -> None:
        self._at_once_max = at_once_max
        self._waiting_max = waiting_max
        self._names: dict[str, tuple[asyncio.Semaphore, list[int]]] = {}

    @contextlib.asynccontextmanager
    async def turn(self, reader: Reader) -> AsyncIterator[None]:
        """Wait for a turn. Raises TooManyReads."""
        if reader.held:
            with _counted(reader):
                yield
            return
        free, waiting = self._names.setdefault(reader.name, (asyncio.Semaphore(self._at_once_max), [0]))
        waiting[0] += 1
        try:
            if waiting[0] > self._at_once_max + self._waiting_max:
                raise TooManyReads(f"{self._waiting_max} requests of {reader.name} wait already")
            try:
                await asyncio.wait_for(free.acquire(), READ_ON_S if reader.has_read else READ_WAIT_S)
            except TimeoutError:
                raise TooManyReads(f"{self._at_once_max} requests of {reader.name} are reading") from None
            try:
                with _counted(reader):
                    yield
            finally:
                free.release()
        finally:
            waiting[0] -= 1
            if not waiting[0]:
                self._names.pop(reader.name, None)


@contextlib.contextmanager
def _counted(reader: Reader) -> Iterator[None]:
    reader.held += 1
    reader.has_read = True
    try:
        yield
    finally:
        reader.held -= 1


class Requests(Database):
    """What handlers of requests use: see the module."""

    def __init__(self, pools: "Pools", turns: Turns) -> None:
        super().__init__(pools.dsn, pool_size=1, synchronous_commit="on")
        self._pools = pools
        self._turns = turns
        self._pinging: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Does nothing: the pools are opened as such."""

    @contextlib.asynccontextmanager
    async def connection(self) -> "AsyncIterator[Connection]":
        """A connection of the pool that goes with the request."""
        reader = _READER.get()
        if reader is None:
            async with self._pools.entrance.connection() as connection:
                yield connection
            return
        async with self._turns.turn(reader), self._pools.reading.connection() as connection:
            yield connection

    async def ping(self) -> None:
        """Raises unless a statement can be run. Many that ask at once share one answer, on the reserved connection."""
        if self._pinging is None:
            self._pinging = asyncio.create_task(self._pools.health.ping())
            self._pinging.add_done_callback(self._ponged)
        await asyncio.shield(self._pinging)

    def _ponged(self, task: "asyncio.Task[None]") -> None:
        self._pinging = None
        if not task.cancelled():
            task.exception()  # looked at, so that one for which nobody waited any more is not complained of


class Pools:
    """All of them. `size`: of that for ingest, which needs no more than `ingest_max`; reading gets half of it."""

    def __init__(self, dsn: str, *, size: int, synchronous_commit: Durability, ingest_max: int | None = None) -> None:
        def pool(pool_size: int, *, size_min: int = 0, statement_s_max: float | None = None) -> Database:
            return Database(
                dsn,
                pool_size=pool_size,
                synchronous_commit=synchronous_commit,
                size_min=size_min,
                statement_s_max=statement_s_max,
            )

        self.dsn = dsn
        reading = max(2, size // 2)
        self.ingest = pool(min(size, ingest_max or size))
        self.admission = pool(ADMISSION_SIZE, size_min=1)
        self.entrance = pool(ENTRANCE_SIZE)
        self.reading = pool(reading, statement_s_max=STATEMENT_S_MAX)
        self.background = pool(BACKGROUND_SIZE)
        self.health = pool(1, size_min=1)
        self.requests = Requests(self, Turns(max(1, min(READS_MAX, (reading + 1) // 2))))

    @property
    def all(self) -> "tuple[Database, ...]":
        """Every pool."""
        return self.ingest, self.admission, self.entrance, self.reading, self.background, self.health

    async def open(self) -> None:
        """Connect. Raises StoreUnavailable, StoreMisconfigured; then none is open."""
        try:
            for pool in self.all:
                await pool.open()
        except BaseException:
            await self.close(within_s=0)
            raise

    async def close(self, within_s: float = 10.0) -> None:
        """Close all of them, see `Database.close`."""
        await asyncio.gather(*(pool.close(within_s) for pool in self.all))
