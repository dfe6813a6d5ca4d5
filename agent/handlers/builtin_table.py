"""The table of the built-in handlers: what each plant wants to hear of, why, which value to turn, and its ATT&CK for ICS technique.

What is here has to be quiet on a quiet line. Most need to be told nothing of a machine. Those of _SIGNALS judge only points and nodes whose
configuration says what they mean (`quantity`, `range`, `maintenance_at_h`), and learn what is usual; of all others they see nothing.
"""

from typing import Any

HOUR_S, DAY_S = 3_600, 86_400


def _rule(
    kind: str,
    alert: str,
    severity: str,
    technique: str | None,
    message: str | None,
    why: str,
    tuning: str,
    **settings: Any,
) -> dict[str, Any]:
    raises = {"type": f"alert.{alert}", "severity": severity, "technique": technique, "message": message}
    return {"type": kind, **settings, "raises": raises, "why": why, "tuning": tuning}


def _seen(
    types: tuple[str, ...], alert: str, severity: str, technique: str | None, message: str, why: str, tuning: str
) -> dict[str, Any]:
    # One of these is enough; the same of the same place again within the hour is the same matter.
    named = ", ".join(f"'{name}'" for name in types)
    return _rule("count", alert, severity, technique, message, why, tuning,
                 where=f"type in [{named}]", by=["source", "target"], at_least=1, within_s=60, cool_down_s=HOUR_S)  # fmt: skip


_SIGN_INS = {
    "login_burst": _rule(
        "count", "authentication.burst", "high", "T0859",
        "{count} refused sign-ins from {src_ip} within {window} (limit {limit})",
        "Somebody, or a program with an old password, tries to get in.",
        "Raise at_least where a program retries with an expired password; name its address in where to leave it out.",
        where="type == 'authentication.failure'", by=["src_ip"], at_least=5, within_s=60, cool_down_s=300,
        escalate=[{"at": 100, "severity": "critical"}],
    ),
    "password_spray": _rule(
        "count", "authentication.spray", "high", "T0859",
        "sign-ins of {count} different users were refused from {src_ip} within {window}",
        "One password, tried on many accounts, stays below every limit that counts by account. Unknown names count too, since a server"
        " that takes keys alone refuses them without a failed password.",
        "Raise at_least where many people sign in through one terminal server, or name its address in where.",
        where="type == 'authentication.failure' or (type == 'authentication' and data.user_known == false)",
        by=["src_ip"], distinct="actor", at_least=6, within_s=300, cool_down_s=HOUR_S,
    ),
    "brute_force_succeeded": _rule(
        "sequence", "authentication.broken_in", "critical", "T0859",
        "a sign-in from {src_ip} worked after refused ones within {window}",
        "Guessing has come to its end: whoever tried is in.",
        "Raise at_least of the first step where people often mistype.",
        by=["src_ip"], within_s=600, cool_down_s=300,
        steps=[{"where": "type == 'authentication.failure'", "at_least": 5}, {"where": "type == 'authentication.success'"}],
    ),
    "new_address": _rule(
        "novelty", "authentication.new_address", "medium", "T0886",
        "the first sign-in to {target} from {src_ip}",
        "Stations are reached from few places, and these change seldom.",
        "learn_s is how long everything is taken up silently at first; a longer one is quieter.",
        where="type == 'authentication.success'", of=["src_ip"], by=["target"], learn_s=7 * DAY_S,
    ),
    "new_user": _rule(
        "novelty", "authentication.new_user", "medium", "T0859",
        "a user signed in to {target} for the first time",
        "An account that was never used here is an attacker's favourite.",
        "learn_s, as above; forget_s is after how long an absent user is new again.",
        where="type == 'authentication.success'", of=["actor"], by=["target"], learn_s=7 * DAY_S,
    ),
    "account_created_then_used": _rule(
        "sequence", "account.created_and_used", "medium", "T0859",
        "an account that was just made signed in",
        "An intruder makes an account to come back by; so does an administrator, who can tell.",
        "within_s is how new an account has to be.",
        by=["actor"], within_s=DAY_S, cool_down_s=HOUR_S,
        steps=[{"where": "type == 'account.created'", "by": ["data.target_user"]}, {"where": "type == 'authentication.success'"}],
    ),
    "login_out_of_hours": _rule(
        "schedule", "authentication.out_of_hours", "medium", "T0859",
        "somebody signed in to {target} outside the shifts",
        "At night nobody should be at the line.",
        "Needs shifts in [handlers.builtin]; without them it is off.",
        where="type == 'authentication.success'", by=["target"], cool_down_s=HOUR_S,
    ),
    "rights_refused": _rule(
        "count", "access.refused_burst", "high", "T0890",
        "rights were asked for and refused {count} times within {window}",
        "Somebody who is in looks for a way up.",
        "Raise at_least where a script asks for what it may not have.",
        where="type == 'access.denied' or (type == 'access.privilege.used' and outcome == 'failure')",
        by=["actor"], at_least=3, within_s=300, cool_down_s=HOUR_S,
    ),
}  # fmt: skip

_COMPUTER = {
    "log_cleared": _seen(("security.log.cleared", "security.logging.stopped"), "security.log_cleared", "critical", "T0872",
        "a log was cleared or logging was stopped on {target}",
        "Whoever does this does not want to be seen.",
        "Switch it off in off while an auditor works, not for good."),
    "usb_attached": _seen(("security.usb.attached",), "security.usb", "medium", "T0847",
        "a removable medium was attached to {target}",
        "The way over the air gap.",
        "Put it into off where media are part of the work, and keep the events."),
    "service_listening": _seen(("network.service.listening",), "network.service", "medium", "T0886",
        "a new service listens on {target}",
        "A door that was not there before.",
        "Leave out known ones by where."),
    "remote_access_started": _seen(("security.remote_access.started",), "security.remote_access", "high", "T0886",
        "a remote access tool was started on {target}",
        "Wanted for maintenance, unwanted at any other time.",
        "Put it into off during maintenance, or use a schedule handler of your own."),
    "clock_stepped": _seen(("system.clock.stepped",), "system.clock", "medium", "T0872",
        "the clock of the station jumped",
        "Times of events before and after cannot be compared; logs may have been bent.",
        "Where clocks are set by hand, repair that first."),
}  # fmt: skip

_MACHINES = {
    "setpoints_flood": _rule(
        "count", "configuration.setpoints_flood", "high", "T0836",
        "{count} setpoints or modes of {source} changed within {window}",
        "A person changes one, a program of an attacker changes them all. A recipe does too.",
        "Set at_least above what loading a recipe changes at once.",
        where="type in ['configuration.setpoint.changed', 'configuration.mode.changed', 'configuration.limit.changed']",
        by=["source"], at_least=20, within_s=60, cool_down_s=300,
    ),
    "setpoint_out_of_hours": _rule(
        "schedule", "configuration.out_of_hours", "high", "T0836",
        "a setpoint or mode of {source} changed outside the shifts",
        "Nobody should be there to do it.",
        "Needs shifts in [handlers.builtin]; without them it is off.",
        where="type in ['configuration.setpoint.changed', 'configuration.mode.changed']", by=["source"], cool_down_s=HOUR_S,
    ),
    "program_changed": _seen(
        ("configuration.program.changed", "configuration.firmware.changed", "equipment.identity.changed"),
        "configuration.program_changed", "critical", "T0843",
        "program, firmware or identity of {target} changed ({source})",
        "What the machine does is no longer what was approved.",
        "Nothing to turn: match it with the change request."),
    "alarm_suppressed": _seen(("equipment.alarm.suppressed",), "equipment.alarm_suppressed", "medium", "T0878",
        "an alarm of {target} was suppressed or shelved ({source})",
        "The one who should be warned is not.",
        "Put it into off where operators shelve alarms all day, and look at the events instead."),
    "trust_trouble": _seen(
        ("security.certificate.changed", "security.certificate.untrusted", "security.certificate.invalid", "configuration.trust.changed"),
        "security.trust", "high", "T0830",
        "a certificate of {source} is not the one that is trusted",
        "A server was replaced, or somebody stands in between.",
        "After a planned exchange: linewarden-agent trust."),
    "sessions_rejected": _rule(
        "count", "authentication.sessions_rejected", "high", "T0859",
        "{source} rejected sessions {count} times within {window}",
        "Somebody tries to sign in to a machine.",
        "Raise at_least where a client with an old password keeps on.",
        where="type == 'authentication.session.rejected'", by=["source"], at_least=3, within_s=300, cool_down_s=HOUR_S,
        weight="data.count",
    ),
    "device_scan": _rule(
        "count", "device.scan", "high", "T0846",
        "{source} answered with exceptions {count} times within {window}",
        "Whoever does not know the addresses of a device asks for all of them.",
        "Correct a configuration that asks for addresses that are not there.",
        where="(type == 'device.exception' and data.exception_code in [1, 2, 3]) or type == 'network.scan'",
        by=["source"], at_least=20, within_s=60, cool_down_s=HOUR_S,
    ),
    "comms_lost": _seen(("device.comms.lost", "device.comms.flapping"), "device.comms", "medium", "T0815",
        "{target} does not answer, or comes and goes ({source})",
        "A view that is lost is the first thing that an attack on a line looks like; mostly it is a cable.",
        "Put it into off where machines are switched off every evening."),
    "faults": _rule(
        "count", "equipment.faults", "high", "T0826",
        "{source} reported {count} failures within {window}",
        "A machine that fails again and again is worn, or driven beyond what it can do.",
        "at_least and within_s, by what is usual for the line.",
        where="type == 'equipment.fault'", by=["source"], at_least=3, within_s=HOUR_S, cool_down_s=HOUR_S,
    ),
    "scrap": _rule(
        "ratio", "quality.scrap", "medium", None,
        "{value} of the parts of {source} were bad within {window} (limit {limit})",
        "Whatever the reason, the line makes waste.",
        "above, by what is usual; by = ['data.order'] looks at each order by itself.",
        where="type in ['quality.measured', 'quality.rejected']", bad="type == 'quality.rejected' or outcome == 'failure'",
        by=["source"], above=0.1, at_least=50, within_s=HOUR_S,
    ),
}  # fmt: skip

_ANALOGUE = (
    "temperature", "vibration", "current", "pressure", "flow", "level", "speed", "power", "torque", "voltage", "humidity",
)  # fmt: skip
_SETPOINTS = "type in ['configuration.setpoint.changed', 'configuration.mode.changed']"


def _of(*quantities: str, type_: str = "equipment.reading", setpoints: bool = True) -> str:
    named = ", ".join(f"'{name}'" for name in (*quantities, "running"))
    types = ", ".join(f"'{name}'" for name in dict.fromkeys((type_, "equipment.reading", "equipment.state.changed")))
    readings = f"type in [{types}] and data.quantity in [{named}]"
    return f"({readings}) or {_SETPOINTS}" if setpoints else readings


_SIGNALS = {
    "frozen_signal": _rule(
        "frozen", "equipment.signal.frozen", "medium", "T0856", None,
        "A sensor that is stuck, or a value that is played back: the screen shows a machine that is well.",
        "for_s and factor, for signals that stand long by nature. Give the machine a point of quantity running: without one it takes"
        " two other signals that go on, and a week of learning should have seen a weekend.",
        where=_of(*_ANALOGUE, setpoints=False), for_s=1_800, factor=3, learn_s=7 * DAY_S,
    ),
    "out_of_range": _rule(
        "bound", "equipment.signal.out_of_range", "high", "T0856", None,
        "Where nothing can be measured, a wire is broken, a sensor dead, or somebody writes values.",
        "range of the point, wide enough for what the sensor can show; dwell_s where single values are disturbed.",
        where="type == 'equipment.reading' and data.range != null", range="data.range", cool_down_s=HOUR_S,
    ),
    "sensor_drift": _rule(
        "baseline", "equipment.signal.drift", "medium", "T0832", None,
        "One signal wanders off while all others stay: a sensor ages, or somebody moves it slowly enough for nobody to see.",
        "Needs a point of quantity running, or a machine that stands and cools would be one that drifts. margin and parts; it is learned"
        " from 48 hours of running under the same setpoints, learn_parts = 168 takes in a week.",
        where=_of(*_ANALOGUE), part_s=HOUR_S, parts=6, learn_parts=48, floor=0.03, alone=True,
    ),
    "equipment_health": _rule(
        "baseline", "equipment.health", "medium", "T0879", None,
        "Heat, vibration and current rise before a machine fails, and when somebody drives it beyond what it can bear.",
        "margin and floor, by how much the machine may vary; learn_parts is what is learned, 24 hours of running.",
        where=_of("temperature", "vibration", "current", "power", "torque"), direction="up",
        part_s=300, parts=3, learn_parts=288, floor=0.1,
    ),
    "maintenance_due": _rule(
        "bound", "equipment.maintenance_due", "low", None, None,
        "The hours are run, and what is worn fails when nobody is looking.",
        "maintenance_at_h of the point; after maintenance the counter begins again, or the next one is written there.",
        where="type == 'equipment.reading' and data.maintenance_at_h != null", reached="data.maintenance_at_h", cool_down_s=DAY_S,
    ),
    "cycle_time": _rule(
        "baseline", "production.cycle_time", "medium", "T0831", None,
        "A cycle that grows is wear; one that shrinks is somebody who leaves a step out.",
        "floor, a share of the usual cycle; parts, how long it has to last.",
        where=_of("cycle_time"), part_s=600, parts=3, learn_parts=36, floor=0.1, above_zero=True, cool_down_s=HOUR_S,
    ),
    "scrap_counters": _rule(
        "share", "quality.scrap_share", "medium", "T0831", None,
        "More parts are bad than this machine is used to, whatever the reason.",
        "above is what is never told; factor, how far beyond the worst that was learned; window_parts, how many parts are judged together.",
        where=_of("scrap_count", "good_count", "total_count", type_="equipment.counter"),
        above=0.05, factor=2, window_parts=200, learn_windows=20,
    ),
}  # fmt: skip

_RECIPE = "(data.kind == 'recipe' or target matches '(?i)recipe|rezept|receta|ricetta')"
_EXPORT = "(?i)(export|upload|backup|save).{0,20}(recipe|rezept)|(recipe|rezept).{0,20}(export|upload|backup)"

_DATA_AND_AGENT = {
    "recipes_read": _rule(
        "count", "data.recipes_read", "high", "T0811",
        "{count} different recipes of {source} were read within {window}",
        "An operator loads one recipe; whoever reads them all takes them along.",
        "Raise at_least where a program reads all recipes by design, or leave it out by where.",
        where=f"type in ['data.read', 'data.exported'] and {_RECIPE}", by=["source"], distinct="target", at_least=5,
        within_s=600, cool_down_s=HOUR_S,
    ),
    "recipe_exported": _rule(
        "count", "data.recipe_exported", "high", "T0882",
        "a recipe left the system: {target} ({source})",
        "Recipes are what a plant knows. Taking one out is seldom, and somebody's duty.",
        "Leave out the program that backs recipes up, by where.",
        where=f"(type == 'data.exported' and {_RECIPE}) or (type == 'equipment.method.called' and"
        f" (target matches '{_EXPORT}' or data.method matches '{_EXPORT}'))",
        by=["source", "target"], at_least=1, within_s=60, cool_down_s=HOUR_S,
    ),
    "mass_reads": _rule(
        "rate", "data.mass_reads", "medium", "T0811",
        "{count} reads of data at {source} within {window}, more than is usual",
        "Collecting comes before stealing.",
        "spreads and factor; at_least is below what nothing is raised.",
        where="type == 'data.read'", by=["source"], part_s=60, at_least=100,
    ),
    "data_exported": _seen(("data.exported",), "data.exported", "medium", "T0811",
        "data of {target} left the system ({source})",
        "Recipes are what a plant knows.",
        "Leave out scheduled exports by where."),
    "agent_configuration": _seen(("agent.configuration.changed",), "agent.configuration", "medium", "T0889",
        "the configuration of the agent itself changed",
        "Whoever may change what is collected may hide.",
        "Nothing to turn: match it with the change request."),
    "pressure": _seen(("agent.buffer.pressure", "system.disk.pressure"), "agent.pressure", "medium", None,
        "the buffer or the disk of the station is nearly full",
        "Readings will be given up, and declared, unless somebody acts.",
        "A larger buffer.bytes_max, or the network."),
    "contact_lost": _seen(("agent.contact.lost",), "agent.contact", "medium", "T0815",
        "the collector has not answered this station for long",
        "Nobody at the centre sees this station now; it goes on by itself.",
        "Put it into off where a station is offline by design."),
}  # fmt: skip

BUILTIN: dict[str, dict[str, Any]] = {**_SIGN_INS, **_COMPUTER, **_MACHINES, **_SIGNALS, **_DATA_AND_AGENT}


def document() -> str:
    """The page for people, made of the table."""
    lines = [
        "# Built-in handlers", "",
        'On by default. `[handlers.builtin]`: `enabled = false` switches all off, `off = ["usb_attached"]` some, and',
        "`[handlers.builtin.tune.login_burst]` takes any key of the handler's kind ([README](README.md)). A handler of yours with the same",
        "name takes the place of the built-in one.", "",
    ]  # fmt: skip
    shown = (
        "at_least", "distinct", "within_s", "above", "for_s", "factor", "window_parts", "learn_windows", "part_s", "parts",
        "learn_parts", "learn_s", "range", "reached",
    )  # fmt: skip
    for name, rule in BUILTIN.items():
        raises = rule["raises"]
        technique = f", {raises['technique']}" if raises["technique"] else ""
        where = f" of `{rule['where']}`" if "where" in rule else ""
        by = f" by {', '.join(f'`{field}`' for field in rule['by'])}" if rule.get("by") else ""
        bounds = ", ".join(f"`{key} = {rule[key]}`" for key in shown if key in rule)
        lines += [f"## `{name}`", "", f"{rule['why']} Raises `{raises['type']}`, {raises['severity']}{technique}.", ""]
        lines += [
            f"*{rule['type']}*{where}{by}" + (f": {bounds}." if bounds else "."),
            "",
            f"To tune: {rule['tuning']}",
            "",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(document(), end="")  # noqa: T201
