"""Threshold handlers, one file each. Adding one: its file, and its line here."""

HANDLERS = {
    "count": "agent.handlers.count:CountHandler",
    "novelty": "agent.handlers.novelty:NoveltyHandler",
    "sequence": "agent.handlers.sequence:SequenceHandler",
    "schedule": "agent.handlers.schedule:ScheduleHandler",
}
EXTRA: dict[str, str] = {"sigma": "sigma"}
"""Kinds whose library comes with an extra of the distribution."""
