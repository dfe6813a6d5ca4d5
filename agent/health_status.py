"""What the agent says of itself: the object of /status, the source of /metrics, and what `linewarden-agent status` prints.

A field that is None is not known or has not happened yet. Counters (`events`, `…_total`) begin with the process.
"""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

HealthState = Literal["ok", "degraded", "failed"]
"""ok: all that is configured works. degraded: a configured thing delivers nothing, or the collector is away or refuses; the rest goes on.
failed: nothing can be collected and stored now."""
STATES: tuple[HealthState, ...] = ("ok", "degraded", "failed")


class Check(Struct):
    """One of the things that have to be so. `detail` says why not, `remedy` what to do."""

    name: str
    state: HealthState = "ok"
    detail: str = ""
    remedy: str = ""


class Health(Struct, frozen=True):
    """All checks, and the worst of their states. `ok`: not failed, which is what the status code 200 says."""

    state: HealthState = "ok"
    ok: bool = True
    checks: dict[str, Check] = {}


def health_of(checks: Sequence[Check]) -> Health:
    """Return the checks together."""
    worst: HealthState = max((check.state for check in checks), key=STATES.index, default="ok")
    return Health(worst, worst != "failed", {check.name: check for check in checks})


class AgentStatus(Struct, kw_only=True):
    """The process."""

    id: str
    version: str
    pid: int
    started_us: int
    config_file: str
    config_sha256: str | None = None
    reloaded_us: int | None = None
    reload_error: str | None = None
    """Why the file on the disk is not the configuration that runs."""
    rss_bytes: int = 0
    cpu_s: float = 0.0


class SourceStatus(Struct, kw_only=True):
    """One source. `trouble`: part ("" for the whole) → what is wrong with it now. `counts`: the source's own counters."""

    kind: str
    state: str
    """starting, running, waiting (for its other side), failed (by its configuration) or stopped"""
    connected: bool = False
    events: int = 0
    gaps: int = 0
    restarts: int = 0
    last_event_us: int | None = None
    silent_s: float = 0.0
    """Since its last event; since its start, where there was none."""
    last_error: str | None = None
    last_error_us: int | None = None
    retry_us: int | None = None
    """When it is started again, while it waits for that."""
    trouble: dict[str, str] = {}
    counts: dict[str, int] = {}


class BufferStatus(Struct, kw_only=True):
    """What waits to be sent (`events`, `bytes`, `oldest_us`), and how the buffer fares. `stalled`: why nothing can be stored now."""

    events: int = 0
    bytes: int = 0
    oldest_us: int | None = None
    used_bytes: int = 0
    bytes_max: int = 0
    stalled: str | None = None
    appended_events: int = 0
    commits: int = 0
    commit_s: float = 0.0
    last_commit_us: int | None = None
    evicted_batches: int = 0
    evicted_events: int = 0
    set_aside: int = 0
    stalls: int = 0


class SyncStatus(Struct, kw_only=True):
    """The way to the collector. `lag_s`: age of the oldest event that is not there yet, 0 where all are. `failures`: in a row."""

    state: str = "idle"
    url: str = ""
    lag_s: float = 0.0
    last_success_us: int | None = None
    last_error: str | None = None
    trouble: str | None = None
    """unreachable, refused, busy, disputed or configuration; None while the collector takes what is sent"""
    failing_since_us: int | None = None
    failures: int = 0
    failures_total: int = 0
    wait_until_us: int | None = None
    requests: int = 0
    sent_batches: int = 0
    sent_events: int = 0
    sent_bytes: int = 0


class HandlerStatus(Struct, kw_only=True):
    """One handler. `error`: why it was set aside."""

    kind: str
    events: int = 0
    matched: int = 0
    late: int = 0
    alerts: int = 0
    suppressed: int = 0
    keys: int = 0
    evicted: int = 0
    refused: int = 0
    busy_s: float = 0.0
    last_evaluated_us: int | None = None
    error: str | None = None


class ActionStatus(Struct, kw_only=True):
    """One local action: alerts that wait for it, and how it ended. `dropped`: left out; `last_error`: None after one that was done."""

    type: str
    waiting: int = 0
    done: int = 0
    failed: int = 0
    timeout: int = 0
    dropped: int = 0
    unknown: int = 0
    last_us: int | None = None
    last_error: str | None = None


class Status(Struct, kw_only=True):
    """All of it."""

    agent: AgentStatus
    health: Health = Health()
    health_since_us: int | None = None
    sources: dict[str, SourceStatus]
    buffer: BufferStatus
    sync: SyncStatus
    handlers: dict[str, HandlerStatus]
    actions: dict[str, ActionStatus] = {}
    alerts: int = 0
