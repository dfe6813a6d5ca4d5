"""What is signed is what is meant: the text of a request fixes its batches, reads back as it was written, and nothing else fits it."""

import hashlib
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from agent.wire.batch import GENESIS, Sealed, header_of, read_frames
from agent.wire.signature import (
    MalformedSignature,
    Run,
    Signed,
    enrolment_text,
    holds,
    key_id_of,
    read_header,
    read_text,
    rotation_text,
    runs_of,
    signed_text,
    write_header,
)
from tests.collector_process import Chain, event

AGENT = "6f1c1a52-9d6b-4a9e-8f55-2f6f2f3f4c11"
hex64 = st.binary(min_size=32, max_size=32).map(bytes.hex)
hex32 = st.binary(min_size=16, max_size=16).map(bytes.hex)
numbers = st.integers(1, 2**62)
runs = st.builds(Run, hex32, st.integers(0, 1), numbers, numbers, hex64)
requests = st.builds(
    Signed,
    agent=st.uuids().map(str),
    key=hex32,
    sent_us=st.integers(-(2**53), 2**62),
    status_sha256=hex64,
    body_sha256=hex64,
    runs=st.lists(runs, max_size=20).map(tuple),
)


@given(requests)
def test_a_signed_text_reads_back_as_it_was_written(said: Signed) -> None:
    text = signed_text(said)
    assert read_text(text) == said
    assert signed_text(read_text(text)) == text


@given(requests, requests)
def test_two_requests_that_differ_have_texts_that_differ(one: Signed, other: Signed) -> None:
    assert (signed_text(one) == signed_text(other)) == (one == other)


@given(st.binary(max_size=400))
def test_bytes_from_anywhere_are_refused_or_are_a_text_that_was_written_here(text: bytes) -> None:
    try:
        said = read_text(text)
    except MalformedSignature:
        return
    assert signed_text(said) == text


@given(requests, st.data())
def test_any_changed_byte_of_a_signed_text_is_noticed(said: Signed, data: st.DataObject) -> None:
    key = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
    public = key.public_key().public_bytes_raw()
    text = signed_text(said)
    signature = key.sign(text)
    assert holds(public, text, signature)
    at = data.draw(st.integers(0, len(text) - 1))
    flipped = text[:at] + bytes([text[at] ^ data.draw(st.integers(1, 255))]) + text[at + 1 :]
    assert not holds(public, flipped, signature)
    bit = data.draw(st.integers(0, len(signature) * 8 - 1))
    forged = bytearray(signature)
    forged[bit // 8] ^= 1 << bit % 8
    assert not holds(public, text, bytes(forged))


def sealed(plan: list[tuple[int, bool]]) -> list[Sealed]:
    """Batches as a plan says: of lane 0 or 1, each a gap or not."""
    chains = {lane: Chain(AGENT, lane=lane) for lane in (0, 1)}
    made = []
    for lane, gap in plan:
        made.append(chains[lane].seal([event()], gap=3 if gap else 0, last=hashlib.sha256(b"lost").hexdigest()))
    return made


@given(st.lists(st.tuples(st.integers(0, 1), st.booleans()), max_size=25))
def test_runs_cover_every_batch_of_a_request_once_and_their_last_hashes_fix_all_of_them(
    plan: list[tuple[int, bool]],
) -> None:
    batches = sealed(plan)
    found = runs_of((batch.header, batch.hash) for batch in batches)
    covered = []
    for run in found:
        stream = [b for b in batches if (b.header.buffer, b.header.lane) == (run.buffer, run.lane)]
        inside = [b for b in stream if run.first <= b.header.no <= run.through]
        assert (inside[0].header.no, inside[-1].header.through, inside[-1].hash) == (run.first, run.through, run.hash)
        for before, batch in pairwise(inside):
            assert batch.header.prev == before.hash
        covered += [b.hash for b in inside]
    assert sorted(covered) == sorted(b.hash for b in batches)
    gaps = sum(gap for _, gap in plan)
    assert len(found) <= gaps + 2


def test_a_gap_is_signed_although_the_batch_after_it_does_not_name_it() -> None:
    first, gap, after = sealed([(1, False), (1, True), (1, False)])
    assert after.header.prev != gap.hash
    assert [run.hash for run in runs_of((b.header, b.hash) for b in (first, gap, after))] == [gap.hash, after.hash]


def test_a_header_alone_gives_what_the_whole_frame_gives() -> None:
    for batch in sealed([(0, False), (1, True)]):
        (frame,) = read_frames(batch.frame)
        assert header_of(batch.frame) == (frame.header, frame.hash)


def test_a_signature_for_one_purpose_is_none_for_another() -> None:
    public = b"p" * 32
    texts = {
        signed_text(Signed(AGENT, key_id_of(public), 1, "0" * 64, "0" * 64, ())),
        enrolment_text(agent=AGENT, public_key=public, token="0" * 64, url="https://c:8443", sent_us=1),
        rotation_text(agent=AGENT, old_key=key_id_of(public), public_key=public, sent_us=1),
    }
    assert len({text.partition(b"\n")[0] for text in texts}) == 3


def test_no_line_can_be_smuggled_into_a_proof() -> None:
    with pytest.raises(MalformedSignature):
        enrolment_text(agent=AGENT, public_key=b"p" * 32, token=GENESIS, url="https://c\nagent x", sent_us=1)


@given(st.binary(min_size=64, max_size=64), hex32)
def test_the_header_reads_back(signature: bytes, key: str) -> None:
    assert read_header(write_header(key, signature)) == (key, signature)


@given(st.text(max_size=200))
def test_a_header_from_anywhere_is_refused(value: str) -> None:
    with pytest.raises(MalformedSignature):
        read_header(value)
