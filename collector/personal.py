"""Personal data in answers: what stands for it, who may see it as it is, and the record of that.

Nobody is shown a person by chance. `actor`, `raw` and the personal keys of an event are answered as pseudonyms: always the same for one
person, so that their doings can be followed, and none that can be turned back. Whoever may (not a viewer) asks with `personal=true`, and
that they read is recorded first. The same holds for finding: without `personal=true` an actor is named by the pseudonym, so that
no question tells whom it stands for.
"""

from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl, urlencode

import msgspec
from litestar.connection import ASGIConnection
from litestar.datastructures import State

from collector import audit
from collector.problems import Problem
from collector.store.events import Pseudonyms
from collector.vault import PSEUDONYM_CHARS, PSEUDONYM_PREFIX, Vault

if TYPE_CHECKING:
    from collector.access import Caller
    from collector.store.database import Database

DEPTH_MAX = 20
"""Personal values that lie deeper are left out."""


class Shown(Protocol):
    """What of an answered event is personal."""

    actor: str | None
    raw: str | None
    personal: Any


def hidden(value: Any, vault: Vault, depth: int = 0) -> Any:
    """A personal value with all that is in it replaced; keys stay, they are names of fields."""
    if isinstance(value, dict):
        return {} if depth >= DEPTH_MAX else {key: hidden(item, vault, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [] if depth >= DEPTH_MAX else [hidden(item, vault, depth + 1) for item in value]
    if value is None or value == "":
        return value
    return vault.pseudonym(value if isinstance(value, str) else msgspec.json.encode(value).decode())


def hide(event: Shown, vault: Vault) -> None:
    """Put pseudonyms in the place of what is personal. A raw line cannot be kept in part, and goes."""
    if event.actor is not None:
        event.actor = vault.pseudonym(event.actor)
    event.raw = None
    if event.personal:
        try:
            found = msgspec.json.decode(event.personal) if isinstance(event.personal, msgspec.Raw) else event.personal
            event.personal = hidden(found, vault)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            event.personal = {}


def has_personal(event: Shown) -> bool:
    """Whether there is anything personal in it."""
    return (
        event.actor is not None or event.raw is not None or bool(event.personal and bytes_of(event.personal) != b"{}")
    )


def bytes_of(value: Any) -> bytes:
    """JSON of what is personal."""
    return bytes(value) if isinstance(value, msgspec.Raw) else msgspec.json.encode(value)


def actors_of(values: tuple[str, ...], vault: Vault, *, personal: bool) -> dict[str, Any]:
    """The fields of a Filter that mean actors as a request names them. Raises Problem."""
    if not values or personal:
        return {"actors": values}
    if wrong := [value for value in values if not value.startswith(PSEUDONYM_PREFIX)]:
        raise Problem(
            403,
            f"actor: {len(wrong)} of the names is no pseudonym ({PSEUDONYM_PREFIX}…). Names are found with personal=true, by those who may",
            code="personal",
        )
    return {"pseudonyms": Pseudonyms(values, PSEUDONYM_PREFIX, PSEUDONYM_CHARS, *vault.pads)}


async def read(connection: ASGIConnection[Any, Any, Any, Any], state: State, count: int, **more: Any) -> None:
    """Record that personal data of so many events is read with this request: before it is answered."""
    caller: Caller = connection.auth
    database: Database = state.database
    async with database.connection() as store:
        data = {"query": question(connection, state.vault), "events": count, **more}
        await audit.record(store, caller.who, "personal.read", target=connection.scope["path"], data=data)


def question(connection: ASGIConnection[Any, Any, Any, Any], vault: Vault) -> str:
    """The query of a request for the audit log: people by their pseudonyms, since what is recorded cannot be erased."""
    pairs = connection.query_params.multi_items()
    return urlencode([(key, vault.pseudonym(value) if key == "actor" else value) for key, value in pairs])[:2_000]


def without_people(query: str) -> str:
    """The query of a command for the audit log: that an actor was named, and not who."""
    pairs = parse_qsl(query, keep_blank_values=True)
    return urlencode([(key, "(a person)" if key == "actor" else value) for key, value in pairs])[:2_000]
