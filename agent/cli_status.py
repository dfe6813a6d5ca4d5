"""`status`: asks the running agent, and prints its answer for people or for scripts."""

import argparse
import http.client
import os
import socket
from collections.abc import Sequence
from typing import Any

import msgspec

from agent.cli import DONE, Failed
from agent.component import now_us
from agent.health import Address, Status, parse_address

TIMEOUT_S = 10.0
ANSWER_BYTES_MAX = 64 * 1024 * 1024
COLUMN_CHARS_MAX = 40
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (nothing is bound here)


def status(options: argparse.Namespace) -> int:
    """What the agent is doing."""
    address = _address(options)
    state = _ask(address, "/status")
    if options.json:
        print(msgspec.json.encode(msgspec.json.decode(state)).decode())
        return DONE
    try:
        told = msgspec.json.decode(state, type=Status)
    except msgspec.MsgspecError as error:
        raise Failed(f"what answers at {address} is no Linewarden agent of this version: {error}") from None
    print("\n".join(lines(told, now_us())))
    return DONE


def _address(options: argparse.Namespace) -> Address:
    if options.address:
        try:
            return parse_address(options.address)
        except ValueError as error:
            raise Failed(f"--address: {error}") from None
    from agent.config_read import section

    addresses: Sequence[Address] = section("health", options.config, os.environ).addresses()
    found = next((each for each in addresses if each.path or each.port), None)
    if found is None:
        raise Failed("[health] listen names no fixed address. Give the one in the agent's log with --address.")
    return found


class _Connection(http.client.HTTPConnection):
    def __init__(self, address: Address) -> None:
        super().__init__(
            _EVERYWHERE.get(address.host, address.host) or "localhost", address.port or 80, timeout=TIMEOUT_S
        )
        self._path = address.path

    def connect(self) -> None:
        """To the unix socket where the address is one."""
        if not self._path:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


def _ask(address: Address, path: str) -> bytes:
    connection = _Connection(address)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read(ANSWER_BYTES_MAX)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Failed(
            f"no agent answers at {address}: {reason}. Does it run? systemctl status linewarden-agent"
        ) from None
    finally:
        connection.close()
    if answer.status not in (200, 503) or not body.startswith(b"{"):
        raise Failed(f"what answers at {address} is no Linewarden agent: {path} gave {answer.status}")
    return body


# For people -----------------------------------------------------------------------------------------------------------------------


def lines(told: Status, now: int) -> list[str]:
    """The status, line by line."""
    agent = told.agent
    running = span((now - agent.started_us) / 1e6)
    head = [
        f"agent      {agent.id}, version {agent.version}, running for {running}, {size(agent.rss_bytes)} of memory",
        f"config     {agent.config_file}"
        + (f" (NOT the file as it is now: {agent.reload_error})" if agent.reload_error else ""),
        f"health     {_health(told.health.state)}"
        + (f", since {ago(told.health_since_us, now)}" if told.health_since_us else ""),
    ]
    for name, check in told.health.checks.items():
        if check.state != "ok":
            head.append(f"           {_health(check.state)} {name}: {check.detail}")
            head += [f"                    {check.remedy}"] if check.remedy else []
    return [
        *head,
        _buffer_line(told, now),
        _sync_line(told, now),
        "",
        *_sources(told, now),
        "",
        *_handlers(told, now),
        *_actions(told, now),
    ]


def _health(state: str) -> str:
    """Seen at a glance where it is not ok."""
    return state if state == "ok" else state.upper()


def _buffer_line(told: Status, now: int) -> str:
    buffer = told.buffer
    text = f"buffer     {number(buffer.events)} events wait, {size(buffer.bytes)}"
    if buffer.oldest_us is not None:
        text += f", the oldest for {span((now - buffer.oldest_us) / 1e6)}"
    if buffer.bytes_max:
        text += f"; {100 * buffer.used_bytes / buffer.bytes_max:.1f} % of {size(buffer.bytes_max)} used"
    if buffer.evicted_events:
        text += f"; {number(buffer.evicted_events)} events were given up"
    return text + (f"; STALLED: {buffer.stalled}" if buffer.stalled else "")


def _sync_line(told: Status, now: int) -> str:
    sync = told.sync
    text = f"sync       {sync.state}, {sync.url}, last success {ago(sync.last_success_us, now)}, {number(sync.sent_events)} events sent"
    if sync.failures:
        text += f"; {sync.failures} failures in a row since {ago(sync.failing_since_us, now)}: {sync.last_error}"
    if sync.wait_until_us is not None and sync.wait_until_us > now:
        text += f"; next try in {span((sync.wait_until_us - now) / 1e6)}"
    return text


def _sources(told: Status, now: int) -> list[str]:
    rows = [("SOURCE", "TYPE", "STATE", "LAST EVENT", "EVENTS", "GAPS", "TROUBLE")]
    for name, source in told.sources.items():
        troubles = [text if part in text else f"{part}: {text}" for part, text in source.trouble.items()]
        first = (
            name,
            source.kind,
            source.state,
            ago(source.last_event_us, now),
            number(source.events),
            number(source.gaps),
        )
        rows.append((*first, troubles[0] if troubles else ""))
        rows += [("", "", "", "", "", "", trouble) for trouble in troubles[1:]]
    return table(rows, right=(4, 5)) if told.sources else ["no sources are configured"]


def _handlers(told: Status, now: int) -> list[str]:
    rows = [("HANDLER", "KIND", "LAST EVALUATED", "EVENTS", "ALERTS", "TROUBLE")]
    for name, each in told.handlers.items():
        evaluated = ago(each.last_evaluated_us, now)
        rows.append((name, each.kind, evaluated, number(each.events), number(each.alerts), each.error or ""))
    return table(rows, right=(3, 4)) if told.handlers else ["no handlers are configured"]


def _actions(told: Status, now: int) -> list[str]:
    rows: list[tuple[str, ...]] = [("ACTION", "TYPE", "LAST", "WAITING", "DONE", "FAILED", "LEFT OUT", "TROUBLE")]
    for name, each in told.actions.items():
        counts = (each.waiting, each.done, each.failed + each.timeout + each.unknown, each.dropped)
        rows.append((name, each.type, ago(each.last_us, now), *map(number, counts), each.last_error or ""))
    return ["", *table(rows, right=(3, 4, 5, 6))] if told.actions else []


def table(rows: Sequence[tuple[str, ...]], right: Sequence[int] = ()) -> list[str]:
    """Columns; the last one is never cut."""
    widths = [min(max(map(len, column)), COLUMN_CHARS_MAX) for column in zip(*rows, strict=True)]
    widths[-1] = 0
    return [
        "  ".join(_cell(text, widths[at], to_right=at in right) for at, text in enumerate(row)).rstrip() for row in rows
    ]


def _cell(text: str, width: int, *, to_right: bool) -> str:
    shown = "".join(char if char.isprintable() else "?" for char in text)
    if width and len(shown) > width:
        shown = shown[: width - 1] + "…"
    return shown.rjust(width) if to_right else shown.ljust(width)


def ago(time_us: int | None, now: int) -> str:
    """How long ago."""
    return "never" if time_us is None else f"{span((now - time_us) / 1e6)} ago"


def span(seconds: float) -> str:
    """A length of time, in the unit that fits."""
    seconds = max(0.0, seconds)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count: float) -> str:
    """Bytes, in the unit that fits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1_000:  # noqa: PLR2004
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1_000
    return f"{count:.1f} TB"


def number(value: Any) -> str:
    """With thousands set apart."""
    return f"{value:,}".replace(",", " ")
