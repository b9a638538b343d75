"""Turns what pydantic finds into problems that an author understands: dotted path, line, what is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from runner.errors import Problem
from runner.toml_lines import KeyPath, dotted, line_of

_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text in quotes",
    "bool_type": "true or false",
    "tuple_type": "a list in [ ]",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dict_type": "a table",
}


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004 - one line in a Slack message


def _known_keys(model: type[BaseModel], path: KeyPath) -> list[str]:
    """The keys that may stand in the table at `path`."""
    current: Any = model
    for part in path:
        if isinstance(part, int):
            continue
        field = current.model_fields.get(part)
        if field is None:
            return []
        current = field.annotation
        # `tuple[Trait, ...]` holds what a list entry must be.
        arguments = [
            argument for argument in getattr(current, "__args__", ()) if hasattr(argument, "model_fields")
        ]  # fmt: skip
        current = arguments[0] if arguments else current
        if not hasattr(current, "model_fields"):
            return []
    return list(cast("type[BaseModel]", current).model_fields)


def _place(raw: object, location: tuple[int | str, ...]) -> tuple[KeyPath, object]:
    """Cut a pydantic location to what the file really holds: behind a union stand tags that are no keys."""
    path: KeyPath = ()
    for position, part in enumerate(location):
        if isinstance(raw, Mapping) and isinstance(part, str):
            path = (*path, part)
            if part not in raw:
                # A missing key is named by its last part; a tag would follow a value, never a table.
                return (path, None) if position == len(location) - 1 else (path[:-1], raw)
            raw = raw[part]
        elif isinstance(raw, list | tuple) and isinstance(part, int) and part < len(raw):
            path, raw = (*path, part), raw[part]
        else:
            break
    return path, raw


def _explain(error: ErrorDetails, model: type[BaseModel], path: KeyPath, value: object) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(path[-1]), _known_keys(model, path[:-1]), n=1)
        return f"unknown key{f'; did you mean {near[0]!r}?' if near else '; remove it'}"
    if kind == "missing":
        return "is missing"
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}, found {_shown(value)}"
    if kind == "literal_error":
        return f"must be {context['expected']}, found {_shown(value)}"
    if kind == "value_error":
        return f"{context['error']}, found {_shown(value)}" if not isinstance(value, Mapping) else f"{context['error']}"
    bound = error["msg"].removeprefix("Input should be ").removeprefix("String should ").removeprefix("Tuple should ")
    return f"must {bound}" if bound.startswith("have") else f"must be {bound}, found {_shown(value)}"


def find_problems(
    error: ValidationError, model: type[BaseModel], raw: Mapping[str, Any], *, file: str, lines: Mapping[KeyPath, int]
) -> list[Problem]:
    """List every finding once, in file order.

    Args:
        error: What pydantic raised for `raw`.
        model: The model that was validated.
        raw: The parsed file.
        file: Its name, for the reader.
        lines: From `runner.toml_lines.key_lines`.
    """
    found: dict[KeyPath, Problem] = {}
    for details in error.errors(include_url=False):
        path, value = _place(raw, details["loc"])
        if details["type"] == "too_short" and value:
            continue  # its entries were counted after they had failed themselves
        message = _explain(details, model, path, value)
        if path in found and found[path].message != message and details["type"] in _KINDS:
            # The branches of a union fail one by one; to the reader it is one finding.
            message = f"{found[path].message.split(', found')[0]} or {_KINDS[details['type']]}, found {_shown(value)}"
        found[path] = Problem(message, file=file, line=line_of(dict(lines), path), path=dotted(path) or None)
    return sorted(found.values(), key=lambda problem: problem.line or 0)
