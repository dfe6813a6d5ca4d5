"""Files that a command leaves for a service: whose they are, who may read them, and that no link leads them elsewhere."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agent import owned_files, service_account
from agent.buffer import Buffer, BufferConfig
from agent.identity import IdentityConfig, Keyring, load_or_create
from agent.owned_files import Owner
from agent.sources.opcua_trust import own_identity
from collector import tls
from collector.evidence import checkpoint

SERVICE = Owner(4_321, 4_322)
"""A user and a group that no computer has by a name."""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")


@pytest.fixture(params=[0o022, 0o077, 0o000], ids=["umask 022", "umask 077", "umask 000"])
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state folder of a service, owned by its user."""
    folder = tmp_path / "state"
    folder.mkdir(mode=0o750)
    os.chown(folder, *SERVICE)
    return folder


def everything_below(folder: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(path.relative_to(folder)): (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode))
        for path in sorted(folder.rglob("*"))
        for found in [path.lstat()]
    }


@as_root
@pytest.mark.usefixtures("_umask")
async def test_all_that_root_makes_in_the_state_folder_is_the_service_s_with_the_mode_that_is_meant(
    state: Path,
) -> None:
    load_or_create(state)
    keyring = Keyring(state, IdentityConfig())
    with keyring.locked():
        keyring.candidate()
    own_identity(state / "opcua" / "own.der", state / "opcua" / "own.pem")
    buffer = await Buffer.open(state / "buffer.db", BufferConfig(free_bytes_min=0), "a" * 32)
    await buffer.append(())
    made = everything_below(state)
    await buffer.close()
    checkpoint.load_key(state / "checkpoint.key", make=True)
    checkpoint._append(state / "checkpoints.txt", "note")
    made |= everything_below(state)
    assert [name for name, (uid, gid, _) in made.items() if (uid, gid) != SERVICE] == []
    modes = {name: mode for name, (_, _, mode) in made.items()}
    assert modes == {
        "agent_id": 0o640,
        "identity": 0o700,
        "identity/lock": 0o600,
        "identity/key.new.pem": 0o600,
        "opcua": 0o700,
        "opcua/own.der": 0o644,
        "opcua/own.pem": 0o600,
        "buffer.db": 0o600,
        "buffer.db-wal": 0o600,
        "buffer.db-shm": 0o600,
        "buffer.db.made": 0o640,
        "checkpoint.key": 0o600,
        "checkpoints.txt": 0o644,
    }


@as_root
@pytest.mark.usefixtures("_umask")
def test_root_makes_the_collector_s_key_readable_for_its_group_and_the_authority_s_key_for_nobody_else(
    tmp_path: Path,
) -> None:
    owned_files.make_folder(tmp_path / "tls", mode=0o755)
    issuer, _ = tls.authority(tmp_path / "tls", "Plant")
    tls.issue(tmp_path / "tls", "collector", issuer, ["localhost"], 10, client=False, reader=SERVICE)
    made = everything_below(tmp_path)
    assert made == {
        "tls": (0, 0, 0o755),
        "tls/ca.key": (0, 0, 0o600),
        "tls/ca.pem": (0, 0, 0o644),
        "tls/collector.key": (0, SERVICE.gid, 0o640),
        "tls/collector.pem": (0, 0, 0o644),
    }


@as_root
@pytest.mark.parametrize(("owner", "mode"), [((4_321, 4_322), 0o600), ((0, 4_322), 0o640)])
def test_a_renewed_key_stays_whose_it_was(tmp_path: Path, owner: tuple[int, int], mode: int) -> None:
    issuer, _ = tls.authority(tmp_path, "Plant")
    for _ in range(2):
        tls.issue(tmp_path, "collector", issuer, ["localhost"], 10, client=False)
        os.chown(tmp_path / "collector.key", *owner)
        (tmp_path / "collector.key").chmod(mode)
        before = (tmp_path / "collector.key").read_bytes()
    tls.issue(tmp_path, "collector", issuer, ["localhost"], 10, client=False)
    assert everything_below(tmp_path)["collector.key"] == (*owner, mode)
    assert (tmp_path / "collector.key").read_bytes() != before


@as_root
def test_a_link_in_a_folder_of_another_user_leads_root_nowhere(state: Path, tmp_path: Path) -> None:
    victim, elsewhere = tmp_path / "victim", tmp_path / "elsewhere"
    victim.write_text("root's own")
    victim.chmod(0o600)
    elsewhere.mkdir()
    for name in ("file", "lock", ".file.new"):
        (state / name).symlink_to(victim)
    (state / "folder").symlink_to(elsewhere)
    owned_files.write(state / "file", b"new")
    with pytest.raises(OSError, match="symbolic links"):
        owned_files.open_kept(state / "lock")
    with pytest.raises(OSError, match="symbolic links"):
        owned_files.read(state / "lock", 100)
    with pytest.raises(NotADirectoryError, match="folder"):
        owned_files.write(state / "folder" / "file", b"new")
    assert (victim.read_text(), list(elsewhere.iterdir())) == ("root's own", [])
    assert (victim.stat().st_uid, stat.S_IMODE(victim.stat().st_mode)) == (0, 0o600)
    assert (state / "file").read_bytes() == b"new"
    assert (state / "file").is_symlink() is False


@as_root
def test_a_link_that_only_root_could_make_is_followed(state: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(state)
    owned_files.write(tmp_path / "link" / "file", b"new")
    assert everything_below(state) == {"file": (*SERVICE, 0o600)}


def test_a_file_that_is_written_and_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "export"
    path.write_bytes(b"before")
    with suppress(RuntimeError), owned_files.replacing(path) as out:
        out.write(b"half")
        raise RuntimeError
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("export", b"before")]
    with owned_files.replacing(path) as out:
        out.write(b"whole")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"whole", 0o600)


def test_a_device_is_written_to_and_not_replaced() -> None:
    with owned_files.replacing(Path("/dev/null")) as out:
        out.write(b"nothing")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_of_two_that_make_a_key_at_once_the_first_wins(tmp_path: Path) -> None:
    assert owned_files.make_once(tmp_path / "key", b"one") is True
    assert owned_files.make_once(tmp_path / "key", b"two") is False
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("key", b"one")]


# Whom a service runs as ----------------------------------------------------------------------------------------------------------


def unit(folder: Path, text: str, **dropins: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "linewarden-agent.service").write_text(text)
    for name, each in dropins.items():
        (folder / "linewarden-agent.service.d").mkdir(exist_ok=True)
        (folder / "linewarden-agent.service.d" / f"{name}.conf").write_text(each)


def test_the_account_of_a_service_is_that_of_its_unit_with_its_drop_ins(tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    text = f"[Unit]\nUser=root\n[Service]\nExecStart=/bin/x run \\\n --config {config}\nUser=root\n#User=bin\nSupplementaryGroups=adm\n"
    unit(
        tmp_path / "etc",
        text,
        b="[Service]\nUser=nobody\nSupplementaryGroups=\n",
        c="[Service]\nSupplementaryGroups=tty no-such-group\n",
    )
    found = service_account.account_for("linewarden-agent", config, tmp_path, [tmp_path / "none", tmp_path / "etc"])
    assert found is not None
    assert (found.name, found.missing_groups) == ("nobody", ("no-such-group",))
    assert {service_account.group_name(each) for each in found.groups} >= {"tty"}
    assert "adm" not in {service_account.group_name(each) for each in found.groups}


@as_root
def test_a_unit_with_another_configuration_says_nothing_and_the_owner_of_the_state_does(
    state: Path, tmp_path: Path
) -> None:
    unit(tmp_path, "[Service]\nExecStart=/bin/x run --config /etc/other.toml\nUser=nobody\n")
    found = service_account.account_for("linewarden-agent", tmp_path / "agent.toml", state, [tmp_path])
    assert found is not None
    assert found.owner == SERVICE


def test_a_masked_unit_is_none(tmp_path: Path) -> None:
    (tmp_path / "linewarden-agent.service").symlink_to("/dev/null")
    assert service_account.installed("linewarden-agent", [tmp_path]) is None


@as_root
def test_a_state_folder_that_root_makes_is_the_unit_s_user_s(tmp_path: Path) -> None:
    config, folder = tmp_path / "agent.toml", tmp_path / "var" / "state"
    unit(tmp_path, f"[Service]\nExecStart=/bin/x --config {config}\nUser={SERVICE.uid}\nUser=nobody\n")
    service_account.make_state_folder("linewarden-agent", config, folder, [tmp_path])
    assert service_account.user_name(folder.stat().st_uid) == "nobody"
    assert (folder.parent.stat().st_uid, stat.S_IMODE(folder.stat().st_mode)) == (0, 0o750)
