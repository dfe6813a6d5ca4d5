"""What Sigma calls fields and log sources, and what they are called here.

`python -m agent.handlers.sigma_words` makes SIGMA.md of it.
"""

from collections.abc import Callable

FIELDS = {
    "user": "actor", "username": "actor", "user_name": "actor", "subjectusername": "actor", "accountname": "actor",
    "auid": "data.actor_uid",
    "targetusername": "data.target_user", "targetuser": "data.target_user",
    "sourceip": "src_ip", "src_ip": "src_ip", "source_ip": "src_ip", "ipaddress": "src_ip", "c_ip": "src_ip", "clientip": "src_ip",
    "sourceaddress": "src_ip", "sourceport": "data.port", "src_port": "data.port",
    "destinationip": "data.dst_ip", "dst_ip": "data.dst_ip", "destination_ip": "data.dst_ip",
    "destinationport": "data.dst_port", "dst_port": "data.dst_port",
    "image": "data.exe", "exe": "data.exe", "processname": "data.program", "program": "data.program", "comm": "data.comm",
    "commandline": "data.command", "command": "data.command", "processid": "data.pid", "pid": "data.pid",
    "computer": "data.host", "computername": "data.host", "hostname": "data.host", "host": "data.host",
    "targetfilename": "target", "objectname": "target", "eventtype": "type", "event_type": "type",
    "msg": "message", "status": "outcome", "result": "outcome", "authenticationmethod": "data.method",
    "value": "data.value", "oldvalue": "data.old", "unit": "data.unit", "order": "data.order",
}  # fmt: skip
"""In lower case, with _ for -. The names of our own fields (`type`, `target`, `data.…`) may be used as they are."""

AUDIT_FIELDS = {
    "type": "data.record_types", "key": "data.key", "exe": "data.exe", "comm": "data.comm", "name": "data.paths", "syscall": "data.syscall",
    "unit": "data.unit", "op": "data.op", "terminal": "data.terminal", "acct": "actor", "addr": "src_ip", "success": "data.success",
    "SYSCALL": "data.syscall", "uid": "data.uid", "euid": "data.euid", "auid": "data.actor_uid", "ses": "data.ses", "exit": "data.exit",
    "res": "data.res", "proctitle": "data.command", "cmd": "data.command",
    **{f"a{number}": f"data.args.{number}" for number in range(32)},
}  # fmt: skip
"""Fields of rules for auditd, as its records call them; they win over FIELDS, since `type` there is the type of a record."""

LISTS: dict[str, Callable[[str], str]] = {"data.record_types": str.upper, "data.paths": str}
"""Fields that hold a list, of which one has to be the value; with how the value is written there."""

_SSHD = "['sshd', 'sshd-session', 'sshd-auth']"
_SIGN_IN = (
    "['sshd', 'sshd-session', 'sshd-auth', 'sudo', 'su', 'login', 'systemd-logind', 'polkitd', 'pkexec', 'doas', 'passwd', 'chage',"
    " 'useradd', 'userdel', 'usermod', 'groupadd', 'groupdel', 'groupmod', 'gpasswd', 'chsh', 'chfn', 'newusers', 'unix_chkpwd',"
    " 'dropbear', 'CRON', 'cron', 'crond']"
)

LOGSOURCES = {
    "linewarden/-/-": "",
    "linux/-/-": "",
    "linux/-/auth": f"category in ['authentication', 'access', 'account'] or data.program in {_SIGN_IN}",
    "linux/-/sshd": f"data.program in {_SSHD}",
    "linux/-/sudo": "data.program == 'sudo'",
    "linux/-/cron": "data.program in ['CRON', 'cron', 'crond', 'CROND', 'anacron', 'crontab']",
    "linux/-/auditd": "data.record_types != null",
    "linux/-/syslog": "",
    "linux/-/vsftpd": "data.program == 'vsftpd'",
    "linux/-/clamav": "data.program in ['clamd', 'clamscan', 'freshclam']",
    "linux/process_creation/-": "type in ['system.process.started', 'access.privilege.used']",
    "-/process_creation/-": "type in ['system.process.started', 'access.privilege.used']",
    "-/authentication/-": "category == 'authentication'",
    "-/network_connection/-": "category == 'network'",
    "linux/network_connection/-": "category == 'network'",
    "-/firewall/-": "category == 'network'",
}
"""product/category/service → `where`. Product linewarden takes any of our categories, and the name of a source as service."""


def document() -> str:
    """The tables for people."""
    lines = [
        "# Sigma rules", "",
        '`[handlers.sigma] paths = ["/etc/linewarden/sigma"]` reads the rules below these folders (`pip install "linewarden[sigma]"`).',
        "A plain rule raises one alert for each key (`by`) and `cool_down_s`; `event_count` and `value_count` become `count`,",
        "`temporal_ordered` a `sequence`, `temporal` a `together`. The alert is `alert.sigma.<title>`, its severity the rule's level, its",
        "technique the first `attack.t…` tag, and it carries `rule`, `rule_id` and `tags`. `kill -HUP` reads the rules again.", "",
        "All modifiers of values are taken: `contains`, `startswith`, `endswith`, `all`, `cased`, `re` (RE2: no look-around, no",
        "back-reference), `cidr`, `exists`, `gt` to `lte`, `neq`, `fieldref`, `windash`, `base64`, `base64offset`, `wide`; keywords are",
        "searched in the original line, which handlers see even where it is not stored (`keep_raw`), and in the message of an event that",
        "has no line. Refused by name: placeholders, parts of timestamps, extended conditions, correlations of correlations, `lt`, `lte`,",
        "`eq` and `neq` of a correlation (known too late), fields or log sources that are neither below nor in `fields` and `logsources`,",
        "and rules that no event of an agent can match: for each rule `check` makes an event that fires it.",
        '`on_unsupported = "skip"` leaves such rules out; `check` then warns of each.', "",
        "Rules of our own for a production line are in [sigma_rules](sigma_rules).", "",
        "## Fields", "", "| Sigma | here |", "|---|---|",
    ]  # fmt: skip
    lines += [f"| `{name}` | `{ours}` |" for name, ours in FIELDS.items()]
    lines += [
        "",
        "Upper and lower case, `-` and `_` are the same. Our own names (`type`, `target`, `data.value`) may be used as they are.",
        "",
    ]
    lines += ["Rules for `service: auditd` name fields as the records do:", "", "| auditd | here |", "|---|---|"]
    lines += [
        f"| `{name}` | `{ours}`{' (a list)' if ours in LISTS else ''} |"
        for name, ours in AUDIT_FIELDS.items()
        if ".args." not in ours
    ]
    lines += ["| `a0`, `a1`, … `a31` | `data.args.0`, `data.args.1`, … (of EXECVE) |", ""]
    lines += ["## Log sources", "", "| product/category/service | events |", "|---|---|"]
    lines += [f"| `{name}` | {f'`{ours}`' if ours else 'all'} |" for name, ours in LOGSOURCES.items()]
    lines += ["", "`product: linewarden` takes any category of ours, and the name of a source as `service`.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(document(), end="")  # noqa: T201
