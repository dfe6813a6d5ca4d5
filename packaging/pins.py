"""The pins of a lock file that hold for one release of Python, without their conditions: `pins.py LOCK 3.12`.

pip judges a condition by the Python that it runs on, not by the one that packages are fetched for. A lock that pins one package twice,
an older one for an older Python, can be used by it only after this.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.markers import Marker

REQUIREMENT = re.compile(r"^(?P<pin>\S+==\S+)(?: ; (?P<marker>.*?))?(?P<end> \\)?$")


def pins(lock: str, release: str) -> Iterator[str]:
    """The lines that remain. Raises ValueError where one package has two pins for this Python."""
    environment = {"python_version": release, "python_full_version": f"{release}.0"}
    holds, seen = True, set[str]()
    for line in lock.splitlines():
        if match := REQUIREMENT.match(line):
            holds = match["marker"] is None or Marker(match["marker"]).evaluate(environment)
            if holds:
                name = match["pin"].partition("==")[0]
                if name in seen:
                    raise ValueError(f"{name} is pinned twice for Python {release}")
                seen.add(name)
                yield match["pin"] + (match["end"] or "")
        elif holds or not line.startswith(" "):
            yield line


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in pins(Path(sys.argv[1]).read_text(encoding="utf-8"), sys.argv[2]))
