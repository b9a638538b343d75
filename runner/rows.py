"""Reads the rows of a JSON-lines data file and tells what they are. Plain Python, so that the bot can check them too.

Three formats, each as TRL names it; the first row decides and every other row must follow:

- `prompt_completion`: `{"prompt": str, "completion": str}`; loss on the completion.
- `messages`: `{"messages": [{"role": "system" | "user" | "assistant", "content": str}, …]}`; loss on assistant turns.
- `text`: `{"text": str}`; loss on everything.

A row may hold further keys; they are ignored.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runner.errors import DatasetError

RowFormat = Literal["prompt_completion", "messages", "text"]

FORMATS = '{"prompt": …, "completion": …}, {"messages": [{"role": …, "content": …}, …]} or {"text": …}'
_KEYS: dict[RowFormat, str] = {
    "prompt_completion": "prompt and completion",
    "messages": "messages",
    "text": "text",
}
_JSON_NAMES: dict[type, str] = {
    list: "list",
    str: "text",
    int: "number",
    float: "number",
    bool: "truth value",
    type(None): "null",
}
_ROLES = ("system", "user", "assistant")
LONGEST_ROW = 8 * 2**20
"""Bytes. A longer line is no row for a language model; mostly it is a JSON array in one line."""
ROW_PROBLEMS_KEPT = 5
"""Malformed rows told of one data file; a file of the wrong kind would flood memory and answer."""


@dataclass(frozen=True, slots=True)
class RowProblem:
    """One thing that is wrong with a data file."""

    row: int | None
    """1-based line of the file, None where the whole file is meant."""
    message: str
    """Continues the sentence `row 3 …` or `the data file …`."""


@dataclass(frozen=True, slots=True)
class RowFile:
    """A data file, read whole and checked."""

    format: RowFormat
    rows: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class RowCheck:
    """What a data file holds and what is wrong with it."""

    format: RowFormat | None
    """None when no row is good."""
    rows: int
    """Good rows."""
    problems: tuple[RowProblem, ...]
    """The first few, in file order."""
    further: int
    """Problems beyond those."""


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
        value = row[key]
        if not isinstance(value, str):
            return f"{key!r} must be text, found {json.dumps(value, ensure_ascii=False)[:60]}"
        if not value.strip():
            return f"{key!r} is empty"
        if not _encodable(value):
            return f"{key!r} holds half of a surrogate pair, which is no character"
    return None


def _problem_in_messages(messages: object) -> str | None:
    if not isinstance(messages, list) or not messages:
        return "'messages' must be a list of messages"
    for number, message in enumerate(messages, start=1):
        # `in` a tuple compares, so a role of any JSON type may stand there.
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            return f"message {number} needs a 'role' of {', '.join(_ROLES)}"
        if not isinstance(message.get("content"), str):
            return f"message {number} needs a 'content' that is text"
        if not _encodable(message["content"]):
            return f"message {number} holds half of a surrogate pair, which is no character"
    if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
        return "has no assistant message with text, so there is nothing to learn"
    return None


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"names {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"holds {name}, which JSON does not know")


def _parsed(line: bytes) -> object:
    """Parse one line.

    Raises:
        ValueError: It is no JSON; the message continues the sentence `row 3 …`.
    """
    try:
        # A byte order mark can stand in front of the first row only; JSON refuses it anywhere else.
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start + 1})") from error
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg[0].lower()}{error.msg[1:]} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank with their number, each at most a byte longer than `LONGEST_ROW`."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_ROW + 1):
            number += 1
            if line.strip():
                yield number, line
            if len(line) > LONGEST_ROW:
                return


def _checked(path: Path) -> Iterator[tuple[RowFormat, dict[str, Any]] | RowProblem]:
    """Yield each row with its format, or what is wrong with it."""
    expected: RowFormat | None = None
    first_row = 0
    number = 0
    try:
        if path.exists() and not path.is_file():
            yield RowProblem(None, "is not a file")
            return
        for number, line in _lines(path):
            if len(line) > LONGEST_ROW:
                yield RowProblem(number, f"is longer than {LONGEST_ROW // 2**20} MiB; write one JSON object a line")
                return
            try:
                row = _parsed(line)
            except ValueError as error:
                yield RowProblem(number, str(error))
                continue
            found = _format_of(row) if isinstance(row, dict) else None
            if not isinstance(row, dict) or found is None:
                keys = ", ".join(map(repr, row)) if isinstance(row, dict) else f"a {_JSON_NAMES[type(row)]}"
                yield RowProblem(number, f"must be {FORMATS}; found {keys[:100] or 'no keys'}")
            elif expected is not None and found != expected:
                message = f"has {_KEYS[found]}, but row {first_row} has {_KEYS[expected]}; one file holds one kind"
                yield RowProblem(number, message)
            elif problem := _problem_in(row, found):
                yield RowProblem(number, problem)
            else:
                if expected is None:
                    expected, first_row = found, number
                yield found, row
    except FileNotFoundError:
        yield RowProblem(None, "does not exist")
        return
    except OSError as error:
        yield RowProblem(None, f"cannot be read ({error.strerror})")
        return
    if number == 0:
        yield RowProblem(None, "holds no rows")


def check_rows(path: Path) -> RowCheck:
    """Find what is wrong with a data file without keeping its rows.

    A file that has not changed since is not read again: a list of all projects would otherwise read all data.
    """
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return _check(path)
    return _check_known(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@functools.lru_cache(maxsize=256)
def _check_known(path: Path, _size: int, _mtime_ns: int, _inode: int) -> RowCheck:
    return _check(path)


def _check(path: Path) -> RowCheck:
    row_format: RowFormat | None = None
    rows = further = 0
    problems: list[RowProblem] = []
    for item in _checked(path):
        if not isinstance(item, RowProblem):
            row_format, rows = item[0], rows + 1
        elif len(problems) < ROW_PROBLEMS_KEPT:
            problems.append(item)
        else:
            further += 1
    return RowCheck(row_format, rows, tuple(problems), further)


def read_rows(path: Path) -> RowFile:
    """Read a data file whole.

    Raises:
        DatasetError: It is missing, unreadable, empty, or a row is malformed; names file and row.
    """
    rows = []
    row_format: RowFormat = "text"
    for item in _checked(path):
        if isinstance(item, RowProblem):
            place = f"Row {item.row} of {path}" if item.row else f"The data file {path}"
            raise DatasetError(f"{place} {item.message}.", hint="Mend the file, or start with another dataset_id.")
        row_format, row = item
        rows.append(row)
    return RowFile(row_format, rows)
