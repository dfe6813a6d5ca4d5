"""Messages about the computer: cron, systemd, clocks, links, the log daemons themselves. The kernel is in kernel.py."""

# ruff: noqa: E501  # tables: a pattern stands on one line

import re
from typing import Any

from agent.parsers.audit_records import read_printed
from agent.parsers.base import Found, Reader, Rule, by_first_word, first_of
from agent.parsers.logins import OTHER

_CRON = first_of(
    Rule(r"\((?P<actor>[^)]*)\) CMD \(\s*(?P<command>.*)\)$", "system.job.ran", "scheduled job started", "success"),
    Rule(r"\((?P<actor>[^)]*)\) CMDEND", "system.job.ran", "scheduled job ended", "success"),
    Rule(r"\((?P<actor>[^)]*)\) (?P<action>REPLACE|DELETE)\b", "configuration.changed", "scheduled jobs changed", "success"),
    Rule(r"\((?P<actor>[^)]*)\) (?P<action>RELOAD)\b", "configuration.changed", "scheduled jobs read again", "success"),
    Rule(r"\((?P<actor>[^)]*)\) (?P<action>BEGIN EDIT|END EDIT|LIST)\b", "configuration", "scheduled jobs looked at"),
    Rule(r"\((?P<actor>[^)]*)\) (?:AUTH|FAILED) \((?P<reason>[^)]*)\)", "access.denied", "user may not schedule jobs", "failure"),
    Rule(r"\((?P<actor>[^)]*)\) (?P<reason>WRONG FILE OWNER|INSECURE MODE|WRONG INODE INFO|NOT A REGULAR FILE|ORPHAN|BAD FILE MODE|ERROR) \(", "access.denied", "table of jobs refused", "failure"),
    Rule(r"\((?:CRON|cron)\) (?:STARTUP|INFO|DEATH) \(", "system", "about the scheduler"),
    Rule(r"\((?P<actor>[^)]*)\) (?:MAIL|grandchild|CMDOUT) ", "system.job.ran", "about a scheduled job"),
    Rule(r"USER (?P<actor>\S+) pid +(?P<job_pid>\d+) cmd (?P<command>.*)$", "system.job.ran", "scheduled job started", "success"),
    Rule(r"Starting job (?P<job>\d+) \(\S+\) for user '(?P<actor>[^']*)'", "system.job.ran", "scheduled job started", "success"),
    Rule(r"Job `(?P<job>[^']*)' (?P<action>started|terminated)", "system.job.ran", "scheduled job", "success"),
)  # fmt: skip


def _cron(text: str, data: dict[str, Any]) -> Found | None:
    return _CRON(text, data) or OTHER(text, data)


_UNIT = r"(?P<target>[\w@.\\:-]+\.(?:service|socket|timer|mount|target|scope|slice|path|device|swap))"
_NAMED = r"(?:(?P<target>[\w@.\\:-]+\.(?:service|socket|timer|mount|target|scope|slice|path|device|swap)) - )?(?P<unit>.*?)\.{0,3}$"
_SYSTEMD = by_first_word(
    {
        "Started": (
            Rule(r"Started (?:session-\S+ - )?Session (?P<session>\S+) of [Uu]ser (?P<actor>.+?)\.$", "authentication.session.opened", "session opened", "success"),
            Rule(rf"Started {_NAMED}", "system.service.started", "service started", "success"),
        ),
        "Unit": (Rule(r"Unit (?P<target>\S+) entered failed state", "system.service.failed", "service failed", "failure"),),
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
        Rule(rf"{_UNIT}: (?:Failed at step (?P<step>\w+) spawning|Failed to (?:execute|run|load|set up|fork)|Control process exited, code=(?P<code>\w+)|Start operation timed out|State '[^']*' timed out|Job \S+ failed with result '(?P<reason>[^']*)')", "system.service.failed", "service failed", "failure"),
        Rule(rf"{_UNIT}: Scheduled restart job, restart counter is at (?P<count>\d+)", "system.service.failed", "service is started again", severity=2),
        Rule(rf"{_UNIT}: Start request repeated too quickly", "system.service.failed", "service is not started again", "failure"),
        Rule(rf"{_UNIT}: Watchdog timeout", "system.service.failed", "service did not answer its watchdog", "failure"),
        Rule(rf"{_UNIT}: A process of this unit has been killed by the OOM killer", "system.memory.exhausted", "process killed for want of memory", "failure"),
        Rule(r"Time (?:has been changed|jumped backwards)", "system.clock.stepped", "the clock was set"),
        Rule(r"(?:systemd \S+ running|Detected architecture)", "system.booted", "systemd starts", "success"),
        Rule(r"(?:Shutting down|System is (?:rebooting|powering down|halting))", "system.shutdown", "the computer stops"),
    ),
)  # fmt: skip
_AUDITD = first_of(
    Rule(r"(?:The audit daemon is exiting|Audit daemon is (?:exiting|suspending logging))", "security.logging.stopped", "the audit daemon stopped"),
    Rule(r"Audit daemon (?:has no space left|is low on disk space|has reached its limit)", "system.disk.pressure", "no room for audit records", "failure"),
    Rule(r"(?:Started dispatcher|Init complete, auditd)", "system.service.started", "the audit daemon started", "success"),
    Rule(r"Audit daemon rotating log files", "system", "the audit log was rotated"),
)  # fmt: skip
_RECORD = re.compile(r"(?:node=\S+ )?type=(\S+) msg=audit\(\d+\.\d+:\d+\): ?")


def _audit(text: str, data: dict[str, Any]) -> Found | None:
    """A record that the audit daemon passes on to syslog, or its own message."""
    record = _RECORD.match(text)
    if record is not None:
        return read_printed(record[1], text[record.end() :], data)
    return _AUDITD(text, data) or _LOGGING(text, data)


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
    Rule(r"(?:syslogd \S+: )?(?:re)?start(?:ed)?(?:: BusyBox.*)?\.?$", "system.service.started", "the log daemon started", "success"),
    Rule(r"(?:syslog-ng )?starting up;", "system.service.started", "the log daemon started", "success"),
    Rule(r"(?:syslog-ng )?shutting down;", "security.logging.stopped", "the log daemon stopped", severity=3),
    Rule(r"Suppressed (?P<count>\d+) messages from (?P<target>\S+)", "system", "the log daemon left messages out", "failure"),
    Rule(r"(?:File|Journal file) \S+ (?:is )?(?:corrupted|truncated)", "security", "the journal is damaged", "failure"),
    Rule(r"(?:Vacuuming done|Deleted archived journal|Time spent on flushing|Runtime Journal|Received (?:client )?request to flush|Forwarding to syslog missed (?P<count>\d+) messages)", "system", "about the journal"),
    Rule(r"Journal (?:started|stopped)|System Journal .* is ", "system", "about the journal"),
    Rule(r"(?P<reason>action '.*' suspended|imuxsock(?:\[pid: \d+\])?[: ]+(?:lost \d+ messages|begins to drop messages)|imjournal: (?:\d+ messages lost|begin to drop messages))", "system", "the log daemon lost or held back messages", "failure"),
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
        ("CRON", "CROND", "cron", "crond", "cronie", "crontab", "anacron", "atd", "fcron", "dcron", "run-parts"), _cron
    ),
    "systemd": _SYSTEMD,
    **dict.fromkeys(("chronyd", "ntpd", "systemd-timesyncd"), _CLOCK),
    **dict.fromkeys(("rsyslogd", "syslogd", "syslog-ng", "systemd-journald"), _LOGGING),
    **dict.fromkeys(("auditd", "audispd", "audisp-syslog", "audit"), _audit),
    **dict.fromkeys(("NetworkManager", "systemd-networkd"), _NETWORK),
    "shutdown": first_of(
        Rule(r"shutting down for system (?P<action>\w+)", "system.shutdown", "the computer was told to stop")
    ),
}
