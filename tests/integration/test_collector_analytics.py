"""Analytics on a real PostgreSQL: folded exactly once, bounded, within the scope of the key; nine answers through HTTP, never a scan."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import httpx
import pytest

from agent.simulator.postgres import Postgres
from agent.wire.batch import read_frames
from agent.wire.event import Event
from collector.analytics.registry import ANALYSES
from collector.app import migrate_at
from collector.store import analytics, partitions
from collector.store.batches import Transaction
from collector.vault import Vault
from tests.collector_process import Chain, Collector, event, now_us, poll_until, post
from tests.postgres import connected

if TYPE_CHECKING:
    import asyncpg

HOUR_US = 3_600_000_000
HOUR = timedelta(hours=1)
DAYS = 30


async def _store(connection: Any, events: list[Event], *, place_id: int = 1, chain: Chain | None = None) -> None:
    """What ingest does with a request, without HTTP."""
    chain = chain or Chain()
    frame = next(read_frames(chain.seal(events).frame))
    async with connection.transaction():
        await Transaction(connection, UUID(chain.agent)).store([frame], place_id, careful=False)


async def _pseudonym(connection: Any) -> analytics.Pseudonym:
    vault = Vault()
    await vault.load(connection)
    return vault.pseudonym


async def _fold(connection: Any) -> int:
    """Everything; how many events."""
    pseudonym = await _pseudonym(connection)
    total = 0
    while (folded := await analytics.fold(connection, pseudonym)) is not None:
        total += folded
    return total


@pytest.fixture
async def connection(postgres: Postgres) -> Any:
    name = f"n{uuid4().hex}"
    dsn = postgres.create_database(name)
    await migrate_at(dsn)
    async with connected(dsn) as opened:
        await partitions.ensure(opened, ahead_days=0)
        yield opened
    postgres.drop_database(name)


async def _total(connection: Any) -> int:
    found: int = await connection.fetchval("SELECT coalesce(sum(events), 0)::bigint FROM activity")
    return found


async def test_each_event_is_folded_once_though_collectors_fold_and_store_at_the_same_time(
    connection: "asyncpg.Connection[asyncpg.Record]", postgres: Postgres
) -> None:
    dsn = postgres.dsn_of(await connection.fetchval("SELECT current_database()"))
    stop = asyncio.Event()

    async def storing(seed: int) -> int:
        stored = 0
        chain = Chain()
        async with connected(dsn) as own:
            for _ in range(15):
                many = random.Random(seed).randint(1, 40)
                await _store(own, [event(actor="ann", src_ip="10.0.0.9") for _ in range(many)], chain=chain)
                stored += many
        return stored

    async def folding() -> None:
        async with connected(dsn) as own:
            while not stop.is_set():
                await _fold(own)
                await asyncio.sleep(0.01)

    folders = [asyncio.create_task(folding()) for _ in range(2)]
    stored = sum(await asyncio.gather(*(storing(seed) for seed in range(4))))
    stop.set()
    await asyncio.gather(*folders)
    await _fold(connection)
    assert await _total(connection) == stored
    assert await connection.fetchval("SELECT sum(events) FROM entity_activity WHERE kind = 'user'") == stored
    assert (await analytics.state(connection)).events == stored
    assert await _fold(connection) == 0


async def test_a_place_has_so_many_keys_and_totals_hold_beyond_them(
    connection: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    now = now_us()
    for part in range(3):
        flood = [
            Event(now, now, "authentication.failure", "s", src_ip=f"10.{part}.{n // 250}.{n % 250}", outcome="failure")
            for n in range(700)
        ]
        await _store(connection, flood)
        await _fold(connection)
    rows = await connection.fetch("SELECT entity, events, failures FROM entity_activity WHERE kind = 'address'")
    assert len(rows) == analytics.ENTITIES.keys_max + 1
    assert sum(row["events"] for row in rows) == sum(row["failures"] for row in rows) == 2100
    (other,) = [row for row in rows if row["entity"] == analytics.OTHER]
    assert other["events"] == 2100 - analytics.ENTITIES.keys_max
    assert (await analytics.state(connection)).beyond == other["events"]


async def test_no_name_of_a_user_is_kept_and_one_that_is_forgotten_is_in_no_table(
    connection: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    await _store(connection, [event(actor="Anna Schmidt") for _ in range(5)] + [event(actor="ben")])
    await _fold(connection)
    pseudonym = await _pseudonym(connection)
    for table in ("entity_activity", "transitions", "sequence_heads"):
        text = await connection.fetchval(f"SELECT string_agg(t::text, ' ') FROM {table} t")
        assert "Anna" not in text
        assert pseudonym("Anna Schmidt") in text
    assert await analytics.forget(connection, pseudonym("Anna Schmidt")) == 3
    for table in ("entity_activity", "transitions", "sequence_heads"):
        text = await connection.fetchval(f"SELECT coalesce(string_agg(t::text, ' '), '') FROM {table} t")
        assert pseudonym("Anna Schmidt") not in text


async def test_a_value_that_is_no_number_of_the_machine_s_is_no_reading(
    connection: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    now = now_us()
    values: list[Any] = [1.5, 2.5, True, "3", None, [1], 10**300, -(10**300), int("9" * 200)]
    await _store(
        connection, [Event(now, now, "equipment.reading", "plc", target="t", data={"value": value}) for value in values]
    )
    await _fold(connection)
    row = await connection.fetchrow("SELECT readings, low, high FROM signals")
    assert row is not None
    assert (row["readings"], row["low"], row["high"]) == (2, 1.5, 2.5)


async def test_old_counts_leave(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    await _store(connection, [event(actor="ann")])
    await _fold(connection)
    now = datetime.now(UTC)
    await analytics.expire(connection, now)
    assert await _total(connection) == 1
    await analytics.expire(connection, now + timedelta(days=36))
    assert await _total(connection) == 0
    assert await connection.fetchval("SELECT count(*) FROM entity_activity") == 1
    await analytics.expire(connection, now + timedelta(days=401))
    assert await connection.fetchval("SELECT count(*) FROM entity_activity") == 0


# ── through HTTP ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _plant(begin_us: int, hours: int) -> list[Event]:
    """A month of one station: a daily rhythm, a burst, one user who always does what follows, wear, and an attack at the end."""
    rng = random.Random(1)
    found = []
    for hour in range(hours):
        at = begin_us + hour * HOUR_US
        busy = 6 if 8 <= hour % 24 < 16 else 2
        many = busy + rng.randint(0, 2) + (60 if hour == hours - 100 else 0)
        found += [Event(at + n * 20_000_000, at, "log.line", "syslog") for n in range(many)]
        found.append(
            Event(at, at, "equipment.reading", "plc", target="vibration", data={"value": round(20 + 0.05 * hour + rng.gauss(0, 0.3), 3)})
        )  # fmt: skip
        if hour % 3 == 0:
            found.append(Event(at + 1, at, "authentication.success", "auth", actor="ann", src_ip="10.1.1.1"))
            found.append(Event(at + 60_000_000, at, "data.exported", "auth", actor="ann", src_ip="10.1.1.1"))
        if hour % 5 == 0:
            found.append(Event(at + 2, at, "authentication.success", "auth", actor="ben", src_ip="10.1.1.2"))
            found.append(Event(at + 60_000_000, at, "authentication.logout", "auth", actor="ben", src_ip="10.1.1.2"))
    last = begin_us + hours * HOUR_US - HOUR_US // 2
    found += [
        Event(last + n, last, "authentication.failure", "auth", actor="evelyn", src_ip="10.6.6.6", outcome="failure")
        for n in range(80)
    ]
    found.append(Event(last, last, "security.log.cleared", "auth"))
    return found


@pytest.fixture(scope="module")
def filled(postgres: Postgres) -> Iterator[Collector]:
    with Collector(postgres.create_database(f"f{uuid4().hex}")) as running:
        end = now_us() // HOUR_US * HOUR_US
        hours = DAYS * 24
        with running.client(running.key("agent", site="north", line="l1", station="press")) as agent:
            chain = Chain()
            events = _plant(end - hours * HOUR_US, hours)
            for start in range(0, len(events), 2000):
                assert post(agent, chain.seal(events[start : start + 2000])).status_code == 200
        with running.client(running.key("agent", site="south", line="l9", station="secret")) as agent:
            assert (
                post(agent, Chain().seal([event(src_ip="10.9.9.9", actor="zoe", time=end - HOUR_US)])).status_code
                == 200
            )

        async def folded() -> int:
            async with connected(running.dsn) as own:
                return (await analytics.state(own)).events

        poll_until(lambda: asyncio.run(folded()) == len(events) + 1, within_s=120, why="not folded")
        yield running


def ask(client: httpx.Client, name: str, **parameters: Any) -> dict[str, Any]:
    answer = client.get(f"/v1/analytics/{name}", params=parameters)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_all_nine_answer_with_where_their_numbers_come_from(filled: Collector) -> None:
    with filled.client(filled.key("analyst")) as client:
        for name in ANALYSES:
            found = ask(client, name, **({"limit": 100} if name == "maintenance" else {}))
            assert found["state"] == "ok", found
            assert found["sample_size"] > 0
            assert found["method"]
            assert found["version"]
            assert found["uncertainty"]
            assert found["inputs"]["tables"]
            assert found["begin"] < found["end"]


def test_what_was_planted_is_found(filled: Collector) -> None:
    with filled.client(filled.key("analyst")) as client:
        patterns = ask(client, "patterns", **{"from": (datetime.now(UTC) - timedelta(days=20)).isoformat()})["result"]
        assert any(abs(one["period_s"] - 86_400) < 9_000 for one in patterns["rhythms"])
        assert any(one["events"] >= 60 and one["key"] == "log.line" for one in patterns["bursts"])
        anomalies = ask(client, "anomalies")["result"]
        assert "authentication.failure" in [one["key"] for one in anomalies["new"]]
        users = ask(client, "sequences", per="user")["result"]["frequent"]
        assert ("authentication.success", "data.exported") in [(one["before"], one["after"]) for one in users]
        crossed = ask(
            client, "correlations", dimension="source", **{"from": (datetime.now(UTC) - timedelta(days=20)).isoformat()}
        )
        assert crossed["result"]["strength"] > 0.5
        signal = ask(client, "maintenance", limit=65)["result"]["signals"][0]
        # 20 + 0.05 h reaches 65 at hour 900: 180 hours from the end.
        assert signal["hours_to_limit"] == pytest.approx(180, abs=40)
        threats = ask(client, "threats")["result"]
        assert threats["level"] in ("high", "severe")
        assert "T0872" in [one["technique"] for one in threats["actions"]]
        risk = ask(client, "risk")["result"]["subjects"]
        assert risk[0]["subject"] == "north/l1/press"
        assert sum(part["points"] for part in risk[0]["contributions"]) == pytest.approx(risk[0]["risk"], abs=0.01)
        assert risk[0]["risk"] > risk[1]["risk"]
        load = ask(client, "forecast", of="load", horizon=48)
        assert load["uncertainty"]["back_test_mae"] <= load["uncertainty"]["seasonal_naive_mae"]
        assert len(load["result"]["hours"]) == 48
        assert load["result"]["load"]["busiest_events_per_s"] > 0
        assert {trend["key"] for trend in ask(client, "trends", last="7d")["result"]["trends"]} >= {None, "log.line"}
        assert ask(client, "trends", last="24h")["result"]["step_s"] == 3600


def test_nothing_of_another_site_is_in_any_answer(filled: Collector) -> None:
    with filled.client(filled.key("analyst", site="north")) as client:
        for name, analysis in ANALYSES.items():
            choices = [{"dimension": one} for one in analysis.dimensions] + [{"per": one} for one in analysis.pers]
            for parameters in choices or [{}]:
                text = str(ask(client, name, **parameters))
                assert "secret" not in text
                assert "10.9.9.9" not in text
                assert "south" not in text
    with filled.client(filled.key("analyst", site="south")) as client:
        assert ask(client, "forecast")["state"] == "insufficient data"
        assert ask(client, "forecast")["lacking"]
        assert ask(client, "risk")["result"]["subjects"][0]["subject"] == "south/l9/secret"


def test_users_are_pseudonyms_viewers_get_no_addresses_and_asking_is_recorded(filled: Collector) -> None:
    with filled.client(filled.key("viewer")) as client:
        found = ask(client, "risk", per="user")
        assert all(one["subject"].startswith("user-") for one in found["result"]["subjects"])
        assert "evelyn" not in str(found)
        refused = client.get("/v1/analytics/risk", params={"per": "address"})
        assert (refused.status_code, refused.json()["code"]) == (403, "personal")
    with filled.client(filled.key("analyst")) as client:
        subjects = [one["subject"] for one in ask(client, "risk", per="address")["result"]["subjects"]]
        assert "10.6.6.6" in subjects

    async def recorded() -> Counter[str]:
        async with connected(filled.dsn) as own:
            rows = await own.fetch("SELECT data ->> 'about' AS about FROM audit_log WHERE action = 'analytics.read'")
            return Counter(row["about"] for row in rows)

    count = asyncio.run(recorded())
    assert count["user"] >= 1
    assert count["address"] >= 1


def test_questions_that_make_no_sense_are_refused_with_what_to_do(filled: Collector) -> None:
    with filled.client(filled.key("analyst")) as client:
        for name, parameters in (
            ("risk", {"per": "source"}),
            ("risk", {"dimension": "type"}),
            ("patterns", {"step": "10min", "dimension": "user"}),
            ("trends", {"step": "hour", "from": "2020-01-01T00:00:00Z"}),
            ("trends", {"from": "2030-01-01T00:00:00Z", "to": "2029-01-01T00:00:00Z"}),
            ("patterns", {"from": "0001-01-01T00:00:00Z"}),
            ("patterns", {"tpye": "log.line"}),
            ("forecast", {"horizon": 100_000}),
            ("maintenance", {"limit": "much"}),
        ):
            answer = client.get(f"/v1/analytics/{name}", params=parameters)
            assert answer.status_code == 400, (name, parameters, answer.text)
            assert answer.json()["detail"]
        assert client.get("/v1/analytics/fortune").status_code == 404
    with filled.client() as client:
        assert client.get("/v1/analytics/risk").status_code == 401


def test_no_analysis_reads_events(filled: Collector) -> None:
    """The table of events is locked against reading; every analysis answers."""

    async def held(answered: list[float]) -> None:
        async with connected(filled.dsn) as own, own.transaction():
            await own.execute("LOCK TABLE security_events IN ACCESS EXCLUSIVE MODE")
            await asyncio.to_thread(asking, answered)

    def asking(answered: list[float]) -> None:
        with filled.client(filled.key("analyst")) as client:
            for name in ANALYSES:
                started = time.perf_counter()
                ask(client, name)
                answered.append(time.perf_counter() - started)

    answered: list[float] = []
    asyncio.run(held(answered))
    assert len(answered) == len(ANALYSES)
