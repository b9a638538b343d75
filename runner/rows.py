"""Reads a data file into the rows that are trained on, or tells everything that is wrong with it. Plain Python.

The file's container is `runner.row_files`' business, what its rows mean `runner.row_formats`'. The bot checks with this
module what a host reads with it later.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from runner.errors import DatasetError
from runner.layout import Layout
from runner.provenance import fingerprint_data
from runner.row_files import RawRow, RowProblem, raw_rows
from runner.row_formats import MissingColumnError, Row, RowFormat, RowReader

ROW_PROBLEMS_KEPT = 5
"""Malformed rows told of one dataset; one of the wrong kind would flood memory and answer."""


@dataclass(frozen=True, slots=True)
class DatasetRows:
    """A dataset, read whole and checked."""

    format: RowFormat
    rows: list[Row]
    """With the keys of that format and no others."""
    fingerprint: str
    """SHA-256 of the file; of a hub dataset, what pins it."""


@dataclass(frozen=True, slots=True)
class RowCheck:
    """What a dataset holds and what is wrong with it."""

    format: RowFormat | None
    """None when no row is good."""
    rows: int
    """Good rows."""
    problems: tuple[RowProblem, ...]
    """The first few, in file order."""
    further: int
    """Problems beyond those."""


Read = tuple[RowFormat, Row]


def _read(rows: Iterable[RawRow | RowProblem], reader: RowReader) -> Iterator[Read | RowProblem]:
    """Yield each row with its format, or what is wrong with it."""
    empty = True
    for raw in rows:
        empty = False
        if isinstance(raw, RowProblem):
            yield raw
            continue
        try:
            yield reader.read(raw.row, raw.value)
        except ValueError as error:
            yield RowProblem(raw.row, str(error), raw.line, of_columns=isinstance(error, MissingColumnError))
    if empty:
        yield RowProblem(None, "holds no rows")


@dataclass(slots=True)
class _Findings:
    """The first few problems, and how many more there are."""

    told: list[RowProblem] = field(default_factory=list)
    further: int = 0

    def add(self, problem: RowProblem) -> None:
        known = problem.of_columns and any(problem.message == one.message for one in self.told)
        if known or len(self.told) == ROW_PROBLEMS_KEPT:
            self.further += 1
        else:
            self.told.append(problem)


def check_rows(path: Path, layout: Layout = Layout()) -> RowCheck:  # noqa: B008 - immutable
    """Find what is wrong with a data file without keeping its rows.

    A file that has not changed since is not read again: a list of all projects would otherwise read all data.
    """
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return _check(path, layout)
    return _check_known(path, layout, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@functools.lru_cache(maxsize=256)
def _check_known(path: Path, layout: Layout, _size: int, _mtime_ns: int, _inode: int) -> RowCheck:
    return _check(path, layout)


def _check(path: Path, layout: Layout) -> RowCheck:
    reader = RowReader(layout)
    row_format: RowFormat | None = None
    rows = 0
    findings = _Findings()
    for item in _read(raw_rows(path, file_type=layout.file_type, columns=reader.columns), reader):
        if isinstance(item, RowProblem):
            findings.add(item)
        else:
            row_format, rows = item[0], rows + 1
    return RowCheck(row_format, rows, tuple(findings.told), findings.further)


def read_rows(path: Path, layout: Layout = Layout()) -> DatasetRows:  # noqa: B008 - immutable
    """Read a data file whole.

    Raises:
        DatasetError: It is missing, unreadable, empty, or rows are malformed; names the file and the first few of them.
    """
    reader = RowReader(layout)
    raw = raw_rows(path, file_type=layout.file_type, columns=reader.columns)
    row_format, rows = collect_rows(raw, reader, f"The data file {path}")
    return DatasetRows(row_format, rows, fingerprint_data(path))


def collect_rows(raw: Iterable[RawRow | RowProblem], reader: RowReader, source: str) -> tuple[RowFormat, list[Row]]:
    """Read rows into memory.

    Args:
        raw: The rows as their container holds them.
        reader: A fresh one.
        source: What they come from, as a sentence begins.

    Raises:
        DatasetError: There are none, or some are malformed; names the first few.
    """
    rows: list[Row] = []
    findings = _Findings()
    row_format: RowFormat = "text"
    for item in _read(raw, reader):
        if isinstance(item, RowProblem):
            findings.add(item)
        else:
            row_format, row = item
            rows.append(row)
    if findings.told:
        told = [*map(_told, findings.told), *([f"and {findings.further} more"] if findings.further else [])]
        start = f"{source}:" if findings.told[0].row else source
        raise DatasetError(f"{start} {'; '.join(told)}.", hint="Mend it, or start with another dataset_id.")
    return row_format, rows


def _told(problem: RowProblem) -> str:
    if problem.row is None:
        return problem.message
    return f"row {problem.row}{f' (line {problem.line})' if problem.line else ''}: {problem.message}"
