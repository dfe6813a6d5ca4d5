"""Messages about acting as another user: sudo, su, doas, pkexec, polkit.

Two fields of these lines are the local user's own text, the working directory and the command, and both may hold ` ; USER=root`. So who
acts and whether it was refused are read from the left, before TTY=, PWD= and HOST=; whatever stands there is the reason of a refusal.
"""

# ruff: noqa: E501  # tables: a pattern stands on one line

import re
from typing import Any

from agent.parsers.base import Found, Reader, Rule, by_first_word
from agent.parsers.pam import pam

_USED = "command run with another user's rights"
_BECAME = "became another user"
_SU_REFUSED = "su refused"

_FIELD_NAMES = "HOST|TTY|TSID|PWD|CWD|ROOT|CHROOT|USER|GROUP|ENV|COMMAND|EXIT|SIGNAL"
_FIELDS = re.compile(rf"(?:^|(?<= ; ))(?=(?:{_FIELD_NAMES})=)")
_SPLIT = re.compile(rf" ; (?=(?:{_FIELD_NAMES})=)")
_WRONG_PASSWORD = re.compile(r"(\d{1,9}) incorrect password attempts?$")
_NO_REFUSAL = ("problem with defaults entries", "unable to resolve host")
"""What sudo reports in the same form and then runs the command."""
_NAMES = {
    "TTY": "tty",
    "USER": "target_user",
    "PWD": "working_directory",
    "CWD": "working_directory",
    "GROUP": "target_group",
    "TSID": "session",
}


def sudo(text: str, data: dict[str, Any]) -> Found | None:
    """Read `bob : REASON ; TTY=pts/0 ; PWD=/home/bob ; USER=root ; COMMAND=/bin/ls`; without REASON it was allowed."""
    actor, colon, rest = text.lstrip().partition(" : ")
    if not colon:
        return pam(text, data) or _SUDO_OTHERS(text, data)
    if rest.startswith("(command continued) "):
        data["command"] = rest[20:]
        return Found("access", 1, message="rest of a long command", actor=actor)
    begin = _FIELDS.search(rest)
    if begin is None:
        return pam(text, data) or _SUDO_OTHERS(text, data)
    reason = rest[: begin.start()].removesuffix(" ; ").strip()
    # COMMAND comes last and may hold anything, " ; USER=" too.
    before, found, command = rest[begin.start() :].partition("COMMAND=")
    for part in _SPLIT.split(before):
        name, _, value = part.removesuffix(" ; ").removesuffix(" ;").partition("=")
        if name in _NAMES:
            data.setdefault(_NAMES[name], value.strip())
    if found:
        data["command"] = command
    return _sudo_judged(reason, actor, data)


def _sudo_judged(reason: str, actor: str, data: dict[str, Any]) -> Found:
    if not reason:
        return Found("access.privilege.used", 2, None, None, "success", _USED, actor)
    wrong = _WRONG_PASSWORD.match(reason)
    if wrong is not None:
        data["count"] = int(wrong[1])
        data["reason"] = "incorrect password"
        return Found("authentication.failure", 3, None, None, "failure", "sudo refused: incorrect password", actor)
    # A path or a host name of the user's choice may follow the words.
    data["reason"] = reason[:100]
    if reason.startswith(_NO_REFUSAL):
        return Found("access", 1, message="warning of sudo", actor=actor)
    return Found("access.denied", 3, None, None, "failure", "sudo refused", actor)


_SUDO_OTHERS = by_first_word(
    {
        "unable": (Rule(r"unable to (?:resolve host|send audit|get time|open|initialize|mkdir|stat)", "system", "warning of sudo"),),
        "PAM": (Rule(r"PAM (?:authentication|account management) error: (?P<reason>.*)$", "access.denied", "sudo refused: error of PAM", "failure"),),
        "error": (Rule(r"error initializing audit plugin", "system", "warning of sudo"),),
    }
)  # fmt: skip

_SU = by_first_word(
    {
        "Successful": (Rule(r"Successful su for (?P<target_user>.*) by (?P<actor>\S+)$", "access.privilege.used", _BECAME, "success", voice="line"),),
        "FAILED": (
            Rule(r"FAILED [sS][uU] \(to (?P<target_user>.*)\) (?P<actor>\S+) on (?P<tty>\S+)$", "authentication.failure", _SU_REFUSED, "failure", voice="line"),
            Rule(r"FAILED [sS][uU] for (?P<target_user>.*) by (?P<actor>\S+)$", "authentication.failure", _SU_REFUSED, "failure", voice="line"),
        ),
        "BAD": (Rule(r"BAD SU (?:from )?(?P<actor>\S+) to (?P<target_user>.+?)(?: (?:on|at) (?P<tty>\S+))?$", "authentication.failure", _SU_REFUSED, "failure", voice="line"),),
        "failed:": (Rule(r"failed: (?P<tty>\S+) changing from (?P<actor>\S+) to (?P<target_user>.+)$", "authentication.failure", _SU_REFUSED, "failure", voice="line"),),
        "(to": (Rule(r"\(to (?P<target_user>.*)\) (?P<actor>\S+) on (?P<tty>\S+)$", "access.privilege.used", _BECAME, "success", voice="line"),),
        "+": (Rule(r"\+ (?P<tty>\S+) (?P<actor>[^:\s]+)[:-](?P<target_user>.+)$", "access.privilege.used", _BECAME, "success", voice="sign"),),
        "-": (Rule(r"- (?P<tty>\S+) (?P<actor>[^:\s]+)[:-](?P<target_user>.+)$", "authentication.failure", _SU_REFUSED, "failure", voice="sign"),),
        "pam_authenticate:": (Rule(r"pam_authenticate: ", "authentication", "password check failed"),),
        "No": (Rule(r"No passwd entry for user '(?P<target_user>.*)'$", "authentication", "su to an unknown user", severity=2),),
        "from": (Rule(r"from (?P<actor>\S+) to (?P<target_user>\S+) at (?P<tty>\S+)$", "access.privilege.used", _BECAME, "success", voice="line"),),
        "ignore": (Rule(r"ignor(?:e|ing) ", "system", "warning of su"),),
    },
    pam,
)  # fmt: skip
_SU_BSD = Rule(r"(?P<actor>[^\s:;()]+) to (?P<target_user>\S+) on (?P<tty>/dev/\S+)$", "access.privilege.used", _BECAME, "success", voice="line")  # fmt: skip
_SU_SOLARIS = Rule(r"'su (?P<target_user>.*)' (?P<result>failed|succeeded) for (?P<actor>\S+) on (?P<tty>\S+)$", "access.privilege.used", _BECAME, "success", voice="line")  # fmt: skip


def su(text: str, data: dict[str, Any]) -> Found | None:
    """Read a message of the su of util-linux, shadow, BusyBox, the BSDs, Solaris or AIX."""
    found = _SU(text, data)
    if found is not None:
        return found
    found = _SU_SOLARIS.read(text, data) or _SU_BSD.read(text, data)
    if data.pop("result", "") == "failed" and found is not None:
        return found._replace(type="authentication.failure", severity=3, outcome="failure", message=_SU_REFUSED)
    return found


_DOAS = (
    Rule(r"failed auth for (?P<actor>\S+)$", "authentication.failure", "doas refused", "failure"),
    Rule(r"(?:failed command|command not permitted) for (?P<actor>\S+): (?P<command>.*)$", "access.denied", "doas refused", "failure"),
    Rule(r"(?P<actor>\S+) ran command as (?P<target_user>\S+): (?P<command>.*)$", "access.privilege.used", _USED, "success"),
    Rule(r"(?P<actor>\S+) ran command (?P<command>.*) as (?P<target_user>\S+) from (?P<working_directory>.*)$", "access.privilege.used", _USED, "success"),
    Rule(r"(?P<actor>\S+) ran command (?P<command>.*)$", "access.privilege.used", _USED, "success"),
)  # fmt: skip


def _doas(text: str, data: dict[str, Any]) -> Found | None:
    for rule in _DOAS:
        found = rule.read(text, data)
        if found is not None:
            return found
    return pam(text, data)


_PKEXEC = (
    Rule(r"(?P<actor>[^:\s]+): Executing command (?P<rest>\[.*)$", "access.privilege.used", _USED, "success"),
    Rule(r"(?P<actor>[^:\s]+): Error executing command as another user: (?P<reason>Not authorized|Request dismissed|No authentication agent found)\.? ?(?P<rest>\[.*)?$", "access.denied", "pkexec refused", "failure"),
    Rule(r"(?P<actor>[^:\s]+): Error executing command as another user(?P<rest>)", "access.denied", "pkexec refused", "failure"),
    Rule(r"(?P<actor>[^:\s]+): The value for (?:the )?(?P<reason>SHELL variable was not found|environment variable \S+ contains suspicious content)[^\[]*(?P<rest>\[.*)?$", "access.denied", "pkexec refused: environment made to exploit it", "failure", 4),
)  # fmt: skip
_BRACKETS = re.compile(r"\[(USER|TTY|CWD)=([^\]]*)\] ?|\[(COMMAND)=(.*)\]$", re.DOTALL)


def _pkexec(text: str, data: dict[str, Any]) -> Found | None:
    for rule in _PKEXEC:
        found = rule.read(text, data)
        if found is None:
            continue
        names = {**_NAMES, "COMMAND": "command"}
        for match in _BRACKETS.finditer(data.pop("rest", "")):
            data.setdefault(names[match[1] or match[3]], match[2] if match[1] else match[4])
        return found
    return pam(text, data)


_POLKIT = by_first_word(
    {
        "Operator": (
            Rule(r"Operator of \S+ successfully authenticated as unix-user:(?P<target_user>\S+) to gain \S+ authorization for action (?P<action>\S+) for .*\(owned by unix-user:(?P<actor>[^()\s]+)\)$", "access.privilege.used", "right granted by polkit", "success"),
            Rule(r"Operator of \S+ FAILED to authenticate to gain authorization for action (?P<action>\S+) for .*\(owned by unix-user:(?P<actor>[^()\s]+)\)$", "access.denied", "right refused by polkit", "failure"),
        ),
        "Registered": (Rule(r"Registered Authentication Agent for ", "access", "authentication agent registered"),),
        "Unregistered": (Rule(r"Unregistered Authentication Agent for ", "access", "authentication agent unregistered"),),
        "Loading": (Rule(r"Loading rules from ", "system", "polkit reads its rules"),),
        "Reloading": (Rule(r"Reloading rules", "system", "polkit reads its rules"),),
        "Finished": (Rule(r"Finished loading, compiling and executing", "system", "polkit reads its rules"),),
        "Acquired": (Rule(r"Acquired the name ", "system.service.started", "polkit started", "success"),),
    },
    pam,
)  # fmt: skip

PROGRAMS: dict[str, Reader] = {
    "sudo": sudo,
    "su": su,
    "doas": _doas,
    "pkexec": _pkexec,
    "polkitd": _POLKIT,
}
