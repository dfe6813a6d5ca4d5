"""Names of rotated log files: the family a file belongs to, and the order in which its members were written.

A family is a live file and what rotation made of its predecessors: `auth.log`, `auth.log.1`, `auth.log-20261130.gz`. Names only propose
an order; which file is which is decided by identity and content (logfile_identity.py).
"""

# Plain strings: ten thousand paths, twice a second; a pathlib path costs ten times as much.
# ruff: noqa: PTH118, PTH119

import itertools
import os
import re
from collections.abc import Sequence

ARCHIVES = (".gz", ".xz", ".zst", ".bz2")

_DATE = r"\d{4}-?\d\d-?\d\d(?:[-_T.]?\d{2}(?:[-:.]?\d\d){0,2})?|\d{10}"
_SUFFIX = re.compile(rf"(?:[.-]\d{{1,3}}|[._-](?:{_DATE})|\.(?:gz|xz|zst|bz2|bak|old|orig|copy|save)|~)+$")
_INFIX = re.compile(rf"^(?P<stem>.+?)[._-](?P<when>\d{{1,3}}|{_DATE})(?P<extension>\.[A-Za-z]\w{{0,7}})$")
_NUMBER = re.compile(r"[.-](\d{1,3})$")
_WHEN = re.compile(rf"[._-]({_DATE})")
_TEMPORARY = re.compile(r"^sed\w{6}$|\.(?:tmp|part|partial|sw[a-z])$|^#.*#$")


def is_archive(path: str) -> bool:
    """Return whether a file is compressed, by its name."""
    return path.endswith(ARCHIVES)


def is_temporary(path: str) -> bool:
    """Return whether a name is one that editors and copy programs give to a file that they are about to rename."""
    return _TEMPORARY.search(os.path.basename(path)) is not None


def family_of(path: str) -> str:
    """Return the name without what a rotation adds: `auth.log` for `auth.log.1` and for `auth.log-20260301.gz`."""
    directory, name = os.path.split(path)
    return os.path.join(directory, _SUFFIX.sub("", name) or name)


def _plain(name: str) -> str:
    while is_archive(name):
        name = name[: name.rindex(".")]
    return name


def live_of(path: str) -> str:
    """Return the live file that a name with a number or date before its extension may belong to: `app.log` for `app.1.log`."""
    directory, name = os.path.split(path)
    match = _INFIX.match(_plain(name))
    return os.path.join(directory, match["stem"] + match["extension"]) if match else path


def _rank(path: str, live: str) -> tuple[str, int | None]:
    """Return the date (digits alone, "" where there is none) and the number in a rotated file's name."""
    name = _plain(os.path.basename(path))
    base = os.path.basename(live)
    infix = None if name.startswith(base) else _INFIX.match(name)
    rest = f".{infix['when']}" if infix else name.removeprefix(base)
    when = _WHEN.search(rest)
    date = re.sub(r"\D", "", when[1]) if when else ""
    number = _NUMBER.search(rest[: when.start()] + rest[when.end() :] if when else rest)
    return date, int(number[1]) if number else None


def in_order(members: Sequence[tuple[str, int]], live: str) -> list[str]:
    """Return paths oldest first, from paths with their time of last change. The live file is the newest.

    Dates in the names decide, then numbers: the higher is the older, unless most times of last change contradict. Names of mixed
    kinds are ordered by time.
    """
    rotated = [(path, mtime, *_rank(path, live)) for path, mtime in members if path != live]
    if all(date for _, _, date, _ in rotated):
        rotated.sort(key=lambda one: (one[2].ljust(14, "0"), one[1], one[3] or 0))
    elif all(number is not None and not date for _, _, date, number in rotated):
        rotated.sort(key=lambda one: -(one[3] or 0))
        votes = [(b[1] > a[1]) - (b[1] < a[1]) for a, b in itertools.pairwise(rotated)]
        if sum(votes) < 0:
            rotated.reverse()
    else:
        rotated.sort(key=lambda one: (one[1], -(one[3] or 0)))
    return [one[0] for one in rotated] + [path for path, _ in members if path == live]


def missing_numbers(paths: Sequence[str], live: str) -> bool:
    """Return whether numbers are missing between the members given oldest first (`auth.log.3`, `auth.log.1`) and the live file."""
    ranks = [_rank(path, live) for path in paths if path != live]
    numbers = [number for date, number in ranks if number is not None and not date]
    if len(numbers) != len(ranks) or len(numbers) <= 1 or sorted(numbers, reverse=True) != numbers:
        return False
    last = numbers[-1]
    return last > 1 or any(a - b > 1 for a, b in itertools.pairwise(numbers))
