"""Messages of network devices: Cisco's `%FACILITY-SEVERITY-MNEMONIC: text`, by facility.

A user name typed at a device stands in brackets of its own, before the address; it is read from the left up to the fixed words that follow.
"""

# ruff: noqa: E501  # tables: a pattern stands on one line

from agent.parsers.base import Reader, Rule, first_of

_PLACE = r"\[Source: (?P<src>[^\]\s]+)\] \[localport: (?P<port>\d+)\]"
_SEC_LOGIN = first_of(
    Rule(rf"Login failed \[user: (?P<actor>.*)\] {_PLACE} \[Reason: (?P<reason>[^\]]*)\]", "authentication.failure", "sign-in refused", "failure"),
    Rule(rf"Login Success \[user: (?P<actor>.*)\] {_PLACE}", "authentication.success", "sign-in accepted", "success"),
    Rule(r"Still timeleft for watching failures", "authentication.lockout", "sign-in blocked after refused sign-ins", "failure"),
    Rule(r"Quiet Mode is OFF", "authentication", "sign-in allowed again"),
)  # fmt: skip
_SYS = first_of(
    Rule(r"Configured from (?P<place>\S+) by (?P<actor>\S+)(?: on (?P<tty>\S+))?(?: \((?P<src>[^)\s]+)\))?", "configuration.changed", "configuration changed", "success"),
    Rule(r"System (?:restarted|returned to ROM)", "system.booted", "device started", "success"),
    Rule(r"Reload requested", "system.shutdown", "device was told to restart"),
    Rule(r"User (?P<actor>\S+) has exited tty session (?P<tty>\S+)\((?P<src>[^)\s]+)\)", "authentication.logout", "signed out"),
    Rule(r"Logging to host \S+ .*(?:stopped|CLI initiated)", "configuration.changed", "logging changed"),
)  # fmt: skip
_LINK = first_of(
    Rule(r"(?:Interface|Line protocol on Interface) (?P<target>[^,]+), changed state to up", "network.link.up", "link came up"),
    Rule(r"(?:Interface|Line protocol on Interface) (?P<target>[^,]+), changed state to (?:administratively )?down", "network.link.down", "link went down", "failure"),
)  # fmt: skip
_SEC = first_of(
    Rule(r"list (?P<rule>\S+) denied (?P<protocol>\S+) (?P<src>[\d.a-fA-F:]+)(?:\(\d+\))?.* -> (?P<target>[\d.a-fA-F:]+)(?:\((?P<port>\d+)\))?", "network.connection", "packet seen by the firewall", "failure"),
    Rule(r"list (?P<rule>\S+) permitted (?P<protocol>\S+) (?P<src>[\d.a-fA-F:]+)(?:\(\d+\))?.* -> (?P<target>[\d.a-fA-F:]+)(?:\((?P<port>\d+)\))?", "network.connection", "packet seen by the firewall", "success"),
)  # fmt: skip
_PORT_SECURITY = first_of(
    Rule(r"Security violation occurred, caused by MAC address (?P<mac>[\da-fA-F.:]+) on port (?P<target>\S+?)\.?$", "security.policy.violated", "unknown device at a guarded port", "failure"),
)  # fmt: skip

PROGRAMS: dict[str, Reader] = {
    "SEC_LOGIN": _SEC_LOGIN,
    "SYS": _SYS,
    "LINK": _LINK,
    "LINEPROTO": _LINK,
    "SEC": _SEC,
    "PORT_SECURITY": _PORT_SECURITY,
}
