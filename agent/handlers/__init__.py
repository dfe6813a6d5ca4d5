"""Threshold handlers, one file each. Adding one: its file, and its line here."""

HANDLERS = {
    "absence": "agent.handlers.absence:AbsenceHandler",
    "baseline": "agent.handlers.baseline:BaselineHandler",
    "bound": "agent.handlers.bound:BoundHandler",
    "count": "agent.handlers.count:CountHandler",
    "drift": "agent.handlers.drift:DriftHandler",
    "frozen": "agent.handlers.frozen:FrozenHandler",
    "limit": "agent.handlers.limit:LimitHandler",
    "multivariate": "agent.handlers.multivariate:MultivariateHandler",
    "novelty": "agent.handlers.novelty:NoveltyHandler",
    "sequence": "agent.handlers.sequence:SequenceHandler",
    "rate": "agent.handlers.rate:RateHandler",
    "ratio": "agent.handlers.ratio:RatioHandler",
    "schedule": "agent.handlers.schedule:ScheduleHandler",
    "share": "agent.handlers.share:ShareHandler",
    "sigma": "agent.handlers.sigma:SigmaHandler",
    "together": "agent.handlers.together:TogetherHandler",
}
EXTRA: dict[str, str] = {"sigma": "sigma"}
"""Kinds whose library comes with an extra of the distribution."""
