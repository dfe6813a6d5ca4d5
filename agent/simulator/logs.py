"""Writes what a station's auth.log would hold: quiet days, and attacks on them. The same seed writes the same lines.

Every line carries its running number as the process id in brackets, `sshd[1234]:`. A judge reads it from `data.pid` and can tell
whether every line arrived once, and in order. Numbers begin at 1 and are never used twice by one writer.
"""

import argparse
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Self

USERS = ("anna", "ben", "carla", "deniz", "emil", "fatma")
GUESSED = ("root", "admin", "test", "oracle", "pi", "ubnt", "postgres", "operator", "guest", "siemens", "plc", "hmi")
COMMANDS = (
    "/usr/bin/systemctl restart hmi",
    "/usr/bin/apt update",
    "/usr/bin/tail -f /var/log/syslog",
    "/usr/sbin/ip addr",
    "/bin/cat /etc/hosts",
)
STATIONS = tuple(f"192.168.10.{n}" for n in range(20, 40))
ATTACKERS = ("203.0.113.7", "198.51.100.23", "203.0.113.200", "198.51.100.99")
SCENES = ("quiet", "brute_force", "spray", "break_in", "mixed")


@dataclass(frozen=True, slots=True)
class Line:
    """A line to be written: its number, the program and what it says. `attack` names the attack that it belongs to."""

    no: int
    program: str
    text: str
    attack: str | None = None


class Script:
    """The endless log of a station, by a seed.

    `quiet`: people sign in, use sudo, make a mistake now and then. `brute_force`: one address tries one account. `spray`: one address tries
    many accounts. `break_in`: it succeeds after failures, and uses sudo. `mixed`: quiet, with an attack now and then.
    """

    def __init__(self, seed: int = 1, scene: str = "mixed", *, first: int = 1) -> None:
        if scene not in SCENES:
            raise ValueError(f"there is no scene {scene!r}; known: {', '.join(SCENES)}")
        self._random = random.Random(seed)
        self._scene = scene
        self._no = first - 1

    def lines(self) -> Iterator[Line]:
        """Lines without end."""
        play = {"brute_force": self.brute_force, "spray": self.spray, "break_in": self.break_in}
        while True:
            if self._scene in play:
                yield from play[self._scene]()
                continue
            for _ in range(self._random.randint(40, 80)):
                yield from self.quiet()
            if self._scene == "mixed":
                yield from self._random.choice(list(play.values()))()

    def _line(self, program: str, text: str, attack: str | None = None) -> Line:
        self._no += 1
        return Line(self._no, program, text, attack)

    def _port(self) -> int:
        return self._random.randint(32_768, 60_999)

    def quiet(self) -> Iterator[Line]:
        """One thing that happens on a good day."""
        user, src, port = self._random.choice(USERS), self._random.choice(STATIONS), self._port()
        kind = self._random.random()
        if kind < 0.5:  # noqa: PLR2004  # half of all things
            method = self._random.choice(("publickey", "password"))
            key = f": ED25519 SHA256:{self._random.randbytes(32).hex()[:43]}" if method == "publickey" else ""
            yield self._line("sshd", f"Accepted {method} for {user} from {src} port {port} ssh2{key}")
            yield self._line("sshd", f"pam_unix(sshd:session): session opened for user {user}(uid=1001) by (uid=0)")
            yield self._line("sshd", f"Disconnected from user {user} {src} port {port}")
            yield self._line("sshd", f"pam_unix(sshd:session): session closed for user {user}")
        elif kind < 0.8:  # noqa: PLR2004  # three in ten
            command = self._random.choice(COMMANDS)
            yield self._line(
                "sudo",
                f"   {user} : TTY=pts/{self._random.randint(0, 5)} ; PWD=/home/{user} ; USER=root ; COMMAND={command}",
            )
            yield self._line("sudo", f"pam_unix(sudo:session): session opened for user root(uid=0) by {user}(uid=1001)")
            yield self._line("sudo", "pam_unix(sudo:session): session closed for user root")
        elif kind < 0.9:  # noqa: PLR2004  # one in ten
            yield self._line("CRON", "pam_unix(cron:session): session opened for user root(uid=0) by (uid=0)")
            yield self._line("CRON", "pam_unix(cron:session): session closed for user root")
        else:
            yield self._line("sshd", f"Failed password for {user} from {src} port {port} ssh2")
            yield self._line("sshd", f"Accepted password for {user} from {src} port {port} ssh2")

    def brute_force(self, attempts: int = 0) -> Iterator[Line]:
        """One address tries one account again and again."""
        src, user = self._random.choice(ATTACKERS), self._random.choice(GUESSED)
        for _ in range(attempts or self._random.randint(20, 60)):
            yield self._line(
                "sshd", f"Failed password for invalid user {user} from {src} port {self._port()} ssh2", "brute_force"
            )

    def spray(self, attempts: int = 0) -> Iterator[Line]:
        """One address tries a password on many accounts."""
        src = self._random.choice(ATTACKERS)
        for n in range(attempts or 2 * len(GUESSED)):
            user = GUESSED[n % len(GUESSED)]
            yield self._line("sshd", f"Invalid user {user} from {src} port {self._port()}", "spray")
            yield self._line(
                "sshd", f"Failed password for invalid user {user} from {src} port {self._port()} ssh2", "spray"
            )

    def break_in(self, attempts: int = 12) -> Iterator[Line]:
        """Refused, refused, then let in, and at once with root's rights."""
        src, user = self._random.choice(ATTACKERS), self._random.choice(USERS)
        for _ in range(attempts):
            yield self._line("sshd", f"Failed password for {user} from {src} port {self._port()} ssh2", "break_in")
        yield self._line("sshd", f"Accepted password for {user} from {src} port {self._port()} ssh2", "break_in")
        yield self._line(
            "sudo",
            f"{user} : 3 incorrect password attempts ; TTY=pts/9 ; PWD=/tmp ; USER=root ; COMMAND=/bin/bash",
            "break_in",
        )
        yield self._line("sudo", f"{user} : TTY=pts/9 ; PWD=/tmp ; USER=root ; COMMAND=/bin/bash", "break_in")


class LogWriter:
    """Appends lines to a file and rotates it as logrotate would.

    `rotate_lines`: rotate after this many lines; 0: never. `keep`: rotated files kept beside it. `classic`: write times as
    `Mon DD HH:MM:SS`, else as RFC 3339.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        host: str = "station-1",
        classic: bool = False,
        rotate_lines: int = 0,
        keep: int = 5,
        copytruncate: bool = False,
    ) -> None:
        self.path = Path(path)
        self._host = host
        self._classic = classic
        self._rotate_lines = rotate_lines
        self._keep = keep
        self._copytruncate = copytruncate
        self._file: IO[bytes] | None = None
        self._since_rotation = 0
        self.written = 0

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def write(self, *lines: Line, at: datetime | None = None) -> None:
        """Append lines and flush, so that a reader sees them now."""
        if self._file is None:
            raise ValueError("a LogWriter is written to inside its with statement")
        at = at or datetime.now().astimezone()
        stamp = at.strftime("%b %e %H:%M:%S") if self._classic else at.isoformat(timespec="microseconds")
        for line in lines:
            self._file.write(f"{stamp} {self._host} {line.program}[{line.no}]: {line.text}\n".encode())
            self.written += 1
            self._since_rotation += 1
            if self._rotate_lines and self._since_rotation >= self._rotate_lines:
                self.rotate()
        self._file.flush()

    def rotate(self) -> None:
        """auth.log → auth.log.1 → auth.log.2 …, the oldest deleted."""
        if self._file is None:
            return
        self._file.flush()
        for n in range(self._keep, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{n}")
            if not older.exists():
                continue
            if n == self._keep:
                older.unlink()
            else:
                older.rename(self.path.with_name(f"{self.path.name}.{n + 1}"))
        first = self.path.with_name(f"{self.path.name}.1")
        if self._copytruncate:
            first.write_bytes(self.path.read_bytes())
            os.truncate(self.path, 0)
        else:
            self._file.close()
            self.path.rename(first)
            self._file = self.path.open("ab")
        self._since_rotation = 0


def write_log(
    path: str | Path, *, count: int, seed: int = 1, scene: str = "mixed", rate_per_s: float = 0, first: int = 1, rotate_lines: int = 0,
    copytruncate: bool = False, classic: bool = False, keep: int = 5,
) -> int:  # fmt: skip
    """Write `count` lines (0: without end) at a rate (0: as fast as it goes). Returns how many were written."""
    lines = Script(seed, scene, first=first).lines()
    chunk = max(1, min(1_000, int(rate_per_s / 50))) if rate_per_s else 1_000
    begin = time.monotonic()
    with LogWriter(path, rotate_lines=rotate_lines, copytruncate=copytruncate, classic=classic, keep=keep) as writer:
        while not count or writer.written < count:
            size = min(chunk, count - writer.written) if count else chunk
            writer.write(*(next(lines) for _ in range(size)))
            if rate_per_s:
                time.sleep(max(0.0, begin + writer.written / rate_per_s - time.monotonic()))
        return writer.written


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m agent.simulator.logs", description="Write a station's auth.log, with attacks."
    )
    parser.add_argument("--path", required=True, help="the file to append to")
    parser.add_argument(
        "--rate", type=float, default=28, metavar="LINES_PER_S", help="0: as fast as it goes (default: 28)"
    )
    parser.add_argument("--count", type=int, default=0, help="lines to write; 0: until interrupted (default)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=1, help="the number of the first line (default: 1)")
    parser.add_argument("--scene", choices=SCENES, default="mixed")
    parser.add_argument("--rotate-lines", type=int, default=0, help="rotate after this many lines; 0: never (default)")
    parser.add_argument("--keep", type=int, default=5, help="rotated files to keep (default: 5)")
    parser.add_argument("--copytruncate", action="store_true", help="rotate by copying and cutting instead of renaming")
    parser.add_argument("--classic", action="store_true", help="write times as 'Mon DD HH:MM:SS' instead of RFC 3339")
    options = parser.parse_args(argv)
    try:
        written = write_log(
            options.path, count=options.count, seed=options.seed, scene=options.scene, rate_per_s=options.rate, first=options.first,
            rotate_lines=options.rotate_lines, copytruncate=options.copytruncate, classic=options.classic, keep=options.keep,
        )  # fmt: skip
    except KeyboardInterrupt:
        return 0
    except OSError as error:
        print(f"{options.path}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{written} lines written to {options.path}, {datetime.now(UTC).isoformat(timespec='seconds')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
