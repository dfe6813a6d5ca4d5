"""Commands about persons: what is stored of one, taking it out, and the record of processing."""

import argparse
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from agent import owned_files
from collector import processing, subject
from collector.audit import Who
from collector.cli_store import Add, with_store
from collector.config import Settings
from collector.legal import held
from collector.store import keys, subjects
from collector.store.database import StoreMisconfigured

if TYPE_CHECKING:
    from collector.store.database import Plain

DONE, FAILED, WRONG = 0, 1, 2


def register(commands: Any, add: Add) -> None:
    """Add the commands of this part."""
    group = commands.add_parser("subject", help="a person's rights: what is stored of them, and taking it out")
    actions = group.add_subparsers(required=True, metavar="ACTION")
    exporting = add(actions, "export", _export, "write everything that is stored of a person, as JSON")
    _names(exporting, required=True)
    exporting.add_argument("--output", type=Path, required=True, metavar="FILE")
    exporting.add_argument("--reason", default="", help="why, for the audit log; without the name")
    erasing = add(
        actions, "erase", _erase, "take a person out of everything that is stored, so that verify still holds"
    )
    _names(erasing, required=False)
    erasing.add_argument("--reason", help="why, in words without the name: it stays")
    erasing.add_argument(
        "--standing-days", type=int, default=0, metavar="N", help="erase what comes late, too, for so long"
    )
    which = erasing.add_mutually_exclusive_group()
    which.add_argument("--confirm", type=int, metavar="NUMBER", help="let a request run that somebody else made")
    which.add_argument("--withdraw", type=int, metavar="NUMBER", help="take a request back")
    which.add_argument("--resume", type=int, metavar="NUMBER", help="go on with one that was broken off")
    for parser in (exporting, erasing):
        parser.add_argument(
            "--key-file", type=Path, metavar="FILE", help="an admin's API key: who asks (default: your account here)"
        )
    add(actions, "list", _list, "list the requests to erase").add_argument(
        "--json", action="store_true", help="for scripts"
    )
    record = add(actions, "record", _record, "the record of processing (GDPR 30), from the settings")
    record.add_argument("--format", choices=("html", "json"), default="html")


def _names(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("--actor", required=required, metavar="NAME", help="name of the account")
    parser.add_argument("--also", action="append", default=[], metavar="NAME", help="another name of the same person")


async def _who(connection: "Plain", options: argparse.Namespace) -> Who:
    if options.key_file is None:
        return Who.command()
    found = await keys.find(connection, options.key_file.read_text(encoding="utf-8").strip())
    if found is None or found[1] is not None or found[0].role != "admin":
        raise StoreMisconfigured(
            f"{options.key_file} holds no good key of an admin. Make one: linewarden-collector key create --role admin"
        )
    return Who(found[0].prefix, "key", "admin")


def _export(settings: Settings, options: argparse.Namespace) -> int:
    names = [options.actor, *options.also]

    async def work(connection: "Plain") -> int:
        who, count = await _who(connection, options), 0
        if options.output.exists():
            raise FileExistsError(17, "is there already; name another file, or move it away", str(options.output))
        with owned_files.replacing(options.output) as out:
            out.write(b'{"names":' + msgspec.json.encode(names) + b',"events":[')
            async for page in subject.events(connection, names):
                out.write((b",\n" if count else b"\n") + b",\n".join(map(msgspec.json.encode, page)))
                count += len(page)
            out.write(b"\n]," + msgspec.json.encode(await subject.beside(connection, names))[1:] + b"\n")
        await subject.exported(connection, who, count, options.reason)
        return count

    return _told(lambda: f"{with_store(settings, work)} events of this person are in {options.output}")


def _told(work: Callable[[], str]) -> int:
    import sys

    try:
        print(work())
    except subject.Refused as error:
        print(error, file=sys.stderr)
        return FAILED
    except _Open as error:
        print(error, file=sys.stderr)
        return FAILED
    except _Usage as error:
        print(error, file=sys.stderr)
        return WRONG
    return DONE


class _Usage(Exception):
    """What was asked for cannot be meant."""


class _Open(Exception):
    """Not everything could be done."""


def _erase(settings: Settings, options: argparse.Namespace) -> int:
    number = options.confirm or options.withdraw or options.resume

    async def work(connection: "Plain") -> str:
        who, holds = await _who(connection, options), await held(connection)
        if options.withdraw:
            await subject.withdraw(connection, who, number)
            return f"erasure {number} is withdrawn"
        two = settings.privacy.erase_two_persons
        if options.confirm:
            await subject.confirm(connection, who, number, holds, two_persons=two)
        if number:
            return _said(await subject.run(connection, who, number, holds))
        if not options.actor or not options.reason:
            raise _Usage("give --actor and --reason, or --confirm, --withdraw or --resume with the number of a request")
        until = datetime.now(UTC) + timedelta(days=options.standing_days) if options.standing_days > 0 else None
        names = [options.actor, *options.also]
        made = await subject.request(connection, who, names, options.reason, holds, until)
        if two:
            return f"erasure {made} is requested. Somebody else confirms it: linewarden-collector subject erase --confirm {made}"
        await subject.confirm(connection, who, made, holds, two_persons=False)
        return _said(await subject.run(connection, who, made, holds))

    return _told(lambda: with_store(settings, work))


def _said(done: subject.Erased) -> str:
    lines = [f"erasure {done.erasure_id}: {done.events} events in {done.batches} batches"]
    lines += [f"  {count} rows of {name}" for name, count in done.elsewhere.items()]
    if done.analytics_rows:
        lines.append(f"  {done.analytics_rows} rows of what analytics counted")
    if done.core_mentions:
        lines.append(
            f"  {done.core_mentions} events have the name in what is not personal (message, target, data), "
            "which the chain proves: they stay"
        )
    if done.audit_mentions:
        lines.append(f"  {done.audit_mentions} records of the audit log name the person: they stay, as the law asks")
    if done.damaged:
        batches = ", ".join(map(str, done.damaged[:20]))
        raise _Open(
            "\n".join(
                [
                    *lines,
                    f"  {len(done.damaged)} frames cannot be opened ({batches}); see verify. The request stays open",
                ]
            )
        )
    lines.append("the names are forgotten" if done.done else "it stands: what comes late is erased, too")
    return "\n".join(lines)


def _list(settings: Settings, options: argparse.Namespace) -> int:
    found = with_store(settings, subjects.everything)
    if options.json:
        print(msgspec.json.encode([{**_plain(one), "names": None} for one in found]).decode())
        return DONE
    for one in found:
        by = f", confirmed by {one.confirmed_by}" if one.confirmed_by else ""
        print(
            f"{one.erasure_id}  {one.state}  requested {one.requested:%Y-%m-%d %H:%M}Z by {one.requested_by}{by}  "
            f"{one.events} events in {one.batches} batches  {one.reason}"
        )
    return DONE


def _plain(one: subjects.Erasure) -> dict[str, Any]:
    return {name: getattr(one, name) for name in subjects.Erasure.__slots__}


def _record(settings: Settings, options: argparse.Namespace) -> int:
    record = processing.record_of(settings)
    print(processing.html(record) if options.format == "html" else msgspec.json.encode(record).decode())
    return DONE
