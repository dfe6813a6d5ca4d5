"""`linewarden-agent check`, as it is installed, on configurations that cannot work: every problem with its key and a remedy, exit 2."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import ANY

import pytest

from agent import cli
from tests.commands import run_main

WRONG = 2
SECRET = "hunter2-do-not-print"

GOOD = """\
[agent]
state_dir = "{state}"

[sync]
url = "https://collector.corp.example:8443"

[sources.press_plc]
type = "modbus"
url = "tcp://192.168.10.7:502"
unit = 1
[[sources.press_plc.points]]
name = "oil_temperature"
address = 100
type = "float32"
scale = 0.1
[[sources.press_plc.points]]
name = "speed_setpoint"
address = 200
role = "setpoint"

[sources.auth]
type = "log"
paths = ["{state}/auth.log"]
parser = "auth"

[handlers.many_failures]
type = "count"
where = "type == 'authentication.failure'"
by = ["src_ip"]
at_least = 5
within_s = 60
raises = {{ type = "alert.authentication.many", severity = "high" }}
"""


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder with a short name: long values are cut where they are quoted."""
    with TemporaryDirectory(prefix="lw") as folder:
        yield Path(folder)


def check(
    path: Path, *options: str, environ: Mapping[str, str] | None = None, wrapper: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run it; as a program of its own only behind a wrapper."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LINEWARDEN_")}
    if not wrapper:
        return run_main(cli.main, "check", "--config", str(path), *options, environ={**inherited, **(environ or {})})
    program = Path(sys.executable).with_name("linewarden-agent")
    return subprocess.run(
        [*wrapper, str(program), "check", "--config", str(path), *options],
        env={**inherited, **(environ or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def problems(done: subprocess.CompletedProcess[str]) -> list[tuple[str, str, str]]:
    """What it found; and that it ended as it should."""
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode == WRONG, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is False
    return [(each["key"], each["text"], each["remedy"]) for each in report["problems"]]


@pytest.fixture
def good(tmp_path: Path) -> str:
    (tmp_path / "auth.log").write_text("")
    return GOOD.format(state=tmp_path)


def test_a_configuration_that_is_right_is_said_to_be_so(tmp_path: Path, good: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(good)
    done = check(path)
    assert (done.returncode, done.stderr) == (0, "")
    said, _, warned = done.stdout.partition("\n")
    assert said == f"{path}: all right. Sources: 2; handlers beside the built-in ones: 1."
    assert "identity: the agent is not enrolled" in warned
    assert "1 warning" in warned
    assert json.loads(check(path, "--json").stdout) == {
        "ok": True, "file": str(path), "problems": [], "sources": 2, "handlers": 1, "warnings": [ANY],
    }  # fmt: skip


# Each breaks one thing in the good one: what is replaced, by what, and what is said of it.
BROKEN = {
    "unknown key": (
        ("unit = 1\n", "unit = 1\nintervall_s = 2\n"),
        ("sources.press_plc.intervall_s", "there is no such key", "Did you mean interval_s?"),
    ),
    "unknown key deep inside": (
        ("address = 200\n", "adress = 200\n"),
        ("sources.press_plc.points[1].adress", "there is no such key", "Did you mean address?"),
    ),
    "unknown key that is near to nothing": (
        ("[agent]\n", "[agent]\nxyz = 1\n"),
        ("agent.xyz", "there is no such key", "Known here: state_dir."),
    ),
    "unknown section": (
        ("[sources.auth]", "[source.auth]"),
        ("source", "there is no such section", "Did you mean sources?"),
    ),
    "text for a number": (
        ("address = 200", 'address = "200"'),
        (
            "sources.press_plc.points[1].address",
            "must be a whole number, is the text '200'",
            "Write it without quotes: address = 200",
        ),
    ),
    "text that is no number": (
        ("address = 200", 'address = "abc"'),
        ("sources.press_plc.points[1].address", "must be a whole number, is the text 'abc'", "Correct the value."),
    ),
    "text for a list": (
        ('paths = ["{state}/auth.log"]', 'paths = "{state}/auth.log"'),
        (
            "sources.auth.paths",
            "must be a list, is the text '{state}/auth.log'",
            'Write it as a list: paths = ["{state}/auth.log"]',
        ),
    ),
    "number for a table": (
        ("[sources.auth]\n", "[sources]\nbroken = 5\n[sources.auth]\n"),
        ("sources.broken", "must be a table, is the whole number 5", "Write it as [sources.broken]."),
    ),
    "out of bounds": (
        ("[sync]\n", "[buffer]\nbytes_max = 5\n[sync]\n"),
        ("buffer.bytes_max", "must be at least 1_048_576, is 5", "Correct the number."),
    ),
    "not a number": (
        ("scale = 0.1", "scale = nan"),
        ("sources.press_plc.points[0].scale", "must be a finite number, is nan", "Correct the number."),
    ),
    "choice": (
        ('role = "setpoint"', 'role = "set_point"'),
        (
            "sources.press_plc.points[1].role",
            "must be one of 'reading', 'counter', 'state', 'setpoint', 'mode', 'identity', is the text 'set_point'",
            "Did you mean setpoint?",
        ),
    ),
    "bad collector address": (
        ('"https://collector.corp.example:8443"', '"collector.corp.example"'),
        ("sync.url", "url 'collector.corp.example' is no collector's address", "Write https://host:port."),
    ),
    "plaintext to another computer": (
        ('"https://', '"http://'),
        (
            "sync.url",
            "url is http:// to another computer: events would travel unprotected",
            "Use https://, or set allow_plaintext = true.",
        ),
    ),
    "bad device address": (
        ("tcp://192.168.10.7:502", "192.168.10.7"),
        (
            "sources.press_plc.url",
            "'192.168.10.7' is not a Modbus address",
            "Write tcp://HOST:502, tls://HOST:802, rtu+tcp://HOST:PORT or rtu:///dev/ttyUSB0?baudrate=19200.",
        ),
    ),
    "secret in the address": (
        ("https://collector", f"https://agent:{SECRET}@collector"),
        (
            "sync.url",
            "holds a user or password, which would end up in logs",
            "Take it out of the address, and use the keys that end in _file.",
        ),
    ),
    "secret inline": (
        ("[sync]\n", f'[sync]\nkey = "{SECRET}"\n'),
        (
            "sync.key",
            "a secret does not stand in the configuration itself",
            "Put it into a file that only the agent's user can read, and give key_file with its path.",
        ),
    ),
    "missing secret file": (
        ("[sync]\n", '[sync]\nkey_file = "{state}/no.key"\n'),
        (
            "sync.key_file",
            "{state}/no.key: No such file or directory",
            "Name a file that exists and that the agent's user can read.",
        ),
    ),
    "secret for everybody": (
        ("[sync]\n", '[sync]\nkey_file = "{state}/open.key"\n'),
        (
            "sync.key_file",
            "{state}/open.key holds a secret and can be read by everybody on this computer",
            "chmod o= {state}/open.key",
        ),
    ),
    "empty secret": (
        ("[sync]\n", '[sync]\nkey_file = "{state}/empty.key"\n'),
        ("sync.key_file", "{state}/empty.key is empty", "Put into it what it should hold."),
    ),
    "secret in a pipe": (
        ("[sync]\n", '[sync]\nkey_file = "{state}/pipe.key"\n'),
        ("sync.key_file", "{state}/pipe.key is a pipe or a socket", "Name a file."),
    ),
    "authority that is no certificate": (
        ("[sync]\n", '[sync]\nca_file = "{state}/open.key"\n'),
        (
            "sync.ca_file",
            "{state}/open.key holds no certificate",
            "Give the PEM file of the authority that signed the collector's certificate.",
        ),
    ),
    "table twice": (
        ("[handlers.many_failures]", "[sources.auth]\n[handlers.many_failures]"),
        (
            "sources.auth",
            "stands twice in the file, the second time in line 26, column 14",
            "Rename one of the two, or put them together.",
        ),
    ),
    "key twice": (
        ("unit = 1\n", "unit = 1\nunit = 2\n"),
        (
            "sources.press_plc.unit",
            "stands twice in the file, the second time in line 11, column 9",
            "Rename one of the two, or put them together.",
        ),
    ),
    "point twice": (
        ('"speed_setpoint"', '"oil_temperature"'),
        (
            "sources.press_plc.points",
            "two points of unit 1 are called 'oil_temperature'",
            "Rename one of them.",
        ),
    ),
    "names that only differ in case": (
        ("[sources.auth]\n", '[sources.Press-PLC]\ntype = "log"\npaths = ["/x"]\nparser = "auth"\n[sources.auth]\n'),
        (
            "sources.Press-PLC",
            "cannot be told apart from sources.press_plc in the environment",
            "Rename one of the two.",
        ),
    ),
    "bad name": (
        ("[sources.auth]", '[sources."auth log"]'),
        (
            'sources."auth log"',
            "'auth log' cannot be the name of a source",
            "Use letters, digits, - and _, at most 64, beginning and ending with a letter or digit.",
        ),
    ),
    "file read twice": (
        (
            "[sources.auth]\n",
            '[sources.first]\ntype = "log"\npaths = ["{state}/auth.log"]\nparser = "auth"\n[sources.auth]\n',
        ),
        (
            "sources.auth.paths",
            "{state}/auth.log is read by sources.first too, so every line of it would be two events",
            "Take it out of one of the two.",
        ),
    ),
    "unknown type": (
        ('type = "modbus"', 'type = "modbuss"'),
        ("sources.press_plc.type", "there is no source type 'modbuss'", "Did you mean 'modbus'?"),
    ),
    "unknown parser": (
        ('parser = "auth"', 'parser = "atuh"'),
        ("sources.auth.parser", "there is no parser 'atuh'", "Did you mean 'auth'?"),
    ),
    "no address of the collector": (
        ('url = "https://collector.corp.example:8443"\n', ""),
        ("sync.url", "is missing", 'Add url = "…" (a text).'),
    ),
    "open to the network": (
        ("[sync]\n", '[health]\nlisten = "0.0.0.0:8801"\n[sync]\n'),
        (
            "health.listen",
            "0.0.0.0:8801 is reached by other computers, who could read what the agent is doing",
            "Listen on 127.0.0.1, or set allow_remote = true.",
        ),
    ),
    "expression": (
        ("type == 'authentication.failure'", "type = 'authentication.failure'"),
        (
            "handlers.many_failures.where",
            "cannot read '=' (write == to compare), at column 6",
            "Correct it there: type = 'authentication.failure'",
        ),
    ),
    "state folder that cannot be": (
        ('state_dir = "{state}"', 'state_dir = "{state}/open.key"'),
        ("agent.state_dir", "{state}/open.key is not a folder", "Name a folder."),
    ),
    "not TOML": (
        ('url = "tcp://192.168.10.7:502"', "url = tcp://192.168.10.7:502"),
        (
            "",
            "this is not TOML in line 9, column 7: invalid value",
            "Correct it there: url = tcp://192.168.10.7:502",
        ),
    ),
    "a date": (
        ('parser = "auth"', "parser = 2026-01-01"),
        ("sources.auth.parser", "must not be a date or time, is 2026-01-01", 'Write it in quotes: "2026-01-01"'),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_configuration_is_told_with_key_and_remedy(tmp_path: Path, good: str, name: str) -> None:
    (old, new), (key, text, remedy) = BROKEN[name]
    old, new = (each.replace("{state}", str(tmp_path)) for each in (old, new))
    assert old in good
    (tmp_path / "open.key").write_text(SECRET)
    (tmp_path / "open.key").chmod(0o644)
    (tmp_path / "empty.key").write_text("\n")
    (tmp_path / "empty.key").chmod(0o600)
    os.mkfifo(tmp_path / "pipe.key", 0o600)
    path = tmp_path / "agent.toml"
    path.write_text(good.replace(old, new, 1))
    done = check(path, "--json")
    found = problems(done)
    assert [each[0] for each in found] == [key]
    assert found == [(key, text.replace("{state}", str(tmp_path)), remedy.replace("{state}", str(tmp_path)))]
    assert SECRET not in done.stdout + done.stderr
    for_people = check(path)
    assert for_people.returncode == WRONG
    assert for_people.stdout.startswith(f"{path}: 1 problem\n")
    assert f"{key}: {found[0][1]}\n      {found[0][2]}" in for_people.stdout or not key
    assert "Traceback" not in for_people.stdout + for_people.stderr


def test_all_problems_of_all_parts_are_told_at_once(tmp_path: Path, good: str) -> None:
    path = tmp_path / "agent.toml"
    text = (
        good.replace("unit = 1\n", 'unit = "one"\n')
        .replace("scale = 0.1", "scale = inf")
        .replace('parser = "auth"\n', "")
    )
    path.write_text(text.replace("at_least = 5", "at_least = 0") + "[health]\nport = 80\n[extra]\n")
    assert {each[0] for each in problems(check(path, "--json"))} == {
        "sources.press_plc.unit",
        "sources.press_plc.points[0].scale",
        "sources.auth.parser",
        "handlers.many_failures.at_least",
        "health.port",
        "extra",
    }


# ── the file itself ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    remedy = "Name another with --config FILE, or begin with agent.example.toml."
    assert problems(check(path, "--json")) == [("", f"there is no file {path}", remedy)]


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    assert problems(check(tmp_path, "--json")) == [("", f"{tmp_path} is a folder", "Name the file in it.")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[agent]\n# caf\xe9\n", "line 2 is not UTF-8"),
        (b"x = " + b"[" * 5_000, "is nested too deeply"),
        (b"[agent", "this is not TOML in line 1, column 7"),
        (b'[agent]\nstate_dir = "/x', "this is not TOML in line 2, column 16 (the end)"),
        (b"#" * (4 * 1024 * 1024 + 1), "is longer than 4194304 bytes"),
        (b"\x00\x01\x02", "this is not TOML in line 1, column 1"),
    ],
)
def test_a_file_that_is_no_configuration_at_all_is_told(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_bytes(content)
    found = problems(check(path, "--json"))
    assert len(found) == 1
    assert says in found[0][1]
    assert found[0][2]


def test_a_secret_is_not_shown_where_the_toml_breaks_at_it(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(f"[sync]\npassword = {SECRET}\n")
    done = check(path, "--json")
    assert problems(done)[0][2] == "Correct it there"
    assert SECRET not in done.stdout


@pytest.mark.skipif(shutil.which("setpriv") is None and os.geteuid() == 0, reason="needs setpriv to be less than root")
def test_what_the_user_may_not_read_is_named(tmp_path: Path, good: str) -> None:
    capabilities = "-dac_override,-dac_read_search"
    wrapper = ("setpriv", f"--inh-caps={capabilities}", f"--bounding-set={capabilities}") if os.geteuid() == 0 else ()
    secret, path = tmp_path / "agent.key", tmp_path / "agent.toml"
    secret.write_text(SECRET)
    secret.chmod(0o000)
    path.write_text(good.replace("[sync]\n", f'[sync]\nkey_file = "{secret}"\n'))
    remedy = "Name a file that exists and that the agent's user can read."
    assert problems(check(path, "--json", wrapper=wrapper)) == [
        ("sync.key_file", f"{secret}: Permission denied", remedy)
    ]
    path.chmod(0o000)
    found = problems(check(path, "--json", wrapper=wrapper))
    assert found[0][1] == f"{path} may not be read by this user"
    assert f"chmod 640 {path}" in found[0][2]


# ── the environment ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_problem_of_the_environment_names_its_variable(tmp_path: Path, good: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(good)
    environ = {
        "LINEWARDEN_AGENT__SYNC__BATCH_BYTES_MAX": "5",
        "LINEWARDEN_AGENT__SOURCES__PRESS_PLC__UNIT": "many",
        "LINEWARDEN_AGENT__BUFER__BYTES_MAX": "5",
        "LINEWARDEN_AGENT__SYNC": "x",
    }
    assert sorted(problems(check(path, "--json", environ=environ))) == [
        (
            "LINEWARDEN_AGENT__SYNC",
            "this variable names no key",
            "Write it as LINEWARDEN_AGENT__SECTION__KEY, as in LINEWARDEN_AGENT__SYNC__URL.",
        ),
        ("bufer", "there is no such section (from LINEWARDEN_AGENT__BUFER__BYTES_MAX)", "Did you mean buffer?"),
        (
            "sources.press_plc.unit",
            "must be a whole number, is the text 'many' (from LINEWARDEN_AGENT__SOURCES__PRESS_PLC__UNIT)",
            "Correct the value.",
        ),
        (
            "sync.batch_bytes_max",
            "must be at least 16_384, is 5 (from LINEWARDEN_AGENT__SYNC__BATCH_BYTES_MAX)",
            "Correct the number.",
        ),
    ]


def test_the_environment_mends_what_is_wrong_in_the_file(tmp_path: Path, good: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(good.replace("tcp://192.168.10.7:502", "192.168.10.7"))
    assert check(path).returncode == WRONG
    assert check(path, environ={"LINEWARDEN_AGENT__SOURCES__PRESS_PLC__URL": "tcp://10.0.0.1:502"}).returncode == 0
