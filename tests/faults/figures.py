"""The figures of the README: what was broken, what came of it, and which tamperings were found.

Every figure is counted in the output of a campaign or in the outcome of a test; none is written by hand. Campaigns that do not hold
are in the table like the others, and the exit code is 1.

    python -m tests.faults.figures --minutes 10 --seeds 1 2 3        run campaigns, one after another, then the tests of tampering
    python -m tests.faults.figures --outputs FILE …                  the same over outputs of campaigns that were kept
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

FACTS = re.compile(r"^(?P<sub>  )?(?P<name>\S.*?)\s{2,}(?P<value>[\d,.]+)(?: s)?$")
LEFT_OUT = ("seed", "minutes of faults", "a fresh line arrived after")
CAMPAIGN_REST_S = 1_200
"""For the start, and for what is still under way when the faults end."""
TAMPERING_S_MAX = 3_600
TAMPERINGS = {
    "rows, frames, heads, chains and gaps edited": ("test_evidence_verify.py", "test_a_tampering_is_found_and_located"),
    "partitions dropped by hand": ("test_evidence_verify.py", "test_a_partition_that_was_dropped_by_hand_is_named"),
    "tombstones edited": ("test_evidence_verify.py", "test_a_tampered_tombstone_is_found"),
    "signatures and keys forged, revoked, missing": (
        "test_evidence_signed.py",
        "test_what_is_wrong_with_a_signature_or_a_key_is_told_for_each_batch",
    ),
    "audit log, tree, checkpoints, and ends cut off with their heads put back": (
        "test_evidence_checkpoint.py",
        "test_what_no_chain_knows_of_is_found_by_the_tree",
    ),
}
"""Kind of tampering → the test that tries each of its forms as a case, and holds only if it is found where it was made."""


class Figures:
    """What several campaigns say together."""

    def __init__(self) -> None:
        self.seeds: list[str] = []
        self.minutes = 0.0
        self.fresh_s_max = 0.0
        self.faults: Counter[str] = Counter()
        self.facts: Counter[str] = Counter()

    def add(self, output: str) -> None:
        """Take up the output of one campaign. Raises ValueError where it is none."""
        found = [match for match in map(FACTS.match, output.splitlines()) if match]
        told = {match["name"]: match["value"].replace(",", "") for match in found if not match["sub"]}
        if any(name not in told for name in (*LEFT_OUT, "lines stored", "faults")):
            raise ValueError("this is not the output of a campaign that came to its end")
        self.seeds.append(told["seed"])
        self.minutes += float(told["minutes of faults"])
        self.fresh_s_max = max(self.fresh_s_max, float(told["a fresh line arrived after"]))
        self.faults.update({match["name"]: int(match["value"].replace(",", "")) for match in found if match["sub"]})
        self.facts.update({name: int(value) for name, value in told.items() if name not in LEFT_OUT})

    def table(self) -> list[str]:
        """As Markdown."""
        kinds = ", ".join(f"{name} {count:,}" for name, count in sorted(self.faults.items()))
        return [
            f"| {self.minutes:g} minutes of faults, seeds {', '.join(self.seeds)} | |",
            "|---|---|",
            *(f"| {name} | {count:,} |" for name, count in self.facts.items()),
            f"| slowest fresh line after the faults | {self.fresh_s_max:.1f} s |",
            "",
            f"Faults by kind: {kinds}.",
        ]


def run_campaign(seed: int, minutes: float, folder: Path) -> Path:
    """Run one; the file with its output, also where it does not hold."""
    command = [sys.executable, "-m", "tests.faults.campaign", "--minutes", str(minutes), "--seed", str(seed)]
    out = folder / f"campaign-{seed}.txt"
    with out.open("wb") as file:
        subprocess.run(command, stdout=file, check=False, timeout=60 * minutes + CAMPAIGN_REST_S)
    return out


def tamperings(folder: Path) -> list[tuple[str, int, int]]:
    """Of each kind: how many were tried, and how many were found and located."""
    report = folder / "tamperings.xml"
    tests = [f"tests/integration/{file}::{name}" for file, name in TAMPERINGS.values()]
    command = [sys.executable, "-m", "pytest", "-q", "--junitxml", str(report), *tests]
    subprocess.run(command, check=False, timeout=TAMPERING_S_MAX, stdout=subprocess.DEVNULL, env=os.environ)
    tried: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for case in ET.parse(report).iter("testcase"):
        name = (case.get("name") or "").partition("[")[0]
        if case.find("skipped") is not None:
            continue
        tried[name] += 1
        found[name] += case.find("failure") is None and case.find("error") is None
    return [(kind, tried[name], found[name]) for kind, (_, name) in TAMPERINGS.items()]


def main() -> int:
    """Print the table; 0 where every promise held and every tampering was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10.0, help="of faults, for each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--outputs", type=Path, nargs="+", default=[], help="run none, count these")
    options = parser.parse_args()
    figures = Figures()
    with tempfile.TemporaryDirectory() as name:
        outputs = options.outputs or [run_campaign(seed, options.minutes, Path(name)) for seed in options.seeds]
        for path in outputs:
            try:
                figures.add(path.read_text(encoding="utf-8"))
            except ValueError as error:
                print(f"{path}: {error}\n{path.read_text(encoding='utf-8')[-5_000:]}", file=sys.stderr)
                return 1
        print(*figures.table(), sep="\n", flush=True)
        found = tamperings(Path(name))
    print("", "| tampering | tried | found and located |", "|---|---|---|", sep="\n")
    print(*(f"| {kind} | {tried} | {located} |" for kind, tried, located in found), sep="\n")
    broken = [name for name in BROKEN if figures.facts[name]]
    if broken:
        print(f"did not hold: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken or any(not tried or tried != located for _, tried, located in found) else 0


BROKEN = (
    "acknowledged and not stored",
    "stored twice",
    "stored and never sent",
    "lost without a declaration",
    "declared lost, and not lost",
    "out of order",
    "acknowledged before it was durable",
    "chains that do not hold",
    "slow to come back",
)


if __name__ == "__main__":
    sys.exit(main())
