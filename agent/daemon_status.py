"""What the running agent says of itself: to /status and /metrics, to /healthz, and to the collector with every request."""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.buffer import Buffer
from agent.component import now_us
from agent.health import process_facts
from agent.health_status import (
    ActionStatus,
    AgentStatus,
    BufferStatus,
    HandlerStatus,
    Health,
    HealthState,
    SourceStatus,
    Status,
    SyncStatus,
)
from agent.host import Host
from agent.pipeline import Pipeline, SourceState
from agent.sync import SyncState

PROGRESS_S_MAX = 45.0
"""Something is written at least every BEAT_S; where nothing went through for so long, the agent is stuck."""
BEAT_S = 5.0
TOLD_CHARS_MAX = 3_500
"""What goes along with a request stands in its header."""


@dataclass(slots=True)
class Facts:
    """The parts of a running agent, and what is known of its start and its configuration."""

    agent_id: str
    version: str
    config_file: str
    config_sha256: str | None
    buffer: Buffer
    pipeline: Pipeline
    host: Host
    sync: SyncState
    url: str
    started_us: int
    reloaded_us: int | None = None
    reload_error: str | None = None
    health_state: HealthState = "ok"
    health_since_us: int | None = None
    endpoint_trouble: str | None = None
    """Why nobody can ask us here."""
    key_trouble: Callable[[], str | None] = lambda: None
    """Why the agent's key could not be changed."""
    defects: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Part of the daemon → its last defect, and when that was (monotonic)."""


def makes_progress(buffer: Buffer) -> bool:
    """Whether transactions come through, or are at least refused: only a disk or a thread that hangs gives neither."""
    return time.monotonic() - buffer.tried_s < PROGRESS_S_MAX


def status_of(facts: Facts, health: Health) -> Status:
    """All of it."""
    buffer, sync, oldest = facts.buffer, facts.sync, facts.host.oldest_us
    rss, cpu = process_facts()
    counters = buffer.counters
    return Status(
        agent=AgentStatus(
            id=facts.agent_id,
            version=facts.version,
            pid=os.getpid(),
            started_us=facts.started_us,
            config_file=facts.config_file,
            config_sha256=facts.config_sha256,
            reloaded_us=facts.reloaded_us,
            reload_error=facts.reload_error,
            rss_bytes=rss,
            cpu_s=cpu,
        ),
        health=health,
        health_since_us=facts.health_since_us,
        sources={name: _source(state) for name, state in facts.pipeline.sources.items()},
        buffer=BufferStatus(
            events=buffer.pending_events,
            bytes=buffer.pending_bytes,
            oldest_us=oldest if buffer.pending_events else None,
            used_bytes=buffer.used_bytes,
            bytes_max=buffer.config.bytes_max,
            stalled=buffer.stalled,
            appended_events=counters.appended_events,
            commits=counters.commits,
            commit_s=counters.commit_s,
            last_commit_us=counters.last_commit_us or None,
            evicted_batches=counters.evicted_batches,
            evicted_events=counters.evicted_events,
            set_aside=counters.set_aside,
            stalls=counters.stalls,
        ),
        sync=SyncStatus(
            state=sync.state,
            url=facts.url,
            lag_s=max(0.0, (now_us() - oldest) / 1e6) if oldest and buffer.pending_events else 0.0,
            last_success_us=sync.last_success_us,
            last_error=sync.last_error,
            trouble=sync.trouble,
            failing_since_us=sync.failing_since_us,
            failures=sync.failures,
            failures_total=sync.failures_total,
            wait_until_us=sync.wait_until_us,
            requests=sync.requests,
            sent_batches=sync.sent_batches,
            sent_events=sync.sent_events,
            sent_bytes=sync.sent_bytes,
        ),
        handlers={name: _handler(stats) for name, stats in facts.pipeline.engine.stats().items()},
        actions={name: _action(stats) for name, stats in _actions(facts.pipeline)},
        alerts=facts.pipeline.alerts,
    )


def _actions(pipeline: Pipeline) -> Iterable[tuple[str, Any]]:
    return pipeline.actions.stats().items() if pipeline.actions is not None else ()


def _action(stats: Any) -> ActionStatus:
    return ActionStatus(**{name: getattr(stats, name) for name in ActionStatus.__struct_fields__})


def _source(state: SourceState) -> SourceStatus:
    report = state.report
    return SourceStatus(
        kind=state.kind,
        state=state.state,
        connected=report.connected,
        events=state.events,
        gaps=state.gaps,
        restarts=state.restarts,
        last_event_us=state.last_event_us,
        silent_s=round(time.monotonic() - state.heard_s, 3),
        last_error=report.last_error,
        last_error_us=report.last_error_us,
        retry_us=state.retry_us,
        trouble=dict(report.trouble),
        counts=dict(report.counts),
    )


def _handler(stats: Any) -> HandlerStatus:
    return HandlerStatus(**{name: getattr(stats, name) for name in HandlerStatus.__struct_fields__})


def told_to_collector(facts: Facts) -> dict[str, Any]:
    """The same in short, for the header of a request; at most TOLD_CHARS_MAX as JSON. Sources in trouble are named first."""
    buffer = facts.buffer
    told: dict[str, Any] = {
        "started_us": facts.started_us,
        "config_sha256": facts.config_sha256,
        "health": facts.health_state,
        "reload_error": facts.reload_error is not None,
        "buffer": {
            "events": buffer.pending_events,
            "bytes": buffer.pending_bytes,
            "used_bytes": buffer.used_bytes,
            "bytes_max": buffer.config.bytes_max,
            "oldest_us": facts.host.oldest_us if buffer.pending_events else None,
            "evicted_events": buffer.counters.evicted_events,
            "stalled": buffer.stalled is not None,
        },
        "alerts": facts.pipeline.alerts,
        "handlers_failed": sum(stats.error is not None for stats in facts.pipeline.engine.stats().values()),
        "sources": {},
    }
    left = TOLD_CHARS_MAX - len(json.dumps(told)) - 40
    ordered = sorted(facts.pipeline.sources.items(), key=lambda item: not item[1].report.trouble)
    for count, (name, state) in enumerate(ordered):
        short = _short(state)
        left -= len(json.dumps({name: short}))
        if left < 0:
            told["sources_unnamed"] = len(ordered) - count
            break
        told["sources"][name] = short
    return told


def _short(state: SourceState) -> Mapping[str, Any]:
    return {
        "kind": state.kind,
        "state": state.state,
        "connected": state.report.connected,
        "events": state.events,
        "gaps": state.gaps,
        "trouble": len(state.report.trouble),
        "last_event_us": state.last_event_us,
    }
