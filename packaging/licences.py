"""Packages, pins and licences of a bill of materials (CycloneDX), as text: `licences.py BOM…`.

Ends with 1 where a package names no licence, or one that is none of PERMISSIVE: what we hand to others must not bind them.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PERMISSIVE = re.compile(
    r"\b(MIT|BSD|0BSD|Apache|ISC|PSF|Python Software Foundation|Unlicense|MPL|Mozilla|Zlib|HPND|CC0|LGPL|Lesser)\b"
    r"|Public Domain",
    re.IGNORECASE,
)
"""LGPL and MPL bind changes to the library itself, which we make none of."""
READ = {"rich-click": "MIT"}
"""Of packages whose metadata name none: read in their licence files."""
OWN = "linewarden"


def licences(bom: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, version and licences of each package."""
    for component in sorted(bom.get("components", ()), key=lambda one: str(one["name"]).lower()):
        named = [one.get("license", {}) for one in component.get("licenses", ())]
        texts = {str(one.get("id") or one.get("name") or "") for one in named}
        texts |= {str(one.get("expression", "")) for one in component.get("licenses", ())}
        known = "; ".join(sorted(filter(None, texts))) or READ.get(component["name"], "")
        yield component["name"], component.get("version", "?"), known


def main(paths: list[str]) -> int:
    """Print the table; whether every licence is known and permissive."""
    found = {
        row for path in paths for row in licences(json.loads(Path(path).read_text(encoding="utf-8"))) if row[0] != OWN
    }
    width = max(len(f"{name}=={version}") for name, version, _ in found)
    strange = []
    for name, version, text in sorted(found):
        print(f"{f'{name}=={version}':{width}}  {text or 'names no licence'}")
        if not PERMISSIVE.search(text):
            strange.append(name)
    if strange:
        print(f"\nlicences to be looked at: {', '.join(strange)}", file=sys.stderr)
    return 1 if strange else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
