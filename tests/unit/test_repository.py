"""The repository's habits, kept by tests: what the documents say is there, what must not be there is not."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SLOW

ROOT = Path(__file__).parents[2]
IGNORED = {".git", ".venv", "dist", "build", "node_modules", "__pycache__", ".hypothesis", ".demo"}
LOCKS = ("requirements.lock", "requirements-demo.lock", "packaging/agent.lock", "packaging/collector.lock")
FUNCTION_LINES_MAX = 80
MODULE_LINES_MAX = 900
ONE_FILE = {"agent/client.py": 1_400}
"""A program may take it as a copy: it is one file, and so a longer one."""


def tracked() -> list[Path]:
    """The files of the repository; in an unpacked source archive, where there is no git, whatever is not a by-product."""
    if shutil.which("git") and (ROOT / ".git").exists():
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
        return [path for name in done.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file()
        and not any(part in IGNORED or part.endswith("_cache") for part in path.relative_to(ROOT).parts)
    ]


def texts() -> Iterator[tuple[Path, str]]:
    for path in tracked():
        try:
            yield path.relative_to(ROOT), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def modules() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py"]


def found(pattern: str, *, but: tuple[str, ...] = ()) -> list[str]:
    """Where a pattern occurs, as file:line."""
    expression = re.compile(pattern)
    return [
        f"{path}:{number}: {line.strip()[:120]}"
        for path, text in texts()
        if str(path) not in but
        for number, line in enumerate(text.splitlines(), 1)
        if expression.search(line)
    ]


# ── what must not be there ───────────────────────────────────────────────────────────────────────────────────────────


def test_no_file_names_a_package_index() -> None:
    # Where packages come from is the business of whoever installs. (The patterns are broken up so as not to find themselves.)
    assert found(r"pythonh[o]sted|pypi\.[o]rg/simple|registry\.npm[j]s|deb\.debian\.[o]rg|index-u[r]l *=") == []


def test_no_file_names_a_developer_s_folder() -> None:
    assert found(r"(?<![\w.])/wor[k]/|/tmp/helper[s]|/root/\.(venv|pyenv)|/home/[a-z]+/(src|dev)") == []


def test_nothing_is_left_to_do() -> None:
    assert found(r"\b(TO[D]O|FIXM[E]|XX[X]|HAC[K])\b", but=("LICENSE",)) == []


def test_every_sqlite_connection_is_closed() -> None:
    """`with connect(…)` closes nothing; since Python 3.13 the connection that is left is a warning somewhere else."""
    assert found(r"with sqlite3\.connect\(.*\) as \w+:$", but=("tests/unit/test_repository.py",)) == []


def test_no_secret_lies_in_the_repository() -> None:
    assert found(r"-----BEGIN [A-Z ]*PRIVATE [K]EY-----|\blw_[a-z0-9]{6,}_[A-Za-z0-9_-]{20,}") == []


_WRITES = re.compile(
    r"\b(write_(?:coils?|registers?|values?|attributes?\w*|params?)|mask_write_register|readwrite_registers|set_(?:value|data_value|attribute)"
    r"|call_method|Write(?:Request|Parameters|Value)|HistoryUpdate\w*|(?:Add|Delete)(?:Nodes|References)\w*|SetTriggering\w*"
    r"|RegisterNodes\w*)\b"
)
_CALLS = re.compile(r"\bCallMethodRequest\b|\bCallRequest\b|\.call\(")


def test_the_agent_cannot_write_to_a_machine() -> None:
    """No name of what writes stands in the agent's code; the one Call, ConditionRefresh, stands in one file. See test_network_watch.py."""
    calling, speaking = set(), set()
    for path in modules():
        name = path.relative_to(ROOT)
        if name.parts[0] != "agent" or "simulator" in name.parts:
            continue
        code = _code_of(path.read_text())
        assert not (found := _WRITES.search(code)), f"{name} writes to a machine: {found and found[0]}"
        if _CALLS.search(code):
            calling.add(str(name))
        if re.search(r"\bpymodbus\.(client|transport|framer)\b", code):
            speaking.add(str(name))
    assert calling == {"agent/sources/opcua_private.py"}
    assert speaking == {"agent/sources/modbus_client.py"}, (
        "pymodbus's client, which can write, is used inside its fence only"
    )


def _code_of(text: str) -> str:
    """Without comments and docstrings, which may name what is not done."""
    tree = ast.parse(text)
    nodes: list[Any] = list(ast.walk(tree))
    for node in nodes:
        body = getattr(node, "body", None)
        if isinstance(body, list):
            said = [each for each in body if isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant)]
            node.body = [each for each in body if each not in said] or [ast.Pass()]
    return ast.unparse(tree)


def test_requests_to_modbus_devices_have_five_function_codes_and_no_other() -> None:
    """What pymodbus's client does with any other request is tested in test_modbus_client.py."""
    from agent.sources import modbus_client

    assert {*modbus_client.READS.values(), modbus_client.IDENTIFY} == {1, 2, 3, 4, 43}
    assert {*modbus_client._REQUESTS, modbus_client.IDENTIFY} == modbus_client._ANSWERS.keys() == {1, 2, 3, 4, 43}
    code = _code_of((ROOT / "agent" / "sources" / "modbus_link.py").read_text())
    asked = re.findall(r"self\._ask\((\w+)", code)
    assert set(asked) == {"read_request", "identity_request"}, asked


# ── how the code is cut ──────────────────────────────────────────────────────────────────────────────────────────────


def test_every_module_says_what_it_is() -> None:
    silent = []
    for path in modules():
        text = path.read_text()
        if (
            text.strip()
            and path.relative_to(ROOT).parts[0] in ("agent", "collector")
            and not ast.get_docstring(ast.parse(text))
        ):
            silent.append(str(path.relative_to(ROOT)))
    assert silent == []


def test_functions_and_modules_fit_their_frames() -> None:
    long = []
    for path in modules():
        text = path.read_text()
        if text.count("\n") > ONE_FILE.get(str(path.relative_to(ROOT)), MODULE_LINES_MAX):
            long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}, {lines} lines")
    assert long == []


def test_folders_whose_names_are_those_of_packages_stay_plain_folders() -> None:
    assert not (ROOT / "packaging" / "__init__.py").exists()
    assert not (ROOT / "systemd" / "__init__.py").exists()
    for folder in {path.parent for path in modules() if path.relative_to(ROOT).parts[0] == "tests"}:
        assert (folder / "__init__.py").exists(), f"{folder.relative_to(ROOT)} needs an __init__.py"


# ── make ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def targets() -> dict[str, str]:
    """The targets of the Makefile that are for people, each with what `make help` says of it."""
    text = (ROOT / "Makefile").read_text()
    return {match[1]: match[2] for match in re.finditer(r"^([a-z][a-z-]*):[^#\n=]*## (.+)$", text, re.MULTILINE)}


def test_the_promised_targets_are_there() -> None:
    promised = {"demo", "test", "check", "bench", "bench-detection", "faults", "package", "help"}
    assert promised <= targets().keys()


def test_make_help_tells_of_every_target_and_is_what_make_does_by_default() -> None:
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    done = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name, text in targets().items():
        assert re.search(rf"^  make {re.escape(name)} +{re.escape(text)}$", done.stdout, re.MULTILINE), name
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert set(phony[1].split()) == targets().keys() | {"environment", "environment-demo"}


def test_ci_runs_check_and_test_and_nothing_hides_their_failure() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert script.rstrip().endswith("make check && make test")


def test_the_slow_tests_that_begin_first_are_there() -> None:
    assert set(SLOW) <= {path.stem for path in (ROOT / "tests").rglob("test_*.py")}


def test_shell_scripts_are_plain_sh_and_parse() -> None:
    scripts = [*(ROOT / "packaging").glob("*.sh"), ROOT / ".ci" / "run"]
    for script in scripts:
        assert script.read_text().startswith("#!/bin/sh\n"), script.name
        assert script.stat().st_mode & 0o111, f"{script.name} cannot be run"
        subprocess.run(["sh", "-n", str(script)], check=True)


# ── locks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def locked(name: str) -> dict[str, str]:
    """Package → version of a lock file, every one of which has to have hashes."""
    text = (ROOT / name).read_text()
    entries = re.findall(
        r"^([a-z0-9][\w.-]*)==([\w.+!-]+)[^\n]*\\\n((?:    --hash=sha256:[0-9a-f]{64}[^\n]*\n)+)", text, re.MULTILINE
    )
    assert len(entries) == len(re.findall(r"^[a-zA-Z0-9]", text, re.MULTILINE)), f"{name}: a package without a hash"
    return {package: version for package, version, _ in entries}


def canonical(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9][\w.-]*", requirement)
    assert match
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def test_the_lock_holds_every_package_that_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    for extra in project["project"]["optional-dependencies"].values():
        asked += extra
    names = {canonical(item) for item in asked} - {"linewarden"}
    assert names <= locked("requirements.lock").keys(), "pyproject.toml asks for more: make lock"


@pytest.mark.parametrize("name", LOCKS[1:])
def test_smaller_lock_is_a_part_of_the_whole(name: str) -> None:
    assert locked(name).items() <= locked("requirements.lock").items()


def test_no_lock_says_where_packages_come_from() -> None:
    for name in LOCKS:
        assert not re.search(r"https?:|file:|--(extra-)?index|--find-links", (ROOT / name).read_text()), name


# ── documents ────────────────────────────────────────────────────────────────────────────────────────────────────────

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md")


def test_licence_is_the_whole_apache_licence() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] == "Apache-2.0"


def test_links_between_documents_lead_somewhere() -> None:
    for path in tracked():
        if path.suffix == ".md":
            for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
                if not re.match(r"[a-z]+:", target):
                    assert (path.parent / target).exists(), f"{path.relative_to(ROOT)} → {target}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_make_target_that_a_document_names_exists(name: str) -> None:
    text = (ROOT / name).read_text()
    named = set(re.findall(r"`make ([a-z-]+)", text)) | set(re.findall(r"^\s*make ([a-z-]+)", text, re.MULTILINE))
    assert named <= targets().keys()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_that_a_document_names_exists(name: str) -> None:
    named = set(re.findall(r"`((?:agent|collector|systemd|packaging|tests)/[\w./-]+)`", (ROOT / name).read_text()))
    missing = [item for item in sorted(named) if not (ROOT / item).exists()]
    assert missing == []


def test_changelog_knows_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.search(rf"^## \[(Unreleased|{re.escape(version)})\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_readme_names_every_type_that_can_be_configured() -> None:
    from agent.handlers import HANDLERS
    from agent.parsers import PARSERS
    from agent.sources import SOURCES

    text = (ROOT / "README.md").read_text()
    unnamed = [kind for table in (SOURCES, PARSERS, HANDLERS) for kind in table if f"`{kind}`" not in text]
    assert unnamed == []


@pytest.mark.parametrize("program", ["agent", "collector"])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_that_a_document_names_exists(
    name: str, program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    named = set(
        re.findall(rf"linewarden-{program} ([a-z]+(?: (?:create|list|revoke|partition))?)", (ROOT / name).read_text())
    )
    main = importlib.import_module(f"{program}.cli").main
    for command in sorted(named):
        # The parser ends the program: 0 where it knows the command, and 2 with a word on it where not.
        with pytest.raises(SystemExit) as ended:
            main([*command.split(), "--help"])
        said = capsys.readouterr().err
        assert ended.value.code == 0, f"{name}: linewarden-{program} {command}\n{said[-500:]}"


def test_configurations_that_we_show_are_valid(tmp_path: Path) -> None:
    from agent.config_read import validated

    shown = re.search(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown
    for text in (shown[1], (ROOT / "packaging" / "agent.example.toml").read_text()):
        (tmp_path / "agent.toml").write_text(text)
        validated(tmp_path / "agent.toml", {})


@pytest.mark.parametrize("release", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("role", ["agent", "collector"])
def test_the_bundle_has_each_package_once_for_each_python(role: str, release: str) -> None:
    lock = ROOT / "packaging" / f"{role}.lock"
    command = [sys.executable, str(ROOT / "packaging" / "pins.py"), str(lock), release]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    names = re.findall(r"^(\S+)==\S+ \\$", found, re.MULTILINE)
    everywhere = re.findall(r"^(\S+)==\S+ \\$", lock.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(set(names)) == sorted(names)
    assert set(everywhere) <= set(names)
    assert found.count("--hash=") >= len(names)
