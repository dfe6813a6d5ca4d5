"""Checkpoints: the root of the tree, signed by the installation, and written to where whoever owns the database does not reach.

Making one is idempotent work: the tree grows by what was committed since, its root is signed and stored. Each target then gets every
checkpoint in
order; where one cannot be written it waits for the next round, and health says so. A target may get one twice (killed between writing
and noting that it was written), never none.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from agent import owned_files
from collector.evidence import note as note_
from collector.evidence.note import Checkpoint, Signer
from collector.store import tree
from collector.store.database import StoreMisconfigured
from collector.store.merkle import MissingTile

if TYPE_CHECKING:
    from collector.store.database import Anyone
    from collector.store.tree import StoredCheckpoint

WRITE_S_MAX = 30.0
AT_ONCE = 1_000
"""Checkpoints written to a target in one round."""
KEY_BYTES_MAX = 10_000
SYSLOG_PRIORITY = 13 * 8 + 5
"""Facility log audit, severity notice."""
SCHEMES = ("file", "syslog+udp", "syslog+tcp", "syslog+tls", "http", "https")


class BadKey(Exception):
    """The key of the installation cannot be used. The text says why and what to do."""


class NotWritten(Exception):
    """A target did not take a checkpoint. The text says why."""


# ── the key ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def default_key_file() -> Path | None:
    """Where the key is, unless the settings say: a credential of systemd, or the service's folder of state; None outside of a service."""
    if (folder := os.environ.get("CREDENTIALS_DIRECTORY")) and (file := Path(folder) / "checkpoint.key").exists():
        return file
    folder = os.environ.get("STATE_DIRECTORY")
    return Path(folder.partition(":")[0]) / "checkpoint.key" if folder else None


def load_key(file: Path, *, make: bool) -> Ed25519PrivateKey:
    """The key in a file, made where there is none and `make` says so. Raises BadKey."""
    try:
        with contextlib.suppress(FileNotFoundError):
            return _read_key(file)
        if not make:
            raise BadKey(f"there is no key in {file}. It is made by: linewarden-collector checkpoint create")
        return _make_key(file)
    except OSError as error:
        raise BadKey(f"the key {file} cannot be used: {error.strerror or error}") from None


def _read_key(file: Path) -> Ed25519PrivateKey:
    with file.open("rb") as stream:
        mode = os.fstat(stream.fileno()).st_mode
        text = stream.read(KEY_BYTES_MAX)
    credential = file.is_relative_to(os.environ.get("CREDENTIALS_DIRECTORY", "/nowhere"))
    if stat.S_IMODE(mode) & 0o077 and not credential:
        raise BadKey(f"others may read {file}. Run: chmod 600 {file}; and if they may have: give a new key")
    try:
        key = load_pem_private_key(text, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadKey(f"{file} holds no key: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise BadKey(f"{file} holds a key of another kind. Make one: openssl genpkey -algorithm ed25519")
    return key


def _make_key(file: Path) -> Ed25519PrivateKey:
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    # Retention and checkpoints may both be the first to want a key.
    return key if owned_files.make_once(file, pem) else _read_key(file)


async def default_name(connection: "Anyone") -> str:
    """What an installation is called that was given no name."""
    return f"linewarden/{await tree.installation(connection)}"


async def signer(connection: "Anyone", file: Path, origin: str | None, *, make: bool) -> Signer:
    """The key under the name of the installation, which is made known. Raises BadKey."""
    key = await asyncio.to_thread(load_key, file, make=make)
    name = origin or await default_name(connection)
    made = Signer(name, key)
    await tree.keep_key(connection, made.verifier.key_id.hex(), str(made.verifier))
    return made


# ── making one ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def create(connection: "Anyone", by: Signer) -> "StoredCheckpoint":
    """Let the tree grow, sign its root, store it. Raises StoreMisconfigured where the tree was tampered with."""
    try:
        await tree.grow(connection)
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", tree.ADVISORY_LOCK)
            leaves = (await tree.state(connection)).leaves
            root = await tree.root(connection, leaves)
            made = datetime.now(UTC).replace(microsecond=0)
            text = note_.signed(Checkpoint(by.name, leaves, root, made), by)
            number = await tree.keep_checkpoint(
                connection, made=made, leaves=leaves, root=root, key_id=by.verifier.key_id.hex(), verifier=str(by.verifier), note=text
            )  # fmt: skip
    except MissingTile as error:
        raise StoreMisconfigured(
            f"the Merkle tree is not whole: {error}. No checkpoint is made of it. See: linewarden-collector verify"
        ) from error
    return tree.StoredCheckpoint(number, made, leaves, root.hex(), by.verifier.key_id.hex(), text)


# ── where it goes ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Places:
    """The targets of the settings. `authorization`: the header of a PUT, read anew for each."""

    targets: tuple[str, ...] = ()
    authorization: Callable[[], str | None] = lambda: None
    ca_file: Path | None = None


def problem_of(target: str) -> str | None:
    """What is wrong with the address of a target, in words; None where nothing is."""
    parts = urlsplit(target)
    if parts.scheme not in SCHEMES:
        return f"{target!r} is no target. Give one of {', '.join(f'{s}://' for s in SCHEMES)}"
    if parts.scheme == "file":
        return None if parts.path.startswith("/") and not parts.netloc else f"{target!r}: write file:///folder/file"
    try:
        port = parts.port
    except ValueError:
        return f"{target!r}: its port is no number"
    if not parts.hostname or (parts.scheme.startswith("syslog") and port is None):
        return f"{target!r}: a host is missing, or for syslog a port"
    return None


async def write_out(connection: "Anyone", places: Places) -> list[str]:
    """Write to every target what it does not have yet; what went wrong, a sentence each."""
    troubles = []
    for target in await tree.targets(connection, places.targets):
        waiting = await tree.checkpoints(connection, after=target.written, limit=AT_ONCE)
        for checkpoint in waiting:
            try:
                async with asyncio.timeout(WRITE_S_MAX):
                    await write(target.target, checkpoint, places)
            except (NotWritten, OSError, TimeoutError) as error:
                text = str(error) or f"no answer within {WRITE_S_MAX:g} s"
                await tree.failed(connection, target.target, text[:500])
                troubles.append(
                    f"checkpoint {checkpoint.checkpoint_id} could not be written to {target.target}: {text}"
                )
                break
            await tree.written(connection, target.target, checkpoint.checkpoint_id)
    return troubles


async def write(target: str, checkpoint: "StoredCheckpoint", places: Places) -> None:
    """Write one to one target. Raises NotWritten, OSError, TimeoutError."""
    parts = urlsplit(target)
    if parts.scheme == "file":
        await asyncio.to_thread(_append, Path(unquote(parts.path)), checkpoint.note)
    elif parts.scheme.startswith("syslog"):
        await _syslog(parts.scheme, parts.hostname or "", parts.port or 0, checkpoint, places)
    else:
        await _put(target, checkpoint, places)


def _append(file: Path, text: str) -> None:
    """Durably behind what is there. Line ends before it, so that what a kill left half-written does not run into it."""
    handle = owned_files.open_kept(file, mode=0o644, flags=os.O_APPEND | os.O_WRONLY)
    try:
        body = f"\n\n{text}\n".encode()
        if os.write(handle, body) != len(body):
            raise NotWritten("the disk is full")
        os.fsync(handle)
    finally:
        os.close(handle)


def syslog_line(checkpoint: "StoredCheckpoint", host: str) -> bytes:
    """RFC 5424; the line ends of the note as backslash n."""
    flat = checkpoint.note.replace("\n", "\\n")
    moment = checkpoint.made.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"<{SYSLOG_PRIORITY}>1 {moment} {host} linewarden-collector {os.getpid()} checkpoint - \ufeff{flat}".encode()


async def _syslog(scheme: str, host: str, port: int, checkpoint: "StoredCheckpoint", places: Places) -> None:
    line = syslog_line(checkpoint, socket.gethostname() or "-")
    if scheme == "syslog+udp":
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=(host, port))
        transport.sendto(line)
        transport.close()
        return
    context = ssl.create_default_context(cafile=places.ca_file) if scheme == "syslog+tls" else None
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        writer.write(f"{len(line)} ".encode() + line)  # octet counting, RFC 5425 and 6587
        await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
            # Whoever refuses us says so by closing before all was taken.
            await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _put(target: str, checkpoint: "StoredCheckpoint", places: Places) -> None:
    import httpx

    url = target.replace("{leaves}", str(checkpoint.leaves)).replace("{number}", str(checkpoint.checkpoint_id))
    headers = {"Content-Type": "text/plain; charset=utf-8"}
    if (authorization := await asyncio.to_thread(places.authorization)) is not None:
        headers["Authorization"] = authorization
    verify = ssl.create_default_context(cafile=places.ca_file)
    try:
        async with httpx.AsyncClient(timeout=WRITE_S_MAX, trust_env=False, verify=verify) as client:
            answer = await client.put(url, content=checkpoint.note.encode(), headers=headers)
    except httpx.HTTPError as error:
        raise NotWritten(f"{error}" or type(error).__name__) from error
    if not answer.is_success:
        raise NotWritten(f"answered {answer.status_code}")


def overdue(made: datetime | None, every_s: float, targets: "Sequence[tree.Target]", now: datetime) -> str | None:
    """What health has to say of checkpoints; None where all is well."""
    if made is None:
        return "no checkpoint was made yet"
    if (age_s := (now - made).total_seconds()) > 2 * every_s + 60:
        return f"the last checkpoint is {age_s / 60:.0f} minutes old"
    for target in targets:
        if target.since is not None and (now - target.since).total_seconds() > 2 * every_s:
            return f"{target.target} takes no checkpoint since {target.since:%Y-%m-%d %H:%M}Z: {target.trouble}"
    return None
