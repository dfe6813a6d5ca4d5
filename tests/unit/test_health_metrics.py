"""The metrics, read back by a strict parser."""

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.health_metrics import LABEL_CHARS_MAX, PREFIX, render
from agent.health_status import STATES, Check, SourceStatus, health_of
from tests.exposition import parse
from tests.served import example_status, served

NOW_US = 5_000_000


def value(name: str, status: object = None, **labels: str) -> float:
    families = parse(render(status or example_status(), NOW_US))  # type: ignore[arg-type]
    return families[PREFIX + name].samples[tuple(labels.items())]


def test_what_the_status_knows_is_in_the_metrics_in_seconds_and_bytes() -> None:
    assert value("source_events_total", source="auth", type="log") == 5
    assert value("source_connected", source="plc", type="modbus") == 0
    assert value("source_troubles", source="plc", type="modbus") == 1
    assert value("source_state", source="plc", type="modbus", state="waiting") == 1
    assert value("source_state", source="plc", type="modbus", state="running") == 0
    assert value("source_last_event_timestamp_seconds", source="auth", type="log") == 2
    assert value("source_requests_total", source="plc", type="modbus") == 7
    assert value("source_reads_per_s__total", source="plc", type="modbus") == 2
    assert value("buffer_bytes") == 900
    assert value("buffer_oldest_timestamp_seconds") == 1.5
    assert value("buffer_commit_seconds_total") == 0
    assert value("sync_lag_seconds") == 1.5
    assert value("sync_failures") == 2
    assert value("handler_alerts_total", handler="login_burst", kind="count") == 1
    assert value("uptime_seconds") == 4
    assert value("info", agent="6f1c1a52-9d6b-4a9e-8f55-2f6f2f3f4c11", version="1") == 1


def test_health_is_a_sample_for_each_state_of_the_agent_and_of_each_check() -> None:
    status = example_status()
    status.health = health_of([Check("buffer"), Check("collector", "degraded", "away", "look")])
    states = {state: value("health_state", status, state=state) for state in STATES}
    assert states == {"ok": 0, "degraded": 1, "failed": 0}
    assert value("check_state", status, check="collector", state="degraded") == 1
    assert value("check_state", status, check="buffer", state="degraded") == 0


def test_what_has_not_happened_has_no_time() -> None:
    families = parse(render(example_status(), NOW_US))
    assert PREFIX + "sync_last_success_timestamp_seconds" not in families
    assert len(families[PREFIX + "source_last_event_timestamp_seconds"].samples) == 1


def test_counters_of_two_sources_stand_together_and_those_of_one_name_are_added() -> None:
    status = example_status()
    status.sources["auth"].counts = {"requests": 3, "Requests": 4}
    assert value("source_requests_total", status, source="auth", type="log") == 7
    assert value("source_requests_total", status, source="plc", type="modbus") == 7


def test_a_counter_of_a_source_cannot_take_the_name_of_ours() -> None:
    status = example_status()
    status.sources["auth"].counts = {"events": 99}
    assert value("source_events_total", status, source="auth", type="log") == 5
    assert value("source_own_events_total", status, source="auth", type="log") == 99


def test_the_endpoint_serves_them_with_the_formats_content_type() -> None:
    with served() as running:
        answer = running.client().get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert f"{PREFIX}alerts_total" in parse(answer.body.decode())


NAMES = st.text(max_size=20) | st.integers(190, 210).map(lambda n: "ü" * n)


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(NAMES, st.dictionaries(st.text(max_size=20), st.integers(0, 2**70), max_size=3), max_size=4),
    st.text(max_size=5),
)
def test_any_names_and_counters_make_a_page_that_can_be_read(names: dict[str, dict[str, int]], state: str) -> None:
    status = example_status()
    status.sources = {name: SourceStatus(kind="log", state=state, counts=counts) for name, counts in names.items()}
    families = parse(render(status, NOW_US).encode(errors="replace").decode())
    shown = {dict(labels)["source"] for labels in families.get(PREFIX + "source_events_total", (0, 0, {}))[2]}
    whole = {name[:LABEL_CHARS_MAX].encode(errors="replace").decode() for name in names}
    assert shown == whole
