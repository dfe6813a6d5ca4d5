"""Parsers: a log line → an event. One file each. Adding one: its file, and its line here."""

PARSERS = {
    "auth": "agent.parsers.auth:AuthParser",
}
