"""Keys and users: /v1/keys, /v1/users. Only for admins, and none of them gives more than they have: a key or user that reaches beyond the
places that the caller may see is neither made nor shown nor changed. A user without places belongs to nobody but an admin of every place.
"""

import secrets
import string
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get, patch, post
from litestar.datastructures import State
from litestar.params import PathParameter
from msgspec import UNSET, Struct, UnsetType

from collector import audit, passwords
from collector.access import Caller
from collector.bodies import moment
from collector.problems import Problem
from collector.sessions import Place, places_of, scope_of
from collector.store import keys, users
from collector.store.events import Scope
from collector.store.keys import Role
from collector.store.users import Origin, Taken, User, UserRole

SCOPES_MAX = 100
NAME_PATTERN = r"^[a-z0-9][a-z0-9._@+-]{0,99}$"
_Text = Annotated[str, msgspec.Meta(max_length=200)]
_Places = Annotated[list[Place], msgspec.Meta(max_length=SCOPES_MAX)]
_Prefix = Annotated[str, PathParameter(max_length=40, description="The part between lw_ and the next _")]
_Name = Annotated[str, PathParameter(max_length=100, description="Name of the user")]


class KeyOut(Struct):
    """A key, without its secret."""

    prefix: str
    role: Role
    name: str
    site: str
    line: str
    station: str
    agent_id: str | None
    created: datetime
    created_by: str
    expires: datetime | None
    revoked: datetime | None
    last_used: datetime | None


class Keys(Struct):
    """All keys that the caller may see, oldest first."""

    keys: list[KeyOut]


class NewKey(Struct, forbid_unknown_fields=True):
    """What a key is to be. `expires`: none means never."""

    role: Role
    name: _Text = ""
    site: _Text = ""
    line: _Text = ""
    station: _Text = ""
    expires: datetime | None = None


class MadeKey(Struct):
    """A new key. `key` is shown this once, and kept nowhere."""

    key: str
    prefix: str
    role: Role
    expires: datetime | None


class UserOut(Struct):
    """A user. `password`, `totp`: whether there is one."""

    name: str
    display: str
    role: UserRole
    origin: Origin
    scopes: list[Place]
    password: bool
    totp: bool
    created: datetime
    disabled: datetime | None
    last_sign_in: datetime | None


class Users(Struct):
    """All users that the caller may see, by name."""

    users: list[UserOut]


class NewUser(Struct, forbid_unknown_fields=True):
    """What a user is to be. `scopes`: any of these may be seen; without any, nothing."""

    name: Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
    role: UserRole
    scopes: _Places
    password: Annotated[str, msgspec.Meta(max_length=passwords.PASSWORD_CHARS_MAX)]
    display: _Text = ""


class UserChange(Struct, forbid_unknown_fields=True):
    """What is to change; what is left out stays. `totp`: false takes the one-time codes away."""

    role: UserRole | UnsetType = UNSET
    scopes: _Places | UnsetType = UNSET
    display: _Text | UnsetType = UNSET
    disabled: bool | UnsetType = UNSET
    password: Annotated[str, msgspec.Meta(max_length=passwords.PASSWORD_CHARS_MAX)] | UnsetType = UNSET
    totp: bool | UnsetType = UNSET


def scope_of_key(key: keys.Key) -> Scope:
    """What a key may see."""
    return ((key.site, key.line, key.station),)


def key_out(key: keys.Key) -> KeyOut:
    """A stored key as it is answered."""
    fields = {name: getattr(key, name) for name in KeyOut.__struct_fields__}
    return KeyOut(**{**fields, "agent_id": str(key.agent_id) if key.agent_id else None})


def user_out(user: User) -> UserOut:
    """A stored user as it is answered."""
    fields = {name: getattr(user, name) for name in UserOut.__struct_fields__ if name != "scopes"}
    return UserOut(scopes=places_of(user.scopes), **fields)


def _stored(*texts: str) -> None:
    if any("\0" in text for text in texts):
        raise Problem(400, "a text has a NUL character, which cannot be stored", code="text")


@get("/v1/keys", opt={"access": "manage"}, tags=["access"], summary="The keys, without their secrets")
async def get_keys(request: Request[Any, Any, Any], state: State) -> Keys:
    """Those that reach no further than the caller."""
    caller: Caller = request.auth
    async with state.database.connection() as store:
        found = await keys.everyone(store)
    return Keys([key_out(key) for key in found if caller.covers(scope_of_key(key))])


@post("/v1/keys", status_code=201, opt={"access": "manage"}, tags=["access"], summary="Make a key")
async def post_key(request: Request[Any, Any, Any], state: State, data: NewKey) -> MadeKey:
    """It is shown in this answer and nowhere else."""
    caller: Caller = request.auth
    caller.must_cover(((data.site, data.line, data.station),))
    _stored(data.name, data.site, data.line, data.station)
    expires = moment("expires", data.expires)
    if expires is not None and expires <= datetime.now(UTC):
        raise Problem(400, "expires lies in the past", code="expires")
    async with state.database.connection() as store, store.transaction():
        secret, key = await keys.create(
            store, role=data.role, name=data.name, site=data.site, line=data.line, station=data.station, expires=expires,
            created_by=caller.name,
        )  # fmt: skip
        await recorded_key(store, caller.who, key)
    return MadeKey(secret, key.prefix, key.role, key.expires)


async def recorded_key(store: Any, who: audit.Who, key: keys.Key) -> None:
    """Record that a key was made."""
    data = {name: getattr(key, name) for name in ("role", "name", "site", "line", "station")}
    data["expires"] = key.expires.isoformat() if key.expires else None
    await audit.record(store, who, "key.created", target=key.prefix, data=data, objects=[("key", key.prefix)])


@delete("/v1/keys/{prefix:str}", status_code=204, opt={"access": "manage"}, tags=["access"], summary="Take a key back")
async def delete_key(request: Request[Any, Any, Any], state: State, prefix: _Prefix) -> None:
    """From the next request on it is refused."""
    caller: Caller = request.auth
    async with state.database.connection() as store, store.transaction():
        found = await keys.by_prefix(store, prefix)
        if found is None or not caller.covers(scope_of_key(found)):
            raise Problem(404, "there is no key of this prefix", code="key")
        await keys.revoke(store, prefix)
        await audit.record(store, caller.who, "key.revoked", target=prefix, objects=[("key", prefix)])


@get("/v1/users", opt={"access": "manage"}, tags=["access"], summary="The users")
async def get_users(request: Request[Any, Any, Any], state: State) -> Users:
    """Those that reach no further than the caller."""
    caller: Caller = request.auth
    async with state.database.connection() as store:
        found = await users.everyone(store)
    return Users([user_out(user) for user in found if caller.covers(user.scopes)])


@post("/v1/users", status_code=201, opt={"access": "manage"}, tags=["access"], summary="Make a user")
async def post_user(request: Request[Any, Any, Any], state: State, data: NewUser) -> UserOut:
    """With a password, to be changed at the first sign-in by POST /v1/session/password."""
    caller: Caller = request.auth
    scope = scope_of(data.scopes)
    caller.must_cover(scope)
    _stored(data.display, *(text for place in scope for text in place))
    if why := await state.hashing.weak(data.password, data.name, data.display):
        raise Problem(400, why, code="weak")
    made = await state.hashing.hash(data.password)
    async with state.database.connection() as store, store.transaction():
        try:
            user = await users.create(
                store, name=data.name, role=data.role, scopes=scope, display=data.display, password=made
            )
        except Taken:
            raise Problem(409, "there is a user of this name", code="taken") from None
        who, objects = caller.who, [("user", str(user.user_id))]
        await audit.record(store, who, "user.created", target=user.name, data=_noted(user), objects=objects)
    return user_out(user)


def _noted(user: User) -> dict[str, Any]:
    return {"role": user.role, "scopes": [list(place) for place in user.scopes], "disabled": user.disabled is not None}


@patch("/v1/users/{name:str}", opt={"access": "manage"}, tags=["access"], summary="Change a user")
async def patch_user(request: Request[Any, Any, Any], state: State, name: _Name, data: UserChange) -> UserOut:
    """Whoever is shut out, or is given another password, is signed out at once; a change of role or scopes ends their streams."""
    caller: Caller = request.auth
    made = None
    if data.password is not UNSET:
        if why := await state.hashing.weak(data.password, name):
            raise Problem(400, why, code="weak")
        made = await state.hashing.hash(data.password)
    async with state.database.connection() as store, store.transaction():
        user = await users.find(store, name) if "\0" not in name else None
        if user is None or not caller.covers(user.scopes):
            raise Problem(404, "there is no user of this name", code="user")
        changed = await _change(store, caller, user, data, made)
        fields = sorted(field for field in data.__struct_fields__ if getattr(data, field) is not UNSET)
        await audit.record(
            store, caller.who, "user.changed", target=name, data={"changed": fields, "before": _noted(user), "after": _noted(changed)},
            objects=[("user", str(user.user_id))],
        )  # fmt: skip
    return user_out(changed)


async def _change(store: Any, caller: Caller, user: User, data: UserChange, password: str | None) -> User:
    if data.scopes is not UNSET:
        scope = scope_of(data.scopes)
        caller.must_cover(scope)
        _stored(*(text for place in scope for text in place))
        await users.set_scopes(store, user.user_id, scope)
    display = user.display if data.display is UNSET else data.display
    _stored(display)
    await users.change(
        store,
        user.user_id,
        role=user.role if data.role is UNSET else data.role,
        display=display,
        disabled=(user.disabled is not None) if data.disabled is UNSET else data.disabled,
    )
    if password is not None and user.origin != "local":
        raise Problem(409, "this user signs in at the provider and has no password here", code="origin")
    if password is not None:
        await users.set_password(store, user.user_id, password)
    if data.totp is False:
        await users.set_totp(store, user.user_id, None)
    changed = await users.find(store, user.name)
    if changed is None:
        raise Problem(404, "there is no user of this name", code="user")
    return changed


def new_password() -> str:
    """A password for somebody who will change it."""
    alphabet = string.ascii_letters + string.digits
    return "-".join("".join(secrets.choice(alphabet) for _ in range(5)) for _ in range(4))


def scopes_of(texts: Sequence[str]) -> Scope:
    """SITE, SITE/LINE or SITE/LINE/STATION as a command is given them; `*` for every place. Raises ValueError."""
    found = []
    for text in texts:
        parts = [] if text == "*" else text.split("/")
        if len(parts) > 3 or (text != "*" and not all(parts)):  # noqa: PLR2004
            raise ValueError(f"{text!r} is no place; write SITE, SITE/LINE, SITE/LINE/STATION, or * for all")
        site, line, station = (*parts, "", "", "")[:3]
        found.append((site, line, station))
    return tuple(dict.fromkeys(found))


ROUTES: list[Any] = [get_keys, post_key, delete_key, get_users, post_user, patch_user]
