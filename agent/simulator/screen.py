"""What the demo shows: lines that stay, and on a terminal one line at the bottom that moves."""

import shutil
import sys
import time
from typing import TextIO

PLAIN_EVERY_S = 5.0
"""Where there is no terminal, the moving line is written as a plain one this often."""


class Screen:
    """Writes to a terminal or to a file; the caller need not know which."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._live = out.isatty()
        self._moving = ""
        self._plain_due = 0.0

    def say(self, text: str = "") -> None:
        """A line that stays."""
        self._clear()
        self._out.write(f"{text}\n")
        self._draw()

    def status(self, text: str) -> None:
        """What is so just now: takes the place of the last such line."""
        if self._live:
            self._clear()
            self._moving = text
            self._draw()
        elif time.monotonic() >= self._plain_due:
            self._plain_due = time.monotonic() + PLAIN_EVERY_S
            self.say(text)

    def hint(self, text: str) -> None:
        """What is being waited for; only a terminal shows it."""
        if self._live:
            self.status(text)

    def settle(self) -> None:
        """Take the moving line away."""
        self._clear()
        self._moving = ""
        self._out.flush()

    def _clear(self) -> None:
        if self._live and self._moving:
            self._out.write("\r\033[K")

    def _draw(self) -> None:
        if self._live and self._moving:
            self._out.write(self._moving[: shutil.get_terminal_size().columns - 1])
        self._out.flush()
