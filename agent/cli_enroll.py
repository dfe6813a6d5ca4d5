"""`enroll` and `rotate-key`."""

import argparse
import asyncio
import sys
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from agent import identity
from agent.cli import DONE, SERVICE, Failed
from agent.component import ConfigError, NotConnected
from agent.config import DEFAULT_FILE, AgentConfig, load
from agent.daemon import tls_of
from agent.enrolment import Refused, enrol, rotate
from agent.identity import IdentityConfig, Keyring, Saved
from agent.service_account import make_state_folder
from agent.sync import is_loopback
from agent.wire.token import MalformedToken, Token, read_token

TOKEN_CHARS_MAX = 4_096


def enroll(options: argparse.Namespace) -> int:
    """Become an agent of a collector."""
    token = _token(options)
    url = (options.collector or token.url or "").rstrip("/")
    if not url:
        raise ConfigError(
            "the token does not say where the collector is", remedy="Give it: --collector https://host:port"
        )
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable():
        raise ConfigError(f"{url!r} is no collector's address", remedy="Write --collector https://host:port")
    if parts.scheme == "http" and not options.allow_plaintext and not is_loopback(parts.hostname):
        raise ConfigError(
            f"{url} is another computer without TLS: whoever listens would get the token",
            remedy="Use https://, or --allow-plaintext.",
        )
    state_dir, config, configured = asyncio.run(_settings(options.config))
    make_state_folder(SERVICE, options.config, state_dir)
    agent_id = identity.load_or_create(state_dir)
    keyring = Keyring(state_dir, config)
    before = keyring.saved()
    try:
        saved = asyncio.run(enrol(keyring, agent_id, url, token, ca=options.ca, fresh=options.new_key))
    except (Refused, NotConnected) as error:
        raise Failed(str(error)) from None
    if configured is not None and configured.rstrip("/") != url:
        print(f"note: {options.config} sends to {configured}; set [sync] url = {url!r}", file=sys.stderr)
    if before is not None and _place(before) and not _place(saved):
        note = f"note: {url} knows no place for this agent, which stood at {_place(before)}; to give it one: token create --agent"
        print(f"{note} {agent_id} --site SITE --line LINE --station STATION, then enroll again", file=sys.stderr)
    _report(saved, options, "is enrolled")
    return DONE


def rotate_key(options: argparse.Namespace) -> int:
    """Change the agent's key."""

    async def work() -> Saved:
        settings = await load(options.config)
        keyring = Keyring(Path(settings.agent.state_dir), settings.identity)
        return await rotate(keyring, tls_of(settings.sync, keyring))

    try:
        saved = asyncio.run(work())
    except (Refused, NotConnected) as error:
        raise Failed(str(error)) from None
    _report(saved, options, "has a new key")
    return DONE


async def _settings(path: Path) -> tuple[Path, IdentityConfig, str | None]:
    """Where the state is, the key's settings, and where the agent sends to. Without a file at the usual place: what is usual."""
    if path == DEFAULT_FILE and not await asyncio.to_thread(path.exists):
        return Path(AgentConfig().state_dir), IdentityConfig(), None
    settings = await load(path)
    return Path(settings.agent.state_dir), settings.identity, settings.sync.url


def _token(options: argparse.Namespace) -> Token:
    if options.token_file is not None:
        try:
            with options.token_file.open(encoding="ascii", errors="replace") as file:
                text = file.read(TOKEN_CHARS_MAX)
        except OSError as error:
            raise ConfigError(
                f"the token file {options.token_file} cannot be read: {error.strerror}",
                remedy="Save in it what `linewarden-collector token create` printed at the centre",
            ) from None
    elif options.token == "-":  # noqa: S105 - the word for standard input
        text = sys.stdin.read(TOKEN_CHARS_MAX)
    else:
        text = options.token
    try:
        return read_token(text)
    except MalformedToken as error:
        raise ConfigError(str(error), remedy="Make one: linewarden-collector token create") from None


def _report(saved: Saved, options: argparse.Namespace, text: str) -> None:
    if options.json:
        print(msgspec.json.encode(saved).decode())
        return
    print(f"agent {saved.agent_id} ({_place(saved) or 'no place'}) {text}, key {saved.key_id}")


def _place(saved: Saved) -> str:
    return " / ".join(filter(None, (saved.site, saved.line, saved.station)))
