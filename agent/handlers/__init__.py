"""Threshold handlers, one file each. Adding one: its file, and its line here."""

HANDLERS = {
    "count": "agent.handlers.count:CountHandler",
}
