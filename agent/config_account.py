"""Judge the configuration as the service will meet it: with its user's rights, behind what its systemd unit shuts out.

Root can read everything, so what `check` finds as root says nothing of the service. While the configuration is judged, this process takes
on the user and all groups of the service, for real and effectively (access(2) goes by the real ones), keeps root as its saved user, and
goes back.
"""

import dataclasses
import grp
import os
import pwd
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent.config import Problem, Settings
from agent.config_words import key_text
from agent.owned_files import ROOT
from agent.service_account import Account, Unit, group_name

CREDENTIALS = Path("/run/credentials")
STATE_FILES_MAX = 1_000
WRITTEN = ("buffer.db", "buffer.db-wal", "buffer.db-shm", "agent.lock", "lock")
"""Files of the state folder that are written in place; all others are replaced, for which the folder counts."""
HIDDEN = (
    ("ProtectHome", ("/home", "/root", "/run/user"), "read-only"),
    ("PrivateTmp", ("/tmp", "/var/tmp"), "no"),  # noqa: S108  # the unit has folders of its own in their place
)
_ON = ("yes", "true", "1", "on", "tmpfs", "connected", "disconnected")


@contextmanager
def acting_as(account: Account) -> Iterator[None]:
    """Have the rights of an account and no others within the block. Only root can."""
    groups = os.getgroups()
    os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, ROOT)
    os.setresuid(account.uid, account.uid, ROOT)
    try:
        yield
    finally:
        os.setresuid(ROOT, ROOT, ROOT)
        os.setresgid(ROOT, ROOT, ROOT)
        os.setgroups(groups)


def described(account: Account) -> str:
    """Return the account for people: its name and the groups beside its own."""
    others = sorted(group_name(gid) for gid in account.groups if gid != account.gid)
    text = f"the user {account.name}" + (f" (groups {', '.join(others)})" if others else "")
    return f"{text}, as {account.unit.name}.service runs" if account.unit else f"{text}, whose the state folder is"


# What the service's user can do with the state folder ------------------------------------------------------------------------------


def problems_of_state(state_dir: Path, account: Account) -> Iterator[Problem]:
    """Find what the service could not use in its state folder. Called within `acting_as`."""
    key = "agent.state_dir"
    remedy = f"chown -R {account.name}: {state_dir}"
    if not os.path.exists(state_dir):  # noqa: PTH110  # where a folder above is closed, it is not there for this user
        if account.unit is None or not account.unit.words("StateDirectory"):
            above = next(each for each in state_dir.absolute().parents if os.path.exists(each))  # noqa: PTH110
            if not os.access(above, os.W_OK | os.X_OK):
                text = f"{account.name} can neither use nor make {state_dir}: {above} is closed to it"
                fix = f"install -d -o {account.name} -m 750 {state_dir}, and let that user pass through {above}"
                yield Problem(key, text, fix)
        return
    unusable = [path for path, way in _state_files(state_dir) if not os.access(path, way)]
    if unusable:
        first = unusable[0]
        more = f", and {len(unusable) - 1} more files there" if len(unusable) > 1 else ""
        yield Problem(key, f"{first} ({_owner(first)}) cannot be used by {account.name}{more}", remedy)


def _state_files(state_dir: Path) -> Iterator[tuple[Path, int]]:
    """Every folder and file below, with the way in which it has to be accessible; links are left out, they are not followed either."""
    yield state_dir, os.R_OK | os.W_OK | os.X_OK
    count = 0
    for folder, folders, files in os.walk(state_dir):
        for name in (*folders, *files):
            path, count = Path(folder, name), count + 1
            if count > STATE_FILES_MAX:
                return
            if not path.is_symlink():
                below = os.R_OK | os.W_OK | os.X_OK if name in folders else os.R_OK
                yield path, below | (os.W_OK if name in WRITTEN else 0)


def _owner(path: Path) -> str:
    try:
        uid = path.lstat().st_uid
    except OSError:
        return "in a closed folder"
    try:
        return f"it belongs to {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"it belongs to user {uid}"


# What the unit shuts out ---------------------------------------------------------------------------------------------------------


def problems_of_unit(settings: Settings, unit: Unit) -> Iterator[Problem]:
    """Find what the configuration names and the unit's sandbox hides."""
    edit = f"systemctl edit {unit.name}, in [Service]:"
    for key, path in paths_of(settings):
        for setting, folders, instead in HIDDEN:
            if unit.last(setting).lower() in _ON and any(Path(path).is_relative_to(folder) for folder in folders):
                text = f"{path} cannot be seen by the service: its unit has {setting}={unit.last(setting)}"
                yield Problem(key, text, f"{edit} {setting}={instead}; or keep it elsewhere")
    for key, device in devices_of(settings):
        if unit.last("PrivateDevices").lower() in _ON or not _allows(unit, device):
            text = f"{device} cannot be used by the service: its unit lets no device in"
            yield Problem(key, text, f"{edit} PrivateDevices=no, DeviceAllow={device} rw, SupplementaryGroups=dialout")
    for name in (account for account in unit.words("SupplementaryGroups") if _no_group(account)):
        yield Problem(
            "", f"{unit.name}.service names the group {name}, which is not there", f"groupadd --system {name}"
        )


def _allows(unit: Unit, device: str) -> bool:
    return unit.last("DevicePolicy", "auto") == "auto" or any(
        word in (device, "char-ttyUSB", "char-ttyS", "char-ttyACM") or Path(word).resolve() == Path(device).resolve()
        for word in unit.words("DeviceAllow")
    )


def _no_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return not name.isdecimal()
    return False


def without_credentials(problems: Iterable[Problem], settings: Settings, unit: Unit) -> list[Problem]:
    """Judge systemd's credentials by the unit: they are there only while the service runs."""
    found = list(problems)
    folder = CREDENTIALS / f"{unit.name}.service"
    for key, path in paths_of(settings):
        if not Path(path).is_relative_to(folder) or Path(path).exists():
            continue
        found = [problem for problem in found if path not in problem.text]
        name = Path(path).name
        source = _credential(unit, name)
        if source is None:
            line = f"LoadCredential={name}:/etc/linewarden/secrets/{name}"
            text = f"{unit.name}.service hands no credential {name} over"
            found.append(Problem(key, text, f"systemctl edit {unit.name}, in [Service]: {line}"))
        elif source.startswith("/") and not (Path(source).is_file() and Path(source).stat().st_size):
            found.append(
                Problem(
                    key,
                    f"{source}, which becomes the credential {name}, is not there or is empty",
                    "Put the secret there.",
                )
            )
    return found


def _credential(unit: Unit, name: str) -> str | None:
    """Return where a credential comes from, empty where the unit holds it itself; None where it has none of this name."""
    for setting in ("LoadCredential", "LoadCredentialEncrypted", "SetCredential", "SetCredentialEncrypted"):
        for word in unit.words(setting):
            found, _, source = word.partition(":")
            if found == name:
                return source if setting.startswith("Load") else ""
    return None


# What a configuration names ------------------------------------------------------------------------------------------------------


def paths_of(settings: Settings) -> Iterator[tuple[str, str]]:
    """Every absolute path that is to be read or written, with its key."""
    yield "agent.state_dir", settings.agent.state_dir
    for section in ("sync", "identity"):
        yield from _named(getattr(settings, section), (section,))
    for group in ("sources", "handlers", "actions"):
        for name, each in getattr(settings, group).items():
            yield from _named(each.config if group == "sources" else each, (group, name))


def _named(config: Any, place: tuple[str | int, ...]) -> Iterator[tuple[str, str]]:
    if isinstance(config, list | tuple):
        for number, each in enumerate(config):
            yield from _named(each, (*place, number))
    elif dataclasses.is_dataclass(config):
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if field.name == "paths" and isinstance(value, tuple):
                yield from ((key_text((*place, "paths")), each) for each in value if str(each).startswith("/"))
            elif (
                isinstance(value, str) and field.name.endswith(("_file", "_dir", "directory")) and value.startswith("/")
            ):
                yield key_text((*place, field.name)), value
            else:
                yield from _named(value, (*place, field.name))


def devices_of(settings: Settings) -> Iterator[tuple[str, str]]:
    """Every serial device, with its key."""
    for name, source in settings.sources.items():
        url = getattr(source.config, "url", "")
        if isinstance(url, str) and url.startswith("rtu:///"):
            yield key_text(("sources", name, "url")), url.removeprefix("rtu://").partition("?")[0]
