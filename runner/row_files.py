"""Reads the rows of a data file, whatever holds them: JSON lines, a JSON list, CSV or Parquet. Plain Python.

What a row means is none of this module's business (`runner.row_formats`). Rows are counted from 1; a header is no row.
Parquet alone needs a library, which is imported when a Parquet file is met.
"""

from __future__ import annotations

import csv
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, get_args

from runner.json_values import LONGEST_ROW, TOO_LONG, BrokenListError, list_elements, parse_line
from runner.layout import FileType
from runner.suggestions import did_you_mean

_EXTENSIONS: dict[str, FileType] = {f".{name}": name for name in get_args(FileType)}


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as the file holds it."""

    row: int
    """1-based."""
    line: int | None
    """1-based line that it begins on, None in Parquet."""
    value: object
    """A dictionary by column name, if all is well."""


@dataclass(frozen=True, slots=True)
class RowProblem:
    """One thing that is wrong with a data file."""

    row: int | None
    """1-based row, None where the whole file is meant."""
    message: str
    """Continues the sentence `row 3 …` or `the data file …`."""
    line: int | None = None
    """1-based line of the file, where it has lines."""
    of_columns: bool = False
    """Whether the row lacks a column, which many a row will do that is like it."""


def raw_rows(
    path: Path, *, file_type: FileType | None = None, columns: Collection[str] = ()
) -> Iterator[RawRow | RowProblem]:
    """Yield the rows of a file one by one; what cannot be read is a problem and no exception.

    Args:
        path: The file.
        file_type: What it is; by its extension where None.
        columns: What will be looked at. Other columns of a Parquet file are named but not read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            yield RowProblem(None, "is not a file")
            return
        kind = file_type or _EXTENSIONS.get(path.suffix.lower())
        if kind is None:
            suffix = path.suffix.lower()
            found = f"ends in {suffix!r}{did_you_mean(suffix, _EXTENSIONS)}" if suffix else "has no extension"
            yield RowProblem(None, f"{found}; read are {', '.join(_EXTENSIONS)}, or name its file_type")
        elif kind == "parquet":
            yield from _parquet_rows(path, columns)
        else:
            with path.open("rb") as file:
                yield from {"jsonl": _json_lines, "json": _json_rows, "csv": _csv_rows}[kind](file)
    except FileNotFoundError:
        yield RowProblem(None, "does not exist")
    except OSError as error:
        yield RowProblem(None, f"cannot be read ({error.strerror or error})")


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the lines with their number, each at most a byte longer than `LONGEST_ROW`; a longer one is the last."""
    number = 0
    while line := file.readline(LONGEST_ROW + 1):
        number += 1
        yield number, line
        if len(line) > LONGEST_ROW:
            return


def _json_lines(file: BinaryIO) -> Iterator[RawRow | RowProblem]:
    filled = ((number, line) for number, line in _lines(file) if line.strip())
    for row, (number, line) in enumerate(filled, start=1):
        if len(line) > LONGEST_ROW:
            yield RowProblem(row, f"{TOO_LONG}; write one JSON object a line", number)
            return
        if row == 1 and line.lstrip().startswith(b"["):
            yield RowProblem(row, 'begins a list; name file_type = "json", or write one JSON object a line', number)
            continue
        if row == 1 and line.strip() == b"{":
            message = "begins an object that goes on over several lines; write one object a line"
            yield RowProblem(row, message, number)
            return
        try:
            yield RawRow(row, number, parse_line(line))
        except ValueError as error:
            yield RowProblem(row, str(error), number)


def _json_rows(file: BinaryIO) -> Iterator[RawRow | RowProblem]:
    """Read a list of objects; JSON lines too, which many people name `.json`."""
    start = file.read(LONGEST_ROW).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    if start[:1] != b"[" and start:
        try:
            lines = isinstance(parse_line(start.split(b"\n", 1)[0]), dict)
        except ValueError:
            lines = False
        if lines:
            yield from _json_lines(file)
        else:
            yield RowProblem(None, "must hold a list of objects, [{…}, {…}], or one object a line")
        return
    row = 0
    try:
        for row, element in enumerate(list_elements(file) if start else (), start=1):
            if element.flaw:
                yield RowProblem(row, element.flaw, element.line)
            else:
                yield RawRow(row, element.line, element.value)
    except BrokenListError as error:
        yield RowProblem(row + 1, f"{error}; what follows cannot be read", error.line)


class _CsvText:
    """The lines of a CSV file, for the csv module: decoded, counted, and no record longer than a row may be."""

    def __init__(self, file: BinaryIO) -> None:
        self._lines = _lines(file)
        self.line = 0
        """The last line that was handed out."""
        self.begins = 1
        """The line that the current record begins on."""
        self._bytes = 0

    def next_record(self) -> None:
        """Begin another record behind the last line."""
        self.begins, self._bytes = self.line + 1, 0

    def __iter__(self) -> _CsvText:
        return self

    def __next__(self) -> str:
        self.line, line = next(self._lines)
        self._bytes += len(line)
        if self._bytes > LONGEST_ROW:
            raise _UnreadableError(f"{TOO_LONG}; is a quote not closed?")
        try:
            return line.decode("utf-8-sig" if self.line == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"is not UTF-8 text (byte {error.start + 1} of line {self.line})") from error


class _UnreadableError(Exception):
    """Nothing behind this record can be understood."""


def _csv_rows(file: BinaryIO) -> Iterator[RawRow | RowProblem]:
    # One setting for the whole process; the module's own limit is shorter than a row may be.
    csv.field_size_limit(LONGEST_ROW)
    text = _CsvText(file)
    records = csv.reader(text, strict=True)
    header: list[str] | None = None
    row = 0
    while True:
        text.next_record()
        try:
            record = next(records)
        except StopIteration:
            return
        except (csv.Error, ValueError, _UnreadableError) as error:
            row += header is not None
            message = f"is not CSV: {error}" if isinstance(error, csv.Error) else str(error)
            yield RowProblem(row or None, message if row else f"has a header that {message}", text.begins)
            if header is None or isinstance(error, _UnreadableError):
                return
            continue
        if not record:
            continue  # an empty line
        if header is None:
            header = record
            if problem := _problem_in_header(header):
                yield RowProblem(None, problem, text.begins)
                return
            continue
        row += 1
        if len(record) != len(header):
            fields = f"{len(record)} field{'' if len(record) == 1 else 's'}"
            yield RowProblem(row, f"has {fields}, but the header names {len(header)} columns", text.begins)
        else:
            yield RawRow(row, text.begins, dict(zip(header, record, strict=True)))


def _problem_in_header(header: list[str]) -> str | None:
    if any(not name.strip() for name in header):
        return "has a header with an empty column name"
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        return f"has a header that names {twice[:60]!r} twice"
    mark = next((mark for mark in (";", "\t") if len(header) == 1 and mark in header[0]), None)
    if mark is not None:
        return f"has a header without commas, but with {mark!r}; columns must be separated by commas"
    return None


def _parquet_rows(path: Path, columns: Collection[str]) -> Iterator[RawRow | RowProblem]:
    try:
        # Imported here: it costs the bot memory that only Parquet is worth.
        import pyarrow as pa  # noqa: PLC0415
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        yield RowProblem(None, "is Parquet, which this Python cannot read: pip install pyarrow")
        return
    row = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            read = [name for name in names if name in columns]
            others: dict[str, Any] = {name: None for name in names if name not in columns}
            if not read and file.metadata.num_rows:
                yield RawRow(1, None, others)  # what it lacks, every row lacks
                return
            for batch in file.iter_batches(batch_size=1000, columns=read):
                for value in batch.to_pylist():
                    row += 1
                    yield RawRow(row, None, others | value)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
        words = " ".join(str(error).split())[:200]
        yield RowProblem(None, f"is not a sound Parquet file{f' behind row {row}' if row else ''}: {words}")
