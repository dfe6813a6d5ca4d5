"""Persons: what is stored of one is exported whole, and taken out so that nothing of it is left and `verify` holds. On a real
PostgreSQL.
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.wire.batch import read_frame
from collector import processing, subject
from collector.app import migrate_at
from collector.audit import Who
from collector.config import Settings
from collector.evidence.verify import Wanted, verify
from collector.legal import held
from collector.store import analytics, partitions, retention, subjects
from collector.store.retention import Rule
from collector.subject import Refused, python_pattern
from collector.vault import Vault
from tests import evidence
from tests.collector_process import ROOT, Chain, Collector, event, events_of, post, run_cli
from tests.evidence import mixture, store
from tests.postgres import connected

NAME = "eve.adams"
ANN, BOB = Who("ann", "command"), Who("bob", "command")
TODAY = datetime.now(UTC).date()
ALONE = {"LINEWARDEN_COLLECTOR__PRIVACY__ERASE_TWO_PERSONS": "false"}


@asynccontextmanager
async def migrated(dsn: str) -> AsyncIterator[Any]:
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        await partitions.ensure(connection, ahead_days=1)
        yield connection


def named() -> list[Any]:
    """Every way in which an event can name her, and some that are not her."""
    return [
        event("a", actor=NAME),
        event("b", actor="EVE.Adams", data={"user": "bob"}),
        event("c", raw=f"Failed password for {NAME} from 10.0.0.1"),
        event("d", raw=f"session closed for user {NAME}."),
        event("e", data={"user": NAME, "n": 1}),
        event("f", data={"command": f"sudo -u {NAME} id", "n": 1}),
        event("g", actor=f"CORP\\{NAME}"),
        event("h", raw="nul \0 " + NAME),
        event("i", raw=f"two\n{NAME}\nlines"),
        event("not her", actor="eve.adams-smith"),
        event("nor her", actor="steve.adams"),
        event("nor her", raw="mail from eve.adams@corp.example"),
        event("nobody", data={"n": 2}),
        event("bob", actor="bob", raw="bob did it"),
    ]


HERS = 9


async def everything(connection: Any) -> str:
    """All that is readable in the database, frames opened."""
    found = []
    tables = await connection.fetch(
        "SELECT c.oid::regclass::text FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
    )
    for (table,) in tables:
        rows = await connection.fetch(f"SELECT t::text FROM {table} t")
        found += [row[0] for row in rows]
    for (wire,) in await connection.fetch("SELECT frame FROM evidence"):
        frame = read_frame(wire)
        found += [line.decode() for line in frame.personal_lines()] + [frame.core().decode()]
    return "\n".join(found)


def left(text: str) -> list[str]:
    return re.findall(r"(?i)(?<![\w.@-]).{0,30}\beve\.adams(?![\w@-]).{0,30}", text)


async def erase(connection: Any, *names: str, standing_until: Any = None) -> subject.Erased:
    holds = await held(connection)
    number = await subject.request(connection, ANN, names, "case 7", holds, standing_until)
    await subject.confirm(connection, BOB, number, holds, two_persons=True)
    return await subject.run(connection, BOB, number, holds)


async def test_nothing_of_a_person_is_left_anywhere_and_the_evidence_holds(dsn: str) -> None:
    async with migrated(dsn) as connection:
        chain, day = Chain(), TODAY - timedelta(days=4)
        for table in partitions.PARTITIONED:
            await partitions._make(connection, table, day)
        # Rows that left by retention while their frame stays: only the frame names her there.
        await store(connection, chain.seal([e for e in named() if "\0" not in (e.raw or "")]), day=day)
        await retention.run(connection, [Rule(severity_min=1, severity_max=4, days=2), Rule(days=90)], [], dry=False)
        assert await connection.fetchval("SELECT count(*) FROM security_events") == 0
        with Collector(dsn) as collector, collector.client(collector.key("agent")) as client:
            mine = Chain()
            assert post(client, mine.seal(named()), mine.seal(mixture(20))).status_code == 200
            with collector.client(collector.key("analyst")) as reader:
                assert len(events_of(reader, actor=NAME, personal="true")) == 1
            assert left(await everything(connection))
            done = await erase(connection, NAME)
            assert (done.events, done.batches, done.damaged, done.done) == (2 * HERS - 1, 2, [], True)
            assert left(await everything(connection)) == []
            with collector.client(collector.key("analyst")) as reader:
                assert events_of(reader, actor=NAME, personal="true") == []
                exported = reader.get("/v1/export", params={"personal": "true"}).text
                assert left(exported) == []
                assert "steve.adams" in exported
                assert "bob did it" in exported
        report = await verify(dsn, Wanted(processes=1))
        assert report.ok, report.findings
        assert report.erased == done.events
        assert await connection.fetchval("SELECT count(*) FROM security_events WHERE actor = 'eve'") == 7
        kept = await subjects.everything(connection)
        assert [(e.state, e.names, e.events, e.reason) for e in kept] == [("done", None, done.events, "case 7")]
        actions = [row[0] for row in await connection.fetch("SELECT action FROM audit_log ORDER BY no")]
        assert [a for a in actions if a.startswith("subject")] == [
            "subject.erase.requested",
            "subject.erase.confirmed",
            *["subject.lines.erased"] * actions.count("subject.lines.erased"),
            "subject.erased",
        ]


async def fold(connection: Any) -> Vault:
    vault = Vault()
    await vault.load(connection)
    while await analytics.fold(connection, vault.pseudonym) is not None:
        pass
    return vault


COUNTED = ("entity_activity", "transitions", "sequence_heads")


async def test_what_analytics_counted_of_a_person_leaves_with_them_and_nobody_else_does(dsn: str) -> None:
    async with migrated(dsn) as connection:
        chain = Chain()
        await store(connection, chain.seal([e for e in named() if "\0" not in (e.raw or "")]))
        vault = await fold(connection)
        # Not folded yet when the erasure comes: its rows are empty by the time that they are.
        await store(connection, chain.seal([event("late", actor=f"plant\\{NAME}"), event("bob", actor="bob")]))
        hers = [vault.pseudonym(actor) for actor in (NAME, "EVE.Adams", f"CORP\\{NAME}", f"plant\\{NAME}")]
        before = await everything(connection)
        assert [one in before for one in hers] == [True, True, True, False]
        done = await erase(connection, NAME)
        assert done.analytics_rows >= len(hers) - 1
        await fold(connection)
        after = await everything(connection)
        assert not [one for one in hers if one in after]
        assert left(after) == []
        assert NAME.encode().hex() not in after
        for other in ("eve.adams-smith", "steve.adams", "bob"):
            for table in COUNTED[::2]:
                sql = f"SELECT count(*) FROM {table} WHERE entity = $1"
                assert await connection.fetchval(sql, vault.pseudonym(other)), (table, other)
    assert (await verify(dsn, Wanted(processes=1))).ok


async def test_a_person_leaves_analytics_although_retention_dropped_the_events_before(dsn: str) -> None:
    async with migrated(dsn) as connection:
        await store(connection, Chain().seal([event("a", actor=NAME), event("b", actor="bob")]))
        vault = await fold(connection)
        for table in ("security_events", "evidence"):
            await connection.execute(f"TRUNCATE {table}")
        done = await erase(connection, NAME)
        assert (done.events, done.done) == (0, True)
        assert done.analytics_rows
        text = await everything(connection)
        assert vault.pseudonym(NAME) not in text
        assert vault.pseudonym("bob") in text


async def test_a_fold_that_has_read_a_person_s_rows_cannot_write_them_behind_the_erasure(dsn: str) -> None:
    async with migrated(dsn) as connection, connected(dsn) as folder, connected(dsn) as watcher:
        await store(connection, Chain().seal([event("a", actor=NAME)]))
        vault = Vault()
        await vault.load(connection)
        async with folder.transaction():
            assert await analytics.fold(folder, vault.pseudonym) == 1
            erasing = asyncio.create_task(erase(connection, NAME))
            async with asyncio.timeout(60):
                sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                while not await watcher.fetchval(sql):
                    await watcher.execute("SELECT pg_sleep(0.01)")
        done = await erasing
        assert done.analytics_rows
        assert vault.pseudonym(NAME) not in await everything(connection)


async def test_it_takes_two_persons_and_no_hold(dsn: str) -> None:
    async with migrated(dsn) as connection:
        await store(connection, Chain().seal(named()[:3]))
        with pytest.raises(Refused, match="names the person"):
            await subject.request(connection, ANN, [NAME], f"wish of {NAME}", [])
        with pytest.raises(Refused, match="no name"):
            await subject.request(connection, ANN, ["x"], "case 7", [])
        number = await subject.request(connection, ANN, [NAME], "case 7", [])
        with pytest.raises(Refused, match="somebody else"):
            await subject.confirm(connection, ANN, number, [], two_persons=True)
        with pytest.raises(Refused, match="is requested"):
            await subject.run(connection, BOB, number, [])
        hold = await evidence.hold(connection, "trial", f"actor={NAME}")
        holds = await held(connection)
        with pytest.raises(Refused, match=f"legal hold {hold} "):
            await subject.confirm(connection, BOB, number, holds, two_persons=True)
        with pytest.raises(Refused, match="legal hold"):
            await subject.request(connection, ANN, [NAME], "case 8", holds)
        await subject.withdraw(connection, ANN, number)
        assert (await subjects.everything(connection))[0].names is None
        with pytest.raises(Refused, match="withdrawn"):
            await subject.confirm(connection, BOB, number, [], two_persons=True)


async def test_what_comes_late_is_erased_while_a_request_stands(dsn: str) -> None:
    async with migrated(dsn) as connection:
        await store(connection, Chain().seal([event("a", actor=NAME)]))
        done = await erase(connection, NAME, standing_until=datetime.now(UTC) + timedelta(days=30))
        assert not done.done
        await store(connection, Chain().seal([event("b", actor=NAME), event("c", actor="bob")]))
        assert [one.events for one in await subject.go_on(connection, [])] == [1]
        assert [one.events for one in await subject.go_on(connection, [])] == [0]
        await connection.execute("UPDATE erasures SET standing_until = now()")
        assert [one.done for one in await subject.go_on(connection, [])] == [True]
        assert await subject.go_on(connection, []) == []
        assert left(await everything(connection)) == []
        assert await connection.fetchval("SELECT count(*) FROM security_events WHERE actor = 'bob'") == 1
    assert (await verify(dsn, Wanted(processes=1))).ok


async def test_a_kill_in_the_middle_leaves_what_holds_and_it_goes_on_from_there(dsn: str) -> None:
    async with migrated(dsn) as connection:
        chain = Chain()
        for _ in range(12):
            await store(
                connection,
                *[chain.seal([event("a", actor=NAME, raw="x" * 200), event("b", actor="bob")]) for _ in range(50)],
            )
        environment = {**os.environ, "LINEWARDEN_COLLECTOR__DATABASE__DSN": dsn, **ALONE}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "collector.cli", "subject", "erase", "--actor", NAME, "--reason", "case 7"),
            cwd=ROOT, env=environment, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        async with asyncio.timeout(60):
            while not await connection.fetchval("SELECT count(*) FROM erased_lines"):
                await connection.execute("SELECT pg_sleep(0.002)")
        process.kill()
        await process.wait()
        begun = await connection.fetchval("SELECT count(*) FROM erased_lines")
        assert 0 < begun < 600
        report = await verify(dsn, Wanted(processes=1))
        assert report.ok, report.findings
        assert await connection.fetchval("SELECT events FROM erasures") == begun
        resumed = await asyncio.to_thread(run_cli, dsn, "subject", "erase", "--resume", "1", **ALONE)
        assert resumed.returncode == 0, resumed.stderr
        assert f"{600 - begun} events" in resumed.stdout
        assert left(await everything(connection)) == []
        assert await connection.fetchval("SELECT events FROM erasures") == 600
    assert (await verify(dsn, Wanted(processes=1))).ok


async def test_a_frame_that_cannot_be_opened_keeps_the_request_open_and_is_named(dsn: str) -> None:
    async with migrated(dsn) as connection:
        chain = Chain()
        await store(connection, chain.seal([event("a", actor=NAME)]), chain.seal([event("b", actor=NAME)]))
        await connection.execute(
            "UPDATE evidence SET frame = set_byte(frame, 100, get_byte(frame, 100) # 1) WHERE batch_no = 1"
        )
        done = await erase(connection, NAME)
        assert (done.events, len(done.damaged), done.done) == (1, 1, False)
        assert (await subjects.everything(connection))[0].state == "running"


async def test_an_export_has_everything_of_a_person_and_says_so_in_the_audit_log(dsn: str, tmp_path: Path) -> None:
    async with migrated(dsn) as connection:
        chain = Chain()
        await store(
            connection,
            chain.seal([e for e in named() if "\0" not in (e.raw or "")]),
            chain.seal([event(f"hello {NAME}")]),
        )
        out = tmp_path / "her.json"
        done = await asyncio.to_thread(
            run_cli, dsn, "subject", "export", "--actor", NAME, "--output", str(out), "--reason", "case 7"
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(out.read_text())
        assert [e["message"] for e in found["events"]] == list("abcdefgi")
        assert found["core_mentions"] == 1
        assert out.stat().st_mode & 0o777 == 0o600
        record = await connection.fetchrow("SELECT action, data::text AS data FROM audit_log ORDER BY no DESC LIMIT 1")
        assert record is not None
        assert (record["action"], json.loads(record["data"])) == ("subject.exported", {"events": 8, "reason": "case 7"})


async def test_tables_of_other_parts_that_say_what_is_personal_in_them_are_looked_after(dsn: str) -> None:
    async with migrated(dsn) as connection:
        await connection.execute(
            "CREATE TABLE cases (n int, who text NOT NULL, more jsonb, note text); COMMENT ON COLUMN cases.who IS 'Personal: who'; "
            "COMMENT ON COLUMN cases.more IS 'Personal: more'; COMMENT ON COLUMN cases.note IS 'Not'"
        )
        await connection.execute(
            "INSERT INTO cases VALUES (1, $1, $2, 'x'), (2, 'bob', '{}', 'x')", NAME, json.dumps({"a": [{"b": NAME}]})
        )
        assert len((await subject.beside(connection, [NAME]))["elsewhere"]["cases"]) == 2
        done = await erase(connection, NAME)
        assert done.elsewhere == {"cases.who": 1, "cases.more": 1}
        assert [tuple(row) for row in await connection.fetch("SELECT who, more, note FROM cases ORDER BY n")] == [
            ("", None, "x"),
            ("bob", "{}", "x"),
        ]


names = st.text("abcXYZ019äÖЖß_-", min_size=2, max_size=12)


@given(
    name=names,
    before=st.sampled_from(["", " ", '"', "=", "\\", "("]),
    after=st.sampled_from(["", " ", '"', ",", ".", ". ", ")"]),
)
def test_a_name_is_found_as_a_word_whatever_it_is_made_of(name: str, before: str, after: str) -> None:
    expression = python_pattern([name])
    assert expression.search(f"{before}{name}{after}")
    assert not expression.search(f"x{name}{after}")
    assert not expression.search(f"{before}{name}x")


async def test_postgresql_and_python_find_the_same_names(dsn: str) -> None:
    awkward = [
        "o'brien",
        "a+b",
        "x[1]",
        "jörg",
        "日本",
        "a\\b",
        'q"q',
        "m.n",
        "(p)",
        "$r",
        "s^t",
        "u|v",
        "{2}",
        "w*",
        "y?",
        "a b",
    ]
    async with connected(dsn) as connection:
        for name in awkward:
            for text in (
                f"for {name} from",
                f"{name}",
                f"x{name}",
                f"{name}x",
                f"{name}.",
                f"{name}.org",
                f"{name.upper()}",
            ):
                stored = await connection.fetchval("SELECT $1::text ~ $2::text", text, subject.pattern_of([name]))
                assert stored == bool(python_pattern([name]).search(text)), (name, text)


def test_the_record_of_processing_says_what_is_configured() -> None:
    settings = Settings.model_validate(
        {
            "database": {"dsn": "postgresql://linewarden:secret@db/linewarden"},
            "retention": {"days": 365, "rules": [{"types": ["authentication.*"], "days": 90}]},
            "evidence": {"targets": ["https://worm.example/secret-path/{number}"]},
        }
    )
    record = processing.record_of(settings)
    assert [rule["days"] for rule in record["retention"]] == [90, 365, 1096, 1096]
    assert record["recipients"] == [
        {"setting": "evidence.targets[0]", "address": "https://worm.example", "what": "signed hashes, no personal data"}
    ]
    page = processing.html(record)
    assert "secret" not in page
    assert "authentication.*" in page
    assert "erasure takes two persons" in page


def test_the_commands_ask_for_what_they_need(dsn: str) -> None:
    assert run_cli(dsn, "migrate").returncode == 0
    done = run_cli(dsn, "subject", "erase", "--actor", NAME)
    assert done.returncode == 2
    assert "--reason" in done.stderr
    done = run_cli(dsn, "subject", "erase", "--actor", NAME, "--reason", "case 7", "--also", "eve")
    assert "--confirm 1" in done.stdout, done.stderr
    done = run_cli(dsn, "subject", "erase", "--confirm", "1")
    assert done.returncode == 1
    assert "somebody else" in done.stderr
    assert "Record of processing" in run_cli(dsn, "subject", "record").stdout
