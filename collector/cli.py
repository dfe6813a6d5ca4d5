"""Commands of the collector. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration. No traceback reaches a user."""

import argparse
import asyncio
import gc
import logging
import signal
import ssl
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import msgspec
import uvicorn
from litestar import Litestar

from agent import owned_files
from collector import (
    audit,
    cli_access,
    cli_compliance,
    cli_evidence,
    cli_identity,
    cli_notify,
    cli_readers,
    cli_subject,
    cli_tls,
    export,
    legal,
)
from collector.app import build, migrate_at
from collector.audit import Who
from collector.cli_access import table
from collector.cli_store import with_store
from collector.config import Settings, SettingsError, load
from collector.fleet import FleetAgent, agent_of
from collector.http_admission import Admission
from collector.http_protocol import WS_MESSAGE_BYTES_MAX, BoundedHttp, BoundedWebSocket, Deadlines
from collector.http_server import BoundedServer, connections_max
from collector.notify import notify
from collector.personal import without_people
from collector.problems import Problem
from collector.query import agent_out, filter_of
from collector.store import agents, condition, partitions, retention, rollups
from collector.store import fleet as fleet_store
from collector.store.database import Database, StoreMisconfigured, StoreUnavailable
from collector.store.events import ALL, BadFilter, TooSlow

if TYPE_CHECKING:
    from collector.store.database import Plain


_log = logging.getLogger("linewarden.collector")

DONE, FAILED, WRONG = 0, 1, 2
SWITCH_S = 0.0005
BACKLOG = 1_024


class Failed(Exception):
    """The command could not do it. The text says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""
    options = _parser().parse_args(arguments)
    if getattr(options, "bare", False):
        return _without_settings(options)
    try:
        settings = load(options.config)
    except SettingsError as error:
        print(*(f"configuration: {problem}" for problem in error.problems), sep="\n", file=sys.stderr)
        return WRONG
    try:
        return int(options.command(settings, options) or DONE)
    except StoreMisconfigured as error:
        print(f"{error}", file=sys.stderr)
        return WRONG
    except (StoreUnavailable, Failed, OSError) as error:
        print(f"{error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return FAILED


def _without_settings(options: argparse.Namespace) -> int:
    """A command that works before there are any."""
    try:
        return int(options.command(None, options) or DONE)
    except OSError as error:
        print(f"{error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return FAILED


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--config", type=Path, metavar="FILE", help="settings, TOML (default: /etc/linewarden/collector.toml if there)"
    )
    parser = argparse.ArgumentParser(
        prog="linewarden-collector", description="The centre: takes events of agents into PostgreSQL."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(group: Any, name: str, command: Callable[..., Any], text: str) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = group.add_parser(name, parents=[common], help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    add(commands, "serve", _serve, "take batches and answer queries until stopped")
    add(commands, "migrate", _migrate, "bring the tables up to date")
    fleet = add(commands, "agents", _agents, "list the agents and how far each is stored")
    fleet.add_argument("--json", action="store_true", help="for scripts")
    cli_access.register(commands, add)
    db = commands.add_parser("db", help="look after the database").add_subparsers(required=True, metavar="ACTION")
    add(db, "partition", _partition, "make the partitions of the days ahead")
    add(db, "status", _status, "sizes of tables and partitions").add_argument(
        "--json", action="store_true", help="for scripts"
    )
    cli_readers.register(db, add)
    rollup = commands.add_parser("metrics", help="look after the roll-ups").add_subparsers(
        required=True, metavar="ACTION"
    )
    rebuild = add(rollup, "rebuild", _rebuild, "make the roll-ups of a period anew from its events")
    for name, text in (("from", "first hour"), ("to", "end, not included")):
        rebuild.add_argument(f"--{name}", type=_moment, required=True, dest=f"{name}_", metavar="TIME", help=text)
    keeping = add(
        commands, "retention", _retention, "take away what has stayed long enough, by [retention] of the settings"
    )
    keeping.add_argument("--dry-run", action="store_true", help="only say what would go")
    keeping.add_argument("--json", action="store_true", help="for scripts")
    hold = commands.add_parser("hold", help="legal holds: events that retention leaves alone").add_subparsers(
        required=True, metavar="ACTION"
    )
    made = add(hold, "create", _hold, "make a hold")
    made.add_argument("--name", required=True, help="what it is for")
    _filters(made)
    add(hold, "list", _holds, "list the holds")
    add(hold, "release", _release, "end a hold").add_argument("hold_id", type=int)
    exporting = add(commands, "export", _export, "write all events that a filter finds")
    exporting.add_argument("--format", choices=("ndjson", "json", "csv", "parquet"), default="ndjson")
    exporting.add_argument("--output", type=Path, metavar="FILE", help="(default: standard output)")
    cli_evidence.bundle_options(exporting)
    _filters(exporting)
    cli_evidence.register(commands, add)
    cli_compliance.register(commands, add)
    cli_notify.register(commands, add)
    cli_subject.register(commands, add)
    cli_identity.register(commands, add, fleet)
    cli_tls.register(commands, add)
    return parser


def _filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--where", action="append", default=[], metavar="NAME=VALUE",
        help="a filter as of GET /v1/events, as in type=authentication.* or from=2026-01-31T14:00Z; more than one may be given",
    )  # fmt: skip


def _query(options: argparse.Namespace) -> str:
    pairs = [item.partition("=") for item in options.where]
    if any(not sign for _, sign, _ in pairs):
        raise Failed("--where takes NAME=VALUE, as in type=log.line")
    query = urlencode([(name, value) for name, _, value in pairs])
    try:
        filter_of(query, ALL)
    except Problem as problem:
        raise Failed(problem.detail) from None
    return query


def _retention(settings: Settings, options: argparse.Namespace) -> None:
    async def work(connection: "Plain") -> "Sequence[retention.Action]":
        sign = await cli_evidence.sign(connection, settings)
        return await legal.leave(connection, settings.retention, Who.command(), dry=options.dry_run, sign=sign)

    actions = with_store(settings, work)
    if options.json:
        print(msgspec.json.encode(actions).decode())
        return
    words = {"drop": "the whole day", "delete": "rows", "audit": "audit records", "alerts": "incidents"}
    table([("DAY", "WHAT", "COUNT", "RULE"), *((str(a.day), words[a.kind], str(a.events), a.rule) for a in actions)])


def _hold(settings: Settings, options: argparse.Namespace) -> None:
    query = _query(options)

    async def work(connection: "Plain") -> int:
        async with connection.transaction():
            made = await retention.hold(connection, options.name, query)
            data = {"name": options.name, "query": without_people(query)}
            await audit.record(
                connection, Who.command(), "hold.created", target=str(made), data=data, objects=[("hold", str(made))]
            )
        return made

    number = with_store(settings, work)
    print(f"hold {number} is made")


def _holds(settings: Settings, _: argparse.Namespace) -> None:
    found = with_store(settings, retention.holds)
    rows = [
        (str(h["hold_id"]), f"{h['created']:%Y-%m-%d %H:%M:%S}Z", h["name"], h["query"] or "everything") for h in found
    ]
    table([("HOLD", "SINCE", "NAME", "EVENTS"), *rows])


def _release(settings: Settings, options: argparse.Namespace) -> None:
    async def work(connection: "Plain") -> bool:
        async with connection.transaction():
            done = await retention.release(connection, options.hold_id)
            if done:
                objects = [("hold", str(options.hold_id))]
                await audit.record(
                    connection, Who.command(), "hold.released", target=str(options.hold_id), objects=objects
                )
        return done

    if not with_store(settings, work):
        raise Failed(f"there is no hold {options.hold_id}. See: linewarden-collector hold list")
    print(f"hold {options.hold_id} is released")


def _export(settings: Settings, options: argparse.Namespace) -> int:
    query = _query(options)
    wanted = filter_of(query, ALL)
    if options.evidence:
        return cli_evidence.bundle_of(settings, options, wanted, query)

    async def work() -> int:
        database = Database(settings.database.address, pool_size=2, synchronous_commit="on")
        await database.open()
        try:
            if options.output is None:
                return await export.write(
                    database, wanted, options.format, sys.stdout.buffer, query=without_people(query)
                )
            with owned_files.replacing(options.output) as out:
                return await export.write(database, wanted, options.format, out, query=without_people(query))
        finally:
            await database.close()

    try:
        count = asyncio.run(work())
    except (export.NoParquet, BadFilter, TooSlow) as error:
        raise Failed(str(error)) from None
    print(f"{count} events", file=sys.stderr)
    return DONE


def _status(settings: Settings, options: argparse.Namespace) -> None:
    found = with_store(settings, condition.look)
    if options.json:
        print(msgspec.json.encode(found).decode())
        return
    rows = [("TABLE", "ROWS", "MB", "INDEX MB", "DEAD ROWS")]
    for one in [*found.tables, *found.partitions]:
        mb, index_mb = f"{one.bytes / 1e6:.1f}", f"{one.index_bytes / 1e6:.1f}"
        rows.append((one.name, str(max(one.rows, 0)), mb, index_mb, str(one.dead_rows)))
    table(rows)
    text = "by index on days that are over" if found.text_search else "without an index: pg_trgm is not there"
    print(
        f"PostgreSQL {found.server}, {found.database_bytes / 1e6:.0f} MB, {found.connections} of {found.connections_max} connections; "
        f"{found.deltas_waiting} rows to fold into the roll-ups; text is searched {text}"
    )


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write it as in 2026-01-31T14:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _rebuild(settings: Settings, options: argparse.Namespace) -> None:
    if options.from_ >= options.to_:
        raise Failed("--from has to be before --to")

    async def work(connection: "Plain") -> int:
        whole = await retention.dropped_until(connection)
        if whole is not None and options.from_ < whole:
            raise Failed(f"events before {whole:%Y-%m-%dT%H:%MZ} may have left by retention. Give a later --from")
        made = await rollups.rebuild(connection, options.from_, options.to_)
        data = {"from": options.from_, "to": options.to_, "events": made}
        await audit.record(connection, Who.command(), "metrics.rebuilt", data=data)
        return made

    events = with_store(settings, work)
    print(f"roll-ups made anew from {events} events")


def _migrate(settings: Settings, _: argparse.Namespace) -> None:
    ran = asyncio.run(migrate_at(settings.database.address))
    print(*([f"{name}: done" for name in ran] or ["nothing to do: the tables are up to date"]), sep="\n")


def _partition(settings: Settings, _: argparse.Namespace) -> None:
    ahead = settings.store.partitions_ahead_days
    made = with_store(settings, lambda connection: partitions.ensure(connection, ahead_days=ahead))
    found = with_store(settings, partitions.look)
    print(f"{len(made)} partitions made; {found.days} days, through {found.through}; {found.stray} rows without one")


def _agents(settings: Settings, options: argparse.Namespace) -> None:
    found = with_store(settings, lambda connection: agents.everyone(connection, ALL))
    listed = [agent_out(row) for row in found]
    if options.json:
        print(msgspec.json.encode(listed).decode())
        return
    known = with_store(settings, lambda connection: fleet_store.agents(connection, ALL))
    rows: list[tuple[str, ...]] = [
        (
            "AGENT",
            "SITE",
            "LINE",
            "STATION",
            "STATE",
            "LAST SEEN",
            "LAST EVENT",
            "LAG",
            "CLOCK",
            "VERSION",
            "EVENTS",
            "GAPS",
            "ALERTS",
        )
    ]
    rows += [_agent_line(agent_of(row)) for row in known]
    table(rows)


def _agent_line(a: "FleetAgent") -> tuple[str, ...]:
    seen, event = (f"{moment:%Y-%m-%d %H:%M:%S}Z" if moment else "never" for moment in (a.last_heartbeat, a.last_event))
    lag = f"{a.lag_s:.0f} s" if a.lag_s is not None else ""
    clock = f"{a.clock_offset_s:+.1f} s" if a.clock_offset_s is not None else ""
    counts = str(a.events), str(a.gaps), str(a.open_alerts)
    return str(a.agent_id), a.site, a.line, a.station, a.state, seen, event, lag, clock, a.version or "", *counts


def _serve(settings: Settings, _: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    # That the database is away is said by us, once, without a traceback.
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)
    # Batches are opened in threads; whoever answers a question must not wait long for its turn between them.
    sys.setswitchinterval(SWITCH_S)
    app = build(settings)
    # What there is now stays: without this a collection goes through all of it again and again, and everybody waits 70 ms meanwhile.
    gc.collect()
    gc.freeze()
    listening = settings.server
    admission = Admission(
        connections_max(listening.connections_max),
        address_unproven_max=listening.address_connections_max,
        proxies=settings.access.trusted_proxies,
    )
    app.state["connections"] = admission
    deadlines = Deadlines(head_s_max=listening.head_s_max, body_s_max=listening.body_s_max)
    server = Server(_uvicorn(settings, app), admission, deadlines, app)
    # uvicorn raises the signal that stopped it once more when it is done: being asked to stop is no failure.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    try:
        server.run()
    except SystemExit as stop:  # uvicorn's way to say that it could not listen; its log has said why
        return FAILED if stop.code else DONE
    return DONE


def _uvicorn(settings: Settings, app: Litestar) -> uvicorn.Config:
    server = settings.server
    config = uvicorn.Config(
        app,
        host=server.host,
        port=server.port,
        loop="uvloop",
        http=BoundedHttp,
        ws=BoundedWebSocket,
        ws_max_size=WS_MESSAGE_BYTES_MAX,
        ws_per_message_deflate=False,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=server.shutdown_s_max,
        ssl_certfile=str(server.certificate_file) if server.certificate_file else None,
        ssl_keyfile=str(server.key_file) if server.key_file else None,
    )
    try:
        config.load()
    except (ssl.SSLError, OSError) as error:
        raise StoreMisconfigured(f"server.certificate_file or key_file cannot be used: {error}") from None
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    return config


class Server(BoundedServer):
    """uvicorn, telling systemd when it listens and when it stops; SIGHUP reads the certificate again."""

    def __init__(self, config: uvicorn.Config, admission: Admission, deadlines: Deadlines, app: Litestar) -> None:
        super().__init__(config, admission, deadlines)
        self._app = app

    async def startup(self, sockets: Any = None) -> None:
        """Bind, then say so."""
        await super().startup(sockets)
        if self.started:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
            notify(READY="1", STATUS="listening")

    def _reload(self) -> None:
        """Connections made from here on see the new certificate. A bad one leaves the old one in place, and says so."""
        config = self.config
        if config.ssl is None or config.ssl_certfile is None:
            _log.info("SIGHUP: no certificate to read again; other settings need a restart")
            return
        try:
            # Tried on a context of its own first: a failure half-way would leave certificate and key that do not fit.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.ssl_certfile, config.ssl_keyfile)
            config.ssl.load_cert_chain(config.ssl_certfile, config.ssl_keyfile)
        except (ssl.SSLError, OSError) as error:
            _log.error("SIGHUP: the certificate cannot be used, the old one stays: %s", error)
        else:
            _log.info("SIGHUP: certificate read again")

    async def shutdown(self, sockets: Any = None) -> None:
        """Say so, then end what runs."""
        notify(STOPPING="1", STATUS="stopping")
        # Streams have no end of their own.
        self._app.state.hub.stop()
        await super().shutdown(sockets)


if __name__ == "__main__":
    sys.exit(main())
