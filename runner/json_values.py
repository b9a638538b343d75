"""Parses JSON as the standard has it: a key that stands twice, and `NaN`, are flaws. Plain Python.

A line is parsed whole; the list that a `.json` file holds is parsed element by element, so that a file larger than
memory can be read.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

LONGEST_ROW = 8 * 2**20
"""Bytes. A longer row is no row for a language model; mostly a bracket or a quote is not closed."""
TOO_LONG = f"is longer than {LONGEST_ROW // 2**20} MiB"
ENDS_EARLY = "is cut off: the file ends before its list does"

_CHUNK = 64 * 2**10
_CUT_NUMBER = len("e+")
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a list."""

    line: int
    """1-based line that it begins on."""
    value: object
    """None where there is a flaw."""
    flaw: str | None
    """What is wrong with it; continues the sentence `row 3 …`."""


class BrokenListError(Exception):
    """Nothing behind this place can be understood; the message continues the sentence `row 3 …`."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class _Decoder:
    """json's decoder, which also notes what JSON does not know."""

    def __init__(self) -> None:
        self._decoder = json.JSONDecoder(object_pairs_hook=self._unique, parse_constant=self._constant)
        self._flaws: list[str] = []

    def decode(self, text: str, at: int) -> tuple[object, int, str | None]:
        """Decode the value at `at`: the value, where it ends, and its flaw.

        Raises:
            json.JSONDecodeError: There is no whole value.
            ValueError: It cannot be held; the message continues the sentence `row 3 …`.
        """
        self._flaws.clear()
        try:
            value, end = self._decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            raise
        except ValueError as error:
            raise ValueError("holds a number with too many digits") from error
        except RecursionError as error:
            raise ValueError("is nested too deeply") from error
        return value, end, self._flaws[0] if self._flaws else None

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            self._flaws.append(f"names {next(key for key in keys if keys.count(key) > 1)!r} twice")
        return found

    def _constant(self, name: str) -> None:
        self._flaws.append(f"holds {name}, which JSON does not know")


def _words(error: json.JSONDecodeError) -> str:
    return error.msg[0].lower() + error.msg[1:]


def parse_line(line: bytes) -> object:
    """Parse one line.

    Raises:
        ValueError: It is no JSON; the message continues the sentence `row 3 …`.
    """
    try:
        # A byte order mark can stand in front of the first row only; JSON refuses it anywhere else.
        text = line.decode("utf-8-sig").strip(" \t\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start + 1}); save the file as UTF-8") from error
    try:
        value, end, flaw = _Decoder().decode(text, 0)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {_words(error)} at column {error.colno}") from error
    if rest := text[end:].lstrip():
        raise ValueError(f"is not JSON: extra data at column {len(text) - len(rest) + 1}")
    if flaw is not None:
        raise ValueError(flaw)
    return value


class _Text:
    """A window on a file's text that moves forward."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._line = 1
        self._counted = 0
        self.text = ""
        self.at = 0
        self.at_end = False

    def line(self, at: int) -> int:
        """The 1-based line of a place in the window; ask for places in the order they stand."""
        self._line += self.text.count("\n", self._counted, at)
        self._counted = at
        return self._line

    def more(self) -> bool:
        """Read on, as much again as is still needed; False at the end of the file. What lies before `at` is let go."""
        if self.at_end:
            return False
        chunk = self._file.read(max(_CHUNK, len(self.text) - self.at))
        try:
            found = self._utf8.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            line = self.line(len(self.text)) + error.object[: error.start].count(b"\n")
            raise BrokenListError(line, "is not UTF-8 text") from error
        self.at_end = not chunk
        self.line(self.at)
        self.text, self.at, self._counted = self.text[self.at :] + found, 0, 0
        return not self.at_end

    def peek(self) -> str:
        """The next character that is no space; empty at the end of the file."""
        while True:
            match = _SPACE.match(self.text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self, character: str) -> bool:
        """Step over the next character that is no space if it is this one."""
        if self.peek() != character:
            return False
        self.at += 1
        return True


def list_elements(file: BinaryIO) -> Iterator[Element]:
    """Yield the elements of the JSON list that a file holds, with at most a few rows of it in memory.

    Raises:
        BrokenListError: The file cannot be understood from here on.
    """
    text, decoder = _Text(file), _Decoder()
    if not text.take("["):
        raise BrokenListError(1, "must begin with [")
    if not text.take("]"):
        while True:
            yield _element(text, decoder)
            if text.take("]"):
                break
            if not text.take(","):
                message = "needs a comma or ] behind it" if text.peek() else ENDS_EARLY
                raise BrokenListError(text.line(text.at), message)
    if text.peek():
        raise BrokenListError(text.line(text.at), "is followed by something that is not part of the list")


def _element(text: _Text, decoder: _Decoder) -> Element:
    text.peek()
    while True:
        try:
            value, end, flaw = decoder.decode(text.text, text.at)
        except json.JSONDecodeError as error:
            length = error.pos - text.at
            if len(text.text) - text.at > LONGEST_ROW:
                raise BrokenListError(text.line(text.at), TOO_LONG) from error
            if text.more():
                continue
            message = f"is not JSON: {_words(error)}" if text.peek() else ENDS_EARLY
            raise BrokenListError(text.line(text.at + length), message) from error
        except ValueError as error:
            raise BrokenListError(text.line(text.at), str(error)) from error
        length = end - text.at
        # A number that the window cuts, such as `1e+5` behind `1e+`, decodes to its beginning.
        if end + _CUT_NUMBER < len(text.text) or not text.more():
            break
    line = text.line(text.at)
    text.at += length
    return Element(line, None if flaw else value, flaw)
