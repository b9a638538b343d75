"""Turns what pydantic finds into problems that an author understands: dotted path, line, what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sized
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from runner.errors import Problem
from runner.refused_settings import why_refused, why_value_refused
from runner.strict import ContradictionsError
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


def _home_of(model: type[BaseModel], path: KeyPath) -> str | None:
    """The table of the model's that has this key, where exactly one has."""
    tables = {name: field.annotation for name, field in model.model_fields.items()}
    homes = [
        name
        for name, table in tables.items()
        if isinstance(table, type) and path[-1] in getattr(table, "model_fields", ())
    ]
    return homes[0] if len(homes) == 1 else None


def _place(raw: object, details: ErrorDetails) -> tuple[KeyPath, object]:
    """Cut a pydantic location to what the file really holds: behind a union stand tags that are no keys."""
    path: KeyPath = ()
    for part in details["loc"]:
        if isinstance(raw, Mapping) and isinstance(part, str):
            path = (*path, part)
            if part not in raw:
                # What a missing key lacks is told at it; the branches of a union, by their tags, want another kind.
                return (path[:-1], raw) if details["type"] in _KINDS else (path, None)
            raw = raw[part]
        elif isinstance(raw, list | tuple) and isinstance(part, int) and part < len(raw):
            path, raw = (*path, part), raw[part]
        elif not (isinstance(raw, list) and isinstance(part, str)):
            break
    return path, raw


def _about_unknown(model: type[BaseModel], path: KeyPath) -> str:
    home = _home_of(model, path)
    if home is not None:
        return f"unknown key here; it belongs in [{home}]"
    if reason := why_refused(str(path[-1]), str(path[0])):
        return f"cannot be set: {reason}"
    return f"unknown key{did_you_mean(str(path[-1]), _known_keys(model, path[:-1])) or '; remove it'}"


def _explain(errors: list[ErrorDetails], model: type[BaseModel], path: KeyPath, value: object) -> str:
    """One sentence for a value; the branches of a union fail one by one, and to the reader it is one finding."""
    error = errors[0]
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return _about_unknown(model, path)
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind in {"too_long", "string_too_long"}:
        what = "characters" if isinstance(value, str) else "entries"
        return f"must have at most {context['max_length']} {what}, found {len(cast('Sized', value))}"
    if kind == "value_error" and not isinstance(value, str):
        return str(context["error"])
    wanted = list(dict.fromkeys(_wanted(one) for one in errors))
    also = [one.removeprefix("must be ") for one in wanted[1:]]
    return f"{' or '.join([wanted[0], *also])}, found {_shown(value)}{_remark(errors, path, value)}"


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


def _remark(errors: list[ErrorDetails], path: KeyPath, value: object) -> str:
    """Say why a word that a library knows is not permitted, or guess which of the permitted ones was meant."""
    if not isinstance(value, str):
        return ""
    if reason := why_value_refused(dotted(path), value):
        return f", which {reason}"
    listed = " ".join(str(error["ctx"]["expected"]) for error in errors if error["type"] == "literal_error")
    return did_you_mean(value, re.findall(r"'([^']*)'", listed))


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
    found: dict[KeyPath, list[ErrorDetails]] = {}
    values: dict[KeyPath, object] = {}
    for details in error.errors(include_url=False):
        path, value = _place(raw, details)
        if details["type"] == "too_short" and value:
            continue  # its entries were counted after they had failed themselves
        if _contradictions(details, path) is None:
            found.setdefault(path, []).append(details)
            values[path] = value
    # A finding about an entry says more than one about the list that holds it.
    holders = {path[:length] for path in found for length in range(len(path))}
    wrong = [path for path in found if path not in holders]
    told = [(path, _explain(found[path], model, path, values[path])) for path in wrong]
    told += _all_contradictions(model, raw, wrong)
    problems = [
        Problem(message, file=file, line=line_of(lines, path), path=dotted(path) or None)
        for path, message in dict.fromkeys(told)
    ]
    return sorted(problems, key=lambda problem: problem.line or 0)


def _contradictions(details: ErrorDetails, table: KeyPath) -> list[tuple[list[KeyPath], str]] | None:
    """What a table says against itself: the keys and the sentence; None for an error of any other kind."""
    error = details.get("ctx", {}).get("error")
    if not isinstance(error, ContradictionsError):
        return None
    return [([(*table, *key.split(".")) for key in one.keys], one.message) for one in error.found]


def _all_contradictions(model: type[BaseModel], raw: object, wrong: list[KeyPath]) -> Iterator[tuple[KeyPath, str]]:
    """Find those too that pydantic does not look for while something else is wrong in the table, or in one inside it.

    What is wrong is left out, and with it every contradiction that has to do with it.
    """
    left_out = list(wrong)
    while () not in left_out:
        known = len(left_out)
        try:
            model.model_validate(_without(raw, left_out, model))
        except ValidationError as error:
            for details in error.errors(include_url=False):
                for keys, message in _contradictions(details, _place(raw, details)[0]) or ():
                    if not any(_touch(key, path) for key in keys for path in left_out[:known]):
                        left_out.append(keys[0])
                        yield keys[0], message
        if len(left_out) == known:
            return


def _touch(one: KeyPath, other: KeyPath) -> bool:
    """Whether they are the same place, or one holds the other."""
    length = min(len(one), len(other))
    return one[:length] == other[:length]


def _without(raw: object, wrong: list[KeyPath], model: type[BaseModel] | None = None) -> object:
    """A copy without what is wrong; a required key of the top level gets some value that passes in its place."""
    here = {path[0] for path in wrong if len(path) == 1}
    below = {part: [path[1:] for path in wrong if path[0] == part and len(path) > 1] for part in (p[0] for p in wrong)}
    if isinstance(raw, list):
        return [_without(one, below.get(number, [])) for number, one in enumerate(raw) if number not in here]
    if not isinstance(raw, Mapping):
        return raw
    kept: dict[str, Any] = {key: _without(one, below.get(key, [])) for key, one in raw.items() if key not in here}
    for name, field in model.model_fields.items() if model is not None else ():
        if field.is_required() and (name in here or below.get(name)):
            kept[name] = field.examples[0] if field.examples else "x"
    return kept
