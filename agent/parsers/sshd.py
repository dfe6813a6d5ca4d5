"""Messages of OpenSSH's server.

sshd writes one refused sign-in in several lines ("Invalid user", "pam_unix(sshd:auth)", "Failed password", "PAM 2 more"). Only the line that
stands for one attempt, "Failed …", is an `authentication.failure`; the others are `authentication` with what they add, so that counting
failures counts attempts. With keyboard-interactive "error: PAM: …" may be the only line of an attempt, so both are voices of it (attempts.py).

Three texts of a line are the peer's: the name of a user that does not exist, the key id of a certificate, and the reason of a
disconnect. The name of a user that exists is not (it is an account of this host), so for those the line is read from the left; the line
of an unknown user is read by its end. Where a line has text of the peer on both sides, each reading has to fit the whole line; if more
than one does, no address is recorded, and `data.ambiguous` is set.
"""

# ruff: noqa: E501  # tables: a pattern stands on one line

import re
from typing import Any

from agent.parsers.base import Found, Reader, Rule, by_first_word, first_of, ip_of, put_source
from agent.parsers.pam import pam

SIGN_IN_REFUSED = "sign-in refused"

_ATTEMPT = re.compile(r"(Failed|Accepted|Postponed|Partial) ([^ ]+) for (invalid user |illegal user )?")
_PEER = re.compile(r" from ([^ ]+) port (\d{1,5})(?: ssh\d?)?(?:: |$)")
_PEER_WITHOUT_PORT = re.compile(r" from ([^ ]+)()$")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9@.-]+ [A-Za-z0-9+/=:-]+(?:, client user .*)?", re.DOTALL)
_CERTIFICATE = re.compile(r"[A-Za-z0-9@.-]+ [A-Za-z0-9+/=:]+ ID .* \(serial \d+\) CA [A-Za-z0-9@.-]+ [A-Za-z0-9+/=:]+", re.DOTALL)  # fmt: skip
_BY_KEY = frozenset({"publickey", "hostbased"})
_NOT_THE_ATTEMPT = frozenset({"none"})
"""Methods by which a client only asks which methods there are."""


def _peer_of(rest: str, method: str, *, user_known: bool) -> re.Match[str] | None:
    """The part ` from ADDRESS port N` that sshd wrote, among those that look like it."""
    peers = list(_PEER.finditer(rest))
    if len(peers) <= 1:
        return peers[0] if peers else _PEER_WITHOUT_PORT.search(rest)
    if user_known and rest.startswith("ruser ", peers[0].end()):  # protocol 1: the client's own name for itself follows
        return peers[0]
    if peers[-1].end() == len(rest) and (not user_known or method not in _BY_KEY):
        return peers[-1]
    if user_known:
        return peers[0]
    if _PLAIN_KEY.fullmatch(rest, peers[-1].end()):
        return peers[-1]
    fitting = [peer for peer in peers if _CERTIFICATE.fullmatch(rest, peer.end())]
    return fitting[0] if len(fitting) == 1 else None


_PLAIN = re.compile(r"(Failed|Accepted) ([^ ]+) for (invalid user )?([^ ]+) from ([\da-f.:]+) port (\d{1,5}) ssh2(?:: (.*))?$", re.DOTALL)  # fmt: skip
"""An attempt with one ` from ` in it: nothing to choose between."""


def _attempt(text: str, data: dict[str, Any]) -> Found | None:
    plain = _PLAIN.match(text) if text.count(" from ") == 1 else None
    if plain is not None:
        verb, method, invalid, user, src, port, key = plain.groups()
        src_ip = _put_attempt(data, method, invalid, src, port, key)
        return _judged(verb, method, src_ip, user)
    head = _ATTEMPT.match(text)
    if head is None:
        return None
    verb, method, invalid = head.groups()
    rest = text[head.end() :]
    peer = _peer_of(rest, method, user_known=not invalid)
    if peer is not None:
        src_ip = _put_attempt(data, method, invalid, peer[1], peer[2], rest[peer.end() :])
        return _judged(verb, method, src_ip, rest[: peer.start()])
    if _PEER.search(rest) is None:
        return None
    _put_attempt(data, method, invalid, "", "", None)
    data["ambiguous"] = True
    return _judged(verb, method, None, None)


def _put_attempt(
    data: dict[str, Any], method: str, invalid: str | None, src: str, port: str, key: str | None
) -> str | None:
    """Put what is known of an attempt into `data`; return the address. Of a key, not its id, which its owner chose."""
    data["method"] = method
    if port:
        data["port"] = int(port)
    if invalid:
        data["user_known"] = False
    if key:
        data["key"] = key.partition(" ID ")[0].partition(", client ")[0]
    return ip_of(src) or put_source(src, data)


def _judged(verb: str, method: str, src_ip: str | None, user: str | None) -> Found:
    if verb == "Accepted":
        return Found("authentication.success", 1, src_ip, None, "success", "sign-in accepted", user)
    if verb != "Failed":
        message = "sign-in not decided yet" if verb == "Postponed" else "sign-in needs one more step"
        return Found("authentication", 1, src_ip, None, None, message, user)
    if method in _NOT_THE_ATTEMPT:
        return Found("authentication", 1, src_ip, None, None, "sign-in methods asked for", user)
    voice = "sshd" if method.startswith("keyboard-interactive") else None
    return Found("authentication.failure", 3, src_ip, None, "failure", SIGN_IN_REFUSED, user, voice)


_DISCONNECTING = re.compile(r"Disconnecting (?:(authenticating |invalid )?user )?")
_ADDRESS = re.compile(r"(?:^| )([^ ]+) port (\d{1,5}):(?= )")
_CHANGE = "Change of username or service not allowed: ("


def _disconnecting(text: str, data: dict[str, Any]) -> Found | None:
    head = _DISCONNECTING.match(text)
    if head is None:
        return None
    rest = text[head.end() :]
    named = head[0] != "Disconnecting "
    peers = [peer for peer in _ADDRESS.finditer(rest) if ip_of(peer[1]) is not None]
    if not peers or (not named and peers[0].start() != 0):
        return None
    peer: re.Match[str] | None = peers[0]
    if head[1] == "invalid ":
        data["user_known"] = False
        fitting = [
            each for each in peers if rest.endswith(")") and rest.startswith(f" {_CHANGE}{rest[: each.start()]},", each.end())
        ]  # fmt: skip
        peer = (fitting[0] if len(fitting) == 1 else None) if fitting else peers[-1]
    if peer is None:
        data["ambiguous"] = True
        return Found("network.connection", 2, None, None, "failure", "connection ended by sshd")
    data["port"] = int(peer[2])
    reason = rest[peer.end() + 1 :]
    actor = rest[: peer.start()] if named else None
    if reason.startswith("Too many authentication failures"):
        return Found("authentication.session.rejected", 3, ip_of(peer[1]), None, "failure", "too many refused sign-ins in one connection", actor)  # fmt: skip
    data["reason"] = reason.partition(": (")[0][:200]
    return Found("network.connection", 2, ip_of(peer[1]), None, "failure", "connection ended by sshd", actor)


_USER = r"(?:(?:authenticating |invalid )?user (?P<actor>.*) )?"
_AT = r"(?P<src>\S+) port (?P<port>\d+)"
_ENDED = "connection ended before sign-in"
_TOO_MANY = "too many refused sign-ins in one connection"
_MAY_NOT = "user may not sign in"
_CERT_REFUSED = "certificate refused"
_RULES: dict[str, tuple[Rule, ...]] = {
    "Invalid": (Rule(r"Invalid user (?P<actor>.*) from (?P<src>\S+)(?: port (?P<port>\d+))?$", "authentication", "sign-in with an unknown user name", severity=2),),
    "Illegal": (Rule(r"Illegal user (?P<actor>.*) from (?P<src>\S+)(?: port (?P<port>\d+))?$", "authentication", "sign-in with an unknown user name", severity=2),),
    "input_userauth_request:": (Rule(r"input_userauth_request: (?:invalid|illegal) user (?P<actor>.*)$", "authentication", "sign-in with an unknown user name"),),
    "User": (
        Rule(r"User (?P<actor>.+?) from (?P<src>\S+) not allowed because (?P<reason>.*)$", "access.denied", _MAY_NOT, "failure"),
        Rule(r"User (?P<actor>\S+) not allowed because (?P<reason>.*)$", "access.denied", _MAY_NOT, "failure"),
        Rule(r"User (?P<actor>\S+) (?P<reason>password has expired.*)$", "access.denied", "password has expired", "failure"),
        Rule(r"User child is on pid", "authentication", "session process started"),
    ),
    "Account": (Rule(r"Account (?P<actor>\S+) has expired", "access.denied", "account has expired", "failure"),),
    "Login": (Rule(r"Login restricted for (?P<actor>\S+): (?P<reason>.*)$", "access.denied", _MAY_NOT, "failure"),),
    "login_get_lastlog:": (Rule(r"login_get_lastlog: Cannot find account", "authentication", "no record of the last sign-in"),),
    "ROOT": (Rule(r"ROOT LOGIN REFUSED FROM (?P<src>\S+)(?: port (?P<port>\d+))?", "access.denied", "root may not sign in", "failure"),),
    "Access": (Rule(r"Access denied for user (?P<actor>.+) by PAM account configuration$", "access.denied", "account may not be used", "failure", voice="sshd"),),
    "Authentication": (
        Rule(r"Authentication tried for (?P<actor>\S+) with correct key but not from a permitted host \(host=(?P<src_host>[^\s,)]*), ip=(?P<src>[^\s,)]+)", "access.denied", "key may not be used from this address", "failure"),
        Rule(r"Authentication refused: (?P<reason>bad ownership or modes)", "authentication", "key file ignored for its permissions", severity=2),
        Rule(r"Authentication key (?P<key>\S+ \S+) revoked by file ", "access.denied", "key was revoked", "failure", 4),
    ),
    "WARNING:": (Rule(r"WARNING: authentication attempt with a revoked (?P<key>\S+ (?:key )?\S+)", "access.denied", "key was revoked", "failure", 4),),
    "cert:": (
        Rule(r"cert: Authentication tried for (?P<actor>\S+) with valid certificate but not from a permitted (?:source address|host) \((?:host=(?P<src_host>[^\s,)]*), ip=)?(?P<src>[^\s,)]+)", "access.denied", "certificate may not be used from this address", "failure"),
        Rule(r"cert: ", "access.denied", _CERT_REFUSED, "failure"),
    ),
    "Certificate": (
        Rule(r"Certificate invalid: (?P<reason>expired|not yet valid|name is not a listed principal|not a (?:host|user) certificate)", "access.denied", _CERT_REFUSED, "failure"),
        Rule(r"Certificate (?:has|does not|lacks|contains|extension|critical)", "access.denied", _CERT_REFUSED, "failure"),
    ),
    "Refusing": (Rule(r"Refusing (?P<reason>certificate|login|key|to) ", "access.denied", "key or certificate refused", "failure"),),
    "refusing": (Rule(r"refusing (?P<key>\S+) key", "access.denied", "key refused", "failure"),),
    "Received": (
        Rule(r"Received disconnect from (?P<src>[\da-fA-F.:]*[\da-fA-F.]|\S+?)(?: port (?P<port>\d+))?: ?(?P<code>\d+): (?P<reason>.*)$", "network.connection", "connection ended by the client"),
        Rule(r"Received signal (?P<signal>\d+)", "system.service.stopped", "sshd stops"),
        Rule(r"Received SIGHUP", "system.service.started", "sshd reads its configuration again"),
    ),
    "Disconnected": (
        Rule(rf"Disconnected from user (?P<actor>.*) {_AT}$", "authentication.logout", "signed out"),
        Rule(rf"Disconnected from (?:authenticating |invalid )user (?P<actor>.*) {_AT}$", "network.connection", _ENDED, "failure"),
        Rule(r"Disconnected from (?P<src>\S+)(?: port (?P<port>\d+))?$", "network.connection", "connection ended"),
    ),
    "Connection": (
        Rule(rf"Connection (?:closed|reset) by (?:authenticating |invalid )?user (?P<actor>.*) {_AT}$", "network.connection", _ENDED, "failure"),
        Rule(r"Connection (?:closed|reset) by (?P<src>\S+)(?: port (?P<port>\d+))?$", "network.connection", _ENDED, "failure"),
        Rule(r"Connection from (?P<src>\S+)(?: port (?P<port>\d+)(?: on .*)?)?$", "network.connection", "connection made"),
    ),
    "Disconnecting:": (
        Rule(r"Disconnecting: Too many authentication failures(?: for (?P<actor>.*?))?$", "authentication.session.rejected", _TOO_MANY, "failure"),
        Rule(r"Disconnecting: (?P<reason>.*)$", "network.connection", "connection ended by sshd", "failure"),
    ),
    "maximum": (Rule(rf"maximum authentication attempts exceeded for (?:invalid user )?(?P<actor>.*) from {_AT}(?: ssh\d?)?$", "authentication.session.rejected", _TOO_MANY, "failure"),),
    "Did": (Rule(r"Did not receive identification string from (?P<src>\S+)(?: port (?P<port>\d+))?$", "network.scan", "connected without speaking SSH"),),
    "Bad": (
        Rule(r"Bad protocol version identification .* from (?P<src>\S+?)(?: port (?P<port>\d+))?$", "network.scan", "spoke another protocol than SSH"),
        Rule(r"Bad remote protocol version identification", "network.scan", "spoke another protocol than SSH"),
        Rule(r"Bad packet length (?P<bytes>\d+)", "network.connection", "malformed packet", "failure"),
    ),
    "Protocol": (Rule(rf"Protocol major versions differ(?: for {_AT})?: ", "network.scan", "spoke another version of SSH"),),
    "probed": (Rule(rf"probed from {_AT} with ", "network.scan", "probed by a scanner"),),
    "scanned": (Rule(r"scanned from (?P<src>\S+?)(?: port (?P<port>\d+))? with ", "network.scan", "probed by a scanner"),),
    "banner": (
        Rule(rf"banner exchange: Connection from {_AT}: (?P<reason>.*)$", "network.scan", "connected without speaking SSH"),
        Rule(r"banner line contains invalid characters", "network.scan", "connected without speaking SSH"),
    ),
    "kex_exchange_identification:": (
        Rule(r"kex_exchange_identification: (?P<reason>(?:Connection (?:closed|reset) by|read: |client sent invalid protocol|banner line)[^\"]{0,60})", "network.scan", "connected without speaking SSH"),
        Rule(r"kex_exchange_identification: ", "network.scan", "connected without speaking SSH"),
    ),
    "kex_protocol_error:": (Rule(r"kex_protocol_error: ", "network.connection", "key exchange failed", "failure"),),
    "Unable": (
        Rule(r"Unable to negotiate with (?:(?:authenticating )?user (?P<actor>\S+) )?(?P<src>\S+?)(?: port (?P<port>\d+))?: (?P<reason>[a-zA-Z ]+)", "network.connection", "no common algorithm", "failure"),
        Rule(r"Unable to negotiate a key exchange method", "network.connection", "no common algorithm", "failure"),
    ),
    "Corrupted": (Rule(r"Corrupted MAC on input", "network.connection", "malformed packet", "failure"),),
    "Magic": (Rule(rf"Magic value check failed \(\d+\) on obfuscated handshake from {_AT}$", "network.scan", "spoke another protocol than SSH"),),
    "no": (Rule(r"no (?:matching|hostkey|kex) (?P<reason>[a-z ]{1,40}) found", "network.connection", "no common algorithm", "failure"),),
    "userauth_pubkey:": (Rule(r"userauth_pubkey: (?P<reason>(?:signature algorithm|key type) \S+ not in \S+|unsupported public key algorithm|could(?: not|n't) parse key|parse (?:key|packet)|cannot decode key)", "authentication", "public key not acceptable", severity=2),),
    "ssh_dispatch_run_fatal:": (Rule(rf"ssh_dispatch_run_fatal: Connection from {_USER}{_AT}: (?P<reason>[^:]*)$", "network.connection", "connection failed", "failure"),),
    **dict.fromkeys(
        ("ssh_packet_write_poll:", "ssh_packet_send_debug:", "packet_write_wait:", "packet_write_poll:"),
        (
            Rule(rf"\w+: Connection (?:from|to) {_USER}{_AT}: (?P<reason>[^:]*)$", "network.connection", "connection failed", "failure"),
            Rule(r"\w+: (?P<reason>Broken pipe|Connection reset by peer|Connection timed out)", "network.connection", "connection failed", "failure"),
        ),
    ),
    "reverse": (Rule(r"reverse mapping checking getaddrinfo for (?P<src_host>\S+) \[(?P<src>[^\]\s]+)\] failed", "network.connection", "name of the client does not lead back to it", severity=2),),
    "Address": (Rule(r"Address (?P<src>\S+) maps to (?P<src_host>\S+), but this does not map back", "network.connection", "name of the client does not lead back to it", severity=2),),
    "Nasty": (Rule(r"Nasty PTR record \"(?P<src_host>[^\"]*)\" is set up for (?P<src>\S+), ignoring", "network.connection", "name of the client is an address", severity=2),),
    "PAM": (Rule(r"PAM service\((?P<service>[^)]*)\) ignoring max retries; (?P<count>\d+) > (?P<limit>\d+)", "authentication.session.rejected", _TOO_MANY, "failure"),),
    "PAM:": (
        Rule(r"PAM: (?P<reason>Have exhausted maximum number of retries for service|[^:]*?) for (?P<invalid>illegal user |invalid user )?(?P<actor>.*) from (?P<src>\S+)(?: via \S+)?\s*$", "authentication.failure", SIGN_IN_REFUSED, "failure", voice="pam"),
        Rule(r"PAM: pam_(?:acct_mgmt|open_session|setcred|authenticate)\(\): (?P<reason>[^:]*)$", "authentication", "PAM refused a step of the sign-in", severity=2),
        Rule(r"PAM: (?P<reason>[^:]*)$", "authentication", "answer of PAM"),
    ),
    "Server": (Rule(r"Server listening on (?P<address>\S+) port (?P<port>\d+)", "system.service.started", "sshd listens"),),
    "Starting": (Rule(rf"Starting session: (?P<kind>shell|command|forced-command|subsystem '[^']*')(?: \S+)?(?: on (?P<tty>\S+))? for (?P<actor>.+) from {_AT}(?: id \d+)?$", "authentication", "channel opened"),),
    "Write": (Rule(r"Write failed: (?P<reason>.*)$", "network.connection", "connection failed", "failure"),),
    "Read": (Rule(r"Read (?:error|from socket failed)(?: from remote host (?P<src>\S+)(?: port (?P<port>\d+))?)?:", "network.connection", "connection failed", "failure"),),
    "Close": (Rule(rf"Close session: user (?P<actor>.+) from {_AT}", "authentication", "channel closed"),),
    "Closing": (Rule(r"Closing connection to (?P<src>\S+)(?: port (?P<port>\d+))?", "network.connection", "connection ended"),),
    "subsystem": (
        Rule(r"subsystem request for (?P<subsystem>.+) by user (?P<actor>.+?) failed, subsystem not found$", "access", "subsystem is not there", "failure", 2),
        Rule(r"subsystem request for (?P<subsystem>.+) failed, subsystem not found$", "access", "subsystem is not there", "failure", 2),
        Rule(r"subsystem request for (?P<subsystem>.+) by user (?P<actor>.+)$", "access", "subsystem asked for"),
        Rule(r"subsystem request for (?P<subsystem>\S+)$", "access", "subsystem asked for"),
    ),
    "subsystem:": (Rule(r"subsystem: cannot stat ", "access", "subsystem is not there", "failure", 2),),
    "Timeout": (
        Rule(r"Timeout before authentication for connection from (?P<src>\S+) to \S+, pid = \d+$", "network.connection", "no sign-in in time", "failure"),
        Rule(rf"Timeout before authentication for {_USER}{_AT}$", "network.connection", "no sign-in in time", "failure"),
        Rule(r"Timeout before authentication for (?P<src>\S+)$", "network.connection", "no sign-in in time", "failure"),
    ),
    "Timeout,": (Rule(rf"Timeout, client not responding from (?:user (?P<actor>.*) )?{_AT}$", "network.connection", "client stopped answering"),),
    "drop": (
        Rule(r"drop connection #\d+ from \[(?P<src>[^\]\s]+)\]:(?P<port>\d+) on \[[^\]\s]+\]:\d+ (?P<reason>.*)$", "network.connection", "connection dropped by sshd", "failure", 3),
    ),
    "srclimit_penalise:": (Rule(r"srclimit_penalise: ipv[46]: (?P<reason>new|activating|refreshing|extending)? ?(?:penalty for )?(?P<src>[\da-fA-F.:]+)(?:/\d+)?", "network.connection", "address gets a penalty", severity=2),),
    "beginning": (Rule(r"beginning MaxStartups throttling", "network.flood", "more connections than sshd accepts"),),
    "exited": (Rule(r"exited MaxStartups throttling after (?P<duration>\S+), (?P<count>\d+) connections dropped", "network", "sshd accepts connections again"),),
    "refused": (
        Rule(r"refused connect from (?P<src_host>\S+) \((?P<src>[^)\s]+)\)$", "access.denied", "address may not connect", "failure"),
        Rule(r"refused connect from (?P<src>\S+)$", "access.denied", "address may not connect", "failure"),
    ),
    "Could": (
        Rule(r"Could not (?:load host|get shadow|write ident|reverse map|resolve)", "system", "sshd lacks something"),
    ),
    "session": (Rule(r"session opened for local user (?P<actor>\S+) from \[(?P<src>[^\]\s]+)\]$", "authentication", "file transfer begins"),),
    "Changed": (Rule(r"Changed root directory to ", "authentication", "session confined to a folder"),),
    "userauth_hostbased": (Rule(r"userauth_hostbased mismatch: client sends \S+, but we resolve (?P<src>\S+) to ", "authentication", "name of the client is another", severity=2),),
    "Exiting": (Rule(r"Exiting on signal (?P<signal>\d+)", "system.service.stopped", "sshd stops"),),
    "Bind": (Rule(r"Bind to port (?P<port>\d+) on (?P<address>\S+) failed", "system.service.failed", "sshd cannot listen", "failure"),),
    "Cannot": (Rule(r"Cannot bind any address", "system.service.failed", "sshd cannot listen", "failure"),),
}  # fmt: skip
_OTHERS: Reader = by_first_word(_RULES, pam)
_ACCEPTED = first_of(
    Rule(r"Accepted (?:certificate ID|key) ", "authentication", "key is one that may sign in"),
)  # fmt: skip


def sshd(text: str, data: dict[str, Any]) -> Found | None:
    """Read a message of sshd, sshd-session or sshd-auth."""
    if not text.startswith(("pam_", "PAM ")):  # PAM's lines end with the name that the client gave
        text = text.removesuffix(" [preauth]")
    # "error:" and "fatal:" only name the log level.
    if text.startswith(("error: ", "fatal: ")):
        text = text[7:]
    if text.startswith(("Failed ", "Accepted ", "Postponed ", "Partial ")):
        return _attempt(text, data) or _ACCEPTED(text, data)
    if text.startswith("Disconnecting "):
        return _disconnecting(text, data)
    found = _OTHERS(text, data)
    if data.pop("invalid", None) or text.startswith(("Invalid user ", "Illegal user ")):
        data["user_known"] = False
    return found
