"""Commands about who is let in: keys and users. Whoever can run them can read the settings and so the database: they need no role.

What they change is recorded in the audit log with the user of the operating system.
"""

import argparse
import getpass
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from collector import audit, passwords
from collector.accounts import NAME_PATTERN, key_out, new_password, recorded_key, scopes_of, user_out
from collector.audit import Who
from collector.cli_store import Add, duration, in_transaction
from collector.config import Settings
from collector.store import keys, users
from collector.vault import Vault

if TYPE_CHECKING:
    from collector.store.database import Plain
    from collector.store.events import Scope

DONE, FAILED = 0, 1


class _Stop(Exception):
    """The command could not do it. The text says why."""


def register(commands: Any, add: Add) -> None:
    """Add the commands of this part."""

    def told(command: Callable[..., None]) -> Callable[..., int]:
        def run(settings: Settings, options: argparse.Namespace) -> int:
            try:
                command(settings, options)
            except _Stop as stop:
                print(f"{stop}", file=sys.stderr)
                return FAILED
            return DONE

        return run

    key = commands.add_parser("key", help="make, list and revoke API keys").add_subparsers(
        required=True, metavar="ACTION"
    )
    _key_create(add(key, "create", told(_create_key), "make a key; it is shown once"))
    listing = add(key, "list", told(_list_keys), "list the keys, without their secrets")
    listing.add_argument("--json", action="store_true", help="for scripts")
    revoke = add(key, "revoke", told(_revoke_key), "take a key back, from the next request on")
    revoke.add_argument("prefix", help="the part of the key between lw_ and the next _")
    user = commands.add_parser("user", help="make and change the people who may sign in").add_subparsers(
        required=True, metavar="ACTION"
    )
    _user_create(add(user, "create", told(_create_user), "make a user"))
    add(user, "list", told(_list_users), "list the users").add_argument(
        "--json", action="store_true", help="for scripts"
    )
    for name, command, text in (
        ("disable", _disable, "shut a user out, and sign them out at once"),
        ("enable", _enable, "let a user in again"),
        ("totp", _totp, "begin with one-time codes, or end with them (--off)"),
        ("password", _password, "set a user's password; ends their sessions"),
    ):
        sub = add(user, name, told(command), text)
        sub.add_argument("name")
        if name == "totp":
            sub.add_argument("--off", action="store_true", help="take the one-time codes away")
        if name == "password":
            _password_options(sub)
    add(user, "unlock", told(_unlock), "forget failed sign-ins, so that nobody has to wait")


def _key_create(create: argparse.ArgumentParser) -> None:
    create.add_argument("--role", required=True, choices=keys.ROLES)
    create.add_argument("--name", default="", help="what it is for")
    for place in ("site", "line", "station"):
        create.add_argument(
            f"--{place}", default="", help=f"where the agent stands; for other roles: the only {place} that may be read"
        )
    create.add_argument("--expires", type=duration, metavar="TIME", help="as in 12h, 30d, 1y (default: never)")
    create.add_argument("--json", action="store_true", help="for scripts")


def _user_create(create: argparse.ArgumentParser) -> None:
    create.add_argument("name", help="name to sign in with")
    create.add_argument("--role", required=True, choices=users.USER_ROLES)
    create.add_argument(
        "--scope", action="append", required=True, metavar="PLACE",
        help="what may be seen: SITE, SITE/LINE, SITE/LINE/STATION, or * for all; more than one may be given",
    )  # fmt: skip
    create.add_argument("--display", default="", help="name to show")
    _password_options(create)


def _password_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--generate", action="store_true", help="make a password and print it (default: asked for, or read from stdin)"
    )


def table(rows: "Sequence[tuple[str, ...]]") -> None:
    """Print rows in columns; the first holds their names."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


# Keys


def _create_key(settings: Settings, options: argparse.Namespace) -> None:
    expires = datetime.now(UTC) + options.expires if options.expires else None

    async def work(connection: "Plain") -> tuple[str, keys.Key]:
        made = await keys.create(
            connection, role=options.role, name=options.name, site=options.site, line=options.line, station=options.station,
            expires=expires, created_by=Who.command().name,
        )  # fmt: skip
        await recorded_key(connection, Who.command(), made[1])
        return made

    secret, key = in_transaction(settings, work)
    if options.json:
        made = {"key": secret, "prefix": key.prefix, "role": key.role, "expires": key.expires}
        print(msgspec.json.encode(made).decode())
        return
    # The key alone on stdout, so that it can go straight into a file.
    print(f"Key {key.prefix} of role {key.role}. It is shown this once:", file=sys.stderr)
    print(secret)


def _list_keys(settings: Settings, options: argparse.Namespace) -> None:
    found = in_transaction(settings, keys.everyone)
    if options.json:
        print(msgspec.json.encode([key_out(key) for key in found]).decode())
        return
    rows = [("PREFIX", "ROLE", "NAME", "SITE", "LINE", "STATION", "AGENT", "STATE")]
    now = datetime.now(UTC)
    for k in found:
        state = "revoked" if k.revoked else "expired" if k.expires and k.expires <= now else "good"
        rows.append((k.prefix, k.role, k.name, k.site, k.line, k.station, str(k.agent_id or ""), state))
    table(rows)


def _revoke_key(settings: Settings, options: argparse.Namespace) -> None:
    async def work(connection: "Plain") -> None:
        if not await keys.revoke(connection, options.prefix):
            raise _Stop(f"there is no key {options.prefix!r}. See: linewarden-collector key list")
        objects = [("key", options.prefix)]
        await audit.record(connection, Who.command(), "key.revoked", target=options.prefix, objects=objects)

    in_transaction(settings, work)
    print(f"key {options.prefix} is revoked")


# Users


def _read_password(options: argparse.Namespace, name: str) -> str:
    if options.generate:
        return new_password()
    if sys.stdin.isatty():
        password = getpass.getpass(f"Password of {name}: ")
        if getpass.getpass("Again: ") != password:
            raise _Stop("the two are not the same")
    else:
        password = sys.stdin.readline().rstrip("\n")
    if why := passwords.weak(password, name):
        raise _Stop(why)
    return password


def _tell_password(options: argparse.Namespace, password: str) -> None:
    if options.generate:
        print("The password, to be changed at the first sign-in. It is shown this once:", file=sys.stderr)
        print(password)


async def _record(connection: "Plain", action: str, user: users.User, data: "Mapping[str, Any] | None" = None) -> None:
    objects = [("user", str(user.user_id))]
    await audit.record(connection, Who.command(), action, target=user.name, data=data, objects=objects)


async def _found(connection: "Plain", name: str) -> users.User:
    user = await users.find(connection, name)
    if user is None:
        raise _Stop(f"there is no user {name!r}. See: linewarden-collector user list")
    return user


def _create_user(settings: Settings, options: argparse.Namespace) -> None:
    if not re.fullmatch(NAME_PATTERN.strip("^$"), options.name):
        raise _Stop(f"{options.name!r} is no name for a user; write lower case letters, digits and . _ @ + -")
    try:
        scope: Scope = scopes_of(options.scope)
    except ValueError as error:
        raise _Stop(str(error)) from None
    password = _read_password(options, options.name)
    made = passwords.hashed(password)

    async def work(connection: "Plain") -> None:
        try:
            user = await users.create(
                connection, name=options.name, role=options.role, scopes=scope, display=options.display, password=made
            )
        except users.Taken:
            raise _Stop(f"there is a user {options.name!r} already. See: linewarden-collector user list") from None
        data = {"role": user.role, "scopes": [list(place) for place in user.scopes]}
        await _record(connection, "user.created", user, data)

    in_transaction(settings, work)
    print(f"user {options.name} of role {options.role} is made", file=sys.stderr)
    _tell_password(options, password)


def _list_users(settings: Settings, options: argparse.Namespace) -> None:
    found = in_transaction(settings, users.everyone)
    if options.json:
        print(msgspec.json.encode([user_out(user) for user in found]).decode())
        return
    rows = [("NAME", "ROLE", "SEES", "FROM", "CODES", "LAST SIGN-IN", "STATE")]
    for u in found:
        sees = ", ".join("/".join(part for part in place if part) or "*" for place in u.scopes) or "nothing"
        last = f"{u.last_sign_in:%Y-%m-%d %H:%M:%S}Z" if u.last_sign_in else "never"
        rows.append(
            (u.name, u.role, sees, u.origin, "yes" if u.totp else "no", last, "disabled" if u.disabled else "good")
        )
    table(rows)


def _set_disabled(settings: Settings, name: str, *, disabled: bool) -> None:
    async def work(connection: "Plain") -> None:
        user = await _found(connection, name)
        await users.change(connection, user.user_id, role=user.role, display=user.display, disabled=disabled)
        action = "user.disabled" if disabled else "user.enabled"
        await _record(connection, action, user)

    in_transaction(settings, work)


def _disable(settings: Settings, options: argparse.Namespace) -> None:
    _set_disabled(settings, options.name, disabled=True)
    print(f"user {options.name} is shut out")


def _enable(settings: Settings, options: argparse.Namespace) -> None:
    _set_disabled(settings, options.name, disabled=False)
    print(f"user {options.name} may sign in again")


def _password(settings: Settings, options: argparse.Namespace) -> None:
    password = _read_password(options, options.name)
    made = passwords.hashed(password)

    async def work(connection: "Plain") -> None:
        user = await _found(connection, options.name)
        await users.set_password(connection, user.user_id, made)
        await _record(connection, "user.password.changed", user)

    in_transaction(settings, work)
    print(f"user {options.name} has a new password and is signed out", file=sys.stderr)
    _tell_password(options, password)


def _totp(settings: Settings, options: argparse.Namespace) -> None:
    secret, codes = passwords.new_secret(), passwords.new_recovery_codes()

    async def work(connection: "Plain") -> None:
        user = await _found(connection, options.name)
        if options.off:
            await users.set_totp(connection, user.user_id, None)
        else:
            vault = Vault()
            await vault.load(connection)
            await users.set_totp(connection, user.user_id, vault.seal("totp", secret))
            await users.confirm_totp(connection, user.user_id, [passwords.recovery_hash(code) for code in codes])
        action = "user.totp.disabled" if options.off else "user.totp.enabled"
        await _record(connection, action, user)

    in_transaction(settings, work)
    if options.off:
        print(f"user {options.name} signs in without one-time codes")
        return
    print("For an authenticator app, and codes that each stand in once for one. Shown this once:", file=sys.stderr)
    print(passwords.address_of(secret, options.name), *codes, sep="\n")


def _unlock(settings: Settings, _: argparse.Namespace) -> None:
    async def work(connection: "Plain") -> None:
        await users.unlock(connection)
        await audit.record(connection, Who.command(), "session.unlocked")

    in_transaction(settings, work)
    print("failed sign-ins are forgotten")
