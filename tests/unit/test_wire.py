"""The wire language: what goes in comes out, and nothing else gets through."""

import contextlib
import hashlib
import random
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.wire.batch import (
    EVENTS_MAX,
    GENESIS,
    SECTION_BYTES_MAX,
    GapRange,
    Header,
    MalformedBatch,
    Sealed,
    assemble,
    encode_safely,
    read_frame,
    read_frames,
    seal,
)
from agent.wire.event import EVENT_BYTES_MAX, Event
from agent.wire.taxonomy import PERSONAL_KEYS, TAXONOMY, TYPE_PATTERN, lookup

AGENT = "6f1c1a52-9d6b-4a9e-8f55-2f6f2f3f4c11"
BUFFER = "0123456789abcdef" * 2

text = st.text(max_size=60)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=8,
)
events = st.builds(
    Event,
    time=st.integers(-(2**63), 2**63 - 1),
    observed=st.integers(0, 2**62),
    type=st.sampled_from(sorted(TAXONOMY)) | st.from_regex(TYPE_PATTERN, fullmatch=True),
    source=text,
    severity=st.integers(0, 6),
    src_ip=st.none() | text,
    target=st.none() | text,
    outcome=st.sampled_from([None, "success", "failure"]),
    message=st.none() | text,
    correlation_id=st.none() | text,
    actor=st.none() | text,
    raw=st.none() | text,
    data=st.dictionaries(text | st.sampled_from(sorted(PERSONAL_KEYS)), json_values, max_size=6),
)


def sealed(items: list[Event], *, no: int = 1, prev: str = GENESIS, gap: GapRange | None = None) -> Sealed:
    core, personal = encode_safely(items)
    return seal(
        core, personal, agent=AGENT, buffer=BUFFER, lane=1, no=no, prev=prev, sealed=1_700_000_000_000_000, gap=gap
    )


@given(st.lists(events, min_size=1, max_size=20))
def test_events_come_out_of_a_batch_as_they_went_in(items: list[Event]) -> None:
    assert read_frame(sealed(items).frame).events() == items


@given(st.lists(events, min_size=1, max_size=5))
def test_core_section_holds_nothing_personal(items: list[Event]) -> None:
    marked = [
        msgspec.structs.replace(
            item, actor="Xaver-Unmistakable", raw="Xaver-Unmistakable", data={"user": "Xaver-Unmistakable", "n": 1}
        )
        for item in items
    ]
    frame = read_frame(sealed(marked).frame)
    assert b"Xaver-Unmistakable" not in frame.core()
    assert all(b"Xaver-Unmistakable" in line for line in frame.personal_lines())


def test_same_personal_data_never_gives_the_same_commitment() -> None:
    event = Event(1, 1, "authentication.failure", actor="anna")
    lines = read_frame(sealed([event, event]).frame).core_lines()
    assert lines[0].commit != lines[1].commit


def test_the_same_event_twice_in_a_batch_keeps_its_person_both_times() -> None:
    """`message repeated N times` may well be one object N times."""
    event = Event(1, 1, "authentication.failure", actor="anna", data={"user": "anna", "n": 1})
    read = read_frame(sealed([event, event]).frame).events()
    assert [each.actor for each in read] == ["anna", "anna"]
    assert event.actor == "anna"
    assert event.data == {"user": "anna", "n": 1}
    assert event.commit is None


def test_a_batch_without_its_personal_section_still_has_its_hash_and_its_core() -> None:
    made = sealed([Event(1, 1, "authentication.failure", actor="anna")])
    frame = read_frame(made.frame)
    erased = read_frame(assemble(frame.header_bytes, frame.core_z, b""))
    assert erased.hash == made.hash
    assert erased.events()[0].actor is None


@settings(max_examples=300)
@given(st.lists(events, min_size=1, max_size=5), st.integers(0, 2**32 - 1), st.integers(0, 7))
def test_any_flipped_bit_is_noticed(items: list[Event], at: int, bit: int) -> None:
    frame = bytearray(sealed(items).frame)
    # Salts are random, so the length of a frame is no constant: the place is a part of it.
    frame[at * len(frame) >> 32] ^= 1 << bit
    with pytest.raises(MalformedBatch):
        read_frame(bytes(frame)).rows()


@given(st.lists(events, min_size=1, max_size=3))
def test_a_changed_section_is_noticed_even_with_a_fresh_check_sum(items: list[Event]) -> None:
    frame = read_frame(sealed(items).frame)
    other = zstandard.ZstdCompressor().compress(frame.core().replace(b'"severity":', b'"severity":1'))
    with pytest.raises(MalformedBatch, match="not the one its header names"):
        read_frame(assemble(frame.header_bytes, other, frame.personal_z)).rows()


def test_a_changed_personal_line_is_noticed() -> None:
    frame = read_frame(sealed([Event(1, 1, "authentication.failure", actor="anna")]).frame)
    other = zstandard.ZstdCompressor().compress(frame.personal_lines()[0].replace(b"anna", b"bert"))
    with pytest.raises(MalformedBatch, match="event 0 is not the one its core line commits to"):
        read_frame(assemble(frame.header_bytes, frame.core_z, other)).rows()


@settings(max_examples=500)
@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: b"LWB\x01" + tail))
def test_arbitrary_bytes_raise_nothing_but_malformed_batch(junk: bytes) -> None:
    try:
        for frame in read_frames(junk):
            frame.rows()
    except MalformedBatch:
        pass


@settings(max_examples=500)
@given(
    header=st.binary(max_size=400) | st.dictionaries(text, json_values).map(msgspec.json.encode),
    core=st.binary(max_size=300),
    personal=st.binary(max_size=200),
    squeeze=st.booleans(),
)
def test_arbitrary_parts_with_a_right_check_sum_raise_nothing_but_malformed_batch(
    header: bytes, core: bytes, personal: bytes, squeeze: bool
) -> None:
    if squeeze:
        core, personal = zstandard.compress(core), zstandard.compress(personal)
        facts = {
            "core_bytes": len(core),
            "core_sha256": hashlib.sha256(core).hexdigest(),
            "agent": AGENT,
            "buffer": BUFFER,
            "prev": GENESIS,
        }
        header = msgspec.json.encode({**facts, "lane": 1, "no": 1, "sealed": 1, "events": 1})
    with contextlib.suppress(MalformedBatch):
        read_frame(assemble(header, core, personal)).events()


def test_a_core_line_that_is_json_but_no_event_is_refused_by_name() -> None:
    for line, complaint in [
        (b'{"time":1,"observed":1,"type":"log.line","severity":9}', "severity 9"),
        (b'{"time":1,"observed":1,"type":"Log Line","severity":1}', "'Log Line' is not a dotted lower-case name"),
        (b'{"time":1,"observed":1,"type":"log.line","severity":1,"data":[1]}', "data is not an object"),
        (b'{"time":1,"observed":1,"type":"log.line","severity":1,"sevrity":1}', "unknown field"),
        (b'{"time":"now","observed":1,"type":"log.line","severity":1}', "Expected `int`"),
    ]:
        made = seal([line], [b""], agent=AGENT, buffer=BUFFER, lane=1, no=1, prev=GENESIS, sealed=1)
        with pytest.raises(MalformedBatch, match=complaint):
            read_frame(made.frame).rows()


def test_a_decompression_bomb_is_refused_before_it_is_opened() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(b"0" * (SECTION_BYTES_MAX + 1))
    endless = zstandard.ZstdCompressor(level=19, write_content_size=False).compress(b"0" * (SECTION_BYTES_MAX * 8))
    frame = read_frame(sealed([Event(1, 1, "log.line")]).frame)
    for section in (bomb, endless):
        with pytest.raises(MalformedBatch, match="would decompress to"):
            read_frame(assemble(frame.header_bytes, section, b"")).core()


def test_an_unknown_version_is_named() -> None:
    frame = bytearray(sealed([Event(1, 1, "log.line")]).frame)
    frame[3] = 9
    with pytest.raises(MalformedBatch, match="batch version 9 is not known here"):
        read_frame(bytes(frame))


def test_the_first_bad_frame_is_found_by_its_offset() -> None:
    good = sealed([Event(1, 1, "log.line")]).frame
    frames = read_frames(good + b"LWB\x01" + bytes(40))
    assert next(frames).header.no == 1
    with pytest.raises(MalformedBatch) as caught:
        next(frames)
    assert caught.value.offset == len(good)


def test_batches_chain_by_hash_and_a_gap_stands_for_its_numbers() -> None:
    first = sealed([Event(1, 1, "log.line")])
    gap = sealed([Event(1, 1, "collection.gap")], no=2, prev=first.hash, gap=GapRange(9, "a" * 64))
    header = read_frame(gap.frame).header
    assert (header.no, header.through, header.prev) == (2, 9, first.hash)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lane", 2),
        ("no", 0),
        ("events", 0),
        ("events", EVENTS_MAX + 1),
        ("prev", "x" * 64),
        ("agent", "nobody"),
        ("buffer", "zz"),
        ("sealed", 2**63 - 1),
    ],
)
def test_a_header_out_of_bounds_is_refused(field: str, value: object) -> None:
    frame = read_frame(sealed([Event(1, 1, "log.line")]).frame)
    fields = msgspec.to_builtins(frame.header) | {field: value}
    with pytest.raises(MalformedBatch):
        read_frame(assemble(msgspec.json.encode(fields), frame.core_z, b""))


def test_an_event_too_long_or_not_encodable_is_cut_and_says_so() -> None:
    huge = Event(1, 1, "log.line", data={"text": "x" * (EVENT_BYTES_MAX + 1)}, message="kept")
    odd = Event(1, 1, "log.line", data={"thing": object()}, message="kept")
    lone = Event(1, 1, "log.line", message="a\ud800b")
    out = read_frame(sealed([huge, odd, lone]).frame).events()
    assert out[0].data["oversized_bytes"] > EVENT_BYTES_MAX
    assert "cut" in out[1].data
    assert [out[0].message, out[1].message, out[2].message] == ["kept", "kept", "a\\ud800b"]


def test_every_type_has_a_severity_and_the_nearest_ancestor_speaks_for_an_unknown_one() -> None:
    assert all(TYPE_PATTERN.fullmatch(name) and 1 <= row.severity <= 6 for name, row in TAXONOMY.items())
    assert lookup("authentication.failure.somewhere").name == "authentication.failure"
    assert lookup("shop.floor").name == "custom"
    assert (
        Event(1, 1, "authentication.success", outcome="failure").severity
        == TAXONOMY["authentication.success"].on_failure
    )


def test_urgent_events_travel_in_lane_0() -> None:
    assert Event(1, 1, "alert.authentication.burst").lane == 0
    assert Event(1, 1, "security.log.cleared").lane == 0
    assert Event(1, 1, "equipment.reading").lane == 1


def test_header_fields_are_all_hashed() -> None:
    one = sealed([Event(1, 1, "log.line")])
    for name in Header.__struct_fields__:
        if name == "gap":
            continue
        value = getattr(one.header, name)
        other = msgspec.structs.replace(
            one.header, **{name: value + 1 if isinstance(value, int) else value[::-1] + "0"}
        )
        assert msgspec.json.encode(other) != msgspec.json.encode(one.header)


def test_batches_sealed_and_opened_in_many_threads_at_once_are_whole() -> None:
    """A compressor of zstd belongs to one thread; shared, a valid batch came out broken now and then, or was called broken."""

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for no in range(1, 150):
            items = [
                Event(1, 1, "log.line", "x", actor="ann", message=rng.randbytes(2_000).hex())
                for _ in range(rng.randrange(1, 20))
            ]
            assert read_frame(sealed(items, no=no).frame).events() == items

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, seed) for seed in range(8)]:
            done.result()
