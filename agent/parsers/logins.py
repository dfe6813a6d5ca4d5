"""Messages about people coming in at the console or otherwise than by OpenSSH: login, logind, dropbear, vsftpd, PAM's helper.

sshd is in sshd.py, PAM in pam.py, sudo and its relatives in privilege.py. The name at a prompt is the client's text: what stands before it is
read from the left, an address after it by the end of the line.
"""

# ruff: noqa: E501  # tables: a pattern stands on one line

import re
from typing import Any

from agent.parsers import privilege
from agent.parsers.base import Found, Reader, Rule, by_first_word, first_of
from agent.parsers.pam import pam
from agent.parsers.sshd import SIGN_IN_REFUSED, sshd

_TOO_MANY = "too many refused sign-ins in one connection"
_IN = "sign-in accepted"
_OPENED, _CLOSED = "session opened", "session closed"

_TTY = re.compile(r"(?:/dev/|tty|pts/|hvc|console|cons|vc/)")


def _terminal(found: Found, data: dict[str, Any]) -> Found:
    """What login calls FROM may be a terminal."""
    place = data.get("src_host")
    if place is not None and _TTY.match(place):
        data.setdefault("tty", data.pop("src_host"))
    return found


_WHERE = r"(?:on '?(?P<tty>[^' ]+)'? ?)?(?:(?:from|FROM) '?(?P<src>[^' ]+)'? )?"
_FROM = r"(?:FROM (?P<src>\S+) )?"
_LOGIN_RULES = by_first_word(
    {
        "FAILED": (
            Rule(rf"FAILED LOGIN SESSION {_FROM}FOR (?P<actor>.*), (?P<reason>[^,']*)$", "authentication.session.rejected", _TOO_MANY, "failure"),
            Rule(rf"FAILED LOGIN \((?P<count>\d+)\) ? ?{_WHERE}(?:FOR|for) '(?P<actor>.*)', (?P<reason>[^,']*)$", "authentication.failure", SIGN_IN_REFUSED, "failure"),
            Rule(rf"FAILED LOGIN (?:\(?(?P<count>\d+)\)? )?(?:on (?P<tty>\S+) )?{_FROM}FOR (?P<actor>.*), (?P<reason>[^,']*)$", "authentication.failure", SIGN_IN_REFUSED, "failure"),
        ),
        "TOO": (Rule(rf"TOO MANY LOGIN TRIES \((?P<count>\d+)\) ?{_WHERE}(?:FOR|for) '?(?P<actor>.*?)'?(?:, (?P<reason>[^,']*))?$", "authentication.session.rejected", _TOO_MANY, "failure"),),
        "LOGIN": (
            Rule(r"LOGIN ON (?P<tty>\S+) BY (?P<actor>\S+)(?: FROM (?P<src>\S+))?", "authentication.success", _IN, "success"),
            Rule(rf"LOGIN FAILURE {_WHERE}(?:FOR|for)? ?(?P<actor>.*)$", "authentication.failure", SIGN_IN_REFUSED, "failure"),
        ),
        "DIALUP": (Rule(r"DIALUP AT (?P<tty>\S+) BY (?P<actor>\S+)", "authentication.success", _IN, "success"),),
        "ROOT": (
            Rule(r"ROOT LOGIN REFUSED (?:ON (?P<tty>\S+) )?FROM (?P<src>\S+)", "access.denied", "root may not sign in", "failure"),
            Rule(r"ROOT LOGIN\s+(?:ON|on) '?(?P<tty>[^' ]+)'?(?: (?:FROM|from) '?(?P<src>[^' ]+)'?)?", "authentication.success", "sign-in of root accepted", "success", 2),
        ),
        "root": (Rule(r"root login\s+on '(?P<tty>[^' ]+)'", "authentication.success", "sign-in of root accepted", "success", 2),),
        "invalid": (Rule(r"invalid password for '(?P<actor>.*)'\s+on '(?P<tty>[^' ]+)'(?: from '(?P<src>[^' ]+)')?$", "authentication.failure", SIGN_IN_REFUSED, "failure"),),
        "pam_authenticate": (Rule(r"pam_authenticate call failed: ", "authentication", "password check failed"),),
        "PAM": (Rule(r"PAM Failure, aborting: ", "system", "login lacks something", "failure"),),
        "exceeded": (Rule(r"exceeded failure limit", "authentication.session.rejected", _TOO_MANY, "failure"),),
    },
    pam,
)  # fmt: skip


def _login(text: str, data: dict[str, Any]) -> Found | None:
    found = _LOGIN_RULES(text, data)
    return None if found is None else _terminal(found, data)


_SESSION = r"'?(?P<session>[\w-]+)'?"
_LOGIND = by_first_word(
    {
        "New": (
            Rule(rf"New session {_SESSION} of user '(?P<actor>[^']+)'(?: with class '(?P<class>[^']*)'(?: and type '(?P<kind>[^']*)')?)?", "authentication.session.opened", _OPENED, "success"),
            Rule(rf"New session {_SESSION} of user (?P<actor>.+?)\.$", "authentication.session.opened", _OPENED, "success"),
            Rule(r"New seat ", "system", "new seat"),
        ),
        "Session": (Rule(rf"Session {_SESSION} (?:of user .* )?logged out", "authentication.logout", "signed out"),),
        "Removed": (Rule(rf"Removed session {_SESSION}\.?$", "authentication.session.closed", _CLOSED),),
        "User": (Rule(r"User '?(?P<actor>[^' ]+)'? (?:logged|of session)", "authentication", "about a user's sessions"),),
        "The": (Rule(r"The system will (?P<action>reboot|power off|halt|suspend|hibernate|kexec)", "system.shutdown", "the computer stops"),),
        "System": (Rule(r"System is (?P<action>rebooting|powering down|halting)", "system.shutdown", "the computer stops"),),
        "Power": (Rule(r"Power key pressed", "system", "power key pressed", severity=2),),
        "Powering": (Rule(r"Powering [Oo]ff", "system.shutdown", "the computer stops"),),
        "Rebooting...": (Rule(r"Rebooting", "system.shutdown", "the computer stops"),),
        "Reboot": (Rule(r"Reboot key pressed", "system", "reboot key pressed", severity=2),),
        "Lid": (Rule(r"Lid (?:closed|opened)", "system", "lid moved"),),
        "Watching": (Rule(r"Watching system buttons on ", "system", "buttons are watched"),),
        "Suspending...": (Rule(r"Suspending", "system", "the computer sleeps"),),
    },
    pam,
)  # fmt: skip

_CLIENT = r"<?(?P<src>[\da-fA-F.:%\w]+?|\[[^\]\s]+\]):(?P<port>\d+)>?"
_NOT_IN = "connection ended before sign-in"
_DROPBEAR = by_first_word(
    {
        "Bad": (
            Rule(rf"Bad (?:PAM )?password attempt for '(?P<actor>.*)' from {_CLIENT}$", "authentication.failure", SIGN_IN_REFUSED, "failure"),
        ),
        "bad": (Rule(rf"bad password attempt for '(?P<actor>.*)'(?: from {_CLIENT})?$", "authentication.failure", SIGN_IN_REFUSED, "failure"),),
        "Login": (
            Rule(rf"Login attempt for (?P<unknown>nonexistent) user(?: '(?P<actor>.*)')?(?: from {_CLIENT})?$", "authentication.failure", SIGN_IN_REFUSED, "failure"),
            Rule(rf"Login attempt with wrong user (?P<actor>.*) from {_CLIENT}$", "authentication.failure", SIGN_IN_REFUSED, "failure"),
        ),
        "login": (Rule(rf"login attempt for (?P<unknown>nonexistent) user(?: '(?P<actor>.*)')?(?: from {_CLIENT})?$", "authentication.failure", SIGN_IN_REFUSED, "failure"),),
        "Password": (Rule(rf"Password auth succeeded for '(?P<actor>.*)' from {_CLIENT}$", "authentication.success", _IN, "success"),),
        "password": (Rule(rf"password auth succeeded for '(?P<actor>.*)'(?: from {_CLIENT})?$", "authentication.success", _IN, "success"),),
        "PAM": (
            Rule(rf"PAM password auth succeeded for '(?P<actor>.*)' from {_CLIENT}$", "authentication.success", _IN, "success"),
            Rule(r"PAM (?:password auth|account|error|gave error)", "authentication", "answer of PAM"),
        ),
        "Auth": (Rule(rf"Auth succeeded with blank password for '(?P<actor>.*)' from {_CLIENT}$", "authentication.success", "sign-in accepted without a password", "success", 4),),
        "Pubkey": (
            Rule(rf"Pubkey auth succeeded for '(?P<actor>.*)' with (?:\S+ )?key (?P<key>\S+ ?\S*) from {_CLIENT}$", "authentication.success", _IN, "success"),
            Rule(rf"Pubkey auth bad signature for '(?P<actor>.*)' .*from {_CLIENT}$", "authentication.failure", SIGN_IN_REFUSED, "failure"),
            Rule(r"Pubkey auth attempt with unknown algo for '(?P<actor>[^']*)'", "authentication", "public key not acceptable", severity=2),
        ),
        "pubkey": (Rule(r"pubkey auth succeeded for '(?P<actor>[^']*)'", "authentication.success", _IN, "success"),),
        "User": (Rule(r"User (?:account )?'(?P<actor>.*)' (?P<reason>has invalid shell, rejected|has blank password, rejected|is locked|not allowed)", "access.denied", "user may not sign in", "failure"),),
        "user": (Rule(r"user '(?P<actor>.*)' (?P<reason>has invalid shell, rejected|has blank password, rejected|is locked)", "access.denied", "user may not sign in", "failure"),),
        "root": (Rule(r"root login rejected", "access.denied", "root may not sign in", "failure"),),
        "Child": (Rule(rf"Child connection from {_CLIENT}$", "network.connection", "connection made"),),
        "Exit": (
            Rule(rf"Exit before auth from {_CLIENT}: \(user '(?P<actor>.*)', (?P<count>\d+) fails\): Max auth tries reached", "authentication.session.rejected", _TOO_MANY, "failure"),
            Rule(rf"Exit before auth \(user '(?P<actor>.*)', (?P<count>\d+) fails\): Max auth tries reached - user '.*' from {_CLIENT}$", "authentication.session.rejected", _TOO_MANY, "failure"),
            Rule(r"Exit before auth \(user '(?P<actor>.*)', (?P<count>\d+) fails\): Max auth tries reached", "authentication.session.rejected", _TOO_MANY, "failure"),
            Rule(rf"Exit before auth from {_CLIENT}: ", "network.connection", _NOT_IN, "failure"),
            Rule(r"Exit before auth", "network.connection", _NOT_IN, "failure"),
            Rule(rf"Exit \((?P<actor>[^()]*)\) from {_CLIENT}: ", "authentication.logout", "signed out"),
            Rule(r"Exit \((?P<actor>[^()]*)\): ", "authentication.logout", "signed out"),
        ),
        "exit": (
            Rule(r"exit before auth \(user '(?P<actor>.*)', (?P<count>\d+) fails\): Max auth tries reached", "authentication.session.rejected", _TOO_MANY, "failure"),
            Rule(r"exit before auth", "network.connection", _NOT_IN, "failure"),
            Rule(r"exit after auth \((?P<actor>[^()]*)\): ", "authentication.logout", "signed out"),
        ),
        "Running": (Rule(r"Running in background", "system.service.started", "dropbear listens", "success"),),
        "Not": (Rule(r"Not backgrounding", "system.service.started", "dropbear listens", "success"),),
        "Early": (Rule(r"Early exit: ", "system.service.stopped", "dropbear stops"),),
        "Terminated": (Rule(r"Terminated by signal", "system.service.stopped", "dropbear stops"),),
        "Failed": (Rule(r"Failed listening on '(?P<port>[^']*)'", "system.service.failed", "dropbear cannot listen", "failure"),),
    },
    pam,
)  # fmt: skip


_DROPBEAR_STAMP = re.compile(r"\[\d+\] [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d ")
"""What dropbear writes before its messages where it logs to standard error, and a supervisor hands them to syslog."""


def _dropbear(text: str, data: dict[str, Any]) -> Found | None:
    stamp = _DROPBEAR_STAMP.match(text) if text.startswith("[") else None
    found = _DROPBEAR(text if stamp is None else text[stamp.end() :], data)
    if data.pop("unknown", None):
        data["user_known"] = False
    return found


_FTP_PROCESS = re.compile(r"\[pid \d+\] ")
_FTP = first_of(
    Rule(r"\[(?P<actor>.*)\] FAIL LOGIN: Client \"(?P<src>[^\"\s]+)\"(?:, \"User is not in the allow user list\.\")?$", "authentication.failure", SIGN_IN_REFUSED, "failure", voice="vsftpd"),
    Rule(r"\[(?P<actor>[^\]]*)\] OK LOGIN: Client \"(?P<src>[^\"\s]+)\"", "authentication.success", _IN, "success"),
    Rule(r"\[(?P<actor>[^\]]*)\] (?P<result>OK|FAIL) (?P<action>DOWNLOAD): Client \"(?P<src>[^\"\s]+)\"", "data.read", "file fetched"),
    Rule(r"\[(?P<actor>[^\]]*)\] (?P<result>OK|FAIL) (?P<action>UPLOAD|MKDIR|RENAME|CHMOD): Client \"(?P<src>[^\"\s]+)\"", "data.written", "file or folder written"),
    Rule(r"\[(?P<actor>[^\]]*)\] (?P<result>OK|FAIL) (?P<action>DELETE|RMDIR): Client \"(?P<src>[^\"\s]+)\"", "data.deleted", "file or folder deleted"),
    Rule(r"CONNECT: Client \"(?P<src>[^\"\s]+)\"", "network.connection", "connection made"),
)  # fmt: skip


def _vsftpd(text: str, data: dict[str, Any]) -> Found | None:
    process = _FTP_PROCESS.match(text)
    found = _FTP(text[process.end() :] if process else text, data) or pam(text, data)
    result = data.pop("result", None)
    if found is None or result is None:
        return found
    return found._replace(
        outcome="failure" if result == "FAIL" else "success", severity=3 if result == "FAIL" else found.severity
    )


_CHKPWD = by_first_word(
    {
        "password": (Rule(r"password check failed for user \((?P<actor>.*)\)$", "authentication", "password check failed", severity=2),),
        "check": (Rule(r"check pass; user unknown", "authentication", "password check for an unknown user"),),
        "account": (Rule(r"account (?P<actor>\S+) has (?:expired|password changed in future)", "access.denied", "account may not be used", "failure"),),
        "could": (Rule(r"could not (?:obtain|get) ", "authentication", "password check failed"),),
    },
    pam,
)  # fmt: skip
"""unix_chkpwd checks the password for pam_unix, which reports the attempt itself."""


def _sftp(text: str, data: dict[str, Any]) -> Found | None:
    return sshd(text, data) if text.startswith("session ") else None


PROGRAMS: dict[str, Reader] = {
    **privilege.PROGRAMS,
    "sshd": sshd,
    "sshd-session": sshd,
    "sshd-auth": sshd,
    "sftp-server": _sftp,
    "internal-sftp": _sftp,
    "dropbear": _dropbear,
    "login": _login,
    "remote": _login,
    "systemd-logind": _LOGIND,
    "elogind": _LOGIND,
    "elogind-daemon": _LOGIND,
    "unix_chkpwd": _CHKPWD,
    "vsftpd": _vsftpd,
}
OTHER: Reader = pam
"""PAM speaks with the name of whatever program called it."""
