"""Commands of the agent. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration. No traceback reaches a user.

Nothing is imported here that a command does not need: `--help` answers at once, and `run` carries nothing of the others.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DONE, FAILED, WRONG = 0, 1, 2
DEBUG = "LINEWARDEN_DEBUG"
SERVICE = "linewarden-agent"
"""The unit of systemd that runs the agent."""
Command = Callable[[argparse.Namespace], int]


class Failed(Exception):
    """The command could not do it. The text says why, and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        code = _run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads the output has enough (… | head). What is still unwritten goes nowhere, and the exit stays silent.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        return FAILED
    return code


def _run(options: argparse.Namespace) -> int:
    try:
        return int(options.command(options))
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except Failed as error:
        return _say(str(error), FAILED)
    except Exception as error:  # noqa: BLE001  (the last guard: nobody gets a traceback who did not ask for one)
        return _explained(error)


def _explained(error: Exception) -> int:
    """What an error of a part means here."""
    from agent.component import ConfigError, NotConnected
    from agent.config import ConfigProblems

    if isinstance(error, ConfigProblems):
        return _say(f"{error.path}: {len(error.problems)} problem{'s' * (len(error.problems) > 1)}\n{error}", WRONG)
    if isinstance(error, ConfigError):
        return _say(str(error), WRONG)
    if isinstance(error, NotConnected):
        return _say(str(error), FAILED)
    if os.environ.get(DEBUG):
        raise error
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}. {DEBUG}=1 shows where this happened.", FAILED)
    name = type(error).__name__
    return _say(f"this should not have happened: {name}: {error}. {DEBUG}=1 shows where; please report it.", FAILED)


def _say(text: str, code: int) -> int:
    print(f"linewarden-agent: {text}", file=sys.stderr)
    return code


# What can be asked ----------------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="linewarden-agent", description="Collects events from machines and logs of this station, and loses none."
    )
    parser.add_argument("--version", action=_Version, help="print the version and end")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        _add_run,
        _add_check,
        _add_status,
        _add_events,
        _add_buffer,
        _add_browse,
        _add_trust,
        _add_probe,
        _add_try,
        _add_parse,
        _add_enroll,
        _add_rotate_key,
    ):
        add(commands)
    return parser


class _Version(argparse.Action):
    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print it."""
        from importlib.metadata import version

        print(f"linewarden {version('linewarden')}")
        parser.exit(DONE)


def _command(group: Any, name: str, command: Command, text: str, *, config: bool = True) -> argparse.ArgumentParser:
    sub: argparse.ArgumentParser = group.add_parser(name, help=text, description=text)
    sub.set_defaults(command=command)
    if config:
        sub.add_argument("--config", type=Path, metavar="FILE", default=Path("/etc/linewarden/agent.toml"),
                         help="configuration, TOML (default: %(default)s)")  # fmt: skip
    return sub


def _json_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", help="for scripts")


def _add_run(commands: Any) -> None:
    def run(options: argparse.Namespace) -> int:
        from agent.cli_run import run

        return run(options)

    _command(commands, "run", run, "collect, store and send until stopped")


def _add_check(commands: Any) -> None:
    def check(options: argparse.Namespace) -> int:
        from agent.cli_run import check

        return check(options)

    sub = _command(commands, "check", check, "tell every problem of the configuration, each with its key and a remedy")
    _json_option(sub)


def _add_status(commands: Any) -> None:
    def status(options: argparse.Namespace) -> int:
        from agent.cli_status import status

        return status(options)

    sub = _command(commands, "status", status, "what the running agent is doing, source by source")
    sub.add_argument("--address", metavar="ADDRESS", help="where it listens, if not where the configuration says")
    _json_option(sub)


def _add_events(commands: Any) -> None:
    def events(options: argparse.Namespace) -> int:
        from agent.cli_events import events

        return events(options)

    sub = _command(
        commands,
        "events",
        events,
        "print what is in the buffer: all that waits to be sent, and the most recent that was",
    )
    sub.add_argument("--follow", action="store_true", help="go on with new ones as they come, until Ctrl-C")
    sub.add_argument("--last", type=_count, metavar="N", help="only the last N (default with --follow: 10)")
    sub.add_argument(
        "--where",
        metavar="EXPR",
        default="",
        help="only those that match, as in \"severity >= 4 and source == 'auth'\"",
    )
    _json_option(sub)


def _add_buffer(commands: Any) -> None:
    def buffer(options: argparse.Namespace) -> int:
        from agent import cli_buffer

        work: Command = getattr(cli_buffer, options.action)
        return work(options)

    actions = commands.add_parser("buffer", help="look into the buffer's file").add_subparsers(
        required=True, metavar="ACTION"
    )
    for action, text in (
        ("stats", "what is in it, lane by lane"),
        ("verify", "read all of it and check every sum, number and link"),
        ("export", "write its events, one JSON object a line"),
    ):
        sub = _command(actions, action, buffer, text)
        sub.set_defaults(action=action)
        if action == "export":
            sub.add_argument(
                "--output", type=Path, metavar="FILE", help="write here instead of to the screen; must not be there yet"
            )
            sub.add_argument("--unsent", action="store_true", help="only what the collector does not have yet")
        else:
            _json_option(sub)


def _add_browse(commands: Any) -> None:
    def browse(options: argparse.Namespace) -> int:
        from agent.cli_opcua import browse

        return browse(options)

    sub = _command(commands, "browse", browse, "find the nodes of an OPC UA server, and print configuration to paste")
    sub.add_argument("url", nargs="?", help="opc.tcp://HOST:4840 (default: that of --source)")
    sub.add_argument("--source", metavar="NAME", help="sign in as this source of the configuration does; "
                     "without it, as the one that has the same url, if there is one")  # fmt: skip
    sub.add_argument(
        "--security", metavar="POLICY/MODE", help="as in a source, for example Basic256Sha256/SignAndEncrypt"
    )
    sub.add_argument("--user", metavar="NAME", help="sign in as this user, with the password in --password-file")
    sub.add_argument("--password-file", metavar="FILE", help="a file with the password and nothing else")
    sub.add_argument(
        "--server-certificate", metavar="FILE", help="the server's certificate, where `trust` did not keep it"
    )
    sub.add_argument("--allow-password-in-clear", action="store_true", default=None,
                     help="let the password cross the network readable, where the server wants it so")  # fmt: skip
    sub.add_argument(
        "--depth", type=_count, default=4, metavar="N", help="levels below the root (default: %(default)s)"
    )
    sub.add_argument(
        "--root", default="i=85", metavar="NODE", help="where to begin (default: %(default)s, the folder Objects)"
    )
    sub.add_argument(
        "--match", default="*", metavar="PATTERN", help="only nodes whose path or identifier matches, as in '*.Status'"
    )
    sub.add_argument("--name", default="machine", metavar="NAME", help="name of the source in what is printed")
    sub.add_argument(
        "--trust", action="store_true", help="also take the server's certificate for true, as `trust` does"
    )
    _folder_option(sub)
    _json_option(sub)


def _add_trust(commands: Any) -> None:
    def trust(options: argparse.Namespace) -> int:
        from agent.cli_opcua import trust

        return trust(options)

    sub = _command(
        commands, "trust", trust, "take the certificate that an OPC UA server shows now for the server's own"
    )
    sub.add_argument("url", help="opc.tcp://HOST:4840")
    _folder_option(sub)
    _json_option(sub)


def _add_probe(commands: Any) -> None:
    def probe(options: argparse.Namespace) -> int:
        from agent.cli_modbus import run

        return run(options)

    text = "find the addresses of a Modbus device that can be read, politely, and print configuration to paste"
    sub = _command(commands, "probe", probe, text, config=False)
    sub.add_argument(
        "url", help="tcp://HOST:502, tls://HOST:802, rtu+tcp://HOST:PORT or rtu:///dev/ttyUSB0?baudrate=19200"
    )
    sub.add_argument("--unit", type=_unit, default=1, metavar="N", help="which unit (default: %(default)s)")
    sub.add_argument("--addresses", type=_addresses, default=(0, 999), metavar="A-B",
                     help="from which to which, counted from 0 (default: 0-999)")  # fmt: skip
    sub.add_argument("--table", action="append", choices=("holding", "input", "coil", "discrete"),
                     help="only this table; may be repeated (default: all four)")  # fmt: skip
    sub.add_argument("--rate", type=_rate, default=20.0, metavar="N",
                     help="at most so many requests a second (default: %(default)g)")  # fmt: skip
    sub.add_argument("--timeout", type=_seconds, default=2.0, metavar="S",
                     help="seconds to wait for an answer (default: %(default)g)")  # fmt: skip
    sub.add_argument("--ca", type=Path, metavar="FILE", help="certificate that proves the device's own, for tls://")
    sub.add_argument("--ignore-transaction-id", action="store_true",
                     help="read a gateway that does not send the transaction id of a request back")  # fmt: skip
    sub.add_argument(
        "--identify", action="store_true", help="also ask who it is (function 43); some devices choke on it"
    )
    sub.add_argument(
        "--name", type=_key, default="machine", metavar="NAME", help="name of the source in what is printed"
    )
    sub.add_argument("--all", action="store_true", help="also write out the addresses that answer with 0")
    _json_option(sub)


def _add_enroll(commands: Any) -> None:
    def enroll(options: argparse.Namespace) -> int:
        from agent.cli_enroll import enroll

        return enroll(options)

    sub = _command(commands, "enroll", enroll, "become an agent of a collector, by a token from it; safe to do again")
    sub.add_argument("--collector", metavar="URL", help="the collector (default: where the token says)")
    given = sub.add_mutually_exclusive_group(required=True)
    given.add_argument(
        "--token", help="the token; - reads it from standard input, so that no list of processes shows it"
    )
    given.add_argument("--token-file", type=Path, metavar="FILE", help="a file that holds it")
    sub.add_argument("--ca", type=Path, metavar="FILE", help="authority of the collector's certificate, PEM")
    sub.add_argument(
        "--new-key", action="store_true", help="make a new key, also where one was made for an enrolment before"
    )
    sub.add_argument(
        "--allow-plaintext", action="store_true", help="http:// to other than this computer: others may read it"
    )
    _json_option(sub)


def _add_rotate_key(commands: Any) -> None:
    def rotate_key(options: argparse.Namespace) -> int:
        from agent.cli_enroll import rotate_key

        return rotate_key(options)

    sub = _command(commands, "rotate-key", rotate_key, "let a new key take the place of the agent's; safe to do again")
    _json_option(sub)


def _add_try(commands: Any) -> None:
    def try_(options: argparse.Namespace) -> int:
        from agent.cli_try import try_

        return try_(options)

    text = (
        "play a log file, or events from `events --json`, through parsers and handlers, and print what they would raise"
    )
    sub = _command(commands, "try", try_, text)
    sub.add_argument("file", type=Path, metavar="LOGFILE", help="a log, or recorded events")
    sub.add_argument(
        "--parser", metavar="KIND", help="how to read it (default: as the source that reads it, else auth)"
    )
    sub.add_argument("--explain", action="store_true", help="also what each handler saw, and what came near")
    _json_option(sub)


def _add_parse(commands: Any) -> None:
    def parse(options: argparse.Namespace) -> int:
        from agent.cli_parse import parse

        return parse(options)

    text = "read a log file with one parser and print its events, one JSON object a line, with the personal fields"
    sub = _command(commands, "parse", parse, text, config=False)
    sub.add_argument("file", metavar="FILE", help="a log, plain or gzip; - reads standard input")
    sub.add_argument(
        "--parser", metavar="KIND", required=True, help="audit, auth, csv, json, logfmt, regex, syslog, winston"
    )
    sub.add_argument(
        "--options", metavar="JSON", default="{}", help="options of the parser, as under options in a log source"
    )
    sub.add_argument(
        "--time-zone", metavar="NAME", default="", help="zone of times that name none (default: this computer's)"
    )
    sub.add_argument("--keep-raw", action="store_true", help="also the original line of lines that are understood")


def _folder_option(sub: argparse.ArgumentParser) -> None:
    text = "where to keep the certificate (default: opcua in the state folder of the configuration)"
    sub.add_argument("--folder", type=Path, metavar="DIR", help=text)


def _key(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name: letters, digits, _ and - only")
    return text


def _unit(text: str) -> int:
    if not text.isdecimal() or int(text) > 255:  # noqa: PLR2004
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 255")
    return int(text)


def _addresses(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    last = last or first
    if not first.isdecimal() or not last.isdecimal() or not int(first) <= int(last) <= 65_535:  # noqa: PLR2004
        raise argparse.ArgumentTypeError(f"{text!r} is no range like 0-999, within 0 to 65535")
    return int(first), int(last)


def _rate(text: str) -> float:
    return _between(text, 0.1, 1_000)


def _seconds(text: str) -> float:
    return _between(text, 0.01, 60)


def _between(text: str, least: float, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from {least:g} to {most:g}")
    return number


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:  # noqa: PLR2004
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 1000000")
    return int(text)


if __name__ == "__main__":
    # As `python -m agent.cli`: the parts of the command import agent.cli, and must find the same classes.
    from agent import cli  # noqa: PLW0406 - under another name than __main__

    sys.exit(cli.main())
