"""Commands of the collector. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration. No traceback reaches a user."""

import argparse
import asyncio
import logging
import re
import signal
import ssl
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

import msgspec
import uvicorn
from litestar import Litestar

from collector import export
from collector.app import build, held, migrate_at
from collector.config import Settings, SettingsError, load
from collector.notify import notify
from collector.problems import Problem
from collector.query import agent_out, filter_of
from collector.store import agents, condition, keys, partitions, retention, rollups
from collector.store.database import Database, StoreMisconfigured, StoreUnavailable, connect, translated
from collector.store.events import ALL, BadFilter, TooSlow

if TYPE_CHECKING:
    from collector.store.database import Plain

T = TypeVar("T")

_log = logging.getLogger("linewarden.collector")

DONE, FAILED, WRONG = 0, 1, 2
KEEP_ALIVE_S = 75
BACKLOG = 1_024
WS_BYTES_MAX = 4_096
"""Of what a client of a stream sends: nothing is asked of it."""


class Failed(Exception):
    """The command could not do it. The text says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""
    options = _parser().parse_args(arguments)
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
    key = commands.add_parser("key", help="make, list and revoke API keys").add_subparsers(
        required=True, metavar="ACTION"
    )
    _key_create(add(key, "create", _create_key, "make a key; it is shown once"))
    listing = add(key, "list", _list_keys, "list the keys, without their secrets")
    listing.add_argument("--json", action="store_true", help="for scripts")
    revoke = add(key, "revoke", _revoke_key, "take a key back, from the next request on")
    revoke.add_argument("prefix", help="the part of the key between lw_ and the next _")
    db = commands.add_parser("db", help="look after the database").add_subparsers(required=True, metavar="ACTION")
    add(db, "partition", _partition, "make the partitions of the days ahead")
    add(db, "status", _status, "sizes of tables and partitions").add_argument(
        "--json", action="store_true", help="for scripts"
    )
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
    _filters(exporting)
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
        return await retention.run(connection, settings.retention.policy, await held(connection), dry=options.dry_run)

    actions = _with_store(settings, work)
    if options.json:
        print(msgspec.json.encode(actions).decode())
        return
    words = {"drop": "the whole day", "delete": "rows"}
    _table([("DAY", "WHAT", "EVENTS", "RULE"), *((str(a.day), words[a.kind], str(a.events), a.rule) for a in actions)])


def _hold(settings: Settings, options: argparse.Namespace) -> None:
    query = _query(options)
    number = _with_store(settings, lambda connection: retention.hold(connection, options.name, query))
    print(f"hold {number} is made")


def _holds(settings: Settings, _: argparse.Namespace) -> None:
    found = _with_store(settings, retention.holds)
    rows = [
        (str(h["hold_id"]), f"{h['created']:%Y-%m-%d %H:%M:%S}Z", h["name"], h["query"] or "everything") for h in found
    ]
    _table([("HOLD", "SINCE", "NAME", "EVENTS"), *rows])


def _release(settings: Settings, options: argparse.Namespace) -> None:
    if not _with_store(settings, lambda connection: retention.release(connection, options.hold_id)):
        raise Failed(f"there is no hold {options.hold_id}. See: linewarden-collector hold list")
    print(f"hold {options.hold_id} is released")


def _export(settings: Settings, options: argparse.Namespace) -> None:
    wanted = filter_of(_query(options), ALL)

    async def work() -> int:
        database = Database(settings.database.address, pool_size=2, synchronous_commit="on")
        await database.open()
        try:
            if options.output is None:
                return await export.write(database, wanted, options.format, sys.stdout.buffer)
            with options.output.open("wb") as out:
                return await export.write(database, wanted, options.format, out)
        finally:
            await database.close()

    try:
        count = asyncio.run(work())
    except (export.NoParquet, BadFilter, TooSlow) as error:
        raise Failed(str(error)) from None
    print(f"{count} events", file=sys.stderr)


def _status(settings: Settings, options: argparse.Namespace) -> None:
    found = _with_store(settings, condition.look)
    if options.json:
        print(msgspec.json.encode(found).decode())
        return
    rows = [("TABLE", "ROWS", "MB", "INDEX MB", "DEAD ROWS")]
    for table in [*found.tables, *found.partitions]:
        mb, index_mb = f"{table.bytes / 1e6:.1f}", f"{table.index_bytes / 1e6:.1f}"
        rows.append((table.name, str(max(table.rows, 0)), mb, index_mb, str(table.dead_rows)))
    _table(rows)
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
        return await rollups.rebuild(connection, options.from_, options.to_)

    events = _with_store(settings, work)
    print(f"roll-ups made anew from {events} events")


def _key_create(create: argparse.ArgumentParser) -> None:
    create.add_argument("--role", required=True, choices=keys.ROLES)
    create.add_argument("--name", default="", help="what it is for")
    for place in ("site", "line", "station"):
        create.add_argument(
            f"--{place}", default="", help=f"where the agent stands; for other roles: the only {place} that may be read"
        )
    create.add_argument("--expires", type=_duration, metavar="TIME", help="as in 12h, 30d, 1y (default: never)")
    create.add_argument("--json", action="store_true", help="for scripts")


def _duration(text: str) -> timedelta:
    seconds = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800, "y": 31_536_000}
    match = re.fullmatch(r"([1-9][0-9]{0,5})([mhdwy])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write a number and one of m, h, d, w, y, as in 30d")
    return min(timedelta(seconds=int(match[1]) * seconds[match[2]]), timedelta(days=365 * 100))


def _with_store(settings: Settings, work: "Callable[[Plain], Awaitable[T]]") -> T:
    """Run `work` on a connection of its own."""

    async def run() -> T:
        connection = await connect(settings.database.address)
        try:
            with translated():
                return await work(connection)
        finally:
            await connection.close()

    return asyncio.run(run())


def _migrate(settings: Settings, _: argparse.Namespace) -> None:
    ran = asyncio.run(migrate_at(settings.database.address))
    print(*([f"{name}: done" for name in ran] or ["nothing to do: the tables are up to date"]), sep="\n")


def _partition(settings: Settings, _: argparse.Namespace) -> None:
    ahead = settings.store.partitions_ahead_days
    made = _with_store(settings, lambda connection: partitions.ensure(connection, ahead_days=ahead))
    found = _with_store(settings, partitions.look)
    print(f"{len(made)} partitions made; {found.days} days, through {found.through}; {found.stray} rows without one")


def _agents(settings: Settings, options: argparse.Namespace) -> None:
    found = _with_store(settings, lambda connection: agents.everyone(connection, ("", "", "")))
    listed = [agent_out(row) for row in found]
    if options.json:
        print(msgspec.json.encode(listed).decode())
        return
    rows = [("AGENT", "SITE", "LINE", "STATION", "VERSION", "LAST SEEN", "EVENTS", "GAPS")]
    rows += [
        (str(a.agent_id), a.site, a.line, a.station, a.version or "", f"{a.last_seen:%Y-%m-%d %H:%M:%S}Z", str(a.events), str(a.gaps))
        for a in listed
    ]  # fmt: skip
    _table(rows)


def _table(rows: "Sequence[tuple[str, ...]]") -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _create_key(settings: Settings, options: argparse.Namespace) -> None:
    expires = datetime.now(UTC) + options.expires if options.expires else None
    secret, key = _with_store(
        settings,
        lambda connection: keys.create(
            connection,
            role=options.role,
            name=options.name,
            site=options.site,
            line=options.line,
            station=options.station,
            expires=expires,
        ),
    )
    if options.json:
        print(
            msgspec.json.encode(
                {"key": secret, "prefix": key.prefix, "role": key.role, "expires": key.expires}
            ).decode()
        )
        return
    # The key alone on stdout, so that it can go straight into a file.
    print(f"Key {key.prefix} of role {key.role}. It is shown this once:", file=sys.stderr)
    print(secret)


def _list_keys(settings: Settings, options: argparse.Namespace) -> None:
    found = _with_store(settings, keys.everyone)
    if options.json:
        print(msgspec.json.encode(found).decode())
        return
    rows = [("PREFIX", "ROLE", "NAME", "SITE", "LINE", "STATION", "AGENT", "STATE")]
    now = datetime.now(UTC)
    for k in found:
        state = "revoked" if k.revoked else "expired" if k.expires and k.expires <= now else "good"
        rows.append((k.prefix, k.role, k.name, k.site, k.line, k.station, str(k.agent_id or ""), state))
    _table(rows)


def _revoke_key(settings: Settings, options: argparse.Namespace) -> None:
    if not _with_store(settings, lambda connection: keys.revoke(connection, options.prefix)):
        raise Failed(f"there is no key {options.prefix!r}. See: linewarden-collector key list")
    print(f"key {options.prefix} is revoked")


def _serve(settings: Settings, _: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    app = build(settings)
    server = Server(_uvicorn(settings, app), app)
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
        http="httptools",
        ws="websockets-sansio",
        ws_max_size=WS_BYTES_MAX,
        ws_per_message_deflate=False,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
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


class Server(uvicorn.Server):
    """uvicorn, telling systemd when it listens and when it stops; SIGHUP reads the certificate again."""

    def __init__(self, config: uvicorn.Config, app: Litestar) -> None:
        super().__init__(config)
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
