"""Parsers: a log line → an event. One file each. Adding one: its file, and its line here."""

PARSERS = {
    "audit": "agent.parsers.audit:AuditParser",
    "auth": "agent.parsers.auth:AuthParser",
    "csv": "agent.parsers.csv:CsvParser",
    "json": "agent.parsers.json:JsonParser",
    "logfmt": "agent.parsers.logfmt:LogfmtParser",
    "regex": "agent.parsers.regex:RegexParser",
    "syslog": "agent.parsers.syslog:SyslogParser",
    "winston": "agent.parsers.json:WinstonParser",
}
