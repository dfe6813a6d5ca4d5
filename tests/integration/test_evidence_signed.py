"""Signatures of requests under `verify`: rows as ingest and enrolment write them, then tampered with, on a real PostgreSQL."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.wire.batch import Sealed, read_frame
from agent.wire.signature import Signed, enrolment_text, key_id_of, rotation_text, runs_of, signed_text
from collector.app import migrate_at
from collector.evidence.verify import Wanted, verify
from collector.store import partitions
from tests.collector_process import Chain, event
from tests.evidence import recorded, store
from tests.postgres import connected


class Station:
    """An enrolled agent: its chain and its keys."""

    def __init__(self, connection: Any) -> None:
        self.chain = Chain()
        self.connection = connection
        self.key = Ed25519PrivateKey.generate()

    @property
    def public(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    @property
    def key_id(self) -> str:
        return key_id_of(self.public)

    async def enrol(self) -> None:
        token = await self.connection.fetchval(
            "INSERT INTO enrolment_tokens (prefix, hash, created_by, expires) VALUES ($1, '', 'x', now()) RETURNING "
            "token_id",
            self.key_id[:8],
        )
        text = enrolment_text(agent=self.chain.agent, public_key=self.public, token="t", url="u", sent_us=1)
        await self._insert(text, self.key.sign(text), token, None, None)
        await recorded(self.connection, ("token", self.key_id[:8]), ("agent", self.chain.agent), action="agent.enrol")

    async def rotate(self) -> None:
        old, old_id = self.key, self.key_id
        self.key = Ed25519PrivateKey.generate()
        text = rotation_text(agent=self.chain.agent, old_key=old_id, public_key=self.public, sent_us=2)
        await self.connection.execute("UPDATE agent_keys SET valid_until = now() WHERE key_id = $1", old_id)
        await self._insert(text, self.key.sign(text), None, old_id, old.sign(text))
        await recorded(self.connection, ("agent", self.chain.agent), action="agent.key.change")

    async def _insert(
        self, text: bytes, signature: bytes, token: int | None, parent: str | None, by: bytes | None
    ) -> None:
        await self.connection.execute(
            "INSERT INTO agent_keys (key_id, agent_id, public_key, place_id, token_id, parent, proof, signature, parent_signature) "
            "VALUES ($1, $2, $3, 1, $4, $5, $6, $7, $8)",
            self.key_id, UUID(self.chain.agent), self.public, token, parent, text.decode(), signature, by,
        )  # fmt: skip

    async def send(self, batches: Sequence[Sealed]) -> None:
        frames = [read_frame(batch.frame) for batch in batches]
        runs = runs_of((frame.header, frame.hash) for frame in frames)
        text = signed_text(Signed(self.chain.agent, self.key_id, 1, "0" * 64, "0" * 64, runs))
        await store(self.connection, *batches)
        row = await self.connection.fetchrow(
            "SELECT min(batch_id) AS first, max(received) AS received FROM evidence WHERE agent_id = $1 AND batch_no >= $2",
            UUID(self.chain.agent), frames[0].header.no,
        )  # fmt: skip
        await self.connection.execute(
            "INSERT INTO signatures VALUES ($1, $2, $3, $4, $5, $6)",
            row["received"], row["first"], UUID(self.chain.agent), self.key_id, text.decode(), self.key.sign(text),
        )  # fmt: skip
        sql = "UPDATE evidence SET signature_id = $1 WHERE agent_id = $2 AND batch_no >= $3"
        await self.connection.execute(sql, row["first"], UUID(self.chain.agent), frames[0].header.no)

    async def live(self) -> None:
        """Enrolled, sends, changes its key, sends."""
        await self.enrol()
        lost = event("lost", type="collection.gap", source="buffer", data={"events": 7, "reason": "full"})
        await self.send([self.chain.batch(), self.chain.batch(), self.chain.seal([lost], gap=3), self.chain.batch()])
        await self.rotate()
        await self.send([self.chain.batch(), self.chain.batch()])


TAMPERED: dict[str, tuple[str, set[tuple[str, int | None]]]] = {
    "a signature": (
        "UPDATE signatures SET signature = set_byte(signature, 3, get_byte(signature, 3) # 1) WHERE signature_id = 1",
        {("signature.forged", n) for n in (1, 2, 3, 6)},
    ),
    "what was signed": (
        "UPDATE signatures SET signed = replace(signed, 'sent 1', 'sent 2') WHERE signature_id = 1",
        {("signature.forged", n) for n in (1, 2, 3, 6)},
    ),
    "a signature taken away": ("DELETE FROM signatures WHERE signature_id = 1", {("signature.deleted", n) for n in (1, 2, 3, 6)}),
    "another's signature": ("UPDATE evidence SET signature_id = 1 WHERE batch_no = 7", {("signature.forged", 7)}),
    "a batch without its signature": (
        "UPDATE agent_keys SET valid_from = valid_from - interval '1 hour'; UPDATE evidence SET signature_id = NULL WHERE batch_no = 2",
        {("signature.absent", 2)},
    ),
    "a key that was revoked before it signed": (
        "UPDATE agent_keys SET valid_from = now() - interval '3 hours', revoked = now() - interval '1 hour' WHERE parent IS NULL",
        {("key.late", n) for n in (1, 2, 3, 6)},
    ),
    "a key that was not there yet": (
        "UPDATE agent_keys SET valid_from = now() + interval '1 hour' WHERE parent IS NULL",
        {("key.early", n) for n in (1, 2, 3, 6)},
    ),
    "the public key of an agent": (
        "UPDATE agent_keys SET public_key = set_byte(public_key, 3, get_byte(public_key, 3) # 1) WHERE parent IS NULL",
        {("signature.forged", n) for n in (1, 2, 3, 6)} | {("key.changed", None)},
    ),
    "a key that let itself in": (
        "UPDATE agent_keys SET parent_signature = signature WHERE parent IS NOT NULL",
        {("key.changed", None)},
    ),
}  # fmt: skip


async def test_batches_of_an_enrolled_agent_hold_through_a_change_of_its_key(dsn: str) -> None:
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        await partitions.ensure(connection, ahead_days=1)
        await Station(connection).live()
        await store(connection, Chain().batch())
    report = await verify(dsn, Wanted(processes=1))
    assert report.ok, report.findings


@pytest.mark.parametrize("name", TAMPERED)
async def test_what_is_wrong_with_a_signature_or_a_key_is_told_for_each_batch(name: str, dsn: str) -> None:
    statement, wanted = TAMPERED[name]
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        await partitions.ensure(connection, ahead_days=1)
        await Station(connection).live()
        await connection.execute(statement)
    found = (await verify(dsn, Wanted(processes=1))).findings
    assert wanted <= {(f.kind, f.batch) for f in found}, found
    # The keys of an agent are held against the audit log, too.
    beside = {"agent.changed"} if "agent_keys" in statement else set()
    assert {f.kind for f in found} == {kind for kind, _ in wanted} | beside


def test_the_time_that_a_key_is_given_is_minutes_not_hours() -> None:
    from collector.evidence.signed import GRACE

    assert timedelta(minutes=1) < GRACE < timedelta(hours=1)
