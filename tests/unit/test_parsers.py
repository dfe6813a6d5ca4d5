"""What the parsers read, and what they do with text that is nobody's."""

# ruff: noqa: E501  # a table of lines

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.component import load
from agent.parsers import PARSERS
from agent.parsers.base import Clock, Context, Parser, zone_of
from agent.sources.logfile import LogConfig, parser_of
from agent.wire.batch import encode_lines
from agent.wire.event import Event
from agent.wire.taxonomy import PERSONAL_KEYS, TAXONOMY

NOW = round(datetime(2026, 3, 2, 12, tzinfo=UTC).timestamp() * 1e6)


def parser(kind: str, *, keep_raw: bool = False, **options: Any) -> Parser:
    return parser_of(kind, options, Context("s", keep_raw, zone_of("UTC")))


def read(
    kind: str, *lines: str, now_us: int = NOW, final: bool = True, memory: dict[str, Any] | None = None, **options: Any
) -> list[Event]:
    events, consumed = parser(kind, **options).parse(
        lines, observed_us=now_us, reference_us=now_us, memory={} if memory is None else memory, final=final
    )
    if final:
        assert consumed == len(lines)
    return events


def said(text: str, program: str = "sshd", head: str = "Mar  1 10:00:00 host ") -> Event:
    (event,) = read("auth", f"{head}{program}[123]: {text}")
    return event


def at(*when: int) -> int:
    return round(datetime(*when, tzinfo=UTC).timestamp() * 1e6)  # type: ignore[arg-type, misc]


# program, message → type, outcome, src_ip, actor, part of data
SAID: list[tuple[str, str, str, str | None, str | None, str | None, dict[str, Any]]] = [
    ("sshd", "Failed password for root from 203.0.113.7 port 4711 ssh2", "authentication.failure", "failure", "203.0.113.7", "root", {"port": 4711, "method": "password"}),
    ("sshd", "Failed password for invalid user x y from 10.0.0.1 port 1 ssh2", "authentication.failure", "failure", "10.0.0.1", "x y", {"user_known": False}),
    ("sshd", "Failed password for invalid user a from 6.6.6.6 port 1 ssh2 from 203.0.113.7 port 2 ssh2", "authentication.failure", "failure", "203.0.113.7", "a from 6.6.6.6 port 1 ssh2", {"port": 2}),
    ("sshd", "Failed none for invalid user  from 203.0.113.7 port 2 ssh2", "authentication", None, "203.0.113.7", "", {}),
    ("sshd-session", "Accepted publickey for anna from 2001:db8::7 port 50000 ssh2: ED25519 SHA256:abc", "authentication.success", "success", "2001:db8::7", "anna", {"key": "ED25519 SHA256:abc"}),
    ("sshd", "Invalid user admin from 203.0.113.7 port 5", "authentication", None, "203.0.113.7", "admin", {}),
    ("sshd", "Connection closed by authenticating user root 203.0.113.7 port 5 [preauth]", "network.connection", "failure", "203.0.113.7", "root", {}),
    ("sshd", "error: maximum authentication attempts exceeded for root from 203.0.113.7 port 5 ssh2 [preauth]", "authentication.session.rejected", "failure", "203.0.113.7", "root", {}),
    ("sshd", "Disconnecting invalid user bob 203.0.113.7 port 5: Too many authentication failures [preauth]", "authentication.session.rejected", "failure", "203.0.113.7", "bob", {}),
    ("sshd", "Received disconnect from 203.0.113.7: 11: Bye Bye [preauth]", "network.connection", None, "203.0.113.7", None, {"reason": "Bye Bye"}),
    ("sshd", "User bob from 203.0.113.7 not allowed because not listed in AllowUsers", "access.denied", "failure", "203.0.113.7", "bob", {}),
    ("sshd", "Did not receive identification string from 203.0.113.7 port 5", "network.scan", None, "203.0.113.7", None, {"port": 5}),
    ("sshd", "pam_unix(sshd:auth): authentication failure; logname= uid=0 euid=0 tty=ssh ruser= rhost=203.0.113.7  user=root", "authentication", None, "203.0.113.7", "root", {}),
    ("login", "pam_unix(login:auth): authentication failure; logname=LOGIN uid=0 euid=0 tty=/dev/tty1 ruser= rhost=  user=anna", "authentication", None, None, "anna", {"service": "login", "tty": "/dev/tty1"}),
    ("gdm-password]", "pam_unix(gdm-password:auth): authentication failure; logname= uid=0 euid=0 tty=/dev/tty1 ruser= rhost=  user=anna", "authentication.failure", "failure", None, "anna", {"service": "gdm-password"}),
    ("gdm", "session opened for user anna by (uid=0)", "authentication.session.opened", "success", None, "anna", {"uid": 0}),
    ("sshd(pam_unix)", "check pass; user unknown", "authentication", None, None, None, {}),
    ("sudo", "    anna : TTY=pts/0 ; PWD=/home/anna ; USER=root ; COMMAND=/bin/ls ; USER=x", "access.privilege.used", "success", None, "anna", {"command": "/bin/ls ; USER=x", "target_user": "root", "tty": "pts/0", "working_directory": "/home/anna"}),
    ("sudo", "anna : 3 incorrect password attempts ; TTY=pts/0 ; PWD=/ ; USER=root ; COMMAND=/bin/sh", "authentication.failure", "failure", None, "anna", {"count": 3}),
    ("sudo", "bob : user NOT in sudoers ; TTY=pts/1 ; PWD=/ ; USER=root ; COMMAND=/bin/sh", "access.denied", "failure", None, "bob", {"reason": "user NOT in sudoers"}),
    ("su", "(to root) anna on pts/0", "access.privilege.used", "success", None, "anna", {"target_user": "root"}),
    ("su", "FAILED SU (to root) anna on pts/0", "authentication.failure", "failure", None, "anna", {"target_user": "root"}),
    ("useradd", "new user: name=eve, UID=1002, GID=1002, home=/home/eve, shell=/bin/bash, from=/dev/pts/0", "account.created", "success", None, None, {"target_user": "eve", "uid": 1002}),
    ("userdel", "delete user 'eve'", "account.deleted", "success", None, None, {"target_user": "eve"}),
    ("usermod", "add 'eve' to group 'sudo'", "account.group.changed", "success", None, None, {"target_user": "eve", "group": "sudo"}),
    ("groupadd", "new group: name=plc, GID=1003", "account.group.changed", "success", None, None, {"group": "plc"}),
    ("passwd", "pam_unix(passwd:chauthtok): password changed for eve", "account.password.changed", "success", None, None, {"target_user": "eve"}),
    ("CRON", "(root) CMD (   cd / && run-parts /etc/cron.hourly)", "system.job.ran", "success", None, "root", {"command": "cd / && run-parts /etc/cron.hourly"}),
    ("kernel", "[ 12.345] usb 1-2: New USB device found, idVendor=0781, idProduct=5581, bcdDevice= 1.00", "security.usb.attached", None, None, None, {"vendor_id": "0781"}),
    ("kernel", "e1000e 0000:00:1f.6 eth0: NIC Link is Down", "network.link.down", "failure", None, None, {}),
    ("kernel", "Out of memory: Killed process 812 (python3) total-vm:1kB", "system.memory.exhausted", "failure", None, None, {}),
    ("kernel", "[UFW BLOCK] IN=eth0 OUT= MAC=aa SRC=203.0.113.7 DST=10.0.0.2 LEN=40 PROTO=TCP SPT=1 DPT=502 WINDOW=1", "network.connection", "failure", "203.0.113.7", None, {"port": 502}),
    ("systemd", "hmi.service: Failed with result 'exit-code'.", "system.service.failed", "failure", None, None, {"reason": "exit-code"}),
    ("systemd", "Started hmi.service - Operator panel.", "system.service.started", "success", None, None, {"unit": "Operator panel"}),
    ("systemd", "Started Session 3 of user anna.", "authentication.session.opened", "success", None, "anna", {}),
    ("systemd-logind", "New session 5 of user anna.", "authentication.session.opened", "success", None, "anna", {}),
    ("systemd-timesyncd", "System clock wrong by 3.25 seconds, adjustment started", "system.clock.stepped", None, None, None, {"offset_s": "3.25"}),
]  # fmt: skip


@pytest.mark.parametrize(("program", "text", "type_", "outcome", "src_ip", "actor", "data"), SAID)
def test_what_a_program_says_is_understood(
    program: str,
    text: str,
    type_: str,
    outcome: str | None,
    src_ip: str | None,
    actor: str | None,
    data: dict[str, Any],
) -> None:
    event = said(text, program)
    assert (event.type, event.outcome, event.src_ip, event.actor or "") == (type_, outcome, src_ip, actor or "")
    assert data.items() <= event.data.items()
    assert event.time == at(2026, 3, 1, 10)
    assert event.type in TAXONOMY
    assert event.raw is None
    assert actor is None or len(actor) < 3 or actor not in (event.message or "")


def test_a_line_that_nobody_knows_is_kept_whole_as_personal_data() -> None:
    line = "Mar  1 10:00:00 host hmi[9]: operator Anna pressed start"
    (event,) = read("auth", line)
    assert (event.type, event.raw, event.message, event.data) == (
        "log.line",
        line,
        None,
        {"host": "host", "program": "hmi", "pid": 9},
    )


def test_message_repeated_n_times_is_n_events() -> None:
    line = "Mar  1 10:00:00 h sshd[1]: message repeated 3 times: [ Failed password for root from 203.0.113.7 port 4711 ssh2]"
    events = read("auth", line)
    assert [event.type for event in events] == ["authentication.failure"] * 3
    assert events[0].src_ip == "203.0.113.7"


def test_a_claim_of_a_billion_repetitions_is_bounded_and_says_so() -> None:
    events = read(
        "auth",
        "Mar  1 10:00:00 h sshd[1]: message repeated 999999999 times: [ Failed password for root from 203.0.113.7 port 1 ssh2]",
    )
    assert len(events) == 1_000
    assert events[-1].data["repeats_unexpanded"] == 999_999_999 - 1_000


@pytest.mark.parametrize(
    ("now", "text", "expected"),
    [
        ((2026, 3, 2), "Mar  1 10:00:00", (2026, 3, 1, 10)),
        ((2026, 1, 1, 0, 5), "Dec 31 23:59:59", (2025, 12, 31, 23, 59, 59)),
        ((2025, 12, 31, 23, 59), "Jan  1 00:00:05", (2026, 1, 1, 0, 0, 5)),  # a clock that is a little ahead
        ((2026, 3, 2), "Mar 20 00:00:00", (2025, 3, 20)),
        ((2026, 6, 1), "Feb 29 12:00:00", (2024, 2, 29, 12)),
    ],
)
def test_a_date_without_a_year_is_never_more_than_a_day_in_the_future(
    now: tuple[int, ...], text: str, expected: tuple[int, ...]
) -> None:
    assert Clock(zone_of("UTC")).classic(text, at(*now)) == at(*expected)


def test_a_time_without_a_zone_is_taken_in_the_configured_one() -> None:
    (event,) = parser_of("auth", {}, Context("s", zone=zone_of("Europe/Berlin"))).parse(
        ["Jul  1 10:00:00 h sshd[1]: x"], observed_us=at(2026, 7, 2), reference_us=at(2026, 7, 2), memory={}
    )[0]
    assert event.time == at(2026, 7, 1, 8)


def test_rfc_3339_heads_keep_their_zone_and_their_microseconds() -> None:
    (event,) = read(
        "auth", "2026-03-01T11:00:00.123456+01:00 h sshd[1]: Failed password for root from 203.0.113.7 port 4711 ssh2"
    )
    assert event.time == at(2026, 3, 1, 10) + 123_456


def test_audit_records_of_one_serial_become_one_event_also_when_others_lie_between() -> None:
    lines = [
        'type=SYSCALL msg=audit(1772359200.100:7): arch=c000003e syscall=59 success=yes auid=1000 uid=0 ses=3 comm="cat" exe="/bin/cat" pid=5',
        'type=SYSCALL msg=audit(1772359200.100:8): arch=c000003e syscall=2 success=no exit=-13 ses=4 key="secrets" pid=6',
        'type=EXECVE msg=audit(1772359200.100:7): argc=2 a0="cat" a1=2F746D702F6120622E747874',
        "type=PROCTITLE msg=audit(1772359200.100:7): proctitle=636174",
        "type=PROCTITLE msg=audit(1772359200.100:8): proctitle=6C73",
    ]
    run, access = read("audit", *lines)
    assert (run.type, run.data["command"], run.data["actor_uid"], run.outcome) == (
        "system.process.started",
        "cat /tmp/a b.txt",
        "1000",
        "success",
    )
    assert (access.type, access.outcome, access.data["key"]) == ("access", "failure", "secrets")
    assert read("audit", *lines[:4], final=False) == []


def test_an_audit_event_is_held_until_it_is_whole_but_not_for_ever() -> None:
    first = "type=SYSCALL msg=audit(1772359200.100:7): success=yes"
    alone = "type=USER_AUTH msg=audit(1772359200.200:%d): msg='acct=\"anna\" addr=203.0.113.7 res=failed'"
    held, consumed = parser("audit").parse([first, alone % 8], observed_us=NOW, reference_us=NOW, memory={})
    assert (held, consumed) == ([], 0)
    events, consumed = parser("audit").parse(
        [first, *(alone % n for n in range(8, 600))], observed_us=NOW, reference_us=NOW, memory={}
    )
    assert consumed == len(events) == 593
    assert (events[1].type, events[1].actor, events[1].src_ip) == ("authentication.failure", "anna", "203.0.113.7")


def test_syslog_5424_with_escapes_and_3164_and_what_devices_send() -> None:
    (event,) = read(
        "syslog", r'<34>1 2026-03-01T10:00:00.003Z plc7 fw 99 ID47 [meta@1 iut="3" note="a\]b\"c\\"][x y="z"] door open'
    )
    assert event.time == at(2026, 3, 1, 10) + 3_000
    assert event.data == {
        "facility": "auth",
        "msgid": "ID47",
        "iut": "3",
        "note": 'a]b"c\\',
        "y": "z",
        "host": "plc7",
        "program": "fw",
        "pid": 99,
    }
    assert (event.type, event.severity) == ("log.line", 4)
    (event,) = read("syslog", "<86>Mar  1 10:00:00 h sshd[5]: Accepted password for anna from 203.0.113.7 port 5 ssh2")
    assert (event.type, event.actor, event.data["facility"]) == ("authentication.success", "anna", "authpriv")
    (event,) = read("syslog", "<13>app: hello")
    assert (event.time, event.data["program"]) == (NOW, "app")
    (event,) = read("syslog", "<999>x")
    assert event.raw == "<999>x"


def test_json_finds_the_usual_names_and_keeps_free_text_personal() -> None:
    line = json.dumps(
        {
            "@timestamp": "2026-03-01T10:00:00Z",
            "level": "error",
            "msg": "anna broke it",
            "ip": "203.0.113.7",
            "req": {"user": "anna", "n": [1]},
        }
    )
    (event,) = read("json", line)
    assert (event.time, event.type, event.severity, event.raw, event.message) == (
        at(2026, 3, 1, 10),
        "application.error",
        3,
        "anna broke it",
        None,
    )
    assert event.src_ip == "203.0.113.7"
    assert event.data == {"level": "error", "req": {"n": [1]}, "person": {"req.user": "anna"}}
    assert "person" in PERSONAL_KEYS
    core, _ = encode_lines([event])
    assert b"anna" not in core[0]


def test_json_types_of_the_taxonomy_are_taken_but_not_those_that_only_the_agent_may_raise() -> None:
    (event,) = read("json", '{"type":"quality.rejected","time":1772359200}')
    assert (event.type, event.time) == ("quality.rejected", at(2026, 3, 1, 10))
    (event,) = read("json", '{"type":"alert","time":1772359200000}')
    assert (event.type, event.time, event.data) == ("application", at(2026, 3, 1, 10), {"type": "alert"})


def test_winston_lines_with_colour_splat_and_nested_meta() -> None:
    line = json.dumps(
        {
            "level": "\u001b[33mwarn\u001b[39m",
            "message": "user %s did %d things",
            "splat": ["anna", 3],
            "timestamp": "2026-03-01T10:00:00.000Z",
            "meta": {"correlationId": "c-1", "user": "anna", "order": {"id": 7, "email": "a@b"}},
            "stack": "Error: x\n at y",
        }
    )
    (event,) = read("winston", line)
    assert (event.severity, event.correlation_id, event.actor) == (2, "c-1", "anna")
    assert (event.message, event.raw) == ("user %s did %d things", "user anna did 3 things")
    assert event.data["level"] == "warn"
    assert event.data["order"] == {"id": 7}
    assert event.data["person"] == {"order.email": "a@b", "splat": ["anna", 3]}


def test_winston_for_logstash_keeps_level_and_names_in_its_fields() -> None:
    record = {
        "@fields": {"correlationId": "o-1", "ip": "192.0.2.8", "level": "warn", "user": "anna", "stack": ["Error: x", "  at y"]},
        "@message": "recipe missing",
        "@timestamp": "2026-03-01T10:00:00.000Z",
        "@source_host": "st1",
    }  # fmt: skip
    (event,) = read("winston", json.dumps(record))
    assert (event.severity, event.correlation_id, event.src_ip, event.actor) == (2, "o-1", "192.0.2.8", "anna")
    assert (event.time, event.raw, event.data["stack"]) == (at(2026, 3, 1, 10), "recipe missing", "Error: x\n  at y")


@pytest.mark.parametrize(
    ("stack", "kept"),
    [
        ("Error: x\n at y", "Error: x\n at y"),
        (["Error: x", "  at y"], "Error: x\n  at y"),
        ([{"line": 7}, "y"], '{"line":7}\ny'),
        ({"line": 7}, {"line": 7}),
    ],
)
def test_a_stack_is_kept_whatever_its_form(stack: Any, kept: Any) -> None:
    (event,) = read("winston", json.dumps({"level": "error", "message": "m", "stack": stack}))
    assert (event.type, event.data["stack"]) == ("application.error", kept)


def test_the_time_of_an_exception_that_winston_caught_is_read() -> None:
    line = '{"date":"Sun Mar 01 2026 11:00:00 GMT+0100 (Central European Standard Time)","level":"error","message":"uncaughtException: x"}'
    (event,) = read("winston", line)
    assert event.time == at(2026, 3, 1, 10)


def test_half_an_emoji_does_not_cost_a_json_line_its_level() -> None:
    """A program cut a text in the middle of a pair of surrogates: JavaScript writes it, and no text can hold it."""
    (event,) = read("winston", r'{"level":"error","message":"cut \ud83d","whole":"\ud83d\ude00","path":"C:\\ud800"}')
    assert (event.severity, event.raw) == (3, r"cut \ud83d")
    assert (event.data["whole"], event.data["path"]) == ("\U0001f600", r"C:\ud800")


def test_csv_header_its_change_its_repetition_and_rows_that_do_not_fit() -> None:
    memory: dict[str, Any] = {}
    events = read(
        "csv", "time;temp;state", "2026-03-01 10:00:00;20.5;RUN", "time;temp;state", "1;2", "time;temp;speed", "2026-03-01 10:00:01;21;900",
        '2026-03-01 10:00:02;"a', 'b";7', type="equipment.reading", memory=memory,
    )  # fmt: skip
    assert [event.type for event in events] == [
        "equipment.reading",
        "log.line",
        "log",
        "equipment.reading",
        "equipment.reading",
    ]
    assert (events[0].time, events[0].data) == (at(2026, 3, 1, 10), {"temp": 20.5, "state": "RUN"})
    assert events[3].data == {"temp": 21, "speed": 900}
    assert events[4].data == {"temp": "a\nb", "speed": 7}
    assert memory["columns"] == ["time", "temp", "speed"]


def test_logfmt_and_prose() -> None:
    event, prose = read(
        "logfmt", r'time=2026-03-01T10:00:00Z level=warn msg="a \"b\" c" user=anna n=3 flag', "this is a = b text"
    )
    assert (event.time, event.severity, event.raw, event.actor, event.data) == (
        at(2026, 3, 1, 10), 2, 'a "b" c', "anna", {"level": "warn", "n": 3, "flag": True},
    )  # fmt: skip
    assert prose.type == "log.line"


def test_a_pattern_names_the_fields() -> None:
    pattern = r"^(?P<time>\S+ \S+) LOGIN (?P<outcome>ok|failed) (?P<actor>\w+) panel=(?P<panel>\d+)"
    ok, other = read(
        "regex",
        "2026-03-01 10:00:00 LOGIN failed anna panel=4",
        "something else",
        pattern=pattern,
        type="authentication",
    )
    assert (ok.time, ok.outcome, ok.actor, ok.severity, ok.data) == (
        at(2026, 3, 1, 10),
        "failure",
        "anna",
        3,
        {"panel": 4},
    )
    assert other.raw == "something else"


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("", "needs a pattern"),
        ("(", "pattern:"),
        ("abc", "no named group"),
        (r"(?P<a>(x+)+)y", "inside another"),
        (r"(?P<a>(x*|y)*)z", "inside another"),
    ],
)
def test_a_pattern_that_cannot_work_or_can_take_for_ever_is_refused(pattern: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        LogConfig(paths=("/x",), parser="regex", options={"pattern": pattern})


def test_check_finds_a_pattern_that_is_slow_on_lines_made_to_hurt() -> None:
    config = LogConfig(
        paths=("/tmp/x*",), parser="regex", options={"pattern": r"(?P<a>.*)(?P<b>.*)(?P<c>.*)(?P<d>.*)zz"}
    )
    assert any(key == "options.pattern" for key, _, _ in config.problems())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"parser": "auht"}, "Did you mean 'auth'"),
        ({"parser": "csv", "options": {"delimeter": ";"}}, "did you mean 'delimiter'"),
        ({"parser": "csv", "options": {"delimiter": 5}}, "options: Expected `str`"),
        ({"paths": ("auth.log",)}, "not an absolute path"),
        ({"time_zone": "Mars/Base"}, "no time zone"),
        ({"multiline_start": "("}, "multiline_start"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        LogConfig(**{"paths": ("/var/log/x",), "parser": "auth", **changes})


def test_lines_of_one_record_are_joined_and_the_last_record_waits() -> None:
    config = LogConfig(
        paths=("/x",),
        parser="regex",
        options={"pattern": r"^(?P<level>\w+): (?P<message>[\s\S]*)"},
        multiline_start=r"^\w+:",
    )
    joined = config.make_parser("s")
    lines = ["ERROR: a", "  at b", "  at c", "INFO: d", "  e"]
    events, consumed = joined.parse(lines, observed_us=NOW, reference_us=NOW, memory={})
    assert ([event.raw for event in events], consumed) == (["a\n  at b\n  at c"], 3)
    events, consumed = joined.parse(lines[3:], observed_us=NOW, reference_us=NOW, memory={}, final=True)
    assert ([event.raw for event in events], consumed) == (["d\n  e"], 2)


KINDS = {"regex": {"pattern": r"(?P<time>\S+) (?P<actor>\w+)"}}
SEEDS = [line for _, line, *_ in SAID] + [
    "type=SYSCALL msg=audit(1.000:7): a=b",
    '{"a":',
    "a=b",
    '<34>1 - - - - - [x y="z"]',
    "1,2",
    '"',
]
lines_of_text = st.lists(
    st.one_of(
        st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=60),
        st.sampled_from(SEEDS).map(lambda text: "Mar  1 10:00:00 h sshd[1]: " + text),
        st.sampled_from(SEEDS),
        st.sampled_from(SEEDS).flatmap(lambda text: st.integers(0, len(text)).map(lambda n: text[:n])),
    ),
    max_size=12,
)


@pytest.mark.parametrize("kind", sorted(PARSERS))
@settings(max_examples=150, deadline=None)
@given(lines=lines_of_text, cuts=st.lists(st.integers(1, 5), max_size=12))
def test_no_text_makes_a_parser_raise_or_lose_a_line_however_it_is_fed(
    kind: str, lines: list[str], cuts: list[int]
) -> None:
    feeder = parser(kind, keep_raw=True, **KINDS.get(kind, {}))
    memory: dict[str, Any] = {}
    events: list[Event] = []
    position = fed = 0
    for cut in [*cuts, len(lines)]:
        fed = min(len(lines), fed + cut)
        found, consumed = feeder.parse(lines[position:fed], observed_us=NOW, reference_us=NOW, memory=memory)
        events += found
        position += consumed
    for _ in range(len(lines) + 1):
        found, consumed = feeder.parse(lines[position:], observed_us=NOW, reference_us=NOW, memory=memory, final=True)
        events += found
        position += consumed
    assert position == len(lines)
    encode_lines(events)
    raws = "\n".join(event.raw or "" for event in events)
    if kind != "csv":  # whose header is no event
        assert all(line in raws for line in lines if line.strip())
    json.dumps(memory)


def test_every_parser_of_the_table_can_be_loaded() -> None:
    for kind in PARSERS:
        assert load(PARSERS, kind, what="parser", extra={}).Config is not None
