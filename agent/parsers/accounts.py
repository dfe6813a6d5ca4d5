"""Messages about accounts and groups: useradd, usermod, userdel, groupadd, gpasswd, passwd, chage.

Whose account it is goes into `target_user`, which is personal; so does the group that useradd makes for one user alone.
"""

# ruff: noqa: E501  # tables: a pattern stands on one line

from agent.parsers.base import Reader, Rule, by_first_word
from agent.parsers.logins import OTHER

_ADDED = (
    Rule(
        r"add '(?P<target_user>[^']*)' to (?:shadow )?group '(?P<group>[^']*)'",
        "account.group.changed",
        "user added to a group",
        "success",
    ),
    Rule(
        r"adding user '(?P<target_user>[^']*)' to group '(?P<group>[^']*)'",
        "account.group.changed",
        "user added to a group",
        "success",
    ),
)
_TAKEN = (
    Rule(
        r"delete '(?P<target_user>[^']*)' from (?:shadow )?group '(?P<group>[^']*)'",
        "account.group.changed",
        "user taken out of a group",
        "success",
    ),
    Rule(r"delete user '(?P<target_user>[^']*)'", "account.deleted", "account deleted", "success"),
)
_USERS = by_first_word(
    {
        "new": (
            Rule(r"new user: name=(?P<target_user>[^,]*), UID=(?P<uid>\d+), GID=(?P<gid>\d+)(?:, home=(?P<address_home>[^,]*))?(?:, shell=(?P<shell>[^,]*))?", "account.created", "account created", "success"),
            Rule(r"new group: name=(?P<target_user>[^,]*), GID=(?P<gid>\d+)", "account.group.changed", "group of a user created", "success"),
        ),
        "add": _ADDED,
        "adding": _ADDED,
        "delete": _TAKEN,
        "failed": (Rule(r"failed adding user '(?P<target_user>[^']*)'(?:, (?:exit code|data deleted): ?(?P<exit_code>\d+))?", "account.created", "account could not be created", "failure"),),
        "change": (
            Rule(r"change user '(?P<target_user>[^']*)' password", "account.password.changed", "password changed", "success"),
            Rule(r"change user '(?P<target_user>[^']*)' (?P<field>\S+)", "account.changed", "account changed", "success"),
        ),
        "changed": (
            Rule(r"changed (?P<field>password expiry) for (?P<target_user>\S+)", "account.changed", "password expiry changed", "success"),
            Rule(r"changed user '(?P<target_user>[^']*)' (?P<field>\S+)", "account.changed", "account changed", "success"),
        ),
        "lock": (Rule(r"lock user '(?P<target_user>[^']*)' password", "account.changed", "account locked", "success", 3),),
        "unlock": (Rule(r"unlock user '(?P<target_user>[^']*)' password", "account.changed", "account unlocked", "success", 3),),
        "removed": (Rule(r"removed (?:shadow )?group '(?P<target_user>[^']*)' owned by", "account.group.changed", "group of a user deleted", "success"),),
        "removing": (Rule(r"removing (?:user '(?P<target_user>[^']*)' from )?group '(?P<group>[^']*)'", "account.group.changed", "group changed", "success"),),
        "password": (Rule(r"password for '(?P<target_user>[^']*)' changed by '(?P<actor>[^']*)'", "account.password.changed", "password changed", "success"),),
        "user": (
            Rule(r"user (?P<target_user>\S+) added by (?P<actor>\S+) to group (?P<group>\S+)", "account.group.changed", "user added to a group", "success"),
            Rule(r"user (?P<target_user>\S+) removed by (?P<actor>\S+) from group (?P<group>\S+)", "account.group.changed", "user taken out of a group", "success"),
        ),
        "can't": (Rule(r"can't view or modify password information for (?P<target_user>\S+)", "access.denied", "password information refused", "failure"),),
    },
    OTHER,
)  # fmt: skip
_GROUPS = by_first_word(
    {
        "new": (Rule(r"new group: name=(?P<group>[^,]*)(?:, GID=(?P<gid>\d+))?", "account.group.changed", "group created", "success"),),
        "group": (
            Rule(r"group added to /etc/g(?:roup|shadow): name=(?P<group>[^,]*)(?:, GID=(?P<gid>\d+))?", "account.group.changed", "group created", "success"),
            Rule(r"group '(?P<group>[^']*)' removed", "account.group.changed", "group deleted", "success"),
            Rule(r"group changed in \S+ \(group (?P<group>[^/,)]*)", "account.group.changed", "group changed", "success"),
        ),
    },
    _USERS,
)  # fmt: skip

PROGRAMS: dict[str, Reader] = {
    **dict.fromkeys(
        (
            "useradd",
            "usermod",
            "userdel",
            "newusers",
            "adduser",
            "deluser",
            "passwd",
            "chpasswd",
            "chage",
            "chsh",
            "chfn",
            "gpasswd",
        ),
        _USERS,
    ),
    **dict.fromkeys(("groupadd", "groupdel", "groupmod", "addgroup", "delgroup"), _GROUPS),
}
