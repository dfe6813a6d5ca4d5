"""Checkpoints as signed notes (C2SP signed-note and tlog-checkpoint): a text that people and programs read, and its Ed25519 signature.

    linewarden.example/plant           origin
    1234                               leaves
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2   root, base64
    time 2026-01-31T14:00:00Z
                                       (an empty line)
    — linewarden.example/plant 5/a9qYs… base64 of 4 bytes of key id and the signature

A *verifier key* names a public key in one line: name+key id+base64(0x01 ‖ key). Several notes may stand one after the other in a file,
or each in
one line of a syslog, its line ends written as backslash n; `notes_in` finds them among other lines.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_ED25519 = b"\x01"
_KEY_ID_BYTES = 4
_HASH_BYTES = 32
_SIGNATURE_BYTES = 64
NAME_PATTERN = re.compile(r"[A-Za-z0-9._/-]{1,200}")
SIGNATURE = "\u2014 "
_NOTE = re.compile(r"(?:[^\n]+\n){3,20}\n(?:\u2014 [^\n]+\n?){1,20}")


class BadNote(ValueError):
    """A text that is no signed checkpoint, or not by the key. It says why."""


class NoNote(BadNote):
    """No note at all, or half of one: whoever wrote it was killed."""


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key and the name it signs under."""

    name: str
    public: bytes

    @property
    def key_id(self) -> bytes:
        """Four bytes that tell it from others."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:_KEY_ID_BYTES]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(_ED25519 + self.public).decode()}"

    def holds(self, signature: bytes, message: bytes) -> bool:
        """Whether it signed this."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except InvalidSignature:
            return False
        return True


def verifier_key(text: str) -> VerifierKey:
    """Read one. Raises BadNote."""
    try:
        name, key_id, encoded = text.strip().split("+", 2)
        raw = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error):
        raise BadNote(f"{text.strip()[:60]!r} is no verifier key: name+key id+base64") from None
    key = VerifierKey(name, raw[1:])
    if raw[:1] != _ED25519 or len(key.public) != _HASH_BYTES or key.key_id.hex() != key_id:
        raise BadNote(f"verifier key {name} is damaged: its id does not fit")
    return key


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key and the name it signs under."""

    name: str
    private: Ed25519PrivateKey

    @property
    def verifier(self) -> VerifierKey:
        """Its public half."""
        return VerifierKey(self.name, self.private.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> tuple[str, str]:
        """The signature, base64, and the id of the key, hex."""
        return base64.b64encode(self.private.sign(message)).decode(), self.verifier.key_id.hex()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a note says."""

    origin: str
    leaves: int
    root: bytes
    made: datetime | None = None

    def body(self) -> str:
        """What is signed."""
        extra = f"time {self.made.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}\n" if self.made is not None else ""
        return f"{self.origin}\n{self.leaves}\n{base64.b64encode(self.root).decode()}\n{extra}"


def signed(checkpoint: Checkpoint, signer: Signer) -> str:
    """The note."""
    body = checkpoint.body()
    blob = signer.verifier.key_id + signer.private.sign(body.encode())
    return f"{body}\n{SIGNATURE}{signer.name} {base64.b64encode(blob).decode()}\n"


def read(note: str) -> tuple[Checkpoint, str, list[tuple[str, bytes, bytes]]]:
    """What it says, the text that is signed, and its signatures: name, key id, signature. Raises BadNote."""
    body, empty, rest = note.partition("\n\n")
    lines = body.split("\n")
    if not empty or len(lines) < 3:  # noqa: PLR2004
        raise NoNote("not a signed note: there is no empty line before the signatures")
    try:
        leaves, root = int(lines[1]), base64.b64decode(lines[2], validate=True)
        stamps = [line.removeprefix("time ") for line in lines[3:] if line.startswith("time ")]
        made = datetime.fromisoformat(stamps[0]) if stamps else None
        signatures = []
        for line in rest.strip("\n").split("\n"):
            dash, name, encoded = line.split(" ")
            blob = base64.b64decode(encoded, validate=True)
            if dash == SIGNATURE.strip():
                signatures.append((name, blob[:_KEY_ID_BYTES], blob[_KEY_ID_BYTES:]))
    except (ValueError, binascii.Error):
        raise NoNote("not a checkpoint: origin, leaves, root, an empty line, signatures") from None
    whole = all(len(signature) == _SIGNATURE_BYTES for _, _, signature in signatures)
    if len(root) != _HASH_BYTES or leaves < 0 or not whole:
        raise NoNote("not a checkpoint: its root or a signature is cut short")
    return Checkpoint(lines[0], leaves, root, made), body + "\n", signatures


def opened(note: str, keys: "list[VerifierKey]") -> tuple[Checkpoint, VerifierKey]:
    """What it says, and which of the keys signed it. Raises BadNote."""
    checkpoint, body, signatures = read(note)
    for name, key_id, signature in signatures:
        for key in keys:
            if (key.name, key.key_id) == (name, key_id):
                if key.holds(signature, body.encode()):
                    return checkpoint, key
                raise BadNote(f"the signature of {name} is forged")
    raise BadNote(f"signed by {', '.join(f'{n} ({i.hex()})' for n, i, _ in signatures)}, of which no key is known here")


def notes_in(text: str) -> Iterator[str]:
    """The notes in a file, or in lines of a syslog."""
    for line in text.splitlines():
        if "\\n\\n" + SIGNATURE in line:
            # From a syslog: what stands before the origin is the syslog's.
            flat = line.replace("\\n", "\n")
            head, end, rest = flat.partition("\n")
            origin = head.rpartition(" ")[2].lstrip("\ufeff") + end
            yield from _NOTE.findall(origin + rest)
    yield from _NOTE.findall("\n".join(line for line in text.splitlines() if "\\n" not in line) + "\n")
