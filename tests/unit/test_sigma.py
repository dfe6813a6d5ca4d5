"""Sigma rules: they match what pySigma's SQLite backend finds, correlations are our kinds, what cannot be said is refused."""

import asyncio
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sigma.backends.sqlite.sqlite import sqliteBackend
from sigma.collection import SigmaCollection

from agent.buffer import Buffer, BufferConfig
from agent.cli_events import opened
from agent.cli_store import Store
from agent.component import Report
from agent.config import ConfigProblems, from_plain, to_plain
from agent.config_read import validated
from agent.handlers import sigma_words
from agent.handlers.builtin import ConfigBuiltin
from agent.handlers.engine import Engine
from agent.handlers.sigma import ConfigSigma
from agent.handlers.sigma_read import _Translation
from agent.handlers.sigma_witness import witness
from agent.handlers.where import Where
from agent.parsers.base import Context, Lines, hide_lines
from agent.pipeline import NoHandlers, Pipeline
from agent.sources.logfile import LogConfig, LogSource, parser_of
from agent.wire.event import Event
from tests.collector_process import ROOT
from tests.handlers import S

PACK = ROOT / "agent/handlers/sigma_rules"
NAMES = ("f0", "f1", "f2")
TEXT = st.text(alphabet="abAB*?%_\\.-'\" ", max_size=5)


def event(second: float, type_: str, **fields: Any) -> Event:
    return Event(round(second * S), round(second * S), type_, **{"source": "src", **fields})


def engine_of(folder: Path, **settings_: Any) -> Engine:
    return Engine.build(
        {"builtin": ConfigBuiltin(enabled=False), "sigma": ConfigSigma(paths=(str(folder),), **settings_)}
    )


def alerts_of(engine: Engine, events: list[Event]) -> list[Event]:
    return [alert for each in events for alert in engine.handle([each], each.observed)]


# Against the oracle -----------------------------------------------------------------------------------------------------------------


def values(texts: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return texts | st.lists(texts, min_size=1, max_size=3)


FIELD = st.sampled_from(NAMES)
ITEM = st.one_of(
    st.tuples(FIELD, values(TEXT)),
    st.tuples(FIELD.map(lambda f: f + "|contains"), values(TEXT.filter(bool))),
    st.tuples(FIELD.map(lambda f: f + "|startswith"), values(TEXT.filter(bool))),
    st.tuples(FIELD.map(lambda f: f + "|endswith"), values(TEXT.filter(bool))),
    st.tuples(FIELD.map(lambda f: f + "|contains|all"), st.lists(TEXT.filter(bool), min_size=2, max_size=3)),
    st.tuples(st.just("n"), st.integers(-3, 3)),
    st.tuples(st.sampled_from(("n|gt", "n|gte", "n|lt", "n|lte")), st.integers(-3, 3)),
)
SELECTION = st.lists(ITEM, min_size=1, max_size=3, unique_by=lambda item: item[0]).map(dict)
CONDITION = st.sampled_from(
    ("a", "a and b", "a or b", "not a", "a and not b", "not (a or b)", "1 of them", "all of them", "a or not (b and a)")
)
ROW = st.fixed_dictionaries({**dict.fromkeys(NAMES, TEXT), "n": st.integers(-3, 3)})


def rule_of(a: dict[str, Any], b: dict[str, Any], condition: str) -> str:
    # "1 of them" and names that are not used are all in order.
    return yaml.safe_dump(
        {"title": "t", "logsource": {"product": "linewarden"}, "detection": {"a": a, "b": b, "condition": condition}}
    )


@settings(max_examples=100, deadline=None)
@given(SELECTION, SELECTION, CONDITION, st.lists(ROW, min_size=1, max_size=12))
def test_a_rule_matches_what_the_sqlite_backend_finds(
    a: dict[str, Any], b: dict[str, Any], condition: str, rows: list[dict[str, Any]]
) -> None:
    text = rule_of(a, b, condition)
    fields = {name: f"data.{name}" for name in (*NAMES, "n")}
    rule = SigmaCollection.from_yaml(text).rules[0]
    ours = Where(_Translation(ConfigSigma(paths=("x",), fields=fields), rule).where(rule))  # type: ignore[arg-type]
    query = sqliteBackend().convert(SigmaCollection.from_yaml(text))[0]  # type: ignore[no-untyped-call]
    base = sqlite3.connect(":memory:")
    base.execute(f"CREATE TABLE logs (id INTEGER, {', '.join(f'{name} TEXT' for name in NAMES)}, n INTEGER)")
    base.executemany(
        "INSERT INTO logs VALUES (?, ?, ?, ?, ?)",
        [(number, *(row[name] for name in NAMES), row["n"]) for number, row in enumerate(rows)],
    )
    theirs = {row[0] for row in base.execute(query)}
    base.close()
    matched = {number for number, row in enumerate(rows) if ours(Event(0, 0, "x", data=dict(row)))}
    assert matched == theirs, (ours.text, query)
    # What some event matches is found to be possible.
    assert not matched or witness(ours.text) is not None, ours.text


# What the specification says beyond ---------------------------------------------------------------------------------------------------


def matches(detection: dict[str, Any], one: Event, **config: Any) -> bool:
    text = yaml.safe_dump({"title": "t", "logsource": {"product": "linewarden"}, "detection": {**detection}})
    rule = SigmaCollection.from_yaml(text).rules[0]
    return Where(_Translation(ConfigSigma(paths=("x",), **config), rule).where(rule))(one)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("item", "fields", "expected"),
    [
        ({"CommandLine|windash|contains": " -enc "}, {"data": {"command": "a /enc b"}}, True),
        ({"SourceIp|cidr": "10.0.0.0/8"}, {"src_ip": "10.2.3.4"}, True),
        ({"SourceIp|cidr": "10.0.0.0/8"}, {"src_ip": "11.2.3.4"}, False),
        ({"User|exists": False}, {}, True),
        ({"User|exists": True}, {}, False),
        ({"User": None}, {}, True),
        ({"User|cased": "Root"}, {"actor": "root"}, False),
        ({"User": "Root"}, {"actor": "rOOT"}, True),
        ({"User|re": "^ro+t$"}, {"actor": "rooot"}, True),
        ({"User|re": "^ro+t$"}, {"actor": "Root"}, False),
        ({"User|re|i": "^ro+t$"}, {"actor": "Root"}, True),
        ({"User|fieldref": "target"}, {"actor": "a", "target": "A"}, True),
        ({"User|fieldref": "target"}, {}, False),
        ({"data.on": True}, {"data": {"on": True}}, True),
        ({"data.on": True}, {"data": {"on": 1}}, False),
        ({"data.port": 22}, {"data": {"port": "22"}}, True),
        ({"data.port": "22"}, {"data": {"port": 22}}, True),
        ({"CommandLine|base64|contains": "whoami"}, {"data": {"command": "x d2hvYW1p y"}}, True),
        ({"User": "r?o*"}, {"actor": "rXo\ny"}, True),
        ({"User": "*"}, {}, False),
    ],
)
def test_modifiers_mean_what_the_specification_says(
    item: dict[str, Any], fields: dict[str, Any], expected: bool
) -> None:
    assert matches({"a": item, "condition": "a"}, event(0, "x", **fields)) is expected


def test_keywords_are_looked_for_in_the_message_and_in_the_line() -> None:
    keywords = {"k": ["Segfault", "core*dumped"], "condition": "k"}
    assert matches(keywords, event(0, "x", raw="kernel: a[1]: SEGFAULT at 0"))
    assert matches(keywords, event(0, "x", message="core was dumped"))
    assert not matches(keywords, event(0, "x", message="all is well"))


# Correlations and alerts ------------------------------------------------------------------------------------------------------------

BASE = """
title: refused
name: refused
logsource: {product: linux, service: sshd}
detection:
  s: {type: authentication.failure}
  condition: s
"""


def correlation(folder: Path, text: str) -> Engine:
    (folder / "rule.yml").write_text(
        BASE + "---\ntitle: Many {of} them\nid: 0f6bd7f6-8b3c-4a4e-9a2c-3f1f6f1c6a11\n" + text
    )
    return engine_of(folder)


def failure(second: float, n: int = 0, **fields: Any) -> Event:
    return event(
        second,
        "authentication.failure",
        **{"src_ip": "203.0.113.7", "actor": f"u{n}", "data": {"program": "sshd"}, **fields},
    )


COUNT = "level: high\ntags: [attack.t0859, attack.credential-access]\ncorrelation: {type: event_count, rules: [refused], group-by: [SourceIp], timespan: 1m, condition: {gte: 3}}\n"  # noqa: E501


def test_event_count_raises_once_a_burst_with_level_technique_and_rule(tmp_path: Path) -> None:
    alerts = alerts_of(correlation(tmp_path, COUNT), [failure(n) for n in range(20)])
    assert [(a.type, a.severity, a.src_ip, a.message) for a in alerts] == [
        ("alert.sigma.many_of_them", 4, "203.0.113.7", "Many (of) them, at src: 3 within 60 s (limit 3)")
    ]
    assert alerts[0].data["technique"] == "T0859"
    assert alerts[0].data["rule_id"] == "0f6bd7f6-8b3c-4a4e-9a2c-3f1f6f1c6a11"
    assert alerts[0].data["tags"] == "attack.t0859 attack.credential-access"
    # At the bound and not before, and not by events that lie further apart.
    assert not alerts_of(correlation(tmp_path, COUNT), [failure(0), failure(1)])
    assert not alerts_of(correlation(tmp_path, COUNT), [failure(0), failure(31), failure(62)])


def test_a_rule_that_a_correlation_names_raises_nothing_by_itself(tmp_path: Path) -> None:
    assert len(correlation(tmp_path, COUNT).handlers) == 1


def test_a_burst_across_a_restart_is_one_alert(tmp_path: Path) -> None:
    engine, alerts, state = correlation(tmp_path, COUNT), list[Event](), dict[str, dict[str, bytes]]()
    for n in range(6):
        alerts += engine.handle([failure(n)], n * S)
        for name, changed in engine.changes().items():
            state.setdefault(name, {}).update({k: v for k, v in changed.items() if v is not None})
        engine = correlation(tmp_path, COUNT)
        engine.restore(state)
    assert len(alerts) == 1


def test_value_count_counts_different_values(tmp_path: Path) -> None:
    text = "correlation: {type: value_count, rules: [refused], group-by: [SourceIp], timespan: 1m, condition: {field: User, gte: 3}}\n"
    assert len(alerts_of(correlation(tmp_path, text), [failure(n, n) for n in range(3)])) == 1
    assert not alerts_of(correlation(tmp_path, text), [failure(n, n % 2) for n in range(9)])


TWO = """---
title: let in
name: let_in
logsource: {product: linewarden}
detection:
  s: {type: authentication.success}
  condition: s
"""
ALIAS = "aliases: {who: {refused: SourceIp, let_in: data.peer}}, "


@pytest.mark.parametrize(("kind", "backwards"), [("temporal", 1), ("temporal_ordered", 0)])
def test_temporal_takes_any_order_and_temporal_ordered_the_one(kind: str, backwards: int, tmp_path: Path) -> None:
    text = f"correlation: {{type: {kind}, rules: [refused, let_in], group-by: [who], {ALIAS}timespan: 1m}}\n"

    def success(second: float) -> Event:
        return event(second, "authentication.success", data={"peer": "203.0.113.7"})

    def raised(events: list[Event]) -> int:
        return len(alerts_of(correlation(tmp_path, text + TWO), events))

    assert raised([failure(0), success(60)]) == 1
    assert raised([failure(0), success(61)]) == 0
    assert raised([success(0), failure(10)]) == backwards
    assert raised([failure(0, src_ip="198.51.100.1"), success(1)]) == 0


# What is refused --------------------------------------------------------------------------------------------------------------------

PLAIN = "title: odd\nlogsource: {%s}\ndetection:\n  s: {%s}\n  condition: s\n"


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (
            PLAIN % ("product: windows, category: registry_set", "User: a"),
            "there is no log source windows/registry_set/-",
        ),
        (PLAIN % ("product: linux", "LogonType: 3"), "there is no field 'LogonType'"),
        (PLAIN % ("product: linux", "'User|expand': '%admins%'"), "placeholder"),
        (PLAIN % ("product: linux", "'User|re': '(?=a)b'"), "(?=a)b"),
        ("title: odd\ndetection: 5\n", "odd"),
        ("just a text", "is no Sigma rule"),
        (": : :\n\t", "is no Sigma rule"),
        (
            BASE
            + "---\ntitle: odd\ncorrelation: {type: event_count, rules: [refused], timespan: 1m, condition: {lt: 3}}\n",
            "lt: 3",
        ),
        (
            BASE
            + "---\ntitle: odd\ncorrelation: {type: event_count, rules: [nobody], timespan: 1m, condition: {gte: 3}}\n",
            "nobody",
        ),
        (
            BASE
            + "---\ntitle: odd\ncorrelation: {type: value_avg, rules: [refused], timespan: 1m, condition: {field: a, gte: 3}}\n",
            "value_avg",
        ),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(rule: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "odd.yml").write_text(rule)
    _, refused = ConfigSigma(paths=(str(tmp_path),)).resolved()
    assert any(says in text for _, text, _ in refused), refused
    assert all(remedy and key == "paths" for key, _, remedy in refused)


def agent_toml(folder: Path, more: str = "") -> Path:
    path = folder / "agent.toml"
    path.write_text(f'[sync]\nurl = "https://c:8443"\n[handlers.sigma]\npaths = ["{folder}"]\n{more}')
    return path


def test_check_names_file_and_title_and_skip_leaves_the_rule_out_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "odd.yml").write_text(PLAIN % ("product: linux", "LogonType: 3"))
    (tmp_path / "good.yml").write_text(BASE)
    with pytest.raises(ConfigProblems) as caught:
        validated(agent_toml(tmp_path), {})
    told = str(caught.value)
    assert "handlers.sigma.paths" in told
    assert "odd.yml: 'odd': there is no field 'LogonType'" in told
    kept = validated(agent_toml(tmp_path, 'on_unsupported = "skip"\n'), {})
    assert [each.kind for each in kept.handlers["sigma"].compiled] == ["count"]
    assert "LogonType" in kept.handlers["sigma"].warnings()[0][1]


def test_the_daemon_takes_the_rules_over_without_pysigma(tmp_path: Path) -> None:
    (tmp_path / "good.yml").write_text(BASE)
    plain = to_plain(validated(agent_toml(tmp_path), {}))
    assert from_plain(plain) == validated(agent_toml(tmp_path), {})
    code = (
        "import sys, json; from agent.config import from_plain; from agent.handlers.engine import Engine;"
        "e = Engine.build(from_plain(json.loads(sys.stdin.read())).handlers);"
        "print([n for n in e.handlers if n.startswith('sigma/')], 'sigma' in sys.modules, 'yaml' in sys.modules)"
    )
    import msgspec

    answer = subprocess.run(
        [sys.executable, "-c", code],
        input=msgspec.json.encode(plain).decode(),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert answer.stdout.strip() == "['sigma/refused'] False False"


def test_fields_and_log_sources_may_be_named_by_whoever_configures(tmp_path: Path) -> None:
    (tmp_path / "own.yml").write_text(PLAIN % ("product: press", "Strokes: 7"))
    engine = engine_of(tmp_path, fields={"Strokes": "data.n"}, logsources={"press/-/-": "source == 'press'"})
    assert len(alerts_of(engine, [event(0, "x", source="press", data={"n": 7}), event(1, "x", data={"n": 7})])) == 1


# The rules of our own ---------------------------------------------------------------------------------------------------------------


def command(text: str) -> Event:
    return event(0, "system.process.started", data={"command": text})


usb, listens = event(0, "security.usb.attached"), event(60, "network.service.listening")
SCENES: dict[str, tuple[list[Event], list[Event]]] = {
    "program_of_a_safety_controller_changed": (
        [event(0, "configuration.program.changed", source="press_safety")],
        [event(0, "configuration.program.changed", source="press")]),
    "engineering_tool_started_on_a_station": (
        [command("/opt/OpenPLC/run")],
        [command("ls")]),
    "scanner_of_field_buses_started": (
        [command("sudo nmap -p 502")],
        [command("nmapper")]),
    "shell_history_or_log_removed_by_a_command": (
        [command("rm /var/log/auth.log")],
        [command("logrotate rm /var/log/a")]),
    "root_signed_in_from_outside_the_plant": (
        [event(0, "authentication.success", actor="root", src_ip="203.0.113.7")],
        [event(0, "authentication.success", actor="root", src_ip="10.0.0.1")]),
    "speed_setpoint_beyond_what_the_press_may_run": (
        [event(0, "configuration.setpoint.changed", target="Setpoint.Speed", data={"value": 2_201})],
        [event(0, "configuration.setpoint.changed", target="Setpoint.Speed", data={"value": 2_200})]),
    "many_alarms_of_one_machine_suppressed": (
        [event(n, "equipment.alarm.suppressed") for n in range(3)],
        [event(n, "equipment.alarm.suppressed") for n in range(2)]),
    "one_address_tries_many_machines": (
        [event(n, "authentication.session.rejected", src_ip="10.0.0.9", target=f"m{n}") for n in range(4)],
        [event(n, "authentication.session.rejected", src_ip="10.0.0.9", target=f"m{n % 3}") for n in range(9)]),
    "program_changed_soon_after_a_sign_in": (
        [event(0, "authentication.success"), event(900, "configuration.program.changed")],
        [event(0, "authentication.success"), event(901, "configuration.program.changed")]),
    "medium_attached_and_a_new_service_within_half_an_hour": ([listens, event(120, usb.type)], [usb, event(1_801, listens.type)]),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENES)
def test_a_rule_of_our_own_raises_what_it_is_for_and_nothing_at_its_bound(name: str) -> None:
    for events, expected in zip(SCENES[name], (1, 0), strict=True):
        found = [alert.type for alert in alerts_of(engine_of(PACK), [replace_(each) for each in events])]
        assert found.count(f"alert.sigma.{name}"[: len("alert.sigma.") + 60]) == expected, found


def replace_(one: Event) -> Event:
    return Event(
        one.time,
        one.observed,
        one.type,
        one.source,
        src_ip=one.src_ip,
        target=one.target,
        actor=one.actor,
        data=dict(one.data),
    )


def test_every_rule_of_our_own_loads_and_has_its_scene() -> None:
    config, refused = ConfigSigma(paths=(str(PACK),)).resolved()
    assert not refused
    assert len(config.compiled or ()) == len(SCENES) >= 8
    assert replace(config, compiled=None) == ConfigSigma(paths=(str(PACK),))


def test_the_page_is_that_of_the_tables() -> None:
    assert (ROOT / "agent/handlers/SIGMA.md").read_text() == sigma_words.document()


# Rules of others, as they are written for Linux ------------------------------------------------------------------------------------------

AUDITD = 'type={type} msg=audit(1764496800.100:{serial}): pid=1 uid=0 auid=1000 ses=3 msg=\'unit=ufw comm="systemd" exe="/usr/lib/systemd/systemd" res=success\''  # noqa: E501


def fired(folder: Path, rule: str, parser: str, *lines: str, **config: Any) -> list[str]:
    """Titles of the rules that the lines of a log make fire, read as a source reads them that stores no lines."""
    (folder / "rule.yml").write_text(rule)
    engine = engine_of(folder, **config)
    shown = Context("src", lines=Lines(shown=engine.reads_lines))
    events, _ = parser_of(parser, {}, shown).parse(
        lines, observed_us=1_764_496_800_000_000, reference_us=1_764_496_800_000_000, memory={}, final=True
    )
    return [alert.data["rule"] for alert in alerts_of(engine, events)]


@pytest.mark.parametrize("type_", ["SERVICE_STOP", "service_stop"])
def test_type_in_a_rule_for_auditd_is_the_type_of_a_record(type_: str, tmp_path: Path) -> None:
    rule = PLAIN % ("product: linux, service: auditd", f"type: {type_}, unit: ufw")
    assert fired(tmp_path, rule, "audit", AUDITD.format(type="SERVICE_STOP", serial=1)) == ["odd"]
    assert not fired(tmp_path, rule, "audit", AUDITD.format(type="SERVICE_START", serial=1))


def test_rule_for_auditd_sees_every_record_of_an_event(tmp_path: Path) -> None:
    rule = PLAIN % ("product: linux, service: auditd", "type: PATH, name: /etc/ld.so.preload")
    stamp = "msg=audit(1764496800.100:7)"
    lines = (
        f'type=SYSCALL {stamp}: arch=c000003e syscall=257 success=yes pid=9 auid=1000 comm="vi" exe="/usr/bin/vi" key="preload"',
        f'type=CWD {stamp}: cwd="/root"',
        f'type=PATH {stamp}: item=0 name="/etc/" nametype=PARENT',
        f'type=PATH {stamp}: item=1 name="/etc/ld.so.preload" nametype=CREATE',
        f"type=PROCTITLE {stamp}: proctitle=7669",
    )
    assert fired(tmp_path, rule, "audit", *lines) == ["odd"]


def test_rule_for_auditd_compares_arguments_of_the_command(tmp_path: Path) -> None:
    rule = PLAIN % ("product: linux, service: auditd", "type: EXECVE, a0: chattr, 'a1|contains': '-i'")
    line = 'type=EXECVE msg=audit(1764496800.100:{}): argc=3 a0="chattr" a1="{}" a2="/etc/passwd"'
    assert fired(tmp_path, rule, "audit", line.format(1, "-i")) == ["odd"]
    assert not fired(tmp_path, rule, "audit", line.format(2, "+i"))


KEYWORDS = "title: odd\nlogsource: {%s}\ndetection:\n  k: [%s]\n  condition: k\n"


@pytest.mark.parametrize(
    ("source", "keyword", "parser", "line"),
    [
        ("product: linux", "UID=0,", "auth", "2026-11-30T10:00:01+00:00 h useradd[1]: new user: name=u, UID=0, GID=0"),
        ("product: linux, service: sshd", "bad string length", "auth",
         "2026-11-30T10:00:06+00:00 h sshd-session[1342]: error: buffer_get_string_ret: bad string length"),
        ("product: linux, service: sshd", "Failed password", "auth",
         "2026-11-30T10:00:06+00:00 h sshd[1]: Failed password for root from 192.0.2.7 port 4022 ssh2"),
        ("product: linux, service: sudo", "COMMAND=/bin/sh", "auth",
         "2026-11-30T10:00:06+00:00 h sudo[1]: ann : TTY=pts/0 ; PWD=/ ; USER=root ; COMMAND=/bin/sh"),
        ("product: linux, service: auth", "odd words", "auth", "2026-11-30T10:00:06+00:00 h polkitd[1]: odd words"),
        ("product: linux, service: cron", "REPLACE", "syslog", "<78>Nov 30 10:00:06 h crontab[1]: (ann) REPLACE (ann)"),
        ("product: linux, service: syslog", "panic", "json", '{"message": "panic in the press"}'),
    ],
)  # fmt: skip
def test_keywords_are_found_in_lines_that_are_not_stored(
    source: str, keyword: str, parser: str, line: str, tmp_path: Path
) -> None:
    assert fired(tmp_path, KEYWORDS % (source, f"'{keyword}'"), parser, line) == ["odd"]
    assert not fired(tmp_path, KEYWORDS % (source, "'something else'"), parser, line)


def test_line_is_shown_to_handlers_and_what_is_stored_is_as_without_them() -> None:
    line = "2026-11-30T10:00:01+00:00 h sshd[1]: Failed password for root from 192.0.2.7 port 4022 ssh2"

    def parsed(parser: str, text: str, *, shown: bool) -> list[Event]:
        context = Context("src", lines=Lines(shown=shown))
        events, _ = parser_of(parser, {}, context).parse([text], observed_us=1, reference_us=1, memory={}, final=True)
        return events

    for parser, text in (("auth", line), ("json", '{"message": "m", "level": "error"}'), ("auth", "no syslog at all")):
        shown = parsed(parser, text, shown=True)
        assert [Where("line contains 'o'")(each) or each.raw == text for each in shown] == [True]
        hide_lines(shown)
        assert shown == parsed(parser, text, shown=False)
        assert all(type(each.raw) in (str, type(None)) for each in shown)


@pytest.mark.parametrize(
    "detection",
    [
        "type: SERVICE_STOP",  # the type of a record where our type is meant
        "outcome: failure, 'outcome|re': '^succ'",
        "'severity|gt': 5, 'severity|lt': 3",
    ],
)
def test_rule_that_no_event_can_match_is_refused_by_name(detection: str, tmp_path: Path) -> None:
    (tmp_path / "odd.yml").write_text(PLAIN % ("product: linewarden", detection))
    _, refused = ConfigSigma(paths=(str(tmp_path),)).resolved()
    assert [text.partition("'odd': ")[2] for _, text, _ in refused] == ["no event of an agent can match it"]


@pytest.mark.parametrize(
    "pattern", [r"^ro+t$", r"(?i)a{3}\d+[^x-z]", r"\bsh\b", r"(a|b)?c*\.\w{2,5}$", r"[^\s/]+/tmp", "ü+"]
)
def test_witness_of_a_regular_expression_is_found(pattern: str) -> None:
    event_ = witness(f"message matches '{pattern}'")
    assert event_ is not None
    assert Where(f"message matches '{pattern}'")(event_)


async def test_line_that_only_handlers_search_never_reaches_the_disk(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    log.write_text("2026-11-30T10:00:01+00:00 h useradd[1]: new user: name=u, UID=0, GID=0, home=/home/secret_place\n")
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "rule.yml").write_text(KEYWORDS % ("product: linux", "'UID=0,'"))
    buffer = await Buffer.open(tmp_path / "buffer.db", BufferConfig(free_bytes_min=0), str(uuid4()))
    pipeline = Pipeline(buffer, NoHandlers())
    source = LogSource("auth", LogConfig(paths=(str(log),), parser="auth"), Report())
    try:
        await pipeline.exchange(engine_of(rules))
        pipeline.start("auth", "log", source, Report())
        async with asyncio.timeout(20):
            while not pipeline.alerts:  # noqa: ASYNC110 - counted, not signalled
                await asyncio.sleep(0.01)
        await pipeline.stop_all()
    finally:
        await buffer.close()
    store = Store(tmp_path / "buffer.db")
    events = [each for batch in store.batches({}) for each in opened(batch)]
    store.close()
    assert {each.type for each in events} >= {"account.created", "alert.sigma.odd"}
    assert [each.raw for each in events] == [None] * len(events)


def test_rule_that_two_correlations_name_has_its_fields_mapped_once(tmp_path: Path) -> None:
    rule = PLAIN % ("product: linux, service: auditd", "EventType: system.service.stopped, unit: ufw")
    counts = "".join(
        f"---\ntitle: at least {n}\ncorrelation: {{type: event_count, rules: [it], timespan: 1m, condition: {{gte: {n}}}}}\n"
        for n in (1, 2)
    )
    lines = [AUDITD.format(type="SERVICE_STOP", serial=serial) for serial in (1, 2)]
    assert fired(tmp_path, f"name: it\n{rule}{counts}", "audit", *lines) == ["at least 1", "at least 2"]
