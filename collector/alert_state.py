"""The states of an alert and what leads from one to the other. Pure: the store locks, asks here, and writes what it is told.

              acknowledge                    close, false positive, cleared
    open ◄────────────────► acknowledged ──────────────────────────────────► closed
      ▲        reopen                                                          │
      └──────────────────── reopen, or it fires again ─────────────────────────┘

An alert that was closed opens again by itself when it fires again; while it is quiet (a false positive with an expiry) or suppressed it
stays closed and is counted. Every change makes the version greater by one, and an action that names another version than the one
that is there changes nothing: of two analysts who act at once, the second is told.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, get_args

State = Literal["open", "acknowledged", "closed"]
Reason = Literal["resolved", "false_positive", "benign", "duplicate", "suppressed", "other"]
Verb = Literal["acknowledge", "assign", "comment", "close", "false_positive", "reopen"]
STATES: tuple[State, ...] = get_args(State)
REASONS: tuple[Reason, ...] = get_args(Reason)
VERBS: tuple[Verb, ...] = get_args(Verb)


class NotAllowed(Exception):
    """The action does not fit the state. The text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far an alert is."""

    state: State = "open"
    reason: Reason | None = None
    quiet_until: datetime | None = None
    assignee: str | None = None
    reopened: int = 0
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What somebody wants. `reason`: of close; `until`: of false_positive; `assignee`: of assign, null takes it away."""

    verb: Verb
    reason: Reason | None = None
    until: datetime | None = None
    assignee: str | None = None
    comment: str | None = None


def act(standing: Standing, action: Action, now: datetime) -> Standing:
    """Where an action leads. Raises NotAllowed."""
    return replace(_ACTS[action.verb](standing, action, now), version=standing.version + 1)


def _acknowledge(standing: Standing, action: Action, now: datetime) -> Standing:
    del action, now
    if standing.state != "open":
        raise NotAllowed(f"only an open alert can be acknowledged, this one is {standing.state}")
    return replace(standing, state="acknowledged")


def _assign(standing: Standing, action: Action, now: datetime) -> Standing:
    del now
    return replace(standing, assignee=action.assignee or None)


def _comment(standing: Standing, action: Action, now: datetime) -> Standing:
    del now
    if not action.comment:
        raise NotAllowed("a comment needs a text")
    return standing


def _close(standing: Standing, action: Action, now: datetime) -> Standing:
    del now
    if standing.state == "closed":
        raise NotAllowed(f"the alert is closed already: {standing.reason}")
    if action.reason is None or action.reason in ("false_positive", "suppressed"):
        raise NotAllowed(
            "close needs a reason: resolved, benign, duplicate or other; a false positive is an action of its own"
        )
    return replace(standing, state="closed", reason=action.reason, quiet_until=None)


def _false_positive(standing: Standing, action: Action, now: datetime) -> Standing:
    if action.until is None or action.until <= now:
        raise NotAllowed("a false positive needs an expiry that lies ahead: until")
    return replace(standing, state="closed", reason="false_positive", quiet_until=action.until)


def _reopen(standing: Standing, action: Action, now: datetime) -> Standing:
    del action, now
    if standing.state == "open":
        raise NotAllowed("the alert is open")
    return replace(standing, state="open", reason=None, quiet_until=None, reopened=standing.reopened + 1)


_ACTS = {
    "acknowledge": _acknowledge, "assign": _assign, "comment": _comment, "close": _close, "false_positive": _false_positive,
    "reopen": _reopen,
}  # fmt: skip


def fire(standing: Standing, now: datetime, *, suppressed: bool) -> Standing:
    """Where it leads that the alert comes again."""
    if standing.state != "closed" or suppressed or (standing.quiet_until is not None and now < standing.quiet_until):
        return standing
    return replace(
        standing, state="open", reason=None, quiet_until=None, reopened=standing.reopened + 1, version=standing.version + 1
    )  # fmt: skip


def clear(standing: Standing) -> Standing:
    """Where it leads that what the centre raised is over: nobody has to close that."""
    if standing.state == "closed":
        return standing
    return replace(standing, state="closed", reason="resolved", quiet_until=None, version=standing.version + 1)
