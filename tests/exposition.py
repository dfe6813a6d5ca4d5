"""A strict parser of Prometheus' text format 0.0.4: what it takes, every scraper takes."""

import re
from typing import NamedTuple

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"'
_SAMPLE = re.compile(rf"({_NAME})(?:\{{({_LABEL}(?:,{_LABEL})*)\}})? (\S+)")
_KINDS = ("counter", "gauge", "histogram", "summary", "untyped")


class Family(NamedTuple):
    """All samples of a name."""

    kind: str
    help: str
    samples: dict[tuple[tuple[str, str], ...], float]


def parse(text: str) -> dict[str, Family]:
    """The families. Raises AssertionError where a line is not as the format has it."""
    assert text.endswith("\n")
    families: dict[str, Family] = {}
    helps: dict[str, str] = {}
    current = ""
    for line in text[:-1].split("\n"):
        assert line == line.strip(" "), line
        if line.startswith("# HELP "):
            _, _, current, meaning = line.split(" ", 3)
            assert current not in helps, f"{current} stands twice"
            helps[current] = meaning
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == current, f"TYPE of {name} within {current}"
            assert kind in _KINDS
            assert (kind == "counter") == name.endswith("_total"), name
            families[name] = Family(kind, helps[name], {})
        else:
            found = _SAMPLE.fullmatch(line)
            assert found, line
            assert found[1] == current, f"a sample of {found[1]} among those of {current}"
            labels = tuple((name, _plain(value)) for name, value in re.findall(_LABEL, found[2] or ""))
            assert len({name for name, _ in labels}) == len(labels), line
            assert labels not in families[current].samples, f"stands twice: {line}"
            value = float(found[7])
            assert families[current].kind != "counter" or value >= 0, line
            families[current].samples[labels] = value
    assert all(family.samples for family in families.values())
    return families


def _plain(value: str) -> str:
    return re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], value)
