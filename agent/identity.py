"""Who this agent is: an id made on first run, and from its enrolment on a key that signs what it sends.

    STATE/agent_id                 a UUID
    STATE/identity/identity.json   what the collector said at enrolment, and which key is the current one
    STATE/identity/key.pem         that key, Ed25519, readable by the agent's user alone
    STATE/identity/key.new.pem     a key that is to become it: enrolling or changing the key is under way
    STATE/identity/ca.pem          the authority that the collector's certificate has to come from

`identity.json` decides. A new key lies in `key.new.pem`, on the disk for good, before the collector hears of it; when the collector has
taken it, `identity.json` names it, and that is the moment of the change; the renaming after it is done by whoever comes next, if this
program is killed before. Killed earlier, the command or the agent asks again with the same key, and the collector answers the same.
"""

import fcntl
import hashlib
import os
import stat
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from annotated_types import Ge

from agent import owned_files
from agent.component import ConfigError
from agent.wire.batch import header_of
from agent.wire.signature import Signed, head_text, key_id_of, runs_of, signed_text, write_head, write_header

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FOLDER = "identity"
KEY_BYTES_MAX = 16_384
ID_BYTES_MAX = 100
SAVED_BYTES_MAX = 4_194_304
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_STRANGERS = stat.S_IWGRP | stat.S_IRWXO
"""A systemd credential lets the service in by an access list, which shows as rights of the group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityConfig:
    """[identity]

    key_file     the agent's private key (Ed25519, PEM), where something else keeps it: a systemd credential, say. None: the agent makes one
                 when it is enrolled, and keeps it in its state folder
    rotate_days  a new key takes the place of one that is older; 0: never. A key of `key_file` is changed by whoever keeps it
    """

    key_file: str | None = None
    rotate_days: Annotated[int, Ge(0)] = 90

    def __post_init__(self) -> None:
        if self.key_file is not None and not self.key_file.startswith("/"):
            raise ValueError(f"key_file: {self.key_file!r} is not an absolute path; write it from / on")

    def problems(self) -> Iterable[tuple[str, str, str]]:
        """Whether the key can be used."""
        if self.key_file is not None:
            try:
                load_key(Path(self.key_file), external=True)
            except ConfigError as error:
                yield "key_file", str(error.args[0]), error.remedy


class Link(msgspec.Struct, frozen=True):
    """Where a stream of whoever stood here before ended at the collector."""

    agent_id: str
    buffer: str
    lane: int
    no: int
    hash: str


class Saved(msgspec.Struct, frozen=True, omit_defaults=True):
    """`identity.json`."""

    agent_id: str
    key_id: str
    site: str
    line: str
    station: str
    collector: str
    token: str
    """Visible part of the token."""
    enrolled_us: int
    key_us: int
    """Since when the key is the current one."""
    links: list[Link] = []


@dataclass(frozen=True, slots=True)
class Key:
    """A private key."""

    key_id: str
    public: bytes
    private: "Ed25519PrivateKey"

    def sign(self, text: bytes) -> bytes:
        """64 bytes."""
        return self.private.sign(text)


def load_or_create(state_dir: Path) -> str:
    """The agent's id. Raises ConfigError where the folder cannot be used or the file holds something else."""
    path = state_dir / "agent_id"
    try:
        owned_files.make_folder(state_dir, mode=0o750)
        if not path.exists():
            write_durably(path, f"{uuid.uuid4()}\n".encode(), mode=0o640)
        text = owned_files.read(path, ID_BYTES_MAX)[0].decode("ascii").strip()
        return str(uuid.UUID(text))
    except OSError as error:
        remedy = f"Create {state_dir} and give it to the agent's user."
        raise ConfigError(
            f"the state folder {state_dir} cannot be used: {error}", key="agent.state_dir", remedy=remedy
        ) from None
    except ValueError:
        remedy = "Restore it from a backup, or delete it: the agent then registers as a new one."
        raise ConfigError(f"{path} does not hold an agent's id", key="agent.state_dir", remedy=remedy) from None


def write_durably(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Whole or not at all, and on the disk: a power cut must not leave half a file. It belongs to whoever the folder belongs to."""
    owned_files.write(path, content, mode=mode)


def load_key(path: Path, *, external: bool = False) -> Key:
    """A private key from its file. Raises ConfigError where there is none, where it is none, or where others may read it."""
    key = "identity.key_file"
    try:
        content, mode = _outside(path) if external else owned_files.read(path, KEY_BYTES_MAX)
    except OSError as error:
        raise ConfigError(
            f"the key {path} cannot be read: {error.strerror}", key=key, remedy="Give it to the agent's user alone."
        ) from None
    if mode & (_STRANGERS if external else _OTHERS):
        remedy = f"chmod 600 {path}; if others may have read it, change the key: linewarden-agent rotate-key"
        raise ConfigError(f"the key {path} may be read by others (mode {stat.S_IMODE(mode):o})", key=key, remedy=remedy)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        remedy = "Make one (openssl genpkey -algorithm ed25519), or enrol again with a new one: enroll --new-key."
        raise ConfigError(f"{path} holds no Ed25519 key in PEM without a password", key=key, remedy=remedy)
    return _key(private)


def _outside(path: Path) -> tuple[bytes, int]:
    """A key that something else keeps may be behind a link."""
    with path.open("rb") as file:
        return file.read(KEY_BYTES_MAX), os.fstat(file.fileno()).st_mode


def _key(private: "Ed25519PrivateKey") -> Key:
    public = private.public_key().public_bytes_raw()
    return Key(key_id_of(public), public, private)


class Keyring:
    """The agent's key: what it is now, whoever changed it. Cheap to ask for each request."""

    def __init__(self, state_dir: Path, config: IdentityConfig) -> None:
        self.folder = state_dir / FOLDER
        self.config = config
        self._key: Key | None = None
        self._seen: tuple[int, ...] | None = None

    @property
    def external(self) -> bool:
        """Whether something else keeps the key."""
        return self.config.key_file is not None

    @property
    def authority_file(self) -> Path:
        """What enrolment learned to trust."""
        return self.folder / "ca.pem"

    @property
    def changing(self) -> bool:
        """Whether a new key lies there that is not the current one yet."""
        return not self.external and self._looks(self.folder / "key.new.pem") is not None

    def saved(self) -> Saved | None:
        """What the collector said; None before the enrolment. Raises ConfigError."""
        path = self.folder / "identity.json"
        try:
            return msgspec.json.decode(owned_files.read(path, SAVED_BYTES_MAX)[0], type=Saved)
        except FileNotFoundError:
            return None
        except OSError as error:
            remedy = "Give the folder to the agent's user."
            raise ConfigError(
                f"{path} cannot be read: {error.strerror}", key="agent.state_dir", remedy=remedy
            ) from None
        except msgspec.MsgspecError as error:
            remedy = "Enrol again: linewarden-agent enroll, with a token made for this agent."
            raise ConfigError(f"{path} cannot be understood: {error}", key="agent.state_dir", remedy=remedy) from None

    def current(self) -> Key | None:
        """The key; None before the enrolment. Read again when its file has changed. Raises ConfigError."""
        if self.external:
            path = Path(self.config.key_file or "")
        else:
            path = self.folder / "key.pem"
            if self._looks(self.folder / "key.new.pem") is not None:
                self.settle()
        seen = self._looks(path)
        if seen is None:
            if self.external:
                load_key(path, external=True)
            self._key = self._seen = None
        elif seen != self._seen:
            self._key = load_key(path, external=self.external)
            self._seen = seen
        return self._key

    @staticmethod
    def _looks(path: Path) -> tuple[int, ...] | None:
        try:
            found = path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

    def settle(self) -> None:
        """Finish a change that was decided and then killed: the new key is the one that `identity.json` names."""
        new, saved = self.folder / "key.new.pem", self.saved()
        if saved is None:
            return
        try:
            if load_key(new).key_id == saved.key_id:
                owned_files.rename(self.folder, new.name, "key.pem")
        except (OSError, ConfigError):
            # Half a file, or somebody else has just finished it: the current key is what it was.
            return

    def candidate(self, *, fresh: bool = False) -> Key:
        """The key that is to become the current one, on the disk for good before anybody hears of it. Raises ConfigError."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        path = self.folder / "key.new.pem"
        if not fresh:
            with suppress(ConfigError):
                return load_key(path)
        private = Ed25519PrivateKey.generate()
        write_durably(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return _key(private)

    def take(self, saved: Saved) -> None:
        """What the collector has taken is what we are. From the writing of this file on; see the module."""
        write_durably(self.folder / "identity.json", msgspec.json.encode(saved))
        self.settle()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Held while the key is changed: command and agent do not do so at once. Raises ConfigError."""
        remedy = "Run this as the agent's user, or as root; give the folder to that user."
        try:
            owned_files.make_folder(self.folder)
            file = owned_files.open_kept(self.folder / "lock")
        except OSError as error:
            text = f"{self.folder} cannot be used: {error.strerror}"
            raise ConfigError(text, key="agent.state_dir", remedy=remedy) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise ConfigError(
                "the key is being changed by another process just now", key="agent.state_dir", remedy="Try again."
            ) from None
        except OSError as error:
            text = f"{self.folder} cannot be written: {error.strerror}"
            raise ConfigError(text, key="agent.state_dir", remedy=remedy) from None
        finally:
            os.close(file)

    def sign(self, agent_id: str, batches: Sequence[bytes], body: bytes, status: str, sent_us: int) -> str | None:
        """The header that proves a request; None before the enrolment. Raises ConfigError."""
        key = self.current()
        if key is None:
            return None
        said = Signed(
            agent_id,
            key.key_id,
            sent_us,
            hashlib.sha256(status.encode()).hexdigest(),
            hashlib.sha256(body).hexdigest(),
            runs_of(map(header_of, batches)),
        )
        return write_header(key.key_id, key.sign(signed_text(said)))

    def sign_head(self, agent_id: str, body: bytes, status: str, sent_us: int) -> str | None:
        """Return the header by which the collector knows the sender before it takes the body; None before the enrolment."""
        key = self.current()
        if key is None:
            return None
        body_sha256 = hashlib.sha256(body).hexdigest()
        text = head_text(
            agent=agent_id,
            key=key.key_id,
            sent_us=sent_us,
            status_sha256=hashlib.sha256(status.encode()).hexdigest(),
            body_sha256=body_sha256,
        )
        return write_head(body_sha256, key.sign(text))
