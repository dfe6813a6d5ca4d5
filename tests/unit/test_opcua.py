"""OPC UA parts that need no server: configuration, node ids, values, roles, position, alarms, certificates."""

import math
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from asyncua.common.utils import Buffer
from asyncua.ua import ua_binary
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from agent.component import ConfigError, Report
from agent.sources.opcua import ConfigOpcUa, OpcUaSource
from agent.sources.opcua_alarms import change
from agent.sources.opcua_items import Items
from agent.sources.opcua_nodes import (
    ITEMS_MAX,
    TEXT_CHARS_MAX,
    ConfigNode,
    Item,
    as_text,
    check_node,
    plain,
    reading,
    resolve,
    severity_of,
    time_us,
)
from agent.sources.opcua_position import REMEMBERED_MAX, Position, Subscription
from agent.sources.opcua_private import Change, Published, decode_republish, ua
from agent.sources.opcua_trust import expires_in_days, first_certificate, own_identity, read_certificate

URL = "opc.tcp://cell4:4840"


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"url": "http://cell4"}, "url"),
        ({"url": "opc.tcp://user:secret@cell4"}, "url"),
        ({"user": "a"}, "password_file"),
        ({"user": "a", "password_file": "/p", "security": "None"}, "user"),
        ({"nodes": ("Spindle.Temp",)}, "node"),
        ({"nodes": ("ns=2;i=x",)}, "node"),
        ({"nodes": ()}, "nodes"),
        ({"nodes": ("ns=2;s=a", "ns=3;s=a")}, "nodes"),
        ({"user_certificate_file": "/c"}, "user_key_file"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_with_the_field(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}:"):
        ConfigOpcUa(**({"url": URL, "nodes": ("ns=2;s=x",)} | options))


def test_the_configuration_of_the_contract_is_rebuilt_from_plain_data() -> None:
    raw = {
        "url": URL,
        "server_certificate_file": "/etc/linewarden/trust/cell4.der",
        "user": "agent",
        "password_file": "/run/x",
        "audit": True,
        "alarms": True,
        "nodes": ["nsu=http://acme/press;s=Spindle.Temp", {"node": "ns=2;s=b", "role": "setpoint", "deadband": 0.5}],
        "browse": [{"root": "nsu=http://acme/press;s=Line", "match": "*.Status"}],
    }
    config = msgspec.convert(raw, ConfigOpcUa)
    assert [node.role for node in config.configured()] == ["reading", "setpoint"]
    assert config.security == "Basic256Sha256/SignAndEncrypt"
    assert {key for key, _, _ in config.problems()} == {"server_certificate_file", "password_file"}


_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=40)


@given(_texts, st.sampled_from(["http://acme/press", "urn:x:y"]))
def test_a_node_id_with_its_namespace_uri_survives_resolving(identifier: str, uri: str) -> None:
    text = f"nsu={uri};s={identifier}"
    check_node(text)
    namespaces = ["http://opcfoundation.org/UA/", "urn:server", "http://acme/press", "urn:x:y"]
    assert as_text(resolve(text, namespaces), namespaces) == text
    assert resolve(text, ["http://opcfoundation.org/UA/"]) is None


@given(st.integers(0, 2**32 - 1))
def test_numeric_node_ids_survive_too(number: int) -> None:
    assert as_text(resolve(f"i={number}", []), []) == f"i={number}"
    assert as_text(resolve(f"nsu=a;i={number}", ["", "a"]), ["", "a"]) == f"nsu=a;i={number}"


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary()
    | st.datetimes()
    | st.uuids(),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=20,
)


@given(_values)
def test_every_value_becomes_json(value: Any) -> None:
    msgspec.json.encode(plain(value))


def test_long_values_are_cut_and_what_json_cannot_say_is_text() -> None:
    assert len(plain("x" * 100_000)) == TEXT_CHARS_MAX
    assert len(plain([0] * 100_000)) == ITEMS_MAX
    assert plain(math.nan) == "nan"
    assert plain(ua.LocalizedText("läuft")) == "läuft"


@pytest.mark.parametrize("year", [1601, 1970, 9999])
def test_a_sentinel_is_no_time(year: int) -> None:
    assert time_us(datetime(year, 1, 1, tzinfo=UTC)) is None


def value(content: Any, *, status: int = 0, at: datetime | None = None, server: datetime | None = None) -> Change:
    """As it comes over the wire."""
    whole = ua.DataValue(
        ua.Variant(content), StatusCode=ua.StatusCode(status), SourceTimestamp=at, ServerTimestamp=server
    )
    changes = ua.DataChangeNotification(MonitoredItems=[ua.MonitoredItemNotification(ClientHandle=1, Value=whole)])
    message = ua.NotificationMessage(SequenceNumber=1, NotificationData=[changes])
    published = decode_republish(
        1, 1, Buffer(ua_binary.struct_to_binary(ua.RepublishResponse(NotificationMessage=message)))
    )
    assert published is not None
    assert published.notifications is not None
    change: Change = published.notifications[0].changes[0]
    return change


def test_text_that_is_no_utf_8_becomes_json() -> None:
    for come in (value("Öl\udcff").value, ua_binary.Primitives.String.unpack(Buffer(b"\x02\x00\x00\x00\xc3\xff"))):
        msgspec.json.encode(plain(come))


def test_a_time_is_the_sources_or_the_servers_or_ours_and_says_which() -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    sentinel = datetime(9999, 12, 31, tzinfo=UTC)
    for at, server, expected, said in (
        (moment, sentinel, time_us(moment), None),
        (sentinel, moment, time_us(moment), "server"),
        (None, sentinel, 77, "agent"),
    ):
        event = reading(Item(ConfigNode(node="i=1"), 1, "n"), "s", value(1.0, at=at, server=server), 77, {})
        assert event is not None
        assert (event.time, event.data.get("time_from")) == (expected, said)
        assert ("server_time_us" in event.data) == (server is moment)


def test_a_setpoint_is_a_change_only_when_it_changes() -> None:
    item, known = Item(ConfigNode(node="i=1", role="setpoint"), 1, "n"), {}  # type: tuple[Item, dict[str, Any]]
    kinds = [getattr(reading(item, "s", value(each), 1, known), "type", None) for each in (1.0, 1.0, 2.0, 2.0)]
    assert kinds == ["equipment.reading", None, "configuration.setpoint.changed", None]
    assert getattr(reading(item, "s", value(3.0, status=0x80000000), 1, known), "type", None) == "equipment.reading"
    assert known == {"n": 2.0}


def test_what_the_server_repeats_after_a_reconnect_is_not_news() -> None:
    item, at = Item(ConfigNode(node="i=1"), 1, "n"), datetime(2026, 1, 1, tzinfo=UTC)
    assert reading(item, "s", value(1.0, at=at), 1, {}) is not None
    item.fresh = True
    assert reading(item, "s", value(1.0, at=at), 1, {}) is None
    item.fresh = True
    assert reading(item, "s", value(1.0, at=at + timedelta(seconds=1)), 1, {}) is not None


def test_what_was_taken_and_not_stored_is_news_when_it_comes_again() -> None:
    """A connection that breaks between the taking and the storing: the server sends the same once more, and it is no repetition."""
    report = Report()
    items = Items("cell", report, sampling_interval_ms=100, queue_size=10)
    items.lay_out([ConfigNode(node="i=1", name="a")], [])
    items.taken_up([], 10)
    (handle,) = items._items
    position, first, second = (
        Position(),
        Change(handle, 1.0, 0, 1_000_000, None),
        Change(handle, 2.0, 0, 2_000_000, None),
    )
    assert len(items.take([first], position, 1)[0]) == 1
    items.committed()
    assert [event.data["value"] for event in items.take([second], position, 1)[0]] == [2.0]
    assert items.take([second], position, 1)[0] == [], "a repetition"
    items.roll_back()
    items.taken_up([], 10)
    assert items.take([first], position, 1)[0] == [], "this one was stored"
    assert [event.data["value"] for event in items.take([second], position, 1)[0]] == [2.0]


def test_a_node_that_its_server_deletes_is_reported_once_with_its_return() -> None:
    """open62541 sends BadNodeIdUnknown as the status of its value; the fault stays until the node is back."""
    report = Report()
    items = Items("cell", report, sampling_interval_ms=100, queue_size=10)
    items.lay_out([ConfigNode(node="i=1", name="a"), ConfigNode(node="i=2", name="b")], [])
    items.taken_up([], 10)
    position, (handle, _) = Position(), items._items
    gone = Change(handle, None, 0x80340000, 1_000_000, None)
    events, _ = items.take([gone], position, 1)
    assert [event.type for event in events] == ["equipment.reading", "configuration.changed"]
    assert (events[1].data["change"], position.missing) == ("deleted", ["i=1"])
    assert "i=1: the node is gone, the server answers BadNodeIdUnknown" in report.trouble["i=1"]
    assert "linewarden-agent browse" in report.trouble["i=1"]
    again, _ = items.take([Change(handle, None, 0x80340000, 2_000_000, None)], position, 1)
    assert "configuration.changed" not in [event.type for event in again]
    assert items.returned(1) == []


def test_what_a_server_said_of_a_subscription_is_no_trouble_once_it_is_good_again() -> None:
    report = Report()
    source = OpcUaSource("cell", ConfigOpcUa(url=URL, nodes=("ns=2;s=x",)), report)
    source._status_change(ua.StatusChangeNotification(Status=ua.StatusCode(ua.StatusCodes.BadResourceUnavailable)))
    assert "BadResourceUnavailable" in report.trouble["subscription"]
    source._status_change(ua.StatusChangeNotification(Status=ua.StatusCode(0)))
    assert report.trouble == {}


def test_handles_are_the_same_in_another_process_whatever_the_order_of_the_configuration() -> None:
    nodes = [ConfigNode(node=f"ns=2;s=n{number}") for number in range(500)]
    plans = []
    for order in (nodes, nodes[::-1]):
        items = Items("s", Report(), sampling_interval_ms=1, queue_size=10)
        plans.append((items.lay_out(order, []), {item.config.node: handle for handle, item in items._items.items()}))
    assert plans[0] == plans[1]


@given(
    st.builds(
        Position,
        session=st.none() | st.tuples(st.text(), st.text()),
        known=st.dictionaries(st.text(), st.integers() | st.text()),
        missing=st.lists(st.text()),
        subscriptions=st.dictionaries(
            st.sampled_from(["data", "events"]),
            st.builds(
                Subscription,
                st.integers(1, 9),
                st.integers(0, 2**32),
                st.text(),
                st.none() | st.integers(0, 2**60),
                st.just(0.0),
            ),
        ),
    )
)
def test_a_position_survives_the_cursor(position: Position) -> None:
    import json

    loaded = Position.load(json.loads(json.dumps(position.save())))
    assert loaded.save() == position.save()


@pytest.mark.parametrize("cursor", [None, {}, {"v": 99, "session": 1}])
def test_a_cursor_of_nobody_or_of_another_version_begins_anew(cursor: Any) -> None:
    assert Position.load(cursor) == Position()


def test_the_cursor_stays_small() -> None:
    position = Position(known={str(number): number for number in range(REMEMBERED_MAX + 10)})
    assert position.forget_too_many() == 10
    assert len(position.known) == REMEMBERED_MAX


@pytest.mark.parametrize(
    ("last", "came", "ahead"), [(0, 1, 0), (5, 6, 0), (5, 8, 2), (5, 5, -1), (2**32 - 1, 1, 0), (2**32 - 2, 2, 2)]
)
def test_sequence_numbers_wrap_to_one(last: int, came: int, ahead: int) -> None:
    assert Subscription(1, last, "").ahead(came) == ahead


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ("", "AU", "raised"),
        ("AU", "A", "acknowledged"),
        ("A", "", "cleared"),
        ("AU", "U", "cleared"),
        ("A", "AS", "suppressed"),
        ("", "D", "suppressed"),
        ("AS", "A", "other"),
        ("A", "A", None),
    ],
)
def test_what_became_of_an_alarm(before: str, after: str, what: str | None) -> None:
    assert change(before, after) == what


@pytest.mark.parametrize(("server", "ours"), [(0, 0), (None, 0), (1, 1), (200, 2), (500, 3), (700, 4), (1000, 4)])
def test_severity_bands(server: Any, ours: int) -> None:
    assert severity_of(server) == ours


def test_the_own_certificate_is_made_once_and_its_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    certificate, key = tmp_path / "own" / "c.der", tmp_path / "own" / "k.pem"
    made = own_identity(certificate, key)
    assert own_identity(certificate, key) == made
    assert made.application_uri.startswith("urn:")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert 1_800 < expires_in_days(made.certificate) < 1_830
    assert first_certificate(made.certificate + b"chain") == made.certificate
    key.unlink()
    with pytest.raises(ConfigError, match=r"k\.pem"):
        own_identity(certificate, key)


def own_files(folder: Path) -> tuple[Path, Path]:
    return folder / "own" / "certificate.der", folder / "own" / "key.pem"


def belong_together(certificate: Path, key: Path) -> bool:
    public = x509.load_der_x509_certificate(certificate.read_bytes()).public_key()
    return load_pem_private_key(key.read_bytes(), None).public_key() == public


def test_sources_and_commands_that_start_at_once_find_one_pair_that_belongs_together(tmp_path: Path) -> None:
    """Threads of one agent and other processes at the same moment, as with `check` and `browse` beside the daemon."""
    files = own_files(tmp_path)
    program = (
        "import sys, pathlib; from agent.sources.opcua_trust import own_identity; "
        "own_identity(*map(pathlib.Path, sys.argv[1:]), repair=True)"
    )
    others = [subprocess.Popen([sys.executable, "-c", program, *map(str, files)]) for _ in range(2)]
    made: list[Any] = []
    while not all(other.poll() is not None for other in others):
        with ThreadPoolExecutor(8) as pool:
            made += pool.map(lambda _: own_identity(*files, repair=True), range(8))
    assert [other.wait(60) for other in others] == [0, 0]
    assert len({(each.certificate, each.key) for each in made}) == 1
    assert belong_together(*files)
    assert sorted(path.name for path in files[0].parent.iterdir()) == ["certificate.der", "key.pem"]


def test_a_pair_of_the_agents_own_that_does_not_match_is_made_good_and_keeps_its_key(tmp_path: Path) -> None:
    (certificate, key), (other, its_key) = own_files(tmp_path), own_files(tmp_path / "b")
    own_identity(certificate, key)
    own_identity(other, its_key)
    key.write_bytes(its_key.read_bytes())
    repaired = own_identity(certificate, key, repair=True)
    assert repaired.key == its_key.read_bytes()
    assert belong_together(certificate, key)
    assert own_identity(certificate, key, repair=True) == repaired


@pytest.mark.parametrize("left", [b"", b"-----BEGIN PRIVATE" + b" KEY-----\nMIIE"])
def test_what_a_crash_left_of_the_own_pair_is_completed(tmp_path: Path, left: bytes) -> None:
    certificate, key = own_files(tmp_path)
    own_identity(certificate, key)
    kept = key.read_bytes()
    certificate.unlink()
    assert own_identity(certificate, key, repair=True).key == kept, "the key was there before its certificate"
    key.write_bytes(left)
    own_identity(certificate, key, repair=True)
    assert belong_together(certificate, key)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_a_pair_that_a_person_has_put_there_is_refused_with_a_remedy_and_never_touched(tmp_path: Path) -> None:
    (certificate, key), (other, its_key) = own_files(tmp_path), own_files(tmp_path / "b")
    own_identity(certificate, key)
    own_identity(other, its_key)
    key.write_bytes(its_key.read_bytes())
    before = certificate.read_bytes(), key.read_bytes()
    with pytest.raises(ConfigError, match=r"key\.pem is not the key of the certificate .*Give the key"):
        own_identity(certificate, key)
    of_plant = key_pem_and_certificate("press line 4")
    certificate.write_bytes(of_plant)
    with pytest.raises(ConfigError, match="is not the key of the certificate"):
        own_identity(certificate, key, repair=True)
    assert (certificate.read_bytes(), key.read_bytes()) == (of_plant, before[1])


def key_pem_and_certificate(name: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(who).issuer_name(who).public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(now).not_valid_after(now + timedelta(days=9))
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


def test_a_key_with_a_passphrase_or_of_another_certificate_is_a_problem_before_the_agent_runs(tmp_path: Path) -> None:
    certificate, key = own_files(tmp_path)
    own_identity(certificate, key)
    locked = tmp_path / "locked.pem"
    loaded = load_pem_private_key(key.read_bytes(), None)
    locked.write_bytes(loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    (tmp_path / "other.der").write_bytes(key_pem_and_certificate("other"))
    for named, key_file, words in (
        (certificate, locked, "passphrase"),
        (tmp_path / "other.der", key, "is not the key of"),
        (certificate, certificate, "is not a private key"),
    ):
        for whose in ("client", "user"):
            files: dict[str, Any] = {f"{whose}_certificate_file": str(named), f"{whose}_key_file": str(key_file)}
            ((field, text, remedy),) = ConfigOpcUa(url=URL, nodes=("ns=2;s=x",), **files).problems()
            assert field == f"{whose}_key_file"
            assert words in text
            assert remedy


def test_a_file_that_is_no_certificate_and_a_folder_that_cannot_be_written_say_so(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"hello")
    with pytest.raises(ConfigError, match="is not a certificate"):
        read_certificate(tmp_path / "x", "server_certificate_file")
    with pytest.raises(ConfigError, match="state_dir"):
        own_identity(tmp_path / "x" / "c.der", tmp_path / "x" / "k.pem")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("published_s", "ahead_s", "until_s"),
    [
        (-8, 0, -8.25),  # it lay somewhere for eight seconds: what was said after it was made is not known
        (3_592, -3_600, -8.25),  # the same, and the server's clock is an hour ahead of ours
        (5, 0, -0.25),  # its clock was put on since the session began: no later than now
        (None, 0, -0.25),
        (-8, None, -0.25),
    ],
)
def test_what_a_message_makes_known_ends_with_the_sampling_before_it_was_made(
    published_s: float | None, ahead_s: float | None, until_s: float
) -> None:
    """A gap begins there. By when the message came, changes were lost without a word that nobody had taken."""
    now = 1_800_000_000_000_000
    source = OpcUaSource("cell", ConfigOpcUa(url=URL, nodes=("ns=2;s=x",), publishing_interval_ms=250), Report())
    source._ahead_us = None if ahead_s is None else round(ahead_s * 1e6)
    published_us = None if published_s is None else now + round(published_s * 1e6)
    message = Published(1, 1, [], [], published_us=published_us)
    assert source._complete_until(message, now) == now + round(until_s * 1e6)
