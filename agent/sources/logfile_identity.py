"""One stream of lines, and how it is recognised in a file.

Invariant: a `Tail` is one stream of bytes, read from `offset`, which is the end of the last complete line that was handed on. Device and
inode are not its identity: the kernel gives the inode of a deleted file to the next one made. Identity is, in this order:

* device, inode and the time at which the inode was made: the same file, whatever its name;
* the content: the first bytes (`head`, up to 1,024), the last bytes before the offset (`last`), and `marks` in between, all of them
  hashes. A file that has them is a copy, a compressed or an edited version of the stream, and reading continues in it;
* the hashes of the last lines handed on (`lines`): they find the position in a file that was edited or trimmed.

The state is JSON and is stored with the events; no text of a log is in it.
"""

import os
from collections.abc import Sequence
from enum import Enum
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

Id = tuple[int, int]
HEAD_BYTES = 1_024
MARK_BYTES = 256
MARK_SPACING = 256
LINES_KEPT = 6
EDIT_BYTES_MAX = 16 * 1_048_576
"""An edited file is searched this far from its end for the last lines that were read."""
_EVIDENCE_LINES = 2
"""So many lines in a row, not all equal, prove that an edited file has what was read."""


def hash_of(data: bytes) -> str:
    return blake2b(data, digest_size=8).hexdigest()


class Content(Protocol):
    """Bytes that can be read by position: a file, or what is in an archive."""

    def read_at(self, offset: int, n: int) -> bytes: ...


class Plain(NamedTuple):
    """The content of an open file."""

    fd: int

    def read_at(self, offset: int, n: int) -> bytes:
        return os.pread(self.fd, n, offset)


class Kin(Enum):
    """What a file is to a stream."""

    CONTINUES = "has everything up to the offset"
    PART = "is its beginning; there is nothing new in it"
    UNCLEAR = "cannot be decided yet"
    OTHER = "is something else"


class Tail:
    """A stream of bytes and how far it was read."""

    __slots__ = (
        "due", "family", "gone_at", "grew_at", "head", "held_since", "id", "leftover", "memory", "mtime_ns", "offset", "order",
        "path", "seen", "settling", "size", "state", "stuck_since", "stuck_tries", "superseded", "turn", "verified",
    )  # fmt: skip

    def __init__(self, path: str, id_: Id, family: str) -> None:
        self.path = path
        self.id = id_
        self.family = family
        self.offset = 0
        self.head = b""
        self.memory: dict[str, Any] = {}
        self.size = 0
        self.mtime_ns = 0
        self.seen = (-1, -1)  # size and mtime when it was last read to the end
        self.due = False
        self.gone_at: float | None = None
        self.grew_at = 0.0
        self.held_since: float | None = None
        self.leftover = False
        self.stuck_since = 0.0
        self.stuck_tries = 0
        self.order = 0
        """Place in its family, oldest first."""
        self.turn = 0
        """When it was last read, by the count of reads of all."""
        self.superseded = False
        """A younger file of its family exists."""
        self.settling = False
        """That younger file had content before the next read of this one."""
        self.verified = True
        """Its file was compared with it since the start."""
        self.state: dict[str, Any] = {"path": path, "dev": id_[0], "ino": id_[1], "offset": 0, "family": family}

    @classmethod
    def restored(cls, state: dict[str, Any], family: str) -> "Tail":
        """Return the tail of a stored state. Raises KeyError, TypeError, ValueError where it is none."""
        tail = cls(str(state["path"]), (int(state["dev"]), int(state["ino"])), str(state.get("family", family)))
        tail.offset = int(state["offset"])
        tail.memory = dict(state.get("memory", {}))
        tail.mtime_ns = int(state.get("mtime", 0))
        tail.state = dict(state)
        tail.verified = False
        return tail

    @property
    def birth_ns(self) -> int:
        return int(self.state.get("birth", 0))

    @property
    def no(self) -> int:
        """The number of the stream, in the order in which its source met them."""
        return int(self.state.get("no", 0))

    @property
    def head_bytes(self) -> int:
        return int(self.state.get("head_bytes", 0))

    @property
    def skipped(self) -> int:
        return int(self.state.get("skipped", 0))

    @property
    def is_whole(self) -> bool:
        """Whether it was read to its end after its successor had content: nothing more is expected to come."""
        if self.state.get("done"):
            return True
        return self.state.get("end") == self.offset and not self.state.get("late") and not self.skipped

    @property
    def is_fresh(self) -> bool:
        """Whether nothing was read of it."""
        return self.offset == 0 and not self.head_bytes

    def is_head(self, head: bytes) -> bool:
        """Return whether a file that begins with these bytes may be this one. A stream of which nothing was read fits any."""
        n = self.head_bytes
        if self.head:
            return head.startswith(self.head)
        return n == 0 or (len(head) >= n and hash_of(head[:n]) == self.state["head"])

    def is_last(self, before: bytes) -> bool:
        """Return whether the bytes before the offset end as the stream did."""
        n = int(self.state.get("last_bytes", 0))
        return n == 0 or (len(before) >= n and hash_of(before[-n:]) == self.state["last"])

    def advance(self, offset: int, head: bytes, last: bytes) -> None:
        """Note that the bytes up to `offset` were handed on. `last` is what stands before it; `head` how the file begins."""
        self.offset = offset
        n = min(HEAD_BYTES, offset, len(head))
        if n > len(self.head):
            self.head = head[:n]
            self.state["head_bytes"] = n
            self.state["head"] = hash_of(self.head)
        if last:
            self._mark(offset, last)
            self.state["lines"] = _last_lines(last, self.state.get("lines", ()))
            last = last[-HEAD_BYTES:]
            self.state["last_bytes"] = len(last)
            self.state["last"] = hash_of(last)
        self._note(offset)

    def pass_over(self, offset: int, last: bytes) -> None:
        """Note that reading continues at `offset`, after a hole. `last` is what stands before it."""
        last = last[-HEAD_BYTES:]
        self.state["last_bytes"] = len(last)
        self.state["last"] = hash_of(last)
        self.offset = offset
        self._note(offset)

    def _note(self, offset: int) -> None:
        self.state["offset"] = offset
        self.state["path"] = self.path
        self.state["mtime"] = self.mtime_ns
        if self.memory:
            self.state["memory"] = self.memory
        else:
            self.state.pop("memory", None)

    def _mark(self, offset: int, last: bytes) -> None:
        """Keep hashes of some places, the fewer the further back: about two for each doubling of the distance."""
        begin = offset - len(last)
        marks: list[list[Any]] = self.state.get("marks", [])
        for at in sorted({begin + len(last) // 4 * n for n in (1, 2, 3)} | {offset}):
            if at - (marks[-1][0] if marks else 0) < MARK_SPACING:
                continue
            piece = last[max(0, at - begin - MARK_BYTES) : at - begin]
            if piece:
                marks.append([at, len(piece), hash_of(piece)])
        kept: list[list[Any]] = []
        for mark in marks:
            far = ((offset - mark[0]) // MARK_SPACING).bit_length()
            if not kept or far != ((offset - kept[-1][0]) // MARK_SPACING).bit_length():
                kept.append(mark)
        if kept:
            self.state["marks"] = kept

    def skip(self, n: int) -> None:
        """Note that an overlong line is being passed over: `n` of its bytes so far; 0 at its end."""
        if n:
            self.state["skipped"] = n
        else:
            self.state.pop("skipped", None)

    def restart(self) -> None:
        """Begin again at the first byte: the file holds another content now."""
        birth, no = self.birth_ns, self.no
        self.offset = 0
        self.head = b""
        self.memory = {}
        self.held_since = None
        self.leftover = False
        self.seen = (-1, -1)
        self.due = True
        self.settling = False
        self.state = {"path": self.path, "dev": self.id[0], "ino": self.id[1], "offset": 0, "family": self.family}
        self.state["no"] = no
        if birth:
            self.state["birth"] = birth

    def at(self, offset: int, path: str, id_: Id, *, birth_ns: int = 0) -> "Tail":
        """Return the same stream, in another file."""
        other = Tail(path, id_, self.family)
        dropped = ("retired", "doubt", "adrift", "cut", "done", "end", "late", "birth", "hole")
        kept = {key: value for key, value in self.state.items() if key not in dropped}
        other.state = {**kept, "path": path, "dev": id_[0], "ino": id_[1], "offset": offset}
        if birth_ns:
            other.state["birth"] = birth_ns
        other.offset, other.head, other.memory, other.mtime_ns = offset, self.head, dict(self.memory), self.mtime_ns
        other.due = True
        return other

    def compare(self, content: Content, size: int | None) -> Kin:  # noqa: PLR0911  # one line a verdict
        """Return what a file is to this stream, by content. `size` is None for an archive. Raises OSError, Unfinished."""
        n = self.head_bytes
        if not n:
            return Kin.UNCLEAR
        head = content.read_at(0, HEAD_BYTES)
        if len(head) < n:
            if self.head and self.head.startswith(head):
                return Kin.PART if head else Kin.UNCLEAR
            return Kin.OTHER if self.head else Kin.UNCLEAR
        if not self.is_head(head):
            return Kin.OTHER
        marks = self.state.get("marks", [])
        if size is None or size >= self.offset:
            before = int(self.state.get("last_bytes", 0))
            data = content.read_at(self.offset - before, before)
            if len(data) == before:
                return Kin.CONTINUES if self.is_last(data) else Kin.OTHER
            return Kin.OTHER  # an archive that ends before
        if size <= n:
            return Kin.PART
        seen = [mark for mark in marks if mark[0] <= size]
        if not seen:
            return Kin.UNCLEAR
        at, length, value = seen[-1]
        return Kin.PART if hash_of(content.read_at(at - length, length)) == value else Kin.OTHER

    def position_in_edited(self, fd: int, size: int) -> int | None:
        """Return where to continue in an edited or trimmed version: after the last of the lines that were read. Raises OSError."""
        known: list[str] = list(self.state.get("lines", ()))
        if not known or not size:
            return None
        begin = max(0, size - EDIT_BYTES_MAX)
        data = os.pread(fd, size - begin, begin)
        same_head = self.is_head(os.pread(fd, HEAD_BYTES, 0))
        lines = data.split(b"\n")
        rest = len(lines.pop())
        hashes = [hash_of(line) for line in lines]
        # The end of the file first, and the newest known line first: an editor may have deleted the last lines.
        for newest in range(len(known) - 1, -1, -1):
            end = len(data) - rest
            for n in range(len(lines) - 1, -1, -1):
                if hashes[n] == known[newest] and _is_evidence(hashes, n, known[: newest + 1], same_head=same_head):
                    return begin + end
                end -= len(lines[n]) + 1
        return None

    def rebase(self, fd: int) -> None:
        """Take the fingerprints anew from a file that holds an edited version. Raises OSError."""
        n = min(HEAD_BYTES, self.offset)
        self.head = os.pread(fd, n, 0)
        self.state["head_bytes"], self.state["head"] = n, hash_of(self.head)
        self.state.pop("marks", None)
        self.pass_over(self.offset, os.pread(fd, n, self.offset - n))


def _is_evidence(hashes: Sequence[str], n: int, known: Sequence[str], *, same_head: bool) -> bool:
    """Return whether a line that is equal to the last known one is that line, by the lines before it.

    A log whose lines repeat proves nothing by one line, and nothing by several equal ones.
    """
    same = 0
    while same < len(known) and same <= n and hashes[n - same] == known[-1 - same]:
        same += 1
    differ = len(set(known[len(known) - same :])) > 1
    if same_head:
        return differ or hashes.count(hashes[n]) == 1
    return differ and same >= _EVIDENCE_LINES


def _last_lines(body: bytes, before: Sequence[str]) -> list[str]:
    """Return the hashes of the last lines handed on, newest last."""
    lines = body.rsplit(b"\n", LINES_KEPT + 1)
    if body.endswith(b"\n"):
        lines.pop()
    whole = lines[-LINES_KEPT:]
    return [*before, *(hash_of(line) for line in whole)][-LINES_KEPT:]
