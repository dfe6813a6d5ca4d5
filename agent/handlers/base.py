"""What the kinds of handlers have in common: their configuration, the table of keys, and the alert.

Time. A handler has no clock. Windows are judged by the time of the events, per key, so that sources whose clocks differ, and a log
that is read days late, are judged like any other. What `now_us` (handed in) decides is only what may be forgotten: a key that no event
has touched for its idle time. The same events with the same `now_us` give the same alerts, bit for bit.

Late data. An event that is older than the newest of its key by more than the window and `late_s` is counted as late and not judged.

The bound. `Table` holds at most `max_keys` keys. When it is full a flood of new keys must not push out what matters:

* where keys make progress towards an alert (count, sequence), the key with the least progress goes first, the oldest of these
  first. A key that was seen twice is never given up for one that was seen once.
* where keys hold what was learned (rate, drift, novelty, absence, …), nobody is pushed out: the newcomer is not followed.

Either way `evicted` or `refused` counts it, and one `alert.handler.flooded` an hour says so.

Episodes. `Episodic` is what all kinds but `count` (which has its own, older form of the same) share: the first bad event of a key raises,
what follows is counted under the same correlation id and raised again only where it escalates, until the key has been well (or
quiet) for `cool_down_s`. A reading that flutters about a limit is one episode.

Personal data. A message names addresses, machines and numbers, never a user; the values of personal `by` fields travel in `actor`
or in the personal keys of `data`. State is local to the station and goes with the buffer.
"""

import hashlib
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import msgspec
from annotated_types import Ge, Le
from msgspec import Struct

from agent.handlers import where
from agent.wire.event import Event
from agent.wire.taxonomy import PERSONAL_KEYS, TYPE_LENGTH_MAX, TYPE_PATTERN, is_collectors, lookup

SECOND_US = 1_000_000
KEY_CHARS_MAX = 256
"""A longer value of a `by` field is cut and ends in a hash of the whole."""
LEVELS = 4
"""Progress towards an alert is told apart up to this; what has come further is kept alike."""
_FLOOD_KEY = "!flood"
FLOOD_SAID_EVERY_US = 3_600 * SECOND_US
BY_MAX = 8
PEAKS_MAX = 10_000
"""So many keys of a handler are told by `--explain`; those that came first."""

Severity = Literal["informational", "low", "medium", "high", "critical", "fatal", 1, 2, 3, 4, 5, 6]
SEVERITIES: dict[str | int, int] = {
    "informational": 1, "low": 2, "medium": 3, "high": 4, "critical": 5, "fatal": 6, **{n: n for n in range(1, 7)},
}  # fmt: skip

_PLACEHOLDER = re.compile(r"\{([a-z_.]*)\}")
_ALWAYS_KNOWN = frozenset(
    {"count", "limit", "window", "value", "unit", "key", "source", "src_ip", "target", "type", "host"}
)
_PERSONAL_FIELDS = frozenset({"actor", "raw", "line"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigRaises:
    """The alert that a handler raises.

    `message` may hold {count} {limit} {window} {value} {unit} {key} {source} {src_ip} {target} {type} {host}; without one, the
    handler finds its own words. `details` stand in the data of every alert, such as the id of the rule that it comes from.
    """

    type: str
    severity: Severity = "high"
    technique: str | None = None
    message: str | None = None
    details: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (
            not self.type.startswith("alert.")
            or len(self.type) > TYPE_LENGTH_MAX
            or not TYPE_PATTERN.fullmatch(self.type)
        ):
            raise ValueError(f"raises.type {self.type!r} is no alert type: write it as alert.name, in lower case")
        if is_collectors(self.type):
            raise ValueError(
                f"raises.type {self.type!r} is reserved for the collector: choose another name below alert."
            )
        unknown = set(_PLACEHOLDER.findall(self.message or "")) - _ALWAYS_KNOWN
        if unknown:
            raise ValueError(
                f"raises.message knows no {{{min(unknown)}}}: write {', '.join(sorted(_ALWAYS_KNOWN))}. No user is named in a message"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigEscalation:
    """A further alert when what began goes on: from `at` events, with this severity."""

    at: Annotated[int, Ge(1)]
    severity: Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigCommon:
    """What every kind takes. `why` and `tuning` say what the handler is for and which value to turn."""

    raises: ConfigRaises
    where: str = ""
    by: tuple[str, ...] = ()
    max_keys: Annotated[int, Ge(1), Le(10_000_000)] = 20_000
    enabled: bool = True
    actions: tuple[str, ...] = ()
    why: str = ""
    tuning: str = ""

    def __post_init__(self) -> None:
        check_common(self)


def check_common(config: ConfigCommon) -> None:
    """Raise ValueError where `where` or `by` cannot be read."""
    try:
        where.parse(config.where)
    except where.WhereError as error:
        raise ValueError(f"where: {error}") from None
    if len(config.by) > BY_MAX:
        raise ValueError(f"by names {len(config.by)} fields, {BY_MAX} are enough for any key")
    for name in config.by:
        check_field(name, "by")


def check_field(name: str, key: str) -> None:
    """Raise ValueError, naming the configuration's key, where there is no such field."""
    try:
        where.field(name)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


@dataclass(slots=True)
class Stats:
    """What a handler counts of itself."""

    matched: int = 0
    late: int = 0
    alerts: int = 0
    suppressed: int = 0
    evicted: int = 0
    refused: int = 0


class Cause(NamedTuple):
    """Enough of an event to find it again."""

    time: int
    source: str
    type: str
    correlation: str | None

    def to_data(self) -> dict[str, Any]:
        """As an alert's data shows it."""
        shown: dict[str, Any] = {"time": self.time, "source": self.source, "type": self.type}
        if self.correlation:
            shown["correlation_id"] = self.correlation
        return shown


def cause(event: Event) -> Cause:
    """The identity of an event, as far as it has one before it is stored."""
    return Cause(event.time, event.source, event.type, event.correlation_id)


Value = str | int | float | None
Key = Value | tuple[Value, ...]


def key_value(value: Any) -> Value:
    """A field's value as part of a key: short, hashable, storable, and true told apart from 1."""
    kind = type(value)
    if kind is str:
        return _text_key(value)
    if kind is bool:
        return "true" if value else "false"
    if value is None or (kind is int and -(2**63) <= value < 2**63) or (kind is float and value - value == 0.0):
        return value  # type: ignore[no-any-return]
    try:
        text = (
            msgspec.json.encode(value).decode()
            if kind in (list, dict)
            else repr(value)
            if kind is float
            else hex(value)
        )
    except (UnicodeEncodeError, OverflowError, TypeError):
        text = repr(value)
    return _text_key(text)


def _text_key(text: str) -> str:
    if not text.isascii():
        text = storable(text)
    if len(text) <= KEY_CHARS_MAX:
        return text
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return f"{text[: KEY_CHARS_MAX - 20]}…{digest}"


def storable(text: str) -> str:
    """The text, with what is no Unicode (lone surrogates, as a log in another encoding may hold) written out."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace").decode()
    return text


def key_of(by: tuple[str, ...]) -> Callable[[Event], Key]:
    """What reads the key of an event. Without `by` there is one key for all."""
    gets = tuple(where.field(name) for name in by)
    if not gets:
        return lambda _: ()
    if len(gets) == 1:
        get = gets[0]

        def one(event: Event) -> Key:
            value = get(event)
            return value if type(value) is str and len(value) <= KEY_CHARS_MAX and value.isascii() else key_value(value)

        return one
    if len(gets) == 2:  # noqa: PLR2004  (source and target, as a signal has them)
        left, right = gets

        def two(event: Event) -> Key:
            one_, other = left(event), right(event)
            if (
                type(one_) is str
                and type(other) is str
                and one_.isascii()
                and other.isascii()
                and len(one_) <= KEY_CHARS_MAX >= len(other)
            ):
                return one_, other
            return key_value(one_), key_value(other)

        return two
    return lambda event: tuple([key_value(get(event)) for get in gets])


def is_personal(name: str) -> bool:
    """Whether a `by` field holds personal data."""
    return name in _PERSONAL_FIELDS or (name.startswith("data.") and name.split(".")[1] in PERSONAL_KEYS)


class Group(Struct, array_like=True, gc=False):
    """What a handler keeps of one key.

    touched   now_us of its last event
    entered   now_us of its entry into its level
    serial    order of entry; level: how far it has come towards an alert, from 0
    """

    touched: int = 0
    entered: int = 0
    serial: int = 0
    level: int = 0


G = TypeVar("G", bound=Group)
_pack = msgspec.msgpack.Encoder().encode


def _encode(group: Group) -> bytes:
    try:
        return _pack(group)
    except UnicodeEncodeError:
        return _pack(_all_storable(msgspec.to_builtins(group, builtin_types=(bytes,))))


def _all_storable(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list | tuple):
        return [_all_storable(one) for one in value]
    return {key: _all_storable(one) for key, one in value.items()} if isinstance(value, dict) else value


_TEXT_KEY = "s"
_JSON_KEY = "j"


def encode_key(key: Key) -> str:
    """The key as text, for the buffer."""
    return _TEXT_KEY + key if type(key) is str else _JSON_KEY + msgspec.json.encode(key).decode()


def decode_key(text: str) -> Key:
    """The inverse of encode_key."""
    if text.startswith(_TEXT_KEY):
        return text[1:]
    value = msgspec.json.decode(text[1:])
    return tuple(value) if isinstance(value, list) else value


class Table(Generic[G]):
    """Keys and their groups: bounded, and asked for changes only.

    Forgetting and giving up happen while a key is added and nowhere else, a few at a time, so that they depend on the order of the
    events and not on how these were cut into batches.
    """

    __slots__ = (
        "_decode",
        "_dirty",
        "_idle_us",
        "_levels",
        "_max_keys",
        "_protect",
        "_serial",
        "_stats",
        "flooded_since",
        "get",
        "groups",
        "touch",
    )

    def __init__(self, group: type[G], max_keys: int, idle_us: int, stats: Stats, *, protect: bool) -> None:
        self.groups: dict[Key, G] = {}
        self.get = self.groups.get
        self.flooded_since: int | None = None
        self._decode = msgspec.msgpack.Decoder(group).decode
        self._max_keys = max_keys
        self._idle_us = idle_us
        self._stats = stats
        self._protect = protect
        self._serial = 0
        self._dirty: set[Key] = set()
        self.touch = self._dirty.add
        """The group of the key changed."""
        self._levels: tuple[deque[tuple[Key, int]], ...] = tuple(deque() for _ in range(LEVELS))

    def __len__(self) -> int:
        return len(self.groups)

    def add(self, key: Key, group: G, now_us: int) -> bool:
        """Take up a new key. False where the table is full of what may not be given up for it."""
        self._sweep(now_us)
        if len(self.groups) >= self._max_keys and not self._make_room(now_us):
            self._stats.refused += 1
            self.flooded_since = self.flooded_since or now_us
            return False
        group.touched = now_us
        self.groups[key] = group
        self._enter(key, group, 0)
        return True

    def advance(self, key: Key, group: G, progress: int) -> None:
        """The key has come as far as `progress` (1 for its first event)."""
        level = min(progress, LEVELS) - 1
        if level > group.level:
            self._enter(key, group, level)

    def drop(self, key: Key) -> None:
        """Forget a key."""
        del self.groups[key]
        self._dirty.add(key)

    def _enter(self, key: Key, group: G, level: int) -> None:
        self._serial += 1
        group.serial, group.level, group.entered = self._serial, level, group.touched
        self._levels[level].append((key, self._serial))
        self._dirty.add(key)

    def _front(self, level: deque[tuple[Key, int]]) -> tuple[Key, G] | None:
        """The oldest key of a level; entries of keys that left it are passed over."""
        while level:
            key, serial = level[0]
            group = self.groups.get(key)
            if group is not None and group.serial == serial:
                return key, group
            level.popleft()
        return None

    def _sweep(self, now_us: int) -> None:
        """Look at the two oldest keys of each level, so that idle ones leave at least as fast as new ones come.

        One that was touched after its entry goes to the end; behind one that was not, nobody can be idle for longer.
        """
        for number_, level in enumerate(self._levels):
            for _ in range(2):
                found = self._front(level)
                if found is None:
                    break
                key, group = found
                if now_us - group.touched > self._idle_us:
                    self.drop(key)
                elif group.touched > group.entered:
                    level.popleft()
                    self._enter(key, group, number_)
                else:
                    break

    def _make_room(self, now_us: int) -> bool:
        if self._protect:
            return False
        for level in self._levels:
            found = self._front(level)
            if found is not None:
                level.popleft()
                self.drop(found[0])
                self._stats.evicted += 1
                self.flooded_since = self.flooded_since or now_us
                return True
        return False

    def changes(self) -> dict[str, bytes | None]:
        """What changed since the last call."""
        if not self._dirty:
            return {}
        groups = self.groups
        changed: dict[str, bytes | None] = {}
        for key in self._dirty:
            group = groups.get(key)
            changed[encode_key(key)] = None if group is None else _encode(group)
        self._dirty.clear()
        return changed

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Take up what `changes` gave, all of it. Keys beyond max_keys (it was lowered) are left out, the youngest first."""
        decoded = [(decode_key(text), self._decode(value)) for text, value in state.items()]
        decoded.sort(key=lambda pair: (-pair[1].level, pair[1].serial))
        for key, _ in decoded[self._max_keys :]:
            self._dirty.add(key)
        for key, group in sorted(decoded[: self._max_keys], key=lambda pair: pair[1].serial):
            self.groups[key] = group
            self._levels[group.level].append((key, group.serial))
            self._serial = max(self._serial, group.serial)


@dataclass(slots=True)
class Raiser:
    """Writes the alerts of one handler."""

    name: str
    kind: str
    config: ConfigCommon
    stats: Stats = field(default_factory=Stats)

    def alert(
        self,
        *,
        key: Key,
        first: Cause,
        last: Event,
        now_us: int,
        sentence: str,
        correlation: str | None = None,
        severity: int | None = None,
        **details: Any,
    ) -> Event:
        """An alert. `details` (count, limit, window_s, value, …) stand in its data; those that are None are left out."""
        self.stats.alerts += 1
        raises = self.config.raises
        named, personal, actor = self.names(key)
        correlation = correlation or self.correlation(key, first, last)
        data: dict[str, Any] = {"handler": self.name, "kind": self.kind, **raises.details}
        data.update((name, value) for name, value in details.items() if value is not None)
        if named:
            data["key"] = named
        data.update(personal)
        technique = raises.technique or lookup(raises.type).technique
        if technique:
            data["technique"] = technique
        data["first"], data["last"] = first.to_data(), cause(last).to_data()
        causes = [one for one in dict.fromkeys((first.correlation, last.correlation_id)) if one and one != correlation]
        if causes:
            data["causes"] = causes
        by = self.config.by
        return Event(
            last.time,
            now_us,
            raises.type,
            last.source,
            severity or SEVERITIES[raises.severity],
            src_ip=last.src_ip if "src_ip" in by or not by else None,
            target=last.target if "target" in by or not by else None,
            message=self.message(sentence, data, last),
            correlation_id=correlation,
            actor=actor,
            data=data,
        )

    def names(self, key: Key) -> tuple[dict[str, Value], dict[str, Value], str | None]:
        """The key by field: what may stand in the core, what is personal, and the actor."""
        by = self.config.by
        values = key if isinstance(key, tuple) else (key,)
        named: dict[str, Value] = {}
        personal: dict[str, Value] = {}
        actor: str | None = None
        for name, value in zip(by, values, strict=False):
            if name == "actor":
                actor = None if value is None else str(value)
            elif not is_personal(name):
                named[name] = value
            elif name.startswith("data.") and value is not None:
                personal[name.split(".")[1]] = value
        return named, personal, actor

    def correlation(self, key: Key, first: Cause, last: Event | None = None) -> str:
        """That of the causes where they share one, else made of handler, key and first event. A user's name is no part of it."""
        if first.correlation and last is not None and first.correlation == last.correlation_id:
            return first.correlation
        named, _, _ = self.names(key)
        found_in = (storable(first.source), storable(first.type))
        text = msgspec.json.encode([self.name, list(named.items()), first.time, *found_in])
        return hashlib.blake2b(text, digest_size=16).hexdigest()

    def message(self, sentence: str, data: Mapping[str, Any], last: Event) -> str:
        """The sentence of the configuration, filled in, or that of the handler."""
        template = self.config.raises.message
        if template is None:
            return sentence
        window_s = data.get("window_s")
        known: dict[str, Any] = {
            "count": data.get("count"), "limit": data.get("limit"), "window": None if window_s is None else duration(window_s),
            "value": data.get("value"), "unit": data.get("unit"), "key": said(data.get("key", {})), "source": last.source,
            "src_ip": last.src_ip or "an unknown address", "target": last.target, "type": last.type, "host": last.data.get("host"),
        }  # fmt: skip
        return _PLACEHOLDER.sub(lambda match: number(known[match[1]]), template)[:2_000]


class Keyed(Generic[G]):
    """The loop that all kinds share: which events, whose key, and then `see`, which is the kind's own.

    `tags`: events of this batch and the correlation id of the alert they caused; the engine writes it into those that have none,
    after all handlers have seen them, so that what one handler finds never depends on another.
    `peaks`: None, or (for `linewarden-agent try --explain`) how near to an alert each key came.
    """

    kind: ClassVar[str]
    Config: ClassVar[type]
    TAGGING_SCANS_MAX: ClassVar[int] = 16
    """So many alerts of one batch look for their earlier causes in it; the others tag their last event only."""

    def __init__(self, name: str, config: ConfigCommon, group: type[G], *, idle_us: int, protect: bool) -> None:
        self.name = name
        self.common = config
        self.stats = Stats()
        self.where = where.Where(config.where)
        self.table: Table[G] = Table(group, config.max_keys, idle_us, self.stats, protect=protect)
        self.raiser = Raiser(name, self.kind, config, self.stats)
        self.tags: list[tuple[Event, str]] = []
        self.peaks: dict[Key, Peak] | None = None
        self._key = key_of(config.by)
        self._protect = protect
        self._flood_said_us = -FLOOD_SAID_EVERY_US
        self._flood_changed = False
        self._batch: Sequence[Event] = ()
        self._scans = 0

    def can_match(self, type_: str) -> bool:
        """Whether the handler wants to see events of this type."""
        return self.where.can_match(type_)

    def needs(self, type_: str) -> where.Needs:
        """What an event of this type has in its data if the handler wants to see it; empty: perhaps nothing."""
        return self.where.needs(type_)

    def reads_lines(self) -> bool:
        """Whether the handler searches the original line of an event."""
        return self.where.reads("raw", "line") or not {"raw", "line"}.isdisjoint(self.common.by)

    def handle(self, events: Sequence[Event], now_us: int) -> list[Event]:
        """See component.Handler."""
        alerts: list[Event] = []
        known, learn, key_of_, see = self.where.tests.get, self.where.learn, self._key, self.see
        always = where.always
        self._batch, self._scans = events, 0
        matched = 0
        for event in events:
            test = known(event.type) or learn(event.type)
            if test is always or test(event):
                matched += 1
                see(event, key_of_(event), now_us, alerts)
        self.stats.matched += matched
        self.pass_time(now_us, alerts)
        if self.table.flooded_since is not None:
            self._say_flooded(now_us, alerts)
        return alerts

    def see(self, event: Event, key: Key, now_us: int, alerts: list[Event]) -> None:
        """Judge one matching event."""
        raise NotImplementedError

    def pass_time(self, now_us: int, alerts: list[Event]) -> None:
        """Judge what the passing of time alone brings. Most kinds need nothing of it."""

    def changes(self) -> dict[str, bytes | None]:
        """See component.Handler."""
        changed = self.table.changes()
        if self._flood_changed:
            self._flood_changed = False
            changed[_FLOOD_KEY] = str(self._flood_said_us).encode()
        return changed

    def restore(self, state: Mapping[str, bytes]) -> None:
        """See component.Handler."""
        self._flood_said_us = int(state.get(_FLOOD_KEY, self._flood_said_us))
        self.table.restore({key: value for key, value in state.items() if not key.startswith("!")})

    def fire(
        self, alerts: list[Event], *, key: Key, last: Event, now_us: int, span_us: int = 0, **details: Any
    ) -> Event:
        """Raise an alert, and tag its causes in this batch: those of its key not older than span_us."""
        alert = self.raiser.alert(key=key, last=last, now_us=now_us, **details)
        alerts.append(alert)
        correlation = alert.correlation_id or ""
        if span_us and self._scans < self.TAGGING_SCANS_MAX:
            self._scans += 1
            self._tag_batch(key, last, span_us, correlation)
        self.tags.append((last, correlation))
        return alert

    def _tag_batch(self, key: Key, last: Event, span_us: int, correlation: str) -> None:
        for event in self._batch:
            if event is last:
                return
            if (
                event.correlation_id is None
                and last.time - event.time <= span_us
                and self.where(event)
                and self._key(event) == key
            ):
                self.tags.append((event, correlation))

    def near(self, key: Key, reached: float, limit: float, event: Event) -> None:
        """Remember how near the key came to an alert, or how far beyond."""
        if self.peaks is None:
            return
        known = self.peaks.get(key)
        if known is None and len(self.peaks) >= PEAKS_MAX:
            return
        if known is None or reached > known.reached:
            self.peaks[key] = Peak(reached, limit, cause(event))

    def _say_flooded(self, now_us: int, alerts: list[Event]) -> None:
        self.table.flooded_since = None
        if now_us - self._flood_said_us >= FLOOD_SAID_EVERY_US:
            self._flood_said_us, self._flood_changed = now_us, True
            alerts.append(
                flood_notice(self.name, self.kind, len(self.table), self.stats, now_us, protect=self._protect)
            )


class Episode(Group, array_like=True, gc=False):
    """What an episodic handler keeps of one key.

    newest    time of the newest event
    began     first cause of the episode, None before the first one
    is_open   the key is bad until something shows that it is well
    last_bad  time of the newest bad event; total: bad events of the episode; stage: escalations done; correlation: of its alerts
    """

    newest: int = 0
    began: tuple[int, str, str, str | None] | None = None
    is_open: bool = False
    last_bad: int = 0
    total: int = 0
    stage: int = 0
    correlation: str = ""


E = TypeVar("E", bound=Episode)
Tell = Callable[[], tuple[str, dict[str, Any]]]
"""The sentence of an alert and what stands in its data; called only where one is raised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigEpisodic(ConfigCommon):
    """What the episodic kinds take.

    cool_down_s   a key that is bad again sooner than this after it was last bad goes on with its episode, without an alert
    escalate      further alerts while the same episode goes on, `at` so many bad events
    """

    cool_down_s: Annotated[float, Ge(0), Le(31_622_400)] = 300.0
    escalate: tuple[ConfigEscalation, ...] = ()

    def __post_init__(self) -> None:
        check_episodic(self)


def check_episodic(config: ConfigEpisodic) -> None:
    """Raise ValueError where what is common cannot be."""
    check_common(config)
    if any(step.at <= 1 for step in config.escalate):
        raise ValueError("escalate.at must lie above 1: the first alert comes there")


class Episodic(Keyed[E]):
    """A handler that judges each event (bad, or well) and raises one alert an episode."""

    def __init__(self, name: str, config: ConfigEpisodic, group: type[E], *, idle_us: int, protect: bool) -> None:
        self._cool_us = seconds_us(config.cool_down_s)
        self._steps = sorted(config.escalate, key=lambda step: step.at)
        self._group = group
        super().__init__(name, config, group, idle_us=max(idle_us, self._cool_us), protect=protect)

    def follow(self, event: Event, key: Key, now_us: int, late_us: int) -> E | None:
        """What is kept of the key, with the event noted. None where it comes too late, or the table is full."""
        group = self.table.get(key)
        if group is None:
            group = self._group(newest=event.time)
            return group if self.table.add(key, group, now_us) else None
        if event.time < group.newest - late_us:
            self.stats.late += 1
            return None
        group.newest = max(group.newest, event.time)
        group.touched = now_us
        self.table.touch(key)
        return group

    def goes_on(self, group: Episode, time_us: int) -> bool:
        """Whether something bad at this time belongs to the episode that is there."""
        return group.began is not None and (group.is_open or time_us - group.last_bad < self._cool_us)

    def bad(
        self,
        event: Event,
        key: Key,
        group: Episode,
        now_us: int,
        alerts: list[Event],
        tell: Tell,
        *,
        stays: bool,
        first: Cause | None = None,
        span_us: int = 0,
    ) -> None:
        """The event is bad: begin an episode, or go on with it. `stays`: until `well` says otherwise."""
        if not self.goes_on(group, event.time):
            begin = first or cause(event)
            group.began, group.total, group.stage, group.correlation = begin, 1, 0, ""
            group.is_open, group.last_bad = stays, event.time
            self._tell(event, key, group, now_us, alerts, tell, span_us, None)
            return
        group.total += 1
        group.is_open, group.last_bad = stays, max(group.last_bad, event.time)
        self.stats.suppressed += 1
        self.tags.append((event, group.correlation))
        if group.stage < len(self._steps) and group.total >= self._steps[group.stage].at:
            severity = SEVERITIES[self._steps[group.stage].severity]
            group.stage += 1
            self._tell(event, key, group, now_us, alerts, tell, 0, severity)

    @staticmethod
    def well(group: Episode) -> None:
        """The key is well (again)."""
        group.is_open = False

    def _tell(
        self,
        event: Event,
        key: Key,
        group: Episode,
        now_us: int,
        alerts: list[Event],
        tell: Tell,
        span_us: int,
        severity: int | None,
    ) -> None:
        sentence, details = tell()
        alert = self.fire(
            alerts,
            key=key,
            first=Cause(*group.began) if group.began else cause(event),
            last=event,
            now_us=now_us,
            span_us=span_us,
            sentence=sentence,
            correlation=group.correlation or None,
            severity=severity,
            **{"count": group.total, **details},
            escalation=group.stage or None,
        )
        group.correlation = alert.correlation_id or ""

    def whose(self, key: Key) -> str:
        """The key for a sentence, with a space before it; a user is not named."""
        named, _, _ = self.raiser.names(key)
        return f" of {said(named)}" if named else ""


Kept = tuple[int, str, str, str | None, str | None, str | None]


def keep(event: Event) -> Kept:
    """As much of an event as an alert that comes later, without one, needs of it."""
    return (event.time, event.source, event.type, event.correlation_id, event.src_ip, event.target)


def kept(one: Kept) -> Event:
    """The event of `keep`."""
    time, source, type_, correlation, src_ip, target = one
    return Event(time, time, type_, source, 1, src_ip, target, correlation_id=correlation)


class Peak(NamedTuple):
    """The nearest that a key came to an alert."""

    reached: float
    limit: float
    at: Cause


def said(named: Mapping[str, Value]) -> str:
    """A key in words."""
    return ", ".join(
        f"{name.removeprefix('data.')} {'unknown' if value is None else value}" for name, value in named.items()
    )


def number(value: Any) -> str:
    """A value in words: no more digits than one reads."""
    if value is None:
        return "unknown"
    return f"{value:.6g}" if type(value) is float else str(value)


def duration(seconds: float) -> str:
    """A length of time in words."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def flood_notice(name: str, kind: str, table_size: int, stats: Stats, now_us: int, *, protect: bool) -> Event:
    """The alert that a handler's table is full."""
    done = (
        f"{stats.refused} new keys were not followed"
        if protect
        else f"{stats.evicted} keys with the least progress were given up"
    )
    return Event(
        now_us,
        now_us,
        "alert.handler.flooded",
        severity=3,
        message=f"handler {name} holds {table_size} keys, its bound: {done}. Look for a flood of new values, or raise max_keys",
        data={"handler": name, "kind": kind, "keys": table_size, "evicted": stats.evicted, "refused": stats.refused},
    )


def seconds_us(seconds: float) -> int:
    """Seconds of a configuration in µs."""
    return round(seconds * SECOND_US)


def numeric(value: Any) -> float | None:
    """The value as a number, or None: true, text, NaN and infinities are no measurements."""
    if type(value) is float:
        return value if value - value == 0.0 else None
    if type(value) is int:
        return float(value) if -1e300 < value < 1e300 else None  # noqa: PLR2004  (within what a double holds)
    return None
