"""What sshd, su, sudo, PAM and their relatives write: every kind that matters for security is known, and what is not has its reason.

The lines follow the sources of the programs: OpenSSH, Linux-PAM, SSSD, Samba, sudo, util-linux, shadow, BusyBox, doas, polkit, systemd, dropbear,
vsftpd, Linux. `test_every_rule_is_met_by_a_line` keeps the table complete: a rule without a line, or hidden behind another, fails.
"""

# ruff: noqa: E501  # a table of lines

from typing import NamedTuple

import pytest

from agent.parsers import kernel, logins, pam, privilege, sshd, system
from agent.parsers.base import Rule
from agent.wire.event import Event
from agent.wire.taxonomy import TAXONOMY
from tests.unit.test_parsers import read

IP = "192.0.2.7"
AUTH, FAIL, OK, DENIED = "authentication", "authentication.failure", "authentication.success", "access.denied"
REJECTED, CONN, SCAN, USED = (
    "authentication.session.rejected",
    "network.connection",
    "network.scan",
    "access.privilege.used",
)


class Known(NamedTuple):
    """A message and what it has to become."""

    program: str
    text: str
    type: str
    outcome: str | None = None
    src_ip: str | None = None
    actor: str | None = None


K = Known
SSHD = [
    K("sshd", f"Failed password for ann from {IP} port 40 ssh2", FAIL, "failure", IP, "ann"),
    K("sshd", f"Failed keyboard-interactive/pam for ann from {IP} port 40 ssh2", FAIL, "failure", IP, "ann"),
    K("sshd", f"Failed publickey for ann from {IP} port 40 ssh2: RSA SHA256:abc", FAIL, "failure", IP, "ann"),
    K("sshd", f"Failed none for invalid user ann from {IP} port 40 ssh2", AUTH, None, IP, "ann"),
    K("sshd", f"Failed password for invalid user ann from {IP}", FAIL, "failure", IP, "ann"),
    K("sshd", f"Accepted gssapi-with-mic for ann from {IP} port 40 ssh2", OK, "success", IP, "ann"),
    K("sshd", f"Postponed keyboard-interactive for ann from {IP} port 40 ssh2 [preauth]", AUTH, None, IP, "ann"),
    K("sshd", f"Partial publickey for ann from {IP} port 40 ssh2: RSA SHA256:abc", AUTH, None, IP, "ann"),
    K("sshd", 'Accepted certificate ID "x" (serial 7) signed by RSA CA SHA256:abc via /etc/ssh/ca.pub', AUTH),
    K("sshd", "Accepted key RSA SHA256:abc found at /home/ann/.ssh/authorized_keys:1", AUTH),
    K("sshd", f"Invalid user ann from {IP} port 40", AUTH, None, IP, "ann"),
    K("sshd", f"Illegal user ann from {IP}", AUTH, None, IP, "ann"),
    K("sshd", "input_userauth_request: invalid user ann [preauth]", AUTH, None, None, "ann"),
    K("sshd", f"User ann from {IP} not allowed because none of user's groups are listed in AllowGroups", DENIED, "failure", IP, "ann"),
    K("sshd", "User ann not allowed because shell /bin/none does not exist", DENIED, "failure", None, "ann"),
    K("sshd", "User ann password has expired (password aged)", DENIED, "failure", None, "ann"),
    K("sshd", "User child is on pid 77", AUTH),
    K("sshd", "Account ann has expired", DENIED, "failure", None, "ann"),
    K("sshd", "Login restricted for ann: 3004-302 Your account has expired", DENIED, "failure", None, "ann"),
    K("sshd", "login_get_lastlog: Cannot find account for uid 1000", AUTH),
    K("sshd", f"ROOT LOGIN REFUSED FROM {IP} port 40 [preauth]", DENIED, "failure", IP),
    K("sshd", "fatal: Access denied for user ann by PAM account configuration [preauth]", DENIED, "failure", None, "ann"),
    K("sshd", f"Authentication tried for ann with correct key but not from a permitted host (host=h2, ip={IP}, required=10.0.0.0/8).", DENIED, "failure", IP, "ann"),
    K("sshd", "Authentication refused: bad ownership or modes for directory /home/ann", AUTH),
    K("sshd", "error: Authentication key RSA SHA256:abc revoked by file /etc/ssh/revoked", DENIED, "failure"),
    K("sshd", "WARNING: authentication attempt with a revoked RSA key SHA256:abc", DENIED, "failure"),
    K("sshd", f"cert: Authentication tried for ann with valid certificate but not from a permitted source address ({IP}).", DENIED, "failure", IP, "ann"),
    K("sshd", "cert: Unsupported certificate option", DENIED, "failure"),
    K("sshd", "error: Certificate invalid: expired", DENIED, "failure"),
    K("sshd", "error: Certificate lacks principal list", DENIED, "failure"),
    K("sshd", "Refusing certificate signed with SHA-1", DENIED, "failure"),
    K("sshd", "refusing RSA key: Invalid key length [preauth]", DENIED, "failure"),
    K("sshd", f"Received disconnect from {IP} port 40:11: disconnected by user", CONN, None, IP),
    K("sshd", f"error: Received disconnect from {IP}: 3: Auth fail [preauth]", CONN, None, IP),
    K("sshd", "Received signal 15; terminating.", "system.service.stopped"),
    K("sshd", "Received SIGHUP; restarting.", "system.service.started"),
    K("sshd", f"Disconnected from user ann {IP} port 40", "authentication.logout", None, IP, "ann"),
    K("sshd", f"Disconnected from authenticating user ann {IP} port 40 [preauth]", CONN, "failure", IP, "ann"),
    K("sshd", f"Disconnected from {IP} port 40 [preauth]", CONN, None, IP),
    K("sshd", f"Connection reset by invalid user ann {IP} port 40 [preauth]", CONN, "failure", IP, "ann"),
    K("sshd", f"Connection closed by {IP} port 40 [preauth]", CONN, "failure", IP),
    K("sshd", f'Connection from {IP} port 40 on 10.0.0.1 port 22 rdomain ""', CONN, None, IP),
    K("sshd", f"Disconnecting authenticating user ann {IP} port 40: Too many authentication failures [preauth]", REJECTED, "failure", IP, "ann"),
    K("sshd", f"Disconnecting {IP} port 40: Packet corrupt", CONN, "failure", IP),
    K("sshd", "Disconnecting: Too many authentication failures for ann [preauth]", REJECTED, "failure", None, "ann"),
    K("sshd", "Disconnecting: Bad packet length 77.", CONN, "failure"),
    K("sshd", f"error: maximum authentication attempts exceeded for ann from {IP} port 40 ssh2 [preauth]", REJECTED, "failure", IP, "ann"),
    K("sshd", f"Did not receive identification string from {IP} port 40", SCAN, None, IP),
    K("sshd", f"Bad protocol version identification 'GET / HTTP/1.0' from {IP} port 40", SCAN, None, IP),
    K("sshd", "error: Bad remote protocol version identification: 'x'", SCAN),
    K("sshd", "Bad packet length 1349676916. [preauth]", CONN, "failure"),
    K("sshd", f"Protocol major versions differ for {IP} port 40: SSH-2.0-OpenSSH_9 vs. SSH-1.5-x", SCAN, None, IP),
    K("sshd", f"probed from {IP} port 40 with SSH-1.0-SSH_Version_Mapper.  Don't panic.", SCAN, None, IP),
    K("sshd", f"scanned from {IP} with SSH-1.0-SSH_Version_Mapper.  Don't panic.", SCAN, None, IP),
    K("sshd", f"banner exchange: Connection from {IP} port 40: invalid format", SCAN, None, IP),
    K("sshd", "banner line contains invalid characters", SCAN),
    K("sshd", "error: kex_exchange_identification: Connection closed by remote host", SCAN),
    K("sshd", "error: kex_exchange_identification: x", SCAN),
    K("sshd", "error: kex_protocol_error: type 20 seq 2 [preauth]", CONN, "failure"),
    K("sshd", f"Unable to negotiate with {IP} port 40: no matching cipher found. Their offer: aes128-cbc [preauth]", CONN, "failure", IP),
    K("sshd", "fatal: Unable to negotiate a key exchange method [preauth]", CONN, "failure"),
    K("sshd", "fatal: no matching mac found: client a server b [preauth]", CONN, "failure"),
    K("sshd", "Corrupted MAC on input. [preauth]", CONN, "failure"),
    K("sshd", f"Magic value check failed (77) on obfuscated handshake from {IP} port 40", SCAN, None, IP),
    K("sshd", "userauth_pubkey: signature algorithm ssh-rsa not in PubkeyAcceptedAlgorithms [preauth]", AUTH),
    K("sshd", f"ssh_dispatch_run_fatal: Connection from authenticating user ann {IP} port 40: incorrect signature [preauth]", CONN, "failure", IP, "ann"),
    K("sshd", f"packet_write_wait: Connection from {IP} port 40: Broken pipe", CONN, "failure", IP),
    K("sshd", "fatal: ssh_packet_send_debug: Broken pipe", CONN, "failure"),
    K("sshd", f"reverse mapping checking getaddrinfo for h.example [{IP}] failed - POSSIBLE BREAK-IN ATTEMPT!", CONN, None, IP),
    K("sshd", f"Address {IP} maps to h.example, but this does not map back to the address.", CONN, None, IP),
    K("sshd", f'Nasty PTR record "10.0.0.1" is set up for {IP}, ignoring', CONN, None, IP),
    K("sshd", "PAM service(sshd) ignoring max retries; 6 > 3", REJECTED, "failure"),
    K("sshd", f"error: PAM: Authentication failure for ann from {IP}", FAIL, "failure", IP, "ann"),
    K("sshd", f"error: PAM: Have exhausted maximum number of retries for service for ann from {IP} via 10.0.0.1", FAIL, "failure", IP, "ann"),
    K("sshd", "error: PAM: Authentication failure", AUTH),
    K("sshd", "error: PAM: pam_open_session(): Permission denied", AUTH),
    K("sshd", f"userauth_hostbased mismatch: client sends h.example, but we resolve {IP} to x.example", AUTH, None, IP),
    K("sshd", f"PAM 2 more authentication failures; logname= uid=0 euid=0 tty=ssh ruser= rhost={IP}  user=ann", AUTH, None, IP, "ann"),
    K("sshd", "Server listening on 0.0.0.0 port 22.", "system.service.started"),
    K("sshd", f"Starting session: shell on pts/0 for ann from {IP} port 40 id 0", AUTH, None, IP, "ann"),
    K("sshd", "Write failed: Broken pipe [preauth]", CONN, "failure"),
    K("sshd", "fatal: Read from socket failed: Connection reset by peer [preauth]", CONN, "failure"),
    K("sshd", f"Close session: user ann from {IP} port 40 id 0", AUTH, None, IP, "ann"),
    K("sshd", f"Closing connection to {IP} port 40", CONN, None, IP),
    K("sshd", "subsystem request for sftp by user ann failed, subsystem not found", "access", "failure", None, "ann"),
    K("sshd", "subsystem request for sftp failed, subsystem not found", "access", "failure"),
    K("sshd", "subsystem request for sftp by user ann", "access", None, None, "ann"),
    K("sshd", "subsystem request for sftp", "access"),
    K("sshd", "error: subsystem: cannot stat /usr/lib/sftp-server: No such file or directory", "access", "failure"),
    K("sshd-session", f"fatal: Timeout before authentication for {IP} port 40", CONN, "failure", IP),
    K("sshd", f"Timeout before authentication for connection from {IP} to 10.0.0.1, pid = 77", CONN, "failure", IP),
    K("sshd", f"fatal: Timeout before authentication for {IP}", CONN, "failure", IP),
    K("sshd", f"Timeout, client not responding from user ann {IP} port 40", CONN, None, IP, "ann"),
    K("sshd", f"drop connection #10 from [{IP}]:40 on [10.0.0.1]:22 past MaxStartups", CONN, "failure", IP),
    K("sshd", f"drop connection #0 from [{IP}]:40 on [10.0.0.1]:22 penalty: failed authentication", CONN, "failure", IP),
    K("sshd", f"srclimit_penalise: ipv4: new {IP}/32 deferred penalty of 5 seconds for penalty: failed authentication", CONN, None, IP),
    K("sshd", "error: beginning MaxStartups throttling", "network.flood"),
    K("sshd", "exited MaxStartups throttling after 00:00:08, 4 connections dropped", "network"),
    K("sshd", f"refused connect from h.example ({IP})", DENIED, "failure", IP),
    K("sshd", f"refused connect from {IP}", DENIED, "failure", IP),
    K("sshd", "error: Could not load host key: /etc/ssh/ssh_host_dsa_key", "system"),
    K("internal-sftp", f"session opened for local user ann from [{IP}]", AUTH, None, IP, "ann"),
    K("sshd", 'Changed root directory to "/srv/sftp"', AUTH),
    K("sshd", "Exiting on signal 15", "system.service.stopped"),
    K("sshd", "error: Bind to port 22 on 0.0.0.0 failed: Address already in use.", "system.service.failed", "failure"),
    K("sshd", "fatal: Cannot bind any address.", "system.service.failed", "failure"),
]  # fmt: skip
BODY = "logname= uid=0 euid=0 tty=/dev/tty1 ruser= rhost=  user=ann"
PAM = [
    K("gdm-password]", f"pam_unix(gdm-password:auth): authentication failure; {BODY}", FAIL, "failure", None, "ann"),
    K("cockpit-session", f"pam_sss(cockpit:auth): authentication success; logname= uid=0 euid=0 tty=web ruser= rhost={IP} user=ann", OK, "success", IP, "ann"),
    K("sshd", f"pam_sss(sshd:auth): authentication success; logname= uid=0 euid=0 tty=ssh ruser= rhost={IP} user=ann", AUTH, None, IP, "ann"),
    K("sshd", f"pam_krb5(sshd:auth): authentication failure; logname= uid=0 euid=0 tty=ssh ruser= rhost={IP} user=ann", AUTH, None, IP, "ann"),
    K("gdm", "pam_unix(gdm:auth): 2 more authentication failures; " + BODY, AUTH, None, None, "ann"),
    K("su", "pam_unix(su-l:auth): authentication failure; logname=ann uid=1000 euid=0 tty=/dev/pts/0 ruser=ann rhost=  user=root", AUTH, None, None, "ann"),
    K("sudo", "pam_unix(sudo:auth): conversation failed", AUTH),
    K("sudo", "pam_unix(sudo:auth): auth could not identify password for [ann]", AUTH),
    K("polkit-agent-helper-1", "pam_unix(polkit-1:auth): authentication failure; logname= uid=1000 euid=0 tty= ruser=ann rhost=  user=root", FAIL, "failure", None, "ann"),
    K("gdm", "pam_winbind(gdm:auth): user 'ann' granted access", OK, "success", None, "ann"),
    K("gdm", "pam_winbind(gdm:auth): user 'ann' denied access (incorrect password or invalid membership)", FAIL, "failure", None, "ann"),
    K("sshd", "pam_winbind(sshd:auth): user 'ann' denied access (incorrect password or invalid membership)", AUTH, None, None, "ann"),
    K("vsftpd", "pam_userdb(vsftpd:auth): user `ann' denied access (incorrect password)", FAIL, "failure", None, "ann"),
    K("gdm", "pam_krb5(gdm:auth): user ann authenticated as ann@CORP.EXAMPLE", OK, "success", None, "ann"),
    K("gdm", "pam_krb5(gdm:auth): authentication succeeds for 'ann' (ann@CORP.EXAMPLE)", OK, "success", None, "ann"),
    K("gdm", "pam_krb5(gdm:auth): authentication fails for 'ann' (ann@CORP.EXAMPLE): Authentication failure", FAIL, "failure", None, "ann"),
    K("gdm", 'pam_ldap(gdm:auth): error trying to bind as user "uid=ann,dc=x" (Invalid credentials)', FAIL, "failure"),
    K("sshd", "pam_google_authenticator(sshd:auth): Invalid verification code for ann", AUTH, None, None, "ann"),
    K("sshd", "pam_google_authenticator(sshd:auth): Accepted google_authenticator for ann", AUTH, None, None, "ann"),
    K("sshd", "pam_sss(sshd:auth): received for user ann: 7 (Authentication failure)", AUTH, None, None, "ann"),
    K("sshd", "pam_winbind(sshd:auth): request wbcLogonUser failed: WBC_ERR_AUTH_ERROR, PAM error: PAM_AUTH_ERR (7), NTSTATUS: NT_STATUS_LOGON_FAILURE", AUTH),
    K("sshd", "pam_winbind(sshd:auth): getting password (0x00000388)", AUTH),
    K("sshd", "pam_winbind(sshd:auth): pam_get_item returned a password", AUTH),
    K("sshd", "pam_winbind(sshd:auth): Verify user 'ann'", AUTH, None, None, "ann"),
    K("sshd", "pam_unix(sshd:auth): check pass; user unknown", AUTH),
    K("sshd", "pam_unix(sshd:auth): bad username [x y]", AUTH, None, None, "x y"),
    K("sshd", 'pam_succeed_if(sshd:auth): requirement "uid >= 1000" not met by user "root"', AUTH, None, None, "root"),
    K("sshd", 'pam_succeed_if(sshd:account): requirement "user ingroup ops" not met by user "ann"', DENIED, "failure", None, "ann"),
    K("sshd", "pam_unix(sshd:account): account ann has expired (account expired)", DENIED, "failure", None, "ann"),
    K("sshd", "pam_ldap(sshd:account): account is locked", DENIED, "failure"),
    K("cron", "pam_unix(cron:account): expired password for user ann (password aged)", AUTH, None, None, "ann"),
    K("login", "pam_unix(login:account): password for user ann will expire in 7 days", AUTH),
    K("sshd", "pam_sss(sshd:account): Access denied for user ann: 6 (Permission denied)", DENIED, "failure", None, "ann"),
    K("sshd", f"pam_access(sshd:account): access denied for user `ann' from `{IP}'", DENIED, "failure", IP, "ann"),
    K("vsftpd", "pam_listfile(vsftpd:auth): Refused user root for service vsftpd", DENIED, "failure", None, "root"),
    K("su", "pam_wheel(su:auth): Access denied to 'ann' for 'root'", DENIED, "failure", None, "ann"),
    K("su", "pam_wheel(su:auth): Access granted to 'ann' for 'root'", "access", "success", None, "ann"),
    K("login", "pam_securetty(login:auth): access denied: tty 'tty9' is not secure !", DENIED, "failure"),
    K("x", "pam_rootok(x:auth): root login denied", DENIED, "failure"),
    K("sshd", "pam_faillock(sshd:auth): Consecutive login failures for user ann account temporarily locked", "authentication.lockout", "failure", None, "ann"),
    K("sshd", "pam_tally2(sshd:auth): user ann (1000) tally 4, deny 3", "authentication.lockout", "failure", None, "ann"),
    K("sshd", "pam_tally2(sshd:auth): user ann (1000) has time_left=52s", "authentication.lockout", "failure", None, "ann"),
    K("sshd", "pam_abl(sshd:auth): user ann is blocked", "authentication.lockout", "failure"),
    K("sshd", "pam_faillock(sshd:auth): User unknown", AUTH),
    K("passwd", "pam_unix(passwd:chauthtok): password changed for eve", "account.password.changed", "success"),
    K("passwd", "pam_sss(passwd:chauthtok): Password change failed for user eve: 20 (Authentication token manipulation error)", "account.password.changed", "failure"),
    K("passwd", "pam_unix(passwd:chauthtok): authentication failure; logname=ann uid=1000 euid=0 tty=pts/0 ruser= rhost=  user=eve", FAIL, "failure", None, "ann"),
    K("passwd", 'pam_unix(passwd:chauthtok): user "eve" does not exist in /etc/passwd', "account.password.changed", "failure"),
    K("passwd", "pam_unix(passwd:chauthtok): new password not acceptable", "account.password.changed", "failure"),
    K("passwd", "pam_pwquality(passwd:chauthtok): BAD PASSWORD: it is too short", "account.password.changed", "failure"),
    K("passwd", "pam_unix(passwd:chauthtok): password - (old) token not obtained", AUTH),
    K("cron", "pam_unix(cron:session): session opened for user root(uid=0) by (uid=0)", "authentication.session.opened", "success", None, "root"),
    K("gdm", "session opened for user ann by (uid=0)", "authentication.session.opened", "success", None, "ann"),
    K("cron", "pam_unix(cron:session): session closed for user root", "authentication.session.closed", "success", None, "root"),
    K("sshd", "pam_systemd(sshd:session): Failed to create session: Access denied", AUTH),
    K("ftpd", f"(pam_unix) authentication failure; logname= uid=0 euid=0 tty=ftp ruser=ann rhost={IP}", FAIL, "failure", IP),
    K("sshd(pam_unix)", f"authentication failure; logname= uid=0 euid=0 tty=NODEVssh ruser= rhost={IP}  user=ann", AUTH, None, IP, "ann"),
    K("unix_chkpwd", "password check failed for user (ann)", AUTH, None, None, "ann"),
    K("unix_chkpwd", "check pass; user unknown", AUTH),
    K("unix_chkpwd", "account ann has password changed in future", DENIED, "failure", None, "ann"),
    K("unix_chkpwd", "could not obtain user info (ann)", AUTH),
]  # fmt: skip
WHERE = "TTY=pts/0 ; PWD=/tmp ; USER=root ; COMMAND=/bin/sh"
PRIVILEGE = [
    K("sudo", f"     ann : {WHERE}", USED, "success", None, "ann"),
    K("sudo", "ann : PWD=/home/ann ; USER=root ; COMMAND=/usr/bin/id", USED, "success", None, "ann"),
    K("sudo", f"ann : HOST=st1 ; {WHERE}", USED, "success", None, "ann"),
    K("sudo", f"john doe : {WHERE}", USED, "success", None, "john doe"),
    *(
        K("sudo", f"ann : {reason} ; {WHERE}", DENIED, "failure", None, "ann")
        for reason in (
            "command not allowed", "user NOT in sudoers", "user NOT authorized on host", "a password is required", "command rejected by I/O plugin",
            "account validation failure, is your account locked?", "user not allowed to change root directory to /x", "a terminal is required to read the password",
            "user not allowed to set the following environment variables: LD_PRELOAD", "sorry, you must have a tty to run sudo", "something of a version to come",
        )
    ),
    K("sudo", f"ann : 3 incorrect password attempts ; {WHERE}", FAIL, "failure", None, "ann"),
    K("sudo", "ann : (command continued) /x /y", "access", None, None, "ann"),
    K("sudo", "ann : problem with defaults entries ; TTY=pts/0 ; PWD=/tmp ; USER=root ;", "access", None, None, "ann"),
    K("sudo", "unable to resolve host st1: Name or service not known", "system"),
    K("sudo", "PAM account management error: Permission denied", DENIED, "failure"),
    K("sudo", "error initializing audit plugin sudoers_audit", "system"),
    K("su", "Successful su for root by ann", USED, "success", None, "ann"),
    K("su", "FAILED SU (to root) ann on pts/0", FAIL, "failure", None, "ann"),
    K("su", "FAILED su for root by ann", FAIL, "failure", None, "ann"),
    K("su", "BAD SU ann to root on /dev/ttyp0", FAIL, "failure", None, "ann"),
    K("su", "BAD SU from ann to root at /dev/pts/1", FAIL, "failure", None, "ann"),
    K("su", "failed: ttyq4 changing from ann to root", FAIL, "failure", None, "ann"),
    K("su", "(to root) ann on pts/0", USED, "success", None, "ann"),
    K("su", "+ /dev/pts/0 ann:root", USED, "success", None, "ann"),
    K("su", "- /dev/pts/0 ann:root", FAIL, "failure", None, "ann"),
    K("su", "pam_authenticate: Authentication failure", AUTH),
    K("su", "No passwd entry for user 'x'", AUTH),
    K("su", "from ann to root at /dev/pts/1", USED, "success", None, "ann"),
    K("su", "ann to root on /dev/ttyp1", USED, "success", None, "ann"),
    K("su", "'su root' failed for ann on /dev/pts/1", FAIL, "failure", None, "ann"),
    K("su", "'su root' succeeded for ann on /dev/pts/1", USED, "success", None, "ann"),
    K("su", "ignore TIOCSTI", "system"),
    K("doas", "failed auth for ann", FAIL, "failure", None, "ann"),
    K("doas", "command not permitted for ann: /bin/sh", DENIED, "failure", None, "ann"),
    K("doas", "failed command for ann: /bin/sh", DENIED, "failure", None, "ann"),
    K("doas", "ann ran command as root: ls", USED, "success", None, "ann"),
    K("doas", "ann ran command /bin/ksh as root from /tmp", USED, "success", None, "ann"),
    K("doas", "ann ran command /bin/ksh", USED, "success", None, "ann"),
    K("pkexec", "ann: Executing command [USER=root] [TTY=/dev/pts/0] [CWD=/home/ann] [COMMAND=/usr/bin/id]", USED, "success", None, "ann"),
    K("pkexec", "ann: Error executing command as another user: Not authorized [USER=root] [TTY=unknown] [CWD=/] [COMMAND=/usr/bin/id]", DENIED, "failure", None, "ann"),
    K("pkexec", "ann: Error executing command as another user", DENIED, "failure", None, "ann"),
    K("pkexec", "ann: The value for the SHELL variable was not found the /etc/shells file [USER=root] [TTY=/dev/pts/0] [CWD=/tmp] [COMMAND=/usr/bin/]", DENIED, "failure", None, "ann"),
    K("polkitd", "Operator of unix-session:3 successfully authenticated as unix-user:root to gain TEMPORARY authorization for action org.x.y for system-bus-name::1.9 [/bin/x] (owned by unix-user:ann)", USED, "success", None, "ann"),
    K("polkitd", "Operator of unix-session:3 FAILED to authenticate to gain authorization for action org.x.y for unix-process:4:5 [/bin/x] (owned by unix-user:ann)", DENIED, "failure", None, "ann"),
    K("polkitd", "Registered Authentication Agent for unix-session:3 (system bus name :1.9)", "access"),
    K("polkitd", "Unregistered Authentication Agent for unix-session:3 (system bus name :1.9)", "access"),
    K("polkitd", "Loading rules from directory /etc/polkit-1/rules.d", "system"),
    K("polkitd", "Reloading rules", "system"),
    K("polkitd", "Finished loading, compiling and executing 9 rules", "system"),
    K("polkitd", "Acquired the name org.freedesktop.PolicyKit1 on the system bus", "system.service.started", "success"),
]  # fmt: skip
ENTRY = [
    K("login", "FAILED LOGIN SESSION FROM tty1 FOR ann, Authentication failure", REJECTED, "failure", None, "ann"),
    K("login", "FAILED LOGIN (1) on '/dev/tty1' FOR 'ann', Authentication failure", FAIL, "failure", None, "ann"),
    K("login", f"FAILED LOGIN 2 FROM {IP} FOR ann, Authentication failure", FAIL, "failure", IP, "ann"),
    K("login", "TOO MANY LOGIN TRIES (5) FROM tty1 FOR ann, Authentication failure", REJECTED, "failure", None, "ann"),
    K("login", "LOGIN ON tty1 BY ann", OK, "success", None, "ann"),
    K("login", f"LOGIN FAILURE FROM {IP} FOR ann", FAIL, "failure", IP, "ann"),
    K("login", "DIALUP AT ttyS0 BY ann", OK, "success", None, "ann"),
    K("login", f"ROOT LOGIN REFUSED ON tty1 FROM {IP}", DENIED, "failure", IP),
    K("login", "ROOT LOGIN ON tty1", OK, "success"),
    K("login", "root login on 'ttyS0'", OK, "success"),
    K("login", "invalid password for 'ann' on 'ttyS0'", FAIL, "failure", None, "ann"),
    K("login", "pam_authenticate call failed: Authentication failure (7)", AUTH),
    K("login", "PAM Failure, aborting: Critical error - immediate abort", "system", "failure"),
    K("login", "exceeded failure limit for 'ann' on '/dev/tty1'", REJECTED, "failure"),
    K("systemd-logind", "New session '3' of user 'ann' with class 'user' and type 'tty'.", "authentication.session.opened", "success", None, "ann"),
    K("systemd-logind", "New session c1 of user ann.", "authentication.session.opened", "success", None, "ann"),
    K("systemd-logind", "New seat seat0.", "system"),
    K("systemd-logind", "Session '3' logged out. Waiting for processes to exit.", "authentication.logout"),
    K("systemd-logind", "Removed session 3.", "authentication.session.closed"),
    K("systemd-logind", "User 'ann' logged out", AUTH, None, None, "ann"),
    K("systemd-logind", "The system will reboot now!", "system.shutdown"),
    K("systemd-logind", "System is powering down.", "system.shutdown"),
    K("systemd-logind", "Power key pressed short.", "system"),
    K("systemd-logind", "Powering off...", "system.shutdown"),
    K("systemd-logind", "Rebooting...", "system.shutdown"),
    K("systemd-logind", "Reboot key pressed short.", "system"),
    K("systemd-logind", "Lid closed.", "system"),
    K("systemd-logind", "Watching system buttons on /dev/input/event0 (Power Button)", "system"),
    K("systemd-logind", "Suspending...", "system"),
    K("dropbear", f"Bad password attempt for 'ann' from {IP}:40", FAIL, "failure", IP, "ann"),
    K("dropbear", f"Bad PAM password attempt for 'ann' from {IP}:40", FAIL, "failure", IP, "ann"),
    K("dropbear", "bad password attempt for 'ann'", FAIL, "failure", None, "ann"),
    K("dropbear", f"Login attempt for nonexistent user from {IP}:40", FAIL, "failure", IP),
    K("dropbear", f"login attempt for nonexistent user from {IP}:40", FAIL, "failure", IP),
    K("dropbear", f"Login attempt with wrong user ann from {IP}:40", FAIL, "failure", IP, "ann"),
    K("dropbear", f"Password auth succeeded for 'ann' from {IP}:40", OK, "success", IP, "ann"),
    K("dropbear", "password auth succeeded for 'ann'", OK, "success", None, "ann"),
    K("dropbear", f"PAM password auth succeeded for 'ann' from {IP}:40", OK, "success", IP, "ann"),
    K("dropbear", "PAM account is locked or password has expired", AUTH),
    K("dropbear", f"Auth succeeded with blank password for 'ann' from {IP}:40", OK, "success", IP, "ann"),
    K("dropbear", f"Pubkey auth succeeded for 'ann' with ssh-ed25519 key SHA256:abc from {IP}:40", OK, "success", IP, "ann"),
    K("dropbear", f"Pubkey auth bad signature for 'ann' with key md5 00:11 from {IP}:40", FAIL, "failure", IP, "ann"),
    K("dropbear", "Pubkey auth attempt with unknown algo for 'ann' from 10.0.0.1:4", AUTH, None, None, "ann"),
    K("dropbear", "pubkey auth succeeded for 'ann' with key md5 00:11", OK, "success", None, "ann"),
    K("dropbear", "User 'ann' has invalid shell, rejected", DENIED, "failure", None, "ann"),
    K("dropbear", "user 'ann' has blank password, rejected", DENIED, "failure", None, "ann"),
    K("dropbear", "root login rejected", DENIED, "failure"),
    K("dropbear", f"Child connection from {IP}:40", CONN, None, IP),
    K("dropbear", "Child connection from [2001:db8::7]:40", CONN, None, "2001:db8::7"),
    K("dropbear", f"Exit before auth from <{IP}:40>: (user 'ann', 3 fails): Max auth tries reached - user 'ann'", REJECTED, "failure", IP, "ann"),
    K("dropbear", f"Exit before auth (user 'ann', 3 fails): Max auth tries reached - user 'ann' from {IP}:40", REJECTED, "failure", IP, "ann"),
    K("dropbear", "Exit before auth (user 'ann', 3 fails): Max auth tries reached", REJECTED, "failure", None, "ann"),
    K("dropbear", f"Exit before auth from <{IP}:40>: Exited normally", CONN, "failure", IP),
    K("dropbear", "Exit before auth: Exited normally", CONN, "failure"),
    K("dropbear", f"Exit (ann) from <{IP}:40>: Disconnect received", "authentication.logout", None, IP, "ann"),
    K("dropbear", "Exit (ann): Disconnect received", "authentication.logout", None, None, "ann"),
    K("dropbear", "exit before auth (user 'ann', 3 fails): Max auth tries reached - user 'ann'", REJECTED, "failure", None, "ann"),
    K("dropbear", "exit before auth: Exited normally", CONN, "failure"),
    K("dropbear", "exit after auth (ann): Exited normally", "authentication.logout", None, None, "ann"),
    K("dropbear", "Running in background", "system.service.started", "success"),
    K("dropbear", "Not backgrounding", "system.service.started", "success"),
    K("dropbear", "Early exit: Terminated by signal", "system.service.stopped"),
    K("dropbear", "Terminated by signal", "system.service.stopped"),
    K("dropbear", "Failed listening on '22': Error listening: Address already in use", "system.service.failed", "failure"),
    K("vsftpd", f'[ann] FAIL LOGIN: Client "{IP}"', FAIL, "failure", IP, "ann"),
    K("vsftpd", f'[pid 9] [ann] OK LOGIN: Client "{IP}"', OK, "success", IP, "ann"),
    K("vsftpd", f'[ann] OK DOWNLOAD: Client "{IP}", "/x", 7 bytes, 1.00Kbyte/sec', "data.read", "success", IP, "ann"),
    K("vsftpd", f'[ann] FAIL UPLOAD: Client "{IP}", "/x", 0.00Kbyte/sec', "data.written", "failure", IP, "ann"),
    K("vsftpd", f'[ann] OK DELETE: Client "{IP}", "/x"', "data.deleted", "success", IP, "ann"),
    K("vsftpd", f'CONNECT: Client "{IP}"', CONN, None, IP),
]  # fmt: skip
PACKET = f"MAC=aa:bb SRC={IP} DST=10.0.0.2 LEN=40 TOS=0x00 PREC=0x00 TTL=64 ID=1 PROTO=TCP SPT=40 DPT=502 WINDOW=1024 RES=0x00 SYN URGP=0"
KERNEL = [
    K("kernel", f"DROP-IN: IN=eth0 OUT= {PACKET}", CONN, "failure", IP),
    K("kernel", f"[100.5] [UFW BLOCK] IN=eth0 OUT= {PACKET}", CONN, "failure", IP),
    K("kernel", f"[UFW ALLOW] IN=eth0 OUT= {PACKET}", CONN, "success", IP),
    K("kernel", f"Shorewall:net2fw:DROP:IN=eth0 OUT= {PACKET}", CONN, "failure", IP),
    K("kernel", f"reject wan in: IN=eth1 OUT= {PACKET}", CONN, "failure", IP),
    K("kernel", f"filter_IN_public_REJECT: IN=eth1 OUT= {PACKET}", CONN, "failure", IP),
    K("kernel", f"IN=eth0 OUT= {PACKET}", CONN, None, IP),
    K("kernel", f"drop IN=br0 OUT= PHYSIN=eth1 MAC=aa SRC={IP} DST=10.0.0.2 LEN=56 PROTO=ICMP TYPE=3 CODE=3 [SRC=10.0.0.2 DST={IP} PROTO=UDP SPT=1 DPT=2 ]", CONN, "failure", IP),
    K("ulogd", f"[DROP] IN=eth0 OUT= {PACKET}", CONN, "failure", IP),
    K("kernel", "usb 1-2: New USB device found, idVendor=0781, idProduct=5581, bcdDevice= 1.00", "security.usb.attached"),
    K("kernel", "usb 1-2: USB disconnect, device number 7", "system.kernel"),
    K("kernel", "usb-storage 1-2:1.0: USB Mass Storage device detected", "system.kernel"),
    K("kernel", "usb 1-2: Product: Ultra Fit", "system.kernel"),
    K("kernel", "usb 1-2: Device is not authorized for usage", "system.kernel"),
    K("kernel", "input: ACME Keyboard as /devices/pci0000:00/0000:00:14.0/usb1/1-2/input/input7", "system.kernel"),
    K("kernel", "sd 2:0:0:0: [sdb] Attached SCSI removable disk", "system.kernel"),
    K("kernel", "TCP: request_sock_TCP: Possible SYN flooding on port 0.0.0.0:22. Sending cookies.", "network.flood"),
    K("kernel", "TCP: request_sock_TCP: Possible SYN flooding on port 22. Sending cookies.  Check SNMP counters.", "network.flood"),
    K("kernel", "possible SYN flooding on port 80. Sending cookies.", "network.flood"),
    K("kernel", "nf_conntrack: nf_conntrack: table full, dropping packet", "network.flood", "failure"),
    K("kernel", "neighbour: arp_cache: neighbor table overflow!", "network.flood", "failure"),
    K("kernel", f"IPv4: martian source 10.0.0.1 from {IP}, on dev eth0", CONN, "failure", IP),
    K("kernel", "device eth0 entered promiscuous mode", SCAN),
    K("kernel", "e1000e 0000:00:1f.6 eth0: entered promiscuous mode", SCAN),
    K("kernel", "device veth12 entered promiscuous mode", "network"),
    K("kernel", "device eth0 left promiscuous mode", "network"),
    K("kernel", "e1000e 0000:00:1f.6 eth0: NIC Link is Down", "network.link.down", "failure"),
    K("kernel", "igb 0000:01:00.0 eth1: igb: eth1 NIC Link is Up 1000 Mbps Full Duplex", "network.link.up"),
    K("kernel", "r8169 0000:02:00.0: eth0: link down", "network.link.down", "failure"),
    K("kernel", "r8169 0000:02:00.0: eth0: link up", "network.link.up"),
    K("kernel", "eth0: carrier lost", "network.link.down", "failure"),
    K("kernel", "IPv6: ADDRCONF(NETDEV_CHANGE): eth0: link becomes ready", "network.link.up"),
    K("kernel", "rootkit: loading out-of-tree module taints kernel.", "configuration.changed"),
    K("kernel", "rootkit: module verification failed: signature and/or required key missing - tainting kernel", "configuration.changed"),
    K("kernel", "r8188eu: module is from the staging directory, the quality is unknown, you have been warned.", "configuration.changed"),
    K("kernel", "Disabling lock debugging due to kernel taint", "system.kernel"),
    K("kernel", "PKCS#7 signature not signed with a trusted key", "security.policy.violated", "failure"),
    K("kernel", "Lockdown: insmod: unsigned module loading is restricted; see man kernel_lockdown.7", "security.policy.violated", "failure"),
    K("kernel", "Kernel is locked down from EFI Secure Boot; see man kernel_lockdown.7", "system.kernel"),
    K("kernel", "ima: appraise_data cause=invalid-signature", "security.policy.violated", "failure"),
    K("kernel", "hmi[77]: segfault at 0 ip 00007f00 sp 00007ffd error 4 in libc.so.6", "application.error", "failure"),
    K("kernel", "hmi[77]: segfault at 0", "application.error", "failure"),
    K("kernel", "traps: hmi[77] general protection fault ip:7f00 sp:7ffd error:0", "application.error", "failure"),
    K("kernel", "traps: hmi[77] general protection ip:7f00 sp:7ffd error:0", "application.error", "failure"),
    K("kernel", "hmi invoked oom-killer: gfp_mask=0x1100cca", "system.kernel"),
    K("kernel", "Out of memory: Killed process 812 (python3) total-vm:1kB", "system.memory.exhausted", "failure"),
    K("kernel", "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),task=python3,pid=812,uid=1000", "system.memory.exhausted", "failure"),
    K("kernel", "INFO: task jbd2/sda1-8:77 blocked for more than 120 seconds.", "system.kernel", "failure"),
    K("kernel", 'audit: type=1400 audit(1772359200.100:7): apparmor="STATUS" operation="profile_load" name="x" pid=7 comm="apparmor_parser"', "configuration.changed", "success"),
    K("kernel", "audit: audit_lost=6 audit_rate_limit=0 audit_backlog_limit=64", "security", "failure"),
    K("kernel", "EXT4-fs error (device sda1): ext4_find_entry:1455", "system.kernel", "failure"),
    K("kernel", "XFS (sda1): Metadata corruption detected", "system.kernel", "failure"),
    K("kernel", "blk_update_request: I/O error, dev sda, sector 77", "system.kernel", "failure"),
    K("kernel", "EXT4-fs (sda1): mounted filesystem with ordered data mode", "system.kernel"),
    K("kernel", "CPU0: Core temperature above threshold, cpu clock throttled", "system.kernel"),
    K("kernel", "mce: [Hardware Error]: Machine check events logged", "system.kernel", "failure"),
    K("kernel", "watchdog: BUG: soft lockup - CPU#1 stuck for 22s!", "system.kernel", "failure"),
    K("kernel", "BUG: unable to handle page fault for address: 0000", "system.kernel", "failure"),
    K("kernel", "Linux version 6.1.0-9-amd64", "system.booted", "success"),
    K("kernel", "Kernel panic - not syncing: VFS", "system.kernel", "failure"),
    K("kernel", "reboot: Restarting system", "system.shutdown"),
]  # fmt: skip
OTHERS = [
    K("CROND", "(root) CMD (run-parts /etc/cron.hourly)", "system.job.ran", "success", None, "root"),
    K("CRON", "(root) CMDEND (x)", "system.job.ran", "success", None, "root"),
    K("crontab", "(ann) REPLACE (ann)", "configuration.changed", "success", None, "ann"),
    K("crond", "(root) RELOAD (/var/spool/cron/root)", "configuration.changed", "success", None, "root"),
    K("crontab", "(ann) BEGIN EDIT (ann)", "configuration", None, None, "ann"),
    K("crontab", "(ann) AUTH (crontab command not allowed)", DENIED, "failure", None, "ann"),
    K("CRON", "(root) WRONG FILE OWNER (/etc/cron.d/x)", DENIED, "failure", None, "root"),
    K("crond", "(CRON) STARTUP (1.5.7)", "system"),
    K("CRON", "(root) MAIL (mailed 7 bytes of output)", "system.job.ran", None, None, "root"),
    K("crond", "USER root pid 123 cmd /bin/x", "system.job.ran", "success", None, "root"),
    K("atd", "Starting job 3 (a00003) for user 'root' (0)", "system.job.ran", "success", None, "root"),
    K("anacron", "Job `cron.daily' started", "system.job.ran", "success"),
    K("systemd", "Time has been changed", "system.clock.stepped"),
    K("systemd", "Unit hmi.service entered failed state.", "system.service.failed", "failure"),
    K("systemd", "hmi.service: Failed at step EXEC spawning /opt/hmi: No such file or directory", "system.service.failed", "failure"),
    K("systemd", "hmi.service: Control process exited, code=exited, status=1/FAILURE", "system.service.failed", "failure"),
    K("audispd", 'node=h type=AVC msg=audit(1772359200.100:7): apparmor="DENIED" operation="open" profile="x"', "security.policy.violated", "failure"),
    K("auditd", "Audit daemon has no space left on logging partition", "system.disk.pressure", "failure"),
    K("auditd", "The audit daemon is exiting.", "security.logging.stopped"),
    K("systemd-journald", "Suppressed 77 messages from hmi.service", "system", "failure"),
    K("systemd-journald", "File /var/log/journal/x/system.journal corrupted or uncleanly shut down, renaming and replacing.", "security", "failure"),
    K("rsyslogd-2177", "imuxsock begins to drop messages from pid 7 due to rate-limiting", "system", "failure"),
    K("syslogd", "started: BusyBox v1.36.1", "system.service.started", "success"),
]  # fmt: skip
KNOWN = [*SSHD, *PAM, *PRIVILEGE, *ENTRY, *KERNEL, *OTHERS]

# What stays `log.line`, and why.
LEFT: list[tuple[str, str, str]] = [
    ("sshd", "debug1: channel 5: connection failed: Connection refused", "of a debugging level, which no one collects"),
    (
        "sshd",
        'error: Could not stat AuthorizedKeysCommand "/x": No such file or directory',
        "about the configuration of sshd",
    ),
    (
        "sshd",
        "SSH: Server;Ltype: Version;Remote: 192.0.2.7-1780;Protocol: 2.0;Client: x",
        "of a patched sshd; the plain line stands beside it",
    ),
    ("sshd", "Disconnected from strange user ann 192.0.2.7 port 40 [preauth]", "no wording of any sshd"),
    ("sshd", "fatal: mm_request_receive: read: Connection reset by peer", "about sshd's own processes"),
    ("cron", "pam_loginuid(cron:session): set_loginuid failed", "about PAM's own work; nobody was refused"),
    (
        "gdm",
        "pam_env(gdm:session): unable to open env file: /etc/default/locale",
        "about PAM's own work; nobody was refused",
    ),
    ("login", "pam_lastlog(login:session): file /var/log/lastlog created", "about PAM's own work; nobody was refused"),
    ("sudo", "nss_ldap: reconnected to LDAP server", "about a library"),
    ("su", "cannot set groups: Operation not permitted", "about su's own work; nobody was refused"),
    ("kernel", "nouveau E[  PGRAPH][0000:0f:00.0] DATA_ERROR", "of a driver, without meaning for security"),
    ("kernel", "docker0: port 1(veth1) entered blocking state", "of a bridge, without meaning for security"),
    ("hmi", "operator Ann pressed start", "of a program that no table knows"),
]


def event_of(program: str, text: str) -> Event:
    (event,) = read("auth", f"Mar  1 10:00:00 host {program}[7]: {text}")
    return event


@pytest.mark.parametrize("known", KNOWN, ids=lambda each: f"{each.program}: {each.text[:60]}")
def test_a_message_is_known_with_outcome_address_and_actor(known: Known) -> None:
    event = event_of(known.program, known.text)
    assert (event.type, event.outcome, event.src_ip, event.actor) == known[2:]
    assert event.type in TAXONOMY
    assert event.raw is None
    assert "ambiguous" not in event.data


@pytest.mark.parametrize(("program", "text", "reason"), LEFT)
def test_what_stays_a_line_has_its_reason(program: str, text: str, reason: str) -> None:
    event = event_of(program, text)
    assert event.type == "log.line"
    assert event.raw is not None
    assert len(reason.split()) >= 3


def inside(value: object) -> list[object]:
    """What a table, or a reader made of tables, holds."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple):
        return list(value)
    return [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]


def rules_of(*modules: object) -> dict[int, Rule]:
    """Every Rule that the tables of the modules hold, at any depth."""
    found: dict[int, Rule] = {}
    seen: set[int] = set()
    waiting: list[object] = [value for module in modules for value in vars(module).values()]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Rule):
            found[id(value)] = value
        elif isinstance(value, dict | list | tuple) or callable(value):
            waiting += inside(value)
    return found


def test_every_rule_is_met_by_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    met: set[int] = set()
    plain = Rule.found

    def found(self: Rule, *arguments: object) -> object:
        met.add(id(self))
        return plain(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Rule, "found", found)
    for known in KNOWN:
        event_of(known.program, known.text)
    rules = rules_of(sshd, pam, privilege, logins, kernel)
    assert len(rules) > 250
    left = [rule.pattern.pattern for key, rule in rules.items() if key not in met]
    assert left == []
    assert len(rules_of(system)) > 60
