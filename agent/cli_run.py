"""`run` and `check`."""

import argparse
import asyncio
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from agent.cli import DEBUG, DONE, SERVICE, WRONG
from agent.config import ConfigProblems, Problem, load

_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def run(options: argparse.Namespace) -> int:
    """The daemon, until it is stopped."""
    from agent import daemon

    _log_to_stderr()

    async def until_stopped() -> int:
        settings = await load(options.config)
        return await daemon.run(settings, options.config)

    return asyncio.run(until_stopped())


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Journal("%(name)s: %(message)s") if _is_journal() else logging.Formatter("%(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=logging.DEBUG if os.environ.get(DEBUG) else logging.INFO, handlers=[handler])
    # One line a request says nothing that /status does not.
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _is_journal() -> bool:
    """Whether the journal reads our stderr (systemd.exec(5), JOURNAL_STREAM)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    here = os.fstat(sys.stderr.fileno())
    return (device, inode) == (str(here.st_dev), str(here.st_ino))


class _Journal(logging.Formatter):
    """Each line with its priority, as the journal reads it."""

    def format(self, record: logging.LogRecord) -> str:
        """The text, marked."""
        mark = f"<{_PRIORITY.get(record.levelno, 6)}>"
        return "\n".join(mark + line for line in super().format(record).splitlines())


class _Report(msgspec.Struct):
    ok: bool
    file: str
    problems: list[Problem]
    sources: int = 0
    handlers: int = 0
    warnings: list[Problem] = []
    judged_as: str | msgspec.UnsetType = msgspec.UNSET
    """As which user the files were looked at, where root asked and the service has a user of its own."""


def check(options: argparse.Namespace) -> int:
    """Everything that is wrong with the configuration, and with what it names."""
    report = _judge_for_service(options.config)
    if options.json:
        print(msgspec.json.encode(report).decode())
    elif report.ok:
        print(
            f"{report.file}: all right. Sources: {report.sources}; handlers beside the built-in ones: {report.handlers}."
        )
    else:
        print(f"{report.file}: {len(report.problems)} problem{'s' * (len(report.problems) > 1)}")
        _list(report.problems)
    if report.warnings and not options.json:
        print(f"{len(report.warnings)} warning{'s' * (len(report.warnings) > 1)}: it runs like this, and should not")
        _list(report.warnings)
    if report.judged_as is not msgspec.UNSET and not options.json:
        print(f"Judged as {report.judged_as}.")
    return DONE if report.ok else WRONG


def _list(problems: list[Problem]) -> None:
    for problem in problems:
        print(f"\n  {problem.key + ': ' if problem.key else ''}{problem.text}\n      {problem.remedy}")


def _judge_for_service(path: Path) -> _Report:
    """With the rights of the service, where root asks: root can read what the service cannot."""
    # First as we are: it loads every module that is needed, which the service's user need not be able to read here.
    report = _judge(path)
    if os.geteuid() != 0:
        return report
    from agent.config_account import acting_as, described, problems_of_state, problems_of_unit, without_credentials
    from agent.config_read import section, validated
    from agent.service_account import account_for

    try:
        state_dir = Path(section("agent", path, os.environ).state_dir)
        account = account_for(SERVICE, path, state_dir)
    except ConfigProblems:
        return report
    if account is None:
        return report
    with acting_as(account):
        report = _judge(path)
        report.problems += problems_of_state(state_dir, account)
    if account.unit is not None:
        with suppress(ConfigProblems):
            settings = validated(path, os.environ)
            report.problems = without_credentials(report.problems, settings, account.unit)
            report.problems += problems_of_unit(settings, account.unit)
    report.ok = not report.problems
    report.judged_as = described(account)
    return report


def _judge(path: Path) -> _Report:
    from agent.config import BUILTIN
    from agent.config_check import problems_outside, warnings_outside
    from agent.config_read import validated

    try:
        settings = validated(path, os.environ)
    except ConfigProblems as error:
        return _Report(ok=False, file=str(path), problems=list(error.problems))
    problems = problems_outside(settings)
    own = [name for name in settings.handlers if name != BUILTIN]
    # What may not be read matches nothing either; once is enough.
    warnings = [
        each
        for each in warnings_outside(settings)
        if not any(problem.key == each.key and each.text.split()[0] in problem.text for problem in problems)
    ]
    return _Report(not problems, str(path), problems, len(settings.sources), len(own), warnings)
