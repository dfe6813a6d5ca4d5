"""An evidence bundle: made from a real database, checked by its own verifier in a clean process, then tampered with file by file."""

import asyncio
import io
import json
import subprocess
import sys
import zipfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.app import migrate_at
from collector.evidence import bundle, bundle_verifier, checkpoint
from collector.evidence.bundle import NotProvable
from collector.evidence.note import Signer
from collector.store import partitions
from tests.collector_process import Chain, Collector, event, poll_until, post, run_cli
from tests.evidence import mixture, store
from tests.integration.test_enrolment import enrolled
from tests.integration.test_evidence_signed import Station
from tests.postgres import connected

SIGNER = Signer("test.example/plant", Ed25519PrivateKey.generate())
KEY = str(SIGNER.verifier)


@asynccontextmanager
async def migrated(dsn: str) -> Any:
    await migrate_at(dsn)
    async with connected(dsn) as connection:
        await partitions.ensure(connection, ahead_days=1)
        yield connection


def run(place: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The verifier that came with the bundle, isolated: it finds nothing of ours and nothing that is installed."""
    command = [sys.executable, "-I", "-S", str(place / "verify.py"), *arguments]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, timeout=60)


async def incident(connection: Any) -> tuple[bytes, Station]:
    """Signed and unsigned batches, an earlier checkpoint, and a bundle of some events of them with who did it."""
    station, other = Station(connection), Chain()
    await station.live()
    await store(connection, other.seal(mixture(7)), other.seal(mixture(7)))
    await checkpoint.create(connection, SIGNER)
    await store(connection, Chain().seal(mixture(3)))
    await checkpoint.create(connection, SIGNER)
    ids = [
        station.chain.identity(1, 0),
        station.chain.identity(6, 0),
        other.identity(1, 0),
        other.identity(1, 3),
        other.identity(2, 1),
    ]
    body, made = await bundle.make(connection, bundle.wanted_of(ids), "case 7", SIGNER, personal=True)
    assert (made.events, made.batches, made.signed) == (5, 4, 2)
    again, _ = await bundle.make(connection, bundle.wanted_of(ids), "case 7", SIGNER, personal=True)
    assert again == body, "the same events under the same checkpoint make the same bytes"
    return body, station


def flipped(body: bytes) -> bytes:
    at = len(body) // 2
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :] if body else b"x"


def unpacked(body: bytes, place: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        archive.extractall(place)
    return place


async def test_anybody_can_check_a_bundle_and_each_file_of_it_that_is_changed_is_named(
    dsn: str, tmp_path: Path
) -> None:
    async with migrated(dsn) as connection:
        body, _ = await incident(connection)
    place = unpacked(body, tmp_path / "b")
    done = await asyncio.to_thread(run, place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 batches are under it; 2 are signed by their agents" in done.stdout
    assert "5 events are in these batches" in done.stdout
    assert "it continues the earlier checkpoint" in done.stdout
    assert (await asyncio.to_thread(run, place, "--key", KEY)).returncode == 0
    other = str(Signer(SIGNER.name, Ed25519PrivateKey.generate()).verifier)
    assert "not the key that you believe" in (await asyncio.to_thread(run, place, "--key", other)).stdout
    files = sorted(path for path in place.rglob("*") if path.is_file())
    assert len(files) > 20
    for file in files:
        if file.name == "verify.py":
            continue
        original = file.read_bytes()
        name = file.relative_to(place).as_posix()
        for changed in (flipped(original), None):
            file.unlink() if changed is None else file.write_bytes(changed)
            found = [line for line in _checked(place) if line.startswith("WRONG")]
            assert len(found) == 1, name
            assert name.partition(".")[0] in found[0] or name in ("bundle.sig", "key.txt"), (name, found)
        file.write_bytes(original)
    (place / "more.txt").write_text("x")
    assert "WRONG more.txt" in "".join(_checked(place))


def _checked(place: Path) -> list[str]:
    """In this process: a new one for each of so many files would take minutes."""
    lines: list[str] = []
    try:
        lines.extend(bundle_verifier.check(bundle_verifier.Bundle(place), None))
    except bundle_verifier.Wrong as error:
        lines.append(f"WRONG {error}")
    return lines


def _resigned(place: Path) -> None:
    """What somebody does who has the installation's key, and not the past: a new list over changed files."""
    import base64
    import hashlib

    manifest = json.loads((place / "bundle.json").read_text())
    manifest["files"] = {name: hashlib.sha256((place / name).read_bytes()).hexdigest() for name in manifest["files"]}
    text = json.dumps(manifest).encode()
    (place / "bundle.json").write_bytes(text)
    (place / "bundle.sig").write_bytes(base64.b64encode(SIGNER.private.sign(b"linewarden bundle\n" + text)))


CHANGES = {
    "batches/0001/core.ndjson": "core.ndjson: is not what the header names",
    "batches/0001/header.json": "",
    "batches/0001/leaf": "",
    "batches/0001/personal.ndjson": "is not the one that the event commits to",
    "events.ndjson": "events.ndjson",
    "checkpoint.txt": "checkpoint.txt: ",
    "earlier.txt": "earlier.txt: ",
}


async def test_the_proofs_hold_by_themselves_and_not_by_the_list_of_files(dsn: str, tmp_path: Path) -> None:
    async with migrated(dsn) as connection:
        body, _ = await incident(connection)
    for number, (name, said) in enumerate(CHANGES.items()):
        place = unpacked(body, tmp_path / str(number))
        file = place / name
        if name == "batches/0001/personal.ndjson":
            file = next(path for path in place.rglob("personal.ndjson") if b"eve" in path.read_bytes())
            file.write_bytes(file.read_bytes().replace(b"eve", b"bob"))
        else:
            text = file.read_bytes()
            at = next(n for n in range(len(text) // 2, len(text)) if chr(text[n]).isdigit())
            file.write_bytes(text[:at] + str((text[at] - 47) % 10).encode() + text[at + 1 :])
        _resigned(place)
        try:
            found = _checked(place)[-1]
        except (KeyError, ValueError, TypeError) as error:
            found = f"WRONG {error}"
        assert found.startswith("WRONG"), name
        assert said in found, found


async def test_without_being_asked_nobody_is_named_in_a_bundle(dsn: str) -> None:
    async with migrated(dsn) as connection:
        chain = Chain()
        await store(connection, chain.seal(mixture(9)))
        body, _ = await bundle.make(
            connection, bundle.wanted_of([chain.identity(1, 0)]), "case 7", SIGNER, personal=False
        )
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            whole = b"".join(archive.read(name) for name in archive.namelist())
        assert b'"eve"' not in whole
        body, _ = await bundle.make(
            connection, bundle.wanted_of([chain.identity(1, 3)]), "case 7", SIGNER, personal=True
        )
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            assert archive.read("batches/0001/personal.ndjson").count(b'"eve"') == 1, (
                "only of the event that was asked for"
            )


async def test_what_cannot_be_proven_is_refused_with_the_reason(dsn: str) -> None:
    async with migrated(dsn) as connection:
        chain = Chain()
        await store(connection, chain.seal(mixture(3)))
        for ids, said in (
            ([], "nothing to prove"),
            (["x"], "no event's id"),
            ([chain.identity(2, 0)], "is not kept"),
            ([chain.identity(1, 7)], "has no event 7"),
        ):
            with pytest.raises(NotProvable, match=said):
                await bundle.make(connection, bundle.wanted_of(ids), "x", SIGNER, personal=False)
        await connection.execute("UPDATE evidence SET frame = set_byte(frame, 100, get_byte(frame, 100) # 1)")
        with pytest.raises(NotProvable, match="does not hold"):
            await bundle.make(connection, bundle.wanted_of([chain.identity(1, 0)]), "x", SIGNER, personal=False)


def test_the_command_makes_a_bundle_and_it_is_recorded(dsn: str, tmp_path: Path) -> None:
    out = tmp_path / "case.zip"
    with Collector(dsn) as collector, collector.client(collector.key("agent")) as client:
        chain = Chain()
        assert (
            post(
                client,
                chain.seal([event("x", correlation_id="c7"), event("y")]),
                chain.seal([event("z", correlation_id="c7")]),
            ).status_code
            == 200
        )
    environment = {"LINEWARDEN_COLLECTOR__EVIDENCE__KEY_FILE": str(tmp_path / "key")}
    where = ("export", "--evidence", "--where", "correlation_id=c7")
    assert run_cli(dsn, *where, **environment).returncode == 2
    done = run_cli(dsn, *where, "--output", str(out), **environment)
    assert done.returncode == 0, done.stderr
    assert "2 events in 2 batches" in done.stdout
    checked = run(unpacked(out.read_bytes(), tmp_path / "b"), str(out))
    assert checked.returncode == 0, checked.stdout
    assert "evidence.exported" in asyncio.run(_last_action(dsn))
    assert UUID(chain.agent)


def test_an_incident_is_proven_with_its_alerts_and_their_causes_and_nothing_besides(dsn: str, tmp_path: Path) -> None:
    """A third party follows README.txt and nothing else."""
    environment = {"LINEWARDEN_COLLECTOR__EVIDENCE__KEY_FILE": str(tmp_path / "key")}
    with Collector(dsn) as collector, collector.client(collector.key("agent")) as client:
        chain = Chain()
        fired = event(
            "five failures", type="alert.authentication.burst", severity=4, correlation_id="c7", src_ip="10.0.0.9",
            data={"handler": "login_burst", "key": "10.0.0.9", "causes": ["c8", chain.identity(1, 3)]},
        )  # fmt: skip
        first = [event(f"no. {n}", correlation_id=name) for n, name in enumerate(["c7", "c8", "other", None, None])]
        assert post(client, chain.seal(first), chain.seal([fired])).status_code == 200
        poll_until(
            lambda: asyncio.run(_run(dsn, "SELECT incident_id, alert_id FROM alerts")), within_s=30, why="no alert"
        )
    incident_id, alert_id = asyncio.run(_run(dsn, "SELECT incident_id, alert_id FROM alerts"))[0]
    wanted = {chain.identity(1, 0), chain.identity(1, 1), chain.identity(1, 3), chain.identity(2, 0)}
    for option, number in (("--incident", incident_id), ("--alert", alert_id)):
        out = tmp_path / f"{option}.zip"
        done = run_cli(dsn, "export", "--evidence", option, str(number), "--output", str(out), **environment)
        assert done.returncode == 0, done.stderr
        place = unpacked(out.read_bytes(), tmp_path / option.strip("-"))
        lines = (place / "events.ndjson").read_text().splitlines()
        assert {json.loads(line)["event_id"] for line in lines} == wanted
        assert "python3 verify.py" in (place / "README.txt").read_text()
        checked = run(place)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        (place / "events.ndjson").write_text("\n".join(lines[1:]) + "\n")
        assert "WRONG events.ndjson" in run(place).stdout
    done = run_cli(
        dsn, "export", "--evidence", "--incident", "999", "--output", str(tmp_path / "no.zip"), **environment
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no incident 999" in done.stderr
    assert not (tmp_path / "no.zip").exists()


def test_what_an_enrolled_agent_sent_is_proven_with_its_own_signature(dsn: str, tmp_path: Path) -> None:
    """From the token to the bundle, all by commands and requests."""
    out, environment = tmp_path / "case.zip", {"LINEWARDEN_COLLECTOR__EVIDENCE__KEY_FILE": str(tmp_path / "key")}
    with Collector(dsn, IDENTITY__UNSIGNED="refuse") as collector:
        station = enrolled(tmp_path / "station", collector)
        batches = [station.chain.seal(mixture(5)) for _ in range(3)]
        assert station.post(*batches).status_code == 200
    first = station.chain.identity(1, 0)
    done = run_cli(dsn, "export", "--evidence", "--event", first, "--personal", "--output", str(out), **environment)
    assert done.returncode == 0, done.stderr
    checked = run(unpacked(out.read_bytes(), tmp_path / "b"))
    assert "1 batches are under it; 1 are signed by their agents" in checked.stdout, checked.stdout
    done = run_cli(dsn, "verify", "--json", **environment)
    assert json.loads(done.stdout)["findings"] == []
    asyncio.run(_run(dsn, "UPDATE signatures SET signature = set_byte(signature, 1, get_byte(signature, 1) # 1)"))
    done = run_cli(dsn, "verify", "--json", **environment)
    # The enrolment of the agent is itself told in a batch of the centre, which nobody signs.
    assert {(f["kind"], f["batch"]) for f in json.loads(done.stdout)["findings"]} == {
        ("signature.forged", n) for n in (1, 2, 3)
    }


async def _run(dsn: str, statement: str) -> list[Any]:
    async with connected(dsn) as connection:
        return list(await connection.fetch(statement))


async def _last_action(dsn: str) -> list[str]:
    async with connected(dsn) as connection:
        return [row[0] for row in await connection.fetch("SELECT action FROM audit_log")]


@settings(max_examples=25, deadline=None)
@given(seed=st.binary(min_size=32, max_size=32), message=st.binary(max_size=100), flip=st.integers(0, 64 * 8 - 1))
def test_the_verifier_s_own_ed25519_agrees_with_the_library(seed: bytes, message: bytes, flip: int) -> None:
    key = Ed25519PrivateKey.from_private_bytes(seed)
    public, signature = key.public_key().public_bytes_raw(), key.sign(message)
    assert bundle_verifier.signature_holds(public, message, signature)
    wrong = bytearray(signature)
    wrong[flip // 8] ^= 1 << flip % 8
    assert not bundle_verifier.signature_holds(public, message, bytes(wrong))
    assert not bundle_verifier.signature_holds(public, message + b"x", signature)


def test_the_verifier_s_own_ed25519_gives_the_answers_of_rfc_8032() -> None:
    public = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    signature = bytes.fromhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert bundle_verifier.signature_holds(public, b"\x72", signature)
    order = 2**252 + 27742317777372353535851937790883648493
    malleable = signature[:32] + (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
    assert not bundle_verifier.signature_holds(public, b"\x72", malleable)
