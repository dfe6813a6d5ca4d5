"""The one table of event types: category, severity, and the tags that compliance and the SOC's tools ask for.

Sources of the tags: IEC 62443-3-3 system requirements (SR), NIST CSF 2.0 subcategories, GDPR articles, MITRE ATT&CK for ICS
technique ids (v18.1; login brute force is Enterprise T1110, since ICS T0806 means brute-forcing I/O), OCSF 1.8.0 class uids.

A type that is not in the table is allowed (a station program may have its own): it takes the row of its nearest known
ancestor by dotted name (`equipment.reading.extra` → `equipment.reading` → `equipment`), and at last that of `custom`.
"""

import re
from functools import lru_cache
from typing import NamedTuple

TYPE_PATTERN = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+){0,7}")
TYPE_LENGTH_MAX = 128

PERSONAL_KEYS = frozenset(
    {
        "actor_uid", "address_home", "args", "command", "cookie", "email", "employee_id", "first_name", "full_name", "last_name", "login",
        "mail", "password_hint", "person", "personal_id", "phone", "real_name", "session_user", "target_uid", "target_user", "user",
        "user_agent", "user_id", "user_name", "userid", "username", "working_directory",
    }
)  # fmt: skip
"""Keys of `data` that hold personal data, whatever the type of the event."""


class Row(NamedTuple):
    """What is known of a type. `on_failure` is the severity when outcome is "failure"."""

    name: str
    category: str
    severity: int
    on_failure: int
    iec62443: tuple[str, ...] = ()
    nist_csf: tuple[str, ...] = ()
    gdpr: tuple[str, ...] = ()
    technique: str | None = None
    ocsf_class: int = 0
    meaning: str = ""


def _row(line: str) -> Row:
    name, category, severity, on_failure, iec, nist, gdpr, technique, ocsf, meaning = (
        cell.strip() for cell in line.split("|")
    )

    def many(cell: str) -> tuple[str, ...]:
        return tuple(cell.split())

    return Row(
        name,
        category,
        int(severity),
        int(on_failure or severity),
        many(iec),
        many(nist),
        many(gdpr),
        technique or None,
        int(ocsf),
        meaning,
    )


# name | category | severity | severity on failure | IEC 62443-3-3 SR | NIST CSF 2.0 | GDPR | ATT&CK for ICS | OCSF class | meaning
_TABLE = """
authentication                    | authentication | 1 | 3 | 1.1 2.8      | PR.AA-03 PR.PS-04 | 32 |       | 3002 | anything about signing in
authentication.success            | authentication | 1 | 1 | 1.1 2.8      | PR.AA-03 PR.PS-04 | 32 | T0859 | 3002 | a sign-in that worked
authentication.failure            | authentication | 3 | 3 | 1.1 1.11 2.8 | PR.AA-03 DE.CM-03 | 32 | T0859 | 3002 | a sign-in that was refused
authentication.lockout            | authentication | 4 | 4 | 1.11 2.8     | PR.AA-03 DE.CM-03 | 32 | T0859 | 3002 | an account was locked after failures
authentication.logout             | authentication | 1 | 1 | 2.6 2.8      | PR.AA-03          | 32 |       | 3002 | a sign-out
authentication.session.opened     | authentication | 1 | 3 | 1.1 2.8      | PR.AA-03          | 32 | T0859 | 3002 | a session began
authentication.session.closed     | authentication | 1 | 1 | 2.6 2.8      | PR.AA-03          | 32 |       | 3002 | a session ended
authentication.session.rejected   | authentication | 3 | 3 | 1.1 2.8      | PR.AA-03 DE.CM-01 | 32 | T0859 | 3002 | a server counted rejected sessions
access                            | access         | 1 | 3 | 2.1 2.8      | PR.AA-05          | 32 |       | 3003 | use of a right
access.privilege.used             | access         | 2 | 3 | 2.1 2.8      | PR.AA-05 DE.CM-03 | 32 | T0890 | 3003 | a command run as another user
access.denied                     | access         | 3 | 3 | 2.1 2.8      | PR.AA-05 DE.CM-03 | 32 | T0890 | 3003 | a right was asked for and refused
account                           | account        | 2 | 3 | 1.3 2.8      | PR.AA-01          | 32 |       | 3001 | a change to an account
account.created                   | account        | 3 | 3 | 1.3 2.8      | PR.AA-01 DE.CM-03 | 32 | T0859 | 3001 | an account was made
account.deleted                   | account        | 3 | 3 | 1.3 2.8      | PR.AA-01 DE.CM-03 | 32 | T0892 | 3001 | an account was removed
account.changed                   | account        | 2 | 3 | 1.3 2.8      | PR.AA-01          | 32 | T0859 | 3001 | an account was changed
account.password.changed          | account        | 2 | 3 | 1.5 2.8      | PR.AA-01          | 32 | T0892 | 3001 | a password was changed
account.group.changed             | account        | 3 | 3 | 1.3 2.1 2.8  | PR.AA-01 PR.AA-05 | 32 | T0859 | 3005 | membership or a group was changed
configuration                     | configuration  | 2 | 3 | 2.8 3.4      | PR.PS-01 DE.CM-09 |    |       | 5019 | a change of configuration
configuration.changed             | configuration  | 3 | 3 | 2.8 3.4 7.6  | PR.PS-01 DE.CM-09 |    | T0831 | 5019 | configuration of a machine or program changed
configuration.setpoint.changed    | configuration  | 3 | 3 | 2.8 3.4 3.5  | PR.PS-01 DE.CM-09 |    | T0836 | 5019 | a setpoint differs from its last value
configuration.mode.changed        | configuration  | 3 | 3 | 2.8 3.4      | PR.PS-01 DE.CM-09 |    | T0858 | 5019 | an operating mode changed
configuration.program.changed     | configuration  | 4 | 4 | 2.8 3.4      | PR.PS-01 DE.CM-09 |    | T0843 | 5019 | the program of a controller changed
configuration.firmware.changed    | configuration  | 4 | 4 | 2.8 3.4      | PR.PS-02 DE.CM-09 |    | T0839 | 5019 | firmware identity changed
configuration.limit.changed       | configuration  | 3 | 3 | 2.8 3.4      | PR.PS-01 DE.CM-09 |    | T0838 | 5019 | an alarm limit changed
configuration.trust.changed       | configuration  | 4 | 4 | 1.8 2.8      | PR.PS-01          |    | T0889 | 5019 | a trust list or certificate store changed
configuration.role.changed        | configuration  | 4 | 4 | 2.1 2.8      | PR.AA-05          |    | T0859 | 3005 | a role mapping changed
data                              | data           | 1 | 3 | 4.1 2.8      | PR.DS-01          | 30 |       | 6003 | access to data
data.read                         | data           | 1 | 3 | 4.1 2.8      | PR.DS-01 DE.CM-09 | 30 32 | T0811 | 6003 | data was read
data.exported                     | data           | 3 | 3 | 4.1 2.8      | PR.DS-01 DE.CM-09 | 30 32 | T0811 | 6003 | data left the system
data.written                      | data           | 2 | 3 | 3.4 2.8      | PR.DS-01 DE.CM-09 |    | T0855 | 6003 | a value was written to a machine by someone
data.deleted                      | data           | 3 | 3 | 3.4 2.8      | PR.DS-01          | 17 | T0809 | 6003 | data was deleted
equipment                         | equipment      | 1 | 3 | 6.2          | DE.CM-09          |    |       | 2004 | about a machine
equipment.reading                 | equipment      | 1 | 2 | 6.2          | DE.CM-09          |    |       | 2004 | a value was measured
equipment.counter                 | equipment      | 1 | 2 | 6.2          | DE.CM-09          |    |       | 2004 | a counter moved
equipment.state.changed           | equipment      | 1 | 2 | 6.2          | DE.CM-09          |    |       | 2004 | a machine state changed
equipment.alarm.raised            | equipment      | 3 | 3 | 6.2          | DE.CM-09 DE.AE-02 |    |       | 2004 | a machine alarm became active
equipment.alarm.changed           | equipment      | 3 | 3 | 6.2          | DE.CM-09 DE.AE-02 |    |       | 2004 | an active machine alarm got another limit or severity
equipment.alarm.cleared           | equipment      | 1 | 1 | 6.2          | DE.CM-09          |    |       | 2004 | a machine alarm went away
equipment.alarm.acknowledged      | equipment      | 1 | 1 | 2.8          | DE.CM-09          |    |       | 2004 | an operator acknowledged an alarm
equipment.alarm.suppressed        | equipment      | 3 | 3 | 2.8 6.2      | DE.CM-09          |    | T0878 | 5019 | an alarm was shelved, suppressed or disabled
equipment.method.called           | equipment      | 3 | 3 | 2.8          | DE.CM-09          |    | T0871 | 6003 | a method was called on a machine by someone
equipment.operator.action         | equipment      | 1 | 2 | 2.8          | DE.CM-09          |    |       | 6003 | an operator did something at the machine
equipment.fault                   | equipment      | 4 | 4 | 6.2          | DE.CM-09          |    | T0826 | 2004 | a machine reports a failure
equipment.restarted               | equipment      | 3 | 3 | 6.2          | DE.CM-09          |    | T0816 | 6002 | a machine restarted
equipment.identity.changed        | equipment      | 4 | 4 | 3.4          | DE.CM-09 ID.AM-01 |    | T0839 | 5019 | a device identifies itself otherwise than before
equipment.event                   | equipment      | 1 | 3 | 6.2          | DE.CM-09          |    |       | 2004 | an event of a machine's own kind
equipment.health                  | equipment      | 2 | 3 | 6.2          | DE.CM-09          |    |       | 2004 | a judgement on a machine's condition
quality                           | quality        | 1 | 3 | 6.2          | DE.CM-09          |    |       | 2004 | about the product
quality.measured                  | quality        | 1 | 2 | 6.2          | DE.CM-09          |    |       | 2004 | a part was measured
quality.rejected                  | quality        | 2 | 2 | 6.2          | DE.CM-09          |    | T0826 | 2004 | a part was scrapped or rejected
quality.anomaly                   | quality        | 3 | 3 | 6.2          | DE.AE-02          |    | T0831 | 2004 | quality leaves its usual range
device                            | device         | 1 | 3 | 6.2          | DE.CM-01          |    |       | 4001 | contact with a device
device.comms.lost                 | device         | 3 | 3 | 6.2 7.1      | DE.CM-01          |    | T0815 | 4001 | a device stopped answering
device.comms.restored             | device         | 1 | 1 | 6.2          | DE.CM-01          |    |       | 4001 | a device answers again
device.comms.flapping             | device         | 3 | 3 | 6.2 7.1      | DE.CM-01          |    | T0814 | 4001 | a device comes and goes
device.exception                  | device         | 2 | 2 | 6.2 3.5      | DE.CM-01          |    | T0888 | 6003 | a device answered with an exception
network                           | network        | 1 | 3 | 6.2          | DE.CM-01          |    |       | 4001 | about the network
network.link.up                   | network        | 1 | 1 | 6.2          | DE.CM-01          |    |       | 4001 | a link came up
network.link.down                 | network        | 2 | 2 | 6.2 7.1      | DE.CM-01          |    | T0815 | 4001 | a link went down
network.connection                | network        | 1 | 2 | 6.2          | DE.CM-01          |    |       | 4001 | a connection was made
network.scan                      | network        | 3 | 3 | 6.2          | DE.CM-01          |    | T0846 | 4001 | something is looking around
network.flood                     | network        | 3 | 3 | 7.1          | DE.CM-01          |    | T0814 | 4001 | more connections or packets than a computer can hold
network.service.listening         | network        | 3 | 3 | 7.7          | DE.CM-01 PR.PS-01 |    | T0886 | 4001 | a new service listens
security                          | security       | 3 | 4 | 6.2          | DE.AE-02          |    |       | 2004 | about security itself
security.certificate.changed      | security       | 4 | 4 | 1.8          | DE.CM-01          |    | T0830 | 2004 | a certificate is not the one that was trusted
security.certificate.untrusted    | security       | 3 | 3 | 1.8          | PR.AA-03          |    | T0830 | 2004 | a certificate is not trusted
security.certificate.expiring     | security       | 3 | 3 | 1.8          | PR.AA-03          |    |       | 2004 | a certificate will expire soon
security.certificate.invalid      | security       | 4 | 4 | 1.8          | PR.AA-03          |    | T0830 | 2004 | a certificate is expired, revoked or malformed
security.channel.closed           | security       | 1 | 1 | 1.8 2.8      | PR.AA-03          |    |       | 4001 | a secure channel was closed
security.channel.opened           | security       | 1 | 3 | 1.8 2.8      | PR.AA-03          |    |       | 4001 | a secure channel was opened
security.log.cleared              | security       | 5 | 5 | 2.9 3.9      | PR.PS-04 DE.CM-09 |    | T0872 | 1008 | a log was cleared
security.logging.stopped          | security       | 5 | 5 | 2.10 3.9     | PR.PS-04 DE.CM-09 |    | T0872 | 6002 | logging or auditing was stopped
security.usb.attached             | security       | 3 | 3 | 2.3          | DE.CM-09          |    | T0847 | 1010 | a removable medium was attached
security.remote_access.started    | security       | 3 | 3 | 1.13         | DE.CM-09          |    | T0886 | 6002 | a remote access tool was started
security.policy.violated          | security       | 4 | 4 | 2.1          | DE.AE-02          |    |       | 2004 | a mandatory access rule refused something
security.signature.refused        | security       | 4 | 4 | 1.2 3.9      | PR.AA-03 DE.CM-01 |    | T0859 | 2004 | what somebody sent as an agent was not signed with a key that speaks for it
security.enrolment.refused        | security       | 3 | 3 | 1.2 1.3      | PR.AA-01 PR.AA-03 |    | T0859 | 2004 | somebody tried to become an agent and was refused
security.evidence.broken          | security       | 5 | 5 | 3.9          | PR.DS-01 DE.CM-09 |    | T0872 | 2004 | something stored is not what its evidence says
security.chain.forked             | security       | 5 | 5 | 3.9          | PR.DS-01          |    | T0872 | 2004 | two different batches claim one number
security.chain.broken             | security       | 5 | 5 | 3.9          | PR.DS-01          |    | T0872 | 2004 | a hash chain does not hold
system                            | system         | 1 | 3 | 2.8          | DE.CM-09          |    |       | 6002 | about the computer
system.service.started            | system         | 1 | 3 | 2.8          | DE.CM-09          |    |       | 6002 | a service started
system.service.stopped            | system         | 2 | 3 | 2.8          | DE.CM-09          |    | T0881 | 6002 | a service stopped
system.service.failed             | system         | 3 | 3 | 7.1          | DE.CM-09          |    | T0881 | 6002 | a service failed
system.booted                     | system         | 2 | 2 | 2.8          | DE.CM-09          |    | T0816 | 6002 | the computer started
system.shutdown                   | system         | 2 | 2 | 2.8          | DE.CM-09          |    | T0816 | 6002 | the computer was told to stop
system.memory.exhausted           | system         | 4 | 4 | 7.2          | DE.CM-09          |    | T0814 | 6002 | a process was killed for want of memory
system.clock.stepped              | system         | 3 | 3 | 2.11         | DE.CM-09          |    | T0872 | 6002 | the clock jumped
system.disk.pressure              | system         | 3 | 3 | 2.9          | DE.CM-09          |    | T0814 | 6002 | the disk is nearly full
system.job.ran                    | system         | 1 | 3 | 2.8          | DE.CM-09          |    | T0807 | 1006 | a scheduled job ran
system.process.started            | system         | 1 | 3 | 2.8          | DE.CM-09          |    | T0807 | 1007 | a program was run
system.kernel                     | system         | 1 | 2 | 2.8          | DE.CM-09          |    |       | 6002 | a kernel message
agent                             | agent          | 1 | 3 | 6.2          | DE.CM-09          |    |       | 6002 | about the agent itself
agent.started                     | agent          | 1 | 3 | 6.2 2.8      | DE.CM-09          |    |       | 6002 | the agent started
agent.stopped                     | agent          | 2 | 3 | 6.2 2.8      | DE.CM-09          |    | T0881 | 6002 | the agent stopped
agent.upgraded                    | agent          | 2 | 3 | 3.4          | PR.PS-02          |    |       | 6002 | the agent's version changed
agent.configuration.changed       | agent          | 3 | 3 | 3.4 7.6      | PR.PS-01          |    | T0889 | 5019 | the agent's own configuration changed
agent.source.trouble              | agent          | 2 | 2 | 6.2 2.10     | DE.CM-09          |    |       | 6002 | a source cannot do its work
agent.source.recovered            | agent          | 1 | 1 | 6.2          | DE.CM-09          |    |       | 6002 | a source works again
agent.enrolled                    | agent          | 2 | 2 | 1.2 1.3      | PR.AA-01          |    |       | 3001 | an agent was let in, with a key of its own
agent.key.changed                 | agent          | 2 | 3 | 1.5          | PR.AA-01          |    |       | 3001 | a new key took the place of an agent's key
agent.revoked                     | agent          | 3 | 3 | 1.3          | PR.AA-01          |    |       | 3001 | the keys of an agent were taken back
agent.handler.failed              | agent          | 3 | 3 | 6.2 2.10     | DE.CM-09          |    |       | 6002 | a handler raised an error and was set aside
agent.action.done                 | agent          | 1 | 3 | 6.2          | DE.CM-09          |    |       | 6002 | a local action was done
agent.action.failed               | agent          | 3 | 3 | 6.2          | DE.CM-09          |    |       | 6002 | a local action failed
agent.action.timeout              | agent          | 3 | 3 | 6.2          | DE.CM-09          |    |       | 6002 | a local action took too long and was ended
agent.action.dropped              | agent          | 3 | 3 | 6.2          | DE.CM-09          |    |       | 6002 | a local action was not done for an alert
agent.action.unknown              | agent          | 3 | 3 | 6.2          | DE.CM-09          |    |       | 6002 | a local action had begun when the agent was ended
agent.buffer.pressure             | agent          | 3 | 3 | 2.9          | DE.CM-09          |    |       | 6002 | the buffer is nearly full
agent.buffer.recovered            | agent          | 3 | 3 | 2.9 2.10     | DE.CM-09          |    |       | 6002 | a damaged or lost buffer was replaced, and what could be read was saved
agent.contact.lost                | agent          | 3 | 3 | 2.9 6.2      | DE.CM-09          |    | T0815 | 6002 | the collector has not answered for long
agent.contact.restored            | agent          | 1 | 1 | 6.2          | DE.CM-09          |    |       | 6002 | the collector answers again
agent.heartbeat                   | agent          | 1 | 1 | 6.2          | DE.CM-09          |    |       | 6002 | the agent is alive
collection                        | collection     | 2 | 2 | 2.9 2.10     | PR.PS-04          |    |       | 6002 | about collecting
collection.gap                    | collection     | 3 | 3 | 2.9 2.10     | PR.PS-04 DE.CM-09 |    | T0804 | 6002 | events were lost here: how many, from where, why
alert                             | alert          | 4 | 4 | 6.2          | DE.AE-02 DE.AE-08 | 33 |       | 2004 | a handler noticed something
application                       | application    | 1 | 3 | 2.8          | DE.CM-09          |    |       | 6003 | a station program says something
application.request               | application    | 1 | 2 | 2.8          | DE.CM-09          | 30 |       | 6003 | a request to a station program
application.error                 | application    | 3 | 3 | 2.8          | DE.CM-09          |    |       | 6002 | a station program failed at something
production                        | production     | 1 | 2 | 6.2          | DE.CM-09          |    |       | 2004 | about orders and shifts
claimed                           | security       | 3 | 4 | 1.2 3.9      | PR.AA-03 DE.AE-02 |    | T0859 | 2004 | an agent sent a type that only the collector may state; the type stands behind the first dot
log                               | log            | 1 | 2 | 2.8          | PR.PS-04          |    |       | 0    | about log lines
log.line                          | log            | 1 | 2 | 2.8          | PR.PS-04          |    |       | 0    | a line that no parser knows, kept as it is
custom                            | custom         | 1 | 2 | 2.8          | PR.PS-04          |    |       | 0    | a type that this table does not know
"""

COLLECTOR_TYPES = (
    "security.chain", "security.signature", "security.enrolment", "security.evidence", "agent.revoked", "collector", "claimed",
    "alert.chain", "alert.evidence", "alert.fleet", "alert.collection", "alert.collector", "alert.agent.silent", "alert.agent.lag",
    "alert.agent.clock", "alert.agent.buffer", "alert.agent.stalled", "alert.agent.claimed",
)  # fmt: skip
"""Types, and all below them, that state what only the collector can know: about the evidence, the door, or several agents. They are
believed from the collector's own stream alone. Agents, their intake, parsers and handlers do not send them."""
CLAIMED = "claimed"
"""Under this name the collector stores a type of COLLECTOR_TYPES that an agent sent."""
_LEVELS_MAX = 8

TAXONOMY: dict[str, Row] = {row.name: row for row in map(_row, _TABLE.strip().splitlines())}

_SEVERITY: dict[tuple[str, str | None], int] = {}
for _r in TAXONOMY.values():
    _SEVERITY[_r.name, None] = _SEVERITY[_r.name, "success"] = _r.severity
    _SEVERITY[_r.name, "failure"] = _r.on_failure


@lru_cache(maxsize=4096)
def lookup(type_: str) -> Row:
    """The row of a type, or that of its nearest known ancestor, or that of `custom`."""
    name = type_
    while name not in TAXONOMY:
        if "." not in name:
            return TAXONOMY["custom"]
        name = name.rpartition(".")[0]
    return TAXONOMY[name]


def default_severity(type_: str, outcome: str | None) -> int:
    """The severity of an event whose source gives none."""
    try:
        return _SEVERITY[type_, outcome]
    except KeyError:
        row = lookup(type_)
        return row.on_failure if outcome == "failure" else row.severity


@lru_cache(maxsize=4096)
def is_collectors(type_: str) -> bool:
    """Return whether a type is one that only the collector may state."""
    return any(type_ == name or type_.startswith(f"{name}.") for name in COLLECTOR_TYPES)


def claimed(type_: str) -> str:
    """Return the type under which a claimed one is stored: readable, and never taken for the real one."""
    return ".".join([CLAIMED, *type_.split(".")][:_LEVELS_MAX])[:TYPE_LENGTH_MAX].rstrip(".")
