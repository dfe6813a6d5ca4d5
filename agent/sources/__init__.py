"""Sources, one file each. Adding one: its file, and its line here."""

SOURCES = {
    "intake": "agent.sources.intake:IntakeSource",
    "journal": "agent.sources.journal:JournalSource",
    "log": "agent.sources.logfile:LogSource",
    "modbus": "agent.sources.modbus:ModbusSource",
    "opcua": "agent.sources.opcua:OpcUaSource",
    "syslog": "agent.sources.syslog:SyslogSource",
}

EXTRA = {"modbus": "modbus", "opcua": "opcua"}
"""What to install for the ones that need a library of their own."""
