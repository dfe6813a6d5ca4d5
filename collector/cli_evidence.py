"""Commands about proof: verify, checkpoint."""

import argparse
import asyncio
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from agent import owned_files
from collector import audit
from collector.cli_store import Add, with_store
from collector.config import Settings
from collector.evidence import bundle, checkpoint
from collector.evidence.checkpoint import BadKey
from collector.evidence.note import BadNote, Signer, VerifierKey
from collector.evidence.verify import Report, Wanted, processors, verify
from collector.export import pages
from collector.store import incidents, tree
from collector.store.database import Database, StoreMisconfigured, connect, translated
from collector.store.events import BadFilter, Filter, TooSlow

if TYPE_CHECKING:
    from collector.store.database import Anyone, Plain
    from collector.store.retention import Sign


DONE, FAILED, WRONG = 0, 1, 2
BAR_CHARS = 30
PROGRESS_EVERY_S = 0.2


def register(commands: Any, add: Add) -> None:
    """Add the commands of this part."""
    proving = add(
        commands, "verify", _verify, "compare everything stored with its evidence; exit code 1 where it does not hold"
    )
    proving.add_argument("--agent", type=UUID, metavar="ID", help="only this agent")
    proving.add_argument("--since", type=_moment, metavar="TIME", help="only what was received since then")
    proving.add_argument("--processes", type=int, metavar="N", help="(default: one a processor, at most 4)")
    proving.add_argument(
        "--events-max", type=int, metavar="N", help="compare rows of about N events, chosen by chance (default: all)"
    )
    proving.add_argument("--checkpoint", type=Path, metavar="FILE", help="checkpoints that were kept off the machine")
    proving.add_argument(
        "--key", action="append", default=[], metavar="KEY", help="verifier key to believe, and no other"
    )
    proving.add_argument("--json", action="store_true", help="for scripts")
    points = commands.add_parser("checkpoint", help="signed roots over everything accepted").add_subparsers(
        required=True, metavar="ACTION"
    )
    add(points, "create", _create, "make one now, and write it to the targets of the settings")
    add(points, "list", _list, "list them, and how far each target has them").add_argument(
        "--json", action="store_true", help="for scripts"
    )
    add(points, "key", _key, "print the verifier key of this installation, to be kept where it cannot be changed")


def bundle_options(parser: argparse.ArgumentParser) -> None:
    """What `export` takes besides, for a bundle of evidence."""
    parser.add_argument("--evidence", action="store_true", help="a zip with all that proves the events, and a verifier")
    parser.add_argument(
        "--event", action="append", default=[], metavar="ID", help="with --evidence: this event; may be given again"
    )
    parser.add_argument(
        "--alert",
        action="append",
        default=[],
        type=int,
        metavar="ID",
        help="with --evidence: all events of this alert and its causes",
    )
    parser.add_argument(
        "--incident",
        action="append",
        default=[],
        type=int,
        metavar="ID",
        help="with --evidence: the same of all alerts of this incident",
    )
    parser.add_argument("--personal", action="store_true", help="with --evidence: who did it, too")


def bundle_of(settings: Settings, options: argparse.Namespace, wanted: Filter, query: str) -> int:
    """Write a bundle of evidence; the exit code."""
    if options.output is None:
        print("--evidence needs --output FILE", file=sys.stderr)
        return WRONG

    async def work(connection: "Plain") -> bundle.Made:
        ids, said = await _asked(connection, settings, options, wanted, query)
        signer = await _signer(connection, settings)
        # Recorded before anything leaves.
        data = {"query": said[:1_000], "events": len(ids), "personal": options.personal}
        await audit.record(connection, audit.Who.command(), "evidence.exported", target=options.output.name, data=data)
        body, made = await bundle.make(connection, bundle.wanted_of(ids), said, signer, personal=options.personal)
        with owned_files.replacing(options.output) as out:
            out.write(body)
        return made

    try:
        made = with_store(settings, work)
    except (bundle.NotProvable, BadFilter, TooSlow) as error:
        print(error, file=sys.stderr)
        return FAILED
    print(
        f"{made.events} events in {made.batches} batches, {made.signed} of them signed by their agents, under checkpoint "
        f"{made.checkpoint.checkpoint_id} of {made.checkpoint.leaves} leaves: {options.output}"
    )
    return DONE


async def _asked(
    connection: "Plain", settings: Settings, options: argparse.Namespace, wanted: Filter, query: str
) -> tuple[list[str], str]:
    """The events that are asked for, and how. Raises NotProvable."""
    if not (options.event or options.alert or options.incident):
        return await _found(settings, wanted), query or "all events"
    ids: list[str] = list(options.event)
    said = [*options.event, *(f"alert {n}" for n in options.alert), *(f"incident {n}" for n in options.incident)]
    if options.alert or options.incident:
        found, alerts, cases = await incidents.evidence_of(
            connection, alerts=options.alert, incidents=options.incident, limit=bundle.EVENTS_MAX + 1
        )
        missing = [f"alert {n}" for n in options.alert if n not in alerts]
        missing += [f"incident {n}" for n in options.incident if n not in cases]
        if missing:
            raise bundle.NotProvable(
                f"there is no {' and no '.join(missing)}. See: GET /v1/alerts and GET /v1/incidents"
            )
        ids += found
    return list(dict.fromkeys(ids)), " ".join(said)


async def _found(settings: Settings, wanted: Filter) -> list[str]:
    database = Database(settings.database.address, pool_size=2, synchronous_commit="on")
    await database.open()
    try:
        ids: list[str] = []
        async for page in pages(database, None, wanted):
            ids += [event.event_id for event in page]
            if len(ids) > bundle.EVENTS_MAX:
                break
        return ids
    finally:
        await database.close()


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write it as in 2026-01-31T14:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _verify(settings: Settings, options: argparse.Namespace) -> int:
    bar = _Bar() if sys.stderr.isatty() and not options.json else None
    try:
        outside = options.checkpoint.read_text(encoding="utf-8") if options.checkpoint else None
    except UnicodeDecodeError:
        print(f"{options.checkpoint} is no text", file=sys.stderr)
        return WRONG
    wanted = Wanted(
        outside=outside,
        keys=tuple(options.key),
        own=asyncio.run(_own(settings)),
        agent=options.agent,
        since=options.since,
        processes=max(1, options.processes or processors()),
        events_max=options.events_max if options.events_max and options.events_max > 0 else None,
        progress=bar.show if bar else lambda _done, _all: None,
    )
    try:
        report = asyncio.run(verify(settings.database.address, wanted))
    except BadNote as error:
        print(f"--key: {error}", file=sys.stderr)
        return WRONG
    if bar:
        bar.end()
    if options.json:
        print(msgspec.json.encode(report).decode())
    else:
        _print(report)
    return DONE if report.ok else FAILED


class _Bar:
    """How far it is, on a terminal."""

    def __init__(self) -> None:
        self._started = self._shown = time.monotonic()

    def show(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._shown < PROGRESS_EVERY_S and done < total:
            return
        self._shown = now
        part = done / total if total else 1.0
        filled = "█" * int(part * BAR_CHARS)
        rate = done / max(now - self._started, 0.001) * 60
        print(
            f"\r{filled:░<{BAR_CHARS}} {part:4.0%}  {done:,} of {total:,} events, {rate / 1e6:.1f} million a minute ",
            end="",
            file=sys.stderr,
            flush=True,
        )

    def end(self) -> None:
        print(file=sys.stderr)


async def _own(settings: Settings) -> VerifierKey | None:
    """The public key of this installation, if its file is here and ours to read."""
    file = settings.evidence.key
    if file is None or not file.exists():
        return None
    connection = await connect(settings.database.address)
    try:
        with translated():
            name = settings.evidence.origin or await checkpoint.default_name(connection)
            return Signer(name, checkpoint.load_key(file, make=False)).verifier
    except BadKey as error:
        raise StoreMisconfigured(str(error)) from None
    finally:
        await connection.close()


async def _signer(connection: "Anyone", settings: Settings) -> Signer:
    file = settings.evidence.key
    if file is None:
        raise StoreMisconfigured(
            "there is no key to sign with. Give [evidence] key_file, as in /var/lib/linewarden-collector/checkpoint.key; it is made there"
        )
    try:
        return await checkpoint.signer(connection, file, settings.evidence.origin, make=True)
    except BadKey as error:
        raise StoreMisconfigured(str(error)) from None


async def sign(connection: "Anyone", settings: Settings) -> "Sign | None":
    """What tombstones are signed by; None without a key."""
    return (await _signer(connection, settings)).sign if settings.evidence.key is not None else None


def _create(settings: Settings, _: argparse.Namespace) -> int:
    async def work(connection: "Plain") -> tuple[tree.StoredCheckpoint, list[str]]:
        made = await checkpoint.create(connection, await _signer(connection, settings))
        await audit.record(connection, audit.Who.command(), "checkpoint.created", target=str(made.checkpoint_id))
        return made, await checkpoint.write_out(connection, settings.evidence.places)

    made, troubles = with_store(settings, work)
    print(made.note, end="")
    print(*troubles, sep="\n", end="\n" if troubles else "", file=sys.stderr)
    return FAILED if troubles else DONE


def _list(settings: Settings, options: argparse.Namespace) -> int:
    async def work(connection: "Plain") -> tuple[list[tree.StoredCheckpoint], list[tree.Target]]:
        return await tree.checkpoints(connection, limit=100_000), await tree.targets(
            connection, settings.evidence.targets
        )

    found, targets = with_store(settings, work)
    if options.json:
        print(msgspec.json.encode({"checkpoints": found, "targets": targets}).decode())
        return DONE
    for one in found:
        print(f"{one.checkpoint_id}  {one.made:%Y-%m-%d %H:%M:%S}Z  {one.leaves} leaves  {one.root}  key {one.key_id}")
    for target in targets:
        print(f"{target.target}: up to {target.written}" + (f"; fails: {target.trouble}" if target.trouble else ""))
    return DONE


def _key(settings: Settings, _: argparse.Namespace) -> int:
    print(with_store(settings, lambda connection: _signer(connection, settings)).verifier)
    return DONE


def _print(report: Report) -> None:
    for finding in report.findings:
        print(finding)
    if report.findings_left_out:
        print(f"… and {report.findings_left_out} more")
    for note in report.notes:
        print(f"note: {note}")
    print(
        f"{report.batches} batches of {report.streams} streams, {report.events} events, {report.rows} rows, "
        f"{report.tombstones} tombstones; "
        f"{report.deleted_by_retention} rows deleted by retention, {report.erased} personal lines erased; {report.seconds:.1f} s"
    )
    print(
        f"{report.audit_records} audit records, {report.rollup_hours} hours of roll-ups, {report.leaves} leaves, "
        f"{report.checkpoints} checkpoints"
        + (
            f", {report.checkpoints_proven} from outside that this database goes on from"
            if report.checkpoints_proven
            else ""
        )
    )
    print("everything holds" if report.ok else f"{len(report.findings) + report.findings_left_out} things do not hold")
