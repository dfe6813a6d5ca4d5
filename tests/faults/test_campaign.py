"""Faults in random combination, and one test for each promise that has to hold when they are over.

A short form here; at length: `make faults`, or `python -m tests.faults.campaign --minutes 60 --seed 1`.
"""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.campaign import FRESH_S_MAX, Result, campaign
from tests.faults.judge import Verdict, judge, table
from tests.postgres import connected

pytestmark = [pytest.mark.timeout(600)]

SEED = int(os.environ.get("LINEWARDEN_FAULTS_SEED", "7"))
SECONDS = float(os.environ.get("LINEWARDEN_FAULTS_SECONDS", "35"))


@dataclass(frozen=True, slots=True)
class Campaign:
    result: Result
    verdict: Verdict
    spoiled: dict[str, Verdict]
    """What the judge says after somebody spoiled something: a judge that sees nothing proves nothing."""


SPOILS = {
    "a row deleted": "DELETE FROM security_events WHERE ctid = (SELECT ctid FROM security_events WHERE data ? 'pid' LIMIT 1)",
    "a row doubled": "DROP INDEX security_events_once;"
    " INSERT INTO security_events SELECT * FROM security_events WHERE data ? 'pid' LIMIT 1",
    "a frame changed": "UPDATE evidence SET frame = (SELECT frame FROM evidence WHERE batch_no = 2 LIMIT 1) WHERE batch_no = 1",
    "a batch deleted": "DELETE FROM evidence WHERE batch_no = 3 AND lane = 1",
}


async def spoil(result: Result) -> dict[str, Verdict]:
    """The judge's word on each of these spoiled things, each mended again."""
    found = {}
    async with connected(result.dsn) as database:
        for name, sql in SPOILS.items():
            transaction = database.transaction()
            await transaction.start()
            await database.execute(sql)
            found[name] = await judge(result, database)
            await transaction.rollback()
    stream, no = next(iter(result.record.acked.items()))
    result.record.acked[stream] = no + 1_000
    found["an acknowledgement without a batch"] = await judge(result)
    result.record.acked[stream] = no
    return found


@pytest.fixture(scope="module")
def over(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """A campaign that is over."""

    async def play(folder: Path) -> Campaign:
        async with campaign(folder, seed=SEED, seconds=SECONDS) as (_, result):
            return Campaign(result, await judge(result), await spoil(result))

    done = asyncio.run(play(tmp_path_factory.mktemp("campaign")))
    print(table(done.result, done.verdict))
    return done


def test_faults_of_every_kind_came_to_pass(over: Campaign) -> None:
    assert over.result.faults.total() > 20
    assert over.result.acks_checked > 20
    assert over.verdict.lines > 1_000


@pytest.mark.parametrize("spoiled", [*SPOILS, "an acknowledgement without a batch"])
def test_the_judge_sees_what_was_spoiled(over: Campaign, spoiled: str) -> None:
    assert not over.spoiled[spoiled].holds


def test_what_was_acknowledged_is_stored_exactly_once(over: Campaign) -> None:
    assert over.verdict.lost_after_ack == []
    assert over.verdict.stored_twice == []


def test_what_is_stored_was_sent_byte_for_byte(over: Campaign) -> None:
    assert over.verdict.never_sent == []


def test_every_number_is_stored_or_pending_or_in_a_declared_gap(over: Campaign) -> None:
    assert over.verdict.undeclared == []
    assert over.result.pending == dict.fromkeys(over.result.pending, 0)


def test_nothing_is_acknowledged_before_its_commit(over: Campaign) -> None:
    assert over.verdict.early_acks == []


def test_requests_sent_twice_at_once_and_out_of_order_change_nothing(over: Campaign) -> None:
    harms = over.result.record.harms
    assert harms["sent twice"]
    assert harms["sent to two collectors at once"]
    assert harms["an old request sent again"]
    assert over.verdict.stored_twice == []
    assert over.verdict.out_of_order == []
    assert over.verdict.broken_chains == []


def test_after_the_faults_a_fresh_event_arrives_within_a_minute(over: Campaign) -> None:
    assert over.result.fresh_s
    assert max(over.result.fresh_s.values()) <= FRESH_S_MAX


def test_agents_stop_in_order_and_nobody_printed_a_traceback(over: Campaign) -> None:
    assert over.result.stops == dict.fromkeys(over.result.stops, 0)
    assert over.result.tracebacks == [], over.result.tracebacks[0]
