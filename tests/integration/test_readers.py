"""Readers held against what was stored, made to read again, and events that they cannot read: on a real PostgreSQL, in process."""

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import msgspec
import pytest

from agent.simulator.postgres import Postgres
from agent.wire.batch import read_frames
from agent.wire.event import Event
from collector import query
from collector import stream as live
from collector.alert_reader import AlertReader, AlertSettings
from collector.analytics.folding import Folding
from collector.app import migrate_at
from collector.rules import RulesSettings
from collector.store import analytics, migrate, partitions, readers, stream
from collector.store.batches import CENTRE, Transaction
from collector.store.database import Database
from collector.store.events import ALL, Filter
from collector.store.stream import Cursor, Snapshot
from collector.vault import Vault
from tests.collector_process import Chain, event
from tests.postgres import connected

if TYPE_CHECKING:
    import asyncpg

    from collector.store.events import Record


class Store:
    """A database with its readers, each run by hand."""

    def __init__(self, database: Database, connection: "asyncpg.Connection[Any]", vault: Vault) -> None:
        self.database, self.connection, self.vault = database, connection, vault
        self.chain = Chain(lane=0)
        self.told: list[str] = []
        self.reader = self.new_reader()
        self.folding = Folding(database)

    def new_reader(self) -> AlertReader:
        return AlertReader(self.database, AlertSettings(look_s=0.1), RulesSettings(), ())

    async def put(self, *events: Event) -> None:
        """A batch, in a transaction of its own."""
        frame = next(read_frames(self.chain.seal(events).frame))
        async with self.connection.transaction():
            await Transaction(self.connection, UUID(self.chain.agent)).store([frame], 1, careful=True)  # type: ignore[arg-type]

    async def alerts(self, first: int, end: int) -> None:
        """Batches of one alert each; five kinds of them."""
        for number in range(first, end):
            await self.put(alert(number))

    async def read(self) -> None:
        """Alerts and analytics, until there is nothing more."""
        while await self.reader.step() or await self.reader.reread():
            pass
        while await self.folding._folded():
            pass

    async def counts(self) -> dict[str, int]:
        """Events counted in alerts of agents, by what they are about."""
        rows = await self.connection.fetch(
            "SELECT data -> 'key' ->> 'n' AS name, count FROM alerts WHERE agent_id <> $1 ORDER BY 1", CENTRE
        )
        return {row["name"]: row["count"] for row in rows}

    async def one(self, sql: str, *arguments: Any) -> Any:
        return await self.connection.fetchval(sql, *arguments)

    async def centre(self, kind: str) -> list[dict[str, Any]]:
        """Data of the centre's own events of a type."""
        rows = await self.connection.fetch(
            "SELECT data FROM security_events WHERE agent_id = $1 AND type = $2 ORDER BY batch_id, idx", CENTRE, kind
        )
        return [json.loads(row["data"]) for row in rows]

    async def make_due(self) -> None:
        await self.connection.execute(
            "UPDATE reader_checks SET checked = '-infinity'; UPDATE alert_reader SET looked = '-infinity'"
        )


def alert(number: int, **fields: Any) -> Event:
    data = {"handler": "h", "key": {"n": f"k{number % 5}"}}
    return event(f"alert {number}", **{"type": "alert.test", "severity": 4, "data": data, **fields})


@pytest.fixture
async def store(postgres: Postgres) -> AsyncIterator[Store]:
    name = f"r{uuid4().hex}"
    dsn = postgres.create_database(name)
    await migrate_at(dsn)
    database = Database(dsn, pool_size=4, synchronous_commit="on")
    await database.open()
    async with connected(dsn) as connection:
        await partitions.ensure(connection, ahead_days=0)
        vault = Vault()
        await vault.load(connection)
        made = Store(database, connection, vault)
        # The first look of each begins its checks.
        await made.read()
        yield made
    await database.close()
    postgres.drop_database(name)


# ── held against what was stored ──


async def test_a_check_of_readers_that_read_everything_finds_nothing(store: Store) -> None:
    for round_ in range(3):
        await store.alerts(10 * round_, 10 * round_ + 10)
        await store.read()
        await store.make_due()
        await store.read()
    assert await store.centre("alert.collector.reader") == []
    assert await store.one("SELECT count(*) FROM reader_checks WHERE differed IS NULL AND checked > '-infinity'") == 2


async def test_batches_that_a_reader_skipped_raise_an_alert_and_are_read_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fault of reading it was: here every third batch is left out of what a reader is given."""
    await store.make_due()
    given = stream.batches_between

    async def faulty(*arguments: Any, **options: Any) -> Any:
        batches, reached = await given(*arguments, **options)
        return [batch for batch in batches if batch["batch_id"] % 3], reached

    with monkeypatch.context() as patch:
        patch.setattr(stream, "batches_between", faulty)
        await store.alerts(0, 30)
        while await store.reader.step():
            pass
        while await analytics.fold(store.connection, store.vault.pseudonym) is not None:
            pass
    assert sum((await store.counts()).values()) < 30
    await store.make_due()
    await store.read()
    await store.read()
    found = await store.centre("alert.collector.reader")
    assert {one["reader"] for one in found} == {"alerts", "analytics"}
    assert all(one["stored_batches"] > one["read_batches"] and one["repairs"] for one in found)
    assert await store.counts() == {f"k{n}": 6 for n in range(5)}
    assert await store.one("SELECT sum(events)::bigint FROM activity WHERE type = 'alert.test'") == 30
    # It is an alert like any other, and it is there once.
    assert await store.one("SELECT count(*) FROM alerts WHERE type = 'alert.collector.reader'") == 2


async def test_an_alert_event_that_is_in_no_alert_is_found_though_its_batch_was_read(store: Store) -> None:
    await store.alerts(0, 5)
    await store.read()
    await store.connection.execute(
        "DELETE FROM alert_events WHERE batch_id = (SELECT max(batch_id) FROM alert_events WHERE agent_id <> $1)",
        CENTRE,
    )
    await store.make_due()
    await store.read()
    (found,) = await store.centre("alert.collector.reader")
    assert (found["reader"], found["uncounted"]) == ("alerts", 1)


async def test_partitions_that_were_dropped_after_they_were_read_are_no_difference(store: Store) -> None:
    await store.make_due()
    await store.alerts(0, 5)
    while await store.reader.step():
        pass
    await store.connection.execute("DELETE FROM evidence WHERE batch_id IN (SELECT min(batch_id) FROM evidence)")
    await store.connection.execute(
        "INSERT INTO tombstones (made, day, kind, rule, rule_key, events, streams, prev, hash) "
        "VALUES (clock_timestamp(), current_date, 'dropped', 'test', '', 1, '[]', repeat('0', 64), repeat('1', 64))"
    )
    await store.make_due()
    await store.read()
    assert await store.centre("alert.collector.reader") == []


# ── read again ──


async def test_reading_again_counts_what_was_missed_and_nothing_twice(store: Store) -> None:
    await store.alerts(0, 20)
    await store.put(event(type="collection.gap", severity=3, data={"events": 7, "reason": "missed"}))
    await store.put(event(type="collection.gap", severity=3, data={"events": 8, "reason": "found"}))
    await store.read()
    before = await store.counts()
    gaps = await store.centre("alert.collection.gap")
    assert sorted(one["lost"] for one in gaps) == [7, 8]
    # As if the reader had never seen some of them.
    await store.connection.execute("DELETE FROM alert_events WHERE batch_id % 4 = 0 AND agent_id <> $1", CENTRE)
    await store.connection.execute(
        "UPDATE alerts a SET count = (SELECT count(*) FROM alert_events e WHERE e.alert_id = a.alert_id) WHERE agent_id <> $1",
        CENTRE,
    )
    missed = await store.one(
        "SELECT batch_id FROM security_events WHERE data ->> 'lost' = '7' AND agent_id = $1", CENTRE
    )
    await store.connection.execute("DELETE FROM alert_events WHERE batch_id = $1", missed)
    await store.connection.execute("DELETE FROM security_events WHERE batch_id = $1", missed)
    assert await store.counts() != before
    for _ in range(2):
        await readers.request_repair(store.connection, readers.ALERTS)
        await store.read()
        assert await store.counts() == before
        assert sorted(one["lost"] for one in await store.centre("alert.collection.gap")) == [7, 8]
        assert await store.one("SELECT count(*) FROM alert_events a WHERE a.agent_id <> $1", CENTRE) == 20
    assert await store.one("SELECT reread IS NULL AND reread_to IS NULL FROM alert_reader")


async def test_reading_again_leaves_closed_alerts_closed(store: Store) -> None:
    await store.alerts(0, 10)
    await store.read()
    await store.connection.execute(
        "UPDATE alerts SET state = 'closed', reason = 'resolved' WHERE agent_id <> $1", CENTRE
    )
    first = await store.one("SELECT min(batch_id) FROM alert_events WHERE agent_id <> $1", CENTRE)
    await store.connection.execute("DELETE FROM alert_events WHERE batch_id = $1", first)
    await readers.request_repair(store.connection, readers.ALERTS)
    await store.read()
    assert await store.one("SELECT count(*) FROM alert_events WHERE batch_id = $1", first) == 1
    assert await store.one("SELECT count(*) FROM alerts WHERE state <> 'closed' AND agent_id <> $1", CENTRE) == 0


async def test_analytics_are_made_anew_from_the_events_that_are_kept_and_what_is_older_stays(store: Store) -> None:
    await store.alerts(0, 12)
    await store.read()
    right = await store.one("SELECT sum(events)::bigint FROM activity")
    await store.connection.execute("UPDATE activity SET events = events * 3; DELETE FROM transitions")
    await store.connection.execute(
        "INSERT INTO activity (bucket, place_id, type, severity, source, events) "
        "VALUES (now() - interval '20 days', 1, 'old', 1, 's', 42); "
        "INSERT INTO tombstones (made, day, kind, rule, rule_key, events, streams, prev, hash) "
        "VALUES (now(), current_date - 10, 'dropped', 'test', '', 42, '[]', repeat('0', 64), repeat('1', 64))"
    )
    await readers.request_repair(store.connection, readers.ANALYTICS)
    await store.read()
    assert await store.one("SELECT sum(events)::bigint FROM activity WHERE type <> 'old'") == right
    assert await store.one("SELECT events FROM activity WHERE type = 'old'") == 42
    assert await store.one("SELECT count(*) FROM transitions") > 0


async def test_the_migration_has_everything_read_again_once(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a database whose readers stood in the middle of a step of the former order."""
    files = migrate.migrations()
    old, new = Snapshot(1, 5, 5, ()), Snapshot(2, 9, 9, ())
    cursor = [7, msgspec.to_builtins(old), msgspec.to_builtins(new), [6, 1, 0]]
    async with connected(dsn) as connection:
        monkeypatch.setattr(migrate, "migrations", lambda: files[:13])
        await migrate.migrate(connection)
        await partitions.ensure(connection, ahead_days=0)
        chain = Chain()
        frame = next(read_frames(chain.batch("a").frame))
        async with connection.transaction():
            stored = Transaction(connection, UUID(chain.agent))  # type: ignore[arg-type]
            await stored.store([frame], 1, careful=False)
        await connection.execute("UPDATE alert_reader SET cursor = $1", json.dumps(cursor))
        await connection.execute("UPDATE analytics_state SET cursor = 'x'")
        monkeypatch.undo()
        await migrate.migrate(connection)
        row = await connection.fetchrow("SELECT cursor, reread, reread_to FROM alert_reader")
        assert row is not None
        assert msgspec.json.decode(row["cursor"], type=Cursor) == Cursor(7, new)
        assert (row["reread"], row["reread_to"]) == (0, await connection.fetchval("SELECT max(batch_id) FROM evidence"))
        assert await connection.fetchval("SELECT rebuild FROM analytics_state")


async def test_a_database_that_was_put_back_is_read_on_and_not_silent(store: Store) -> None:
    """In a copy the numbers of transactions begin lower than those that were read."""
    await store.alerts(0, 3)
    await store.read()
    home = await stream.home_of(store.connection)
    ahead = Cursor(home, Snapshot(1, 10**9, 10**9, ()))
    await store.connection.execute("UPDATE alert_reader SET cursor = $1", msgspec.json.encode(ahead).decode())
    await store.connection.execute("UPDATE analytics_state SET cursor = $1", ahead.encode())
    await store.read()
    await store.alerts(3, 10)
    await store.read()
    assert sum((await store.counts()).values()) == 10
    assert await store.one("SELECT sum(events)::bigint FROM activity WHERE type = 'alert.test'") == 10
    assert len(await store.centre("alert.collector.reader")) == 1


# ── what cannot be read ──

DEEP = '{"handler": "h", "x": ' + "[" * 980 + "]" * 980 + "}"
LONG = '{"handler": "h", "events": ' + "9" * 5_000 + "}"


@pytest.mark.parametrize("data", [DEEP, LONG], ids=["980 levels", "5,000 digits"])
@pytest.mark.parametrize("kind", ["alert.test", "collection.gap"])
async def test_data_beyond_the_bounds_that_is_stored_already_stops_no_reader(
    store: Store, kind: str, data: str
) -> None:
    """As it lies in a database of before: what is alert or gap still counts, and so does all that comes after."""
    await store.put(event(type=kind, severity=4))
    await store.connection.execute("UPDATE security_events SET data = $1::jsonb WHERE type = $2", data, kind)
    await store.alerts(1, 4)
    await store.read()
    assert await store.one("SELECT count(*) FROM alert_events WHERE agent_id <> $1", CENTRE) == 3 + (
        kind == "alert.test"
    )
    assert len(await store.centre("alert.collection.gap")) == (kind == "collection.gap")


async def test_an_event_that_cannot_be_read_is_counted_told_and_passed_over(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is about it: a rule that fails, or a value that PostgreSQL refuses."""
    rule = next(rule for rule in store.reader._event_rules if rule.name == "gap")

    def fails(_: "Record") -> None:
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(rule, "see", fails)
    await store.alerts(0, 2)
    await store.put(event(type="collection.gap", severity=3, data={"events": 1}))
    await store.alerts(2, 4)
    await store.read()
    assert sum((await store.counts()).values()) == 4
    assert store.reader.unread == 1
    (told,) = await store.centre("alert.collector.unread")
    assert told["events"] == [store.chain.identity(3, 0)]
    rows = await store.connection.fetch("SELECT reader, reason FROM unread_events")
    assert [tuple(row) for row in rows] == [("alerts", "RecursionError: maximum recursion depth exceeded")]
    await store.make_due()
    await store.read()
    assert await store.centre("alert.collector.reader") == []


async def test_a_batch_that_cannot_be_folded_is_counted_told_and_passed_over(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = analytics.sums_of

    def sums_of(rows: Any, *rest: Any) -> Any:
        if any(row["source"] == "poison" for row in rows):
            raise OverflowError("too large")
        return given(rows, *rest)

    monkeypatch.setattr(analytics, "sums_of", sums_of)
    await store.alerts(0, 2)
    await store.put(event(source="poison"))
    await store.alerts(2, 4)
    await store.read()
    assert await store.one("SELECT sum(events)::bigint FROM activity WHERE type = 'alert.test'") == 4
    assert [one["reader"] for one in await store.centre("alert.collector.unread")] == ["analytics"]
    await store.make_due()
    await store.read()
    assert await store.centre("alert.collector.reader") == []


@pytest.mark.parametrize("data", [DEEP, LONG], ids=["980 levels", "5,000 digits"])
async def test_a_live_stream_goes_on_behind_data_beyond_the_bounds(store: Store, data: str) -> None:
    start = Cursor(await stream.home_of(store.connection), await stream.now(store.connection))
    await store.put(event("bad", type="x.bad"), event("good", type="x.good", data={"v": 1}))
    await store.connection.execute("UPDATE security_events SET data = $1::jsonb WHERE type = 'x.bad'", data)
    hub = live.Hub(store.database, store.vault)
    until = await stream.now(store.connection)
    for wanted, expected in ((Filter(scope=ALL), 2), (Filter(scope=ALL, data='{"v":1}'), 1)):
        messages = [message async for message in hub.read_on(start, until, wanted)]
        assert sum(message.events for message in messages) == expected
        assert all(json.loads(message.body, parse_int=str) for message in messages if expected == 1)


async def test_a_live_stream_passes_over_an_event_that_cannot_be_shown(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = query.event_out

    def event_out(row: "Record", vault: Any) -> Any:
        if row["type"] == "x.bad":
            raise RecursionError("maximum recursion depth exceeded")
        return given(row, vault)

    monkeypatch.setattr(live, "event_out", event_out)
    start = Cursor(await stream.home_of(store.connection), await stream.now(store.connection))
    await store.put(event(type="x.good"), event(type="x.bad"), event(type="x.good"))
    hub = live.Hub(store.database, store.vault)
    messages = [message async for message in hub.read_on(start, await stream.now(store.connection), Filter(scope=ALL))]
    assert sum(message.events for message in messages) == 2
    assert hub.counts.unread == 1


async def test_live_clients_that_missed_something_are_ended_and_it_is_told(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = live.Hub(store.database, store.vault)
    client = live.Client(Filter(scope=ALL))
    hub.enter(client)
    await hub._advance()
    await store.alerts(0, 6)
    given = stream.batches_between

    async def faulty(*arguments: Any, **options: Any) -> Any:
        batches, reached = await given(*arguments, **options)
        return batches[1:], reached

    with monkeypatch.context() as patch:
        patch.setattr(stream, "batches_between", faulty)
        await hub._advance()
    assert not client.ended
    monkeypatch.setattr(readers, "EVERY_S", 0.0)
    await hub._advance()
    assert client.ended.startswith("events may have been skipped")
    (told,) = await store.centre("alert.collector.reader")
    assert (told["reader"], told["stored_batches"], told["read_batches"]) == ("streams", 6, 5)
