"""What is known of the messages of programs, by the name that they log under. Adding a family: its file, and its line here."""

from agent.parsers import logins
from agent.parsers.base import Reader

PROGRAMS: dict[str, Reader] = {**logins.PROGRAMS}
OTHER: Reader = logins.OTHER

__all__ = ["OTHER", "PROGRAMS", "Reader"]
