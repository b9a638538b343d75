"""Reads the rows of a JSON-lines data file and tells what they are. Plain Python, so that the bot can check them too.

Three formats, each as TRL names it; the first row decides and every other row must follow:

- `prompt_completion`: `{"prompt": str, "completion": str}`; loss on the completion.
- `messages`: `{"messages": [{"role": "system" | "user" | "assistant", "content": str}, …]}`; loss on assistant turns.
- `text`: `{"text": str}`; loss on everything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runner.errors import DatasetError

RowFormat = Literal["prompt_completion", "messages", "text"]

FORMATS = (
    'one of {"prompt": …, "completion": …}, {"messages": [{"role": …, "content": …}, …]} or {"text": …}, all as text'
)
_ROLES = frozenset({"system", "user", "assistant"})


@dataclass(frozen=True, slots=True)
class RowProblem:
    """One thing that is wrong with a data file."""

    row: int | None
    """1-based line of the file, None where the whole file is meant."""
    message: str


@dataclass(frozen=True, slots=True)
class RowFile:
    """A data file, read whole and checked."""

    format: RowFormat
    rows: list[dict[str, Any]]


def _format_of(row: dict[str, Any]) -> RowFormat | None:
    if "messages" in row:
        return "messages"
    if "prompt" in row and "completion" in row:
        return "prompt_completion"
    return "text" if "text" in row else None


def _problem_in(row: dict[str, Any], row_format: RowFormat) -> str | None:
    """Say what keeps `row` from being a row of that format, None when nothing does."""
    if row_format == "messages":
        return _problem_in_messages(row["messages"])
    for key in ("prompt", "completion") if row_format == "prompt_completion" else ("text",):
        if not isinstance(row[key], str):
            return f"{key!r} must be text, found {json.dumps(row[key], ensure_ascii=False)[:60]}"
    last = "completion" if row_format == "prompt_completion" else "text"
    return None if row[last].strip() else f"{last!r} is empty, so there is nothing to learn"


def _problem_in_messages(messages: object) -> str | None:
    if not isinstance(messages, list) or not messages:
        return "'messages' must be a list of messages"
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            return f"message {number} needs a 'role' of {', '.join(sorted(_ROLES))}"
        if not isinstance(message.get("content"), str):
            return f"message {number} needs a 'content' that is text"
    if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
        return "has no assistant message, so there is nothing to learn"
    return None


def _checked(path: Path) -> Iterator[tuple[RowFormat, dict[str, Any]] | RowProblem]:
    """Yield each row with its format, or what is wrong with it."""
    expected: RowFormat | None = None
    first_row = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    yield RowProblem(number, f"is not JSON ({error})")
                    continue
                found = _format_of(row) if isinstance(row, dict) else None
                if found is None:
                    keys = ", ".join(map(repr, row)) if isinstance(row, dict) else f"a {type(row).__name__}"
                    yield RowProblem(number, f"must be {FORMATS}; found {keys or 'no keys'}")
                elif expected is not None and found != expected:
                    yield RowProblem(number, f"is of format {found}, but row {first_row} is of format {expected}")
                elif problem := _problem_in(row, found):
                    yield RowProblem(number, problem)
                else:
                    if expected is None:
                        expected, first_row = found, number
                    yield found, row
    except FileNotFoundError:
        yield RowProblem(None, "the data file does not exist")
        return
    except OSError as error:
        yield RowProblem(None, f"the data file cannot be read ({error.strerror})")
        return
    if expected is None:
        yield RowProblem(None, "the data file holds no usable row")


def check_rows(path: Path) -> tuple[RowFormat | None, list[RowProblem]]:
    """Find every problem of a data file without keeping its rows.

    Returns:
        The format, None when no row is good, and the problems in file order.
    """
    found: RowFormat | None = None
    problems = []
    for item in _checked(path):
        if isinstance(item, RowProblem):
            problems.append(item)
        else:
            found = item[0]
    return found, problems


def read_rows(path: Path) -> RowFile:
    """Read a data file whole.

    Raises:
        DatasetError: It is missing, unreadable, empty, or a row is malformed; names file and row.
    """
    rows = []
    row_format: RowFormat = "text"
    for item in _checked(path):
        if isinstance(item, RowProblem):
            place = f"row {item.row} of {path}" if item.row else str(path)
            raise DatasetError(f"{place}: {item.message}.", hint="Mend the file, or start with another dataset_id.")
        row_format, row = item
        rows.append(row)
    return RowFile(row_format, rows)
