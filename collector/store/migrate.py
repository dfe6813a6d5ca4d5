"""The tables and how they came about: plain SQL files, each run once, in order, each in one transaction.

`schema_migrations` has a row for each file that ran, with the SHA-256 of what it was. An advisory lock lets one collector at a
time migrate: of two that start at once the second waits and finds everything done. A file that was changed after it ran, or a database
that is newer than this program, is refused: neither may be guessed at.

Files are numbered 1, 2, 3 … without a hole, and run in that order on every database. A file with a number below the newest that ran is
refused: on databases that are migrated step by step it would run after the files that follow it, on new ones before them.
"""

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

import asyncpg

from collector.store.database import StoreMisconfigured, translated

if TYPE_CHECKING:
    from collector.store.database import Plain

_RENUMBERED = {17: 9, 20: 10, 21: 11, 22: 12, 23: 13}
"""Numbers of the time before they had no holes, and what the same files are called since."""
ADVISORY_LOCK = 0x4C57_0001
"""Key of the lock: "LW", 1."""
SERVER_VERSION_MIN = 140_000

_VERSIONS = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version integer PRIMARY KEY, name text NOT NULL, sha256 text NOT NULL, applied timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE schema_migrations IS 'Which migrations made these tables';
COMMENT ON COLUMN schema_migrations.version IS 'Number of the migration';
COMMENT ON COLUMN schema_migrations.name IS 'Its file';
COMMENT ON COLUMN schema_migrations.sha256 IS 'SHA-256 of the file as it was run';
COMMENT ON COLUMN schema_migrations.applied IS 'When it was run';
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of store/sql."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """What identifies its text."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """Return the files of store/sql in order. Raises StoreMisconfigured where a number is missing or given twice."""
    found = [
        Migration(int(match[1]), file.name, file.read_text(encoding="utf-8"))
        for file in files("collector.store").joinpath("sql").iterdir()
        if (match := re.fullmatch(r"(\d{4})_\w+\.sql", file.name))
    ]
    found.sort(key=lambda migration: migration.version)
    for number, migration in enumerate(found, 1):
        if migration.version != number:
            raise StoreMisconfigured(
                f"{migration.name} stands where migration {number:04} is expected. Install the collector again: its files are incomplete"
            )
    return found


async def migrate(connection: "Plain") -> list[str]:
    """Run what was not run yet; the names of what was run. Raises StoreMisconfigured, StoreUnavailable."""
    with translated():
        version = connection.get_server_version()
        if version.major * 10_000 < SERVER_VERSION_MIN:
            raise StoreMisconfigured(f"PostgreSQL {version.major} is too old: 14 or later is needed")
        await connection.execute("SELECT pg_advisory_lock($1)", ADVISORY_LOCK)
        try:
            return await _run(connection)
        finally:
            if not connection.is_closed():
                await connection.execute("SELECT pg_advisory_unlock($1)", ADVISORY_LOCK)


async def _run(connection: "Plain") -> list[str]:
    async with connection.transaction():
        # client_min_messages: "relation already exists, skipping" is no news.
        await connection.execute("SET LOCAL client_min_messages = warning; " + _VERSIONS)
        await _renumber(connection)
    done = {
        row["version"]: row["sha256"] for row in await connection.fetch("SELECT version, sha256 FROM schema_migrations")
    }
    known = migrations()
    if ahead := set(done) - {migration.version for migration in known}:
        raise StoreMisconfigured(
            f"the database has migration {max(ahead)}, which this program does not know. Upgrade the collector"
        )
    newest = max(done, default=0)
    ran = []
    for migration in known:
        if migration.version not in done:
            if migration.version < newest:
                raise StoreMisconfigured(
                    f"{migration.name} did not run, and {newest:04} did: a migration below the newest applied is never run. "
                    "Give it the next free number, or put back the database that belongs to this program"
                )
            await _apply(connection, migration)
            ran.append(migration.name)
        elif done[migration.version] != migration.sha256:
            raise StoreMisconfigured(
                f"{migration.name} was changed after it ran on this database. Put the file back as it was; changes belong in a new one"
            )
    return ran


async def _renumber(connection: "Plain") -> None:
    """Give rows of migrations that were renumbered their number and name of today. Only what is the same file, by its hash, is renamed."""
    known = {migration.version: migration for migration in migrations()}
    for before, after in _RENUMBERED.items():
        if (migration := known.get(after)) is not None:
            await connection.execute(
                "UPDATE schema_migrations SET version = $1, name = $2 WHERE version = $3 AND sha256 = $4 "
                "AND NOT EXISTS (SELECT FROM schema_migrations WHERE version = $1)",
                after, migration.name, before, migration.sha256,
            )  # fmt: skip


async def _apply(connection: "Plain", migration: Migration) -> None:
    async with connection.transaction():
        try:
            await connection.execute(migration.sql, timeout=None)
        except (asyncpg.SyntaxOrAccessError, asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
            raise StoreMisconfigured(f"{migration.name} failed and was rolled back: {error}") from error
        await connection.execute(
            "INSERT INTO schema_migrations (version, name, sha256) VALUES ($1, $2, $3)",
            migration.version,
            migration.name,
            migration.sha256,
        )


async def pending(connection: "Plain") -> list[str]:
    """Names of migrations that did not run yet."""
    with translated():
        if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
            return [migration.name for migration in migrations()]
        done = {row[0] for row in await connection.fetch("SELECT version FROM schema_migrations")}
        done |= {_RENUMBERED[version] for version in done & set(_RENUMBERED)}
    return [migration.name for migration in migrations() if migration.version not in done]
