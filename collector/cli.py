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

import msgspec
import uvicorn
from litestar import Litestar

from collector.app import build, migrate_at
from collector.config import Settings, SettingsError, load
from collector.notify import notify
from collector.query import agent_out
from collector.store import agents, keys, partitions, rollups
from collector.store.database import StoreMisconfigured, StoreUnavailable, connect, translated

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
    rollup = commands.add_parser("metrics", help="look after the roll-ups").add_subparsers(
        required=True, metavar="ACTION"
    )
    rebuild = add(rollup, "rebuild", _rebuild, "make the roll-ups of a period anew from its events")
    for name, text in (("from", "first hour"), ("to", "end, not included")):
        rebuild.add_argument(f"--{name}", type=_moment, required=True, dest=f"{name}_", metavar="TIME", help=text)
    return parser


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write it as in 2026-01-31T14:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _rebuild(settings: Settings, options: argparse.Namespace) -> None:
    if options.from_ >= options.to_:
        raise Failed("--from has to be before --to")
    events = _with_store(settings, lambda connection: rollups.rebuild(connection, options.from_, options.to_))
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
