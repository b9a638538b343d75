from __future__ import annotations

import csv
import hashlib
import json
import os
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from runner.errors import DatasetError
from runner.json_values import LONGEST_ROW
from runner.layout import FileType, Layout, WrittenFormat
from runner.row_files import RowProblem
from runner.row_formats import ALL_COLUMNS, Row
from runner.rows import ROW_PROBLEMS_KEPT, RowCheck, check_rows, read_rows

GOOD = '{"prompt": "2 + 2?", "completion": "4"}'
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*lines: str | bytes) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))
        return path

    return write


def _file(folder: Path, file_type: FileType, rows: Sequence[Row]) -> Path:
    path = folder / f"rows.{file_type}"
    if file_type == "parquet":
        parquet.write_table(pa.Table.from_pylist(list(rows)), path)
    elif file_type == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text(json.dumps(rows) if file_type == "json" else "\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("file_type", get_args(FileType))
def test_whatever_holds_them_the_same_rows_are_read(tmp_path: Path, file_type: FileType) -> None:
    rows = [{"instruction": "Add.", "input": "2,\n2", "output": "4"}, {"instruction": "2?", "input": "", "output": "2"}]
    path = _file(tmp_path, file_type, rows)
    found = read_rows(path)
    assert found.format == "messages"
    assert [[turn["content"] for turn in row["messages"]] for row in found.rows] == [
        ["Add.\n\n2,\n2", "4"],
        ["2?", "2"],
    ]
    assert found.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    assert check_rows(path) == RowCheck("messages", 2, (), 0)


ASKED, ANSWERED = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
TALK = {"messages": [ASKED, ANSWERED]}
WRITTEN: dict[WrittenFormat, tuple[Row, Row]] = {
    "messages": (TALK, TALK),
    "sharegpt": ({"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]}, TALK),
    "prompt_completion": ({"prompt": "2 + 2?", "completion": "4"}, {"prompt": "2 + 2?", "completion": "4"}),
    "alpaca": ({"instruction": "2 + 2?", "input": "", "output": "4"}, TALK),
    "text": ({"text": "2 + 2 = 4"}, {"text": "2 + 2 = 4"}),
}
"""A row of each format, and what it becomes."""


@pytest.mark.parametrize("file_type", get_args(FileType))
@pytest.mark.parametrize("written", get_args(WrittenFormat))
def test_every_format_is_found_in_every_container_that_can_hold_it(
    tmp_path: Path, file_type: FileType, written: WrittenFormat
) -> None:
    row, expected = WRITTEN[written]
    path = _file(tmp_path, file_type, [row, row])
    if file_type == "csv" and not all(isinstance(value, str) for value in row.values()):
        assert 'must be a list of turns, found "' in check_rows(path).problems[0].message
        return
    assert read_rows(path).rows == [expected, expected]
    assert read_rows(path, Layout(file_type, written)).rows == [expected, expected]


@pytest.mark.parametrize("file_type", get_args(FileType))
def test_a_layout_names_what_the_file_does_not_show(tmp_path: Path, file_type: FileType) -> None:
    path = _file(tmp_path, file_type, [{"question": "2 + 2?", "answer": "4"}]).rename(tmp_path / "rows.data")
    layout = Layout(file_type, "prompt_completion", (("prompt", "question"), ("completion", "answer")))
    assert read_rows(path, layout).rows == [{"prompt": "2 + 2?", "completion": "4"}]
    assert check_rows(path, layout).problems == ()
    (problem,) = check_rows(path, Layout(file_type)).problems
    assert problem.row == 1
    assert "found 'question', 'answer'" in problem.message


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
        ('{"text": "b"}', "has no 'prompt', as row 1 is prompt_completion; found 'text'"),
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
    assert problem == RowProblem(1, "is not UTF-8 text (byte 1); save the file as UTF-8", 1)


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


def test_a_column_that_no_row_has_is_told_once(tmp_path: Path) -> None:
    path = _file(tmp_path, "csv", [{"question": "2 + 2?", "answer": "4"}] * 10)
    layout = Layout(columns=(("prompt", "questoin"), ("completion", "answer")))
    check = check_rows(path, layout)
    assert [(problem.row, problem.line) for problem in check.problems] == [(1, 2)]
    assert check.further == 9


def test_an_error_that_a_host_raises_names_the_first_few_bad_rows(write: Write) -> None:
    path = write(GOOD, *["oops"] * 100)
    with pytest.raises(DatasetError) as caught:
        read_rows(path)
    told = "; ".join(f"row {row} (line {row}): is not JSON: expecting value at column 1" for row in range(2, 7))
    assert caught.value.message == f"The data file {path}: {told}; and 95 more."


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
TURN = st.dictionaries(st.sampled_from(["role", "content", "from", "value", "type", "text"]), JSON, max_size=4)
ROW = st.dictionaries(st.sampled_from(ALL_COLUMNS), JSON | st.lists(TURN, max_size=2), max_size=4)


@settings(deadline=None)  # a busy machine is no finding
@given(st.lists((ROW | JSON).map(lambda row: json.dumps(row).encode()) | st.binary(max_size=20), max_size=6))
def test_every_line_is_a_row_or_a_problem(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    content = b"\n".join(lines)
    path.write_bytes(content)
    check = check_rows(path)
    filled = [line for line in content.split(b"\n") if line.strip()]
    assert check.rows + len(check.problems) + check.further == max(len(filled), 1)


@settings(deadline=None)
@given(
    file_type=st.sampled_from(get_args(FileType)),
    written=st.sampled_from((None, *get_args(WrittenFormat))),
    columns=st.dictionaries(st.sampled_from(ALL_COLUMNS), st.text(max_size=3), max_size=2),
    content=st.binary(max_size=60) | st.text('ab,;"\\n\r\t[]{}:0', max_size=60).map(str.encode),
)
def test_no_bytes_of_a_file_raise_anything(
    tmp_path_factory: pytest.TempPathFactory,
    file_type: FileType,
    written: WrittenFormat | None,
    columns: dict[str, str],
    content: bytes,
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows"
    path.write_bytes(content)
    check = check_rows(path, Layout(file_type, written, tuple(columns.items())))
    assert check.rows or check.problems


@settings(deadline=None)
@given(st.data())
def test_a_damaged_parquet_file_raises_nothing(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("rows")
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    parquet.write_table(pa.table({"messages": [turns] * 3, "text": ["a", None, "b"]}), folder / "good.parquet")
    content = bytearray((folder / "good.parquet").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "rows.parquet").write_bytes(content)
    check = check_rows(folder / "rows.parquet")
    assert check.rows or check.problems
