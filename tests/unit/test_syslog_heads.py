"""The head of a syslog line, in every form that daemons and devices write: no part of a time is a host, no part of a head is text."""

# ruff: noqa: E501  # a table of lines

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.parsers.base import Context, zone_of
from agent.parsers.messages import split_tag
from agent.sources.logfile import parser_of
from agent.wire.event import Event
from tests.unit.test_parsers import read

NOW = round(datetime(2026, 12, 1, 12, tzinfo=UTC).timestamp() * 1e6)
SAID = "Failed password for root from 192.0.2.54 port 22 ssh2"


def us(*when: int, micro: int = 0) -> int:
    return round(datetime(*when, tzinfo=UTC).timestamp()) * 1_000_000 + micro  # type: ignore[arg-type, misc]


def one(kind: str, line: str) -> Event:
    (event,) = read(kind, line, now_us=NOW)
    return event


SEVENTH = us(2026, 11, 7, 16, 1, 7)
# line → host, time
HEADS: list[tuple[str, str | None, int]] = [
    ("Nov  7 16:01:07 plc7 sshd[5106]: ", "plc7", SEVENTH),
    ("Nov 7 16:01:07 plc7 sshd[5106]: ", "plc7", SEVENTH),
    ("Nov 07 16:01:07 plc7 sshd[5106]: ", "plc7", SEVENTH),
    ("Nov  7 16:01:07.123 plc7 sshd[5106]: ", "plc7", SEVENTH + 123_000),
    ("Nov  7 16:01:07.123456 plc7 sshd[5106]: ", "plc7", SEVENTH + 123_456),
    ("Nov  7 16:01:07 UTC plc7 sshd[5106]: ", "plc7", SEVENTH),
    ("Nov  7 16:01:07 UTC sshd[5106]: ", None, SEVENTH),
    ("Nov  7 16:01:07.5 CET plc7 sshd[5106]: ", "plc7", us(2026, 11, 7, 15, 1, 7, micro=500_000)),
    ("Nov  7 16:01:07 +0200 plc7 sshd[5106]: ", "plc7", us(2026, 11, 7, 14, 1, 7)),
    ("Nov  7 16:01:07 -03:30 plc7 sshd[5106]: ", "plc7", us(2026, 11, 7, 19, 31, 7)),
    ("Nov  7 16:01:07Z plc7 sshd[5106]: ", "plc7", SEVENTH),
    ("Nov  7 2025 16:01:07 plc7 sshd[5106]: ", "plc7", us(2025, 11, 7, 16, 1, 7)),
    ("Nov 7 2025 16:01:07 plc7 sshd[5106]: ", "plc7", us(2025, 11, 7, 16, 1, 7)),
    ("2025 Nov  7 16:01:07 plc7 sshd[5106]: ", "plc7", us(2025, 11, 7, 16, 1, 7)),
    ("Fri Nov  7 16:01:07 2025 plc7 sshd[5106]: ", "plc7", us(2025, 11, 7, 16, 1, 7)),
    ("Nov  7 16:01:60 plc7 sshd[5106]: ", "plc7", us(2026, 11, 7, 16, 1, 59)),
    ("2026-11-07T16:01:07+00:00 plc7 sshd[5106]: ", "plc7", SEVENTH),
    ("2026-11-07T16:01:07.123456789Z plc7 sshd[5106]: ", "plc7", SEVENTH + 123_456),
    ("2026-11-07T16:01:07,123+0100 plc7 sshd[5106]: ", "plc7", us(2026, 11, 7, 15, 1, 7, micro=123_000)),
    ("2026-11-07 16:01:07 plc7 sshd[5106]: ", "plc7", SEVENTH),
    ("2026-11-07 16:01:07.5 +0100 plc7 sshd[5106]: ", "plc7", us(2026, 11, 7, 15, 1, 7, micro=500_000)),
    ("2026-11-07 16:01:07 UTC plc7 sshd[5106]: ", "plc7", SEVENTH),
    ("2026-11-07T16:01:60+00:00 plc7 sshd[5106]: ", "plc7", us(2026, 11, 7, 16, 1, 59)),
    ("2016-12-31T23:59:60Z plc7 sshd[5106]: ", "plc7", us(2016, 12, 31, 23, 59, 59)),
    ("Nov  7 16:01:07 plc7 sshd[5106] ", "plc7", SEVENTH),
    ("Nov  7 16:01:07 plc7 sshd: ", "plc7", SEVENTH),
    ("Nov  7 16:01:07 plc7 sshd ", "plc7", SEVENTH),
    ("Nov  7 16:01:07 plc7 /usr/sbin/sshd[5106]: ", "plc7", SEVENTH),
    ("Nov  7 16:01:07 plc7 sshd[5106]: [ID 800047 auth.info] ", "plc7", SEVENTH),
    ("Nov  7 16:01:07 sshd[5106]: ", None, SEVENTH),
    ("Nov  7 16:01:07 plc7 auth.info sshd[5106]: ", "plc7", SEVENTH),
    ("Nov  7 16:01:07 auth.info sshd[5106]: ", None, SEVENTH),
    ("Nov  7 16:01:07 <auth.info> plc7 sshd[5106]: ", "plc7", SEVENTH),
    ("Fri Nov  7 16:01:07 2025 authpriv.info sshd[5106]: ", None, us(2025, 11, 7, 16, 1, 7)),
    ("Nov  7 16:01:07 10.0.0.7 sshd[5106]: ", "10.0.0.7", SEVENTH),
    ("Nov  7 16:01:07 2001:db8::7 sshd[5106]: ", "2001:db8::7", SEVENTH),
    ("Nov  7 16:01:07 MSK sshd[5106]: ", "MSK", SEVENTH),  # a host of that name, where no other stands there
    ("1 2026-11-07T16:01:07.123Z plc7 sshd 5106 - - ", "plc7", SEVENTH + 123_000),
    ('1 2026-11-07T16:01:07Z plc7 /usr/sbin/sshd 5106 - [a@1 b="[c]"] ', "plc7", SEVENTH),
]  # fmt: skip


@pytest.mark.parametrize("priority", ["", "<38>", "<38> "])
@pytest.mark.parametrize("kind", ["auth", "syslog"])
@pytest.mark.parametrize(("head", "host", "time_us"), HEADS)
def test_host_program_and_time_are_read_from_every_form_of_a_head(
    head: str, host: str | None, time_us: int, kind: str, priority: str
) -> None:
    event = one(kind, f"{priority}{head}{SAID}")
    assert (event.type, event.src_ip, event.actor) == ("authentication.failure", "192.0.2.54", "root")
    assert (event.data.get("host"), event.data["program"]) == (host, "sshd")
    assert event.time == time_us


@pytest.mark.parametrize(
    ("line", "host", "program", "type_", "src_ip"),
    [
        ("<189>782431: Nov  7 16:01:07.123 UTC: %SYS-5-CONFIG_I: Configured from console by ann on vty0 (192.0.2.7)", None, "SYS-5-CONFIG_I", "configuration.changed", "192.0.2.7"),
        ("<189>45: *Nov  7 16:01:07.123: %SYS-5-CONFIG_I: Configured from console by ann on vty0 (192.0.2.7)", None, "SYS-5-CONFIG_I", "configuration.changed", "192.0.2.7"),
        ("<189>45: sw3: 000120: Nov  7 16:01:07.123 CET: %LINK-3-UPDOWN: Interface GigabitEthernet1/0/5, changed state to down", "sw3", "LINK-3-UPDOWN", "network.link.down", None),
        ("<187>: 2026 Nov  7 16:01:07.123 UTC: %SYS-5-CONFIG_I: Configured from vty by ann on 192.0.2.7", None, "SYS-5-CONFIG_I", "configuration.changed", None),
        ("Nov  7 16:01:07 sw3 %SEC-6-IPACCESSLOGP: list 102 denied tcp 192.0.2.7(3067) -> 198.51.100.4(139), 1 packet", "sw3", "SEC-6-IPACCESSLOGP", "network.connection", "192.0.2.7"),
        ("Nov  7 16:01:07 sw3: %SEC_LOGIN-4-LOGIN_FAILED: Login failed [user: ann] [Source: 192.0.2.7] [localport: 22] [Reason: Login Authentication Failed] at 16:01:07 UTC", "sw3", "SEC_LOGIN-4-LOGIN_FAILED", "authentication.failure", "192.0.2.7"),
        ("Nov  7 16:01:07 fw1 : %ASA-6-302013: Built inbound TCP connection", "fw1", "ASA-6-302013", "log.line", None),
    ],
)  # fmt: skip
def test_heads_of_network_devices(line: str, host: str | None, program: str, type_: str, src_ip: str | None) -> None:
    event = one("syslog", line)
    assert (event.data.get("host"), event.data.get("program"), event.type, event.src_ip) == (host, program, type_, src_ip)  # fmt: skip


def test_the_word_of_the_facility_is_kept_and_gives_an_unknown_line_its_severity() -> None:
    event = one("syslog", "Nov  7 16:01:07 gw3 daemon.crit hmi[7]: door open")
    assert (event.type, event.severity, event.data["facility"]) == ("log.line", 4, "daemon")


def test_a_line_that_stands_for_repetitions_says_how_many() -> None:
    event = one("syslog", "Nov  7 16:01:07 gw3 last message repeated 3 times")
    assert (event.type, event.data["count"]) == ("log", 3)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("app: a: b", ("app", "", "a: b")),
        ("app[12]: x", ("app", "12", "x")),
        ("app[12] x: y", ("app", "12", "x: y")),
        ("/opt/x/app[1]: y", ("app", "1", "y")),
        ("postfix/smtpd[1]: y", ("postfix/smtpd", "1", "y")),
        ("gdm-password][2034]: y", ("gdm-password]", "2034", "y")),
        ("two words: x", ("", "", "two words: x")),
        ("login attempt of somebody", ("", "", "login attempt of somebody")),
        ("su: (to root) ann on pts/0", ("su", "", "(to root) ann on pts/0")),
        ("app:", ("app", "", "")),
        ("", ("", "", "")),
        ("[x", ("", "", "[x")),
    ],
)
def test_program_and_pid_are_split_from_the_text(text: str, parts: tuple[str, str, str]) -> None:
    assert split_tag(text) == parts


words = st.sampled_from(
    ["Nov", "Nov  7 16:01:07", "7", "2026", "16:01:07", ".5", "UTC", "+0100", "auth.info", "<38>", "1", "-", ":", "%SYS-5-X:", "plc7", "sshd[1]:", "sshd", SAID,
     "2026-11-07T16:01:07Z", "2026-11-07", "45:", "[a@1", 'b="c"]', "last message repeated 3 times", "[pid", "Fri", "\t", "é"]
)  # fmt: skip


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
@settings(max_examples=200, deadline=None)
@given(parts=st.lists(words, min_size=1, max_size=8), joint=st.sampled_from([" ", "", "  "]))
def test_any_mixture_of_parts_of_heads_becomes_an_event_that_keeps_the_line(
    zone: str, parts: list[str], joint: str
) -> None:
    line = joint.join(parts)
    for kind in ("auth", "syslog"):
        parser = parser_of(kind, {}, Context("s", keep_raw=True, zone=zone_of(zone)))
        events, consumed = parser.parse([line], observed_us=NOW, reference_us=NOW, memory={}, final=True)
        assert consumed == 1
        assert all(event.raw == line for event in events)
        assert len(events) == bool(line.strip())
