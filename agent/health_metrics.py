"""The status as Prometheus reads it: text format 0.0.4, every family once, with HELP and TYPE, its samples together.

Label values come from configuration and devices, so they are escaped; names that a source gives its own counters are made fit, and
two that become the same are added up. Times are seconds since the epoch.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from agent.health_status import STATES, Status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "linewarden_agent_"
LABEL_CHARS_MAX = 200
SOURCE_STATES = ("starting", "running", "waiting", "failed", "stopped")
SYNC_STATES = ("idle", "sending", "waiting", "probing")

Labels = Mapping[str, str]

_SOURCE = (
    ("events", "counter", "Events read and stored"),
    ("gaps", "counter", "Gaps declared: places where events were lost"),
    ("restarts", "counter", "Times it was started again"),
)
_BUFFER = (
    ("events", "gauge", "Events that the collector does not have yet"),
    ("bytes", "gauge", "Bytes of the batches that hold them"),
    ("used_bytes", "gauge", "Bytes of the buffer's file in use"),
    ("bytes_max", "gauge", "Bound of the above"),
    ("appended_events", "counter", "Events stored"),
    ("commits", "counter", "Transactions"),
    ("commit_s", "counter", "Seconds spent on them"),
    ("evicted_batches", "counter", "Batches that a full buffer gave up"),
    ("evicted_events", "counter", "Events in them"),
    ("set_aside", "counter", "Damaged files that were set aside"),
    ("stalls", "counter", "Times that nothing could be stored for a while"),
)
_SYNC = (
    ("lag_s", "gauge", "Age of the oldest event that the collector does not have yet"),
    ("failures", "gauge", "Failures in a row"),
    ("failures_total", "counter", "Failed requests"),
    ("requests", "counter", "Requests"),
    ("sent_batches", "counter", "Batches that the collector has stored"),
    ("sent_events", "counter", "Events in them"),
    ("sent_bytes", "counter", "Bytes of them"),
)
_HANDLER = (
    ("events", "counter", "Events looked at"),
    ("matched", "counter", "Events that matched"),
    ("late", "counter", "Events too late to be judged"),
    ("alerts", "counter", "Alerts raised"),
    ("suppressed", "counter", "Events of an episode that was alerted already"),
    ("keys", "gauge", "Keys followed"),
    ("evicted", "counter", "Keys given up for others"),
    ("refused", "counter", "Keys not followed because the table was full"),
    ("busy_s", "counter", "Seconds of work"),
)


def render(status: Status, now_us: int) -> str:
    """The text."""
    page = _Page()
    _agent(page, status, now_us)
    _sources(page, status)
    _rest(page, status)
    for name, handler in status.handlers.items():
        labels = {"handler": name, "kind": handler.kind}
        for field, kind, meaning in _HANDLER:
            page.add(f"handler_{_unit(field, kind)}", kind, meaning, getattr(handler, field), labels)
        page.add("handler_failed", "gauge", "1 where it was set aside for a defect", handler.error is not None, labels)
        page.add_time("handler_last_evaluated", "When it last looked at events", handler.last_evaluated_us, labels)
    for name, action in status.actions.items():
        labels = {"action": name, "type": action.type}
        page.add("action_waiting", "gauge", "Alerts that wait for the action", action.waiting, labels)
        for ending in ("done", "failed", "timeout", "dropped", "unknown"):
            ended = {**labels, "ending": ending}
            page.add("actions_total", "counter", "Alerts by how their action ended", getattr(action, ending), ended)
    return page.text()


def _agent(page: "_Page", status: Status, now_us: int) -> None:
    agent = status.agent
    for state in STATES:
        here = status.health.state == state
        page.add(
            "health_state", "gauge", "1 for the state of the agent: ok, degraded or failed", here, {"state": state}
        )
    for check in status.health.checks.values():
        for state in STATES:
            labels = {"check": check.name, "state": state}
            page.add("check_state", "gauge", "1 for the state of each check", check.state == state, labels)
    page.add("info", "gauge", "Which agent this is", 1, {"agent": agent.id, "version": agent.version})
    page.add("uptime_seconds", "gauge", "Since the start", max(0.0, (now_us - agent.started_us) / 1e6))
    page.add("resident_memory_bytes", "gauge", "Memory in use", agent.rss_bytes)
    page.add("cpu_seconds_total", "counter", "Processor time", agent.cpu_s)
    page.add("alerts_total", "counter", "Alerts raised by all handlers", status.alerts)
    page.add("config_stale", "gauge", "1 where the file on the disk was refused", agent.reload_error is not None)


def _sources(page: "_Page", status: Status) -> None:
    for name, source in status.sources.items():
        labels = {"source": name, "type": source.kind}
        for field, kind, meaning in _SOURCE:
            page.add(f"source_{_unit(field, kind)}", kind, meaning, getattr(source, field), labels)
        page.add("source_connected", "gauge", "1 while its other side is reached", source.connected, labels)
        page.add("source_silent_seconds", "gauge", "Since its last event, or its start", source.silent_s, labels)
        page.add("source_troubles", "gauge", "Parts that do not work now", len(source.trouble), labels)
        for state in dict.fromkeys((*SOURCE_STATES, source.state)):
            here = source.state == state
            page.add("source_state", "gauge", "1 for the state it is in", here, {**labels, "state": state})
        page.add_time("source_last_event", "When its last event was stored", source.last_event_us, labels)
        page.add_time("source_last_error", "When it last failed", source.last_error_us, labels)
    # After the fixed ones, which keep their names: a source's own counter of the same name gets another.
    taken = set(page.families)
    for name, source in status.sources.items():
        for count, value in source.counts.items():
            fit = re.sub(r"[^a-z0-9_]", "_", count.lower())
            family = f"source_{fit}_total" if f"source_{fit}_total" not in taken else f"source_own_{fit}_total"
            page.count(family, "Counted by the source itself", value, {"source": name, "type": source.kind})


def _rest(page: "_Page", status: Status) -> None:
    buffer, sync = status.buffer, status.sync
    for field, kind, meaning in _BUFFER:
        page.add(f"buffer_{_unit(field, kind)}", kind, meaning, getattr(buffer, field))
    page.add("buffer_stalled", "gauge", "1 while nothing can be stored", buffer.stalled is not None)
    page.add_time("buffer_oldest", "When the oldest event that waits was observed", buffer.oldest_us)
    page.add_time("buffer_last_commit", "When something was last stored", buffer.last_commit_us)
    for field, kind, meaning in _SYNC:
        page.add(f"sync_{_unit(field, kind)}", kind, meaning, getattr(sync, field))
    for state in dict.fromkeys((*SYNC_STATES, sync.state)):
        page.add("sync_state", "gauge", "1 for the state it is in", sync.state == state, {"state": state})
    page.add("sync_troubled", "gauge", "1 while the collector is away or refuses", sync.trouble is not None)
    page.add_time("sync_last_success", "When the collector last took a request", sync.last_success_us)


def _unit(field: str, kind: str) -> str:
    """The field's name with its unit and kind as Prometheus has them."""
    name = re.sub(r"_s$", "_seconds", field)
    return f"{name}_total" if kind == "counter" and not name.endswith("_total") else name


class _Page:
    """Families in the order of their first sample; each one's samples together, whenever they were added."""

    def __init__(self) -> None:
        self.families: dict[str, tuple[str, str, dict[str, float]]] = {}

    def add(self, name: str, kind: str, meaning: str, value: Any, labels: Labels | None = None) -> None:
        """A sample. One of the same name and labels is replaced."""
        samples = self.families.setdefault(name, (kind, meaning, {}))[2]
        samples[_labels(labels or {})] = float(value)

    def count(self, name: str, meaning: str, value: float, labels: Labels) -> None:
        """A counter's sample, added to one of the same name and labels."""
        samples = self.families.setdefault(name, ("counter", meaning, {}))[2]
        text = _labels(labels)
        samples[text] = samples.get(text, 0.0) + value

    def add_time(self, name: str, meaning: str, time_us: int | None, labels: Labels | None = None) -> None:
        """A time, where there is one."""
        if time_us is not None:
            self.add(f"{name}_timestamp_seconds", "gauge", f"{meaning}, seconds since the epoch", time_us / 1e6, labels)

    def text(self) -> str:
        """The page."""
        lines: list[str] = []
        for name, (kind, meaning, samples) in self.families.items():
            lines += (f"# HELP {PREFIX}{name} {meaning}", f"# TYPE {PREFIX}{name} {kind}")
            lines += (f"{PREFIX}{name}{labels} {_number(value)}" for labels, value in samples.items())
        return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value[:LABEL_CHARS_MAX].replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)  # noqa: PLR2004  (all digits are exact below)
