"""Threshold handlers, one file each. Adding one: its file, and its line here."""

HANDLERS = {
    "absence": "agent.handlers.absence:AbsenceHandler",
    "count": "agent.handlers.count:CountHandler",
    "drift": "agent.handlers.drift:DriftHandler",
    "limit": "agent.handlers.limit:LimitHandler",
    "multivariate": "agent.handlers.multivariate:MultivariateHandler",
    "novelty": "agent.handlers.novelty:NoveltyHandler",
    "sequence": "agent.handlers.sequence:SequenceHandler",
    "rate": "agent.handlers.rate:RateHandler",
    "ratio": "agent.handlers.ratio:RatioHandler",
    "schedule": "agent.handlers.schedule:ScheduleHandler",
}
EXTRA: dict[str, str] = {"sigma": "sigma"}
"""Kinds whose library comes with an extra of the distribution."""
