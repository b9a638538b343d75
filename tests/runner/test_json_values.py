from __future__ import annotations

import io
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.json_values import LONGEST_ROW, BrokenListError, list_elements, parse_line

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


class Drip(io.BytesIO):
    """A file that hands out a few bytes at a time, as a slow disk may."""

    def read(self, _size: int | None = -1, /) -> bytes:
        return super().read(3)


def elements(text: str | bytes) -> list[tuple[int, object, str | None]]:
    found = list_elements(io.BytesIO(text.encode() if isinstance(text, str) else text))
    return [(element.line, element.value, element.flaw) for element in found]


@settings(deadline=None)  # a busy machine is no finding
@given(st.lists(JSON, max_size=6), st.sampled_from([None, 2]))
def test_a_list_is_read_as_json_reads_it_wherever_the_file_is_cut(values: list[object], indent: int | None) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=False).encode()
    assert [element.value for element in list_elements(Drip(text))] == values
    assert [element.value for element in list_elements(io.BytesIO(text))] == values


def test_every_element_knows_the_line_that_it_begins_on() -> None:
    text = '[\n  {"a":\n 1},\n\n  {"b": 2}, 3\n]\n'
    assert [(line, value) for line, value, _ in elements(text)] == [(2, {"a": 1}), (5, {"b": 2}), (5, 3)]
    assert [element.line for element in list_elements(Drip(text.encode()))] == [2, 5, 5]


def test_a_flaw_costs_one_element_and_not_the_list() -> None:
    assert elements('[{"a": 1, "a": 2}, {"b": NaN}, {"c": 3}]') == [
        (1, None, "names 'a' twice"),
        (1, None, "holds NaN, which JSON does not know"),
        (1, {"c": 3}, None),
    ]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('[{"a": 1},\n{"b": }]', 2, "is not JSON: expecting value"),
        ('[{"a": 1}\n{"b": 2}]', 2, "needs a comma or ] behind it"),
        ('[{"a": 1},\n', 2, "is cut off"),
        ('[{"a": 1},\n{"b"', 2, "is not JSON: expecting ':' delimiter"),
        ('[{"a": 1}', 1, "is cut off"),
        ('[{"a": "1', 1, "is not JSON: unterminated string"),
        ("[1]\n[2]", 2, "is followed by something"),
        (b'[\n{"a": "\xe4"}]', 2, "is not UTF-8 text"),
        ("[" * 100_000, 1, "is nested too deeply"),
        ("[1" + "0" * 5000 + "]", 1, "holds a number with too many digits"),
    ],
)
def test_where_a_list_breaks_is_told_with_its_line(text: str | bytes, line: int, message: str) -> None:
    with pytest.raises(BrokenListError) as caught:
        elements(text)
    assert message in str(caught.value)
    assert caught.value.line == line


def test_a_long_list_is_read_within_little_memory() -> None:
    file = io.BytesIO(b"[" + b",".join([json.dumps({"text": "x" * 1000}).encode()] * 10_000) + b"]")
    tracemalloc.start()
    try:
        assert sum(1 for _ in list_elements(file)) == 10_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1e6


def test_a_quote_that_is_not_closed_does_not_read_the_whole_file() -> None:
    file = io.BytesIO(b'[{"text": "' + b"x" * (3 * LONGEST_ROW))
    with pytest.raises(BrokenListError, match="longer than 8 MiB"):
        list(list_elements(file))
    assert file.tell() < 3 * LONGEST_ROW


def test_a_line_may_end_as_on_windows_and_hold_one_value_only() -> None:
    assert parse_line(b"[1]\r\n") == [1]
    with pytest.raises(ValueError, match="extra data at column 5"):
        parse_line(b"[1] [2]\n")


@settings(deadline=None)
@given(st.binary(max_size=40) | st.text("[]{},:\"\\0 \n1ea'", max_size=30).map(str.encode))
def test_whatever_a_file_holds_is_read_or_refused_in_words(content: bytes) -> None:
    broken = None
    try:
        list(list_elements(io.BytesIO(b"[" + content)))
    except BrokenListError as error:
        broken = error
    assert broken is None or (str(broken) and 1 <= broken.line <= content.count(b"\n") + 1)
