"""What Sigma calls fields and log sources, and what they are called here.

`python -m agent.handlers.sigma_words` makes SIGMA.md of it.
"""

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

LOGSOURCES = {
    "linewarden/-/-": "",
    "linux/-/-": "",
    "linux/-/auth": "category in ['authentication', 'access', 'account']",
    "linux/-/sshd": "category == 'authentication' and data.program == 'sshd'",
    "linux/-/sudo": "type in ['access.privilege.used', 'access.denied']",
    "linux/-/auditd": "category in ['system', 'access', 'account', 'authentication', 'security', 'configuration']",
    "linux/-/syslog": "",
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
        "looked for in `message` and `raw`. Refused by name: placeholders, parts of timestamps, extended conditions, correlations of",
        "correlations, `lt`, `lte`, `eq` and `neq` of a correlation (known too late), and fields or log sources that are",
        'neither below nor in `fields` and `logsources`. `on_unsupported = "skip"` leaves such rules out; `check` then warns of each.', "",
        "Rules of our own for a production line are in [sigma_rules](sigma_rules).", "",
        "## Fields", "", "| Sigma | here |", "|---|---|",
    ]  # fmt: skip
    lines += [f"| `{name}` | `{ours}` |" for name, ours in FIELDS.items()]
    lines += [
        "",
        "Upper and lower case, `-` and `_` are the same. Our own names (`type`, `target`, `data.value`) may be used as they are.",
        "",
    ]
    lines += ["## Log sources", "", "| product/category/service | events |", "|---|---|"]
    lines += [f"| `{name}` | {f'`{ours}`' if ours else 'all'} |" for name, ours in LOGSOURCES.items()]
    lines += ["", "`product: linewarden` takes any category of ours, and the name of a source as `service`.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(document(), end="")  # noqa: T201
