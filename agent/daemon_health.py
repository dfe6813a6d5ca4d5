"""Judge how the running agent fares: the checks of /healthz and /readyz, and the conditions whose begin and end are logged.

    failed     nothing can be stored, or nothing moves: `buffer`, `progress`
    degraded   a configured thing delivers nothing, or what is collected does not arrive: every other check
    ok         neither

Each check that is not ok has what is wrong and what to do about it, in words that a plant engineer can act upon.
"""

import logging
import time
from collections.abc import Iterator

from agent.changes import Condition, Key
from agent.component import now_us
from agent.daemon_status import PROGRESS_S_MAX, Facts, makes_progress
from agent.health_status import Check, Health, health_of
from agent.pipeline import BACKOFF_S_MAX, CONFIG_RETRY_S, SourceState

NAMED_MAX = 5
"""Troubles that a check names; it counts the others."""
BUSY_S = 30.0
"""A collector that asks us to wait is at work; one that does so for longer than this takes nothing."""
DEFECT_S = 60.0
"""A part of the daemon that ran for so long after its last defect runs again."""
STATUS = "systemctl status linewarden-collector, at the collector"

KEY_REMEDY = "Put a good key there; at the collector: linewarden-collector key create --role agent"
REMEDIES = {
    "configuration": "Correct it; linewarden-agent check names every problem",
    "disputed": "Compare the versions of agent and collector, and report it; the batches are kept here meanwhile",
}


def health(facts: Facts) -> Health:
    """Return all checks and the worst of them."""
    return health_of(checks_of(facts))


def checks_of(facts: Facts) -> list[Check]:
    """Return what has to be so for everything that is configured to arrive."""
    buffer, progress = ready_of(facts)
    if buffer.state == "ok" and (pressure := facts.host.pressure()):
        remedy = "What the collector takes leaves the buffer; at 100 % the oldest readings go, declared. Or raise [buffer] bytes_max"
        buffer = Check("buffer", "degraded", pressure, remedy)
    return [
        buffer,
        progress,
        _sources(facts),
        _handlers(facts),
        _actions(facts),
        _collector(facts),
        _one("certificates", facts.host.expired, "Renew it; who refuses it takes nothing from here until then"),
        _one(
            "identity", {"": facts.key_trouble() or ""}, "The key before goes on; the change is tried again by itself"
        ),
        _one(
            "configuration",
            {"": facts.reload_error or ""},
            "What ran before goes on. Correct the file (linewarden-agent check) and reload",
        ),
        _one("endpoint", {"": facts.endpoint_trouble or ""}, "Free the address, or choose another in [health] listen"),
        _one("parts", defects_of(facts), "It is started again by itself. Please report it, with the agent's log"),
    ]


def ready_of(facts: Facts) -> list[Check]:
    """Return what has to be so for it to take events now."""
    stalled = facts.buffer.stalled
    room = (
        "Make room on the disk, or give the folder to the agent's user; nothing is lost that the sources can read again"
    )
    buffer = Check("buffer", "failed", stalled, room) if stalled else Check("buffer")
    if makes_progress(facts.buffer):
        return [buffer, Check("progress")]
    text = f"nothing was written for more than {PROGRESS_S_MAX:.0f} s"
    return [buffer, Check("progress", "failed", text, "See whether the disk answers; systemd restarts the agent")]


def _one(name: str, troubles: dict[str, str], remedy: str) -> Check:
    texts = [(f"{part}: {text}" if part else text).rstrip(".") for part, text in troubles.items() if text]
    return Check(name, "degraded", _listed(texts), remedy) if texts else Check(name)


def _listed(texts: list[str]) -> str:
    more = f"; and {len(texts) - NAMED_MAX} more" if len(texts) > NAMED_MAX else ""
    return "; ".join(texts[:NAMED_MAX]) + more


def _sources(facts: Facts) -> Check:
    texts = [
        f"{name}: {text}" for name, state in facts.pipeline.sources.items() for text in state.report.trouble.values()
    ]
    texts += [
        f"{name}: {state.report.last_error}"
        for name, state in facts.pipeline.sources.items()
        if state.state == "failed" and not state.report.trouble
    ]
    remedy = (
        "Each is tried again by itself until it works; linewarden-agent check names what is wrong with files and rights"
    )
    return Check("sources", "degraded", _listed(texts), remedy) if texts else Check("sources")


def _handlers(facts: Facts) -> Check:
    aside = {name: stats.error for name, stats in facts.pipeline.engine.stats().items() if stats.error is not None}
    return _one(
        "handlers", aside, "It was set aside after an error and raises nothing: reload or restart, and report it"
    )


def _actions(facts: Facts) -> Check:
    actions = facts.pipeline.actions
    failing = {name: stats.last_error for name, stats in actions.stats().items()} if actions is not None else {}
    return _one("actions", failing, "The last alert's action was not done; try its command by hand as the agent's user")


def _collector(facts: Facts) -> Check:
    sync = facts.sync
    if not is_away(facts):
        return Check("collector")
    waiting = f"; {facts.buffer.pending_events} events wait in the buffer"
    return Check("collector", "degraded", f"{(sync.last_error or '').rstrip('.')}{waiting}", remedy_for(facts))


def is_away(facts: Facts) -> bool:
    """Return whether the collector takes nothing, for longer than it may ask us to wait."""
    sync = facts.sync
    if sync.trouble is None:
        return False
    since_us = sync.failing_since_us or now_us()
    return sync.trouble != "busy" or now_us() - since_us > BUSY_S * 1e6


def remedy_for(facts: Facts) -> str:
    """Return what to do about a collector that takes nothing."""
    url, said = facts.url, (facts.sync.last_error or "").lower()
    enrol = f"linewarden-agent enroll --collector {url} --token-file FILE"
    trouble = facts.sync.trouble
    if trouble == "refused":
        key = "sync.key_file" in said
        return KEY_REMEDY if key else f"Enrol this agent again with a token for it: {enrol}"
    if trouble == "busy":
        return f"If it lasts, see the collector's own health: {url}/healthz, or {STATUS}"
    if trouble in REMEDIES:
        return REMEDIES[trouble]
    if "certificate" in said:
        return f"If the collector has another authority now: {enrol}, or give it in sync.ca_file"
    return f"Check [sync] url, the network in between (curl {url}/healthz), and that the collector runs: {STATUS}"


def defects_of(facts: Facts) -> dict[str, str]:
    """Return the parts of the daemon that had a defect a short while ago."""
    now_s = time.monotonic()
    return {name: text for name, (text, at_s) in facts.defects.items() if now_s - at_s < DEFECT_S}


# What is logged when it begins and when it ends -------------------------------------------------------------------------------------


def conditions_of(facts: Facts) -> dict[Key, Condition]:
    """Return everything that is wrong now, each as the line that its begin and its end are."""
    found: dict[Key, Condition] = {}
    for state in facts.pipeline.sources.values():
        found.update(_of_source(state))
    if is_away(facts):
        found["collector",] = _away(facts)
    checks = health(facts)
    for name in ("buffer", "progress", "handlers", "actions", "certificates", "identity"):
        check = checks.checks[name]
        if check.state != "ok":
            level = logging.ERROR if check.state == "failed" else logging.WARNING
            found[name,] = Condition(
                f"{name}: {check.detail}. {check.remedy}", f"{name}: works again", check.state, level
            )
    if checks.state != "ok":
        names = ", ".join(name for name, check in checks.checks.items() if check.state != "ok")
        text = f"health is {checks.state}: {names}. linewarden-agent status shows what to do"
        level = logging.ERROR if checks.state == "failed" else logging.WARNING
        found["health",] = Condition(text, "health is ok again", checks.state, level)
    return found


def _away(facts: Facts) -> Condition:
    sync = facts.sync
    next_s = max(0.0, ((sync.wait_until_us or now_us()) - now_us()) / 1e6)
    text = (
        f"the collector takes nothing: {_sentence(sync.last_error or '')} Next try in {next_s:.0f} s, and on until it does; "
        f"{facts.buffer.pending_events} events wait in the buffer. {remedy_for(facts)}"
    )
    return Condition(text, f"the collector at {facts.url} takes events again", sync.trouble or "")


def _of_source(state: SourceState) -> Iterator[tuple[Key, Condition]]:
    for part, text in state.report.trouble.items():
        if part:
            # In a source's trouble its part is named where it has a name.
            line = f"source {state.name}: {_sentence(text)} It is tried again until it works"
            yield ("source", state.name, part), Condition(line, f"source {state.name}: {part} works again")
        else:
            line = f"source {state.name}: {_sentence(text)} {_next_try(state)}"
            yield ("source", state.name), Condition(line, f"source {state.name} works again", state.why)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _next_try(state: SourceState) -> str:
    next_s = max(0.0, ((state.retry_us or now_us()) - now_us()) / 1e6)
    if state.why == "configuration":
        return f"Next try in {next_s:.0f} s, then every {CONFIG_RETRY_S:.0f} s, or at once with systemctl reload linewarden-agent"
    text = f"Next try in {next_s:.0f} s, then at least every {BACKOFF_S_MAX:.0f} s until it works"
    if state.why == "defect":
        return f"{text}. It is a defect: please report it, with the lines above"
    return f"{text}. Check that the other side is switched on and that this station reaches it"
