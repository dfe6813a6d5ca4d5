"""Messages about the computer: cron, the kernel, systemd, clocks, links, the log daemons themselves."""

# ruff: noqa: E501  # tables: a pattern stands on one line

import re
from typing import Any

from agent.parsers.base import Found, Reader, Rule, by_first_word, first_of
from agent.parsers.logins import OTHER

_CRON = first_of(
    Rule(r"\((?P<actor>[^)]*)\) CMD \(\s*(?P<command>.*)\)$", "system.job.ran", "scheduled job started", "success"),
    Rule(r"\((?P<actor>[^)]*)\) CMDEND", "system.job.ran", "scheduled job ended", "success"),
    Rule(r"\((?P<actor>[^)]*)\) (?P<action>REPLACE|DELETE)\b", "configuration.changed", "scheduled jobs changed", "success"),
    Rule(r"\((?P<actor>[^)]*)\) (?P<action>RELOAD)\b", "configuration.changed", "scheduled jobs read again", "success"),
    Rule(r"\((?P<actor>[^)]*)\) (?P<action>BEGIN EDIT|END EDIT|LIST)\b", "configuration", "scheduled jobs looked at"),
    Rule(r"\((?P<actor>[^)]*)\) (?:AUTH|FAILED) \((?P<reason>[^)]*)\)", "access.denied", "user may not schedule jobs", "failure"),
    Rule(r"Job `(?P<job>[^']*)' (?P<action>started|terminated)", "system.job.ran", "scheduled job", "success"),
)  # fmt: skip


def _cron(text: str, data: dict[str, Any]) -> Found | None:
    return _CRON(text, data) or OTHER(text, data)


_SINCE_BOOT = re.compile(r"\[ *\d+\.\d+\] ")
_LINK_NAME = r"(?:\S+ [\da-f:.]+ )?(?:\S+: )*?(?P<target>[a-z][\w.@-]*):"
_KERNEL = first_of(
    Rule(r"usb (?P<target>[\d.-]+): New USB device found, idVendor=(?P<vendor_id>[\da-f]{4}), idProduct=(?P<product_id>[\da-f]{4})", "security.usb.attached", "USB device attached"),
    Rule(r"usb (?P<target>[\d.-]+): USB disconnect, device number (?P<device_no>\d+)", "system.kernel", "USB device taken off", severity=2),
    Rule(r"usb-storage (?P<target>[\d.:-]+): USB Mass Storage device detected", "system.kernel", "USB device is a storage medium", severity=3),
    Rule(r"usb (?P<target>[\d.-]+): (?P<field>Product|Manufacturer|SerialNumber): (?P<value>.*)$", "system.kernel", "USB device names itself"),
    Rule(r"sd [\d:]+: \[(?P<target>\w+)\] Attached SCSI removable disk", "system.kernel", "removable disk ready", severity=2),
    Rule(rf"{_LINK_NAME} (?:\S+ )?(?:NIC )?[Ll]ink is [Dd]own", "network.link.down", "link went down", "failure"),
    Rule(rf"{_LINK_NAME} (?:\S+ )?(?:NIC )?[Ll]ink is [Uu]p(?:,? ?-? ?(?P<speed>\d+ ?[GM]bps))?", "network.link.up", "link came up"),
    Rule(r"IPv6: ADDRCONF\(NETDEV_(?:CHANGE|UP)\): (?P<target>[^:]+): link becomes ready", "network.link.up", "link came up"),
    Rule(r"(?:Memory cgroup out of memory|Out of memory)(?: \(\w+\))?: Kill(?:ed)? process (?P<killed_pid>\d+) \((?P<target>[^)]*)\)", "system.memory.exhausted", "process killed for want of memory", "failure"),
    Rule(r"oom-kill:constraint=(?P<constraint>\w+).*?task=(?P<target>[^,]*),pid=(?P<killed_pid>\d+),uid=(?P<uid>\d+)", "system.memory.exhausted", "process chosen to be killed for want of memory", "failure"),
    Rule(r"(?P<target>\S+) invoked oom-killer", "system.kernel", "process asked for memory that is not there", severity=3),
    Rule(r"(?P<target>[^\[\s]+)\[(?P<killed_pid>\d+)\]: segfault at", "application.error", "program crashed", "failure"),
    Rule(r"(?:traps: )?(?P<target>[^\[\s]+)\[(?P<killed_pid>\d+)\] (?:general protection|trap)", "application.error", "program crashed", "failure"),
    Rule(r"\[UFW (?P<action>BLOCK|ALLOW|AUDIT|LIMIT BLOCK)\] IN=(?P<interface>\S*) .*?SRC=(?P<src>\S+) DST=(?P<target>\S+) .*?PROTO=(?P<protocol>\S+)(?: SPT=\d+ DPT=(?P<port>\d+))?", "network.connection", "packet seen by the firewall", "failure"),
    Rule(r"audit: .*?apparmor=\"DENIED\" operation=\"(?P<operation>[^\"]*)\"(?:.*? profile=\"(?P<target>[^\"]*)\")?", "security.policy.violated", "AppArmor refused an operation", "failure"),
    Rule(r"audit: .*?avc: +denied +\{ (?P<operation>[^}]*?) \}", "security.policy.violated", "SELinux refused an operation", "failure"),
    Rule(r"audit: .*?audit_enabled=0", "security.logging.stopped", "auditing was switched off"),
    Rule(r"EXT4-fs error \(device (?P<target>[^)]+)\)", "system.kernel", "file system error", "failure", 4),
    Rule(r"(?:blk_update_request: )?(?:critical )?(?:I/O|medium|target) error,? dev (?P<target>\w+),? sector (?P<sector>\d+)", "system.kernel", "disk error", "failure", 4),
    Rule(r"EXT4-fs \((?P<target>[^)]+)\): (?:re-)?mounted", "system.kernel", "file system mounted"),
    Rule(r"(?P<target>\w+): Core temperature above threshold", "system.kernel", "processor too hot, slowed down", severity=3),
    Rule(r"Linux version (?P<version>\S+)", "system.booted", "the computer starts", "success"),
    Rule(r"Kernel panic - not syncing: (?P<reason>.*)$", "system.kernel", "the kernel gave up", "failure", 5),
    Rule(r"INFO: task (?P<target>[^:]+):(?P<blocked_pid>\d+) blocked for more than (?P<limit>\d+) seconds", "system.kernel", "a task hangs", "failure", 3),
    Rule(r"reboot: (?P<action>.*)$", "system.shutdown", "the computer stops"),
)  # fmt: skip


def _kernel(text: str, data: dict[str, Any]) -> Found | None:
    since = _SINCE_BOOT.match(text)
    found = _KERNEL(text[since.end() :] if since else text, data)
    if found is not None and data.get("action") == "ALLOW":
        return found._replace(outcome="success", severity=1)
    return found


_UNIT = r"(?P<target>[\w@.\\:-]+\.(?:service|socket|timer|mount|target|scope|slice|path|device|swap))"
_NAMED = r"(?:(?P<target>[\w@.\\:-]+\.(?:service|socket|timer|mount|target|scope|slice|path|device|swap)) - )?(?P<unit>.*?)\.{0,3}$"
_SYSTEMD = by_first_word(
    {
        "Started": (
            Rule(r"Started (?:session-\S+ - )?Session (?P<session>\S+) of [Uu]ser (?P<actor>.+?)\.$", "authentication.session.opened", "session opened", "success"),
            Rule(rf"Started {_NAMED}", "system.service.started", "service started", "success"),
        ),
        "Starting": (Rule(rf"Starting {_NAMED}", "system.service.started", "service is being started"),),
        "Finished": (Rule(rf"Finished {_NAMED}", "system.service.stopped", "service did its work", "success", 1),),
        "Stopping": (Rule(rf"Stopping {_NAMED}", "system.service.stopped", "service is being stopped"),),
        "Stopped": (Rule(rf"Stopped {_NAMED}", "system.service.stopped", "service stopped", "success"),),
        "Reloaded": (Rule(rf"Reloaded {_NAMED}", "system.service.started", "service read its configuration again", "success"),),
        "Failed": (Rule(rf"Failed to (?:start|mount|listen on) {_NAMED}", "system.service.failed", "service could not be started", "failure"),),
        "Dependency": (Rule(rf"Dependency failed for {_NAMED}", "system.service.failed", "service lacks another one", "failure"),),
        "Reached": (
            Rule(r"Reached target (?:\S+ - )?(?:Power-Off|Reboot|System Power Off|System Reboot|Shutdown|System Shutdown)", "system.shutdown", "the computer stops"),
            Rule(rf"Reached target {_NAMED}", "system.service.started", "target reached", "success"),
        ),
        "Startup": (Rule(r"Startup finished in .*?= (?P<duration>\S+?)\.?$", "system.booted", "the computer has started", "success"),),
        "Listening": (Rule(rf"Listening on {_NAMED}", "system.service.started", "socket listens", "success"),),
        "Created": (Rule(rf"Created slice {_NAMED}", "system", "slice made"),),
        "Removed": (Rule(rf"Removed slice {_NAMED}", "system", "slice removed"),),
        "Reloading": (Rule(r"Reloading", "system", "systemd reads its configuration again"),),
        "Reloading.": (Rule(r"Reloading\.", "system", "systemd reads its configuration again"),),
        "Mounted": (Rule(rf"Mounted {_NAMED}", "system", "file system mounted", "success"),),
        "Unmounted": (Rule(rf"Unmounted {_NAMED}", "system", "file system unmounted", "success"),),
    },
    first_of(
        Rule(rf"{_UNIT}: Main process exited, code=(?P<code>\w+), status=(?P<status>\S+)", "system.service.stopped", "main process of a service ended", "failure"),
        Rule(rf"{_UNIT}: (?:Failed with result|Unit entered failed state)(?: '(?P<reason>[^']*)')?", "system.service.failed", "service failed", "failure"),
        Rule(rf"{_UNIT}: (?:Succeeded|Deactivated successfully|Consumed)", "system.service.stopped", "service ended as it should", "success", 1),
        Rule(rf"{_UNIT}: Scheduled restart job, restart counter is at (?P<count>\d+)", "system.service.failed", "service is started again", severity=2),
        Rule(rf"{_UNIT}: Start request repeated too quickly", "system.service.failed", "service is not started again", "failure"),
        Rule(rf"{_UNIT}: Watchdog timeout", "system.service.failed", "service did not answer its watchdog", "failure"),
        Rule(rf"{_UNIT}: A process of this unit has been killed by the OOM killer", "system.memory.exhausted", "process killed for want of memory", "failure"),
        Rule(r"(?:systemd \S+ running|Detected architecture)", "system.booted", "systemd starts", "success"),
        Rule(r"(?:Shutting down|System is (?:rebooting|powering down|halting))", "system.shutdown", "the computer stops"),
    ),
)  # fmt: skip
_CLOCK = first_of(
    Rule(r"System clock (?:was stepped by|wrong by) (?P<offset_s>-?[\d.]+) seconds", "system.clock.stepped", "the clock was set"),
    Rule(r"time reset (?P<offset_s>[+-]?[\d.]+) s", "system.clock.stepped", "the clock was set"),
    Rule(r"Forward time jump detected", "system.clock.stepped", "the clock jumped"),
    Rule(r"(?:Selected source|Initial (?:clock )?synchronization to|Synchronized to|Contacted) ", "system", "the clock follows a time server"),
    Rule(r"Can't synchronise: no (?:selectable sources|majority)", "system", "the clock follows no time server", "failure"),
)  # fmt: skip
_LOGGING = first_of(
    Rule(r"(?:\[origin .*?\] )?(?:rsyslogd was HUPed|rsyslogd's (?:groupid|userid))", "system", "the log daemon took up new files"),
    Rule(r"(?:\[origin .*?\] )?exiting on signal (?P<signal>\d+)", "security.logging.stopped", "the log daemon stopped", severity=3),
    Rule(r"(?:\[origin .*?\] )?start$", "system.service.started", "the log daemon started", "success"),
    Rule(r"The audit daemon is exiting", "security.logging.stopped", "the audit daemon stopped"),
    Rule(r"Started dispatcher|Init complete, auditd", "system.service.started", "the audit daemon started", "success"),
    Rule(r"Journal (?:started|stopped)|System Journal .* is ", "system", "about the journal"),
    Rule(r"(?P<reason>action '.*' suspended|imuxsock lost \d+ messages|imjournal: \d+ messages lost)", "system", "the log daemon lost or held back messages", "failure"),
)  # fmt: skip
_NETWORK = first_of(
    Rule(r"<\w+> +\[[\d.]+\] (?:device \((?P<target>[^)]+)\): carrier: )?link (?:dis)connected", "network.link.down", "link went down", "failure"),
    Rule(r"<\w+> +\[[\d.]+\] device \((?P<target>[^)]+)\): (?:carrier: )?link disconnected", "network.link.down", "link went down", "failure"),
    Rule(r"<\w+> +\[[\d.]+\] device \((?P<target>[^)]+)\): (?:carrier: )?link connected", "network.link.up", "link came up"),
    Rule(r"(?P<target>[\w.-]+): Lost carrier", "network.link.down", "link went down", "failure"),
    Rule(r"(?P<target>[\w.-]+): Gained carrier", "network.link.up", "link came up"),
)  # fmt: skip

PROGRAMS: dict[str, Reader] = {
    **dict.fromkeys(
        ("CRON", "cron", "crond", "crontab", "/usr/sbin/cron", "/USR/SBIN/CRON", "anacron", "atd", "fcron"), _cron
    ),
    "kernel": _kernel,
    "systemd": _SYSTEMD,
    **dict.fromkeys(("chronyd", "ntpd", "systemd-timesyncd"), _CLOCK),
    **dict.fromkeys(("rsyslogd", "syslogd", "syslog-ng", "auditd", "systemd-journald"), _LOGGING),
    **dict.fromkeys(("NetworkManager", "systemd-networkd"), _NETWORK),
    "shutdown": first_of(
        Rule(r"shutting down for system (?P<action>\w+)", "system.shutdown", "the computer was told to stop")
    ),
}
