"""Commands run within the test's process: the same `main` that the installed program calls, without a second for its start."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

Main = Callable[[Sequence[str] | None], int]


class _Output(io.TextIOWrapper):
    """A stream that keeps what is written to it, as text or as bytes."""

    def __init__(self) -> None:
        self._bytes = io.BytesIO()
        super().__init__(self._bytes, encoding="utf-8", errors="backslashreplace", write_through=True)

    def text(self) -> str:
        """Return what was written."""
        return self._bytes.getvalue().decode(errors="replace")


def run_main(
    main: Main, *arguments: str, environ: Mapping[str, str], stdin: str = ""
) -> "subprocess.CompletedProcess[str]":
    """Run a command with this environment and return its exit code and output, as `subprocess.run` does.

    In a thread of its own, since the test may have an event loop that runs.
    """
    out, err = _Output(), _Output()

    def run() -> int:
        try:
            return main(arguments)
        except SystemExit as ended:
            if isinstance(ended.code, str):
                print(ended.code, file=err)
            return ended.code if isinstance(ended.code, int) else int(ended.code is not None)

    with (
        patch.dict(os.environ, environ, clear=True),
        patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()))),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        with ThreadPoolExecutor(1) as pool:
            code = pool.submit(run).result(timeout=120)
        out.flush()
        err.flush()
    return subprocess.CompletedProcess(list(arguments), code, out.text(), err.text())
