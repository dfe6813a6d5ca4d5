"""What built-in handlers are for, played: to each a scene that has to be told, harmless ones that look like it, both sides of its bound.

A scene is data, a pure function of nothing: happenings as (second, type, fields of the event). Whoever plays it makes events of them.

    positive    has to be told, once
    negatives   must not be told, each by its name: what happens on every line, as a standstill, a recipe, a sensor that is unplugged
    below, at   just this side of the bound, and just beyond: not told, and told once
    shifts      of those that go by the clock; second 0 is a Sunday's midnight, UTC
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

Happening = tuple[float, str, dict[str, Any]]
Happenings = tuple[Happening, ...]
MINUTE_S, HOUR_S, DAY_S = 60, 3_600, 86_400
WEEK_S = 7 * DAY_S
SOMEBODY: Final = "203.0.113.7"
BAD: Final = 0x80000000
"""OPC UA: a status code that says Bad."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """See the module."""

    positive: Happenings
    negatives: Mapping[str, Happenings]
    below: Happenings
    at: Happenings
    shifts: tuple[str, ...] = ()


def _all(*parts: Iterable[Happening]) -> Happenings:
    """Together, in the order of their times."""
    return tuple(sorted((one for part in parts for one in part), key=lambda one: one[0]))


_ILLEGAL_ADDRESS = {"exception_code": 2}


def _many(type_: str, count: int, *, every_s: float = 1.0, start_s: float = 0.0, **fields: Any) -> Happenings:
    return tuple((start_s + n * every_s, type_, fields) for n in range(count))


def _refused(count: int, **fields: Any) -> Happenings:
    return _many("authentication.failure", count, src_ip=SOMEBODY, outcome="failure", **fields)


def _in(at_s: float, **fields: Any) -> Happening:
    return (at_s, "authentication.success", {"src_ip": SOMEBODY, "outcome": "success", **fields})


def _users(users: int, count: int, every_s: float = 20.0) -> Happenings:
    fields = [{"src_ip": SOMEBODY, "actor": f"u{n % users}", "outcome": "failure"} for n in range(count)]
    return tuple((n * every_s, "authentication.failure", each) for n, each in enumerate(fields))


# People, computers, data ----------------------------------------------------------------------------------------------------------

_ACCOUNT: Final = (0.0, "account.created", {"data": {"target_user": "svc"}})

_PEOPLE: Final = {
    "login_burst": Scene(
        positive=_refused(40, actor="eve"),
        negatives={
            "mistyped twice, then in": _all(_refused(2, actor="anna"), [_in(5, actor="anna")]),
            "a script with an old password, once in 20 s": _many(
                "authentication.failure", 60, every_s=20, src_ip=SOMEBODY, actor="backup", outcome="failure"
            ),
        },
        below=_refused(4, actor="eve"),
        at=_refused(5, actor="eve"),
    ),
    "password_spray": Scene(
        positive=_users(12, 24, 10.0),
        negatives={"one who forgot the password": _users(1, 20), "two at one terminal": _users(2, 12)},
        below=_users(5, 12),
        at=_users(6, 6),
    ),
    "brute_force_succeeded": Scene(
        positive=_all(_refused(30), [_in(31)]),
        negatives={"only refused": _refused(30), "in at once": (_in(0), _in(5)), "in an hour later": (*_refused(30), _in(HOUR_S))},
        below=(*_refused(4), _in(6)),
        at=(*_refused(5), _in(6)),
    ),
    "new_address": Scene(
        positive=(_in(0), _in(WEEK_S + 1), _in(WEEK_S + 2, src_ip="198.51.100.9")),
        negatives={"the same again": tuple(_in(n * DAY_S) for n in range(20))},
        below=(_in(0), _in(WEEK_S - 1, src_ip="198.51.100.9"), _in(WEEK_S + 2, src_ip="198.51.100.9")),
        at=(_in(0), _in(WEEK_S + 1, src_ip="198.51.100.9")),
    ),
    "new_user": Scene(
        positive=(_in(0, actor="anna"), _in(WEEK_S + 2, actor="eve")),
        negatives={"the same again": tuple(_in(n * DAY_S, actor="anna") for n in range(20))},
        below=(_in(0, actor="anna"), _in(WEEK_S - 1, actor="eve"), _in(WEEK_S + 2, actor="eve")),
        at=(_in(0, actor="anna"), _in(WEEK_S + 1, actor="eve")),
    ),
    "account_created_then_used": Scene(
        positive=(_ACCOUNT, _in(60, actor="svc")),
        negatives={"somebody else signs in": (_ACCOUNT, _in(60, actor="anna")), "never used": (_ACCOUNT,)},
        below=(_ACCOUNT, _in(DAY_S + 1, actor="svc")),
        at=(_ACCOUNT, _in(DAY_S - 1, actor="svc")),
    ),
    "rights_refused": Scene(
        positive=_many("access.denied", 9, actor="eve", outcome="failure"),
        negatives={
            "rights that are had": _many("access.privilege.used", 9, actor="eve", outcome="success"),
            "mistyped now and then": _many("access.denied", 9, every_s=HOUR_S, actor="eve", outcome="failure"),
        },
        below=_many("access.denied", 2, actor="eve", outcome="failure"),
        at=_many("access.denied", 3, actor="eve", outcome="failure"),
    ),
    "mass_reads": Scene(
        positive=_all(_many("data.read", 240, every_s=30), _many("data.read", 400, every_s=0.05, start_s=7_200)),
        negatives={"two a minute": _many("data.read", 240, every_s=30)},
        below=_all(_many("data.read", 240, every_s=30), _many("data.read", 100, every_s=0.5, start_s=7_200)),
        at=_all(_many("data.read", 240, every_s=30), _many("data.read", 101, every_s=0.5, start_s=7_200)),
    ),
    "recipes_read": Scene(
        positive=tuple((n * 2.0, "data.read", {"target": f"recipes/{n}", "actor": "eve"}) for n in range(40)),
        negatives={
            "one recipe, loaded for each part": _many("data.read", 50, target="recipes/4711"),
            "many readings of a report": tuple((n * 1.0, "data.read", {"target": f"report/{n}"}) for n in range(50)),
            "a recipe each hour": tuple((n * 3_600.0, "data.read", {"target": f"recipes/{n}"}) for n in range(20)),
        },
        below=tuple((n * 2.0, "data.read", {"target": f"r{n}", "data": {"kind": "recipe"}}) for n in range(4)),
        at=tuple((n * 2.0, "data.read", {"target": f"r{n}", "data": {"kind": "recipe"}}) for n in range(5)),
    ),
    "recipe_exported": Scene(
        positive=((0, "data.exported", {"target": "Rezept 4711"}),),
        negatives={
            "a report is exported": ((0, "data.exported", {"target": "shift report"}),),
            "recipes are read": _many("data.read", 3, target="recipes/4711"),
        },
        below=((0, "equipment.method.called", {"data": {"method": "nsu=http://acme/press;s=LoadRecipe"}}),),
        at=((0, "equipment.method.called", {"data": {"method": "nsu=http://acme/press;s=ExportRecipe"}}),),
    ),
}  # fmt: skip


def _single(type_: str, like: str) -> Scene:
    """One is enough; what stands beside it in the table of types is something else."""
    once: Happenings = ((0.0, type_, {}),)
    return Scene(
        positive=(*once, (90.0, type_, {}), (1_800.0, type_, {})),
        negatives={"a quiet line": _many("equipment.reading", 20)},
        below=((0.0, like, {}),),
        at=once,
    )


_ONCE: Final = {
    "log_cleared": _single("security.log.cleared", "security"),
    "usb_attached": _single("security.usb.attached", "system.kernel"),
    "service_listening": _single("network.service.listening", "network.connection"),
    "remote_access_started": _single("security.remote_access.started", "system.process.started"),
    "clock_stepped": _single("system.clock.stepped", "system.booted"),
    "program_changed": _single("configuration.program.changed", "configuration.changed"),
    "alarm_suppressed": _single("equipment.alarm.suppressed", "equipment.alarm.acknowledged"),
    "trust_trouble": _single("security.certificate.changed", "security.certificate.expiring"),
    "comms_lost": _single("device.comms.lost", "device.comms.restored"),
    "data_exported": _single("data.exported", "data.read"),
    "agent_configuration": _single("agent.configuration.changed", "agent.upgraded"),
    "pressure": _single("agent.buffer.pressure", "agent.buffer.recovered"),
    "contact_lost": _single("agent.contact.lost", "agent.contact.restored"),
}

MONDAY_S: Final = DAY_S
_SHIFTS: Final = ("Mon-Fri 06:00-22:00",)


def _clock(type_: str) -> Scene:
    def at(second: float) -> Happenings:
        return ((second, type_, {"outcome": "success"}),)

    return Scene(
        positive=at(2 * HOUR_S),
        negatives={"at noon": at(MONDAY_S + 12 * HOUR_S)},
        below=at(MONDAY_S + 6 * HOUR_S),
        at=at(MONDAY_S + 6 * HOUR_S - 1),
        shifts=_SHIFTS,
    )


_CLOCK: Final = {
    "login_out_of_hours": _clock("authentication.success"),
    "setpoint_out_of_hours": _clock("configuration.mode.changed"),
}


# Machines -------------------------------------------------------------------------------------------------------------------------


def _parts(bad_every: int, count: int) -> Happenings:
    return tuple((n * 1.0, "quality.rejected" if n % bad_every == 0 else "quality.measured", {}) for n in range(count))


_MACHINES: Final = {
    "setpoints_flood": Scene(
        positive=_many("configuration.setpoint.changed", 50),
        negatives={"an operator turns one knob": _many("configuration.setpoint.changed", 30, every_s=5)},
        below=_many("configuration.setpoint.changed", 19),
        at=_many("configuration.setpoint.changed", 20),
    ),
    "sessions_rejected": Scene(
        positive=_many("authentication.session.rejected", 9),
        negatives={
            "sessions that are let in": _many("authentication.session.opened", 9),
            "two that a server counted": _many("authentication.session.rejected", 1, data={"count": 2}),
        },
        below=_many("authentication.session.rejected", 3, every_s=200),
        at=_many("authentication.session.rejected", 3),
    ),
    "device_scan": Scene(
        positive=_many("device.exception", 60, every_s=0.5, data=_ILLEGAL_ADDRESS),
        negatives={
            "one address that is not there": _many("device.exception", 60, every_s=5, data=_ILLEGAL_ADDRESS),
            "a busy device": _many("device.exception", 60, every_s=0.5, data={"exception_code": 6}),
            "a device that answers again": _many("device.exception", 60, every_s=0.5, data={"exception_code": None}),
        },
        below=_many("device.exception", 20, every_s=4, data=_ILLEGAL_ADDRESS),
        at=_many("device.exception", 20, data=_ILLEGAL_ADDRESS),
    ),
    "faults": Scene(
        positive=_many("equipment.fault", 9),
        negatives={"alarms that come and go": _many("equipment.alarm.raised", 9)},
        below=_many("equipment.fault", 3, every_s=1_900),
        at=_many("equipment.fault", 3),
    ),
    "scrap": Scene(
        positive=_parts(5, 60),
        negatives={"one in twenty": _parts(20, 60), "few parts, all bad": _parts(1, 30)},
        below=_parts(10, 61)[1:],
        at=_parts(9, 60),
    ),
}

Curve = Callable[[float], float | None]


def _wave(middle: float, width: float, period_s: float) -> Curve:
    return lambda at_s: round(middle + width * math.sin(2 * math.pi * at_s / period_s), 4)


def _signal(
    quantity: str, curve: Curve, until_s: float, *, every_s: float, start_s: float = 0.0, **data: Any
) -> Iterator[Happening]:
    """Readings as a poll brings them; where the curve gives None, the device says that it has no value."""
    at_s = start_s
    while at_s < until_s:
        value = curve(at_s)
        more = {"status_code": BAD, "status": "Bad"} if value is None else {}
        fields: dict[str, Any] = {"target": quantity, "data": {"value": value, "quantity": quantity, **data, **more}}
        yield at_s, "equipment.reading", fields | ({"outcome": "failure"} if value is None else {})
        at_s += every_s


def _changes_only(part: Iterable[Happening], heartbeat_s: float) -> Iterator[Happening]:
    """As a source reports that speaks by exception: what changed, and the same again as a heartbeat."""
    value, said_s = object(), -math.inf
    for at_s, type_, fields in part:
        new = fields["data"]["value"]
        if new != value:
            yield at_s, type_, fields
        elif at_s - said_s >= heartbeat_s:
            yield at_s, type_, fields | {"data": fields["data"] | {"heartbeat": True}}
        else:
            continue
        value, said_s = new, at_s


def _until(end_s: float, before: Curve, after: Curve) -> Curve:
    return lambda at_s: before(at_s) if at_s < end_s else after(at_s)


def _runs(at_s: float, *, runs: bool) -> Happening:
    return (at_s, "equipment.state.changed", {"target": "drive", "data": {"value": runs, "quantity": "running"}})


def _setpoint(at_s: float, value: float, previous: float) -> Happening:
    data = {"value": value, "previous": previous}
    return (at_s, "configuration.setpoint.changed", {"target": "speed_setpoint", "data": data})


def _stuck(at_s: float, curve: Curve) -> Curve:
    value = curve(at_s)
    return _until(at_s, curve, lambda _: value)


_TEMPERATURE, _VIBRATION, _CURRENT = _wave(60, 2, 3_517), _wave(3, 0.4, 911), _wave(20, 1.5, 1_733)
_LEARNED_S = 25 * HOUR_S


def _cell(
    until_s: float, *, temperature: Curve = _TEMPERATURE, vibration: Curve = _VIBRATION, current: Curve = _CURRENT,
    every_s: float = 120.0,
) -> Happenings:  # fmt: skip
    """Three signals of a machine, polled."""
    return _all(
        _signal("temperature", temperature, until_s, every_s=every_s),
        _signal("vibration", vibration, until_s, every_s=every_s, start_s=1),
        _signal("current", current, until_s, every_s=every_s, start_s=2),
    )


def _frozen() -> Scene:
    stops_s = 7.0 * DAY_S + HOUR_S
    rest: Curve = lambda _: 0.0  # noqa: E731 - a curve like the others
    cools = _until(stops_s, _TEMPERATURE, lambda at_s: round(20 + 40 * math.exp(-(at_s - stops_s) / 7_200), 2))
    idle = _until(stops_s, _CURRENT, lambda _: 1.3)
    calm = _until(stops_s, _VIBRATION, lambda _: 0.02)
    tank: Curve = lambda at_s: 800.0 - at_s // 10_800  # noqa: E731 - it is emptied every three hours
    stuck = _stuck(stops_s, _TEMPERATURE)

    def nights(curve: Curve) -> Curve:
        return lambda at_s: 1.3 if at_s % DAY_S < 8 * HOUR_S else curve(at_s)

    def cell(hours: float, **curves: Curve) -> Happenings:
        return _cell(stops_s + hours * HOUR_S, every_s=300, **curves)

    return Scene(
        positive=cell(3, temperature=stuck),
        negatives={
            "the machine stands overnight, its oil cools": cell(12, temperature=cools, vibration=calm, current=idle),
            "its current stands every night while all else moves": cell(26, current=nights(_CURRENT)),
            "the machine rests at zero": cell(12, vibration=_until(stops_s, _VIBRATION, rest)),
            "it says that it stands": _all([_runs(0, runs=True), _runs(stops_s, runs=False)], cell(12, vibration=calm)),
            "a tank that changes seldom, told by exception": _all(
                cell(6), _changes_only(_signal("level", tank, stops_s + 6 * HOUR_S, every_s=300), 300)
            ),
            "all told by exception, with heartbeats": _all(
                *(
                    _changes_only(_signal(name, curve, stops_s + 6 * HOUR_S, every_s=300), 900)
                    for name, curve in (
                        ("temperature", _TEMPERATURE),
                        ("pressure", _coarse(_CURRENT)),
                        ("flow", _coarse(_CURRENT)),
                    )
                )
            ),
            "the sensor is unplugged and says so": cell(3, temperature=_until(stops_s, _TEMPERATURE, lambda _: None)),
            "nobody read for a day": tuple(
                (at_s + (DAY_S if at_s >= stops_s else 0), type_, fields) for at_s, type_, fields in cell(1)
            ),
        },
        below=cell(0.5, temperature=stuck),
        at=cell(0.75, temperature=stuck),
    )


def _coarse(curve: Curve) -> Curve:
    return lambda at_s: round(curve(at_s) or 0)


def _range() -> Scene:
    def read(*values: float | None) -> Happenings:
        curve = dict(enumerate(values))
        return tuple(_signal("temperature", lambda at: curve[round(at)], len(values), every_s=1, range=[-20.0, 120.0]))

    return Scene(
        positive=read(60.0, 3_276.7, 3_276.7, 61.0),
        negatives={
            "cold, and hot": read(-20.0, 0.0, 119.9, 120.0),
            "a broken wire, and the device says so": read(60.0, None, None, 60.0),
            "without a range": tuple(_signal("temperature", lambda _: 3_276.7, 5, every_s=1)),
        },
        below=read(120.0),
        at=read(120.01),
    )


def _health() -> Scene:
    learned_s = float(_LEARNED_S)
    hot: Curve = lambda at_s: (_TEMPERATURE(at_s) or 0) + 15  # noqa: E731 - a curve like the others

    def turned(minutes: float) -> Curve:
        return lambda at_s: hot(at_s) if learned_s <= at_s < learned_s + minutes * 60 else _TEMPERATURE(at_s)

    def cell(hours: float, curve: Curve) -> Happenings:
        return _cell(learned_s + hours * HOUR_S, temperature=curve, every_s=100)

    return Scene(
        positive=cell(2, _until(learned_s, _TEMPERATURE, hot)),
        negatives={
            "the machine stands": cell(6, _until(learned_s, _TEMPERATURE, lambda _: 20.0)),
            "one wrong value": cell(2, lambda at_s: 400.0 if at_s == learned_s else _TEMPERATURE(at_s)),
            "another recipe": _all(
                cell(6, _until(learned_s, _TEMPERATURE, hot)), [_setpoint(learned_s - 1, 1_800, 1_200)]
            ),
            "it starts, and is hot for ten minutes": _all(
                [_runs(0, runs=True), _runs(learned_s - 5, runs=False), _runs(learned_s - 1, runs=True)],
                cell(2, turned(10)),
            ),
        },
        below=cell(1, turned(11)),
        at=cell(1, turned(22)),
    )


def _drift() -> Scene:
    learned_s = 50.0 * HOUR_S
    away: Curve = lambda at_s: (_TEMPERATURE(at_s) or 0) + 6 * min(1, (at_s - learned_s) / HOUR_S)  # noqa: E731 - a curve
    wanders = _until(learned_s, _TEMPERATURE, away)
    down = _until(learned_s, _TEMPERATURE, lambda _: 24.0)
    runs = _runs(0, runs=True)

    def back(hours: float) -> Curve:
        return lambda at_s: 70.0 if learned_s <= at_s < learned_s + hours * HOUR_S else _TEMPERATURE(at_s)

    def cell(hours: float, curve: Curve, *more: Happening, **others: Curve) -> Happenings:
        return _all(more, _cell(learned_s + hours * HOUR_S, temperature=curve, every_s=600, **others))

    return Scene(
        positive=cell(24, wanders, runs),
        negatives={
            "it stands, cools down, and nobody says that it stands": cell(60, down),
            "it says that it stands": cell(24, down, runs, _runs(learned_s, runs=False)),
            "it stops and starts, and is cold for a while": cell(
                24,
                _until(
                    learned_s, _TEMPERATURE, lambda at_s: 24.0 if at_s < learned_s + 4 * HOUR_S else _TEMPERATURE(at_s)
                ),
                runs,
                *(_runs(learned_s + n * HOUR_S, runs=n % 2 == 0) for n in range(5)),
            ),
            "all of it moves, since it makes something else": cell(
                24,
                wanders,
                runs,
                vibration=_until(learned_s, _VIBRATION, lambda _: 9.0),
                current=_until(learned_s, _CURRENT, lambda _: 35.0),
            ),
            "another recipe": cell(24, wanders, runs, _setpoint(learned_s - 1, 1_800, 1_200)),
            "the sensor is unplugged and says so": cell(24, _until(learned_s, _TEMPERATURE, lambda _: None), runs),
        },
        below=cell(20, back(5), runs),
        at=cell(20, back(7), runs),
    )


def _cycle() -> Scene:
    learned_s = 7.0 * HOUR_S
    usual = _wave(12, 0.2, 700)

    def press(minutes: float, after: Curve, hours: float = 3) -> Happenings:
        curve: Curve = lambda at_s: after(at_s) if learned_s <= at_s < learned_s + minutes * 60 else usual(at_s)  # noqa: E731
        return tuple(_signal("cycle_time", curve, learned_s + hours * HOUR_S, every_s=50, unit="s"))

    return Scene(
        positive=press(180, lambda _: 15.0),
        negatives={
            "it stands, the cycle is zero": press(180, lambda _: 0.0),
            "one long cycle": press(1, lambda _: 90.0),
            "another recipe": _all(press(180, lambda _: 15.0), [_setpoint(learned_s - 1, 900, 1_200)]),
            "it waits for parts, and says that it does not run": _all(
                [_runs(0, runs=True), _runs(learned_s, runs=False)], press(180, lambda _: 200.0)
            ),
        },
        below=press(22, lambda _: 15.0),
        at=press(42, lambda _: 15.0),
    )


def _maintenance() -> Scene:
    def hours(*values: float | None) -> Happenings:
        curve = dict(enumerate(values))
        return tuple(
            _signal("run_hours", lambda at: curve[round(at)], len(values), every_s=1, maintenance_at_h=2_000.0)
        )

    return Scene(
        positive=hours(1_999.0, 2_000.0, 2_000.5, 2_001.0),
        negatives={
            "it was done, the counter begins again": hours(1_999.0, 0.0, 1.0),
            "the counter cannot be read": hours(1_999.0, None, None),
            "nobody said when": tuple(_signal("run_hours", lambda _: 90_000.0, 5, every_s=1)),
        },
        below=hours(1_999.9),
        at=hours(2_000.0),
    )


def _counters(
    made: Iterable[tuple[float, int, int]], *, deltas: bool = True, reset_at_s: float = math.inf
) -> Happenings:
    """Counters of a machine from (second, good parts, scrap); they begin again at reset_at_s."""
    totals, happenings = {"good_count": 0, "scrap_count": 0}, list[Happening]()
    is_reset = False
    for at_s, good, scrap in made:
        if at_s >= reset_at_s and not is_reset:
            is_reset, totals = True, {"good_count": 0, "scrap_count": 0}
        for name, parts in (("good_count", good), ("scrap_count", scrap)):
            if parts or not happenings:
                totals[name] += parts
                data: dict[str, Any] = {"value": totals[name], "quantity": name} | ({"delta": parts} if deltas else {})
                happenings.append((at_s, "equipment.counter", {"target": name, "data": data}))
    return tuple(happenings)


def _usual_parts(until_s: float) -> Iterator[tuple[float, int, int]]:
    """One part in fifty is bad: four in a window of two hundred."""
    for n in range(int(until_s // 60)):
        yield n * 60.0, 49, 1


_MANY_S = 85 * 60.0


def _share() -> Scene:
    bad = [(_MANY_S + n * 60.0, 40, 10) for n in range(20)]
    fine = [(_MANY_S + n * 60.0, 49, 1) for n in range(20)]

    def scrap(parts: int) -> Happenings:
        return _counters([*_usual_parts(_MANY_S - 5 * 60), (_MANY_S, 0, parts)])

    return Scene(
        positive=_counters([*_usual_parts(_MANY_S), *bad]),
        negatives={
            "as ever": _counters([*_usual_parts(_MANY_S), *fine], deltas=False),
            "the counters begin again": _counters(
                [*_usual_parts(_MANY_S), *fine], deltas=False, reset_at_s=_MANY_S + 120
            ),
            "the first parts after a start are bad": _all(
                [_runs(-700, runs=True), _runs(_MANY_S - 1, runs=False), _runs(_MANY_S + 1, runs=True)],
                _counters(
                    [*_usual_parts(_MANY_S), (_MANY_S + 60, 0, 50), (_MANY_S + 120, 10, 40), (_MANY_S + 900, 190, 4)]
                ),
            ),
            "the first parts of another recipe": _all(
                [_setpoint(_MANY_S - 1, 1_800, 1_200)], _counters([*_usual_parts(_MANY_S), (_MANY_S + 60, 0, 50)])
            ),
            "the machine stands": _counters([*_usual_parts(_MANY_S), (_MANY_S + 2 * DAY_S, 49, 1)]),
        },
        below=scrap(11),
        at=scrap(12),
    )


_SIGNALS: Final[dict[str, Callable[[], Scene]]] = {
    "frozen_signal": _frozen,
    "out_of_range": _range,
    "sensor_drift": _drift,
    "equipment_health": _health,
    "maintenance_due": _maintenance,
    "cycle_time": _cycle,
    "scrap_counters": _share,
}


def _made(scene: Scene) -> Callable[[], Scene]:
    return lambda: scene


SCENES: Final[dict[str, Callable[[], Scene]]] = {
    **{name: _made(scene) for name, scene in (_PEOPLE | _ONCE | _CLOCK | _MACHINES).items()},
    **_SIGNALS,
}
"""By built-in handler; made when it is asked for, since some are long."""
