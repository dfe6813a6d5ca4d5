"""Bounds on JSON: what passes here, every decoder and PostgreSQL take; nothing depends on the interpreter's own limits."""

import json
import math
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.wire import bounds
from agent.wire.batch import encode_safely, read_frame, seal
from agent.wire.bounds import OutOfBounds
from agent.wire.event import Event


def deep(levels: int, opening: str = "[", closing: str = "]") -> bytes:
    return (opening * levels + '""' + closing * levels).encode()


@pytest.mark.parametrize(
    "text",
    [
        deep(bounds.DEPTH_MAX + 1), deep(980), deep(100_000), deep(70, '{"a":', "}"), b"1" * 321, b"-" + b"9" * 5_000, b"1e309",
        b"1e-999999", b"1e-341",
        b"[1e400]", b'{"v":-1.5E+999}', b'{"v": 1e0000000999}', b"9" * 199 + b"e299", b"0." + b"1" * 400, b"9" * 310,
    ],
    ids=lambda text: text[:12].decode(),
)  # fmt: skip
def test_json_beyond_a_bound_is_refused_and_the_bound_is_named(text: bytes) -> None:
    for given_ in (text, text.decode()):
        with pytest.raises(OutOfBounds, match=r"nested deeper than 64|a number of more than 320"):
            bounds.loads(given_)


@pytest.mark.parametrize(
    "text",
    [
        deep(bounds.DEPTH_MAX), b'"' + b"[" * 5_000 + b'"', b'"' + b"1" * 5_000 + b'"', b'"3e123"', b'["\\"[[[1e999"]', b"1e308",
        b"5e-324", b"9" * 300, b'{"hash":"12e456789abcdef"}', b'"' + b"{" * 100 + b'\\\\"',
    ],
    ids=lambda text: text[:12].decode(),
)  # fmt: skip
def test_json_within_the_bounds_is_taken_whatever_stands_in_its_strings(text: bytes) -> None:
    assert bounds.excess(text) is None
    assert bounds.loads(text) == json.loads(text)


def test_text_that_is_no_json_or_no_utf_8_is_a_value_error() -> None:
    for text in (b"", b"{", b'"\xff"', b"\xff", b"nan", b"[1,]", b"[" * 10):
        with pytest.raises(ValueError, match="not JSON"):
            bounds.loads(text)


def test_the_bounds_are_ours_and_not_the_interpreter_s() -> None:
    """Python 3.13 takes nesting that 3.11 refuses, and the limit of digits is a setting."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        with pytest.raises(OutOfBounds):
            bounds.loads(b"1" * 5_000)
        event = Event(1, 1, "log.line", data={"n": 10**5_000})
        (core,), _ = encode_safely([event])
    finally:
        sys.set_int_max_str_digits(before)
    assert msgspec.json.decode(core)["data"]["n"].startswith("(a number of more")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_JSON)
def test_what_is_within_the_bounds_is_never_touched(value: Any) -> None:
    text = json.dumps(value).encode()
    assert bounds.excess(text) is None
    assert bounds.within(value) == (value, None)


@given(_JSON, st.sampled_from([deep(65), b"1e400", b"7" * 400]))
def test_one_value_beyond_a_bound_is_found_wherever_it_stands(value: Any, bad: bytes) -> None:
    text = json.dumps([value, {"k": "@"}]).encode().replace(b'"@"', bad)
    assert bounds.excess(text) is not None
    assert bounds.is_deep(text) or bounds.has_long_digits(text) or b"1e400" in text


def test_a_value_is_cut_to_the_bounds_and_the_rest_of_it_stays() -> None:
    inner: Any = "end"
    for _ in range(5_000):
        inner = [inner]
    cut, reason = bounds.within({"keep": [1, "x"], "deep": inner, "long": 10**4_000, "fine": 10**300})
    assert reason == "nested deeper than 64 levels"
    assert (cut["keep"], cut["fine"]) == ([1, "x"], 10**300)
    assert cut["long"].startswith("(a number")
    assert bounds.excess(msgspec.json.encode(cut)) is None


def test_a_value_that_holds_itself_is_cut_in_bounded_time() -> None:
    ring: list[Any] = []
    ring += [ring, ring, ring]
    cut, reason = bounds.within(ring)
    assert reason
    assert len(msgspec.json.encode(cut)) < 10_000_000


@pytest.mark.parametrize("text", ["", "-", "1.0", "1e3", "٣", "9" * 5_000, "-1", "11", " 5", "0x1"])
def test_a_whole_number_of_a_query_is_bounded_before_it_is_read(text: str) -> None:
    with pytest.raises(OutOfBounds, match="is not a whole number from 0 to 10"):
        bounds.integer(text, 0, 10)
    assert bounds.integer("10", 0, 10) == 10


def test_an_event_beyond_the_bounds_goes_into_a_batch_cut_and_says_so() -> None:
    inner: Any = 1
    for _ in range(80):
        inner = {"a": inner}
    events = [
        Event(1, 1, "log.line", "s", message="m", data={"deep": inner, "kept": "yes", "user": "ann"}),
        Event(1, 1, "log.line", "s", data={"n": -(10**400), "rest": 2}),
        Event(1, 1, "log.line", "s", data={"v": 1.5e300}),
        Event(1, 1, "log.line", "s", data={"n": math.inf}),
    ]
    core, personal = encode_safely(events)
    sealed = seal(
        core,
        personal,
        agent="0" * 8 + "-0000-0000-0000-" + "0" * 12,
        buffer="0" * 32,
        lane=1,
        no=1,
        prev="0" * 64,
        sealed=1,
    )
    first, second, third, fourth = read_frame(sealed.frame).events()
    assert (first.data["kept"], first.data["user"], first.message) == ("yes", "ann", "m")
    assert first.data["out_of_bounds"] == "nested deeper than 64 levels"
    assert second.data["rest"] == 2
    assert "number" in second.data["out_of_bounds"]
    assert third.data == {"v": 1.5e300}
    assert fourth.data == {"n": None}


def test_salts_of_many_personal_lines_are_no_long_number() -> None:
    lines = [f'{n * 0x9E3779B97F4A7C15 % 2**128:032x}{{"actor":"u{n}"}}'.encode() for n in range(5_000)]
    assert not bounds.has_long_digits(b"\n".join(lines))
    assert bounds.has_long_digits(b"\n".join([*lines, b'{"n":' + b"7" * 400 + b"}"]))


@pytest.mark.parametrize("at", [0, 500, 999])
def test_one_deep_line_among_many_is_found_and_many_brackets_in_all_are_none(at: int) -> None:
    lines = [b'{"data":{"a":[1,2],"b":{}},"message":"%d"}' % n + b" " * 200 for n in range(1_000)]
    assert not bounds.any_deep(lines)
    assert not bounds.any_deep([])
    lines[at] = b"[" * 33 + b"{" * 32 + b" " * 200
    assert bounds.any_deep(lines)
