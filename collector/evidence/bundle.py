"""The evidence bundle: events, and all that proves them, for somebody who has neither our database nor our trust. What is in it, and
how it is
checked, is told by its own verifier, bundle_verifier.py, which goes with it.

A batch is a whole: the hash covers all of its core lines, so those of other events are in it, too. They name nobody. Personal lines
are in it
only where asked for, and then only those of the events that were asked for. The same events under the same checkpoint make the same bytes.
"""

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from agent.wire.batch import Frame, MalformedBatch, decode_personal, read_frame
from agent.wire.signature import MalformedSignature, Run, read_text
from collector.evidence import checkpoint
from collector.store import evidence, tree
from collector.store.evidence import Kept, StoredSignature
from collector.store.merkle import consistency, inclusion, leaf_hash

if TYPE_CHECKING:
    from collector.evidence.note import Signer
    from collector.store.database import Anyone
    from collector.store.tree import StoredCheckpoint

EVENTS_MAX = 100_000
BATCHES_MAX = 5_000
CHAIN_MAX = 65_536
"""Headers from a batch to the end of what was signed with it: as many as a request may have."""
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
BATCH_ID = tuple[UUID, UUID, int, int]
"""Agent, buffer, lane, number."""


class NotProvable(Exception):
    """Something that is asked for cannot be proven. The text says what."""


@dataclass(slots=True)
class Made:
    """What was exported."""

    events: int
    batches: int
    signed: int
    checkpoint: "StoredCheckpoint"


@dataclass(slots=True)
class _Files:
    files: dict[str, bytes] = field(default_factory=dict)

    def add(self, name: str, body: bytes | str | Any) -> None:
        if isinstance(body, str):
            body = body.encode()
        self.files[name] = body if isinstance(body, bytes) else msgspec.json.encode(body, order="sorted")


def wanted_of(event_ids: Iterable[str]) -> dict[BATCH_ID, list[int]]:
    """Events by batch. Raises NotProvable."""
    found: dict[BATCH_ID, list[int]] = {}
    for count, event_id in enumerate(event_ids):
        if count >= EVENTS_MAX:
            raise NotProvable(f"more than {EVENTS_MAX} events are too many for a bundle. Narrow the filter")
        parts = event_id.split("/")
        try:
            batch = UUID(parts[0]), UUID(parts[1]), int(parts[2]), int(parts[3])
            found.setdefault(batch, []).append(int(parts[4]))
        except (ValueError, IndexError):
            raise NotProvable(f"{event_id[:200]!r} is no event's id: agent_id/buffer/lane/batch_no/index") from None
    if not found:
        raise NotProvable("no event fits, so there is nothing to prove")
    if len(found) > BATCHES_MAX:
        raise NotProvable(
            f"the events lie in {len(found)} batches; {BATCHES_MAX} are the most that a bundle takes. Narrow the filter"
        )
    return found


async def make(
    connection: "Anyone", wanted: dict[BATCH_ID, list[int]], query: str, signer: "Signer", *, personal: bool
) -> tuple[bytes, Made]:
    """The bytes of the bundle. Raises NotProvable."""
    out = _Files()
    batches = [await _batch(connection, batch) for batch in sorted(wanted, key=str)]
    leaves = [await _leaf(connection, kept) for kept, _ in batches]
    if None in leaves:
        await checkpoint.create(connection, signer)
        leaves = [await _leaf(connection, kept) for kept, _ in batches]
    known = [leaf for leaf in leaves if leaf is not None]
    if len(known) < len(leaves):
        raise NotProvable(
            "a batch is not in the tree yet: a transaction that began before it still runs. Try again in a minute"
        )
    last = await tree.checkpoint(connection, None)
    if last is None or last.leaves <= max(known) or last.key_id != signer.verifier.key_id.hex():
        last = await checkpoint.create(connection, signer)
    proofs: list[dict[str, Any]] = []
    signatures: dict[int, StoredSignature] = {}
    events: list[bytes] = []
    for number, ((kept, frame), leaf) in enumerate(zip(batches, known, strict=True), 1):
        folder = f"batches/{number:04d}"
        indexes = sorted(set(wanted[kept.agent_id, kept.buffer_id, kept.lane, kept.batch_no]))
        events += _put_batch(out, folder, kept, frame, indexes, personal=personal)
        out.add(f"{folder}/leaf", tree.batch_leaf(await tree.batch_row(connection, kept.batch_id)))
        proof = {
            "batch": _identity(kept), "folder": folder, "leaf": leaf, "path": await _path(connection, inclusion(leaf, last.leaves)),
            "signature": await _put_signature(connection, out, folder, kept, frame, signatures),
        }  # fmt: skip
        if leaf_hash(out.files[f"{folder}/leaf"]) != (await tree.leaf_at(connection, leaf)):
            raise NotProvable(
                f"batch {_identity(kept)} is not what went into the tree. See: linewarden-collector verify"
            )
        proofs.append(proof)
    out.add("events.ndjson", b"".join(line + b"\n" for line in events))
    earlier = await _earlier(connection, out, max(known), last)
    out.add("proofs.json", {"batches": proofs, "earlier": earlier})
    out.add("checkpoint.txt", last.note)
    await _put_keys(connection, out, signatures.values())
    signed = sum(proof["signature"] is not None for proof in proofs)
    return _zip(out, query, last, signer), Made(len(events), len(batches), signed, last)


def _identity(kept: Kept) -> str:
    return f"{kept.agent_id}/{kept.buffer_id.hex}/{kept.lane}/{kept.batch_no}"


async def _batch(connection: "Anyone", batch: BATCH_ID) -> tuple[Kept, Frame]:
    found = await evidence.stream_batches(connection, *batch, batch[3])
    name = f"{batch[0]}/{batch[1].hex}/{batch[2]}/{batch[3]}"
    if not found:
        raise NotProvable(f"batch {name} is not kept: retention has taken it away, or it never was")
    try:
        frame = read_frame(found[0].frame)
        frame.rows()
    except MalformedBatch as error:
        raise NotProvable(f"batch {name} does not hold: {error}. See: linewarden-collector verify") from None
    if frame.hash != found[0].hash:
        raise NotProvable(f"batch {name} is another than its hash names. See: linewarden-collector verify")
    return found[0], frame


async def _leaf(connection: "Anyone", kept: Kept) -> int | None:
    return await tree.leaf_of_batch(connection, kept.batch_id)


async def _path(connection: "Anyone", ranges: Any) -> list[str]:
    return [hash_.hex() for hash_ in (await tree.tree_for(connection, ranges)).hashes(ranges)]


def _put_batch(
    out: _Files, folder: str, kept: Kept, frame: Frame, indexes: list[int], *, personal: bool
) -> Iterable[bytes]:
    core = frame.core()
    out.add(f"{folder}/header.json", frame.header_bytes)
    out.add(f"{folder}/core.ndjson", core)
    lines, named = core.split(b"\n"), frame.personal_lines()
    if indexes[-1] >= len(lines):
        raise NotProvable(f"batch {_identity(kept)} has no event {indexes[-1]}")
    if personal:
        out.add(f"{folder}/personal.ndjson", b"\n".join(line if n in indexes else b"" for n, line in enumerate(named)))
    for index in indexes:
        event: dict[str, Any] = {"event_id": f"{_identity(kept)}/{index}", "core": msgspec.Raw(lines[index])}
        if personal and named[index]:
            event["personal"] = msgspec.to_builtins(decode_personal(named[index]))
        yield msgspec.json.encode(event)


async def _put_signature(
    connection: "Anyone", out: _Files, folder: str, kept: Kept, frame: Frame, known: dict[int, StoredSignature]
) -> str | None:
    """The agent's signature, and the headers that lead from this batch to the end of its run."""
    if kept.signature_id is None:
        return None
    if kept.signature_id not in known:
        begin, end = evidence.bounds(kept.received.date())
        found = await evidence.signatures(connection, begin, end, [kept.signature_id])
        if not found:
            raise NotProvable(f"the signature of batch {_identity(kept)} is not kept. See: linewarden-collector verify")
        known[kept.signature_id] = found[0]
        out.add(f"signatures/{kept.signature_id}.txt", found[0].signed)
        out.add(f"signatures/{kept.signature_id}.sig", found[0].signature.hex() + "\n")
    run = _run(known[kept.signature_id], kept)
    header = frame.header
    headers: list[str] = []
    if run.through > header.through:
        following = await evidence.stream_batches(
            connection, kept.agent_id, kept.buffer_id, kept.lane, header.through + 1, run.through, limit=CHAIN_MAX
        )
        headers = [read_frame(one.frame).header_bytes.decode() for one in following]
    out.add(f"{folder}/chain.json", headers)
    return f"signatures/{kept.signature_id}"


def _run(signature: StoredSignature, kept: Kept) -> Run:
    try:
        said = read_text(signature.signed.encode())
    except MalformedSignature as error:
        raise NotProvable(f"signature {signature.signature_id} cannot be read: {error}") from None
    for run in said.runs:
        if (run.buffer, run.lane) == (kept.buffer_id.hex, kept.lane) and run.first <= kept.batch_no <= run.through:
            return run
    raise NotProvable(
        f"signature {signature.signature_id} does not cover batch {_identity(kept)}. See: linewarden-collector verify"
    )


async def _put_keys(connection: "Anyone", out: _Files, signatures: Iterable[StoredSignature]) -> None:
    used = {signature.key_id: signature.agent_id for signature in signatures}
    keys = await evidence.agent_keys(connection, list(set(used.values()))) if used else {}
    out.add(
        "agent_keys.json",
        {
            key_id: {
                "agent": str(key.agent_id),
                "public_key": key.public_key.hex(),
                "from": key.valid_from,
                "until": key.ended,
            }
            for key_id, key in keys.items()
            if key_id in used
        },
    )


async def _earlier(connection: "Anyone", out: _Files, leaf: int, last: "StoredCheckpoint") -> list[dict[str, Any]]:
    """The first checkpoint that has all of the batches: it was published closest to when they came."""
    first = await tree.checkpoint(connection, None, leaves=leaf + 1)
    if first is None or first.checkpoint_id == last.checkpoint_id or first.key_id != last.key_id:
        return []
    out.add("earlier.txt", first.note)
    path = await _path(connection, consistency(first.leaves, last.leaves))
    return [{"note": "earlier.txt", "path": path}]


def _zip(out: _Files, query: str, last: "StoredCheckpoint", signer: "Signer") -> bytes:
    out.add("verify.py", files("collector.evidence").joinpath("bundle_verifier.py").read_bytes())
    out.add("README.txt", _README)
    manifest = {
        "format": 1, "made": last.made, "query": query, "origin": signer.name,
        "files": {name: hashlib.sha256(body).hexdigest() for name, body in sorted(out.files.items())},
    }  # fmt: skip
    body = msgspec.json.encode(manifest, order="sorted")
    signature, _ = signer.sign(b"linewarden bundle\n" + body)
    out.add("bundle.json", body)
    out.add("bundle.sig", base64.b64encode(base64.b64decode(signature)))
    out.add("key.txt", f"{signer.verifier}\n")
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in sorted(out.files.items()):
            info = zipfile.ZipInfo(name, _ZIP_TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)
    return made.getvalue()


_README = """Evidence of Linewarden

This bundle proves, to anybody, that the events in events.ndjson are what an agent recorded and a collector took in, unchanged since.

To check it: unpack it, and run in its folder

    python3 verify.py

Python 3.8 or later is enough; there is nothing to install, and nothing is sent anywhere. If you would rather not run a program that
came with
the evidence, take collector/evidence/bundle_verifier.py from a release of Linewarden: it is the same file.

All of it rests on one public key, in key.txt. Compare it with the one that the owner of the collector published before the
matter arose (the command linewarden-collector checkpoint key prints it), and give it: python3 verify.py --key KEY. A checkpoint that was
written off the machine at the time (earlier.txt has it, if there was one) has to be found where it was written, too.

    events.ndjson       the events that were asked for, one a line; `core` is what the agent recorded
    batches/N/          the batch that an event came in: header.json and core.ndjson, byte by byte as the hashes cover them; leaf: what went
                        into the collector's Merkle tree (RFC 9162); chain.json: headers up to the one that the agent signed
    personal.ndjson     where asked for: who did it, of the events that were asked for alone. Each line begins with its salt
    signatures/         what agents signed (Ed25519), and agent_keys.json with their public keys
    proofs.json         the way from each batch to the root of the tree
    checkpoint.txt      the root, signed (a signed note as of C2SP)
    bundle.json, .sig   the list of files, signed
"""
