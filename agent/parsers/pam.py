"""Messages of PAM modules, which log with the tag of the program that called them: `pam_unix(sshd:auth): authentication failure; …`.

Programs in OWN_VERDICT write a line of their own about every refused attempt. There that line is the `authentication.failure`, and what the
modules write is `authentication`, so that counting failures counts attempts. For every other program the line of a module is the attempt;
where the stack has several modules they are voices of one attempt (attempts.py).

The body `…tty=ssh ruser=R rhost=H  user=U` is read from the left, because U is what the client typed. R is the client's text as well in
programs of CLIENT_RUSER, where it equals U: there the reading has to fit, and where two readings fit no address is recorded.
"""

# ruff: noqa: E501  # tables: a pattern stands on one line

import re
from typing import Any

from agent.parsers.base import Found, Reader, Rule, by_first_word, put_source

OWN_VERDICT = frozenset({"sshd", "su", "su-l", "sudo", "sudo-i", "login", "remote", "dropbear", "doas"})
BY_ANOTHER = frozenset({"su", "su-l", "sudo", "sudo-i", "doas", "polkit-1", "passwd", "chfn", "chsh", "runuser"})
"""Services in which the user who acts (`ruser`, or who signed in) is not the user whose password is checked."""
CLIENT_RUSER = frozenset({"vsftpd", "proftpd", "ftp", "ftpd", "rsh", "rlogin", "rexec", "pure-ftpd"})

_HEAD = re.compile(r"(pam_[a-z0-9_]{1,32})\(([^:()]{1,64})(?::([a-z_]{1,16}))?\): ?")
_OLD_HEAD = re.compile(r"(?:\((pam_[a-z0-9_]{1,32})\)|(pam_unix|pam_sss|pam_ldap|pam_krb5|pam_winbind):) ")
"""`(pam_unix) authentication failure; …`: without the service, which then is the program."""
_BODY = re.compile(
    r"[^;]*;(?: logname=(\S*))?(?: uid=\S*)?(?: euid=\S*)?(?: tty=(\S*))?(?= ruser=| rhost=)(?: ruser=)?"
)
_HOST_AND_USER = re.compile(r"(\S*)(?:\s+user=(.*?))?\s*", re.DOTALL)


def credentials(text: str, data: dict[str, Any]) -> tuple[str | None, str | None, str | None]:
    """Return address, remote user and user of the body of a PAM message; tty and host name go into `data`."""
    body = _BODY.match(text)
    if body is None:
        return None, None, None
    logname, tty = body[1], body[2]
    if tty:
        data["tty"] = tty
    tail = text[body.end() :]
    if " user=" not in tail:
        tail = tail.removesuffix(" [preauth]")
    readings: list[tuple[str, str, str]] = []
    at = tail.find(" rhost=")
    while at >= 0:
        match = _HOST_AND_USER.fullmatch(tail, at + 7)
        if match is not None:
            readings.append((tail[:at].strip(), match[1], match[2] or ""))
        at = tail.find(" rhost=", at + 1)
    if len(readings) > 1 and data.get("service") in CLIENT_RUSER:
        readings = [each for each in readings if each[2] in ("", each[0])]
        if len(readings) > 1:
            data["ambiguous"] = True
            return None, None, None
    if not readings:
        return None, None, None
    ruser, rhost, user = readings[0]
    return put_source(rhost, data), ruser or (logname if logname not in (None, "LOGIN") else None) or None, user or None


_REFUSED = "sign-in refused"


def _own(data: dict[str, Any]) -> bool:
    return data.get("service") in OWN_VERDICT or data.get("program") in ("sshd-session", "sshd-auth")


def _failure(text: str, data: dict[str, Any]) -> Found:
    """`authentication failure; logname=… user=…`."""
    src_ip, other, user = credentials(text, data)
    actor = user
    if data.get("service") in BY_ANOTHER:
        actor = other
        if user:
            data["target_user"] = user
    elif other:
        data["session_user"] = other
    if _own(data):
        return Found("authentication", 2, src_ip, None, None, "password check failed", actor)
    return Found("authentication.failure", 3, src_ip, None, "failure", _REFUSED, actor, data.get("pam_module", "pam"))


def _success(text: str, data: dict[str, Any]) -> Found:
    """`authentication success; …` of pam_sss. A program with a verdict of its own reports the sign-in itself."""
    src_ip, other, user = credentials(text, data)
    if other:
        data["session_user"] = other
    if _own(data):
        return Found("authentication", 1, src_ip, None, None, "password check passed", user)
    return Found(
        "authentication.success", 1, src_ip, None, "success", "sign-in accepted", user, data.get("pam_module", "pam")
    )


def _more(text: str, data: dict[str, Any]) -> Found:
    """`2 more authentication failures; …`: the sum at the end of what was reported one by one."""
    data["count"] = int(text.partition(" ")[0][:9])
    src_ip, other, user = credentials(text, data)
    if data.get("service") in BY_ANOTHER:
        if user:
            data["target_user"] = user
        user = other
    return Found("authentication", 2, src_ip, None, None, "sum of refused sign-ins", user)


def _verdict(*rules: Rule) -> Reader:
    """Rules whose failure counts only where the program has no verdict of its own."""

    def read(text: str, data: dict[str, Any]) -> Found | None:
        for rule in rules:
            found = rule.read(text, data)
            if found is None:
                continue
            if _own(data):
                refused = found.outcome == "failure"
                return found._replace(
                    type="authentication",
                    severity=2 if refused else 1,
                    outcome=None,
                    message="password check failed" if refused else "password check passed",
                    voice=None,
                )
            return found._replace(voice=data.get("pam_module", "pam"))
        return None

    return read


_CREDENTIALS = _verdict(
    Rule(r"user '(?P<actor>.*)' granted access$", "authentication.success", "sign-in accepted", "success"),
    Rule(r"user '(?P<actor>.*)' denied access \((?P<reason>[^()]*)\)", "authentication.failure", _REFUSED, "failure"),
    Rule(r"user `(?P<actor>.*)' denied access \((?P<reason>[^()]*)\)", "authentication.failure", _REFUSED, "failure"),
    Rule(r"user (?P<actor>\S+) authenticated as \S+$", "authentication.success", "sign-in accepted", "success"),
    Rule(r"authentication succeeds for '(?P<actor>[^']*)'", "authentication.success", "sign-in accepted", "success"),
    Rule(r"authentication fails for '(?P<actor>[^']*)'", "authentication.failure", _REFUSED, "failure"),
    Rule(r"error trying to bind as user \"[^\"]*\" \(Invalid credentials\)", "authentication.failure", _REFUSED, "failure"),
    Rule(r"Invalid verification code for (?P<actor>.+)$", "authentication.failure", "sign-in refused: wrong one-time code", "failure"),
)  # fmt: skip

_LOCKED = (
    Rule(r"Consecutive login failures for user (?P<actor>.*) account temporarily locked", "authentication.lockout", "account locked after refused sign-ins", "failure"),
    Rule(r"[uU]ser (?P<actor>.+?) (?:\(\d+\) )?has time_left=", "authentication.lockout", "account locked after refused sign-ins", "failure"),
    Rule(r"user (?P<actor>.+) \(\d+\) tally \d+, deny \d+", "authentication.lockout", "account locked after refused sign-ins", "failure"),
)  # fmt: skip
_DENIED = (
    Rule(r"access denied for user [`'](?P<actor>.*)' from [`'](?P<src>[^`']+)'$", "access.denied", "address or group may not sign in", "failure"),
    Rule(r"Refused user (?P<actor>.*) for service (?P<service>\S+)$", "access.denied", "user may not use this service", "failure"),
    Rule(r"Access denied (?:to|for) [`'](?P<actor>[^`']*)' (?:for|to) [`'](?P<target_user>[^`']*)'", "access.denied", "user may not become another", "failure"),
    Rule(r"Access granted to [`'](?P<actor>[^`']*)' for [`'](?P<target_user>[^`']*)'", "access", "user may become another", "success"),
    Rule(r"[aA]ccess denied(?: for user (?P<actor>[^:]+?))?(?:: (?P<reason>.*))?$", "access.denied", "account may not be used", "failure"),
    Rule(r"[rR]oot login denied", "access.denied", "root may not sign in", "failure"),
)  # fmt: skip
_CHANGED = (
    Rule(r"password changed for (?P<target_user>.+)$", "account.password.changed", "password changed", "success"),
    Rule(r"(?:Password change|password change) (?:failed|rejected)", "account.password.changed", "password not changed", "failure"),
)  # fmt: skip
_RULES: dict[str, tuple[Rule, ...]] = {
    "session": (
        Rule(r"session opened for (?:local )?user (?P<actor>[^\s()]+) by (?P<session_user>[^\s(]*) ?\(uid=(?P<uid>\d+)\)$", "authentication.session.opened", "session opened", "success"),
        Rule(r"session opened for (?:local )?user (?P<actor>.+?)(?:\(uid=(?P<uid>\d+)\))?(?: by (?P<session_user>[^\s(]*) ?(?:\(uid=\d+\))?)?$", "authentication.session.opened", "session opened", "success"),
        Rule(r"session closed for (?:local )?user (?P<actor>.+)$", "authentication.session.closed", "session closed", "success"),
    ),
    "check": (Rule(r"check pass; user unknown", "authentication", "password check for an unknown user"),),
    "bad": (Rule(r"bad username \[(?P<actor>.*)\]$", "authentication", "password check for an unknown user", severity=2),),
    "account": (
        Rule(r"account (?P<actor>\S+) has (?:expired|been locked|password changed in future)", "access.denied", "account may not be used", "failure"),
        Rule(r"account is (?P<reason>\w+)", "access.denied", "account may not be used", "failure"),
    ),
    "expired": (Rule(r"expired password for user (?P<actor>.+) \((?P<reason>[^()]*)\)$", "authentication", "password has expired and must be changed", severity=2),),
    "password": (
        *_CHANGED,
        Rule(r"password for user (?P<target_user>.+) will expire in (?P<days>\d+) days?$", "authentication", "password will expire soon"),
        Rule(r"password - \(?old\)? token not obtained", "authentication", "no password was given"),
    ),
    "Password": _CHANGED,
    "new": (Rule(r"new password not acceptable", "account.password.changed", "new password not acceptable", "failure"),),
    "BAD": (Rule(r"BAD PASSWORD: ", "account.password.changed", "new password not acceptable", "failure"),),
    "received": (Rule(r"received for user (?P<actor>.*): (?P<code>\d+) \((?P<reason>[^()]*)\)$", "authentication", "answer of the directory service", severity=2),),
    "request": (Rule(r"request wbcLogonUser failed: (?P<code>\w+), PAM error: (?P<reason>\w+)", "authentication", "answer of the domain controller", severity=2),),
    "Failed": (Rule(r"Failed to create session: ", "authentication", "session not known to the session manager"),),
    "conversation": (Rule(r"conversation failed", "authentication", "no password was given"),),
    "auth": (Rule(r"auth could not identify password for \[(?P<target_user>.*)\]$", "authentication", "no password was given"),),
    "getting": (Rule(r"getting password", "authentication", "password check begins"),),
    "pam_get_item": (Rule(r"pam_get_item returned a password", "authentication", "password check begins"),),
    "Verify": (Rule(r"Verify user [`'](?P<actor>.*)'$", "authentication", "password check begins"),),
    "Accepted": (Rule(r"Accepted \S+ for (?P<actor>.+)$", "authentication", "one-time code accepted"),),
    "Consecutive": _LOCKED,
    "User": (*_LOCKED, Rule(r"User unknown", "authentication", "password check for an unknown user")),
    "user": (
        *_LOCKED,
        Rule(r"user \"(?P<target_user>.*)\" does not exist in ", "account.password.changed", "password of an unknown user not changed", "failure"),
        Rule(r"user (?P<target_user>\S+) .*\bb?locked\b", "authentication.lockout", "account locked after refused sign-ins", "failure"),
    ),
    "access": _DENIED,
    "Access": _DENIED,
    "Refused": _DENIED,
    "root": _DENIED,
    "Root": _DENIED,
}  # fmt: skip
_UNMET = Rule(r"requirement \"[^\"]*\" (?P<met>not met|was met) by user \"?(?P<actor>[^\"]*)\"?$", "access.denied", "requirement not met", "failure")  # fmt: skip
_OTHERS = by_first_word(_RULES, _CREDENTIALS)


def _body(text: str, data: dict[str, Any]) -> Found | None:
    """What follows the name of the module."""
    if text.startswith("authentication failure"):
        return _failure(text, data)
    if text.startswith("authentication success;"):
        return _success(text, data)
    if text[:1].isdecimal() and " more authentication failure" in text[:40]:
        return _more(text, data)
    return _OTHERS(text, data)


def _module(text: str, end: int, data: dict[str, Any], module: str, stack: str) -> Found | None:
    data["pam_module"] = module
    body = text[end:]
    if stack == "chauthtok" and body.startswith("authentication failure"):
        refused = _failure(body, data)
        return refused._replace(
            type="authentication.failure", outcome="failure", severity=3, message="old password refused", voice=module
        )
    if module != "pam_succeed_if":
        return _body(body, data)
    unmet = _UNMET.read(body, data)
    if unmet is None:
        return None
    # In the other stacks it only chooses the way through the modules.
    denied = data.pop("met") == "not met" and stack == "account"
    return unmet if denied else unmet._replace(type="authentication", severity=1, outcome=None)


_BARE = frozenset({"session", "authentication", "check"})
"""First words of messages that old syslog daemons write without the module."""


def _by_module(text: str, data: dict[str, Any]) -> Found | None:
    head = _HEAD.match(text)
    if head is not None:
        module, service, stack = head.groups()
        data["service"] = service
        found = _module(text, head.end(), data, module, stack or "")
        return found._replace(voice=module) if found is not None and found.type == "access.denied" else found
    old = _OLD_HEAD.match(text)
    if old is not None and "program" in data:
        data["service"] = data["program"]
        return _module(text, old.end(), data, old[1] or old[2], "")
    return (
        Found("authentication", 1, message="password check failed") if text.startswith("pam_authenticate: ") else None
    )


def pam(text: str, data: dict[str, Any]) -> Found | None:
    """Read what a PAM module logged with the tag of any program."""
    if text.startswith(("pam_", "(pam_")):
        return _by_module(text, data)
    first = text.partition(" ")[0]
    if first == "PAM" and " more authentication failure" in text[:40]:
        return _more(text[4:], data)
    if first in _BARE and "program" in data:
        data.setdefault("service", data["program"])
        return _body(text, data)
    return None
