"""What lies in a watched directory besides logs: links, pipes, sparse files, and a backlog that must not delay the others."""

import asyncio
import os
from pathlib import Path
from typing import Any

from agent.component import Report
from agent.sources.logfile import LogConfig, LogSource
from agent.sources.logfile_open import matches


class Looker:
    """A source that looks once when it is told to."""

    def __init__(self, *paths: Path | str) -> None:
        config = LogConfig(paths=tuple(map(str, paths)), parser="auth", rotation_grace_s=0.05)
        self.report = Report()
        self.source = LogSource("x", config, self.report)
        self.gaps: list[Any] = []
        self.turns = 0

    async def turn(self) -> list[int]:
        """The numbers of the lines of one turn."""
        numbers = []
        async for events, _ in self.source._turn():
            for event in events:
                if event.type == "collection.gap":
                    self.gaps.append(event)
                else:
                    numbers.append(event.data["pid"])
        self.turns += 1
        return numbers

    async def look(self) -> list[int]:
        await asyncio.to_thread(self.source._files.scan)
        self.source._tell()
        numbers = await self.turn()
        while any(family[0].due for family in self.source._families()):
            numbers += await self.turn()
        return numbers


def line(no: int) -> str:
    return f"Nov 30 10:00:00 h sshd[{no}]: Failed password for root from 192.0.2.7 port 22 ssh2\n"


async def test_no_link_is_followed_below_a_wildcard_neither_a_file_nor_a_directory(tmp_path: Path) -> None:
    secret, watched = tmp_path / "secret", tmp_path / "w"
    (secret / "sub").mkdir(parents=True)
    (secret / "key.log").write_text(line(666))
    (secret / "sub" / "key.log").write_text(line(667))
    watched.mkdir()
    (watched / "a.log").symlink_to(secret / "key.log")
    (watched / "d").symlink_to(secret / "sub")
    (watched / "real").mkdir()
    (watched / "real" / "b.log").write_text(line(2))
    (watched / "c.log").write_text(line(1))
    looker = Looker(watched / "*.log", watched / "*" / "*.log", watched / "**" / "*.log")
    assert sorted(await looker.look()) == [1, 2]
    assert "symbolic link" in looker.report.trouble[str(watched / "a.log")]
    assert "symbolic link" in looker.report.trouble[str(watched / "d")]


async def test_a_file_exchanged_for_a_link_after_it_was_listed_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(line(666))
    path = tmp_path / "a.log"
    looker = Looker(tmp_path / "*.log")
    path.touch()
    await looker.look()
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    looker.source._files.look(str(path))
    for tail in looker.source._files.tails.values():
        tail.due = True
        looker.source._files._close(tail.id)
    assert await looker.turn() == []


async def test_a_configured_path_that_an_administrator_made_a_link_is_read_and_one_of_another_user_is_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "target").write_text(line(1))
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert await Looker(tmp_path / "link").look() == [1]
    if os.geteuid() == 0:
        os.chown(tmp_path / "link", 12_345, 12_345, follow_symlinks=False)
        looker = Looker(tmp_path / "link")
        assert await looker.look() == []
        assert "made by another user" in looker.report.trouble[str(tmp_path / "link")]
        os.chown(tmp_path / "target", 12_345, 12_345)  # whoever made the link could read it anyway
        assert await Looker(tmp_path / "link").look() == [1]


async def test_pipes_sockets_and_second_names_of_a_file_do_no_harm(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.log")
    (tmp_path / "dir.log").mkdir()
    (tmp_path / "a.log").write_text(line(1))
    os.link(tmp_path / "a.log", tmp_path / "b.log")
    looker = Looker(tmp_path / "*.log")
    assert await looker.look() == [1]
    assert list(looker.report.trouble) == [str(tmp_path / "pipe.log")]
    assert "not a regular file" in looker.report.trouble[str(tmp_path / "pipe.log")]


def test_a_hard_link_that_somebody_made_to_a_file_of_another_is_not_read(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        return
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chown(shared, 12_345, 12_345)
    (tmp_path / "secret").write_text(line(666))
    os.link(tmp_path / "secret", shared / "a.log")
    refused: dict[str, str] = {}
    assert list(matches(str(shared / "*.log"), refused.__setitem__)) == []
    assert "hard link" in refused[str(shared / "a.log")]


async def test_a_sparse_file_of_four_terabytes_is_declared_and_delays_no_other(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text(line(1))
    with (tmp_path / "big.log").open("wb") as file:
        file.truncate(4 * 2**40)
    looker = Looker(tmp_path / "*.log")
    assert await looker.look() == [1]
    assert looker.turns < 10
    (gap,) = looker.gaps
    assert (gap.data["events"], gap.data["bytes"]) == (0, 4 * 2**40)


async def test_a_hole_between_lines_is_passed_over_and_declared_and_lines_on_both_sides_are_read(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.log"
    path.write_text(line(1))
    looker = Looker(path)
    assert await looker.look() == [1]
    with path.open("r+b") as file:
        file.seek(2**40)
        file.write(line(2).encode())
    assert await looker.look() == [2]
    assert looker.turns < 10
    assert sum(gap.data["bytes"] for gap in looker.gaps) > 2**39


async def test_lines_written_into_a_file_of_which_the_room_was_reserved_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    with path.open("wb") as file:
        file.truncate(8 * 2**20)
    looker = Looker(path)
    assert await looker.look() == []
    at = 0
    for no in range(1, 200):
        with path.open("r+b") as file:
            file.seek(at)
            at += file.write(line(no).encode())
        assert await looker.look() == [no]


async def test_a_fresh_line_waits_for_no_backlog_of_another_file(tmp_path: Path) -> None:
    """It once waited four minutes for six million lines."""
    with (tmp_path / "backlog.log").open("w") as file:
        file.writelines(line(no) for no in range(1, 40_001))
    (tmp_path / "fresh.log").write_text(line(100_000))
    looker = Looker(tmp_path / "*.log")
    await asyncio.to_thread(looker.source._files.scan)
    assert 100_000 in await looker.turn()
    with (tmp_path / "fresh.log").open("a") as file:
        file.write(line(100_001))
    looker.source._files.look(str(tmp_path / "fresh.log"))
    assert 100_001 in await looker.turn()
    assert looker.source._families(), "the backlog is read meanwhile"


async def test_many_files_with_a_backlog_take_turns(tmp_path: Path) -> None:
    for name in range(30):
        with (tmp_path / f"f{name}.log").open("w") as file:
            file.writelines(line(1_000_000 + name) for _ in range(5_000))
    looker = Looker(tmp_path / "*.log")
    await asyncio.to_thread(looker.source._files.scan)
    seen: set[int] = set()
    for _ in range(100):
        seen.update(await looker.turn())
        if len(seen) == 30:
            break
    turns = {tail.offset for tail in looker.source._files.tails.values()}
    assert len(seen) == 30
    assert max(turns) <= 3 * 262_144, "one file was read on while others waited"


async def test_a_pattern_that_matches_nothing_is_reported_with_its_remedy_until_a_file_appears(tmp_path: Path) -> None:
    looker = Looker(tmp_path / "app*.log", tmp_path / "none.log")
    await looker.look()
    assert "matches no file yet; correct the path" in looker.report.trouble[str(tmp_path / "app*.log")]
    assert "no such file yet" in looker.report.trouble[str(tmp_path / "none.log")]
    assert 'type = "journal"' in looker.report.trouble[str(tmp_path / "none.log")]
    (tmp_path / "app1.log").write_text(line(1))
    (tmp_path / "none.log").write_text(line(2))
    assert sorted(await looker.look()) == [1, 2]
    assert looker.report.trouble == {}
