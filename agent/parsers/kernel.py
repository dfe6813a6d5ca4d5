"""Messages of the kernel: devices, links, memory, disks, packets, and the audit records that it prints where no auditd runs.

A local user chooses the name of a program (15 characters), a USB device the texts about itself, a peer the payload of a packet, which is never
printed. So the crash of a program is recognised by what follows its name, and messages with a device's own texts by
how they begin, before anything else is looked for.
"""

# ruff: noqa: E501  # tables: a pattern stands on one line

import re
from typing import Any

from agent.parsers.audit_records import VIRTUAL, read_printed
from agent.parsers.base import Found, Reader, Rule, first_of, ip_of

_SINCE_BOOT = re.compile(r"\[ *\d+\.\d+\] ?")
_CRASHED = first_of(
    Rule(r"(?P<target>.{1,16}?)\[(?P<killed_pid>\d+)\]: segfault at [\da-f]+ ip [\da-f]+", "application.error", "program crashed", "failure"),
    Rule(r"(?:traps: )?(?P<target>.{1,16}?)\[(?P<killed_pid>\d+)\] (?:general protection(?: fault)?|trap [\w ]+) ip:", "application.error", "program crashed", "failure"),
    Rule(r"(?P<target>.{1,16}?)\[(?P<killed_pid>\d+)\]: segfault at", "application.error", "program crashed", "failure"),
    Rule(r"(?P<target>.{1,16}?) invoked oom-killer", "system.kernel", "process asked for memory that is not there", severity=3),
    Rule(r"(?:Memory cgroup out of memory|Out of memory)(?: \(\w+\))?: Kill(?:ed)? process (?P<killed_pid>\d+) \((?P<target>[^)]*)\)", "system.memory.exhausted", "process killed for want of memory", "failure"),
    Rule(r"oom-kill:constraint=(?P<constraint>\w+).*?task=(?P<target>[^,]*),pid=(?P<killed_pid>\d+),uid=(?P<uid>\d+)", "system.memory.exhausted", "process chosen to be killed for want of memory", "failure"),
    Rule(r"INFO: task (?P<target>.{1,16}):(?P<blocked_pid>\d+) blocked for more than (?P<limit>\d+) seconds", "system.kernel", "a task hangs", "failure", 3),
)  # fmt: skip

_DEVICES = first_of(
    Rule(r"usb (?P<target>[\d.-]+): New USB device found, idVendor=(?P<vendor_id>[\da-f]{4}), idProduct=(?P<product_id>[\da-f]{4})", "security.usb.attached", "USB device attached"),
    Rule(r"usb (?P<target>[\d.-]+): USB disconnect, device number (?P<device_no>\d+)", "system.kernel", "USB device taken off", severity=2),
    Rule(r"usb-storage (?P<target>[\d.:-]+): USB Mass Storage device detected", "system.kernel", "USB device is a storage medium", severity=3),
    Rule(r"usb (?P<target>[\d.-]+): (?P<field>Product|Manufacturer|SerialNumber): (?P<value>.*)$", "system.kernel", "USB device names itself"),
    Rule(r"usb (?P<target>[\d.-]+): (?:Device is not authorized for usage|authorized to connect)", "system.kernel", "USB device and its authorisation", severity=2),
    Rule(r"input: (?P<value>.*) as /devices/(?P<target>\S+)$", "system.kernel", "input device attached", severity=2),
)  # fmt: skip
_DEVICE_TEXTS = (
    "usb ",
    "usb-storage ",
    "input: ",
    "hid-",
    "hid: ",
    "scsi ",
    "Bluetooth: ",
    "uvcvideo",
    "cdc_",
    "snd-",
    "ata",
)
"""How messages begin that go on with what a device says of itself."""

_LINK_NAME = r"(?:\S+ [\da-f:.]+ )?(?:\S+: )*?(?P<target>[a-z][\w.@-]*):"
_DRIVER_LINK = r"(?:\S+ [\da-f:.]+:? )?(?P<target>[a-z][\w.@-]*):"
_CARDS = r"(?:\S+ [\da-f:.]+ )?(?:device )?(?P<target>[\w.@-]+):? "
_FLOODED = "more connections or packets than the computer can hold"
_KERNEL = first_of(
    Rule(r"sd [\d:]+: \[(?P<target>\w+)\] Attached SCSI removable disk", "system.kernel", "removable disk ready", severity=2),
    Rule(r"TCP: (?:request_sock_\w+: )?[pP]ossible SYN flooding on port (?:(?P<address>[\d.]+|\[[\da-f:.]+\]):)?(?P<port>\d+)\.", "network.flood", "possible SYN flood"),
    Rule(r"[pP]ossible SYN flooding on port (?P<port>\d+)\.", "network.flood", "possible SYN flood"),
    Rule(r"(?:nf_conntrack|ip_conntrack): (?:nf_conntrack: )?table full, dropping packet", "network.flood", "table of connections full, packets dropped", "failure"),
    Rule(r"(?:neighbour|neighbor|Neighbour table)\b.*(?:table )?overflow", "network.flood", _FLOODED, "failure"),
    Rule(r"(?:IPv4: )?martian source (?P<target>\S+) from (?P<src>[\da-f.:]+), on dev (?P<interface>\S+)", "network.connection", "packet whose address cannot come from there", "failure"),
    Rule(rf"{_CARDS}entered promiscuous mode", "network.scan", "a network card listens to everything"),
    Rule(rf"{_CARDS}left promiscuous mode", "network", "a network card listens to its own traffic again"),
    Rule(rf"{_LINK_NAME} (?:\S+ )?(?:NIC )?[Ll]ink is [Dd]own", "network.link.down", "link went down", "failure"),
    Rule(rf"{_LINK_NAME} (?:\S+ )?(?:NIC )?[Ll]ink is [Uu]p(?:,? ?-? ?(?P<speed>\d+ ?[GM]bps))?", "network.link.up", "link came up"),
    Rule(rf"{_DRIVER_LINK} (?:\S+: )?link (?:is )?down$", "network.link.down", "link went down", "failure"),
    Rule(rf"{_DRIVER_LINK} (?:\S+: )?(?:link (?:is )?up|carrier acquired)\b", "network.link.up", "link came up"),
    Rule(rf"{_DRIVER_LINK} (?:carrier lost|carrier off)", "network.link.down", "link went down", "failure"),
    Rule(r"IPv6: ADDRCONF\(NETDEV_(?:CHANGE|UP)\): (?P<target>[^:]+): link becomes ready", "network.link.up", "link came up"),
    Rule(r"(?P<target>[\w-]+): (?:loading out-of-tree module taints kernel|module license '[^']*' taints kernel|module verification failed: .*tainting kernel)", "configuration.changed", "kernel module that nobody vouches for was loaded"),
    Rule(r"(?P<target>[\w-]+): module is (?:from the staging directory|forced)", "configuration.changed", "kernel module that nobody vouches for was loaded"),
    Rule(r"Disabling lock debugging due to kernel taint", "system.kernel", "the kernel is tainted"),
    Rule(r"(?:PKCS#7 signature not signed with a trusted key|Loading of (?:unsigned )?module is rejected|(?P<target>[\w-]+): signature (?:and/or required key missing|verification failed))", "security.policy.violated", "kernel module without a valid signature", "failure"),
    Rule(r"Lockdown: (?P<target>.{1,16}): (?P<operation>.{1,80}?) is restricted; see man", "security.policy.violated", "refused by kernel lockdown", "failure"),
    Rule(r"Kernel is locked down from (?P<reason>[^;]{1,60});", "system.kernel", "kernel lockdown is on"),
    Rule(r"ima: .*(?:invalid-signature|appraise)", "security.policy.violated", "integrity of a file could not be proven", "failure"),
    Rule(r"EXT4-fs error \(device (?P<target>[^)]+)\)", "system.kernel", "file system error", "failure", 4),
    Rule(r"(?:XFS|BTRFS)[ :].*(?:[cC]orruption|error)", "system.kernel", "file system error", "failure", 4),
    Rule(r"(?:blk_update_request: )?(?:critical )?(?:I/O|medium|target) error,? dev (?P<target>\w+),? sector (?P<sector>\d+)", "system.kernel", "disk error", "failure", 4),
    Rule(r"EXT4-fs \((?P<target>[^)]+)\): (?:re-)?mounted", "system.kernel", "file system mounted"),
    Rule(r"(?P<target>\w+): Core temperature above threshold", "system.kernel", "processor too hot, slowed down", severity=3),
    Rule(r"(?:mce: )?\[Hardware Error\]: ", "system.kernel", "hardware error", "failure", 4),
    Rule(r"watchdog: BUG: soft lockup - CPU#(?P<cpu>\d+) stuck", "system.kernel", "a processor hangs", "failure", 4),
    Rule(r"(?:BUG: |Oops: |general protection fault)", "system.kernel", "fault in the kernel", "failure", 4),
    Rule(r"Linux version (?P<version>\S+)", "system.booted", "the computer starts", "success"),
    Rule(r"Kernel panic - not syncing: (?P<reason>.*)$", "system.kernel", "the kernel gave up", "failure", 5),
    Rule(r"reboot: (?P<action>.*)$", "system.shutdown", "the computer stops"),
)  # fmt: skip

_PACKET = re.compile(
    r"(?P<prefix>.{0,80}?)\bIN=(?P<interface>\S*) OUT=(?P<out>\S*) (?:PHYS\w+=\S* )*(?P<fields>.*)$", re.DOTALL
)
_PACKET_FIELD = re.compile(r"(?:^| )(SRC|DST|PROTO|SPT|DPT|TYPE)=([^ ]*)(?= |$)")
_REFUSING = re.compile(r"drop|reject|den(?:y|ied)|block|discard|refus|invalid|martian|spoof|scan", re.IGNORECASE)
_LETTING = re.compile(r"accept|allow|pass\b|permit", re.IGNORECASE)


def packet(text: str, data: dict[str, Any]) -> Found | None:
    """Read a packet logged by netfilter: `PREFIX IN=eth0 OUT= MAC=… SRC=… DST=… PROTO=TCP SPT=… DPT=…`, whatever the prefix."""
    match = _PACKET.match(text)
    if match is None:
        return None
    # An ICMP error repeats the packet that caused it, in brackets.
    fields: dict[str, str] = {}
    for name, value in _PACKET_FIELD.findall(match["fields"].partition(" [")[0]):
        fields.setdefault(name, value)
    if "SRC" not in fields or "DST" not in fields:
        return None
    prefix = match["prefix"].strip(" :[]")
    if prefix:
        data["rule"] = prefix[:80]
    named = {
        "interface": match["interface"],
        "interface_out": match["out"],
        "protocol": fields.get("PROTO"),
        "action": prefix[4:] if prefix.startswith("UFW ") else None,
    }
    data.update({name: value for name, value in named.items() if value})
    for name, field in (("port", "DPT"), ("src_port", "SPT")):
        if fields.get(field, "").isdecimal() and len(fields[field]) <= 5:  # noqa: PLR2004  # a port has 16 bits
            data[name] = int(fields[field])
    outcome = "success" if _LETTING.search(prefix) else "failure" if _REFUSING.search(prefix) else None
    severity = 2 if outcome == "failure" else 1
    message = "packet seen by the firewall"
    return Found("network.connection", severity, ip_of(fields["SRC"]), fields["DST"], outcome, message)


_AUDIT = re.compile(r"(?:audit: )?type ?=(\d{4}) audit\(\d+\.\d+:\d+\): ?")


def kernel(text: str, data: dict[str, Any]) -> Found | None:
    """Read a message of the kernel, with or without the seconds since it started."""
    since = _SINCE_BOOT.match(text)
    if since is not None:
        text = text[since.end() :]
    if text.startswith(_DEVICE_TEXTS):
        return _DEVICES(text, data)
    if text.startswith(("audit", "type")):
        return _audit(text, data)
    found = packet(text, data) if "IN=" in text and " DST=" in text else None
    found = found or _CRASHED(text, data) or _KERNEL(text, data)
    if found is not None and found.type == "network.scan" and (found.target or "").startswith(VIRTUAL):
        return found._replace(type="network", severity=1)
    return found


_AUDIT_LOST = Rule(r"audit: (?:audit_lost=\d+|kauditd hold queue overflow|audit_backlog=\d+ > audit_backlog_limit|backlog limit exceeded|rate limit exceeded)", "security", "audit records were lost", "failure")  # fmt: skip


def _audit(text: str, data: dict[str, Any]) -> Found | None:
    record = _AUDIT.match(text)
    if record is not None:
        return read_printed(record[1], text[record.end() :], data)
    return _AUDIT_LOST.read(text, data)


PROGRAMS: dict[str, Reader] = {"kernel": kernel, "ulogd": packet}
