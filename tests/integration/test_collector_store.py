"""The tables on a real PostgreSQL: migrations, partitions, comments; and the commands that look after them."""

import asyncio
import json
import os
import signal
import ssl
from datetime import UTC, date, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import asyncpg
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from collector.app import migrate_at
from collector.store import migrate, partitions
from collector.store.database import StoreMisconfigured
from collector.store.migrate import Migration
from tests.collector_process import Chain, Collector, poll_until, post, run_cli, run_serve
from tests.ports import free_port
from tests.postgres import Postgres, connected


async def test_several_collectors_that_migrate_at_once_do_not_collide(dsn: str) -> None:
    ran = await asyncio.gather(*(migrate_at(dsn) for _ in range(6)))
    assert sorted(map(len, ran)) == [0, 0, 0, 0, 0, len(migrate.migrations())]
    assert await migrate_at(dsn) == []


def test_two_collectors_that_start_at_once_on_an_empty_database_both_serve(dsn: str) -> None:
    first, second = Collector(dsn), Collector(dsn)
    with first, second:
        chain = Chain()
        key = first.key("agent")
        batches = [chain.batch("a"), chain.batch("b")]
        with first.client(key) as one, second.client(key) as other:
            assert post(one, batches[0]).json()["events"] == 1
            answer = post(other, *batches).json()
            assert (answer["events"], answer["duplicates"]) == (1, 1)


async def test_a_migration_that_was_changed_after_it_ran_is_refused(dsn: str) -> None:
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        await connection.execute("UPDATE schema_migrations SET sha256 = 'other' WHERE version = 1")
        with pytest.raises(StoreMisconfigured, match=r"0001_events\.sql was changed"):
            await migrate.migrate(connection)


async def test_a_database_that_is_newer_than_the_program_is_refused(dsn: str) -> None:
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        await connection.execute("INSERT INTO schema_migrations (version, name, sha256) VALUES (9999, 'x', 'x')")
        with pytest.raises(StoreMisconfigured, match="9999"):
            await migrate.migrate(connection)


async def test_a_migration_that_fails_leaves_nothing_behind(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Migration(9000, "9000_broken.sql", "CREATE TABLE half_done (x int); SELECT nonsense;")
    known = migrate.migrations()
    monkeypatch.setattr(migrate, "migrations", lambda: [*known, broken])
    async with connected(dsn) as connection:
        with pytest.raises(StoreMisconfigured, match=r"9000_broken\.sql failed"):
            await migrate.migrate(connection)
        assert await connection.fetchval("SELECT to_regclass('half_done')") is None
        monkeypatch.undo()
        assert await migrate.migrate(connection) == []


async def test_every_table_view_and_column_has_a_comment(dsn: str) -> None:
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        await partitions.ensure(connection, ahead_days=1)
        tables = await connection.fetch(
            "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') "
            "AND c.relname NOT LIKE '%\\_default' AND obj_description(c.oid) IS NULL"
        )
        columns = await connection.fetch(
            "SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped "
            "WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition "
            "AND col_description(c.oid, a.attnum) IS NULL"
        )
    assert (tables, columns) == ([], [])


async def test_partitions_are_made_ahead_and_only_once_by_many_at_a_time(dsn: str) -> None:
    await migrate_at(dsn)
    connections = [await asyncpg.connect(dsn) for _ in range(4)]
    made = await asyncio.gather(*(partitions.ensure(connection, ahead_days=3) for connection in connections))
    assert sum(map(len, made)) == 12
    today = datetime.now(UTC).date()
    found = await partitions.look(connections[0])
    assert (found.days, found.through, found.stray) == (4, today + timedelta(days=3), 0)
    for connection in connections:
        await connection.close()


async def test_partitions_have_the_indexes_of_their_table(dsn: str) -> None:
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        (name, *_) = [n for n in await partitions.ensure(connection, ahead_days=0) if n.startswith("security_events_")]
        count = (
            "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE c.relname = $1 AND indisvalid"
        )
        assert await connection.fetchval(count, name) == await connection.fetchval(count, "security_events") > 3


async def test_rows_that_found_no_partition_are_kept_and_moved_when_it_is_made(dsn: str) -> None:
    await migrate_at(dsn)
    with Collector(dsn, STORE__PARTITIONS_AHEAD_DAYS="1") as collector:
        async with connected(dsn) as connection:
            today = datetime.now(UTC).date()
            for table in partitions.PARTITIONED:
                await connection.execute(f"DROP TABLE {table}_{today:%Y%m%d}")
            chain = Chain()
            with (
                collector.client(collector.key("agent")) as client,
                collector.client(collector.key("viewer")) as viewer,
            ):
                assert post(client, chain.batch("a", "b")).status_code == 200
                assert (await partitions.look(connection)).stray == 3
                assert run_cli(dsn, "db", "partition").returncode == 0
                found = await partitions.look(connection)
                assert found.stray == 0
                answer = viewer.get("/v1/events", params={"agent": chain.agent}).json()
                assert [e["message"] for e in answer["events"]] == ["b", "a"]


async def test_an_event_by_its_time_is_read_from_few_partitions(dsn: str) -> None:
    """The bound on `received` that a time filter brings leaves out the days before."""
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        begin = date(2026, 1, 1)
        for n in range(30):
            await partitions._make(connection, "security_events", begin + timedelta(days=n))
        plan = await connection.fetch(
            "EXPLAIN SELECT FROM security_events e WHERE e.time >= '2026-01-29T12:00Z' AND e.received >= '2026-01-28T12:00Z' "
            "ORDER BY e.time, e.batch_id, e.idx LIMIT 100"
        )
    text = "\n".join(row[0] for row in plan)
    assert "security_events_20260128" in text
    assert "security_events_20260127" not in text


# Commands


def test_agents_are_listed_for_people_and_for_scripts(dsn: str) -> None:
    with Collector(dsn) as collector:
        chain = Chain()
        with collector.client(collector.key("agent", site="north")) as client:
            post(client, chain.batch("a"))
    listed = run_cli(dsn, "agents")
    assert listed.returncode == 0
    assert chain.agent in listed.stdout
    assert listed.stdout.startswith("AGENT")
    (found,) = json.loads(run_cli(dsn, "agents", "--json").stdout)
    assert (found["agent_id"], found["site"], found["events"]) == (chain.agent, "north", 1)


def test_keys_are_listed_without_their_secret_and_revoked_by_prefix(dsn: str) -> None:
    run_cli(dsn, "migrate")
    made = json.loads(
        run_cli(dsn, "key", "create", "--role", "viewer", "--name", "dashboard", "--expires", "30d", "--json").stdout
    )
    listed = run_cli(dsn, "key", "list")
    assert made["prefix"] in listed.stdout
    assert "dashboard" in listed.stdout
    assert made["key"] not in listed.stdout
    assert run_cli(dsn, "key", "revoke", made["prefix"]).returncode == 0
    assert "revoked" in run_cli(dsn, "key", "list").stdout
    missing = run_cli(dsn, "key", "revoke", "nothere")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "key list" in missing.stderr


WRONG: dict[str, tuple[list[str], int]] = {
    "no command": ([], 2),
    "unknown command": (["dance"], 2),
    "unknown role": (["key", "create", "--role", "king"], 2),
    "no duration": (["key", "create", "--role", "viewer", "--expires", "soon"], 2),
    "no such file": (["migrate", "--config", "/nowhere.toml"], 2),
}


@pytest.mark.parametrize(("arguments", "code"), WRONG.values(), ids=WRONG.keys())
def test_wrong_usage_ends_with_2_and_no_traceback(arguments: list[str], code: int) -> None:
    done = run_cli("postgresql://nobody@127.0.0.1:1/none", *arguments)
    assert done.returncode == code
    assert done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [["migrate"], ["agents"], ["key", "list"], ["db", "partition"]])
def test_a_database_that_is_away_ends_with_1_and_says_so(command: list[str]) -> None:
    done = run_cli(f"postgresql://linewarden@127.0.0.1:{free_port()}/none", *command)
    assert done.returncode == 1
    assert "PostgreSQL cannot be used now" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_before_migrate_says_what_to_run(dsn: str) -> None:
    done = run_cli(dsn, "agents")
    assert done.returncode == 2
    assert "linewarden-collector migrate" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_database_that_does_not_exist_ends_with_2(postgres: Postgres) -> None:
    done = run_cli(postgres.dsn_of("not_there"), "migrate")
    assert done.returncode == 2
    assert "not_there" in done.stderr


def test_serve_stops_with_0_when_asked_to(dsn: str) -> None:
    collector = Collector(dsn).start()
    assert collector.stop() == 0
    assert "Traceback" not in collector.log


def test_serve_on_a_port_that_is_taken_ends_with_1_and_says_so(collector: Collector, dsn: str) -> None:
    done = run_serve(dsn, LINEWARDEN_COLLECTOR__SERVER__LISTEN=f"127.0.0.1:{collector.port}")
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_tls_is_1_3_and_the_certificate_is_read_again_on_hangup(dsn: str, tmp_path: Path) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    _write_certificate(certificate, key, "first")
    files = {"SERVER__CERTIFICATE_FILE": str(certificate), "SERVER__KEY_FILE": str(key)}
    collector = Collector(dsn, **files)
    collector.scheme = "https"
    with collector:

        def answer() -> int:
            context = ssl.create_default_context(cafile=str(certificate))
            with httpx.Client(verify=context, trust_env=False) as client:
                return client.get(f"{collector.url}/readyz").status_code

        assert answer() == 200
        old = ssl.create_default_context(cafile=str(certificate))
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with httpx.Client(verify=old, trust_env=False) as client, pytest.raises(httpx.ConnectError):
            client.get(f"{collector.url}/readyz")
        _write_certificate(certificate, key, "second")
        with pytest.raises(httpx.ConnectError):
            answer()
        os.kill(collector.pid, signal.SIGHUP)

        def renewed() -> bool:
            try:
                return bool(answer() == 200)
            except httpx.ConnectError:
                return False

        poll_until(renewed)


def _write_certificate(certificate: Path, key: Path, name: str) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key.write_bytes(private.private_bytes(encoding, form, serialization.NoEncryption()))


async def test_a_migration_with_a_number_below_the_newest_applied_is_refused(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = migrate.migrations()
    late = Migration(len(files) + 1, "late.sql", "CREATE TABLE late (x int)")
    newest = Migration(len(files) + 2, "newest.sql", "SELECT 1")
    async with connected(dsn) as connection:
        monkeypatch.setattr(migrate, "migrations", lambda: [*files, newest])
        await migrate.migrate(connection)
        monkeypatch.setattr(migrate, "migrations", lambda: [*files, late, newest])
        with pytest.raises(StoreMisconfigured, match=r"late\.sql did not run, and .* a migration below the newest"):
            await migrate.migrate(connection)
        assert await connection.fetchval("SELECT to_regclass('late')") is None


def test_migrations_are_numbered_without_a_hole() -> None:
    assert [one.version for one in migrate.migrations()] == list(range(1, len(migrate.migrations()) + 1))


async def test_a_database_whose_migrations_had_numbers_with_holes_is_taken_over(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of them runs again, and the rows are named as the files are now."""
    files = migrate.migrations()
    monkeypatch.setattr(migrate, "migrations", lambda: files[:13])
    async with connected(dsn) as connection:
        await migrate.migrate(connection)
        for before, after in reversed(migrate._RENUMBERED.items()):
            await connection.execute("UPDATE schema_migrations SET version = $1 WHERE version = $2", before, after)
        monkeypatch.undo()
        newer = [file.name for file in files[13:]]
        assert await migrate.pending(connection) == newer
        assert await migrate.migrate(connection) == newer
        rows = await connection.fetch("SELECT version, name FROM schema_migrations ORDER BY version")
    assert [tuple(row) for row in rows] == [(file.version, file.name) for file in files]
