"""`try`: what the handlers would have raised over a log file or recorded events."""

import argparse
import os
import sys
import time
from datetime import UTC, datetime
from fnmatch import fnmatch

import msgspec

from agent.cli import DONE, Failed
from agent.cli_events import SEVERITIES
from agent.cli_status import number, table
from agent.config import DEFAULT_FILE, Settings
from agent.handlers.base import number as plain
from agent.handlers.base import said
from agent.handlers.engine import Engine, HandlerStats
from agent.parsers.base import Context, Lines, Parser
from agent.trial import Near, Trial, explain, is_recorded, nearest, play
from agent.wire.event import Event

BAR_CHARS = 30
BAR_EVERY_S = 0.1
SHOWN_MAX = 10_000
NEAREST_SHOWN = 20


def try_(options: argparse.Namespace) -> int:
    """Play the file, print what would have been raised."""
    settings = _settings(options)
    parser = None if is_recorded(options.file) and not options.parser else _parser(options, settings)
    engine = Engine.build(settings.handlers if settings else {})
    if options.explain:
        explain(engine)
    trial, bar = Trial(), _Bar()
    alerts: list[Event] = []
    for alert in play(options.file, parser, engine, trial, bar.show):
        if options.json:
            print(msgspec.json.encode(alert).decode())
        elif len(alerts) < SHOWN_MAX:
            alerts.append(alert)
    bar.end()
    if not options.json:
        print("\n".join(_page(alerts, trial, engine, explain=options.explain)))
    elif options.explain:
        explained = {"handlers": engine.stats(), "near": nearest(engine), "lines": trial.lines, "events": trial.events}
        print(msgspec.json.encode(explained).decode())
    return DONE


def _settings(options: argparse.Namespace) -> Settings | None:
    """Those of the file; none where nobody named one and the usual one is not there: then the built-in handlers are tried."""
    if options.config == DEFAULT_FILE and not DEFAULT_FILE.exists():
        return None
    from agent.config_read import validated

    return validated(options.config, os.environ)


def _parser(options: argparse.Namespace, settings: Settings | None) -> Parser:
    from agent.sources.logfile import LogConfig, parser_of

    if options.parser:
        try:
            return parser_of(options.parser, {}, Context(options.file.stem, lines=Lines(shown=True)))
        except ValueError as error:
            raise Failed(f"--{error}") from None
    logs: dict[str, LogConfig] = {
        name: source.config
        for name, source in (settings.sources if settings else {}).items()
        if isinstance(source.config, LogConfig)
    }
    path = str(options.file.absolute())
    reading = [name for name, each in logs.items() if any(fnmatch(path, pattern) for pattern in each.paths)]
    names = reading or list(logs)
    if not names:
        return parser_of("auth", {}, Context("auth", lines=Lines(shown=True)))
    if len({logs[name].parser for name in names}) > 1:
        raise Failed(f"several sources could read {options.file} ({', '.join(names)}). Say how with --parser.")
    return logs[names[0]].make_parser(names[0], Lines(shown=True))


class _Bar:
    """How far it is, on a terminal."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()
        self._at = 0.0

    def show(self, done: int, size: int) -> None:
        if not self._on or time.monotonic() - self._at < BAR_EVERY_S:
            return
        self._at = time.monotonic()
        share = done / size if size else 1.0
        print(f"\r[{'#' * int(share * BAR_CHARS):{BAR_CHARS}}] {share:4.0%}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._on:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _page(alerts: list[Event], trial: Trial, engine: Engine, *, explain: bool) -> list[str]:
    rows = [("TIME", "SEVERITY", "HANDLER", "ALERT")]
    rows += [
        (_time(a.time), SEVERITIES[a.severity], str(a.data.get("handler", a.source)), a.message or a.type)
        for a in alerts
    ]
    page = table(rows) if alerts else ["Nothing would have been raised."]
    if trial.alerts > len(alerts):
        page.append(f"… and {number(trial.alerts - len(alerts))} more; --json shows all")
    span = f", from {_time(trial.first_us)} to {_time(trial.last_us)}" if trial.first_us is not None else ""
    page += ["", f"{number(trial.lines)} lines, {number(trial.events)} events, {number(trial.alerts)} alerts{span}."]
    kinds = sorted(trial.types.items(), key=lambda item: -item[1])[:8]
    if kinds:
        page.append("Events: " + ", ".join(f"{number(count)} {kind}" for kind, count in kinds) + ".")
    return [*page, "", *_explained(engine.stats()), *_nearest(engine)] if explain else page


def _explained(stats: dict[str, HandlerStats]) -> list[str]:
    """Each handler: what came near, and what did not concern it at all."""
    rows = [("HANDLER", "KIND", "EVENTS", "MATCHED", "ALERTS", "WHAT IT SAW")]
    for name, each in stats.items():
        if each.error:
            why = f"failed: {each.error}"
        elif each.alerts:
            why = f"{number(each.suppressed)} further events belong to alerts above" if each.suppressed else "raised"
        elif each.matched:
            why = f"matched, and never reached its bound; follows {number(each.keys)} keys"
        else:
            why = "nothing that concerns it"
        rows.append((name, each.kind, number(each.events), number(each.matched), number(each.alerts), why))
    return table(rows, right=(2, 3, 4))


def _nearest(engine: Engine) -> list[str]:
    """By number: what came nearest to the bound of each handler, and how far it went where it went beyond."""
    found = nearest(engine, NEAREST_SHOWN)
    if not found:
        return []
    rows = [("HANDLER", "WHOSE", "REACHED", "LIMIT", "AT")]
    rows += [_near_row(name, near) for name, nears in found.items() for near in nears]
    return ["", "How near it came:", *table(rows, right=(2, 3))]


def _near_row(name: str, near: Near) -> tuple[str, str, str, str, str]:
    return (name, said(near.key) or "all", plain(float(near.reached)), plain(float(near.limit)), _time(near.time))


def _time(time_us: int | None) -> str:
    return "" if time_us is None else datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S")
