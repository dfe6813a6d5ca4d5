"""How well `drift` and `multivariate` find what went wrong, on labelled runs: `make bench-detection DATA=folder`.

The folder holds CSV files, at any depth, separated by `;` or `,`: a column `datetime` or `time`, columns of numbers, and a column
`anomaly` of 0 and 1. Files without both labels are left out. Each is a machine of its own: its first 400 rows are learned from, the rest
is judged, row by row, by the handlers as they come, with the settings that they have by default: one for all files.

A row counts as alarmed while the handler's episode is open. Printed are, over the rows after the 400, per file and for all rows together:

    F1      2 TP / (2 TP + FP + FN)
    false   of the good rows, alarmed;    missed  of the bad rows, not alarmed
    delay   seconds from the first bad row to the first alarm at or after it, the median for all files

"Always alarm" is printed beside them, since F1 alone says little where half of the rows are bad.
"""

import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from agent.handlers.base import ConfigRaises
from agent.handlers.drift import ConfigDrift, DriftHandler
from agent.handlers.multivariate import ConfigMultivariate, MultivariateHandler
from agent.wire.event import Event

pytestmark = pytest.mark.bench

LEARN_ROWS = 400
NOT_SIGNALS = {"anomaly", "changepoint", "datetime", "time"}


@dataclass
class Run:
    """A file: its rows as events, and which of them are bad."""

    name: str
    signals: tuple[str, ...]
    times: list[int]
    rows: list[list[float]]
    bad: list[bool]

    def events(self, row: int) -> Iterator[Event]:
        time = self.times[row]
        for signal, value in zip(self.signals, self.rows[row], strict=True):
            yield Event(time, time, "equipment.reading", "bench", target=signal, data={"value": value})


@dataclass
class Score:
    """Rows by what they were and what was said of them."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0
    delay_s: float | None = None

    def add(self, alarmed: bool, bad: bool) -> None:
        name = ("t" if alarmed == bad else "f") + ("p" if alarmed else "n")
        setattr(self, name, getattr(self, name) + 1)

    @property
    def f1(self) -> float:
        return 2 * self.tp / max(1, 2 * self.tp + self.fp + self.fn)

    @property
    def false_rate(self) -> float:
        return self.fp / max(1, self.fp + self.tn)

    @property
    def missed_rate(self) -> float:
        return self.fn / max(1, self.fn + self.tp)

    def __str__(self) -> str:
        delay = "   never" if self.delay_s is None else f"{self.delay_s:6.0f} s"
        return f"F1 {self.f1:5.3f}  false {self.false_rate:6.1%}  missed {self.missed_rate:6.1%}  delay {delay}"


def read(path: Path, root: Path) -> Run | None:
    with path.open(encoding="utf-8", newline="") as file:
        head = file.readline()
        file.seek(0)
        table = list(csv.DictReader(file, delimiter=";" if ";" in head else ","))
    if len(table) <= LEARN_ROWS or "anomaly" not in table[0]:
        return None
    bad = [float(row["anomaly"]) > 0 for row in table]
    signals = tuple(name for name in table[0] if name not in NOT_SIGNALS)
    column = "datetime" if "datetime" in table[0] else "time"
    times = [round(datetime.fromisoformat(row[column]).replace(tzinfo=UTC).timestamp() * 1e6) for row in table]
    rows = [[float(row[name]) for name in signals] for row in table]
    return Run(str(path.relative_to(root)), signals, times, rows, bad) if any(bad) else None


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    folder = os.environ.get("LINEWARDEN_BENCH_DATA", "")
    if not folder:
        pytest.skip("give a folder of labelled CSV files: make bench-detection DATA=…")
    root = Path(folder)
    found = [run for path in sorted(root.rglob("*.csv")) if (run := read(path, root)) is not None]
    assert found, f"no CSV file with more than {LEARN_ROWS} rows and an anomaly column with both labels under {root}"
    return found


def judged(run: Run, handler: Any) -> Score:
    score = Score()
    begun_us: int | None = None
    for row in range(len(run.rows)):
        for event in run.events(row):
            handler.handle([event], event.observed)
        if row < LEARN_ROWS:
            continue
        alarmed = any(group.is_open for group in handler.table.groups.values())
        score.add(alarmed, run.bad[row])
        if run.bad[row] and begun_us is None:
            begun_us = run.times[row]
        if alarmed and begun_us is not None and score.delay_s is None:
            score.delay_s = (run.times[row] - begun_us) / 1e6
    return score


def multivariate(run: Run) -> Any:
    return MultivariateHandler(
        "m", ConfigMultivariate(signals=run.signals, raises=ConfigRaises(type="alert.equipment"))
    )


def drift(method: Any) -> Callable[[Run], Any]:
    return lambda _: DriftHandler("d", ConfigDrift(method=method, raises=ConfigRaises(type="alert.equipment.drift")))


HANDLERS: dict[str, Callable[[Run], Any]] = {
    "multivariate": multivariate,
    "drift, ewma": drift("ewma"),
    "drift, cusum": drift("cusum"),
    "drift, robust_z": drift("robust_z"),
}


@pytest.mark.parametrize("name", HANDLERS)
def test_quality_of_detection_with_default_settings(runs: list[Run], name: str) -> None:
    scores = {run.name: judged(run, HANDLERS[name](run)) for run in runs}
    whole = Score()
    for score in scores.values():
        for part in ("tp", "fp", "fn", "tn"):
            setattr(whole, part, getattr(whole, part) + getattr(score, part))
    delays = [score.delay_s for score in scores.values() if score.delay_s is not None]
    whole.delay_s = median(delays) if delays else None
    always = Score(tp=whole.tp + whole.fn, fp=whole.fp + whole.tn)
    print(f"\n{name}")
    for run_name, score in scores.items():
        print(f"  {run_name:28} {score}")
    print(f"  {'all rows':28} {whole}\n  {'(always alarm)':28} F1 {always.f1:5.3f}  false 100.0%  missed   0.0%")
    assert whole.f1 > 0.5
    if name == "multivariate":
        assert whole.f1 >= 0.78
        assert whole.false_rate <= 0.15
