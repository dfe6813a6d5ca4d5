"""Commands about who may send: token, agents revoke, agents keys."""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from agent.wire.token import Token as Word
from agent.wire.token import write_token
from collector import audit, enrol
from collector.audit import Who
from collector.cli_store import Add, duration, in_transaction
from collector.config import Settings
from collector.enrol_authority import Authority, NoAuthority
from collector.store import identity

if TYPE_CHECKING:
    from collector.store.database import Plain

DONE, FAILED, WRONG = 0, 1, 2
EXPIRES = timedelta(hours=24)
EXPIRES_MAX = timedelta(days=30)


def register(commands: Any, add: Add, fleet: argparse.ArgumentParser) -> None:
    """Add the commands of this part; `fleet` is the parser of `agents`."""
    actions = commands.add_parser(
        "token", help="tokens that let an agent in, once", description="tokens that let an agent in, once"
    ).add_subparsers(required=True, metavar="ACTION")
    create = add(actions, "create", _create, "make a token; it is shown once. It lets one agent in, at one station")
    for place in ("site", "line", "station"):
        text = "where the agent stands (default with --agent: where it stood before)"
        create.add_argument(f"--{place}", default="", help=text)
    create.add_argument(
        "--expires", type=_duration, default=EXPIRES, metavar="TIME", help="as in 1h, 7d (default: 24h)"
    )
    create.add_argument(
        "--agent", type=UUID, metavar="ID", help="for this agent alone, which may be known here already"
    )
    create.add_argument("--url", help="where the agent reaches the collector (default: identity.url of the settings)")
    create.add_argument("--ca", type=Path, metavar="FILE", help="authority of the collector's certificate, PEM")
    create.add_argument("--json", action="store_true", help="for scripts")
    add(actions, "list", _list, "list the tokens, without their secrets").add_argument(
        "--json", action="store_true", help="for scripts"
    )
    add(actions, "revoke", _revoke_token, "take a token back that was not used").add_argument(
        "prefix", help="its second part, between the first two dots"
    )
    about = fleet.add_subparsers(metavar="ACTION")
    add(about, "revoke", _revoke, "take back all keys of an agent, from its next request on").add_argument(
        "agent", type=UUID, metavar="ID"
    )
    keys = add(about, "keys", _keys, "the keys of an agent, and from when to when each speaks for it")
    keys.add_argument("agent", type=UUID, metavar="ID")
    keys.add_argument("--json", action="store_true", help="for scripts")


def _duration(text: str) -> timedelta:
    expires = duration(text)
    if expires > EXPIRES_MAX:
        raise argparse.ArgumentTypeError(f"{text} is too long: a token that lies about is a door. At most 30d")
    return expires


def _fail(text: str, code: int = FAILED) -> int:
    print(text, file=sys.stderr)
    return code


def _create(settings: Settings, options: argparse.Namespace) -> int:
    url = options.url or settings.identity.url
    if url is not None and (not url.startswith(("https://", "http://")) or not url.isprintable()):
        return _fail(f"--url: {url!r} is no address. Write https://host:port", WRONG)
    file = options.ca or settings.authority_file
    try:
        authority = Authority.read(file) if file is not None else None
    except NoAuthority as error:
        return _fail(f"{error}. Give the authority of the collector's certificate: --ca FILE", WRONG)
    who = Who.command()

    async def work(connection: "Plain") -> tuple[str, identity.Token]:
        made = await identity.create_token(
            connection, site=options.site, line=options.line, station=options.station, agent_id=options.agent,
            expires=options.expires, by=who.name,
        )  # fmt: skip
        place = {"site": options.site, "line": options.line, "station": options.station}
        prefix = made[1].prefix
        await audit.record(connection, who, "token.create", target=prefix, data=place, objects=[("token", prefix)])
        return made

    secret, token = in_transaction(settings, work)
    word = write_token(Word(token.prefix, secret.partition(".")[2], authority.fingerprint if authority else None, url))
    if options.json:
        facts = {"token": word, "prefix": token.prefix, "expires": token.expires, "url": url}
        print(msgspec.json.encode({**facts, "authority": authority.fingerprint if authority else None}).decode())
        return DONE
    print(
        f"Token {token.prefix}, good once, until {token.expires:%Y-%m-%d %H:%M}Z. It is shown this once:",
        file=sys.stderr,
    )
    if authority is None:
        print(
            "It names no authority: enrol over https:// with --ca FILE, or on this computer over http://",
            file=sys.stderr,
        )
    # The token alone on stdout, so that it can go straight into a file.
    print(word)
    return DONE


def _state(token: identity.Token, now: datetime) -> str:
    if token.used:
        return "used"
    if token.revoked:
        return "revoked"
    return "expired" if token.expires <= now else "good"


def _list(settings: Settings, options: argparse.Namespace) -> int:
    found = in_transaction(settings, identity.tokens)
    if options.json:
        print(msgspec.json.encode(found).decode())
        return DONE
    now = datetime.now(UTC)
    rows = [("TOKEN", "SITE", "LINE", "STATION", "STATE", "EXPIRES", "AGENT")]
    for t in found:
        agent = str(t.used_agent or t.agent_id or "")
        rows.append((t.prefix, t.site, t.line, t.station, _state(t, now), _time(t.expires), agent))
    _table(rows)
    return DONE


def _time(moment: datetime | None) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z" if moment else ""


def _table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _revoke_token(settings: Settings, options: argparse.Namespace) -> int:
    async def work(connection: "Plain") -> identity.Token | None:
        token = await identity.revoke_token(connection, options.prefix)
        if token is not None:
            objects = [("token", token.prefix)]
            await audit.record(connection, Who.command(), "token.revoke", target=token.prefix, objects=objects)
        return token

    token = in_transaction(settings, work)
    if token is None:
        return _fail(f"there is no token {options.prefix!r}. See: linewarden-collector token list")
    print(f"token {token.prefix} is revoked")
    if token.used_agent is not None:
        print(
            f"it had let in agent {token.used_agent} already. To put that out: linewarden-collector agents revoke {token.used_agent}",
            file=sys.stderr,
        )
    return DONE


def _revoke(settings: Settings, options: argparse.Namespace) -> int:
    count = in_transaction(settings, lambda connection: enrol.revoke(connection, options.agent, Who.command()))
    if count is None:
        return _fail(f"there is no agent {options.agent}. See: linewarden-collector agents")
    print(f"agent {options.agent}: {count} key{'s' * (count != 1)} taken back; its next request is refused")
    return DONE


def _keys(settings: Settings, options: argparse.Namespace) -> int:
    found = in_transaction(settings, lambda connection: identity.keys_of(connection, options.agent))
    if options.json:
        listed = [_key(k) for k in found]
        print(msgspec.json.encode(listed).decode())
        return DONE
    if not found:
        return _fail(f"agent {options.agent} has no key. See: linewarden-collector agents")
    rows = [("KEY", "FROM", "UNTIL", "REVOKED", "FOLLOWS", "LAST USED", "STATE")]
    for k in found:
        state = "good" if k.good else "ended"
        ends = (_time(k.valid_until), _time(k.revoked))
        rows.append((k.key_id, _time(k.valid_from), *ends, k.parent or "", _time(k.last_used), state))
    _table(rows)
    return DONE


def _key(key: identity.AgentKey) -> dict[str, Any]:
    return {
        "key_id": key.key_id, "public_key": key.public_key.hex(), "valid_from": key.valid_from, "valid_until": key.valid_until,
        "revoked": key.revoked, "parent": key.parent, "last_used": key.last_used, "good": key.good,
    }  # fmt: skip
