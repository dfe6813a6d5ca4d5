"""The kernel's hint that a file was written. Only a hint: polling with stat decides what is read, and works without this.

Directories are watched, not files, so that ten thousand files in a few directories cost a few watches.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Self

from asyncinotify import Inotify, Mask, Watch

DIRECTORIES_MAX = 1_024
"""Directories watched at the most. Files in further ones are noticed by polling."""
GATHER_S = 0.003
"""After a hint, further ones are waited for this long: a busy writer wakes us some hundred times a second, not for every line."""
_EVENTS_MAX = 4_096
"""Hints read at once. What is left is read after the next wait."""

_MASK = (
    Mask.MODIFY
    | Mask.CREATE
    | Mask.MOVED_TO
    | Mask.MOVED_FROM
    | Mask.DELETE
    | Mask.DELETE_SELF
    | Mask.MOVE_SELF
    | Mask.ONLYDIR
)


class Hints:
    """Paths written to since the last wait. `changed` is True where files came, went or were renamed."""

    def __init__(self, concerns: Callable[[str], bool]) -> None:
        self._concerns = concerns
        self._inotify: Inotify | None = None
        self._watches: dict[str, Watch] = {}
        self.written: set[str] = set()
        self.changed = False

    def __enter__(self) -> Self:
        # Without a free inotify instance (fs.inotify.max_user_instances) polling alone has to do.
        with contextlib.suppress(OSError):
            # A timeout of 0 makes sync_get return None where nothing waits, whether or not the descriptor blocks.
            self._inotify = Inotify(sync_timeout=0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    def watch(self, directories: Iterable[str]) -> None:
        """Watch these directories and no others."""
        if self._inotify is None:
            return
        wanted = set(directories)
        for gone in self._watches.keys() - wanted:
            watch = self._watches.pop(gone)
            # The kernel has already dropped the watch of a directory that was removed.
            with contextlib.suppress(OSError, ValueError, KeyError):
                self._inotify.rm_watch(watch)
        for new in sorted(wanted - self._watches.keys()):
            if len(self._watches) >= DIRECTORIES_MAX:
                break
            with contextlib.suppress(OSError):
                self._watches[new] = self._inotify.add_watch(new, _MASK)

    def poll(self) -> None:
        """Take the hints there are, without waiting."""
        self.written.clear()
        self.changed = False
        self._read()

    async def wait(self, timeout_s: float) -> None:
        """Return after a hint that concerns us, or after the timeout."""
        self.written.clear()
        self.changed = False
        if self._inotify is None:
            await asyncio.sleep(timeout_s)
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not (self.written or self.changed):
            if not await self._readable(deadline - loop.time()):
                return
            await asyncio.sleep(GATHER_S)
            self._read()

    async def _readable(self, timeout_s: float) -> bool:
        if self._inotify is None or timeout_s <= 0:
            return False
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        fd = self._inotify.fd

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        loop.add_reader(fd, wake)
        try:
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the result.
            async with asyncio.timeout(timeout_s):
                await ready
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(fd)
        return True

    def _read(self) -> None:
        if self._inotify is None:
            return
        for _ in range(_EVENTS_MAX):
            try:
                event = self._inotify.sync_get()
            except BlockingIOError:
                return
            if event is None:
                return
            mask = event.mask
            if mask & (Mask.Q_OVERFLOW | Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.IGNORED):
                self.changed = True
                if event.watch is not None:
                    self._watches.pop(str(event.watch.path), None)
                continue
            path = event.path
            if path is None:
                continue
            name = os.fspath(path)
            if not self._concerns(name):
                continue
            if mask & Mask.MODIFY:
                self.written.add(name)
            else:
                self.changed = True
