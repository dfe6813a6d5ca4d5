"""A log that is written, rotated, copied, compressed, edited and deleted in any order while its reader looks, is killed and comes back.

The model knows of each line where it lies. At the end each line was handed on exactly once, or lay in a file that was deleted before it
was read, and then a gap says so. A gap without such a reason is as wrong as a missing one. Clocks are handed in, so that a schedule
takes milliseconds, and the same schedule does the same.

    python -m tests.faults.rotation --minutes 20 --seed 1
"""

import argparse
import asyncio
import bz2
import gzip
import json
import lzma
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from agent.component import Report
from agent.sources.logfile import LogConfig, LogSource
from agent.sources.logfile_open import birth_ns
from agent.sources.logfile_tail import Files

GRACE_S = 5.0
PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
}
OPERATIONS = (
    "write", "write", "write", "write_much", "half", "look", "look", "look", "glance", "kill", "rotate", "rotate",
    "copy_and_cut", "compress",
    "recreate", "edit", "rewrite", "wait", "late",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Habits:
    """How a system rotates: the name of a rotated file, how many are kept, how they are compressed, and what the agent's paths name."""

    naming: str = "number"
    keep: int = 3
    suffix: str = ".gz"
    paths: str = "x.log"
    olddir: bool = False
    delay: bool = True
    """Compress at the next rotation, as `delaycompress`."""


@dataclass(slots=True)
class Outcome:
    written: int = 0
    lost: list[int] = field(default_factory=list)
    """Not handed on, and no gap says so."""
    twice: list[int] = field(default_factory=list)
    false_gaps: list[str] = field(default_factory=list)
    declared: int = 0
    """Lines that were deleted unread, and a gap says so."""
    out_of_order: int = 0

    @property
    def holds(self) -> bool:
        return not (self.lost or self.twice or self.false_gaps)


class Lines:
    """Hands on every line as its number; a line without one is 0."""


class World:
    """A directory with a log and a reader."""

    def __init__(self, folder: Path, habits: Habits) -> None:
        self.folder = folder
        self.habits = habits
        self.live = folder / "x.log"
        self.old = folder / "old" if habits.olddir else folder
        self.old.mkdir(exist_ok=True)
        self.now_s = 1_000.0
        self.no = 0
        self.rotations = 0
        self.half = b""
        self.got: list[int] = []
        self.gaps: list[str] = []
        self.reasons: Counter[str] = Counter()
        """Why a gap may be: a file cut in place, a file deleted whose end nobody could know."""
        self.cursor: Any = None
        self.rotated: list[Path] = []
        """Newest first."""
        self.looked_at: set[tuple[int, int]] = set()
        """The live file at the last look: nobody can know how it ended."""
        self.seen: set[tuple[int, int]] = set()
        self.copies: set[Path] = set()
        """Nobody goes on writing to a copy."""
        self.cut_unseen = False
        """The live file was cut since the last look."""
        self.late_ones: set[tuple[int, int]] = set()
        self.changed = False
        """An editor was there since the last look."""
        self.unseen: set[int] = set()
        """Lines of files that were made and deleted between two looks."""
        self.source: LogSource = None  # type: ignore[assignment]  # made by _restart
        self.loop = asyncio.new_event_loop()
        self.live.touch()
        self._restart()
        self.source._files.scan()
        self._commit((), self.source._cursor())
        if habits.olddir:
            # The directory is known from the first rotation that was seen.
            self.write(random.Random(0))
            self.look(random.Random(0))
            self.rotated = [self._name()]
            self.live.rename(self.rotated[0])
            self.live.touch()
            self.write(random.Random(0))
            self.look(random.Random(0))

    def close(self) -> None:
        self.source._files.close()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    # The writer

    def _append(self, data: bytes, path: Path | None = None) -> None:
        with (path or self.live).open("ab") as file:
            file.write(data)

    def _line(self) -> bytes:
        self.no += 1
        return f"2026-11-30T10:00:00Z station app[{self.no}]: something happened, for the {self.no}th time\n".encode()

    def write(self, rng: random.Random) -> None:
        self._append(self.half + b"".join(self._line() for _ in range(rng.randint(1, 8))))
        self.half = b""

    def write_much(self, rng: random.Random) -> None:
        self._append(self.half + b"".join(self._line() for _ in range(rng.randint(500, 6_000))))
        self.half = b""

    def half_line(self, rng: random.Random) -> None:
        if not self.half:
            line = self._line()
            cut = rng.randint(1, len(line) - 1)
            self._append(line[:cut])
            self.half = line[cut:]

    def _finish(self) -> None:
        if self.half:
            self._append(self.half)
            self.half = b""

    # The system

    def _name(self) -> Path:
        self.rotations += 1
        day = f"{2_020 + self.rotations // 300:04d}{1 + self.rotations // 28 % 12:02d}{1 + self.rotations % 28:02d}"
        match self.habits.naming:
            case "date":
                return self.old / f"x.log-{day}"
            case "dated_infix":
                return self.old / f"x-{day}.log"
            case "infix":
                return self.old / "x.1.log"
            case _:
                return self.old / "x.log.1"

    def _shift(self) -> None:
        """Make room: .1 becomes .2, and what is too much is deleted."""
        kept = self.rotated[: max(0, self.habits.keep - 1)]
        for path in self.rotated[len(kept) :]:
            self._delete(path)
        if self.habits.naming in ("number", "infix"):
            moved = []
            for n, path in reversed(list(enumerate(kept, 2))):
                packed = path.suffix if path.suffix in PACK else ""
                target = self.old / (f"x.{n}.log{packed}" if self.habits.naming == "infix" else f"x.log.{n}{packed}")
                path.rename(target)
                moved.append(target)
            kept = moved[::-1]
        self.rotated = kept

    def _delete(self, path: Path) -> None:
        lines = set(self._numbers(path))
        if (
            self._id(path) in self.late_ones
            or self._id(path) not in self.seen
            or (path == self.live and self.cut_unseen)
        ):
            self.unseen |= lines
        if lines - set(self.got) or self._id(path) in self.looked_at | self.late_ones:
            self.reasons["deleted"] += 1
        path.unlink()

    @staticmethod
    def _id(path: Path) -> tuple[int, int]:
        fd = os.open(path, os.O_RDONLY)
        try:
            return os.fstat(fd).st_ino, birth_ns(fd)
        finally:
            os.close(fd)

    def _numbers(self, path: Path) -> list[int]:
        data = path.read_bytes()
        unpack: dict[str, Callable[[bytes], bytes]] = {
            ".gz": gzip.decompress,
            ".xz": lzma.decompress,
            ".zst": lambda packed: zstandard.ZstdDecompressor().decompress(packed, max_output_size=2**27),
            ".bz2": bz2.decompress,
        }
        if path.suffix in unpack:
            data = unpack[path.suffix](data)
        return numbers_of(data.decode())

    def rotate(self, _: random.Random) -> None:
        self._finish()
        if self.habits.keep == 0:
            self._delete(self.live)
        else:
            self._shift()
            target = self._name()
            self.live.rename(target)
            self.copies.discard(target)
            self.rotated.insert(0, target)
        self.live.touch()
        if not self.habits.delay or len(self.rotated) > 1:
            self._settle()
            self._pack(self.rotated[1] if self.habits.delay else self.rotated[0] if self.rotated else None)

    def copy_and_cut(self, rng: random.Random) -> None:
        if self.live.stat().st_size == 0 or self.habits.keep == 0:
            return
        self._finish()
        self._shift()
        target = self._name()
        shutil.copy(self.live, target)
        self.copies.add(target)
        self.rotated.insert(0, target)
        if rng.random() < 0.4:
            self.look(rng)
        os.truncate(self.live, 0)
        self.reasons["cut"] += 1
        self.cut_unseen = True

    def compress(self, rng: random.Random) -> None:
        plain = [path for path in self.rotated if path.suffix not in PACK]
        if plain:
            self._settle()
            self._pack(rng.choice(plain))

    def _settle(self) -> None:
        """An archive is not searched for an edited version: the reader has the time to find it before."""
        while self.changed:
            for _ in range(4):
                self._look(1_000)
                self.now_s += 1.5

    def _pack(self, path: Path | None) -> None:
        if path is None or path.suffix in PACK or not self.habits.suffix:
            return
        if not set(self._numbers(path)) & set(self.got):
            self.reasons["deleted"] += 1  # nothing of it is known by which to recognise the archive
        status = path.stat()
        packed = path.with_name(path.name + self.habits.suffix)
        packed.write_bytes(PACK[self.habits.suffix](path.read_bytes()))
        os.utime(packed, ns=(status.st_atime_ns, status.st_mtime_ns))
        for ids in (self.looked_at, self.late_ones):
            if self._id(path) in ids:
                ids.add(self._id(packed))
        path.unlink()
        self.rotated[self.rotated.index(path)] = packed

    def edit(self, rng: random.Random) -> None:
        """An editor: a new file with a line more, an old line less, renamed over the log."""
        if self.half or not self.live.stat().st_size:
            return
        self.look(rng)  # who edits a file leaves the reader some time
        if not set(self._numbers(self.live)) & set(self.got):
            self.reasons["deleted"] += 1  # nothing of it is known by which to recognise it
        new = self.folder / "sedAbCdEf"
        new.write_bytes(self._edited(rng) + self._line())
        new.rename(self.live)

    def rewrite(self, rng: random.Random) -> None:
        """Another editor: the same file, written anew."""
        if self.half:
            return
        self.look(rng)
        data = self._edited(rng)
        with self.live.open("r+b") as file:
            file.truncate()
            if rng.random() < 0.3:
                self.look(rng)
            file.write(data + self._line())
        self.changed = True

    def _edited(self, rng: random.Random) -> bytes:
        self.changed = True
        lines = self.live.read_bytes().splitlines(keepends=True)
        read = [n for n, line in enumerate(lines) if numbers_of(line.decode())[0] in self.got][:-6]
        if read and rng.random() < 0.7:
            del lines[rng.choice(read)]
        return b"".join(lines)

    def recreate(self, _: random.Random) -> None:
        """Deleted and made again: what was not read is lost."""
        self._finish()
        self._delete(self.live)
        self.live.touch()

    def late(self, _: random.Random) -> None:
        """A writer that was not told of the rotation."""
        if self.rotated and self.rotated[0].suffix not in PACK and self.rotated[0] not in self.copies:
            self._append(self._line(), self.rotated[0])
            self.late_ones.add(self._id(self.rotated[0]))

    def wait(self, rng: random.Random) -> None:
        self.now_s += rng.choice((0.5, 2.0, GRACE_S + 1))

    # The reader

    def _restart(self) -> None:
        if self.source is not None:
            self.source._files.close()
        config = LogConfig(
            paths=tuple(str(self.folder / path) for path in self.habits.paths.split(",")),
            parser="regex",
            options={"pattern": r"app\[(?P<no>\d+)\]"},
            rotation_grace_s=GRACE_S,
        )
        self.source = LogSource("x", config, Report())
        self.source._files = Files(
            config.paths,
            files_max=1_000,
            grace_s=GRACE_S,
            clock=lambda: self.now_s,
            wall_clock=lambda: time.time() + self.now_s - 1_000.0,
        )
        self.source._files.restore(json.loads(self.cursor)["files"] if self.cursor else ())

    def kill(self, rng: random.Random) -> None:
        """It ends at any point, and begins again where its last commit stood."""
        if rng.random() < 0.5:
            self._look(rng.randint(0, 2))
        self._restart()

    def look(self, _: random.Random) -> None:
        self._look(1_000)

    def glance(self, rng: random.Random) -> None:
        self._look(rng.randint(0, 3))

    def _look(self, batches_max: int) -> None:
        """Look at the disk and read, at most so many batches; nothing after the last one is committed."""

        async def some() -> None:
            left = batches_max
            self.source._files.scan()
            while True:
                async for events, cursor in self.source._turn():
                    if not left:
                        return
                    left -= 1
                    self._commit(events, cursor)
                if self.source._files.wants_look():
                    self.source._files.scan()
                elif not any(family[0].due for family in self.source._families()):
                    return

        self.loop.run_until_complete(some())
        if batches_max < 1_000:
            self._restart()  # what it had read beyond the commit is read again
        self.changed = self.changed and batches_max < 1_000
        self.cut_unseen = self.cut_unseen and batches_max < 1_000
        self.now_s += 0.5

    def _commit(self, events: Iterable[Any], cursor: Any) -> None:
        for event in events:
            if event.type == "collection.gap":
                self.gaps.append(event.data["reason"])
            else:
                self.got.append(int(event.data.get("no", 0)))
        self.cursor = json.dumps(cursor)
        self.looked_at = {self._id(self.live)}
        if self.rotated and not self.live.stat().st_size:
            self.looked_at.add(self._id(self.rotated[0]))  # its writer may not have left it yet
        self.seen |= {(state["ino"], state.get("birth", 0)) for state in cursor["files"]}

    # The judge

    def judge(self) -> Outcome:
        self._finish()
        for _ in range(8):
            self._look(1_000)
            self.now_s += GRACE_S + 1
        outcome = Outcome(self.no)
        counts = Counter(self.got)
        missing = [no for no in range(1, self.no + 1) if not counts[no]]
        outcome.twice = [no for no, count in counts.items() if count > 1]
        missing = [no for no in missing if no not in self.unseen]
        if missing and not self.gaps:
            outcome.lost = missing
        elif missing:
            here = {no for path in (self.live, *self.rotated) for no in self._numbers(path)}
            outcome.lost = [no for no in missing if no in here]
            outcome.declared = len(missing) - len(outcome.lost)
        outcome.false_gaps = self.gaps[self.reasons.total() :]
        outcome.out_of_order = sum(b < a for a, b in zip(self.got, self.got[1:], strict=False))
        return outcome


def numbers_of(text: str) -> list[int]:
    return [int(part.partition("]")[0]) for part in text.split("app[")[1:]]


def play(folder: Path, habits: Habits, schedule: Iterable[tuple[str, int]]) -> Outcome:
    """Do what a schedule says: operations, each with the seed of its chances."""
    world = World(folder, habits)
    try:
        world.look(random.Random(0))
        for name, seed in schedule:
            getattr(world, "half_line" if name == "half" else name)(random.Random(seed))
        return world.judge()
    finally:
        world.close()


def chance(rng: random.Random) -> tuple[Habits, list[tuple[str, int]]]:
    """Return habits and a schedule by chance."""
    naming = rng.choice(("number", "number", "date", "infix", "dated_infix"))
    wide = "x*.log*" if "infix" in naming else "x.log*"
    habits = Habits(
        naming,
        rng.choice((1, 1, 2, 3, 8)),
        rng.choice(("", ".gz", ".xz", ".zst", ".bz2")),
        rng.choice(("x.log", wide)),
        olddir=rng.random() < 0.2,
        delay=rng.random() < 0.5,
    )
    schedule = [(rng.choice(OPERATIONS), rng.randrange(2**32)) for _ in range(rng.randint(5, 40))]
    return habits, schedule


def main() -> int:
    """Play schedules by chance for a time, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    total: Counter[str] = Counter()
    seed = options.seed * 1_000_000
    while time.monotonic() < until:
        seed += 1
        habits, schedule = chance(random.Random(seed))
        with tempfile.TemporaryDirectory() as folder:
            outcome = play(Path(folder), habits, schedule)
        total.update(schedules=1, operations=len(schedule), lines=outcome.written, declared=outcome.declared)
        total.update(lost=len(outcome.lost), twice=len(outcome.twice), false_gaps=len(outcome.false_gaps))
        if not outcome.holds:
            total["failed"] += 1
            print(seed, habits, outcome.lost[:5], outcome.twice[:5], outcome.false_gaps, flush=True)
    print(dict(total))
    return 1 if total["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
