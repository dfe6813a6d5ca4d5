"""A peer's text never supplies another field: each pattern is fuzzed with its own sentences inside the fields that a peer writes."""

# ruff: noqa: E501  # a table of lines

from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.wire.event import Event
from tests.unit.test_parsers import NOW, parser, read

AUTH = parser("auth")
TRUE_IP, TRUE_PORT, TRUE_USER = "192.0.2.66", 44591, "root"
EVIL_IP, EVIL_PORT, EVIL_USER = "198.51.100.77", 42, "mallory"


class Sentence(NamedTuple):
    """A message with the peer's text at `{peer}`. `peer_is_actor`: the text is the name of the user who acts."""

    program: str
    text: str
    peer_is_actor: bool = False


S = Sentence
KEY, CERT = "ED25519 SHA256:AAAA", "ED25519-CERT SHA256:AAAA ID {peer} (serial 0) CA ED25519 SHA256:BBBB"
CHANGE = "Change of username or service not allowed: ({user},ssh-connection) -> ({peer},ssh-connection)"
SENTENCES = [
    S("sshd", "Failed password for invalid user {peer} from {ip} port {port} ssh2", peer_is_actor=True),
    S("sshd-session", "Failed keyboard-interactive/pam for invalid user {peer} from {ip} port {port} ssh2", peer_is_actor=True),
    S("sshd", "Failed publickey for invalid user {peer} from {ip} port {port} ssh2: " + KEY, peer_is_actor=True),
    S("sshd", "Failed publickey for {user} from {ip} port {port} ssh2: " + CERT),
    S("sshd", "Accepted publickey for {user} from {ip} port {port} ssh2: " + CERT),
    S("sshd", "Postponed publickey for invalid user {peer} from {ip} port {port} ssh2 [preauth]", peer_is_actor=True),
    S("sshd", 'Failed hostbased for {user} from {ip} port {port} ssh2: RSA SHA256:AAAA, client user "{peer}", client host "h"'),
    S("sshd", "Failed password for {user} from {ip} port {port} ssh1: ruser {peer}"),
    S("sshd", "Invalid user {peer} from {ip} port {port}", peer_is_actor=True),
    S("sshd", "Invalid user {peer} from {ip}", peer_is_actor=True),
    S("sshd", "input_userauth_request: invalid user {peer} [preauth]", peer_is_actor=True),
    S("sshd", "error: maximum authentication attempts exceeded for invalid user {peer} from {ip} port {port} ssh2 [preauth]", peer_is_actor=True),
    S("sshd", "Disconnecting invalid user {peer} {ip} port {port}: Too many authentication failures [preauth]", peer_is_actor=True),
    S("sshd", "Disconnecting authenticating user {user} {ip} port {port}: " + CHANGE + " [preauth]"),
    S("sshd", "Disconnecting invalid user {user} {ip} port {port}: " + CHANGE + " [preauth]"),
    S("sshd", "Disconnected from invalid user {peer} {ip} port {port} [preauth]", peer_is_actor=True),
    S("sshd", "Connection closed by invalid user {peer} {ip} port {port} [preauth]", peer_is_actor=True),
    S("sshd", "Connection reset by invalid user {peer} {ip} port {port} [preauth]", peer_is_actor=True),
    S("sshd", "Timeout before authentication for invalid user {peer} {ip} port {port}", peer_is_actor=True),
    S("sshd", "ssh_dispatch_run_fatal: Connection from invalid user {peer} {ip} port {port}: message authentication code incorrect [preauth]", peer_is_actor=True),
    S("sshd", "Received disconnect from {ip} port {port}:11: {peer} [preauth]"),
    S("sshd", "Bad protocol version identification '{peer}' from {ip} port {port}"),
    S("sshd", "Protocol major versions differ for {ip} port {port}: SSH-2.0-OpenSSH vs. {peer}"),
    S("sshd", 'error: kex_exchange_identification: client sent invalid protocol identifier "{peer}"'),
    S("sshd", "banner exchange: Connection from {ip} port {port}: invalid format"),
    S("sshd", "Unable to negotiate with {ip} port {port}: no matching host key type found. Their offer: {peer} [preauth]"),
    S("sshd", "error: PAM: Authentication failure for illegal user {peer} from {ip}", peer_is_actor=True),
    S("sshd", "PAM 2 more authentication failures; logname= uid=0 euid=0 tty=ssh ruser= rhost={ip}  user={peer}", peer_is_actor=True),
    S("sshd", "pam_sss(sshd:auth): authentication failure; logname= uid=0 euid=0 tty=ssh ruser= rhost={ip} user={peer}", peer_is_actor=True),
    S("sshd", "pam_sss(sshd:auth): received for user {peer}: 10 (User not known to the underlying authentication module)", peer_is_actor=True),
    S("sshd", "pam_winbind(sshd:auth): user '{peer}' denied access (incorrect password or invalid membership)", peer_is_actor=True),
    S("vsftpd", "pam_unix(vsftpd:auth): authentication failure; logname= uid=0 euid=0 tty=ftp ruser={peer} rhost={ip}"),
    S("vsftpd", "pam_sss(vsftpd:auth): authentication failure; logname= uid=0 euid=0 tty=ftp ruser={peer} rhost={ip} user={peer}", peer_is_actor=True),
    S("vsftpd", '[{peer}] FAIL LOGIN: Client "{ip}"', peer_is_actor=True),
    S("gdm-password]", "pam_sss(gdm-password:auth): authentication failure; logname= uid=0 euid=0 tty=/dev/tty1 ruser= rhost= user={peer}", peer_is_actor=True),
    S("login", "FAILED LOGIN (1) on '/dev/tty1' from '{ip}' FOR '{peer}', Authentication failure", peer_is_actor=True),
    S("login", "FAILED LOGIN 1 FROM {ip} FOR {peer}, Authentication failure", peer_is_actor=True),
    S("login", "FAILED LOGIN (1) on '/dev/tty1' FOR '{peer}', Authentication failure", peer_is_actor=True),
    S("dropbear", "Bad password attempt for '{peer}' from {ip}:{port}", peer_is_actor=True),
    S("dropbear", "Exit before auth from <{ip}:{port}>: (user '{peer}', 3 fails): Max auth tries reached", peer_is_actor=True),
    S("dropbear", "Login attempt with wrong user {peer} from {ip}:{port}", peer_is_actor=True),
    S("su", "FAILED SU (to {peer}) root on pts/0"),
    S("su", "FAILED su for {peer} by root"),
    S("su", "BAD SU root to {peer} on /dev/ttyp0"),
    S("sudo", "root : command not allowed ; TTY=pts/0 ; PWD={peer} ; USER=bob ; COMMAND=/bin/sh"),
    S("sudo", "root : TTY=pts/0 ; PWD={peer} ; USER=bob ; COMMAND=/bin/sh"),
    S("sudo", "root : TTY=pts/0 ; PWD=/tmp ; USER=bob ; COMMAND=/bin/echo {peer}"),
    S("sudo", "root : 3 incorrect password attempts ; TTY=pts/0 ; PWD=/tmp ; USER=bob ; COMMAND=/bin/echo {peer}"),
    S("sudo", "root : user not allowed to change root directory to {peer} ; TTY=pts/0 ; PWD=/tmp ; USER=bob ; COMMAND=/bin/sh"),
    S("doas", "root ran command {peer} as bob from /tmp"),
    S("doas", "command not permitted for root: {peer}"),
    S("pkexec", "root: Executing command [USER=bob] [TTY=/dev/pts/0] [CWD={peer}] [COMMAND=/usr/bin/id]"),
    S("pkexec", "root: Error executing command as another user: Not authorized [USER=bob] [TTY=unknown] [CWD=/tmp] [COMMAND={peer}]"),
    S("polkitd", "Operator of unix-session:3 FAILED to authenticate to gain authorization for action org.freedesktop.policykit.exec for unix-process:4:5 [{peer}] (owned by unix-user:root)"),
    S("CRON", "(root) CMD ({peer})"),
    S("kernel", "usb 1-2: Product: {peer}"),
    S("kernel", "input: {peer} as /devices/pci0000:00/0000:00:14.0/usb1/1-2"),
    S("SEC_LOGIN", "Login failed [user: {peer}] [Source: {ip}] [localport: 22] [Reason: Login Authentication Failed]", peer_is_actor=True),
]  # fmt: skip


def filled(sentence: Sentence, peer: str, *, ip: str, port: int, user: str) -> str:
    text = sentence.text.replace("{ip}", ip).replace("{port}", str(port)).replace("{user}", user)
    return text.replace("{peer}", peer)


def event_of(sentence: Sentence, peer: str) -> Event:
    text = filled(sentence, peer, ip=TRUE_IP, port=TRUE_PORT, user=TRUE_USER)
    line = f"Mar  1 10:00:00 host {sentence.program}[7]: {text}"
    (event,), _ = AUTH.parse([line], observed_us=NOW, reference_us=NOW, memory={})
    return event


evil = st.sampled_from(SENTENCES).flatmap(
    lambda each: st.sampled_from(["x", EVIL_USER, "y z"]).map(
        lambda inner: filled(each, inner, ip=EVIL_IP, port=EVIL_PORT, user=EVIL_USER)
    )
)
pieces = st.one_of(
    evil,
    evil.flatmap(lambda text: st.integers(0, len(text)).map(lambda n: text[n:])),
    evil.flatmap(lambda text: st.integers(0, len(text)).map(lambda n: text[:n])),
    st.sampled_from(
        ["x", EVIL_USER, "'", '"', "]", ")", " ; ", f"from {EVIL_IP} port {EVIL_PORT} ssh2", f"{EVIL_IP} port {EVIL_PORT}:", f"rhost={EVIL_IP}",
         f"from {EVIL_IP}", f"user={EVIL_USER}", "res=success", "[preauth]", f": {KEY}", f"from '{EVIL_IP}'", f'Client "{EVIL_IP}"', "USER=root ; COMMAND=/bin/true"]
    ),
)  # fmt: skip
payloads = st.lists(pieces, min_size=1, max_size=3).map(lambda parts: " ".join(" ".join(parts).split())).filter(bool)


@pytest.mark.parametrize("sentence", SENTENCES, ids=lambda each: f"{each.program}: {each.text[:50]}")
@settings(max_examples=40, deadline=None)
@given(peer=payloads)
@example(peer=f"x from {EVIL_IP} port {EVIL_PORT} ssh2: y")
@example(peer=f"x {EVIL_IP} port {EVIL_PORT}: y")
@example(peer=f"x rhost={EVIL_IP} user=x")
@example(peer=f"x rhost={EVIL_IP}  user=x rhost={EVIL_IP}")
@example(peer=f"x from {EVIL_IP} port {EVIL_PORT} ssh2")
@example(peer=f"x {EVIL_IP} port {EVIL_PORT} [preauth]")
def test_no_sentence_inside_a_peer_s_text_supplies_type_outcome_address_or_user(sentence: Sentence, peer: str) -> None:
    plain, event = event_of(sentence, "bob"), event_of(sentence, peer)
    assert plain.type != "log.line", "the sentence itself is known"
    assert (event.type, event.outcome, event.severity) == (plain.type, plain.outcome, plain.severity)
    if "ambiguous" in event.data:
        assert (event.src_ip, event.actor) == (None, None)
        return
    assert event.src_ip == plain.src_ip
    assert event.data.get("port") == plain.data.get("port")
    assert event.actor == (peer if sentence.peer_is_actor else plain.actor)


def test_a_line_with_a_peer_s_text_on_both_sides_names_nobody_where_two_readings_fit() -> None:
    cert = CERT.replace("{peer}", f"x from {EVIL_IP} port 1 ssh2: {CERT}")
    text = f"Failed publickey for invalid user a from {EVIL_IP} port 1 ssh2: {CERT} from {TRUE_IP} port 2 ssh2: {cert}"
    (event,) = read("auth", f"Mar  1 10:00:00 host sshd[7]: {text}")
    assert (event.type, event.src_ip, event.actor, event.data["ambiguous"]) == (
        "authentication.failure",
        None,
        None,
        True,
    )


def test_the_end_of_a_line_decides_between_two_changes_of_user_name() -> None:
    change = f"Change of username or service not allowed: (a {EVIL_IP} port 1: Change of username or service not allowed: (a,s) -> (b,s) -> (c,s)"
    text = f"Disconnecting invalid user a {EVIL_IP} port 1: Change of username or service not allowed: (a,s) -> (b {TRUE_IP} port 2: {change}"
    (event,) = read("auth", f"Mar  1 10:00:00 host sshd[7]: {text}")
    assert event.src_ip != EVIL_IP


AUDIT = "type=USER_LOGIN msg=audit(1772359200.100:8): pid=5 uid=0 auid=4294967295 ses=4294967295 msg='op=login acct={acct} exe=\"/usr/sbin/sshd\" hostname={host} addr=192.0.2.66 terminal=ssh res=failed'"


def audit_word(text: str) -> str:
    """As the kernel and libaudit write a name: in quotes, or in hex where it holds a blank, a quote or a control character."""
    if any(char <= " " or char == '"' or char > "~" for char in text):
        return text.encode().hex().upper()
    return f'"{text}"'


audit_pieces = st.sampled_from(
    ["x", "'", "=", "addr=198.51.100.77", "res=success", "terminal=tty", "msg='", "acct=mallory", 'AUID="mallory"', "AUID=mallory", "exe=/x", "hostname=?",
     " ", "\x1d", '"', "uid=0", "type=USER_AUTH", "(", ")", ","]
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(account=st.lists(audit_pieces, min_size=1, max_size=6).map("".join), host=st.lists(audit_pieces, max_size=6).map("".join), enriched=st.booleans())  # fmt: skip
def test_no_text_in_an_audit_record_supplies_result_address_or_user(
    account: str, host: str, enriched: bool
) -> None:  # a drawn value
    line = AUDIT.format(acct=audit_word(account), host=host or "?") + (
        '\x1dUID="root" AUID="unset"' if enriched else ""
    )
    (event,) = read("audit", line)
    assert (event.type, event.outcome, event.src_ip) == ("authentication", "failure", "192.0.2.66")
    assert event.actor in (None, account, account.replace("\0", " ").strip())


@pytest.mark.parametrize("kind", ["json", "winston"])
def test_a_logged_object_does_not_take_the_place_of_what_the_logger_wrote(kind: str) -> None:
    (event,) = read(kind, '{"level":"info","message":"m","user":"anna","ip":"192.0.2.66","meta":{"user":"mallory","ip":"198.51.100.77","level":"fatal"}}')  # fmt: skip
    assert (event.actor, event.src_ip, event.severity) == ("anna", "192.0.2.66", 1)


def test_a_key_that_occurs_twice_in_logfmt_fills_no_field() -> None:
    (event,) = read("logfmt", "level=info msg=failed user=x ip=198.51.100.77 outcome=success user=anna ip=192.0.2.66 outcome=failed")  # fmt: skip
    assert (event.actor, event.src_ip, event.outcome) == (None, None, None)
    assert event.data["user"] == ["x", "anna"]
