"""Rotations while the agent is down, under its eyes, in every naming: no line lost or twice, no gap without a reason."""

import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.rotation import OPERATIONS, PACK, Habits, World, chance, play

NAMINGS = ("number", "date", "infix", "dated_infix")
ROTATIONS = tuple(name for name in OPERATIONS if name not in ("edit", "rewrite"))


def world(folder: Path, **habits: object) -> World:
    made = World(folder, Habits(**habits))  # type: ignore[arg-type]
    made.write(random.Random(1))
    made.look(random.Random(1))
    return made


def step(made: World, *names: str) -> None:
    for n, name in enumerate(names):
        getattr(made, name)(random.Random(n))


@pytest.mark.parametrize("suffix", ["", *PACK])
@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("rotations", [1, 2, 5])
def test_every_file_rotated_while_the_agent_was_down_is_read_once_where_the_path_names_the_live_file_alone(
    tmp_path: Path, naming: str, suffix: str, rotations: int
) -> None:
    made = world(tmp_path, naming=naming, suffix=suffix, keep=8)
    made._restart()
    for _ in range(rotations):
        step(made, "write", "rotate")
    step(made, "write")
    outcome = made.judge()
    made.close()
    assert outcome.holds, outcome
    assert made.gaps == []
    assert len(made.got) == made.no
    assert made.got == sorted(made.got)


def test_a_directory_for_rotated_files_is_found(tmp_path: Path) -> None:
    made = world(tmp_path, olddir=True, keep=8)
    made._restart()
    step(made, "write", "rotate", "write", "rotate", "write")
    outcome = made.judge()
    made.close()
    assert outcome.holds, outcome
    assert made.gaps == []


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("paths", ["x.log", "x.log*"])
def test_few_files_kept_and_inodes_that_come_back_are_no_gap(tmp_path: Path, keep: int, paths: str) -> None:
    """One rotation in each absence: a gap in seven of eight, before files were known by their birth."""
    made = world(tmp_path, keep=keep, paths=paths, suffix="")
    for _ in range(8):
        step(made, "look")
        made._restart()
        step(made, "write", "rotate", "write")
    outcome = made.judge()
    made.close()
    assert outcome.holds, outcome
    assert made.gaps == []
    assert len(made.got) == made.no


def test_a_file_that_was_deleted_unread_by_rotation_is_one_gap(tmp_path: Path) -> None:
    made = world(tmp_path, keep=1, suffix="")
    made._restart()
    step(made, "write", "rotate", "write", "rotate", "write")
    outcome = made.judge()
    made.close()
    assert outcome.holds, outcome
    assert len(made.gaps) == 1
    assert outcome.declared > 0


@pytest.mark.parametrize("edit", ["edit", "rewrite"])
def test_a_log_that_an_editor_saved_is_not_stored_again(tmp_path: Path, edit: str) -> None:
    made = world(tmp_path, paths="x.log*")
    for _ in range(5):
        step(made, "write", "write", "look", edit, "look", "wait", "look")
    outcome = made.judge()
    made.close()
    assert outcome.holds, outcome
    assert made.gaps == []


def test_a_copy_and_the_cut_after_it_store_no_line_twice(tmp_path: Path) -> None:
    made = world(tmp_path, paths="x.log*", suffix="")
    step(made, "write")
    (tmp_path / "x.log.1").write_bytes(made.live.read_bytes())
    step(made, "look", "look", "wait")
    os.truncate(made.live, 0)
    made.reasons["cut"] += 1
    made.rotated = [tmp_path / "x.log.1"]
    step(made, "write", "look")
    outcome = made.judge()
    made.close()
    assert outcome.holds, outcome
    assert len(made.gaps) == 1
    assert len(made.got) == made.no


def test_the_unfinished_last_line_of_a_rotated_file_that_still_matches_is_read_after_the_grace(tmp_path: Path) -> None:
    made = world(tmp_path, paths="x.log*")
    made.half_line(random.Random(3))
    made.look(random.Random(3))
    made.live.rename(tmp_path / "x.log.1")
    made.half = b""
    made.live.touch()
    made.rotated = [tmp_path / "x.log.1"]
    step(made, "write")
    read_before = len(made.got)
    outcome = made.judge()
    made.close()
    assert len(made.got) > read_before
    assert outcome.twice == []
    # A line that was cut before its number counts as read without one.
    assert len(made.got) == made.no


def test_an_archive_that_rotation_renames_while_it_is_read_is_not_taken_for_its_successor(tmp_path: Path) -> None:
    made = world(tmp_path, paths="x.log*", suffix=".zst", delay=False, keep=8)
    for _ in range(4):
        step(made, "write", "rotate", "look", "write", "rotate")
    outcome = made.judge()
    made.close()
    assert outcome.holds, outcome


@settings(max_examples=40, deadline=None)
@given(
    naming=st.sampled_from(NAMINGS),
    keep=st.sampled_from([1, 2, 8]),
    suffix=st.sampled_from(["", *PACK]),
    wide=st.booleans(),
    delay=st.booleans(),
    schedule=st.lists(st.tuples(st.sampled_from(ROTATIONS), st.integers(0, 2**16)), min_size=3, max_size=15),
)
def test_no_schedule_of_writes_rotations_and_kills_loses_or_repeats_a_line_or_declares_a_false_gap(
    tmp_path_factory: pytest.TempPathFactory,
    naming: str,
    keep: int,
    suffix: str,
    wide: bool,
    delay: bool,
    schedule: list[tuple[str, int]],
) -> None:
    paths = ("x*.log*" if "infix" in naming else "x.log*") if wide else "x.log"
    outcome = play(tmp_path_factory.mktemp("w"), Habits(naming, keep, suffix, paths, delay=delay), schedule)
    assert outcome.holds, outcome


@pytest.mark.long
def test_schedules_by_chance_for_two_minutes(tmp_path_factory: pytest.TempPathFactory) -> None:
    until = time.monotonic() + 120
    seed = random.SystemRandom().randrange(2**31)
    while time.monotonic() < until:
        seed += 1
        habits, schedule = chance(random.Random(seed))
        schedule = [one for one in schedule if one[0] in ROTATIONS]
        outcome = play(tmp_path_factory.mktemp("w"), habits, schedule)
        assert outcome.holds, (seed, habits, outcome)
