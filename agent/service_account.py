"""Find out as which user a service runs, from its installed systemd unit or from the owner of its files.

A command that root runs by hand has to leave files that the service can read, and `check` has to judge what the service could read. Both
ask here. The unit's files are read as systemd reads them (the unit, then its drop-ins, a later line replaces an earlier one, an empty value
clears a list), because a machine on which the unit lies may have no systemd running: an image that is being built, say.
"""

import grp
import os
import pwd
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent import owned_files
from agent.owned_files import ROOT, Owner, owner_of

UNIT_FOLDERS = (
    Path("/etc/systemd/system"),
    Path("/run/systemd/system"),
    Path("/usr/local/lib/systemd/system"),
    Path("/usr/lib/systemd/system"),
    Path("/lib/systemd/system"),
)
UNIT_BYTES_MAX = 1_048_576
INSTALLED_USER, INSTALLED_STATE = "linewarden", Path("/var/lib/linewarden")
"""What the installer makes for the agent, or systemd for it."""


@dataclass(frozen=True, slots=True)
class Unit:
    """An installed unit: the lines of its section [Service], in the order in which systemd reads them."""

    name: str
    service: tuple[tuple[str, str], ...] = ()

    def last(self, key: str, default: str = "") -> str:
        """Return the value that holds: the last one."""
        return next((value for name, value in reversed(self.service) if name == key), default)

    def words(self, key: str) -> list[str]:
        """Return the words of a list: all lines together, those before an empty one left out."""
        found: list[str] = []
        for name, value in self.service:
            if name == key:
                found = [*found, *value.split()] if value else []
        return found

    def names(self, path: Path) -> bool:
        """Return whether the unit's command line names this file."""
        return str(path.absolute()) in self.words("ExecStart")


@dataclass(frozen=True, slots=True)
class Account:
    """Whom a service runs as: user and groups by number, and `name` for people. `unit` is None where only the files' owner says so."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    unit: Unit | None = None
    missing_groups: tuple[str, ...] = field(default=())
    """Groups that the unit names and this computer does not have."""

    @property
    def owner(self) -> Owner:
        """User and group of its files."""
        return Owner(self.uid, self.gid)


def installed(name: str, folders: Sequence[Path] = UNIT_FOLDERS) -> Unit | None:
    """Return the unit NAME.service as it is installed; None where it is not, or is masked."""
    main = next((path for folder in folders if os.path.lexists(path := folder / f"{name}.service")), None)
    if main is None or main.resolve() == Path(os.devnull):
        return None
    dropped = {
        path.name: path
        for folder in reversed(folders)
        for path in sorted((folder / f"{name}.service.d").glob("*.conf"))
    }
    lines = [line for path in (main, *(dropped[each] for each in sorted(dropped))) for line in _service_lines(path)]
    return Unit(name, tuple(lines))


def _service_lines(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with path.open("rb") as file:
            text = file.read(UNIT_BYTES_MAX).decode(errors="replace")
    except OSError:
        return
    section = ""
    for line in text.replace("\\\n", " ").splitlines():
        stripped = line.strip()
        if stripped.startswith("["):
            section = stripped
        elif section == "[Service]" and "=" in stripped and not stripped.startswith(("#", ";")):
            key, _, value = stripped.partition("=")
            yield key.strip(), value.strip()


def of_unit(unit: Unit) -> Account | None:
    """Return whom a unit runs as; None where that is root, or a user that is not there."""
    user = _user(unit.last("User", "root"))
    if user is None or user.pw_uid == ROOT:
        return None
    named = [_group(name) for name in unit.words("SupplementaryGroups")]
    primary = _group(unit.last("Group")) if unit.last("Group") else None
    gid = user.pw_gid if primary is None else primary.gr_gid
    known = (each.gr_gid for each in named if each is not None)
    groups = dict.fromkeys((*os.getgrouplist(user.pw_name, gid), *known))
    lacking = (
        name for name, each in zip(unit.words("SupplementaryGroups"), named, strict=True) if each is None and name
    )
    return Account(user.pw_name, user.pw_uid, gid, tuple(groups), unit, tuple(lacking))


def of_user(name: str) -> Account | None:
    """Return a user of this computer with all groups; None where there is none, or it is root."""
    user = _user(name)
    if user is None or user.pw_uid == ROOT:
        return None
    return Account(user.pw_name, user.pw_uid, user.pw_gid, tuple(os.getgrouplist(user.pw_name, user.pw_gid)))


def of_folder(folder: Path) -> Account | None:
    """Return the owner of a folder with all groups of that user; None where it is root, or there is no such folder."""
    owner = owner_of(folder)
    if owner is None:
        return None
    return of_user(str(owner.uid)) or Account(f"user {owner.uid}", owner.uid, owner.gid, (owner.gid,))


def account_for(name: str, config: Path, folder: Path, folders: Sequence[Path] = UNIT_FOLDERS) -> Account | None:
    """Return the account of the service NAME: of its unit, where that runs with this configuration; else the owner of a folder."""
    unit = installed(name, folders)
    found = of_unit(unit) if unit is not None and unit.names(config) else None
    return found or of_folder(folder)


def user_name(uid: int) -> str:
    """Return the name of a user; the number where there is none."""
    user = _user(str(uid))
    return user.pw_name if user is not None else str(uid)


def group_name(gid: int) -> str:
    """Return the name of a group; the number where there is none."""
    group = _group(str(gid))
    return group.gr_name if group is not None else str(gid)


def make_state_folder(name: str, config: Path, folder: Path, folders: Sequence[Path] = UNIT_FOLDERS) -> None:
    """Make the state folder of the service NAME where it is missing; made by root it is the service's. Raises OSError."""
    if not folder.is_dir():
        account = account_for(name, config, folder, folders) if os.geteuid() == ROOT else None
        if account is None and folder == INSTALLED_STATE:
            account = of_user(INSTALLED_USER) if os.geteuid() == ROOT else None
        owned_files.make_folder(folder, mode=0o750, owner=account.owner if account is not None else None)


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except KeyError:
        return None


def _group(name: str) -> grp.struct_group | None:
    try:
        return grp.getgrgid(int(name)) if name.isdecimal() else grp.getgrnam(name)
    except KeyError:
        return None
