"""`check` as root judges what the service's user could do, and what its unit shuts out."""

import json
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from agent import cli
from agent.config import Settings
from agent.config_account import acting_as, problems_of_unit, without_credentials
from agent.config_check import warnings_outside
from agent.config_read import validated
from agent.service_account import Account, Unit
from tests.commands import run_main

NOBODY = pwd.getpwnam("nobody")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root judges for others")


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder that other users may pass through, unlike pytest's."""
    with TemporaryDirectory(prefix="lw") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def written(folder: Path, sources: str = "", sync: str = "") -> Path:
    config = folder / "agent.toml"
    config.write_text(f'[agent]\nstate_dir = "{folder}/state"\n[sync]\nurl = "https://c:8443"\n{sync}{sources}')
    config.chmod(0o644)
    return config


def checked(config: Path) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Exit code, and problems and `judged_as` by key."""
    done = run_main(cli.main, "check", "--json", "--config", str(config), environ={"PATH": os.environ["PATH"]})
    report = json.loads(done.stdout)
    return done.returncode, {each["key"]: each["text"] for each in report["problems"]}, report


@as_root
def test_what_the_owner_of_the_state_cannot_read_is_a_problem_also_when_root_asks(open_path: Path) -> None:
    (open_path / "state" / "identity").mkdir(parents=True)
    os.chown(open_path / "state", NOBODY.pw_uid, NOBODY.pw_gid)
    (open_path / "state" / "identity" / "key.pem").write_text("root made it")
    (open_path / "secret").write_text("key\n")
    (open_path / "auth.log").write_text("line\n")
    for name in ("secret", "auth.log"):
        (open_path / name).chmod(0o600)
    source = f'[sources.auth]\ntype = "log"\npaths = ["{open_path}/auth.log"]\nparser = "auth"\n'
    config = written(open_path, source, f'key_file = "{open_path}/secret"\n')
    code, problems, report = checked(config)
    assert (code, report["ok"]) == (2, False)
    assert set(problems) == {"sync.key_file", "sources.auth.paths", "agent.state_dir"}
    assert "identity" in problems["agent.state_dir"]
    assert "belongs to root" in problems["agent.state_dir"]
    assert "user nobody" in str(report["judged_as"])
    assert os.getresuid() == (0, 0, 0), "root again"
    for path in (
        open_path / "secret",
        open_path / "auth.log",
        *open_path.rglob("state/*"),
        *open_path.rglob("key.pem"),
    ):
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    assert checked(config)[:2] == (0, {})
    config.chmod(0o600)
    code, problems, _ = checked(config)
    assert code == 2
    assert "may not be read" in str(problems)


@as_root
def test_a_state_folder_below_a_closed_one_is_no_place_for_the_service(open_path: Path) -> None:
    (open_path / "state").mkdir()
    os.chown(open_path / "state", NOBODY.pw_uid, NOBODY.pw_gid)
    config = written(open_path)
    open_path.chmod(0o700)
    code, problems, _ = checked(config)
    assert (code, bool(problems)) == (2, True)


@as_root
def test_acting_as_an_account_has_its_groups_and_no_right_of_root(open_path: Path) -> None:
    (open_path / "file").write_text("x")
    os.chown(open_path / "file", 0, 4_321)
    (open_path / "file").chmod(0o640)
    groups = os.getgroups()
    with acting_as(Account("nobody", NOBODY.pw_uid, NOBODY.pw_gid, (NOBODY.pw_gid,))):
        assert not os.access(open_path / "file", os.R_OK)
    with acting_as(Account("nobody", NOBODY.pw_uid, NOBODY.pw_gid, (NOBODY.pw_gid, 4_321))):
        assert os.access(open_path / "file", os.R_OK)
        assert not os.access(open_path / "file", os.W_OK)
    assert os.getgroups() == groups


# The unit -------------------------------------------------------------------------------------------------------------------------


def settings_of(folder: Path, sources: str, sync: str = "") -> Settings:
    return validated(written(folder, sources, sync), {})


def unit(**service: str) -> Unit:
    return Unit("linewarden-agent", tuple(service.items()))


def test_what_the_unit_hides_is_a_problem_with_the_line_that_lets_it_in(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path,
        '[sources.app]\ntype = "log"\npaths = ["/home/mes/app.log", "/var/log/x.log"]\nparser = "auth"\n'
        '[sources.plc]\ntype = "modbus"\nurl = "rtu:///dev/ttyUSB0?baudrate=19200"\n[[sources.plc.points]]\nname = "a"\naddress = 1\n',
    )
    shut = unit(ProtectHome="yes", PrivateTmp="no", PrivateDevices="yes", DevicePolicy="closed")
    found = {problem.key: problem for problem in problems_of_unit(settings, shut)}
    assert set(found) == {"sources.app.paths", "sources.plc.url"}
    assert "ProtectHome=read-only" in found["sources.app.paths"].remedy
    assert "DeviceAllow=/dev/ttyUSB0 rw" in found["sources.plc.url"].remedy
    opened = unit(ProtectHome="read-only", PrivateDevices="no", DevicePolicy="closed", DeviceAllow="/dev/ttyUSB0 rw")
    assert list(problems_of_unit(settings, opened)) == []


def test_a_credential_of_the_unit_is_judged_by_the_unit_while_the_service_does_not_run(tmp_path: Path) -> None:
    path = "/run/credentials/linewarden-agent.service/agent.key"
    settings = settings_of(tmp_path, "", f'[identity]\nkey_file = "{path}"\n')
    from agent.config_check import problems_outside

    missing = problems_outside(settings)
    assert path in str(missing), "as seen from outside it is not there"
    (tmp_path / "secret").write_text("x")
    handed = unit(LoadCredential=f"agent.key:{tmp_path}/secret")
    assert without_credentials(missing, settings, handed) == []
    lost = without_credentials(missing, settings, unit(LoadCredential=f"agent.key:{tmp_path}/nothing"))
    assert [problem.key for problem in lost] == ["identity.key_file"]
    (named,) = without_credentials(missing, settings, unit())
    assert "LoadCredential=agent.key:" in named.remedy


# What will be silent ---------------------------------------------------------------------------------------------------------------


def test_check_warns_where_no_source_is_configured(tmp_path: Path) -> None:
    assert "sources" in {problem.key for problem in warnings_outside(settings_of(tmp_path, ""))}


@pytest.mark.parametrize("journal", [True, False])
def test_check_warns_of_logs_that_match_nothing_and_offers_the_journal_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, journal: bool
) -> None:
    (tmp_path / "there.log").write_text("x")
    monkeypatch.setattr("agent.config_check.JOURNALS", (str(tmp_path),) if journal else ())
    paths = [f"{tmp_path}/there.log", f"{tmp_path}/auth.log", f"{tmp_path}/station/*.log"]
    settings = settings_of(tmp_path, f'[sources.auth]\ntype = "log"\npaths = {json.dumps(paths)}\nparser = "auth"\n')
    found = {
        problem.text: problem.remedy for problem in warnings_outside(settings) if problem.key == "sources.auth.paths"
    }
    assert set(found) == {f"{path} matches no file" for path in paths[1:]}
    assert ('type = "journal"' in found[f"{paths[1]} matches no file"]) is journal
    assert "journal" not in found[f"{paths[2]} matches no file"]
