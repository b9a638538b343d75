"""Turns what pydantic finds into problems that an author understands: dotted path, line, what is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sized
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from runner.errors import Problem
from runner.suggestions import did_you_mean
from runner.toml_lines import KeyPath, dotted, line_of

_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "finite_number": "a finite number",
    "float_type": "a number",
    "string_type": "text in quotes",
    "bool_type": "true or false",
    "tuple_type": "a list in [ ]",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dict_type": "a table",
}
_PLAIN = {
    "missing": "is missing",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
}
_BOUNDS = {
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
}


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
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
        elif not (isinstance(raw, list) and isinstance(part, str)):
            break
    return path, raw


def _explain(error: ErrorDetails, model: type[BaseModel], path: KeyPath, value: object) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key{did_you_mean(str(path[-1]), _known_keys(model, path[:-1])) or '; remove it'}"
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind in {"too_long", "string_too_long"}:
        what = "characters" if isinstance(value, str) else "entries"
        return f"must have at most {context['max_length']} {what}, found {len(cast('Sized', value))}"
    if kind == "value_error" and not isinstance(value, str):
        return str(context["error"])
    return f"{_wanted(error)}, found {_shown(value)}"


def _wanted(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}"
    if kind in _BOUNDS:
        bounds = {name: f"{bound:g}" if isinstance(bound, float) else bound for name, bound in context.items()}
        return f"must be {_BOUNDS[kind].format_map(bounds)}"
    if kind == "literal_error":
        return f"must be {context['expected']}"
    return str(context["error"]) if kind == "value_error" else error["msg"]


def find_problems(
    error: ValidationError, model: type[BaseModel], raw: object, *, file: str, lines: Mapping[KeyPath, int]
) -> list[Problem]:
    """List every finding once, in file order.

    Args:
        error: What pydantic raised for `raw`.
        model: The model that was validated.
        raw: What was validated: the parsed file or a part of it.
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
        found[path] = Problem(message, file=file, line=line_of(lines, path), path=dotted(path) or None)
    # A finding about an entry says more than one about the list that holds it.
    holders = {path[:length] for path in found for length in range(len(path))}
    problems = [problem for path, problem in found.items() if path not in holders]
    return sorted(problems, key=lambda problem: problem.line or 0)
