"""What became of a stream whose file is not where it was: renamed, compressed, copied and cut, edited, moved to another directory, or lost.

Invariant: a stream is declared lost only when nothing has its content, on two looks, and when it was not read to its end after its
successor had begun. A stream that is found goes on at its offset, wherever it lies now; the files between it and the live one, which
nobody has seen, are read next.

A cut is declared even where the copy was found: what was written between the copy and the cut cannot be known. An edited or trimmed
file (a new file, or the same one written anew) that still has the last lines is no cut.
"""

# Plain strings: ten thousand paths, twice a second; a pathlib path costs ten times as much.
# ruff: noqa: PTH112, PTH114, PTH116, PTH119, PTH120

import os
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from agent.sources.logfile_archive import Unfinished
from agent.sources.logfile_identity import HEAD_BYTES, Id, Kin, Plain, Tail
from agent.sources.logfile_name import family_of, in_order, is_archive, missing_numbers
from agent.sources.logfile_open import birth_ns as born_ns
from agent.sources.logfile_open import open_regular
from agent.sources.logfile_search import Directories, Sibling, subdirectories

if TYPE_CHECKING:
    from agent.sources.logfile_tail import Files

SEARCH_TRIES = 2
SEARCH_S = 1.0
"""A stream is looked for at least so often and so long: a look at a directory can miss a file that is renamed meanwhile."""
EDITED_MAX = 4
"""Rotated files that are searched for the last lines of a stream whose content is nowhere as it was."""
EVIDENCE_LINES = 2
"""So many equal lines at its beginning make a short file the beginning of another; one may be a header that all of them have."""
RENAMED_KEEP_S = 3_600.0
"""A file renamed out of sight is looked at this long: a writer that was not told of the rotation writes there."""

_CUT = "the file was cut or replaced; lines written just before may be lost"
_SHORTENED = "the end of the file was cut off; lines written just before may be lost"
_LOST = "the file went away while it could not be followed; what was written to it after the offset is lost"
_BETWEEN = "a rotated file between the last one that was read and the live one is missing; its lines are lost"


class _Search:
    """A stream that is looked for."""

    __slots__ = ("since", "tail", "tries")

    def __init__(self, tail: Tail, since: float) -> None:
        self.tail = tail
        self.tries = 0
        self.since = since


class Moves:
    """Follows the streams of a source through what happens to their files."""

    def __init__(self, files: "Files") -> None:
        self._files = files
        self._searches: list[_Search] = []
        self._listed = Directories()
        self._base: dict[str, int] = {}
        """Rotated files of a family that are not older than this, and unknown, were written since it is followed."""
        self._looked_at: set[Id] = set()
        """Those of them that were compared at once when that was possible; from then on at each look."""
        self._changed: set[str] = set()
        """Families of which there may be such files."""
        self._known: set[Id] = set()
        """Streams that were there before the present look: the anchors of a chain."""
        self._directories: defaultdict[str, set[str]] = defaultdict(set)
        """Where the rotated files of a family were found, besides its own directory."""
        self._doubts: dict[Id, float] = {}
        """New files under the name of a stream whose own file has left it: an edited version, or the next file of a rotation."""

    @property
    def adrift(self) -> list[Tail]:
        return [search.tail for search in self._searches]

    def is_adrift(self, family: str) -> bool:
        """Whether a stream of a family is looked for."""
        return any(search.tail.family == family for search in self._searches)

    def waits(self, tail: Tail) -> bool:
        """Whether a stream is not read yet, because it is not decided what its file is, or an older one is looked for."""
        return tail.is_fresh and (tail.id in self._doubts or self.is_adrift(tail.family))

    def wants_look(self) -> bool:
        """Return whether the stream was read to its end that a new file has to be compared with; once for each."""
        for id_ in self._doubts:
            own = self._files.tails.get(id_)
            before = None if own is None else self._predecessor(own)
            if before is not None and not self._is_read_first(before) and id_ not in self._looked_at:
                self._looked_at.add(id_)
                return True
        return False

    def _is_read_first(self, tail: Tail) -> bool:
        return self._files.tails.get(tail.id) is tail and (tail.due or tail.leftover)

    def anchor(self, tail: Tail) -> None:
        """Note a stream that was known before the present look."""
        if not (tail.state.get("retired") or tail.state.get("adrift")):
            self._known.add(tail.id)
        self._base[tail.family] = max(self._base.get(tail.family, 0), int(tail.state.get("base", 0)))
        self._changed.add(tail.family)
        if "doubt" in tail.state:
            self._doubts[tail.id] = self._files.clock()
        self._directories[tail.family].update(tail.state.get("places", ()))

    def doubt(self, tail: Tail) -> None:
        """Note a new file under the live name: it is compared with the stream that had the name before."""
        if self._predecessor(tail) is not None:
            tail.state["doubt"] = True
            self._doubts[tail.id] = self._files.clock()

    def _predecessor(self, tail: Tail) -> Tail | None:
        """Return the newest stream of a family besides this one."""
        before = [
            other
            for other in (*self._files.tails.values(), *self._files.past.values())
            if other.family == tail.family and other.no < tail.no and not is_archive(other.path)
        ]
        return max(before, key=lambda other: (other.no, other.mtime_ns), default=None)

    def set_adrift(self, tail: Tail) -> None:
        """Look for a stream."""
        tail.state["adrift"] = True
        tail.due = tail.leftover = False
        self._searches.append(_Search(tail, self._files.clock()))

    def family(self, path: str) -> str:
        """Return the family of a path, which is that of the stream followed there before."""
        tail = self._files.by_path.get(path)
        return family_of(path) if tail is None else tail.family

    def kin(self) -> dict[str, list[Tail]]:
        """Return the streams that a file can be compared with, by family; those whose file is there first."""
        kin: defaultdict[str, list[Tail]] = defaultdict(list)
        for tail in self._files.tails.values():
            if tail.size or tail.head_bytes:
                kin[tail.family].append(tail)
        for tail in reversed(self._files.past.values()):
            if tail.head_bytes:
                kin[tail.family].append(tail)
        return kin

    def renamed(self, tail: Tail, path: str) -> None:
        """Note the name under which a stream's file was seen."""
        if tail.path == path:
            return
        tail.path = path
        tail.state["path"] = path

    def leave(self, tail: Tail) -> None:
        """The file of a stream is gone, or its inode belongs to another file now."""
        self._files.forget(tail)
        if tail.is_whole:
            tail.due = tail.leftover = False
            self._files.retire(tail)
        else:
            self.set_adrift(tail)

    def cut(self, tail: Tail) -> None:
        """The file of a stream was cut or written anew: the stream is looked for, and a new one begins in the file."""
        files = self._files
        before = tail.at(tail.offset, tail.path, tail.id, birth_ns=tail.birth_ns)
        before.state["cut"] = True
        tail.restart()
        tail.grew_at = self._files.clock()
        if before.offset:
            self.set_adrift(before)
        files.release(tail)

    def missing(self, tail: Tail, now: float) -> None:
        """The name of a stream is gone: its file was renamed or deleted, or its file system is not there."""
        files = self._files
        fd = files.descriptor(tail)
        if fd is None:
            found = self._same_file(tail)
            if found is None:
                if os.path.isdir(os.path.dirname(tail.family) or "."):
                    self.leave(tail)
                else:
                    tail.gone_at = None
                return
            status = found.status
            self.renamed(tail, found.path)
        else:
            status = os.fstat(fd)
            if tail.gone_at is None or (tail.path != tail.family and status.st_nlink and not _is_at(tail)):
                found = self._same_file(tail)
                if found is not None:
                    self.renamed(tail, found.path)
                else:
                    tail.path = tail.family
        if tail.gone_at is None:
            tail.gone_at = tail.grew_at = now
        files.touch(tail, status, now)
        keep_s = files.grace_s if status.st_nlink == 0 else max(files.grace_s, RENAMED_KEEP_S)
        idle = not tail.due and not tail.leftover
        if idle and (is_archive(tail.path) or now - max(tail.gone_at, tail.grew_at) > keep_s):
            tail.state["end"] = tail.offset
            files.retire(tail)

    def _same_file(self, tail: Tail) -> Sibling | None:
        """Return the same file under another name: of its family, where its link led to, or in a directory below."""
        if tail.path != tail.family and _is_at(tail):
            here = Sibling(tail.path, os.stat(tail.path, follow_symlinks=False))
            return here if self._is(tail, here) else None
        for sibling in self._siblings(tail.family):
            if sibling.id == tail.id and self._is(tail, sibling):
                return sibling
        for directory in subdirectories(os.path.dirname(tail.family)):
            for sibling in self._listed.members(tail.family, (directory,)):
                if sibling.id == tail.id and self._is(tail, sibling):
                    self._learn(tail.family, directory)
                    return sibling
        return None

    def _is(self, tail: Tail, sibling: Sibling) -> bool:
        try:
            fd = os.open(sibling.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError:
            return True  # device and inode have to do; it is looked at again when it is read
        try:
            return self._files.is_file(tail, fd)
        finally:
            os.close(fd)

    def _learn(self, family: str, directory: str) -> None:
        """Note that rotation moves the files of a family to another directory."""
        self._directories[family].add(directory)
        self._changed.add(family)

    def _places(self, family: str) -> list[str]:
        """Return the directories in which rotated files of a family are."""
        places = [os.path.dirname(family), *self._files.rotated_to, *sorted(self._directories.get(family, ()))]
        if os.path.islink(family):
            places.append(os.path.dirname(os.path.realpath(family)))
        return list(dict.fromkeys(places))

    def _siblings(self, family: str) -> list[Sibling]:
        return self._listed.members(family, self._places(family))

    def look(self) -> None:
        """Look which directories were changed, and note the families that have rotated files there."""
        families = {tail.family for tail in (*self._files.tails.values(), *self.adrift)}
        places: defaultdict[str, list[str]] = defaultdict(list)
        for family in families:
            for directory in self._places(family):
                places[directory].append(family)
        for directory, members in places.items():
            changed = self._listed.refresh((directory,))
            if changed:
                self._changed.update(family for family in members if os.path.basename(family) in changed)

    # A file that nobody knows

    def decide(self, path: str, status: os.stat_result, kin: Iterable[Tail]) -> Tail | bool | None:  # noqa: PLR0911  # one line a verdict
        """Return the tail of a file that has to do with a known stream; True where it is a copy of one that is still being read; False
        for a new stream; None while it is not decided.
        """
        files = self._files
        kin = list(kin)
        if not status.st_size and kin and path != kin[0].family:
            return None if files.is_young(status) else False
        sibling = Sibling(path, status)
        kin = [tail for tail in kin if path != tail.family or files.tails.get(tail.id) is not tail]  # see `doubt`
        for tail in kin:
            if files.tails.get(tail.id) is tail and not is_archive(tail.path):
                copied = self._copied(tail, sibling)
                if copied is not False:
                    return copied
                continue
            verdict, birth = files.contents.compare(tail, sibling)
            if verdict is Kin.CONTINUES:
                return self._go_on(tail, tail.offset, sibling, birth)
            if verdict is Kin.PART and path != tail.family:
                return self._go_on(tail, status.st_size, sibling, birth)
            if verdict is Kin.UNCLEAR and path != tail.family and (files.contents.busy or files.is_young(status)):
                return None
        # One that is gone may have been replaced by an edited version, which was rotated since.
        gone = [tail for tail in kin if not is_archive(tail.path) and self._is_gone(tail)]
        if gone and path != gone[0].family:
            tail = max(gone, key=lambda one: (one.no, one.mtime_ns))
            if tail.due:
                return None
            return self._continued(tail, sibling)
        return False

    def _is_gone(self, tail: Tail) -> bool:
        """Whether the file of a stream was deleted."""
        fd = self._files.descriptor(tail)
        return self._files.tails.get(tail.id) is not tail if fd is None else os.fstat(fd).st_nlink == 0

    def _copied(self, tail: Tail, sibling: Sibling) -> Tail | bool | None:  # noqa: PLR0911  # one line a verdict
        """Compare a file with one that is there: a copy has nothing to read, and is done as soon as the original was read so far."""
        from agent.sources.logfile_tail import Exchanged

        files = self._files
        if is_archive(tail.path):
            return False
        try:
            fd = files.open(tail)
            if not self._is_intact(tail, fd):
                return None  # it was cut just now: what is in the copy is decided with that
            status = os.fstat(fd)
            if status.st_size == 0:
                return False
            size = files.contents.copied(fd, tail, sibling)
        except (OSError, Exchanged, Unfinished):
            return None if files.contents.busy else False
        if size is None or size > status.st_size:
            return False
        if size < 0:
            return None
        if size == 0:
            return False  # an empty archive is the beginning of everything
        if size > tail.offset:
            return True
        copy = self._go_on(tail, size, sibling, 0)
        copy.state["end"] = size
        copy.due = False
        copy.seen = (sibling.status.st_size, sibling.status.st_mtime_ns)
        if is_archive(sibling.path):
            copy.state["done"] = True
        else:
            copy.state.pop("lines", None)
            copy.state.pop("marks", None)
            n = min(HEAD_BYTES, size)
            copy.head = os.pread(fd, n, 0)
            copy.state["head_bytes"] = n
            copy.pass_over(size, os.pread(fd, n, size - n))
            copy.advance(size, copy.head, b"")
        return copy

    def _continued(self, tail: Tail, sibling: Sibling) -> Tail | Literal[False]:
        """Continue a stream in a file that has all of it and more, or an edited version of it."""
        verdict, birth = self._files.contents.compare(tail, sibling)
        if verdict is Kin.CONTINUES:
            return self._go_on(tail, tail.offset, sibling, birth)
        position = None if is_archive(sibling.path) else self._files.contents.position(tail, sibling)
        if position is None:
            return False
        other = self._go_on(tail, position, sibling, birth)
        self._files.contents.rebase(other, sibling)
        return other

    @staticmethod
    def _is_intact(tail: Tail, fd: int) -> bool:
        before = min(int(tail.state.get("last_bytes", 0)), tail.offset)
        data = os.pread(fd, before, tail.offset - before)
        return tail.is_head(os.pread(fd, HEAD_BYTES, 0)) and tail.is_last(data)

    def _go_on(self, tail: Tail, offset: int, sibling: Sibling, birth_ns: int) -> Tail:
        """Continue a stream in another file, from where it was read to."""
        files = self._files
        if not birth_ns:
            with suppress(OSError):
                fd = open_regular(sibling.path, follow=False)
                birth_ns = born_ns(fd)
                os.close(fd)
        other = tail.at(offset, sibling.path, sibling.id, birth_ns=birth_ns)
        other.state["mtime"] = other.mtime_ns = sibling.status.st_mtime_ns
        files.tails[sibling.id] = other
        return other

    # A stream that is looked for

    def settle(self, now: float) -> None:
        """Decide what can be decided of the streams that are looked for, then read what lies between."""
        for search in list(self._searches):
            if self._resolve(search, now):
                self._searches.remove(search)
                search.tail.state.pop("adrift", None)
        self._settle_doubts(now)
        for family in [family for family in self._changed if not self.is_adrift(family)]:
            if self._read_between(family, now):
                self._changed.discard(family)
        self._known = set(self._files.tails)

    def _settle_doubts(self, now: float) -> None:
        for id_, since in list(self._doubts.items()):
            own = self._files.tails.get(id_)
            before = None if own is None or not own.is_fresh else self._predecessor(own)
            if own is not None and before is not None:
                if self._is_read_first(before):
                    continue
                if self._edited(before, own, now, now - since) == "wait":
                    continue
            del self._doubts[id_]
            self._looked_at.discard(id_)
            if own is not None:
                own.state.pop("doubt", None)

    def _resolve(self, search: _Search, now: float) -> bool:
        """Return whether it is decided what became of a stream."""
        tail = search.tail
        search.tries += 1
        waited_s = now - search.since
        files = self._files
        own = self._at_its_name(tail)
        if own is not None:
            verdict = self._edited(tail, own, now, waited_s)
            if verdict != "other":
                return verdict == "found"
        found, unclear = self._elsewhere(tail)
        if found is not None:
            sibling, birth, position = found
            if (directory := os.path.dirname(sibling.path)) != os.path.dirname(tail.family):
                self._learn(tail.family, directory)
            other = self._go_on(tail, position, sibling, birth)
            if position != tail.offset:
                files.contents.rebase(other, sibling)
            other.gone_at = other.grew_at = now
            self._known.add(other.id)
            self._gap(tail, _CUT if tail.state.get("cut") else "", rest_recovered=True)
            self._changed.add(tail.family)
            return True
        patience_s = files.grace_s if unclear else min(files.grace_s, SEARCH_S)
        if files.contents.busy or search.tries < SEARCH_TRIES or (waited_s < patience_s and (unclear or own is None)):
            return False
        self._lost(tail)
        return True

    def _lost(self, tail: Tail) -> None:
        cut = bool(tail.state.get("cut"))
        if cut:
            self._gap(tail, _CUT, rest_recovered=self._is_covered(tail))
        else:
            self._gap(tail, _LOST)
        self._changed.add(tail.family)
        tail.state.pop("cut", None)
        self._files.retire(tail)

    def _is_covered(self, tail: Tail) -> bool:
        """Whether a copy of all that was read is known."""
        return any(
            other.offset == tail.offset and other.state.get("last") == tail.state.get("last") and other.id != tail.id
            for other in self._files.tails.values()
            if other.family == tail.family
        )

    def _gap(self, tail: Tail, reason: str, **more: Any) -> None:
        if reason:
            self._files.declared.append(
                {"reason": reason, "file": tail.family, "events": None, "offset": tail.offset, **more}
            )

    def _at_its_name(self, tail: Tail) -> Tail | None:
        """Return the stream, unread as yet, that is in the file of one that was cut, or has the name of one that is gone."""
        if tail.state.get("cut"):
            own = self._files.tails.get(tail.id)
            return own if own is not None and own.is_fresh else None
        for other in self._files.tails.values():
            if other.path == tail.family and other.family == tail.family and other.is_fresh:
                return other
        return None

    def _edited(self, tail: Tail, own: Tail, now: float, waited_s: float) -> Literal["found", "wait", "other"]:
        """Look whether the file under a stream's name is an edited version of it, and continue there if so."""
        from agent.sources.logfile_tail import Exchanged

        if not tail.head_bytes:
            return "other"
        try:
            fd = self._files.open(own)
            size = os.fstat(fd).st_size
            verdict = tail.compare(Plain(fd), size)
            position = tail.offset if verdict is Kin.CONTINUES else tail.position_in_edited(fd, size)
            if position is None:
                begins_alike = verdict in (Kin.PART, Kin.UNCLEAR) or tail.is_head(os.pread(fd, HEAD_BYTES, 0))
                settled_s = min(self._files.grace_s, SEARCH_S)
                if begins_alike and now - own.grew_at < settled_s and waited_s < max(self._files.grace_s, SEARCH_S):
                    return "wait"  # still being written
                if verdict is not Kin.PART or (
                    size <= HEAD_BYTES and os.pread(fd, size, 0).count(b"\n") < EVIDENCE_LINES
                ):
                    return "other"
                position = size
                if self._files.descriptor(tail) is None or tail.state.get("cut"):
                    self._gap(tail, _SHORTENED)
            other = tail.at(position, own.path, own.id, birth_ns=own.birth_ns)
            other.rebase(fd)
        except (OSError, Exchanged):
            return "wait" if waited_s < self._files.grace_s else "other"
        other.size, other.grew_at, other.mtime_ns = own.size, own.grew_at, own.mtime_ns
        self._files.tails[own.id] = other
        return "found"

    def _elsewhere(self, tail: Tail) -> tuple[tuple[Sibling, int, int] | None, bool]:
        """Return the file that has a stream's content, when it was made, and where to continue in it; and whether there are some
        of which that is not known yet.
        """
        files = self._files
        unclear = False
        edited: list[Sibling] = []
        for sibling in self._unread(tail):
            if sibling.id == tail.id and tail.birth_ns and self._is(tail, sibling) and not is_archive(sibling.path):
                return (sibling, tail.birth_ns, tail.offset), unclear
            if not tail.head_bytes:
                continue
            verdict, birth = files.contents.compare(tail, sibling)
            if verdict is Kin.CONTINUES:
                return (sibling, birth, tail.offset), unclear
            if verdict is Kin.UNCLEAR and (files.contents.busy or self._files.is_young(sibling.status)):
                unclear = True
            elif verdict is Kin.OTHER and not is_archive(sibling.path):
                edited.append(sibling)
        for sibling in edited[:EDITED_MAX]:
            position = files.contents.position(tail, sibling)
            if position is not None:
                return (sibling, 0, position), unclear
        return None, unclear

    def _unread(self, tail: Tail) -> list[Sibling]:
        """Return the rotated files of which nothing was read, newest first; where there are none, those in the directories below."""
        places = self._siblings(tail.family)
        if not places:
            for directory in subdirectories(os.path.dirname(tail.family)):
                places += self._listed.members(tail.family, (directory,))
        tails = self._files.tails
        places = [one for one in places if one.id not in tails or tails[one.id].is_fresh]
        if tail.state.get("cut"):
            places = [one for one in places if one.id != tail.id]
        return sorted(places, key=lambda one: one.status.st_mtime_ns, reverse=True)

    # The files between the last known one and the live one

    def _read_between(self, family: str, now: float) -> bool:
        """Read the rotated files that nobody has seen, oldest first. Returns False where that cannot be decided yet."""
        files = self._files
        places = {sibling.path: sibling for sibling in self._siblings(family) or self._moved_away(family)}
        order = in_order([(path, sibling.status.st_mtime_ns) for path, sibling in places.items()], family)
        past = {tail.id: tail for tail in files.past.values() if tail.family == family}
        known = [n for n, path in enumerate(order) if self._is_known(places[path], family, past)]
        after = known[-1] + 1 if known else len(order)
        base_ns = self._base.get(family, 0)
        new: list[Sibling] = []
        kin = self.kin().get(family, [])
        for n, path in enumerate(order):
            sibling = places[path]
            if n in known or (n < after and sibling.status.st_mtime_ns < base_ns):
                continue
            other = files.tails.get(sibling.id)
            if other is not None:
                other.family = other.state["family"] = family
                continue
            decision = self.decide(path, sibling.status, kin)
            if decision is None:
                return False
            if decision is False:
                new.append(sibling)
            elif decision is not True:
                decision.gone_at = decision.grew_at = now
        for sibling in new:
            tail = files.add(sibling.path, sibling.id, family, sibling.status)
            tail.gone_at = tail.grew_at = now
            files.touch(tail, sibling.status, now)
        if known and missing_numbers(order[known[-1] :], family):
            files.declared.append({"reason": _BETWEEN, "file": family, "events": None})
        self._move_base(family)
        return True

    def begin(self, tail: Tail) -> None:
        """Note from when on a family is followed: rotated files that are older are not read."""
        self._base.setdefault(tail.family, tail.mtime_ns + 1)
        tail.state["base"] = self._base[tail.family]

    def _move_base(self, family: str) -> None:
        """All that was rotated up to now is known."""
        tails = [tail for tail in self._files.tails.values() if tail.family == family]
        rotated = [tail for tail in tails if tail.path != family or tail.gone_at is not None]
        rotated += [tail for tail in self._files.past.values() if tail.family == family]
        base_ns = max([self._base.get(family, 0), *(tail.mtime_ns for tail in rotated)])
        self._base[family] = base_ns
        for tail in tails:
            tail.state["base"] = base_ns
            if self._directories.get(family):
                tail.state["places"] = sorted(self._directories[family])

    def _moved_away(self, family: str) -> list[Sibling]:
        """Return the rotated files in the directory below that has the content of a known stream; [] where there is none."""
        known = [tail for tail in (*self._files.tails.values(), *self._files.past.values()) if tail.family == family]
        for directory in subdirectories(os.path.dirname(family)):
            found = self._listed.members(family, (directory,))
            for sibling in found:
                if any(self._files.contents.compare(tail, sibling)[0] is Kin.CONTINUES for tail in known):
                    self._learn(family, directory)
                    return found
        return []

    def _is_known(self, sibling: Sibling, family: str, past: dict[Id, Tail]) -> bool:
        """Whether a file is one that was followed before the present look."""
        tail = self._files.tails.get(sibling.id)
        if tail is not None:
            return sibling.id in self._known and tail.family == family
        return sibling.id in past and self._is(past[sibling.id], sibling)


def _is_at(tail: Tail) -> bool:
    try:
        status = os.stat(tail.path, follow_symlinks=False)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == tail.id
