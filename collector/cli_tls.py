"""Commands about certificates: tls create. They need no settings and no database."""

import argparse
import os
import stat
import sys
from pathlib import Path
from typing import Any

from agent import owned_files, service_account
from agent.service_account import Account
from collector import tls
from collector.cli_store import Add
from collector.enrol_authority import Authority, ends

DONE, FAILED, WRONG = 0, 1, 2
FOLDER = Path("/etc/linewarden/tls")
SERVICE = "linewarden-collector"
"""Its unit, and the user that the installer makes for it."""
DAYS, DAYS_MAX = 397, 3_650


def register(commands: Any, add: Add) -> None:
    """Add the commands of this part."""
    actions = commands.add_parser("tls", help="a private authority and its certificates").add_subparsers(
        required=True, metavar="ACTION"
    )
    text = "make the collector's certificate, or renew it; and the authority behind it, where there is none yet"
    create = add(actions, "create", _create, text)
    create.set_defaults(bare=True)
    what = create.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--name",
        action="append",
        metavar="HOST",
        help="name or address by which agents reach it; more than one may be given",
    )
    what.add_argument("--client", metavar="NAME", help="a certificate that an agent shows to a proxy, instead")
    create.add_argument("--dir", type=Path, default=FOLDER, metavar="DIR", help="where they lie (default: %(default)s)")
    create.add_argument("--days", type=int, default=DAYS, help="how long it is good (default: %(default)s)")
    create.add_argument("--authority", default="Linewarden", metavar="NAME", help="name of a new authority")


def _create(_: object, options: argparse.Namespace) -> int:
    if not 1 <= options.days <= DAYS_MAX:
        return _fail(f"--days: {options.days} is not between 1 and {DAYS_MAX}", WRONG)
    client: str | None = options.client
    if client is not None and (not client or not all(c.isalnum() or c in "-_." for c in client) or client[0] == "."):
        return _fail(f"--client: {client!r} becomes a file's name. Use letters, digits, - and _", WRONG)
    try:
        owned_files.make_folder(options.dir, mode=0o755)
        service = _service(options.dir)
        issuer, new = tls.authority(options.dir, options.authority)
        names = [client] if client else options.name
        made = tls.issue(
            options.dir,
            f"client-{client}" if client else "collector",
            issuer,
            names,
            options.days,
            client=bool(client),
            reader=service.owner if service is not None and not client else None,
        )
    except tls.CannotMake as error:
        return _fail(str(error))
    authority = Authority.read(options.dir / "ca.pem")
    if new:
        print(f"authority    {options.dir / 'ca.pem'}, good until {authority.ends:%Y-%m-%d}")
        print(f"its key      {options.dir / 'ca.key'}: take it off this computer until the next certificate is due")
    print(f"certificate  {made}, good until {ends(made)[0]:%Y-%m-%d}")
    print(f"its key      {made.with_suffix('.key')}, {_readers(made.with_suffix('.key'))}")
    print(f"fingerprint  {authority.fingerprint}")
    if not client:
        print(
            f'\nIn collector.toml:\n[server]\ncertificate_file = "{made}"\nkey_file = "{made.with_suffix(".key")}"\n\n'
            "A collector that runs takes a renewed one over with: systemctl reload linewarden-collector"
        )
    return DONE


def _service(folder: Path) -> Account | None:
    """Return who the collector runs as on this computer, where root makes its key in a folder of root's own; else None."""
    if os.geteuid() != owned_files.ROOT or owned_files.owner_of(folder) is not None:
        return None
    unit = service_account.installed(SERVICE)
    return service_account.of_unit(unit) if unit is not None else service_account.of_user(SERVICE)


def _readers(key: Path) -> str:
    """Who can read a key, for people: a service that cannot does not start."""
    found = key.stat()
    owner = service_account.user_name(found.st_uid)
    if found.st_mode & stat.S_IRGRP:
        return f"readable by {owner} and the group {service_account.group_name(found.st_gid)}"
    hint = f"; give it to the user who needs it: chown USER {key}" if found.st_uid == owned_files.ROOT else ""
    return f"readable by {owner} alone{hint}"


def _fail(text: str, code: int = FAILED) -> int:
    print(text, file=sys.stderr)
    return code
