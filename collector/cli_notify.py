"""Commands about notifications: notify test."""

import argparse
import asyncio
import sys
from typing import Any

from collector.cli_store import Add
from collector.config import Settings
from collector.notification import example
from collector.notification_targets import Undelivered

DONE, FAILED, WRONG = 0, 1, 2


def register(commands: Any, add: Add) -> None:
    """Add the commands of this part."""
    group = commands.add_parser("notify", help="look after notifications").add_subparsers(
        required=True, metavar="ACTION"
    )
    testing = add(group, "test", _test, "send a message that says that it is a test")
    testing.add_argument("name", help="of [notification.targets.NAME]")


def _test(settings: Settings, options: argparse.Namespace) -> int:
    target = settings.notification.targets.get(options.name)
    if target is None:
        known = ", ".join(sorted(settings.notification.targets)) or "none is configured"
        print(f"there is no target {options.name!r} in [notification.targets]. Known: {known}", file=sys.stderr)
        return WRONG
    number, body = example(options.name)
    try:
        asyncio.run(target.send(number, body))
    except Undelivered as error:
        print(f"{options.name} did not take it: {error}", file=sys.stderr)
        return FAILED
    print(f"{options.name} took message {number}")
    return DONE
