"""One refused attempt counts once, however many programs and PAM modules write about it."""

# ruff: noqa: E501  # tables of lines

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.parsers.attempts import ATTEMPT_US, ATTEMPTS_MAX, repeats
from tests.unit.test_parsers import NOW, parser, read

IP = "192.0.2.7"
SSH = f"logname= uid=0 euid=0 tty=ssh ruser= rhost={IP} user=ann"
TTY = "logname=ann uid=1000 euid=0 tty=/dev/pts/0 ruser=ann rhost=  user=root"
WHERE = "TTY=pts/0 ; PWD=/tmp ; USER=root ; COMMAND=/bin/sh"
REFUSED, ACCEPTED = "authentication.failure", "authentication.success"

# what was done → the lines of one process, how many refused, accepted
DONE: dict[str, tuple[list[str], int, int]] = {
    "su of util-linux": ([f"su: pam_unix(su-l:auth): authentication failure; {TTY}", "su: FAILED SU (to root) ann on pts/0"], 1, 0),
    "su of shadow": ([f"su: pam_unix(su:auth): authentication failure; {TTY}", "su: pam_authenticate: Authentication failure", "su: FAILED su for root by ann", "su: - /dev/pts/0 ann:root"], 1, 0),
    "su of BusyBox": (["su: - /dev/pts/0 ann:root", "su: - /dev/pts/0 ann:root"], 2, 0),
    "su with SSSD": ([f"su: pam_unix(su-l:auth): authentication failure; {TTY}", f"su: pam_sss(su-l:auth): authentication failure; {TTY}", "su: pam_sss(su-l:auth): received for user root: 7 (Authentication failure)", "su: FAILED SU (to root) ann on pts/0"], 1, 0),
    "sudo, once": ([f"sudo: pam_unix(sudo:auth): authentication failure; {TTY}", f"sudo: ann : 1 incorrect password attempt ; {WHERE}"], 1, 0),
    "sudo, three times in one call": ([f"sudo: pam_unix(sudo:auth): authentication failure; {TTY}", f"sudo: pam_unix(sudo:auth): 2 more authentication failures; {TTY}", f"sudo: ann : 3 incorrect password attempts ; {WHERE}"], 1, 0),
    "sudo with SSSD, which lets in": ([f"sudo: pam_unix(sudo:auth): authentication failure; {TTY}", f"sudo: pam_sss(sudo:auth): authentication success; {TTY}", f"sudo: ann : {WHERE}"], 0, 0),
    "login": (["login: pam_unix(login:auth): authentication failure; logname=LOGIN uid=0 euid=0 tty=/dev/tty1 ruser= rhost=  user=ann", "login: FAILED LOGIN (1) on '/dev/tty1' FOR 'ann', Authentication failure"], 1, 0),
    "login with Kerberos": (["login: pam_krb5(login:auth): authentication failure; logname=LOGIN uid=0 euid=0 tty=/dev/tty1 ruser= rhost=", "login: pam_unix(login:auth): authentication failure; logname=LOGIN uid=0 euid=0 tty=/dev/tty1 ruser= rhost=  user=ann", "login: FAILED LOGIN (1) on '/dev/tty1' FOR 'ann', Authentication failure"], 1, 0),
    "doas": ([f"doas: pam_unix(doas:auth): authentication failure; {TTY}", "doas: failed auth for ann"], 1, 0),
    "dropbear": ([f"dropbear: pam_unix(dropbear:auth): authentication failure; {SSH}", f"dropbear: Bad PAM password attempt for 'ann' from {IP}:40"], 1, 0),
    "sshd": ([f"sshd: pam_unix(sshd:auth): authentication failure; {SSH}", f"sshd: Failed password for ann from {IP} port 40 ssh2"], 1, 0),
    "sshd with SSSD": ([f"sshd: pam_unix(sshd:auth): authentication failure; {SSH}", f"sshd: pam_sss(sshd:auth): authentication failure; {SSH}", "sshd: pam_sss(sshd:auth): received for user ann: 17 (Failure setting user credentials)", f"sshd: Failed password for ann from {IP} port 40 ssh2"], 1, 0),
    "sshd with SSSD, which lets in": ([f"sshd: pam_unix(sshd:auth): authentication failure; {SSH}", f"sshd: pam_sss(sshd:auth): authentication success; {SSH}", f"sshd: Accepted password for ann from {IP} port 40 ssh2"], 0, 1),
    "sshd with Kerberos": ([f"sshd: pam_krb5(sshd:auth): authentication failure; {SSH}", f"sshd: Failed password for ann from {IP} port 40 ssh2"], 1, 0),
    "sshd with winbind": (["sshd: pam_winbind(sshd:auth): getting password (0x00000388)", "sshd: pam_winbind(sshd:auth): request wbcLogonUser failed: WBC_ERR_AUTH_ERROR, PAM error: PAM_AUTH_ERR (7), NTSTATUS: NT_STATUS_LOGON_FAILURE", "sshd: pam_winbind(sshd:auth): user 'ann' denied access (incorrect password or invalid membership)", f"sshd: Failed password for ann from {IP} port 40 ssh2"], 1, 0),
    "sshd by keyboard-interactive, all of it": ([f"sshd: error: PAM: Authentication failure for ann from {IP}", f"sshd: Failed keyboard-interactive/pam for ann from {IP} port 40 ssh2", f"sshd: error: PAM: Authentication failure for ann from {IP}", f"sshd: Failed keyboard-interactive/pam for ann from {IP} port 40 ssh2"], 2, 0),
    "sshd by keyboard-interactive, at the usual log level": ([f"sshd: error: PAM: Authentication failure for ann from {IP}", f"sshd: error: PAM: Authentication failure for ann from {IP}", f"sshd: error: PAM: Authentication failure for ann from {IP}", f"sshd: Failed keyboard-interactive/pam for ann from {IP} port 40 ssh2"], 3, 0),
    "a desktop": (["gdm-password]: pam_unix(gdm-password:auth): authentication failure; logname= uid=0 euid=0 tty=/dev/tty1 ruser= rhost=  user=ann"], 1, 0),
    "a desktop with SSSD": (["gdm-password]: pam_unix(gdm-password:auth): authentication failure; logname= uid=0 euid=0 tty=/dev/tty1 ruser= rhost=  user=ann", "gdm-password]: pam_sss(gdm-password:auth): authentication failure; logname= uid=0 euid=0 tty=/dev/tty1 ruser= rhost= user=ann"], 1, 0),
    "a screen saver": (["unix_chkpwd: password check failed for user (ann)", "kscreenlocker: pam_unix(kde:auth): authentication failure; logname= uid=1000 euid=1000 tty=:0 ruser= rhost=  user=ann"], 1, 0),
    "vsftpd": ([f"vsftpd: pam_unix(vsftpd:auth): authentication failure; logname= uid=0 euid=0 tty=ftp ruser=ann rhost={IP}", f'vsftpd: [ann] FAIL LOGIN: Client "{IP}"'], 1, 0),
    "pkexec": (["polkit-agent-helper-1: pam_unix(polkit-1:auth): authentication failure; logname= uid=1000 euid=0 tty= ruser=ann rhost=  user=root", "polkitd: Operator of unix-session:3 FAILED to authenticate to gain authorization for action org.x for unix-process:4:5 [x] (owned by unix-user:ann)"], 1, 0),
}  # fmt: skip


def logged(lines: list[str]) -> list[str]:
    return [f"Mar  1 10:00:0{n} host {line.replace(': ', '[7]: ', 1)}" for n, line in enumerate(lines)]


@pytest.mark.parametrize("kind", ["auth", "syslog"])
@pytest.mark.parametrize("what", DONE)
def test_an_attempt_counts_once(what: str, kind: str) -> None:
    lines, refused, accepted = DONE[what]
    count = Counter(event.type for event in read(kind, *logged(lines)))
    assert (count[REFUSED], count[ACCEPTED]) == (refused, accepted)
    assert count["log.line"] == 0


@pytest.mark.parametrize("what", DONE)
def test_a_restart_between_two_lines_of_an_attempt_changes_nothing(what: str) -> None:
    lines, refused, _ = DONE[what]
    memory: dict[str, Any] = {}
    types = []
    for line in logged(lines):
        memory = json.loads(json.dumps(memory))
        types += [event.type for event in read("auth", line, memory=memory)]
    assert types.count(REFUSED) == refused


def test_two_processes_and_two_moments_are_two_attempts() -> None:
    unix = "gdm[%d]: pam_unix(gdm:auth): authentication failure; logname= uid=0 euid=0 tty=:0 ruser= rhost=  user=ann"
    sss = unix.replace("pam_unix", "pam_sss")
    lines = [f"Mar  1 10:00:00 h {unix % 1}", f"Mar  1 10:00:00 h {sss % 2}", f"Mar  1 10:00:30 h {sss % 1}"]
    assert [event.type for event in read("auth", *lines)] == [REFUSED] * 3


def test_the_actor_of_a_refused_su_is_who_asked() -> None:
    (event,) = read("auth", f"Mar  1 10:00:00 h su[7]: pam_unix(su-l:auth): authentication failure; {TTY}")
    assert (event.actor, event.data["target_user"]) == ("ann", "root")


@settings(max_examples=50, deadline=None)
@given(calls=st.lists(st.tuples(st.integers(0, 200), st.sampled_from(["a", "b"]), st.integers(0, 30)), max_size=400))
def test_what_is_remembered_is_bounded_and_never_leaves_a_first_voice_out(calls: list[tuple[int, str, int]]) -> None:
    memory: dict[str, Any] = {}
    heard: set[tuple[int, str]] = set()
    for key, voice, seconds in calls:
        again = repeats(memory, str(key), voice, seconds * 1_000_000)
        assert not (again and not any((key, other) in heard for other in "ab"))
        heard.add((key, voice))
        assert len(memory["attempts"]) <= ATTEMPTS_MAX
    json.dumps(memory)


def test_the_same_voice_begins_another_attempt_and_an_old_attempt_takes_no_more() -> None:
    memory: dict[str, Any] = {}
    told = [("pam", 0), ("sshd", 1), ("pam", 2), ("sshd", 3), ("krb", 4), ("sss", 3 + ATTEMPT_US)]
    assert [repeats(memory, "k", voice, us) for voice, us in told] == [False, True, False, True, True, False]


def test_a_flood_of_processes_is_read_in_bounded_memory() -> None:
    lines = [f"Mar  1 10:00:00 h gdm[{n}]: pam_sss(gdm:auth): authentication failure; {SSH}" for n in range(1_000)]
    memory: dict[str, Any] = {}
    events, _ = parser("auth").parse(lines, observed_us=NOW, reference_us=NOW, memory=memory)
    assert Counter(event.type for event in events) == {REFUSED: 1_000}
    assert len(json.dumps(memory)) < 8_000
