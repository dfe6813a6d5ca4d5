"""Settings of the collector: every problem at once, each with its key path and a remedy."""

from pathlib import Path

import pytest

from collector import health
from collector.access import PUBLIC
from collector.config import Server, SettingsError, load

DSN = "postgresql://linewarden@127.0.0.1/linewarden"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINEWARDEN_COLLECTOR__DATABASE__DSN", DSN)


def _load(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "collector.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(file)
    return caught.value.problems


def test_without_a_file_the_environment_is_enough() -> None:
    settings = load(None)
    assert (settings.database.address, settings.server.host, settings.server.port) == (DSN, "127.0.0.1", 8443)


def test_the_environment_stands_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "collector.toml"
    file.write_text('[server]\nlisten = "127.0.0.1:9000"\nconcurrent_max = 3\n[store]\npartitions_ahead_days = 9\n')
    monkeypatch.setenv("LINEWARDEN_COLLECTOR__SERVER__CONCURRENT_MAX", "5")
    settings = load(file)
    assert (settings.server.port, settings.server.concurrent_max, settings.store.partitions_ahead_days) == (9000, 5, 9)


def test_a_password_can_stay_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LINEWARDEN_COLLECTOR__DATABASE__DSN")
    secret = tmp_path / "dsn"
    secret.write_text(DSN + "\n")
    monkeypatch.setenv("LINEWARDEN_COLLECTOR__DATABASE__DSN_FILE", str(secret))
    assert load(None).database.address == DSN


PROBLEMS = {
    "an unknown key": ('[server]\nlisen = "127.0.0.1:1"', "server.lisen", "Did you mean 'listen'?"),
    "an unknown section": ("[sever]\nx = 1", "sever", "Did you mean 'server'?"),
    "a wrong type": ('[store]\npartitions_ahead_days = "many"', "store.partitions_ahead_days", "integer"),
    "out of bounds": (
        "[store]\npartitions_ahead_days = 0",
        "store.partitions_ahead_days",
        "greater than or equal to 1",
    ),
    "no port": ('[server]\nlisten = "127.0.0.1"', "server", "host:port"),
    "plaintext for others": ('[server]\nlisten = "0.0.0.0:8443"', "server", "allow_plaintext"),
    "half a certificate": ('[server]\ncertificate_file = "/nowhere"', "server", "belong together"),
    "a certificate that is not there": (
        '[server]\ncertificate_file = "/nowhere/c"\nkey_file = "/nowhere/k"',
        "server",
        "/nowhere/c cannot be read",
    ),
    "two addresses": ('[database]\ndsn_file = "/nowhere"', "database", "one of them"),
    "a weaker promise": ('[database]\nsynchronous_commit = "off"', "database.synchronous_commit", "'on'"),
}


@pytest.mark.parametrize(("text", "key", "remedy"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_a_problem_names_its_key_and_what_to_do(tmp_path: Path, text: str, key: str, remedy: str) -> None:
    problems = _load(tmp_path, text)
    assert any(problem.startswith(f"{key}:") and remedy in problem for problem in problems), problems


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    assert len(_load(tmp_path, '[server]\nlisen = 1\n[store]\npartitions_ahead_days = "x"\n[more]\n')) == 3


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    (problem,) = _load(tmp_path, "[server\n")
    assert "is not TOML" in problem


def test_no_database_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LINEWARDEN_COLLECTOR__DATABASE__DSN")
    with pytest.raises(SettingsError, match=r"\[database\] dsn"):
        load(None)


@pytest.mark.parametrize(
    ("name", "near"),
    [("LINEWARDEN_COLLECTOR__SERVR__LISTEN", "server"), ("LINEWARDEN_COLLECTOR__SERVER__LISEN", "listen")],
)
def test_a_misspelt_variable_is_refused(name: str, near: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "127.0.0.1:1")
    with pytest.raises(SettingsError, match=f"Did you mean '{near}'"):
        load(None)


def test_plaintext_is_taken_where_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINEWARDEN_COLLECTOR__SERVER__LISTEN", "[::]:8443")
    monkeypatch.setenv("LINEWARDEN_COLLECTOR__SERVER__ALLOW_PLAINTEXT", "true")
    assert load(None).server.host == "::"


def test_metrics_are_open_only_where_the_settings_say_so() -> None:
    for is_open in (False, True):
        metrics = next(route for route in health.routes(metrics_open=is_open) if "/metrics" in route.paths)
        assert (metrics.opt["access"] == PUBLIC) is is_open
    assert Server().metrics_open is False
