from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.errors import DatasetError
from runner.json_values import LONGEST_ROW
from runner.row_files import RowProblem
from runner.rows import ROW_PROBLEMS_KEPT, check_rows, read_rows

GOOD = '{"prompt": "2 + 2?", "completion": "4"}'
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*lines: str | bytes) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))
        return path

    return write


@pytest.mark.parametrize(
    ("row", "row_format"),
    [
        ({"prompt": "2 + 2?", "completion": "4"}, "prompt_completion"),
        ({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}, "messages"),
        ({"text": "def f(): ..."}, "text"),
    ],
)
def test_each_format_is_recognised(write: Write, row: dict[str, Any], row_format: str) -> None:
    path = write(json.dumps(row), "", json.dumps(row))
    found = read_rows(path)
    assert found.format == row_format
    assert found.rows == [row, row]
    assert check_rows(path).rows == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json}", "is not JSON: expecting property name enclosed in double quotes at column 2"),
        ('["a"]', "found a list"),
        ("null", "found null"),
        ("{}", "found no columns"),
        ('{"promt": "a", "completion": "b"}', "found 'promt', 'completion'"),
        ('{"prompt": 3, "completion": "b"}', "'prompt' must be text, found 3"),
        ('{"prompt": "a", "completion": null}', "'completion' must be text, found null"),
        ('{"prompt": "a", "completion": " "}', "'completion' is empty"),
        ('{"prompt": "", "completion": "b"}', "'prompt' is empty"),
        ('{"prompt": "a", "prompt": "b", "completion": "c"}', "names 'prompt' twice"),
        ('{"prompt": "a", "completion": "b", "score": NaN}', "holds NaN, which JSON does not know"),
        ('{"prompt": "a", "completion": "\\ud83d"}', "'completion' holds half of a surrogate pair"),
        (b'{"prompt": "\xe4", "completion": "b"}', "is not UTF-8 text (byte 13)"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"text": "b"}', "has no 'prompt', which prompt_completion needs; found 'text' (as row 1 is"),
    ],
)
def test_a_bad_row_is_named_with_what_is_wrong(write: Write, row: str | bytes, message: str) -> None:
    path = write(GOOD, "", row, GOOD)
    check = check_rows(path)
    assert [(problem.row, problem.line) for problem in check.problems] == [(2, 3)]
    assert message in check.problems[0].message
    assert check.rows == 2
    with pytest.raises(DatasetError) as caught:
        read_rows(path)
    assert f"The data file {path}: row 2 (line 3): {check.problems[0].message}." == caught.value.message


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "'messages' must be a list of turns, found an empty list"),
        ("hi", "'messages' must be a list of turns, found \"hi\""),
        (["hi"], "turn 1 of 'messages' needs a 'role' of system, user, assistant, found \"hi\""),
        ([{"role": "human", "content": "hi"}], "needs a 'role' of system, user, assistant, found 'role' \"human\""),
        ([{"role": ["user"], "content": "hi"}], "needs a 'role' of system, user, assistant, found 'role' a list"),
        ([{"role": "user", "content": None}], "'content' of turn 1 must be text, found null"),
        ([{"role": "user", "content": "hi"}], "has no assistant turn with text, so there is nothing to learn"),
        ([{"role": "assistant", "content": " "}], "has no assistant turn with text, so there is nothing to learn"),
        ([{"role": "assistant", "content": "\ud83d"}], "'content' of turn 1 holds half of a surrogate pair"),
    ],
)
def test_a_bad_conversation_is_named_with_what_is_wrong(write: Write, messages: object, message: str) -> None:
    (problem,) = check_rows(write(json.dumps({"messages": messages}))).problems
    assert problem.row == 1
    assert message in problem.message


def test_a_byte_order_mark_and_windows_line_ends_are_no_problem(write: Write) -> None:
    assert read_rows(write(b"\xef\xbb\xbf" + GOOD.encode() + b"\r", GOOD + "\r", "")).rows == [json.loads(GOOD)] * 2


def test_a_file_in_another_encoding_is_refused(write: Write) -> None:
    (problem,) = check_rows(write(GOOD.encode("utf-16"))).problems
    assert problem == RowProblem(1, "is not UTF-8 text (byte 1)", 1)


def test_a_missing_file_an_empty_one_and_a_folder_are_told_apart(write: Write, tmp_path: Path) -> None:
    assert check_rows(tmp_path / "none.jsonl").problems == (RowProblem(None, "does not exist"),)
    assert check_rows(write("", " ", "")).problems == (RowProblem(None, "holds no rows"),)
    assert check_rows(tmp_path).problems == (RowProblem(None, "is not a file"),)
    with pytest.raises(DatasetError, match=r"The data file .*none\.jsonl does not exist\."):
        read_rows(tmp_path / "none.jsonl")


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert check_rows(tmp_path / "pipe").problems == (RowProblem(None, "is not a file"),)


def test_a_name_that_no_disk_can_hold_is_a_problem_and_not_a_crash(tmp_path: Path) -> None:
    assert check_rows(tmp_path / ("x" * 300)).problems == (RowProblem(None, "cannot be read (File name too long)"),)


def test_of_many_bad_rows_the_first_few_are_told_and_the_rest_counted(write: Write) -> None:
    check = check_rows(write(GOOD, *["oops"] * 100))
    assert [problem.row for problem in check.problems] == list(range(2, 2 + ROW_PROBLEMS_KEPT))
    assert check.further == 100 - ROW_PROBLEMS_KEPT
    assert (check.format, check.rows) == ("prompt_completion", 1)


def test_a_huge_file_in_one_line_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "array.jsonl"
    with path.open("wb") as file:
        file.write(b"[")
        file.truncate(20 * LONGEST_ROW)  # a hole: 160 MiB that take no space
    tracemalloc.start()
    try:
        (problem,) = check_rows(path).problems
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert problem == RowProblem(1, "is longer than 8 MiB; write one JSON object a line", 1)
    assert peak < 3 * LONGEST_ROW


def test_checking_many_rows_keeps_none_of_them(write: Write) -> None:
    path = write(*[json.dumps({"text": "x" * 10_000})] * 2_000)
    tracemalloc.start()
    try:
        assert check_rows(path).rows == 2_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 10


def test_a_changed_file_is_checked_again(write: Write) -> None:
    path = write(GOOD)
    assert check_rows(path).problems == ()
    path = write(GOOD, "oops")
    assert [problem.row for problem in check_rows(path).problems] == [2]
    path.unlink()
    assert check_rows(path).problems == (RowProblem(None, "does not exist"),)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
ROW = st.dictionaries(st.sampled_from(["prompt", "completion", "messages", "text", "role"]), JSON, max_size=3)


@settings(deadline=None)  # a busy machine is no finding
@given(st.lists((ROW | JSON).map(lambda row: json.dumps(row).encode()) | st.binary(max_size=20), max_size=6))
def test_whatever_a_file_holds_is_a_row_or_a_problem(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    content = b"\n".join(lines)
    path.write_bytes(content)
    check = check_rows(path)
    filled = [line for line in content.split(b"\n") if line.strip()]
    assert check.rows + len(check.problems) + check.further == max(len(filled), 1)
