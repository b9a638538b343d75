"""Finds the line of a key in a TOML text, so that a problem can be shown where it is. tomli keeps no positions.

tomli has accepted the text before, so this only has to walk over it: what cannot be valid is not looked for.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence

import tomli

KeyPath = tuple[str | int, ...]

_BASIC = r'"(?:\\.|[^"\\\n])*"'
_LITERAL = r"'[^'\n]*'"
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST_SHOWN = 80
"""Characters of a key in a message."""
_PART = rf"(?:[A-Za-z0-9_-]+|{_BASIC}|{_LITERAL})"
_KEY = re.compile(rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*")
_GAP = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
# A triple-quoted string may end in up to two quotes of its own, right before the three that close it.
_STRING = re.compile(rf'"""(?:\\.|[^\\])*?"""(?:"{{0,2}})|\'\'\'.*?\'\'\'(?:\'{{0,2}})|{_BASIC}|{_LITERAL}', re.DOTALL)
_SCALAR = re.compile(r"[^,\]}#\n]+")


class _Walk:
    """One pass over a text, noting where each key and each element stands."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines: dict[KeyPath, int] = {}
        self._ends = [match.start() for match in re.finditer("\n", text)]
        self._counts: dict[KeyPath, int] = {}

    def document(self) -> None:
        table: KeyPath = ()
        at = self._gap(0)
        while at < len(self.text):
            if self.text[at] == "[":
                array = self.text.startswith("[[", at)
                parts, at = self._key(self._gap(at + 1 + array))
                table = self._header(parts, at, array=array)
                at = self._gap(at) + 1 + array
            else:
                at = self._pair(at, table)
            at = self._gap(at)

    def _header(self, parts: Sequence[str], at: int, *, array: bool) -> KeyPath:
        path: KeyPath = ()
        for part in parts[:-1] if array else parts:
            path = (*path, part)
            self._note(path, at)
            if path in self._counts:
                # A header reaches into the latest entry of every array of tables on its way.
                path = (*path, self._counts[path] - 1)
        if array:
            path = (*path, parts[-1])
            self._note(path, at)
            self._counts[path] = self._counts.get(path, 0) + 1
            path = (*path, self._counts[path] - 1)
            self._note(path, at)
        return path

    def _pair(self, at: int, table: KeyPath) -> int:
        start = at
        parts, at = self._key(at)
        path = table
        for part in parts:
            path = (*path, part)
            self._note(path, start)
        return self._value(self._gap(self._gap(at) + len("=")), path)

    def _value(self, at: int, path: KeyPath) -> int:
        self._note(path, at)
        opening = self.text[at]
        if opening not in "[{":
            match = (_STRING if opening in "\"'" else _SCALAR).match(self.text, at)
            return _end(match)
        closing = "]" if opening == "[" else "}"
        at, index = self._gap(at + 1), 0
        while self.text[at] != closing:
            at = self._gap(self._value(at, (*path, index)) if opening == "[" else self._pair(at, path))
            index += 1
            if self.text[at] == ",":
                at = self._gap(at + 1)
        return at + 1

    def _key(self, at: int) -> tuple[list[str], int]:
        end = _end(_KEY.match(self.text, at))
        # tomli itself reads the quotes and escapes of a key.
        table, parts = tomli.loads(f"{self.text[at:end]} = 0"), []
        while isinstance(table, Mapping):
            (part,) = table
            parts.append(part)
            table = table[part]
        return parts, end

    def _gap(self, at: int) -> int:
        return _end(_GAP.match(self.text, at))

    def _note(self, path: KeyPath, at: int) -> None:
        self.lines.setdefault(path, bisect_right(self._ends, at - 1) + 1)


def _end(match: re.Match[str] | None) -> int:
    if match is None:
        raise AssertionError("tomli accepts a text in which no key or value can be found")
    return match.end()


def key_lines(text: str) -> dict[KeyPath, int]:
    """Map every table, key and array element of a valid TOML text to its 1-based line.

    Args:
        text: What `tomli.loads` has accepted.
    """
    walk = _Walk(text.replace("\r\n", "\n"))
    walk.document()
    return walk.lines


def line_of(lines: Mapping[KeyPath, int], path: KeyPath) -> int | None:
    """The line of `path`, else of the nearest thing around it; None for the top level."""
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return None


def dotted(path: KeyPath) -> str:
    """Write a path as people read it: `traits[0].datasets[1].percentage`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            # As TOML has it: what is no bare key stands in quotes, and so cannot be taken for two keys or two lines.
            name = part if _BARE.fullmatch(part) else json.dumps(part, ensure_ascii=False)
            text += f".{_short(name)}" if text else _short(name)
    return text


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_SHOWN else f"{name[: _LONGEST_SHOWN - 1]}…"
