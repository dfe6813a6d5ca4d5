"""What the tables are like: sizes, partitions, what waits to be folded. Catalogue look-ups, never a scan."""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collector.store.database import Anyone


@dataclass(frozen=True, slots=True)
class Table:
    """A table or partition. `rows` is PostgreSQL's estimate; -1 where it has none yet."""

    name: str
    rows: int
    bytes: int
    index_bytes: int
    dead_rows: int
    last_vacuum: datetime | None


@dataclass(frozen=True, slots=True)
class Storage:
    """The database as a whole."""

    server: str
    database_bytes: int
    connections: int
    connections_max: int
    longest_transaction_s: float
    deltas_waiting: int
    oldest_delta: datetime | None
    text_search: bool
    """Whether days that are over are searched for text by an index."""
    tables: list[Table]
    partitions: list[Table]


async def look(connection: "Anyone") -> Storage:
    """All of it."""
    row = await connection.fetchrow(_WHOLE)
    if row is None:
        raise ConnectionError("no answer")
    found = [(r["partition"], Table(*(r[name] for name in Table.__slots__))) for r in await connection.fetch(_TABLES)]
    return Storage(
        **row,
        tables=[t for partition, t in found if not partition],
        partitions=[t for partition, t in found if partition],
    )


_WHOLE = """
SELECT current_setting('server_version') AS server, pg_database_size(current_database()) AS database_bytes,
    (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()) AS connections,
    current_setting('max_connections')::integer AS connections_max,
    (SELECT coalesce(max(extract(epoch FROM now() - xact_start)), 0)::float8 FROM pg_stat_activity
     WHERE datname = current_database()) AS longest_transaction_s,
    (SELECT count(*) FROM (SELECT FROM metric_deltas LIMIT 1000000) AS d) AS deltas_waiting,
    (SELECT hour FROM metric_deltas ORDER BY delta_id LIMIT 1) AS oldest_delta,
    EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_trgm') AS text_search
"""
_TABLES = """
SELECT c.relname AS name, c.relispartition AS partition, c.reltuples::bigint AS rows, pg_table_size(c.oid) AS bytes,
    pg_indexes_size(c.oid) AS index_bytes, coalesce(s.n_dead_tup, 0) AS dead_rows,
    greatest(s.last_vacuum, s.last_autovacuum) AS last_vacuum
FROM pg_class c LEFT JOIN pg_stat_user_tables s ON s.relid = c.oid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') ORDER BY c.relname
"""
