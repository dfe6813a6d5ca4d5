"""What the scripts of `packaging/` do to a computer."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
APT = """#!/bin/sh
"$ROOT/usr/sbin/policy-rc.d" nginx start; echo "start: $?" >>"$ROOT/told"
echo "$@" >>"$ROOT/told"
mkdir -p "$ROOT/etc/systemd/system/multi-user.target.wants" "$ROOT/etc/rc2.d"
ln -s /lib/systemd/system/nginx.service "$ROOT/etc/systemd/system/multi-user.target.wants/nginx.service"
ln -s ../init.d/nginx "$ROOT/etc/rc2.d/S01nginx"
exit ${STATUS:-0}
"""


@pytest.mark.parametrize("status", [0, 100])
@pytest.mark.parametrize("policy", [None, "#!/bin/sh\nexit 0\n"])
def test_a_package_that_the_tests_need_starts_and_enables_no_service(
    tmp_path: Path, policy: str | None, status: int
) -> None:
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "ssh.service").symlink_to("/lib/systemd/system/ssh.service")
    (tmp_path / "etc/rc2.d").mkdir()
    (tmp_path / "etc/rc2.d/S01dbus").symlink_to("../init.d/dbus")
    own = tmp_path / "usr/sbin/policy-rc.d"
    own.parent.mkdir(parents=True)
    if policy is not None:
        own.write_text(policy)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/apt-get").write_text(APT)
    (tmp_path / "bin/apt-get").chmod(0o755)
    env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "ROOT": str(tmp_path), "STATUS": str(status)}
    done = subprocess.run([str(ROOT / "packaging/apt-quietly.sh"), "nginx"], env=env, check=False, timeout=30)
    assert done.returncode == status
    assert (tmp_path / "told").read_text() == "start: 101\n-qq -y --no-install-recommends install nginx\n"
    assert [path.name for path in wants.iterdir()] == ["ssh.service"]
    assert [path.name for path in (tmp_path / "etc/rc2.d").iterdir()] == ["S01dbus"]
    assert (own.read_text() if own.exists() else None) == policy, "the computer's own rule is as it was"


def test_no_script_installs_with_apt_but_the_one_that_starts_nothing() -> None:
    command = re.compile(r"^\s*(\w+=\S+ |timeout \d+ )*apt-get .*\binstall\b", re.MULTILINE)
    installing = [path.name for path in (ROOT / "packaging").glob("*.sh") if command.search(path.read_text())]
    assert installing == ["apt-quietly.sh"]
