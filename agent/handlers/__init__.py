"""Threshold handlers, one file each. Adding one: its file, and its line here."""

HANDLERS = {
    "count": "agent.handlers.count:CountHandler",
}
EXTRA: dict[str, str] = {"sigma": "sigma"}
"""Kinds whose library comes with an extra of the distribution."""
