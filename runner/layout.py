"""How a dataset is laid out, as far as the catalog says so; what it does not say is found by looking. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FileType = Literal["jsonl", "json", "csv", "parquet"]
"""What holds the rows of a data file."""
WrittenFormat = Literal["messages", "prompt_completion", "alpaca", "sharegpt", "text"]
"""What a row is as it is written; `runner.row_formats` tells what it becomes."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a reader has to know."""

    file_type: FileType | None = None
    """By the file's extension where None."""
    format: WrittenFormat | None = None
    """By the first row where None."""
    columns: tuple[tuple[str, str], ...] = ()
    """Our name of a column and the dataset's own, where they differ."""
