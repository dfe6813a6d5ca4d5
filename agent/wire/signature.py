"""What an agent signs, and how it is checked: pure functions over bytes, the same on both sides and years later.

A request of batches is signed over this text, in UTF-8, each line ended by a line feed:

    linewarden batches 1
    agent 6f1c1a52-9d6b-4a9e-8f55-2f6f2f3f4c11
    key 5d0c…                                       see `key_id_of`
    sent 1790000000000000                           µs since the epoch, by the agent's clock
    status 9f86…                                    SHA-256 of what the agent says of itself (the header Linewarden-Status)
    body 2c26…                                      SHA-256 of the body as it was sent
    run 0f3a… 1 17 42 77ab…                         buffer, lane, first number, last number, hash of the last frame

A *run* is frames of one stream, in the order of the request, each of which names the one before it as `prev`. So the hash of the last one
fixes them all, by their chain: signing the ends of runs signs every batch. The frame after a gap names the last *lost* batch instead, so a
gap ends its run, and is signed by it.

The head of a request is signed too (`head_text`), so that the collector knows the sender before it takes the body:

    linewarden request 1
    agent, key, sent, status, body                  as above

A key speaks for itself when it is enrolled or takes the place of another (`enrolment_text`, `rotation_text`). The first line of each text
says what it is for, so that no signature can be taken for another. Signatures are Ed25519 (RFC 8032), 64 bytes.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from agent.wire.batch import Header

HEADER = "Linewarden-Signature"
HEAD = "Linewarden-Head"
SIGNATURE_BYTES = 64
PUBLIC_KEY_BYTES = 32
TEXT_BYTES_MAX = 16 * 1024 * 1024
"""A request of 65,536 runs has 10 MB of text; more is refused before it is read."""
_BATCHES = "linewarden batches 1"
_REQUEST = "linewarden request 1"
_ENROLMENT = "linewarden enrolment 1"
_ROTATION = "linewarden rotation 1"


class MalformedSignature(ValueError):
    """A text or header that is not what this module writes. The text says why."""


class Run(NamedTuple):
    """Frames of a stream in a row: `first` … `through`; `hash` is that of the last frame."""

    buffer: str
    lane: int
    first: int
    through: int
    hash: str


class Signed(NamedTuple):
    """What a signature of a request says."""

    agent: str
    key: str
    sent_us: int
    status_sha256: str
    body_sha256: str
    runs: tuple[Run, ...]


def key_id_of(public_key: bytes) -> str:
    """The name of a key: the first 32 hex digits of the SHA-256 of its 32 raw bytes."""
    return hashlib.sha256(public_key).hexdigest()[:32]


def runs_of(frames: Iterable[tuple["Header", str]]) -> tuple[Run, ...]:
    """The runs of a request's frames (header and hash of each), in the order in which they begin."""
    ended: list[Run] = []
    order: dict[tuple[str, int, int], int] = {}
    open_: dict[tuple[str, int], Run] = {}
    for header, frame_hash in frames:
        stream = header.buffer, header.lane
        before = open_.get(stream)
        if before is not None and before.hash == header.prev:
            open_[stream] = before._replace(through=header.through, hash=frame_hash)
            continue
        if before is not None:
            ended.append(before)
        open_[stream] = Run(header.buffer, header.lane, header.no, header.through, frame_hash)
        order.setdefault((header.buffer, header.lane, header.no), len(order))
    return tuple(sorted([*ended, *open_.values()], key=lambda run: order[run.buffer, run.lane, run.first]))


def signed_text(signed: Signed) -> bytes:
    """The bytes that are signed for a request."""
    lines = [
        _BATCHES,
        f"agent {signed.agent}",
        f"key {signed.key}",
        f"sent {signed.sent_us}",
        f"status {signed.status_sha256}",
        f"body {signed.body_sha256}",
        *(f"run {run.buffer} {run.lane} {run.first} {run.through} {run.hash}" for run in signed.runs),
    ]
    return ("\n".join(lines) + "\n").encode()


_HEAD = re.compile(
    _BATCHES
    + r"\nagent ([0-9a-f-]{36})\nkey ([0-9a-f]{32})\nsent (0|-?[1-9][0-9]{0,18})\nstatus ([0-9a-f]{64})\nbody ([0-9a-f]{64})\n"
)
_RUN = re.compile(r"run ([0-9a-f]{32}) (0|[1-9][0-9]?) ([1-9][0-9]{0,18}) ([1-9][0-9]{0,18}) ([0-9a-f]{64})")


def read_text(text: bytes) -> Signed:
    """What a signed text says; `signed_text` of it gives the same bytes. Raises MalformedSignature."""
    if len(text) > TEXT_BYTES_MAX:
        raise MalformedSignature(f"a signed text of {len(text)} bytes is too long")
    try:
        said = text.decode("ascii")
    except UnicodeDecodeError:
        raise MalformedSignature("the signed text is not ASCII") from None
    head = _HEAD.match(said)
    if head is None or not said.endswith("\n"):
        raise MalformedSignature("the signed text is not that of a request of batches")
    runs = []
    for line in said[head.end() :].split("\n")[:-1]:
        run = _RUN.fullmatch(line)
        if run is None:
            raise MalformedSignature(f"{line[:200]!r} is no run of batches")
        runs.append(Run(run[1], int(run[2]), int(run[3]), int(run[4]), run[5]))
    return Signed(head[1], head[2], int(head[3]), head[4], head[5], tuple(runs))


def head_text(*, agent: str, key: str, sent_us: int, status_sha256: str, body_sha256: str) -> bytes:
    """Return the text that is signed over the head of a request of batches."""
    lines = [
        _REQUEST,
        f"agent {agent}",
        f"key {key}",
        f"sent {sent_us}",
        f"status {status_sha256}",
        f"body {body_sha256}",
    ]
    return _lines(lines)


def enrolment_text(*, agent: str, public_key: bytes, token: str, url: str, sent_us: int) -> bytes:
    """What a new key signs to show that its private half is there. `token`: SHA-256 of the token's secret, hex; `url`: the collector's."""
    lines = [_ENROLMENT, f"agent {agent}", f"key {public_key.hex()}", f"token {token}", f"url {url}", f"sent {sent_us}"]
    return _lines(lines)


def rotation_text(*, agent: str, old_key: str, public_key: bytes, sent_us: int) -> bytes:
    """What both keys sign when a new one takes the place of an old one. `old_key`: the id of the old one."""
    lines = [_ROTATION, f"agent {agent}", f"old {old_key}", f"key {public_key.hex()}", f"sent {sent_us}"]
    return _lines(lines)


def _lines(lines: Iterable[str]) -> bytes:
    lines = list(lines)
    if any("\n" in line for line in lines):
        raise MalformedSignature("a line feed within a line")
    return ("\n".join(lines) + "\n").encode()


def write_header(key_id: str, signature: bytes) -> str:
    """The header that a signed request carries: version, key, signature."""
    return f"1 {key_id} {signature.hex()}"


_HEADER_VALUE = re.compile(r"1 ([0-9a-f]{32}) ([0-9a-f]{128})")


def read_header(value: str) -> tuple[str, bytes]:
    """Key id and signature of a request's header. Raises MalformedSignature."""
    return _read(
        value, _HEADER_VALUE, f"the header {HEADER} is not a version, a key and a signature: 1 KEY SIGNATURE, in hex"
    )


def write_head(body_sha256: str, signature: bytes) -> str:
    """Return the header that signs a request's head: version, SHA-256 of the body, signature."""
    return f"1 {body_sha256} {signature.hex()}"


_HEAD_VALUE = re.compile(r"1 ([0-9a-f]{64}) ([0-9a-f]{128})")


def read_head(value: str) -> tuple[str, bytes]:
    """Return SHA-256 of the body, and signature, of a request's head. Raises MalformedSignature."""
    return _read(
        value, _HEAD_VALUE, f"the header {HEAD} is not a version, a hash and a signature: 1 SHA256 SIGNATURE, in hex"
    )


def _read(value: str, form: re.Pattern[str], otherwise: str) -> tuple[str, bytes]:
    found = form.fullmatch(value)
    if found is None:
        raise MalformedSignature(otherwise)
    return found[1], bytes.fromhex(found[2])


def holds(public_key: bytes, text: bytes, signature: bytes) -> bool:
    """Whether a signature is that of this key (its 32 raw bytes) over this text."""
    # Imported here: what only builds texts does not load the library.
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True
