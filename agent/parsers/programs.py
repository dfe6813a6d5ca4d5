"""What is known of the messages of programs, by the name that they log under. Adding a family: its file, and its line here."""

from agent.parsers import accounts, devices, kernel, logins, system
from agent.parsers.base import Reader

PROGRAMS: dict[str, Reader] = {
    **system.PROGRAMS,
    **kernel.PROGRAMS,
    **devices.PROGRAMS,
    **accounts.PROGRAMS,
    **logins.PROGRAMS,
}
OTHER: Reader = logins.OTHER
"""For every other program: PAM speaks with the name of whoever called it."""
