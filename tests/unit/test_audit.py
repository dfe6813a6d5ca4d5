"""audit.log: every kind of record, who acted on whom, what was refused and what was only recorded."""

# ruff: noqa: E501  # tables of lines

from typing import Any

import pytest

from agent.parsers.audit_records import KINDS, read_printed
from agent.wire.taxonomy import TAXONOMY, lookup
from tests.unit.test_parsers import read

STAMP = "msg=audit(1772359200.100:%d): "


def record(kind: str, body: str, n: int = 1) -> str:
    return f"type={kind} {STAMP % n}{body}"


def user(kind: str, message: str, outer: str = "pid=5 uid=0 auid=1006 ses=3", names: str = "") -> str:
    return record(kind, f"{outer} msg='{message}'{names}")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_record_is_known_with_a_type_of_the_taxonomy(kind: str) -> None:
    (event,) = read("audit", record(kind, "pid=5 uid=0 auid=1000 ses=3 res=1"))
    assert event.type != "log.line"
    assert event.type in TAXONOMY or lookup(event.type).name != "custom"
    assert event.data["record"] == kind


def test_a_kind_that_the_writer_knows_only_by_number_is_known() -> None:
    (event,) = read("audit", record("UNKNOWN[1420]", "path=/tmp/x ipe_op=EXECUTE"))
    assert (event.type, event.outcome, event.data["record"]) == ("security.policy.violated", "failure", "IPE_ACCESS")


# body → type, outcome, at least, at most this severe
MANDATORY: list[tuple[str, str, str, str | None, int]] = [
    ("AVC", 'apparmor="DENIED" operation="open" profile="/usr/sbin/x" name="/etc/shadow" pid=7 comm="x"', "security.policy.violated", "failure", 4),
    ("AVC", 'apparmor="KILLED" operation="open" profile="/usr/sbin/x" pid=7 comm="x"', "security.policy.violated", "failure", 4),
    ("AVC", 'apparmor="ALLOWED" operation="open" profile="x" name="/proc/1/stat" pid=7 comm="x" requested_mask="r" denied_mask="r"', "access", "success", 2),
    ("AVC", 'apparmor="AUDIT" operation="open" profile="x" name="/etc/x" pid=7 comm="x"', "access", "success", 1),
    ("AVC", 'apparmor="STATUS" operation="profile_remove" profile="unconfined" name="x" pid=7 comm="apparmor_parser"', "configuration.changed", "success", 2),
    ("APPARMOR_ALLOWED", 'operation="open" profile="x"', "access", "success", 2),
    ("APPARMOR_STATUS", 'operation="profile_load" profile="x"', "configuration.changed", "success", 2),
    ("APPARMOR_DENIED", 'operation="open" profile="x"', "security.policy.violated", "failure", 4),
    ("AVC", 'avc:  denied  { read } for  pid=7 comm="x" name="y" scontext=a tcontext=b tclass=file permissive=0', "security.policy.violated", "failure", 4),
    ("AVC", 'avc:  denied  { read } for  pid=7 comm="x" name="y" scontext=a tcontext=b tclass=file', "security.policy.violated", "failure", 4),
    ("AVC", 'avc:  denied  { read } for  pid=7 comm="x" name="y" scontext=a tcontext=b tclass=file permissive=1', "access", "success", 2),
    ("AVC", 'avc:  granted  { setsecparam } for  pid=7 comm="load_policy" scontext=a tcontext=b tclass=security', "access", "success", 1),
    ("USER_AVC", "pid=1 uid=0 auid=4294967295 ses=4294967295 subj=s msg='avc:  denied  { send_msg } for msgtype=method_call spid=1 tpid=2 scontext=a tcontext=b tclass=dbus exe=\"/usr/bin/dbus-daemon\" sauid=81 hostname=? addr=? terminal=?'", "security.policy.violated", "failure", 4),
    ("USER_AVC", "pid=1 uid=0 auid=4294967295 ses=4294967295 subj=s msg='avc:  received setenforce notice (enforcing=0) exe=\"/usr/lib/systemd/systemd\" sauid=0 hostname=? addr=? terminal=?'", "configuration.changed", "success", 4),
    ("USER_AVC", "pid=1 uid=0 auid=4294967295 ses=4294967295 subj=s msg='avc:  received policyload notice (seqno=2) exe=\"/usr/bin/dbus-daemon\" sauid=81 hostname=? addr=? terminal=?'", "configuration.changed", "success", 2),
    ("USER_AVC", "pid=1 uid=0 auid=4294967295 ses=4294967295 msg='apparmor=\"DENIED\" operation=\"dbus_method_call\" bus=\"system\" mask=\"send\" pid=7 label=\"x\" exe=\"/usr/bin/dbus-daemon\" sauid=102 hostname=? addr=? terminal=?'", "security.policy.violated", "failure", 4),
    ("MAC_STATUS", "enforcing=0 old_enforcing=1 auid=0 ses=2 enabled=1 old-enabled=1 lsm=selinux res=1", "configuration.changed", "success", 4),
    ("MAC_STATUS", "enforcing=1 old_enforcing=0 auid=0 ses=2 enabled=1 old-enabled=1 lsm=selinux res=1", "configuration.changed", "success", 3),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "body", "type_", "outcome", "severity"), MANDATORY)
def test_only_what_a_mandatory_rule_refused_is_a_refusal(kind: str, body: str, type_: str, outcome: str | None, severity: int) -> None:  # fmt: skip
    (event,) = read("audit", record(kind, body))
    assert (event.type, event.outcome, event.severity) == (type_, outcome, severity)


NAMES = 'UID="root" AUID="admin1"'
ABOUT: list[tuple[str, str, str, dict[str, Any]]] = [
    ("ADD_USER", 'op=adding user id=500 exe="/usr/sbin/useradd"', "account.created", {"target_uid": "500"}),
    ("ADD_USER", 'op=add-user acct="new1" exe="/usr/sbin/useradd"', "account.created", {"target_user": "new1"}),
    ("DEL_USER", 'op=delete-user id=1001 exe="/usr/sbin/userdel"', "account.deleted", {"target_uid": "1001"}),
    ("ACCT_LOCK", 'op=locked-password id=1001 exe="/usr/bin/passwd"', "account.changed", {"target_uid": "1001"}),
    ("ACCT_UNLOCK", 'op=unlocked-password acct="old1" exe="/usr/bin/passwd"', "account.changed", {"target_user": "old1"}),
    ("USER_CHAUTHTOK", 'op=PAM:chauthtok grantors=pam_unix acct="old1" exe="/usr/bin/passwd"', "account.password.changed", {"target_user": "old1"}),
    ("USER_CHAUTHTOK", 'op=updating-password id=1001 exe="/usr/sbin/usermod"', "account.password.changed", {"target_uid": "1001"}),
    ("USER_CHAUTHTOK", 'op=changing home directory id=1001 exe="/usr/sbin/usermod"', "account.changed", {"target_uid": "1001"}),
    ("USER_CHAUTHTOK", 'op=display aging info id=1001 exe="/usr/bin/chage"', "account", {"target_uid": "1001"}),
    ("USER_CHAUTHTOK", 'op=adding user to shadow group acct="old1" exe="/usr/sbin/usermod"', "account.group.changed", {"target_user": "old1"}),
    ("USER_MGMT", 'op=add-user-to-group grp="wheel" acct="old1" exe="/usr/sbin/usermod"', "account.group.changed", {"target_user": "old1", "group": "wheel"}),
    ("ADD_GROUP", 'op=add-group acct="plc" exe="/usr/sbin/groupadd"', "account.group.changed", {"group": "plc"}),
    ("DEL_GROUP", 'op= id=2001 exe="/usr/sbin/groupdel"', "account.group.changed", {"target_gid": "2001"}),
    ("GRP_MGMT", 'op=add-shadow-group grp="plc" exe="/usr/sbin/groupadd"', "account.group.changed", {"group": "plc"}),
    ("ROLE_ASSIGN", 'op=login-sename,role acct="old1" exe="/usr/sbin/semanage"', "configuration.role.changed", {"target_user": "old1"}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "message", "type_", "data"), ABOUT)
def test_the_actor_of_a_change_to_an_account_is_who_made_it(kind: str, message: str, type_: str, data: dict[str, Any]) -> None:  # fmt: skip
    (event,) = read(
        "audit", user(kind, f"{message} hostname=st1 addr=? terminal=pts/1 res=success", names="\x1d" + NAMES)
    )
    assert (event.type, event.outcome, event.actor, event.data["actor_uid"]) == (type_, "success", "admin1", "1006")
    assert data.items() <= event.data.items()
    (raw,) = read("audit", user(kind, f"{message} hostname=st1 addr=? terminal=pts/1 res=success"))
    assert (raw.actor, raw.data["actor_uid"]) == (None, "1006")


def test_the_names_of_an_enriched_record_are_read_however_they_are_joined_to_it() -> None:
    message = 'op=delete-user id=1001 exe="/usr/sbin/userdel" hostname=? addr=? terminal=pts/1 res=success'
    names = NAMES + ' ID="old1"'
    for joint in ("\x1d", "", " "):
        (event,) = read("audit", user("DEL_USER", message, names=joint + names))
        assert (event.actor, event.data["target_user"], event.outcome) == ("admin1", "old1", "success")


def test_su_is_the_act_of_who_signed_in_and_not_of_the_account_whose_password_was_asked_for() -> None:
    message = (
        'op=PAM:authentication grantors=? acct="root" exe="/usr/bin/su" hostname=? addr=? terminal=pts/0 res=failed'
    )
    (event,) = read("audit", user("USER_AUTH", message, names="\x1d" + NAMES))
    assert (event.type, event.actor, event.data["target_user"]) == ("authentication.failure", "admin1", "root")


def test_one_attempt_at_sshd_counts_once_though_pam_and_sshd_both_write_it() -> None:
    said = 'acct="ann" exe="/usr/sbin/sshd" hostname=? addr=192.0.2.7 terminal=ssh res='
    lines = [
        user("USER_AUTH", "op=PAM:authentication grantors=? " + said + "failed"),
        user("USER_AUTH", "op=password " + said + "failed"),
        user("USER_AUTH", "op=PAM:authentication grantors=? " + said + "failed"),
        user("USER_AUTH", "op=password " + said + "failed"),
        user("USER_LOGIN", "op=login " + said + "failed"),
        user("USER_AUTH", "op=PAM:authentication grantors=pam_unix " + said + "success"),
        user("USER_AUTH", "op=password " + said + "success"),
        user("USER_AUTH", "op=success " + said + "success"),
    ]
    types = [
        event.type
        for line in [lines]
        for event in read("audit", *[text.replace(":1)", f":{n})") for n, text in enumerate(line)])
    ]
    assert types.count("authentication.failure") == 2
    assert types.count("authentication.success") == 1


def watched(
    *paths: str, cwd: str = "/root", syscall: str = 'syscall=257 success=yes comm="touch" key="watch"'
) -> list[str]:
    lines = [record("SYSCALL", f"arch=c000003e {syscall} pid=7 auid=1000 ses=2"), record("CWD", f'cwd="{cwd}"')]
    lines += [record("PATH", f"item={n} {path}") for n, path in enumerate(paths)]
    return [*lines, record("PROCTITLE", "proctitle=746F756368")]


def path(name: str, kind: str) -> str:
    return f'name="{name}" inode=9 dev=08:01 mode=0100644 ouid=0 ogid=0 rdev=00:00' + (
        f" nametype={kind}" if kind else ""
    )


TARGETS: list[tuple[list[str], str]] = [
    ([path("/etc/cron.d/", "PARENT"), path("/etc/cron.d/job1", "CREATE")], "/etc/cron.d/job1"),
    ([path("/etc/", "PARENT"), path("/etc/shadow", "DELETE")], "/etc/shadow"),
    ([path("/etc/shadow", "NORMAL")], "/etc/shadow"),
    ([path("/tmp/", "PARENT"), path("/etc/", "PARENT"), path("/tmp/new", "DELETE"), path("/etc/passwd", "DELETE"), path("/etc/passwd", "CREATE")], "/etc/passwd"),
    ([path("/usr/bin/id", "NORMAL"), path("/lib64/ld-linux-x86-64.so.2", "NORMAL")], "/usr/bin/id"),
    ([path("/etc/cron.d/", "PARENT"), path("job1", "CREATE")], "/etc/cron.d/job1"),
    ([path(".", "PARENT"), path("job1", "CREATE")], "/root/job1"),
    ([path("../etc/x", "NORMAL")], "/etc/x"),
    ([path("/etc/", ""), path("/etc/passwd", "")], "/etc/passwd"),
    ([path("/etc/passwd", "")], "/etc/passwd"),
    ([path("/etc/", "PARENT")], "/etc/"),
    ([path("/etc/", "PARENT"), "name=2F6574632F6A206F62 inode=1 nametype=CREATE"], "/etc/j ob"),
]  # fmt: skip


@pytest.mark.parametrize(("paths", "target"), TARGETS)
def test_the_target_of_a_watch_is_the_file(paths: list[str], target: str) -> None:
    (event,) = read("audit", *watched(*paths))
    assert (event.type, event.target, event.data["key"]) == ("access", target, "watch")


def test_auditing_that_is_off_at_the_start_of_the_computer_was_not_switched_off() -> None:
    start, off, on = read(
        "audit",
        record("KERNEL", "state=initialized audit_enabled=0 res=1", 1),
        record("CONFIG_CHANGE", "op=set audit_enabled=0 old=1 auid=1000 ses=3 res=1", 2),
        record("CONFIG_CHANGE", "op=set audit_enabled=1 old=0 auid=1000 ses=3 res=1", 3),
    )
    assert [each.type for each in (start, off, on)] == ["system", "security.logging.stopped", "configuration.changed"]


@pytest.mark.parametrize(
    ("line", "type_", "src_ip", "actor"),
    [
        (user("USER_LOGIN", 'op=login acct=61206220 exe="/usr/sbin/sshd" hostname=? addr=192.0.2.7 terminal=ssh res=failed'), "authentication", "192.0.2.7", "a b"),
        (record("USER_AUTH", "user pid=12 uid=0 auid=2 ses=1 msg='op=PAM:unix_chkpwd acct=\"snap\" exe=\"/sbin/unix_chkpwd\" (hostname=?, addr=192.0.2.7, terminal=pts/0 res=failed)'"), "authentication.failure", "192.0.2.7", "snap"),
        (record("ACCT_LOCK", "pid=4 uid=0 auid=1000 ses=3 subj=a msg='op=locked-password id=1001 exe=\"/usr/bin/passwd\" hos"), "account.changed", None, None),
        (record("DAEMON_RESUME", "auditd resuming logging, sending auid=? pid=? subj=? res=success"), "system.service.started", None, None),
        (record("ANOM_MK_EXEC", "Text"), "access", None, None),
        (record("ANOM_PROMISCUOUS", "dev=eth0 prom=256 old_prom=0 auid=1000 uid=0 gid=0 ses=1"), "network.scan", None, None),
        (record("ANOM_PROMISCUOUS", "dev=veth12 prom=256 old_prom=0 auid=1000 uid=0 gid=0 ses=1"), "network", None, None),
        (record("USER_ACCT", "pid=4 uid=0 auid=1 ses=1 msg='op=PAM:accounting grantors=? acct=\"ann\" exe=\"/usr/sbin/sshd\" hostname=h addr=192.0.2.7 terminal=ssh res=failed'"), "access.denied", "192.0.2.7", "ann"),
    ],
)  # fmt: skip
def test_old_cut_and_rare_forms_of_records(line: str, type_: str, src_ip: str | None, actor: str | None) -> None:
    (event,) = read("audit", line)
    assert (event.type, event.src_ip, event.actor) == (type_, src_ip, actor)


def test_a_record_that_the_kernel_prints_or_auditd_hands_to_syslog_says_the_same() -> None:
    denied = 'apparmor="DENIED" operation="open" profile="/usr/sbin/cupsd" name="/etc/shadow" pid=7 comm="cupsd"'
    printed, plain, sent = read(
        "auth",
        f"Mar  1 10:00:00 h kernel: [ 12.3] audit: type=1400 audit(1772359200.100:7): {denied}",
        f"Mar  1 10:00:00 h kernel: type=1400 audit(1772359200.100:7): {denied}",
        f"Mar  1 10:00:00 h audispd: node=h type=AVC {STAMP % 7}{denied}",
    )
    for event in (printed, plain, sent):
        assert (event.type, event.outcome, event.target) == ("security.policy.violated", "failure", "/usr/sbin/cupsd")
    assert read_printed("9999", "x=y", {}) is None
