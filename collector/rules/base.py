"""What rules are told, and what they may answer. A rule is pure: no I/O, no clock, no state; what is remembered is in the database.

Three kinds:

    AgentRule    looks at what is known of an agent: something is so (Finding), is over (OVER), or stays as it is (None)
    EventRule    looks at an event of its types: each may be a Finding
    SpreadRule   says of the events of its types what was seen; a Finding as soon as the same was seen at `at_least` stations
                 within `within_s`, once until it was seen at none for so long
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final, Protocol, runtime_checkable
from uuid import UUID

import asyncpg
from pydantic import BaseModel, ConfigDict, Field

Row = asyncpg.Record


class Section(BaseModel):
    """Settings of a rule. `enabled`: whether it runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True


class SpreadSection(Section):
    """`at_least`: so many stations; `within_s`: in so much time."""

    at_least: Annotated[int, Field(ge=2, le=10_000)] = 3
    within_s: Annotated[int, Field(ge=10, le=604_800)] = 3_600


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """What is known of an agent. `status`: what it said of itself; `state`, `since`, `stopped`: see collector/fleet.py."""

    agent_id: UUID
    place_id: int
    site: str
    line: str
    station: str
    last_seen: datetime
    last_event: datetime | None
    clock_offset_us: int | None
    status: Mapping[str, Any]
    state: str
    since: datetime
    stopped: datetime | None
    revoked: bool

    @property
    def name(self) -> str:
        """For sentences."""
        return "/".join(filter(None, (self.site, self.line, self.station))) or str(self.agent_id)

    def said(self, *path: str) -> Any:
        """A number that the agent said of itself; None where it did not."""
        value: Any = self.status
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a rule found. `key`: on whom or what; while it lasts, the same key says nothing new."""

    rule: str
    key: str
    type: str
    severity: int
    message: str
    place_id: int | None = None
    target: str | None = None
    src_ip: str | None = None
    correlation_id: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


def agent_type(rule: str) -> str:
    """The type of what a rule about agents finds, and of its end."""
    return f"alert.agent.{rule}"


class _Over:
    """It is no longer so."""


OVER: Final = _Over()


@runtime_checkable
class AgentRule(Protocol):
    """See the module."""

    name: str

    def judge(self, agent: Agent, now: datetime, *, active: bool) -> "Finding | _Over | None":
        """`active`: whether it was found before and is not over."""
        ...


@runtime_checkable
class EventRule(Protocol):
    """See the module."""

    name: str
    types: tuple[str, ...]

    def see(self, row: Row) -> Finding | None:
        """What is to be said of an event."""
        ...


@dataclass(frozen=True, slots=True)
class Spread:
    """Where a key was seen: members with the identity and correlation id of the last event at each."""

    key: str
    members: Sequence[str]
    places: Sequence[tuple[str, str, str]]
    events: Sequence[str]
    correlations: Sequence[str]


@runtime_checkable
class SpreadRule(Protocol):
    """See the module."""

    name: str
    types: tuple[str, ...]
    at_least: int
    within_s: int
    key: str
    """What was seen, in SQL over the event `e` and its place `p`, a constant of ours; NULL: nothing that counts. Refused sign-ins come
    by the million: they are counted where they are."""

    def found(self, spread: Spread) -> Finding:
        """What is to be said when it was seen at enough stations."""
        ...


def stations(spread: Spread) -> list[str]:
    """Names of the places, sorted, at most twenty."""
    return sorted({"/".join(filter(None, place)) or "a station without a name" for place in spread.places})[:20]
