"""The buffer file damaged, cut, deleted, put back from an old copy, or copied: found, named, and no number silently gone."""

import asyncio
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from agent.simulator.logs import LogWriter, Script
from tests.agent_process import Agent, log_source
from tests.collector_process import Collector, poll_until
from tests.postgres import Postgres, connected

pytestmark = pytest.mark.timeout(200)

EVENTS = """
    SELECT type, message, source, buffer_id, lane, batch_no, idx, data, (data->>'pid')::int AS no FROM security_events
    WHERE agent_id = $1 AND type NOT LIKE 'alert.%' ORDER BY batch_id, idx
"""


class Scene:
    """A station whose collector is away, with lines in its buffer that nobody else has."""

    def __init__(self, folder: Path, collector: Collector) -> None:
        self.folder = folder
        self.collector = collector
        self.log = folder / "auth.log"
        self.agent = Agent(folder, collector.url, collector.key("agent"), log_source(self.log))
        self.state = folder / "state"
        self._lines = Script(7, "quiet").lines()
        self._writer = LogWriter(self.log).__enter__()

    @property
    def buffer(self) -> Path:
        return self.state / "buffer.db"

    def write(self, count: int) -> None:
        """Write lines, in several commits."""
        for _ in range(0, count, 50):
            self._writer.write(*islice(self._lines, 50))
            poll_until(self._has_all, why=f"the agent did not read its log: {self.agent.log}")

    def _has_all(self) -> bool:
        with closing(sqlite3.connect(f"file:{self.buffer}?mode=ro", uri=True, timeout=10)) as db, db:
            found = db.execute("SELECT cursor FROM cursors WHERE source = 'auth'").fetchone()
        return found is not None and f'"offset":{self.log.stat().st_size}'.encode() in bytes(found[0]).replace(
            b" ", b""
        )

    def events(self) -> list[Any]:
        async def ask() -> list[Any]:
            async with connected(self.collector.dsn) as database:
                return list(await database.fetch(EVENTS, UUID(self.agent.id)))

        return asyncio.run(ask())

    def end(self) -> None:
        self.agent.kill9()
        self._writer.__exit__()


@pytest.fixture
def scene(tmp_path: Path, postgres: Postgres) -> Iterator[Scene]:
    collector = Collector(postgres.create_database(f"lost{random.randrange(10**9)}"))
    collector.start()
    made = Scene(tmp_path, collector)
    yield made
    made.end()
    if collector.runs:
        collector.kill9()


def corrupt_pages(file: Path) -> None:
    rng = random.Random(7)
    with file.open("r+b") as db:
        size = file.stat().st_size
        for _ in range(6):
            db.seek(rng.randrange(4_096, size - 4_096))
            db.write(rng.randbytes(2_000))


def truncate(file: Path) -> None:
    with file.open("r+b") as db:
        db.truncate(file.stat().st_size // 2)


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def delete(file: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)


def checkpointed(file: Path) -> None:
    """Everything in the file itself, so that the harm done to it is done to the events."""
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@pytest.mark.parametrize("harm", [corrupt_pages, truncate, zero, delete])
def test_a_buffer_that_is_damaged_or_gone_is_declared_and_the_log_is_read_again_where_that_is_needed(
    scene: Scene, harm: Callable[[Path], None]
) -> None:
    agent = scene.agent.start()
    scene.write(500)
    poll_until(agent.drained, why="the first lines did not go")
    scene.collector.kill9()
    scene.write(500)
    agent.kill9()
    checkpointed(scene.buffer)
    harm(scene.buffer)
    agent.start()
    scene.collector.start()
    scene.write(100)
    poll_until(agent.drained, within_s=60, why="the buffer is not empty")
    events = scene.events()
    times = Counter(event["no"] for event in events if event["source"] == "auth" and event["no"])
    missing = [no for no in range(1, 1_101) if not times[no]]
    gaps = [event for event in events if event["type"] == "collection.gap"]
    assert gaps, "a loss was not declared"
    assert any("buffer" in event["message"] or "lost" in event["message"] for event in gaps)
    # What may be missing was in the buffer alone and is covered by the gap; what was stored before, and came after, is there.
    assert not [no for no in missing if no <= 500 or no > 1_000]
    identities = [(e["buffer_id"], e["lane"], e["batch_no"], e["idx"]) for e in events]
    assert len(set(identities)) == len(identities)
    assert "Traceback" not in agent.log


def test_a_buffer_put_back_from_an_old_copy_is_found_and_nothing_is_stored_twice_or_lost(scene: Scene) -> None:
    agent = scene.agent.start()
    scene.write(300)
    poll_until(agent.drained)
    assert agent.stop() == 0
    checkpointed(scene.buffer)
    shutil.copy(scene.buffer, scene.folder / "old.db")
    agent.start()
    scene.write(300)
    poll_until(agent.drained)
    assert agent.stop() == 0
    delete(scene.buffer)
    shutil.copy(scene.folder / "old.db", scene.buffer)
    agent.start()
    scene.write(300)
    poll_until(agent.drained, within_s=60)
    assert agent.stop() == 0
    events = scene.events()
    times = Counter(event["no"] for event in events if event["source"] == "auth" and event["no"])
    assert [no for no in range(1, 901) if not times[no]] == []
    forks = asyncio.run(_fetch(scene.collector.dsn, "SELECT agent_id FROM forks"))
    assert [str(row["agent_id"]) for row in forks][:1] == [agent.id]
    told = asyncio.run(
        _fetch(scene.collector.dsn, "SELECT message FROM security_events WHERE type = 'security.chain.forked'")
    )
    assert told
    # The old copy's cursor reads lines again that are stored already: they come under a new buffer id, never under the old one.
    assert max(times.values()) <= 2
    by_buffer = Counter(
        (event["buffer_id"], event["no"]) for event in events if event["source"] == "auth" and event["no"]
    )
    assert max(by_buffer.values()) == 1


def test_an_agent_that_was_cloned_is_found_and_named(scene: Scene, tmp_path: Path) -> None:
    agent = scene.agent.start()
    scene.write(100)
    poll_until(agent.drained)
    assert agent.stop() == 0
    (tmp_path / "clone").mkdir()
    clone = Agent(
        tmp_path / "clone",
        scene.collector.url,
        (tmp_path / "key").read_text().strip(),
        log_source(tmp_path / "clone" / "auth.log"),
    )
    shutil.copytree(scene.state, tmp_path / "clone" / "state")
    with LogWriter(tmp_path / "clone" / "auth.log") as other, clone:
        agent.start()
        scene.write(100)
        other.write(*islice(Script(8, "quiet", first=5_001).lines(), 100))
        sql = "SELECT message FROM security_events WHERE type = 'security.chain.forked'"
        poll_until(lambda: asyncio.run(_fetch(scene.collector.dsn, sql)), why="nobody was told of the clone")
        poll_until(agent.drained, within_s=60)
        poll_until(clone.drained, within_s=60)
    stored = Counter(event["no"] for event in scene.events() if event["source"] == "auth" and event["no"])
    assert [no for no in [*range(1, 201), *range(5_001, 5_101)] if not stored[no]] == []


async def _fetch(dsn: str, sql: str) -> list[Any]:
    async with connected(dsn) as database:
        return list(await database.fetch(sql))
