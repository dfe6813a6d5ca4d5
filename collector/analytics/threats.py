"""Threats: how serious the last events look, what says so, what to do at once, and which of ATT&CK for ICS would be seen here at all.

Evidence is what was stored: events of severity medium and above whose type names a technique, compared with the period of the same length
before. A technique is what such an event could be part of, not a proof that it is. The level is that of the gravest evidence, one step
higher where techniques of three tactics come together.
"""

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from agent.wire.taxonomy import TAXONOMY, lookup
from collector.analytics.answer import Analysis, Asked, Findings, Insufficient
from collector.analytics.statistics import Q, poisson_sf, shown, within_family
from collector.store import analytics_read as store

if TYPE_CHECKING:
    from collector.store.database import Database

LEVELS = ("none", "guarded", "elevated", "high", "severe")
TACTICS_TOGETHER = 3
MEDIUM = 3


class Technique(NamedTuple):
    """What is known of a technique, and what to do at once."""

    name: str
    tactic: str
    action: str


_TABLE = """
T0804 | Block Reporting Message | Inhibit Response Function | Look for what was lost at its source; check the link and the buffer of the agent
T0807 | Command-Line Interface | Execution | Ask who ran it; compare with planned work; lock the account if nobody knows
T0809 | Data Destruction | Inhibit Response Function | Stop what deletes; restore from the last backup that verifies
T0811 | Data from Information Repositories | Collection | Ask who read or exported it, and where it went; withdraw the access until that is known
T0814 | Denial of Service | Inhibit Response Function | Find what loads the device or computer; part it from the network at the cell's firewall
T0815 | Denial of View | Impact | Send somebody to the machine; bring it to a safe state by hand if its state is not known
T0816 | Device Restart/Shutdown | Inhibit Response Function | Compare with planned work; keep the device's log before it is overwritten
T0826 | Loss of Availability | Impact | Treat as a fault first; keep logs and programs for comparison before anything is reset
T0830 | Adversary-in-the-Middle | Collection | Do not trust the certificate; compare its fingerprint with the device itself; check switches and ARP
T0831 | Manipulation of Control | Impact | Compare values with the machine itself; go to hand operation if they differ
T0836 | Modify Parameter | Impair Process Control | Compare setpoints with the released recipe; set them back by the procedure for changes
T0838 | Modify Alarm Settings | Inhibit Response Function | Set limits back as released; watch the machine in person until then
T0839 | Module Firmware | Persistence | Compare the firmware with the maker's; do not operate the device until it is known
T0843 | Program Download | Lateral Movement | Compare the program with the released one; set the key switch to RUN; ask the engineering station's users
T0846 | Remote System Discovery | Discovery | Find who owns the address; block it at the cell's firewall if nobody does
T0847 | Replication Through Removable Media | Initial Access | Part the computer from the network; scan medium and computer; ask who brought it
T0855 | Unauthorized Command Message | Impair Process Control | Ask who wrote; part the writing address from the cell if nobody knows
T0858 | Change Operating Mode | Execution | Compare with planned work; set the key switch to RUN
T0859 | Valid Accounts | Persistence | Ask the account's owner; change its password; end its sessions; look for the same address elsewhere
T0871 | Execution through API | Execution | Ask who called it; withdraw the right until that is known
T0872 | Indicator Removal on Host | Evasion | Treat the computer as taken; keep its disk; compare with what the centre has stored
T0878 | Alarm Suppression | Inhibit Response Function | Enable the alarm again; watch the machine in person until then
T0881 | Service Stop | Inhibit Response Function | Compare with planned work; start the service; keep the logs of before
T0886 | Remote Services | Lateral Movement | End the remote session; ask the maker or integrator whether it is theirs
T0888 | Remote System Information Discovery | Discovery | Find who owns the address; block it at the cell's firewall if nobody does
T0889 | Modify Program | Persistence | Compare with the released program or trust list; set it back
T0890 | Exploitation for Privilege Escalation | Privilege Escalation | Ask who did it; update the program; end the sessions of the account
T0892 | Change Credential | Inhibit Response Function | Ask the account's owner; get in by the emergency account; set credentials anew
"""
TECHNIQUES = {
    cells[0]: Technique(*cells[1:]) for line in _TABLE.strip().splitlines() if (cells := [cell.strip() for cell in line.split("|")])
}  # fmt: skip
TACTICS = (
    "Initial Access", "Execution", "Persistence", "Privilege Escalation", "Evasion", "Discovery", "Lateral Movement", "Collection",
    "Command and Control", "Inhibit Response Function", "Impair Process Control", "Impact",
)  # fmt: skip


async def gather(database: "Database", asked: Asked) -> Any:
    """Counts by station, type and severity, now and in the period before."""
    span = asked.span
    before = replace(span, begin=span.begin - (span.end - span.begin), end=span.begin)
    return await store.of_whom(database, span, "station"), await store.of_whom(database, before, "station")


def compute(data: Any, asked: Asked) -> Findings:
    """Of rows (station, type, severity, events, failures), now and before."""
    now, before = data
    events = sum(row[3] for row in now)
    if not events:
        raise Insufficient("an event in the period; there is none: is any agent sending?")
    known = asked.since is not None and asked.since <= asked.span.begin - (asked.span.end - asked.span.begin)
    evidence = _evidence(now, before, known=known)
    level = max((one["grade"] for one in evidence), default=0)
    tactics = {one["tactic"] for one in evidence if one["grade"] > 1}
    together = len(tactics) >= TACTICS_TOGETHER
    level = min(len(LEVELS) - 1, level + (1 if together else 0))
    for one in evidence:
        one["grade"] = LEVELS[one["grade"]]
    return Findings(
        "gravest evidence by severity and by comparison with the period before",
        events,
        {"kind": "a grading of evidence, not a probability", "false_increase_max": Q, "compared": known},
        {
            "level": LEVELS[level],
            "why": _why(evidence, sorted(tactics), together=together),
            "evidence": evidence,
            "actions": [{"technique": one["technique"], "action": one["action"]} for one in evidence if one["grade"] in LEVELS[2:]],
            "coverage": coverage({one["technique"] for one in evidence}),
        },
        {"stations": len({row[0] for row in now}), "events_before": sum(row[3] for row in before)},
    )  # fmt: skip


def _evidence(now: Any, before: Any, *, known: bool) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for station, type_, severity, events, _ in now:
        name = lookup(type_).technique
        if name is None or severity < MEDIUM:
            continue
        one = found.setdefault(name, {"events": 0, "severity": 0, "types": set(), "stations": set()})
        one["events"] += events
        one["severity"] = max(one["severity"], severity)
        one["types"].add(type_)
        one["stations"].add(station)
    earlier: dict[str, int] = {}
    for _, type_, severity, events, _ in before:
        name = lookup(type_).technique
        if name is not None and severity >= MEDIUM:
            earlier[name] = earlier.get(name, 0) + events
    out = []
    for name, one in found.items():
        usual = earlier.get(name, 0)
        # Twice the root more, since what was before is a sample as well.
        p = within_family(poisson_sf(one["events"], usual + 1 + 2 * usual**0.5), len(found)) if known else 1.0
        grade = min(4, {3: 1, 4: 2}.get(one["severity"], 3) + (1 if known and p < Q else 0))
        technique = TECHNIQUES[name]
        out.append(
            {"technique": name, "name": technique.name, "tactic": technique.tactic, "events": one["events"],
             "before": usual if known else None,
             "p_of_increase": shown(p) if known else None, "severity": one["severity"], "types": sorted(one["types"])[:20],
             "stations": sorted(one["stations"])[:50], "grade": grade, "action": technique.action}
        )  # fmt: skip
    return sorted(out, key=lambda one: (-one["grade"], -one["severity"], -one["events"], one["technique"]))


def _why(evidence: list[dict[str, Any]], tactics: list[str], *, together: bool) -> str:
    if not evidence:
        return "no event of severity medium or above whose type names a technique"
    first = evidence[0]
    text = f"{first['events']} events that could be {first['technique']} {first['name']}"
    return text + (f"; and techniques of {len(tactics)} tactics: {', '.join(tactics)}" if together else "")


def coverage(seen: set[str]) -> list[dict[str, Any]]:
    """By tactic: techniques that types of events tell of, and which of them were seen. The rest goes unnoticed."""
    types: dict[str, list[str]] = {}
    for row in TAXONOMY.values():
        if row.technique is not None:
            types.setdefault(row.technique, []).append(row.name)
    return [
        {"tactic": tactic, "techniques": [
            {"technique": name, "name": technique.name, "types": types.get(name, []), "seen": name in seen}
            for name, technique in TECHNIQUES.items() if technique.tactic == tactic
        ]}
        for tactic in TACTICS
    ]  # fmt: skip


ANALYSIS = Analysis(
    name="threats", version="1", summary="Level, evidence, immediate actions, coverage of ATT&CK for ICS", source="event_metrics",
    gather=gather, compute=compute, default=timedelta(days=1), filters=frozenset({"source"}),
)  # fmt: skip
