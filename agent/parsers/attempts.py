"""Count each attempt once, although several writers report it.

A refused sign-in at a desktop is written by every PAM module of the stack (pam_unix, then pam_sss); sshd with keyboard-interactive writes
PAM's verdict and then its own; shadow's su writes two lines of its own. Each writer is a *voice*. Invariant: of the lines of one process
that report the same kind of event within ATTEMPT_US, the first voice is counted, and so is every further line of a voice that was already
heard, because that voice begins a new attempt; a voice not heard yet adds to the attempt at hand and is not counted.

The state is JSON and lies in the parser's `memory`, so that a restart between two lines of one attempt changes nothing. It holds at most
ATTEMPTS_MAX attempts; beyond that the oldest is dropped, which can count an attempt twice and never leaves one out.
"""

from typing import Any

ATTEMPT_US = 10_000_000
ATTEMPTS_MAX = 64
_KEY = "attempts"


def repeats(memory: dict[str, Any], key: str, voice: str, time_us: int) -> bool:
    """Return whether the line only adds to an attempt that was counted already, and remember it."""
    attempts: dict[str, list[Any]] = memory.setdefault(_KEY, {})
    known = attempts.get(key)
    if known is not None and abs(time_us - known[0]) <= ATTEMPT_US and voice not in known[1:]:
        known.append(voice)
        return True
    attempts.pop(key, None)
    attempts[key] = [time_us, voice]
    if len(attempts) > ATTEMPTS_MAX:
        del attempts[next(iter(attempts))]
    return False
