"""The systemd units: valid, shut in, and true to what they promise. Needs systemd's own tools; skipped where there are none."""

import re
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "systemd").glob("*.service"))
EXPOSURE_MAX = {"linewarden-agent.service": 2.0, "linewarden-collector.service": 1.5}
needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


def settings(unit: Path) -> dict[str, list[str]]:
    """The settings of a unit's section [Service]; a key may stand more than once."""
    section, found = "", dict[str, list[str]]()
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and (match := re.match(r"(\w+)=(.*)", line)):
            found.setdefault(match[1], []).append(match[2])
    return found


@needs_systemd
def test_systemd_finds_nothing_to_say_about_the_units(tmp_path: Path) -> None:
    # systemd looks whether the programs are there: others stand in for them, since nothing is installed in /opt here.
    for unit in UNITS:
        text = re.sub(r"/opt/linewarden/bin/\S+", "/bin/true", unit.read_text())
        (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_unit_exposes_no_more_than_was_promised(unit: Path) -> None:
    limit = EXPOSURE_MAX[unit.name]
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", f"--threshold={int(limit * 10)}", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_unit_is_watched_and_always_started_again(unit: Path) -> None:
    service = settings(unit)
    assert service["Type"] == ["notify"]
    assert service["NotifyAccess"] == ["main"]
    assert service["Restart"] == ["always"]
    assert int(service["WatchdogSec"][0]) > 0
    assert "StartLimitIntervalSec=0" in unit.read_text().partition("[Service]")[0]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_unit_runs_as_a_user_of_its_own_within_bounds(unit: Path) -> None:
    service = settings(unit)
    assert service["User"][0] not in ("root", "nobody")
    assert service["CapabilityBoundingSet"] == [""]
    assert {"MemoryMax", "CPUQuota", "TasksMax", "LimitNOFILE"} <= service.keys()


def test_the_agent_may_read_logs_and_the_journal() -> None:
    assert settings(ROOT / "systemd" / "linewarden-agent.service")["SupplementaryGroups"] == ["adm systemd-journal"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_each_program_a_unit_starts_is_one_that_the_package_installs(unit: Path) -> None:
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    service = settings(unit)
    for command in service["ExecStart"] + service.get("ExecStartPre", []):
        program = Path(command.split()[0])
        assert program.parent == Path("/opt/linewarden/bin")
        assert program.name in scripts


def test_backoff_drop_in_holds_settings_and_nothing_else() -> None:
    parser = RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(ROOT / "systemd" / "restart-backoff.conf")
    assert parser.sections() == ["Service"]
    assert set(parser["Service"]) == {"RestartSteps", "RestartMaxDelaySec"}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_no_unit_shuts_out_addresses_that_nobody_named(unit: Path) -> None:
    """An agent with a public address, or a sign-on provider with one, would meet a time-out without a word in any log."""
    assert not {"IPAddressDeny", "IPAddressAllow", "SocketBindDeny"} & settings(unit).keys()
    assert "#IPAddressDeny=any" in unit.read_text()


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_needs_no_program_that_a_small_system_lacks(unit: Path) -> None:
    """/bin/kill is of the package procps, which a minimal Debian does not have: a reload would fail there."""
    commands = [command for key, values in settings(unit).items() if key.startswith("Exec") for command in values]
    assert {Path(command.split()[0]).parent.name for command in commands} == {"bin"}
    assert all(command.startswith(("/opt/linewarden/bin/", "/bin/sh ")) for command in commands)
