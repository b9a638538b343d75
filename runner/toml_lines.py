"""Finds the line of a key in a TOML text, so that a problem can be shown where it is. tomli keeps no positions."""

from __future__ import annotations

import re
from collections.abc import Sequence

KeyPath = tuple[str | int, ...]

_HEADER = re.compile(r"^\s*(\[\[?)([^\[\]]+)\]\]?\s*(#.*)?$")
_KEY = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")
_TRIPLE = re.compile(r'"""|\'\'\'')


def _parts(dotted: str) -> list[str]:
    return [part.strip("\"'") for part in _PART.findall(dotted)]


def key_lines(text: str) -> dict[KeyPath, int]:
    """Map each table, array-of-tables entry and key of a valid TOML text to its 1-based line.

    Keys inside inline tables and inside arrays have no entry of their own; `line_of` falls back to what holds them.
    """
    lines: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
    in_string: str | None = None

    def resolve(parts: Sequence[str]) -> KeyPath:
        """Step into the latest entry of every array of tables on the way."""
        path: KeyPath = ()
        for part in parts:
            path = (*path, part)
            if path in counts:
                path = (*path, counts[path] - 1)
        return path

    for number, line in enumerate(text.splitlines(), start=1):
        inside = in_string is not None
        for quote in _TRIPLE.findall(line):
            if in_string is None:
                in_string = quote
            elif in_string == quote:
                in_string = None
        if inside:
            continue
        if header := _HEADER.match(line):
            parts = _parts(header[2])
            if header[1] == "[[":
                array = (*resolve(parts[:-1]), parts[-1])
                counts[array] = counts.get(array, 0) + 1
                table = (*array, counts[array] - 1)
                lines.setdefault(array, number)
            else:
                table = resolve(parts)
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            path = table
            for part in _parts(key[1]):
                path = (*path, part)
                lines.setdefault(path, number)
    return lines


def line_of(lines: dict[KeyPath, int], path: KeyPath) -> int | None:
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
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
