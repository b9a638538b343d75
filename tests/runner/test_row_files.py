from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from runner.json_values import LONGEST_ROW
from runner.layout import FileType
from runner.row_files import RawRow, RowProblem, raw_rows


def read(path: Path, content: str | bytes, file_type: FileType | None = None) -> list[RawRow | RowProblem]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(raw_rows(path, file_type=file_type))


# --- which container -------------------------------------------------------------------------------------------------


def test_the_extension_tells_the_container_unless_it_is_named(tmp_path: Path) -> None:
    assert read(tmp_path / "rows.CSV", "text\nhi\n") == [RawRow(1, 2, {"text": "hi"})]
    assert read(tmp_path / "rows.data", "text\nhi\n", "csv") == [RawRow(1, 2, {"text": "hi"})]
    (problem,) = read(tmp_path / "rows.jsnl", "")
    assert problem == RowProblem(
        None, "ends in '.jsnl'; did you mean '.jsonl'?; read are .jsonl, .json, .csv, .parquet, or name its file_type"
    )
    (problem,) = read(tmp_path / "rows", "")
    assert isinstance(problem, RowProblem)
    assert problem.message.startswith("has no extension; read are")


def test_a_missing_file_a_folder_and_a_pipe_are_told_apart(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    assert list(raw_rows(tmp_path / "none.jsonl")) == [RowProblem(None, "does not exist")]
    assert list(raw_rows(tmp_path)) == [RowProblem(None, "is not a file")]
    assert list(raw_rows(tmp_path / "pipe.csv")) == [RowProblem(None, "is not a file")]


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_json_lines_count_rows_and_lines_apart(tmp_path: Path) -> None:
    rows = read(tmp_path / "rows.jsonl", '\n{"a": 1}\n\noops\n{"a": 2}')
    assert rows == [
        RawRow(1, 2, {"a": 1}),
        RowProblem(2, "is not JSON: expecting value at column 1", 4),
        RawRow(3, 5, {"a": 2}),
    ]


def test_a_list_in_a_file_of_json_lines_is_told_what_it_is(tmp_path: Path) -> None:
    (problem, *_) = read(tmp_path / "rows.jsonl", '[\n  {"a": 1}\n]\n')
    assert problem == RowProblem(1, 'begins a list; name file_type = "json", or write one JSON object a line', 1)


def test_a_json_file_holds_a_list_or_one_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    assert read(path, '\ufeff[{"a": 1},\n {"a": 2}]') == [RawRow(1, 1, {"a": 1}), RawRow(2, 2, {"a": 2})]
    assert read(path, '{"a": 1}\n{"a": 2}') == [RawRow(1, 1, {"a": 1}), RawRow(2, 2, {"a": 2})]
    assert read(path, " \n") == []
    refused = RowProblem(None, "must hold a list of objects, [{…}, {…}], or one object a line")
    assert read(path, '{\n  "data": []\n}') == [refused]
    assert read(path, '"text"') == [refused]


def test_what_stands_behind_a_break_in_a_list_is_said_to_be_unread(tmp_path: Path) -> None:
    rows = read(tmp_path / "rows.json", '[{"a": 1},\n{"a": 2,}, {"a": 3}]')
    assert rows[0] == RawRow(1, 1, {"a": 1})
    (problem,) = rows[1:]
    assert isinstance(problem, RowProblem)
    assert (problem.row, problem.line) == (2, 2)
    assert problem.message.endswith("; what follows cannot be read")


# --- CSV -------------------------------------------------------------------------------------------------------------


def test_csv_fields_may_hold_commas_quotes_and_lines(tmp_path: Path) -> None:
    content = '\ufeffprompt,completion\r\n"Hi, you","first\r\nsecond ""quoted"""\r\n\r\nb,c\r\n'
    assert read(tmp_path / "rows.csv", content) == [
        RawRow(1, 2, {"prompt": "Hi, you", "completion": 'first\r\nsecond "quoted"'}),
        RawRow(2, 5, {"prompt": "b", "completion": "c"}),
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a,b\n1\n2,3\n", [RowProblem(1, "has 1 field, but the header names 2 columns", 2), 2]),
        ("a,b\n1,2,3\n2,3\n", [RowProblem(1, "has 3 fields, but the header names 2 columns", 2), 2]),
        ("a,a\n1,2\n", [RowProblem(None, "has a header that names 'a' twice", 1)]),
        ("a, \n1,2\n", [RowProblem(None, "has a header with an empty column name", 1)]),
        (
            "a;b\n1;2\n",
            [RowProblem(None, "has a header without commas, but with ';'; columns must be separated by commas", 1)],
        ),
        (b"a\n\xe4\nok\n", [RowProblem(1, "is not UTF-8 text (byte 1 of line 2)", 2), 2]),
        (b"\xff\xfea\x00", [RowProblem(None, "has a header that is not UTF-8 text (byte 1 of line 1)", 1)]),
        ('a\n"x" y\nok\n', [RowProblem(1, "is not CSV: ',' expected after '\"'", 2), 2]),
        ('a\nok\n"never closed\n', [1, RowProblem(2, "is not CSV: unexpected end of data", 3)]),
        ("", []),
        ("a,b\n", []),
    ],
)
def test_a_bad_csv_record_is_named_and_the_next_one_read(
    tmp_path: Path, content: str | bytes, expected: list[RowProblem | int]
) -> None:
    rows = read(tmp_path / "rows.csv", content)
    assert [row.row if isinstance(row, RawRow) else row for row in rows] == expected


def test_a_quote_that_is_not_closed_does_not_read_the_whole_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'text\n"' + (b"x" * 1000 + b"\n") * (3 * LONGEST_ROW // 1000))
    tracemalloc.start()
    try:
        (problem,) = raw_rows(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert problem == RowProblem(1, "is longer than 8 MiB; is a quote not closed?", 2)
    assert peak < 5 * LONGEST_ROW  # the csv module takes four bytes a letter


def test_a_csv_field_may_be_as_long_as_a_row(tmp_path: Path) -> None:
    (row,) = read(tmp_path / "rows.csv", "text\n" + "x" * 500_000 + "\n")
    assert isinstance(row, RawRow)
    assert row.value == {"text": "x" * 500_000}


# --- Parquet ---------------------------------------------------------------------------------------------------------


def test_of_a_parquet_file_only_what_is_looked_at_is_read(tmp_path: Path) -> None:
    when = [dt.datetime(2026, 1, 1, tzinfo=dt.UTC)] * 2
    parquet.write_table(pa.table({"text": ["a", "b"], "when": when}), tmp_path / "rows.parquet")
    rows = list(raw_rows(tmp_path / "rows.parquet", columns={"text", "prompt"}))
    assert rows == [RawRow(1, None, {"when": None, "text": "a"}), RawRow(2, None, {"when": None, "text": "b"})]


def test_a_parquet_file_without_a_known_column_is_named_once(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"body": ["a", "b"]}), tmp_path / "rows.parquet")
    assert list(raw_rows(tmp_path / "rows.parquet", columns={"text"})) == [RawRow(1, None, {"body": None})]


def test_a_parquet_file_that_is_none_or_is_cut_is_refused_in_words(tmp_path: Path) -> None:
    (problem,) = read(tmp_path / "rows.parquet", b"PAR1 this is none")
    assert isinstance(problem, RowProblem)
    assert problem.row is None
    assert problem.message.startswith("is not a sound Parquet file: ")
    parquet.write_table(pa.table({"text": ["a" * 100] * 100}), tmp_path / "good.parquet")
    (problem,) = read(tmp_path / "rows.parquet", (tmp_path / "good.parquet").read_bytes()[:-10])
    assert isinstance(problem, RowProblem)
    assert problem.message.startswith("is not a sound Parquet file: ")


def test_a_machine_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (problem,) = read(tmp_path / "rows.parquet", b"PAR1")
    assert problem == RowProblem(None, "is Parquet, which this Python cannot read: pip install pyarrow")


def test_pyarrow_is_imported_for_parquet_only(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text\nhi\n")
    script = (
        "import sys; from pathlib import Path; from runner.rows import check_rows; import runner.projects\n"
        f"assert check_rows(Path({str(tmp_path / 'rows.csv')!r})).rows == 1\n"
        "sys.exit('pyarrow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
