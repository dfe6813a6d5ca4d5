"""Local actions: what the station does by itself when an alert is raised. None unless configured.

    [actions.horn]
    type = "run"                                  # or "write", "post"
    argv = ["/usr/local/bin/horn", "{severity}", "{src_ip}"]
    handlers = ["login_burst"]

What holds:

* At most once. What is to be done commits in one transaction with its alert; that it begins commits before it begins; how it ended and
  that it need not be done any more commit together. After kill -9 what had not begun is done then (unless it is older than
  LATE_S), and what had begun is never begun again: agent.action.unknown says so, since nobody knows how far it came.
* No shell. A field of the alert fills a whole argument; one that begins with "-" is not passed, so that nobody outside chooses options.
* Bounded: one action at a time, WAITING_MAX wait, `per_minute` are begun, each ends after `timeout_s`; then its whole process group
  is killed. What is left out is counted and said, at most once a minute for each action.
* How each ended is an event: agent.action.done, .failed, .timeout, .dropped, .unknown. No handler sees these, so no action causes another.
* The tool is for this computer: a horn, a lamp, a file, a program's endpoint. Never point it at a machine.
"""

import asyncio
import contextlib
import http.client
import ipaddress
import logging
import os
import re
import signal
import socket
import stat
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from annotated_types import Ge, Le

from agent.buffer import Buffer
from agent.component import State, in_words, now_us
from agent.handlers.base import SEVERITIES, Severity
from agent.wire.batch import fit
from agent.wire.event import Event

log = logging.getLogger(__name__)

STATE = "!actions"
"""Under this name the buffer keeps what waits and what has begun."""
WAITING_MAX = 256
LATE_S = 600.0
"""What waited longer (the agent was down meanwhile) is not done any more: a horn two days later helps nobody."""
OUTPUT_BYTES_MAX = 4_096
KEPT_MAX = 10
ARGUMENT_CHARS_MAX = 1_024
SAID_EVERY_S = 60.0
STOP_S_MAX = 5.0
FIELDS = ("type", "source", "severity", "src_ip", "target", "message", "correlation_id", "handler", "time")
_FIELD = re.compile(r"\{([a-z_]+)\}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_SHELLS = ("sh", "bash", "dash", "zsh", "ksh", "env", "busybox", "xargs")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigAction:
    """What is done with an alert, and with which.

    type         run: a program; write: a line of JSON to a file; post: JSON to a URL
    handlers     whose alerts are meant, by name; "*": all
    severity     alerts below it are passed over
    types        only alerts of these types; empty: all
    argv         run: the program by its full path, and its arguments. {src_ip} and the like fill a whole argument
    path         write: the file; before it grows beyond size_bytes_max it is renamed to path.1, and `keep` old ones are kept
    url          post: http:// on this computer, or unix:///path/of.sock; another computer only with `remote = true`
    timeout_s    nothing runs longer;  per_minute: more are not begun, and that is said
    """

    type: Literal["run", "write", "post"]
    handlers: tuple[str, ...]
    severity: Severity = "informational"
    types: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    path: str | None = None
    url: str | None = None
    remote: bool = False
    timeout_s: Annotated[float, Ge(0.1), Le(60)] = 10.0
    per_minute: Annotated[int, Ge(1), Le(6_000)] = 30
    size_bytes_max: Annotated[int, Ge(262_144), Le(1_073_741_824)] = 10_485_760
    keep: Annotated[int, Ge(0), Le(KEPT_MAX)] = 2

    def __post_init__(self) -> None:
        needed = {"run": "argv", "write": "path", "post": "url"}[self.type]
        if not getattr(self, needed):
            raise ValueError(f"{needed}: is missing; an action of type {self.type} needs it")
        for key in ("argv", "path", "url"):
            if getattr(self, key) and key != needed:
                raise ValueError(f"{key}: an action of type {self.type} has none; take it out, or change the type")
        if not self.handlers:
            raise ValueError('handlers: names nobody; name the handlers whose alerts are meant, or write ["*"] for all')
        if self.argv:
            _check_argv(self.argv)
        if self.path is not None and (not self.path.startswith("/") or "\0" in self.path):
            raise ValueError(f"path: {self.path!r} is not an absolute path; write it from / on")
        if self.url is not None:
            _check_url(self.url, remote=self.remote)

    def problems(self) -> Iterable[tuple[str, str, str]]:
        """Whether the program and the folder are there, and nobody else may change the program."""
        if self.argv:
            yield from _problems_of_program(Path(self.argv[0]))
        if self.path and not os.access(Path(self.path).parent, os.W_OK | os.X_OK):
            yield "path", f"{Path(self.path).parent} may not be written", "Create it and give it to the agent's user."
        elif self.path and Path(self.path).exists() and not Path(self.path).is_file():
            yield "path", f"{self.path} is no file", "Name a file."


def _problems_of_program(program: Path) -> Iterable[tuple[str, str, str]]:
    if not (program.is_file() and os.access(program, os.X_OK)):
        yield "argv", f"{program} is no program that this user may run", "Name one, or give it the rights."
        return
    for place in (program, program.resolve(), program.resolve().parent):
        mode = place.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            yield "argv", f"{place} may be changed by everybody on this computer", f"chmod o-w {place}"
            return


def _check_argv(argv: tuple[str, ...]) -> None:
    if not argv[0].startswith("/") or _FIELD.search(argv[0]):
        raise ValueError(f"argv: the program is named by its full path, as it is, and not as {argv[0]!r}")
    if Path(argv[0]).name in _SHELLS and any(map(_FIELD.search, argv[1:])):
        raise ValueError("argv: a shell is not given fields of an alert; write a program that takes them as arguments")
    for argument in argv:
        if "\0" in argument:
            raise ValueError("argv: an argument holds a zero byte; take it out")
        for name in _FIELD.findall(argument):
            if argument != f"{{{name}}}":
                raise ValueError(
                    f"argv: {{{name}}} fills a whole argument; take away what stands around it in {argument!r}"
                )
            if name not in FIELDS:
                raise ValueError(f"argv: an alert has no field {{{name}}}; write one of {', '.join(FIELDS)}")


def _check_url(url: str, *, remote: bool) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"url: {url!r} is no URL ({error}); correct it") from None
    if _CONTROL.search(url) or " " in url:
        raise ValueError("url: holds a space or control character; take it out")
    if parts.scheme == "unix" and parts.path:
        return
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"url: {url!r} has to begin with http://, https:// or unix:///")
    if remote:
        return
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False  # a name, even localhost, may be turned to another computer
    if not local:
        raise ValueError(
            f"url: {host} is not an address of this computer; write 127.0.0.1 or ::1, or set remote = true"
        )


class Refused(Exception):
    """The action cannot be done with this alert, and why."""


def arguments(argv: Sequence[str], alert: Event) -> list[str]:
    """The command with the fields of the alert. Raises Refused where one would be taken for an option."""
    filled = []
    for argument in argv:
        match = _FIELD.fullmatch(argument)
        text = argument if match is None else _value(match[1], alert)
        if match is not None and text.startswith("-"):
            raise Refused(f"{argument} of this alert begins with -, and would be taken for an option")
        filled.append(text)
    return filled


def _value(name: str, alert: Event) -> str:
    value = alert.data.get("handler") if name == "handler" else getattr(alert, name)
    text = _CONTROL.sub(" ", "" if value is None else str(value))
    return text[:ARGUMENT_CHARS_MAX].encode(errors="replace").decode()


class Task(msgspec.Struct, omit_defaults=True):
    """An action to be done with an alert, as the buffer keeps it. `begun_us` is set before it begins."""

    action: str
    asked_us: int
    alert: Event
    begun_us: int = 0


@dataclass(slots=True)
class ActionStats:
    """What became of the alerts of one action, since the start. `last_error`: None after one that was done."""

    type: str
    waiting: int = 0
    done: int = 0
    failed: int = 0
    timeout: int = 0
    dropped: int = 0
    unknown: int = 0
    last_us: int | None = None
    last_error: str | None = None


class Actions:
    """All actions of an agent.

    take    what to store together with these alerts; committed: it is durable;  run: does what is due, until cancelled
    """

    def __init__(self, buffer: Buffer, configs: Mapping[str, ConfigAction], stored: Mapping[str, bytes]) -> None:
        self._buffer = buffer
        self._ready = asyncio.Event()
        self._waiting: deque[tuple[str, Task]] = deque()
        self._uncommitted: dict[str, Task] = {}
        self._unknown: list[tuple[str, Task]] = []
        self._recent: dict[str, deque[float]] = {}
        self._said_s: dict[str, float] = {}
        self._untold: dict[str, int] = {}
        self._stats: dict[str, ActionStats] = {}
        self.configure(configs)
        for key, value in sorted(stored.items()):
            with contextlib.suppress(msgspec.MsgspecError):
                task = msgspec.json.decode(value, type=Task)
                (self._unknown if task.begun_us else self._waiting).append((key, task))
        self._next = 1 + max((int(key) for key in stored if key.isdecimal()), default=0)
        self._ready.set()

    def configure(self, configs: Mapping[str, ConfigAction]) -> None:
        """Other settings from now on."""
        self._configs = dict(configs)
        for name, config in configs.items():
            self._recent.setdefault(name, deque())
            self._stats.setdefault(name, ActionStats(config.type)).type = config.type

    def stats(self) -> dict[str, ActionStats]:
        """By the name of the action. What waits and is no longer configured is told of by its event."""
        waiting = Counter(task.action for tasks in (self._waiting, self._uncommitted.items()) for _, task in tasks)
        return {name: replace(self._stats[name], waiting=waiting[name]) for name in self._configs}

    def take(self, alerts: Sequence[Event]) -> State:
        """What is to be done with these alerts, to be stored in their transaction. Never waits."""
        kept: dict[str, bytes] = {}
        for alert in alerts:
            for name in self._names(alert):
                if not self._may(name):
                    self._untold[name] = self._untold.get(name, 0) + 1
                    self._stats[name].dropped += 1
                    self._ready.set()
                    continue
                key, self._next = f"{self._next:020}", self._next + 1
                self._uncommitted[key] = task = Task(name, now_us(), fit(alert))
                kept[key] = msgspec.json.encode(task)
        return kept

    def committed(self, kept: State) -> None:
        """What `take` gave is durable."""
        self._waiting.extend((key, self._uncommitted.pop(key)) for key in kept)
        self._ready.set()

    def _names(self, alert: Event) -> list[str]:
        handler = str(alert.data.get("handler", ""))
        return [
            name
            for name, config in self._configs.items()
            if (handler in config.handlers or "*" in config.handlers)
            and alert.severity >= SEVERITIES[config.severity]
            and (not config.types or alert.type in config.types)
        ]

    def _may(self, name: str) -> bool:
        recent, now_s = self._recent[name], time.monotonic()
        while recent and now_s - recent[0] > 60:  # noqa: PLR2004 - the minute of per_minute
            recent.popleft()
        waiting = len(self._waiting) + len(self._uncommitted)
        if len(recent) >= self._configs[name].per_minute or waiting >= WAITING_MAX:
            return False
        recent.append(now_s)
        return True

    async def run(self) -> None:
        """Do what is due, one after the other. What runs when this is cancelled is ended, and that is said."""
        while True:
            while self._unknown:
                key, task = self._unknown[0]
                text = f"action {task.action} had begun when the agent was ended; how it ended is unknown, and it is not done again"
                await self._end(key, task, "unknown", text)
                self._unknown.pop(0)
            wait_s = await self._say_dropped()
            if self._waiting:
                await self._do(*self._waiting.popleft())
                continue
            self._ready.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._ready.wait()

    async def _say_dropped(self) -> float | None:
        """Says what was left out; how many seconds until there is more to say."""
        wait_s = None
        for name, count in list(self._untold.items()):
            left_s = self._said_s.get(name, -SAID_EVERY_S) + SAID_EVERY_S - time.monotonic()
            if left_s > 0:
                wait_s = min(left_s, wait_s or left_s)
                continue
            del self._untold[name]
            self._said_s[name] = time.monotonic()
            text = f"{count} alerts went by without the action {name}: more came than it may be done for"
            await self._buffer.append([_event("dropped", name, text, {"count": count})])
        return wait_s

    async def _do(self, key: str, task: Task) -> None:
        name, config = task.action, self._configs.get(task.action)
        if config is None or now_us() - task.asked_us > LATE_S * 1e6:
            why = "it is no longer configured" if config is None else f"it waited longer than {LATE_S:.0f} s"
            await self._end(key, task, "dropped", f"action {name} was not done: {why}")
            return
        task.begun_us = now_us()
        await self._buffer.append((), states={STATE: {key: msgspec.json.encode(task)}})
        began_s, found, stopped = time.monotonic(), {}, None
        try:
            async with asyncio.timeout(config.timeout_s):
                found = await _WORK[config.type](config, task.alert)
            ending, text = "done", f"action {name} was done"
        except TimeoutError:
            ending, text = "timeout", f"action {name} was ended after {config.timeout_s:g} s"
        except OSError as error:
            ending, text = "failed", f"action {name} failed: {in_words(error)}"
        except (Refused, http.client.HTTPException) as error:
            ending, text = "failed", f"action {name} failed: {_CONTROL.sub(' ', str(error) or type(error).__name__)}"
        except asyncio.CancelledError as error:
            stopped = error
            ending, text = "failed", f"action {name} was ended, because the agent stops"
        except Exception as error:
            # A defect costs this one action, which is said like any other failure, and none of those behind it.
            log.exception("action %s", name)
            ending, text = "failed", f"action {name} failed: {type(error).__name__}: {_CONTROL.sub(' ', str(error))}"
        found["took_s"] = round(time.monotonic() - began_s, 3)
        async with asyncio.timeout(STOP_S_MAX if stopped else None):
            await self._end(key, task, ending, text, found)
        if stopped is not None:
            raise stopped

    async def _end(self, key: str, task: Task, ending: str, text: str, more: Mapping[str, Any] | None = None) -> None:
        """The event, and that nothing is left to do, in one transaction."""
        data = {"cause": task.alert.type, "handler": task.alert.data.get("handler"), **(more or {})}
        said = _event(ending, task.action, text, data, task.alert.correlation_id)
        await self._buffer.append([said], states={STATE: {key: None}})
        if (stats := self._stats.get(task.action)) is not None:
            setattr(stats, ending, getattr(stats, ending) + 1)
            stats.last_us = now_us()
            stats.last_error = None if ending == "done" else text[:500]


def _event(ending: str, name: str, text: str, data: Mapping[str, Any], correlation: str | None = None) -> Event:
    now, outcome = now_us(), "success" if ending == "done" else "failure"
    kept = {"action": name, **{key: value for key, value in data.items() if value is not None}}
    return Event(
        now, now, f"agent.action.{ending}", outcome=outcome, message=text[:500], correlation_id=correlation, data=kept
    )


async def _run(config: ConfigAction, alert: Event) -> dict[str, Any]:
    """The program, in a process group of its own, with next to nothing in its environment."""
    process = await asyncio.create_subprocess_exec(
        *arguments(config.argv, alert),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": _PATH, "LANG": "C.UTF-8"},
        cwd="/",
        start_new_session=True,
    )
    reading = asyncio.create_task(_head(process.stdout))
    try:
        code = await process.wait()
    finally:
        # Also what the program left running behind it, which may hold its output open.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.returncode is None:
            await process.wait()
        output = await reading
    if code:
        raise Refused(f"it ended with {code}: {output.strip()[-200:] or 'it said nothing'}")
    return {"output_bytes": len(output)}


async def _head(stream: asyncio.StreamReader | None) -> str:
    """The beginning of what a program says; the rest is read and thrown away, so that it is not held up."""
    kept = b""
    while stream is not None and (chunk := await stream.read(65_536)):
        kept += chunk[: OUTPUT_BYTES_MAX - len(kept)]
    return kept.decode(errors="replace")


def _json(alert: Event) -> bytes:
    return msgspec.json.encode(alert)


async def _write(config: ConfigAction, alert: Event) -> dict[str, Any]:
    return await asyncio.to_thread(append_line, config, _json(alert) + b"\n")


def append_line(config: ConfigAction, line: bytes) -> dict[str, Any]:
    """One line by one write to a file opened for appending: whole or not at all, and on the disk."""
    path = str(config.path)
    with contextlib.suppress(FileNotFoundError):
        if Path(path).stat().st_size + len(line) > config.size_bytes_max:
            _rotate(path, config.keep)
    # Without O_NONBLOCK a pipe that nobody reads would hold the thread for ever.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    file = os.open(path, flags, 0o640)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise Refused(f"{path} is no file")
        try:
            whole = os.write(file, line) == len(line)
        except OSError:
            os.ftruncate(file, found.st_size)
            raise
        if not whole:
            os.ftruncate(file, found.st_size)
            raise Refused(f"{path}: the disk is full")
        os.fsync(file)
    finally:
        os.close(file)
    return {"bytes": len(line)}


def _rotate(path: str, keep: int) -> None:
    for number in range(keep, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            Path(path if number == 1 else f"{path}.{number - 1}").replace(f"{path}.{number}")
    if not keep:
        Path(path).unlink(missing_ok=True)


class _Unix(http.client.HTTPConnection):
    """HTTP over a socket of this computer."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


async def _post(config: ConfigAction, alert: Event) -> dict[str, Any]:
    parts = urlsplit(str(config.url))
    connection: http.client.HTTPConnection
    if parts.scheme == "unix":
        connection, target = _Unix(parts.path, config.timeout_s), "/"
    else:
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(parts.hostname), parts.port, timeout=config.timeout_s)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        return await asyncio.to_thread(_send, connection, target, _json(alert))
    except asyncio.CancelledError:
        # An answer that drips in byte by byte must not hold the thread beyond the time.
        if connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
        raise


def _send(connection: http.client.HTTPConnection, target: str, body: bytes) -> dict[str, Any]:
    """No redirect is followed, no proxy asked, and of the answer only the head is read, which http.client bounds."""
    try:
        connection.request("POST", target, body, {"Content-Type": "application/json"})
        status = connection.getresponse().status
    finally:
        connection.close()
    if not 200 <= status < 300:  # noqa: PLR2004 - HTTP's success
        raise Refused(f"the answer was {status}")
    return {"status": status}


_WORK: dict[str, Callable[[ConfigAction, Event], Awaitable[dict[str, Any]]]] = {
    "run": _run,
    "write": _write,
    "post": _post,
}
