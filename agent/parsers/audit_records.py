"""The kinds of audit records, and what one record says: shared by audit.log, the kernel's own print and what auditd hands to syslog.

Numbers and names are those of Linux's `audit.h` and of `audit-records.h` of the audit project.
What stands in a record is read by audit_fields.py.
"""

# ruff: noqa: E501  # tables

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from agent.parsers.audit_fields import NOBODY, fields_of
from agent.parsers.base import Found, ip_of, put_pid
from agent.wire.taxonomy import default_severity


class Kind(NamedTuple):
    """What is known of a kind of record."""

    name: str
    type: str
    message: str


_TABLE = """
1005 USER | system | message to the audit log
1006 LOGIN | authentication | session given to a user
1100 USER_AUTH | authentication.success | sign-in checked
1101 USER_ACCT | authentication | account checked
1102 USER_MGMT | account.changed | account changed
1103 CRED_ACQ | authentication | credentials acquired
1104 CRED_DISP | authentication | credentials given up
1105 USER_START | authentication.session.opened | session opened
1106 USER_END | authentication.session.closed | session closed
1107 USER_AVC | security.policy.violated | a mandatory access rule refused something
1108 USER_CHAUTHTOK | account.password.changed | password or account data changed
1109 USER_ERR | authentication | error at sign-in
1110 CRED_REFR | authentication | credentials refreshed
1111 USYS_CONFIG | configuration.changed | system configuration changed
1112 USER_LOGIN | authentication.session.opened | sign-in
1113 USER_LOGOUT | authentication.logout | signed out
1114 ADD_USER | account.created | account created
1115 DEL_USER | account.deleted | account deleted
1116 ADD_GROUP | account.group.changed | group created
1117 DEL_GROUP | account.group.changed | group deleted
1118 DAC_CHECK | access | access right checked
1119 CHGRP_ID | access.privilege.used | group of a session changed
1120 TEST | system | test of the audit log
1121 TRUSTED_APP | system | message of a trusted program
1122 USER_SELINUX_ERR | security | error of mandatory access control
1123 USER_CMD | access.privilege.used | command run with another user's rights
1124 USER_TTY | access | terminal input recorded
1125 CHUSER_ID | access.privilege.used | user of a session changed
1126 GRP_AUTH | authentication.success | group password checked
1127 SYSTEM_BOOT | system.booted | the computer starts
1128 SYSTEM_SHUTDOWN | system.shutdown | the computer stops
1129 SYSTEM_RUNLEVEL | system | run level changed
1130 SERVICE_START | system.service.started | service started
1131 SERVICE_STOP | system.service.stopped | service stopped
1132 GRP_MGMT | account.group.changed | group changed
1133 GRP_CHAUTHTOK | account.group.changed | group password changed
1134 MAC_CHECK | access | mandatory access right checked
1135 ACCT_LOCK | account.changed | account locked
1136 ACCT_UNLOCK | account.changed | account unlocked
1137 USER_DEVICE | security.usb.attached | removable device seen or its authorisation changed
1138 SOFTWARE_UPDATE | configuration.changed | software installed, updated or removed
1200 DAEMON_START | system.service.started | the audit daemon started
1201 DAEMON_END | security.logging.stopped | the audit daemon stopped
1202 DAEMON_ABORT | security.logging.stopped | the audit daemon gave up
1203 DAEMON_CONFIG | configuration.changed | the audit daemon's configuration changed
1204 DAEMON_RECONFIG | configuration.changed | the audit daemon's configuration changed
1205 DAEMON_ROTATE | system | the audit log was rotated
1206 DAEMON_RESUME | system.service.started | the audit daemon writes again
1207 DAEMON_ACCEPT | network.connection | the audit daemon accepted a connection
1208 DAEMON_CLOSE | network.connection | the audit daemon closed a connection
1209 DAEMON_ERR | system.service.failed | error of the audit daemon
1300 SYSCALL | access | watched system call
1305 CONFIG_CHANGE | configuration.changed | audit rules changed
1309 EXECVE | system.process.started | program run
1312 MQ_OPEN | access | message queue opened
1313 MQ_SENDRECV | access | message queue used
1314 MQ_NOTIFY | access | message queue used
1315 MQ_GETSETATTR | access | message queue used
1303 IPC | access | shared memory or semaphore used
1311 IPC_SET_PERM | access | rights of shared memory changed
1318 OBJ_PID | access | signal sent to a process
1319 TTY | access | terminal input recorded
1321 BPRM_FCAPS | access | program run with capabilities
1322 CAPSET | access | capabilities of a process changed
1323 MMAP | access | memory mapped
1324 NETFILTER_PKT | network.connection | packet seen by the firewall
1325 NETFILTER_CFG | configuration.changed | firewall changed
1326 SECCOMP | security.policy.violated | a system call was refused
1328 FEATURE_CHANGE | configuration.changed | audit feature changed
1329 REPLACE | security | another audit daemon asked to take over
1330 KERN_MODULE | configuration.changed | kernel module loaded
1331 FANOTIFY | access | file access judged by a scanner
1332 TIME_INJOFFSET | system.clock.stepped | the clock was set
1333 TIME_ADJNTPVAL | system | the clock is being steered
1334 BPF | system | BPF program loaded or unloaded
1335 EVENT_LISTENER | system | program listens to audit records
1336 URINGOP | access | watched operation of io_uring
1337 OPENAT2 | access | file opened
1338 DM_CTRL | configuration.changed | block device mapping changed
1339 DM_EVENT | system | event of a block device mapping
1400 AVC | security.policy.violated | a mandatory access rule refused something
1401 SELINUX_ERR | security | error of mandatory access control
1402 AVC_PATH | access | path of a mandatory access decision
1403 MAC_POLICY_LOAD | configuration.changed | mandatory access rules loaded
1404 MAC_STATUS | configuration.changed | mandatory access control switched
1405 MAC_CONFIG_CHANGE | configuration.changed | mandatory access control configured
1406 MAC_UNLBL_ALLOW | configuration.changed | labels of the network changed
1407 MAC_CIPSOV4_ADD | configuration.changed | labels of the network changed
1408 MAC_CIPSOV4_DEL | configuration.changed | labels of the network changed
1409 MAC_MAP_ADD | configuration.changed | labels of the network changed
1410 MAC_MAP_DEL | configuration.changed | labels of the network changed
1411 MAC_IPSEC_ADDSA | configuration.changed | labels of the network changed
1412 MAC_IPSEC_DELSA | configuration.changed | labels of the network changed
1413 MAC_IPSEC_ADDSPD | configuration.changed | labels of the network changed
1414 MAC_IPSEC_DELSPD | configuration.changed | labels of the network changed
1415 MAC_IPSEC_EVENT | security | event of a labelled IPsec connection
1416 MAC_UNLBL_STCADD | configuration.changed | labels of the network changed
1417 MAC_UNLBL_STCDEL | configuration.changed | labels of the network changed
1418 MAC_CALIPSO_ADD | configuration.changed | labels of the network changed
1419 MAC_CALIPSO_DEL | configuration.changed | labels of the network changed
1420 IPE_ACCESS | security.policy.violated | integrity policy refused a program
1421 IPE_CONFIG_CHANGE | configuration.changed | integrity policy changed
1422 IPE_POLICY_LOAD | configuration.changed | integrity policy loaded
1423 LANDLOCK_ACCESS | security.policy.violated | sandbox refused something
1424 LANDLOCK_DOMAIN | system | sandbox made or ended
1500 APPARMOR | security.policy.violated | AppArmor refused something
1501 APPARMOR_AUDIT | access | AppArmor recorded an operation
1502 APPARMOR_ALLOWED | access | AppArmor would refuse this when enforcing
1503 APPARMOR_DENIED | security.policy.violated | AppArmor refused something
1504 APPARMOR_HINT | access | AppArmor recorded an operation
1505 APPARMOR_STATUS | configuration.changed | AppArmor profile loaded, replaced or removed
1506 APPARMOR_ERROR | security | error of AppArmor
1507 APPARMOR_KILL | security.policy.violated | AppArmor ended a program
1700 ANOM_PROMISCUOUS | network.scan | a network card listens to everything
1701 ANOM_ABEND | application.error | program crashed
1702 ANOM_LINK | access.denied | suspicious link not followed
1703 ANOM_CREAT | access.denied | suspicious file not opened
1800 INTEGRITY_DATA | security.policy.violated | integrity of a file could not be proven
1801 INTEGRITY_METADATA | security.policy.violated | integrity of a file could not be proven
1802 INTEGRITY_STATUS | security | state of integrity measurement
1803 INTEGRITY_HASH | security | integrity measurement lacks its hash
1804 INTEGRITY_PCR | security | integrity measurement cannot be relied on
1805 INTEGRITY_RULE | system | rule of integrity measurement met
1806 INTEGRITY_EVM_XATTR | configuration.changed | attributes under integrity protection changed
1807 INTEGRITY_POLICY_RULE | configuration.changed | integrity policy changed
2000 KERNEL | system | the kernel's audit began
2100 ANOM_LOGIN_FAILURES | authentication.lockout | too many refused sign-ins
2101 ANOM_LOGIN_TIME | access.denied | sign-in at a time that is not allowed
2102 ANOM_LOGIN_SESSIONS | access.denied | too many sessions at once
2103 ANOM_LOGIN_ACCT | access.denied | sign-in to an account that is not allowed
2104 ANOM_LOGIN_LOCATION | access.denied | sign-in from a place that is not allowed
2105 ANOM_MAX_DAC | security | too many refused accesses
2106 ANOM_MAX_MAC | security | too many refused accesses
2107 ANOM_AMTU_FAIL | security | self-test of the machine failed
2108 ANOM_RBAC_FAIL | access.denied | role does not allow this
2109 ANOM_RBAC_INTEGRITY_FAIL | security | integrity of the roles could not be proven
2110 ANOM_CRYPTO_FAIL | security | cryptography failed
2111 ANOM_ACCESS_FS | access | unusual access to a file or folder
2112 ANOM_EXEC | system.process.started | unusual program run
2113 ANOM_MK_EXEC | access | file made executable
2114 ANOM_ADD_ACCT | account.created | account created in an unusual way
2115 ANOM_DEL_ACCT | account.deleted | account deleted in an unusual way
2116 ANOM_MOD_ACCT | account.changed | account changed in an unusual way
2117 ANOM_ROOT_TRANS | access.privilege.used | user became root
2118 ANOM_LOGIN_SERVICE | security | sign-in by a service account
2119 ANOM_LOGIN_ROOT | security | sign-in by root
2120 ANOM_ORIGIN_FAILURES | authentication.lockout | too many refused sign-ins from an address
2121 ANOM_SESSION | security | unusual session
2200 RESP_ANOMALY | security | answer to an anomaly
2201 RESP_ALERT | security | alert of the audit system
2202 RESP_KILL_PROC | security | process ended as an answer
2203 RESP_TERM_ACCESS | security | session ended as an answer
2204 RESP_ACCT_REMOTE | authentication.lockout | account locked for remote sign-in
2205 RESP_ACCT_LOCK_TIMED | authentication.lockout | account locked after refused sign-ins
2206 RESP_ACCT_UNLOCK_TIMED | account.changed | account unlocked after its time
2207 RESP_ACCT_LOCK | authentication.lockout | account locked after refused sign-ins
2208 RESP_TERM_LOCK | authentication.lockout | terminal locked
2209 RESP_SEBOOL | configuration.changed | SELinux switch set as an answer
2210 RESP_EXEC | security | program run as an answer
2211 RESP_SINGLE | system.shutdown | the computer goes to single-user mode
2212 RESP_HALT | system.shutdown | the computer stops
2213 RESP_ORIGIN_BLOCK | security | address blocked as an answer
2214 RESP_ORIGIN_BLOCK_TIMED | security | address blocked as an answer
2215 RESP_ORIGIN_UNBLOCK_TIMED | security | address unblocked after its time
2300 USER_ROLE_CHANGE | access.privilege.used | role of a session changed
2301 ROLE_ASSIGN | configuration.role.changed | role given to a user
2302 ROLE_REMOVE | configuration.role.changed | role taken from a user
2303 LABEL_OVERRIDE | access.privilege.used | label overridden
2304 LABEL_LEVEL_CHANGE | configuration.changed | level of a label changed
2305 USER_LABELED_EXPORT | data.exported | data exported with its label
2306 USER_UNLABELED_EXPORT | data.exported | data exported without a label
2307 DEV_ALLOC | access | device given to a user
2308 DEV_DEALLOC | access | device taken from a user
2309 FS_RELABEL | configuration.changed | file system labelled again
2310 USER_MAC_POLICY_LOAD | configuration.changed | mandatory access rules loaded
2311 ROLE_MODIFY | configuration.role.changed | role changed
2312 USER_MAC_CONFIG_CHANGE | configuration.changed | mandatory access control configured
2313 USER_MAC_STATUS | configuration.changed | mandatory access control switched
2400 CRYPTO_TEST_USER | system | self-test of cryptography
2401 CRYPTO_PARAM_CHANGE_USER | configuration.changed | cryptographic parameters changed
2402 CRYPTO_LOGIN | authentication.success | sign-in to a cryptographic device
2403 CRYPTO_LOGOUT | authentication.logout | signed out of a cryptographic device
2404 CRYPTO_KEY_USER | security.channel.opened | key agreed
2405 CRYPTO_FAILURE_USER | security | cryptographic operation failed
2406 CRYPTO_REPLAY_USER | security | replay of encrypted messages
2407 CRYPTO_SESSION | security.channel.opened | cipher agreed
2408 CRYPTO_IKE_SA | security.channel.opened | IKE connection
2409 CRYPTO_IPSEC_SA | security.channel.opened | IPsec connection
2500 VIRT_CONTROL | system.service.started | virtual machine started or stopped
2501 VIRT_RESOURCE | system | device given to a virtual machine
2502 VIRT_MACHINE_ID | system | label given to a virtual machine
2503 VIRT_INTEGRITY_CHECK | security | integrity of a virtual machine checked
2504 VIRT_CREATE | system | virtual machine made
2505 VIRT_DESTROY | system | virtual machine removed
2506 VIRT_MIGRATE_IN | system | virtual machine moved here
2507 VIRT_MIGRATE_OUT | system | virtual machine moved away
"""


def _kinds() -> tuple[dict[str, Kind], dict[str, str]]:
    kinds: dict[str, Kind] = {}
    numbers: dict[str, str] = {}
    for line in _TABLE.strip().splitlines():
        head, type_, message = (cell.strip() for cell in line.split("|"))
        number, _, name = head.partition(" ")
        kinds[name] = Kind(name, type_, message)
        numbers[number] = name
    return kinds, numbers


KINDS, _NUMBERS = _kinds()
_UNKNOWN = re.compile(r"UNKNOWN\[(\d{4})\]")


def kind_name(text: str) -> str:
    """Return the name of a record kind that is written as a name, as `1400`, or as `UNKNOWN[1400]`."""
    if text in KINDS:
        return text
    number = _UNKNOWN.fullmatch(text)
    return _NUMBERS.get(number[1] if number else text, text)


_NOTHING = frozenset({"", "?", "(null)", "(none)", "(unknown)", "(invalid user)", *NOBODY})


# What it says ----------------------------------------------------------------------------------------------------------------------

VIRTUAL = ("veth", "vnet", "tap", "docker", "br-", "virbr", "lxc", "cali", "cni", "fwpr", "fwln", "vmbr")
"""Interfaces that a bridge of containers or virtual machines lets listen to everything as a matter of course."""
_OUTCOMES = {
    "success": "success",
    "yes": "success",
    "1": "success",
    "failed": "failure",
    "fail": "failure",
    "no": "failure",
    "0": "failure",
}
_FAILED: dict[str, tuple[str, str]] = {
    "USER_AUTH": ("authentication.failure", "sign-in refused"),
    "GRP_AUTH": ("authentication.failure", "group password refused"),
    "CRYPTO_LOGIN": ("authentication.failure", "sign-in refused"),
    "USER_ACCT": ("access.denied", "account may not be used"),
    "USER_LOGIN": ("authentication", "sign-in refused"),
    "USER_START": ("authentication", "session refused"),
    "SERVICE_START": ("system.service.failed", "service could not be started"),
    "DAEMON_START": ("system.service.failed", "the audit daemon could not be started"),
    "DAEMON_RESUME": ("system.service.failed", "the audit daemon could not go on"),
    "VIRT_CONTROL": ("system.service.failed", "virtual machine could not be started or stopped"),
    "CRYPTO_TEST_USER": ("security", "self-test of cryptography failed"),
}
"""What an event is where its outcome is failure. USER_LOGIN follows the USER_AUTH that is already counted as the refused attempt."""
_ALWAYS_REFUSED = frozenset(
    {"SECCOMP", "APPARMOR", "APPARMOR_DENIED", "APPARMOR_KILL", "IPE_ACCESS", "LANDLOCK_ACCESS", "INTEGRITY_DATA", "INTEGRITY_METADATA",
     "ANOM_LOGIN_TIME", "ANOM_LOGIN_SESSIONS", "ANOM_LOGIN_ACCT", "ANOM_LOGIN_LOCATION", "ANOM_RBAC_FAIL", "ANOM_LINK", "ANOM_CREAT",
     "CRYPTO_REPLAY_USER", "CRYPTO_FAILURE_USER", "SELINUX_ERR", "USER_SELINUX_ERR", "DAEMON_ERR"}
)  # fmt: skip
"""Kinds that exist only for what was refused or went wrong, whatever `res` says."""
_ABOUT_ANOTHER = frozenset(
    {"ADD_USER", "DEL_USER", "USER_MGMT", "ACCT_LOCK", "ACCT_UNLOCK", "USER_CHAUTHTOK", "ADD_GROUP", "DEL_GROUP", "GRP_MGMT",
     "GRP_CHAUTHTOK", "CHUSER_ID", "CHGRP_ID", "ROLE_ASSIGN", "ROLE_REMOVE", "ROLE_MODIFY", "ANOM_ADD_ACCT", "ANOM_DEL_ACCT", "ANOM_MOD_ACCT",
     "RESP_ACCT_LOCK", "RESP_ACCT_LOCK_TIMED", "RESP_ACCT_UNLOCK_TIMED", "RESP_ACCT_REMOTE"}
)  # fmt: skip
"""Kinds whose acct, id or grp is what was changed; who changed it is the user who signed in (auid)."""
_OF_GROUPS = frozenset({"ADD_GROUP", "DEL_GROUP", "GRP_MGMT", "GRP_CHAUTHTOK", "CHGRP_ID"})
_BY_ANOTHER = ("su", "sudo", "doas", "pkexec", "runuser", "chfn", "chsh", "passwd", "polkit-agent-helper-1")
"""Programs that check the password of an account other than the one that acts."""
_EMPTY = frozenset({"", "?", "(null)", "(none)", *NOBODY})
_DATA = frozenset({
    "tty", "terminal", "ses", "key", "unit", "op", "success", "exit", "syscall", "comm", "exe", "hostname", "uid", "euid", "auid", "res", "reason",
    "audit_enabled", "operation", "profile", "dev", "prom", "sig", "sw", "sw_type", "enforcing", "old_enforcing", "cause", "class", "requested_mask",
    "denied_mask", "permissive", "scontext", "tcontext", "tclass", "vm", "table", "family", "device",
})  # fmt: skip


def put_fields(fields: dict[str, str], data: dict[str, Any]) -> None:
    """Put the fields of a record that are kept into `data`."""
    data.update({name: value for name, value in fields.items() if name in _DATA and value not in _EMPTY})
    put_pid(data, fields.get("pid", ""))
    if "auid" in data:
        data["actor_uid"] = data.pop("auid")


def judge(name: str, kind: Kind, fields: dict[str, str], body: str, data: dict[str, Any]) -> Found:
    """Return what a record says: type, outcome, who acted, from where."""
    outcome = _OUTCOMES.get(fields.get("res", fields.get("success", "")))
    severity = 0
    type_, message = kind.type, kind.message
    if name in ("AVC", "USER_AVC") or name.startswith("APPARMOR"):
        type_, message, outcome, severity = _mandatory(name, kind, fields, body, data)
    elif name in _ALWAYS_REFUSED:
        outcome = "failure"
    elif outcome == "failure" and name in _FAILED:
        type_, message = _FAILED[name]
    else:
        type_, message, severity = _detail(name, kind, fields)
    actor = _actor(name, fields, data)
    src_ip = ip_of(fields.get("addr", "?")) or (ip_of(fields["rhost"]) if "rhost" in fields else None)
    voice = None
    exe = fields.get("exe", "").rpartition("/")[2]
    if name == "USER_AUTH" and exe.startswith("sshd"):
        voice = "pam" if fields.get("op", "").startswith("PAM:") else "sshd:" + fields.get("op", "")
    severity = severity or default_severity(type_, outcome)
    return Found(type_, severity, src_ip, _target(name, fields), outcome, message, actor, voice)


def _target(name: str, fields: dict[str, str]) -> str | None:
    if name.startswith(("AVC", "APPARMOR")):
        return fields.get("profile") or fields.get("name") or None
    return fields.get("unit") or (fields.get("dev") if name == "ANOM_PROMISCUOUS" else None) or fields.get("sw") or None


def _actor(name: str, fields: dict[str, str], data: dict[str, Any]) -> str | None:
    """Return who acted; the account that it was done to goes into `data`."""
    account: str | None = fields.get("acct", "")
    if account in _NOTHING:
        account = fields.get("ID", "")
    account = None if account in _NOTHING else account
    signed_in: str | None = fields.get("AUID", "")
    signed_in = None if signed_in in _NOTHING else signed_in
    if name in _ABOUT_ANOTHER:
        group = fields.get("grp") or (account if name in _OF_GROUPS else None)
        if group and group not in _NOTHING:
            data["group"] = group
        if account and not (name in _OF_GROUPS and group == account):
            data["target_user"] = account
        if fields.get("id", "").isdecimal() and fields["id"] not in NOBODY:
            data["target_gid" if name in _OF_GROUPS else "target_uid"] = fields["id"]
        return signed_in
    if name.startswith(("USER_", "CRED_", "GRP_")) and fields.get("exe", "").rpartition("/")[2] in _BY_ANOTHER:
        if account and name != "USER_CMD":
            data["target_user"] = account
        return signed_in
    return account or signed_in


class _Detail(NamedTuple):
    """What a record says beyond its kind, where its fields are such. `severity` 0: the usual one."""

    kinds: frozenset[str]
    holds: Callable[[dict[str, str]], bool]
    type: str
    message: str
    severity: int = 0


def _op_has(*words: str) -> Callable[[dict[str, str]], bool]:
    return lambda fields: any(word in fields.get("op", "") for word in words)


def _set_off(fields: dict[str, str]) -> bool:
    """Whether auditing was on before: at the start of the computer it is not."""
    return fields.get("audit_enabled") == "0" and fields.get("old", "1") != "0"


_DETAILS = (
    _Detail(frozenset({"USER_CHAUTHTOK", "USER_MGMT"}), lambda f: "group" in f.get("op", "") and "primary" not in f["op"], "account.group.changed", "membership of a group changed"),
    _Detail(frozenset({"USER_CHAUTHTOK"}), lambda f: f.get("op", "").startswith("display"), "account", "account looked at", 1),
    _Detail(frozenset({"USER_CHAUTHTOK"}), lambda f: not _op_has("passw", "chauthtok", "PAM")(f), "account.changed", "account changed"),
    _Detail(frozenset({"CONFIG_CHANGE"}), _set_off, "security.logging.stopped", "auditing was switched off"),
    _Detail(frozenset({"MAC_STATUS"}), lambda f: f.get("enforcing") == "0", "configuration.changed", "mandatory access control no longer enforces", 4),
    _Detail(frozenset({"ANOM_PROMISCUOUS"}), lambda f: f.get("prom") == "0" or f.get("dev", "").startswith(VIRTUAL), "network", "a network card begins or ceases to listen to everything", 1),
    _Detail(frozenset({"CRYPTO_KEY_USER"}), _op_has("destroy"), "network.connection", "key of a connection discarded"),
    _Detail(frozenset({"CRYPTO_IKE_SA", "CRYPTO_IPSEC_SA"}), _op_has("destroy"), "network.connection", "encrypted connection ended"),
    _Detail(frozenset({"VIRT_CONTROL"}), _op_has("stop"), "system.service.stopped", "virtual machine stopped"),
    _Detail(frozenset({"FANOTIFY"}), lambda f: f.get("resp") == "2", "access.denied", "file access refused by a scanner", 3),
)  # fmt: skip
_WITH_DETAIL = frozenset().union(*(detail.kinds for detail in _DETAILS))


def _detail(name: str, kind: Kind, fields: dict[str, str]) -> tuple[str, str, int]:
    """Return type, message and severity (0: the usual one) where the fields of a record say more than its kind."""
    if name in _WITH_DETAIL:
        for detail in _DETAILS:
            if name in detail.kinds and detail.holds(fields):
                return detail.type, detail.message, detail.severity
    return kind.type, kind.message, 0


_AVC = re.compile(r"avc: +(denied|granted|received) +(?:\{ ?([^{}]*?) ?\}|(\w+) notice)")
_APPARMOR = re.compile(r"apparmor=\"([A-Z]+)\"")
_APPARMOR_SAYS: dict[str, tuple[str, str, str | None, int]] = {
    "DENIED": ("security.policy.violated", "AppArmor refused something", "failure", 0),
    "KILLED": ("security.policy.violated", "AppArmor ended a program", "failure", 0),
    "ALLOWED": ("access", "AppArmor would refuse this when enforcing", "success", 2),
    "AUDIT": ("access", "AppArmor recorded an operation", "success", 1),
    "HINT": ("access", "AppArmor recorded an operation", None, 1),
    "STATUS": ("configuration.changed", "AppArmor profile loaded, replaced or removed", "success", 2),
    "ERROR": ("security", "error of AppArmor", "failure", 3),
}
_APPARMOR_KINDS = {
    "APPARMOR": "DENIED",
    "APPARMOR_DENIED": "DENIED",
    "APPARMOR_KILL": "KILLED",
    "APPARMOR_ALLOWED": "ALLOWED",
    "APPARMOR_AUDIT": "AUDIT",
    "APPARMOR_HINT": "HINT",
    "APPARMOR_STATUS": "STATUS",
    "APPARMOR_ERROR": "ERROR",
}


_SELINUX_SAYS: dict[str, tuple[str, str, str | None, int]] = {
    "denied": ("security.policy.violated", "a mandatory access rule refused something", "failure", 0),
    "permitted": ("access", "a mandatory access rule would refuse this when enforcing", "success", 2),
    "granted": ("access", "a mandatory access rule allowed and recorded something", "success", 1),
    "received": ("configuration.changed", "mandatory access rules or mode changed", "success", 2),
    "off": ("configuration.changed", "mandatory access control no longer enforces", "success", 4),
}


def _mandatory(
    name: str, kind: Kind, fields: dict[str, str], body: str, data: dict[str, Any]
) -> tuple[str, str, str | None, int]:
    """Return what AppArmor or SELinux decided: not every AVC is a refusal."""
    apparmor = _APPARMOR.match(fields.get("avc", body))
    verdict = apparmor[1] if apparmor is not None else _APPARMOR_KINDS.get(name)
    if verdict is not None:
        return _APPARMOR_SAYS.get(verdict, ("access", kind.message, None, 1))
    avc = _AVC.match(fields.get("avc", body).lstrip())
    if avc is None:
        return _SELINUX_SAYS["denied"]
    verdict, operation, notice = avc.groups()
    if operation:
        data["operation"] = operation
    if verdict == "denied" and fields.get("permissive") == "1":
        verdict = "permitted"
    elif notice == "setenforce" and "enforcing=0" in fields.get("avc", body):
        verdict = "off"
    return _SELINUX_SAYS[verdict]


def read_printed(kind_text: str, body: str, data: dict[str, Any]) -> Found | None:
    """Read one record that stands alone, as the kernel prints it or auditd hands it to syslog; None for an unknown kind."""
    name = kind_name(kind_text)
    kind = KINDS.get(name)
    data["record"] = name
    if kind is None:
        return None
    fields = fields_of(body)
    put_fields(fields, data)
    return judge(name, kind, fields, body, data)
