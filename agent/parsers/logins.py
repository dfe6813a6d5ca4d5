"""Messages about people coming in: sshd, sudo, su, PAM, login.

sshd says one refused sign-in in several lines ("Invalid user", "pam_unix(sshd:auth)", "Failed password", "PAM 2 more"). Only the line that
stands for one attempt, "Failed …", is an `authentication.failure`; the others are `authentication` with what they add, so
that counting failures counts attempts. For every other program the PAM line is the attempt.
"""

# ruff: noqa: E501  # tables: a pattern stands on one line

import re
from typing import Any

from agent.parsers.base import Found, Reader, Rule, by_first_word, first_of, ip_of, put_source

SIGN_IN_REFUSED = "sign-in refused"
# Greedy before " from": a user who calls himself "x from 10.0.0.1 port 1" must not choose the address that is written down.
_ATTEMPT = re.compile(
    r"(Failed|Accepted) (\S+) for (invalid user |illegal user )?(.*) from (\S+) port (\d{1,5})(?: (ssh\d?))?(?:: (.*))?$",
    re.DOTALL,
)
_NOT_THE_ATTEMPT = frozenset({"none"})
"""Methods by which a client only asks which methods there are."""


def _attempt(text: str, data: dict[str, Any]) -> Found | None:
    match = _ATTEMPT.match(text)
    if match is None:
        return None
    verb, method, invalid, user, src, port, _, key = match.groups()
    data["method"] = method
    data["port"] = int(port)
    if invalid:
        data["user_known"] = False
    if key:
        data["key"] = key.partition(" ID ")[0]
    src_ip = ip_of(src) or put_source(src, data)
    if verb == "Accepted":
        return Found("authentication.success", 1, src_ip, None, "success", "sign-in accepted", user)
    if method in _NOT_THE_ATTEMPT:
        return Found("authentication", 1, src_ip, None, None, "sign-in methods asked for", user)
    return Found("authentication.failure", 3, src_ip, None, "failure", SIGN_IN_REFUSED, user)


_FROM = r" (?P<src>\S+?)(?: port (?P<port>\d+))?"
_PEER = r"(?:(?:authenticating|invalid) user (?P<actor>.*) )?(?P<src>\S+) port (?P<port>\d+)"
_SSHD_RULES: dict[str, tuple[Rule, ...]] = {
    "Invalid": (Rule(r"Invalid user (?P<actor>.*) from (?P<src>\S+?)(?: port (?P<port>\d+))?$", "authentication", "sign-in with an unknown user name", severity=2),),
    "input_userauth_request:": (Rule(r"input_userauth_request: invalid user (?P<actor>.*?)(?: \[preauth\])?$", "authentication", "sign-in with an unknown user name"),),
    "User": (
        Rule(r"User (?P<actor>.*) from (?P<src>\S+) not allowed because (?P<reason>.*)$", "access.denied", "user may not sign in", "failure"),
        Rule(r"User child is on pid", "authentication", "session process started"),
    ),
    "ROOT": (Rule(r"ROOT LOGIN REFUSED FROM (?P<src>\S+)(?: port (?P<port>\d+))?", "access.denied", "root may not sign in", "failure"),),
    "Postponed": (Rule(r"Postponed (?P<method>\S+) for (?:invalid user )?(?P<actor>.*) from (?P<src>\S+) port (?P<port>\d+)", "authentication", "sign-in not decided yet"),),
    "Partial": (Rule(r"Partial (?P<method>\S+) for (?P<actor>.*) from (?P<src>\S+) port (?P<port>\d+)", "authentication", "sign-in needs one more step"),),
    "Received": (
        Rule(r"Received disconnect from (?P<src>[\da-fA-F.:]*[\da-fA-F.]|\S+?)(?: port (?P<port>\d+))?: ?(?P<code>\d+): (?P<reason>.*?)(?: \[preauth\])?$", "network.connection", "connection ended by the client"),
        Rule(r"Received signal (?P<signal>\d+)", "system.service.stopped", "sshd stops"),
    ),
    "Disconnected": (
        Rule(rf"Disconnected from {_PEER} \[preauth\]", "network.connection", "connection ended before sign-in", "failure"),
        Rule(r"Disconnected from user (?P<actor>.*) (?P<src>\S+) port (?P<port>\d+)", "authentication.logout", "signed out"),
        Rule(r"Disconnected from (?P<src>\S+?)(?: port (?P<port>\d+))?(?: \[preauth\])?$", "network.connection", "connection ended"),
    ),
    "Connection": (
        Rule(rf"Connection (?:closed|reset) by {_PEER}( \[preauth\])?$", "network.connection", "connection ended before sign-in", "failure"),
        Rule(r"Connection (?:closed|reset) by (?P<src>\S+)( \[preauth\])?$", "network.connection", "connection ended before sign-in", "failure"),
        Rule(r"Connection from (?P<src>\S+) port (?P<port>\d+)", "network.connection", "connection made"),
    ),
    "Disconnecting": (
        Rule(rf"Disconnecting {_PEER}: Too many authentication failures", "authentication.session.rejected", "too many refused sign-ins in one connection", "failure"),
        Rule(rf"Disconnecting {_PEER}: (?P<reason>.*?)(?: \[preauth\])?$", "network.connection", "connection ended by sshd", "failure"),
    ),
    "Disconnecting:": (
        Rule(r"Disconnecting: Too many authentication failures(?: for (?P<actor>.*?))?(?: \[preauth\])?$", "authentication.session.rejected", "too many refused sign-ins in one connection", "failure"),
        Rule(r"Disconnecting: (?P<reason>.*?)(?: \[preauth\])?$", "network.connection", "connection ended by sshd", "failure"),
    ),
    "maximum": (Rule(r"maximum authentication attempts exceeded for (?:invalid user )?(?P<actor>.*) from (?P<src>\S+) port (?P<port>\d+)", "authentication.session.rejected", "too many refused sign-ins in one connection", "failure"),),
    "Did": (Rule(rf"Did not receive identification string from{_FROM}$", "network.scan", "connected without speaking SSH"),),
    "Bad": (
        Rule(r"Bad protocol version identification .* from (?P<src>\S+?)(?: port (?P<port>\d+))?$", "network.scan", "spoke another protocol than SSH"),
        Rule(r"Bad packet length (?P<bytes>\d+)", "network.connection", "malformed packet", "failure"),
    ),
    "banner": (Rule(r"banner exchange: Connection from (?P<src>\S+) port (?P<port>\d+): (?P<reason>.*)$", "network.scan", "connected without speaking SSH"),),
    "Unable": (Rule(r"Unable to negotiate with (?P<src>\S+) port (?P<port>\d+): (?P<reason>.*?)\.? Their offer", "network.connection", "no common algorithm", "failure"),),
    "ssh_dispatch_run_fatal:": (Rule(rf"ssh_dispatch_run_fatal: Connection from {_PEER}: (?P<reason>.*?)(?: \[preauth\])?$", "network.connection", "connection failed", "failure"),),
    "reverse": (Rule(r"reverse mapping checking getaddrinfo for (?P<src_host>\S+) \[(?P<src>[^\]]+)\] failed", "network.connection", "name of the client does not lead back to it", severity=2),),
    "Address": (Rule(r"Address (?P<src>\S+) maps to (?P<src_host>\S+), but this does not map back", "network.connection", "name of the client does not lead back to it", severity=2),),
    "Nasty": (Rule(r"Nasty PTR record \"(?P<src_host>[^\"]*)\" is set up for (?P<src>\S+), ignoring", "network.connection", "name of the client is an address", severity=2),),
    "PAM": (
        Rule(r"PAM (?P<count>\d+) more authentication failures?;.*? rhost=(?P<src>\S*)(?:\s+user=(?P<actor>.*?))?\s*$", "authentication", "sum of refused sign-ins", severity=2),
        Rule(r"PAM service\((?P<service>[^)]*)\) ignoring max retries; (?P<count>\d+) > (?P<limit>\d+)", "authentication.session.rejected", "too many refused sign-ins in one connection", "failure"),
    ),
    "Server": (Rule(r"Server listening on (?P<address>\S+) port (?P<port>\d+)", "system.service.started", "sshd listens"),),
    "Starting": (Rule(r"Starting session: (?P<kind>\S+)(?: on (?P<tty>\S+))? for (?P<actor>.*) from (?P<src>\S+) port (?P<port>\d+)", "authentication", "channel opened"),),
    "Write": (Rule(r"Write failed: (?P<reason>.*?)(?: \[preauth\])?$", "network.connection", "connection failed", "failure"),),
    "Close": (Rule(r"Close session: user (?P<actor>.*) from (?P<src>\S+) port (?P<port>\d+)", "authentication", "channel closed"),),
    "subsystem": (Rule(r"subsystem request for (?P<subsystem>\S+) by user (?P<actor>.*)$", "access", "subsystem asked for"),),
    "Authentication": (Rule(r"Authentication refused: (?P<reason>bad ownership or modes)", "authentication", "key file ignored for its permissions", severity=2),),
    "Timeout": (
        Rule(rf"Timeout before authentication for {_PEER}", "network.connection", "no sign-in in time", "failure"),
        Rule(r"Timeout before authentication for connection from (?P<src>\S+) to", "network.connection", "no sign-in in time", "failure"),
    ),
    "Timeout,": (Rule(r"Timeout, client not responding from (?:user (?P<actor>.*) )?(?P<src>\S+) port (?P<port>\d+)", "network.connection", "client stopped answering"),),
    "pam_unix(sshd:auth):": (
        Rule(r"pam_unix\(sshd:auth\): authentication failure;.*? rhost=(?P<src>\S*)(?:\s+user=(?P<actor>.*?))?\s*$", "authentication", "password check failed", severity=2),
        Rule(r"pam_unix\(sshd:auth\): check pass; user unknown", "authentication", "password check for an unknown user"),
    ),
}  # fmt: skip


def _sshd(text: str, data: dict[str, Any]) -> Found | None:
    if text.startswith(("Failed ", "Accepted ")):
        return _attempt(text, data)
    # "error:" and "fatal:" only say how sshd felt about it.
    if text.startswith(("error: ", "fatal: ")):
        return _sshd(text[7:], data)
    return _sshd_other(text, data)


_PAM = first_of(
    Rule(r"pam_(?:unix|sss|ldap|krb5|winbind)\((?P<service>[^:)]+):session\): session opened for user (?P<actor>[^\s(]+)(?:\(uid=(?P<uid>\d+)\))?(?: by (?P<session_user>[^\s(]*))?", "authentication.session.opened", "session opened", "success"),
    Rule(r"pam_(?:unix|sss|ldap|krb5|winbind)\((?P<service>[^:)]+):session\): session closed for user (?P<actor>.+)$", "authentication.session.closed", "session closed", "success"),
    Rule(r"pam_(?:unix|sss|ldap|krb5|winbind)\((?P<service>[^:)]+):auth\): authentication failure;.*?(?: tty=(?P<tty>\S*))? ruser=(?P<session_user>\S*) rhost=(?P<src>\S*)(?:\s+user=(?P<actor>.*?))?\s*$", "authentication.failure", "sign-in refused", "failure"),
    Rule(r"pam_sss\((?P<service>[^:)]+):auth\): authentication success;.*? rhost=(?P<src>\S*)(?:\s+user=(?P<actor>.*?))?\s*$", "authentication.success", "sign-in accepted", "success"),
    Rule(r"pam_(?:unix|sss|ldap|krb5|winbind)\((?P<service>[^:)]+):auth\): check pass; user unknown", "authentication", "password check for an unknown user"),
    Rule(r"pam_(?:unix|sss)\((?P<service>[^:)]+):(?:auth|account)\): (?:account (?P<actor>\S+) has expired|Access denied for user (?P<target_user>[^:]+))", "access.denied", "account may not be used", "failure"),
    Rule(r"pam_(?:unix|sss)\((?P<service>[^:)]+):chauthtok\): password changed for (?P<actor>.+)$", "account.password.changed", "password changed", "success"),
    Rule(r"pam_(?:faillock|tally2?)\((?P<service>[^:)]+):auth\): (?:Consecutive login failures for user (?P<actor>\S+) account temporarily locked|user (?P<target_user>\S+) .*(?:tally \d+, deny \d+|locked))", "authentication.lockout", "account locked after refused sign-ins", "failure"),
    Rule(r"pam_succeed_if\((?P<service>[^:)]+):[^)]*\): requirement .* not met by user \"?(?P<actor>[^\"]*)\"?", "access.denied", "requirement not met", "failure"),
    Rule(r"(?:(?P<service>\S+?)\(pam_unix\): )?session opened for user (?P<actor>[^\s(]+)(?: by (?P<session_user>[^\s(]*)\(uid=(?P<uid>\d+)\))?", "authentication.session.opened", "session opened", "success"),
    Rule(r"(?:(?P<service>\S+?)\(pam_unix\): )?session closed for user (?P<actor>.+)$", "authentication.session.closed", "session closed", "success"),
    Rule(r"(?:(?P<service>\S+?)\(pam_unix\): )?authentication failure;.*? ruser=(?P<session_user>\S*) rhost=(?P<src>\S*)(?:\s+user=(?P<actor>.*?))?\s*$", "authentication.failure", "sign-in refused", "failure"),
    Rule(r"(?:(?P<service>\S+?)\(pam_unix\): )?check pass; user unknown", "authentication", "password check for an unknown user"),
)  # fmt: skip
_sshd_other: Reader = by_first_word(_SSHD_RULES, _PAM)

_SUDO_FIELD = re.compile(r" ; (?=(?:TTY|PWD|USER|GROUP|ENV|TSID|HOST|COMMAND)=)")
_SUDO_REFUSED = re.compile(
    r"(\d+) incorrect password attempts?|(command not allowed|user NOT in sudoers|user NOT authorized on host|a password is required|"
    r"auth(?:entication)? (?:failure|could not be verified).*|conversation failed|no valid sudoers sources.*|a terminal is required.*|"
    r"sorry, .*|unable to .*)"
)


def _sudo(text: str, data: dict[str, Any]) -> Found | None:
    """`bob : TTY=pts/0 ; PWD=/home/bob ; USER=root ; COMMAND=/bin/ls`, with the reason first where it was refused."""
    actor, colon, rest = text.lstrip().partition(" : ")
    if not colon or "COMMAND=" not in rest:
        return _PAM(text, data)
    refusal = _SUDO_REFUSED.match(rest)
    # COMMAND comes last and may hold anything, " ; USER=" too.
    before, _, command = rest.partition("COMMAND=")
    names = {
        "TTY": "tty",
        "USER": "target_user",
        "PWD": "working_directory",
        "GROUP": "target_group",
        "TSID": "session",
    }
    for field in _SUDO_FIELD.split(before.removesuffix(" ; ")):
        name, equals, value = field.rpartition(" ; ")[2].partition("=")
        if equals and name in names:
            data[names[name]] = value.removesuffix(" ;").strip()
    data["command"] = command
    if refusal is None:
        return Found("access.privilege.used", 2, None, None, "success", "command run with another user's rights", actor)
    if refusal[1]:
        data["count"] = int(refusal[1][:9])
        data["reason"] = "incorrect password"
        return Found("authentication.failure", 3, None, None, "failure", "sudo refused: incorrect password", actor)
    reason = refusal[2][:100]
    data["reason"] = reason
    return Found("access.denied", 3, None, None, "failure", "sudo refused", actor)


_SU = by_first_word(
    {
        "Successful": (Rule(r"Successful su for (?P<target_user>\S+) by (?P<actor>\S+)", "access.privilege.used", "became another user", "success"),),
        "FAILED": (
            Rule(r"FAILED [sS][uU] (?:\(to (?P<target_user>[^)]*)\) (?P<actor>\S+) on (?P<tty>\S+)|for (?:\S+) by (?:\S+))", "authentication.failure", "su refused", "failure"),
        ),
        "(to": (Rule(r"\(to (?P<target_user>[^)]*)\) (?P<actor>\S+) on (?P<tty>\S+)", "access.privilege.used", "became another user", "success"),),
        "+": (Rule(r"\+ (?P<tty>\S+) (?P<actor>[^:\s]+):(?P<target_user>\S+)", "access.privilege.used", "became another user", "success"),),
        "-": (Rule(r"- (?P<tty>\S+) (?P<actor>[^:\s]+):(?P<target_user>\S+)", "authentication.failure", "su refused", "failure"),),
    },
    _PAM,
)  # fmt: skip
_LOGIN = by_first_word(
    {
        "FAILED": (Rule(r"FAILED LOGIN (?:\((?P<count>\d+)\) |SESSION )?(?:on '?(?P<tty>[^' ]+)'? )?(?:from '?(?P<src>[^' ]+)'? )?(?:FOR|for) '?(?P<actor>[^',]*)'?, (?P<reason>.*)$", "authentication.failure", "sign-in refused", "failure"),),
        "LOGIN": (Rule(r"LOGIN ON (?P<tty>\S+) BY (?P<actor>\S+)(?: FROM (?P<src>\S+))?", "authentication.success", "sign-in accepted", "success"),),
        "ROOT": (Rule(r"ROOT LOGIN\s+(?:ON|on) '?(?P<tty>[^' ]+)'?(?: FROM (?P<src>\S+))?", "authentication.success", "sign-in of root accepted", "success", 2),),
    },
    _PAM,
)  # fmt: skip
_LOGIND = by_first_word(
    {
        "New": (Rule(r"New session (?P<session>\S+) of user (?P<actor>.+?)\.$", "authentication.session.opened", "session opened", "success"),),
        "Session": (Rule(r"Session (?P<session>\S+) logged out", "authentication.logout", "signed out"),),
        "Removed": (Rule(r"Removed session (?P<session>\S+?)\.$", "authentication.session.closed", "session closed"),),
    },
    _PAM,
)  # fmt: skip

PROGRAMS: dict[str, Reader] = {
    "sshd": _sshd,
    "sshd-session": _sshd,
    "sshd-auth": _sshd,
    "dropbear": _PAM,
    "sudo": _sudo,
    "su": _SU,
    "login": _LOGIN,
    "systemd-logind": _LOGIND,
}
OTHER: Reader = _PAM
"""PAM speaks with the name of whatever program called it."""
