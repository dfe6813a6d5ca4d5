"""Who signed: each batch of an enrolled agent against the signature of the request that it came in, and against the time of the key.

A signature names runs of batches by the hash of the last of each. A batch within a run is fixed by the chain that leads from it to
that last
one, which is followed elsewhere; the last one is held against the hash here.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from agent.wire.signature import MalformedSignature, Signed, holds, key_id_of, read_text
from collector.evidence.finding import Finding
from collector.store.evidence import AgentKey, Kept, StoredSignature

GRACE = timedelta(minutes=5)
"""A key is looked at when a request begins; what it brings may be stored so much later."""


class Read(NamedTuple):
    """A signature that was looked at: what it says, or why that counts for nothing."""

    said: Signed | None
    kind: str = ""
    trouble: str = ""


def read(signature: StoredSignature, keys: Mapping[str, AgentKey]) -> Read:
    """Check a signature by itself."""
    key = keys.get(signature.key_id)
    if key is None:
        return Read(None, "signature.forged", f"key {signature.key_id} is not known")
    try:
        said = read_text(signature.signed.encode())
    except MalformedSignature as error:
        return Read(None, "signature.forged", f"{error}")
    kind, trouble = "signature.forged", ""
    if not holds(key.public_key, signature.signed.encode(), signature.signature):
        trouble = f"the signature is not that of key {key.key_id} over what it says"
    elif (said.key, UUID(said.agent)) != (key.key_id, key.agent_id):
        trouble = f"key {key.key_id} does not speak for agent {said.agent}"
    elif signature.received < key.valid_from - GRACE:
        kind, trouble = "key.early", f"key {key.key_id} was used before it was taken up"
    elif key.ended is not None and signature.received > key.ended + GRACE:
        kind, trouble = (
            "key.late",
            f"key {key.key_id} was {key.why} on {key.ended:%Y-%m-%d %H:%M:%S}Z and used after that",
        )
    return Read(None if trouble else said, kind, trouble)


def batch_finding(batch: Kept, signatures: Mapping[int, Read], enrolled: datetime | None) -> Finding | None:
    """What is wrong with the signature of a batch. `enrolled`: since when its agent has to sign; None: it never had to."""
    if batch.signature_id is None:
        if enrolled is None or batch.received <= enrolled + GRACE:
            return None
        return _of(batch, "signature.absent", "the agent is enrolled, and no signature covers this batch")
    found = signatures.get(batch.signature_id)
    if found is None:
        return _of(batch, "signature.deleted", f"signature {batch.signature_id} is not kept")
    if found.said is None:
        return _of(batch, found.kind, found.trouble)
    buffer = batch.buffer_id.hex
    for run in found.said.runs:
        if (
            (run.buffer, run.lane) == (buffer, batch.lane)
            and run.first <= batch.batch_no
            and batch.through <= run.through
        ):
            if batch.through == run.through and batch.hash != run.hash:
                break
            if UUID(found.said.agent) == batch.agent_id:
                return None
    return _of(batch, "signature.forged", f"signature {batch.signature_id} does not cover this batch")


def _of(batch: Kept, kind: str, text: str) -> Finding:
    return Finding(
        kind=kind, text=text, agent=str(batch.agent_id), buffer=batch.buffer_id.hex, lane=batch.lane, batch=batch.batch_no,
        table="signatures",
    )  # fmt: skip


def key_findings(keys: Mapping[str, AgentKey]) -> Iterator[Finding]:
    """Keys of agents: each proved that it was there, and one that took the place of another was let in by it."""
    for key in keys.values():
        trouble = None
        if key_id_of(key.public_key) != key.key_id:
            trouble = "its id is not that of its public key"
        elif not holds(key.public_key, key.proof.encode(), key.signature) or key.public_key.hex() not in key.proof:
            trouble = "it did not sign its proof"
        elif key.parent is not None:
            parent = keys.get(key.parent)
            if parent is None or not holds(parent.public_key, key.proof.encode(), key.parent_signature or b""):
                trouble = f"key {key.parent}, whose place it took, did not sign for it"
        if trouble is not None:
            yield Finding(
                kind="key.changed", text=f"key {key.key_id}: {trouble}", agent=str(key.agent_id), table="agent_keys"
            )
