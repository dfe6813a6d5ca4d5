"""Enrolment in the store: what a token does to a known agent, in transactions that are rolled back."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from agent.simulator.postgres import Postgres
from collector.app import migrate_at
from collector.store import batches, identity, keys
from collector.store.identity import Proof, place_after
from tests.postgres import connected

HERE = ("Essen", "press", "cell4")


@pytest.fixture(scope="module")
def migrated(postgres: Postgres) -> str:
    dsn = postgres.create_database(f"i{uuid4().hex}")
    asyncio.run(migrate_at(dsn))
    return dsn


@pytest.fixture
async def store(migrated: str) -> AsyncIterator[Any]:
    """A connection in a transaction that leaves nothing."""
    async with connected(migrated) as connection:
        transaction = connection.transaction()
        await transaction.start()
        yield connection
        await transaction.rollback()


async def enrolled(
    store: Any, agent: UUID, place: tuple[str, str, str] = ("", "", ""), *, known: bool = False
) -> identity.AgentKey:
    """The key of an agent that was enrolled with a token of a place."""
    site, line, station = place
    word, token = await identity.create_token(
        store,
        site=site,
        line=line,
        station=station,
        agent_id=agent if known else None,
        expires=timedelta(hours=1),
        by="t",
    )
    public = uuid4().bytes + uuid4().bytes
    proof = Proof(agent, uuid4().hex, public, "proof", bytes(64))
    key, _, new = await identity.enrol(store, prefix=token.prefix, secret=word.partition(".")[2], proof=proof)
    assert new
    return key


async def stands(store: Any, agent: UUID) -> tuple[str, str, str]:
    row = await store.fetchrow(
        "SELECT site, line, station FROM agents JOIN places USING (place_id) WHERE agent_id = $1", agent
    )
    return row["site"], row["line"], row["station"]


@pytest.mark.parametrize(
    ("named", "then"),
    [
        (("", "", ""), HERE),
        (("Essen", "", ""), HERE),
        (("", "press", ""), HERE),
        (("", "", "cell5"), ("Essen", "press", "cell5")),
        (("", "weld", ""), ("Essen", "weld", "")),
        (("Ulm", "", ""), ("Ulm", "", "")),
        (("Ulm", "weld", "cell1"), ("Ulm", "weld", "cell1")),
    ],
)
async def test_an_agent_enrolled_again_keeps_its_place_unless_another_is_named(
    store: Any, named: tuple[str, str, str], then: tuple[str, str, str]
) -> None:
    agent = uuid4()
    await enrolled(store, agent, HERE)
    key = await enrolled(store, agent, named, known=True)
    assert (key.site, key.line, key.station) == await stands(store, agent) == then


async def test_an_agent_that_was_revoked_comes_back_to_its_place(store: Any) -> None:
    agent = uuid4()
    await enrolled(store, agent, HERE)
    await identity.revoke_agent(store, agent, "t")
    key = await enrolled(store, agent, known=True)
    assert (key.site, key.line, key.station) == HERE


async def test_an_agent_that_sent_with_an_api_key_keeps_its_place_when_it_is_enrolled(store: Any) -> None:
    agent = uuid4()
    place = await keys.place_named(store, *HERE)
    await store.execute(
        "INSERT INTO agents (agent_id, place_id, first_seen, last_seen) VALUES ($1, $2, now(), now())", agent, place
    )
    key = await enrolled(store, agent, known=True)
    assert (key.site, key.line, key.station) == HERE


async def test_a_new_api_key_without_a_place_does_not_move_a_known_agent(store: Any) -> None:
    agent = uuid4()
    await enrolled(store, agent, HERE)
    _, bare = await keys.create(store, role="agent", name="", site="", line="", station="", expires=None)
    _, other = await keys.create(store, role="agent", name="", site="Ulm", line="", station="", expires=None)
    transaction = batches.Transaction(store, agent)
    assert await transaction.place(bare) == await keys.place_named(store, *HERE)
    assert await transaction.place(other) == await keys.place_named(store, "Ulm", "", "")


async def test_an_agent_without_a_place_stands_nowhere_and_takes_the_one_it_is_given(store: Any) -> None:
    agent = uuid4()
    key = await enrolled(store, agent)
    assert (key.site, key.line, key.station) == ("", "", "")
    key = await enrolled(store, agent, ("", "press", ""), known=True)
    assert (key.site, key.line, key.station) == ("", "press", "") == place_after(("", "press", ""), ("", "", ""))
