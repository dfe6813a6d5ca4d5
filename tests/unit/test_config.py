"""How the configuration is layered, judged, and handed to the daemon."""

import asyncio
import dataclasses
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import config as config_module
from agent.config import ConfigProblems, Problem, Settings, from_plain, load, to_plain
from agent.config_read import resolve, section, validated
from agent.config_words import at, key_text, nearest, problems_of, sentence, wanted
from agent.handlers import HANDLERS
from agent.handlers.count import ConfigCount
from agent.health import HealthConfig
from agent.sources import SOURCES
from agent.sources.modbus import ConfigModbus

MINIMAL = '[sync]\nurl = "https://c:8443"\n'
PREFIX = "LINEWARDEN_AGENT__"
LOG = '[sources.auth]\ntype = "log"\npaths = ["/x"]\nparser = "auth"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(MINIMAL)
    return path


def read(file: Path, **variables: str) -> Settings:
    return validated(file, {PREFIX + name: value for name, value in variables.items()})


def problems(file: Path, **variables: str) -> list[Problem]:
    with pytest.raises(ConfigProblems) as caught:
        read(file, **variables)
    return list(caught.value.problems)


# ── layers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_not_given_has_its_default(file: Path) -> None:
    found = read(file)
    assert found.agent.state_dir == "/var/lib/linewarden"
    assert found.buffer.bytes_max == 2_147_483_648
    assert found.health == HealthConfig()
    assert (found.sources, found.handlers) == ({}, {})


def test_the_environment_wins_over_the_file_key_by_key(file: Path) -> None:
    file.write_text(MINIMAL + "timeout_s = 5.0\n")
    found = read(file, SYNC__URL="https://other:1")
    assert (found.sync.url, found.sync.timeout_s) == ("https://other:1", 5.0)


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("SYNC__BATCH_BYTES_MAX", "20000", "batch_bytes_max", 20_000),
        ("SYNC__TIMEOUT_S", "2", "timeout_s", 2.0),
        ("SYNC__ALLOW_PLAINTEXT", "yes", "allow_plaintext", True),
        ("SYNC__ALLOW_PLAINTEXT", "0", "allow_plaintext", False),
        ("SYNC__KEY_FILE", "5", "key_file", "5"),
        ("SYNC__KEY_FILE", "", "key_file", None),
        ("sync__timeout_s", "3.5", "timeout_s", 3.5),
    ],
)
def test_a_variable_is_read_as_what_its_key_wants(file: Path, variable: str, text: str, key: str, value: Any) -> None:
    found = getattr(read(file, **{variable: text}).sync, key)
    assert found == value
    assert type(found) is type(value)


def test_lists_tables_and_whole_sources_are_given_as_json(file: Path) -> None:
    file.write_text(MINIMAL + LOG)
    found = read(
        file,
        SOURCES__AUTH__PATHS='["/a", "/b"]',
        SOURCES__NEW='{"type": "log", "paths": ["/n"], "parser": "auth"}',
        HEALTH__LISTEN='["127.0.0.1:1", "unix:/run/x"]',
        HANDLERS__BUILTIN__TUNE__LOGIN_BURST__AT_LEAST="9",
    )
    assert found.sources["auth"].config.paths == ("/a", "/b")
    assert found.sources["new"].config.paths == ("/n",)
    assert found.health.listen == ("127.0.0.1:1", "unix:/run/x")
    assert found.handlers["builtin"].tune == {"login_burst": {"at_least": 9}}


def test_a_source_may_come_from_the_environment_alone(file: Path) -> None:
    found = read(
        file, SOURCES__A__TYPE="log", SOURCES__A__PATHS='["/x"]', SOURCES__A__PARSER="auth", SOURCES__A__HOLD_S="1"
    )
    assert found.sources["a"].kind == "log"
    assert found.sources["a"].config.hold_s == 1.0


@pytest.mark.parametrize("name", ["Press-PLC", "press_plc", "PRESS_PLC", "press-plc"])
def test_a_name_in_the_file_is_met_however_it_is_written(file: Path, name: str) -> None:
    file.write_text(MINIMAL + LOG.replace("auth]", f"{name}]"))
    assert read(file, SOURCES__PRESS_PLC__HOLD_S="1").sources[name].config.hold_s == 1.0


def test_without_a_file_at_the_usual_place_the_environment_may_give_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usual = tmp_path / "usual.toml"
    monkeypatch.setattr("agent.config_read.DEFAULT_FILE", usual)
    assert read(usual, SYNC__URL="https://c:1").sync.url == "https://c:1"
    assert problems(usual)[0].text == f"there is no file {usual}"


def test_two_variables_for_one_place_are_told(file: Path) -> None:
    file.write_text(MINIMAL + LOG)
    told = problems(file, SOURCES__AUTH__PATHS='["/a"]', SOURCES__AUTH__PATHS__0="/b")
    assert any(problem.key == f"{PREFIX}SOURCES__AUTH__PATHS__0" for problem in told)


def test_what_a_source_keeps_lies_below_the_agents_folder(file: Path) -> None:
    file.write_text(
        f'{MINIMAL}[agent]\nstate_dir = "/srv/lw"\n[sources.cell]\ntype = "opcua"\nurl = "opc.tcp://x:1"\naudit = true\n'
    )
    assert read(file).sources["cell"].config.state_dir == "/srv/lw"


def test_a_byte_order_mark_and_windows_line_ends_are_taken(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert read(file).sync.url == "https://c:8443"


def test_one_section_can_be_had_while_the_rest_is_wrong(file: Path) -> None:
    file.write_text('[sync]\nurl = 5\n[health]\nlisten = "127.0.0.1:5"\n')
    assert section("health", file, {}).listen == "127.0.0.1:5"
    with pytest.raises(ConfigProblems):
        section("sync", file, {})


# ── judging ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('batch_bytes_max = "20000"', "must be a whole number, is the text '20000'"),
        ("batch_bytes_max = 20000.0", "must be a whole number, is the number 20000.0"),
        ("batch_bytes_max = true", "must be a whole number, is true"),
        ("allow_plaintext = 1", "must be true or false, is the whole number 1"),
        ('allow_plaintext = "true"', "must be true or false, is the text 'true'"),
        ('timeout_s = "5"', "must be a number, is the text '5'"),
        ("ca_file = 5", "must be a text, is the whole number 5"),
        ("timeout_s = inf", "must be a finite number, is inf"),
        ("timeout_s = 0", "must be more than 0, is 0"),
        ("batch_bytes_max = 99999999999999999999", "is a number of more than 64 bits"),
        ("timeout_s = []", "must be a number, is a list"),
    ],
)
def test_values_of_the_file_are_taken_as_they_are(file: Path, line: str, text: str) -> None:
    file.write_text(MINIMAL + line + "\n")
    told = problems(file)
    assert [(each.key, each.text) for each in told] == [(f"sync.{line.partition(' ')[0]}", text)]
    assert told[0].remedy


def test_of_a_union_only_the_meant_member_is_heard(file: Path) -> None:
    file.write_text(
        MINIMAL
        + '[sources.c]\ntype = "opcua"\nurl = "opc.tcp://x:1"\nnodes = ["i=1", { node = "i=2", queue_size = 0 }, 5]\n'
    )
    assert [(each.key, each.text) for each in problems(file)] == [
        ("sources.c.nodes[1].queue_size", "must be at least 1, is 0"),
        ("sources.c.nodes[2]", "must be a text or a table, is the whole number 5"),
    ]


def test_what_a_part_says_of_itself_is_put_at_its_key(file: Path) -> None:
    file.write_text(MINIMAL + LOG.replace('"/x"', '"x"'))
    assert problems(file) == [Problem("sources.auth.paths", "'x' is not an absolute path", "Write it from / on.")]


@pytest.mark.parametrize(
    ("text", "key", "what", "remedy"),
    [
        ("url: 'x' is wrong; write y", "a.url", "'x' is wrong", "Write y."),
        ("url 'x' is wrong. Use y", "a.url", "url 'x' is wrong", "Use y."),
        ("tls.key_file: missing; give it", "a.tls.key_file", "missing", "Give it."),
        ("unit is no type: write it as z", "a.unit", "unit is no type", "Write it as z."),
        ("unit: no such thing (did you mean 'z'?)", "a.unit", "no such thing", "Did you mean 'z'?"),
        ("something else", "a", "something else", "Correct the value."),
        ("else: something", "a", "else: something", "Correct the value."),
    ],
)
def test_sentences_are_parted_into_key_text_and_remedy(text: str, key: str, what: str, remedy: str) -> None:
    assert sentence(text, ConfigModbus, ("a",)) == Problem(key, what, remedy)


def test_more_problems_than_anybody_reads_are_counted(file: Path) -> None:
    file.write_text(MINIMAL + "".join(f"bad{number} = 1\n" for number in range(500)))
    told = problems(file)
    assert len(told) == 201
    assert told[-1].text == "and 300 more"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("sources", "press_plc", "points", 3, "address"), "sources.press_plc.points[3].address"),
        (("sources", "auth log", "x"), 'sources."auth log".x'),
        (("a", 'b"c'), 'a."b\\"c"'),
        ((), ""),
    ],
)
def test_keys_are_written_as_people_write_them(path: tuple[str | int, ...], text: str) -> None:
    assert key_text(path) == text


def test_types_are_found_by_path_and_named_plainly() -> None:
    assert wanted(at(ConfigModbus, ("points", 0, "address"))) == "a whole number"
    assert wanted(at(ConfigModbus, ("points", 0, "name"))) == "a text"
    assert wanted(at(ConfigCount, ("raises", "severity"))).startswith("one of 'informational', 'low'")
    assert at(ConfigModbus, ("points", "x")) is None
    assert nearest("adress", ["address", "name"]) == "Did you mean address?"
    assert nearest("qqq", []) == "Remove it."


VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        "agent",
        "sync",
        "buffer",
        "health",
        "sources",
        "handlers",
        "url",
        "type",
        "paths",
        "points",
        "builtin",
        "tune",
        "listen",
        "x",
    ]
)
TREES: Any = st.recursive(VALUES, lambda inner: st.dictionaries(KEYS, inner, max_size=4), max_leaves=20)
TYPES = st.sampled_from(["log", "modbus", "opcua", "nothing", 5])


@settings(deadline=None, max_examples=120)
@given(st.dictionaries(KEYS, TREES, max_size=5), TYPES, st.dictionaries(st.sampled_from(["SYNC__URL", "SOURCES__A__PATHS", "SOURCES__A", "X", "HEALTH__LISTEN__X"]), st.text(st.characters(min_codepoint=1), max_size=8)))  # fmt: skip  # noqa: E501
def test_whatever_stands_in_it_settings_come_out_or_problems(
    tree: dict[str, Any], kind: Any, variables: Mapping[str, str]
) -> None:
    tree.setdefault("sources", {"a": {"type": kind, **(tree["x"] if isinstance(tree.get("x"), dict) else {})}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agent.config_read.read_file", lambda *_: tree)
        try:
            found = validated(Path("x"), {PREFIX + name: value for name, value in variables.items()})
        except ConfigProblems as error:
            told = error.problems
        else:
            assert from_plain(to_plain(found)) == found
            return
    assert told
    assert all(problem.text and problem.remedy for problem in told)


def test_dates_are_refused_where_they_stand(file: Path) -> None:
    file.write_text(MINIMAL + f"ca_file = {date(2026, 1, 1)}\n")
    assert problems(file)[0] == Problem(
        "sync.ca_file", "must not be a date or time, is 2026-01-01", 'Write it in quotes: "2026-01-01"'
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ConfigOdd:
    """A type with what no source has yet."""

    many: dict[str, int | bool] = dataclasses.field(default_factory=dict)
    odd: ClassVar[int] = 5


def test_errors_in_tables_of_any_name_are_placed() -> None:
    errors = [
        {"type": "int_type", "loc": ("many", "a b", "int"), "input": "x"},
        {"type": "bool_type", "loc": ("many", "a b", "bool"), "input": "x"},
    ]
    assert problems_of(errors, ConfigOdd, {"many": {"a b": "x"}}, ("s",)) == [
        Problem('s.many."a b"', "must be a whole number or true or false, is the text 'x'", "Correct the value.")
    ]


@pytest.mark.parametrize(
    ("group", "kind"), [*(("sources", kind) for kind in SOURCES), *(("handlers", kind) for kind in HANDLERS)]
)
def test_every_type_can_be_judged_and_names_what_it_misses(file: Path, group: str, kind: str) -> None:
    file.write_text(f'{MINIMAL}[{group}.it]\ntype = "{kind}"\nno_such_key = 1\n')
    told = problems(file)
    assert f"{group}.it.no_such_key" in [each.key for each in told]
    assert all(each.remedy for each in told)


# ── the daemon's side ────────────────────────────────────────────────────────────────────────────────────────────────

EVERYTHING = """
[agent]
state_dir = "/srv/lw"
[sync]
url = "https://c:8443"
rate_bytes_per_s_max = 1000
[buffer]
synchronous = "normal"
[health]
listen = ["127.0.0.1:0", "unix:/run/x.sock"]
[sources.plc]
type = "modbus"
url = "tcp://10.0.0.1:502"
[[sources.plc.units]]
unit = 3
[[sources.plc.units.points]]
name = "a"
address = 1
texts = { 0 = "off", 1 = "on" }
deadband = 0.1
[sources.cell]
type = "opcua"
url = "opc.tcp://x:1"
nodes = ["i=1", { node = "i=2", deadband = 1.5 }]
browse = [{ root = "i=85", match = "*.Status" }]
[sources.auth]
type = "log"
paths = ["/x"]
parser = "auth"
[handlers.builtin]
off = ["login_burst"]
[handlers.burst]
type = "count"
by = ["src_ip"]
at_least = 5
within_s = 60
escalate = [{ at = 50, severity = 6 }]
raises = { type = "alert.x.y", severity = "low" }
"""


async def test_the_daemon_gets_the_same_settings_from_the_other_process(file: Path) -> None:
    file.write_text(EVERYTHING)
    loaded = await load(file)
    assert loaded == validated(file, os.environ)
    assert loaded.sources["cell"].config.nodes[1].deadband == 1.5
    assert resolve(file, {}) == to_plain(loaded)


async def test_problems_come_back_from_the_other_process_whole(file: Path) -> None:
    file.write_text("[sync]\nurl = 5\n[bufer]\n")
    with pytest.raises(ConfigProblems) as caught:
        await load(file)
    assert caught.value.path == file
    assert [each.key for each in caught.value.problems] == ["bufer", "sync.url"]
    assert str(caught.value).startswith("bufer: there is no such section. Did you mean buffer?\n")


def test_the_daemon_carries_nothing_of_what_judging_takes(file: Path) -> None:
    file.write_text(MINIMAL + LOG)
    program = f"""
        import asyncio, sys
        from pathlib import Path
        from agent.config import load
        asyncio.run(load(Path({str(file)!r})))
        heavy = [name for name in ("pydantic", "pydantic_settings", "asyncua", "pymodbus", "re2") if name in sys.modules]
        sys.exit(", ".join(heavy) or 0)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


async def test_a_child_that_dies_is_told_with_its_last_words(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho first >&2\necho 'no memory' >&2\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(ConfigProblems, match="ended with 9: no memory"):
        await load(file)


async def test_a_child_that_answers_nonsense_is_told(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho '{\"agent\": 5}'\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(ConfigProblems, match="cannot be taken over"):
        await load(file)


async def test_a_child_that_hangs_is_ended(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(config_module, "READ_S_MAX", 0.5)
    began = time.monotonic()
    with pytest.raises(ConfigProblems, match=r"took longer than 0\.5 s"):
        await load(file)
    assert time.monotonic() - began < 10
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


async def test_a_load_that_is_cancelled_leaves_no_child(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program, pid = tmp_path / "python", tmp_path / "pid"
    program.write_text(f"#!/bin/sh\necho $$ > {pid}.new\nmv {pid}.new {pid}\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    loading = asyncio.create_task(load(file))
    while not pid.exists():  # noqa: ASYNC110  (a file made by another process)
        await asyncio.sleep(0.01)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()
