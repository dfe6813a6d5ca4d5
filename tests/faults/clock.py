"""A clock that steps: libfaketime under a process, its offset read from a file each time it looks at the clock."""

from pathlib import Path

LIBRARIES = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
)


def library() -> str | None:
    """Where libfaketime is; None: not installed (Debian: faketime)."""
    return next((path for path in LIBRARIES if Path(path).exists()), None)


class FakeClock:
    """The wall clock of a process started with `environment`. The monotonic clock goes on as it does in the field."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.works = library() is not None
        self.step(0)

    @property
    def environment(self) -> dict[str, str]:
        if not self.works:
            return {}
        return {
            "LD_PRELOAD": library() or "",
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
            "FAKETIME_DISABLE_SHM": "1",
            "NO_FAKE_STAT": "1",
        }

    def step(self, seconds: int) -> None:
        """From now on the clock is so many seconds off."""
        # Written beside and moved there: the process may look at any moment.
        beside = self._file.with_suffix(".new")
        beside.write_text(f"{seconds:+d}s\n")
        beside.replace(self._file)
